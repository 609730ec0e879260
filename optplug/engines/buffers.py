"""The tensors that a rule computes on: real, of one dtype, and views of the optimizer's tensors where possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

PLAIN_TYPES = (Tensor, Parameter)
"""The tensor types that kernels may access through raw memory. Other subclasses may redefine their operations."""

KERNEL_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""The dtypes that fused kernels support; for complex tensors, the dtype of the real part."""

TensorsByRole = dict[str, list[Tensor]]
"""Parameters (`"p"`), gradients (`"g"`) and element-wise states by name, as lists of equal length."""

AddressReader = Callable[[list[Tensor]], Any]
"""Maps dense tensors of plain types to an array of the addresses of their first elements, int64."""


def indices_sharing_memory(params: Sequence[Tensor]) -> frozenset[int]:
    """Return the indices of parameters that overlap in memory with another parameter or with themselves."""
    spans = []
    for i, p in enumerate(params):
        start = p.data_ptr() if type(p) in PLAIN_TYPES and p.layout is torch.strided else 0
        if start and p.numel():  # a tensor that is empty or has no storage cannot overlap
            extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
            overlaps_itself = extent < p.numel()
            spans.append((start, start + extent * p.element_size(), i, overlaps_itself))
    spans.sort()
    found = {i for *_, i, overlaps_itself in spans if overlaps_itself}
    furthest_end, furthest = 0, -1
    for start, end, i, _ in spans:
        if start < furthest_end:
            found |= {i, furthest}
        if end > furthest_end:
            furthest_end, furthest = end, i
    return frozenset(found)


def not_in_place_reason(p: Tensor, g: Tensor, states: Sequence[Tensor]) -> str | None:
    """Return why a kernel cannot update a parameter in place, element by element in one order; None if it can.

    The order is that of memory. For a sparse gradient it is the order of the rows.

    Args:
        p: the parameter.
        g: its gradient.
        states: its element-wise states.
    """
    names = ("the parameter", "its gradient", *("its state" for _ in states))
    for name, t in zip(names, (p, g, *states), strict=True):
        if t.device != p.device:
            return f"{name} is on {t.device}, the parameter on {p.device}"
        if t.shape != p.shape:
            return f"{name} has shape {tuple(t.shape)}, the parameter {tuple(p.shape)}"
        if t.is_neg() or t.is_conj():
            return f"{name} is a lazy {'negative' if t.is_neg() else 'conjugate'}"
        if t.is_complex() != p.is_complex():
            return f"{name} is {'complex' if t.is_complex() else 'real'}, the parameter is not"
        if t.dtype.to_real() not in KERNEL_DTYPES:
            return f"{name} has dtype {str(t.dtype).removeprefix('torch.')}"
    strided = states if g.layout is torch.sparse_coo else (g, *states)
    if g.layout is torch.sparse_coo and not p.is_contiguous():
        return "the parameter's rows are not contiguous"
    if not _is_dense(p):
        return "the parameter's memory has gaps"
    for t in strided:
        if t.layout is not torch.strided or not _same_order(t, p):
            return f"its {'gradient' if t is g else 'state'} has another order in memory"
    return None


def _is_dense(t: Tensor) -> bool:
    """Whether the elements fill a memory range without gaps, in any order of the dimensions."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _same_order(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have the same order of elements in memory."""
    return a.stride() == b.stride() or all(
        x == y for x, y, size in zip(a.stride(), b.stride(), b.shape, strict=True) if size > 1
    )


def working_tensors(originals: TensorsByRole, dtype: torch.dtype | None) -> TensorsByRole:
    """Return real tensors of one dtype for the rule to compute on.

    Args:
        originals: the parameters, gradients and states.
        dtype: the optimizer's `state_dtype`. The result has the wider of `dtype` and the real dtype of the parameters.

    Returns:
        `originals` itself if nothing has to be converted; else views where possible and copies elsewhere.
    """
    p = originals["p"][0]
    real = p.dtype.to_real()
    dtype = real if dtype is None else torch.promote_types(real, dtype)
    same = all({t.dtype for t in tensors} == {dtype} for tensors in originals.values())
    if same and not any(map(Tensor.is_neg, originals["p"])) and not any(map(Tensor.is_neg, originals["g"])):
        return originals
    return {role: [_as_real(t).to(dtype) for t in tensors] for role, tensors in originals.items()}


def at_least_1d(t: Tensor) -> Tensor:
    """Return a 0-dim tensor as a view of one dimension.

    The dtype of a 0-dim tensor yields to that of a tensor with dimensions, and the numbers that a rule computes per
    parameter are 0-dim. So the tensors of a parameter must have dimensions.
    """
    return t if t.ndim else t.view(1)


def write_back(work: TensorsByRole, originals: TensorsByRole) -> None:
    """Copy results that were computed on copies to the original tensors; results on views need no copy."""
    for role, tensors in originals.items():
        if role != "g":
            for original, computed in zip(tensors, work[role], strict=True):
                _write_one_back(computed, original)


def _write_one_back(computed: Tensor, original: Tensor) -> None:
    if original.is_conj() or original.is_neg():  # the memory holds another value than the tensor
        value = computed.to(original.dtype.to_real()).contiguous()
        original.copy_(torch.view_as_complex(value) if original.is_complex() else value)
        return
    target = _as_real(original)
    if computed is not target and computed.data_ptr() != target.data_ptr():
        target.copy_(computed)


def _as_real(t: Tensor) -> Tensor:
    """Return a tensor as reals with lazy conjugation and negation resolved; a view if the tensor has neither."""
    t = t.resolve_conj().resolve_neg()
    return torch.view_as_real(t) if t.is_complex() else t
