"""Time of optplug's callback per training batch, in microseconds, for several schedules.

    python benchmarks/callback.py [--batches 2500] [--rounds 3]

The benchmark trains a linear layer. It measures each hook of the callback that runs in a batch, each hook that the
callback registers on an optimizer's step, the steps of the schedulers, and an empty function once per batch. The time
of a batch is the sum over the hooks, without the time of the measurement itself. The printed time is the median batch
of all rounds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optplug.pytorch_lightning import ConfigureOptimizers

EPOCHS = 5
PER_BATCH = ("on_train_batch_start", "on_train_batch_end")
SGD = {"name": "sgd", "lr": 1e-3}
BY_EPOCH = {"name": "cosine_annealing_lr", "T_max": "auto"}
BY_STEP = {**BY_EPOCH, "interval": "step"}
PLATEAU = {"name": "reduce_lr_on_plateau", "monitor": "val_loss"}
TWO_OPTIMIZERS = [{**SGD, "match": "*.weight", "scheduler": PLATEAU}, {**SGD, "match": "*.bias", "scheduler": BY_STEP}]
SCHEDULES: dict[str, tuple[Any, Any]] = {
    "none": (SGD, None),
    "cosine by epoch": (SGD, BY_EPOCH),
    "cosine by step": (SGD, BY_STEP),
    "plateau": (SGD, PLATEAU),
    "plateau with warmup": (SGD, PLATEAU),
    "two optimizers, manual optimization, plateau and cosine by step": (TWO_OPTIMIZERS, None),
}


class HookTimer(pl.Callback):
    """Measures functions in each batch. It must be the first callback, since it starts the batch."""

    def __init__(self, callback: pl.Callback) -> None:
        self.batches: list[
            dict[str, list[int]]
        ] = []  # for each batch: by kind of function, the nanoseconds of each call
        self._batch: dict[str, list[int]] = defaultdict(list)
        self._empty = self.timed("empty", lambda *_: None)
        self._nested = self.timed("nested", self.timed("inner", lambda *_: None))
        for name in PER_BATCH:
            setattr(callback, name, self.timed("hooks", getattr(callback, name)))

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls `function` and records its time."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter_ns()
            result = function(*args, **kwargs)
            end = time.perf_counter_ns()
            self._batch[kind].append(end - start)
            return result

        return wrapper

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch:
            return
        pl_module.lr_scheduler_step = self.timed("schedule", pl_module.lr_scheduler_step)
        for entry in trainer.lr_scheduler_configs:
            if hasattr(entry.scheduler, "warmup_step"):
                entry.scheduler.warmup_step = self.timed("schedule", entry.scheduler.warmup_step)
        for optimizer in trainer.optimizers:
            for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
                for key, hook in hooks.items():
                    if hook.__module__.startswith("optplug.lightning"):
                        hooks[key] = self.timed("hooks", hook)

    def on_train_batch_start(self, *args: Any) -> None:
        self._batch = defaultdict(list)
        self.batches.append(self._batch)
        self._empty(*args)
        self._nested(*args)

    def on_validation_start(self, *args: Any) -> None:
        self._batch = defaultdict(list)  # discards the times of the validation

    def costs(self) -> list[tuple[float, float]]:
        """Return for each batch the microseconds in the hooks, with and without the steps of the schedulers."""
        empty, nested = (statistics.median(batch[kind][0] for batch in self.batches) for kind in ("empty", "nested"))
        found = []
        for batch in self.batches:
            hooks, schedule = batch["hooks"], batch["schedule"]
            cost = sum(hooks) - len(hooks) * empty - len(schedule) * (nested - empty)
            found.append((cost / 1000, (cost - sum(schedule) + len(schedule) * empty) / 1000))
        return found


class LinearModel(pl.LightningModule):
    """A linear layer with eight inputs."""

    def __init__(self, batches: int, *, manual: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.batches = batches
        self.automatic_optimization = not manual

    def _loss(self, batch: list[Tensor]) -> Tensor:
        return self.layer(batch[0]).square().mean()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = self._loss(batch)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", self._loss(batch))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(4 * self.batches, 8)), batch_size=4)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(4, 8)), batch_size=4)


def fit(schedule: str, batches: int) -> dict[str, list[tuple[float, float]]]:
    """Train with a schedule, and return the times of its batches by the name of the printed line."""
    optimizer, scheduler = SCHEDULES[schedule]
    warmup = batches // 2 if "warmup" in schedule else 0
    if warmup:
        scheduler = {**scheduler, "warmup_steps": warmup}
    callback = ConfigureOptimizers(optimizer, scheduler, verbose=False)
    timer = HookTimer(callback)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer, callback],
    )
    trainer.fit(LinearModel(batches // EPOCHS, manual=isinstance(optimizer, list)))
    costs = timer.costs()
    return (
        {f"{schedule}, during": costs[:warmup], f"{schedule}, after": costs[warmup:]} if warmup else {schedule: costs}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=2500, help="number of batches of each fit")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    costs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for i in range(arguments.rounds + 1):
        for schedule in SCHEDULES:
            if not i:  # the first round is a warm-up
                fit(schedule, 100)
                continue
            for line, found in fit(schedule, arguments.batches).items():
                costs[line] += found
    print("microseconds per batch, median: total, and without the scheduler's own step")
    for line, found in costs.items():
        whole, without = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{line:66}{whole:6.1f}{without:6.1f}   {len(found):,} batches")


if __name__ == "__main__":
    main()
