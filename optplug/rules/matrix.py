"""Functions of whole matrices, such as Newton-Schulz iterations and decompositions, as operations of the language."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optplug.errors import RuleError
from optplug.rules.ops import SymbolicValue

StaticArgument = bool | str | torch.dtype | None
"""An argument that is part of the identity of an operation, and not an operand."""


@dataclass(frozen=True)
class MatrixOperation:
    """A matrix function with its static arguments.

    Args:
        function: maps batches of arrays, and numbers, to a batch of arrays. It must not modify its arguments.
        static: the keyword arguments.
    """

    function: Callable[..., Tensor]
    static: tuple[tuple[str, StaticArgument], ...] = ()

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    def __repr__(self) -> str:
        keywords = ", ".join(f"{name}={value}" for name, value in self.static)
        return f"{self.name}({keywords})" if keywords else self.name

    def __call__(self, arrays: Sequence[Tensor], scalars: Sequence[Any]) -> Tensor:
        """Apply the function to a batch.

        Args:
            arrays: the array operands, each with a leading dimension for the batch.
            scalars: the scalar operands.

        Returns:
            A batch of the shape and dtype of the first array. It shares no memory with the arrays.

        Raises:
            RuleError: the function returned anything else, or modified an array.
        """
        first = arrays[0]
        if not first.numel():  # a decomposition of an empty matrix may fail
            return first.clone()
        versions = [_version(x) for x in arrays]
        result = self.function(*arrays, *scalars, **dict(self.static))
        if not isinstance(result, Tensor):
            raise self._wrong(first, f"{type(result).__name__} {result!r}")
        if (result.shape, result.device) != (first.shape, first.device) or not result.is_floating_point():
            dtype = str(result.dtype).removeprefix("torch.")
            raise self._wrong(first, f"{dtype} of shape {tuple(result.shape)} on {result.device}")
        if versions != [_version(x) for x in arrays]:
            raise RuleError(f"the matrix function {self.name} modified an operand: it must compute a new tensor")
        converted = result.to(first.dtype, memory_format=torch.contiguous_format)
        return converted.clone() if any(_may_share_memory(converted, x) for x in arrays) else converted

    def _wrong(self, first: Tensor, got: str) -> RuleError:
        return RuleError(
            f"the matrix function {self.name} must return a floating-point tensor of the shape of its first operand, "
            f"{tuple(first.shape)} on {first.device}; it returned {got}"
        )


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


def _may_share_memory(a: Tensor, b: Tensor) -> bool:
    try:
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # tensors without storage, such as those of a transform of torch
        return True


class MatrixFunction:
    """A function of whole matrices that a rule can call; see `matrix`."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def __call__(self, *operands: Any, **static: StaticArgument) -> Any:
        operation = MatrixOperation(self._function, tuple(sorted(static.items())))
        for name, value in static.items():
            if not isinstance(value, (bool, str, torch.dtype, type(None))):
                raise RuleError(
                    f"{operation.name} got {name}={value!r}: a keyword of a matrix function must be a bool, a str, a "
                    "dtype or None; numbers and values are passed by position"
                )
        for x in operands:
            if isinstance(x, SymbolicValue):
                return x.call(operation, operands)
        arrays, scalars = split_operands(operation.name, operands, lambda x: isinstance(x, Tensor) and x.ndim > 0)
        for x in scalars:
            if not isinstance(x, (int, float, Tensor)):
                raise RuleError(f"{operation.name} got {x!r}: an operand must be a value of the rule or a number")
        numbers = [x if isinstance(x, Tensor) else float(x) for x in scalars]
        return operation([x.unsqueeze(0) for x in arrays], numbers).squeeze(0)


def split_operands(
    name: str, operands: Sequence[Any], is_array: Callable[[Any], bool]
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Split the operands of a matrix function into arrays and scalars, which follow the arrays.

    Raises:
        RuleError: there is no array, or an array follows a scalar.
    """
    count = sum(map(is_array, operands))
    if not count or not all(map(is_array, operands[:count])):
        raise RuleError(
            f"the matrix function {name} takes element-wise values and states of another shape first, at least one, "
            "then scalars"
        )
    return operands[:count], operands[count:]


def matrix(function: Callable[..., Tensor]) -> MatrixFunction:
    """Decorate a torch function of whole matrices, so that rules can call it.

    A rule calls the result with one or more arrays (element-wise values or states of another shape), then scalars
    (hyperparameters, scalar states or numbers), and keyword arguments that are static (bool, str, dtype or None). The
    function receives each array with a leading dimension: the parameters of one shape with equal scalars are one batch.
    It receives scalars as floats, or as 0-dim tensors where the options `capturable` and `differentiable` keep them so.
    It must return a new tensor of the shape of the first array. The result is converted to the dtype of the rule's
    arithmetic. With empty arrays the function is not called.

    Args:
        function: the function. It must not modify its arguments, and its result must depend on them only.

    Raises:
        RuleError: `function` is not callable.
    """
    if not callable(function):
        raise RuleError(f"matrix takes a function, got {function!r} ({type(function).__name__})")
    return MatrixFunction(function)
