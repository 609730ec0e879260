"""Lion."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, sign
from optplug.optim.options import OptionsWithoutDecay


class Lion(RuleOptimizer):
    r"""Evolved sign momentum: each element moves by the learning rate, in the direction of a sign.

    .. math::
        \theta_t = (1 - \gamma \lambda) \, \theta_{t-1} -
        \gamma \operatorname{sign} \big( \beta_1 m_{t-1} + (1 - \beta_1) g_t \big) \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`. The paper recommends a third to a tenth of the one of AdamW.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the direction and of the momentum, each in [0, 1).
        weight_decay: coefficient :math:`\lambda \ge 0` of the decoupled weight decay. The paper recommends three to
            ten times the one of AdamW.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `exp_avg` :math:`m`, with the shape of the parameter.

    The real and the imaginary part of a complex parameter are separate elements; lion-pytorch uses the complex sign.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023, https://arxiv.org/abs/2302.06675.
    """

    states = (State("exp_avg"),)
    cases = ({}, {"lr": 0.01, "weight_decay": 0.05}, {"maximize": True, "betas": (0.8, 0.95)})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, weight_decay=weight_decay, decoupled_weight_decay=True)
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(p, g, exp_avg, *, lr, betas):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        p = p - lr * sign(lerp(exp_avg, g, 1 - beta1))
        return p, lerp(exp_avg, g, 1 - beta2)
