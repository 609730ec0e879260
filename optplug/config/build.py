"""From names and configurations to optimizers and schedulers. No trainer, no Lightning."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from optplug.config.builtins import plain
from optplug.config.error_collector import ErrorCollector, join_loc, prefix_loc, third_party_errors
from optplug.config.model import (
    AUTO,
    LINK,
    PATIENCE_UNITS,
    Config,
    OptimizerConfig,
    OptimizerEntry,
    OptimizerSetup,
    SchedulerConfig,
)
from optplug.config.param_group_presets import LayerDecay
from optplug.config.param_groups import MULTIPLIERS, AnyRule, GroupRule, param_groups, trainable
from optplug.config.param_selection import check_use, parameters_of, shortened
from optplug.config.parse import check_arguments, read
from optplug.errors import ConfigError, OptplugError, describe, did_you_mean, with_loc
from optplug.optim.combined import Combined
from optplug.optim.strict_kwargs import CheckedKeywords
from optplug.registry import registry
from optplug.registry.signature import configurable, constructor
from optplug.schedulers.closed_form import Unscheduled
from optplug.schedulers.warmup import Warmup


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
    registration = registry.find("optimizer", name)
    check_arguments(registration, hyperparameters)
    params: Any = params_or_module
    if isinstance(params_or_module, nn.Module):
        params = [p.tensor for p in trainable(params_or_module)]
    optimizer: torch.optim.Optimizer = registry.get("optimizer", name)(params, **hyperparameters)
    return optimizer


def create_scheduler(name: str, optimizer: torch.optim.Optimizer, /, **arguments: Any) -> LRScheduler:
    """Build a learning-rate scheduler by name.

    Args:
        name: as in `create_optimizer`.
        optimizer: whose learning rates to schedule.
        arguments: the class's own, `last_epoch` included. Where it takes functions of the step: functions, arithmetic
            in `epoch` as text, numbers, or names of functions of plugins (see `optplug.config.expressions.as_function`).

    Raises:
        As `create_optimizer`.
    """
    registration = registry.find("scheduler", name)
    check_arguments(registration, {k: v for k, v in arguments.items() if k != "last_epoch"})
    cls = registry.get("scheduler", name)
    if getattr(cls, "functions", ()):
        from optplug.config.expressions import resolved

        arguments = resolved(cls, arguments)
    scheduler: LRScheduler = cls(optimizer, **arguments)
    return scheduler


# -------------------------------------------------------------------------- from a configuration


def build_optimizer(module: nn.Module, setup: OptimizerSetup, loc: str = "optimizer") -> torch.optim.Optimizer:
    """The optimizer of a part, on a module's parameters as they are now.

    Args:
        module: whose trainable parameters to optimize.
        part: from `optplug.config.parse.parse`, with at least one member.
        place: of the part in the configuration.

    Raises:
        ConfigError, ConfigErrors: what needs parameters to be found wrong: patterns that match nothing, links that lead
        nowhere; and what the class raises.
    """
    if not setup.combined:
        return _member(module, setup.members[0], loc, loc if setup.members[0].select is not None else "")
    members = [(member, f"{loc}.combine[{member.index}]") for member in setup.members]
    try:
        return Combined([_member(module, member, where, where) for member, where in members])
    except OptplugError as error:
        raise prefix_loc(error, "" if error.loc else loc) from error.__cause__


def _member(module: nn.Module, member: OptimizerEntry, loc: str, groups_loc: str) -> torch.optim.Optimizer:
    chosen, collector = member.optimizer, ErrorCollector()
    hyperparameters = _linked(collector, module, chosen.hyperparameters, loc)
    rules: list[AnyRule] = []
    for i, rule in enumerate(member.param_groups):
        if isinstance(rule, GroupRule):
            options = _linked(collector, module, rule.options, join_loc(groups_loc, f"param_groups[{i}]"))
            rule = dataclasses.replace(rule, options=options)
        rules.append(rule)
    collector.raise_collected()
    if hyperparameters != chosen.hyperparameters:  # what links lead to has not been checked yet
        linked = dataclasses.replace(chosen, hyperparameters=hyperparameters)
        _rehearse_member(
            collector, dataclasses.replace(member, optimizer=linked), loc, join_loc(groups_loc, "param_groups")
        )
        collector.raise_collected()
    with collector.collect(groups_loc):
        groups = param_groups(module, rules, _base(chosen, hyperparameters), member.select)
    collector.raise_collected()
    params: list[Any] = groups if rules else groups[0]["params"]
    try:
        with third_party_errors(chosen.registration.spec.name, hyperparameters):
            optimizer = create_optimizer(chosen.name, params, **hyperparameters)
    except OptplugError as error:
        raise prefix_loc(error, loc) from error.__cause__
    for (
        group
    ) in optimizer.param_groups:  # schedules write into tensors: neither the configuration's nor another group's
        group.update({key: value.detach().clone() for key, value in group.items() if isinstance(value, torch.Tensor)})
    return optimizer


def _base(chosen: OptimizerConfig, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer's options, as far as its signature tells."""
    usual = {k: p.default for k, p in configurable(chosen.registration).items() if p.default is not p.empty}
    return {**usual, **hyperparameters}


def _linked(collector: ErrorCollector, module: nn.Module, options: Mapping[str, Any], loc: str) -> dict[str, Any]:
    """Options with the module's attributes for links to them."""
    result = dict(options)
    for key, value in options.items():
        if is_link(value):
            with collector.collect(f"{loc}.{key}"):
                result[key] = plain(follow(module, value))
    return result


def is_link(value: Any) -> bool:
    """Whether a value is the text of a link, such as `module.lr`."""
    return isinstance(value, str) and LINK.fullmatch(value) is not None


def follow(module: nn.Module, link: str) -> Any:
    """What a link leads to.

    Raises:
        ConfigError: nothing, with the nearest attribute; or something that cannot be read.
    """
    found: Any = module
    for name in link.split(".")[1:]:
        known = [
            key for key in map(str, found if isinstance(found, Mapping) else dir(found)) if not key.startswith("_")
        ]
        try:
            found = found[name] if isinstance(found, Mapping) else getattr(found, name)
        except Exception as error:  # a property may raise anything
            owner = type(found).__name__
            if name in known:
                raise ConfigError(f"{link} cannot be read: {describe(error)}") from error
            raise ConfigError(f"{link} leads nowhere: {owner} has no {name!r}{did_you_mean(name, known)}") from None
    return found


def links(module: nn.Module, config: Config) -> dict[str, Any]:
    """What the links of a configuration lead to now."""
    found: dict[str, Any] = {}
    for setup in config.setups:
        for member in setup.members:
            given = [member.optimizer.hyperparameters]
            given += [rule.options for rule in member.param_groups if isinstance(rule, GroupRule)]
            for options in given:
                found |= {value: follow(module, value) for value in options.values() if is_link(value)}
    return found


def build_scheduler(
    optimizer: torch.optim.Optimizer, scheduled: SchedulerConfig, mode: str | None = None, loc: str = "scheduler"
) -> LRScheduler:
    """The schedule of an optimizer.

    Args:
        optimizer: whose learning rates to schedule.
        scheduled: from `optplug.config.parse.parse`, with numbers for lengths (`optplug.config.training_length.resolve_lengths`).
        mode: for a scheduler that has an argument `mode` and takes a metric.
        place: of the scheduler in the configuration.

    Raises:
        ConfigError: a `patience_unit` that the scheduler cannot count in; and what the class raises.
    """
    if scheduled.name is None:
        scheduler: LRScheduler = Unscheduled(optimizer)
    else:
        arguments = dict(scheduled.arguments)
        if mode is not None and scheduled.takes_metric and "mode" in configurable(scheduled.registration):
            arguments["mode"] = mode
        try:
            with third_party_errors(scheduled.registration.spec.name, arguments):
                scheduler = create_scheduler(scheduled.name, optimizer, **arguments)
            if scheduled.patience_unit != PATIENCE_UNITS[0] and not callable(getattr(scheduler, "at", None)):
                says = (
                    f"{scheduled.registration.spec.name} has no method at(position) and counts {PATIENCE_UNITS[0]} only, got "
                    f"{scheduled.patience_unit!r}: leave it out"
                )
                raise with_loc("patience_unit", ConfigError(says))
        except OptplugError as error:
            raise prefix_loc(error, loc) from error.__cause__
    for group in optimizer.param_groups:  # a plateau keeps no base rates of its own
        group.setdefault("initial_lr", float(group["lr"]))
    if scheduled.warmup is not None and scheduled.warmup.length:
        scheduler = Warmup(scheduler, int(scheduled.warmup.length), scheduled.warmup.start_factor)
    return scheduler


def check_shares(module: nn.Module, config: Config) -> None:
    """Refuse several optimizers of which two have a parameter in common, or that leave one out.

    Raises:
        ConfigError, ConfigErrors: with the names of the parameters.
    """
    members = [
        (config.loc(setup) if config.several else f"optimizer.combine[{member.index}]", member)
        for setup in config.setups
        for member in setup.members
    ]
    if all(member.select is None for _, member in members):
        return
    collector = ErrorCollector()
    parameters = parameters_of(module)
    for loc, member in members:
        with collector.collect(loc):
            if member.select is not None:
                check_use(member.select, parameters, module)
    owners = {
        p.name: [with_loc for with_loc, m in members if m.select is None or m.select.selects(p)]
        for p in parameters
        if p.trainable
    }
    shared = [name for name, locs in owners.items() if len(locs) > 1]
    left_out = [name for name, locs in owners.items() if not locs]
    if shared:
        both = " and ".join(owners[shared[0]])
        collector.add(ConfigError(f"{both} both have {shortened(shared)}: a parameter has one optimizer"), "optimizer")
    if left_out:
        collector.add(
            ConfigError(f"no optimizer has {shortened(left_out)}: select them too, or freeze them"), "optimizer"
        )
    collector.raise_collected()


# --------------------------------------------------------------------------- before there is a model


def checked(optimizer: Any = None, scheduler: Any = None, **options: Any) -> Config:
    """A configuration with everything checked that needs no parameters: parsed, and rehearsed.

    Args:
        optimizer, scheduler, options: as in `optplug.config.parse.parse`.

    Raises:
        As `optplug.config.parse.parse`; and HyperparameterError, HyperparameterTypeError, EngineError: what a class refuses.
        All that is wrong is said at once.
    """
    collector = ErrorCollector()
    config = read(collector, optimizer, scheduler, **options)
    _rehearse(collector, config)
    collector.sort({"optimizer": optimizer, "scheduler": scheduler, **options})
    collector.raise_collected()
    return config


def _rehearse(collector: ErrorCollector, config: Config) -> None:
    """Build once on parameters of one element, so that wrong values show before there is a model."""
    for setup in config.setups:
        loc, combined = config.loc(setup), setup.combined
        for member in setup.members:
            where = f"{loc}.combine[{member.index}]" if combined else loc
            # Groups of an ordinary optimizer stand beside it, those of a member inside it.
            _rehearse_member(
                collector, member, where, f"{where}.param_groups" if config.several or combined else "param_groups"
            )
        if setup.scheduler is not None and setup.scheduler.name is not None:
            _rehearse_scheduler(collector, setup, setup.scheduler, config.scheduler_loc(setup))


def _rehearse_member(collector: ErrorCollector, member: OptimizerEntry, loc: str, groups_loc: str) -> None:
    chosen = member.optimizer
    cls = registry.get("optimizer", chosen.name)
    # What a foreign constructor does is its own affair, and may be costly.
    if not issubclass(cls, CheckedKeywords):
        return
    given = _without_links(chosen.hyperparameters)

    def make(arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
        with third_party_errors(chosen.registration.spec.name, arguments):
            return create_optimizer(chosen.name, _parameters(1), **arguments)

    good = _blamed(collector, make, given, loc, cls)
    if good is None:
        return
    for i, rule in enumerate(member.param_groups):
        where = f"{groups_loc}[{i}]"
        if isinstance(rule, LayerDecay) and "lr" not in configurable(chosen.registration):
            collector.add(ConfigError(f"{chosen.registration.name} has no lr for layer_decay to multiply"), where)
        if not isinstance(rule, GroupRule):
            continue
        options = {k: v for k, v in _without_links(rule.options).items() if k not in MULTIPLIERS}
        needs = {m: k for m, k in MULTIPLIERS.items() if m in rule.options and _base(chosen, good).get(k) is None}
        for multiplier, key in needs.items():
            collector.add(
                ConfigError(f"{chosen.registration.name} has no {key} of its own to multiply"), f"{where}.{multiplier}"
            )

        def add(arguments: Mapping[str, Any], optimizer: Mapping[str, Any] = good) -> None:
            with third_party_errors(chosen.registration.spec.name, arguments):
                make(optimizer).add_param_group({"params": [torch.zeros(1, requires_grad=True)], **arguments})

        if options:
            _blamed(collector, add, options, where)


def _rehearse_scheduler(collector: ErrorCollector, setup: OptimizerSetup, scheduled: SchedulerConfig, loc: str) -> None:
    assert scheduled.name is not None
    cls = registry.get("scheduler", scheduled.name)
    if not issubclass(cls, CheckedKeywords):
        return
    given = dict(scheduled.arguments)
    if scheduled.length is not None and given.get(scheduled.length) == AUTO:
        given[scheduled.length] = 1000
    groups = {1}
    if any(member.param_groups for member in setup.members) or len(setup.members) != 1:
        # How many there are shows later: suppose as many as a list has values.
        groups = {len(value) for value in given.values() if isinstance(value, (list, tuple))} - {0} or {1}
    if len(groups) != 1:
        return

    def make(arguments: Mapping[str, Any]) -> None:
        # Any optimizer will do: schedules know groups and rates.
        optimizer = torch.optim.Optimizer([{"params": [p]} for p in _parameters(*groups)], {"lr": 0.1})
        assert scheduled.name is not None
        try:
            create_scheduler(scheduled.name, optimizer, **arguments)
        except OptplugError:
            raise
        except (TypeError, ValueError, LookupError, ArithmeticError):
            pass  # it may miss what only the real optimizer has, and will say so when it is built

    _blamed(collector, make, given, loc, cls)


def _parameters(many: int) -> list[torch.Tensor]:
    return [torch.zeros(1, requires_grad=True) for _ in range(many)]


def _without_links(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not is_link(value)}


def _blamed(
    collector: ErrorCollector,
    make: Callable[[Mapping[str, Any]], Any],
    given: Mapping[str, Any],
    loc: str,
    cls: Any = None,
) -> dict[str, Any] | None:
    """Find every argument that a constructor refuses, by leaving out one after the other.

    Args:
        complaints: where they go. make: builds from arguments. given: the arguments. place: of them.
        cls: the class, where arguments can be required: `cases` has good values for these.

    Returns:
        Arguments that are not refused; None where even none are.
    """
    required = (
        [] if cls is None else [name for name, p in constructor(cls)[0].items() if p.default is inspect.Parameter.empty]
    )
    cases: Sequence[Mapping[str, Any]] = getattr(cls, "cases", None) or ({},)
    good = {name: cases[0][name] for name in required if name in cases[0]}
    left = {**good, **given}
    suspects = [name for name in left if name in given and (name in good or name not in required)]
    while (complaint := _complaint(make, left)) is not None:
        for name in suspects:
            without = {
                **{key: value for key, value in left.items() if key != name},
                **{k: good[k] for k in good if k == name},
            }
            if str(_complaint(make, without)) != str(complaint):
                collector.add(with_loc(name, complaint), loc)
                suspects.remove(name)
                left = without
                break
        else:
            collector.add(complaint, loc)
            return None
    return left


def _complaint(make: Callable[[Mapping[str, Any]], Any], arguments: Mapping[str, Any]) -> OptplugError | None:
    try:
        make(arguments)
    except OptplugError as error:
        return error
    return None
