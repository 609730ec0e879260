"""Adafactor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, maximum, mean, minimum, norm, numel, sqrt
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import at_least, at_most


class Adafactor(RuleOptimizer):
    r"""Adaptive steps whose second moments of a matrix are the product of a column and a row, which saves memory.

    .. math::
        \beta_t = 1 - t^\tau \qquad \alpha_t = \max(\epsilon_2, \text{RMS}(\theta_{t-1})) \, \min(\gamma, 1 / \sqrt t)

        R_t = \beta_t R_{t-1} + (1 - \beta_t) \, \text{mean}_\text{rows}(g_t^2) \qquad
        C_t = \beta_t C_{t-1} + (1 - \beta_t) \, \text{mean}_\text{columns}(g_t^2) \qquad
        V_t = R_t C_t / \max(\text{mean}(R_t), \epsilon_1)

        U_t = g_t \big/ \max(\sqrt{V_t}, \epsilon_1) \qquad
        \theta_t = (1 - \gamma \lambda) \, \theta_{t-1} - \alpha_t \, U_t / \max(1, \text{RMS}(U_t) / d)

    For parameters with less than two dimensions, :math:`V_t` is the running average of :math:`g_t^2`. Those with more
    than two are stacks of matrices.

    Args:
        params: real tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: upper limit :math:`\gamma \ge 0` of the relative step size, and the factor of the weight decay.
        beta2_decay: exponent :math:`\tau \le 0`.
        eps: lower limits :math:`(\epsilon_1, \epsilon_2)` of the root mean squares of gradient and parameter, at least
            0. If the first is None, it is the machine epsilon of the parameter's dtype.
        d: the largest root mean square :math:`d \ge 1` of an update.
        weight_decay: coefficient :math:`\lambda \ge 0` of the decoupled weight decay.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        ParameterError: a parameter is complex.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; for matrices `row_var` :math:`R` and `col_var` :math:`C`, with size 1 in the last and in the
    second-to-last dimension; for other parameters `variance` :math:`V`.

    Source: Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018,
    https://arxiv.org/abs/1804.04235. As in torch, :math:`\epsilon_1` limits :math:`V` and is not added to the squared
    gradients, and the limit of the relative step size, 0.01 in the paper, is the learning rate. If a group has several
    dtypes, torch takes the machine epsilon of one of them for all of its parameters.
    """

    states = (
        State("step", scalar=True),
        State("row_var", dim=-1),
        State("col_var", dim=-2),
        State("variance", matrices=False),
    )
    ranges = (
        at_least(0, "lr", message="Learning rate should be >= 0 but is"),
        at_most(0, "beta2_decay", message="beta2_decay should be <= 0 but is"),
        at_least(0, "eps", message="epsilon{} should be >= 0 but is"),
        at_least(1, "d", message="Clipping threshold d should be >= 1 but is"),
        at_least(0, "weight_decay", message="weight_decay should be >= 0 but is"),
    )
    capabilities = frozenset()
    cases = ({}, {"weight_decay": 0.05, "eps": (1e-8, 0.1)}, {"maximize": True, "beta2_decay": -0.5, "d": 1.5})

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters = dict(lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay)
        super().__init__(params, hyperparameters, **options)

    def resolve_hyperparameters(self, group: Mapping[str, Any], dtype: torch.dtype) -> Mapping[str, Any]:
        eps1, eps2 = group["eps"]
        return {**group, "eps": (torch.finfo(dtype).eps if eps1 is None else eps1, eps2)}

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, step, row_var, col_var, variance, *, lr, beta2_decay, eps, d, weight_decay
    ):
        eps1, eps2 = eps
        step = step + 1
        new_weight = step**beta2_decay  # 1 - beta_t
        step_size = maximum(eps2, norm(p) / sqrt(numel(p))) * minimum(lr, 1 / sqrt(step))
        if variance is None:
            row_var = lerp(row_var, mean(g * g, dim=-1), new_weight)
            col_var = lerp(col_var, mean(g * g, dim=-2), new_weight)
            v = row_var * col_var / maximum(mean(row_var, dim=-2), eps1)
        else:
            v = variance = lerp(variance, g * g, new_weight)
        update = g / sqrt(maximum(v, eps1 * eps1))
        clipping = maximum(1, norm(update) / (sqrt(numel(p)) * d))
        p = p * (1 - lr * weight_decay) - (step_size / clipping) * update
        return p, step, row_var, col_var, variance
