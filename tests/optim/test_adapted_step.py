"""Adapted `step` methods: closures that are needed, closures that are ignored, and copies."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from optplug import OptimizerSpec, create_optimizer
from optplug.errors import ConformanceError, WiringError
from optplug.optim.adapted_step import original_class
from optplug.testing import optimizer_checks


class Ignores(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step()


class Needs(torch.optim.SGD):
    def step(self, closure: Any, *, scale: float = 1.0) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        for p in self.param_groups[0]["params"]:
            p.data -= self.param_groups[0]["lr"] * scale * loss.item() * p.grad
        return loss


class NeedsGradients(Needs):
    def step(self, closure: Any, *, scale: float = 1.0) -> Any:  # type: ignore[override]
        assert self.param_groups[0]["params"][0].grad is not None
        return Needs.step(self, closure, scale=scale)


class CanStepWithout(torch.optim.SGD):
    pass


NEEDED = ("needs", "needs_gradients")


@pytest.fixture(autouse=True)
def registered(register_optimizers: Any) -> None:
    register_optimizers(
        OptimizerSpec("ignores", Ignores),
        OptimizerSpec("needs", Needs, capabilities={"closure"}),
        OptimizerSpec("needs_gradients", NeedsGradients, capabilities={"gradients_first"}),
        OptimizerSpec("torch_sgd", torch.optim.SGD),
    )


def made(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    return module, create_optimizer(name, module.parameters(), lr=0.1)


def closure_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = module(torch.ones(3, 2)).square().mean()
        loss.backward()
        return loss

    return closure


def pickled(both: Any) -> Any:
    return pickle.loads(pickle.dumps(both))


def unchanged(both: Any) -> Any:
    return both


copies = pytest.mark.parametrize("copied", [unchanged, copy.deepcopy, pickled])


@copies
@pytest.mark.parametrize("name", NEEDED)
def test_step_without_a_closure_is_refused(name: str, copied: Any):
    module, optimizer = copied(made(name))
    closure_of(module, optimizer)()
    before = module.weight.detach().clone()
    needs = rf"^{name} evaluates a closure in its step: write optimizer.step\(closure\) with a function that computes "
    with pytest.raises(WiringError, match=needs + r".*; step\(\) got no closure$"):
        optimizer.step()
    for act in (lambda: optimizer.step(lambda: None), lambda: optimizer.step(closure=lambda: None)):  # type: ignore[arg-type, return-value]
        with pytest.raises(WiringError, match=needs + r".*; step\(\) got none, or one that returned None$"):
            act()
    assert torch.equal(module.weight, before)


@copies
@pytest.mark.parametrize("name", NEEDED)
def test_step_with_a_closure_trains(name: str, copied: Any):
    module, optimizer = copied(made(name))
    closure = closure_of(module, optimizer)
    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 5


@copies
def test_ignored_closure_is_refused(copied: Any):
    module, optimizer = copied(made("ignores"))
    closure = closure_of(module, optimizer)
    with pytest.raises(WiringError, match=r"^ignores: step\(closure\) did not call the closure, .*\"no_closure\""):
        optimizer.step(closure)
    with pytest.raises(WiringError, match=r"^ignores: step\(closure\) did not call the closure"):
        optimizer.step(closure=closure)
    closure()
    optimizer.step()


def test_other_arguments_of_step_are_passed_on():
    module, optimizer = made("needs")
    closure = closure_of(module, optimizer)
    before = module.weight.detach().clone()
    optimizer.step(closure, scale=0.0)  # type: ignore[call-arg]
    assert torch.equal(module.weight, before)
    assert list(inspect.signature(optimizer.step).parameters) == ["closure", "scale"]


def test_hooks_are_called_once():
    module, optimizer = made("needs")
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(closure_of(module, optimizer))
    assert calls == ["before", "after"]


def test_class_keeps_its_name_and_state():
    _, optimizer = made("needs")
    assert (type(optimizer).__name__, type(optimizer).__module__) == ("Needs", __name__)
    assert original_class(optimizer) is Needs
    assert original_class(torch.optim.SGD([nn.Parameter(torch.ones(1))])) is torch.optim.SGD


def test_kit_finds_a_needless_closure():
    """The check of the kit is about the class itself, not about the adapted one."""
    spec = OptimizerSpec("can_step_without", CanStepWithout, capabilities={"closure"})
    (check,) = (check for check in optimizer_checks(spec) if check.promise == "declared_needs_are_real")
    with pytest.raises(ConformanceError, match="its step succeeds without a closure"):
        check()


def test_step_of_torch_needs_no_check():
    assert type(create_optimizer("torch_sgd", nn.Linear(2, 1), lr=0.1)) is torch.optim.SGD
