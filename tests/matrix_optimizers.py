"""Optimizers of matrices for tests: one of a third party, and torch's Muon."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from optplug.registry.specs import OptimizerSpec


class Orthogonal(Optimizer):
    """A third-party optimizer of matrices: the update is the orthogonal factor of the momentum."""

    capabilities = frozenset({"matrix_only"})

    def __init__(
        self, params: Any, lr: float = 0.02, weight_decay: float = 0.1, momentum: float = 0.9, flatten: bool = False
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "flatten": flatten}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if any(p.ndim < 2 for p in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError("Orthogonal takes matrices only")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    matrices = m.flatten(1) if group["flatten"] else m
                    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_((u @ v).view_as(p), alpha=group["lr"])


ORTHOGONAL = OptimizerSpec("orthogonal", Orthogonal, capabilities={"matrix_only"})
MATRIX_OPTIMIZERS = [ORTHOGONAL]
if hasattr(torch.optim, "Muon"):  # torch 2.9
    MATRIX_OPTIMIZERS.append(OptimizerSpec("torch_muon", torch.optim.Muon, capabilities={"matrix_only"}))
