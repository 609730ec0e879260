"""`Warmup`: a linear warmup around any scheduler."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from optplug.errors import ConfigError, ConfigTypeError, ErrorCollector, number_hint
from optplug.schedulers.adapters import SchedulerAdapter, adapter_for
from optplug.schedulers.checks import check_state, whole_hint
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.lr import clone_tensor, set_lr

_ABSOLUTE = (LambdaLR, CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR)
"""Schedulers that do not compute a learning rate from the current one."""

_STEP_HOOKS = "_optplug_warmup_hooks"
"""The attribute of an optimizer that has the step hooks of its newest warmup."""


class Warmup(LRScheduler):
    r"""A linear warmup around any scheduler: learning rate = warmup(n) x the learning rate of the inner scheduler.

    The inner scheduler reads and sets learning rates as if there were no warmup.
    :math:`warmup(n) = s + (1 - s) \, n / N` for :math:`n < N`, then 1, where s is the start factor and n is the number
    of optimizer steps taken.

    With `delays_schedule` the inner scheduler starts when the warmup ends: until then `step(...)` does not step it. If
    the warmup ends between two calls of `step(...)`, the inner scheduler starts at the second one: its first step is
    the call after that. Without it, the inner scheduler also advances during the warmup.

    Call `step(...)` where the inner scheduler would be stepped, and `warmup_step()` after each optimizer step. With
    `counts_steps`, the warmup counts the optimizer steps itself, so that `step(...)` alone is sufficient: in a plain
    training loop, whether it steps the schedule after each optimizer step, each epoch or each validation. A `step()`
    without arguments counts as one optimizer step if there was none since the last `step()`.

    An inner plateau scheduler counts no bad values during the warmup. One `state_dict` contains the state of both.

    Args:
        scheduler: the inner scheduler, already constructed with its optimizer.
        steps: N, the length in optimizer steps, at least 1.
        start_factor: s, in (0, 1]. Default: 1 / N.
        delays_schedule: whether the inner scheduler starts when the warmup ends. A plateau scheduler is always stepped.
            Default: False.
        counts_steps: whether the warmup counts the steps of its optimizer, with step hooks of the optimizer. The newest
            such warmup of an optimizer replaces the hooks of the others. Default: False.
        interval: with `counts_steps`, the interval at which `step` is called: `"step"` (optimizer steps), or another
            one. After two calls of `step()` the warmup knows which it is. Default: `"step"`.

    Attributes:
        other_schedulers: further schedulers of the optimizer, if the caller knows them. A learning rate that one of
            them has multiplied still contains the warmup factor.
        lrs_from_outside: by the index of its group, the learning rate that other code has set last during the warmup.
            It is taken as the one without warmup.

    Raises:
        ConfigError: a value is out of range.
        ConfigTypeError: a value has the wrong type.
    """

    def __init__(
        self,
        scheduler: LRScheduler,
        steps: int,
        start_factor: float | None = None,
        *,
        delays_schedule: bool = False,
        counts_steps: bool = False,
        interval: str = "step",
    ) -> None:
        # LRScheduler.__init__ is not called: the inner scheduler has already prepared the optimizer.
        check_warmup(steps, start_factor)
        self.scheduler = scheduler
        self.optimizer: Optimizer = scheduler.optimizer
        self.warmup_steps = steps
        self.start_factor = 1 / steps if start_factor is None else float(start_factor)
        self.delays_schedule = delays_schedule
        # These count on after the warmup: a resume may change its length, and when the inner scheduler starts.
        self._optimizer_steps: float = 0  # infinite: the warmup has ended, and the number is not known
        self._calls: float = 0  # of `step()`; NaN: not known
        self._steps_at_call: float = 0  # optimizer steps at the last `step()`
        self.counts_steps = counts_steps
        self.other_schedulers: Sequence[Any] = ()
        self.lrs_from_outside: dict[int, float] = {}
        self._steps_since = 0  # optimizer steps since the last `step()`
        # Whether the loop calls `step()` less often than the optimizer's. If so, the rate changes right after each
        # optimizer step. Else it changes in `step()`, as with any scheduler: until then a logger reads the last rate.
        self._steps_less_often = interval != "step"
        # After the first optimizer step it is not certain whether `step()` follows.
        self._lrs_of_first_step: list[float] = []
        self._lrs_without_warmup = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._lrs_with_warmup = list(self._lrs_without_warmup)
        # Those of a state dict loaded into the optimizer. Nobody has set them: the warmup continues with its own.
        self._loaded_lrs: list[float] = []
        for group in self.optimizer.param_groups:  # a plateau scheduler does not store base learning rates
            group.setdefault("initial_lr", clone_tensor(group["lr"]))
        self._apply_factor()
        self._register_hooks()

    @property
    def steps_taken(self) -> int:
        """The number of optimizer steps taken in the warmup."""
        return int(min(self._optimizer_steps, self.warmup_steps))

    @property
    def is_warming_up(self) -> bool:
        """Whether the next optimizer step is part of the warmup."""
        return self._optimizer_steps < self.warmup_steps

    @property
    def _had_ended(self) -> bool:
        """Whether the warmup had ended at the last `step()`."""
        return self._steps_at_call >= self.warmup_steps

    def schedule_steps(self) -> int | None:
        """The number of steps of the inner scheduler, had the warmup had its settings of now from the start.

        `step()` is taken to have been called at equal numbers of optimizer steps. None if its calls are not known.
        """
        if math.isnan(self._calls):
            return None
        waited = 0
        if self.delays_schedule and self._calls:
            waited = math.ceil(self.warmup_steps * self._calls / self._steps_at_call)
        return max(0, int(self._calls) - waited)

    def factor(self, n: int) -> float:
        """Return warmup(n), the factor after n optimizer steps."""
        return 1.0 if n >= self.warmup_steps else self.start_factor + (1 - self.start_factor) * n / self.warmup_steps

    @property
    def last_epoch(self) -> int:
        return self.scheduler.last_epoch

    @last_epoch.setter
    def last_epoch(self, value: int) -> None:
        self.scheduler.last_epoch = value

    @property
    def base_lrs(self) -> list[float | Tensor]:  # type: ignore[override]  # read from the inner scheduler
        return self.scheduler.base_lrs

    def get_last_lr(self) -> list[float | Tensor]:
        return list(self._lrs_of_first_step or self._lrs_with_warmup)

    def warmup_step(self) -> None:
        """Count one optimizer step. From then on the caller counts them all, also with `counts_steps`."""
        if self.counts_steps:
            self.counts_steps = False
            if self._steps_less_often and self._steps_since:
                return  # this step has been counted
        self._add_steps(1)

    def apply_changed_lrs(self) -> None:
        """Multiply learning rates that other code has set since the last step by the current factor."""
        if self.is_warming_up:
            with self._without_warmup():
                pass  # `_without_warmup` reads them, and adds new groups

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the inner scheduler with the given arguments, such as the metric of a plateau scheduler.

        With `delays_schedule`, nothing is stepped before the call after the one at which the warmup has ended.
        """
        if self.counts_steps:
            self._count_at_step(takes_metric=bool(args or kwargs))
        waits = self.delays_schedule and not self._had_ended and not isinstance(self.scheduler, ReduceLROnPlateau)
        self._calls, self._steps_at_call = self._calls + 1, self._optimizer_steps
        with self._without_warmup(), self._pause_bad_value_count():
            if not waits:
                self.scheduler.step(*args, **kwargs)

    def _add_steps(self, steps: int) -> None:
        if not self.is_warming_up:
            self._optimizer_steps += steps
        elif steps:
            with self._without_warmup():
                self._optimizer_steps += steps

    # ------------------------------------------------------------------ hooks of the optimizer

    def _after_load_state_dict(self) -> None:
        if self.is_warming_up:
            self._loaded_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]

    def _register_hooks(self) -> None:
        optimizer: Any = self.optimizer
        with suppress(AttributeError):  # an optimizer without hooks, such as a wrapper of another library
            optimizer.register_load_state_dict_post_hook(_Hook(self, "_after_load_state_dict"))
            if self.counts_steps:
                for hook in vars(optimizer).get(_STEP_HOOKS, ()):  # two warmups would set the rates in turn
                    hook.detach()
                before, after = _Hook(self, "_before_optimizer_step"), _Hook(self, "_after_optimizer_step")
                optimizer.register_step_pre_hook(before)
                optimizer.register_step_post_hook(after)
                setattr(optimizer, _STEP_HOOKS, (before, after))

    def _before_optimizer_step(self) -> None:
        if self.counts_steps and self._steps_since and not self._steps_less_often:
            self._steps_less_often = True
            self._add_steps(self._steps_since)
        self._lrs_of_first_step = []
        self.apply_changed_lrs()
        self.follow_groups()

    def _after_optimizer_step(self) -> None:
        if self.counts_steps and not step_was_skipped(self.optimizer):
            self._steps_since += 1
            if self._steps_less_often:
                if not self._optimizer_steps:
                    self._lrs_of_first_step = list(self._lrs_with_warmup)
                self._add_steps(1)

    def _count_at_step(self, takes_metric: bool) -> None:
        steps = self._steps_since if takes_metric else max(self._steps_since, 1)
        if not self._steps_less_often or not self._steps_since:
            self._add_steps(steps)
        if not takes_metric:
            self._steps_less_often = steps > 1
        self._steps_since, self._lrs_of_first_step = 0, []

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied warmup. The copy of an optimizer has no hooks."""
        vars(self).update(state)
        self._register_hooks()

    def follow_groups(self) -> None:
        """Extend the warmup to groups that were added to the optimizer. Their `lr` is the one without warmup."""
        if len(self._lrs_without_warmup) < len(self.optimizer.param_groups):
            with self._without_warmup():
                pass  # `_without_warmup` adds the new groups

    @contextmanager
    def _pause_bad_value_count(self) -> Iterator[None]:
        """During the warmup, let a plateau scheduler update its best value but not count bad values."""
        plateau = self.scheduler
        if not (self.is_warming_up and isinstance(plateau, ReduceLROnPlateau)):
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
        """Within this context, the groups have the learning rates without warmup."""
        groups = self.optimizer.param_groups
        for i, group in enumerate(groups):
            lr = float(group["lr"])
            if i == len(self._lrs_without_warmup):  # a new group, whose lr is the one without warmup
                self._lrs_without_warmup.append(lr)
            elif lr != self._lrs_with_warmup[i] and [lr] != self._loaded_lrs[i : i + 1]:
                self._lrs_without_warmup[i] = self._changed_lr(i, lr)
            set_lr(group, self._lrs_without_warmup[i])
        try:
            follow_groups(self.scheduler)
            yield
        finally:
            self._lrs_without_warmup = [float(group["lr"]) for group in groups]
            self._apply_factor()

    def _changed_lr(self, i: int, lr: float) -> float:
        """The learning rate without warmup of a group whose `lr` other code has changed."""
        shown = self._lrs_with_warmup[i]
        writer = next((scheduler for scheduler in self.other_schedulers if _last_lr(scheduler, i) == lr), None)
        if writer is None and self.is_warming_up:
            self.lrs_from_outside[i] = lr
        is_absolute = isinstance(writer, _ABSOLUTE) or getattr(writer, "is_absolute", False)
        is_multiple = writer is not None and not is_absolute
        return self._lrs_without_warmup[i] * lr / shown if is_multiple and shown else lr

    def _apply_factor(self) -> None:
        """Set the learning rates with warmup."""
        factor = self.factor(self.steps_taken)
        for group, lr in zip(self.optimizer.param_groups, self._lrs_without_warmup, strict=True):
            set_lr(group, lr * factor)
        self._loaded_lrs = []
        self._lrs_with_warmup = [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        own = {
            "warmed": self.steps_taken,
            "optimizer_steps": self._optimizer_steps,
            "calls": self._calls,
            "steps_at_call": self._steps_at_call,
            "inner_lrs": list(self._lrs_without_warmup),
            "shown_lrs": list(self._lrs_with_warmup),
            "steps": self.warmup_steps,
            "start_factor": self.start_factor,
        }
        if self.delays_schedule:
            own |= {"delays_schedule": True, "had_ended": self._had_ended}
        if self.counts_steps:
            own |= {"steps_since": self._steps_since, "steps_less_often": self._steps_less_often}
        return {"warmup": own, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_state(self, state_dict, ("warmup", "scheduler"))
        own = state_dict["warmup"]
        self.warmup_steps = own.get("steps", self.warmup_steps)
        self.start_factor = own.get("start_factor", self.start_factor)
        self.delays_schedule = own.get("delays_schedule", False)
        # Older versions of optplug stored no counts after the warmup.
        has_ended = own["warmed"] >= self.warmup_steps
        self._optimizer_steps = own.get("optimizer_steps", math.inf if has_ended else own["warmed"])
        self._calls = own.get("calls", math.nan)
        self._steps_at_call = own.get("steps_at_call", math.inf if own.get("had_ended", has_ended) else 0)
        self._lrs_without_warmup = list(own["inner_lrs"])
        self._lrs_with_warmup = list(own["shown_lrs"])
        self._loaded_lrs = []
        self._steps_since = own.get("steps_since", 0)
        self._steps_less_often = own.get("steps_less_often", self._steps_less_often)
        self.scheduler.load_state_dict(state_dict["scheduler"])

    def __getattr__(self, name: str) -> Any:
        # Attributes of the inner scheduler (best, num_bad_epochs, T_max) can be read from the warmup.
        if name == "scheduler" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.scheduler, name)


def _last_lr(scheduler: Any, i: int) -> float | None:
    """The learning rate that a scheduler has set last in a group."""
    try:
        return float(scheduler.get_last_lr()[i])
    except (AttributeError, IndexError):  # a plateau scheduler that has not been stepped; a group added later
        return None


class _Hook:
    """A hook of an optimizer, which calls a method of a warmup.

    The reference is weak: the optimizer does not keep the warmup, which refers to the optimizer. Where a copy of an
    optimizer has a copy of the hook, that one calls nothing.
    """

    def __init__(self, warmup: Warmup | None, method: str) -> None:
        self._warmup: Callable[[], Warmup | None] = (lambda: None) if warmup is None else ref(warmup)
        self._method = method

    def detach(self) -> None:
        """Call nothing from now on."""
        self._warmup = lambda: None

    def __call__(self, *_: Any) -> None:
        warmup = self._warmup()
        if warmup is not None:
            getattr(warmup, self._method)()

    def __reduce__(self) -> tuple[type, tuple[None, str]]:
        return type(self), (None, self._method)


def step_was_skipped(optimizer: Any) -> bool:
    """Whether the optimizer's last step changed nothing, since a gradient scaler had found an overflow.

    A gradient scaler calls a fused optimizer in any case; the optimizer skips the step itself.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(float(found_inf))


class WarmupAdapter(SchedulerAdapter):
    """The adapter of a warmup; see `optplug.schedulers.adapters`. The inner scheduler provides most answers."""

    scheduler: Warmup

    def __init__(self, scheduler: Warmup) -> None:
        super().__init__(scheduler)
        self._inner = adapter_for(scheduler.scheduler)

    @property
    def step_count(self) -> int | None:
        return self._inner.step_count

    @property
    def last_step(self) -> int | None:
        return self._inner.last_step

    def length(self, argument: str, default: int) -> int:
        return self._inner.length(argument, default)

    @property
    def needs_argument(self) -> bool:
        return self._inner.needs_argument

    @property
    def warmups(self) -> Sequence[Any]:
        return [self.scheduler]

    def extend(self, length: int) -> bool | None:
        return self._inner.extend(length)

    def warmup_step(self) -> None:
        self.scheduler.warmup_step()

    @property
    def best(self) -> float | None:
        return self._inner.best

    @property
    def mode(self) -> str | None:
        return self._inner.mode

    def restart_with_mode(self, mode: str) -> None:
        self._inner.restart_with_mode(mode)

    def set_base_lrs(self, base_lrs: Sequence[float]) -> None:
        warmup = self.scheduler
        warmup._lrs_without_warmup = list(base_lrs)
        warmup._lrs_with_warmup = [float(group["lr"]) for group in warmup.optimizer.param_groups]
        with warmup._without_warmup():
            self._inner.set_base_lrs(base_lrs)

    def apply_settings(
        self, new_state: Mapping[str, Any], base_lrs: Sequence[float], old_base_lrs: Sequence[float]
    ) -> bool:
        warmup = self.scheduler
        with warmup._without_warmup():
            start = self._schedule_start
            warmup.warmup_steps = new_state["warmup"]["steps"]
            warmup.start_factor = new_state["warmup"]["start_factor"]
            warmup.delays_schedule = new_state["warmup"].get("delays_schedule", False)
            if start != self._schedule_start:
                self._move_schedule()
            return self._inner.apply_settings(new_state["scheduler"], base_lrs, old_base_lrs)

    @property
    def _schedule_start(self) -> int:
        """The number of optimizer steps after which the inner scheduler starts."""
        is_plateau = isinstance(self.scheduler.scheduler, ReduceLROnPlateau)
        return self.scheduler.warmup_steps if self.scheduler.delays_schedule and not is_plateau else 0

    def _move_schedule(self) -> None:
        """Give the inner scheduler the position that it would have if it had always started where it does now.

        Raises:
            ConfigError: that position is not known, or the scheduler cannot be set to it.
        """
        steps = self.scheduler.schedule_steps()
        if steps is None or not (steps == self._inner.step_count or self._inner.move_to(steps)):
            reason = "the number of its steps so far is not known" if steps is None else "it has no closed form"
            raise ConfigError(
                f"the checkpoint has another warmup, with which {type(self.scheduler.scheduler).__name__} started at "
                f"another step, and {reason}: keep the warmup, or set on_resume: reset_scheduler"
            )


adapter_for.register(Warmup, WarmupAdapter)


def check_warmup(steps: Any, start_factor: Any) -> None:
    """Check the arguments of `Warmup`.

    Raises:
        ConfigError: a value is out of range.
        ConfigTypeError: a value has the wrong type.
    """
    collector = ErrorCollector()
    with collector.collect():
        check_warmup_steps(steps)
    with collector.collect():
        check_start_factor(start_factor)
    collector.raise_joined()


def check_warmup_steps(steps: Any) -> None:
    """Check the length of a warmup in optimizer steps.

    Raises:
        ConfigError: the length is below 1.
        ConfigTypeError: the length is not a whole number.
    """
    if isinstance(steps, bool) or not isinstance(steps, int):
        message = f"warmup steps must be a whole number of optimizer steps, got {steps!r}{whole_hint(steps)}"
        raise ConfigTypeError(message, argument="steps")
    if steps < 1:
        message = f"warmup steps must be at least 1, got {steps}; to train without warmup, omit it"
        raise ConfigError(message, argument="steps")


def check_start_factor(start_factor: Any) -> None:
    """Check the start factor of a warmup; None is allowed.

    Raises:
        ConfigError: the start factor is not in (0, 1].
        ConfigTypeError: the start factor is not a number.
    """
    if start_factor is None:
        return
    if isinstance(start_factor, bool) or not isinstance(start_factor, (int, float)):
        message = f"warmup start_factor must be a number, got {start_factor!r}{number_hint(start_factor)}"
        raise ConfigTypeError(message, argument="start_factor")
    if not 0 < start_factor <= 1 or not math.isfinite(start_factor):
        message = f"warmup start_factor must be above 0 and at most 1, got {start_factor}"
        raise ConfigError(message, argument="start_factor")
