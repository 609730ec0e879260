"""`optplug validate`, `optplug groups` and `optplug schema`: what a configuration file says, before it trains."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from optplug.config.error_collector import join_loc
from optplug.errors import ConfigError, ConfigErrors, OptplugError, describe, did_you_mean

if TYPE_CHECKING:  # it imports torch, which `optplug list` does without
    from optplug.cli.files import File, Section

ConfigArgument = Annotated[Path, typer.Argument(help="A file of YAML or JSON.", metavar="CONFIG")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:CLASS",
        help="The model: package.module:Class or path/to/file.py:Class. Its arguments are the file's section `model`. "
        "Not needed where that section has a class_path.",
    ),
]


def validate(config: ConfigArgument, model: ModelOption = None) -> None:
    """Check a configuration file and show it in full; with a model, the patterns of its groups too."""
    import yaml

    file, section, checked = _checked(config)
    module = _module(file, section, model, needed=False)
    if module is not None:
        _optimizers(file, section, checked, module)
    typer.echo(f"{config} is valid{'' if module is None else ' for ' + type(module).__name__}:\n")
    typer.echo(yaml.safe_dump(checked.to_dict(), sort_keys=False, allow_unicode=True).rstrip())


def groups(
    config: ConfigArgument,
    model: ModelOption = None,
    names: Annotated[bool, typer.Option("--names", help="List the parameters of each group.")] = False,
) -> None:
    """Show the parameter groups that a configuration file makes of a model: elements, learning rate, weight decay."""
    from optplug.config.param_groups import group_table

    file, section, checked = _checked(config)
    module = _module(file, section, model, needed=True)
    for optimizer in _optimizers(file, section, checked, module):
        table = group_table(optimizer, module)
        typer.echo(f"{type(optimizer).__name__} of {type(module).__name__}\n\n{table}\n")
        for row in table if names else ():
            typer.echo("\n  ".join((row.group, *row.parameters)) + "\n")


def schema() -> None:
    """Print the JSON Schema of configurations with the installed plugins, for editors to complete and check by."""
    from optplug.config.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _checked(path: Path) -> tuple[File, Section, Any]:
    """The parsed configuration of a file; what is wrong ends the command, with its lines."""
    from optplug.cli.files import File, near_misses, read
    from optplug.config.build import checked
    from optplug.config.error_collector import ErrorCollector

    file = File(path, None, None)
    loc = ""
    try:
        file = read(path)
        section = file.section()
        loc = section.loc
        collector = ErrorCollector()
        for key, error in near_misses(section):
            collector.add(error, key)
        override = section.values.get("override", False)
        if not isinstance(override, bool):
            collector.add(ConfigError(f"must be true or false, got {override!r}"), "override")
        with collector.collect(""):
            given = {key: value for key, value in section.values.items() if key != "override"}
            if not given and set(section.whole) <= {"verbose"} and not collector.errors:
                typer.echo(f"{path} is valid: the callback owns the schedules of the module's own configure_optimizers")
                raise typer.Exit
            config = checked(**given)
        collector.raise_collected()
    except OptplugError as error:
        _fail(file, loc, error)
    return file, section, config


def _optimizers(file: File, section: Section, config: Any, module: Any) -> list[Any]:
    """The optimizers of a configuration, built on a module."""
    from optplug.lightning.configure import optimizers

    try:
        return optimizers(module, config, override=bool(section.values.get("override")))
    except OptplugError as error:
        _fail(file, section.loc, error)


def _fail(file: File, section: str, error: OptplugError) -> NoReturn:
    """Say what is wrong, each with its line, and end the command."""
    errors = error.errors if isinstance(error, ConfigErrors) else (error,)
    found = [(file.line(join_loc(section, each.loc)) if each.loc else 0, str(each)) for each in errors]
    for line, says in sorted(found, key=lambda pair: pair[0]):
        typer.echo(f"{file.path}{f':{line}' if line else ''}: {says}", err=True)
    raise typer.Exit(1)


# ----------------------------------------------------------------------------------------- models


def _module(file: File, section: Section, model: str | None, *, needed: bool) -> Any:
    """The model, built from the file's section `model`; None where nothing says which."""
    given = section.whole.get("model", file.data.get("model"))
    given = dict(given) if isinstance(given, Mapping) else {}
    try:
        if model is not None:
            cls = _class(model)
            path = f"{cls.__module__}.{cls.__qualname__}"
            given = {"class_path": path, "init_args": given.get("init_args", given)}
        elif "class_path" not in given:
            if not needed:
                return None
            raise ConfigError("which model? The section model has no class_path: add --model package.module:Class")
        return _built(given)
    except OptplugError as error:
        _fail(file, "", error)


def _class(text: str) -> type:
    """The class of `package.module:Class` or `path/to/file.py:Class`."""
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise ConfigError(f"--model must be package.module:Class or path/to/file.py:Class, got {text!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        if where.endswith(".py"):
            sys.path.insert(0, str(Path(where).resolve().parent))  # as when it is run
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            if spec is None or spec.loader is None:
                raise ImportError(f"no module in {where}")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[spec.name]
                raise
        else:
            module = importlib.import_module(where)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"--model: {where} cannot be imported: {describe(error)}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"--model: {where} has no class {name!r}{did_you_mean(name, classes)}")
    return found


def _built(given: Mapping[str, Any]) -> Any:
    """An instance, with arguments parsed by their types as LightningCLI does."""
    try:
        from jsonargparse import ArgumentParser
        from torch import nn
    except ModuleNotFoundError as error:
        raise ConfigError(f"building the model needs {error.name}: pip install 'optplug[cli]'") from None
    sys.path.insert(0, str(Path.cwd()))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "model", required=True)
    try:
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # older versions have no other
        module = instantiate(parser.parse_object({"model": dict(given)})).model
        for method in _late(module):
            method()
    except Exception as error:  # jsonargparse's and the model's own
        raise ConfigError(f"the model {given['class_path']} cannot be built: {describe(error)}") from error
    return module


def _late(module: Any) -> Iterator[Any]:
    """What builds layers after construction."""
    if callable(getattr(module, "configure_model", None)):
        yield module.configure_model
