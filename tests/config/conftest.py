"""Fixtures of the configuration tests: expected errors and third-party classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import optplug
from optplug.config.build import parse_and_check
from optplug.errors import ConfigErrors, OptplugError, loc_text
from optplug.registry import Plugin, Registration, registry
from optplug.registry.specs import OptimizerSpec, SchedulerSpec, lookup_key


@pytest.fixture
def error_message() -> Callable[..., str]:
    """A function that returns the message of the only error of a configuration.

    `error_message(error_class, *args, **kwargs)` calls `parse_and_check(*args, **kwargs)`.
    """

    def get(error_class: type[OptplugError], *args: Any, **kwargs: Any) -> str:
        with pytest.raises(error_class) as caught:
            parse_and_check(*args, **kwargs)
        assert type(caught.value) is error_class
        assert str(caught.value).startswith(f"{loc_text(caught.value.loc)}: ")
        return str(caught.value)

    return get


@pytest.fixture
def collected_errors() -> Callable[..., list[OptplugError]]:
    """A function that calls `parse_and_check` and returns the errors, of which there must be several."""

    def get(*args: Any, **kwargs: Any) -> list[OptplugError]:
        with pytest.raises(ConfigErrors) as caught:
            parse_and_check(*args, **kwargs)
        errors = caught.value.errors
        assert str(caught.value) == "\n  ".join([f"the configuration has {len(errors)} errors:", *map(str, errors)])
        assert all(str(error).startswith(f"{loc_text(error.loc)}: ") for error in errors)
        return list(errors)

    return get


class FailingSGD(torch.optim.SGD):
    """Raises a builtin exception on request."""

    def __init__(self, params: Any, lr: float = 0.1, failure: str = "none", **more: Any) -> None:
        if failure == "value":
            raise ValueError("wrong value")
        if failure == "type":
            raise TypeError("wrong type")
        super().__init__(params, lr=lr, **more)


class MetricScheduler(torch.optim.lr_scheduler.LRScheduler):
    """Takes a metric, but has no argument `mode`. Its argument `interval` has the name of a reserved key."""

    def __init__(self, optimizer: Any, interval: int = 1, last_epoch: int = -1) -> None:
        self.own_interval = interval
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, metric: Any = None) -> None:
        super().step()


class PositionedMetricScheduler(MetricScheduler):
    """Takes a metric, and has the method `at`, so that every `patience_unit` is supported."""

    def at(self, position: int) -> None: ...


class ScheduleOfLengths(optplug.ClosedFormLR):
    """Has lengths that only its spec declares, and a warmup of its own."""

    def __init__(
        self, optimizer: Any, whole: int, part: int, gamma: float = 0.5, warmup_steps: int = 0, last_epoch: int = -1
    ) -> None:
        self.whole, self.part, self.gamma, self.warmup_steps = whole, part, gamma, warmup_steps
        super().__init__(optimizer, last_epoch)

    def multiplier(self, t: int) -> float:
        return max(0.0, 1 - t / self.whole)


class ScheduleOfSchedules(optplug.ClosedFormLR):
    """Has a list of schedules."""

    nested_schedules = ("schedules",)

    def __init__(self, optimizer: Any, schedules: Any, gamma: float = 0.5, last_epoch: int = -1) -> None:
        self.schedules, self.gamma = schedules, self.check_number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def multiplier(self, t: int) -> float:
        return 1.0


class SGDWithKeyNames(torch.optim.SGD):
    """Its arguments have the names of keys of a configuration."""

    def __init__(self, params: Any, lr: float = 0.1, type: int = 0, match: int = 0) -> None:  # noqa: A002
        super().__init__(params, lr=lr)


@pytest.fixture
def third_party_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the classes above under their names in snake case."""
    registry.names("optimizer")
    metric = frozenset({"metric"})
    specs = (
        OptimizerSpec("failing_sgd", FailingSGD),
        OptimizerSpec("sgd_with_key_names", SGDWithKeyNames),
        SchedulerSpec("metric_scheduler", MetricScheduler, capabilities=metric),
        SchedulerSpec(
            "schedule_of_lengths",
            ScheduleOfLengths,
            interval="step",
            length="whole",
            lengths=("part", "warmup_steps"),
        ),
        SchedulerSpec("schedule_of_schedules", ScheduleOfSchedules, interval="step"),
        SchedulerSpec("positioned_metric_scheduler", PositionedMetricScheduler, capabilities=metric),
    )
    for spec in specs:
        registration = Registration(spec, Plugin("third-party", "third-party", "1"))
        monkeypatch.setitem(registry._discovered().registrations[spec.kind], lookup_key(spec.name), [registration])
