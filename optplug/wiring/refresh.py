"""What was looked up in trainer and module when the optimizers were built, looked up again before training."""

from __future__ import annotations

from typing import Any

from optplug.build import links
from optplug.lengths import settled
from optplug.rates import rates_of
from optplug.schedules import rebased
from optplug.wiring.plans import Choice, choices
from optplug.wiring.run import run_of


def refresh(trainer: Any, module: Any) -> None:
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
        if optimizer not in choices or rates == choices[optimizer].depends["rates"]:
            continue
        # The learning-rate finder's: what it found is the base rate, whatever a warmup made of the one before.
        for entry in trainer.lr_scheduler_configs:
            if entry.scheduler.optimizer is optimizer:
                rebased(entry.scheduler, rates)


def resume_data(trainer: Any) -> None:
    """Let data that can go on where they were do so, where asking for the training's length has set them up too early.

    Lightning sets data up once, and gives a stateful loader its state then; the checkpoint is restored afterwards.
    """
    loop = trainer.fit_loop
    if getattr(loop, "_combined_loader_states_to_load", None):
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)


def check_units(trainer: Any, module: Any) -> None:
    """Refuse a schedule whose length is in steps and that counts epochs; the number of both is known by now.

    Raises:
        ConfigError: with what to say instead.
    """
    if trainer.fast_dev_run:
        return
    for choice in _built(trainer):
        scheduled = choice.part.scheduler
        if scheduled is not None and scheduled.length is not None:
            settled(scheduled, run_of(trainer, module, len(choice.config.parts)), choice.place)


def _built(trainer: Any) -> list[Choice]:
    return [choices[optimizer] for optimizer in trainer.optimizers if optimizer in choices]


def _is_stale(trainer: Any, module: Any, choice: Choice) -> bool:
    if links(module, choice.config) != choice.depends["links"]:
        return True
    before = choice.depends["run"]  # looked up for lengths that depend on it
    return before is not None and run_of(trainer, module, len(choice.config.parts)) != before
