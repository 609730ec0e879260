"""The base class of schedules that are a closed form: the learning rate is a function of the number of steps taken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import ConfigError, HyperparameterError
from optplug.optim.strict_kwargs import CheckedKeywords
from optplug.schedulers.checks import check_optimizer, check_state, checked_number, warn_by_hand
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.lr import copied


class ClosedFormLR(CheckedKeywords, LRScheduler):
    r"""A schedule defined by :meth:`multiplier`: :math:`lr(t) = floor + (base - floor) \, f(t)`.

    Each step multiplies the group's *current* distance from the floor by :math:`f(t) / f(t-1)`, so that several
    schedulers on one optimizer compose; where :math:`f(t-1) = 0` it adds :math:`(base - floor) \, f(t)`.

    Groups that are added to the optimizer are followed, see `optplug.schedulers.late_groups.follow_groups`. With a floor of 0 a new
    group's rate keeps its ratio to that of the last group before it; above a floor the base rates have that ratio, and
    the new group's rate is as defined above, at once.

    Args:
        optimizer: whose groups' learning rates to set.
        last_epoch: index of the last step taken; -1 to start.

    Attributes:
        floor: the learning rate that multiplier 0 stands for.
        functions: names of the arguments that are functions of the step; a configuration may give these as text.
        steps_when_resumed: whether construction with `last_epoch` >= 0 takes the step to `last_epoch` + 1. If not, it
            leaves the rates as they are; torch's schedules do the one or the other.

    Raises:
        TypeError: `optimizer` is not a `torch.optim.Optimizer`. KeyError: resuming without `initial_lr` in the groups.
        HyperparameterError: `last_epoch` below -1. HyperparameterTypeError: no whole number; a misspelt keyword.
    """

    interval: ClassVar[str] = "epoch"
    functions: ClassVar[tuple[str, ...]] = ()
    steps_when_resumed: ClassVar[bool] = False
    floor: float = 0.0

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        check_optimizer(optimizer)
        super().__init__(optimizer, checked_number(self, "last_epoch", last_epoch, -1, whole=True))

    def multiplier(self, t: int) -> float:
        """The multiplier :math:`f(t)` after `t` steps; `f(0) = 1` for a schedule that starts at the base rate."""
        raise NotImplementedError

    def multipliers(self, t: int) -> list[float]:
        """The multipliers of all groups; to be overridden by a schedule that treats groups differently."""
        return [float(self.multiplier(t))] * len(self.optimizer.param_groups)

    def ratios(self, t: int) -> list[float | None]:
        """What step `t` multiplies by, per group: :math:`f(t) / f(t-1)`, at the start :math:`f(0)`; None for 1 / 0."""
        now = self.multipliers(t)
        before = [1.0] * len(now) if self._is_initial and t == 0 else self.multipliers(t - 1)
        return [1.0 if f == b else f / b if b else None for f, b in zip(now, before, strict=True)]

    def _update_lr(self, epoch: int | None = None) -> None:
        follow_groups(self)
        super()._update_lr(epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of this step, per group, from the current ones; torch's warning when called by hand."""
        warn_by_hand(self)
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        t = self.last_epoch
        if self._is_initial and t > 0 and not self.steps_when_resumed:
            return [copied(lr) for lr in lrs]
        with self._refusing_overflow():
            ratios = self.ratios(t)
            heights = self._heights(t) if None in ratios else lrs
        moved = [self._moved(*group) for group in zip(lrs, ratios, heights, strict=True)]
        with self._refusing_overflow():
            if any(isinstance(lr, float) and math.isinf(lr) for lr in moved):
                raise OverflowError
        return moved

    def _moved(self, lr: float | Tensor, ratio: float | None, height: float | Tensor) -> float | Tensor:
        if ratio is None:
            return lr + height
        return copied(lr) if ratio == 1 else ratio * (lr - self.floor) + self.floor

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        """The learning rates by definition; `step(epoch)` asks for them."""
        with self._refusing_overflow():
            return [self.floor + height for height in self._heights(self.last_epoch)]

    def _heights(self, t: int) -> list[float | Tensor]:
        """How high above the floor the learning rates are by definition."""
        follow_groups(self)
        groups = self.optimizer.param_groups
        if len(groups) < len(self.base_lrs):
            raise ConfigError(
                f"{type(self).__name__} has {len(self.base_lrs)} base rates and the optimizer {len(groups)} groups: "
                "groups may be added, not removed; give the optimizer all groups before it loads a checkpoint"
            )
        return [(base - self.floor) * f for base, f in zip(self.base_lrs, self.multipliers(t), strict=True)]

    @contextmanager
    def _refusing_overflow(self) -> Iterator[None]:
        try:
            yield
        except OverflowError as error:
            name = type(self).__name__
            raise HyperparameterError(f"{name}: the learning rate overflows at step {self.last_epoch}") from error

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict`; ConfigError for that of another kind of scheduler."""
        check_state(self, state_dict)
        super().load_state_dict(state_dict)


class GeometricLR(ClosedFormLR):
    r"""A schedule of cuts, each by the same factor: :math:`f(t) = \gamma^{cuts(t)}`.

    Args:
        optimizer, last_epoch: as in `ClosedFormLR`.
        gamma: what the rate is multiplied by at a cut, :math:`\gamma \ge 0`; above 1 it grows.

    Raises:
        As `ClosedFormLR`. HyperparameterError: `gamma` out of range. HyperparameterTypeError: of the wrong type.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma: float = checked_number(self, "gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def cuts(self, t: int) -> int:
        """How many cuts there are in the first `t` steps."""
        raise NotImplementedError

    def multiplier(self, t: int) -> float:
        return float(self.gamma) ** self.cuts(t)

    def ratios(self, t: int) -> list[float | None]:
        # Not by division: the multiplier may have become 0.
        before = 0 if self._is_initial and t == 0 else self.cuts(t - 1)
        return [float(self.gamma) ** (self.cuts(t) - before)] * len(self.optimizer.param_groups)


class Unscheduled(ClosedFormLR):
    """No schedule at all: :math:`lr(t) = base`. A warmup alone has it inside."""

    def multiplier(self, t: int) -> float:
        return 1.0
