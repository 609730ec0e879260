"""Dispatch: which engine steps which parameters, and the call of each engine."""

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
    listing,
    suggest,
    with_argument,
)
from optplug.optim import sparse
from optplug.optim.buckets import Bucket, BucketKey
from optplug.optim.buffers import TensorsByRole, working_tensors, write_back
from optplug.optim.packed_scalars import AddressReader, PackedScalars
from optplug.optim.state import scalar_dtype
from optplug.rules.trace import FIRST_STEP, RuleVariant, TracedRule, trace

Engine = Literal["auto", "loop", "foreach", "numba", "triton"]
ENGINES: tuple[str, ...] = ("auto", "loop", "foreach", "numba", "triton")
PLANNED_ENGINES = ("triton",)

ENGINE_KEYS = ("foreach", "fused", "capturable", "differentiable")
"""Keys of parameter groups that select how a step runs. They are never loaded from a checkpoint."""


CAPTURABLE_DEVICES = _torch_compat.capturable_device_types()
"""The device types that can capture graphs, according to torch."""


def check_engine(engine: Any) -> None:
    """Raise EngineError if `engine` is not the name of an available engine."""
    available = [e for e in ENGINES if e not in PLANNED_ENGINES]
    if engine not in ENGINES:
        message = f"no engine named {engine!r}{suggest(engine, available, intro='there are')}"
        raise with_argument("engine", EngineError(message))
    if engine in PLANNED_ENGINES:
        message = f"engine {engine!r} is not part of this version; there are {listing(available)}"
        raise with_argument("engine", EngineError(message))


def parse_state_dtype(dtype: Any) -> torch.dtype | None:
    """Return a `state_dtype` given as a torch.dtype, as None, or by name as in YAML.

    Raises:
        HyperparameterTypeError: the value is anything else.
    """
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    message = f"state_dtype must be a floating-point torch.dtype or None, got {dtype!r}"
    raise with_argument("state_dtype", HyperparameterTypeError(message))


def check_engine_options(options: Mapping[str, Any], engine: str) -> None:
    """Check that the options of a group that select how a step runs do not contradict each other or the engine.

    Args:
        options: all options of the group, each of which is valid by itself.
        engine: `engine` of the optimizer.

    Raises:
        EngineError: the options contradict each other. The message is torch's where torch has one.
        RecordingError: `differentiable` contradicts `foreach` or the engine.
    """
    foreach, fused, differentiable = options["foreach"], options["fused"], options["differentiable"]
    if fused and differentiable:
        raise with_argument("fused", EngineError("`fused` does not support `differentiable`"))
    if fused and foreach:
        raise with_argument("fused", EngineError("`fused` and `foreach` cannot be `True` together."))
    if foreach and engine not in ("auto", "foreach"):
        raise with_argument("foreach", EngineError(f"foreach=True contradicts engine={engine!r}"))
    if foreach is False and engine not in ("auto", "loop"):
        raise with_argument("foreach", EngineError(f"foreach=False contradicts engine={engine!r}"))
    if differentiable and (foreach or engine not in ("auto", "loop")):
        message = "_foreach ops don't support autograd: differentiable=True needs engine 'loop' (or 'auto')"
        raise with_argument("differentiable", RecordingError(message))


def check_capturable(p: Tensor) -> None:
    """Raise RecordingError if the parameter is on a device that cannot capture graphs."""
    if p.device.type not in CAPTURABLE_DEVICES:
        raise RecordingError(
            f"If capturable=True, params and state_steps must be on supported devices: {list(CAPTURABLE_DEVICES)}; "
            f"a parameter is on {p.device.type}, which cannot capture graphs"
        )


def choose_engine(engine: str, group: Mapping[str, Any], variant: RuleVariant) -> tuple[str, str, TracedRule | None]:
    """Choose the engine of a parameter group from its options and the rule, before its tensors are considered.

    Args:
        engine: `engine` of the optimizer.
        group: the parameter group.
        variant: the rule with the flags of the group.

    Returns:
        The name of the engine, the reason, and the graph of the rule (None for engine `loop`).

    Raises:
        EngineError: the user requested an engine that cannot step the group.
        BranchingError: no engine can step the group: the rule branches on element-wise values.
    """
    reason = f"engine={engine!r}"
    if group["foreach"] is not None:
        engine, reason = ("foreach" if group["foreach"] else "loop"), f"foreach={group['foreach']}"
    if engine == "loop":
        return "loop", reason, None
    for key in ("differentiable", "capturable"):
        if group[key]:
            if engine != "auto":
                raise EngineError(f"{key}=True needs engine 'loop' (or 'auto'), not {engine!r}")
            return "loop", f"auto: {key}=True keeps scalars as tensors", None
    lengths = {h: len(v) if isinstance(v := group.get(h), (tuple, list)) else 0 for h in variant.hyperparameters}
    traced = trace(variant, tuple(lengths.items()))
    if isinstance(traced, BranchingError):
        raise traced
    if isinstance(traced, RuleError):
        if engine != "auto":
            raise EngineError(f"engine {engine!r} cannot run this rule: {traced}") from traced
        return "loop", f"auto: {traced}", None
    if engine == "auto":
        if _torch_compat.is_functorch_active():
            return "loop", "auto: torch.func is transforming this step", None
        if _torch_compat.is_proxy_tracing():
            return "loop", "auto: this step is being traced", None
        engine, reason = "numba", "auto: one fused kernel"
    return engine, reason, traced


def resolve_engine(engine: str, reason: str, key: BucketKey, is_requested: bool) -> tuple[str, str]:
    """Return the engine of a bucket: the one chosen for the group, or else the fastest one that can step the tensors.

    Args:
        engine: name of the engine from `choose_engine`.
        reason: the reason from `choose_engine`.
        key: the key of the bucket.
        forced: whether the user requested the engine.

    Returns:
        The name of the engine and the reason.

    Raises:
        EngineError: the user requested an engine that cannot step the tensors.
    """
    if engine == "loop":
        return engine, reason
    fallback, obstacle = "loop", key.loop_only_reason()
    if obstacle is None and engine == "numba":
        fallback = "foreach" if key.grad_layout is torch.strided else "loop"
        if key.device.type != "cpu":
            obstacle = f"the parameter is on {key.device}, engine numba runs on the CPU only"
        else:
            dtypes = (key.param_dtype, key.grad_dtype, *key.state_dtypes)
            obstacle = key.not_in_place_reason or engines.numba_unavailable_reason(dtypes)
    if obstacle is None:
        return engine, reason
    if is_requested:
        raise EngineError(f"engine {engine!r} cannot take a parameter: {obstacle}; use engine='auto'")
    return fallback, f"auto: {obstacle}"


def bytes_per_element(engine: str, traced: TracedRule | None, dtypes: Sequence[torch.dtype]) -> float | None:
    """Return how many bytes a step reads and writes per element of a parameter; None if unknown.

    Args:
        engine: name of the engine.
        traced: the graph of the rule; None for engine `loop`.
        dtypes: dtypes of the parameter, the gradient and the element-wise states.
    """
    if traced is None:
        return None
    if engine == "foreach":
        written = [dtypes[0], *dtypes[2:]]
        work = functools.reduce(torch.promote_types, written).itemsize
        # Tensors of another dtype than the work dtype are copied to it; parameters and states also back.
        copied = [dtype.itemsize + work for dtype in (*dtypes, *written) if dtype.itemsize != work]
        return foreach.count_list_accesses(traced) * work + sum(copied)
    size = {
        role: dtype.itemsize for role, dtype in zip(("p", "g", *traced.variant.elementwise_states), dtypes, strict=True)
    }
    return sum(size[role] for role in (*traced.inputs, *traced.outputs))


# ------------------------------------------------------------------ the step of each engine


def step_with_loop(
    variant: RuleVariant,
    hyperparameters: dict[str, Any],
    roles: TensorsByRole,
    state: dict[str, Any],
    state_dtype: torch.dtype | None,
    *,
    as_tensors: bool,
    differentiable: bool,
) -> None:
    """Step one parameter with engine `loop`.

    Args:
        variant: the rule with the flags of the group.
        hypers: the hyperparameters by name.
        roles: the tensors, in lists of length one.
        state: the state dict of the parameter. Its scalar states are updated.
        state_dtype: `state_dtype` of the optimizer.
        as_tensors: whether to pass scalar states to the rule as tensors instead of floats.
        differentiable: whether autograd records the step.
    """
    work = working_tensors(roles, state_dtype)
    inputs: dict[str, Any] = {role: tensors[0] for role, tensors in work.items()}
    inputs.update((name, state[name] if as_tensors else float(state[name])) for name in variant.scalar_states)
    p, g = inputs.pop("p"), inputs.pop("g")
    for name, value in loop.step(variant, p, g, inputs, hyperparameters, differentiable=differentiable).items():
        if not isinstance(state[name], Tensor):  # the user may have assigned a plain number
            state[name] = torch.tensor(0.0, dtype=scalar_dtype())
        if isinstance(value, Tensor):
            state[name].copy_(value)
        else:
            state[name].fill_(value)
    write_back(work, roles)


ScalarRows = list[tuple[list[float], dict[str, float], Sequence[int]]]
"""For each distinct row of scalar states: the scalars of the graph, the new scalar states, the parameters' indices."""


def scalar_rows(
    traced: TracedRule, hyperparameters: dict[str, Any], packed: PackedScalars, first: Sequence[bool] | None
) -> ScalarRows:
    """Compute the scalars of a step, once for all parameters with equal scalar states.

    Args:
        traced: the graph of the rule.
        hypers: the hyperparameters by name.
        packed: the scalar states of the bucket.
        first: for each parameter whether this is its first step; None if it is the first step of none.
    """
    return [
        (
            *traced.compute_scalars({**hyperparameters, **dict(zip((FIRST_STEP, *packed.names), row, strict=True))}),
            indices,
        )
        for row, indices in packed.distinct_rows(first).items()
    ]


def step_with_foreach(
    traced: TracedRule, key: BucketKey, roles: TensorsByRole, scalars: ScalarRows, state_dtype: torch.dtype | None
) -> None:
    """Step the parameters of a bucket with engine `foreach`; parameters with equal scalars are stepped together.

    Args:
        traced: the graph of the rule.
        key: the key of the bucket.
        roles: the tensors of the bucket.
        scalars: from `scalar_rows`.
        state_dtype: `state_dtype` of the optimizer.
    """
    for constants, _, indices in scalars:
        selected = roles
        if len(scalars) > 1:
            selected = {role: [tensors[i] for i in indices] for role, tensors in roles.items()}
        for part in foreach.split_chunks(traced, selected["p"]):
            with sparse.as_dense({role: tensors[part] for role, tensors in selected.items()}, key) as dense:
                work = working_tensors(dense, state_dtype)
                foreach.step(traced, work, constants)
                if work is not dense:
                    write_back(work, dense)


def address_reader(buckets: Sequence[Bucket]) -> AddressReader | None:
    """Return the function that reads many addresses at once, if an engine of the buckets needs it; else None."""
    if all(bucket.engine != "numba" for bucket in buckets):
        return None
    from optplug.engines.addresses import read_addresses

    return read_addresses


def step_with_numba(
    bucket: Bucket, traced: TracedRule, roles: TensorsByRole, scalars: ScalarRows, addresses: Any
) -> None:
    """Step the parameters of a bucket in place with one kernel of engine `numba`.

    Args:
        bucket: the bucket. Its `table` is created in the first step.
        traced: the graph of the rule.
        roles: the tensors of the bucket.
        scalars: from `scalar_rows`.
        addresses: the addresses of all tensors, one row per role; None to read them here.
    """
    from optplug.engines import numba  # imports the compiler, so only when needed

    dtypes = [tensors[0].dtype for tensors in roles.values()]
    kernel = numba.compiled_kernel(traced, tuple(dtype.to_real() for dtype in dtypes))
    parts = 2 if dtypes[0].is_complex else 1
    row_of = None
    if len(scalars) > 1:
        row_of = torch.zeros(len(roles["p"]), dtype=torch.int64, device="cpu")
        for row, (*_, indices) in enumerate(scalars):
            row_of[list(indices)] = row
    constants = [values for values, *_ in scalars]
    if bucket.key.grad_layout is torch.strided:
        if bucket.table is None:
            bucket.table = numba.ChunkTable(kernel, [parts * p.numel() for p in roles["p"]])
        if addresses is None:
            addresses = [list(map(Tensor.data_ptr, tensors)) for tensors in roles.values()]
        bucket.table.step(addresses, constants, row_of)
    else:
        rows = sparse.RowAddresses(roles)
        table = numba.ChunkTable(
            kernel, (parts * rows.lengths).numpy(), elements_per_thread=numba.ELEMENTS_PER_THREAD // 16
        )
        table.step(rows.addresses.numpy(), constants, row_of if row_of is None else row_of[rows.param_indices])
    torch.autograd.graph.increment_version(list(chain(*(roles[role] for role in traced.outputs))))
