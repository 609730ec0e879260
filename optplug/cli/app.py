"""`optplug list`, `optplug info NAME` and `optplug bench`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optplug.cli.bench import bench
from optplug.config import configurable
from optplug.errors import OptplugError, UnknownNameError, did_you_mean
from optplug.registry import KINDS, Offer, registry
from optplug.specs import API_VERSION, FunctionSpec, SchedulerSpec

app = typer.Typer(
    help="Optimizers, learning-rate schedules and functions of the epoch by name, from every installed plugin.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(bench)


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
        offers = registry.offers(kind, pattern)
        found += len(offers)
        if not offers:
            continue
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in (kind, "plugin", "version", "summary"):
            table.add_column(column, no_wrap=column != "summary")
        for name, offer in zip(names, offers, strict=True):
            row = (name, offer.plugin.name, f"{offer.plugin.distribution} {offer.plugin.version}", offer.spec.summary)
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
    offer = _find(name)
    out = _out()
    try:
        found = registry.get(offer.spec.kind, offer.qualified)
    except OptplugError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    spec = offer.spec
    out.print(escape(f"{offer.name}: {spec.summary}" if spec.summary else offer.name), style="bold")
    facts = {
        "kind": spec.kind,
        spec.thing[0]: _path(found),
        "plugin": str(offer.plugin),
        "plugin API": f"{spec.api_version} (this optplug speaks {API_VERSION})",
        "capabilities": "; ".join(f"{c}: {spec.CAPABILITIES[c]}" for c in sorted(spec.capabilities)) or "none declared",
    }
    if isinstance(spec, SchedulerSpec):
        facts["interval"] = "validation" if "metric" in spec.capabilities else spec.interval
    for key, value in facts.items():
        out.print(f"  {key:<13} {escape(value)}")
    out.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("argument", "type", "default"):
        table.add_column(column)
    for parameter in _arguments(offer, found):
        kind = parameter.annotation
        if not isinstance(kind, str):
            kind = "" if kind is parameter.empty else inspect.formatannotation(kind)
        default = "required" if parameter.default is parameter.empty else repr(parameter.default)
        table.add_row(*map(escape, (parameter.name, kind, default)))
    out.print(table)
    out.print()
    out.print(escape(inspect.getdoc(found) or "no documentation"))


def _path(found: Any) -> str:
    """Where a class or function is; an object that can be called stands for its class."""
    named = found if hasattr(found, "__qualname__") else type(found)
    return f"{named.__module__}.{named.__qualname__}"


def _arguments(offer: Offer, found: Any) -> Iterable[inspect.Parameter]:
    if not isinstance(offer.spec, FunctionSpec):
        return configurable(offer).values()
    try:
        return inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # some functions written in C do not tell
        return ()


def _find(name: str) -> Offer:
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
