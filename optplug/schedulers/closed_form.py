"""The base class of closed-form schedules: the learning rate is a function of the number of steps taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from optplug.engines._torch_compat import SchedulerBase
from optplug.errors import ConfigError, HyperparameterError
from optplug.optim.strict_kwargs import StrictKwargs
from optplug.schedulers.adapters import TorchAdapter, adapter_for
from optplug.schedulers.checks import ArgumentChecks, check_state, warn_get_lr_outside_step
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.lr import clone_tensor, set_lr


class ClosedFormLR(ArgumentChecks, StrictKwargs, SchedulerBase):
    r"""A schedule defined by :meth:`multiplier`: :math:`lr(t) = floor + (base - floor) \, f(t)`.

    Each step multiplies the *current* distance of the learning rate from the floor by :math:`f(t) / f(t-1)`.
    Therefore several schedulers can be used with one optimizer. If :math:`f(t-1) = 0`, the step adds
    :math:`(base - floor) \, f(t)` instead.

    `min_lr_ratio` sets a lower bound of the multiplier, see :meth:`above_floor`. The learning rate then ends at, or is
    not below, this fraction of the base learning rate of each group.

    Parameter groups that are added to the optimizer later are scheduled too, see
    `optplug.schedulers.late_groups.follow_groups`. If the floor is 0, the learning rate of a new group keeps its ratio
    to that of the last group before it. If the floor is above 0, the base learning rates have that ratio, and the new
    group's learning rate is set according to the formula at once.

    Args:
        optimizer: the optimizer whose learning rates are scheduled.
        last_epoch: index of the last step taken. Default: -1, to start.
        min_lr_ratio: the least multiplier, in [0, 1]. Default: 0.

    Attributes:
        floor: the learning rate for multiplier 0, the same for all groups.
        last_step: the number of steps after which the schedule must not be stepped. Default: None, there is none.
        min_lr_ratio: the least multiplier. A state dict contains it only if it is not 0, so that the schedules of torch
            have the same keys.
        decays_to_floor: whether `min_lr_ratio` is where the decay ends, so that :math:`f` becomes
            :math:`r + (1 - r) \, f`. Otherwise the multiplier is the larger one of :math:`f` and :math:`r`.
        has_own_lrs: whether arguments set the learning rates, and those of the optimizer are not used.
        is_absolute: whether a step sets the learning rate of the formula, so that those of other schedulers are
            overwritten. Otherwise a step multiplies the current learning rate as described above.
        functions: names of the arguments that are functions of the step. A configuration may give them as text.
        steps_when_resumed: whether construction with `last_epoch` >= 0 takes the step to `last_epoch` + 1. Otherwise
            construction leaves the learning rates unchanged. torch's schedulers differ in this.

    Raises:
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
        KeyError: `last_epoch` >= 0 and a parameter group has no `initial_lr`.
        HyperparameterError: `last_epoch` or `min_lr_ratio` is out of range, or both `min_lr_ratio` and `floor` are
            above 0.
        HyperparameterTypeError: `last_epoch` is not a whole number, `min_lr_ratio` is not a number, or a keyword is
            unknown.
    """

    interval: ClassVar[str] = "epoch"
    cases: ClassVar[Sequence[Mapping[str, Any]]]
    decays_to_floor: ClassVar[bool] = False
    has_own_lrs: ClassVar[bool] = False
    is_absolute: ClassVar[bool] = False
    functions: ClassVar[tuple[str, ...]] = ()
    steps_when_resumed: ClassVar[bool] = False
    floor: float = 0.0
    last_step: int | None = None
    min_lr_ratio: float = 0.0

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1, *, min_lr_ratio: float = 0.0) -> None:
        min_lr_ratio = self.check_number("min_lr_ratio", min_lr_ratio, at_most=1)
        if min_lr_ratio > 0:
            self.min_lr_ratio = min_lr_ratio
            if self.floor > 0:
                message = "min_lr_ratio and eta_min both set a lower bound: give only one of them"
                error = HyperparameterError(f"{type(self).__name__}: {message}")
                self.reject("min_lr_ratio", error, is_contradiction=True)
        super().__init__(optimizer, self.checked_start(optimizer, last_epoch))

    def checked_start(self, optimizer: Any, last_epoch: Any) -> int:
        """Check the optimizer, return `last_epoch` as a Python number, and raise all errors collected so far."""
        self.check_optimizer(optimizer)
        start: int = self.check_number("last_epoch", last_epoch, -1, whole=True)
        self.raise_argument_errors()
        return start

    def multiplier(self, t: int) -> float:
        """Return :math:`f(t)`, the multiplier after `t` steps; 1 for the base learning rate."""
        raise NotImplementedError

    def above_floor(self, f: float) -> float:
        """Return the multiplier with `min_lr_ratio`, see `decays_to_floor`."""
        least = self.min_lr_ratio
        if not least:
            return f
        return least + (1 - least) * f if self.decays_to_floor else max(f, least)

    def multipliers(self, t: int) -> list[float]:
        """Return the multiplier of each parameter group. Schedules that treat groups differently override this."""
        return [self.above_floor(float(self.multiplier(t)))] * len(self.optimizer.param_groups)

    def extend(self, length: int) -> bool:
        """Change the total number of steps during training, if this does not change the current learning rate.

        Args:
            length: the new total number of steps.

        Returns:
            Whether the length has been changed. Default: False, the schedule cannot be extended.
        """
        return False

    def ratios(self, t: int) -> list[float | None]:
        """Return the factor of step `t` for each group.

        The factor is :math:`f(t) / f(t-1)`, in the first step :math:`f(0)`; None where :math:`f(t-1) = 0`.
        """
        now = self.multipliers(t)
        before = [1.0] * len(now) if self._is_initial and t == 0 else self.multipliers(t - 1)
        return [1.0 if f == b else f / b if b else None for f, b in zip(now, before, strict=True)]

    def before_update(self) -> None:
        if len(self.base_lrs) < len(self.optimizer.param_groups):
            follow_groups(self)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of this step for each group, see `is_absolute`.

        Like torch's `get_lr`, it warns if it is called outside of `step()`.
        """
        warn_get_lr_outside_step(self)
        return self.next_lrs()

    def next_lrs(self) -> list[float | Tensor]:
        """Return the learning rates of the step to `last_epoch` for each group."""
        if self.is_absolute:
            return self._get_closed_form_lr()
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        t = self.last_epoch
        if self._is_initial and t > 0 and not self.steps_when_resumed:
            return [clone_tensor(lr) for lr in lrs]
        with self._convert_overflow():
            ratios = self.ratios(t)
            distances = self._distances_from_floor(t) if None in ratios else lrs
        new_lrs = [self._next_lr(*group) for group in zip(lrs, ratios, distances, strict=True)]
        with self._convert_overflow():
            if any(isinstance(lr, float) and math.isinf(lr) for lr in new_lrs):
                raise OverflowError
        return new_lrs

    def _next_lr(self, lr: float | Tensor, ratio: float | None, distance: float | Tensor) -> float | Tensor:
        if ratio is None:
            return lr + distance
        return clone_tensor(lr) if ratio == 1 else ratio * (lr - self.floor) + self.floor

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        """Return the learning rates according to the formula. torch calls this in `step(epoch)`."""
        with self._convert_overflow():
            return self.lrs(self.last_epoch)

    def lrs(self, t: int) -> list[float | Tensor]:
        """Return the learning rate of each group after `t` steps, according to the formula."""
        return [self.floor + distance for distance in self._distances_from_floor(t)]

    def _distances_from_floor(self, t: int) -> list[float | Tensor]:
        """Return for each group the distance of its learning rate from the floor, according to the formula."""
        self.include_all_groups()
        return [(base - self.floor) * f for base, f in zip(self.base_lrs, self.multipliers(t), strict=True)]

    def include_all_groups(self) -> None:
        """Extend the schedule to added groups.

        Raises:
            ConfigError: groups were removed.
        """
        follow_groups(self)
        groups = self.optimizer.param_groups
        if len(groups) < len(self.base_lrs):
            raise ConfigError(
                f"{type(self).__name__} has {len(self.base_lrs)} base learning rates, but the optimizer has "
                f"{len(groups)} parameter groups: groups can be added but not removed; add all groups to the optimizer "
                "before you load a checkpoint"
            )

    @contextmanager
    def _convert_overflow(self) -> Iterator[None]:
        """Convert OverflowError to HyperparameterError."""
        try:
            yield
        except OverflowError as error:
            name = type(self).__name__
            raise HyperparameterError(f"{name}: the learning rate overflows at step {self.last_epoch}") from error

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict.

        Raises:
            ConfigError: the state dict was saved by another kind of scheduler.
        """
        check_state(self, state_dict)
        super().load_state_dict(state_dict)
        if not state_dict.get("min_lr_ratio"):
            vars(self).pop("min_lr_ratio", None)


class GeometricLR(ClosedFormLR):
    r"""A schedule that multiplies the learning rate by the same factor: :math:`f(t) = \gamma^{exponent(t)}`.

    Args:
        optimizer: as in `ClosedFormLR`.
        gamma: the factor, :math:`\gamma \ge 0`. Above 1 the learning rate grows.
        last_epoch: as in `ClosedFormLR`.
        min_lr_ratio: the multiplier is not below this number, in [0, 1]. Default: 0.

    Raises:
        HyperparameterError: `gamma` is out of range; and as in `ClosedFormLR`.
        HyperparameterTypeError: `gamma` is not a number; and as in `ClosedFormLR`.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1, *, min_lr_ratio: float = 0.0) -> None:
        self.gamma: float = self.check_number("gamma", gamma)
        super().__init__(optimizer, last_epoch, min_lr_ratio=min_lr_ratio)

    def exponent(self, t: int) -> int:
        """Return the number of times that gamma has been applied after `t` steps."""
        raise NotImplementedError

    def multiplier(self, t: int) -> float:
        return float(self.gamma) ** self.exponent(t)

    def ratios(self, t: int) -> list[float | None]:
        if self.min_lr_ratio:
            return super().ratios(t)
        # A quotient of multipliers would fail once the multiplier has underflowed to 0.
        before = 0 if self._is_initial and t == 0 else self.exponent(t - 1)
        return [float(self.gamma) ** (self.exponent(t) - before)] * len(self.optimizer.param_groups)


def linear_warmup(t: float, steps: int) -> float:
    """Return the factor of a linear warmup after `t` steps: from 1 / `steps` to 1, as `Warmup` by default."""
    return 1.0 if t >= steps else 1 / steps + (1 - 1 / steps) * t / steps


class Unscheduled(ClosedFormLR):
    """A constant learning rate: :math:`lr(t) = base`. It is used for a warmup without a schedule."""

    def multiplier(self, t: int) -> float:
        return 1.0


class ClosedFormAdapter(TorchAdapter):
    """The adapter of closed-form schedules; see `optplug.schedulers.adapters`."""

    @property
    def _floor(self) -> float:
        return float(self.scheduler.floor)

    def extend(self, length: int) -> bool | None:
        schedule: ClosedFormLR = self.scheduler
        return None if type(schedule).extend is ClosedFormLR.extend else schedule.extend(length)

    @property
    def last_step(self) -> int | None:
        return self.scheduler.last_step  # type: ignore[no-any-return]

    def move_to(self, steps: int) -> bool:
        self.scheduler.last_epoch, self.scheduler._step_count = steps, steps + 1
        return True

    def set_base_lrs(self, base_lrs: Sequence[float]) -> None:
        super().set_base_lrs(self.scheduler.base_lrs if self.scheduler.has_own_lrs else base_lrs)

    def _initial_lrs(self, base_lrs: Sequence[float]) -> Sequence[Any]:
        return self.scheduler._get_closed_form_lr()  # type: ignore[no-any-return]

    def apply_settings(
        self, new_state: Mapping[str, Any], base_lrs: Sequence[float], old_base_lrs: Sequence[float]
    ) -> bool:
        super().apply_settings(new_state, base_lrs, old_base_lrs)
        self._load_settings({"min_lr_ratio": 0.0, **new_state})
        groups = self.scheduler.optimizer.param_groups
        if len(groups) == len(self.scheduler.base_lrs):
            for group, lr in zip(groups, self.scheduler._get_closed_form_lr(), strict=True):
                set_lr(group, float(lr))
        self.scheduler.after_update()
        self._update_last_lr()
        return True


adapter_for.register(ClosedFormLR, ClosedFormAdapter)
