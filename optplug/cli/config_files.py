"""Configuration files: reading, the part that configures optplug, and the line number of a location."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from optplug.config.form import SUBCOMMANDS, TOP_LEVEL
from optplug.config.plain_data import to_builtins
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    Loc,
    OptplugError,
    did_you_mean,
    listing,
    loc_text,
    one_line,
    short_list,
)
from optplug.registry import registry
from optplug.registry.signature import configurable_arguments

SECTION_KEYS = (*TOP_LEVEL, "override")
SECTION_IDENTIFYING_KEYS = ("optimizer", "scheduler", "param_groups")
"""A mapping with one of these keys configures optplug."""

OTHER_KEYS = ("model", "data", "trainer", "seed_everything", "ckpt_path", "verbose", "print_config", "config")
"""Keys of LightningCLI and of the callback, accepted next to `SECTION_KEYS`."""


class _YamlLoader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as LightningCLI does, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # PyYAML itself keeps the last of several equal keys without a message.
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in lines:
                    problem = f"duplicate key {key.value!r}, in lines {lines[key.value]} and {line}"
                    raise yaml.MarkedYAMLError(problem=problem)
                lines[key.value] = line
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True)
class ConfigSection:
    """The part of a file that configures optplug.

    Attributes:
        loc: the location in the file, such as `("fit",)`; empty for the top.
        values: the values of `SECTION_KEYS`.
        mapping: the mapping at `loc`, with all its keys.
    """

    loc: Loc
    values: dict[str, Any]
    mapping: Mapping[str, Any]


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file.

    Attributes:
        path: the path.
        data: the content with resolved interpolations; None before the file is read.
        node: the YAML nodes, which have line numbers; None before the file is read.
    """

    path: Path
    data: Any
    node: yaml.Node | None

    def line_of(self, loc: Loc) -> int:
        """The line of a location such as `("fit", "param_groups", 0, "lr")`; if it is absent, of its parent."""
        node, line = self.node, 1
        for step in loc:
            found = None
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = (node.value[step],) * 2
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line

    def section(self) -> ConfigSection:
        """The section that configures optplug: the top, a subcommand, or the arguments of a ConfigureOptimizers.

        Raises:
            ConfigError: the file has no such section, or several.
            ConfigTypeError: the file does not contain a mapping.
        """
        if self.data is None:
            raise ConfigError("is empty; a minimal configuration is optimizer: adam")
        if not isinstance(self.data, Mapping):
            raise ConfigTypeError(f"must contain a mapping, got {type(self.data).__name__}")
        found = list(self._sections())
        if not found:
            hints = [f"{key}{hint}" for key in self.data if (hint := did_you_mean(str(key), SECTION_IDENTIFYING_KEYS))]
            keys = hints[0] if hints else short_list(self.data)
            raise ConfigError(f"has none of the keys {listing(SECTION_IDENTIFYING_KEYS)}; it has {keys}")
        if len(found) > 1:
            locs = listing(loc_text(section.loc) or "the top" for section in found)
            raise ConfigError(f"optplug is configured in several places: {locs}")
        return found[0]

    def _sections(self) -> Iterator[ConfigSection]:
        for loc, mapping in [((), self.data), *(((key,), self.data.get(key)) for key in SUBCOMMANDS)]:
            if isinstance(mapping, Mapping) and any(key in mapping for key in SECTION_IDENTIFYING_KEYS):
                yield ConfigSection(loc, {key: mapping[key] for key in SECTION_KEYS if key in mapping}, mapping)
        yield from _callback_sections(to_builtins(self.data), ())


def key_errors(section: ConfigSection) -> Iterator[tuple[str, ConfigError]]:
    """Errors for keys next to those of a section: misspelled keys, and arguments that belong one level deeper.

    Yields:
        The key and the error.
    """
    for key in section.mapping:
        hint = did_you_mean(str(key), SECTION_KEYS)
        is_internal = not isinstance(key, str) or key.startswith("_") or key in ("class_path", "init_args")
        if key not in (*SECTION_KEYS, *OTHER_KEYS, *SUBCOMMANDS) and hint and not is_internal:
            yield str(key), ConfigError(f"unknown key {key!r}{hint}")
    for kind in ("optimizer", "scheduler"):
        given = section.values.get(kind)
        name = given.get("name") if isinstance(given, Mapping) else given
        with suppress(OptplugError):
            for key in configurable_arguments(registry.resolve(kind, str(name))):
                if key in section.mapping and key not in (*SECTION_KEYS, *OTHER_KEYS):
                    yield key, ConfigError(f"is an argument of the {kind}; indent it under {kind}")


def _callback_sections(data: Any, loc: Loc) -> Iterator[ConfigSection]:
    """The arguments of ConfigureOptimizers callbacks, in the form of LightningCLI or Hydra."""
    if isinstance(data, Mapping):
        path = data.get("class_path", data.get("_target_"))
        if isinstance(path, str) and path.rpartition(".")[2] == "ConfigureOptimizers":
            arguments, arguments_loc = data, loc
            if "class_path" in data:
                arguments, arguments_loc = data.get("init_args") or {}, (*loc, "init_args")
            values = {key: arguments[key] for key in SECTION_KEYS if key in arguments}
            yield ConfigSection(arguments_loc, values, arguments)
            return
        for key, value in data.items():
            yield from _callback_sections(value, (*loc, str(key)))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from _callback_sections(value, (*loc, i))


def read_config_file(path: Path) -> ConfigFile:
    """Read a YAML or JSON file. OmegaConf resolves interpolations (`${...}`).

    Raises:
        ConfigError: the file cannot be read, or an interpolation cannot be resolved.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, _YamlLoader)  # noqa: S506  # a SafeLoader
        node = yaml.compose(text, _YamlLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {one_line(error)}") from None
    if "${" in text:
        try:
            from omegaconf import OmegaConf
        except ModuleNotFoundError:
            raise ConfigError("has interpolations (${...}), which need omegaconf: pip install omegaconf") from None
        try:
            data = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
        except Exception as error:  # OmegaConf raises many types of exceptions
            raise ConfigError(f"an interpolation cannot be resolved: {one_line(error)}") from None
    return ConfigFile(path, data, node)
