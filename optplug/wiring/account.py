"""What was chosen and why, in lines for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optplug.rules.driver import RuleOptimizer
from optplug.wiring.plans import Choice, choices

SHOWN_OPTIONS = ("lr", "weight_decay", "momentum")


def account(trainer: Any) -> Iterator[str]:
    """Optimizer, plugin and version, engine, groups, schedule, monitor and where it comes from."""
    for optimizer in trainer.optimizers:
        choice = choices.get(optimizer)
        if choice is not None:
            yield from _of_optimizer(optimizer, choice)


def _of_optimizer(optimizer: Any, choice: Choice) -> Iterator[str]:
    offer = choice.config.optimizer.offer
    yield f"optimizer {offer.name} from plugin {offer.plugin}"
    if isinstance(optimizer, RuleOptimizer):
        for report in optimizer.engine_report():
            yield f"  engine of {report}"
    for i, group in enumerate(optimizer.param_groups):
        elements = sum(p.numel() for p in group["params"])
        base = {**group, "lr": group.get("initial_lr", group["lr"])}  # before warmup and schedule
        options = ", ".join(f"{k} {float(base[k]):g}" for k in SHOWN_OPTIONS if k in group)
        name, tensors = group.get("name", i), len(group["params"])
        yield f"  parameter group {name}: {tensors} tensors, {elements:,} elements, {options}"
    scheduled, plan = choice.config.scheduler, choice.plan
    if scheduled is None or plan is None:
        yield "no schedule: the learning rate stays as it is"
        return
    every = plan.interval if plan.frequency == 1 else f"{plan.frequency} {plan.interval}s"
    when = "each completed validation" if plan.interval == "validation" else f"every {every}"
    warmup = f", after a warmup of {scheduled.warmup_steps} steps" if scheduled.warmup_steps else ""
    yield f"scheduler {scheduled.offer.name} from plugin {scheduled.offer.plugin}, stepped {when}{warmup}"
    if plan.monitored is not None:
        yield f"  {plan.monitored}"
