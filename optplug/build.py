"""From names and configurations to optimizers and schedulers. No trainer, no Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from optplug.config import Config, check_arguments, configurable, parse, refusals
from optplug.errors import OptplugError
from optplug.groups import param_groups, trainable
from optplug.keywords import CheckedKeywords
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
        arguments: the class's own, `last_epoch` included. Where it takes functions of the step: functions, arithmetic
            in `epoch` as text, numbers, or names of functions of plugins (see `optplug.functions.as_function`).

    Raises:
        As `create_optimizer`.
    """
    offer = registry.find("scheduler", name)
    check_arguments(offer, {k: v for k, v in arguments.items() if k != "last_epoch"})
    cls = registry.get("scheduler", name)
    if getattr(cls, "functions", ()):
        from optplug.functions import resolved

        arguments = resolved(cls, arguments)
    scheduler: LRScheduler = cls(optimizer, **arguments)
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


def checked(optimizer: Any, scheduler: Any = None, **options: Any) -> Config:
    """A configuration with everything checked that needs no parameters: parsed, and rehearsed.

    Args:
        optimizer, scheduler, options: as in `optplug.config.parse`.

    Raises:
        As `optplug.config.parse` and `rehearse`.
    """
    config = parse(optimizer, scheduler, **options)
    rehearse(config)
    return config


def rehearse(config: Config) -> None:
    """Build once on a parameter of one element, so that wrong values show before there is a model.

    Raises:
        HyperparameterError, HyperparameterTypeError, ConfigError, ConfigTypeError, EngineError: what a class refuses.
    """
    chosen = config.optimizer
    # What a foreign constructor does is its own affair, and may be costly; schedules can be tried without it.
    is_ours = issubclass(registry.get("optimizer", chosen.name), CheckedKeywords)

    def single(groups: int = 1) -> torch.optim.Optimizer:
        params = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(groups)]
        if not is_ours:
            return torch.optim.Optimizer(params, {"lr": 0.1})
        with refusals(chosen.offer.spec, chosen.hyperparameters):
            return create_optimizer(chosen.name, params, **chosen.hyperparameters)

    optimizer = single()
    for i, rule in enumerate(config.param_groups if is_ours else ()):
        options = {k: v for k, v in rule.items() if k not in ("match", "name")}
        try:
            with refusals(chosen.offer.spec, options):
                optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], **options})
        except OptplugError as error:
            raise type(error)(f"param_groups[{i}]: {error}") from None
    scheduled = config.scheduler
    if scheduled is None or not issubclass(registry.get("scheduler", scheduled.name), CheckedKeywords):
        return
    groups = {1}
    if config.param_groups:  # how many there are shows later: suppose as many as a list has values
        groups = {len(value) for value in scheduled.arguments.values() if isinstance(value, (list, tuple))} - {0} or {1}
    if len(groups) != 1:
        return
    try:
        with refusals(scheduled.offer.spec, scheduled.arguments):
            create_scheduler(scheduled.name, single(*groups), **scheduled.arguments)
    except OptplugError as error:
        if is_ours or error.__cause__ is None:  # else it may miss what only the real optimizer has
            raise
