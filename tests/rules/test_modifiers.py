"""The modifiers as functions, and the graphs of rules with and without them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import optplug
from optplug.errors import RuleError
from optplug.rules.graph import Graph
from optplug.rules.modifiers import CLIPS, postlude, prelude
from optplug.rules.trace import DECAY_FACTOR, RuleVariant, TracedRule, rule_signature, trace

NAN, INF = math.nan, math.inf


def run_prelude(p: Any, g: Any, hyperparameters: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    off = {"maximize": False, "clips": (), "decay_kind": "none", "decay_factor": None}
    return prelude(p, g, hyperparameters or {}, **{**off, **options})


def test_prelude_applies_maximize_and_weight_decay_to_numbers():
    assert run_prelude(2.0, 1.0, {"weight_decay": 0.5}, maximize=True, decay_kind="coupled") == (2.0, 0.0)
    assert run_prelude(2.0, 1.0, decay_factor=0.75, decay_kind="decoupled") == (1.5, 1.0)
    assert run_prelude(2.0, 1.0) == (2.0, 1.0)


def test_gradient_is_limited_after_maximize_and_before_the_weight_decay():
    options = {"maximize": True, "clips": ("clip_value",), "decay_kind": "coupled"}
    assert run_prelude(2.0, 9.0, {"clip_value": 3.0, "weight_decay": 0.5}, **options) == (2.0, -2.0)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "limit", "p", "g", "expected"),
    [
        ("clip_value", 0.5, (1, 1), (0.25, -2), (0.25, -0.5)),
        ("clip_value", 0.5, (1, 1), (NAN, INF), (NAN, 0.5)),
        ("clip_norm", 1, (1, 1), (3, -4), (0.6, -0.8)),
        ("clip_norm", 5, (1, 1), (3, -4), (3, -4)),
        ("clip_norm", 1, (1, 1), (0, 0), (0, 0)),
        ("clip_norm", 1, (1, 1), (NAN, 1), (NAN, NAN)),
        ("clip_norm", 1, (1, 1), (INF, 1), (NAN, 0)),
        ("agc", 0.1, (6, 8), (3, -4), (0.6, -0.8)),
        ("agc", 0.5, (6, 8), (3, -4), (3, -4)),
        ("agc", 0.1, (0, 0), (3, -4), (0.6e-4, -0.8e-4)),
        ("agc", 0.1, (0, 0), (0, 0), (0, 0)),
        ("agc", 0.1, (6, 8), (NAN, 1), (NAN, NAN)),
    ],
)
def test_limits_of_the_gradient(name, limit, p, g, expected):
    result = CLIPS[name](vector(*p), vector(*g), float(limit))
    torch.testing.assert_close(result, vector(*expected), rtol=1e-15, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("new_p", "g", "expected"),
    [
        (1.0, 5.0, 1.0),  # descends
        (3.0, -5.0, 3.0),
        (3.0, 5.0, 2.0),  # ascends
        (1.0, -5.0, 2.0),
        (1.0, 0.0, 2.0),
        (2.0, 5.0, 2.0),
        (math.nextafter(2, 0), 5e-324, math.nextafter(2, 0)),  # the product of gradient and update would be 0
        (NAN, 5.0, NAN),
        (NAN, NAN, NAN),
        (NAN, 0.0, NAN),
        (-INF, INF, -INF),
        (INF, INF, 2.0),
    ],
)
@pytest.mark.parametrize("convert", [float, lambda x: torch.tensor([x], dtype=torch.float64)], ids=["float", "tensor"])
def test_cautious_keeps_the_updates_that_descend(new_p, g, expected, convert):
    result = float(postlude(convert(2.0), convert(g), convert(new_p), cautious=True))
    assert result == expected or (math.isnan(result) and math.isnan(expected))
    result = float(postlude(convert(2.0), convert(g), convert(new_p), cautious=False))
    assert result == new_p or (math.isnan(result) and math.isnan(new_p))


# ------------------------------------------------------------------------------------------------ graphs


def variants_of(name: str) -> list[RuleVariant]:
    """The variants that the declared cases of an optimizer use, without modifiers that torch does not have."""
    cls: Any = optplug.get_optimizer(name)
    optimizers = [cls([torch.zeros(1, requires_grad=True)], **case) for case in cls.cases]
    return [optimizer._variant(optimizer.param_groups[0]) for optimizer in optimizers]


def lengths_of(variant: RuleVariant) -> tuple[tuple[str, int], ...]:
    pairs = ("betas", "etas", "step_sizes")
    return tuple((h, 2 if h in pairs else 0) for h in variant.hyperparameters)


def traced(variant: RuleVariant) -> TracedRule:
    result = trace(variant, lengths_of(variant))
    assert not isinstance(result, RuleError), result
    return result


def graph_of_rule_alone(variant: RuleVariant) -> str:
    """The graph of the rule with `maximize` and weight decay written out, without prelude and postlude."""
    graph = Graph()
    states = {s: graph.input(s, variant.state_kind(s)) for s in variant.present_states}
    hyperparameters: dict[str, Any] = {}
    for name, length in lengths_of(variant):
        items = tuple(graph.input(f"{name}[{i}]", "scalar") for i in range(length))
        hyperparameters[name] = items if length else graph.input(name, "scalar")
    p, g = graph.input("p", "element"), graph.input("g", "element")
    if variant.maximize:
        g = -g
    if variant.decay_kind == "coupled":
        g = g + hyperparameters["weight_decay"] * p
    if variant.decay_kind == "decoupled":
        p = p * hyperparameters[DECAY_FACTOR]
    signature = rule_signature(variant.rule)
    keywords = {h: hyperparameters[h] for h in signature.hyperparameters}
    variant.rule(p, g, *[states.get(name) for name in signature.states], **keywords, **dict(variant.flags))
    return "\n".join(map(repr, graph.nodes))


RULES = [
    name
    for name in optplug.list_optimizers("optplug-classic:*")
    if issubclass(optplug.get_optimizer(name), optplug.RuleOptimizer)
]


@pytest.mark.parametrize("name", RULES)
def test_modifiers_that_are_off_add_nothing_to_the_graph(name):
    for variant in variants_of(name):
        alone, with_modifiers = graph_of_rule_alone(variant).splitlines(), str(traced(variant)).splitlines()
        nodes = [line for line in with_modifiers if line.startswith("%")]
        assert nodes
        assert set(nodes) <= set(alone)  # with the same numbers: no node was added, also none that is not needed
        assert len(traced(variant).segments) == 1


@pytest.mark.parametrize("name", RULES)
def test_modifiers_add_their_operations_to_the_graph(name):
    for variant in variants_of(name):
        plain = traced(variant)
        clipped = traced(RuleVariant(**{**vars(variant), "clips": ("clip_value",)}))
        cautious = traced(RuleVariant(**{**vars(variant), "cautious": True}))
        scaled = traced(RuleVariant(**{**vars(variant), "clips": ("clip_norm",)}))
        assert len(clipped.nodes) == len(plain.nodes) + 2
        assert cautious.inputs == tuple(dict.fromkeys([*plain.inputs]))
        assert len(cautious.nodes) <= len(plain.nodes) + 5
        assert cautious.outputs["p"].op == "where"
        assert [len(t.segments) for t in (plain, clipped, cautious, scaled)] == [1, 1, 1, 2]
        assert set(clipped.outputs) == set(cautious.outputs) == set(scaled.outputs) == set(plain.outputs)
