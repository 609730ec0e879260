"""Arguments of optimizers that are the number of optimizer steps of the training: `auto`, and lengths with units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug import OptimizerSpec
from optplug.config.build import parse_and_check
from optplug.errors import ConfigError
from support import QUIET_NO_SANITY


class Decaying(torch.optim.SGD):
    """Anneals its learning rate over the training."""

    def __init__(self, params: Any, num_iterations: int, lr: float = 0.1) -> None:
        if not isinstance(num_iterations, int) or num_iterations < 1:
            raise ValueError("num_iterations must be at least 1")
        super().__init__(params, lr)
        self.num_iterations = num_iterations


class Declared(torch.optim.SGD):
    def __init__(self, params: Any, horizon: int = 7, mode: str = "auto") -> None:
        super().__init__(params, 0.1)
        self.num_iterations, self.mode = horizon, mode


@pytest.fixture(autouse=True)
def registered(register_optimizers: Any) -> None:
    register_optimizers(
        OptimizerSpec("decaying", Decaying, cases=({"num_iterations": 10},)),
        OptimizerSpec("declared", Declared, length="horizon"),
    )


def built(**arguments: Any) -> Any:
    loop = {key: arguments.pop(key) for key in ("total_steps", "epochs", "steps_per_epoch") if key in arguments}
    made, _ = optplug.create_optimizer_and_scheduler(nn.Linear(2, 2), arguments, **loop)
    return made


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", 40),
        ({"epochs": 3}, 12),
        ({"ratio": 0.5}, 20),
        ({"steps": 5}, 5),
        (9, 9),
        ("9", 9),
        ({"ratio": 1e-6}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize(("name", "argument"), [("decaying", "num_iterations"), ("declared", "horizon")])
def test_length_becomes_a_number_of_steps(name: str, argument: str, given: Any, expected: int):
    made = built(name=name, **{argument: given}, epochs=10, steps_per_epoch=4)
    assert made.num_iterations == expected
    assert type(made.num_iterations) is int


def test_other_arguments_keep_the_word_auto():
    assert built(name="declared", mode="auto").mode == "auto"
    assert built(name="declared").num_iterations == 7


@pytest.mark.filterwarnings("ignore:matrices gets no parameter")
def test_length_of_a_fallback_is_resolved(register_optimizers: Any):
    register_optimizers(OptimizerSpec("matrices", torch.optim.Adam, capabilities={"matrix_only"}))
    fallback = {"name": "decaying", "num_iterations": "auto"}
    assert built(name="matrices", fallback=fallback, total_steps=40).members[1].num_iterations == 40


@pytest.mark.parametrize("given", ["auto", {"epochs": 3}, {"ratio": 0.5}], ids=str)
def test_unknown_length_is_refused(given: Any):
    optimizer = {"name": "decaying", "num_iterations": given}
    with pytest.raises(ConfigError, match=r"^optimizer\.num_iterations: the length is not known .*: pass them, or"):
        optplug.create_optimizer_and_scheduler(nn.Linear(2, 2), optimizer)
    with pytest.raises(ConfigError, match=r"^optimizer\.num_iterations: no trainer is attached: .*, or give a"):
        optplug.configure_optimizers(nn.Linear(2, 2), optimizer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_iterations": {"ratio": 2}}, r"optimizer\.num_iterations\.ratio: "),
        ({"num_iterations": {"epoch": 2}}, r"optimizer\.num_iterations\.epoch: .* did you mean 'epochs'"),
        ({"num_iterations": "Auto"}, r"optimizer\.num_iterations: is 'Auto': write auto"),
        ({"num_iterations": 0}, r"optimizer\.num_iterations: decaying rejected num_iterations=0"),
        ({}, r"optimizer: decaying needs num_iterations \(num_iterations may be auto: the length of the training\)"),
    ],
    ids=str,
)
def test_wrong_length_is_refused_with_location(arguments: Any, words: str):
    with pytest.raises(ConfigError, match=f"^{words}"):
        parse_and_check({"name": "decaying", **arguments})


@pytest.mark.parametrize(("given", "expected"), [("auto", 12), ({"epochs": 2}, 8), ({"ratio": 0.25}, 3)], ids=str)
def test_length_of_a_fit_is_used(scripted_module: Any, trainer: Any, optplug_lightning: Any, given: Any, expected: int):
    configure = optplug_lightning.ConfigureOptimizers({"name": "decaying", "num_iterations": given}, verbose=False)
    made = trainer(**{**QUIET_NO_SANITY, "callbacks": [configure]})
    made.fit(scripted_module())
    assert made.optimizers[0].num_iterations == expected


@pytest.mark.parametrize("value", ["auto", {"ratio": 0.5}], ids=str)
def test_create_optimizer_has_no_trainer_to_take_a_length_from(value: Any):
    with pytest.raises(ConfigError, match=r"^decaying: num_iterations is a number here: there is no trainer to take"):
        optplug.create_optimizer("decaying", nn.Linear(2, 2), num_iterations=value)
