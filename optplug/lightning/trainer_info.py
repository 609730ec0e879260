"""How long a fit lasts, and whether it completes a validation, as far as this can be computed before the fit."""

from __future__ import annotations

import math
from typing import Any

from optplug.config.training_length import TrainingLength


def training_length(trainer: Any, module: Any, optimizers: int = 1) -> TrainingLength:
    """The length of a fit, as far as it can be computed before the fit.

    Args:
        trainer: the Lightning trainer, or None. The trainer may set up its training data to count the batches.
        module: the LightningModule.
        optimizers: number of optimizers of the module. With manual optimization, each is assumed to step once per
            batch, and `max_steps` counts the steps of all optimizers. Default: 1.
    """
    if trainer is None:
        return TrainingLength()
    for callback in trainer.callbacks:
        if type(callback).__name__ == "GradientAccumulationScheduler" and len(callback.scheduling) > 1:
            return TrainingLength(unknown_reason="accumulation changes from epoch to epoch")
    estimate = trainer.estimated_stepping_batches
    manual = not getattr(module, "automatic_optimization", True)
    if trainer.max_steps > 0 and not math.isfinite(trainer.num_training_batches):
        trainer.fit_loop.setup_data()  # with max_steps, the estimate does not set up the data
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
        _reason_for_unknown_length(trainer, per_epoch),
        batches=None if per_epoch is None or epochs is None else int(batches) * epochs,
        processes=trainer.world_size,
    )


def _reason_for_unknown_length(trainer: Any, per_epoch: int | None) -> str:
    """Why the length of the training may be unknown."""
    if not trainer.max_steps > 0 and not (trainer.max_epochs or 0) > 0:
        if any(type(callback).__name__ == "Timer" for callback in trainer.callbacks):
            return "the trainer stops by max_time, so the number of steps is unknown"
        return "the trainer has neither max_epochs nor max_steps"
    if per_epoch is None:
        return "the training data have no length (an iterable without __len__), so the length of an epoch is unknown"
    return "there are no training batches"


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
    if trainer.max_steps > 0 and math.isfinite(batches) and trainer.lightning_module.automatic_optimization:
        accumulated = trainer.accumulate_grad_batches
        needed = first * math.ceil(batches / accumulated) + math.ceil(min(batch, batches) / accumulated)
        if trainer.max_steps < needed:
            return f"the first validation comes after {needed} optimizer steps, and max_steps is {trainer.max_steps}"
    return None
