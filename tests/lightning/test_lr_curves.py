"""The curves that `optplug plot` draws are the learning rates of the training."""

from __future__ import annotations

from typing import Any

import pytest

from optplug.config.build import parse_and_check
from optplug.config.lr_curves import dummy_groups, lr_curves
from optplug.config.training_length import EpochSteps, TrainingLength
from support import BATCHES_PER_EPOCH

SGD = {"name": "sgd", "lr": 0.3, "momentum": 0.9}


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step", "warmup_steps": 5},
        {"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"epochs": 1.5}},
        {"name": "exponential_lr", "gamma": 0.7, "interval": "step", "frequency": 3, "warmup": {"ratio": 0.4}},
        {"name": "step_lr", "step_size": 1, "frequency": 2},
        {"name": "reduce_lr_on_plateau", "patience": 1, "factor": 0.5, "monitor": "val_loss", "warmup_steps": 6},
        {"name": "reduce_lr_on_plateau", "patience": 5, "patience_unit": "steps", "monitor": "val_loss"},
        {"warmup_steps": 7},
        {
            "name": "cosine_annealing_lr",
            "T_max": "auto",
            "interval": "step",
            "warmup": {"steps": 5, "schedule": "after"},
        },
        {"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"epochs": 1.5, "schedule": "after"}},
        {"name": "wsd", "total_steps": "auto", "decay_steps": {"ratio": 0.25}, "warmup": 0.2},
        {"name": "multi_step_lr", "milestones": [{"ratio": 0.5}, {"epochs": 5}], "interval": "step"},
    ],
    ids=str,
)
def test_curves_are_the_learning_rates_of_a_training(
    fit: Any, pl: Any, optplug_lightning: Any, scripted_module: type, scheduler: Any
) -> None:
    check(fit, pl, optplug_lightning, scripted_module(val={"val_loss": [1.0]}), scheduler, {})


@pytest.mark.parametrize(
    "own", [None, {"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"steps": 5}}, {"warmup_steps": 9}]
)
def test_curves_of_groups_with_schedules_of_their_own(
    fit: Any, pl: Any, optplug_lightning: Any, scripted_module: type, own: Any
) -> None:
    scheduler = {"name": "exponential_lr", "gamma": 0.7, "warmup": {"epochs": 1.5, "schedule": "after"}}
    check(fit, pl, optplug_lightning, scripted_module(), scheduler, {"scheduler": own})


def check(fit: Any, pl: Any, optplug_lightning: Any, module: Any, scheduler: Any, rule: Any) -> None:
    """Train a module, and compare the learning rate of each step and group with the curves."""
    groups = [{"match": "layer.bias", "lr_mult": 0.1, **rule}]
    seen: list[list[float]] = []

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            seen.append([float(group["lr"]) for group in trainer.optimizers[0].param_groups])

    epochs = 6
    callbacks = [optplug_lightning.ConfigureOptimizers(SGD, scheduler, param_groups=groups, verbose=False), Record()]
    fit(
        SGD,
        module=module,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )

    steps = epochs * BATCHES_PER_EPOCH
    training = TrainingLength(steps, epochs, EpochSteps(((0, BATCHES_PER_EPOCH),)))
    setup = parse_and_check(SGD, scheduler, param_groups=groups).setup
    default, bias = lr_curves(dummy_groups(setup, 1.0), setup, training)
    assert seen == [list(pair) for pair in zip(default.lrs[:steps], bias.lrs[:steps], strict=True)]
    assert len(set(default.lrs)) > 2
