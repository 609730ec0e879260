"""The table of chunks for kernels that run on the lines of matrices (`optplug.engines.llvm_matrix`).

Importing this module imports Numba.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optplug.engines.arena import Arena
from optplug.engines.cpu_kernel import Kernel, KernelTable, chunk_size, split
from optplug.engines.llvm_ir import INITIAL_TOTALS
from optplug.engines.llvm_matrix import HEADER
from optplug.rules.graph import Kind

Dimensions = tuple[int, int, int]
"""The sizes outer, middle and inner of a space."""


def dimensions(shape: Sequence[int], space: Kind) -> Dimensions:
    """Return the dimensions of a space of a parameter.

    Args:
        shape: the shape of the parameter, at least two sizes.
        space: `"element"`, `"row"`, `"column"` or `"matrix"`.
    """
    matrices, rows, columns = math.prod(shape[:-2]), shape[-2], shape[-1]
    spaces: dict[Kind, Dimensions] = {
        "element": (matrices, rows, columns),
        "row": (1, matrices, rows),
        "column": (1, matrices, columns),
        "matrix": (1, 1, matrices),
    }
    return spaces[space]


class MatrixTable(KernelTable):
    """The chunks of a list of parameters in one space. A chunk is a range of lines: of one matrix, or whole matrices.

    Args:
        columns: the number of roles and temporaries.
        spaces: the dimensions of the space of each parameter.
        column_starts: where the columns of each parameter begin in a temporary with the columns of all parameters.
    """

    def __init__(self, columns: int, spaces: Sequence[Dimensions], column_starts: Any) -> None:
        outer, middle, inner = np.asarray(spaces, np.int64).T
        size = chunk_size(int((outer * middle * inner).sum()))
        # The ranges are matrices that are split, and parameters whose matrices fit into a chunk.
        is_split = middle * inner > size
        ranges = np.where(is_split, outer, 1) * (outer * middle * inner > 0)
        tensor_of_range = np.repeat(np.arange(len(spaces)), ranges)
        lengths = np.where(is_split, middle, outer * middle)[tensor_of_range]
        whole = np.maximum(1, size // np.maximum(middle * inner, 1)) * middle
        lines = np.where(is_split, np.maximum(1, size // np.maximum(inner, 1)), whole)[tensor_of_range]
        range_of_chunk, starts = split(lengths, np.maximum(lines, 1))
        tensor = tensor_of_range[range_of_chunk]
        counts = np.minimum(lines[range_of_chunk], lengths[range_of_chunk] - starts)
        number_in_tensor = np.arange(len(tensor_of_range)) - (np.cumsum(ranges) - ranges)[tensor_of_range]
        first_lines = starts + np.where(is_split[tensor], number_in_tensor[range_of_chunk] * middle[tensor], 0)
        header = np.zeros((len(counts), len(HEADER)), np.int64)
        header[:, 0], header[:, 2], header[:, 3], header[:, 4] = counts, first_lines, middle[tensor], inner[tensor]
        super().__init__(header, counts * inner[tensor], columns, len(spaces), tensor)
        self._tensor = tensor
        self._first_outer = first_lines // np.maximum(middle[tensor], 1)
        self._inner = inner
        self._is_split = is_split
        self._column_starts = column_starts

    def reduce_columns(
        self, kernel: Kernel, arguments: tuple[Any, ...], ops: Sequence[str], targets: Tensor, arena: Arena
    ) -> Any:
        """Run a kernel that reduces columns.

        Args:
            kernel: the kernel.
            arguments: the arguments of `step` after the kernel.
            ops: the operation of each reduction of columns.
            targets: the memory for their results: float64 [reductions, columns of all parameters].
            arena: memory for the reductions of parts of matrices.

        Returns:
            The reductions to one number per parameter, as `step`.
        """
        split_chunks = np.flatnonzero(self._is_split[self._tensor])
        lengths = self._inner[self._tensor[split_chunks]]
        starts = np.cumsum(lengths) - lengths
        # Whole matrices accumulate in the targets, parts of matrices in memory of their own.
        stride = int(lengths.sum())
        parts = arena.take(stride * len(targets), torch.float64).view(len(targets), stride)
        firsts = self._column_starts[self._tensor] + self._first_outer * self._inner[self._tensor]
        header = self._rows
        header[:, 5], header[:, 6] = targets.data_ptr() + 8 * firsts, targets.shape[1]
        header[split_chunks, 5], header[split_chunks, 6] = parts.data_ptr() + 8 * starts, stride
        for op, target, part in zip(ops, targets, parts, strict=True):
            target.fill_(INITIAL_TOTALS[op])
            part.fill_(INITIAL_TOTALS[op])
        totals = self.step(kernel, *arguments)
        for op, target, part in zip(ops, targets, parts, strict=True):
            combine = torch.maximum if op == "amax" else torch.add
            for first, start, length in zip(firsts[split_chunks], starts, lengths, strict=True):
                columns = target[first : first + length]
                combine(columns, part[start : start + length], out=columns)
        return totals
