"""The JSON Schema of a configuration, for completion and checking in editors; of whatever plugins are installed."""

from __future__ import annotations

import collections.abc
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optplug.config.describe import readable
from optplug.config.model import (
    AUTO,
    LINK,
    MEMBER_KEYS,
    OF_THE_WHOLE,
    ON_NONFINITE,
    ON_RESUME,
    PATIENCE_UNITS,
    SUBCOMMANDS,
    WIRING_KEYS,
    length_of,
)
from optplug.config.param_group_presets import KINDS, PRESETS
from optplug.config.param_groups import MULTIPLIERS
from optplug.config.param_selection import SELECTOR_KEYS
from optplug.errors import PluginError
from optplug.optim.ranges import Range, declared
from optplug.registry import Registration, registry
from optplug.registry.signature import Argument, constructor, documented
from optplug.registry.specs import lookup_key

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
WRONG = {"lr_scheduler": "scheduler", "optimizers": "optimizer", "schedulers": "scheduler"}
NONE: Schema = {"type": "null"}
TEXT: Schema = {"type": "string", "minLength": 1}
METRIC: Schema = {"type": ["string", "null"], "minLength": 1, "pattern": "^(?!lr-)"}
MAPPING: Schema = {"type": "object"}


def json_schema() -> Schema:
    """The schema (draft 2020-12) of what a file may say, at its top or under a subcommand of LightningCLI.

    Loads every installed optimizer and scheduler. One that cannot be loaded is left out, and `$comment` says why.

    `optplug.config.build.checked` refuses more: infinity and NaN; 3.0 where a whole number must be; ranges that a class checks
    and does not declare (`ranges`); text that is no expression, regular expression or dtype; values that contradict
    each other. The schema is the stricter in two things: it goes by annotations, and takes links where numbers stand.
    """
    missing = [str(quarantined) for quarantined in registry.quarantined]
    optimizers, schedulers = (_installed(kind, missing) for kind in ("optimizer", "scheduler"))
    definitions: dict[str, Schema] = {
        "configuration": _configuration(optimizers),
        "link": {"type": "string", "pattern": f"^{LINK.pattern}$", "description": "An attribute, such as module.lr."},
        "patterns": _one_of(TEXT, {"type": "array", "items": TEXT, "minItems": 1}),
        "optimizer": _optimizer(optimizers),
        "optimizer.mapping": _mapping("optimizer", optimizers),
        "scheduler": _scheduler(schedulers),
        "scheduler.mapping": _scheduler_mapping(schedulers),
        "scheduler.constant": _constant(),
        "warmup": _warmup(),
        "preset": _preset(),
        "param_groups": _param_groups("group"),
        "group": _group({key: True for known in optimizers for key in known.of_groups}, MULTIPLIERS),
    }
    for known in optimizers:
        definitions[f"{known.key}.param_groups"] = _param_groups(f"{known.key}.group")
        definitions[f"{known.key}.group"] = known.group_schema()
    for known in (*optimizers, *schedulers):
        definitions[f"{known.key}.name"] = {"type": "string", "pattern": known.pattern}
        definitions[f"{known.key}.arguments"] = known.arguments_schema()
        definitions[known.key] = known.schema(_wiring_of(known))
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


# -------------------------------------------------------------------------------------------------- one name


@dataclass(frozen=True)
class _Known:
    """A name with the class behind it."""

    spelling: str
    registration: Registration
    cls: Any
    arguments: list[Argument]

    @property
    def key(self) -> str:
        """Of its definitions; the colon keeps them apart from those of the form."""
        return re.sub(r"(?a)[^\w:.-]", lambda m: f"_{ord(m[0]):x}_", f"{self.kind}:{self.spelling}")

    @property
    def kind(self) -> str:
        return self.registration.spec.kind

    @property
    def takes_metric(self) -> bool:
        return "metric" in self.registration.spec.capabilities

    @property
    def required(self) -> list[str]:
        return [argument.name for argument in self.arguments if argument.required]

    @property
    def beside(self) -> list[str]:
        """The arguments that may stand beside the name."""
        return [argument.name for argument in self.arguments if argument.name not in WIRING_KEYS[self.kind]]

    @property
    def of_groups(self) -> list[str]:
        """The arguments that a group may have of its own."""
        reserved = (*OF_THE_WHOLE, *SELECTOR_KEYS, *MULTIPLIERS, "name", "preset")
        return [argument.name for argument in self.arguments if argument.name not in reserved]

    @property
    def pattern(self) -> str:
        """Every spelling that is looked up as this name."""
        plugin = f"{_loosely(self.registration.plugin.name)}:"
        return f"^{plugin if ':' in self.spelling else f'({plugin})?'}{_loosely(self.registration.name)}$"

    def arguments_schema(self) -> Schema:
        """Of a mapping of all arguments, as under `args`."""
        ranges = declared(self.cls)
        schema = {
            "type": ["object", "null"],
            "properties": {a.name: self._argument(a, ranges.get(a.name)) for a in self.arguments},
        }
        return schema if self._is_open else {**schema, "additionalProperties": False}

    @property
    def _is_open(self) -> bool:
        return not constructor(self.cls)[1]

    def _argument(self, argument: Argument, range_: Range | None) -> Schema:
        numbers = []

        def number(kind: str) -> Schema:
            numbers.append(kind)
            return {"type": kind} if range_ is None else {"type": "integer" if range_.whole else kind, **range_.bounds}

        if argument.name in _names(getattr(self.cls, "functions", ())):
            schema = _function()
        else:
            schema = _of_type(argument.type, number)
            if not schema and range_ is not None:
                schema = dict(range_.bounds)
            if argument.default is None and schema:
                schema = _any_of([schema, NONE])
        if schema and numbers and self.kind == "optimizer":
            schema = _any_of([schema, _ref("link")])
        if schema and self.kind == "scheduler" and argument.name == length_of(self.registration):
            schema = _any_of([schema, {"const": AUTO}])
        words = readable(argument.words)
        if range_ is not None and not range_.bounds:
            words = f"{words} ({range_.words})".strip()
        schema = {"description": words, **schema} if words else schema
        default = _plain(argument.default)
        return schema if argument.required or default is ... else {**schema, "default": default}

    def group_schema(self) -> Schema:
        """Of an entry of `param_groups`."""
        names = [argument.name for argument in self.arguments]
        multipliers = [key for key, target in MULTIPLIERS.items() if target in names or self._is_open]
        options = {key: _ref(f"{self.key}.arguments", "properties", key) for key in self.of_groups}
        if not self._is_open:
            return _group(options, multipliers)
        return {**_group({**options, **dict.fromkeys(OF_THE_WHOLE, False)}, multipliers), "additionalProperties": True}

    def schema(self, wiring: Mapping[str, Any]) -> Schema:
        """Of a mapping with this name."""
        arguments = f"{self.key}.arguments"
        own = {name: _ref(arguments, "properties", name) for name in self.beside}
        # What an entry of several has besides, elsewhere may be an argument.
        own |= {key: _one_of(own[key], wiring[key]) for key in own if key in wiring}
        about = {"description": "Arguments, such as one that has the name of another key here.", **_ref(arguments)}
        schema: Schema = {
            "description": self.registration.spec.summary,
            "properties": {"name": True, "args": about, **wiring, **own},
        }
        if not self._is_open:
            schema["additionalProperties"] = False
        if self.required:
            schema["allOf"] = [self._needs(name) for name in self.required]
        twice = {name: {"properties": {"args": {"properties": {name: False}}}} for name in self.beside}
        return {**schema, "dependentSchemas": twice} if twice else schema

    def _needs(self, name: str) -> Schema:
        under_args = {"required": ["args"], "properties": {"args": {"type": "object", "required": [name]}}}
        return _one_of({"required": [name]}, under_args) if name in self.beside else under_args

    def chosen(self) -> Schema:
        """What holds for a mapping that has this name, as a condition and what follows."""
        named = {"required": ["name"], "properties": {"name": _ref(f"{self.key}.name")}}
        return {"if": named, "then": _ref(self.key)}


def _installed(kind: str, missing: list[str]) -> list[_Known]:
    found = []
    for spelling, registration in zip(registry.names(kind), registry.registrations(kind), strict=True):
        try:
            found.append(
                _Known(spelling, registration, registry.get(kind, registration.qualified), documented(registration))
            )
        except PluginError as error:
            missing.append(" ".join(str(error).split()))
    return found


def _loosely(name: str) -> str:
    """A pattern of the spellings of a name: case, `-` and `_` do not count."""
    letters = []
    for c in lookup_key(name):
        either = sorted({c, *(u for u in (c.upper(),) if len(u) == 1)})
        letters.append(f"[{''.join(either)}]" if len(either) > 1 else re.sub(r"([\\^$.*+?()[\]{}|/])", r"\\\1", c))
    return "[-_]*" + "".join(f"{letter}[-_]*" for letter in letters)


def _names(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, (tuple, list)) else ()


def _function() -> Schema:
    one = {"anyOf": [{**TEXT, "examples": ["0.95 ** epoch", *registry.names("function")]}, {"type": "number"}]}
    return _any_of([one, {"type": "array", "items": one}])


# -------------------------------------------------------------------------------------------- parts of the form


def _configuration(optimizers: list[_Known]) -> Schema:
    properties: dict[str, Any] = {
        "optimizer": {"description": "A name, or {name: ..., lr: ...}.", **_ref("optimizer")},
        "scheduler": {"description": "A name, or {name: ..., warmup_steps: ...}.", **_ref("scheduler")},
        "param_groups": {"description": "A preset's name, or a list of rules: {match: '*.bias', weight_decay: 0.0}."},
        "monitor": {**METRIC, "description": "The metric that a plateau watches."},
        "mode": {"enum": ["min", "max", None], "description": "Whether less of the metric is better, or more."},
        "override": {
            "type": "boolean",
            "default": False,
            "description": "Replace a configure_optimizers that the model defines itself.",
        },
        "on_resume": {
            "enum": [*ON_RESUME, None],
            "description": "What of a checkpoint counts when a run resumes.",
        },
    }
    for wrong, right in WRONG.items():  # `not` of anything is `false` that can say why; editors do not suggest it
        properties[wrong] = {"description": f"The key is {right}.", "not": {}, "doNotSuggest": True}
    branches = []
    mapping = {"type": "object", "required": ["combine"]}
    belong = ("param_groups", "scheduler", "monitor", "mode")
    several = {"properties": dict.fromkeys(belong, NONE)}  # they belong to its entries
    for found, then in (({"type": "array"}, several), (mapping, {"properties": {"param_groups": NONE}})):
        branches.append({"if": _has_optimizer(found), "then": then})
    chosen = []
    for known in optimizers:
        name = _ref(f"{known.key}.name")
        found = _has_optimizer(_one_of(name, {"type": "object", "required": ["name"], "properties": {"name": name}}))
        chosen.append(found)
        branches.append({"if": found, "then": {"properties": {"param_groups": _ref(f"{known.key}.param_groups")}}})
    of_any = {"properties": {"param_groups": _ref("param_groups")}}
    branches.append({"if": {"not": {"anyOf": chosen}}, "then": of_any} if chosen else of_any)
    return {"properties": properties, "allOf": branches}


def _has_optimizer(schema: Schema) -> Schema:
    return {"required": ["optimizer"], "properties": {"optimizer": schema}}


def _optimizer(optimizers: list[_Known]) -> Schema:
    selected = {"if": {"minItems": 2}, "then": {"items": {"anyOf": [{"required": [key]} for key in SELECTOR_KEYS]}}}
    several = {"type": "array", "items": _ref("optimizer.mapping"), "minItems": 1, **selected}
    foreign = [key for key in MEMBER_KEYS if not any(key in known.beside for known in optimizers)]
    alone = {"allOf": [_ref("optimizer.mapping"), {"properties": dict.fromkeys(foreign, False)}]}
    part = {"allOf": [_ref("optimizer.mapping"), {"properties": {"scheduler": False}}]}
    parts = {**several, "items": part, "description": "The optimizers that one is made of."}
    combined = {"properties": {"combine": parts}, "additionalProperties": False}
    # Not any of these: an editor then points at what is wrong inside, not at the whole.
    return {
        "anyOf": [*_bare(optimizers)["anyOf"], {"type": ["object", "array", "null"]}],
        "allOf": [
            {"if": {"type": "array"}, "then": several},
            {"if": {"type": "object", "required": ["combine"]}, "then": combined},
            {"if": {"type": "object", "not": {"required": ["combine"]}}, "then": alone},
        ],
    }


def _scheduler(schedulers: list[_Known]) -> Schema:
    return {
        "anyOf": [*_bare(schedulers)["anyOf"], {"type": ["object", "null"]}],
        "if": MAPPING,
        "then": _ref("scheduler.mapping"),
    }


def _bare(known: list[_Known]) -> Schema:
    """A name alone: of what needs no arguments."""
    return _name([one for one in known if not one.required])


def _name(known: list[_Known]) -> Schema:
    spellings: Schema = {"enum": [one.spelling for one in known]} if known else {"not": {}}
    return {"anyOf": [spellings, *(_ref(f"{one.key}.name") for one in known)]}


def _mapping(kind: str, known: list[_Known]) -> Schema:
    return {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"description": "See `optplug list`.", **_name(known)}},
        "allOf": [one.chosen() for one in known],
    }


def _scheduler_mapping(known: list[_Known]) -> Schema:
    schema = _mapping("scheduler", known)
    del schema["required"]
    nameless = {"if": {"not": {"required": ["name"]}}, "then": _ref("scheduler.constant")}
    once = {"not": {"required": ["warmup", "warmup_steps"]}}
    return {**schema, "allOf": [*schema["allOf"], nameless, once]}


def _wiring_of(known: _Known) -> dict[str, Any]:
    """The keys of ours beside a name."""
    if known.kind == "optimizer":
        return {**_selectors(), "param_groups": _ref(f"{known.key}.param_groups"), "scheduler": _ref("scheduler")}
    mode = {"enum": ["min", "max", None], "description": "Whether a lower or a higher metric is better."}
    monitor = {**METRIC, "description": "The metric; inferred unless given."}
    unit = {"enum": [*PATIENCE_UNITS, None], "description": "What patience and cooldown count; validations if absent."}
    nonfinite = {
        "enum": [*ON_NONFINITE, None],
        "description": "What a NaN or infinite metric does: counts as bad, if absent; is ignored; ends the training.",
    }
    metric = {"monitor": monitor, "mode": mode, "patience_unit": unit, "on_nonfinite": nonfinite}
    if known.takes_metric:  # it steps once per completed validation
        return {**_steps("epoch", 1), **_warmups(), **metric}
    return {**_steps(), **_warmups(), **dict.fromkeys(metric, NONE)}


def _steps(interval: str | None = None, frequency: int | None = None) -> dict[str, Schema]:
    intervals = ["step", "epoch"] if interval is None else [interval]
    often: Schema = {"type": "integer", "minimum": 1} if frequency is None else {"const": frequency}
    return {
        "interval": {"enum": intervals, "description": "What it counts: optimizer steps or epochs."},
        "frequency": {**often, "description": "Every how many of them it steps."},
    }


def _warmups() -> dict[str, Schema]:
    steps = {"type": "integer", "minimum": 0, "description": "Optimizer steps of linear warmup."}
    return {"warmup": _ref("warmup"), "warmup_steps": steps}


def _warmup() -> Schema:
    lengths = {
        "steps": {"type": "integer", "minimum": 0, "description": "Its length in optimizer steps."},
        "epochs": {"type": "number", "minimum": 0, "maximum": 1e9, "description": "Its length in epochs."},
        "ratio": {"type": "number", "minimum": 0, "maximum": 1, "description": "Its share of all steps."},
    }
    start = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1, "description": "Its first factor."}
    return {
        "type": ["object", "null"],
        "description": "Linear warmup of the learning rate, for example {steps: 100}.",
        "properties": {**lengths, "start_factor": start},
        "if": MAPPING,
        "then": {"oneOf": [{"required": [key]} for key in lengths]},
        "additionalProperties": False,
    }


def _constant() -> Schema:
    """A scheduler without a name: a warmup, and a constant rate after it."""
    return {
        "description": "A constant rate after a warmup.",
        "properties": _warmups(),
        "anyOf": [{"required": ["warmup"]}, {"required": ["warmup_steps"]}],
        "additionalProperties": False,
    }


# ----------------------------------------------------------------------------------------------- param_groups

_KIND: Schema = {"enum": list(KINDS)}
_KEYS_OF_PRESETS: dict[str, dict[str, Schema]] = {
    "no_decay": {
        "of": {
            "description": "What gets no weight decay; all of these unless given.",
            "anyOf": [_KIND, {"type": "array", "items": _KIND, "minItems": 1}],
        },
    },
    "layer_decay": {
        "decay": {
            "description": "What the learning rate is multiplied by from layer to layer, towards the input.",
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
        },
        "layers": {
            "description": "Globs over parameter names, from the input to the output; {} stands for a number.",
            "type": "array",
            "items": TEXT,
            "minItems": 1,
        },
    },
}
_NEEDED = {"layer_decay": ["decay", "layers"]}


def _param_groups(group: str) -> Schema:
    bare = {"enum": [name for name in PRESETS if name not in _NEEDED]}
    entry = {
        "anyOf": [bare, MAPPING],
        "allOf": [
            {"if": {"type": "object", "required": ["preset"]}, "then": _ref("preset")},
            {"if": {"type": "object", "not": {"required": ["preset"]}}, "then": _ref(group)},
        ],
    }
    return {"anyOf": [bare, {"type": ["array", "null"]}], "items": entry}


def _preset() -> Schema:
    presets = []
    for name in PRESETS:
        chosen = {"properties": {"preset": {"const": name}}, "required": ["preset"]}
        keys = {"preset": True, **_KEYS_OF_PRESETS[name]}
        then = {"properties": keys, "required": _NEEDED.get(name, []), "additionalProperties": False}
        presets.append({"if": chosen, "then": then})
    named = {"preset": {"enum": list(PRESETS), "description": "Rules that have a name."}}
    return {"type": "object", "required": ["preset"], "properties": named, "allOf": presets}


def _group(options: Mapping[str, Any], multipliers: Iterable[str]) -> Schema:
    by_multiplier = {
        key: {"description": f"Multiplies {MULTIPLIERS[key]}.", "type": "number", "minimum": 0} for key in multipliers
    }
    once = {key: {"properties": {MULTIPLIERS[key]: False}} for key in by_multiplier}
    return {
        "type": "object",
        "properties": {
            **_selectors(),
            "name": {"description": "The group's name.", **TEXT},
            **by_multiplier,
            **options,
        },
        "anyOf": [{"required": [key]} for key in SELECTOR_KEYS],
        "dependentSchemas": once,
        "additionalProperties": False,
    }


def _selectors() -> dict[str, Schema]:
    return {
        key: {"description": f"{words}, or a list of them", **_ref("patterns")} for key, words in SELECTOR_KEYS.items()
    }


# -------------------------------------------------------------------------------------------------- vocabulary


def _ref(*path: str) -> Schema:
    return {"$ref": "/".join(["#/$defs", *path])}


def _one_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _any_of(schemas: list[Schema]) -> Schema:
    """Any of some schemas; anything where one of them is."""
    flat = [part for schema in schemas for part in (schema["anyOf"] if list(schema) == ["anyOf"] else [schema])]
    if not all(flat):
        return {}
    once = [part for i, part in enumerate(flat) if part not in flat[:i]]
    return once[0] if len(once) == 1 else {"anyOf": once}


_SIMPLE: dict[Any, str] = {bool: "boolean", str: "string", type(None): "null", dict: "object"}
_LISTS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


def _of_type(hint: Any, number: Callable[[str], Schema]) -> Schema:
    """The schema of a type; anything for one that no configuration can be held to."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _of_type(parts[0], number)
    if origin in (typing.Union, types.UnionType):
        return _any_of([_of_type(part, number) for part in parts])
    if origin is typing.Literal:
        return {"enum": list(parts)} if all(_plain(part) is not ... for part in parts) else {}
    if hint in (int, float):
        return number("integer" if hint is int else "number")
    if isinstance(hint, collections.abc.Hashable) and hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if (getattr(hint, "__module__", ""), getattr(hint, "__name__", "")) == ("torch", "dtype"):
        return {"type": "string"}
    if origin is tuple and ... not in parts:
        return _tuple([_of_type(part, number) for part in parts])
    if (origin or hint) in _LISTS or origin is tuple:
        items = _of_type(parts[0], number) if parts else {}
        return {"type": "array", "items": items} if items else {"type": "array"}
    if origin in (dict, collections.abc.Mapping):
        return {"type": "object", "additionalProperties": _of_type(parts[1], number)}
    return {}


def _tuple(items: list[Schema]) -> Schema:
    length = {"minItems": len(items), "maxItems": len(items)}
    if all(item == items[0] for item in items):
        return {"type": "array", "items": items[0] if items else {}, **length}
    return {"type": "array", "prefixItems": items, **length}


def _plain(value: Any) -> Any:
    """A value as JSON has it; `...` for one that JSON does not have."""
    if value is inspect.Parameter.empty or (isinstance(value, float) and not math.isfinite(value)):
        return ...
    if isinstance(value, (tuple, list)):
        items = [_plain(item) for item in value]
        return ... if any(item is ... for item in items) else items
    if type(value) in (str, int, float, bool, type(None)):
        return value
    return ...
