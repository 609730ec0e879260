"""A polynomial decay of the learning rate."""

from __future__ import annotations

from torch.optim import Optimizer

from optplug import ClosedFormLR


class PolynomialLR(ClosedFormLR):
    r"""Polynomial decay to 0 in T steps: :math:`lr(t) = base \cdot (1 - \min(t, T) / T)^{power}`.

    Args:
        optimizer: the optimizer whose learning rates are set.
        total_iters: number of steps :math:`T` of the decay, an integer, at least 1.
        power: the exponent, at least 0. 1 is a linear decay.
        last_epoch: index of the last step; -1 to start.
        min_lr_ratio: the lowest learning rate as a fraction of the base learning rate, in [0, 1]: the decay ends there.

    Raises:
        HyperparameterError: an argument is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    decays_to_floor = True
    cases = ({}, {"total_iters": 30, "power": 0.9}, {"total_iters": 20, "power": 2.0, "min_lr_ratio": 0.1})

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        self.total_iters: int = self.check_number("total_iters", total_iters, 1, whole=True)
        self.power: float = self.check_number("power", power)
        super().__init__(optimizer, last_epoch, min_lr_ratio=min_lr_ratio)

    def multiplier(self, t: int) -> float:
        return float((1 - min(t, self.total_iters) / self.total_iters) ** self.power)
