"""Lengths as they are written: a number of the schedule's own steps, `auto`, or a mapping such as `{ratio: 0.2}`.

`optplug.config.training_length` converts them to numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optplug.config.fields import Table, check_keys, read_fields, read_number
from optplug.config.form import LENGTH, is_auto
from optplug.errors import ConfigError, ConfigTypeError, ErrorCollector, Loc, listing
from optplug.registry import Registration, registry
from optplug.registry.signature import configurable_arguments, schedule_arguments
from optplug.registry.specs import LENGTH_ARGUMENTS, OptimizerSpec, SchedulerSpec

UNITS = tuple(LENGTH)


def length_argument(registration: Registration) -> str | None:
    """The name of the argument that sets the length of a whole schedule, or that is the number of steps of the training
    for an optimizer; None if there is none.
    """
    spec = registration.spec
    if not isinstance(spec, (OptimizerSpec, SchedulerSpec)):
        return None
    known = configurable_arguments(registration)
    return spec.length or next((name for name in LENGTH_ARGUMENTS if name in known), None)


def length_arguments(registration: Registration) -> tuple[str, ...]:
    """The names of the arguments that are lengths; the one of `length_argument` is the first."""
    total = length_argument(registration)
    return tuple(dict.fromkeys([*([total] if total else []), *getattr(registration.spec, "lengths", ())]))


def all_lengths(registration: Registration) -> tuple[str, ...]:
    """The names of a scheduler's arguments that are lengths, or lists of schedules with lengths."""
    return (*length_arguments(registration), *nested_schedules(registration))


def nested_schedules(registration: Registration) -> tuple[str, ...]:
    """The names of a scheduler's arguments that are lists of schedules."""
    return schedule_arguments(registration)


def read_unit(
    collector: ErrorCollector, subject: str, given: Mapping[str, Any], fields: Table, loc: Loc
) -> dict[str, Any] | None:
    """Read a mapping that has exactly one of the units in `LENGTH`.

    Args:
        collector: collects the errors: an unknown key, a wrong value, no unit or several.
        subject: what the mapping is, for messages.
        given: the mapping.
        fields: its fields.
        loc: its location.

    Returns:
        The values of its fields; None without exactly one unit that is valid.
    """
    check_keys(collector, subject, given, fields, loc)
    read = read_fields(collector, given, fields.values(), loc)
    units = [key for key in UNITS if key in given]
    # A misspelled unit has been reported as an unknown key.
    if len(units) > 1 or (not units and fields.keys() >= given.keys()):
        needs = "needs exactly one of steps (optimizer steps), epochs, ratio (of the training)"
        collector.add(ConfigError(f"{needs}, got {listing(units)}"), loc)
        return None
    return read if units and units[0] in read else None


def with_unit(given: Any) -> dict[str, Any]:
    """A warmup that is given as a number, as a mapping: below 1 it is a ratio, above 1 a number of optimizer steps.

    Raises:
        ConfigError: the number is 1, which could be either, or it is neither a ratio nor a number of steps.
        ConfigTypeError: the value is not a number.
    """
    number = read_number(given)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        ratio = as_ratio(given)
        hint = f"; a part of the training is {ratio}" if ratio else ""
        raise ConfigTypeError(f"must be a number, or a mapping such as {{steps: 100}}, got {given!r}{hint}")
    if number == 1:
        raise ConfigError("is 1: write {steps: 1} for one optimizer step, or {ratio: 1} for the whole training")
    if not (0 <= number < 1 or (number > 1 and (isinstance(number, int) or number.is_integer()))):
        raise ConfigError(f"must be a ratio from 0 to 1 or a whole number of optimizer steps, got {given}")
    return {"ratio": number} if number < 1 else {"steps": number}


def read_length(collector: ErrorCollector, given: Any, loc: Loc) -> Any:
    """Read an argument that is a length, or a list of lengths. Numbers are left to the class of the scheduler."""
    if isinstance(given, Mapping):
        return read_unit(collector, "a length", given, LENGTH, loc)
    if isinstance(given, (list, tuple)):
        return [read_length(collector, each, (*loc, i)) for i, each in enumerate(given)]
    ratio = as_ratio(given)
    if not ratio:
        return given
    collector.add(ConfigError(f"must be a number of steps, got {given!r}; a part of the training is {ratio}"), loc)
    return None


def as_ratio(given: Any) -> str:
    """The mapping to write for a part of the training, such as `{ratio: 0.5}` for `"50%"` or 0.5; else empty."""
    is_percent = isinstance(given, str) and given.rstrip().endswith("%")
    number = read_number(given.rstrip(" %") if is_percent else given)
    if isinstance(number, (int, float)):
        part = number / 100 if is_percent else number
        if 0 < part < 1 or (is_percent and part == 1):
            return f"{{ratio: {part:g}}}"
    return ""


def numbers_in(given: Any) -> Iterator[float]:
    """The positive numbers in a length, or in a list of lengths or of schedules, that may be numbers of steps."""
    if isinstance(given, (list, tuple, Mapping)):
        for each in given.values() if isinstance(given, Mapping) else given:
            yield from numbers_in(each)
    elif isinstance(given, (int, float)) and 0 < given < 10**15:
        yield given


def is_relative(given: Any) -> bool:
    """Whether a length, or one in a list of lengths or of schedules, is `auto` or has a unit."""
    if isinstance(given, Mapping) and "name" in given:
        names = ("length", *all_lengths(registry.resolve("scheduler", given["name"])))
        return any(is_relative(given.get(name)) for name in names)
    if isinstance(given, (list, tuple)):
        return any(map(is_relative, given))
    return is_auto(given) or isinstance(given, Mapping)


def is_whole(given: Any) -> bool:
    """Whether a length is that of the whole training: `auto`, or `{ratio: 1}`."""
    return is_auto(given) or (isinstance(given, Mapping) and given.get("ratio") == 1)


def described(given: Any, training: str) -> str:
    """A length that is `auto` or has a unit, in words.

    Args:
        given: the length.
        training: the words for the training, or for the part of it to which the length refers.
    """
    if is_auto(given):
        return f"as long as {training}"
    ((unit, value),) = given.items()
    return f"{value:g} {'optimizer steps' if unit == 'steps' else f'of {training}' if unit == 'ratio' else unit}"
