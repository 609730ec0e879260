"""The wrappers of schedulefree as optimizers of torch, which Lightning and learning-rate schedulers require."""

from __future__ import annotations

from typing import Any

import schedulefree
from torch.optim import Optimizer


class ScheduleFreeWrapper(schedulefree.ScheduleFreeWrapper, Optimizer):  # type: ignore[misc]  # without type hints
    """`schedulefree.ScheduleFreeWrapper`. Its groups and its state are those of the wrapped optimizer."""

    def __init__(self, base: Any, **options: Any) -> None:
        super().__init__(base, **options)
        Optimizer.__setstate__(self, {"defaults": base.defaults})  # adds the attributes of hooks


class ScheduleFreeWrapperReference(schedulefree.ScheduleFreeWrapperReference, Optimizer):  # type: ignore[misc]
    """`schedulefree.ScheduleFreeWrapperReference`. Its groups and its state are those of the wrapped optimizer."""

    def __init__(self, base: Any, **options: Any) -> None:
        super().__init__(base, **options)
        Optimizer.__setstate__(self, {"defaults": base.defaults})
