"""The memory limit of a step: the time of a kernel that reads and writes the same arrays, with one addition each."""

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


def state_arrays(optimizer: Optimizer) -> list[Tensor]:
    """Return the states of the largest parameter that have its shape. The optimizer must have taken a step."""
    p = max((p for group in optimizer.param_groups for p in group["params"]), key=Tensor.numel)
    state: dict[str, Any] = optimizer.state.get(p, {})
    return [value for value in state.values() if isinstance(value, Tensor) and value.shape == p.shape]


def memory_limit_optimizer(optimizer: Optimizer, params: Sequence[Tensor], engine: str) -> RuleOptimizer:
    """Return an optimizer whose step has the memory traffic of another optimizer, and one addition for each array.

    The step reads the parameter, the gradient and every state, and writes all of them except the gradient, as most
    update rules do. A STREAM triad would be no limit: it writes an array that it has not read.

    Args:
        optimizer: the optimizer to imitate. It must have taken a step.
        params: the parameters.
        engine: the engine that steps them.
    """
    states = state_arrays(optimizer)
    return memory_limit_class(len(states))(params, engine, states[0].dtype if states else None)


@functools.cache
def memory_limit_class(states: int) -> Callable[..., RuleOptimizer]:
    """Return the class with the rule `p + g, state_0 + g, ...`. It is cached so that each rule is compiled once.

    Args:
        states: the number of states.
    """
    names = tuple(f"state_{i}" for i in range(states))

    def rule(p: Any, g: Any, *states: Any) -> Any:
        return (p + g, *(state + g for state in states))

    positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ("p", "g", *names)]
    rule.__signature__ = inspect.Signature(positional)  # type: ignore[attr-defined]

    def init(self: RuleOptimizer, params: Any, engine: Any = "auto", state_dtype: torch.dtype | None = None) -> None:
        RuleOptimizer.__init__(self, params, {}, engine=engine, state_dtype=state_dtype)

    body = {"states": tuple(map(State, names)), "rule": staticmethod(rule), "__init__": init, "__doc__": __doc__}
    return type("MemoryLimit", (RuleOptimizer,), body)
