"""Classify scikit-learn's handwritten digits with an optimizer and a schedule that a YAML file names.

    python examples/digits.py --config examples/adam_plateau.yaml
    python examples/digits.py --config examples/sgd_cosine.yaml --optimizer.lr 0.05
    python examples/digits.py --config examples/muon.yaml

The data is part of scikit-learn: 1,797 images of 8 x 8 pixels. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from optplug.pytorch_lightning import OptplugCLI


class Digits(pl.LightningDataModule):
    """The digits: 60 % for training, 20 % for validation, 20 % for testing. The split is the same in every run."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(data.target)
        rest, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
        train, val = train_test_split(rest, test_size=0.25, random_state=0, stratify=labels[rest])
        self.train, self.val, self.test = (TensorDataset(images[i], labels[i]) for i in (train, val, test))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 512)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 512)


class DigitsClassifier(pl.LightningModule):
    """A small convolutional network. It has no `configure_optimizers`: the configuration names the optimizer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(2 * width * 16, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def _loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_acc": accuracy}, on_epoch=True, on_step=False, prog_bar=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._loss(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._loss(batch, "test")


def plot_curves(log: Path, plot: Path, steps_per_epoch: int) -> None:
    """Plot the loss and the learning rate over the epochs, from the CSV log."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with log.open() as file:
        rows = list(csv.DictReader(file))
    lr_column = next(key for key in rows[0] if key.startswith("lr-"))
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), constrained_layout=True)
    for key in ("train_loss", "val_loss"):
        above.semilogy(*_series(rows, "epoch", key), label=key)
    steps, lrs = _series(rows, "step", lr_column)
    below.step([step / steps_per_epoch for step in steps], lrs, where="post", color="tab:green", label="learning rate")
    above.set_ylabel("loss")
    below.set(xlabel="epoch", ylabel="learning rate")
    above.legend()
    below.legend()
    figure.savefig(plot, dpi=110)


def _series(rows: list[dict[str, str]], x: str, y: str) -> tuple[list[float], list[float]]:
    pairs = [(float(row[x]), float(row[y])) for row in rows if row.get(x) and row.get(y)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def main() -> None:
    cli = OptplugCLI(DigitsClassifier, Digits, run=False, save_config_kwargs={"overwrite": True})
    cli.trainer.fit(cli.model, cli.datamodule)
    if cli.trainer.fast_dev_run:
        return
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best", verbose=False)
    folder = Path(cli.trainer.log_dir)
    plot_curves(folder / "metrics.csv", folder / "curves.png", cli.trainer.num_training_batches)
    print(f"test accuracy {metrics['test_acc']:.4f}; logs, configuration and plot in {folder}")
    if metrics["test_acc"] < 0.97:
        sys.exit("test accuracy is below 0.97, which is not expected")


if __name__ == "__main__":
    main()
