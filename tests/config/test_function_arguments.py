"""Arguments of third-party schedulers that are functions of the epoch, declared by the spec."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, MultiplicativeLR

import optplug
from optplug.config.build import parse_and_check
from optplug.config.fields import Unresolved
from optplug.errors import OptplugError
from optplug.registry.specs import SchedulerSpec

CYCLE = {"base_lr": 0.1, "max_lr": 1.1, "step_size_up": 2, "cycle_momentum": False}


@pytest.fixture(autouse=True)
def schedulers(register_schedulers):
    register_schedulers(
        SchedulerSpec("torch_lambda", LambdaLR, functions=("lr_lambda",)),
        SchedulerSpec("torch_multiplicative", MultiplicativeLR, functions=("lr_lambda",)),
        SchedulerSpec("torch_cyclic", CyclicLR, functions=("scale_fn",)),
    )


def create(name: str, groups: int = 1, **arguments: Any) -> Any:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in range(groups)], lr=1.0)
    return optplug.create_scheduler(name, optimizer, **arguments)


def lrs(scheduler: Any, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr())
    return found


@pytest.mark.parametrize(("name", "text"), [("torch_lambda", "0.5 ** epoch"), ("torch_multiplicative", "0.5")])
def test_expression_is_a_function_for_every_group(name, text):
    assert lrs(create(name, 2, lr_lambda=text), 3) == [[0.5, 0.5], [0.25, 0.25], [0.125, 0.125]]


def test_list_has_a_function_for_each_group():
    made = create("torch_multiplicative", 3, lr_lambda=["0.5", 0.25, lambda epoch: 1.0])
    assert lrs(made, 2) == [[0.5, 0.25, 1.0], [0.25, 0.0625, 1.0]]


def test_optional_function_may_be_omitted():
    assert lrs(create("torch_cyclic", **CYCLE), 2) == [[0.6], [1.1]]
    assert lrs(create("torch_cyclic", **CYCLE, scale_fn="0.5", scale_mode="cycle"), 2) == [[0.35], [0.6]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torch_lambda", {"lr_lambda": "0.5 ** epoch"}),
        ("torch_multiplicative", {"lr_lambda": "0.5"}),
        ("torch_cyclic", {**CYCLE, "scale_fn": "0.5 ** epoch", "scale_mode": "cycle"}),
    ],
)
def test_state_dict_continues_with_the_function(name, arguments):
    first = create(name, **arguments)
    lrs(first, 2)
    state = copy.deepcopy(first.state_dict())
    second = create(name, **arguments)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(state)
    assert lrs(second, 3) == lrs(first, 3)


@pytest.mark.parametrize("name", ["torch_lambda", "torch_multiplicative"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "0.95 ** epoc",
            "scheduler.lr_lambda: expression '0.95 ** epoc': there is no name 'epoc'; did you mean 'epoch'?",
        ),
        (["1", "0.95 ** epoc"], "scheduler.lr_lambda[1]: expression '0.95 ** epoc': there is no name 'epoc'"),
        ({"a": 1}, "scheduler.lr_lambda: a function of the epoch must be an expression"),
        (None, "scheduler.lr_lambda: a function of the epoch must be an expression"),
        ("ramp_that_is_missing", "scheduler.lr_lambda: no function named 'ramp_that_is_missing'"),
    ],
)
def test_errors_are_found_before_there_is_a_model(name, given, expected):
    for arguments, start in (({"lr_lambda": given}, expected), ({"args": {"lr_lambda": given}}, None)):
        with pytest.raises(OptplugError) as caught:
            parse_and_check("sgd", {"name": name, **arguments})
        assert str(caught.value).startswith(start or expected.replace("scheduler.", "scheduler.args."))


def test_values_that_are_not_known_yet_are_accepted():
    parse_and_check("sgd", {"name": "torch_lambda", "lr_lambda": Unresolved("${rate}")})


def test_scheduler_in_a_trainer_resumes(fit, tmp_path):
    schedule = {"name": "torch_multiplicative", "lr_lambda": "0.5 + epoch / 10"}
    whole, _ = fit({"name": "sgd", "lr": 1.0}, schedule, max_epochs=4)
    first, _ = fit({"name": "sgd", "lr": 1.0}, schedule, max_epochs=2)
    first.save_checkpoint(tmp_path / "first.ckpt")
    second, _ = fit({"name": "sgd", "lr": 1.0}, schedule, max_epochs=4, ckpt_path=tmp_path / "first.ckpt")
    found = [each.optimizers[0].param_groups[0]["lr"] for each in (whole, second)]
    assert found[0] == found[1] == pytest.approx(0.6 * 0.7 * 0.8 * 0.9)
