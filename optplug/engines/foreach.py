"""Engine `foreach`: the graph as a straight line of `torch._foreach_*` calls, in place wherever a value is used up.

The line is Python source, made once per graph (`source` shows it). Three things keep it at torch's own memory traffic:
a product that is added becomes `add(alpha)`, `addcmul` or `addcdiv`; a value whose last reader computes something of
its size gives up its memory to it; the tensors go through in chunks, so that temporaries stay small.
"""

from __future__ import annotations

import ast
import functools
import linecache
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug.rules.graph import Node
from optplug.rules.ops import PREDICATES
from optplug.rules.trace import Traced

CHUNK_BYTES = {"cpu": 2 * 2**20}
"""No more than this many bytes of parameters go through the line at once (one tensor may be larger), by device type. On
a CPU a chunk then stays in the cache from one operation to the next."""

CHUNK_BYTES_ELSEWHERE = 64 * 2**20
"""Elsewhere every operation is a kernel launch: few, but with bounded temporaries."""

UNARY = frozenset({"neg", "sqrt", "exp", "log", "abs", "sign"})
BINARY = frozenset({"add", "sub", "mul", "div", "maximum", "minimum"})
COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum"})


class _Term:
    """`coefficient * kind(x, y)`: what `add`, `addcmul` and `addcdiv` can take in one pass."""

    def __init__(self, kind: str, coefficient: str, factors: tuple[Node, ...]) -> None:
        self.kind = kind
        self.coefficient = coefficient
        self.factors = factors


class _Writer:
    """Lowers one graph."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.lines: list[str] = []
        self.register: dict[Node, str] = {}
        self.temporaries = 0
        self.constants = {n: f"c{i}" for i, n in enumerate(traced.hoisted)}
        self.roles = {"p", "g", *traced.variant.elementwise}
        self.overwritten = set(traced.outputs)
        self.consumers: Counter[Node] = Counter(traced.outputs.values())
        for node in traced.nodes:
            self.consumers.update(node.args)
        self.plan: list[tuple[Node, _Term | None, Node | None]] = []
        absorbed: set[Node] = set()
        for node in reversed(traced.nodes):
            if node not in absorbed and node.op != "input":
                term, base = self._fuse(node, absorbed)
                self.plan.append((node, term, base))
        self.plan.reverse()
        self.readers: Counter[Node] = Counter()
        for node, term, base in self.plan:
            self.readers.update(self._operands(node, term, base))

    # ------------------------------------------------------------------ fusing

    def _fuse(self, node: Node, absorbed: set[Node]) -> tuple[_Term | None, Node | None]:
        """See `x + s * y`, `x + s * y * z`, `x + s * y / z` and their differences."""
        if node.op in ("add", "sub") and all(a.elementwise for a in node.args):
            for which in (1, 0) if node.op == "add" else (1,):
                inner: set[Node] = set()
                term = self._term(node.args[which], inner)
                if inner:
                    absorbed |= inner
                    if node.op == "sub":
                        term.coefficient = _negated(term.coefficient)
                    return term, node.args[1 - which]
        return None, None

    def _term(self, node: Node, inner: set[Node]) -> _Term:
        """The product that a node is, taking in the nodes that nobody else reads."""
        if self.consumers[node] == 1 and node.op in ("mul", "div"):
            a, b = node.args
            if node.op == "mul" and not (a.elementwise and b.elementwise):
                inner.add(node)
                scalar, value = (a, b) if b.elementwise else (b, a)
                below = self._term(value, inner)
                return _Term(below.kind, _product(self._scalar(scalar), below.coefficient), below.factors)
            if a.elementwise and b.elementwise:
                inner.add(node)
                coefficient, a = self._without_coefficient(a, inner)
                other, b = self._without_coefficient(b, inner) if node.op == "mul" else ("1.0", b)
                return _Term(f"addc{node.op}", _product(coefficient, other), (a, b))
        return _Term("add", "1.0", (node,))

    def _without_coefficient(self, node: Node, inner: set[Node]) -> tuple[str, Node]:
        if self.consumers[node] == 1 and node.op == "mul" and not all(a.elementwise for a in node.args):
            inner.add(node)
            scalar, value = node.args if node.args[1].elementwise else node.args[::-1]
            coefficient, value = self._without_coefficient(value, inner)
            return _product(self._scalar(scalar), coefficient), value
        return "1.0", node

    def _operands(self, node: Node, term: _Term | None, base: Node | None) -> list[Node]:
        if term is not None and base is not None:
            return [base, *term.factors]
        return [a for a in node.args if a.elementwise]

    # ---------------------------------------------------------------- emission

    def source(self, name: str) -> str:
        traced = self.traced
        for node in traced.nodes:
            if node.op == "input":
                self.register[node] = node.value
        pending = Counter(traced.outputs.values())
        for node, term, base in self.plan:
            operands = self._operands(node, term, base)
            self.readers.subtract(operands)
            free = [a for a in operands if self._is_used_up(a, pending)]
            self._emit(node, term, base, free)
            for operand in dict.fromkeys(free):
                register = self.register[operand]
                if register != self.register[node] and register not in self.roles:
                    self.lines.append(f"del {register}")
        self._write_back()
        roles = ", ".join(["p", "g", *traced.variant.elementwise])
        constants = "".join(f", {c}" for c in self.constants.values())
        return f"def {name}({roles}{constants}):\n" + "\n".join(f"    {line}" for line in self.lines or ["pass"]) + "\n"

    def _is_used_up(self, node: Node, pending: Counter[Node]) -> bool:
        return self.readers[node] == 0 and not pending[node]

    def _may_overwrite(self, node: Node, free: list[Node]) -> bool:
        """A temporary, or a state whose old value nobody needs any more and which is going to be written anyway."""
        if node not in free:
            return False
        register = self.register[node]
        return register in self.overwritten if register in self.roles else True

    def _emit(self, node: Node, term: _Term | None, base: Node | None, free: list[Node]) -> None:
        if term is not None and base is not None:
            factors = ", ".join(self.register[f] for f in term.factors)
            keyword = "alpha" if term.kind == "add" else "value"
            tail = "" if term.coefficient == "1.0" else f", {keyword}={term.coefficient}"
            self._call(node, f"_foreach_{term.kind}", base, f"{factors}{tail}", self._may_overwrite(base, free))
            return
        op, args = node.op, node.args
        if op in UNARY:
            self._call(node, f"_foreach_{op}", args[0], "", self._may_overwrite(args[0], free))
        elif op == "lerp":
            rest = f"{self.register[args[1]]}, {self._scalar(args[2])}"
            self._call(node, "_foreach_lerp", args[0], rest, self._may_overwrite(args[0], free))
        elif op in BINARY:
            self._binary(node, free)
        else:  # comparisons, logic and where have no foreach form
            compute = "where" if op == "where" else f"logical_{op}" if op in ("and", "or", "not") else op
            values = ", ".join(self.register[a] if a.elementwise else self._scalar(a) for a in args)
            self._assign(node, f"_each('{compute}', {values})")

    def _binary(self, node: Node, free: list[Node]) -> None:
        a, b = node.args
        method = f"_foreach_{node.op}"
        if a.elementwise and b.elementwise:
            if node.op in COMMUTATIVE and not self._may_overwrite(a, free) and self._may_overwrite(b, free):
                a, b = b, a
            self._call(node, method, a, self.register[b], self._may_overwrite(a, free))
        elif a.elementwise:
            self._call(node, method, a, self._scalar(b), self._may_overwrite(a, free))
        elif node.op in COMMUTATIVE:
            self._call(node, method, b, self._scalar(a), self._may_overwrite(b, free))
        else:  # s - x and s / x
            first, then = (
                ("_foreach_neg", "_foreach_add_") if node.op == "sub" else ("_foreach_reciprocal", "_foreach_mul_")
            )
            self._call(node, first, b, "", self._may_overwrite(b, free))
            self.lines.append(f"{then}({self.register[node]}, {self._scalar(a)})")

    def _call(self, node: Node, method: str, target: Node, rest: str, in_place: bool) -> None:
        arguments = self.register[target] + (f", {rest}" if rest else "")
        if in_place:
            self.register[node] = self.register[target]
            self.lines.append(f"{method}_({arguments})")
        else:
            self._assign(node, f"{method}({arguments})")

    def _assign(self, node: Node, expression: str) -> None:
        self.temporaries += 1
        self.register[node] = f"t{self.temporaries}"
        self.lines.append(f"{self.register[node]} = {expression}")

    def _write_back(self) -> None:
        moves = {role: self.register[node] for role, node in self.traced.outputs.items() if self.register[node] != role}
        for role, source in moves.items():
            if source in self.overwritten:  # another output's memory, which its own value may take first
                self.temporaries += 1
                moves[role] = f"t{self.temporaries}"
                self.lines.append(f"{moves[role]} = _each('clone', {source})")
        for role, source in moves.items():
            self.lines.append(f"_foreach_copy_({role}, {source})")

    def _scalar(self, node: Node) -> str:
        return repr(float(node.value)) if node.op == "const" else self.constants[node]


def _product(a: str, b: str) -> str:
    return b if a == "1.0" else a if b == "1.0" else f"{a} * {b}"


def _negated(coefficient: str) -> str:
    return coefficient[1:] if coefficient.startswith("-") and "*" not in coefficient else f"-{coefficient}"


def _each(op: str, *operands: Any) -> list[Tensor]:
    """An operation without foreach form, tensor by tensor; scalars serve all tensors."""
    several = (list, tuple)  # what we pass, and what torch._foreach_* return
    length = next(len(x) for x in operands if isinstance(x, several))
    rows = zip(*(x if isinstance(x, several) else [x] * length for x in operands), strict=True)
    if op == "where":
        return [_select(*row) for row in rows]
    if op in PREDICATES:
        return [getattr(torch, op)(*_tensors_first(row)) for row in rows]
    if op.startswith("logical_"):
        return [getattr(torch, op)(*_as_bools(row)) for row in rows]
    return [getattr(torch, op)(*row) for row in rows]


def _select(condition: Tensor | float, a: Tensor | float, b: Tensor | float) -> Tensor:
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    chosen, like = (a, b) if condition else (b, a)
    return chosen.clone() if isinstance(chosen, Tensor) else torch.full_like(like, chosen)  # type: ignore[arg-type]


def _tensors_first(row: tuple[Any, ...]) -> tuple[Any, ...]:
    a, b = row
    return row if isinstance(a, Tensor) else (torch.full_like(b, a), b)


def _as_bools(row: tuple[Any, ...]) -> tuple[Any, ...]:
    like = next(x for x in row if isinstance(x, Tensor))
    return tuple(x if isinstance(x, Tensor) else torch.full_like(like, bool(x)) for x in row)


def _lerp(a: list[Tensor], b: list[Tensor], weight: float) -> Any:
    """As `ops.lerp`: a weight of 1 gives b whatever a is, where torch's has NaN for an infinite a."""
    return [t.clone() for t in b] if weight == 1 else torch._foreach_lerp(a, b, weight)


def _lerp_(a: list[Tensor], b: list[Tensor], weight: float) -> None:
    if weight == 1:
        torch._foreach_copy_(a, b)
    else:
        torch._foreach_lerp_(a, b, weight)


@functools.lru_cache(maxsize=1024)
def source(traced: Traced) -> str:
    """The straight line of a graph, as Python source."""
    return _Writer(traced).source("step")


@functools.lru_cache(maxsize=1024)
def passes(traced: Traced) -> int:
    """How many lists of tensors the line reads or writes, all operations together."""
    scalars = {f"c{i}" for i in range(len(traced.hoisted))}
    found = 0
    for line in ast.parse(source(traced)).body[0].body:  # type: ignore[attr-defined]
        call = line.value if isinstance(line, (ast.Assign, ast.Expr)) else None
        if isinstance(call, ast.Call):
            read = sum(isinstance(a, ast.Name) and a.id not in scalars for a in call.args)
            found += read + (ast.unparse(call.func) != "_foreach_copy_")  # which does not read what it writes
    return found


@functools.lru_cache(maxsize=1024)
def _compiled(traced: Traced) -> Callable[..., None]:
    text = source(traced)
    filename = f"<optplug foreach {traced.variant.rule.__qualname__} {hash(text):x}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)  # tracebacks show the line
    namespace: dict[str, Any] = {"_each": _each, "inf": math.inf, "nan": math.nan}
    namespace.update((name, getattr(torch, name)) for name in dir(torch) if name.startswith("_foreach_"))
    namespace.update({"_foreach_lerp": _lerp, "_foreach_lerp_": _lerp_})
    exec(compile(text, filename, "exec"), namespace)  # noqa: S102 - our own text
    compiled: Callable[..., None] = namespace["step"]
    return compiled


def step(traced: Traced, tensors: dict[str, list[Tensor]], constants: Sequence[float]) -> None:
    """Update `tensors["p"]` and the states in place.

    Args:
        tensors: `p`, `g` and each element-wise state, as lists of equal length.
        constants: the values of `traced.hoisted`.
    """
    _compiled(traced)(*tensors.values(), *constants)


def chunks(traced: Traced, tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Consecutive slices of tensors of one dtype that hold at most the limit together, or one tensor."""
    limit = CHUNK_BYTES.get(tensors[0].device.type, CHUNK_BYTES_ELSEWHERE)
    if source(traced).count("_foreach_") == 1:  # no second operation finds anything in the cache
        limit = CHUNK_BYTES_ELSEWHERE
    sizes = [numel * tensors[0].element_size() for numel in map(Tensor.numel, tensors)]
    if sum(sizes) <= limit:
        yield slice(0, len(tensors))
        return
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and held + size > limit:
            yield slice(start, i)
            start, held = i, 0
        held += size
    yield slice(start, len(tensors))
