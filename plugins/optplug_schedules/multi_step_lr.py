"""Multiplies the learning rate by a factor at each milestone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch.optim import Optimizer

from optplug.errors import HyperparameterTypeError
from optplug.schedulers.closed_form import GeometricLR


class MultiStepLR(GeometricLR):
    r"""Multiply by a factor at each milestone: :math:`lr(t) = base \cdot \gamma^{|\{i : milestones_i \le t\}|}`.

    Args:
        optimizer: the optimizer whose learning rates are set.
        milestones: the steps after which the learning rate is multiplied by `gamma`: integers, at least 0, in any
            order. A milestone that occurs twice applies `gamma` twice. Stored as a `collections.Counter`.
        gamma: factor :math:`\gamma \ge 0` of the learning rate. Above 1 the learning rate grows.
        last_epoch: index of the last step; -1 to start. The constructor performs the next step.
        min_lr_ratio: the learning rate is not below this fraction of the base learning rate, in [0, 1].

    Raises:
        HyperparameterError: a milestone, `gamma`, `last_epoch` or `min_lr_ratio` is out of range.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    cases = ({"milestones": [10, 30]}, {"milestones": [20, 3, 3], "gamma": 0.5}, {"milestones": [0, 1], "gamma": 2.0})
    steps_when_resumed = True

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        if isinstance(milestones, Counter):  # the attribute of another MultiStepLR
            milestones = milestones.elements()
        if isinstance(milestones, (str, bytes, Mapping)) or not isinstance(milestones, Iterable):
            example = "a list of whole numbers such as [30]"
            message = f"{type(self).__name__}: milestones must be {example}, got {milestones!r}"
            self.reject("milestones", HyperparameterTypeError(message))
            milestones = ()
        self.milestones = Counter(
            self.check_number("milestones", milestone, index=i, whole=True) for i, milestone in enumerate(milestones)
        )
        super().__init__(optimizer, gamma, last_epoch, min_lr_ratio=min_lr_ratio)

    def exponent(self, t: int) -> int:
        return sum(times for milestone, times in self.milestones.items() if milestone <= t)
