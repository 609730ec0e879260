"""Lengths that depend on the training: the warmup in epochs or as a ratio becomes optimizer steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from optplug.config.model import WarmupConfig
from optplug.config.parse import parse
from optplug.config.training_length import EpochSteps, TrainingLength, resolve_lengths
from optplug.errors import ConfigError, loc_text
from optplug.schedulers.warmup import Warmup

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


# ------------------------------------------------------------------------------------------ schedule after the warmup


def resolved_length(length: Any, warmup: Any, training: TrainingLength = TRAINING, **given: Any) -> Any:
    scheduler = {"name": "cosine_annealing_lr", "T_max": length, "warmup": warmup, **given}
    scheduler_config = parse("sgd", scheduler).scheduler
    assert scheduler_config is not None
    return resolve_lengths(scheduler_config, training).arguments["T_max"]


@pytest.mark.parametrize(
    ("warmup", "by_step", "by_epoch"),
    [({"steps": 8}, 32, 3), ({"ratio": 0.25}, 30, 3), ({"steps": 11}, 29, 2), ({"epochs": 2}, 20, 2)],
    ids=str,
)
def test_schedule_after_the_warmup_has_the_rest_of_the_training(warmup: Any, by_step: int, by_epoch: int):
    after = {**warmup, "schedule": "after"}
    assert resolved_length("auto", after, interval="step") == resolved_length({"ratio": 1}, after, interval="step")
    assert resolved_length("auto", after, interval="step") == by_step
    assert resolved_length({"ratio": 0.5}, after, interval="step") == round(by_step / 2)
    assert resolved_length("auto", after) == by_epoch
    assert resolved_length("auto", warmup, interval="step") == 40
    assert resolved_length({"epochs": 2}, after, interval="step") == 20


def test_schedule_after_a_warmup_of_the_whole_training_has_one_step():
    assert resolved_length("auto", {"ratio": 1, "schedule": "after"}, interval="step") == 1
    assert resolved_length({"ratio": 0.5}, {"steps": 99, "schedule": "after"}) == 1


def test_schedule_after_the_warmup_of_unknown_length_raises():
    training = TrainingLength(epochs=4)
    with pytest.raises(ConfigError, match=r"^scheduler.T_max: is auto, and no trainer is attached: .*give a number"):
        resolved_length("auto", {"steps": 3, "schedule": "after"}, training)


@settings(deadline=None)
@drawn(
    steps_per_epoch=st.integers(1, 6),
    epochs=st.integers(1, 6),
    before=st.integers(0, 4),
    length=st.integers(1, 40),
    frequency=st.integers(1, 4),
    interval=st.sampled_from(["step", "epoch"]),
)
def test_auto_after_the_warmup_is_the_number_of_steps_that_the_schedule_takes(
    steps_per_epoch: int, epochs: int, before: int, length: int, frequency: int, interval: str
):
    """Compare with a loop that steps the schedule where the callback does."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warmup = Warmup(LambdaLR(optimizer, lambda t: 1.0), length, delays_schedule=True)
    optimizer.step()
    for epoch in range(before, before + epochs):
        for batch in range(steps_per_epoch):
            warmup.warmup_step()
            if interval == "step" and (epoch * steps_per_epoch + batch + 1) % frequency == 0:
                warmup.step()
        if interval == "epoch" and (epoch + 1) % frequency == 0:
            warmup.step()
    training = TrainingLength(
        steps_per_epoch * epochs,
        epochs,
        EpochSteps(((0, steps_per_epoch),)),
        steps_before=before * steps_per_epoch,
        epochs_before=before,
    )
    assert training.scheduler_steps(interval, frequency, length) == warmup.scheduler.last_epoch
