"""YAML text: reading, duplicate keys, and hints for syntax errors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

import yaml

from optplug.config.mapping_slips import missing_space
from optplug.errors import ConfigError, one_line


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as LightningCLI and OmegaConf do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """The content of YAML or JSON text, and its nodes, which have line numbers.

    Raises:
        ConfigError: the text is not valid YAML; with the line and a hint.
    """
    try:
        return yaml.load(text, _Loader), yaml.compose(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot be read: {_problem(error)}{_syntax_hint(error, text)}") from None
    except (ValueError, RecursionError) as error:  # a date that does not exist; an alias in its own value
        raise ConfigError(f"cannot be read: {one_line(error)}") from None


def duplicate_keys_under(
    text: str, keys: Collection[str], sections: Collection[str]
) -> Iterator[tuple[int, ConfigError]]:
    """As `duplicate_keys`, for some keys of YAML text and their values. Nothing for text that is not valid YAML.

    Args:
        text: the YAML text.
        keys: the keys.
        sections: the keys of mappings that may have these keys too.
    """
    with suppress(yaml.YAMLError, RecursionError):
        yield from duplicate_keys(_part(yaml.compose(text, _Loader), keys, sections))


def _part(node: yaml.Node | None, keys: Collection[str], sections: Collection[str]) -> yaml.MappingNode | None:
    """A mapping with only some keys, also in its sections; None if nothing remains."""
    items = []
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            part = _part(value, keys, ()) if key.value in sections else value if key.value in keys else None
            items += [] if part is None else [(key, part)]
    return yaml.MappingNode("tag:yaml.org,2002:map", items) if items else None


def duplicate_keys(node: yaml.Node | None) -> Iterator[tuple[int, ConfigError]]:
    """An error for each key that occurs twice in a mapping. YAML readers use the last of them without a message.

    Yields:
        The line of the second key, and the error.
    """
    seen: set[int] = set()
    nodes = [] if node is None else [node]
    while nodes:
        current = nodes.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, yaml.SequenceNode):
            nodes += current.value
        elif isinstance(current, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in current.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.value != "<<" and key.value in lines:
                    yield line, ConfigError(f"duplicate key {key.value!r}, in lines {lines[key.value]} and {line}")
                elif isinstance(key, yaml.ScalarNode):
                    lines[key.value] = line
                nodes.append(value)


def _problem(error: yaml.YAMLError) -> str:
    """The class of a syntax error, what the reader found, and where."""
    parts = []
    for words in ("context", "problem"):
        text, mark = getattr(error, words, None), getattr(error, f"{words}_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        parts += [f"{text}{place}"] if text else []
    return f"{type(error).__name__}: {': '.join(parts)}" if parts else one_line(error)


def _syntax_hint(error: yaml.YAMLError, text: str) -> str:
    """What is probably wrong in YAML text."""
    mark = getattr(error, "problem_mark", None)
    problem = f"{getattr(error, 'context', '')} {getattr(error, 'problem', '')}"
    lines = text.splitlines()
    if mark is None or not lines:
        return ""
    line = lines[min(mark.line, len(lines) - 1)]
    before = lines[max(mark.line - 1, 0) : mark.line + 1]
    without_space = next(filter(None, (missing_space(each.rstrip()) for each in before)), None)
    if "\t" in line[: mark.column + 1]:
        return "; indent with spaces, not with tabs"
    if "alias" in problem:
        return "; write text that begins with * in quotes: '*.bias'"
    if "cannot start any token" in problem:
        return f"; write text that begins with {line[mark.column : mark.column + 1]} in quotes"
    if without_space and "//" not in without_space:
        return f"; write a space after the colon: {without_space}"
    if "mapping values are not allowed" in problem or "block" in problem:
        return "; the keys of a mapping begin in the same column, each in its own line, and have one value each"
    if "flow" in problem:
        return "; close every bracket, and write text with brackets in quotes"
    return ""
