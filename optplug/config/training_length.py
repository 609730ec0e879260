"""The length of a training, and what depends on it: `auto`, warmups in epochs, checks of a schedule's length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optplug.config.form import is_auto
from optplug.config.model import SchedulerConfig
from optplug.errors import ConfigError, ErrorCollector


@dataclass(frozen=True)
class TrainingLength:
    """The length of a training, as far as it is known before the training starts.

    Attributes:
        steps: the number of steps of each optimizer; None if unknown.
        epochs: the number of epochs; None if unknown.
        steps_per_epoch: steps of each optimizer per epoch; None if unknown.
        unknown_reason: why one of these is unknown, for messages.
        batches: the number of batches of all epochs on one process; None if unknown.
        processes: the number of processes.
    """

    steps: int | None = None
    epochs: int | None = None
    steps_per_epoch: float | None = None
    unknown_reason: str = "no trainer is attached"
    batches: int | None = None
    processes: int = 1


def resolve_lengths(scheduler_config: SchedulerConfig, training: TrainingLength) -> SchedulerConfig:
    """Replace `auto` by a number, and convert the length of the warmup to optimizer steps.

    Args:
        scheduler_config: the parsed scheduler.
        training: the length of the training.

    Raises:
        ConfigError: a length depends on an unknown length of the training; or a length in optimizer steps is given
            for a schedule that steps once per epoch.
        ConfigErrors: several of these errors.
    """
    collector = ErrorCollector()
    length, warmup = scheduler_config.length_argument, scheduler_config.warmup
    arguments = dict(scheduler_config.arguments)
    if length is not None:
        with collector.collect(scheduler_config.argument_loc(length)):
            if is_auto(arguments.get(length)):
                arguments[length] = _auto_length(scheduler_config, training)
            else:
                _check_length_unit(scheduler_config, training)
    if warmup is not None and warmup.unit != "steps":
        with collector.collect((*scheduler_config.loc, "warmup", warmup.unit)):
            whole = training.steps if warmup.unit == "ratio" else training.steps_per_epoch
            if whole is None:
                raise ConfigError(f"{training.unknown_reason}: give the warmup in steps")
            warmup = dataclasses.replace(warmup, length=round(whole * warmup.length), unit="steps")
            if not warmup.length:
                warmup = None
    collector.raise_collected()
    return dataclasses.replace(scheduler_config, arguments=arguments, warmup=warmup)


def depends_on_training_length(scheduler_config: SchedulerConfig) -> bool:
    """Whether the schedule's length is `auto`, or its warmup is given in epochs or as a ratio."""
    length, warmup = scheduler_config.length_argument, scheduler_config.warmup
    return (length is not None and is_auto(scheduler_config.arguments.get(length))) or (
        warmup is not None and warmup.unit != "steps"
    )


def _auto_length(scheduler_config: SchedulerConfig, training: TrainingLength) -> int:
    """The number of steps that the schedule takes in the training, at least 1."""
    known = training.steps if scheduler_config.interval == "step" else training.epochs
    if known is not None:
        return max(1, known // scheduler_config.frequency)
    other = training.epochs if scheduler_config.interval == "step" else training.steps
    unit = "epoch" if scheduler_config.interval == "step" else "step"
    remedy = (
        f"give a number, or interval: {unit}" if other is not None else "set the trainer's max_steps, or give a number"
    )
    raise ConfigError(f"is auto, and {training.unknown_reason}: {remedy}")


def _check_length_unit(scheduler_config: SchedulerConfig, training: TrainingLength) -> None:
    """Raise an error if the length of a schedule that steps per epoch is evidently a number of optimizer steps."""
    length = scheduler_config.arguments.get(str(scheduler_config.length_argument))
    if scheduler_config.interval != "epoch" or training.epochs is None or not isinstance(length, (int, float)):
        return
    if length <= training.epochs:
        return
    for count, description in _counts_in_steps(scheduler_config, training):
        if length * scheduler_config.frequency == count:
            every = "epoch" if scheduler_config.frequency == 1 else f"{scheduler_config.frequency} epochs"
            raise ConfigError(
                f"is {length}, which is the number of {description}, but the schedule steps once every {every}, and "
                f"the training has {training.epochs} epochs: set interval: step, or "
                f"{scheduler_config.length_argument}: auto"
            )


def _counts_in_steps(scheduler_config: SchedulerConfig, training: TrainingLength) -> Iterator[tuple[int, str]]:
    """Lengths of the training in optimizer steps or batches, each with its description."""
    warmup = scheduler_config.warmup
    for count, unit in ((training.steps, "optimizer steps"), (training.batches, "batches")):
        if count is None:
            continue
        yield count, f"{unit} of this training"
        if training.processes > 1:
            yield count * training.processes, f"{unit} of this training on all processes together"
        if warmup is not None and warmup.unit == "steps":
            yield count - int(warmup.length), f"{unit} of this training after the warmup"


def length_warnings(scheduler_config: SchedulerConfig, training: TrainingLength) -> Iterator[str]:
    """Warn about a schedule that is valid but much longer or shorter than the training."""
    length: Any = scheduler_config.arguments.get(str(scheduler_config.length_argument))
    known = training.steps if scheduler_config.interval == "step" else training.epochs
    if known is None or isinstance(length, bool) or not isinstance(length, (int, float)):
        return
    name, interval = scheduler_config.length_argument, scheduler_config.interval
    scheduler_steps = known // scheduler_config.frequency
    if length > 2 * scheduler_steps:
        yield f"{name} is {length:g}, and this run of {known} {interval}s steps the schedule {scheduler_steps} times"
    elif interval == "step" and training.epochs is not None and length == training.epochs < scheduler_steps:
        yield f"{name} is {length:g} steps, the number of epochs of this run; the run has {known} steps"
