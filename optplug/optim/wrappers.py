"""Wrappers: optimizers that construct another optimizer, their base, with their own parameter groups."""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim import Optimizer


def calling_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Return the other optimizers of which a method is running: the wrappers that construct an optimizer, if any.

    The group dictionaries do not say whose they are, and a wrapper passes its own after its constructor has set its
    defaults in them. So the call stack is read.

    Args:
        optimizer: the base.
    """
    found: list[Optimizer] = []
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):  # reading the variables of every frame would be slow
            owner = frame.f_locals.get("self")
            if isinstance(owner, Optimizer) and owner is not optimizer and all(owner is not each for each in found):
                found.append(owner)
        frame = frame.f_back
    return found


def bases(optimizer: Any) -> list[Optimizer]:
    """Return the optimizers that an optimizer wraps: those among its attributes."""
    return [each for each in vars(optimizer).values() if isinstance(each, Optimizer) and each is not optimizer]


def set_base_options(optimizer: Optimizer, start: int) -> None:
    """Set missing options of the base in groups that a wrapper has added: the wrapper has set its own only.

    Args:
        optimizer: the wrapper; nothing is changed for another optimizer.
        start: the index of the first added group.
    """
    for base in bases(optimizer):
        for group in base.param_groups[start:] if base.param_groups is optimizer.param_groups else ():
            for key, value in base.defaults.items():
                group.setdefault(key, value)


def inherited_keys(wrappers: list[Optimizer]) -> set[str]:
    """Return the keys that wrappers set in every group: their own options. A key in one group only is not among them.

    Args:
        wrappers: the result of `calling_optimizers`.
    """
    # Attributes are read from the instance: properties may fail before the constructor has ended.
    return {key for wrapper in wrappers for key in vars(wrapper).get("defaults", ())}


def is_group_of(wrappers: list[Optimizer], group: dict[str, Any]) -> bool:
    """Return whether a dictionary is a parameter group of one of several optimizers."""
    return any(group is each for wrapper in wrappers for each in vars(wrapper).get("param_groups", ()))
