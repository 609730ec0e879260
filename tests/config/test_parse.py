"""Parsing: accepted forms of a configuration; errors about names, keys and arguments."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import yaml

from optplug.config.build import parse_and_check
from optplug.config.model import Config, OptimizerConfig, OptimizerEntry, OptimizerSetup, SchedulerConfig
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    EngineError,
    HyperparameterError,
    OptplugError,
    UnknownNameError,
)

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}


def parse_scheduler(given: Any, **kwargs: Any) -> Any:
    return parse_and_check("adam", given, **kwargs).scheduler


# ---------------------------------------------------------------------------------------- accepted forms


def test_name_equals_mapping_with_name():
    assert parse_and_check("adam", None) == parse_and_check({"name": "adam"}, None)
    assert parse_and_check("adam") == Config((OptimizerSetup((OptimizerEntry(OptimizerConfig("adam")),)),))
    assert (
        parse_scheduler("reduce_lr_on_plateau") == parse_scheduler(PLATEAU) == SchedulerConfig("reduce_lr_on_plateau")
    )


@pytest.mark.parametrize("name", ["Adam", "ADAM", "a_dam", "optplug-classic:adam"])
def test_optimizer_name_is_normalized(name: str):
    assert parse_and_check(name).optimizer.registration.name == "adam"


def test_direct_arguments_equal_arguments_under_args():
    direct = parse_and_check({"name": "adam", "lr": 0.1, "betas": [0.8, 0.9]}, {**COSINE, "eta_min": 0.01})
    nested = parse_and_check(
        {"name": "adam", "args": {"lr": 0.1, "betas": [0.8, 0.9]}},
        {"name": "cosine_annealing_lr", "args": {"T_max": 10, "eta_min": 0.01}},
    )
    assert direct == nested
    assert direct.optimizer.hyperparameters == {"lr": 0.1, "betas": [0.8, 0.9]}
    assert parse_and_check({"name": "adam", "lr": 0.1, "args": {"eps": 1e-6}}).optimizer.hyperparameters == {
        "lr": 0.1,
        "eps": 1e-6,
    }
    assert parse_and_check({"name": "adam", "args": None}) == parse_and_check("adam")


def test_yaml_equals_python():
    text = """
    optimizer: {name: sgd, lr: 1.0e-1, momentum: 0.9}
    scheduler: {name: cosine_annealing_lr, T_max: 30, interval: step, frequency: 2, warmup: {steps: 5}}
    param_groups: [{match: "*.bias", weight_decay: 0.0}]
    """
    assert parse_and_check(**yaml.safe_load(text)) == parse_and_check(
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "cosine_annealing_lr", "T_max": 30, "interval": "step", "frequency": 2, "warmup_steps": 5},
        param_groups=[{"match": ["*.bias"], "weight_decay": 0.0}],
    )


def test_config_survives_pickle_and_deepcopy():
    config = parse_and_check(
        {"name": "adam", "lr": 0.1}, {**PLATEAU, "monitor": "x", "mode": "max"}, param_groups=[{"match": "*"}]
    )
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_parsing_does_not_modify_its_input():
    given = ({"name": "adam", "args": {"lr": 0.1}}, {**PLATEAU, "args": {"mode": "min"}}, [{"match": ["*"], "lr": 1.0}])
    before = copy.deepcopy(given)
    parse_and_check(given[0], given[1], param_groups=given[2])
    assert given == before


# ------------------------------------------------------------------------------------------------ errors


def test_value_that_is_neither_name_nor_mapping_raises(error_message: Any):
    assert (
        error_message(ConfigTypeError, None)
        == "optimizer: must be a name, a mapping with a name, or a list of such mappings, got None (NoneType)"
    )
    assert (
        error_message(ConfigTypeError, 3)
        == "optimizer: must be a name, a mapping with a name, or a list of such mappings, got 3 (int)"
    )
    assert (
        error_message(ConfigTypeError, "adam", 3) == "scheduler: must be a name or a mapping with a name, got 3 (int)"
    )
    assert error_message(ConfigTypeError, {"name": 3}) == "optimizer.name: must be a name, got 3"
    assert error_message(ConfigTypeError, {"name": "adam", 3: 4}) == "optimizer: has the key 3; keys must be strings"


def test_missing_name_raises(error_message: Any):
    assert error_message(ConfigError, {}) == "optimizer: needs a name; it has none"
    assert error_message(ConfigError, {"lr": 0.1}) == "optimizer: needs a name; it has lr"
    assert error_message(ConfigError, {"nam": "adam"}) == (
        "optimizer.nam: needs a name; it has nam; did you mean 'name' instead of 'nam'?"
    )
    assert error_message(ConfigError, {"combin": []}) == (
        "optimizer.combin: needs a name; it has combin; did you mean 'combine' instead of 'combin'?"
    )


def test_unknown_name_raises_with_nearest_match(error_message: Any):
    message = error_message(UnknownNameError, "adamm")
    assert message.startswith("optimizer: no optimizer named 'adamm'; did you mean 'adam'")
    assert "'reduce_lr_on_plateau'" in error_message(UnknownNameError, "adam", "reduce_on_plateau")


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
@pytest.mark.parametrize(
    "given",
    [{"class_path": "os.system"}, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1}}, {"init_args": {}}],
)
def test_class_path_raises(key: str, given: Any, error_message: Any):
    args, example = ((given,), "lr: ...") if key == "optimizer" else (("adam", given), "...")
    name = "adam" if key == "optimizer" and given.get("class_path") == "torch.optim.Adam" else "..."
    assert error_message(ConfigError, *args) == (
        f"{key}: needs a name; it has {', '.join(given)}: write {{name: {name}, {example}}}; optplug looks up "
        "registered names and does not import paths"
    )


@pytest.mark.parametrize("path", ["torch.optim.Adam", "torch.optim:Adam", "optplug_classic.adam:Adam", "os:system"])
def test_import_path_as_name_raises_without_import(path: str, monkeypatch: pytest.MonkeyPatch, error_message: Any):
    parse_and_check("adam", PLATEAU)  # loads all plugins that the test needs

    def no_import(name: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"imports {name}")

    monkeypatch.setattr("importlib.import_module", no_import)
    error_message(UnknownNameError, path)
    error_message(UnknownNameError, "adam", path)
    error_message(ConfigError, {"name": "adam", "class_path": path})
    error_message(ConfigError, "adam", param_groups=[{"match": "*", "class_path": path}])


def test_unknown_argument_raises_with_nearest_match(error_message: Any):
    assert error_message(ConfigError, {"name": "adam", "weigth_decay": 0.1}) == (
        "optimizer.weigth_decay: adam has no option 'weigth_decay'; did you mean 'weight_decay', "
        "'decoupled_weight_decay'?"
    )
    assert error_message(ConfigError, "adam", {**COSINE, "t_max": 3}) == (
        "scheduler.t_max: cosine_annealing_lr has no argument 't_max'; did you mean 'T_max'?"
    )
    assert error_message(ConfigError, "adam", {**COSINE, "warmup_step": 3}) == (
        "scheduler.warmup_step: cosine_annealing_lr has no argument 'warmup_step'; did you mean 'warmup_steps', "
        "'warmup'?"
    )
    assert error_message(ConfigError, "adam", {**PLATEAU, "monitr": "val_loss"}) == (
        "scheduler.monitr: reduce_lr_on_plateau has no argument 'monitr'; did you mean 'monitor'?"
    )


def test_unknown_argument_without_near_match_raises_with_short_list(error_message: Any):
    assert error_message(ConfigError, {"name": "adam", "foo": 0.1}) == (
        "optimizer.foo: adam has no option 'foo'; it has agc, amsgrad, betas, capturable, cautious, clip_norm, "
        "clip_value, decoupled_weight_decay and 9 more (see optplug info adam), and in a configuration args"
    )
    assert error_message(ConfigError, "adam", {**COSINE, "args": {"name": 1}}) == (
        "scheduler.args.name: cosine_annealing_lr has no argument 'name'; it has T_max, eta_min, min_lr_ratio, and in "
        "a configuration interval, frequency, warmup_steps, warmup, args"
    )
    assert error_message(ConfigError, "adam", {**PLATEAU, "foo": 1}) == (
        "scheduler.foo: reduce_lr_on_plateau has no argument 'foo'; it has cooldown, eps, factor, min_lr, mode, "
        "patience, threshold, threshold_mode, verbose, and in a "
        "configuration warmup_steps, warmup, monitor, mode, patience_unit, on_nonfinite, args"
    )


def test_reserved_key_under_args_raises(error_message: Any):
    assert error_message(ConfigError, "adam", {**COSINE, "args": {"interval": "step"}}) == (
        "scheduler.args.interval: cosine_annealing_lr has no argument 'interval'; write interval beside "
        "name, not under args"
    )


def test_non_string_key_under_args_raises():
    with pytest.raises((ConfigError, ConfigTypeError), match=r"^optimizer\.args"):
        parse_and_check({"name": "adam", "args": {1: 2}})


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize(
    "key",
    ["monitor", "mode", "patience_unit", "on_nonfinite", "interval", "frequency", "warmup", "warmup_steps"],
)
def test_scheduler_key_in_optimizer_raises_with_hint(name: str, key: str, error_message: Any):
    assert error_message(ConfigError, {"name": name, key: 1}).endswith(f"; {key!r} belongs to scheduler")


@pytest.mark.parametrize("key", ["params", "last_epoch", "optimizer"])
def test_constructor_arguments_supplied_by_optplug_raise(key: str, error_message: Any):
    error_message(ConfigError, {"name": "adam", key: 1})
    error_message(ConfigError, "adam", {**COSINE, key: 1})


def test_unknown_top_level_key_raises_with_nearest_match(error_message: Any):
    assert error_message(ConfigError, "adam", lr_scheduler="step_lr") == (
        "lr_scheduler: a configuration has no key 'lr_scheduler'; did you mean 'scheduler'?"
    )
    assert error_message(ConfigError, "adam", foo=1) == (
        "foo: a configuration has no key 'foo'; it has optimizer, scheduler, param_groups, monitor, mode, on_resume"
    )


def test_invalid_on_resume_raises(error_message: Any):
    assert parse_and_check("adam").on_resume == parse_and_check("adam", on_resume=None).on_resume == "keep"
    assert parse_and_check("adam", on_resume="override_hparams").on_resume == "override_hparams"
    assert error_message(ConfigError, "adam", on_resume="reset_schedule") == (
        "on_resume: must be one of keep, override_hparams, reset_scheduler, reset_all, got 'reset_schedule'; did you "
        "mean 'reset_scheduler', 'reset_all'?"
    )
    assert error_message(ConfigError, "adam", on_resume=5).endswith("got 5")


def test_missing_required_argument_raises(error_message: Any):
    assert error_message(ConfigError, "adam", "cosine_annealing_lr") == (
        "scheduler: cosine_annealing_lr needs T_max (T_max may be auto: the length of the training)"
    )
    assert error_message(ConfigError, "adam", "step_lr") == "scheduler: step_lr needs step_size"


def test_argument_given_directly_and_under_args_raises(error_message: Any):
    assert error_message(ConfigError, {"name": "adam", "lr": 1, "args": {"lr": 1}}) == (
        "optimizer.args.lr: is also given directly: give it once"
    )


@pytest.mark.parametrize("args", [0, False, "", [], "lr", [1]])
def test_args_that_is_not_a_mapping_raises(args: Any, error_message: Any):
    assert error_message(ConfigTypeError, {"name": "adam", "args": args}) == (
        f"optimizer.args: must be a mapping of arguments, got {args!r}"
    )


@pytest.mark.parametrize("error", [ConfigError, ConfigTypeError, UnknownNameError, HyperparameterError, EngineError])
def test_error_class_has_matching_builtin_base(error: type[OptplugError]):
    builtin = {
        ConfigError: ValueError,
        ConfigTypeError: TypeError,
        UnknownNameError: LookupError,
        HyperparameterError: ValueError,
        EngineError: RuntimeError,
    }[error]
    assert issubclass(error, builtin)
