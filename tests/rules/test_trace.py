"""The rule language: operations, tracing, and the errors for unsupported rules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optplug import RuleOptimizer, State, get_optimizer, ops
from optplug.errors import EngineError, RuleError
from optplug.rules.graph import Graph
from optplug.rules.ops import FLOAT_OPERATIONS
from optplug.rules.trace import FIRST_STEP, RuleVariant, TracedRule, trace

ANY_FLOAT = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan]))
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


def equal_or_both_nan(a: float, b: float) -> bool:
    return a == b or (a != a and b != b) or math.isclose(a, b, rel_tol=1e-14)


def tensor(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def traced(rule, present=(), scalars=(), lengths=(("lr", 0),), **options) -> TracedRule:
    result = trace(RuleVariant(rule, present_states=present, scalar_states=scalars, **options), lengths)
    if isinstance(result, RuleError):
        raise result
    return result


def evaluate_traced_scalar(compute, *values: float) -> float:
    """The value of a traced scalar expression of hyperparameters."""
    names = [f"h{i}" for i in range(len(values))]
    graph = Graph()
    symbol = compute(*(graph.input(n, "scalar") for n in names))

    def value(node):
        if node.op == "const":
            return node.value
        if node.op == "input":
            return dict(zip(names, values, strict=True))[node.value]
        return FLOAT_OPERATIONS[node.op](*(value(a) for a in node.args))

    return value(symbol.node)


@pytest.mark.parametrize("name", UNARY)
@given(x=ANY_FLOAT)
def test_unary_operations_agree_on_floats_tensors_and_symbols(name, x):
    on_floats = UNARY[name](x)
    assert isinstance(on_floats, float)
    assert equal_or_both_nan(on_floats, float(UNARY[name](tensor(x))))
    assert equal_or_both_nan(on_floats, evaluate_traced_scalar(UNARY[name], x))


@pytest.mark.parametrize("name", BINARY)
@given(a=ANY_FLOAT, b=ANY_FLOAT)
def test_binary_operations_agree_on_floats_tensors_and_symbols(name, a, b):
    on_floats = BINARY[name](a, b)
    for left, right in ((tensor(a), tensor(b)), (tensor(a), b), (a, tensor(b))):
        assert equal_or_both_nan(on_floats, float(BINARY[name](left, right)))
    assert equal_or_both_nan(on_floats, evaluate_traced_scalar(BINARY[name], a, b))


@pytest.mark.parametrize("name", COMPARISONS)
@given(a=ANY_FLOAT, b=ANY_FLOAT)
def test_comparisons_and_where_agree_on_floats_tensors_and_symbols(name, a, b):
    def choose(a, b):
        return ops.where(COMPARISONS[name](a, b), a, b)

    assert equal_or_both_nan(choose(a, b), float(choose(tensor(a), tensor(b))))
    assert equal_or_both_nan(choose(a, b), evaluate_traced_scalar(choose, a, b))


@given(a=ANY_FLOAT, b=ANY_FLOAT)
def test_division_and_power_of_traced_scalars_match_tensors(a, b):
    assert equal_or_both_nan(evaluate_traced_scalar(lambda a, b: a / b, a, b), float(tensor(a) / tensor(b)))
    power, expected = evaluate_traced_scalar(lambda a, b: a**b, a, b), float(tensor(a) ** tensor(b))
    assert equal_or_both_nan(power, expected) or math.isclose(power, expected, rel_tol=1e-12)


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
def test_power_returns_ieee_value_where_python_raises(a, b, expected):
    assert equal_or_both_nan(evaluate_traced_scalar(lambda a, b: a**b, a, b), expected)
    assert equal_or_both_nan(float(tensor(a) ** tensor(b)), expected)


@given(a=st.floats(-1e6, 1e6), b=st.floats(-1e6, 1e6), weight=st.floats(-2, 2))
def test_lerp_agrees_on_floats_and_tensors_and_is_exact_at_both_ends(a, b, weight):
    on_floats, on_tensors = ops.lerp(a, b, weight), float(ops.lerp(tensor(a), tensor(b), weight))
    assert math.isclose(on_floats, on_tensors, rel_tol=1e-12, abs_tol=1e-9)
    assert ops.lerp(a, b, 1.0) == b == float(ops.lerp(tensor(a), tensor(b), 1.0))
    assert ops.lerp(a, b, 0.0) == a == float(ops.lerp(tensor(a), tensor(b), 0.0))


@given(a=st.floats(-1e6, 1e6), b=st.floats(-1e6, 1e6), weight=st.floats(-2, 2))
def test_lerp_with_a_tensor_weight_equals_torch(a, b, weight):
    expected = torch.lerp(tensor(a), tensor(b), weight)
    assert torch.allclose(ops.lerp(tensor(a), tensor(b), tensor(weight)), expected, rtol=1e-12, atol=1e-9)


def test_all_operations_on_floats_are_tested():
    named = {"where", "lerp", "pow", "div", "neg", "and", "or", "not"}
    assert set(FLOAT_OPERATIONS) == named | set(UNARY) | set(BINARY) | set(COMPARISONS)


def test_where_rejects_integer_condition():
    with pytest.raises(RuleError, match=r"^where got an integer as its condition; ~ is for element-wise conditions"):
        ops.where(-2, 1.0, 2.0)  # -2 is ~True


# ---------------------------------------------------------------------------------------------- tracing


def test_rule_can_be_called_on_numbers_and_tensors():
    rule = get_optimizer("adam").rule
    hyperparameters = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 0.0}
    p, step, exp_avg, exp_avg_sq, absent = rule(1.0, 2.0, 0.0, 0.0, 0.0, None, **hyperparameters)
    assert (p, step, exp_avg, exp_avg_sq, absent) == pytest.approx((0.9, 1.0, 0.2, 0.04, None))
    on_tensors = rule(tensor(1.0), tensor(2.0), 0.0, tensor(0.0), tensor(0.0), None, **hyperparameters)
    assert float(on_tensors[0]) == pytest.approx(p, rel=1e-15)


def test_equal_expressions_share_a_node():
    def rule(p, g, *, lr):
        return p - lr * (g * g + g * g) - lr * (g * g)

    assert str(traced(rule)) == (
        "%1 = input('p')\n%2 = input('g')\n%3 = mul(%2, %2)\n%4 = add(%3, %3)\n%5 = mul(%0, %4)\n%6 = sub(%1, %5)\n"
        "%7 = mul(%0, %3)\n%8 = sub(%6, %7)\np <- %8"
    )


def test_constant_folding_keeps_the_sign_of_zero():
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
    assert graph.inputs == ("p", "g")
    constants, scalars = graph.compute_scalars({"lr": 1e-3, "betas": (0.9999999, 0.5), "step": 2.0})
    assert constants == [1e-3 / (1 - 0.9999999**3)]
    assert scalars == {"step": 3.0}


def test_unchanged_states_are_not_written_and_unused_inputs_not_read():
    def rule(p, g, kept, unused, *, lr):
        _ = unused * 2 + kept
        return p - lr * g, kept, unused

    graph = traced(rule, ("kept", "unused"))
    assert list(graph.outputs) == ["p"]
    assert graph.inputs == ("p", "g")


def test_trace_is_cached_per_variant():
    calls = []

    def rule(p, g, *, lr):
        calls.append(1)
        return p - lr * g

    first, second = traced(rule), traced(rule)
    assert first is second
    assert calls == [1]


ALLOWED = "it may use + - * / ** and abs, amax, dot, exp, lerp, log, maximum, mean and 7 more (see optplug.ops)"
NUMBERS = "a rule may compute with its arguments and Python numbers only"
CONDITION = "mul got a condition: arithmetic with conditions is not allowed; use where(condition, a, b)"
WRONG_TYPE = ": it must return values computed from its arguments, or numbers"
WRONG_STATES = ": it must return each state that it received, and None for the others"
WRONG_SIGNATURE = "rule must be rule(p, g, *states, *, hyperparameters, flags) without *args or **kwargs"
NO_DTYPE = "where(condition, scalar, scalar) has no dtype: one of the two must be element-wise"
TOO_FEW = "rule returned 1 values; it must return the parameter and its 1 states (a), in that order"
BRANCH = "a rule may branch on its flags and on absent states only, not on values; use where(condition, a, b)"


def rule_from(returns, signature="p, g, *, lr", body="pass"):
    """A function `rule`, compiled from source text."""
    namespace = {"ops": ops, "math": math, "torch": torch}
    exec(f"def rule({signature}):\n    {body}\n    return {returns}", namespace)
    return namespace["rule"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (rule_from("p - lr * g if g > 0 else p"), BRANCH),
        (rule_from("max(p, g)"), BRANCH),
        (rule_from("p if lr else g"), BRANCH),
        (rule_from("p and g"), BRANCH),
        (rule_from("torch.sqrt(g)"), "a rule may not use torch.sqrt; did you mean 'sqrt'?"),
        (rule_from("torch.erf(g)"), f"a rule may not use torch.erf; {ALLOWED}"),
        (rule_from("g.sqrt()"), "a rule may not use the attribute .sqrt; did you mean 'sqrt'?"),
        (rule_from("p.shape"), f"a rule may not use the attribute .shape; {ALLOWED}"),
        (rule_from("math.sqrt(g)"), f"a rule may not use float() or math functions; {ALLOWED}"),
        (rule_from("p - lr * float(g)"), f"a rule may not use float() or math functions; {ALLOWED}"),
        (rule_from("p - torch.ones(1) * g"), "mul got tensor([1.]): " + NUMBERS),
        (rule_from("p - ops.sqrt('x') * g"), "rule cannot be traced: TypeError: must be real number, not str"),
        (rule_from("p - g * 'x'"), "mul got 'x': " + NUMBERS),
        (rule_from("p % g"),
         "rule cannot be traced: TypeError: unsupported operand type(s) for %: 'Symbol' and 'Symbol'"),
        (rule_from("g ** 3"), "a rule may raise an element-wise value to the power 2 only; for the power 0.5 use sqrt"),
        (rule_from("p - lr * g * (g > 0)"), CONDITION),
        (rule_from("ops.where(g, p, g)"), "where needs a comparison as its condition, not a value"),
        (rule_from("ops.where(~g, p, g)"), "not needs a comparison as its condition, not a value"),
        (rule_from("p + ops.where(g > 0, lr, 1.0)"), NO_DTYPE),
        (rule_from("ops.lerp(p, g, g)"), "the weight of lerp must be a scalar"),
        (rule_from("(p, g)"),
         "rule returned 2 values; it must return the parameter and its 0 states (none), in that order"),
        (rule_from("p", "p, g, a, *, lr"), TOO_FEW),
        (rule_from("lr"), "rule returned a scalar for 'p', which is an element-wise value"),
        (rule_from("1.0"), "rule returned a scalar for 'p', which is an element-wise value"),
        (rule_from("'p'"), "rule returned 'p' for 'p'" + WRONG_TYPE),
        (rule_from("None"), "rule returned None for 'p'" + WRONG_STATES),
        (rule_from("p, None", "p, g, a, *, lr"), "rule returned None for 'a'" + WRONG_STATES),
        (rule_from("p, 0.0", "p, g, a, *, lr"), "rule returned a scalar for 'a', which is an element-wise value"),
        (rule_from("p", "p, *, lr"), WRONG_SIGNATURE),
        (rule_from("p", "p, g, **hyperparameters"), WRONG_SIGNATURE),
    ],
)  # fmt: skip
def test_unsupported_rule_is_rejected(rule, message):
    import inspect

    present = tuple(n for n, q in inspect.signature(rule).parameters.items() if n == "a")
    with pytest.raises(RuleError) as caught:
        traced(rule, present)
    assert str(caught.value) == message


def test_value_for_absent_state_and_elementwise_value_for_scalar_state_are_rejected():
    made_up = rule_from("p, g", "p, g, a, *, lr")
    with pytest.raises(RuleError) as caught:
        traced(made_up)
    assert str(caught.value) == "rule returned a value for the absent state 'a'" + WRONG_STATES
    with pytest.raises(RuleError) as caught:
        traced(made_up, ("a",), ("a",))
    assert str(caught.value) == "rule returned an element-wise value for 'a', which is a scalar"


class PlainSGD(RuleOptimizer):
    def __init__(self, params, lr=0.1, engine="auto"):
        super().__init__(params, {"lr": lr}, engine=engine)

    @staticmethod
    def rule(p, g, *, lr):
        return p - lr * g


def parameter():
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    p.grad = torch.tensor([1.0, -1.0])
    return p


def test_auto_falls_back_to_loop_with_reason_and_explicit_engine_raises():
    class TanhSGD(PlainSGD):
        @staticmethod
        def rule(p, g, *, lr):
            return p - lr * g.tanh()

    p = parameter()
    optimizer = TanhSGD([p])
    optimizer.step()
    why = f"a rule may not use the attribute .tanh; {ALLOWED}"
    assert [str(r) for r in optimizer.engine_report()] == [
        f"group 0: loop (auto: {why}), 1 tensor, 2 float32 elements on cpu"
    ]
    assert p.tolist() == pytest.approx([1 - 0.1 * math.tanh(1), -2 + 0.1 * math.tanh(1)])
    optimizer = TanhSGD([p], engine="foreach")
    with pytest.raises(EngineError) as caught:
        optimizer.step()
    assert str(caught.value) == f"engine 'foreach' cannot run this rule: {why}"


def test_mismatch_of_states_or_hyperparameters_and_rule_is_rejected():
    class UndeclaredState(PlainSGD):
        @staticmethod
        def rule(p, g, velocity, *, lr):
            return p, velocity

    class InvalidStateName(PlainSGD):
        states = (State("t1"),)

        @staticmethod
        def rule(p, g, t1, *, lr):
            return p, t1

    class MisspelledHyperparameter(PlainSGD):
        @staticmethod
        def rule(p, g, *, lrr):
            return p - lrr * g

    for cls, message in (
        (UndeclaredState, "UndeclaredState declares the states none, but its rule takes velocity: "
         "both must be the same, in the same order"),
        (InvalidStateName, "InvalidStateName: a state may not be named 't1'"),
        (MisspelledHyperparameter,
         f"{MisspelledHyperparameter.rule.__qualname__} needs the hyperparameter 'lrr', "
         "but its optimizer does not have it; "
         "did you mean 'lr'?"),
    ):  # fmt: skip
        with pytest.raises(RuleError) as caught:
            cls([parameter()])
        assert str(caught.value) == message


def test_first_is_1_in_the_first_step_of_each_parameter_only():
    class StartsWithGradient(PlainSGD):
        states = (State("velocity"),)

        @staticmethod
        def rule(p, g, velocity, *, lr, first):
            velocity = ops.where(first, g, 0.5 * velocity + g)
            return p - lr * velocity, velocity

    for engine in ("loop", "foreach"):
        early, late = parameter(), parameter()
        late.grad = None
        optimizer = StartsWithGradient([early, late], engine=engine)
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
    constants, scalars = graph.compute_scalars({"lr": 0.1, "beta": beta, "step": float(step), FIRST_STEP: 0.0})
    assert rule(0.0, -1.0, float(step), lr=0.1, beta=beta) == (constants[0], scalars["step"])


def test_where_with_scalar_condition_returns_elementwise_value():
    x = torch.tensor([1.0, 2.0])
    assert ops.where(1.0, 0.5, x).tolist() == [0.5, 0.5]
    assert ops.where(0.0, 0.5, x) is x
