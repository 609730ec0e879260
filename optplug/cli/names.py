"""The commands `optplug list` and `optplug info`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from optplug.cli.table import print_table
from optplug.errors import OptplugError, UnknownNameError, suggest
from optplug.registry import KINDS, Plugin, Registration, registry

PatternsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Globs over names, such as 'ada*', or over plugin:name, such as 'torch:*'. Default: all names.",
        show_default=False,
    ),
]


def list_names(
    patterns: PatternsArgument = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with what `optplug info` has without import.")
    ] = False,
) -> None:
    """List the optimizers, schedulers and functions of the installed plugins, without importing them."""
    globs = patterns or ["*"]
    listed = {kind: registry.named_registrations(kind, *globs) for kind in KINDS}
    typer.echo(json.dumps(_as_data(listed), indent=2)) if as_json else _print_names(listed)
    unmatched = [each for each in globs if not any(registry.named_registrations(kind, each) for kind in KINDS)]
    for pattern in unmatched:
        typer.echo(f"no optimizer, scheduler or function matches {pattern!r}", err=True)
    if unmatched:
        raise typer.Exit(1)


Listed = dict[str, list[tuple[str, Registration]]]
"""By kind, the names and what they mean."""


def _print_names(listed: Listed) -> None:
    for kind, named in listed.items():
        if named:
            print_table((kind, "plugin", "source", "fused", "summary"), [_row(*pair) for pair in named])
            typer.echo()
    for unused in (*registry.quarantined, *registry.rejected):
        typer.secho(str(unused), fg="yellow")
    for plugin in registry.disabled:
        typer.secho(f"plugin {plugin} is disabled by OPTPLUG_DISABLE", dim=True)


def _row(name: str, registration: Registration) -> tuple[str, ...]:
    also = registry.others_text(registration.spec.kind, name)
    spec = registration.spec
    unusable = f"cannot be used: {spec.unsupported}" if spec.unsupported else ""
    summary = " ".join(filter(None, (unusable or spec.summary, also and f"({also})")))
    return name, registration.plugin.name, str(registration.source), "yes" if registration.is_fused else "-", summary


def _as_data(listed: Listed) -> dict[str, Any]:
    return {
        "names": [_name_data(kind, *pair) for kind, named in listed.items() for pair in named],
        "quarantined": [{**_plugin_data(each.plugin), "cause": each.cause} for each in registry.quarantined],
        "rejected": [
            {**_plugin_data(each.plugin), "kind": each.kind, "name": each.name, "cause": each.cause}
            for each in registry.rejected
        ],
        "disabled": [_plugin_data(plugin) for plugin in registry.disabled],
    }


def _name_data(kind: str, name: str, registration: Registration) -> dict[str, Any]:
    spec, source = registration.spec, registration.source
    return {
        "name": name,
        "kind": kind,
        "plugin": registration.plugin.name,
        "qualified_name": registration.qualified_name,
        "package": source.distribution,
        "version": source.version,
        "fused": registration.is_fused,
        "capabilities": sorted(spec.capabilities),
        "summary": spec.summary,
        "unsupported": spec.unsupported,
        "alternatives": registry.alternatives(kind, name),
    }


def _plugin_data(plugin: Plugin) -> dict[str, str]:
    return {"plugin": plugin.name, "package": plugin.distribution, "version": plugin.version}


def info(
    name: Annotated[str, typer.Argument(help="A name, in any case, with - or _; or plugin:name.")],
) -> None:
    """Show the plugin, the arguments with defaults, and the documentation of an optimizer, scheduler or function."""
    import sys

    from optplug.config.describe import describe_registration, encodable  # imports torch

    registration = _find_registration(name)
    try:
        text = encodable(describe_registration(registration), sys.stdout)
    except OptplugError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    heading, _, rest = text.partition("\n")
    typer.secho(heading, bold=True)
    typer.echo(rest)


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
