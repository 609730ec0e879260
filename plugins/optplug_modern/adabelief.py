"""AdaBelief."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, sqrt
from optplug.optim.options import OptionsWithoutDecay


class AdaBelief(RuleOptimizer):
    r"""Adam whose step is large where the gradient is close to its running average, and small where it is not.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon \qquad
        \theta_t = \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \, m_t \Big/
        \Big( \sqrt{s_t} \big/ \sqrt{1 - \beta_2^t} + \epsilon \Big)

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        eps: :math:`\epsilon \ge 0`, added to the average of squares and to its root.
        weight_decay: coefficient of the weight decay, at least 0.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step. If False, the weight decay
            is an L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg` :math:`m` and `exp_avg_var` :math:`s`, with the shape of the parameter.

    Source: Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, 2020,
    https://arxiv.org/abs/2010.07468. As in the authors' package, :math:`\epsilon` is part of the state. That package
    rectifies steps by default, as RAdam does; the paper and this class do not.
    """

    states = (State("step", scalar=True), State("exp_avg"), State("exp_avg_var"))
    cases = (
        {},
        {"weight_decay": 0.05, "eps": 1e-8},
        {"weight_decay": 0.05, "decoupled_weight_decay": False},
        {"maximize": True, "betas": (0.8, 0.95), "eps": 1e-6},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, hyperparameters, decoupled_weight_decay=decoupled_weight_decay, **options)

    @staticmethod
    def rule(p, g, step, exp_avg, exp_avg_var, *, lr, betas, eps):  # type: ignore[no-untyped-def]
        beta1, beta2 = betas
        step = step + 1
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        deviation = g - exp_avg
        exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * deviation * deviation + eps
        denominator = sqrt(exp_avg_var) / sqrt(1 - beta2**step) + eps
        p = p - (lr / (1 - beta1**step)) * (exp_avg / denominator)
        return p, step, exp_avg, exp_avg_var
