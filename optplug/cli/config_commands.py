"""The subcommands `validate`, `groups` and `schema`: check and show configuration files before training."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from optplug.errors import ConfigError, ErrorCollector, Loc, OptplugError, did_you_mean, listing, loc_text, one_line
from optplug.registry import registry

if TYPE_CHECKING:  # this module imports torch, and `optplug list` works without importing torch
    from optplug.cli.config_files import ConfigFile, ConfigSection
    from optplug.config.model import Config, OptimizerConfig, OptimizerEntry

ConfigArgument = Annotated[
    list[Path],
    typer.Argument(help="Files of YAML or JSON, each checked by itself; - is standard input.", metavar="CONFIG..."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:CLASS",
        help="The model: package.module:Class or path/to/file.py:Class. Its arguments are the file's section `model`. "
        "Not needed if this section has a class_path or a _target_.",
    ),
]


def validate(config: ConfigArgument, model: ModelOption = None) -> None:
    """Check configuration files and print each in full. With a model, check the patterns of its groups too."""
    _for_each(config, lambda path: _validate(path, model))


def _validate(path: Path, model: str | None) -> str:
    import yaml

    checked = load_file(path)
    if checked.config is None:
        group = checked.section.group
        what = (
            f"it configures no {group}"
            if group
            else "the callback steps the schedulers that the module's own configure_optimizers returns"
        )
        return f"{checked.file} is valid: {what}\n"
    module = build_model(checked, model, required=False)
    is_checked = module is not None and bool(build_checked_optimizers(checked, module, required=False))
    count = len(checked.unresolved)
    limits = f", except for {count} value{'s' if count > 1 else ''} that could not be checked" if count else ""
    shown = checked.section.values if count else checked.config.to_dict()
    text = yaml.safe_dump(_as_text(shown), sort_keys=False, allow_unicode=True)
    text += "".join(f"# {line}\n" for line in _choices(checked.config))
    return f"{checked.file} is valid{' for ' + type(module).__name__ if is_checked else ''}{limits}:\n\n{text}"


def _choices(config: Config) -> Iterator[str]:
    """What each name in a configuration means, if several plugins have the name."""
    optimizers = [e.optimizer.name for setup in config.setups for entry in setup.entries for e in entry.members]
    schedules = [schedule.name for setup in config.setups for schedule in setup.schedules if schedule.name is not None]
    for kind, name in dict.fromkeys([*product(["optimizer"], optimizers), *product(["scheduler"], schedules)]):
        if also := registry.others_text(kind, name):
            yield f"{name} is {registry.resolve(kind, name).qualified_name}, {also}"


def groups(
    config: ConfigArgument,
    model: ModelOption = None,
    names: Annotated[bool, typer.Option("--names", help="List the parameters of each group.")] = False,
) -> None:
    """Show the parameter groups of a model for configuration files: elements, learning rate, weight decay."""
    _for_each(config, lambda path: _group_tables(path, model, names=names, with_file=len(config) > 1))


def _group_tables(path: Path, model: str | None, *, names: bool, with_file: bool) -> str:
    from optplug.config.param_groups import group_table

    checked = load_file(path)
    module = build_model(checked, model, required=True)
    shown = []
    for optimizer in build_checked_optimizers(checked, module, required=True):
        table = group_table(optimizer, module)
        heading = f"{checked.file}: " if with_file else ""
        shown.append(f"{heading}{type(optimizer).__name__} of {type(module).__name__}\n\n{table}\n\n")
        for row in table if names else ():
            reasons = [f" ({reason})" if reason else "" for reason in row.reasons] or [""] * len(row.parameters)
            lines = [f"{name}{reason}" for name, reason in zip(row.parameters, reasons, strict=True)]
            shown.append("\n  ".join((row.group, *lines)) + "\n\n")
    return "".join(shown)


def schema(
    complete: Annotated[
        bool,
        typer.Option("--complete", help="Import packages that are slow to import, for the arguments of all names."),
    ] = False,
    names: Annotated[bool, typer.Option("--names", help="Check the names only, and import no optimizer.")] = False,
) -> None:
    """Print the JSON Schema of configurations with the installed plugins, for completion and checks in editors."""
    from optplug.config.json_schema import json_schema

    if complete and names:
        raise typer.BadParameter("give --complete or --names, not both")
    made = json_schema("complete" if complete else "names" if names else "quick")
    definitions = made.pop("$defs")
    lines = ",\n".join(f"{json.dumps(key)}:{_compact(value)}" for key, value in definitions.items())
    typer.echo(f'{_compact(made)[:-1]},\n"$defs":{{\n{lines}\n}}}}')


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# ------------------------------------------------------------------------------------------ files


def _for_each(paths: Sequence[Path], show: Callable[[Path], str]) -> None:
    """Print what a function returns for each file. A file that does not configure optplug is skipped among several.

    Exits with code 1 if a file has an error, or if none configures optplug.
    """
    from optplug.cli.config_files import NoSectionError
    from optplug.engines._torch_compat import without_compiler

    has_errors, shown = False, 0
    for path in paths:
        try:
            with without_compiler():
                text = show(path)
            typer.echo(f"{chr(10) if shown else ''}{text}", nl=False)
            shown += 1
        except NoSectionError as error:
            _print_line(f"{path}: {'skipped: it ' if len(paths) > 1 else ''}{error}")
        except typer.Exit:
            has_errors = True
    if has_errors or not shown:
        raise typer.Exit(1)


@dataclass(frozen=True)
class CheckedFile:
    """A file without errors.

    Attributes:
        file: the file.
        section: the section that configures optplug.
        config: the configuration; None if the callback has no arguments.
        unresolved: the locations of the values that are not known.
    """

    file: ConfigFile
    section: ConfigSection
    config: Config | None
    unresolved: tuple[Loc, ...] = ()


def load_file(path: Path) -> CheckedFile:
    """Read and check a configuration file. If it has errors, the command exits and prints them with their lines.

    Raises:
        NoSectionError: the file does not configure optplug.
    """
    from optplug.cli.config_files import (
        ConfigFile,
        NoSectionError,
        key_errors,
        key_notes,
        read_config_file,
        section_values,
    )
    from optplug.config.form import OVERRIDE, VERBOSE

    file, section, config = ConfigFile(path), None, None
    collector = ErrorCollector()
    try:
        file = read_config_file(path)
        section = file.section()
        for key, error in key_errors(file, section):
            collector.add(error, (key,))
        for key, note in key_notes(file, section):
            _print_line(f"{file}:{file.line_of(section.file_loc((key,)))}: note: {key}: {note}")
        values = section_values(file, section)
        unresolved = _report_unresolved(collector, file, section, values)
        with collector.collect((OVERRIDE.name,)):
            OVERRIDE.read(values.get(OVERRIDE.name, False))
        if section.is_callback:
            with collector.collect((VERBOSE.name,)):
                VERBOSE.read(section.mapping.get(VERBOSE.name, VERBOSE.default))
            values = {key: value for key, value in values.items() if value is not None}
        given = {key: value for key, value in values.items() if key != OVERRIDE.name}
        if given or not (section.is_callback or section.group):
            config = _parse(collector, given)
        collector.raise_collected()
    except NoSectionError:
        raise
    except OptplugError as error:
        exit_with_errors(file, section, error)
    if file.duplicates:
        exit_with_errors(file, section, None)
    return CheckedFile(file, section, config, unresolved)


def _parse(collector: ErrorCollector, given: Mapping[str, Any]) -> Config | None:
    """Parse and check a configuration. A location with an error already gets no second one."""
    from optplug.config.build import parse_and_check

    reported = {error.loc for error in collector.errors}
    try:
        return parse_and_check(**given)
    except OptplugError as joined:
        for error in joined.errors:
            if error.loc not in reported:
                collector.add(error)
    return None


def _report_unresolved(
    collector: ErrorCollector, file: ConfigFile, section: ConfigSection, values: Mapping[str, Any]
) -> tuple[Loc, ...]:
    """Report the values that are not known: mistakes as errors, the others as notes.

    Returns:
        The locations of the values that are no mistakes.
    """
    from optplug.cli.config_files import COMPOSED
    from optplug.cli.interpolations import unresolved_values

    open_locs = []
    for loc, value in unresolved_values(values):
        if value.is_fault:
            collector.add(ConfigError(value.message), loc)
        else:
            open_locs.append(loc)
            line = file.line_of(section.file_loc(loc))
            _print_line(f"{file}:{line}: note: {loc_text(loc)}: {value.message}")
    for key in file.unused_keys(section):
        _print_line(
            f"{file}:{file.line_of((key,))}: note: {key}: Hydra does not pass it to ConfigureOptimizers; write "
            f"{key}: ${{{key}}} under {loc_text(section.loc)}"
        )
    if open_locs:
        ways = f"{COMPOSED} (Hydra), or python main.py fit --print_config | optplug validate - (LightningCLI)"
        _print_line(f"{file}: note: to check these values too, check the composed configuration: {ways}")
    return tuple(open_locs)


def build_checked_optimizers(checked: CheckedFile, module: Any, *, required: bool) -> list[Any]:
    """Build the optimizers, without the arguments and the group rules that are not known.

    Args:
        checked: the file.
        module: the model.
        required: whether it is an error, and not a note, if too little is known to build the optimizers.
    """
    from optplug.config.form import MATRICES, SELECTORS
    from optplug.lightning.configure import build_optimizers

    file, section, config = checked.file, checked.section, checked.config
    of_optimizers = [loc for loc in checked.unresolved if loc[0] in ("optimizer", "param_groups")]
    try:
        if config is None:
            raise ConfigError("the callback has no arguments: the module's own configure_optimizers builds the groups")
        needed = next(filter(_chooses_parameters, of_optimizers), None)
        if needed is not None:
            what = "the name of the optimizer" if needed[1:] in ((), ("name",)) else loc_text(needed)
            raise ConfigError(f"the groups need {what}, which is not in this file", loc=("optimizer",))
        if of_optimizers:
            _print_line(f"{file}: note: built without {listing(map(loc_text, of_optimizers))}")
            config = _known_config(config)
        return build_optimizers(module, config, override=section.values.get("override") is True)
    except OptplugError as joined:
        about_groups = {"param_groups", *SELECTORS, *MATRICES}
        if required or not of_optimizers or any(about_groups & {*error.loc} for error in joined.errors):
            exit_with_errors(file, section, joined)
        _print_line(f"{file}: note: the groups are not checked: {one_line(joined)}")
        return []


def _chooses_parameters(loc: Loc) -> bool:
    """Whether a location is that of an optimizer, of all its arguments, of its name, or of what selects parameters."""
    from optplug.config.form import ARGS, MATRICES, SELECTORS

    inner = [step for step in loc[1:] if step != "combine" and not isinstance(step, int)]
    if inner[:1] == ["fallback"] and len(inner) > 1:
        inner = inner[1:]
    return loc[0] == "optimizer" and (inner in ([], [ARGS]) or inner[0] in ("name", *SELECTORS, "rest", *MATRICES))


def _known_config(config: Config) -> Config:
    """A configuration without the arguments and the group rules that are not known."""
    from optplug.config.fields import has_unresolved
    from optplug.config.model import GroupRule

    def known_optimizer(optimizer: OptimizerConfig) -> OptimizerConfig:
        return optimizer.change(
            lambda config: {key: value for key, value in config.hyperparameters.items() if not has_unresolved(value)}
        )

    def known_entry(entry: OptimizerEntry) -> OptimizerEntry:
        optimizer, fallback = known_optimizer(entry.optimizer), entry.fallback
        if fallback is not None:
            fallback = replace(fallback, optimizer=known_optimizer(fallback.optimizer))
        # A rule without options keeps the indices of the others.
        rules = [
            replace(rule, options={}) if isinstance(rule, GroupRule) and has_unresolved(rule.options) else rule
            for rule in entry.param_groups
        ]
        return replace(entry, optimizer=optimizer, fallback=fallback, param_groups=tuple(rules))

    setups = [replace(setup, entries=tuple(map(known_entry, setup.entries))) for setup in config.setups]
    return replace(config, setups=tuple(setups))


def _known(value: Any) -> Any:
    """A value without the parts that are not known."""
    from optplug.config.fields import Unresolved

    if isinstance(value, Mapping):
        return {key: _known(item) for key, item in value.items() if not isinstance(item, Unresolved)}
    if isinstance(value, list):
        return [_known(item) for item in value if not isinstance(item, Unresolved)]
    return value


def _as_text(value: Any) -> Any:
    """A value with the text of interpolations that are not resolved, which YAML can write."""
    if isinstance(value, Mapping):
        return {key: _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return str(value) if isinstance(value, str) else value


def exit_with_errors(file: ConfigFile, section: ConfigSection | None, error: OptplugError | None) -> NoReturn:
    """Print each error with its line, in the order of lines, and exit with code 1.

    Args:
        file: the file. Its duplicate keys are printed too.
        section: the section to which the errors' locations are relative; None: the whole file.
        error: one error, or several in one.
    """
    found = [(line, each.message) for line, each in file.duplicates]
    for each in () if error is None else error.errors:
        loc = each.loc if section is None else section.file_loc(each.loc)
        found.append((file.line_of(loc) if each.loc else 0, str(each)))
    for line, message in sorted(found, key=lambda pair: pair[0]):
        _print_line(f"{file}{f':{line}' if line else ''}: {message}")
    raise typer.Exit(1)


def _print_line(text: str) -> None:
    """Print an error or a note."""
    typer.echo(text, err=True)


# ------------------------------------------------------------------------------------------ models


def build_model(checked: CheckedFile, model: str | None, *, required: bool) -> Any:
    """Build the model from the file's section `model`.

    Args:
        checked: the file. A section `model` next to the section that configures optplug has precedence.
        model: the value of `--model`, or None.
        required: whether a missing model is an error.

    Returns:
        The model; None if neither `--model` nor the file names a class.
    """
    from optplug.config.fields import has_unresolved

    file, section = checked.file, checked.section
    written = section.mapping.get("model", file.data.get("model") if isinstance(file.data, Mapping) else None)
    given = _known(written) if isinstance(written, Mapping) else {}
    try:
        if model is not None:
            cls = _import_class(model)
            path = f"{cls.__module__}.{cls.__qualname__}"
            if "_target_" in given:
                given = {**given, "_target_": path}
            else:
                given = {"class_path": path, "init_args": given.get("init_args", given)}
        elif not {"class_path", "_target_"} & given.keys():
            if not required:
                return None
            raise ConfigError("the section model has no class_path: add --model package.module:Class")
        if has_unresolved(written):
            _print_line(f"{file}: note: the model is built without the arguments that cannot be resolved")
        return _instantiate_target(given) if "_target_" in given else _instantiate(given)
    except OptplugError as error:
        if required or not has_unresolved(written):
            exit_with_errors(file, None, error)
        _print_line(f"{file}: note: the groups are not checked: {one_line(error)}")
        return None


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
        module = parser.instantiate(parser.parse_object({"model": dict(given)})).model
        if callable(getattr(module, "configure_model", None)):
            module.configure_model()
    except Exception as error:  # from jsonargparse or from the model
        raise ConfigError(f"the model {given['class_path']} cannot be built: {one_line(error)}") from error
    return module


def _instantiate_target(given: Mapping[str, Any]) -> Any:
    """Build a module from `_target_` and its arguments, as Hydra does, and call its `configure_model`."""
    try:
        from hydra.utils import instantiate
    except ModuleNotFoundError as error:
        raise ConfigError(f"building a model with _target_ needs {error.name}: pip install hydra-core") from None
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = instantiate(dict(given))
        if callable(getattr(module, "configure_model", None)):
            module.configure_model()
    except Exception as error:  # from Hydra or from the model
        raise ConfigError(f"the model {given['_target_']} cannot be built: {one_line(error)}") from error
    return module
