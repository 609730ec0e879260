"""Dispatch: which engine steps which parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optplug import engines
from optplug.engines import _torch_compat
from optplug.engines.protocol import BucketKey, EngineProtocol, GroupSettings
from optplug.errors import (
    BranchingError,
    EngineError,
    HyperparameterTypeError,
    RecordingError,
    RuleError,
    listing,
    suggest,
)
from optplug.rules.trace import RuleVariant, TracedRule, trace

ENGINE_KEYS = ("foreach", "fused", "capturable", "differentiable")
"""Keys of parameter groups that select how a step runs. They are never loaded from a checkpoint."""


CAPTURABLE_DEVICES = _torch_compat.capturable_device_types()
"""The device types that can capture graphs, according to torch."""

FUSED_DEVICES = _torch_compat.fused_device_types()
"""The device types that torch's fused optimizers support."""


def check_engine(engine: Any) -> None:
    """Raise EngineError if `engine` is not the name of an available engine."""
    available = engines.engine_names()
    name = engine if isinstance(engine, str) else ""
    if name in engines.PLANNED:
        message = f"engine {engine!r} is not part of this version; there are {listing(available)}"
        raise EngineError(message, argument="engine")
    if name not in available:
        message = f"no engine named {engine!r}{suggest(engine, available, intro='there are')}"
        raise EngineError(message, argument="engine")


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
    raise HyperparameterTypeError(message, argument="state_dtype")


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
        raise EngineError("`fused` does not support `differentiable`", argument="fused")
    if fused and foreach:
        raise EngineError("`fused` and `foreach` cannot be `True` together.", argument="fused")
    if foreach is not None and engine not in ("auto", engines.ENGINE_OF_FOREACH[foreach]):
        raise EngineError(f"foreach={foreach} contradicts engine={engine!r}", argument="foreach")
    requested = engines.ENGINE_OF_FOREACH[foreach] if foreach is not None else engine
    if differentiable and requested not in ("auto", *_names_with("differentiable")):
        message = f"_foreach ops don't support autograd: differentiable=True {_needs('differentiable')}"
        raise RecordingError(message, argument="differentiable")


def _names_with(option: str) -> list[str]:
    """Return the names of the engines that keep scalars as tensors for an option."""
    return [engine.name for engine in engines.ENGINES if option in engine.tensor_scalars]


def _needs(option: str) -> str:
    return f"needs engine {' or '.join(map(repr, _names_with(option)))} (or 'auto')"


def check_capturable(p: Tensor) -> None:
    """Raise RecordingError if the parameter is on a device that cannot capture graphs."""
    if p.device.type not in CAPTURABLE_DEVICES:
        raise RecordingError(
            f"If capturable=True, params and state_steps must be on supported devices: {list(CAPTURABLE_DEVICES)}; "
            f"a parameter is on {p.device.type}, which cannot capture graphs"
        )


def check_fused(p: Tensor) -> None:
    """Raise EngineError if the parameter is on a device without data, or unknown to torch's fused optimizers."""
    if p.device.type not in FUSED_DEVICES:
        raise EngineError(
            "`fused=True` requires all the params to be floating point Tensors of supported devices: "
            f"{list(FUSED_DEVICES)}; a parameter is on {p.device.type}",
            argument="fused",
        )


def group_settings(
    engine: str,
    group: Mapping[str, Any],
    variant: RuleVariant,
    state_dtype: torch.dtype | None,
    *,
    matrices: bool = False,
) -> GroupSettings:
    """Return what a parameter group and its optimizer prescribe for a step.

    Args:
        engine: `engine` of the optimizer.
        group: the parameter group.
        variant: the rule with the flags of the group.
        state_dtype: `state_dtype` of the optimizer.
        matrices: whether the parameters are matrices, if the states depend on it; else False.
    """
    foreach = group["foreach"]
    requested, reason = engine, f"engine={engine!r}"
    if foreach is not None:
        requested, reason = engines.ENGINE_OF_FOREACH[foreach], f"foreach={foreach}"
    lengths = tuple(
        [(h, len(v) if isinstance(v := group.get(h), (tuple, list)) else 0) for h in variant.hyperparameters]
    )
    return GroupSettings(
        requested,
        reason,
        variant,
        lengths,
        group["differentiable"],
        group["capturable"],
        _torch_compat.active_transform(),
        state_dtype,
        matrices,
    )


class Candidates(NamedTuple):
    """The engines that can step a parameter group, before its tensors are considered."""

    settings: GroupSettings
    engines: Sequence[EngineProtocol]
    """At least one engine, the fastest first."""

    traced: TracedRule | None
    """The graph of the rule; None if no candidate runs graphs."""

    obstacles: Sequence[str] = ()
    """Why faster engines cannot step the group."""


def find_candidates(settings: GroupSettings) -> Candidates:
    """Find the engines that can step a parameter group.

    Raises:
        EngineError: the user requested an engine that cannot step the group.
        BranchingError: an engine in question runs graphs, and the rule branches on element-wise values.
    """
    if settings.requested != "auto":
        engine = engines.get_engine(settings.requested)
        if option := _unsupported_option(engine, settings):
            raise EngineError(f"{option}=True {_needs(option)}, not {engine.name!r}")
        traced = _trace(settings) if engine.runs_graph else None
        if isinstance(traced, RuleError):
            raise EngineError(f"engine {engine.name!r} cannot run this rule: {traced}") from traced
        return Candidates(settings, [engine], traced)
    obstacles = [(engine, _group_obstacle(engine, settings)) for engine in engines.ENGINES]
    found = [engine for engine, obstacle in obstacles if obstacle is None]
    traced = _trace(settings) if any(engine.runs_graph for engine in found) else None
    assert not isinstance(traced, RuleError)
    return Candidates(settings, found, traced, [obstacle for _, obstacle in obstacles if obstacle])


def _group_obstacle(engine: EngineProtocol, settings: GroupSettings) -> str | None:
    """Return why `engine="auto"` does not choose an engine for a group; None if it can."""
    if option := _unsupported_option(engine, settings):
        return f"{option}=True keeps scalars as tensors"
    if not engine.runs_graph:
        return None
    traced = _trace(settings)
    return str(traced) if isinstance(traced, RuleError) else settings.transform


def _unsupported_option(engine: EngineProtocol, settings: GroupSettings) -> str | None:
    options = {"differentiable": settings.differentiable, "capturable": settings.capturable}
    return next((key for key, is_set in options.items() if is_set and key not in engine.tensor_scalars), None)


def _trace(settings: GroupSettings) -> TracedRule | RuleError:
    traced = trace(settings.variant, settings.lengths)
    if isinstance(traced, BranchingError):
        raise traced
    return traced


def trace_or_none(settings: GroupSettings) -> TracedRule | None:
    """Return the graph of the rule, or None if the rule cannot be traced."""
    traced = trace(settings.variant, settings.lengths)
    return traced if isinstance(traced, TracedRule) else None


def choose_engine(candidates: Candidates, key: BucketKey) -> tuple[EngineProtocol, str]:
    """Return the fastest candidate that can step the parameters of a bucket, and the reason.

    Raises:
        EngineError: the user requested an engine that cannot step the parameters.
    """
    is_requested = candidates.settings.requested != "auto"
    obstacles = list(candidates.obstacles)
    for engine in candidates.engines:
        if not (is_requested or key.has_dense_grads or engine.takes_rows or not engine.runs_graph):
            continue  # stepping copies of rows is no faster than the rule itself
        obstacle = _reduction_obstacle(engine, key, candidates.traced) or engine.unsupported(key, candidates.traced)
        if obstacle is None:
            why = "; ".join(dict.fromkeys(obstacles)) or engine.advantage
            return engine, candidates.settings.reason if is_requested else f"auto: {why}"
        obstacles.append(obstacle)
    if is_requested:
        settings = candidates.settings
        remedy = "use engine='auto'" if settings.reason.startswith("engine") else f"omit {settings.reason}"
        raise EngineError(f"engine {settings.requested!r} cannot take a parameter: {obstacles[0]}; {remedy}")
    raise EngineError(f"no engine can take a parameter: {'; '.join(dict.fromkeys(obstacles))}")


def _reduction_obstacle(engine: EngineProtocol, key: BucketKey, traced: TracedRule | None) -> str | None:
    """Return why an engine cannot run the reductions and matrix functions of a rule; None if it can."""
    if traced is None or not engine.runs_graph or not traced.reduces:
        return None
    if traced.matrix_functions and not engine.calls:
        functions = listing(dict.fromkeys(traced.matrix_functions))
        return f"the rule calls {functions}, engine {engine.name} calls no matrix functions"
    if not engine.reduces:
        return f"the rule reduces, engine {engine.name} does not"
    if engine.takes_rows and not key.has_dense_grads:
        return f"the rule reduces, engine {engine.name} does not reduce sparse gradients"
    return None
