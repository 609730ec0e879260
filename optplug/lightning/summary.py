"""The summary that is printed at the start of a training: what was configured, and from which source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optplug.config.param_groups import group_table
from optplug.config.training_length import length_warnings
from optplug.lightning.monitor import is_validation_metric
from optplug.lightning.resume import ResumeState
from optplug.lightning.stepping_plan import OptimizerChoice, optimizer_choices
from optplug.lightning.trainer_info import training_length

_POLICY_DESCRIPTIONS = {
    "keep": "learning rates, options and counters come from the checkpoint, not from the configuration",
    "override_hparams": "options come from the configuration, states and counters from the checkpoint",
    "reset_scheduler": "the schedule restarts, states and options come from the checkpoint",
    "reset_all": "optimizer and schedule restart, the weights come from the checkpoint",
}


def summary_lines(trainer: Any, resume_state: ResumeState | None = None) -> Iterator[str]:
    """The lines of the summary.

    Args:
        trainer: the Lightning trainer.
        resume_state: of a run that resumes from a checkpoint.

    Yields:
        For each optimizer: name, plugin, parameter groups, engine, schedule, monitor and its source. After a resume:
        the policy, and the differences between configuration and checkpoint.
    """
    for optimizer in trainer.optimizers:
        choice = optimizer_choices.get(optimizer)
        if choice is not None:
            yield from _optimizer_lines(optimizer, choice, trainer)
    if resume_state is not None:
        yield f"resumed with on_resume: {resume_state.policy}: {_POLICY_DESCRIPTIONS[resume_state.policy]}"
        for message in resume_state.messages:
            yield f"  {message}"


def _optimizer_lines(optimizer: Any, choice: OptimizerChoice, trainer: Any) -> Iterator[str]:
    for optimizer_entry in choice.setup.entries:
        registration = optimizer_entry.optimizer.registration
        yield f"optimizer {registration.name} from plugin {registration.plugin}"
    if not choice.setup.entries:
        yield f"optimizer {type(optimizer).__name__}, built by the module"
    for line in str(group_table(optimizer, choice.parameter_infos)).splitlines():
        yield f"  {line}"
    if hasattr(optimizer, "engine_report"):
        for report in optimizer.engine_report():
            yield f"  engine of {report}"
    scheduled, plan = choice.setup.scheduler, choice.plan
    if scheduled is None or plan is None:
        yield "no schedule: the learning rate is constant"
        return
    warmup = "" if scheduled.warmup is None else f"a warmup of {scheduled.warmup.length} steps"
    if scheduled.name is None:
        yield f"{warmup or 'no warmup'}, then the learning rate is constant"
        return
    every = plan.interval if plan.frequency == 1 else f"{plan.frequency} {plan.interval}s"
    when = f"every {every}"
    if plan.monitored is not None:
        when = (
            "each completed validation" if is_validation_metric(plan.monitored.monitor) else "when the metric is logged"
        )
    registration = scheduled.registration
    after = f", after {warmup}" if warmup else ""
    yield f"scheduler {registration.name} from plugin {registration.plugin}, stepped {when}{after}"
    if plan.last_step is not None:
        entry = next(entry for entry in trainer.lr_scheduler_configs if entry.scheduler.optimizer is optimizer)
        length = getattr(entry.scheduler, plan.length_argument, plan.last_step)
        restored = f"from the checkpoint; this training has {plan.last_step}"
        source = "as long as the training" if length == plan.last_step else restored
        yield f"  {scheduled.length_argument} is {length}: {source}"
    if plan.monitored is not None:
        yield f"  {plan.monitored}"
    length_of_training = training_length(trainer, trainer.lightning_module, len(choice.config.setups))
    for warning in length_warnings(scheduled, length_of_training):
        yield f"  {warning}"
