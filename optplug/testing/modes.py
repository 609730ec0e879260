"""Promises of optimizers with the methods `train()` and `eval()`."""

from __future__ import annotations

from typing import Any, cast

from optplug.testing.checks import assert_close, assert_equal
from optplug.testing.properties import has_modes, promise
from optplug.testing.steps import minimized_quadratic
from optplug.testing.trajectory import INTERRUPTIONS, OptimizerUnderTest, Trajectory


@promise(has_modes, remedy="let eval() skip parameters that have no state yet")
def eval_before_the_first_step_has_no_effect(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """train() and eval() before the first step change nothing: a trainer validates before it trains."""
    run = Trajectory(subject, options)
    for mode in ("eval", "train"):
        getattr(run.optimizer, mode)()
        assert_equal(f"parameters before and after {mode}() without a step", run.params, run.initial)
    uninterrupted = Trajectory(subject, options).run_steps()
    assert_equal("steps with and without eval() before them", run.run_steps().params, uninterrupted.params)


@promise(has_modes, remedy="let eval() and train() be inverses, and have no effect if the mode is already set")
def train_reverts_eval(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """eval() and train() during the training restore the parameters, and the training continues as without them."""
    uninterrupted = Trajectory(subject, options).run_steps()
    run = Trajectory(subject, options)
    optimizer = cast(Any, run.optimizer)
    for start, stop in INTERRUPTIONS:
        trained = [p.detach().clone() for p in run.run_steps(start, stop).params]
        size = max(run.distance_moved, *(float(p.abs().max()) for p in trained if p.numel()))
        optimizer.eval()
        evaluated = [p.detach().clone() for p in run.params]
        optimizer.eval()
        assert_equal("eval() twice and once", run.params, evaluated)
        for times in ("once", "twice"):
            optimizer.train()
            assert_close(f"parameters before eval() and after train() {times}", run.params, trained, size)
    assert_close(
        "steps with and without eval() between them", run.run_steps(stop).params, uninterrupted.params, size, 1e-9
    )


@promise(has_modes, remedy="check what eval() makes of the parameters")
def eval_parameters_decrease_the_loss(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """After 30 steps that minimize x², x² of the parameters for evaluation is less than at the start."""
    run, start, trained = minimized_quadratic(subject, options)
    cast(Any, run.optimizer).eval()
    evaluated = float((run.params[0].detach() ** 2).sum())
    assert evaluated < start, (
        f"30 steps on x² change it from {start:.6g} to {trained:.6g}, and after eval() it is {evaluated:.6g}"
    )
