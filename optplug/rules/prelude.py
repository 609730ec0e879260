"""What comes before every rule, in the rule's own language: `maximize` and both weight decays.

Both are static choices: a decay of 0 is no decay, not a product with 0, which would turn inf into NaN.
"""

from __future__ import annotations

from typing import Any, Literal

Decay = Literal["none", "coupled", "decoupled"]


def prelude(p: Any, g: Any, *, weight_decay: Any, shrink: Any, maximize: bool, decay: Decay) -> tuple[Any, Any]:
    """The parameter and gradient that the rule sees.

    `shrink` is `1 - lr * weight_decay`, from outside: a float32 tensor as lr rounds it to float32, as torch does.

    Coupled decay adds an L2 penalty to the gradient; decoupled decay shrinks the parameter (Loshchilov and Hutter,
    Decoupled Weight Decay Regularization, 2019, https://arxiv.org/abs/1711.05101).
    """
    if maximize:
        g = -g
    if decay == "coupled":
        g = g + weight_decay * p
    if decay == "decoupled":
        p = p * shrink
    return p, g
