"""Allowed ranges of hyperparameters, for an optimizer's `ranges`. `COMMON_RANGES` holds for every optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Range:
    """The allowed values of one numeric hyperparameter.

    Args:
        name: name of the hyperparameter.
        words: the range in words, for messages.
        holds: whether a number is in the range.
        whole: whether the number must be whole.
        called: what messages call the hyperparameter. Default: `"<name> value"`.
        bounds: the range as JSON Schema keywords, for example `{"minimum": 0}`; empty if it cannot be expressed so.
        finite: whether the number must be finite.
        message: the start of an error message, before the value. `{}` stands for the position in a tuple, counted from
            1. Default: `"Invalid <called>"`.
        optional: whether the value may also be None, for which `resolve_hyperparameters` returns a number.
    """

    name: str
    words: str
    holds: Callable[[float], bool]
    whole: bool = False
    called: str = ""
    bounds: Mapping[str, float] = field(default_factory=dict, hash=False)
    finite: bool = True
    message: str = ""
    optional: bool = False

    @property
    def message_start(self) -> str:
        """The start of an error message, in torch's form."""
        return self.message or f"Invalid {self.called or f'{self.name} value'}"

    def of_item(self, index: int) -> Range:
        """Return the range of one number of a tuple."""
        start = self.message.format(index + 1) if self.message else f"{self.message_start} at index {index}"
        return replace(self, message=start)


def at_least(low: float, name: str, called: str = "", *, whole: bool = False, message: str = "") -> Range:
    """Return the range of numbers that are at least `low`.

    Args:
        low: the lower bound.
        name: name of the hyperparameter.
        called: what messages call the hyperparameter. Default: `"<name> value"`.
        whole: whether the number must be whole.
        message: the start of error messages, as in `Range`.
    """
    words = f"{'a whole number, ' if whole else ''}at least {low}"
    return Range(name, words, lambda x: x >= low, whole, called, {"minimum": low}, message=message)


def at_most(high: float, name: str, called: str = "", *, message: str = "") -> Range:
    """Return the range of numbers that are at most `high`.

    Args:
        high: the upper bound.
        name: name of the hyperparameter.
        called: what messages call the hyperparameter. Default: `"<name> value"`.
        message: the start of error messages, as in `Range`.
    """
    return Range(name, f"at most {high}", lambda x: x <= high, called=called, bounds={"maximum": high}, message=message)


def above_zero(name: str, called: str = "") -> Range:
    """Return the range of numbers above 0.

    Args:
        name: name of the hyperparameter.
        called: what messages call the hyperparameter. Default: `"<name> value"`.
    """
    return Range(name, "above 0", lambda x: x > 0, called=called, bounds={"exclusiveMinimum": 0})


def unit_interval(name: str, called: str = "") -> Range:
    """Return the range of numbers from 0 to 1, both included.

    Args:
        name: name of the hyperparameter.
        called: what messages call the hyperparameter. Default: `"<name> value"`.
    """
    bounds = {"minimum": 0, "maximum": 1}
    return Range(name, "at least 0 and at most 1", lambda x: 0 <= x <= 1, called=called, bounds=bounds)


def any_number(name: str) -> Range:
    """Return the range of all numbers, also negative and infinite ones, without NaN.

    Args:
        name: name of the hyperparameter.
    """
    return Range(name, "a number, also negative or infinite", lambda x: not math.isnan(x), finite=False)


def optional(range_: Range) -> Range:
    """Return a range of the same numbers, and None."""
    return replace(range_, optional=True)


COMMON_RANGES = (
    at_least(0, "lr", "learning rate"),
    at_least(0, "eps", "epsilon value"),
    at_least(0, "weight_decay"),
    at_least(0, "momentum"),
    Range(
        "betas",
        "at least 0 and below 1",
        lambda x: 0 <= x < 1,
        called="beta parameter",
        bounds={"minimum": 0, "exclusiveMaximum": 1},
    ),
)
"""Ranges that apply to every optimizer, including third-party ones. An optimizer's own ranges have priority."""


def declared_ranges(cls: type) -> dict[str, Range]:
    """Return the ranges of a class by hyperparameter: its own, those of its bases and `COMMON_RANGES`.

    The result is empty for a class without the attribute `ranges`.
    """
    if not isinstance(getattr(cls, "ranges", None), (list, tuple)):
        return {}
    own = [r for base in reversed(cls.__mro__) for r in vars(base).get("ranges", ())]
    return {r.name: r for r in (*COMMON_RANGES, *own) if isinstance(r, Range)}
