"""The modifiers of every rule, written in the rule language: the prelude runs before the rule, the postlude after it.

Which modifiers apply is a static choice; their numbers are hyperparameters. A modifier that does not apply adds nothing
to the graph. In particular, a weight decay of 0 omits the decay: multiplying by 0 would turn inf into NaN.

NaN propagates through every modifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from optplug.rules.ops import maximum, minimum, norm, sign, where

DecayKind = Literal["none", "coupled", "decoupled"]

MIN_PARAMETER_NORM = 1e-3
"""The norm that `agc` assumes for parameters with a smaller norm, so that parameters of zeros can be trained."""


def clip_value(p: Any, g: Any, limit: Any) -> Any:
    """Limit each element of the gradient to the range from -limit to limit."""
    return minimum(maximum(g, -limit), limit)


def clip_norm(p: Any, g: Any, limit: Any) -> Any:
    """Scale the gradient to the norm `limit` if its norm is larger: g * min(1, limit / norm(g))."""
    return g * (limit / maximum(norm(g), limit))


def agc(p: Any, g: Any, ratio: Any) -> Any:
    """Adaptive gradient clipping: limit the norm of the gradient to `ratio` times the norm of the parameter.

    Source: Brock, De, Smith, Simonyan, High-Performance Large-Scale Image Recognition Without Normalization, 2021,
    https://arxiv.org/abs/2102.06171. There each row of a matrix has its own ratio, here each parameter.
    """
    return clip_norm(p, g, ratio * maximum(norm(p), MIN_PARAMETER_NORM))


CLIPS = {"clip_value": clip_value, "clip_norm": clip_norm, "agc": agc}
"""The modifiers that limit the gradient, by the name of their hyperparameter, in the order of their application."""

MODIFIER_KEYS = (*CLIPS, "cautious")
"""The options of the modifiers that torch does not have."""


def prelude(
    p: Any,
    g: Any,
    hyperparameters: Mapping[str, Any],
    *,
    maximize: bool,
    clips: Sequence[str],
    decay_kind: DecayKind,
    decay_factor: Any,
) -> tuple[Any, Any]:
    """Return the parameter and the gradient that are passed to the rule.

    Coupled weight decay adds the gradient of an L2 penalty to the gradient. Decoupled weight decay multiplies the
    parameter by a factor below 1 (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
    https://arxiv.org/abs/1711.05101).

    Args:
        p: the parameter.
        g: the gradient.
        hyperparameters: the values by name.
        maximize: ascend instead of descend.
        clips: which of `CLIPS` to apply, in their order.
        decay_kind: which weight decay to apply.
        decay_factor: `1 - lr * weight_decay`, for decoupled weight decay. The caller computes it, because a float32
            tensor `lr` rounds it to float32, as in torch.
    """
    if maximize:
        g = -g
    for name in clips:
        g = CLIPS[name](p, g, hyperparameters[name])
    if decay_kind == "coupled":
        g = g + hyperparameters["weight_decay"] * p
    if decay_kind == "decoupled":
        p = p * decay_factor
    return p, g


def postlude(p: Any, g: Any, new_p: Any, *, cautious: bool) -> Any:
    """Return the new parameter.

    A cautious step omits the update of the elements where it does not descend, that is, where update and gradient have
    the same sign or one of them is 0 (Liang et al., Cautious Optimizers: Improving Training with One Line of Code,
    2024, https://arxiv.org/abs/2411.16085). There the other elements are scaled by the inverse of their proportion;
    this needs one more pass over memory and is left out.

    Args:
        p: the parameter that was passed to the rule.
        g: the gradient that was passed to the rule.
        new_p: the parameter that the rule returned.
        cautious: whether to omit updates that do not descend.
    """
    # The sign, because a product of two small numbers may be rounded to 0. A comparison with NaN is false.
    return where(sign(g) * (p - new_p) <= 0, p, new_p) if cautious else new_p
