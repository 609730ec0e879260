"""State, state dicts and copies of optimizers."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optplug
from optplug.errors import HyperparameterError
from optplug.testing.checks import assert_equal, save_and_load

pytestmark = pytest.mark.usefixtures("single_thread")


def describe_user_entries(optimizer: Any, p: Tensor) -> str:
    """Describe the entries that the user added to the state, and the dtypes of their tensors."""
    found = {k: v for k, v in optimizer.state.items() if isinstance(k, str)} | {"own": optimizer.state[p]["note"]}
    return repr((found, found["tensor"].dtype, found["own"]["tensor"].dtype))


@pytest.mark.parametrize("how", ["state dict", "deepcopy", "pickle"])
@pytest.mark.optimizers("torch")
def test_entries_that_the_user_added_to_the_state_survive(name, how, make_run):
    described = []
    torch_fails = name == "lbfgs" and how != "state dict"  # a copy of torch's LBFGS cannot be stepped
    for of in ("optplug",) if torch_fails else ("optplug", "torch"):
        run = make_run(name, of=of).run_steps(0, 3)
        state = run.optimizer.state
        state["tensor"] = torch.tensor([1.0, 2.0])
        state["dict"] = {"a": 1, "b": [2, 3]}
        state["number"] = 4
        state[run.params[0]]["note"] = {"number": 3, "tensor": torch.tensor(5.0)}
        run.run_steps(3, 5)
        if how == "state dict":
            other = make_run(name, [p.detach().clone().requires_grad_() for p in run.params], of=of)
            other.optimizer.load_state_dict(save_and_load(run.optimizer.state_dict()))
        else:
            run.optimizer.zero_grad()
            other = copy.copy(run)
            duplicate = copy.deepcopy if how == "deepcopy" else lambda optimizer: pickle.loads(pickle.dumps(optimizer))
            other.optimizer = duplicate(run.optimizer)
            other.params = other.optimizer.param_groups[0]["params"]
        other.run_steps(5, 7)
        described.append(describe_user_entries(other.optimizer, other.params[0]))
        if how != "state dict":  # loading a state dict casts the entries of a parameter
            assert described[-1] == describe_user_entries(run.optimizer, run.params[0])
        assert_equal("the copy and the original", other.params, run.run_steps(5, 7).params)
    assert described[0] == described[-1]


@pytest.mark.optimizers("torch")
def test_keys_of_groups_and_states_equal_those_of_torch(name, make_run):
    ours, theirs = (make_run(name, of=of).run_steps().optimizer.state_dict() for of in ("optplug", "torch"))
    assert ours.keys() == theirs.keys()
    assert ours["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]
    shared = theirs["param_groups"][0].keys() - {"foreach"}
    assert {k: ours["param_groups"][0].get(k, "missing") for k in shared} == {
        k: theirs["param_groups"][0][k] for k in shared
    }
    temporary = {"al"} if name == "lbfgs" else set()  # torch overwrites it in each iteration
    assert {i: set(s) for i, s in ours["state"].items()} == {i: set(s) - temporary for i, s in theirs["state"].items()}


@pytest.mark.parametrize("of", ["optplug", "torch"])
@pytest.mark.optimizers("all", engines=True)
def test_old_state_dict_with_missing_keys_and_plain_numbers_can_be_resumed(
    name, engine, of, torch_classes, full_state_options, make_run
):
    if of == "torch" and name not in torch_classes:
        pytest.skip("torch has no such optimizer")
    first = make_run(name, of=of).run_steps(0, 4)
    old = copy.deepcopy(first.optimizer.state_dict())
    options = inspect.signature(type(first.optimizer)).parameters.keys()  # the other keys belong to the state
    for group in old["param_groups"]:
        for key in (group.keys() & options) - {"params", *full_state_options.get(name, {})}:
            del group[key]
    for state in old["state"].values():
        for key, value in state.items():
            if key in ("step", "eta", "mu", "mu_product"):
                state[key] = float(value)
    resumed = make_run(name, [p.detach().clone().requires_grad_() for p in first.params], engine=engine)
    resumed.optimizer.load_state_dict(old)
    assert resumed.optimizer.param_groups[0].keys() == make_run(name).optimizer.param_groups[0].keys()
    limit = 1e-6 if name == "asgd" else 1e-11  # eta and mu of ASGD are float32
    resumed.run_steps(4).assert_close_to(first.run_steps(4), limit)


@pytest.mark.optimizers("all")
def test_state_dict_without_maximize_minimizes(name, make_run):
    """As with torch's classes: a version that has no such option has written it."""
    saved = make_run(name).run_steps(0, 4).optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["maximize"]
    run = make_run(name, maximize=True)
    run.optimizer.load_state_dict(saved)
    assert run.optimizer.param_groups[0]["maximize"] is False


def test_state_dict_without_decoupled_weight_decay_is_of_adam_without_it(make_run):
    saved = make_run("adam").run_steps(0, 4).optimizer.state_dict()
    del saved["param_groups"][0]["decoupled_weight_decay"]
    for run, expected in ((make_run("adam", decoupled_weight_decay=True), False), (make_run("adamw"), True)):
        run.optimizer.load_state_dict(saved)
        assert run.optimizer.param_groups[0]["decoupled_weight_decay"] is expected


@pytest.mark.optimizers("all")
def test_loading_and_stepping_do_not_modify_the_state_dict(name, make_run):
    saved = copy.deepcopy(make_run(name).run_steps(0, 4).optimizer.state_dict())
    before = repr(saved)
    run = make_run(name)
    run.optimizer.load_state_dict(saved)
    run.run_steps(4)
    assert repr(saved) == before


@pytest.mark.optimizers("torch")
@pytest.mark.parametrize("change", ["fewer groups", "fewer parameters"])
def test_state_dict_with_other_groups_raises_like_torch(name, change, make_run, outcome, assert_error_like_torch):
    outcomes = []
    for run in (make_run(name), make_run(name, of="torch")):
        saved = run.run_steps(0, 2).optimizer.state_dict()
        if change == "fewer groups":
            saved["param_groups"].pop()
        else:
            saved["param_groups"][0]["params"].pop()
        outcomes.append(outcome(lambda run=run, saved=saved: run.optimizer.load_state_dict(saved)))
    assert_error_like_torch(*outcomes)


@pytest.mark.optimizers("all")
def test_optimizer_saved_as_an_object_continues(name, make_run):
    uninterrupted, first = make_run(name).run_steps(), make_run(name).run_steps(0, 5)
    file = io.BytesIO()
    torch.save(first.optimizer, file)
    file.seek(0)
    second = make_run(name)
    second.optimizer = torch.load(file, weights_only=False)
    second.params = second.optimizer.param_groups[0]["params"]
    assert repr(second.optimizer) == repr(first.optimizer)
    second.run_steps(5).assert_equals(uninterrupted, "saved as an object and uninterrupted")


@pytest.mark.optimizers("all")
def test_model_and_optimizer_can_be_copied_together(name, make_run, tested_optimizers):
    model = nn.Linear(3, 2, bias="matrix_only" not in tested_optimizers[name].capabilities).double()
    first = make_run(name, list(model.parameters())).run_steps(0, 5)
    model_copy, optimizer = copy.deepcopy((model, first.optimizer))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model_copy.parameters()]
    second = make_run(name, list(model_copy.parameters()))
    second.optimizer = optimizer
    second.run_steps(5).assert_equals(first.run_steps(5), "the copy and the original")


@pytest.mark.parametrize("source", ["adam", "radam", "lamb", "adopt"])
def test_missing_scalar_state_is_that_of_another_optimizer(source: str):
    """NAdam's product of momenta would start at 1 in the middle of a training."""
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    saved = optplug.create_optimizer(source, [p])
    saved.step()
    with pytest.raises(HyperparameterError, match="NAdam keeps exp_avg, exp_avg_sq, mu_product, step"):
        optplug.create_optimizer("nadam", [p]).load_state_dict(saved.state_dict())
