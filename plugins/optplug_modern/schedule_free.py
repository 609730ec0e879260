"""What Schedule-Free SGD and Schedule-Free AdamW have in common: the schedule of a parameter group, and two modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from optplug import Params, RuleOptimizer
from optplug.errors import HyperparameterError, ModeError
from optplug.ops import maximum, minimum
from optplug.optim.options import OptionsWithoutDecay
from optplug.optim.ranges import Range, at_least

SMALLEST = 2.0**-1022
"""The smallest normal float64."""


def averaging(lr: Any, warmup_steps: Any, r: Any, weight_lr_power: Any, k: Any, lr_max: Any, weight_sum: Any) -> Any:
    """Return the learning rate of step `k + 1`, the weight of its z in the average, and the new `lr_max`, `weight_sum`.

    The arguments are numbers, tensors or symbols of a trace.
    """
    lr = lr * minimum((k + 1) / maximum(warmup_steps, 1), 1)
    lr_max = maximum(lr_max, lr)
    weight = (k + 1) ** r * lr_max**weight_lr_power
    weight_sum = weight_sum + weight
    return lr, weight / maximum(weight_sum, SMALLEST), lr_max, weight_sum  # weights of 0 average nothing


class ScheduleFree(RuleOptimizer):
    """Base class of the Schedule-Free optimizers.

    The keys `k`, `weight_sum`, `lr_max` and `scheduled_lr` of a parameter group are its schedule, which each step
    continues; `train_mode` is its mode. They are those of the package schedulefree.
    """

    capabilities = frozenset({"complex", "modes"})
    ranges: ClassVar[Sequence[Range]] = (
        at_least(0, "warmup_steps", whole=True),
        at_least(0, "r"),
        at_least(0, "weight_lr_power"),
    )
    exceptions: ClassVar[Mapping[str, str]] = {
        "parameters_have_their_own_step_count": "warmup and average count the steps of the parameter group"
    }

    def __init__(self, params: Params, hyperparameters: dict[str, Any], **options: Unpack[OptionsWithoutDecay]) -> None:
        schedule = dict(k=0, train_mode=True, weight_sum=0.0, lr_max=-1.0, scheduled_lr=0.0)
        super().__init__(params, {**hyperparameters, **schedule}, **options)

    def interpolation(self, group: Mapping[str, Any]) -> float:
        """Return the weight of the average x in y, the parameters in train mode."""
        raise NotImplementedError

    def check_options(self, options: dict[str, Any]) -> None:
        if options["capturable"]:
            message = "capturable=True is not supported: the schedule consists of numbers in the parameter groups"
            raise HyperparameterError(message, argument="capturable")

    def train(self) -> None:
        """Set the parameters to y, at which gradients are computed. Has no effect in train mode."""
        self._set_mode(train=True)

    def eval(self) -> None:
        """Set the parameters to the average x, to evaluate and save the model. Has no effect in eval mode."""
        self._set_mode(train=False)

    @torch.no_grad()
    def _set_mode(self, *, train: bool) -> None:
        for group in self.param_groups:
            beta = self.interpolation(group)
            params = [p for p in group["params"] if "z" in self.state.get(p, {})]
            if params and group["train_mode"] != train:  # y = z + beta * (x - z)
                z = [self.state[p]["z"].to(p.device, p.dtype) for p in params]
                torch._foreach_lerp_(params, z, 1 - beta if train else 1 - 1 / beta)
            group["train_mode"] = train

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. Arguments, result and errors: see `RuleOptimizer.step`.

        Raises:
            ModeError: the optimizer is in eval mode.
        """
        if not all(group["train_mode"] for group in self.param_groups):
            raise ModeError(
                f"{type(self).__name__}.step() in eval mode: call train() of the optimizer before the training, and "
                "eval() before an evaluation and before a checkpoint is saved"
            )
        return super().step(closure)

    def _after_step(self) -> None:
        for group in self.param_groups:
            lr = group["lr"]
            if isinstance(lr, Tensor):
                lr = lr.reshape(()) if group["differentiable"] else float(lr)
            settings = (group[key] for key in ("warmup_steps", "r", "weight_lr_power", "k", "lr_max", "weight_sum"))
            group["scheduled_lr"], _, group["lr_max"], group["weight_sum"] = averaging(lr, *settings)
            group["k"] += 1
