"""The hooks that a plugin can implement.

A plugin is a module or an object that an entry point of the group `optplug` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from optplug.registry.specs import FunctionSpec, OptimizerSpec, SchedulerSpec

PROJECT_NAME = "optplug"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def optplug_optimizers() -> Sequence[OptimizerSpec | type | Callable[..., Any]]:  # type: ignore[empty-body]
    """Return the optimizers to register: specs, subclasses of `torch.optim.Optimizer`, or functions that return one."""


@hookspec
def optplug_schedulers() -> Sequence[SchedulerSpec | type | Callable[..., Any]]:  # type: ignore[empty-body]
    """Return the schedulers to register: specs, subclasses of `LRScheduler`, or functions that return one."""


@hookspec
def optplug_functions() -> Sequence[FunctionSpec | Callable[[int], float]]:  # type: ignore[empty-body]
    """Return the functions of the epoch to register: specs, or functions. A configuration can name them."""
