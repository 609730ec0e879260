"""WSD: warmup, stable, decay."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer

from optplug import ClosedFormLR
from optplug.errors import HyperparameterError
from optplug.schedulers.closed_form import linear_warmup


class WSD(ClosedFormLR):
    r"""Warmup, a constant learning rate, and a decay in the last D of T steps.

    In the decay :math:`lr(t) = base \cdot g(x)` with :math:`x = (t - (T - D)) / D`, where :math:`g(x)` is :math:`1 - x`
    (linear), :math:`\tfrac12 (1 + \cos \pi x)` (cosine) or :math:`1 - \sqrt{x}` (1-sqrt). Before the decay the learning
    rate is constant, after a linear warmup that begins at 1 / `warmup_steps` of it.

    The decay is short, so a training can continue from a checkpoint of the constant part with another length: optplug's
    callback of Lightning calls `extend` then.

    Args:
        optimizer: the optimizer whose learning rates are set.
        total_steps: number of steps :math:`T` of the whole schedule, an integer, at least 1. Afterwards the learning
            rate stays the lowest one.
        decay_steps: number of steps :math:`D` of the decay, an integer, at least 1.
        warmup_steps: number of steps of the warmup, an integer, at least 0.
        decay: the form of the decay: `"linear"`, `"cosine"` or `"1-sqrt"`.
        min_lr_ratio: the lowest learning rate as a fraction of the base learning rate, in [0, 1]: the decay ends there.
            The warmup does not begin below it.
        last_epoch: index of the last step; -1 to start.

    Raises:
        HyperparameterError: an argument is out of range, or warmup and decay are longer than the whole schedule.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    Source: Hu et al., MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies,
    2024, https://arxiv.org/abs/2404.06395; for 1-sqrt: Hägele et al., Scaling Laws and Compute-Optimal Training Beyond
    Fixed Training Durations, 2024, https://arxiv.org/abs/2405.18392.
    """

    interval = "step"
    decays_to_floor = True
    cases = (
        {"total_steps": 40, "decay_steps": 10},
        {"total_steps": 40, "decay_steps": 12, "warmup_steps": 8, "decay": "cosine", "min_lr_ratio": 0.1},
        {"total_steps": 30, "decay_steps": 20, "warmup_steps": 10, "decay": "1-sqrt"},
    )

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        decay_steps: int,
        warmup_steps: int = 0,
        decay: Literal["linear", "cosine", "1-sqrt"] = "linear",
        min_lr_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps: int = self.check_number("total_steps", total_steps, 1, whole=True)
        self.decay_steps: int = self.check_number("decay_steps", decay_steps, 1, whole=True)
        self.warmup_steps: int = self.check_number("warmup_steps", warmup_steps, whole=True)
        self.decay: str = self.check_choice("decay", decay, ("linear", "cosine", "1-sqrt"))
        if self.warmup_steps + self.decay_steps > self.total_steps:
            message = (
                f"{type(self).__name__}: decay_steps ({decay_steps}) and warmup_steps ({warmup_steps}) are more than "
                f"total_steps ({total_steps})"
            )
            self.reject("decay_steps", HyperparameterError(message), is_contradiction=True)
        super().__init__(optimizer, last_epoch, min_lr_ratio=min_lr_ratio)

    @property
    def decay_start(self) -> int:
        """The number of steps after which the decay begins."""
        return self.total_steps - self.decay_steps

    def multiplier(self, t: int) -> float:
        if t <= self.decay_start:
            return linear_warmup(t, self.warmup_steps)
        x = min((t - self.decay_start) / self.decay_steps, 1.0)
        if self.decay == "linear":
            return 1 - x
        return (1 + math.cos(math.pi * x)) / 2 if self.decay == "cosine" else 1 - math.sqrt(x)

    def extend(self, length: int) -> bool:
        """Move the decay to the end of a training of another length, unless the decay has begun or would have begun."""
        if self.last_epoch > min(self.decay_start, length - self.decay_steps):
            return False
        if length < self.warmup_steps + self.decay_steps:
            return False
        self.total_steps = length
        return True
