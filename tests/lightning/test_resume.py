"""Interrupted and resumed equals uninterrupted, bit for bit; checkpoints are plain and exchangeable with torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

ADAM = {"name": "adam", "lr": 0.1}
RUNS = {
    "adam, plateau": (ADAM, {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}),
    "adam, plateau, warmup": (ADAM, {"name": "reduce_lr_on_plateau", "patience": 1, "factor": 0.5, "warmup_steps": 10}),
    "sgd, cosine, warmup": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "cosine_annealing_lr", "T_max": 5, "warmup_steps": 10},
    ),
    "sgd, cosine by step": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "cosine_annealing_lr", "T_max": 20, "interval": "step", "frequency": 3},
    ),
}
# The best comes first, at the checkpoint and later; so a lost or repeated step shows.
LOSSES = {"val_loss": [5.0, 4.0, 6.0, 3.0, 7.0, 8.0, 2.0]}
EPOCHS = 5

# Resuming into the folder of the checkpoint is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


@pytest.fixture
def saver(pl: Any, tmp_path: Path) -> Any:
    """Makes a checkpoint callback that keeps every checkpoint, at the end of epochs or validations."""

    def make(at_epoch_end: bool) -> Any:
        return pl.callbacks.ModelCheckpoint(
            tmp_path, filename="{epoch}-{step}", save_top_k=-1, save_on_train_epoch_end=at_epoch_end
        )

    return make


def outcome(run: Any, module: Any) -> dict[str, Any]:
    """Weights, optimizer state and scheduler counters after a run."""
    return {
        "weights": {name: p.tolist() for name, p in module.state_dict().items()},
        "optimizer": [
            [
                {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
                for state in o.state.values()
            ]
            for o in run.optimizers
        ],
        "scheduler": [entry.scheduler.state_dict() for entry in run.lr_scheduler_configs],
    }


@pytest.mark.parametrize("chosen", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(
    ("way", "at_epoch_end", "arguments"),
    [
        ("callback", True, {}),
        ("helper", True, {}),
        ("callback", False, {}),
        ("callback", True, {"val_check_interval": 0.5}),
        ("callback", True, {"check_val_every_n_epoch": 2}),
        ("callback", True, {"max_steps": 4 * EPOCHS, "max_epochs": -1}),
    ],
    ids=["epoch end", "helper", "validation end", "two validations an epoch", "every second epoch", "max_steps"],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    scripted: type,
    helped: type,
    ours: Any,
    trainer: Any,
    saver: Any,
    tmp_path: Path,
    chosen: Any,
    way: str,
    at_epoch_end: bool,
    arguments: Any,
):
    optimizer, scheduler = chosen

    def fit(**kwargs: Any) -> tuple[Any, Any]:
        if way == "helper":
            module, own = helped({"optimizer": optimizer, "scheduler": scheduler}, val=LOSSES), []
        else:
            module, own = scripted(val=LOSSES), [ours.ConfigureOptimizers(optimizer, scheduler, verbose=False)]
        callbacks = [*own, saver(at_epoch_end)]
        run = trainer(**{"max_epochs": EPOCHS, "enable_checkpointing": True, "callbacks": callbacks, **arguments})
        run.fit(module, **kwargs)
        return run, module

    whole, straight = fit()
    resumed, rest = fit(ckpt_path=tmp_path / "epoch=1-step=8.ckpt")
    assert rest.rates == straight.rates[8:]
    assert rest.stepped == [step for step in straight.stepped if step[0] > 1]
    assert outcome(resumed, rest) == outcome(whole, straight)


@pytest.mark.parametrize("where", ["train", "late"])
def test_a_plateau_on_a_training_metric_resumes_from_the_end_of_an_epoch(
    scripted: type, ours: Any, trainer: Any, saver: Any, tmp_path: Path, where: str
):
    optimizer, scheduler = RUNS["adam, plateau"]

    def fit(**kwargs: Any) -> tuple[Any, Any]:
        module = scripted(**{where: {"train_loss": LOSSES["val_loss"]}})
        own = ours.ConfigureOptimizers(optimizer, scheduler, monitor="train_loss", verbose=False)
        run = trainer(max_epochs=EPOCHS, enable_checkpointing=True, callbacks=[own, saver(True)])
        run.fit(module, **kwargs)
        return run, module

    whole, straight = fit()
    assert [metric for *_, metric in straight.stepped] == LOSSES["val_loss"][:EPOCHS]
    resumed, rest = fit(ckpt_path=tmp_path / "epoch=1-step=8.ckpt")
    assert rest.rates == straight.rates[8:]
    assert [metric for *_, metric in rest.stepped] == LOSSES["val_loss"][2:EPOCHS]
    assert outcome(resumed, rest) == outcome(whole, straight)


PLAIN = (int, float, str, bool, type(None))


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, PLAIN) and plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return type(value) in PLAIN


@pytest.mark.parametrize("chosen", RUNS.values(), ids=RUNS)
def test_a_checkpoint_loads_as_weights_only_and_is_plain(
    scripted: type, ours: Any, trainer: Any, tmp_path: Path, chosen: Any
):
    optimizer, scheduler = chosen
    run = trainer(callbacks=ours.ConfigureOptimizers(optimizer, scheduler, verbose=False))
    run.fit(scripted(val=LOSSES))
    run.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert plain(loaded["lr_schedulers"])
    assert plain(loaded["callbacks"])
    assert all(plain(state["param_groups"]) for state in loaded["optimizer_states"])
    assert all(
        isinstance(v, torch.Tensor)
        for o in loaded["optimizer_states"]
        for state in o["state"].values()
        for v in state.values()
    )


@pytest.mark.parametrize("first", ["torch", "optplug"])
@pytest.mark.parametrize("with_plateau", [False, True], ids=["", "plateau"])
def test_a_run_of_torch_s_adam_goes_on_under_optplug_s_and_back(
    scripted: type, ours: Any, trainer: Any, tmp_path: Path, first: str, with_plateau: bool
):
    class Torch(scripted):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            if not with_plateau:
                return optimizer
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    def fit(whose: str, epochs: int, **kwargs: Any) -> tuple[Any, Any]:
        if whose == "torch":
            module, callback = Torch(val=LOSSES), ours.ConfigureOptimizers(verbose=False)
        else:
            scheduler = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5} if with_plateau else None
            module, callback = scripted(val=LOSSES), ours.ConfigureOptimizers(ADAM, scheduler, verbose=False)
        run = trainer(max_epochs=epochs, callbacks=callback)
        run.fit(module, **kwargs)
        return run, module

    second = {"torch": "optplug", "optplug": "torch"}[first]
    whole, straight = fit(first, 4)
    start, _ = fit(first, 2)
    start.save_checkpoint(tmp_path / "half.ckpt")
    run, rest = fit(second, 4, ckpt_path=tmp_path / "half.ckpt")
    assert type(run.optimizers[0]) is not type(whole.optimizers[0])
    assert rest.rates == straight.rates[8:]
    for p, q in zip(rest.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    for mine, other in zip(run.optimizers[0].state.values(), whole.optimizers[0].state.values(), strict=True):
        assert set(mine) == set(other)
        assert mine["step"] == other["step"]
