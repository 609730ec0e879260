"""RMSprop."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, sqrt
from optplug.optim.options import DecayOptions
from optplug.optim.ranges import unit_interval


class RMSprop(RuleOptimizer):
    r"""Divides the gradient by the square root of a running average of squared gradients.

    .. math::
        v_t = \alpha v_{t-1} + (1 - \alpha) g_t^2 \qquad
        b_t = \mu b_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon} \qquad \theta_t = \theta_{t-1} - \gamma b_t

    The centered variant replaces :math:`v_t` by the variance :math:`v_t - m_t^2`, where
    :math:`m_t = \alpha m_{t-1} + (1 - \alpha) g_t`.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        alpha: decay rate :math:`\alpha` of the running averages, in [0, 1].
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        momentum: momentum factor :math:`\mu \ge 0`.
        centered: use the centered variant.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `square_avg` :math:`v` and, if used, `momentum_buffer` :math:`b` and `grad_avg` :math:`m`, with the
    shape of the parameter.

    Source: Tieleman and Hinton, Lecture 6.5 of Neural Networks for Machine Learning, 2012; centered: Graves, Generating
    Sequences With Recurrent Neural Networks, 2013, https://arxiv.org/abs/1308.0850.
    """

    states = (
        State("step", scalar=True),
        State("square_avg"),
        State("momentum_buffer", when="momentum"),
        State("grad_avg", when="centered"),
    )
    ranges = (unit_interval("alpha"),)
    cases = ({}, {"momentum": 0.9, "centered": True, "alpha": 0.9}, {"weight_decay": 0.05, "maximize": True})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **options: Unpack[DecayOptions],
    ) -> None:
        hyperparameters = dict(
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
        )
        step_options = dict(foreach=foreach, maximize=maximize, differentiable=differentiable, capturable=capturable)
        super().__init__(params, {**hyperparameters, **step_options}, **options)

    @staticmethod
    def rule(p, g, step, square_avg, momentum_buffer, grad_avg, *, lr, alpha, eps, momentum, centered=False):  # type: ignore[no-untyped-def]
        square_avg = alpha * square_avg + (1 - alpha) * g * g
        variance = square_avg
        if centered:
            grad_avg = lerp(grad_avg, g, 1 - alpha)
            variance = square_avg - grad_avg * grad_avg
        g = g / (sqrt(variance) + eps)
        if momentum_buffer is not None:
            g = momentum_buffer = momentum * momentum_buffer + g
        return p - lr * g, step + 1, square_avg, momentum_buffer, grad_avg
