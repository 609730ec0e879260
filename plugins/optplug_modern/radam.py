"""RAdam: Adam with a rectified adaptive learning rate."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, maximum, sqrt, where
from optplug.optim.options import OptionsWithoutDecay


class RAdam(RuleOptimizer):
    r"""Adam that reduces the variance of its adaptive learning rate in early steps, as a warmup does.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

        \rho_\infty = \frac{2}{1 - \beta_2} - 1 \qquad \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t} \qquad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}

        \theta_t = \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \, m_t \cdot
        \left( r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon) \text{ if } \rho_t > 5 \text{, else } 1 \right)

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg` and `exp_avg_sq`, with the shape of the parameter.

    Source: Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020, https://arxiv.org/abs/1908.03265.
    """

    states = (State("step", scalar=True), State("exp_avg"), State("exp_avg_sq"))
    cases = ({}, {"weight_decay": 0.05, "betas": (0.9, 0.9)}, {"maximize": True, "betas": (0.8, 0.95), "eps": 1e-3})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, hyperparameters, decoupled_weight_decay=decoupled_weight_decay, **options)

    @staticmethod
    def rule(p, g, step, exp_avg, exp_avg_sq, *, lr, betas, eps):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        step = step + 1
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        rho_max = maximum(2 / (1 - beta2) - 1, 5)  # with smaller values, rho does not exceed 5 either
        rho = rho_max - 2 * step * beta2**step / (1 - beta2**step)
        r = maximum(rho, 5)  # the rectification is not used below, and must have no NaN
        rectification = sqrt((r - 4) * (r - 2) * rho_max / ((rho_max - 4) * (rho_max - 2) * r))
        adaptive = rectification * sqrt(1 - beta2**step) / (sqrt(exp_avg_sq) + eps)
        p = p - (lr / (1 - beta1**step)) * exp_avg * where(rho > 5, adaptive, 1)
        return p, step, exp_avg, exp_avg_sq
