"""Adan."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, minimum, sqrt
from optplug.optim.options import OptionsWithoutDecay


class Adan(RuleOptimizer):
    r"""Adaptive Nesterov momentum: the moments are those of the gradient and of its change.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad
        d_t = \beta_2 d_{t-1} + (1 - \beta_2) (g_t - g_{t-1}) \qquad
        n_t = \beta_3 n_{t-1} + (1 - \beta_3) \big( g_t + \beta_2 (g_t - g_{t-1}) \big)^2

        \theta_t = \frac{1}{1 + \gamma \lambda} \left( \theta_{t-1} - \gamma \Big( \frac{m_t}{1 - \beta_1^t} +
        \frac{\beta_2 d_t}{1 - \beta_2^t} \Big) \Big/ \Big( \sqrt{n_t / (1 - \beta_3^t)} + \epsilon \Big) \right)

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2, \beta_3)` of the running averages, each in [0, 1).
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient :math:`\lambda \ge 0` of the decoupled weight decay.
        no_prox: multiply the parameter by 1 - lr * weight_decay before the update, as AdamW does, instead of dividing
            it by 1 + lr * weight_decay after the update.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg` :math:`m`, `exp_avg_diff` :math:`d`, `exp_avg_sq` :math:`n` and `neg_pre_grad`
    :math:`-g_{t-1}`, with the shape of the parameter.

    Source: Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, 2022,
    https://arxiv.org/abs/2208.06677. The option `max_grad_norm` of the authors' class is left out.
    """

    states = (
        State("step", scalar=True),
        State("exp_avg"),
        State("exp_avg_diff"),
        State("exp_avg_sq"),
        State("neg_pre_grad"),
    )
    cases = (
        {},
        {"weight_decay": 0.05},
        {"weight_decay": 0.05, "no_prox": True},
        {"maximize": True, "betas": (0.9, 0.8, 0.95), "eps": 1e-3},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, no_prox=no_prox)
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, step, exp_avg, exp_avg_diff, exp_avg_sq, neg_pre_grad, *, lr, betas, eps, weight_decay, no_prox=False
    ):
        beta1, beta2, beta3 = betas
        change = minimum(step, 1) * (g + neg_pre_grad)  # 0 in the first step
        step = step + 1
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_avg_diff = lerp(exp_avg_diff, change, 1 - beta2)
        nesterov = g + beta2 * change
        exp_avg_sq = beta3 * exp_avg_sq + (1 - beta3) * nesterov * nesterov
        denominator = sqrt(exp_avg_sq) / sqrt(1 - beta3**step) + eps
        if no_prox:
            p = p * (1 - lr * weight_decay)
        p = p - (lr / (1 - beta1**step)) * (exp_avg / denominator)
        p = p - (lr * beta2 / (1 - beta2**step)) * (exp_avg_diff / denominator)
        if not no_prox:
            p = p / (1 + lr * weight_decay)
        return p, step, exp_avg, exp_avg_diff, exp_avg_sq, -g
