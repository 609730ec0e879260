"""The summary that is printed at the start of a training: what was configured, and from which source."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.config.form import is_auto
from optplug.config.length_misfits import misfit_warnings
from optplug.config.lengths import described
from optplug.config.metric_names import is_validation_metric
from optplug.config.model import SchedulerConfig
from optplug.config.param_groups import group_table
from optplug.config.training_length import length_warnings
from optplug.errors import Loc, loc_text, short_list
from optplug.lightning.fit_setup import ConfiguredOptimizer, MonitoredMetric, SteppingPlan
from optplug.lightning.fit_state import FitState
from optplug.lightning.trainer_info import BEGINNING, training_length
from optplug.optim.wrappers import bases
from optplug.registry import registry
from optplug.schedulers.adapters import adapter_for
from optplug.schedulers.per_group import DEFAULT, PerGroup

_POLICY_DESCRIPTIONS = MappingProxyType(
    {
        "keep": "learning rates, options and counters come from the checkpoint, not from the configuration",
        "override_hparams": "options come from the configuration, states and counters from the checkpoint",
        "reset_scheduler": "the schedule restarts, states and options come from the checkpoint",
        "reset_all": "optimizer and schedule restart, the weights come from the checkpoint",
    }
)


def summary_lines(trainer: Any, state: FitState) -> Iterator[str]:
    """The lines of the summary.

    Args:
        trainer: the Lightning trainer.
        state: the state of the fit.

    Yields:
        For each optimizer: name, plugin, parameter groups, engine, schedule, monitor and its source. After a resume:
        the policy, and the differences between configuration and checkpoint.
    """
    for optimizer, configured in state.configured(trainer):
        yield from _optimizer_lines(trainer, state, optimizer, configured)
    if state.resume is not None:
        yield f"resumed with on_resume: {state.resume.policy}: {_POLICY_DESCRIPTIONS[state.resume.policy]}"
        for message in state.resume.messages:
            yield f"  {message}"


def _optimizer_lines(trainer: Any, state: FitState, optimizer: Any, configured: ConfiguredOptimizer) -> Iterator[str]:
    for member in [member for entry in configured.setup.entries for member in entry.members]:
        for depth, layer in enumerate(member.layers):
            registration = layer.optimizer.registration
            yield f"{'  around' if depth else 'optimizer'} {registration.name} from plugin {registration.plugin}"
            if also := registry.others_text("optimizer", layer.optimizer.name):
                yield f"  {also}"
    if not configured.setup.entries:
        yield f"optimizer {type(optimizer).__name__}, built by the module"
    for line in str(group_table(optimizer, configured.parameter_infos)).splitlines():
        yield f"  {line}"
    for stepped in (optimizer, *bases(optimizer)):
        if hasattr(stepped, "engine_report"):
            yield f"  {_engine_line(stepped)}"
    yield from _schedule_lines(trainer, state, optimizer, configured)


def _schedule_lines(trainer: Any, state: FitState, optimizer: Any, configured: ConfiguredOptimizer) -> Iterator[str]:
    setup, plan = configured.setup, configured.plan
    if plan is None:
        yield "no schedule: the learning rate is constant"
        return
    managed = state.managed_of(trainer, optimizer)
    metric = plan.monitored
    if managed is not None:  # the module may have changed the plan, a checkpoint or logged values the metric
        plan, metric = managed.plan, managed.metric
    schedulers = (entry.scheduler for entry in trainer.lr_scheduler_configs if entry.scheduler.optimizer is optimizer)
    scheduler = next(schedulers, None)
    members = scheduler.schedules if isinstance(scheduler, PerGroup) else {DEFAULT: scheduler}
    for name, scheduled in setup.named_schedules.items():
        title = "" if not setup.group_schedules else f"schedule {name}: " if name else "other groups: "
        yield title + _schedule_line(scheduled, plan, metric, members.get(name))
        if scheduled.name is not None and (also := registry.others_text("scheduler", scheduled.name)):
            yield f"  {also}"
        extended = state.resume.extended if state.resume is not None else ()
        yield from _length_lines(scheduled, members.get(name), configured, extended)
    if metric is not None:
        yield f"  {metric}"
    optimizers = len(configured.config.setups)
    length_of_training = training_length(trainer, trainer.lightning_module, optimizers, configured.start)
    for scheduled in setup.schedules:
        found = (*length_warnings(scheduled, length_of_training), *misfit_warnings(scheduled, length_of_training))
        for warning in found:
            yield f"  {warning}"


def _schedule_line(scheduled: SchedulerConfig, plan: SteppingPlan, metric: MonitoredMetric | None, built: Any) -> str:
    """Describe a schedule.

    Args:
        scheduled: the schedule.
        plan: when it is stepped.
        metric: the metric, if a schedule of the optimizer takes one.
        built: the scheduler.
    """
    warmup = "" if scheduled.warmup is None else f"a warmup of {scheduled.warmup.length} steps"
    if scheduled.name is None:
        return f"{warmup}, then the learning rate is constant" if warmup else "the learning rate is constant"
    every = plan.interval if plan.frequency == 1 else f"{plan.frequency} {plan.interval}s"
    when = f"every {every}"
    if metric is not None:
        when = "each completed validation" if is_validation_metric(metric.monitor) else "when the metric is logged"
    registration = scheduled.registration
    if warmup:
        # A plateau scheduler counts no bad values during its warmup. Others advance, unless they start after it.
        is_plateau = isinstance(getattr(built, "scheduler", built), ReduceLROnPlateau)
        starts_after = is_plateau or getattr(built, "delays_schedule", False)
        when += f", {'after' if starts_after else 'with'} {warmup}"
    return f"scheduler {registration.name} from plugin {registration.plugin}, stepped {when}"


def _length_lines(
    scheduled: SchedulerConfig, built: Any, configured: ConfiguredOptimizer, extended: Collection[Loc]
) -> Iterator[str]:
    """The lengths of a schedule that depend on the training, and those of its parts, each with its source.

    Args:
        scheduled: the schedule.
        built: the scheduler.
        configured: what was configured for its optimizer.
        extended: the locations of the lengths that a resume has changed. Another line reports them.
    """
    whole = "the training" if configured.start == BEGINNING else "the rest of the training"
    if scheduled.warmup is not None and scheduled.warmup.delays_schedule:
        whole += " after the warmup"
    for name, given in scheduled.given_lengths.items():
        resolved = scheduled.arguments[name]
        if isinstance(resolved, list) or scheduled.argument_loc(name) in extended:
            continue
        length = adapter_for(built).length(name, resolved)
        yield f"  {name} is {length}: {_source(given, whole, resolved, length)}"
    yield from _part_lines(scheduled, built, whole)


def _part_lines(scheduled: SchedulerConfig, built: Any, whole: str) -> Iterator[str]:
    """The schedules in a list of schedules, each with its length."""
    lengths = [part.length for part in scheduled.parts]
    starts = [0, *getattr(getattr(built, "scheduler", built), "later_starts", ())]
    built_lengths = [end - start for start, end in itertools.pairwise(starts)]
    is_changed = built_lengths != lengths[:-1]
    for part, length in itertools.zip_longest(scheduled.parts, built_lengths):
        title = f"  {loc_text(part.schedule.loc[-2:])} {part.schedule.registration.name}"
        if is_auto(part.given_length):
            shown = "" if part.length is None or is_changed else f"{part.length} steps, "
            yield f"{title}: {shown}what is left of {whole}"
        elif isinstance(part.given_length, Mapping) or length not in (None, part.length):
            length = part.length if length is None else length
            yield f"{title}: {length} steps: {_source(part.given_length, whole, part.length, length)}"
        else:
            yield f"{title}: {part.length} steps"


def _source(given: Any, whole: str, resolved: Any, length: Any) -> str:
    """The source of a length: the configuration, or a checkpoint with another length."""
    return described(given, whole) if length == resolved else f"from the checkpoint; this training has {resolved}"


def _engine_line(optimizer: Any) -> str:
    """The engines of an optimizer in one line: for each engine and reason, the groups that use it."""
    groups: dict[str, list[str]] = {}
    for report in optimizer.engine_report():
        used_by = groups.setdefault(f"{report.engine} ({report.reason})", [])
        name = str(optimizer.param_groups[report.group].get("name", report.group))
        if name not in used_by:
            used_by.append(name)
    return "; ".join(
        f"engine {engine} for group{'s' * (len(names) > 1)} {short_list(names)}" for engine, names in groups.items()
    )
