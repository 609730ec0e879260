"""Calls of matrix functions on many parameters: one call for all parameters of one shape with equal scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optplug.errors import RuleError
from optplug.rules.matrix import MatrixOperation


def call_in_batches(
    operation: MatrixOperation, arrays: Sequence[Sequence[Tensor]], scalars: Sequence[Any], dtype: torch.dtype
) -> list[Tensor]:
    """Apply a matrix function to all parameters, and return its result for each of them.

    Args:
        operation: the function.
        arrays: for each array operand the tensors of the parameters.
        scalars: for each scalar operand a number, or a vector with a number for each parameter.
        dtype: the dtype of the arithmetic. The function receives arrays of this dtype, and so are the results.
    """
    count = len(arrays[0])
    columns = [x.tolist() if isinstance(x, Tensor) else [x] * count for x in scalars]
    batches: dict[tuple[Any, ...], list[int]] = {}
    for i in range(count):
        shapes, numbers = [tensors[i].shape for tensors in arrays], [column[i] for column in columns]
        batches.setdefault((*shapes, *numbers), []).append(i)
    results: dict[int, Tensor] = {}
    for indices in batches.values():
        operands = [as_batch([tensors[i] for i in indices]).to(dtype) for tensors in arrays]
        result = operation(operands, [float(column[indices[0]]) for column in columns])
        results.update(zip(indices, result.contiguous().unbind(), strict=True))
    return [results[i] for i in range(count)]


def check_shapes(name: str, states: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Check that the new values of a state of another shape have its shape.

    Args:
        name: the name of the state.
        states: the state of each parameter.
        values: the new value of each parameter.

    Raises:
        RuleError: a value has another shape. Copying it could broadcast it.
    """
    for state, value in zip(states, values, strict=True):
        if state.shape != value.shape:
            raise RuleError(
                f"the rule returned a value of shape {tuple(value.shape)} for {name!r}, which has {tuple(state.shape)}"
            )


def as_batch(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape as one tensor; a view if there is one tensor, or if they are adjacent in memory."""
    first = tensors[0]
    if len(tensors) == 1:
        return first.unsqueeze(0)
    if _are_adjacent(tensors):
        return first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()))
    return torch.stack(list(tensors))


def _are_adjacent(tensors: Sequence[Tensor]) -> bool:
    first = tensors[0]
    storage, start, size = first.untyped_storage().data_ptr(), first.data_ptr(), first.numel() * first.element_size()
    return all(
        t.data_ptr() == start + i * size
        and t.dtype == first.dtype
        and t.is_contiguous()
        and t.untyped_storage().data_ptr() == storage
        for i, t in enumerate(tensors)
    )
