"""Everything that is wrong with a configuration, gathered so that it can be said at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from optplug.errors import ConfigError, ConfigErrors, ConfigTypeError, OptplugError, with_loc


class ErrorCollector:
    """What was found wrong so far, each with its place in the configuration."""

    def __init__(self) -> None:
        self.errors: list[OptplugError] = []

    def add(self, error: OptplugError, loc: str) -> None:
        """Remember an error. One that has a place already keeps it, as part of this one."""
        if isinstance(error, ConfigErrors):
            for each in error.errors:
                self.add(each, loc)
        else:
            self.errors.append(prefix_loc(error, loc))

    def collect(self, loc: str) -> _Collecting:
        """A context that remembers what its block raises, and goes on after it."""
        return _Collecting(self, loc)

    def sort(self, config: Any) -> None:
        """Put what was found in the order of the configuration that it is about."""
        order = {loc: i for i, loc in enumerate(_locs(config))}
        for i, error in enumerate(self.errors):  # what stands under args is looked at without it
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
        """Raise what was found: one error as itself, several as `ConfigErrors`."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigErrors(self.errors)


@dataclass
class _Collecting:
    collector: ErrorCollector
    loc: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, OptplugError):
            self.collector.add(error, self.loc)
        return isinstance(error, OptplugError)


def prefix_loc(error: OptplugError, loc: str) -> OptplugError:
    """The same error with a place: its message begins with it."""
    where = join_loc(loc, error.loc)
    says = _without_loc(error)
    found = type(error)(f"{where}: {says}" if where else says)
    found.loc = where
    found.__cause__ = error.__cause__
    return found


def _without_loc(error: OptplugError) -> str:
    """What an error says without its place."""
    return str(error).removeprefix(f"{error.loc}: ") if error.loc else str(error)


def _locs(node: Any, loc: str = "", depth: int = 0) -> Iterator[str]:
    """The places of everything in mappings and lists, in their order."""
    yield loc
    keys: Iterable[Any] = ()
    if depth < 10 and isinstance(node, Mapping):
        keys = list(node)
    elif depth < 10 and isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        keys = range(len(node))
    for key in keys:
        where = join_loc(loc, str(key) if isinstance(node, Mapping) else f"[{key}]")
        try:
            child = node[key]
        except Exception:  # a value that cannot be read is among the complaints
            child = None
        yield from _locs(child, where, depth + 1)


def join_loc(loc: str, inner: str) -> str:
    """`optimizer` and `lr` -> `optimizer.lr`; `param_groups` and `[0]` -> `param_groups[0]`."""
    dot = "." if loc and inner and not inner.startswith("[") else ""
    return f"{loc}{dot}{inner}"


@contextmanager
def third_party_errors(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Make one of our errors of what a class of somebody else's says to its arguments."""
    try:
        yield
    except OptplugError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        kind = ConfigTypeError if isinstance(error, TypeError) else ConfigError
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items()) or "its defaults"
        raise kind(f"{name} refused {given}: {error}") from error
