"""Configuration files: reading, the part that configures optplug, and the line number of a location."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from optplug.cli.interpolations import MANDATORY, UnresolvedInterpolation, resolve_interpolations
from optplug.config.dialects import is_name_key, top_level_key, warmup_form
from optplug.config.form import CORRECT_KEYS, OVERRIDE, SCHEDULER, SELECTORS, SUBCOMMANDS, TABLES, TOP_LEVEL
from optplug.config.mapping_slips import mapping_slip
from optplug.config.plain_data import to_builtins
from optplug.config.stray_keys import owner_of
from optplug.config.yaml_text import duplicate_keys, read_yaml
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    ErrorCollector,
    Loc,
    did_you_mean,
    listing,
    loc_text,
    one_line,
    short_list,
)

STANDARD_INPUT = Path("-")
"""The path that stands for standard input."""

SECTION_KEYS = (*TOP_LEVEL, OVERRIDE.name)
SECTION_IDENTIFYING_KEYS = ("optimizer", "scheduler", "param_groups")
"""A mapping with one of these keys configures optplug."""

OTHER_KEYS = ("model", "data", "trainer", "seed_everything", "ckpt_path", "verbose", "print_config", "config")
"""Keys of LightningCLI and of the callback, accepted next to `SECTION_KEYS`."""

_COMMON_ARGUMENTS = ("lr", "learning_rate", "weight_decay")
"""Arguments that most optimizers have."""

MAX_FOLLOWED = 10
"""How many interpolations are followed from one to the next to find a line. Interpolations may form a circle."""

COMPOSED = "python train.py --cfg job | optplug validate -"
"""A command that checks the composed configuration of a program that uses Hydra."""


class NoSectionError(ConfigError):
    """A file does not configure optplug, and no key in it looks like an attempt."""


@dataclass(frozen=True)
class ConfigSection:
    """The part of a file that configures optplug.

    Attributes:
        loc: the location in the file, such as `("fit",)`; empty for the top.
        values: the values of `SECTION_KEYS`.
        mapping: the mapping at `loc`, with all its keys.
        is_callback: whether the mapping has the arguments of a ConfigureOptimizers.
        is_strict: whether other keys in the mapping can be mistakes.
        group: the key of a file with the content of only this key, as Hydra's groups have.
    """

    loc: Loc
    values: dict[str, Any]
    mapping: Mapping[str, Any]
    is_callback: bool = False
    is_strict: bool = True
    group: str | None = None

    def file_loc(self, loc: Loc) -> Loc:
        """The location in the file of a location in the section."""
        return loc[1:] if self.group is not None and loc[:1] == (self.group,) else (*self.loc, *loc)


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file.

    Attributes:
        path: the path.
        data: the content with resolved interpolations; None before the file is read.
        node: the YAML nodes, which have line numbers; None before the file is read.
        text: the content as it is written.
        duplicates: errors for keys that occur twice, each with its line.
    """

    path: Path
    data: Any = None
    node: yaml.Node | None = None
    text: str = ""
    duplicates: tuple[tuple[int, ConfigError], ...] = field(default=())

    def __str__(self) -> str:
        return "<stdin>" if self.path == STANDARD_INPUT else str(self.path)

    @property
    def is_composed(self) -> bool:
        """Whether other files belong to the configuration: Hydra's list `defaults` names them."""
        return isinstance(self.data, Mapping) and isinstance(self.data.get("defaults"), list)

    def line_of(self, loc: Loc) -> int:
        """The line of a location such as `("fit", "param_groups", 0, "lr")`; if it is absent, of its parent.

        Interpolations of a whole value, such as `${optimizer}`, are followed.
        """
        return self._find(loc, MAX_FOLLOWED)[0]

    def is_empty(self, loc: Loc) -> bool:
        """Whether nothing is written as the value of a key, not even `null`."""
        node = self._find(loc, 0)[1]
        return isinstance(node, yaml.ScalarNode) and not node.value and node.style is None

    def _find(self, loc: Loc, followed: int) -> tuple[int, yaml.Node | None]:
        """The line and the node of a location, or of its parent; `followed` interpolations are followed."""
        node, line, steps = self.node, 1, list(loc)
        while True:
            target = _interpolated_loc(node)
            if target is not None and followed and _has(self.data, target):
                return self._find((*target, *steps), followed - 1)
            found = None
            step = steps.pop(0) if steps else None
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = (node.value[step],) * 2
            if found is None or step is None:
                return line, node
            line, node = found[0].start_mark.line + 1, found[1]

    def section(self) -> ConfigSection:
        """The section that configures optplug.

        It is the top, a subcommand, the arguments of a ConfigureOptimizers, those of a model that calls
        `optplug.configure_optimizers`, or the whole of a file of one of Hydra's groups.

        Raises:
            NoSectionError: the file has no such section.
            ConfigError: the file has no such section but a misspelled key, or it has several sections.
            ConfigTypeError: the file does not contain a mapping.
        """
        group = _group_of(self.path, self.text, self.data)
        if group is not None:
            return _group_section(group, self.data)
        if self.data is None:
            raise ConfigError("is empty; a minimal configuration is optimizer: adam")
        if not isinstance(self.data, Mapping):
            hint = mapping_slip(self.data) if isinstance(self.data, str) else ""
            raise ConfigTypeError(f"must contain a mapping, got {type(self.data).__name__}{hint}")
        found = list(self._sections())
        if not found:
            self._raise_no_section()
        if len(found) > 1:
            locs = listing(loc_text(section.loc) or "the top" for section in found)
            raise ConfigError(f"optplug is configured in several places: {locs}")
        return found[0]

    def unused_keys(self, section: ConfigSection) -> list[str]:
        """Keys of a configuration at the top that Hydra does not pass to the callback of a section."""
        if "_target_" not in section.mapping:
            return []
        return [
            key
            for key in SECTION_IDENTIFYING_KEYS
            if _is_written_for_optplug(key, self.data) and key not in section.values
        ]

    def _sections(self) -> Iterator[ConfigSection]:
        callbacks = list(_callback_sections(to_builtins(self.data), ()))
        if any("_target_" in section.mapping for section in callbacks):
            yield from callbacks  # Hydra passes only their arguments
            return
        places: list[tuple[Loc, Any]] = [((key,), self.data.get(key)) for key in SUBCOMMANDS]
        if not _is_object(self.data):  # such as a file with only the arguments of a model
            places.insert(0, ((), self.data))
        own = [_section(loc, mapping) for loc, mapping in places if _has_section_keys(mapping)]
        if callbacks:  # a configuration that LightningCLI has saved has null for keys that are not used
            own = [section for section in own if any(section.values.get(key) for key in SECTION_IDENTIFYING_KEYS)]
        yield from own
        yield from callbacks
        if not own and not callbacks:
            yield from self._model_sections()

    def _model_sections(self) -> Iterator[ConfigSection]:
        """The arguments of a model that look as if it passes them to `optplug.configure_optimizers`."""
        below: Loc = () if _is_object(self.data) else ("model",)
        for loc in (below, (*below, "init_args")):
            mapping: Any = self.data
            for key in loc:
                mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
            if isinstance(mapping, Mapping) and any(_is_written_for_optplug(key, mapping) for key in TABLES):
                yield _section(loc, mapping, is_strict=False)

    def _raise_no_section(self) -> NoReturn:
        message = f"has none of the keys {listing(SECTION_IDENTIFYING_KEYS)}; it has "
        owner = owner_of("name", self.data) if "name" in self.data else None
        if owner is not None:
            raise ConfigError(f"{message}{short_list(self.data)}; indent them under {owner}")
        model = self.data.get("model")
        locs: list[tuple[str, ...]] = [(key,) for key in self.data if isinstance(key, str) and key not in TABLES]
        if isinstance(model, Mapping):
            locs += [("model", key) for key in model if isinstance(key, str) and key not in TABLES]
        collector = ErrorCollector()
        for loc in locs:
            value = self.data.get(loc[0]) if len(loc) == 1 else model[loc[1]]
            if _is_misspelled(loc[-1], value, SECTION_IDENTIFYING_KEYS):
                collector.add(ConfigError(f"{message}{loc[-1]}{_hint(loc[-1])}"), loc)
        collector.raise_collected()
        composed = f"; Hydra composes it with other files: {COMPOSED}" if self.is_composed else ""
        raise NoSectionError(f"{message}{short_list(self.data)}{composed}")


def key_errors(file: ConfigFile, section: ConfigSection) -> Iterator[tuple[str, ConfigError]]:
    """Errors for keys next to those of a section: an empty key, misspelled keys, and arguments one level too high.

    Yields:
        The key and the error.
    """
    others = _other_keys(file, section)
    for key in SECTION_IDENTIFYING_KEYS:
        inside = _keys_below_empty(key, file, section, others)
        if inside:
            item = ", as an item of a list: - match: ..." if key == "param_groups" else ""
            yield key, ConfigError(f"has no value: indent {listing(inside)} under {key}{item}")
            others = [other for other in others if other not in inside]
    for key in others:
        owner = owner_of(key, section.mapping)
        if owner is not None and not _may_be_of_program(key, section):
            yield key, ConfigError(f"is an argument of the {owner}; indent it under {owner}")
        elif section.is_callback:
            hint = did_you_mean(key, SECTION_KEYS)
            yield key, ConfigError(f"ConfigureOptimizers has no argument {key!r}{hint}")
        elif _is_misspelled(key, section.mapping[key], SECTION_KEYS):
            yield key, ConfigError(f"unknown key {key!r}{_hint(key)}")


def key_notes(file: ConfigFile, section: ConfigSection) -> Iterator[tuple[str, str]]:
    """Notes on keys next to those of a section that can be mistakes, and can be arguments of the program.

    Yields:
        The key and the note.
    """
    reported = {key for key, _ in key_errors(file, section)}
    for key in _other_keys(file, section):
        value = section.mapping[key]
        if reported & {key, *SECTION_IDENTIFYING_KEYS} or value is None or value is False:
            continue
        owner = owner_of(key, section.mapping)
        if owner is not None and key != "name":
            form = warmup_form(key, value)
            written = f" as {form}" if form and form != f"{key}: {value}" else ""
            yield key, f"is not used; if it is meant for the {owner}, indent it under {owner}{written}"
        elif top_level_key(key):
            yield key, f"is not used{_hint(key)}"


def _other_keys(file: ConfigFile, section: ConfigSection) -> list[str]:
    """The keys next to those of a section that can be mistakes."""
    if not section.is_strict:
        return []
    known = (*SECTION_KEYS, *OTHER_KEYS, *SUBCOMMANDS, "class_path", "init_args", "defaults")
    others = [key for key in section.mapping if isinstance(key, str) and key not in known and not key.startswith("_")]
    # A value that an interpolation uses, such as `lr: 0.1` for `${lr}`, may have any name.
    return [key for key in others if not re.search(rf"\$\{{\.*{re.escape(key)}\b", file.text)]


def _keys_below_empty(key: str, file: ConfigFile, section: ConfigSection, others: Collection[str]) -> list[str]:
    """The keys that are meant to be the value of a key without a value."""
    if key not in section.mapping or section.mapping[key] is not None:
        return []
    is_empty = file.is_empty((*section.loc, key))  # nothing is written, not even null
    if key == "param_groups":
        has_selector = is_empty and not {*SELECTORS, "preset"}.isdisjoint(others)
        return (
            [other for other in others if other in (*SELECTORS, "preset", *_COMMON_ARGUMENTS)] if has_selector else []
        )

    def is_inside(other: str) -> bool:
        owner = owner_of(other, section.mapping)
        if owner is not None or not is_empty:
            return owner == key
        return other == "name" or is_name_key(other) or (key == "optimizer" and other in _COMMON_ARGUMENTS)

    return [other for other in others if is_inside(other)]


def _may_be_of_program(key: str, section: ConfigSection) -> bool:
    """Whether a key is no argument of a class, but one of optplug's keys or of another format."""
    return not section.is_callback and (key in (*SCHEDULER, "name") or bool(warmup_form(key, section.mapping[key])))


def _is_misspelled(key: str, value: Any, keys: Collection[str]) -> bool:
    """Whether a key with its value certainly stands for one of the given keys of a section."""
    if key in CORRECT_KEYS:
        return True
    similar = _similar_key(key, keys)
    if similar is not None:
        return isinstance(value, (str, list, Mapping) if similar in SECTION_IDENTIFYING_KEYS else (str, bool))
    return isinstance(value, Mapping) and "name" in value and top_level_key(key) in TABLES


def _similar_key(key: str, keys: Collection[str]) -> str | None:
    distinct = [known for known in keys if known != "mode"]  # many words resemble it, such as `model` and `node`
    return next(iter(difflib.get_close_matches(key.lower(), distinct, 1, cutoff=0.85)), None)


def _hint(key: str) -> str:
    """The end of a message about a key that is misspelled or of another format; empty for other keys."""
    meant = _similar_key(key, SECTION_KEYS) or top_level_key(key)
    return f"; did you mean {meant!r}?" if meant else ""


def section_values(file: ConfigFile, section: ConfigSection) -> dict[str, Any]:
    """The values of a section. A name that another file of the configuration can have is unresolved."""
    values = dict(section.values)
    for kind in TABLES:
        given = values.get(kind)
        is_named = isinstance(given, Mapping) and any(key == "name" or is_name_key(key) for key in given)
        if file.is_composed and isinstance(given, Mapping) and not is_named:
            values[kind] = {
                "name": UnresolvedInterpolation(MANDATORY, "one of the files in the list defaults has it"),
                **given,
            }
    return values


def _interpolated_loc(node: yaml.Node | None) -> Loc | None:
    """The location that a whole value refers to: `${optimizer}`; None for other values and relative interpolations."""
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    found = re.fullmatch(r"\$\{([A-Za-z_][\w.]*)\}", text)
    return tuple(found[1].split(".")) if found else None


def _is_object(mapping: Mapping[str, Any]) -> bool:
    """Whether a mapping names a class and has its arguments."""
    return not {"_target_", "class_path"}.isdisjoint(mapping)


def _package_of(path: Path, text: str) -> str:
    """The key under which Hydra includes a file: its header names the key, else it is the name of the folder."""
    header = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
    if header is not None and header[1] not in ("_group_", "_here_"):
        return header[1].rpartition(".")[2]
    return "" if path == STANDARD_INPUT else path.resolve().parent.name


def _group_of(path: Path, text: str, data: Any) -> str | None:
    """The key of which a file is the content, such as `"optimizer"` for `optimizer/adam.yaml` of Hydra; else None."""
    package = _package_of(path, text)
    if package == "param_groups":
        return package if isinstance(data, list) else None
    kind = package if package in TABLES else top_level_key(package)
    is_whole = isinstance(data, Mapping) and any(key in data for key in (*SECTION_IDENTIFYING_KEYS, *OTHER_KEYS))
    return kind if kind in TABLES and not is_whole and not isinstance(data, str) else None


def _group_section(group: str, data: Any) -> ConfigSection:
    """The section of a file with the content of only one key. An empty file configures nothing."""
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != "defaults"} if "name" in data else data
    values = {group: data} if data else {}
    if values and group == "param_groups":
        values["optimizer"] = UnresolvedInterpolation(MANDATORY, "another file has it")
    return ConfigSection((), values, {}, group=group)


def _has(data: Any, loc: Loc) -> bool:
    """Whether nested mappings have a location."""
    for key in loc:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return True


def _has_section_keys(mapping: Any) -> bool:
    return isinstance(mapping, Mapping) and any(key in mapping for key in SECTION_IDENTIFYING_KEYS)


def _is_written_for_optplug(key: str, mapping: Mapping[str, Any]) -> bool:
    """Whether the value of a key has optplug's form: a name, a mapping with a name, or a list."""
    value = mapping.get(key)
    return isinstance(value, (str, list)) or (isinstance(value, Mapping) and "name" in value)


def _section(
    loc: Loc, mapping: Mapping[str, Any], *, is_callback: bool = False, is_strict: bool = True
) -> ConfigSection:
    values = {key: mapping[key] for key in SECTION_KEYS if key in mapping}
    return ConfigSection(loc, values, mapping, is_callback, is_strict)


def _callback_sections(data: Any, loc: Loc) -> Iterator[ConfigSection]:
    """The arguments of ConfigureOptimizers callbacks, in the form of LightningCLI or Hydra."""
    if isinstance(data, Mapping):
        path = data.get("class_path", data.get("_target_"))
        if isinstance(path, str) and path.rpartition(".")[2] == "ConfigureOptimizers":
            positional = data.get("_args_")
            arguments, arguments_loc = {**dict(zip(TABLES, positional or (), strict=False)), **data}, loc
            if "class_path" in data:
                arguments = {**(data.get("init_args") or {}), **(data.get("dict_kwargs") or {})}
                arguments_loc = (*loc, "init_args")
            yield _section(arguments_loc, arguments, is_callback=True)
            return
        for key, value in data.items():
            yield from _callback_sections(value, (*loc, str(key)))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from _callback_sections(value, (*loc, i))


def read_config_file(path: Path) -> ConfigFile:
    """Read a YAML or JSON file; `-` is standard input. OmegaConf resolves interpolations (`${...}`).

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        content = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {one_line(error)}") from None
    data, node = read_yaml(text)
    if "${" in text or MANDATORY in text:
        if _group_of(path, text, data) is None:
            data = resolve_interpolations(data)
        else:  # its interpolations are relative to the whole configuration
            package = _package_of(path, text)
            data = resolve_interpolations({package: data})[package]
    return ConfigFile(path, data, node, text, tuple(duplicate_keys(node)))
