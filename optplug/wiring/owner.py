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

from optplug.combined import has_modes
from optplug.config import PATIENCE_UNITS
from optplug.errors import OptplugError, WiringError, listing
from optplug.following import follow_groups, name_groups
from optplug.groups import known
from optplug.schedules import Warmup
from optplug.wiring import modes
from optplug.wiring.claims import NEVER, Audit, Claim, GlobalSteps, Steps, claimed, count, foreign_plan
from optplug.wiring.monitor import candidates
from optplug.wiring.plans import choices, plans
from optplug.wiring.plateaus import Plateaus
from optplug.wiring.record import RECORD, record, recorded
from optplug.wiring.resume import loaded, lost
from optplug.wiring.run import validation_is_due


class Owner:
    """Mixin for a Lightning callback; knows trainer and module by their attributes only.

    Args:
        foreign: also take over `ReduceLROnPlateau` entries that optplug did not build.
        verbose: say each learning-rate cut, on rank zero.
    """

    def __init__(self, *, foreign: bool = False, verbose: bool = True) -> None:
        self.foreign = foreign
        self.verbose = verbose
        self._claims: list[Claim] = []
        self._audits: list[Audit] = []
        self._steps: list[Steps | GlobalSteps] = []
        self._group_counts: list[int] = []
        self._modal: list[Any] = []
        self._plateaus = Plateaus(self._step_plateau, verbose=verbose)
        self._recorded: dict[str, Any] = {}
        self._resumed = False
        self._epoch_over = False
        self._after_batch = False  # and before what follows it
        self._after_validation = False  # and before it has been listened to

    # ------------------------------------------------------------------ claiming

    def _claim(self, trainer: Any) -> None:
        """Take over what is there now; callbacks such as SWA swap entries during the fit."""
        there = trainer.lr_scheduler_configs
        for claim in [claim for claim in self._claims if not any(claim.entry is entry for entry in there)]:
            self._claims.remove(claim)
            instead = listing(type(entry.scheduler).__name__ for entry in there)
            self._plateaus.warn(
                trainer,
                f"{claim.name} is no longer among the trainer's schedulers, and optplug steps it no more; another "
                f"callback has replaced it: there is now {instead}",
            )
        for entry in there:
            if entry.frequency == NEVER:  # taken, if not by this callback
                continue
            plan = plans.get(entry.scheduler)
            if plan is None and self.foreign and trainer.lightning_module.automatic_optimization:
                plan = foreign_plan(entry)
            if plan is not None:
                self._claims.append(claim := claimed(entry, plan))
                self._count_for(trainer, claim)
                if plan.monitored is not None:
                    self._audits.append(claim.audit)
        plateaus = [claim for claim in self._claims if claim.plan.monitored is not None]
        for claim in plateaus if len(plateaus) > 1 else ():
            numbers = [i for i, optimizer in enumerate(trainer.optimizers) if optimizer is claim.scheduler.optimizer]
            claim.number = numbers[0] if numbers else None

    def _release(self) -> None:
        for steps in self._steps:  # their numbers stay, and the audits: a checkpoint may be saved after the fit
            steps.forget()
        for claim in self._claims:
            claim.entry.frequency = claim.frequency
        self._claims, self._modal = [], []

    def _live(self, trainer: Any) -> list[Claim]:
        """The claims that the trainer still has."""
        there = trainer.lr_scheduler_configs
        return [claim for claim in self._claims if any(claim.entry is entry for entry in there)]

    def _listening(self, trainer: Any) -> list[Claim]:
        """Those of plateaus."""
        return [claim for claim in self._live(trainer) if claim.plan.monitored is not None]

    # ------------------------------------------------------------------- counting

    def _begin_to_count(self, trainer: Any) -> None:
        """Count the optimizers' steps from where the checkpoint, if there is one, was."""
        before = self._recorded.get("steps") or []
        if len(before) != len(trainer.optimizers):  # a checkpoint that counts none
            before = [trainer.global_step if len(trainer.optimizers) == 1 else 0] * len(trainer.optimizers)
        self._steps = [
            Steps(optimizer, taken) if hasattr(optimizer, "register_step_post_hook") else GlobalSteps(trainer)
            for optimizer, taken in zip(trainer.optimizers, before, strict=True)
        ]
        self._group_counts = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        self._modal = list(filter(has_modes, trainer.optimizers))
        for claim in self._claims:
            follow_groups(claim.scheduler)  # a checkpoint brings no functions of groups that were added before
            claim.seen = count(claim.scheduler)
            self._count_for(trainer, claim)
            if claim.plan.unit != claim.audit.unit:  # it counts from here
                claim.audit.unit = claim.plan.unit
                if claim.plan.unit != PATIENCE_UNITS[0]:
                    claim.scheduler.at(trainer.current_epoch if claim.plan.unit == "epochs" else claim.counted)

    def _count_for(self, trainer: Any, claim: Claim) -> None:
        whose = claim.scheduler.optimizer
        found = (steps for optimizer, steps in zip(trainer.optimizers, self._steps, strict=False) if optimizer is whose)
        claim.steps = next(found, GlobalSteps(trainer))  # a strategy may have wrapped the optimizer
        claim.counted = claim.taken

    def _follow_groups(self, trainer: Any) -> None:
        """Groups that a callback or the module has added since are named, and their schedules follow."""
        for i, optimizer in enumerate(trainer.optimizers):
            there, now = self._group_counts[i], len(optimizer.param_groups)
            if there == now:
                continue
            self._group_counts[i] = now
            for claim in self._claims:
                if claim.scheduler.optimizer is optimizer:
                    follow_groups(claim.scheduler)
            before = choices[optimizer].known if optimizer in choices else []
            names = listing(name_groups(optimizer, [*before, *known(trainer.lightning_module)], there))
            self._plateaus.say(
                trainer, f"epoch {trainer.current_epoch}: new parameter groups are scheduled too: {names}"
            )

    # --------------------------------------------------------------------- hooks

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        others = [callback for callback in trainer.callbacks if callback is not self]
        if any(isinstance(callback, Owner) for callback in others):
            raise WiringError("two ConfigureOptimizers callbacks are among the trainer's: keep one")
        # First, so that what a callback saves holds the steps that are due. A new list: Lightning walks the old one.
        trainer.callbacks = [self, *others]
        self._resumed = False
        self._recorded = recorded(loaded(trainer))  # gone when training starts
        self._audits = []
        modes.switch(trainer.optimizers, "eval")  # a mode that a checkpoint does not tell is that of its weights
        self._claim(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._recorded = recorded(checkpoint)  # where a sharded strategy restores, after on_fit_start

    def _resume(self, trainer: Any) -> None:
        """What is to be done once, when a checkpoint has been restored."""
        for audit, before in zip(self._audits, self._recorded.get("audits", []), strict=False):
            vars(audit).update(before)

    def _resume_once(self, trainer: Any) -> None:
        if not self._resumed:
            self._resumed = True
            self._resume(trainer)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._resume_once(trainer)  # a resumed run may be checked too, and the check listens

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._resume_once(trainer)
        self._begin_to_count(trainer)
        for claim in self._listening(trainer):
            self._plateaus.foretell(trainer, claim, lost(self._recorded, trainer.current_epoch))
        self._plateaus.begin_epoch(trainer)
        self._epoch_over = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._listen(trainer, "late")  # what the module's own on_train_epoch_end logged
        self._claim(trainer)
        self._plateaus.begin_epoch(trainer)
        self._epoch_over = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._after_batch = False
        modes.switch(self._modal, "train")
        self._follow_groups(trainer)  # of callbacks; named before anybody logs the rates

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._follow_groups(trainer)  # of the batch itself
        claims = self._live(trainer)
        if len(claims) < len(self._claims):
            self._claim(trainer)
        for claim in claims:
            taken = claim.taken
            steps = range(claim.counted + 1, taken + 1)  # none while accumulating; more by hand
            claim.counted = taken
            for step in steps:
                if isinstance(claim.scheduler, Warmup):
                    claim.scheduler.warmup_step()
                if claim.plan.interval == "step" and step % claim.plan.frequency == 0:
                    self._step(pl_module, claim, None)
            last = claim.plan.interval == "epoch" and (
                trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches
            )
            if last and (trainer.current_epoch + 1) % claim.plan.frequency == 0:
                self._step(pl_module, claim, None)
        self._after_batch = True

    def _step(self, pl_module: Any, claim: Claim, value: float | None) -> None:
        """One step of a scheduler, unless somebody else steps it too, or it is at its end."""
        if count(claim.scheduler) != claim.seen:
            raise WiringError(_twice(claim, pl_module))
        end = _end(claim)
        if end is not None and claim.seen is not None and claim.seen >= end:
            return
        pl_module.lr_scheduler_step(claim.scheduler, value)
        claim.seen = count(claim.scheduler)

    def _step_plateau(self, trainer: Any, claim: Claim, value: float | None) -> None:
        if claim.plan.unit != PATIENCE_UNITS[0]:
            claim.scheduler.at(self._position(claim))
        if value is not None:
            self._step(trainer.lightning_module, claim, value)

    def _position(self, claim: Claim) -> int:
        """Where the training is, in the unit of patience: epochs begun, or steps of the optimizer."""
        return self._plateaus.epoch + 1 if claim.plan.unit == "epochs" else claim.taken

    def _listen(self, trainer: Any, moment: str) -> bool:
        return self._plateaus.listen(trainer, self._listening(trainer), moment)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._after_batch = False
            modes.switch(trainer.optimizers, "eval")
            self._plateaus.begin_validation(trainer)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._after_validation = trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._after_validation = False
            modes.switch(trainer.optimizers, "eval")  # the module may have gone back to train
            self._listen(trainer, "sanity" if trainer.sanity_checking else "validation")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        modes.switch(trainer.optimizers, "eval")
        self._listen(trainer, "epoch")
        self._after_batch, self._epoch_over = False, True

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # The module's on_train_epoch_end has run since ours: the checkpoint of an epoch holds the step that came of it.
        with contextlib.suppress(OptplugError):  # said again when the next epoch begins; the checkpoint is saved first
            if self._epoch_over and self._listen(trainer, "late"):
                checkpoint["lr_schedulers"] = [entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs]
                checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
        modes.evaluated(trainer, checkpoint)
        checkpoint[RECORD] = {
            **record(trainer),
            "steps": [steps.taken for steps in self._steps],
            "audits": [asdict(audit) for audit in self._audits],
            "validation_due": self._after_validation or (self._after_batch and validation_is_due(trainer)),
            "late_due": self._epoch_over and self._plateaus.wait(self._listening(trainer)),
            "epoch_over": self._epoch_over,
        }

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        try:
            self._listen(trainer, "late")
        except OptplugError as error:  # the training is done: nothing is to be lost
            self._plateaus.warn(trainer, str(error))
        modes.switch(trainer.optimizers, "eval")
        for claim in self._claims:
            if count(claim.scheduler) != claim.seen:
                self._plateaus.warn(trainer, _twice(claim, pl_module))
        for claim in () if trainer.fast_dev_run else self._listening(trainer):
            if not claim.audit.seen and claim.entry.strict and not claim.told:
                logged = listing(candidates(trainer.callback_metrics))
                says = f"{claim.name} was never stepped: {claim.plan.monitored}, logged were {logged}"
                self._plateaus.warn(trainer, says)
        self._sum_up(trainer)

    def _sum_up(self, trainer: Any) -> None:
        for claim in () if trainer.fast_dev_run else self._listening(trainer):
            assert claim.plan.monitored is not None
            self._plateaus.say(trainer, claim.audit.line(f"plateau{claim.suffix}", claim.plan.monitored))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            self._sum_up(trainer)
        modes.switch(trainer.optimizers, "eval")
        self._release()  # Lightning calls no teardown hooks then


def _twice(claim: Claim, module: Any) -> str:
    return (
        f"{claim.name} is stepped by {type(module).__name__} and by optplug, whose it is, in manual optimisation too: "
        "take scheduler.step() out of the module"
    )


def _end(claim: Claim) -> int | None:
    """How many steps a scheduler takes; None for any number."""
    scheduler = claim.inner
    if claim.plan.end is not None:
        # It is as long as the training was to be; a checkpoint may have brought another length.
        return int(getattr(scheduler, claim.plan.length, claim.plan.end))
    # It raises beyond its end, and rises there.
    return int(scheduler.total_steps) - 1 if isinstance(scheduler, OneCycleLR) else None
