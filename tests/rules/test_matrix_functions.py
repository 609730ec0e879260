"""Functions of whole matrices in the language: calls on tensors and in a trace, states of another shape, and errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optplug import RuleOptimizer, State
from optplug.errors import EngineError, ParameterError, RuleError, SparseGradientError
from optplug.ops import lerp, matrix, mean, norm, numel
from optplug.rules.trace import RuleVariant, TracedRule


@matrix
def inverse(x: Tensor, eps: float, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linalg.inv(x.to(dtype) + eps * torch.eye(x.shape[-1], dtype=dtype))


@matrix
def gram(total: Tensor, g: Tensor, weight: float) -> Tensor:
    return total + weight * (g @ g.mT)


@matrix
def times(x: Tensor, y: Tensor, *, transposed: bool = False) -> Tensor:
    return (x.mT @ y).mT if transposed else y @ x


def square(shape: torch.Size, options: Any) -> tuple[int, ...]:
    return (shape[0], shape[0])


class Preconditioned(RuleOptimizer):
    """Multiplies the gradient by the inverse of a running sum of g g^T."""

    states = (State("gram", shape=square), State("momentum"))
    capabilities = frozenset()

    def __init__(self, params: Any, lr: float = 0.1, eps: float = 1.0, **options: Any) -> None:
        super().__init__(params, {"lr": lr, "eps": eps}, **options)

    @staticmethod
    def rule(p, g, gram, momentum, *, lr, eps):  # type: ignore[no-untyped-def]
        gram = globals()["gram"](gram, g, 0.5)
        momentum = lerp(momentum, times(g, inverse(gram, eps)), 0.1)
        return p - lr * momentum, gram, momentum


def parameter(*shape: int, dtype: torch.dtype = torch.float64) -> Parameter:
    generator = torch.Generator().manual_seed(3)
    p = Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
    p.grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return p


def test_function_on_tensors_is_called_with_a_batch_of_one_and_floats():
    seen: list[Any] = []

    @matrix
    def spy(x, y, a, b, *, flag):
        seen.append((x.shape, y.shape, a, b, flag))
        return x.half()

    result = spy(torch.ones(2, 3), torch.ones(4), 5, 0.5, flag=True)
    assert seen == [((1, 2, 3), (1, 4), 5.0, 0.5, True)]
    assert (type(seen[0][2]), result.shape, result.dtype) == (float, (2, 3), torch.float32)
    assert spy.__name__ == "spy"


def test_rule_computes_what_torch_computes():
    p = parameter(3, 4)
    before, g = p.detach().clone(), p.grad
    optimizer = Preconditioned([p], engine="loop")
    optimizer.step()
    total = 0.5 * g @ g.T
    momentum = 0.1 * torch.linalg.inv(total + torch.eye(3, dtype=torch.float64)) @ g
    torch.testing.assert_close(optimizer.state[p]["gram"], total)
    torch.testing.assert_close(p.detach(), before - 0.1 * momentum)


def test_empty_matrices_are_not_passed_to_the_function():
    def fail(x):
        raise AssertionError

    assert matrix(fail)(torch.zeros(0, 3)).shape == (0, 3)


# ---------------------------------------------------------------------------------------------------------- trace


def traced(rule: Callable[..., Any], *, states: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> TracedRule:
    return TracedRule(RuleVariant(rule, present_states=states, whole_states=whole), {"lr": 0})


def test_equal_calls_are_one_node_and_static_arguments_distinguish_calls():
    def rule(p, g, *, lr):
        return p - times(g, p) - times(g, p) - times(g, p, transposed=True)

    graph = traced(rule)
    assert graph.matrix_functions == ("times", "times")
    assert "call(times(transposed=True), %2, %1)" in str(graph)


def test_functions_of_one_name_are_distinct():
    first, second = (matrix(lambda x, k=k: x + k) for k in (1, 2))
    assert len(traced(lambda p, g, *, lr: first(p) + second(p)).matrix_functions) == 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda p, g, w, *, lr: (p + w, w), "add got a value of another shape, which only matrix functions take"),
        (lambda p, g, w, *, lr: (p - lr * norm(w), w), "norm got a value of another shape"),
        (lambda p, g, w, *, lr: (p - numel(w), w), "numel needs an element-wise value, not a value of another shape"),
        (
            lambda p, g, w, *, lr: (p, times(p, w)),
            "returned an element-wise value for 'w', which is a value of another",
        ),
        (lambda p, g, w, *, lr: (times(w, p), w), "returned a value of another shape for 'p'"),
        (lambda p, g, w, *, lr: (p, 0.0), "returned a scalar for 'w'"),
        (lambda p, g, w, *, lr: (times(p, norm(g)), w), "times does not take one number per parameter"),
        (lambda p, g, w, *, lr: (times(p, mean(g, dim=-1)), w), "times does not take one number per row"),
        (lambda p, g, w, *, lr: (times(p, g > 0), w), "the matrix function times got a condition"),
        (lambda p, g, w, *, lr: (times(p, lr, g), w), "takes element-wise values and states of another shape first"),
        (lambda p, g, w, *, lr: (times(lr), w), "takes element-wise values and states of another shape first"),
        (lambda p, g, w, *, lr: (times(p, g, transposed=lr), w), "a keyword of a matrix function must be a bool"),
        (lambda p, g, w, *, lr: (times(p, "g"), w), "a rule may compute with its arguments and Python numbers only"),
        (lambda p, g, w, *, lr: (p - numel(mean(g, dim=-1), dim=0), w), "dim=0.* not one number per row"),
    ],
)
def test_wrong_rules_are_refused(rule: Callable[..., Any], message: str):
    with pytest.raises(RuleError, match=message):
        traced(rule, states=("w",), whole=("w",))


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda x: x.mT, r"float64 of shape \(1, 4, 3\) on cpu"),
        (lambda x: x[0], r"float64 of shape \(3, 4\) on cpu"),
        (lambda x: x.to("meta"), r"float64 of shape \(1, 3, 4\) on meta"),
        (lambda x: x > 0, r"bool of shape \(1, 3, 4\) on cpu"),
        (lambda x: None, "NoneType None"),
    ],
)
@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_wrong_results_are_refused(function: Any, got: str, engine: str):
    function.__name__ = "wrong"
    optimizer = optimizer_of(lambda p, g, *, lr: p - lr * matrix(function)(g))([parameter(3, 4)], engine=engine)
    message = rf"the matrix function wrong must return .* first operand, \(1, 3, 4\) on cpu; it returned {got}"
    with pytest.raises(RuleError, match=message):
        optimizer.step()


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_function_may_not_modify_its_operands(engine: str):
    def halve(x):
        return x.div_(2)

    optimizer = optimizer_of(lambda p, g, *, lr: p - lr * matrix(halve)(g))([parameter(3, 4)], engine=engine)
    with pytest.raises(RuleError, match="the matrix function halve modified an operand"):
        optimizer.step()


def optimizer_of(rule: Callable[..., Any], *states: State, complex_: bool = False) -> type[RuleOptimizer]:
    def init(self: RuleOptimizer, params: Any, lr: float = 0.1, **options: Any) -> None:
        RuleOptimizer.__init__(self, params, {"lr": lr}, **options)

    capabilities = frozenset({"complex", "sparse"} if complex_ else ())
    body = {"__init__": init, "states": states, "rule": staticmethod(rule), "capabilities": capabilities}
    return type("Custom", (RuleOptimizer,), body)


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_complex_parameters_and_sparse_gradients_are_refused(engine: str):
    cls = optimizer_of(lambda p, g, *, lr: p - lr * times(g, p), complex_=True)
    with pytest.raises(ParameterError, match="Custom uses matrix functions: it does not support complex parameters"):
        cls([parameter(3, 3, dtype=torch.complex128)], engine=engine).step()
    p = parameter(3, 3)
    p.grad = p.grad.to_sparse()
    with pytest.raises(SparseGradientError, match="Custom uses matrix functions: it does not support sparse gradients"):
        cls([p], engine=engine).step()
    with pytest.raises(RuleError, match="a rule that uses matrix functions does not support"):
        optimizer_of(lambda p, g, w, *, lr: (p, w), State("w", shape=square), complex_=True)([p])


# --------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scalar": True}, "shape and scalar=True, dim or sparse=True"),
        ({"dim": -1}, "shape and scalar=True, dim or sparse=True"),
        ({"sparse": True}, "shape and scalar=True, dim or sparse=True"),
        ({"init": "p"}, 'shape and init="p"'),
    ],
)
def test_contradictory_states_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(RuleError, match=message):
        State("w", shape=square, **arguments)


@pytest.mark.parametrize("shape", [(), 3, None, (2, -1), (2.0,)])
def test_shape_must_be_a_shape(shape: Any):
    cls = optimizer_of(lambda p, g, w, *, lr: (p, w), State("w", shape=lambda s, o: shape))
    with pytest.raises(RuleError, match="State 'w': shape must return a tuple of sizes"):
        cls([parameter(3, 3)]).step()


def fails_for_vectors(shape: Any, options: Any) -> tuple[int, int]:
    return shape[1], shape[1]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda shape: shape, r"State 'w': the function shape fails for a parameter of shape \(3,\): TypeError: "),
        (fails_for_vectors, r"State 'w': the function shape fails for a parameter of shape \(3,\): IndexError: "),
        (lambda shape, options: options["zz"], r"State 'w': the function shape fails .*KeyError: 'zz'"),
    ],
)
def test_shape_function_that_raises_is_named(shape: Any, message: str):
    with pytest.raises(RuleError, match=message):
        State("w", shape=shape).shape_of(torch.zeros(3), {})


def test_shape_and_matrix_take_functions():
    with pytest.raises(RuleError, match=r"State 'w' got shape=\(3, 3\); it must be a function"):
        State("w", shape=(3, 3))  # type: ignore[arg-type]
    with pytest.raises(RuleError, match=r"matrix takes a function, got 3 \(int\)"):
        matrix(3)  # type: ignore[arg-type]


def test_state_of_another_shape_is_created_with_the_options_of_the_group():
    shape = lambda s, options: (s[-1], int(10 * options["lr"]))  # noqa: E731
    cls = optimizer_of(lambda p, g, w, *, lr: (p - g, w), State("w", shape=shape, init=0.5))
    params = [parameter(3, 4, dtype=torch.bfloat16), parameter(2, 3, dtype=torch.bfloat16)]
    optimizer = cls([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], state_dtype=torch.float32)
    optimizer.step()
    first, second = (optimizer.state[p]["w"] for p in params)
    torch.testing.assert_close(first, torch.full((4, 1), 0.5))
    torch.testing.assert_close(second, torch.full((3, 5), 0.5))


def run(optimizer: RuleOptimizer, steps: int = 2) -> list[Tensor]:
    for _ in range(steps):
        optimizer.step()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [t.detach().clone() for p in params for t in (p, *optimizer.state[p].values())]


@pytest.mark.parametrize("engine", ["loop", "auto"])
@pytest.mark.parametrize("copied", ["state dict", "deepcopy", "pickle"])
def test_training_continues_from_a_copy(copied: str, engine: str):
    p = parameter(3, 4)
    optimizer = Preconditioned([p], engine=engine)
    run(optimizer)
    q = Parameter(p.detach().clone())
    if copied == "state dict":
        other = Preconditioned([q], engine=engine)
        other.load_state_dict(optimizer.state_dict())
    else:
        duplicate = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}[copied]
        other = duplicate(optimizer)
        (q,) = other.param_groups[0]["params"]
    q.grad = p.grad.clone()
    assert all(map(torch.equal, run(other), run(optimizer)))


def test_state_dict_with_a_wrong_shape_is_refused_and_the_dtype_is_restored():
    p = parameter(3, 4, dtype=torch.bfloat16)
    optimizer = Preconditioned([p], state_dtype=torch.float32)
    run(optimizer)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["gram"].dtype is torch.float32
    saved["state"][0]["gram"] = torch.zeros(4, 4)
    with pytest.raises(ParameterError, match=r"gram of parameter 0 .* has shape \(4, 4\), expected \(3, 3\)"):
        optimizer.load_state_dict(saved)


def test_shape_of_a_loaded_state_depends_on_the_loaded_options():
    shape = lambda s, options: (int(options["lr"]),)  # noqa: E731
    cls = optimizer_of(lambda p, g, w, *, lr: (p - g, w), State("w", shape=shape))
    trained = cls([parameter(2, 2)], lr=3.0)
    trained.step()
    other = cls([parameter(2, 2)], lr=2.0)
    other.load_state_dict(trained.state_dict())
    (p,) = other.param_groups[0]["params"]
    assert other.state[p]["w"].shape == (3,)


def test_differentiable_records_the_function_and_passes_tensors():
    seen: list[Any] = []

    @matrix
    def scaled(x, factor):
        seen.append(factor)
        return factor * x @ x.mT

    p, lr = parameter(3, 3), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    p, g = p.detach(), p.grad.requires_grad_()
    p.requires_grad_()
    q = p.clone()
    q.grad = g
    optimizer_of(lambda p, g, *, lr: p - scaled(g, lr))([q], lr=lr, differentiable=True).step()
    q.sum().backward()
    assert isinstance(seen[0], Tensor)
    torch.testing.assert_close(lr.grad, -(g @ g.T).sum().detach())


# ---------------------------------------------------------------------------------------------------------- numel


@pytest.mark.parametrize("engine", ["loop", "foreach", "numba"])
@pytest.mark.parametrize("shape", [(), (5,), (0,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dim", [0, -1, -2])
def test_numel_of_a_dimension(engine: str, shape: tuple[int, ...], dim: int):
    """Also in rules that use neither rows nor columns."""
    p = Parameter(torch.ones(shape, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    optimizer = optimizer_of(lambda p, g, *, lr: p - g * numel(p, dim=dim))([p], engine=engine)
    if dim < 0 and len(shape) < 2:
        with pytest.raises((ParameterError, EngineError), match="is not a matrix"):
            optimizer.step()
        return
    optimizer.step()
    expected = 1.0 - (shape or (1,))[dim]
    assert torch.equal(p.detach(), torch.full(shape, expected, dtype=torch.float64))
