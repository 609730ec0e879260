"""Steps with sparse gradients: only the rows in the gradient's indices are stepped, as dense tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from optplug.engines.buffers import TensorsByRole


def row_numbers(t: Tensor) -> Tensor:
    """Return the numbers of the rows that a sparse tensor contains, ascending and without duplicates."""
    return _flatten_indices(t.coalesce().indices(), t.shape)


def _flatten_indices(indices: Tensor, shape: torch.Size) -> Tensor:
    """Return the row-major number of each row.

    Args:
        indices: int64 [sparse dimensions, rows].
        shape: shape of the sparse tensor.
    """
    if len(indices) == 1:
        return indices[0]
    numbers = indices.new_zeros(indices.shape[1])  # a 0-dim tensor has one row, number 0
    for size, index in zip(shape, indices, strict=False):
        numbers = numbers * size + index
    return numbers


class SteppedRows:
    """The rows of one parameter that a step with a sparse gradient changes.

    These are the rows in the gradient and the rows in the sparse states. A sparse state such as a momentum buffer
    changes its rows in every step, even those that are not in the gradient.

    Args:
        gradient: the sparse gradient.
        sparse_states: the states of the parameter that are sparse tensors.
    """

    def __init__(self, gradient: Tensor, sparse_states: Sequence[Tensor]) -> None:
        self.gradient = gradient.coalesce()  # rules are not linear in the gradient, so duplicate rows must be summed
        self.shape = gradient.shape[: gradient.sparse_dim()]
        self.numbers = row_numbers(self.gradient)
        if sparse_states:
            self.numbers = torch.unique(torch.cat([self.numbers, *map(row_numbers, sparse_states)]))
        has_several_dims = len(self.shape) > 1
        self.indices = torch.unravel_index(self.numbers, self.shape) if has_several_dims else (self.numbers,)

    def gather(self, t: Tensor) -> Tensor:
        """Return the rows of `t` as a dense tensor; rows that a sparse `t` does not contain are zero."""
        if t.layout is torch.strided:
            if len(self.shape) == 1:
                return t.index_select(0, self.numbers)
            return (t if self.shape else t.unsqueeze(0))[self.indices]
        values = t.coalesce().values()
        if len(values) == len(self.numbers):
            return values
        rows = values.new_zeros(len(self.numbers), *values.shape[1:])
        rows[torch.searchsorted(self.numbers, row_numbers(t))] = values
        return rows

    def scatter(self, t: Tensor, rows: Tensor) -> None:
        """Write the rows into `t`; a sparse `t` contains no other rows afterwards."""
        if t.layout is torch.strided:
            if len(self.shape) == 1:
                t.index_copy_(0, self.numbers, rows)
            else:
                (t if self.shape else t.unsqueeze(0)).index_put_(self.indices, rows)
        else:
            indices = torch.stack(self.indices) if self.shape else self.numbers.new_zeros(0, len(self.numbers))
            t.copy_(torch.sparse_coo_tensor(indices, rows, t.shape, check_invariants=False, is_coalesced=True))


class RowAddresses:
    """The memory addresses of the rows in sparse gradients, for the gradients, the parameters and the dense states.

    Rows that occur several times in a gradient are summed into a new tensor. The other rows are used in place, because
    copying them would take most of the time of `coalesce`.

    Args:
        roles: the tensors of a bucket. All but the gradients must be contiguous, and must live as long as the addresses
            are used.

    Attributes:
        addresses: the address of each row by role: int64 [roles, rows].
        lengths: the number of elements of each row.
        param_indices: for each row the index of its parameter.
    """

    def __init__(self, roles: TensorsByRole) -> None:
        numbers: list[Tensor] = []
        grad_addresses: list[Tensor] = []
        sizes = [math.prod(g.shape[g.sparse_dim() :]) for g in roles["g"]]
        self._keep_alive: list[Tensor] = []
        for g in roles["g"]:
            found, addresses = self._grad_rows(g)
            numbers.append(found)
            grad_addresses.append(addresses)
        counts = torch.tensor([len(found) for found in numbers], device="cpu")
        self.param_indices = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
        self.lengths = torch.tensor(sizes, device="cpu")[self.param_indices]
        self.addresses = torch.stack(
            [
                torch.cat(grad_addresses)
                if role == "g"
                else torch.cat(
                    [
                        t.data_ptr() + found * (size * t.element_size())
                        for t, found, size in zip(tensors, numbers, sizes, strict=True)
                    ]
                )
                for role, tensors in roles.items()
            ]
        )

    def _grad_rows(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers of the rows in a gradient, ascending, and the addresses of their values."""
        numbers, values = _flatten_indices(g._indices(), g.shape), g._values().contiguous()
        size = math.prod(values.shape[1:]) * values.element_size()
        self._keep_alive.append(values)
        if g.is_coalesced():
            return numbers, values.data_ptr() + torch.arange(len(values), device="cpu") * size
        ordered, order = torch.sort(numbers, stable=True)
        distinct, slot, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        first = order[counts.cumsum(0) - counts]
        addresses = values.data_ptr() + first * size
        repeated = counts > 1
        if bool(repeated.any()):
            in_repeated = repeated[slot]
            sums = values.new_zeros(int(repeated.sum()), *values.shape[1:])
            sums.index_add_(0, (repeated.cumsum(0) - 1)[slot[in_repeated]], values[order[in_repeated]])
            self._keep_alive.append(sums)
            addresses[repeated] = sums.data_ptr() + torch.arange(len(sums), device="cpu") * size
        return distinct, addresses


@contextmanager
def as_dense(roles: TensorsByRole, *, densify_grads: bool) -> Iterator[TensorsByRole]:
    """Provide all tensors of a bucket as dense tensors.

    For sparse gradients these are copies of the stepped rows, which are written back on exit.

    Args:
        roles: the tensors of the bucket.
        densify_grads: whether to step all rows, as with dense gradients.
    """
    if roles["g"][0].layout is torch.strided:
        yield roles
        return
    if densify_grads:
        yield {**roles, "g": [g.to_dense() for g in roles["g"]]}
        return
    stepped = []
    for _, g, *states in zip(*roles.values(), strict=True):
        stepped.append(SteppedRows(g, [state for state in states if state.layout is torch.sparse_coo]))
    dense = {
        role: [rows.gather(t) for rows, t in zip(stepped, tensors, strict=True)]
        for role, tensors in {**roles, "g": [rows.gradient for rows in stepped]}.items()
    }
    yield dense
    for role in roles.keys() - {"g"}:
        for rows, t, values in zip(stepped, roles[role], dense[role], strict=True):
            rows.scatter(t, values)
