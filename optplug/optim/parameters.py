"""Checks of the parameters of a group, beyond those of `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT as Params

from optplug.errors import ParameterError, listing, nearest

__all__ = ["Params", "check_group_params"]


def check_group_params(
    group: dict[str, Any], number: int, optimizer_name: str, *, takes_complex: bool, matrix_only: bool = False
) -> Any:
    """Check the parameters of a group and return them as a list.

    Values that are not iterables of tensors are returned unchanged: `torch.optim.Optimizer` raises for them.

    Args:
        group: the options of the group and `params`, which may be a generator.
        number: index of the group.
        optimizer_name: name of the optimizer, for messages.
        takes_complex: whether complex parameters are allowed.
        matrix_only: whether each parameter must have at least two dimensions. Default: False.

    Raises:
        ParameterError: `params` is missing, or contains duplicate, sparse, or unsupported complex parameters, or
            vectors and scalars where only matrices are allowed.
    """
    if "params" not in group:
        near = nearest("params", group)
        hint = f"; rename {near[0]!r} to 'params'" if near else ""
        raise ParameterError(f"parameter group {number} needs 'params', it has {listing(sorted(group))}{hint}")
    params = group["params"]
    if isinstance(params, Tensor):
        params = [params]
    if isinstance(params, (str, set)) or not isinstance(params, Iterable):
        return params
    params = list(params)
    for i, p in enumerate(params):
        if isinstance(p, tuple) and len(p) != 2:
            raise ParameterError(
                f"parameter {i} of group {number} is {p!r}: a named parameter must be a pair (name, tensor)"
            )
    tensors = [(i, t) for i, p in enumerate(params) if isinstance(t := p[1] if isinstance(p, tuple) else p, Tensor)]
    first_index: dict[int, int] = {}
    for i, p in tensors:
        first = first_index.setdefault(id(p), i)
        if first != i:
            raise ParameterError(
                f"optimizer contains a parameter group with duplicate parameters: "
                f"in group {number}, parameters {first} and {i} are the same tensor"
            )
    sparse = [[number, i] for i, p in tensors if p.is_sparse or p.is_sparse_csr]
    if sparse:
        raise ParameterError(f"Sparse params at indices {sparse}: {optimizer_name} requires dense parameter tensors")
    unsupported = [[number, i] for i, p in tensors if p.is_complex() and not takes_complex]
    if unsupported:
        raise ParameterError(
            f"Complex params at indices {unsupported}: {optimizer_name} does not support complex parameters"
        )
    other = [(i, p) for i, p in tensors if matrix_only and p.ndim < 2 and not is_lazy(p)]
    if other:
        index, p = other[0]
        raise ParameterError(
            f"{optimizer_name} only supports 2D parameters whereas we found a parameter with size: {p.size()} "
            f"(parameter {index} of group {number}), and stacks of matrices: give vectors and scalars to another "
            "optimizer; in a configuration, or with the module in place of its parameters, `fallback` is this optimizer"
        )
    return params
