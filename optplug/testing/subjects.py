"""An optimizer under test, and runs of it: equal arguments give equal runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.errors import EngineError
from optplug.optim.dispatch import ENGINES
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.testing.checks import cases_of, distance, label, look_up

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STEPS = 10
CHANGE = 6
"""Before this step the learning rate is halved."""

UNITS = 4.0
"""How many units in the last place (of the largest parameter) an engine may lose per step. Rounding costs half a unit
for storing the parameter and a few for the states; a wrong formula costs thousands in float64 and float32."""

SHAPES = ((5, 3), (7,), (), (0, 2))


@dataclass(frozen=True)
class Subject:
    """An optimizer under test."""

    cls: type[Optimizer]
    cases: tuple[dict[str, Any], ...]
    capabilities: frozenset[str]
    engines: tuple[str, ...]
    without: Mapping[str, str]

    @classmethod
    def of(cls, optimizer: str | type[Optimizer]) -> Subject:
        found, capabilities = look_up("optimizer", optimizer, Optimizer)
        cases = cases_of(found)
        engines, without = [], {}
        for engine in ENGINES[1:] if issubclass(found, RuleOptimizer) else ():
            try:
                Run(Subject(found, cases, capabilities, (), {}), {**cases[0], "engine": engine}).go(0, 1)
                engines.append(engine)
            except EngineError as error:
                without[f"engine {engine}"] = str(error)
            except Exception:  # what goes wrong there, the checks will tell
                engines.append(engine)
        return cls(found, cases, capabilities, tuple(engines), without)

    @property
    def is_rule(self) -> bool:
        return issubclass(self.cls, RuleOptimizer)

    def given(self, gradient: Tensor | None) -> Tensor | None:
        """A gradient as the optimizer takes it."""
        if gradient is None or "sparse_only" not in self.capabilities:
            return gradient
        return gradient.to_sparse(1) if gradient.dim() else gradient.to_sparse()

    def settings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every case on every engine, labelled."""
        for case in self.cases:
            for engine in self.engines:
                yield f"{engine}-{label(case)}", {**case, "engine": engine}
            if not self.engines:
                yield label(case), case


class Run:
    """Parameters, their gradients, and an optimizer that takes steps. Equal arguments give equal runs."""

    def __init__(
        self,
        subject: Subject,
        options: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float64,
        rounded: torch.dtype | None = None,
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        params: list[Tensor] | None = None,
    ) -> None:
        self.subject = subject
        self.dtype = dtype
        self.rounded = rounded or dtype
        self.params = params or [
            noise(shape, i).to(self.rounded).to(dtype).requires_grad_() for i, shape in enumerate(shapes)
        ]
        self.initial = [p.detach().clone() for p in self.params]
        self.optimizer = subject.cls(self.params, **options)

    def gradient(self, step: int, index: int) -> Tensor | None:
        """The first parameter always has one, the second comes late, the third pauses."""
        if (index == 1 and step < 3) or (index == 2 and step == 4):
            return None
        p = self.params[index]
        g = noise(p.shape if not p.is_complex() else (*p.shape, 2), 100 * (step + 1) + index)
        g = g.sign() * (0.5 + g.abs() % 1)  # of moderate size, so that its square is in the range of float16
        g = g.to(self.rounded).to(p.real.dtype)
        return torch.view_as_complex(g) if p.is_complex() else g

    def place(self, step: int) -> None:
        for i, p in enumerate(self.params):
            p.grad = self.subject.given(self.gradient(step, i))

    def halve_lr(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] / 2

    def go(self, start: int = 0, stop: int = STEPS) -> Run:
        for step in range(start, stop):
            if step == CHANGE:
                self.halve_lr()
            self.place(step)
            take(self.subject, self.optimizer, self.params)
        return self

    @property
    def moved(self) -> float:
        return distance(self.params, self.initial)


def take(
    subject: Subject, optimizer: Optimizer, params: Sequence[Tensor], loss: Callable[[], Tensor] | None = None
) -> None:
    """A step with the gradients that are there; what needs a closure or a graph gets `loss`.

    Default: a quadratic with these gradients.
    """
    if not subject.capabilities & {"closure", "create_graph"}:
        optimizer.step()
        return
    owners = [p for p in params if p.grad is not None]
    targets = [p.detach() - cast(Tensor, p.grad) for p in owners]

    def quadratic() -> Tensor:
        return torch.stack([((p - t) ** 2).sum() / 2 for p, t in zip(owners, targets, strict=True)]).sum()

    def closure() -> Tensor:
        with torch.enable_grad():
            value = (loss or quadratic)()
            gradients = torch.autograd.grad(value, owners, create_graph="create_graph" in subject.capabilities)
        for p, g in zip(owners, gradients, strict=True):
            p.grad = g
        return value

    if "closure" in subject.capabilities:
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        optimizer.step()


@functools.lru_cache(maxsize=4096)
def _noise_of(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise(shape: Sequence[int], seed: int) -> Tensor:
    return _noise_of(tuple(shape), seed).clone()
