"""Optimizers of pytorch_optimizer whose `step(closure)` or state differs from that of torch's optimizers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytorch_optimizer
import torch
from torch import nn
from torch.optim import Optimizer

from optplug.engines._torch_compat import step_without_hooks


class AdaShift(pytorch_optimizer.AdaShift):  # type: ignore[misc]  # mypy does not follow the import
    """`pytorch_optimizer.AdaShift`, whose queues of gradients keep their lengths in a resumed training.

    Lightning replaces the queues in a loaded state by queues without `maxlen`, when it moves them to the device.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for state in (self.state[p] for p in group["params"] if p in self.state):
                if "grad_queue" in state:
                    state["grad_queue"] = deque(state["grad_queue"], group["keep_num"])
        step = step_without_hooks(pytorch_optimizer.AdaShift)
        return step(self, closure)


class AliG(pytorch_optimizer.AliG):  # type: ignore[misc]
    """`pytorch_optimizer.AliG`, whose closure may compute the gradients too, and not the loss alone."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        evaluate = None if closure is None else torch.enable_grad()(closure)
        step = step_without_hooks(pytorch_optimizer.AliG)
        return step(self, evaluate and (lambda: float(evaluate())))


class GSAM(pytorch_optimizer.GSAM):  # type: ignore[misc]
    """`pytorch_optimizer.GSAM` with a constant `rho`, and with a closure that returns the loss alone.

    Args:
        model: the module that is trained.
        base_optimizer: the class of the optimizer that makes the steps.
        rho: size of the perturbation. Default: 0.05.
        alpha: weight of the surrogate gap, from 0 to 1. Default: 0.4.
        adaptive: whether the perturbation is relative to the parameters. Default: False.
        perturb_eps: a small number in the denominator of the perturbation. Default: 1e-12.
        foreach: whether parameters are processed in batches. Default: None, which means on CUDA.
        hyperparameters: of the base optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        base_optimizer: type[Optimizer],
        rho: float = 0.05,
        alpha: float = 0.4,
        adaptive: bool = False,
        perturb_eps: float = 1e-12,
        foreach: bool | None = None,
        **hyperparameters: Any,
    ) -> None:
        params = [p for p in model.parameters() if p.requires_grad]
        base = base_optimizer(params, **hyperparameters)
        super().__init__(params, base, model, _Constant(rho), alpha, adaptive, perturb_eps, foreach)

    def step(self, closure: Callable[[], Any]) -> Any:
        evaluate = torch.enable_grad()(closure)
        step = step_without_hooks(pytorch_optimizer.GSAM)
        _, loss = step(self, lambda: (None, evaluate()))
        return loss


class _Constant:
    """The schedule of `rho`.

    Args:
        value: the value of each step.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def step(self) -> float:
        """Return the value."""
        return self.value
