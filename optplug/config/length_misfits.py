"""Schedules and warmups that are valid but do not fit the length of the training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeGuard

import torch

from optplug.config.build import build_scheduler
from optplug.config.lr_curves import OnlyGroups
from optplug.config.model import SchedulerConfig
from optplug.config.training_length import TrainingLength, schedule_steps
from optplug.errors import OptplugError
from optplug.registry.signature import configurable_arguments
from optplug.schedulers.closed_form import ClosedFormLR

LOW = 0.01
"""The fraction of the highest learning rate below which a model hardly changes."""

REST = 0.1
"""The fraction of the training that may follow the end of a schedule."""

SAMPLES = 40
"""The number of steps at which the learning rate is computed."""


def misfit_warnings(scheduler_config: SchedulerConfig, training: TrainingLength) -> Iterator[str]:
    """Warn about a warmup or a part of a schedule that is longer than the training, or a schedule that ends too early.

    Args:
        scheduler_config: the schedule, with all lengths resolved.
        training: the length of the training.
    """
    warmup, steps = scheduler_config.warmup, schedule_steps(scheduler_config, training)
    if training.is_dry_run:
        return
    if warmup is not None and training.steps is not None and warmup.length > training.steps:
        longer = f"the warmup of {warmup.length:g} steps is longer than this training of {training.steps} steps"
        yield longer + (": the schedule does not start" if warmup.delays_schedule else "")
    elif steps and scheduler_config.name is not None and not scheduler_config.takes_metric:
        yield from _misfits(scheduler_config, steps)


def _misfits(scheduler_config: SchedulerConfig, steps: int) -> Iterator[str]:
    known = configurable_arguments(scheduler_config.registration)
    arguments = {**{name: parameter.default for name, parameter in known.items()}, **scheduler_config.arguments}
    run = f"and this training steps the schedule {steps} times"
    total = scheduler_config.length_argument
    for name in scheduler_config.length_arguments:
        value = arguments.get(name)
        least = min(value, default=0) if isinstance(value, (list, tuple)) else value
        if name != total and _is_length(least) and least > steps:
            yield f"{name} is {value}, {run}"
    length = arguments.get(str(total))
    if _is_length(length):
        until, rest = range(min(length, steps) + 1), range(length, steps + 1)
        before, after = _lrs(scheduler_config, until), _lrs(scheduler_config, rest)
        if before and after and length < (1 - REST) * steps and max(after) <= LOW * max(before):
            yield f"{total} is {length}, {run}: the learning rate then stays below {LOW:.0%} of its highest value"
        elif before and steps < length <= 2 * steps and before[-1] == max(before):
            (last,) = _lrs(scheduler_config, [length])
            if last < before[-1]:
                yield f"{total} is {length}, {run}: the learning rate falls only after that"


def _is_length(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _lrs(scheduler_config: SchedulerConfig, steps: Sequence[int]) -> list[float]:
    """The learning rates of a schedule at some of these steps; empty if it has no formula for one group."""
    group = {"params": [torch.zeros(1)], "lr": 1.0, "momentum": 0.9}
    optimizer = OnlyGroups([group], dict(group))
    with suppress(OptplugError):  # such as one value for each group
        schedule = build_scheduler(optimizer, replace(scheduler_config, warmup=None))
        if isinstance(schedule, ClosedFormLR):
            last = math.inf if schedule.last_step is None else schedule.last_step
            shown = {*steps[:: len(steps) // SAMPLES + 1], *steps[-1:]}
            return [float(schedule.lrs(int(min(t, last)))[0]) for t in sorted(shown)]
    return []
