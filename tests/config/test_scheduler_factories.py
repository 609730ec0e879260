"""Functions that return a scheduler, in place of a scheduler class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import optplug
from optplug import SchedulerSpec
from optplug.config.build import parse_and_check
from optplug.errors import ConfigError, PluginError


def get_linear_schedule(optimizer: Any, num_training_steps: int, end: float = 0.0, last_epoch: int = -1) -> LRScheduler:
    """A linear change from 1 to `end`.

    Args:
        optimizer: the optimizer.
        num_training_steps: the length.
        end: the last factor.
        last_epoch: the first step, minus 1.
    """
    return LambdaLR(optimizer, lambda step: 1 + (end - 1) * min(1, step / num_training_steps), last_epoch)


def get_nothing(optimizer: Any) -> Any:
    return [optimizer]


@pytest.fixture(autouse=True)
def registered(register_schedulers: Any) -> None:
    register_schedulers(
        SchedulerSpec("linear", get_linear_schedule, interval="step", cases=({"num_training_steps": 4},)),
        SchedulerSpec("nothing", get_nothing),
    )


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=1.0)


def test_factory_makes_the_scheduler():
    optimizer = sgd()
    scheduler = optplug.create_scheduler("linear", optimizer, num_training_steps=4, end=0.5)
    assert isinstance(scheduler, LambdaLR)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.875]


def test_arguments_of_a_factory_are_checked():
    with pytest.raises(ConfigError, match="linear has no argument 'ends'; did you mean 'end'"):
        optplug.create_scheduler("linear", sgd(), num_training_steps=4, ends=0.5)
    with pytest.raises(
        ConfigError, match=r"^scheduler: linear needs num_training_steps \(num_training_steps may be auto"
    ):
        parse_and_check("sgd", "linear")
    with pytest.raises(ConfigError, match=r"^scheduler.last_epoch: linear has no argument 'last_epoch'"):
        parse_and_check("sgd", {"name": "linear", "num_training_steps": 4, "last_epoch": 3})


def test_factory_that_returns_no_scheduler_raises_error():
    with pytest.raises(
        PluginError, match=r"'nothing' .* returned a list, which is not a scheduler \(it lacks step, st"
    ):
        optplug.create_scheduler("nothing", sgd())


def test_length_of_a_factory_is_that_of_the_training(fit: Any, tmp_path: Any):
    config = {"name": "linear", "num_training_steps": "auto"}
    trainer, module = fit("sgd", config)
    uninterrupted = module.layer.weight.detach().clone()
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0
    trainer, module = fit("sgd", {**config, "num_training_steps": 12}, max_epochs=1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-3 / 3)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    _, module = fit("sgd", config, ckpt_path=tmp_path / "first.ckpt")
    assert torch.equal(module.layer.weight, uninterrupted)
