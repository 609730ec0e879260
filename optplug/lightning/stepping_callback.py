"""`SteppingCallback`: the part of optplug's callback that every fit needs, however its optimizers were configured."""

from __future__ import annotations

import sys
from itertools import takewhile
from typing import Any

from optplug.errors import WiringError
from optplug.lightning._compat import (
    CallbackInheritance,
    imported_callback_classes,
    is_lightning_callback,
    loaded_checkpoint,
    restore_data_loaders,
    supported_import_names,
)
from optplug.lightning.extended_schedules import extend_schedules
from optplug.lightning.fit_state import FitState
from optplug.lightning.loggers import log_configuration
from optplug.lightning.rebuild_optimizers import check_length_units, check_submodules, rebuild_if_stale
from optplug.lightning.resume import finish_resume, prepare_resume
from optplug.lightning.scheduler_stepper import SchedulerStepper
from optplug.lightning.summary import summary_lines

supported_import_names("the callback of optplug")  # raises an error without Lightning
_Callbacks: Any = imported_callback_classes()

_ATTRIBUTES_OF_A_FIT = ("fit_state", "log", "log_dict", "_added_for_this_fit", "_observer", "_reporter")


class SteppingCallback(SchedulerStepper, *_Callbacks):  # type: ignore[misc]
    """Resumes optimizers and schedulers, prints and logs the configuration, and steps the schedulers.

    `optplug.configure_optimizers` adds one to the trainer if there is no `ConfigureOptimizers` among its callbacks.

    Args:
        manage_third_party_plateaus: as in `SchedulerStepper`.
        verbose: as in `SchedulerStepper`; also whether to print the summary at the start of a fit.
    """

    def __init__(self, *, manage_third_party_plateaus: bool = False, verbose: bool = True) -> None:
        super().__init__(manage_third_party_plateaus=manage_third_party_plateaus, verbose=verbose)
        self._added_for_this_fit = False

    def _is_in_fit(self) -> bool:
        return bool(self.fit_state.built or self.fit_state.managed)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes for a copy. Without a fit in progress they refer to no module, trainer or tensor.

        Files of other libraries contain the callback: as plain data, they can be loaded with `weights_only=True`.
        """
        if self._is_in_fit():  # the copy continues with the state of the fit
            return dict(vars(self))
        own = {key: value for key, value in vars(self).items() if key not in _ATTRIBUTES_OF_A_FIT}
        return {**own, "verbose": self._reporter.verbose}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "fit_state" not in state:
            manage, verbose = state["manage_third_party_plateaus"], state.pop("verbose")
            SteppingCallback.__init__(self, manage_third_party_plateaus=manage, verbose=verbose)
        self.__dict__.update(state)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # Tuning callbacks, such as a learning-rate finder, have run by now.
        graphs = self.fit_state.gradient_graphs
        state = self.fit_state = FitState(self.fit_state.built, gradient_graphs=graphs)
        rebuild_if_stale(trainer, pl_module, state)
        state.gradient_graphs.attach(trainer, state.built)
        check_submodules(trainer, pl_module, state)
        state.resume = prepare_resume(trainer, state, loaded_checkpoint(trainer))
        super().on_fit_start(trainer, pl_module)
        # Next, Lightning logs the module's hyperparameters, and TensorBoardLogger writes all to hparams.yaml, once.
        log_configuration(trainer, state, self._reporter)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if (
            not self.fit_state.is_resumed and trainer.strategy.restore_checkpoint_after_setup
        ):  # a sharded strategy has no checkpoint before this hook
            self.fit_state.resume = prepare_resume(trainer, self.fit_state, checkpoint, sharded=True)

    def _resume(self, trainer: Any) -> None:
        finish_resume(trainer, self.fit_state)
        extend_schedules(trainer, self.fit_state, self._reporter)
        super()._resume(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Resolving `auto` reads the training length, which sets up the data loaders before the checkpoint is loaded.
        restore_data_loaders(trainer)
        super().on_train_start(trainer, pl_module)
        check_length_units(trainer, pl_module, self.fit_state, self._reporter)
        for line in summary_lines(trainer, self.fit_state):
            self._reporter.report(trainer, line)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._restore(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException | None = None) -> None:
        if exception is None:  # called on a class in the place of a callback: `self` is the trainer
            raise _class_in_place_of_a_callback(self) from None
        super().on_exception(trainer, pl_module, exception)
        self._restore(trainer)

    def _restore(self, trainer: Any) -> None:
        """Restore the trainer to its state before the fit."""
        if self._added_for_this_fit:  # a new list, because the trainer is iterating over the old one
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self]


def _class_in_place_of_a_callback(trainer: Any) -> WiringError:
    """The error for a class among the callbacks. The attributes that the trainer has set on classes are removed."""
    classes = [one for one in trainer.callbacks if isinstance(one, type) and issubclass(one, SteppingCallback)]
    for cls in classes:
        for name in {"log", "log_dict"} & vars(cls).keys():
            delattr(cls, name)
    return WiringError(
        f"the trainer's callbacks contain the class {classes[0].__name__}, not an object: add the parentheses, "
        f"callbacks=[{classes[0].__name__}(...)]"
    )


def _follow_lightning_imports() -> None:
    """Make `SteppingCallback` a subclass of every `Callback` that is imported later."""
    inheritance: Any = CallbackInheritance(SteppingCallback)
    inheritance.update()
    sys.meta_path.insert(0, inheritance)  # before the finders that find Lightning


_follow_lightning_imports()


def ensure_stepping_callback(trainer: Any, *, verbose: bool = True) -> SchedulerStepper:
    """Return optplug's callback of a trainer. A `SteppingCallback` is added for this fit if the trainer has none.

    Args:
        trainer: the Lightning trainer.
        verbose: as in `SteppingCallback`, for an added callback. Default: True.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, SchedulerStepper):
            return callback
    added = SteppingCallback(verbose=verbose)
    added._added_for_this_fit = True
    # In on_fit_start, the callback needs the results of the tuners, which Lightning puts first.
    tuners = list(takewhile(_is_tuner, trainer.callbacks))
    trainer.callbacks = [*tuners, added, *trainer.callbacks[len(tuners) :]]  # the user may own the old list
    return added


def _is_tuner(callback: Any) -> bool:
    return any(is_lightning_callback(callback, name) for name in ("LearningRateFinder", "BatchSizeFinder"))
