"""The types of what `optplug.configure_optimizers` returns. Lightning's hook accepts them."""

from __future__ import annotations

from typing import TypedDict

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class _LRSchedulerKeys(TypedDict):
    scheduler: LRScheduler
    interval: str
    frequency: int


class LRSchedulerDict(_LRSchedulerKeys, total=False):
    """A schedule, as Lightning's hook returns it."""

    reduce_on_plateau: bool
    monitor: str


class OptimizerDict(TypedDict):
    """An optimizer without a schedule, as Lightning's hook returns it."""

    optimizer: Optimizer


class OptimizerLRSchedulerDict(OptimizerDict):
    """An optimizer with a schedule, as Lightning's hook returns it."""

    lr_scheduler: LRSchedulerDict
