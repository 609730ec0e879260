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


CORRECT: tuple[Any, ...] = (Simple, Sharpness, LineSearch, Ignorant, Lookahead)
"""Classes and specs."""


def name_of(what: Any) -> str:
    """Return the name of a class or of a spec."""
    return str(getattr(what, "name", None) or what.__name__)
