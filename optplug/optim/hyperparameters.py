"""Which hyperparameters and group keys are allowed, by name; with torch's text first where torch checks too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from optplug.errors import HyperparameterError, HyperparameterTypeError, did_you_mean, listing, number_hint
from optplug.optim.ranges import COMMON, Range

FOREIGN_KEYS = frozenset(
    {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
)
"""Group keys that torch, its schedulers and Lightning write; no optimizer declares them and all may carry them."""


def check(
    defaults: Mapping[str, Any], given: Mapping[str, Any], owner: str, ranges: Iterable[Range] | None = ()
) -> None:
    """Check hyperparameters against the shape of their defaults and against ranges.

    Args:
        defaults: what the optimizer declares; its keys and the kinds of its values are what is allowed.
        given: what to check, a parameter group for example.
        owner: the optimizer's name, for the messages.
        ranges: the optimizer's own, which go before `COMMON`; None where only kinds and finiteness count.

    Raises:
        HyperparameterError: out of range, not finite, of the wrong length, or a key the optimizer does not have.
        HyperparameterTypeError: of the wrong type.
    """
    by_name = {} if ranges is None else {r.name: r for r in (*COMMON, *ranges)}
    for key, value in given.items():
        if key in FOREIGN_KEYS:
            continue
        if key not in defaults:
            known = sorted(defaults)
            raise HyperparameterError(
                f"{owner} has no option {key!r}; it has {listing(known)}{did_you_mean(key, known)}"
            )
        default = defaults[key]
        if isinstance(default, bool):
            _check_flag(key, value, owner)
        elif isinstance(default, tuple):
            _check_tuple(key, value, len(default), owner, by_name.get(key))
        elif isinstance(default, (int, float, Tensor)):
            _check_number(key, value, by_name.get(key), owner)


def _check_flag(key: str, value: Any, owner: str) -> None:
    if not isinstance(value, bool):
        raise HyperparameterTypeError(f"{owner}: {key} must be True or False, got {value!r} ({type(value).__name__})")


def _check_tuple(key: str, value: Any, length: int, owner: str, range_: Range | None) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != length:
        kind = HyperparameterTypeError if not isinstance(value, (tuple, list)) else HyperparameterError
        raise kind(f"{owner}: {key} must be {length} numbers, got {value!r}")
    for i, item in enumerate(value):
        indexed = (
            replace(range_, called=f"{range_.complaint.removeprefix('Invalid ')} at index {i}") if range_ else None
        )
        _check_number(f"{key}[{i}]", item, indexed, owner)
    if len({isinstance(item, Tensor) for item in value}) > 1:
        raise HyperparameterError(f"{key} must be either both floats or both Tensors, got {value!r}")


def _check_number(key: str, value: Any, range_: Range | None, owner: str) -> None:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise HyperparameterError(f"Tensor {key} must be 1-element, got shape {tuple(value.shape)}")
    number = _as_float(value)
    if number is None:
        raise HyperparameterTypeError(
            f"{owner}: {key} must be a number, got {value!r} ({type(value).__name__}){number_hint(value)}"
        )
    if range_ is not None and range_.whole and not isinstance(value, Integral):
        raise HyperparameterTypeError(f"{owner}: {key} must be {range_.words}, got {value!r} ({type(value).__name__})")
    if range_ is not None and not range_.holds(number):
        raise HyperparameterError(f"{range_.complaint}: {value} ({owner}: {key} must be {range_.words})")
    if not math.isfinite(number):
        complaint = range_.complaint if range_ else f"Invalid {key}"
        raise HyperparameterError(f"{complaint}: {value} ({owner}: {key} must be finite)")


def _as_float(value: Any) -> float | None:
    """A real number of any library; None for what is none: a flag, text, an array, a complex number."""
    of_a_library = str(getattr(value, "dtype", ""))  # of torch or numpy
    if isinstance(value, bool) or of_a_library.endswith("bool") or not (of_a_library or isinstance(value, Real)):
        return None
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except OverflowError:  # a whole number without end
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):
        return None
