"""The states of a rule: their declaration, their first values, and what loading must not do to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class State:
    """One state of a rule, kept under torch's name.

    Args:
        name: the key in `optimizer.state[p]` and the rule's argument.
        scalar: one number for the parameter (a 0-dim tensor) rather than one per element.
        when: the hyperparameter that must be true, or not 0, for the state to exist. Default: it always does.
        init: its first value, or the name of the hyperparameter that gives it.
        sparse: where gradients are sparse it is a sparse tensor, and it acts on all rows it has; without it, rows that
            a gradient does not name are left alone.
    """

    name: str
    scalar: bool = False
    when: str | None = None
    init: float | str = 0.0
    sparse: bool = False

    def exists(self, group: Mapping[str, Any]) -> bool:
        """Whether a parameter of this group has the state."""
        return self.when is None or bool(group[self.when])

    def first(self, p: Tensor, g: Tensor, group: Mapping[str, Any], dtype: torch.dtype | None) -> Tensor:
        """The state before the first step; `dtype` is the optimizer's `state_dtype`."""
        value = float(group[self.init] if isinstance(self.init, str) else self.init)
        if self.scalar:
            return torch.tensor(value, dtype=scalar_dtype(), device=place_of_scalars(p, group))
        dtype = dtype_of(p, dtype)
        if self.sparse and g.layout is torch.sparse_coo:
            return torch.zeros_like(g, dtype=dtype)
        return torch.full_like(p, complex(value, value) if p.is_complex() else value, dtype=dtype)

    def loaded(self, value: Any, p: Tensor, group: Mapping[str, Any], dtype: torch.dtype | None) -> Tensor:
        """What a state dict has for the state, where and in the dtype it belongs.

        torch casts states to the parameter's dtype, and keeps only `step` from it. Old state dicts hold plain numbers.
        """
        if self.scalar:
            dtype = value.dtype if isinstance(value, Tensor) and value.is_floating_point() else scalar_dtype()
            return torch.as_tensor(value, dtype=dtype, device=place_of_scalars(p, group)).detach().clone()
        copied: Tensor = value.to(p.device, dtype_of(p, dtype), copy=True)
        return copied


def scalar_dtype() -> torch.dtype:
    """float32, or float64 where that is the default dtype: as torch keeps `step`."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32


def place_of_scalars(p: Tensor, group: Mapping[str, Any]) -> torch.device:
    """The CPU, where reading a number waits for nothing, except under `capturable`."""
    return p.device if group["capturable"] else torch.device("cpu")


def dtype_of(p: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a parameter's element-wise states."""
    if dtype is None:
        return p.dtype
    return dtype.to_complex() if p.is_complex() else dtype


def prepare(
    states: Sequence[State],
    kept: dict[str, Any],
    p: Tensor,
    g: Tensor,
    group: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> bool:
    """Make the states that are missing from `kept`, for a parameter and its gradient.

    Returns:
        Whether this is the first step: no element-wise state was there, or for a rule with scalar states only, none.
    """
    missing = [state for state in states if kept.get(state.name) is None]
    for state in missing:
        kept[state.name] = state.first(p, g, group, dtype)
    if g.layout is torch.strided:
        for state in states:  # a dense gradient has every row, and so has from now on the state
            if state.sparse and kept[state.name].layout is not torch.strided:
                kept[state.name] = kept[state.name].to_dense()
    if not missing:
        return False
    telling = [state for state in states if not state.scalar] or states
    return all(state in missing for state in telling)
