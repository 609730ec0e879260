"""The wrappers of schedulefree as optimizers of torch, which Lightning and learning-rate schedulers require."""

from __future__ import annotations

from typing import Any

import schedulefree
from torch.optim import Optimizer


class _Hooks:
    """Adds the attributes of torch's optimizers. The groups and the state are those of the wrapped optimizer."""

    def __init__(self, base: Any, **options: Any) -> None:
        super().__init__(base, **options)  # type: ignore[call-arg]  # the next class takes them
        Optimizer.__setstate__(self, {"defaults": base.defaults})  # type: ignore[arg-type]  # self is one


class ScheduleFreeWrapper(_Hooks, schedulefree.ScheduleFreeWrapper, Optimizer):  # type: ignore[misc]  # no type hints
    """`schedulefree.ScheduleFreeWrapper` as an optimizer of torch."""


class ScheduleFreeWrapperReference(_Hooks, schedulefree.ScheduleFreeWrapperReference, Optimizer):  # type: ignore[misc]
    """`schedulefree.ScheduleFreeWrapperReference` as an optimizer of torch."""
