"""The schedulers of pytorch_optimizer that lack the interface of torch's schedulers."""

from __future__ import annotations

import pytorch_optimizer

from optplug_adapters.schedules import AdaptedSchedule, adapt, lambda_lr_of


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
ChebyshevSchedule = lambda_lr_of("ChebyshevSchedule", pytorch_optimizer.get_chebyshev_schedule, __module__=__name__)
WSDSchedule = lambda_lr_of("WSDSchedule", pytorch_optimizer.get_wsd_schedule, __module__=__name__)
