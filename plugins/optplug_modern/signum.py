"""Signum: the sign of the momentum."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, RuleOptions, State
from optplug.ops import lerp, sign
from optplug.optim.ranges import Range


class Signum(RuleOptimizer):
    r"""Sign descent with momentum: each element moves by the learning rate. Without momentum it is signSGD.

    .. math::
        m_t = \mu m_{t-1} + (1 - \mu) g_t \qquad \theta_t = \theta_{t-1} - \gamma \operatorname{sign}(m_t)

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        momentum: decay rate :math:`\mu` of the running average of the gradient, in [0, 1).
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `momentum_buffer` :math:`m` with the shape of the parameter, if momentum is not 0.

    Source: Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, 2018,
    https://arxiv.org/abs/1802.04434.
    """

    states = (State("momentum_buffer", when="momentum"),)
    ranges = (
        Range("momentum", "at least 0 and below 1", lambda x: 0 <= x < 1, bounds={"minimum": 0, "exclusiveMaximum": 1}),
    )
    cases = ({}, {"momentum": 0.0}, {"weight_decay": 0.05, "momentum": 0.5, "maximize": True})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay), **options)

    @staticmethod
    def rule(p, g, momentum_buffer, *, lr, momentum):  # type: ignore[no-untyped-def]
        if momentum_buffer is not None:
            momentum_buffer = g = lerp(momentum_buffer, g, 1 - momentum)
        return p - lr * sign(g), momentum_buffer
