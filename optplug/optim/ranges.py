"""Ranges of hyperparameters, for an optimizer's `ranges`. What means the same everywhere is in `COMMON`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Range:
    """The allowed numbers of one hyperparameter.

    Args:
        name: the hyperparameter.
        words: the range, said to a person.
        holds: whether a number is in it.
        whole: whole numbers only.
        called: the hyperparameter in the words of a complaint. Default: `"<name> value"`.
        bounds: the range in the words of JSON Schema, such as `{"minimum": 0}`, for editors; empty where it has none.
    """

    name: str
    words: str
    holds: Callable[[float], bool]
    whole: bool = False
    called: str = ""
    bounds: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def complaint(self) -> str:
        """How a complaint begins."""
        return f"Invalid {self.called or f'{self.name} value'}"


def at_least(low: float, name: str, called: str = "", *, whole: bool = False) -> Range:
    """Numbers from `low` on."""
    words = f"{'a whole number, ' if whole else ''}at least {low}"
    return Range(name, words, lambda x: x >= low, whole, called, {"minimum": low})


def above_zero(name: str, called: str = "") -> Range:
    """Numbers above 0."""
    return Range(name, "above 0", lambda x: x > 0, called=called, bounds={"exclusiveMinimum": 0})


def unit_interval(name: str, called: str = "") -> Range:
    """Numbers from 0 to 1."""
    bounds = {"minimum": 0, "maximum": 1}
    return Range(name, "at least 0 and at most 1", lambda x: 0 <= x <= 1, called=called, bounds=bounds)


COMMON = (
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
"""So that every optimizer, a third party's too, gets the same check and the same words. An optimizer's own go first."""


def declared(cls: type) -> dict[str, Range]:
    """The ranges of a class that declares `ranges`, by hyperparameter: its own, its bases' and `COMMON`; else none."""
    if not isinstance(getattr(cls, "ranges", None), (list, tuple)):
        return {}
    own = [r for base in reversed(cls.__mro__) for r in vars(base).get("ranges", ())]
    return {r.name: r for r in (*COMMON, *own) if isinstance(r, Range)}
