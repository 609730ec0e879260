"""What choosing by name costs per training step: a trainer wired by name against a hand-written `configure_optimizers`.

    python benchmarks/wiring.py [--rounds 30] [--epochs 2]

Both train the example's network on its digits with the same optplug Adam and cosine. Fits take turns in one process;
the figure of a fit is its median batch, from one `on_train_batch_start` to the next; the ratio is the median of that of
neighbouring fits, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

import pytorch_lightning as pl
import torch

import optplug
from optplug.pytorch_lightning import ConfigureOptimizers

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from digits import Digits, DigitsClassifier  # the example is no package


class ByHand(DigitsClassifier):
    def configure_optimizers(self) -> dict[str, object]:
        optimizer = optplug.get_optimizer("adam")(self.parameters(), lr=1e-3)
        scheduler = optplug.get_scheduler("cosine_annealing_lr")(optimizer, T_max=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


class Clock(pl.Callback):
    """The time from each batch's start to the next one's."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.starts.append(time.perf_counter())

    def median(self) -> float:
        return statistics.median(b - a for a, b in pairwise(self.starts))


def fit(by_name: bool, epochs: int) -> float:
    torch.manual_seed(0)
    clock = Clock()
    callbacks: list[pl.Callback] = [clock]
    if by_name:
        schedule = {"name": "cosine_annealing_lr", "T_max": 100}
        callbacks.append(ConfigureOptimizers({"name": "adam", "lr": 1e-3}, schedule, verbose=False))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(DigitsClassifier() if by_name else ByHand(), Digits())
    return clock.median()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(arguments.rounds + 1):
        for by_name in (True, False) if i % 2 else (False, True):
            median = fit(by_name, arguments.epochs)
            if i:  # the first round warms up
                times[by_name].append(median)
    name, hand = (1e6 * statistics.median(times[key]) for key in (True, False))
    ratio = statistics.median(a / b for a, b in zip(times[True], times[False], strict=True))
    print(
        f"a training step by name {name:.0f} us, by hand {hand:.0f} us, {arguments.rounds} fits each: ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
