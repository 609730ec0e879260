"""Every schedule in the Trainer: resumed in the middle, and with other settings on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import optplug
from support import scheduler_of

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
SCHEDULES: dict[str, dict[str, Any]] = {
    "lambda_lr": {"lr_lambda": "1 / (1 + epoch)"},
    "step_lr": {"step_size": 3, "gamma": 0.5},
    "multi_step_lr": {"milestones": [3, 9], "gamma": 0.5},
    "exponential_lr": {"gamma": 0.9},
    "cosine_annealing_lr": {"T_max": 16, "min_lr_ratio": 0.1},
    "constant_lr": {"total_iters": 10},
    "linear_lr": {"total_iters": 16},
    "polynomial_lr": {"total_iters": 16, "power": 2.0},
    "one_cycle_lr": {"max_lr": 0.5, "total_steps": 16},
    "cyclic_lr": {"base_lr": 0.01, "max_lr": 0.5, "step_size_up": 3},
    "cosine_annealing_warm_restarts": {"T_0": 3, "T_mult": 2},
    "multiplicative_lr": {"lr_lambda": "0.9"},
    "sequential": {
        "schedules": [{"name": "linear_lr", "length": 6}, {"name": "one_cycle_lr", "max_lr": 1.0, "total_steps": 10}]
    },
    "inverse_sqrt": {"timescale": 5},
    "wsd": {"total_steps": 16, "decay_steps": 5, "decay": "1-sqrt"},
}


def test_every_schedule_without_a_metric_is_trained() -> None:
    assert {*SCHEDULES, "reduce_lr_on_plateau"} == {*optplug.list_schedulers("optplug-schedules:*")}


def momentum_of(fitted: Any) -> float:
    return float(fitted.optimizers[0].param_groups[0]["momentum"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_resumed_learning_rates_are_bit_equal(name: str, fit: Any, tmp_path: Path) -> None:
    schedule = {"name": name, **SCHEDULES[name], "interval": "step"}
    whole, module = fit(SGD, schedule, max_epochs=4)
    half, first = fit(SGD, schedule, max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, second = fit(SGD, schedule, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert [*first.lrs, *second.lrs] == module.lrs
    assert len(set(module.lrs)) > 1
    assert momentum_of(resumed) == momentum_of(whole)


@pytest.mark.parametrize(
    ("before", "after"),
    [({"max_lr": 0.5}, {"max_lr": 2.0, "div_factor": 4.0}), ({"max_lr": 0.5}, {"max_lr": 0.5, "base_momentum": 0.3})],
    ids=["learning rates", "momentum"],
)
def test_override_hparams_gives_one_cycle_its_new_bounds(before: Any, after: Any, fit: Any, tmp_path: Path) -> None:
    def schedule(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"name": "one_cycle_lr", "total_steps": 16, **arguments}

    _, expected = fit(SGD, schedule(after), max_epochs=4)
    half, _ = fit(SGD, schedule(before), max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    options = {"ckpt_path": tmp_path / "half.ckpt", "on_resume": "override_hparams"}
    resumed, module = fit(SGD, schedule(after), max_epochs=4, **options)
    assert module.lrs == pytest.approx(expected.lrs[8:], rel=1e-12)
    assert scheduler_of(resumed).optimizer.param_groups[0]["base_momentum"] == after.get("base_momentum", 0.85)


def test_summary_warns_of_a_schedule_that_does_not_fit_the_training(
    fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(SGD, {"name": "one_cycle_lr", "max_lr": 0.1, "total_steps": 5}, max_epochs=4, verbose=True)
    assert "total_steps is 5, and this training steps the schedule 16 times" in capsys.readouterr().out
