"""The memory limit of a step: a kernel that reads and writes the same arrays, with one addition each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.optim.state import State


def arrays(optimizer: Optimizer) -> list[Tensor]:
    """The states that are as large as their parameter, of the largest one; the optimizer must have stepped."""
    p = max((p for group in optimizer.param_groups for p in group["params"]), key=Tensor.numel)
    kept: dict[str, Any] = optimizer.state.get(p, {})
    return [value for value in kept.values() if isinstance(value, Tensor) and value.shape == p.shape]


def limit_of(optimizer: Optimizer, params: Sequence[Tensor], engine: str) -> RuleOptimizer:
    """The limit of an optimizer that has stepped, over the same parameters, with as many states of the same dtype.

    It reads the parameter, the gradient and every state, and writes all but the gradient, as the update rules of
    the usual optimizers do. A STREAM triad would mislead: its store is to an array it has not read.
    """
    states = arrays(optimizer)
    return limit_class(len(states))(params, engine, states[0].dtype if states else None)


@functools.cache
def limit_class(states: int) -> Callable[..., RuleOptimizer]:
    """`p + g, state + g, ...` for so many states: one class for each number, so that it is compiled once."""
    names = tuple(f"state_{i}" for i in range(states))

    def rule(p: Any, g: Any, *states: Any) -> Any:
        return (p + g, *(state + g for state in states))

    positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ("p", "g", *names)]
    rule.__signature__ = inspect.Signature(positional)  # type: ignore[attr-defined]

    def init(self: RuleOptimizer, params: Any, engine: Any = "auto", state_dtype: torch.dtype | None = None) -> None:
        RuleOptimizer.__init__(self, params, {}, engine=engine, state_dtype=state_dtype)

    body = {"states": tuple(map(State, names)), "rule": staticmethod(rule), "__init__": init, "__doc__": __doc__}
    return type("MemoryLimit", (RuleOptimizer,), body)
