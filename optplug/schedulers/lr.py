"""Learning rates of parameter groups, which may be numbers or tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def lrs_of(optimizer: Any) -> list[float]:
    """Return the learning rates of an optimizer's parameter groups; groups without `lr` are skipped."""
    return [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Set the learning rate of a parameter group; a tensor is changed in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def clone_tensor(value: Any) -> Any:
    """Return a clone of a tensor; other values are returned unchanged."""
    return value.clone() if isinstance(value, Tensor) else value
