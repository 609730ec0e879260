"""`create_optimizer_and_scheduler`: what a training loop without Lightning needs, from a configuration."""

from __future__ import annotations

import math
import operator
from typing import Any, overload

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import Unpack

from optplug.config.build import build_optimizer, build_schedule, check_parameter_partition, parse_and_check
from optplug.config.form import ON_RESUME, SCHEDULER, check_flags
from optplug.config.metric_names import mode_of_name
from optplug.config.model import Config, OptimizerSetup, SchedulerConfig
from optplug.config.options import LoopOptions, OneOptimizer, Schedule, Scheduler, SeveralOptimizers
from optplug.config.training_length import EpochSteps, TrainingLength, resolve_setup
from optplug.errors import ConfigError, ConfigTypeError, ErrorCollector
from optplug.registry.signature import configurable_arguments


@overload
def create_optimizer_and_scheduler(
    module: nn.Module, optimizer: OneOptimizer, /, scheduler: None = None, **options: Unpack[LoopOptions]
) -> tuple[Optimizer, None]: ...
@overload
def create_optimizer_and_scheduler(
    module: nn.Module, optimizer: OneOptimizer, /, scheduler: Scheduler, **options: Unpack[LoopOptions]
) -> tuple[Optimizer, Schedule]: ...
@overload
def create_optimizer_and_scheduler(
    module: nn.Module,
    optimizer: SeveralOptimizers,
    /,
    scheduler: Scheduler | None = None,
    **options: Unpack[LoopOptions],
) -> list[tuple[Optimizer, Schedule | None]]: ...
# By keyword, and for `**config`, whose types are not known. The scheduler may be None; `| Any` allows calls of its
# methods without a check. With one more overload for keywords, such as for a list, the type of `**config` is ambiguous.
@overload
def create_optimizer_and_scheduler(
    module: nn.Module,
    *,
    optimizer: OneOptimizer,
    scheduler: Scheduler | None = None,
    **options: Unpack[LoopOptions],
) -> tuple[Optimizer, Schedule | Any]: ...
def create_optimizer_and_scheduler(
    module: Any,
    optimizer: Any,
    scheduler: Any = None,
    *,
    param_groups: Any = None,
    monitor: str | None = None,
    mode: str | None = None,
    on_resume: str | None = None,
    override: bool = False,
    verbose: bool = True,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
) -> Any:
    """Build the optimizer and the scheduler of a configuration, for a training loop without a Lightning trainer.

    The loop calls `scheduler.step()` after each optimizer step or after each epoch, as `interval` says, and
    `scheduler.step(metric)` after each validation for a scheduler that takes a metric. A warmup counts the optimizer
    steps itself.

    Args:
        module: the module whose trainable parameters are optimized.
        optimizer: a name; a mapping with `name` and hyperparameters; `{combine: [...]}`; a list of mappings, for
            several optimizers; or an existing optimizer, which is used as it is.
        scheduler: a name, or a mapping with `name`, the scheduler's arguments and optplug's keys. Default: no schedule.
        param_groups: a preset (`"no_decay"`), or a list of presets and rules. Default: one group.
        monitor: the metric of a plateau scheduler. The loop passes its value to `step`.
        mode: `"min"` or `"max"`, for a plateau scheduler. Default: as the name in `monitor` implies.
        on_resume: only `"keep"`: the loop loads the state dicts.
        override: of no effect. Default: False.
        verbose: of no effect: without a trainer nothing is reported. Default: True.
        total_steps: the number of optimizer steps of the whole training. Default: `epochs` x `steps_per_epoch`.
        epochs: the number of epochs. Default: from the other two.
        steps_per_epoch: the number of optimizer steps of an epoch. Default: from the other two. Lengths that the
            configuration leaves to the training (`auto`, a warmup in epochs or as a ratio) need some of the three.

    Returns:
        `(optimizer, scheduler)`, where `scheduler` is None if none is configured. For a list of optimizers, a list of
        these pairs.

    Raises:
        OptplugError: as `optplug.configure_optimizers`; also for keys that only a Lightning trainer can serve.
    """
    if not isinstance(module, nn.Module):
        message = f"parameters are selected by name; pass the module, got {type(module).__name__}"
        raise ConfigTypeError(message, loc=("module",))
    check_flags(override=override, verbose=verbose)
    if isinstance(optimizer, Optimizer):
        if param_groups is not None:
            raise ConfigError(
                "not allowed with an optimizer object: pass the optimizer's name and options instead",
                loc=("param_groups",),
            )
        if scheduler is None and monitor is None and mode is None and on_resume is None:
            return optimizer, None
        config = parse_and_check(None, scheduler, monitor=monitor, mode=mode, on_resume=on_resume)
    else:
        options = {"param_groups": param_groups, "monitor": monitor, "mode": mode, "on_resume": on_resume}
        config = parse_and_check(optimizer, scheduler, **options)
        if not config.setups[0].entries:
            raise ConfigTypeError(
                "must be a name, a mapping with a name, or an optimizer, got None (NoneType)", loc=("optimizer",)
            )
    _check_keys_without_trainer(config)
    length = known_length(total_steps, epochs, steps_per_epoch)
    setups = [resolve_setup(setup, length) for setup in config.setups]
    check_parameter_partition(module, config)
    built = [_build(module, setup, optimizer if isinstance(optimizer, Optimizer) else None) for setup in setups]
    return built if config.has_optimizer_list else built[0]


def _build(
    module: nn.Module, setup: OptimizerSetup, prebuilt: Optimizer | None
) -> tuple[Optimizer, LRScheduler | None]:
    optimizer = build_optimizer(module, setup) if prebuilt is None else prebuilt
    schedule = setup.leading_schedule
    return optimizer, build_schedule(optimizer, setup, None if schedule is None else _mode(schedule))


def _mode(scheduler: SchedulerConfig) -> str | None:
    """The configured mode, or the mode that the name of the metric implies."""
    return scheduler.mode or (mode_of_name(scheduler.monitor) if scheduler.monitor is not None else None)


def _check_keys_without_trainer(config: Config) -> None:
    """Check that the configuration has no key that needs a Lightning trainer.

    Raises:
        ConfigError: it has such a key, or a plateau scheduler has no mode, which cannot be inferred.
        ConfigErrors: several of these errors.
    """
    collector = ErrorCollector()
    if config.on_resume != ON_RESUME[0]:
        message = f"{config.on_resume} needs a Lightning trainer: without one, load the state dicts that are to be kept"
        collector.add(ConfigError(message), ("on_resume",))
    for setup in config.setups:
        leading = setup.leading_schedule
        mode = None if leading is None else _mode(leading)
        for schedule in setup.schedules:
            _check_scheduler_without_trainer(collector, schedule, mode)
    collector.raise_collected()


def _check_scheduler_without_trainer(collector: ErrorCollector, scheduler: SchedulerConfig, mode: str | None) -> None:
    if scheduler.frequency != 1:
        message = f"is {scheduler.frequency}, but without a Lightning trainer the loop calls step(): omit it"
        collector.add(ConfigError(message), (*scheduler.loc, "frequency"))
    if not scheduler.takes_metric:
        return
    for key, remedy in (
        ("patience_unit", "call scheduler.at(position) before scheduler.step(metric)"),
        ("on_nonfinite", "check the metric before scheduler.step(metric)"),
    ):
        value = getattr(scheduler, key)
        if value != SCHEDULER[key].default:
            message = f"{value} needs a Lightning trainer: omit it, and {remedy}"
            collector.add(ConfigError(message), (*scheduler.loc, key))
    if mode is None and "mode" in configurable_arguments(scheduler.registration):
        message = "without a Lightning trainer it must be given, 'min' or 'max', or implied by the name in monitor"
        collector.add(ConfigError(message), (*scheduler.loc, "mode"))


def known_length(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> TrainingLength:
    """The length of a training, where two of the three values give the third one.

    Raises:
        ConfigError: a value is below 1, or the values contradict each other.
        ConfigTypeError: a value is not a whole number.
    """
    collector = ErrorCollector()
    given = {"total_steps": total_steps, "epochs": epochs, "steps_per_epoch": steps_per_epoch}
    lengths: dict[str, int] = {}
    for name, value in given.items():
        if value is not None:
            with collector.collect((name,)):
                lengths[name] = _whole_number(name, value)
    collector.raise_collected()
    steps, epochs, steps_per_epoch = map(lengths.get, given)
    if epochs and steps_per_epoch:
        if steps is not None and not (epochs - 1) * steps_per_epoch < steps <= epochs * steps_per_epoch:
            message = f"is {steps}, but {epochs} epochs of {steps_per_epoch} steps are {epochs * steps_per_epoch}"
            raise ConfigError(message, argument="total_steps", loc=("total_steps",))
        steps = steps or epochs * steps_per_epoch
    elif steps and steps_per_epoch:
        epochs = math.ceil(steps / steps_per_epoch)
    elif steps and epochs:
        steps_per_epoch = math.ceil(steps / epochs)
    known, missing = next(iter(lengths), None), [name for name in given if name not in lengths]
    return TrainingLength(
        steps,
        epochs,
        EpochSteps(((0, steps_per_epoch),)) if steps_per_epoch else None,
        f"the length is not known from {f'{known} alone' if known else 'total_steps, epochs and steps_per_epoch'}",
        remedy=f"pass {' or '.join(missing)} too" if known else "pass them",
    )


def _whole_number(name: str, value: Any) -> int:
    """Read a length. The whole numbers of NumPy and of other libraries are allowed.

    Raises:
        ConfigError: the value is below 1.
        ConfigTypeError: the value is not a whole number.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ConfigTypeError(f"must be a whole number, got {value!r}", argument=name)
    if number < 1:
        raise ConfigError(f"must be at least 1, got {value}", argument=name)
    return number
