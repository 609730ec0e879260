"""What the class behind a name takes from a configuration: arguments, their types, defaults and documented words."""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from optplug.registry import Registration, registry

SUPPLIED = ("params", "optimizer", "last_epoch")
"""Constructor arguments that the wiring supplies."""

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Argument:
    """One argument that a configuration may set.

    Attributes:
        name: as in the constructor. type: its annotation without `Tensor`, which no configuration can hold; `Any` where
            there is none. default: `inspect.Parameter.empty` for one that is required.
        words: what the docstring says about it, on one line; empty where it says nothing.
    """

    name: str
    type: Any
    default: Any
    words: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def configurable(registration: Registration) -> dict[str, inspect.Parameter]:
    """The constructor arguments a configuration may set, by name.

    Raises:
        PluginError: the class cannot be loaded.
    """
    return constructor(registry.get(registration.spec.kind, registration.qualified))[0]


def constructor(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """The configurable constructor arguments, and whether they are all there are.

    A constructor that takes `**options` hands them to its base class, whose arguments with a default count then.
    """
    found = _owned(cls)
    return {name: p for name, (p, _) in found.items()}, not _is_open(cls)


def documented(registration: Registration) -> list[Argument]:
    """The arguments of `configurable`, with types and words, in the order of the constructor.

    Raises:
        PluginError: the class cannot be loaded.
    """
    cls = registry.get(registration.spec.kind, registration.qualified)
    words = _words(cls)
    found = []
    for name, (p, base) in _owned(cls).items():
        found.append(Argument(name, _without_tensors(_hints(base).get(name, Any)), p.default, words.get(name, "")))
    return found


def _constructors(cls: type) -> list[type]:
    """The classes whose constructors see the arguments: the first, and further ones as long as `**options` go on."""
    reached = []
    for base in (c for c in cls.__mro__ if "__init__" in vars(c)):
        reached.append(base)
        if not _takes_options(base):
            break
    return reached


def _takes_options(base: type) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(vars(base)["__init__"]).parameters.values())


def _is_open(cls: type) -> bool:
    return all(_takes_options(base) for base in _constructors(cls))


def _owned(cls: type) -> dict[str, tuple[inspect.Parameter, type]]:
    """Each argument and the class whose constructor has it."""
    found: dict[str, tuple[inspect.Parameter, type]] = {}
    for depth, base in enumerate(_constructors(cls)):
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())
        for p in parameters[2:]:  # after self and the parameters, or self and the optimizer
            inherited = depth and p.default is p.empty  # the class itself gives it
            if p.kind in _NAMED and p.name not in SUPPLIED and not inherited:
                found.setdefault(p.name, (p, base))
    return found


def _hints(base: type) -> dict[str, Any]:
    """The types of a constructor's arguments; a stranger's annotations may name what is not there."""
    try:
        return typing.get_type_hints(vars(base)["__init__"])
    except Exception:  # whatever evaluating a stranger's annotations raises
        return {}


def _without_tensors(hint: Any) -> Any:
    """`float | Tensor` -> `float`, in tuples too."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kept = [_without_tensors(part) for part in parts if not _is_tensor(part)]
        return typing.Union[tuple(kept)] if kept else Any  # noqa: UP007  # made at run time
    if typing.get_origin(hint) is tuple and parts:
        return tuple[tuple(part if part is ... else _without_tensors(part) for part in parts)]  # type: ignore[misc]
    return Any if _is_tensor(hint) else hint


def _is_tensor(hint: Any) -> bool:
    # Not by identity: this file does not import torch.
    return (getattr(hint, "__module__", ""), getattr(hint, "__name__", "")) == ("torch", "Tensor")


_REFERENCE = re.compile(r"as in `?\.?[\w.]+`?\.?")


def _words(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say about arguments; `as in` a base hands the question on to it."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        for name, words in _args_section(vars(base).get("__doc__") or "").items():
            if not _REFERENCE.fullmatch(words):
                found.setdefault(name, words)
    return found


def _args_section(doc: str) -> dict[str, str]:
    """The entries of a docstring's `Args:`, by argument; several may share one entry (`a, b: ...`)."""
    from docstring_parser import parse  # only help and editors ask

    found: dict[str, str] = {}
    for entry in parse(doc).params:
        for name in entry.arg_name.split(","):
            found[name.strip()] = " ".join((entry.description or "").split())
    return found
