"""Collection of configuration errors, so that one exception reports all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from optplug.errors import ConfigError, ConfigErrors, ConfigTypeError, OptplugError, with_loc

MAX_LOC_DEPTH = 10
"""Levels of a configuration that are searched for locations."""


class ErrorCollector:
    """Collects errors together with their locations in the configuration.

    Attributes:
        errors: the collected errors. Each message begins with the error's `loc`.
    """

    def __init__(self) -> None:
        self.errors: list[OptplugError] = []

    def add(self, error: OptplugError, loc: str) -> None:
        """Add an error.

        Args:
            error: the error. The errors of a `ConfigErrors` are added one by one.
            loc: the location. If the error has a `loc` already, it is taken as relative to this location.
        """
        if isinstance(error, ConfigErrors):
            for each in error.errors:
                self.add(each, loc)
        else:
            self.errors.append(prefix_loc(error, loc))

    def collect(self, loc: str) -> _CollectContext:
        """A context manager that adds an `OptplugError` raised in its block and suppresses the exception."""
        return _CollectContext(self, loc)

    def sort(self, config: Any) -> None:
        """Sort the errors in the order of the configuration.

        Args:
            config: the configuration as the user wrote it.
        """
        order = {loc: i for i, loc in enumerate(_locs(config))}
        for i, error in enumerate(
            self.errors
        ):  # errors of arguments have no `args` in their location; it is added here
            outer, _, key = error.loc.rpartition(".")
            nested = f"{outer}.args.{key}"
            if error.loc not in order and nested in order:
                self.errors[i] = prefix_loc(with_loc("", type(error)(_without_loc(error))), nested)

        def position(error: OptplugError) -> int:
            parts = re.split(r"(?=[.\[])", error.loc)
            prefixes = ("".join(parts[:n]) for n in range(len(parts), 0, -1))
            return next((order[prefix] for prefix in prefixes if prefix in order), -1)

        self.errors.sort(key=position)

    def raise_collected(self) -> None:
        """Raise a single error unchanged, or several errors as one `ConfigErrors`; do nothing without errors."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigErrors(self.errors)


@dataclass
class _CollectContext:
    collector: ErrorCollector
    loc: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, OptplugError):
            self.collector.add(error, self.loc)
        return isinstance(error, OptplugError)


def prefix_loc(error: OptplugError, loc: str) -> OptplugError:
    """A copy of an error whose location is extended by an outer location; the message begins with the location.

    Args:
        error: the error; its own `loc` may be empty.
        loc: the outer location; may be empty.
    """
    full_loc = join_loc(loc, error.loc)
    message = _without_loc(error)
    copy = type(error)(f"{full_loc}: {message}" if full_loc else message)
    copy.loc = full_loc
    copy.__cause__ = error.__cause__
    return copy


def _without_loc(error: OptplugError) -> str:
    """The message of an error without the location at its beginning."""
    return str(error).removeprefix(f"{error.loc}: ") if error.loc else str(error)


def _locs(node: Any, loc: str = "", depth: int = 0) -> Iterator[str]:
    """The locations of all values in nested mappings and lists, in their order."""
    yield loc
    keys: Iterable[Any] = ()
    if depth < MAX_LOC_DEPTH and isinstance(node, Mapping):
        keys = list(node)
    elif depth < MAX_LOC_DEPTH and isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        keys = range(len(node))
    for key in keys:
        child_loc = join_loc(loc, str(key) if isinstance(node, Mapping) else f"[{key}]")
        try:
            child = node[key]
        except Exception:  # an unreadable value, such as an unresolvable interpolation, has its own error
            child = None
        yield from _locs(child, child_loc, depth + 1)


def join_loc(loc: str, inner: str) -> str:
    """Join an outer and an inner location.

    `optimizer` and `lr` give `optimizer.lr`; `param_groups` and `[0]` give `param_groups[0]`.
    """
    dot = "." if loc and inner and not inner.startswith("[") else ""
    return f"{loc}{dot}{inner}"


@contextmanager
def third_party_errors(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Wrap exceptions raised by third-party constructors.

    Args:
        name: of the optimizer or scheduler, for the message.
        arguments: the constructor arguments, for the message.

    Raises:
        ConfigTypeError: in place of a TypeError.
        ConfigError: in place of a ValueError, LookupError or ArithmeticError.
    """
    try:
        yield
    except OptplugError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        kind = ConfigTypeError if isinstance(error, TypeError) else ConfigError
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items()) or "its defaults"
        raise kind(f"{name} rejected {given}: {error}") from error
