"""Promises about parameter groups and learning rates."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import ConformanceError, one_line
from optplug.optim import dispatch
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.registry.signature import configurable_arguments
from optplug.rules.trace import TracedRule, trace
from optplug.testing.checks import assert_equal, max_difference
from optplug.testing.properties import has_lr, has_option, promise, steps_with_given_gradients, takes_several_groups
from optplug.testing.trajectory import LR_CHANGE_STEP, RARE_STEPS, STEPS, OptimizerUnderTest, Trajectory, step_error

_READ_GROUPS = "read `self.param_groups` in each step, and the options from each group"


@promise(steps_with_given_gradients, has_lr, has_option("lr"), remedy=_READ_GROUPS)
def lr_changes_take_effect(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A changed lr gives the same step as a new optimizer with this lr and the same state."""
    changed = Trajectory(subject, options).run_steps(0, LR_CHANGE_STEP + 1)
    first = Trajectory(subject, options).run_steps(0, LR_CHANGE_STEP)
    saved = copy.deepcopy(first.optimizer.state_dict())
    for group in saved["param_groups"]:
        group["lr"] /= 2
    new = Trajectory(subject, {**options, "lr": saved["param_groups"][0]["lr"]}, params=first.params)
    new.optimizer.load_state_dict(saved)
    new.take_step(LR_CHANGE_STEP)
    assert_equal("an optimizer whose lr was changed and a new optimizer with this lr", changed.params, new.params)


class _Decay(LRScheduler):
    """Divides the lr of each group by the number of the step, from 1."""

    def get_lr(self) -> list[float | Tensor]:
        return [lr * (1 / (1 + self.last_epoch)) for lr in self.base_lrs]


@promise(has_lr, every_engine=False, remedy="let `step` be a method of the class")
def schedulers_can_be_attached(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A scheduler sets the lr of each group, and the steps are those with this lr."""
    scheduled, by_hand = Trajectory(subject, options), Trajectory(subject, options)
    scheduler = _Decay(scheduled.optimizer)
    lrs = [group["lr"] for group in by_hand.optimizer.param_groups]
    for step in range(STEPS):
        for group, lr in zip(by_hand.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * (1 / (1 + step))
        scheduled.take_step(step)
        scheduler.step()
        by_hand.take_step(step)
    assert_equal("steps with a scheduler, and with its lr", scheduled.params, by_hand.params)


@promise(has_lr, every_engine=False, remedy="divide by no lr, and by no sum of lrs that can be 0")
def lr_of_zero_keeps_parameters_finite(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Steps with an lr of 0, as at the start of a warmup, give finite parameters, also in the steps after them."""
    run = Trajectory(subject, options)
    lrs = [group["lr"] for group in run.optimizer.param_groups]
    for step in range(5):
        for group, lr in zip(run.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * 0 if step < 2 else lr
        try:
            run.take_step(step)
        except Exception as error:
            remedy = "accept an lr of 0: a warmup begins with it"
            raise ConformanceError(f"step {step} raised {one_line(error)}; its lr was 0", remedy=remedy) from error
        finite = all(bool(p.isfinite().all()) for p in run.params)
        assert finite, f"step {step} gives parameters that are not finite; the lr was 0 in the steps 0 and 1"


@promise(steps_with_given_gradients, takes_several_groups, every_engine=False, remedy=_READ_GROUPS)
def options_of_groups_take_effect(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A parameter group with another lr or weight_decay takes other steps."""
    shapes = subject.shapes * 2
    half = len(shapes) // 2
    plain = Trajectory(subject, options, shapes=shapes, groups=({},) * len(shapes)).run_steps()
    for option in ("lr", "weight_decay"):
        default = plain.optimizer.param_groups[half].get(option)
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            continue
        value = _value_with_effect(subject, options, option, default)
        if value is None:
            continue
        groups: tuple[dict[str, Any], ...] = ({},) * half + ({option: value},) * half
        run = Trajectory(subject, options, shapes=shapes, groups=groups).run_steps()
        assert max_difference(run.params[half:], plain.params[half:]) > 0, (
            f"a parameter group with {option}={value:.3g} steps as one with {option}={default:.3g}"
        )


def _value_with_effect(
    subject: OptimizerUnderTest, options: Mapping[str, Any], option: str, default: float
) -> float | None:
    """Return a value that changes the steps of a single group; None if the class takes none that does."""
    values = (default / 2 or 0.5,) if option == "lr" else (default * 2 or 0.5, 0.9, 4.0)
    if option not in configurable_arguments(subject.registration):
        return values[0]
    plain = Trajectory(subject, options).run_steps()
    for value in values:
        changed = {**options, option: value}
        if step_error(subject, changed) is None:  # else the class refuses the value
            run = Trajectory(subject, changed).run_steps()
            if max_difference(run.params, plain.params) > 0:
                return value
    return None


@promise(steps_with_given_gradients, remedy=_READ_GROUPS)
def added_groups_are_stepped(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A group that is added later steps as in a separate optimizer; the other groups step as without it."""
    alone = Trajectory(subject, options).run_steps()
    late = Trajectory(subject, options, shapes=subject.fit_shapes(((2, 2),) * 3)[:1])
    late.halve_lr()
    run = Trajectory(subject, options).run_steps(0, LR_CHANGE_STEP + 1)
    added = nn.Parameter(late.initial[0].clone())
    lr = late.optimizer.param_groups[0].get("lr")
    is_named = "param_names" in run.optimizer.param_groups[0]
    params = [("added", added) if is_named else added]
    run.optimizer.add_param_group({"params": params, **({} if lr is None else {"lr": lr})})
    for step in range(LR_CHANGE_STEP + 1, LR_CHANGE_STEP + 1 + RARE_STEPS):
        if step >= STEPS and (subject.is_rule or max_difference([added], late.initial) > 0):
            break
        run.set_gradients(step)
        late.set_gradients(step)
        added.grad = cast(Tensor, late.params[0].grad).clone()
        run.optimizer.step()
        late.optimizer.step()
    if subject.is_rule and not _combines_parameters(cast(RuleOptimizer, run.optimizer)):
        assert_equal("parameters with and without an added group", run.params, alone.params)
        assert_equal("an added group and a separate optimizer", [added], late.params)
    else:
        assert max_difference([added], late.initial) > 0, "the parameters of an added group did not change"


def _combines_parameters(optimizer: RuleOptimizer) -> bool:
    """Whether the rule reduces over several parameters. A class without a rule may combine them too."""
    group = optimizer.param_groups[0]
    settings = dispatch.group_settings(optimizer.engine, group, optimizer._variant(group), optimizer.state_dtype)
    traced = trace(settings.variant, settings.lengths)
    return isinstance(traced, TracedRule) and traced.shared_reductions > 0
