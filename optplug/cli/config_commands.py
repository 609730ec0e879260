"""The subcommands `validate`, `groups` and `schema`: check and show a configuration file before training."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from optplug.errors import ConfigError, ErrorCollector, Loc, OptplugError, did_you_mean, one_line

if TYPE_CHECKING:  # this module imports torch, and `optplug list` works without importing torch
    from optplug.cli.config_files import ConfigFile, ConfigSection

ConfigArgument = Annotated[Path, typer.Argument(help="A file of YAML or JSON.", metavar="CONFIG")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:CLASS",
        help="The model: package.module:Class or path/to/file.py:Class. Its arguments are the file's section `model`. "
        "Not needed if this section has a class_path.",
    ),
]


def validate(config: ConfigArgument, model: ModelOption = None) -> None:
    """Check a configuration file and print it in full. With a model, check the patterns of its groups too."""
    import yaml

    file, section, checked = _load(config)
    module = _build_model(file, section, model, required=False)
    if module is not None:
        _build_optimizers(file, section, checked, module)
    typer.echo(f"{config} is valid{'' if module is None else ' for ' + type(module).__name__}:\n")
    typer.echo(yaml.safe_dump(checked.to_dict(), sort_keys=False, allow_unicode=True).rstrip())


def groups(
    config: ConfigArgument,
    model: ModelOption = None,
    names: Annotated[bool, typer.Option("--names", help="List the parameters of each group.")] = False,
) -> None:
    """Show the parameter groups of a model for a configuration file: elements, learning rate, weight decay."""
    from optplug.config.param_groups import group_table

    file, section, checked = _load(config)
    module = _build_model(file, section, model, required=True)
    for optimizer in _build_optimizers(file, section, checked, module):
        table = group_table(optimizer, module)
        typer.echo(f"{type(optimizer).__name__} of {type(module).__name__}\n\n{table}\n")
        for row in table if names else ():
            typer.echo("\n  ".join((row.group, *row.parameters)) + "\n")


def schema() -> None:
    """Print the JSON Schema of configurations with the installed plugins, for completion and checks in editors."""
    from optplug.config.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _load(path: Path) -> tuple[ConfigFile, ConfigSection, Any]:
    """Read and check a configuration file. If it has errors, the command exits and prints them with their lines."""
    from optplug.cli.config_files import ConfigFile, key_errors, read_config_file
    from optplug.config.build import parse_and_check
    from optplug.config.form import OVERRIDE

    file = ConfigFile(path, None, None)
    loc: Loc = ()
    try:
        file = read_config_file(path)
        section = file.section()
        loc = section.loc
        collector = ErrorCollector()
        for key, error in key_errors(section):
            collector.add(error, (key,))
        with collector.collect(("override",)):
            OVERRIDE.read(section.values.get("override", False))
        with collector.collect():
            given = {key: value for key, value in section.values.items() if key != "override"}
            if not given and set(section.mapping) <= {"verbose"} and not collector.errors:
                typer.echo(
                    f"{path} is valid: the callback steps the schedulers that the module's own configure_optimizers "
                    "returns"
                )
                raise typer.Exit
            config = parse_and_check(**given)
        collector.raise_collected()
    except OptplugError as error:
        _exit_with_errors(file, loc, error)
    return file, section, config


def _build_optimizers(file: ConfigFile, section: ConfigSection, config: Any, module: Any) -> list[Any]:
    from optplug.lightning.configure import build_optimizers

    try:
        return build_optimizers(module, config, override=bool(section.values.get("override")))
    except OptplugError as error:
        _exit_with_errors(file, section.loc, error)


def _exit_with_errors(file: ConfigFile, loc: Loc, error: OptplugError) -> NoReturn:
    """Print each error with its line, in the order of lines, and exit with code 1.

    Args:
        file: the file.
        loc: the location of the section, to which the errors' locations are relative.
        error: one error, or several in one.
    """
    found = [(file.line_of((*loc, *each.loc)) if each.loc else 0, str(each)) for each in error.errors]
    for line, message in sorted(found, key=lambda pair: pair[0]):
        typer.echo(f"{file.path}{f':{line}' if line else ''}: {message}", err=True)
    raise typer.Exit(1)


# ------------------------------------------------------------------------------------------ models


def _build_model(file: ConfigFile, section: ConfigSection, model: str | None, *, required: bool) -> Any:
    """Build the model from the file's section `model`.

    Args:
        file: the file.
        section: the section that configures optplug. A section `model` next to it has precedence.
        model: the value of `--model`, or None.
        required: whether a missing model is an error.

    Returns:
        The model; None if neither `--model` nor the file names a class.
    """
    given = section.mapping.get("model", file.data.get("model"))
    given = dict(given) if isinstance(given, Mapping) else {}
    try:
        if model is not None:
            cls = _import_class(model)
            path = f"{cls.__module__}.{cls.__qualname__}"
            given = {"class_path": path, "init_args": given.get("init_args", given)}
        elif "class_path" not in given:
            if not required:
                return None
            raise ConfigError("the section model has no class_path: add --model package.module:Class")
        return _instantiate(given)
    except OptplugError as error:
        _exit_with_errors(file, (), error)


def _import_class(text: str) -> type:
    """The class of `package.module:Class` or `path/to/file.py:Class`."""
    source, colon, name = text.rpartition(":")
    if not colon or not source or not name:
        raise ConfigError(f"--model must be package.module:Class or path/to/file.py:Class, got {text!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        if source.endswith(".py"):
            sys.path.insert(0, str(Path(source).resolve().parent))  # as Python does for a script
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            if spec is None or spec.loader is None:
                raise ImportError(f"no module in {source}")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[spec.name]
                raise
        else:
            module = importlib.import_module(source)
    except Exception as error:  # the user's module can raise anything
        raise ConfigError(f"--model: {source} cannot be imported: {one_line(error)}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"--model: {source} has no class {name!r}{did_you_mean(name, classes)}")
    return found


def _instantiate(given: Mapping[str, Any]) -> Any:
    """Build a module from `class_path` and `init_args`. The arguments are parsed by their types, as LightningCLI does.

    The module's `configure_model`, which can create further layers, is called too.
    """
    try:
        from jsonargparse import ArgumentParser
        from torch import nn
    except ModuleNotFoundError as error:
        raise ConfigError(f"building the model needs {error.name}: pip install 'optplug[cli]'") from None
    sys.path.insert(0, str(Path.cwd()))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "model", required=True)
    try:
        # Older versions of jsonargparse do not have `instantiate`.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        module = instantiate(parser.parse_object({"model": dict(given)})).model
        if callable(getattr(module, "configure_model", None)):
            module.configure_model()
    except Exception as error:  # from jsonargparse or from the model
        raise ConfigError(f"the model {given['class_path']} cannot be built: {one_line(error)}") from error
    return module
