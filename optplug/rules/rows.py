"""Sparse gradients: the rows of parameters and states that they name, taken out, stepped as dense ones, put back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optplug.rules.buffers import Roles


class Rows:
    """The rows of one parameter: those that its gradient names, and those of states that are sparse themselves."""

    def __init__(self, gradient: Tensor, sparse_states: Sequence[Tensor]) -> None:
        gradient = gradient.coalesce()  # rules are not linear in the gradient: each row once
        for state in sparse_states:  # goes on acting where it is not zero, whatever rows the gradient names
            gradient = _with_rows_of(gradient, state)
        self.gradient = gradient
        # A tensor without dimensions has no rows: it is one.
        self.index = tuple(gradient.indices()) or (torch.zeros_like(gradient.values(), dtype=torch.long),)

    def taken_from(self, t: Tensor) -> Tensor:
        """The rows of `t` one after another, zero where a sparse `t` has none."""
        if t.layout is torch.strided:
            return (t if t.dim() else t.unsqueeze(0))[self.index]
        return _with_rows_of(t, self.gradient).values()

    def put_into(self, t: Tensor, rows: Tensor) -> None:
        """Write the rows of `t`; a sparse `t` has no others."""
        if t.layout is torch.strided:
            (t if t.dim() else t.unsqueeze(0)).index_put_(self.index, rows)
        else:
            indices = self.gradient.indices()
            t.copy_(torch.sparse_coo_tensor(indices, rows, t.shape, check_invariants=False, is_coalesced=True))


def take(whole: Roles) -> tuple[list[Rows], Roles]:
    """The rows that the gradients name, and all roles on these rows."""
    rows = []
    for gradient, *others in zip(whole["g"], *whole.values(), strict=True):
        rows.append(Rows(gradient, [t for t in others if t is not gradient and t.layout is torch.sparse_coo]))
    taken = {role: [r.taken_from(t) for r, t in zip(rows, tensors, strict=True)] for role, tensors in whole.items()}
    return rows, taken


def put_back(rows: Sequence[Rows], taken: Roles, whole: Roles) -> None:
    """Write the rows of parameters and states back."""
    for role, tensors in whole.items():
        if role != "g":
            for r, t, new in zip(rows, tensors, taken[role], strict=True):
                r.put_into(t, new)


def _with_rows_of(t: Tensor, other: Tensor) -> Tensor:
    """The same values, and zeros on rows that only the other tensor has."""
    t, other = t.coalesce(), other.coalesce()
    indices = torch.cat([t.indices(), other.indices()], 1)
    values = torch.cat([t.values(), torch.zeros_like(other.values(), dtype=t.dtype)])
    return torch.sparse_coo_tensor(indices, values, t.shape, check_invariants=False).coalesce()
