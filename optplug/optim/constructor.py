"""What the constructors of an optimizer's classes take, read from their signatures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from inspect import Parameter
from types import MappingProxyType
from typing import Any

from torch.optim import Optimizer

from optplug.errors import RuleError, listing
from optplug.optim.strict_kwargs import unexpected_keyword

NAMED = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def arguments(cls: Any, framework: Any) -> Mapping[str, Parameter]:
    """The arguments after the parameters, by name, of a class's constructor and those it may hand them on to.

    Args:
        cls: the class. A wrapper in its ancestry that is no optimizer (Lightning's) has no say.
        framework: the base of all rules, whose own keywords count where a constructor takes `**options`.
    """
    return _arguments(cls, framework)


@functools.lru_cache(maxsize=1024)
def _arguments(cls: Any, framework: Any) -> Mapping[str, Parameter]:
    found: dict[str, Parameter] = {}
    open_ended = False
    for base in cls.__mro__:
        if "__init__" not in vars(base) or not issubclass(base, Optimizer):
            continue
        if base is framework and not open_ended:
            break
        after = list(inspect.signature(vars(base)["__init__"]).parameters.values())[2:]
        for p in after:
            if p.kind in NAMED and not (base is framework and p.default is p.empty):
                found.setdefault(p.name, p)
        open_ended = open_ended or any(p.kind is p.VAR_KEYWORD for p in after)
        if base is framework:
            break
    return MappingProxyType(found)


def shapes(cls: Any, framework: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """For each option a value that shows whether it is a flag, a tuple or a number; None where any will do.

    What a constructor declares goes before `defaults`, which may hold what a user gave.
    """
    declared = {name: p.default for name, p in arguments(cls, framework).items() if p.default is not p.empty}
    usual = {key: value for key, value in declared.items() if value is not None}
    return {key: None if key in ("foreach", "fused") else usual.get(key, value) for key, value in defaults.items()}


def as_tuples(cls: Any, framework: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with lists, which is what YAML makes, as tuples where the constructor has tuples."""
    known = arguments(cls, framework)
    return {
        key: tuple(value)
        if isinstance(value, list) and key in known and isinstance(known[key].default, tuple)
        else value
        for key, value in options.items()
    }


def handed_over(optimizer: Any, framework: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters in `given`: a dict of them, or the `locals()` of a constructor.

    Raises:
        RuleError: there is more in these `locals()` than the constructor's arguments, or they are those of a subclass
            that handed them to another optimizer's constructor.
    """
    owner = type(optimizer).__name__
    for value in given.values():
        if isinstance(value, dict) and any(v is optimizer for v in value.values()):
            raise RuleError(
                f"{owner} hands its locals() to the constructor of another optimizer, which takes hyperparameters: "
                "write RuleOptimizer.__init__(self, params, locals())"
            )
    if not any(value is optimizer for value in given.values()):
        return dict(given)
    # A subclass may have fewer arguments than the base whose locals these are.
    callers = [b for b in type(optimizer).__mro__ if "__init__" in vars(b) and _has(vars(b)["__init__"], given)]
    if not callers:
        raise RuleError(f"{owner}: these locals() are not those of a constructor: hand over a dict of hyperparameters")
    constructor = vars(max(callers, key=lambda b: len(inspect.signature(vars(b)["__init__"]).parameters)))["__init__"]
    own, params, *after = inspect.signature(constructor).parameters.values()
    result: dict[str, Any] = {}
    for p in after:
        if p.kind in NAMED:
            result[p.name] = given[p.name]
        elif p.kind is p.VAR_KEYWORD:
            known = framework.__init__.__kwdefaults__
            for key, value in given[p.name].items():
                if key not in known:
                    raise unexpected_keyword(
                        type(optimizer), key, [*(q.name for q in after if q.kind in NAMED), *known]
                    )
                result[key] = value
    closed_over = getattr(inspect.unwrap(constructor), "__code__", None)
    stray = {name for name in given if name.isidentifier()}  # not what pytest puts among them
    stray -= {own.name, params.name, "__class__", *(p.name for p in after)}
    stray -= set(closed_over.co_freevars if closed_over else ())
    if stray:
        raise RuleError(
            f"{owner}: locals() has {listing(sorted(stray))} besides the constructor's arguments: "
            "hand it over before anything else is computed"
        )
    return result


def _has(function: Any, given: Mapping[str, Any]) -> bool:
    """Whether a function's arguments are all in these `locals()`."""
    return all(name in given for name in inspect.signature(function).parameters)
