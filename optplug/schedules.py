"""Learning-rate schedules: the base that drives a closed form, and warmup around any scheduler."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    HyperparameterError,
    HyperparameterTypeError,
    listing,
    number_hint,
)
from optplug.following import OTHERS, follow_groups
from optplug.keywords import CheckedKeywords
from optplug.rates import copied, set_lr


def number(
    owner: object, name: str, value: Any, at_least: float = 0, *, whole: bool = False, noun: str = "a number"
) -> Any:
    """A number that a scheduler was given, as a Python int or float.

    Args:
        owner: the scheduler. name: of the argument. value: what was given.
        at_least: the lower bound. whole: whole numbers only. noun: what it must be, for the message.

    Raises:
        HyperparameterError: below the bound or not finite. HyperparameterTypeError: no number.
    """
    place = f"{type(owner).__name__}: {name} must be"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        hint = _whole_hint(value) if whole else number_hint(value)
        raise HyperparameterTypeError(f"{place} {'a whole number' if whole else noun}, got {value!r}{hint}")
    plain = int(value) if isinstance(value, Integral) else float(value)
    if not math.isfinite(plain):
        raise HyperparameterError(f"{place} finite, got {value}")
    if plain < at_least:
        raise HyperparameterError(f"{place} at least {at_least}, got {value}")
    return plain


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no optimizer, in torch's words and type."""
    if not isinstance(optimizer, Optimizer):
        raise ConfigTypeError(f"{type(optimizer).__name__} is not an Optimizer")


class ClosedFormLR(CheckedKeywords, LRScheduler):
    r"""A schedule defined by :meth:`multiplier`: :math:`lr(t) = floor + (base - floor) \, f(t)`.

    Each step multiplies the group's *current* distance from the floor by :math:`f(t) / f(t-1)`, so that several
    schedulers on one optimizer compose; where :math:`f(t-1) = 0` it adds :math:`(base - floor) \, f(t)`.

    Groups that are added to the optimizer are followed, see `optplug.following.follow_groups`. With a floor of 0 a new
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
        super().__init__(optimizer, number(self, "last_epoch", last_epoch, -1, whole=True))

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
        self.gamma: float = number(self, "gamma", gamma)
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


def warn_by_hand(scheduler: LRScheduler) -> None:
    """Give torch's warning about `get_lr()` outside of a step."""
    if not scheduler._get_lr_called_within_step:
        warnings.warn(
            "To get the last learning rate computed by the scheduler, please use `get_last_lr()`.",
            UserWarning,
            stacklevel=3,
        )


TELLING = frozenset(
    {"T_0", "T_max", "best", "eta_min", "gamma", "lr_lambdas", "max_lrs", "milestones", "num_bad_epochs", "power"}
    | {"start_factor", "step_size", "total_iters", "total_steps"}
)
"""What torch's schedulers keep and by which they are told apart. Anything else a scheduler may gain or lose in time."""


def check_state(scheduler: LRScheduler, state_dict: Mapping[str, Any], needed: Collection[str] | None = None) -> None:
    """Refuse the state of another kind of scheduler, which torch would take over key by key.

    Args:
        needed: keys that are enough to tell. Default: `last_epoch`, `base_lrs`, and of `TELLING` what the scheduler
            keeps itself, and nothing else.
    """
    own = TELLING & set(scheduler.state_dict())
    strange = set() if needed is not None else (TELLING & set(state_dict)) - own
    if strange or not set(needed or {"last_epoch", "base_lrs", *own}) <= set(state_dict):
        had = "a warmup, and this one has none" if "warmup" in state_dict else f"the keys {listing(sorted(state_dict))}"
        raise ConfigError(
            f"the checkpoint's scheduler is no {type(scheduler).__name__}: it has {had}. "
            "Resume with the schedule of the checkpoint, or start anew"
        )


POSITION = frozenset(
    {"last_epoch", "_step_count", "_is_initial", "_last_lr", "_get_lr_called_within_step", "best", "num_bad_epochs"}
    | {"cooldown_counter", "base_lrs", "position", "elapsed"}
)
"""What a scheduler keeps about where it is; the rest is about what it does."""


def overruled(
    scheduler: LRScheduler, fresh: Mapping[str, Any], bases: Sequence[float], ratios: Sequence[float]
) -> bool:
    """Give a restored scheduler the settings of a fresh one, and leave it where it is.

    Args:
        scheduler: restored.
        fresh: the `state_dict` it had before it was restored.
        bases: the base rates to be, by group. ratios: what they are to the base rates of the checkpoint.

    Returns:
        Whether its settings could be had; a scheduler of somebody else's keeps its own, and follows the base rates.
    """
    if isinstance(scheduler, Warmup):
        with scheduler._without_warmup():
            done = overruled(scheduler.scheduler, fresh["scheduler"], bases, ratios)
            scheduler.warmup_steps = fresh["warmup"]["steps"]
            scheduler.start_factor = fresh["warmup"]["start_factor"]
        return done
    groups = scheduler.optimizer.param_groups
    for group, ratio in zip(groups, ratios, strict=False):
        set_lr(group, float(group["lr"]) * ratio)
    state = scheduler.state_dict()
    if "base_lrs" in state:
        scheduler.base_lrs = [*bases, *state["base_lrs"][len(bases) :]]
    ours = isinstance(scheduler, (ClosedFormLR, ReduceLROnPlateau))
    if ours:
        settings = {key: value for key, value in fresh.items() if key not in POSITION}
        for key in settings.keys() & set(OTHERS):  # of groups that were added before the checkpoint
            settings[key] = [*settings[key], *settings[key][-1:] * (len(groups) - len(settings[key]))]
        scheduler.load_state_dict({**scheduler.state_dict(), **settings})
    if isinstance(scheduler, ClosedFormLR) and len(groups) == len(scheduler.base_lrs):
        for group, lr in zip(groups, scheduler._get_closed_form_lr(), strict=True):
            set_lr(group, float(lr))
    scheduler._last_lr = [float(group["lr"]) for group in groups]
    return ours


def rebased(scheduler: LRScheduler, bases: Sequence[float]) -> None:
    """Give a scheduler that has not been stepped other base rates."""
    if isinstance(scheduler, Warmup):
        scheduler._inner_lrs = list(bases)
        scheduler._shown_lrs = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
        with scheduler._without_warmup():
            rebased(scheduler.scheduler, bases)
        return
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = list(bases)
    lrs = scheduler._get_closed_form_lr() if isinstance(scheduler, ClosedFormLR) else bases
    for group, base, lr in zip(scheduler.optimizer.param_groups, bases, lrs, strict=True):
        group["initial_lr"] = base
        set_lr(group, float(lr))
    scheduler._last_lr = [float(group["lr"]) for group in scheduler.optimizer.param_groups]


class Warmup(LRScheduler):
    r"""Any scheduler with a linear warmup: learning rate = warmup(step) x the scheduler's own learning rate.

    The scheduler inside never sees the warmup: it reads and sets rates as if there were none. :math:`warmup(n) =
    s + (1 - s) \, n / N` for :math:`n < N`, then 1, where s is the start factor and n counts optimizer steps.

    Args:
        scheduler: the scheduler inside, already built on its optimizer.
        steps: N, in optimizer steps, at least 1.
        start_factor: s, in (0, 1]. Default: 1 / N.

    Raises:
        ConfigError: a value out of range. ConfigTypeError: of the wrong type.

    `warmup_step()` belongs after each optimizer step, `step(...)` where the scheduler inside would be stepped. A
    plateau inside counts no bad values while warming up. Everything is in one `state_dict`.
    """

    def __init__(self, scheduler: LRScheduler, steps: int, start_factor: float | None = None) -> None:
        # Not LRScheduler.__init__: the scheduler inside has prepared the optimizer already.
        check_warmup(steps, start_factor)
        self.scheduler = scheduler
        self.optimizer: Optimizer = scheduler.optimizer
        self.warmup_steps = steps
        self.start_factor = 1 / steps if start_factor is None else float(start_factor)
        self.warmed = 0
        self._inner_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._shown_lrs = list(self._inner_lrs)
        for group in self.optimizer.param_groups:  # a plateau keeps no base rates
            group.setdefault("initial_lr", copied(group["lr"]))
        self._show()

    @property
    def warming(self) -> bool:
        """Whether the next optimizer step is still part of the warmup."""
        return self.warmed < self.warmup_steps

    def factor(self, n: int) -> float:
        """warmup(n) after n optimizer steps."""
        return 1.0 if n >= self.warmup_steps else self.start_factor + (1 - self.start_factor) * n / self.warmup_steps

    @property
    def last_epoch(self) -> int:
        return self.scheduler.last_epoch

    @last_epoch.setter
    def last_epoch(self, value: int) -> None:
        self.scheduler.last_epoch = value

    @property
    def base_lrs(self) -> list[float | Tensor]:  # type: ignore[override]  # the scheduler inside has them
        return self.scheduler.base_lrs

    def get_last_lr(self) -> list[float | Tensor]:
        return list(self._shown_lrs)

    def warmup_step(self) -> None:
        """Count one optimizer step."""
        if self.warming:
            with self._without_warmup():
                self.warmed += 1

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the scheduler inside; arguments are its own (a plateau's metric)."""
        with self._without_warmup(), self._lenient():
            self.scheduler.step(*args, **kwargs)

    def follow_groups(self) -> None:
        """Take up groups that were added since; the rates they have are those without warmup."""
        if len(self._inner_lrs) < len(self.optimizer.param_groups):
            with self._without_warmup():
                pass  # which does it

    @contextmanager
    def _lenient(self) -> Iterator[None]:
        """While warming up a plateau counts no bad values, but remembers the best."""
        plateau = self.scheduler
        if not (self.warming and isinstance(plateau, ReduceLROnPlateau)):
            yield
            return
        patience, plateau.patience = plateau.patience, sys.maxsize
        try:
            yield
        finally:
            plateau.patience = patience
            plateau.num_bad_epochs = 0

    @contextmanager
    def _without_warmup(self) -> Iterator[None]:
        """Let the groups hold the inner rates for a while."""
        groups = self.optimizer.param_groups
        now = self.factor(self.warmed)
        for i, group in enumerate(groups):
            lr = float(group["lr"])
            if i == len(self._inner_lrs):  # a group added since, with its rate without warmup
                self._inner_lrs.append(lr)
            elif lr != self._shown_lrs[i]:  # somebody else set the rate: that is the rate as it is now
                self._inner_lrs[i] = lr / now
            set_lr(group, self._inner_lrs[i])
        try:
            follow_groups(self.scheduler)
            yield
        finally:
            self._inner_lrs = [float(group["lr"]) for group in groups]
            self._show()

    def _show(self) -> None:
        now = self.factor(self.warmed)
        for group, lr in zip(self.optimizer.param_groups, self._inner_lrs, strict=True):
            set_lr(group, lr * now)
        self._shown_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        own = {"warmed": self.warmed, "inner_lrs": list(self._inner_lrs), "shown_lrs": list(self._shown_lrs)}
        own |= {"steps": self.warmup_steps, "start_factor": self.start_factor}
        return {"warmup": own, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_state(self, state_dict, ("warmup", "scheduler"))
        own = state_dict["warmup"]
        self.warmed = own["warmed"]
        self.warmup_steps = own.get("steps", self.warmup_steps)
        self.start_factor = own.get("start_factor", self.start_factor)
        self._inner_lrs = list(own["inner_lrs"])
        self._shown_lrs = list(own["shown_lrs"])
        self.scheduler.load_state_dict(state_dict["scheduler"])

    def __getattr__(self, name: str) -> Any:
        # What the scheduler inside tells (best, num_bad_epochs, T_max) is asked of the whole.
        if name == "scheduler" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.scheduler, name)


def check_warmup(steps: Any, start_factor: Any) -> None:
    """Raise ConfigError or ConfigTypeError for what `Warmup` cannot take."""
    check_warmup_steps(steps)
    check_start_factor(start_factor)


def check_warmup_steps(steps: Any, least: int = 1) -> None:
    """Raise ConfigError or ConfigTypeError for what is no number of steps, at least `least`."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise ConfigTypeError(
            f"warmup steps must be a whole number of optimizer steps, got {steps!r}{_whole_hint(steps)}"
        )
    if steps < least:
        raise ConfigError(f"warmup steps must be at least {least}, got {steps}" + "; leave warmup out for none" * least)


def _whole_hint(value: Any) -> str:
    """`; write 1000` for what is a whole number in another form."""
    try:
        number = float(value) if isinstance(value, (str, float)) else math.nan
    except ValueError:
        number = math.nan
    return f"; write {int(number)}" if number.is_integer() else ""


def check_start_factor(start_factor: Any) -> None:
    """Raise ConfigError or ConfigTypeError for what is no first factor of a warmup."""
    if start_factor is None:
        return
    if isinstance(start_factor, bool) or not isinstance(start_factor, (int, float)):
        raise ConfigTypeError(f"warmup start_factor must be a number, got {start_factor!r}{number_hint(start_factor)}")
    if not 0 < start_factor <= 1 or not math.isfinite(start_factor):
        raise ConfigError(f"warmup start_factor must be above 0 and at most 1, got {start_factor}")
