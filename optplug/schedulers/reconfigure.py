"""Changes to an existing scheduler: new settings after a resume, new base learning rates after an LR finder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug.schedulers.closed_form import ClosedFormLR
from optplug.schedulers.late_groups import PER_GROUP_VALUES
from optplug.schedulers.lr import set_lr
from optplug.schedulers.warmup import Warmup

PROGRESS_KEYS = frozenset(
    {"last_epoch", "_step_count", "_is_initial", "_last_lr", "_get_lr_called_within_step", "best", "num_bad_epochs"}
    | {"cooldown_counter", "base_lrs", "position", "elapsed"}
)
"""State-dict keys of schedulers that are progress. The other keys are settings."""


def apply_settings(
    scheduler: LRScheduler, new_state: Mapping[str, Any], base_lrs: Sequence[float], ratios: Sequence[float]
) -> bool:
    """Apply the configured settings to a scheduler that was restored from a checkpoint. Its progress does not change.

    Args:
        scheduler: the restored scheduler.
        fresh: its `state_dict` before it was restored.
        bases: the new base learning rate of each group.
        ratios: for each group the ratio of the new base learning rate to that of the checkpoint.

    Returns:
        Whether the settings were applied. A third-party scheduler keeps its settings; only its learning rates change.
    """
    if isinstance(scheduler, Warmup):
        with scheduler._without_warmup():
            applied = apply_settings(scheduler.scheduler, new_state["scheduler"], base_lrs, ratios)
            scheduler.warmup_steps = new_state["warmup"]["steps"]
            scheduler.start_factor = new_state["warmup"]["start_factor"]
        return applied
    groups = scheduler.optimizer.param_groups
    for group, ratio in zip(groups, ratios, strict=False):
        set_lr(group, float(group["lr"]) * ratio)
    state = scheduler.state_dict()
    if "base_lrs" in state:
        scheduler.base_lrs = [*base_lrs, *state["base_lrs"][len(base_lrs) :]]
    is_known = isinstance(scheduler, (ClosedFormLR, ReduceLROnPlateau))
    if is_known:
        settings = {key: value for key, value in new_state.items() if key not in PROGRESS_KEYS}
        for key in settings.keys() & set(PER_GROUP_VALUES):  # groups may have been added before the checkpoint
            settings[key] = [*settings[key], *settings[key][-1:] * (len(groups) - len(settings[key]))]
        scheduler.load_state_dict({**scheduler.state_dict(), **settings})
    if isinstance(scheduler, ClosedFormLR) and len(groups) == len(scheduler.base_lrs):
        for group, lr in zip(groups, scheduler._get_closed_form_lr(), strict=True):
            set_lr(group, float(lr))
    scheduler._last_lr = [float(group["lr"]) for group in groups]
    return is_known


def set_base_lrs(scheduler: LRScheduler, base_lrs: Sequence[float]) -> None:
    """Set the base learning rates of a scheduler that has not been stepped.

    Args:
        scheduler: the scheduler.
        bases: the base learning rate of each group.
    """
    if isinstance(scheduler, Warmup):
        scheduler._lrs_without_warmup = list(base_lrs)
        scheduler._lrs_with_warmup = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
        with scheduler._without_warmup():
            set_base_lrs(scheduler.scheduler, base_lrs)
        return
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = list(base_lrs)
    lrs = scheduler._get_closed_form_lr() if isinstance(scheduler, ClosedFormLR) else base_lrs
    for group, base, lr in zip(scheduler.optimizer.param_groups, base_lrs, lrs, strict=True):
        group["initial_lr"] = base
        set_lr(group, float(lr))
    scheduler._last_lr = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
