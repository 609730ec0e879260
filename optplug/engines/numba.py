"""Engine `numba`: the graph as one fused CPU kernel over all tensors of a bucket, run by several threads.

Numba compiles it (`optplug.engines.compiler`) from LLVM code (`optplug.engines.llvm_ir`). A kernel serves any number and any
shapes of tensors; it finds them through a table of addresses, which are read anew in each step. Kernels are not kept on
disk: compiling takes less time than importing the compiler, and a file would have to be checked against processor,
versions and rule.

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
from optplug.engines.compiler import Compiled
from optplug.rules.trace import Traced

CHUNK = 1 << 14
"""Elements of a chunk: of one tensor, with one row of scalars."""

BLOCK = 1 << 18
"""Elements of a block, what a thread takes at a time: long runs through memory are faster. There are at least 64
blocks, so that threads finish together, unless they would be smaller than a chunk."""

WORTH_A_THREAD = 1 << 19
"""So many elements take longer than it takes to wake up a thread."""

_ARGUMENTS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Kernel:
    """A compiled graph for roles of certain dtypes."""

    def __init__(self, traced: Traced, dtypes: Sequence[torch.dtype]) -> None:
        roles = dict(zip(("p", "g", *traced.variant.elementwise), dtypes, strict=True))
        self.dtype = np.float64 if ir.computes_in(roles) is torch.float64 else np.float32
        self.itemsizes = [dtype.itemsize for dtype in dtypes]
        self._compiled = Compiled("step", functools.partial(ir.kernel, traced, roles))
        self.run: Any = ctypes.CFUNCTYPE(None, *_ARGUMENTS)(self._compiled.address)


@functools.lru_cache(maxsize=1024)
def compiled(traced: Traced, dtypes: tuple[torch.dtype, ...]) -> Kernel:
    """The kernel of a graph for roles of these dtypes (`p`, `g`, then element-wise states), compiled once."""
    return Kernel(traced, dtypes)


class Table:
    """The chunks of some tensors, for a kernel.

    Args:
        kernel: the kernel.
        lengths: elements of each tensor; anything that numpy takes for an array of integers, as below.
        worth_a_thread: elements for each helping thread. Default: `WORTH_A_THREAD`; less where they lie far apart.
    """

    def __init__(self, kernel: Kernel, lengths: Any, worth_a_thread: int | None = None) -> None:
        whole = np.asarray(lengths, np.int64)
        owner: Any = slice(None)
        size, offsets = whole, np.zeros((1, 1), np.int64)
        if whole.size and not (whole.min() > 0 and whole.max() <= CHUNK):  # else each is one chunk, as rows mostly are
            pieces = -(-whole // CHUNK)
            owner = np.repeat(np.arange(len(whole)), pieces)
            start = (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * CHUNK
            size = np.minimum(CHUNK, whole[owner] - start)
            offsets = start[:, None] * np.asarray(kernel.itemsizes)
        self._kernel = kernel
        self._worth_a_thread = worth_a_thread
        self._owner = owner
        self._offsets = offsets
        self._rows = np.zeros((len(size), ir.HEAD + len(kernel.itemsizes)), np.int64)
        self._rows[:, 0] = size
        self._addresses: np.ndarray[Any, Any] | None = None
        self._elements = int(whole.sum())
        block = (np.cumsum(size) - 1) // min(max(CHUNK, self._elements // 64), BLOCK)
        self._blocks = np.append(np.flatnonzero(np.diff(block, prepend=-1)), len(size))

    def step(self, addresses: Any, scalars: Sequence[Sequence[float]], row_of: Any = None) -> None:
        """Run the kernel on all tensors.

        Args:
            addresses: of each role's tensors, one row a role.
            scalars: the values of `traced.hoisted`, in one row or several.
            row_of: each tensor's row of scalars. Default: row 0 for all.
        """
        now = np.array(addresses, np.int64)
        if self._addresses is None or not np.array_equal(now, self._addresses):
            self._rows[:, ir.HEAD :] = now.T[self._owner] + self._offsets
            self._addresses = now
        self._rows[:, 1] = 0 if row_of is None else np.asarray(row_of)[self._owner]
        with np.errstate(all="ignore"):  # a scalar that float32 cannot hold is inf, as in other engines
            values = np.array(scalars, np.float64).astype(self._kernel.dtype)
        taken = np.zeros(1, np.int64)
        arrays = (self._rows, self._blocks, values, taken)
        count = len(self._blocks) - 1

        def work() -> None:
            self._kernel.run(*(array.ctypes.data for array in arrays), count)

        threads.together(
            work, min(torch.get_num_threads() - 1, self._elements // (self._worth_a_thread or WORTH_A_THREAD))
        )
