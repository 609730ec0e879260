"""Checks of the schedules of one optimizer: all of them are stepped together, as one scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from optplug.config.form import METRIC_KEYS, SCHEDULER
from optplug.config.model import GroupRule, OptimizerSetup, SchedulerConfig
from optplug.errors import ConfigError, ErrorCollector, loc_text

TOGETHER = "all schedules of an optimizer are stepped together"


def check_schedules(collector: ErrorCollector, setup: OptimizerSetup) -> None:
    """Check that the schedules of an optimizer are stepped at the same times, with the same metric.

    A constant learning rate, with or without a warmup, agrees with every schedule.

    Args:
        collector: collects the errors.
        setup: the optimizer.
    """
    _check_names(collector, setup)
    named = [one for one in setup.schedules if one.name is not None]
    for other in named[1:]:
        with collector.collect(other.loc):
            _check_kind(named[0], other)
            for key in METRIC_KEYS if other.takes_metric else ("interval", "frequency"):
                with collector.collect((*other.loc, key)):
                    _check_value(key, named[0], other)


def _check_names(collector: ErrorCollector, setup: OptimizerSetup) -> None:
    """A rule with a schedule needs a name that no rule of another member of `combine` has for its schedule."""
    rules = [rule for entry in setup.entries for rule in entry.param_groups if isinstance(rule, GroupRule)]
    locs = {rule.name: rule.scheduler.loc for rule in reversed(rules) if rule.scheduler is not None}
    names = Counter(rule.name for rule in rules if rule.scheduler is not None)
    for name in (name for name, count in names.items() if count > 1):
        message = f"several rules with a scheduler are named {name!r} (default: the pattern): give each its own name"
        collector.add(ConfigError(message), locs[name][:-1])


def _check_kind(first: SchedulerConfig, other: SchedulerConfig) -> None:
    """Check that both schedules take a metric, or neither does.

    Raises:
        ConfigError: only one of them takes a metric.
    """
    if first.takes_metric == other.takes_metric:
        return
    here, there = (
        f"{one.registration.name} {'when its metric has a value' if one.takes_metric else f'once per {one.interval}'}"
        for one in (other, first)
    )
    raise ConfigError(
        f"{TOGETHER}, but {here}, and {there} in {loc_text(first.loc)}: use schedules of one kind; `scheduler: null` "
        "in an entry of param_groups keeps the learning rate constant"
    )


def _check_value(key: str, first: SchedulerConfig, other: SchedulerConfig) -> None:
    """Check that both schedules have the same value of a key; `monitor` and `mode` may be given in one place.

    Raises:
        ConfigError: the values differ.
    """
    before, after = getattr(first, key), getattr(other, key)
    if before == after or (key in ("monitor", "mode") and None in (before, after)):
        return
    unit = ", with all lengths in this unit" if key == "interval" else ""
    raise ConfigError(
        f"is {after!r}, and {loc_text((*first.loc, key))} is {before!r}: {TOGETHER}; give both the same {key}{unit}"
    )


def with_metric_options(collector: ErrorCollector, setup: OptimizerSetup, options: Mapping[str, Any]) -> OptimizerSetup:
    """Apply `monitor` and `mode` of the top level to the schedules of the groups, if there is no other schedule.

    Args:
        collector: collects the errors.
        setup: the optimizer, with a schedule that takes a metric.
        options: the given values.
    """
    values = {}
    for key, value in options.items():
        with collector.collect((key,)):
            values[key] = SCHEDULER[key].read(value)

    def change(schedule: SchedulerConfig) -> SchedulerConfig:
        if not schedule.takes_metric:
            return schedule
        for key, value in values.items():
            own = getattr(schedule, key)
            if own not in (None, value):
                message = f"is {own!r} and {key} is {value!r}: give it once"
                collector.add(ConfigError(message), (*schedule.loc, key))
        return replace(schedule, **values)

    return setup.with_schedules(change)
