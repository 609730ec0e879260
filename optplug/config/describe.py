"""Description of a registered optimizer, scheduler or function, as plain text for a terminal."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from optplug.optim.ranges import Range, declared_ranges
from optplug.registry import Registration, registry
from optplug.registry.signature import Argument, documented_arguments
from optplug.registry.specs import API_VERSION, FunctionSpec, SchedulerSpec

WIDTH = 100
"""Maximum number of columns of an argument's description."""


def describe_registration(registration: Registration) -> str:
    """A text with the origin, the capabilities, the arguments and the documentation of a registered class or function.

    Args:
        registration: what is described. Its class or function is loaded.

    Raises:
        PluginError: the class or function cannot be loaded.
    """
    target = registry.get(registration.spec.kind, registration.qualified_name)
    doc = _without_args_section(inspect.getdoc(target) or "no documentation")
    return "\n".join(
        [
            *_header_lines(registration, target),
            "",
            *_key_lines(registration),
            *_argument_lines(registration, target),
            doc,
        ]
    )


# ------------------------------------------------------------------------------------------ header


def _header_lines(registration: Registration, target: Any) -> Iterator[str]:
    spec = registration.spec
    yield f"{registration.name}: {spec.summary}" if spec.summary else registration.name
    facts = {
        "kind": spec.kind,
        "class" if isinstance(target, type) else "function": _qualified_name(target),
        "plugin": str(registration.plugin),
        "plugin API": f"{spec.api_version} (this optplug supports {API_VERSION})",
        "capabilities": "; ".join(f"{c}: {spec.CAPABILITIES[c]}" for c in sorted(spec.capabilities)) or "none declared",
    }
    if isinstance(spec, SchedulerSpec):
        facts["interval"] = "validation" if "metric" in spec.capabilities else spec.interval
    if spec.package:
        facts["package"] = str(registration.source)
    if others := _other_names(registration):
        facts["other plugins"] = ", ".join(others)
    for key, value in facts.items():
        yield f"  {key:<13} {value}"
    if spec.unsupported:
        yield f"  cannot be used: {spec.unsupported}"


def _other_names(registration: Registration) -> list[str]:
    """The names of other plugins, if the name alone means this registration."""
    kind, name = registration.spec.kind, registration.name
    means_it = registry.named_registrations(kind, registration.qualified_name)[0][0] == name
    return registry.alternatives(kind, name) if means_it else []


def _qualified_name(target: Any) -> str:
    """The module and name of a class or function; for a callable object, those of its class."""
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}.{named.__qualname__}"


# ------------------------------------------------------------------------------------------ arguments


def _argument_lines(registration: Registration, target: Any) -> Iterator[str]:
    is_function = isinstance(registration.spec, FunctionSpec)
    arguments = _function_arguments(target) if is_function else documented_arguments(registration)
    ranges = {} if is_function else declared_ranges(target)
    if not arguments:
        return
    rows = [("argument", "type", "default")]
    rows += [(a.name, type_text(a.type), _default_text(a)) for a in arguments]
    name_width, type_width = (max(len(row[i]) for row in rows if len(row[i]) <= 40) for i in (0, 1))
    lines = []
    for name, type_, default in rows:
        # After a longer type, the default is in its column of the next line.
        gap = "  " if len(type_) <= type_width or not default else "\n" + " " * (name_width + type_width + 4)
        lines.append(f"{name:<{name_width}}  {type_:<{type_width}}{gap}{default}")
    yield lines[0]
    for argument, line in zip(arguments, lines[1:], strict=True):
        yield line
        text = argument_text(argument, ranges.get(argument.name))
        yield from _indented(f"{text}{'' if is_function else _length_text(registration, argument.name)}")
    yield ""


def _length_text(registration: Registration, name: str) -> str:
    """What a configuration accepts for an argument that is a length; empty for other arguments."""
    from optplug.config.lengths import length_argument, length_arguments  # local imports: they import torch

    if name not in length_arguments(registration):
        return ""
    auto = "auto, " if name == length_argument(registration) else ""
    return f" In a configuration also {auto}{{steps: n}}, {{epochs: x}} or {{ratio: x}}."


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _default_text(argument: Argument) -> str:
    if argument.required:
        return "required"
    return "" if argument.default is ... else repr(argument.default)  # `...`: an option with an unknown default


def _key_lines(registration: Registration) -> Iterator[str]:
    """A table of the keys that an optimizer or a scheduler has in a configuration beside its arguments."""
    if isinstance(registration.spec, FunctionSpec):
        return
    from optplug.config import arguments  # a local import: it imports torch, `optplug list` does not

    is_scheduler = isinstance(registration.spec, SchedulerSpec)
    known = (arguments.scheduler_fields if is_scheduler else arguments.optimizer_fields)(registration)
    fields = [field for field in known.values() if field.name not in ("name", "args")]
    if not fields:
        return
    rows = [("key in a configuration", "value", "default")]
    rows += [(f.name, str(f.kind), "" if f.default is None else str(f.default)) for f in fields]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines = [f"{key:<{widths[0]}}  {value:<{widths[1]}}  {default}".rstrip() for key, value, default in rows]
    yield lines[0]
    for field, line in zip(fields, lines[1:], strict=True):
        yield line
        yield from _indented(field.plain_words)
    yield ""


def _function_arguments(function: Any) -> list[Argument]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions that are written in C have no signature
        return []
    return [Argument(p.name, Any if p.annotation is p.empty else p.annotation, p.default, "") for p in parameters]


def argument_text(argument: Argument, range_: Range | None) -> str:
    """An argument's description, followed by its range if it has one."""
    description = argument.description
    if range_ is None:
        return description
    stop = "" if not description or description.endswith(".") else "."
    each = "each " if isinstance(argument.default, tuple) else ""
    return f"{description}{stop} Allowed: {each}{range_.words}.".strip()


def type_text(hint: Any) -> str:
    """A type in the notation of source code; empty for `Any`."""
    parts = typing.get_args(hint)
    if hint is Any:
        return ""
    if hint is None or hint is type(None):
        return "None"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(type_text(part) for part in parts)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, parts))
    if isinstance(hint, str):
        return hint
    return re.sub(r"\b(typing|collections\.abc)\.", "", inspect.formatannotation(hint))


# ------------------------------------------------------------------------------------------ documentation


def _without_args_section(doc: str) -> str:
    """A docstring without its section `Args`."""
    kept, inside = [], False
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Arguments):\s*", line):
            inside = True
        elif line[:1].strip():
            inside = False
        if not inside:
            kept.append(line)
    return "\n".join(kept).strip()


def encodable(text: str, stream: Any) -> str:
    """A text with replacements for the characters that the encoding of a stream does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
