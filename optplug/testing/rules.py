"""Promises of a `RuleOptimizer`: its engines, modifiers and checked options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from optplug.errors import HyperparameterError
from optplug.optim.ranges import declared_ranges
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.testing.checks import (
    assert_close,
    assert_equal,
    case_label,
    dtype_name,
    max_difference,
    save_and_load,
    state_tensors,
)
from optplug.testing.modifiers import MODIFIERS, modified_run, run_by_definition
from optplug.testing.properties import (
    has_common_weight_decay,
    has_option,
    is_rule,
    modifier_obstacle,
    parameter,
    promise,
    steps_with_given_gradients,
    takes_modifiers,
    with_auto_as_fallback,
)
from optplug.testing.trajectory import DTYPES, STEPS, ULPS_PER_STEP, OptimizerUnderTest, Trajectory


@promise(is_rule)
def engine_agrees_with_loop(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """For each dtype, the result is close to engine `loop` in float64 with the same rounded inputs."""
    for dtype in DTYPES:
        run = Trajectory(subject, options, dtype=dtype).run_steps()
        oracle = Trajectory(subject, {**options, "engine": "loop"}, rounded=dtype).run_steps()
        size = max(float(p.detach().abs().max()) for p in oracle.params if p.numel())
        unit = torch.finfo(dtype).eps * (size + oracle.distance_moved)
        difference = max_difference(run.params, oracle.params) / unit
        assert difference <= ULPS_PER_STEP * STEPS, (
            f"in {dtype_name(dtype)} the difference from engine loop in float64 is {difference:.3g} units in the last "
            f"place after {STEPS} steps, allowed are {ULPS_PER_STEP * STEPS:.3g}"
        )


@promise(is_rule)
def engine_report_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """engine_report() has the requested engine and all parameters that were stepped."""
    run = Trajectory(subject, options)
    optimizer = cast(RuleOptimizer, run.optimizer)
    for ran in (False, True):
        reports = optimizer.engine_report()
        engines = sorted({report.engine for report in reports})
        assert engines == [options["engine"]], (
            f"engine_report() has the engines {engines}, requested was {options['engine']!r}"
        )
        assert {report.ran for report in reports} == {ran}, f"engine_report() has ran={not ran}, it must be ran={ran}"
        with_gradient = sum(run.gradient(0, i) is not None for i in range(len(run.params))) if ran else len(run.params)
        tensors = sum(report.tensors for report in reports)
        assert tensors == with_gradient, f"engine_report() has {tensors} tensors, it must be {with_gradient}"
        run.run_steps(0, 1)


@promise(is_rule, steps_with_given_gradients, has_option("weight_decay"), has_common_weight_decay)
def weight_decay_matches_formula(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """weight_decay is the L2 penalty, or with decoupled_weight_decay a factor of the parameter."""
    decay = 0.25
    decayed = Trajectory(subject, {**options, "weight_decay": decay}).run_steps()
    by_hand = Trajectory(subject, {**options, "weight_decay": 0.0})
    group = by_hand.optimizer.param_groups[0]
    decoupled, sign = bool(group.get("decoupled_weight_decay")), -1 if group["maximize"] else 1
    given = by_hand.gradient

    def gradient(step: int, index: int) -> Tensor | None:
        g, p = given(step, index), by_hand.params[index].detach()
        if g is not None and decoupled:
            p.mul_(1 - group["lr"] * decay)
        return g if g is None or decoupled else g + sign * decay * p

    by_hand.gradient = gradient  # type: ignore[method-assign]
    by_hand.run_steps()
    formula = "p scaled by 1 - lr * weight_decay first" if decoupled else "weight_decay * p added to the gradient"
    assert_close(f"weight_decay={decay} and {formula}", decayed.params, by_hand.params, decayed.distance_moved)


def _check_modifiers(subject: OptimizerUnderTest, options: dict[str, Any], *names: str) -> None:
    """Compare an optimizer with some modifiers with their definition."""
    modifiers = {name: MODIFIERS[name] for name in names}
    run = with_auto_as_fallback(lambda options: modified_run(subject, options, modifiers), options)
    by_definition = run_by_definition(subject, options, modifiers)
    assert_close(
        f"{case_label(modifiers)} and its definition", run.params, by_definition.params, by_definition.distance_moved
    )
    states, expected = state_tensors(run.optimizer), state_tensors(by_definition.optimizer)
    size = max_difference(expected, [torch.zeros_like(t) for t in expected])
    assert_close(f"the states with {case_label(modifiers)} and by its definition", states, expected, size)


@promise(is_rule, steps_with_given_gradients, takes_modifiers("clip_value"))
def clip_value_matches_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The step is that of a gradient whose elements are limited."""
    _check_modifiers(subject, options, "clip_value")


@promise(is_rule, steps_with_given_gradients, takes_modifiers("clip_norm"))
def clip_norm_matches_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The step is that of a gradient whose norm is limited."""
    _check_modifiers(subject, options, "clip_norm")


@promise(is_rule, steps_with_given_gradients, takes_modifiers("agc"))
def agc_matches_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The step is that of a gradient whose norm is limited in proportion to that of the parameter."""
    _check_modifiers(subject, options, "agc")


@promise(is_rule, steps_with_given_gradients, takes_modifiers("cautious"))
def cautious_matches_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The updates that do not descend are omitted."""
    _check_modifiers(subject, options, "cautious")


@promise(is_rule, steps_with_given_gradients, takes_modifiers())
def all_modifiers_match_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The modifiers are applied in the documented order."""
    _check_modifiers(subject, options, *(name for name in MODIFIERS if not modifier_obstacle(subject, name)))


@promise(is_rule)
def state_dtype_is_kept(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """bfloat16 parameters have float32 states, also after load_state_dict."""
    options = {**options, "state_dtype": torch.float32}
    run = Trajectory(subject, options, dtype=torch.bfloat16).run_steps(0, 5)
    other = Trajectory(subject, options, params=[p.detach().clone().requires_grad_() for p in run.params])
    other.optimizer.load_state_dict(save_and_load(run.optimizer.state_dict()))
    other.dtype = other.rounded = torch.bfloat16
    for when, optimizer in (("", run.optimizer), (" after load_state_dict", other.optimizer)):
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    assert value.dtype == torch.float32, f"{name} is {dtype_name(value.dtype)}{when}, must be float32"
    assert_equal("resumed and uninterrupted", other.run_steps(5).params, run.run_steps(5).params)


@promise(is_rule, every_engine=False)
def invalid_options_are_rejected(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A misspelt option and an invalid lr raise a HyperparameterError, in the constructor and in added groups."""
    run = Trajectory(subject, options)
    misspelt = run.optimizer.defaults.copy()
    for name in misspelt:
        if len(name) < 4:  # too short: a misspelling of it is not similar enough
            continue
        wrong = name[:1] + name[2] + name[1] + name[3:] if name[1] != name[2] else name + "x"
        for where, act in _ways_to_add_group(subject, options, {wrong: 0.1}):
            message = _hyperparameter_error(act)
            assert message is not None, f"{where} accepts the unknown option {wrong!r}"
            assert repr(name) in message, f"{where} rejects {wrong!r}, but the message lacks {name!r}: {message}"
    start = declared_ranges(subject.cls)["lr"].message_start
    for lr in (-1.0, math.nan, math.inf, -math.inf):
        for where, act in _ways_to_add_group(subject, options, {"lr": lr}):
            message = _hyperparameter_error(act)
            assert message is not None, f"{where} accepts lr={lr}"
            assert message.startswith(f"{start}: "), (
                f"{where} rejects lr={lr}, but the message does not begin with '{start}: ': {message}"
            )


def _hyperparameter_error(act: Callable[[], object]) -> str | None:
    """Call a function and return the message of a HyperparameterError; None if it raises none."""
    try:
        act()
    except HyperparameterError as error:
        return str(error)
    return None


def _ways_to_add_group(
    subject: OptimizerUnderTest, options: Mapping[str, Any], group: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the ways to pass a parameter group to an optimizer: a description, and a function that does it."""
    yield (
        "a group of the constructor",
        lambda: subject.build([{"params": [parameter(subject)], **group}], options),
    )
    optimizer = subject.build([parameter(subject)], options)
    yield (
        "add_param_group",
        lambda: optimizer.add_param_group({"params": [parameter(subject)], **group}),
    )
