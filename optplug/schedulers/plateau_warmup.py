"""`PlateauWarmup`: a warmup around a plateau scheduler, for trainers that step plateau schedulers in another way."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.engines._torch_compat import PlateauNames
from optplug.schedulers.warmup import Warmup


class PlateauWarmup(Warmup, PlateauNames, ReduceLROnPlateau):  # type: ignore[misc]  # `factor` is a method of Warmup
    """A warmup around `ReduceLROnPlateau`, torch's or optplug's; arguments as of `Warmup`.

    The class inherits from torch's class because trainers check `isinstance` to decide when they step a scheduler, and
    whether they pass a metric: the Trainer of Hugging Face does. No method of torch's class is used.
    """

    scheduler: Any

    @property
    def in_cooldown(self) -> bool:
        return bool(self.scheduler.in_cooldown)

    def _init_is_better(self, mode: Any, threshold: float, threshold_mode: Any) -> None:
        self.scheduler._init_is_better(mode, threshold, threshold_mode)

    def _is_better(self, a: float, best: float) -> bool:
        return bool(self.scheduler._is_better(a, best))

    def _reduce_lr(self, epoch: int) -> None:
        with self._without_warmup():
            self.scheduler._reduce_lr(epoch)

    def _reset(self) -> None:
        self.scheduler._reset()
