"""`SchedulerStepper`: steps every scheduler that optplug built, through `pl_module.lr_scheduler_step`.

Lightning steps a plateau scheduler after writing the checkpoint that should contain the step, skips one step at every
resume, and lets the learning rates of ranks diverge. The callback therefore disables Lightning's stepping and steps the
schedulers itself: a plateau scheduler when a validation that logged its metric is complete, before checkpoints are
written; any other scheduler after the optimizer step or after the last batch of the epoch.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

from torch.optim.lr_scheduler import OneCycleLR

from optplug.config.form import PATIENCE_UNITS
from optplug.config.param_groups import name_groups, parameter_infos
from optplug.errors import OptplugError, WiringError, listing, short_list
from optplug.lightning import optimizer_modes
from optplug.lightning._compat import loaded_checkpoint, validation_is_due
from optplug.lightning.checkpoint_metadata import METADATA_KEY, collect_metadata, saved_metadata
from optplug.lightning.managed_scheduler import (
    NEVER_STEPPED_BY_LIGHTNING,
    GlobalStepCounter,
    ManagedScheduler,
    PlateauHistory,
    StepCounter,
    manage,
    plan_for_third_party_plateau,
    scheduler_step_count,
)
from optplug.lightning.monitor import monitorable_metrics
from optplug.lightning.plateau import PlateauObserver
from optplug.lightning.resume import lost_values
from optplug.lightning.stepping_plan import optimizer_choices, stepping_plans
from optplug.optim.combined import has_train_eval_modes
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.warmup import Warmup


class SchedulerStepper:
    """Mixin for a Lightning callback. It does not import Lightning and uses attributes of trainer and module only.

    Args:
        manage_third_party_plateaus: whether to step `ReduceLROnPlateau` entries that optplug did not build. Default:
            False.
        verbose: whether to print each learning-rate cut on rank zero. Default: True.
    """

    def __init__(self, *, manage_third_party_plateaus: bool = False, verbose: bool = True) -> None:
        self.manage_third_party_plateaus = manage_third_party_plateaus
        self.verbose = verbose
        self._managed_schedulers: list[ManagedScheduler] = []
        self._histories: list[PlateauHistory] = []
        self._step_counters: list[StepCounter | GlobalStepCounter] = []
        self._group_counts: list[int] = []
        self._optimizers_with_modes: list[Any] = []
        self._plateau_observer = PlateauObserver(self._step_plateau, verbose=verbose)
        self._metadata: dict[str, Any] = {}
        self._resumed = False
        self._epoch_ended = False
        self._after_batch = False  # a batch has ended, and neither the next batch nor a validation has started
        self._after_validation = False  # a validation epoch has ended, and its metrics have not been observed yet

    # ------------------------------------------------------------------ managed schedulers

    def _update_managed_schedulers(self, trainer: Any) -> None:
        """Update the list from the trainer's entries; other callbacks, such as SWA, replace entries during the fit."""
        entries = trainer.lr_scheduler_configs
        current = self._current_schedulers(trainer)
        removed = [old for old in self._managed_schedulers if not any(old is managed for managed in current)]
        self._managed_schedulers = current
        for managed in removed:
            names = listing(type(entry.scheduler).__name__ for entry in entries)
            self._plateau_observer.warn(
                trainer,
                f"{managed.name} is no longer among the trainer's schedulers ({names}): another callback has replaced "
                "it, and optplug no longer steps it",
            )
        for entry in entries:
            if entry.frequency == NEVER_STEPPED_BY_LIGHTNING:  # already managed, possibly by another callback
                continue
            plan = stepping_plans.get(entry.scheduler)
            if plan is None and self.manage_third_party_plateaus and trainer.lightning_module.automatic_optimization:
                plan = plan_for_third_party_plateau(entry)
            if plan is not None:
                self._managed_schedulers.append(managed := manage(entry, plan))
                self._attach_step_counter(trainer, managed)
                if plan.monitored is not None:
                    self._histories.append(managed.history)
        plateaus = [managed for managed in self._managed_schedulers if managed.plan.monitored is not None]
        for managed in plateaus if len(plateaus) > 1 else ():
            indices = [i for i, optimizer in enumerate(trainer.optimizers) if optimizer is managed.scheduler.optimizer]
            managed.optimizer_index = indices[0] if indices else None

    def _release_schedulers(self) -> None:
        """Let Lightning step the schedulers again."""
        # Step counts and histories stay: the user may save a checkpoint after the fit.
        for counter in self._step_counters:
            counter.detach()
        for managed in self._managed_schedulers:
            managed.entry.frequency = managed.original_frequency
        self._managed_schedulers, self._optimizers_with_modes = [], []

    def _current_schedulers(self, trainer: Any) -> list[ManagedScheduler]:
        """The managed schedulers whose entries the trainer still has."""
        entries = trainer.lr_scheduler_configs
        return [managed for managed in self._managed_schedulers if any(managed.entry is entry for entry in entries)]

    def _current_plateaus(self, trainer: Any) -> list[ManagedScheduler]:
        """The managed plateau schedulers whose entries the trainer still has."""
        return [managed for managed in self._current_schedulers(trainer) if managed.plan.monitored is not None]

    # ------------------------------------------------------------------ step counts

    def _start_counting(self, trainer: Any) -> None:
        """Count optimizer steps from now on, starting at the counts of the checkpoint if there is one."""
        counts = self._metadata.get("steps") or []
        if len(counts) != len(trainer.optimizers):  # the checkpoint has no counts
            counts = [trainer.global_step if len(trainer.optimizers) == 1 else 0] * len(trainer.optimizers)
        self._step_counters = [
            StepCounter(optimizer, count)
            if hasattr(optimizer, "register_step_post_hook")
            else GlobalStepCounter(trainer)
            for optimizer, count in zip(trainer.optimizers, counts, strict=True)
        ]
        self._group_counts = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        self._optimizers_with_modes = list(filter(has_train_eval_modes, trainer.optimizers))
        for managed in self._managed_schedulers:
            # A checkpoint has no functions for groups that were added during the training.
            follow_groups(managed.scheduler)
            managed.steps_taken = scheduler_step_count(managed.scheduler)
            self._attach_step_counter(trainer, managed)
            if managed.plan.patience_unit != managed.history.patience_unit:
                # The unit has changed since the checkpoint: patience counts from the current position.
                managed.history.patience_unit = managed.plan.patience_unit
                if managed.plan.patience_unit != PATIENCE_UNITS[0]:
                    in_epochs = managed.plan.patience_unit == "epochs"
                    managed.scheduler.at(trainer.current_epoch if in_epochs else managed.optimizer_steps_handled)

    def _attach_step_counter(self, trainer: Any, managed: ManagedScheduler) -> None:
        counters = zip(trainer.optimizers, self._step_counters, strict=False)
        found = (counter for optimizer, counter in counters if optimizer is managed.scheduler.optimizer)
        managed.step_counter = next(found, GlobalStepCounter(trainer))  # a strategy may have wrapped the optimizer
        managed.optimizer_steps_handled = managed.optimizer_steps

    def _follow_groups(self, trainer: Any) -> None:
        """Name the parameter groups added since the last call, and add them to the schedules of their optimizers."""
        for i, optimizer in enumerate(trainer.optimizers):
            old_count, new_count = self._group_counts[i], len(optimizer.param_groups)
            if old_count == new_count:
                continue
            self._group_counts[i] = new_count
            for managed in self._managed_schedulers:
                if managed.scheduler.optimizer is optimizer:
                    follow_groups(managed.scheduler)
            before = optimizer_choices[optimizer].parameter_infos if optimizer in optimizer_choices else []
            infos = [*before, *parameter_infos(trainer.lightning_module)]
            names = listing(name_groups(optimizer, infos, old_count))
            self._plateau_observer.report(
                trainer, f"epoch {trainer.current_epoch}: new parameter groups are scheduled too: {names}"
            )

    # ------------------------------------------------------------------ start and resume

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        others = [callback for callback in trainer.callbacks if callback is not self]
        if any(isinstance(callback, SchedulerStepper) for callback in others):
            raise WiringError("the trainer has two ConfigureOptimizers callbacks: keep one")
        # This callback comes first, so that checkpoints saved by other callbacks contain all scheduler steps that are
        # due. A new list, because Lightning is iterating over the old one.
        trainer.callbacks = [self, *others]
        self._resumed = False
        self._metadata = saved_metadata(loaded_checkpoint(trainer))  # no longer available when training starts
        self._histories = []
        # A checkpoint without a mode contains evaluation weights.
        optimizer_modes.set_mode(trainer.optimizers, "eval")
        self._update_managed_schedulers(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._metadata = saved_metadata(checkpoint)  # a sharded strategy restores after on_fit_start

    def _resume(self, trainer: Any) -> None:
        """Restore the callback's state, once per fit, after Lightning has restored the checkpoint."""
        for history, saved in zip(self._histories, self._metadata.get("plateau_histories", []), strict=False):
            vars(history).update(saved)

    def _resume_once(self, trainer: Any) -> None:
        if not self._resumed:
            self._resumed = True
            self._resume(trainer)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._resume_once(trainer)  # the sanity check observes metrics, also in a resumed run

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._resume_once(trainer)
        self._start_counting(trainer)
        lost = lost_values(self._metadata, trainer.current_epoch)
        for managed in self._current_plateaus(trainer):
            self._plateau_observer.warn_before_training(trainer, managed, lost)
        self._plateau_observer.begin_epoch(trainer)
        self._epoch_ended = False

    # ------------------------------------------------------------------ training

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._observe(trainer, "late")  # metrics that the module logged in its own on_train_epoch_end
        self._update_managed_schedulers(trainer)
        self._plateau_observer.begin_epoch(trainer)
        self._epoch_ended = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._after_batch = False
        optimizer_modes.set_mode(self._optimizers_with_modes, "train")
        self._follow_groups(trainer)  # groups that callbacks added; named before LearningRateMonitor logs them

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._follow_groups(trainer)  # groups that the training step added
        current = self._current_schedulers(trainer)
        if len(current) < len(self._managed_schedulers):
            self._update_managed_schedulers(trainer)
        for managed in current:
            total = managed.optimizer_steps
            # There is no new step while gradients accumulate, and several if a manual training step steps the
            # optimizer repeatedly.
            new_steps = range(managed.optimizer_steps_handled + 1, total + 1)
            managed.optimizer_steps_handled = total
            for step in new_steps:
                if isinstance(managed.scheduler, Warmup):
                    managed.scheduler.warmup_step()
                if managed.plan.interval == "step" and step % managed.plan.frequency == 0:
                    self._step(pl_module, managed, None)
            epoch_ends = managed.plan.interval == "epoch" and (
                trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches
            )
            if epoch_ends and (trainer.current_epoch + 1) % managed.plan.frequency == 0:
                self._step(pl_module, managed, None)
        self._after_batch = True

    def _step(self, pl_module: Any, managed: ManagedScheduler, value: float | None) -> None:
        """Step a scheduler once, unless it has reached its last step.

        Raises:
            WiringError: something else has stepped the scheduler too.
        """
        if scheduler_step_count(managed.scheduler) != managed.steps_taken:
            raise WiringError(_stepped_twice_message(managed, pl_module))
        last = _last_step(managed)
        if last is not None and managed.steps_taken is not None and managed.steps_taken >= last:
            return
        pl_module.lr_scheduler_step(managed.scheduler, value)
        managed.steps_taken = scheduler_step_count(managed.scheduler)

    def _step_plateau(self, trainer: Any, managed: ManagedScheduler, value: float | None) -> None:
        if managed.plan.patience_unit != PATIENCE_UNITS[0]:
            managed.scheduler.at(self._position(managed))
        if value is not None:
            self._step(trainer.lightning_module, managed, value)

    def _position(self, managed: ManagedScheduler) -> int:
        """The position of the training in the unit of patience: number of epochs begun, or of optimizer steps."""
        in_epochs = managed.plan.patience_unit == "epochs"
        return self._plateau_observer.epoch + 1 if in_epochs else managed.optimizer_steps

    def _observe(self, trainer: Any, moment: str) -> bool:
        return self._plateau_observer.observe(trainer, self._current_plateaus(trainer), moment)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        optimizer_modes.set_mode(trainer.optimizers, "eval")
        self._observe(trainer, "epoch")
        self._after_batch, self._epoch_ended = False, True

    # ------------------------------------------------------------------ validation

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._after_batch = False
            optimizer_modes.set_mode(trainer.optimizers, "eval")
            self._plateau_observer.begin_validation(trainer)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._after_validation = trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._after_validation = False
            optimizer_modes.set_mode(trainer.optimizers, "eval")  # the module may have changed the mode
            self._observe(trainer, "sanity" if trainer.sanity_checking else "validation")

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # The module's on_train_epoch_end has run after this callback's. A checkpoint written at the end of an epoch
        # contains the scheduler step for a metric logged there. An error must not prevent the checkpoint; the next
        # epoch start raises the error again.
        with contextlib.suppress(OptplugError):
            if self._epoch_ended and self._observe(trainer, "late"):
                checkpoint["lr_schedulers"] = [entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs]
                checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
        optimizer_modes.save_eval_weights(trainer, checkpoint)
        late_due = self._epoch_ended and self._plateau_observer.expects_late_value(self._current_plateaus(trainer))
        checkpoint[METADATA_KEY] = {
            **collect_metadata(trainer),
            "steps": [counter.count for counter in self._step_counters],
            "plateau_histories": [asdict(history) for history in self._histories],
            "validation_due": self._after_validation or (self._after_batch and validation_is_due(trainer)),
            "late_due": late_due,
            "epoch_over": self._epoch_ended,
        }

    # ------------------------------------------------------------------ end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        try:
            self._observe(trainer, "late")
        except OptplugError as error:  # an error would discard a training that is complete
            self._plateau_observer.warn(trainer, str(error))
        optimizer_modes.set_mode(trainer.optimizers, "eval")
        for managed in self._managed_schedulers:
            if scheduler_step_count(managed.scheduler) != managed.steps_taken:
                self._plateau_observer.warn(trainer, _stepped_twice_message(managed, pl_module))
        for managed in () if trainer.fast_dev_run else self._current_plateaus(trainer):
            if not managed.history.observed and managed.entry.strict and not managed.absence_reported:
                logged = short_list(monitorable_metrics(trainer.callback_metrics))
                self._plateau_observer.warn(
                    trainer, f"{managed.name} was never stepped: {managed.plan.monitored}; logged metrics: {logged}"
                )
        self._report_histories(trainer)

    def _report_histories(self, trainer: Any) -> None:
        for managed in () if trainer.fast_dev_run else self._current_plateaus(trainer):
            assert managed.plan.monitored is not None
            title = f"plateau{managed.name_suffix}"
            self._plateau_observer.report(trainer, managed.history.summary(title, managed.plan.monitored))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._release_schedulers()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            self._report_histories(trainer)
        optimizer_modes.set_mode(trainer.optimizers, "eval")
        self._release_schedulers()  # Lightning does not call teardown after an exception


def _stepped_twice_message(managed: ManagedScheduler, module: Any) -> str:
    """The message for a scheduler that the module steps too."""
    return (
        f"{type(module).__name__} steps {managed.name}, but optplug already steps it (also in manual optimization): "
        "remove scheduler.step() from the module"
    )


def _last_step(managed: ManagedScheduler) -> int | None:
    """The last step that a scheduler takes; None if the number of steps is unlimited."""
    scheduler, plan = managed.inner_scheduler, managed.plan
    if plan.last_step is not None:
        # The schedule is as long as the training; a checkpoint may have restored another length.
        return int(getattr(scheduler, plan.length_argument, plan.last_step))
    # OneCycleLR raises beyond its end, and its learning rate would rise again there.
    return int(scheduler.total_steps) - 1 if isinstance(scheduler, OneCycleLR) else None
