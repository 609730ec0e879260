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
    doc = render_math(_without_args_section(inspect.getdoc(target) or "no documentation"))
    return "\n".join([*_header_lines(registration, target), "", *_argument_lines(registration, target), doc])


# ------------------------------------------------------------------------------------------ header


def _header_lines(registration: Registration, target: Any) -> Iterator[str]:
    spec = registration.spec
    yield f"{registration.name}: {spec.summary}" if spec.summary else registration.name
    facts = {
        "kind": spec.kind,
        spec.target_nouns[0]: _qualified_name(target),
        "plugin": str(registration.plugin),
        "plugin API": f"{spec.api_version} (this optplug supports {API_VERSION})",
        "capabilities": "; ".join(f"{c}: {spec.CAPABILITIES[c]}" for c in sorted(spec.capabilities)) or "none declared",
    }
    if isinstance(spec, SchedulerSpec):
        facts["interval"] = spec.interval
        if "metric" in spec.capabilities:
            facts |= {"interval": "validation", **_metric_options(target)}
    for key, value in facts.items():
        yield f"  {key:<13} {value}"


def _metric_options(target: Any) -> dict[str, str]:
    """The allowed values of the configuration keys for a scheduler that takes a metric, for each key."""
    from optplug.config.form import ON_NONFINITE, PATIENCE_UNITS  # a local import: it imports torch, `list` does not

    units = PATIENCE_UNITS if callable(getattr(target, "at", None)) else PATIENCE_UNITS[:1]
    choices = {"patience_unit": units, "on_nonfinite": ON_NONFINITE}
    return {key: f"{' | '.join(values)} (default: {values[0]})" for key, values in choices.items()}


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
    rows += [(a.name, type_text(a.type), "required" if a.required else repr(a.default)) for a in arguments]
    name_width, type_width = (max(len(row[i]) for row in rows if len(row[i]) <= 40) for i in (0, 1))
    lines = [f"{name:<{name_width}}  {type_:<{type_width}}  {default}" for name, type_, default in rows]
    yield lines[0]
    for argument, line in zip(arguments, lines[1:], strict=True):
        yield line
        text = argument_text(argument, ranges.get(argument.name))
        yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    yield ""


def _function_arguments(function: Any) -> list[Argument]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions that are written in C have no signature
        return []
    return [Argument(p.name, Any if p.annotation is p.empty else p.annotation, p.default, "") for p in parameters]


def argument_text(argument: Argument, range_: Range | None) -> str:
    """An argument's description, followed by its range if it has one."""
    description = render_math(argument.description)
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


_OPEN, _CLOSE, _GAP = "\ue000", "\ue001", "\ue002"
"""Placeholders for braces that appear in the result, and for wide space."""

_SYMBOLS = {
    "Delta": "Δ",
    "alpha": "α",  # noqa: RUF001
    "beta": "β",
    "delta": "δ",
    "epsilon": "ε",
    "eta": "η",
    "gamma": "γ",  # noqa: RUF001
    "lambda": "λ",
    "mu": "μ",
    "pi": "π",
    "rho": "ρ",  # noqa: RUF001
    "tau": "τ",
    "theta": "θ",
    "cos": "cos",
    "max": "max",
    "min": "min",
    "cdot": "·",
    "ge": "≥",
    "le": "≤",
    "leftarrow": "←",
    "lfloor": "⌊",
    "rfloor": "⌋",
    "pm": "±",
    "top": "⊤",  # noqa: RUF001
    "Big": "",
    "big": "",
    "_": "_",
    ",": " ",
    ";": " ",
    "quad": _GAP,
    "qquad": _GAP,
}
"""The LaTeX commands that docstrings use, each with its replacement."""


def render_math(text: str) -> str:
    r"""Replace the LaTeX of a docstring (`:math:` and `.. math::`) by Unicode text for a terminal.

    LaTeX commands that are not in `_SYMBOLS` remain.
    """
    text = re.sub(
        r"^( *)\.\. math::[^\S\n]*\n((?:\1 +\S.*(?:\n|\Z)|[^\S\n]*\n)+)",
        lambda m: _render_tex(m[2].lstrip("\n")),
        text,
        flags=re.MULTILINE,
    )
    return re.sub(r":math:`([^`]*)`", lambda m: " ".join(_render_tex(m[1]).split()), text)


def _render_tex(tex: str) -> str:
    tex = tex.replace(r"\{", _OPEN).replace(r"\}", _CLOSE)
    tex = re.sub(r"\\tfrac(\d)(\d)", r"\1/\2", tex)
    rules: tuple[tuple[str, Any], ...] = (
        (r"([_^])\{(\w+)\}", r"\1\2"),
        (r"([_^])\{([^{}]*)\}", rf"\1{_OPEN}\2{_CLOSE}"),
        (r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1"),
        (r"\\sqrt\{([^{}]*)\}", lambda m: f"√{_parenthesize(m[1])}"),
        (r"\\frac\{([^{}]*)\}\{([^{}]*)\}", lambda m: f"({_parenthesize(m[1])} / {_parenthesize(m[2])})"),
    )
    before = ""
    while before != tex:  # each pass replaces the innermost braces
        before = tex
        for pattern, replacement in rules:
            tex = re.sub(pattern, replacement, tex)
    tex = re.sub(r"\\([A-Za-z]+|[_,;])", lambda m: _SYMBOLS.get(m[1], m[0]), tex)
    tex = re.sub(r"\\bar\s*(\w)", "\\1\u0304", tex)
    tex = re.sub(r"(?<=[⌊(]) +| +(?=[⌋)])", "", tex)
    tex = re.sub(rf"[^\S\n]*{_GAP}[^\S\n]*", _GAP, re.sub(r"(?<=\S)[^\S\n]+", " ", tex))
    tex = re.sub(r"[^\S\n]+$", "", tex.replace(_GAP, "    "), flags=re.MULTILINE)
    return tex.replace(_OPEN, "{").replace(_CLOSE, "}")


def _parenthesize(tex: str) -> str:
    """The operand in parentheses, unless it is a single symbol or number."""
    return tex if re.fullmatch(r"[^\s+/-]+|[\\\w^]+", tex) else f"({tex})"
