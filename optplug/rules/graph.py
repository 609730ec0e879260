"""A graph in static single assignment form that stores equal nodes once, and the symbols that build the graph when a
rule is called on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from optplug.errors import BranchingError, RuleError, suggest
from optplug.rules.matrix import MatrixOperation, split_operands
from optplug.rules.ops import DIMS, FLOAT_OPERATIONS, PREDICATES, REDUCTIONS, SymbolicValue
from optplug.rules.ops import __all__ as OPS

Kind = Literal["scalar", "tensor", "matrix", "row", "column", "element", "whole"]
"""The kind of a value. A scalar depends on hyperparameters and scalar states only. The others are one number per
parameter (a tensor scalar, such as a norm), per matrix of a stack of matrices, per row or column of a matrix, or per
element; or an array of another shape (`"whole"`), which only matrix functions read and compute."""

KINDS: tuple[Kind, ...] = ("scalar", "tensor", "matrix", "row", "column", "element", "whole")

KIND_NAMES: dict[Kind, str] = {
    "scalar": "a scalar",
    "tensor": "one number per parameter",
    "matrix": "one number per matrix",
    "row": "one number per row",
    "column": "one number per column",
    "element": "an element-wise value",
    "whole": "a value of another shape",
}
"""The kinds of values in messages."""


def join_kinds(kinds: Iterable[Kind]) -> Kind:
    """Return the kind of an operation on values of these kinds."""
    found = set(kinds)
    return "element" if {"row", "column"} <= found else max(found, key=KINDS.index)


class Node:
    """One value of a graph: an input, a constant, an operation on other nodes, a reduction, or a matrix function.

    Attributes:
        index: the position of the node in its graph.
        op: `"input"`, `"const"`, `"call"` for a matrix function, or the name of another operation.
        args: the operands of an operation.
        kind: the kind of the value.
        value: the name of an input, the number of a constant, `over` or `dim` of a reduction, the
            argument of `count_values` for `numel`; a `MatrixOperation` for a matrix function; None for others.
    """

    __slots__ = ("args", "index", "kind", "op", "value")

    def __init__(self, index: int, op: str, args: tuple[Node, ...], kind: Kind, value: Any) -> None:
        self.index = index
        self.op = op
        self.args = args
        self.kind = kind
        self.value = value

    @property
    def is_array(self) -> bool:
        """Whether the value is stored as a tensor with dimensions, in engines that store it."""
        return self.kind not in ("scalar", "tensor")

    @property
    def is_reduction(self) -> bool:
        return self.op in REDUCTIONS

    @property
    def is_call(self) -> bool:
        """Whether the value is the result of a matrix function."""
        return self.op == "call"

    @property
    def is_shared(self) -> bool:
        """Whether the value is a reduction over several parameters."""
        return self.is_reduction and isinstance(self.value, str)

    def __repr__(self) -> str:
        operands = [] if self.value is None else [repr(self.value)]
        operands += [f"%{a.index}" for a in self.args]
        return f"%{self.index} = {self.op}({', '.join(operands)})"


class Graph:
    """Nodes in the order of their creation, which is a topological order. Equal nodes are created once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._nodes_by_key: dict[tuple[Any, ...], Node] = {}

    def input(self, name: str, kind: Kind) -> Symbol:
        """Add an input."""
        return Symbol(self, self._node("input", (), kind, name))

    def const(self, value: float) -> Node:
        """Add a constant."""
        return self._node("const", (), "scalar", value)

    def record(self, op: str, *operands: Any) -> Symbol:
        """Add an operation on symbols and numbers. An operation on constants is folded to a constant.

        Raises:
            RuleError: the operation is not allowed on these operands.
        """
        args = self._operands(op, operands)
        _check_conditions(op, args)
        if any(a.kind == "whole" for a in args):
            raise RuleError(f"{op} got {KIND_NAMES['whole']}, which only matrix functions take")
        kind = join_kinds(a.kind for a in args)
        if all(a.op == "const" for a in args):
            return Symbol(self, self.const(FLOAT_OPERATIONS[op](*(a.value for a in args))))
        if op == "pow":
            if args[1].op == "const" and args[1].value == 2:
                return self.record("mul", operands[0], operands[0])
            if kind not in ("scalar", "tensor"):
                raise RuleError(
                    "a rule may raise an element-wise value to the power 2 only; for the power 0.5 use sqrt"
                )
        if op == "lerp":
            if args[2].is_array:
                raise RuleError("the weight of lerp must be a scalar")
            if not (args[0].is_array and args[1].is_array and args[2].kind == "scalar"):
                a, b, weight = (Symbol(self, x) for x in args)
                interpolated = self.record("add", a, self.record("mul", weight, self.record("sub", b, a)))
                if kind == "scalar" or any(x.kind == "scalar" for x in args[:2]):
                    return interpolated
                return self.record("where", self.record("eq", weight, 1.0), b, interpolated)
        if op == "where" and args[0].is_array and not (args[1].is_array or args[2].is_array):
            raise RuleError("where(condition, scalar, scalar) has no dtype: one of the two must be element-wise")
        return Symbol(self, self._node(op, args, kind, None))

    def reduce(self, op: str, operands: tuple[Any, ...], over: str | None, dim: int | None, name: str) -> Symbol:
        """Add a reduction of element-wise values to one number per parameter, or per row or column of a matrix.

        Args:
            op: a key of `REDUCTIONS`.
            operands: the values.
            over: one of `SCOPES` for one number for several parameters, else None.
            dim: a key of `DIMS` for the rows or columns of a matrix, else None.
            name: the function that the rule called, for messages.

        Raises:
            RuleError: an operand is a scalar or a condition, or has been reduced along this dimension.
        """
        args = tuple(x.node for x in operands if isinstance(x, Symbol) and x.node.is_array)
        if len(args) != len(operands):
            raise RuleError(f"{name} needs element-wise values: a scalar cannot be reduced")
        _check_conditions(name, args)
        if any(a.kind == "whole" for a in args):
            raise RuleError(f"{name} got {KIND_NAMES['whole']}, which only matrix functions take")
        kind = args[0].kind
        if any(a.kind != kind for a in args):
            raise RuleError(f"{name} needs two values of one kind, for example both element-wise")
        if over is not None:  # also if it is equal to another: all engines must have the same reductions in this order
            return Symbol(self, self._new_node(op, args, "tensor", over))
        if dim is None:
            return Symbol(self, self._node(op, args, "tensor", None))
        if kind not in ("element", "row" if dim == -2 else "column"):
            raise RuleError(f"{name} got dim={dim} for a value that has been reduced along this dimension")
        return Symbol(self, self._node(op, args, DIMS[dim] if kind == "element" else "matrix", dim))

    def call(self, operation: MatrixOperation, operands: tuple[Any, ...]) -> Symbol:
        """Add the result of a matrix function.

        Raises:
            RuleError: the function does not take these operands.
        """
        args = self._operands(operation.name, operands)
        arrays, scalars = split_operands(operation.name, args, lambda node: node.is_array)
        _check_conditions(f"the matrix function {operation.name}", args)
        for node in args:
            if node.kind not in ("element", "whole", "scalar"):
                raise RuleError(f"the matrix function {operation.name} does not take {KIND_NAMES[node.kind]}")
        return Symbol(self, self._node("call", (*arrays, *scalars), arrays[0].kind, operation))

    def numel(self, kind: Kind, dim: int | None) -> Symbol:
        """Add the number of elements of a value of this kind, or its size in a dimension.

        Raises:
            RuleError: the value is a scalar.
        """
        if kind in ("scalar", "tensor", "whole"):
            raise RuleError(f"numel needs an element-wise value, not {KIND_NAMES[kind]}")
        if dim == 0 and kind != "element":
            raise RuleError(f"numel(x, dim=0) needs an element-wise value, not {KIND_NAMES[kind]}")
        if dim is not None and kind in ("matrix", DIMS.get(dim)):
            return Symbol(self, self.const(1.0))
        return Symbol(self, self._node("numel", (), "tensor", dim if dim or kind == "element" else kind))

    def _operands(self, op: str, operands: tuple[Any, ...]) -> tuple[Node, ...]:
        return tuple(x.node if isinstance(x, Symbol) else self.const(_check_number(op, x)) for x in operands)

    def _node(self, op: str, args: tuple[Node, ...], kind: Kind, value: Any) -> Node:
        # repr distinguishes 0.0 from -0.0 and 1 from True; == does not. Functions of one name may differ.
        identity = value if op == "call" else repr(value)
        key = (op, tuple(a.index for a in args), kind, identity)
        if key not in self._nodes_by_key:
            self._nodes_by_key[key] = self._new_node(op, args, kind, value)
        return self._nodes_by_key[key]

    def _new_node(self, op: str, args: tuple[Node, ...], kind: Kind, value: Any) -> Node:
        self.nodes.append(Node(len(self.nodes), op, args, kind, value))
        return self.nodes[-1]


def _check_conditions(op: str, args: tuple[Node, ...]) -> None:
    """Check that `& | ~` and the first operand of `where` are conditions, and that no other operand is one.

    Engines store element-wise conditions as booleans, so no arithmetic with conditions is possible.
    """
    for i, node in enumerate(args):
        needs_condition = op in ("and", "or", "not") or (op == "where" and i == 0)
        if needs_condition and node.kind != "scalar" and node.op not in PREDICATES:
            raise RuleError(f"{op} needs a comparison as its condition, not a value")
        if not needs_condition and node.kind != "scalar" and node.op in PREDICATES:
            raise RuleError(
                f"{op} got a condition: arithmetic with conditions is not allowed; use where(condition, a, b)"
            )


def _check_number(op: str, x: Any) -> float:
    if isinstance(x, (int, float)):
        return x
    raise RuleError(f"{op} got {x!r}: a rule may compute with its arguments and Python numbers only")


def _unsupported(what: str) -> RuleError:
    name = what.rpartition(".")[2]
    return RuleError(
        f"a rule may not use {what}{suggest(name, OPS, intro='it may use + - * / ** and', see='optplug.ops')}"
    )


class Symbol(SymbolicValue):
    """A value of a trace. Arithmetic on a symbol adds nodes to its graph."""

    __slots__ = ("graph", "node")
    __hash__ = object.__hash__

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph = graph
        self.node = node

    def record(self, op: str, *operands: Any) -> Symbol:
        return self.graph.record(op, *operands)

    def reduce(self, op: str, operands: tuple[Any, ...], over: str | None, dim: int | None, name: str) -> Symbol:
        return self.graph.reduce(op, operands, over, dim, name)

    def count(self, dim: int | None) -> Symbol:
        return self.graph.numel(self.node.kind, dim)

    def call(self, operation: MatrixOperation, operands: tuple[Any, ...]) -> Symbol:
        return self.graph.call(operation, operands)

    def __bool__(self) -> bool:
        error = BranchingError if self.node.is_array else RuleError
        raise error(
            "a rule may branch on its flags and on absent states only, not on values; use where(condition, a, b)"
        )

    def __float__(self) -> float:
        raise _unsupported("float() or math functions")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _unsupported(f"the attribute .{name}")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _unsupported(f"torch.{getattr(func, '__name__', func)}")

    def __neg__(self) -> Symbol:
        return self.record("neg", self)

    def __abs__(self) -> Symbol:
        return self.record("abs", self)

    def __invert__(self) -> Symbol:
        return self.record("not", self)


def _define_operator(name: str, op: str) -> None:
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
    _define_operator(_name, _op)
    setattr(Symbol, f"__r{_name}__", (lambda op: lambda self, other: self.record(op, other, self))(_op))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    _define_operator(_name, _name)
