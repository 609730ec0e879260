"""Before training: rebuild optimizers whose build inputs have changed; check optimized parameters and length units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optplug.config.build import resolve_link, resolve_links
from optplug.config.model import Config
from optplug.config.training_length import possibly_wrong_unit, resolve_setup
from optplug.errors import WiringError
from optplug.lightning._compat import attribute_set_by_tuner, lr_of_finder
from optplug.lightning.fit_setup import BuiltOptimizer, ConfiguredOptimizer
from optplug.lightning.fit_state import FitState
from optplug.lightning.reporter import Reporter
from optplug.lightning.trainer_info import training_length
from optplug.schedulers.adapters import adapter_for
from optplug.schedulers.lr import lrs_of, set_lr


def rebuild_if_stale(trainer: Any, module: Any, state: FitState) -> None:
    """Rebuild the optimizers if a link or the length of the training has changed since they were built.

    Lightning's learning-rate finder and batch-size finder are callbacks. They run after the optimizers are built. A
    learning rate that the finder has set becomes the base learning rate of the schedules.

    Args:
        trainer: the Lightning trainer, before it restores a checkpoint and before optplug manages its schedulers.
        module: the LightningModule.
        state: the state of the fit.
    """
    if trainer.fast_dev_run:
        return
    found = state.configured(trainer)
    if any(_is_stale(trainer, module, configured) for _, configured in found):
        trainer.strategy.setup_optimizers(trainer)
        return
    lr = lr_of_finder(trainer)
    for optimizer, configured in found:
        if lr is not None:
            for group in optimizer.param_groups:
                set_lr(group, lr)
        lrs = lrs_of(optimizer)
        if lrs == configured.lrs:
            continue
        # A warmup has scaled the learning rate before the finder set its own. The learning rate that the finder set
        # does not include the warmup factor.
        for entry in trainer.lr_scheduler_configs:
            if entry.scheduler.optimizer is optimizer:
                adapter_for(entry.scheduler).set_base_lrs(lrs)


def warn_of_unused_lr(
    trainer: Any, module: Any, config: Config | None, built: Iterable[BuiltOptimizer], reporter: Reporter
) -> None:
    """Warn if `Tuner.lr_find` has set an attribute of the module from which no learning rate of the fit is taken.

    Args:
        trainer: the Lightning trainer, at the end of the search.
        module: the LightningModule.
        config: the configuration of the callback.
        built: the optimizers that were built for the search.
        reporter: warns.
    """
    link = attribute_set_by_tuner(trainer, module)
    if link is None or config is None:
        return
    used = [one.configured for one in built if one.configured.config is config and one.configured.setup.entries]
    if used and all(resolve_links(module, config) == configured.links for configured in used):
        reporter.warn(
            trainer,
            f"the learning rate that the tuner has found, {resolve_link(module, link):.3g}, is not used: the "
            f"configuration has a learning rate of its own. Set optimizer.lr: {link} to use it",
        )


def check_submodules(trainer: Any, module: Any, state: FitState) -> None:
    """Check that no trainable parameter remains without an optimizer if an optimizer was built for a submodule.

    Raises:
        WiringError: `configure_optimizers` got a submodule in place of the LightningModule.
    """
    submodules = [configured.submodule for _, configured in state.configured(trainer) if configured.submodule]
    if not submodules:
        return
    optimized = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    if any(p.requires_grad and id(p) not in optimized for p in module.parameters()):
        raise WiringError(
            f"configure_optimizers takes the LightningModule itself, got {submodules[0]} from {type(module).__name__}: "
            "pass self, and select parameters with param_groups"
        )


def check_length_units(trainer: Any, module: Any, state: FitState, reporter: Reporter) -> None:
    """Check that no schedule that is stepped in epochs has a length in steps, when both numbers are known.

    In a trial of a longer training, both numbers may be equal by coincidence: this is a warning.

    Raises:
        ConfigError: with the setting to use instead.
    """
    if trainer.fast_dev_run:
        return
    for optimizer, configured in state.configured(trainer):
        schedules = [one for one in configured.setup.schedules if one.length_argument is not None or one.parts]
        scheduled = configured.setup.leading_schedule
        if scheduled is None or not schedules:
            continue
        managed = state.managed_of(trainer, optimizer)
        if managed is not None and managed.plan.interval != scheduled.interval:  # the module has changed it
            continue
        length = training_length(trainer, module, len(configured.config.setups), configured.start)
        resolve_setup(configured.setup, length)
        for warning in filter(None, (possibly_wrong_unit(one, length) for one in schedules)):
            reporter.warn(trainer, warning)


def _is_stale(trainer: Any, module: Any, configured: ConfiguredOptimizer) -> bool:
    if resolve_links(module, configured.config) != configured.links:
        return True
    before = configured.training_length  # None if the schedule does not depend on it
    return (
        before is not None
        and training_length(trainer, module, len(configured.config.setups), configured.start) != before
    )
