"""The hooks a plugin may implement. A plugin is a module or object named by an entry point of group `optplug`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from optplug.registry.specs import FunctionSpec, OptimizerSpec, SchedulerSpec

PROJECT = "optplug"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def optplug_optimizers() -> Sequence[OptimizerSpec | type]:  # type: ignore[empty-body]
    """Return the optimizers this plugin offers: specs, or plain `torch.optim.Optimizer` classes."""


@hookspec
def optplug_schedulers() -> Sequence[SchedulerSpec | type]:  # type: ignore[empty-body]
    """Return the learning-rate schedulers this plugin offers: specs, or plain `LRScheduler` classes."""


@hookspec
def optplug_functions() -> Sequence[FunctionSpec | Callable[[int], float]]:  # type: ignore[empty-body]
    """Return the functions of the epoch that configurations may name: specs, or plain functions."""
