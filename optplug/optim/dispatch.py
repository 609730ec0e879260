"""Dispatch: which engine steps which parameters, and the call of each engine with what it needs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from optplug import engines
from optplug.engines import _torch_compat, foreach, loop
from optplug.errors import (
    BranchingError,
    EngineError,
    HyperparameterTypeError,
    RecordingError,
    RuleError,
    did_you_mean,
    listing,
)
from optplug.optim import sparse
from optplug.optim.buckets import Bucket, BucketKey
from optplug.optim.buffers import Roles, working, write_back
from optplug.optim.packed_scalars import PackedScalars, Reader
from optplug.optim.state import scalar_dtype
from optplug.rules.trace import FIRST, Traced, Variant, trace

Engine = Literal["auto", "loop", "foreach", "numba", "triton"]
ENGINES: tuple[str, ...] = ("auto", "loop", "foreach", "numba", "triton")
PLANNED = ("triton",)

ENGINE_KEYS = ("foreach", "fused", "capturable", "differentiable")
"""Group keys that say how to run: never taken from a checkpoint."""


CAPTURABLE_DEVICES = _torch_compat.capturable_device_types()
"""The device types that capture graphs, torch's list."""


def check_engine(engine: Any) -> None:
    """Raise EngineError unless this is an engine of this version."""
    there = [e for e in ENGINES if e not in PLANNED]
    if engine not in ENGINES:
        raise EngineError(f"no engine named {engine!r}; there are {listing(there)}{did_you_mean(engine, there)}")
    if engine in PLANNED:
        raise EngineError(f"engine {engine!r} is not part of this version; there are {listing(there)}")


def as_dtype(dtype: Any) -> torch.dtype | None:
    """A `state_dtype` as given, or by name as YAML gives it; HyperparameterTypeError for anything else."""
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise HyperparameterTypeError(f"state_dtype must be a floating-point torch.dtype or None, got {dtype!r}")


def check_options(owner: str, options: Mapping[str, Any], engine: str) -> None:
    """Refuse options of a group that contradict each other or the engine; the texts are torch's where torch has one.

    Args:
        owner: the optimizer's name. options: all options of the group. engine: the optimizer's.
    """
    foreach, fused, differentiable = options["foreach"], options["fused"], options["differentiable"]
    for key in ("foreach", "fused"):
        if options[key] is not None and not isinstance(options[key], bool):
            raise HyperparameterTypeError(f"{owner}: {key} must be True, False or None, got {options[key]!r}")
    if fused and differentiable:
        raise EngineError("`fused` does not support `differentiable`")
    if fused and foreach:
        raise EngineError("`fused` and `foreach` cannot be `True` together.")
    if foreach and engine not in ("auto", "foreach"):
        raise EngineError(f"foreach=True contradicts engine={engine!r}")
    if foreach is False and engine not in ("auto", "loop"):
        raise EngineError(f"foreach=False contradicts engine={engine!r}")
    if differentiable and (foreach or engine not in ("auto", "loop")):
        raise RecordingError("_foreach ops don't support autograd: differentiable=True needs engine 'loop' (or 'auto')")


def check_capturable(p: Tensor) -> None:
    """Raise RecordingError unless this parameter is where graphs are captured."""
    if p.device.type not in CAPTURABLE_DEVICES:
        raise RecordingError(
            f"If capturable=True, params and state_steps must be on supported devices: {list(CAPTURABLE_DEVICES)}; "
            f"a parameter is on {p.device.type}, where capturable=True has no use"
        )


def choose(engine: str, group: Mapping[str, Any], variant: Variant) -> tuple[str, str, Traced | None]:
    """The engine that a group gets where its tensors allow it, why this one, and the graph it runs (None for the loop).

    Raises:
        EngineError: the engine that was asked for cannot serve.
    """
    why = f"engine={engine!r}"
    if group["foreach"] is not None:
        engine, why = ("foreach" if group["foreach"] else "loop"), f"foreach={group['foreach']}"
    if engine == "loop":
        return "loop", why, None
    for key in ("differentiable", "capturable"):
        if group[key]:
            if engine != "auto":
                raise EngineError(f"{key}=True needs engine 'loop' (or 'auto'), not {engine!r}")
            return "loop", f"auto: {key}=True keeps scalars as tensors", None
    lengths = {h: len(v) if isinstance(v := group.get(h), (tuple, list)) else 0 for h in variant.hypers}
    traced = trace(variant, tuple(lengths.items()))
    if isinstance(traced, BranchingError):
        raise traced  # no engine can run it
    if isinstance(traced, RuleError):
        if engine != "auto":
            raise EngineError(f"engine {engine!r} cannot run this rule: {traced}") from traced
        return "loop", f"auto: {traced}", None
    if engine == "auto":
        if _torch_compat.is_functorch_active():
            return "loop", "auto: torch.func is transforming this step", None
        if _torch_compat.is_proxy_tracing():
            return "loop", "auto: this step is being traced", None
        engine, why = "numba", "auto: one fused kernel"
    return engine, why, traced


def settle(engine: str, reason: str, kind: BucketKey, forced: bool) -> tuple[str, str]:
    """The engine for parameters of a kind, and why: the group's, or the fastest that can take them.

    Args:
        engine, reason: the group's, from `choose`. forced: whether the user has asked for it.

    Raises:
        EngineError: the engine that was asked for cannot serve.
    """
    if engine == "loop":
        return engine, reason
    instead, obstacle = "loop", kind.obstacle()
    if obstacle is None and engine == "numba":
        instead = "foreach" if kind.layout is torch.strided else "loop"
        if kind.device.type != "cpu":
            obstacle = f"it is on {kind.device}, and engine numba is for the CPU"
        else:
            obstacle = kind.misfit or engines.why_not_numba((kind.p_dtype, kind.g_dtype, *kind.s_dtypes))
    if obstacle is None:
        return engine, reason
    if forced:
        raise EngineError(f"engine {engine!r} cannot take a parameter: {obstacle}; use engine='auto'")
    return instead, f"auto: {obstacle}"


def bytes_per_element(engine: str, traced: Traced | None, dtypes: Sequence[torch.dtype]) -> float | None:
    """What a step reads and writes for each element of a parameter; None where that is unknown.

    Args:
        dtypes: of the parameter, the gradient and the element-wise states.
    """
    if traced is None:
        return None
    if engine == "foreach":
        kept = [dtypes[0], *dtypes[2:]]
        work = functools.reduce(torch.promote_types, kept).itemsize
        copied = [dtype.itemsize + work for dtype in (*dtypes, *kept) if dtype.itemsize != work]  # there and back
        return foreach.passes(traced) * work + sum(copied)
    size = {role: dtype.itemsize for role, dtype in zip(("p", "g", *traced.variant.elementwise), dtypes, strict=True)}
    return sum(size[role] for role in (*traced.reads, *traced.outputs))


# ------------------------------------------------------------------ the step of each engine


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


def scalars_of(traced: Traced, hypers: dict[str, Any], column: PackedScalars, first: Sequence[bool] | None) -> Scalars:
    """The scalars of a step."""
    return [
        (*traced.scalars({**hypers, **dict(zip((FIRST, *column.names), row, strict=True))}), members)
        for row, members in column.rows(first).items()
    ]


def with_foreach(
    traced: Traced, kind: BucketKey, roles: Roles, scalars: Scalars, state_dtype: torch.dtype | None
) -> None:
    """Step many parameters, those with equal scalars at once."""
    for constants, _, members in scalars:
        chosen = roles
        if len(scalars) > 1:
            chosen = {role: [tensors[i] for i in members] for role, tensors in roles.items()}
        for part in foreach.chunks(traced, chosen["p"]):
            with sparse.named({role: tensors[part] for role, tensors in chosen.items()}, kind) as dense:
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
    if bucket.key.layout is torch.strided:
        if bucket.table is None:
            bucket.table = numba.Table(kernel, [parts * p.numel() for p in roles["p"]])
        if places is None:
            places = [list(map(Tensor.data_ptr, tensors)) for tensors in roles.values()]
        bucket.table.step(places, constants, row_of)
    else:
        named = sparse.RowAddresses(roles)
        table = numba.Table(kernel, (parts * named.lengths).numpy(), worth_a_thread=numba.WORTH_A_THREAD // 16)
        table.step(named.addresses.numpy(), constants, row_of if row_of is None else row_of[named.owners])
    torch.autograd.graph.increment_version(list(chain(*(roles[role] for role in traced.outputs))))
