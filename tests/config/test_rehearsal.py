"""Values of optimizers of other packages: numbers as text, learning rates, values that a class refuses."""

from __future__ import annotations

import random
import re
import warnings
from typing import Any, Literal, Optional

import numpy as np
import pytest
import torch
from torch import nn

import optplug
from optplug import OptimizerSpec
from optplug.config.build import build_optimizer, parse_and_check
from optplug.config.third_party import third_party_errors
from optplug.errors import (
    ConfigError,
    DependencyError,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    PluginError,
)


class Foreign(torch.optim.Optimizer):
    """Writes output, draws random numbers and checks its values, as optimizers of other packages do."""

    constructed = 0

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum=0,  # type: ignore[no-untyped-def]  # as in another package
        period: int = 2,
        betas: tuple[float, float] = (0.9, 0.99),
        mode: str = "a",
        limit: Optional[float] = None,  # noqa: UP045
    ) -> None:
        type(self).constructed += 1
        print("a banner")
        warnings.warn("a warning", stacklevel=2)
        torch.rand(1), random.random(), np.random.rand()
        torch.set_num_threads(1)
        if momentum >= 1:
            raise ValueError(f"momentum {momentum} is too large")
        assert mode in ("a", "b")
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for group in self.param_groups:
            if group["momentum"] >= 1:
                raise ValueError("a momentum is too large")

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise NotImplementedError


class Annotated(torch.optim.SGD):
    """Accepts each value of its arguments."""

    def __init__(  # type: ignore[no-untyped-def]
        self,
        params: Any,
        lr: float = 0.1,
        flag: bool = False,
        choice: Literal["gaussian", "uniform"] = "gaussian",
        number: float = 0.5,
        pair: tuple[float, float] = (0.9, 0.99),
        several: tuple[float, ...] = (0.9,),
        words: Optional[list[str]] = None,  # noqa: UP045
        wrong: int = "text",  # type: ignore[assignment]
        open_: Any = 0.5,
        plain_flag=True,
        plain_pair=(1, 2),
        plain_text="auto",
        varying=(1, 2),
    ) -> None:
        super().__init__(params, 0.1)


class NeedsModel(Foreign):
    """Cannot be constructed on small parameters."""

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.0) -> None:
        params = list(params)
        held = [p for item in params for p in (item["params"] if isinstance(item, dict) else [item])]
        if sum(p.numel() for p in held) < 10:
            raise RuntimeError("too small") if momentum == 0.5 else ValueError("too small")
        super().__init__(params, lr, momentum)


class OwnError(Exception):
    """Does not derive from ValueError."""


class Strange(Foreign):
    def __init__(self, params: Any, lr: float = 0.1, failure: str = "none") -> None:
        if failure == "own":
            raise OwnError("a wrong value")
        if failure == "import":
            import package_that_does_not_exist  # noqa: F401
        if failure == "text":
            raise ImportError("You need to install `einops`")
        if failure == "unnamed":
            raise ImportError("another package is missing")
        super().__init__(params, lr)


class NeedsVectors(Foreign):
    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.0) -> None:
        params = list(params)
        assert all(p.ndim == 1 for p in params)
        super().__init__(params, lr, momentum)


class NeedsLength(Foreign):
    def __init__(self, params: Any, length: int, lr: float = 0.1) -> None:
        if length < 1:
            raise ValueError("length")
        super().__init__(params, lr)


class WithoutLr(torch.optim.SGD):
    def __init__(self, params: Any, lr=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__(params, 0.1)
        for group in self.param_groups:
            group["lr"] = lr


class WithoutLrArgument(torch.optim.SGD):
    def __init__(self, params: Any) -> None:
        super().__init__(params, 0.1)
        for group in self.param_groups:
            group.pop("lr")


@pytest.fixture(autouse=True)
def registered(register_optimizers: Any) -> None:
    register_optimizers(
        OptimizerSpec("foreign", Foreign),
        OptimizerSpec("annotated", Annotated, cases=({}, {"varying": (1,)})),
        OptimizerSpec("strange", Strange),
        OptimizerSpec("one_lr", torch.optim.SGD, capabilities={"one_lr"}),
        OptimizerSpec("needs_model", NeedsModel),
        OptimizerSpec("nothing", lambda params, lr=0.1: None),
        OptimizerSpec("no_build", torch.optim.SGD, build="nowhere:build"),
        OptimizerSpec("needs_vectors", NeedsVectors, shapes=((3,),)),
        OptimizerSpec("needs_length", NeedsLength, cases=({"length": 3},)),
        OptimizerSpec("without_lr", WithoutLr),
        OptimizerSpec("without_lr_argument", WithoutLrArgument),
    )


def model() -> nn.Module:
    return nn.Linear(20, 2)


def hyperparameters(**options: Any) -> dict[str, Any]:
    setup = parse_and_check({"name": "foreign", **options}).setup
    return setup.entries[0].optimizer.hyperparameters


# ------------------------------------------------------------------------------------------ numbers as text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lr": "1e-3"}, {"lr": 0.001}),
        ({"momentum": "5e-1"}, {"momentum": 0.5}),  # no annotation; the default is a whole number
        ({"period": "1e1"}, {"period": 10}),
        ({"betas": ["9e-1", 0.5]}, {"betas": [0.9, 0.5]}),
        ({"limit": "1e-2"}, {"limit": 0.01}),
        ({"mode": "b"}, {"mode": "b"}),
    ],
    ids=str,
)
def test_text_that_is_a_number_is_the_number(given: Any, expected: Any):
    assert hyperparameters(**given) == expected
    assert type(hyperparameters(period="1e1")["period"]) is int


def test_lr_without_annotation_and_default_is_a_number():
    found = parse_and_check({"name": "without_lr", "lr": "1e-3"}).setup.entries[0].optimizer
    assert found.hyperparameters == {"lr": 0.001}


# ------------------------------------------------------------------------------------------ learning rates


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("fast", HyperparameterTypeError, "foreign: lr must be a number, got 'fast'"),
        (True, HyperparameterTypeError, "foreign: lr must be a number, got True"),
        (-1, HyperparameterError, r"Invalid learning rate: -1 \(foreign: lr must be at least 0\)"),
        (float("nan"), HyperparameterError, "Invalid learning rate: nan"),
    ],
)
def test_wrong_learning_rate_is_refused_with_location(value: Any, error: Any, words: str):
    with pytest.raises(error, match=f"^optimizer.lr: {words}"):
        parse_and_check({"name": "foreign", "lr": value})
    with pytest.raises(error, match=rf"^param_groups\[1\].lr: {words}"):
        parse_and_check("foreign", param_groups=["no_decay", {"match": "weight", "lr": value}])
    with pytest.raises(error, match=words):
        optplug.create_optimizer("foreign", model(), lr=value)
    with pytest.raises(error, match=words):
        optplug.create_optimizer("foreign", [{"params": list(model().parameters()), "lr": value}])


def test_wrong_learning_rate_is_refused_if_construction_needs_the_model():
    with pytest.raises(HyperparameterError, match=r"^optimizer.lr: Invalid learning rate: -1"):
        parse_and_check({"name": "needs_model", "lr": -1})
    with pytest.raises(HyperparameterError, match=r"^param_groups\[0\].lr: Invalid learning rate: -1"):
        parse_and_check("needs_model", param_groups=[{"match": "weight", "lr": -1}])


def test_text_in_place_of_another_number_is_refused():
    with pytest.raises(HyperparameterTypeError, match=r"^optimizer\.momentum: foreign: momentum must be a number"):
        parse_and_check({"name": "foreign", "momentum": "x"})


# ------------------------------------------------------------------------------------------ types of values


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"flag": "false"}, "must be True or False, got 'false' (str)"),
        ({"plain_flag": "off"}, "must be True or False, got 'off' (str)"),
        ({"choice": "gausian"}, "must be 'gaussian' or 'uniform', got 'gausian'; did you mean 'gaussian'?"),
        ({"number": {"ratio": 0.1}}, "must be a number, got {'ratio': 0.1} (dict)"),
        ({"number": [0.1]}, "must be a number, got [0.1] (list)"),
        ({"number": True}, "must be a number, got True (bool)"),
        ({"lr": None}, "must be a number, got None (NoneType)"),
        ({"pair": "0.9"}, "must be a list of 2 numbers, got '0.9' (str); write 0.9"),
        ({"plain_pair": "x"}, "must be a list of 2 numbers, got 'x' (str)"),
        ({"pair": [0.9]}, "must be a list of 2 numbers, got [0.9]"),
        ({"plain_pair": [1, 2, 3]}, "must be a list of 2 numbers, got [1, 2, 3]"),
        ({"several": 0.9}, "must be a list of numbers, got 0.9 (float)"),
        ({"words": {"a": 1}}, "must be a list of values, got {'a': 1} (dict)"),
    ],
    ids=str,
)
def test_value_of_a_wrong_type_is_refused(given: Any, words: str):
    (key,) = given
    with pytest.raises((HyperparameterError, HyperparameterTypeError)) as caught:
        parse_and_check({"name": "annotated", **given})
    assert (caught.value.loc, caught.value.message) == (("optimizer", key), f"annotated: {key} {words}")
    with pytest.raises((HyperparameterError, HyperparameterTypeError), match=f"^annotated: {key} must be "):
        optplug.create_optimizer("annotated", model(), **given)


def test_wrong_item_of_a_list_has_its_location():
    with pytest.raises(HyperparameterTypeError, match=r"^optimizer\.pair\[1\]: annotated: pair\[1\] must be a number"):
        parse_and_check({"name": "annotated", "pair": [0.9, "x"]})


@pytest.mark.parametrize(
    "given",
    [
        {"flag": 1, "plain_flag": None, "number": 1, "plain_pair": [0.5, 3]},
        {"number": float("inf"), "pair": [0, 1]},
        {"several": [0.9, 0.8, 0.7], "varying": [1, 2, 3], "words": "text"},
        {"wrong": "text", "plain_text": 3},
        {"wrong": [1], "open_": {"any": "value"}, "choice": "uniform"},
    ],
    ids=str,
)
def test_value_whose_type_is_not_certain_is_accepted(given: Any):
    parse_and_check({"name": "annotated", **given})


def test_tensor_is_accepted_for_a_number():
    optplug.create_optimizer("annotated", model(), lr=torch.tensor(0.1), number=torch.tensor(0.1), flag=np.True_)


# ------------------------------------------------------------------------------------------ values that a class refuses


@pytest.mark.parametrize(
    ("given", "loc", "words"),
    [
        ({"momentum": 2}, ("optimizer", "momentum"), "foreign rejected momentum=2: momentum 2 is too large"),
        ({"lr": 0.5, "momentum": 2}, ("optimizer", "momentum"), "foreign rejected lr=0.5, momentum=2: "),
        ({"mode": "c"}, ("optimizer", "mode"), "foreign rejected mode='c': "),
        ({"args": {"mode": "c"}}, ("optimizer", "args", "mode"), "foreign rejected mode='c': "),
        ({"momentum": 2, "mode": "c"}, ("optimizer",), "foreign rejected momentum=2, mode='c': "),
    ],
    ids=str,
)
def test_refused_value_has_its_location(given: Any, loc: Any, words: str):
    with pytest.raises(ConfigError) as caught:
        parse_and_check({"name": "foreign", **given})
    assert caught.value.loc == loc
    assert caught.value.message.startswith(words)


def test_base_is_shown_by_its_name():
    with (
        pytest.raises(ConfigError, match=r"^wrapper rejected k=0, base='sgd': wrong$"),
        third_party_errors("wrapper", {"k": 0, "base": {"name": "sgd", "args": {"lr": 0.1}}}),
    ):
        raise ValueError("wrong")


def test_exception_of_another_package_has_a_location():
    with pytest.raises(ConfigError, match=r"^optimizer\.failure: strange rejected failure='own': a wrong value"):
        parse_and_check({"name": "strange", "failure": "own"})


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("import", "needs package_that_does_not_exist: No module named 'package_that_does_not_exist'"),
        ("text", "needs einops: You need to install `einops`"),
        ("unnamed", "cannot be used: another package is missing"),
    ],
)
def test_missing_package_is_reported(failure: str, words: str):
    with pytest.raises(DependencyError, match=f"^optimizer: strange {words}$"):
        parse_and_check({"name": "strange", "failure": failure})


def test_refused_value_of_a_group_has_its_location():
    with pytest.raises(ConfigError, match=r"^param_groups\[0\].momentum: .*a momentum is too large"):
        parse_and_check("foreign", param_groups=[{"match": "weight", "lr": 0.5, "momentum": 2}])


def test_refused_value_of_a_required_argument_has_its_location():
    parse_and_check({"name": "needs_length", "length": 9})
    with pytest.raises(ConfigError, match=r"^optimizer\.length: needs_length rejected length=0"):
        parse_and_check({"name": "needs_length", "length": 0})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "returned a NoneType, which is not a torch.optim.Optimizer"),
        ("no_build", "could not be loaded from 'nowhere:build': ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_faulty_plugin_is_reported_before_there_is_a_model(name: str, words: str):
    with pytest.raises(PluginError, match=f"^optimizer: optimizer '{name}' of plugin .* {re.escape(words)}$"):
        parse_and_check({"name": name})


@pytest.mark.filterwarnings("ignore:a warning")
def test_class_that_needs_the_model_is_accepted():
    config = parse_and_check({"name": "needs_model", "momentum": 0.5}, param_groups=[{"match": "*", "lr": 0.5}])
    assert build_optimizer(model(), config.setup).param_groups[0]["lr"] == 0.5
    with pytest.raises(ConfigError, match="needs_model rejected momentum=2: momentum 2 is too large"):
        build_optimizer(model(), parse_and_check({"name": "needs_model", "momentum": 2}).setup)


def test_declared_shapes_are_used():
    parse_and_check("needs_vectors")
    with pytest.raises(ConfigError, match=r"^optimizer.momentum: needs_vectors rejected momentum=2"):
        parse_and_check({"name": "needs_vectors", "momentum": 2})


def test_rehearsal_has_no_side_effects(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    before = Foreign.constructed
    try:
        parse_and_check({"name": "foreign", "momentum": 0.5})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert Foreign.constructed == before + 1  # each value once
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert capfd.readouterr() == ("", "")
    assert list(recwarn) == []


# ------------------------------------------------------------------------------------------ no learning rate

NONE = r"a schedule changes the lr of parameter groups, and without_lr has lr=None: give the optimizer an lr, or"
NO_LR = "a schedule changes the lr of parameter groups, and without_lr_argument has no lr: remove the scheduler"
SCHEDULES = [{"name": "step_lr", "step_size": 1}, {"warmup_steps": 2}]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("name", "message"), [("without_lr", NONE), ("without_lr_argument", NO_LR)])
def test_schedule_without_learning_rate_is_refused(name: str, message: str, schedule: Any):
    with pytest.raises(ConfigError, match=f"^scheduler: {message}"):
        parse_and_check(name, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedule_with_learning_rate_is_accepted(schedule: Any):
    parse_and_check({"name": "without_lr", "lr": 0.1}, schedule)
    parse_and_check({"name": "without_lr", "lr": "module.lr"}, schedule)
    made = optplug.create_optimizer("without_lr", model())
    with pytest.raises(ConfigError, match=r"^scheduler: a schedule changes the lr .*, and WithoutLr has lr=None"):
        optplug.create_optimizer_and_scheduler(model(), made, schedule)


def test_multiplier_without_learning_rate_is_refused():
    for name in ("without_lr", "without_lr_argument"):
        with pytest.raises(
            OptplugError, match=rf"^param_groups\[0\].lr_mult: {name} has no (value of )?lr to multiply"
        ):
            parse_and_check(name, param_groups=[{"match": "*", "lr_mult": 2}])


# ------------------------------------------------------------------------------------------ one learning rate


@pytest.mark.parametrize(
    ("rule", "loc"),
    [
        ({"match": "*", "lr": 0.2}, r"param_groups\[0\]\.lr"),
        ({"match": "*", "lr_mult": 2}, r"param_groups\[0\]\.lr_mult"),
        ({"preset": "layer_decay", "decay": 0.5, "layers": ["a", "b"]}, r"param_groups\[0\]"),
        ({"match": "*", "scheduler": {"name": "step_lr", "step_size": 1}}, r"param_groups\[0\]\.scheduler"),
    ],
    ids=str,
)
def test_other_learning_rates_are_refused_where_the_class_requires_one(rule: Any, loc: str):
    with pytest.raises(ConfigError, match=f"^{loc}: one_lr requires the same lr in all parameter groups, or 0: remove"):
        parse_and_check({"name": "one_lr", "lr": 0.1}, param_groups=[rule])


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"lr": 0}, {"lr_mult": 0}, {"lr_mult": 1}, {"weight_decay": 0.1}])
def test_the_same_learning_rate_and_0_are_accepted(options: Any):
    parse_and_check({"name": "one_lr", "lr": 0.1}, param_groups=[{"match": "*", **options}])
