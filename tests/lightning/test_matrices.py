"""An optimizer of matrices with its fallback, in Lightning: it trains, resumes and is scheduled as one optimizer."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

import optplug
from matrix_optimizers import MATRIX_OPTIMIZERS
from optplug.errors import WiringError
from optplug.optim.combined import Combined
from support import QUIET, rounded

BATCHES = 4
EPOCHS = 4
MUON: dict[str, Any] = {"name": "muon", "lr": 0.02}
LRS = [0.02, 1e-3]
"""The learning rates of Muon and of AdamW, its fallback."""

SCHEDULES: dict[str, Any] = {
    "constant": None,
    "cosine": {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step", "warmup_steps": 3},
    "plateau": {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "monitor": "val_loss", "warmup_steps": 3},
}

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")


@pytest.fixture(autouse=True)
def matrix_optimizers(register_optimizers: Any) -> None:
    register_optimizers(*MATRIX_OPTIMIZERS)


@pytest.fixture
def network_module(scripted_module: type) -> Any:
    """A network with an embedding-like table, two hidden layers and an output layer."""

    class Network(scripted_module):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**{"val": {"val_loss": [1.0, 2.0, 3.0, 4.0]}, **kwargs})
            self.lr = 0.5
            output = self.layer
            del self.layer
            self.backbone = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4))
            self.layer = output  # the last linear layer that is registered
            self.all_lrs: list[list[float]] = []

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(self.layer(self.backbone(batch[0])), batch[1])

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.all_lrs.append([float(group["lr"]) for group in optimizer.param_groups])

    return Network


def parameters(module: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def equal(first: Any, second: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.both_import_names
@pytest.mark.parametrize("name", ["muon", *(spec.name for spec in MATRIX_OPTIMIZERS)])
def test_one_line_trains(fit: Any, network_module: Any, name: str) -> None:
    before = parameters(network_module())
    made, module = fit({"name": name, "lr": 0.02}, module=network_module(), gradient_clip_val=1.0)
    (optimizer,) = made.optimizers
    assert isinstance(optimizer, Combined)
    assert [(len(group["params"]), group["lr"]) for group in optimizer.param_groups] == [(2, 0.02), (6, 1e-3)]
    assert all(not torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("groups", [None, ["no_decay", {"match": "backbone.*", "lr_mult": 0.5}]], ids=["all", "rules"])
def test_resumed_training_equals_uninterrupted(
    fit: Any, network_module: Any, tmp_path: Path, schedule: Any, groups: Any
) -> None:
    given = {"param_groups": groups, "num_sanity_val_steps": 0}
    _, whole = fit(MUON, schedule, module=network_module(), max_epochs=EPOCHS, **given)
    length = {"T_max": EPOCHS * BATCHES} if schedule is not None and "T_max" in schedule else {}
    half = schedule if schedule is None else {**schedule, **length}
    made, first = fit(MUON, half, module=network_module(), max_epochs=2, **given)
    made.save_checkpoint(tmp_path / "half.ckpt")
    resumed, second = fit(
        MUON, half, module=network_module(), max_epochs=EPOCHS, ckpt_path=tmp_path / "half.ckpt", **given
    )
    assert equal(whole, second)
    assert [*first.all_lrs, *second.all_lrs] == whole.all_lrs
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["optimizer_states"][0]
    assert state.keys() == {"state", "param_groups"}
    assert len(state["state"]) == 8
    assert resumed.optimizers[0].param_groups[0]["name"].startswith("muon")


def test_schedule_and_warmup_apply_to_both(fit: Any, network_module: Any) -> None:
    _, module = fit(MUON, SCHEDULES["cosine"], module=network_module(), max_epochs=EPOCHS)
    _, single = fit({"name": "sgd", "lr": 1.0}, SCHEDULES["cosine"], module=network_module(), max_epochs=EPOCHS)
    for lrs, (ratio,) in zip(module.all_lrs, single.all_lrs, strict=True):
        assert lrs == pytest.approx([lr * ratio for lr in LRS], rel=1e-9)


def test_plateau_reduces_both(fit: Any, network_module: Any) -> None:
    made, _ = fit(
        MUON, {**SCHEDULES["plateau"], "warmup_steps": 0}, module=network_module(), num_sanity_val_steps=0, max_epochs=3
    )
    assert rounded([group["lr"] for group in made.optimizers[0].param_groups]) == rounded([lr / 4 for lr in LRS])


# ------------------------------------------------------------------------------------------ on_resume


@pytest.fixture
def checkpoint(fit: Any, network_module: Any, tmp_path: Path) -> Path:
    made, _ = fit(MUON, module=network_module(), max_epochs=1)
    made.save_checkpoint(tmp_path / "one.ckpt")
    return tmp_path / "one.ckpt"


def lrs_after(fit: Any, network_module: Any, optimizer: Any, checkpoint: Path, policy: str) -> Any:
    made, _ = fit(optimizer, module=network_module(), max_epochs=2, ckpt_path=checkpoint, on_resume=policy)
    return [group["lr"] for group in made.optimizers[0].param_groups]


def test_on_resume_policies(fit: Any, network_module: Any, checkpoint: Path, capsys: Any) -> None:
    changed = {**MUON, "lr": 0.5, "fallback": {"lr": 0.25}}
    assert lrs_after(fit, network_module, changed, checkpoint, "keep") == LRS
    for policy in ("override_hparams", "reset_all"):
        assert lrs_after(fit, network_module, changed, checkpoint, policy) == [0.5, 0.25]


def test_other_fallback_on_resume_is_refused(fit: Any, network_module: Any, checkpoint: Path) -> None:
    changed = {**MUON, "fallback": "adam"}
    with pytest.raises(WiringError, match=r"checkpoint is muon with adamw, but the configuration has muon with adam;"):
        lrs_after(fit, network_module, changed, checkpoint, "keep")
    assert lrs_after(fit, network_module, changed, checkpoint, "reset_all") == [0.02, 1e-3]


def test_other_assignment_on_resume_is_refused(fit: Any, network_module: Any, checkpoint: Path) -> None:
    with pytest.raises(WiringError, match=r"group muon no longer has backbone\.0\.weight"):
        lrs_after(fit, network_module, {**MUON, "fallback": {"match": "backbone.0.*"}}, checkpoint, "keep")


# ------------------------------------------------------------------------------------------ frozen parameters


def test_module_unfreezes_parameters_that_the_optimizer_holds(fit: Any, network_module: Any) -> None:
    class Unfreezing(network_module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone.requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.backbone.requires_grad_(self.trainer.current_epoch > 0)

    before = parameters(Unfreezing())
    made, module = fit(MUON, module=Unfreezing(), max_epochs=2)
    assert [len(group["params"]) for group in made.optimizers[0].param_groups] == [2, 6]
    assert all(not torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))


@pytest.fixture
def finetune(pl: Any, optplug_lightning: Any, trainer: Any, network_module: Any) -> Any:
    """Fits with BackboneFinetuning, which unfreezes the backbone in epoch 1; returns the trainer and the module."""

    def run(schedule: Any = None, *, max_epochs: int = EPOCHS, ckpt_path: Any = None, **options: Any) -> Any:
        unfreeze = pl.callbacks.BackboneFinetuning(
            1, lambda_func=constant_ratio, backbone_initial_ratio_lr=0.1, initial_denom_lr=1.0
        )

        class Network(network_module):
            def on_train_epoch_start(self) -> None:
                if self.trainer.current_epoch > 1:  # Lightning leaves it frozen when it resumes
                    self.backbone.requires_grad_(True)

        mine = optplug_lightning.ConfigureOptimizers(MUON, schedule, verbose=False, **options)
        made, module = trainer(callbacks=[mine, unfreeze], max_epochs=max_epochs), Network()
        made.fit(module, ckpt_path=ckpt_path)
        return made, module

    return run


def constant_ratio(epoch: int) -> float:
    return 1.0


@pytest.mark.both_import_names
def test_backbone_finetuning_distributes_the_backbone(finetune: Any) -> None:
    made, module = finetune()
    groups = made.optimizers[0].param_groups
    assert [(group["name"], len(group["params"])) for group in groups] == [
        ("adamw", 2),
        ("muon backbone", 2),
        ("adamw backbone", 4),
    ]
    assert module.all_lrs[0] == [1e-3]
    # The callback sets a tenth of the learning rate of the first group; Muon has a tenth of its own.
    assert module.all_lrs[-1] == pytest.approx([1e-3, 2e-3, 1e-4])


@pytest.mark.parametrize("schedule", [None, SCHEDULES["cosine"]], ids=["constant", "cosine"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_backbone_finetuning_resumes(finetune: Any, tmp_path: Path, schedule: Any, at: int) -> None:
    fixed = schedule and {**schedule, "T_max": EPOCHS * BATCHES}
    _, whole = finetune(fixed)
    made, first = finetune(fixed, max_epochs=at)
    made.save_checkpoint(tmp_path / "part.ckpt")
    _, second = finetune(fixed, ckpt_path=tmp_path / "part.ckpt")
    assert [*first.all_lrs, *second.all_lrs] == whole.all_lrs
    assert equal(whole, second)


# ------------------------------------------------------------------------------------------ finder, summary, CLI


def test_learning_rate_finder_with_a_link_sets_the_rate_of_the_matrices(
    pl: Any, network_module: Any, trainer: Any, quiet_callback: Any
) -> None:
    class Tunable(network_module):
        def train_dataloader(self) -> Any:
            data = super().train_dataloader().dataset
            return DataLoader(ConcatDataset([data] * 16), batch_size=2)

    module = Tunable()
    made = trainer(callbacks=quiet_callback({**MUON, "lr": "module.lr"}))
    tuner = importlib.import_module(f"{pl.__name__}.tuner").Tuner(made)
    found = tuner.lr_find(module, num_training=40).suggestion()
    made.fit(module)
    assert module.lr == found != 0.5
    assert [group["lr"] for group in made.optimizers[0].param_groups] == [found, 1e-3]


def test_summary_says_why(fit: Any, network_module: Any, capsys: Any) -> None:
    fit(MUON, module=network_module(), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    names = [line.partition(" from")[0] for line in lines if "optimizer " in line and "from plugin" in line]
    assert names == ["optplug: optimizer muon", "optplug: optimizer adamw"]
    (muon,) = [line for line in lines if "matrix (" in line]
    assert muon.endswith("matrix (backbone.0.weight, backbone.2.weight)")
    (adamw,) = [line for line in lines if "vector (" in line]
    assert adamw.endswith("vector (4), output layer (layer.weight, layer.bias)")


def test_command_line(
    optplug_lightning: Any, network_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py"])
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {"seed_everything": 1, "optimizer": MUON, "trainer": {**QUIET, "default_root_dir": str(tmp_path)}}
        )
    )
    args = ["fit", "--config", str(config), "--optimizer.lr", "0.05", "--optimizer.fallback.lr", "0.25"]
    made = optplug_lightning.OptplugCLI(network_module, args=args, save_config_callback=None)
    assert [group["lr"] for group in made.trainer.optimizers[0].param_groups] == [0.05, 0.25]
    made.trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["optplug"]
    assert saved["config"]["optimizer"]["fallback"] == {"name": "adamw", "lr": 0.25}
    assert saved["groups"][0][0]["reasons"] == ["matrix", "matrix"]


def test_own_hook_of_the_module(pl: Any, network_module: Any, trainer: Any) -> None:
    class Own(network_module):
        def configure_optimizers(self) -> Any:
            return optplug.configure_optimizers(self, MUON, {"name": "exponential_lr", "gamma": 0.5})

    made = trainer(max_epochs=2)
    made.fit(Own())
    assert [group["lr"] for group in made.optimizers[0].param_groups] == [0.02 / 4, 1e-3 / 4]


def test_list_of_optimizers_in_manual_optimization(fit: Any, network_module: Any) -> None:
    class Two(network_module):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

    before = parameters(Two(automatic=False))
    entries = [{**MUON, "match": "backbone.*", "output": []}, {"name": "sgd", "rest": True}]
    made, module = fit(entries, module=Two(automatic=False))
    assert [len(optimizer.param_groups) for optimizer in made.optimizers] == [2, 1]
    assert all(not torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))


def test_combine_by_hand(fit: Any, network_module: Any) -> None:
    entries = [{**MUON, "ndim": 2, "match": "backbone.*"}, {"name": "adamw", "rest": True, "lr": 0.5}]
    made, _ = fit({"combine": entries}, module=network_module())
    assert [(len(group["params"]), group["lr"]) for group in made.optimizers[0].param_groups] == [(2, 0.02), (6, 0.5)]
