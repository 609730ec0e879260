"""Checks of trainers for optimizers that evaluate a closure in their step, such as LBFGS and SAM.

In automatic optimization, Lightning passes a closure that computes the loss and the gradients of the current batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optplug.errors import WiringError, listing
from optplug.lightning._compat import is_lightning_callback
from optplug.lightning.fit_setup import BuiltOptimizer, names_with

_CLOSURES = ("closure", "gradients_first")
"""Capabilities of optimizers that may evaluate their closure several times."""


def check_closures(trainer: Any, built: Sequence[BuiltOptimizer]) -> None:
    """Check that the trainer passes closures that compute what a step needs, if an optimizer evaluates them.

    Raises:
        WiringError: the trainer has a gradient scaler, or accumulates the gradients of several batches.
    """
    names = names_with(built, _CLOSURES)
    if not names:
        return
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise WiringError(
            f"{listing(names)} evaluates a closure, and a gradient scaler passes none to step(): "
            "use precision 'bf16-mixed' or '32-true' instead of '16-mixed'",
            loc=("optimizer",),
        )
    if trainer.lightning_module.automatic_optimization and (source := _source_of_accumulation(trainer)):
        raise WiringError(
            f"{listing(names)} evaluates a closure, which computes the gradients of one batch, but {source} "
            "accumulates those of several: use accumulate_grad_batches=1 and a larger batch size",
            loc=("optimizer",),
        )


def _source_of_accumulation(trainer: Any) -> str:
    """What makes the trainer accumulate gradients, for messages; empty if nothing does."""
    if trainer.accumulate_grad_batches > 1:
        return f"accumulate_grad_batches={trainer.accumulate_grad_batches}"
    name = "GradientAccumulationScheduler"
    schedulers = [callback for callback in trainer.callbacks if is_lightning_callback(callback, name)]
    return name if any(one.going_to_accumulate_grad_batches() for one in schedulers) else ""
