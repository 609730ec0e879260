"""The pairs of L-BFGS as two matrices, which a direction reads three times instead of row by row four times.

The two loops over the pairs are two triangular systems in the products s_i . y_j, of which each new pair adds a column.
What is left are products of the matrices and vectors: by Numba's kernels on CPUs, else by torch.

Source: Byrd, Nocedal and Schnabel, Representations of Quasi-Newton Matrices and Their Use in Limited Memory Methods,
1994; the two loops are Algorithm 7.4 of Nocedal and Wright, Numerical Optimization, 2006.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug import engines

GROWTH = 8
"""Rows that a matrix grows by; while it does, it is held twice."""

BLOCK = 4096
"""Columns that torch converts to float64 at a time, on CPUs."""

WORTH_A_KERNEL = 1 << 16
"""Elements of a vector for which Numba is imported."""


class Pairs:
    """The last pairs s (change of the parameters), y (of the gradient), oldest first.

    Args:
        s, y: as many vectors of one length, dtype and device; they are copied.

    The lists `s` and `y` are rows of the matrices. An `append` may write to the rows of older lists.
    """

    def __init__(self, s: Sequence[Tensor] = (), y: Sequence[Tensor] = ()) -> None:
        self._S, self._Y = (_matrix(vectors[0], len(vectors), vectors) if vectors else None for vectors in (s, y))
        self._n, self._number, self._oldest = len(s[0]) if s else 0, len(s), 0
        self._R = torch.zeros(0, 0)  # s_i . y_j for i <= j, of the oldest pairs or of all
        self._list()

    def _list(self) -> None:
        self.s, self.y = ([] if M is None else [*self._by_age(M[:, : self._n].unbind(0))] for M in (self._S, self._Y))
        self._seen = self._marks()

    def _by_age(self, rows: Any) -> list[Any]:
        return [*rows[self._oldest : self._number], *rows[: self._oldest]]

    def _marks(self) -> list[int]:
        written = [M._version for M in (self._S, self._Y) if M is not None]
        return [*map(id, (*self.s, *self.y)), *written]

    @staticmethod
    def of(state: dict[str, Any], known: Pairs | None) -> Pairs:
        """The pairs of the lists `old_stps` and `old_dirs`: the `known`, or new ones, whose rows the state then has."""
        if known is None or not known.are(state["old_stps"], state["old_dirs"]):
            known = Pairs(state["old_stps"], state["old_dirs"])
            state.update(old_stps=known.s, old_dirs=known.y)
        return known

    def are(self, s: object, y: object) -> bool:
        """Whether these are the lists `s` and `y`, and nobody has replaced or written to a row."""
        return s is self.s and y is self.y and self._marks() == self._seen

    def append(self, s: Tensor, y: Tensor, size: int) -> None:
        """Take a pair; the oldest beyond `size` are forgotten."""
        if self._number > size or (self._oldest and self._number < size):  # it was another size before
            Pairs.__init__(self, self.s[-size:], self.y[-size:])
        row = self._oldest if self._number == size else self._number
        self._S, self._Y = (_with(M, row, new, size) for M, new in ((self._S, s), (self._Y, y)))
        if self._number == size:
            self._oldest, self._R = (row + 1) % size, self._R[1:, 1:]
        self._n, self._number = len(s), max(self._number, row + 1)
        self._list()

    def direction(self, g: Tensor, scale: Any) -> Tensor:
        """-H g, where H is what the pairs make of `scale` times the identity.

        Args:
            g: the gradient, one vector like those of the pairs.
            scale: a number or a tensor of one element.
        """
        if not self._number:
            return torch.mul(g.neg(), scale)
        passes, k, known, oldest = _passes(g), self._number, len(self._R), self._oldest
        S, Y = self._S[:k], self._Y[:k]  # type: ignore[index]
        R = torch.nn.functional.pad(self._R, (0, k - known, 0, k - known)).to(g.device, _wide(g.device))
        Sg = None
        for j in range(known, k):  # one, after an append; the number of rows does not alter a product
            Sy, Sg = passes.products(S if oldest else S[: j + 1], oldest, self.y[j], g)
            R[: j + 1, j] = Sy[: j + 1]
        self._R = R
        Sg = passes.products(S, oldest, g, g)[1] if Sg is None else Sg
        alpha: Tensor = torch.linalg.solve_triangular(R, -Sg[:, None], upper=True)[:, 0]
        d: Tensor
        d, Yq = passes.minus_combination(Y, oldest, alpha, g)
        right = R.diagonal() * alpha - scale * Yq
        passes.plus_combination(
            d, scale, S, oldest, torch.linalg.solve_triangular(R.T, right[:, None], upper=False)[:, 0]
        )
        return d


def apart(states: Mapping[Any, Any]) -> dict[Any, Any]:
    """The states with copies of the pairs, for rows are written over later, and take their whole matrix into a file."""

    def copied(state: Any) -> Any:
        lists = {"old_stps", "old_dirs"} & state.keys() if isinstance(state, dict) else ()
        return {**state, **{name: [v.clone() for v in state[name]] for name in lists}} if lists else state

    return {key: copied(state) for key, state in states.items()}


def _matrix(like: Tensor, rows: int, filled: Any) -> Tensor:
    """Rows that end in spare elements: they start in cache lines of their own, an odd number of lines apart."""
    n = len(like)
    M = like.new_empty(rows, 16 * ((n + 15) // 16 | 1))
    for row, vector in zip(M, filled, strict=False):
        row[:n] = vector
    return M


def _with(M: Tensor | None, row: int, new: Tensor, size: int) -> Tensor:
    if M is None or row == len(M):
        M = _matrix(new, min(row + GROWTH, size), () if M is None else M[:, : len(new)])
    M[row, : len(new)] = new
    return M


def _passes(g: Tensor) -> Any:
    fit = type(g) is Tensor and g.device.type == "cpu" and g.dtype in (torch.float32, torch.float64)
    if not fit or len(g) < WORTH_A_KERNEL or engines.why_not_numba():
        return ByTorch
    from optplug_classic import lbfgs_kernels

    return lbfgs_kernels


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


class ByTorch:
    """What `optplug_classic.lbfgs_kernels` does, for any device and dtype; nothing waits for the device.

    On CPUs as exact, and rows are taken by age. Other devices have their own products of matrix and vector, for which
    the place of a row may count: there a resumed run is as near to an uninterrupted one as rounding.
    """

    @staticmethod
    def products(rows: Tensor, oldest: int, *vectors: Tensor) -> list[Tensor]:
        parts = [[_product(M, v[c]).roll(-turn) for v in vectors] for c, M, turn in _blocks(rows, oldest, vectors[0])]
        return [sum(of_blocks) for of_blocks in zip(*parts, strict=True)]

    @staticmethod
    def minus_combination(rows: Tensor, oldest: int, weights: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        q = g.neg()
        ByTorch.plus_combination(q, 1, rows, oldest, -weights)
        return q, ByTorch.products(rows, oldest, q)[0]

    @staticmethod
    def plus_combination(q: Tensor, scale: Any, rows: Tensor, oldest: int, weights: Tensor) -> None:
        for c, M, turn in _blocks(rows, oldest, q):
            q[c] = q[c] * scale + weights.roll(turn).to(M) @ M


def _blocks(rows: Tensor, oldest: int, like: Tensor) -> Iterator[tuple[slice, Tensor, int]]:
    """Columns, the matrix of these, and by how many rows it is turned from the order by age."""
    n = len(like)
    if like.device.type != "cpu":
        yield slice(n), rows[:, :n], oldest
        return
    for start in range(0, n, BLOCK):
        c = slice(start, min(start + BLOCK, n))
        yield c, torch.cat([rows[oldest:, c], rows[:oldest, c]]).double(), 0


def _product(M: Tensor, v: Tensor) -> Tensor:
    return (M * v).sum(-1) if v.device.type == "cpu" else (M @ v).to(_wide(v.device))
