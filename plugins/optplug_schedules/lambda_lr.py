"""A learning rate that any function of the step gives."""

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
from optplug.schedulers.checks import check_optimizer, check_state, warn_by_hand
from optplug.schedulers.late_groups import follow_groups

STATELESS = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
"""What can be called and has nothing to save."""


class LambdaLR(ClosedFormLR):
    r"""The base rate times a function: :math:`lr(t) = base \cdot \lambda(t)`, whatever other schedulers have set.

    Args:
        optimizer: whose groups' learning rates to set.
        lr_lambda: a function that takes the number of steps and returns a finite number, or a list with one for each
            group, the last for groups that are added later, too. A configuration gives it as an expression in `epoch`,
            such as `"0.95 ** epoch"`, or by the name of a function of a plugin.
        last_epoch: index of the last step taken; -1 to start. The step after it is taken at once.

    Raises:
        HyperparameterError: not one function for each group; `last_epoch` out of range; now or in a step, a function
        that returns infinity or NaN. HyperparameterTypeError: of the wrong type, or a misspelt keyword; now or in a
        step, a function that returns no number. TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    A `state_dict` has the attributes of functions that are objects with `__call__`; plain functions are not in it.
    """

    cases = ({"lr_lambda": "0.95 ** epoch"}, {"lr_lambda": "0 if epoch % 5 == 3 else 1 / (1 + epoch)"})
    functions = ("lr_lambda",)

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        check_optimizer(optimizer)
        many = isinstance(lr_lambda, (list, tuple))
        self.lr_lambdas: list[Any] = list(lr_lambda) if many else [lr_lambda] * len(optimizer.param_groups)  # type: ignore[arg-type]
        for i, function in enumerate(self.lr_lambdas):
            if not callable(function):
                hint = "; text is for configurations and create_scheduler" if isinstance(function, str) else ""
                place = f"{type(self).__name__}: lr_lambda{f'[{i}]' if many else ''}"
                raise HyperparameterTypeError(f"{place} must be a function of the step, got {function!r}{hint}")
        if len(self.lr_lambdas) != len(optimizer.param_groups):
            raise HyperparameterError(
                f"Expected {len(optimizer.param_groups)} lr_lambdas, but got {len(self.lr_lambdas)}: "
                f"{type(self).__name__} takes one function for all groups, or a list with one for each"
            )
        super().__init__(optimizer, last_epoch)

    def multipliers(self, t: int) -> list[float]:
        return [self._value(i, t) for i in range(len(self.lr_lambdas))]

    def _value(self, i: int, t: int) -> float:
        function = self.lr_lambdas[i]
        where = f"{type(self).__name__}: {getattr(function, '__qualname__', function)!s}, of group {i}, at epoch {t}"
        try:
            value = function(t)
            number = _as_float(value)
        except OverflowError:
            number = math.inf
        if number is None:
            raise HyperparameterTypeError(f"{where} must return a number, got {value!r}")
        if not math.isfinite(number):
            raise HyperparameterError(f"{where} must return a finite number, got {number}")
        return number

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates by definition; torch's warning when called by hand."""
        warn_by_hand(self)
        return self._get_closed_form_lr()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer; of the functions, the attributes of those that are objects, None for others."""
        saved = [_attributes(function) for function in self.lr_lambdas]
        return {**super().state_dict(), "lr_lambdas": [None if own is None else dict(own) for own in saved]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict`, of this class or of torch's; ConfigError for one that does not fit."""
        check_state(self, state_dict)
        saved = state_dict["lr_lambdas"]
        if len(saved) > len(self.lr_lambdas):
            follow_groups(self)
        functions = self.lr_lambdas
        if len(saved) != len(functions):
            raise ConfigError(f"the checkpoint's scheduler has {len(saved)} lr_lambdas, this one {len(functions)}")
        for function, own in zip(functions, saved, strict=True):
            if own and _attributes(function) is None:
                raise ConfigError(
                    f"the checkpoint's lr_lambda has the attributes {own}, and {function!r} cannot take them: "
                    "resume with the function of the checkpoint"
                )
        super().load_state_dict({**state_dict, "lr_lambdas": functions})
        for function, own in zip(functions, saved, strict=True):
            if own:
                function.__dict__.update(own)


def _attributes(function: Any) -> dict[str, Any] | None:
    """What a checkpoint keeps of a function."""
    return None if isinstance(function, STATELESS) else getattr(function, "__dict__", None)


def _as_float(value: Any) -> float | None:
    """A number of any kind, a tensor of one element too, as a float; None for text, None and all else."""
    try:
        return float(value) if hasattr(value, "__float__") else None
    except (TypeError, ValueError, RuntimeError):  # of more than one element
        return None
