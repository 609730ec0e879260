"""How long a fit lasts, and whether it completes a validation, as far as this can be computed before the fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optplug.config.form import RESTARTING
from optplug.config.training_length import EpochSteps, TrainingLength
from optplug.lightning._compat import is_lightning_callback, loaded_checkpoint, saved_epochs


@dataclass(frozen=True)
class TrainingPosition:
    """How much of a training is over.

    Attributes:
        epochs: the number of epochs that are over.
        steps: the number of steps of all optimizers together.
        batches: the number of batches of the epoch after these that are over.
    """

    epochs: int = 0
    steps: int = 0
    batches: int = 0


BEGINNING = TrainingPosition()


def schedule_start(trainer: Any, on_resume: str) -> TrainingPosition:
    """Where in the training the schedules of this fit start. To be called before Lightning restores a checkpoint.

    A fit that continues from a checkpoint restores its schedules, which started with the training. A further fit of the
    same trainer without a checkpoint, and a fit with a policy that restarts the schedules, have only the rest of the
    training.

    Args:
        trainer: the Lightning trainer.
        on_resume: one of `optplug.config.form.ON_RESUME`.
    """
    checkpoint = loaded_checkpoint(trainer)
    if checkpoint is not None:
        if on_resume not in RESTARTING:
            return BEGINNING
        epochs, batches = saved_epochs(trainer, checkpoint)
        return TrainingPosition(epochs, int(checkpoint.get("global_step", 0)), batches)
    if trainer.ckpt_path and trainer.strategy.restore_checkpoint_after_setup:  # a sharded strategy loads it later
        return BEGINNING
    return TrainingPosition(trainer.current_epoch, trainer.global_step)


def training_length(
    trainer: Any, module: Any, optimizers: int = 1, start: TrainingPosition = BEGINNING
) -> TrainingLength:
    """The length of the training from the start of the schedules, as far as it can be computed before the fit.

    Args:
        trainer: the Lightning trainer, or None. The trainer may set up its training data to count the batches.
        module: the LightningModule.
        optimizers: number of optimizers of the module. With manual optimization, each is assumed to step once per
            batch, and `max_steps` counts the steps of all optimizers. Default: 1.
        start: where the schedules start. Default: with the training.
    """
    if trainer is None:
        return TrainingLength(remedy="pass the length to optplug.create_optimizer_and_scheduler")
    batches = _batches_per_epoch(trainer)
    if batches and start.batches >= batches:
        start = TrainingPosition(start.epochs + 1, start.steps)
    steps_before = start.steps // optimizers
    steps_left = None if trainer.max_steps == -1 else max(0, math.ceil(trainer.max_steps / optimizers) - steps_before)
    epochs = None if trainer.max_epochs in (None, -1) else max(0, trainer.max_epochs - start.epochs)
    steps, epoch_steps = steps_left, None
    if batches == 0:
        steps, epochs, epoch_steps = 0, 0, EpochSteps(((0, 0),))
    elif batches is not None:
        epoch_steps = _epoch_steps(trainer, module, batches, start)
        if epochs is not None:
            most = int(epoch_steps.total(epochs))
            steps = most if steps is None else min(steps, most)
        if steps is not None:
            epochs = epoch_steps.epochs_for(steps)
    return TrainingLength(
        steps,
        epochs,
        epoch_steps,
        _reason_for_unknown_length(trainer),
        batches=None if batches is None or epochs is None else batches * epochs,
        processes=trainer.world_size,
        steps_before=steps_before,
        epochs_before=start.epochs,
        may_be_trial=trainer.max_steps != -1
        or trainer.limit_train_batches != 1.0
        or trainer.overfit_batches > 0
        or epochs == 1,
        is_dry_run=bool(trainer.fast_dev_run),
    )


def _batches_per_epoch(trainer: Any) -> int | None:
    """The number of training batches of an epoch on this process; None if the data have no length."""
    if trainer.limit_train_batches == 0:  # the trainer does not set up the data
        return 0
    trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    return int(batches) if math.isfinite(batches) else None


def _epoch_steps(trainer: Any, module: Any, batches: int, start: TrainingPosition) -> EpochSteps:
    """The steps of each optimizer in each epoch from a position in the training."""
    factor, changes = _accumulation(trainer, module)
    epochs = sorted({start.epochs, *(epoch for epoch in changes if epoch > start.epochs)})
    counts = [(epoch - start.epochs, math.ceil(batches / factor(epoch))) for epoch in epochs]
    if start.batches:
        # The first epoch has begun before. In the rest of it, a GradientAccumulationScheduler has no effect, because
        # Lightning does not call its hook again.
        accumulated = trainer.accumulate_grad_batches if module.automatic_optimization else 1
        rest = math.ceil(batches / accumulated) - start.batches // accumulated
        later = [] if any(epoch == 1 for epoch, _ in counts) else [(1, math.ceil(batches / factor(start.epochs + 1)))]
        counts = [(0, rest), *later, *counts[1:]]
    return EpochSteps(tuple(counts))


def _accumulation(trainer: Any, module: Any) -> tuple[Callable[[int], int], list[int]]:
    """The number of batches per optimizer step in an epoch, and the epochs in which this number changes."""
    if not module.automatic_optimization:
        return lambda epoch: 1, []
    # If there are several, the last one sets the trainer's value last.
    for callback in reversed(trainer.callbacks):
        if is_lightning_callback(callback, "GradientAccumulationScheduler"):
            return callback.get_accumulate_grad_batches, list(callback.scheduling)
    return lambda epoch: int(trainer.accumulate_grad_batches), []


def last_batch_is_done(trainer: Any) -> bool:
    """Whether the current batch is the last of its epoch, as far as Lightning knows it before the epoch ends."""
    return bool(trainer.is_last_batch) or trainer.fit_loop.batch_idx + 1 == trainer.num_training_batches


def _reason_for_unknown_length(trainer: Any) -> str:
    """Why the length of the training may be unknown."""
    if trainer.max_steps == -1 and trainer.max_epochs in (None, -1):
        if any(is_lightning_callback(callback, "Timer") for callback in trainer.callbacks):
            return "the trainer stops by max_time, so the number of steps is unknown"
        return "the trainer has neither max_epochs nor max_steps"
    return "the training data have no length (an iterable without __len__), so the length of an epoch is unknown"


def reason_without_validation(trainer: Any) -> str | None:
    """Why no validation will be completed before the training ends; None if one may be. Call it in `on_train_start`."""
    if not trainer.enable_validation:
        return "no validation runs (there is no validation_step, no data for it, or limit_val_batches is 0)"
    if trainer.barebones:
        return "barebones=True disables logging"
    every, epochs, batch = trainer.check_val_every_n_epoch, trainer.max_epochs, trainer.val_check_batch
    batches = trainer.num_training_batches
    if batch is None:  # val_check_interval is a time
        return None
    if every is None:  # val_check_interval counts batches across epochs
        first = (trainer.fit_loop.total_batch_idx + 1) // batch * batch + batch
        if epochs is None or epochs < 0 or first <= batches * epochs:
            return None
        return f"the next validation would come after {first} batches, and the training has {batches * epochs}"
    first = (trainer.current_epoch // every + 1) * every - 1  # the next epoch with a validation
    if epochs is not None and 0 <= epochs <= first:
        return f"the next validation would come in epoch {first}, and the last epoch is {epochs - 1}"
    if trainer.max_steps != -1 and math.isfinite(batches) and trainer.lightning_module.automatic_optimization:
        needed = _steps_before_validation(trainer, first, min(batch, int(batches)))
        if trainer.max_steps < needed:
            return f"the first validation comes after {needed} optimizer steps, and max_steps is {trainer.max_steps}"
    return None


def _steps_before_validation(trainer: Any, epoch: int, batch: int) -> int:
    """The number of optimizer steps of the training before a validation.

    Args:
        trainer: the Lightning trainer, at the start of the training.
        epoch: the epoch of the validation; not before the current epoch.
        batch: the number of batches of the epoch before the validation.
    """
    module, batches, now = trainer.lightning_module, int(trainer.num_training_batches), trainer.current_epoch
    factor = _accumulation(trainer, module)[0]
    # An earlier fit may have ended within an epoch, and the current epoch may have begun before a resume.
    before = min(int(trainer.global_step), int(_epoch_steps(trainer, module, batches, BEGINNING).total(now)))
    until = _epoch_steps(trainer, module, batches, TrainingPosition(now)).total(epoch - now)
    return before + int(until) + math.ceil(batch / factor(epoch))
