"""`Arena`: memory for the temporaries of a step."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 64
"""The alignment of temporaries in bytes: a cache line."""


class Arena:
    """Memory for temporaries that all buckets and all steps of an optimizer use again.

    Fresh memory is slow: the operating system clears each page when it is first written.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._taken = 0

    def take(self, elements: int, dtype: torch.dtype) -> Tensor:
        """Return a vector with undefined values. It is valid until `reset`.

        Args:
            elements: the number of elements.
            dtype: the dtype.
        """
        start, size = self._taken, elements * dtype.itemsize
        self._taken += -(-size // ALIGNMENT) * ALIGNMENT
        if self._taken > len(self._memory):  # the first time; `reset` then provides enough memory
            return torch.empty(elements, dtype=dtype, device="cpu")
        return self._memory[start : start + size].view(dtype)

    def reset(self) -> None:
        """Declare all vectors free."""
        if self._taken > len(self._memory):
            self._memory = torch.empty(self._taken, dtype=torch.uint8, device="cpu")
        self._taken = 0
