"""The wrapper of heavyball for sharpness-aware minimization, with the groups of the optimizer that it wraps."""

from __future__ import annotations

from typing import Any

import heavyball
from torch.optim import Optimizer

from optplug.errors import ConfigError


class SAMWrapper(heavyball.SAMWrapper):  # type: ignore[misc]  # heavyball has no type hints
    """`heavyball.SAMWrapper` whose groups and state are those of the wrapped optimizer, so that schedules apply to it.

    Args:
        params: parameters, or parameter groups.
        wrapped_optimizer: a class of heavyball. Default: `heavyball.AdamW`.
        ball: size of the step to the perturbed parameters. Default: 0.1.
        hyperparameters: of the wrapped optimizer.

    Raises:
        ConfigError: the wrapped optimizer is not one of heavyball.
    """

    def __init__(
        self,
        params: Any,
        wrapped_optimizer: type[Optimizer] = heavyball.AdamW,
        ball: float = 0.1,
        **hyperparameters: Any,
    ) -> None:
        if not issubclass(wrapped_optimizer, heavyball.utils.StatefulOptimizer):
            raise ConfigError(
                f"base must be an optimizer of heavyball, such as heavyball:adamw, got {wrapped_optimizer}"
            )
        base = wrapped_optimizer(params, **hyperparameters)
        base.defaults["ball"] = ball
        for group in base.param_groups:
            group.setdefault("ball", ball)
        self.wrapped_optimizer = base
        Optimizer.__setstate__(self, {"defaults": dict(base.defaults)})  # adds the attributes of hooks

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.wrapped_optimizer.param_groups
        return groups

    @property
    def state(self) -> dict[Any, Any]:
        state: dict[Any, Any] = self.wrapped_optimizer.state
        return state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.wrapped_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.wrapped_optimizer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wrapped_optimizer.load_state_dict(state_dict)

    def train(self, mode: bool = True) -> SAMWrapper:
        if hasattr(self.wrapped_optimizer, "train"):  # most optimizers of heavyball have no modes
            self.wrapped_optimizer.train(mode)
        return self
