"""Every scheduler of optplug, trained through OptplugCLI and resumed in the middle: the rates of an uninterrupted run.

The schedulers are those of optplug, each with the settings in `cases` of its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from optplug.registry import registry
from support import first_party

BATCHES, EPOCHS, STOP = 4, 5, 10
"""Optimizer steps in an epoch, epochs, and the step of the checkpoint: in the middle of an epoch."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


def plain(value: Any) -> Any:
    """The value as YAML has it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def configurations() -> Iterator[Any]:
    for registration in registry.registrations("scheduler", "optplug-schedules:*"):
        for i, case in enumerate(registry.get("scheduler", registration.qualified_name).cases):
            given, keys = plain(case), {"interval": "step"}
            if "metric" in registration.spec.capabilities:
                keys = {"monitor": "score", "mode": given.pop("mode", "min")}
            schedule = {"name": registration.name, **keys, "args": given}
            yield pytest.param(schedule, id=f"{registration.name}-{i}")
            if not i:
                yield pytest.param({**schedule, "warmup": {"steps": 15}}, id=f"{registration.name}-warmup")


def test_configurations_contain_all_schedulers_of_optplug():
    named = {param.values[0]["name"] for param in configurations()}
    assert {"cosine_annealing_lr", "reduce_lr_on_plateau"} <= named
    assert named == {*first_party("scheduler")}


@pytest.fixture
def train(pl: Any, optplug_lightning: Any, scripted_module: type, tmp_path: Path) -> Any:
    """Trains through OptplugCLI from a file; returns lr and momentum at each optimizer step, and the scheduler."""

    class Model(scripted_module):
        def __init__(self) -> None:
            super().__init__(val={"score": [2.0, 3.0, 1.0, 4.0, 5.0]})
            self.rates: list[Any] = []

        def loss(self, batch: Any) -> Any:
            return 1e-6 * nn.functional.mse_loss(self.layer(batch[0]), batch[1])  # some rates are large

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.rates.append([(float(group["lr"]), group["momentum"]) for group in optimizer.param_groups])

    def run(scheduler: Any, ckpt_path: Path | None = None) -> Any:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
        checkpoints = {"dirpath": str(tmp_path), "filename": "{step}", "every_n_train_steps": STOP, "save_top_k": -1}
        saver = {"class_path": f"{pl.__name__}.callbacks.ModelCheckpoint", "init_args": checkpoints}
        config = {
            "seed_everything": 1,
            "trainer": {**quiet, "max_epochs": EPOCHS, "num_sanity_val_steps": 0, "callbacks": [saver]},
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            "scheduler": scheduler,
            "verbose": False,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        cli = optplug_lightning.OptplugCLI(Model, run=False, args=["--config", str(path)], save_config_callback=None)
        cli.trainer.fit(cli.model, ckpt_path=ckpt_path)
        return cli.model.rates, cli.trainer.lr_scheduler_configs[0].scheduler

    return run


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("scheduler", list(configurations()))
def test_resumed_rates_are_equal_bit_for_bit(train: Any, tmp_path: Path, scheduler: Any):
    uninterrupted, expected = train(scheduler)
    assert len(uninterrupted) == BATCHES * EPOCHS
    resumed, actual = train(scheduler, tmp_path / f"step={STOP}.ckpt")
    assert resumed == uninterrupted[STOP:]
    assert actual.get_last_lr() == expected.get_last_lr()
    assert actual.last_epoch == expected.last_epoch
