"""The schedulers that optplug's callback steps, with plan, progress and history; the step counters of optimizers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.config.form import PATIENCE_UNITS
from optplug.config.metric_names import is_validation_metric, mode_of_name
from optplug.errors import WiringError
from optplug.lightning.fit_setup import CONFIGURATION, MonitoredMetric, SteppingPlan
from optplug.schedulers.adapters import SchedulerAdapter, adapter_for
from optplug.schedulers.warmup import step_was_skipped


class ManagedFrequency(int):
    """The frequency of an entry that optplug's callback steps: the entry's own, but Lightning never steps the entry.

    Lightning steps an entry if `index % frequency == 0`. Other code, such as StochasticWeightAveraging, reads it.
    """

    def __rmod__(self, index: int) -> int:
        return 1


@dataclass
class PlateauHistory:
    """What a plateau scheduler did in the whole training, including the parts before a resume.

    Checkpoints store the attributes as plain data.

    Attributes:
        observed: number of metric values observed.
        ignored: number of observed values that were not finite and were ignored.
        cuts: the epoch of each learning-rate cut.
        moment: the moment of the last observation; see `PlateauObserver`.
        monitor: name of the observed metric.
        mode: `"min"` or `"max"`, of the observed metric.
        source: what determined the metric; see `MonitoredMetric`.
        patience_unit: the unit in which patience was counted.
        last_step_epoch: the epoch of the last observation.
    """

    observed: int = 0
    ignored: int = 0
    cuts: list[int] = field(default_factory=list)
    moment: str = "validation"
    monitor: str | None = None
    mode: str | None = None
    source: str = ""
    patience_unit: str = PATIENCE_UNITS[0]
    last_step_epoch: int | None = None

    def summary(self, title: str, metric: MonitoredMetric, logged: str) -> str:
        """The history in one line.

        Args:
            title: the beginning of the line.
            metric: the metric.
            logged: the names of the logged metrics, for a metric without values.
        """
        if not self.observed:
            return f"{title}: {metric.absence}; logged metrics: {logged}"
        seen = _quantity(self.observed, "validation" if self.moment == "validation" else "epoch")
        ignored = f", {self.ignored} of them not finite and ignored" if self.ignored else ""
        cuts = _quantity(len(self.cuts), "cut")
        if self.cuts:
            cuts += f" (epoch{'s' * (len(self.cuts) > 1)} {', '.join(map(str, self.cuts))})"
        return f"{title}: {seen} seen{ignored}, {cuts}, {metric}"


def _quantity(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


@dataclass
class ManagedScheduler:
    """A scheduler entry of the trainer that optplug's callback steps in Lightning's place.

    Attributes:
        entry: the trainer's entry (`LRSchedulerConfig`).
        plan: when to step the scheduler. A resume may replace it.
        adapter: gives access to the scheduler, whatever its family.
        original_frequency: the entry's own frequency, which is restored after the fit.
        steps_taken: number of steps of the scheduler after optplug's last step. A different number later shows that
            something else stepped the scheduler.
        step_counter: counts the steps of the scheduler's optimizer.
        optimizer_steps_handled: number of optimizer steps for which the scheduler and its warmup are up to date.
        metric: the metric that is observed: as configured, until logged values or a checkpoint replace it.
        metric_is_logged: whether a metric of exactly this name has been logged, not counting the sanity check.
        metric_before_sanity: the metric before the sanity check resolved it, until the first validation.
        mode_conflict_reported: whether the user has been warned that the mode contradicts the metric.
        search_ended: whether everything that could log the metric has run once.
        lrs_from_outside_reported: whether a line has reported learning rates that other code set in the warmup.
        absence_reported: whether the user has been warned that the metric will not be logged.
        history: what a plateau scheduler did.
        optimizer_index: index of the optimizer; only if the trainer has several plateau schedulers.
    """

    entry: Any
    plan: SteppingPlan
    adapter: SchedulerAdapter
    original_frequency: int
    steps_taken: int | None = None
    step_counter: StepCounter | GlobalStepCounter | None = None
    optimizer_steps_handled: int = 0
    metric: MonitoredMetric | None = None
    metric_is_logged: bool = False
    metric_before_sanity: MonitoredMetric | None = None
    mode_conflict_reported: bool = False
    search_ended: bool = False
    absence_reported: bool = False
    lrs_from_outside_reported: bool = False
    history: PlateauHistory = field(default_factory=PlateauHistory)
    optimizer_index: int | None = None

    @property
    def scheduler(self) -> Any:
        return self.entry.scheduler

    @property
    def name(self) -> str:
        return self.plan.name + self.name_suffix

    @property
    def name_suffix(self) -> str:
        return "" if self.optimizer_index is None else f"_{self.optimizer_index}"

    @property
    def optimizer_steps(self) -> int:
        """Number of steps of the optimizer since the start of the training."""
        return 0 if self.step_counter is None else self.step_counter.count

    def step(self, module: Any, value: float | None = None) -> None:
        """Step the scheduler once through the module's `lr_scheduler_step`, unless it has reached its last step.

        Args:
            module: the LightningModule.
            value: the value of the metric, for a plateau scheduler.

        Raises:
            WiringError: something else has stepped the scheduler too.
        """
        if self.adapter.step_count != self.steps_taken:
            raise WiringError(self.stepped_twice_message(module))
        if self.adapter.has_ended(self.plan.end):
            return
        module.lr_scheduler_step(self.scheduler, value)
        self.steps_taken = self.adapter.step_count

    def snapshot(self) -> dict[str, Any]:
        """The state of the scheduler and the options that it may set in the parameter groups, as plain data."""
        groups = [
            {
                key: copy.deepcopy(value)
                for key, value in group.items()
                if isinstance(value, (int, float, tuple, Tensor))
            }
            for group in self.scheduler.optimizer.param_groups
        ]
        return {"scheduler": copy.deepcopy(self.scheduler.state_dict()), "groups": groups}

    def changes(self, before: dict[str, Any]) -> dict[str, Any]:
        """What has changed since a `snapshot`: for each group, the changed options with old and new value."""
        groups = [
            {key: [old[key], new[key]] for key in new if key in old and not _equal(old[key], new[key])}
            for old, new in zip(before["groups"], self.snapshot()["groups"], strict=False)
        ]
        return {"scheduler": before["scheduler"], "groups": groups}

    def undo(self, changes: dict[str, Any]) -> None:
        """Undo `changes`, except in options that other code has changed since."""
        self.scheduler.load_state_dict(copy.deepcopy(changes["scheduler"]))
        for group, changed in zip(self.scheduler.optimizer.param_groups, changes["groups"], strict=False):
            for key, (old, new) in changed.items():
                if not _equal(group.get(key), new):
                    continue
                if isinstance(group[key], Tensor):
                    group[key].copy_(old)  # a tensor is changed in place: kernels and graphs may hold it
                else:
                    group[key] = old
        self.steps_taken = self.adapter.step_count

    def stepped_twice_message(self, module: Any) -> str:
        """The message for a scheduler that the module steps too."""
        return (
            f"{type(module).__name__} steps {self.name}, but optplug already steps it (also in manual optimization): "
            "remove scheduler.step() from the module"
        )

    def set_position(self, epochs: int) -> None:
        """Set the position of a plateau scheduler whose patience counts epochs or optimizer steps.

        Args:
            epochs: the number of epochs begun.
        """
        if self.plan.patience_unit != PATIENCE_UNITS[0]:
            self.scheduler.at(epochs if self.plan.patience_unit == "epochs" else self.optimizer_steps)


def _equal(one: Any, other: Any) -> bool:
    return bool(torch.as_tensor(one == other).all())


def manage(entry: Any, plan: SteppingPlan) -> ManagedScheduler:
    """Stop Lightning from stepping an entry, and return the entry as a managed scheduler.

    Changes that the module made to the returned dictionary (`interval`, `frequency`, `monitor`) override the plan.

    Args:
        entry: an entry of `trainer.lr_scheduler_configs`.
        plan: the plan of the entry's scheduler.
    """
    if plan.interval != "validation":
        plan = replace(plan, interval=entry.interval, frequency=entry.frequency)
    elif entry.monitor is not None and plan.monitored is not None and entry.monitor != plan.monitored.monitor:
        configured = plan.monitored.mode_source == CONFIGURATION
        monitored = MonitoredMetric(
            entry.monitor,
            plan.monitored.mode if configured else mode_of_name(entry.monitor),
            "the module's configure_optimizers",
            CONFIGURATION if configured else "",
        )
        plan = replace(plan, monitored=monitored)
    adapter = adapter_for(entry.scheduler)
    managed = ManagedScheduler(entry, plan, adapter, entry.frequency, adapter.step_count, metric=plan.monitored)
    entry.frequency = ManagedFrequency(entry.frequency)
    return managed


def plan_for_third_party_plateau(entry: Any) -> SteppingPlan | None:
    """The plan for a `ReduceLROnPlateau` entry that optplug did not build; None if Lightning should step the entry."""
    if not isinstance(entry.scheduler, ReduceLROnPlateau) or not entry.monitor:
        return None
    if entry.interval == "epoch" and entry.frequency != 1:
        return None
    if entry.interval == "step" and not is_validation_metric(entry.monitor):  # the metric has a value for each batch
        return None
    monitored = MonitoredMetric(
        entry.monitor, entry.scheduler.mode, "the module's configure_optimizers", "the module's scheduler"
    )
    return SteppingPlan(type(entry.scheduler).__name__, "validation", 1, monitored)


class StepCounter:
    """Counts the training steps of an optimizer. A step that a gradient scaler skips does not count.

    Args:
        optimizer: an optimizer with torch's step hooks.
        count: number of steps taken before.

    Attributes:
        is_enabled: whether steps count now.
    """

    def __init__(self, optimizer: Any, count: int = 0) -> None:
        self.count = count
        self.is_enabled = False
        self._handle = optimizer.register_step_post_hook(self)

    def __call__(self, optimizer: Any, *_: Any) -> None:
        if self.is_enabled and not step_was_skipped(optimizer):
            self.count += 1

    def detach(self) -> None:
        """Remove the hook from the optimizer. `count` keeps its value."""
        self._handle.remove()


class GlobalStepCounter:
    """Reports the trainer's `global_step`, for optimizers without step hooks."""

    is_enabled = False  # not used

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._count_at_end = 0

    @property
    def count(self) -> int:
        return self._count_at_end if self._trainer is None else int(self._trainer.global_step)

    def detach(self) -> None:
        """Drop the reference to the trainer. `count` keeps its value."""
        self._count_at_end, self._trainer = self.count, None
