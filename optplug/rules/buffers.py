"""The tensors a rule computes on: real, of one dtype, views of the optimizer's own wherever that is possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

PLAIN = (Tensor, Parameter)
"""The types whose memory is what it seems; subclasses mean something else by their operations."""

Roles = dict[str, list[Tensor]]
"""Parameters (`"p"`), gradients (`"g"`) and element-wise states by name, as lists of equal length."""


class Overlaps:
    """Which parameters share memory, found anew when their addresses change."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[list[int], frozenset[int]]] = {}

    def among(self, group: int, params: Sequence[Tensor]) -> frozenset[int]:
        """The indices of parameters that share memory with another one, or whose own elements do."""
        addresses = [p.data_ptr() if type(p) in PLAIN else 0 for p in params]
        known = self._known.get(group)
        if known is None or known[0] != addresses:
            known = self._known[group] = (addresses, _overlapping(params, addresses))
        return known[1]


def _overlapping(params: Sequence[Tensor], addresses: Sequence[int]) -> frozenset[int]:
    spans = []
    for i, (p, start) in enumerate(zip(params, addresses, strict=True)):
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
