"""The scalars of a step: hyperparameters, scalar states, and the values that are hoisted out of a graph.

The scalar states of a bucket are views of one vector: updating thousands of separate tensors is slower than a kernel.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from optplug.engines.buffers import AddressReader
from optplug.rules.trace import FIRST_STEP, TracedRule

_Value = TypeVar("_Value", float, Tensor)


def scalar_dtype() -> torch.dtype:
    """Return the dtype of scalar states, as torch chooses it for `step`: float64 if it is the default, else float32."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32


def _read_addresses(tensors: list[Tensor]) -> array[int]:
    """Return the address of the first element of each tensor."""
    return array("q", list(map(Tensor.data_ptr, tensors)))


class PackedScalars:
    """The scalar states of some parameters: one vector per state name; each parameter's state is a view of an element.

    Args:
        names: names of the scalar states.
        states: the state dict of each parameter. Its scalar states are replaced by views of the vectors.
    """

    def __init__(self, names: Sequence[str], states: Sequence[dict[str, Any]]) -> None:
        self.names = tuple(names)
        self.length = len(states)
        self.vectors: dict[str, Tensor] = {}
        self.views: dict[str, list[Tensor]] = {}
        for name in self.names:
            dtypes = {getattr(state[name], "dtype", None) for state in states}  # the user may have assigned numbers
            dtype = dtypes.pop() if len(dtypes) == 1 else None
            vector = torch.tensor([float(state[name]) for state in states], dtype=dtype or scalar_dtype(), device="cpu")
            self.vectors[name] = vector
            self.views[name] = list(vector.unbind())
            for state, view in zip(states, self.views[name], strict=True):
                state[name] = view

    def is_current(self, scalar_states: Mapping[str, Sequence[Any]], read_addresses: AddressReader) -> bool:
        """Whether the states are still the views of the vectors. Other code may replace them or change their data.

        Args:
            scalar_states: the scalar states of all parameters by name.
            read_addresses: reads the addresses of tensors.
        """
        if self.names != tuple(scalar_states):
            return False
        for name, values in scalar_states.items():
            vector, views = self.vectors[name], self.views[name]
            if len(values) != len(views) or not all(map(operator.is_, values, views)):
                return False
            start, size = vector.data_ptr(), vector.element_size()
            if read_addresses(views).tolist() != list(range(start, start + size * self.length, size)):
                return False
        return True

    def distinct_rows(self, first: Sequence[bool] | None) -> Mapping[tuple[float, ...], Sequence[int]]:
        """Return the distinct rows (first, *scalars), each with the indices of the parameters that have it.

        Args:
            first: for each parameter whether this is its first step; None if it is the first step of none.
        """
        first_column = [0.0] * self.length if first is None else [float(f) for f in first]
        columns = [first_column, *[self.vectors[name].tolist() for name in self.names]]
        if all(column.count(column[0]) == self.length for column in columns):
            return {tuple([column[0] for column in columns]): range(self.length)}
        rows: dict[tuple[float, ...], list[int]] = {}
        for i, row in enumerate(zip(*columns, strict=True)):
            rows.setdefault(row, []).append(i)
        return rows

    def write(self, values: Mapping[str, float], indices: Sequence[int]) -> None:
        """Set the scalar states of the parameters with these indices.

        Args:
            values: the new value by state name.
            indices: indices of the parameters.
        """
        for name, value in values.items():
            if len(indices) == self.length:
                self.vectors[name].fill_(value)
            else:
                self.vectors[name][torch.tensor(indices, device="cpu")] = value


class PackedScalarsCache:
    """The packed scalar states of an optimizer, by bucket. It holds no reference to the optimizer, because that would
    create a reference cycle.
    """

    def __init__(self) -> None:
        self._by_bucket: dict[Hashable, PackedScalars] = {}
        self.read_addresses: AddressReader = _read_addresses

    def get(
        self, bucket: Hashable, scalar_states: Mapping[str, Sequence[Any]], states: Sequence[dict[str, Any]]
    ) -> PackedScalars:
        """Return the packed scalar states of a bucket, packed again if the states are no longer views of the vectors.

        Args:
            bucket: identifies the bucket.
            scalar_states: the scalar states of all parameters by name.
            states: the state dict of each parameter.
        """
        packed = self._by_bucket.get(bucket)
        if packed is None or packed.length != len(states) or not packed.is_current(scalar_states, self.read_addresses):
            packed = self._by_bucket[bucket] = PackedScalars(tuple(scalar_states), states)
        return packed


class ScalarRow(NamedTuple):
    """The scalars of the parameters of a bucket that have equal scalar states."""

    constants: list[float]
    """The values of `traced.hoisted_scalars`."""

    new_states: dict[str, float]
    """The scalar states after the step."""

    indices: Sequence[int]
    """The parameters, as indices into those of the bucket."""


class StepScalars:
    """The hyperparameters and scalar states of a bucket in one step.

    Args:
        hyperparameters: the hyperparameters and the shared states by name.
        first: for each parameter whether this is its first step; None if it is the first step of none.
        states: the state dict of each parameter.
        pack: returns the packed scalar states.
        new_shared: receives the new values of the shared states. All buckets of a step have the same.

    Attributes: as the arguments except `pack`.
    """

    def __init__(
        self,
        hyperparameters: dict[str, Any],
        first: Sequence[bool] | None,
        states: Sequence[dict[str, Any]],
        pack: Callable[[], PackedScalars],
        new_shared: dict[str, Any],
    ) -> None:
        self.hyperparameters = hyperparameters
        self.first = first
        self.states = states
        self.new_shared = new_shared
        self._pack = pack
        self._packed: PackedScalars | None = None
        self._rows: list[ScalarRow] = []
        self._computed: list[tuple[Mapping[str, Tensor], Sequence[int] | slice]] = []

    def rows(self, traced: TracedRule) -> list[ScalarRow]:
        """Compute the scalars of a graph, once for all parameters with equal scalar states."""
        self._packed = packed = self._pack()
        names = (FIRST_STEP, *packed.names)
        self._rows = [
            ScalarRow(*traced.compute_scalars({**self.hyperparameters, **dict(zip(names, row, strict=True))}), indices)
            for row, indices in packed.distinct_rows(self.first).items()
        ]
        return self._rows

    def set_states(self, values: Mapping[str, Tensor], indices: Sequence[int] | slice) -> None:
        """Set the scalar states whose new values depend on the elements of the parameters.

        Args:
            values: for each name the new values of some parameters: a vector on the CPU, or one number for all.
            indices: the parameters, as indices into those of the bucket.
        """
        self._computed.append((values, indices))

    def set_shared(self, values: Mapping[str, Any]) -> None:
        """Set shared states, unless they have been set in this step.

        Args:
            values: the new values by name: numbers, or tensors of equal elements.
        """
        for name, value in values.items():
            self.new_shared.setdefault(name, value.flatten()[0] if isinstance(value, Tensor) else value)

    def store(self) -> None:
        """Store the new scalar states of `rows` and of `set_states`."""
        for row in self._rows:
            assert self._packed is not None
            self._packed.write(self._without_shared(row.new_states), row.indices)
        for values, indices in self._computed:
            assert self._packed is not None
            for name, vector in self._without_shared(values).items():
                self._packed.vectors[name][indices] = vector.to(self._packed.vectors[name])

    def _without_shared(self, values: Mapping[str, _Value]) -> dict[str, _Value]:
        """Set the shared states among new scalar states, and return the others."""
        assert self._packed is not None
        own = self._packed.vectors
        self.set_shared({name: value for name, value in values.items() if name not in own})
        return {name: value for name, value in values.items() if name in own}
