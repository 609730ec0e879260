"""Shared fixtures of the Lightning tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

import optplug
from optplug.registry.specs import SchedulerSpec


@pytest.fixture
def save_every_checkpoint(pl: Any, tmp_path: Path) -> Any:
    """A factory of ModelCheckpoint callbacks that keep every checkpoint, in `tmp_path`."""

    def make(filename: str = "{step}", **kwargs: Any) -> Any:
        return pl.callbacks.ModelCheckpoint(tmp_path, filename=filename, save_top_k=-1, **kwargs)

    return make


class RiseAndFall(optplug.ClosedFormLR):
    """A linear rise followed by a linear fall, with one step per optimizer step."""

    interval = "step"
    length = "total_steps"

    def __init__(self, optimizer: Any, total_steps: int, rise: int = 2, last_epoch: int = -1) -> None:
        self.total_steps, self.rise = total_steps, rise
        super().__init__(optimizer, last_epoch)

    def multiplier(self, t: int) -> float:
        if t < self.rise:
            return (t + 1) / (self.rise + 1)
        return max(0.0, 1 - (t - self.rise) / (self.total_steps - self.rise))


@pytest.fixture
def step_schedulers(register_schedulers: Any) -> None:
    """Registers `one_cycle_lr` and `rise_and_fall`, whose plugin declares the interval `step`."""
    register_schedulers(
        SchedulerSpec("one_cycle_lr", OneCycleLR, interval="step"),
        SchedulerSpec("rise_and_fall", RiseAndFall, interval="step", length="total_steps"),
    )


@pytest.fixture
def quiet_callback(optplug_lightning: Any) -> Any:
    """A factory of ConfigureOptimizers callbacks that print nothing."""

    def make(*args: Any, **kwargs: Any) -> Any:
        return optplug_lightning.ConfigureOptimizers(*args, **{"verbose": False, **kwargs})

    return make


@pytest.fixture
def model_checkpoint(pl: Any, tmp_path: Path) -> Any:
    """A factory of ModelCheckpoint callbacks that monitor a metric."""
    return lambda monitor, **kwargs: pl.callbacks.ModelCheckpoint(tmp_path / "saved", monitor=monitor, **kwargs)


@pytest.fixture
def torch_module(scripted_module: type) -> type:
    """The class of a module that configures torch's SGD and, with an `entry`, torch's plateau scheduler.

    `entry` is the `lr_scheduler` dictionary of `configure_optimizers`, without the scheduler.
    """

    class TorchModule(scripted_module):
        def __init__(self, entry: dict[str, Any] | None = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.entry = entry

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            if self.entry is None:
                return optimizer
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.entry}}

    return TorchModule


@pytest.fixture
def two_optimizer_module(scripted_module: type) -> type:
    """The class of a module that steps two optimizers in each batch, and records the learning rates of both."""

    class TwoOptimizers(scripted_module):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(automatic=False, **kwargs)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers = self.optimizers()
            self.lrs.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
            self.manual_backward(self.loss(batch))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    return TwoOptimizers


@pytest.fixture
def fit_plateau(optplug_lightning: Any, scripted_module: type, trainer: Any) -> Any:
    """A function that fits a module with SGD and a plateau scheduler; it returns the trainer and the module.

    `val` are the validation metrics, and `callbacks` are further callbacks. `monitor`, `mode` and `verbose` are for
    ConfigureOptimizers; any other arguments are for the trainer.
    """
    sgd = {"name": "sgd", "lr": 1.0}
    plateau = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}

    def run(
        val: Any = None,
        scheduler: Any = plateau,
        *,
        optimizer: Any = sgd,
        module: Any = None,
        callbacks: Any = (),
        **given: Any,
    ) -> Any:
        options = {key: given.pop(key) for key in ("monitor", "mode", "verbose") if key in given}
        module = scripted_module(val=val) if module is None else module
        configure = optplug_lightning.ConfigureOptimizers(optimizer, scheduler, **options)
        fitted = trainer(callbacks=[configure, *callbacks], **given)
        fitted.fit(module)
        return fitted, module

    return run


@pytest.fixture
def frequency_recorder(pl: Any) -> Any:
    """The class of a callback that records the frequencies of the scheduler entries during training.

    With `stop`, it raises `StopFit` in the second epoch.
    """

    class FrequencyRecorder(pl.Callback):
        class StopFit(Exception):
            pass

        def __init__(self, stop: bool = False) -> None:
            self.stop = stop
            self.frequencies: list[int] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.frequencies = [entry.frequency for entry in trainer.lr_scheduler_configs]
            if self.stop and trainer.current_epoch:
                raise self.StopFit

    return FrequencyRecorder


@pytest.fixture
def restore_interrupt_handler() -> Iterator[None]:
    """Restores the handler of SIGINT, because Lightning ignores further interrupts after the first."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
