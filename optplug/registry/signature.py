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


def target_of(registration: Registration) -> Any:
    """Return the class or function of a registration.

    Raises:
        PluginError: it cannot be loaded.
    """
    if not isinstance(registration.spec.target, str):
        return registration.spec.target  # also of a registration that is not in the registry
    return registry.get(registration.spec.kind, registration.qualified_name)


def configurable_arguments(registration: Registration) -> dict[str, Parameter]:
    """Return the constructor arguments that a configuration can set, by name.

    These are the arguments in the signature of the class or function and those in `spec.arguments`, except `spec.base`.
    A spec with `arguments` says what `**options` of the constructor are, so that those of base classes do not count.

    Raises:
        PluginError: the class or function cannot be loaded.
    """
    spec = registration.spec
    signature = constructor_signature(target_of(registration), passes_on_options=not spec.arguments)
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].kind in _POSITIONAL_KINDS:  # the parameters or the optimizer
        del parameters[0]
    excluded = (*EXCLUDED_ARGUMENTS, base_argument(registration))
    found = {p.name: p for p in parameters if p.kind in _KEYWORD_KINDS and p.name not in excluded}
    declared = {name: _declared_parameter(name, spec.arguments[name]) for name in spec.arguments if name not in found}
    return {**found, **declared}


def _declared_parameter(name: str, default: Any) -> Parameter:
    annotation = Parameter.empty if default is None else type_of_default(default)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def accepts_any_argument(registration: Registration) -> bool:
    """Return whether the constructor has `**options` whose names are unknown, so that it may have further arguments."""
    parameters = constructor_signature(target_of(registration)).parameters.values()
    # `spec.arguments` are all further arguments of a constructor with `**options`; a wrapper passes them to its base.
    is_declared = registration.spec.arguments or base_argument(registration)
    return not is_declared and any(p.kind is p.VAR_KEYWORD for p in parameters)


def base_argument(registration: Registration) -> str:
    """Return the argument that takes another optimizer, the base; empty for an optimizer that wraps none."""
    return getattr(registration.spec, "base", "")


def takes_built_base(registration: Registration) -> bool:
    """Return whether a wrapper takes its base as a built optimizer, the first argument; else it takes the class."""
    return next(iter(constructor_signature(target_of(registration)).parameters), None) == base_argument(registration)


def requires_base(registration: Registration) -> bool:
    """Return whether a wrapper has no default for its base."""
    found = constructor_signature(target_of(registration)).parameters.get(base_argument(registration))
    return found is None or found.default is Parameter.empty


def function_arguments(registration: Registration) -> tuple[str, ...]:
    """Return the arguments of a scheduler that are functions of the epoch.

    These are the spec's `functions`; without any, the class attribute `functions`.
    """
    return getattr(registration.spec, "functions", ()) or _names_in_attribute(target_of(registration), "functions")


def schedule_arguments(registration: Registration) -> tuple[str, ...]:
    """Return the arguments of a scheduler that are lists of schedules: the class attribute `nested_schedules`.

    Each schedule in such a list is a mapping with its `name`, its `length` and its arguments.
    """
    return _names_in_attribute(target_of(registration), "nested_schedules")


def _names_in_attribute(target: Any, attribute: str) -> tuple[str, ...]:
    declared = getattr(target, attribute, ())
    return tuple(declared) if isinstance(declared, (tuple, list)) else ()


def declared_cases(registration: Registration) -> tuple[dict[str, Any], ...]:
    """Return the keyword arguments that the conformance kit tests; one case without arguments if none are declared.

    These are the spec's `cases`; without any, the class attribute `cases`.
    """
    declared = registration.spec.cases or getattr(target_of(registration), "cases", ())
    return tuple(dict(case) for case in declared) or ({},)


def documented_arguments(registration: Registration) -> list[Argument]:
    """Return the arguments of `configurable_arguments` with types and descriptions, in the order of the constructor.

    Raises:
        PluginError: the class or function cannot be loaded.
    """
    descriptions = _descriptions(target_of(registration))
    return [
        Argument(name, configurable_type(p.annotation), p.default, descriptions.get(name, ""))
        for name, p in configurable_arguments(registration).items()
    ]


def constructor_signature(target: Any, *, passes_on_options: bool = True) -> inspect.Signature:
    """Return the signature of a class with the arguments that its constructor passes to its base classes.

    A constructor with `**options` is assumed to pass them to the next constructor in the MRO, and a constructor that
    begins with `*args` also positional arguments. `**options` is replaced by the arguments of that constructor which
    have a default; with `**options: Unpack[T]`, by those that are keys of the TypedDict T. `**options` remains if the
    last constructor has it too: the class may then accept further arguments. Annotations are types if they can be
    resolved, and otherwise text.

    Args:
        target: the class, or a function, whose own signature is returned.
        passes_on_options: False for a class whose constructor uses `**options` itself.
    """
    if not isinstance(target, type):
        return _signature_of_function(target)
    return _signature_of_class(target, passes_on_options)


def _signature_of_function(function: Any) -> inspect.Signature:
    hints = _type_hints(function)
    parameters = _parameters_of(function).items()
    return inspect.Signature([p.replace(annotation=hints.get(name, p.annotation)) for name, p in parameters])


@functools.lru_cache(maxsize=1024)
def _signature_of_class(cls: type, passes_on_options: bool) -> inspect.Signature:
    constructors = [base for base in cls.__mro__ if "__init__" in vars(base)]
    # The abstract base classes of torch take no options of an algorithm.
    walked = [base for base in constructors if not _is_abstract_base(base)] or [cls]
    return inspect.Signature(_parameters(walked if passes_on_options else walked[:1]))


def _is_abstract_base(cls: type) -> bool:
    # Compared by name: this file does not import torch.
    return cls.__module__.startswith("torch.optim.") and cls.__name__ in ("Optimizer", "LRScheduler")


def takes_untyped_options(target: Any) -> bool:
    """Whether a function or the constructor of a class has `**options` that are not `Unpack` of a TypedDict."""
    constructor = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]  # it is not called
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


def type_of_default(default: Any) -> Any:
    """Return the type that the default value of an argument implies. `weight_decay=0` may be a fraction too."""
    if isinstance(default, tuple):
        return tuple[tuple(map(type_of_default, default))]  # type: ignore[misc]
    return int | float if type(default) is int else type(default)


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


def _descriptions(target: Any) -> dict[str, str]:
    """Return the descriptions of arguments from the docstrings of a function, or of a class and its bases.

    A description such as "as in `Base`" is skipped, so that the description in the base class is used.
    """
    found: dict[str, str] = {}
    for documented in target.__mro__ if isinstance(target, type) else [target]:
        for name, description in _args_section(documented.__doc__ or "").items():
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
