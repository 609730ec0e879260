"""Random rules with reductions, rows and columns, and matrix functions, on the engines foreach and numba, compared with
engine loop.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from optplug import RuleOptimizer, State
from random_rules import STATES, WHOLE, RandomRule, random_rules, whole_shape

SHAPES = {
    False: [(), (5,), (0,), (3, 4), (40_000,), (3, 4), (5,)],
    True: [(3, 4), (1, 5), (6, 1), (2, 3, 4), (0, 3), (130, 270), (1, 5)],
}
"""Shapes of parameters, without and with rows and columns. The largest are split into several chunks."""


def optimizer_class(rule: RandomRule) -> type[RuleOptimizer]:
    def init(self: RuleOptimizer, params: Any, lr: float = 0.3, **options: Any) -> None:
        RuleOptimizer.__init__(self, params, {"lr": lr}, **options)

    states = tuple(
        State(name, dim=STATES.get(name), shape=whole_shape if name in WHOLE else None)
        if name != "d"
        else State("d", scalar=True, init=0.7)
        for name in rule.states
    )
    body = {"__init__": init, "states": states, "rule": staticmethod(rule.function()), "capabilities": frozenset()}
    return type("Random", (RuleOptimizer,), body)


def train(cls: type[RuleOptimizer], shapes: list[tuple[int, ...]], engine: str) -> list[Tensor]:
    """Three steps of two groups. One parameter has no gradient in the first step."""
    generator = torch.Generator().manual_seed(11)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params = [torch.nn.Parameter(random(shape)) for shape in shapes]
    optimizer = cls([{"params": params[:2]}, {"params": params[2:], "lr": 0.2}], engine=engine)
    for step in range(3):
        for p in params:
            p.grad = random(p.shape)
        if step == 0:
            params[1].grad = None
        optimizer.step()
    return [t.detach() for p in params for t in (p, *optimizer.state[p].values())]


def check(rule: RandomRule, *, rows: bool, engine: str) -> None:
    cls = optimizer_class(rule)
    for got, expected in zip(train(cls, SHAPES[rows], engine), train(cls, SHAPES[rows], "loop"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


EXAMPLES = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MORE_EXAMPLES = settings(EXAMPLES, max_examples=60)
ENGINES = pytest.mark.parametrize("engine", ["foreach", "numba"])


@ENGINES
@EXAMPLES
@given(rule=random_rules(rows=False))
def test_random_rules(engine: str, rule: RandomRule):
    check(rule, rows=False, engine=engine)


@ENGINES
@EXAMPLES
@given(rule=random_rules(rows=True))
def test_random_rules_with_rows_and_columns(engine: str, rule: RandomRule):
    check(rule, rows=True, engine=engine)


@ENGINES
@EXAMPLES
@given(rule=random_rules(rows=False, matrices=True))
def test_random_rules_with_matrix_functions(engine: str, rule: RandomRule):
    check(rule, rows=False, engine=engine)


@pytest.mark.slow
@ENGINES
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("matrices", [False, True])
def test_more_random_rules(engine: str, rows: bool, matrices: bool):
    @MORE_EXAMPLES
    @given(rule=random_rules(rows=rows, matrices=matrices, size=24))
    def more(rule: RandomRule) -> None:
        check(rule, rows=rows, engine=engine)

    more()
