"""The one form of a configuration, in Python, YAML and hparams, and every check that needs no parameters and no values.

optimizer: adam                 # or {name: adam, lr: 1.0e-3, args: {...}}; or a list of these; or {combine: [...]}
scheduler: {name: cosine_annealing_lr, T_max: auto, warmup_steps: 100}
param_groups: [no_decay, {match: "head.*", lr_mult: 10}]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from optplug import presets, selection
from optplug.arguments import configurable, constructor
from optplug.complaints import Complaints
from optplug.errors import ConfigError, ConfigTypeError, OptplugError, at, describe, did_you_mean, listing, number_hint
from optplug.groups import MULTIPLIERS, AnyRule, Rule
from optplug.registry import Offer, registry
from optplug.selection import Selector
from optplug.specs import LENGTHS, SchedulerSpec, Spec

ARGS = "args"
WIRING_KEYS = {
    "optimizer": ("name", ARGS),
    "scheduler": ("name", ARGS, "interval", "frequency", "warmup", "warmup_steps", "monitor", "mode"),
}
"""Keys that are optplug's own; an algorithm's argument of the same name goes under `args`."""

KEYS = ("optimizer", "scheduler", "param_groups", "monitor", "mode", "on_resume")
"""What a configuration has."""

MEMBER_KEYS = (*selection.KEYS, "param_groups", "scheduler")
"""What an optimizer of several has besides."""

WARMUP_UNITS = ("steps", "epochs", "ratio")
OF_THE_WHOLE = ("engine", "state_dtype")
"""Options of an optimizer that no group has of its own."""

ON_RESUME = ("keep", "override_hparams", "reset_scheduler", "reset_all")
"""What counts when a run goes on from a checkpoint: everything of the checkpoint; the configuration's numbers; its
schedule, from the start; its optimizer and schedule, from the start."""

AUTO = "auto"
LINK = re.compile(r"module(\.[A-Za-z_]\w*)+")
"""A number that is an attribute of the module, such as `module.lr`."""


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name and its hyperparameters."""

    name: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @property
    def offer(self) -> Offer:
        return registry.find("optimizer", self.name)

    def to_dict(self) -> dict[str, Any]:
        return _with_arguments("optimizer", self.name, self.hyperparameters)


@dataclass(frozen=True)
class WarmupConfig:
    """A linear warmup: its length in optimizer steps, in epochs, or as a share of all steps, and its first factor."""

    length: float
    unit: str = "steps"
    start_factor: float | None = None

    def to_dict(self) -> dict[str, Any]:
        start = {} if self.start_factor is None else {"start_factor": self.start_factor}
        return {self.unit: self.length, **start}


@dataclass(frozen=True)
class SchedulerConfig:
    """A scheduler by name, its arguments, and when it steps.

    Attributes:
        name: None for a warmup alone.
        interval: `"epoch"` or `"step"`; a scheduler that takes a metric steps per completed validation instead.
        frequency: every how many epochs, or optimizer steps.
        warmup: None for none.
        monitor: the metric a plateau watches, or None to infer it. mode: `"min"`, `"max"` or None to infer it.
    """

    name: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    interval: str = "epoch"
    frequency: int = 1
    warmup: WarmupConfig | None = None
    monitor: str | None = None
    mode: str | None = None

    @property
    def offer(self) -> Offer:
        assert self.name is not None
        return registry.find("scheduler", self.name)

    @property
    def takes_metric(self) -> bool:
        return self.name is not None and "metric" in self.offer.spec.capabilities

    @property
    def length(self) -> str | None:
        """The argument that says how many steps the schedule has."""
        return None if self.name is None else length_of(self.offer)

    def to_dict(self) -> dict[str, Any]:
        wiring: dict[str, Any] = {}
        if self.name is not None and not self.takes_metric:
            wiring |= {"interval": self.interval, "frequency": self.frequency}
        wiring |= {key: value for key in ("monitor", "mode") if (value := getattr(self, key)) is not None}
        if self.warmup is not None:
            wiring["warmup"] = self.warmup.to_dict()
        return {**_with_arguments("scheduler", self.name, self.arguments), **wiring}


@dataclass(frozen=True)
class Member:
    """An optimizer and its parameters.

    Attributes:
        select: which of the module's; None for all. param_groups: the rules of its groups.
        index: its number among several, as they were given.
    """

    optimizer: OptimizerConfig
    param_groups: tuple[AnyRule, ...] = ()
    select: Selector | None = None
    index: int = field(default=0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As an entry of several."""
        groups = {"param_groups": [rule.to_dict() for rule in self.param_groups]} if self.param_groups else {}
        return {**self.optimizer.to_dict(), **(self.select.to_dict() if self.select else {}), **groups}


@dataclass(frozen=True)
class Part:
    """What makes one optimizer of the trainer: a member, several to be combined, or none: the module has its own."""

    members: tuple[Member, ...] = ()
    scheduler: SchedulerConfig | None = None


@dataclass(frozen=True)
class Config:
    """What to train with. Plain data: it survives pickle and deepcopy, and holds no trainer and no module.

    Attributes:
        parts: one, or in manual optimisation several. several: whether they were given as a list.
        on_resume: of `ON_RESUME`.
    """

    parts: tuple[Part, ...]
    several: bool = False
    on_resume: str = ON_RESUME[0]

    @property
    def part(self) -> Part:
        """The only part."""
        (part,) = self.parts
        return part

    @property
    def optimizer(self) -> OptimizerConfig:
        """That of the only member of the only part."""
        return self.part.members[0].optimizer

    @property
    def scheduler(self) -> SchedulerConfig | None:
        """That of the only part."""
        return self.part.scheduler

    @property
    def param_groups(self) -> tuple[AnyRule, ...]:
        """Those of the only member of the only part."""
        return self.part.members[0].param_groups

    def to_dict(self) -> dict[str, Any]:
        """The same configuration as plain data, which `parse(**...)` takes, with everything spelled out."""
        found: dict[str, Any] = {} if self.on_resume == ON_RESUME[0] else {"on_resume": self.on_resume}
        if self.several:
            entries = []
            for part in self.parts:
                schedule = {} if part.scheduler is None else {"scheduler": part.scheduler.to_dict()}
                entries.append({**part.members[0].to_dict(), **schedule})
            return {"optimizer": entries, **found}
        members = self.part.members
        if len(members) > 1:
            found["optimizer"] = {"combine": [member.to_dict() for member in members]}
        elif members:
            found["optimizer"] = members[0].optimizer.to_dict()
            if members[0].param_groups:
                found["param_groups"] = [rule.to_dict() for rule in members[0].param_groups]
        if self.scheduler is not None:
            found["scheduler"] = self.scheduler.to_dict()
        return found


def _with_arguments(kind: str, name: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    reserved = {*WIRING_KEYS[kind], *(MEMBER_KEYS if kind == "optimizer" else ())}
    plainly = {key: _saved(value) for key, value in arguments.items() if key not in reserved}
    nested = {key: _saved(value) for key, value in arguments.items() if key in reserved}
    return {**({} if name is None else {"name": name}), **plainly, **({ARGS: nested} if nested else {})}


def _saved(value: Any) -> Any:
    """A value as a file can hold it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_saved(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _saved(v) for k, v in value.items()}
    if str(type(value)) == "<class 'torch.dtype'>":
        return str(value).removeprefix("torch.")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return getattr(value, "__qualname__", repr(value))


# ----------------------------------------------------------------------------------- the form


def parse(
    optimizer: Any = None,
    scheduler: Any = None,
    *,
    param_groups: Any = None,
    monitor: Any = None,
    mode: Any = None,
    on_resume: Any = None,
    **unknown: Any,
) -> Config:
    """Check a configuration and give it its one form.

    Args:
        optimizer: a name, or a mapping with `name` and hyperparameters; a list of such mappings, each with `match`,
            `regex` or `type` and perhaps its own `param_groups` and `scheduler`, for several optimizers; or
            `{combine: [...]}` with such a list, for one optimizer made of several. None: the module has one.
        scheduler: a name, a mapping with `name`, arguments and wiring keys, or None.
        param_groups: a preset's name, or a list of rules, or None.
        monitor: what `scheduler.monitor` would say. mode: what `scheduler.mode` would say.
        on_resume: of `ON_RESUME`; None for the first.
        unknown: keys that are none, to be refused with the nearest.

    Mappings and lists may be OmegaConf's.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: a name. ConfigError: a wrong key, value or combination.
        ConfigTypeError: a wrong type. ConfigErrors: several of these. The values of hyperparameters are for
        `optplug.build.checked` to find wrong.
    """
    complaints = Complaints()
    config = read(
        complaints,
        optimizer,
        scheduler,
        param_groups=param_groups,
        monitor=monitor,
        mode=mode,
        on_resume=on_resume,
        **unknown,
    )
    complaints.settle()
    return config


def read(
    complaints: Complaints,
    optimizer: Any = None,
    scheduler: Any = None,
    *,
    param_groups: Any = None,
    monitor: Any = None,
    mode: Any = None,
    on_resume: Any = None,
    **unknown: Any,
) -> Config:
    """As `parse`, with what is wrong added to complaints; the result then lacks it."""
    for key in unknown:
        hint = did_you_mean(key, KEYS)
        complaints.add(ConfigError(f"a configuration has no key {key!r}; it has {listing(KEYS)}{hint}"), key)
    given: dict[str, Any] = {}
    for key, value in (("optimizer", optimizer), ("scheduler", scheduler), ("param_groups", param_groups)):
        given[key] = None
        with complaints.at(key):
            given[key] = plain(value)
    policy = ON_RESUME[0] if on_resume is None else on_resume
    if policy not in ON_RESUME:
        error = ConfigError(
            f"must be one of {listing(ON_RESUME)}, got {policy!r}{did_you_mean(str(policy), ON_RESUME)}"
        )
        complaints.add(error, "on_resume")
        policy = ON_RESUME[0]
    several = isinstance(given["optimizer"], Sequence) and not isinstance(given["optimizer"], str)
    combined = isinstance(given["optimizer"], Mapping) and "combine" in given["optimizer"]
    if several or combined:
        found, where = given["optimizer"], "optimizer"
        if combined:
            for key in found:
                if key != "combine":
                    alone = f"an optimizer made of several has the key combine alone, got {key!r} too"
                    complaints.add(ConfigError(alone), f"{where}.{key}")
            found, where = found["combine"], "optimizer.combine"
        outside: dict[str, Any] = {"param_groups": given["param_groups"]}
        if several:
            outside |= {"scheduler": given["scheduler"], "monitor": monitor, "mode": mode}
        for key, value in outside.items():
            if value is not None:
                hint = "the entry's scheduler" if key in ("monitor", "mode") else "an entry of optimizer"
                complaints.add(ConfigError(f"with several optimizers it belongs to {hint}"), key)
        entries = _members(complaints, found, where, with_schedulers=several)
        if several:
            return Config(tuple(Part((member,), schedule) for member, schedule in entries), True, policy)
        schedule = _scheduler(complaints, given["scheduler"], "scheduler", monitor, mode)
        return Config((Part(tuple(member for member, _ in entries), schedule),), on_resume=policy)
    members: tuple[Member, ...] = ()
    if given["optimizer"] is None:
        failed = bool(complaints.errors)
        if given["param_groups"] is not None and not failed:
            complaints.add(ConfigError("needs an optimizer beside it: add e.g. optimizer: adam"), "param_groups")
        if all(value is None for value in (*given.values(), monitor, mode, *unknown)) and not failed:
            complaints.add(ConfigTypeError("must be a name or a mapping with a name, got None (NoneType)"), "optimizer")
    else:
        chosen = _optimizer(complaints, given["optimizer"], "optimizer")
        rules = _param_groups(complaints, given["param_groups"], "param_groups", chosen)
        members = (Member(chosen, rules),) if chosen is not None else ()
    schedule = _scheduler(complaints, given["scheduler"], "scheduler", monitor, mode)
    return Config((Part(members, schedule),), on_resume=policy)


def plain(value: Any) -> Any:
    """Mappings and lists of any library as Python's own, all the way down.

    Raises:
        ConfigError: what cannot be read, such as an interpolation that leads nowhere.
    """
    if isinstance(value, argparse.Namespace):  # jsonargparse's too
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _read(key, lambda key=key: value[key], f".{key}") for key in _read("", lambda: list(value), "")}
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, range)):
        return [_read(i, lambda i=i: value[i], f"[{i}]") for i in range(len(value))]
    return value


def _read(key: Any, get: Any, place: str) -> Any:
    try:
        return plain(get())
    except OptplugError as error:
        raise at(f"{place.removeprefix('.')}{_joined(error.place)}", error) from None
    except Exception as error:  # OmegaConf has many ways to fail
        raise at(place.removeprefix("."), ConfigError(f"cannot be read: {describe(error)}")) from error


def _joined(inner: str) -> str:
    return inner if not inner or inner.startswith("[") else f".{inner}"


# ---------------------------------------------------------------------------------- optimizers


def _optimizer(complaints: Complaints, given: Any, place: str, beside: Sequence[str] = ()) -> OptimizerConfig | None:
    """One optimizer; `beside` are keys that the entry has for others to read."""
    split = None
    with complaints.at(place):
        split = _split("optimizer", given)
    if split is None:
        return None
    name, _, arguments = split
    offer = None
    with complaints.at(f"{place}.name" if isinstance(given, Mapping) else place):
        offer = _offer("optimizer", name)
    if offer is None:
        return None
    arguments = {key: value for key, value in arguments.items() if key not in beside or key not in given}
    return OptimizerConfig(name, _known(complaints, offer, arguments, place, beside))


def _members(
    complaints: Complaints, given: Any, place: str, *, with_schedulers: bool
) -> list[tuple[Member, SchedulerConfig | None]]:
    if not isinstance(given, list) or not given:
        complaints.add(ConfigTypeError(f"must be a list of mappings, each with a name, got {given!r}"), place)
        return []
    found = []
    keys = MEMBER_KEYS if with_schedulers else MEMBER_KEYS[:-1]
    for i, entry in enumerate(given):
        where = f"{place}[{i}]"
        if not isinstance(entry, Mapping):
            complaints.add(
                ConfigTypeError(
                    f"must be a mapping such as {{name: adam, match: 'generator.*', lr: 1.0e-3}}, got {entry!r}"
                ),
                where,
            )
            continue
        chosen = _optimizer(complaints, entry, where, keys)
        select = None
        with complaints.at(where):
            select = selection.parsed(entry)
            if select == Selector():
                select = None
                if len(given) > 1:
                    raise ConfigError(f"needs one of {listing(selection.KEYS)}, to say which parameters it has")
        rules = _param_groups(complaints, entry.get("param_groups"), f"{where}.param_groups", chosen)
        schedule = None
        if with_schedulers:
            schedule = _scheduler(complaints, entry.get("scheduler"), f"{where}.scheduler")
        if chosen is not None:
            found.append((Member(chosen, rules, select, i), schedule))
    return found


# ----------------------------------------------------------------------------------- scheduler


def _scheduler(
    complaints: Complaints, given: Any, place: str, monitor: Any = None, mode: Any = None
) -> SchedulerConfig | None:
    beside = {key: value for key, value in (("monitor", monitor), ("mode", mode)) if value is not None}
    if given is None:
        for key, value in beside.items():
            complaints.add(
                ConfigError(f"{value!r} needs a scheduler that takes a metric, and there is no scheduler"), key
            )
        return None
    if isinstance(given, Mapping) and "name" not in given and ("warmup" in given or "warmup_steps" in given):
        return _warmup_alone(complaints, given, place, beside)
    split = None
    with complaints.at(place):
        split = _split("scheduler", given)
    if split is None:
        return None
    name, wiring, arguments = split
    offer = None
    with complaints.at(f"{place}.name" if isinstance(given, Mapping) else place):
        offer = _offer("scheduler", name)
    warmup = _warmup(complaints, wiring, place)
    if offer is None:
        return None
    for key, value in beside.items():
        if wiring.get(key) is None:
            wiring[key] = value
        elif wiring[key] != value:
            complaints.add(ConfigError(f"is {value!r} and {place}.{key} is {wiring[key]!r}: give it once"), key)
    known = _known(complaints, offer, arguments, place)
    interval, frequency = _interval(complaints, offer, wiring, place)
    with complaints.at(place):
        monitor, mode = _metric(offer, wiring, known)
        return SchedulerConfig(name, known, interval, frequency, warmup, monitor, mode)
    return None


def _warmup_alone(
    complaints: Complaints, given: Mapping[str, Any], place: str, beside: Mapping[str, Any]
) -> SchedulerConfig | None:
    for key in given:
        if key not in ("warmup", "warmup_steps"):
            hint = "; is it meant to be 'name'?" if did_you_mean(str(key), ["name"]) else ""
            complaints.add(
                ConfigError(f"without a name a scheduler is a warmup alone, which has no {key!r}{hint}"),
                f"{place}.{key}",
            )
    for key in beside:
        complaints.add(ConfigError("needs a scheduler that takes a metric, and there is a warmup alone"), key)
    warmup = _warmup(complaints, given, place)
    return None if warmup is None else SchedulerConfig(None, warmup=warmup, interval="step")


def length_of(offer: Offer) -> str | None:
    """The argument of a scheduler that says how many steps the whole schedule has."""
    assert isinstance(offer.spec, SchedulerSpec)
    known = configurable(offer)
    return offer.spec.length or next((name for name in LENGTHS if name in known), None)


def _interval(complaints: Complaints, offer: Offer, wiring: Mapping[str, Any], place: str) -> tuple[str, int]:
    assert isinstance(offer.spec, SchedulerSpec)
    interval, frequency = wiring.get("interval", offer.spec.interval), wiring.get("frequency", 1)
    if "metric" in offer.spec.capabilities:
        for key in ("interval", "frequency"):
            if key in wiring and wiring[key] != {"interval": "epoch", "frequency": 1}[key]:
                complaints.add(
                    ConfigError(
                        f"{offer.name} steps once per completed validation (or per epoch, for a training metric): "
                        f"leave {key} out, got {wiring[key]!r}"
                    ),
                    f"{place}.{key}",
                )
        return "epoch", 1
    if interval not in ("epoch", "step"):
        known = ("epoch", "step")
        error = ConfigError(f"must be 'epoch' or 'step', got {interval!r}{did_you_mean(str(interval), known)}")
        complaints.add(error, f"{place}.interval")
        interval = offer.spec.interval
    if isinstance(frequency, bool) or not isinstance(frequency, int):
        complaints.add(ConfigTypeError(f"must be a whole number, got {frequency!r}"), f"{place}.frequency")
        frequency = 1
    elif frequency < 1:
        complaints.add(ConfigError(f"must be at least 1, got {frequency}"), f"{place}.frequency")
        frequency = 1
    return interval, frequency


def _warmup(complaints: Complaints, wiring: Mapping[str, Any], place: str) -> WarmupConfig | None:
    if "warmup" in wiring and "warmup_steps" in wiring:
        complaints.add(ConfigError("is short for warmup: {steps: ...}: give one of them"), f"{place}.warmup_steps")
        return None
    short = "warmup_steps" in wiring
    warmup: Any = {"steps": wiring["warmup_steps"]} if short else wiring.get("warmup")
    if warmup is not None:
        with complaints.at(f"{place}.{'warmup_steps' if short else 'warmup'}"):
            return _parsed_warmup(warmup, short=short)
    return None


def _parsed_warmup(warmup: Any, *, short: bool) -> WarmupConfig | None:
    from optplug.schedules import check_start_factor, check_warmup_steps

    if not isinstance(warmup, Mapping):
        raise ConfigTypeError(f"must be a mapping such as {{steps: 100}}, got {warmup!r}")
    known = (*WARMUP_UNITS, "start_factor")
    for key in warmup:
        if key not in known:
            raise at(
                str(key), ConfigError(f"warmup has no key {key!r}; it has {listing(known)}{did_you_mean(key, known)}")
            )
    units = [key for key in WARMUP_UNITS if key in warmup]
    if len(units) != 1:
        raise ConfigError(f"needs one of steps (of the optimizer), epochs, ratio (of all steps), got {listing(units)}")
    (unit,) = units
    length, start = warmup[unit], warmup.get("start_factor")
    try:
        if unit == "steps":
            check_warmup_steps(length, 0)
        elif isinstance(length, bool) or not isinstance(length, (int, float)):
            raise ConfigTypeError(f"must be a number, got {length!r}{number_hint(length)}")
        elif not 0 <= length <= (1 if unit == "ratio" else 1e9):
            raise ConfigError(f"must be at least 0{' and at most 1' if unit == 'ratio' else ''}, got {length}")
    except OptplugError as error:
        raise at("" if short else unit, error) from None
    try:
        check_start_factor(start)
    except OptplugError as error:
        raise at("start_factor", error) from None
    return WarmupConfig(length, unit, start) if length else None


def _metric(offer: Offer, wiring: Mapping[str, Any], arguments: dict[str, Any]) -> tuple[str | None, str | None]:
    monitor, mode = wiring.get("monitor"), wiring.get("mode")
    if "metric" not in offer.spec.capabilities:
        for key, value in (("monitor", monitor), ("mode", mode)):
            if value is not None:
                own = f"; its own argument {key} goes under {ARGS}" if key in configurable(offer) else ""
                raise at(key, ConfigError(f"{offer.name} takes no metric: {key}={value!r} has no use{own}"))
        return None, None
    if "mode" in arguments:  # under args it means the same
        own_mode = arguments.pop("mode")
        if mode not in (None, own_mode):
            raise at("mode", ConfigError(f"is {mode!r} and {ARGS}.mode is {own_mode!r}: give it once"))
        mode = own_mode
    if monitor is not None and not isinstance(monitor, str):
        raise at("monitor", ConfigTypeError(f"must be the name of a metric, got {monitor!r}"))
    if monitor == "":
        raise at("monitor", ConfigError("is empty: name a metric, or leave it out to have it inferred"))
    if mode not in (None, "min", "max"):
        raise at("mode", ConfigError(f"must be 'min' or 'max', got {mode!r}{did_you_mean(str(mode), ('min', 'max'))}"))
    return monitor, mode


# -------------------------------------------------------------------------------- param groups


def _param_groups(
    complaints: Complaints, given: Any, place: str, optimizer: OptimizerConfig | None
) -> tuple[AnyRule, ...]:
    if given is None:
        return ()
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, (list, tuple)):
        complaints.add(ConfigTypeError(f"must be a list of mappings and presets, got {given!r}"), place)
        return ()
    rules: list[AnyRule] = []
    for i, each in enumerate(entries):
        where = f"{place}[{i}]"
        entry = {"preset": each} if isinstance(each, str) else each
        rules.append(Rule(Selector(), f"[{i}]", {}))  # holds the place of one that is refused
        with complaints.at(where):
            if not isinstance(entry, Mapping):
                example = "{match: '*.bias', weight_decay: 0.0}"
                raise ConfigTypeError(f"must be a mapping such as {example}, or the name of a preset, got {entry!r}")
            rules[-1] = presets.parsed(entry) if "preset" in entry else _rule(complaints, entry, where, optimizer)
    names = [rule.name for rule in rules if isinstance(rule, Rule)]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            complaints.add(ConfigError(f"two entries are named {name!r}: give each its own name"), place)
    return tuple(rules)


def _rule(complaints: Complaints, entry: Mapping[str, Any], place: str, optimizer: OptimizerConfig | None) -> Rule:
    keys = (*selection.KEYS, "name")
    ways = [key for key in selection.KEYS if key in entry]
    options = {key: value for key, value in entry.items() if key not in keys}
    if optimizer is not None:
        options = _group_options(complaints, optimizer, options, place)
    if not ways:
        near = next((f": is {key!r} meant to be {n!r}?" for key in entry for n in keys if did_you_mean(key, [n])), "")
        raise ConfigError(
            f"needs one of {listing(selection.KEYS)}, to say which parameters; it has {listing(entry)}{near}"
        )
    select = selection.parsed(entry)
    name = entry.get("name", str(select))
    if not isinstance(name, str) or not name:
        raise at("name", ConfigTypeError(f"must be text, got {name!r}"))
    return Rule(select, name, options)


def _group_options(
    complaints: Complaints, optimizer: OptimizerConfig, options: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """The options that a group can have; others become complaints."""
    parameters, complete = constructor(registry.get("optimizer", optimizer.offer.qualified))
    known = [key for key in parameters if key not in OF_THE_WHOLE]
    multipliers = {key: target for key, target in MULTIPLIERS.items() if target in parameters or not complete}
    kept = {}
    for key, value in options.items():
        where = f"{place}.{key}"
        if key in multipliers:
            target = multipliers[key]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                complaints.add(ConfigTypeError(f"must be a number, got {value!r}{number_hint(value)}"), where)
            elif not 0 <= value < float("inf"):
                complaints.add(ConfigError(f"must be at least 0 and finite, got {value}"), where)
            elif target in options:
                complaints.add(ConfigError(f"multiplies {target}, which this entry gives too: give one of them"), where)
            else:
                kept[key] = value
        elif key in known or (not complete and key not in OF_THE_WHOLE):
            kept[key] = value
        else:
            whole = f"; {key} is of the whole optimizer" if key in OF_THE_WHOLE else ""
            near = whole or did_you_mean(key, [*known, *multipliers, *selection.KEYS, "name"])
            complaints.add(
                ConfigError(
                    f"{optimizer.offer.name} has no option {key!r}; it has {listing(sorted(known))}, and in an entry "
                    f"of param_groups {listing([*selection.KEYS, 'name', *multipliers])}{near}"
                ),
                where,
            )
    return kept


# -------------------------------------------------------------------------------------- shared


def _offer(kind: str, name: str) -> Offer:
    """What a name stands for, its class loaded."""
    offer = registry.find(kind, name)
    registry.get(kind, offer.qualified)
    return offer


def _split(kind: str, given: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name, wiring keys, and the algorithm's own arguments."""
    if isinstance(given, str):
        return given, {}, {}
    if not isinstance(given, Mapping):
        raise ConfigTypeError(f"must be a name or a mapping with a name, got {given!r} ({type(given).__name__})")
    for key in given:
        if not isinstance(key, str):
            raise ConfigTypeError(f"has the key {key!r}; keys are text")
    if "name" not in given:
        near = next((f": is {key!r} meant to be 'name'?" for key in given if did_you_mean(key, ["name"])), "")
        if {"class_path", "init_args", "_target_"} & set(given):
            near = ": write {name: ..., lr: ...}; optplug looks names up and imports no path"
        raise ConfigError(f"needs a name; it has {listing(given)}{near}")
    if not isinstance(given["name"], str):
        raise at("name", ConfigTypeError(f"must be text, got {given['name']!r}"))
    wiring = {key: value for key, value in given.items() if key in WIRING_KEYS[kind]}
    arguments = {key: value for key, value in given.items() if key not in WIRING_KEYS[kind]}
    extra = wiring.pop(ARGS, None)
    extra = {} if extra is None else extra
    if not isinstance(extra, Mapping):
        raise at(ARGS, ConfigTypeError(f"must be a mapping of arguments, got {extra!r}"))
    twice = sorted(str(key) for key in set(extra) & set(arguments))
    if twice:
        raise at(f"{ARGS}.{twice[0]}", ConfigError(f"{listing(twice)} is given both directly and under {ARGS}"))
    return wiring.pop("name"), wiring, {**arguments, **extra}


def _known(
    complaints: Complaints, offer: Offer, arguments: Mapping[str, Any], place: str, beside: Sequence[str] = ()
) -> dict[str, Any]:
    """The arguments that the class has; complaints about others, about missing ones, and about a misplaced `auto`."""
    wrong = dict(wrong_arguments(offer, arguments, beside))
    for key, error in wrong.items():
        complaints.add(error, f"{place}.{key}" if key else place)
    kept = {key: value for key, value in arguments.items() if key not in wrong}
    for key, value in kept.items():
        if offer.spec.kind == "scheduler" and value == AUTO and key != length_of(offer):
            length = length_of(offer)
            which = f"only {length} can be auto" if length else f"{offer.name} has no argument that can be auto"
            complaints.add(ConfigError(f"{which}, the length of the schedule"), f"{place}.{key}")
    return kept


def wrong_arguments(
    offer: Offer, arguments: Mapping[str, Any], beside: Sequence[str] = ()
) -> Iterator[tuple[str, ConfigError]]:
    """Arguments that the class does not have, and, under the empty name, those it needs and does not get."""
    known, complete = constructor(registry.get(offer.spec.kind, offer.qualified))
    wiring = [key for key in (*WIRING_KEYS[offer.spec.kind], *beside) if key != "name"]
    if complete:
        for key in arguments:
            if key not in known:
                misplaced = offer.spec.kind == "optimizer" and key in WIRING_KEYS["scheduler"] and key != "name"
                hint = f"; {key!r} belongs to scheduler" if misplaced else did_you_mean(key, [*known, *wiring])
                yield (
                    str(key),
                    ConfigError(
                        f"{offer.spec.kind} {offer.name!r} has no option {key!r}; it has {listing(sorted(known))}, "
                        f"and in a configuration {listing(wiring)}{hint}"
                    ),
                )
    missing = [name for name, p in known.items() if p.default is p.empty and name not in arguments]
    if missing:
        yield "", ConfigError(f"{offer.spec.kind} {offer.name!r} needs {listing(missing)}")


def check_arguments(offer: Offer, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments the class does not have, and miss those it needs.

    Raises:
        ConfigError: with the nearest valid spelling.
    """
    for _, error in wrong_arguments(offer, arguments):
        raise error


@contextmanager
def refusals(spec: Spec, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Make one of our errors of what a class of somebody else's says to its arguments."""
    try:
        yield
    except OptplugError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        kind = ConfigTypeError if isinstance(error, TypeError) else ConfigError
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items()) or "its defaults"
        raise kind(f"{spec.kind} {spec.name!r} refused {given}: {error}") from error
