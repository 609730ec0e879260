"""ReduceLROnPlateau: the learning rate depends on a metric, so this scheduler has no closed form."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat

from torch.optim import Optimizer, lr_scheduler

from optplug.engines._torch_compat import PlateauNames
from optplug.errors import HyperparameterError, WiringError
from optplug.optim.strict_kwargs import StrictKwargs
from optplug.schedulers.checks import ArgumentChecks, check_state
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.lr import set_lr


class ReduceLROnPlateau(ArgumentChecks, StrictKwargs, PlateauNames, lr_scheduler.ReduceLROnPlateau):
    """Multiply the learning rates by `factor` when a metric has not improved for more than `patience` steps.

    Args:
        optimizer: the optimizer whose learning rates are reduced.
        mode: `"min"` when a lower metric is better, `"max"` when a higher one is.
        factor: factor of the learning rate, in [0, 1).
        patience: number of steps without improvement before a reduction, at least 0.
        threshold: smallest change that counts as an improvement, at least 0. Relative to the best value, or absolute.
        threshold_mode: `"rel"`: a value is an improvement if it is better than best * (1 -+ threshold); `"abs"`: if it
            is better than best -+ threshold.
        cooldown: number of steps after a reduction in which values without improvement do not count, at least 0.
        min_lr: lower bound of the learning rates: a number for all groups, or a list with one number for each group.
            The last number also applies to groups that are added later.
        eps: smallest reduction; smaller ones are not applied.
        verbose: ignored, with a DeprecationWarning. torch has removed this argument.

    Raises:
        HyperparameterError: a value is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    In Lightning a step is one completed validation, or one epoch for a training metric. `patience` and `cooldown` can
    count another unit; see `at`. The class inherits from torch's class because Lightning requires it. No method of
    torch's class is used.
    """

    position = 0  # the last position that was set by `at`
    elapsed = 1  # the number of units that the next step counts

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
        self.factor = self.check_number("factor", factor)
        self.patience = self.check_number("patience", patience)
        self.cooldown = self.check_number("cooldown", cooldown)
        self.eps = self.check_number("eps", eps)
        self._init_is_better(mode, self.check_number("threshold", threshold), threshold_mode)
        has_list = isinstance(min_lr, (list, tuple))
        given: Sequence[Any] = min_lr if isinstance(min_lr, (list, tuple)) else [min_lr]
        min_lrs = [self.check_number("min_lr", lr, index=i if has_list else None) for i, lr in enumerate(given)]
        if self.factor >= 1.0:
            message = f"Factor should be < 1.0. ReduceLROnPlateau got factor {factor}"
            self.reject("factor", HyperparameterError(message))
        if mode not in ("min", "max"):
            self.reject("mode", HyperparameterError(f"mode {mode} is unknown! Allowed: 'min', 'max'"))
        if threshold_mode not in ("rel", "abs"):
            message = f"threshold mode {threshold_mode} is unknown! Allowed: 'rel', 'abs'"
            self.reject("threshold_mode", HyperparameterError(message))
        groups = optimizer.param_groups if self.check_optimizer(optimizer) else []
        if has_list and groups and len(min_lrs) != len(groups):
            message = (
                f"expected {len(groups)} min_lrs, got {len(min_lrs)}: ReduceLROnPlateau takes one min_lr for all "
                "groups, or a list with one for each"
            )
            self.reject("min_lr", HyperparameterError(message))
        self.raise_argument_errors()
        if verbose is not None:
            warnings.warn("verbose does nothing: torch has removed this argument", DeprecationWarning, stacklevel=2)

        self.optimizer = optimizer
        self.default_min_lr: Any = None if has_list else min_lrs[0]
        self.min_lrs = min_lrs if has_list else min_lrs * len(groups)
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
        """Set the position of the next step, in the unit of `patience`. Without this call a step counts 1.

        Args:
            position: the number of epochs, optimizer steps or other units since the start of training. The next step
                counts the difference to the previous position, or 0 if the previous position is larger.
        """
        self.elapsed = max(position - self.position, 0)
        self.position = position

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Process one value of the metric.

        Args:
            metrics: the value: a number, or a tensor with one element.
            epoch: deprecated, with the warning of torch. Overrides the number of steps.
        """
        if epoch is not None:
            warnings.warn(lr_scheduler.EPOCH_DEPRECATION_WARNING, UserWarning, stacklevel=2)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch

        value = float(metrics)
        better = self._is_better(value, self.best)
        if better:
            self.best = value
        in_cooldown = self.in_cooldown
        if in_cooldown:
            self.cooldown_counter = max(self.cooldown_counter - self.elapsed, 0)
        self.num_bad_epochs = 0 if better or in_cooldown else self.num_bad_epochs + self.elapsed
        if "elapsed" in vars(self):  # `at` applies to one step only
            self.elapsed = 1
        if self.num_bad_epochs > self.patience:
            self._reduce_lr(self.last_epoch)
            self.num_bad_epochs, self.cooldown_counter = 0, self.cooldown
        self._last_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def in_cooldown(self) -> bool:
        """Whether values without improvement currently do not count."""
        return self.cooldown_counter > 0

    def _is_better(self, value: float, best: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        bound: float = (
            best * (1 + sign * self.threshold) if self.threshold_mode == "rel" else best + sign * self.threshold
        )
        return value < bound if self.mode == "min" else value > bound

    def _reduce_lr(self, epoch: int) -> None:
        groups = self.optimizer.param_groups
        if len(groups) > len(self.min_lrs):
            follow_groups(self)
        if len(groups) < len(self.min_lrs):  # groups were removed
            if self.default_min_lr is None:
                raise WiringError(
                    f"The number of param groups in the `optimizer` ({len(groups)}) differs from when "
                    f"`ReduceLROnPlateau` was initialized ({len(self.min_lrs)}): set `min_lrs` to a list with one "
                    "number for each group"
                )
            self.min_lrs = [self.default_min_lr] * len(groups)
        for group, min_lr in zip(groups, self.min_lrs, strict=True):
            old = float(group["lr"])
            new = max(old * self.factor, min_lr)
            if old - new > self.eps:
                set_lr(group, new)

    def state_dict(self) -> dict[str, Any]:
        """The state, without the optimizer, as plain numbers and strings."""
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's.

        Raises:
            ConfigError: the state is from another class.
        """
        check_state(self, state_dict, ("best", "num_bad_epochs"))
        self.__dict__.update(state_dict)
        self._init_is_better(self.mode, self.threshold, self.threshold_mode)
