"""Sparse gradients: the rows of parameters and states that they name, taken out, stepped as dense ones, put back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from optplug.optim.buckets import BucketKey
from optplug.optim.buffers import Roles


def numbers(t: Tensor) -> Tensor:
    """The rows that a sparse tensor names, as single numbers, ascending."""
    return _flat(t.coalesce().indices(), t.shape)


def _flat(indices: Tensor, shape: torch.Size) -> Tensor:
    if len(indices) == 1:
        return indices[0]
    found = indices.new_zeros(indices.shape[1])  # a tensor without dimensions has no rows: it is one
    for size, index in zip(shape, indices, strict=False):
        found = found * size + index
    return found


class Rows:
    """The rows of one parameter: those that its gradient names, and those of states that are sparse themselves.

    A sparse state goes on acting where it is not zero, whatever rows the gradient names.
    """

    def __init__(self, gradient: Tensor, sparse_states: Sequence[Tensor]) -> None:
        self.gradient = gradient.coalesce()  # rules are not linear in the gradient: each row once
        self.shape = gradient.shape[: gradient.sparse_dim()]
        self.numbers = numbers(self.gradient)
        if sparse_states:
            self.numbers = torch.unique(torch.cat([self.numbers, *map(numbers, sparse_states)]))
        many = len(self.shape) > 1
        self.indices = torch.unravel_index(self.numbers, self.shape) if many else (self.numbers,)

    def taken_from(self, t: Tensor) -> Tensor:
        """The rows of `t` one after another, zero where a sparse `t` has none."""
        if t.layout is torch.strided:
            if len(self.shape) == 1:
                return t.index_select(0, self.numbers)
            return (t if self.shape else t.unsqueeze(0))[self.indices]
        values = t.coalesce().values()
        if len(values) == len(self.numbers):
            return values
        rows = values.new_zeros(len(self.numbers), *values.shape[1:])
        rows[torch.searchsorted(self.numbers, numbers(t))] = values
        return rows

    def put_into(self, t: Tensor, rows: Tensor) -> None:
        """Write the rows of `t`; a sparse `t` has no others."""
        if t.layout is torch.strided:
            if len(self.shape) == 1:
                t.index_copy_(0, self.numbers, rows)
            else:
                (t if self.shape else t.unsqueeze(0)).index_put_(self.indices, rows)
        else:
            indices = torch.stack(self.indices) if self.shape else self.numbers.new_zeros(0, len(self.numbers))
            t.copy_(torch.sparse_coo_tensor(indices, rows, t.shape, check_invariants=False, is_coalesced=True))


class RowAddresses:
    """Where the rows that sparse gradients name lie in memory, in parameters and states as in the gradients.

    A row that is named several times has its sum made here; the others stay where they are, which is what `coalesce`
    takes most of its time for.

    Args:
        roles: contiguous tensors, gradients apart. Those must be there for as long as the addresses are used.

    Attributes:
        addresses: of each row, by role: int64 [roles, rows].
        lengths: elements of each row. owners: the index of the parameter that it belongs to.
    """

    def __init__(self, roles: Roles) -> None:
        rows: list[Tensor] = []
        at: list[Tensor] = []
        sizes = [math.prod(g.shape[g.sparse_dim() :]) for g in roles["g"]]
        self._held: list[Tensor] = []
        for g in roles["g"]:
            found, places = self._of(g)
            rows.append(found)
            at.append(places)
        counts = torch.tensor([len(found) for found in rows], device="cpu")
        self.owners = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
        self.lengths = torch.tensor(sizes, device="cpu")[self.owners]
        self.addresses = torch.stack(
            [
                torch.cat(at)
                if role == "g"
                else torch.cat(
                    [
                        t.data_ptr() + found * (size * t.element_size())
                        for t, found, size in zip(tensors, rows, sizes, strict=True)
                    ]
                )
                for role, tensors in roles.items()
            ]
        )

    def _of(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that a gradient names, ascending, and the addresses of their values."""
        named, values = _flat(g._indices(), g.shape), g._values().contiguous()
        size = math.prod(values.shape[1:]) * values.element_size()
        self._held.append(values)
        if g.is_coalesced():
            return named, values.data_ptr() + torch.arange(len(values), device="cpu") * size
        ordered, order = torch.sort(named, stable=True)
        found, slot, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        first = order[counts.cumsum(0) - counts]
        places = values.data_ptr() + first * size
        several = counts > 1
        if bool(several.any()):
            among = several[slot]
            sums = values.new_zeros(int(several.sum()), *values.shape[1:])
            sums.index_add_(0, (several.cumsum(0) - 1)[slot[among]], values[order[among]])
            self._held.append(sums)
            places[several] = sums.data_ptr() + torch.arange(len(sums), device="cpu") * size
        return found, places


@contextmanager
def named(whole: Roles, kind: BucketKey) -> Iterator[Roles]:
    """All roles as dense tensors; where gradients are sparse, on the rows they name, and put back there afterwards."""
    if kind.layout is torch.strided:
        yield whole
        return
    if kind.made_dense:
        yield {**whole, "g": [g.to_dense() for g in whole["g"]]}
        return
    rows = []
    for _, g, *states in zip(*whole.values(), strict=True):
        rows.append(Rows(g, [state for state in states if state.layout is torch.sparse_coo]))
    taken = {
        role: [r.taken_from(t) for r, t in zip(rows, tensors, strict=True)]
        for role, tensors in {**whole, "g": [r.gradient for r in rows]}.items()
    }
    yield taken
    for role in whole.keys() - {"g"}:
        for r, t, new in zip(rows, whole[role], taken[role], strict=True):
            r.put_into(t, new)
