"""A linear change of the learning rate, up or down."""

from __future__ import annotations

from torch.optim import Optimizer

from optplug import ClosedFormLR
from optplug.errors import HyperparameterError


class LinearLR(ClosedFormLR):
    r"""A linear change: :math:`lr(t) = base \cdot (s + (e - s) \min(t, T) / T)`.

    Args:
        optimizer: the optimizer whose learning rates are set.
        start_factor: factor :math:`s` of the first learning rate, above 0, at most 1.
        end_factor: factor :math:`e` of the learning rate after `total_iters` steps, in [0, 1].
        total_iters: number of steps :math:`T` of the change, an integer, at least 1.
        last_epoch: index of the last step; -1 to start.
        min_lr_ratio: the lowest learning rate as a fraction of the base learning rate, in [0, 1]: a smaller factor is
            replaced by it.

    Raises:
        HyperparameterError: an argument is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    cases = (
        {},
        {"start_factor": 0.05, "end_factor": 0.7, "total_iters": 20},
        {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 30},
        {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 30, "min_lr_ratio": 0.1},
    )

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        start_text = "Starting multiplicative factor expected to be greater than 0 and less or equal to 1."
        end_text = "Ending multiplicative factor expected to be between 0 and 1."
        self.start_factor: float = self.check_number("start_factor", start_factor, 0, 1, torch_text=start_text)
        self.end_factor: float = self.check_number("end_factor", end_factor, 0, 1, torch_text=end_text)
        self.total_iters: int = self.check_number("total_iters", total_iters, 1, whole=True)
        if self.start_factor == 0:
            message = f"{start_text} {type(self).__name__}: start_factor must be above 0, got {start_factor}"
            self.reject("start_factor", HyperparameterError(message))
        super().__init__(optimizer, last_epoch, min_lr_ratio=min_lr_ratio)

    def multiplier(self, t: int) -> float:
        if t < 0:  # before the first step: the base learning rate, as in torch
            return 1.0
        start, end = self.above_floor(self.start_factor), self.above_floor(self.end_factor)
        return start + (end - start) * min(t, self.total_iters) / self.total_iters
