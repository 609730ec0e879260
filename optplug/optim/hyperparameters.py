"""Checks of hyperparameters and of the keys of parameter groups. Messages begin with torch's where torch checks too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from optplug.errors import HyperparameterError, HyperparameterTypeError, number_hint, suggest
from optplug.optim.ranges import COMMON_RANGES, Range

EXTERNAL_GROUP_KEYS = frozenset(
    {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
)
"""Keys that torch, its schedulers and Lightning write into parameter groups. They are allowed for every optimizer."""


def check_hyperparameters(
    defaults: Mapping[str, Any], given: Mapping[str, Any], optimizer_name: str, ranges: Iterable[Range] | None = ()
) -> None:
    """Check hyperparameters against the kinds of their defaults and against ranges.

    Args:
        defaults: the allowed keys, each with a value of the required kind; None allows every kind.
        given: the hyperparameters to check, for example a parameter group.
        owner: name of the optimizer, for messages.
        ranges: the optimizer's own ranges, which have priority over `COMMON_RANGES`. None: do not check ranges.

    Raises:
        HyperparameterError: a value is out of range, not finite or has the wrong length, or a key is unknown.
        HyperparameterTypeError: a value has the wrong type.
    """
    by_name = {} if ranges is None else {r.name: r for r in (*COMMON_RANGES, *ranges)}
    for key, value in given.items():
        if key in EXTERNAL_GROUP_KEYS:
            continue
        if key not in defaults:
            raise HyperparameterError(
                f"{optimizer_name} has no option {key!r}{suggest(key, defaults, see=f'help({optimizer_name})')}"
            )
        default = defaults[key]
        if isinstance(default, bool):
            _check_flag(key, value, optimizer_name)
        elif isinstance(default, tuple):
            _check_tuple(key, value, len(default), optimizer_name, by_name.get(key))
        elif isinstance(default, (int, float, Tensor)):
            _check_number(key, value, by_name.get(key), optimizer_name)


def _check_flag(key: str, value: Any, optimizer_name: str) -> None:
    if not isinstance(value, bool):
        raise HyperparameterTypeError(
            f"{optimizer_name}: {key} must be True or False, got {value!r} ({type(value).__name__})"
        )


def _check_tuple(key: str, value: Any, length: int, optimizer_name: str, range_: Range | None) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != length:
        error = HyperparameterTypeError if not isinstance(value, (tuple, list)) else HyperparameterError
        raise error(f"{optimizer_name}: {key} must be {length} numbers, got {value!r}")
    for i, item in enumerate(value):
        indexed = (
            replace(range_, called=f"{range_.message_start.removeprefix('Invalid ')} at index {i}") if range_ else None
        )
        _check_number(f"{key}[{i}]", item, indexed, optimizer_name)
    if len({isinstance(item, Tensor) for item in value}) > 1:
        raise HyperparameterError(f"{key} must be either both floats or both Tensors, got {value!r}")


def _check_number(key: str, value: Any, range_: Range | None, optimizer_name: str) -> None:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise HyperparameterError(f"Tensor {key} must be 1-element, got shape {tuple(value.shape)}")
    number = _as_float(value)
    if number is None:
        raise HyperparameterTypeError(
            f"{optimizer_name}: {key} must be a number, got {value!r} ({type(value).__name__}){number_hint(value)}"
        )
    if range_ is not None and range_.whole and not isinstance(value, Integral):
        raise HyperparameterTypeError(
            f"{optimizer_name}: {key} must be {range_.words}, got {value!r} ({type(value).__name__})"
        )
    if range_ is not None and not range_.holds(number):
        raise HyperparameterError(f"{range_.message_start}: {value} ({optimizer_name}: {key} must be {range_.words})")
    if not math.isfinite(number):
        message_start = range_.message_start if range_ else f"Invalid {key}"
        raise HyperparameterError(f"{message_start}: {value} ({optimizer_name}: {key} must be finite)")


def _as_float(value: Any) -> float | None:
    """Convert a real number of any library to a float; None for flags, text, arrays and complex numbers."""
    dtype = str(getattr(value, "dtype", ""))  # torch and numpy numbers have one
    if isinstance(value, bool) or dtype.endswith("bool") or not (dtype or isinstance(value, Real)):
        return None
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except OverflowError:  # a Python int may exceed the range of floats
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):
        return None
