"""Muon."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer, State
from optplug.errors import HyperparameterError
from optplug.ops import lerp, matrix, maximum, numel, sqrt, where
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import at_least

ADJUST_LR = (None, "original", "match_rms_adamw")
NS_DTYPES = ("bfloat16", "float32")


@matrix
def orthogonalize(
    x: Tensor, a: float, b: float, c: float, eps: float, steps: float, wide: float, *, flatten: bool
) -> Tensor:
    """Replace the singular values of matrices by values near 1, with a Newton-Schulz iteration of degree 5.

    Args:
        x: the matrices, or stacks of them.
        a: coefficient of X.
        b: coefficient of XX'X.
        c: coefficient of (XX')^2 X.
        eps: lower limit of the norm by which a matrix is divided, so that its singular values are at most 1.
        steps: the number of iterations.
        wide: whether to compute in float32, or in float64 if x is, instead of bfloat16.
        flatten: whether x has one matrix for each parameter, whose columns are all dimensions but the first.
    """
    matrices = x.flatten(2) if flatten else x.flatten(0, -3)
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    matrices = matrices.mT if is_tall else matrices
    matrices = matrices.to(torch.promote_types(x.dtype, torch.float32)) if wide else matrices.bfloat16()
    matrices = matrices / torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(int(steps)):
        gram = matrices @ matrices.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=a)
    return (matrices.mT if is_tall else matrices).reshape(x.shape)


class Muon(RuleOptimizer):
    r"""Steps of matrices along the orthogonalized momentum: all directions of a matrix get steps of about equal length.

    .. math::
        m_t = \mu \, m_{t-1} + (1 - \mu) \, g_t \qquad u_t = \mu \, m_t + (1 - \mu) \, g_t \qquad
        \theta_t = (1 - \gamma \lambda) \, \theta_{t-1} - \gamma \, r \, \text{NS}(u_t)

    :math:`\text{NS}` is a Newton-Schulz iteration, which takes the singular values of a matrix close to 1. The factor
    :math:`r` depends on the shape of the matrix. In a configuration the other parameters of a model, embeddings and the
    output layer are optimized by another optimizer, `fallback`.

    Args:
        params: real tensors with at least two dimensions, with or without names, or dicts that each describe a
            parameter group. Tensors with more than two dimensions are stacks of matrices.
        lr: learning rate :math:`\gamma \ge 0`.
        weight_decay: coefficient :math:`\lambda \ge 0` of the decoupled weight decay.
        momentum: decay rate :math:`\mu` of the running average, at least 0.
        nesterov: whether to step along :math:`u`; if False, along :math:`m`.
        ns_coefficients: the coefficients :math:`(a, b, c)` of the iteration
            :math:`X \leftarrow a X + b \, X X^T X + c \, (X X^T)^2 X`.
        eps: lower limit :math:`\epsilon \ge 0` of the norm by which a matrix is divided before the iteration.
        ns_steps: the number of iterations, a whole number below 100.
        adjust_lr_fn: the factor :math:`r` of a matrix with A rows and B columns: `"original"` for
            :math:`\sqrt{\max(1, A / B)}`, the default; `"match_rms_adamw"` for :math:`0.2 \sqrt{\max(A, B)}`, with
            which learning rates and weight decays of AdamW can be used.
        ns_dtype: the dtype of the iteration: `"bfloat16"`; or `"float32"`, for more exact singular values. Parameters
            in float64 are then orthogonalized in float64.
        flatten: whether a tensor with more than two dimensions is one matrix, whose columns are all dimensions but the
            first, as is usual for convolutions.
        foreach, maximize, capturable, differentiable, fused, engine, state_dtype: as in `RuleOptimizer`.
        cautious, clip_value, clip_norm, agc: as in `RuleOptimizer`.

    Raises:
        HyperparameterError: a value is out of range.
        ParameterError: a parameter is complex or has less than two dimensions.
        SparseGradientError: in `step`, for a sparse gradient.

    State: `momentum_buffer` :math:`m`, with the shape of the parameter.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024,
    https://kellerjordan.github.io/posts/muon/; `match_rms_adamw`: Liu et al., Muon is Scalable for LLM Training, 2025,
    https://arxiv.org/abs/2502.16982.
    """

    states = (State("momentum_buffer"),)
    ranges = (
        at_least(0, "lr", message="Learning rate should be >= 0 but is"),
        at_least(0, "momentum", message="momentum should be >= 0 but is"),
        at_least(0, "weight_decay", message="weight decay should be >= 0 but is"),
        at_least(0, "ns_steps", whole=True),
    )
    capabilities = frozenset({"matrix_only"})
    cases = (
        {"lr": 0.02, "ns_dtype": "float32"},
        {"nesterov": False, "ns_dtype": "float32", "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw", "maximize": True},
        {"flatten": True, "ns_dtype": "float32", "momentum": 0.8, "weight_decay": 0.0},
    )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        ns_dtype: Literal["bfloat16", "float32"] = "bfloat16",
        flatten: bool = False,
        **options: Unpack[OptionsWithoutDecay],
    ) -> None:
        hyperparameters: dict[str, Any] = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)
        hyperparameters |= dict(ns_coefficients=ns_coefficients, eps=eps, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn)
        super().__init__(params, {**hyperparameters, "ns_dtype": ns_dtype, "flatten": flatten}, **options)

    def check_options(self, options: dict[str, Any]) -> None:
        for key, allowed in (("adjust_lr_fn", ADJUST_LR), ("ns_dtype", NS_DTYPES)):
            if options[key] not in allowed:
                message = f"{key} {options[key]!r} is not supported; allowed: {', '.join(map(repr, allowed))}"
                raise HyperparameterError(message, argument=key)
        if options["ns_steps"] >= 100:
            raise HyperparameterError(f"ns_steps must be less than 100, got {options['ns_steps']}", argument="ns_steps")

    def resolve_hyperparameters(self, group: Mapping[str, Any], dtype: torch.dtype) -> Mapping[str, Any]:
        matches_adamw, is_wide = group["adjust_lr_fn"] == "match_rms_adamw", group["ns_dtype"] == "float32"
        return {**group, "matches_adamw": float(matches_adamw), "ns_wide": float(is_wide)}

    @staticmethod
    def rule(  # type: ignore[no-untyped-def]
        p, g, momentum_buffer, *, lr, weight_decay, momentum, ns_coefficients, eps, ns_steps, matches_adamw, ns_wide,
        nesterov=True, flatten=False,
    ):  # fmt: skip
        momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
        update = lerp(g, momentum_buffer, momentum) if nesterov else momentum_buffer
        update = orthogonalize(update, *ns_coefficients, eps, ns_steps, ns_wide, flatten=flatten)
        rows = numel(p, dim=0 if flatten else -2)
        columns = numel(p) / rows if flatten else numel(p, dim=-1)
        ratio = where(matches_adamw, 0.2 * sqrt(maximum(rows, columns)), sqrt(maximum(1, rows / columns)))
        return p * (1 - lr * weight_decay) - lr * ratio * update, momentum_buffer
