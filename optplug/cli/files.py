"""Configuration files: what of them is optplug's, and on which line a place is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from optplug.config import model
from optplug.config.builtins import plain
from optplug.config.model import SUBCOMMANDS
from optplug.errors import ConfigError, ConfigTypeError, OptplugError, describe, did_you_mean, listing
from optplug.registry import registry
from optplug.registry.signature import configurable

KEYS = (*model.KEYS, "override")
OTHERS = ("model", "data", "trainer", "seed_everything", "ckpt_path", "verbose", "print_config", "config")
"""Keys beside optplug's that are LightningCLI's or the callback's own."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as LightningCLI does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does, but a key that stands twice is no matter of luck."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in lines:
                    says = f"the key {key.value!r} stands twice in one mapping, in line {lines[key.value]} and {line}"
                    raise yaml.MarkedYAMLError(problem=says)
                lines[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True)
class Section:
    """What of a file is optplug's.

    Attributes:
        place: of the section in the file, such as `fit`; empty for its top. values: by `KEYS`.
        whole: the mapping that the section is part of, with a `model` perhaps.
    """

    loc: str
    values: dict[str, Any]
    whole: Mapping[str, Any]


@dataclass(frozen=True)
class File:
    """A configuration file that has been read."""

    path: Path
    data: Any
    node: yaml.Node | None

    def line(self, loc: str) -> int:
        """The line of a place, such as `fit.param_groups[0].lr`, or of the innermost part of it that is there."""
        node, line = self.node, 1
        for token in re.findall(r"[^.\[\]]+", loc):
            found = None
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == token), None)
            elif isinstance(node, yaml.SequenceNode) and token.isdigit() and int(token) < len(node.value):
                found = (node.value[int(token)],) * 2
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line

    def section(self) -> Section:
        """The part that is optplug's: at the top, under a subcommand, or the arguments of a ConfigureOptimizers.

        Raises:
            ConfigError: there is none, or more than one. ConfigTypeError: the file holds no mapping.
        """
        if self.data is None:
            raise ConfigError("is empty: a configuration has e.g. optimizer: adam")
        if not isinstance(self.data, Mapping):
            raise ConfigTypeError(f"a configuration is a mapping, got {type(self.data).__name__}")
        found = list(self._sections())
        if not found:
            near = [hint for key in self.data if (hint := did_you_mean(str(key), KEYS[:3]))]
            raise ConfigError(
                f"there is no {listing(KEYS[:3])}; there are {listing(self.data)}{near[0] if near else ''}"
            )
        if len(found) > 1:
            raise ConfigError(f"optplug is configured in several places: {listing(s.loc or 'the top' for s in found)}")
        return found[0]

    def _sections(self) -> Iterator[Section]:
        for loc, mapping in [("", self.data), *((key, self.data.get(key)) for key in SUBCOMMANDS)]:
            if isinstance(mapping, Mapping) and any(key in mapping for key in KEYS[:3]):
                yield Section(loc, {key: mapping[key] for key in KEYS if key in mapping}, mapping)
        yield from _callbacks(plain(self.data), "")


def near_misses(section: Section) -> Iterator[tuple[str, ConfigError]]:
    """Keys beside those of a section that are no key of optplug's and look like one."""
    for key in section.whole:
        hint = did_you_mean(str(key), KEYS)
        private = not isinstance(key, str) or key.startswith("_") or key in ("class_path", "init_args")
        if key not in (*KEYS, *OTHERS, *SUBCOMMANDS) and hint and not private:
            yield str(key), ConfigError(f"there is no key {key!r}{hint}")
    for kind in ("optimizer", "scheduler"):
        given = section.values.get(kind)
        name = given.get("name") if isinstance(given, Mapping) else given
        with suppress(OptplugError):
            for key in configurable(registry.find(kind, str(name))):
                if key in section.whole and key not in (*KEYS, *OTHERS):
                    yield key, ConfigError(f"{key} belongs under {kind}: is it indented too little?")


def _callbacks(data: Any, loc: str) -> Iterator[Section]:
    """The arguments of ConfigureOptimizers callbacks, as LightningCLI and Hydra write them."""
    if isinstance(data, Mapping):
        path = data.get("class_path", data.get("_target_"))
        if isinstance(path, str) and path.rpartition(".")[2] == "ConfigureOptimizers":
            inner, where = data, loc
            if "class_path" in data:
                inner, where = data.get("init_args") or {}, f"{loc}.init_args"
            yield Section(where, {key: inner[key] for key in KEYS if key in inner}, inner)
            return
        for key, value in data.items():
            yield from _callbacks(value, f"{loc}.{key}" if loc else str(key))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from _callbacks(value, f"{loc}[{i}]")


def read(path: Path) -> File:
    """Read a file of YAML or JSON; interpolations (`${...}`) are resolved by OmegaConf.

    Raises:
        ConfigError: it cannot be read, or an interpolation leads nowhere.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
        node = yaml.compose(text, _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {describe(error)}") from None
    if "${" in text:
        try:
            from omegaconf import OmegaConf
        except ModuleNotFoundError:
            raise ConfigError("has interpolations (${...}): pip install omegaconf to have them resolved") from None
        try:
            data = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
        except Exception as error:  # OmegaConf has many ways to fail
            raise ConfigError(f"an interpolation cannot be resolved: {describe(error)}") from None
    return File(path, data, node)
