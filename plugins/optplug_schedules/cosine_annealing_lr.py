"""Cosine annealing, without restarts."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer

from optplug import ClosedFormLR


class CosineAnnealingLR(ClosedFormLR):
    r"""Cosine annealing: :math:`lr(t) = \eta_{min} + \tfrac12 (base - \eta_{min}) (1 + \cos(\pi t / T_{max}))`.

    Args:
        optimizer: the optimizer whose learning rates are set.
        T_max: number of steps from the base learning rate to `eta_min`, at least 1. Afterwards the learning rate rises.
        eta_min: the lowest learning rate, at least 0.
        last_epoch: index of the last step; -1 to start.
        min_lr_ratio: the lowest learning rate as a fraction of the base learning rate, in [0, 1]; not with `eta_min`.

    Raises:
        HyperparameterError: `T_max`, `eta_min`, `last_epoch` or `min_lr_ratio` is out of range, or both `eta_min` and
            `min_lr_ratio` are above 0.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017,
    https://arxiv.org/abs/1608.03983 (the schedule within one restart).
    """

    decays_to_floor = True
    cases = ({"T_max": 10}, {"T_max": 7, "eta_min": 0.01}, {"T_max": 100, "min_lr_ratio": 0.1})

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        self.T_max: float = self.check_number("T_max", T_max, 1, noun="a number of steps")
        self.eta_min: float = self.check_number("eta_min", eta_min)
        super().__init__(optimizer, last_epoch, min_lr_ratio=min_lr_ratio)

    @property
    def floor(self) -> float:  # type: ignore[override]
        return self.eta_min

    def multiplier(self, t: int) -> float:
        return (1 + math.cos(math.pi * t / self.T_max)) / 2

    def get_lr(self) -> list[float | Tensor]:
        """As in `ClosedFormLR`.

        A call outside of `step` directly after resuming returns the closed form, as in torch.
        """
        lrs = super().get_lr()
        just_resumed = self._step_count == 1 and self.last_epoch > 0 and not self._is_initial
        return self._get_closed_form_lr() if just_resumed else lrs
