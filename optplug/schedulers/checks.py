"""Checks that schedulers share: numbers, the optimizer, a loaded state, a call of `get_lr` outside of a step."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    ErrorCollector,
    HyperparameterError,
    HyperparameterTypeError,
    Loc,
    OptplugError,
    listing,
    number_hint,
)


class ArgumentChecks:
    """Checks of the arguments of a scheduler that collect errors, so that the constructor reports all of them.

    The constructor calls `raise_argument_errors` after the checks.
    """

    def check_number(
        self,
        name: str,
        value: Any,
        at_least: float = 0,
        at_most: float = math.inf,
        *,
        index: int | None = None,
        whole: bool = False,
        noun: str = "a number",
        torch_text: str = "",
    ) -> Any:
        """Check a numeric argument, and return it as a Python int or float; NaN if it is invalid.

        The error is a HyperparameterError if the number is out of bounds or not finite, and a HyperparameterTypeError
        if the value is not a number, or not a whole number.

        Args:
            name: name of the argument.
            value: the value to check.
            at_least: the lower bound. Default: 0.
            at_most: the upper bound. Default: none.
            index: index of the value in a list. Default: None, the argument is not a list.
            whole: whether the number must be whole. Default: False.
            noun: what the value must be, for the message. Default: "a number".
            torch_text: torch's message for a number out of bounds, with which the message begins. Default: none.
        """
        subject = f"{type(self).__name__}: {name}{'' if index is None else f'[{index}]'} must be"
        if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
            hint = whole_hint(value) if whole else number_hint(value)
            message = f"{subject} {'a whole number' if whole else noun}, got {value!r}{hint}"
            return self.reject(name, HyperparameterTypeError(message), index)
        number = int(value) if isinstance(value, Integral) else float(value)
        if not abs(number) <= sys.float_info.max:  # also for integers that exceed the range of floats
            return self.reject(name, HyperparameterError(f"{subject} finite, got {value}"), index)
        if not at_least <= number <= at_most:
            bound = f"at least {at_least}" if number < at_least else f"at most {at_most}"
            message = f"{subject} {bound}, got {value}"
            return self.reject(name, HyperparameterError(f"{torch_text} {message}".lstrip()), index)
        return number

    def check_positive(self, name: str, value: Any) -> Any:
        """Check a number that must be above 0, as `check_number` does."""
        number = self.check_number(name, value)
        if number == 0:
            message = f"{type(self).__name__}: {name} must be above 0, got {value}"
            return self.reject(name, HyperparameterError(message))
        return number

    def check_bool(self, name: str, value: Any) -> bool:
        """Check that an argument is True or False, and return it. The error is a HyperparameterTypeError."""
        if not isinstance(value, bool):
            message = f"{type(self).__name__}: {name} must be True or False, got {value!r}"
            self.reject(name, HyperparameterTypeError(message))
        return bool(value)

    def check_choice(self, name: str, value: Any, choices: Collection[str], *, torch_text: str = "") -> Any:
        """Check that an argument is one of some strings, and return it. The error is a HyperparameterError."""
        if not isinstance(value, str) or value not in choices:
            message = f"{type(self).__name__}: {name} must be one of {listing(map(repr, choices))}, got {value!r}"
            self.reject(name, HyperparameterError(f"{torch_text} {message}".lstrip()))
        return value

    def check_optimizer(self, optimizer: Any) -> bool:
        """Return whether the value is an optimizer. If not, the error is a ConfigTypeError with torch's message."""
        if not isinstance(optimizer, Optimizer):
            self.reject("optimizer", ConfigTypeError(f"{type(optimizer).__name__} is not an Optimizer"))
            return False
        return True

    def reject(
        self, name: str, error: OptplugError, index: int | Loc | None = None, *, is_contradiction: bool = False
    ) -> float:
        """Collect an error about an argument, and return NaN, for which further comparisons are false.

        Args:
            name: name of the argument.
            error: the error.
            index: index of the wrong value in a list, or its location in the argument. Default: None, the error is
                about the whole argument.
            is_contradiction: whether the argument contradicts another one. Default: False.
        """
        errors = vars(self).setdefault("_argument_errors", ErrorCollector())
        error.argument = name
        error.inside = index if isinstance(index, tuple) else () if index is None else (index,)
        error.is_contradiction = is_contradiction
        errors.add(error)
        return math.nan

    def raise_argument_errors(self) -> None:
        """Raise one exception with all collected errors; do nothing without errors."""
        errors = vars(self).pop("_argument_errors", None)
        if errors is not None:
            errors.raise_joined()


def whole_hint(value: Any) -> str:
    """Return `; write 1000` for a whole number in another form, such as 1e3 or "1000"; else an empty string."""
    try:
        number = float(value) if isinstance(value, (str, float)) else math.nan
    except ValueError:
        number = math.nan
    return f"; write {int(number)}" if number.is_integer() else ""


def warn_get_lr_outside_step(scheduler: LRScheduler) -> None:
    """Emit torch's warning if `get_lr()` was called by the user instead of by `step()`."""
    if not scheduler._get_lr_called_within_step:
        warnings.warn(
            "To get the last learning rate computed by the scheduler, please use `get_last_lr()`.",
            UserWarning,
            stacklevel=3,
        )


CLASS_SPECIFIC_STATE_KEYS = frozenset(
    {"T_0", "T_max", "best", "cycle_momentum", "decay_steps", "eta_min", "gamma", "lr_lambdas", "max_lrs", "milestones"}
    | {"_milestones", "num_bad_epochs", "power", "start_factor", "step_size", "timescale", "total_iters", "total_steps"}
)
"""State-dict keys that identify the class of a scheduler. Other keys may change between versions of torch."""


def check_state(scheduler: LRScheduler, state_dict: Mapping[str, Any], needed: Collection[str] | None = None) -> None:
    """Check that a state dict was saved by the same kind of scheduler. torch would load it without a check.

    Args:
        scheduler: the scheduler that loads the state dict.
        state_dict: the state dict.
        needed: keys that must exist; no other keys are then checked. Default: `last_epoch`, `base_lrs` and the keys in
            `CLASS_SPECIFIC_STATE_KEYS` that the scheduler itself has; other keys in `CLASS_SPECIFIC_STATE_KEYS` must
            not exist.

    Raises:
        ConfigError: the state dict was saved by another kind of scheduler.
    """
    own = CLASS_SPECIFIC_STATE_KEYS & set(scheduler.state_dict())
    unexpected = set() if needed is not None else (CLASS_SPECIFIC_STATE_KEYS & set(state_dict)) - own
    if unexpected or not set(needed or {"last_epoch", "base_lrs", *own}) <= set(state_dict):
        found = "a warmup" if "warmup" in state_dict else f"the keys {listing(sorted(state_dict))}"
        raise ConfigError(
            f"the checkpoint's scheduler is not a {type(scheduler).__name__}: it has {found}. "
            "Resume with the scheduler of the checkpoint, or start a new run"
        )
