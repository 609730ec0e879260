"""`SchedulerStepper`: steps every scheduler that optplug built, through `pl_module.lr_scheduler_step`.

Lightning steps a plateau scheduler after writing the checkpoint that should contain the step, skips one step at every
resume, and lets the learning rates of ranks diverge. The callback therefore disables Lightning's stepping and steps the
schedulers itself: a plateau scheduler when a validation that logged its metric is complete, before checkpoints are
written; any other scheduler after the optimizer step or after the last batch of the epoch. An epoch that ends early is
an epoch too: its end is known only in `on_train_epoch_end`.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import asdict
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from optplug.config.form import RESTARTING
from optplug.config.metric_names import shown_list
from optplug.config.param_groups import parameter_infos, proposed_group_names
from optplug.errors import NonFiniteMetricError, OptplugError, WiringError, listing
from optplug.lightning._compat import (
    ignore_groups_without_lr,
    loaded_checkpoint,
    share_add_param_group,
    validation_is_due,
    validation_is_repeated,
)
from optplug.lightning.checkpoint_metadata import METADATA_KEY, collect_metadata, saved_metadata
from optplug.lightning.fit_state import EpochCount, FitState
from optplug.lightning.followed_lrs import EpochStartRates
from optplug.lightning.managed_scheduler import (
    GlobalStepCounter,
    ManagedFrequency,
    ManagedScheduler,
    StepCounter,
    manage,
    plan_for_third_party_plateau,
)
from optplug.lightning.monitor import monitorable_metrics
from optplug.lightning.optimizer_modes import OptimizerModes
from optplug.lightning.parameter_warnings import warn_of_untrained_parameters
from optplug.lightning.plateau import PlateauObserver
from optplug.lightning.reporter import Reporter
from optplug.lightning.resume import lost_values, repeats_observed_validation
from optplug.lightning.trainer_info import last_batch_is_done
from optplug.schedulers.late_groups import follow_groups


class SchedulerStepper:
    """Mixin for a Lightning callback. It does not import Lightning and uses attributes of trainer and module only.

    Args:
        manage_third_party_plateaus: whether to step `ReduceLROnPlateau` entries that optplug did not build. Default:
            False.
        verbose: whether to print each learning-rate cut on rank zero. Default: True.

    Attributes:
        fit_state: the state of the current or the last fit. Each fit starts with a new one.
    """

    def __init__(self, *, manage_third_party_plateaus: bool = False, verbose: bool = True) -> None:
        self.manage_third_party_plateaus = manage_third_party_plateaus
        self.fit_state = FitState()
        self._reporter = Reporter(verbose)
        self._observer = PlateauObserver(self._reporter)

    # ------------------------------------------------------------------ managed schedulers

    def _update_managed_schedulers(self, trainer: Any) -> None:
        """Update the list from the trainer's entries; other callbacks, such as SWA, replace entries during the fit."""
        state, entries = self.fit_state, trainer.lr_scheduler_configs
        current = state.current(trainer)
        removed = [old for old in state.managed if not any(old is managed for managed in current)]
        state.managed = current
        for managed in removed:
            names = listing(type(entry.scheduler).__name__ for entry in entries)
            self._reporter.warn(
                trainer,
                f"{managed.name} is no longer among the trainer's schedulers ({names}): another callback has replaced "
                "it, and optplug no longer steps it",
            )
        state.forget_replaced(trainer)
        for entry in entries:
            if isinstance(entry.frequency, ManagedFrequency):  # already managed, possibly by another callback
                continue
            plan = state.plan_of(entry.scheduler)
            if plan is None and self.manage_third_party_plateaus and trainer.lightning_module.automatic_optimization:
                plan = plan_for_third_party_plateau(entry)
            if plan is not None:
                state.managed.append(managed := manage(entry, plan))
                self._attach_step_counter(trainer, managed)
                if plan.monitored is not None:
                    state.histories.append(managed.history)
        plateaus = [managed for managed in state.managed if managed.metric is not None]
        for managed in plateaus if len(plateaus) > 1 else ():
            indices = [i for i, optimizer in enumerate(trainer.optimizers) if optimizer is managed.scheduler.optimizer]
            managed.optimizer_index = indices[0] if indices else None

    # ------------------------------------------------------------------ step counts

    def _start_counting(self, trainer: Any) -> None:
        """Count optimizer steps from now on, starting at the counts of the checkpoint if there is one."""
        state = self.fit_state
        counts = state.checkpoint_metadata.get("steps") or []
        if len(counts) != len(trainer.optimizers):  # the checkpoint has no counts
            counts = [trainer.global_step if len(trainer.optimizers) == 1 else 0] * len(trainer.optimizers)
        state.step_counters = [
            StepCounter(optimizer, count)
            if hasattr(optimizer, "register_step_post_hook")
            else GlobalStepCounter(trainer)
            for optimizer, count in zip(trainer.optimizers, counts, strict=True)
        ]
        state.group_counts = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        for managed in state.managed:
            # A checkpoint has no functions for groups that were added during the training.
            follow_groups(managed.scheduler)
            managed.steps_taken = managed.adapter.step_count
            self._attach_step_counter(trainer, managed)
            if managed.plan.patience_unit != managed.history.patience_unit:
                # The unit has changed since the checkpoint: patience counts from the current position.
                managed.history.patience_unit = managed.plan.patience_unit
                managed.set_position(trainer.current_epoch)
        handled = state.checkpoint_metadata.get("steps_handled", [])
        for managed, steps in zip(state.managed, handled, strict=False):
            managed.optimizer_steps_handled = min(steps, managed.optimizer_steps)

    def _attach_step_counter(self, trainer: Any, managed: ManagedScheduler) -> None:
        counters = zip(trainer.optimizers, self.fit_state.step_counters, strict=False)
        found = (counter for optimizer, counter in counters if optimizer is managed.scheduler.optimizer)
        managed.step_counter = next(found, GlobalStepCounter(trainer))  # a strategy may have wrapped the optimizer
        managed.optimizer_steps_handled = managed.optimizer_steps

    def _follow_groups(self, trainer: Any) -> None:
        """Add the parameter groups added since the last call to the schedules of their optimizers."""
        state = self.fit_state
        for i, optimizer in enumerate(trainer.optimizers):
            old_count, new_count = state.group_counts[i], len(optimizer.param_groups)
            if old_count == new_count:
                continue
            state.group_counts[i] = new_count
            for managed in state.managed:
                if managed.scheduler.optimizer is optimizer:
                    follow_groups(managed.scheduler)
            infos = [
                info for one, found in state.configured(trainer) if one is optimizer for info in found.parameter_infos
            ]
            infos += parameter_infos(trainer.lightning_module)
            names = listing(proposed_group_names(optimizer, infos, old_count))
            self._reporter.report(
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
        # No longer available when training starts.
        self.fit_state.checkpoint_metadata = saved_metadata(loaded_checkpoint(trainer))
        self.fit_state.modes = OptimizerModes(trainer.optimizers)
        self.fit_state.modes.switch("eval")  # a checkpoint without a mode contains evaluation weights
        self._update_managed_schedulers(trainer)
        share_add_param_group(trainer)
        self.fit_state.changed_monitors = ignore_groups_without_lr(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state = self.fit_state
        if state.is_resumed:  # a tuner restores the state before its trial run
            state.snapshots.ignore_present_values(trainer)  # the trial run logged them
            state.modes.set_to_eval()
            counts = saved_metadata(checkpoint).get("steps", [])
            for counter, count in zip(state.step_counters, counts, strict=False):
                if isinstance(counter, StepCounter):
                    counter.count = count
        elif trainer.strategy.restore_checkpoint_after_setup:  # a sharded strategy restores after on_fit_start
            state.checkpoint_metadata = saved_metadata(checkpoint)

    def _resume(self, trainer: Any) -> None:
        """Restore the callback's state, once per fit, after Lightning has restored the checkpoint."""
        saved_histories = self.fit_state.checkpoint_metadata.get("plateau_histories", [])
        for history, saved in zip(self.fit_state.histories, saved_histories, strict=False):
            vars(history).update(saved)

    def _resume_once(self, trainer: Any) -> None:
        if not self.fit_state.is_resumed:
            self.fit_state.is_resumed = True
            self._resume(trainer)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        # The sanity check observes metrics, also in a resumed run. Lightning has not set the epoch yet: a policy that
        # reads the learning rates of a schedule must wait where `_resume_epochs` may change them.
        if not self.fit_state.checkpoint_metadata.get("epochs", {}).get("changes"):
            self._resume_once(trainer)

    def _resume_epochs(self, trainer: Any) -> None:
        """Restore the count of epochs, after Lightning has set the epoch in which the training resumes."""
        state = self.fit_state
        saved = state.checkpoint_metadata.get("epochs")
        if saved is None:  # Lightning steps a schedule after the last batch of an epoch, not when the epoch ends early
            saved = {"last_counted": trainer.current_epoch - 1, "is_open": not last_batch_is_done(trainer)}
        state.epochs = EpochCount(**saved)
        changes = state.epochs.resume(trainer.current_epoch)
        if state.resume is not None and state.resume.policy in RESTARTING:
            return  # the schedulers are new
        for managed, changed in zip(state.managed, changes, strict=False):
            if changed:
                managed.undo(changed)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._resume_epochs(trainer)
        self._resume_once(trainer)
        self._start_counting(trainer)
        saved = self.fit_state.checkpoint_metadata
        self.fit_state.repeats_validation = repeats_observed_validation(trainer, saved)
        lost = lost_values(trainer, saved)
        for managed in self.fit_state.current_plateaus(trainer):
            self._observer.check_before_training(trainer, managed, lost)
        self._begin_epoch(trainer)

    # ------------------------------------------------------------------ training

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        # Metrics that the module logged in its own on_train_epoch_end.
        self._observer.observe(trainer, self.fit_state, "late")
        self._update_managed_schedulers(trainer)
        self.fit_state.epochs.begin_epoch(trainer.current_epoch)
        self._begin_epoch(trainer)
        self.fit_state.epoch_start_rates = EpochStartRates(trainer)
        self.fit_state.checks_parameters = True

    def _begin_epoch(self, trainer: Any) -> None:
        state = self.fit_state
        state.snapshots.begin_epoch(trainer)
        state.has_batch, state.epoch_ended = False, False
        state.count_steps(False)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        state = self.fit_state
        state.has_batch, state.after_batch, state.repeats_validation = True, False, False
        state.count_steps(True)
        state.epochs.begin_batch(trainer.current_epoch)
        state.modes.switch("train")
        rates, state.epoch_start_rates = state.epoch_start_rates, None
        if rates is not None:  # the first batch of the epoch
            rates.follow()
        self._follow_groups(trainer)  # groups that callbacks added
        self._apply_changed_lrs(trainer)

    def _apply_changed_lrs(self, trainer: Any) -> None:
        """Apply the factors of warmups to learning rates that other code has set."""
        for managed in self.fit_state.managed:
            for warmup in managed.adapter.warmups:
                warmup.other_schedulers = _other_schedulers(trainer, warmup) if warmup.is_warming_up else ()
                warmup.apply_changed_lrs()
                self._report_lrs_from_outside(trainer, managed, warmup)

    def _report_lrs_from_outside(self, trainer: Any, managed: ManagedScheduler, warmup: Any) -> None:
        """Report once the learning rates that other code has set during a warmup."""
        found = warmup.lrs_from_outside
        if not found or managed.lrs_from_outside_reported:
            return
        managed.lrs_from_outside_reported = True
        groups, all_groups = warmup.optimizer.param_groups, managed.scheduler.optimizer.param_groups
        indices = {i: next(k for k, one in enumerate(all_groups) if one is groups[i]) for i in found}
        rates = listing(f"{lr:.3g} (group {indices[i]})" for i, lr in found.items())
        self._reporter.report(
            trainer,
            f"epoch {trainer.current_epoch}: other code has set lr during the warmup: {rates}. From now on, this is "
            "the learning rate without the warmup factor",
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._follow_groups(trainer)  # groups that the training step added
        state = self.fit_state
        if state.checks_parameters or last_batch_is_done(trainer):  # a validation would discard the gradients
            state.checks_parameters = False
            warn_of_untrained_parameters(trainer, state, self._reporter)
        current = state.current(trainer)
        if len(current) < len(state.managed):
            self._update_managed_schedulers(trainer)
        for managed in current:
            plan, total = managed.plan, managed.optimizer_steps
            # There is no new step while gradients accumulate, and several if a manual training step steps the
            # optimizer repeatedly.
            new_steps = range(managed.optimizer_steps_handled + 1, total + 1)
            managed.optimizer_steps_handled = total
            for step in new_steps:
                managed.adapter.warmup_step()
                if plan.interval == "step" and step % plan.frequency == 0:
                    managed.step(pl_module)
        if last_batch_is_done(trainer):
            self._count_epoch(trainer)
        state.gradient_graphs.end_batch(trainer.optimizers)
        state.after_batch = True

    def _count_epoch(self, trainer: Any) -> None:
        """Step the schedules that are stepped in epochs, unless the epoch has counted or has no batch."""
        state, epoch = self.fit_state, trainer.current_epoch
        if not state.epochs.is_open:
            return
        state.epochs.count(epoch)
        for managed in state.current(trainer):
            if managed.plan.interval == "epoch" and (epoch + 1) % managed.plan.frequency == 0:
                managed.step(trainer.lightning_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        epochs = self.fit_state.epochs
        if epochs.is_open:  # the epoch has ended before its last batch
            before = [
                managed.snapshot() if managed.plan.interval == "epoch" else {} for managed in self.fit_state.managed
            ]
            self._count_epoch(trainer)
            epochs.changes = [
                managed.changes(snapshot) if snapshot else {}
                for managed, snapshot in zip(self.fit_state.managed, before, strict=False)
            ]
        self.fit_state.modes.switch("eval")
        self._observer.observe(trainer, self.fit_state, "epoch")
        self.fit_state.after_batch, self.fit_state.epoch_ended = False, True

    # ------------------------------------------------------------------ validation

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self.fit_state.after_batch, self.fit_state.in_validation = False, not trainer.sanity_checking
            self.fit_state.count_steps(False)
            self.fit_state.modes.switch("eval")
            self.fit_state.snapshots.begin_validation(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self.fit_state.in_validation = False
            self.fit_state.count_steps(self.fit_state.has_batch)
            self.fit_state.modes.switch("eval")  # the module may have changed the mode
            if self.fit_state.repeats_validation and not trainer.sanity_checking:
                self.fit_state.snapshots.ignore_present_values(trainer)
                return
            moment = "sanity" if trainer.sanity_checking else "validation"
            self._observer.observe(trainer, self.fit_state, moment)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # The module's on_train_epoch_end has run after this callback's. A checkpoint written at the end of an epoch
        # contains the scheduler step for a metric logged there. An error must not prevent the checkpoint; the next
        # epoch start raises the error again.
        state = self.fit_state
        with contextlib.suppress(OptplugError):
            if state.epoch_ended and self._observer.observe(trainer, state, "late"):
                checkpoint["lr_schedulers"] = [entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs]
                checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
        state.modes.save_eval_weights(trainer, checkpoint)
        metadata = self._metadata(trainer) if state.metadata_at_end is None else state.metadata_at_end
        if metadata:
            checkpoint[METADATA_KEY] = metadata

    def _metadata(self, trainer: Any) -> dict[str, Any]:
        """Optplug's metadata for a checkpoint; empty if optplug has no part in this fit."""
        state = self.fit_state
        if not (state.configured(trainer) or state.managed or state.histories):
            return {}
        is_lost = state.in_validation and not validation_is_repeated(trainer)
        return {
            **collect_metadata(trainer, state),
            "steps": [counter.count for counter in state.step_counters],
            "steps_handled": [managed.optimizer_steps_handled for managed in state.managed],
            "plateau_histories": [asdict(history) for history in state.histories],
            "in_validation": state.in_validation and not state.repeats_validation,
            "validation_due": is_lost or (state.after_batch and validation_is_due(trainer)),
            "late_due": (state.epoch_ended or (state.after_batch and last_batch_is_done(trainer)))
            and self._observer.expects_late_value(trainer, state),
            "epoch_over": state.epoch_ended,
            "epochs": asdict(state.epochs),
        }

    def _release(self, trainer: Any) -> None:
        """Release the optimizers. Checkpoints that are saved later have the metadata of now."""
        if self.fit_state.metadata_at_end is None:
            self.fit_state.metadata_at_end = copy.deepcopy(self._metadata(trainer))
        self.fit_state.release(trainer)

    # ------------------------------------------------------------------ end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        try:
            self._observer.observe(trainer, self.fit_state, "late")
        except NonFiniteMetricError as error:  # an error would discard a training that is complete
            self._reporter.warn(trainer, str(error))
        self.fit_state.modes.switch("eval")
        for managed in self.fit_state.managed:
            if managed.adapter.step_count != managed.steps_taken:
                self._reporter.warn(trainer, managed.stepped_twice_message(pl_module))
        for managed in () if trainer.fast_dev_run else self.fit_state.current_plateaus(trainer):
            if not managed.history.observed and managed.entry.strict and not managed.absence_reported:
                assert managed.metric is not None
                logged = shown_list(monitorable_metrics(trainer.callback_metrics))
                self._reporter.warn(
                    trainer, f"{managed.name} was never stepped: {managed.metric.absence}; logged metrics: {logged}"
                )
        self._report_histories(trainer)

    def _report_histories(self, trainer: Any) -> None:
        for managed in () if trainer.fast_dev_run else self.fit_state.current_plateaus(trainer):
            assert managed.metric is not None
            title = f"plateau{managed.name_suffix}"
            logged = shown_list(monitorable_metrics(trainer.callback_metrics))
            self._reporter.report(trainer, managed.history.summary(title, managed.metric, logged))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._release(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            self._report_histories(trainer)
        self.fit_state.modes.switch("eval")
        self._release(trainer)  # Lightning does not call teardown after an exception; other callbacks save checkpoints


def _other_schedulers(trainer: Any, scheduler: Any) -> list[Any]:
    """The other schedulers of a scheduler's optimizer: entries of the trainer and attributes of the module."""
    entries = [entry.scheduler for entry in trainer.lr_scheduler_configs]
    attributes = [value for value in vars(trainer.lightning_module).values() if isinstance(value, LRScheduler)]
    return [
        other
        for other in (*entries, *attributes)
        if other is not scheduler and getattr(other, "optimizer", None) is scheduler.optimizer
    ]
