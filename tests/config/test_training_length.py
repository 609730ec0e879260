"""Lengths that depend on the training: the warmup in epochs or as a ratio becomes optimizer steps."""

from __future__ import annotations

from typing import Any

import pytest

from optplug.config.model import WarmupConfig
from optplug.config.parse import parse
from optplug.config.training_length import EpochSteps, TrainingLength, resolve_lengths
from optplug.errors import ConfigError, loc_text

TRAINING = TrainingLength(steps=40, epochs=4, epoch_steps=EpochSteps(((0, 10),)))


def resolved_warmup(given: Any, training: TrainingLength = TRAINING) -> WarmupConfig | None:
    scheduler_config = parse("sgd", {"name": "step_lr", "step_size": 100, **given}).scheduler
    assert scheduler_config is not None
    return resolve_lengths(scheduler_config, training).warmup


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 2}, 20),
        ({"epochs": 0.5}, 5),
        ({"epochs": 1.26}, 13),
        ({"ratio": 0.1}, 4),
        ({"ratio": 1}, 40),
        ({"ratio": 0.33}, 13),
    ],
    ids=str,
)
def test_warmup_length_is_converted_to_steps(given: Any, steps: int):
    assert resolved_warmup({"warmup": {**given, "start_factor": 0.5}}) == WarmupConfig(steps, "steps", 0.5)


def test_warmup_of_less_than_half_a_step_is_none():
    assert resolved_warmup({"warmup": {"ratio": 0.01}}) is None
    assert resolved_warmup({"warmup": {"epochs": 0.04}}) is None


@pytest.mark.parametrize(
    ("unit", "training"),
    [("epochs", TrainingLength(steps=40)), ("ratio", TrainingLength(epochs=4, epoch_steps=EpochSteps(((0, 10),))))],
)
def test_unknown_training_length_raises(unit: str, training: TrainingLength):
    with pytest.raises(ConfigError) as caught:
        resolved_warmup({"warmup": {unit: 1}}, training)
    assert str(caught.value) == f"scheduler.warmup.{unit}: no trainer is attached: give the warmup in steps"
    assert loc_text(caught.value.loc) == f"scheduler.warmup.{unit}"
    assert resolved_warmup({"warmup": {"steps": 3}}, TrainingLength()) == WarmupConfig(3)
