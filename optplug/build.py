"""From names and configurations to optimizers and schedulers. No trainer, no Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from optplug.config import Config, check_arguments, configurable, refusals
from optplug.groups import param_groups, trainable
from optplug.registry import registry
from optplug.schedules import Warmup


def create_optimizer(
    name: str, params_or_module: nn.Module | Iterable[Any], /, **hyperparameters: Any
) -> torch.optim.Optimizer:
    """Build an optimizer by name.

    Args:
        name: any case, `-` or `_`, or `plugin:name`.
        params_or_module: a module, whose parameters that require gradients are taken, or what the class itself takes:
            tensors, named parameters, or dicts that each describe a group.
        hyperparameters: the class's own.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: the name. ConfigError: an argument the class does not have,
        or a module with nothing to train; and what the class raises.
    """
    offer = registry.find("optimizer", name)
    check_arguments(offer, hyperparameters)
    params: Any = params_or_module
    if isinstance(params_or_module, nn.Module):
        params = [p for _, p in trainable(params_or_module)]
    optimizer: torch.optim.Optimizer = registry.get("optimizer", name)(params, **hyperparameters)
    return optimizer


def create_scheduler(name: str, optimizer: torch.optim.Optimizer, /, **arguments: Any) -> LRScheduler:
    """Build a learning-rate scheduler by name.

    Args:
        name: as in `create_optimizer`.
        optimizer: whose learning rates to schedule.
        arguments: the class's own, `last_epoch` included.

    Raises:
        As `create_optimizer`.
    """
    offer = registry.find("scheduler", name)
    check_arguments(offer, {k: v for k, v in arguments.items() if k != "last_epoch"})
    scheduler: LRScheduler = registry.get("scheduler", name)(optimizer, **arguments)
    return scheduler


def build(
    module: nn.Module, config: Config, mode: str | None = None
) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """Build what a configuration says on a module's parameters as they are now.

    Args:
        module: whose trainable parameters to optimize.
        config: from `optplug.config.parse`.
        mode: for a scheduler that has an argument `mode` and takes a metric.
    """
    chosen = config.optimizer
    groups = param_groups(module, config.param_groups)
    params: list[Any] = groups if config.param_groups else groups[0]["params"]
    with refusals(chosen.offer.spec, chosen.hyperparameters):
        optimizer = create_optimizer(chosen.name, params, **chosen.hyperparameters)
    if config.scheduler is None:
        return optimizer, None
    scheduled = config.scheduler
    arguments = dict(scheduled.arguments)
    if mode is not None and scheduled.takes_metric and "mode" in configurable(scheduled.offer):
        arguments["mode"] = mode
    with refusals(scheduled.offer.spec, arguments):
        scheduler = create_scheduler(scheduled.name, optimizer, **arguments)
    if scheduled.warmup_steps:
        scheduler = Warmup(scheduler, scheduled.warmup_steps, scheduled.warmup_start)
    return optimizer, scheduler
