"""Parameter groups that are added to an optimizer during training: all its schedulers must schedule them too."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optplug.schedulers.lr import clone_tensor, set_lr

PER_GROUP_LRS = ("base_lrs", "max_lrs")
"""Attributes of schedulers that are lists of learning rates, one per group. A new group's value is scaled."""
PER_GROUP_VALUES = ("lr_lambdas", "min_lrs", "base_momentums", "max_momentums")
"""Attributes of schedulers that are lists of other values, one per group. A new group's value is a copy."""
GROUP_LR_KEYS = ("initial_lr", "max_lr", "min_lr", "swa_lr")
"""Keys of parameter groups that schedulers write and that are learning rates."""
GROUP_MOMENTUM_KEYS = ("base_momentum", "max_momentum")
"""Keys of parameter groups that schedulers write and that are momenta."""


def follow_groups(scheduler: LRScheduler) -> None:
    """Extend a scheduler to the parameter groups that were added since the last call.

    The per-group lists of the scheduler get a value for each new group, and the new groups get the keys that the
    scheduler reads.

    A new group is scheduled like the last of the old groups, as if it had existed from the start. Its base learning
    rate is that of the last old group, times the ratio of their current learning rates; if the new group has an
    `initial_lr`, times the ratio of their `initial_lr`.

    The current learning rate of a new group does not change, with two exceptions. In these the closed form sets it, if
    the scheduler has one: the schedule has a floor (`eta_min`) above 0, where learning rates are not proportional to
    base learning rates; or the last old group's learning rate is 0, so that the new group's is its base learning rate.

    Args:
        scheduler: any scheduler. Its per-group lists are recognized by name (`PER_GROUP_LRS`, `PER_GROUP_VALUES`).
            Schedulers in its `_schedulers` are extended too. A scheduler with its own method `follow_groups` is left to
            that method.
    """
    groups = scheduler.optimizer.param_groups
    _follow(scheduler, [i for i, group in enumerate(groups) if "initial_lr" not in group])


def _follow(scheduler: Any, adjustable: list[int]) -> None:
    """Extend a scheduler as in `follow_groups`.

    Args:
        scheduler: the scheduler.
        adjustable: indices of the groups whose learning rate the closed form may set.
    """
    if hasattr(scheduler, "follow_groups"):
        scheduler.follow_groups()
        return
    active = bisect_right(scheduler._milestones, scheduler.last_epoch) if hasattr(scheduler, "_milestones") else None
    for i, member in enumerate(getattr(scheduler, "_schedulers", ())):
        _follow(member, adjustable if active in (None, i) else [])
    groups, attributes = scheduler.optimizer.param_groups, vars(scheduler)
    lists = {name: attributes[name] for name in (*PER_GROUP_LRS, *PER_GROUP_VALUES) if attributes.get(name)}
    n_old = min(map(len, lists.values()), default=len(groups))
    if n_old < len(groups):
        attributes |= {name: list(values) for name, values in lists.items()}  # a state dict may share the old lists
        last = groups[n_old - 1]
        for i in range(n_old, len(groups)):
            if any(
                groups[i]["lr"] is group["lr"] for group in groups[:i]
            ):  # all groups without their own lr share the tensor of the optimizer's defaults
                groups[i]["lr"] = clone_tensor(groups[i]["lr"])
            ratio = _init_group(groups[i], last)
            for name, values in lists.items():
                value = values[n_old - 1]
                if i >= len(values):
                    is_lr = name in PER_GROUP_LRS
                    attributes[name].append(_scale_lr(value, groups[i], last, ratio) if is_lr else clone_tensor(value))
        floor = getattr(scheduler, "floor", getattr(scheduler, "eta_min", 0.0))
        if (floor or not float(last["lr"])) and hasattr(scheduler, "_get_closed_form_lr"):
            lrs = scheduler._get_closed_form_lr()
            for i in adjustable:
                if i >= n_old and float(groups[i]["lr"]):  # 0 was set by another scheduler
                    set_lr(groups[i], float(lrs[i]))
    last_lr = attributes.get("_last_lr")
    if last_lr is not None and len(last_lr) < len(groups):
        scheduler._last_lr = [*last_lr, *(clone_tensor(group["lr"]) for group in groups[len(last_lr) :])]


def _init_group(group: dict[str, Any], last: dict[str, Any]) -> float:
    """Give a new group the keys of schedulers that the last old group has.

    Returns:
        The ratio of the new group's learning rates to those of the last old group.
    """
    own, others = float(group["lr"]), float(last["lr"])
    base = float(last.get("initial_lr", others))
    if "initial_lr" in group and base:
        own, others = float(group["initial_lr"]), base
    ratio = own / others if others else own / base if base else 1.0
    if "initial_lr" in last and not others:
        group.setdefault("initial_lr", clone_tensor(group["lr"]))
    for key in GROUP_LR_KEYS:
        if key in last and key not in group:
            group[key] = _scale_lr(last[key], group, last, ratio)
    for key in GROUP_MOMENTUM_KEYS:
        if key in last:
            group.setdefault(key, clone_tensor(last[key]))
    return ratio


def _scale_lr(value: Any, group: dict[str, Any], last: dict[str, Any], ratio: float) -> Any:
    """Scale a learning rate of the last old group for a new group.

    Args:
        value: the learning rate.
        group: the new group. The result is a tensor only if its `lr` is one.
        last: the last old group. If `value` is its base learning rate, the result is exactly the new group's.
        ratio: the ratio from `_init_group`.
    """
    if "initial_lr" in group and float(value) == float(last.get("initial_lr", "nan")):
        return clone_tensor(group["initial_lr"])
    return (value if isinstance(group["lr"], Tensor) else float(value)) * ratio
