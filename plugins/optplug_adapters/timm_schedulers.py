"""The schedulers of timm with the interface of torch's schedulers.

timm's schedulers are told the number of the epoch or of the update. These count their steps, and the key `interval` of
a configuration decides whether a step is an epoch or an update.
"""

from __future__ import annotations

from typing import Any

import timm.scheduler

from optplug_adapters.schedules import AdaptedSchedule, adapt

_COUNTS = ("t_in_epochs", "initialize")
"""Arguments of timm's schedulers that the number of steps and the parameter groups replace."""


class TimmSchedule(AdaptedSchedule):
    """A scheduler of timm that is a function of the number of steps."""

    @property
    def t_initial(self) -> int:
        """The length of the schedule, if it has one."""
        length: int = self.schedule.t_initial
        return length

    def advance(self) -> None:
        schedule = self.schedule
        # Groups may have been added, and their base learning rates may have changed.
        schedule.base_values = self.base_lrs
        if schedule.warmup_t:
            schedule.warmup_steps = [(lr - schedule.warmup_lr_init) / schedule.warmup_t for lr in self.base_lrs]
        schedule.step(self.last_epoch)


class TimmPlateau(AdaptedSchedule):
    """timm's scheduler that reduces learning rates when a metric stops improving."""

    @property
    def best(self) -> float:
        """The best value of the metric so far."""
        return float(self.schedule.lr_scheduler.best)

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """Reduce the learning rates if the metric has not improved for `patience_t` steps."""
        self._metric = float(metrics)
        super().step(epoch)

    def advance(self) -> None:
        self.schedule.step(self.last_epoch, self._metric)

    def schedule_state(self) -> dict[str, Any]:
        plateau = self.schedule.lr_scheduler.state_dict()
        return {"restore_lr": self.schedule.restore_lr, "lr_scheduler": plateau}

    def load_schedule_state(self, state: dict[str, Any]) -> None:
        self.schedule.restore_lr = state["restore_lr"]
        self.schedule.lr_scheduler.load_state_dict(state["lr_scheduler"])


def __getattr__(name: str) -> Any:
    """Return the class for a scheduler of timm, of which versions have different ones."""
    if not name.endswith("LRScheduler"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    cls = getattr(timm.scheduler, name)
    base = TimmPlateau if name.startswith("Plateau") else TimmSchedule
    return globals().setdefault(name, adapt(base, cls, without=_COUNTS, __module__=__name__))
