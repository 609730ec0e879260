"""Schedules that set absolute learning rates, and the momentum of the groups against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch.optim import Optimizer

from optplug.errors import HyperparameterError
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.schedulers.lr import set_lr


class MomentumCycleLR(ClosedFormLR):
    """A schedule between learning rates that are its arguments, which also sets the momentum.

    The momentum of a group is its option `momentum` or, if the group has the option `betas`, the first of the betas.

    Args:
        optimizer: the optimizer whose learning rates and momenta are set.
        last_epoch: index of the last step; -1 to start.
        options: the options that each group has at the start, such as `max_lr`. Default: none.

    Attributes:
        cycle_momentum: whether the momentum is set.

    Raises:
        HyperparameterError, HyperparameterTypeError, TypeError: as in `ClosedFormLR`.
    """

    has_own_lrs: ClassVar[bool] = True
    is_absolute: ClassVar[bool] = True
    cycle_momentum: bool = False

    def __init__(self, optimizer: Optimizer, last_epoch: int, options: dict[str, list[float]]) -> None:
        start = self.checked_start(optimizer, last_epoch)
        for i, group in enumerate(optimizer.param_groups if start == -1 else ()):
            own = {name: values[i] for name, values in options.items()}
            if "lr" in own:
                set_lr(group, own.pop("lr"))
            group.update(own)
        super().__init__(optimizer, start)

    def check_per_group(self, name: str, value: Any, optimizer: Any) -> list[float]:
        """Check a number for all groups, or a list with one for each, and return it as a list."""
        many = isinstance(value, (list, tuple))
        given: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
        values = [self.check_number(name, each, index=i if many else None) for i, each in enumerate(given)]
        count = len(optimizer.param_groups) if isinstance(optimizer, Optimizer) else len(values)
        if many and len(values) != count:
            message = (
                f"{name} must have the same length as optimizer.param_groups. {name} has {len(values)} values, "
                f"param_groups has {count}. {type(self).__name__} takes one {name} for all groups, or a list"
            )
            self.reject(name, HyperparameterError(message))
        return values if many else values * count

    def check_cycle_momentum(self, value: Any, optimizer: Any) -> bool:
        """Check whether the momentum is to be set, and whether the optimizer has one."""
        cycles = self.check_bool("cycle_momentum", value)
        if value is True and isinstance(optimizer, Optimizer) and not any(map(_has_momentum, optimizer.param_groups)):
            message = (
                "optimizer must support momentum or beta1 with `cycle_momentum` option enabled: "
                f"set cycle_momentum to False for {type(optimizer).__name__}"
            )
            self.reject("cycle_momentum", HyperparameterError(message))
        return cycles

    def momenta(self, t: int) -> list[float]:
        """Return the momentum of each group after `t` steps."""
        raise NotImplementedError

    def after_update(self) -> None:
        if self.cycle_momentum:
            for group, momentum in zip(self.optimizer.param_groups, self.momenta(self.last_epoch), strict=True):
                set_momentum(group, momentum)


def _has_momentum(group: dict[str, Any]) -> bool:
    return "betas" in group or "momentum" in group


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set the first of the betas, or else the momentum; groups of an optimizer without momentum have neither."""
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    elif "momentum" in group:
        group["momentum"] = momentum
