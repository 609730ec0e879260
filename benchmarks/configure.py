"""Time per training step with `ConfigureOptimizers`, compared with a hand-written `configure_optimizers`.

    python benchmarks/configure.py [--rounds 30] [--epochs 2]

Both train the network of examples/digits.py with the same optplug Adam and cosine schedule. Fits of the two alternate
in one process. The time of a fit is its median batch, from one `on_train_batch_start` to the next. The ratio is the
median of the ratios of neighbouring fits, so that a temporary slowdown of the machine affects both.
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
from digits import Digits, DigitsClassifier  # examples is not a package


class HandWritten(DigitsClassifier):
    def configure_optimizers(self) -> dict[str, object]:
        optimizer = optplug.get_optimizer("adam")(self.parameters(), lr=1e-3)
        scheduler = optplug.get_scheduler("cosine_annealing_lr")(optimizer, T_max=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


class BatchTimer(pl.Callback):
    """Measures the time from the start of each batch to the start of the next one."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        self.starts.append(time.perf_counter())

    def median(self) -> float:
        return statistics.median(b - a for a, b in pairwise(self.starts))


def fit(with_callback: bool, epochs: int) -> float:
    """Train, and return the median seconds of a batch."""
    torch.manual_seed(0)
    timer = BatchTimer()
    callbacks: list[pl.Callback] = [timer]
    if with_callback:
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
    trainer.fit(DigitsClassifier() if with_callback else HandWritten(), Digits())
    return timer.median()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(arguments.rounds + 1):
        for with_callback in (True, False) if i % 2 else (False, True):
            median = fit(with_callback, arguments.epochs)
            if i:  # the first round is a warm-up
                times[with_callback].append(median)
    callback, by_hand = (1e6 * statistics.median(times[key]) for key in (True, False))
    ratio = statistics.median(a / b for a, b in zip(times[True], times[False], strict=True))
    print(
        f"a training step takes {callback:.0f} us with ConfigureOptimizers and {by_hand:.0f} us with a hand-written "
        f"configure_optimizers; {arguments.rounds} fits each; ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
