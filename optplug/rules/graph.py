"""A small hash-consed SSA graph, and the symbols that build it when a rule is called on them."""

from __future__ import annotations

from typing import Any

from optplug.errors import BranchingError, RuleError, did_you_mean, listing
from optplug.rules.ops import ON_FLOATS, PREDICATES, Symbolic
from optplug.rules.ops import __all__ as OPS


class Node:
    """One value: an input (`op="input"`), a constant (`op="const"`) or an operation on other nodes.

    `elementwise` values have one element per parameter element; the others are scalars, which depend on
    hyperparameters and scalar states only.
    """

    __slots__ = ("args", "elementwise", "index", "op", "value")

    def __init__(self, index: int, op: str, args: tuple[Node, ...], elementwise: bool, value: Any) -> None:
        self.index = index
        self.op = op
        self.args = args
        self.elementwise = elementwise
        self.value = value

    def __repr__(self) -> str:
        inside = repr(self.value) if self.op in ("input", "const") else ", ".join(f"%{a.index}" for a in self.args)
        return f"%{self.index} = {self.op}({inside})"


class Graph:
    """Nodes in the order they were made, which is topological; equal nodes are made once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._made: dict[tuple[Any, ...], Node] = {}

    def input(self, name: str, *, elementwise: bool) -> Symbol:
        return Symbol(self, self._node("input", (), elementwise, name))

    def const(self, value: float) -> Node:
        return self._node("const", (), False, value)

    def record(self, op: str, *operands: Any) -> Symbol:
        """The node of an operation on symbols and numbers, folded where all are constants."""
        args = tuple(x.node if isinstance(x, Symbol) else self.const(_number(op, x)) for x in operands)
        _check_conditions(op, args)
        elementwise = any(a.elementwise for a in args)
        if all(a.op == "const" for a in args):
            return Symbol(self, self.const(ON_FLOATS[op](*(a.value for a in args))))
        if op == "pow":
            if args[1].op == "const" and args[1].value == 2:
                return self.record("mul", operands[0], operands[0])
            if elementwise:
                raise RuleError("a rule may raise an element-wise value to the power 2 only; for 0.5 there is sqrt")
        if op == "lerp":
            if args[2].elementwise:
                raise RuleError("the weight of lerp must be a scalar")
            if not (args[0].elementwise and args[1].elementwise):
                a, b, weight = (Symbol(self, x) for x in args)
                return self.record("add", a, self.record("mul", weight, self.record("sub", b, a)))
        if op == "where" and args[0].elementwise and not (args[1].elementwise or args[2].elementwise):
            raise RuleError("where(condition, scalar, scalar) has no dtype: make one of the two element-wise")
        return Symbol(self, self._node(op, args, elementwise, None))

    def _node(self, op: str, args: tuple[Node, ...], elementwise: bool, value: Any) -> Node:
        # repr keeps 0.0 and -0.0 apart, and 1 and True.
        key = (op, tuple(a.index for a in args), elementwise, repr(value))
        if key not in self._made:
            self._made[key] = Node(len(self.nodes), op, args, elementwise, value)
            self.nodes.append(self._made[key])
        return self._made[key]


def _check_conditions(op: str, args: tuple[Node, ...]) -> None:
    """Engines keep conditions as booleans, so they are for `& | ~` and for `where`, and nothing else is."""
    for i, node in enumerate(args):
        wanted = op in ("and", "or", "not") or (op == "where" and i == 0)
        if wanted and node.elementwise and node.op not in PREDICATES:
            raise RuleError(f"{op} needs a comparison as its condition, not a value")
        if not wanted and node.elementwise and node.op in PREDICATES:
            raise RuleError(f"{op} got a condition: a rule may not compute with one; use where(condition, a, b)")


def _number(op: str, x: Any) -> float:
    if isinstance(x, (int, float)):
        return x
    raise RuleError(f"{op} got {x!r}: a rule computes with its arguments and Python numbers only")


def _foreign(what: str) -> RuleError:
    hint = did_you_mean(what.rpartition(".")[2], OPS)
    return RuleError(f"a rule may not use {what}; it may use + - * / ** and {listing(OPS)}{hint}")


class Symbol(Symbolic):
    """A value of a trace. Arithmetic on it adds nodes to its graph."""

    __slots__ = ("graph", "node")
    __hash__ = object.__hash__

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph = graph
        self.node = node

    def record(self, op: str, *operands: Any) -> Symbol:
        return self.graph.record(op, *operands)

    def __bool__(self) -> bool:
        kind = BranchingError if self.node.elementwise else RuleError
        raise kind("a rule may branch on its flags and on absent states only, not on values; use where(cond, a, b)")

    def __float__(self) -> float:
        raise _foreign("float() or math functions")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _foreign(f"the attribute .{name}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _foreign(f"torch.{getattr(func, '__name__', func)}")

    def __neg__(self) -> Symbol:
        return self.record("neg", self)

    def __abs__(self) -> Symbol:
        return self.record("abs", self)

    def __invert__(self) -> Symbol:
        return self.record("not", self)


def _operator(name: str, op: str) -> None:
    setattr(Symbol, f"__{name}__", lambda self, other: self.record(op, self, other))


for _name, _op in {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "truediv": "div",
    "pow": "pow",
    "and": "and",
    "or": "or",
}.items():
    _operator(_name, _op)
    setattr(Symbol, f"__r{_name}__", (lambda op: lambda self, other: self.record(op, other, self))(_op))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    _operator(_name, _name)
