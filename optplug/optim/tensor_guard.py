"""Whether tensors are still what they were, so that what was decided about them need not be decided anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from optplug.engines._torch_compat import tensor_guards


class TensorGuard:
    """What some dense tensors are: type, dtype, device, layout, shape, strides, conjugate and negative bits.

    It knows the facts and holds none of the tensors. Addresses are no part of it: they are read in each step.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # In C++: a fraction of the time that comparing each tensor takes in Python. Without it nothing is cached.
        self._guards = tensor_guards(tensors)

    def holds(self, tensors: Sequence[Any]) -> bool:
        """Whether these are the same number of tensors, each like its predecessor."""
        return self._guards is not None and bool(self._guards.check(*tensors))
