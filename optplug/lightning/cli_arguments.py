"""The values of optplug's keys in the arguments of LightningCLI, read without its parser, and the errors in them.

LightningCLI's parser stops at the first error, and reads the last of two equal keys in a file. With these values, an
error message reports all errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optplug.config.build import parse_and_check
from optplug.config.dialects import top_level_key
from optplug.config.form import OVERRIDE, SUBCOMMANDS, TOP_LEVEL, VERBOSE
from optplug.config.model import Config
from optplug.config.plain_data import to_builtins
from optplug.config.stray_keys import owner_of
from optplug.config.yaml_text import duplicate_keys, read_yaml
from optplug.errors import OptplugError, did_you_mean

_OPTIMIZER_WORDS = ("lr", "learning_rate", "weight_decay", "momentum")
"""Arguments that most optimizers have."""

KEYS = (*TOP_LEVEL, OVERRIDE.name, VERBOSE.name)


def all_errors(args: Any, message: str) -> list[str]:
    """All errors in the arguments of LightningCLI, one line each.

    Args:
        args: the words of a command line, or a mapping.
        message: the error with which LightningCLI's parser stopped.
    """
    values = read_values(args)
    hints = {key: hint for key in [*_named_keys(message), *values] if (hint := _stray_key_hint(key, values))}
    lines = [f"{key}: unknown key{hint}" for key, hint in hints.items()]
    in_files = file_errors(args)
    is_explained = hints.keys() & _named_keys(message) or (in_files and message.startswith("Problems parsing config"))
    if not is_explained:
        lines.append(_one_line(message))
    return [*in_files, *lines, *check_values(values)[1]]


def check_values(values: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    """Parse and check the values of optplug's keys.

    Returns:
        The configuration, None if there are no values or errors; and the errors, one line each.
    """
    config = None
    found: list[str] = []
    own = {key: value for key, value in values.items() if key in TOP_LEVEL and value is not None}
    for field in (OVERRIDE, VERBOSE):
        try:
            field.read(values.get(field.name, field.default))
        except OptplugError as error:
            found.append(f"{field.name}: {error}")
    try:
        config = parse_and_check(**own) if own else None
    except OptplugError as joined:
        found += [str(error) for error in joined.errors]
    if found and any("${" in line for line in found):
        found.append('interpolations: OptplugCLI(..., parser_kwargs={"parser_mode": "omegaconf"}) resolves ${...}')
    return config, found


def file_errors(args: Any) -> list[str]:
    """The syntax errors of configuration files, and the keys that occur twice in a mapping, one line each."""
    found = []
    for flag, value in _flags(args):
        if flag != "config" or value is None:
            continue
        try:
            _, node = read_yaml(_file_text(value))
            found += [f"{value}:{line}: {error}" for line, error in duplicate_keys(node)]
        except OptplugError as error:
            found.append(f"{value}: {error}")
        except (OSError, UnicodeDecodeError):  # LightningCLI reports it
            pass
    return found


def read_values(args: Any) -> dict[str, Any]:
    """The values of optplug's keys, and of all other keys that are at their level in a configuration file.

    Args:
        args: the words of a command line, or a mapping.
    """
    values: dict[str, Any] = {}
    if isinstance(args, str) or not isinstance(args, Sequence):
        with suppress(OptplugError):
            data = to_builtins(args)
            _merge(values, data, data.get("subcommand") if isinstance(data, Mapping) else None)
        return values
    subcommand = next((word for word in args if word in SUBCOMMANDS), None)
    for flag, value in _flags(args):
        with suppress(OSError, UnicodeDecodeError, OptplugError):
            if value is None:
                continue
            if flag == "config":
                _merge(values, read_yaml(_file_text(value))[0], subcommand)
            elif flag.rstrip("+").partition(".")[0] in KEYS and not flag.endswith(".help"):
                _set(values, flag, read_yaml(value)[0])
    return values


def _flags(args: Any) -> Iterator[tuple[str, str | None]]:
    """The options of a command line without dashes, each with its value."""
    words = [] if isinstance(args, str) or not isinstance(args, Sequence) else list(args)
    for i, word in enumerate(words):
        if word.startswith("-"):
            flag, equals, value = word.partition("=")
            following = words[i + 1] if i + 1 < len(words) else None
            yield {"-c": "config"}.get(flag, flag.lstrip("-")), value if equals else following


def _file_text(value: str) -> str:
    path = Path(value)
    return path.read_text(encoding="utf-8") if path.is_file() else value


def _merge(values: dict[str, Any], data: Any, subcommand: str | None) -> None:
    """Take the keys of a configuration file; those in the section of a subcommand have precedence."""
    if isinstance(data, Mapping):
        section = data.get(subcommand) if subcommand else None
        for part in (data, section):
            if isinstance(part, Mapping):
                values |= {str(key): value for key, value in part.items() if key not in SUBCOMMANDS}


def _set(values: dict[str, Any], flag: str, value: Any) -> None:
    """Set the value of an option such as `optimizer.lr` or `param_groups+`."""
    *parents, last = flag.removesuffix("+").split(".")
    node = values
    for key in parents:
        inner = node.get(key)
        node[key] = dict(inner) if isinstance(inner, Mapping) else {"name": inner} if isinstance(inner, str) else {}
        node = node[key]
    if flag.endswith("+"):
        before = node.get(last) or []
        value = [*(before if isinstance(before, list) else [before]), *(value if isinstance(value, list) else [value])]
    node[last] = value


# ------------------------------------------------------------------------------------------ messages of the parser


def _named_keys(message: str) -> set[str]:
    """The keys in a message of LightningCLI's parser about unknown keys."""
    _, _, unrecognized = message.partition("unrecognized arguments:")
    words = re.findall(r"(?:^|\s)-*(\w+)(?:[.=\s]|$)", unrecognized)
    return {*words, *re.findall(r"(?:[Oo]ption|[Kk]ey) ['\"](\w+)", message)}


def _stray_key_hint(key: str, values: Mapping[str, Any]) -> str:
    """The end of a message about a key that OptplugCLI does not have; empty for keys that do not resemble its keys."""
    if key in (*KEYS, "trainer", "model", "data", "config", "seed_everything", "ckpt_path", "verbose"):
        return ""
    owner = owner_of(key, {key: None, **values})
    if owner is not None:
        return f"; it belongs to {owner}: write --{owner}.{key}, or indent it under {owner} in the file"
    if key in _OPTIMIZER_WORDS and "optimizer" not in values:
        return "; it belongs to optimizer: write e.g. --optimizer adam --optimizer.lr 0.001"
    meant = top_level_key(key)
    return f"; did you mean {meant!r}?" if meant else did_you_mean(key, KEYS)


def _one_line(message: str) -> str:
    """A message of LightningCLI's parser on one line."""
    union = re.search(r'Parser key "([^"]+)":.*Subtypes: \[(.*?)\]\n.*Given value: (.*)$', message, re.DOTALL)
    if union:
        types = re.sub(r"<class '([\w.]+)'>", r"\1", union[2])
        return f"{union[1]}: must be one of {types}, got {union[3].strip()!r}"
    return " ".join(message.split())
