"""The tensors a rule computes on: real, of one dtype, views of the optimizer's own wherever that is possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

PLAIN = (Tensor, Parameter)
"""The types whose memory is what it seems; subclasses mean something else by their operations."""

FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""What an element, or each part of a complex one, may be for a kernel of our own."""

Roles = dict[str, list[Tensor]]
"""Parameters (`"p"`), gradients (`"g"`) and element-wise states by name, as lists of equal length."""


def overlapping(params: Sequence[Tensor]) -> frozenset[int]:
    """The indices of parameters that share memory with another one, or whose own elements do."""
    spans = []
    for i, p in enumerate(params):
        start = p.data_ptr() if type(p) in PLAIN and p.layout is torch.strided else 0
        if start and p.numel():  # an empty tensor and one without memory of its own share nothing
            extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
            spans.append((start, start + extent * p.element_size(), i, extent < p.numel()))
    spans.sort()
    found = {i for *_, i, within in spans if within}
    reach, owner = 0, -1
    for start, end, i, _ in spans:
        if start < reach:
            found |= {i, owner}
        if end > reach:
            reach, owner = end, i
    return frozenset(found)


def misfit(p: Tensor, g: Tensor, states: Sequence[Tensor]) -> str | None:
    """Why these cannot be read and written where they lie, element by element in one order; None if they can.

    The order is that of the memory; a sparse gradient has rows, so there it is that of the indices.
    """
    names = ("it", "its gradient", *("its state" for _ in states))
    for name, t in zip(names, (p, g, *states), strict=True):
        if t.device != p.device:
            return f"{name} is on {t.device}, it is on {p.device}"
        if t.shape != p.shape:
            return f"{name} has shape {tuple(t.shape)}, it has {tuple(p.shape)}"
        if t.is_neg() or t.is_conj():
            return f"{name} is a lazy {'negative' if t.is_neg() else 'conjugate'}"
        if t.is_complex() != p.is_complex():
            return f"{name} is {'' if t.is_complex() else 'not '}complex"
        if (t.real.dtype if t.is_complex() else t.dtype) not in FLOATS:
            return f"{name} has dtype {str(t.dtype).removeprefix('torch.')}"
    strided = states if g.layout is torch.sparse_coo else (g, *states)
    if g.layout is torch.sparse_coo and not p.is_contiguous():
        return "its rows are not contiguous"
    if not _is_dense(p):
        return "its memory has gaps"
    for t in strided:
        if t.layout is not torch.strided or not _same_order(t, p):
            return f"its {'gradient' if t is g else 'state'} has another order in memory"
    return None


def _is_dense(t: Tensor) -> bool:
    """Whether the elements fill a piece of memory, in any order of the dimensions."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _same_order(a: Tensor, b: Tensor) -> bool:
    return a.stride() == b.stride() or all(
        x == y for x, y, size in zip(a.stride(), b.stride(), b.shape, strict=True) if size > 1
    )


def working(originals: Roles, dtype: torch.dtype | None) -> Roles:
    """`originals` themselves, or real views and copies of them in a dtype that holds the parameters' and `dtype`."""
    p = originals["p"][0]
    real = p.real.dtype if p.is_complex() else p.dtype
    dtype = real if dtype is None else torch.promote_types(real, dtype)
    same = all({t.dtype for t in tensors} == {dtype} for tensors in originals.values())
    if same and not any(map(Tensor.is_neg, originals["p"])) and not any(map(Tensor.is_neg, originals["g"])):
        return originals
    return {role: [_as_real(t).to(dtype) for t in tensors] for role, tensors in originals.items()}


def write_back(work: Roles, originals: Roles) -> None:
    """Copy what was computed on a copy to where it belongs; views have written through."""
    for role, tensors in originals.items():
        if role != "g":
            for original, computed in zip(tensors, work[role], strict=True):
                _write_one(computed, original)


def _write_one(computed: Tensor, original: Tensor) -> None:
    if original.is_conj() or original.is_neg():  # its memory holds something else than its value
        value = computed.to(original.real.dtype).contiguous()
        original.copy_(torch.view_as_complex(value) if original.is_complex() else value)
        return
    target = _as_real(original)
    if computed is not target and computed.data_ptr() != target.data_ptr():
        target.copy_(computed)


def _as_real(t: Tensor) -> Tensor:
    """A complex tensor as reals, conjugation and negation resolved; a view whenever there is neither."""
    t = t.resolve_conj().resolve_neg()
    return torch.view_as_real(t) if t.is_complex() else t
