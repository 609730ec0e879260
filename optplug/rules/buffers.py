"""The tensors a rule computes on: real, of one dtype, views of the optimizer's own wherever that is possible."""

from __future__ import annotations

import torch
from torch import Tensor

Roles = dict[str, list[Tensor]]
"""Parameters (`"p"`), gradients (`"g"`) and element-wise states by name, as lists of equal length."""


def working(originals: Roles, dtype: torch.dtype | None) -> Roles:
    """`originals` themselves, or real views and copies of them in `dtype` (None: the parameters')."""
    p = originals["p"][0]
    if dtype is None:
        dtype = p.real.dtype if p.is_complex() else p.dtype
    same = all(t.dtype is dtype for tensors in originals.values() for t in tensors)
    if same and not any(t.is_neg() for role in ("p", "g") for t in originals[role]):
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
