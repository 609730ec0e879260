"""What a fit was set up with: the configuration and the build of each optimizer. Nothing here changes during a fit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from optplug.config.form import ON_NONFINITE, PATIENCE_UNITS
from optplug.config.metric_names import shown
from optplug.config.model import Config, OptimizerSetup
from optplug.config.param_groups import ParameterInfo
from optplug.config.training_length import TrainingLength
from optplug.lightning.trainer_info import TrainingPosition
from optplug.registry import Registration
from optplug.schedulers.adapters import ScheduleEnd

CONFIGURATION = "the configuration"
"""The source of a metric, or of its mode, that the configuration names."""


@dataclass(frozen=True)
class MonitoredMetric:
    """The metric that a scheduler monitors, its mode, and where both were configured.

    Attributes:
        monitor: name of the metric. None: the only validation loss of the first validation.
        mode: `"min"` or `"max"`. None: not known before the metric is logged.
        source: what determined the metric, such as `EarlyStopping`; for messages.
        mode_source: what determined the mode, as in `source`. Empty if nothing sets the mode: it comes from the logged
            metric object, else from the metric's name.
    """

    monitor: str | None
    mode: str | None
    source: str
    mode_source: str = ""

    @property
    def absence(self) -> str:
        """The words for a metric without any value."""
        if self.monitor is None:
            return "no validation loss was logged, so no value was received"
        return f"monitor {shown(self.monitor)} received no value"

    def __str__(self) -> str:
        mode = self.mode or "mode not yet known"
        if self.monitor is None:
            return f"monitor ({mode}): {self.source}"
        return f"monitor {shown(self.monitor)} ({mode}) from {self.source}"


@dataclass(frozen=True)
class SteppingPlan:
    """When optplug's callback steps a scheduler.

    Attributes:
        name: the scheduler's name, for messages.
        interval: `"step"`, `"epoch"` or, for a scheduler that takes a metric, `"validation"`.
        frequency: number of intervals per scheduler step.
        monitored: the metric as configured; only with interval `"validation"`.
        end: the end of a schedule that is as long as the training.
        patience_unit: one of `PATIENCE_UNITS`.
        on_nonfinite: one of `ON_NONFINITE`.
    """

    name: str
    interval: str
    frequency: int = 1
    monitored: MonitoredMetric | None = None
    end: ScheduleEnd | None = None
    patience_unit: str = PATIENCE_UNITS[0]
    on_nonfinite: str = ON_NONFINITE[0]


@dataclass(frozen=True)
class ConfiguredOptimizer:
    """Everything that was chosen for one optimizer, and what its construction depended on. It holds plain data only.

    Attributes:
        config: the whole configuration.
        setup: the part of the configuration for this optimizer, with numbers in place of `auto`.
        parameter_infos: the module's parameters when the optimizer was built.
        plan: the plan of the optimizer's scheduler, if it has one.
        start: where in the training the schedule starts.
        training_length: the length of the training at construction; None if the schedule does not depend on it.
        links: the values of the configuration's links at construction.
        lrs: the learning rates after construction. A tuner may have changed them since.
        submodule: the class name of the module whose parameters are optimized, if it is not the trainer's module.
    """

    config: Config
    setup: OptimizerSetup
    parameter_infos: tuple[ParameterInfo, ...]
    plan: SteppingPlan | None
    start: TrainingPosition
    training_length: TrainingLength | None
    links: dict[str, Any]
    lrs: list[float]
    submodule: str | None = None

    @property
    def registrations(self) -> list[Registration]:
        """The optimizers by name, with those that they wrap; none for one that the module has built itself."""
        members = [member for entry in self.setup.entries for member in entry.members]
        return [layer.optimizer.registration for member in members for layer in member.layers]


@dataclass(frozen=True, eq=False)
class BuiltOptimizer:
    """An optimizer that optplug built or schedules.

    Attributes:
        optimizer: the optimizer.
        scheduler: its scheduler, or None.
        configured: what was chosen for it.
    """

    optimizer: Any
    scheduler: Any
    configured: ConfiguredOptimizer


def names_with(built: Sequence[BuiltOptimizer], capabilities: Collection[str]) -> list[str]:
    """The names of the optimizers that declare one of the capabilities, also of wrapped ones."""
    registrations = [one for each in built for one in each.configured.registrations]
    return [one.name for one in registrations if not one.spec.capabilities.isdisjoint(capabilities)]
