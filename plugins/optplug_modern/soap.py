"""SOAP."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.ops import lerp, maximum, sqrt, where
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import Range, at_least, optional
from optplug_modern.soap_bases import left_shape, new_basis, reorder, right_shape, rotate, rotate_back, update_factor


class SOAP(RuleOptimizer):
    r"""Adam in the eigenbases of Shampoo's preconditioner, for matrices; Adam for other parameters.

    .. math::
        L_t = \beta_s L_{t-1} + (1 - \beta_s) \, g_t g_t^T \qquad R_t = \beta_s R_{t-1} + (1 - \beta_s) \, g_t^T g_t

        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) \, (Q_L^T g_t Q_R)^2

        \theta_t = (1 - \gamma \lambda) \, \Big( \theta_{t-1} - \gamma \, \frac{\sqrt{1 - \beta_2^s}}{1 - \beta_1^s} \,
        Q_L \frac{Q_L^T m_t Q_R}{\sqrt{v_t} + \epsilon} Q_R^T \Big) \qquad s = t - 1

    :math:`Q_L` and :math:`Q_R` are the eigenvectors of :math:`L` and :math:`R`. The first step computes them and
    changes no parameter. Then one step of power iteration and a QR decomposition update them every
    `precondition_frequency` steps.

    Args:
        params: real tensors of any shape, with or without names, or dicts that each describe a parameter group.
        lr: learning rate :math:`\gamma \ge 0`.
        betas: decay rates :math:`(\beta_1, \beta_2)` of the running averages, each in [0, 1).
        shampoo_beta: decay rate :math:`\beta_s` of the factors, in [0, 1). Default: None, for :math:`\beta_2`.
        eps: :math:`\epsilon \ge 0`, in units of the gradient.
        weight_decay: coefficient :math:`\lambda \ge 0` of the decoupled weight decay.
        precondition_frequency: the number of steps from one update of the eigenvectors to the next, at least 1.
        max_precondition_dim: the largest number of rows or columns whose factor is computed. For a larger one,
            :math:`Q` is the identity.
        flatten: whether a tensor with more than two dimensions is one matrix, whose columns are all dimensions but the
            first. If False, it is a stack of matrices.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        ParameterError: a parameter is complex.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `step`; `exp_avg` :math:`m` and `exp_avg_sq` :math:`v`, with the shape of the parameter; for matrices the
    factors `left` :math:`L` and `right` :math:`R`, and their eigenvectors `left_basis` and `right_basis`.

    Source: Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, 2024, https://arxiv.org/abs/2409.11321.
    """

    states = (
        State("step", scalar=True),
        State("exp_avg"),
        State("exp_avg_sq"),
        State("left", shape=left_shape, matrices=True),
        State("right", shape=right_shape, matrices=True),
        State("left_basis", shape=left_shape, matrices=True),
        State("right_basis", shape=right_shape, matrices=True),
    )
    ranges = (
        optional(
            Range("shampoo_beta", "at least 0 and below 1", lambda x: 0 <= x < 1, bounds={"minimum": 0, "maximum": 1})
        ),
        at_least(1, "precondition_frequency", whole=True),
        at_least(0, "max_precondition_dim", whole=True),
    )
    capabilities = frozenset()
    # The eigenvectors of the larger side, 5 rows of the rank 3, would depend on rounding.
    cases = (
        {"max_precondition_dim": 4},
        {"max_precondition_dim": 4, "betas": (0.8, 0.9), "shampoo_beta": 0.7, "maximize": True},
        {"max_precondition_dim": 4, "precondition_frequency": 1, "weight_decay": 0.1, "flatten": False},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10_000,
        flatten: bool = True,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters: dict[str, Any] = dict(lr=lr, betas=betas, shampoo_beta=shampoo_beta, eps=eps)
        hyperparameters |= dict(weight_decay=weight_decay, precondition_frequency=precondition_frequency)
        hyperparameters |= dict(max_precondition_dim=max_precondition_dim, flatten=flatten)
        super().__init__(params, hyperparameters, **options)

    def resolve_hyperparameters(self, group: Mapping[str, Any], dtype: torch.dtype) -> Mapping[str, Any]:
        beta = group["shampoo_beta"]
        return {**group, "shampoo_beta": group["betas"][1] if beta is None else beta}

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, step, exp_avg, exp_avg_sq, left, right, left_basis, right_basis, *,
        lr, betas, shampoo_beta, eps, weight_decay, precondition_frequency, flatten=True,
    ):  # fmt: skip
        beta1, beta2 = betas
        is_first, updates = step == 0, maximum(step, 1)
        new_avg = lerp(exp_avg, g, 1 - beta1)
        projected, projected_avg = (
            x if left is None else rotate(x, left_basis, right_basis, flatten=flatten) for x in (g, new_avg)
        )
        new_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * projected * projected
        update = projected_avg / (sqrt(new_avg_sq) + eps)
        update = update if left is None else rotate_back(update, left_basis, right_basis, flatten=flatten)
        step_size = lr * sqrt(1 - beta2**updates) / (1 - beta1**updates)
        p = where(is_first, p, (p - step_size * update) * (1 - lr * weight_decay))
        exp_avg, exp_avg_sq = where(is_first, exp_avg, new_avg), where(is_first, exp_avg_sq, new_avg_sq)
        if left is not None:
            left = update_factor(left, g, 1 - shampoo_beta, flatten=flatten, side="left")
            right = update_factor(right, g, 1 - shampoo_beta, flatten=flatten, side="right")
            exp_avg_sq = reorder(
                exp_avg_sq, left, left_basis, right, right_basis, step, precondition_frequency, flatten=flatten
            )
            left_basis = new_basis(left_basis, left, step, precondition_frequency)
            right_basis = new_basis(right_basis, right, step, precondition_frequency)
        return p, step + 1, exp_avg, exp_avg_sq, left, right, left_basis, right_basis
