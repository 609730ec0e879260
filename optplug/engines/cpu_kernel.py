"""The fused CPU kernel of a segment, and the table of chunks that it reads.

Numba's code generator compiles the kernel (`optplug.engines.compiler`) from LLVM code (`optplug.engines.llvm_ir`). A
kernel works for any number of tensors of any shapes. It reads their addresses from a table, which is updated in each
step.

Kernels are not cached on disk. Compilation takes less time than the import of Numba, and a cached file would have to be
checked against the processor, the versions and the rule.

Importing this module imports Numba.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from optplug.engines import llvm_ir as ir
from optplug.engines import llvm_matrix, threads
from optplug.engines.compiler import CompiledFunction
from optplug.rules.segments import Segment

CHUNK_SIZE = 1 << 14
"""The smallest limit on the elements of a chunk. A chunk is a part of one tensor and uses one row of scalars."""

BLOCK_SIZE = 1 << 18
"""The largest limit on the elements of a chunk. A thread takes one block of chunks at a time; long contiguous accesses
are faster."""

MIN_BLOCKS = 64
"""The limit is chosen so that there are at least so many blocks, and all threads finish at about the same time. It is
at least `CHUNK_SIZE`."""

ALIGNED_ELEMENTS = 32
"""The limit is a multiple of this number, so that all chunks of a tensor begin at a multiple of 64 bytes, the size of a
cache line, if the tensor does. Otherwise every second vector would lie in two cache lines."""

ELEMENTS_PER_THREAD = 1 << 19
"""Number of elements for each additional thread. Updating this many elements takes longer than starting a thread."""

_ARGUMENTS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)

_COMBINE = {"sum": np.add, "dot": np.add, "amax": np.maximum}
"""How the reductions of chunks are combined, by operation."""


class Kernel:
    """The compiled kernel of a segment.

    Args:
        segment: the segment.
        roles: the dtype of each role.
        temporaries: the dtype of each temporary. Its column of the chunk table follows those of the roles.
        matrices: whether the kernel runs on matrices (`optplug.engines.llvm_matrix`).

    Attributes:
        dtype: the numpy dtype of the scalars, in which the kernel computes.
        reductions: the operations of the segment's reductions.
        run: the function; see `optplug.engines.llvm_ir.write_kernel` for its arguments.
    """

    def __init__(
        self,
        segment: Segment,
        roles: Mapping[str, torch.dtype],
        temporaries: Mapping[str, torch.dtype],
        *,
        matrices: bool = False,
    ) -> None:
        value_dtype = ir.compute_dtype(roles)
        self.dtype = np.float64 if value_dtype is torch.float64 else np.float32
        self.reductions = [node.op for node in segment.reductions]
        write = llvm_matrix.write_kernel if matrices else ir.write_kernel
        dtypes = {**roles, **temporaries}
        self._compiled = CompiledFunction("step", functools.partial(write, segment, dtypes, value_dtype=value_dtype))
        arguments = _ARGUMENTS + (ctypes.c_void_p,) * bool(self.reductions)
        self.run: Any = ctypes.CFUNCTYPE(None, *arguments)(self._compiled.address)


_Dtypes = tuple[tuple[str, torch.dtype], ...]


@functools.lru_cache(maxsize=1024)
def compiled_kernel(segment: Segment, roles: _Dtypes, temporaries: _Dtypes = (), *, matrices: bool = False) -> Kernel:
    """The kernel of a segment for roles and temporaries of these dtypes. It is compiled once."""
    return Kernel(segment, dict(roles), dict(temporaries), matrices=matrices)


def chunk_size(elements: int) -> int:
    """Return the number of elements of a chunk, if all tensors together have this number of elements."""
    return min(max(CHUNK_SIZE, elements // MIN_BLOCKS // ALIGNED_ELEMENTS * ALIGNED_ELEMENTS), BLOCK_SIZE)


def split(lengths: Any, size: Any) -> tuple[Any, Any]:
    """Split ranges into parts. Return for each part the index of its range, and its start in the range.

    Args:
        lengths: the length of each range.
        size: the largest length of a part; a number, or one for each range.
    """
    counts = -(-lengths // size)
    range_of_part = np.repeat(np.arange(len(lengths)), counts)
    first_parts = np.repeat(np.cumsum(counts) - counts, counts)
    size_of_part = size[range_of_part] if isinstance(size, np.ndarray) else size
    return range_of_part, (np.arange(len(range_of_part)) - first_parts) * size_of_part


class KernelTable:
    """The table of chunks that kernels read: for each chunk a header, and an address for each role and temporary.

    Args:
        header: the headers, int64 [chunks, columns]. Column 1 becomes the row of scalars.
        sizes: the number of elements of each chunk.
        columns: the number of roles and temporaries.
        tensors: the number of tensors.
        tensor_of_chunk: the tensor of each chunk, ascending; None if chunk i is tensor i.
        elements_per_thread: number of elements for each additional thread. Default: `ELEMENTS_PER_THREAD`.
    """

    def __init__(
        self,
        header: Any,
        sizes: Any,
        columns: int,
        tensors: int,
        tensor_of_chunk: Any,
        elements_per_thread: int | None = None,
    ) -> None:
        self._elements = int(np.sum(sizes))
        self._elements_per_thread = elements_per_thread
        self._tensors = tensors
        self._has_chunks, self._first_chunks = None, None
        self._tensor_of_chunk: Any = slice(None)
        if tensor_of_chunk is not None:
            self._tensor_of_chunk = tensor_of_chunk
            self._has_chunks, self._first_chunks = np.unique(tensor_of_chunk, return_index=True)
        self._header_columns = header.shape[1]
        self._rows = np.zeros((len(sizes), self._header_columns + columns), np.int64)
        self._rows[:, : self._header_columns] = header
        self._offsets: Any = np.zeros((1, 1), np.int64)
        self._addresses: np.ndarray[Any, Any] | None = None
        self._has_scalar_rows = False
        block = (np.cumsum(sizes) - 1) // chunk_size(self._elements)
        self._blocks = np.append(np.flatnonzero(np.diff(block, prepend=-1)), len(sizes))
        self._pointers = (self._rows.ctypes.data, self._blocks.ctypes.data)

    def step(self, kernel: Kernel, addresses: Any, scalars: Any, scalar_rows: Any = None) -> Any:
        """Run a kernel on all tensors.

        Args:
            kernel: the kernel.
            addresses: the addresses of the tensors, one row for each role and temporary. An array of int64 must not
                change later.
            scalars: one or several rows with the values of the segment's constants.
            scalar_rows: for each tensor the index of its row of scalars. Default: row 0 for all tensors.

        Returns:
            For each tensor its reductions, an array of float64 [tensors, reductions].
        """
        current = np.asarray(addresses, np.int64)
        if self._addresses is None or not np.array_equal(current, self._addresses):
            self._rows[:, self._header_columns :] = current.T[self._tensor_of_chunk] + self._offsets
            self._addresses = current
        if scalar_rows is not None or self._has_scalar_rows:
            self._rows[:, 1] = 0 if scalar_rows is None else np.asarray(scalar_rows)[self._tensor_of_chunk]
            self._has_scalar_rows = scalar_rows is not None
        with np.errstate(all="ignore"):  # a scalar outside the range of float32 becomes inf, as in the other engines
            values = np.array(scalars, np.float64).astype(kernel.dtype)
        next_block = ctypes.c_int64(0)
        arguments = [*self._pointers, values.ctypes.data, ctypes.addressof(next_block), len(self._blocks) - 1]
        partials = np.empty((len(self._rows), len(kernel.reductions)))
        if kernel.reductions:
            arguments.append(partials.ctypes.data)

        def work() -> None:
            kernel.run(*arguments)

        elements_per_thread = self._elements_per_thread or ELEMENTS_PER_THREAD
        threads.run_in_threads(work, min(torch.get_num_threads() - 1, self._elements // elements_per_thread))
        return self._totals(kernel, partials)

    def _totals(self, kernel: Kernel, partials: Any) -> Any:
        """Combine the reductions of the chunks of each tensor, in the order of the chunks."""
        if not kernel.reductions:
            return np.empty((self._tensors, 0))
        if self._first_chunks is None:
            return partials
        totals = np.empty((self._tensors, len(kernel.reductions)))
        for column, op in enumerate(kernel.reductions):
            totals[:, column] = ir.INITIAL_TOTALS[op]
            if len(self._first_chunks):
                totals[self._has_chunks, column] = _COMBINE[op].reduceat(partials[:, column], self._first_chunks)
        return totals


class ChunkTable(KernelTable):
    """The table of chunks of a list of tensors.

    Args:
        itemsizes: the bytes of an element, for each role and temporary.
        lengths: the number of elements of each tensor, as an array of integers or a sequence.
        elements_per_thread: number of elements for each additional thread. Default: `ELEMENTS_PER_THREAD`. A smaller
            number is useful if tensors are scattered in memory.
    """

    def __init__(self, itemsizes: Sequence[int], lengths: Any, elements_per_thread: int | None = None) -> None:
        lengths = np.asarray(lengths, np.int64)
        size = chunk_size(int(lengths.sum()))
        # Where all tensors fit into one chunk, as rows of sparse gradients mostly do, chunks and tensors are the same.
        if lengths.size and not (lengths.min() > 0 and lengths.max() <= size):
            tensor_of_chunk, starts = split(lengths, size)
            sizes = np.minimum(size, lengths[tensor_of_chunk] - starts)
            offsets = starts[:, None] * np.asarray(itemsizes)
        else:
            tensor_of_chunk, sizes, offsets = None, lengths, np.zeros((1, 1), np.int64)
        header = np.zeros((len(sizes), ir.HEADER_COLUMNS), np.int64)
        header[:, 0] = sizes
        super().__init__(header, sizes, len(itemsizes), len(lengths), tensor_of_chunk, elements_per_thread)
        self._offsets = offsets
