"""L-BFGS compared with torch's class. `python tests/plugins/test_lbfgs.py` prints the differences.

The relative difference of two runs is max|a - b| / max|moved| over all steps. optplug's class rounds differently from
torch's, and many runs amplify rounding errors strongly. So three things are compared: a run with torch's runs from
starts that are perturbed by one rounding error, a single iteration with torch's iteration from the same state, and a
search direction with the exact direction.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import itertools
import math
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import optplug
from optplug.engines import numba
from optplug.errors import (
    ConfigTypeError,
    HyperparameterError,
    HyperparameterTypeError,
    LineSearchError,
    OptplugError,
    ParameterError,
)
from optplug_classic import lbfgs_history
from optplug_classic.lbfgs_history import CurvaturePairs

sys.path.append(str(Path(__file__).parents[1]))  # when this file is run as a program
from support import TORCH, since_torch, torch_has

LBFGS = optplug.get_optimizer("lbfgs")
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5}
WOLFE = {"line_search_fn": "strong_wolfe"}
HAS_MAXIMIZE = torch_has("lbfgs", "maximize")
"""Whether torch's class has the argument `maximize`."""


# ---------------------------------------------------------------- problems: parameters in float64, and a loss of them

Problem = tuple[list[torch.Tensor], Callable[..., torch.Tensor]]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic() -> Problem:
    scales = torch.logspace(0, 3, 12, dtype=torch.float64)

    def loss(a, b):
        x = torch.cat([a.reshape(-1), b.reshape(-1)])
        return (scales.to(x.dtype) * (x - 1) ** 2).sum() / 2

    return [noise(2, 3), noise(6, seed=1)], loss


def rosenbrock(size: int) -> Problem:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64).repeat(size // 2)
    return [start], lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@functools.cache
def breast_cancer_data() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    x = torch.tensor(data.data, dtype=torch.float64)
    return (x - x.mean(0)) / x.std(0), torch.tensor(data.target, dtype=torch.float64)


def logistic() -> Problem:
    x, y = breast_cancer_data()

    def loss(w, b):
        logits = x.to(w.dtype) @ w + b
        return nn.functional.binary_cross_entropy_with_logits(logits, y.to(w.dtype)) + 1e-3 * (w * w).sum()

    return [torch.zeros(30, dtype=torch.float64), torch.zeros((), dtype=torch.float64)], loss


def network() -> Problem:
    x, y = noise(40, 5, seed=1), noise(40, 2, seed=2)

    def loss(w1, b1, w2, b2):
        hidden = torch.tanh(x.to(w1.dtype) @ w1 + b1)
        return ((hidden @ w2 + b2 - y.to(w1.dtype)) ** 2).mean()

    return [noise(5, 8, seed=3) / 2, noise(8, seed=4), noise(8, 2, seed=5) / 3, noise(2, seed=6)], loss


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "quadratic": quadratic,
    "rosenbrock-2": lambda: rosenbrock(2),
    "rosenbrock-10": lambda: rosenbrock(10),
    "logistic": logistic,
    "network": network,
}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "small steps": {"lr": 0.1},
    "short history": {"lr": 0.3, "history_size": 3},
    "few evaluations": {"lr": 0.3, "max_eval": 5},
    "many evaluations": {"lr": 0.3, "max_eval": 100},
    "one iteration": {"lr": 0.3, "max_iter": 1},
    "coarse tolerances": {"lr": 0.3, "tolerance_grad": 1e-2, "tolerance_change": 1e-3},
    "wolfe": WOLFE,
    "wolfe, lr": {**WOLFE, "lr": 0.05},
    "wolfe, large lr": {**WOLFE, "lr": 7.0},
    "wolfe, short history": {**WOLFE, "history_size": 2, "max_iter": 7},
    "wolfe, few evaluations": {**WOLFE, "max_eval": 4},
    "wolfe, one evaluation": {**WOLFE, "max_eval": 1},
    "wolfe, many evaluations": {**WOLFE, "max_eval": 100, "max_iter": 30},
    "wolfe, coarse tolerances": {**WOLFE, "tolerance_grad": 1e-2, "tolerance_change": 1e-3},
    "never stop": {"lr": 0.3, "tolerance_grad": -1, "tolerance_change": -1},
    "stop at once by gradient": {"lr": 0.3, "tolerance_grad": math.inf},
    "stop at once by change": {**WOLFE, "tolerance_change": math.inf},
    "wolfe, tensor lr": {**WOLFE, "lr": torch.tensor(0.5, dtype=torch.float64)},
    "tensor lr": {"lr": torch.tensor([0.2], dtype=torch.float64)},
}


class Run:
    """Parameters, a loss and an optimizer. Records the parameters, the counts and the losses after each step."""

    def __init__(self, cls, problem: Problem, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        start, self.loss = problem
        self.params = [p.to(dtype).clone().requires_grad_() for p in start]
        if isinstance(options.get("lr"), torch.Tensor) and dtype is torch.float32:
            options["lr"] = options["lr"].to(dtype)
        if isinstance(options.get("lr"), torch.Tensor) and cls is torch.optim.LBFGS and TORCH < (2, 8):
            options["lr"] = options["lr"].reshape(())  # see test_lr_tensor_with_a_dimension_equals_number
        self.optimizer = cls(self.params, **copy.deepcopy(options))
        self.points = [self.flat_parameters()]
        self.counts: list[tuple[int, int]] = []
        self.losses: list[float] = []

    def flat_parameters(self) -> torch.Tensor:
        return torch.cat([p.detach().double().reshape(-1) for p in self.params])

    def closure(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(*self.params)
        loss.backward()
        return loss

    def run_steps(self, steps: int):
        for _ in range(steps):
            self.losses.append(float(self.optimizer.step(self.closure).detach()))
            state = self.optimizer.state[self.params[0]]
            self.counts.append((state["func_evals"], state["n_iter"]))
            self.points.append(self.flat_parameters())
        return self

    def relative_difference(self, other: Run) -> float:
        assert len(self.points) == len(other.points)
        a, b = torch.stack(self.points), torch.stack(other.points)
        assert torch.equal(a.isfinite(), b.isfinite())
        if not b.isfinite().all():
            a, b = torch.nan_to_num(a), torch.nan_to_num(b)
        moved = float((b - b[0]).abs().max())
        return float((a - b).abs().max()) / (moved or 1.0)


def run_both(problem: Problem, dtype: torch.dtype = torch.float64, steps: int = 8, **options: Any) -> tuple[Run, Run]:
    ours, theirs = (Run(cls, problem, dtype, **options) for cls in (LBFGS, torch.optim.LBFGS))
    return ours.run_steps(steps), theirs.run_steps(steps)


def has_early_end(run: Run) -> bool:
    """Whether a step of this run ended before `max_iter` iterations."""
    group, counts = run.optimizer.param_groups[0], [(0, 0), *run.counts]
    return any(b[1] - a[1] < group["max_iter"] for a, b in itertools.pairwise(counts))


# ---------------------------------------------------------------- parity


QUICK = ("quadratic", "rosenbrock-2")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, id=f"{name}-{dtype}", marks=() if quick else pytest.mark.slow)
        for name in PROBLEMS
        for dtype in LIMITS
        for quick in (name in QUICK,)
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_run_differs_from_torch_no_more_than_perturbed_torch_runs(name, case, dtype):
    ours, theirs = run_both(PROBLEMS[name](), dtype, **CASES[case])
    difference, (spread, equal_counts) = (
        ours.relative_difference(theirs),
        torch_sensitivity(name, dtype, theirs, **CASES[case]),
    )
    print(f"{name:14} {case:26} {dtype}: {difference:.1e}, torch's {spread:.1e}")
    assert difference <= allowed_difference(spread, dtype)
    if equal_counts and spread < 1e-4:
        assert ours.counts == theirs.counts
    if spread < 1e-6:
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3, abs=1e-9 * theirs.losses[0])


def allowed_difference(spread: float, dtype: torch.dtype) -> float:
    return max(8 * spread, 100 * torch.finfo(dtype).eps)


def torch_sensitivity(name: str, dtype: torch.dtype, theirs: Run, **options: Any) -> tuple[float, bool]:
    """The largest difference of torch's runs from perturbed starts, and whether all have the same counts."""
    near = (perturbed_problem(PROBLEMS[name](), dtype, seed) for seed in range(3))
    runs = [Run(torch.optim.LBFGS, problem, dtype, **options).run_steps(len(theirs.counts)) for problem in near]
    return max(run.relative_difference(theirs) for run in runs), all(run.counts == theirs.counts for run in runs)


def perturbed_problem(problem: Problem, dtype: torch.dtype, seed: int) -> Problem:
    """The problem with a start that is moved by one unit in the last place."""
    starts = [p.to(dtype) for p in problem[0]]
    signs = [torch.sign(noise(*p.shape, seed=10 * seed + i)).to(dtype) for i, p in enumerate(starts)]
    eps = torch.finfo(dtype).eps
    moved = [torch.where(p == 0, eps * t, torch.nextafter(p, p + t)) for p, t in zip(starts, signs, strict=True)]
    return moved, problem[1]


def exact_direction(s: list[torch.Tensor], y: list[torch.Tensor], scale: float, g: torch.Tensor) -> Any:
    """The two-loop recursion in numpy's long double."""
    S, Y = ([v.double().numpy().astype(np.longdouble) for v in vectors] for vectors in (s, y))
    q, alphas = -g.double().numpy().astype(np.longdouble), []
    for a, b in zip(reversed(S), reversed(Y), strict=True):
        alphas.append((a * q).sum() / (a * b).sum())
        q = q - alphas[-1] * b
    q = q * np.longdouble(scale)
    for a, b in zip(S, Y, strict=True):
        q = q + a * (alphas.pop() - (b * q).sum() / (a * b).sum())
    return q


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_direction_is_as_accurate_as_in_torch(name, dtype):
    """The pairs are those of torch's runs."""
    errors: list[list[float]] = []
    for case in ("small steps", "wolfe", "short history"):
        run = Run(torch.optim.LBFGS, PROBLEMS[name](), dtype, **{**CASES[case], "max_iter": 1})
        for _ in range(30):
            state = run.run_steps(1).optimizer.state[run.params[0]]
            s, y, g, scale = state["old_stps"], state["old_dirs"], state["prev_flat_grad"], state["H_diag"]
            if not g.any():
                break
            right = exact_direction(s, y, float(scale), g)
            size = np.linalg.norm(right.astype(float))
            both_found = (state["d"], CurvaturePairs(s, y).direction(g, scale))
            wrong = [(d.double().numpy() - right).astype(float) for d in both_found]
            errors += [[float(np.linalg.norm(e) / size) for e in wrong]] if s else []
    assert len(errors) > 50
    theirs, ours = (torch.tensor(e) / torch.finfo(dtype).eps for e in zip(*errors, strict=True))
    summary = f"worst {ours.max():.1f}, torch's {theirs.max():.1f}; median {ours.median():.1f}, {theirs.median():.1f}"
    print(f"{name:14} {dtype}: {summary} roundings")
    assert ours.max() <= 4 * theirs.max()
    assert ours.median() <= 2 * theirs.median()
    if dtype is torch.float32:  # optplug accumulates in float64
        assert ours.max() <= theirs.max()


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("case", ["default", "short history", "wolfe", "wolfe, short history", "tensor lr"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_one_iteration_from_the_same_state_equals_torch(name, case, dtype):
    """The state is copied as a state dict, so that each iteration starts from torch's state."""
    options = {**CASES[case], "max_iter": 1}
    ours, theirs = (Run(cls, PROBLEMS[name](), dtype, **options) for cls in (LBFGS, torch.optim.LBFGS))
    worst = 0.0
    for i in range(15):
        if i:
            ours.optimizer.load_state_dict(save_and_load_state(theirs.optimizer))
            for p, q in zip(ours.params, theirs.params, strict=True):
                p.data.copy_(q.data)
        states = [run.run_steps(1).optimizer.state[run.params[0]] for run in (ours, theirs)]
        if theirs.counts[-1][1] == i:
            break  # converged: no iteration was made
        a, b = (state["d"] for state in states)
        worst = max(worst, float((a - b).norm() / b.norm()))
        assert len(states[0]["old_stps"]) == len(states[1]["old_stps"])
        assert ours.counts[-1][1] == theirs.counts[-1][1]
        if "line_search_fn" not in options:
            assert ours.counts[-1] == theirs.counts[-1]
            assert states[0]["t"] == states[1]["t"]
    assert i > 5
    print(f"{name:14} {case:26} {dtype}: {worst / torch.finfo(dtype).eps:.0f} roundings")
    assert worst <= 1000 * torch.finfo(dtype).eps


def test_cases_cover_all_termination_conditions():
    """Otherwise the comparison with torch would not cover them."""
    assert has_early_end(run_both(quadratic(), **CASES["coarse tolerances"])[0])
    assert has_early_end(run_both(quadratic(), **CASES["few evaluations"])[0])
    assert has_early_end(run_both(rosenbrock(2), **CASES["wolfe, few evaluations"])[0])
    converged = run_both(logistic(), steps=12, **WOLFE)[0]
    assert converged.counts[-1][0] == converged.counts[-2][0] + 1  # the gradient was small in the first evaluation
    long = Run(LBFGS, rosenbrock(10), **WOLFE, history_size=2).run_steps(5)
    assert len(long.optimizer.state[long.params[0]]["old_dirs"]) == 2


def test_float32_tensor_lr_with_float64_parameters():
    for name, make in PROBLEMS.items():
        options = {"lr": torch.tensor(0.3), "max_iter": 5}
        ours, theirs = run_both(make(), steps=4, **options)
        assert ours.relative_difference(theirs) <= 1e-11, name
        ours, theirs = run_both(make(), steps=4, **options, **WOLFE)
        assert ours.relative_difference(theirs) <= 1e-5, name  # torch interpolates in float32 in this case


def test_lr_tensor_with_a_dimension_equals_number():
    lr = torch.tensor([0.2], dtype=torch.float64)
    tensor, number = (Run(LBFGS, quadratic(), lr=value).run_steps(3) for value in (lr, 0.2))
    assert tensor.relative_difference(number) == 0
    theirs = Run(torch.optim.LBFGS, quadratic(), lr=0.2)
    theirs.optimizer.param_groups[0]["lr"] = lr
    with since_torch((2, 8), TypeError, "must be Number, not Tensor"):
        theirs.run_steps(1)


@pytest.mark.parametrize("options", [{}, WOLFE], ids=["fixed", "wolfe"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_lr_change_between_steps_equals_torch(name, options):
    runs = []
    for cls in (LBFGS, torch.optim.LBFGS):
        run = Run(cls, PROBLEMS[name](), lr=0.2, max_iter=4, **options).run_steps(3)
        run.optimizer.param_groups[0]["lr"] = 0.7
        runs.append(run.run_steps(3))
    assert runs[0].relative_difference(runs[1]) <= 1e-11
    assert runs[0].counts == runs[1].counts


def test_in_place_change_of_tensor_lr_does_not_change_the_last_step_length():
    """torch's class stores the lr tensor itself as the last step length."""

    def run(lr, change):
        run = Run(LBFGS, rosenbrock(10), lr=lr, max_iter=4).run_steps(3)
        change(run.optimizer.param_groups[0])
        return run.run_steps(3)

    filled = run(torch.tensor(0.2, dtype=torch.float64), lambda group: group["lr"].fill_(0.1))
    replaced = run(0.2, lambda group: group.update(lr=0.1))
    assert filled.relative_difference(replaced) == 0


@pytest.mark.parametrize("options", [{}, WOLFE], ids=["fixed", "wolfe"])
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_loss_that_is_not_finite_at_the_start_equals_torch(bad, options):
    ours, theirs = run_both(([noise(3)], lambda x: (x * x).sum() * bad), steps=3, **options)
    assert ours.relative_difference(theirs) == 0
    assert ours.counts == theirs.counts


def test_nan_loss_during_line_search_equals_torch():
    problem = ([torch.full((2,), 2.0, dtype=torch.float64)], lambda x: (x - torch.log(x) * 3 + 1 / x).sum())
    for options in ({"lr": 5.0}, {**WOLFE, "lr": 5.0}, {**WOLFE, "lr": 40.0}):
        ours, theirs = run_both(problem, steps=5, **options)
        assert ours.relative_difference(theirs) <= 1e-11
        assert ours.counts == theirs.counts


@pytest.mark.parametrize("options", [{}, WOLFE], ids=["fixed", "wolfe"])
def test_zero_gradient_at_the_start_ends_the_step(options):
    ours, theirs = run_both(([torch.zeros(3, dtype=torch.float64)], lambda x: (x * x).sum()), steps=2, **options)
    assert ours.counts == theirs.counts == [(1, 0), (2, 0)]
    for run in (ours, theirs):
        with torch.no_grad():
            run.params[0].add_(1.0)
        run.run_steps(2)
    assert torch.allclose(ours.flat_parameters(), theirs.flat_parameters(), rtol=0, atol=1e-15)
    assert ours.counts == theirs.counts


def test_loss_that_increases_along_the_descent_direction_equals_torch():
    """The loss increases along the direction of descent, so brackets shrink until the search ends."""

    def loss(x):
        return (x * x).sum() - 2 * (x * x).sum().detach()

    ours, theirs = run_both(([noise(4)], loss), steps=4, **WOLFE)
    assert ours.relative_difference(theirs) <= 1e-11
    assert ours.counts == theirs.counts


def test_line_search_satisfies_strong_wolfe_conditions():
    from optplug_classic.lbfgs import LinePoint, strong_wolfe

    def phi(t: Any) -> LinePoint:
        x = torch.tensor(float(t), dtype=torch.float64, requires_grad=True)
        f = -x / (x * x + 2)  # More and Thuente's first function
        (g,) = torch.autograd.grad(f, x)
        return LinePoint(t, float(f.detach()), g, g)

    for t in (1e-3, 1e-1, 1.0, 1e1, 1e2):
        start, found = phi(0), strong_wolfe(phi, phi(0), t, 1e-12, 25)
        assert found.f <= start.f + 1e-4 * found.t * start.slope
        assert abs(found.slope) <= 0.9 * abs(start.slope)


def test_rosenbrock_is_solved():
    run = Run(LBFGS, rosenbrock(2), **WOLFE).run_steps(5)
    assert float((run.points[-1] - 1).abs().max()) < 1e-4


def test_step_returns_first_loss_object_and_enables_gradients():
    x = torch.tensor([3.0], requires_grad=True)
    losses, modes = [], []

    def closure():
        modes.append(torch.is_grad_enabled())
        x.grad = 2 * x.detach()
        losses.append((x * x).sum())
        return losses[-1]

    with torch.no_grad():
        returned = LBFGS([x]).step(closure)
    assert returned is losses[0]
    assert len(modes) > 1
    assert all(modes)
    x.grad = None
    assert LBFGS([x], max_iter=1).step(lambda: 3) == 3


def test_lr_of_zero_does_not_change_parameters():
    for options in ({}, WOLFE):  # torch's line search divides by zero
        run = Run(LBFGS, rosenbrock(2), lr=0, **options).run_steps(2)
        assert torch.equal(run.points[-1], run.points[0])


def test_step_without_parameters_returns_the_loss():
    """As in torch since 2.14. Before, torch's step fails."""
    loss = torch.ones(())
    modes: list[bool] = []

    def closure():
        modes.append(torch.is_grad_enabled())
        return loss

    optimizer = LBFGS([{"params": []}])
    with torch.no_grad():
        assert optimizer.step(closure) is loss
    assert modes == [True]
    assert optimizer.state == {}
    theirs = torch.optim.LBFGS([{"params": []}])
    with contextlib.nullcontext() if TORCH >= (2, 14) else pytest.raises(IndexError):
        assert theirs.step(closure) is loss


# ---------------------------------------------------------------- maximize


def negated(problem: Problem) -> Problem:
    return problem[0], lambda *params: -problem[1](*params)


def torch_run_that_maximizes(problem: Problem, dtype: torch.dtype, steps: int, **options: Any) -> Run:
    """A run of torch's class with `maximize`; of a class without it, on the negated loss."""
    if HAS_MAXIMIZE:
        return Run(torch.optim.LBFGS, problem, dtype, **options, maximize=True).run_steps(steps)
    run = Run(torch.optim.LBFGS, negated(problem), dtype, **options).run_steps(steps)
    run.losses = [-loss for loss in run.losses]
    return run


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", QUICK)
def test_maximize_equals_minimizing_the_negated_loss(name, case, dtype):
    problem, options = PROBLEMS[name](), CASES[case]
    down = Run(LBFGS, problem, dtype, **options).run_steps(6)
    up = Run(LBFGS, negated(problem), dtype, **options, maximize=True).run_steps(6)
    assert up.relative_difference(down) == 0
    assert up.counts == down.counts
    assert up.losses == [-loss for loss in down.losses]
    states = [run.optimizer.state_dict()["state"][0] for run in (up, down)]
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(states[1][k])) for k, a in states[0].items() if k == "d")


@pytest.mark.parametrize("case", ["default", "short history", "wolfe", "wolfe, short history"])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", QUICK)
def test_run_with_maximize_differs_from_torch_no_more_than_perturbed_torch_runs(name, case, dtype):
    problem, options = PROBLEMS[name](), CASES[case]
    ours = Run(LBFGS, negated(problem), dtype, **options, maximize=True).run_steps(6)
    theirs = torch_run_that_maximizes(negated(problem), dtype, 6, **options)
    spread, _ = torch_sensitivity(name, dtype, theirs, **options)
    assert ours.relative_difference(theirs) <= allowed_difference(spread, dtype)
    if spread < 1e-6:
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3, abs=1e-9 * abs(theirs.losses[0]))


@pytest.mark.parametrize("options", [{"lr": 0.3}, WOLFE], ids=["fixed", "wolfe"])
def test_gradient_is_not_negated_in_place(options):
    run = Run(LBFGS, negated(rosenbrock(2)), **options, maximize=True).run_steps(2)
    (kept,) = (p.grad.clone() for p in run.params)
    before = run.optimizer._gather_flat_grad()
    assert torch.equal(before, -kept)
    assert torch.equal(run.params[0].grad, kept)


@pytest.mark.parametrize("case", ["fixed", "wolfe"])
def test_maximizing_state_is_exchanged_with_torch(case):
    problem, options = negated(rosenbrock(2)), CONTINUATION_CASES[case]
    through = Run(LBFGS, problem, **options, maximize=True).run_steps(5)
    first = Run(LBFGS, problem, **options, maximize=True).run_steps(3)
    loaded = continue_run(LBFGS, first, problem, torch.float64, 2, **options)  # the saved key has priority
    assert loaded.relative_difference(through) == 0
    if HAS_MAXIMIZE:
        there = continue_run(torch.optim.LBFGS, first, problem, torch.float64, 2, **options)
        assert there.relative_difference(through) <= 1e-9
        back = continue_run(LBFGS, there, problem, torch.float64, 2, **options)
        assert back.optimizer.param_groups[0]["maximize"] is True
    else:  # the key is kept and has no effect: the class minimizes the loss that it gets
        there = continue_run(torch.optim.LBFGS, first, negated(problem), torch.float64, 2, **options)
        assert there.relative_difference(through) <= 1e-9
        assert there.optimizer.param_groups[0]["maximize"] is True


# ---------------------------------------------------------------- state


def with_maximize(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The options of torch's class, with those that it lacks before 2.14."""
    return [{"maximize": False, **group} for group in groups]


def save_and_load_state(optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def continue_run(cls, first: Run, problem: Problem, dtype: torch.dtype, steps: int, **options: Any) -> Run:
    then = Run(cls, problem, dtype, **options)
    for p, q in zip(then.params, first.params, strict=True):
        p.data.copy_(q.data)
    then.optimizer.load_state_dict(save_and_load_state(first.optimizer))
    then.points = list(first.points)
    return then.run_steps(steps)


CONTINUATION_CASES = {"fixed": {"lr": 0.3, "max_iter": 4}, "wolfe": {**WOLFE, "max_iter": 4}}
CONTINUATION_CASES |= {"short": {**WOLFE, "history_size": 2, "max_iter": 3}}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("case", CONTINUATION_CASES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_state_dicts_are_exchanged_with_torch_during_a_run(name, case, dtype):
    problem, options = PROBLEMS[name](), CONTINUATION_CASES[case]
    for before, after in ((LBFGS, torch.optim.LBFGS), (torch.optim.LBFGS, LBFGS), (LBFGS, LBFGS)):
        through = Run(torch.optim.LBFGS, problem, dtype, **options).run_steps(6)
        spread, equal_counts = torch_sensitivity(name, dtype, through, **options)
        for stop in (1, 3):
            first = Run(before, problem, dtype, **options).run_steps(stop)
            then = continue_run(after, first, problem, dtype, 6 - stop, **options)
            assert then.relative_difference(through) <= allowed_difference(spread, dtype)
            if equal_counts and spread < 1e-4:
                assert then.counts == through.counts[stop:]


def test_state_has_names_types_and_shapes_of_torch():
    def kinds(value):
        return [kinds(v) for v in value] if isinstance(value, list) else getattr(value, "shape", type(value))

    for options in (CONTINUATION_CASES["fixed"], CONTINUATION_CASES["wolfe"]):
        ours, theirs = run_both(rosenbrock(10), steps=3, **{"lr": 1.0, **options})
        a, b = (run.optimizer.state_dict() for run in (ours, theirs))
        b["state"][0].pop("al")
        assert {k: kinds(v) for k, v in a["state"][0].items()} == {k: kinds(v) for k, v in b["state"][0].items()}
        assert a["param_groups"] == with_maximize(b["param_groups"])


@pytest.mark.parametrize("case", CONTINUATION_CASES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies_continue_identically(case, duplicate):
    problem, options = rosenbrock(10), CONTINUATION_CASES[case]
    through = Run(LBFGS, problem, **options).run_steps(6)
    first = Run(LBFGS, problem, **options).run_steps(3)
    then = Run(LBFGS, problem, **options)
    then.optimizer = duplicate(first.optimizer)
    then.params = then.optimizer.param_groups[0]["params"]
    then.points = list(first.points)
    assert then.run_steps(3).relative_difference(through) == 0
    assert then.optimizer.param_groups[0].keys() == through.optimizer.param_groups[0].keys()
    assert torch.equal(first.flat_parameters(), first.points[-1])


def test_optimizer_has_no_attributes_besides_state_groups_and_cache():
    base = vars(torch.optim.SGD([torch.zeros(1, requires_grad=True)])).keys()
    optimizer = Run(LBFGS, rosenbrock(2), **WOLFE).run_steps(2).optimizer
    assert vars(optimizer).keys() - base == {"_pairs"}  # the cache of the matrices
    assert vars(pickle.loads(pickle.dumps(optimizer))).keys() <= base


def test_old_state_dict_without_some_keys_is_loaded():
    first = Run(torch.optim.LBFGS, rosenbrock(2)).run_steps(2)
    old = first.optimizer.state_dict()
    for key in ("line_search_fn", "history_size", "max_eval"):
        del old["param_groups"][0][key]
    then = Run(LBFGS, rosenbrock(2), max_eval=9)
    then.optimizer.load_state_dict(old)
    group = then.optimizer.param_groups[0]
    assert (group["line_search_fn"], group["history_size"], group["max_eval"]) == (None, 100, 9)
    then.run_steps(1)


def test_smaller_history_size_applies_from_the_next_pair():
    run = Run(LBFGS, rosenbrock(10), **WOLFE, max_iter=8).run_steps(1)
    run.optimizer.param_groups[0]["history_size"] = 2
    run.run_steps(1)
    state = run.optimizer.state[run.params[0]]
    assert [len(state[name]) for name in ("old_dirs", "old_stps", "ro")] == [2, 2, 2]


# ---------------------------------------------------------------- matrices of the pairs


def random_pairs(k: int, n: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    s = [noise(n, seed=i).to(dtype) for i in range(k)]
    return s, [v * (1 + noise(n, seed=99).abs().to(dtype)) for v in s]


@pytest.mark.parametrize("kernel", [True, False], ids=["numba", "torch"])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_direction_does_not_depend_on_row_order_growth_or_threads(dtype, kernel, monkeypatch):
    monkeypatch.setattr(lbfgs_history, "MIN_KERNEL_ELEMENTS", 1 if kernel else math.inf)
    (s, y), g = random_pairs(25, 9001, dtype), noise(9001, seed=7).to(dtype)
    before = torch.get_num_threads()
    try:
        for size in (1, 3, 8, 11, 40):
            torch.set_num_threads(2)
            pairs = CurvaturePairs()
            for i, pair in enumerate(zip(s, y, strict=True)):
                pairs.append(*pair, size)
                found = pairs.direction(g, 0.5)
                if i % 4:
                    continue
                torch.set_num_threads(1 + i // 4 % 3 if kernel else 2)
                fresh = CurvaturePairs(s[: i + 1][-size:], y[: i + 1][-size:])
                assert torch.equal(fresh.direction(g, 0.5), found), (size, i)
                torch.set_num_threads(2)
            right = torch.from_numpy(exact_direction(s[-size:], y[-size:], 0.5, g).astype(float))
            assert float((found - right).norm() / right.norm()) <= 20 * torch.finfo(dtype).eps
    finally:
        torch.set_num_threads(before)


def test_numba_is_used_for_long_vectors_and_optional(monkeypatch):
    (s, y), g = random_pairs(5, 70000, torch.float32), noise(70000).float()
    used = CurvaturePairs(s, y).direction(g, 1.0)
    assert lbfgs_history._select_kernels(g).__name__ == "optplug_classic.lbfgs_kernels"
    monkeypatch.setattr(numba, "unavailable_reason", lambda: "not installed")
    assert lbfgs_history._select_kernels(g) is lbfgs_history.TorchKernels
    without = CurvaturePairs(s, y).direction(g, 1.0)
    assert float((used - without).norm() / used.norm()) <= 1e-6


def test_modified_or_replaced_row_is_detected():
    for change in (lambda rows: rows[1].mul_(2), lambda rows: rows.__setitem__(1, rows[1] * 2)):
        run = Run(LBFGS, rosenbrock(10), **WOLFE, max_iter=6, history_size=4).run_steps(2)
        state = run.optimizer.state[run.params[0]]
        change(state["old_dirs"])
        other = Run(LBFGS, rosenbrock(10), **WOLFE, max_iter=6, history_size=4)
        other.params[0].data.copy_(run.params[0].data)
        other.optimizer.load_state_dict(save_and_load_state(run.optimizer))
        assert torch.equal(run.run_steps(1).flat_parameters(), other.run_steps(1).flat_parameters())


def test_state_dict_does_not_change_later_and_contains_only_the_pairs():
    run = Run(LBFGS, rosenbrock(10), **WOLFE, max_iter=5, history_size=7).run_steps(2)
    taken = run.optimizer.state_dict()
    kept = copy.deepcopy(taken)
    run.run_steps(3)
    for name in ("old_stps", "old_dirs"):
        rows = taken["state"][0][name]
        assert all(torch.equal(a, b) for a, b in zip(rows, kept["state"][0][name], strict=True))
        assert all(row.untyped_storage().nbytes() == row.numel() * 8 for row in rows)


def test_direction_does_not_synchronize_with_the_device():
    class Count(torch.overrides.TorchFunctionMode):
        waits = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            name = getattr(function, "__name__", "")
            self.waits += name in ("item", "__float__", "__bool__", "__int__", "tolist", "__index__")
            return function(*args, **(kwargs or {}))

    counts = []
    for k in (3, 30):
        pairs, g = CurvaturePairs(*random_pairs(k, 50, torch.float64)), noise(50)
        pairs.append(noise(50), noise(50), k)
        with Count() as count:
            pairs.direction(g, torch.tensor(0.5))
        counts.append(count.waits)
    assert counts == [0, 0]


# ---------------------------------------------------------------- gradients and parameters


def with_gradients(alter: Callable[[int, torch.Tensor], torch.Tensor | None], params=None, **options: Any) -> Run:
    """A run in which each gradient is replaced by `alter(index, gradient)` before the optimizer uses it."""
    run = Run(LBFGS, network() if params is None else params, max_iter=5, **options)
    plain = run.closure

    def closure():
        loss = plain()
        for i, p in enumerate(run.params):
            p.grad = alter(i, p.grad)
        return loss

    run.closure = closure
    return run.run_steps(4)


def strided(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, t], -1)[..., 0]


def lazily_negated(t: torch.Tensor) -> torch.Tensor:
    return torch.complex(torch.zeros_like(t), -t).conj().imag


@pytest.mark.parametrize("options", [{"lr": 0.3}, WOLFE], ids=["fixed", "wolfe"])
def test_result_does_not_depend_on_layout_of_gradients(options):
    plain = with_gradients(lambda i, g: g, **options)
    assert lazily_negated(noise(2)).is_neg()
    forms = [strided, lambda t: t.t().contiguous().t() if t.dim() == 2 else t, torch.Tensor.to_sparse, lazily_negated]
    for form in forms:
        assert with_gradients(lambda i, g, form=form: form(g), **options).relative_difference(plain) == 0
    halves = with_gradients(lambda i, g: (g / 2).to_sparse() + (g / 2).to_sparse(), **options)  # uncoalesced
    assert halves.relative_difference(plain) <= 1e-12


def test_result_does_not_depend_on_layout_of_parameters():
    def build(form):
        run = Run(LBFGS, network())
        run.params = [form(p.detach()).requires_grad_() for p in run.params]
        run.optimizer = LBFGS(run.params, **WOLFE, max_iter=5)
        return run.run_steps(4)

    assert build(strided).relative_difference(build(torch.clone)) <= 1e-12
    assert not build(strided).params[0].is_contiguous()


@pytest.mark.parametrize("options", [{"lr": 0.3}, WOLFE], ids=["fixed", "wolfe"])
def test_missing_gradient_is_treated_as_zero(options):
    missing = with_gradients(lambda i, g: None if i == 1 else g, **options)
    zero = with_gradients(lambda i, g: torch.zeros_like(g) if i == 1 else g, **options)
    assert missing.relative_difference(zero) == 0
    assert torch.equal(missing.params[1].detach(), network()[0][1])
    assert with_gradients(lambda i, g: None, **options).counts[-1] == (4, 0)


def quartic_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return sum((s * (p - 1) ** 2).sum() + (p**4).sum() / 9 for s, p in ((3.0, a), (0.5, b)))


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("options", [{"lr": 0.1}, WOLFE], ids=["fixed", "wolfe"])
def test_complex_parameters_are_treated_as_their_real_view(options, maximize):
    start = [noise(3, 2), noise(5)]  # 6 real numbers, then an odd number of them
    sign = -1 if maximize else 1
    options = {**options, "maximize": True} if maximize else options

    def build(cls, complex_: bool, conjugated: bool = False):
        params = [torch.view_as_complex(start[0].clone()) if complex_ else start[0].clone(), start[1].clone()]
        params = [p.requires_grad_() for p in params]
        optimizer = cls(params, max_iter=5, **options)

        def closure():
            optimizer.zero_grad()
            loss = sign * quartic_loss(torch.view_as_real(params[0]) if complex_ else params[0], params[1])
            loss.backward()
            if conjugated:
                params[0].grad = params[0].grad.conj().resolve_conj().conj()
                assert params[0].grad.is_conj()
            return loss

        for _ in range(4):
            optimizer.step(closure)
        return [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in params]

    real = build(LBFGS, False)
    others = [build(LBFGS, True), build(LBFGS, True, conjugated=True)]
    others += [build(torch.optim.LBFGS, True)] if HAS_MAXIMIZE or not maximize else []
    for found in others:
        assert max(float((a - b).abs().max()) for a, b in zip(found, real, strict=True)) <= 1e-12
    assert float((real[0] - start[0]).abs().max()) > 0.1


def test_named_parameters_and_generators_are_accepted():
    module = nn.Linear(3, 2)
    optimizer = LBFGS(module.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert len(LBFGS([{"params": (p for p in module.parameters())}]).param_groups[0]["params"]) == 2


# ---------------------------------------------------------------- integration with torch


def test_class_and_signature_are_compatible_with_torch():
    import inspect

    assert issubclass(LBFGS, torch.optim.LBFGS)
    ours, theirs = (inspect.signature(cls).parameters for cls in (LBFGS, torch.optim.LBFGS))
    later = [] if HAS_MAXIMIZE else ["maximize"]
    assert list(ours) == [*theirs, *later]
    assert ours["maximize"].kind is inspect.Parameter.KEYWORD_ONLY
    assert all((ours[k].default, ours[k].kind) == (p.default, p.kind) for k, p in theirs.items())
    defaults = [cls([torch.zeros(1, requires_grad=True)]).defaults for cls in (LBFGS, torch.optim.LBFGS)]
    assert [defaults[0]] == with_maximize([defaults[1]])
    assert LBFGS([torch.zeros(1)], max_iter=1).defaults["max_eval"] == 1


def test_step_hooks_run_once_per_step():
    run = Run(LBFGS, rosenbrock(2), **WOLFE)
    calls: list[str] = []
    before = run.optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    run.optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    run.run_steps(2)
    assert calls == ["before", "after"] * 2
    before.remove()
    run.run_steps(1)
    assert calls[4:] == ["after"]


def test_deleted_optimizer_is_freed_without_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        run = Run(LBFGS, rosenbrock(2), **WOLFE).run_steps(2)
        dropped, kept = weakref.ref(run.optimizer), weakref.ref(run.params[0])
        del run
        assert dropped() is None
        assert kept() is None
    finally:
        gc.enable()


def test_torch_compile_skips_the_step_and_compiles_the_model():
    seen: list[int] = []

    def backend(graph, inputs):
        seen.append(len(inputs))
        return graph.forward

    def run(compiled: bool):
        start, loss = rosenbrock(2)
        run = Run(LBFGS, (start, torch.compile(loss, backend=backend) if compiled else loss), **WOLFE)

        def train():
            run.optimizer.step(
                lambda: run.closure().detach()
            )  # detached, because dynamo reads the gradient of returned tensors

        for _ in range(3):
            (torch.compile(train, backend=backend) if compiled else train)()
            run.points.append(run.flat_parameters())
        return run

    assert run(True).relative_difference(run(False)) <= 1e-12
    assert seen == [1]  # the model's forward, once


# ---------------------------------------------------------------- invalid input


def parameter(*shape: int, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape or (2,), device=device, requires_grad=True)


INVALID_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": -1.0}, HyperparameterError, "Invalid learning rate: -1.0"),
    ({"lr": math.nan}, HyperparameterError, "Invalid learning rate: nan"),
    ({"lr": torch.ones(2)}, HyperparameterError, "Tensor lr must be 1-element"),
    ({"lr": "1e-3"}, HyperparameterTypeError, "LBFGS: lr must be a number, got '1e-3' (str); write 0.001"),
    ({"max_iter": 0}, HyperparameterError, "Invalid max_iter value: 0 (LBFGS: max_iter must be a whole number, at"),
    ({"max_iter": 2.5}, HyperparameterTypeError, "LBFGS: max_iter must be a whole number, at least 1, got 2.5"),
    ({"max_iter": "20"}, HyperparameterTypeError, "LBFGS: max_iter must be a number, got '20'"),
    ({"max_iter": True}, HyperparameterTypeError, "LBFGS: max_iter must be a number, got True"),
    ({"max_eval": 0}, HyperparameterError, "Invalid max_eval value: 0"),
    ({"max_eval": 1.0}, HyperparameterTypeError, "LBFGS: max_eval must be a whole number, at least 1, got 1.0"),
    ({"history_size": 0}, HyperparameterError, "Invalid history_size value: 0"),
    ({"history_size": None}, HyperparameterTypeError, "LBFGS: history_size must be a number, got None"),
    ({"tolerance_grad": math.nan}, HyperparameterError, "Invalid tolerance_grad value: nan"),
    ({"tolerance_change": math.nan}, HyperparameterError, "Invalid tolerance_change value: nan"),
    ({"tolerance_change": "never"}, HyperparameterTypeError, "LBFGS: tolerance_change must be a number, got 'never'"),
    ({"line_search_fn": "strong-wolf"}, LineSearchError, "only 'strong_wolfe' is supported"),
    ({"maximize": 1}, HyperparameterTypeError, "LBFGS: maximize must be True or False, got 1 (int)"),
    ({"maximize": None}, HyperparameterTypeError, "LBFGS: maximize must be True or False, got None"),
]


@pytest.mark.parametrize(("options", "error", "text"), INVALID_OPTIONS, ids=str)
def test_invalid_options_are_rejected_by_constructor_and_in_group(options, error, text):
    for build in (
        lambda: LBFGS([parameter()], **options),
        lambda: LBFGS([], **options),  # options are checked before parameters
        lambda: LBFGS([{"params": [parameter()], **options}]),
    ):
        with pytest.raises(error) as caught:
            build()
        assert str(caught.value).startswith(text)
        assert isinstance(caught.value, OptplugError)


def test_message_begins_with_text_of_torch():
    for options in ({"lr": -1.0}, {"lr": torch.ones(2)}):
        messages = []
        for cls in (torch.optim.LBFGS, LBFGS):
            with pytest.raises(ValueError) as caught:  # noqa: PT011  the texts are compared below
                cls([parameter()], **options)
            messages.append(str(caught.value))
        assert messages[1].startswith(messages[0])


def test_unknown_keyword_suggests_nearest():
    with pytest.raises(TypeError) as caught:
        LBFGS([parameter()], max_itr=3)
    assert isinstance(caught.value, HyperparameterTypeError)
    assert str(caught.value).startswith("LBFGS.__init__() got an unexpected keyword argument 'max_itr'")
    assert "'max_iter'" in str(caught.value)
    with pytest.raises(HyperparameterError, match=r"LBFGS has no option 'max_itr'.*did you mean 'max_iter'"):
        LBFGS([{"params": [parameter()], "max_itr": 3}])


def test_unknown_line_search_is_rejected_by_constructor_and_step():
    with pytest.raises(RuntimeError, match=r"got 'strong-wolf'; did you mean 'strong_wolfe'\?") as caught:
        LBFGS([parameter()], line_search_fn="strong-wolf")
    assert isinstance(caught.value, (LineSearchError, ValueError))
    run = Run(LBFGS, rosenbrock(2))
    run.optimizer.param_groups[0]["line_search_fn"] = "armijo"
    with pytest.raises(LineSearchError, match=r"^only 'strong_wolfe' is supported.*got 'armijo'"):
        run.run_steps(1)
    assert run.optimizer.state[run.params[0]] == {}


def test_options_given_in_the_parameter_group_are_used():
    ours, theirs = (
        Run(functools.partial(lambda cls, ps: cls([{"params": ps, "lr": 0.5, "max_iter": 3}]), cls), rosenbrock(2))
        for cls in (LBFGS, torch.optim.LBFGS)
    )
    assert ours.run_steps(4).relative_difference(theirs.run_steps(4)) == 0
    assert ours.counts[0][1] == 3


def test_second_group_is_rejected():
    text = "LBFGS doesn't support per-parameter options (parameter groups)"
    for cls, error in ((torch.optim.LBFGS, ValueError), (LBFGS, ParameterError)):
        with pytest.raises(error) as caught:
            cls([{"params": [parameter()]}, {"params": [parameter()]}])
        assert str(caught.value).startswith(text)
    optimizer = LBFGS([parameter()])
    with pytest.raises(ParameterError) as caught:
        optimizer.add_param_group({"params": [parameter()]})
    assert str(caught.value).startswith(text)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("wrap", [list, iter, lambda ps: [{"params": iter(ps)}]], ids=["list", "iterator", "group"])
def test_duplicate_parameter_is_rejected_without_warning(wrap, recwarn):
    p = parameter()
    with pytest.raises(ParameterError, match=r"^optimizer contains a parameter group with duplicate parameters"):
        LBFGS(wrap([p, parameter(), p]))
    with pytest.raises(ParameterError, match=r"^optimizer contains a parameter group with duplicate parameters"):
        LBFGS([("a", p), ("b", p)])
    assert not recwarn.list


def test_several_devices_sparse_and_missing_parameters_are_rejected():
    with pytest.raises(ParameterError, match=r"one device; these are on cpu, meta"):
        LBFGS([parameter(), parameter(device="meta")])
    with pytest.raises(ParameterError, match=r"^Sparse params at indices .*: LBFGS requires dense parameter tensors"):
        LBFGS([torch.eye(2).to_sparse().requires_grad_()])
    with pytest.raises(ValueError, match=r"^optimizer got an empty parameter list"):
        LBFGS([])


@pytest.mark.parametrize(
    "params", [[], torch.zeros(1), [3], [(torch.ones(1, requires_grad=True) * 2)], [{"params": {1}}]]
)
def test_invalid_parameters_are_rejected_as_in_torch(params):
    messages = []
    for cls in (torch.optim.LBFGS, LBFGS):
        with pytest.raises(Exception) as caught:  # noqa: PT011  compared with torch's
            cls(copy.copy(params))
        messages.append((caught.type, str(caught.value)))
    assert messages[0] == messages[1]


def test_closure_is_required_and_must_return_the_loss():
    optimizer = LBFGS([parameter()])
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'closure'"):
        optimizer.step()
    with pytest.raises(ConfigTypeError, match="a closure that returns the loss"):
        optimizer.step(lambda: None)


if __name__ == "__main__":
    for name in PROBLEMS:
        for dtype in LIMITS:
            differences = []
            for case, options in CASES.items():
                ours, theirs = run_both(PROBLEMS[name](), dtype, **options)
                spread = max(torch_sensitivity(name, dtype, theirs, **options)[0], 10 * torch.finfo(dtype).eps)
                differences.append((ours.relative_difference(theirs) / spread, ours.relative_difference(theirs), case))
            ratio, difference, case = max(differences)
            print(f"{name:14} {dtype!s:14} {difference:.1e}, {ratio:.1f} times torch's own, at {case}")


def test_class_works_in_the_place_of_torchs():
    # In a new process, because other modules read torch's name when they are imported.
    script = """
import torch, optplug
original = torch.optim.LBFGS
torch.optim.LBFGS = optplug.get_optimizer("lbfgs")
assert issubclass(torch.optim.LBFGS, original)
p = torch.ones(2, requires_grad=True)
optimizer = torch.optim.LBFGS([p], lr=0.5, tolerance_grad=-1)

def closure():
    optimizer.zero_grad()
    loss = (p**2).sum()
    loss.backward()
    return loss

optimizer.step(closure)
from optplug.optim.combined import Combined
try:
    Combined([original([p])])
except optplug.errors.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "LBFGS cannot be combined" in done.stdout, done.stderr


@pytest.mark.parametrize("tolerance", [-1, -math.inf])
@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_negative_tolerances_never_end_a_step(line_search_fn, tolerance):
    options = {"max_iter": 9, "max_eval": 1000, "line_search_fn": line_search_fn}
    never = {"tolerance_grad": tolerance, "tolerance_change": tolerance}
    for cls in (torch.optim.LBFGS, LBFGS):
        ended, endless = (Run(cls, quadratic(), **options, **given) for given in ({}, never))
        for run in (ended, endless):
            for _ in range(5):
                run.optimizer.step(run.closure)
        counts = [run.optimizer.state[run.params[0]]["n_iter"] for run in (ended, endless)]
        assert counts[0] < counts[1] == 45
