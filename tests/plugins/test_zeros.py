"""Parameters and gradients of zeros, where a rule divides by a norm or by a scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import optplug
from optplug.errors import HyperparameterError

ENGINES = ("loop", "foreach", "numba")


def stepped(name: str, engine: str, value: float, gradient: float, **options: Any) -> torch.Tensor:
    """A parameter of three equal elements after a step."""
    p = torch.full((3,), value, dtype=torch.float64, requires_grad=True)
    p.grad = torch.full_like(p, gradient)
    optplug.create_optimizer(name, [p], engine=engine, **options).step()
    return p.detach()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["lamb", "lars"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_trust_ratio_of_a_parameter_of_zeros_is_1(name, engine, weight_decay):
    options = {"lr": 0.1, "weight_decay": weight_decay, "eps": 0.5}
    adaptive, plain = (stepped(name, engine, 0.0, 2.0, **options, adaptive=flag) for flag in (True, False))
    assert torch.equal(adaptive, plain)
    assert plain.tolist() == pytest.approx([-0.1 * (2 if name == "lars" else 2 / 2.5)] * 3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_update_of_zeros_leaves_the_parameter(name, engine):
    assert stepped(name, engine, 4.0, 0.0, weight_decay=0.0).tolist() == [4.0] * 3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_trust_ratio_of_zeros_does_not_affect_other_parameters(name, engine):
    zeros, ones = (torch.full((3,), value, dtype=torch.float64, requires_grad=True) for value in (0.0, 1.0))
    zeros.grad, ones.grad = torch.full_like(zeros, 2.0), torch.full_like(ones, 2.0)
    optplug.create_optimizer(name, [zeros, ones], engine=engine, lr=0.1).step()
    assert torch.equal(zeros.detach(), stepped(name, engine, 0.0, 2.0, lr=0.1))
    assert torch.equal(ones.detach(), stepped(name, engine, 1.0, 2.0, lr=0.1))


@pytest.mark.parametrize("engine", ENGINES)
def test_adopt_with_the_smallest_eps_stays_at_a_gradient_of_0(engine):
    assert stepped("adopt", engine, 4.0, 0.0, eps=5e-324).tolist() == [4.0] * 3


@pytest.mark.parametrize("eps", [0, 0.0, -1e-9])
def test_adopt_rejects_eps_that_is_not_above_0(eps):
    """With 0, a gradient of 0 would be divided by 0."""
    with pytest.raises(HyperparameterError) as caught:
        optplug.create_optimizer("adopt", [torch.zeros(1)], eps=eps)
    assert str(caught.value) == f"Invalid epsilon value: {eps} (ADOPT: eps must be above 0)"
    assert caught.value.argument == "eps"
