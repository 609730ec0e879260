"""Parsing of configurations into `Config`, with all checks that need neither parameters nor a constructor call."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optplug.config import param_group_presets, param_selection
from optplug.config.model import (
    ARGS,
    AUTO,
    ENTRY_KEYS,
    METRIC_KEYS,
    ON_NONFINITE,
    ON_RESUME,
    OPTIMIZER_WIDE_OPTIONS,
    PATIENCE_UNITS,
    RESERVED_KEYS,
    TOP_LEVEL_KEYS,
    WARMUP_UNITS,
    Config,
    OptimizerConfig,
    OptimizerEntry,
    OptimizerSetup,
    SchedulerConfig,
    WarmupConfig,
    length_argument,
)
from optplug.config.param_groups import MULTIPLIERS, AnyGroupRule, GroupRule
from optplug.config.param_selection import SELECTOR_KEYS, Selector
from optplug.config.plain_data import to_builtins
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    ErrorCollector,
    Loc,
    did_you_mean,
    listing,
    loc_text,
    nearest,
    number_hint,
    short_list,
    suggest,
    with_loc,
)
from optplug.registry import Registration, registry
from optplug.registry.signature import configurable_arguments, constructor_arguments
from optplug.registry.specs import SchedulerSpec
from optplug.schedulers.warmup import check_start_factor, check_warmup_steps


def parse(optimizer: Any = None, scheduler: Any = None, **options: Any) -> Config:
    """Parse and check a configuration.

    The values of hyperparameters are not checked here; see `optplug.config.build.parse_and_check`.

    Args:
        optimizer: one of: a name; a mapping with `name` and hyperparameters; for several optimizers, a list of such
            mappings, each with `match`, `regex` or `type` and optionally its own `param_groups` and `scheduler`; for
            one optimizer that combines several, `{combine: [...]}` with such a list. None: the module has its own
            optimizer. Mappings and lists may be OmegaConf's.
        scheduler: a name, a mapping with `name`, arguments and reserved keys, or None.
        options: `param_groups`, the name of a preset or a list of rules; `monitor` and `mode`, as the keys of the
            scheduler; `on_resume`, one of `ON_RESUME`. Other keys are errors.

    Raises:
        UnknownNameError: a name is not registered.
        AmbiguousNameError: several plugins register a name.
        PluginError: a plugin cannot be loaded.
        ConfigError: a wrong key, value or combination.
        ConfigTypeError: a value of the wrong type.
        ConfigErrors: several of these errors.
    """
    collector = ErrorCollector()
    config = parse_collecting(collector, optimizer, scheduler, **options)
    collector.raise_collected()
    return config


def parse_collecting(
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
    """Parse as `parse` does, but add errors to a collector; the result omits invalid parts."""
    for key in unknown:
        collector.add(ConfigError(f"a configuration has no key {key!r}{suggest(key, TOP_LEVEL_KEYS)}"), (key,))
    given: dict[str, Any] = {}
    for key, value in (("optimizer", optimizer), ("scheduler", scheduler), ("param_groups", param_groups)):
        given[key] = None
        with collector.collect((key,)):
            given[key] = to_builtins(value)
    unreadable = {error.loc[0] for error in collector.errors}
    metric_options = {key: value for key, value in (("monitor", monitor), ("mode", mode)) if value is not None}
    policy = ON_RESUME[0] if on_resume is None else on_resume
    if policy not in ON_RESUME:
        collector.add(_invalid_choice(policy, ON_RESUME), ("on_resume",))
        policy = ON_RESUME[0]
    chosen = given["optimizer"]
    is_list = isinstance(chosen, (list, tuple))
    is_combined = isinstance(chosen, Mapping) and "combine" in chosen
    if is_combined:
        for key in chosen:
            if key != "combine":
                message = f"an optimizer with the key combine has no other key, got {key!r}"
                collector.add(ConfigError(message), ("optimizer", key))
    if is_list or is_combined:
        misplaced = {
            "param_groups": given["param_groups"],
            **({"scheduler": given["scheduler"], **metric_options} if is_list else {}),
        }
        for key, value in misplaced.items():
            if value is not None:
                target = "the entry's scheduler" if key in metric_options else "an entry of optimizer"
                collector.add(ConfigError(f"with several optimizers it belongs to {target}"), (key,))
    if is_list:
        parsed_entries = _parse_entries(collector, chosen, ("optimizer",), allow_schedulers=True)
        setups = tuple(OptimizerSetup((entry,), own_scheduler) for entry, own_scheduler in parsed_entries)
        return Config(setups, True, policy)
    entries: tuple[OptimizerEntry, ...] = ()
    if is_combined:
        parsed_entries = _parse_entries(collector, chosen["combine"], ("optimizer", "combine"), allow_schedulers=False)
        entries = tuple(entry for entry, _ in parsed_entries)
    elif chosen is not None:
        parsed = _parse_optimizer(collector, chosen, ("optimizer",))
        rules = _parse_param_groups(collector, given["param_groups"], ("param_groups",), parsed)
        entries = () if parsed is None else (OptimizerEntry(parsed, rules),)
    elif given["param_groups"] is not None and "optimizer" not in unreadable:
        collector.add(ConfigError("requires an optimizer: add e.g. optimizer: adam"), ("param_groups",))
    elif given["scheduler"] is None and not metric_options and not collector.errors and on_resume is not None:
        collector.add(ConfigError("requires an optimizer or a scheduler"), ("on_resume",))
    elif given["scheduler"] is None and not metric_options and not collector.errors:
        collector.add(ConfigTypeError("must be a name or a mapping with a name, got None (NoneType)"), ("optimizer",))
    parsed_scheduler = _parse_scheduler(collector, given["scheduler"], ("scheduler",), metric_options)
    return Config((OptimizerSetup(entries, parsed_scheduler, is_combined),), on_resume=policy)


# ---------------------------------------------------------------------------------- optimizers


def _parse_optimizer(
    collector: ErrorCollector, given: Any, loc: Loc, entry_keys: Sequence[str] = ()
) -> OptimizerConfig | None:
    """Parse one optimizer; `entry_keys` are keys of the same mapping that the caller parses."""
    if isinstance(given, Mapping) and "name" in given:
        given = {key: value for key, value in given.items() if key not in entry_keys}
    split = None
    with collector.collect(loc):
        split = _split_mapping("optimizer", given)
    if split is None:
        return None
    name, _, arguments = split
    name_loc = (*loc, "name") if isinstance(given, Mapping) else loc
    registration = _find_registration(collector, "optimizer", name, name_loc)
    if registration is None:
        return None
    return OptimizerConfig(name, _valid_arguments(collector, registration, given, arguments, loc, entry_keys))


def _parse_entries(
    collector: ErrorCollector, given: Any, loc: Loc, *, allow_schedulers: bool
) -> list[tuple[OptimizerEntry, SchedulerConfig | None]]:
    if not isinstance(given, (list, tuple)) or not given:
        collector.add(ConfigTypeError(f"must be a list of mappings, each with a name, got {given!r}"), loc)
        return []
    found = []
    entry_keys = ENTRY_KEYS if allow_schedulers else tuple(key for key in ENTRY_KEYS if key != "scheduler")
    for i, entry in enumerate(given):
        entry_loc = (*loc, i)
        if not isinstance(entry, Mapping):
            example = "{name: adam, match: 'generator.*', lr: 1.0e-3}"
            collector.add(ConfigTypeError(f"must be a mapping such as {example}, got {entry!r}"), entry_loc)
            continue
        optimizer = _parse_optimizer(collector, entry, entry_loc, entry_keys)
        select: Selector | None = param_selection.parse_selector(entry, collector, entry_loc)
        if not any(key in entry for key in SELECTOR_KEYS):
            select = None
            if len(given) > 1 and "name" in entry:
                message = f"needs one of {listing(SELECTOR_KEYS)} to select its parameters"
                collector.add(ConfigError(message), entry_loc)
        rules = _parse_param_groups(collector, entry.get("param_groups"), (*entry_loc, "param_groups"), optimizer)
        scheduler = (
            _parse_scheduler(collector, entry.get("scheduler"), (*entry_loc, "scheduler")) if allow_schedulers else None
        )
        if optimizer is not None:
            found.append((OptimizerEntry(optimizer, rules, select, i), scheduler))
    return found


# ----------------------------------------------------------------------------------- scheduler


def _parse_scheduler(
    collector: ErrorCollector, given: Any, loc: Loc, metric_options: Mapping[str, Any] = MappingProxyType({})
) -> SchedulerConfig | None:
    """Parse a scheduler; `metric_options` are `monitor` and `mode` from the top level of the configuration."""
    if given is None:
        for key, value in metric_options.items():
            message = f"{value!r} requires a scheduler that takes a metric, and no scheduler is configured"
            collector.add(ConfigError(message), (key,))
        return None
    if isinstance(given, Mapping) and "name" not in given and ("warmup" in given or "warmup_steps" in given):
        return _parse_warmup_only(collector, given, loc, metric_options)
    split = None
    with collector.collect(loc):
        split = _split_mapping("scheduler", given)
    if split is None:
        return None
    name, reserved, arguments = split
    name_loc = (*loc, "name") if isinstance(given, Mapping) else loc
    registration = _find_registration(collector, "scheduler", name, name_loc)
    warmup = _parse_warmup(collector, reserved, loc)
    interval, frequency = _parse_interval(collector, registration, reserved, loc)
    if registration is None:
        return None
    valid = _valid_arguments(collector, registration, given, arguments, loc)
    parsed_metric_options = _parse_metric_options(collector, registration, reserved, valid, loc, metric_options)
    return SchedulerConfig(name, valid, interval, frequency, warmup, **parsed_metric_options)


def _parse_warmup_only(
    collector: ErrorCollector, given: Mapping[str, Any], loc: Loc, metric_options: Mapping[str, Any]
) -> SchedulerConfig | None:
    for key in given:
        if key not in ("warmup", "warmup_steps"):
            hint = did_you_mean(str(key), ["name"])
            message = f"a scheduler without a name is a warmup only, which has no key {key!r}{hint}"
            collector.add(ConfigError(message), (*loc, key))
    for key in metric_options:
        message = "requires a scheduler that takes a metric, and only a warmup is configured"
        collector.add(ConfigError(message), (key,))
    warmup = _parse_warmup(collector, given, loc)
    return SchedulerConfig(None, warmup=warmup or WarmupConfig(0), interval="step")


def _parse_interval(
    collector: ErrorCollector, registration: Registration | None, reserved: Mapping[str, Any], loc: Loc
) -> tuple[str, int]:
    spec = None if registration is None else registration.spec
    default = spec.interval if isinstance(spec, SchedulerSpec) else "epoch"
    interval, frequency = reserved.get("interval", default), reserved.get("frequency", 1)
    if registration is not None and "metric" in registration.spec.capabilities:
        for key, only_value in (("interval", "epoch"), ("frequency", 1)):
            if key in reserved and reserved[key] != only_value:
                message = (
                    f"{registration.name} steps once per completed validation (or per epoch, for a training metric): "
                    f"omit {key}, got {reserved[key]!r}"
                )
                collector.add(ConfigError(message), (*loc, key))
        return "epoch", 1
    allowed = ("epoch", "step")
    if interval not in allowed:
        hint = did_you_mean(str(interval), allowed)
        collector.add(ConfigError(f"must be 'epoch' or 'step', got {interval!r}{hint}"), (*loc, "interval"))
        interval = default
    with collector.collect((*loc, "frequency")):
        if isinstance(frequency, bool) or not isinstance(frequency, int):
            raise ConfigTypeError(f"must be a whole number, got {frequency!r}")
        if frequency < 1:
            raise ConfigError(f"must be at least 1, got {frequency}")
        return interval, frequency
    return interval, 1


def _parse_warmup(collector: ErrorCollector, reserved: Mapping[str, Any], loc: Loc) -> WarmupConfig | None:
    if "warmup" in reserved and "warmup_steps" in reserved:
        message = "means warmup.steps, and warmup is given too: give only one of them"
        collector.add(ConfigError(message), (*loc, "warmup_steps"))
        return None
    if "warmup_steps" in reserved:
        loc = (*loc, "warmup_steps")
        length = reserved["warmup_steps"]
        if length is not None:
            return _parse_warmup_length(collector, "steps", length, None, loc)
        collector.add(ConfigTypeError("must be a whole number of optimizer steps, got None"), loc)
        return None
    warmup, loc = reserved.get("warmup"), (*loc, "warmup")
    if warmup is None:
        return None
    if not isinstance(warmup, Mapping):
        collector.add(ConfigTypeError(f"must be a mapping such as {{steps: 100}}, got {warmup!r}"), loc)
        return None
    known = (*WARMUP_UNITS, "start_factor")
    for key in warmup:
        if key not in known:
            collector.add(ConfigError(f"a warmup has no key {key!r}{suggest(str(key), known)}"), (*loc, key))
    start = warmup.get("start_factor")
    with collector.collect((*loc, "start_factor")):
        check_start_factor(start)
    units = [key for key in WARMUP_UNITS if key in warmup]
    if len(units) != 1:
        needs = "needs exactly one of steps (optimizer steps), epochs, ratio (of all optimizer steps)"
        # A misspelled unit has been reported as an unknown key.
        if units or set(warmup) <= set(known):
            collector.add(ConfigError(f"{needs}, got {listing(units)}"), loc)
        return None
    return _parse_warmup_length(collector, units[0], warmup[units[0]], start, (*loc, units[0]))


def _parse_warmup_length(
    collector: ErrorCollector, unit: str, length: Any, start: Any, loc: Loc
) -> WarmupConfig | None:
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
"""Keys of a scheduler with a metric, and the allowed values of each."""


def _parse_metric_options(
    collector: ErrorCollector,
    registration: Registration,
    reserved: Mapping[str, Any],
    arguments: dict[str, Any],
    loc: Loc,
    top_level: Mapping[str, Any],
) -> dict[str, Any]:
    """Parse the options in `METRIC_KEYS`, which may be given in several places.

    Args:
        collector: where errors are added.
        registration: the scheduler.
        reserved: the reserved keys of the scheduler.
        arguments: the arguments of the scheduler. `mode` is removed if the scheduler takes a metric.
        loc: the location of the scheduler.
        top_level: `monitor` and `mode` from the top level of the configuration.
    """
    takes_metric = "metric" in registration.spec.capabilities
    found: dict[str, Any] = {}
    for key in METRIC_KEYS:
        values: dict[Loc, Any] = {(*loc, key): reserved.get(key), (key,): top_level.get(key)}
        if takes_metric and key == "mode":
            values[(*loc, ARGS, key)] = arguments.pop("mode", None)
        values = {value_loc: value for value_loc, value in values.items() if value is not None}
        found[key] = next(iter(values.values()), getattr(SchedulerConfig, key))
        for value_loc, value in values.items():
            with collector.collect(value_loc):
                if not takes_metric:
                    has_argument = key in configurable_arguments(registration)
                    hint = f"; write the scheduler's own argument {key} under {ARGS}" if has_argument else ""
                    raise ConfigError(f"{registration.name} takes no metric: {key}={value!r} has no effect{hint}")
                if value != found[key]:
                    first_loc = loc_text(next(iter(values)))
                    raise ConfigError(f"is {value!r} and {first_loc} is {found[key]!r}: give it once")
                if key == "mode" and value not in ("min", "max"):
                    hint = did_you_mean(str(value), ("min", "max"))
                    raise ConfigError(f"must be 'min' or 'max', got {value!r}{hint}")
                if key in _CHOICES and value not in _CHOICES[key]:
                    raise _invalid_choice(value, _CHOICES[key])
                if key == "monitor" and not isinstance(value, str):
                    raise ConfigTypeError(f"must be the name of a metric, got {value!r}")
                if value == "":
                    raise ConfigError("is empty: name a metric, or omit it to have it inferred")
                if key == "monitor" and value.startswith("lr-"):
                    message = f"is {value!r}, a learning rate, which {registration.name} sets: "
                    raise ConfigError(message + "name a metric of the model")
    return found


# -------------------------------------------------------------------------------- param groups


def _parse_param_groups(
    collector: ErrorCollector, given: Any, loc: Loc, optimizer: OptimizerConfig | None
) -> tuple[AnyGroupRule, ...]:
    if given is None:
        return ()
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, (list, tuple)):
        collector.add(ConfigTypeError(f"must be a list of mappings and presets, got {given!r}"), loc)
        return ()
    rules: list[AnyGroupRule] = []
    for i, entry in enumerate(entries):
        rule_loc = (*loc, i)
        rule: AnyGroupRule | None = None
        if isinstance(entry, str):
            if entry in param_group_presets.PRESETS:
                rule = param_group_presets.parse_preset({"preset": entry}, collector, rule_loc)
            else:
                is_glob = set("*.?[") & set(entry)
                hint = f"; write a glob in a mapping: {{match: {entry!r}, ...}}" if is_glob else ""
                hint = hint or suggest(entry, param_group_presets.PRESETS, intro="the presets are")
                collector.add(ConfigError(f"there is no preset {entry!r}{hint}"), rule_loc)
        elif not isinstance(entry, Mapping):
            example = "{match: '*.bias', weight_decay: 0.0}"
            message = f"must be a mapping such as {example}, or the name of a preset, got {entry!r}"
            collector.add(ConfigTypeError(message), rule_loc)
        elif "preset" in entry:
            rule = param_group_presets.parse_preset(entry, collector, rule_loc)
        else:
            rule = _parse_group_rule(collector, entry, rule_loc, optimizer)
        # A placeholder keeps the indices of the rules after an invalid one.
        rules.append(rule or GroupRule(Selector(), f"[{i}]", {}))
    names = [rule.name for rule in rules if isinstance(rule, GroupRule)]
    for name, count in Counter(names).items():
        if count > 1:
            same = listing(i for i, rule in enumerate(rules) if isinstance(rule, GroupRule) and rule.name == name)
            message = f"entries {same} have the same name {name!r} (the default is the pattern): give each its own name"
            collector.add(ConfigError(message), loc)
    return tuple(rules)


def _parse_group_rule(
    collector: ErrorCollector, entry: Mapping[str, Any], loc: Loc, optimizer: OptimizerConfig | None
) -> GroupRule | None:
    options = {key: value for key, value in entry.items() if key not in (*SELECTOR_KEYS, "name")}
    if not any(key in entry for key in SELECTOR_KEYS):
        misspelled = next((key for key in options if nearest(str(key), SELECTOR_KEYS)), None)
        hint = ""
        if misspelled is not None:
            hint = f"; did you mean {nearest(str(misspelled), SELECTOR_KEYS)[0]!r} instead of {misspelled!r}?"
            del options[misspelled]
        message = f"needs one of {listing(SELECTOR_KEYS)} to select parameters; it has {listing(entry)}{hint}"
        collector.add(ConfigError(message), loc)
    if optimizer is not None:
        options = _valid_group_options(collector, optimizer, options, loc)
    select = param_selection.parse_selector(entry, collector, loc)
    name = entry.get("name", str(select))
    if "name" in entry and (not isinstance(name, str) or not name):
        collector.add(ConfigTypeError(f"must be a non-empty string, got {name!r}"), (*loc, "name"))
        name = str(select)
    return GroupRule(select, name, options) if select != Selector() else None


def _valid_group_options(
    collector: ErrorCollector, optimizer: OptimizerConfig, options: Mapping[str, Any], loc: Loc
) -> dict[str, Any]:
    """The options that a parameter group can have; an error is collected for each other option."""
    name = optimizer.registration.name
    parameters, is_complete = constructor_arguments(registry.get("optimizer", optimizer.registration.qualified_name))
    known = [key for key in parameters if key not in OPTIMIZER_WIDE_OPTIONS]
    multipliers = [key for key, target in MULTIPLIERS.items() if target in parameters or not is_complete]
    valid = {}
    for key, value in options.items():
        with collector.collect((*loc, key)):
            if key in MULTIPLIERS:
                target = MULTIPLIERS[key]
                if key not in multipliers:
                    raise ConfigError(f"{name} has no {target} to multiply")
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ConfigTypeError(f"must be a number, got {value!r}{number_hint(value)}")
                if not 0 <= value <= sys.float_info.max:
                    raise ConfigError(f"must be at least 0 and finite, got {str(value)[:20]}")
                if target in options:
                    raise ConfigError(f"multiplies {target}, which this entry sets too: give only one of them")
            elif key in OPTIMIZER_WIDE_OPTIONS and key in parameters:
                raise ConfigError(f"{key} applies to the whole optimizer: set it in optimizer, not in a group")
            elif key not in known and (is_complete or key in OPTIMIZER_WIDE_OPTIONS):
                entry_keys = [*SELECTOR_KEYS, "name", *multipliers]
                hint = did_you_mean(str(key), [*known, *entry_keys])
                if not hint:
                    options_shown = short_list(sorted(known), f"optplug info {name}")
                    hint = f"; it has {options_shown}, and in an entry of param_groups {listing(entry_keys)}"
                raise ConfigError(f"{name} has no option {key!r}{hint}")
            valid[key] = value
    return valid


# -------------------------------------------------------------------------------------- shared


def _invalid_choice(value: Any, allowed: Sequence[str]) -> ConfigError:
    return ConfigError(f"must be one of {listing(allowed)}, got {value!r}{did_you_mean(str(value), allowed)}")


def _find_registration(collector: ErrorCollector, kind: str, name: str, loc: Loc) -> Registration | None:
    """Resolve a name and load its class. If either fails, collect the error and return None."""
    with collector.collect(loc):
        registration = registry.resolve(kind, name)
        registry.get(kind, registration.qualified_name)
        return registration
    return None


def _split_mapping(kind: str, given: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Split a name or a mapping into the name, the other reserved keys, and the algorithm's own arguments."""
    if isinstance(given, str):
        return given, {}, {}
    if not isinstance(given, Mapping):
        raise ConfigTypeError(f"must be a name or a mapping with a name, got {given!r} ({type(given).__name__})")
    for key in given:
        if not isinstance(key, str):
            raise ConfigTypeError(f"has the key {key!r}; keys must be strings")
    if "name" not in given:
        hint = ""
        for word in ("combine", "name"):
            misspelled = next((key for key in given if nearest(key, [word])), None)
            if misspelled is not None:
                hint = f"; did you mean {word!r} instead of {misspelled!r}?"
                break
        if {"class_path", "init_args", "_target_"} & set(given):
            example = "lr: ..." if kind == "optimizer" else "..."
            hint = f": write {{name: ..., {example}}}; optplug looks up registered names and does not import paths"
        raise ConfigError(f"needs a name; it has {listing(given)}{hint}")
    if not isinstance(given["name"], str):
        raise with_loc(("name",), ConfigTypeError(f"must be a string, got {given['name']!r}"))
    reserved = {key: value for key, value in given.items() if key in RESERVED_KEYS[kind]}
    arguments = {key: value for key, value in given.items() if key not in RESERVED_KEYS[kind]}
    nested = reserved.pop(ARGS, None)
    nested = {} if nested is None else nested
    if not isinstance(nested, Mapping):
        raise with_loc((ARGS,), ConfigTypeError(f"must be a mapping of arguments, got {nested!r}"))
    for key in nested:
        if not isinstance(key, str):
            raise with_loc((ARGS,), ConfigTypeError(f"has the key {key!r}; keys must be strings"))
        if key in arguments:
            raise with_loc((ARGS, key), ConfigError("is also given directly: give it once"))
    return reserved.pop("name"), reserved, {**arguments, **nested}


def _valid_arguments(
    collector: ErrorCollector,
    registration: Registration,
    given: Any,
    arguments: Mapping[str, Any],
    loc: Loc,
    entry_keys: Sequence[str] = (),
) -> dict[str, Any]:
    """The arguments that the class has.

    Errors are collected for unknown and missing arguments, and for an argument that must not be `auto`.
    """
    nested = given.get(ARGS) if isinstance(given, Mapping) else None
    reserved = [key for key in (*RESERVED_KEYS[registration.spec.kind], *entry_keys) if key != "name"]
    invalid = dict(argument_errors(registration, arguments, reserved))
    length = length_argument(registration) if registration.spec.kind == "scheduler" else None
    for key, value in arguments.items():
        if registration.spec.kind != "scheduler" or not isinstance(value, str) or value.lower() != AUTO:
            continue
        if key in invalid:
            continue
        if key != length:
            only = f"only {length}, the length of the schedule, can be auto"
            invalid[key] = ConfigError(only if length else f"no argument of {registration.name} can be auto")
        elif value != AUTO:
            invalid[key] = ConfigError(f"is {value!r}: write auto")
    for key, error in invalid.items():
        inner: Loc = (ARGS, key) if isinstance(nested, Mapping) and key in nested else (key,)
        collector.add(error, (*loc, *inner) if key else loc)
    return {key: value for key, value in arguments.items() if key not in invalid}


def argument_errors(
    registration: Registration, arguments: Mapping[str, Any], reserved: Sequence[str] = ()
) -> Iterator[tuple[str, ConfigError]]:
    """Find unknown and missing arguments.

    Args:
        registration: the optimizer or scheduler.
        arguments: the given arguments.
        reserved: keys that the configuration accepts in addition to arguments; empty outside a configuration.

    Yields:
        Pairs of an argument's name and the error. The name is empty for the error about missing arguments.
    """
    known, is_complete = constructor_arguments(registry.get(registration.spec.kind, registration.qualified_name))
    for key in arguments if is_complete else ():
        if key not in known:
            yield key, _unknown_argument(registration, key, list(known), reserved)
    missing = [name for name, p in known.items() if p.default is p.empty and name not in arguments]
    if missing:
        length = length_argument(registration) if registration.spec.kind == "scheduler" else None
        auto = f" ({length} may be auto: the length of the training)" if reserved and length in missing else ""
        yield "", ConfigError(f"{registration.name} needs {listing(missing)}{auto}")


def _unknown_argument(
    registration: Registration, key: str, known: Sequence[str], reserved: Sequence[str]
) -> ConfigError:
    hint = _hint_for_misplaced_key(registration, key) or did_you_mean(key, [*known, *reserved])
    if key in reserved:
        hint = f"; write {key} directly in {registration.spec.kind}, not under {ARGS}"
    if not hint:
        unused: tuple[str, ...] = ()
        if registration.spec.kind == "scheduler":
            takes_metric = "metric" in registration.spec.capabilities
            unused = ("interval", "frequency") if takes_metric else METRIC_KEYS
        shown = short_list([key for key in reserved if key not in unused])
        hint = f"; it has {short_list(sorted(known), f'optplug info {registration.name}')}"
        hint += f", and in a configuration {shown}" if reserved else ""
    noun = "argument" if registration.spec.kind == "scheduler" else "option"
    return ConfigError(f"{registration.name} has no {noun} {key!r}{hint}")


def _hint_for_misplaced_key(registration: Registration, key: str) -> str:
    """Where a key of the configuration belongs if it is not an option of the optimizer; empty for other keys."""
    if registration.spec.kind != "optimizer":
        return ""
    if key in RESERVED_KEYS["scheduler"] and key not in RESERVED_KEYS["optimizer"]:
        return f"; {key!r} belongs to scheduler"
    if key in ("param_groups", "scheduler"):
        return f"; {key} belongs to the top level of the configuration, or to an entry in a list of optimizers"
    if key in SELECTOR_KEYS:
        return f"; {key} belongs to an entry of param_groups, or to an entry in a list of optimizers"
    return ""


def check_arguments(registration: Registration, arguments: Mapping[str, Any]) -> None:
    """Check the names of constructor arguments, outside a configuration.

    Args:
        registration: the optimizer or scheduler.
        arguments: the arguments to check.

    Raises:
        ConfigError: an argument is unknown, with the nearest match; or a required argument is missing.
    """
    for _, error in argument_errors(registration, arguments):
        raise error
