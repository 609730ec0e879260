"""Random rules in the rule language, also with reductions, rows, columns and matrix functions, for property tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from optplug import ops
from optplug.errors import RuleError
from optplug.rules.graph import Graph, Symbol
from optplug.rules.trace import RuleVariant

STATES: Mapping[str, int | None] = {"a": None, "b": None, "row": -1, "col": -2}
"""The states of a random rule that are not scalars, and the dimension in which they have size 1."""


def whole_shape(shape: Sequence[int], options: object) -> tuple[int, ...]:
    return (3, *(max(1, size) for size in shape[:1]))


WHOLE = ("v", "w")
"""The states of a random rule with the shape `whole_shape`."""

UNARY: dict[str, Callable[[Any], Any]] = {
    "halved": lambda x: 0.5 * x,
    "abs": ops.abs,
    "root": lambda x: ops.sqrt(ops.abs(x)),
    "neg": lambda x: -x,
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - 0.5 * y,
    "mul": lambda x, y: x * y / (1 + ops.abs(y)),
    "ratio": lambda x, y: x / (1 + ops.abs(y)),
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "lerp": lambda x, y: ops.lerp(x, y, 0.3),
    "where": lambda x, y: ops.where(x > y, 0.5 * x, y),
}
REDUCTIONS: dict[str, Callable[[Any], Any]] = {
    "norm": ops.norm,
    "mean": ops.mean,
    "amax": ops.amax,
    "dot": lambda x: ops.dot(x, 0.5 * x),
    "group mean": lambda x: ops.sum(x, over="group") / (1 + ops.sum(x * x, over="optimizer")),
}
ALONG: dict[str, Callable[[Any], Any]] = {
    f"{name} {dim}": (lambda x, reduce=reduce, dim=dim: reduce(x, dim=dim))
    for name, reduce in (("norm", ops.norm), ("mean", ops.mean), ("amax", ops.amax))
    for dim in (-1, -2)
}


def like(numbers: Tensor, x: Tensor) -> Tensor:
    """One number for each array of a batch, so that it can be combined with the batch."""
    return numbers.view(-1, *[1] * (x.ndim - 1))


@ops.matrix
def normalized(x: Tensor) -> Tensor:
    return x / like(1 + x.flatten(1).abs().sum(1), x)


@ops.matrix
def mixed(x: Tensor, y: Tensor | float) -> Tensor:
    if isinstance(y, float):
        return x * (1 + 0.1 * y)
    return x + like(y.flatten(1).sum(1) / (1 + y[0].numel()), x)


UNARY_MATRIX: dict[str, Callable[[Any], Any]] = {"normalized": normalized}
BINARY_MATRIX: dict[str, Callable[[Any, Any], Any]] = {"mixed": mixed, "mixed again": lambda x, y: mixed(x, y)}


@dataclass(frozen=True)
class RandomRule:
    """A rule as a list of operations on earlier values.

    Attributes:
        operations: for each operation its name and the indices of its operands.
        results: for `"p"` and each state the index of its new value.
        states: the names of the states, `"d"` for the scalar state.
    """

    operations: tuple[tuple[str, tuple[int, ...]], ...]
    results: tuple[tuple[str, int], ...]
    states: tuple[str, ...]

    def function(self) -> Callable[..., tuple[Any, ...]]:
        """The rule as a function."""
        known = {**UNARY, **BINARY, **REDUCTIONS, **ALONG, **UNARY_MATRIX, **BINARY_MATRIX}

        def compute(inputs: Sequence[Any]) -> tuple[Any, ...]:
            values = list(inputs)
            for name, operands in self.operations:
                values.append(known[name](*(values[i] for i in operands)))
            results = dict(self.results)
            p = values[0] - 0.1 * values[results["p"]]
            return (p, *(values[results[name]] for name in self.states))

        # The signature of a rule names its states.
        source = f"lambda p, g, {', '.join(self.states)}, *, lr: compute((p, g, {', '.join(self.states)}, lr))"
        rule: Callable[..., tuple[Any, ...]] = eval(source, {"compute": compute})
        return rule

    def variant(self) -> RuleVariant:
        """The variant of the rule in which all states exist."""
        dims = tuple((name, dim) for name in self.states if (dim := STATES.get(name)) is not None)
        whole = tuple(name for name in self.states if name in WHOLE)
        return RuleVariant(self.function(), (), self.states, ("d",), dims, whole_states=whole)


@st.composite
def random_rules(draw: st.DrawFn, *, rows: bool, matrices: bool = False, size: int = 14) -> RandomRule:
    """A rule with the states `a`, `b` and the scalar `d`; with `rows` also `row`, `col`; with `matrices` also `v`, `w`.

    Args:
        draw: provided by Hypothesis.
        rows: whether the rule uses rows and columns.
        matrices: whether the rule uses matrix functions.
        size: the largest number of operations.
    """
    states = ("a", "b", *(("row", "col") if rows else ()), *(WHOLE if matrices else ()), "d")
    kinds = {name: {-1: "row", -2: "column", None: "element"}[STATES.get(name)] for name in states}
    kinds |= {**dict.fromkeys(WHOLE, "whole"), "d": "scalar"}
    graph = Graph()
    values = [graph.input(name, kinds.get(name, "element")) for name in ("p", "g", *states)]  # type: ignore[arg-type]
    values.append(graph.input("lr", "scalar"))
    binary: dict[str, Callable[..., Any]] = {**BINARY, **(BINARY_MATRIX if matrices else {})}
    tables = {**UNARY, **REDUCTIONS, **binary, **(ALONG if rows else {}), **(UNARY_MATRIX if matrices else {})}
    operations = []
    for _ in range(draw(st.integers(1, size))):
        name = draw(st.sampled_from(sorted(tables)))
        count = 2 if name in binary else 1
        operands = tuple(draw(st.integers(0, len(values) - 1)) for _ in range(count))
        try:
            value = tables[name](*(values[i] for i in operands))
        except RuleError:  # for example the reduction of a scalar
            continue
        operations.append((name, operands))
        values.append(value)
    results = []
    for name in ("p", *states):
        allowed = {"scalar": ("scalar", "tensor")}.get(kinds.get(name, "element"), (kinds.get(name, "element"),))
        candidates = [i for i, v in enumerate(values) if isinstance(v, Symbol) and v.node.kind in allowed]
        results.append((name, draw(st.sampled_from(candidates[-6:]))))
    return RandomRule(tuple(operations), tuple(results), states)
