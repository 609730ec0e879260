"""Values of the arguments of classes of other packages, checked by the annotation, else by the type of the default."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from optplug.config.fields import Schema
from optplug.config.value_schema import any_of, schema_of_type, union
from optplug.errors import HyperparameterError, HyperparameterTypeError, OptplugError, did_you_mean, number_hint
from optplug.optim.hyperparameters import number_error
from optplug.optim.ranges import COMMON_RANGES, any_number
from optplug.registry import Registration
from optplug.registry.signature import (
    configurable_arguments,
    configurable_type,
    declared_cases,
    function_arguments,
    type_of_default,
)

LR = "lr"
_LR_RANGE = next(range_ for range_ in COMMON_RANGES if range_.name == LR)
_PLAIN = (bool, int, float, str, list, tuple, Mapping, type(None))
"""Types of the values in a configuration. Values of other types, such as tensors, are left to the class."""


def type_of_argument(parameter: inspect.Parameter) -> Any:
    """The type of an argument; without annotation, the type of its default. `lr` is a number."""
    hint = configurable_type(parameter.annotation)
    if hint is not Any:
        return hint
    default = parameter.default
    is_lr = parameter.name == LR and (default is None or default is parameter.empty)
    return float | None if is_lr else type_of_default(default)


def value_errors(registration: Registration, options: Mapping[str, Any]) -> Iterator[OptplugError]:
    """Find values of a wrong type, choices that do not exist, and learning rates below 0.

    A class of another package may accept them, and then fail in training, or train with another value.

    Args:
        registration: the optimizer or scheduler.
        options: its arguments, or the options of a parameter group.

    Yields:
        The errors, each with the name of the argument in `argument`.
    """
    declared, functions = configurable_arguments(registration), function_arguments(registration)
    for key, value in options.items():
        error: OptplugError | None = None
        if key == LR and registration.spec.kind == "optimizer" and value is not None and not callable(value):
            error = number_error(key, value, _LR_RANGE, registration.name)
        elif key in declared and key not in functions:
            error = _error_of(registration, declared[key], value)
        if error is not None:
            error.argument = key
            yield error


def _error_of(registration: Registration, parameter: inspect.Parameter, value: Any) -> OptplugError | None:
    allowed = _allowed(registration, parameter)
    if not allowed or _fits(allowed, value):
        return None
    parts, subject = allowed.get("anyOf", [allowed]), f"{registration.name}: {parameter.name}"
    arrays = [part for part in parts if part.get("type") == "array"]
    if isinstance(value, (list, tuple)) and arrays:
        sizes = [part["minItems"] for part in arrays if "minItems" in part]
        if len(sizes) == len(arrays) and len(value) not in sizes:
            return HyperparameterError(f"{subject} must be {_words(allowed)}, got {value!r}")
        items = [arrays[0].get("items", {})] * len(value) if "items" in arrays[0] else arrays[0].get("prefixItems", [])
        for i, (item, each) in enumerate(zip(items, value, strict=False)):
            if not _fits(item, each):
                message = f"{subject}[{i}] must be {_words(item)}, got {_shown(each)}"
                return HyperparameterTypeError(message, inside=(i,))
    choices = [choice for part in parts for choice in part.get("enum", ())]
    if choices and isinstance(value, str):
        hint = did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
        return HyperparameterError(f"{subject} must be {_words(allowed)}, got {value!r}{hint}")
    names = {part.get("type") for part in parts}
    if names <= {"integer", "number", "null"}:
        range_ = replace(any_number(parameter.name), holds=lambda _: True)
        return number_error(parameter.name, value, range_, registration.name)
    return HyperparameterTypeError(f"{subject} must be {_words(allowed)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__}){number_hint(value)}"


def _allowed(registration: Registration, parameter: inspect.Parameter) -> Schema:
    """The schema of the values of an argument; empty where the type is not certain."""
    default, hint = parameter.default, configurable_type(parameter.annotation)
    is_annotated = parameter.annotation is not parameter.empty
    schema = schema_of_type(hint) if is_annotated else _of_default(default)
    if parameter.name == LR and not schema and (default is None or default is parameter.empty):
        schema = any_of({"type": "number"}, {"type": "null"})
    if not is_annotated and type(default) in (int, float) and registration.spec.kind == "scheduler":
        schema = union([schema, {"type": "array"}])  # it may be a list with a number for each parameter group
    is_number = {part.get("type") for part in schema.get("anyOf", [schema])} <= {"integer", "number"}
    if not (parameter.name == LR and is_number and type(default) in (int, float)):
        schema = union([schema, {"type": "null"}])  # classes that are not type-checked use None as False or as 0
    if default is not parameter.empty and not _fits(schema, default):
        return {}  # the annotation does not hold
    if isinstance(default, (tuple, list)):
        schema = _with_length_of(default, schema, registration, parameter.name)
    return schema


def _of_default(default: Any) -> Schema:
    if isinstance(default, bool):
        return {"type": "boolean"}
    if isinstance(default, int):
        return any_of({"type": "number"}, {"type": "boolean"})
    if isinstance(default, float):
        return {"type": "number"}
    if isinstance(default, tuple) and default and all(type(item) in (int, float) for item in default):
        return {"type": "array", "items": {"type": "number"}, "minItems": len(default), "maxItems": len(default)}
    return {}


def _with_length_of(default: Any, schema: Schema, registration: Registration, name: str) -> Schema:
    """A schema whose lists have the length of the default; any length if the annotation or a declared case says so."""
    cases = [case[name] for case in declared_cases(registration) if isinstance(case.get(name), (tuple, list))]
    parts = schema.get("anyOf", [schema])
    if any(len(case) != len(default) for case in cases):
        parts = [{k: v for k, v in part.items() if k not in ("minItems", "maxItems")} for part in parts]
    elif all("minItems" in part for part in parts if part.get("type") == "array"):
        parts = [part for part in parts if part.get("minItems", len(default)) == len(default)]
    return union(parts)


def _fits(schema: Schema, value: Any) -> bool:
    """Whether a schema allows a value. A value that a configuration cannot have is allowed."""
    if not schema or not isinstance(value, _PLAIN):
        return True
    return any(_fits_part(part, value) for part in schema.get("anyOf", [schema]))


def _fits_part(schema: Schema, value: Any) -> bool:
    if not schema:
        return True
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "boolean":
        return isinstance(value, (bool, int, float))  # some classes annotate a number as bool
    if kind != "array":
        expected: dict[Any, type] = {"string": str, "null": type(None), "object": Mapping}
        return kind not in expected or isinstance(value, expected[kind])
    if isinstance(value, str):
        return bool(schema.get("items", {}).get("type") == "string")
    if not isinstance(value, (list, tuple)):
        return False
    prefix = schema.get("prefixItems", [])
    items = [*prefix, *[schema.get("items", {})] * (len(value) - len(prefix))]
    has_length = len(value) == schema.get("minItems", len(value))
    return has_length and all(_fits(item, each) for item, each in zip(items, value, strict=False))


def _words(schema: Schema) -> str:
    """What a schema allows, for messages; null is not mentioned beside other types."""
    parts = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    return " or ".join(dict.fromkeys(map(_words_of_part, parts))) or "None"


def _words_of_part(schema: Schema) -> str:
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        size = f"{schema['minItems']} " if "minItems" in schema else ""
        is_of_numbers = schema.get("items", {}).get("type") in ("integer", "number")
        return f"a list of {size}{'numbers' if is_of_numbers else 'values'}"
    words = {"boolean": "True or False", "string": "text", "object": "a mapping"}
    return words.get(schema.get("type", ""), "a number")
