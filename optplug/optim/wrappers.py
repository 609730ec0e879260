"""Wrappers: optimizers that construct another optimizer, their base, with their own parameter groups."""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

from torch.optim import Optimizer

CONSTRUCTORS = ("__init__", "add_param_group")
"""The methods in which a wrapper passes groups to its base."""

UNSHARED_REFERENCES = 3
"""References to a frame's dictionary: of the frame, of a variable, and of the argument of `getrefcount`."""


def constructing_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Return the wrappers that construct an optimizer: the other optimizers of which one of `CONSTRUCTORS` is running.

    The group dictionaries do not say whose they are: a group of a wrapper without own defaults looks like one of the
    user. So the call stack is read. Each group needs it, also one without keys of a wrapper, since schedulers set the
    learning rate in the groups of the wrapper.

    Args:
        optimizer: the base.
    """
    found: list[Optimizer] = []
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name in CONSTRUCTORS and code.co_argcount:  # reading the variables of every frame would be slow
            owner = _first_argument(frame)
            if isinstance(owner, Optimizer) and owner is not optimizer and all(owner is not each for each in found):
                found.append(owner)
        frame = frame.f_back
    return found


def _first_argument(frame: FrameType) -> Any:
    variables = frame.f_locals
    found = variables.get(frame.f_code.co_varnames[0])
    # Python < 3.13: the frame keeps the dictionary and all values in it, unless its function has called `locals()`.
    if type(variables) is dict and sys.getrefcount(variables) <= UNSHARED_REFERENCES:
        variables.clear()
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
        wrappers: the result of `constructing_optimizers`.
    """
    # Attributes are read from the instance: properties may fail before the constructor has ended.
    return {key for wrapper in wrappers for key in vars(wrapper).get("defaults", ())}


def is_group_of(wrappers: list[Optimizer], group: dict[str, Any]) -> bool:
    """Return whether a dictionary is a parameter group of one of several optimizers."""
    return any(group is each for wrapper in wrappers for each in vars(wrapper).get("param_groups", ()))
