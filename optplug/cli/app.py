"""The `optplug` command: `list` and `info`. The other subcommands are defined in the other modules of this package."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optplug.cli.bench import bench
from optplug.cli.config_commands import groups, schema, validate
from optplug.cli.new import new
from optplug.cli.plot import plot
from optplug.config.describe import describe_registration, encodable
from optplug.errors import OptplugError, UnknownNameError, suggest
from optplug.registry import KINDS, Registration, registry

app = typer.Typer(
    help="Optimizers, learning-rate schedules and functions of the epoch by name, from every installed plugin.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (validate, groups, schema, plot, bench, new):
    app.command()(command)


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False, emoji=False)


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="A glob over names, such as 'ada*', or 'plugin:*'.")] = "*",
) -> None:
    """List the optimizers, schedulers and functions of the installed plugins, without importing them."""
    console = _console()
    found = 0
    for kind in KINDS:
        names = registry.names(kind, pattern)
        registrations = registry.registrations(kind, pattern)
        found += len(registrations)
        if not registrations:
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in (kind, "plugin", "version", "summary"):
            table.add_column(column, no_wrap=column != "summary")
        for name, registration in zip(names, registrations, strict=True):
            row = (
                name,
                registration.plugin.name,
                f"{registration.plugin.distribution} {registration.plugin.version}",
                registration.spec.summary,
            )
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()
    for unused in (*registry.quarantined, *registry.rejected):
        console.print(escape(str(unused)), style="yellow")
    for plugin in registry.disabled:
        console.print(escape(f"plugin {plugin} is disabled by OPTPLUG_DISABLE"), style="dim")
    if not found:
        typer.echo(f"no optimizer, scheduler or function matches {pattern!r}", err=True)
        raise typer.Exit(1)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A name, in any case, with - or _; or plugin:name.")],
) -> None:
    """Show the plugin, the arguments with defaults, and the documentation of an optimizer, scheduler or function."""
    registration = _find_registration(name)
    try:
        text = describe_registration(registration)
    except OptplugError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    console = _console()
    text = encodable(text, console)
    heading, _, rest = text.partition("\n")
    console.print(heading, style="bold", markup=False)
    console.print(rest, markup=False)


def _find_registration(name: str) -> Registration:
    """The optimizer, scheduler or function of this name. For an unknown name the command exits with an error."""
    message = ""
    for kind in KINDS:
        try:
            return registry.resolve(kind, name)
        except UnknownNameError:
            names = [n for k in KINDS for n in registry.names(k)]
            hint = suggest(name, names, intro="the names are", see="optplug list")
            message = f"no optimizer, scheduler or function named {name!r}{hint}"
        except OptplugError as error:
            message = str(error)
            break
    typer.echo(f"error: {message}", err=True)
    for quarantined in registry.quarantined:
        typer.echo(str(quarantined), err=True)
    raise typer.Exit(1)
