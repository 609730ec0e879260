"""The constructor arguments of a registered class that a configuration can set: types, defaults, descriptions."""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from optplug.registry import Registration, registry

EXCLUDED_ARGUMENTS = ("params", "optimizer", "last_epoch")
"""Constructor arguments that optplug passes itself. A configuration cannot set them."""

_KEYWORD_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Argument:
    """One constructor argument that a configuration can set.

    Attributes:
        name: the name in the constructor.
        type: the annotation without `Tensor`, since a configuration cannot hold tensors. `Any` without annotation.
        default: the default value; `inspect.Parameter.empty` for a required argument.
        description: the text of the docstring's `Args:` section, on one line; empty if the argument is undocumented.
    """

    name: str
    type: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def configurable_arguments(registration: Registration) -> dict[str, inspect.Parameter]:
    """Return the constructor arguments that a configuration can set, by name.

    Raises:
        PluginError: the class cannot be loaded.
    """
    return constructor_arguments(registry.get(registration.spec.kind, registration.qualified_name))[0]


def constructor_arguments(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the constructor arguments that a configuration can set, and whether the class rejects all others.

    A constructor with `**options` is assumed to pass them to its base class. The base class's arguments that have a
    default are then included. If the last constructor also has `**options`, the class may accept further arguments.
    """
    found = _arguments_by_name(cls)
    return {name: p for name, (p, _) in found.items()}, not _accepts_any_argument(cls)


def documented_arguments(registration: Registration) -> list[Argument]:
    """Return the arguments of `configurable_arguments` with types and descriptions, in the order of the constructor.

    Raises:
        PluginError: the class cannot be loaded.
    """
    cls = registry.get(registration.spec.kind, registration.qualified_name)
    descriptions = _descriptions(cls)
    found = []
    for name, (p, base) in _arguments_by_name(cls).items():
        found.append(
            Argument(name, _without_tensors(_hints(base).get(name, Any)), p.default, descriptions.get(name, ""))
        )
    return found


def _constructors(cls: type) -> list[type]:
    """Return the first class of the MRO with a constructor, and further ones as long as each takes `**options`."""
    reached = []
    for base in (c for c in cls.__mro__ if "__init__" in vars(c)):
        reached.append(base)
        if not _has_var_keyword(base):
            break
    return reached


def _has_var_keyword(base: type) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(vars(base)["__init__"]).parameters.values())


def _accepts_any_argument(cls: type) -> bool:
    return all(_has_var_keyword(base) for base in _constructors(cls))


def _arguments_by_name(cls: type) -> dict[str, tuple[inspect.Parameter, type]]:
    """Return each argument with the class whose constructor declares it."""
    found: dict[str, tuple[inspect.Parameter, type]] = {}
    for depth, base in enumerate(_constructors(cls)):
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())
        for p in parameters[2:]:  # skips self, and the parameters or the optimizer
            # A derived class passes the required arguments of its base class itself.
            passed_by_subclass = depth and p.default is p.empty
            if p.kind in _KEYWORD_KINDS and p.name not in EXCLUDED_ARGUMENTS and not passed_by_subclass:
                found.setdefault(p.name, (p, base))
    return found


def _hints(base: type) -> dict[str, Any]:
    """Return the types of a constructor's arguments; no types if the annotations cannot be resolved."""
    try:
        return typing.get_type_hints(vars(base)["__init__"])
    except Exception:  # evaluating third-party annotations can raise anything
        return {}


def _without_tensors(hint: Any) -> Any:
    """Remove `Tensor` from unions, also inside tuples: `float | Tensor` -> `float`."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kept = [_without_tensors(part) for part in parts if not _is_tensor(part)]
        return typing.Union[tuple(kept)] if kept else Any  # noqa: UP007  # built at run time
    if typing.get_origin(hint) is tuple and parts:
        return tuple[tuple(part if part is ... else _without_tensors(part) for part in parts)]  # type: ignore[misc]
    return Any if _is_tensor(hint) else hint


def _is_tensor(hint: Any) -> bool:
    # Compared by name: this file does not import torch.
    return (getattr(hint, "__module__", ""), getattr(hint, "__name__", "")) == ("torch", "Tensor")


_REFERENCE = re.compile(r"as in `?\.?[\w.]+`?\.?")


def _descriptions(cls: type) -> dict[str, str]:
    """Return the descriptions of arguments from the docstrings of a class and its bases.

    A description such as "as in `Base`" is skipped, so that the description in the base class is used.
    """
    found: dict[str, str] = {}
    for base in cls.__mro__:
        for name, description in _args_section(vars(base).get("__doc__") or "").items():
            if not _REFERENCE.fullmatch(description):
                found.setdefault(name, description)
    return found


def _args_section(doc: str) -> dict[str, str]:
    """Return the entries of a docstring's `Args:` section by argument; `a, b: ...` is one entry for two arguments."""
    from docstring_parser import parse  # imported here because only help texts and schemas need it

    found: dict[str, str] = {}
    for entry in parse(doc).params:
        for name in entry.arg_name.split(","):
            found[name.strip()] = " ".join((entry.description or "").split())
    return found
