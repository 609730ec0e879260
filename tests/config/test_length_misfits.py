"""Warnings about schedules that are valid but do not fit the length of the training."""

from __future__ import annotations

from typing import Any

import pytest

from optplug.config.build import parse_and_check
from optplug.config.length_misfits import misfit_warnings
from optplug.config.training_length import EpochSteps, TrainingLength, resolve_lengths

TRAINING = TrainingLength(steps=50, epochs=5, epoch_steps=EpochSteps(((0, 10),)))
STEPPED = "and this training steps the schedule 50 times"


def warnings_of(scheduler: Any, training: TrainingLength = TRAINING) -> list[str]:
    config = parse_and_check(None, scheduler).setup.scheduler
    assert config is not None
    return list(misfit_warnings(resolve_lengths(config, training), training))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            {"name": "one_cycle_lr", "max_lr": 0.5, "total_steps": 20},
            f"total_steps is 20, {STEPPED}: the learning rate then stays below 1% of its highest value",
        ),
        (
            {"name": "polynomial_lr", "interval": "step"},
            f"total_iters is 5, {STEPPED}: the learning rate then stays below 1% of its highest value",
        ),
        (
            {"name": "wsd", "total_steps": 80, "decay_steps": 20},
            f"total_steps is 80, {STEPPED}: the learning rate falls only after that",
        ),
        ({"name": "cyclic_lr", "base_lr": 0.1, "max_lr": 0.2}, f"step_size_up is 2000, {STEPPED}"),
        ({"name": "step_lr", "step_size": 51, "interval": "step"}, f"step_size is 51, {STEPPED}"),
        (
            {"name": "multi_step_lr", "milestones": [60, 70], "interval": "step"},
            f"milestones is [60, 70], {STEPPED}",
        ),
        (
            {"name": "exponential_lr", "gamma": 0.9, "warmup": 1000},
            "the warmup of 1000 steps is longer than this training of 50 steps",
        ),
        (
            {"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"steps": 80, "schedule": "after"}},
            "the warmup of 80 steps is longer than this training of 50 steps: the schedule does not start",
        ),
    ],
    ids=str,
)
def test_misfit_is_reported(scheduler: Any, message: str) -> None:
    assert warnings_of(scheduler) == [message]


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "one_cycle_lr", "max_lr": 0.5, "total_steps": 46},
        {"name": "one_cycle_lr", "max_lr": [0.5, 0.1], "total_steps": 20},
        {"name": "one_cycle_lr", "max_lr": 0.5, "total_steps": 80},
        {"name": "wsd", "total_steps": 80, "decay_steps": 40},
        {"name": "linear_lr", "interval": "step"},  # a warmup
        {"name": "constant_lr", "interval": "step"},
        {"name": "polynomial_lr"},
        {"name": "polynomial_lr", "interval": "step", "min_lr_ratio": 0.1},
        {"name": "cosine_annealing_lr", "T_max": 20, "interval": "step", "eta_min": 0.1},
        {"name": "multi_step_lr", "milestones": [30, 70], "interval": "step"},
        {"name": "lambda_lr", "lr_lambda": "0.9 ** epoch"},
        {"name": "reduce_lr_on_plateau", "warmup_steps": 50},
        {"warmup_steps": 50},
    ],
    ids=str,
)
def test_schedule_that_fits_is_not_reported(scheduler: Any) -> None:
    assert warnings_of(scheduler) == []


def test_nothing_is_reported_without_a_length_and_in_a_dry_run() -> None:
    warmup = {"name": "step_lr", "step_size": 99, "warmup_steps": 99}
    assert warnings_of(warmup, TrainingLength()) == []
    assert warnings_of(warmup, TrainingLength(steps=1, epochs=1, is_dry_run=True)) == []
