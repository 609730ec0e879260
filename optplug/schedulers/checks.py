"""Checks that every scheduler makes: numbers, the optimizer, a loaded state, a call of `get_lr` outside of a step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    HyperparameterError,
    HyperparameterTypeError,
    listing,
    number_hint,
)


def checked_number(
    owner: object, name: str, value: Any, at_least: float = 0, *, whole: bool = False, noun: str = "a number"
) -> Any:
    """A number that a scheduler was given, as a Python int or float.

    Args:
        owner: the scheduler. name: of the argument. value: what was given.
        at_least: the lower bound. whole: whole numbers only. noun: what it must be, for the message.

    Raises:
        HyperparameterError: below the bound or not finite. HyperparameterTypeError: no number.
    """
    place = f"{type(owner).__name__}: {name} must be"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        hint = whole_hint(value) if whole else number_hint(value)
        raise HyperparameterTypeError(f"{place} {'a whole number' if whole else noun}, got {value!r}{hint}")
    plain = int(value) if isinstance(value, Integral) else float(value)
    if not math.isfinite(plain):
        raise HyperparameterError(f"{place} finite, got {value}")
    if plain < at_least:
        raise HyperparameterError(f"{place} at least {at_least}, got {value}")
    return plain


def whole_hint(value: Any) -> str:
    """`; write 1000` for what is a whole number in another form."""
    try:
        number = float(value) if isinstance(value, (str, float)) else math.nan
    except ValueError:
        number = math.nan
    return f"; write {int(number)}" if number.is_integer() else ""


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no optimizer, in torch's words and type."""
    if not isinstance(optimizer, Optimizer):
        raise ConfigTypeError(f"{type(optimizer).__name__} is not an Optimizer")


def warn_by_hand(scheduler: LRScheduler) -> None:
    """Give torch's warning about `get_lr()` outside of a step."""
    if not scheduler._get_lr_called_within_step:
        warnings.warn(
            "To get the last learning rate computed by the scheduler, please use `get_last_lr()`.",
            UserWarning,
            stacklevel=3,
        )


TELLING = frozenset(
    {"T_0", "T_max", "best", "eta_min", "gamma", "lr_lambdas", "max_lrs", "milestones", "num_bad_epochs", "power"}
    | {"start_factor", "step_size", "total_iters", "total_steps"}
)
"""What torch's schedulers keep and by which they are told apart. Anything else a scheduler may gain or lose in time."""


def check_state(scheduler: LRScheduler, state_dict: Mapping[str, Any], needed: Collection[str] | None = None) -> None:
    """Refuse the state of another kind of scheduler, which torch would take over key by key.

    Args:
        needed: keys that are enough to tell. Default: `last_epoch`, `base_lrs`, and of `TELLING` what the scheduler
            keeps itself, and nothing else.
    """
    own = TELLING & set(scheduler.state_dict())
    strange = set() if needed is not None else (TELLING & set(state_dict)) - own
    if strange or not set(needed or {"last_epoch", "base_lrs", *own}) <= set(state_dict):
        had = "a warmup, and this one has none" if "warmup" in state_dict else f"the keys {listing(sorted(state_dict))}"
        raise ConfigError(
            f"the checkpoint's scheduler is no {type(scheduler).__name__}: it has {had}. "
            "Resume with the schedule of the checkpoint, or start anew"
        )
