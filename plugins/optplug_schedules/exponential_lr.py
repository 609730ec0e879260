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

    Raises:
        HyperparameterError: `gamma` or `last_epoch` is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    cases = ({"gamma": 0.9}, {"gamma": 1.02}, {"gamma": 0.0})

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        super().__init__(optimizer, gamma, last_epoch)

    def exponent(self, t: int) -> int:
        return t
