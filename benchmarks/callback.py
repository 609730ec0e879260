"""What optplug's callback costs per training batch, in microseconds, schedule by schedule.

    python benchmarks/callback.py [--batches 2500] [--rounds 3]

A linear layer is fitted for real. From outside, a clock is put around each hook of the callback that runs in a batch,
around each hook that it registers on an optimizer's step, around the schedulers' own steps, and, once in every batch,
around an empty function. The cost of a batch is the sum over the hooks, less what the clocks themselves cost; the
figure is the median batch of all rounds.
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
TWO = [{**SGD, "match": "*.weight", "scheduler": PLATEAU}, {**SGD, "match": "*.bias", "scheduler": BY_STEP}]
SCHEDULES: dict[str, tuple[Any, Any]] = {
    "none": (SGD, None),
    "cosine by epoch": (SGD, BY_EPOCH),
    "cosine by step": (SGD, BY_STEP),
    "plateau": (SGD, PLATEAU),
    "plateau with warmup": (SGD, PLATEAU),
    "two optimizers by hand, plateau and cosine by step": (TWO, None),
}


class Clock(pl.Callback):
    """Times, batch by batch, what it is put around. First among the callbacks, since it begins the batch."""

    def __init__(self, callback: pl.Callback) -> None:
        self.batches: list[dict[str, list[int]]] = []  # the nanoseconds of each call, by what was called
        self._now: dict[str, list[int]] = defaultdict(list)
        self._empty = self.around("empty", lambda *_: None)
        self._nested = self.around("nested", self.around("inner", lambda *_: None))
        for name in PER_BATCH:
            setattr(callback, name, self.around("hooks", getattr(callback, name)))

    def around(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter_ns()
            result = function(*args, **kwargs)
            end = time.perf_counter_ns()
            self._now[what].append(end - start)
            return result

        return timed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch:
            return
        pl_module.lr_scheduler_step = self.around("schedule", pl_module.lr_scheduler_step)
        for entry in trainer.lr_scheduler_configs:
            if hasattr(entry.scheduler, "warmup_step"):
                entry.scheduler.warmup_step = self.around("schedule", entry.scheduler.warmup_step)
        for optimizer in trainer.optimizers:
            for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
                for key, hook in hooks.items():
                    if hook.__module__.startswith("optplug.wiring"):
                        hooks[key] = self.around("hooks", hook)

    def on_train_batch_start(self, *args: Any) -> None:
        self._now = defaultdict(list)
        self.batches.append(self._now)
        self._empty(*args)
        self._nested(*args)

    def on_validation_start(self, *args: Any) -> None:
        self._now = defaultdict(list)  # what a validation costs is no batch's

    def costs(self) -> list[tuple[float, float]]:
        """Of each batch the microseconds in the hooks, with and without the schedulers' own steps."""
        empty, nested = (statistics.median(batch[what][0] for batch in self.batches) for what in ("empty", "nested"))
        found = []
        for batch in self.batches:
            hooks, schedule = batch["hooks"], batch["schedule"]
            cost = sum(hooks) - len(hooks) * empty - len(schedule) * (nested - empty)
            found.append((cost / 1000, (cost - sum(schedule) + len(schedule) * empty) / 1000))
        return found


class Line(pl.LightningModule):
    """A linear layer on eight numbers."""

    def __init__(self, batches: int, *, by_hand: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.batches = batches
        self.automatic_optimization = not by_hand

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
    """The costs of the batches of one fit, by the name of what was measured."""
    optimizer, scheduler = SCHEDULES[schedule]
    warmup = batches // 2 if "warmup" in schedule else 0
    if warmup:
        scheduler = {**scheduler, "warmup_steps": warmup}
    callback = ConfigureOptimizers(optimizer, scheduler, verbose=False)
    clock = Clock(callback)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, callback],
    )
    trainer.fit(Line(batches // EPOCHS, by_hand=isinstance(optimizer, list)))
    costs = clock.costs()
    return (
        {f"{schedule}, during": costs[:warmup], f"{schedule}, after": costs[warmup:]} if warmup else {schedule: costs}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=2500, help="of each fit")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    costs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for i in range(arguments.rounds + 1):
        for schedule in SCHEDULES:
            if not i:  # the first round warms up
                fit(schedule, 100)
                continue
            for what, found in fit(schedule, arguments.batches).items():
                costs[what] += found
    print("microseconds per batch, median: in all, and without the scheduler's own step")
    for what, found in costs.items():
        whole, without = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{what:52}{whole:6.1f}{without:6.1f}   {len(found):,} batches")


if __name__ == "__main__":
    main()
