"""The static types of a configuration that is written in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OneOptimizer = str | Mapping[str, Any] | Optimizer
"""A name, a mapping with a name, or an existing optimizer."""
Scheduler = str | Mapping[str, Any]
"""A name, or a mapping with a name."""
SeveralOptimizers = Sequence[Mapping[str, Any]]
"""A list of mappings, each with a name."""
ParamGroups = str | Sequence[str | Mapping[str, Any]]
"""A preset, or a list of presets and rules."""

if TYPE_CHECKING:

    class Schedule(LRScheduler):
        """A scheduler that optplug builds: also a plateau scheduler, whose `step` takes the metric."""

        def step(self, *args: Any, **kwargs: Any) -> None: ...

else:
    Schedule = LRScheduler


class Options(TypedDict, total=False):
    """The keys of a configuration beside `optimizer` and `scheduler`."""

    param_groups: ParamGroups | None
    monitor: str | None
    mode: str | None
    on_resume: str | None
    override: bool
    verbose: bool


class LoopOptions(Options, total=False):
    """The keywords of `optplug.create_optimizer_and_scheduler`: those of a configuration, and the training's length."""

    total_steps: int | None
    epochs: int | None
    steps_per_epoch: int | None
