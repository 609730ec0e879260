"""What an optimizer takes for parameters, beyond what the base class checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT as Params

from optplug.errors import ParameterError, did_you_mean, listing

__all__ = ["Params", "of_group"]


def of_group(group: dict[str, Any], number: int, owner: str, *, takes_complex: bool) -> Any:
    """The parameters of a group, of a generator too, checked; what is no list of tensors is for the base class.

    Args:
        group: the options with `params`. number: the group's index. owner: the optimizer's name, for the messages.
        takes_complex: whether complex parameters are allowed.

    Raises:
        ParameterError: no `params`; duplicate, sparse, or unwelcome complex parameters.
    """
    if "params" not in group:
        near = did_you_mean("params", group)
        raise ParameterError(f"parameter group {number} needs 'params', it has {listing(sorted(group))}{near}")
    params = group["params"]
    if isinstance(params, Tensor):
        params = [params]
    if isinstance(params, (str, set)) or not isinstance(params, Iterable):
        return params
    params = list(params)
    for i, p in enumerate(params):
        if isinstance(p, tuple) and len(p) != 2:
            raise ParameterError(f"parameter {i} of group {number} is {p!r}: a named one is a pair (name, tensor)")
    found = [(i, t) for i, p in enumerate(params) if isinstance(t := p[1] if isinstance(p, tuple) else p, Tensor)]
    places: dict[int, int] = {}
    for i, p in found:
        first = places.setdefault(id(p), i)
        if first != i:
            raise ParameterError(
                f"optimizer contains a parameter group with duplicate parameters: "
                f"group {number} has one tensor as its parameters {first} and {i}"
            )
    sparse = [[number, i] for i, p in found if p.is_sparse or p.is_sparse_csr]
    if sparse:
        raise ParameterError(f"Sparse params at indices {sparse}: {owner} requires dense parameter tensors")
    unwelcome = [[number, i] for i, p in found if p.is_complex() and not takes_complex]
    if unwelcome:
        raise ParameterError(f"Complex params at indices {unwelcome}: {owner} does not support complex parameters")
    return params
