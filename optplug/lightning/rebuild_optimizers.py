"""Before training: rebuild optimizers whose build inputs have changed, and check the units of schedule lengths."""

from __future__ import annotations

from typing import Any

from optplug.config.build import resolve_links
from optplug.config.training_length import resolve_lengths
from optplug.lightning.stepping_plan import OptimizerChoice, optimizer_choices
from optplug.lightning.trainer_info import training_length
from optplug.schedulers.lr import lrs_of
from optplug.schedulers.reconfigure import set_base_lrs


def rebuild_if_stale(trainer: Any, module: Any) -> None:
    """Rebuild the optimizers if a link or the length of the training has changed since they were built.

    Lightning's learning-rate finder and batch-size finder are callbacks. They run after the optimizers are built. A
    learning rate that the finder has set becomes the base learning rate of the schedules.

    Args:
        trainer: the Lightning trainer, before it restores a checkpoint and before optplug manages its schedulers.
        module: the LightningModule.
    """
    if trainer.fast_dev_run:
        return
    if any(_is_stale(trainer, module, choice) for choice in _choices(trainer)):
        trainer.strategy.setup_optimizers(trainer)
        return
    for optimizer in trainer.optimizers:
        lrs = lrs_of(optimizer)
        if optimizer not in optimizer_choices or lrs == optimizer_choices[optimizer].build_inputs["lrs"]:
            continue
        # A warmup has scaled the learning rate before the finder set its own. The learning rate that the finder set
        # does not include the warmup factor.
        for entry in trainer.lr_scheduler_configs:
            if entry.scheduler.optimizer is optimizer:
                set_base_lrs(entry.scheduler, lrs)


def check_length_units(trainer: Any, module: Any) -> None:
    """Check that no schedule that is stepped in epochs has a length in steps, when both numbers are known.

    Raises:
        ConfigError: with the setting to use instead.
    """
    if trainer.fast_dev_run:
        return
    for choice in _choices(trainer):
        scheduled = choice.setup.scheduler
        if scheduled is not None and scheduled.length_argument is not None:
            resolve_lengths(scheduled, training_length(trainer, module, len(choice.config.setups)), choice.loc)


def _choices(trainer: Any) -> list[OptimizerChoice]:
    """The choices of the optimizers that optplug has configured."""
    return [optimizer_choices[optimizer] for optimizer in trainer.optimizers if optimizer in optimizer_choices]


def _is_stale(trainer: Any, module: Any, choice: OptimizerChoice) -> bool:
    if resolve_links(module, choice.config) != choice.build_inputs["links"]:
        return True
    before = choice.build_inputs["training_length"]  # None if the schedule does not depend on it
    return before is not None and training_length(trainer, module, len(choice.config.setups)) != before
