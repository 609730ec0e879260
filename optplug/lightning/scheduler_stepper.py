"""The owner steps every scheduler that optplug built, at its moment and through `pl_module.lr_scheduler_step`.

Lightning steps plateaus after the checkpoint that should hold the step, skips one on every resume, and lets ranks
disagree. So the owner puts Lightning's frequency out of reach and steps by itself: a plateau when a validation that
logged its metric is complete, before checkpoints are written; the others after the optimizer step, or the last batch of
the epoch.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

from torch.optim.lr_scheduler import OneCycleLR

from optplug.config.model import PATIENCE_UNITS
from optplug.config.param_groups import known, name_groups
from optplug.errors import OptplugError, WiringError, listing
from optplug.lightning import train_eval
from optplug.lightning._compat import loaded_checkpoint, validation_is_due
from optplug.lightning.checkpoint_metadata import METADATA_KEY, record, saved_metadata
from optplug.lightning.managed_scheduler import (
    NEVER,
    GlobalStepCounter,
    ManagedScheduler,
    PlateauHistory,
    StepCounter,
    count,
    manage,
    plan_for_foreign_plateau,
)
from optplug.lightning.monitor import candidates
from optplug.lightning.plateau import PlateauObserver
from optplug.lightning.resume import lost_values
from optplug.lightning.stepping_plan import optimizer_choices, stepping_plans
from optplug.optim.combined import has_modes
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.warmup import Warmup


class SchedulerStepper:
    """Mixin for a Lightning callback; knows trainer and module by their attributes only.

    Args:
        foreign: also take over `ReduceLROnPlateau` entries that optplug did not build.
        verbose: say each learning-rate cut, on rank zero.
    """

    def __init__(self, *, foreign: bool = False, verbose: bool = True) -> None:
        self.foreign = foreign
        self.verbose = verbose
        self._managed_schedulers: list[ManagedScheduler] = []
        self._histories: list[PlateauHistory] = []
        self._steps: list[StepCounter | GlobalStepCounter] = []
        self._group_counts: list[int] = []
        self._modal: list[Any] = []
        self._plateaus = PlateauObserver(self._step_plateau, verbose=verbose)
        self._recorded: dict[str, Any] = {}
        self._resumed = False
        self._epoch_over = False
        self._after_batch = False  # and before what follows it
        self._after_validation = False  # and before it has been listened to

    # ------------------------------------------------------------------ claiming

    def _manage(self, trainer: Any) -> None:
        """Take over what is there now; callbacks such as SWA swap entries during the fit."""
        there = trainer.lr_scheduler_configs
        for managed in [
            managed for managed in self._managed_schedulers if not any(managed.entry is entry for entry in there)
        ]:
            self._managed_schedulers.remove(managed)
            instead = listing(type(entry.scheduler).__name__ for entry in there)
            self._plateaus.warn(
                trainer,
                f"{managed.name} is no longer among the trainer's schedulers, and optplug steps it no more; another "
                f"callback has replaced it: there is now {instead}",
            )
        for entry in there:
            if entry.frequency == NEVER:  # taken, if not by this callback
                continue
            plan = stepping_plans.get(entry.scheduler)
            if plan is None and self.foreign and trainer.lightning_module.automatic_optimization:
                plan = plan_for_foreign_plateau(entry)
            if plan is not None:
                self._managed_schedulers.append(managed := manage(entry, plan))
                self._count_for(trainer, managed)
                if plan.monitored is not None:
                    self._histories.append(managed.history)
        plateaus = [managed for managed in self._managed_schedulers if managed.plan.monitored is not None]
        for managed in plateaus if len(plateaus) > 1 else ():
            numbers = [i for i, optimizer in enumerate(trainer.optimizers) if optimizer is managed.scheduler.optimizer]
            managed.number = numbers[0] if numbers else None

    def _release(self) -> None:
        for steps in self._steps:  # their numbers stay, and the audits: a checkpoint may be saved after the fit
            steps.forget()
        for managed in self._managed_schedulers:
            managed.entry.frequency = managed.frequency
        self._managed_schedulers, self._modal = [], []

    def _live(self, trainer: Any) -> list[ManagedScheduler]:
        """The claims that the trainer still has."""
        there = trainer.lr_scheduler_configs
        return [managed for managed in self._managed_schedulers if any(managed.entry is entry for entry in there)]

    def _managed_plateaus(self, trainer: Any) -> list[ManagedScheduler]:
        """Those of plateaus."""
        return [managed for managed in self._live(trainer) if managed.plan.monitored is not None]

    # ------------------------------------------------------------------- counting

    def _begin_to_count(self, trainer: Any) -> None:
        """Count the optimizers' steps from where the checkpoint, if there is one, was."""
        before = self._recorded.get("steps") or []
        if len(before) != len(trainer.optimizers):  # a checkpoint that counts none
            before = [trainer.global_step if len(trainer.optimizers) == 1 else 0] * len(trainer.optimizers)
        self._steps = [
            StepCounter(optimizer, taken)
            if hasattr(optimizer, "register_step_post_hook")
            else GlobalStepCounter(trainer)
            for optimizer, taken in zip(trainer.optimizers, before, strict=True)
        ]
        self._group_counts = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        self._modal = list(filter(has_modes, trainer.optimizers))
        for managed in self._managed_schedulers:
            follow_groups(managed.scheduler)  # a checkpoint brings no functions of groups that were added before
            managed.seen = count(managed.scheduler)
            self._count_for(trainer, managed)
            if managed.plan.unit != managed.history.unit:  # it counts from here
                managed.history.unit = managed.plan.unit
                if managed.plan.unit != PATIENCE_UNITS[0]:
                    managed.scheduler.at(trainer.current_epoch if managed.plan.unit == "epochs" else managed.counted)

    def _count_for(self, trainer: Any, managed: ManagedScheduler) -> None:
        whose = managed.scheduler.optimizer
        found = (steps for optimizer, steps in zip(trainer.optimizers, self._steps, strict=False) if optimizer is whose)
        managed.steps = next(found, GlobalStepCounter(trainer))  # a strategy may have wrapped the optimizer
        managed.counted = managed.taken

    def _follow_groups(self, trainer: Any) -> None:
        """Groups that a callback or the module has added since are named, and their schedules follow."""
        for i, optimizer in enumerate(trainer.optimizers):
            there, now = self._group_counts[i], len(optimizer.param_groups)
            if there == now:
                continue
            self._group_counts[i] = now
            for managed in self._managed_schedulers:
                if managed.scheduler.optimizer is optimizer:
                    follow_groups(managed.scheduler)
            before = optimizer_choices[optimizer].known if optimizer in optimizer_choices else []
            names = listing(name_groups(optimizer, [*before, *known(trainer.lightning_module)], there))
            self._plateaus.report(
                trainer, f"epoch {trainer.current_epoch}: new parameter groups are scheduled too: {names}"
            )

    # --------------------------------------------------------------------- hooks

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        others = [callback for callback in trainer.callbacks if callback is not self]
        if any(isinstance(callback, SchedulerStepper) for callback in others):
            raise WiringError("two ConfigureOptimizers callbacks are among the trainer's: keep one")
        # First, so that what a callback saves holds the steps that are due. A new list: Lightning walks the old one.
        trainer.callbacks = [self, *others]
        self._resumed = False
        self._recorded = saved_metadata(loaded_checkpoint(trainer))  # gone when training starts
        self._histories = []
        train_eval.set_mode(trainer.optimizers, "eval")  # a mode that a checkpoint does not tell is that of its weights
        self._manage(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._recorded = saved_metadata(checkpoint)  # where a sharded strategy restores, after on_fit_start

    def _resume(self, trainer: Any) -> None:
        """What is to be done once, when a checkpoint has been restored."""
        for history, before in zip(self._histories, self._recorded.get("audits", []), strict=False):
            vars(history).update(before)

    def _resume_once(self, trainer: Any) -> None:
        if not self._resumed:
            self._resumed = True
            self._resume(trainer)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._resume_once(trainer)  # a resumed run may be checked too, and the check listens

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._resume_once(trainer)
        self._begin_to_count(trainer)
        for managed in self._managed_plateaus(trainer):
            self._plateaus.warn_before_training(trainer, managed, lost_values(self._recorded, trainer.current_epoch))
        self._plateaus.begin_epoch(trainer)
        self._epoch_over = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._observe(trainer, "late")  # what the module's own on_train_epoch_end logged
        self._manage(trainer)
        self._plateaus.begin_epoch(trainer)
        self._epoch_over = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._after_batch = False
        train_eval.set_mode(self._modal, "train")
        self._follow_groups(trainer)  # of callbacks; named before anybody logs the rates

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._follow_groups(trainer)  # of the batch itself
        managed_schedulers = self._live(trainer)
        if len(managed_schedulers) < len(self._managed_schedulers):
            self._manage(trainer)
        for managed in managed_schedulers:
            taken = managed.taken
            steps = range(managed.counted + 1, taken + 1)  # none while accumulating; more by hand
            managed.counted = taken
            for step in steps:
                if isinstance(managed.scheduler, Warmup):
                    managed.scheduler.warmup_step()
                if managed.plan.interval == "step" and step % managed.plan.frequency == 0:
                    self._step(pl_module, managed, None)
            last = managed.plan.interval == "epoch" and (
                trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches
            )
            if last and (trainer.current_epoch + 1) % managed.plan.frequency == 0:
                self._step(pl_module, managed, None)
        self._after_batch = True

    def _step(self, pl_module: Any, managed: ManagedScheduler, value: float | None) -> None:
        """One step of a scheduler, unless somebody else steps it too, or it is at its end."""
        if count(managed.scheduler) != managed.seen:
            raise WiringError(_twice(managed, pl_module))
        end = _end(managed)
        if end is not None and managed.seen is not None and managed.seen >= end:
            return
        pl_module.lr_scheduler_step(managed.scheduler, value)
        managed.seen = count(managed.scheduler)

    def _step_plateau(self, trainer: Any, managed: ManagedScheduler, value: float | None) -> None:
        if managed.plan.unit != PATIENCE_UNITS[0]:
            managed.scheduler.at(self._position(managed))
        if value is not None:
            self._step(trainer.lightning_module, managed, value)

    def _position(self, managed: ManagedScheduler) -> int:
        """Where the training is, in the unit of patience: epochs begun, or steps of the optimizer."""
        return self._plateaus.epoch + 1 if managed.plan.unit == "epochs" else managed.taken

    def _observe(self, trainer: Any, moment: str) -> bool:
        return self._plateaus.observe(trainer, self._managed_plateaus(trainer), moment)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._after_batch = False
            train_eval.set_mode(trainer.optimizers, "eval")
            self._plateaus.begin_validation(trainer)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._after_validation = trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._after_validation = False
            train_eval.set_mode(trainer.optimizers, "eval")  # the module may have gone back to train
            self._observe(trainer, "sanity" if trainer.sanity_checking else "validation")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        train_eval.set_mode(trainer.optimizers, "eval")
        self._observe(trainer, "epoch")
        self._after_batch, self._epoch_over = False, True

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # The module's on_train_epoch_end has run since ours: the checkpoint of an epoch holds the step that came of it.
        with contextlib.suppress(OptplugError):  # said again when the next epoch begins; the checkpoint is saved first
            if self._epoch_over and self._observe(trainer, "late"):
                checkpoint["lr_schedulers"] = [entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs]
                checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
        train_eval.save_eval_weights(trainer, checkpoint)
        checkpoint[METADATA_KEY] = {
            **record(trainer),
            "steps": [steps.taken for steps in self._steps],
            "audits": [asdict(history) for history in self._histories],
            "validation_due": self._after_validation or (self._after_batch and validation_is_due(trainer)),
            "late_due": self._epoch_over and self._plateaus.wait(self._managed_plateaus(trainer)),
            "epoch_over": self._epoch_over,
        }

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        try:
            self._observe(trainer, "late")
        except OptplugError as error:  # the training is done: nothing is to be lost
            self._plateaus.warn(trainer, str(error))
        train_eval.set_mode(trainer.optimizers, "eval")
        for managed in self._managed_schedulers:
            if count(managed.scheduler) != managed.seen:
                self._plateaus.warn(trainer, _twice(managed, pl_module))
        for managed in () if trainer.fast_dev_run else self._managed_plateaus(trainer):
            if not managed.history.seen and managed.entry.strict and not managed.told:
                logged = listing(candidates(trainer.callback_metrics))
                says = f"{managed.name} was never stepped: {managed.plan.monitored}, logged were {logged}"
                self._plateaus.warn(trainer, says)
        self._sum_up(trainer)

    def _sum_up(self, trainer: Any) -> None:
        for managed in () if trainer.fast_dev_run else self._managed_plateaus(trainer):
            assert managed.plan.monitored is not None
            self._plateaus.report(trainer, managed.history.line(f"plateau{managed.suffix}", managed.plan.monitored))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            self._sum_up(trainer)
        train_eval.set_mode(trainer.optimizers, "eval")
        self._release()  # Lightning calls no teardown hooks then


def _twice(managed: ManagedScheduler, module: Any) -> str:
    return (
        f"{managed.name} is stepped by {type(module).__name__} and by optplug, whose it is, in manual optimisation too: "
        "take scheduler.step() out of the module"
    )


def _end(managed: ManagedScheduler) -> int | None:
    """How many steps a scheduler takes; None for any number."""
    scheduler = managed.inner
    if managed.plan.end is not None:
        # It is as long as the training was to be; a checkpoint may have brought another length.
        return int(getattr(scheduler, managed.plan.length, managed.plan.end))
    # It raises beyond its end, and rises there.
    return int(scheduler.total_steps) - 1 if isinstance(scheduler, OneCycleLR) else None
