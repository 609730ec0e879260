"""What was chosen and why, in lines for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optplug.groups import group_table
from optplug.lengths import remarks
from optplug.wiring.monitor import of_validation
from optplug.wiring.plans import Choice, choices
from optplug.wiring.resume import Resumption
from optplug.wiring.run import run_of

_MEANINGS = {
    "keep": "learning rates, options and counters are the checkpoint's, not the configuration's",
    "override_hparams": "options are the configuration's, states and counters the checkpoint's",
    "reset_scheduler": "the schedule starts anew, states and options are the checkpoint's",
    "reset_all": "optimizer and schedule start anew, the weights are the checkpoint's",
}


def account(trainer: Any, resumption: Resumption | None = None) -> Iterator[str]:
    """Optimizer, plugin and version, groups, engine, schedule, monitor and where it comes from."""
    for optimizer in trainer.optimizers:
        choice = choices.get(optimizer)
        if choice is not None:
            yield from _of_optimizer(optimizer, choice, trainer)
    if resumption is not None:
        yield f"resumed with on_resume: {resumption.policy}: {_MEANINGS[resumption.policy]}"
        for line in resumption.lines:
            yield f"  {line}"


def _of_optimizer(optimizer: Any, choice: Choice, trainer: Any) -> Iterator[str]:
    for member in choice.part.members:
        yield f"optimizer {member.optimizer.offer.name} from plugin {member.optimizer.offer.plugin}"
    if not choice.part.members:
        yield f"optimizer {type(optimizer).__name__}, built by the module"
    for line in str(group_table(optimizer, choice.known)).splitlines():
        yield f"  {line}"
    if hasattr(optimizer, "engine_report"):
        for report in optimizer.engine_report():
            yield f"  engine of {report}"
    scheduled, plan = choice.part.scheduler, choice.plan
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
    offer = scheduled.offer
    yield f"scheduler {offer.name} from plugin {offer.plugin}, stepped {when}{warmup and ', after ' + warmup}"
    if plan.end is not None:
        entry = next(entry for entry in trainer.lr_scheduler_configs if entry.scheduler.optimizer is optimizer)
        end = getattr(entry.scheduler, plan.length, plan.end)
        also = "as long as the training" if end == plan.end else f"the checkpoint's; the training has {plan.end}"
        yield f"  {scheduled.length} is {end}: {also}"
    if plan.monitored is not None:
        yield f"  {plan.monitored}"
    for remark in remarks(scheduled, run_of(trainer, trainer.lightning_module, len(choice.config.parts))):
        yield f"  {remark}"
