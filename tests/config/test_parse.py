"""The one form of a configuration: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import math
import pickle
from types import MappingProxyType
from typing import Any

import jsonargparse
import omegaconf
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optplug
from optplug.config.build import build_optimizer, build_scheduler, checked
from optplug.config.model import (
    ON_NONFINITE,
    PATIENCE_UNITS,
    Config,
    OptimizerConfig,
    OptimizerEntry,
    OptimizerSetup,
    SchedulerConfig,
    WarmupConfig,
)
from optplug.config.param_group_presets import NoDecay
from optplug.config.param_groups import GroupRule
from optplug.config.param_selection import Selector
from optplug.config.parse import parse
from optplug.errors import (
    ConfigError,
    ConfigErrors,
    ConfigTypeError,
    EngineError,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    UnknownNameError,
)
from optplug.registry import registry
from optplug.registry.specs import OptimizerSpec, SchedulerSpec

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}
ADAM_OPTIONS = (
    "amsgrad, betas, capturable, decoupled_weight_decay, differentiable, engine, eps, foreach, fused, lr, maximize"
)
ADAM_OPTIONS += ", state_dtype, weight_decay"
GROUP_OPTIONS = ADAM_OPTIONS.replace("engine, ", "").replace("state_dtype, ", "")
GROUP_OPTIONS += ", and in an entry of param_groups match, regex, type, name, lr_mult, wd_mult"


def scheduler(given: Any, **kwargs: Any) -> Any:
    return checked("adam", given, **kwargs).scheduler


def refusal(error: type[OptplugError], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        checked(*args, **kwargs)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{caught.value.loc}: ")
    return str(caught.value)


def refusals(*args: Any, **kwargs: Any) -> list[OptplugError]:
    """What is wrong, several things at once."""
    with pytest.raises(ConfigErrors) as caught:
        checked(*args, **kwargs)
    errors = caught.value.errors
    assert str(caught.value) == "\n  ".join(
        [f"{len(errors)} things are wrong with the configuration:", *map(str, errors)]
    )
    assert all(str(error).startswith(f"{error.loc}: ") for error in errors)
    return list(errors)


# --------------------------------------------------------------------------------------- what it takes


def test_a_name_and_a_mapping_with_that_name_are_the_same():
    assert checked("adam", None) == checked({"name": "adam"}, None)
    assert checked("adam") == Config((OptimizerSetup((OptimizerEntry(OptimizerConfig("adam")),)),))
    assert scheduler("reduce_lr_on_plateau") == scheduler(PLATEAU) == SchedulerConfig("reduce_lr_on_plateau")


@pytest.mark.parametrize("name", ["Adam", "ADAM", "a_dam", "optplug-classic:adam"])
def test_a_name_is_looked_up_as_everywhere(name: str):
    assert checked(name).optimizer.registration.name == "adam"


def test_arguments_beside_the_name_and_under_args_are_the_same():
    direct = checked({"name": "adam", "lr": 0.1, "betas": [0.8, 0.9]}, {**COSINE, "eta_min": 0.01})
    nested = checked(
        {"name": "adam", "args": {"lr": 0.1, "betas": [0.8, 0.9]}},
        {"name": "cosine_annealing_lr", "args": {"T_max": 10, "eta_min": 0.01}},
    )
    assert direct == nested
    assert direct.optimizer.hyperparameters == {"lr": 0.1, "betas": [0.8, 0.9]}
    assert checked({"name": "adam", "lr": 0.1, "args": {"eps": 1e-6}}).optimizer.hyperparameters == {
        "lr": 0.1,
        "eps": 1e-6,
    }
    assert checked({"name": "adam", "args": None}) == checked("adam")


def test_yaml_and_python_say_the_same():
    text = """
    optimizer: {name: sgd, lr: 1.0e-1, momentum: 0.9}
    scheduler: {name: cosine_annealing_lr, T_max: 30, interval: step, frequency: 2, warmup: {steps: 5}}
    param_groups: [{match: "*.bias", weight_decay: 0.0}]
    """
    read = yaml.safe_load(text)
    assert checked(read["optimizer"], read["scheduler"], param_groups=read["param_groups"]) == checked(
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "cosine_annealing_lr", "T_max": 30, "interval": "step", "frequency": 2, "warmup_steps": 5},
        param_groups=[{"match": ["*.bias"], "weight_decay": 0.0}],
    )


def test_a_configuration_is_plain_data():
    config = checked(
        {"name": "adam", "lr": 0.1}, {**PLATEAU, "monitor": "x", "mode": "max"}, param_groups=[{"match": "*"}]
    )
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_parsing_leaves_what_it_was_given_alone():
    given = ({"name": "adam", "args": {"lr": 0.1}}, {**PLATEAU, "args": {"mode": "min"}}, [{"match": ["*"], "lr": 1.0}])
    before = copy.deepcopy(given)
    checked(given[0], given[1], param_groups=given[2])
    assert given == before


def test_wiring_keys_have_defaults():
    parsed = scheduler(COSINE)
    assert (parsed.interval, parsed.frequency, parsed.warmup) == ("epoch", 1, None)
    assert (parsed.monitor, parsed.mode) == (None, None)
    assert (parsed.patience_unit, parsed.on_nonfinite) == ("validations", "bad")
    assert not parsed.takes_metric
    assert scheduler(PLATEAU).takes_metric


def test_warmup_steps_is_short_for_warmup():
    assert scheduler({**COSINE, "warmup_steps": 5}) == scheduler({**COSINE, "warmup": {"steps": 5}})
    assert scheduler({**COSINE, "warmup": {"steps": 5, "start_factor": 0.5}}).warmup == WarmupConfig(5, "steps", 0.5)


@pytest.mark.parametrize("none", [{"warmup_steps": 0}, {"warmup": None}, {"warmup": {"steps": 0}}, {}])
def test_no_warmup_can_be_said(none: dict[str, Any]):
    assert scheduler({**COSINE, **none}) == scheduler(COSINE)


def test_monitor_and_mode_beside_the_scheduler_are_its_own():
    inside = scheduler({**PLATEAU, "monitor": "val_acc", "mode": "max"})
    assert scheduler(PLATEAU, monitor="val_acc", mode="max") == inside
    assert scheduler({**PLATEAU, "monitor": "val_acc"}, monitor="val_acc", mode="max") == inside
    assert scheduler({**PLATEAU, "monitor": "val_acc", "args": {"mode": "max"}}) == inside


@pytest.mark.parametrize(("key", "values"), [("patience_unit", PATIENCE_UNITS), ("on_nonfinite", ON_NONFINITE)])
def test_what_patience_counts_and_what_is_no_number_does_can_be_said(key: str, values: tuple[str, ...]):
    assert scheduler({**PLATEAU, key: None}) == scheduler({**PLATEAU, key: values[0]}) == scheduler(PLATEAU)
    assert scheduler({**COSINE, key: None}) == scheduler(COSINE)
    for value in values:
        parsed = scheduler({**PLATEAU, key: value})
        assert getattr(parsed, key) == value
        assert parsed.to_dict() == {**PLATEAU, **({} if value == values[0] else {key: value})}


def test_a_match_may_be_one_glob_or_several():
    one, several = checked(
        "adam", param_groups=[{"match": "a"}, {"match": ["b", "c"], "name": "x", "lr": 1}]
    ).param_groups
    assert one == GroupRule(Selector(match=("a",)), "a", {})
    assert several == GroupRule(Selector(match=("b", "c")), "x", {"lr": 1})
    assert checked("adam", param_groups=[{"match": ["b", "c"]}]).param_groups[0].name == "b c"


def test_param_groups_of_a_tuple_or_none_are_taken():
    assert checked("adam", param_groups=({"match": "a"},)) == checked("adam", param_groups=[{"match": "a"}])
    assert checked("adam", param_groups=[]) == checked("adam", param_groups=None) == checked("adam")


# ------------------------------------------------------------------------------------- what it refuses


def test_an_optimizer_that_is_no_name_is_refused():
    assert refusal(ConfigTypeError, None) == "optimizer: must be a name or a mapping with a name, got None (NoneType)"
    assert refusal(ConfigTypeError, 3) == "optimizer: must be a name or a mapping with a name, got 3 (int)"
    assert refusal(ConfigTypeError, "adam", 3) == "scheduler: must be a name or a mapping with a name, got 3 (int)"
    assert refusal(ConfigTypeError, {"name": 3}) == "optimizer.name: must be text, got 3"
    assert refusal(ConfigTypeError, {"name": "adam", 3: 4}) == "optimizer: has the key 3; keys are text"


def test_a_missing_name_is_missed():
    assert refusal(ConfigError, {}) == "optimizer: needs a name; it has none"
    assert refusal(ConfigError, {"lr": 0.1}) == "optimizer: needs a name; it has lr"
    assert refusal(ConfigError, {"nam": "adam"}) == "optimizer: needs a name; it has nam: is 'nam' meant to be 'name'?"


def test_an_unknown_name_has_its_nearest_match():
    message = refusal(UnknownNameError, "adamm")
    assert message.startswith("optimizer: no optimizer named 'adamm'; did you mean 'adam'")
    assert "'reduce_lr_on_plateau'" in refusal(UnknownNameError, "adam", "reduce_on_plateau")


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
@pytest.mark.parametrize(
    "given",
    [{"class_path": "os.system"}, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1}}, {"init_args": {}}],
)
def test_a_class_path_is_refused(key: str, given: Any):
    args, example = ((given,), "lr: ...") if key == "optimizer" else (("adam", given), "...")
    assert refusal(ConfigError, *args) == (
        f"{key}: needs a name; it has {', '.join(given)}: write {{name: ..., {example}}}; optplug looks names up and "
        "imports no path"
    )


@pytest.mark.parametrize("path", ["torch.optim.Adam", "torch.optim:Adam", "optplug_classic.adam:Adam", "os:system"])
def test_no_name_imports_a_path(path: str, monkeypatch: pytest.MonkeyPatch):
    checked("adam", PLATEAU)  # everything that is needed is loaded

    def no_import(name: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"imports {name}")

    monkeypatch.setattr("importlib.import_module", no_import)
    refusal(UnknownNameError, path)
    refusal(UnknownNameError, "adam", path)
    refusal(ConfigError, {"name": "adam", "class_path": path})
    refusal(ConfigError, "adam", param_groups=[{"match": "*", "class_path": path}])


def test_an_unknown_key_has_its_nearest_match():
    assert refusal(ConfigError, {"name": "adam", "weigth_decay": 0.1}) == (
        f"optimizer.weigth_decay: adam has no option 'weigth_decay'; it has {ADAM_OPTIONS}, and in a "
        "configuration args; did you mean 'weight_decay', 'decoupled_weight_decay'?"
    )
    assert refusal(ConfigError, "adam", {**COSINE, "t_max": 3}) == (
        "scheduler.t_max: cosine_annealing_lr has no option 't_max'; it has T_max, eta_min, and in a "
        "configuration args, interval, frequency, warmup, warmup_steps, monitor, mode, patience_unit, on_nonfinite; "
        "did you mean 'T_max'?"
    )
    assert refusal(ConfigError, "adam", {**COSINE, "warmup_step": 3}).endswith(
        "; did you mean 'warmup_steps', 'warmup'?"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "monitr": "val_loss"}).endswith("; did you mean 'monitor'?")
    assert refusal(ConfigError, "adam", {**COSINE, "args": {"name": 1}}).partition("; it has")[0] == (
        "scheduler.args.name: cosine_annealing_lr has no option 'name'"
    )


def test_a_key_under_args_that_is_no_text_is_refused():
    with pytest.raises((ConfigError, ConfigTypeError), match=r"^optimizer\.args"):
        checked({"name": "adam", "args": {1: 2}})


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize(
    "key",
    ["monitor", "mode", "patience_unit", "on_nonfinite", "interval", "frequency", "warmup", "warmup_steps"],
)
def test_a_key_of_the_scheduler_at_the_optimizer_is_told_where_it_belongs(name: str, key: str):
    assert refusal(ConfigError, {"name": name, key: 1}).endswith(f"; {key!r} belongs to scheduler")


@pytest.mark.parametrize("key", ["params", "last_epoch", "optimizer"])
def test_what_the_wiring_supplies_is_no_option(key: str):
    refusal(ConfigError, {"name": "adam", key: 1})
    refusal(ConfigError, "adam", {**COSINE, key: 1})


def test_an_unknown_key_beside_optimizer_has_its_nearest_match():
    assert refusal(ConfigError, "adam", lr_scheduler="step_lr") == (
        "lr_scheduler: a configuration has no key 'lr_scheduler'; it has optimizer, scheduler, param_groups, "
        "monitor, mode, on_resume; did you mean 'scheduler'?"
    )


def test_on_resume_is_checked():
    assert checked("adam").on_resume == checked("adam", on_resume=None).on_resume == "keep"
    assert checked("adam", on_resume="override_hparams").on_resume == "override_hparams"
    assert refusal(ConfigError, "adam", on_resume="reset_schedule") == (
        "on_resume: must be one of keep, override_hparams, reset_scheduler, reset_all, got 'reset_schedule'; did you "
        "mean 'reset_scheduler', 'reset_all'?"
    )
    assert refusal(ConfigError, "adam", on_resume=5).endswith("got 5")


def test_a_required_argument_is_missed():
    assert refusal(ConfigError, "adam", "cosine_annealing_lr") == (
        "scheduler: cosine_annealing_lr needs T_max (T_max may be auto: as long as the training)"
    )
    assert refusal(ConfigError, "adam", "step_lr") == "scheduler: step_lr needs step_size"


def test_an_argument_given_twice_is_refused():
    assert refusal(ConfigError, {"name": "adam", "lr": 1, "args": {"lr": 1}}) == (
        "optimizer.args.lr: is given directly too: give it once"
    )


@pytest.mark.parametrize("args", [0, False, "", [], "lr", [1]])
def test_args_that_are_no_mapping_are_refused(args: Any):
    assert refusal(ConfigTypeError, {"name": "adam", "args": args}) == (
        f"optimizer.args: must be a mapping of arguments, got {args!r}"
    )


def test_a_number_that_yaml_reads_as_text_is_explained():
    given = yaml.safe_load("{name: adam, lr: 1e-3}")
    assert refusal(HyperparameterTypeError, given) == (
        "optimizer.lr: Adam: lr must be a number, got '1e-3' (str); YAML reads 1e-3 as text, write 1.0e-3"
    )
    groups = yaml.safe_load("[{match: '*', lr: 1e-3}]")
    assert refusal(HyperparameterTypeError, "adam", param_groups=groups) == (
        "param_groups[0].lr: Adam: lr must be a number, got '1e-3' (str); YAML reads 1e-3 as text, write 1.0e-3"
    )


def test_a_wrong_value_is_found_before_there_is_a_model():
    assert refusal(HyperparameterError, {"name": "adam", "lr": -1.0}) == (
        "optimizer.lr: Invalid learning rate: -1.0 (Adam: lr must be at least 0)"
    )
    assert refusal(EngineError, {"name": "adam", "engine": 3}) == (
        "optimizer.engine: no engine named 3; there are auto, loop, foreach, numba"
    )
    assert refusal(HyperparameterError, "adam", {**COSINE, "T_max": 0}) == (
        "scheduler.T_max: CosineAnnealingLR: T_max must be at least 1, got 0"
    )
    assert refusal(HyperparameterTypeError, "adam", {**COSINE, "T_max": [3]}) == (
        "scheduler.T_max: CosineAnnealingLR: T_max must be a number of steps, got [3]"
    )
    assert refusal(HyperparameterError, "adam", {**PLATEAU, "factor": 1.5}) == (
        "scheduler.factor: Factor should be < 1.0. ReduceLROnPlateau got factor 1.5"
    )
    assert refusal(HyperparameterError, "adam", {**PLATEAU, "min_lr": [0.1, 0.2]}) == (
        "scheduler.min_lr: expected 1 min_lrs, got 2: ReduceLROnPlateau takes one min_lr for all groups, or a "
        "list with one for each"
    )


def test_a_list_of_one_value_a_group_waits_for_the_groups():
    groups = [{"match": "bias", "lr": 0.5}]
    module = nn.Linear(2, 2)
    optplug.configure_optimizers(module, "adam", {**PLATEAU, "min_lr": [0.1, 0.2]}, param_groups=groups, monitor="loss")
    with pytest.raises(HyperparameterError, match="expected 2 min_lrs, got 1"):
        optplug.configure_optimizers(module, "adam", {**PLATEAU, "min_lr": [0.1]}, param_groups=groups, monitor="loss")


def test_a_number_too_large_for_a_float_is_refused():
    assert refusal(HyperparameterError, {"name": "adam", "lr": 10**400}).startswith(
        "optimizer.lr: Invalid learning rate: 1000"
    )


def test_interval_and_frequency_are_checked():
    assert refusal(ConfigError, "adam", {**COSINE, "interval": "batch"}) == (
        "scheduler.interval: must be 'epoch' or 'step', got 'batch'"
    )
    assert refusal(ConfigTypeError, "adam", {**COSINE, "frequency": 1.5}) == (
        "scheduler.frequency: must be a whole number, got 1.5"
    )
    assert refusal(ConfigTypeError, "adam", {**COSINE, "frequency": True}) == (
        "scheduler.frequency: must be a whole number, got True"
    )
    assert refusal(ConfigError, "adam", {**COSINE, "frequency": 0}) == "scheduler.frequency: must be at least 1, got 0"
    assert refusal(ConfigError, "adam", {**COSINE, "interval": "steps"}).endswith("got 'steps'; did you mean 'step'?")
    when = "reduce_lr_on_plateau steps once per completed validation (or per epoch, for a training metric)"
    assert list(map(str, refusals("adam", {**PLATEAU, "interval": "step", "frequency": 2}))) == [
        f"scheduler.interval: {when}: leave interval out, got 'step'",
        f"scheduler.frequency: {when}: leave frequency out, got 2",
    ]


UNITS = "needs one of steps (of the optimizer), epochs, ratio (of all steps)"


@pytest.mark.parametrize(
    ("wiring", "error", "message"),
    [
        (
            {"warmup_steps": 1, "warmup": {"steps": 1}},
            ConfigError,
            "_steps: is given beside warmup, and means warmup.steps: keep one",
        ),
        ({"warmup": 5}, ConfigTypeError, ": must be a mapping such as {steps: 100}, got 5"),
        ({"warmup": {}}, ConfigError, f": {UNITS}, got none"),
        ({"warmup": {"start_factor": 0.5}}, ConfigError, f": {UNITS}, got none"),
        ({"warmup": {"steps": 1, "epochs": 1}}, ConfigError, f": {UNITS}, got steps, epochs"),
        (
            {"warmup": {"step": 5}},
            ConfigError,
            ".step: there is no 'step' here; there are steps, epochs, ratio, start_factor; did you mean 'steps'?",
        ),
        ({"warmup_steps": -1}, ConfigError, "_steps: warmup steps must be at least 0, got -1"),
        (
            {"warmup_steps": 1.5},
            ConfigTypeError,
            "_steps: warmup steps must be a whole number of optimizer steps, got 1.5",
        ),
        (
            {"warmup_steps": 0.0},
            ConfigTypeError,
            "_steps: warmup steps must be a whole number of optimizer steps, got 0.0; write 0",
        ),
        (
            {"warmup_steps": False},
            ConfigTypeError,
            "_steps: warmup steps must be a whole number of optimizer steps, got False",
        ),
        (
            {"warmup_steps": None},
            ConfigTypeError,
            "_steps: must be a whole number of optimizer steps, got None",
        ),
        (
            {"warmup": {"steps": 1.5}},
            ConfigTypeError,
            ".steps: warmup steps must be a whole number of optimizer steps, got 1.5",
        ),
        ({"warmup": {"epochs": -1}}, ConfigError, ".epochs: must be at least 0, got -1"),
        ({"warmup": {"epochs": float("nan")}}, ConfigError, ".epochs: must be at least 0, got nan"),
        ({"warmup": {"epochs": True}}, ConfigTypeError, ".epochs: must be a number, got True"),
        ({"warmup": {"ratio": 1.5}}, ConfigError, ".ratio: must be at least 0 and at most 1, got 1.5"),
        (
            {"warmup": {"ratio": "1e-1"}},
            ConfigTypeError,
            ".ratio: must be a number, got '1e-1'; YAML reads 1e-1 as text, write 1.0e-1",
        ),
        (
            {"warmup": {"steps": 5, "start_factor": 0}},
            ConfigError,
            ".start_factor: warmup start_factor must be above 0 and at most 1, got 0",
        ),
        (
            {"warmup": {"steps": 0, "start_factor": "x"}},
            ConfigTypeError,
            ".start_factor: warmup start_factor must be a number, got 'x'",
        ),
    ],
)
def test_a_warmup_is_checked(wiring: dict[str, Any], error: type[OptplugError], message: str):
    assert refusal(error, "adam", {**COSINE, **wiring}) == f"scheduler.warmup{message}"
    alone = {"match": "*", "name": "adam", "scheduler": {**COSINE, **wiring}}
    assert refusal(error, [alone]) == f"optimizer[0].scheduler.warmup{message}"


def test_a_warmup_has_a_length_in_steps_or_epochs_or_as_a_share():
    assert scheduler({**COSINE, "warmup": {"epochs": 1.5}}).warmup == WarmupConfig(1.5, "epochs")
    assert scheduler({**COSINE, "warmup": {"ratio": 0.1, "start_factor": 1}}).warmup == WarmupConfig(0.1, "ratio", 1)


@pytest.mark.parametrize("none", [{"ratio": 0}, {"epochs": 0.0}, {"steps": 0}])
def test_a_warmup_of_no_length_is_none(none: dict[str, Any]):
    assert scheduler({**COSINE, "warmup": none}).warmup is None


def test_a_warmup_may_be_alone():
    alone = scheduler({"warmup": {"steps": 3}})
    assert alone == scheduler({"warmup_steps": 3}) == SchedulerConfig(None, interval="step", warmup=WarmupConfig(3))
    assert (alone.takes_metric, alone.length) == (False, None)
    refused = [("interval", "step"), ("T_max", 3), ("monitor", "x"), ("patience_unit", "steps"), ("on_nonfinite", None)]
    for key, value in refused:
        assert refusal(ConfigError, "adam", {"warmup_steps": 3, key: value}) == (
            f"scheduler.{key}: without a name a scheduler is a warmup alone, which has no {key!r}"
        )
    assert refusal(ConfigError, "adam", {"warmup_steps": 3, "nam": "step_lr"}) == (
        "scheduler.nam: without a name a scheduler is a warmup alone, which has no 'nam'; is it meant to be 'name'?"
    )
    assert refusal(ConfigError, "adam", {"warmup_steps": 3}, monitor="x") == (
        "monitor: needs a scheduler that takes a metric, and there is a warmup alone"
    )


def test_monitor_and_mode_are_checked():
    assert refusal(ConfigTypeError, "adam", {**PLATEAU, "monitor": 3}) == (
        "scheduler.monitor: must be the name of a metric, got 3"
    )
    assert refusal(ConfigError, "adam", PLATEAU, monitor="") == (
        "monitor: is empty: name a metric, or leave it out to have it inferred"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "monitor": ""}) == (
        "scheduler.monitor: is empty: name a metric, or leave it out to have it inferred"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "args": {"mode": "low"}}) == (
        "scheduler.args.mode: must be 'min' or 'max', got 'low'"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "mode": "low"}) == (
        "scheduler.mode: must be 'min' or 'max', got 'low'"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "mode": "mni"}).endswith("got 'mni'; did you mean 'min'?")


@pytest.mark.parametrize("name", ["lr-Adam", "lr-", "lr-SGD/pg1"])
def test_a_learning_rate_is_no_metric(name: str):
    says = f"is {name!r}, a learning rate, which reduce_lr_on_plateau sets: name a metric of the model"
    assert refusal(ConfigError, "adam", {**PLATEAU, "monitor": name}) == f"scheduler.monitor: {says}"
    assert refusal(ConfigError, "adam", PLATEAU, monitor=name) == f"monitor: {says}"
    for metric in ("lr_loss", "lr", "val/lr-loss"):
        assert scheduler({**PLATEAU, "monitor": metric}).monitor == metric


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("patience_unit", "epoch", "validations, epochs, steps, got 'epoch'; did you mean 'epochs'?"),
        ("patience_unit", "Steps", "validations, epochs, steps, got 'Steps'; did you mean 'steps'?"),
        ("patience_unit", "", "validations, epochs, steps, got ''"),
        ("patience_unit", 1, "validations, epochs, steps, got 1"),
        ("patience_unit", [3], "validations, epochs, steps, got [3]"),
        ("on_nonfinite", "ignored", "bad, ignore, raise, got 'ignored'; did you mean 'ignore'?"),
        ("on_nonfinite", 0, "bad, ignore, raise, got 0"),
    ],
)
def test_what_patience_counts_and_what_is_no_number_does_are_checked(key: str, given: Any, words: str):
    says = f"scheduler.{key}: must be one of {words}"
    assert refusal(ConfigError, "adam", {**PLATEAU, key: given}) == says
    entry = {"name": "adam", "match": "*", "scheduler": {**PLATEAU, key: given}}
    assert refusal(ConfigError, [entry]).startswith(f"optimizer[0].scheduler.{key}: must be one of")


@pytest.mark.parametrize(("key", "value"), [("patience_unit", "epochs"), ("on_nonfinite", "bad")])
def test_how_a_metric_is_heard_belongs_to_a_schedule_that_takes_one(key: str, value: str):
    assert refusal(ConfigError, "adam", {**COSINE, key: value}) == (
        f"scheduler.{key}: cosine_annealing_lr takes no metric: {key}={value!r} has no use"
    )
    assert refusal(ConfigError, "adam", PLATEAU, **{key: value}).startswith(
        f"{key}: a configuration has no key {key!r}; it has optimizer, scheduler"
    )
    refusal(ConfigError, "adam", {**PLATEAU, "args": {key: value}})


def test_monitor_and_mode_given_twice_must_agree():
    assert refusal(ConfigError, "adam", {**PLATEAU, "monitor": "a"}, monitor="b") == (
        "monitor: is 'b' and scheduler.monitor is 'a': give it once"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "mode": "min"}, mode="max") == (
        "mode: is 'max' and scheduler.mode is 'min': give it once"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "mode": "min", "args": {"mode": "max"}}) == (
        "scheduler.args.mode: is 'max' and scheduler.mode is 'min': give it once"
    )


def test_a_metric_for_a_schedule_that_takes_none_is_refused():
    assert refusal(ConfigError, "adam", COSINE, monitor="val_loss") == (
        "monitor: cosine_annealing_lr takes no metric: monitor='val_loss' has no use"
    )
    assert refusal(ConfigError, "adam", {**COSINE, "monitor": "val_loss"}) == (
        "scheduler.monitor: cosine_annealing_lr takes no metric: monitor='val_loss' has no use"
    )
    assert refusal(ConfigError, "adam", monitor="val_loss") == (
        "monitor: 'val_loss' needs a scheduler that takes a metric, and there is no scheduler"
    )
    assert refusal(ConfigError, "adam", mode="min") == (
        "mode: 'min' needs a scheduler that takes a metric, and there is no scheduler"
    )


GLOBS = "a glob, or a list of them"
LAYERS = "{preset: layer_decay, decay: 0.75, layers: ['embed.*', 'blocks.{}.*', 'head.*']}"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (5, ConfigTypeError, ": must be a list of mappings and presets, got 5"),
        ({"match": "*"}, ConfigTypeError, ": must be a list of mappings and presets, got {'match': '*'}"),
        (
            [5],
            ConfigTypeError,
            "[0]: must be a mapping such as {match: '*.bias', weight_decay: 0.0}, or the name of a preset, got 5",
        ),
        ([{"lr": 1}], ConfigError, "[0]: needs one of match, regex, type, to say which parameters; it has lr"),
        ([{"match": 5}], ConfigTypeError, f"[0].match: must be {GLOBS}, got 5"),
        ([{"match": []}], ConfigTypeError, f"[0].match: must be {GLOBS}, got []"),
        ([{"match": ["a", 1]}], ConfigTypeError, f"[0].match: must be {GLOBS}, got ['a', 1]"),
        ([{"match": ""}], ConfigTypeError, f"[0].match: must be {GLOBS}, got ''"),
        ([{"type": 5}], ConfigTypeError, "[0].type: must be a glob over class names, or a list of them, got 5"),
        ([{"regex": 5}], ConfigTypeError, "[0].regex: must be a regular expression, or a list of them, got 5"),
        (
            [{"regex": ["ok", "("]}],
            ConfigError,
            "[0].regex: '(' is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        ([{"match": "*", "name": None}], ConfigTypeError, "[0].name: must be text, got None"),
        (
            [{"match": "a"}, {"match": "*", "wd": 0}],
            ConfigError,
            f"[1].wd: adam has no option 'wd'; it has {GROUP_OPTIONS}",
        ),
        (
            [{"match": "*", "weigth_decay": 0}],
            ConfigError,
            f"[0].weigth_decay: adam has no option 'weigth_decay'; it has {GROUP_OPTIONS}; did you mean "
            "'weight_decay', 'decoupled_weight_decay'?",
        ),
        (
            [{"match": "*", "lr_mul": 2}],
            ConfigError,
            f"[0].lr_mul: adam has no option 'lr_mul'; it has {GROUP_OPTIONS}; did you mean 'lr_mult', 'wd_mult'?",
        ),
        (
            [{"match": "*", "engine": "loop"}],
            ConfigError,
            f"[0].engine: adam has no option 'engine'; it has {GROUP_OPTIONS}; engine is of the whole optimizer",
        ),
        ([{"match": "*", "betas": [0.9]}], HyperparameterError, "[0].betas: Adam: betas must be 2 numbers, got (0.9,)"),
        (
            [{"match": "a", "name": "x"}, {"match": "b", "name": "x"}],
            ConfigError,
            ": entries 0, 1 are both called 'x'; without a name they are called after their patterns: give each its "
            "own name",
        ),
        (
            [{"match": "*", "lr": 1, "lr_mult": 2}],
            ConfigError,
            "[0].lr_mult: multiplies lr, which this entry gives too: give one of them",
        ),
        (
            [{"match": "*", "weight_decay": 1, "wd_mult": 2}],
            ConfigError,
            "[0].wd_mult: multiplies weight_decay, which this entry gives too: give one of them",
        ),
        (
            [{"match": "*", "lr_mult": "1e-1"}],
            ConfigTypeError,
            "[0].lr_mult: must be a number, got '1e-1'; YAML reads 1e-1 as text, write 1.0e-1",
        ),
        ([{"match": "*", "lr_mult": -1}], ConfigError, "[0].lr_mult: must be at least 0 and finite, got -1"),
        ([{"match": "*", "wd_mult": True}], ConfigTypeError, "[0].wd_mult: must be a number, got True"),
        (
            ["no_dcay"],
            ConfigError,
            "[0]: there is no preset 'no_dcay'; there are no_decay, layer_decay; did you mean 'no_decay'?",
        ),
        (
            ["*.bias"],
            ConfigError,
            "[0]: there is no preset '*.bias'; there are no_decay, layer_decay; a glob goes into a mapping: "
            "{match: '*.bias', ...}",
        ),
        (
            [{"preset": "no_dcay"}],
            ConfigError,
            "[0].preset: there is no preset 'no_dcay'; there are no_decay, layer_decay; did you mean 'no_decay'?",
        ),
        ([{"preset": 5}], ConfigTypeError, "[0].preset: must be the name of a preset, got 5"),
        (
            [{"preset": "no_decay", "off": 1}],
            ConfigError,
            "[0].off: preset no_decay has no key 'off'; it has of; did you mean 'of'?",
        ),
        (
            [{"preset": "no_decay", "of": "norm"}],
            ConfigError,
            "[0].of: there is no 'norm'; there are norms, biases, embeddings; did you mean 'norms'?",
        ),
        (
            [{"preset": "no_decay", "of": []}],
            ConfigTypeError,
            "[0].of: must be a list of norms, biases, embeddings, got []",
        ),
        (
            [{"preset": "layer_decay", "layers": ["*"]}],
            ConfigError,
            f"[0]: layer_decay needs decay, such as in {LAYERS}",
        ),
        (
            [{"preset": "layer_decay", "decay": 0.5}],
            ConfigError,
            f"[0]: layer_decay needs layers, such as in {LAYERS}",
        ),
        (
            [{"preset": "layer_decay", "decay": 2, "layers": ["*"]}],
            ConfigError,
            "[0].decay: must be above 0 and at most 1, got 2",
        ),
        (
            [{"preset": "layer_decay", "decay": "x", "layers": ["*"]}],
            ConfigTypeError,
            "[0].decay: must be a number, got 'x'",
        ),
        (
            [{"preset": "layer_decay", "decay": 0.5, "layers": "*"}],
            ConfigTypeError,
            "[0].layers: must be a list of globs from input to output, got '*'",
        ),
    ],
    ids=str,
)
def test_param_groups_are_checked(given: Any, error: type[OptplugError], message: str):
    assert refusal(error, "adam", param_groups=given) == f"param_groups{message}"
    # A member of several has the same rules, and the same words.
    entry = {"name": "adam", "match": "*", "param_groups": given}
    assert refusal(error, [entry]) == f"optimizer[0].param_groups{message}"
    assert refusal(error, {"combine": [entry]}) == f"optimizer.combine[0].param_groups{message}"


@pytest.mark.parametrize("given", ["layer_decay", ["layer_decay"], [{"preset": "layer_decay"}]], ids=str)
def test_everything_that_a_preset_needs_is_missed(given: Any):
    assert list(map(str, refusals("adam", param_groups=given))) == [
        f"param_groups[0]: layer_decay needs decay, such as in {LAYERS}",
        f"param_groups[0]: layer_decay needs layers, such as in {LAYERS}",
    ]


def test_a_misspelt_way_to_select_is_one_mistake():
    says = refusal(ConfigError, "adam", param_groups=[{"mach": "*", "lr": 1}])
    assert says == (
        "param_groups[0]: needs one of match, regex, type, to say which parameters; it has mach, lr: is 'mach' meant "
        "to be one of them; did you mean 'match'?"
    )


def test_a_weight_decay_that_is_not_there_cannot_be_multiplied():
    says = refusal(ConfigError, "rprop", param_groups=[{"match": "*", "wd_mult": 2}])
    assert says.startswith("param_groups[0].wd_mult: rprop has no ")
    assert "weight_decay" in says


@pytest.mark.parametrize("error", [ConfigError, ConfigTypeError, UnknownNameError, HyperparameterError, EngineError])
def test_each_error_is_also_the_builtin_that_fits(error: type[OptplugError]):
    builtin = {
        ConfigError: ValueError,
        ConfigTypeError: TypeError,
        UnknownNameError: LookupError,
        HyperparameterError: ValueError,
        EngineError: RuntimeError,
    }[error]
    assert issubclass(error, builtin)


# ------------------------------------------------------------------------------------ several optimizers

GENERATOR = {"name": "adam", "match": "generator.*", "lr": 0.1, "scheduler": {"name": "step_lr", "step_size": 3}}
CRITIC = {"name": "sgd", "type": ["Conv2d", "Linear"], "lr": 0.2, "param_groups": ["no_decay"]}


def test_several_optimizers_are_parts_with_parameters_groups_and_schedules_of_their_own():
    config = checked([GENERATOR, CRITIC])
    assert config == Config(
        (
            OptimizerSetup(
                (OptimizerEntry(OptimizerConfig("adam", {"lr": 0.1}), select=Selector(match=("generator.*",))),),
                SchedulerConfig("step_lr", {"step_size": 3}),
            ),
            OptimizerSetup(
                (
                    OptimizerEntry(
                        OptimizerConfig("sgd", {"lr": 0.2}), (NoDecay(),), Selector(type=("Conv2d", "Linear"))
                    ),
                ),
            ),
        ),
        several=True,
    )


def test_one_optimizer_may_be_made_of_several():
    one = {key: value for key, value in GENERATOR.items() if key != "scheduler"}
    config = checked({"combine": [one, CRITIC]}, PLATEAU, monitor="val_loss")
    assert len(config.setups) == 1
    assert config.setup.members == tuple(part.members[0] for part in checked([GENERATOR, CRITIC]).setups)
    assert config.scheduler == SchedulerConfig("reduce_lr_on_plateau", monitor="val_loss")


def test_an_only_entry_of_a_list_needs_no_pattern():
    assert checked([{"name": "adam"}]) == Config(checked("adam").setups, several=True)
    assert checked({"combine": [{"name": "adam"}]}).optimizer == checked("adam").optimizer


EXAMPLE = "{name: adam, match: 'generator.*', lr: 1.0e-3}"


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ([], ConfigTypeError, ": must be a list of mappings, each with a name, got []"),
        (["adam"], ConfigTypeError, f"[0]: must be a mapping such as {EXAMPLE}, got 'adam'"),
        ([None], ConfigTypeError, f"[0]: must be a mapping such as {EXAMPLE}, got None"),
        ([{"match": "a"}], ConfigError, "[0]: needs a name; it has match"),
        (
            [{"name": "adam"}, {"name": "sgd", "match": "x"}],
            ConfigError,
            "[0]: needs one of match, regex, type, to say which parameters it has",
        ),
        ([{"name": "adam", "match": 5}], ConfigTypeError, f"[0].match: must be {GLOBS}, got 5"),
        (
            [{"name": "adam", "match": "a", "lr": -1}],
            HyperparameterError,
            "[0].lr: Invalid learning rate: -1 (Adam: lr must be at least 0)",
        ),
    ],
    ids=str,
)
def test_the_entries_of_several_are_checked(entries: Any, error: type[OptplugError], message: str):
    assert refusal(error, entries) == f"optimizer{message}"
    assert refusal(error, {"combine": entries}) == f"optimizer.combine{message}"


def test_what_belongs_to_an_entry_is_refused_beside_several():
    errors = refusals([GENERATOR, CRITIC], "step_lr", param_groups=[{"match": "*"}], monitor="val_loss", mode="min")
    assert {error.loc: str(error).partition(": ")[2] for error in errors} == {
        "scheduler": "with several optimizers it belongs to an entry of optimizer",
        "param_groups": "with several optimizers it belongs to an entry of optimizer",
        "monitor": "with several optimizers it belongs to the entry's scheduler",
        "mode": "with several optimizers it belongs to the entry's scheduler",
    }
    assert refusal(ConfigError, {"combine": [{"name": "adam"}]}, param_groups=["no_decay"]) == (
        "param_groups: with several optimizers it belongs to an entry of optimizer"
    )


def test_beside_combine_there_is_nothing():
    assert refusal(ConfigError, {"combine": [{"name": "adam"}], "lr": 1}) == (
        "optimizer.lr: an optimizer made of several has the key combine alone, got 'lr' too"
    )


def test_members_of_one_optimizer_have_no_schedules_of_their_own():
    says = refusal(ConfigError, {"combine": [{"name": "adam", "scheduler": "step_lr"}]})
    assert says.startswith("optimizer.combine[0].scheduler: adam has no option 'scheduler'; it has ")
    assert says.endswith("; scheduler stands beside optimizer, or in an entry of a list of several")


def test_a_wrong_name_leaves_the_places_of_the_other_entries_right():
    errors = refusals([{"name": "adm", "match": "x"}, {"name": "sgd", "match": "y", "lr": -1}])
    assert [error.loc for error in errors] == ["optimizer[0].name", "optimizer[1].lr"]


def test_a_wrong_entry_leaves_the_places_of_the_other_groups_right():
    errors = refusals("adam", param_groups=[{"match": 5}, {"match": "*", "lr": -3}])
    assert [error.loc for error in errors] == ["param_groups[0].match", "param_groups[1].lr"]


# --------------------------------------------------------------------------------------- auto and links


@pytest.mark.parametrize("spelled", [{"T_max": "auto"}, {"args": {"T_max": "auto"}}], ids=str)
def test_the_length_of_a_schedule_may_be_auto(spelled: dict[str, Any]):
    auto = scheduler({"name": "cosine_annealing_lr", **spelled})
    assert auto.arguments == {"T_max": "auto"}
    assert auto.length == "T_max"


def test_only_the_length_may_be_auto():
    assert refusal(ConfigError, "adam", {"name": "step_lr", "step_size": "auto"}) == (
        "scheduler.step_size: step_lr has no argument that can be auto, the length of the schedule"
    )
    assert refusal(ConfigError, "adam", {**COSINE, "eta_min": "auto"}) == (
        "scheduler.eta_min: only T_max can be auto, the length of the schedule"
    )
    assert refusal(HyperparameterTypeError, {"name": "adam", "lr": "auto"}) == (
        "optimizer.lr: Adam: lr must be a number, got 'auto' (str)"
    )


@pytest.mark.parametrize("t_max", [5, 10, 11])
def test_the_argument_that_is_wrong_is_blamed(t_max: int):
    says = refusal(HyperparameterTypeError, "adam", {**COSINE, "T_max": t_max, "eta_min": "low"})
    assert says.startswith("scheduler.eta_min: ")


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ({"name": "step_lr", "step_size": 0, "gamma": -5}, ["scheduler.gamma", "scheduler.step_size"]),
        ({"name": "multi_step_lr", "milestones": "a", "gamma": "x"}, ["scheduler.gamma", "scheduler.milestones"]),
        ({"name": "multi_step_lr", "gamma": "x"}, ["scheduler", "scheduler.gamma"]),
        ({**COSINE, "T_max": 0, "eta_min": "low"}, ["scheduler.T_max", "scheduler.eta_min"]),
    ],
    ids=str,
)
def test_two_arguments_that_are_wrong_are_two_mistakes(given: dict[str, Any], places: list[str]):
    assert sorted(error.loc for error in refusals("adam", given)) == places


def module_with(**attributes: Any) -> nn.Module:
    module = nn.Linear(2, 1)
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def build(module: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = build_optimizer(module, checked(*args, **kwargs).setup)
    return made


def test_a_number_may_be_a_link_to_an_attribute_of_the_module():
    module = module_with(lr=0.25, hparams={"decay": 0.5, "deep": {"eps": 0.1}})
    made = build(
        module,
        {"name": "adam", "lr": "module.lr", "eps": "module.hparams.deep.eps"},
        param_groups=[{"match": "bias", "weight_decay": "module.hparams.decay"}, {"match": "weight", "lr_mult": 0.5}],
    )
    rest, bias = made.param_groups
    assert (rest["lr"], bias["lr"], rest["eps"], bias["weight_decay"]) == (0.125, 0.25, 0.1, 0.5)


def test_a_multiplier_multiplies_what_a_link_of_a_group_leads_to():
    module = module_with(lr=0.25, head_lr=0.5)
    rules = [{"match": "bias", "lr": "module.head_lr"}, {"match": "*", "lr_mult": 0.5}]
    weight, bias = build(module, {"name": "adam", "lr": "module.lr"}, param_groups=rules).param_groups
    assert (weight["lr"], bias["lr"]) == (0.125, 0.25)


def test_a_link_that_leads_nowhere_is_refused_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        build(module_with(learning_rate=0.1), {"name": "adam", "lr": "module.learning_rat"})
    assert str(caught.value) == (
        "optimizer.lr: module.learning_rat leads nowhere: Linear has no 'learning_rat'; did you mean 'learning_rate'?"
    )
    with pytest.raises(ConfigError) as caught:
        build(module_with(hparams={"rate": 1}), {"name": "adam", "lr": "module.hparams.rte"})
    assert str(caught.value) == (
        "optimizer.lr: module.hparams.rte leads nowhere: dict has no 'rte'; did you mean 'rate'?"
    )


def test_a_link_of_a_group_that_leads_nowhere_has_the_place_of_the_group():
    with pytest.raises(ConfigError, match=r"^param_groups\[0\]\.lr: module\.rate leads nowhere: Linear has no 'rate'"):
        build(nn.Linear(2, 1), "adam", param_groups=[{"match": "bias", "lr": "module.rate"}])


def test_several_links_that_lead_nowhere_are_said_at_once():
    with pytest.raises(ConfigErrors) as caught:
        build(nn.Linear(2, 1), {"name": "adam", "lr": "module.a", "eps": "module.b"})
    assert [error.loc for error in caught.value.errors] == ["optimizer.lr", "optimizer.eps"]


def test_what_a_link_leads_to_is_checked_like_any_value():
    with pytest.raises(HyperparameterError, match=r"^optimizer(\.lr)?: Invalid learning rate: -1"):
        build(module_with(lr=-1), {"name": "adam", "lr": "module.lr"})


def test_an_attribute_that_fails_is_an_error_of_ours():
    class Failing(nn.Linear):
        @property
        def lr(self) -> float:
            raise RuntimeError("not yet")

    with pytest.raises(OptplugError, match=r"^optimizer\.lr: module\.lr .*RuntimeError: not yet"):
        build(Failing(2, 1), {"name": "adam", "lr": "module.lr"})


@pytest.mark.parametrize("text", ["module", "module.", "modul.lr", "module.1", "module.a b", " module.lr"])
def test_text_that_is_no_link_is_no_number(text: str):
    says = refusal(HyperparameterTypeError, {"name": "adam", "lr": text})
    assert says.startswith(f"optimizer.lr: Adam: lr must be a number, got {text!r}")


# ------------------------------------------------------------------------- mappings of other libraries


GIVEN: dict[str, Any] = {
    "optimizer": {"name": "sgd", "lr": 0.1, "args": {"momentum": 0.9}},
    "scheduler": {"name": "multi_step_lr", "milestones": [2, 4], "warmup": {"steps": 5}},
    "param_groups": ["no_decay", {"match": ["a", "b"], "lr": 0.5}],
}


def omega(given: Any) -> Any:
    return omegaconf.OmegaConf.create(given)


def namespace(given: Any, kind: type = argparse.Namespace) -> Any:
    """The same with Namespaces for mappings, all the way down."""
    if isinstance(given, dict):
        return kind(**{key: namespace(value, kind) for key, value in given.items()})
    return [namespace(value, kind) for value in given] if isinstance(given, list) else given


@pytest.mark.parametrize(
    "convert",
    [omega, namespace, lambda given: namespace(given, jsonargparse.Namespace), MappingProxyType],
    ids=["OmegaConf", "argparse", "jsonargparse", "mappingproxy"],
)
def test_mappings_of_other_libraries_are_python_s_own(convert: Any):
    def converted(value: Any) -> Any:
        return convert(value) if isinstance(value, dict) or convert is not MappingProxyType else value

    config = checked(**{key: converted(value) for key, value in GIVEN.items()})
    assert config == checked(**GIVEN)
    assert type(config.optimizer.hyperparameters) is dict
    assert type(config.scheduler.arguments["milestones"]) is list
    several = checked(converted({"combine": [{"name": "adam", "match": "a"}, {"name": "sgd", "match": "b"}]}))
    assert several == checked({"combine": [{"name": "adam", "match": "a"}, {"name": "sgd", "match": "b"}]})


def test_a_list_of_omegaconf_is_a_list_of_several_optimizers():
    assert checked(omega([GENERATOR, CRITIC])) == checked([GENERATOR, CRITIC])


def test_interpolations_are_resolved():
    whole = omega({"lr": 0.25, "names": {"best": "adam"}, "optimizer": {"name": "${names.best}", "lr": "${lr}"}})
    assert checked(whole.optimizer).optimizer == OptimizerConfig("adam", {"lr": 0.25})


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"optimizer": {"name": "adam", "lr": "${nowhere.lr}"}}, "optimizer.lr", "nowhere.lr"),
        ({"optimizer": {"name": "adam", "lr": "???"}}, "optimizer.lr", "issing"),
        ({"optimizer": {"name": "adam", "betas": [0.9, "???"]}}, "optimizer.betas[1]", "issing"),
        (
            {"optimizer": "adam", "param_groups": [{"match": "*"}, {"match": "*", "lr": "${x}"}]},
            "param_groups[1].lr",
            "x",
        ),
        (
            {"optimizer": "adam", "scheduler": {**COSINE, "warmup": {"steps": "???"}}},
            "scheduler.warmup.steps",
            "issing",
        ),
        ({"optimizer": {"name": "adam", "lr": "${nonsense:1}"}}, "optimizer.lr", "nonsense"),
    ],
    ids=str,
)
def test_what_omegaconf_cannot_resolve_is_an_error_of_ours(given: Any, place: str, words: str):
    whole = omega(given)
    says = refusal(ConfigError, **{key: whole[key] for key in whole})
    assert says.startswith(f"{place}: cannot be read: ")
    assert words in says


def test_what_omegaconf_cannot_resolve_stands_beside_other_mistakes():
    whole = omega({"optimizer": {"name": "adam", "lr": "???"}, "scheduler": {**COSINE, "frequency": 0}})
    errors = refusals(whole.optimizer, whole.scheduler)
    assert [error.loc for error in errors] == ["optimizer.lr", "scheduler.frequency"]


# -------------------------------------------------------------------------------------- all at once


def test_everything_that_is_wrong_is_said_at_once():
    errors = refusals(
        {"name": "adam", "lr": -1, "betas": [2, 0.9], "eps": -1, "foo": 1},
        {"name": "cosine_annealing_lr", "T_max": 0, "interval": "batch", "frequency": 0, "warmup": {"step": 1}},
        param_groups=[{"match": "*", "lr": -3, "lrr": 1}, {"match": 5}, {"match": "a", "lr": 1, "lr_mult": 1}],
    )
    assert {error.loc: type(error) for error in errors} == {
        "optimizer.lr": HyperparameterError,
        "optimizer.betas": HyperparameterError,
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


def test_a_wrong_name_hides_no_mistake_elsewhere():
    errors = refusals("adm", {**COSINE, "frequency": 0}, param_groups=[{"match": "["}, {"match": 5}])
    assert {error.loc for error in errors} == {"optimizer", "scheduler.frequency", "param_groups[1].match"}


@pytest.mark.parametrize(
    ("arguments", "places"),
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
            ["param_groups[0].lr", "param_groups[0].of"],
        ),
    ],
    ids=str,
)
def test_mistakes_side_by_side_in_one_mapping_are_all_said(arguments: dict[str, Any], places: list[str]):
    assert sorted(error.loc for error in refusals("adam", **arguments)) == places


def test_mistakes_are_in_the_order_of_the_configuration():
    errors = refusals(
        {"name": "adam", "lr": -1, "foo": 1, "eps": -1},
        {"name": "cosine_annealing_lr", "T_max": 0, "interval": "batch", "frequency": 0},
        param_groups=[{"match": 5}, {"match": "a", "lr": -1, "lrr": 1}],
    )
    tops = [error.loc.replace("[", ".").partition(".")[0] for error in errors]
    assert tops[:3] == ["optimizer"] * 3
    assert [top for top, _ in itertools.groupby(tops)] in (
        ["optimizer", "scheduler", "param_groups"],
        ["optimizer", "param_groups", "scheduler"],
    )


def test_several_errors_are_one_error_that_survives_pickle():
    with pytest.raises(ValueError, match="2 things are wrong with the configuration:") as caught:
        checked({"name": "adam", "lr": -1, "foo": 1})
    twin = pickle.loads(pickle.dumps(caught.value))
    assert type(twin) is ConfigErrors
    assert str(twin) == str(caught.value)
    assert list(map(str, twin.errors)) == list(map(str, caught.value.errors))
    assert [error.loc for error in twin.errors] == [error.loc for error in caught.value.errors]


def test_one_mistake_is_itself_and_knows_its_place():
    with pytest.raises(HyperparameterError) as caught:
        checked({"name": "adam", "lr": -1})
    assert type(caught.value) is HyperparameterError
    assert caught.value.loc == "optimizer.lr"


# ------------------------------------------------------------------------------------- there and back


def plain_data(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain_data(child) for key, child in value.items())
    if isinstance(value, list):
        return all(plain_data(child) for child in value)
    return value is None or type(value) in (bool, int, float, str)


def assert_comes_back(config: Config) -> None:
    """By keyword, by YAML, and by a checkpoint."""
    saved = config.to_dict()
    assert plain_data(saved)
    assert parse(**saved) == config
    assert yaml.safe_load(yaml.safe_dump(saved)) == saved
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == saved


PATTERNS = st.sampled_from(["*", "*.bias", "head.*", "a b"])
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "match": PATTERNS | st.lists(PATTERNS, min_size=1, max_size=2),
        "regex": st.sampled_from(["bias$", ["a", "b+"]]),
        "type": st.sampled_from(["Linear", ["*Norm*", "Embedding"]]),
    },
).filter(bool)
RATES = st.floats(0, 1e3) | st.integers(0, 5) | st.just("module.lr")
OPTIONS = st.fixed_dictionaries(
    {}, optional={"weight_decay": RATES, "betas": st.just([0.8, 0.9]), "eps": st.just(1e-6), "maximize": st.booleans()}
)
OPTIMIZERS = st.builds(
    lambda options, lr, under, none: {
        "name": "Adam",
        **({} if none else {"args": {"lr": lr}} if under else {"lr": lr}),
        **options,
    },
    OPTIONS,
    RATES,
    st.booleans(),
    st.booleans(),
)
ENTRIES = st.builds(
    lambda select, options, more: {**select, **options, **more},
    SELECTORS,
    OPTIONS,
    st.sampled_from([{}, {"lr_mult": 0.1}, {"lr": 0.1}, {"lr_mult": 2, "lr": None}]).map(
        lambda given: {key: value for key, value in given.items() if value is not None}
    ),
)
PRESETS = st.sampled_from(
    [
        "no_decay",
        {"preset": "no_decay", "of": "norms"},
        {"preset": "no_decay", "of": ["biases", "embeddings"]},
        {"preset": "layer_decay", "decay": 1, "layers": ["blocks.{}.*", "*"]},
    ]
)
GROUPS = (
    st.none()
    | st.just("no_decay")
    | st.lists(ENTRIES | PRESETS, max_size=3).map(
        lambda rules: [
            {**r, "name": f"rule {i}"} if "preset" not in r and r != "no_decay" else r for i, r in enumerate(rules)
        ]
    )
)
WARMUPS = st.sampled_from(
    [
        {},
        {"warmup_steps": 0},
        {"warmup_steps": 7},
        {"warmup": {"steps": 3, "start_factor": 0.5}},
        {"warmup": {"epochs": 0.5}},
        {"warmup": {"ratio": 0.1}},
    ]
)
CALENDAR = st.sampled_from([{}, {"interval": "step"}, {"interval": "epoch", "frequency": 3}])
HEARD = st.fixed_dictionaries(
    {},
    optional={
        "patience_unit": st.sampled_from([None, *PATIENCE_UNITS]),
        "on_nonfinite": st.sampled_from([None, *ON_NONFINITE]),
    },
)
SCHEDULERS = st.one_of(
    st.none(),
    st.just("reduce_lr_on_plateau"),
    st.builds(lambda w, c: {**COSINE, "eta_min": 0.01, **w, **c}, WARMUPS, CALENDAR),
    st.builds(lambda w, c: {"name": "cosine_annealing_lr", "args": {"T_max": "auto"}, **w, **c}, WARMUPS, CALENDAR),
    st.builds(
        lambda w, m, h: {**PLATEAU, **w, **m, **h},
        WARMUPS,
        st.sampled_from([{}, {"monitor": "x"}, {"args": {"mode": "max"}}]),
        HEARD,
    ),
    st.sampled_from([{"warmup_steps": 3}, {"warmup": {"ratio": 0.5, "start_factor": 1}}]),
)
MEMBERS = st.builds(
    lambda optimizer, select, groups: {**optimizer, **select, **({} if groups is None else {"param_groups": groups})},
    OPTIMIZERS,
    SELECTORS,
    GROUPS,
)
CONFIGS = st.one_of(
    st.fixed_dictionaries(
        {"optimizer": OPTIMIZERS | st.just("adam")}, optional={"scheduler": SCHEDULERS, "param_groups": GROUPS}
    ),
    st.fixed_dictionaries(
        {"optimizer": st.lists(MEMBERS, min_size=1, max_size=3).map(lambda members: {"combine": members})},
        optional={"scheduler": SCHEDULERS},
    ),
    st.fixed_dictionaries(
        {
            "optimizer": st.lists(
                st.builds(lambda m, s: {**m, "scheduler": s} if s else m, MEMBERS, SCHEDULERS), min_size=1, max_size=3
            )
        }
    ),
    st.fixed_dictionaries({"scheduler": SCHEDULERS.filter(bool)}),
)


POLICIES = st.sampled_from([{}, {}, {"on_resume": "keep"}, {"on_resume": "reset_all"}])


@given(CONFIGS, POLICIES)
@settings(max_examples=300)
def test_a_configuration_comes_back_from_its_plain_form(given: dict[str, Any], policy: dict[str, str]):
    config = parse(**given, **policy)
    assert config.on_resume == policy.get("on_resume", "keep")
    assert_comes_back(config)
    assert checked(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": {"combine": [{"name": "adam", "match": "head.*"}]}},
        {"optimizer": {"combine": [{"name": "adam", "param_groups": ["no_decay"]}]}},
        {"optimizer": [{"name": "adam"}]},
        {"optimizer": {"name": "Optplug-Classic:ADAM", "betas": [0.8, 0.9]}},
        {"optimizer": "adam", "scheduler": {"name": "lambda_lr", "lr_lambda": "0.9 ** epoch"}},
        {"optimizer": "adam", "scheduler": {"warmup_steps": 0}},
        {"scheduler": {**COSINE, "interval": "step", "frequency": 3, "warmup": {"ratio": 0.1, "start_factor": 0.5}}},
        {"scheduler": {**PLATEAU, "monitor": "x", "mode": "max", "warmup_steps": 3}},
        {"scheduler": {**PLATEAU, "patience_unit": "steps", "on_nonfinite": "ignore"}},
        {"scheduler": {"warmup": {"epochs": 2, "start_factor": 1}}, "on_resume": "reset_all"},
        {"optimizer": [GENERATOR, CRITIC], "on_resume": "reset_all"},
        {"optimizer": {"combine": [CRITIC, {"name": "adam", "regex": "a"}]}, "scheduler": COSINE},
    ],
    ids=str,
)
def test_unusual_configurations_come_back_too(given: dict[str, Any]):
    assert_comes_back(parse(**given))


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "adam", "scheduler": {"name": "deaf", "args": {"interval": 7}}},
        {"optimizer": {"name": "namesake", "args": {"type": 5, "match": 6}}},
        {"optimizer": [{"name": "namesake", "type": "Linear", "args": {"match": 6}}]},
        {"optimizer": [{"name": "namesake", "type": "Linear", "args": {"type": 5, "match": 6}}]},
    ],
    ids=str,
)
def test_arguments_that_are_called_like_a_key_of_ours_come_back(given: dict[str, Any]):
    config = parse(**given)
    choice = given.get("scheduler", given["optimizer"])
    arguments = (choice[0] if isinstance(choice, list) else choice)["args"]
    part = config.setups[0]
    found = part.members[0].optimizer.hyperparameters if part.scheduler is None else part.scheduler.arguments
    assert found == arguments
    assert_comes_back(config)


def test_what_a_file_cannot_hold_is_saved_as_what_it_can():
    config = parse(
        {"name": "adam", "lr": torch.tensor(0.5), "betas": (0.8, 0.9), "state_dtype": torch.bfloat16},
        {"name": "lambda_lr", "lr_lambda": math.sqrt},
    )
    saved = config.to_dict()
    assert plain_data(saved)
    assert saved["optimizer"] == {"name": "adam", "lr": 0.5, "betas": [0.8, 0.9], "state_dtype": "bfloat16"}
    assert saved["scheduler"]["lr_lambda"] == "sqrt"
    assert parse(optimizer=saved["optimizer"]).to_dict()["optimizer"] == saved["optimizer"]


def test_the_plain_form_shares_nothing_with_the_configuration():
    config = checked({"name": "adam", "betas": [0.8, 0.9]}, param_groups=[{"match": "a", "betas": [0.1, 0.2]}])
    before = copy.deepcopy(config)
    saved = config.to_dict()
    saved["optimizer"]["betas"].append(1)
    saved["param_groups"][0]["match"].append("b")
    saved["param_groups"][0]["betas"].append(1)
    assert config == before


# -------------------------------------------------------------------------- classes of somebody else's


class Fussy(torch.optim.SGD):
    def __init__(self, params: Any, lr: float = 0.1, mood: str = "good", **more: Any) -> None:
        if mood == "bad":
            raise ValueError("not today")
        if mood == "worse":
            raise TypeError("never")
        super().__init__(params, lr=lr, **more)


class Deaf(torch.optim.lr_scheduler.LRScheduler):
    """Takes a metric and has no mode; an argument of its own is called `interval`."""

    def __init__(self, optimizer: Any, interval: int = 1, last_epoch: int = -1) -> None:
        self.own = interval
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, metric: Any = None) -> None:
        super().step()


class Placed(Deaf):
    """Takes a metric, and is told where it is."""

    def at(self, position: int) -> None: ...


class Namesake(torch.optim.SGD):
    """Its own arguments are called like keys of a configuration."""

    def __init__(self, params: Any, lr: float = 0.1, type: int = 0, match: int = 0) -> None:  # noqa: A002
        super().__init__(params, lr=lr)


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch):
    from optplug.registry import Plugin, Registration

    registry.names("optimizer")
    plugin = Plugin("strangers", "strangers", "1")
    registrations = registry._catalogue().registrations
    monkeypatch.setitem(registrations["optimizer"], "fussy", [Registration(OptimizerSpec("fussy", Fussy), plugin)])
    monkeypatch.setitem(
        registrations["optimizer"], "namesake", [Registration(OptimizerSpec("namesake", Namesake), plugin)]
    )
    for name, cls in (("deaf", Deaf), ("placed", Placed)):
        spec = SchedulerSpec(name, cls, capabilities=frozenset({"metric"}))
        monkeypatch.setitem(registrations["scheduler"], name, [Registration(spec, plugin)])


@pytest.mark.usefixtures("strangers")
def test_what_a_stranger_says_becomes_an_error_of_ours():
    module = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"^optimizer: fussy refused mood='bad': not today$"):
        optplug.configure_optimizers(module, {"name": "fussy", "mood": "bad"})
    with pytest.raises(ConfigTypeError, match=r"^optimizer: fussy refused mood='worse': never$"):
        optplug.configure_optimizers(module, {"name": "fussy", "mood": "worse"})


@pytest.mark.usefixtures("strangers")
def test_keyword_arguments_that_a_class_hands_to_its_base_are_known():
    built = optplug.configure_optimizers(nn.Linear(1, 1), {"name": "fussy", "momentum": 0.5})
    assert built["optimizer"].defaults["momentum"] == 0.5
    assert refusal(ConfigError, {"name": "fussy", "momentun": 0.5}).endswith("; did you mean 'momentum'?")


@pytest.mark.usefixtures("strangers")
def test_a_schedule_with_a_metric_and_no_mode_is_built():
    choice = {"name": "deaf", "monitor": "val_loss", "args": {"interval": 7}}
    entry = optplug.configure_optimizers(nn.Linear(1, 1), "adam", choice)["lr_scheduler"]
    assert entry["scheduler"].own == 7
    assert entry["monitor"] == "val_loss"


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 3}], ids=str)
def test_a_schedule_that_is_told_no_position_counts_validations_only(warmup: dict[str, int]):
    def build(name: str, **wiring: str) -> Any:
        given = {"name": name, "monitor": "val_loss", **warmup, **wiring}
        return build_scheduler(torch.optim.SGD([torch.zeros(1)], lr=0.1), scheduler(given))

    for unit in ("epochs", "steps"):
        with pytest.raises(ConfigError) as caught:
            build("deaf", patience_unit=unit)
        assert caught.value.loc == "scheduler.patience_unit"
        assert str(caught.value) == (
            "scheduler.patience_unit: deaf has no method at(position) and counts validations only, got "
            f"{unit!r}: leave it out"
        )
        for name in ("placed", "reduce_lr_on_plateau"):
            assert callable(build(name, patience_unit=unit).at)
    assert not hasattr(build("deaf", patience_unit="validations", on_nonfinite="raise"), "at")


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "words"),
    [
        ("lbfgs", {"name": "step_lr", "step_size": -1}, "StepLR: step_size must be at least 1"),
        ("lbfgs", {"name": "lambda_lr", "lr_lambda": "import os"}, "lr_lambda: 'import os' is no expression"),
        ({"name": "lbfgs", "max_iter": 0}, None, "Invalid max_iter value: 0"),
        ({"name": "lbfgs", "line_search_fn": "wolfe"}, None, "only 'strong_wolfe' is supported"),
    ],
)
def test_what_is_no_rule_is_rehearsed_too_and_so_is_its_schedule(optimizer, scheduler, words):
    with pytest.raises(OptplugError, match=words):
        checked(optimizer, scheduler)
