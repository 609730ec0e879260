"""NAdam: Adam with Nesterov momentum."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, sqrt
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import at_least


class NAdam(RuleOptimizer):
    r"""Adam with Nesterov momentum, whose coefficient rises in the course of the training.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \qquad
        \mu_t = \beta_1 \, (1 - 0.96^{t \psi} / 2)

        \theta_t = \theta_{t-1} - \gamma \left( \frac{1 - \mu_t}{1 - \prod_{i \le t} \mu_i} \, g_t +
        \frac{\mu_{t+1}}{1 - \prod_{i \le t+1} \mu_i} \, m_t \right) \Big/
        \Big( \sqrt{v_t / (1 - \beta_2^t)} + \epsilon \Big)

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient of the L2 penalty, at least 0.
        momentum_decay: :math:`\psi \ge 0`; the larger, the faster the momentum :math:`\mu` rises to :math:`\beta_1`.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: the scalars `step` and `mu_product`, the product of all :math:`\mu`; `exp_avg` and `exp_avg_sq`, with the
    shape of the parameter.

    Source: Dozat, Incorporating Nesterov Momentum into Adam, 2016.
    """

    states = (
        State("step", scalar=True),
        State("mu_product", scalar=True, init=1.0),
        State("exp_avg"),
        State("exp_avg_sq"),
    )
    ranges = (at_least(0, "momentum_decay"),)
    cases = ({}, {"weight_decay": 0.05, "momentum_decay": 0.1}, {"maximize": True, "betas": (0.8, 0.95), "eps": 1e-3})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay)
        super().__init__(params, hyperparameters, decoupled_weight_decay=decoupled_weight_decay, **options)

    @staticmethod
    def rule(p, g, step, mu_product, exp_avg, exp_avg_sq, *, lr, betas, eps, momentum_decay):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        step = step + 1
        mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
        next_mu = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
        mu_product = mu_product * mu
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        denominator = sqrt(exp_avg_sq / (1 - beta2**step)) + eps
        p = p - (lr * (1 - mu) / (1 - mu_product)) * (g / denominator)
        p = p - (lr * next_mu / (1 - mu_product * next_mu)) * (exp_avg / denominator)
        return p, step, mu_product, exp_avg, exp_avg_sq
