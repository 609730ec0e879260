"""Configuration files: reading, the part that configures optplug, and the line number of a location."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from optplug.cli.interpolations import MANDATORY, UnresolvedInterpolation, resolve_interpolations
from optplug.config.dialects import missing_space, top_level_key, warmup_form
from optplug.config.form import OVERRIDE, SUBCOMMANDS, TABLES, TOP_LEVEL
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
        group: `"optimizer"` or `"scheduler"` for a file with the content of only this key, as Hydra's groups have.
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
        return self._line_of(loc, MAX_FOLLOWED)

    def _line_of(self, loc: Loc, followed: int) -> int:
        node, line, steps = self.node, 1, list(loc)
        while True:
            target = _interpolated_loc(node)
            if target is not None and followed and _has(self.data, target):
                return self._line_of((*target, *steps), followed - 1)
            found = None
            step = steps.pop(0) if steps else None
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = (node.value[step],) * 2
            if found is None or step is None:
                return line
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
        if self.data is None:
            raise ConfigError("is empty; a minimal configuration is optimizer: adam")
        if not isinstance(self.data, Mapping):
            spaced = missing_space(self.data) if isinstance(self.data, str) else None
            hint = f"; write a space after the colon: {spaced}" if spaced else ""
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
        places: list[tuple[Loc, Any]] = [((), self.data), *(((key,), self.data.get(key)) for key in SUBCOMMANDS)]
        own = [_section(loc, mapping) for loc, mapping in places if _has_section_keys(mapping)]
        if callbacks:  # a configuration that LightningCLI has saved has null for keys that are not used
            own = [section for section in own if any(section.values.get(key) for key in SECTION_IDENTIFYING_KEYS)]
        yield from own
        yield from callbacks
        if own or callbacks:
            return
        group = _group_of(self.path, self.data)
        if group is not None:
            yield ConfigSection((), {group: self.data}, {}, group=group)
        else:
            yield from self._model_sections()

    def _model_sections(self) -> Iterator[ConfigSection]:
        """The arguments of a model that look as if it passes them to `optplug.configure_optimizers`."""
        for loc in (("model",), ("model", "init_args")):
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
        locs: list[tuple[str, ...]] = [(str(key),) for key in self.data]
        locs += [("model", str(key)) for key in model if str(key) not in TABLES] if isinstance(model, Mapping) else []
        collector = ErrorCollector()
        for loc in locs:
            hint = _nearest_key_hint(loc[-1], SECTION_IDENTIFYING_KEYS)
            if hint:
                collector.add(ConfigError(f"{message}{loc[-1]}{hint}"), loc)
        collector.raise_collected()
        composed = f"; Hydra composes it with other files: {COMPOSED}" if self.is_composed else ""
        raise NoSectionError(f"{message}{short_list(self.data)}{composed}")


def _nearest_key_hint(key: str, keys: Collection[str]) -> str:
    """The end of a message about a key that is misspelled or of another format; empty for other keys."""
    meant = top_level_key(key)
    return did_you_mean(key, keys) or (f"; did you mean {meant!r}?" if meant in keys else "")


def key_errors(file: ConfigFile, section: ConfigSection) -> Iterator[tuple[str, ConfigError]]:
    """Errors for keys next to those of a section: misspelled keys, and arguments that belong one level deeper.

    Yields:
        The key and the error.
    """
    if not section.is_strict:
        return
    # A value that an interpolation uses, such as `lr: 0.1` for `${lr}`, may have any name.
    others = [key for key in section.mapping if key not in (*SECTION_KEYS, *OTHER_KEYS, *SUBCOMMANDS)]
    others = [
        key for key in others if isinstance(key, str) and not re.search(rf"\$\{{\.*{re.escape(key)}\b", file.text)
    ]
    others = [key for key in others if not key.startswith("_") and key not in ("class_path", "init_args", "defaults")]
    owners = {key: owner_of(key, section.mapping) for key in others}
    for kind in TABLES:
        inside = [key for key in others if owners[key] == kind]
        if inside and kind in section.mapping and section.mapping[kind] is None:
            yield kind, ConfigError(f"has no value: indent {listing(inside)} under {kind}")
            others = [key for key in others if key not in inside]
    for key in others:
        hint, owner = _nearest_key_hint(key, SECTION_KEYS), owners[key]
        if owner is not None:
            noun = "the name" if key == "name" else "an argument"
            form = warmup_form(key, section.mapping[key])
            written = f" as {form}" if form and form != f"{key}: {section.mapping[key]}" else ""
            yield key, ConfigError(f"is {noun} of the {owner}; indent it under {owner}{written}")
        elif section.is_callback:
            yield key, ConfigError(f"ConfigureOptimizers has no argument {key!r}{hint}")
        elif hint:
            yield key, ConfigError(f"unknown key {key!r}{hint}")


def section_values(file: ConfigFile, section: ConfigSection) -> dict[str, Any]:
    """The values of a section. A name that another file of the configuration can have is unresolved."""
    values = dict(section.values)
    for kind in TABLES:
        given = values.get(kind)
        if file.is_composed and isinstance(given, Mapping) and "name" not in given:
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


def _group_of(path: Path, data: Any) -> str | None:
    """`"optimizer"` or `"scheduler"` for a file of this group of Hydra, such as `optimizer/adam.yaml`; else None."""
    kind = top_level_key(path.parent.name) or path.parent.name
    is_whole = not isinstance(data, Mapping) or any(key in data for key in (*SECTION_IDENTIFYING_KEYS, *OTHER_KEYS))
    return kind if kind in TABLES and not is_whole else None


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
            arguments, arguments_loc = data, loc
            if "class_path" in data:
                arguments, arguments_loc = data.get("init_args") or {}, (*loc, "init_args")
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
        group = _group_of(path, data)  # its interpolations are relative to the whole configuration
        data = resolve_interpolations(data) if group is None else resolve_interpolations({group: data})[group]
    return ConfigFile(path, data, node, text, tuple(duplicate_keys(node)))
