"""Schedule-Free SGD."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, State
from optplug.ops import lerp, where
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import Range
from optplug_modern.schedule_free import ScheduleFree, averaging

OPEN_UNIT_INTERVAL = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}


class ScheduleFreeSGD(ScheduleFree):
    r"""SGD that needs no learning rate schedule: it averages its iterates, and computes gradients near the average.

    .. math::
        y_t = (1 - \beta) z_t + \beta x_t \qquad
        z_{t+1} = z_t - \gamma_t g(y_t) \qquad
        x_{t+1} = (1 - c_{t+1}) x_t + c_{t+1} z_{t+1} \qquad
        c_{t+1} = \frac{w_t}{\sum_{i \le t} w_i}, \quad w_t = t^r \max_{i \le t} \gamma_i^p

    The parameters are :math:`y` in train mode and :math:`x` in eval mode. `train()` and `eval()` of the optimizer
    switch the mode: evaluate and save the model in eval mode. A new optimizer is in train mode. Checkpoints keep the
    mode. optplug's Lightning callback switches the mode.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`. The authors recommend 10 to 50 times the one of SGD.
        momentum: :math:`\beta`, above 0 and below 1.
        weight_decay: coefficient of the L2 penalty at :math:`y`, at least 0.
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

    State: `z`, with the shape of the parameter. The step count `k`, `weight_sum` and `lr_max` belong to the parameter
    group, as in the authors' package schedulefree. State dicts are exchanged with its class SGDScheduleFree.

    Source: Defazio et al., The Road Less Scheduled, 2024, https://arxiv.org/abs/2405.15682.
    """

    states = (State("z"),)
    ranges = (Range("momentum", "above 0 and below 1", lambda x: 0 < x < 1, bounds=OPEN_UNIT_INTERVAL),)
    cases = (
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.5, "warmup_steps": 4, "weight_decay": 0.05},
        {"lr": 0.1, "r": 1.5, "weight_lr_power": 1.0, "maximize": True},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
        )
        super().__init__(params, hyperparameters, **options)

    def interpolation(self, group: Mapping[str, Any]) -> float:
        return float(group["momentum"])

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, z, *, lr, momentum, warmup_steps, r, weight_lr_power, k, lr_max, weight_sum, first
    ):
        lr, c, *_ = averaging(lr, warmup_steps, r, weight_lr_power, k, lr_max, weight_sum)
        z = where(first > 0, p, z)  # in the first step, x = y = z
        p = lerp(p, z, c) - (lr * (1 - momentum * (1 - c))) * g
        return p, z - lr * g
