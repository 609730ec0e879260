"""Adadelta."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import sqrt
from optplug.optim.options import OptionsWithoutForeach
from optplug.optim.ranges import unit_interval


class Adadelta(RuleOptimizer):
    r"""Scales the gradient by the ratio of the root mean squares of past updates and past gradients.

    The update has the units of the parameter.

    .. math::
        v_t = \rho v_{t-1} + (1 - \rho) g_t^2 \qquad
        \Delta_t = \sqrt{u_{t-1} + \epsilon} \big/ \sqrt{v_t + \epsilon} \; g_t \qquad
        u_t = \rho u_{t-1} + (1 - \rho) \Delta_t^2 \qquad \theta_t = \theta_{t-1} - \gamma \Delta_t

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: factor :math:`\gamma \ge 0` of the update; 1 in the paper.
        rho: decay rate :math:`\rho` of both running averages, in [0, 1].
        eps: :math:`\epsilon \ge 0`, added to both running averages.
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `square_avg` :math:`v` and `acc_delta` :math:`u`, with the shape of the parameter.

    Source: Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012, https://arxiv.org/abs/1212.5701.
    """

    states = (State("step", scalar=True), State("square_avg"), State("acc_delta"))
    ranges = (unit_interval("rho"),)
    cases = ({}, {"rho": 0.5, "eps": 1e-3, "lr": 0.1}, {"weight_decay": 0.05}, {"maximize": True})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        **options: Unpack[OptionsWithoutForeach],
    ) -> None:
        hyperparameters = dict(lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)
        super().__init__(params, hyperparameters, foreach=foreach, **options)

    @staticmethod
    def rule(p, g, step, square_avg, acc_delta, *, lr, rho, eps):  # type: ignore[no-untyped-def]
        square_avg = rho * square_avg + (1 - rho) * g * g
        delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
        acc_delta = rho * acc_delta + (1 - rho) * delta * delta
        return p - lr * delta, step + 1, square_avg, acc_delta
