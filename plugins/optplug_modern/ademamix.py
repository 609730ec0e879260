"""AdEMAMix: Adam with a fast and a slow average of the gradient."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.errors import HyperparameterError
from optplug.ops import exp, lerp, log, maximum, minimum, sqrt
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import at_least


class AdEMAMix(RuleOptimizer):
    r"""Adam whose direction also contains a slow average of the gradient, which remembers tens of thousands of steps.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad s_t = \beta_3(t) s_{t-1} + (1 - \beta_3(t)) g_t \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

        \theta_t = \theta_{t-1} - \gamma \left( \frac{m_t}{1 - \beta_1^t} + \alpha(t) s_t \right) \Big/
        \left( \sqrt{v_t / (1 - \beta_2^t)} + \epsilon \right)

    In the first :math:`T` steps, with :math:`\tau = \min(t / T, 1)`, the weight of the slow average increases from 0,
    and its decay rate from :math:`\beta_1`:

    .. math::
        \alpha(t) = \tau \alpha \qquad
        \ln \beta_3(t) = 1 \Big/ \left( \frac{1 - \tau}{\ln \beta_1} + \frac{\tau}{\ln \beta_3} \right)

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2, \beta_3)` of the averages, each in [0, 1), the last one above 0.
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient of the weight decay, at least 0.
        alpha: weight :math:`\alpha \ge 0` of the slow average.
        t_alpha_beta3: number :math:`T \ge 0` of steps of the warmup; 0 for none.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay in each step. If False, the weight decay
            is an L2 penalty.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg` :math:`m`, `exp_avg_sq` :math:`v` and `exp_avg_slow` :math:`s`, with the shape of the
    parameter.

    Source: Pagliardini, Ablin, Grangier, The AdEMAMix Optimizer: Better, Faster, Older, 2024,
    https://arxiv.org/abs/2409.03137. The paper has a length for each of the two warmups, and uses equal ones.
    """

    states = (State("step", scalar=True), State("exp_avg"), State("exp_avg_sq"), State("exp_avg_slow"))
    ranges = (at_least(0, "alpha"), at_least(0, "t_alpha_beta3"))
    cases = (
        {},
        {"weight_decay": 0.05, "alpha": 2.0},
        {"weight_decay": 0.05, "decoupled_weight_decay": False, "eps": 1e-3},
        {"maximize": True, "betas": (0.8, 0.95, 0.99), "t_alpha_beta3": 7.0},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        alpha: float = 5.0,
        t_alpha_beta3: float = 0.0,
        decoupled_weight_decay: bool = True,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, alpha=alpha, t_alpha_beta3=t_alpha_beta3
        )
        super().__init__(params, hyperparameters, decoupled_weight_decay=decoupled_weight_decay, **options)

    def check_options(self, options: dict[str, Any]) -> None:
        if options["betas"][2] == 0:
            message = f"Invalid beta parameter at index 2: {options['betas'][2]} (AdEMAMix: it must be above 0)"
            raise HyperparameterError(message, argument="betas", inside=(2,))

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, step, exp_avg, exp_avg_sq, exp_avg_slow, *, lr, betas, eps, alpha, t_alpha_beta3
    ):
        beta1, beta2, beta3 = betas
        step = step + 1
        warmup = minimum(step / maximum(t_alpha_beta3, 1), 1)
        beta3 = exp(1 / ((1 - warmup) / log(beta1) + warmup / log(beta3)))
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        exp_avg_slow = lerp(exp_avg_slow, g, 1 - beta3)
        denominator = sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps
        direction = exp_avg / (1 - beta1**step) + (alpha * warmup) * exp_avg_slow
        return p - lr * direction / denominator, step, exp_avg, exp_avg_sq, exp_avg_slow
