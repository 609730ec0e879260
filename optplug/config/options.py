"""The static types of a configuration that is written in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from torch.optim import Optimizer

OneOptimizer = str | Mapping[str, Any] | Optimizer
"""A name, a mapping with a name, or an existing optimizer."""
Scheduler = str | Mapping[str, Any]
"""A name, or a mapping with a name."""
ParamGroups = str | Sequence[str | Mapping[str, Any]]
"""A preset, or a list of presets and rules."""


class Options(TypedDict, total=False):
    """The keys of a configuration beside `optimizer` and `scheduler`."""

    param_groups: ParamGroups | None
    monitor: str | None
    mode: str | None
    on_resume: str | None


class LoopOptions(Options, total=False):
    """The keywords of `optplug.create_optimizer_and_scheduler`: those of a configuration, and the training's length."""

    total_steps: int | None
    epochs: int | None
    steps_per_epoch: int | None
