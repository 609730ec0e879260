"""A cut of the learning rate every so many steps."""

from __future__ import annotations

from torch.optim import Optimizer

from optplug.schedulers.checks import checked_number
from optplug.schedulers.closed_form import GeometricLR


class StepLR(GeometricLR):
    r"""Steps of equal length: :math:`lr(t) = base \cdot \gamma^{\lfloor t / step\_size \rfloor}`.

    Args:
        optimizer: whose groups' learning rates to set.
        step_size: steps from one cut to the next, a whole number, at least 1.
        gamma: what the rate is multiplied by at a cut, :math:`\gamma \ge 0`; above 1 it grows.
        last_epoch: index of the last step taken; -1 to start. The step after it is taken at once.

    Raises:
        HyperparameterError: `step_size`, `gamma` or `last_epoch` out of range. HyperparameterTypeError: of the wrong
        type, or a misspelt keyword. TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    cases = ({"step_size": 10}, {"step_size": 1, "gamma": 0.9}, {"step_size": 7, "gamma": 1.5}, {"step_size": 100})
    steps_when_resumed = True

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size: int = checked_number(self, "step_size", step_size, 1, whole=True)
        super().__init__(optimizer, gamma, last_epoch)

    def cuts(self, t: int) -> int:
        return max(t, 0) // self.step_size
