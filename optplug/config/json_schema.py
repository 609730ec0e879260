"""JSON Schema of a configuration, for editors: completion, documentation and checks, with all installed plugins."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NULL: Schema = {"type": "null"}
TEXT: Schema = {"type": "string", "minLength": 1}
MAPPING: Schema = {"type": "object"}


def json_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of a configuration file.

    The keys of a configuration are at the top of the file or under a subcommand of LightningCLI. The function loads all
    installed optimizers and schedulers. Those that cannot be loaded are left out and listed in `$comment`.

    Differences from `optplug.config.build.parse_and_check`:

    - The schema accepts more: infinity and NaN; 3.0 for a whole number; values outside of ranges that a class checks
      but does not declare in `ranges`; invalid expressions, regular expressions and dtypes; contradictory values.
    - The schema accepts less: it checks values against annotations, and accepts links only for numbers.
    """
    missing = [str(quarantined) for quarantined in registry.quarantined]
    optimizers, schedulers = (_load_registered(kind, missing) for kind in ("optimizer", "scheduler"))
    link = {"type": "string", "pattern": f"^{LINK_PATTERN.pattern}$", "description": "A link, such as module.lr."}
    definitions: dict[str, Schema] = {
        "configuration": _configuration(optimizers),
        "link": link,
        "number_text": {"type": "string", "pattern": NUMBER_PATTERN, "description": "Text that is a number."},
        "optimizer": _optimizer(optimizers),
        "optimizer.mapping": _mapping("optimizer", optimizers),
        "scheduler": _scheduler(schedulers),
        "scheduler.mapping": _scheduler_mapping(schedulers),
        "scheduler.constant": _warmup_only(),
        "length": _length(),
        "warmup": _warmup(),
        "preset": _preset(),
        "param_groups": _param_groups("group"),
        "group": _group({key: True for optimizer in optimizers for key in optimizer.group_options}, list(MULTIPLIERS)),
    }
    for optimizer in optimizers:
        group = "group"
        # The rules apply to the fallback of an optimizer of matrices, and to a base, which have other options.
        if not _takes_matrices_only(optimizer) and not base_argument(optimizer.registration):
            group = f"{optimizer.definition}.group"
            definitions[group] = optimizer.group_schema()
        definitions[f"{optimizer.definition}.param_groups"] = _param_groups(group)
    if any(map(_takes_matrices_only, optimizers)):
        definitions["fallback"] = _fallback(optimizers)
    if any(base_argument(optimizer.registration) for optimizer in optimizers):
        definitions["base"] = _base(optimizers)
    for registered in (*optimizers, *schedulers):
        definitions[f"{registered.definition}.name"] = {"type": "string", "pattern": registered.name_pattern}
        definitions[f"{registered.definition}.arguments"] = registered.arguments_schema()
        definitions[registered.definition] = registered.mapping_schema(_other_keys(registered))
    subcommands = {key: _ref("configuration") for key in SUBCOMMANDS}
    comment = {"$comment": "Left out: " + " | ".join(missing)} if missing else {}
    return {
        "$schema": DRAFT,
        "title": "A configuration of optplug",
        **comment,
        "type": "object",
        "allOf": [_ref("configuration")],
        "properties": subcommands,
        "$defs": dict(sorted(definitions.items())),
    }


# ------------------------------------------------------------------------------------------ registered classes


@dataclass(frozen=True)
class _RegisteredClass:
    """A registered optimizer or scheduler with its class.

    Attributes:
        name: the shortest unambiguous name: `adam`, or `plugin:adam` where several plugins register `adam`.
        registration: the registration.
        cls: the class.
        arguments: the constructor arguments that a configuration can set.
    """

    name: str
    registration: Registration
    cls: Any
    arguments: list[Argument]

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
    def is_incomplete(self) -> bool:
        """Whether the name alone is not enough: there are required arguments, or it needs a base."""
        return bool(self.required) or self._requires_base

    @property
    def _requires_base(self) -> bool:
        return bool(base_argument(self.registration)) and requires_base(self.registration)

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
    def name_pattern(self) -> str:
        """A regular expression that matches every accepted spelling of the name."""
        plugin = f"{_spelling_pattern(self.registration.plugin.name)}:"
        prefix = plugin if ":" in self.name else f"({plugin})?"
        return f"^{prefix}{_spelling_pattern(self.registration.name)}$"

    def arguments_schema(self) -> Schema:
        """The schema of the mapping under `args`."""
        ranges = declared_ranges(self.cls)
        schema = {
            "type": ["object", "null"],
            "properties": {a.name: self._argument_schema(a, ranges.get(a.name)) for a in self.arguments},
        }
        return schema if self._accepts_any_argument else {**schema, "additionalProperties": False}

    @property
    def _accepts_any_argument(self) -> bool:
        return accepts_any_argument(self.registration)

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
        description = argument.description
        if range_ is not None and not range_.bounds:
            description = f"{description} ({range_.words})".strip()
        schema = {"description": description, **schema} if description else schema
        default = json_value(argument.default)
        return schema if argument.required or default is ... else {**schema, "default": default}

    def group_schema(self) -> Schema:
        """The schema of an entry of `param_groups` for this optimizer."""
        names = [argument.name for argument in self.arguments]
        multipliers = [key for key, target in MULTIPLIERS.items() if target in names or self._accepts_any_argument]
        options = {key: _ref(f"{self.definition}.arguments", "properties", key) for key in self.group_options}
        if not self._accepts_any_argument:
            return _group(options, multipliers)
        refused = dict.fromkeys(OPTIMIZER_WIDE_OPTIONS, False)
        return {**_group({**options, **refused}, multipliers), "additionalProperties": True}

    def mapping_schema(self, other_keys: Mapping[str, Any]) -> Schema:
        """The schema of a mapping with this name.

        Args:
            other_keys: the schemas of the keys that are not arguments.
        """
        arguments = f"{self.definition}.arguments"
        direct = {name: _ref(arguments, "properties", name) for name in self.direct_arguments}
        # A key of a list entry, such as `match`, is an argument of the class outside of lists. Both are accepted.
        direct |= {key: any_of(direct[key], other_keys[key]) for key in direct if key in other_keys}
        args = {"description": "Arguments whose names are keys of the mapping itself.", **_ref(arguments)}
        schema: Schema = {
            "description": self.registration.spec.summary,
            "properties": {"name": True, "args": args, **other_keys, **direct},
        }
        if not self._accepts_any_argument:
            schema["additionalProperties"] = False
        if self.is_incomplete:
            schema["allOf"] = [self._requires(name) for name in self.required]
            schema["allOf"] += [{"required": [BASE_KEY]}] if self._requires_base else []
        given_twice: dict[str, Schema] = {
            name: {"properties": {"args": {"properties": {name: False}}}} for name in self.direct_arguments
        }
        if "warmup_steps" in other_keys:
            given_twice["warmup"] = {"properties": {"warmup_steps": False}}
        return {**schema, "dependentSchemas": given_twice} if given_twice else schema

    def _requires(self, name: str) -> Schema:
        """The condition that an argument is given, either next to `name` or under `args`."""
        under_args = {"required": ["args"], "properties": {"args": {"type": "object", "required": [name]}}}
        return any_of({"required": [name]}, under_args) if name in self.direct_arguments else under_args

    def conditional_schema(self) -> Schema:
        """A schema that applies `mapping_schema` to every mapping with this name."""
        has_name = {"required": ["name"], "properties": {"name": _ref(f"{self.definition}.name")}}
        return {"if": has_name, "then": _ref(self.definition)}


def _load_registered(kind: str, missing: list[str]) -> list[_RegisteredClass]:
    """Load all registered classes of a kind. Messages about those that cannot be loaded are added to `missing`."""
    found = []
    for name, registration in zip(registry.names(kind), registry.registrations(kind), strict=True):
        try:
            cls = registry.get(kind, registration.qualified_name)
            found.append(_RegisteredClass(name, registration, cls, documented_arguments(registration)))
        except PluginError as error:
            missing.append(" ".join(str(error).split()))
    return found


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


def _configuration(optimizers: list[_RegisteredClass]) -> Schema:
    properties = _properties([*TOP_LEVEL.values(), OVERRIDE, VERBOSE])
    # Which schema the groups have depends on the optimizer; see below.
    properties["param_groups"] = {"description": properties["param_groups"]["description"]}
    for wrong, right in CORRECT_KEYS.items():  # unlike `false`, `not: {}` can have a description
        properties[wrong] = {"description": f"The key is {right}.", "not": {}, "doNotSuggest": True}
    branches = []
    combined = {"type": "object", "required": ["combine"]}
    entry_keys = ("param_groups", "scheduler", "monitor", "mode")
    in_entries = {"properties": dict.fromkeys(entry_keys, NULL)}  # with a list, these are keys of its entries
    for form, then in (({"type": "array"}, in_entries), (combined, {"properties": {"param_groups": NULL}})):
        branches.append({"if": _has_optimizer(form), "then": then})
    conditions = []
    for optimizer in optimizers:
        name = _ref(f"{optimizer.definition}.name")
        mapping = {"type": "object", "required": ["name"], "properties": {"name": name}}
        condition = _has_optimizer(any_of(name, mapping))
        groups_of_optimizer = {"properties": {"param_groups": _ref(f"{optimizer.definition}.param_groups")}}
        conditions.append(condition)
        branches.append({"if": condition, "then": groups_of_optimizer})
    groups_of_any = {"properties": {"param_groups": _ref("param_groups")}}
    branches.append({"if": {"not": {"anyOf": conditions}}, "then": groups_of_any} if conditions else groups_of_any)
    return {"properties": properties, "allOf": branches}


def _properties(fields: Iterable[Field]) -> dict[str, Any]:
    return {field.name: field.schema() for field in fields}


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
    """The schema of a name instead of a mapping, for classes without required arguments."""
    return _name([registered for registered in known if not registered.is_incomplete])


def _name(known: list[_RegisteredClass]) -> Schema:
    names: Schema = {"enum": [registered.name for registered in known]} if known else {"not": {}}
    return {"anyOf": [names, *(_ref(f"{registered.definition}.name") for registered in known)]}


def _mapping(kind: str, known: list[_RegisteredClass]) -> Schema:
    return {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"description": f"The {kind}; see `optplug list`.", **_name(known)}},
        "allOf": [registered.conditional_schema() for registered in known],
    }


def _takes_matrices_only(optimizer: _RegisteredClass) -> bool:
    return "matrix_only" in optimizer.registration.spec.capabilities


def _fallback(known: list[_RegisteredClass]) -> Schema:
    """The schema of the fallback of an optimizer of matrices: an optimizer whose name has a default."""
    known = [each for each in known if each.registration.spec.capabilities.isdisjoint(NOT_FALLBACK)]
    mapping = _mapping("optimizer", known)
    del mapping["required"]
    default = [registered for registered in known if registered.name == DEFAULT_FALLBACK]
    without_name = {"if": {"not": {"required": ["name"]}}, "then": _ref(default[0].definition) if default else False}
    others = [key for key in (*ENTRY, *MATRICES) if key not in SELECTORS]
    properties = {**mapping["properties"], **_refused(others, known)}
    is_mapping = {**mapping, "properties": properties, "allOf": [*mapping["allOf"], without_name]}
    return {
        "anyOf": [*_name_only(known)["anyOf"], MAPPING],
        "if": MAPPING,
        "then": is_mapping,
    }


def _base(known: list[_RegisteredClass]) -> Schema:
    """The schema of the optimizer that another one wraps."""
    known = [each for each in known if each.registration.spec.capabilities.isdisjoint(NOT_BASE)]
    mapping = _mapping("optimizer", known)
    properties = {**mapping["properties"], **_refused((*ENTRY, *MATRICES), known)}
    return {
        "anyOf": [*_name_only(known)["anyOf"], MAPPING],
        "if": MAPPING,
        "then": {**mapping, "properties": properties},
    }


def _scheduler_mapping(known: list[_RegisteredClass]) -> Schema:
    schema = _mapping("scheduler", known)
    del schema["required"]
    without_name = {"if": {"not": {"required": ["name"]}}, "then": _ref("scheduler.constant")}
    return {**schema, "allOf": [*schema["allOf"], without_name]}


def _other_keys(registered: _RegisteredClass) -> dict[str, Any]:
    """The schemas of the keys of a mapping that are not arguments of the class."""
    if registered.kind == "optimizer":
        groups = _ref(f"{registered.definition}.param_groups")
        keys = [field for key, field in optimizer_fields(registered.registration).items() if key not in ("name", ARGS)]
        return {**_properties([*ENTRY.values(), *keys]), "param_groups": groups}
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


def _param_groups(group: str) -> Schema:
    """The schema of `param_groups`; `group` is the definition of an entry that is a rule."""
    name_only = {"enum": [name for name, fields in PRESETS.items() if not _required(fields)]}
    entry = {
        "anyOf": [name_only, MAPPING],
        "allOf": [
            {"if": {"type": "object", "required": ["preset"]}, "then": _ref("preset")},
            {"if": {"type": "object", "not": {"required": ["preset"]}}, "then": _ref(group)},
        ],
    }
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


def _group(options: Mapping[str, Any], multipliers: Collection[str]) -> Schema:
    """The schema of a rule.

    Args:
        options: the schemas of the options that a rule can set.
        multipliers: the keys of `MULTIPLIERS` that a rule can set.
    """
    fields = [field for key, field in GROUP_RULE.items() if key not in MULTIPLIERS or key in multipliers]
    return {
        "type": "object",
        "properties": {**_properties(fields), **options},
        "anyOf": [{"required": [key]} for key in SELECTORS],
        # A rule cannot both set an option and multiply it.
        "dependentSchemas": {key: {"properties": {MULTIPLIERS[key]: False}} for key in multipliers},
        "additionalProperties": False,
    }


# ------------------------------------------------------------------------------------------ types and values


def _ref(*path: str) -> Schema:
    return {"$ref": "/".join(["#/$defs", *path])}
