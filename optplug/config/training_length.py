"""The length of a training, and what depends on it: `auto`, lengths with units, checks of a schedule's length."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optplug.config.form import is_auto
from optplug.config.lengths import all_lengths, is_relative, is_whole, length_argument, length_arguments
from optplug.config.model import OptimizerConfig, OptimizerSetup, SchedulerConfig, WarmupConfig
from optplug.errors import ConfigError, ErrorCollector, Loc, loc_text
from optplug.registry import Registration, registry


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
        """The number of epochs, the last of which may be incomplete, that have a number of steps; 0 if none."""
        position = self.position(steps)
        return 0 if math.isinf(position) else math.ceil(position)

    def position(self, steps: float) -> float:
        """The number of epochs, which need not be whole, that have a number of steps; infinite if there is none."""
        for start, end, count in self._ranges():
            if steps <= count * (end - start):
                return start + steps / count if steps else float(start)
            steps -= count * int(end - start) if count else 0
        return math.inf

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
        is_dry_run: whether the training only runs a few batches to find errors in the program (`fast_dev_run`).
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
    is_dry_run: bool = False
    remedy: str | None = None

    def scheduler_steps(self, interval: str, frequency: int, delay: int = 0) -> int | None:
        """The number of times that a schedule is stepped in the whole training; None if unknown.

        Steps and epochs are counted from the start of the training: a schedule with a frequency of 2 is stepped in
        every second epoch of the training.

        Args:
            interval: `"step"` or `"epoch"`.
            frequency: the number of intervals between two steps of the schedule.
            delay: the number of optimizer steps before the schedule starts. It then starts at the end of the interval,
                or of the `frequency` intervals, in which these steps end. Default: 0.
        """
        by_step = interval == "step"
        known, before = (self.steps, self.steps_before) if by_step else (self.epochs, self.epochs_before)
        if delay and not by_step:
            if self.epoch_steps is None:
                return None
            delay = self.epoch_steps.epochs_for(delay)
        if known is None:
            return None
        first = math.ceil((before + delay) / frequency) if delay else before // frequency
        return max(0, (before + known) // frequency - first)


def resolve_lengths(scheduler_config: SchedulerConfig, training: TrainingLength) -> SchedulerConfig:
    """Convert the lengths of a schedule to numbers of its own steps, and that of its warmup to optimizer steps.

    A number of steps that is not whole is rounded to the nearest whole number, a half to the even one. A length of the
    schedule that is above 0 has at least one step. A warmup of less than half a step is none.

    Args:
        scheduler_config: the parsed scheduler.
        training: the length of the training.

    Raises:
        ConfigError: a length depends on an unknown length of the training; a length in optimizer steps is given for a
            schedule that steps once per epoch; or a length is too short for such a schedule.
        ConfigErrors: several of these errors.
    """
    collector = ErrorCollector()
    with collector.collect(_loc_of_length(scheduler_config)):
        _check_length_unit(scheduler_config, training)
    warmup = _resolved_warmup(collector, scheduler_config, training)
    scheduler_config = replace(scheduler_config, warmup=warmup)
    given = scheduler_config.arguments
    relative = {name: given[name] for name in scheduler_config.all_lengths if is_relative(given.get(name))}
    arguments = dict(given)
    if scheduler_config.name is not None:
        steps = schedule_steps(scheduler_config, training)
        undelayed = training.scheduler_steps(scheduler_config.interval, scheduler_config.frequency)
        start = 0 if steps is None or undelayed is None else undelayed - steps
        basis = _Basis(scheduler_config, training, steps, start)
        arguments = _resolved_arguments(
            collector, scheduler_config.registration, given, basis, scheduler_config.argument_loc
        )
    collector.raise_collected()
    lengths = {**scheduler_config.given_lengths, **relative}
    return replace(scheduler_config, arguments=arguments, given_lengths=lengths)


def resolve_setup(setup: OptimizerSetup, training: TrainingLength) -> OptimizerSetup:
    """Resolve the lengths of an optimizer and of all its schedules.

    Raises:
        As `resolve_lengths`.
    """
    collector = ErrorCollector()

    def resolve(schedule: SchedulerConfig) -> SchedulerConfig:
        with collector.collect():
            return resolve_lengths(schedule, training)
        return schedule

    resolved = setup.with_schedules(resolve)
    with collector.collect():
        resolved = resolve_optimizers(resolved, training)
    collector.raise_collected()
    return resolved


def resolve_optimizers(setup: OptimizerSetup, training: TrainingLength) -> OptimizerSetup:
    """Convert the lengths of the training that are arguments of optimizers to numbers of optimizer steps.

    Raises:
        ConfigError: a length depends on an unknown length of the training.
        ConfigErrors: several of these errors.
    """
    if not optimizers_depend_on_training_length(setup):
        return setup
    collector = ErrorCollector()

    def resolve(optimizer: OptimizerConfig) -> dict[str, Any]:
        found = dict(optimizer.hyperparameters)
        name = _relative_length(optimizer)
        if name is not None:
            with collector.collect(optimizer.argument_loc(name)):
                found[name] = _training_steps(found[name], training)
        return found

    resolved = setup.with_optimizers(lambda optimizer: optimizer.change(resolve))
    collector.raise_collected()
    return resolved


def optimizers_depend_on_training_length(setup: OptimizerSetup) -> bool:
    """Whether an argument of one of the optimizers is a length of the training that is `auto` or has a unit."""
    layers = [layer for entry in setup.entries for member in entry.members for layer in member.layers]
    return any(_relative_length(layer.optimizer) is not None for layer in layers)


def _relative_length(optimizer: OptimizerConfig) -> str | None:
    """The name of an optimizer's argument that is a length of the training which is `auto` or has a unit, if any."""
    name = length_argument(optimizer.registration)
    return name if name is not None and is_relative(optimizer.hyperparameters.get(name)) else None


def _training_steps(given: Any, training: TrainingLength) -> int:
    """The number of optimizer steps of a length.

    Raises:
        ConfigError: it is unknown.
    """
    unit, value = ("ratio", 1) if is_auto(given) else next(iter(given.items()))
    steps: float | None = value
    if unit == "ratio":
        steps = None if training.steps is None else value * training.steps
    elif unit == "epochs":
        steps = None if training.epoch_steps is None else training.epoch_steps.total(value)
    if steps is None:
        remedy = f"{training.remedy}, or " if training.remedy else ""
        raise ConfigError(f"{training.unknown_reason}: {remedy}give a number of optimizer steps")
    return max(1, round(steps))


def depends_on_training_length(scheduler_config: SchedulerConfig) -> bool:
    """Whether a length of the schedule is `auto` or has a unit, or its warmup is given in epochs or as a ratio."""
    arguments, warmup = scheduler_config.arguments, scheduler_config.warmup
    return any(is_relative(arguments.get(name)) for name in scheduler_config.all_lengths) or (
        warmup is not None and warmup.unit != "steps"
    )


def _resolved_warmup(
    collector: ErrorCollector, scheduler_config: SchedulerConfig, training: TrainingLength
) -> WarmupConfig | None:
    """The warmup with its length in optimizer steps; None without warmup, and after an error."""
    warmup = scheduler_config.warmup
    if warmup is None or warmup.unit == "steps":
        return warmup
    with collector.collect((*scheduler_config.loc, "warmup", warmup.unit)):
        steps = _warmup_steps(warmup, training)
        if steps is None:
            remedy = f"{training.remedy}, or " if training.remedy else ""
            raise ConfigError(f"{training.unknown_reason}: {remedy}give the warmup in steps")
        # Without training the warmup stays: the scheduler has the form of the one in a checkpoint.
        whole = max(1, round(steps)) if training.steps == 0 else round(steps)
        return replace(warmup, length=whole, unit="steps") if whole else None
    return None


def schedule_steps(scheduler_config: SchedulerConfig, training: TrainingLength) -> int | None:
    """The number of times that a schedule is stepped in the training, after a warmup that delays it."""
    warmup = scheduler_config.warmup
    delay = int(warmup.length) if warmup is not None and warmup.delays_schedule else 0
    return training.scheduler_steps(scheduler_config.interval, scheduler_config.frequency, delay)


@dataclass(frozen=True)
class _Basis:
    """What the lengths of a schedule are relative to.

    Attributes:
        config: the schedule. Its interval and frequency are the unit of its steps.
        training: the length of the training.
        total: the number of steps of the whole schedule, or of its part in a list of schedules; None if unknown.
        start: the number of steps before the schedule, or before its part: a warmup, and the schedules before it.
        end: the number of steps at the end of a length that is counted back from there; None for other lengths.
    """

    config: SchedulerConfig
    training: TrainingLength
    total: int | None
    start: int = 0
    end: int | None = None


def _resolved_arguments(
    collector: ErrorCollector,
    registration: Registration,
    given: Mapping[str, Any],
    basis: _Basis,
    loc_of: Callable[[str], Loc],
) -> dict[str, Any]:
    """The arguments of a schedule with its lengths in its own steps. Errors are collected.

    Args:
        collector: collects the errors.
        registration: the schedule.
        given: the arguments.
        basis: what the lengths are relative to.
        loc_of: returns the location of an argument.
    """
    found, total = dict(given), str(length_argument(registration))
    final: Collection[str] = getattr(registration.spec, "final_lengths", ())
    for name in all_lengths(registration):
        if is_relative(given.get(name)):
            steps = found.get(total)
            end = basis.start + steps if name in final and isinstance(steps, int) else None
            found[name] = _resolved(collector, given[name], replace(basis, end=end), loc_of(name))
    if basis.training.is_dry_run and is_whole(given.get(total)) and isinstance(found[total], int):
        parts = (found.get(name) for name in length_arguments(registration) if name != total)
        found[total] = max(found[total], sum(part for part in parts if isinstance(part, int)))  # what its parts need
    return found


def _resolved(collector: ErrorCollector, given: Any, basis: _Basis, loc: Loc) -> Any:
    """A length in steps of the schedule, or a list of such lengths, or of schedules. Errors are collected."""
    if isinstance(given, (list, tuple)):
        if any(isinstance(each, Mapping) and "name" in each for each in given):
            return _resolved_schedules(collector, given, basis, loc)
        return [_resolved(collector, each, basis, (*loc, i)) for i, each in enumerate(given)]
    with collector.collect(loc):
        if is_auto(given):
            return max(1, _total(basis, "auto"))
        if isinstance(given, Mapping):
            return _converted(given, basis)
    return given


def _resolved_schedules(
    collector: ErrorCollector, schedules: Sequence[Mapping[str, Any]], basis: _Basis, loc: Loc
) -> list[dict[str, Any]]:
    """A list of schedules, in which the last one has the rest of the steps, and all lengths are numbers.

    Lengths of a schedule's arguments are relative to its part.
    """
    found: list[dict[str, Any]] = []
    left, start = basis.total, basis.start
    for i, schedule in enumerate(schedules):
        basis = replace(basis, start=start)
        rest = max(1, left) if left is not None else None
        length = schedule.get("length", rest)
        if is_auto(length):
            length = _resolved(collector, length, replace(basis, total=rest), (*loc, i, "length"))
        else:
            length = _resolved(collector, length, basis, (*loc, i, "length"))
        steps = length if isinstance(length, int) else None
        left = left - steps if left is not None and steps is not None else None
        start += steps or 0
        arguments = dict(schedule) if length is None else {**schedule, "length": length}
        registration, part = registry.resolve("scheduler", schedule["name"]), replace(basis, total=steps)
        found.append(_resolved_arguments(collector, registration, arguments, part, functools.partial(_join, loc, i)))
    return found


def _join(loc: Loc, index: int, name: str) -> Loc:
    return (*loc, index, name)


def _converted(given: Mapping[str, float], basis: _Basis) -> int:
    """A length with a unit in steps of the schedule."""
    ((unit, value),) = given.items()
    scheduler_config, training = basis.config, basis.training
    interval, frequency = scheduler_config.interval, scheduler_config.frequency
    if unit == "ratio":
        steps: float | None = value * _total(basis, "a ratio")
    else:
        steps = value / frequency if unit == f"{interval}s" else _of_other_unit(unit, value, basis)
    if steps is None or math.isinf(steps):
        remedy = f"{training.remedy}, or " if training.remedy else ""
        raise ConfigError(f"{training.unknown_reason}: {remedy}give a number of {_own_unit(scheduler_config)}")
    if round(steps) or not value:
        return round(steps)
    if interval == "epoch" and basis.total != 0 and not training.is_dry_run:
        raise ConfigError(
            f"is {steps:.2g} steps of the schedule, which steps once every {_own_interval(scheduler_config)}; this is "
            "rounded to 0: set interval: step"
        )
    return 1


def _of_other_unit(unit: str, value: float, basis: _Basis) -> float | None:
    """A length in optimizer steps or epochs, in steps of a schedule that has the other interval; None if it is unknown.

    Epochs may differ in their number of steps. The epochs of a length are those after its start, or before its end.
    """
    counts, frequency = basis.training.epoch_steps, basis.config.frequency
    if counts is None:
        return None
    to_own, to_unit = (counts.position, counts.total) if unit == "steps" else (counts.total, counts.position)
    here = (basis.start if basis.end is None else basis.end) * frequency
    there = to_unit(here)
    if len(counts.counts) == 1 or math.isinf(there):
        return to_own(value) / frequency
    own = to_own(there + value) - here if basis.end is None else here - to_own(max(0, there - value))
    return own / frequency


def _own_interval(scheduler_config: SchedulerConfig) -> str:
    """How often a schedule steps, such as `epoch` or `2 epochs`."""
    interval, frequency = scheduler_config.interval, scheduler_config.frequency
    return interval if frequency == 1 else f"{frequency} {interval}s"


def _own_unit(scheduler_config: SchedulerConfig) -> str:
    """The unit of a number of a schedule's own steps."""
    if scheduler_config.frequency > 1:
        return "steps of the schedule"
    return "optimizer steps" if scheduler_config.interval == "step" else "epochs"


def _warmup_steps(warmup: WarmupConfig, training: TrainingLength) -> float | None:
    """The length of a warmup in optimizer steps; None if it is unknown."""
    if warmup.unit == "ratio":
        return None if training.steps is None else training.steps * warmup.length
    return None if training.epoch_steps is None else training.epoch_steps.total(warmup.length)


def _total(basis: _Basis, given: str) -> int:
    """The number of steps of the whole schedule.

    Args:
        basis: what its lengths are relative to.
        given: what the length is, for the message if the number is unknown.
    """
    if basis.total is not None:
        return basis.total
    training, interval = basis.training, basis.config.interval
    other = training.epochs if interval == "step" else training.steps
    unit = "epoch" if interval == "step" else "step"
    missing = training.remedy or ("set the trainer's max_steps" if other is None else None)
    remedies = [missing, "give a number", f"interval: {unit}" if other is not None else None]
    *first, last = filter(None, remedies)
    remedy = f"{', '.join(first)}, or {last}"
    raise ConfigError(f"is {given}, and {training.unknown_reason}: {remedy}")


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
    loc = _loc_of_length(scheduler_config)
    return None if suspicion is None else f"{loc_text(loc)}: {suspicion}"


def _wrong_unit(scheduler_config: SchedulerConfig, training: TrainingLength) -> str | None:
    """Why the length of a schedule that steps per epoch seems to be a number of optimizer steps."""
    name = scheduler_config.length_argument
    length = scheduler_config.arguments.get(str(name))
    if scheduler_config.interval != "epoch" or scheduler_config.interval_is_given:
        return None
    if name in scheduler_config.given_lengths:  # it was given with its unit
        return None
    parts = scheduler_config.parts
    if parts:  # those of a list of schedules add up
        numbers = [part.given_length for part in parts if isinstance(part.given_length, int)]
        name, length = "the sum of the lengths", sum(numbers) if len(numbers) == len(parts) else None
    if not isinstance(length, (int, float)) or training.epochs is None or length <= training.epochs:
        return None
    for count, description in _counts_in_steps(scheduler_config, training):
        if length * scheduler_config.frequency == count:
            every = _own_interval(scheduler_config)
            epochs = f"{training.epochs} epoch{'s' * (training.epochs != 1)}"
            what, auto = (f"{name} is", "") if parts else ("is", f", or {name}: auto")
            return (
                f"{what} {length}, which is the number of {description}, but the schedule steps once every {every}, "
                f"and the training has {epochs}: set interval: step{auto}; or, if {length} is a number of epochs, "
                "interval: epoch"
            )
    return None


def _loc_of_length(scheduler_config: SchedulerConfig) -> Loc:
    """The location of the argument that sets the length of the whole schedule."""
    parts = scheduler_config.parts
    return parts[0].schedule.loc[:-1] if parts else scheduler_config.argument_loc(str(scheduler_config.length_argument))


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
    scheduler_steps = schedule_steps(scheduler_config, training)
    if scheduler_steps is not None and not training.is_dry_run:
        yield from _part_warnings(scheduler_config, scheduler_steps)
    if known is None or scheduler_steps is None or isinstance(length, bool) or not isinstance(length, (int, float)):
        return
    if length > 2 * scheduler_steps:
        yield f"{name} is {length:g}, and this run of {known} {interval}s steps the schedule {scheduler_steps} times"
    elif name in scheduler_config.given_lengths:
        return
    elif interval == "step" and training.epochs is not None and length == training.epochs < scheduler_steps:
        yield f"{name} is {length:g} steps, the number of epochs of this run; the run has {known} steps"


def _part_warnings(scheduler_config: SchedulerConfig, steps: int) -> Iterator[str]:
    """Warn about schedules in a list that do not run, and about a last one that is much longer than what is left."""
    start, run = 0, f"this training steps the schedule {steps} times"
    for part in scheduler_config.parts:
        loc = loc_text(part.schedule.loc)
        if start >= steps:
            yield f"{loc} never runs: the schedules before it have {start} steps, and {run}"
        elif isinstance(part.length, int) and start + part.length > 2 * steps:
            yield f"{loc}.length is {part.length}, and {run}"
        start += part.length if isinstance(part.length, int) else 0
