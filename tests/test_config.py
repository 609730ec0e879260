"""The one form of a configuration: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optplug
from optplug.build import checked
from optplug.config import Config, OptimizerConfig, SchedulerConfig
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    EngineError,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    UnknownNameError,
)
from optplug.registry import registry
from optplug.specs import OptimizerSpec, SchedulerSpec

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}
ADAM_OPTIONS = (
    "amsgrad, betas, capturable, decoupled_weight_decay, differentiable, engine, eps, foreach, fused, lr, maximize"
)
ADAM_OPTIONS += ", state_dtype, weight_decay"
GROUP_OPTIONS = ADAM_OPTIONS.replace("engine, ", "").replace("state_dtype, ", "")


def scheduler(given: Any, **kwargs: Any) -> Any:
    return checked("adam", given, **kwargs).scheduler


def refusal(error: type[OptplugError], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        checked(*args, **kwargs)
    assert type(caught.value) is error
    return str(caught.value)


# --------------------------------------------------------------------------------------- what it takes


def test_a_name_and_a_mapping_with_that_name_are_the_same():
    assert checked("adam", None) == checked({"name": "adam"}, None) == Config(OptimizerConfig("adam"))
    assert scheduler("reduce_lr_on_plateau") == scheduler(PLATEAU) == SchedulerConfig("reduce_lr_on_plateau")


@pytest.mark.parametrize("name", ["Adam", "ADAM", "a_dam", "optplug-classic:adam"])
def test_a_name_is_looked_up_as_everywhere(name: str):
    assert checked(name).optimizer.offer.name == "adam"


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
    assert (parsed.interval, parsed.frequency, parsed.warmup_steps) == ("epoch", 1, 0)
    assert (parsed.warmup_start, parsed.monitor, parsed.mode) == (None, None, None)
    assert not parsed.takes_metric
    assert scheduler(PLATEAU).takes_metric


def test_warmup_steps_is_short_for_warmup():
    assert scheduler({**COSINE, "warmup_steps": 5}) == scheduler({**COSINE, "warmup": {"steps": 5}})
    assert scheduler({**COSINE, "warmup": {"steps": 5, "start_factor": 0.5}}).warmup_start == 0.5


@pytest.mark.parametrize("none", [{"warmup_steps": 0}, {"warmup": None}, {"warmup": {"steps": 0}}, {}])
def test_no_warmup_can_be_said(none: dict[str, Any]):
    assert scheduler({**COSINE, **none}) == scheduler(COSINE)


def test_monitor_and_mode_beside_the_scheduler_are_its_own():
    inside = scheduler({**PLATEAU, "monitor": "val_acc", "mode": "max"})
    assert scheduler(PLATEAU, monitor="val_acc", mode="max") == inside
    assert scheduler({**PLATEAU, "monitor": "val_acc"}, monitor="val_acc", mode="max") == inside
    assert scheduler({**PLATEAU, "monitor": "val_acc", "args": {"mode": "max"}}) == inside


def test_a_match_may_be_one_glob_or_several():
    one, several = checked(
        "adam", param_groups=[{"match": "a"}, {"match": ["b", "c"], "name": "x", "lr": 1}]
    ).param_groups
    assert one == {"match": ["a"], "name": "a"}
    assert several == {"match": ["b", "c"], "name": "x", "lr": 1}
    assert checked("adam", param_groups=[{"match": ["b", "c"]}]).param_groups[0]["name"] == "b c"


def test_param_groups_of_a_tuple_or_none_are_taken():
    assert checked("adam", param_groups=({"match": "a"},)) == checked("adam", param_groups=[{"match": "a"}])
    assert checked("adam", param_groups=[]) == checked("adam", param_groups=None) == checked("adam")


# ------------------------------------------------------------------------------------- what it refuses


def test_an_optimizer_that_is_no_name_is_refused():
    assert refusal(ConfigTypeError, None) == "optimizer must be a name or a mapping with a name, got None (NoneType)"
    assert refusal(ConfigTypeError, 3) == "optimizer must be a name or a mapping with a name, got 3 (int)"
    assert refusal(ConfigTypeError, "adam", 3) == "scheduler must be a name or a mapping with a name, got 3 (int)"
    assert refusal(ConfigTypeError, {"name": 3}) == "optimizer.name must be text, got 3"
    assert refusal(ConfigTypeError, {"name": "adam", 3: 4}) == "optimizer has the key 3; keys are text"


def test_a_missing_name_is_missed():
    assert refusal(ConfigError, {}) == "optimizer needs a name; it has none"
    assert refusal(ConfigError, {"lr": 0.1}) == "optimizer needs a name; it has lr"
    assert refusal(ConfigError, {"nam": "adam"}) == "optimizer needs a name; it has nam: is 'nam' meant to be 'name'?"


def test_an_unknown_name_has_its_nearest_match():
    message = refusal(UnknownNameError, "adamm")
    assert message.startswith("no optimizer named 'adamm'; did you mean 'adam'")
    assert "'reduce_lr_on_plateau'" in refusal(UnknownNameError, "adam", "reduce_on_plateau")


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
@pytest.mark.parametrize(
    "given",
    [{"class_path": "os.system"}, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1}}, {"init_args": {}}],
)
def test_a_class_path_is_refused(key: str, given: Any):
    args = (given,) if key == "optimizer" else ("adam", given)
    assert refusal(ConfigError, *args) == (
        f"{key} needs a name; it has {', '.join(given)}: write {{name: ..., lr: ...}}; optplug looks names up and "
        "imports no class_path"
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
        f"optimizer 'adam' has no option 'weigth_decay'; it has {ADAM_OPTIONS}, and in a configuration args; "
        "did you mean 'weight_decay', 'decoupled_weight_decay'?"
    )
    assert refusal(ConfigError, "adam", {**COSINE, "t_max": 3}) == (
        "scheduler 'cosine_annealing_lr' has no option 't_max'; it has T_max, eta_min, and in a configuration args, "
        "interval, frequency, warmup, warmup_steps, monitor, mode; did you mean 'T_max'?"
    )
    assert refusal(ConfigError, "adam", {**COSINE, "warmup_step": 3}).endswith(
        "; did you mean 'warmup_steps', 'warmup'?"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "monitr": "val_loss"}).endswith("; did you mean 'monitor'?")
    assert refusal(ConfigError, "adam", {**COSINE, "args": {"name": 1}}).partition("; it has")[0] == (
        "scheduler 'cosine_annealing_lr' has no option 'name'"
    )
    assert refusal(ConfigError, {"name": "adam", "args": {1: 2}}) == (
        f"optimizer 'adam' has no option 1; it has {ADAM_OPTIONS}, and in a configuration args"
    )


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("key", ["monitor", "mode", "interval", "frequency", "warmup", "warmup_steps"])
def test_a_key_of_the_scheduler_at_the_optimizer_is_told_where_it_belongs(name: str, key: str):
    assert refusal(ConfigError, {"name": name, key: 1}).endswith(f"; {key!r} belongs to scheduler")


@pytest.mark.parametrize("key", ["params", "last_epoch", "optimizer"])
def test_what_the_wiring_supplies_is_no_option(key: str):
    refusal(ConfigError, {"name": "adam", key: 1})
    refusal(ConfigError, "adam", {**COSINE, key: 1})


def test_a_required_argument_is_missed():
    assert refusal(ConfigError, "adam", "cosine_annealing_lr") == "scheduler 'cosine_annealing_lr' needs T_max"


def test_an_argument_given_twice_is_refused():
    assert refusal(ConfigError, {"name": "adam", "lr": 1, "args": {"lr": 1}}) == (
        "optimizer gives lr both directly and under args"
    )


@pytest.mark.parametrize("args", [0, False, "", [], "lr", [1]])
def test_args_that_are_no_mapping_are_refused(args: Any):
    assert refusal(ConfigTypeError, {"name": "adam", "args": args}) == (
        f"optimizer.args must be a mapping of arguments, got {args!r}"
    )


def test_a_number_that_yaml_reads_as_text_is_explained():
    given = yaml.safe_load("{name: adam, lr: 1e-3}")
    assert refusal(HyperparameterTypeError, given) == (
        "Adam: lr must be a number, got '1e-3' (str); YAML reads 1e-3 as text, write 1.0e-3"
    )
    groups = yaml.safe_load("[{match: '*', lr: 1e-3}]")
    assert refusal(HyperparameterTypeError, "adam", param_groups=groups) == (
        "param_groups[0]: Adam: lr must be a number, got '1e-3' (str); YAML reads 1e-3 as text, write 1.0e-3"
    )


def test_a_wrong_value_is_found_before_there_is_a_model():
    assert refusal(HyperparameterError, {"name": "adam", "lr": -1.0}).startswith("Invalid learning rate: -1.0")
    assert refusal(EngineError, {"name": "adam", "engine": 3}) == (
        "no engine named 3; there are auto, loop, foreach, numba"
    )
    assert refusal(HyperparameterError, "adam", {**COSINE, "T_max": 0}) == (
        "CosineAnnealingLR: T_max must be at least 1, got 0"
    )
    assert refusal(HyperparameterTypeError, "adam", {**COSINE, "T_max": [3]}) == (
        "CosineAnnealingLR: T_max must be a number of steps, got [3]"
    )
    assert refusal(HyperparameterError, "adam", {**PLATEAU, "factor": 1.5}) == (
        "Factor should be < 1.0. ReduceLROnPlateau got factor 1.5"
    )
    assert (
        refusal(HyperparameterError, "adam", {**PLATEAU, "min_lr": [0.1, 0.2]})
        == "expected 1 min_lrs, got 2: ReduceLROnPlateau takes one min_lr for all groups, or a list with one for each"
    )


def test_a_list_of_one_value_a_group_waits_for_the_groups():
    groups = [{"match": "bias", "lr": 0.5}]
    module = nn.Linear(2, 2)
    optplug.configure_optimizers(module, "adam", {**PLATEAU, "min_lr": [0.1, 0.2]}, param_groups=groups, monitor="loss")
    with pytest.raises(HyperparameterError, match="expected 2 min_lrs, got 1"):
        optplug.configure_optimizers(module, "adam", {**PLATEAU, "min_lr": [0.1]}, param_groups=groups, monitor="loss")


def test_a_number_too_large_for_a_float_is_refused():
    assert refusal(HyperparameterError, {"name": "adam", "lr": 10**400}).startswith("Invalid learning rate: 1000")


def test_interval_and_frequency_are_checked():
    assert refusal(ConfigError, "adam", {**COSINE, "interval": "batch"}) == (
        "scheduler.interval must be 'epoch' or 'step', got 'batch'"
    )
    assert refusal(ConfigTypeError, "adam", {**COSINE, "frequency": 1.5}) == (
        "scheduler.frequency must be a whole number, got 1.5"
    )
    assert refusal(ConfigTypeError, "adam", {**COSINE, "frequency": True}) == (
        "scheduler.frequency must be a whole number, got True"
    )
    assert refusal(ConfigError, "adam", {**COSINE, "frequency": 0}) == "scheduler.frequency must be at least 1, got 0"
    assert refusal(ConfigError, "adam", {**PLATEAU, "interval": "step", "frequency": 2}) == (
        "reduce_lr_on_plateau steps once per completed validation (or per epoch, for a training metric): "
        "leave out scheduler.interval and scheduler.frequency, got 'step' and 2"
    )


@pytest.mark.parametrize(
    ("wiring", "error", "message"),
    [
        (
            {"warmup_steps": 1, "warmup": {"steps": 1}},
            ConfigError,
            "scheduler.warmup_steps is short for scheduler.warmup: {steps: ...}: give one of them",
        ),
        ({"warmup": 5}, ConfigTypeError, "scheduler.warmup must be a mapping such as {steps: 100}, got 5"),
        ({"warmup": {}}, ConfigError, "scheduler.warmup needs steps, the number of optimizer steps"),
        (
            {"warmup": {"step": 5}},
            ConfigError,
            "scheduler.warmup has no key 'step'; it has steps, start_factor; did you mean 'steps'?",
        ),
        ({"warmup_steps": -1}, ConfigError, "warmup steps must be at least 1, got -1; leave warmup out for none"),
        ({"warmup_steps": 1.5}, ConfigTypeError, "warmup steps must be a whole number of optimizer steps, got 1.5"),
        ({"warmup_steps": 0.0}, ConfigTypeError, "warmup steps must be a whole number of optimizer steps, got 0.0"),
        ({"warmup_steps": False}, ConfigTypeError, "warmup steps must be a whole number of optimizer steps, got False"),
        ({"warmup_steps": None}, ConfigTypeError, "warmup steps must be a whole number of optimizer steps, got None"),
        (
            {"warmup": {"steps": 5, "start_factor": 0}},
            ConfigError,
            "warmup start_factor must be above 0 and at most 1, got 0",
        ),
        (
            {"warmup": {"steps": 0, "start_factor": "x"}},
            ConfigTypeError,
            "warmup start_factor must be a number, got 'x'",
        ),
    ],
)
def test_a_warmup_is_checked(wiring: dict[str, Any], error: type[OptplugError], message: str):
    assert refusal(error, "adam", {**COSINE, **wiring}) == message


def test_monitor_and_mode_are_checked():
    assert refusal(ConfigTypeError, "adam", {**PLATEAU, "monitor": 3}) == "monitor must be the name of a metric, got 3"
    assert refusal(ConfigError, "adam", PLATEAU, monitor="") == (
        "monitor is empty: name a metric, or leave it out to have it inferred"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "mode": "low"}) == "mode must be 'min' or 'max', got 'low'"


def test_monitor_and_mode_given_twice_must_agree():
    assert refusal(ConfigError, "adam", {**PLATEAU, "monitor": "a"}, monitor="b") == (
        "monitor is 'b' and scheduler.monitor is 'a': give it once"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "mode": "min"}, mode="max") == (
        "mode is 'max' and scheduler.mode is 'min': give it once"
    )
    assert refusal(ConfigError, "adam", {**PLATEAU, "mode": "min", "args": {"mode": "max"}}) == (
        "scheduler.mode is 'min' and scheduler.args.mode is 'max': give it once"
    )


def test_a_metric_for_a_schedule_that_takes_none_is_refused():
    assert refusal(ConfigError, "adam", COSINE, monitor="val_loss") == (
        "cosine_annealing_lr takes no metric: scheduler.monitor='val_loss' has no use"
    )
    assert refusal(ConfigError, "adam", monitor="val_loss") == (
        "monitor='val_loss' needs a scheduler that takes a metric, and there is no scheduler"
    )
    assert refusal(ConfigError, "adam", mode="min") == (
        "mode='min' needs a scheduler that takes a metric, and there is no scheduler"
    )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (5, ConfigTypeError, "param_groups must be a list of mappings, got 5"),
        ({"match": "*"}, ConfigTypeError, "param_groups must be a list of mappings, got {'match': '*'}"),
        (
            ["*.bias"],
            ConfigTypeError,
            "param_groups[0] must be a mapping such as {match: '*.bias', weight_decay: 0.0}, got '*.bias'",
        ),
        ([{"lr": 1}], ConfigError, "param_groups[0] needs match, a glob over parameter names; it has lr"),
        ([{"match": 5}], ConfigTypeError, "param_groups[0].match must be a glob or a list of globs, got 5"),
        ([{"match": []}], ConfigTypeError, "param_groups[0].match must be a glob or a list of globs, got []"),
        (
            [{"match": ["a", 1]}],
            ConfigTypeError,
            "param_groups[0].match must be a glob or a list of globs, got ['a', 1]",
        ),
        ([{"match": "*", "name": None}], ConfigTypeError, "param_groups[0].name must be text, got None"),
        (
            [{"match": "*"}, {"match": "*", "wd": 0}],
            ConfigError,
            f"param_groups[1]: adam has no option 'wd'; it has {GROUP_OPTIONS}",
        ),
        (
            [{"match": "*", "weigth_decay": 0}],
            ConfigError,
            f"param_groups[0]: adam has no option 'weigth_decay'; it has {GROUP_OPTIONS}; did you mean 'weight_decay', "
            "'decoupled_weight_decay'?",
        ),
        (
            [{"match": "*", "betas": [0.9]}],
            HyperparameterError,
            "param_groups[0]: Adam: betas must be 2 numbers, got (0.9,)",
        ),
        (
            [{"match": "a", "name": "x"}, {"match": "b", "name": "x"}],
            ConfigError,
            "two entries of param_groups are named 'x': give each its own name",
        ),
    ],
)
def test_param_groups_are_checked(given: Any, error: type[OptplugError], message: str):
    assert refusal(error, "adam", param_groups=given) == message


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

    def step(self, metric: Any = None) -> None:  # type: ignore[override]
        super().step()


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch):
    from optplug.registry import Offer, Plugin

    registry.names("optimizer")
    plugin = Plugin("strangers", "strangers", "1")
    offers = registry._catalogue().offers
    monkeypatch.setitem(offers["optimizer"], "fussy", [Offer(OptimizerSpec("fussy", Fussy), plugin)])
    spec = SchedulerSpec("deaf", Deaf, capabilities=frozenset({"metric"}))
    monkeypatch.setitem(offers["scheduler"], "deaf", [Offer(spec, plugin)])


@pytest.mark.usefixtures("strangers")
def test_what_a_stranger_says_becomes_an_error_of_ours():
    module = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"^optimizer 'fussy' refused mood='bad': not today$"):
        optplug.configure_optimizers(module, {"name": "fussy", "mood": "bad"})
    with pytest.raises(ConfigTypeError, match=r"^optimizer 'fussy' refused mood='worse': never$"):
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


# ------------------------------------------------------------------------------------------ properties

VALID = [
    ({"name": "adam", "lr": 1e-3, "betas": [0.9, 0.99]}, None, None, None, None),
    (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "args": {"weight_decay": 0.1}},
        {"name": "cosine_annealing_lr", "T_max": 10, "interval": "step", "frequency": 2, "warmup": {"steps": 3}},
        [{"match": "*.bias", "weight_decay": 0.0}, {"match": ["a", "b"], "name": "x", "lr": 0.5}],
        None,
        None,
    ),
    (
        {"name": "adamw", "lr": 1e-3},
        {"name": "reduce_lr_on_plateau", "patience": 3, "factor": 0.5, "warmup_steps": 5, "min_lr": [0.0]},
        None,
        "val_loss",
        "min",
    ),
]
WORDS = [
    "name",
    "args",
    "lr",
    "mode",
    "monitor",
    "warmup",
    "steps",
    "match",
    "params",
    "engine",
    "verbose",
    "class_path",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0, 1])
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["1e-3", "adam", "step", "min", "*", "torch.optim.SGD", "a:b"])
    | st.binary(max_size=2)
    | st.complex_numbers()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.integers(), inner, max_size=2)
    ),
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in nested mappings and lists."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


@st.composite
def mutated(draw: Any) -> list[Any]:
    """A valid configuration with one to three values dropped, renamed, replaced or added."""
    config: list[Any] = copy.deepcopy(list(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([place for place in places(config) if place]))
        parent: Any = config
        for key in path[:-1]:
            parent = parent[key]
        value = draw(VALUES)
        what = draw(st.sampled_from(["replace", "drop", "rename", "add"]))
        if isinstance(parent, dict) and what != "replace":
            old = parent.pop(path[-1]) if what != "add" else value
            if what != "drop":
                parent[draw(st.sampled_from(WORDS) | st.text(max_size=3) | st.integers())] = old
        else:
            parent[path[-1]] = value
    return config


@given(mutated())
@settings(max_examples=400)
@pytest.mark.filterwarnings("ignore:verbose does nothing:DeprecationWarning")
def test_a_configuration_parses_or_is_refused_by_an_error_of_ours(config: list[Any]):
    optimizer, scheduler, groups, monitor, mode = config
    try:
        parsed = checked(optimizer, scheduler, param_groups=groups, monitor=monitor, mode=mode)
    except OptplugError:
        return
    built = checked(optimizer, scheduler, param_groups=groups, monitor=monitor, mode=mode)
    assert repr(built) == repr(parsed)


@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid[0]["name"])
def test_the_configurations_that_are_mutated_are_valid(valid: Any):
    optimizer, scheduler, groups, monitor, mode = valid
    checked(optimizer, scheduler, param_groups=groups, monitor=monitor, mode=mode)


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
