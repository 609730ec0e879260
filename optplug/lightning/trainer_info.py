"""How long a trainer's fit lasts."""

from __future__ import annotations

import math
from typing import Any

from optplug.config.training_length import TrainingLength


def training_length(trainer: Any, module: Any, optimizers: int = 1) -> TrainingLength:
    """How long a fit lasts, as far as the trainer knows before it begins.

    Args:
        trainer: a Lightning trainer, or None outside of one. It loads its training data to count them.
        module: the LightningModule. optimizers: how many it has; in manual optimisation each is taken to step once in
            every batch, and `max_steps` counts the steps of all.
    """
    if trainer is None:
        return TrainingLength()
    for callback in trainer.callbacks:
        if type(callback).__name__ == "GradientAccumulationScheduler" and len(callback.scheduling) > 1:
            return TrainingLength(why="accumulation changes from epoch to epoch")
    estimate = trainer.estimated_stepping_batches
    manual = not getattr(module, "automatic_optimization", True)
    if trainer.max_steps > 0 and not math.isfinite(trainer.num_training_batches):
        trainer.fit_loop.setup_data()  # the estimate did without
    batches = trainer.num_training_batches
    accumulated = 1 if manual else trainer.accumulate_grad_batches
    per_epoch = math.ceil(batches / accumulated) if math.isfinite(batches) else None
    limit = math.ceil(trainer.max_steps / optimizers) if trainer.max_steps > 0 else None
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
    if limit is not None and per_epoch:
        needed = math.ceil(limit / per_epoch)
        epochs = needed if epochs is None else min(epochs, needed)
    steps = int(estimate) if 0 < estimate < math.inf else None
    if steps is not None and limit is not None and optimizers > 1:
        steps = limit if epochs is None or not per_epoch else min(limit, epochs * per_epoch)
    return TrainingLength(
        steps,
        epochs,
        per_epoch,
        _why(trainer, per_epoch),
        batches=None if per_epoch is None or epochs is None else int(batches) * epochs,
        processes=trainer.world_size,
    )


def _why(trainer: Any, per_epoch: int | None) -> str:
    """Why the trainer may not know how long it trains."""
    if not trainer.max_steps > 0 and not (trainer.max_epochs or 0) > 0:
        if any(type(callback).__name__ == "Timer" for callback in trainer.callbacks):
            return "the trainer stops by max_time, so nobody knows how many steps there will be"
        return "the trainer has neither max_epochs nor max_steps"
    if per_epoch is None:
        return "the training data have no length (an iterable without __len__), so nobody knows how long an epoch is"
    return "there are no training batches"


def no_validation(trainer: Any) -> str | None:
    """Why no validation is completed before the training ends; None where one may be. Asked when training begins."""
    if not trainer.enable_validation:
        return "no validation runs (there is no validation_step, no data for it, or limit_val_batches is 0)"
    if trainer.barebones:
        return "barebones=True logs nothing"
    every, epochs, batch = trainer.check_val_every_n_epoch, trainer.max_epochs, trainer.val_check_batch
    batches = trainer.num_training_batches
    if batch is None:  # a time
        return None
    if every is None:  # batches, counted across epochs
        first = (trainer.fit_loop.total_batch_idx + 1) // batch * batch + batch
        if epochs is None or epochs < 0 or first <= batches * epochs:
            return None
        return f"the next validation would come after {first} batches, and the training has {batches * epochs}"
    first = (trainer.current_epoch // every + 1) * every - 1  # the next epoch with a validation
    if epochs is not None and 0 <= epochs <= first:
        return f"the next validation would come in epoch {first}, and the last epoch is {epochs - 1}"
    if trainer.max_steps > 0 and math.isfinite(batches) and trainer.lightning_module.automatic_optimization:
        accumulated = trainer.accumulate_grad_batches
        needed = first * math.ceil(batches / accumulated) + math.ceil(min(batch, batches) / accumulated)
        if trainer.max_steps < needed:
            return f"the first validation comes after {needed} optimizer steps, and max_steps is {trainer.max_steps}"
    return None
