"""Checks of values by a dry run, and construction of third-party optimizers and schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import nn

import optplug
from optplug.config import arguments, build, rehearsal
from optplug.config.build import build_optimizer, build_scheduler, parse_and_check
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    EngineError,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    loc_text,
)
from optplug.registry import Registration

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}


# ----------------------------------------------------------------------------------------------- dry run


@pytest.mark.parametrize(
    ("config", "text", "number"),
    [
        ("optimizer: {name: adam, lr: VALUE}", "1e-3", "0.001"),
        ("optimizer: {name: adam, betas: [VALUE, 0.99]}", "'0.9'", "0.9"),
        ("optimizer: {name: adam, args: {eps: VALUE}}", "1E-6", "0.000001"),
        ("{optimizer: adam, param_groups: [{match: '*', lr: VALUE}]}", "1e-3", "0.001"),
        ("{optimizer: adam, param_groups: [{match: '*', lr_mult: VALUE}]}", "1e-1", "0.1"),
        ("{optimizer: adam, param_groups: [{preset: layer_decay, decay: VALUE, layers: ['*']}]}", "5e-1", "0.5"),
        ("scheduler: {name: cosine_annealing_lr, T_max: VALUE}", "1e3", "1000"),
        ("scheduler: {name: multi_step_lr, milestones: [VALUE, 10]}", "'3'", "3"),
        ("scheduler: {name: reduce_lr_on_plateau, min_lr: VALUE}", "1e-6", "0.000001"),
        ("scheduler: {name: reduce_lr_on_plateau, min_lr: [VALUE]}", "1e-6", "0.000001"),
        ("scheduler: {name: reduce_lr_on_plateau, patience: VALUE}", "'3'", "3"),
        ("scheduler: {name: step_lr, step_size: 3, frequency: VALUE}", "'2'", "2"),
        ("scheduler: {warmup: {ratio: VALUE}}", "1e-1", "0.1"),
        ("scheduler: {warmup: {steps: 3, start_factor: VALUE}}", "1e-3", "0.001"),
        ("scheduler: {warmup_steps: VALUE}", "1e2", "100"),
    ],
)
def test_text_that_is_a_number_is_taken_as_the_number(config: str, text: str, number: str):
    with_text, with_number = (yaml.safe_load(config.replace("VALUE", value)) for value in (text, number))
    assert with_text != with_number
    assert repr(parse_and_check(**with_text)) == repr(parse_and_check(**with_number))
    assert with_text == yaml.safe_load(config.replace("VALUE", text))  # the caller's mapping is not changed


@pytest.mark.parametrize("text", ["fast", "1,5", "nan", "inf", "1e", "0x10", "1e3 steps", "", "auto"])
def test_text_that_is_no_number_is_rejected_where_a_number_is_required(text: str, error_message: Any):
    error_message(HyperparameterTypeError, {"name": "adam", "lr": text})
    error_message(ConfigTypeError, "adam", {"warmup_steps": text})
    error_message(ConfigTypeError, "adam", param_groups=[{"match": "*", "lr_mult": text}])


def test_text_stays_text_where_text_is_allowed():
    assert parse_and_check("adam", {"name": "lambda_lr", "lr_lambda": "1"}).scheduler.arguments == {"lr_lambda": "1"}
    assert parse_and_check("adam", param_groups=[{"match": "1", "name": "2"}]).param_groups[0].name == "2"


def test_invalid_values_are_found_without_a_model(error_message: Any):
    assert error_message(HyperparameterError, {"name": "adam", "lr": -1.0}) == (
        "optimizer.lr: Invalid learning rate: -1.0 (Adam: lr must be at least 0)"
    )
    assert error_message(EngineError, {"name": "adam", "engine": 3}) == (
        "optimizer.engine: no engine named 3; there are auto, loop, foreach, numba"
    )
    assert error_message(HyperparameterError, "adam", {**COSINE, "T_max": 0}) == (
        "scheduler.T_max: CosineAnnealingLR: T_max must be at least 1, got 0"
    )
    assert error_message(HyperparameterTypeError, "adam", {**COSINE, "T_max": [3]}) == (
        "scheduler.T_max: CosineAnnealingLR: T_max must be a number of steps, got [3]"
    )
    assert error_message(HyperparameterError, "adam", {**PLATEAU, "factor": 1.5}) == (
        "scheduler.factor: Factor should be < 1.0. ReduceLROnPlateau got factor 1.5"
    )
    assert error_message(HyperparameterError, "adam", {**PLATEAU, "min_lr": [0.1, 0.2]}) == (
        "scheduler.min_lr: expected 1 min_lrs, got 2: ReduceLROnPlateau takes one min_lr for all groups, or a "
        "list with one for each"
    )


def test_list_with_one_value_per_group_is_checked_when_built():
    groups = [{"match": "bias", "lr": 0.5}]
    module = nn.Linear(2, 2)
    optplug.configure_optimizers(module, "adam", {**PLATEAU, "min_lr": [0.1, 0.2]}, param_groups=groups, monitor="loss")
    with pytest.raises(HyperparameterError, match="expected 2 min_lrs, got 1"):
        optplug.configure_optimizers(module, "adam", {**PLATEAU, "min_lr": [0.1]}, param_groups=groups, monitor="loss")


def test_number_too_large_for_a_float_raises(error_message: Any):
    assert error_message(HyperparameterError, {"name": "adam", "lr": 10**400}).startswith(
        "optimizer.lr: Invalid learning rate: 1000"
    )


@pytest.mark.parametrize("t_max", [5, 10, 11])
def test_error_has_location_of_the_rejected_argument(t_max: int, error_message: Any):
    message = error_message(HyperparameterTypeError, "adam", {**COSINE, "T_max": t_max, "eta_min": "low"})
    assert message.startswith("scheduler.eta_min: ")


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "words"),
    [
        ("lbfgs", {"name": "step_lr", "step_size": -1}, "StepLR: step_size must be at least 1"),
        ("lbfgs", {"name": "lambda_lr", "lr_lambda": "import os"}, "lr_lambda: 'import os' is not a valid expression"),
        ({"name": "lbfgs", "max_iter": 0}, None, "Invalid max_iter value: 0"),
        ({"name": "lbfgs", "line_search_fn": "wolfe"}, None, "only 'strong_wolfe' is supported"),
    ],
)
def test_dry_run_covers_lbfgs_and_schedulers(optimizer, scheduler, words):
    with pytest.raises(OptplugError, match=words):
        parse_and_check(optimizer, scheduler)


# ------------------------------------------------------------------------------------ third-party classes


@pytest.mark.usefixtures("third_party_classes")
def test_third_party_exceptions_are_wrapped():
    module = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"^optimizer\.failure: failing_sgd rejected failure='value': wrong value$"):
        optplug.configure_optimizers(module, {"name": "failing_sgd", "failure": "value"})
    with pytest.raises(ConfigTypeError, match=r"^optimizer\.failure: failing_sgd rejected failure='type': wrong type$"):
        optplug.configure_optimizers(module, {"name": "failing_sgd", "failure": "type"})


@pytest.mark.usefixtures("third_party_classes")
def test_keyword_arguments_of_base_class_are_known(error_message: Any):
    built = optplug.configure_optimizers(nn.Linear(1, 1), {"name": "failing_sgd", "momentum": 0.5})
    assert built["optimizer"].defaults["momentum"] == 0.5
    assert error_message(ConfigError, {"name": "failing_sgd", "momentun": 0.5}).endswith("; did you mean 'momentum'?")


@pytest.mark.usefixtures("third_party_classes")
def test_scheduler_with_metric_but_without_mode_is_built():
    choice = {"name": "metric_scheduler", "monitor": "val_loss", "args": {"interval": 7}}
    entry = optplug.configure_optimizers(nn.Linear(1, 1), "adam", choice)["lr_scheduler"]
    assert entry["scheduler"].own_interval == 7
    assert entry["monitor"] == "val_loss"


@pytest.mark.usefixtures("third_party_classes")
@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 3}], ids=str)
def test_patience_unit_requires_method_at(warmup: dict[str, int]):
    def build(name: str, **options: str) -> Any:
        given = {"name": name, "monitor": "val_loss", **warmup, **options}
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        return build_scheduler(optimizer, parse_and_check("adam", given).scheduler)

    for unit in ("epochs", "steps"):
        with pytest.raises(ConfigError) as caught:
            build("metric_scheduler", patience_unit=unit)
        assert loc_text(caught.value.loc) == "scheduler.patience_unit"
        assert str(caught.value) == (
            "scheduler.patience_unit: must be 'validations', because metric_scheduler has no method at(position), got "
            f"{unit!r}"
        )
        for name in ("positioned_metric_scheduler", "reduce_lr_on_plateau"):
            assert callable(build(name, patience_unit=unit).at)
    assert not hasattr(build("metric_scheduler", patience_unit="validations", on_nonfinite="raise"), "at")


# ----------------------------------------------------------------------------------------------- exact locations


@pytest.mark.parametrize(
    ("config", "locs"),
    [
        ({"optimizer": {"name": "sgd", "momentun": 0.9, "nesterov": True}}, ["optimizer.momentun"]),
        ({"optimizer": {"name": "sgd", "momentum": -0.9, "nesterov": True}}, ["optimizer.momentum"]),
        (
            {
                "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
                "param_groups": [{"match": "a", "momentum": 0}],
            },
            ["param_groups[0].momentum"],
        ),
        (
            {"optimizer": {"name": "adam", "fused": True}, "param_groups": [{"match": "a", "lr": 1, "foreach": True}]},
            ["param_groups[0]"],
        ),
        ({"optimizer": "lbfgs", "param_groups": [{"match": "a", "lr": 1.0}]}, ["param_groups[0]"]),
        (
            {"optimizer": {"name": "sgd", "momentun": 1, "nesterov": True}, "param_groups": [{"match": "a", "lr": -1}]},
            ["optimizer.momentun", "param_groups[0].lr"],
        ),
        ({"optimizer": [{"combine": [{"name": "adam"}]}]}, ["optimizer[0].combine"]),
        ({"optimizer": {"name": "adam", "engine": [1.0, 2.0]}}, ["optimizer.engine"]),
    ],
    ids=str,
)
def test_errors_have_exactly_these_locations(config: Any, locs: list[str]):
    with pytest.raises(OptplugError) as caught:
        parse_and_check(**config)
    assert [loc_text(error.loc) for error in caught.value.errors] == locs


def test_error_of_a_pattern_in_a_list_with_one_optimizer_has_its_location():
    config = parse_and_check([{"name": "adam", "param_groups": [{"match": "nope", "lr": 1e-3}]}])
    with pytest.raises(ConfigError) as caught:
        build_optimizer(nn.Linear(1, 1), config.setups[0])
    assert caught.value.loc == ("optimizer", 0, "param_groups", 0, "match")


# ----------------------------------------------------------------------------------------------- number of checks


def test_names_are_checked_once_and_values_by_one_construction(monkeypatch: pytest.MonkeyPatch):
    checked, constructed = [], []
    argument_errors, construct = arguments.argument_errors, build.construct_optimizer

    def count_checks(registration: Registration, *rest: Any) -> Any:
        checked.append(registration.name)
        return argument_errors(registration, *rest)

    def count_constructions(registration: Registration, *rest: Any, **options: Any) -> Any:
        constructed.append(registration.name)
        return construct(registration, *rest, **options)

    monkeypatch.setattr(arguments, "argument_errors", count_checks)
    for module in (build, rehearsal):
        monkeypatch.setattr(module, "construct_optimizer", count_constructions)
    config = parse_and_check({"name": "adam", "lr": 0.1}, {**COSINE, "interval": "step"})
    assert (checked, constructed) == (["adam", "cosine_annealing_lr"], ["adam"])
    optimizer = build_optimizer(torch.nn.Linear(1, 1), config.setup)
    build_scheduler(optimizer, config.scheduler)
    assert (checked, constructed) == (["adam", "cosine_annealing_lr"], ["adam", "adam"])
