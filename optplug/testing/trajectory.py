"""An optimizer under test, and reproducible trajectories: the same arguments give the same gradients and steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.engines import PLANNED, engine_names
from optplug.errors import EngineError
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.testing.checks import case_label, declared_cases, max_difference, resolve_class

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STEPS = 10
LR_CHANGE_STEP = 6
"""The learning rate is halved before this step."""

ULPS_PER_STEP = 4.0
"""Allowed error of an engine per step, in units in the last place of the largest parameter.

Rounding costs half a unit for storing the parameter and a few units for the states. A wrong formula costs thousands of
units in float64 and float32.
"""

SHAPES = ((5, 3), (7,), (), (0, 2))


@dataclass(frozen=True)
class OptimizerUnderTest:
    """An optimizer class, and what the kit tests it with.

    Attributes:
        cls: the class.
        cases: keyword arguments of the constructor, one mapping for each case.
        capabilities: the declared capabilities.
        engines: the engines that can step the first case; empty for a class that is not a `RuleOptimizer`.
        unavailable_engines: for each other engine, by `"engine NAME"`, the reason.
    """

    cls: type[Optimizer]
    cases: tuple[dict[str, Any], ...]
    capabilities: frozenset[str]
    engines: tuple[str, ...]
    unavailable_engines: Mapping[str, str]

    @classmethod
    def of(cls, optimizer: str | type[Optimizer]) -> OptimizerUnderTest:
        """Resolve a registered name or a class, and find the engines that can step it."""
        found, capabilities = resolve_class("optimizer", optimizer, Optimizer)
        cases = declared_cases(found)
        without_engines = OptimizerUnderTest(found, cases, capabilities, (), {})
        engines, unavailable = [], {}
        names = [*engine_names()[1:], *PLANNED]
        for engine in names if issubclass(found, RuleOptimizer) else ():
            try:
                Trajectory(without_engines, {**cases[0], "engine": engine}).run_steps(0, 1)
                engines.append(engine)
            except EngineError as error:
                unavailable[f"engine {engine}"] = str(error)
            except Exception:  # the checks report every other error
                engines.append(engine)
        return cls(found, cases, capabilities, tuple(engines), unavailable)

    @property
    def is_rule(self) -> bool:
        """Whether the class is a `RuleOptimizer`."""
        return issubclass(self.cls, RuleOptimizer)

    def fit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape that the optimizer takes: one that takes matrices only gets vectors as single columns."""
        missing = 2 - len(shape) if "matrix_only" in self.capabilities else 0
        return (*shape, *(1,) * missing)

    def convert_gradient(self, gradient: Tensor | None) -> Tensor | None:
        """Return a gradient in the layout that the optimizer takes: sparse if it takes sparse gradients only."""
        if gradient is None or "sparse_only" not in self.capabilities:
            return gradient
        return gradient.to_sparse(1) if gradient.dim() else gradient.to_sparse()

    def cases_and_engines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each case with each engine: a label, and the keyword arguments."""
        for case in self.cases:
            for engine in self.engines:
                yield f"{engine}-{case_label(case)}", {**case, "engine": engine}
            if not self.engines:
                yield case_label(case), case


class Trajectory:
    """Parameters, generated gradients, and an optimizer that steps them.

    Args:
        subject: the optimizer under test.
        options: the keyword arguments of its constructor.
        dtype: the dtype of the parameters.
        rounded: the dtype to which the initial parameters and the gradients are rounded. Default: `dtype`.
        shapes: the shapes of the parameters, as far as the optimizer takes them (`OptimizerUnderTest.fit_shape`).
            Default: a matrix, a vector, a scalar and an empty tensor.
        params: the parameters, in place of generated ones.
    """

    def __init__(
        self,
        subject: OptimizerUnderTest,
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
            seeded_randn(subject.fit_shape(shape), i).to(self.rounded).to(dtype).requires_grad_()
            for i, shape in enumerate(shapes)
        ]
        self.initial = [p.detach().clone() for p in self.params]
        self.optimizer = subject.cls(self.params, **options)

    def gradient(self, step: int, index: int) -> Tensor | None:
        """Return the gradient of a parameter at a step.

        Parameter 1 has no gradient before step 3, and parameter 2 has none at step 4.
        """
        if (index == 1 and step < 3) or (index == 2 and step == 4):
            return None
        p = self.params[index]
        g = seeded_randn(p.shape if not p.is_complex() else (*p.shape, 2), 100 * (step + 1) + index)
        g = g.sign() * (0.5 + g.abs() % 1)  # moderate size, so that the square is in the range of float16
        g = g.to(self.rounded).to(p.dtype.to_real())
        return torch.view_as_complex(g) if p.is_complex() else g

    def set_gradients(self, step: int) -> None:
        """Set the gradients of all parameters to those of a step."""
        for i, p in enumerate(self.params):
            p.grad = self.subject.convert_gradient(self.gradient(step, i))

    def halve_lr(self) -> None:
        """Halve the learning rate of each group."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] / 2

    def run_steps(self, start: int = 0, stop: int = STEPS) -> Trajectory:
        """Take the steps from `start` to `stop`, and halve the learning rate before `LR_CHANGE_STEP`."""
        for step in range(start, stop):
            if step == LR_CHANGE_STEP:
                self.halve_lr()
            self.set_gradients(step)
            take_step(self.subject, self.optimizer, self.params)
        return self

    @property
    def distance_moved(self) -> float:
        """The largest change of a parameter's element since the start."""
        return max_difference(self.params, self.initial)


def take_step(
    subject: OptimizerUnderTest,
    optimizer: Optimizer,
    params: Sequence[Tensor],
    loss: Callable[[], Tensor] | None = None,
) -> None:
    """Take a step with the current gradients.

    An optimizer that needs a closure, or gradients with a graph, evaluates `loss`. Default: a quadratic function that
    has the current gradients, and a maximum in place of a minimum if the optimizer maximizes.
    """
    if not subject.capabilities & {"closure", "create_graph"}:
        optimizer.step()
        return
    with_gradient = [p for p in params if p.grad is not None]
    sign = -1 if optimizer.param_groups[0].get("maximize") else 1
    targets = [p.detach() - sign * cast(Tensor, p.grad) for p in with_gradient]

    def quadratic() -> Tensor:
        distances = [((p - t) ** 2).sum() for p, t in zip(with_gradient, targets, strict=True)]
        return sign * torch.stack(distances).sum() / 2

    def closure() -> Tensor:
        with torch.enable_grad():
            value = (loss or quadratic)()
            gradients = torch.autograd.grad(value, with_gradient, create_graph="create_graph" in subject.capabilities)
        for p, g in zip(with_gradient, gradients, strict=True):
            p.grad = g
        return value

    if "closure" in subject.capabilities:
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        optimizer.step()


@functools.lru_cache(maxsize=4096)
def _cached_randn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded_randn(shape: Sequence[int], seed: int) -> Tensor:
    """Return standard normal float64 numbers, the same for the same shape and seed."""
    return _cached_randn(tuple(shape), seed).clone()
