"""`configure_optimizers`: from a configuration to what Lightning's hook of that name returns, built when asked for."""

from __future__ import annotations

import functools
import sys
from typing import Any

from optplug.build import build, checked
from optplug.config import Config
from optplug.errors import WiringError
from optplug.wiring.monitor import infer
from optplug.wiring.plans import Choice, Plan, choices, plans


def configure_optimizers(
    module: Any,
    optimizer: Any,
    scheduler: Any = None,
    *,
    param_groups: Any = None,
    monitor: str | None = None,
    mode: str | None = None,
) -> dict[str, Any]:
    """Build what `LightningModule.configure_optimizers` returns; call it from there.

    Args:
        module: the LightningModule, whose trainable parameters are optimized.
        optimizer: a name, or a mapping with `name` and hyperparameters.
        scheduler: a name, or a mapping with `name`, arguments and wiring keys (`interval`, `frequency`, `warmup`,
            `warmup_steps`, `monitor`, `mode`, `args`). None: no schedule.
        param_groups: a list of mappings, each with `match` (a glob over parameter names, or several) and options.
        monitor: the metric a plateau watches. Default: EarlyStopping's, else ModelCheckpoint's, else the only
            validation loss.
        mode: `"min"` or `"max"`. Default: that of the callback that watches the metric, else by the metric's name.

    Returns:
        `{"optimizer": ...}`, and `"lr_scheduler": {...}` when there is a schedule. The schedule is stepped by optplug's
        callback, which is added to the trainer where none is there.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError, ConfigError, ConfigTypeError, HyperparameterError,
        HyperparameterTypeError, WiringError: each says what was wrong, what is allowed, and the nearest match.
    """
    config = checked(optimizer, scheduler, param_groups=param_groups, monitor=monitor, mode=mode)
    # A submodule knows no trainer, so nobody would step the schedule; only the calling method shows that it is one.
    caller = sys._getframe(1).f_locals.get("self")
    if config.scheduler is not None and caller is not module and hasattr(caller, "lr_scheduler_step"):
        raise WiringError(
            f"configure_optimizers takes the LightningModule itself, got {type(module).__name__} from "
            f"{type(caller).__name__}: pass self, and tell parameters apart with param_groups"
        )
    return configure(module, config)


def configure(module: Any, config: Config) -> dict[str, Any]:
    """As `configure_optimizers`, for a parsed configuration."""
    trainer = getattr(module, "_trainer", None)
    scheduled = config.scheduler
    monitored = None
    if scheduled is not None and scheduled.takes_metric:
        monitored = infer(trainer, scheduled.monitor, scheduled.mode)
    optimizer, scheduler = build(module, config, monitored.mode if monitored else None)
    choice = choices[optimizer] = Choice(config)
    if scheduled is None or scheduler is None:
        return {"optimizer": optimizer}

    interval = "validation" if monitored else scheduled.interval
    choice.plan = plans[scheduler] = Plan(scheduled.offer.name, interval, scheduled.frequency, monitored)
    entry: dict[str, Any] = {"scheduler": scheduler, "interval": scheduled.interval, "frequency": scheduled.frequency}
    if monitored and getattr(module, "automatic_optimization", True):  # Lightning warns about these in manual mode
        entry["reduce_on_plateau"] = monitored.monitor is not None
        if monitored.monitor is not None:
            entry["monitor"] = monitored.monitor
    if trainer is not None:
        from optplug.wiring.callback import ensure_owner

        ensure_owner(trainer)
    return {"optimizer": optimizer, "lr_scheduler": entry}


# A plain function behind a partial: Lightning's is_overridden needs its __code__, and pickle and deepcopy take it along
# with the module it belongs to.
def _configure(config: Config, module: Any) -> dict[str, Any]:
    return configure(module, config)


def attach(module: Any, config: Config, *, override: bool = False) -> bool:
    """Give a module its `configure_optimizers`, until `detach`.

    Args:
        module: a LightningModule. config: what to build. override: replace a `configure_optimizers` of its own.

    Returns:
        False when this very configuration is attached already.

    Raises:
        WiringError: the module has one of its own and `override` is False, or another configuration is attached.
    """
    bound = module.__dict__.get("configure_optimizers")
    if _is_ours(bound):
        if bound.args[0] is config:
            return False
        raise WiringError(f"two ConfigureOptimizers callbacks want to configure {type(module).__name__}: keep one")
    if not override and (bound is not None or defines_its_own(type(module))):
        raise WiringError(
            f"{type(module).__name__} defines configure_optimizers, and an optimizer is configured from outside too: "
            "remove one, or pass override=True to replace the module's own"
        )
    module.__dict__["configure_optimizers"] = functools.partial(_configure, config, module)
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
