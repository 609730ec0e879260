"""`SteppingCallback`: the part of optplug's callback that every fit needs, whoever configured the optimizers."""

from __future__ import annotations

from typing import Any

from optplug.lightning._compat import callback_classes, loaded_checkpoint, restore_data_loaders
from optplug.lightning.checkpoint_metadata import log
from optplug.lightning.rebuild import check_units, rebuild_if_stale
from optplug.lightning.resume import ResumeState, finish_resume, prepare_resume
from optplug.lightning.scheduler_stepper import SchedulerStepper
from optplug.lightning.summary import summary_lines

_Callbacks: Any = callback_classes()


class SteppingCallback(SchedulerStepper, *_Callbacks):  # type: ignore[misc]
    """Resumes optimizers and schedulers, prints and logs what was configured, and steps the schedulers.

    `optplug.configure_optimizers` adds one to the trainer where no `ConfigureOptimizers` is among its callbacks.

    Args:
        foreign, verbose: as in `SchedulerStepper`.
    """

    def __init__(self, *, foreign: bool = False, verbose: bool = True) -> None:
        super().__init__(foreign=foreign, verbose=verbose)
        self._resume_state: ResumeState | None = None
        self._added_for_this_fit = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        rebuild_if_stale(trainer, pl_module)  # callbacks that tune, such as an LR finder, have run by now
        self._resume_state = prepare_resume(trainer, loaded_checkpoint(trainer))
        super().on_fit_start(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.strategy.restore_checkpoint_after_setup:  # such a strategy has no checkpoint before this hook
            self._resume_state = prepare_resume(trainer, checkpoint, sharded=True)

    def _resume(self, trainer: Any) -> None:
        if self._resume_state is not None:
            finish_resume(trainer, self._resume_state)
        super()._resume(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        restore_data_loaders(trainer)  # `auto` asks for the training's length, which sets the loaders up too early
        super().on_train_start(trainer, pl_module)
        check_units(trainer, pl_module)
        log(trainer)
        for line in summary_lines(trainer, self._resume_state):
            self._plateaus.report(trainer, line)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._restore(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._restore(trainer)

    def _restore(self, trainer: Any) -> None:
        """Leave the trainer as it was before the fit."""
        self._resume_state = None
        if self._added_for_this_fit:  # a new list: the trainer is iterating over the old one
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self]


def ensure_stepping_callback(trainer: Any) -> None:
    """Add a `SteppingCallback` to the trainer, for this fit, if it has none."""
    if not any(isinstance(callback, SchedulerStepper) for callback in trainer.callbacks):
        callback = SteppingCallback()
        callback._added_for_this_fit = True
        trainer.callbacks = [callback, *trainer.callbacks]  # a new list: the old one may be the user's own
