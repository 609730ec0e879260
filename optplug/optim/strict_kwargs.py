"""Errors for unknown keyword arguments of constructors."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from optplug.errors import HyperparameterTypeError, suggest

if TYPE_CHECKING:
    from typing_extensions import Self


class StrictKwargs:
    """Base class that raises an error with the nearest name for an unknown keyword argument of the constructor.

    Raises:
        HyperparameterTypeError: the constructor does not have the keyword. The message begins with Python's.
    """

    # A mixin: a __new__ in the classes themselves would hide the signature of __init__ from inspect.
    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        parameters = inspect.signature(cls).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):  # a constructor with **kwargs checks them itself
            known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
            for key in keywords:
                if key not in known:
                    raise unexpected_keyword_error(cls, key, known)
        return super().__new__(cls)


def unexpected_keyword_error(cls: type, key: str, known: Collection[str]) -> HyperparameterTypeError:
    """Return the error for an unknown keyword of a constructor.

    Args:
        cls: the class.
        key: the unknown keyword.
        known: the keywords of the constructor.
    """
    name = cls.__name__
    hint = suggest(key, known, see=f"help({name})")
    return HyperparameterTypeError(f"{name}.__init__() got an unexpected keyword argument {key!r}{hint}")
