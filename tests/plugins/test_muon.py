"""Muon: checkpoints of torch's class, orthogonality, stacks of matrices, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import optplug
from parity import Trajectory
from support import TORCH

ENGINES = ("loop", "foreach", "numba")
SHAPES = ((5, 3), (3, 5), (4, 4), (5, 3))
OPTIONS = {"lr": 0.05, "weight_decay": 0.3, "momentum": 0.8, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}


def muon(params: Any, **options: Any) -> torch.optim.Optimizer:
    return optplug.create_optimizer("muon", params, **options)


@pytest.mark.skipif(TORCH < (2, 9), reason="torch < 2.9 has no Muon")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", ["ours continues torch's", "torch's continues ours"])
def test_checkpoints_of_torch(engine, direction):
    def ours(groups: Any, **options: Any) -> torch.optim.Optimizer:
        return muon(groups, engine=engine, **options)

    theirs = torch.optim.Muon
    first_class, then_class = (theirs, ours) if direction.startswith("ours") else (ours, theirs)
    first = Trajectory(first_class, torch.float64, shapes=SHAPES, **OPTIONS).run_steps(0, 20)
    then = Trajectory(then_class, torch.float64, shapes=SHAPES).resume(first).run_steps(20)
    through = Trajectory(theirs, torch.float64, shapes=SHAPES, **OPTIONS).run_steps()
    assert then.max_difference(through) <= 1e-3  # the iteration is computed in bfloat16
    group = then.optimizer.param_groups[0]
    assert {key: group[key] for key in OPTIONS if key != "lr"} == {k: v for k, v in OPTIONS.items() if k != "lr"}


def one_step(p: Tensor, g: Tensor, **options: Any) -> Tensor:
    """The update of a parameter in the first step with a learning rate of 1 and without weight decay."""
    parameter = p.clone().requires_grad_()
    parameter.grad = g
    muon([parameter], lr=1.0, weight_decay=0.0, **options).step()
    return p - parameter.detach()


@pytest.mark.parametrize("engine", ENGINES)
def test_update_is_orthogonal(engine):
    """With coefficients that converge, and with enough iterations, the singular values are 1."""
    g = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 40, "engine": engine}
    update = one_step(torch.zeros_like(g), g, ns_dtype="float32", **options)
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(update, u @ v * (6 / 4) ** 0.5, rtol=0, atol=1e-12)
    rough = one_step(torch.zeros_like(g), g, **options)
    assert 1e-5 < float((rough - update).abs().max()) < 0.05


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 2, 4, 5), (1, 4, 4)])
def test_stack_is_stepped_like_its_matrices(shape, engine):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    stack = one_step(torch.zeros_like(g), g, engine=engine, ns_dtype="float32")
    matrices = [one_step(torch.zeros_like(m), m, engine=engine, ns_dtype="float32") for m in g.view(-1, *shape[-2:])]
    torch.testing.assert_close(stack.view(-1, *shape[-2:]), torch.stack(matrices), rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_flattened_convolution_is_stepped_like_a_matrix(engine):
    g = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    options = {"ns_dtype": "float32", "engine": engine, "adjust_lr_fn": "match_rms_adamw"}
    convolution = one_step(torch.zeros_like(g), g, flatten=True, **options)
    matrix = one_step(torch.zeros(8, 12, dtype=torch.float64), g.flatten(1), **options)
    torch.testing.assert_close(convolution.flatten(1), matrix, rtol=0, atol=1e-14)
    stack = one_step(torch.zeros_like(g), g, **options)
    assert float((stack - convolution).abs().max()) > 0.1


@pytest.mark.parametrize("shape", [(), (3,)])
def test_vectors_are_refused(shape):
    vector = torch.zeros(shape, requires_grad=True)
    with pytest.raises(optplug.errors.ParameterError, match=r"^Muon only supports 2D parameters") as error:
        muon([torch.zeros(2, 2, requires_grad=True), vector])
    assert "parameter 1 of group 0" in str(error.value)
    assert "fallback" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjust_lr_fn": "adamw"}, "adjust_lr_fn 'adamw' is not supported; allowed: None, 'original', "),
        ({"ns_dtype": "float16"}, "ns_dtype 'float16' is not supported; allowed: 'bfloat16', 'float32'"),
        ({"ns_steps": 100}, "ns_steps must be less than 100, got 100"),
        ({"ns_steps": -1}, "ns_steps"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients must be 3 numbers"),
        ({"momentum": -0.1}, "momentum should be >= 0 but is: -0.1"),
    ],
)
def test_invalid_options_are_refused(options, message):
    for act in (
        lambda: muon([torch.zeros(2, 2, requires_grad=True)], **options),
        lambda: muon([{"params": [torch.zeros(2, 2, requires_grad=True)], **options}]),
    ):
        with pytest.raises(optplug.errors.HyperparameterError) as error:
            act()
        assert message in str(error.value)
        assert error.value.argument in options


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_gradient_changes_nothing_but_the_decay(engine):
    p = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    p.grad = torch.zeros_like(p)
    muon([p], lr=0.1, weight_decay=0.5, engine=engine).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.95), rtol=0, atol=1e-15)
