"""Learning rates of parameter groups, which may be numbers or tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

GROUP_LR_KEYS = ("initial_lr", "max_lr", "min_lr", "swa_lr")
"""Keys of parameter groups that schedulers write and that are learning rates."""
GROUP_MOMENTUM_KEYS = ("base_momentum", "max_momentum")
"""Keys of parameter groups that schedulers write and that are momenta."""


def lrs_of(optimizer: Any) -> list[float]:
    """Return the learning rates of an optimizer's parameter groups; groups without `lr`, or with None, are skipped."""
    return [float(group["lr"]) for group in optimizer.param_groups if group.get("lr") is not None]


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set the learning rate of a parameter group; a tensor is changed in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def clone_tensor(value: Any) -> Any:
    """Return a clone of a tensor; other values are returned unchanged."""
    return value.clone() if isinstance(value, Tensor) else value


def init_new_group(group: dict[str, Any], last: dict[str, Any]) -> float:
    """Give a new group the keys of schedulers that the last old group has.

    Args:
        group: the new group.
        last: the last old group.

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
            group[key] = scale_lr(last[key], group, last, ratio)
    for key in GROUP_MOMENTUM_KEYS:
        if key in last:
            group.setdefault(key, clone_tensor(last[key]))
    return ratio


def scale_lr(value: Any, group: dict[str, Any], last: dict[str, Any], ratio: float) -> Any:
    """Scale a learning rate of the last old group for a new group.

    Args:
        value: the learning rate.
        group: the new group. The result is a tensor only if its `lr` is one.
        last: the last old group. If `value` is its base learning rate, the result is exactly the new group's.
        ratio: the ratio from `init_new_group`.
    """
    if "initial_lr" in group and float(value) == float(last.get("initial_lr", "nan")):
        return clone_tensor(group["initial_lr"])
    return (value if isinstance(group["lr"], Tensor) else float(value)) * ratio
