"""The error messages of OptplugCLI.

LightningCLI's parser stops at the first error. The values of optplug's keys are then read from the command line and the
files without that parser, to report the errors in them too. This is done only if no other source can have these keys.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from optplug.config.build import parse_and_check
from optplug.config.dialects import top_level_key
from optplug.config.fields import table
from optplug.config.form import CALLBACK_OPTIONS, SUBCOMMANDS, TOP_LEVEL
from optplug.config.model import Config
from optplug.config.plain_data import to_builtins
from optplug.config.stray_keys import owner_of
from optplug.config.yaml_text import duplicate_keys_under, read_yaml
from optplug.errors import OptplugError, did_you_mean
from optplug.lightning._compat import options_of_parser

_OPTIMIZER_WORDS = ("lr", "learning_rate", "weight_decay", "momentum")
"""Arguments that most optimizers have."""

CLI_KEYS = table(*TOP_LEVEL.values(), *CALLBACK_OPTIONS.values())
"""The keys that OptplugCLI adds. `ConfigureOptimizers` has arguments of these names."""

_YAML_MODES = ("yaml", "omegaconf", "omegaconf+")
"""The values of jsonargparse's `parser_mode` with which files are YAML."""


@dataclass
class ParsedArguments:
    """The arguments that OptplugCLI parses, and its parsers, which share this object.

    Attributes:
        given: the words of a command line, or a mapping. Empty before and after the parsing.
        written: the words that the parser gets in another form, each by that form.
        parsers: the main parser and those of the subcommands.
        subcommands: the names of the subcommands.
    """

    given: Any = ()
    written: dict[str, str] = field(default_factory=dict)
    parsers: list[Any] = field(default_factory=list)
    subcommands: tuple[str, ...] = SUBCOMMANDS

    def as_written(self, message: str) -> str:
        """A message of the parser with the words that the user wrote."""
        for converted, word in self.written.items():
            message = message.replace(converted, word)
        return message

    def are_only_source(self) -> bool:
        """Whether the values of optplug's keys can only come from the command line and from YAML files it names."""
        return all(
            parser.parser_mode == "yaml"
            and not parser.default_env
            and not parser.default_config_files
            and all(action.default is None for action in options_of_parser(parser) if action.dest in TOP_LEVEL)
            for parser in self.parsers
        )

    def have_yaml_files(self) -> bool:
        return all(parser.parser_mode in _YAML_MODES for parser in self.parsers)

    def known_keys(self) -> set[str]:
        """The first parts of the parsers' options, such as `trainer`."""
        options = {action.dest.partition(".")[0] for parser in self.parsers for action in options_of_parser(parser)}
        return options | {"model", "data", "trainer"}  # a class without arguments has no option

    def flags(self) -> Iterator[tuple[str, str]]:
        """The options of the command line without dashes, each with its value."""
        words = list(self.given) if _is_command_line(self.given) else []
        for word, following in zip_longest(words, words[1:]):
            if word.startswith("-"):
                flag, equals, value = word.partition("=")
                value = value if equals else following
                if value is not None:
                    yield {"-c": "config"}.get(flag, flag.lstrip("-")), value

    def config_files(self) -> list[str]:
        return [value for flag, value in self.flags() if flag == "config"]


def _is_command_line(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)


def all_errors(arguments: ParsedArguments, message: str) -> list[str]:
    """All errors in the arguments of LightningCLI, one line each.

    Args:
        arguments: the arguments.
        message: the error with which LightningCLI's parser stopped.
    """
    values = read_values(arguments)
    known, named = arguments.known_keys(), _rejected_keys(message)
    unknown = [key for key in dict.fromkeys([*named, *values]) if key not in known]
    hints = {key: hint for key in unknown if (hint := _stray_key_hint(key, values))}
    lines = [*duplicate_key_errors(arguments), *(f"{key}: unknown key{hint}" for key, hint in hints.items())]
    if not named or not hints.keys() >= set(named):
        lines.append(_syntax_error(arguments, message) or _innermost(arguments.as_written(message)))
    return [*lines, *check_values(values, arguments)[1]]


def own_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration's keys, without those of the callback's options."""
    return {key: value for key, value in values.items() if key in TOP_LEVEL and value is not None}


def check_values(values: Mapping[str, Any], arguments: ParsedArguments) -> tuple[Config | None, list[str]]:
    """Parse and check the values of optplug's keys.

    Returns:
        The configuration, None if there are no values or errors; and the errors, one line each.
    """
    config = None
    found: list[str] = []
    for option in CALLBACK_OPTIONS.values():
        try:
            option.read(values.get(option.name, option.default))
        except OptplugError as error:
            found.append(f"{option.name}: {error}")
    own = own_values(values)
    try:
        config = parse_and_check(**own) if own else None
    except OptplugError as joined:
        found += [str(error) for error in joined.errors]
    is_yaml = all(parser.parser_mode == "yaml" for parser in arguments.parsers)
    if is_yaml and any("${" in line for line in found):
        found.append('interpolations: OptplugCLI(..., parser_kwargs={"parser_mode": "omegaconf"}) resolves ${...}')
    return config, found


# ------------------------------------------------------------------------------------------------ files and words


def duplicate_key_errors(arguments: ParsedArguments) -> list[str]:
    """The keys that occur twice in a mapping of optplug's sections in YAML files, one line each."""
    found = []
    for value in arguments.config_files() if arguments.have_yaml_files() else ():
        with suppress(OSError, ValueError):  # reading the file is the parser's task
            is_file, text = _file_text(value)
            duplicates = duplicate_keys_under(text, CLI_KEYS, arguments.subcommands)
            found += [f"{value if is_file else '--config'}:{line}: {error}" for line, error in duplicates]
    return found


def _syntax_error(arguments: ParsedArguments, message: str) -> str | None:
    """The error of a YAML file that the parser could not read, with a hint; None for other messages."""
    if message.startswith("Problems parsing config") and arguments.have_yaml_files():
        for value in arguments.config_files():
            try:
                read_yaml(_file_text(value)[1])
            except OptplugError as error:
                return f"{value}: {error}"
            except (OSError, ValueError):
                return None
    return None


def read_values(arguments: ParsedArguments) -> dict[str, Any]:
    """The values of optplug's keys, and of all other keys that are at their level in a configuration file.

    Empty if another source can have them, or if a file cannot be read.
    """
    values: dict[str, Any] = {}
    if not arguments.are_only_source():
        return values
    given = arguments.given
    try:
        if not _is_command_line(given):
            data = to_builtins(given)
            return _section(data, data.get("subcommand") if isinstance(data, Mapping) else None, arguments.subcommands)
        subcommand = next((word for word in given if word in arguments.subcommands), None)
        for flag, value in arguments.flags():
            if flag == "config":
                data = read_yaml(_file_text(value)[1])[0]
                values |= _section(data, subcommand, arguments.subcommands)
            elif flag.rstrip("+").partition(".")[0] in CLI_KEYS and not flag.endswith(".help"):
                set_value(values, flag, word_value(value))
    except (OSError, ValueError, TypeError, OptplugError):
        return {}
    return values


def _file_text(value: str) -> tuple[bool, str]:
    """Whether a value of `--config` is the path of a file, and the text of the file; else the value."""
    path = Path(value)
    is_file = len(value) < 4096 and path.is_file()
    return is_file, path.read_text(encoding="utf-8") if is_file else value


def word_value(word: str) -> Any:
    """The value of a word. LightningCLI takes a word that is not valid YAML as text."""
    with suppress(OptplugError):
        return read_yaml(word)[0]
    return word


def _section(data: Any, subcommand: str | None, subcommands: Sequence[str]) -> dict[str, Any]:
    """The keys of a configuration file; those in the section of the subcommand have precedence.

    Raises:
        TypeError: the file does not contain mappings.
    """
    if not isinstance(data, Mapping):
        raise TypeError("not a mapping")
    section = data.get(subcommand) if subcommand else None
    parts = {**data, **(section or {})}
    return {str(key): value for key, value in parts.items() if key not in subcommands}


def set_value(values: dict[str, Any], flag: str, value: Any) -> None:
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


def _rejected_keys(message: str) -> list[str]:
    """The first parts of the options that the parser rejected; empty for other messages."""
    _, prefix, words = message.partition("unrecognized arguments: ")
    if prefix:
        return re.findall(r"(?<!\S)(?:-+(?=\w)|(?=\w+=))(\w+)", words)
    option = re.match(r"(?:Subcommand '\w+' does not accept o|O)ption '(\w+)|Key '(\w+)", message)
    return [next(filter(None, option.groups()))] if option else []


def _stray_key_hint(key: str, values: Mapping[str, Any]) -> str:
    """The end of a message about an unknown key; empty for keys that do not resemble those of OptplugCLI."""
    owner = owner_of(key, {key: None, **values})
    if owner is not None:
        return f"; it belongs to {owner}: write --{owner}.{key}, or indent it under {owner} in the file"
    if key in _OPTIMIZER_WORDS and "optimizer" not in values:
        return "; it belongs to optimizer: write e.g. --optimizer adam --optimizer.lr 0.001"
    meant = top_level_key(key)
    return f"; did you mean {meant!r}?" if meant else did_you_mean(key, CLI_KEYS)


def _innermost(message: str) -> str:
    """A message of the parser on one line, with the causes in place of the types that a value may have."""
    head, union, rest = message.partition("Does not validate against any of the Union subtypes")
    if not union:
        return _one_line(message)
    types, _, rest = rest.partition("Errors:\n")
    block, _, given = rest.rpartition("Given value type:")
    errors = re.split(r"(?m)^- ", textwrap.dedent(block))[1:]
    # The other errors only say that the value has none of the types.
    causes = [_innermost(error) for error in errors if not re.match("Expected |Not a valid subclass", error)]
    if not causes:
        allowed = _one_line(types).removeprefix("Subtypes: [").removesuffix("]")
        causes = [f"must be one of {allowed}, got {given.partition('Given value: ')[2].strip()!r}"]
    head = re.sub(r"(?m)^\s*- (Expected .*)?$", "", head)
    return " ".join([_one_line(head), "; ".join(dict.fromkeys(causes))]).strip()


def _one_line(text: str) -> str:
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", " ".join(text.split()))
    text = re.sub(r"Expected an? <class", "expected <class", text)
    return re.sub(r"<class '([\w.]+)'>", r"\1", text)
