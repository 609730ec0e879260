"""SOAP: factors without full rank, their sizes and dtypes, non-finite gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import optplug

ENGINES = ("loop", "foreach", "numba")


def run(shape: tuple[int, ...], steps: int = 25, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Steps with noise as gradients: the parameter, its state, and the optimizer."""
    generator = torch.Generator().manual_seed(0)
    p = torch.zeros(shape, dtype=dtype, requires_grad=True)
    optimizer = optplug.create_optimizer("soap", [p], **{"lr": 0.1, "precondition_frequency": 4, **options})
    for _ in range(steps):
        p.grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        optimizer.step()
    return p.detach(), optimizer.state[p], optimizer


def is_orthogonal(basis: Tensor, atol: float = 1e-10) -> bool:
    identity = torch.eye(basis.shape[-1], dtype=basis.dtype).expand_as(basis)
    return torch.allclose(basis.mT @ basis, identity, rtol=0, atol=atol)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(6, 2), (2, 6), (3, 4, 2), (8, 2, 3, 3)])
@pytest.mark.parametrize("flatten", [True, False])
def test_bases_are_orthogonal_and_factors_symmetric(shape, flatten, engine):
    _, state, _ = run(shape, engine=engine, flatten=flatten)
    rows, columns = (shape[0], torch.Size(shape[1:]).numel()) if flatten else shape[-2:]
    stack = () if flatten else shape[:-2]
    for side, size in (("left", rows), ("right", columns)):
        assert state[side].shape == state[f"{side}_basis"].shape == (*stack, size, size)
        assert is_orthogonal(state[f"{side}_basis"])
        torch.testing.assert_close(state[side], state[side].mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_basis_becomes_that_of_the_eigenvectors(engine):
    """For a constant gradient the factors converge, and the basis to their eigenvectors in order."""
    g = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    p = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    optimizer = optplug.create_optimizer("soap", [p], lr=0.0, precondition_frequency=1, engine=engine)
    for _ in range(200):
        p.grad = g
        optimizer.step()
    state = optimizer.state[p]
    diagonal = state["left_basis"].T @ (g @ g.T) @ state["left_basis"]
    torch.testing.assert_close(diagonal, torch.diag(torch.linalg.svdvals(g) ** 2), rtol=0, atol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_first_step_changes_no_parameter(engine):
    p, state, _ = run((4, 3), steps=1, engine=engine, weight_decay=0.5)
    assert not p.any()
    assert not state["exp_avg"].any()
    assert is_orthogonal(state["left_basis"])


@pytest.mark.parametrize("engine", ENGINES)
def test_large_side_has_no_factor(engine):
    _, state, _ = run((6, 3), max_precondition_dim=5, engine=engine)
    assert state["left"].shape == state["left_basis"].shape == (0, 0)
    assert state["right"].shape == (3, 3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("when", [0, 5])
def test_non_finite_gradient_does_not_raise(when, engine):
    """Other parameters, whose eigenvectors are computed in the same call, are not changed by it."""
    parameters = [torch.zeros(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimizer = optplug.create_optimizer("soap", parameters, lr=0.1, precondition_frequency=1, engine=engine)
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(3, 3, generator=generator, dtype=torch.float64)
            if i == 0 and step == when:
                p.grad[1, 1] = torch.nan
        optimizer.step()
    assert parameters[0].isnan().any()
    assert parameters[1].isfinite().all()
    assert is_orthogonal(optimizer.state[parameters[1]]["left_basis"])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype, engine):
    p, state, _ = run((5, 4), dtype=dtype, engine=engine)
    assert p.isfinite().all()
    assert p.any()
    assert state["left_basis"].dtype == dtype
    assert is_orthogonal(state["left_basis"].double(), atol=20 * torch.finfo(dtype).eps)


def test_state_dtype_applies_to_the_factors():
    _, state, _ = run((5, 4), dtype=torch.bfloat16, state_dtype=torch.float32)
    assert {state[name].dtype for name in ("left", "right_basis", "exp_avg")} == {torch.float32}
    assert is_orthogonal(state["left_basis"].double(), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_vectors_are_stepped_by_adam(engine):
    """From the second step on, and with eps = 0, which Adam adds at another place."""
    p, state, _ = run((7,), engine=engine, eps=0.0, weight_decay=0.0)
    assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([expected], lr=0.1, betas=(0.95, 0.95), eps=0.0)
    for step in range(25):
        expected.grad = torch.randn(7, generator=generator, dtype=torch.float64)
        if step:
            adam.step()
    torch.testing.assert_close(p, expected.detach(), rtol=0, atol=1e-13)
