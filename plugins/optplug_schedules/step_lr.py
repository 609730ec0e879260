"""Multiplies the learning rate by a factor at regular intervals."""

from __future__ import annotations

from torch.optim import Optimizer

from optplug.schedulers.closed_form import GeometricLR


class StepLR(GeometricLR):
    r"""Multiply by `gamma` every `step_size` steps: :math:`lr(t) = base \cdot \gamma^{\lfloor t / step\_size \rfloor}`.

    Args:
        optimizer: the optimizer whose learning rates are set.
        step_size: number of steps between two changes, an integer, at least 1.
        gamma: factor :math:`\gamma \ge 0` of the learning rate. Above 1 the learning rate grows.
        last_epoch: index of the last step; -1 to start. The constructor performs the next step.
        min_lr_ratio: the learning rate is not below this fraction of the base learning rate, in [0, 1].

    Raises:
        HyperparameterError: `step_size`, `gamma`, `last_epoch` or `min_lr_ratio` is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    cases = (
        {"step_size": 10},
        {"step_size": 1, "gamma": 0.9},
        {"step_size": 7, "gamma": 1.5},
        {"step_size": 9, "min_lr_ratio": 0.02},
    )
    steps_when_resumed = True

    def __init__(
        self,
        optimizer: Optimizer,
        step_size: int,
        gamma: float = 0.1,
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        self.step_size: int = self.check_number("step_size", step_size, 1, whole=True)
        super().__init__(optimizer, gamma, last_epoch, min_lr_ratio=min_lr_ratio)

    def exponent(self, t: int) -> int:
        return max(t, 0) // self.step_size
