"""The base learning rate times an arbitrary function of the step."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optplug import ClosedFormLR
from optplug.errors import ConfigError, HyperparameterError, HyperparameterTypeError
from optplug.schedulers.checks import check_state, warn_get_lr_outside_step
from optplug.schedulers.late_groups import follow_groups

STATELESS = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
"""Types of callables without attributes to save in a checkpoint."""


class LambdaLR(ClosedFormLR):
    r"""The base learning rate times a function of the step: :math:`lr(t) = base \cdot \lambda(t)`.

    The result does not depend on the current learning rate, so changes by other schedulers are overwritten.

    Args:
        optimizer: the optimizer whose learning rates are set.
        lr_lambda: a function that takes the number of steps and returns a finite number, or a list with one function
            for each parameter group. The last function also applies to groups that are added later. In a configuration:
            an expression in `epoch`, such as `"0.95 ** epoch"`, or the name of a function that a plugin registers.
        last_epoch: index of the last step; -1 to start. The constructor performs the next step.
        min_lr_ratio: the learning rate is not below this fraction of the base learning rate, in [0, 1].

    Raises:
        HyperparameterError: the number of functions is not the number of groups; `last_epoch` or `min_lr_ratio` is out
            of range; in the constructor or in a step, a function returns infinity or NaN.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown; in the constructor or in a
            step, a function does not return a number.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    A `state_dict` contains the attributes of functions that are objects with `__call__`. It does not contain plain
    functions.
    """

    cases = ({"lr_lambda": "0.95 ** epoch"}, {"lr_lambda": "0 if epoch % 5 == 3 else 1 / (1 + epoch)"})
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
                f"{type(self).__name__} takes one function for all groups, or a list with one for each"
            )
            self.reject("lr_lambda", HyperparameterError(message))

    def multipliers(self, t: int) -> list[float]:
        return [self.above_floor(self._checked_value(i, t)) for i in range(len(self.lr_lambdas))]

    def _checked_value(self, i: int, t: int) -> float:
        """The value of the function of group `i` at step `t`, checked to be a finite number."""
        function = self.lr_lambdas[i]
        subject = f"{type(self).__name__}: {getattr(function, '__qualname__', function)!s}, of group {i}, at epoch {t}"
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

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates in closed form. Warns, as torch does, when called outside of `step`."""
        warn_get_lr_outside_step(self)
        return self._get_closed_form_lr()

    def state_dict(self) -> dict[str, Any]:
        """The state, without the optimizer. `lr_lambdas` has the attributes of objects, and None for functions."""
        saved = [_saved_attributes(function) for function in self.lr_lambdas]
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
            if attributes and _saved_attributes(function) is None:
                raise ConfigError(
                    f"the checkpoint's lr_lambda has the attributes {attributes}, but {function!r} has no attributes: "
                    "resume with the function of the checkpoint"
                )
        super().load_state_dict({**state_dict, "lr_lambdas": functions})
        for function, attributes in zip(functions, saved, strict=True):
            if attributes:
                function.__dict__.update(attributes)


def _saved_attributes(function: Any) -> dict[str, Any] | None:
    """The attributes of a callable object that belong in a checkpoint; None for plain functions."""
    return None if isinstance(function, STATELESS) else getattr(function, "__dict__", None)


def _as_float(value: Any) -> float | None:
    """Convert a number of any type, or a tensor with one element, to float. Returns None for everything else."""
    try:
        return float(value) if hasattr(value, "__float__") else None
    except (TypeError, ValueError, RuntimeError):  # for example a tensor with several elements
        return None
