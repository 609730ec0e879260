"""The modes and the schedule of the Schedule-Free optimizers, compared with the package schedulefree."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from schedulefree import AdamWScheduleFree, SGDScheduleFree

import optplug
from optplug.errors import HyperparameterError, ModeError
from parity import noise, save_and_load_state

REFERENCES = {"schedule_free_adamw": AdamWScheduleFree, "schedule_free_sgd": SGDScheduleFree}
OPTIONS: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 4, "r": 1.0}

pytestmark = pytest.mark.parametrize("name", REFERENCES)


def make_params(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [noise(shape, 5).to(dtype, copy=True).requires_grad_() for shape in ((4, 3), (), (0,), (5,))]


def train(optimizer: Any, start: int, stop: int) -> None:
    """Take steps. The last parameter gets its first gradient in the fifth step."""
    params = optimizer.param_groups[0]["params"]
    for step in range(start, stop):
        for i, p in enumerate(params):
            late = i == 3 and step < 4
            p.grad = None if late else noise(tuple(p.shape), 10 * step + i).to(p.dtype, copy=True)
        optimizer.step()


def assert_close(ours: Any, theirs: Any, limit: float = 1e-12) -> None:
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=limit)


def values(optimizer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in optimizer.param_groups[0]["params"]]


def test_modes_swap_the_parameters_as_in_the_package_of_the_authors(name):
    ours = optplug.create_optimizer(name, make_params(), **OPTIONS)
    theirs = REFERENCES[name](make_params(), **OPTIONS)
    theirs.train()
    for start, stop in ((0, 3), (3, 6), (6, 20)):
        for optimizer in (ours, theirs):
            train(optimizer, start, stop)
        before = values(ours)
        for mode in ("eval", "eval", "train", "train"):
            for optimizer in (ours, theirs):
                getattr(optimizer, mode)()
            assert_close(ours, theirs)
            moved = max(float((p - q).abs().max()) for p, q in zip(values(ours), before, strict=True) if p.numel())
            assert (moved > 1e-3) == (mode == "eval")
        for key in ("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode"):
            assert ours.param_groups[0][key] == theirs.param_groups[0][key], key


@pytest.mark.parametrize("dtype", [torch.complex128, torch.bfloat16, torch.float32], ids=str)
def test_modes_of_other_dtypes(name, dtype):
    state_dtype = torch.float32 if dtype is torch.bfloat16 else None
    optimizer = optplug.create_optimizer(name, make_params(dtype), **OPTIONS, state_dtype=state_dtype)
    train(optimizer, 0, 6)
    training = values(optimizer)
    optimizer.eval()
    beta = optimizer.interpolation(optimizer.param_groups[0])
    for p, y in zip(optimizer.param_groups[0]["params"], training, strict=True):
        z = optimizer.state[p]["z"].to(dtype)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(beta * p + (1 - beta) * z, y, rtol=tolerance, atol=tolerance)


def test_step_in_eval_mode_raises_an_error_and_changes_nothing(name):
    optimizer = optplug.create_optimizer(name, make_params(), **OPTIONS)
    train(optimizer, 0, 3)
    optimizer.eval()
    before, state = values(optimizer), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ModeError, match=r"ScheduleFree\w+\.step\(\) in eval mode: call train\(\) of the optimizer"):
        optimizer.step(lambda: pytest.fail("the closure was called"))
    assert all(map(torch.equal, values(optimizer), before))
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    optimizer.train()
    train(optimizer, 3, 4)
    assert optimizer.param_groups[0]["k"] == 4


def test_mode_and_schedule_are_part_of_the_state_dict(name):
    first = optplug.create_optimizer(name, make_params(), **OPTIONS)
    train(first, 0, 6)
    first.eval()
    resumed = optplug.create_optimizer(name, [p.detach().clone().requires_grad_() for p in values(first)])
    resumed.load_state_dict(save_and_load_state(first))
    with pytest.raises(ModeError):
        resumed.step()
    for optimizer in (first, resumed):
        optimizer.train()
        train(optimizer, 6, 12)
    assert all(map(torch.equal, values(resumed), values(first)))
    assert resumed.param_groups[0]["k"] == 12


def test_new_optimizer_is_in_train_mode_and_can_be_evaluated_before_the_first_step(name):
    optimizer = optplug.create_optimizer(name, make_params(), **OPTIONS)
    before = values(optimizer)
    for mode in ("train", "eval", "train"):
        getattr(optimizer, mode)()
        assert all(map(torch.equal, values(optimizer), before))
    train(optimizer, 0, 1)
    assert optimizer.param_groups[0]["k"] == 1


def test_skipped_step_does_not_advance_the_schedule(name):
    optimizer = optplug.create_optimizer(name, make_params(), **OPTIONS)
    train(optimizer, 0, 2)
    schedule = {key: optimizer.param_groups[0][key] for key in ("k", "weight_sum", "lr_max")}
    optimizer.found_inf = torch.tensor(1.0)
    train(optimizer, 2, 3)
    assert {key: optimizer.param_groups[0][key] for key in schedule} == schedule


@pytest.mark.parametrize("engine", ["loop", "foreach", "numba"])
def test_learning_rate_0_changes_nothing(name, engine):
    optimizer = optplug.create_optimizer(name, make_params(), lr=0.0, engine=engine)
    before = values(optimizer)
    train(optimizer, 0, 5)
    assert all(map(torch.equal, values(optimizer), before))
    optimizer.param_groups[0]["lr"] = 0.1
    train(optimizer, 5, 6)
    assert all(p.isfinite().all() for p in values(optimizer))
    assert not torch.equal(values(optimizer)[0], before[0])


def test_invalid_options_are_rejected(name):
    beta = {"momentum": 0.0} if name == "schedule_free_sgd" else {"betas": (0.0, 0.9)}
    for options in (beta, {"capturable": True}, {"warmup_steps": -1}, {"r": -1.0}, {"weight_lr_power": -1.0}):
        with pytest.raises(HyperparameterError) as caught:
            optplug.create_optimizer(name, make_params(), **options)
        assert caught.value.argument in options
