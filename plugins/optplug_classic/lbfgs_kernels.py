"""The three passes of L-BFGS over its pairs, on CPUs: kernels for a block of columns, run by several threads.

Each reads a matrix once, in long pieces of four rows at a time. Sums are made in float64: within a block always in the
same order, whatever else is in the matrix, then from block to block. So the product of two vectors is the same number,
bit for bit, in whichever row one lies, however many rows there are, and whichever thread makes it.

Importing this module imports Numba, which compiles a kernel when it is first called with a dtype.
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

BLOCK = 4096
"""Columns of a block: a vector's stay in the first cache, a hundred rows of them in the second or third."""

Array = np.ndarray[Any, Any]


def _compiled(kernel: Callable[..., None]) -> Any:
    return numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})(kernel)


def products(rows: Tensor, oldest: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows @ u and rows @ v, in float64.

    Args:
        rows: [k, at least n] with k > 0, contiguous; what is right of column n is not read.
        oldest: the row of the oldest pair; results and weights are in the order of age, so the place counts nowhere.
        u, v: [n], contiguous, of the same dtype, float32 or float64.
    """
    sums = _sums(2, len(rows), len(u))
    arrays = _arrays(rows, u, v)
    _by_blocks(len(u), lambda i, start, end: _products(*arrays, oldest, start, end, sums[i]))
    first, second = torch.from_numpy(_total(sums))
    return first, second


def minus_combination(rows: Tensor, oldest: int, weights: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return q = -g - weights @ rows in g's dtype, and rows @ q, made of each block at once, in float64.

    Args:
        rows, oldest, g: as for `products`.
        weights: [k], float64.
    """
    q, sums = torch.empty_like(g), _sums(1, len(rows), len(g))
    arrays = _arrays(rows, _fours(-weights), g, q)
    _by_blocks(len(g), lambda i, start, end: _minus_combination(*arrays, oldest, start, end, sums[i]))
    return q, torch.from_numpy(_total(sums)[0])


def plus_combination(q: Tensor, scale: Any, rows: Tensor, oldest: int, weights: Tensor) -> None:
    """Make q = scale q + weights @ rows, in place.

    Args:
        q: as g for `minus_combination`; rows, oldest, weights: as there.
        scale: a number or a tensor of one element.
    """
    arrays, scale = _arrays(rows, _fours(weights), q), float(scale)
    _by_blocks(len(q), lambda i, start, end: _plus_combination(*arrays, scale, oldest, start, end))


def _arrays(*tensors: Tensor) -> list[Array]:
    return [tensor.detach().numpy() for tensor in tensors]


def _sums(vectors: int, k: int, n: int) -> Array:
    return np.empty((-(-n // BLOCK), vectors, k))


def _total(sums: Array) -> Array:
    """From block to block, which `sums.sum(0)` does not promise."""
    return functools.reduce(np.add, sums)


def _fours(weights: Tensor) -> Tensor:
    """The last rows are taken with others of weight zero, when they are not four."""
    return torch.nn.functional.pad(weights, (0, -len(weights) % 4))


def _by_blocks(n: int, kernel: Callable[[int, int, int], None]) -> None:
    """Call `kernel` with number, first column and end of each block; the threads take the next that is left."""
    left = iter(range(-(-n // BLOCK)))

    def work() -> None:
        for i in left:
            kernel(i, i * BLOCK, min((i + 1) * BLOCK, n))

    threads.together(work, min(torch.get_num_threads(), -(-n // BLOCK)) - 1)


@_compiled
def _four(rows: Array, oldest: int, r: int, start: int, end: int) -> Any:
    """Four rows by age, from the r-th on; where there are no more, the last again."""
    k = len(rows)
    a, b = rows[(r + oldest) % k, start:end], rows[(min(r + 1, k - 1) + oldest) % k, start:end]
    c, d = rows[(min(r + 2, k - 1) + oldest) % k, start:end], rows[(min(r + 3, k - 1) + oldest) % k, start:end]
    return a, b, c, d


@_compiled
def _products(rows: Array, u: Array, v: Array, oldest: int, start: int, end: int, sums: Array) -> None:
    u, v, last = u[start:end], v[start:end], len(rows) - 1
    for r in range(0, len(rows), 4):
        a, b, c, d = _four(rows, oldest, r, start, end)
        au = av = bu = bv = cu = cv = du = dv = 0.0
        for i in range(end - start):
            x, y = np.float64(u[i]), np.float64(v[i])
            au, av = au + np.float64(a[i]) * x, av + np.float64(a[i]) * y
            bu, bv = bu + np.float64(b[i]) * x, bv + np.float64(b[i]) * y
            cu, cv = cu + np.float64(c[i]) * x, cv + np.float64(c[i]) * y
            du, dv = du + np.float64(d[i]) * x, dv + np.float64(d[i]) * y
        sums[0, r], sums[0, min(r + 1, last)], sums[0, min(r + 2, last)], sums[0, min(r + 3, last)] = au, bu, cu, du
        sums[1, r], sums[1, min(r + 1, last)], sums[1, min(r + 2, last)], sums[1, min(r + 3, last)] = av, bv, cv, dv


@_compiled
def _add(rows: Array, weights: Array, oldest: int, start: int, end: int, exact: Array) -> None:
    for r in range(0, len(rows), 4):
        a, b, c, d = _four(rows, oldest, r, start, end)
        wa, wb, wc, wd = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
        for i in range(end - start):
            exact[i] += (wa * a[i] + wb * b[i]) + (wc * c[i] + wd * d[i])


@_compiled
def _minus_combination(
    rows: Array, weights: Array, g: Array, q: Array, oldest: int, start: int, end: int, sums: Array
) -> None:
    exact, last = np.empty(end - start), len(rows) - 1
    for i in range(end - start):
        exact[i] = -np.float64(g[start + i])
    _add(rows, weights, oldest, start, end, exact)
    for r in range(0, len(rows), 4):
        a, b, c, d = _four(rows, oldest, r, start, end)
        aq = bq = cq = dq = 0.0
        for i in range(end - start):
            aq, bq = aq + np.float64(a[i]) * exact[i], bq + np.float64(b[i]) * exact[i]
            cq, dq = cq + np.float64(c[i]) * exact[i], dq + np.float64(d[i]) * exact[i]
        sums[0, r], sums[0, min(r + 1, last)], sums[0, min(r + 2, last)], sums[0, min(r + 3, last)] = aq, bq, cq, dq
    for i in range(end - start):
        q[start + i] = exact[i]


@_compiled
def _plus_combination(rows: Array, weights: Array, q: Array, scale: float, oldest: int, start: int, end: int) -> None:
    exact = np.empty(end - start)
    for i in range(end - start):
        exact[i] = scale * np.float64(q[start + i])
    _add(rows, weights, oldest, start, end, exact)
    for i in range(end - start):
        q[start + i] = exact[i]
