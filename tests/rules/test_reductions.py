"""Reductions in rules: each compared with torch in float64, over several parameters, and in scalar states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from optplug import RuleOptimizer, State, ops
from optplug.engines import ENGINES
from optplug.errors import RuleError
from optplug.rules.trace import RuleVariant, trace
from optplug.testing.checks import save_and_load

REDUCING_ENGINES = [engine.name for engine in ENGINES if engine.reduces or not engine.runs_graph]
OWN_VALUE = State("value", scalar=True)
VALUE = State("value", scalar=True, shared=True)
"""A float64 number, in which a rule returns its reduction."""

OPS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda p, g: ops.sum(g),
    "dot": lambda p, g: ops.dot(p, g),
    "norm": lambda p, g: ops.norm(g),
    "amax": lambda p, g: ops.amax(g),
    "mean": lambda p, g: ops.mean(g),
    "numel": lambda p, g: ops.numel(g) + 0 * ops.sum(p),
    "sum of a computed value": lambda p, g: ops.sum(ops.abs(g - 2 * p)),
}
EXPECTED: dict[str, Callable[[Tensor, Tensor], float]] = {
    "sum": lambda p, g: math.fsum(g.tolist()),
    "dot": lambda p, g: math.fsum((p * g).tolist()),
    "norm": lambda p, g: math.sqrt(math.fsum((g * g).tolist())),
    "amax": lambda p, g: max(g.tolist(), default=-math.inf),
    "mean": lambda p, g: math.fsum(g.tolist()) / g.numel() if g.numel() else math.nan,
    "numel": lambda p, g: g.numel(),
    "sum of a computed value": lambda p, g: math.fsum((g - 2 * p).abs().tolist()),
}
LAYOUTS: dict[str, Callable[[torch.dtype], Tensor]] = {
    "0-dim": lambda dtype: noise((), dtype),
    "empty": lambda dtype: noise((0, 3), dtype),
    "one element": lambda dtype: noise((1, 1), dtype),
    "matrix": lambda dtype: noise((5, 3), dtype),
    "transposed": lambda dtype: noise((70, 30), dtype).t(),
    "with gaps": lambda dtype: noise((40, 12), dtype)[:, ::3],
    "channels last": lambda dtype: noise((2, 3, 4, 5), dtype).to(memory_format=torch.channels_last),
    "one block and one element": lambda dtype: noise((2**15 + 1,), dtype),
    "many blocks": lambda dtype: noise((37, 5003), dtype),
}
UNITS = {
    torch.float64: 1e-14,
    torch.float32: 1e-7,
    torch.bfloat16: 1e-2,
    torch.complex64: 1e-7,
    torch.complex128: 1e-14,
}
"""The allowed error in units of the sum of absolute values. Computed values are rounded to the dtype."""


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def reals(t: Tensor) -> Tensor:
    """The elements in float64, the parts of complex numbers as two."""
    return (torch.view_as_real(t) if t.is_complex() else t).detach().to(torch.float64).flatten()


def optimizer(rule: Any, params: Any, states: tuple[State, ...] = (VALUE,), **options: Any) -> RuleOptimizer:
    """An optimizer of a class with this rule and the hyperparameters lr and weight."""

    class Tested(RuleOptimizer):
        def __init__(self, params: Any, lr: float = 0.1, weight: float = 0.5, flag: bool = False, **options: Any):
            super().__init__(params, {"lr": lr, "weight": weight, "flag": flag}, **options)

    Tested.states, Tested.rule = states, staticmethod(rule)
    return Tested(params, **options)


def leaf(t: Tensor, grad: Tensor | None = None) -> Tensor:
    p = t.detach().requires_grad_()
    p.grad = grad
    return p


@pytest.fixture(params=REDUCING_ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def reduced(op: str, p: Tensor, g: Tensor, engine: str) -> float:
    """The reduction that a rule computes of a parameter and its gradient, as a state in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        param = leaf(p, g)
        tested = optimizer(lambda p, g, value: (p, OPS[op](p, g)), [param], (OWN_VALUE,), engine=engine)
        tested.step()
        return float(tested.state[param]["value"])
    finally:
        torch.set_default_dtype(before)


# ------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_reductions_equal_those_of_torch_in_float64(op, dtype, engine):
    for layout, make in LAYOUTS.items():
        p, g = make(dtype), make(dtype) * 0.5 + 1
        if engine == "numba" and layout == "with gaps":
            p, g = p.contiguous(), g.contiguous()
        expected, size = (
            EXPECTED[op](reals(p), reals(g)),
            float(reals(g).abs().sum() + (reals(p) * reals(g)).abs().sum()),
        )
        value = reduced(op, p, g, engine)
        unit = UNITS[torch.float64] if op in ("sum", "norm", "amax", "mean", "numel") else UNITS[dtype]
        assert value == pytest.approx(expected, rel=1e-14, abs=unit * size, nan_ok=True), layout


@pytest.mark.parametrize("size", [1, 7, 2**15 + 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_nan_and_infinity_propagate(dtype, size, engine):
    for where in (0, size // 2, size - 1):
        p, g = torch.ones(size, dtype=dtype), torch.ones(size, dtype=dtype)
        g[where] = math.inf
        assert [reduced(op, p, g, engine) for op in ("sum", "dot", "norm", "amax", "mean")] == [math.inf] * 5
        g[where] = -math.inf
        assert [reduced(op, p, g, engine) for op in ("sum", "norm")] == [-math.inf, math.inf]
        assert reduced("amax", p, g, engine) == (1.0 if size > 1 else -math.inf)
        g[where] = math.nan
        assert all(math.isnan(reduced(op, p, g, engine)) for op in ("sum", "dot", "norm", "amax", "mean"))


def test_infinities_of_both_signs_sum_to_nan(engine):
    g = torch.tensor([math.inf, 1.0, -math.inf])
    assert math.isnan(reduced("sum", torch.ones(3), g, engine))
    assert reduced("norm", torch.ones(3), g, engine) == math.inf


def test_sum_of_bfloat16_and_float32_is_not_rounded_on_the_way(engine):
    for dtype in (torch.bfloat16, torch.float32):
        g = torch.full((2**20,), 1.0, dtype=dtype)
        assert reduced("sum", g, g, engine) == 2**20  # in bfloat16 a running sum ends at 256
        big = torch.tensor([2.0**26, 1.0, -(2.0**26)] * 1000, dtype=dtype)
        assert reduced("sum", big, big, engine) == 1000.0


@pytest.mark.parametrize("is_first", [True, False])
def test_tensor_scalars_mix_with_scalars_and_elements(is_first, engine):
    """Also conditions of scalars only, for parameters with equal and with different scalar states."""

    def rule(p, g, step, *, lr, weight):
        size = ops.norm(g)
        bounded = ops.where(step == 0, size, ops.minimum(size, weight))
        chosen = ops.where((size > 1) & (step == 0) | ~(size > 0.01), bounded, -ops.lerp(size, weight, 0.25))
        return p - lr * ops.maximum(g * chosen, weight), step + 1

    params = [
        leaf(noise((n,), torch.float64, n), noise((n,), torch.float64, 9 + n) * s) for n, s in ((3, 1), (4, 0.01))
    ]
    tested = optimizer(rule, params, (State("step", scalar=True),), engine=engine)
    expected = []
    for p in params:
        if not is_first:
            tested.state[p]["step"] = torch.tensor(float(len(p) - 3))
        step, size, weight = (0 if is_first else len(p) - 3), float(p.grad.norm()), 0.5
        bounded = size if step == 0 else min(size, weight)
        chosen = bounded if (size > 1 and step == 0) or not size > 0.01 else -(size + 0.25 * (weight - size))
        expected.append(p.detach() - 0.1 * torch.clamp(p.grad * chosen, min=weight))
    tested.step()
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-13, atol=0)


# ------------------------------------------------------------------ several parameters


def test_over_combines_groups_buckets_and_skips_parameters_without_gradient(engine):
    dtypes = [[torch.float64, torch.float32], [torch.float32, torch.float32, torch.bfloat16]]
    groups = [[leaf(noise((3 + i,), d, i), noise((3 + i,), d, 50 + i)) for i, d in enumerate(ds)] for ds in dtypes]
    groups[1][1].grad = None
    names = ("own", "group", "top")

    def rule(p, g, own, group, top, value):
        return p, ops.sum(g), ops.sum(g, over="group"), ops.amax(g, over="group"), ops.norm(g, over="optimizer")

    states = (*(State(name, scalar=True) for name in names), VALUE)
    tested = optimizer(rule, [{"params": params} for params in groups], states, engine=engine)
    tested.step()
    stepped = [[p for p in params if p.grad is not None] for params in groups]
    every = torch.cat([reals(p.grad) for params in stepped for p in params])
    assert [group["value"] for group in tested.param_groups] == [pytest.approx(float(every.norm()), rel=1e-14)] * 2
    for params in stepped:
        together = torch.cat([reals(p.grad) for p in params])
        for p in params:
            expected = [float(reals(p.grad).sum()), float(together.sum()), float(together.amax())]
            assert [float(tested.state[p][name]) for name in names] == pytest.approx(expected, rel=1e-6)
    assert groups[1][1] not in tested.state


def test_gradients_of_one_step_only_are_combined(engine):
    params = [leaf(torch.ones(2), torch.ones(2)), leaf(torch.ones(3), torch.ones(3))]
    tested = optimizer(lambda p, g, value: (p, ops.sum(g, over="optimizer")), params, engine=engine)
    for absent, expected in ((None, 5.0), (0, 3.0), (1, 2.0), (None, 5.0)):
        for i, p in enumerate(params):
            p.grad = None if i == absent else torch.ones_like(p)
        tested.step()
        assert tested.param_groups[0]["value"] == expected


def test_reductions_depend_on_each_other_and_on_written_states(engine):
    """A later reduction uses an earlier one, over all parameters, and states that are written before."""

    def rule(p, g, s, value, *, lr):
        mean = ops.sum(g, over="optimizer") / ops.sum(ops.abs(p), over="optimizer")
        s = s + g * mean
        deviation = ops.norm(s - p / ops.norm(p), over="optimizer")
        return p - lr * s / deviation, s, deviation

    params = [leaf(noise((n,), torch.float64, n), noise((n,), torch.float64, 9 + n)) for n in (3, 4, 40000)]
    tested = optimizer(rule, [{"params": params[:1]}, {"params": params[1:]}], (State("s"), VALUE), engine=engine)
    starts, s = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    for _ in range(3):
        mean = sum(p.grad.sum() for p in params) / sum(p.abs().sum() for p in starts)
        s = [x + p.grad * mean for x, p in zip(s, params, strict=True)]
        deviation = torch.cat([x - p / p.norm() for x, p in zip(s, starts, strict=True)]).norm()
        starts = [p - 0.1 * x / deviation for x, p in zip(s, starts, strict=True)]
        tested.step()
        for p, q in zip(params, starts, strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-14)
        assert tested.param_groups[0]["value"] == pytest.approx(float(deviation), rel=1e-12)


@pytest.mark.usefixtures("threads")
def test_results_do_not_depend_on_the_number_of_threads(engine):
    def rule(p, g, s, total, value, *, lr):
        s = s + g * ops.mean(p)
        size = ops.norm(s, over="optimizer")
        step = lr * ops.norm(p) / (ops.norm(g) + size)
        return p - step * s, s, ops.dot(s, g), size + ops.amax(g, over="optimizer")

    results = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        shapes = ((3,), (70001,), (1000, 301), (2**16,), (2**15,), (11,))
        params = [
            leaf(noise(shape, dtype, i), noise(shape, dtype, 20 + i))
            for i, (shape, dtype) in enumerate(zip(shapes, [torch.float32, torch.float64] * 3, strict=True))
        ]
        states = (State("s"), State("total", scalar=True), VALUE)
        tested = optimizer(rule, params, states, engine=engine)
        for _ in range(3):
            tested.step()
        results.append([*params, *(tested.state[p]["total"] for p in params), tested.param_groups[0]["value"]])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


# ---------------------------------------------------------------------- scalar states


def test_scalar_states_from_reductions_are_saved_and_loaded(engine):
    def rule(p, g, total, value, *, lr):
        total, value = total + ops.norm(g), ops.maximum(value, ops.sum(p, over="optimizer"))
        return p - lr * total * value * g, total, value

    def make(values: list[Tensor]) -> tuple[list[Tensor], RuleOptimizer]:
        params = [leaf(v.clone()) for v in values]
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        return params, optimizer(rule, groups, (State("total", scalar=True), VALUE), engine=engine)

    def take_steps(params: list[Tensor], tested: RuleOptimizer, steps: range) -> None:
        for step in steps:
            for i, p in enumerate(params):
                p.grad = None if i == 1 and step < 2 else noise(tuple(p.shape), p.dtype, 10 * step + i)
            tested.step()

    params, tested = make([noise((n,), torch.float32, n) for n in (3, 4, 5)])
    take_steps(params, tested, range(3))
    resumed_params, resumed = make(params)
    resumed.load_state_dict(save_and_load(tested.state_dict()))
    assert resumed.param_groups[1]["value"] == tested.param_groups[0]["value"] != 0.0
    for p, q in zip(params, resumed_params, strict=True):
        assert torch.equal(resumed.state[q]["total"], tested.state[p]["total"])
    take_steps(params, tested, range(3, 6))
    take_steps(resumed_params, resumed, range(3, 6))
    for p, q in zip(params, resumed_params, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(resumed.state[q]["total"], tested.state[p]["total"])
        assert float(tested.state[p]["total"]) != float(params[0].new_zeros(()))
    assert resumed.param_groups[0]["value"] == tested.param_groups[0]["value"]


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda p, g, *, lr: p - ops.sum(lr) * g, "needs element-wise values"),
        (lambda p, g, *, lr: p - ops.norm(2.0) * g, "needs element-wise values"),
        (lambda p, g, *, lr: p - ops.dot(g, ops.sum(g)) * g, "needs element-wise values"),
        (lambda p, g, *, lr: p - ops.amax(ops.norm(g)) * g, "needs element-wise values"),
        (lambda p, g, *, lr: p - ops.sum(g > 0) * g, "got a condition"),
        (lambda p, g, *, lr: p - ops.sum(g, over="groups") * g, "over='groups'; did you mean 'group'"),
        (lambda p, g, *, lr: p - ops.amax(g, over="world") * g, "it may be group, optimizer"),
    ],
)
def test_wrong_operands_are_rejected(rule, message):
    traced = trace(RuleVariant(rule), (("lr", 0),))
    assert isinstance(traced, RuleError)
    assert message in str(traced)


def test_unknown_scope_is_rejected_on_tensors_too():
    with pytest.raises(RuleError, match="over='world'"):
        ops.sum(torch.ones(2), over="world")
    with pytest.raises(RuleError, match="needs element-wise values"):
        ops.sum(2.0)


def test_different_order_of_shared_reductions_is_rejected(engine):
    def rule(p, g, *, lr, flag=False):
        if flag:
            total, top = ops.sum(g, over="optimizer"), ops.amax(g, over="optimizer")
        else:
            top, total = ops.amax(p, over="optimizer"), ops.sum(p, over="optimizer")
        return p - lr * total * top * g

    groups = [{"params": [leaf(torch.ones(2), torch.ones(2))], "flag": flag} for flag in (True, False)]
    with pytest.raises(RuleError, match="same order"):
        optimizer(rule, groups, (), engine=engine).step()


def test_different_number_of_shared_reductions_is_rejected(engine):
    def rule(p, g, *, lr, flag=False):
        return p - lr * (ops.sum(g, over="optimizer") if flag else 1.0) * g

    groups = [{"params": [leaf(torch.ones(2), torch.ones(2))], "flag": flag} for flag in (True, False)]
    with pytest.raises(RuleError, match="reduces over several parameters 0, 1 times"):
        optimizer(rule, groups, (), engine=engine).step()

    def reduces_once_or_twice(p, g, *, lr, flag=False):
        total = ops.sum(g, over="optimizer")
        return p - lr * (total + ops.sum(g * total, over="optimizer") if flag else total) * g

    with pytest.raises(RuleError, match="reduces over several parameters 1, 2 times"):
        optimizer(reduces_once_or_twice, groups, (), engine=engine).step()
