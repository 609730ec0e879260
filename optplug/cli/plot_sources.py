"""What `optplug plot` draws: schedulers named on the command line, and the optimizers of configuration files."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from optplug.cli.config_commands import (
    CheckedFile,
    build_checked_optimizers,
    build_model,
    exit_with_errors,
    load_file,
)
from optplug.errors import ConfigError, ConfigErrors, OptplugError, loc_text

if TYPE_CHECKING:  # these import torch
    from optplug.cli.lr_plot import LrPlot
    from optplug.config.lr_curves import Curve
    from optplug.config.model import Config, OptimizerConfig, OptimizerSetup, SchedulerConfig
    from optplug.config.training_length import TrainingLength

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
"""The suffixes of arguments that are configuration files."""

ASSUMED_LR = 0.1
"""The learning rate where no optimizer is known."""

DEFAULT_LENGTH = 100
"""The length of the axis if no schedule has a length."""


@dataclass(frozen=True)
class PlotOptions:
    """The options of the command that change the curves. Attributes: see `optplug.cli.plot.plot`."""

    steps: int | None = None
    epochs: int | None = None
    steps_per_epoch: int | None = None
    lr: float | None = None
    warmup: str | None = None
    momentum: bool = False
    log: bool = False
    model: str | None = None


@dataclass(frozen=True)
class Source:
    """What has one set of curves: a scheduler on the command line, or an optimizer of a file.

    Attributes:
        label: the schedule, and the optimizer if a file has several.
        setup: the optimizer and the scheduler.
        groups: the options of its parameter groups.
        checked: the file; None for a scheduler on the command line.
        notes: remarks for the caption.
    """

    label: str
    setup: OptimizerSetup
    groups: Sequence[Mapping[str, Any]]
    checked: CheckedFile | None = None
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of the file; empty for a scheduler on the command line."""
        return "" if self.checked is None else str(self.checked.file)

    def curves(self, training: TrainingLength, *, momentum: bool) -> list[Curve]:
        """The curves of its groups.

        Raises:
            OptplugError: as `optplug.config.lr_curves.lr_curves`.
            typer.Exit: an error of a file, which has been printed.
        """
        from optplug.config.lr_curves import lr_curves

        with _errors_of(self.label, self.checked):
            setup = self.setup
            if self.checked is None:
                setup, training = _named_setup(setup, training)
            return lr_curves(self.groups, setup, training, momentum=momentum)

    def schedule_of(self, group_name: str) -> str:
        """The label of the schedule of a group, if groups have schedules of their own; else empty."""
        from optplug.schedulers.per_group import DEFAULT, SCHEDULE_KEY

        names = {str(group.get("name", i)): group.get(SCHEDULE_KEY, DEFAULT) for i, group in enumerate(self.groups)}
        own = self.setup.group_schedules
        return schedule_label(own.get(names[group_name]) or self.setup.scheduler) if own else ""


@contextmanager
def _errors_of(label: str, checked: CheckedFile | None) -> Iterator[None]:
    """Say for errors within this context what they are about: print them with the lines of the file, or add the label.

    Raises:
        ConfigError: the errors of a scheduler on the command line.
        typer.Exit: a file has errors.
    """
    try:
        yield
    except OptplugError as error:
        if checked is not None:
            exit_with_errors(checked.file, checked.section, error)
        found = [ConfigError(f"{label}: {_without_scheduler(each)}") for each in error.errors]
        raise (found[0] if len(found) == 1 else ConfigErrors(found)) from None


def _without_scheduler(error: OptplugError) -> str:
    """The text of an error, with its location inside of the scheduler."""
    loc = error.loc[1:] if error.loc[:1] == ("scheduler",) else error.loc
    return f"{loc_text(loc)}: {error.message}" if loc else error.message


def make_plot(arguments: Sequence[str], options: PlotOptions | None = None, title: str = "") -> LrPlot:
    """The plot of schedulers and of configuration files.

    Args:
        arguments: as the command takes them.
        options: the options of the command. Default: none.
        title: the title. Default: the file or the scheduler, if there is only one.

    Raises:
        OptplugError: a scheduler is invalid, or depends on a length that is not known.
        typer.Exit: a file has errors, which have been printed.
    """
    from optplug.cli.lr_plot import LrPlot
    from optplug.config.lr_curves import axis

    options = options or PlotOptions()
    sources = [source for argument in arguments for source in _sources(argument, options)]
    training = _training(sources, options)
    unit, _ = axis(training)
    per_epoch = training.epoch_steps.counts[0][1] if training.epoch_steps else None
    curves = [
        pair
        for source in sources
        for pair in _labelled(source, source.curves(training, momentum=options.momentum), sources)
    ]
    each = "optimizer step" if unit == "step" and not per_epoch else "epoch"
    steps = f"optimizer steps ({per_epoch:,} per epoch)" if per_epoch else "optimizer steps"
    return LrPlot(
        curves,
        title=title or _title(sources),
        x_label=steps if unit == "step" else "epochs",
        caption=list(dict.fromkeys(_remarks(sources, curves, options, each))),
        log=options.log,
        momentum=options.momentum,
    )


def _remarks(
    sources: Sequence[Source], curves: Sequence[tuple[str, Curve]], options: PlotOptions, validation: str
) -> Iterator[str]:
    """What the curves do not show, for the caption.

    Args:
        sources: the sources of the curves.
        curves: the curves, each with its label.
        options: the options of the command.
        validation: the unit in which there is one validation.
    """
    for source in sources:
        yield from source.notes
    for schedule in [schedule for source in sources for schedule in source.setup.schedules]:
        if schedule.takes_metric:
            yield f"{schedule.name}: for a metric that never improves, with one validation per {validation}"
        if options.lr is not None and getattr(_class_of(schedule), "has_own_lrs", False):
            yield f"{schedule.name}: its arguments set the learning rate; --lr has no effect on it"
    if options.log and any(lr <= 0 for _, curve in curves for lr in curve.lrs):
        yield "a learning rate of 0 is not drawn: a logarithmic axis has no place for it"


def _class_of(scheduler: SchedulerConfig) -> Any:
    """The class of a scheduler; None for a warmup alone."""
    from optplug.registry import registry

    return None if scheduler.name is None else registry.get("scheduler", scheduler.registration.qualified_name)


def _title(sources: Sequence[Source]) -> str:
    """The file if there is one, and the schedule if there is one."""
    files = {source.file for source in sources}
    found = [*files, *(source.label for source in sources if len(sources) == 1)] if len(files) == 1 else []
    return ": ".join(filter(None, found)) or "Learning rate"


def _labelled(source: Source, curves: Sequence[Curve], sources: Sequence[Source]) -> Iterator[tuple[str, Curve]]:
    """The curves of a source with their labels: what the title lacks, and the groups if there are several curves."""
    is_only, is_only_file = len(sources) == 1, len({each.file for each in sources}) == 1
    for curve in curves:
        groups = ", ".join(curve.groups) if len(curves) > 1 else ""
        own = source.schedule_of(curve.groups[0])
        parts = ["" if is_only_file else source.file, "" if is_only and groups else source.label, groups, own]
        yield ": ".join(filter(None, parts)), curve


def schedule_label(scheduler: SchedulerConfig | None) -> str:
    """A schedule in one line: `step_lr(step_size=30) + warmup(steps=5)`."""
    if scheduler is None:
        return "no schedule"
    parts = [] if scheduler.name is None else [_call(scheduler.name, scheduler.arguments)]
    parts += [] if scheduler.warmup is None else [_call("warmup", scheduler.warmup.to_dict())]
    return " + ".join(parts) or "no schedule"


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}={_text(value)}" for key, value in arguments.items())
    return f"{name}({given})" if given else name


def _text(value: Any) -> str:
    """An argument in one line; a schedule inside of a schedule in the form of a call too."""
    if isinstance(value, Mapping):
        others = {key: item for key, item in value.items() if key != "name"}
        pairs = ", ".join(f"{key}: {_text(item)}" for key, item in others.items())
        return _call(str(value["name"]), others) if "name" in value else f"{{{pairs}}}"
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, (list, tuple)) else str(value)


# ------------------------------------------------------------------------------- named schedulers


def _sources(argument: str, options: PlotOptions) -> list[Source]:
    path = Path(argument)
    is_text = argument.lstrip().startswith("{")
    if not is_text and (argument == "-" or path.suffix in CONFIG_SUFFIXES or path.is_file()):
        return _file_sources(path, options)
    return [_named_source(argument, options)]


def _named_source(text: str, options: PlotOptions) -> Source:
    """A scheduler on the command line. The length of the schedule may be omitted; it is that of the training.

    Raises:
        ConfigError: it is invalid.
    """
    from optplug.config.build import parse_and_check
    from optplug.config.lr_curves import dummy_groups

    with _errors_of(text, None):
        given = _mapping_of(text)
        example = {} if given.keys() - {"name"} else _example_of(given)
        given |= example
        if options.warmup is not None and not {"warmup", "warmup_steps"} & given.keys():
            given |= _warmup_of(options.warmup)
        setup = parse_and_check(None, _with_length(given)).setup
        return Source(
            schedule_label(setup.scheduler),
            setup,
            dummy_groups(setup, ASSUMED_LR if options.lr is None else options.lr),
            notes=(_example_note(given),) if example else (),
        )


def _example_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a schedule of which only the name is given: the first of its cases, without its length."""
    from optplug.config.model import SchedulerConfig
    from optplug.schedulers.closed_form import ClosedFormLR

    with suppress(OptplugError):  # a wrong name: the parser reports it
        scheduler = SchedulerConfig(str(given.get("name")))
        cls = _class_of(scheduler)
        if issubclass(cls, ClosedFormLR) and getattr(cls, "cases", None):
            case = {key: value for key, value in cls.cases[0].items() if key != scheduler.length_argument}
            return _with_own_keys_under_args(scheduler.name, case)
    return {}


def _example_note(given: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(given), default_flow_style=True, sort_keys=False, width=sys.maxsize).strip()
    return f"{given['name']} with arguments of an example: optplug plot {shlex.quote(text)}"


def _mapping_of(text: str) -> dict[str, Any]:
    """The mapping that a text is: YAML in braces, or `name:option=value`."""
    from optplug.config.inline_entry import parse_inline_entry
    from optplug.config.yaml_text import read_yaml

    if text.lstrip().startswith("{"):
        data, _ = read_yaml(text)
        if not isinstance(data, dict):
            raise ConfigError("is not a mapping")
        return data
    name, options = parse_inline_entry(_without_parentheses(text))
    arguments = {key: _value_of(value) for key, value in options.items()}
    return {"name": name, **_with_own_keys_under_args(name, arguments)}


def _without_parentheses(text: str) -> str:
    """`name(option=value)`, which is the form of the labels, as `name:option=value`.

    Raises:
        ConfigError: an option has no value.
    """
    from optplug.registry import registry

    call = re.fullmatch(r"([\w:.-]+)\((.*=.*)\)", text.strip())
    if call:
        return f"{call[1]}:{call[2]}"
    name, colon, option = text.strip().rpartition(":")
    if colon and "=" not in text:
        is_scheduler = False
        with suppress(OptplugError):
            is_scheduler = bool(registry.resolve("scheduler", name))
        if is_scheduler:
            raise ConfigError(f"{option} has no value: write {name}:{option}=VALUE")
    return text


def _value_of(value: Any) -> Any:
    """A value of an option; a mapping, or a list with a mapping, is YAML."""
    from optplug.config.yaml_text import read_yaml

    return read_yaml(value)[0] if isinstance(value, str) and value.startswith(("{", "[")) else value


def _with_own_keys_under_args(name: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put arguments of a scheduler that have the name of a key of optplug, such as `mode` of `cyclic_lr`, under `args`.

    A scheduler that takes a metric has these keys: they stay.
    """
    from optplug.config.arguments import reserved_keys
    from optplug.config.form import ARGS
    from optplug.config.model import SchedulerConfig
    from optplug.registry.signature import configurable_arguments

    own: set[str] = set()
    with suppress(OptplugError):  # a wrong name: the parser reports it
        scheduler = SchedulerConfig(name)
        if not scheduler.takes_metric:
            own = reserved_keys(scheduler.registration) & configurable_arguments(scheduler.registration).keys()
    moved = {key: value for key, value in arguments.items() if key in own}
    rest = {key: value for key, value in arguments.items() if key not in own}
    return {**rest, ARGS: {**rest.get(ARGS, {}), **moved}} if moved else rest


def _warmup_of(text: str) -> dict[str, Any]:
    from optplug.config.yaml_text import read_yaml

    value, _ = read_yaml(text)
    return {"warmup_steps" if isinstance(value, int) else "warmup": value}


def _with_length(given: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of a scheduler; its length is `auto` if it is required and absent."""
    from optplug.config.form import ARGS, AUTO
    from optplug.config.model import SchedulerConfig
    from optplug.registry.signature import configurable_arguments

    scheduler = SchedulerConfig(str(given.get("name")))
    with suppress(OptplugError):  # a wrong name: the parser reports it
        length = scheduler.length_argument
        if length and length not in {**given, **(given.get(ARGS) or {})}:
            default = configurable_arguments(scheduler.registration)[length].default
            return {**given, **({length: AUTO} if default in (None, ..., Parameter.empty) else {})}
    return dict(given)


def _named_setup(setup: OptimizerSetup, training: TrainingLength) -> tuple[OptimizerSetup, TrainingLength]:
    """A scheduler on the command line and the length of the training, where only steps or only epochs are known.

    The scheduler is then stepped in the unit that is known, unless it says otherwise.
    """
    from optplug.config.lr_curves import axis
    from optplug.config.training_length import EpochSteps

    unit, length = axis(training)
    if training.epoch_steps is not None:
        return setup, training
    if setup.takes_metric and unit == "step":
        return setup, replace(training, epochs=length, epoch_steps=EpochSteps(((0, 1),)))

    def in_unit(schedule: SchedulerConfig) -> SchedulerConfig:
        return schedule if schedule.interval_is_given else replace(schedule, interval=unit, interval_is_given=True)

    return setup.with_schedules(in_unit), training


# -------------------------------------------------------------------------------------- files


def _file_sources(path: Path, options: PlotOptions) -> list[Source]:
    """The optimizers of a configuration file.

    Raises:
        ConfigError: the file configures nothing, or an option is for schedulers on the command line only.
        typer.Exit: the file has errors, which have been printed.
    """
    from optplug.cli.config_files import NoSectionError
    from optplug.config.lr_curves import dummy_groups

    if options.warmup is not None:
        raise ConfigError("--warmup is for schedulers on the command line; write the warmup in the file")
    try:
        checked = load_file(path)
    except NoSectionError as error:
        raise ConfigError(f"{path} {error}") from None
    if checked.config is None:
        raise ConfigError(f"{checked.file} configures no scheduler")
    if options.lr is not None:
        checked = replace(checked, config=_with_lr(checked.config, options.lr))
    assert checked.config is not None
    module = build_model(checked, options.model, required=options.model is not None)
    built = [] if module is None else build_checked_optimizers(checked, module, required=True)
    sources = []
    for i, setup in enumerate(checked.config.setups):
        with _errors_of("", checked):
            _check_known(setup)
            groups = list(built[i].param_groups) if built else dummy_groups(setup, ASSUMED_LR)
        several = len(checked.config.setups) > 1
        parts = [f"optimizer[{i}] {setup.entries[0].optimizer.name}"] if several else []
        parts += [] if setup.group_schedules else [schedule_label(setup.scheduler)]
        sources.append(Source(": ".join(parts), setup, groups, checked, () if built else _notes(setup)))
    return sources


def _with_lr(config: Config, lr: float) -> Config:
    """A configuration in which every optimizer, or the base that has it, has another learning rate."""
    from optplug.registry.signature import configurable_arguments

    def options(optimizer: OptimizerConfig) -> dict[str, Any]:
        is_taken = optimizer.base is None or "lr" in configurable_arguments(optimizer.registration)
        return {**optimizer.hyperparameters, **({"lr": lr} if is_taken else {})}

    def changed(setup: OptimizerSetup) -> OptimizerSetup:
        entries = []
        for entry in setup.entries:
            entries.append(replace(entry, optimizer=entry.optimizer.change(options)))
        return replace(setup, entries=tuple(entries))

    return replace(config, setups=tuple(map(changed, config.setups)))


def _check_known(setup: OptimizerSetup) -> None:
    """Check that no value of a scheduler is missing in the file.

    Raises:
        ConfigError: one is.
    """
    from optplug.config.fields import has_unresolved

    for schedule in setup.schedules:
        for key, value in schedule.arguments.items():
            if has_unresolved(value):
                raise ConfigError(f"is {value}, which is not known here", loc=schedule.argument_loc(key))


def _notes(setup: OptimizerSetup) -> tuple[str, ...]:
    """What the curves do not show without the model."""
    from optplug.config.param_group_presets import LayerDecay

    if not setup.entries:
        return (f"the module's own optimizer is not known: a learning rate of {ASSUMED_LR} is assumed",)
    rules = [rule for entry in setup.entries for rule in entry.param_groups]
    if any(isinstance(rule, LayerDecay) for rule in rules):
        return ("layer_decay: only the last layer is shown; --model shows the layers of the model",)
    return ("one curve for each rule; --model shows the groups of the model",) if len(rules) > 1 else ()


# --------------------------------------------------------------------------------------- length


def _training(sources: Sequence[Source], options: PlotOptions) -> TrainingLength:
    """The length of the training: the options, else that of a file, else that of the longest schedule.

    Raises:
        ConfigError: the options contradict each other, or nothing gives a length.
    """
    from optplug.config.training_loop import known_length

    steps, epochs = options.steps, options.epochs
    if steps is None and epochs is None:
        lengths = (_trainer_length(source, options.steps_per_epoch) for source in sources)
        steps, epochs = next(filter(any, lengths), (None, None))
    if steps is None and epochs is None:
        unit, length = _default_length(sources)
        steps, epochs = (length, None) if unit == "step" else (None, length)
    try:
        training = known_length(steps, epochs, options.steps_per_epoch)
    except ConfigError as error:
        raise ConfigError(f"--steps {error.message}") from None
    missing = "--epochs or --steps-per-epoch" if training.steps else "--steps or --steps-per-epoch"
    return replace(training, unknown_reason="the number of steps of an epoch is not known", remedy=f"add {missing}")


def _trainer_length(source: Source, steps_per_epoch: int | None) -> tuple[int | None, int | None]:
    """The optimizer steps or the epochs that the section `trainer` of a file has: whichever end first, if known."""
    if source.checked is None:
        return None, None
    for mapping in (source.checked.section.mapping, source.checked.file.data):
        trainer = mapping.get("trainer") if isinstance(mapping, Mapping) else None
        if isinstance(trainer, Mapping):
            steps, epochs = (
                value if isinstance(value := trainer.get(key), int) and value > 0 else None
                for key in ("max_steps", "max_epochs")
            )
            ends_by_epochs = steps and epochs and steps_per_epoch and epochs * steps_per_epoch < steps
            return (None, epochs) if ends_by_epochs else (steps, None if steps else epochs)
    return None, None


def _default_length(sources: Sequence[Source]) -> tuple[str, int]:
    """The unit in which the schedules are stepped, and their length.

    Raises:
        ConfigError: no schedule of a file has a length.
    """
    schedules = [schedule for source in sources for schedule in source.setup.schedules]
    lengths = [length for schedule in schedules for length in _lengths(schedule) if length > 0]
    in_files = [source for source in sources if source.checked is not None]
    if in_files and not lengths:
        raise ConfigError(f"{in_files[0].file}: the length of the training is not known: add --steps or --epochs")
    in_steps = any(one.warmup is not None or (one.name is not None and one.interval == "step") for one in schedules)
    return "step" if in_steps else "epoch", max(lengths, default=DEFAULT_LENGTH)


def _lengths(scheduler: SchedulerConfig) -> Iterator[int]:
    """Lengths of an axis that shows the whole schedule: its length, or a multiple of the longest of its parts."""
    from optplug.registry.signature import configurable_arguments

    known = {} if scheduler.name is None else configurable_arguments(scheduler.registration)
    arguments = {**{key: p.default for key, p in known.items()}, **scheduler.arguments}
    total = arguments.get(str(scheduler.length_argument))
    if isinstance(total, int):
        yield total
        return
    warmup = scheduler.warmup
    if warmup is not None and warmup.unit == "steps":
        yield 4 * int(warmup.length)
    for part in map(arguments.get, scheduler.length_arguments):
        if isinstance(part, int):
            yield 4 * part
        elif isinstance(part, (list, tuple)):
            yield 2 * max([n for n in part if isinstance(n, int)], default=0)
    inner = arguments.get("schedules")  # their lengths add up
    items = [item for item in inner if isinstance(item, Mapping)] if isinstance(inner, (list, tuple)) else []
    yield 2 * sum(length for item in items if isinstance(length := item.get("length"), int))
