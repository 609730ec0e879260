"""Averaged stochastic gradient descent."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, maximum
from optplug.optim.options import DecayOptions
from optplug.optim.ranges import at_least


class ASGD(RuleOptimizer):
    r"""Stochastic gradient descent with a decaying step size. The average of the iterates is kept in the state `ax`.

    .. math::
        \theta_t = (1 - \lambda \eta_{t-1}) \, \theta_{t-1} - \eta_{t-1} g_t \qquad
        \bar\theta_t = \bar\theta_{t-1} + \mu_{t-1} (\theta_t - \bar\theta_{t-1})

        \eta_t = \gamma / (1 + \lambda \gamma t)^\alpha, \quad \eta_0 = \gamma \qquad
        \mu_t = 1 / \max(1, t - t_0), \quad \mu_0 = 1

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`. A change takes effect one step later, through :math:`\eta`.
        lambd: decay term :math:`\lambda \ge 0`.
        alpha: exponent :math:`\alpha \ge 0` of the step size decay.
        t0: step :math:`t_0 \ge 0` after which averaging starts. Until then the average equals the parameter.
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: the scalars `step`, `eta` and `mu`; `ax` :math:`\bar\theta`, with the shape of the parameter.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992.
    """

    states = (
        State("step", scalar=True),
        State("eta", scalar=True, init="lr"),
        State("mu", scalar=True, init=1.0),
        State("ax"),
    )
    ranges = (at_least(0, "lambd"), at_least(0, "alpha"), at_least(0, "t0"))
    cases = ({}, {"lambd": 0.05, "alpha": 0.5, "t0": 4.0, "lr": 0.05}, {"weight_decay": 0.05}, {"maximize": True})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        **options: Unpack[DecayOptions],
    ) -> None:
        hyperparameters = dict(lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay)
        step_options = dict(foreach=foreach, maximize=maximize, differentiable=differentiable, capturable=capturable)
        super().__init__(params, {**hyperparameters, **step_options}, **options)

    @staticmethod
    def rule(p, g, step, eta, mu, ax, *, lr, lambd, alpha, t0):  # type: ignore[no-untyped-def]
        step = step + 1
        p = (1 - lambd * eta) * p - eta * g
        ax = lerp(ax, p, mu)
        eta = lr / (1 + lambd * lr * step) ** alpha
        mu = 1 / maximum(1, step - t0)
        return p, step, eta, mu, ax
