"""Engine `loop`: the rule itself, on one tensor after another. The oracle of the other engines, and differentiable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from optplug.rules.trace import Variant


def step(
    variant: Variant,
    p: Tensor,
    g: Tensor,
    states: Mapping[str, Any],
    hypers: Mapping[str, Any],
    *,
    differentiable: bool = False,
) -> dict[str, Any]:
    """Update `p` and the tensors among `states` in place; return the new scalar states.

    Args:
        states: element-wise states, and scalar states as floats or (capturable, differentiable) as 0-dim tensors.
        hypers: values by name.
        differentiable: autograd records the step; what it saves must not be what is updated.
    """
    inputs = {"p": p, **states}
    if differentiable:
        inputs = {name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    outputs = variant(inputs["p"], g, inputs, hypers)
    scalars = {name: outputs.pop(name) for name in variant.scalars}
    changed = {name: value for name, value in outputs.items() if value is not inputs[name]}
    for name, value in changed.items():
        if any(value is x for x in inputs.values()):  # one state becomes another, which may be written before
            changed[name] = value.clone()
    for name, value in changed.items():
        target = p if name == "p" else states[name]
        if isinstance(value, Tensor):
            target.copy_(value)
        else:
            target.fill_(value)
    return scalars
