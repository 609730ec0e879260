"""The states of a rule: their declaration, their first values, and what loading must not do to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optplug.errors import HyperparameterError, HyperparameterTypeError, ParameterError, listing


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
        value: Any = group[self.init] if isinstance(self.init, str) else self.init
        if isinstance(value, Tensor):  # which autograd may be following
            value = value.reshape(()) if group["differentiable"] else float(value.detach())
        if self.scalar:
            return torch.zeros((), dtype=scalar_dtype(), device=place_of_scalars(p, group)).add(value)
        dtype = dtype_of(p, dtype)
        if self.sparse and g.layout is torch.sparse_coo:
            return torch.zeros_like(g, dtype=dtype)
        if p.is_complex():
            value = value * (1 + 1j)
        if isinstance(value, Tensor):
            return torch.zeros_like(p, dtype=dtype).add(value)
        # Zeros that nobody has touched are no memory yet: the first step makes them so, with all its threads.
        return torch.full_like(p, value, dtype=dtype) if value else torch.zeros_like(p, dtype=dtype)

    def check(self, value: Any, p: Tensor, place: str) -> None:
        """Refuse a saved value that is no state of this parameter.

        Raises:
            ParameterError: of another shape. HyperparameterTypeError: no tensor, or for a scalar no number.
        """
        if self.scalar:
            if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
                raise HyperparameterTypeError(f"{place} must be a number, got {value!r}")
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ParameterError(f"{place} must be one number, got a tensor of shape {tuple(value.shape)}")
        elif not isinstance(value, Tensor):
            raise HyperparameterTypeError(f"{place} must be a tensor, got {value!r}")
        elif value.shape != p.shape:
            raise ParameterError(f"{place} has shape {tuple(value.shape)}, the parameter has {tuple(p.shape)}")

    def loaded(self, value: Any, p: Tensor, group: Mapping[str, Any], dtype: torch.dtype | None) -> Tensor:
        """What a state dict has for the state, where and in the dtype it belongs.

        torch casts states to the parameter's dtype, and keeps only `step` from it. Old state dicts hold plain numbers.
        """
        if self.scalar:
            return torch.as_tensor(value, dtype=scalar_dtype(), device=place_of_scalars(p, group)).detach().clone()
        copied: Tensor = value.to(p.device, dtype_of(p, dtype), copy=True)
        return copied


def check_saved(state_dict: Mapping[str, Any], owner: str, states: Sequence[State], params: Sequence[Tensor]) -> None:
    """Refuse the state of another optimizer or of other parameters; what a user has added to it is welcome.

    Args:
        owner: the optimizer's name. states: what it keeps. params: its parameters, in order.

    Raises:
        HyperparameterError: with what it has and what it should have. ParameterError: of another shape.
    """
    kept = {state.name: state for state in states}
    indices = [i for group in state_dict["param_groups"] for i in group["params"]]
    for position, (i, p) in enumerate(zip(indices, params, strict=False)):  # the base class compares the lengths
        saved = state_dict["state"].get(i) or {}
        missing = {name for name, state in kept.items() if state.when is None and not state.scalar} - set(saved)
        strange = set(saved) - set(kept)
        if saved and (missing or strange & {"step", "n_iter"}):  # torch's optimizers, but SGD, count
            raise HyperparameterError(
                f"this is the state of another optimizer: it has {listing(sorted(saved))}; "
                f"{owner} keeps {listing(sorted(kept))}"
            )
        for name in (name for name in kept if saved.get(name) is not None):
            kept[name].check(saved[name], p, f"{owner}: {name} of parameter {position} in the state dict")


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
