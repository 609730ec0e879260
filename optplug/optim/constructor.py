"""Hyperparameters of an optimizer class, read from the signatures of its constructors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from inspect import Parameter
from types import MappingProxyType
from typing import Any

from torch.optim import Optimizer

from optplug.errors import RuleError, listing
from optplug.optim.strict_kwargs import unexpected_keyword_error

NAMED_KINDS = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def optimizer_arguments(cls: Any, base: Any) -> Mapping[str, Parameter]:
    """Return the constructor arguments of an optimizer class after `params`, by name.

    Where a constructor takes `**kwargs`, the arguments of the constructors of its base classes are included.

    Args:
        cls: the class. Classes in its ancestry that are not optimizers (Lightning's wrappers) are ignored.
        base: the base class of all rules. Its own keywords are included if a constructor takes `**kwargs`.
    """
    return _constructor_arguments(cls, base)


@functools.lru_cache(maxsize=1024)
def _constructor_arguments(cls: Any, base: Any) -> Mapping[str, Parameter]:
    found: dict[str, Parameter] = {}
    has_kwargs = False
    for ancestor in cls.__mro__:
        if "__init__" not in vars(ancestor) or not issubclass(ancestor, Optimizer):
            continue
        if ancestor is base and not has_kwargs:
            break
        arguments = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[2:]  # after self, params
        for p in arguments:
            if p.kind in NAMED_KINDS and not (ancestor is base and p.default is p.empty):
                found.setdefault(p.name, p)
        has_kwargs = has_kwargs or any(p.kind is p.VAR_KEYWORD for p in arguments)
        if ancestor is base:
            break
    return MappingProxyType(found)


def reference_values(cls: Any, base: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return for each option a value of the required kind: a flag, a tuple or a number; None if all kinds are allowed.

    Args:
        cls: the optimizer class. Defaults in its signature have priority over `defaults`.
        base: the base class of all rules.
        defaults: the optimizer's `defaults`, which may contain values that the user passed.
    """
    declared = {name: p.default for name, p in optimizer_arguments(cls, base).items() if p.default is not p.empty}
    not_none = {key: value for key, value in declared.items() if value is not None}
    return {key: None if key in ("foreach", "fused") else not_none.get(key, value) for key, value in defaults.items()}


def lists_to_tuples(cls: Any, base: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert lists, which YAML produces, to tuples for options whose default in the constructor is a tuple."""
    known = optimizer_arguments(cls, base)
    return {
        key: tuple(value)
        if isinstance(value, list) and key in known and isinstance(known[key].default, tuple)
        else value
        for key, value in options.items()
    }


def extract_hyperparameters(optimizer: Any, base: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters in `given`.

    Args:
        optimizer: the optimizer under construction.
        base: the base class of all rules.
        given: a dict of hyperparameters, or the `locals()` of the constructor.

    Raises:
        RuleError: `locals()` contains more than the constructor's arguments, or a subclass passed its `locals()` to
            the constructor of another optimizer.
        HyperparameterTypeError: `**kwargs` in `locals()` contains an unknown keyword.
    """
    optimizer_name = type(optimizer).__name__
    for value in given.values():
        if isinstance(value, dict) and any(v is optimizer for v in value.values()):
            raise RuleError(
                f"{optimizer_name} passes its locals() to the constructor of another optimizer, which takes "
                "hyperparameters: "
                "write RuleOptimizer.__init__(self, params, locals())"
            )
    if not any(value is optimizer for value in given.values()):
        return dict(given)
    # A subclass may have fewer arguments than the base class whose locals these are.
    candidates = [c for c in type(optimizer).__mro__ if "__init__" in vars(c) and _fits(vars(c)["__init__"], given)]
    if not candidates:
        raise RuleError(
            f"{optimizer_name}: locals() does not contain the arguments of a constructor: "
            "pass a dict of hyperparameters"
        )
    longest = max(candidates, key=lambda c: len(inspect.signature(vars(c)["__init__"]).parameters))
    constructor = vars(longest)["__init__"]
    self_argument, params_argument, *arguments = inspect.signature(constructor).parameters.values()
    result: dict[str, Any] = {}
    for p in arguments:
        if p.kind in NAMED_KINDS:
            result[p.name] = given[p.name]
        elif p.kind is p.VAR_KEYWORD:
            keywords = base.__init__.__kwdefaults__
            for key, value in given[p.name].items():
                if key not in keywords:
                    known = [*(q.name for q in arguments if q.kind in NAMED_KINDS), *keywords]
                    raise unexpected_keyword_error(type(optimizer), key, known)
                result[key] = value
    code = getattr(inspect.unwrap(constructor), "__code__", None)
    extra = {name for name in given if name.isidentifier()}  # pytest adds names that are not identifiers
    extra -= {self_argument.name, params_argument.name, "__class__", *(p.name for p in arguments)}
    extra -= set(code.co_freevars if code else ())
    if extra:
        raise RuleError(
            f"{optimizer_name}: locals() has {listing(sorted(extra))} besides the constructor's arguments: "
            "call RuleOptimizer.__init__ before assigning local variables"
        )
    return result


def _fits(function: Any, given: Mapping[str, Any]) -> bool:
    """Whether `given` contains all arguments of a function."""
    return all(name in given for name in inspect.signature(function).parameters)
