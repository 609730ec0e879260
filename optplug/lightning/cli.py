"""`OptplugCLI`: a LightningCLI with optplug's configuration keys."""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optplug.config.build import parse_and_check
from optplug.config.describe import describe_registration, encodable
from optplug.config.fields import Field
from optplug.config.form import OVERRIDE, SUBCOMMANDS, TOP_LEVEL, VERBOSE
from optplug.config.model import Config
from optplug.errors import OptplugError
from optplug.lightning._compat import installed_import_names
from optplug.lightning.callback import ConfigureOptimizers
from optplug.lightning.cli_arguments import all_errors, check_values, file_errors
from optplug.lightning.configure import missing_optimizer, own_configure_optimizers
from optplug.registry import registry

_CALLBACK_KEYS: Mapping[str, Field] = MappingProxyType({OVERRIDE.name: OVERRIDE, VERBOSE.name: VERBOSE})
"""Keys that are options of the callback, beside those of a configuration. They always have a value."""

CLI_KEYS: Mapping[str, Field] = MappingProxyType({**TOP_LEVEL, **_CALLBACK_KEYS})
"""The keys that OptplugCLI adds. `ConfigureOptimizers` has arguments of these names."""

_ANY_VALUE = bool | int | float | str | dict[str, Any] | list[Any] | None
"""The type of every key for jsonargparse: the values are checked by `parse_and_check`, which reports all errors."""

NAME_KEYS = ("optimizer", "scheduler")
"""The keys whose value may be a name."""


def make_cli_class(import_name: str, module: str) -> type:
    """Create OptplugCLI as a subclass of LightningCLI.

    Args:
        import_name: `"lightning.pytorch"` or `"pytorch_lightning"`. If it is not installed, the other one is used.
        module: the name of the module that contains the class.

    Raises:
        MissingLightningError: Lightning is not installed under either name.
    """
    if import_name not in installed_import_names():
        (import_name,) = installed_import_names()
    lightning_cli = importlib.import_module(f"{import_name}.cli")
    contents = {
        "__module__": module,
        "__doc__": _OptplugCLI.__doc__,
        "parser_base": lightning_cli.LightningArgumentParser,
    }
    return type("OptplugCLI", (_OptplugCLI, lightning_cli.LightningCLI), contents)


class _Arguments:
    """The arguments that OptplugCLI parses: words, or a mapping. Its parser and those of subcommands share them."""

    given: Any = ()


class _OptplugParser:
    """Parser mixin.

    It turns a bare name into a mapping, for `--optimizer adam --optimizer.lr 0.01`, and reports all errors at once,
    without the usage, which has a line for each option of the Trainer.
    """

    arguments: _Arguments

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        flags = [f"--{key}" for key in NAME_KEYS]
        converted: list[str] = []
        for i, word in enumerate(words):
            flag, equals, name = word.partition("=")
            if equals and flag in flags:
                word = f"{flag}={_bare_name_as_mapping(name)}"
            elif i and words[i - 1] in flags:
                word = _bare_name_as_mapping(word)
            converted.append(word)
        return super().parse_args(converted, *rest, **kwargs)  # type: ignore[misc]

    def add_method_arguments(self, theclass: Any, themethod: str, *args: Any, skip: Any = None, **kwargs: Any) -> Any:
        # The methods `validate` and `test` of the trainer have an argument `verbose` too: one key serves both.
        has_verbose = VERBOSE.name in inspect.signature(getattr(theclass, themethod)).parameters
        added = super().add_method_arguments(  # type: ignore[misc]
            theclass, themethod, *args, skip={*(skip or ()), VERBOSE.name}, **kwargs
        )
        return [*added, VERBOSE.name] if has_verbose else added

    def error(self, message: str, *args: Any, **kwargs: Any) -> Any:
        if self.exit_on_error:  # type: ignore[attr-defined]  # else jsonargparse only tries one of several types
            message = _joined(all_errors(self.arguments.given, message))
        return super().error(message, *args, **kwargs)  # type: ignore[misc]

    def end_with(self, errors: Sequence[str]) -> Any:
        """Report errors, and exit."""
        return super().error(_joined(errors))  # type: ignore[misc]

    def print_usage(self, file: Any = None) -> None:
        if file is not sys.stderr:
            super().print_usage(file)  # type: ignore[misc]

    def parse_string(self, *args: Any, **kwargs: Any) -> Any:
        config = super().parse_string(*args, **kwargs)  # type: ignore[misc]
        for section in ("", *(f"{subcommand}." for subcommand in SUBCOMMANDS)):
            for key in NAME_KEYS:
                if isinstance(config.get(section + key), str):
                    config[section + key] = {"name": config[section + key]}
        return config


def _joined(errors: Sequence[str]) -> str:
    """The message that reports errors, in the form of `ConfigErrors`."""
    lines = list(dict.fromkeys(errors))
    return lines[0] if len(lines) == 1 else "\n  ".join([f"the configuration has {len(lines)} errors:", *lines])


class _DescribeAction(argparse.Action):
    """The action of `--optimizer.help NAME`: prints arguments and documentation of the name, and exits."""

    def __init__(self, option_strings: Any, dest: str = "", kind: str = "", **kwargs: Any) -> None:
        self.kind = kind
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, metavar="NAME", **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            text = describe_registration(registry.resolve(self.kind, values))
        except OptplugError as error:
            parser.end_with([str(error)])
        else:
            print(encodable(text, sys.stdout))
        parser.exit()


def _optplug_keys(config: Any) -> dict[str, Any]:
    """The values of `CLI_KEYS` in a configuration of LightningCLI, which nests them under its subcommand, if any."""
    section = config.get(str(config.get("subcommand")), config)
    return {key: section.get(key) for key in CLI_KEYS}


def _has_optplug_keys(given: dict[str, Any]) -> bool:
    """Whether a configuration has any of the keys, apart from those of the callback."""
    return any(value is not None for key, value in given.items() if key not in _CALLBACK_KEYS)


def _without_callback_keys(given: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration."""
    return {key: value for key, value in given.items() if key not in _CALLBACK_KEYS}


def _bare_name_as_mapping(word: str) -> str:
    """`adam` as `{"name": "adam"}`; YAML mappings, lists and null stay as they are."""
    return json.dumps({"name": word}) if re.fullmatch(r"[\w:-]+", word) and word not in ("null", "None") else word


class _OptplugCLI:
    """LightningCLI that takes optimizers, schedules and parameter groups by name.

    Adds the keys of `CLI_KEYS` to the configuration. They have the same form as in `optplug.configure_optimizers`, also
    in the saved configuration. The constructor's arguments are those of LightningCLI.

    With any of these keys, a `ConfigureOptimizers` callback is added to the trainer. With `scheduler` and without
    `optimizer`, the schedule is for the optimizer that the model's own `configure_optimizers` builds. Without the keys,
    the model is not changed. Wrong names, keys and values end the parsing with one message for each.
    """

    parser_base: type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The values of the keys at parsing, and the configuration that they were parsed into.
        self._checked: tuple[dict[str, Any], Config] | None = None
        kwargs["auto_configure_optimizers"] = False
        self._arguments = _Arguments()
        parser = kwargs.get("parser_class", self.parser_base)
        contents = {"arguments": self._arguments}
        kwargs["parser_class"] = type("OptplugArgumentParser", (_OptplugParser, parser), contents)
        super().__init__(*args, **kwargs)

    def add_default_arguments_to_parser(self, parser: Any) -> None:
        # Not in add_arguments_to_parser, which users override without calling super.
        super().add_default_arguments_to_parser(parser)  # type: ignore[misc]
        for key, field in CLI_KEYS.items():
            if key in NAME_KEYS:
                help_text = f"Show the arguments and the documentation of the {key} NAME, and exit."
                parser.add_argument(f"--{key}.help", action=_DescribeAction, kind=key, help=help_text)
            default = field.default if key in _CALLBACK_KEYS else None
            pointers = f"; see `optplug list` and --{key}.help NAME" if key in NAME_KEYS else ""
            words = f"{field.kind}: {field.plain_words}{pointers}"
            parser.add_argument(f"--{key}", type=_ANY_VALUE, default=default, help=words)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self._arguments.given = sys.argv[1:] if args is None else args
        super().parse_arguments(parser, args)  # type: ignore[misc]
        given = _optplug_keys(self.config)  # type: ignore[attr-defined]
        config, errors = check_values(given)
        errors = [*file_errors(self._arguments.given), *errors]
        if errors:
            parser.end_with(errors)
        if config is not None:
            self._checked = copy.deepcopy(given), config

    def instantiate_classes(self) -> None:
        super().instantiate_classes()  # type: ignore[misc]
        model, callbacks = self.model, self.trainer.callbacks  # type: ignore[attr-defined]
        if own_configure_optimizers(model) is not None or any(isinstance(c, ConfigureOptimizers) for c in callbacks):
            return
        if self.subcommand == "fit":  # type: ignore[attr-defined]
            self.parser.end_with([missing_optimizer(model)])  # type: ignore[attr-defined]
        elif self.subcommand is None:  # type: ignore[attr-defined]
            # The program may train the model later. The callback then reports that there is no optimizer.
            self.trainer.callbacks = [ConfigureOptimizers(), *callbacks]  # type: ignore[attr-defined]

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = super().instantiate_trainer(**kwargs)  # type: ignore[misc]
        given = _optplug_keys(self.config_init)  # type: ignore[attr-defined]
        if _has_optplug_keys(given):
            # Code that runs between parsing and this call may edit the configuration.
            if self._checked is not None and self._checked[0] == given:
                config = self._checked[1]
            else:
                config = parse_and_check(**_without_callback_keys(given))
            callback = ConfigureOptimizers.from_config(config, **{key: given[key] for key in _CALLBACK_KEYS})
            trainer.callbacks = [callback, *trainer.callbacks]
        return trainer
