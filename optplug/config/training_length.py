"""The length of a training, and what depends on it: `auto`, warmups in epochs, checks of a schedule's length."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optplug.config.form import is_auto
from optplug.config.model import SchedulerConfig, WarmupConfig
from optplug.errors import ConfigError, ErrorCollector, loc_text


@dataclass(frozen=True)
class EpochSteps:
    """The number of steps of each optimizer in each epoch. Gradient accumulation may change it between epochs.

    Attributes:
        counts: pairs of an epoch and a number of steps: the number in each epoch from this one to that of the next
            pair. Epochs are counted from the start of the schedule; the first pair has epoch 0.
    """

    counts: tuple[tuple[int, int], ...]

    def total(self, epochs: float) -> float:
        """The number of steps in the first epochs; a part of an epoch has its share of the steps of the epoch."""
        return sum(count * (min(epochs, end) - start) for start, end, count in self._ranges() if start < epochs)

    def epochs_for(self, steps: int) -> int:
        """The number of epochs, the last of which may be incomplete, that have a number of steps; 0 without steps."""
        for start, end, count in self._ranges():
            if count > 0 and steps <= count * (end - start):
                return start + math.ceil(steps / count)
            steps -= count * int(end - start) if count else 0
        return 0

    def _ranges(self) -> Iterator[tuple[int, float, int]]:
        """Ranges of epochs with the same number of steps: first epoch, end, number of steps."""
        for (start, count), (end, _) in itertools.pairwise([*self.counts, (math.inf, 0)]):
            yield int(start), end, count


@dataclass(frozen=True)
class TrainingLength:
    """The length of a training, as far as it is known before the training starts.

    A schedule that starts after a part of the training has the rest of it as its length.

    Attributes:
        steps: the number of steps of each optimizer; None if unknown.
        epochs: the number of epochs; None if unknown.
        epoch_steps: the steps of each optimizer in each epoch; None if unknown.
        unknown_reason: why one of these is unknown, for messages.
        batches: the number of batches of all epochs on one process; None if unknown.
        processes: the number of processes.
        steps_before: the number of steps of each optimizer before the schedule starts.
        epochs_before: the number of epochs before the schedule starts.
        may_be_trial: whether the training may be a trial of a longer one: it has `max_steps`, one epoch or a part of
            the data.
        remedy: what the user can do about an unknown length, for messages; None in a trainer.
    """

    steps: int | None = None
    epochs: int | None = None
    epoch_steps: EpochSteps | None = None
    unknown_reason: str = "no trainer is attached"
    batches: int | None = None
    processes: int = 1
    steps_before: int = 0
    epochs_before: int = 0
    may_be_trial: bool = False
    remedy: str | None = None

    def scheduler_steps(self, interval: str, frequency: int) -> int | None:
        """The number of times that a schedule is stepped in the whole training; None if unknown.

        Steps and epochs are counted from the start of the training: a schedule with a frequency of 2 is stepped in
        every second epoch of the training.
        """
        known, before = (self.steps, self.steps_before) if interval == "step" else (self.epochs, self.epochs_before)
        return None if known is None else (before + known) // frequency - before // frequency


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
            steps = _warmup_steps(warmup, training)
            if steps is None:
                remedy = f"{training.remedy}, or " if training.remedy else ""
                raise ConfigError(f"{training.unknown_reason}: {remedy}give the warmup in steps")
            # Without training the warmup stays: the scheduler has the form of the one in a checkpoint.
            whole = max(1, round(steps)) if training.steps == 0 else round(steps)
            warmup = dataclasses.replace(warmup, length=whole, unit="steps") if whole else None
    collector.raise_collected()
    return dataclasses.replace(scheduler_config, arguments=arguments, warmup=warmup)


def depends_on_training_length(scheduler_config: SchedulerConfig) -> bool:
    """Whether the schedule's length is `auto`, or its warmup is given in epochs or as a ratio."""
    length, warmup = scheduler_config.length_argument, scheduler_config.warmup
    return (length is not None and is_auto(scheduler_config.arguments.get(length))) or (
        warmup is not None and warmup.unit != "steps"
    )


def _warmup_steps(warmup: WarmupConfig, training: TrainingLength) -> float | None:
    """The length of a warmup in optimizer steps; None if it is unknown."""
    if warmup.unit == "ratio":
        return None if training.steps is None else training.steps * warmup.length
    return None if training.epoch_steps is None else training.epoch_steps.total(warmup.length)


def _auto_length(scheduler_config: SchedulerConfig, training: TrainingLength) -> int:
    """The number of steps that the schedule takes in the training, at least 1."""
    known = training.scheduler_steps(scheduler_config.interval, scheduler_config.frequency)
    if known is not None:
        return max(1, known)
    other = training.epochs if scheduler_config.interval == "step" else training.steps
    unit = "epoch" if scheduler_config.interval == "step" else "step"
    missing = training.remedy or ("set the trainer's max_steps" if other is None else None)
    remedies = [missing, "give a number", f"interval: {unit}" if other is not None else None]
    *first, last = filter(None, remedies)
    remedy = f"{', '.join(first)}, or {last}"
    raise ConfigError(f"is auto, and {training.unknown_reason}: {remedy}")


def _check_length_unit(scheduler_config: SchedulerConfig, training: TrainingLength) -> None:
    """Raise an error if the length of a schedule that steps per epoch is evidently a number of optimizer steps."""
    suspicion = None if training.may_be_trial else _wrong_unit(scheduler_config, training)
    if suspicion is not None:
        raise ConfigError(suspicion)


def possibly_wrong_unit(scheduler_config: SchedulerConfig, training: TrainingLength) -> str | None:
    """The warning if the length of a schedule that steps per epoch may be a number of optimizer steps.

    In a trial of a longer training, the length in epochs may be equal to the number of steps by coincidence.
    """
    suspicion = _wrong_unit(scheduler_config, training) if training.may_be_trial else None
    loc = scheduler_config.argument_loc(str(scheduler_config.length_argument))
    return None if suspicion is None else f"{loc_text(loc)}: {suspicion}"


def _wrong_unit(scheduler_config: SchedulerConfig, training: TrainingLength) -> str | None:
    """Why the length of a schedule that steps per epoch seems to be a number of optimizer steps."""
    name = scheduler_config.length_argument
    length = scheduler_config.arguments.get(str(name))
    if scheduler_config.interval != "epoch" or scheduler_config.interval_is_given:
        return None
    if not isinstance(length, (int, float)) or training.epochs is None or length <= training.epochs:
        return None
    for count, description in _counts_in_steps(scheduler_config, training):
        if length * scheduler_config.frequency == count:
            every = "epoch" if scheduler_config.frequency == 1 else f"{scheduler_config.frequency} epochs"
            epochs = f"{training.epochs} epoch{'s' * (training.epochs != 1)}"
            return (
                f"is {length}, which is the number of {description}, but the schedule steps once every {every}, and "
                f"the training has {epochs}: set interval: step, or {name}: auto; or, if {length} is a number of "
                "epochs, interval: epoch"
            )
    return None


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
    interval, name = scheduler_config.interval, scheduler_config.length_argument
    known = training.steps if interval == "step" else training.epochs
    scheduler_steps = training.scheduler_steps(interval, scheduler_config.frequency)
    if known is None or scheduler_steps is None or isinstance(length, bool) or not isinstance(length, (int, float)):
        return
    if length > 2 * scheduler_steps:
        yield f"{name} is {length:g}, and this run of {known} {interval}s steps the schedule {scheduler_steps} times"
    elif interval == "step" and training.epochs is not None and length == training.epochs < scheduler_steps:
        yield f"{name} is {length:g} steps, the number of epochs of this run; the run has {known} steps"
