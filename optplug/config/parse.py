"""Parsing of configurations into `Config`, with all checks that need neither parameters nor a constructor call."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from optplug.config.arguments import argument_loc, group_options, optimizer_fields, own_arguments, scheduler_fields
from optplug.config.construction import check_is_supported
from optplug.config.dialects import group_rule_key, is_name_key, warmup_form
from optplug.config.fields import Field, Table, Unresolved, check_keys, has_unresolved, read_fields, read_number
from optplug.config.form import (
    ARGS,
    AUTO,
    BASE,
    BASE_KEY,
    DEFAULT_FALLBACK,
    ENTRY,
    FALLBACK,
    GROUP_RULE,
    MATRICES,
    METRIC_KEYS,
    NESTED_SCHEDULE,
    NOT_BASE,
    NOT_FALLBACK,
    ON_RESUME,
    OPTIMIZER,
    PARAM_GROUPS,
    PRESETS,
    SCHEDULER,
    SELECTORS,
    TOP_LEVEL,
    WARMUP,
    is_auto,
)
from optplug.config.group_schedules import check_schedules, with_metric_options
from optplug.config.lengths import (
    UNITS,
    length_argument,
    length_arguments,
    nested_schedules,
    read_length,
    read_unit,
    with_unit,
)
from optplug.config.mapping_slips import missing_space, name_slip
from optplug.config.model import (
    AnyGroupRule,
    Config,
    FallbackConfig,
    GroupRule,
    OptimizerConfig,
    OptimizerEntry,
    OptimizerSetup,
    SchedulerConfig,
    WarmupConfig,
    constant_schedule,
)
from optplug.config.param_group_presets import FLATTEN, LayerDecay, NoDecay
from optplug.config.param_selection import Rest, Selector
from optplug.config.plain_data import to_builtins
from optplug.config.stray_keys import stray_key_hint
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    ErrorCollector,
    Loc,
    OptplugError,
    did_you_mean,
    listing,
    loc_text,
    nearest,
    suggest,
)
from optplug.registry import Registration, registry
from optplug.registry.signature import base_argument, configurable_arguments, requires_base, takes_built_base
from optplug.registry.specs import OptimizerSpec, SchedulerSpec


def parse(optimizer: Any = None, scheduler: Any = None, **options: Any) -> Config:
    """Parse and check a configuration.

    The values of hyperparameters are not checked here; see `optplug.config.build.parse_and_check`.

    Args:
        optimizer: one of: a name; a mapping with `name` and hyperparameters; for several optimizers, a list of such
            mappings, each with a selector (`match`, `regex`, `type`, `ndim`) or `rest: true`, and optionally its own
            `param_groups` and `scheduler`; for one optimizer that combines several, `{combine: [...]}` with such a
            list. None: the module has its own optimizer. Mappings and lists may be OmegaConf's.
        scheduler: a name, a mapping with `name`, arguments and the keys of `optplug.config.form.SCHEDULER`, or None.
        options: the other keys of `optplug.config.form.TOP_LEVEL`. Other keys are errors.

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


def parse_collecting(collector: ErrorCollector, optimizer: Any = None, scheduler: Any = None, **options: Any) -> Config:
    """Parse as `parse` does, but add errors to a collector; the result omits invalid parts."""
    given = _read_top_level(collector, {"optimizer": optimizer, "scheduler": scheduler, **options})
    policy = read_fields(collector, given, [TOP_LEVEL["on_resume"]], ()).get("on_resume", ON_RESUME[0])
    chosen = given.get("optimizer")
    if isinstance(chosen, (list, tuple)):
        _report_keys_of_entries(collector, given, ("param_groups", "scheduler", "monitor", "mode"))
        parsed = _parse_entries(collector, chosen, ("optimizer",), {**OPTIMIZER, **ENTRY})
        setups = tuple(OptimizerSetup((entry,), schedule) for entry, schedule in parsed)
        for setup in setups:
            check_schedules(collector, setup)
        return Config(setups, True, policy)
    is_combined = False
    if isinstance(chosen, Mapping) and "combine" in chosen:
        is_combined = True
        _report_keys_of_entries(collector, given, ("param_groups",))
        entries = _parse_combined(collector, chosen)
    else:
        entries = _parse_single(collector, given)
    metric_options = {key: given[key] for key in METRIC_KEYS if key in given and not has_unresolved(given[key])}
    setup = OptimizerSetup(tuple(entries), is_combined=is_combined)
    if "scheduler" not in given and setup.takes_metric:
        setup = with_metric_options(collector, setup, metric_options)
    else:
        schedule = _parse_scheduler(collector, given.get("scheduler"), ("scheduler",), metric_options)
        setup = replace(setup, scheduler=schedule)
    check_schedules(collector, setup)
    return Config((setup,), on_resume=policy)


def _read_top_level(collector: ErrorCollector, options: Mapping[str, Any]) -> dict[str, Any]:
    """The given values of the keys of a configuration, with Python's own types."""
    given: dict[str, Any] = {}
    for key, value in options.items():
        if key not in TOP_LEVEL:
            collector.add(ConfigError(f"a configuration has no key {key!r}{stray_key_hint(key, options)}"), (key,))
        elif value is not None:
            with collector.collect((key,)):
                given[key] = to_builtins(value)
    if not {*given} - {"on_resume"} and not collector.errors:
        if given:
            collector.add(ConfigError("requires an optimizer or a scheduler"), ("on_resume",))
        else:
            message = f"must be {TOP_LEVEL['optimizer'].kind}, got None (NoneType)"
            collector.add(ConfigTypeError(message), ("optimizer",))
    return given


def _report_keys_of_entries(collector: ErrorCollector, given: Mapping[str, Any], keys: Collection[str]) -> None:
    """Collect an error for each key that belongs to the entries in a list of optimizers."""
    for key in keys:
        if key in given:
            target = "the entry's scheduler" if key in METRIC_KEYS else "an entry of optimizer"
            collector.add(ConfigError(f"with several optimizers it belongs to {target}"), (key,))


# ---------------------------------------------------------------------------- an optimizer or a scheduler by name


@dataclass(frozen=True)
class _Named:
    """An optimizer or a scheduler as it is written.

    Attributes:
        name: the name.
        registration: what the name stands for; None if this is an error.
        arguments: the values of its arguments.
        nested: the arguments that are written under `args`.
        mapping: the mapping that has the name; only the name if there is no mapping.
        base: the optimizer that an optimizer wraps; None if it wraps none, or if this is an error.
    """

    name: str
    registration: Registration | None
    arguments: dict[str, Any]
    nested: frozenset[str]
    mapping: Mapping[str, Any]
    base: OptimizerConfig | None = None


def _parse_named(collector: ErrorCollector, kind: str, given: Any, fields: Table, loc: Loc) -> _Named | None:
    """Parse a name, or a mapping with a name.

    Args:
        collector: collects the errors.
        kind: `"optimizer"` or `"scheduler"`.
        given: the name or the mapping.
        fields: the keys of the mapping that are not arguments.
        loc: the location of `given`.
    """
    if isinstance(given, Unresolved):
        return None
    if not isinstance(given, (str, Mapping)):
        message = f"must be {TOP_LEVEL[kind].kind}, got {_shortened(given)} ({type(given).__name__})"
        collector.add(ConfigTypeError(message + _list_hint(kind, given)), loc)
        return None
    mapping = {"name": given} if isinstance(given, str) else _string_keys(collector, given, loc)
    if "name" not in mapping:
        _report_missing_name(collector, kind, mapping, fields, loc)
        return None
    name = str(mapping["name"])
    registration = None
    if isinstance(mapping["name"], Unresolved):
        return _Named(name, None, {}, frozenset(), mapping)
    name_loc = loc if isinstance(given, str) else (*loc, "name")
    slip = name_slip(name)
    if slip is not None:
        collector.add(ConfigError(slip), name_loc)
        return _Named(name, None, {}, frozenset(), mapping)
    with collector.collect(name_loc):
        found = registry.resolve(kind, fields["name"].read(mapping["name"]))
        check_is_supported(found)
        registration = found
        registry.get(kind, registration.qualified_name)
    if kind == "optimizer" and registration is not None:
        fields = {**fields, **optimizer_fields(registration)}
    reserved = fields.keys() - set(() if registration is None else length_arguments(registration))
    arguments = {key: value for key, value in mapping.items() if key not in reserved}
    nested = read_fields(collector, mapping, [fields[ARGS]], loc).get(ARGS) or {}
    if isinstance(nested, Unresolved):  # required arguments may be among them
        return _Named(name, None, {}, frozenset(), mapping)
    nested = _string_keys(collector, nested, (*loc, ARGS))
    for key in sorted(nested.keys() & arguments.keys()):
        collector.add(ConfigError("is also given directly: give it once"), (*loc, ARGS, key))
    if registration is None:
        return _Named(name, None, {}, frozenset(), mapping)
    base = _parse_base(collector, registration, mapping, loc)
    known = scheduler_fields(registration) if fields is SCHEDULER else fields
    if fields is NESTED_SCHEDULE:
        arguments = {**_length_of_part(registration, mapping, nested), **arguments}
    wrapped = None if base is None else base.registration
    valid = own_arguments(collector, registration, {**arguments, **nested}, nested, known, loc, wrapped)
    if kind == "scheduler":
        for key in valid.keys() & set(nested_schedules(registration)):
            schedules = _parse_schedules(collector, valid.pop(key), (*loc, *argument_loc(key, nested)))
            valid |= {} if schedules is None else {key: schedules}
    return _Named(name, registration, valid, frozenset(nested), mapping, base)


def _length_of_part(registration: Registration, given: Mapping[str, Any], nested: Collection[str]) -> dict[str, Any]:
    """The argument that sets the length of a whole schedule, if it is that of its part in a list of schedules."""
    total = length_argument(registration)
    if total is None or total in nested:
        return {}
    default = configurable_arguments(registration)[total].default
    # Without a default, `epochs` may set the length instead.
    is_needed = default is inspect.Parameter.empty or (default is None and "epochs" not in {*given, *nested})
    return {total: AUTO} if is_needed or "length" in given else {}


def _parse_schedules(collector: ErrorCollector, given: Any, loc: Loc) -> Any:
    """Parse a list of schedules; None for another value."""
    if isinstance(given, Unresolved):
        return given
    if not isinstance(given, (list, tuple)):
        message = f"must be a list of mappings, each with a name, got {_shortened(given)} ({type(given).__name__})"
        collector.add(ConfigTypeError(f"{message}{_schedule_by_key(given)}"), loc)
        return None
    found = []
    for i, schedule in enumerate(given):
        is_last = i == len(given) - 1
        named = _parse_named(collector, "scheduler", schedule, NESTED_SCHEDULE, (*loc, i))
        if named is None or named.registration is None:
            continue
        part: dict[str, Any] = {"name": named.name}
        if "length" in named.mapping:
            part["length"] = _parse_length_of_part(collector, named.mapping["length"], (*loc, i, "length"), is_last)
        elif not is_last:
            message = "needs a length, such as 100 or {ratio: 0.2}: only the last schedule may omit it"
            collector.add(ConfigError(message), (*loc, i))
            part["length"] = 1  # the class is checked with it
        found.append({**part, **named.arguments})
    return found


def _schedule_by_key(given: Any) -> str:
    """What to write instead of a mapping with the names of schedules as keys; empty for other values."""
    names = [key for key in given if _registered_name("scheduler", key)] if isinstance(given, Mapping) else []
    return f"; write [{', '.join(f'{{name: {name}, ...}}' for name in names)}]" if names else ""


def _parse_length_of_part(collector: ErrorCollector, given: Any, loc: Loc, is_last: bool) -> Any:
    """Parse the length of a schedule in a list of schedules."""
    if is_auto(given) and not is_last:
        collector.add(ConfigError("only the length of the last schedule can be auto, the rest of the training"), loc)
    length = read_length(collector, read_number(given, whole=True), loc)
    if isinstance(length, (str, float)) and not is_auto(length) and not isinstance(length, Unresolved):
        message = f"must be a whole number of steps, auto, or a mapping such as {{ratio: 0.2}}, got {length!r}"
        collector.add(ConfigTypeError(message), loc)
        length = None
    return 1 if length is None else length  # the class is checked with it


def _list_hint(kind: str, given: Any) -> str:
    """What to write instead of a list of schedulers; empty for other values."""
    if kind != "scheduler" or not isinstance(given, (list, tuple)):
        return ""
    hint = "; an optimizer has one scheduler"
    if len(given) == 1:
        return f"{hint}: write it without the list"
    return f"{hint}; a warmup before it is its key warmup_steps, and optimizers in a list have a scheduler each"


def _shortened(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _string_keys(collector: ErrorCollector, given: Mapping[Any, Any], loc: Loc) -> dict[str, Any]:
    """The part of a mapping whose keys are strings; an error is collected for each other key."""
    for key in given:
        if not isinstance(key, str):
            hint = "; a decimal number has a point: 0.1" if isinstance(key, int) and given[key] is None else ""
            collector.add(ConfigTypeError(f"has the key {key!r}; keys must be strings{hint}"), loc)
    return {key: value for key, value in given.items() if isinstance(key, str)}


def _report_missing_name(
    collector: ErrorCollector, kind: str, given: Mapping[str, Any], fields: Table, loc: Loc
) -> None:
    if "combine" in given:
        message = "is not allowed in a list of optimizers: write optimizer: {combine: [...]}"
        collector.add(ConfigError(message), (*loc, "combine"))
        return
    unknown = {key: value for key, value in given.items() if key not in fields}
    wrong_key, hint = _missing_name_hint(kind, unknown)
    message = f"needs a name; it has {listing(given)}{hint}"
    collector.add(ConfigError(message), loc if wrong_key is None else (*loc, wrong_key))


def _missing_name_hint(kind: str, given: Mapping[str, Any]) -> tuple[str | None, str]:
    """The hint for a mapping without a name, and the key that is wrong; None if it is not a single key.

    Args:
        kind: `"optimizer"` or `"scheduler"`.
        given: the values of the keys that may be arguments or mistakes.
    """
    path = next((given[key] for key in ("class_path", "_target_") if key in given), None)
    if path is not None or "init_args" in given:
        name = _registered_name(kind, path) or "..."
        example = "lr: ..." if kind == "optimizer" else "..."
        return None, f": write {{name: {name}, {example}}}; optplug looks up registered names and does not import paths"
    for key, value in given.items():
        spaced = missing_space(key) if value is None else None
        if spaced:
            return key, f"; write a space after the colon: {spaced}"
    foreign_warmup = next((key for key in given if warmup_form(key, given[key])), None)
    for word in ("combine", "name") if kind == "optimizer" else ("warmup_steps", "warmup", "name"):
        misspelled = next((key for key in given if nearest(key, [word])), None)
        if word == "name":
            by_value = (key for key, value in given.items() if _registered_name(kind, value))
            misspelled = misspelled or next(by_value, None) or next(filter(is_name_key, given), None)
        if misspelled is not None and isinstance(given[misspelled], Mapping) and word == "name":
            return misspelled, f"; write its keys one level up, directly in {kind}"
        if misspelled is not None and misspelled != foreign_warmup:
            return misspelled, f"; did you mean {word!r} instead of {misspelled!r}?"
    if kind == "scheduler" and foreign_warmup is not None:
        return foreign_warmup, f"; for a warmup write {warmup_form(foreign_warmup, given[foreign_warmup])}"
    for key, value in given.items():
        registered = _registered_name(kind, key)
        if registered is not None:
            arguments = listing(f"{option}: ..." for option in value) if isinstance(value, Mapping) and value else "..."
            return key, f"; write {{name: {registered}, {arguments}}}"
    return None, ""


def _registered_name(kind: str, text: Any) -> str | None:
    """The name that a text is, or that the last part of an import path is; None for other values."""
    if not isinstance(text, str):
        return None
    with suppress(OptplugError):
        return registry.resolve(kind, text.rpartition(".")[2]).name
    return None


# ---------------------------------------------------------------------------------- optimizers


def _parse_optimizer(collector: ErrorCollector, given: Any, loc: Loc, fields: Table) -> OptimizerConfig | None:
    named = _parse_named(collector, "optimizer", given, fields, loc)
    if named is None or named.registration is None:
        return None
    return OptimizerConfig(named.name, named.arguments, named.nested, loc, named.base)


def _parse_inner(
    collector: ErrorCollector, given: Any, loc: Loc, fields: Table, field: Field, role: str, refused: Collection[str]
) -> OptimizerConfig | None:
    """Parse an optimizer that serves another one; None after an error in its name.

    Args:
        collector: collects the errors.
        given: its name, or a mapping with it.
        loc: the location of `given`.
        fields: the keys of the mapping that are not arguments.
        field: the key of `given`.
        role: what it is, for messages.
        refused: the capabilities that it cannot have.
    """
    if not isinstance(given, (str, Mapping)):
        message = f"must be {field.kind}, got {_shortened(given)} ({type(given).__name__})"
        collector.add(ConfigTypeError(message), loc)
        return None
    optimizer = _parse_optimizer(collector, given, loc, fields)
    if optimizer is None:
        return None
    for capability in refused:
        if capability in optimizer.registration.spec.capabilities:
            words = OptimizerSpec.CAPABILITIES[capability]
            message = f"{optimizer.registration.name} cannot be {role} ({words}): use e.g. {DEFAULT_FALLBACK}"
            collector.add(ConfigError(message), loc)
    return optimizer


def _parse_base(
    collector: ErrorCollector, wrapper: Registration, given: Mapping[str, Any], loc: Loc
) -> OptimizerConfig | None:
    """Parse the key `base` of an optimizer that wraps another one; None for another optimizer, and after an error."""
    if not base_argument(wrapper):
        return None
    written = given.get(BASE_KEY)
    if written is None:
        if requires_base(wrapper):
            message = f"{wrapper.name} needs base, the optimizer that it wraps: write base: {{name: sgd, lr: 0.1}}"
            collector.add(ConfigError(message), loc)
        return None
    if isinstance(written, Unresolved):
        return None
    loc = (*loc, BASE_KEY)
    base = _parse_inner(collector, written, loc, OPTIMIZER, BASE[BASE_KEY], f"the base of {wrapper.name}", NOT_BASE)
    if base is not None and base.base is not None and not takes_built_base(wrapper):
        message = f"{wrapper.name} takes the class of its base and its options, but {base.name} wraps another optimizer"
        collector.add(ConfigError(f"{message}: name one without base"), loc)
    return base


def _parse_single(collector: ErrorCollector, given: Mapping[str, Any]) -> list[OptimizerEntry]:
    """Parse the only optimizer of a configuration; an empty list without one, and after an error."""
    groups_loc: Loc = ("param_groups",)
    if "optimizer" not in given:
        if "param_groups" in given and all(error.loc[:1] != ("optimizer",) for error in collector.errors):
            collector.add(ConfigError("requires an optimizer: add e.g. optimizer: adam"), groups_loc)
        return []
    optimizer = _parse_optimizer(collector, given["optimizer"], ("optimizer",), OPTIMIZER)
    fallback = _parse_fallback(collector, optimizer, given["optimizer"])
    rules = _parse_param_groups(collector, given.get("param_groups"), groups_loc, optimizer, fallback)
    return [] if optimizer is None else [OptimizerEntry(optimizer, rules, fallback=fallback)]


def _parse_fallback(collector: ErrorCollector, matrices: OptimizerConfig | None, given: Any) -> FallbackConfig | None:
    """Parse the additional keys of an optimizer of matrices; None for another optimizer, and after an error.

    Args:
        collector: collects the errors.
        matrices: the optimizer.
        given: its name, or the mapping with it.
    """
    if matrices is None or not _takes_matrices_only(matrices.registration):
        return None
    mapping = given if isinstance(given, Mapping) else {}
    read = read_fields(collector, mapping, MATRICES.values(), matrices.loc)
    if read.get("convolutions") is True and FLATTEN not in configurable_arguments(matrices.registration):
        message = f"{matrices.registration.name} has no option {FLATTEN}: it cannot take convolutions"
        collector.add(ConfigError(message), (*matrices.loc, "convolutions"))
    loc = (*matrices.loc, "fallback")
    written = read.get("fallback", DEFAULT_FALLBACK)
    if isinstance(written, Mapping) and "name" not in written:
        written = {"name": DEFAULT_FALLBACK, **written}
    optimizer = _parse_inner(collector, written, loc, FALLBACK, MATRICES["fallback"], "a fallback", NOT_FALLBACK)
    if optimizer is None:
        return None
    mapping = written if isinstance(written, Mapping) else {}
    match = parse_selector(mapping, collector, loc) if SELECTORS.keys() & mapping.keys() else None
    output, convolutions = read.get("output"), read.get("convolutions") is True
    return FallbackConfig(optimizer, match, None if isinstance(output, Unresolved) else output, convolutions)


def _takes_matrices_only(registration: Registration) -> bool:
    return "matrix_only" in registration.spec.capabilities


def _parse_combined(collector: ErrorCollector, given: Mapping[str, Any]) -> list[OptimizerEntry]:
    for key in given:
        if key != "combine":
            message = f"an optimizer with the key combine has no other key, got {key!r}"
            collector.add(ConfigError(message), ("optimizer", str(key)))
    fields = {key: field for key, field in {**OPTIMIZER, **ENTRY}.items() if key != "scheduler"}
    return [entry for entry, _ in _parse_entries(collector, given["combine"], ("optimizer", "combine"), fields)]


def _parse_entries(
    collector: ErrorCollector, given: Any, loc: Loc, fields: Table
) -> list[tuple[OptimizerEntry, SchedulerConfig | None]]:
    """Parse a list of optimizers; `fields` are the keys of an entry that are not arguments."""
    if isinstance(given, Unresolved):
        return []
    if not isinstance(given, (list, tuple)) or not given:
        collector.add(ConfigTypeError(f"must be a list of mappings, each with a name, got {given!r}"), loc)
        return []
    keys = [set(entry) if isinstance(entry, Mapping) else set() for entry in given]
    if len(keys) > 1 and all(len(each) == 1 for each in keys) and sum("name" in each for each in keys) == 1:
        message = (
            f"is a list of {len(keys)} optimizers with one key each: write the keys of one optimizer without dashes"
        )
        collector.add(ConfigError(message), loc)
        return []
    found = []
    rests = _rest_entries(collector, given, loc)
    for i, entry in enumerate(given):
        entry_loc = (*loc, i)
        if isinstance(entry, Unresolved):
            continue
        if not isinstance(entry, Mapping):
            example = "{name: adam, match: 'generator.*', lr: 1.0e-3}"
            collector.add(ConfigTypeError(f"must be a mapping such as {example}, got {entry!r}"), entry_loc)
            continue
        optimizer = _parse_optimizer(collector, entry, entry_loc, fields)
        fallback = None
        if "scheduler" in fields:
            fallback = _parse_fallback(collector, optimizer, entry)
        elif optimizer is not None and _takes_matrices_only(optimizer.registration):
            for key in [key for key in MATRICES if key in entry]:
                message = "in combine, an optimizer gets what it selects: give another optimizer rest: true"
                collector.add(ConfigError(message), (*entry_loc, key))
        select = parse_selector(entry, collector, entry_loc) if SELECTORS.keys() & entry.keys() else None
        if select is None and len(given) > 1 and "name" in entry and i not in rests:
            message = f"needs one of {listing([*SELECTORS, 'rest'])} to select its parameters"
            collector.add(ConfigError(message), entry_loc)
        groups_loc = (*entry_loc, "param_groups")
        rules = _parse_param_groups(collector, entry.get("param_groups"), groups_loc, optimizer, fallback)
        scheduler = None
        if "scheduler" in fields:
            scheduler = _parse_scheduler(collector, entry.get("scheduler"), (*entry_loc, "scheduler"))
        if optimizer is not None:
            found.append((OptimizerEntry(optimizer, rules, select, fallback, groups_loc), scheduler))
    others = tuple(entry.select for entry, _ in found if isinstance(entry.select, Selector))
    return [
        (replace(entry, select=Rest(others)) if entry.optimizer.loc[-1] in rests else entry, scheduler)
        for entry, scheduler in found
    ]


def _rest_entries(collector: ErrorCollector, given: Sequence[Any], loc: Loc) -> list[int]:
    """The indices of the entries with `rest: true`, of which there may be one."""
    found = []
    for i, entry in enumerate(given):
        if isinstance(entry, Mapping) and read_fields(collector, entry, [ENTRY["rest"]], (*loc, i)).get("rest") is True:
            found.append(i)
            selectors = [key for key in SELECTORS if key in entry]
            if selectors:
                message = f"selects all parameters that no other optimizer selects: omit {listing(selectors)}, or rest"
                collector.add(ConfigError(message), (*loc, i, "rest"))
    for i in found[1:]:
        collector.add(ConfigError(f"{loc_text((*loc, found[0]))} takes the rest already"), (*loc, i, "rest"))
    return found


def parse_selector(given: Mapping[str, Any], collector: ErrorCollector, loc: Loc) -> Selector:
    """Parse the selector of an entry.

    Args:
        given: the entry. Keys that select no parameters are ignored.
        collector: collects the errors: a pattern that is not text, an empty list, an invalid regular expression.
        loc: the location of the entry in the configuration.
    """
    return Selector(**read_fields(collector, given, SELECTORS.values(), loc))


# ----------------------------------------------------------------------------------- scheduler


def _parse_scheduler(
    collector: ErrorCollector, given: Any, loc: Loc, top_level: Mapping[str, Any] = MappingProxyType({})
) -> SchedulerConfig | None:
    """Parse a scheduler; `top_level` are `monitor` and `mode` from the top level of the configuration."""
    if given is None:
        for key, value in top_level.items():
            message = f"{value!r} requires a scheduler that takes a metric, and no scheduler is configured"
            collector.add(ConfigError(message), (key,))
        return None
    if isinstance(given, Mapping) and "name" not in given and {"warmup", "warmup_steps"} & set(given):
        return _parse_warmup_only(collector, given, loc, top_level)
    named = _parse_named(collector, "scheduler", given, SCHEDULER, loc)
    if named is None:
        return None
    lengths = () if named.registration is None else length_arguments(named.registration)
    without_lengths = {key: value for key, value in named.mapping.items() if key not in lengths}
    warmup = _parse_warmup(collector, without_lengths, loc)
    if named.registration is None:  # whether the scheduler takes a metric is not known
        keys = ("interval", "frequency", *METRIC_KEYS)
        read_fields(collector, named.mapping, (SCHEDULER[key] for key in keys), loc)
        return None
    times = _parse_times(collector, named, loc)
    metric_options = _parse_metric_options(collector, named, loc, top_level)
    options = {**times, **metric_options, "warmup": warmup, "nested": named.nested, "loc": loc}
    return SchedulerConfig(named.name, named.arguments, **options)


def _parse_warmup_only(
    collector: ErrorCollector, given: Mapping[str, Any], loc: Loc, top_level: Mapping[str, Any]
) -> SchedulerConfig | None:
    others = [str(key) for key in given if key not in ("warmup", "warmup_steps")]
    if len(others) > 1 and not any(did_you_mean(key, ["name"]) for key in others):
        message = f"needs a name: without a name a scheduler is a warmup only, and it has {listing(others)} too"
        collector.add(ConfigError(message), loc)
        return None
    for key in others:
        message = f"a scheduler without a name is a warmup only, which has no key {key!r}{did_you_mean(key, ['name'])}"
        collector.add(ConfigError(message), (*loc, key))
    for key in top_level:
        message = "requires a scheduler that takes a metric, and only a warmup is configured"
        collector.add(ConfigError(message), (key,))
    warmup = _parse_warmup(collector, given, loc)
    return SchedulerConfig(None, warmup=warmup or WarmupConfig(0), interval="step", loc=loc)


def _parse_times(collector: ErrorCollector, named: _Named, loc: Loc) -> dict[str, Any]:
    """The interval and the frequency of a scheduler. A list of schedules is stepped as one of them that needs steps."""
    registration, given = named.registration, named.mapping
    assert registration is not None
    known = scheduler_fields(registration)
    found = {}
    for key in ("interval", "frequency"):
        field = SCHEDULER[key]
        if key in known:
            found[key] = known[key].default
            if key == "interval" and any(map(_is_stepped_per_step, _schedules_in(named))):
                found[key] = "step"
            found |= read_fields(collector, given, [known[key]], loc)
            if key == "interval":
                found["interval_is_given"] = given.get(key) is not None
        elif given.get(key, field.inert) != field.inert and not has_unresolved(given[key]):
            message = field.refusal.format(name=registration.name, key=key, value=given[key])
            collector.add(ConfigError(message), (*loc, key))
    return found


def _schedules_in(named: _Named) -> Iterator[Registration]:
    """The schedules in the lists of schedules that are arguments of a scheduler."""
    assert named.registration is not None
    for key in nested_schedules(named.registration):
        schedules = named.arguments.get(key)
        for schedule in schedules if isinstance(schedules, list) else ():  # else it is not known yet
            yield registry.resolve("scheduler", schedule["name"])


def _is_stepped_per_step(registration: Registration) -> bool:
    return isinstance(registration.spec, SchedulerSpec) and registration.spec.interval == "step"


def _parse_metric_options(
    collector: ErrorCollector, named: _Named, loc: Loc, top_level: Mapping[str, Any]
) -> dict[str, Any]:
    """Parse the options in `METRIC_KEYS`, which may be given in several places.

    Args:
        collector: collects the errors.
        named: the scheduler. The argument `mode` is removed if the scheduler takes a metric.
        loc: the location of the scheduler.
        top_level: `monitor` and `mode` from the top level of the configuration.
    """
    registration = named.registration
    assert registration is not None
    known = scheduler_fields(registration)
    found: dict[str, Any] = {}
    for key in METRIC_KEYS:
        values: dict[Loc, Any] = {(*loc, key): named.mapping.get(key), (key,): top_level.get(key)}
        if key == "mode" and key in known:
            values[(*loc, ARGS, key)] = named.arguments.pop("mode", None)
        values = {
            value_loc: value for value_loc, value in values.items() if value is not None and not has_unresolved(value)
        }
        for value_loc, value in values.items():
            with collector.collect(value_loc):
                if key not in known:
                    has_argument = key in configurable_arguments(registration)
                    hint = f"; write the scheduler's own argument {key} under {ARGS}" if has_argument else ""
                    refusal = SCHEDULER[key].refusal.format(name=registration.name, key=key, value=value)
                    raise ConfigError(refusal + hint)
                read = known[key].read(value)
                if found.setdefault(key, read) != read:
                    first_loc = loc_text(next(iter(values)))
                    raise ConfigError(f"is {value!r} and {first_loc} is {found[key]!r}: give it once")
    return found


def _parse_warmup(collector: ErrorCollector, given: Mapping[str, Any], loc: Loc) -> WarmupConfig | None:
    read = read_fields(collector, given, [SCHEDULER["warmup_steps"]], loc)
    if "warmup_steps" in given:
        if "warmup" in given:
            message = "means warmup.steps, and warmup is given too: give only one of them"
            collector.add(ConfigError(message), (*loc, "warmup_steps"))
        return WarmupConfig(read["warmup_steps"]) if read.get("warmup_steps") else None
    warmup = read_fields(collector, given, [SCHEDULER["warmup"]], loc).get("warmup")
    loc = (*loc, "warmup")
    if warmup is None or isinstance(warmup, Unresolved):
        return None
    if not isinstance(warmup, Mapping):
        with collector.collect(loc):
            return _read_warmup(collector, with_unit(warmup), loc)
        return None
    return _read_warmup(collector, warmup, loc)


def _read_warmup(collector: ErrorCollector, given: Mapping[str, Any], loc: Loc) -> WarmupConfig | None:
    """Read the long form of a warmup; None for a warmup of length 0."""
    values = read_unit(collector, "a warmup", given, WARMUP, loc)
    if values is None:
        return None
    unit = next(key for key in UNITS if key in values)
    options = {key: values[key] for key in ("start_factor", "schedule") if key in values}
    return WarmupConfig(values[unit], unit, **options) if values[unit] else None


# -------------------------------------------------------------------------------- param groups


def _parse_param_groups(
    collector: ErrorCollector,
    given: Any,
    loc: Loc,
    optimizer: OptimizerConfig | None,
    fallback: FallbackConfig | None = None,
) -> tuple[AnyGroupRule, ...]:
    if given is None or isinstance(given, Unresolved):
        return ()
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, (list, tuple)):
        preset = next((key for key in given if key in PRESETS), None) if isinstance(given, Mapping) else None
        item = preset or _shortened(given)
        hint = f"; write a list: [{item}]" if isinstance(given, Mapping) else ""
        collector.add(ConfigTypeError(f"must be {PARAM_GROUPS.kind}, got {_shortened(given)}{hint}"), loc)
        return ()
    rules: list[AnyGroupRule] = []
    optimizers = [each for each in (optimizer, None if fallback is None else fallback.optimizer) if each is not None]
    for i, entry in enumerate(entries):
        rule: AnyGroupRule | None = None
        rule_loc = loc if isinstance(given, str) else (*loc, i)
        if isinstance(entry, Unresolved):
            pass
        elif isinstance(entry, str):
            rule = _parse_preset(collector, {"preset": entry}, rule_loc, rule_loc)
        elif not isinstance(entry, Mapping):
            example = "{match: '*.bias', weight_decay: 0.0}"
            message = f"must be a mapping such as {example}, or the name of a preset, got {entry!r}"
            collector.add(ConfigTypeError(message), rule_loc)
        elif "preset" in entry:
            rule = _parse_preset(collector, entry, rule_loc, (*rule_loc, "preset"))
        else:
            registrations = [registration for each in optimizers for registration in each.group_registrations]
            rule = _parse_group_rule(collector, entry, rule_loc, registrations)
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
    collector: ErrorCollector, given: Mapping[Any, Any], loc: Loc, registrations: Sequence[Registration]
) -> GroupRule | None:
    entry = _string_keys(collector, given, loc)
    options = {key: value for key, value in entry.items() if key not in (*SELECTORS, "name", "scheduler")}
    scheduler = _parse_group_schedule(collector, entry, (*loc, "scheduler"))
    read = read_fields(collector, entry, GROUP_RULE.values(), loc)
    if "rest" in entry:
        message = "a rule has no rest: parameters that no rule selects have the options of the optimizer"
        collector.add(ConfigError(message), (*loc, "rest"))
        return None
    if not SELECTORS.keys() & entry.keys():
        message = f"needs one of {listing(SELECTORS)} to select parameters; it has {listing(entry)}"
        meant = {key: _selector_key(key) for key in options}
        misspelled = next((key for key in options if meant[key]), None)
        preset = next((key for key in options if key in PRESETS), None)
        if preset is not None:
            keys = listing(f"{key}: ..." for key in PRESETS[preset])
            message = f"is not a key of a group rule: write {{preset: {preset}, {keys}}}"
            collector.add(ConfigError(message), (*loc, preset))
            return None
        if misspelled is not None:
            correct = meant[misspelled]
            message += f"; did you mean {correct!r} instead of {misspelled!r}?"
            collector.add(ConfigError(message), (*loc, misspelled))
            if correct == "preset":
                return None
            del options[misspelled]
        else:
            collector.add(ConfigError(message), loc)
    if registrations:
        options = group_options(collector, registrations, options, loc)
    options = {key: read.get(key, value) for key, value in options.items()}
    select = Selector(**{key: value for key, value in read.items() if key in SELECTORS})
    if select == Selector() or has_unresolved([*vars(select).values(), read.get("name")]):
        return None
    return GroupRule(select, read.get("name", str(select)), options, scheduler)


def _parse_group_schedule(collector: ErrorCollector, rule: Mapping[str, Any], loc: Loc) -> SchedulerConfig | None:
    """The schedule of a group rule; None without the key."""
    if "scheduler" not in rule:
        return None
    given = rule["scheduler"]
    return constant_schedule(loc) if given is None else _parse_scheduler(collector, given, loc)


def _selector_key(key: str) -> str:
    """The key of a group rule that is meant by a misspelled key or by a key of another format; empty for other keys."""
    keys = [*SELECTORS, "preset"]
    return group_rule_key(key, keys) or next(iter(nearest(key, keys)), "")


def _parse_preset(
    collector: ErrorCollector, given: Mapping[str, Any], loc: Loc, name_loc: Loc
) -> NoDecay | LayerDecay | None:
    """Parse a preset.

    Args:
        collector: collects the errors.
        given: a mapping with the key `preset`.
        loc: the location of the mapping in the configuration.
        name_loc: the location of the preset's name.

    Returns:
        The preset, or None if it is invalid or not known in full.
    """
    name = given["preset"]
    if isinstance(name, Unresolved):
        return None
    if not isinstance(name, str):
        collector.add(ConfigTypeError(f"must be the name of a preset, got {name!r}"), name_loc)
        return None
    if name not in PRESETS:
        is_glob = set("*.?[") & set(name)
        hint = f"; write a glob in a mapping: {{match: {name!r}, ...}}" if is_glob else ""
        hint = hint or suggest(name, PRESETS, intro="the presets are")
        collector.add(ConfigError(f"there is no preset {name!r}{hint}"), name_loc)
        return None
    fields = PRESETS[name]
    if "scheduler" in given:
        example = "{match: 'head.*', scheduler: ...}"
        message = f"a preset has no scheduler: write a rule that selects the parameters, {example}"
        collector.add(ConfigError(message), (*loc, "scheduler"))
        given = {key: value for key, value in given.items() if key != "scheduler"}
    check_keys(collector, f"preset {name}", given, ["preset", *fields], loc)
    example = "{preset: layer_decay, decay: 0.75, layers: ['embed.*', 'blocks.{}.*', 'head.*']}"
    for key, field in fields.items():
        if field.default is ... and key not in given:
            collector.add(ConfigError(f"{name} needs {key}, for example {example}"), loc)
    read = read_fields(collector, given, fields.values(), loc)
    if has_unresolved(read) or any(field.default is ... and key not in read for key, field in fields.items()):
        return None
    return NoDecay(**read) if name == NoDecay.name else LayerDecay(**read)
