"""Schedules as long as the training (`auto`), and lengths in the wrong unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import optplug
from optplug.errors import ConfigError
from support import BATCHES_PER_EPOCH, scheduler_of

ADAM = {"name": "adam", "lr": 0.1}
COSINE = "cosine_annealing_lr"

# Forked processes warn that their parent has threads, which cannot be avoided with ddp_fork.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class DatasetWithoutLength(IterableDataset):
    def __iter__(self) -> Any:
        return iter([(torch.ones(4), torch.ones(1))] * 8)


# -------------------------------------------------------------------------------------------- Lengths in the wrong unit


def test_length_in_optimizer_steps_at_interval_epoch_raises(fit: Any, scripted_module: type) -> None:
    module = scripted_module()
    with pytest.raises(ConfigError) as caught:
        fit(ADAM, {"name": COSINE, "T_max": 3 * BATCHES_PER_EPOCH}, module=module)
    assert module.lrs == []
    assert str(caught.value) == (
        "scheduler.T_max: is 12, which is the number of optimizer steps of this training, but the schedule steps "
        "once every epoch, and the training has 3 epochs: set interval: step, or T_max: auto; or, if 12 is a number of "
        "epochs, interval: epoch"
    )
    for wrong in (
        {"scheduler": {"T_max": 3 * BATCHES_PER_EPOCH - 2, "warmup_steps": 2}},
        {"scheduler": {"T_max": 3 * BATCHES_PER_EPOCH // 2}, "accumulate_grad_batches": 2},
        # The number of batches.
        {"scheduler": {"T_max": 3 * BATCHES_PER_EPOCH}, "accumulate_grad_batches": 2},
    ):
        given = wrong.pop("scheduler")
        with pytest.raises(ConfigError, match=r"^scheduler.T_max: is \d+, which is the number of"):
            fit(ADAM, {"name": COSINE, **given}, **wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"T_max": 3},
        {"T_max": 50},
        {"T_max": 12, "interval": "step"},
        {"T_max": 12, "interval": "epoch"},
        {"T_max": "auto"},
    ],
)
def test_length_in_the_unit_of_the_interval_or_auto_is_accepted(fit: Any, right: Any) -> None:
    fit(ADAM, {"name": COSINE, **right})


@pytest.mark.parametrize(
    ("limits", "steps", "epochs"),
    [
        ({"max_epochs": 1}, 4, "1 epoch"),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6, "3 epochs"),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 6, "3 epochs"),
        ({"max_epochs": 3, "overfit_batches": 2}, 6, "3 epochs"),
        ({"max_epochs": -1, "max_steps": 10}, 10, "3 epochs"),
        ({"max_epochs": 3, "max_steps": 10}, 10, "3 epochs"),
    ],
    ids=str,
)
def test_length_equal_to_the_steps_of_a_trial_warns(
    fit: Any, scripted_module: type, limits: Any, steps: int, epochs: str
) -> None:
    module = scripted_module()
    with pytest.warns(UserWarning, match="interval: step") as caught:
        fit(ADAM, {"name": COSINE, "T_max": steps}, module=module, **limits)
    assert len(module.lrs) == steps
    assert [str(warning.message) for warning in caught if "T_max" in str(warning.message)] == [
        f"scheduler.T_max: is {steps}, which is the number of optimizer steps of this training, but the schedule steps "
        f"once every epoch, and the training has {epochs}: set interval: step, or T_max: auto; or, if {steps} is a "
        "number of epochs, interval: epoch"
    ]


@pytest.mark.parametrize(
    "limits", [{"max_epochs": 1}, {"max_epochs": 3}, {"max_steps": 10}, {"fast_dev_run": 4}], ids=str
)
def test_given_interval_is_used_without_a_warning(fit: Any, recwarn: pytest.WarningsRecorder, limits: Any) -> None:
    for length in (4, 10, 12):
        fit(ADAM, {"name": COSINE, "T_max": length, "interval": "epoch"}, **limits)
    assert [str(warning.message) for warning in recwarn if "T_max" in str(warning.message)] == []


def test_interval_set_by_the_module_is_used(scripted_module: type, trainer: Any) -> None:
    class Module(scripted_module):
        def configure_optimizers(self) -> Any:
            entry = optplug.configure_optimizers(self, ADAM, {"name": COSINE, "T_max": 3 * BATCHES_PER_EPOCH})
            entry["lr_scheduler"]["interval"] = "step"
            return entry

    fitted = trainer()
    fitted.fit(Module())
    assert scheduler_of(fitted).last_epoch == 3 * BATCHES_PER_EPOCH


# -------------------------------------------------------------------------------------- Lengths from the trainer (auto)


@pytest.mark.usefixtures("step_schedulers")
@pytest.mark.parametrize(
    ("arguments", "total"),
    [
        ({}, 12),
        ({"accumulate_grad_batches": 2}, 6),
        ({"accumulate_grad_batches": 3}, 6),
        ({"max_steps": 5}, 5),
        ({"max_steps": 5, "max_epochs": -1}, 5),
        ({"max_steps": 50}, 12),
        ({"limit_train_batches": 2}, 6),
        ({"overfit_batches": 1}, 3),
        ({"max_time": {"hours": 1}}, 12),
    ],
    ids=str,
)
def test_auto_is_number_of_optimizer_steps_for_interval_step(fit: Any, arguments: Any, total: int) -> None:
    fitted, _ = fit(ADAM, {"name": "one_cycle_lr", "max_lr": 0.1, "total_steps": "auto"}, **arguments)
    scheduler = scheduler_of(fitted)
    # The learning rate is lowest after total_steps - 1 steps. A further one would raise it.
    assert (scheduler.total_steps, scheduler.last_epoch, fitted.global_step) == (total, total - 1, total)


@pytest.mark.parametrize(
    ("arguments", "total"), [({}, 3), ({"max_steps": 5}, 2), ({"max_steps": 5, "max_epochs": -1}, 2)], ids=str
)
def test_auto_is_number_of_epochs_for_interval_epoch(fit: Any, arguments: Any, total: int) -> None:
    fitted, _ = fit(ADAM, {"name": COSINE, "T_max": "auto"}, **arguments)
    assert scheduler_of(fitted).T_max == total
    fitted, _ = fit(ADAM, {"name": COSINE, "T_max": "auto", "interval": "step", "frequency": 2}, max_epochs=2)
    assert (scheduler_of(fitted).T_max, scheduler_of(fitted).last_epoch) == (4, 4)


@pytest.mark.parametrize(
    ("interval", "arguments", "message"),
    [
        ("step", {"max_epochs": 2}, "the training data have no length"),
        (
            "epoch",
            {"max_steps": 4, "max_epochs": -1},
            "the training data have no length .*: give a number, or interval: step",
        ),
        ("step", {"max_epochs": -1, "max_time": {"seconds": 5}}, "the trainer stops by max_time"),
    ],
)
def test_auto_with_unknown_length_raises(
    fit: Any, scripted_module: type, interval: str, arguments: Any, message: str
) -> None:
    module = scripted_module()
    module.train_dataloader = lambda: DataLoader(DatasetWithoutLength(), batch_size=2)
    with pytest.raises(ConfigError, match=rf"^scheduler.T_max: is auto, and {message}"):
        fit(ADAM, {"name": COSINE, "T_max": "auto", "interval": interval}, module=module, **arguments)
    assert module.lrs == []


def test_auto_needs_only_max_steps_for_data_without_length(fit: Any, scripted_module: type) -> None:
    module = scripted_module()
    module.train_dataloader = lambda: DataLoader(DatasetWithoutLength(), batch_size=2)
    fitted, _ = fit(
        ADAM, {"name": COSINE, "T_max": "auto", "interval": "step"}, module=module, max_steps=3, max_epochs=-1
    )
    assert scheduler_of(fitted).T_max == 3


def test_auto_with_max_time_raises(fit: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        fit(ADAM, {"name": COSINE, "T_max": "auto"}, max_epochs=-1, max_time={"seconds": 5})
    assert str(caught.value) == (
        "scheduler.T_max: is auto, and the trainer stops by max_time, so the number of steps is unknown: set "
        "the trainer's max_steps, or give a number"
    )


def test_auto_with_endless_training_raises(fit: Any) -> None:
    with pytest.raises(ConfigError, match="the trainer has neither max_epochs nor max_steps: set"):
        fit(ADAM, {"name": COSINE, "T_max": "auto"}, max_epochs=-1)


def test_auto_without_trainer_raises() -> None:
    with pytest.raises(ConfigError, match=r"^scheduler.T_max: is auto, and no trainer is attached"):
        optplug.configure_optimizers(nn.Linear(1, 1), "adam", {"name": COSINE, "T_max": "auto"})


@pytest.mark.usefixtures("step_schedulers")
def test_schedule_stays_at_its_end_in_a_longer_training(fit: Any, tmp_path: Path) -> None:
    configuration = (ADAM, {"name": "one_cycle_lr", "max_lr": 0.1, "total_steps": "auto"})
    fitted, _ = fit(*configuration, max_epochs=2)
    fitted.save_checkpoint(tmp_path / "half.ckpt")
    longer, module = fit(*configuration, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert longer.global_step == 4 * BATCHES_PER_EPOCH
    assert scheduler_of(longer).last_epoch == 2 * BATCHES_PER_EPOCH - 1  # the end of the restored schedule
    assert module.lrs == pytest.approx([0.1 / 25 / 1e4] * 2 * BATCHES_PER_EPOCH)


@pytest.mark.timeout(90)
def test_auto_counts_the_steps_of_one_process(
    optplug_lightning: Any, scripted_module: type, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    class Recording(scripted_module):
        def on_train_end(self) -> None:
            result = {"total": scheduler_of(self.trainer).T_max, "steps": self.trainer.global_step, "lrs": self.lrs}
            (tmp_path / f"{self.global_rank}.json").write_text(json.dumps(result))

    callback = optplug_lightning.ConfigureOptimizers(
        ADAM, {"name": COSINE, "T_max": "auto", "interval": "step"}, verbose=False
    )
    trainer(devices=2, strategy="ddp_fork", callbacks=callback).fit(Recording())
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["total"] == first["steps"] == 3 * BATCHES_PER_EPOCH // 2


def test_auto_follows_batch_size_finder(pl: Any, optplug_lightning: Any, digits_module: type, trainer: Any) -> None:
    class WithBatchSize(digits_module):
        batch_size = 16

        def train_dataloader(self) -> DataLoader:
            return DataLoader(self.train_data, batch_size=self.batch_size)

    finder = pl.callbacks.BatchSizeFinder(mode="power", steps_per_trial=1, max_trials=2)
    callback = optplug_lightning.ConfigureOptimizers(
        "sgd", {"name": COSINE, "T_max": "auto", "interval": "step"}, verbose=False
    )
    fitted, module = trainer(max_epochs=1, callbacks=[finder, callback], limit_val_batches=0), WithBatchSize()
    fitted.fit(module)
    assert module.batch_size != 16
    assert scheduler_of(fitted).T_max == fitted.global_step == -(-1440 // module.batch_size)


def test_sequence_longer_than_a_dry_run_is_valid(fit: Any) -> None:
    schedules = [{"name": "linear_lr", "length": 500}, {"name": "wsd", "decay_steps": 200}]
    scheduler = {"name": "sequential", "schedules": schedules, "interval": "step"}
    fitted, _ = fit(ADAM, scheduler, fast_dev_run=True)
    assert fitted.global_step == 1
