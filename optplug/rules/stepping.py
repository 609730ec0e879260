"""One step of a bucket's tensors with each engine: what an engine needs, from what the driver has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from optplug.engines import foreach, loop
from optplug.rules import rows
from optplug.rules.buckets import Bucket, Kind
from optplug.rules.buffers import Roles, working, write_back
from optplug.rules.columns import Column, Reader
from optplug.rules.state import scalar_dtype
from optplug.rules.trace import FIRST, Traced, Variant


def with_loop(
    variant: Variant,
    hypers: dict[str, Any],
    roles: Roles,
    state: dict[str, Any],
    state_dtype: torch.dtype | None,
    *,
    as_tensors: bool,
    differentiable: bool,
) -> None:
    """Step one parameter: the rule itself, on its tensors.

    Args:
        roles: lists of one tensor. state: what the optimizer keeps for the parameter; its scalars are updated.
        as_tensors: give the rule scalar states as tensors rather than as floats.
    """
    work = working(roles, state_dtype)
    inputs: dict[str, Any] = {role: tensors[0] for role, tensors in work.items()}
    inputs.update((name, state[name] if as_tensors else float(state[name])) for name in variant.scalars)
    p, g = inputs.pop("p"), inputs.pop("g")
    for name, value in loop.step(variant, p, g, inputs, hypers, differentiable=differentiable).items():
        if not isinstance(state[name], Tensor):  # somebody has put a plain number there
            state[name] = torch.tensor(0.0, dtype=scalar_dtype())
        if isinstance(value, Tensor):
            state[name].copy_(value)
        else:
            state[name].fill_(value)
    write_back(work, roles)


Scalars = list[tuple[list[float], dict[str, float], Sequence[int]]]
"""The distinct rows of hoisted scalars and of new scalar states, each with the indices of its parameters."""


def scalars_of(traced: Traced, hypers: dict[str, Any], column: Column, first: Sequence[bool] | None) -> Scalars:
    """The scalars of a step."""
    return [
        (*traced.scalars({**hypers, **dict(zip((FIRST, *column.names), row, strict=True))}), members)
        for row, members in column.rows(first).items()
    ]


def with_foreach(traced: Traced, kind: Kind, roles: Roles, scalars: Scalars, state_dtype: torch.dtype | None) -> None:
    """Step many parameters, those with equal scalars at once."""
    for constants, _, members in scalars:
        chosen = roles
        if len(scalars) > 1:
            chosen = {role: [tensors[i] for i in members] for role, tensors in roles.items()}
        for part in foreach.chunks(traced, chosen["p"]):
            with rows.named({role: tensors[part] for role, tensors in chosen.items()}, kind) as dense:
                work = working(dense, state_dtype)
                foreach.step(traced, work, constants)
                if work is not dense:
                    write_back(work, dense)


def reader(buckets: Sequence[Bucket]) -> Reader | None:
    """What reads many addresses at once, if an engine of these buckets wants them."""
    if all(bucket.engine != "numba" for bucket in buckets):
        return None
    from optplug.engines.addresses import addresses

    return addresses


def with_numba(bucket: Bucket, traced: Traced, roles: Roles, scalars: Scalars, places: Any) -> None:
    """Step many parameters with one kernel, where they lie; `places` are the addresses by role, if known."""
    from optplug.engines import numba  # imports the compiler: only where it is used

    dtypes = [tensors[0].dtype for tensors in roles.values()]
    kernel = numba.compiled(traced, tuple(dtype.to_real() for dtype in dtypes))
    parts = 2 if dtypes[0].is_complex else 1
    row_of = None
    if len(scalars) > 1:
        row_of = torch.zeros(len(roles["p"]), dtype=torch.int64, device="cpu")
        for row, (*_, members) in enumerate(scalars):
            row_of[list(members)] = row
    constants = [values for values, *_ in scalars]
    if bucket.kind.layout is torch.strided:
        if bucket.table is None:
            bucket.table = numba.Table(kernel, [parts * p.numel() for p in roles["p"]])
        if places is None:
            places = [list(map(Tensor.data_ptr, tensors)) for tensors in roles.values()]
        bucket.table.step(places, constants, row_of)
    else:
        named = rows.Places(roles)
        table = numba.Table(kernel, (parts * named.lengths).numpy(), worth_a_thread=numba.WORTH_A_THREAD // 16)
        table.step(named.addresses.numpy(), constants, row_of if row_of is None else row_of[named.owners])
    torch.autograd.graph.increment_version(list(chain(*(roles[role] for role in traced.outputs))))
