"""Rules that use rows and columns of matrices: reductions with `dim`, states with `dim`, and states of some shapes."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from optplug import RuleOptimizer, State
from optplug.errors import (
    BranchingError,
    EngineError,
    HyperparameterError,
    ParameterError,
    RuleError,
    SparseGradientError,
)
from optplug.ops import amax, dot, lerp, maximum, mean, norm, numel, sqrt, sum, where

ENGINES = ("loop", "foreach", "numba")
SHAPES = [(4, 3), (1, 5), (5, 1), (1, 1), (2, 3, 4), (3, 1, 2, 5), (5, 7, 1, 1), (70, 300), (0, 4), (4, 0), (2, 0, 3)]
OPERATIONS = ("sum", "dot", "norm", "amax", "mean", "numel")


def noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def expected(op: str, p: torch.Tensor, g: torch.Tensor, dim: int) -> torch.Tensor:
    """What a reduction along a dimension must give, computed with torch."""
    if op == "numel":
        return torch.full_like(g.sum(dim, keepdim=True), g.shape[dim])
    if op == "amax":
        return g.amax(dim, keepdim=True) if g.shape[dim] else g.sum(dim, keepdim=True) - math.inf
    values = {"sum": g, "mean": g, "dot": p * g, "norm": g * g}[op]
    total = values.sum(dim, keepdim=True)
    return {"mean": total / g.shape[dim] if g.shape[dim] else total * math.nan, "norm": total.sqrt()}.get(op, total)


def reduced(op: str, p: Any, g: Any, dim: int) -> Any:
    """The same in a rule."""
    if op == "numel":
        return sum(0.0 * g, dim=dim) + numel(g, dim=dim)
    return dot(p, g, dim=dim) if op == "dot" else {"sum": sum, "norm": norm, "amax": amax, "mean": mean}[op](g, dim=dim)


@functools.cache
def reducer(op: str, dim: int) -> type[RuleOptimizer]:
    """An optimizer whose state is a reduction, and that subtracts the state from the parameter."""

    class Reducer(RuleOptimizer):
        states = (State("result", dim=dim),)
        capabilities = frozenset()

        def __init__(self, params, lr=1.0, **options):
            super().__init__(params, {"lr": lr}, **options)

        @staticmethod
        def rule(p, g, result, *, lr):
            result = reduced(op, p, g, dim)
            return p - lr * result, result

    return Reducer


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("op", OPERATIONS)
def test_reductions_equal_those_of_torch(op, dim, engine):
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        params = [noise(shape, i, dtype).requires_grad_() for i, shape in enumerate(SHAPES)]
        for i, p in enumerate(params):
            p.grad = noise(p.shape, 100 + i, dtype)
        before = [p.detach().clone() for p in params]
        optimizer = reducer(op, dim)(params, engine=engine)
        optimizer.step()
        for p, old in zip(params, before, strict=True):
            wanted = expected(op, old.double(), p.grad.double(), dim)
            torch.testing.assert_close(
                optimizer.state[p]["result"].double(), wanted, rtol=limit, atol=limit, equal_nan=True
            )
            torch.testing.assert_close(p.detach().double(), old.double() - wanted, rtol=limit, atol=limit)


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("op", OPERATIONS)
def test_memory_layout_has_no_effect(op, dim):
    layouts = {
        "transposed": lambda t: t.mT.contiguous().mT,
        "with gaps": lambda t: torch.stack([t, t], -1)[..., 0],
        "expanded": lambda t: t[..., :1].expand(t.shape),
    }
    for what, layout in layouts.items():
        for engine in ("loop", "foreach", "auto"):
            results = []
            for contiguous in (False, True):
                p = layout(noise((2, 4, 3), 1)).clone().requires_grad_()
                g = layout(noise((2, 4, 3), 2))
                p.grad = g.contiguous() if contiguous else g
                optimizer = reducer(op, dim)([p], engine=engine)
                optimizer.step()
                results.append((p.detach(), optimizer.state[p]["result"]))
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13, msg=f"{what}, {engine}")


class Factored(RuleOptimizer):
    """Uses values of all kinds: per row, column, matrix and parameter."""

    states = (
        State("step", scalar=True),
        State("row", dim=-1),
        State("column", dim=-2, init=0.5),
        State("matrix_mean", matrices=True),
        State("whole", matrices=False),
    )
    capabilities = frozenset()

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, {"lr": lr}, **options)

    @staticmethod
    def rule(p, g, step, row, column, matrix_mean, whole, *, lr):
        step = step + 1
        if row is None:
            whole = lerp(whole, g * g, 1 / step)
            return p - lr * g / (norm(g) + sqrt(whole)), step, None, None, None, whole
        row = row + mean(g * g, dim=-1)
        column = maximum(column, amax(g, dim=-2))
        total = sum(row, dim=-2) + mean(mean(g, dim=-1), dim=-2) * norm(p)
        matrix_mean = where(g > mean(row, dim=-2), row, column) + total
        return p - lr / step * (row * column + matrix_mean), step, row, column, matrix_mean, None


FACTORED_SHAPES = ((4, 3), (5,), (2, 3, 4), (), (1, 6), (6, 1), (3, 3, 1, 1))


def by_hand(p: torch.Tensor, gradients: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Steps of `Factored` in plain torch."""
    row, column, mixed, whole = torch.zeros(1), torch.tensor(0.5), p, torch.zeros_like(p)
    for step, g in enumerate(gradients, 1):
        if p.ndim < 2:
            whole = whole + (g * g - whole) / step
            p = p - 0.1 * g / (g.square().sum().sqrt() + whole.sqrt())
        else:
            row = row + (g * g).mean(-1, keepdim=True)
            column = torch.maximum(column, g.amax(-2, keepdim=True))
            total = row.sum(-2, keepdim=True) + g.mean((-1, -2), keepdim=True) * p.norm()
            mixed = torch.where(g > row.mean(-2, keepdim=True), row, column) + total
            p = p - 0.1 / step * (row * column + mixed)
    return {"p": p, "whole": whole} if p.ndim < 2 else {"p": p, "row": row, "column": column, "matrix_mean": mixed}


def run(engine: str, steps: int = 5, dtype: torch.dtype = torch.float64, shapes: Any = FACTORED_SHAPES, **options: Any):
    params = [noise(shape, i, dtype).requires_grad_() for i, shape in enumerate(shapes)]
    return continued(Factored(params, engine=engine, **options), 0, steps)


def continued(optimizer: RuleOptimizer, start: int, stop: int) -> RuleOptimizer:
    for step in range(start, stop):
        for i, p in enumerate(all_params(optimizer)):
            p.grad = noise(p.shape, 10 * step + i + 50, p.dtype)
        optimizer.step()
    return optimizer


def all_params(optimizer: RuleOptimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def assert_equal_results(a: RuleOptimizer, b: RuleOptimizer, limit: float = 0.0) -> None:
    for p, q in zip(all_params(a), all_params(b), strict=True):
        assert a.state[p].keys() == b.state[q].keys()
        for key, value in {"p": p, **a.state[p]}.items():
            torch.testing.assert_close(value, q if key == "p" else b.state[q][key], rtol=limit, atol=limit)


@pytest.mark.parametrize("engine", ENGINES)
def test_both_kinds_of_parameters_in_one_group_equal_plain_torch(engine):
    optimizer = run(engine)
    for i, (p, shape) in enumerate(zip(all_params(optimizer), FACTORED_SHAPES, strict=True)):
        wanted = by_hand(noise(shape, i), [noise(shape, 10 * step + i + 50) for step in range(5)])
        assert optimizer.state[p].keys() | {"p"} == wanted.keys() | {"step"}
        for key, value in wanted.items():
            ours = p.detach() if key == "p" else optimizer.state[p][key]
            torch.testing.assert_close(ours, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_report_before_and_after_the_first_step(engine):
    params = [noise(shape, i).requires_grad_() for i, shape in enumerate(FACTORED_SHAPES)]
    optimizer = Factored(params, engine=engine)
    before = optimizer.engine_report()
    after = continued(optimizer, 0, 1).engine_report()
    for reports, ran in ((before, False), (after, True)):
        assert [(r.engine, r.tensors, r.elements, r.ran) for r in reports] == [
            (engine, 5, 57, ran),
            (engine, 2, 6, ran),
        ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["state dict", "deepcopy", "pickle"])
def test_copies_continue(how, engine):
    optimizer = run(engine, 3)
    if how == "state dict":
        other = Factored([p.detach().clone().requires_grad_() for p in all_params(optimizer)], engine=engine)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        other = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    assert_equal_results(continued(other, 3, 6), continued(optimizer, 3, 6))


@pytest.mark.parametrize("engine", ENGINES)
def test_share_memory_creates_the_states_of_both_kinds(engine):
    optimizer = run(engine, 0)
    optimizer.share_memory()
    for p in all_params(optimizer):
        names = {"step", "whole"} if p.ndim < 2 else {"step", "row", "column", "matrix_mean"}
        assert optimizer.state[p].keys() == names
        assert all(optimizer.state[p][key].is_shared() for key in names - {"step"})
    assert_equal_results(continued(optimizer, 0, 3), run(engine, 3))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shapes", [((4, 3), (2, 2)), ((5,), ()), ((5,), (4, 3))], ids=str)
def test_groups_with_one_kind_and_added_groups(shapes, engine):
    optimizer = run(engine, 2, shapes=shapes)
    added = noise((3, 2), 7).requires_grad_(), noise((3,), 8).requires_grad_()
    optimizer.add_param_group({"params": added})
    kinds = len({len(shape) >= 2 for shape in shapes})
    assert [(r.group, r.tensors) for r in optimizer.engine_report()] == [(0, 2 // kinds)] * kinds + [(1, 1)] * 2
    continued(optimizer, 2, 5)
    oracle = run("loop", 2, shapes=shapes)
    oracle.add_param_group({"params": [noise((3, 2), 7).requires_grad_(), noise((3,), 8).requires_grad_()]})
    assert_equal_results(optimizer, continued(oracle, 2, 5), 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_may_disappear_and_come_back(engine):
    """The step counts within a kind then differ, and cached buckets become invalid."""
    optimizers = [run(name, 0) for name in (engine, "loop")]
    for step in range(12):
        for optimizer in optimizers:
            for i, p in enumerate(all_params(optimizer)):
                absent = (step in (2, 3) and p.ndim >= 2) or (step == 5 and p.ndim < 2) or (step + i) % 4 == 0
                p.grad = None if absent and step < 9 else noise(p.shape, 10 * step + i)
            optimizer.step()
    assert len({float(s["step"]) for s in optimizers[0].state.values()}) > 2
    assert_equal_results(*optimizers, 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_first_step_is_detected_for_each_parameter(engine):
    class Counted(Factored):
        @staticmethod
        def rule(p, g, step, row, column, matrix_mean, whole, *, lr, first):
            if row is None:
                return p - lr * first * g, step + 1, None, None, None, whole
            return p - lr * first * g, step + 1, row, column, matrix_mean, None

    params = [torch.ones(shape).requires_grad_() for shape in ((2, 2), (3,), (2, 3), (4,))]
    optimizer = Counted(params, lr=1.0, engine=engine)
    for step in range(4):
        for i, p in enumerate(params):
            p.grad = torch.ones_like(p) if i <= step else None
        optimizer.step()
        assert [bool((p == 0).all()) for p in params] == [i <= step for i in range(4)]


def test_lazy_parameters_are_split_after_their_shape_is_known():
    torch.manual_seed(0)
    model = nn.LazyLinear(3)
    optimizer = Factored(model.parameters())
    assert optimizer.engine_report() == []
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert {tuple(p.shape): sorted(optimizer.state[p]) for p in model.parameters()} == {
        (3, 4): ["column", "matrix_mean", "row", "step"],
        (3,): ["step", "whole"],
    }


@pytest.mark.parametrize(
    ("key", "shape"), [("row", (4, 3)), ("row", (1, 3)), ("column", (4, 1)), ("row", (4,)), ("matrix_mean", (4, 1))]
)
def test_state_dict_with_wrong_shapes_is_refused(key, shape):
    saved = run("loop", 1, shapes=((4, 3), (5,))).state_dict()
    saved["state"][0][key] = torch.zeros(shape)
    with pytest.raises(ParameterError, match=f"{key} of parameter 0 in the state dict has shape"):
        run("loop", 0, shapes=((4, 3), (5,))).load_state_dict(saved)


def test_state_dict_with_the_states_of_the_other_kind_is_refused():
    saved = run("loop", 1, shapes=((4, 3), (5,))).state_dict()
    saved["state"] = {0: saved["state"][1], 1: saved["state"][0]}
    with pytest.raises(HyperparameterError, match="keeps column, matrix_mean, row, step"):
        run("loop", 0, shapes=((4, 3), (5,))).load_state_dict(saved)


def test_states_of_the_other_kind_in_a_state_dict_are_ignored():
    saved = run("loop", 3, shapes=((4, 3), (5,)))
    changed = copy.deepcopy(saved.state_dict())
    changed["state"][0]["whole"] = None
    changed["state"][1]["row"] = torch.zeros(5, 1)
    other = Factored([p.detach().clone().requires_grad_() for p in all_params(saved)])
    other.load_state_dict(changed)
    for p, q in zip(all_params(continued(other, 3, 5)), all_params(continued(saved, 3, 5)), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("engine", ENGINES)
def test_replaced_state_of_a_wrong_shape_never_writes_out_of_bounds(engine):
    optimizer = run(engine, 2, shapes=((6, 4), (5,)))
    p = all_params(optimizer)[0]
    memory = torch.zeros(100, dtype=torch.float64)
    optimizer.state[p]["row"] = memory[:2].view(2, 1)
    with pytest.raises((RuntimeError, EngineError)):
        continued(optimizer, 2, 3)
    assert not memory[2:].any()


@pytest.mark.parametrize("engine", ["foreach", "auto"])
def test_replaced_states_of_another_dtype_are_used(engine):
    results = []
    for name in (engine, "loop"):
        optimizer = run(name, 2)
        for p in all_params(optimizer):
            if p.ndim >= 2:
                optimizer.state[p]["row"] = optimizer.state[p]["row"].float()
        results.append(continued(optimizer, 2, 4))
    for p, q in zip(*map(all_params, results), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert "row" not in results[0].state[p] or results[0].state[p]["row"].dtype is torch.float32


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_with_float32_states(dtype, engine):
    ours = run(engine, 5, dtype, state_dtype=torch.float32, lr=1e-3)
    exact = run("loop", 0, lr=1e-3)
    for p, q in zip(all_params(exact), all_params(run("loop", 0, dtype)), strict=True):
        p.data = q.detach().double()
    for step in range(5):
        for i, p in enumerate(all_params(exact)):
            p.grad = noise(p.shape, 10 * step + i + 50, dtype).double()
        exact.step()
    for p, q in zip(all_params(ours), all_params(exact), strict=True):
        assert {v.dtype for v in ours.state[p].values()} == {torch.float32}
        torch.testing.assert_close(p.detach().double(), q.detach(), rtol=3e-2, atol=3e-2)


# ------------------------------------------------------------------------------------------------- errors


def step_of(rule: Any, *states: State, engine: str = "auto", shape: tuple[int, ...] = (3, 2)) -> None:
    """Step a rule once."""

    class Tested(RuleOptimizer):
        capabilities = frozenset()

        def __init__(self, params, lr=1.0, **options):
            super().__init__(params, {"lr": lr}, **options)

    Tested.states, Tested.rule = states, staticmethod(rule)
    p = torch.ones(shape).requires_grad_()
    p.grad = torch.ones(shape)
    Tested([p], engine=engine).step()


def rule_of(compute: Any) -> Any:
    def rule(p, g, *, lr):
        return p - lr * compute(p, g)

    return rule


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda p, g: sum(g, dim=-1, over="group"), "sum got over and dim"),
        (lambda p, g: amax(g, dim=0), "amax got dim=0; it may be -1 or -2"),
        (lambda p, g: norm(g, dim=1), "norm got dim=1; it may be -1 or -2"),
        (lambda p, g: g / numel(g, dim=1), "numel got dim=1; it may be -1, -2 or 0"),
        (lambda p, g: sum(1.0, dim=-1) * g, "needs element-wise values"),
    ],
)
def test_invalid_dim_raises(compute, message, engine):
    with pytest.raises((RuleError, EngineError), match=message):
        step_of(rule_of(compute), engine=engine)


@pytest.mark.parametrize("engine", ["foreach", "numba"])
@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda p, g: mean(mean(g, dim=-1), dim=-1), "reduced along this dimension"),
        (lambda p, g: sum(sum(g, dim=-2), dim=-2), "reduced along this dimension"),
        (lambda p, g: sum(mean(mean(g, dim=-1), dim=-2), dim=-1), "reduced along this dimension"),
        (lambda p, g: sum(norm(g), dim=-1) * g, "a scalar cannot be reduced"),
        (lambda p, g: sum(g > 0, dim=-1) * g, "got a condition"),
        (lambda p, g: mean(g, dim=-1) ** 3 * g, "power 2 only"),
    ],
)
def test_values_that_cannot_be_reduced_raise(compute, message, engine):
    with pytest.raises(EngineError, match=message):
        step_of(rule_of(compute), engine=engine)


@pytest.mark.parametrize(
    ("value", "returned", "state"),
    [
        (lambda g: mean(g, dim=-2), "one number per column", "one number per row"),
        (lambda g: g, "an element-wise value", "one number per row"),
        (lambda g: norm(g), "one number per parameter", "one number per row"),
        (lambda g: mean(mean(g, dim=-1), dim=-2), "one number per matrix", "one number per row"),
    ],
)
def test_state_of_another_kind_raises(value, returned, state):
    def rule(p, g, row, *, lr):
        return p - lr * g, value(g)

    with pytest.raises(EngineError, match=f"returned {returned} for 'row', which is {state}"):
        step_of(rule, State("row", dim=-1), engine="foreach")


def test_row_for_the_parameter_raises():
    with pytest.raises(EngineError, match="returned one number per row for 'p'"):
        step_of(lambda p, g, *, lr: mean(g, dim=-1), engine="foreach")


@pytest.mark.parametrize("shape", [(3,), ()], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_parameter_without_rows_raises(shape, engine):
    with pytest.raises(ParameterError, match="is not a matrix"):
        step_of(rule_of(lambda p, g: g - mean(g, dim=-1)), engine=engine, shape=shape)


def test_branch_on_a_row_raises():
    def rule(p, g, *, lr):
        return p - lr * g if mean(g, dim=-1) > 0 else p

    with pytest.raises(BranchingError):
        step_of(rule)


def test_complex_and_sparse_are_refused():
    class Complex(Factored):
        capabilities = frozenset({"complex"})

    class Sparse(Factored):
        capabilities = frozenset({"sparse"})

    for cls, what in ((Complex, "complex parameters"), (Sparse, "sparse gradients")):
        with pytest.raises(RuleError, match=f"rows and columns does not support {what}"):
            cls([torch.zeros(2, 2, requires_grad=True)])
    with pytest.raises(ParameterError, match="Factored does not support complex parameters"):
        Factored([torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True)])


def test_sparse_gradients_are_refused():
    p = torch.ones(3, 2).requires_grad_()
    p.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(SparseGradientError, match="Factored does not support sparse gradients"):
        Factored([p]).step()


def test_numel_of_a_dimension_in_a_rule_of_numbers():
    assert numel(torch.zeros(3, 5), dim=-1) == 5.0
    assert numel(torch.zeros(3, 5), dim=-2) == 3.0
