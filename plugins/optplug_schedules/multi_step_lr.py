"""A cut of the learning rate at each milestone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch.optim import Optimizer

from optplug.errors import HyperparameterTypeError
from optplug.schedulers.checks import checked_number
from optplug.schedulers.closed_form import GeometricLR


class MultiStepLR(GeometricLR):
    r"""Steps at milestones: :math:`lr(t) = base \cdot \gamma^{|\{i : milestones_i \le t\}|}`.

    Args:
        optimizer: whose groups' learning rates to set.
        milestones: the steps after which the rate is cut, whole numbers, at least 0, in any order; one that is there
            twice cuts twice. Kept as a `collections.Counter`.
        gamma: what the rate is multiplied by at a cut, :math:`\gamma \ge 0`; above 1 it grows.
        last_epoch: index of the last step taken; -1 to start. The step after it is taken at once.

    Raises:
        HyperparameterError: a milestone, `gamma` or `last_epoch` out of range. HyperparameterTypeError: of the wrong
        type, or a misspelt keyword. TypeError: `optimizer` is not a `torch.optim.Optimizer`.
    """

    cases = ({"milestones": [10, 30]}, {"milestones": [20, 3, 3], "gamma": 0.5}, {"milestones": [0, 1], "gamma": 2.0})
    steps_when_resumed = True

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        if isinstance(milestones, Counter):  # of another scheduler
            milestones = milestones.elements()
        if isinstance(milestones, (str, bytes, Mapping)) or not isinstance(milestones, Iterable):
            raise HyperparameterTypeError(
                f"{type(self).__name__}: milestones must be a list of whole numbers such as [30], got {milestones!r}"
            )
        self.milestones = Counter(
            checked_number(self, f"milestones[{i}]", milestone, whole=True) for i, milestone in enumerate(milestones)
        )
        super().__init__(optimizer, gamma, last_epoch)

    def cuts(self, t: int) -> int:
        return sum(times for milestone, times in self.milestones.items() if milestone <= t)
