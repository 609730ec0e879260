"""What engine `numba` prepares for a bucket: the kernels of its segments, the table of chunks, and the tensor scalars.

Importing this module imports Numba.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug.engines import cpu_kernel, sparse
from optplug.engines.arena import Arena
from optplug.engines.buffers import TensorsByRole
from optplug.engines.cpu_kernel import ChunkTable, Kernel, compiled_kernel
from optplug.engines.cpu_matrix import MatrixTable, dimensions
from optplug.engines.llvm_ir import INITIAL_TOTALS, compute_dtype
from optplug.engines.llvm_matrix import reduces_columns
from optplug.engines.matrix_calls import call_in_batches, check_shapes
from optplug.engines.protocol import Bucket, PartialReduction, SuspendedStep
from optplug.engines.scalars import ScalarRow, StepScalars
from optplug.rules.graph import Kind, Node
from optplug.rules.ops import compute_tensor_scalars, count_values
from optplug.rules.segments import MatrixCall, Segment
from optplug.rules.trace import TracedRule


class DenseProgram:
    """Steps all tensors of a bucket, in one segment."""

    def __init__(self, bucket: Bucket) -> None:
        self._graph = bucket.graph
        (self._kernel,) = _kernels(bucket)
        self._table = _chunk_table(bucket)

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> None:
        rows = scalars.rows(self._graph)
        row_of = _row_of_each(rows, len(roles["p"]))
        self._table.step(self._kernel, _addresses(roles, addresses), [row.constants for row in rows], row_of)
        _increment_versions(self._graph, roles)


class SegmentedProgram:
    """Steps all tensors of a bucket segment by segment. Between the segments it computes the tensor scalars, and calls
    the matrix functions.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._graph = bucket.graph
        self._segments = segments(bucket)
        self._calls = bucket.graph.calls(_narrow_roles(bucket))
        self._call_dtype = compute_dtype(_role_dtypes(bucket))
        self._temporaries = bucket.graph.temporaries(self._segments)
        self._lengths = [_parts(bucket) * length for length in bucket.lengths]
        self._shapes = bucket.shapes
        # In temporaries, parameters of one shape are adjacent, so that they are a batch for matrix functions.
        self._order = np.array(sorted(range(len(self._shapes)), key=self._shapes.__getitem__))
        self._offsets = {kind: self._offsets_of(kind) for kind in {n.kind for n in self._temporaries.values()}}
        # The reductions over several parameters of one level, in the order of the rule, after its last segment.
        last = {segment.level: segment for segment in self._segments}
        self._shared_after: dict[Segment, list[Node]] = {segment: [] for segment in self._segments}
        for segment in self._segments:
            self._shared_after[last[segment.level]] += [node for node in segment.reductions if node.is_shared]
        for nodes in self._shared_after.values():
            nodes.sort(key=lambda node: node.index)
        self._temporary_dtypes = _temporary_dtypes(bucket)
        self._kernels = _kernels(bucket, matrices=self._has_matrices(bucket))
        if not bucket.graph.uses_dims:
            self._table = _chunk_table(bucket)

    @staticmethod
    def _has_matrices(bucket: Bucket) -> bool:
        """Whether the program steps parameters as matrices."""
        return False

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> SuspendedStep | None:
        steps = self._steps(roles, scalars, addresses, arena)
        if self._graph.shared_reductions:
            return steps
        for _ in steps:
            pass
        return None

    def _steps(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> SuspendedStep:
        graph = self._graph
        temporaries = self._take_temporaries(arena)
        starts = [self._starts(name, node, temporaries) for name, node in self._temporaries.items()]
        addresses = np.concatenate([_addresses(roles, addresses), *starts])
        values = self._scalar_values(scalars.rows(graph))
        arrays = {**roles, **self._arrays(temporaries)}
        levels = sorted(graph.scalars_by_level.items(), reverse=True)
        calls = list(reversed(self._calls))
        for segment, kernel in zip(self._segments, self._kernels, strict=True):
            while levels and levels[-1][0] <= segment.level:
                self._compute(levels.pop()[1], values)
            while calls and calls[-1].level <= segment.level:
                addresses = self._call(calls.pop(), arrays, values, addresses)
            totals = self._run(segment, kernel, (addresses, *self._constants(segment, values)), temporaries, arena)
            values.update(zip(segment.reductions, torch.from_numpy(totals).unbind(1), strict=True))
            for node in self._shared_after[segment]:
                reduced = values[node].amax() if node.op == "amax" else values[node].sum()
                values[node] = yield PartialReduction(node.op, str(node.value), reduced)
        _increment_versions(graph, roles)
        while calls:
            self._call(calls.pop(), arrays, values, addresses)
        self._store_whole_values(arrays)
        while levels:
            self._compute(levels.pop()[1], values)
        scalars.set_states({name: values[node] for name, node in graph.tensor_outputs.items()}, slice(None))

    def _run(
        self,
        segment: Segment,
        kernel: Kernel,
        arguments: tuple[Any, ...],
        temporaries: Mapping[str, Tensor],
        arena: Arena,
    ) -> Any:
        """Run the kernel of a segment, and return its reductions: float64 [parameters, reductions]."""
        return self._table.step(kernel, *arguments)

    def _counts(self, kind: Kind) -> Sequence[int]:
        """Return how many values of a kind each parameter has."""
        return self._lengths

    def _take_temporaries(self, arena: Arena) -> dict[str, Tensor]:
        """Return the temporaries that segments write, each a vector for all parameters."""
        return {
            name: arena.take(sum(self._counts(node.kind)), self._temporary_dtypes[name])
            for name, node in self._temporaries.items()
            if not node.is_call
        }

    def _starts(self, name: str, node: Node, temporaries: Mapping[str, Tensor]) -> Any:
        """Return the address of the part of each parameter in a temporary, int64 [1, parameters].

        It is 0 for the result of a matrix function that has not been called yet.
        """
        if name not in temporaries:
            return np.zeros((1, len(self._shapes)), np.int64)
        vector = temporaries[name]
        return (vector.data_ptr() + self._offsets[node.kind] * vector.element_size())[None]

    def _offsets_of(self, kind: Kind) -> Any:
        """Return where the values of each parameter begin in a temporary of this kind, int64 [parameters]."""
        counts = np.asarray(self._counts(kind), np.int64)[self._order]
        offsets = np.empty_like(counts)
        offsets[self._order] = np.cumsum(counts) - counts
        return offsets

    # -------------------------------------------------------------------------------------------- matrix functions

    def _arrays(self, temporaries: Mapping[str, Tensor]) -> TensorsByRole:
        """Return the temporaries that matrix functions read, as tensors with the shapes of the parameters."""
        read = {name for call in self._calls for name in call.operands}
        return {
            name: [
                vector[offset : offset + shape.numel()].view(shape or (1,))
                for offset, shape in zip(self._offsets["element"], self._shapes, strict=True)
            ]
            for name, vector in temporaries.items()
            if name in read
        }

    def _call(self, call: MatrixCall, arrays: TensorsByRole, values: Mapping[Node, Any], addresses: Any) -> Any:
        """Call a matrix function. Its result is added to `arrays`. Return the addresses with those of the result."""
        operands = [[t if t.ndim else t.view(1) for t in arrays[name]] for name in call.operands]
        scalars = [a.value if a.op == "const" else values[a] for a in call.node.args if not a.is_array]
        result = call_in_batches(call.node.value, operands, scalars, self._call_dtype)
        arrays[call.result] = result
        if call.result not in self._temporaries:
            return addresses
        column = len(addresses) - len(self._temporaries) + list(self._temporaries).index(call.result)
        changed = np.array(addresses, np.int64)  # a copy, because tables refer to the previous addresses
        changed[column] = list(map(Tensor.data_ptr, result))
        return changed

    def _store_whole_values(self, arrays: TensorsByRole) -> None:
        """Store the new values of states of another shape, after everything has read the old ones."""
        results = {call.node: call.result for call in self._calls}
        new = {}
        for role, node in self._graph.outputs.items():
            if node.kind == "whole":
                new[role] = arrays[results[node]] if node.is_call else [t.clone() for t in arrays[str(node.value)]]
        for role, tensors in new.items():
            check_shapes(role, arrays[role], tensors)
        for role, tensors in new.items():
            torch._foreach_copy_(arrays[role], tensors)

    # ------------------------------------------------------------------------------------------------ tensor scalars

    def _scalar_values(self, rows: list[ScalarRow]) -> dict[Node, Any]:
        """Return the hoisted scalars: numbers, or vectors with a number for each parameter."""
        if len(rows) == 1:
            return dict(zip(self._graph.hoisted_scalars, rows[0].constants, strict=True))
        table = torch.tensor([row.constants for row in rows], dtype=torch.float64, device="cpu")
        columns = table[_row_of_each(rows, len(self._lengths))].unbind(1)
        return dict(zip(self._graph.hoisted_scalars, columns, strict=True))

    def _compute(self, nodes: Sequence[Node], values: dict[Node, Any]) -> None:
        """Compute tensor scalars: vectors with a number for each parameter."""
        for node in nodes:
            if node.op == "numel":
                values[node] = torch.tensor(self._sizes(node.value), dtype=torch.float64, device="cpu")
            else:
                operands = [a.value if a.op == "const" else values[a] for a in node.args]
                values[node] = compute_tensor_scalars(node.op, *operands)

    def _sizes(self, what: int | str | None) -> Sequence[int]:
        """Return the result of `count_values` for each parameter."""
        return self._lengths if what is None else [count_values(shape or (1,), what) for shape in self._shapes]

    def _constants(self, segment: Segment, values: dict[Node, Any]) -> tuple[Any, Any]:
        """Return the rows of constants of a segment, and for each parameter the index of its row."""
        constants = [values[node] for node in segment.constants]
        if not any(isinstance(value, Tensor) and value.ndim for value in constants):
            return [[float(value) for value in constants]], None
        table = np.empty((len(self._lengths), len(constants)))
        for column, value in enumerate(constants):
            table[:, column] = value
        return table, range(len(table))


class MatrixProgram(SegmentedProgram):
    """Steps the matrices of a bucket, whose rule uses rows and columns.

    Matrices with one element, such as those of 1 x 1 convolutions, are stepped as vectors: a loop over lines of one
    element would be slow.
    """

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket)
        is_single = np.array(list(map(_is_single, bucket.shapes)), bool)
        self._matrices, self._singles = np.flatnonzero(~is_single), np.flatnonzero(is_single)
        itemsizes = [dtype.itemsize for dtype in _dtypes(bucket).values()]
        starts = self._offsets_of("column")
        if len(self._matrices):
            self._tables = {
                space: MatrixTable(
                    len(itemsizes),
                    [dimensions(bucket.shapes[int(i)], space) for i in self._matrices],
                    starts[self._matrices],
                )
                for space in {segment.space for segment in self._segments}
            }
        if len(self._singles):
            single_kernels = _kernels(bucket)
            self._single_kernels = dict(zip(self._segments, single_kernels, strict=True))
            self._single_table = ChunkTable(itemsizes, [self._lengths[i] for i in self._singles])
        self._has_empty = not all(self._lengths)

    @staticmethod
    def _has_matrices(bucket: Bucket) -> bool:
        return not all(map(_is_single, bucket.shapes))

    def _run(
        self,
        segment: Segment,
        kernel: Kernel,
        arguments: tuple[Any, ...],
        temporaries: Mapping[str, Tensor],
        arena: Arena,
    ) -> Any:
        totals = np.empty((len(self._shapes), len(segment.reductions)))
        if self._has_empty:
            for name, node in segment.line_reductions.items():
                temporaries[name].fill_(INITIAL_TOTALS[node.op])
        if len(self._matrices):
            selected = _select(arguments, self._matrices)
            totals[self._matrices] = self._run_matrices(segment, kernel, selected, temporaries, arena)
        if len(self._singles):
            selected = _select(arguments, self._singles)
            totals[self._singles] = self._single_table.step(self._single_kernels[segment], *selected)
        return totals

    def _run_matrices(
        self,
        segment: Segment,
        kernel: Kernel,
        arguments: tuple[Any, ...],
        temporaries: Mapping[str, Tensor],
        arena: Arena,
    ) -> Any:
        table = self._tables[segment.space]
        by_columns = {name: n.op for name, n in segment.line_reductions.items() if reduces_columns(segment, n.kind)}
        if not by_columns:
            return table.step(kernel, *arguments)
        first = temporaries[next(iter(by_columns))]
        targets = first.as_strided((len(by_columns), len(first)), (len(first), 1))
        return table.reduce_columns(kernel, arguments, list(by_columns.values()), targets, arena)

    def _counts(self, kind: Kind) -> Sequence[int]:
        return [math.prod(dimensions(shape, kind)) for shape in self._shapes]

    def _take_temporaries(self, arena: Arena) -> dict[str, Tensor]:
        taken: dict[str, Tensor] = {}
        for segment in self._segments:  # the columns that a segment reduces lie one after another
            names = [name for name, n in segment.line_reductions.items() if reduces_columns(segment, n.kind)]
            if names:
                vectors = arena.take(len(names) * sum(self._counts("column")), torch.float64)
                taken.update(zip(names, vectors.view(len(names), -1), strict=True))
        others = super()._take_temporaries(arena)
        return {**others, **taken}


def _is_single(shape: Sequence[int]) -> bool:
    """Whether the matrices of a parameter have one element."""
    return tuple(shape[-2:]) == (1, 1)


def _select(arguments: tuple[Any, ...], indices: Any) -> tuple[Any, ...]:
    """Select parameters in the arguments of `KernelTable.step` after the kernel."""
    addresses, scalars, scalar_rows = arguments
    return addresses[:, indices], scalars, None if scalar_rows is None else np.asarray(scalar_rows)[indices]


class RowProgram:
    """Steps the rows in the sparse gradients of a bucket, in one segment."""

    def __init__(self, bucket: Bucket) -> None:
        self._graph = bucket.graph
        (self._kernel,) = _kernels(bucket)
        self._itemsizes = [dtype.itemsize for dtype in _role_dtypes(bucket).values()]
        self._parts = _parts(bucket)

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> None:
        rows = scalars.rows(self._graph)
        stepped = sparse.RowAddresses(roles)
        # Rows are scattered in memory, so that more threads are useful.
        table = ChunkTable(
            self._itemsizes, (self._parts * stepped.lengths).numpy(), cpu_kernel.ELEMENTS_PER_THREAD // 16
        )
        row_of = _row_of_each(rows, len(roles["p"]))
        row_of = row_of if row_of is None else row_of[stepped.param_indices]
        table.step(self._kernel, stepped.addresses.numpy(), [row.constants for row in rows], row_of)
        _increment_versions(self._graph, roles)


def _role_dtypes(bucket: Bucket) -> dict[str, torch.dtype]:
    """Return the dtypes of the reals in the elements of each role."""
    roles = ("p", "g", *bucket.graph.variant.array_states)
    return {role: dtype.to_real() for role, dtype in zip(roles, bucket.key.dtypes, strict=True)}


def _dtypes(bucket: Bucket) -> dict[str, torch.dtype]:
    """Return the dtypes of roles and temporaries, the columns of the chunk table."""
    return {**_role_dtypes(bucket), **_temporary_dtypes(bucket)}


def bytes_per_element(bucket: Bucket) -> float:
    """Return how many bytes a step reads and writes per element of a parameter. Rows and columns are not counted."""
    roles = ("p", "g", *bucket.graph.variant.array_states)
    sizes = {role: dtype.itemsize for role, dtype in zip(roles, bucket.key.dtypes, strict=True)}
    temporary = _parts(bucket) * compute_dtype(_role_dtypes(bucket)).itemsize
    passes = [one for one in segments(bucket) if one.space == "element"]
    accesses = [name for one in passes for n, name in one.loads.items() if n.kind == "element"]
    accesses += [name for one in passes for name in one.stores]
    return sum(sizes.get(name, temporary) for name in accesses)


def segments(bucket: Bucket) -> Sequence[Segment]:
    """Return the segments of a bucket, which depend on the dtypes of its roles."""
    return bucket.graph.cut(_narrow_roles(bucket))


def _narrow_roles(bucket: Bucket) -> frozenset[str]:
    """Return the roles that are written, whose dtype is narrower than that of the arithmetic."""
    dtypes = _role_dtypes(bucket)
    value_dtype = compute_dtype(dtypes)
    return frozenset(role for role, dtype in dtypes.items() if dtype != value_dtype and role != "g")


def _temporary_dtypes(bucket: Bucket) -> dict[str, torch.dtype]:
    """Return the dtypes of the temporaries. Reductions are stored in float64."""
    value_dtype = compute_dtype(_role_dtypes(bucket))
    return {
        name: torch.float64 if node.is_reduction else value_dtype
        for name, node in bucket.graph.temporaries(segments(bucket)).items()
    }


def _kernels(bucket: Bucket, *, matrices: bool = False) -> list[Kernel]:
    """Return the kernel of each segment, on vectors or matrices."""
    roles, temporaries = tuple(_role_dtypes(bucket).items()), tuple(_temporary_dtypes(bucket).items())
    return [compiled_kernel(one, roles, temporaries, matrices=matrices) for one in segments(bucket)]


def _chunk_table(bucket: Bucket) -> ChunkTable:
    itemsizes = [dtype.itemsize for dtype in _dtypes(bucket).values()]
    return ChunkTable(itemsizes, [_parts(bucket) * length for length in bucket.lengths])


def _addresses(roles: TensorsByRole, addresses: Any) -> Any:
    """Return the addresses of all tensors, and read them if they have not been read."""
    return [list(map(Tensor.data_ptr, tensors)) for tensors in roles.values()] if addresses is None else addresses


def _parts(bucket: Bucket) -> int:
    """Return the number of reals in an element."""
    return 2 if bucket.key.param_dtype.is_complex else 1


def _row_of_each(rows: list[ScalarRow], count: int) -> Tensor | None:
    """Return the index of each parameter's row of scalars; None if there is only one row."""
    if len(rows) == 1:
        return None
    row_of = torch.zeros(count, dtype=torch.int64, device="cpu")
    for number, row in enumerate(rows):
        row_of[list(row.indices)] = number
    return row_of


def _increment_versions(graph: TracedRule, roles: TensorsByRole) -> None:
    """Increment the version counters of the outputs, which autograd checks."""
    torch.autograd.graph.increment_version(list(chain(*(roles[role] for role in graph.outputs))))
