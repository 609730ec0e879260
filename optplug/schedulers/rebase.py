"""Other settings or base learning rates for a scheduler that exists already: after a resume, after an LR finder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug.schedulers.closed_form import ClosedFormLR
from optplug.schedulers.late_groups import OTHERS
from optplug.schedulers.lr import set_lr
from optplug.schedulers.warmup import Warmup

POSITION = frozenset(
    {"last_epoch", "_step_count", "_is_initial", "_last_lr", "_get_lr_called_within_step", "best", "num_bad_epochs"}
    | {"cooldown_counter", "base_lrs", "position", "elapsed"}
)
"""What a scheduler keeps about where it is; the rest is about what it does."""


def overruled(
    scheduler: LRScheduler, fresh: Mapping[str, Any], bases: Sequence[float], ratios: Sequence[float]
) -> bool:
    """Give a restored scheduler the settings of a fresh one, and leave it where it is.

    Args:
        scheduler: restored.
        fresh: the `state_dict` it had before it was restored.
        bases: the base rates to be, by group. ratios: what they are to the base rates of the checkpoint.

    Returns:
        Whether its settings could be had; a scheduler of somebody else's keeps its own, and follows the base rates.
    """
    if isinstance(scheduler, Warmup):
        with scheduler._without_warmup():
            done = overruled(scheduler.scheduler, fresh["scheduler"], bases, ratios)
            scheduler.warmup_steps = fresh["warmup"]["steps"]
            scheduler.start_factor = fresh["warmup"]["start_factor"]
        return done
    groups = scheduler.optimizer.param_groups
    for group, ratio in zip(groups, ratios, strict=False):
        set_lr(group, float(group["lr"]) * ratio)
    state = scheduler.state_dict()
    if "base_lrs" in state:
        scheduler.base_lrs = [*bases, *state["base_lrs"][len(bases) :]]
    ours = isinstance(scheduler, (ClosedFormLR, ReduceLROnPlateau))
    if ours:
        settings = {key: value for key, value in fresh.items() if key not in POSITION}
        for key in settings.keys() & set(OTHERS):  # of groups that were added before the checkpoint
            settings[key] = [*settings[key], *settings[key][-1:] * (len(groups) - len(settings[key]))]
        scheduler.load_state_dict({**scheduler.state_dict(), **settings})
    if isinstance(scheduler, ClosedFormLR) and len(groups) == len(scheduler.base_lrs):
        for group, lr in zip(groups, scheduler._get_closed_form_lr(), strict=True):
            set_lr(group, float(lr))
    scheduler._last_lr = [float(group["lr"]) for group in groups]
    return ours


def rebased(scheduler: LRScheduler, bases: Sequence[float]) -> None:
    """Give a scheduler that has not been stepped other base rates."""
    if isinstance(scheduler, Warmup):
        scheduler._inner_lrs = list(bases)
        scheduler._shown_lrs = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
        with scheduler._without_warmup():
            rebased(scheduler.scheduler, bases)
        return
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = list(bases)
    lrs = scheduler._get_closed_form_lr() if isinstance(scheduler, ClosedFormLR) else bases
    for group, base, lr in zip(scheduler.optimizer.param_groups, bases, lrs, strict=True):
        group["initial_lr"] = base
        set_lr(group, float(lr))
    scheduler._last_lr = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
