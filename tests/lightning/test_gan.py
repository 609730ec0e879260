"""The GAN example: it learns, and optplug steps the schedules of both optimizers."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from typer.testing import CliRunner

from optplug.cli.app import app
from optplug.pytorch_lightning import ConfigureOptimizers

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
EPOCHS, BATCHES = 4, 17  # 1,078 images in batches of 64


@pytest.fixture
def gan(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(EXAMPLES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # like the example
    yield importlib.import_module("gan")
    torch.set_num_threads(threads)


@pytest.fixture
def configuration() -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "gan.yaml").read_text())


class LRRecorder(pl.Callback):
    """Records the learning rates at the start of each batch, and the number of steps of each optimizer."""

    def __init__(self) -> None:
        self.lrs: list[list[float]] = []
        self.steps = [0, 0]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for i, optimizer in enumerate(trainer.optimizers):
            optimizer.register_step_post_hook(lambda *_, i=i: self._count(i))

    def _count(self, i: int) -> None:
        self.steps[i] += 1

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.lrs.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "gan.py"), "--trainer.enable_progress_bar=false", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_example_learns_in_a_few_epochs(tmp_path: Path) -> None:
    result = run(tmp_path, "--trainer.max_epochs=16")
    assert result.returncode == 0, result.stderr
    assert "monitor val_frechet (min) from the configuration" in result.stdout
    assert f"T_max is {16 * BATCHES}: as long as the training" in result.stdout
    assert "distance to the validation digits" in result.stdout
    (folder,) = (tmp_path / "runs" / "gan").iterdir()
    assert {"config.yaml", "metrics.csv", "samples.png"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_example_exits_with_an_error_if_the_distance_does_not_fall(tmp_path: Path) -> None:
    result = run(tmp_path, "--trainer.limit_train_batches=1", "--trainer.max_epochs=1")
    assert result.returncode == 1
    assert result.stderr.endswith("the distance has not fallen to a quarter of its first value\n")


def test_example_runs_with_fast_dev_run(tmp_path: Path) -> None:
    result = run(tmp_path, "--trainer.fast_dev_run=true")
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.rglob("samples.png")) == []


def test_gan_configuration_passes_validate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # gan.py imports digits.py from its own folder
    arguments = ["validate", str(EXAMPLES / "gan.yaml"), "--model", f"{EXAMPLES / 'gan.py'}:DigitsGAN"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_each_schedule_is_stepped_at_its_own_interval(
    gan: Any, configuration: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(
        gan, "frechet", lambda *_: torch.tensor(1.0)
    )  # no improvement: each validation after the first cuts the lr
    configuration["optimizer"][0]["scheduler"]["patience"] = 0
    recorder = LRRecorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[ConfigureOptimizers(configuration["optimizer"]), recorder],
    )
    trainer.fit(gan.DigitsGAN(), gan.Digits())

    plateau, cosine = (entry.scheduler for entry in trainer.lr_scheduler_configs)
    total = EPOCHS * BATCHES
    assert recorder.steps == [total, total]
    assert plateau.last_epoch == EPOCHS
    assert cosine.last_epoch == cosine.T_max == total
    generator, discriminator = zip(*recorder.lrs, strict=True)
    assert generator == tuple(1e-3 * 0.5 ** max(0, epoch - 1) for epoch in range(EPOCHS) for _ in range(BATCHES))
    expected = [5e-4 + 1.5e-3 * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total)]
    assert discriminator == pytest.approx(expected)
    cuts = [line for line in capsys.readouterr().out.splitlines() if "learning rate" in line and "->" in line]
    assert cuts == [
        f"optplug: epoch {epoch}: val_frechet is 1, not better than 1: learning rate {before} -> {after}"
        for epoch, before, after in ((1, 0.001, 0.0005), (2, 0.0005, 0.00025), (3, 0.00025, 0.000125))
    ]


def test_validation_uses_fixed_noise(gan: Any) -> None:
    torch.manual_seed(0)
    first = gan.DigitsGAN()
    torch.manual_seed(1)
    second = gan.DigitsGAN()
    assert torch.equal(first.noise, second.noise)
    images = torch.rand(100, 1, 8, 8)
    values: list[float] = []
    first.eval().log = lambda name, value, **_: values.append(value.item())
    for _ in range(2):
        first.validation_step((images, torch.zeros(100)))
    assert values[0] == values[1]


def test_frechet_distance_of_normal_distributions(gan: Any) -> None:
    torch.manual_seed(0)
    images = torch.rand(500, 1, 8, 8)
    variance = images.flatten(1).double().var(0).sum().item()
    mean = images.mean(0).double().square().sum().item()
    assert gan.frechet(images, images).item() == pytest.approx(0, abs=1e-9)
    assert gan.frechet(images + 0.5, images).item() == pytest.approx(64 * 0.25, rel=1e-5)
    assert gan.frechet(3 * images, images).item() == pytest.approx(4 * (variance + mean), rel=1e-5)
    other = torch.rand(500, 1, 8, 8) ** 2
    assert gan.frechet(images, other).item() == pytest.approx(gan.frechet(other, images).item())


def test_frechet_distance_increases_from_real_digits_to_noise(gan: Any) -> None:
    torch.manual_seed(0)
    data = gan.Digits()
    data.setup("fit")
    train, val, test = (split.tensors[0] for split in (data.train, data.val, data.test))
    real = gan.frechet(test, val)
    normal = gan.frechet(gan.normal(train, 1024), val)
    one = gan.frechet(val[:1].repeat(1024, 1, 1, 1), val)
    noise = gan.frechet(torch.rand(1024, 1, 8, 8), val)
    assert 0 < real < normal < one / 4 < noise / 4
