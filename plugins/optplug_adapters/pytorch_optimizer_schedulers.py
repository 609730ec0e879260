"""The schedulers of pytorch_optimizer that lack the interface of torch's schedulers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_optimizer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug_adapters.schedules import AdaptedSchedule, adapt, plain


class WarmupSchedule(AdaptedSchedule):
    """A scheduler of pytorch_optimizer that has no `state_dict`.

    It gives all parameter groups the same learning rate. This is `min_lr` before its first step.
    """

    @property
    def t_max(self) -> int:
        """The length of the schedule."""
        length: int = self.schedule.total_steps
        return length

    def advance(self) -> None:
        self.schedule.step()


CosineScheduler = adapt(WarmupSchedule, pytorch_optimizer.CosineScheduler, __module__=__name__)
LinearScheduler = adapt(WarmupSchedule, pytorch_optimizer.LinearScheduler, __module__=__name__)
PolyScheduler = adapt(WarmupSchedule, pytorch_optimizer.PolyScheduler, __module__=__name__)


def chebyshev_schedule(
    optimizer: Optimizer, num_epochs: int, is_warmup: bool = False, last_epoch: int = -1
) -> LRScheduler:
    """Return `pytorch_optimizer.get_chebyshev_schedule`, whose factors are floats of Python and not of NumPy.

    Args:
        optimizer: the optimizer whose learning rates are scheduled.
        num_epochs: the number of epochs.
        is_warmup: whether all factors are 1. Default: False.
        last_epoch: the number of steps taken, for a resume. Default: -1, none.
    """
    scheduler: Any = pytorch_optimizer.get_chebyshev_schedule(optimizer, num_epochs, is_warmup, last_epoch)
    scheduler.lr_lambdas = [partial(_factor, factor) for factor in scheduler.lr_lambdas]
    for group in optimizer.param_groups:
        group["lr"] = plain(group["lr"])
    return scheduler  # type: ignore[no-any-return]


def _factor(factor: Callable[[int], float], step: int) -> float:
    return float(factor(step))
