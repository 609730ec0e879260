"""How graphs are cut into segments: what each segment reads, computes, writes and reduces."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import llvmlite
import llvmlite.ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import optplug
from optplug import ops
from optplug.engines import foreach
from optplug.engines.llvm_ir import write_kernel
from optplug.optim import dispatch
from optplug.rules.graph import Node
from optplug.rules.ops import REDUCTIONS, combine_shared, compute_tensor_scalars, count_values, reduce_along
from optplug.rules.segments import RECOMPUTED_READS, Segment
from optplug.rules.trace import RuleVariant, TracedRule
from random_rules import RandomRule, random_rules

CLASSIC = [name for name in optplug.list_optimizers("optplug-classic:*") if name != "lbfgs"]


def traced(rule: Callable[..., Any], *states: str, scalars: Sequence[str] = (), dims: dict[str, int] | None = None):
    dims = dims or {}
    return TracedRule(RuleVariant(rule, (), states, tuple(scalars), tuple(dims.items())), {"lr": 0})


def summary(graph: TracedRule) -> list[tuple[Any, ...]]:
    """For each segment: its space, what it loads and stores, and the operations of its reductions."""
    return [
        (s.space, set(s.loads.values()), set(s.stores), [n.op for n in (*s.reductions, *s.line_reductions.values())])
        for s in graph.segments
    ]


def lamb(p, g, m, v, *, lr):
    m, v = ops.lerp(m, g, 0.1), ops.lerp(v, g * g, 0.1)
    update = m / (ops.sqrt(v) + 1e-6)
    return p - lr * ops.norm(p) / ops.norm(update) * update, m, v


def test_lamb_has_two_segments_without_temporaries():
    graph = traced(lamb, "m", "v")
    assert summary(graph) == [
        ("element", {"p", "g", "m", "v"}, {"m", "v"}, ["dot", "dot"]),
        ("element", {"p", "m", "v"}, {"p"}, []),
    ]
    assert graph.temporaries(graph.segments) == {}


def test_overwritten_value_that_is_needed_later_is_stored_in_a_temporary():
    graph = traced(lambda p, g, m, *, lr: (p - lr * ops.norm(g) * m, ops.lerp(m, g, 0.1)), "m")
    assert summary(graph) == [
        ("element", {"g", "m"}, {"m", "t0"}, ["dot"]),
        ("element", {"p", "t0"}, {"p"}, []),
    ]


def test_value_is_computed_again_if_that_reads_few_values():
    graph = traced(lambda p, g, *, lr: p - lr * (g / (1 + ops.abs(p))) / ops.norm(g / (1 + ops.abs(p))))
    assert summary(graph) == [
        ("element", {"p", "g"}, set(), ["dot"]),
        ("element", {"p", "g"}, {"p"}, []),
    ]


def test_value_is_stored_if_its_computation_reads_many_values():
    assert RECOMPUTED_READS == 2

    def rule(p, g, a, b, *, lr):
        x = g * a * b
        return p - lr * x / ops.norm(x), a, b

    assert summary(traced(rule, "a", "b")) == [
        ("element", {"g", "a", "b"}, {"t0"}, ["dot"]),
        ("element", {"p", "t0"}, {"p"}, []),
    ]


def test_reduction_of_a_reduced_value_takes_one_more_segment():
    def rule(p, g, *, lr):
        scaled = g / ops.norm(g)
        return p - lr * scaled * ops.amax(scaled)

    assert summary(traced(rule)) == [
        ("element", {"g"}, set(), ["dot"]),
        ("element", {"g"}, set(), ["amax"]),
        ("element", {"p", "g"}, {"p"}, []),
    ]


def test_reductions_that_no_output_needs_are_dropped_unless_other_buckets_need_them():
    def unused(p, g, *, lr):
        ops.norm(g)
        return p - lr * g

    def shared(p, g, *, lr):
        ops.norm(g, over="group")
        return p - lr * g

    assert summary(traced(unused)) == [("element", {"p", "g"}, {"p"}, [])]
    assert summary(traced(shared)) == [("element", {"p", "g"}, {"p"}, ["dot"])]


def test_rows_and_columns_have_segments_of_their_own():
    def rule(p, g, row, col, *, lr):
        row = ops.lerp(row, ops.mean(g * g, dim=-1), 0.1)
        col = ops.lerp(col, ops.mean(g * g, dim=-2), 0.1)
        return p - lr * g / ops.sqrt(row * col / ops.mean(row, dim=-2)), row, col

    graph = traced(rule, "row", "col", dims={"row": -1, "col": -2})
    named = {name: f"{node.op} of {node.kind}" for name, node in graph.temporaries(graph.segments).items()}
    assert [(s.space, {named.get(x, x) for x in s.loads.values()}) for s in graph.segments] == [
        ("element", {"g"}),
        ("row", {"row", "sum of row"}),
        ("column", {"col", "sum of column"}),
        ("matrix", {"sum of matrix"}),
        ("element", {"p", "g", "row", "col", "div of matrix"}),
    ]
    assert [{named.get(x, x) for x in (*s.stores, *s.line_reductions)} for s in graph.segments] == [
        {"sum of row", "sum of column"},
        {"row", "sum of matrix"},
        {"col"},
        {"div of matrix"},
        {"p"},
    ]


@pytest.mark.parametrize("name", CLASSIC)
def test_rule_without_reductions_has_one_segment_with_its_whole_graph(name: str):
    for graph in graphs_of(name):
        (segment,) = graph.segments
        assert not graph.reduces
        assert list(segment.nodes) == graph.nodes
        assert set(segment.loads.values()) == set(graph.inputs)
        assert dict(segment.stores) == graph.outputs
        assert list(segment.constants) == graph.hoisted_scalars
        temporaries = graph.temporaries(graph.segments)
        unused = (segment.reductions, segment.line_reductions, temporaries, graph.scalars_by_level)
        assert not any(unused)


def graphs_of(name: str) -> list[TracedRule]:
    """The graphs of the declared cases of an optimizer."""
    cls = optplug.get_optimizer(name)
    graphs = []
    for case in cls.cases:
        optimizer = cls([torch.nn.Parameter(torch.zeros(3))], **case)
        (group,) = optimizer.param_groups
        settings = dispatch.group_settings("foreach", {**group, "foreach": None}, optimizer._variant(group), None)
        graph = dispatch.find_candidates(settings).traced
        assert graph is not None
        graphs.append(graph)
    return graphs


def digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def test_graphs_and_programs_of_the_classic_rules_are_those_before_reductions():
    """Reductions and modifiers that a rule does not use must not change its graph, nor what engine foreach runs."""
    texts = {name: [text for g in graphs_of(name) for text in (str(g), foreach.source(g))] for name in CLASSIC}
    assert {name: digest(found)[:16] for name, found in texts.items()} == CLASSIC_DIGESTS


def test_kernels_of_the_classic_rules_are_those_that_were_recorded():
    if llvmlite.__version__ != LLVMLITE:
        pytest.skip(f"the text of LLVM code depends on llvmlite: recorded with {LLVMLITE}, not {llvmlite.__version__}")
    assert digest(kernel for name in CLASSIC for graph in graphs_of(name) for kernel in kernels(graph)) == KERNEL_DIGEST


def kernels(graph: TracedRule) -> Iterator[str]:
    """The LLVM code of a graph with one segment, for several dtypes."""
    (segment,) = graph.segments
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        module = llvmlite.ir.Module("m")
        write_kernel(segment, dict.fromkeys(("p", "g", *graph.variant.array_states), dtype), module)
        yield str(module)


LLVMLITE = "0.50.0"
KERNEL_DIGEST = "e669d4ba9831bca46d9cc8d8d81d9b928259aec5b8679fb333a8e39014664536"
"""The digest of the kernels of version 0.1.0, with two changes: the code of `sign`, and wider vectors for rules with a
state (`vector_bits`)."""

CLASSIC_DIGESTS = {
    "adadelta": "bd2bc5ff1d04d5f0",
    "adagrad": "4c13cfdae47642a0",
    "adam": "e6fe2cb67354f7c6",
    "adamax": "3ac4bad17ac3e559",
    "adamw": "04f5fadd2a4e929e",
    "asgd": "0f5c24c39ce19afb",
    "rmsprop": "6ca5a3cd9b35e29f",
    "rprop": "8892ddc655933d0d",
    "sgd": "151056bf81953956",
    "sparse_adam": "be8e46b7148357c8",
}
"""The digests of the graphs and programs of version 0.1.0, before the language had reductions."""

# ------------------------------------------------------------------ interpretation of segments


class Interpreter:
    """Runs the segments of a graph on the tensors of one parameter, in float64.

    Args:
        graph: the graph.
        roles: the tensors.
        scalars: the scalars.
        narrow: whether all roles are stored in float16.
    """

    def __init__(
        self, graph: TracedRule, roles: dict[str, Tensor], scalars: dict[str, float], *, narrow: bool = False
    ) -> None:
        self.graph = graph
        narrow_roles = frozenset(roles) if narrow else frozenset()
        self.segments, self.calls = graph.cut(narrow_roles), list(graph.calls(narrow_roles))
        self.all_calls = list(self.calls)
        self.narrow = narrow
        self.memory: dict[str, Tensor] = {name: t.clone() for name, t in roles.items()}
        hoisted, _ = graph.compute_scalars(scalars)
        self.known: dict[Node, Any] = dict(zip(graph.hoisted_scalars, hoisted, strict=True))
        self.shape = roles["p"].shape

    def run(self) -> dict[str, Any]:
        for segment in self.segments:
            self.compute_tensor_scalars(segment.level)
            self.run_calls(segment.level)
            self.run_segment(segment)
        self.run_calls(math.inf)
        self.compute_tensor_scalars(max(self.graph.scalars_by_level, default=0))
        results = {call.node: call.result for call in self.all_calls}
        whole = {name: node for name, node in self.graph.outputs.items() if node.kind == "whole"}
        self.memory |= {name: self.memory[results.get(node, node.value)] for name, node in whole.items()}
        outputs = {name: self.memory[name] for name in self.graph.outputs}
        return outputs | {name: self.known[node] for name, node in self.graph.tensor_outputs.items()}

    def compute_tensor_scalars(self, level: int) -> None:
        for k in sorted(self.graph.scalars_by_level):
            for node in self.graph.scalars_by_level[k] if k <= level else ():
                if node not in self.known:
                    self.known[node] = self.tensor_scalar(node)

    def tensor_scalar(self, node: Node) -> Tensor:
        if node.op == "numel":
            return torch.tensor(float(count_values(self.shape, node.value)), dtype=torch.float64)
        return compute_tensor_scalars(node.op, *(a.value if a.op == "const" else self.known[a] for a in node.args))

    def run_calls(self, level: float) -> None:
        while self.calls and self.calls[0].level <= level:
            call = self.calls.pop(0)
            arrays = [self.memory[name].clone().unsqueeze(0) for name in call.operands]
            scalars = [a.value if a.op == "const" else self.known[a] for a in call.node.args if not a.is_array]
            self.memory[call.result] = call.node.value(arrays, scalars).squeeze(0)

    def run_segment(self, segment: Segment) -> None:
        assert all(n.kind == segment.space or n in segment.loads for n in segment.nodes)
        values = {node: self.memory[name].clone() for node, name in segment.loads.items()}
        constants = {node: self.known[node] for node in segment.constants}  # no other scalar may be used

        def value(a: Node) -> Any:
            return a.value if a.op == "const" else values[a] if a.is_array else constants[a]

        for node in segment.nodes:
            if node not in values:
                lerps = node.op == "lerp"
                operands = [value(a) for a in node.args]
                values[node] = ops.lerp(*operands) if lerps else compute_tensor_scalars(node.op, *operands)
        for node in segment.reductions:
            self.known[node] = REDUCTIONS[node.op](*(values[a] for a in node.args))
        for name, node in segment.line_reductions.items():
            self.memory[name] = reduce_along(node.op, node.value, *(values[a] for a in node.args))
        for name, node in segment.stores.items():
            rounds = self.narrow and name in self.graph.outputs
            self.memory[name] = values[node].half().double() if rounds else values[node]


SHAPE = (3, 4)


def check(rule: RandomRule, *, narrow: bool = False) -> None:
    """Compare the interpreted segments with the rule itself. Results in narrow roles are rounded once, at the end."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"row": (3, 1), "col": (1, 4), "v": (3, 3), "w": (3, 3)}
    names = ("p", "g", *(name for name in rule.states if name != "d"))
    roles = {name: torch.randn(shapes.get(name, SHAPE), generator=generator, dtype=torch.float64) for name in names}
    if narrow:
        roles = {name: t.half().double() for name, t in roles.items()}
    scalars = {"lr": 0.3, "d": 0.7}
    graph = TracedRule(rule.variant(), {"lr": 0})
    states = [scalars.get(name, roles.get(name)) for name in rule.states]
    expected = rule.function()(roles["p"].clone(), roles["g"].clone(), *states, lr=scalars["lr"])
    assert combine_shared.get() is None
    got = {**roles, **Interpreter(graph, roles, scalars, narrow=narrow).run()}
    for name, value in zip(("p", *rule.states), expected, strict=True):
        if name in got:
            tolerance = {"rtol": 1e-3, "atol": 1e-7} if narrow and name in graph.outputs else {}
            torch.testing.assert_close(got[name], torch.as_tensor(value, dtype=torch.float64), **tolerance)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_rules(rows=False))
def test_segments_of_random_rules_compute_the_rule(rule: RandomRule):
    check(rule)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_rules(rows=True))
def test_segments_of_random_rules_with_rows_and_columns_compute_the_rule(rule: RandomRule):
    check(rule)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_rules(rows=False, matrices=True) | random_rules(rows=True, matrices=True))
def test_segments_of_random_rules_with_matrix_functions_compute_the_rule(rule: RandomRule):
    check(rule)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_rules(rows=False, matrices=True) | random_rules(rows=True, matrices=True))
def test_reductions_and_later_segments_do_not_read_rounded_values(rule: RandomRule):
    check(rule, narrow=True)
