"""Classes of other packages, adapted to the definitions and the arguments of optplug's optimizers.

The differences are compensated outside of the step of the reference: by its own options, which may depend on the step,
or by what precedes or follows the step.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import sys
from typing import Any
from unittest import mock

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


class Muon(AdaptedReference):
    """torch's Muon on a view of the parameter: on each matrix of a stack, or on the flattened parameter.

    Without bfloat16, its conversion to bfloat16 is replaced by a copy.
    """

    def construct(self, p: torch.Tensor, group: dict[str, Any]) -> Any:
        matrices = [p.detach().flatten(1)] if group["flatten"] else list(p.detach().view(-1, *p.shape[-2:]))
        options = {name: group[name] for name in inspect.signature(torch.optim.Muon).parameters if name != "params"}
        return torch.optim.Muon(matrices, **options)

    def step_parameter(self, p: torch.Tensor, group: dict[str, Any], inner: Any) -> dict[str, Any]:
        (options,) = inner.param_groups
        options["lr"] = group["lr"]
        matrices = options["params"]
        for matrix, g in zip(matrices, p.grad.clone().view(-1, *matrices[0].shape), strict=True):
            matrix.grad = g
        wide = group["ns_dtype"] == "float32"
        with mock.patch.object(torch.Tensor, "bfloat16", lambda x: x.clone()) if wide else contextlib.nullcontext():
            inner.step()
        return {"momentum_buffer": torch.stack([inner.state[m]["momentum_buffer"] for m in matrices]).view(p.shape)}


class SOAP(AdaptedReference):
    """pytorch_optimizer's SOAP, on the flattened parameter, or on each matrix of a stack.

    The reference computes QR decompositions in float32; here they have the dtype of the parameter.
    """

    class Torch:
        """The module torch with another dtype in place of float32."""

        def __init__(self, dtype: torch.dtype) -> None:
            self.float32 = dtype

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def construct(self, p: torch.Tensor, group: dict[str, Any]) -> Any:
        stacked = p.ndim > 2 and not group["flatten"]
        views = (
            list(p.detach().view(-1, *p.shape[-2:]))
            if stacked
            else [p.detach().flatten(1) if p.ndim > 2 else p.detach()]
        )
        names = ("lr", "betas", "shampoo_beta", "eps", "weight_decay", "precondition_frequency")
        options = {name: group[name] for name in (*names, "max_precondition_dim")}
        return [pytorch_optimizer.SOAP([view], **options) for view in views]

    def step_parameter(self, p: torch.Tensor, group: dict[str, Any], inner: Any) -> dict[str, Any]:
        states = []
        views = [one.param_groups[0]["params"][0] for one in inner]
        for one, view, g in zip(inner, views, p.grad.clone().view(-1, *views[0].shape), strict=True):
            one.param_groups[0]["lr"] = group["lr"]
            view.grad = g
            with mock.patch.object(sys.modules[type(one).__module__], "torch", self.Torch(p.dtype)):
                one.step()
            states.append(one.state[view])
        names = ("exp_avg", "exp_avg_sq") if "exp_avg" in states[0] else ()
        return {name: torch.stack([s[name] for s in states]).view(p.shape) for name in names}


def make_prodigy(groups: list[dict[str, Any]], *, decoupled_weight_decay: bool = True, **options: Any) -> Any:
    """prodigyopt's Prodigy. Only the name of an argument differs."""
    return prodigyopt.Prodigy(groups, decouple=decoupled_weight_decay, **options)
