"""Keywords that a constructor does not have."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from optplug.errors import HyperparameterTypeError, did_you_mean, listing

if TYPE_CHECKING:
    from typing_extensions import Self


class CheckedKeywords:
    """Refuses a keyword that the constructor does not have, with the nearest one.

    Raises:
        HyperparameterTypeError: with Python's text, and what there is.
    """

    # Not in the classes themselves: inspect would take this signature for their constructor's.
    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        parameters = inspect.signature(cls).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):  # which hands them on to its base class
            known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
            for key in keywords:
                if key not in known:
                    raise unexpected_keyword(cls, key, known)
        return super().__new__(cls)


def unexpected_keyword(cls: type, key: str, known: Collection[str]) -> HyperparameterTypeError:
    """The error for a keyword that no constructor of `cls` takes."""
    return HyperparameterTypeError(
        f"{cls.__name__}.__init__() got an unexpected keyword argument {key!r}; it has "
        f"{listing(known)}{did_you_mean(key, known)}"
    )
