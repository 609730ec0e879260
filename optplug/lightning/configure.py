"""`optplug.configure_optimizers`, and the functions with which the callback sets and removes this hook of a module.

Optimizers and schedulers are built when Lightning calls `LightningModule.configure_optimizers`, not earlier: the
module's parameters are final only then.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, overload

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typing_extensions import Unpack

from optplug.config.build import (
    build_optimizer,
    build_schedule,
    check_parameter_partition,
    frozen_to_hold,
    parse_and_check,
    resolve_links,
)
from optplug.config.form import check_flags
from optplug.config.model import Config, OptimizerSetup, SchedulerConfig
from optplug.config.options import OneOptimizer, Options, Scheduler, SeveralOptimizers
from optplug.config.param_groups import parameter_infos
from optplug.config.training_length import (
    TrainingLength,
    depends_on_training_length,
    optimizers_depend_on_training_length,
    resolve_setup,
)
from optplug.errors import ConfigError, ConfigTypeError, WiringError
from optplug.lightning._compat import attached_trainer, finetuning_callbacks, imported_module_classes
from optplug.lightning.closures import check_closures
from optplug.lightning.fit_setup import BuiltOptimizer, ConfiguredOptimizer, MonitoredMetric, SteppingPlan
from optplug.lightning.hook_types import OptimizerDict, OptimizerLRSchedulerDict
from optplug.lightning.logger_names import rename_unloggable_groups
from optplug.lightning.monitor import infer_monitored_metric
from optplug.lightning.trainer_info import BEGINNING, schedule_start, training_length
from optplug.registry import registry
from optplug.schedulers.lr import lrs_of, set_lr


@overload
def configure_optimizers(
    module: nn.Module, optimizer: OneOptimizer, /, scheduler: None = None, **options: Unpack[Options]
) -> OptimizerDict: ...
@overload
def configure_optimizers(
    module: nn.Module, optimizer: OneOptimizer, /, scheduler: Scheduler, **options: Unpack[Options]
) -> OptimizerLRSchedulerDict: ...
@overload
def configure_optimizers(
    module: nn.Module, optimizer: SeveralOptimizers, /, scheduler: Scheduler | None = None, **options: Unpack[Options]
) -> list[OptimizerDict | OptimizerLRSchedulerDict]: ...
@overload
def configure_optimizers(  # for `**config`, whose types are not known
    module: nn.Module,
    *,
    optimizer: OneOptimizer | SeveralOptimizers,
    scheduler: Scheduler | None = None,
    **options: Unpack[Options],
) -> OptimizerDict | OptimizerLRSchedulerDict | list[OptimizerDict | OptimizerLRSchedulerDict]: ...
def configure_optimizers(
    module: nn.Module,
    optimizer: Any = None,
    scheduler: Any = None,
    *,
    param_groups: Any = None,
    monitor: str | None = None,
    mode: str | None = None,
    on_resume: str | None = None,
    override: bool = False,
    verbose: bool = True,
) -> Any:
    """Build the return value of `LightningModule.configure_optimizers`; call it from that hook.

    Args:
        module: the LightningModule (`self`). Its parameters are optimized; frozen ones if they are unfrozen later. A
            parameter group that is added to the optimizer gets the options of `param_groups`. A submodule that is a
            LightningModule too is allowed if no trainable parameter of the whole module remains without an optimizer.
            Any other module has no trainer: its optimizer is built like that of a plain training loop, and Lightning
            steps its schedule.
        optimizer: one of
            - a name;
            - a mapping with `name` and hyperparameters;
            - a list of such mappings, for several optimizers in manual optimization. Each mapping has `match`, `regex`
              or `type`, and optionally its own `param_groups` and `scheduler`;
            - `{combine: [...]}`, for one optimizer that combines several;
            - an existing `torch.optim.Optimizer`, which is used as it is.
        scheduler: a name, or a mapping with `name`, the scheduler's arguments and optplug's keys (`interval`,
            `frequency`, `warmup`, `warmup_steps`, `monitor`, `mode`, `patience_unit`, `on_nonfinite`, `args`).
            Default: no schedule.
        param_groups: a preset (`"no_decay"`), or a list of presets and rules. A rule is a mapping with `match` (a glob
            over parameter names), `regex` or `type` (a module class), and options. Default: one group.
        monitor: the metric that a plateau scheduler monitors. Default: the metric of EarlyStopping, else that of
            ModelCheckpoint, else the only validation loss.
        mode: `"min"` or `"max"`. Default: the mode of the callback that monitors the same metric, else derived from the
            metric's name.
        on_resume: which values a run uses that resumes from a checkpoint. Default: `"keep"`.
            - `"keep"`: all values of the checkpoint;
            - `"override_hparams"`: the states of the checkpoint, the hyperparameters of the configuration;
            - `"reset_scheduler"`: the optimizer of the checkpoint, a new schedule of the configuration;
            - `"reset_all"`: the weights of the checkpoint, a new optimizer and schedule of the configuration.
        override: of no effect: the hook that calls this function is the module's own. Default: False.
        verbose: whether to report the configuration when the training begins, and each learning-rate cut. If the
            trainer has a `ConfigureOptimizers`, its `verbose` decides. Default: True.

    Returns:
        `{"optimizer": ...}`, with a schedule also `"lr_scheduler": {...}`. For a list of optimizers, a list of these.
        optplug's callback steps the schedules. It is added to the trainer if the trainer does not have it.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError, ConfigError, ConfigTypeError, HyperparameterError,
            HyperparameterTypeError, WiringError: one error was found. The message gives the location, the allowed
            values and the nearest match.
        ConfigErrors: several errors were found. It contains all of them.
    """
    check_flags(override=override, verbose=verbose)
    prebuilt = optimizer if isinstance(optimizer, Optimizer) else None
    given = {"monitor": monitor, "mode": mode, "on_resume": on_resume}
    if prebuilt is not None:
        if param_groups is not None:
            raise ConfigError(
                "not allowed with an optimizer object: pass the optimizer's name and options instead",
                loc=("param_groups",),
            )
        alone = scheduler is None and all(value is None for value in given.values())
        config = Config((OptimizerSetup(),)) if alone else parse_and_check(None, scheduler, **given)
    else:
        config = parse_and_check(optimizer, scheduler, param_groups=param_groups, **given)
        if not config.setups[0].entries:
            raise ConfigTypeError(
                "must be a name, a mapping with a name, or an optimizer, got None (NoneType)", loc=("optimizer",)
            )
    return build_from_config(module, config, prebuilt, verbose=verbose)


def build_from_config(
    module: Any,
    config: Config,
    prebuilt: Optimizer | None = None,
    replaced: MonitoredMetric | None = None,
    *,
    verbose: bool = True,
) -> Any:
    """Build the return value of `LightningModule.configure_optimizers` from a parsed configuration.

    Args:
        module: the LightningModule.
        config: what to build.
        prebuilt: the existing optimizer, for a configuration without an optimizer.
        replaced: the metric of the module's own schedule, which the configuration replaces. Default: None.
        verbose: as in `configure_optimizers`. Default: True.

    Returns:
        As `configure_optimizers`.

    Raises:
        As `configure_optimizers`.
    """
    trainer = attached_trainer(module)
    check_optimization_mode(module, config)
    _check_combination(trainer, config)
    check_parameter_partition(module, config)
    built = [_build(module, config, setup, prebuilt, replaced) for setup in config.setups]
    if trainer is not None:
        from optplug.lightning.stepping_callback import ensure_stepping_callback  # needs Lightning

        state = ensure_stepping_callback(trainer, verbose=verbose).fit_state
        state.record(built)
        check_closures(trainer, built)
        state.gradient_graphs.attach(trainer, state.built)
    entries = [_lightning_entry(module, one) for one in built]
    return entries if config.has_optimizer_list else entries[0]


def build_optimizers(module: Any, config: Config, *, override: bool = False) -> list[Optimizer]:
    """Build the optimizers of a configuration, without schedulers and without a trainer.

    Args:
        module: the LightningModule.
        config: what to build. Without an optimizer, the module's own `configure_optimizers` is called.
        override: ignore a schedule that the module's own `configure_optimizers` builds.

    Raises:
        As `configure_optimizers`.
    """
    check_optimization_mode(module, config)
    if not config.setups[0].entries:
        return [_build_own_optimizer(module, override=override)[0]]
    check_parameter_partition(module, config)
    hold_frozen = frozen_to_hold(module, config)
    return [build_optimizer(module, setup, hold_frozen=hold_frozen) for setup in config.setups]


def check_optimization_mode(module: Any, config: Config) -> None:
    """Check that several optimizers are configured only for manual optimization.

    Raises:
        WiringError: the module uses automatic optimization.
    """
    if len(config.setups) > 1 and getattr(module, "automatic_optimization", False):
        raise WiringError(
            f"automatic optimization steps one optimizer, but {len(config.setups)} are configured: set "
            f"self.automatic_optimization = False in {type(module).__name__}.__init__ and step each in training_step, "
            "or combine them into one: optimizer: {combine: [...]}",
            loc=("optimizer",),
        )


def _check_combination(trainer: Any, config: Config) -> None:
    """Check that the trainer has no BackboneFinetuning callback if optimizers are combined into one.

    Raises:
        WiringError: it has one.
    """
    name = "BackboneFinetuning"
    has_callback = any(
        base.__name__ == name for callback in finetuning_callbacks(trainer) for base in type(callback).__mro__
    )
    if has_callback and any(setup.is_combined for setup in config.setups):
        raise WiringError(
            f"combine cannot be used with {name}: it adds the backbone's parameter group without the key 'member', "
            "which selects one of the combined optimizers. Use one optimizer, or remove the "
            "callback and unfreeze the backbone in the module with requires_grad_(True): the optimizers hold frozen "
            "parameters",
            loc=("optimizer",),
        )


def _build(
    module: Any,
    config: Config,
    setup: OptimizerSetup,
    prebuilt: Optimizer | None,
    replaced: MonitoredMetric | None,
) -> BuiltOptimizer:
    """Build one optimizer and its schedule."""
    trainer = attached_trainer(module)
    scheduled = setup.leading_schedule
    monitored = length = None
    start = BEGINNING if trainer is None else schedule_start(trainer, config.on_resume)
    if scheduled is not None and scheduled.takes_metric:
        monitored = infer_monitored_metric(
            trainer,
            scheduled.monitor,
            scheduled.mode,
            replaced=replaced,
            mode_required=trainer is None or not all(map(_accepts_late_mode, setup.schedules)),
        )
    if optimizers_depend_on_training_length(setup) or any(map(depends_on_training_length, setup.schedules)):
        length = training_length(trainer, module, len(config.setups), start)
    setup = resolve_setup(setup, length or TrainingLength())
    if prebuilt is None and not setup.entries:
        raise WiringError(
            f"no optimizer is configured for {type(module).__name__}: add e.g. optimizer: adam", loc=("scheduler",)
        )
    optimizer = prebuilt
    if optimizer is None:
        # A finetuning callback adds the parameters that it unfreezes itself, and skips those that the optimizer holds.
        # Without a trainer, frozen parameters may have gradients of earlier steps.
        holds_frozen = trainer is not None and not finetuning_callbacks(trainer)
        hold_frozen = frozen_to_hold(module, config) if holds_frozen else ()
        optimizer = build_optimizer(module, setup, hold_frozen=hold_frozen, rename_groups=rename_unloggable_groups)
    # Without a trainer: in a plain training loop, or for a submodule, whose schedule Lightning steps.
    mode, counts_steps = monitored.mode if monitored else None, trainer is None
    scheduler = build_schedule(optimizer, setup, mode, counts_steps=counts_steps)
    configured = ConfiguredOptimizer(
        config,
        setup,
        tuple(parameter_infos(module)),
        _stepping_plan(setup, monitored),
        start,
        training_length=length,
        links=resolve_links(module, config),
        lrs=lrs_of(optimizer),
        submodule=type(module).__name__ if trainer is not None and trainer.lightning_module is not module else None,
    )
    return BuiltOptimizer(optimizer, scheduler, configured)


def _stepping_plan(setup: OptimizerSetup, monitored: MonitoredMetric | None) -> SteppingPlan | None:
    """The plan of a scheduler; None without one.

    Args:
        setup: the setup, with all lengths resolved.
        monitored: the metric, if the scheduler takes one.
    """
    scheduled = setup.leading_schedule
    if scheduled is None:
        return None
    return SteppingPlan(
        "warmup" if scheduled.name is None else scheduled.registration.name,
        "validation" if monitored else scheduled.interval,
        scheduled.frequency,
        monitored,
        end=setup.end,
        patience_unit=scheduled.patience_unit,
        on_nonfinite=scheduled.on_nonfinite,
    )


def _lightning_entry(module: Any, built: BuiltOptimizer) -> dict[str, Any]:
    """An optimizer and its schedule, as Lightning's dictionary."""
    scheduled, plan = built.configured.setup.leading_schedule, built.configured.plan
    if scheduled is None or plan is None:
        return {"optimizer": built.optimizer}
    entry = {"scheduler": built.scheduler, "interval": scheduled.interval, "frequency": scheduled.frequency}
    # In manual mode, Lightning warns about the other keys.
    if plan.monitored is not None and getattr(module, "automatic_optimization", True):
        entry["reduce_on_plateau"] = plan.monitored.monitor is not None
        if plan.monitored.monitor is not None:
            entry["monitor"] = plan.monitored.monitor
    return {"optimizer": built.optimizer, "lr_scheduler": entry}


def _accepts_late_mode(scheduled: SchedulerConfig) -> bool:
    """Whether the mode of a scheduler can be set after it was built, as with `ReduceLROnPlateau` and its subclasses.

    A constant learning rate has no mode.
    """
    if scheduled.name is None:
        return True
    cls = registry.get("scheduler", scheduled.registration.qualified_name)
    return isinstance(cls, type) and issubclass(cls, ReduceLROnPlateau)


# A partial of a plain function, for two reasons: Lightning's `is_overridden` reads the function's `__code__`, and
# pickle and deepcopy copy a partial together with the module that it refers to.
def _run_configured(config: Config, override: bool, module: Any, replaced: Any) -> Any:
    if config.setups[0].entries:
        return build_from_config(module, config)
    return build_from_config(module, config, *_build_own_optimizer(module, override=override))


def _build_own_optimizer(module: Any, *, override: bool) -> tuple[Optimizer, MonitoredMetric | None]:
    """Call the module's own `configure_optimizers`; return the one optimizer that it builds, and the metric that its
    schedule monitors.

    Args:
        module: the LightningModule.
        override: ignore a schedule that the module builds.

    Raises:
        WiringError: the module also builds a schedule and `override` is False, or it does not build exactly one
            optimizer.
    """
    name = type(module).__name__
    own = own_configure_optimizers(module)
    returned = None if own is None else own()
    found = returned[0] if isinstance(returned, (list, tuple)) and len(returned) == 1 else returned
    schedule: Any = None
    monitor: str | None = None
    if isinstance(found, (list, tuple)) and len(found) == 2 and isinstance(found[0], (list, tuple)):
        found, schedule = found
        found = found[0] if len(found) == 1 else found
    if isinstance(found, Mapping):
        schedule, monitor = found.get("lr_scheduler", schedule), found.get("monitor")
        found = found.get("optimizer")
    if not isinstance(found, Optimizer):
        raise WiringError(
            f"{name}.configure_optimizers must return one optimizer for the configured schedule, "
            f"got {type(returned).__name__}: configure the optimizer too",
            loc=("scheduler",),
        )
    if schedule and not override:
        raise WiringError(
            f"{name}.configure_optimizers returns a schedule, and the configuration has one too: "
            "remove one, or pass override=True to replace the module's own",
            loc=("scheduler",),
        )
    if schedule:  # its constructor has set the learning rates of its first step
        for group in found.param_groups:
            set_lr(group, float(group.pop("initial_lr", group["lr"])))
    return found, _metric_of_schedule(schedule, monitor)


def _metric_of_schedule(schedule: Any, monitor: str | None) -> MonitoredMetric | None:
    """The metric that a schedule monitors, in any form that `configure_optimizers` may return; None without one.

    Args:
        schedule: a scheduler, a mapping with `scheduler`, a list of these, or None.
        monitor: the metric named beside the schedule.
    """
    if isinstance(schedule, (list, tuple)):
        schedule = schedule[0] if len(schedule) == 1 else None
    if isinstance(schedule, Mapping):
        schedule, monitor = schedule.get("scheduler"), schedule.get("monitor", monitor)
    if schedule is None or not isinstance(monitor, str):
        return None
    mode = getattr(schedule, "mode", None)
    known = mode in ("min", "max")
    return MonitoredMetric(
        monitor, mode if known else None, "the module's own schedule", "the module's own schedule" if known else ""
    )


def set_configure_optimizers(
    module: Any, config: Config, *, override: bool = False, others: Collection[Any] = ()
) -> bool:
    """Set `configure_optimizers` on a module instance. `remove_configure_optimizers` removes it.

    Args:
        module: the LightningModule.
        config: what to build. Without an optimizer, the schedule is built for the optimizer of the module's own
            `configure_optimizers`.
        override: replace the module's own `configure_optimizers`, or the schedule that it builds.
        others: the configurations of the trainer's other callbacks.

    Returns:
        False if this configuration was already attached, else True.

    Raises:
        WiringError: one of
            - the configuration has an optimizer, the module defines `configure_optimizers`, and `override` is False;
            - the configuration has no optimizer, and the module does not define `configure_optimizers`;
            - the configuration of another callback is attached;
            - several optimizers are configured for automatic optimization.
    """
    name, replaced = type(module).__name__, module.__dict__.get("configure_optimizers")
    if _is_set_by_optplug(replaced):
        if replaced.args[0] is config:
            return False
        if any(replaced.args[0] is other for other in others):
            raise WiringError(f"two ConfigureOptimizers callbacks configure {name}: keep one")
        remove_configure_optimizers(module)  # not of this fit: the module is a deep copy made during another fit
        replaced = module.__dict__.get("configure_optimizers")
    check_optimization_mode(module, config)
    own = own_configure_optimizers(module)
    if not config.setups[0].entries:
        if own is None:
            raise WiringError(missing_optimizer(module), loc=("scheduler",))
    elif not override and own is not None:
        raise WiringError(
            f"{name} defines configure_optimizers, and the configuration has an optimizer too: "
            "remove one, or pass override=True to replace the module's own"
        )
    module.__dict__["configure_optimizers"] = functools.partial(_run_configured, config, override, module, replaced)
    return True


def remove_configure_optimizers(module: Any) -> None:
    """Remove the `configure_optimizers` that `set_configure_optimizers` set, and restore the instance's own."""
    bound = module.__dict__.get("configure_optimizers")
    if _is_set_by_optplug(bound):
        del module.__dict__["configure_optimizers"]
        if bound.args[3] is not None:
            module.__dict__["configure_optimizers"] = bound.args[3]


def missing_optimizer(module: Any) -> str:
    """The message for a module without `configure_optimizers`, and without an optimizer in the configuration."""
    return (
        f"no optimizer is configured, and {type(module).__name__} defines no configure_optimizers: add e.g. "
        "optimizer: adam (in Python ConfigureOptimizers('adam'), on OptplugCLI's command line --optimizer adam)"
    )


def own_configure_optimizers(module: Any) -> Callable[[], Any] | None:
    """The module's own `configure_optimizers`, of the instance or its class; None if it is that of LightningModule."""
    hook = module.__dict__.get("configure_optimizers")
    if _is_set_by_optplug(hook):
        hook = hook.args[3]
    if hook is None:
        static = inspect.getattr_static(type(module), "configure_optimizers", None)
        hook = static.__get__(module, type(module)) if hasattr(static, "__get__") else static
        if hook is None:
            return None
    function = inspect.unwrap(getattr(hook, "__func__", hook))
    inherited = [inspect.unwrap(cls.configure_optimizers) for cls in imported_module_classes()]
    return None if any(function is one for one in inherited) else hook


def _is_set_by_optplug(bound: Any) -> bool:
    return isinstance(bound, functools.partial) and bound.func is _run_configured
