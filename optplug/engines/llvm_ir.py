"""Lowers a segment to LLVM code: a loop over chunks of tensors that reads each input once and writes each output once.

Reductions accumulate in float64, in the order of a vector register, which depends on the length of the chunk only.

Arithmetic follows IEEE 754 with one exception, the flag `contract`: a product may be added without being rounded first
(fused multiply-add). Apart from that, NaN and infinity propagate as in engine `loop`, and the result for an element
does not depend on its chunk or on its position in a vector register.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from llvmlite import ir

from optplug.rules.graph import Node
from optplug.rules.segments import Segment

INT64, BOOL = ir.IntType(64), ir.IntType(1)
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
STORAGE_TYPES = {torch.float64: DOUBLE, torch.float32: FLOAT, torch.float16: HALF, torch.bfloat16: ir.IntType(16)}
"""The LLVM type of an element in memory, by dtype. bfloat16 is loaded as an integer of 16 bits."""

HEADER_COLUMNS = 2
"""Number of leading columns of the chunk table: number of elements, and row of scalars. An address per role follows."""

COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
CONTRACT = ("contract",)
ACCUMULATE = ("contract", "reassoc")
"""The flags of a sum that a vector register accumulates in parts."""

INITIAL_TOTALS = {"sum": 0.0, "dot": 0.0, "amax": -math.inf}
"""The reduction of no elements, by operation."""

SLOW_OPERATIONS = ("div", "sqrt", "exp", "log")


def compute_dtype(dtypes: Mapping[str, torch.dtype]) -> torch.dtype:
    """The dtype of the arithmetic: float64 if the parameter or a state is float64, else float32.

    Parameters of 16 bits are computed in float32.

    Args:
        dtypes: the dtype of each role's elements.
    """
    stored = (dtype for role, dtype in dtypes.items() if role != "g")
    return torch.float64 if torch.float64 in stored else torch.float32


def vector_bits(segment: Segment) -> int:
    """The width of the vectors that a kernel uses on x86 processors, in bits.

    256 bits are at least as fast as 128 for kernels that have a state: they run half as many instructions per byte
    (measured on Zen 4: Lion 1.05 times the speed in memory, 1.6 times in the cache). A kernel that has the gradient and
    the parameter only is limited by memory, and wide vectors are slower there (SGD without momentum: 0.93 times the
    speed with 256 bits, 0.85 with 512), unless it has divisions or roots. For reductions, which accumulate in float64,
    256 bits are too narrow (the first segment of LAMB: 0.82 times the speed).
    """
    if segment.reductions:
        return 512
    arrays = {*segment.loads.values(), *segment.stores}
    return 256 if len(arrays) > 2 or any(node.op in SLOW_OPERATIONS for node in segment.nodes) else 128


def write_kernel(
    segment: Segment, dtypes: Mapping[str, torch.dtype], module: ir.Module, value_dtype: torch.dtype | None = None
) -> None:
    """Add the function `step` of a segment to a module.

    The arguments of `step` are:

    - `int64* table`: the chunk table, row by row;
    - `int64* blocks`: the index of the first chunk of each block, and at the end the number of chunks;
    - `T* scalars`: the values of `segment.constants`, row by row;
    - `int64* next_block`: a counter shared by all threads, the index of the next block;
    - `int64 block_count`: the number of blocks;
    - `double* partials`: where the reductions of each chunk are written, row by row. Segments without reductions lack
      this argument.

    A call processes blocks until none is left. A segment of a rule that uses rows and columns can be run in this way on
    matrices with one element: the numbers of rows, columns and elements are then the same.

    Args:
        segment: the segment.
        dtypes: the dtype of the elements of each role and temporary, in the column order of the table.
        module: the module.
        value_dtype: the dtype of the arithmetic. Default: `compute_dtype(dtypes)`.
    """
    value_type = STORAGE_TYPES[value_dtype or compute_dtype(dtypes)]
    loop = ChunkLoop(segment, dtypes, module, value_type, HEADER_COLUMNS, ["element"])
    build, chunk, pointers = loop.build, loop.blocks["chunk"], loop.pointers
    element, after, length = loop.blocks["element"], loop.blocks["after"], loop.header[0]
    build.branch(element)

    build.position_at_end(element)
    i = build.phi(INT64)
    i.add_incoming(INT64(0), chunk)
    accumulators = [build.phi(DOUBLE) for _ in segment.reductions]
    arithmetic = Arithmetic(build, module, value_type, loop.scalars)
    for node in segment.nodes:
        if node in segment.loads:
            name = segment.loads[node]
            arithmetic.values[node] = from_storage(build, loop.load(pointers[name], i), dtypes[name], value_type)
        else:
            arithmetic.compute(node)
    for name, node in segment.stores.items():
        value = to_storage(build, arithmetic.number(node), dtypes[name])
        build.store(value, build.gep(pointers[name], [i]))
    for name, node in segment.line_reductions.items():  # of lines with one element
        build.store(arithmetic.reduced_element(node), build.gep(pointers[name], [i]))
    totals = [arithmetic.accumulate(node, x) for node, x in zip(segment.reductions, accumulators, strict=True)]
    for node, accumulator, total in zip(segment.reductions, accumulators, totals, strict=True):
        accumulator.add_incoming(DOUBLE(INITIAL_TOTALS[node.op]), chunk)
        accumulator.add_incoming(total, element)
    next_i = build.add(i, INT64(1))
    i.add_incoming(next_i, element)
    build.cbranch(build.icmp_signed("<", next_i, length), element, after)

    loop.end(totals)


class ChunkLoop:
    """The function `step` of a kernel: its arguments, and the loop over blocks and chunks around the code of a chunk.

    Args:
        segment: the segment.
        dtypes: the dtype of the elements of each role and temporary, in the column order of the table.
        module: the module.
        value_type: the LLVM type of the arithmetic.
        header_columns: number of leading columns of the chunk table. Column 1 is the row of scalars.
        inner: the names of the basic blocks between `chunk` and `after`.

    Attributes:
        build: the builder, at the end of the block `chunk`.
        blocks: the basic blocks by name. The code of a chunk must end with a branch to `after`.
        header: the values of the leading columns.
        scalars: the values of the segment's constants.
        pointers: the address of each role and temporary.
    """

    def __init__(
        self,
        segment: Segment,
        dtypes: Mapping[str, torch.dtype],
        module: ir.Module,
        value_type: ir.Type,
        header_columns: int,
        inner: Sequence[str],
    ) -> None:
        int_pointer = INT64.as_pointer()
        arguments = [int_pointer, int_pointer, value_type.as_pointer(), int_pointer, INT64]
        if segment.reductions:
            arguments.append(DOUBLE.as_pointer())
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "step")
        set.add(function.attributes, f'"prefer-vector-width"="{vector_bits(segment)}"')  # unknown to llvmlite
        table, blocks, scalars, next_block, block_count, *self._partials = function.args
        names = ("entry", "take", "block", "chunk", *inner, "after", "done")
        self.blocks = {name: function.append_basic_block(name) for name in names}
        self.build = build = ir.IRBuilder(self.blocks["entry"])
        build.branch(self.blocks["take"])
        build.position_at_end(self.blocks["take"])
        number = build.atomic_rmw("add", next_block, INT64(1), "monotonic")
        is_left = build.icmp_signed("<", number, block_count)
        build.cbranch(is_left, self.blocks["block"], self.blocks["done"])

        build.position_at_end(self.blocks["block"])
        first, self._last = self.load(blocks, number), self.load(blocks, build.add(number, INT64(1)))
        build.branch(self.blocks["chunk"])

        build.position_at_end(self.blocks["chunk"])
        self._chunk = build.phi(INT64)
        self._chunk.add_incoming(first, self.blocks["block"])
        row = build.gep(table, [build.mul(self._chunk, INT64(header_columns + len(dtypes)))])
        self.header = [self.load(row, INT64(k)) for k in range(header_columns)]
        constants = build.gep(scalars, [build.mul(self.header[1], INT64(len(segment.constants)))])
        self.scalars = {node: self.load(constants, INT64(k)) for k, node in enumerate(segment.constants)}
        self.pointers = {
            name: build.inttoptr(self.load(row, INT64(header_columns + k)), STORAGE_TYPES[dtype].as_pointer())
            for k, (name, dtype) in enumerate(dtypes.items())
        }

    def load(self, base: ir.Value, index: ir.Value) -> ir.Value:
        """Emit the load of an element of an array."""
        return self.build.load(self.build.gep(base, [index]))

    def end(self, totals: Sequence[ir.Value]) -> None:
        """Emit the end of the loop.

        Args:
            totals: the reductions of a chunk.
        """
        build, c = self.build, self._chunk
        build.position_at_end(self.blocks["after"])
        for k, total in enumerate(totals):
            column = build.add(build.mul(c, INT64(len(totals))), INT64(k))
            build.store(total, build.gep(self._partials[0], [column]))
        c.add_incoming(build.add(c, INT64(1)), self.blocks["after"])
        is_left = build.icmp_signed("<", c.incomings[-1][0], self._last)
        build.cbranch(is_left, self.blocks["chunk"], self.blocks["take"])
        build.position_at_end(self.blocks["done"])
        build.ret_void()


class Arithmetic:
    """Emits the arithmetic for one element, and holds the LLVM value of each node.

    Args:
        build: the builder.
        module: the module.
        value_type: the LLVM type of the arithmetic.
        scalars: the values of the hoisted scalars.
    """

    def __init__(
        self, build: ir.IRBuilder, module: ir.Module, value_type: ir.Type, scalars: Mapping[Node, ir.Value]
    ) -> None:
        self.build = build
        self.module = module
        self.value_type = value_type
        self.values: dict[Node, ir.Value] = dict(scalars)

    def __call__(self, node: Node) -> ir.Value:
        return self.value_type(float(node.value)) if node.op == "const" else self.values[node]

    def number(self, node: Node) -> ir.Value:
        """The value of a node as a number. A condition becomes 0 or 1."""
        value = self(node)
        return self.build.uitofp(value, self.value_type) if value.type == BOOL else value

    def condition(self, node: Node) -> ir.Value:
        """The value of a node as a condition. A condition that was computed elsewhere is a number, 0 or 1."""
        value = self(node)
        return value if value.type == BOOL else self.build.fcmp_unordered("!=", value, self.value_type(0.0))

    def compute(self, node: Node) -> None:
        """Emit the operation of a node."""
        method: Callable[..., ir.Value] = getattr(self, node.op)
        self.values[node] = method(*node.args)

    def reduced_element(self, node: Node) -> ir.Value:
        """Emit the value of a reduction of one element, in float64."""
        x, *others = (convert(self.build, self(a), DOUBLE) for a in node.args)
        for other in others:
            x = self.build.fmul(x, other, flags=ACCUMULATE)
        return x

    def accumulate(self, node: Node, total: ir.Value) -> ir.Value:
        """Emit one element of a reduction, and return the new total in float64."""
        x = self.reduced_element(node)
        if node.op == "amax":  # NaN if x or the total is NaN
            larger = self.build.fcmp_unordered(">", x, total)
            is_nan = self.build.fcmp_unordered("uno", total, total)
            return self.build.select(self.build.and_(larger, self.build.not_(is_nan)), x, total)
        return self.build.fadd(total, x, flags=ACCUMULATE)

    def _intrinsic(self, name: str, x: Node | ir.Value) -> ir.Value:
        function = self.module.declare_intrinsic(f"llvm.{name}", [self.value_type])
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
        zero, one = self.value_type(0.0), self.value_type(1.0)
        signature = ir.FunctionType(self.value_type, [self.value_type] * 2)
        copysign = self.module.declare_intrinsic("llvm.copysign", [self.value_type], signature)
        is_number = self.build.fcmp_ordered("!=", self(x), zero)  # false for NaN
        return self.build.select(is_number, self.build.call(copysign, [one, self(x)]), zero)

    def maximum(self, a: Node, b: Node) -> ir.Value:
        return self._select_extreme(">", self(a), self(b))

    def minimum(self, a: Node, b: Node) -> ir.Value:
        return self._select_extreme("<", self(a), self(b))

    def _select_extreme(self, op: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger or smaller value, NaN if a or b is NaN.

        If b is NaN the comparison is false, and b is selected. If a is NaN, a is selected.
        """
        a_is_nan = self.build.fcmp_unordered("uno", a, a)
        return self.build.select(self.build.or_(self._compare(op, a, b), a_is_nan), a, b)

    def lerp(self, a: Node, b: Node, weight: Node) -> ir.Value:
        """Interpolate from the nearer end, as torch does. A weight of exactly 1 gives b, even for infinite a."""
        build, one = self.build, self.value_type(1.0)
        start, end, w = self(a), self(b), self(weight)
        near = self._compare("<", self._intrinsic("fabs", w), self.value_type(0.5))
        distance = build.select(near, w, build.fsub(w, one))
        step = build.fmul(distance, build.fsub(end, start), flags=CONTRACT)
        interpolated = build.fadd(build.select(near, start, end), step, flags=CONTRACT)
        return build.select(self._compare("==", w, one), end, interpolated)

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


def from_storage(build: ir.IRBuilder, x: ir.Value, dtype: torch.dtype, value_type: ir.Type) -> ir.Value:
    """Convert an element from its type in memory to the type of the arithmetic."""
    if dtype is torch.bfloat16:  # bfloat16 is the upper half of a float32
        bits = build.shl(build.zext(x, ir.IntType(32)), ir.IntType(32)(16))
        x = build.bitcast(bits, FLOAT)
    return convert(build, x, value_type)


def to_storage(build: ir.IRBuilder, x: ir.Value, dtype: torch.dtype) -> ir.Value:
    """Convert a value to its type in memory, rounding to nearest, ties to even."""
    if dtype is not torch.bfloat16:
        return convert(build, x, STORAGE_TYPES[dtype])
    word = ir.IntType(32)
    x = convert(build, x, FLOAT)
    bits = build.bitcast(x, word)
    upper = build.lshr(bits, word(16))
    odd = build.and_(upper, word(1))
    rounded = build.lshr(build.add(bits, build.add(odd, word(0x7FFF))), word(16))
    quiet_nan = build.or_(upper, word(0x40))  # rounding the bits of a NaN could produce inf or zero
    return build.trunc(build.select(build.fcmp_unordered("uno", x, x), quiet_nan, rounded), ir.IntType(16))


def convert(build: ir.IRBuilder, x: ir.Value, target: ir.Type) -> ir.Value:
    """Convert a floating-point value to another floating-point type."""
    if x.type == target:
        return x
    # No processor converts between half and double directly, and LLVM's library function for it may be missing.
    if {x.type, target} == {HALF, DOUBLE}:
        x = convert(build, x, FLOAT)
    widths = {HALF: 16, FLOAT: 32, DOUBLE: 64}
    widens = widths[x.type] < widths[target]
    return (build.fpext if widens else build.fptrunc)(x, target)
