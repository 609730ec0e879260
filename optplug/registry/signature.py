"""Constructor arguments of registered classes: the complete signature, types, defaults, descriptions."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from optplug.registry import Registration, registry

EXCLUDED_ARGUMENTS = ("params", "optimizer", "last_epoch")
"""Constructor arguments that optplug passes itself. A configuration cannot set them."""

_POSITIONAL_KINDS = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_KEYWORD_KINDS = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


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
        return self.default is Parameter.empty


def configurable_arguments(registration: Registration) -> dict[str, Parameter]:
    """Return the constructor arguments that a configuration can set, by name.

    Raises:
        PluginError: the class cannot be loaded.
    """
    return constructor_arguments(registry.get(registration.spec.kind, registration.qualified_name))[0]


def constructor_arguments(cls: type) -> tuple[dict[str, Parameter], bool]:
    """Return the constructor arguments that a configuration can set, and whether the class rejects all others."""
    parameters = list(constructor_signature(cls).parameters.values())
    is_complete = all(p.kind is not p.VAR_KEYWORD for p in parameters)
    if parameters and parameters[0].kind in _POSITIONAL_KINDS:  # the parameters or the optimizer
        del parameters[0]
    found = {p.name: p for p in parameters if p.kind in _KEYWORD_KINDS and p.name not in EXCLUDED_ARGUMENTS}
    return found, is_complete


def function_arguments(cls: type) -> tuple[str, ...]:
    """Return the arguments of a scheduler class that are functions of the epoch: its attribute `functions`."""
    declared = getattr(cls, "functions", ())
    return tuple(declared) if isinstance(declared, (tuple, list)) else ()


def schedule_arguments(cls: type) -> tuple[str, ...]:
    """Return the arguments of a scheduler class that are lists of schedules: its attribute `nested_schedules`.

    Each schedule in such a list is a mapping with its `name`, its `length` and its arguments.
    """
    declared = getattr(cls, "nested_schedules", ())
    return tuple(declared) if isinstance(declared, (tuple, list)) else ()


def documented_arguments(registration: Registration) -> list[Argument]:
    """Return the arguments of `configurable_arguments` with types and descriptions, in the order of the constructor.

    Raises:
        PluginError: the class cannot be loaded.
    """
    cls = registry.get(registration.spec.kind, registration.qualified_name)
    descriptions = _descriptions(cls)
    return [
        Argument(name, configurable_type(p.annotation), p.default, descriptions.get(name, ""))
        for name, p in constructor_arguments(cls)[0].items()
    ]


@functools.lru_cache(maxsize=1024)
def constructor_signature(cls: type) -> inspect.Signature:
    """Return the signature of a class with the arguments that its constructor passes to its base classes.

    A constructor with `**options` is assumed to pass them to the next constructor in the MRO, and a constructor that
    begins with `*args` also positional arguments. `**options` is replaced by the arguments of that constructor which
    have a default; with `**options: Unpack[T]`, by those that are keys of the TypedDict T. `**options` remains if the
    last constructor has it too: the class may then accept further arguments. Annotations are types if they can be
    resolved, and otherwise text.
    """
    constructors = [base for base in cls.__mro__ if "__init__" in vars(base)]
    # The abstract base classes of torch take no options of an algorithm.
    return inspect.Signature(_parameters([base for base in constructors if not _is_abstract_base(base)] or [cls]))


def _is_abstract_base(cls: type) -> bool:
    # Compared by name: this file does not import torch.
    return cls.__module__.startswith("torch.optim.") and cls.__name__ in ("Optimizer", "LRScheduler")


def takes_untyped_options(cls: type) -> bool:
    """Whether the constructor of a class has `**options` that are not `Unpack` of a TypedDict."""
    constructor = cls.__init__  # type: ignore[misc]  # it is not called
    options = [p.name for p in _parameters_of(constructor).values() if p.kind is p.VAR_KEYWORD]
    return bool(options) and _keys_of_typed_dict(_type_hints(constructor).get(options[0])) is None


def _parameters(constructors: list[type]) -> list[Parameter]:
    """Return the parameters of the first constructor without `self`, with those of the others that it passes on."""
    constructor = vars(constructors[0])["__init__"]
    hints = _type_hints(constructor)
    own = [p.replace(annotation=hints.get(name, p.annotation)) for name, p in _parameters_of(constructor).items()]
    if own and own[0].kind in _POSITIONAL_KINDS:  # self
        del own[0]
    options = own.pop() if own and own[-1].kind is Parameter.VAR_KEYWORD else None
    if options is None or len(constructors) == 1:
        return own if options is None else [*own, options]
    passed_on = _parameters(constructors[1:])
    if own and own[0].kind is Parameter.VAR_POSITIONAL:
        del own[0]
    else:
        passed_on = [_as_keyword(p) for p in passed_on if p.kind is p.VAR_KEYWORD or _is_optional_keyword(p)]
    names = {p.name for p in own}
    passed_on = [p for p in passed_on if p.name not in names]
    keys = _keys_of_typed_dict(hints.get(options.name))
    if keys is not None:
        passed_on = [p.replace(annotation=keys.pop(p.name)) for p in passed_on if p.name in keys]
        # The default of a key that no other constructor has is not known.
        passed_on += [
            Parameter(name, Parameter.KEYWORD_ONLY, default=..., annotation=type_)
            for name, type_ in keys.items()
            if name not in names
        ]
    return sorted([*own, *passed_on], key=lambda p: p.kind)


def _parameters_of(function: Any) -> Mapping[str, Parameter]:
    return inspect.signature(function).parameters


def _is_optional_keyword(p: Parameter) -> bool:
    # A derived class passes the required arguments of its base class itself.
    return p.kind in _KEYWORD_KINDS and p.default is not p.empty


def _as_keyword(p: Parameter) -> Parameter:
    return p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY)


def _type_hints(annotated: Any) -> dict[str, Any]:
    """Return the types of a function's arguments, or of the keys of a TypedDict; none if they cannot be resolved."""
    try:
        return typing.get_type_hints(annotated)
    except Exception:  # evaluating third-party annotations can raise anything
        return {}


def _keys_of_typed_dict(hint: Any) -> dict[str, Any] | None:
    """Return the keys and types of T for `Unpack[T]`; None for other types, and if T cannot be resolved."""
    # Compared by name: before Python 3.11 `Unpack` is in typing_extensions only.
    is_unpack = str(typing.get_origin(hint)).endswith(".Unpack")
    return (_type_hints(typing.get_args(hint)[0]) or None) if is_unpack else None


def configurable_type(annotation: Any) -> Any:
    """Return an annotation without `Tensor`; `Any` for an argument without annotation or with an unresolvable one."""
    return Any if annotation is Parameter.empty or isinstance(annotation, str) else _without_tensors(annotation)


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
