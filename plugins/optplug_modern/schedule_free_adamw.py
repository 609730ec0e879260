"""Schedule-Free AdamW."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, State
from optplug.errors import HyperparameterError
from optplug.ops import lerp, sqrt, where
from optplug.optim.options import OptionsWithoutDecay
from optplug_modern.schedule_free import ScheduleFree, averaging


class ScheduleFreeAdamW(ScheduleFree):
    r"""AdamW that needs no learning rate schedule: it averages its iterates, and computes gradients near the average.

    .. math::
        y_t = (1 - \beta_1) z_t + \beta_1 x_t \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g(y_t)^2 \qquad
        z_{t+1} = z_t - \gamma_t \left( \frac{g(y_t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda y_t \right)

        x_{t+1} = (1 - c_{t+1}) x_t + c_{t+1} z_{t+1} \qquad
        c_{t+1} = \frac{w_t}{\sum_{i \le t} w_i}, \quad w_t = t^r \max_{i \le t} \gamma_i^p

    The parameters are :math:`y` in train mode and :math:`x` in eval mode. `train()` and `eval()` of the optimizer
    switch the mode: evaluate and save the model in eval mode. A new optimizer is in train mode. Checkpoints keep the
    mode. optplug's Lightning callback switches the mode.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`. The authors recommend 1 to 10 times the one of AdamW.
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1), the first one above 0.
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient :math:`\lambda \ge 0` of the weight decay at :math:`y`.
        warmup_steps: number of steps in which the learning rate increases linearly to `lr`.
        r: exponent :math:`r \ge 0` of the step in the weights :math:`w` of the average.
        weight_lr_power: exponent :math:`p \ge 0` of the largest learning rate in the weights of the average.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`. `capturable`
            must be False.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        ModeError: in `step`, in eval mode.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `z` and `exp_avg_sq` :math:`v`, with the shape of the parameter. The step count `k`, `weight_sum` and
    `lr_max` belong to the parameter group, as in the authors' package schedulefree. State dicts are exchanged with its
    class AdamWScheduleFree.

    Source: Defazio et al., The Road Less Scheduled, 2024, https://arxiv.org/abs/2405.15682.
    """

    states = (State("z"), State("exp_avg_sq"))
    cases = (
        {},
        {"lr": 0.1, "betas": (0.5, 0.9), "warmup_steps": 4, "weight_decay": 0.05},
        {"lr": 0.1, "r": 1.5, "weight_lr_power": 1.0, "eps": 1e-3, "maximize": True},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
        )
        super().__init__(params, hyperparameters, **options)

    def check_options(self, options: dict[str, Any]) -> None:
        super().check_options(options)
        if options["betas"][0] == 0:
            message = f"Invalid beta parameter at index 0: {options['betas'][0]} (it must be above 0)"
            raise HyperparameterError(message, argument="betas", inside=(0,))

    def interpolation(self, group: Mapping[str, Any]) -> float:
        return float(group["betas"][0])

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, z, exp_avg_sq, *,
        lr, betas, eps, weight_decay, warmup_steps, r, weight_lr_power, k, lr_max, weight_sum, first
    ):  # fmt: skip
        lr, c, *_ = averaging(lr, warmup_steps, r, weight_lr_power, k, lr_max, weight_sum)
        z = where(first > 0, p, z)  # in the first step, x = y = z
        exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * g * g
        g = g / (sqrt(exp_avg_sq / (1 - betas[1] ** (k + 1))) + eps) + weight_decay * p
        p = lerp(p, z, c) - (lr * (1 - betas[0] * (1 - c))) * g
        return p, z - lr * g, exp_avg_sq
