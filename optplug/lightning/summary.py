"""What was chosen and why, in lines for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optplug.config.param_groups import group_table
from optplug.config.training_length import remarks
from optplug.lightning.monitor import of_validation
from optplug.lightning.resume import ResumeState
from optplug.lightning.stepping_plan import OptimizerChoice, optimizer_choices
from optplug.lightning.trainer_info import training_length

_MEANINGS = {
    "keep": "learning rates, options and counters are the checkpoint's, not the configuration's",
    "override_hparams": "options are the configuration's, states and counters the checkpoint's",
    "reset_scheduler": "the schedule starts anew, states and options are the checkpoint's",
    "reset_all": "optimizer and schedule start anew, the weights are the checkpoint's",
}


def summary_lines(trainer: Any, resumption: ResumeState | None = None) -> Iterator[str]:
    """Optimizer, plugin and version, groups, engine, schedule, monitor and where it comes from."""
    for optimizer in trainer.optimizers:
        choice = optimizer_choices.get(optimizer)
        if choice is not None:
            yield from _of_optimizer(optimizer, choice, trainer)
    if resumption is not None:
        yield f"resumed with on_resume: {resumption.policy}: {_MEANINGS[resumption.policy]}"
        for line in resumption.lines:
            yield f"  {line}"


def _of_optimizer(optimizer: Any, choice: OptimizerChoice, trainer: Any) -> Iterator[str]:
    for member in choice.setup.members:
        yield f"optimizer {member.optimizer.registration.name} from plugin {member.optimizer.registration.plugin}"
    if not choice.setup.members:
        yield f"optimizer {type(optimizer).__name__}, built by the module"
    for line in str(group_table(optimizer, choice.known)).splitlines():
        yield f"  {line}"
    if hasattr(optimizer, "engine_report"):
        for report in optimizer.engine_report():
            yield f"  engine of {report}"
    scheduled, plan = choice.setup.scheduler, choice.plan
    if scheduled is None or plan is None:
        yield "no schedule: the learning rate stays as it is"
        return
    warmup = "" if scheduled.warmup is None else f"a warmup of {scheduled.warmup.length} steps"
    if scheduled.name is None:
        yield f"{warmup or 'no warmup'}, then the learning rate stays as it is"
        return
    every = plan.interval if plan.frequency == 1 else f"{plan.frequency} {plan.interval}s"
    when = f"every {every}"
    if plan.monitored is not None:
        when = "each completed validation" if of_validation(plan.monitored.monitor) else "when the metric is logged"
    registration = scheduled.registration
    yield f"scheduler {registration.name} from plugin {registration.plugin}, stepped {when}{warmup and ', after ' + warmup}"
    if plan.end is not None:
        entry = next(entry for entry in trainer.lr_scheduler_configs if entry.scheduler.optimizer is optimizer)
        end = getattr(entry.scheduler, plan.length, plan.end)
        also = "as long as the training" if end == plan.end else f"the checkpoint's; the training has {plan.end}"
        yield f"  {scheduled.length} is {end}: {also}"
    if plan.monitored is not None:
        yield f"  {plan.monitored}"
    for remark in remarks(scheduled, training_length(trainer, trainer.lightning_module, len(choice.config.setups))):
        yield f"  {remark}"
