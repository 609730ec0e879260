"""The fused CPU kernel of a graph, and the table of chunks that it reads.

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
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from optplug.engines import llvm_ir as ir
from optplug.engines import threads
from optplug.engines.compiler import CompiledFunction
from optplug.rules.trace import TracedRule

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


class Kernel:
    """The compiled kernel of a graph.

    Args:
        traced: the graph.
        dtypes: the dtypes of the roles: `p`, `g`, then the element-wise states.

    Attributes:
        dtype: the numpy dtype of the scalars, in which the kernel computes.
        itemsizes: the bytes of an element, for each role.
        run: the function; see `optplug.engines.llvm_ir.write_kernel` for its arguments.
    """

    def __init__(self, traced: TracedRule, dtypes: Sequence[torch.dtype]) -> None:
        roles = dict(zip(("p", "g", *traced.variant.elementwise_states), dtypes, strict=True))
        self.dtype = np.float64 if ir.compute_dtype(roles) is torch.float64 else np.float32
        self.itemsizes = [dtype.itemsize for dtype in dtypes]
        self._compiled = CompiledFunction("step", functools.partial(ir.write_kernel, traced, roles))
        self.run: Any = ctypes.CFUNCTYPE(None, *_ARGUMENTS)(self._compiled.address)


@functools.lru_cache(maxsize=1024)
def compiled_kernel(traced: TracedRule, dtypes: tuple[torch.dtype, ...]) -> Kernel:
    """The kernel of a graph for roles of these dtypes (`p`, `g`, then element-wise states). It is compiled once."""
    return Kernel(traced, dtypes)


class ChunkTable:
    """The chunks of a list of tensors, as the table that a kernel reads.

    Args:
        kernel: the kernel.
        lengths: the number of elements of each tensor, as an array of integers or a sequence.
        elements_per_thread: number of elements for each additional thread. Default: `ELEMENTS_PER_THREAD`. A smaller
            number is useful if tensors are scattered in memory.
    """

    def __init__(self, kernel: Kernel, lengths: Any, elements_per_thread: int | None = None) -> None:
        lengths = np.asarray(lengths, np.int64)
        tensor_of_chunk: Any = slice(None)
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
            offsets = starts[:, None] * np.asarray(kernel.itemsizes)
        self._kernel = kernel
        self._elements_per_thread = elements_per_thread
        self._tensor_of_chunk = tensor_of_chunk
        self._offsets = offsets
        self._rows = np.zeros((len(sizes), ir.HEADER_COLUMNS + len(kernel.itemsizes)), np.int64)
        self._rows[:, 0] = sizes
        self._addresses: np.ndarray[Any, Any] | None = None
        self._has_scalar_rows = False
        self._elements = elements
        block = (np.cumsum(sizes) - 1) // size
        self._blocks = np.append(np.flatnonzero(np.diff(block, prepend=-1)), len(sizes))
        self._pointers = (self._rows.ctypes.data, self._blocks.ctypes.data)

    def step(self, addresses: Any, scalars: Sequence[Sequence[float]], scalar_rows: Any = None) -> None:
        """Run the kernel on all tensors.

        Args:
            addresses: the addresses of the tensors, one row for each role. An array of int64 must not change later.
            scalars: one or several rows with the values of `traced.hoisted_scalars`.
            scalar_rows: for each tensor the index of its row of scalars. Default: row 0 for all tensors.
        """
        current = np.asarray(addresses, np.int64)
        if self._addresses is None or not np.array_equal(current, self._addresses):
            self._rows[:, ir.HEADER_COLUMNS :] = current.T[self._tensor_of_chunk] + self._offsets
            self._addresses = current
        if scalar_rows is not None or self._has_scalar_rows:
            self._rows[:, 1] = 0 if scalar_rows is None else np.asarray(scalar_rows)[self._tensor_of_chunk]
            self._has_scalar_rows = scalar_rows is not None
        with np.errstate(all="ignore"):  # a scalar outside the range of float32 becomes inf, as in the other engines
            values = np.array(scalars, np.float64).astype(self._kernel.dtype)
        next_block = ctypes.c_int64(0)
        arguments = (*self._pointers, values.ctypes.data, ctypes.addressof(next_block), len(self._blocks) - 1)

        def work() -> None:
            self._kernel.run(*arguments)

        elements_per_thread = self._elements_per_thread or ELEMENTS_PER_THREAD
        threads.run_in_threads(work, min(torch.get_num_threads() - 1, self._elements // elements_per_thread))
