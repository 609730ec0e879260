"""What engine `numba` prepares for a bucket: the kernels of its segments, the table of chunks, and the tensor scalars.

Importing this module imports Numba.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug.engines import cpu_kernel, sparse
from optplug.engines.arena import Arena
from optplug.engines.buffers import TensorsByRole
from optplug.engines.cpu_kernel import ChunkTable, Kernel, compiled_kernel
from optplug.engines.llvm_ir import compute_dtype
from optplug.engines.protocol import Bucket, PartialReduction, PartialSteps
from optplug.engines.scalars import ScalarRow, StepScalars
from optplug.rules.graph import Node
from optplug.rules.ops import compute_tensor_scalars
from optplug.rules.segments import Segment
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
    """Steps all tensors of a bucket segment by segment, and computes the tensor scalars between the segments."""

    def __init__(self, bucket: Bucket) -> None:
        self._graph = bucket.graph
        self._lengths = [_parts(bucket) * length for length in bucket.lengths]
        self._temporary_dtype = compute_dtype(_role_dtypes(bucket))
        self._kernels = _kernels(bucket)
        self._table = _chunk_table(bucket)

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> PartialSteps | None:
        steps = self._steps(roles, scalars, addresses, arena)
        if self._graph.shared_reductions:
            return steps
        for _ in steps:
            pass
        return None

    def _steps(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> PartialSteps:
        graph = self._graph
        temporaries = [self._take_temporary(arena) for _ in graph.temporaries]
        addresses = np.concatenate([_addresses(roles, addresses), *(starts for _, starts in temporaries)])
        values = self._scalar_values(scalars.rows(graph))
        for k, (segment, kernel) in enumerate(zip(graph.segments, self._kernels, strict=True)):
            self._compute(graph.tensor_scalars[k], values)
            totals = self._table.step(kernel, addresses, *self._constants(segment, values))
            for node, total in zip(segment.reductions, torch.from_numpy(totals).unbind(1), strict=True):
                if node.is_shared:
                    reduced = total.amax() if node.op == "amax" else total.sum()
                    total = yield PartialReduction(node.op, str(node.value), reduced)
                values[node] = total
        _increment_versions(graph, roles)
        self._compute(graph.tensor_scalars[-1], values)
        scalars.set_states({name: values[node] for name, node in graph.tensor_outputs.items()}, slice(None))

    def _take_temporary(self, arena: Arena) -> tuple[Tensor, Any]:
        """Return a temporary for all tensors, and the address of the part of each tensor."""
        vector = arena.take(sum(self._lengths), self._temporary_dtype)
        starts = np.cumsum([0, *self._lengths[:-1]]) * vector.element_size() + vector.data_ptr()
        return vector, starts[None]

    def _scalar_values(self, rows: list[ScalarRow]) -> dict[Node, Any]:
        """Return the hoisted scalars: numbers, or vectors with a number for each parameter."""
        if len(rows) == 1:
            return dict(zip(self._graph.hoisted_scalars, rows[0].constants, strict=True))
        table = torch.tensor([row.constants for row in rows], dtype=torch.float64, device="cpu")
        row_of = _row_of_each(rows, len(self._lengths))
        columns = table[row_of].unbind(1)
        return dict(zip(self._graph.hoisted_scalars, columns, strict=True))

    def _compute(self, nodes: list[Node], values: dict[Node, Any]) -> None:
        """Compute tensor scalars: vectors with a number for each parameter."""
        for node in nodes:
            if node.op == "numel":
                values[node] = torch.tensor(self._lengths, dtype=torch.float64, device="cpu")
            else:
                operands = [a.value if a.op == "const" else values[a] for a in node.args]
                values[node] = compute_tensor_scalars(node.op, *operands)

    def _constants(self, segment: Segment, values: dict[Node, Any]) -> tuple[Any, Any]:
        """Return the rows of constants of a segment, and for each parameter the index of its row."""
        constants = [values[node] for node in segment.constants]
        if not any(isinstance(value, Tensor) and value.ndim for value in constants):
            return [[float(value) for value in constants]], None
        table = np.empty((len(self._lengths), len(constants)))
        for column, value in enumerate(constants):
            table[:, column] = value
        return table, range(len(table))


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
    roles = _role_dtypes(bucket)
    return roles | dict.fromkeys(bucket.graph.temporaries, compute_dtype(roles))


def bytes_per_element(bucket: Bucket) -> float:
    """Return how many bytes a step reads and writes per element of a parameter."""
    roles = ("p", "g", *bucket.graph.variant.array_states)
    sizes = {role: dtype.itemsize for role, dtype in zip(roles, bucket.key.dtypes, strict=True)}
    temporary = _parts(bucket) * compute_dtype(_role_dtypes(bucket)).itemsize
    accesses = [name for one in bucket.graph.segments for name in (*one.loads.values(), *one.stores)]
    return sum(sizes.get(name, temporary) for name in accesses)


def _kernels(bucket: Bucket) -> list[Kernel]:
    """Return the kernel of each segment."""
    dtypes = tuple(_dtypes(bucket).items())
    return [compiled_kernel(segment, dtypes) for segment in bucket.graph.segments]


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
