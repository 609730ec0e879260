"""Plain data: from what libraries hand over to Python's own mappings and lists, and to what a file can hold."""

from __future__ import annotations

import argparse
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optplug.config.error_collector import join_loc
from optplug.errors import ConfigError, OptplugError, describe, with_loc

DEEPEST = 30
"""Levels of mappings and lists; what is deeper contains itself."""


def plain(value: Any, depth: int = 0) -> Any:
    """Mappings, lists and numbers of any library as Python's own, all the way down.

    Raises:
        ConfigError: what cannot be read, such as an interpolation that leads nowhere; what contains itself. Its place
        is where that is.
    """
    if depth > DEEPEST:
        raise ConfigError("is nested too deeply, or contains itself")
    if isinstance(value, argparse.Namespace):  # jsonargparse's too
        value = vars(value)
    if isinstance(value, Mapping):
        keys = _read("", lambda: list(value), depth)
        return {key: _read(str(key), functools.partial(operator.getitem, value, key), depth) for key in keys}
    if isinstance(value, tuple):
        return tuple(plain(v, depth + 1) for v in value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, range)):
        return [_read(f"[{i}]", functools.partial(operator.getitem, value, i), depth) for i in range(len(value))]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def _read(loc: str, get: Callable[[], Any], depth: int) -> Any:
    try:
        return plain(get(), depth + 1)
    except OptplugError as error:
        inner = loc if depth < 5 else ""  # of what contains itself, the beginning is enough
        raise with_loc(join_loc(inner, error.loc), error) from None
    except Exception as error:  # OmegaConf has many ways to fail
        raise with_loc(loc, ConfigError(f"cannot be read: {describe(error)}")) from error


def saved(value: Any) -> Any:
    """A value as a file can hold it."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [saved(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): saved(v) for k, v in value.items()}
    if str(type(value)) == "<class 'torch.dtype'>":
        return str(value).removeprefix("torch.")
    try:
        return int(value) if isinstance(value, int) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return getattr(value, "__qualname__", repr(value))
