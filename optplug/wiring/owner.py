"""The owner steps every scheduler that optplug built, at its moment and through `pl_module.lr_scheduler_step`.

Lightning steps plateaus after the checkpoint that should hold the step, skips one on every resume, and lets ranks
disagree. So the owner puts Lightning's frequency out of reach and steps by itself: a plateau when a validation that
logged its metric is complete, before checkpoints are written; the others after the optimizer step, or the last batch of
the epoch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.errors import WiringError, did_you_mean, listing
from optplug.schedules import Warmup
from optplug.wiring.monitor import mode_by_name, of_validation, only_validation_loss
from optplug.wiring.plans import Monitored, Plan, plans
from optplug.wiring.record import RECORD, record, recorded

NEVER = sys.maxsize
"""A frequency that Lightning, which tests `index % frequency`, never reaches."""


@dataclass
class Claim:
    """A scheduler entry of the trainer that the owner has taken over.

    Attributes:
        frequency: the entry's own, to be restored. stepped_in: the epoch of a plateau's last step.
        searched: whether everything that could log a plateau's metric has had its turn.
        seen: how many steps the scheduler had taken. counted: how many steps of its optimizer have been dealt with.
    """

    entry: Any
    plan: Plan
    frequency: int
    stepped_in: int | None = None
    searched: bool = False
    seen: int | None = None
    counted: int = 0

    @property
    def scheduler(self) -> Any:
        return self.entry.scheduler


class Steps:
    """Counts the steps of an optimizer in manual optimisation, where Lightning counts all together, or none."""

    def __init__(self, optimizer: Any) -> None:
        self.taken = 0
        self._handle = optimizer.register_step_post_hook(self)

    def __call__(self, *_: Any) -> None:
        self.taken += 1

    def forget(self) -> None:
        self._handle.remove()


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
        self._steps: list[Steps] = []
        self._recorded: dict[str, Any] = {}
        self._epoch = 0
        self._epoch_over = False
        self._before_epoch: dict[str, Any] = {}
        self._before_validation: dict[str, Any] = {}

    # ------------------------------------------------------------------ claiming

    def _claim(self, trainer: Any) -> None:
        """Take over what is there now; callbacks such as SWA swap entries during the fit."""
        taken = [claim.entry for claim in self._claims]
        for entry in trainer.lr_scheduler_configs:
            if any(entry is t for t in taken):
                continue
            plan = plans.get(entry.scheduler)
            if plan is None and self.foreign and trainer.lightning_module.automatic_optimization:
                plan = _foreign_plan(entry)
            if plan is not None:
                _take_from_entry(plan, entry)
                self._claims.append(Claim(entry, plan, entry.frequency, seen=_count(entry.scheduler)))
                entry.frequency = NEVER

    def _count_steps(self, trainer: Any) -> None:
        """Begin to count, where Lightning does not do it."""
        self._steps = []
        if not trainer.lightning_module.automatic_optimization:
            self._steps = [Steps(optimizer) for optimizer in trainer.optimizers]
            only = [trainer.global_step] if len(trainer.optimizers) == 1 else []  # for checkpoints that count none
            for steps, before in zip(self._steps, self._recorded.get("steps") or only, strict=False):
                steps.taken = before

    def _steps_of(self, trainer: Any, claim: Claim) -> int:
        """How many steps the optimizer of a claim has taken since the training began."""
        for optimizer, steps in zip(trainer.optimizers, self._steps, strict=False):
            if optimizer is claim.scheduler.optimizer:
                return steps.taken
        return int(trainer.global_step)

    def _release(self) -> None:
        for steps in self._steps:  # kept: a checkpoint may be saved after the fit
            steps.forget()
        for claim in self._claims:
            claim.entry.frequency = claim.frequency
        self._claims = []

    def _live(self, trainer: Any, *intervals: str) -> Iterator[Claim]:
        """The claims that the trainer still has."""
        for claim in self._claims:
            if claim.plan.interval in intervals and any(claim.entry is e for e in trainer.lr_scheduler_configs):
                yield claim

    # --------------------------------------------------------------------- hooks

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._recorded = recorded(trainer)  # gone when training starts
        self._claim(trainer)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._recorded = checkpoint.get(RECORD, {})  # where a sharded strategy restores, after on_fit_start

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._count_steps(trainer)
        for claim in self._claims:  # restored by now
            claim.seen = _count(claim.scheduler)
            claim.counted = self._steps_of(trainer, claim)
        self._begin_epoch(trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._listen(trainer, "late")  # what the module's own on_train_epoch_end logged
        self._claim(trainer)
        self._begin_epoch(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for claim in self._live(trainer, "step", "epoch", "validation"):
            taken = self._steps_of(trainer, claim)
            steps = range(claim.counted + 1, taken + 1)  # none while accumulating; more by hand
            claim.counted = taken
            for step in steps:
                if isinstance(claim.scheduler, Warmup):
                    claim.scheduler.warmup_step()
                if claim.plan.interval == "step" and step % claim.plan.frequency == 0:
                    self._step(pl_module, claim, None)
            last = trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches
            if claim.plan.interval == "epoch" and last and (trainer.current_epoch + 1) % claim.plan.frequency == 0:
                self._step(pl_module, claim, None)

    def _step(self, pl_module: Any, claim: Claim, value: float | None) -> None:
        """One step of a scheduler, unless somebody else steps it too, or it is at its end."""
        if _count(claim.scheduler) != claim.seen:
            raise WiringError(
                f"{claim.plan.name} is stepped by {type(pl_module).__name__} and by optplug, which steps what it "
                "built in manual optimisation too: take scheduler.step() out of the module"
            )
        end = claim.plan.end
        if end is not None and claim.seen is not None:
            # It is as long as the training was to be; a checkpoint may have brought another length.
            end = getattr(claim.scheduler, claim.plan.length, end)
            if claim.seen >= end:
                return
        pl_module.lr_scheduler_step(claim.scheduler, value)
        claim.seen = _count(claim.scheduler)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            self._before_validation = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._listen(trainer, "validation")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._listen(trainer, "epoch")
        self._epoch_over = True

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # The module's on_train_epoch_end has run since ours: the checkpoint of an epoch holds the step that came of it.
        if self._epoch_over and self._listen(trainer, "late"):
            checkpoint["lr_schedulers"] = [entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs]
            checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
        checkpoint[RECORD] = record(trainer, [steps.taken for steps in self._steps])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._listen(trainer, "late")
        for claim in self._live(trainer, "validation"):
            if claim.stepped_in is None and claim.entry.strict and not trainer.fast_dev_run:
                warnings.warn(
                    f"{claim.plan.name} was never stepped: {claim.plan.monitored}, logged were "
                    f"{listing(sorted(trainer.callback_metrics))}",
                    UserWarning,
                    stacklevel=2,
                )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._release()  # Lightning calls no teardown hooks then

    # ------------------------------------------------------------------ plateaus

    def _begin_epoch(self, trainer: Any) -> None:
        """Remember the metrics as they are: a value is fresh when it is another object afterwards."""
        self._epoch, self._epoch_over = trainer.current_epoch, False
        self._before_epoch = dict(trainer.callback_metrics)

    def _listen(self, trainer: Any, moment: str) -> bool:
        """Step each plateau whose metric has a fresh value. Every rank comes here and runs the same collectives.

        Returns:
            Whether any stepped.
        """
        if trainer.fast_dev_run:
            return False
        stepped = False
        before = self._before_validation if moment == "validation" else self._before_epoch
        fresh = {name: value for name, value in trainer.callback_metrics.items() if value is not before.get(name)}
        for claim in self._live(trainer, "validation"):
            monitored = claim.plan.monitored
            assert monitored is not None
            if moment != "validation" and claim.stepped_in == self._epoch:
                continue  # its value is no news: Lightning computes training metrics again when the epoch is over
            if monitored.monitor is None and moment == "validation":
                monitored.monitor = only_validation_loss(trainer.strategy.broadcast(list(fresh)))  # rank zero decides
                self._say(trainer, f"{claim.plan.name} will follow {monitored}")
            if moment == ("validation" if trainer.enable_validation else "epoch"):
                claim.searched = True
            mean = _mean_over_ranks(trainer, fresh.get(str(monitored.monitor)))
            if mean is not None:
                self._step_plateau(trainer, claim, mean)
                claim.stepped_in, stepped = self._epoch, True
            elif claim.stepped_in is None and (
                moment == "late" or (moment == "validation" and of_validation(str(monitored.monitor)))
            ):
                self._refuse_silence(trainer, claim, monitored)
        return stepped

    def _refuse_silence(self, trainer: Any, claim: Claim, monitored: Monitored) -> None:
        """A validation or an epoch has passed. A plateau that has had no value would never fire: say so."""
        known = sorted(trainer.callback_metrics)
        hopeless = monitored.monitor is None and not trainer.enable_validation
        if monitored.monitor in known or not (claim.searched or hopeless) or not claim.entry.strict:
            return
        if monitored.monitor is None:
            what = "found no validation loss to monitor, since no validation runs"
        else:
            what = f"monitors {monitored.monitor!r} (from {monitored.source}), which nothing logs"
        hint = did_you_mean(str(monitored.monitor), known) if monitored.monitor else ""
        raise WiringError(f"{claim.plan.name} {what}; logged are {listing(known)}{hint or ': set scheduler.monitor'}")

    def _step_plateau(self, trainer: Any, claim: Claim, value: float) -> None:
        groups = claim.scheduler.optimizer.param_groups
        before = [float(group["lr"]) for group in groups]
        self._step(trainer.lightning_module, claim, value)
        after = [float(group["lr"]) for group in groups]
        if before != after:
            cuts = listing(dict.fromkeys(f"{b:.4g} -> {a:.4g}" for b, a in zip(before, after, strict=True) if a != b))
            best = getattr(claim.scheduler, "best", None)
            than = f", not better than {best:.4g}" if isinstance(best, float) else ""
            name = claim.plan.monitored.monitor if claim.plan.monitored else None
            self._say(trainer, f"epoch {self._epoch}: {name} is {value:.4g}{than}: learning rate {cuts}")

    def _say(self, trainer: Any, text: str) -> None:
        if self.verbose:
            trainer.lightning_module.print(f"optplug: {text}")  # rank zero, and clear of the progress bar


def _count(scheduler: Any) -> int | None:
    """How many steps a scheduler has taken, where it counts them."""
    count = getattr(scheduler, "last_epoch", None)
    return count if isinstance(count, int) else None


def _take_from_entry(plan: Plan, entry: Any) -> None:
    """What the module changed in the dictionary that `configure_optimizers` returned counts."""
    if plan.interval != "validation":
        plan.interval, plan.frequency = entry.interval, entry.frequency
    elif entry.monitor is not None and plan.monitored is not None and entry.monitor != plan.monitored.monitor:
        plan.monitored.monitor, plan.monitored.source = entry.monitor, "the module's configure_optimizers"


def _foreign_plan(entry: Any) -> Plan | None:
    """The plan of a plateau that optplug did not build, as its entry describes it; others stay with Lightning."""
    every_epoch = (entry.interval, entry.frequency) == ("epoch", 1)
    if not isinstance(entry.scheduler, ReduceLROnPlateau) or not entry.monitor or not every_epoch:
        return None
    mode = getattr(entry.scheduler, "mode", None) or mode_by_name(entry.monitor)
    monitored = Monitored(entry.monitor, mode, "the module's configure_optimizers")
    return Plan(type(entry.scheduler).__name__, "validation", 1, monitored)


def _mean_over_ranks(trainer: Any, value: Any) -> float | None:
    """The mean over the ranks that have a value; None on all of them when none has."""
    total, count = (0.0, 0.0) if value is None else (float(value), 1.0)
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # A tensor of our own: reduce works in place.
        pair = torch.tensor([total, count], dtype=dtype, device=device)
        total, count = trainer.strategy.reduce(pair, reduce_op="sum").tolist()
    return total / count if count else None
