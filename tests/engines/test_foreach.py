"""Engine `foreach`: generated source, random rules compared with engine `loop`, memory and chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import TestCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from optplug import RuleOptimizer, State, get_optimizer, ops
from optplug.engines import foreach
from optplug.optim import dispatch
from optplug.rules.trace import TracedRule


def source_of(name: str, **options: Any) -> str:
    optimizer = get_optimizer(name)([torch.zeros(3, requires_grad=True)], **options)
    return foreach.source(traced_rule(optimizer))


def traced_rule(optimizer: RuleOptimizer) -> TracedRule:
    group = optimizer.param_groups[0]
    settings = dispatch.group_settings("foreach", group, optimizer._variant(group), None)
    traced = dispatch.find_candidates(settings).traced
    assert traced is not None
    return traced


class TestGeneratedSource(TestCase):
    """The full generated source. EXPECTTEST_ACCEPT=1 updates the expected text."""

    def test_sgd_is_one_addition(self):
        self.assertExpectedInline(
            source_of("sgd"),
            """\
def step(p, g, c0):
    _foreach_add_(p, g, alpha=-c0)
""",
        )

    def test_sgd_maximize_negates_gradient_first(self):
        self.assertExpectedInline(
            source_of("sgd", maximize=True, weight_decay=0.1),
            """\
def step(p, g, c0, c1):
    t1 = _foreach_neg(g)
    _foreach_add_(t1, p, alpha=c1)
    _foreach_add_(p, t1, alpha=-c0)
    del t1
""",
        )

    def test_sgd_with_momentum_needs_no_temporary(self):
        self.assertExpectedInline(
            source_of("sgd", momentum=0.9),
            """\
def step(p, g, momentum_buffer, c0, c1, c2):
    _foreach_mul_(momentum_buffer, c1)
    _foreach_add_(momentum_buffer, g, alpha=c2)
    _foreach_add_(p, momentum_buffer, alpha=-c0)
""",
        )

    def test_nesterov_needs_one_temporary(self):
        self.assertExpectedInline(
            source_of("sgd", momentum=0.9, nesterov=True, weight_decay=0.1),
            """\
def step(p, g, momentum_buffer, c0, c1, c2, c3, c4):
    t1 = _foreach_add(g, p, alpha=c2)
    _foreach_mul_(momentum_buffer, c3)
    _foreach_add_(momentum_buffer, t1, alpha=c4)
    _foreach_add_(t1, momentum_buffer, alpha=c1)
    _foreach_add_(p, t1, alpha=-c0)
    del t1
""",
        )

    def test_adam_needs_one_temporary(self):
        self.assertExpectedInline(
            source_of("adam"),
            """\
def step(p, g, exp_avg, exp_avg_sq, c0, c1, c2, c3, c4, c5):
    _foreach_lerp_(exp_avg, g, c2)
    _foreach_mul_(exp_avg_sq, c0)
    _foreach_addcmul_(exp_avg_sq, g, g, value=c3)
    t1 = _foreach_sqrt(exp_avg_sq)
    _foreach_div_(t1, c4)
    _foreach_add_(t1, c1)
    _foreach_addcdiv_(p, exp_avg, t1, value=-c5)
    del t1
""",
        )

    def test_adamw_with_amsgrad_needs_one_temporary(self):
        self.assertExpectedInline(
            source_of("adamw", amsgrad=True),
            """\
def step(p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, c0, c1, c2, c3, c4, c5, c6):
    _foreach_mul_(p, c2)
    _foreach_lerp_(exp_avg, g, c3)
    _foreach_mul_(exp_avg_sq, c0)
    _foreach_addcmul_(exp_avg_sq, g, g, value=c4)
    _foreach_maximum_(max_exp_avg_sq, exp_avg_sq)
    t1 = _foreach_sqrt(max_exp_avg_sq)
    _foreach_div_(t1, c5)
    _foreach_add_(t1, c1)
    _foreach_addcdiv_(p, exp_avg, t1, value=-c6)
    del t1
""",
        )


# ---------------------------------------------------------------------------------------------- random rules

STATES = ("a", "b", "c")


class RandomRule:
    """A randomly generated rule.

    Args:
        program: a list of operations with their operands.
        outputs: which values become the parameter and the states.
    """

    def __init__(self, program, outputs) -> None:
        self.program = program
        self.outputs = outputs

    def __repr__(self) -> str:
        return f"RandomRule({self.program}, {self.outputs})"

    def __call__(self, p, g, a, b, c, *, lr, first):
        values = [p, g, a, b, c]
        for op, i, j, k, scalar in self.program:
            x, y, z = (values[n % len(values)] for n in (i, j, k))
            s = {"lr": lr, "first": first, "mixed": 1 - lr * first}.get(scalar, scalar)
            values.append(
                {
                    "add": lambda x=x, y=y: x + y,
                    "sub": lambda x=x, y=y: x - y,
                    "mul": lambda x=x, y=y: x * y,
                    "div": lambda x=x, y=y: x / (1 + ops.abs(y)),
                    "fma": lambda x=x, y=y, z=z, s=s: x + s * (y * z),
                    "fms": lambda x=x, y=y, z=z, s=s: x - (s * y) * z,
                    "cdiv": lambda x=x, y=y, z=z, s=s: x - s * (y / (2 + z * z)),
                    "scale": lambda x=x, s=s: s * x,
                    "shift": lambda x=x, s=s: x + s,
                    "from": lambda x=x, s=s: s - x,
                    "over": lambda x=x, s=s: s / (1 + x * x),
                    "by": lambda x=x, s=s: x / (2 + s),
                    "axpy": lambda x=x, y=y, s=s: y + s * x,
                    "lerp": lambda x=x, y=y, s=s: ops.lerp(x, y, s),
                    "neg": lambda x=x: -x,
                    "sqrt": lambda x=x: ops.sqrt(ops.abs(x)),
                    "sign": lambda x=x: ops.sign(x),
                    "exp": lambda x=x: ops.exp(-ops.abs(x)),
                    "log": lambda x=x: ops.log(1 + x * x),
                    "square": lambda x=x: x**2,
                    "max": lambda x=x, y=y: ops.maximum(x, y),
                    "min": lambda x=x, s=s: ops.minimum(s, x),
                    "where": lambda x=x, y=y, z=z, s=s: ops.where((x > s) & ~(y <= z) | (x == y), y, z),
                    "choose": lambda x=x, s=s: ops.where(x >= s, s, x),
                    "start": lambda x=x, y=y: ops.where(first, x, y),
                    "reset": lambda x=x: ops.where(first, 0.5, x),
                }[op]()
            )
        return tuple(values[n % len(values)] for n in self.outputs)


OPS = (
    *("add", "sub", "mul", "div", "fma", "fms", "cdiv", "scale", "shift", "from", "over", "by", "axpy", "lerp", "neg"),
    *("sqrt", "sign", "exp", "log", "square", "max", "min", "where", "choose", "start", "reset"),
)
SCALARS = st.sampled_from(["lr", "first", "mixed", 0.0, 1.0, -1.0, 0.5, 3, -2.5])
INDEX = st.integers(0, 40)
RANDOM_RULES = st.builds(
    RandomRule,
    st.lists(st.tuples(st.sampled_from(OPS), INDEX, INDEX, INDEX, SCALARS), max_size=10),
    # Four outputs. Small indices are inputs, so that states are swapped, unchanged, or set to p or g.
    st.lists(st.one_of(INDEX, st.integers(0, 4), st.integers(-3, -1)), min_size=4, max_size=4),
)


def optimizer_of(random_rule: RandomRule) -> type[RuleOptimizer]:
    def rule(p, g, a, b, c, *, lr, first):
        return random_rule(p, g, a, b, c, lr=lr, first=first)

    class Random(RuleOptimizer):
        states = tuple(State(name) for name in STATES)

        def __init__(self, params, lr=0.3, engine="auto", maximize=False):
            super().__init__(params, {"lr": lr}, engine=engine, maximize=maximize)

    Random.rule = staticmethod(rule)
    return Random


def run(cls, engine: str, maximize: bool, steps: int = 3):
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in ((3,), (2, 2), (), (0,))
    ]
    optimizer = cls(params, engine=engine, maximize=maximize)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if i == 1 and step == 0:
                p.grad = None
        gradients = [None if p.grad is None else p.grad.clone() for p in params]
        optimizer.step()
        for p, before in zip(params, gradients, strict=True):
            assert before is None or torch.equal(p.grad, before)
    return [p.detach() for p in params] + [optimizer.state[p][name] for p in params for name in STATES]


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(random_rule=RANDOM_RULES, maximize=st.booleans())
def test_foreach_equals_loop_on_random_rules(random_rule, maximize):
    cls = optimizer_of(random_rule)
    for a, b in zip(run(cls, "foreach", maximize), run(cls, "loop", maximize), strict=True):
        scale = 1 + b.abs().nan_to_num(0.0, 0.0, 0.0).max() if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * float(scale), equal_nan=True)


@pytest.mark.parametrize(
    "outputs",
    [(0, 3, 2, 4), (0, 3, 4, 2), (2, 0, 3, 4), (0, 1, 1, 1), (0, 2, 3, 4), (2, 3, 4, 0), (0, 2, 2, 0)],
    ids=["swap", "rotate", "swap with p", "all g", "unchanged", "rotate with p", "copies"],
)
def test_parameter_and_states_can_be_permuted(outputs):
    cls = optimizer_of(RandomRule([], outputs))
    for a, b in zip(run(cls, "foreach", False), run(cls, "loop", False), strict=True):
        assert torch.equal(a, b)


def test_permuted_states_receive_values_from_before_the_step():
    for engine in ("loop", "foreach"):
        cls = optimizer_of(RandomRule([], (2, 0, 3, 4)))  # p <- a, a <- p, b <- b, c <- c
        p = torch.tensor([7.0], requires_grad=True)
        optimizer = cls([p], engine=engine)
        p.grad = torch.ones(1)
        optimizer.step()
        assert (p.item(), optimizer.state[p]["a"].item()) == (0.0, 7.0)


def test_product_is_fused_as_either_operand_of_an_addition():
    class ProductFirst(RuleOptimizer):
        def __init__(self, params, lr=0.1, engine="auto"):
            super().__init__(params, {"lr": lr}, engine=engine)

        @staticmethod
        def rule(p, g, *, lr):
            return (lr * g + p,)

    optimizer = ProductFirst([torch.zeros(3, requires_grad=True)])
    assert foreach.source(traced_rule(optimizer)) == "def step(p, g, c0):\n    _foreach_add_(p, g, alpha=c0)\n"


def test_generated_source_supports_infinite_constants():
    random_rule = RandomRule([("min", 1, 0, 0, float("inf")), ("choose", 1, 0, 0, float("-inf"))], (5, 6, 3, 4))
    for a, b in zip(
        run(optimizer_of(random_rule), "foreach", False), run(optimizer_of(random_rule), "loop", False), strict=True
    ):
        assert torch.equal(a, b)


def test_state_name_with_suffix_new_does_not_collide():
    class SimilarNames(RuleOptimizer):
        states = (State("a"), State("a_new"))

        def __init__(self, params, lr=0.1, engine="auto"):
            super().__init__(params, {"lr": lr}, engine=engine)

        @staticmethod
        def rule(p, g, a, a_new, *, lr):
            return p - lr * g, a_new + 1, a

    p = torch.zeros(2, requires_grad=True)
    optimizer = SimilarNames([p], engine="foreach")
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
    assert {name: value.tolist() for name, value in optimizer.state[p].items()} == {
        "a": [1.0, 1.0],
        "a_new": [1.0, 1.0],
    }


# ---------------------------------------------------------------------------------------------- memory and chunks


class Allocations(TorchDispatchMode):
    """Records the peak of the bytes of new tensors while active."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        known = {
            t.untyped_storage()._cdata
            for t in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in known and id(t) not in self.alive:
                self.alive[id(t)] = t.numel() * t.element_size()
                weakref.finalize(t, self.alive.pop, id(t), None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("sgd", {"momentum": 0.9}),
        ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("adam", {}),
        ("adam", {"weight_decay": 0.1, "maximize": True}),
        ("adamw", {"amsgrad": True}),
    ],
)
def test_temporaries_use_no_more_memory_than_torch(name, options):
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]

    def peak(cls, **more):
        params = [torch.randn(1000, requires_grad=True) for _ in range(4)]
        optimizer = cls(params, **options, **more)
        for _ in range(2):  # the first step creates the states
            for p in params:
                p.grad = torch.ones_like(p)
            with Allocations() as counted:
                optimizer.step()
        return counted.peak

    assert (
        peak(get_optimizer(name), engine="foreach") <= peak(theirs, foreach=True) + 1000
    )  # 1000: the tensors of state `step`


def test_chunks_are_within_limit_or_hold_one_tensor(monkeypatch):
    monkeypatch.setitem(foreach.CHUNK_BYTES, "cpu", 100)
    tensors = [torch.zeros(n) for n in (10, 10, 10, 100, 0, 25, 1)]
    adam, sgd = traced_rule(get_optimizer("adam")(tensors)), traced_rule(get_optimizer("sgd")(tensors))
    assert [len(tensors[part]) for part in foreach.split_chunks(adam, tensors)] == [2, 1, 1, 2, 1]
    assert [len(tensors[:1][part]) for part in foreach.split_chunks(adam, tensors[:1])] == [1]
    assert [len(tensors[part]) for part in foreach.split_chunks(sgd, tensors)] == [7]  # one operation: no chunks


def test_results_do_not_depend_on_chunks(monkeypatch):
    def go():
        params = [torch.full((n,), 1.0, requires_grad=True) for n in (10, 3, 100, 7)]
        optimizer = get_optimizer("adam")(params, engine="foreach")
        for step in range(3):
            for p in params:
                p.grad = torch.full_like(p, 0.5 + step)
            optimizer.step()
        return params

    whole = go()
    monkeypatch.setitem(foreach.CHUNK_BYTES, "cpu", 40)
    assert all(torch.equal(a, b) for a, b in zip(go(), whole, strict=True))


def test_generated_source_is_available_to_tracebacks(monkeypatch):
    optimizer = get_optimizer("sgd")([p := torch.zeros(3, requires_grad=True)], engine="foreach")
    p.grad = torch.ones(3)
    optimizer.step()
    import inspect

    assert inspect.getsource(foreach._compile_step(traced_rule(optimizer))).startswith("def step(p, g, c0):")
