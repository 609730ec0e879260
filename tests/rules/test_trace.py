"""The rule language: operations, tracing, and what a rule may not do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optplug import RuleOptimizer, State, get_optimizer, ops
from optplug.errors import EngineError, RuleError
from optplug.rules.graph import Graph
from optplug.rules.ops import ON_FLOATS
from optplug.rules.prelude import prelude
from optplug.rules.trace import FIRST, Traced, Variant, trace

ANY = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan]))
UNARY = {"sqrt": ops.sqrt, "exp": ops.exp, "log": ops.log, "abs": ops.abs, "sign": ops.sign}
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
}
COMPARISONS = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


def same(a: float, b: float) -> bool:
    return a == b or (a != a and b != b) or math.isclose(a, b, rel_tol=1e-14)


def tensor(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def traced(rule, present=(), scalars=(), hypers=(("lr", 0),), **options) -> Traced:
    result = trace(Variant(rule, present=present, scalars=scalars, **options), hypers)
    if isinstance(result, RuleError):
        raise result
    return result


def scalar_program(compute, *values: float) -> float:
    """What a traced scalar expression of hyperparameters comes to."""
    names = [f"h{i}" for i in range(len(values))]
    graph = Graph()
    symbol = compute(*(graph.input(n, elementwise=False) for n in names))

    def value(node):
        if node.op == "const":
            return node.value
        if node.op == "input":
            return dict(zip(names, values, strict=True))[node.value]
        return ON_FLOATS[node.op](*(value(a) for a in node.args))

    return value(symbol.node)


@pytest.mark.parametrize("name", UNARY)
@given(x=ANY)
def test_unary_operations_agree_on_floats_tensors_and_symbols(name, x):
    on_floats = UNARY[name](x)
    assert isinstance(on_floats, float)
    assert same(on_floats, float(UNARY[name](tensor(x))))
    assert same(on_floats, scalar_program(UNARY[name], x))


@pytest.mark.parametrize("name", BINARY)
@given(a=ANY, b=ANY)
def test_binary_operations_agree_on_floats_tensors_and_symbols(name, a, b):
    on_floats = BINARY[name](a, b)
    for left, right in ((tensor(a), tensor(b)), (tensor(a), b), (a, tensor(b))):
        assert same(on_floats, float(BINARY[name](left, right)))
    assert same(on_floats, scalar_program(BINARY[name], a, b))


@pytest.mark.parametrize("name", COMPARISONS)
@given(a=ANY, b=ANY)
def test_comparisons_and_where_agree_on_floats_tensors_and_symbols(name, a, b):
    def choose(a, b):
        return ops.where(COMPARISONS[name](a, b), a, b)

    assert same(choose(a, b), float(choose(tensor(a), tensor(b))))
    assert same(choose(a, b), scalar_program(choose, a, b))


@given(a=ANY, b=ANY)
def test_division_and_powers_of_traced_scalars_are_those_of_tensors(a, b):
    assert same(scalar_program(lambda a, b: a / b, a, b), float(tensor(a) / tensor(b)))
    power, expected = scalar_program(lambda a, b: a**b, a, b), float(tensor(a) ** tensor(b))
    assert same(power, expected) or math.isclose(power, expected, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (0.0, -1.0, math.inf),
        (-0.0, -1.0, -math.inf),
        (-0.0, -2.0, math.inf),
        (-1.0, 0.5, math.nan),
        (-10.0, 309.0, -math.inf),
        (10.0, 309.0, math.inf),
        (math.nan, 0.0, 1.0),
    ],
)
def test_a_power_has_its_ieee_value_where_python_raises(a, b, expected):
    assert same(scalar_program(lambda a, b: a**b, a, b), expected)
    assert same(float(tensor(a) ** tensor(b)), expected)


@given(a=st.floats(-1e6, 1e6), b=st.floats(-1e6, 1e6), weight=st.floats(-2, 2))
def test_lerp_agrees_on_floats_and_tensors_and_ends_exactly(a, b, weight):
    on_floats, on_tensors = ops.lerp(a, b, weight), float(ops.lerp(tensor(a), tensor(b), weight))
    assert math.isclose(on_floats, on_tensors, rel_tol=1e-12, abs_tol=1e-9)
    assert ops.lerp(a, b, 1.0) == b == float(ops.lerp(tensor(a), tensor(b), 1.0))
    assert ops.lerp(a, b, 0.0) == a == float(ops.lerp(tensor(a), tensor(b), 0.0))


def test_every_operation_on_floats_has_a_case_above():
    named = {"where", "lerp", "pow", "div", "neg", "and", "or", "not"}
    assert set(ON_FLOATS) == named | set(UNARY) | set(BINARY) | set(COMPARISONS)


def test_where_refuses_the_whole_number_that_python_makes_of_a_negated_condition():
    with pytest.raises(
        RuleError, match=r"^where got a whole number as its condition; ~ is for element-wise conditions"
    ):
        ops.where(-2, 1.0, 2.0)  # ~True


# ---------------------------------------------------------------------------------------------- tracing


def test_a_rule_is_called_on_plain_numbers_and_tensors_without_any_framework():
    rule = get_optimizer("adam").rule
    hypers = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 0.0}
    p, step, exp_avg, exp_avg_sq, absent = rule(1.0, 2.0, 0.0, 0.0, 0.0, None, **hypers)
    assert (p, step, exp_avg, exp_avg_sq, absent) == pytest.approx((0.9, 1.0, 0.2, 0.04, None))
    on_tensors = rule(tensor(1.0), tensor(2.0), 0.0, tensor(0.0), tensor(0.0), None, **hypers)
    assert float(on_tensors[0]) == pytest.approx(p, rel=1e-15)


def test_equal_expressions_are_computed_once():
    def rule(p, g, *, lr):
        return p - lr * (g * g + g * g) - lr * (g * g)

    assert str(traced(rule)) == (
        "%1 = input('p')\n%2 = input('g')\n%3 = mul(%2, %2)\n%4 = add(%3, %3)\n%5 = mul(%0, %4)\n%6 = sub(%1, %5)\n"
        "%7 = mul(%0, %3)\n%8 = sub(%6, %7)\np <- %8"
    )


def test_constants_are_folded_and_zeros_keep_their_sign():
    def rule(p, g, *, lr):
        return p - (2.0 * 3.0 - 6.0) * g - (-0.0) * g

    consts = [n.value for node in traced(rule).nodes for n in node.args if n.op == "const"]
    assert [math.copysign(1, c) for c in consts] == [1.0, -1.0]


def test_scalars_are_hoisted_and_computed_in_float64():
    def rule(p, g, step, *, lr, betas):
        step = step + 1
        return p - lr / (1 - betas[0] ** step) * g, step

    graph = traced(rule, ("step",), ("step",), (("lr", 0), ("betas", 2)))
    assert [node.op for node in graph.nodes] == ["input", "input", "mul", "sub"]
    assert graph.reads == ("p", "g")
    constants, scalars = graph.scalars({"lr": 1e-3, "betas": (0.9999999, 0.5), "step": 2.0})
    assert constants == [1e-3 / (1 - 0.9999999**3)]
    assert scalars == {"step": 3.0}


def test_states_returned_as_they_came_are_not_written_and_dead_loads_vanish():
    def rule(p, g, kept, unused, *, lr):
        _ = unused * 2 + kept
        return p - lr * g, kept, unused

    graph = traced(rule, ("kept", "unused"))
    assert list(graph.outputs) == ["p"]
    assert graph.reads == ("p", "g")


def test_a_variant_is_traced_once():
    calls = []

    def rule(p, g, *, lr):
        calls.append(1)
        return p - lr * g

    first, second = traced(rule), traced(rule)
    assert first is second
    assert calls == [1]


def test_the_prelude_runs_on_numbers():
    assert prelude(2.0, 1.0, weight_decay=0.5, shrink=None, maximize=True, decay="coupled") == (2.0, 0.0)
    assert prelude(2.0, 1.0, weight_decay=0.5, shrink=0.75, maximize=False, decay="decoupled") == (1.5, 1.0)
    assert prelude(2.0, 1.0, weight_decay=None, shrink=None, maximize=False, decay="none") == (2.0, 1.0)


VOCABULARY = "it may use + - * / ** and abs, exp, lerp, log, maximum, minimum, sign, sqrt, where"
NUMBERS = "a rule computes with its arguments and Python numbers only"
CONDITION = "mul got a condition: a rule may not compute with one; use where(condition, a, b)"
NO_DTYPE = "where(condition, scalar, scalar) has no dtype: make one of the two element-wise"
TOO_FEW = "rule returned 1 values; it must return the parameter and its 1 states (a), in that order"
BRANCH = "a rule may branch on its flags and on absent states only, not on values; use where(cond, a, b)"


def _r(returns, signature="p, g, *, lr", body="pass"):
    """A rule named `rule`, from text."""
    namespace = {"ops": ops, "math": math, "torch": torch}
    exec(f"def rule({signature}):\n    {body}\n    return {returns}", namespace)
    return namespace["rule"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (_r("p - lr * g if g > 0 else p"), BRANCH),
        (_r("max(p, g)"), BRANCH),
        (_r("p if lr else g"), BRANCH),
        (_r("p and g"), BRANCH),
        (_r("torch.sqrt(g)"), f"a rule may not use torch.sqrt; {VOCABULARY}; did you mean 'sqrt'?"),
        (_r("torch.erf(g)"), f"a rule may not use torch.erf; {VOCABULARY}"),
        (_r("g.sqrt()"), f"a rule may not use the attribute .sqrt; {VOCABULARY}; did you mean 'sqrt'?"),
        (_r("p.shape"), f"a rule may not use the attribute .shape; {VOCABULARY}"),
        (_r("math.sqrt(g)"), f"a rule may not use float() or math functions; {VOCABULARY}"),
        (_r("p - lr * float(g)"), f"a rule may not use float() or math functions; {VOCABULARY}"),
        (_r("p - torch.ones(1) * g"), "mul got tensor([1.]): " + NUMBERS),
        (_r("p - ops.sqrt('x') * g"), "rule cannot be traced: TypeError: must be real number, not str"),
        (_r("p - g * 'x'"), "mul got 'x': " + NUMBERS),
        (_r("p % g"), "rule cannot be traced: TypeError: unsupported operand type(s) for %: 'Symbol' and 'Symbol'"),
        (_r("g ** 3"), "a rule may raise an element-wise value to the power 2 only; for 0.5 there is sqrt"),
        (_r("p - lr * g * (g > 0)"), CONDITION),
        (_r("ops.where(g, p, g)"), "where needs a comparison as its condition, not a value"),
        (_r("ops.where(~g, p, g)"), "not needs a comparison as its condition, not a value"),
        (_r("p + ops.where(g > 0, lr, 1.0)"), NO_DTYPE),
        (_r("ops.lerp(p, g, g)"), "the weight of lerp must be a scalar"),
        (_r("(p, g)"), "rule returned 2 values; it must return the parameter and its 0 states (none), in that order"),
        (_r("p", "p, g, a, *, lr"), TOO_FEW),
        (_r("lr"), "rule returned a scalar for 'p', which is an element-wise value"),
        (_r("1.0"), "rule returned a scalar for 'p', which is an element-wise value"),
        (_r("'p'"), "rule returned 'p' for 'p'"),
        (_r("None"), "rule returned None for 'p': return each state that was given, and no other"),
        (_r("p, None", "p, g, a, *, lr"), "rule returned None for 'a': return each state that was given, and no other"),
        (_r("p, 0.0", "p, g, a, *, lr"), "rule returned a scalar for 'a', which is an element-wise value"),
        (_r("p", "p, *, lr"), "rule must be rule(p, g, *states, *, hypers, flags) without *args or **kwargs"),
        (_r("p", "p, g, **hypers"), "rule must be rule(p, g, *states, *, hypers, flags) without *args or **kwargs"),
    ],
)  # fmt: skip
def test_what_a_rule_may_not_do_is_said(rule, message):
    import inspect

    present = tuple(n for n, q in inspect.signature(rule).parameters.items() if n == "a")
    with pytest.raises(RuleError) as caught:
        traced(rule, present)
    assert str(caught.value) == message


def test_states_that_are_absent_may_not_be_made_up_and_scalars_not_be_element_wise():
    made_up = _r("p, g", "p, g, a, *, lr")
    with pytest.raises(RuleError) as caught:
        traced(made_up)
    assert str(caught.value) == "rule made up the absent state 'a': return each state that was given, and no other"
    with pytest.raises(RuleError) as caught:
        traced(made_up, ("a",), ("a",))
    assert str(caught.value) == "rule returned an element-wise value for 'a', which is a scalar"


class Plain(RuleOptimizer):
    def __init__(self, params, lr=0.1, engine="auto"):
        super().__init__(params, {"lr": lr}, engine=engine)

    @staticmethod
    def rule(p, g, *, lr):
        return p - lr * g


def parameter():
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    p.grad = torch.tensor([1.0, -1.0])
    return p


def test_auto_falls_back_to_the_loop_and_says_why_and_a_forced_engine_raises():
    class Tanh(Plain):
        @staticmethod
        def rule(p, g, *, lr):
            return p - lr * g.tanh()

    p = parameter()
    optimizer = Tanh([p])
    optimizer.step()
    why = f"a rule may not use the attribute .tanh; {VOCABULARY}"
    assert [str(r) for r in optimizer.engine_report()] == [
        f"group 0: loop (auto: {why}), 1 tensor, 2 float32 elements on cpu"
    ]
    assert p.tolist() == pytest.approx([1 - 0.1 * math.tanh(1), -2 + 0.1 * math.tanh(1)])
    optimizer = Tanh([p], engine="foreach")
    with pytest.raises(EngineError) as caught:
        optimizer.step()
    assert str(caught.value) == f"engine 'foreach' cannot run this rule: {why}"


def test_a_declaration_that_does_not_fit_its_rule_is_refused():
    class Undeclared(Plain):
        @staticmethod
        def rule(p, g, velocity, *, lr):
            return p, velocity

    class Named(Plain):
        states = (State("t1"),)

        @staticmethod
        def rule(p, g, t1, *, lr):
            return p, t1

    class Asks(Plain):
        @staticmethod
        def rule(p, g, *, lrr):
            return p - lrr * g

    for cls, message in (
        (Undeclared, "Undeclared declares the states none, but its rule takes velocity: "
         "both must be the same, in the same order"),
        (Named, "Named: a state may not be named 't1'"),
        (Asks, f"{Asks.rule.__qualname__} asks for 'lrr', but its optimizer has lr, maximize, foreach, capturable, "
               "differentiable, fused; did you mean 'lr'?"),
    ):  # fmt: skip
        with pytest.raises(RuleError) as caught:
            cls([parameter()])
        assert str(caught.value) == message


def test_first_tells_the_first_step_of_each_parameter():
    class Starts(Plain):
        states = (State("velocity"),)

        @staticmethod
        def rule(p, g, velocity, *, lr, first):
            velocity = ops.where(first, g, 0.5 * velocity + g)
            return p - lr * velocity, velocity

    for engine in ("loop", "foreach"):
        early, late = parameter(), parameter()
        late.grad = None
        optimizer = Starts([early, late], engine=engine)
        optimizer.step()
        late.grad = early.grad.clone()
        optimizer.step()
        assert optimizer.state[early]["velocity"].tolist() == [1.5, -1.5]
        assert optimizer.state[late]["velocity"].tolist() == [1.0, -1.0]


@settings(max_examples=50)
@given(step=st.integers(1, 10**6), beta=st.floats(0, 0.9999999))
def test_hoisted_scalars_equal_the_rule_on_floats(step, beta):
    def rule(p, g, step, *, lr, beta):
        step = step + 1
        return p - lr / (1 - beta**step) * g, step

    graph = traced(rule, ("step",), ("step",), (("lr", 0), ("beta", 0)))
    constants, scalars = graph.scalars({"lr": 0.1, "beta": beta, "step": float(step), FIRST: 0.0})
    assert rule(0.0, -1.0, float(step), lr=0.1, beta=beta) == (constants[0], scalars["step"])


def test_where_on_a_scalar_condition_stays_element_wise():
    x = torch.tensor([1.0, 2.0])
    assert ops.where(1.0, 0.5, x).tolist() == [0.5, 0.5]
    assert ops.where(0.0, 0.5, x) is x
