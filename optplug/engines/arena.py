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
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, elements: int, dtype: torch.dtype) -> Tensor:
        """Return a vector with undefined values. It is valid until `reset`, or as long as it is referenced.

        Args:
            elements: the number of elements.
            dtype: the dtype.
        """
        size = elements * dtype.itemsize
        if self._used + size > len(self._memory):
            # Vectors that are in use keep the old memory alive.
            self._memory = torch.empty(self._used + size, dtype=torch.uint8, device="cpu")
            self._used = 0
        vector = self._memory[self._used : self._used + size].view(dtype)
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return vector

    def reset(self) -> None:
        """Declare all vectors free."""
        self._used = 0
