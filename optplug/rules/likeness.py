"""Whether tensors are still what they were, so that what was decided about them need not be decided anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Likeness:
    """What some dense tensors are: type, dtype, device, layout, shape, strides, conjugate and negative bits.

    It knows the facts and holds none of the tensors. Addresses are no part of it: they are read in each step.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        shapes = [list(t.shape) for t in tensors]
        strides = [list(t.stride()) for t in tensors]
        # torch.compile's own test of its inputs: in C++, a fraction of the time that asking each tensor takes. Should
        # a version of torch lack it, nothing holds, which is only slower.
        guards: Any = getattr(torch._C._dynamo.guards, "TensorGuards", None)
        self._guards = guards and guards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides)

    def holds(self, tensors: Sequence[Any]) -> bool:
        """Whether these are the same number of tensors, each like its predecessor."""
        return self._guards is not None and bool(self._guards.check(*tensors))
