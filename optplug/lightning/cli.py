"""`OptplugCLI`: LightningCLI that takes optimizers, schedules and parameter groups by name, in optplug's own form."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from typing import Any

from optplug.config.build import checked
from optplug.config.describe import explain
from optplug.config.model import SUBCOMMANDS
from optplug.errors import OptplugError, did_you_mean
from optplug.lightning._compat import installed_import_names
from optplug.lightning.callback import ConfigureOptimizers
from optplug.registry import registry

KEYS: dict[str, tuple[Any, str]] = {
    "optimizer": (
        str | dict[str, Any] | list[dict[str, Any]] | None,
        "A name, or {name: adam, lr: 1.0e-3, ...}, or a list of these; see `optplug list` and --optimizer.help NAME.",
    ),
    "scheduler": (
        str | dict[str, Any] | None,
        "A name, or {name: cosine_annealing_lr, T_max: auto, warmup_steps: 100, ...}; see --scheduler.help NAME.",
    ),
    "param_groups": (
        str | list[str | dict[str, Any]] | None,
        "Options by parameter: [no_decay, {match: 'head.*', lr_mult: 10}, ...].",
    ),
    "monitor": (str | None, "The metric that a plateau watches; see the documentation for how it is found."),
    "mode": (str | None, "Whether less of it is better (min) or more (max)."),
    "on_resume": (
        str | None,
        "What counts on resuming: keep (the checkpoint), override_hparams, reset_scheduler or reset_all.",
    ),
    "override": (bool, "Replace a configure_optimizers that the model defines itself."),
}
"""The keys that OptplugCLI adds, which are the callback's arguments of these names."""


def cli_class(namespace: str, module: str) -> type:
    """OptplugCLI over the LightningCLI of one import name, or of the other where only that is installed.

    Args:
        namespace: `"lightning.pytorch"` or `"pytorch_lightning"`. module: where the class will be found.
    """
    if namespace not in installed_import_names():
        (namespace,) = installed_import_names()
    lightning_cli = importlib.import_module(f"{namespace}.cli")
    contents = {
        "__module__": module,
        "__doc__": _OptplugCLI.__doc__,
        "parser_base": lightning_cli.LightningArgumentParser,
    }
    return type("OptplugCLI", (_OptplugCLI, lightning_cli.LightningCLI), contents)


NAMED = ("optimizer", "scheduler")
"""Those of them that may be a bare name."""


class _BareNames:
    """Takes `--optimizer adam --optimizer.lr 0.01`: a bare name is a mapping that options can be added to."""

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        flags = [f"--{key}" for key in NAMED]
        spelled: list[str] = []
        for i, word in enumerate(given):
            flag, equals, name = word.partition("=")
            if equals and flag in flags:
                word = f"{flag}={_as_mapping(name)}"
            elif i and given[i - 1] in flags:
                word = _as_mapping(word)
            spelled.append(word)
        return super().parse_args(spelled, *rest, **kwargs)  # type: ignore[misc]

    def error(self, message: str, *args: Any, **kwargs: Any) -> Any:
        # jsonargparse knows no nearest match, and `lr_scheduler` is LightningCLI's word for `scheduler`.
        unknown = re.search(r"(?:[Oo]ption '|[Kk]ey '|[Kk]ey \"|unrecognized arguments: --)(\w+)", message)
        hint = did_you_mean(unknown[1], KEYS) if unknown and unknown[1] not in KEYS else ""
        return super().error(message + hint, *args, **kwargs)  # type: ignore[misc]

    def parse_string(self, *args: Any, **kwargs: Any) -> Any:
        config = super().parse_string(*args, **kwargs)  # type: ignore[misc]
        for section in ("", *(f"{subcommand}." for subcommand in SUBCOMMANDS)):
            for key in NAMED:
                if isinstance(config.get(section + key), str):
                    config[section + key] = {"name": config[section + key]}
        return config


class _Explain(argparse.Action):
    """`--optimizer.help NAME`: everything that a name takes, in its own words."""

    def __init__(self, option_strings: Any, dest: str = "", kind: str = "", **kwargs: Any) -> None:
        self.kind = kind
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, metavar="NAME", **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            print(explain(registry.find(self.kind, values)))
        except OptplugError as error:
            parser.error(str(error))
        parser.exit()


def _configures(given: dict[str, Any]) -> bool:
    return any(value is not None for key, value in given.items() if key != "override")


def _as_mapping(word: str) -> str:
    return json.dumps({"name": word}) if re.fullmatch(r"[\w:-]+", word) and word not in ("null", "None") else word


class _OptplugCLI:
    """LightningCLI that takes optimizers, schedules and parameter groups by name.

    Adds the keys `optimizer`, `scheduler`, `param_groups`, `monitor`, `mode`, `on_resume` and `override` to a
    configuration, in the form they have everywhere in optplug, and saves them back in it. Arguments are LightningCLI's.

    A configuration with `optimizer` adds a `ConfigureOptimizers` callback to the trainer; one with `scheduler` alone
    adds one that schedules the model's own optimizer; one with neither leaves the model to itself. Wrong names, keys
    and values end parsing with one sentence for each.
    """

    parser_base: type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["auto_configure_optimizers"] = False
        parser = kwargs.get("parser_class", self.parser_base)
        kwargs["parser_class"] = type("OptplugArgumentParser", (_BareNames, parser), {})
        super().__init__(*args, **kwargs)

    def add_default_arguments_to_parser(self, parser: Any) -> None:
        # Not add_arguments_to_parser: that one is for users to override.
        super().add_default_arguments_to_parser(parser)  # type: ignore[misc]
        for key, (kind, words) in KEYS.items():
            if key in NAMED:
                words_of_help = f"Show what the {key} of a name takes, and exit."
                parser.add_argument(f"--{key}.help", action=_Explain, kind=key, help=words_of_help)
            parser.add_argument(f"--{key}", type=kind, default=False if kind is bool else None, help=words)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        super().parse_arguments(parser, args)  # type: ignore[misc]
        config = self.config  # type: ignore[attr-defined]
        config = config.get(str(config.get("subcommand")), config)
        given = {key: config.get(key) for key in KEYS}
        if not _configures(given):
            return
        try:
            checked(**{key: value for key, value in given.items() if key != "override"})
        except OptplugError as error:
            parser.error(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = super().instantiate_trainer(**kwargs)  # type: ignore[misc]
        given = {key: self._get(self.config_init, key) for key in KEYS}  # type: ignore[attr-defined]
        if _configures(given):
            trainer.callbacks = [ConfigureOptimizers(**given), *trainer.callbacks]
        return trainer
