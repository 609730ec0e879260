"""The keys of a mapping, declared: `Field`, and the kinds of values that a field can have.

A kind reads a value, which checks it, and describes the allowed values as JSON Schema and in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from optplug.errors import ConfigError, ConfigTypeError, ErrorCollector, Loc, did_you_mean, listing, suggest
from optplug.optim.ranges import Range

Schema = dict[str, Any]


class Unresolved(str):
    """A value that is not known yet, such as an interpolation to another file. Its text is what is written.

    Every check accepts it.
    """


def has_unresolved(value: Any) -> bool:
    """Whether a value, or a value inside of a mapping or a list, is not known yet."""
    if isinstance(value, Mapping):
        return any(map(has_unresolved, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(has_unresolved, value))
    return isinstance(value, Unresolved)


class Kind(Protocol):
    """A kind of values."""

    def read(self, value: Any) -> Any:
        """Check a value, and return it in the form in which it is used.

        Raises:
            ConfigError: the value is not allowed. `loc` is the location inside the value.
            ConfigTypeError: the value has the wrong type.
        """

    def schema(self) -> Schema:
        """The JSON Schema of the allowed values."""

    def __str__(self) -> str:
        """The allowed values in words."""


@dataclass(frozen=True)
class Field:
    """A key of a mapping in a configuration.

    Attributes:
        name: the key.
        kind: the kind of its values.
        words: what the key means, as Markdown.
        default: the value where the key is absent; for a required key `...`.
        is_nullable: whether None means that the key is absent.
        needs: `"metric"` for a key of schedulers that take a metric, `"time"` for a key of the other schedulers.
        inert: the value that is accepted where the key does not apply.
        refusal: the message where the key does not apply, with `{name}` for the scheduler, `{key}` and `{value}`.
    """

    name: str
    kind: Kind
    words: str
    default: Any = None
    is_nullable: bool = False
    needs: str = ""
    inert: Any = None
    refusal: str = ""

    def applies(self, *, takes_metric: bool) -> bool:
        """Whether a scheduler has the key.

        Args:
            takes_metric: whether the scheduler takes a metric.
        """
        return self.needs in ("", "metric" if takes_metric else "time")

    def read(self, value: Any) -> Any:
        """As `Kind.read`. Returns the default for None if the field is nullable, and an `Unresolved` unchanged."""
        if isinstance(value, Unresolved) and not isinstance(self.kind, ListOf):
            return value
        return self.default if value is None and self.is_nullable else self.kind.read(value)

    def schema(self) -> Schema:
        """The JSON Schema of the field: description, allowed values and default."""
        return {"description": self.plain_words, **self._value_schema(), **self._default_schema()}

    @property
    def plain_words(self) -> str:
        """What the key means, without Markdown."""
        return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", self.words).replace("`", "")

    def _value_schema(self) -> Schema:
        schema = self.kind.schema()
        if not self.is_nullable:
            return schema
        return {"enum": [*schema["enum"], None]} if "enum" in schema else {"anyOf": [schema, {"type": "null"}]}

    def _default_schema(self) -> Schema:
        if self.default is None or self.default is ...:
            return {}
        return {"default": list(self.default) if isinstance(self.default, tuple) else self.default}


Table = Mapping[str, Field]
"""The fields of a mapping, by key."""


def table(*fields: Field) -> Table:
    """The fields by key, as an immutable mapping."""
    return MappingProxyType({each.name: each for each in fields})


def read_fields(
    collector: ErrorCollector, given: Mapping[str, Any], fields: Iterable[Field], loc: Loc
) -> dict[str, Any]:
    """The values of the keys in a mapping that are fields. Errors are collected, and their values are left out.

    Args:
        collector: collects the errors.
        given: the mapping; other keys are ignored.
        fields: the fields.
        loc: the location of the mapping.
    """
    found = {}
    for each in fields:
        if each.name in given:
            with collector.collect((*loc, each.name)):
                found[each.name] = each.read(given[each.name])
    return found


def check_keys(
    collector: ErrorCollector, subject: str, given: Mapping[str, Any], fields: Collection[str], loc: Loc
) -> None:
    """Collect an error for each key that is not the name of a field."""
    for key in given:
        if key not in fields:
            collector.add(ConfigError(f"{subject} has no key {key!r}{suggest(str(key), fields)}"), (*loc, str(key)))


# ------------------------------------------------------------------------------------------------ kinds


@dataclass(frozen=True)
class Choice:
    """One of several words.

    Attributes:
        values: the words.
        reason: why other words are not allowed, for messages.
    """

    values: tuple[str, ...]
    reason: str = ""

    def read(self, value: Any) -> str:
        if isinstance(value, str) and value in self.values:
            return value
        reason = f", because {self.reason}" if self.reason else ""
        raise ConfigError(f"must be {self}{reason}, got {value!r}{did_you_mean(str(value), self.values)}")

    def schema(self) -> Schema:
        return {"enum": list(self.values)}

    def __str__(self) -> str:
        return " or ".join(map(repr, self.values)) if len(self.values) <= 2 else f"one of {listing(self.values)}"


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ConfigTypeError(f"must be {self}, got {value!r} ({type(value).__name__})")
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Number:
    """A finite number in a range. Text that is a number is taken as that number.

    Attributes:
        range_: the range.
        is_whole: whether the number must be whole.
        noun: what the number is, for messages.
    """

    range_: Range
    is_whole: bool = False
    noun: str = "a number"

    def read(self, value: Any) -> float:
        number = read_number(value, whole=self.is_whole)
        if isinstance(number, bool) or not isinstance(number, int if self.is_whole else (int, float)):
            raise ConfigTypeError(f"must be {self.noun}, got {value!r}")
        if not self.range_.holds(number):
            raise ConfigError(f"must be {self.range_.words}, got {str(value)[:20]}")
        return number

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "integer" if self.is_whole else "number", **self.range_.bounds}, NUMBER_TEXT]}

    def __str__(self) -> str:
        return f"{self.noun}, {self.range_.words}"


NUMBER_PATTERN = r"^\s*[-+]?(\d+(_\d+)*(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*$"
NUMBER_TEXT: Schema = {"$ref": "#/$defs/number_text"}
"""The schema of text that is a number, such as `1e-3`, which many YAML readers read as text."""


def read_number(value: Any, *, whole: bool = False) -> Any:
    """The number that a text is; other values unchanged.

    Args:
        value: any value.
        whole: whether a whole number is required. `"1e3"` and the float 1000.0, which some YAML readers return for 1e3,
            are then the int 1000.
    """
    number = value
    if isinstance(value, str) and re.match(NUMBER_PATTERN, value, re.ASCII):
        digits = value.strip()
        is_integer = digits.lstrip("+-").replace("_", "").isdigit()
        number = int(digits) if whole and is_integer else float(digits)  # integers stay exact above 2**53
    if whole and isinstance(number, float) and number.is_integer():
        return int(number)
    return number


@dataclass(frozen=True)
class Text:
    """A text that is not empty."""

    noun: str

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ConfigTypeError(f"must be {self}, got {value!r}")
        return value

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1}

    def __str__(self) -> str:
        return self.noun


@dataclass(frozen=True)
class ListOf:
    """A list of values of one kind.

    Attributes:
        item: the kind of the items.
        noun: what the list is, for messages.
        allows_single: whether a single value stands for a list with one item.
        allows_empty: whether the list may be empty.
    """

    item: Kind
    noun: str
    allows_single: bool = True
    allows_empty: bool = False

    def read(self, value: Any) -> tuple[Any, ...]:
        single = (str, int, float) if isinstance(self.item, Number) else str
        is_single = isinstance(value, Unresolved) or (isinstance(value, single) and self.allows_single)
        items = [value] if is_single else value
        is_list = isinstance(items, Sequence) and not isinstance(items, (str, bytes))
        if not is_list or not (items or self.allows_empty) or (is_single and value == ""):
            raise ConfigTypeError(f"must be {self}, got {value!r}")
        collector = ErrorCollector()
        found = []
        for i, item in enumerate(items):
            with collector.collect(() if is_single else (i,)):
                found.append(item if isinstance(item, Unresolved) else self.item.read(item))
        collector.raise_collected()
        return tuple(found)

    def schema(self) -> Schema:
        several = {"type": "array", "items": self.item.schema(), "minItems": 0 if self.allows_empty else 1}
        return {"anyOf": [self.item.schema(), several]} if self.allows_single else several

    def __str__(self) -> str:
        return self.noun


@dataclass(frozen=True)
class Nested:
    """A value with a parser of its own, such as a mapping of a table.

    Attributes:
        definition: the name of its definition in the JSON Schema.
        words: the allowed values.
        is_mapping: whether the value must be a mapping.
    """

    definition: str
    words: str
    is_mapping: bool = False

    def read(self, value: Any) -> Any:
        if self.is_mapping and not isinstance(value, Mapping):
            raise ConfigTypeError(f"must be {self}, got {value!r}")
        return value

    def schema(self) -> Schema:
        return {"$ref": f"#/$defs/{self.definition}"}

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Checked:
    """A kind with a further check.

    Attributes:
        kind: the kind.
        check: raises an error for a value that is not allowed.
        constraint: the check as JSON Schema keywords, as far as it can be expressed so.
    """

    kind: Kind
    check: Callable[[Any], None]
    constraint: Schema = field(default_factory=dict, hash=False)

    def read(self, value: Any) -> Any:
        value = self.kind.read(value)
        self.check(value)
        return value

    def schema(self) -> Schema:
        return {**self.kind.schema(), **self.constraint}

    def __str__(self) -> str:
        return str(self.kind)
