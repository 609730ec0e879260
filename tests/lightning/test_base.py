"""Optimizers that wrap another one, by name, in a trainer: training, resume, command line, plot, validate."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
import pytorch_optimizer
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from optplug.cli.app import app
from optplug.errors import WiringError
from optplug.registry.specs import OptimizerSpec


class OwnConstructor(torch.optim.Optimizer):
    """A wrapper of a built optimizer that does not call torch's constructor and has a state dict of its own form."""

    def __init__(self, optimizer: Any, scale: float = 0.5) -> None:
        self.optimizer, self.scale = optimizer, scale
        self.defaults = optimizer.defaults
        self.state = {}

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(self.scale)
        self.optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> Any:
        return {"base": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Any) -> None:
        self.optimizer.load_state_dict(state_dict["base"])


@pytest.fixture(autouse=True)
def wrappers(register_optimizers):
    register_optimizers(
        OptimizerSpec("own_constructor", OwnConstructor, base="optimizer"),
        OptimizerSpec("wrapped_look", pytorch_optimizer.Lookahead, base="optimizer"),
        OptimizerSpec("wrapped_trac", pytorch_optimizer.TRAC, base="optimizer"),
        OptimizerSpec("wrapped_ortho", pytorch_optimizer.OrthoGrad, base="optimizer"),
        OptimizerSpec("wrapped_free", pytorch_optimizer.ScheduleFreeWrapper, base="optimizer", capabilities={"modes"}),
        OptimizerSpec(
            "wrapped_sam", pytorch_optimizer.SAM, base="base_optimizer", capabilities={"gradients_first", "closure"}
        ),
        OptimizerSpec("from_torch", torch.optim.AdamW),
    )


NAMES = ("own_constructor", "wrapped_free", "wrapped_look", "wrapped_ortho", "wrapped_sam", "wrapped_trac")
COSINE = {"name": "cosine_annealing_lr", "T_max": 100, "interval": "step"}
GROUPS = [{"match": "network.2.*", "lr_mult": 0.5}, {"match": "*.bias", "weight_decay": 0.0}]


@pytest.fixture
def small_module(pl):
    """The class of a regression whose batches have a fixed order."""

    class Small(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
            self.data = TensorDataset(torch.randn(32, 4), torch.randn(32, 2))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.mse_loss(self.network(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.mse_loss(self.network(batch[0]), batch[1]))

        def train_dataloader(self) -> Any:
            return DataLoader(self.data, batch_size=8)

        val_dataloader = train_dataloader

    return Small


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.fixture
def train(optplug_lightning, small_module, trainer):
    """A function that trains for a number of epochs; it returns the trainer and the weights."""

    def run(optimizer: Any, epochs: int, ckpt_path: Any = None, scheduler: Any = COSINE, **options: Any) -> Any:
        callback = optplug_lightning.ConfigureOptimizers(
            optimizer, scheduler, param_groups=GROUPS, verbose=False, **options
        )
        made, module = trainer(max_epochs=epochs, callbacks=[callback]), small_module()
        torch.manual_seed(0)
        made.fit(module, ckpt_path=ckpt_path)
        return made, weights(module)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_training_equals_that_around_torchs_class_and_resumes(train, tmp_path, name):
    optimizer = {"name": name, "base": {"name": "adamw", "lr": 0.01}}
    made, expected = train(optimizer, 2)
    assert len({group["lr"] for group in made.optimizers[0].param_groups}) == 2
    assert made.optimizers[0].param_groups[0]["lr"] < 0.01  # the schedule
    _, of_torch = train({"name": name, "base": {"name": "from_torch", "lr": 0.01}}, 2)
    torch.testing.assert_close(expected, of_torch, rtol=1e-4, atol=1e-5)
    interrupted, _ = train(optimizer, 1)
    interrupted.save_checkpoint(tmp_path / "first.ckpt")
    _, resumed = train(optimizer, 2, ckpt_path=tmp_path / "first.ckpt")
    torch.testing.assert_close(resumed, expected, rtol=0.0, atol=0.0)


def test_summary_names_the_base_and_its_engine(optplug_lightning, small_module, trainer, capsys):
    optimizer = {"name": "wrapped_look", "base": {"name": "sgd", "lr": 0.1, "engine": "foreach"}}
    trainer(max_epochs=1, callbacks=[optplug_lightning.ConfigureOptimizers(optimizer)]).fit(small_module())
    printed = capsys.readouterr()
    lines = printed.out + printed.err
    assert re.search(
        r"optimizer wrapped_look from plugin third-party.*\n.*  around sgd from plugin optplug-classic", lines
    )
    assert re.search(r"engine.*foreach", lines)


def test_checkpoint_of_another_base_is_refused(train, tmp_path):
    made, _ = train({"name": "wrapped_look", "base": "adamw"}, 1)
    made.save_checkpoint(tmp_path / "first.ckpt")
    with pytest.raises(WiringError, match=r"is wrapped_look around adamw, but the configuration has .* around sgd"):
        train({"name": "wrapped_look", "base": {"name": "sgd", "lr": 0.1}}, 2, ckpt_path=tmp_path / "first.ckpt")


def test_hyperparameters_of_the_base_are_overridden_on_resume(train, tmp_path):
    made, _ = train({"name": "own_constructor", "base": {"name": "adamw", "weight_decay": 0.1}}, 1)
    made.save_checkpoint(tmp_path / "first.ckpt")
    changed = {"name": "own_constructor", "base": {"name": "adamw", "weight_decay": 0.2}}
    for policy, expected in (("keep", 0.1), ("override_hparams", 0.2)):
        made, _ = train(changed, 2, ckpt_path=tmp_path / "first.ckpt", on_resume=policy)
        assert {group["weight_decay"] for group in made.optimizers[0].param_groups} == {expected, 0.0}


def test_command_line(optplug_lightning, small_module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--optimizer wrapped_look --optimizer.k 3 --optimizer.base.name sgd --optimizer.base.lr 0.25"
    settings = {"logger": "false", "enable_checkpointing": "false", "accelerator": "cpu", "max_steps": "1"}
    quiet = ["--seed_everything=0", *(f"--trainer.{key}={value}" for key, value in settings.items())]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *words.split(), *quiet])
    cli = optplug_lightning.OptplugCLI(small_module)
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, pytorch_optimizer.Lookahead)
    assert (optimizer.k, optimizer.param_groups[0]["lr"]) == (3, 0.25)


def test_error_on_the_command_line_has_its_location(optplug_lightning, small_module, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--optimizer wrapped_look --optimizer.base.name sgd --optimizer.base.lrr 0.25"
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *words.split()])
    with pytest.raises(SystemExit):
        optplug_lightning.OptplugCLI(small_module)
    assert "optimizer.base.lrr: sgd has no option 'lrr'; did you mean 'lr'?" in capsys.readouterr().err


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    optimizer = {"name": "wrapped_look", "base": {"name": "sgd", "lr": 0.25}}
    path.write_text(yaml.safe_dump({"optimizer": optimizer, "scheduler": {**COSINE, "T_max": 10}}))
    return path


def test_validate(file):
    ran = CliRunner().invoke(app, ["validate", str(file)])
    assert ran.exit_code == 0, ran.output
    file.write_text(file.read_text().replace("lr: 0.25", "lr: -1"))
    ran = CliRunner().invoke(app, ["validate", str(file)])
    assert ran.exit_code == 1
    assert f"{file}:" in ran.output
    assert "optimizer.base.lr: Invalid learning rate: -1" in ran.output


@pytest.mark.parametrize(("words", "lr"), [((), 0.25), (("--lr", "0.125"), 0.125)])
def test_plot_starts_at_the_learning_rate_of_the_base(file, words, lr):
    numbers = file.with_suffix(".numbers.json")
    ran = CliRunner().invoke(app, ["plot", str(file), "--json", str(numbers), *words])
    assert ran.exit_code == 0, ran.output
    assert json.loads(numbers.read_text())["curves"][0]["lr"][0] == lr
