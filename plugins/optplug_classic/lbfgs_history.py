"""The curvature pairs of L-BFGS, stored as two matrices S and Y.

The two-loop recursion over the pairs is solved as two triangular systems in the products s_i . y_j. Each new pair adds
one column of products. The remaining operations are products of the matrices with vectors: S and Y are read three times
in total, while the recursion reads each vector four times. CPUs use Numba kernels, other devices use torch.

Source: Byrd, Nocedal and Schnabel, Representations of Quasi-Newton Matrices and Their Use in Limited Memory Methods,
1994. The two-loop recursion is Algorithm 7.4 of Nocedal and Wright, Numerical Optimization, 2006.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug.engines import numba

GROWTH_ROWS = 8
"""Number of rows by which a matrix grows. While a matrix grows, memory holds the old and the new matrix."""

CONVERSION_COLUMNS = 4096
"""Number of columns that torch converts to float64 at a time, on CPUs."""

MIN_KERNEL_ELEMENTS = 1 << 16
"""Smallest vector length for which the Numba kernels are used. Numba is not imported for shorter vectors."""


class CurvaturePairs:
    """The last pairs of s (change of the parameters) and y (change of the gradient), oldest first.

    The attributes `s` and `y` are lists of vectors: rows of the matrices S and Y. `append` may overwrite the rows of
    lists that were read earlier.

    Args:
        s: vectors of one length, dtype and device. They are copied.
        y: as many vectors of the same kind. They are copied.
    """

    def __init__(self, s: Sequence[Tensor] = (), y: Sequence[Tensor] = ()) -> None:
        self._S, self._Y = (_new_matrix(vectors[0], len(vectors), vectors) if vectors else None for vectors in (s, y))
        self._length, self._count, self._oldest = len(s[0]) if s else 0, len(s), 0
        self._R = torch.zeros(0, 0)  # s_i . y_j for i <= j, of the oldest pairs or of all pairs
        self._update_lists()

    def _update_lists(self) -> None:
        self.s, self.y = (
            [] if M is None else [*self._in_order_of_age(M[:, : self._length].unbind(0))] for M in (self._S, self._Y)
        )
        self._last_fingerprint = self._fingerprint()

    def _in_order_of_age(self, rows: Any) -> list[Any]:
        return [*rows[self._oldest : self._count], *rows[: self._oldest]]

    def _fingerprint(self) -> list[int]:
        """The identities of the listed vectors and the version counters of the matrices."""
        versions = [M._version for M in (self._S, self._Y) if M is not None]
        return [*map(id, (*self.s, *self.y)), *versions]

    @staticmethod
    def from_state(state: dict[str, Any], cached: CurvaturePairs | None) -> CurvaturePairs:
        """The pairs of the lists `old_stps` (s) and `old_dirs` (y) of an optimizer's state.

        Args:
            state: the state. If new pairs are created, its lists are replaced by those of the new pairs.
            cached: the pairs of an earlier call. They are reused if the lists of the state are theirs and unchanged.
        """
        if cached is None or not cached.has_lists(state["old_stps"], state["old_dirs"]):
            cached = CurvaturePairs(state["old_stps"], state["old_dirs"])
            state.update(old_stps=cached.s, old_dirs=cached.y)
        return cached

    def has_lists(self, s: object, y: object) -> bool:
        """Whether these are the lists `s` and `y` of this object, and no vector was replaced or modified."""
        return s is self.s and y is self.y and self._fingerprint() == self._last_fingerprint

    def append(self, s: Tensor, y: Tensor, history_size: int) -> None:
        """Add a pair. If there are `history_size` pairs already, the new pair replaces the oldest one."""
        if self._count > history_size or (self._oldest and self._count < history_size):  # the history size has changed
            CurvaturePairs.__init__(self, self.s[-history_size:], self.y[-history_size:])
        row = self._oldest if self._count == history_size else self._count
        self._S, self._Y = (_set_row(M, row, vector, history_size) for M, vector in ((self._S, s), (self._Y, y)))
        if self._count == history_size:
            self._oldest, self._R = (row + 1) % history_size, self._R[1:, 1:]
        self._length, self._count = len(s), max(self._count, row + 1)
        self._update_lists()

    def direction(self, g: Tensor, scale: Any) -> Tensor:
        """The search direction d = -H g, where the pairs define H, starting from `scale` times the identity.

        Args:
            g: the gradient, a vector like those of the pairs.
            scale: a number, or a tensor with one element.
        """
        if not self._count:
            return torch.mul(g.neg(), scale)
        kernels, k, known, oldest = _select_kernels(g), self._count, len(self._R), self._oldest
        S, Y = self._S[:k], self._Y[:k]  # type: ignore[index]
        accumulation_dtype = _accumulation_dtype(g.device)
        R = torch.nn.functional.pad(self._R, (0, k - known, 0, k - known)).to(g.device, accumulation_dtype)
        Sg = None
        for j in range(known, k):  # one column after an `append`
            Sy, Sg = kernels.products(S if oldest else S[: j + 1], oldest, self.y[j], g)
            R[: j + 1, j] = Sy[: j + 1]
        self._R = R
        Sg = kernels.products(S, oldest, g, g)[1] if Sg is None else Sg
        # First loop, newest pair to oldest: alpha_i = rho_i s_i . q and q = -g - sum of alpha_i y_i.
        alpha: Tensor = torch.linalg.solve_triangular(R, -Sg[:, None], upper=True)[:, 0]
        d: Tensor
        d, Yq = kernels.minus_combination(Y, oldest, alpha, g)
        # Second loop, oldest pair to newest: d = scale q + sum of (alpha_i - beta_i) s_i.
        right = R.diagonal() * alpha - scale * Yq
        weights = torch.linalg.solve_triangular(R.T, right[:, None], upper=False)[:, 0]
        kernels.plus_combination(d, scale, S, oldest, weights)
        return d


def copy_pairs(states: Mapping[Any, Any]) -> dict[Any, Any]:
    """The states of an optimizer with clones of the pairs.

    The pairs are views of matrices that are overwritten later. A file with a view would contain the whole matrix.
    """

    def copy_state(state: Any) -> Any:
        lists = {"old_stps", "old_dirs"} & state.keys() if isinstance(state, dict) else ()
        return {**state, **{name: [v.clone() for v in state[name]] for name in lists}} if lists else state

    return {key: copy_state(state) for key, state in states.items()}


def _new_matrix(like: Tensor, rows: int, vectors: Any) -> Tensor:
    """A matrix whose first rows are the vectors.

    Rows are padded to an odd number of cache lines, so that they start in different cache sets.
    """
    n = len(like)
    M = like.new_empty(rows, 16 * ((n + 15) // 16 | 1))
    for row, vector in zip(M, vectors, strict=False):
        row[:n] = vector
    return M


def _set_row(M: Tensor | None, row: int, vector: Tensor, history_size: int) -> Tensor:
    """Write a vector to a row, and return the matrix. The matrix grows if it does not have the row."""
    if M is None or row == len(M):
        M = _new_matrix(vector, min(row + GROWTH_ROWS, history_size), () if M is None else M[:, : len(vector)])
    M[row, : len(vector)] = vector
    return M


def _select_kernels(g: Tensor) -> Any:
    """The implementation of the matrix operations: the Numba kernels where they can be used, else `TorchKernels`."""
    is_supported = type(g) is Tensor and g.device.type == "cpu" and g.dtype in (torch.float32, torch.float64)
    if not is_supported or len(g) < MIN_KERNEL_ELEMENTS or numba.unavailable_reason():
        return TorchKernels
    from optplug_classic import lbfgs_kernels

    return lbfgs_kernels


def _accumulation_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


class TorchKernels:
    """The functions of `optplug_classic.lbfgs_kernels` in torch, for any device and dtype, without synchronization.

    On CPUs the functions are as accurate as the Numba kernels, and the result does not depend on the position of a row.
    Other devices use torch's matrix-vector products, whose rounding may depend on the position of a row. A resumed run
    on such a device equals an uninterrupted run up to rounding.
    """

    @staticmethod
    def products(rows: Tensor, oldest: int, *vectors: Tensor) -> list[Tensor]:
        parts = [[_product(M, v[c]).roll(-shift) for v in vectors] for c, M, shift in _blocks(rows, oldest, vectors[0])]
        return [sum(of_blocks) for of_blocks in zip(*parts, strict=True)]

    @staticmethod
    def minus_combination(rows: Tensor, oldest: int, weights: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        q = g.neg()
        TorchKernels.plus_combination(q, 1, rows, oldest, -weights)
        return q, TorchKernels.products(rows, oldest, q)[0]

    @staticmethod
    def plus_combination(q: Tensor, scale: Any, rows: Tensor, oldest: int, weights: Tensor) -> None:
        for c, M, shift in _blocks(rows, oldest, q):
            q[c] = q[c] * scale + weights.roll(shift).to(M) @ M


def _blocks(rows: Tensor, oldest: int, like: Tensor) -> Iterator[tuple[slice, Tensor, int]]:
    """Split a matrix into blocks of columns.

    Yields:
        The columns, the matrix of these columns, and the shift of its rows relative to the order of age.
    """
    n = len(like)
    if like.device.type != "cpu":
        yield slice(n), rows[:, :n], oldest
        return
    for start in range(0, n, CONVERSION_COLUMNS):
        c = slice(start, min(start + CONVERSION_COLUMNS, n))
        yield c, torch.cat([rows[oldest:, c], rows[:oldest, c]]).double(), 0


def _product(M: Tensor, v: Tensor) -> Tensor:
    return (M * v).sum(-1) if v.device.type == "cpu" else (M @ v).to(_accumulation_dtype(v.device))
