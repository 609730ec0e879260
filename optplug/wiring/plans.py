"""What optplug decided about each scheduler it built: kept beside it, not in it, so that no state dict has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from optplug.config import Config


@dataclass
class Monitored:
    """The metric a scheduler listens to, its mode, and who said so. `monitor` may be None until a validation tells."""

    monitor: str | None
    mode: str
    source: str

    def __str__(self) -> str:
        return f"monitor {self.monitor or 'to come'} ({self.mode}) from {self.source}"


@dataclass
class Plan:
    """When the owner steps a scheduler.

    Attributes:
        interval: `"step"`, `"epoch"` or, for a scheduler that takes a metric, `"validation"`.
        frequency: every how many of them. monitored: the metric, for `"validation"`.
        name: the scheduler's name, for messages.
    """

    name: str
    interval: str
    frequency: int = 1
    monitored: Monitored | None = None


@dataclass
class Choice:
    """Everything that was chosen for an optimizer, for the account at the start of a fit."""

    config: Config
    plan: Plan | None = None


plans: WeakKeyDictionary[Any, Plan] = WeakKeyDictionary()
"""By scheduler."""

choices: WeakKeyDictionary[Any, Choice] = WeakKeyDictionary()
"""By optimizer."""
