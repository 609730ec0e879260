"""Which hyperparameters and group keys are allowed, by name; with torch's text first where torch checks too."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from optplug.errors import HyperparameterError, HyperparameterTypeError, did_you_mean, listing, number_hint

FOREIGN_KEYS = frozenset(
    {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
)
"""Group keys that torch, its schedulers and Lightning write; no optimizer declares them and all may carry them."""


@dataclass(frozen=True)
class Range:
    """An allowed range: `holds` decides, `label` is torch's wording, `words` says it to a person."""

    label: str
    words: str
    holds: Callable[[float], bool]


def _at_least_zero(label: str) -> Range:
    return Range(f"Invalid {label}: ", "at least 0", lambda x: x >= 0)


RANGES: dict[str, Range] = {
    "lr": _at_least_zero("learning rate"),
    "eps": _at_least_zero("epsilon value"),
    "weight_decay": _at_least_zero("weight_decay value"),
    "momentum": _at_least_zero("momentum value"),
    "betas": Range("Invalid beta parameter", "at least 0 and below 1", lambda x: 0 <= x < 1),
}
"""By name, so that every optimizer, a third party's too, gets the same check and the same words."""


def declared(cls: Any) -> Mapping[str, Any]:
    """The defaults of an optimizer's constructor: they show which options are flags, tuples and numbers."""
    return _declared(cls)


@functools.lru_cache(maxsize=1024)
def _declared(cls: Any) -> Mapping[str, Any]:
    parameters = inspect.signature(cls).parameters.values()
    of_groups = (p for p in parameters if p.name not in ("engine", "state_dtype"))
    return {p.name: p.default for p in of_groups if p.default is not p.empty and p.default is not None}


def as_tuples(cls: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with lists, which is what YAML makes, as tuples where the constructor has tuples."""
    shapes = declared(cls)
    return {
        key: tuple(value) if isinstance(value, list) and isinstance(shapes.get(key), tuple) else value
        for key, value in options.items()
    }


def check(defaults: Mapping[str, Any], given: Mapping[str, Any], owner: str) -> None:
    """Check hyperparameters against the shape of their defaults and against `RANGES`.

    Args:
        defaults: what the optimizer declares; its keys and the kinds of its values are what is allowed.
        given: what to check, a parameter group for example.
        owner: the optimizer's name, for the messages.

    Raises:
        HyperparameterError: out of range, not finite, of the wrong length, or a key the optimizer does not have.
        HyperparameterTypeError: of the wrong type.
    """
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
            _check_tuple(key, value, len(default), owner)
        elif isinstance(default, (int, float, Tensor)):
            _check_number(key, value, RANGES.get(key), owner)


def _check_flag(key: str, value: Any, owner: str) -> None:
    if not isinstance(value, bool):
        raise HyperparameterTypeError(f"{owner}: {key} must be True or False, got {value!r} ({type(value).__name__})")


def _check_tuple(key: str, value: Any, length: int, owner: str) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != length:
        kind = HyperparameterTypeError if not isinstance(value, (tuple, list)) else HyperparameterError
        raise kind(f"{owner}: {key} must be {length} numbers, got {value!r}")
    range_ = RANGES.get(key)
    for i, item in enumerate(value):
        indexed = Range(f"{range_.label} at index {i}: ", range_.words, range_.holds) if range_ else None
        _check_number(f"{key}[{i}]", item, indexed, owner)
    if len({isinstance(item, Tensor) for item in value}) > 1:
        raise HyperparameterError(f"{key} must be either both floats or both Tensors, got {value!r}")


def _check_number(key: str, value: Any, range_: Range | None, owner: str) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise HyperparameterError(f"Tensor {key} must be 1-element, got shape {tuple(value.shape)}")
        number = float(value.detach())
    elif isinstance(value, bool) or not hasattr(value, "__float__"):
        raise HyperparameterTypeError(
            f"{owner}: {key} must be a number, got {value!r} ({type(value).__name__}){number_hint(value)}"
        )
    else:
        number = float(value)
    if range_ is not None and not range_.holds(number):
        raise HyperparameterError(f"{range_.label}{value} ({owner}: {key} must be {range_.words})")
    if not math.isfinite(number):
        label = range_.label if range_ else f"Invalid {key}: "
        raise HyperparameterError(f"{label}{value} ({owner}: {key} must be finite)")
