"""Scalar states of a bucket, as views of one vector: a thousand separate additions cost more than a kernel."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optplug.optim.state import scalar_dtype

Reader = Callable[[list[Tensor]], Any]
"""From dense tensors of plain types to an array of their addresses; an engine may bring a faster one than ours."""


def _addresses(tensors: list[Tensor]) -> array[int]:
    """Where each tensor's first element lies."""
    return array("q", list(map(Tensor.data_ptr, tensors)))


class PackedScalars:
    """The scalar states of some parameters: one vector per state name, whose elements the parameters hold."""

    def __init__(self, names: Sequence[str], states: Sequence[dict[str, Any]]) -> None:
        self.names = tuple(names)
        self.length = len(states)
        self.vectors: dict[str, Tensor] = {}
        self.views: dict[str, list[Tensor]] = {}
        for name in self.names:
            dtypes = {getattr(state[name], "dtype", None) for state in states}  # somebody may have put numbers there
            dtype = dtypes.pop() if len(dtypes) == 1 else None
            vector = torch.tensor([float(state[name]) for state in states], dtype=dtype or scalar_dtype(), device="cpu")
            self.vectors[name] = vector
            self.views[name] = list(vector.unbind())
            for state, view in zip(states, self.views[name], strict=True):
                state[name] = view

    def holds(self, scalars: Mapping[str, Sequence[Any]], read: Reader) -> bool:
        """Whether the parameters still hold these very elements. Anything may have replaced or redirected them."""
        if self.names != tuple(scalars):
            return False
        for name, values in scalars.items():
            vector, views = self.vectors[name], self.views[name]
            if len(values) != len(views) or not all(map(operator.is_, values, views)):
                return False
            first, size = vector.data_ptr(), vector.element_size()
            if read(views).tolist() != list(range(first, first + size * self.length, size)):
                return False
        return True

    def rows(self, first: Sequence[bool] | None) -> Mapping[tuple[float, ...], Sequence[int]]:
        """The distinct combinations of (first, *scalars), each with the indices of the parameters that share it.

        Args:
            first: whether it is the parameter's first step; None: for none of them.
        """
        began = [0.0] * self.length if first is None else [float(f) for f in first]
        columns = [began, *(self.vectors[name].tolist() for name in self.names)]
        if all(column.count(column[0]) == self.length for column in columns):
            return {tuple(column[0] for column in columns): range(self.length)}
        rows: dict[tuple[float, ...], list[int]] = {}
        for i, row in enumerate(zip(*columns, strict=True)):
            rows.setdefault(row, []).append(i)
        return rows

    def write(self, values: Mapping[str, float], members: Sequence[int]) -> None:
        """Set the scalars of some parameters."""
        for name, value in values.items():
            if len(members) == self.length:
                self.vectors[name].fill_(value)
            else:
                self.vectors[name][torch.tensor(members, device="cpu")] = value


class PackedScalarsCache:
    """The columns of an optimizer. They know states, not the optimizer, so nothing refers back to it."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, PackedScalars] = {}
        self.read: Reader = _addresses

    def adopt(
        self, bucket: Hashable, scalars: Mapping[str, Sequence[Any]], states: Sequence[dict[str, Any]]
    ) -> PackedScalars:
        """The column of a bucket, made anew when the states are no longer its elements.

        Args:
            states: what the optimizer keeps for each parameter. scalars: the scalar states among that, by name.
        """
        column = self._kept.get(bucket)
        if column is None or column.length != len(states) or not column.holds(scalars, self.read):
            column = self._kept[bucket] = PackedScalars(tuple(scalars), states)
        return column
