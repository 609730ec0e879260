"""Dtypes, lazy conjugation, shared and moving memory of parameters and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optplug.testing.checks import assert_close, assert_equal, save_and_load, state_tensors
from optplug.testing.trajectory import Trajectory, seeded_randn, take_step
from support import since_torch

pytestmark = pytest.mark.usefixtures("single_thread")


def fallback_allowed(engine: str | None) -> str | None:
    """Return `auto` for engine numba, which raises for tensors that it cannot step in place (tests/engines)."""
    return None if engine == "numba" else engine


# --------------------------------------------------------------------------------------------------- dtypes

MIXED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


def params_of_mixed_dtypes(capabilities: frozenset[str]) -> list[Tensor]:
    """Return a parameter of each dtype that the optimizer supports."""
    dtypes = [dtype for dtype in MIXED_DTYPES if "complex" in capabilities or not dtype.is_complex]
    values = [seeded_randn((4, 3, 2), i) for i in range(len(dtypes))]
    return [
        (torch.view_as_complex(t) if dtype.is_complex else t[..., 0].contiguous()).to(dtype).requires_grad_()
        for t, dtype in zip(values, dtypes, strict=True)
    ]


def seeded_gradient(run: Trajectory, step: int, index: int, seed: int | None = None) -> Tensor:
    p = run.params[index]
    g = seeded_randn((*p.shape, 2), 100 * step + (index if seed is None else seed))
    return (torch.view_as_complex(g) if p.is_complex() else g[..., 0].contiguous()).to(p.dtype)


@pytest.mark.optimizers("without_closure independent", engines=True)
def test_group_of_mixed_dtypes_steps_like_separate_groups_and_like_torch(
    name, engine, tested_optimizers, torch_classes, make_run
):
    make_mixed = functools.partial(params_of_mixed_dtypes, tested_optimizers[name].capabilities)
    together = make_run(name, make_mixed(), engine=engine)
    theirs = make_run(name, make_mixed(), of="torch" if name in torch_classes else "optplug")
    for run in (together, theirs):
        run.gradient = functools.partial(seeded_gradient, run)
        run.run_steps(0, 5)
    for i, p in enumerate(make_mixed()):
        alone = make_run(name, [p], engine=engine)
        alone.gradient = lambda step, _, alone=alone, i=i: seeded_gradient(alone, step, 0, seed=i)
        alone.run_steps(0, 5)
        assert_equal(f"{p.dtype} in a group and alone", [together.params[i]], [p])
        eps = torch.finfo(p.dtype).eps
        assert_close(f"{p.dtype}, ours and torch's", [p], [theirs.params[i]], 1.0, 20 * eps)


def squared_norm(t: Tensor) -> Tensor:
    return (t * t.conj()).real.sum() / 2


@pytest.mark.optimizers("dense", engines=True)
def test_lazily_conjugated_and_negated_tensors_step_like_resolved_ones(name, engine, make_run, tested_optimizers):
    z, g = (torch.view_as_complex(seeded_randn((4, 2), seed)) for seed in (1, 2))
    lazy = {
        "conjugated parameter": (lambda: z.clone().conj(), lambda: g),
        "conjugated gradient": (lambda: z.clone(), lambda: g.conj()),
        "negated parameter": (lambda: z.clone().conj().imag, lambda: g.real.clone()),
        "negated gradient": (lambda: z.real.clone(), lambda: g.conj().imag),
    }
    if "complex" not in tested_optimizers[name].capabilities:
        lazy = {what: makers for what, makers in lazy.items() if what.startswith("negated")}
    for what, (make_param, make_gradient) in lazy.items():
        results = []
        for resolve in (False, True):
            p, grad = make_param(), make_gradient()
            assert p.is_conj() or p.is_neg() or grad.is_conj() or grad.is_neg()
            if resolve:
                p, grad = p.resolve_conj().resolve_neg(), grad.resolve_conj().resolve_neg()
            shape = tested_optimizers[name].fit_shape(p.shape)
            p, grad = p.view(shape), grad.view(shape)
            run = make_run(name, [p.requires_grad_()], engine=engine if resolve else fallback_allowed(engine))
            for _ in range(3):
                p.grad = grad
                target = p.detach().clone() - grad
                take_step(run.subject, run.optimizer, [p], lambda p=p, target=target: squared_norm(p - target))
            assert run.distance_moved > 0
            results.append(p.detach().resolve_conj().resolve_neg())
        assert_close(what, results[:1], results[1:], 1.0, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, None], ids=str)
@pytest.mark.optimizers("without_closure")
def test_gradient_of_another_dtype_steps_in_the_dtype_of_the_parameter(name, dtype, make_run):
    """`grad_dtype` of the parameter allows such a gradient. torch 2.8 lacks it, 2.11 has it."""
    runs = []
    with since_torch((2, 11), RuntimeError, "attempting to assign a gradient with dtype"):
        for cast in (False, True):
            p = seeded_randn((4, 3), 0).to(torch.bfloat16).requires_grad_()
            p.grad_dtype = dtype
            run = make_run(name, [p])
            for step in range(3):
                g = seeded_randn((4, 3), step + 1).to(torch.bfloat16)
                p.grad = run.subject.convert_gradient(g if cast and dtype is None else g.float())
                run.optimizer.step()
            runs.append(run)
        runs[0].assert_equals(runs[1], "a gradient in float32 and in bfloat16")
        assert runs[0].distance_moved > 0


# ------------------------------------------------------------------------------------- memory of parameters


VIEWS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "parts of one storage": lambda base: [base[:6], base[6:18].view(4, 3), base[18:]],
    "interleaved": lambda base: [base[0::2], base[1::2]],
    "overlapping": lambda base: [base[:10], base[8:].view(4, 4), base[20:]],
    "the same memory twice": lambda base: [base, base.view(4, 6)],
    "a tensor and its transpose": lambda base: [base.view(4, 6), base.view(4, 6).t()],
}


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.optimizers("torch without_closure")
def test_parameters_that_share_a_storage_step_like_torch(name, views, make_run):
    bases = []
    for of in ("optplug", "torch"):
        base = seeded_randn((24,), 0)
        params = VIEWS[views](base.detach())
        if name == "adafactor":  # steps the matrices of a group before the other parameters
            params.sort(key=lambda p: p.ndim < 2)
        run = make_run(name, [p.requires_grad_() for p in params], of=of)
        run.run_steps(0, 5)
        bases.append(base)
    moved = float((bases[1] - seeded_randn((24,), 0)).abs().max())
    assert_close("the storage, ours and torch's", bases[:1], bases[1:], moved)


@pytest.mark.optimizers("torch")
def test_parameter_that_overlaps_itself_raises_like_torch(name, make_run, outcome, assert_error_like_torch):
    outcomes = []
    for of in ("optplug", "torch"):
        p = torch.ones(1, 3).expand(4, 3).requires_grad_()
        run = make_run(name, [p], of=of)
        run.gradient = lambda step, index: torch.ones(4, 3)
        outcomes.append(outcome(lambda run=run: run.run_steps(0, 1).params[0].detach()))
    if isinstance(outcomes[1], tuple):
        assert_error_like_torch(*outcomes)
    else:
        # torch's SparseAdam adds all rows to the one row in memory, which is not a valid step; ours raises.
        assert name == "sparse_adam"
        assert isinstance(outcomes[0], tuple), outcomes[0]


def expanded_gradient(p: Tensor, step: int, contiguous: bool) -> Tensor:
    g = seeded_randn((1, p.shape[1]), step).expand(p.shape)
    return g.contiguous() if contiguous else g


@pytest.mark.optimizers("all", engines=True)
def test_expanded_gradients_step_like_contiguous_ones(name, engine, make_run, make_params):
    runs = []
    for contiguous in (False, True):
        run = make_run(name, make_params((4, 3), (2, 2)), engine=engine if contiguous else fallback_allowed(engine))
        run.gradient = lambda step, index, contiguous=contiguous, run=run: expanded_gradient(
            run.params[index], step, contiguous
        )
        runs.append(run.run_steps())
    what = "expanded gradients and contiguous ones"
    if engine == "numba":  # another engine steps the expanded gradients
        assert_close(what, runs[0].params, runs[1].params, runs[1].distance_moved, 1e-12)
    else:
        runs[0].assert_equals(runs[1], what)


def replace_data(run: Trajectory) -> None:
    for p in run.params:
        p.data = p.data.clone()


def move_to_shared_memory(run: Trajectory) -> None:
    for p in run.params:
        p.data.share_memory_()


def move_to_one_storage(run: Trajectory) -> None:
    flat = torch.cat([p.data.reshape(-1) for p in run.params])
    for p, part in zip(run.params, flat.split([p.numel() for p in run.params]), strict=True):
        p.data = part.view(p.shape)


def make_strided(run: Trajectory) -> None:
    for p in run.params:
        p.data = torch.stack([p.data, p.data], -1)[..., 0]


MOVES: dict[str, Callable[[Trajectory], None]] = {
    "replaced": replace_data,
    "shared": move_to_shared_memory,
    "one flat storage": move_to_one_storage,
    "strided": make_strided,
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.optimizers("all", engines=True)
def test_parameters_may_move_in_memory_between_steps(name, engine, move, make_run, make_params):
    run = make_run(name, make_params(), engine=fallback_allowed(engine) if move == "strided" else engine)
    run.run_steps(0, 4)
    MOVES[move](run)
    run.run_steps(4)
    not_moved = make_run(name, make_params(), engine=engine).run_steps()
    limit = 1e-12 if fallback_allowed(engine) != engine and move == "strided" else 1e-14
    assert_close(move, run.params, not_moved.params, not_moved.distance_moved, limit)


@pytest.mark.optimizers("torch")
def test_states_get_the_new_dtype_of_a_module_when_loaded_like_in_torch(name, make_run):
    results: list[tuple[Any, list[str]]] = []
    for of in ("optplug", "torch"):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        run = make_run(name, list(model.parameters()), of=of)
        for dtype in (torch.float32, torch.float16, torch.float64):
            model.to(dtype)
            run.optimizer.load_state_dict(save_and_load(run.optimizer.state_dict()))
            run.run_steps(3, 6)
        results.append((run, [str(t.dtype) for t in state_tensors(run.optimizer) if t.dim()]))
    (ours, our_dtypes), (theirs, their_dtypes) = results
    assert our_dtypes == their_dtypes
    assert_close("ours and torch's", ours.params, theirs.params, 1.0, 8 * torch.finfo(torch.float16).eps)


@pytest.mark.optimizers("torch")
def test_frozen_parameter_is_stepped_only_while_it_has_a_gradient(name, tested_optimizers, make_run, make_params):
    needs_closure = "closure" in tested_optimizers[name].capabilities
    results = []
    for of in ("optplug", "torch"):
        run = make_run(name, make_params(), of=of).run_steps(3, 5)
        run.set_gradients(5)
        run.params[0].requires_grad_(False)
        if needs_closure:
            run.optimizer.step(lambda: torch.zeros(()))
        else:
            run.optimizer.step()
        frozen = run.params[0].clone()
        run.params[0].grad = None
        run.params = run.params[1:]
        run.initial = run.initial[1:]
        run.run_steps(7, 9)
        results.append((run, frozen, run.optimizer.param_groups[0]["params"][0]))
    (ours, our_frozen, at_the_end), (theirs, their_frozen, _) = results
    if not needs_closure:
        assert torch.equal(our_frozen, at_the_end)
    assert_close("the frozen parameter", [our_frozen], [their_frozen], 1.0)
    ours.assert_close_to(theirs)
