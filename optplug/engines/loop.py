"""Engine `loop`: runs the rule itself, on one parameter after another.

It is the reference for the other engines, and the only engine that autograd can record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from optplug.rules.trace import RuleVariant


def step(
    variant: RuleVariant,
    p: Tensor,
    g: Tensor,
    states: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    *,
    differentiable: bool = False,
) -> dict[str, Any]:
    """Update `p` and the element-wise states in place, and return the new scalar states by name.

    Args:
        variant: the rule variant.
        p: the parameter.
        g: the gradient.
        states: the states by name: element-wise states as tensors, scalar states as floats or, for `capturable` and
            `differentiable`, as 0-dim tensors.
        hyperparameters: the values by name.
        differentiable: whether autograd records the step. The rule then runs on clones, because autograd saves its
            inputs and they must not be modified in place.
    """
    inputs = {"p": p, **states}
    if differentiable:
        inputs = {name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    outputs = variant(inputs["p"], g, inputs, hyperparameters)
    scalars = {name: outputs.pop(name) for name in variant.scalar_states}
    changed = {name: value for name, value in outputs.items() if value is not inputs[name]}
    for name, value in changed.items():
        if any(value is x for x in inputs.values()):  # another input, which may be overwritten before it is copied
            changed[name] = value.clone()
    for name, value in changed.items():
        target = p if name == "p" else states[name]
        if isinstance(value, Tensor):
            target.copy_(value)
        else:
            target.fill_(value)
    return scalars
