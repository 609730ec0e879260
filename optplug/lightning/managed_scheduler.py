"""What the owner keeps of each scheduler it steps, and of each optimizer's steps."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.config.model import PATIENCE_UNITS
from optplug.lightning.monitor import mode_by_name, of_validation
from optplug.lightning.stepping_plan import MonitoredMetric, SteppingPlan
from optplug.schedulers.warmup import Warmup

NEVER = sys.maxsize
"""A frequency that Lightning, which tests `index % frequency`, never reaches."""


@dataclass
class PlateauHistory:
    """What a plateau did in the whole training, resumed parts included; plain numbers, which checkpoints keep.

    Attributes:
        seen: how many values it heard. ignored: how many of them were not finite, and ignored.
        cuts: the epoch of each cut. heard: the moment of the last value, of `PlateauObserver`.
        monitor, mode, source: of `MonitoredMetric`, what was heard. unit: what patience counted.
    """

    seen: int = 0
    ignored: int = 0
    cuts: list[int] = field(default_factory=list)
    heard: str = "validation"
    monitor: str | None = None
    mode: str | None = None
    source: str = ""
    unit: str = PATIENCE_UNITS[0]

    def line(self, title: str, monitored: MonitoredMetric) -> str:
        """All of it in one line."""
        seen = _number(self.seen, "validation" if self.heard == "validation" else "epoch")
        ignored = f", {self.ignored} of them not finite and ignored" if self.ignored else ""
        cuts = _number(len(self.cuts), "cut")
        if self.cuts:
            cuts += f" (epoch{'s' * (len(self.cuts) > 1)} {', '.join(map(str, self.cuts))})"
        return f"{title}: {seen} seen{ignored}, {cuts}, {monitored}"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


@dataclass
class ManagedScheduler:
    """A scheduler entry of the trainer that the owner has taken over.

    Attributes:
        frequency: the entry's own, to be restored.
        seen: how many steps the scheduler had taken.
        steps: those of its optimizer. counted: how many of these have been dealt with.
        stepped_in: the epoch of a plateau's last step. searched: whether everything that could log a plateau's metric
            has had its turn. told: whether it has been said that nothing logs it.
        audit: of a plateau. number: of its optimizer, where there are several plateaus.
    """

    entry: Any
    plan: SteppingPlan
    frequency: int
    seen: int | None = None
    steps: StepCounter | GlobalStepCounter | None = None
    counted: int = 0
    stepped_in: int | None = None
    searched: bool = False
    told: bool = False
    history: PlateauHistory = field(default_factory=PlateauHistory)
    number: int | None = None

    @property
    def scheduler(self) -> Any:
        return self.entry.scheduler

    @property
    def name(self) -> str:
        return self.plan.name + self.suffix

    @property
    def suffix(self) -> str:
        return "" if self.number is None else f"_{self.number}"

    @property
    def inner(self) -> Any:
        """The scheduler, within its warmup if it has one."""
        return self.scheduler.scheduler if isinstance(self.scheduler, Warmup) else self.scheduler

    @property
    def taken(self) -> int:
        """How many steps the optimizer has taken since the training began."""
        return 0 if self.steps is None else self.steps.taken


def manage(entry: Any, plan: SteppingPlan) -> ManagedScheduler:
    """Take an entry from Lightning; what the module changed in what `configure_optimizers` returned counts."""
    if plan.interval != "validation":
        plan.interval, plan.frequency = entry.interval, entry.frequency
    elif entry.monitor is not None and plan.monitored is not None and entry.monitor != plan.monitored.monitor:
        mode, told = plan.monitored.mode, plan.monitored.told
        mode = mode if told else mode_by_name(entry.monitor, may_fail=True)
        plan.monitored = MonitoredMetric(
            entry.monitor, mode, "the module's configure_optimizers", told, guessed=not told
        )
    managed = ManagedScheduler(entry, plan, entry.frequency, seen=count(entry.scheduler))
    entry.frequency = NEVER
    return managed


def plan_for_foreign_plateau(entry: Any) -> SteppingPlan | None:
    """The plan of a plateau that optplug did not build, as its entry describes it; others stay with Lightning."""
    if not isinstance(entry.scheduler, ReduceLROnPlateau) or not entry.monitor:
        return None
    if entry.interval == "epoch" and entry.frequency != 1:
        return None
    if entry.interval == "step" and not of_validation(entry.monitor):  # that of each batch
        return None
    monitored = MonitoredMetric(entry.monitor, entry.scheduler.mode, "the module's configure_optimizers", told=True)
    return SteppingPlan(type(entry.scheduler).__name__, "validation", 1, monitored)


def count(scheduler: Any) -> int | None:
    """How many steps a scheduler has taken, where it counts them."""
    found = getattr(scheduler, "last_epoch", None)
    return found if isinstance(found, int) else None


class StepCounter:
    """Counts the steps that an optimizer takes. A step that a gradient scaler skips is none.

    Args:
        optimizer: any with torch's hooks. taken: how many it has taken before.
    """

    def __init__(self, optimizer: Any, taken: int = 0) -> None:
        self.taken = taken
        self._handle = optimizer.register_step_post_hook(self)

    def __call__(self, optimizer: Any, *_: Any) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # a fused step is called, and skips itself
        if overflow is None or not float(overflow):
            self.taken += 1

    def forget(self) -> None:
        self._handle.remove()


class GlobalStepCounter:
    """The trainer's own count, for what looks like an optimizer and has no hooks."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def taken(self) -> int:
        return int(self._trainer.global_step)

    def forget(self) -> None:
        """There is nothing to remove."""
