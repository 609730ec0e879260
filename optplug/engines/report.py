"""What is reported about engines."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BucketReport:
    """Which engine steps a bucket, and why not a faster one.

    Attributes:
        group: index of the parameter group. engine: the engine's name. reason: why this one.
        tensors, elements: how many. dtype, device: of the parameters.
        ran: True when this was observed in the last step, False when it is what the next step would do.
    """

    group: int
    engine: str
    reason: str
    tensors: int
    elements: int
    dtype: torch.dtype
    device: torch.device
    ran: bool

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        noun = "tensor" if self.tensors == 1 else "tensors"
        return (
            f"group {self.group}: {self.engine} ({self.reason}), "
            f"{self.tensors} {noun}, {self.elements:,} {dtype} elements on {self.device}"
        )
