"""Cosine annealing, without restarts."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from optplug import ClosedFormLR
from optplug.errors import HyperparameterError, HyperparameterTypeError, number_hint


class CosineAnnealingLR(ClosedFormLR):
    r"""Cosine annealing: :math:`lr(t) = \eta_{min} + \tfrac12 (base - \eta_{min}) (1 + \cos(\pi t / T_{max}))`.

    Args:
        optimizer: whose groups' learning rates to set.
        T_max: steps from the base rate to `eta_min`, at least 1; the rate rises again afterwards.
        eta_min: the lowest learning rate, at least 0.
        last_epoch: index of the last step taken; -1 to start.

    Raises:
        HyperparameterError: `T_max` or `eta_min` out of range. HyperparameterTypeError: of the wrong type.

    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017,
    https://arxiv.org/abs/1608.03983 (the schedule within one restart).
    """

    cases = ({"T_max": 10}, {"T_max": 7, "eta_min": 0.01}, {"T_max": 100})

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        if isinstance(T_max, bool) or not isinstance(T_max, (int, float)):
            raise HyperparameterTypeError(
                f"CosineAnnealingLR: T_max must be a number of steps, got {T_max!r}{number_hint(T_max)}"
            )
        if not 1 <= T_max < math.inf:
            raise HyperparameterError(f"CosineAnnealingLR: T_max must be at least 1, got {T_max}")
        if isinstance(eta_min, bool) or not isinstance(eta_min, (int, float)):
            hint = number_hint(eta_min)
            raise HyperparameterTypeError(f"CosineAnnealingLR: eta_min must be a number, got {eta_min!r}{hint}")
        if not 0 <= eta_min < math.inf:
            raise HyperparameterError(f"CosineAnnealingLR: eta_min must be at least 0 and finite, got {eta_min}")
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    @property
    def floor(self) -> float:  # type: ignore[override]
        return self.eta_min

    def multiplier(self, t: int) -> float:
        return (1 + math.cos(math.pi * t / self.T_max)) / 2
