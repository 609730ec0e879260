"""The properties that the conformance kit checks for schedulers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.config.expressions import resolve_function_arguments
from optplug.errors import ConfigTypeError, listing
from optplug.registry import Registration
from optplug.registry.signature import configurable_arguments, declared_cases, target_of
from optplug.registry.specs import LENGTH_ARGUMENTS, SchedulerSpec
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.testing.checks import Check, case_label, registration_of, save_and_load


class _IdleOptimizer(Optimizer):
    """An optimizer whose step does nothing: schedulers only need its parameter groups, some with a momentum."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


@dataclass(frozen=True)
class SchedulerUnderTest:
    """A scheduler under test with the arguments of one case.

    Attributes:
        registration: the spec, and the plugin that registered it.
        arguments: the keyword arguments of its constructor.
        takes_metric: whether `step` takes a metric.
        steps: the number of steps of each check.
    """

    registration: Registration
    arguments: Mapping[str, Any]
    takes_metric: bool
    steps: int = 50

    def build(self, lrs: Sequence[float | Tensor], **groups: Any) -> LRScheduler:
        params = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, **groups} for lr in lrs]
        arguments = resolve_function_arguments(self.registration, self.arguments)
        optimizer = _IdleOptimizer(params, {"lr": 0.1, "momentum": 0.9})
        scheduler: LRScheduler = target_of(self.registration)(optimizer, **arguments)
        return scheduler

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
        """The learning rates of the steps equal those of the closed form."""
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
        """The learning rate of a parameter group does not depend on the other groups."""
        lrs = [0.1, 3.0, 0.02]
        together = self.run_steps(self.build(lrs), 0, self.steps)
        for i, lr in enumerate(lrs):
            alone = [lrs_at[0] for lrs_at in self.run_steps(self.build([lr]), 0, self.steps)]
            for t, lrs_at in enumerate(together):
                assert lrs_at[i] == alone[t], (
                    f"after {t + 1} steps group {i} has lr {lrs_at[i]:.17g}; as the only group it has {alone[t]:.17g}"
                )

    def resumed_equals_uninterrupted(self) -> None:
        """A new scheduler that loads the state dict continues as without the interruption."""
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
        """A learning rate that is a tensor is changed in place, as that of a captured graph must be."""
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
        """get_last_lr() returns the learning rates of the parameter groups."""
        scheduler = self.build([0.1, 3.0])
        for t in range(self.steps):
            lrs, reported = self.step(scheduler, t), [float(lr) for lr in scheduler.get_last_lr()]
            assert reported == lrs, f"after {t + 1} steps get_last_lr() returns {reported}, the groups have {lrs}"


PROMISES = (
    SchedulerUnderTest.groups_are_independent,
    SchedulerUnderTest.resumed_equals_uninterrupted,
    SchedulerUnderTest.tensor_lr_is_updated_in_place,
    SchedulerUnderTest.get_last_lr_returns_group_lrs,
    SchedulerUnderTest.steps_equal_closed_form,
)
"""All promises of schedulers."""


def collect_scheduler_checks(scheduler: Any, arguments: Mapping[str, Any]) -> list[Check]:
    """Return the checks that apply to a scheduler. Arguments and errors: see `optplug.testing.scheduler_checks`."""
    registration = registration_of("scheduler", scheduler, LRScheduler)
    checks = []
    for case in _complete_cases(registration, arguments):
        subject = SchedulerUnderTest(registration, case, "metric" in registration.spec.capabilities)
        for promise in PROMISES:
            if promise is not SchedulerUnderTest.steps_equal_closed_form or _has_closed_form(registration):
                name, meaning = promise.__name__, (promise.__doc__ or "").strip()
                checks.append(Check(f"{name}[{case_label(case)}]", functools.partial(promise, subject), meaning))
    return checks


def _has_closed_form(registration: Registration) -> bool:
    cls = target_of(registration)
    return isinstance(cls, type) and issubclass(cls, ClosedFormLR)


def _complete_cases(registration: Registration, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the cases to test. Each has lengths if the constructor requires them.

    Raises:
        ConfigTypeError: required arguments are missing.
    """
    cases = (dict(arguments),) if arguments else declared_cases(registration)
    required = [name for name, p in configurable_arguments(registration).items() if p.default is p.empty]
    lengths = (*LENGTH_ARGUMENTS, cast(SchedulerSpec, registration.spec).length)
    given = {name: 20 for name in required if name in lengths}
    cases = tuple({**given, **case} for case in cases)
    if missing := [name for name in required if name not in cases[0]]:
        name = target_of(registration).__name__
        remedy = "pass arguments to scheduler_checks, or declare `cases` in the spec or class"
        raise ConfigTypeError(f"{name} needs {listing(missing)}: {remedy}")
    return list(cases)
