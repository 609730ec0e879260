"""The 1cycle policy: up to a high learning rate, then down to a very low one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from optplug.errors import HyperparameterError
from optplug.schedulers.momentum import MomentumCycleLR

Phase = dict[str, Any]


class OneCycleLR(MomentumCycleLR):
    r"""The 1cycle policy: in T steps from :math:`i` to `max_lr` and then to :math:`m`. The momentum does the opposite.

    :math:`i = max\_lr / div\_factor` and :math:`m = i / final\_div\_factor`. Each phase goes from a value :math:`a` to
    :math:`b`: :math:`lr = b + \tfrac12 (a - b) (1 + \cos \pi x)`, or :math:`lr = a + (b - a) \, x` (linear), where
    :math:`x` goes from 0 to 1. With `three_phase`, it goes back to :math:`i` as fast as it has risen, and then to
    :math:`m`. The learning rate of the optimizer is not used.

    Args:
        optimizer: the optimizer whose learning rates and momenta are set.
        max_lr: the highest learning rate: a number for all groups, or a list with one number for each group.
        total_steps: number of steps :math:`T`, an integer, at least 1. Without it: `epochs` times `steps_per_epoch`.
        epochs: number of epochs of the training, an integer, at least 1.
        steps_per_epoch: number of steps in each epoch, an integer, at least 1.
        pct_start: the part of the steps in which the learning rate rises, in [0, 1].
        anneal_strategy: `"cos"` or `"linear"`: the form of each phase.
        cycle_momentum: whether the momentum (or the first of the betas) is set too.
        base_momentum: the momentum at the highest learning rate: a number, or a list with one number for each group.
        max_momentum: the momentum at the start and at the end: a number, or a list with one number for each group.
        div_factor: :math:`max\_lr / i`, above 0.
        final_div_factor: :math:`i / m`, above 0.
        three_phase: whether the learning rate returns to :math:`i` in a phase of its own.
        last_epoch: index of the last step; -1 to start.

    Raises:
        HyperparameterError: an argument is out of range, the number of steps is not given, or the optimizer has no
            momentum; in a step: the schedule has ended.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    As in torch, `max_lr`, the lowest learning rate and the bounds of the momentum are options of the parameter groups.

    Source: Smith and Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, 2019,
    https://arxiv.org/abs/1708.07120.
    """

    interval = "step"
    cases = (
        {"max_lr": 1.0, "total_steps": 60},
        {"max_lr": 0.5, "epochs": 6, "steps_per_epoch": 10, "anneal_strategy": "linear", "three_phase": True},
        {"max_lr": 1.0, "total_steps": 55, "cycle_momentum": False, "pct_start": 0.0},
    )

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        max_lrs = self.check_per_group("max_lr", max_lr, optimizer)
        self.total_steps: int = self._check_steps(total_steps, epochs, steps_per_epoch)
        text = f"Expected float between 0 and 1 pct_start, but got {pct_start}:"
        rise: float = self.check_number("pct_start", pct_start, 0, 1, torch_text=text)
        text = f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}:"
        self._anneal_func_type: str = self.check_choice(
            "anneal_strategy", anneal_strategy, ("cos", "linear"), torch_text=text
        )
        self.cycle_momentum: bool = self.check_cycle_momentum(cycle_momentum, optimizer)
        base_momenta = self.check_per_group("base_momentum", base_momentum, optimizer)
        max_momenta = self.check_per_group("max_momentum", max_momentum, optimizer)
        div_factor = self.check_positive("div_factor", div_factor)
        final_div_factor = self.check_positive("final_div_factor", final_div_factor)
        three_phase = self.check_bool("three_phase", three_phase)
        start_lrs = [lr / div_factor for lr in max_lrs]
        options = {
            "initial_lr": start_lrs,
            "max_lr": max_lrs,
            "min_lr": [lr / final_div_factor for lr in start_lrs],
        }
        if self.cycle_momentum:
            self.use_beta1 = "betas" in getattr(optimizer, "defaults", ())  # a key of torch's state dict
            options |= {"max_momentum": max_momenta, "base_momentum": base_momenta}
        self._schedule_phases: list[Phase] = phases(self.total_steps, rise, three_phase)
        super().__init__(optimizer, last_epoch, options)

    def _check_steps(self, total_steps: Any, epochs: Any, steps_per_epoch: Any) -> int:
        """Return the number of steps."""
        if total_steps is None and (epochs is None or steps_per_epoch is None):
            message = "You must define either total_steps OR (epochs AND steps_per_epoch)"
            self.reject("total_steps", HyperparameterError(f"{message}: {type(self).__name__} has no length"))
            return 1
        given = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
        if total_steps is not None:
            given = {"total_steps": total_steps}
        product = 1
        for name, value in given.items():
            text = f"Expected positive integer {name}, but got {value}:"
            product *= self.check_number(name, value, 1, whole=True, torch_text=text)
        return product

    @property
    def last_step(self) -> int:  # type: ignore[override]
        return int(self.total_steps) - 1

    def _interpolate(self, t: int, values: Mapping[str, Any], what: str) -> Any:
        """Return the learning rate or the momentum of a group, from the values at the ends of the phases."""
        start = 0.0
        for phase in self._schedule_phases[:-1]:
            if t <= phase["end_step"]:
                break
            start = phase["end_step"]
        else:
            phase = self._schedule_phases[-1]
        length = phase["end_step"] - start
        x = (t - start) / length if length else 1.0
        a, b = values[phase[f"start_{what}"]], values[phase[f"end_{what}"]]
        if self._anneal_func_type == "linear":
            return a + (b - a) * x
        return b + (a - b) / 2 * (1 + math.cos(math.pi * x))

    def lrs(self, t: int) -> list[float | Tensor]:
        self.include_all_groups()
        if t > self.total_steps:
            raise HyperparameterError(
                f"Tried to step {t} times. The specified number of total steps is {self.total_steps}: "
                f"{type(self).__name__} has ended; set total_steps to the number of steps of the whole training"
            )
        pairs = zip(self.optimizer.param_groups, self.base_lrs, strict=True)
        return [self._interpolate(t, {**group, "initial_lr": base}, "lr") for group, base in pairs]

    def momenta(self, t: int) -> list[float]:
        return [self._interpolate(t, group, "momentum") for group in self.optimizer.param_groups]


def phases(total_steps: int, pct_start: float, three_phase: bool) -> list[Phase]:
    """The phases of the policy, as torch stores them: the names of the values at both ends, and the last step."""
    rise = float(pct_start * total_steps)
    up = _phase(rise - 1, "initial_lr", "max_lr", "max_momentum", "base_momentum")
    if not three_phase:
        return [up, _phase(total_steps - 1, "max_lr", "min_lr", "base_momentum", "max_momentum")]
    down = _phase(2 * rise - 2, "max_lr", "initial_lr", "base_momentum", "max_momentum")
    return [up, down, _phase(total_steps - 1, "initial_lr", "min_lr", "max_momentum", "max_momentum")]


def _phase(end_step: float, start_lr: str, end_lr: str, start_momentum: str, end_momentum: str) -> Phase:
    return {
        "end_step": end_step,
        "start_lr": start_lr,
        "end_lr": end_lr,
        "start_momentum": start_momentum,
        "end_momentum": end_momentum,
    }
