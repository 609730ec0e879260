"""The optimizer of torchao that keeps the state of another optimizer on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer
from torchao.optim import CPUOffloadOptimizer as _CPUOffloadOptimizer

from optplug.errors import ConfigError


class CPUOffloadOptimizer(_CPUOffloadOptimizer):  # type: ignore[misc]  # torchao has no type hints
    """`torchao.optim.CPUOffloadOptimizer` with the attributes of an optimizer of torch, which Lightning requires.

    Args:
        params: parameters on a GPU, or parameter groups.
        optimizer_class: the class of the optimizer.
        options: further arguments, and hyperparameters of the optimizer.

    Raises:
        ConfigError: no GPU is available.
    """

    def __init__(self, params: Any, optimizer_class: type[Optimizer] = torch.optim.AdamW, **options: Any) -> None:
        if not (torch.cuda.is_available() or torch.xpu.is_available()):
            raise ConfigError(
                "cpu_offload_optimizer of torchao needs a GPU: without one, give its base as the optimizer"
            )
        super().__init__(params, optimizer_class, **options)
        Optimizer.__setstate__(self, {"defaults": {}})
