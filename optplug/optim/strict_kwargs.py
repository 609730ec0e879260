"""The base class of constructors with complete signatures, and errors for unknown keyword arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from optplug.errors import ErrorCollector, HyperparameterTypeError, suggest
from optplug.optim.options import OPTION_DEFAULTS
from optplug.registry.signature import constructor_signature, takes_untyped_options

if TYPE_CHECKING:
    from typing_extensions import Self, TypeIs


class _CompleteSignature:
    """The `__signature__` of a class, which `inspect.signature` and `help` read."""

    def __get__(self, _: object, cls: type) -> inspect.Signature:
        return _complete_signature(cls)


@functools.lru_cache(maxsize=1024)
def _complete_signature(cls: type) -> inspect.Signature:
    signature = constructor_signature(cls)
    parameters = [
        p.replace(default=OPTION_DEFAULTS.get(p.name, ...)) if p.default is ... else p
        for p in signature.parameters.values()
    ]
    if takes_untyped_options(cls) and all(p.kind is not p.VAR_KEYWORD for p in parameters):
        parameters.append(inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD))
    return signature.replace(parameters=parameters)


class StrictKwargs:
    """Base class that raises an error with the nearest name for an unknown keyword argument of the constructor.

    The signature of a derived class shows the arguments of its base classes instead of `**options`.

    Raises:
        HyperparameterTypeError: the constructor does not have the keyword. The message begins with Python's.
    """

    __signature__ = _CompleteSignature()

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        # A constructor with untyped `**options` may use some of them itself: it passes on or rejects the others.
        known: Collection[str] = cls.__signature__.parameters
        if not set(keywords) <= set(known) and not takes_untyped_options(cls):
            check_keywords(cls, keywords, known)
        return super().__new__(cls)


def is_strict(target: Any) -> TypeIs[type[StrictKwargs]]:
    """Return whether the target of a registration is a class derived from `StrictKwargs`, so that it raises our errors.

    Other targets are classes of other packages, and functions that return an optimizer.
    """
    return isinstance(target, type) and issubclass(target, StrictKwargs)


def check_keywords(cls: type, keywords: Iterable[str], known: Collection[str]) -> None:
    """Raise HyperparameterTypeError for the keywords of a constructor that are unknown.

    Args:
        cls: the class.
        keywords: the given keywords.
        known: the keywords of the constructor.
    """
    name = cls.__name__
    collector = ErrorCollector()
    for key in keywords:
        if key not in known:
            hint = suggest(key, known, see=f"help({name})")
            message = f"{name}.__init__() got an unexpected keyword argument {key!r}{hint}"
            collector.add(HyperparameterTypeError(message, argument=key))
    collector.raise_joined()
