"""From what a user writes to a `Config`, with every check that needs no parameters and no constructor."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optplug import presets, selection
from optplug.arguments import configurable, constructor
from optplug.complaints import Complaints
from optplug.config import (
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
    Member,
    OptimizerConfig,
    Part,
    SchedulerConfig,
    WarmupConfig,
    length_of,
)
from optplug.errors import ConfigError, ConfigTypeError, at, did_you_mean, listing, number_hint
from optplug.groups import MULTIPLIERS, AnyRule, Rule
from optplug.plain import plain
from optplug.registry import Offer, registry
from optplug.schedules import check_start_factor, check_warmup_steps
from optplug.selection import Selector
from optplug.specs import SchedulerSpec


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
        `optplug.build.checked` to find wrong.
    """
    complaints = Complaints()
    config = read(complaints, optimizer, scheduler, **options)
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
    unread = {error.place.partition(".")[0] for error in complaints.errors}
    beside = {key: value for key, value in (("monitor", monitor), ("mode", mode)) if value is not None}
    policy = ON_RESUME[0] if on_resume is None else on_resume
    if policy not in ON_RESUME:
        complaints.add(_none_of(ON_RESUME, policy), "on_resume")
        policy = ON_RESUME[0]
    chosen = given["optimizer"]
    several = isinstance(chosen, (list, tuple))
    combined = isinstance(chosen, Mapping) and "combine" in chosen
    if combined:
        for key in chosen:
            if key != "combine":
                alone = f"an optimizer made of several has the key combine alone, got {key!r} too"
                complaints.add(ConfigError(alone), f"optimizer.{key}")
    if several or combined:
        outside = {
            "param_groups": given["param_groups"],
            **({"scheduler": given["scheduler"], **beside} if several else {}),
        }
        for key, value in outside.items():
            if value is not None:
                hint = "the entry's scheduler" if key in beside else "an entry of optimizer"
                complaints.add(ConfigError(f"with several optimizers it belongs to {hint}"), key)
    if several:
        entries = _members(complaints, chosen, "optimizer", with_schedulers=True)
        return Config(tuple(Part((member,), schedule) for member, schedule in entries), True, policy)
    members: tuple[Member, ...] = ()
    if combined:
        found = _members(complaints, chosen["combine"], "optimizer.combine", with_schedulers=False)
        members = tuple(member for member, _ in found)
    elif chosen is not None:
        parsed = _optimizer(complaints, chosen, "optimizer")
        rules = _param_groups(complaints, given["param_groups"], "param_groups", parsed)
        members = () if parsed is None else (Member(parsed, rules),)
    elif given["param_groups"] is not None and "optimizer" not in unread:
        complaints.add(ConfigError("needs an optimizer beside it: add e.g. optimizer: adam"), "param_groups")
    elif given["scheduler"] is None and not beside and not complaints.errors and on_resume is not None:
        complaints.add(ConfigError("needs an optimizer or a scheduler beside it"), "on_resume")
    elif given["scheduler"] is None and not beside and not complaints.errors:
        complaints.add(ConfigTypeError("must be a name or a mapping with a name, got None (NoneType)"), "optimizer")
    schedule = _scheduler(complaints, given["scheduler"], "scheduler", beside)
    return Config((Part(members, schedule, combined),), on_resume=policy)


# ---------------------------------------------------------------------------------- optimizers


def _optimizer(complaints: Complaints, given: Any, place: str, beside: Sequence[str] = ()) -> OptimizerConfig | None:
    """One optimizer; `beside` are keys that the entry has for others to read."""
    if isinstance(given, Mapping) and "name" in given:
        given = {key: value for key, value in given.items() if key not in beside}
    split = None
    with complaints.at(place):
        split = _split("optimizer", given)
    if split is None:
        return None
    name, _, arguments = split
    offer = _offer(complaints, "optimizer", name, f"{place}.name" if isinstance(given, Mapping) else place)
    if offer is None:
        return None
    return OptimizerConfig(name, _known(complaints, offer, given, arguments, place, beside))


def _members(
    complaints: Complaints, given: Any, place: str, *, with_schedulers: bool
) -> list[tuple[Member, SchedulerConfig | None]]:
    if not isinstance(given, (list, tuple)) or not given:
        complaints.add(ConfigTypeError(f"must be a list of mappings, each with a name, got {given!r}"), place)
        return []
    found = []
    keys = MEMBER_KEYS if with_schedulers else MEMBER_KEYS[:-1]
    for i, entry in enumerate(given):
        where = f"{place}[{i}]"
        if not isinstance(entry, Mapping):
            example = "{name: adam, match: 'generator.*', lr: 1.0e-3}"
            complaints.add(ConfigTypeError(f"must be a mapping such as {example}, got {entry!r}"), where)
            continue
        chosen = _optimizer(complaints, entry, where, keys)
        select: Selector | None = selection.parsed(entry, complaints, where)
        if not any(key in entry for key in selection.KEYS):
            select = None
            if len(given) > 1 and "name" in entry:
                hint = f"needs one of {listing(selection.KEYS)}, to say which parameters it has"
                complaints.add(ConfigError(hint), where)
        rules = _param_groups(complaints, entry.get("param_groups"), f"{where}.param_groups", chosen)
        schedule = _scheduler(complaints, entry.get("scheduler"), f"{where}.scheduler") if with_schedulers else None
        if chosen is not None:
            found.append((Member(chosen, rules, select, i), schedule))
    return found


# ----------------------------------------------------------------------------------- scheduler


def _scheduler(
    complaints: Complaints, given: Any, place: str, beside: Mapping[str, Any] = MappingProxyType({})
) -> SchedulerConfig | None:
    """The schedule; `beside` are `monitor` and `mode` where they stand beside it."""
    if given is None:
        for key, value in beside.items():
            says = f"{value!r} needs a scheduler that takes a metric, and there is no scheduler"
            complaints.add(ConfigError(says), key)
        return None
    if isinstance(given, Mapping) and "name" not in given and ("warmup" in given or "warmup_steps" in given):
        return _warmup_alone(complaints, given, place, beside)
    split = None
    with complaints.at(place):
        split = _split("scheduler", given)
    if split is None:
        return None
    name, wiring, arguments = split
    offer = _offer(complaints, "scheduler", name, f"{place}.name" if isinstance(given, Mapping) else place)
    warmup = _warmup(complaints, wiring, place)
    interval, frequency = _interval(complaints, offer, wiring, place)
    if offer is None:
        return None
    known = _known(complaints, offer, given, arguments, place)
    heard = _metric(complaints, offer, wiring, known, place, beside)
    return SchedulerConfig(name, known, interval, frequency, warmup, **heard)


def _warmup_alone(
    complaints: Complaints, given: Mapping[str, Any], place: str, beside: Mapping[str, Any]
) -> SchedulerConfig | None:
    for key in given:
        if key not in ("warmup", "warmup_steps"):
            hint = "; is it meant to be 'name'?" if did_you_mean(str(key), ["name"]) else ""
            says = f"without a name a scheduler is a warmup alone, which has no {key!r}{hint}"
            complaints.add(ConfigError(says), f"{place}.{key}")
    for key in beside:
        complaints.add(ConfigError("needs a scheduler that takes a metric, and there is a warmup alone"), key)
    warmup = _warmup(complaints, given, place)
    return SchedulerConfig(None, warmup=warmup or WarmupConfig(0), interval="step")


def _interval(complaints: Complaints, offer: Offer | None, wiring: Mapping[str, Any], place: str) -> tuple[str, int]:
    spec = None if offer is None else offer.spec
    natural = spec.interval if isinstance(spec, SchedulerSpec) else "epoch"
    interval, frequency = wiring.get("interval", natural), wiring.get("frequency", 1)
    if offer is not None and "metric" in offer.spec.capabilities:
        for key, usual in (("interval", "epoch"), ("frequency", 1)):
            if key in wiring and wiring[key] != usual:
                says = (
                    f"{offer.name} steps once per completed validation (or per epoch, for a training metric): "
                    f"leave {key} out, got {wiring[key]!r}"
                )
                complaints.add(ConfigError(says), f"{place}.{key}")
        return "epoch", 1
    known = ("epoch", "step")
    if interval not in known:
        hint = did_you_mean(str(interval), known)
        complaints.add(ConfigError(f"must be 'epoch' or 'step', got {interval!r}{hint}"), f"{place}.interval")
        interval = natural
    with complaints.at(f"{place}.frequency"):
        if isinstance(frequency, bool) or not isinstance(frequency, int):
            raise ConfigTypeError(f"must be a whole number, got {frequency!r}")
        if frequency < 1:
            raise ConfigError(f"must be at least 1, got {frequency}")
        return interval, frequency
    return interval, 1


def _warmup(complaints: Complaints, wiring: Mapping[str, Any], place: str) -> WarmupConfig | None:
    if "warmup" in wiring and "warmup_steps" in wiring:
        complaints.add(ConfigError("is given beside warmup, and means warmup.steps: keep one"), f"{place}.warmup_steps")
        return None
    if "warmup_steps" in wiring:
        place = f"{place}.warmup_steps"
        length = wiring["warmup_steps"]
        if length is not None:
            return _warmup_length(complaints, "steps", length, None, place)
        complaints.add(ConfigTypeError("must be a whole number of optimizer steps, got None"), place)
        return None
    warmup, place = wiring.get("warmup"), f"{place}.warmup"
    if warmup is None:
        return None
    if not isinstance(warmup, Mapping):
        complaints.add(ConfigTypeError(f"must be a mapping such as {{steps: 100}}, got {warmup!r}"), place)
        return None
    known = (*WARMUP_UNITS, "start_factor")
    for key in warmup:
        if key not in known:
            hint = did_you_mean(str(key), known)
            complaints.add(ConfigError(f"there is no {key!r} here; there are {listing(known)}{hint}"), f"{place}.{key}")
    start = warmup.get("start_factor")
    with complaints.at(f"{place}.start_factor"):
        check_start_factor(start)
    units = [key for key in WARMUP_UNITS if key in warmup]
    if len(units) != 1:
        needs = "needs one of steps (of the optimizer), epochs, ratio (of all steps)"
        if units or set(warmup) <= set(known):
            complaints.add(ConfigError(f"{needs}, got {listing(units)}"), place)
        return None
    return _warmup_length(complaints, units[0], warmup[units[0]], start, f"{place}.{units[0]}")


def _warmup_length(complaints: Complaints, unit: str, length: Any, start: Any, place: str) -> WarmupConfig | None:
    with complaints.at(place):
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
    complaints: Complaints,
    offer: Offer,
    wiring: Mapping[str, Any],
    arguments: dict[str, Any],
    place: str,
    beside: Mapping[str, Any],
) -> dict[str, Any]:
    """The metric and how it is heard, from wherever that stands; `mode` leaves the arguments, where it is the same."""
    takes_metric = "metric" in offer.spec.capabilities
    found: dict[str, Any] = {}
    for key in METRIC_KEYS:
        stands = {f"{place}.{key}": wiring.get(key), key: beside.get(key)}
        if takes_metric and key == "mode":
            stands[f"{place}.{ARGS}.{key}"] = arguments.pop("mode", None)
        stands = {where: value for where, value in stands.items() if value is not None}
        found[key] = next(iter(stands.values()), getattr(SchedulerConfig, key))
        for where, value in stands.items():
            with complaints.at(where):
                if not takes_metric:
                    own = f"; its own argument {key} goes under {ARGS}" if key in configurable(offer) else ""
                    raise ConfigError(f"{offer.name} takes no metric: {key}={value!r} has no use{own}")
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
                    says = f"is {value!r}, a learning rate, which {offer.name} sets: name a metric of the model"
                    raise ConfigError(says)
    return found


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
    for i, entry in enumerate(entries):
        where = f"{place}[{i}]"
        rule: AnyRule | None = None
        if isinstance(entry, str):
            if entry in presets.PRESETS:
                rule = presets.parsed({"preset": entry}, complaints, where)
            else:
                known = f"there is no preset {entry!r}; there are {listing(presets.PRESETS)}"
                glob = f"; a glob goes into a mapping: {{match: {entry!r}, ...}}" if set("*.?[") & set(entry) else ""
                complaints.add(ConfigError(known + (glob or did_you_mean(entry, presets.PRESETS))), where)
        elif not isinstance(entry, Mapping):
            example = "{match: '*.bias', weight_decay: 0.0}"
            says = f"must be a mapping such as {example}, or the name of a preset, got {entry!r}"
            complaints.add(ConfigTypeError(says), where)
        elif "preset" in entry:
            rule = presets.parsed(entry, complaints, where)
        else:
            rule = _rule(complaints, entry, where, optimizer)
        rules.append(rule or Rule(Selector(), f"[{i}]", {}))  # holds the place of one that is refused
    names = [rule.name for rule in rules if isinstance(rule, Rule)]
    for name, count in Counter(names).items():
        if count > 1:
            which = listing(i for i, rule in enumerate(rules) if isinstance(rule, Rule) and rule.name == name)
            says = f"entries {which} are both called {name!r}; without a name they are called after their patterns"
            complaints.add(ConfigError(f"{says}: give each its own name"), place)
    return tuple(rules)


def _rule(
    complaints: Complaints, entry: Mapping[str, Any], place: str, optimizer: OptimizerConfig | None
) -> Rule | None:
    keys = (*selection.KEYS, "name")
    ways = [key for key in selection.KEYS if key in entry]
    options = {key: value for key, value in entry.items() if key not in keys}
    if not ways:
        near = next((key for key in options if did_you_mean(str(key), selection.KEYS)), None)
        hint = ""
        if near is not None:
            hint = f": is {near!r} meant to be one of them{did_you_mean(str(near), selection.KEYS)}"
            del options[near]
        needs = f"needs one of {listing(selection.KEYS)}, to say which parameters; it has {listing(entry)}{hint}"
        complaints.add(ConfigError(needs), place)
    if optimizer is not None:
        options = _group_options(complaints, optimizer, options, place)
    select = selection.parsed(entry, complaints, place)
    name = entry.get("name", str(select))
    if "name" in entry and (not isinstance(name, str) or not name):
        complaints.add(ConfigTypeError(f"must be text, got {name!r}"), f"{place}.name")
        name = str(select)
    return Rule(select, name, options) if select != Selector() else None


def _group_options(
    complaints: Complaints, optimizer: OptimizerConfig, options: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """The options that a group can have; others become complaints."""
    name = optimizer.offer.name
    parameters, complete = constructor(registry.get("optimizer", optimizer.offer.qualified))
    known = [key for key in parameters if key not in OF_THE_WHOLE]
    multipliers = [key for key, target in MULTIPLIERS.items() if target in parameters or not complete]
    kept = {}
    for key, value in options.items():
        with complaints.at(f"{place}.{key}"):
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
                near = whole or did_you_mean(str(key), [*known, *multipliers, *selection.KEYS, "name"])
                raise ConfigError(
                    f"{name} has no option {key!r}; it has {listing(sorted(known))}, and in an entry of param_groups "
                    f"{listing([*selection.KEYS, 'name', *multipliers])}{near}"
                )
            kept[key] = value
    return kept


# -------------------------------------------------------------------------------------- shared


def _none_of(known: Sequence[str], value: Any) -> ConfigError:
    """The error for a value that is none of the words it may be."""
    return ConfigError(f"must be one of {listing(known)}, got {value!r}{did_you_mean(str(value), known)}")


def _offer(complaints: Complaints, kind: str, name: str, place: str) -> Offer | None:
    """What a name stands for, its class loaded; None, and a complaint, where there is nothing."""
    with complaints.at(place):
        offer = registry.find(kind, name)
        registry.get(kind, offer.qualified)
        return offer
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
        raise at("name", ConfigTypeError(f"must be text, got {given['name']!r}"))
    wiring = {key: value for key, value in given.items() if key in WIRING_KEYS[kind]}
    arguments = {key: value for key, value in given.items() if key not in WIRING_KEYS[kind]}
    extra = wiring.pop(ARGS, None)
    extra = {} if extra is None else extra
    if not isinstance(extra, Mapping):
        raise at(ARGS, ConfigTypeError(f"must be a mapping of arguments, got {extra!r}"))
    for key in extra:
        if not isinstance(key, str):
            raise at(ARGS, ConfigTypeError(f"has the key {key!r}; keys are text"))
        if key in arguments:
            raise at(f"{ARGS}.{key}", ConfigError("is given directly too: give it once"))
    return wiring.pop("name"), wiring, {**arguments, **extra}


def _known(
    complaints: Complaints,
    offer: Offer,
    given: Any,
    arguments: Mapping[str, Any],
    place: str,
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """The arguments that the class has; complaints about others, about missing ones, and about a misplaced `auto`."""
    nested = given.get(ARGS) if isinstance(given, Mapping) else None
    wiring = [key for key in (*WIRING_KEYS[offer.spec.kind], *beside) if key != "name"]
    wrong = dict(wrong_arguments(offer, arguments, wiring))
    length = length_of(offer) if offer.spec.kind == "scheduler" else None
    for key, value in arguments.items():
        if offer.spec.kind == "scheduler" and isinstance(value, str) and value.lower() == AUTO:
            which = f"only {length} can be auto" if length else f"{offer.name} has no argument that can be auto"
            if key in wrong:
                continue
            if key != length:
                wrong[key] = ConfigError(f"{which}, the length of the schedule")
            elif value != AUTO:
                wrong[key] = ConfigError(f"is {value!r}: write auto")
    for key, error in wrong.items():
        inner = f"{ARGS}.{key}" if isinstance(nested, Mapping) and key in nested else key
        complaints.add(error, f"{place}.{inner}" if key else place)
    return {key: value for key, value in arguments.items() if key not in wrong}


def wrong_arguments(
    offer: Offer, arguments: Mapping[str, Any], wiring: Sequence[str] = ()
) -> Iterator[tuple[str, ConfigError]]:
    """Arguments that the class does not have, and, under the empty name, those it needs and does not get.

    Args:
        offer: what the arguments are for. arguments: what was given. wiring: keys that may stand beside them.
    """
    known, complete = constructor(registry.get(offer.spec.kind, offer.qualified))
    has = f"it has {listing(sorted(known))}" + (f", and in a configuration {listing(wiring)}" if wiring else "")
    for key in arguments if complete else ():
        if key not in known:
            yield (
                key,
                ConfigError(f"{offer.name} has no option {key!r}; {has}{_elsewhere(offer, key, [*known, *wiring])}"),
            )
    missing = [name for name, p in known.items() if p.default is p.empty and name not in arguments]
    if missing:
        length = length_of(offer) if offer.spec.kind == "scheduler" else None
        auto = f" ({length} may be auto: as long as the training)" if wiring and length in missing else ""
        yield "", ConfigError(f"{offer.name} needs {listing(missing)}{auto}")


def _elsewhere(offer: Offer, key: str, known: Sequence[str]) -> str:
    """Where an unknown key belongs, or what it may have been meant to be."""
    if offer.spec.kind == "optimizer" and key in WIRING_KEYS["scheduler"] and key not in WIRING_KEYS["optimizer"]:
        return f"; {key!r} belongs to scheduler"
    if offer.spec.kind == "optimizer" and key in ("param_groups", "scheduler"):
        return f"; {key} stands beside optimizer, or in an entry of a list of several"
    if offer.spec.kind == "optimizer" and key in selection.KEYS:
        return f"; {key} belongs to an entry of param_groups, or of a list of several optimizers"
    return did_you_mean(key, known)


def check_arguments(offer: Offer, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments the class does not have, and miss those it needs.

    Raises:
        ConfigError: with the nearest valid spelling.
    """
    for _, error in wrong_arguments(offer, arguments):
        raise error
