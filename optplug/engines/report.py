"""`BucketReport`: the engine of a bucket of parameters, and why it was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BucketReport:
    """Which engine steps a bucket of parameters, and why.

    Attributes:
        group: the index of the parameter group.
        engine: the name of the engine.
        reason: why this engine was chosen.
        tensors: the number of parameters in the bucket.
        elements: the number of elements of these parameters.
        dtype: the dtype of the parameters.
        device: the device of the parameters.
        bytes_per_element: the bytes that the engine reads and writes for each element of a parameter. None where this
            is unknown, as for engine `loop`. A fused kernel reads each input and writes each output of a segment once.
        segments: how many times the engine passes over the memory of the parameters. None where this is unknown, as for
            the engines `loop` and `foreach`.
        matrix_functions: the names of the matrix functions that the engine calls; empty for engine `loop`.
        ran: True if the last step used this engine. False if this is a prediction for the next step.
    """

    group: int
    engine: str
    reason: str
    tensors: int
    elements: int
    dtype: torch.dtype
    device: torch.device
    bytes_per_element: float | None
    segments: int | None
    matrix_functions: tuple[str, ...]
    ran: bool

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        traffic = "" if self.bytes_per_element is None else f", {self.bytes_per_element:g} bytes each"
        if self.segments is not None and self.segments > 1:
            traffic += f" in {self.segments} segments"
        if self.matrix_functions:
            traffic += f", matrix: {', '.join(self.matrix_functions)}"
        noun = "tensor" if self.tensors == 1 else "tensors"
        return (
            f"group {self.group}: {self.engine} ({self.reason}), "
            f"{self.tensors} {noun}, {self.elements:,} {dtype} elements on {self.device}{traffic}"
        )
