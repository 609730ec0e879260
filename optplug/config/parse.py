"""From what a user writes to a `Config`, with every check that needs no parameters and no constructor."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optplug.config import param_group_presets, param_selection
from optplug.config.builtins import plain
from optplug.config.error_collector import ErrorCollector
from optplug.config.model import (
    ARGS,
    AUTO,
    KEYS,
    MEMBER_KEYS,
    METRIC_KEYS,
    OF_THE_WHOLE,
    ON_NONFINITE,
    ON_RESUME,
    PATIENCE_UNITS,
    WARMUP_UNITS,
    WIRING_KEYS,
    Config,
    OptimizerConfig,
    OptimizerEntry,
    OptimizerSetup,
    SchedulerConfig,
    WarmupConfig,
    length_of,
)
from optplug.config.param_groups import MULTIPLIERS, AnyRule, GroupRule
from optplug.config.param_selection import Selector
from optplug.errors import ConfigError, ConfigTypeError, did_you_mean, listing, number_hint, with_loc
from optplug.registry import Registration, registry
from optplug.registry.signature import configurable, constructor
from optplug.registry.specs import SchedulerSpec
from optplug.schedulers.warmup import check_start_factor, check_warmup_steps


def parse(optimizer: Any = None, scheduler: Any = None, **options: Any) -> Config:
    """Check a configuration and give it its one form.

    Args:
        optimizer: a name, or a mapping with `name` and hyperparameters; a list of such mappings, each with `match`,
            `regex` or `type` and perhaps its own `param_groups` and `scheduler`, for several optimizers; or
            `{combine: [...]}` with such a list, for one optimizer made of several. None: the module has one.
        scheduler: a name, a mapping with `name`, arguments and wiring keys, or None.
        options: `param_groups`, a preset's name or a list of rules; `monitor` and `mode`, what the scheduler's would
            say; `on_resume`, of `ON_RESUME`. Others are refused with the nearest.

    Mappings and lists may be OmegaConf's.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: a name. ConfigError: a wrong key, value or combination.
        ConfigTypeError: a wrong type. ConfigErrors: several of these. The values of hyperparameters are for
        `optplug.config.build.checked` to find wrong.
    """
    collector = ErrorCollector()
    config = read(collector, optimizer, scheduler, **options)
    collector.raise_collected()
    return config


def read(
    collector: ErrorCollector,
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
        collector.add(ConfigError(f"a configuration has no key {key!r}; it has {listing(KEYS)}{hint}"), key)
    given: dict[str, Any] = {}
    for key, value in (("optimizer", optimizer), ("scheduler", scheduler), ("param_groups", param_groups)):
        given[key] = None
        with collector.collect(key):
            given[key] = plain(value)
    unread = {error.loc.partition(".")[0] for error in collector.errors}
    beside = {key: value for key, value in (("monitor", monitor), ("mode", mode)) if value is not None}
    policy = ON_RESUME[0] if on_resume is None else on_resume
    if policy not in ON_RESUME:
        collector.add(_none_of(ON_RESUME, policy), "on_resume")
        policy = ON_RESUME[0]
    chosen = given["optimizer"]
    several = isinstance(chosen, (list, tuple))
    combined = isinstance(chosen, Mapping) and "combine" in chosen
    if combined:
        for key in chosen:
            if key != "combine":
                alone = f"an optimizer made of several has the key combine alone, got {key!r} too"
                collector.add(ConfigError(alone), f"optimizer.{key}")
    if several or combined:
        outside = {
            "param_groups": given["param_groups"],
            **({"scheduler": given["scheduler"], **beside} if several else {}),
        }
        for key, value in outside.items():
            if value is not None:
                hint = "the entry's scheduler" if key in beside else "an entry of optimizer"
                collector.add(ConfigError(f"with several optimizers it belongs to {hint}"), key)
    if several:
        entries = _members(collector, chosen, "optimizer", with_schedulers=True)
        return Config(tuple(OptimizerSetup((member,), schedule) for member, schedule in entries), True, policy)
    members: tuple[OptimizerEntry, ...] = ()
    if combined:
        found = _members(collector, chosen["combine"], "optimizer.combine", with_schedulers=False)
        members = tuple(member for member, _ in found)
    elif chosen is not None:
        parsed = _optimizer(collector, chosen, "optimizer")
        rules = _param_groups(collector, given["param_groups"], "param_groups", parsed)
        members = () if parsed is None else (OptimizerEntry(parsed, rules),)
    elif given["param_groups"] is not None and "optimizer" not in unread:
        collector.add(ConfigError("needs an optimizer beside it: add e.g. optimizer: adam"), "param_groups")
    elif given["scheduler"] is None and not beside and not collector.errors and on_resume is not None:
        collector.add(ConfigError("needs an optimizer or a scheduler beside it"), "on_resume")
    elif given["scheduler"] is None and not beside and not collector.errors:
        collector.add(ConfigTypeError("must be a name or a mapping with a name, got None (NoneType)"), "optimizer")
    schedule = _scheduler(collector, given["scheduler"], "scheduler", beside)
    return Config((OptimizerSetup(members, schedule, combined),), on_resume=policy)


# ---------------------------------------------------------------------------------- optimizers


def _optimizer(collector: ErrorCollector, given: Any, loc: str, beside: Sequence[str] = ()) -> OptimizerConfig | None:
    """One optimizer; `beside` are keys that the entry has for others to read."""
    if isinstance(given, Mapping) and "name" in given:
        given = {key: value for key, value in given.items() if key not in beside}
    split = None
    with collector.collect(loc):
        split = _split("optimizer", given)
    if split is None:
        return None
    name, _, arguments = split
    registration = _offer(collector, "optimizer", name, f"{loc}.name" if isinstance(given, Mapping) else loc)
    if registration is None:
        return None
    return OptimizerConfig(name, _known(collector, registration, given, arguments, loc, beside))


def _members(
    collector: ErrorCollector, given: Any, loc: str, *, with_schedulers: bool
) -> list[tuple[OptimizerEntry, SchedulerConfig | None]]:
    if not isinstance(given, (list, tuple)) or not given:
        collector.add(ConfigTypeError(f"must be a list of mappings, each with a name, got {given!r}"), loc)
        return []
    found = []
    keys = MEMBER_KEYS if with_schedulers else MEMBER_KEYS[:-1]
    for i, entry in enumerate(given):
        where = f"{loc}[{i}]"
        if not isinstance(entry, Mapping):
            example = "{name: adam, match: 'generator.*', lr: 1.0e-3}"
            collector.add(ConfigTypeError(f"must be a mapping such as {example}, got {entry!r}"), where)
            continue
        chosen = _optimizer(collector, entry, where, keys)
        select: Selector | None = param_selection.parsed(entry, collector, where)
        if not any(key in entry for key in param_selection.SELECTOR_KEYS):
            select = None
            if len(given) > 1 and "name" in entry:
                hint = f"needs one of {listing(param_selection.SELECTOR_KEYS)}, to say which parameters it has"
                collector.add(ConfigError(hint), where)
        rules = _param_groups(collector, entry.get("param_groups"), f"{where}.param_groups", chosen)
        schedule = _scheduler(collector, entry.get("scheduler"), f"{where}.scheduler") if with_schedulers else None
        if chosen is not None:
            found.append((OptimizerEntry(chosen, rules, select, i), schedule))
    return found


# ----------------------------------------------------------------------------------- scheduler


def _scheduler(
    collector: ErrorCollector, given: Any, loc: str, beside: Mapping[str, Any] = MappingProxyType({})
) -> SchedulerConfig | None:
    """The schedule; `beside` are `monitor` and `mode` where they stand beside it."""
    if given is None:
        for key, value in beside.items():
            says = f"{value!r} needs a scheduler that takes a metric, and there is no scheduler"
            collector.add(ConfigError(says), key)
        return None
    if isinstance(given, Mapping) and "name" not in given and ("warmup" in given or "warmup_steps" in given):
        return _warmup_alone(collector, given, loc, beside)
    split = None
    with collector.collect(loc):
        split = _split("scheduler", given)
    if split is None:
        return None
    name, wiring, arguments = split
    registration = _offer(collector, "scheduler", name, f"{loc}.name" if isinstance(given, Mapping) else loc)
    warmup = _warmup(collector, wiring, loc)
    interval, frequency = _interval(collector, registration, wiring, loc)
    if registration is None:
        return None
    known = _known(collector, registration, given, arguments, loc)
    heard = _metric(collector, registration, wiring, known, loc, beside)
    return SchedulerConfig(name, known, interval, frequency, warmup, **heard)


def _warmup_alone(
    collector: ErrorCollector, given: Mapping[str, Any], loc: str, beside: Mapping[str, Any]
) -> SchedulerConfig | None:
    for key in given:
        if key not in ("warmup", "warmup_steps"):
            hint = "; is it meant to be 'name'?" if did_you_mean(str(key), ["name"]) else ""
            says = f"without a name a scheduler is a warmup alone, which has no {key!r}{hint}"
            collector.add(ConfigError(says), f"{loc}.{key}")
    for key in beside:
        collector.add(ConfigError("needs a scheduler that takes a metric, and there is a warmup alone"), key)
    warmup = _warmup(collector, given, loc)
    return SchedulerConfig(None, warmup=warmup or WarmupConfig(0), interval="step")


def _interval(
    collector: ErrorCollector, registration: Registration | None, wiring: Mapping[str, Any], loc: str
) -> tuple[str, int]:
    spec = None if registration is None else registration.spec
    natural = spec.interval if isinstance(spec, SchedulerSpec) else "epoch"
    interval, frequency = wiring.get("interval", natural), wiring.get("frequency", 1)
    if registration is not None and "metric" in registration.spec.capabilities:
        for key, usual in (("interval", "epoch"), ("frequency", 1)):
            if key in wiring and wiring[key] != usual:
                says = (
                    f"{registration.name} steps once per completed validation (or per epoch, for a training metric): "
                    f"leave {key} out, got {wiring[key]!r}"
                )
                collector.add(ConfigError(says), f"{loc}.{key}")
        return "epoch", 1
    known = ("epoch", "step")
    if interval not in known:
        hint = did_you_mean(str(interval), known)
        collector.add(ConfigError(f"must be 'epoch' or 'step', got {interval!r}{hint}"), f"{loc}.interval")
        interval = natural
    with collector.collect(f"{loc}.frequency"):
        if isinstance(frequency, bool) or not isinstance(frequency, int):
            raise ConfigTypeError(f"must be a whole number, got {frequency!r}")
        if frequency < 1:
            raise ConfigError(f"must be at least 1, got {frequency}")
        return interval, frequency
    return interval, 1


def _warmup(collector: ErrorCollector, wiring: Mapping[str, Any], loc: str) -> WarmupConfig | None:
    if "warmup" in wiring and "warmup_steps" in wiring:
        collector.add(ConfigError("is given beside warmup, and means warmup.steps: keep one"), f"{loc}.warmup_steps")
        return None
    if "warmup_steps" in wiring:
        loc = f"{loc}.warmup_steps"
        length = wiring["warmup_steps"]
        if length is not None:
            return _warmup_length(collector, "steps", length, None, loc)
        collector.add(ConfigTypeError("must be a whole number of optimizer steps, got None"), loc)
        return None
    warmup, loc = wiring.get("warmup"), f"{loc}.warmup"
    if warmup is None:
        return None
    if not isinstance(warmup, Mapping):
        collector.add(ConfigTypeError(f"must be a mapping such as {{steps: 100}}, got {warmup!r}"), loc)
        return None
    known = (*WARMUP_UNITS, "start_factor")
    for key in warmup:
        if key not in known:
            hint = did_you_mean(str(key), known)
            collector.add(ConfigError(f"there is no {key!r} here; there are {listing(known)}{hint}"), f"{loc}.{key}")
    start = warmup.get("start_factor")
    with collector.collect(f"{loc}.start_factor"):
        check_start_factor(start)
    units = [key for key in WARMUP_UNITS if key in warmup]
    if len(units) != 1:
        needs = "needs one of steps (of the optimizer), epochs, ratio (of all steps)"
        if units or set(warmup) <= set(known):
            collector.add(ConfigError(f"{needs}, got {listing(units)}"), loc)
        return None
    return _warmup_length(collector, units[0], warmup[units[0]], start, f"{loc}.{units[0]}")


def _warmup_length(collector: ErrorCollector, unit: str, length: Any, start: Any, loc: str) -> WarmupConfig | None:
    with collector.collect(loc):
        if unit == "steps":
            check_warmup_steps(length, 0)
        elif isinstance(length, bool) or not isinstance(length, (int, float)):
            raise ConfigTypeError(f"must be a number, got {length!r}{number_hint(length)}")
        elif not 0 <= length <= (1 if unit == "ratio" else 1e9):
            raise ConfigError(f"must be at least 0{' and at most 1' if unit == 'ratio' else ''}, got {length}")
        return WarmupConfig(length, unit, start) if length else None
    return None


_CHOICES = {"patience_unit": PATIENCE_UNITS, "on_nonfinite": ON_NONFINITE}
"""Keys of a scheduler that takes a metric, with the values they may have."""


def _metric(
    collector: ErrorCollector,
    registration: Registration,
    wiring: Mapping[str, Any],
    arguments: dict[str, Any],
    loc: str,
    beside: Mapping[str, Any],
) -> dict[str, Any]:
    """The metric and how it is heard, from wherever that stands; `mode` leaves the arguments, where it is the same."""
    takes_metric = "metric" in registration.spec.capabilities
    found: dict[str, Any] = {}
    for key in METRIC_KEYS:
        stands = {f"{loc}.{key}": wiring.get(key), key: beside.get(key)}
        if takes_metric and key == "mode":
            stands[f"{loc}.{ARGS}.{key}"] = arguments.pop("mode", None)
        stands = {where: value for where, value in stands.items() if value is not None}
        found[key] = next(iter(stands.values()), getattr(SchedulerConfig, key))
        for where, value in stands.items():
            with collector.collect(where):
                if not takes_metric:
                    own = f"; its own argument {key} goes under {ARGS}" if key in configurable(registration) else ""
                    raise ConfigError(f"{registration.name} takes no metric: {key}={value!r} has no use{own}")
                if value != found[key]:
                    first = next(iter(stands))
                    raise ConfigError(f"is {value!r} and {first} is {found[key]!r}: give it once")
                if key == "mode" and value not in ("min", "max"):
                    hint = did_you_mean(str(value), ("min", "max"))
                    raise ConfigError(f"must be 'min' or 'max', got {value!r}{hint}")
                if key in _CHOICES and value not in _CHOICES[key]:
                    raise _none_of(_CHOICES[key], value)
                if key == "monitor" and not isinstance(value, str):
                    raise ConfigTypeError(f"must be the name of a metric, got {value!r}")
                if value == "":
                    raise ConfigError("is empty: name a metric, or leave it out to have it inferred")
                if key == "monitor" and value.startswith("lr-"):
                    says = f"is {value!r}, a learning rate, which {registration.name} sets: name a metric of the model"
                    raise ConfigError(says)
    return found


# -------------------------------------------------------------------------------- param groups


def _param_groups(
    collector: ErrorCollector, given: Any, loc: str, optimizer: OptimizerConfig | None
) -> tuple[AnyRule, ...]:
    if given is None:
        return ()
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, (list, tuple)):
        collector.add(ConfigTypeError(f"must be a list of mappings and presets, got {given!r}"), loc)
        return ()
    rules: list[AnyRule] = []
    for i, entry in enumerate(entries):
        where = f"{loc}[{i}]"
        rule: AnyRule | None = None
        if isinstance(entry, str):
            if entry in param_group_presets.PRESETS:
                rule = param_group_presets.parsed({"preset": entry}, collector, where)
            else:
                known = f"there is no preset {entry!r}; there are {listing(param_group_presets.PRESETS)}"
                glob = f"; a glob goes into a mapping: {{match: {entry!r}, ...}}" if set("*.?[") & set(entry) else ""
                collector.add(ConfigError(known + (glob or did_you_mean(entry, param_group_presets.PRESETS))), where)
        elif not isinstance(entry, Mapping):
            example = "{match: '*.bias', weight_decay: 0.0}"
            says = f"must be a mapping such as {example}, or the name of a preset, got {entry!r}"
            collector.add(ConfigTypeError(says), where)
        elif "preset" in entry:
            rule = param_group_presets.parsed(entry, collector, where)
        else:
            rule = _rule(collector, entry, where, optimizer)
        rules.append(rule or GroupRule(Selector(), f"[{i}]", {}))  # holds the place of one that is refused
    names = [rule.name for rule in rules if isinstance(rule, GroupRule)]
    for name, count in Counter(names).items():
        if count > 1:
            which = listing(i for i, rule in enumerate(rules) if isinstance(rule, GroupRule) and rule.name == name)
            says = f"entries {which} are both called {name!r}; without a name they are called after their patterns"
            collector.add(ConfigError(f"{says}: give each its own name"), loc)
    return tuple(rules)


def _rule(
    collector: ErrorCollector, entry: Mapping[str, Any], loc: str, optimizer: OptimizerConfig | None
) -> GroupRule | None:
    keys = (*param_selection.SELECTOR_KEYS, "name")
    ways = [key for key in param_selection.SELECTOR_KEYS if key in entry]
    options = {key: value for key, value in entry.items() if key not in keys}
    if not ways:
        near = next((key for key in options if did_you_mean(str(key), param_selection.SELECTOR_KEYS)), None)
        hint = ""
        if near is not None:
            hint = f": is {near!r} meant to be one of them{did_you_mean(str(near), param_selection.SELECTOR_KEYS)}"
            del options[near]
        needs = f"needs one of {listing(param_selection.SELECTOR_KEYS)}, to say which parameters; it has {listing(entry)}{hint}"
        collector.add(ConfigError(needs), loc)
    if optimizer is not None:
        options = _group_options(collector, optimizer, options, loc)
    select = param_selection.parsed(entry, collector, loc)
    name = entry.get("name", str(select))
    if "name" in entry and (not isinstance(name, str) or not name):
        collector.add(ConfigTypeError(f"must be text, got {name!r}"), f"{loc}.name")
        name = str(select)
    return GroupRule(select, name, options) if select != Selector() else None


def _group_options(
    collector: ErrorCollector, optimizer: OptimizerConfig, options: Mapping[str, Any], loc: str
) -> dict[str, Any]:
    """The options that a group can have; others become complaints."""
    name = optimizer.registration.name
    parameters, complete = constructor(registry.get("optimizer", optimizer.registration.qualified))
    known = [key for key in parameters if key not in OF_THE_WHOLE]
    multipliers = [key for key, target in MULTIPLIERS.items() if target in parameters or not complete]
    kept = {}
    for key, value in options.items():
        with collector.collect(f"{loc}.{key}"):
            if key in MULTIPLIERS:
                target = MULTIPLIERS[key]
                if key not in multipliers:
                    raise ConfigError(f"{name} has no {target} to multiply")
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ConfigTypeError(f"must be a number, got {value!r}{number_hint(value)}")
                if not 0 <= value <= sys.float_info.max:
                    raise ConfigError(f"must be at least 0 and finite, got {str(value)[:20]}")
                if target in options:
                    raise ConfigError(f"multiplies {target}, which this entry gives too: give one of them")
            elif key not in known and (complete or key in OF_THE_WHOLE):
                whole = f"; {key} is of the whole optimizer" if key in OF_THE_WHOLE else ""
                near = whole or did_you_mean(str(key), [*known, *multipliers, *param_selection.SELECTOR_KEYS, "name"])
                raise ConfigError(
                    f"{name} has no option {key!r}; it has {listing(sorted(known))}, and in an entry of param_groups "
                    f"{listing([*param_selection.SELECTOR_KEYS, 'name', *multipliers])}{near}"
                )
            kept[key] = value
    return kept


# -------------------------------------------------------------------------------------- shared


def _none_of(known: Sequence[str], value: Any) -> ConfigError:
    """The error for a value that is none of the words it may be."""
    return ConfigError(f"must be one of {listing(known)}, got {value!r}{did_you_mean(str(value), known)}")


def _offer(collector: ErrorCollector, kind: str, name: str, loc: str) -> Registration | None:
    """What a name stands for, its class loaded; None, and a complaint, where there is nothing."""
    with collector.collect(loc):
        registration = registry.find(kind, name)
        registry.get(kind, registration.qualified)
        return registration
    return None


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
        near = next((f": is {key!r} meant to be 'combine'?" for key in given if did_you_mean(key, ["combine"])), near)
        if {"class_path", "init_args", "_target_"} & set(given):
            example = "lr: ..." if kind == "optimizer" else "..."
            near = f": write {{name: ..., {example}}}; optplug looks names up and imports no path"
        raise ConfigError(f"needs a name; it has {listing(given)}{near}")
    if not isinstance(given["name"], str):
        raise with_loc("name", ConfigTypeError(f"must be text, got {given['name']!r}"))
    wiring = {key: value for key, value in given.items() if key in WIRING_KEYS[kind]}
    arguments = {key: value for key, value in given.items() if key not in WIRING_KEYS[kind]}
    extra = wiring.pop(ARGS, None)
    extra = {} if extra is None else extra
    if not isinstance(extra, Mapping):
        raise with_loc(ARGS, ConfigTypeError(f"must be a mapping of arguments, got {extra!r}"))
    for key in extra:
        if not isinstance(key, str):
            raise with_loc(ARGS, ConfigTypeError(f"has the key {key!r}; keys are text"))
        if key in arguments:
            raise with_loc(f"{ARGS}.{key}", ConfigError("is given directly too: give it once"))
    return wiring.pop("name"), wiring, {**arguments, **extra}


def _known(
    collector: ErrorCollector,
    registration: Registration,
    given: Any,
    arguments: Mapping[str, Any],
    loc: str,
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """The arguments that the class has; complaints about others, about missing ones, and about a misplaced `auto`."""
    nested = given.get(ARGS) if isinstance(given, Mapping) else None
    wiring = [key for key in (*WIRING_KEYS[registration.spec.kind], *beside) if key != "name"]
    wrong = dict(wrong_arguments(registration, arguments, wiring))
    length = length_of(registration) if registration.spec.kind == "scheduler" else None
    for key, value in arguments.items():
        if registration.spec.kind == "scheduler" and isinstance(value, str) and value.lower() == AUTO:
            which = f"only {length} can be auto" if length else f"{registration.name} has no argument that can be auto"
            if key in wrong:
                continue
            if key != length:
                wrong[key] = ConfigError(f"{which}, the length of the schedule")
            elif value != AUTO:
                wrong[key] = ConfigError(f"is {value!r}: write auto")
    for key, error in wrong.items():
        inner = f"{ARGS}.{key}" if isinstance(nested, Mapping) and key in nested else key
        collector.add(error, f"{loc}.{inner}" if key else loc)
    return {key: value for key, value in arguments.items() if key not in wrong}


def wrong_arguments(
    registration: Registration, arguments: Mapping[str, Any], wiring: Sequence[str] = ()
) -> Iterator[tuple[str, ConfigError]]:
    """Arguments that the class does not have, and, under the empty name, those it needs and does not get.

    Args:
        offer: what the arguments are for. arguments: what was given. wiring: keys that may stand beside them.
    """
    known, complete = constructor(registry.get(registration.spec.kind, registration.qualified))
    has = f"it has {listing(sorted(known))}" + (f", and in a configuration {listing(wiring)}" if wiring else "")
    for key in arguments if complete else ():
        if key not in known:
            yield (
                key,
                ConfigError(
                    f"{registration.name} has no option {key!r}; {has}{_elsewhere(registration, key, [*known, *wiring])}"
                ),
            )
    missing = [name for name, p in known.items() if p.default is p.empty and name not in arguments]
    if missing:
        length = length_of(registration) if registration.spec.kind == "scheduler" else None
        auto = f" ({length} may be auto: as long as the training)" if wiring and length in missing else ""
        yield "", ConfigError(f"{registration.name} needs {listing(missing)}{auto}")


def _elsewhere(registration: Registration, key: str, known: Sequence[str]) -> str:
    """Where an unknown key belongs, or what it may have been meant to be."""
    if (
        registration.spec.kind == "optimizer"
        and key in WIRING_KEYS["scheduler"]
        and key not in WIRING_KEYS["optimizer"]
    ):
        return f"; {key!r} belongs to scheduler"
    if registration.spec.kind == "optimizer" and key in ("param_groups", "scheduler"):
        return f"; {key} stands beside optimizer, or in an entry of a list of several"
    if registration.spec.kind == "optimizer" and key in param_selection.SELECTOR_KEYS:
        return f"; {key} belongs to an entry of param_groups, or of a list of several optimizers"
    return did_you_mean(key, known)


def check_arguments(registration: Registration, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments the class does not have, and miss those it needs.

    Raises:
        ConfigError: with the nearest valid spelling.
    """
    for _, error in wrong_arguments(registration, arguments):
        raise error
