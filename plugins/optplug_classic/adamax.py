"""Adamax."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import abs, lerp, maximum
from optplug.optim.options import OptionsWithoutForeach


class Adamax(RuleOptimizer):
    r"""Adam with the infinity norm instead of the second moment.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon) \qquad
        \theta_t = \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \, \frac{m_t}{u_t}

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the averages, each in [0, 1).
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg` :math:`m` and `exp_inf` :math:`u`, with the shape of the parameter.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, https://arxiv.org/abs/1412.6980, section 7.
    """

    states = (State("step", scalar=True), State("exp_avg"), State("exp_inf"))
    cases = ({}, {"betas": (0.8, 0.95), "eps": 1e-3}, {"weight_decay": 0.05}, {"maximize": True})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        **options: Unpack[OptionsWithoutForeach],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, hyperparameters, foreach=foreach, **options)

    @staticmethod
    def rule(p, g, step, exp_avg, exp_inf, *, lr, betas, eps):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        step = step + 1
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_inf = maximum(beta2 * exp_inf, abs(g) + eps)
        return p - (lr / (1 - beta1**step)) * (exp_avg / exp_inf), step, exp_avg, exp_inf
