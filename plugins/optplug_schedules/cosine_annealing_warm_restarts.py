"""Cosine annealing with warm restarts."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from optplug import ClosedFormLR
from optplug.errors import HyperparameterError


class CosineAnnealingWarmRestarts(ClosedFormLR):
    r"""Restarts of :math:`lr(t) = \eta_{min} + \tfrac12 (base - \eta_{min}) (1 + \cos(\pi c / T_i))`.

    :math:`c` is the number of steps since the last restart, and :math:`T_i` the number between two restarts, which
    begins with :math:`T_0` and is multiplied by :math:`T_{mult}` at each restart.

    The result does not depend on the current learning rate, so changes by other schedulers are overwritten.

    Args:
        optimizer: the optimizer whose learning rates are set.
        T_0: number of steps until the first restart, an integer, at least 1.
        T_mult: factor of :math:`T_i` at each restart, an integer, at least 1.
        eta_min: the lowest learning rate, at least 0.
        last_epoch: index of the last step; -1 to start. The constructor performs the next step.
        min_lr_ratio: the lowest learning rate as a fraction of the base learning rate, in [0, 1]; not with `eta_min`.

    Raises:
        HyperparameterError: an argument is out of range, or both `eta_min` and `min_lr_ratio` are above 0.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.

    torch's class agrees, except with `T_mult` above 1 and a `last_epoch` beyond the first restart: there torch does not
    continue the schedule, but counts from `last_epoch`.

    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017,
    https://arxiv.org/abs/1608.03983.
    """

    decays_to_floor = True
    is_absolute = True
    cases = (
        {"T_0": 10},
        {"T_0": 4, "T_mult": 2, "eta_min": 0.01},
        {"T_0": 7, "T_mult": 3, "min_lr_ratio": 0.1},
    )

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
        *,
        min_lr_ratio: float = 0.0,
    ) -> None:
        text = f"Expected positive integer T_0, but got {T_0}:"
        self.T_0: int = self.check_number("T_0", T_0, 1, whole=True, torch_text=text)
        text = f"Expected integer T_mult >= 1, but got {T_mult}:"
        self.T_mult: int = self.check_number("T_mult", T_mult, 1, whole=True, torch_text=text)
        self.eta_min: float = self.check_number("eta_min", eta_min)
        self._fraction = 0.0  # of a step, from `step(epoch)`
        super().__init__(optimizer, last_epoch, min_lr_ratio=min_lr_ratio)

    @property
    def floor(self) -> float:  # type: ignore[override]
        return self.eta_min

    def since_restart(self, t: float) -> tuple[float, int]:
        """Return :math:`c` and :math:`T_i` after `t` steps."""
        if self.T_mult == 1:
            return t % self.T_0, self.T_0
        length = self.T_0
        while t >= length:
            t, length = t - length, length * self.T_mult
        return t, length

    def multiplier(self, t: float) -> float:
        since, length = self.since_restart(t + self._fraction)
        return (1 + math.cos(math.pi * since / length)) / 2

    def step(self, epoch: float | None = None) -> None:
        """Take one step, or go to the given one.

        Args:
            epoch: the number of steps, which may have a fraction, such as `epoch + batch / batches`. The steps after it
                keep the fraction.

        Raises:
            HyperparameterError: `epoch` is negative.
        """
        if epoch is not None:
            if epoch < 0:
                raise HyperparameterError(f"Expected non-negative epoch, but got {epoch}")
            self.last_epoch = math.floor(epoch) - 1
            self._fraction = epoch - math.floor(epoch)
        super().step()

    def state_dict(self) -> dict[str, Any]:
        """The state, without the optimizer. As in torch, `T_cur` and `T_i` are the current position."""
        state = super().state_dict()
        since, length = self.since_restart(self.last_epoch + state.pop("_fraction"))
        return {**state, "T_cur": since, "T_i": length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's.

        Raises:
            ConfigError: the state is from another class.
        """
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in ("T_cur", "T_i")})
        self._fraction = state_dict.get("T_cur", 0) % 1
