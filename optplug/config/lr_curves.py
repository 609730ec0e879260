"""The learning rates of a training before it starts: the real schedulers, stepped on dummy parameter groups."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optplug.config.build import build_schedule, is_link
from optplug.config.fields import has_unresolved
from optplug.config.model import GroupRule, OptimizerEntry, OptimizerSetup, SchedulerConfig
from optplug.config.param_group_presets import NoDecay
from optplug.config.param_groups import apply_multipliers
from optplug.config.third_party import third_party_errors
from optplug.config.training_length import TrainingLength, resolve_setup
from optplug.errors import ConfigError, ErrorCollector, Loc
from optplug.optim.combined import unique_name
from optplug.schedulers.adapters import ScheduleEnd, adapter_for
from optplug.schedulers.closed_form import Unscheduled
from optplug.schedulers.per_group import SCHEDULE_KEY

METRIC = 1.0
"""The constant metric with which plateau schedulers are stepped: it never improves."""


@dataclass(frozen=True)
class Curve:
    """What a schedule sets in a parameter group, or in several groups with the same values.

    Attributes:
        groups: the names of the groups.
        lrs: the learning rate after n steps of the axis, for n = 0, 1, ..., the length of the training.
        momentums: the momentum, or the first of the betas, likewise; NaN without one. Empty if it is not wanted.
    """

    groups: tuple[str, ...]
    lrs: tuple[float, ...]
    momentums: tuple[float, ...] = ()


def axis(training: TrainingLength) -> tuple[str, int]:
    """The unit in which curves are computed, `"step"` (optimizer steps) or `"epoch"`, and the length of the training.

    Raises:
        ConfigError: neither length is known.
    """
    if training.steps is not None:
        return "step", training.steps
    if training.epochs is not None:
        return "epoch", training.epochs
    raise ConfigError(f"{training.unknown_reason}: {training.remedy}")


def lr_curves(
    groups: Sequence[Mapping[str, Any]], setup: OptimizerSetup, training: TrainingLength, *, momentum: bool = False
) -> list[Curve]:
    """The learning rates of parameter groups during a training: what the scheduler sets, step by step.

    Args:
        groups: the options of each group: `name`, `lr`, and others that the scheduler reads, such as `momentum`.
        setup: the schedules. Those with a metric are stepped at the end of each epoch, with a metric that never
            improves.
        training: the length. If the number of optimizer steps is not known, the unit is an epoch.
        momentum: whether the curves have the momentum too. Default: False.

    Returns:
        One curve for each group. Groups with equal curves share one.

    Raises:
        ConfigError: a schedule depends on a length that is not known; an error raised by a third-party class.
        OptplugError: whatever the scheduler class raises.
    """
    unit, _ = axis(training)
    setup = resolve_setup(setup, training)
    for schedule in setup.schedules:
        _check_units(schedule, training)
    leading = setup.leading_schedule or SchedulerConfig(None, interval=unit)
    optimizer = OnlyGroups([{**group, "params": [torch.zeros(1)]} for group in groups], dict(groups[0]))
    scheduler = build_schedule(optimizer, setup, leading.mode or "min", counts_steps=False) or Unscheduled(optimizer)
    optimizer.step()  # otherwise torch warns at the first step of the scheduler
    read = _lr_and_momentum if momentum else _lr
    rows = [[read(group) for group in optimizer.param_groups]]
    collector = ErrorCollector()
    with collector.collect(leading.loc), third_party_errors(leading.name or "warmup", leading.arguments):
        for _ in _trained(scheduler, leading, training, setup.end):
            rows.append([read(group) for group in optimizer.param_groups])
    collector.raise_collected()
    names: dict[tuple[tuple[float, ...], ...], list[str]] = {}
    for i, (group, values) in enumerate(zip(groups, zip(*rows, strict=True), strict=True)):
        names.setdefault(values, []).append(str(group.get("name", i)))
    return [Curve(tuple(shared), *zip(*values, strict=True)) for values, shared in names.items()]


class OnlyGroups(torch.optim.Optimizer):
    """An optimizer of which only the parameter groups matter."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.param_groups.append(param_group)  # groups of combined optimizers differ in their options

    def step(self, closure: Any = None) -> Any:
        """Change nothing."""


def _lr(group: Mapping[str, Any]) -> tuple[float, ...]:
    return (float(group["lr"]),)


def _lr_and_momentum(group: Mapping[str, Any]) -> tuple[float, ...]:
    """The learning rate of a group, and its momentum or the first of its betas."""
    found = group["momentum"] if "momentum" in group else next(iter(group.get("betas") or ()), math.nan)
    return float(group["lr"]), float(found)


def _check_units(config: SchedulerConfig, training: TrainingLength) -> None:
    """Check that the steps of a schedule can be placed on the axis of the training.

    Raises:
        ConfigError: a schedule is stepped in optimizer steps and only epochs are known, or the reverse.
    """
    unit, _ = axis(training)
    is_stepped = config.name is not None and not config.takes_metric
    in_steps = config.warmup is not None or (is_stepped and config.interval == "step")
    if unit == "epoch" and in_steps:
        key = "interval" if config.warmup is None else "warmup"
        message = f"is in optimizer steps, and {training.unknown_reason}: {training.remedy}"
        raise ConfigError(message, loc=(*config.loc, key))
    in_epochs = config.takes_metric or (is_stepped and config.interval == "epoch")
    if unit == "step" and training.epoch_steps is None and in_epochs:
        what = "a validation for each epoch" if config.takes_metric else "one step for each epoch"
        message = f"the schedule takes {what}, and {training.unknown_reason}: {training.remedy}"
        raise ConfigError(message, loc=config.loc)


def _trained(
    scheduler: Any, config: SchedulerConfig, training: TrainingLength, end: ScheduleEnd | None
) -> Iterator[int]:
    """Step a scheduler as a training does; yield the number of steps of the axis after each of them."""
    unit, length = axis(training)
    adapter = adapter_for(scheduler)
    epochs = 0
    for n in range(1, length + 1):
        if unit == "step":
            adapter.warmup_step()
        ends_epoch = unit == "epoch" or _ends_epoch(n, epochs, training)
        epochs += ends_epoch
        if config.takes_metric:
            if ends_epoch:
                _validate(scheduler, config, epochs, n)
        elif ends_epoch if config.interval == "epoch" else unit == "step":
            count = epochs if config.interval == "epoch" else n
            if count % config.frequency == 0 and not adapter.has_ended(end):
                scheduler.step()
        yield n


def _ends_epoch(n: int, epochs: int, training: TrainingLength) -> bool:
    if training.epoch_steps is None:
        return False
    return n == training.steps or n >= training.epoch_steps.total(epochs + 1)


def _validate(scheduler: Any, config: SchedulerConfig, epochs: int, steps: int) -> None:
    """Step a scheduler with a metric, after the position if it counts its patience in epochs or steps."""
    if config.patience_unit != "validations":
        scheduler.at(epochs if config.patience_unit == "epochs" else steps)
    scheduler.step(METRIC)


# ------------------------------------------------------------------------------------- dummy groups


def dummy_groups(setup: OptimizerSetup, assumed_lr: float) -> list[dict[str, Any]]:
    """The parameter groups of a setup without a model: one for each rule, and one for the other parameters.

    Which parameters are selected by several rules, whose options add up, depends on the model. So does the number of
    layers of `layer_decay`; its only group is that of the last layer.

    Args:
        setup: the optimizer and the rules of its groups.
        assumed_lr: the learning rate if the module builds its own optimizer.

    Raises:
        ConfigError: a learning rate is not known without the model, or a multiplier has nothing to multiply.
    """
    if not setup.entries:
        return [{"name": "default", "lr": assumed_lr, "momentum": 0.9}]
    found = [(entry, group) for entry in setup.entries for group in _groups_of_entry(entry)]
    if len(setup.entries) == 1:
        return [group for _, group in found]
    used: set[str] = set()
    for entry, group in sorted(found, key=lambda pair: "name" not in pair[1]):  # given names first, as in `Combined`
        group["name"] = unique_name(group.get("name") or entry.optimizer.registration.name, used)
        used.add(group["name"])
    return [group for _, group in found]


def _groups_of_entry(entry: OptimizerEntry) -> Iterator[dict[str, Any]]:
    for member in entry.members:
        for group in _groups_of_member(member):
            yield group if entry.fallback is None else {**group, "name": member.group_name(group.get("name", ""))}


def _groups_of_member(entry: OptimizerEntry) -> Iterator[dict[str, Any]]:
    config = entry.optimizer
    base = config.options
    rest = _checked(base, config.argument_loc)
    yield {**rest, "name": "default"} if entry.param_groups else dict(rest)
    for i, rule in enumerate(entry.param_groups):
        loc: Loc = (*entry.groups_loc, i)
        if isinstance(rule, NoDecay):
            if "weight_decay" in base:
                yield {**base, "name": rule.name, "weight_decay": 0.0}
        elif isinstance(rule, GroupRule) and (rule.options or rule.scheduler is not None):
            options = apply_multipliers(rule.options, base, dict.fromkeys(rule.options, loc))
            schedule = {} if rule.scheduler is None else {SCHEDULE_KEY: rule.name}
            yield _checked({**base, **options, **schedule, "name": rule.name}, functools.partial(_loc_in, loc))


def _loc_in(loc: Loc, key: str) -> Loc:
    return (*loc, key)


def _checked(group: dict[str, Any], loc_of: Callable[[str], Loc]) -> dict[str, Any]:
    """A group whose learning rate is a number.

    Raises:
        ConfigError: it is not.
    """
    lr = group.get("lr")
    if is_link(lr) or has_unresolved(lr):
        raise ConfigError(f"is {lr}, which is not known here: add --model or --lr", loc=loc_of("lr"))
    if isinstance(lr, bool) or not isinstance(lr, (int, float, torch.Tensor)):
        raise ConfigError(f"is {lr}, and a schedule needs a number", loc=loc_of("lr"))
    return group
