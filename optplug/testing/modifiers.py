"""The modifiers of `RuleOptimizer` by their definition, computed with torch around an optimizer without them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.rules.trace import rule_signature
from optplug.testing.trajectory import SHAPES, OptimizerUnderTest, Trajectory, seeded_randn

MODIFIERS: Mapping[str, Any] = {"clip_value": 1.0, "clip_norm": 0.9, "agc": 0.2, "cautious": True}
"""Values that change some of the gradients and updates of `modified_run`, and not all."""


def modified_run(subject: OptimizerUnderTest, options: Mapping[str, Any], modifiers: Mapping[str, Any]) -> Trajectory:
    """Return the steps of an optimizer with modifiers."""
    return Trajectory(subject, {**options, **modifiers}, params=_params(subject)).run_steps()


def run_by_definition(
    subject: OptimizerUnderTest, options: Mapping[str, Any], modifiers: Mapping[str, Any]
) -> Trajectory:
    """Return the steps of an optimizer without modifiers, with changed gradients and changed updates."""
    run = Trajectory(subject, options, params=_params(subject))
    given = run.gradient

    def gradient(step: int, index: int) -> Tensor | None:
        g = given(step, index)
        return None if g is None else _clip(run.params[index].detach(), g, modifiers)

    run.gradient = gradient  # type: ignore[method-assign]
    if modifiers.get("cautious"):
        received: list[tuple[Tensor, Tensor, Tensor]] = []
        optimizer = cast(RuleOptimizer, run.optimizer)
        optimizer.register_step_pre_hook(lambda *_: received.extend(_received_by_the_rule(optimizer)))
        optimizer.register_step_post_hook(lambda *_: _omit_ascending_updates(received))
    return run.run_steps()


def _params(subject: OptimizerUnderTest) -> list[Tensor]:
    """Return parameters: the gradients of a matrix and of zeros are limited by agc, those of large ones are not."""
    shapes = map(subject.fit_shape, SHAPES)
    matrix, vector, scalar, empty = (seeded_randn(shape, i) for i, shape in enumerate(shapes))
    zeros = torch.zeros(subject.fit_shape((4,)), dtype=torch.float64)
    params = (matrix, 10 * vector, 17 * scalar.sign(), empty, zeros)
    return [p.requires_grad_() for p in params]


def _clip(p: Tensor, g: Tensor, modifiers: Mapping[str, Any]) -> Tensor:
    """Return the gradient after the modifiers that limit it."""
    if "clip_value" in modifiers:
        g = g.clamp(-modifiers["clip_value"], modifiers["clip_value"])
    if "clip_norm" in modifiers:
        g = _limit_norm(g, modifiers["clip_norm"])
    if "agc" in modifiers:
        g = _limit_norm(g, modifiers["agc"] * max(_norm(p), 1e-3))
    return g


def _norm(t: Tensor) -> float:
    return math.sqrt(sum(x * x for x in t.flatten().tolist()))


def _limit_norm(g: Tensor, limit: float) -> Tensor:
    norm = _norm(g)
    return g * (limit / norm) if norm > limit else g


def _received_by_the_rule(optimizer: RuleOptimizer) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return for each parameter that is stepped: the tensor, and parameter and gradient that the rule receives."""
    own = rule_signature(type(optimizer).rule).hyperparameters
    received = []
    for group in optimizer.param_groups:
        decay = group.get("weight_decay", 0) if "weight_decay" not in own else 0
        for p in group["params"]:
            if p.grad is None:
                continue
            old, g = p.detach().clone(), p.grad.to_dense()
            g = -g if group["maximize"] else g
            if decay and group["decoupled_weight_decay"]:
                old = old * (1 - group["lr"] * decay)
            elif decay:
                g = g + decay * old
            received.append((p.detach(), old, g))
    return received


def _omit_ascending_updates(received: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    for p, old, g in received:
        p.copy_(torch.where((old - p) * g > 0, p, old))
    received.clear()
