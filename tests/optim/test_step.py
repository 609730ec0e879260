"""`step`, closures and `zero_grad`, and that a dropped optimizer is freed."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from optplug.errors import OptplugError
from optplug.testing.checks import assert_equal, save_and_load, state_tensors
from optplug.testing.trajectory import Trajectory

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.optimizers("all")
def test_step_without_gradients_changes_nothing(name, make_run, make_params):
    run = make_run(name, make_params())
    run.gradient = lambda step, index: None
    if name == "lbfgs":
        loss = torch.zeros(())
        assert run.optimizer.step(lambda: loss) is loss
    else:
        run.run_steps(0, 2)
        assert not run.optimizer.state
    assert_equal("parameters without gradient", run.params, run.initial)


@pytest.mark.optimizers("all")
def test_step_returns_the_loss_and_restores_the_grad_mode(name, tested_optimizers, make_run):
    run = make_run(name)
    run.set_gradients(3)
    if "closure" not in tested_optimizers[name].capabilities:
        assert run.optimizer.step() is None
    loss = torch.tensor(1.5)
    for mode in (True, False):
        modes: list[bool] = []
        with torch.set_grad_enabled(mode):
            assert run.optimizer.step(lambda seen=modes: (seen.append(torch.is_grad_enabled()), loss)[1]) is loss
            assert torch.is_grad_enabled() is mode
        assert modes
        assert all(modes)


@pytest.mark.optimizers("all")
def test_exception_in_the_closure_propagates_and_changes_nothing(name, make_run):
    run = make_run(name).run_steps(0, 3)
    before, states = [p.detach().clone() for p in run.params], copy.deepcopy(state_tensors(run.optimizer))

    def closure():
        raise ZeroDivisionError("in the closure")

    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            with pytest.raises(ZeroDivisionError, match="in the closure"):
                run.optimizer.step(closure)
            assert torch.is_grad_enabled() is mode
    assert_equal("parameters", run.params, before)
    assert_equal("states", state_tensors(run.optimizer), states)


@pytest.mark.optimizers("all")
def test_zero_grad_removes_gradients_or_fills_them_with_zeros(name, make_run, make_params):
    run = make_run(name, make_params())
    run.optimizer.zero_grad()  # without gradients
    p = run.params[0]
    for gradient in (torch.ones_like(p), torch.ones_like(p).detach().to_sparse(1)):
        p.grad = gradient.clone()
        before = p.grad
        run.optimizer.zero_grad(set_to_none=False)
        assert p.grad is before
        assert not p.grad.to_dense().any()
        p.grad = gradient.clone()
        run.optimizer.zero_grad()
        assert p.grad is None
    (p.grad,) = torch.autograd.grad((p**3).sum(), p, create_graph=True)
    run.optimizer.zero_grad(set_to_none=False)
    assert not p.grad.requires_grad


# --------------------------------------------------------------------------------------------------- lifetime


def use_hooks(run: Trajectory) -> None:
    run.optimizer.register_step_pre_hook(lambda *_: None)
    run.optimizer.register_load_state_dict_post_hook(lambda *_: None, prepend=True)
    run.run_steps(2, 3)


def raise_in_closure(run: Trajectory) -> None:
    def closure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run.optimizer.step(closure)


def step_with_unsupported_gradient(run: Trajectory) -> None:
    """Step with a gradient of the wrong layout; for lbfgs, with a closure that returns no loss."""
    run.set_gradients(3)
    p = run.params[0]
    ones = torch.ones_like(p).detach()
    # Optimizers that support sparse gradients reject them here too, because the options include weight decay.
    p.grad = ones if "sparse_only" in run.subject.capabilities else ones.to_sparse()
    with pytest.raises(OptplugError):
        run.optimizer.step(lambda: None)


def compile_step(run: Trajectory) -> None:
    run.set_gradients(2)
    torch.compile(lambda: run.optimizer.step(lambda: torch.tensor(1.0)), backend="eager")()


USES: dict[str, Callable[[Trajectory], Any]] = {
    "closure": lambda run: run.optimizer.step(lambda: torch.tensor(1.0)),
    "hooks": use_hooks,
    "exception in the closure": raise_in_closure,
    "unsupported gradient": step_with_unsupported_gradient,
    "state dicts": lambda run: run.optimizer.load_state_dict(save_and_load(run.optimizer.state_dict())),
    "repr": lambda run: repr(run.optimizer),
    "copies": lambda run: (copy.deepcopy(run.optimizer), pickle.loads(pickle.dumps(run.optimizer))),
    "torch.compile": compile_step,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.optimizers("all")
def test_dropped_optimizer_is_freed_without_garbage_collection(name, use, make_run, gc_disabled):
    run = make_run(name).run_steps(0, 2)
    USES[use](run)
    optimizer, p = weakref.ref(run.optimizer), weakref.ref(run.params[0])
    del run
    torch.compiler.reset()
    assert (optimizer(), p()) == (None, None)
