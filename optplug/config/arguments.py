"""Arguments of registered classes in a configuration: their names, `auto`, and text that is a number."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_origin

from optplug.config.argument_values import type_of_argument
from optplug.config.dialects import argument_of, foreign_key_hint, group_rule_key, warmup_form
from optplug.config.fields import Choice, Table
from optplug.config.form import (
    ARGS,
    AUTO,
    BASE,
    BASE_KEY,
    ENTRY,
    GROUP_RULE,
    MATRICES,
    MULTIPLIERS,
    OPTIMIZER,
    OPTIMIZER_WIDE_OPTIONS,
    PATIENCE_UNITS,
    SCHEDULER,
    SELECTORS,
)
from optplug.config.lengths import length_argument, length_arguments, read_length
from optplug.config.value_schema import numbers_from_text, schema_of_type
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    ErrorCollector,
    Loc,
    OptplugError,
    did_you_mean,
    listing,
    short_list,
)
from optplug.optim.strict_kwargs import is_strict
from optplug.registry import Registration, registry
from optplug.registry.signature import (
    accepts_any_argument,
    base_argument,
    configurable_arguments,
    function_arguments,
    takes_untyped_options,
    target_of,
)
from optplug.registry.specs import SchedulerSpec


def reserved_keys(registration: Registration) -> set[str]:
    """The keys of optplug in the mapping of an optimizer or a scheduler. They are not arguments of the class.

    A key that is a length of the scheduler, such as `warmup_steps`, is its argument.
    """
    if registration.spec.kind == "optimizer":
        return set(optimizer_fields(registration))
    return SCHEDULER.keys() - set(length_arguments(registration))


def optimizer_fields(registration: Registration) -> Table:
    """The keys of an optimizer beside its arguments."""
    matrices = MATRICES if "matrix_only" in registration.spec.capabilities else {}
    return {**OPTIMIZER, **matrices, **(BASE if base_argument(registration) else {})}


def scheduler_fields(registration: Registration) -> Table:
    """The keys of a scheduler beside its arguments: those in `SCHEDULER` that apply to it."""
    spec = registration.spec
    assert isinstance(spec, SchedulerSpec)
    takes_metric = "metric" in spec.capabilities
    own = {key: field for key, field in SCHEDULER.items() if key in reserved_keys(registration)}
    fields = {key: field for key, field in own.items() if field.applies(takes_metric=takes_metric)}
    if not takes_metric:
        fields["interval"] = replace(fields["interval"], default=spec.interval)
    elif not callable(getattr(registry.get("scheduler", registration.qualified_name), "at", None)):
        units = Choice(PATIENCE_UNITS[:1], f"{registration.name} has no method at(position)")
        fields["patience_unit"] = replace(fields["patience_unit"], kind=units)
    return fields


def own_arguments(
    collector: ErrorCollector,
    registration: Registration,
    arguments: Mapping[str, Any],
    nested: Collection[str],
    fields: Table,
    loc: Loc,
    base: Registration | None = None,
) -> dict[str, Any]:
    """The arguments that a class has, with numbers in place of text that is a number.

    Errors are collected for unknown and missing arguments, for a wrong `auto`, and for wrong lengths.

    Args:
        collector: collects the errors.
        registration: the optimizer or scheduler.
        arguments: the given arguments.
        nested: the arguments that are written under `args`.
        fields: the keys beside the arguments.
        loc: the location of the mapping that has the name.
        base: the optimizer that the optimizer wraps. Default: none.
    """
    keys = [key for key in fields if key != "name"]
    invalid = set()
    for error in argument_errors(registration, arguments, keys, base):
        key = error.argument
        collector.add(error, (*loc, *argument_loc(key, nested)) if key else loc)
        invalid.add(key)
    length = length_argument(registration)
    for key, value in arguments.items():
        # `auto` may be a value of another argument of an optimizer.
        can_be_length = isinstance(registration.spec, SchedulerSpec) or key == length
        is_auto = can_be_length and isinstance(value, str) and value.lower() == AUTO
        if not is_auto or key in invalid or (key == length and value == AUTO):
            continue
        if key == length:
            message = f"is {value!r}: write {AUTO}"
        elif length:
            message = f"only {length}, the length of the schedule, can be {AUTO}"
        else:
            message = f"no argument of {registration.name} can be {AUTO}"
        collector.add(ConfigError(message), (*loc, *argument_loc(key, nested)))
        invalid.add(key)
    valid = {key: value for key, value in arguments.items() if key not in invalid}
    for key in [key for key in valid if key in length_arguments(registration)]:
        errors = len(collector.errors)
        own_loc = (*loc, *argument_loc(key, nested))
        if isinstance(valid[key], Mapping) and _is_list(configurable_arguments(registration)[key].annotation):
            shown = ", ".join(f"{unit}: {value}" for unit, value in valid[key].items())
            collector.add(ConfigTypeError(f"must be a list of lengths, such as [{{{shown}}}]"), own_loc)
        else:
            valid[key] = read_length(collector, valid[key], own_loc)
        if len(collector.errors) > errors:
            del valid[key]
    return read_numbers(registration, valid)


def _is_list(annotation: Any) -> bool:
    """Whether the type of an argument is a sequence, such as `Sequence[int]`."""
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Iterable)


def argument_loc(name: str, nested: Collection[str]) -> Loc:
    """The location of an argument in the mapping that has the name."""
    return (ARGS, name) if name in nested else (name,)


def argument_errors(
    registration: Registration,
    arguments: Mapping[str, Any],
    keys: Collection[str] = (),
    base: Registration | None = None,
) -> Iterator[ConfigError]:
    """Find unknown and missing arguments.

    Args:
        registration: the optimizer or scheduler.
        arguments: the given arguments.
        keys: keys that the configuration accepts beside the arguments; empty outside a configuration.
        base: the optimizer that the optimizer wraps. Default: none.

    Yields:
        The errors. An error about an unknown argument has its name in `argument`.
    """
    known, target = configurable_arguments(registration), target_of(registration)
    # A constructor with untyped `**options` of a class that rejects unknown keywords itself may have further ones.
    has_further = is_strict(target) and takes_untyped_options(target)
    for key in () if has_further or accepts_any_argument(registration) else arguments:
        if key not in known:
            yield _unknown_argument(registration, key, arguments[key], known, keys, base)
    missing = [name for name, p in known.items() if p.default is p.empty and name not in arguments]
    if missing:
        hint = missing_length_hint(registration, missing) if keys else ""
        yield ConfigError(f"{registration.name} needs {listing(missing)}{hint}")


def missing_length_hint(registration: Registration, missing: Collection[str]) -> str:
    """What the missing lengths of a schedule may be; empty if no length is missing."""
    total = length_argument(registration)
    parts = [name for name in length_arguments(registration) if name in missing and name != total]
    hints = [f"{total} may be {AUTO}: the length of the training"] if total in missing else []
    hints += [f"{name} may be a part of the training: {{ratio: 0.2}}" for name in parts if total is not None]
    return f" ({'; '.join(hints)})" if hints else ""


def _unknown_argument(
    registration: Registration,
    key: str,
    value: Any,
    known: Collection[str],
    keys: Collection[str],
    base: Registration | None,
) -> ConfigError:
    kind = registration.spec.kind
    hint = f"; write {BASE_KEY}: {{name: ...}}" if keys and key == base_argument(registration) else ""
    hint = hint or _hint_for_option_of_base(key, value, base)
    hint = hint or _hint_for_misplaced_key(kind, key, value, keys) or _hint_for_part(key, value, keys)
    if not hint and keys:
        length = length_argument(registration)
        hint = foreign_key_hint(kind, key, value, arguments=known, keys=keys, length=length)
    hint = hint or did_you_mean(key, [*known, *(k for k in keys if k != ARGS)])
    if key in keys:
        hint = f"; write {key} beside name, not under {ARGS}"
    if not hint:
        hint = f"; it has {short_list(sorted(known), f'optplug info {registration.name}')}"
        hint += f", and in a configuration {short_list(keys)}" if keys else ""
    noun = "argument" if kind == "scheduler" else "option"
    return ConfigError(f"{registration.name} has no {noun} {key!r}{hint}", argument=key)


def _hint_for_option_of_base(key: str, value: Any, base: Registration | None) -> str:
    """Where an option belongs that the optimizer lacks and its base has; empty for other keys."""
    if base is None or key not in configurable_arguments(base):
        return ""
    return f"; it is an option of {base.name}: write base: {{name: {base.name}, {key}: {value}}}"


def _hint_for_misplaced_key(kind: str, key: str, value: Any, keys: Collection[str]) -> str:
    """Where a key of the configuration belongs if it is not an option of the optimizer; empty for other keys."""
    if kind != "optimizer" or not keys or (key == "type" and _is_optimizer(value)):
        return ""
    if key == "params" and not isinstance(value, Mapping):
        where = "" if "match" in keys else " in an entry of param_groups, or in an entry in a list of optimizers"
        return f"; select parameters by {listing(SELECTORS)}{where}"
    if key in SCHEDULER and key not in OPTIMIZER:
        return f"; {key!r} belongs to scheduler"
    if key in MATRICES:
        takers = [each.name for each in registry.registrations("optimizer") if "matrix_only" in each.spec.capabilities]
        return f"; {key} is a key of optimizers that take matrices only: {short_list(takers)}"
    if key == BASE_KEY:
        takers = [each.name for each in registry.registrations("optimizer") if base_argument(each)]
        return f"; {key} is a key of optimizers that wrap another{f': {short_list(takers)}' if takers else ''}"
    if key in SELECTORS:
        return f"; {key} belongs to an entry of param_groups, or to an entry in a list of optimizers"
    if key == "rest":
        is_fallback = "match" in keys
        return f"; {'a fallback gets the rest without it' if is_fallback else 'rest belongs to a list of optimizers'}"
    if key in ENTRY:
        entry = "" if "match" in keys else ", or to an entry in a list of optimizers"
        return f"; {key} belongs to the top level of the configuration{entry}"
    return ""


def _hint_for_part(key: str, value: Any, keys: Collection[str]) -> str:
    """Where a key belongs that a schedule in a list of schedules cannot have; empty for other keys, and elsewhere."""
    if "length" not in keys:
        return ""
    if warmup_form(key, value):
        return (
            "; a schedule in a list has no warmup: give the whole list a warmup, beside schedules, or make "
            "{name: linear_lr, length: ...} the first schedule"
        )
    return f"; write {key} beside schedules: it applies to the whole list" if key in SCHEDULER else ""


def _is_optimizer(name: Any) -> bool:
    with suppress(OptplugError):
        return isinstance(name, str) and bool(registry.resolve("optimizer", name))
    return False


def check_arguments(registration: Registration, arguments: Mapping[str, Any]) -> None:
    """Check the names of constructor arguments, outside a configuration.

    Args:
        registration: the optimizer or scheduler.
        arguments: the arguments to check.

    Raises:
        ConfigError: an argument is unknown, with the nearest match; or a required argument is missing.
    """
    collector = ErrorCollector()
    for error in argument_errors(registration, arguments):
        collector.add(error)
    collector.raise_joined()


def group_options(
    collector: ErrorCollector, registrations: Sequence[Registration], options: Mapping[str, Any], loc: Loc
) -> dict[str, Any]:
    """The options that a parameter group can have; an error is collected for each other option.

    Args:
        collector: collects the errors.
        registrations: the optimizer, or several to which the group rule applies. One of them must have an option.
        options: the given options, multipliers included.
        loc: the location of the group rule.
    """
    name, has = " and ".join(each.name for each in registrations), "has" if len(registrations) == 1 else "have"
    arguments = {key: p for each in registrations for key, p in configurable_arguments(each).items()}
    is_complete = not any(map(accepts_any_argument, registrations))
    known = [key for key in arguments if key not in OPTIMIZER_WIDE_OPTIONS]
    multipliers = [key for key, target in MULTIPLIERS.items() if target in arguments or not is_complete]
    valid = {}
    for key, value in options.items():
        with collector.collect((*loc, key)):
            if key in MULTIPLIERS:
                target = MULTIPLIERS[key]
                if key not in multipliers:
                    raise ConfigError(f"{name} {has} no {target} to multiply")
                if target in options:
                    raise ConfigError(f"multiplies {target}, which this entry sets too: give only one of them")
            elif key in OPTIMIZER_WIDE_OPTIONS and key in arguments:
                raise ConfigError(f"{key} applies to the whole optimizer: set it in optimizer, not in a group")
            elif key not in known and (is_complete or key in OPTIMIZER_WIDE_OPTIONS):
                keys = [key for key in GROUP_RULE if key not in MULTIPLIERS or key in multipliers]
                meant = group_rule_key(key, [key for key in keys if key not in options]) or argument_of(key, known)
                hint = did_you_mean(key, [*known, *keys]) if meant is None else f"; did you mean {meant!r}?"
                if not hint:
                    shown = short_list(sorted(known), f"optplug info {registrations[0].name}")
                    intro = "it has" if has == "has" else "they have"
                    hint = f"; {intro} {shown}, and in an entry of param_groups {listing(keys)}"
                raise ConfigError(f"{name} {has} no option {key!r}{hint}")
            valid[key] = value
    for registration in registrations:
        valid = read_numbers(registration, valid)
    return valid


def options_of_member(
    registrations: Iterable[Registration], others: Iterable[Registration], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a group rule for one of two optimizers to which the rule applies.

    These are the options that the optimizer has. An option that neither has is for an optimizer with untyped
    `**options`.

    Args:
        registrations: the optimizer; a wrapper and its base, if groups have options of both.
        others: the other optimizer.
        options: the options of the rule.
    """
    own, known = ({key for each in one for key in configurable_arguments(each)} for one in (registrations, others))
    is_complete = not any(map(accepts_any_argument, registrations))
    return {
        key: value
        for key, value in options.items()
        if (target := MULTIPLIERS.get(key, key)) in own or not (is_complete or target in known)
    }


# ------------------------------------------------------------------------------------ text that is a number


def read_numbers(registration: Registration, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in which text is replaced by a number, where the class requires a number and the text is one.

    Many YAML readers read `1e-3` as text.
    """
    declared, functions = configurable_arguments(registration), function_arguments(registration)
    converted = dict(arguments)
    for key, value in arguments.items():
        if key in declared and key not in functions:
            converted[key] = numbers_from_text(schema_of_type(type_of_argument(declared[key])), value)
    return converted
