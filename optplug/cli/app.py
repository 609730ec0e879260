"""The `optplug` command: `list` and `info NAME` are here, the others come from their files."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optplug.cli.bench import bench
from optplug.cli.configs import groups, schema, validate
from optplug.config.describe import explain
from optplug.errors import OptplugError, UnknownNameError, did_you_mean
from optplug.registry import KINDS, Registration, registry

app = typer.Typer(
    help="Optimizers, learning-rate schedules and functions of the epoch by name, from every installed plugin.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (validate, groups, schema, bench):
    app.command()(command)


def _out() -> Console:
    return Console(soft_wrap=True, highlight=False)


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="A glob over names, such as 'ada*', or 'plugin:*'.")] = "*",
) -> None:
    """List the optimizers, schedulers and functions of the installed plugins, without importing them."""
    out = _out()
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
        out.print(table)
        out.print()
    for quarantined in registry.quarantined:
        out.print(escape(str(quarantined)), style="yellow")
    for plugin in registry.disabled:
        out.print(escape(f"plugin {plugin} is disabled by OPTPLUG_DISABLE"), style="dim")
    if not found:
        typer.echo(f"no optimizer, scheduler or function matches {pattern!r}", err=True)
        raise typer.Exit(1)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A name, in any case, with - or _; or plugin:name.")],
) -> None:
    """Show an optimizer, scheduler or function: where it comes from, its arguments and defaults, its documentation."""
    registration = _find(name)
    try:
        text = explain(registration)
    except OptplugError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    out = _out()
    text = text.encode(out.encoding, "replace").decode(out.encoding)  # a terminal may know no Greek
    heading, _, rest = text.partition("\n")
    out.print(escape(heading), style="bold")
    out.print(escape(rest))


def _find(name: str) -> Registration:
    """The optimizer, scheduler or function of a name; a name that is none ends the command."""
    complaint = ""
    for kind in KINDS:
        try:
            return registry.find(kind, name)
        except UnknownNameError:
            names = [n for k in KINDS for n in registry.names(k)]
            complaint = f"no optimizer, scheduler or function named {name!r}{did_you_mean(name, names)}"
        except OptplugError as error:
            complaint = str(error)
            break
    typer.echo(f"error: {complaint}", err=True)
    for quarantined in registry.quarantined:
        typer.echo(str(quarantined), err=True)
    raise typer.Exit(1)
