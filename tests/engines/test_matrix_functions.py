"""Matrix functions on the engines foreach and numba, compared with engine loop; batches, copies, dtypes, report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optplug import RuleOptimizer, State
from optplug.engines import cpu_programs, foreach
from optplug.engines.matrix_calls import as_batch
from optplug.errors import RuleError
from optplug.ops import lerp, matrix, maximum, mean, norm, numel, sqrt, where

FAST = ("foreach", "numba")
SHAPES = [(4, 6), (6, 4), (4, 6), (2, 3, 5), (4, 6), (1, 1), (0, 3), (3, 0), (2, 3, 5), (70, 300)]


@matrix
def orthogonalize(x: Tensor, steps: float, eps: float, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Newton-Schulz iterations. The result of tall matrices is not contiguous."""
    y = x.to(dtype)
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + eps)
    y = y.mT.contiguous() if x.shape[-2] > x.shape[-1] else y
    for _ in range(int(steps)):
        y = 1.5 * y - 0.5 * (y @ y.mT) @ y
    return y.mT if x.shape[-2] > x.shape[-1] else y


@matrix
def accumulate(total: Tensor, g: Tensor, weight: float) -> Tensor:
    return torch.lerp(total, g @ g.mT, weight)


@matrix
def smooth(total: Tensor) -> Tensor:
    return total / (1 + total.abs().amax(dim=(-2, -1), keepdim=True))


@matrix
def apply(x: Tensor, y: Tensor) -> Tensor:
    return y @ x


def muon(p, g, m, step, *, lr):
    m = lerp(m, g, 0.1)
    update = orthogonalize(lerp(g, m, 0.9), 3, 1e-7)
    return p - lr * sqrt(maximum(1.0, numel(p, dim=-2) / numel(p, dim=-1))) * update, m, step + 1


def heavy_ball(p, g, m, step, *, lr):
    """The operands are the new momentum, which is stored, and the old one, which is also needed after the call."""
    new = 0.9 * m + g
    return p - lr * orthogonalize(new, 2, 1e-7) - 0.01 * (m + orthogonalize(m, 1, 1e-7)), new, step + 1


def two_in_sequence(p, g, m, step, *, lr):
    first = orthogonalize(g, 2, 1e-7)
    second = orthogonalize(lerp(first, g, 0.5), 1, 1e-7)
    third = orthogonalize(second, 1, 1e-7)
    return p - lr * (second + third), lerp(m, first, 0.1), step + 1


def inputs_only(p, g, m, step, *, lr):
    return orthogonalize(p, 1, 1e-7) - lr * orthogonalize(g, 1, 1e-7), orthogonalize(m, 1, 1.0), step + 1


def scalars_differ(p, g, m, step, *, lr):
    step = step + 1
    return p - lr * orthogonalize(g, step, 1e-7), orthogonalize(m + g, 1, lr), step


def with_reductions(p, g, m, step, *, lr):
    g = g / (1 + norm(g))
    update = orthogonalize(g * norm(p, over="group"), 2, 1e-7)
    ratio = norm(p) / (1 + norm(update))
    return p - lr * ratio * update / (1 + norm(update, over="optimizer")), m + update, step + ratio


def with_rows(p, g, m, step, *, lr):
    update = orthogonalize(g / (1 + mean(g * g, dim=-1)), 2, 1e-7)
    update = where(update > 0, update, 0.5 * update) / (1 + sqrt(mean(update * update, dim=-2)))
    return p - lr * orthogonalize(update, 1, 1e-7), m, step + 1


def whole(p, g, m, step, gram, factor, *, lr):
    """The old value of `factor` is read after its new value has been computed; `gram` gets the old factor."""
    total = accumulate(gram, g, 0.5)
    new = smooth(smooth(total))
    return p - lr * apply(g, new) - 0.1 * apply(m, factor), lerp(m, apply(g, total), 0.1), step + 1, factor, new


def first_size(shape: Any, options: Any) -> tuple[int, ...]:
    return (*shape[:-1], shape[-2])


ELEMENTWISE = (State("m"), State("step", scalar=True))
WHOLE = (State("gram", shape=first_size), State("factor", shape=first_size, init=0.5))
RULES: dict[str, tuple[Callable[..., Any], tuple[State, ...]]] = {
    **{
        rule.__name__: (rule, ELEMENTWISE)
        for rule in (muon, heavy_ball, two_in_sequence, inputs_only, scalars_differ, with_reductions, with_rows)
    },
    "whole": (whole, (*ELEMENTWISE, *WHOLE)),
}


def make(rule: Callable[..., Any], *states: State) -> type[RuleOptimizer]:
    def init(self: RuleOptimizer, params: Any, lr: float = 0.1, **options: Any) -> None:
        RuleOptimizer.__init__(self, params, {"lr": lr}, **options)

    body = {"__init__": init, "states": states, "rule": staticmethod(rule), "capabilities": frozenset()}
    return type("Custom", (RuleOptimizer,), body)


def train(cls: type[RuleOptimizer], dtype: torch.dtype = torch.float64, shapes: Any = SHAPES, **options: Any) -> Any:
    """Three steps of two groups. Some parameters have no gradient in the first step, so that their steps differ."""
    generator = torch.Generator().manual_seed(17)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    params = [Parameter(random(shape)) for shape in shapes]
    optimizer = cls([{"params": params[:-1]}, {"params": params[-1:], "lr": 0.2}], **options)
    for step in range(3):
        for i, p in enumerate(params):
            p.grad = None if step == 0 and i in (0, 3) else random(p.shape)
        optimizer.step()
    return optimizer, [t.detach().double() for p in params for t in (p, *optimizer.state[p].values())]


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_engines_agree_with_loop(name: str, engine: str, dtype: torch.dtype, limit: float):
    cls = make(RULES[name][0], *RULES[name][1])
    optimizer, got = train(cls, dtype, engine=engine)
    _, expected = train(cls, dtype, engine="loop")
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)
    assert {report.engine for report in optimizer.engine_report()} == {engine}


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("name", ["muon", "heavy_ball", "whole"])
@pytest.mark.parametrize(
    "options",
    [
        {"maximize": True, "cautious": True},
        {"clip_value": 0.5, "clip_norm": 1.0},
        {"agc": 0.1, "state_dtype": torch.float64},
    ],
    ids=str,
)
def test_modifiers_and_matrix_functions(name: str, engine: str, options: dict[str, Any]):
    cls = make(RULES[name][0], *RULES[name][1])
    for a, b in zip(
        train(cls, torch.float64, engine=engine, **options)[1],
        train(cls, torch.float64, engine="loop", **options)[1],
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("name", ["muon", "heavy_ball", "whole", "two_in_sequence"])
@pytest.mark.parametrize(
    ("dtype", "state_dtype"), [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_narrow_dtypes(name: str, engine: str, dtype: torch.dtype, state_dtype: torch.dtype | None):
    """Compared with steps in float64 that start from the same values: the distance is that of the storage."""
    shapes = [(4, 6), (6, 4), (4, 6)]
    cls = make(RULES[name][0], *RULES[name][1])
    optimizer, got = train(cls, dtype, shapes, engine=engine, state_dtype=state_dtype)
    for a, b in zip(got, train(cls, torch.float64, shapes, engine="loop")[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
    for p, state in optimizer.state.items():
        assert p.dtype is dtype
        assert {t.dtype for t in state.values() if t.ndim} == {state_dtype or dtype}


@pytest.mark.parametrize("engine", FAST)
def test_parameters_of_one_shape_with_equal_scalars_are_one_call(engine: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(foreach.CHUNK_BYTES, "cpu", 8)
    calls: list[tuple[Any, ...]] = []

    @matrix
    def spy(x: Tensor, step: float) -> Tensor:
        calls.append((tuple(x.shape), step))
        return x * step

    def rule(p, g, m, step, *, lr):
        return p - lr * spy(2 * g, step), m, step + 1

    params = [Parameter(torch.ones(shape)) for shape in [(2, 3), (4, 5), (2, 3), (4, 5), (2, 3)]]
    optimizer = make(rule, *ELEMENTWISE)(params, engine=engine)
    for p in params[:-1]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert calls == [((2, 2, 3), 0.0), ((2, 4, 5), 0.0)]
    calls.clear()
    params[-1].grad = torch.ones(2, 3)
    optimizer.step()
    assert sorted(calls) == [((1, 2, 3), 0.0), ((2, 2, 3), 1.0), ((2, 4, 5), 1.0)]


@pytest.mark.parametrize("engine", FAST)
def test_scalars_that_a_function_does_not_take_do_not_split_its_batches(engine: str):
    batches: list[int] = []

    @matrix
    def spy(x: Tensor) -> Tensor:
        batches.append(len(x))
        return x + 1

    params = [Parameter(torch.ones(2, 3)) for _ in range(3)]
    optimizer = make(lambda p, g, m, step, *, lr: (p - lr * step * spy(g), m, step + 1), *ELEMENTWISE)(
        params, engine=engine
    )
    params[0].grad = torch.ones(2, 3)
    optimizer.step()
    for p in params:
        p.grad = torch.ones(2, 3)
    batches.clear()
    optimizer.step()
    assert sum(batches) == 3
    assert batches == [3] or engine == "foreach"  # which steps parameters with equal scalars together


def test_batch_of_temporaries_is_a_view(monkeypatch: pytest.MonkeyPatch):
    """Engine numba stores the operand of several parameters of one shape so that it is a batch without a copy."""
    copies: list[Any] = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda *args, **kwargs: copies.append(args) or stack(*args, **kwargs))
    shapes = [(2, 3), (4, 5), (2, 3), (4, 5), (2, 3)]
    train(make(muon, *ELEMENTWISE), torch.float32, shapes, engine="numba")
    assert copies == []


def test_kernel_reads_the_memory_of_the_result():
    results: list[Tensor] = []

    @matrix
    def spy(x: Tensor) -> Tensor:
        results.append(x + 1)
        return results[-1]

    seen: list[Any] = []
    original = cpu_programs.SegmentedProgram._run

    def run(self: Any, segment: Any, kernel: Any, arguments: Any, *rest: Any) -> Any:
        seen.append(set(arguments[0].flatten().tolist()))
        return original(self, segment, kernel, arguments, *rest)

    params = [Parameter(torch.ones(2, 3)) for _ in range(2)]
    for p in params:
        p.grad = torch.ones(2, 3)
    optimizer = make(lambda p, g, *, lr: p - lr * spy(2 * g))(params, engine="numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_programs.SegmentedProgram, "_run", run)
        optimizer.step()
    (result,) = results
    assert {t.data_ptr() for t in result.unbind()} <= seen[-1]
    assert not {t.data_ptr() for t in result.unbind()} & seen[0]


def test_as_batch_copies_only_what_is_not_adjacent():
    memory = torch.arange(24.0)
    one, two, three = memory[:6].view(2, 3), memory[6:12].view(2, 3), memory[12:18].view(2, 3)
    cases = [([one], True), ([one, two, three], True), ([two, three], True), ([one, three], False)]
    cases += [([two, one], False), ([one, two.clone()], False), ([one.mT, two.mT], False)]
    for tensors, is_view in cases:
        batch = as_batch(tensors)
        assert torch.equal(batch, torch.stack(tensors))
        assert (batch.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()) == is_view


@pytest.mark.parametrize("engine", ["loop", *FAST])
def test_function_that_returns_its_operand(engine: str):
    """The result is a copy: it must not change when the state that the function returned is overwritten."""

    @matrix
    def same(x: Tensor) -> Tensor:
        return x

    def rule(p, g, a, b, *, lr):
        return p - lr * same(a), a + g, same(a)

    p = Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    optimizer = make(rule, State("a", init=1.0), State("b"))([p], engine=engine)
    optimizer.step()
    state = optimizer.state[p]
    assert [float(t[0, 0]) for t in (p.detach(), state["a"], state["b"])] == pytest.approx([-0.1, 2.0, 1.0])


@pytest.mark.parametrize("engine", FAST)
def test_states_of_another_shape_can_be_exchanged(engine: str):
    p = Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    states = State("v", shape=lambda s, o: (3,), init=1.0), State("w", shape=lambda s, o: (3,), init=2.0)
    optimizer = make(lambda p, g, v, w, *, lr: (p - lr * apply(g, g), w, v), *states)([p], engine=engine)
    optimizer.step()
    assert [float(optimizer.state[p][name][0]) for name in "vw"] == [2.0, 1.0]


@pytest.mark.parametrize("engine", ["loop", *FAST])
@pytest.mark.parametrize("rule", [lambda p, g, v, w, *, lr: (p, v, v), lambda p, g, v, w, *, lr: (p, v, smooth(v))])
def test_value_of_another_shape_than_the_state_is_refused(engine: str, rule: Callable[..., Any]):
    """A copy would broadcast it."""
    p = Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    states = State("v", shape=lambda s, o: (3, 1)), State("w", shape=lambda s, o: (3, 2))
    optimizer = make(rule, *states)([p], engine=engine)
    with pytest.raises(RuleError, match=r"returned a value of shape \(3, 1\) for 'w', which has \(3, 2\)"):
        optimizer.step()


@pytest.mark.parametrize("engine", FAST)
def test_matrix_functions_of_states_only(engine: str):
    def rule(p, g, gram, *, lr):
        return p, smooth(gram)

    p = Parameter(torch.ones(2, 3))
    p.grad = torch.ones(2, 3)
    optimizer = make(rule, State("gram", shape=first_size, init=3.0))([p], engine=engine)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["gram"], torch.full((2, 2), 0.75))
    assert torch.equal(p.detach(), torch.ones(2, 3))


def test_other_order_in_memory_and_replaced_states():
    cls = make(*(RULES["whole"][0], *RULES["whole"][1]))
    expected = train(cls, shapes=[(4, 6), (4, 6)], engine="loop")[1]
    generator = torch.Generator().manual_seed(17)

    def random() -> Tensor:
        return torch.randn((4, 6), generator=generator, dtype=torch.float64)

    transposed, plain = (Parameter(random()) for _ in range(2))
    transposed.data = transposed.data.mT.contiguous().mT
    optimizer = cls([{"params": [transposed]}, {"params": [plain], "lr": 0.2}])
    for step in range(3):
        for i, p in enumerate((transposed, plain)):
            p.grad = None if step == 0 and i == 0 else random()
        optimizer.step()
        if step == 1:  # the buckets of the cache are no longer valid
            gram = optimizer.state[plain]["gram"]
            optimizer.state[plain]["gram"] = gram.mT.contiguous().mT
    got = [t.detach() for p in (transposed, plain) for t in (p, *optimizer.state[p].values())]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-11, atol=1e-11)
    assert [report.engine for report in optimizer.engine_report()] == ["foreach", "foreach"]
    assert "its rows are not contiguous" in optimizer.engine_report()[0].reason


def test_state_with_another_shape_than_declared_is_not_stepped_by_a_kernel():
    p = Parameter(torch.ones(2, 3))
    p.grad = torch.ones(2, 3)
    optimizer = make(lambda p, g, w, *, lr: (p - lr * apply(g, w), w), State("w", shape=first_size))([p])
    optimizer.step()
    optimizer.state[p]["w"] = torch.eye(2)[None]
    with pytest.raises(RuleError, match="apply must return"):
        optimizer.step()
    (report,) = optimizer.engine_report()
    assert report.engine == "numba"  # the last step that succeeded


def test_report_names_matrix_functions_and_counts_segments():
    optimizer, _ = train(make(two_in_sequence, *ELEMENTWISE), torch.float32, [(2, 3), (2, 3)])
    report = optimizer.engine_report()[0]
    assert (report.engine, report.segments) == ("numba", 2)
    assert report.matrix_functions == ("orthogonalize",)
    assert str(report).endswith(" in 2 segments, matrix: orthogonalize")
    optimizer, _ = train(make(two_in_sequence, *ELEMENTWISE), torch.float32, [(2, 3), (2, 3)], engine="foreach")
    assert str(optimizer.engine_report()[0]).endswith(", matrix: orthogonalize")


@pytest.mark.parametrize("engine", FAST)
def test_vectors_and_numbers_are_passed_with_a_batch_dimension(engine: str):
    shapes: list[Any] = []

    @matrix
    def spy(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x + 1

    params = [Parameter(torch.zeros(shape)) for shape in [(), (5,), ()]]
    for p in params:
        p.grad = torch.ones_like(p)
    make(lambda p, g, *, lr: p - spy(g))(params, engine=engine).step()
    assert sorted(shapes) == [(1, 5), (2, 1)]
    assert all(torch.equal(p.detach(), torch.full_like(p, -2.0)) for p in params)


def test_fused_part_does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()

    @matrix
    def double(x: Tensor) -> Tensor:
        return x + x

    def rule(p, g, *, lr):
        update = double(g / (1 + norm(g)))
        return p - lr * update / (1 + norm(update))

    results = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(train(make(rule), torch.float32, [(900, 1500), (900, 1500)], engine="numba")[1])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_tensors_that_graphs_do_not_take_are_stepped_by_loop():
    class Subclass(Tensor):
        pass

    def trained(p: Tensor) -> RuleOptimizer:
        p.grad = torch.ones(2, 3).as_subclass(type(p)) if type(p) is Subclass else torch.ones(2, 3)
        optimizer = make(muon, *ELEMENTWISE)([p])
        optimizer.step()
        return optimizer

    p, q = torch.ones(2, 3).as_subclass(Subclass).requires_grad_(), Parameter(torch.ones(2, 3))
    (report,) = trained(p).engine_report()
    assert (report.engine, report.matrix_functions) == ("loop", ())
    assert "Subclass is not a plain tensor" in report.reason
    trained(q)
    torch.testing.assert_close(p.detach().as_subclass(Tensor), q.detach())
