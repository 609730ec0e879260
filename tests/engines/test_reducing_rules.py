"""Reducing rules on all engines: values that cross segments in 16 bits, the order of shared reductions, and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optplug import RuleOptimizer, State, create_optimizer, ops
from optplug.errors import OptplugError, ParameterError, RuleError

ENGINES = ("loop", "foreach", "numba")
ALL = "optimizer"


def make(
    rule: Callable[..., Any], *states: State, complex_: bool = False, **hyperparameters: Any
) -> type[RuleOptimizer]:
    def init(self: RuleOptimizer, params: Any, lr: float = 0.1, **options: Any) -> None:
        RuleOptimizer.__init__(self, params, {"lr": lr, **hyperparameters}, **options)

    capabilities = frozenset({"complex"} if complex_ else ())
    body = {"__init__": init, "states": states, "rule": staticmethod(rule), "capabilities": capabilities}
    return type("Custom", (RuleOptimizer,), body)


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(5)
    params = [Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
    return params


def steps(optimizer: RuleOptimizer, count: int = 3) -> list[Tensor]:
    for _ in range(count):
        optimizer.step()
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("dtype", "state_dtype"), [(torch.float16, None), (torch.float32, torch.float16), (torch.bfloat16, None)]
)
def test_lamb_moves_by_the_learning_rate_in_16_bits(engine: str, dtype: torch.dtype, state_dtype: torch.dtype | None):
    """The second moments underflow in float16 when they are stored; the norm and the update must both not notice."""
    p = Parameter(torch.ones(1000, dtype=dtype))
    p.grad = (1e-3 * torch.linspace(0.5, 1.5, 1000)).to(dtype)
    create_optimizer("lamb", [p], lr=0.01, weight_decay=0.0, engine=engine, state_dtype=state_dtype).step()
    moved = float((p.detach().double() - 1).norm() / 1000**0.5)
    # One step is rounded to the spacing of parameters near 1.
    assert moved == pytest.approx(0.01, abs=torch.finfo(dtype).eps)


def two_kinds(p, g, row, v, *, lr):
    if v is None:
        row = row + ops.mean(g * g, dim=-1)
        u = g / ops.sqrt(row)
    else:
        v = v + g * g
        u = g / ops.sqrt(v)
    n, k = ops.norm(u, over=ALL), ops.norm(p, over=ALL)
    return p - lr * u * k / n, row, v


def rows_second(p, g, row, v, *, lr):
    n = ops.norm(p, over=ALL)
    if v is None:
        k = ops.norm(row, over=ALL)
        row = row + ops.mean(g * g, dim=-1)
    else:
        k = ops.norm(v, over=ALL)
        v = v + g * g
    return p - lr * g * n / (1 + k), row, v


def three_norms(p, g, *, lr):
    a = ops.norm(g, over=ALL)
    b = ops.norm(p / a, over=ALL)
    c = ops.norm(p, over=ALL)
    return p - lr * b / c * g


def twice_the_same(p, g, *, lr):
    return p - lr * g / ops.norm(g, over=ALL) + lr * p / ops.norm(g, over=ALL)


def ratio(p, g, *, lr):
    return p - lr * ops.norm(g, over=ALL) / ops.norm(p, over=ALL) * g


def with_gaps(p: Parameter) -> Parameter:
    """A parameter with the same values whose memory has gaps, so that engine numba cannot take it."""
    wide = Parameter(torch.zeros(*p.shape, 2, dtype=p.dtype)[..., 0])
    wide.data.copy_(p.data)
    wide.grad = p.grad
    return wide


@pytest.mark.parametrize("engine", ["foreach", "numba", "auto"])
@pytest.mark.parametrize(
    ("rule", "states", "groups"),
    [
        (two_kinds, (State("row", dim=-1), State("v", matrices=False)), lambda a, b: [{"params": [a, b]}]),
        (rows_second, (State("row", dim=-1), State("v", matrices=False)), lambda a, b: [{"params": [a, b]}]),
        (three_norms, (), lambda a, b: [{"params": [a, b]}]),
        (twice_the_same, (), lambda a, b: [{"params": [a]}, {"params": [b], "lr": 0.2}]),
        (ratio, (), lambda a, b: [{"params": [a]}, {"params": [b], "clip_norm": 0.5}]),
    ],
    ids=["two-kinds", "rows-second", "three-norms", "twice-the-same", "modifier-in-one-group"],
)
def test_shared_reductions_are_paired_in_the_order_of_the_rule(
    engine: str, rule: Callable[..., Any], states: Sequence[State], groups: Callable[..., Any]
):
    cls = make(rule, *states)
    expected = steps(cls(groups(*parameters((3, 4), (5,))), engine="loop"))
    a, b = parameters((3, 4), (5,))
    if engine == "auto":  # the two parameters on two engines
        b = with_gaps(b)
    optimizer = cls(groups(a, b), engine=engine)
    for got, value in zip(steps(optimizer), expected, strict=True):
        torch.testing.assert_close(got, value)
    if engine == "auto":
        assert {report.engine for report in optimizer.engine_report()} == {"numba", "foreach"}


def test_different_numbers_of_shared_reductions_are_reported_before_any_parameter_changes():
    def rule(p, g, m, *, lr, more=False):
        return p - lr * g / (ops.norm(g, over="group") if more else 1.0), m + 1

    for engine in (*ENGINES, "auto"):
        params = parameters((3,), (4,))
        before = [p.detach().clone() for p in params]
        groups = [{"params": params[:1]}, {"params": params[1:], "more": True}]
        optimizer = make(rule, State("m"), more=False)(groups, engine=engine)
        with pytest.raises(RuleError, match="reduces over several parameters 0, 1 times"):
            optimizer.step()
        assert all(map(torch.equal, before, params))
        assert not optimizer.state


@pytest.mark.parametrize("engine", ENGINES)
def test_rule_with_shared_states_only_is_always_in_its_first_step(engine: str):
    def rule(p, g, d, *, lr, first):
        return p - lr * g, d + first

    optimizer = make(rule, State("d", scalar=True, shared=True))(parameters((3,)), engine=engine)
    steps(optimizer)
    assert optimizer.param_groups[0]["d"] == 3.0


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.ones(2, 2, dtype=torch.complex128), "does not support complex parameters"),
        (torch.ones(3), r"a parameter of shape \(3,\) is not a matrix"),
    ],
    ids=["complex", "vector"],
)
def test_rows_and_columns_need_real_matrices(engine: str, p: Tensor, message: str):
    matrix = torch.ones(2, 3, requires_grad=True)
    matrix.grad = torch.ones(2, 3)
    param = Parameter(p)
    param.grad = torch.ones_like(p)
    rule = lambda p, g, *, lr: p - lr * ops.mean(g, dim=-1)  # noqa: E731
    optimizer = make(rule, complex_=True)([matrix, param], engine=engine)
    with pytest.raises(ParameterError, match=message):
        optimizer.step()
    assert torch.equal(matrix, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda p, g, *, lr: p - lr * ops.dot(ops.mean(g, dim=-1), ops.mean(p, dim=-2)), "two values of one kind"),
        (lambda p, g, *, lr: p - lr * ((ops.norm(g) > 1) + (ops.norm(p) > 1)), "arithmetic with conditions"),
        (lambda p, g, *, lr: p - lr * ops.where(ops.norm(g), p, g), "needs a comparison as its condition"),
        (lambda p, g, *, lr: p - ops.norm(lr), "norm needs element-wise values"),
        (lambda p, g, *, lr: p - ops.numel(lr), "numel needs an element-wise value"),
        (lambda p, g, *, lr: p - ops.mean(lr, dim=-1), "mean needs element-wise values"),
    ],
)
def test_wrong_rules_are_refused_by_the_trace(rule: Callable[..., Any], message: str):
    optimizer = make(rule)(parameters((3, 3)), engine="numba")
    with pytest.raises(OptplugError, match=message):
        optimizer.step()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda p, g, *, lr: p - ops.lerp(p, ops.norm(g), 0.25), lambda p, g: p - (p + 0.25 * (g.norm() - p))),
        (lambda p, g, *, lr: p * ops.lerp(ops.norm(p) / 0.0, ops.norm(g), 1.0), lambda p, g: p * g.norm()),
        (lambda p, g, *, lr: p * (1 / (ops.numel(p) - 9)), lambda p, g: p / 0),
    ],
    ids=["lerp-of-two-kinds", "weight-1", "division-by-zero"],
)
def test_numbers_per_parameter_follow_ieee_754(
    engine: str, dtype: torch.dtype, rule: Callable[..., Any], expected: Callable[..., Any]
):
    (p,) = parameters((3, 3), dtype=dtype)
    before, g = p.detach().clone().double(), p.grad.double()
    (got,) = steps(make(rule)([p], engine=engine), 1)
    torch.testing.assert_close(got, expected(before, g).to(dtype))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim=0; it may be -1 or -2"),
        ({"dim": -1, "scalar": True}, "scalar=True and dim"),
        ({"dim": -1, "matrices": False}, "dim and matrices=False"),
        ({"dim": -1, "init": "p"}, 'init="p" and scalar=True or dim'),
        ({"matrices": "yes"}, "matrices='yes'; it may be True, False or None"),
        ({"shared": True}, "shared=True without scalar=True"),
        ({"shared": True, "scalar": True, "matrices": True}, "shared=True and matrices"),
        ({"sparse": True, "dim": -1}, "sparse=True and scalar=True or dim"),
        ({"scalar": True, "init": "p"}, 'init="p" and scalar=True or dim'),
    ],
)
def test_contradictory_states_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(RuleError) as caught:
        State("m", **arguments)
    assert str(caught.value) == f"State 'm' got {message}"


@pytest.mark.parametrize("name", ["lr", "maximize", "params", "name", "initial_lr"])
def test_shared_state_may_not_have_the_name_of_another_value_of_the_group(name: str):
    rule = eval(f"lambda p, g, {name}, *, weight: (p, {name})")
    cls = make(rule, State(name, scalar=True, shared=True), weight=1.0)
    with pytest.raises(RuleError, match=f"parameter groups have another value named '{name}'"):
        cls(parameters((3,)))


def test_shared_state_must_be_equal_for_all_parameters():
    def rule(p, g, d, *, lr):
        return p - lr * g, d + ops.norm(g, over="group")

    optimizer = make(rule, State("d", scalar=True, shared=True))(parameters((3,), (4,)), engine="numba")
    with pytest.raises(OptplugError, match="returned a number for each parameter for 'd', which all parameters share"):
        optimizer.step()


@pytest.mark.parametrize("name", ["_reduce", "_count", "r1", "l2", "inf"])
def test_reserved_names_of_states(name: str):
    cls = make(eval(f"lambda p, g, {name}, *, lr: (p, {name})"), State(name))
    with pytest.raises(RuleError, match=f"a state may not be named '{name}'"):
        cls(parameters((3,)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_limit_that_the_dtype_cannot_represent_limits_nothing(engine: str, dtype: torch.dtype):
    results = []
    for options in ({}, {"clip_value": 1e300}):
        (p,) = parameters((3, 3), dtype=dtype)
        results.append(steps(create_optimizer("sgd", [p], lr=0.1, engine=engine, **options), 1)[0])
    assert torch.equal(*results)
