"""The properties that the conformance kit checks for schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.config.expressions import resolve_function_arguments
from optplug.registry.plugin_registry import unregistered
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.testing.checks import save_and_load


class _IdleOptimizer(Optimizer):
    """An optimizer whose step does nothing: schedulers only need its parameter groups, some with a momentum."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


@dataclass(frozen=True)
class SchedulerUnderTest:
    """A scheduler under test with the arguments of one case.

    Attributes:
        cls: the scheduler class.
        arguments: the keyword arguments of its constructor.
        takes_metric: whether `step` takes a metric.
        steps: the number of steps of each check.
    """

    cls: type[LRScheduler]
    arguments: Mapping[str, Any]
    takes_metric: bool
    steps: int = 50

    def build(self, lrs: Sequence[float | Tensor], **groups: Any) -> LRScheduler:
        params = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, **groups} for lr in lrs]
        arguments = resolve_function_arguments(unregistered("scheduler", self.cls), self.arguments)
        return self.cls(_IdleOptimizer(params, {"lr": 0.1, "momentum": 0.9}), **arguments)

    def step(self, scheduler: LRScheduler, t: int) -> list[float]:
        """Take step `t` and return the learning rates. The metric decreases until step 6 and then varies slightly."""
        scheduler.optimizer.step()
        if self.takes_metric:
            cast(Any, scheduler).step(max(1.0, 5.0 - 0.7 * t) + 0.01 * (t % 3))
        else:
            scheduler.step()
        return [float(group["lr"]) for group in scheduler.optimizer.param_groups]

    def run_steps(self, scheduler: LRScheduler, start: int, stop: int) -> list[list[float]]:
        return [self.step(scheduler, t) for t in range(start, stop)]

    def steps_equal_closed_form(self) -> None:
        scheduler = cast(ClosedFormLR, self.build([0.1, 3.0]))
        for t in range(self.steps):
            stepped = self.step(scheduler, t)
            for i, closed in enumerate(map(float, scheduler._get_closed_form_lr())):
                difference = abs(stepped[i] - closed) / float(scheduler.base_lrs[i])
                assert difference <= 1e-11, (
                    f"after {t + 1} steps the learning rate is {stepped[i]:.17g}, the closed form {closed:.17g} "
                    f"(relative to the base learning rate: {difference:.3g}, allowed is 1e-11)"
                )

    def groups_are_independent(self) -> None:
        lrs = [0.1, 3.0, 0.02]
        together = self.run_steps(self.build(lrs), 0, self.steps)
        for i, lr in enumerate(lrs):
            alone = [lrs_at[0] for lrs_at in self.run_steps(self.build([lr]), 0, self.steps)]
            for t, lrs_at in enumerate(together):
                assert lrs_at[i] == alone[t], (
                    f"after {t + 1} steps group {i} has lr {lrs_at[i]:.17g}; as the only group it has {alone[t]:.17g}"
                )

    def resumed_equals_uninterrupted(self) -> None:
        half = self.steps // 2
        uninterrupted = self.run_steps(self.build([0.1, 3.0]), 0, self.steps)
        first = self.build([0.1, 3.0])
        self.run_steps(first, 0, half)
        saved = save_and_load({"scheduler": first.state_dict(), "optimizer": first.optimizer.state_dict()})
        second = self.build([0.1, 3.0])
        second.optimizer.load_state_dict(saved["optimizer"])
        second.load_state_dict(saved["scheduler"])
        for t, (a, b) in enumerate(
            zip(self.run_steps(second, half, self.steps), uninterrupted[half:], strict=True), half + 1
        ):
            assert a == b, f"after {t} steps the resumed learning rates are {a}, the uninterrupted ones {b}"

    def tensor_lr_is_updated_in_place(self) -> None:
        lr = torch.tensor(0.1, dtype=torch.float64)
        tensors, floats = self.build([lr]), self.build([0.1])
        original = tensors.optimizer.param_groups[0]["lr"]
        for t in range(self.steps):
            got, expected = self.step(tensors, t)[0], self.step(floats, t)[0]
            assert tensors.optimizer.param_groups[0]["lr"] is original, (
                f"step {t + 1} replaced the tensor that is the lr"
            )
            assert abs(got - expected) <= 1e-12, (
                f"after {t + 1} steps the tensor lr is {got:.17g}, a float lr is {expected:.17g}"
            )

    def get_last_lr_returns_group_lrs(self) -> None:
        scheduler = self.build([0.1, 3.0])
        for t in range(self.steps):
            lrs, reported = self.step(scheduler, t), [float(lr) for lr in scheduler.get_last_lr()]
            assert reported == lrs, f"after {t + 1} steps get_last_lr() returns {reported}, the groups have {lrs}"
