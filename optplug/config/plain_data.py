"""Conversion of configuration values to Python's builtin types, and to values that a file can store."""

from __future__ import annotations

import argparse
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optplug.errors import ConfigError, Loc, OptplugError, one_line

MAX_NESTING_DEPTH = 30
"""Allowed levels of nested mappings and lists. A deeper value is assumed to contain itself."""


def to_builtins(value: Any, depth: int = 0) -> Any:
    """Convert mappings, lists and numbers of other libraries to Python's own types, recursively.

    Args:
        value: any value. Other types than these are returned unchanged.
        depth: the current level of nesting.

    Raises:
        ConfigError: a value cannot be read, such as an unresolvable interpolation, or the nesting is deeper than
            `MAX_NESTING_DEPTH`. Its `loc` is the location inside `value`.
    """
    if depth > MAX_NESTING_DEPTH:
        raise ConfigError("is nested too deeply, or contains itself")
    if isinstance(value, argparse.Namespace):  # jsonargparse's Namespace is a subclass
        value = vars(value)
    if isinstance(value, Mapping):
        keys = _convert_item((), lambda: list(value), depth)
        return {key: _convert_item((str(key),), functools.partial(operator.getitem, value, key), depth) for key in keys}
    if isinstance(value, tuple):
        return tuple(to_builtins(v, depth + 1) for v in value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, range)):
        return [_convert_item((i,), functools.partial(operator.getitem, value, i), depth) for i in range(len(value))]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def _convert_item(loc: Loc, get: Callable[[], Any], depth: int) -> Any:
    try:
        return to_builtins(get(), depth + 1)
    except OptplugError as error:
        inner = loc if depth < 5 else ()  # keep the location short where a value contains itself
        error.loc = (*inner, *error.loc)
        raise error from None
    except Exception as error:  # OmegaConf raises many types
        raise ConfigError(f"cannot be read: {one_line(error)}", loc=loc) from error


def to_serializable(value: Any) -> Any:
    """Convert a value to types that YAML, JSON and `torch.load(weights_only=True)` can store.

    Args:
        value: any value. Tuples become lists; a `torch.dtype` becomes its name without the prefix `torch.`; other
            values become numbers where possible, else their qualified name or their `repr`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [to_serializable(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): to_serializable(v) for k, v in value.items()}
    if str(type(value)) == "<class 'torch.dtype'>":
        return str(value).removeprefix("torch.")
    try:
        return int(value) if isinstance(value, int) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return getattr(value, "__qualname__", repr(value))
