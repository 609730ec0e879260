"""ADOPT."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, RuleOptions, State
from optplug.ops import lerp, maximum, minimum, sqrt
from optplug.optim.ranges import above_zero


class ADOPT(RuleOptimizer):
    r"""Adam that converges with any :math:`\beta_2`: the current gradient is not part of its own scale.

    .. math::
        u_t = \operatorname{clip} \big( g_t / \max(\sqrt{v_{t-1}}, \epsilon), \pm (t - 1)^{1/4} \big) \qquad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) u_t

        \theta_t = \theta_{t-1} - \gamma m_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

    The first step sets :math:`v_1 = g_1^2` and does not move the parameter.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        eps: :math:`\epsilon > 0`, the smallest scale, in units of the gradient.
        weight_decay: coefficient of the L2 penalty, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step, instead of the L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg` :math:`m` and `exp_avg_sq` :math:`v`, with the shape of the parameter.

    Source: Taniguchi et al., ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate, 2024,
    https://arxiv.org/abs/2411.02853. Differences from the authors' class: decoupled weight decay also applies in the
    first step, and the bound of the clipping cannot be changed. pytorch_optimizer uses the bound :math:`t^{1/4}`.
    """

    states = (State("step", scalar=True), State("exp_avg"), State("exp_avg_sq"))
    ranges = (above_zero("eps", "epsilon value"),)
    cases = ({}, {"weight_decay": 0.05}, {"maximize": True, "betas": (0.8, 0.95), "eps": 1e-3})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **options: Unpack[RuleOptions],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), **options)

    @staticmethod
    def rule(p, g, step, exp_avg, exp_avg_sq, *, lr, betas, eps):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        not_first = minimum(step, 1)
        limit = step**0.25  # 0 in the first step, so that it does not move
        update = maximum(minimum(g / maximum(sqrt(exp_avg_sq), eps), limit), -limit)
        exp_avg = lerp(exp_avg, update, 1 - beta1)
        exp_avg_sq = (beta2 * not_first) * exp_avg_sq + (1 - beta2 * not_first) * g * g
        return p - lr * exp_avg, step + 1, exp_avg, exp_avg_sq
