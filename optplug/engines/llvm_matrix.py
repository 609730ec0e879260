"""Lowers a segment of a rule that uses rows and columns to LLVM code: a loop over the lines of matrices.

Every space is a stack of matrices with the dimensions `outer`, `middle` and `inner`. A line is one vector of length
`inner`. The operands of a segment, by their kind, have a number for each element, line, column (outer and inner index)
or matrix (outer index):

| space | outer, middle, inner | element | row | column | matrix |
|---|---|---|---|---|---|
| element | matrices, rows, columns | element | line | column | matrix |
| row | 1, matrices, rows | | element | | line |
| column | 1, matrices, columns | | | element | line |
| matrix | 1, 1, matrices | | | | element |

The arithmetic is that of `optplug.engines.llvm_ir`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from llvmlite import ir

from optplug.engines.llvm_ir import (
    DOUBLE,
    INITIAL_TOTALS,
    INT64,
    STORAGE_TYPES,
    Arithmetic,
    ChunkLoop,
    from_storage,
    to_storage,
)
from optplug.rules.graph import Kind
from optplug.rules.segments import Segment

Position = Literal["element", "line", "column", "matrix"]

POSITIONS: dict[Kind, dict[Kind, Position]] = {
    "element": {"element": "element", "row": "line", "column": "column", "matrix": "matrix"},
    "row": {"row": "element", "matrix": "line"},
    "column": {"column": "element", "matrix": "line"},
    "matrix": {"matrix": "element"},
}
"""For each space the position of a kind in it."""

HEADER = ("lines", "scalar_row", "first_line", "middle", "inner", "accumulators", "accumulator_stride")
"""The leading columns of the chunk table: the number of lines, the row of scalars, the index of the first line, the
dimensions, and the address of the sums of columns: float64 [reductions, stride], from the first matrix of the chunk on.
An address per role and temporary follows."""


def write_kernel(
    segment: Segment, dtypes: Mapping[str, torch.dtype], module: ir.Module, value_dtype: torch.dtype
) -> None:
    """Add the function `step` of a segment to a module. Its arguments are those of `llvm_ir.write_kernel`.

    Args:
        segment: the segment.
        dtypes: the dtype of the elements of each role and temporary, in the column order of the table.
        module: the module.
        value_dtype: the dtype of the arithmetic.
    """
    value_type = STORAGE_TYPES[value_dtype]
    loop = ChunkLoop(segment, dtypes, module, value_type, len(HEADER), ["line", "element", "line_end"])
    build, chunk, pointers = loop.build, loop.blocks["chunk"], loop.pointers
    line, element, line_end = loop.blocks["line"], loop.blocks["element"], loop.blocks["line_end"]
    header = dict(zip(HEADER, loop.header, strict=True))
    positions = POSITIONS[segment.space]
    sums_of_columns = [n for n in segment.line_reductions.values() if reduces_columns(segment, n.kind)]
    sums_of_lines = {name: n for name, n in segment.line_reductions.items() if n not in sums_of_columns}
    accumulators = build.inttoptr(header["accumulators"], DOUBLE.as_pointer())
    first_outer = build.sdiv(header["first_line"], header["middle"])
    first_middle = build.srem(header["first_line"], header["middle"])
    build.branch(line)

    build.position_at_end(line)
    done_lines, middle, outer = build.phi(INT64), build.phi(INT64), build.phi(INT64)
    line_totals = [build.phi(DOUBLE) for _ in segment.reductions]
    for phi, value in ((done_lines, INT64(0)), (middle, first_middle), (outer, first_outer)):
        phi.add_incoming(value, chunk)
    for node, phi in zip(segment.reductions, line_totals, strict=True):
        phi.add_incoming(DOUBLE(INITIAL_TOTALS[node.op]), chunk)
    line_index = build.add(header["first_line"], done_lines)
    index: dict[Position, ir.Value] = {
        "element": build.mul(line_index, header["inner"]),
        "line": line_index,
        "column": build.mul(outer, header["inner"]),
        "matrix": outer,
    }
    values = dict(loop.scalars)
    vectors = {}
    for node, name in segment.loads.items():
        position = positions[node.kind]
        start = build.gep(pointers[name], [index[position]])
        if position in ("line", "matrix"):
            values[node] = from_storage(build, build.load(start), dtypes[name], value_type)
        else:
            vectors[node] = start
    targets = {name: build.gep(pointers[name], [index["element"]]) for name in segment.stores}
    column_sums = build.gep(accumulators, [build.mul(build.sub(outer, first_outer), header["inner"])])
    column_targets = [
        build.gep(column_sums, [build.mul(header["accumulator_stride"], INT64(k))]) for k in range(len(sums_of_columns))
    ]
    build.branch(element)

    build.position_at_end(element)
    i = build.phi(INT64)
    i.add_incoming(INT64(0), line)
    totals_in = [build.phi(DOUBLE) for _ in segment.reductions]
    sums_in = [build.phi(DOUBLE) for _ in sums_of_lines]
    arithmetic = Arithmetic(build, module, value_type, values)
    for node in segment.nodes:
        if node in vectors:
            stored = loop.load(vectors[node], i)
            arithmetic.values[node] = from_storage(build, stored, dtypes[segment.loads[node]], value_type)
        elif node not in segment.loads:
            arithmetic.compute(node)
    for name, node in segment.stores.items():
        build.store(to_storage(build, arithmetic.number(node), dtypes[name]), build.gep(targets[name], [i]))
    for node, target in zip(sums_of_columns, column_targets, strict=True):
        place = build.gep(target, [i])
        build.store(arithmetic.accumulate(node, build.load(place)), place)
    totals = [arithmetic.accumulate(n, x) for n, x in zip(segment.reductions, totals_in, strict=True)]
    sums = [arithmetic.accumulate(n, x) for n, x in zip(sums_of_lines.values(), sums_in, strict=True)]
    for phi, start, total in zip(totals_in, line_totals, totals, strict=True):
        phi.add_incoming(start, line)
        phi.add_incoming(total, element)
    for node, phi, total in zip(sums_of_lines.values(), sums_in, sums, strict=True):
        phi.add_incoming(DOUBLE(INITIAL_TOTALS[node.op]), line)
        phi.add_incoming(total, element)
    next_i = build.add(i, INT64(1))
    i.add_incoming(next_i, element)
    build.cbranch(build.icmp_signed("<", next_i, header["inner"]), element, line_end)

    build.position_at_end(line_end)
    for name, total in zip(sums_of_lines, sums, strict=True):
        build.store(total, build.gep(pointers[name], [line_index]))
    next_middle = build.add(middle, INT64(1))
    ends_matrix = build.icmp_signed("==", next_middle, header["middle"])
    for phi, value in (
        (done_lines, build.add(done_lines, INT64(1))),
        (middle, build.select(ends_matrix, INT64(0), next_middle)),
        (outer, build.select(ends_matrix, build.add(outer, INT64(1)), outer)),
        *zip(line_totals, totals, strict=True),
    ):
        phi.add_incoming(value, line_end)
    build.cbranch(build.icmp_signed("<", done_lines.incomings[-1][0], header["lines"]), line, loop.blocks["after"])

    loop.end(totals)


def reduces_columns(segment: Segment, kind: Kind) -> bool:
    """Whether a reduction in the space of a segment, whose result has this kind, has one result per column."""
    return POSITIONS[segment.space][kind] == "column"
