"""All errors of a configuration are reported together, each with its location, in the order of the configuration."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest

from optplug.config.build import parse_and_check
from optplug.errors import ConfigError, ConfigErrors, ConfigTypeError, HyperparameterError, loc_text

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}


def test_all_errors_are_reported_together(collected_errors: Any):
    errors = collected_errors(
        {"name": "adam", "lr": -1, "betas": [2, 0.9], "eps": -1, "foo": 1},
        {"name": "cosine_annealing_lr", "T_max": 0, "interval": "batch", "frequency": 0, "warmup": {"step": 1}},
        param_groups=[{"match": "*", "lr": -3, "lrr": 1}, {"match": 5}, {"match": "a", "lr": 1, "lr_mult": 1}],
    )
    assert {loc_text(error.loc): type(error) for error in errors} == {
        "optimizer.lr": HyperparameterError,
        "optimizer.betas[0]": HyperparameterError,
        "optimizer.eps": HyperparameterError,
        "optimizer.foo": ConfigError,
        "scheduler.T_max": HyperparameterError,
        "scheduler.interval": ConfigError,
        "scheduler.frequency": ConfigError,
        "scheduler.warmup.step": ConfigError,
        "param_groups[0].lr": HyperparameterError,
        "param_groups[0].lrr": ConfigError,
        "param_groups[1].match": ConfigTypeError,
        "param_groups[2].lr_mult": ConfigError,
    }
    assert len(errors) == 12


def test_unknown_name_does_not_hide_other_errors(collected_errors: Any):
    errors = collected_errors("adm", {**COSINE, "frequency": 0}, param_groups=[{"match": "["}, {"match": 5}])
    assert {loc_text(error.loc) for error in errors} == {"optimizer", "scheduler.frequency", "param_groups[1].match"}


@pytest.mark.parametrize(
    ("arguments", "locs"),
    [
        ({"scheduler": {**PLATEAU, "monitor": 3, "mode": "low"}}, ["scheduler.mode", "scheduler.monitor"]),
        (
            {"scheduler": {**PLATEAU, "monitor": "lr-Adam", "patience_unit": "epoch", "on_nonfinite": 3, "factor": -1}},
            ["scheduler.factor", "scheduler.monitor", "scheduler.on_nonfinite", "scheduler.patience_unit"],
        ),
        (
            {"scheduler": {**COSINE, "warmup": {"epochs": -1, "start_factor": 0, "foo": 1}}},
            ["scheduler.warmup.epochs", "scheduler.warmup.foo", "scheduler.warmup.start_factor"],
        ),
        ({"scheduler": {"name": "stp_lr", "frequency": 0}}, ["scheduler.frequency", "scheduler.name"]),
        (
            {"param_groups": [{"match": 5, "regex": "(", "name": 3}]},
            ["param_groups[0].match", "param_groups[0].name", "param_groups[0].regex"],
        ),
        (
            {"param_groups": [{"preset": "layer_decay", "decay": 5, "layers": []}]},
            ["param_groups[0].decay", "param_groups[0].layers"],
        ),
        (
            {"param_groups": [{"preset": "no_decay", "of": ["norm"], "lr": 1}]},
            ["param_groups[0].lr", "param_groups[0].of[0]"],
        ),
    ],
    ids=str,
)
def test_all_errors_of_one_mapping_are_reported(arguments: dict[str, Any], locs: list[str], collected_errors: Any):
    assert sorted(loc_text(error.loc) for error in collected_errors("adam", **arguments)) == locs


@pytest.mark.parametrize(
    ("given", "locs"),
    [
        ({"name": "step_lr", "step_size": 0, "gamma": -5}, ["scheduler.gamma", "scheduler.step_size"]),
        ({"name": "multi_step_lr", "milestones": "a", "gamma": "x"}, ["scheduler.gamma", "scheduler.milestones"]),
        ({"name": "multi_step_lr", "gamma": "x"}, ["scheduler", "scheduler.gamma"]),
        ({**COSINE, "T_max": 0, "eta_min": "low"}, ["scheduler.T_max", "scheduler.eta_min"]),
    ],
    ids=str,
)
def test_each_rejected_scheduler_argument_is_reported(given: dict[str, Any], locs: list[str], collected_errors: Any):
    assert sorted(loc_text(error.loc) for error in collected_errors("adam", given)) == locs


def test_errors_are_in_the_order_of_the_configuration(collected_errors: Any):
    errors = collected_errors(
        {"name": "adam", "lr": -1, "foo": 1, "eps": -1},
        {"name": "cosine_annealing_lr", "T_max": 0, "interval": "batch", "frequency": 0},
        param_groups=[{"match": 5}, {"match": "a", "lr": -1, "lrr": 1}],
    )
    tops = [loc_text(error.loc).replace("[", ".").partition(".")[0] for error in errors]
    assert tops[:3] == ["optimizer"] * 3
    assert [top for top, _ in itertools.groupby(tops)] in (
        ["optimizer", "scheduler", "param_groups"],
        ["optimizer", "param_groups", "scheduler"],
    )


def test_config_errors_survive_pickle():
    with pytest.raises(ValueError, match="the configuration has 2 errors:") as caught:
        parse_and_check({"name": "adam", "lr": -1, "foo": 1})
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is ConfigErrors
    assert str(copy) == str(caught.value)
    assert list(map(str, copy.errors)) == list(map(str, caught.value.errors))
    assert [loc_text(error.loc) for error in copy.errors] == [loc_text(error.loc) for error in caught.value.errors]


def test_single_error_is_raised_unchanged_with_its_location():
    with pytest.raises(HyperparameterError) as caught:
        parse_and_check({"name": "adam", "lr": -1})
    assert type(caught.value) is HyperparameterError
    assert loc_text(caught.value.loc) == "optimizer.lr"
