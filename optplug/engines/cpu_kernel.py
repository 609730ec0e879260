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
from optplug.engines import threads
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

ELEMENTS_PER_THREAD = 1 << 19
"""Number of elements for each additional thread. Updating this many elements takes longer than starting a thread."""

_ARGUMENTS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)

_COMBINE = {"sum": np.add, "dot": np.add, "amax": np.maximum}
"""How the reductions of chunks are combined, by operation."""


class Kernel:
    """The compiled kernel of a segment.

    Args:
        segment: the segment.
        dtypes: the dtype of each role and temporary, in the column order of the chunk table.

    Attributes:
        dtype: the numpy dtype of the scalars, in which the kernel computes.
        reductions: the operations of the segment's reductions.
        run: the function; see `optplug.engines.llvm_ir.write_kernel` for its arguments.
    """

    def __init__(self, segment: Segment, dtypes: Mapping[str, torch.dtype]) -> None:
        self.dtype = np.float64 if ir.compute_dtype(dtypes) is torch.float64 else np.float32
        self.reductions = [node.op for node in segment.reductions]
        self._compiled = CompiledFunction("step", functools.partial(ir.write_kernel, segment, dtypes))
        arguments = _ARGUMENTS + (ctypes.c_void_p,) * bool(self.reductions)
        self.run: Any = ctypes.CFUNCTYPE(None, *arguments)(self._compiled.address)


@functools.lru_cache(maxsize=1024)
def compiled_kernel(segment: Segment, dtypes: tuple[tuple[str, torch.dtype], ...]) -> Kernel:
    """The kernel of a segment for roles and temporaries of these dtypes. It is compiled once."""
    return Kernel(segment, dict(dtypes))


class ChunkTable:
    """The chunks of a list of tensors, as the table that kernels read.

    Args:
        itemsizes: the bytes of an element, for each role and temporary.
        lengths: the number of elements of each tensor, as an array of integers or a sequence.
        elements_per_thread: number of elements for each additional thread. Default: `ELEMENTS_PER_THREAD`. A smaller
            number is useful if tensors are scattered in memory.
    """

    def __init__(self, itemsizes: Sequence[int], lengths: Any, elements_per_thread: int | None = None) -> None:
        lengths = np.asarray(lengths, np.int64)
        tensor_of_chunk: Any = slice(None)
        self._first_chunks: np.ndarray[Any, Any] | None = None
        sizes, offsets = lengths, np.zeros((1, 1), np.int64)
        elements = int(lengths.sum())
        size = min(max(CHUNK_SIZE, elements // MIN_BLOCKS), BLOCK_SIZE)
        # Where all tensors fit into one chunk, as rows of sparse gradients mostly do, chunks and tensors are the same.
        if lengths.size and not (lengths.min() > 0 and lengths.max() <= size):
            chunk_counts = -(-lengths // size)
            tensor_of_chunk = np.repeat(np.arange(len(lengths)), chunk_counts)
            first_chunks = np.repeat(np.cumsum(chunk_counts) - chunk_counts, chunk_counts)
            starts = (np.arange(len(tensor_of_chunk)) - first_chunks) * size
            sizes = np.minimum(size, lengths[tensor_of_chunk] - starts)
            offsets = starts[:, None] * np.asarray(itemsizes)
            self._first_chunks = (np.cumsum(chunk_counts) - chunk_counts)[chunk_counts > 0]
        self._has_elements = lengths > 0
        self._elements_per_thread = elements_per_thread
        self._tensor_of_chunk = tensor_of_chunk
        self._offsets = offsets
        self._rows = np.zeros((len(sizes), ir.HEADER_COLUMNS + len(itemsizes)), np.int64)
        self._rows[:, 0] = sizes
        self._addresses: np.ndarray[Any, Any] | None = None
        self._has_scalar_rows = False
        self._elements = elements
        block = (np.cumsum(sizes) - 1) // size
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
            self._rows[:, ir.HEADER_COLUMNS :] = current.T[self._tensor_of_chunk] + self._offsets
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
        if self._first_chunks is None or not kernel.reductions:
            return partials
        totals = np.empty((len(self._has_elements), len(kernel.reductions)))
        for column, op in enumerate(kernel.reductions):
            totals[:, column] = ir.INITIAL_TOTALS[op]
            if len(self._first_chunks):
                combined = _COMBINE[op].reduceat(partials[:, column], self._first_chunks)
                totals[self._has_elements, column] = combined
        return totals
