"""Interpolations (`${...}`) in configuration files: resolved one by one, as far as the file itself allows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from optplug.config.fields import Unresolved
from optplug.config.plain_data import MAX_NESTING_DEPTH
from optplug.errors import ConfigError, Loc, one_line

MANDATORY = "???"
"""A value that Hydra requires on the command line or in another file."""


class UnresolvedInterpolation(Unresolved):
    """The text of an interpolation that cannot be resolved.

    Attributes:
        reason: why not.
        is_fault: whether it is a mistake; False if other files, the environment or the training program can resolve it.
    """

    reason: str
    is_fault: bool

    @property
    def message(self) -> str:
        """What is not known, and why."""
        return f"not set: {self.reason}" if self == MANDATORY else f"{self} cannot be resolved: {self.reason}"

    def __new__(cls, text: str, reason: str, *, is_fault: bool = False) -> UnresolvedInterpolation:
        made = super().__new__(cls, text)
        made.reason, made.is_fault = reason, is_fault
        return made


def resolve_interpolations(data: Any) -> Any:
    """The content of a file with resolved interpolations; the others become `UnresolvedInterpolation`.

    Args:
        data: mappings, lists and scalars.

    Raises:
        ConfigError: a value contains itself.
    """
    try:
        from omegaconf import OmegaConf
    except ModuleNotFoundError:
        return _replace(data, "interpolations need omegaconf: pip install omegaconf")
    try:
        config = OmegaConf.create(_readable(data))
    except RecursionError:
        raise ConfigError("is nested too deeply, or contains itself") from None
    except Exception as error:  # OmegaConf raises many types of exceptions, such as for keys of an unsupported type
        return _replace(data, one_line(error))
    return _resolve(data, config, list(_paths(data)))


def unresolved_values(value: Any, loc: Loc = ()) -> Iterator[tuple[Loc, UnresolvedInterpolation]]:
    """The interpolations in a value that are not resolved, each with its location."""
    if isinstance(value, UnresolvedInterpolation):
        yield loc, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from unresolved_values(item, (*loc, str(key)))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from unresolved_values(item, (*loc, i))


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and ("${" in value or value == MANDATORY)


def _replace(data: Any, reason: str) -> Any:
    """The data in which every interpolation is unresolved, for one reason."""
    if isinstance(data, dict):
        return {key: _replace(value, reason) for key, value in data.items()}
    if isinstance(data, list):
        return [_replace(value, reason) for value in data]
    return UnresolvedInterpolation(data, reason) if _is_interpolation(data) else data


def _readable(data: Any, depth: int = 0) -> Any:
    """The data in which values that OmegaConf does not accept, such as dates, are replaced by their text."""
    if depth > MAX_NESTING_DEPTH:
        raise RecursionError
    if isinstance(data, dict):
        return {key: _readable(value, depth + 1) for key, value in data.items()}
    if isinstance(data, list):
        return [_readable(value, depth + 1) for value in data]
    if _is_interpolation(data):
        return data if _syntax_error(data) is None else ""
    return data if data is None or isinstance(data, (str, int, float, bytes)) else str(data)


def _syntax_error(text: str) -> str | None:
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError

    try:
        OmegaConf.to_container(OmegaConf.create({"value": text}), resolve=True)
    except GrammarParseError as error:
        return one_line(error).partition(" full_key")[0]
    except Exception:  # it cannot be resolved without the rest of the file
        return None
    return None


def _resolve(data: Any, config: Any, paths: list[str], depth: int = 0) -> Any:
    """Data with resolved interpolations.

    Args:
        data: mappings and lists as they are written.
        config: the same data as a container of OmegaConf.
        paths: the dotted keys of the whole file.
        depth: the number of containers around `data`, and of interpolations that were followed.
    """
    if depth > MAX_NESTING_DEPTH:
        raise ConfigError("is nested too deeply, or contains itself")
    if isinstance(data, dict):
        return {key: _resolve_item(value, config, key, paths, depth) for key, value in data.items()}
    return [_resolve_item(value, config, i, paths, depth) for i, value in enumerate(data)]


def _resolve_item(value: Any, config: Any, key: Any, paths: list[str], depth: int) -> Any:
    from omegaconf import OmegaConf

    if isinstance(value, (dict, list)):
        return _resolve(value, config[key], paths, depth + 1)
    if not _is_interpolation(value):
        return value
    syntax_error = _syntax_error(value)
    if syntax_error is not None:
        return UnresolvedInterpolation(value, syntax_error, is_fault=True)
    try:
        found = config[key]
    except Exception as error:  # OmegaConf raises many types of exceptions
        return _unresolved(value, error, paths)
    if OmegaConf.is_config(found):
        return _resolve(OmegaConf.to_container(found, resolve=False), found, paths, depth + 1)
    return UnresolvedInterpolation(found, "the interpolation has no value") if found == MANDATORY else found


def _unresolved(text: str, error: Exception, paths: list[str]) -> UnresolvedInterpolation:
    if text == MANDATORY:
        return UnresolvedInterpolation(text, "it must be set in another file or on the command line")
    message = str(error).partition("\n")[0]
    missing = re.fullmatch(r"Interpolation key '(.+)' not found", message)
    if missing:
        others = [path for path in paths if not missing[1].startswith(f"{path}.")]
        near = difflib.get_close_matches(missing[1], others, 1, cutoff=0.8)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return UnresolvedInterpolation(text, f"the file has no {missing[1]}{hint}")
    unknown = re.fullmatch(r"Unsupported interpolation type (.+)", message)
    if unknown:
        return UnresolvedInterpolation(text, f"the training program defines the resolver {unknown[1]}")
    reason = re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", message)
    return UnresolvedInterpolation(text, reason[:1].lower() + reason[1:], is_fault="ecursive" in reason)


def _paths(data: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """The dotted keys of nested mappings."""
    if isinstance(data, dict) and depth <= MAX_NESTING_DEPTH:
        for key, value in data.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            yield path
            yield from _paths(value, path, depth + 1)
