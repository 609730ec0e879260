"""JSON Schema of a configuration, for editors: completion, documentation and checks, with all installed plugins."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optplug.config.arguments import optimizer_fields, reserved_keys, scheduler_fields
from optplug.config.fields import NUMBER_PATTERN, NUMBER_TEXT, Field, Schema, Table
from optplug.config.form import (
    ARGS,
    AUTO,
    BASE_KEY,
    CORRECT_KEYS,
    DEFAULT_FALLBACK,
    ENTRY,
    GROUP_RULE,
    LENGTH,
    MATRICES,
    MULTIPLIERS,
    NOT_BASE,
    NOT_FALLBACK,
    OPTIMIZER,
    OPTIMIZER_WIDE_OPTIONS,
    OVERRIDE,
    PRESETS,
    SCHEDULER,
    SELECTORS,
    SUBCOMMANDS,
    TOP_LEVEL,
    VERBOSE,
    WARMUP,
)
from optplug.config.lengths import length_argument, length_arguments
from optplug.config.model import LINK_PATTERN
from optplug.config.value_schema import any_of, json_value, schema_of_type, union
from optplug.errors import PluginError
from optplug.optim.ranges import Range, declared_ranges
from optplug.registry import Registration, registry
from optplug.registry.signature import (
    Argument,
    accepts_any_argument,
    base_argument,
    documented_arguments,
    function_arguments,
    requires_base,
)
from optplug.registry.specs import lookup_key

Detail = Literal["quick", "complete", "names"]
"""Which classes are loaded for a schema: see `json_schema`."""

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NULL: Schema = {"type": "null"}
TEXT: Schema = {"type": "string", "minLength": 1}
MAPPING: Schema = {"type": "object"}


def json_schema(detail: Detail = "quick") -> Schema:
    """The JSON Schema (draft 2020-12) of a configuration file.

    The keys of a configuration are at the top of the file or under a subcommand of LightningCLI. The function loads
    optimizers and schedulers to read their arguments. Those that cannot be loaded are left out and listed in
    `$comment`. A class that is not loaded is in the schema by its name, and any argument is accepted.

    Args:
        detail: which classes are loaded. `"quick"`: all except those of adapters of packages other than torch.
            `"complete"`: all; packages that are slow to import then take most of the time. `"names"`: none.

    The arguments of classes of adapters have no description in the schema: docstrings of such packages are long. Equal
    arguments of these classes share one definition.

    Differences from `optplug.config.build.parse_and_check`:

    - The schema accepts more: infinity and NaN; 3.0 for a whole number; values outside of ranges that a class checks
      but does not declare in `ranges`; invalid expressions, regular expressions and dtypes; contradictory values.
    - The schema accepts less: it checks values against annotations, and accepts links only for numbers.
    """
    missing = [str(quarantined) for quarantined in registry.quarantined]
    optimizers, schedulers = (_load_registered(kind, detail, missing) for kind in ("optimizer", "scheduler"))
    link = {"type": "string", "pattern": f"^{LINK_PATTERN.pattern}$", "description": "A link, such as module.lr."}
    any_option = {key: True for optimizer in optimizers for key in optimizer.group_options}
    definitions = _Definitions(
        {
            "link": link,
            "number_text": {"type": "string", "pattern": NUMBER_PATTERN, "description": "Text that is a number."},
            "optimizer": _optimizer(optimizers),
            "optimizer.mapping": _mapping("optimizer"),
            "scheduler": _scheduler(schedulers),
            "scheduler.mapping": _scheduler_mapping(),
            "scheduler.constant": _warmup_only(),
            "length": _length(),
            "warmup": _warmup(),
            "preset": _preset(),
            "param_groups": _param_groups(_ref("group")),
            "is_rule": {"type": "object", "not": {"required": ["preset"]}},
            "param_groups.forms": _forms_of_param_groups(),
        }
    )
    group = _group(definitions, any_option, list(MULTIPLIERS))
    group["additionalProperties"] = any(not optimizer.is_loaded for optimizer in optimizers)
    definitions.schemas["group"] = group
    groups, mappings = [], {}
    for kind, known in (("optimizer", optimizers), ("scheduler", schedulers)):
        definitions.schemas[f"{kind}.name"] = _name(known)
        cases: dict[str, tuple[Schema, list[Schema]]] = {}  # each mapping with the names that it is for
        for registered in known:
            _define_name(definitions, registered)
            arguments = _define_arguments(definitions, registered)
            further: dict[str, Schema] = {}
            if kind == "optimizer":
                groups.append(_define_groups(definitions, registered, arguments))
                further["param_groups"] = groups[-1]
            mapping = _define_mapping(definitions, registered, arguments, further)
            mappings[kind, registered.name] = mapping
            cases.setdefault(json.dumps(mapping), (mapping, []))[1].append(_ref(f"{registered.definition}.name"))
        definitions.schemas[f"{kind}.cases"] = {
            "if": {"required": ["name"]},
            "then": {
                "allOf": [
                    {"if": {"properties": {"name": _one_of(names)}}, "then": mapping}
                    for mapping, names in cases.values()
                ]
            },
        }
        definitions.schemas[f"{kind}.given_once"] = _given_once(name for each in known for name in each.plain_arguments)
    if any(map(_takes_matrices_only, optimizers)):
        definitions.schemas["fallback"] = _fallback(optimizers, mappings.get(("optimizer", DEFAULT_FALLBACK), False))
    if any(map(_is_wrapper, optimizers)):
        definitions.schemas["base"] = _base(optimizers)
    definitions.schemas["configuration"] = _configuration(optimizers, groups)
    subcommands = {key: _ref("configuration") for key in SUBCOMMANDS}
    comment = {"$comment": "Left out: " + " | ".join(missing)} if missing else {}
    return {
        "$schema": DRAFT,
        "title": "A configuration of optplug",
        **comment,
        "type": "object",
        "allOf": [_ref("configuration")],
        "properties": subcommands,
        "$defs": dict(sorted(definitions.schemas.items())),
    }


class _Definitions:
    """The definitions of a schema.

    Attributes:
        schemas: the definitions by name.
    """

    def __init__(self, schemas: dict[str, Schema]) -> None:
        self.schemas = schemas
        self._references: dict[tuple[str, str], Schema] = {}
        self._counts: Counter[str] = Counter()

    def share(self, name: str, schema: Schema) -> Schema:
        """Return a reference to a definition with this content. It is defined unless an earlier one is equal.

        Args:
            name: the name of the definition; the second and further ones with other content have a number after it.
            schema: the content.
        """
        key = name, json.dumps(schema, sort_keys=True)
        if key not in self._references:
            self._counts[name] += 1
            numbered = name if self._counts[name] == 1 else f"{name}.{self._counts[name]}"
            self.schemas[numbered] = schema
            self._references[key] = _ref(numbered)
        return self._references[key]

    def define(self, registered: _RegisteredClass, part: str, schema: Schema) -> Schema:
        """Define a part of the schema of a class, and return a reference. Classes of adapters share equal ones.

        Args:
            registered: the class.
            part: the name of the part; empty for the mapping with the name of the class.
            schema: the content.
        """
        if registered.is_foreign:
            return self.share(f"{registered.kind}.{part or 'class'}", schema)
        name = f"{registered.definition}.{part}" if part else registered.definition
        self.schemas[name] = schema
        return _ref(name)


# ------------------------------------------------------------------------------------------ registered classes


@dataclass(frozen=True)
class _RegisteredClass:
    """A registered optimizer or scheduler with its class.

    Attributes:
        name: the shortest unambiguous name: `adam`, or `plugin:adam` where several plugins register `adam`.
        registration: the registration.
        cls: the class; None if it is not loaded.
        arguments: the constructor arguments that a configuration can set; none if the class is not loaded.
    """

    name: str
    registration: Registration
    cls: Any = None
    arguments: Sequence[Argument] = ()

    @property
    def is_loaded(self) -> bool:
        return self.cls is not None

    @property
    def definition(self) -> str:
        """The key in `$defs`. Its colon distinguishes it from the other definitions."""
        return re.sub(r"(?a)[^\w:.-]", lambda m: f"_{ord(m[0]):x}_", f"{self.kind}:{self.name}")

    @property
    def kind(self) -> str:
        return self.registration.spec.kind

    @property
    def required(self) -> list[str]:
        return [argument.name for argument in self.arguments if argument.required]

    @property
    def requires_base(self) -> bool:
        return self.is_loaded and _is_wrapper(self) and requires_base(self.registration)

    @property
    def direct_arguments(self) -> list[str]:
        """The arguments that can be written next to `name`. All arguments can be written under `args`."""
        reserved = reserved_keys(self.registration)
        return [argument.name for argument in self.arguments if argument.name not in reserved]

    @property
    def group_options(self) -> list[str]:
        """The arguments that a parameter group can override."""
        reserved = (*OPTIMIZER_WIDE_OPTIONS, *SELECTORS, *MULTIPLIERS, "name", "preset")
        return [argument.name for argument in self.arguments if argument.name not in reserved]

    @property
    def plain_arguments(self) -> list[str]:
        """The direct arguments whose names are no keys of optplug, neither here nor in a group rule."""
        keys = SCHEDULER.keys() if self.kind == "scheduler" else _OPTIMIZER_KEYS
        return [name for name in self.direct_arguments if name not in keys]

    @property
    def is_foreign(self) -> bool:
        """Whether an adapter registers the class."""
        return self.registration.spec.precedence > 0

    @functools.cached_property
    def argument_schemas(self) -> dict[str, Schema]:
        """The schemas of the arguments, by name."""
        ranges = declared_ranges(self.cls)
        return {each.name: self._argument_schema(each, ranges.get(each.name)) for each in self.arguments}

    @property
    def accepts_any_argument(self) -> bool:
        return not self.is_loaded or accepts_any_argument(self.registration)

    def _argument_schema(self, argument: Argument, range_: Range | None) -> Schema:
        number_types = []

        def number(type_: str) -> Schema:
            number_types.append(type_)
            bounds = {} if range_ is None else range_.bounds
            return any_of({"type": "integer" if range_ is not None and range_.whole else type_, **bounds}, NUMBER_TEXT)

        if argument.name in function_arguments(self.registration):
            schema = _function()
        else:
            schema = schema_of_type(argument.type, number)
            if not schema and range_ is not None:
                schema = dict(range_.bounds)
            if argument.default is None and schema:
                schema = union([schema, NULL])
        if schema and number_types and self.kind == "optimizer":
            schema = union([schema, _ref("link")])
        if schema and argument.name in length_arguments(self.registration):
            schema = _with_units(schema)
            if argument.name == length_argument(self.registration):
                schema = union([schema, {"const": AUTO}])
        description = "" if self.is_foreign else argument.description
        if range_ is not None and not range_.bounds:
            description = f"{description} ({range_.words})".strip()
        schema = {"description": description, **schema} if description else schema
        default = json_value(argument.default)
        return schema if argument.required or default is ... else {**schema, "default": default}

    def requires(self, name: str) -> Schema:
        """The condition that an argument is given, either next to `name` or under `args`."""
        under_args = {"required": ["args"], "properties": {"args": {"type": "object", "required": [name]}}}
        return any_of({"required": [name]}, under_args) if name in self.direct_arguments else under_args


_OPTIMIZER_KEYS = frozenset({*OPTIMIZER, *MATRICES, *ENTRY, *GROUP_RULE, "preset"})
"""The keys of optplug in the mapping of an optimizer and in a group rule."""


def _define_name(definitions: _Definitions, registered: _RegisteredClass) -> None:
    """Define the spellings of a name: with its plugin, or without it if the name alone is unambiguous."""
    plugin = registered.registration.plugin.name
    prefix = f"{_spelling_pattern(plugin)}:"
    if ":" not in registered.name:
        prefix = f"({prefix})?"
    name = {"pattern": f"(^|:){_spelling_pattern(registered.registration.name)}$"}
    name |= definitions.share(f"plugin:{plugin}", {"type": "string", "pattern": f"^{prefix}[^:]*$"})
    definitions.schemas[f"{registered.definition}.name"] = name


def _define_groups(definitions: _Definitions, optimizer: _RegisteredClass, arguments: Schema) -> Schema:
    """Define the `param_groups` of an optimizer, and return a reference to them.

    Args:
        definitions: the definitions.
        optimizer: the optimizer.
        arguments: the reference from `_define_arguments`.
    """
    group = _ref("group")
    # The rules apply to the fallback of an optimizer of matrices, and to a base, which have other options.
    if not _takes_matrices_only(optimizer) and not _is_wrapper(optimizer):
        names = [argument.name for argument in optimizer.arguments]
        is_open = optimizer.accepts_any_argument
        multipliers = [key for key, target in MULTIPLIERS.items() if target in names or is_open]
        plain = optimizer.plain_arguments
        schemas = optimizer.argument_schemas
        options = {key: True if key in plain else schemas[key] for key in optimizer.group_options}
        refused = dict.fromkeys(OPTIMIZER_WIDE_OPTIONS, False) if is_open else {}
        schema = _group(definitions, {**options, **refused}, multipliers)
        schema = {**schema, "allOf": [*schema["allOf"], arguments], "additionalProperties": is_open}
        if optimizer.is_foreign and not is_open:  # shorter, but some editors do not know this keyword
            del schema["additionalProperties"]
            wide = [key for key in OPTIMIZER_WIDE_OPTIONS if key in plain]
            own = {key: value for key, value in schema["properties"].items() if value is not True}
            schema |= {"properties": {**own, **dict.fromkeys(wide, False)}, "unevaluatedProperties": False}
        group = definitions.define(optimizer, "group", schema)
    return definitions.define(optimizer, "param_groups", _param_groups(group))


def _define_arguments(definitions: _Definitions, registered: _RegisteredClass) -> Schema:
    """Define the arguments of a class whose names are no keys of optplug, and return a reference to them."""
    schemas = {key: registered.argument_schemas[key] for key in registered.plain_arguments}
    if registered.is_foreign:
        schemas = {key: definitions.share(f"arg:{key}", schema) for key, schema in schemas.items()}
    return definitions.define(registered, "arguments", {"properties": schemas})


def _define_mapping(
    definitions: _Definitions, registered: _RegisteredClass, arguments: Schema, groups: Mapping[str, Any]
) -> Schema:
    """Define the mapping with the name of a class, and return a reference to it.

    Args:
        definitions: the definitions.
        registered: the class.
        arguments: the reference from `_define_arguments`.
        groups: the schema of the key `param_groups`, for an optimizer.
    """
    schemas = registered.argument_schemas
    plain = dict.fromkeys(registered.plain_arguments, True)
    is_closed = {} if registered.accepts_any_argument else {"additionalProperties": False}
    args: Schema = {"type": ["object", "null"], **arguments}
    if reserved := {name: schemas[name] for name in schemas if name not in plain}:
        args["properties"] = reserved
    if not registered.accepts_any_argument:
        args["unevaluatedProperties"] = False
    other_keys = {**_other_keys(registered), **groups}
    # A key of a list entry, such as `match`, is an argument of the class outside of lists. Both are accepted.
    direct = {name: schemas[name] for name in registered.direct_arguments if name not in plain}
    direct |= {key: any_of(direct[key], other_keys.pop(key)) for key in direct if key in other_keys}
    kind = registered.kind
    keys: Schema = _ref(f"{kind}.given_once")
    keys["properties"] = {key: schema for key, schema in other_keys.items() if key not in groups}
    if "warmup_steps" in other_keys:
        keys["dependentSchemas"] = {"warmup": {"properties": {"warmup_steps": False}}}
    mapping = {
        "properties": {
            "name": True,
            "args": definitions.define(registered, "args", args),
            **{key: groups.get(key, True) for key in other_keys},
            **plain,
            **direct,
        },
        "allOf": [
            arguments,
            definitions.share(f"{kind}.keys", keys),
            *([_given_once(direct)] if direct else []),
            *(registered.requires(name) for name in registered.required),
            *([{"required": [BASE_KEY]}] if registered.requires_base else []),
        ],
        **is_closed,
    }
    reference = definitions.define(registered, "", mapping)
    return {"description": registered.registration.spec.summary, **reference} if registered.is_loaded else reference


def _given_once(names: Iterable[str]) -> Schema:
    """The condition that arguments next to `name` are not also given under `args`."""
    return {"dependentSchemas": {name: {"properties": {"args": {"properties": {name: False}}}} for name in names}}


def _load_registered(kind: str, detail: Detail, missing: list[str]) -> list[_RegisteredClass]:
    """Load registered classes of a kind.

    Args:
        kind: the kind.
        detail: which classes are loaded, as in `json_schema`.
        missing: receives messages about those that cannot be loaded.
    """
    found = []
    for name, registration in zip(registry.names(kind), registry.registrations(kind), strict=True):
        if detail == "names" or (detail == "quick" and not _is_quick(registration)):
            found.append(_RegisteredClass(name, registration))
            continue
        try:
            cls = registry.get(kind, registration.qualified_name)
            found.append(_RegisteredClass(name, registration, cls, documented_arguments(registration)))
        except PluginError as error:
            missing.append(" ".join(str(error).split()))
    return found


def _is_quick(registration: Registration) -> bool:
    """Whether a class can be loaded without an import of a package other than torch that an adapter serves."""
    target = registration.spec.target
    return registration.spec.precedence == 0 or not isinstance(target, str) or target.startswith("torch.")


def _spelling_pattern(name: str) -> str:
    """A regular expression for all spellings of a name. The spellings differ in case, `-` and `_`."""
    letters = []
    for c in lookup_key(name):
        cases = sorted({c, *(u for u in (c.upper(),) if len(u) == 1)})
        letters.append(f"[{''.join(cases)}]" if len(cases) > 1 else re.sub(r"([\\^$.*+?()[\]{}|/])", r"\\\1", c))
    return "[-_]*" + "".join(f"{letter}[-_]*" for letter in letters)


def _function() -> Schema:
    """The schema of an argument that is a function of the epoch."""
    one = {"anyOf": [{**TEXT, "examples": ["0.95 ** epoch", *registry.names("function")]}, {"type": "number"}]}
    return union([one, {"type": "array", "items": one}])


# ------------------------------------------------------------------------------------------ keys of a configuration


def _configuration(optimizers: list[_RegisteredClass], groups: list[Schema]) -> Schema:
    """The schema of the top level. `groups` has the schemas of `param_groups` for the optimizers."""
    properties = _properties([*TOP_LEVEL.values(), OVERRIDE, VERBOSE])
    # Which schema the groups have depends on the optimizer; see below.
    properties["param_groups"] = {"description": properties["param_groups"]["description"]}
    for wrong, right in CORRECT_KEYS.items():  # unlike `false`, `not: {}` can have a description
        properties[wrong] = {"description": f"The key is {right}.", "not": {}, "doNotSuggest": True}
    forms, branches = [], []
    combined = {"type": "object", "required": ["combine"]}
    entry_keys = ("param_groups", "scheduler", "monitor", "mode")
    in_entries = {"properties": dict.fromkeys(entry_keys, NULL)}  # with a list, these are keys of its entries
    for form, then in (({"type": "array"}, in_entries), (combined, {"properties": {"param_groups": NULL}})):
        forms.append({"if": _has_optimizer(form), "then": then})
    names_of_groups: dict[str, list[Schema]] = {}
    for optimizer, groups_of_optimizer in zip(optimizers, groups, strict=True):
        names_of_groups.setdefault(groups_of_optimizer["$ref"], []).append(_ref(f"{optimizer.definition}.name"))
    for reference, names in names_of_groups.items():
        name = _one_of(names)
        condition = {"properties": {"optimizer": any_of(name, {"type": "object", "properties": {"name": name}})}}
        branches.append({"if": condition, "then": {"properties": {"param_groups": {"$ref": reference}}}})
    known = _ref("optimizer.name")
    is_known = any_of(known, {"type": "object", **_has_name(known)})
    of_any = {"properties": {"param_groups": _ref("param_groups")}}
    groups_of_name = {"if": _has_optimizer(is_known), "then": {"allOf": branches}, "else": of_any}
    return {"properties": properties, "allOf": [*forms, groups_of_name]}


def _properties(fields: Iterable[Field]) -> dict[str, Any]:
    return {field.name: field.schema() for field in fields}


def _has_name(name: Schema) -> Schema:
    """The condition that a mapping has a name."""
    return {"required": ["name"], "properties": {"name": name}}


def _one_of(names: list[Schema]) -> Schema:
    return any_of(*names) if len(names) > 1 else names[0]


def _has_optimizer(schema: Schema) -> Schema:
    return {"required": ["optimizer"], "properties": {"optimizer": schema}}


def _with_value(key: str, value: Any) -> Schema:
    return {"type": "object", "required": [key], "properties": {key: {"const": value}}}


def _refused(keys: Iterable[str], optimizers: list[_RegisteredClass]) -> dict[str, bool]:
    """The schemas of keys that are not allowed, except where an optimizer has an argument of the same name."""
    return {key: False for key in keys if not any(key in known.direct_arguments for known in optimizers)}


def _optimizer(optimizers: list[_RegisteredClass]) -> Schema:
    selecting = [{"required": [key]} for key in SELECTORS] + [_with_value("rest", True)]
    selects = {"if": {"minItems": 2}, "then": {"items": {"anyOf": selecting}}}
    one_rest = {"contains": _with_value("rest", True), "minContains": 0, "maxContains": 1}
    rest_alone = {"if": _with_value("rest", True), "then": {"properties": _refused(SELECTORS, optimizers)}}
    item = {"allOf": [_ref("optimizer.mapping"), rest_alone]}
    several = {"type": "array", "items": item, "minItems": 1, **selects, **one_rest}
    single = {"allOf": [_ref("optimizer.mapping"), {"properties": _refused(ENTRY, optimizers)}]}
    not_combined = {"scheduler": False, **_refused(MATRICES, optimizers)}
    entry = {"allOf": [item, {"properties": not_combined}]}
    entries = {**several, "items": entry, "description": "The optimizers that are combined into one."}
    combined = {"properties": {"combine": entries}, "additionalProperties": False}
    # `allOf` of conditions instead of `anyOf` of the forms: editors then mark the wrong value, not the whole optimizer.
    return {
        "anyOf": [*_name_only(optimizers)["anyOf"], {"type": ["object", "array", "null"]}],
        "allOf": [
            {"if": {"type": "array"}, "then": several},
            {"if": {"type": "object", "required": ["combine"]}, "then": combined},
            {"if": {"type": "object", "not": {"required": ["combine"]}}, "then": single},
        ],
    }


def _scheduler(schedulers: list[_RegisteredClass]) -> Schema:
    return {
        "anyOf": [*_name_only(schedulers)["anyOf"], {"type": ["object", "null"]}],
        "if": MAPPING,
        "then": _ref("scheduler.mapping"),
    }


def _name_only(known: list[_RegisteredClass]) -> Schema:
    """The schema of a name instead of a mapping, for classes without required arguments and without a required base."""
    return _name([each for each in known if not each.required and not each.requires_base])


def _name(known: list[_RegisteredClass]) -> Schema:
    names: Schema = {"enum": [registered.name for registered in known]} if known else {"not": {}}
    return {"anyOf": [names, *(_ref(f"{registered.definition}.name") for registered in known)]}


def _mapping(kind: str) -> Schema:
    return {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"description": f"The {kind}; see `optplug list`.", **_ref(f"{kind}.name")}},
        "allOf": [_ref(f"{kind}.cases")],
    }


def _takes_matrices_only(optimizer: _RegisteredClass) -> bool:
    return "matrix_only" in optimizer.registration.spec.capabilities


def _is_wrapper(optimizer: _RegisteredClass) -> bool:
    return bool(base_argument(optimizer.registration))


def _fallback(known: list[_RegisteredClass], default: Schema | bool) -> Schema:
    """The schema of the fallback of an optimizer of matrices: an optimizer whose name has a default.

    Args:
        known: the optimizers.
        default: the schema of a mapping without name.
    """
    others = [key for key in (*ENTRY, *MATRICES) if key not in SELECTORS]
    schema = _inner_optimizer(known, NOT_FALLBACK, others)
    mapping = schema["then"]
    del mapping["required"]
    without_name = {"if": {"not": {"required": ["name"]}}, "then": default}
    return {**schema, "then": {**mapping, "allOf": [*mapping["allOf"], without_name]}}


def _base(known: list[_RegisteredClass]) -> Schema:
    """The schema of the optimizer that another one wraps."""
    return _inner_optimizer(known, NOT_BASE, (*ENTRY, *MATRICES))


def _inner_optimizer(known: list[_RegisteredClass], capabilities: Collection[str], keys: Iterable[str]) -> Schema:
    """The schema of an optimizer within another one.

    Args:
        known: the optimizers.
        capabilities: an optimizer with one of these is not allowed.
        keys: keys that are not allowed.
    """
    refused = [each for each in known if not each.registration.spec.capabilities.isdisjoint(capabilities)]
    not_refused = {"not": any_of(*(_ref(f"{each.definition}.name") for each in refused))} if refused else {}
    mapping = _mapping("optimizer")
    name = {**mapping["properties"]["name"], **not_refused}
    return {
        "anyOf": [{"type": "string", **_ref("optimizer"), **not_refused}, MAPPING],
        "if": MAPPING,
        "then": {**mapping, "properties": {"name": name, **_refused(keys, known)}},
    }


def _scheduler_mapping() -> Schema:
    schema = _mapping("scheduler")
    del schema["required"]
    without_name = {"if": {"not": {"required": ["name"]}}, "then": _ref("scheduler.constant")}
    return {**schema, "allOf": [*schema["allOf"], without_name]}


def _other_keys(registered: _RegisteredClass) -> dict[str, Any]:
    """The schemas of the keys of a mapping that are not arguments of the class, without `param_groups`."""
    if registered.kind == "optimizer":
        keys = [field for key, field in optimizer_fields(registered.registration).items() if key not in ("name", ARGS)]
        entry = [field for key, field in ENTRY.items() if key != "param_groups"]
        return _properties([*entry, *keys])
    known = scheduler_fields(registered.registration)
    return {
        key: known[key].schema() if key in known else {"const": field.inert}
        for key, field in SCHEDULER.items()
        if key in reserved_keys(registered.registration) - {"name", ARGS}
    }


def _length() -> Schema:
    return {
        "type": "object",
        "description": "A length with its unit, for example {ratio: 0.2}.",
        "properties": _properties(LENGTH.values()),
        "oneOf": [{"required": [key]} for key in LENGTH],
        "additionalProperties": False,
    }


def _with_units(schema: Schema) -> Schema:
    """The schema of a length, or of a list of lengths, that may have a unit."""
    if schema.get("type") == "array":
        return {**schema, "items": union([schema["items"], _ref("length")])} if schema.get("items") else schema
    return union([schema, _ref("length")])


def _warmup() -> Schema:
    ratio: Schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    return {
        "description": "Linear warmup of the learning rate, for example 0.05 or {steps: 100}.",
        "anyOf": [
            {
                "type": "object",
                "properties": _properties(WARMUP.values()),
                "oneOf": [{"required": [key]} for key in LENGTH],
                "additionalProperties": False,
            },
            ratio,
            {"type": "integer", "minimum": 2},
            NUMBER_TEXT,
            NULL,
        ],
    }


def _warmup_only() -> Schema:
    """The schema of a scheduler without a name: a warmup, then a constant learning rate."""
    keys = ("warmup", "warmup_steps")
    return {
        "description": "A warmup, then a constant learning rate.",
        "properties": _properties(SCHEDULER[key] for key in keys),
        "oneOf": [{"required": [key]} for key in keys],
        "additionalProperties": False,
    }


def _param_groups(group: Schema) -> Schema:
    """The schema of `param_groups`; `group` is the schema of an entry that is a rule."""
    return {**_ref("param_groups.forms"), "items": {"if": _ref("is_rule"), "then": group}}


def _forms_of_param_groups() -> Schema:
    """The schema of `param_groups` without its rules."""
    name_only = {"enum": [name for name, fields in PRESETS.items() if not _required(fields)]}
    is_preset = {"type": "object", "required": ["preset"]}
    entry = {"anyOf": [name_only, MAPPING], "if": is_preset, "then": _ref("preset")}
    return {"anyOf": [name_only, {"type": ["array", "null"]}], "items": entry}


def _required(fields: Table) -> list[str]:
    return [key for key, field in fields.items() if field.default is ...]


def _preset() -> Schema:
    presets = []
    for name, fields in PRESETS.items():
        has_name = {"properties": {"preset": {"const": name}}, "required": ["preset"]}
        keys = {"preset": True, **_properties(fields.values())}
        then = {"properties": keys, "required": _required(fields), "additionalProperties": False}
        presets.append({"if": has_name, "then": then})
    preset = {"preset": {"enum": list(PRESETS), "description": "The name of a preset."}}
    return {"type": "object", "required": ["preset"], "properties": preset, "allOf": presets}


def _group(definitions: _Definitions, options: Mapping[str, Any], multipliers: Collection[str]) -> Schema:
    """The schema of a rule.

    Args:
        definitions: the definitions.
        options: the schemas of the options that a rule can set.
        multipliers: the keys of `MULTIPLIERS` that a rule can set.
    """
    fields = [field for key, field in GROUP_RULE.items() if key not in MULTIPLIERS or key in multipliers]
    keys = {
        "properties": _properties(each for each in fields if each.name not in options),
        "anyOf": [{"required": [key]} for key in SELECTORS],
        # A rule cannot both set an option and multiply it.
        "dependentSchemas": {key: {"properties": {MULTIPLIERS[key]: False}} for key in multipliers},
    }
    return {
        "type": "object",
        "properties": {**{each.name: True for each in fields}, **options},
        "allOf": [definitions.share("group.keys", keys)],
        "additionalProperties": False,
    }


# ------------------------------------------------------------------------------------------ types and values


def _ref(*path: str) -> Schema:
    return {"$ref": "/".join(["#/$defs", *path])}
