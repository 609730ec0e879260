"""The data model of a configuration. Python, YAML and hyperparameters of a checkpoint use the same form.

optimizer: adam                 # or {name: adam, lr: 1.0e-3, args: {...}}; or a list of these; or {combine: [...]}
scheduler: {name: cosine_annealing_lr, T_max: auto, warmup_steps: 100}
param_groups: [no_decay, {match: "head.*", lr_mult: 10}]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optplug.config.arguments import argument_loc, options_of_member, reserved_keys
from optplug.config.form import (
    ARGS,
    AUTO,
    BASE_KEY,
    ENTRY,
    INHERITED_OPTIONS,
    MATRICES,
    METRIC_KEYS,
    ON_RESUME,
    SCHEDULER,
    TABLES,
    WARMUP,
    is_auto,
)
from optplug.config.lengths import (
    all_lengths,
    is_relative,
    is_whole,
    length_argument,
    length_arguments,
    nested_schedules,
)
from optplug.config.param_group_presets import Flattened, GroupAssignment, LayerDecay, NoDecay
from optplug.config.param_selection import AnySelector, ModuleParameter, Selector
from optplug.config.plain_data import to_serializable
from optplug.errors import Loc
from optplug.registry import Registration, registry
from optplug.registry.signature import configurable_arguments, takes_built_base
from optplug.schedulers.adapters import ScheduleEnd
from optplug.schedulers.per_group import DEFAULT, SCHEDULE_KEY

LINK_PATTERN = re.compile(r"module(\.[A-Za-z_]\w*)+")
"""The text of a link: a value that is read from an attribute of the module, such as `module.lr`."""


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name, with its hyperparameters.

    Attributes:
        name: the name.
        hyperparameters: the hyperparameters.
        nested: the hyperparameters that were written under `args`.
        loc: the location of the optimizer in the configuration.
        base: the optimizer that this optimizer wraps; None if it wraps none, or a default.
    """

    name: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    nested: frozenset[str] = field(default=frozenset(), compare=False)
    loc: Loc = field(default=("optimizer",), compare=False)
    base: OptimizerConfig | None = None

    def argument_loc(self, name: str) -> Loc:
        """The location of a hyperparameter in the configuration. It may be one of the base."""
        if self.base is not None and name not in configurable_arguments(self.registration):
            return self.base.argument_loc(name)
        return (*self.loc, *argument_loc(name, self.nested))

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters and the defaults of the others, also those of the base."""
        known = configurable_arguments(self.registration)
        defaults = {key: p.default for key, p in known.items() if p.default not in (p.empty, ...)}
        return {**defaults, **self.hyperparameters, **({} if self.base is None else self.base.options)}

    @property
    def arguments(self) -> dict[str, Any]:
        """The hyperparameters, and the base as `optplug.config.construction.construct_optimizer` takes it."""
        if self.base is None:
            return self.hyperparameters
        return {**self.hyperparameters, BASE_KEY: {"name": self.base.name, ARGS: self.base.arguments}}

    @property
    def group_registrations(self) -> tuple[Registration, ...]:
        """The optimizers whose options parameter groups can override. A wrapper of a built base gets no groups."""
        if self.base is None:
            return (self.registration,)
        own = () if takes_built_base(self.registration) else (self.registration,)
        return (*own, *self.base.group_registrations)

    @property
    def registration(self) -> Registration:
        return registry.resolve("optimizer", self.name)

    def change(self, function: Callable[[OptimizerConfig], dict[str, Any]]) -> OptimizerConfig:
        """The optimizer with other hyperparameters: what a function returns for it, and for its base."""
        base = None if self.base is None else self.base.change(function)
        return replace(self, hyperparameters=function(self), base=base)

    def to_dict(self) -> dict[str, Any]:
        base = {} if self.base is None else {BASE_KEY: self.base.to_dict()}
        return {**_mapping_of("optimizer", self.name, self.hyperparameters), **base}


@dataclass(frozen=True)
class FallbackConfig:
    """The optimizer of the parameters that an optimizer of matrices does not take.

    Attributes:
        optimizer: the optimizer.
        match: selects further parameters for it; None for none.
        output: globs over the parameters of the output layer; None to find it in the model.
        convolutions: whether the optimizer of matrices takes the weights of convolutions.
    """

    optimizer: OptimizerConfig
    match: Selector | None = None
    output: tuple[str, ...] | None = None
    convolutions: bool = MATRICES["convolutions"].default

    def to_dict(self) -> dict[str, Any]:
        """The additional keys of the optimizer of matrices."""
        output = {} if self.output is None else {"output": list(self.output)}
        convolutions = {"convolutions": True} if self.convolutions else {}
        match = {} if self.match is None else self.match.to_dict()
        return {"fallback": {**self.optimizer.to_dict(), **match}, **output, **convolutions}


@dataclass(frozen=True)
class WarmupConfig:
    """A linear warmup.

    Attributes:
        length: how long the warmup lasts, in `unit`.
        unit: `"steps"` (optimizer steps), `"epochs"`, or `"ratio"` (a fraction of all optimizer steps).
        start_factor: the factor of the first step; None for the default of `Warmup`.
        schedule: one of `WARMUP_SCHEDULES`.
    """

    length: float
    unit: str = "steps"
    start_factor: float | None = WARMUP["start_factor"].default
    schedule: str = WARMUP["schedule"].default

    def to_dict(self) -> dict[str, Any]:
        options = {key: getattr(self, key) for key in ("start_factor", "schedule")}
        given = {key: value for key, value in options.items() if value != WARMUP[key].default}
        return {self.unit: self.length, **given}

    @property
    def delays_schedule(self) -> bool:
        """Whether the schedule starts when the warmup ends."""
        return self.schedule == "after"


@dataclass(frozen=True)
class WholeLength:
    """The length of a whole schedule, if it depends on the training.

    Attributes:
        end: where the schedule ends.
        loc: the location of the argument that sets the length.
        is_training: whether the schedule is as long as the training: it is not stepped after its end.
    """

    end: ScheduleEnd
    loc: Loc
    is_training: bool


@dataclass(frozen=True)
class SchedulePart:
    """A schedule in a list of schedules.

    Attributes:
        schedule: the schedule, without its length.
        length: the number of its steps; None if the last schedule has no length.
        given_length: the length as it is written; `auto` if it is omitted.
    """

    schedule: SchedulerConfig
    length: Any
    given_length: Any


@dataclass(frozen=True)
class SchedulerConfig:
    """A scheduler by name, with its arguments and the times at which it steps.

    Attributes:
        name: None if there is only a warmup.
        arguments: the constructor arguments.
        interval: `"epoch"` or `"step"`. A scheduler with a metric ignores it and steps after each validation.
        interval_is_given: whether the configuration sets the interval; if not, the plugin's default is used.
        given_lengths: the lengths as they are written, after they have been converted to numbers; empty before.
        frequency: the scheduler steps once every `frequency` intervals.
        warmup: None for no warmup.
        monitor: the name of the metric; None to infer it.
        mode: `"min"`, `"max"`, or None to infer it.
        patience_unit: one of `PATIENCE_UNITS`, for a scheduler with a metric.
        on_nonfinite: one of `ON_NONFINITE`, for a scheduler with a metric.
        nested: the arguments that were written under `args`.
        loc: the location of the scheduler in the configuration.
    """

    name: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    interval: str = SCHEDULER["interval"].default
    frequency: int = SCHEDULER["frequency"].default
    warmup: WarmupConfig | None = None
    monitor: str | None = None
    mode: str | None = None
    patience_unit: str = SCHEDULER["patience_unit"].default
    on_nonfinite: str = SCHEDULER["on_nonfinite"].default
    interval_is_given: bool = field(default=False, compare=False)
    given_lengths: Mapping[str, Any] = field(default_factory=dict, compare=False)
    nested: frozenset[str] = field(default=frozenset(), compare=False)
    loc: Loc = field(default=("scheduler",), compare=False)

    def argument_loc(self, name: str) -> Loc:
        """The location of an argument in the configuration."""
        return (*self.loc, *argument_loc(name, self.nested))

    @property
    def registration(self) -> Registration:
        assert self.name is not None
        return registry.resolve("scheduler", self.name)

    @property
    def takes_metric(self) -> bool:
        return self.name is not None and "metric" in self.registration.spec.capabilities

    @property
    def length_argument(self) -> str | None:
        """The name of the argument that sets the length of the schedule, such as `T_max`; None if there is none."""
        return None if self.name is None else length_argument(self.registration)

    @property
    def length_arguments(self) -> tuple[str, ...]:
        """The names of all arguments that are lengths."""
        return () if self.name is None else length_arguments(self.registration)

    @property
    def all_lengths(self) -> tuple[str, ...]:
        """The names of all arguments that are lengths, or lists of schedules with lengths."""
        return () if self.name is None else all_lengths(self.registration)

    @property
    def parts(self) -> tuple[SchedulePart, ...]:
        """The schedules in the list of schedules that is an argument; empty if there is no such argument."""
        names = () if self.name is None else nested_schedules(self.registration)
        return tuple(
            self._part(written, part, (*self.argument_loc(name), i))
            for name in names
            if isinstance(self.arguments.get(name), (list, tuple))
            for i, (written, part) in enumerate(
                zip(self.given_lengths.get(name, self.arguments[name]), self.arguments[name], strict=True)
            )
        )

    def _part(self, written: Mapping[str, Any], part: Mapping[str, Any], loc: Loc) -> SchedulePart:
        arguments = {key: value for key, value in part.items() if key not in ("name", "length")}
        lengths = all_lengths(registry.resolve("scheduler", part["name"]))
        given = {} if written is part else {key: written[key] for key in lengths if is_relative(written.get(key))}
        schedule = SchedulerConfig(
            part["name"],
            arguments,
            interval=self.interval,
            frequency=self.frequency,
            interval_is_given=self.interval_is_given,
            given_lengths=given,
            loc=loc,
        )
        return SchedulePart(schedule, part.get("length"), written.get("length", AUTO))

    @property
    def whole_length(self) -> WholeLength | None:
        """The length of the whole schedule, after it has been converted; None if it was a number of steps before.

        That of a list of schedules is the length of the last one and the lengths before it.
        """
        argument = str(self.length_argument)
        if argument in self.given_lengths:
            end = ScheduleEnd(argument, self.arguments[argument])
            return WholeLength(end, self.argument_loc(argument), is_whole(self.given_lengths[argument]))
        *before, last = self.parts or (None,)
        found = None if last is None else last.schedule.whole_length
        if found is None or last is None:
            return None
        steps = found.end.steps + sum(part.length for part in before if part is not None)
        is_training = found.is_training and is_auto(last.given_length)
        return replace(found, end=found.end._replace(steps=steps), is_training=is_training)

    @property
    def end(self) -> ScheduleEnd | None:
        """The end of a schedule that is as long as the training; None for others."""
        whole = self.whole_length
        return whole.end if whole is not None and whole.is_training else None

    def to_dict(self) -> dict[str, Any]:
        reserved: dict[str, Any] = {}
        if self.name is not None and not self.takes_metric:
            reserved |= {"interval": self.interval, "frequency": self.frequency}
        metric_options = {key: getattr(self, key) for key in METRIC_KEYS}
        reserved |= {key: value for key, value in metric_options.items() if value != SCHEDULER[key].default}
        if self.warmup is not None:
            reserved["warmup"] = self.warmup.to_dict()
        return {**_mapping_of("scheduler", self.name, self.arguments), **reserved}


def constant_schedule(loc: Loc = ("scheduler",)) -> SchedulerConfig:
    """The schedule of a constant learning rate, without a warmup."""
    return SchedulerConfig(None, interval="step", loc=loc)


@dataclass(frozen=True)
class GroupRule:
    """A rule that sets options for the parameters that a selector selects.

    Attributes:
        select: selects the parameters.
        name: a name for the parameter group. It is also the name of the schedule.
        options: options of the optimizer, and keys of `MULTIPLIERS`.
        scheduler: the schedule of the parameters; None for that of earlier rules, or of the optimizer.
    """

    select: Selector
    name: str
    options: dict[str, Any]
    scheduler: SchedulerConfig | None = None

    def assignments(self, parameters: Sequence[ModuleParameter], has_weight_decay: bool) -> list[GroupAssignment]:
        schedule = {} if self.scheduler is None else {SCHEDULE_KEY: self.name}
        return [(self.name, [p for p in parameters if self.select.selects(p)], {**self.options, **schedule})]

    def to_dict(self) -> dict[str, Any]:
        schedule = {} if self.scheduler is None else {"scheduler": self.scheduler.to_dict() or None}
        options = {key: to_serializable(value) for key, value in self.options.items()}
        return {**self.select.to_dict(), "name": self.name, **options, **schedule}


DEFAULT_GROUP = "default"
"""The name of the group of the parameters that no rule selects."""

AnyGroupRule = GroupRule | NoDecay | LayerDecay | Flattened


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer and the parameters that it optimizes.

    Attributes:
        optimizer: the name and the hyperparameters.
        param_groups: the rules of its parameter groups.
        select: selects parameters of the module; None selects all.
        fallback: the optimizer of the parameters that `optimizer` does not take; None if it takes all.
        groups_loc: the location of `param_groups` in the configuration.
    """

    optimizer: OptimizerConfig
    param_groups: tuple[AnyGroupRule, ...] = ()
    select: AnySelector | None = None
    fallback: FallbackConfig | None = None
    groups_loc: Loc = field(default=("param_groups",), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The entry as an element of a list of optimizers."""
        groups = {"param_groups": [rule.to_dict() for rule in self.param_groups]} if self.param_groups else {}
        return {**self.optimizer_dict(), **(self.select.to_dict() if self.select else {}), **groups}

    def optimizer_dict(self) -> dict[str, Any]:
        """The optimizer and its fallback as plain data."""
        return {**self.optimizer.to_dict(), **(self.fallback.to_dict() if self.fallback else {})}

    @property
    def members(self) -> tuple[OptimizerEntry, ...]:
        """One entry for each optimizer that is built: one, or the optimizer of matrices and its fallback.

        Each has the rules of the parameter groups, with the options that its optimizer has.
        """
        if self.fallback is None:
            return (self,)
        given, fallback = self.optimizer.hyperparameters, self.fallback.optimizer
        known = configurable_arguments(fallback.registration)
        inherited = {key: given[key] for key in INHERITED_OPTIONS if key in given and key in known}
        fallback = replace(fallback, hyperparameters={**inherited, **fallback.hyperparameters})
        flattened = (Flattened(),) if self.fallback.convolutions else ()
        return self._member(self.optimizer, fallback, *flattened), self._member(fallback, self.optimizer)

    @property
    def layers(self) -> tuple[OptimizerEntry, ...]:
        """The entry, and if its optimizer wraps another one, the same for its base, and for the base of this one.

        Each has the rules of the parameter groups, with the options that its optimizer has.
        """
        base = self.optimizer.base
        return (self,) if base is None else (self, *self._member(base, self.optimizer).layers)

    def group_name(self, rules: str) -> str:
        """The name of a parameter group of one of several members: of its optimizer, and of the rules if they have one.

        Args:
            rules: the name that the rules give; empty or `default` without rules.
        """
        name = self.optimizer.registration.name
        return name if rules in ("", DEFAULT_GROUP) else f"{name} {rules}"

    def _member(self, optimizer: OptimizerConfig, other: OptimizerConfig, *rules: AnyGroupRule) -> OptimizerEntry:
        """The entry with one of two optimizers, its options in the rules of the groups, and further rules."""
        registrations, others = optimizer.group_registrations, other.group_registrations

        def own(rule: AnyGroupRule) -> AnyGroupRule:
            if not isinstance(rule, GroupRule):
                return rule
            return replace(rule, options=options_of_member(registrations, others, rule.options))

        return replace(self, optimizer=optimizer, param_groups=(*map(own, self.param_groups), *rules), fallback=None)


@dataclass(frozen=True)
class OptimizerSetup:
    """What one optimizer of the trainer is built from.

    Attributes:
        entries: one entry; or several, which are combined into one optimizer; or none, if the module builds its own
            optimizer.
        scheduler: the schedule of the parameter groups without their own; None for a constant learning rate.
        is_combined: whether the entries were given under the key `combine`.
    """

    entries: tuple[OptimizerEntry, ...] = ()
    scheduler: SchedulerConfig | None = None
    is_combined: bool = False

    @property
    def group_schedules(self) -> dict[str, SchedulerConfig]:
        """The schedules of the group rules, by the name of the rule."""
        rules = [rule for entry in self.entries for rule in entry.param_groups if isinstance(rule, GroupRule)]
        return {rule.name: rule.scheduler for rule in rules if rule.scheduler is not None}

    @property
    def named_schedules(self) -> dict[str, SchedulerConfig]:
        """The schedules by name, as in `PerGroup`: `""` is that of the groups without their own."""
        return {DEFAULT: self.scheduler or constant_schedule(), **self.group_schedules}

    @property
    def schedules(self) -> tuple[SchedulerConfig, ...]:
        """All schedules of the optimizer, that of the groups without their own first."""
        return (*(() if self.scheduler is None else (self.scheduler,)), *self.group_schedules.values())

    @property
    def takes_metric(self) -> bool:
        """Whether a schedule takes a metric. Then all schedules with a name do."""
        return any(one.takes_metric for one in self.schedules)

    @property
    def leading_schedule(self) -> SchedulerConfig | None:
        """The schedule that says when all schedules are stepped: the first one with a name, or else the first one."""
        found = self.schedules
        named = [one for one in found if one.name is not None]
        if not named:
            return next(iter(found), None)
        monitor, mode = (next(filter(None, (getattr(one, key) for one in named)), None) for key in ("monitor", "mode"))
        return replace(named[0], monitor=monitor, mode=mode)

    @property
    def end(self) -> ScheduleEnd | None:
        """The end of the only schedule; None if groups have their own, which end one by one: see `PerGroup.ends`."""
        leading = self.leading_schedule
        return None if leading is None or self.group_schedules else leading.end

    def with_optimizers(self, change: Callable[[OptimizerConfig], OptimizerConfig]) -> OptimizerSetup:
        """The setup with each optimizer, also those of fallbacks, replaced by what a function returns for it."""

        def changed(entry: OptimizerEntry) -> OptimizerEntry:
            fallback = entry.fallback
            if fallback is not None:
                fallback = replace(fallback, optimizer=change(fallback.optimizer))
            return replace(entry, optimizer=change(entry.optimizer), fallback=fallback)

        return replace(self, entries=tuple(map(changed, self.entries)))

    def with_schedules(self, change: Callable[[SchedulerConfig], SchedulerConfig]) -> OptimizerSetup:
        """The setup with each schedule replaced by what a function returns for it."""

        def changed_rule(rule: AnyGroupRule) -> AnyGroupRule:
            if isinstance(rule, GroupRule) and rule.scheduler is not None:
                return replace(rule, scheduler=change(rule.scheduler))
            return rule

        def changed_entry(entry: OptimizerEntry) -> OptimizerEntry:
            return replace(entry, param_groups=tuple(map(changed_rule, entry.param_groups)))

        scheduler = None if self.scheduler is None else change(self.scheduler)
        return replace(self, entries=tuple(map(changed_entry, self.entries)), scheduler=scheduler)


@dataclass(frozen=True)
class Config:
    """A parsed configuration. It is plain data: it can be pickled and copied, and refers to no trainer and no module.

    Attributes:
        setups: one per optimizer of the trainer. Several are possible in manual optimization only.
        has_optimizer_list: whether `optimizer` was given as a list.
        on_resume: one of `ON_RESUME`.
    """

    setups: tuple[OptimizerSetup, ...]
    has_optimizer_list: bool = False
    on_resume: str = ON_RESUME[0]

    @property
    def setup(self) -> OptimizerSetup:
        """The only setup.

        Raises:
            ValueError: there are several setups.
        """
        (setup,) = self.setups
        return setup

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer of the first entry of the only setup."""
        return self.setup.entries[0].optimizer

    @property
    def scheduler(self) -> SchedulerConfig | None:
        """The scheduler of the only setup."""
        return self.setup.scheduler

    @property
    def param_groups(self) -> tuple[AnyGroupRule, ...]:
        """The group rules of the first entry of the only setup."""
        return self.setup.entries[0].param_groups

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, with all defaults of reserved keys; `parse(**...)` accepts it."""
        found: dict[str, Any] = {} if self.on_resume == ON_RESUME[0] else {"on_resume": self.on_resume}
        if self.has_optimizer_list:
            optimizers = []
            for setup in self.setups:
                scheduler = {} if setup.scheduler is None else {"scheduler": setup.scheduler.to_dict()}
                optimizers.append({**setup.entries[0].to_dict(), **scheduler})
            return {"optimizer": optimizers, **found}
        entries = self.setup.entries
        if self.setup.is_combined:
            found["optimizer"] = {"combine": [entry.to_dict() for entry in entries]}
        elif entries:
            found["optimizer"] = entries[0].optimizer_dict()
            if entries[0].param_groups:
                found["param_groups"] = [rule.to_dict() for rule in entries[0].param_groups]
        if self.scheduler is not None:
            found["scheduler"] = self.scheduler.to_dict()
        return found


def _mapping_of(kind: str, name: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with the name and the arguments; arguments with the name of a reserved key are nested under `args`."""
    own = {*TABLES[kind]} if name is None else reserved_keys(registry.resolve(kind, name))
    reserved = {*own, *(ENTRY if kind == "optimizer" else ())}
    direct = {key: to_serializable(value) for key, value in arguments.items() if key not in reserved}
    nested = {key: to_serializable(value) for key, value in arguments.items() if key in reserved}
    return {**({} if name is None else {"name": name}), **direct, **({ARGS: nested} if nested else {})}
