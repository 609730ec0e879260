"""The learning rates of an optimizer's groups, which may be numbers or tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def rates_of(optimizer: Any) -> list[float]:
    """The learning rates of an optimizer, by group."""
    return [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set a group's learning rate, in place where it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def copied(value: Any) -> Any:
    """A value that is nobody else's where it is a tensor."""
    return value.clone() if isinstance(value, Tensor) else value
