"""LAMB."""

from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, RuleOptions, State
from optplug.ops import lerp, norm, sqrt, where


class Lamb(RuleOptimizer):
    r"""Adam with layer-wise adaptive step sizes, for large batches: the length of an update is the learning rate times
    the norm of the parameter.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \qquad
        u_t = \frac{m_t}{1 - \beta_1^t} \Big/ \Big( \sqrt{v_t} \big/ \sqrt{1 - \beta_2^t} + \epsilon \Big)
        + \lambda \theta_{t-1}

        \theta_t = \theta_{t-1} - \gamma \, \frac{\|\theta_{t-1}\|}{\|u_t\|} \, u_t

    The ratio of the norms, each over all elements of a parameter, is called trust ratio. It is 1 if a norm is 0.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient :math:`\lambda \ge 0` of the weight decay, which is part of the update.
        adaptive: whether to use the trust ratio. A group with `adaptive=False`, customary for biases and the weights of
            normalization layers, steps with a trust ratio of 1.
        decoupled_weight_decay: multiply the parameter by 1 - lr * weight_decay before each step, instead of the
            weight decay in the update.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg` :math:`m` and `exp_avg_sq` :math:`v`, with the shape of the parameter.

    Source: You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, 2020,
    https://arxiv.org/abs/1904.00962, algorithm 2 with :math:`\phi(z) = z`. Some implementations limit the norm of the
    parameter to 10, add :math:`\epsilon` to the norm of the update, or scale gradients to a global norm of 1; this one
    does none of these.
    """

    states = (State("step", scalar=True), State("exp_avg"), State("exp_avg_sq"))
    cases = (
        {"lr": 0.01},
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.05, "maximize": True},
        {"weight_decay": 0.05, "decoupled_weight_decay": True},
        {"lr": 0.01, "adaptive": False},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adaptive: bool = True,
        **options: Unpack[RuleOptions],
    ) -> None:
        hyperparameters = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, adaptive=adaptive)
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, step, exp_avg, exp_avg_sq, *, lr, betas, eps, weight_decay, adaptive=True, decoupled_weight_decay=False
    ):
        beta1, beta2 = betas
        step = step + 1
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        update = (exp_avg / (1 - beta1**step)) / (sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps)
        if decoupled_weight_decay:
            p = (1 - lr * weight_decay) * p
        else:
            update = update + weight_decay * p
        if adaptive:
            p_norm, update_norm = norm(p), norm(update)
            lr = lr * where((p_norm > 0) & (update_norm > 0), p_norm / update_norm, 1.0)
        return p - lr * update, step, exp_avg, exp_avg_sq
