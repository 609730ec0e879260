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
    scalars = {name: outputs.pop(name) for name in variant.scalars}
    targets = {name: p if name == "p" else states[name] for name in outputs}
    changed = {name: value for name, value in outputs.items() if value is not targets[name]}
    for name, value in changed.items():
        if any(value is target for target in targets.values()):  # one state becomes another, which is written as well
            changed[name] = value.clone()
    for name, value in changed.items():
        if isinstance(value, Tensor):
            targets[name].copy_(value)
        else:
            targets[name].fill_(value)
    return scalars
