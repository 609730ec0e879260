"""AdamW: the rule of Adam with decoupled weight decay."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params
from optplug.optim.options import OptionsWithoutDecay
from optplug_classic.adam import Adam


class AdamW(Adam):
    r"""Adam with decoupled weight decay: :math:`\theta \leftarrow (1 - \gamma\lambda) \, \theta` before Adam's update.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        weight_decay: coefficient :math:`\lambda \ge 0` of the decoupled weight decay.
        lr, betas, eps, amsgrad: as in `Adam`.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: as in `Adam`.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # also after loading a state dict of Adam
            group["decoupled_weight_decay"] = True
