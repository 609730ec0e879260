"""How long a training lasts, and what follows for schedules: `auto`, warmups in epochs, a length in the wrong unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optplug.config.error_collector import ErrorCollector
from optplug.config.model import AUTO, SchedulerConfig
from optplug.errors import ConfigError


@dataclass(frozen=True)
class TrainingLength:
    """How long a training lasts, as far as that can be known before it begins.

    Attributes:
        steps: steps of each optimizer. epochs: their number. steps_per_epoch: of each optimizer. Each is None where it
            cannot be known.
        why: why one of them is not known, for messages.
        batches: of all epochs on one process. processes: how many there are.
    """

    steps: int | None = None
    epochs: int | None = None
    steps_per_epoch: float | None = None
    why: str = "no trainer is attached"
    batches: int | None = None
    processes: int = 1


def resolve_lengths(scheduled: SchedulerConfig, run: TrainingLength, loc: str = "scheduler") -> SchedulerConfig:
    """The schedule with numbers for `auto`, and its warmup in steps.

    Raises:
        ConfigError: the run has no known length; a length in steps counted in epochs. ConfigErrors: several of these.
    """
    collector = ErrorCollector()
    length, warmup, arguments = scheduled.length, scheduled.warmup, dict(scheduled.arguments)
    if length is not None and arguments.get(length) == AUTO:
        with collector.collect(f"{loc}.{length}"):
            arguments[length] = _auto(scheduled, run)
    elif length is not None:
        with collector.collect(f"{loc}.{length}"):
            _check_unit(scheduled, run)
    if warmup is not None and warmup.unit != "steps":
        with collector.collect(f"{loc}.warmup.{warmup.unit}"):
            whole = run.steps if warmup.unit == "ratio" else run.steps_per_epoch
            if whole is None:
                raise ConfigError(f"{run.why}: give the warmup in steps")
            warmup = dataclasses.replace(warmup, length=round(whole * warmup.length), unit="steps")
            if not warmup.length:
                warmup = None
    collector.raise_collected()
    return dataclasses.replace(scheduled, arguments=arguments, warmup=warmup)


def is_auto(scheduled: SchedulerConfig) -> bool:
    """Whether anything of the schedule depends on how long the training lasts."""
    length, warmup = scheduled.length, scheduled.warmup
    return (length is not None and scheduled.arguments.get(length) == AUTO) or (
        warmup is not None and warmup.unit != "steps"
    )


def _auto(scheduled: SchedulerConfig, run: TrainingLength) -> int:
    """The run's length in the schedule's own steps, at least 1."""
    known = run.steps if scheduled.interval == "step" else run.epochs
    if known is not None:
        return max(1, known // scheduled.frequency)
    other = run.epochs if scheduled.interval == "step" else run.steps
    unit = "epoch" if scheduled.interval == "step" else "step"
    remedy = (
        f"give a number, or interval: {unit}" if other is not None else "set the trainer's max_steps, or give a number"
    )
    raise ConfigError(f"is auto, and {run.why}: {remedy}")


def _check_unit(scheduled: SchedulerConfig, run: TrainingLength) -> None:
    length = scheduled.arguments.get(str(scheduled.length))
    if scheduled.interval != "epoch" or run.epochs is None or not isinstance(length, (int, float)):
        return
    if length <= run.epochs:
        return
    for count, words in _counts(scheduled, run):
        if length * scheduled.frequency == count:
            every = "an epoch" if scheduled.frequency == 1 else f"{scheduled.frequency} epochs"
            raise ConfigError(
                f"is {length}, which is the number of {words}, and the schedule is stepped once in {every}, of which "
                f"there are {run.epochs}: say interval: step, or {scheduled.length}: auto"
            )


def _counts(scheduled: SchedulerConfig, run: TrainingLength) -> Iterator[tuple[int, str]]:
    """Numbers of steps that somebody may have meant."""
    warmup = scheduled.warmup
    for count, words in ((run.steps, "optimizer steps"), (run.batches, "batches")):
        if count is None:
            continue
        yield count, f"{words} of this training"
        if run.processes > 1:
            yield count * run.processes, f"{words} of this training on all processes together"
        if warmup is not None and warmup.unit == "steps":
            yield count - int(warmup.length), f"{words} of this training after the warmup"


def remarks(scheduled: SchedulerConfig, run: TrainingLength) -> Iterator[str]:
    """What is not wrong and yet worth a word: a schedule much longer or shorter than the training."""
    length: Any = scheduled.arguments.get(str(scheduled.length))
    known = run.steps if scheduled.interval == "step" else run.epochs
    if known is None or isinstance(length, bool) or not isinstance(length, (int, float)):
        return
    units, there = f"{scheduled.interval}s", known // scheduled.frequency
    if length > 2 * there:
        yield f"{scheduled.length} is {length:g}, and this run of {known} {units} steps the schedule {there} times"
    elif scheduled.interval == "step" and run.epochs is not None and length == run.epochs < there:
        yield f"{scheduled.length} is {length:g} steps, as many as this run has epochs; its steps are {known}"
