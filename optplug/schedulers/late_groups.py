"""Parameter groups added to an optimizer during training: every scheduler of the optimizer follows them."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optplug.schedulers.lr import copied, set_lr

RATES = ("base_lrs", "max_lrs")
"""What schedulers keep by group that is a learning rate: a new group's is in proportion."""
OTHERS = ("lr_lambdas", "min_lrs", "base_momentums", "max_momentums")
"""What else they keep by group, the bounds of a plateau too: it is repeated."""
RATE_KEYS = ("initial_lr", "max_lr", "min_lr", "swa_lr")
"""What they keep in the group itself that is a learning rate."""
OTHER_KEYS = ("base_momentum", "max_momentum")


def follow_groups(scheduler: LRScheduler) -> None:
    """Give a scheduler what it keeps by group for the groups that were added since, and these the keys that it reads.

    Args:
        scheduler: any, known by the attributes it has: those of `RATES` and `OTHERS`, and `_schedulers`, which are
            followed into. One that has a method `follow_groups` does all this itself.

    A new group is scheduled as the last of the old groups is, as if it had been there from the start: its base rate is
    that group's times the ratio of their learning rates now, or of their `initial_lr` if it brings one. Its rate now is
    left alone, but in two cases, where the closed form, if there is one, says it: above a floor (`eta_min`), where
    rates are in proportion to nothing; and where that group's rate is 0 now, so that the new group's own is its base.
    """
    groups = scheduler.optimizer.param_groups
    _follow(scheduler, [i for i, group in enumerate(groups) if "initial_lr" not in group])


def _follow(scheduler: Any, unsettled: list[int]) -> None:
    """As `follow_groups`; `unsettled` are the groups whose rate a closed form may say."""
    if hasattr(scheduler, "follow_groups"):
        scheduler.follow_groups()
        return
    turn = bisect_right(scheduler._milestones, scheduler.last_epoch) if hasattr(scheduler, "_milestones") else None
    for i, member in enumerate(getattr(scheduler, "_schedulers", ())):
        _follow(member, unsettled if turn in (None, i) else [])
    groups, kept = scheduler.optimizer.param_groups, vars(scheduler)
    lists = {name: kept[name] for name in (*RATES, *OTHERS) if kept.get(name)}
    there = min(map(len, lists.values()), default=len(groups))
    if there < len(groups):
        kept |= {name: list(values) for name, values in lists.items()}  # a state_dict may hold the old ones
        last = groups[there - 1]
        for i in range(there, len(groups)):
            if any(groups[i]["lr"] is group["lr"] for group in groups[:i]):  # a tensor that is the optimizer's default
                groups[i]["lr"] = copied(groups[i]["lr"])
            ratio = _join(groups[i], last)
            for name, values in lists.items():
                value = values[there - 1]
                if i >= len(values):
                    kept[name].append(_scaled(value, groups[i], last, ratio) if name in RATES else copied(value))
        floor = getattr(scheduler, "floor", getattr(scheduler, "eta_min", 0.0))
        if (floor or not float(last["lr"])) and hasattr(scheduler, "_get_closed_form_lr"):
            rates = scheduler._get_closed_form_lr()
            for i in unsettled:
                if i >= there and float(groups[i]["lr"]):  # at 0 it is at another one's
                    set_lr(groups[i], float(rates[i]))
    shown = kept.get("_last_lr")
    if shown is not None and len(shown) < len(groups):
        scheduler._last_lr = [*shown, *(copied(group["lr"]) for group in groups[len(shown) :])]


def _join(group: dict[str, Any], last: dict[str, Any]) -> float:
    """Give a new group the last one's keys; the ratio of its rates to those of the last one."""
    own, theirs = float(group["lr"]), float(last["lr"])
    base = float(last.get("initial_lr", theirs))
    if "initial_lr" in group and base:
        own, theirs = float(group["initial_lr"]), base
    ratio = own / theirs if theirs else own / base if base else 1.0
    if "initial_lr" in last and not theirs:
        group.setdefault("initial_lr", copied(group["lr"]))
    for key in RATE_KEYS:
        if key in last and key not in group:
            group[key] = _scaled(last[key], group, last, ratio)
    for key in OTHER_KEYS:
        if key in last:
            group.setdefault(key, copied(last[key]))
    return ratio


def _scaled(value: Any, group: dict[str, Any], last: dict[str, Any], ratio: float) -> Any:
    """A rate of the last group's for a new one, a tensor only where the new one's rate is; its base rate exactly."""
    if "initial_lr" in group and float(value) == float(last.get("initial_lr", "nan")):
        return copied(group["initial_lr"])
    return (value if isinstance(group["lr"], Tensor) else float(value)) * ratio
