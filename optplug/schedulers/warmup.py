"""A linear warmup around any scheduler."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug.errors import ConfigError, ConfigTypeError, number_hint
from optplug.schedulers.checks import check_state, whole_hint
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.lr import copied, set_lr


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
            f"warmup steps must be a whole number of optimizer steps, got {steps!r}{whole_hint(steps)}"
        )
    if steps < least:
        raise ConfigError(f"warmup steps must be at least {least}, got {steps}" + "; leave warmup out for none" * least)


def check_start_factor(start_factor: Any) -> None:
    """Raise ConfigError or ConfigTypeError for what is no first factor of a warmup."""
    if start_factor is None:
        return
    if isinstance(start_factor, bool) or not isinstance(start_factor, (int, float)):
        raise ConfigTypeError(f"warmup start_factor must be a number, got {start_factor!r}{number_hint(start_factor)}")
    if not 0 < start_factor <= 1 or not math.isfinite(start_factor):
        raise ConfigError(f"warmup start_factor must be above 0 and at most 1, got {start_factor}")
