"""What was looked up in trainer and module when the optimizers were built, looked up again before training."""

from __future__ import annotations

from typing import Any

from optplug.config.build import links
from optplug.config.training_length import resolve_lengths
from optplug.lightning.stepping_plan import OptimizerChoice, optimizer_choices
from optplug.lightning.trainer_info import training_length
from optplug.schedulers.lr import rates_of
from optplug.schedulers.rebase import rebased


def rebuild_if_stale(trainer: Any, module: Any) -> None:
    """Build the optimizers anew where a link or the length of the training has changed since they were built.

    Lightning's learning-rate finder and its batch-size finder, as callbacks, run when the optimizers are there already.
    """
    if trainer.fast_dev_run:
        return
    if any(_is_stale(trainer, module, choice) for choice in _built(trainer)):
        # Nothing is restored yet, and no scheduler is claimed.
        trainer.strategy.setup_optimizers(trainer)
        return
    for optimizer in trainer.optimizers:
        rates = rates_of(optimizer)
        if optimizer not in optimizer_choices or rates == optimizer_choices[optimizer].depends["rates"]:
            continue
        # The learning-rate finder's: what it found is the base rate, whatever a warmup made of the one before.
        for entry in trainer.lr_scheduler_configs:
            if entry.scheduler.optimizer is optimizer:
                rebased(entry.scheduler, rates)


def check_units(trainer: Any, module: Any) -> None:
    """Refuse a schedule whose length is in steps and that counts epochs; the number of both is known by now.

    Raises:
        ConfigError: with what to say instead.
    """
    if trainer.fast_dev_run:
        return
    for choice in _built(trainer):
        scheduled = choice.setup.scheduler
        if scheduled is not None and scheduled.length is not None:
            resolve_lengths(scheduled, training_length(trainer, module, len(choice.config.setups)), choice.loc)


def _built(trainer: Any) -> list[OptimizerChoice]:
    return [optimizer_choices[optimizer] for optimizer in trainer.optimizers if optimizer in optimizer_choices]


def _is_stale(trainer: Any, module: Any, choice: OptimizerChoice) -> bool:
    if links(module, choice.config) != choice.depends["links"]:
        return True
    before = choice.depends["run"]  # looked up for lengths that depend on it
    return before is not None and training_length(trainer, module, len(choice.config.setups)) != before
