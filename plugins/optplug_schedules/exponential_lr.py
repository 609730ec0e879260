"""Exponential decay of the learning rate."""

from __future__ import annotations

from torch.optim import Optimizer

from optplug.schedulers.closed_form import GeometricLR


class ExponentialLR(GeometricLR):
    r"""Exponential decay: :math:`lr(t) = base \cdot \gamma^t`.

    Args:
        optimizer: the optimizer whose learning rates are set.
        gamma: factor :math:`\gamma \ge 0` of the learning rate in each step. Above 1 the learning rate grows.
        last_epoch: index of the last step; -1 to start.
        min_lr_ratio: the learning rate is not below this fraction of the base learning rate, in [0, 1].

    Raises:
        HyperparameterError: `gamma`, `last_epoch` or `min_lr_ratio` is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    cases = ({"gamma": 0.9}, {"gamma": 1.02}, {"gamma": 0.0}, {"gamma": 0.9, "min_lr_ratio": 0.1})

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1, *, min_lr_ratio: float = 0.0) -> None:
        super().__init__(optimizer, gamma, last_epoch, min_lr_ratio=min_lr_ratio)

    def exponent(self, t: int) -> int:
        return t
