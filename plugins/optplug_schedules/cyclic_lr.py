"""Cyclical learning rates: up and down between two bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from optplug.errors import HyperparameterTypeError
from optplug.schedulers.momentum import MomentumCycleLR
from optplug.schedulers.step_functions import checked_value, saved_attributes

MODES = ("triangular", "triangular2", "exp_range")


class CyclicLR(MomentumCycleLR):
    r"""Cycles between two bounds: :math:`lr(t) = base\_lr + (max\_lr - base\_lr) \, x(t) \, a(t)`.

    :math:`x(t)` rises linearly from 0 to 1 in `step_size_up` steps and falls to 0 in `step_size_down` steps.
    :math:`a(t)` is 1 (triangular), :math:`2^{1 - c}` in cycle :math:`c` = 1, 2, ... (triangular2), :math:`\gamma^t`
    (exp_range), or `scale_fn` of :math:`c` or :math:`t`. The momentum is :math:`max - (max - base) \, x(t) \, a(t)`.
    The learning rate of the optimizer is not used.

    Args:
        optimizer: the optimizer whose learning rates and momenta are set.
        base_lr: the lowest learning rate: a number for all groups, or a list with one number for each group.
        max_lr: the highest learning rate: a number for all groups, or a list with one number for each group.
        step_size_up: number of steps of the rise, at least 1.
        step_size_down: number of steps of the fall, at least 1. Default: `step_size_up`.
        mode: `"triangular"`, `"triangular2"` or `"exp_range"`. With `scale_fn` it is not used.
        gamma: factor :math:`\gamma \ge 0` in each step, for `"exp_range"`.
        scale_fn: a function that returns :math:`a`. In a configuration: an expression in `epoch`, which is the argument
            of the function, or the name of a function that a plugin registers.
        scale_mode: the argument of `scale_fn`: `"cycle"`, the number of the cycle, or `"iterations"`, the number of
            steps.
        cycle_momentum: whether the momentum (or the first of the betas) is set too.
        base_momentum: the lowest momentum: a number for all groups, or a list with one number for each group.
        max_momentum: the highest momentum, at the lowest learning rate: a number, or a list as above.
        last_epoch: index of the last step; -1 to start.

    Raises:
        HyperparameterError: an argument is out of range, or the optimizer has no momentum; in a step: `scale_fn`
            returns infinity or NaN.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown; in a step: `scale_fn` does not
            return a number.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2017, https://arxiv.org/abs/1506.01186.
    """

    interval = "step"
    functions = ("scale_fn",)
    cases = (
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 7},
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5, "step_size_down": 9, "mode": "triangular2"},
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4, "mode": "exp_range", "gamma": 0.97},
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4, "scale_fn": "1 / (1 + epoch)", "cycle_momentum": False},
    )

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: Literal["cycle", "iterations"] = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        base_lrs = self.check_per_group("base_lr", base_lr, optimizer)
        self.max_lrs = self.check_per_group("max_lr", max_lr, optimizer)
        up = self.check_number("step_size_up", step_size_up, 1)
        down = up if step_size_down is None else self.check_number("step_size_down", step_size_down, 1)
        self.total_size = float(up + down)
        self.step_ratio: float = up / self.total_size
        self.mode: str = mode
        function: Any = scale_fn
        if function is None:
            self.check_choice("mode", mode, MODES, torch_text="mode is invalid and scale_fn is None:")
        elif not callable(function):
            message = f"{type(self).__name__}: scale_fn must be a function, got {scale_fn!r}"
            self.reject("scale_fn", HyperparameterTypeError(message))
        self.gamma: float = self.check_number("gamma", gamma)
        self._scale_fn_custom: Any = scale_fn
        self.scale_mode: str = self.check_choice("scale_mode", scale_mode, ("cycle", "iterations"))
        if scale_fn is None:  # as torch stores it
            self.scale_mode = "iterations" if mode == "exp_range" else "cycle"
        self.cycle_momentum: bool = self.check_cycle_momentum(cycle_momentum, optimizer)
        base_momenta = self.check_per_group("base_momentum", base_momentum, optimizer)
        max_momenta = self.check_per_group("max_momentum", max_momentum, optimizer)
        options = {"lr": base_lrs}
        if self.cycle_momentum:
            self.use_beta1 = "betas" in getattr(optimizer, "defaults", ())  # a key of torch's state dict
            self.base_momentums, self.max_momentums = base_momenta, max_momenta
            options |= {"max_momentum": max_momenta, "base_momentum": base_momenta}
        super().__init__(optimizer, last_epoch, options)
        self.base_lrs: list[float | Tensor] = list(base_lrs)

    def position(self, t: int) -> float:
        r"""Return :math:`x(t) \, a(t)`: 0 at the lower bound, 1 at the upper one."""
        cycle = math.floor(1 + t / self.total_size)
        x = 1 + t / self.total_size - cycle
        x = x / self.step_ratio if x <= self.step_ratio else (x - 1) / (self.step_ratio - 1)
        return x * self.amplitude(cycle if self.scale_mode == "cycle" else t)

    def amplitude(self, n: int) -> float:
        """Return :math:`a` in cycle `n`, or at step `n`."""
        if self._scale_fn_custom is not None:
            return checked_value(type(self).__name__, self._scale_fn_custom, n)
        if self.mode == "triangular":
            return 1.0
        return float(2.0 ** (1 - n)) if self.mode == "triangular2" else float(self.gamma**n)

    def lrs(self, t: int) -> list[float | Tensor]:
        self.include_all_groups()
        x = self.position(t)
        return [base + (max_lr - base) * x for base, max_lr in zip(self.base_lrs, self.max_lrs, strict=True)]

    def momenta(self, t: int) -> list[float]:
        x = self.position(t)
        return [top - (top - base) * x for base, top in zip(self.base_momentums, self.max_momentums, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The state, without the optimizer. It has the attributes of `scale_fn` if it is an object with `__call__`."""
        saved = None if self._scale_fn_custom is None else saved_attributes(self._scale_fn_custom)
        return {**super().state_dict(), "_scale_fn_custom": saved and dict(saved)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's.

        Raises:
            ConfigError: the state is from another class.
        """
        function, saved = self._scale_fn_custom, state_dict.get("_scale_fn_custom")
        super().load_state_dict({**state_dict, "_scale_fn_custom": function})
        if saved and function is not None and saved_attributes(function) is not None:
            function.__dict__.update(saved)
