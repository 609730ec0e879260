"""What optplug decided about each scheduler it built: kept beside it, not in it, so that no state dict has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from optplug.config.model import ON_NONFINITE, PATIENCE_UNITS, Config, OptimizerSetup
from optplug.config.param_groups import Known


@dataclass
class MonitoredMetric:
    """The metric a scheduler listens to, whether more of it is better, and who said so.

    Attributes:
        monitor: None until a validation tells. mode: `"min"`, `"max"`, or None until a validation tells.
        source: who named the metric. told: whether the configuration says the mode.
        guessed: whether the mode is but the name's, which the logged metric may correct.
        found: whether the metric has been logged under this very name.
    """

    monitor: str | None
    mode: str | None
    source: str
    told: bool = False
    guessed: bool = False
    found: bool = False

    def __str__(self) -> str:
        return f"monitor {self.monitor or 'to come'} ({self.mode or 'mode to come'}) from {self.source}"


@dataclass
class SteppingPlan:
    """When the owner steps a scheduler.

    Attributes:
        interval: `"step"`, `"epoch"` or, for a scheduler that takes a metric, `"validation"`.
        frequency: every how many of them. monitored: the metric, for `"validation"`.
        name: the scheduler's name, for messages.
        unit: what its patience counts, of `PATIENCE_UNITS`. on_nonfinite: of `ON_NONFINITE`.
        end: its last step, for one that is as long as the training. length: the argument that says so.
    """

    name: str
    interval: str
    frequency: int = 1
    monitored: MonitoredMetric | None = None
    end: int | None = None
    length: str = ""
    unit: str = PATIENCE_UNITS[0]
    on_nonfinite: str = ON_NONFINITE[0]


@dataclass
class OptimizerChoice:
    """Everything that was chosen for an optimizer, for the account at the start of a fit.

    Attributes:
        config: the whole configuration. part: of this optimizer, with numbers for `auto`. place: of the part.
        known: the module's parameters when it was built. plan: of its schedule. depends: what was looked up in trainer
            and module, and may have changed since.
    """

    config: Config
    setup: OptimizerSetup
    loc: str
    known: list[Known]
    plan: SteppingPlan | None = None
    depends: dict[str, Any] = field(default_factory=dict)


stepping_plans: WeakKeyDictionary[Any, SteppingPlan] = WeakKeyDictionary()
"""By scheduler."""

optimizer_choices: WeakKeyDictionary[Any, OptimizerChoice] = WeakKeyDictionary()
"""By optimizer."""
