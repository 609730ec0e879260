"""Functions of the step that a user gives to a scheduler: their values, and their attributes in checkpoints."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from optplug.errors import ConfigError, HyperparameterError, HyperparameterTypeError
from optplug.schedulers.checks import check_state
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.schedulers.late_groups import follow_groups

STATELESS = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
"""Types of callables without attributes to save in a checkpoint."""


class FunctionLR(ClosedFormLR):
    """A schedule by a function of the step for each group.

    Args:
        optimizer: as in `ClosedFormLR`.
        lr_lambda: a function that takes the number of steps and returns a finite number, or a list with one function
            for each parameter group.
        last_epoch: as in `ClosedFormLR`.
        min_lr_ratio: as in `ClosedFormLR`.

    Raises:
        HyperparameterError: the number of functions is not the number of groups; and as in `ClosedFormLR`.
        HyperparameterTypeError: a value is not a function; and as in `ClosedFormLR`.

    A `state_dict` contains the attributes of functions that are objects with `__call__`. It does not contain plain
    functions.
    """

    functions = ("lr_lambda",)

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        if isinstance(optimizer, Optimizer):
            self._set_functions(lr_lambda, len(optimizer.param_groups))
        super().__init__(optimizer, last_epoch, min_lr_ratio=min_lr_ratio)

    def _set_functions(self, lr_lambda: Any, group_count: int) -> None:
        many = isinstance(lr_lambda, (list, tuple))
        self.lr_lambdas: list[Any] = list(lr_lambda) if many else [lr_lambda] * group_count
        for i, function in enumerate(self.lr_lambdas if many else [lr_lambda]):
            if not callable(function):
                subject = f"{type(self).__name__}: lr_lambda{f'[{i}]' if many else ''}"
                in_text = "; expressions are allowed in configurations and create_scheduler only"
                hint = in_text if isinstance(function, str) else ""
                message = f"{subject} must be a function of the step, got {function!r}{hint}"
                self.reject("lr_lambda", HyperparameterTypeError(message), i if many else None)
        if len(self.lr_lambdas) != group_count:
            message = (
                f"Expected {group_count} lr_lambdas, but got {len(self.lr_lambdas)}: "
                f"{type(self).__name__} takes one function for all groups, or a list with one for each "
                "group of this schedule"
            )
            self.reject("lr_lambda", HyperparameterError(message))

    def values(self, t: int) -> list[float]:
        """Return the value of each group's function at step `t`."""
        owner = type(self).__name__
        return [checked_value(owner, f, t, f", of group {i}") for i, f in enumerate(self.lr_lambdas)]

    def state_dict(self) -> dict[str, Any]:
        """The state, without the optimizer. `lr_lambdas` has the attributes of objects, and None for functions."""
        saved = [saved_attributes(function) for function in self.lr_lambdas]
        return {
            **super().state_dict(),
            "lr_lambdas": [None if attributes is None else dict(attributes) for attributes in saved],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's.

        Raises:
            ConfigError: the state is from another class, or its functions do not fit.
        """
        check_state(self, state_dict)
        saved = state_dict["lr_lambdas"]
        if len(saved) > len(self.lr_lambdas):
            follow_groups(self)
        functions = self.lr_lambdas
        if len(saved) != len(functions):
            raise ConfigError(f"the checkpoint's scheduler has {len(saved)} lr_lambdas, this one {len(functions)}")
        for function, attributes in zip(functions, saved, strict=True):
            if attributes and saved_attributes(function) is None:
                raise ConfigError(
                    f"the checkpoint's lr_lambda has the attributes {attributes}, but {function!r} has no attributes: "
                    "resume with the function of the checkpoint"
                )
        super().load_state_dict({**state_dict, "lr_lambdas": functions})
        for function, attributes in zip(functions, saved, strict=True):
            if attributes:
                function.__dict__.update(attributes)


def checked_value(owner: str, function: Any, t: float, of_group: str = "") -> float:
    """Return the value of a function at step `t`.

    Args:
        owner: the name of the scheduler's class.
        function: the function.
        t: the step.
        of_group: the words about the group in messages. Default: none.

    Raises:
        HyperparameterError: the value is infinite or NaN.
        HyperparameterTypeError: the value is not a number.
    """
    subject = f"{owner}: {getattr(function, '__qualname__', function)!s}{of_group}, at epoch {t}"
    try:
        value = function(t)
        number = _as_float(value)
    except OverflowError:
        number = math.inf
    if number is None:
        raise HyperparameterTypeError(f"{subject} must return a number, got {value!r}")
    if not math.isfinite(number):
        raise HyperparameterError(f"{subject} must return a finite number, got {number}")
    return number


def saved_attributes(function: Any) -> dict[str, Any] | None:
    """The attributes of a callable object that belong in a checkpoint; None for plain functions."""
    return None if isinstance(function, STATELESS) else getattr(function, "__dict__", None)


def _as_float(value: Any) -> float | None:
    """Convert a number of any type, or a tensor with one element, to float. Returns None for everything else."""
    try:
        return float(value) if hasattr(value, "__float__") else None
    except (TypeError, ValueError, RuntimeError):  # for example a tensor with several elements
        return None
