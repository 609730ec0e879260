"""Reduce on plateau: the one schedule that has no closed form, since it listens to a metric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat

from torch.optim import Optimizer, lr_scheduler

from optplug.errors import HyperparameterError, WiringError
from optplug.optim.strict_kwargs import CheckedKeywords
from optplug.schedulers.checks import check_optimizer, check_state, checked_number
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.lr import set_lr


class ReduceLROnPlateau(CheckedKeywords, lr_scheduler.ReduceLROnPlateau):
    """Multiply the learning rates by `factor` when a metric has not improved for more than `patience` steps.

    Args:
        optimizer: whose groups' learning rates to cut.
        mode: `"min"` when a lower metric is better, `"max"` when a higher one is.
        factor: in [0, 1).
        patience: steps without improvement that are tolerated, at least 0.
        threshold: how much better counts as better, at least 0; relative to the best value or absolute.
        threshold_mode: `"rel"`: better than best * (1 -+ threshold); `"abs"`: better than best -+ threshold.
        cooldown: steps after a cut during which bad values do not count, at least 0.
        min_lr: lower bound of the learning rates, one for all groups or a list with one for each, the last for
            groups that are added later, too.
        eps: cuts smaller than this are not made.
        verbose: documented once and gone from torch; ignored, with a DeprecationWarning.

    Raises:
        HyperparameterError: a value out of range. HyperparameterTypeError: of the wrong type; a misspelt keyword.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    Under Lightning one step is one completed validation (or one epoch, for a training metric); what `patience` and
    `cooldown` count may be something else, which `at` says. It is torch's class by descent, because Lightning asks for
    that; everything it does is written here.
    """

    position = 0  # of the last step, as `at` said
    elapsed = 1  # what a step counts for

    cases = (
        {"patience": 1},
        {"patience": 0, "cooldown": 2, "factor": 0.5},
        {"patience": 2, "mode": "max", "threshold_mode": "abs", "min_lr": 1e-3},
    )

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
        verbose: bool | None = None,
    ) -> None:
        self.factor = checked_number(self, "factor", factor)
        self.patience = checked_number(self, "patience", patience)
        self.cooldown = checked_number(self, "cooldown", cooldown)
        self.eps = checked_number(self, "eps", eps)
        self._init_is_better(mode, checked_number(self, "threshold", threshold), threshold_mode)
        many = isinstance(min_lr, (list, tuple))
        given: Sequence[Any] = min_lr if isinstance(min_lr, (list, tuple)) else [min_lr]
        lowest = [checked_number(self, f"min_lr[{i}]" if many else "min_lr", lr) for i, lr in enumerate(given)]
        if factor >= 1.0:
            raise HyperparameterError(f"Factor should be < 1.0. ReduceLROnPlateau got factor {factor}")
        if mode not in ("min", "max"):
            raise HyperparameterError(f"mode {mode} is unknown! ReduceLROnPlateau knows 'min' and 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise HyperparameterError(f"threshold mode {threshold_mode} is unknown! It knows 'rel' and 'abs'")
        if verbose is not None:
            warnings.warn("verbose does nothing: torch has removed it", DeprecationWarning, stacklevel=2)
        check_optimizer(optimizer)

        groups = optimizer.param_groups
        if many and len(lowest) != len(groups):
            raise HyperparameterError(
                f"expected {len(groups)} min_lrs, got {len(lowest)}: ReduceLROnPlateau takes one min_lr for all "
                "groups, or a list with one for each"
            )
        self.optimizer = optimizer
        self.default_min_lr: Any = None if many else lowest[0]
        self.min_lrs = lowest if many else lowest * len(groups)
        self.last_epoch = 0
        self._last_lr = [float(group["lr"]) for group in groups]
        self._reset()

    def _init_is_better(self, mode: str, threshold: float, threshold_mode: str) -> None:
        self.mode = mode
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.mode_worse = math.inf if mode == "min" else -math.inf

    def _reset(self) -> None:
        self.best = self.mode_worse
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    def at(self, position: int) -> None:
        """Say where the next step is, in the unit of `patience`; without it each step counts one.

        Args:
            position: in epochs, optimizer steps or whatever is to be counted, since the training began. The next step
                counts what has passed since the position before, and nothing where that was further on.
        """
        self.elapsed = max(position - self.position, 0)
        self.position = position

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take one value of the metric into account.

        Args:
            metrics: the value, a number or a 1-element tensor.
            epoch: deprecated, with torch's warning: overrides the count of steps.
        """
        if epoch is not None:
            warnings.warn(lr_scheduler.EPOCH_DEPRECATION_WARNING, UserWarning, stacklevel=2)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch

        value = float(metrics)
        better = self._is_better(value, self.best)
        if better:
            self.best = value
        cooling = self.in_cooldown
        if cooling:
            self.cooldown_counter = max(self.cooldown_counter - self.elapsed, 0)
        self.num_bad_epochs = 0 if better or cooling else self.num_bad_epochs + self.elapsed
        if "elapsed" in vars(self):  # it was said of this step alone
            self.elapsed = 1
        if self.num_bad_epochs > self.patience:
            self._reduce_lr(self.last_epoch)
            self.num_bad_epochs, self.cooldown_counter = 0, self.cooldown
        self._last_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def in_cooldown(self) -> bool:
        return self.cooldown_counter > 0

    def _is_better(self, value: float, best: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        bound: float = (
            best * (1 + sign * self.threshold) if self.threshold_mode == "rel" else best + sign * self.threshold
        )
        return value < bound if self.mode == "min" else value > bound

    def _reduce_lr(self, epoch: int) -> None:
        follow_groups(self)
        groups = self.optimizer.param_groups
        if len(groups) < len(self.min_lrs):  # groups were removed
            if self.default_min_lr is None:
                raise WiringError(
                    f"The number of param groups in the `optimizer` ({len(groups)}) differs from when "
                    f"`ReduceLROnPlateau` was initialized ({len(self.min_lrs)}): make `min_lrs` as long"
                )
            self.min_lrs = [self.default_min_lr] * len(groups)
        for group, lowest in zip(groups, self.min_lrs, strict=True):
            old = float(group["lr"])
            new = max(old * self.factor, lowest)
            if old - new > self.eps:
                set_lr(group, new)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer, as plain numbers and text."""
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict`, of this class or of torch's; ConfigError for that of another kind of scheduler."""
        check_state(self, state_dict, ("best", "num_bad_epochs"))
        self.__dict__.update(state_dict)
        self._init_is_better(self.mode, self.threshold, self.threshold_mode)
