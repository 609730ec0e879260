"""The settings of each optimizer and scheduler that optplug built, stored outside their state dicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from optplug.config.form import ON_NONFINITE, PATIENCE_UNITS
from optplug.config.model import Config, OptimizerSetup
from optplug.config.param_groups import ParameterInfo
from optplug.errors import Loc


@dataclass
class MonitoredMetric:
    """The metric that a scheduler monitors, its mode, and where both were configured.

    Attributes:
        monitor: name of the metric. None until the first validation shows it.
        mode: `"min"` or `"max"`. None until the metric is logged.
        source: what determined the metric, such as `EarlyStopping`; for messages.
        mode_is_configured: whether the configuration sets the mode.
        mode_is_inferred_from_name: whether the mode comes from the metric's name. The mode of the logged metric object
            then takes precedence.
        has_been_logged: whether a metric of exactly this name has been logged.
    """

    monitor: str | None
    mode: str | None
    source: str
    mode_is_configured: bool = False
    mode_is_inferred_from_name: bool = False
    has_been_logged: bool = False

    def __str__(self) -> str:
        return f"monitor {self.monitor or 'not yet known'} ({self.mode or 'mode not yet known'}) from {self.source}"


@dataclass
class SteppingPlan:
    """When optplug's callback steps a scheduler.

    Attributes:
        name: the scheduler's name, for messages.
        interval: `"step"`, `"epoch"` or, for a scheduler that takes a metric, `"validation"`.
        frequency: number of intervals per scheduler step.
        monitored: the metric; only with interval `"validation"`.
        last_step: the scheduler's last step; only if its length is that of the training (`auto`).
        length_argument: the scheduler argument that holds the length.
        patience_unit: one of `PATIENCE_UNITS`.
        on_nonfinite: one of `ON_NONFINITE`.
    """

    name: str
    interval: str
    frequency: int = 1
    monitored: MonitoredMetric | None = None
    last_step: int | None = None
    length_argument: str = ""
    patience_unit: str = PATIENCE_UNITS[0]
    on_nonfinite: str = ON_NONFINITE[0]


@dataclass
class OptimizerChoice:
    """Everything that was chosen for one optimizer. The summary at the start of a fit is made from it.

    Attributes:
        config: the whole configuration.
        setup: the part of the configuration for this optimizer, with numbers in place of `auto`.
        loc: location of this optimizer's schedule in the configuration.
        parameter_infos: the module's parameters when the optimizer was built.
        plan: the plan of the optimizer's scheduler, if it has one.
        build_inputs: values read from the trainer and the module at construction; a tuner may have changed them since.
    """

    config: Config
    setup: OptimizerSetup
    loc: Loc
    parameter_infos: list[ParameterInfo]
    plan: SteppingPlan | None = None
    build_inputs: dict[str, Any] = field(default_factory=dict)


stepping_plans: WeakKeyDictionary[Any, SteppingPlan] = WeakKeyDictionary()
"""The plan of each scheduler that optplug built."""

optimizer_choices: WeakKeyDictionary[Any, OptimizerChoice] = WeakKeyDictionary()
"""The choice for each optimizer that optplug built or schedules."""
