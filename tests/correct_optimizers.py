"""Correct optimizers without a rule that differ from `Plain`, each in one respect: they keep all promises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from broken_optimizers import Plain


class Simple(Plain):
    """The gradient method, with checks of its input."""

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        self.check(p, g)
        self.apply(p, -g if group["maximize"] else g, group)


class Sharpness(Simple):
    """Steps with the gradients at a point in the direction of given gradients; needs gradients and a closure."""

    capabilities = frozenset({"gradients_first"})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("a closure is required")
        given = [(p, p.grad.clone()) for p, _ in self.pairs() if p.grad is not None]
        radius = -0.05 if self.param_groups[0]["maximize"] else 0.05
        for p, g in given:
            p.add_(g, alpha=radius)
        loss = torch.enable_grad()(closure)()
        for p, g in given:
            p.sub_(g, alpha=radius)
        for p, group in self.pairs():
            if p.grad is not None:
                self.update(p, p.grad, group)
        return loss


class LineSearch(Simple):
    """Halves the step until the loss decreases; needs a closure."""

    capabilities = frozenset({"closure"})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("a closure is required")
        loss = torch.enable_grad()(closure)()
        given = [(p, p.detach().clone(), p.grad.clone()) for p, _ in self.pairs() if p.grad is not None]
        sign = -1 if self.param_groups[0]["maximize"] else 1
        for halvings in range(10):
            for p, start, g in given:
                p.copy_(start - sign * g / 2**halvings)
            if sign * (torch.enable_grad()(closure)() - loss) < 0:
                break
        return loss


class Ignorant(Simple):
    """Takes a closure, and does not call it."""

    capabilities = frozenset({"no_closure"})

    def evaluate(self, closure: Any) -> Any:
        return None


class Lookahead(Simple):
    """Returns every five steps to the mean of the parameters and those five steps before."""

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        state.setdefault("slow", p.detach().clone())
        super().update(p, g, group)
        state["step"] = state.get("step", 0) + 1
        if state["step"] % 5 == 0:
            state["slow"].lerp_(p, 0.5)
            p.copy_(state["slow"])


class LargeLr(Simple):
    cases = ({}, {"lr": 1.0})


class LargeSign(Simple):
    cases = ({"lr": 3.0},)

    def apply(self, p: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        super().apply(p, update.sign(), group)


class Noise(Simple):
    """Adds random numbers in the order of the memory."""

    def apply(self, p: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        super().apply(p, update, group)
        p.add_(torch.randn_like(p), alpha=1e-3)


class InFloat32(Simple):
    """Computes a norm in float32."""

    def apply(self, p: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        update = update.float()
        super().apply(p, (update / (update.norm() + 1e-8)).to(p.dtype), group)


class TwoDimensionsOnly(Simple):
    capabilities = frozenset({"matrix_only"})
    shapes = ((3, 4), (2, 2))

    def check(self, p: Tensor, g: Tensor) -> None:
        super().check(p, g)
        if p.dim() != 2:
            raise ValueError("two dimensions only")


class StateFromTheConstructor(Simple):
    def add_param_group(self, group: dict[str, Any]) -> None:
        super().add_param_group(group)
        for p in self.param_groups[-1]["params"]:
            self.state[p]["sum"] = torch.full_like(p, 0.1, requires_grad=False)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        self.check(p, g)
        total = self.state[p]["sum"].addcmul_(g, g)
        self.apply(p, (-g if group["maximize"] else g) / total.sqrt(), group)


class Named(Simple):
    capabilities = frozenset({"named_params"})


class SignOfTheSum(Simple):
    """Takes the sign of the sum of gradient and weight decay, so that a small decay has no effect."""

    def __init__(self, params: Any, lr: float = 0.05, weight_decay: float = 0.01, maximize: bool = False) -> None:
        super().__init__(params, lr, 0.0, weight_decay, maximize)

    def apply(self, p: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        p.sub_(group["lr"] * (update + group["weight_decay"] * p).sign())


class BoundedDecay(Simple):
    def add_param_group(self, group: dict[str, Any]) -> None:
        super().add_param_group(group)
        if self.param_groups[-1]["weight_decay"] >= 1:
            raise ValueError("weight_decay must be less than 1")


class DecaysMatrices(Simple):
    shapes = ((3,), (4, 4), (2, 2))

    def apply(self, p: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        super().apply(p, update, group if p.dim() > 1 else {**group, "weight_decay": 0.0})


class Accumulates(Simple):
    """Steps with the sum of five gradients."""

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        self.check(p, g)
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        total = state.setdefault("sum", torch.zeros_like(p)).add_(-g if group["maximize"] else g)
        if state["step"] % 5 == 0:
            self.apply(p, total, group)
            total.zero_()


class SparseWithDecay(Plain):
    """Decays all rows."""

    capabilities = frozenset({"sparse", "complex"})

    def __init__(self, params: Any, lr: float = 0.05, weight_decay: float = 0.1, maximize: bool = False) -> None:
        super().__init__(params, lr, 0.0, weight_decay, maximize)

    def update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(g, alpha=group["lr"] if group["maximize"] else -group["lr"])


CORRECT: tuple[Any, ...] = (
    *(Simple, Sharpness, LineSearch, Ignorant, Lookahead, LargeLr, LargeSign, Noise, InFloat32, TwoDimensionsOnly),
    *(StateFromTheConstructor, Named, SignOfTheSum, BoundedDecay, DecaysMatrices, Accumulates, SparseWithDecay),
)
"""Classes and specs."""


def name_of(what: Any) -> str:
    """Return the name of a class or of a spec."""
    return str(getattr(what, "name", None) or what.__name__)
