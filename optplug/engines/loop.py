"""Engine `loop`: the rule itself, on one tensor after another. The oracle of the other engines, and differentiable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from optplug.rules.trace import Variant


def step(variant: Variant, p: Tensor, g: Tensor, states: Mapping[str, Any], hypers: Mapping[str, Any]) -> dict[str, Any]:
    """Update `p` and the tensors among `states` in place; return the new scalar states.

    Args:
        states: element-wise states, and scalar states as floats or (capturable, differentiable) as 0-dim tensors.
        hypers: values by name.
    """
    outputs = variant(p, g, states, hypers)
    targets = {"p": p, **states}
    scalars = {}
    for name, value in outputs.items():
        if name in variant.scalars:
            scalars[name] = value
        elif value is not targets[name]:
            targets[name].copy_(value)
    return scalars
