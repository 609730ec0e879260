"""The learning rates of a training before it starts: exact numbers, groups, lengths, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import optplug
from optplug.config.build import parse_and_check
from optplug.config.lr_curves import Curve, dummy_groups, lr_curves
from optplug.config.training_length import EpochSteps, TrainingLength
from optplug.errors import ConfigError
from optplug.registry.specs import SchedulerSpec

REASON = {"unknown_reason": "the steps of an epoch are not known", "remedy": "add one"}
STEPS = TrainingLength(steps=23, **REASON)
EPOCHS = TrainingLength(epochs=6, **REASON)
BOTH = TrainingLength(23, 6, EpochSteps(((0, 4),)))
"""23 steps, the last epoch has three instead of four."""


def curves_of(scheduler: Any, training: TrainingLength = BOTH, **config: Any) -> list[Curve]:
    setup = parse_and_check(config.pop("optimizer", None), scheduler, **config).setup
    return lr_curves(dummy_groups(setup, 1.0), setup, training)


def lrs_of(scheduler: Any, training: TrainingLength = BOTH, **config: Any) -> list[float]:
    (curve,) = curves_of(scheduler, training, **config)
    return list(curve.lrs)


def test_schedule_in_optimizer_steps() -> None:
    lrs = lrs_of({"name": "exponential_lr", "gamma": 0.5, "interval": "step"}, STEPS)
    assert lrs == [0.5**n for n in range(24)]


def test_schedule_in_epochs_on_an_axis_of_epochs() -> None:
    assert lrs_of({"name": "step_lr", "step_size": 2, "gamma": 0.5}, EPOCHS) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_schedule_in_epochs_on_an_axis_of_steps_counts_the_last_incomplete_epoch() -> None:
    lrs = lrs_of({"name": "exponential_lr", "gamma": 0.5})
    assert lrs == [0.5 ** (n // 4) for n in range(23)] + [0.5**6]


@pytest.mark.parametrize(("interval", "steps_between"), [("step", 3), ("epoch", 12)])
def test_frequency(interval: str, steps_between: int) -> None:
    lrs = lrs_of({"name": "exponential_lr", "gamma": 0.5, "interval": interval, "frequency": 3})
    expected = [0.5 ** (n // steps_between) for n in range(23)]
    assert lrs[:23] == expected
    assert lrs[23] == (0.25 if interval == "epoch" else 0.5**7)  # the sixth epoch has ended


def test_warmup_is_counted_in_optimizer_steps() -> None:
    lrs = lrs_of({"name": "exponential_lr", "gamma": 0.5, "warmup_steps": 8})
    expected = [min(1.0, 1 / 8 + 7 / 8 * n / 8) * 0.5 ** (n // 4) for n in range(23)]
    assert lrs[:23] == pytest.approx(expected, rel=1e-12)
    assert lrs_of({"warmup_steps": 4}, STEPS)[:6] == pytest.approx([0.25, 0.4375, 0.625, 0.8125, 1, 1])


def test_lengths_come_from_the_training() -> None:
    lrs = lrs_of({"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}, STEPS)
    assert lrs == pytest.approx([(1 + math.cos(math.pi * n / 23)) / 2 for n in range(24)], abs=1e-12)
    lrs = lrs_of({"name": "cosine_annealing_lr", "T_max": "auto"}, EPOCHS)
    assert lrs == pytest.approx([(1 + math.cos(math.pi * n / 6)) / 2 for n in range(7)], abs=1e-12)
    assert lrs_of({"warmup": {"epochs": 2}})[7:9] == pytest.approx([1 / 8 + 7 / 8 * 7 / 8, 1])


def test_metric_never_improves() -> None:
    plateau = {"name": "reduce_lr_on_plateau", "patience": 1, "factor": 0.5}
    # The first value is the best one, the second is allowed, the third is not.
    expected = [1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert lrs_of(plateau, EPOCHS) == expected
    assert lrs_of({**plateau, "mode": "max"}, EPOCHS) == expected
    assert lrs_of(plateau) == [expected[n // 4] for n in range(23)] + [0.25]
    in_steps = lrs_of({**plateau, "patience": 9, "patience_unit": "steps"})
    assert [n for n in range(23) if in_steps[n + 1] < in_steps[n]] == [15]  # 4, 8, then 12 steps without improvement


def test_groups_have_curves_of_their_own() -> None:
    curves = curves_of(
        {"name": "exponential_lr", "gamma": 0.5},
        EPOCHS,
        optimizer={"name": "adamw", "lr": 0.25},
        param_groups=["no_decay", {"match": "head.*", "lr_mult": 4}, {"match": "body.*", "lr": 0.5, "name": "body"}],
    )
    assert [curve.groups for curve in curves] == [("default", "no_decay"), ("head.*",), ("body",)]
    assert [curve.lrs[1] for curve in curves] == [0.125, 0.5, 0.25]


def test_groups_have_schedules_of_their_own() -> None:
    rules = [
        {"match": "a.*", "scheduler": {"name": "step_lr", "step_size": 2, "gamma": 0.5}},
        {"match": "b.*", "scheduler": None, "lr_mult": 2},
        {"match": "c.*", "lr_mult": 4},
        {"match": "d.*", "scheduler": {"name": "cosine_annealing_lr", "T_max": "auto"}},
    ]
    exponential = {"name": "exponential_lr", "gamma": 0.5}
    curves = curves_of(exponential, EPOCHS, optimizer={"name": "sgd", "lr": 1.0}, param_groups=rules)
    assert [curve.groups for curve in curves] == [("default",), ("a.*",), ("b.*",), ("c.*",), ("d.*",)]
    default, steps, constant, multiple, cosine = (list(curve.lrs) for curve in curves)
    assert default == [0.5**n for n in range(7)]
    assert steps == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]
    assert constant == [2] * 7
    assert multiple == [4 * 0.5**n for n in range(7)]
    assert cosine == pytest.approx([(1 + math.cos(math.pi * n / 6)) / 2 for n in range(7)], abs=1e-12)
    only_rules = curves_of(None, EPOCHS, optimizer={"name": "sgd", "lr": 1.0}, param_groups=rules[:1])
    assert [list(curve.lrs) for curve in only_rules] == [[1] * 7, steps]


def test_groups_of_combined_optimizers_have_the_names_of_the_table() -> None:
    entries = [{"name": "sgd", "match": "a.*", "lr": 0.5}, {"name": "sgd", "match": "b.*", "lr": 0.25}]
    curves = curves_of({"name": "exponential_lr", "gamma": 0.5}, EPOCHS, optimizer={"combine": entries})
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    optimizer, _ = optplug.create_optimizer_and_scheduler(model, {"combine": entries})
    assert [curve.groups for curve in curves] == [(row.group,) for row in optplug.group_table(optimizer)]


def test_momentum_is_that_of_the_group() -> None:
    groups = [{"lr": 1.0, "momentum": 0.5}, {"lr": 1.0, "betas": (0.75, 0.9)}, {"lr": 1.0}]
    setup = parse_and_check(None, {"name": "exponential_lr", "gamma": 0.5}).setup
    curves = lr_curves(groups, setup, EPOCHS, momentum=True)
    assert [curve.momentums[0] for curve in curves[:2]] == [0.5, 0.75]
    assert math.isnan(curves[2].momentums[0])
    (curve,) = lr_curves(groups, setup, EPOCHS)  # equal learning rates
    assert curve.groups == ("0", "1", "2")
    assert curve.momentums == ()


def test_no_schedule_is_constant() -> None:
    assert lrs_of(None, EPOCHS, optimizer={"name": "sgd", "lr": 0.5}) == [0.5] * 7


def test_third_party_schedule_that_ends(register_schedulers: Any) -> None:
    cls = torch.optim.lr_scheduler.OneCycleLR
    register_schedulers(SchedulerSpec("their_one_cycle", cls, interval="step", length="total_steps"))
    lrs = lrs_of({"name": "their_one_cycle", "max_lr": 2.0, "total_steps": 10}, STEPS)
    assert max(lrs) == pytest.approx(2)
    assert lrs[9] < 1e-4
    assert lrs[10:] == lrs[9:10] * 14  # torch's class raises an error after its last step


@pytest.mark.parametrize(
    ("scheduler", "training", "message"),
    [
        (
            {"name": "exponential_lr", "gamma": 0.5},
            STEPS,
            "scheduler: the schedule takes one step for each epoch, and the steps of an epoch are not known: add one",
        ),
        (
            {"name": "reduce_lr_on_plateau"},
            STEPS,
            "scheduler: the schedule takes a validation for each epoch, and the steps of an epoch are not known: "
            "add one",
        ),
        (
            {"name": "exponential_lr", "gamma": 0.5, "interval": "step"},
            EPOCHS,
            "scheduler.interval: is in optimizer steps, and the steps of an epoch are not known: add one",
        ),
        (
            {"warmup_steps": 3},
            EPOCHS,
            "scheduler.warmup: is in optimizer steps, and the steps of an epoch are not known: add one",
        ),
        ({"warmup_steps": 3}, TrainingLength(**REASON), "the steps of an epoch are not known: add one"),
    ],
)
def test_unknown_lengths_are_errors(scheduler: Any, training: TrainingLength, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lrs_of(scheduler, training)
    assert str(caught.value) == message


def test_error_during_the_training_has_its_step() -> None:
    with pytest.raises(ConfigError, match=r"^scheduler: expression .* is inf at epoch 4; it must be finite$"):
        lrs_of({"name": "lambda_lr", "lr_lambda": "1 / (epoch - 4) if epoch - 4 else 1e400"}, EPOCHS)


@pytest.mark.parametrize(
    ("optimizer", "param_groups", "message"),
    [
        ({"name": "adam", "lr": "module.lr"}, None, "optimizer.lr: is module.lr, which is not known here: add --model"),
        ("sgd", [{"match": "a", "lr": "module.lr"}], "param_groups[0].lr: is module.lr, which is not known here"),
    ],
)
def test_learning_rates_of_the_model_are_not_known(optimizer: Any, param_groups: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        curves_of(None, EPOCHS, optimizer=optimizer, param_groups=param_groups)
    assert str(caught.value).startswith(message)
