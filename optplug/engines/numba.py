"""Engine `numba`: runs the graph as one fused CPU kernel over all tensors of a bucket, in several threads.

The kernel and the table that it reads are in `optplug.engines.cpu_kernel`, whose import imports Numba. So it is
imported when it is needed, and the import of this module does not import Numba.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from optplug.engines import sparse
from optplug.engines.arena import Arena
from optplug.engines.buffers import AddressReader, TensorsByRole
from optplug.engines.protocol import (
    Bucket,
    BucketKey,
    EngineProtocol,
    Program,
    fused_bytes_per_element,
    graph_obstacle,
)
from optplug.engines.scalars import ScalarRow, StepScalars
from optplug.rules.trace import TracedRule


class NumbaEngine(EngineProtocol):
    name = "numba"
    advantage = "one fused kernel"
    in_place = True
    takes_rows = True

    def unsupported(self, key: BucketKey, traced: TracedRule | None) -> str | None:
        if obstacle := graph_obstacle(key):
            return obstacle
        if key.device.type != "cpu":
            return f"the parameter is on {key.device}, engine numba runs on the CPU only"
        return key.not_in_place_reason or unavailable_reason(key.dtypes)

    def bytes_per_element(self, bucket: Bucket) -> float | None:
        return fused_bytes_per_element(bucket, torch.float32)

    def address_reader(self) -> AddressReader | None:
        from optplug.engines.addresses import read_addresses

        return read_addresses

    def prepare(self, bucket: Bucket) -> Program:
        return _DenseProgram(bucket) if bucket.key.has_dense_grads else _RowProgram(bucket)


class _DenseProgram:
    """Steps all tensors of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        from optplug.engines.cpu_kernel import ChunkTable

        self._graph = bucket.graph
        self._table = ChunkTable(_kernel(bucket), [_parts(bucket) * length for length in bucket.lengths])

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> None:
        rows = scalars.rows(self._graph)
        if addresses is None:
            addresses = [list(map(Tensor.data_ptr, tensors)) for tensors in roles.values()]
        self._table.step(addresses, [row.constants for row in rows], _row_of_each(rows, len(roles["p"])))
        _increment_versions(self._graph, roles)


class _RowProgram:
    """Steps the rows in the sparse gradients of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._graph = bucket.graph
        self._kernel = _kernel(bucket)
        self._parts = _parts(bucket)

    def step(self, roles: TensorsByRole, scalars: StepScalars, addresses: Any, arena: Arena) -> None:
        from optplug.engines.cpu_kernel import ELEMENTS_PER_THREAD, ChunkTable

        rows = scalars.rows(self._graph)
        stepped = sparse.RowAddresses(roles)
        # Rows are scattered in memory, so that more threads are useful.
        table = ChunkTable(self._kernel, (self._parts * stepped.lengths).numpy(), ELEMENTS_PER_THREAD // 16)
        row_of = _row_of_each(rows, len(roles["p"]))
        row_of = row_of if row_of is None else row_of[stepped.param_indices]
        table.step(stepped.addresses.numpy(), [row.constants for row in rows], row_of)
        _increment_versions(self._graph, roles)


def _kernel(bucket: Bucket) -> Any:
    from optplug.engines.cpu_kernel import compiled_kernel

    return compiled_kernel(bucket.graph, tuple(dtype.to_real() for dtype in bucket.key.dtypes))


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


def unavailable_reason(dtypes: Iterable[torch.dtype] = ()) -> str | None:
    """Why engine `numba` cannot run on this machine on tensors of these dtypes; None if it can. Imports Numba."""
    try:
        import numba  # noqa: F401
    except ModuleNotFoundError:
        return "numba is not installed (pip install 'optplug[cpu]')"
    except Exception as error:  # for example an incompatible version of NumPy
        return f"numba cannot be imported: {error}"
    uses_float16 = any(dtype.to_real() is torch.float16 for dtype in dtypes)
    return _numba_incompatibility() or (_float16_incompatibility() if uses_float16 else None)


@functools.cache
def _numba_incompatibility() -> str | None:
    try:
        from optplug.engines import cpu_kernel  # noqa: F401
    except Exception as error:
        return f"this version of numba is not supported: {type(error).__name__}: {error}"
    return None


@functools.cache
def _float16_incompatibility() -> str | None:
    from optplug.engines.compiler import has_float16_conversion

    return None if has_float16_conversion() else "this processor has no instruction (F16C) that converts float16"
