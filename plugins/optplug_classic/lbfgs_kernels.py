"""The three matrix operations of L-BFGS on CPUs: Numba kernels for blocks of columns, run by several threads.

Each operation reads a matrix once, four rows at a time. Sums are accumulated in float64: first within a block, in an
order that does not depend on the other rows, then over the blocks in order. So the product of two vectors is the same
number, bit for bit, for any position of a row, any number of rows and any number of threads.

Importing this module imports Numba. Numba compiles a kernel at its first call with a dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from optplug.engines import threads

BLOCK_COLUMNS = 4096
"""Number of columns of a block. The block of one vector fits into the L1 cache, that of 100 rows into L2 or L3."""

Array = np.ndarray[Any, Any]


def _compile(kernel: Callable[..., None]) -> Any:
    return numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})(kernel)


def products(rows: Tensor, oldest: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows @ u and rows @ v, in float64, in order of age.

    Args:
        rows: shape [k, at least n] with k > 0, contiguous. Columns from n on are padding and are not read.
        oldest: the index of the row with the oldest pair. Results and weights are in order of age, oldest first.
        u: shape [n], contiguous, with the dtype of `rows`, float32 or float64.
        v: as `u`.
    """
    sums = _new_block_sums(2, len(rows), len(u))
    arrays = _as_arrays(rows, u, v)
    _for_each_block(len(u), lambda i, start, end: _products(*arrays, oldest, start, end, sums[i]))
    first, second = torch.from_numpy(_sum_blocks(sums))
    return first, second


def minus_combination(rows: Tensor, oldest: int, weights: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return q = -g - weights @ rows in the dtype of g, and rows @ q in float64, with one read of `rows`.

    Args:
        rows: as in `products`.
        oldest: as in `products`.
        weights: shape [k], float64, in order of age.
        g: as `u` in `products`.
    """
    q, sums = torch.empty_like(g), _new_block_sums(1, len(rows), len(g))
    arrays = _as_arrays(rows, _pad_to_multiple_of_four(-weights), g, q)
    _for_each_block(len(g), lambda i, start, end: _minus_combination(*arrays, oldest, start, end, sums[i]))
    return q, torch.from_numpy(_sum_blocks(sums)[0])


def plus_combination(q: Tensor, scale: Any, rows: Tensor, oldest: int, weights: Tensor) -> None:
    """Set q = scale q + weights @ rows, in place.

    Args:
        q: as `g` in `minus_combination`.
        scale: a number, or a tensor with one element.
        rows: as in `minus_combination`.
        oldest: as in `minus_combination`.
        weights: as in `minus_combination`.
    """
    arrays, scale = _as_arrays(rows, _pad_to_multiple_of_four(weights), q), float(scale)
    _for_each_block(len(q), lambda i, start, end: _plus_combination(*arrays, scale, oldest, start, end))


def _as_arrays(*tensors: Tensor) -> list[Array]:
    return [tensor.detach().numpy() for tensor in tensors]


def _new_block_sums(vectors: int, k: int, n: int) -> Array:
    return np.empty((-(-n // BLOCK_COLUMNS), vectors, k))


def _sum_blocks(sums: Array) -> Array:
    """Add the sums of the blocks in order. The order of `sums.sum(0)` is not specified."""
    return functools.reduce(np.add, sums)


def _pad_to_multiple_of_four(weights: Tensor) -> Tensor:
    """Append zeros, because the kernels read four rows at a time."""
    return torch.nn.functional.pad(weights, (0, -len(weights) % 4))


def _for_each_block(n: int, kernel: Callable[[int, int, int], None]) -> None:
    """Call `kernel` with the index, the first column and the end of each block, in several threads."""
    remaining = iter(range(-(-n // BLOCK_COLUMNS)))

    def work() -> None:
        for i in remaining:
            kernel(i, i * BLOCK_COLUMNS, min((i + 1) * BLOCK_COLUMNS, n))

    threads.run_in_threads(work, min(torch.get_num_threads(), -(-n // BLOCK_COLUMNS)) - 1)


@_compile
def _four_rows(rows: Array, oldest: int, r: int, start: int, end: int) -> Any:
    """Four rows in order of age, starting with the r-th. The last row is repeated if there are fewer."""
    k = len(rows)
    a, b = rows[(r + oldest) % k, start:end], rows[(min(r + 1, k - 1) + oldest) % k, start:end]
    c, d = rows[(min(r + 2, k - 1) + oldest) % k, start:end], rows[(min(r + 3, k - 1) + oldest) % k, start:end]
    return a, b, c, d


@_compile
def _products(rows: Array, u: Array, v: Array, oldest: int, start: int, end: int, sums: Array) -> None:
    u, v, last = u[start:end], v[start:end], len(rows) - 1
    for r in range(0, len(rows), 4):
        a, b, c, d = _four_rows(rows, oldest, r, start, end)
        au = av = bu = bv = cu = cv = du = dv = 0.0
        for i in range(end - start):
            x, y = np.float64(u[i]), np.float64(v[i])
            au, av = au + np.float64(a[i]) * x, av + np.float64(a[i]) * y
            bu, bv = bu + np.float64(b[i]) * x, bv + np.float64(b[i]) * y
            cu, cv = cu + np.float64(c[i]) * x, cv + np.float64(c[i]) * y
            du, dv = du + np.float64(d[i]) * x, dv + np.float64(d[i]) * y
        sums[0, r], sums[0, min(r + 1, last)], sums[0, min(r + 2, last)], sums[0, min(r + 3, last)] = au, bu, cu, du
        sums[1, r], sums[1, min(r + 1, last)], sums[1, min(r + 2, last)], sums[1, min(r + 3, last)] = av, bv, cv, dv


@_compile
def _add_combination(rows: Array, weights: Array, oldest: int, start: int, end: int, accumulator: Array) -> None:
    for r in range(0, len(rows), 4):
        a, b, c, d = _four_rows(rows, oldest, r, start, end)
        wa, wb, wc, wd = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
        for i in range(end - start):
            accumulator[i] += (wa * a[i] + wb * b[i]) + (wc * c[i] + wd * d[i])


@_compile
def _minus_combination(
    rows: Array, weights: Array, g: Array, q: Array, oldest: int, start: int, end: int, sums: Array
) -> None:
    accumulator, last = np.empty(end - start), len(rows) - 1
    for i in range(end - start):
        accumulator[i] = -np.float64(g[start + i])
    _add_combination(rows, weights, oldest, start, end, accumulator)
    for r in range(0, len(rows), 4):
        a, b, c, d = _four_rows(rows, oldest, r, start, end)
        aq = bq = cq = dq = 0.0
        for i in range(end - start):
            aq, bq = aq + np.float64(a[i]) * accumulator[i], bq + np.float64(b[i]) * accumulator[i]
            cq, dq = cq + np.float64(c[i]) * accumulator[i], dq + np.float64(d[i]) * accumulator[i]
        sums[0, r], sums[0, min(r + 1, last)], sums[0, min(r + 2, last)], sums[0, min(r + 3, last)] = aq, bq, cq, dq
    for i in range(end - start):
        q[start + i] = accumulator[i]


@_compile
def _plus_combination(rows: Array, weights: Array, q: Array, scale: float, oldest: int, start: int, end: int) -> None:
    accumulator = np.empty(end - start)
    for i in range(end - start):
        accumulator[i] = scale * np.float64(q[start + i])
    _add_combination(rows, weights, oldest, start, end, accumulator)
    for i in range(end - start):
        q[start + i] = accumulator[i]
