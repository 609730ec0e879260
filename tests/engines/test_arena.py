"""The memory of temporaries: vectors are disjoint, aligned, and use the same memory in each step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from optplug import RuleOptimizer, State, ops
from optplug.engines.arena import ALIGNMENT, Arena


def span(vector: Tensor) -> tuple[int, int]:
    return vector.data_ptr(), vector.data_ptr() + vector.numel() * vector.element_size()


def take_all(arena: Arena) -> list[Tensor]:
    sizes = ((5, torch.float32), (3, torch.float64), (0, torch.float32), (1000, torch.float64), (7, torch.float32))
    return [arena.take(elements, dtype) for elements, dtype in sizes]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_vectors_are_disjoint_and_have_the_requested_size_and_dtype(rounds: int):
    arena = Arena()
    for _ in range(rounds):
        arena.reset()
        vectors = take_all(arena)
    assert [(v.numel(), v.dtype) for v in vectors] == [
        (5, torch.float32),
        (3, torch.float64),
        (0, torch.float32),
        (1000, torch.float64),
        (7, torch.float32),
    ]
    for number, vector in enumerate(vectors):
        vector.fill_(float(number))
    assert all(bool((vector == number).all()) for number, vector in enumerate(vectors))
    spans = sorted(span(v) for v in vectors if v.numel())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_vectors_begin_at_cache_lines_of_the_memory():
    arena = Arena()
    take_all(arena)
    arena.reset()
    vectors = take_all(arena)
    assert {(v.data_ptr() - vectors[0].data_ptr()) % ALIGNMENT for v in vectors} == {0}


def test_memory_is_used_again_after_a_reset():
    arena = Arena()
    take_all(arena)  # the first time there is no memory yet
    arena.reset()
    first = [span(v) for v in take_all(arena)]
    for _ in range(5):
        arena.reset()
        assert [span(v) for v in take_all(arena)] == first


def test_vectors_in_use_stay_valid_when_the_memory_is_exhausted():
    arena = Arena()
    arena.take(10, torch.float32)
    arena.reset()
    small = arena.take(10, torch.float32).fill_(3)
    large = arena.take(100_000, torch.float32).fill_(4)
    assert small.tolist() == [3.0] * 10
    assert bool((large == 4).all())


class NeedsTemporary(RuleOptimizer):
    """The second segment needs the momentum that the first one overwrites."""

    states = (State("momentum"),)

    def __init__(self, params, lr: float = 0.1, **options) -> None:
        super().__init__(params, {"lr": lr}, **options)

    @staticmethod
    def rule(p, g, momentum, *, lr):
        return p - lr * ops.norm(g, over="optimizer") * momentum, ops.lerp(momentum, g, 0.1)


class NeedsTemporaryPerParameter(NeedsTemporary):
    @staticmethod
    def rule(p, g, momentum, *, lr):
        return p - lr * ops.norm(g) * momentum, ops.lerp(momentum, g, 0.1)


def steps(cls: type[RuleOptimizer], engine: str, count: int = 4) -> tuple[list[Tensor], RuleOptimizer]:
    """Steps of two groups and two dtypes, which have a bucket each."""
    generator = torch.Generator().manual_seed(3)
    params = [
        torch.nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64).to(dtype))
        for size, dtype in ((3000, torch.float32), (50, torch.float64), (70_000, torch.float32), (9, torch.float32))
    ]
    optimizer = cls([{"params": params[:2]}, {"params": params[2:], "lr": 0.2}], engine=engine)
    for _ in range(count):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()
    return [p.detach().double() for p in params], optimizer


@pytest.mark.parametrize("cls", [NeedsTemporary, NeedsTemporaryPerParameter])
def test_temporaries_of_different_buckets_do_not_disturb_each_other(cls: type[RuleOptimizer]):
    got, optimizer = steps(cls, "numba")
    assert {report.segments for report in optimizer.engine_report()} == {2}
    for a, b in zip(got, steps(cls, "loop")[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_steps():
    sizes = [len(steps(NeedsTemporaryPerParameter, "numba", count)[1]._arena._memory) for count in (2, 3, 10)]
    assert len(set(sizes)) == 1
    # The buckets step one after another: the memory is that of the largest.
    assert 4 * 70_009 <= sizes[0] < 4 * 70_009 + ALIGNMENT


def test_buckets_that_wait_for_each_other_have_memory_of_their_own():
    sizes = [len(steps(NeedsTemporary, "numba", count)[1]._arena._memory) for count in (3, 10)]
    assert sizes[0] == sizes[1]
    assert sizes[0] >= 4 * (3000 + 70_009) + 8 * 50
