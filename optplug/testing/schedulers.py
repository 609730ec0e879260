"""The properties of schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.config.expressions import resolved
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.testing.checks import saved_and_loaded


class _Carrier(Optimizer):
    """An optimizer that only carries learning rates."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


@dataclass(frozen=True)
class Schedule:
    """A scheduler under test, in one case."""

    cls: type[LRScheduler]
    arguments: Mapping[str, Any]
    takes_metric: bool
    steps: int = 50

    def build(self, lrs: Sequence[float | Tensor], **groups: Any) -> LRScheduler:
        params = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, **groups} for lr in lrs]
        return self.cls(_Carrier(params, {"lr": 0.1}), **resolved(self.cls, self.arguments))

    def step(self, scheduler: LRScheduler, t: int) -> list[float]:
        """Take a step and tell the rates; the metric falls for a while, then stays."""
        scheduler.optimizer.step()
        if self.takes_metric:
            cast(Any, scheduler).step(max(1.0, 5.0 - 0.7 * t) + 0.01 * (t % 3))
        else:
            scheduler.step()
        return [float(group["lr"]) for group in scheduler.optimizer.param_groups]

    def rates(self, scheduler: LRScheduler, start: int, stop: int) -> list[list[float]]:
        return [self.step(scheduler, t) for t in range(start, stop)]

    def recursion_equals_closed_form(self) -> None:
        scheduler = cast(ClosedFormLR, self.build([0.1, 3.0]))
        for t in range(self.steps):
            stepped = self.step(scheduler, t)
            for i, closed in enumerate(map(float, scheduler._get_closed_form_lr())):
                figure = abs(stepped[i] - closed) / float(scheduler.base_lrs[i])
                assert figure <= 1e-11, (
                    f"after {t + 1} steps the rate is {stepped[i]:.17g}, the closed form {closed:.17g} "
                    f"(relative to the base rate: {figure:.3g}, allowed is 1e-11)"
                )

    def groups_go_their_own_way(self) -> None:
        lrs = [0.1, 3.0, 0.02]
        together = self.rates(self.build(lrs), 0, self.steps)
        for i, lr in enumerate(lrs):
            alone = [rates[0] for rates in self.rates(self.build([lr]), 0, self.steps)]
            for t, rates in enumerate(together):
                assert rates[i] == alone[t], f"after {t + 1} steps group {i} has {rates[i]:.17g}, alone {alone[t]:.17g}"

    def resumed_equals_uninterrupted(self) -> None:
        half = self.steps // 2
        through = self.rates(self.build([0.1, 3.0]), 0, self.steps)
        first = self.build([0.1, 3.0])
        self.rates(first, 0, half)
        saved = saved_and_loaded({"scheduler": first.state_dict(), "optimizer": first.optimizer.state_dict()})
        second = self.build([0.1, 3.0])
        second.optimizer.load_state_dict(saved["optimizer"])
        second.load_state_dict(saved["scheduler"])
        for t, (a, b) in enumerate(zip(self.rates(second, half, self.steps), through[half:], strict=True), half + 1):
            assert a == b, f"after {t} steps the resumed rates are {a}, the uninterrupted ones {b}"

    def a_tensor_lr_is_set_in_place(self) -> None:
        rate = torch.tensor(0.1, dtype=torch.float64)
        tensors, floats = self.build([rate]), self.build([0.1])
        held = tensors.optimizer.param_groups[0]["lr"]
        for t in range(self.steps):
            got, expected = self.step(tensors, t)[0], self.step(floats, t)[0]
            assert tensors.optimizer.param_groups[0]["lr"] is held, f"step {t + 1} replaced the tensor that is the rate"
            assert abs(got - expected) <= 1e-12, (
                f"after {t + 1} steps the tensor is {got:.17g}, a float would be {expected:.17g}"
            )

    def reports_last_lr(self) -> None:
        scheduler = self.build([0.1, 3.0])
        for t in range(self.steps):
            rates, told = self.step(scheduler, t), [float(lr) for lr in scheduler.get_last_lr()]
            assert told == rates, f"after {t + 1} steps get_last_lr() tells {told}, the groups have {rates}"
