"""`TensorGuard`: a check whether tensors still have the properties that earlier decisions depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from optplug.engines._torch_compat import make_torch_guards


class TensorGuard:
    """The properties of dense tensors: type, dtype, device, layout, shape, strides, conjugate and negative bits.

    The guard stores the properties and holds no tensors. Addresses are not included: they are read in each step.

    Args:
        tensors: the tensors whose properties are stored.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # torch's check in C++ is several times faster than a comparison in Python. Without it nothing is cached.
        self._guards = make_torch_guards(tensors)

    def matches(self, tensors: Sequence[Any]) -> bool:
        """Whether there are as many tensors as before, and each has the stored properties."""
        return self._guards is not None and bool(self._guards.check(*tensors))
