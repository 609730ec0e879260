"""Errors of constructors name the wrong argument, and one exception reports the errors of all wrong arguments."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import optplug
from optplug.errors import (
    ConfigTypeError,
    EngineError,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    RecordingError,
)
from optplug.optim.ranges import declared_ranges
from optplug.rules.modifiers import CLIPS
from optplug.schedulers.closed_form import Unscheduled
from optplug.schedulers.warmup import Warmup

OPTIMIZERS = {name: optplug.get_optimizer(name) for name in optplug.list_optimizers("optplug-classic:*")}
SCHEDULERS = {name: optplug.get_scheduler(name) for name in optplug.list_schedulers("optplug-schedules:*")}
OPTIMIZER_WIDE = ("engine", "state_dtype")

Wrong = list[tuple[Any, tuple[int, ...]]]
"""Wrong values of an argument, each with the location of the error inside the value."""


def parameter() -> torch.Tensor:
    return torch.zeros(2, requires_grad=True)


def errors_of(act: Callable[[], Any]) -> list[tuple[str | None, tuple[str | int, ...]]]:
    """The argument, and the location inside its value, of each error that a call raises."""
    with pytest.raises(OptplugError) as caught:
        act()
    errors = caught.value.errors
    assert type(caught.value) is type(errors[0])
    assert caught.value.message.startswith(errors[0].message)
    assert caught.value.argument == errors[0].argument
    return [(error.argument, error.inside) for error in errors]


def wrong_values(cls: type, name: str, default: Any) -> Wrong:
    """Wrong values of an optimizer's argument: of a wrong type, and outside of a declared range."""
    range_ = declared_ranges(cls).get(name)
    out_of_range = -1.0 if range_ is not None and not range_.holds(-1.0) else float("nan")
    if isinstance(default, tuple):
        return [("text", ()), ((default[0], out_of_range), (1,)), (("text", default[1]), (0,))]
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        return [("text", ()), (out_of_range, ())]
    if name in CLIPS:  # their default is None
        return [("text", ()), (0.0, ()), (-1.0, ())]
    return [("text", ()), (0 if name == "max_eval" else 2, ())]


def wrong_arguments(cls: type) -> dict[str, Wrong]:
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    return {p.name: wrong_values(cls, p.name, p.default) for p in parameters}


def construct(cls: Any, options: dict[str, Any]) -> None:
    cls([parameter()], **options)


def add_group(cls: Any, options: dict[str, Any]) -> None:
    cls([parameter()]).add_param_group({"params": [parameter()], **options})


def construct_group(cls: Any, options: dict[str, Any]) -> None:
    cls([{"params": [parameter()], **options}])


def load(cls: Any, options: dict[str, Any]) -> None:
    optimizer = cls([parameter()])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0].update(options)
    optimizer.load_state_dict(saved)


WAYS = {"constructor": construct, "group": construct_group, "added group": add_group, "state dict": load}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_reports_each_wrong_argument(name: str, way: str) -> None:
    cls, act = OPTIMIZERS[name], WAYS[way]
    if name == "lbfgs" and way == "added group":
        pytest.skip("LBFGS has one group")
    wrong = wrong_arguments(cls)
    if way != "constructor":
        wrong = {key: values for key, values in wrong.items() if key not in OPTIMIZER_WIDE}
    if way == "state dict":  # values out of range are loaded, and options that select how a step runs are not
        not_loaded = ("foreach", "fused", "capturable", "differentiable")
        wrong = {key: values[:1] for key, values in wrong.items() if key not in not_loaded}
    for key, values in wrong.items():
        for value, inside in values:
            assert errors_of(lambda: act(cls, {key: value})) == [(key, inside)], (key, value)  # noqa: B023
    for first, second in itertools.combinations(wrong, 2):
        (a, inside_a), (b, inside_b) = wrong[first][-1], wrong[second][-1]
        errors = errors_of(lambda: act(cls, {second: b, first: a}))  # noqa: B023
        assert sorted(errors) == sorted([(first, inside_a), (second, inside_b)])


def test_first_error_is_that_of_torch_and_the_others_follow() -> None:
    with pytest.raises(HyperparameterError) as caught:
        OPTIMIZERS["adam"]([parameter()], lr=-1, eps=-1, betas=(2, 0.9))
    assert caught.value.message.startswith("Invalid learning rate: -1 (Adam: lr must be at least 0)\n")
    assert [(error.argument, error.inside) for error in caught.value.errors] == [
        ("lr", ()),
        ("betas", (0,)),
        ("eps", ()),
    ]
    assert {type(error) for error in caught.value.errors} == {HyperparameterError}


COMBINATIONS: list[tuple[str, dict[str, Any], type[OptplugError], list[str]]] = [
    ("sgd", {"nesterov": True}, HyperparameterError, ["nesterov"]),
    ("adam", {"fused": True, "differentiable": True}, EngineError, ["fused"]),
    ("adam", {"fused": True, "foreach": True}, EngineError, ["fused"]),
    ("adam", {"foreach": True, "engine": "loop"}, EngineError, ["foreach"]),
    ("adam", {"foreach": False, "engine": "foreach"}, EngineError, ["foreach"]),
    ("adam", {"engine": "numba", "differentiable": True}, RecordingError, ["differentiable"]),
    ("adam", {"foreach": True, "lr": torch.tensor(0.1)}, HyperparameterError, ["lr"]),
    ("adam", {"foreach": True, "betas": (torch.tensor(0.9), torch.tensor(0.9))}, HyperparameterError, ["betas"]),
    ("adam", {"foreach": True, "engine": "lop"}, EngineError, ["engine"]),
    ("rprop", {"etas": (0.5, 0.9)}, HyperparameterError, ["etas"]),
    ("rprop", {"etas": (0.5, 0.9), "step_sizes": (1.0, 0.5)}, HyperparameterError, ["etas", "step_sizes"]),
    ("sgd", {"nesterov": True, "fused": True, "foreach": True}, EngineError, ["fused", "nesterov"]),
    ("sgd", {"nesterov": True, "lr": -1.0}, HyperparameterError, ["lr"]),
    ("adam", {"unknown": 1, "unknown_too": 2}, HyperparameterTypeError, ["unknown", "unknown_too"]),
]


@pytest.mark.parametrize(("name", "options", "error", "arguments"), COMBINATIONS, ids=str)
def test_error_about_several_options_names_the_one_to_change(name, options, error, arguments) -> None:
    assert [argument for argument, _ in errors_of(lambda: construct(OPTIMIZERS[name], options))] == arguments
    with pytest.raises(error):
        construct(OPTIMIZERS[name], options)


def test_each_wrong_item_of_a_tuple_has_an_error() -> None:
    assert errors_of(lambda: construct(OPTIMIZERS["adam"], {"betas": (2, -1)})) == [("betas", (0,)), ("betas", (1,))]


def test_group_option_that_the_constructor_lacks_has_one_error() -> None:
    errors = errors_of(lambda: construct_group(OPTIMIZERS["sparse_adam"], {"capturable": "text", "lr": -1.0}))
    assert errors == [("capturable", ()), ("lr", ())]


def test_errors_of_all_groups_of_a_state_dict_are_reported() -> None:
    optimizer = OPTIMIZERS["adam"]([{"params": [parameter()]}, {"params": [parameter()]}])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = saved["param_groups"][1]["eps"] = "text"
    assert errors_of(lambda: optimizer.load_state_dict(saved)) == [("lr", ()), ("eps", ())]


# ------------------------------------------------------------------------------------------------- schedulers

NEGATIVE_AND_TEXT: Wrong = [("text", ()), (-7, ())]
NOT_A_RATIO: Wrong = [*NEGATIVE_AND_TEXT, (1.5, ())]
WRONG_SCHEDULER_ARGUMENTS: dict[str, dict[str, Wrong]] = {
    "step_lr": {"step_size": NEGATIVE_AND_TEXT, "gamma": NEGATIVE_AND_TEXT, "min_lr_ratio": NOT_A_RATIO},
    "multi_step_lr": {
        "milestones": [("30", ()), (3, ()), ([3, -1], (1,))],
        "gamma": NEGATIVE_AND_TEXT,
        "min_lr_ratio": NOT_A_RATIO,
    },
    "exponential_lr": {"gamma": NEGATIVE_AND_TEXT, "min_lr_ratio": NOT_A_RATIO},
    "cosine_annealing_lr": {"T_max": NEGATIVE_AND_TEXT, "eta_min": NEGATIVE_AND_TEXT, "min_lr_ratio": NOT_A_RATIO},
    "lambda_lr": {"lr_lambda": [(3, ()), ([3], (0,)), ([abs, abs], ())], "min_lr_ratio": NOT_A_RATIO},
    "constant_lr": {"factor": NOT_A_RATIO, "total_iters": NEGATIVE_AND_TEXT},
    "linear_lr": {
        "start_factor": [*NOT_A_RATIO, (0, ())],
        "end_factor": NOT_A_RATIO,
        "total_iters": NEGATIVE_AND_TEXT,
        "min_lr_ratio": NOT_A_RATIO,
    },
    "polynomial_lr": {"total_iters": NEGATIVE_AND_TEXT, "power": NEGATIVE_AND_TEXT, "min_lr_ratio": NOT_A_RATIO},
    "one_cycle_lr": {
        "max_lr": [*NEGATIVE_AND_TEXT, ([0.1, 0.1], ()), ([-1], (0,))],
        "total_steps": [("text", ()), (-7, ()), (None, ())],
        "pct_start": NOT_A_RATIO,
        "anneal_strategy": [("cosine", ()), (None, ())],
        "cycle_momentum": [("text", ()), (None, ())],
        "base_momentum": [*NEGATIVE_AND_TEXT, ([0.1, 0.1], ()), ([-1], (0,))],
        "max_momentum": [*NEGATIVE_AND_TEXT, ([0.1, 0.1], ()), ([-1], (0,))],
        "div_factor": [*NEGATIVE_AND_TEXT, (0, ())],
        "final_div_factor": [*NEGATIVE_AND_TEXT, (0, ())],
        "three_phase": [("text", ()), (None, ())],
    },
    "cyclic_lr": {
        "base_lr": [*NEGATIVE_AND_TEXT, ([0.1, 0.1], ()), ([-1], (0,))],
        "max_lr": [*NEGATIVE_AND_TEXT, ([0.1, 0.1], ()), ([-1], (0,))],
        "step_size_up": NEGATIVE_AND_TEXT,
        "step_size_down": NEGATIVE_AND_TEXT,
        "mode": [("text", ()), (None, ())],
        "gamma": NEGATIVE_AND_TEXT,
        "scale_mode": [("text", ()), (None, ())],
        "cycle_momentum": [("text", ()), (None, ())],
        "base_momentum": [*NEGATIVE_AND_TEXT, ([0.1, 0.1], ()), ([-1], (0,))],
        "max_momentum": [*NEGATIVE_AND_TEXT, ([0.1, 0.1], ()), ([-1], (0,))],
    },
    "cosine_annealing_warm_restarts": {
        "T_0": NEGATIVE_AND_TEXT,
        "T_mult": NEGATIVE_AND_TEXT,
        "eta_min": NEGATIVE_AND_TEXT,
        "min_lr_ratio": NOT_A_RATIO,
    },
    "multiplicative_lr": {"lr_lambda": [(3, ()), ([3], (0,)), ([abs, abs], ())], "min_lr_ratio": NOT_A_RATIO},
    "sequential": {
        "schedules": [
            ("text", ()),
            ([], ()),
            ([3], (0,)),
            ([{"name": "step_lr", "step_size": 1}, {"name": "linear_lr"}], (0,)),
            ([{"name": "step_lr", "step_size": 1, "length": 0}, {"name": "linear_lr"}], (0, "length")),
            ([{"name": "linear_lr", "length": 3}, {"name": "step_lr", "step_size": 0}], (1, "step_size")),
            ([{"name": "multi_step_lr", "milestones": [3, -1]}], (0, "milestones", 1)),
            ([{"name": "linear_lr", "strat_factor": 1}], (0, "strat_factor")),
            ([{"name": "reduce_lr_on_plateau"}], (0, "name")),
            ([{"name": "linear_lrr"}], (0,)),
        ]
    },
    "inverse_sqrt": {
        "warmup_steps": NEGATIVE_AND_TEXT,
        "timescale": NEGATIVE_AND_TEXT,
        "min_lr_ratio": NOT_A_RATIO,
    },
    "wsd": {
        "total_steps": NEGATIVE_AND_TEXT,
        "decay_steps": NEGATIVE_AND_TEXT,
        "warmup_steps": NEGATIVE_AND_TEXT,
        "decay": [("1-square", ()), (None, ())],
        "min_lr_ratio": NOT_A_RATIO,
    },
    "reduce_lr_on_plateau": {
        **dict.fromkeys(("patience", "threshold", "cooldown", "eps"), NEGATIVE_AND_TEXT),
        "factor": [*NEGATIVE_AND_TEXT, (1.5, ())],
        "mode": [("text", ()), (None, ())],
        "threshold_mode": [("text", ()), (None, ())],
        "min_lr": [*NEGATIVE_AND_TEXT, ([0.1, 0.1], ()), ([-1], (0,))],
    },
}
VALID = {
    name: {**cls.cases[0], **({"lr_lambda": abs} if "lr_lambda" in cls.cases[0] else {})}
    for name, cls in SCHEDULERS.items()
}


def test_every_argument_of_every_scheduler_is_tested() -> None:
    for name, cls in SCHEDULERS.items():
        arguments = {*inspect.signature(cls).parameters} - {"optimizer", "last_epoch", "verbose"}
        arguments -= {"epochs", "steps_per_epoch", "scale_fn"}  # they matter only without or with another argument
        assert arguments == {*WRONG_SCHEDULER_ARGUMENTS[name]}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_reports_each_wrong_argument(name: str) -> None:
    cls: Any = SCHEDULERS[name]
    optimizer = torch.optim.SGD([parameter()], lr=0.1, momentum=0.9)
    wrong = {**WRONG_SCHEDULER_ARGUMENTS[name]}
    if name != "reduce_lr_on_plateau":
        wrong["last_epoch"] = NEGATIVE_AND_TEXT
    if name not in ("lambda_lr", "multiplicative_lr", "sequential"):  # they are not checked without an optimizer
        wrong["optimizer"] = [(None, ())]
    valid = {"optimizer": optimizer, **VALID[name]}
    for key, values in wrong.items():
        for value, inside in values:
            assert errors_of(lambda: cls(**{**valid, key: value})) == [(key, inside)], (key, value)  # noqa: B023
    for first, second in itertools.combinations(wrong, 2):
        for (a, inside_a), (b, inside_b) in itertools.product(wrong[first], wrong[second]):
            if second == "optimizer" and inside_a == () and isinstance(a, list):
                continue  # the number of groups is not known
            errors = errors_of(lambda: cls(**{**valid, first: a, second: b}))  # noqa: B023
            assert sorted(errors) == sorted([(first, inside_a), (second, inside_b)])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]


def test_scheduler_without_an_optimizer_raises_first() -> None:
    with pytest.raises(ConfigTypeError, match="NoneType is not an Optimizer"):
        SCHEDULERS["lambda_lr"](None, "text", last_epoch=-7)


def test_constructed_scheduler_has_no_collected_errors() -> None:
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    for name, cls in SCHEDULERS.items():
        assert not [key for key in cls(optimizer, **VALID[name]).state_dict() if "error" in key]


def test_unknown_keyword_of_a_scheduler_is_an_argument() -> None:
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    assert errors_of(lambda: SCHEDULERS["exponential_lr"](optimizer, gama=0.5, last=3)) == [("gama", ()), ("last", ())]


def test_warmup_reports_each_wrong_argument() -> None:
    scheduler = Unscheduled(torch.optim.SGD([parameter()], lr=0.1))
    for steps in ("text", 0):
        assert errors_of(lambda: Warmup(scheduler, steps)) == [("steps", ())]  # noqa: B023
        for start_factor in ("text", 2.0):
            errors = errors_of(lambda: Warmup(scheduler, steps, start_factor))  # noqa: B023
            assert errors == [("steps", ()), ("start_factor", ())]
            assert errors_of(lambda: Warmup(scheduler, 3, start_factor)) == [("start_factor", ())]  # noqa: B023
