"""A reduced learning rate for some steps, then the base learning rate."""

from __future__ import annotations

from torch.optim import Optimizer

from optplug import ClosedFormLR


class ConstantLR(ClosedFormLR):
    r"""A reduced learning rate at first: :math:`lr(t) = base \cdot factor` for :math:`t < total\_iters`, then base.

    Args:
        optimizer: the optimizer whose learning rates are set.
        factor: factor of the learning rate in the first `total_iters` steps, in [0, 1].
        total_iters: number of steps with the reduced learning rate, an integer, at least 1.
        last_epoch: index of the last step; -1 to start. The constructor performs the next step.

    Raises:
        HyperparameterError: `factor`, `total_iters` or `last_epoch` is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    cases = ({}, {"factor": 0.5, "total_iters": 20}, {"factor": 0.0, "total_iters": 7})
    steps_when_resumed = True

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5, last_epoch: int = -1) -> None:
        torch_text = "Constant multiplicative factor expected to be between 0 and 1."
        self.factor: float = self.check_number("factor", factor, 0, 1, torch_text=torch_text)
        self.total_iters: int = self.check_number("total_iters", total_iters, 1, whole=True)
        super().__init__(optimizer, last_epoch)

    def multiplier(self, t: int) -> float:
        # Before the first step, t = -1, the learning rate is the base learning rate, as in torch.
        return self.factor if 0 <= t < self.total_iters else 1.0
