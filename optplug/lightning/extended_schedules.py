"""Schedules that a resumed training continues with another length, such as the constant part of `wsd`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from optplug.config.form import WARMUP_SCHEDULES
from optplug.config.model import SchedulerConfig, WarmupConfig
from optplug.config.training_length import TrainingLength, resolve_lengths
from optplug.errors import loc_text
from optplug.lightning.fit_state import FitState
from optplug.lightning.reporter import Reporter
from optplug.schedulers.warmup import Warmup


def extend_schedules(trainer: Any, state: FitState, reporter: Reporter) -> None:
    """Fit the restored schedules whose length depends on the training to the length of this training.

    Only schedules with a method `extend` can do so, and only where the learning rate does not jump. A message for the
    summary, or a warning, says what was done.

    Args:
        trainer: the Lightning trainer, after it has restored the schedulers.
        state: the state of a fit that resumes with `on_resume: keep`.
        reporter: warns.
    """
    if state.resume is None or state.resume.policy != "keep":
        return
    for optimizer, configured in state.configured(trainer):
        managed = state.managed_of(trainer, optimizer)
        if managed is None:
            continue
        for name, scheduled in configured.setup.named_schedules.items():
            whole, adapter = scheduled.whole_length, managed.adapter.members.get(name)
            if adapter is None or whole is None:
                continue
            if (managed.plan.interval, managed.plan.frequency) != (scheduled.interval, scheduled.frequency):
                continue  # the checkpoint's schedule is stepped at other times
            new = _length(scheduled, adapter.scheduler, configured.training_length or TrainingLength())
            old = adapter.length(whole.end.argument, new)
            extended = None if new == old else adapter.extend(new)
            loc = loc_text(whole.loc)
            if extended:
                change = "extended" if new > old else "shortened"
                state.resume.extended.append(whole.loc)
                state.resume.messages.append(f"{loc} is {change} from {old} to {new}, to fit this training")
            elif extended is not None:
                reporter.warn(trainer, _not_extended(loc, old, new))


def _not_extended(loc: str, old: int, new: int) -> str:
    rest = "the learning rate then stays at its last value" if new > old else "the training ends before it"
    return (
        f"{loc}: the schedule of the checkpoint has {old} steps, and in this training it would have {new}. It "
        f"keeps its length, and {rest}: its decay has begun, or would have begun before the checkpoint. Resume "
        "from an earlier checkpoint, or set on_resume: reset_scheduler"
    )


def _length(scheduled: SchedulerConfig, scheduler: Any, training: TrainingLength) -> int:
    """The length of the whole schedule in this training, with the warmup of the checkpoint."""
    warmup = None
    if isinstance(scheduler, Warmup):
        warmup = WarmupConfig(scheduler.warmup_steps, schedule=WARMUP_SCHEDULES[scheduler.delays_schedule])
    given = replace(scheduled, arguments={**scheduled.arguments, **scheduled.given_lengths}, warmup=warmup)
    whole = resolve_lengths(given, training).whole_length
    assert whole is not None
    return whole.end.steps
