"""How to run, as opposed to what to compute: engines, torch's spellings of them, and which one a group gets."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from optplug import engines
from optplug.engines import foreach
from optplug.errors import (
    BranchingError,
    EngineError,
    HyperparameterTypeError,
    RecordingError,
    RuleError,
    did_you_mean,
    listing,
)
from optplug.rules.buckets import Kind
from optplug.rules.trace import Traced, Variant, trace

Engine = Literal["auto", "loop", "foreach", "numba", "triton"]
ENGINES: tuple[str, ...] = ("auto", "loop", "foreach", "numba", "triton")
PLANNED = ("triton",)

KEYS = ("foreach", "fused", "capturable", "differentiable")
"""Group keys that say how to run: never taken from a checkpoint."""


CAPTURABLE_DEVICES = ("cuda", "xpu", "hpu", torch._C._get_privateuse1_backend_name(), "xla")
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
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "loop", "auto: torch.func is transforming this step", None
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
            return "loop", "auto: this step is being traced", None
        engine, why = "numba", "auto: one fused kernel"
    return engine, why, traced


def settle(engine: str, reason: str, kind: Kind, forced: bool) -> tuple[str, str]:
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
