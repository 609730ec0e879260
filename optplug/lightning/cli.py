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
from typing import Any

from optplug.config.build import parse_and_check
from optplug.config.describe import describe_registration, encodable
from optplug.config.form import CALLBACK_OPTIONS, SUBCOMMANDS, VERBOSE
from optplug.config.model import Config
from optplug.config.plain_data import to_builtins
from optplug.errors import OptplugError
from optplug.lightning._compat import supported_import_name
from optplug.lightning.callback import ConfigureOptimizers
from optplug.lightning.cli_arguments import (
    CLI_KEYS,
    ParsedArguments,
    all_errors,
    check_values,
    duplicate_key_errors,
    own_values,
    set_value,
    word_value,
)
from optplug.lightning.configure import missing_optimizer, own_configure_optimizers
from optplug.registry import registry

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
        MissingLightningError: Lightning is not installed under either name, or is too old.
    """
    import_name = supported_import_name(f"{module}.OptplugCLI", import_name)
    lightning_cli = importlib.import_module(f"{import_name}.cli")
    contents = {"__module__": module, "__doc__": _OptplugCLI.__doc__}
    return type("OptplugCLI", (_OptplugCLI, lightning_cli.LightningCLI), contents)


class _OptplugParser:
    """Parser mixin.

    It turns a bare name into a mapping, for `--optimizer adam --optimizer.lr 0.01`, and reports all errors at once,
    without the usage, which has a line for each option of the Trainer.
    """

    arguments: ParsedArguments

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        flags = [f"--{key}" for key in NAME_KEYS]
        converted = list(words)
        for i, word in enumerate(words):
            flag, equals, name = word.partition("=")
            if equals and flag in flags:
                converted[i] = f"{flag}={_bare_name_as_mapping(name)}"
            elif i and words[i - 1] in flags:
                converted[i] = _bare_name_as_mapping(word)
        self.arguments.written = dict(zip(converted, words, strict=True))
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
            message = _joined(all_errors(self.arguments, message))
        return super().error(message, *args, **kwargs)  # type: ignore[misc]

    def end_with(self, errors: Sequence[str]) -> Any:
        """Report errors, and exit."""
        return super().error(_joined(errors))  # type: ignore[misc]

    def print_usage(self, file: Any = None) -> None:
        if file is not sys.stderr:
            super().print_usage(file)  # type: ignore[misc]

    def parse_string(self, *args: Any, **kwargs: Any) -> Any:
        config = super().parse_string(*args, **kwargs)  # type: ignore[misc]
        for section in ("", *(f"{subcommand}." for subcommand in self.arguments.subcommands)):
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


class _MergingAction:
    """The action of an option whose value is a mapping with mappings inside.

    jsonargparse replaces an inner mapping when one of its keys is given, as by `--scheduler.warmup.steps 4`. This class
    keeps the other keys of the inner mapping.
    """

    dest: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            parser, namespace, value, option = args
            key, *inner = option.removeprefix("--").split(".")
            if len(inner) > 1:
                before = to_builtins(namespace.get(self.dest))
                values = {key: before.get(inner[0]) if isinstance(before, Mapping) else None}
                set_value(values, ".".join([key, *inner[1:]]), word_value(value))
                args = (parser, namespace, json.dumps(values[key], default=str), f"--{key}.{inner[0]}")
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


def _optplug_keys(config: Any) -> dict[str, Any]:
    """The values of `CLI_KEYS` in a configuration of LightningCLI, which nests them under its subcommand, if any."""
    section = config.get(str(config.get("subcommand")), config)
    return {key: section.get(key) for key in CLI_KEYS}


def _bare_name_as_mapping(word: str) -> str:
    """`adam` as `{"name": "adam"}`; YAML mappings, lists and null stay as they are."""
    is_name = re.fullmatch(r"[\w:-]+(\.\w+)*", word) and word != "null"
    return json.dumps({"name": word}) if is_name else word


def _hidden_error(error: BaseException | None) -> OptplugError | None:
    """The error of optplug behind an error of jsonargparse."""
    while error is not None and not isinstance(error, OptplugError):
        error = error.__cause__ or error.__context__
    return error


class _OptplugCLI:
    """LightningCLI that takes optimizers, schedules and parameter groups by name.

    Adds the keys of `CLI_KEYS` to the configuration. They have the same form as in `optplug.configure_optimizers`, also
    in the saved configuration. The constructor's arguments are those of LightningCLI.

    With any of these keys, a `ConfigureOptimizers` callback is added to the trainer. With `scheduler` and without
    `optimizer`, the schedule is for the optimizer that the model's own `configure_optimizers` builds. Without the keys,
    the model is not changed. Wrong names, keys and values end the parsing with one message for each.
    """

    parser: Any
    subcommand: str | None
    subcommands: Any
    config: Any
    config_init: Any
    model: Any
    trainer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The values of the keys at parsing, and the configuration that they were parsed into.
        self._checked: tuple[dict[str, Any], Config] | None = None
        kwargs["auto_configure_optimizers"] = False
        self._arguments = ParsedArguments(subcommands=tuple(self.subcommands()))
        super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> Any:
        parser = super().init_parser(**kwargs)  # type: ignore[misc]
        # The argument `parser_class` of LightningCLI is the user's, and Lightning 2.4 and 2.5.0 do not have it.
        contents = {"arguments": self._arguments}
        parser.__class__ = type("OptplugArgumentParser", (_OptplugParser, type(parser)), contents)
        return parser

    def add_default_arguments_to_parser(self, parser: Any) -> None:
        # Not in add_arguments_to_parser, which users override without calling super.
        super().add_default_arguments_to_parser(parser)  # type: ignore[misc]
        self._arguments.parsers.append(parser)
        for key, field in CLI_KEYS.items():
            if key in NAME_KEYS:
                help_text = f"Show the arguments and the documentation of the {key} NAME, and exit."
                parser.add_argument(f"--{key}.help", action=_DescribeAction, kind=key, help=help_text)
            default = field.default if key in CALLBACK_OPTIONS else None
            pointers = f"; see `optplug list` and --{key}.help NAME" if key in NAME_KEYS else ""
            words = f"{field.kind}: {field.plain_words}{pointers}"
            action = parser.add_argument(f"--{key}", type=_ANY_VALUE, default=default, help=words)
            action.__class__ = type("MergingAction", (_MergingAction, type(action)), {})

    def parse_arguments(self, parser: Any, args: Any) -> None:
        arguments = self._arguments
        arguments.given = sys.argv[1:] if args is None else args
        if parser not in arguments.parsers:  # it has subcommands
            arguments.parsers.append(parser)
        super().parse_arguments(parser, args)  # type: ignore[misc]
        given = _optplug_keys(self.config)
        config, errors = check_values(given, arguments)
        errors = [*duplicate_key_errors(arguments), *errors]
        if errors:
            parser.end_with(errors)
        if config is not None:
            self._checked = copy.deepcopy(given), config
        arguments.given = ()  # errors that the program reports later are its own

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()  # type: ignore[misc]
        except ValueError as error:
            hidden = None if isinstance(error, OptplugError) else _hidden_error(error)
            if hidden is None:
                raise
            # jsonargparse created a ConfigureOptimizers in trainer.callbacks.
            self.parser.end_with([str(one) for one in hidden.errors])
        # The program, or the user's own subcommand, may train the model later. The callback then reports that there is
        # no optimizer.
        if self.subcommand not in SUBCOMMANDS and not self._has_optimizer():
            callback = ConfigureOptimizers()
            callback.manage_third_party_plateaus = False
            self.trainer.callbacks = [callback, *self.trainer.callbacks]

    def _has_optimizer(self) -> bool:
        """Whether the model has a `configure_optimizers`, or the trainer a `ConfigureOptimizers`."""
        callbacks = self.trainer.callbacks
        return own_configure_optimizers(self.model) is not None or any(
            isinstance(callback, ConfigureOptimizers) for callback in callbacks
        )

    def fit(self, model: Any, **kwargs: Any) -> Any:
        """Run the subcommand `fit`. LightningCLI calls it after `before_fit`, which may add an optimizer."""
        if not self._has_optimizer():
            self.parser.end_with([missing_optimizer(model)])
        return self.trainer.fit(model, **kwargs)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = super().instantiate_trainer(**kwargs)  # type: ignore[misc]
        given = _optplug_keys(self.config_init)
        if own := own_values(given):
            # Code that runs between parsing and this call may edit the configuration.
            checked, config = self._checked or (None, None)
            if config is None or checked != given:
                config = parse_and_check(**own)
            callback = ConfigureOptimizers.from_config(config, **{key: given[key] for key in CALLBACK_OPTIONS})
            trainer.callbacks = [callback, *trainer.callbacks]
        return trainer
