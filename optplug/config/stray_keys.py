"""Keys beside those of a configuration that belong inside `optimizer` or `scheduler`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from optplug.config.dialects import foreign_key_hint, top_level_key, warmup_form
from optplug.config.form import OVERRIDE, SCHEDULER, TABLES, TOP_LEVEL
from optplug.config.lengths import length_argument
from optplug.errors import OptplugError, suggest
from optplug.registry import Registration, registry
from optplug.registry.signature import configurable_arguments


def owner_of(key: str, given: Mapping[str, Any]) -> str | None:
    """`"optimizer"` or `"scheduler"` if a key beside them is one of its arguments or keys; else None.

    Args:
        key: a key of `given`.
        given: a mapping with the keys of a configuration and others.
    """
    if key in (*TOP_LEVEL, OVERRIDE.name):
        return None
    if key == "name":
        return next((kind for kind in TABLES if given.get(kind) is None and _resolve(kind, given[key])), None)
    for kind in TABLES:
        arguments, written = _arguments(kind, given), given.get(kind)
        if key in arguments and not (isinstance(written, Mapping) and key in written):
            return kind
    is_of_scheduler = "scheduler" in given and key in SCHEDULER and key != "args"
    return "scheduler" if is_of_scheduler or warmup_form(key, given[key]) else None


def stray_key_hint(key: str, given: Mapping[str, Any]) -> str:
    """The end of a message about a key that a configuration does not have: where it belongs, or the nearest key.

    Args:
        key: a key of `given`.
        given: a mapping with the keys of a configuration and others.
    """
    owner = owner_of(key, given)
    if owner is not None:
        registration = _registration(owner, given)
        name = "..." if registration is None else registration.name
        argument = "" if key == "name" else f", {warmup_form(key, given[key]) or f'{key}: ...'}"
        return f"; it belongs to {owner}: write {owner}: {{name: {name}{argument}}}"
    meant = top_level_key(key)
    if meant is not None:
        return f"; did you mean {meant!r}?"
    for kind, fields in TABLES.items():
        hint = ""
        registration = _registration(kind, given)
        if registration is not None:
            arguments, length = _arguments(kind, given), length_argument(registration)
            hint = foreign_key_hint(kind, key, given[key], arguments=arguments, keys=fields, length=length)
        if "did you mean" in hint:
            return f"; it belongs to {kind}{hint}"
    return suggest(key, TOP_LEVEL)


def _arguments(kind: str, given: Mapping[str, Any]) -> list[str]:
    """The arguments of the optimizer or the scheduler; empty if its name is not known."""
    registration = _registration(kind, given)
    with suppress(OptplugError):
        return [] if registration is None else list(configurable_arguments(registration))
    return []


def _registration(kind: str, given: Mapping[str, Any]) -> Registration | None:
    """What the name under a kind stands for; if nothing is written there, the name beside it."""
    written = given.get("name") if given.get(kind) is None else given[kind]
    return _resolve(kind, written.get("name") if isinstance(written, Mapping) else written)


def _resolve(kind: str, name: Any) -> Registration | None:
    with suppress(OptplugError):
        return registry.resolve(kind, name) if isinstance(name, str) else None
    return None
