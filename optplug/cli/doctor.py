"""The command `optplug doctor`: what is installed, what optplug uses of it, and what is wrong."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Any

import typer

from optplug.cli.table import print_table
from optplug.errors import AmbiguousNameError, listing, one_line, short_list
from optplug.registry import KINDS, Plugin, PluginLoad, Registry, registry
from optplug.registry.plugin_registry import DISABLE_VARIABLE
from optplug.registry.specs import lookup_key

PACKAGES = ("optplug", "torch", "lightning", "pytorch-lightning", "numba", "llvmlite", "numpy", "triton", "pluggy")

SLOW_SECONDS = 0.05
"""The time to load a plugin from which it is slow."""

SHOWN_PLUGINS = 20
"""The number of plugins that are shown in text: the slowest ones. JSON has all."""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, plugins, engines and clashes of names, and what is wrong. The exit code is 1 if something is."""
    plugins = plugin_facts(registry)  # first: the plugins are loaded as in `optplug list`, before torch is imported
    versions = package_versions()
    engines, threads = engine_facts(), thread_facts()
    clashes, shared = name_facts(registry)
    rejected = [
        {"plugin": each.plugin.name, "kind": each.kind, "name": each.name, "cause": each.cause}
        for each in registry.rejected
    ]
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "engines": engines,
        "threads": threads,
        "plugins": plugins,
        "rejected": rejected,
        "clashes": clashes,
        "shared_names": shared,
    }
    facts["problems"] = list(problems(facts))
    facts["notes"] = list(notes(facts))
    typer.echo(json.dumps(facts, indent=2)) if as_json else _print_facts(facts)
    if facts["problems"]:
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------ facts


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python and of `PACKAGES`, without importing them; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def plugin_facts(registry: Registry) -> list[dict[str, Any]]:
    """Return the plugins: the state of each, how many names it registers, and what it takes to load it."""
    causes = {quarantined.plugin: quarantined.cause for quarantined in registry.quarantined}
    rejected = {each.plugin for each in registry.rejected}

    def state(load: PluginLoad) -> str:
        if load.plugin in causes:
            return "quarantined"
        return "active" if load.names or load.plugin in rejected else "inactive"

    def facts(plugin: Plugin, state: str, cause: str, load: PluginLoad | None = None) -> dict[str, Any]:
        return {
            "plugin": plugin.name,
            "package": plugin.distribution,
            "version": plugin.version,
            "state": state,
            "cause": cause,
            "names": 0 if load is None else load.names,
            "milliseconds": 0.0 if load is None else round(1e3 * load.seconds, 1),
            "imports": [] if load is None else list(load.imported),
        }

    def cause(load: PluginLoad) -> str:
        return f"gives way to plugin {load.gives_way_to}" if load.gives_way_to else causes.get(load.plugin, "")

    loaded = [facts(load.plugin, state(load), cause(load), load) for load in registry.loads]
    return [*loaded, *(facts(plugin, "disabled", DISABLE_VARIABLE) for plugin in registry.disabled)]


def name_facts(registry: Registry) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the names that clash, and those of several plugins of which the name alone means the first."""
    clashes: list[dict[str, Any]] = []
    shared: list[dict[str, Any]] = []
    for kind in KINDS:
        names = {lookup_key(each.name): each for each in registry.registrations(kind)}
        for registration in names.values():
            others = [each.qualified_name for each in registry.others(registration)]
            facts = {"kind": kind, "name": registration.name}
            if not others:
                continue
            try:
                chosen = registry.resolve(kind, registration.name)
            except AmbiguousNameError:
                clashes.append({**facts, "choices": sorted([registration.qualified_name, *others])})
            else:
                others = registry.alternatives(kind, registration.name)
                shared.append({**facts, "chosen": chosen.qualified_name, "others": others})
    return clashes, shared


def engine_facts() -> list[dict[str, str]]:
    """Return the engines, the fastest first, each with the reason why it is not available; none without torch."""
    try:
        from optplug.engines import ENGINES, PLANNED
    except Exception as error:  # the import of torch can fail in any way
        return [{"engine": "all", "unavailable": one_line(error)}]
    found = [{"engine": engine.name, "unavailable": engine.unavailable() or ""} for engine in ENGINES]
    return [*found, *({"engine": name, "unavailable": "not part of this version"} for name in PLANNED)]


def thread_facts() -> dict[str, Any]:
    """Return what the speed of steps depends on: processor cores, threads and GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    variables = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    try:
        import torch
    except Exception:  # it is one of the problems
        return {"cores": cores, "torch_threads": None, "gpus": None, "variables": variables}
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"cores": cores, "torch_threads": torch.get_num_threads(), "gpus": gpus, "variables": variables}


# ------------------------------------------------------------------------------------------ what is wrong


def problems(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong."""
    for plugin in facts["plugins"]:
        if plugin["state"] == "quarantined":
            source = f"{plugin['package']} {plugin['version']}"
            yield f"plugin {plugin['plugin']} ({source}) is quarantined: {plugin['cause']}"
    for item in facts["rejected"]:
        yield f"{item['kind']} {item['name']} of plugin {item['plugin']} is not used: {item['cause']}"
    for clash in facts["clashes"]:
        yield f"{clash['kind']} {clash['name']} is ambiguous: write {' or '.join(clash['choices'])}"
    for engine in facts["engines"]:
        if engine["engine"] == "all":
            yield f"torch cannot be used: {engine['unavailable']}"
        elif engine["unavailable"] and facts["versions"].get(engine["engine"]) is not None:
            yield f"engine {engine['engine']} is not available: {engine['unavailable']}"


def notes(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what costs time, and what can be installed."""
    for plugin in facts["plugins"]:
        name = plugin["plugin"]
        if plugin["imports"]:
            imported = listing(plugin["imports"])
            yield f"plugin {name} imports {imported} when names are listed: its specs should name 'module:object'"
        elif plugin["milliseconds"] > 1e3 * SLOW_SECONDS:
            yield f"plugin {name} takes {plugin['milliseconds']:.0f} ms when names are listed"
    for engine in facts["engines"]:
        if engine["engine"] == "numba" and engine["unavailable"] and facts["versions"]["numba"] is None:
            yield f"steps on the CPU are not fused: {engine['unavailable']}"
    threads = facts["threads"]
    if threads["torch_threads"] is not None and threads["torch_threads"] > threads["cores"]:
        yield f"torch uses {threads['torch_threads']} threads on {threads['cores']} cores: torch.set_num_threads"


# ------------------------------------------------------------------------------------------ text


def _print_facts(facts: dict[str, Any]) -> None:
    versions = facts["versions"]
    typer.echo(listing(f"{name} {version}" for name, version in versions.items() if version) + f" on {facts['system']}")
    typer.echo(f"not installed: {listing(name for name, version in versions.items() if not version)}")
    typer.echo(_threads_line(facts["threads"]) + "\n")
    print_table(("engine", "state"), [(e["engine"], e["unavailable"] or "available") for e in facts["engines"]])
    typer.echo()
    _print_plugins(facts["plugins"])
    if facts["shared_names"]:
        names = short_list((each["name"] for each in facts["shared_names"]), "optplug list", limit=6)
        typer.echo(f"names of several plugins, of which the first is meant: {names}")
    typer.echo()
    for note in facts["notes"]:
        typer.secho(f"note: {note}", fg="yellow")
    for problem in facts["problems"]:
        typer.secho(f"problem: {problem}", fg="red")
    if not facts["problems"]:
        typer.secho("no problems", fg="green")


def _threads_line(threads: dict[str, Any]) -> str:
    variables = "".join(f", {name}={value}" for name, value in threads["variables"].items())
    gpus = "CUDA is not available" if not threads["gpus"] else f"{threads['gpus']} GPUs"
    kernels = "kernels are compiled in each process; nothing is cached on disk"
    return f"{threads['cores']} cores, {threads['torch_threads']} threads of torch{variables}; {gpus}; {kernels}"


def _print_plugins(plugins: list[dict[str, Any]]) -> None:
    loaded = [each for each in plugins if each["state"] == "active"]
    slowest = sorted(loaded, key=lambda each: -each["milliseconds"])[:SHOWN_PLUGINS]
    rows = [
        (each["plugin"], f"{each['package']} {each['version']}", str(each["names"]), f"{each['milliseconds']:.1f}")
        for each in slowest
    ]
    print_table(("plugin", "source", "names", "ms to load"), rows)
    if rest := [each for each in loaded if each not in slowest]:
        names, cost = sum(each["names"] for each in rest), sum(each["milliseconds"] for each in rest)
        typer.echo(f"{len(rest)} further plugins with {names} names, {cost:.0f} ms")
    for each in plugins:
        if each["state"] == "inactive" and each["cause"]:
            typer.echo(f"adapter {each['plugin']} ({each['package']} {each['version']}) {each['cause']}")
    for state, cause, words in (
        ("inactive", "", "no names (an adapter whose package is not installed)"),
        ("disabled", DISABLE_VARIABLE, f"disabled by {DISABLE_VARIABLE}"),
    ):
        if found := [each["plugin"] for each in plugins if (each["state"], each["cause"]) == (state, cause)]:
            typer.echo(f"{words}: {short_list(found, limit=15)}")
