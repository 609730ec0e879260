"""Classes of other packages, adapted to the definitions and the arguments of optplug's optimizers.

The differences are compensated outside of the step of the reference: by its own options, which may depend on the step,
or by what precedes or follows the step.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import prodigyopt
import pytorch_optimizer
import torch

import optplug


class AdaptedReference:
    """A reference that steps each parameter by an optimizer of its own, because its options depend on the parameter.

    Args:
        groups: the parameter groups.
        options: arguments of the class of optplug with the same name.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        signature = inspect.signature(optplug.get_optimizer(type(self).__name__))
        defaults = {name: p.default for name, p in signature.parameters.items() if name != "params"}
        self.param_groups = [{**defaults, **options, **group} for group in groups]
        self.inner = {p: self.construct(p, group) for group in self.param_groups for p in group["params"]}
        self.state: dict[torch.Tensor, dict[str, Any]] = {}

    def construct(self, p: torch.Tensor, group: dict[str, Any]) -> Any:
        """Construct the optimizer of a parameter."""
        raise NotImplementedError

    def step_parameter(self, p: torch.Tensor, group: dict[str, Any], inner: Any) -> dict[str, Any]:
        """Step a parameter and return its state."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p] = self.step_parameter(p, group, self.inner[p])


class Lamb(AdaptedReference):
    """pytorch_optimizer's Lamb with bias correction, without a limit of the norm, and without eps in the trust ratio.

    With the corrections c1 = 1 - beta1^t and c2 = 1 - beta2^t, the update with bias correction is sqrt(c2) / c1 times
    the update without, if the latter has the eps `eps * sqrt(c2)` and the weight decay `weight_decay * c1 / sqrt(c2)`.
    The product of the update and its trust ratio does not depend on this factor. The reference adds eps to the norm of
    the update in the trust ratio; its learning rate is therefore multiplied by (norm + eps) / norm.
    """

    def construct(self, p: torch.Tensor, group: dict[str, Any]) -> Any:
        decouple, adam = group["decoupled_weight_decay"], not group["adaptive"]
        inner = pytorch_optimizer.Lamb(
            [p], betas=group["betas"], weight_decouple=decouple, adam=adam, adam_debias=True, foreach=False
        )
        inner.clamp = math.inf
        return inner

    def step_parameter(self, p: torch.Tensor, group: dict[str, Any], inner: Any) -> dict[str, Any]:
        (options,) = inner.param_groups
        c1, c2 = (1 - beta ** (options.get("step", 0) + 1) for beta in group["betas"])
        lr, decay, decoupled = group["lr"], group["weight_decay"], group["decoupled_weight_decay"]
        eps = group["eps"] * math.sqrt(c2)
        options |= {"lr": lr, "eps": eps, "weight_decay": decay if decoupled else decay * c1 / math.sqrt(c2)}
        weight_norm, update_norm = self.norms(p, inner)
        factor = 1 + eps / update_norm if group["adaptive"] and weight_norm and update_norm else math.sqrt(c2) / c1
        (options,) = inner.param_groups
        options["lr"] = lr * factor
        if decoupled:  # the reference multiplies it by the learning rate
            options["weight_decay"] = decay / factor
        inner.step()
        return inner.state[p]

    @staticmethod
    def norms(p: torch.Tensor, inner: Any) -> tuple[float, float]:
        """Return the norms of the parameter and of the update in the next step, which is taken and undone."""
        start, saved = p.clone(), copy.deepcopy(inner.state_dict())
        inner.step()
        state = inner.state[p]
        p.copy_(start)
        inner.load_state_dict(saved)
        return float(state["weight_norm"]), float(state["adam_norm"])


class Lars(AdaptedReference):
    """pytorch_optimizer's LARS with eps, for parameters of any number of dimensions.

    The reference uses the trust ratio for matrices only. So it steps a view of the parameter with one column, or
    without the trust ratio a view with one dimension, to which it does not apply weight decay. Eps changes the trust
    ratio by the factor n / (n + eps), where n is the norm of the gradient plus that of the weight decay.
    """

    def construct(self, p: torch.Tensor, group: dict[str, Any]) -> Any:
        view = p.detach().view(-1, 1) if group["adaptive"] else p.detach().view(-1)
        options = {name: group[name] for name in ("momentum", "dampening", "nesterov")}
        return pytorch_optimizer.LARS([view], foreach=False, **options)

    def step_parameter(self, p: torch.Tensor, group: dict[str, Any], inner: Any) -> dict[str, Any]:
        options = inner.param_groups[0]
        (view,) = options["params"]
        lr, decay = group["lr"], group["weight_decay"]
        if group["decoupled_weight_decay"]:
            p.mul_(1 - lr * decay)
            decay = 0.0
        view.grad = p.grad.clone().view_as(view) + (0.0 if group["adaptive"] else decay * view)
        scale = view.grad.norm() + decay * view.norm()
        trust_coefficient = group["trust_coefficient"] * float(scale / (scale + group["eps"])) if scale else 0.0
        options |= {"lr": lr, "weight_decay": decay, "trust_coefficient": trust_coefficient}
        inner.step()
        return {name: value.view_as(p) for name, value in inner.state[view].items()}


def make_prodigy(groups: list[dict[str, Any]], *, decoupled_weight_decay: bool = True, **options: Any) -> Any:
    """prodigyopt's Prodigy. Only the name of an argument differs."""
    return prodigyopt.Prodigy(groups, decouple=decoupled_weight_decay, **options)
