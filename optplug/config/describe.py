"""What there is to know about one name, as plain text for a terminal."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from optplug.optim.ranges import Range, declared
from optplug.registry import Registration, registry
from optplug.registry.signature import Argument, documented
from optplug.registry.specs import API_VERSION, FunctionSpec, SchedulerSpec

WIDTH = 100


def explain(registration: Registration) -> str:
    """Where a name comes from, what it can do, its arguments and its documentation.

    Raises:
        PluginError: what is behind the name cannot be loaded.
    """
    found = registry.get(registration.spec.kind, registration.qualified)
    doc = readable(_without_arguments(inspect.getdoc(found) or "no documentation"))
    return "\n".join([*_facts(registration, found), "", *_arguments(registration, found), doc])


# ------------------------------------------------------------------------------------------ where it comes from


def _facts(registration: Registration, found: Any) -> Iterator[str]:
    spec = registration.spec
    yield f"{registration.name}: {spec.summary}" if spec.summary else registration.name
    facts = {
        "kind": spec.kind,
        spec.thing[0]: _path(found),
        "plugin": str(registration.plugin),
        "plugin API": f"{spec.api_version} (this optplug speaks {API_VERSION})",
        "capabilities": "; ".join(f"{c}: {spec.CAPABILITIES[c]}" for c in sorted(spec.capabilities)) or "none declared",
    }
    if isinstance(spec, SchedulerSpec):
        facts["interval"] = spec.interval
        if "metric" in spec.capabilities:
            facts |= {"interval": "validation", **_hearing(found)}
    for key, value in facts.items():
        yield f"  {key:<13} {value}"


def _hearing(found: Any) -> dict[str, str]:
    """What a configuration may say of how a scheduler hears its metric."""
    from optplug.config.model import ON_NONFINITE, PATIENCE_UNITS  # it loads torch, which listing does without

    units = PATIENCE_UNITS if callable(getattr(found, "at", None)) else PATIENCE_UNITS[:1]
    choices = {"patience_unit": units, "on_nonfinite": ON_NONFINITE}
    return {key: f"{' | '.join(values)} (default: {values[0]})" for key, values in choices.items()}


def _path(found: Any) -> str:
    """Where a class or function is; an object that can be called stands for its class."""
    named = found if hasattr(found, "__qualname__") else type(found)
    return f"{named.__module__}.{named.__qualname__}"


# -------------------------------------------------------------------------------------------------- arguments


def _arguments(registration: Registration, found: Any) -> Iterator[str]:
    is_function = isinstance(registration.spec, FunctionSpec)
    arguments = _of_function(found) if is_function else documented(registration)
    ranges = {} if is_function else declared(found)
    if not arguments:
        return
    rows = [("argument", "type", "default")]
    rows += [(a.name, type_words(a.type), "required" if a.required else repr(a.default)) for a in arguments]
    names, kinds = (max(len(row[i]) for row in rows if len(row[i]) <= 40) for i in (0, 1))
    lines = [f"{name:<{names}}  {kind:<{kinds}}  {default}" for name, kind, default in rows]
    yield lines[0]
    for argument, line in zip(arguments, lines[1:], strict=True):
        yield line
        words = described(argument, ranges.get(argument.name))
        yield from textwrap.wrap(words, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    yield ""


def _of_function(found: Any) -> list[Argument]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # some functions written in C do not tell
        return []
    return [Argument(p.name, Any if p.annotation is p.empty else p.annotation, p.default, "") for p in parameters]


def described(argument: Argument, range_: Range | None) -> str:
    """An argument's words and its range."""
    words = readable(argument.words)
    if range_ is None:
        return words
    several = "each " if isinstance(argument.default, tuple) else ""
    return f"{words}{'' if not words or words.endswith('.') else '.'} Allowed: {several}{range_.words}.".strip()


def type_words(hint: Any) -> str:
    """A type as a person writes it; nothing for `Any`."""
    parts = typing.get_args(hint)
    if hint is Any:
        return ""
    if hint is None or hint is type(None):
        return "None"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(type_words(part) for part in parts)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, parts))
    if isinstance(hint, str):
        return hint
    return re.sub(r"\b(typing|collections\.abc)\.", "", inspect.formatannotation(hint))


# ---------------------------------------------------------------------------------------------- documentation


def _without_arguments(doc: str) -> str:
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
"""Braces that are to be seen, and wide space."""

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
"""The commands of LaTeX that docstrings use."""


def readable(text: str) -> str:
    r"""Text of a docstring with its mathematics as a terminal can show it: `:math:` and `.. math::`.

    A command that is not known stays as it is.
    """
    text = re.sub(
        r"^( *)\.\. math::[^\S\n]*\n((?:\1 +\S.*(?:\n|\Z)|[^\S\n]*\n)+)",
        lambda m: _mathematics(m[2].lstrip("\n")),
        text,
        flags=re.MULTILINE,
    )
    return re.sub(r":math:`([^`]*)`", lambda m: " ".join(_mathematics(m[1]).split()), text)


def _mathematics(tex: str) -> str:
    tex = tex.replace(r"\{", _OPEN).replace(r"\}", _CLOSE)
    tex = re.sub(r"\\tfrac(\d)(\d)", r"\1/\2", tex)
    rules: tuple[tuple[str, Any], ...] = (
        (r"([_^])\{(\w+)\}", r"\1\2"),
        (r"([_^])\{([^{}]*)\}", rf"\1{_OPEN}\2{_CLOSE}"),
        (r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1"),
        (r"\\sqrt\{([^{}]*)\}", lambda m: f"√{_grouped(m[1])}"),
        (r"\\frac\{([^{}]*)\}\{([^{}]*)\}", lambda m: f"({_grouped(m[1])} / {_grouped(m[2])})"),
    )
    before = ""
    while before != tex:  # from the innermost braces out
        before = tex
        for pattern, replacement in rules:
            tex = re.sub(pattern, replacement, tex)
    tex = re.sub(r"\\([A-Za-z]+|[_,;])", lambda m: _SYMBOLS.get(m[1], m[0]), tex)
    tex = re.sub(r"\\bar\s*(\w)", "\\1\u0304", tex)
    tex = re.sub(r"(?<=[⌊(]) +| +(?=[⌋)])", "", tex)
    tex = re.sub(rf"[^\S\n]*{_GAP}[^\S\n]*", _GAP, re.sub(r"(?<=\S)[^\S\n]+", " ", tex))
    tex = re.sub(r"[^\S\n]+$", "", tex.replace(_GAP, "    "), flags=re.MULTILINE)
    return tex.replace(_OPEN, "{").replace(_CLOSE, "}")


def _grouped(tex: str) -> str:
    return tex if re.fullmatch(r"[^\s+/-]+|[\\\w^]+", tex) else f"({tex})"
