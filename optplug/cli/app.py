"""The `optplug` command: its subcommands. A subcommand is imported when it runs."""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperGroup

from optplug.registry import registry

COMMANDS = MappingProxyType(
    {
        "list": "optplug.cli.names:list_names",
        "info": "optplug.cli.names:info",
        "validate": "optplug.cli.config_commands:validate",
        "groups": "optplug.cli.config_commands:groups",
        "schema": "optplug.cli.config_commands:schema",
        "plot": "optplug.cli.plot:plot",
        "bench": "optplug.cli.bench:bench",
        "check": "optplug.cli.check:check",
        "new": "optplug.cli.new:new",
        "doctor": "optplug.cli.doctor:doctor",
    }
)
"""The subcommands: by name, the module and the function."""


class LazyGroup(TyperGroup):
    """The group of `COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].partition(":")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name)(getattr(importlib.import_module(module), function))
        return typer.main.get_command(single)


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def optplug() -> None:
    """Optimizers, learning-rate schedules and functions of the epoch by name, from every installed plugin."""
    with contextlib.redirect_stdout(sys.stderr):  # what plugins print is no part of the output, which may be JSON
        _ = registry.plugins
