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
        bytes_per_element: what the engine reads and writes for each element of a parameter; None where that is unknown,
            as in engine `loop`. A fused kernel moves each input and each output once.
        ran: True when this was observed in the last step, False when it is what the next step would do.
    """

    group: int
    engine: str
    reason: str
    tensors: int
    elements: int
    dtype: torch.dtype
    device: torch.device
    bytes_per_element: float | None
    ran: bool

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        moved = "" if self.bytes_per_element is None else f", {self.bytes_per_element:g} bytes each"
        noun = "tensor" if self.tensors == 1 else "tensors"
        return (
            f"group {self.group}: {self.engine} ({self.reason}), "
            f"{self.tensors} {noun}, {self.elements:,} {dtype} elements on {self.device}{moved}"
        )
