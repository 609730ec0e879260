"""`FitState`: the state of one fit, held by optplug's callback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from optplug.errors import Loc
from optplug.lightning._compat import restore_lr_monitors
from optplug.lightning.fit_setup import BuiltOptimizer, ConfiguredOptimizer, SteppingPlan
from optplug.lightning.followed_lrs import EpochStartRates
from optplug.lightning.gradient_graphs import GradientGraphs
from optplug.lightning.managed_scheduler import GlobalStepCounter, ManagedScheduler, PlateauHistory, StepCounter
from optplug.lightning.optimizer_modes import OptimizerModes


@dataclass
class MetricSnapshots:
    """The logged metric values at two earlier times. A value is new if it is a different object now.

    Attributes:
        epoch: the epoch to which the observed values belong.
        before_epoch: the values at the start of the epoch.
        before_validation: the values at the start of the validation.
    """

    epoch: int = 0
    before_epoch: dict[str, Any] = field(default_factory=dict)
    before_validation: dict[str, Any] = field(default_factory=dict)

    def begin_epoch(self, trainer: Any) -> None:
        self.epoch, self.before_epoch = trainer.current_epoch, dict(trainer.callback_metrics)

    def begin_validation(self, trainer: Any) -> None:
        self.before_validation = dict(trainer.callback_metrics)

    def ignore_present_values(self, trainer: Any) -> None:
        """Take all values logged so far as old."""
        self.before_epoch = self.before_validation = dict(trainer.callback_metrics)


@dataclass
class EpochCount:
    """Which epochs have counted for the schedules that are stepped in epochs.

    An epoch counts once, after its last batch or, if it ends early, when it ends. An epoch without a batch does not
    count. Checkpoints store the attributes as plain data.

    Attributes:
        last_counted: the last epoch that counted.
        is_open: whether a batch of the current epoch has begun, and the epoch has not counted yet.
        changes: for each managed scheduler, its `changes` when the last epoch counted, empty if it is not stepped in
            epochs. Only if that epoch ended early, and until the next one starts: a training with `max_steps` resumes
            within the epoch in which it stopped.
    """

    last_counted: int = -1
    is_open: bool = False
    changes: list[dict[str, Any]] = field(default_factory=list)

    def resume(self, epoch: int) -> list[dict[str, Any]]:
        """Open the epoch in which the training resumes if it has ended early, and counted.

        Returns:
            The changes of the schedulers that must be undone.
        """
        if epoch != self.last_counted or not self.changes:
            return []
        changes, self.changes = self.changes, []
        self.last_counted, self.is_open = epoch - 1, True
        return changes

    def begin_epoch(self, epoch: int) -> None:
        self.is_open = False
        if epoch > self.last_counted:  # after some resumes, Lightning starts an epoch again that ended early
            self.changes = []

    def begin_batch(self, epoch: int) -> None:
        self.is_open = epoch > self.last_counted

    def count(self, epoch: int) -> None:
        self.is_open, self.last_counted = False, epoch


@dataclass
class ResumeState:
    """Data about a run that resumes from a checkpoint, for `finish_resume` and the summary.

    Attributes:
        policy: one of `optplug.config.form.ON_RESUME`.
        saved_config: the configuration in the checkpoint; empty for a checkpoint without one.
        saved_histories: the `PlateauHistory` fields of each plateau, as the checkpoint has them.
        configured_groups: for each optimizer, the options of its parameter groups before Lightning restores them.
        configured_schedules: for each scheduler, its state before Lightning restores it.
        messages: lines for the summary at the start of the training.
        extended: the locations of the lengths of schedules that were changed to fit this training.
        load_hooks: handles of the hooks that check state dicts before Lightning loads them.
    """

    policy: str
    saved_config: dict[str, Any] = field(default_factory=dict)
    saved_histories: list[dict[str, Any]] = field(default_factory=list)
    configured_groups: list[list[dict[str, Any]]] = field(default_factory=list)
    configured_schedules: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    extended: list[Loc] = field(default_factory=list)
    load_hooks: list[Any] = field(default_factory=list)


@dataclass
class FitState:
    """The state of one fit. `built` is the immutable setup; `checkpoint_metadata` and `resume` describe the checkpoint;
    the other attributes are progress.

    Attributes:
        built: the optimizers that optplug built or schedules.
        checkpoint_metadata: optplug's metadata in the checkpoint from which the run resumes.
        resume: data about the resume; None for a run that does not resume.
        is_resumed: whether the callback's own state has been restored.
        managed: the schedulers that the callback steps.
        histories: the history of each plateau scheduler, including replaced ones.
        step_counters: the step counter of each optimizer of the trainer.
        group_counts: the number of parameter groups of each optimizer of the trainer.
        epoch_start_rates: the learning rates at the start of the epoch; None from its first batch on.
        checks_parameters: whether the first batch of the epoch has not ended yet; `warn_of_untrained_parameters` runs
            then.
        reported_untrained: warnings of `warn_of_untrained_parameters`, each with a name that it has named.
        modes: the modes of the optimizers with `train()` and `eval()`.
        changed_monitors: the callbacks that skip parameter groups without a learning rate in this fit.
        gradient_graphs: what keeps the graphs of gradients, for optimizers that need them.
        snapshots: earlier metric values.
        epochs: the epochs that have counted.
        has_batch: whether a batch of the current epoch has begun. Optimizer steps before it do not count.
        epoch_ended: whether an epoch has ended, and the next one has not started.
        after_batch: whether a batch has ended, and neither the next batch nor a validation has started.
        in_validation: whether a validation has started, and its metrics have not been observed yet.
        repeats_validation: whether a validation before the next batch repeats one that the checkpoint contains.
        metadata_at_end: what checkpoints that are saved after the fit, or after an exception, contain; None before.
        failed_loggers: the `id` of each logger that has raised an exception.
    """

    built: tuple[BuiltOptimizer, ...] = ()
    checkpoint_metadata: dict[str, Any] = field(default_factory=dict)
    resume: ResumeState | None = None
    is_resumed: bool = False
    managed: list[ManagedScheduler] = field(default_factory=list)
    histories: list[PlateauHistory] = field(default_factory=list)
    step_counters: list[StepCounter | GlobalStepCounter] = field(default_factory=list)
    group_counts: list[int] = field(default_factory=list)
    epoch_start_rates: EpochStartRates | None = None
    checks_parameters: bool = False
    reported_untrained: set[tuple[str, str]] = field(default_factory=set)
    modes: OptimizerModes = field(default_factory=OptimizerModes)
    changed_monitors: list[Any] = field(default_factory=list)
    gradient_graphs: GradientGraphs = field(default_factory=GradientGraphs)
    snapshots: MetricSnapshots = field(default_factory=MetricSnapshots)
    epochs: EpochCount = field(default_factory=EpochCount)
    has_batch: bool = False
    epoch_ended: bool = False
    after_batch: bool = False
    in_validation: bool = False
    repeats_validation: bool = False
    metadata_at_end: dict[str, Any] | None = None
    failed_loggers: set[int] = field(default_factory=set)
    _configured_at_end: list[ConfiguredOptimizer | None] | None = None

    # ------------------------------------------------------------------ setup

    def record(self, built: Iterable[BuiltOptimizer]) -> None:
        """Add optimizers that a call of the module's `configure_optimizers` built."""
        self.built = (*self.built, *built)

    def forget_replaced(self, trainer: Any) -> None:
        """Forget the built optimizers that the trainer no longer uses."""
        used = [*trainer.optimizers, *(entry.scheduler for entry in trainer.lr_scheduler_configs)]
        self.built = tuple(
            built for built in self.built if any(one is built.optimizer or one is built.scheduler for one in used)
        )

    def configured(self, trainer: Any) -> list[tuple[Any, ConfiguredOptimizer]]:
        """The optimizers of the trainer that optplug built or schedules, each with what was chosen for it."""
        chosen = self._configured_at_end
        if chosen is None:
            chosen = self._configured_of(trainer)
        pairs = zip(trainer.optimizers, chosen, strict=False)
        return [(optimizer, configured) for optimizer, configured in pairs if configured is not None]

    def _configured_of(self, trainer: Any) -> list[ConfiguredOptimizer | None]:
        return [
            next((built.configured for built in self.built if built.optimizer is optimizer), None)
            for optimizer in trainer.optimizers
        ]

    def plan_of(self, scheduler: Any) -> SteppingPlan | None:
        """The plan of a scheduler that optplug built; None for other schedulers."""
        return next((built.configured.plan for built in self.built if built.scheduler is scheduler), None)

    # ------------------------------------------------------------------ progress

    def current(self, trainer: Any) -> list[ManagedScheduler]:
        """The managed schedulers whose entries the trainer still has."""
        entries = trainer.lr_scheduler_configs
        return [managed for managed in self.managed if managed.entry in entries]

    def managed_of(self, trainer: Any, optimizer: Any) -> ManagedScheduler | None:
        """The managed scheduler of an optimizer, if there is one."""
        return next((managed for managed in self.current(trainer) if managed.scheduler.optimizer is optimizer), None)

    def current_plateaus(self, trainer: Any) -> list[ManagedScheduler]:
        """The managed plateau schedulers whose entries the trainer still has."""
        entries = trainer.lr_scheduler_configs
        return [managed for managed in self.managed if managed.metric is not None and managed.entry in entries]

    def count_steps(self, enabled: bool) -> None:
        """Set whether optimizer steps count from now on; those before the first batch or in a validation do not."""
        for counter in self.step_counters:
            counter.is_enabled = enabled

    def release(self, trainer: Any) -> None:
        """Let Lightning step the schedulers again, and drop all references to optimizers and schedulers.

        Step counts, histories and what was configured stay: the user may save a checkpoint after the fit.
        """
        self.modes.detach()
        self.gradient_graphs.detach()
        restore_lr_monitors(self.changed_monitors)
        for counter in self.step_counters:
            counter.detach()
        for managed in self.managed:
            managed.entry.frequency = managed.original_frequency
        if self._configured_at_end is None:
            self._configured_at_end = self._configured_of(trainer)
        self.built, self.managed, self.modes, self.resume = (), [], OptimizerModes(), None
        self.changed_monitors = []
