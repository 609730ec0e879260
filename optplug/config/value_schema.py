"""JSON Schemas of annotations, and text in place of numbers."""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from optplug.config.fields import Schema, read_number


def any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def union(schemas: list[Schema]) -> Schema:
    """`anyOf`, flattened and without duplicates. Empty, which accepts every value, if one of the schemas is empty."""
    flat = [part for schema in schemas for part in (schema["anyOf"] if list(schema) == ["anyOf"] else [schema])]
    if not all(flat):
        return {}
    unique = [part for i, part in enumerate(flat) if part not in flat[:i]]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


_TYPE_NAMES: dict[Any, str] = {bool: "boolean", str: "string", type(None): "null", dict: "object"}
_ARRAY_TYPES = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


def schema_of_type(hint: Any, number: Callable[[str], Schema] = lambda type_: {"type": type_}) -> Schema:
    """The schema of an annotation; empty, which accepts every value, for types that a configuration cannot check.

    Args:
        hint: the annotation.
        number: returns the schema of a number; its argument is `"integer"` or `"number"`, the default schema's type.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return schema_of_type(parts[0], number)
    if origin in (typing.Union, types.UnionType):
        return union([schema_of_type(part, number) for part in parts])
    if origin is typing.Literal:
        return {"enum": list(parts)} if all(json_value(part) is not ... for part in parts) else {}
    if hint in (int, float):
        return number("integer" if hint is int else "number")
    if isinstance(hint, collections.abc.Hashable) and hint in _TYPE_NAMES:
        return {"type": _TYPE_NAMES[hint]}
    if (getattr(hint, "__module__", ""), getattr(hint, "__name__", "")) == ("torch", "dtype"):
        return {"type": "string"}
    if origin is tuple and ... not in parts:
        return _tuple([schema_of_type(part, number) for part in parts])
    if (origin or hint) in _ARRAY_TYPES or origin is tuple:
        items = schema_of_type(parts[0], number) if parts else {}
        return {"type": "array", "items": items} if items else {"type": "array"}
    if origin in (dict, collections.abc.Mapping):
        return {"type": "object", "additionalProperties": schema_of_type(parts[1], number)}
    return {}


def _tuple(items: list[Schema]) -> Schema:
    length = {"minItems": len(items), "maxItems": len(items)}
    if all(item == items[0] for item in items):
        return {"type": "array", "items": items[0] if items else {}, **length}
    return {"type": "array", "prefixItems": items, **length}


def json_value(value: Any) -> Any:
    """The value as JSON represents it; `...` for a value that JSON cannot represent."""
    if value is inspect.Parameter.empty or (isinstance(value, float) and not math.isfinite(value)):
        return ...
    if isinstance(value, (tuple, list)):
        items = [json_value(item) for item in value]
        return ... if any(item is ... for item in items) else items
    if type(value) in (str, int, float, bool, type(None)):
        return value
    return ...


def takes_number_only(schema: Schema) -> bool:
    """Whether a schema from `schema_of_type` allows a number and no text."""
    allowed = schema.get("anyOf", [schema])
    names = {part.get("type") for part in allowed}
    return bool(names & {"integer", "number"}) and "string" not in names and all("enum" not in part for part in allowed)


def numbers_from_text(schema: Schema, value: Any) -> Any:
    """A value with numbers in place of text where a schema allows a number and no text.

    Where it allows whole numbers only, a whole float becomes an int.

    Args:
        schema: from `schema_of_type`.
        value: the value; the items of lists and mappings are converted too.
    """
    allowed = schema.get("anyOf", [schema])
    if isinstance(value, (str, float)):
        names = {part.get("type") for part in allowed}
        is_whole = "integer" in names and (isinstance(value, str) or "number" not in names)
        return read_number(value, whole=is_whole) if takes_number_only(schema) else value
    for part in allowed:
        if isinstance(value, (list, tuple)) and part.get("type") == "array":
            schemas = part.get("prefixItems", [])
            schemas = [*schemas, *[part.get("items", {})] * (len(value) - len(schemas))]
            items = [numbers_from_text(each, item) for each, item in zip(schemas, value, strict=False)]
            return type(value)([*items, *value[len(items) :]])
        if isinstance(value, Mapping) and part.get("type") == "object":
            of_values = part.get("additionalProperties", {})
            return {key: numbers_from_text(of_values, item) for key, item in value.items()}
    return value
