"""From a graph to LLVM: a loop over chunks of tensors in which every input is read once and every output written once.

Arithmetic is IEEE 754 apart from one liberty, `contract`: a product may be added before it is rounded or overflows. But
for that NaN and inf go where they go in engine `loop`, and an element's result does not depend on which chunk or vector
it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from llvmlite import ir

from optplug.rules.graph import Node
from optplug.rules.ops import PREDICATES
from optplug.rules.trace import Traced

INT = ir.IntType(64)
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
MEMORY = {torch.float64: DOUBLE, torch.float32: FLOAT, torch.float16: HALF, torch.bfloat16: ir.IntType(16)}
"""What an element is in memory, by dtype; to LLVM's host targets bfloat16 is just 16 bits."""

HEAD = 2
"""The first columns of the chunk table: number of elements, row of the scalars; then an address for each role."""

COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
CONTRACT = ("contract",)


def computes_in(dtypes: Mapping[str, torch.dtype]) -> torch.dtype:
    """float64 where a parameter or a state is kept in it, else float32: nothing is computed in 16 bits."""
    kept = (dtype for role, dtype in dtypes.items() if role != "g")
    return torch.float64 if torch.float64 in kept else torch.float32


def kernel(traced: Traced, dtypes: Mapping[str, torch.dtype], module: ir.Module) -> None:
    """Add the function of a graph, `step`, to a module.

    Its arguments are `int64* table, int64* blocks, T* scalars, int64* taken, int64 count`: the chunk table by rows; the
    first chunk of each block, and one past the last; the hoisted scalars by rows; how many blocks have been taken, by
    all threads together; how many there are. A call works until no block is left.

    Args:
        traced: the graph.
        dtypes: of each role's elements, in the table's order.
    """
    kind = MEMORY[computes_in(dtypes)]
    whole = INT.as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [whole, whole, kind.as_pointer(), whole, INT])
    function = ir.Function(module, signature, "step")
    table, blocks, scalars, taken, count = function.args
    entry, take, block, chunk, element, after, done = map(
        function.append_basic_block, ("entry", "take", "block", "chunk", "element", "after", "done")
    )
    build = ir.IRBuilder(entry)

    def at(base: ir.Value, index: ir.Value) -> ir.Value:
        return build.load(build.gep(base, [index]))

    build.branch(take)
    build.position_at_end(take)
    number = build.atomic_rmw("add", taken, INT(1), "monotonic")
    build.cbranch(build.icmp_signed("<", number, count), block, done)

    build.position_at_end(block)
    first, last = at(blocks, number), at(blocks, build.add(number, INT(1)))
    build.branch(chunk)

    build.position_at_end(chunk)
    c = build.phi(INT)
    c.add_incoming(first, block)
    row = build.gep(table, [build.mul(c, INT(HEAD + len(dtypes)))])
    length = at(row, INT(0))
    constants = build.gep(scalars, [build.mul(at(row, INT(1)), INT(len(traced.hoisted)))])
    scalar = {node: at(constants, INT(k)) for k, node in enumerate(traced.hoisted)}
    pointers = {
        role: build.inttoptr(at(row, INT(HEAD + k)), MEMORY[dtype].as_pointer())
        for k, (role, dtype) in enumerate(dtypes.items())
    }
    build.branch(element)

    build.position_at_end(element)
    i = build.phi(INT)
    i.add_incoming(INT(0), chunk)
    arithmetic = _Arithmetic(build, module, kind, scalar)
    for node in traced.nodes:
        if node.op == "input":
            stored = at(pointers[node.value], i)
            arithmetic.values[node] = _loaded(build, stored, dtypes[node.value], kind)
        else:
            arithmetic.compute(node)
    for role, node in traced.outputs.items():
        value = _stored(build, arithmetic.number(node), dtypes[role], kind)
        build.store(value, build.gep(pointers[role], [i]))
    following = build.add(i, INT(1))
    i.add_incoming(following, element)
    build.cbranch(build.icmp_signed("<", following, length), element, after)

    build.position_at_end(after)
    c.add_incoming(build.add(c, INT(1)), after)
    build.cbranch(build.icmp_signed("<", c.incomings[-1][0], last), chunk, take)

    build.position_at_end(done)
    build.ret_void()


class _Arithmetic:
    """The values of nodes within the loop over elements."""

    def __init__(self, build: ir.IRBuilder, module: ir.Module, kind: ir.Type, scalars: Mapping[Node, ir.Value]) -> None:
        self.build = build
        self.module = module
        self.kind = kind
        self.values: dict[Node, ir.Value] = dict(scalars)

    def __call__(self, node: Node) -> ir.Value:
        return self.kind(float(node.value)) if node.op == "const" else self.values[node]

    def number(self, node: Node) -> ir.Value:
        """A value to be stored: of a condition 0 or 1."""
        value = self(node)
        return self.build.uitofp(value, self.kind) if node.op in PREDICATES and node.elementwise else value

    def condition(self, node: Node) -> ir.Value:
        """A condition; one that is a scalar has been hoisted as 0 or 1."""
        return self(node) if node.elementwise else self.build.fcmp_unordered("!=", self(node), self.kind(0.0))

    def compute(self, node: Node) -> None:
        method: Callable[..., ir.Value] = getattr(self, node.op)
        self.values[node] = method(*node.args)

    def _intrinsic(self, name: str, x: Node | ir.Value) -> ir.Value:
        function = self.module.declare_intrinsic(f"llvm.{name}", [self.kind])
        return self.build.call(function, [self(x) if isinstance(x, Node) else x])

    def _compare(self, op: str, a: ir.Value, b: ir.Value) -> ir.Value:
        return (self.build.fcmp_unordered if op == "!=" else self.build.fcmp_ordered)(op, a, b)

    def add(self, a: Node, b: Node) -> ir.Value:
        return self.build.fadd(self(a), self(b), flags=CONTRACT)

    def sub(self, a: Node, b: Node) -> ir.Value:
        return self.build.fsub(self(a), self(b), flags=CONTRACT)

    def mul(self, a: Node, b: Node) -> ir.Value:
        return self.build.fmul(self(a), self(b), flags=CONTRACT)

    def div(self, a: Node, b: Node) -> ir.Value:
        return self.build.fdiv(self(a), self(b))

    def neg(self, x: Node) -> ir.Value:
        return self.build.fneg(self(x))

    def sqrt(self, x: Node) -> ir.Value:
        return self._intrinsic("sqrt", x)

    def exp(self, x: Node) -> ir.Value:
        return self._intrinsic("exp", x)

    def log(self, x: Node) -> ir.Value:
        return self._intrinsic("log", x)

    def abs(self, x: Node) -> ir.Value:
        return self._intrinsic("fabs", x)

    def sign(self, x: Node) -> ir.Value:
        zero, one = self.kind(0.0), self.kind(1.0)
        below = self.build.select(self._compare("<", self(x), zero), self.kind(-1.0), zero)
        return self.build.select(self._compare(">", self(x), zero), one, below)  # 0 for NaN

    def maximum(self, a: Node, b: Node) -> ir.Value:
        return self._extreme(">", self(a), self(b))

    def minimum(self, a: Node, b: Node) -> ir.Value:
        return self._extreme("<", self(a), self(b))

    def _extreme(self, op: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """NaN where either is: b is taken where nothing can be said, and it is NaN unless a is."""
        a_is_nan = self.build.fcmp_unordered("uno", a, a)
        return self.build.select(self.build.or_(self._compare(op, a, b), a_is_nan), a, b)

    def lerp(self, a: Node, b: Node, weight: Node) -> ir.Value:
        """From the nearer end, as torch does; with a weight of 1 exactly b, whatever a is."""
        build, one = self.build, self.kind(1.0)
        start, end, w = self(a), self(b), self(weight)
        near = self._compare("<", self._intrinsic("fabs", w), self.kind(0.5))
        share = build.select(near, w, build.fsub(w, one))
        path = build.fmul(share, build.fsub(end, start), flags=CONTRACT)
        between = build.fadd(build.select(near, start, end), path, flags=CONTRACT)
        return build.select(self._compare("==", w, one), end, between)

    def where(self, condition: Node, a: Node, b: Node) -> ir.Value:
        return self.build.select(self.condition(condition), self(a), self(b))

    def __getattr__(self, op: str) -> Callable[..., ir.Value]:
        if op in COMPARISONS:
            return lambda a, b: self._compare(COMPARISONS[op], self(a), self(b))
        if op in ("and", "or"):
            logic = getattr(self.build, f"{op}_")
            return lambda a, b: logic(self.condition(a), self.condition(b))
        if op == "not":
            return lambda a: self.build.not_(self.condition(a))
        raise AttributeError(op)


def _loaded(build: ir.IRBuilder, x: ir.Value, dtype: torch.dtype, kind: ir.Type) -> ir.Value:
    """An element as the loop computes with it."""
    if dtype is torch.bfloat16:  # the upper half of a float32
        bits = build.shl(build.zext(x, ir.IntType(32)), ir.IntType(32)(16))
        x = build.bitcast(bits, FLOAT)
    return _converted(build, x, kind)


def _stored(build: ir.IRBuilder, x: ir.Value, dtype: torch.dtype, kind: ir.Type) -> ir.Value:
    """A value as an element, rounded to the nearest, ties to even."""
    if dtype is not torch.bfloat16:
        return _converted(build, x, MEMORY[dtype])
    word = ir.IntType(32)
    x = _converted(build, x, FLOAT)
    bits = build.bitcast(x, word)
    upper = build.lshr(bits, word(16))
    odd = build.and_(upper, word(1))
    rounded = build.lshr(build.add(bits, build.add(odd, word(0x7FFF))), word(16))
    quiet = build.or_(upper, word(0x40))  # rounding up could carry a NaN to inf, or on to zero
    return build.trunc(build.select(build.fcmp_unordered("uno", x, x), quiet, rounded), ir.IntType(16))


def _converted(build: ir.IRBuilder, x: ir.Value, kind: ir.Type) -> ir.Value:
    if x.type == kind:
        return x
    if {x.type, kind} == {HALF, DOUBLE}:  # no processor converts between these, and the function for it may be missing
        x = _converted(build, x, FLOAT)
    widths = {HALF: 16, FLOAT: 32, DOUBLE: 64}
    widens = widths[x.type] < widths[kind]
    return (build.fpext if widens else build.fptrunc)(x, kind)
