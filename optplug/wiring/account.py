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
            if getattr(trainer, "ckpt_path", None):
                yield "resumed: learning rates, options and counters are the checkpoint's, not the configuration's"


def _of_optimizer(optimizer: Any, choice: Choice) -> Iterator[str]:
    offer = choice.config.optimizer.offer
    yield f"optimizer {offer.name} from plugin {offer.plugin}"
    names = [group.get("name", i) for i, group in enumerate(optimizer.param_groups)]
    for name, group in zip(names, optimizer.param_groups, strict=True):
        elements, tensors = sum(p.numel() for p in group["params"]), len(group["params"])
        shown = {key: group[key] for key in SHOWN_OPTIONS if key in group}
        if "lr" in shown:
            shown["lr"] = group.get("initial_lr", shown["lr"])  # before warmup and schedule
        options = "".join(f", {key} {float(value):g}" for key, value in shown.items())
        noun = "tensor" if tensors == 1 else "tensors"
        yield f"  parameter group {name}: {tensors} {noun}, {elements:,} elements{options}"
    if isinstance(optimizer, RuleOptimizer):
        for report in optimizer.engine_report():
            yield f"  engine of {report}"
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
