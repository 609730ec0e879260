"""Checks of hyperparameters and of the keys of parameter groups. Messages begin with torch's where torch checks too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optplug.errors import (
    ErrorCollector,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    is_misspelling,
    number_hint,
    suggest,
)
from optplug.optim.options import OPTION_DEFAULTS
from optplug.optim.ranges import COMMON_RANGES, Range, any_number
from optplug.registry.signature import constructor_signature
from optplug.rules.modifiers import CLIPS

EXTERNAL_GROUP_KEYS = frozenset(
    {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
)
"""Keys that torch, its schedulers and Lightning write into parameter groups. They are allowed for every optimizer."""

OPTIONAL_FLAGS = ("foreach", "fused")
"""Flags that can also be None."""


def declared_defaults(cls: type) -> dict[str, Any]:
    """Return the constructor's arguments that have a default, with the default.

    Args:
        cls: the class of an optimizer. Constructors of other base classes, such as Lightning's wrapper, are ignored.
    """
    of_optimizer: type = next(base for base in cls.__mro__ if "__init__" in vars(base) and issubclass(base, Optimizer))
    parameters = constructor_signature(of_optimizer).parameters.values()
    return {p.name: p.default for p in parameters if p.default not in (p.empty, ...)}


def reference_values(cls: type, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return for each option a value of the required kind: a flag, a tuple or a number.

    Args:
        cls: the class of the optimizer. Defaults in its signature have priority over `defaults`.
        defaults: the optimizer's `defaults`, which may contain values that the user passed.
    """
    declared = {key: value for key, value in declared_defaults(cls).items() if value is not None}
    declared = {**dict.fromkeys(CLIPS, 1.0), **declared}  # they are numbers, although their default is None
    return {key: declared.get(key, value) for key, value in defaults.items()}


def lists_to_tuples(references: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert lists, which YAML produces, to tuples for options whose reference value is a tuple."""
    return {
        key: tuple(value) if isinstance(value, list) and isinstance(references.get(key), tuple) else value
        for key, value in options.items()
    }


def group_options(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a parameter group that the optimizer must check.

    Left out are the keys of torch, of schedulers and of Lightning, and the user's own keys, such as `lr_scale` and
    `layer_id`: every key that is not an option of an optimizer, and no misspelling of one.

    Args:
        group: the parameter group.
        defaults: the options of the optimizer.
    """
    known = {**defaults, **OPTION_DEFAULTS}
    return {
        key: value
        for key, value in group.items()
        if key not in EXTERNAL_GROUP_KEYS and (key in known or is_misspelling(key, known))
    }


def check_hyperparameters(
    references: Mapping[str, Any],
    given: Mapping[str, Any],
    optimizer_name: str,
    ranges: Iterable[Range] = (),
    *,
    in_range: bool = True,
) -> None:
    """Check hyperparameters against the kinds of reference values and against ranges.

    Args:
        references: the allowed keys, each with a value of the required kind; None allows every kind.
        given: the hyperparameters to check, for example a parameter group.
        optimizer_name: name of the optimizer, for messages.
        ranges: the optimizer's own ranges, which have priority over `COMMON_RANGES`.
        in_range: whether the values must be in their ranges. If False, they must only be finite where the range is.

    Raises:
        HyperparameterError: a value is out of range, not finite or has the wrong length, or a key is unknown.
        HyperparameterTypeError: a value has the wrong type.

    The exception has the class of the first error. Its attribute `errors` has an error for each wrong value.
    """
    by_name = {r.name: r for r in (*COMMON_RANGES, *ranges)}
    if not in_range:
        by_name = {
            name: replace(any_number(name), finite=r.finite, optional=r.optional)
            for name, r in by_name.items()
            if r.optional or not r.finite
        }
    collector = ErrorCollector()
    for key, value in given.items():
        if key in EXTERNAL_GROUP_KEYS:
            continue
        if key in references:
            errors = _value_errors(key, value, references[key], by_name.get(key), optimizer_name)
        else:
            hint = suggest(key, references, see=f"help({optimizer_name})")
            errors = iter([HyperparameterError(f"{optimizer_name} has no option {key!r}{hint}")])
        for error in errors:
            error.argument = key
            collector.add(error)
    collector.raise_joined()


def _value_errors(
    key: str, value: Any, reference: Any, range_: Range | None, optimizer_name: str
) -> Iterator[OptplugError]:
    if key in OPTIONAL_FLAGS:
        if value is not None and not isinstance(value, bool):
            yield HyperparameterTypeError(f"{optimizer_name}: {key} must be True, False or None, got {value!r}")
    elif key in CLIPS and value is None:
        return
    elif isinstance(reference, bool):
        if not isinstance(value, bool):
            yield HyperparameterTypeError(
                f"{optimizer_name}: {key} must be True or False, got {value!r} ({type(value).__name__})"
            )
    elif isinstance(reference, tuple):
        yield from _tuple_errors(key, value, reference, range_, optimizer_name)
    elif range_ and range_.optional and value is None:
        return
    elif isinstance(reference, (int, float, Tensor)) or (range_ and range_.optional):
        error = number_error(key, value, range_, optimizer_name)
        if error is not None:
            yield error


def _tuple_errors(
    key: str, value: Any, reference: tuple[Any, ...], range_: Range | None, optimizer_name: str
) -> Iterator[OptplugError]:
    length = len(reference)
    if not isinstance(value, (tuple, list)) or len(value) != length:
        error_type = HyperparameterTypeError if not isinstance(value, (tuple, list)) else HyperparameterError
        yield error_type(f"{optimizer_name}: {key} must be {length} numbers, got {value!r}")
        return
    items_are_valid = True
    numbers = [i for i, item in enumerate(value) if not (item is None and reference[i] is None)]
    for i in numbers:
        error = number_error(f"{key}[{i}]", value[i], range_ and range_.of_item(i), optimizer_name)
        if error is not None:
            items_are_valid = False
            error.inside = (i,)
            yield error
    if items_are_valid and len({isinstance(value[i], Tensor) for i in numbers}) > 1:
        yield HyperparameterError(f"{key} must be either both floats or both Tensors, got {value!r}")


def number_error(key: str, value: Any, range_: Range | None, optimizer_name: str) -> OptplugError | None:
    """Return the error about a value that is not a number in a range; None for a valid value.

    Args:
        key: the name of the hyperparameter, or of an item of it.
        value: the value.
        range_: the range; None for all finite numbers.
        optimizer_name: name of the optimizer, for the message.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        return HyperparameterError(f"Tensor {key} must be 1-element, got shape {tuple(value.shape)}")
    number = _as_float(value)
    if number is None:
        return HyperparameterTypeError(
            f"{optimizer_name}: {key} must be a number, got {value!r} ({type(value).__name__}){number_hint(value)}"
        )
    if range_ is not None and range_.whole and not isinstance(value, Integral):
        return HyperparameterTypeError(
            f"{optimizer_name}: {key} must be {range_.words}, got {value!r} ({type(value).__name__})"
        )
    if range_ is not None and not range_.holds(number):
        return HyperparameterError(f"{range_.message_start}: {value} ({optimizer_name}: {key} must be {range_.words})")
    is_allowed_infinity = range_ is not None and not range_.finite and not isinstance(value, int)
    if not math.isfinite(number) and not is_allowed_infinity:  # a huge int is no infinity for torch
        message_start = range_.message_start if range_ else f"Invalid {key}"
        return HyperparameterError(f"{message_start}: {value} ({optimizer_name}: {key} must be finite)")
    return None


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
