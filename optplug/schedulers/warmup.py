"""`Warmup`: a linear warmup around any scheduler."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug.errors import ConfigError, ConfigTypeError, ErrorCollector, number_hint
from optplug.schedulers.adapters import SchedulerAdapter, adapter_for
from optplug.schedulers.checks import check_state, whole_hint
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.lr import clone_tensor, set_lr


class Warmup(LRScheduler):
    r"""A linear warmup around any scheduler: learning rate = warmup(n) x the learning rate of the inner scheduler.

    The inner scheduler reads and sets learning rates as if there were no warmup.
    :math:`warmup(n) = s + (1 - s) \, n / N` for :math:`n < N`, then 1, where s is the start factor and n is the number
    of optimizer steps taken.

    Call `warmup_step()` after each optimizer step, and `step(...)` where the inner scheduler would be stepped. An inner
    plateau scheduler counts no bad values during the warmup. One `state_dict` contains the state of both.

    Args:
        scheduler: the inner scheduler, already constructed with its optimizer.
        steps: N, the length in optimizer steps, at least 1.
        start_factor: s, in (0, 1]. Default: 1 / N.

    Raises:
        ConfigError: a value is out of range.
        ConfigTypeError: a value has the wrong type.
    """

    warns_if_stuck = False  # True where the caller cannot know whether `warmup_step` will be called

    def __init__(self, scheduler: LRScheduler, steps: int, start_factor: float | None = None) -> None:
        # LRScheduler.__init__ is not called: the inner scheduler has already prepared the optimizer.
        check_warmup(steps, start_factor)
        self.scheduler = scheduler
        self.optimizer: Optimizer = scheduler.optimizer
        self.warmup_steps = steps
        self.start_factor = 1 / steps if start_factor is None else float(start_factor)
        self.steps_taken = 0
        self._step_calls = 0
        self._lrs_without_warmup = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._lrs_with_warmup = list(self._lrs_without_warmup)
        for group in self.optimizer.param_groups:  # a plateau scheduler does not store base learning rates
            group.setdefault("initial_lr", clone_tensor(group["lr"]))
        self._apply_factor()

    @property
    def is_warming_up(self) -> bool:
        """Whether the next optimizer step is part of the warmup."""
        return self.steps_taken < self.warmup_steps

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
        return list(self._lrs_with_warmup)

    def warmup_step(self) -> None:
        """Count one optimizer step."""
        if self.is_warming_up:
            with self._without_warmup():
                self.steps_taken += 1

    def apply_changed_lrs(self) -> None:
        """Multiply learning rates that other code has set since the last step by the current factor."""
        if self.is_warming_up:
            with self._without_warmup():
                pass  # `_without_warmup` reads them

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the inner scheduler with the given arguments, such as the metric of a plateau scheduler.

        With `warns_if_stuck`, a warning is issued if the warmup does not advance, because nothing calls `warmup_step`.
        """
        self._step_calls += 1
        if self.warns_if_stuck and self.is_warming_up and not self.steps_taken and self._step_calls == 2:
            warnings.warn(
                "the warmup does not advance: step() was called twice, and warmup_step() never. Call warmup_step() "
                "after each optimizer step; in Lightning, pass the LightningModule to optplug.configure_optimizers",
                UserWarning,
                stacklevel=2,
            )
        with self._without_warmup(), self._pause_bad_value_count():
            self.scheduler.step(*args, **kwargs)

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
            elif lr != self._lrs_with_warmup[i]:  # other code has set the lr: it is the one without warmup from now on
                self._lrs_without_warmup[i] = lr
            set_lr(group, self._lrs_without_warmup[i])
        try:
            follow_groups(self.scheduler)
            yield
        finally:
            self._lrs_without_warmup = [float(group["lr"]) for group in groups]
            self._apply_factor()

    def _apply_factor(self) -> None:
        """Set the learning rates with warmup."""
        factor = self.factor(self.steps_taken)
        for group, lr in zip(self.optimizer.param_groups, self._lrs_without_warmup, strict=True):
            set_lr(group, lr * factor)
        self._lrs_with_warmup = [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        own = {
            "warmed": self.steps_taken,
            "inner_lrs": list(self._lrs_without_warmup),
            "shown_lrs": list(self._lrs_with_warmup),
            "steps": self.warmup_steps,
            "start_factor": self.start_factor,
        }
        return {"warmup": own, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_state(self, state_dict, ("warmup", "scheduler"))
        own = state_dict["warmup"]
        self.steps_taken = own["warmed"]
        self.warmup_steps = own.get("steps", self.warmup_steps)
        self.start_factor = own.get("start_factor", self.start_factor)
        self._lrs_without_warmup = list(own["inner_lrs"])
        self._lrs_with_warmup = list(own["shown_lrs"])
        self.scheduler.load_state_dict(state_dict["scheduler"])

    def __getattr__(self, name: str) -> Any:
        # Attributes of the inner scheduler (best, num_bad_epochs, T_max) can be read from the warmup.
        if name == "scheduler" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.scheduler, name)


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

    def warmup_step(self) -> None:
        self.scheduler.warmup_step()

    def apply_changed_lrs(self) -> None:
        self.scheduler.apply_changed_lrs()

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

    def apply_settings(self, new_state: Mapping[str, Any], base_lrs: Sequence[float], ratios: Sequence[float]) -> bool:
        warmup = self.scheduler
        with warmup._without_warmup():
            applied = self._inner.apply_settings(new_state["scheduler"], base_lrs, ratios)
            warmup.warmup_steps = new_state["warmup"]["steps"]
            warmup.start_factor = new_state["warmup"]["start_factor"]
        return applied


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
