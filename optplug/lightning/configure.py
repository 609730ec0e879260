"""`configure_optimizers`: from a configuration to what Lightning's hook of that name returns, built when asked for."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Collection, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.config.build import build_optimizer, build_scheduler, check_shares, checked, links
from optplug.config.model import AUTO, Config, OptimizerSetup, SchedulerConfig
from optplug.config.param_groups import known
from optplug.config.training_length import TrainingLength, is_auto, resolve_lengths
from optplug.errors import ConfigError, ConfigTypeError, WiringError
from optplug.lightning._compat import attached_trainer
from optplug.lightning.monitor import infer
from optplug.lightning.stepping_plan import OptimizerChoice, SteppingPlan, optimizer_choices, stepping_plans
from optplug.lightning.trainer_info import training_length
from optplug.registry import registry
from optplug.schedulers.lr import rates_of, set_lr


def configure_optimizers(
    module: Any,
    optimizer: Any = None,
    scheduler: Any = None,
    *,
    param_groups: Any = None,
    monitor: str | None = None,
    mode: str | None = None,
    on_resume: str | None = None,
) -> Any:
    """Build what `LightningModule.configure_optimizers` returns; call it from there.

    Args:
        module: the LightningModule, whose trainable parameters are optimized.
        optimizer: a name, or a mapping with `name` and hyperparameters; or a list of such mappings, each with `match`,
            `regex` or `type` and perhaps its own `param_groups` and `scheduler`: several optimizers, for manual
            optimisation; or `{combine: [...]}`: one optimizer made of several. Or an optimizer, already built.
        scheduler: a name, or a mapping with `name`, arguments and wiring keys (`interval`, `frequency`, `warmup`,
            `warmup_steps`, `monitor`, `mode`, `args`). None: no schedule.
        param_groups: a preset (`"no_decay"`), or a list of rules: mappings with `match` (a glob over parameter names),
            `regex` or `type` (a class of modules) and options, or presets.
        monitor: the metric a plateau watches. Default: EarlyStopping's, else ModelCheckpoint's, else the only
            validation loss.
        mode: `"min"` or `"max"`. Default: that of the callback that watches the metric, else by the metric's name.
        on_resume: what counts when a run goes on from a checkpoint: `"keep"` (default), everything of the checkpoint;
            `"override_hparams"`, the configuration's numbers; `"reset_scheduler"`, the configuration's schedule, from
            the start; `"reset_all"`, optimizer and schedule from the start, with the checkpoint's weights.

    Returns:
        `{"optimizer": ...}`, and `"lr_scheduler": {...}` when there is a schedule; for several optimizers a list of
        these. The schedules are stepped by optplug's callback, which is added to the trainer where none is there.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError, ConfigError, ConfigTypeError, HyperparameterError,
        HyperparameterTypeError, WiringError: each says where and what was wrong, what is allowed, and the nearest
        match; ConfigErrors: all of them, where several things are wrong.
    """
    built = optimizer if isinstance(optimizer, Optimizer) else None
    given = {"monitor": monitor, "mode": mode, "on_resume": on_resume}
    if built is not None:
        if param_groups is not None:
            raise ConfigError("param_groups: the optimizer is built already: give a name and its options instead")
        alone = scheduler is None and all(value is None for value in given.values())
        config = Config((OptimizerSetup(),)) if alone else checked(None, scheduler, **given)
    else:
        config = checked(optimizer, scheduler, param_groups=param_groups, **given)
        if not config.setups[0].members:
            raise ConfigTypeError(
                "optimizer: must be a name, a mapping with a name, or an optimizer, got None (NoneType)"
            )
    # A submodule knows no trainer, and leaves the rest untrained; only the calling method shows that it is one.
    caller = sys._getframe(1).f_locals.get("self")
    if caller is not module and hasattr(caller, "lr_scheduler_step"):
        raise WiringError(
            f"configure_optimizers takes the LightningModule itself, got {type(module).__name__} from "
            f"{type(caller).__name__}: pass self, and tell parameters apart with param_groups"
        )
    return configure(module, config, built)


def configure(module: Any, config: Config, built: Optimizer | None = None) -> Any:
    """As `configure_optimizers`, for a parsed configuration.

    Args:
        module: the LightningModule. config: what to build. built: the optimizer of a configuration that has none.
    """
    check_mode(module, config)
    check_shares(module, config)
    entries = [_entry(module, config, setup, built) for setup in config.setups]
    trainer = attached_trainer(module)
    if trainer is not None:
        from optplug.lightning.stepping_callback import ensure_stepping_callback  # imports Lightning

        ensure_stepping_callback(trainer)
    return entries if config.several else entries[0]


def optimizers(module: Any, config: Config, *, override: bool = False) -> list[Optimizer]:
    """The optimizers of a configuration alone, without trainer and schedules.

    Args:
        module, config: as in `configure`. override: replace the module's own.

    Raises:
        As `configure_optimizers`.
    """
    check_mode(module, config)
    if not config.setups[0].members:
        return [_own_optimizer(module, override=override)]
    check_shares(module, config)
    return [build_optimizer(module, setup, config.loc(setup)) for setup in config.setups]


def check_mode(module: Any, config: Config) -> None:
    """Refuse several optimizers in automatic optimisation.

    Raises:
        WiringError: with what to do.
    """
    if len(config.setups) > 1 and getattr(module, "automatic_optimization", False):
        raise WiringError(
            f"optimizer: automatic optimisation steps one optimizer, and {len(config.setups)} are configured: set "
            f"self.automatic_optimization = False in {type(module).__name__}.__init__ and step each in training_step, "
            "or make one of them all: optimizer: {combine: [...]}"
        )


def _entry(module: Any, config: Config, setup: OptimizerSetup, built: Optimizer | None) -> dict[str, Any]:
    """One optimizer and its schedule, as Lightning takes them."""
    trainer = attached_trainer(module)
    where = config.scheduler_loc(setup)
    given = scheduled = setup.scheduler
    monitored = run = None
    if scheduled is not None:
        if scheduled.takes_metric:
            monitored = infer(trainer, scheduled.monitor, scheduled.mode, measured=_is_measured(module, scheduled))
        if is_auto(scheduled):
            run = training_length(trainer, module, len(config.setups))
        scheduled = resolve_lengths(scheduled, run or TrainingLength(), where)
    if built is None and not setup.members:
        raise WiringError(
            f"scheduler: there is no optimizer to schedule for {type(module).__name__}: add e.g. optimizer: adam"
        )
    optimizer = built if built is not None else build_optimizer(module, setup, config.loc(setup))
    scheduler = None
    if scheduled is not None:
        scheduler = build_scheduler(optimizer, scheduled, monitored.mode if monitored else None, where)
    depends = {"run": run, "links": links(module, config), "rates": rates_of(optimizer)}
    setup = dataclasses.replace(setup, scheduler=scheduled)
    choice = optimizer_choices[optimizer] = OptimizerChoice(config, setup, where, known(module), depends=depends)
    if scheduled is None or scheduler is None:
        return {"optimizer": optimizer}
    interval = "validation" if monitored else scheduled.interval
    length = scheduled.length or ""
    end = scheduled.arguments[length] if given is not None and given.arguments.get(length) == AUTO else None
    name = "warmup" if scheduled.name is None else scheduled.registration.name
    choice.plan = stepping_plans[scheduler] = SteppingPlan(
        name,
        interval,
        scheduled.frequency,
        monitored,
        end=end,
        length=length,
        unit=scheduled.patience_unit,
        on_nonfinite=scheduled.on_nonfinite,
    )
    entry: dict[str, Any] = {"scheduler": scheduler, "interval": scheduled.interval, "frequency": scheduled.frequency}
    if monitored and getattr(module, "automatic_optimization", True):  # Lightning warns about these in manual mode
        entry["reduce_on_plateau"] = monitored.monitor is not None
        if monitored.monitor is not None:
            entry["monitor"] = monitored.monitor
    return {"optimizer": optimizer, "lr_scheduler": entry}


def _is_measured(module: Any, scheduled: SchedulerConfig) -> bool:
    """Whether a metric of torchmetrics that the module has may tell the mode, to a scheduler that can be told late."""
    cls = registry.get("scheduler", scheduled.registration.qualified)
    late = isinstance(cls, type) and issubclass(cls, ReduceLROnPlateau)
    return late and any(isinstance(getattr(m, "higher_is_better", None), bool) for m in module.modules())


# A plain function behind a partial: Lightning's is_overridden needs its __code__, and pickle and deepcopy take it along
# with the module it belongs to.
def _configure(config: Config, override: bool, module: Any) -> Any:
    built = None if config.setups[0].members else _own_optimizer(module, override=override)
    return configure(module, config, built)


def _own_optimizer(module: Any, *, override: bool) -> Optimizer:
    """The optimizer that a module's own `configure_optimizers` builds.

    Raises:
        WiringError: it builds a schedule too, or not exactly one optimizer.
    """
    name = type(module).__name__
    returned = type(module).configure_optimizers(module)
    found = returned[0] if isinstance(returned, (list, tuple)) and len(returned) == 1 else returned
    schedule: Any = None
    if isinstance(found, (list, tuple)) and len(found) == 2 and isinstance(found[0], (list, tuple)):
        found, schedule = found
        found = found[0] if len(found) == 1 else found
    if isinstance(found, Mapping):
        schedule = found.get("lr_scheduler", schedule)
        found = found.get("optimizer")
    if not isinstance(found, Optimizer):
        raise WiringError(
            f"scheduler: {name}.configure_optimizers must return one optimizer for the configured schedule, "
            f"got {type(returned).__name__}: configure the optimizer too"
        )
    if schedule and not override:
        raise WiringError(
            f"scheduler: {name}.configure_optimizers returns a schedule, and one is configured from outside too: "
            "remove one, or pass override=True to replace the module's own"
        )
    if schedule:  # it has set the rates of its first step
        for group in found.param_groups:
            set_lr(group, float(group.pop("initial_lr", group["lr"])))
    return found


def attach(module: Any, config: Config, *, override: bool = False, others: Collection[Any] = ()) -> bool:
    """Give a module its `configure_optimizers`, until `detach`.

    Args:
        module: a LightningModule. config: what to build; without an optimizer, a schedule for the module's own.
        override: replace a `configure_optimizers` of its own, or the schedule that it builds.
        others: the other configurations of the trainer's callbacks.

    Returns:
        False when this very configuration is attached already.

    Raises:
        WiringError: the module has one of its own and `override` is False, or has none and the configuration has no
        optimizer, or another configuration is attached; several optimizers in automatic optimisation.
    """
    bound = module.__dict__.get("configure_optimizers")
    name = type(module).__name__
    if _is_ours(bound):
        if bound.args[0] is config:
            return False
        if any(bound.args[0] is other for other in others):
            raise WiringError(f"two ConfigureOptimizers callbacks want to configure {name}: keep one")
        bound = None  # left over: the module is a copy that somebody made of one in training
    check_mode(module, config)
    own = defines_its_own(type(module))
    if not config.setups[0].members:
        if not own:
            raise WiringError(
                f"scheduler: there is no optimizer to schedule: {name} defines no configure_optimizers, and the "
                "configuration has none; add e.g. optimizer: adam"
            )
    elif not override and (bound is not None or own):
        raise WiringError(
            f"{name} defines configure_optimizers, and an optimizer is configured from outside too: "
            "remove one, or pass override=True to replace the module's own"
        )
    module.__dict__["configure_optimizers"] = functools.partial(_configure, config, override, module)
    return True


def detach(module: Any) -> None:
    """Take away what `attach` gave."""
    if _is_ours(module.__dict__.get("configure_optimizers")):
        del module.__dict__["configure_optimizers"]


def defines_its_own(cls: type) -> bool:
    """Whether a LightningModule class overrides Lightning's `configure_optimizers`."""
    definer = next((c for c in cls.__mro__ if "configure_optimizers" in c.__dict__), None)
    return definer is not None and definer.__module__.split(".")[0] not in ("lightning", "pytorch_lightning")


def _is_ours(bound: Any) -> bool:
    return isinstance(bound, functools.partial) and bound.func is _configure
