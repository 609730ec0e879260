"""Prodigy."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import abs, dot, maximum, minimum, sqrt, sum, where
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import Range, above_zero, optional, unit_interval


class Prodigy(RuleOptimizer):
    r"""Adam that estimates its step size :math:`d`, from the distance between the parameters and their initial values.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) d_t^2 g_t^2 \qquad
        s_t = \beta_3 s_{t-1} + \tfrac{\gamma d_t^2}{d_0} g_t

        r_t = \beta_3 r_{t-1} + \tfrac{\gamma d_t^2}{d_0} \langle g_t, \theta_0 - \theta_t \rangle \qquad
        \hat d_t = c \, r_t / \|s_t\|_1 \qquad
        d_{t+1} = \min \big( G d_t, \max(d_0, \hat d_1, \ldots, \hat d_t) \big)

        \theta_{t+1} = \theta_t - \gamma d_t \, \big( m_t / (\sqrt{v_t} + d_{t+1} \epsilon) + \lambda \theta_t \big)

    The inner product and the norm are over all parameters of the optimizer that have a gradient and a learning rate
    above 0; :math:`s` of the others does not change. While the norm is 0, neither the estimate nor a parameter changes.
    The increase of :math:`d` from :math:`d_0` is not limited by :math:`G`.

    Args:
        params: tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`, a factor of :math:`d`. Schedules multiply it.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        beta3: decay rate :math:`\beta_3` of the estimate, from 0 to 1. Default: the square root of :math:`\beta_2`.
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient :math:`\lambda \ge 0` of the weight decay.
        decoupled_weight_decay: whether the weight decay is decoupled, as in the formula. If False, weight_decay * p is
            added to the gradient.
        use_bias_correction: multiply :math:`\gamma` by :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`.
        safeguard_warmup: leave :math:`\gamma` out of :math:`s`. The estimate then stays smaller during a warmup.
        d0: initial estimate :math:`d_0 > 0`.
        d_coef: factor :math:`c > 0` of the estimate.
        growth_rate: the largest ratio :math:`G \ge 1` of two successive estimates; may be infinite.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `p0` :math:`\theta_0`, `exp_avg` :math:`m`, `exp_avg_sq` :math:`v` and `s`, with the shape of the parameter.
    Each parameter group contains, with the same value, `d`, `d_max` (the largest :math:`\hat d`), `d_numerator`
    :math:`r` and `k` (the number of steps). They are computed with the options of the first group.

    Source: Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, 2023,
    https://arxiv.org/abs/2306.06101, the version for Adam, and the authors' package prodigyopt. The package requires
    equal learning rates in all groups, except for learning rates of 0. With a learning rate of 0 it does not change
    :math:`m` and :math:`v`; here they advance. It does not multiply :math:`\epsilon` by :math:`d_t`, as the paper does,
    but by :math:`d_{t+1}`; with :math:`\beta_1 = 0` it multiplies the gradient in :math:`m` by :math:`d_{t+1}` too. Its
    option `slice_p` is left out.
    """

    states = (
        State("p0", init="p"),
        State("exp_avg"),
        State("exp_avg_sq"),
        State("s"),
        State("d", scalar=True, shared=True, init="d0"),
        State("d_max", scalar=True, shared=True, init="d0"),
        State("d_numerator", scalar=True, shared=True),
        State("k", scalar=True, shared=True),
    )
    ranges = (
        optional(unit_interval("beta3")),
        above_zero("d0"),
        above_zero("d_coef"),
        Range("growth_rate", "at least 1", lambda x: x >= 1, bounds={"minimum": 1}, finite=False),
    )
    cases = (
        {"d0": 0.1},
        {"d0": 0.1, "lr": 0.5, "betas": (0.8, 0.95), "beta3": 0.9, "eps": 1e-3, "use_bias_correction": True},
        {"d0": 0.1, "weight_decay": 0.05, "safeguard_warmup": True, "d_coef": 0.5, "growth_rate": 1.1},
        {"d0": 0.1, "weight_decay": 0.05, "decoupled_weight_decay": False, "maximize": True},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(
            lr=lr,
            betas=betas,
            beta3=beta3,
            eps=eps,
            weight_decay=weight_decay,
            use_bias_correction=use_bias_correction,
            safeguard_warmup=safeguard_warmup,
            d0=d0,
            d_coef=d_coef,
            growth_rate=growth_rate,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        super().__init__(params, hyperparameters, **options)

    def resolve_hyperparameters(self, group: Mapping[str, Any], dtype: torch.dtype) -> Mapping[str, Any]:
        return group if group["beta3"] is not None else {**group, "beta3": group["betas"][1] ** 0.5}

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, p0, exp_avg, exp_avg_sq, s, d, d_max, d_numerator, k, *, lr, betas, beta3, eps, weight_decay, d0, d_coef,
        growth_rate, decoupled_weight_decay=True, use_bias_correction=False, safeguard_warmup=False,
    ):  # fmt: skip
        beta1, beta2 = betas
        if not decoupled_weight_decay:
            g, weight_decay = g + weight_decay * p, 0.0
        if use_bias_correction:
            lr = lr * sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1))
        exp_avg = beta1 * exp_avg + ((1 - beta1) * d) * g
        exp_avg_sq = beta2 * exp_avg_sq + ((1 - beta2) * d * d) * g * g
        s = where(lr > 0, beta3 * s + (d / d0 * d * (1.0 if safeguard_warmup else lr)) * g, s)
        d_denominator = sum(where(lr > 0, abs(s), 0.0), over="optimizer")
        idle = d_denominator == 0
        inner_product = dot((d / d0 * d * lr) * g, p0 - p, over="optimizer")
        d_numerator = where(idle, d_numerator, beta3 * d_numerator + inner_product)
        d_hat = where(idle, 0.0, d_coef * d_numerator / d_denominator)
        d_max, step_size = maximum(d_max, d_hat), where(idle, 0.0, d * lr)
        d = where(idle, d, minimum(d_max, where(d == d0, maximum(d, d_hat), d) * growth_rate))
        p = p - step_size * (exp_avg / (sqrt(exp_avg_sq) + d * eps) + weight_decay * p)
        return p, p0, exp_avg, exp_avg_sq, s, d, d_max, d_numerator, k + where(idle, 0.0, 1.0)
