"""The prelude of every rule, written in the rule language: `maximize` and both kinds of weight decay.

The prelude depends on static choices only. A weight decay of 0 omits the decay; multiplying by 0 would turn inf into
NaN.
"""

from __future__ import annotations

from typing import Any, Literal

DecayKind = Literal["none", "coupled", "decoupled"]


def prelude(
    p: Any, g: Any, *, weight_decay: Any, decay_factor: Any, maximize: bool, decay_kind: DecayKind
) -> tuple[Any, Any]:
    """Return the parameter and the gradient that are passed to the rule.

    Coupled weight decay adds the gradient of an L2 penalty to the gradient. Decoupled weight decay multiplies the
    parameter by a factor below 1 (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
    https://arxiv.org/abs/1711.05101).

    Args:
        p: the parameter.
        g: the gradient.
        weight_decay: the coefficient of coupled weight decay.
        decay_factor: `1 - lr * weight_decay`, for decoupled weight decay. The caller computes it, because a float32
            tensor `lr` rounds it to float32, as in torch.
        maximize: ascend instead of descend.
        decay_kind: which weight decay to apply.
    """
    if maximize:
        g = -g
    if decay_kind == "coupled":
        g = g + weight_decay * p
    if decay_kind == "decoupled":
        p = p * decay_factor
    return p, g
