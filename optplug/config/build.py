"""Construction of optimizers and schedulers from names and configurations, independent of Lightning."""

from __future__ import annotations

import dataclasses
import functools
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from optplug.config.added_groups import AddParamGroup, RenameGroups
from optplug.config.arguments import check_arguments, missing_length_hint, optimizer_fields
from optplug.config.construction import check_is_supported, check_values, construct_optimizer
from optplug.config.fields import has_unresolved
from optplug.config.form import ARGS, BASE_KEY, MULTIPLIERS, OPTIMIZER
from optplug.config.lengths import is_relative, length_arguments, numbers_in
from optplug.config.matrices import assignments, check_rules, warn_without_matrices
from optplug.config.model import (
    LINK_PATTERN,
    AnyGroupRule,
    Config,
    GroupRule,
    OptimizerConfig,
    OptimizerEntry,
    OptimizerSetup,
    SchedulerConfig,
)
from optplug.config.options import ParamGroups, Schedule
from optplug.config.param_group_presets import LayerDecay
from optplug.config.param_groups import build_param_groups, trainable_parameters
from optplug.config.param_selection import check_selector, module_parameters
from optplug.config.parse import parse_collecting
from optplug.config.plain_data import to_builtins
from optplug.config.rehearsal import ImpossibleConstructionError, dummy_parameters, rehearse, rehearse_scheduler
from optplug.config.third_party import third_party_errors
from optplug.config.training_length import (
    EpochSteps,
    TrainingLength,
    depends_on_training_length,
    resolve_lengths,
    resolve_optimizers,
)
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    ErrorCollector,
    Loc,
    OptplugError,
    PluginError,
    did_you_mean,
    listing,
    loc_text,
    one_line,
    short_list,
)
from optplug.optim.combined import Combined
from optplug.optim.strict_kwargs import is_strict
from optplug.registry import Registration, registry
from optplug.registry.plugin_registry import REQUIRED_METHODS
from optplug.registry.signature import (
    base_argument,
    configurable_arguments,
    declared_cases,
    function_arguments,
    target_of,
)
from optplug.schedulers.closed_form import Unscheduled
from optplug.schedulers.per_group import PerGroup, ScheduleFactory
from optplug.schedulers.plateau_warmup import PlateauWarmup
from optplug.schedulers.warmup import Warmup


def create_optimizer(
    name: str,
    params_or_module: nn.Module | Iterable[Any],
    /,
    *,
    param_groups: ParamGroups | None = None,
    **hyperparameters: Any,
) -> torch.optim.Optimizer:
    """Build an optimizer by name.

    Args:
        name: in any case, with `-` or `_`; or `plugin:name`.
        params_or_module: a module, whose parameters that require gradients are optimized; or what the optimizer class
            accepts itself: tensors, named parameters, or dicts that each describe a parameter group. For a module, an
            optimizer of matrices, such as Muon, is combined with another optimizer for the other parameters.
        param_groups: a preset (`"no_decay"`), or a list of presets and rules, as in a configuration. Only for a module.
            Default: one group.
        hyperparameters: passed to the optimizer class. For a module, an optimizer of matrices also has the keys
            `fallback`, `output` and `convolutions` of a configuration. An optimizer that wraps another one has the key
            `base`: a name, or a mapping with a name and hyperparameters.

    Raises:
        UnknownNameError: the name is not registered.
        AmbiguousNameError: several plugins register the name.
        PluginError: the plugin cannot be loaded.
        ConfigError: a hyperparameter that the class does not have, or a module without trainable parameters.
        Exception: whatever the class raises.
    """
    registration = _chosen("optimizer", name)
    check_is_supported(registration)
    for key in length_arguments(registration):
        if is_relative(hyperparameters.get(key)):
            message = f"{key} is a number here: there is no trainer to take the length of the training from"
            raise ConfigError(f"{registration.name}: {message}, got {hyperparameters[key]!r}", argument=key)
    has_further_keys = bool(optimizer_fields(registration).keys() - OPTIMIZER.keys())
    if param_groups is not None or (has_further_keys and isinstance(params_or_module, nn.Module)):
        return _create_from_config(registration, params_or_module, hyperparameters, param_groups)
    if base_argument(registration):
        config = parse_and_check(_as_mapping(registration, hyperparameters)).optimizer
        with _construction(config, config.arguments):
            return construct_optimizer(registration, params_or_module, config.arguments)
    check_arguments(registration, hyperparameters)
    if not isinstance(params_or_module, nn.Module):
        return construct_optimizer(registration, params_or_module, hyperparameters)
    params = [p.tensor for p in trainable_parameters(params_or_module)]
    return construct_optimizer(registration, params, hyperparameters, module=params_or_module)


def _chosen(kind: str, name: str) -> Registration:
    """Return the registration of a name. A line of level INFO says which plugin is chosen if several have the name."""
    registration = registry.resolve(kind, name)
    if logging.getLogger("optplug").isEnabledFor(logging.INFO) and (also := registry.others_text(kind, name)):
        _log_once(f"{kind} {name} is {registration.qualified_name}, {also}")
    return registration


@functools.lru_cache(maxsize=1024)
def _log_once(line: str) -> None:
    logging.getLogger("optplug").info(line)


def _create_from_config(
    registration: Registration, module: Any, hyperparameters: Mapping[str, Any], param_groups: Any
) -> torch.optim.Optimizer:
    if not isinstance(module, nn.Module):
        message = f"select parameters of a module by name; pass the module, got {type(module).__name__}"
        raise ConfigTypeError(message, loc=("param_groups",))
    setup = parse_and_check(_as_mapping(registration, hyperparameters), param_groups=param_groups).setup
    for schedule in setup.schedules:
        message = "create_optimizer builds no scheduler: use create_optimizer_and_scheduler"
        raise ConfigError(message, loc=schedule.loc)
    return build_optimizer(module, setup)


def _as_mapping(registration: Registration, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping in a configuration for the keywords of `create_optimizer`."""
    keys = optimizer_fields(registration).keys() - OPTIMIZER.keys()
    other = {key: value for key, value in hyperparameters.items() if key in keys}
    arguments = {key: value for key, value in hyperparameters.items() if key not in keys}
    return {"name": registration.qualified_name, **other, **({ARGS: arguments} if arguments else {})}


def create_scheduler(name: str, optimizer: torch.optim.Optimizer, /, **arguments: Any) -> Schedule:
    """Build a learning-rate scheduler by name.

    Args:
        name: as in `create_optimizer`.
        optimizer: the optimizer whose learning rates are scheduled.
        arguments: passed to the scheduler class; `last_epoch` is allowed. An argument that is a function of the step
            may be a function, arithmetic in `epoch` as text, a number, or the name of a plugin's function (see
            `optplug.config.expressions.resolve_function`).

    Raises:
        OptplugError: as `create_optimizer`.
        Exception: whatever the class raises.
    """
    registration = _chosen("scheduler", name)
    check_is_supported(registration)
    check_arguments(registration, {k: v for k, v in arguments.items() if k != "last_epoch"})
    if not is_strict(target_of(registration)):
        check_values(registration, [], arguments)
    return _construct_scheduler(name, optimizer, arguments)


def _construct_scheduler(name: str, optimizer: torch.optim.Optimizer, arguments: Mapping[str, Any]) -> Schedule:
    registration = registry.resolve("scheduler", name)
    if function_arguments(registration):
        from optplug.config.expressions import resolve_function_arguments

        arguments = resolve_function_arguments(registration, arguments)
    scheduler: Schedule = target_of(registration)(optimizer, **arguments)
    missing = [method for method in REQUIRED_METHODS["scheduler"] if not callable(getattr(scheduler, method, None))]
    if missing:
        raise PluginError(
            f"scheduler {registration.name!r} of plugin {registration.plugin} returned a {type(scheduler).__name__}, "
            f"which is not a scheduler (it lacks {listing(missing)})"
        )
    return scheduler


# -------------------------------------------------------------------------- from a configuration


def frozen_to_hold(module: nn.Module, config: Config) -> frozenset[str]:
    """The names of the frozen parameters that the optimizers of a trainer hold, in case training unfreezes them.

    These are the ones that exactly one optimizer selects. Optimizers of third-party classes hold none: a class may
    reject parameters that it would never step, as torch's Muon rejects biases.
    """
    frozen = {p.name for p in module_parameters(module) if not p.is_trainable and p.can_be_trained}
    classes: dict[str, list[Any]] = {name: [] for name in frozen}
    for entry in [entry for setup in config.setups for entry in setup.entries] if frozen else ():
        members = [registry.get("optimizer", member.optimizer.name) for member in entry.members]
        for name, assignment in assignments(module, entry).items():
            if name in frozen:
                classes[name].append(members[assignment.member])
    return frozenset(name for name, found in classes.items() if len(found) == 1 and is_strict(found[0]))


def build_optimizer(
    module: nn.Module,
    setup: OptimizerSetup,
    *,
    hold_frozen: Collection[str] = (),
    rename_groups: RenameGroups | None = None,
) -> torch.optim.Optimizer:
    """Build the optimizer of a setup on the current parameters of a module.

    Args:
        module: the module whose parameters are optimized.
        setup: from `optplug.config.parse.parse`, with at least one entry.
        hold_frozen: the names of the frozen parameters that the optimizer holds too. Default: none.
        rename_groups: called when parameter groups have got their names, now and later. Default: None.

    Raises:
        ConfigError: an error that depends on the module: a pattern matches no parameter, or a link cannot be resolved;
            or an error raised by a third-party class.
        ConfigErrors: several of these errors.
        OptplugError: whatever the optimizer class raises.
    """
    setup = resolve_optimizers(setup, TrainingLength())  # raises an error if a length has not been resolved
    members = [_build_entry(module, entry, hold_frozen, rename_groups) for entry in setup.entries]
    try:
        names = [entry.optimizer.registration.name for entry in setup.entries]
        optimizer = Combined(members, names=names) if setup.is_combined else members[0]
    except OptplugError as error:
        error.loc = ("optimizer",)
        raise
    if rename_groups is not None:
        rename_groups(optimizer)
    return optimizer


def _build_entry(
    module: nn.Module, entry: OptimizerEntry, hold_frozen: Collection[str], rename_groups: RenameGroups | None
) -> torch.optim.Optimizer:
    """Build the optimizer of an entry: one, or a combination of an optimizer of matrices and its fallback."""
    members = [_resolve_links_of(module, member) for member in entry.members]
    assigned = assignments(module, entry)
    built = [
        _build_member(module, member, {name for name, one in assigned.items() if one.member == i}, hold_frozen)
        for i, member in enumerate(members)
    ]
    optimizer = built[0]
    if entry.fallback is not None:
        check_rules(module, entry, assigned)
        warn_without_matrices(entry, assigned)
        for member, one in zip(members, built, strict=True):
            for group in one.param_groups:
                group["name"] = member.group_name(group.get("name", ""))
        collector = ErrorCollector()
        with collector.collect(entry.optimizer.loc):
            optimizer = Combined(
                built,
                reasons={name: one.reason for name, one in assigned.items()},
                names=[member.optimizer.registration.name for member in members],
            )
        collector.raise_collected()
    optimizer.add_param_group = AddParamGroup(  # type: ignore[method-assign]
        optimizer, module, entry, members, assigned, rename_groups=rename_groups
    )
    return optimizer


def _resolve_links_of(module: nn.Module, entry: OptimizerEntry) -> OptimizerEntry:
    """The entry of one optimizer with numbers in place of links."""
    optimizer_config, collector = entry.optimizer, ErrorCollector()
    optimizer_config = optimizer_config.change(
        lambda config: _replace_links(collector, module, config.hyperparameters, config.argument_loc)
    )
    rules: list[AnyGroupRule] = []
    for i, rule in enumerate(entry.param_groups):
        if isinstance(rule, GroupRule):
            loc = (*entry.groups_loc, i)
            options = _replace_links(collector, module, rule.options, _keys_at(loc))
            rule = dataclasses.replace(rule, options=options)
        rules.append(rule)
    collector.raise_collected()
    resolved = dataclasses.replace(entry, optimizer=optimizer_config, param_groups=tuple(rules))
    if resolved != entry:  # the values of links have not been checked yet
        _dry_run_entry(collector, resolved)
        collector.raise_collected()
    return resolved


def _build_member(
    module: nn.Module, member: OptimizerEntry, names: Collection[str], hold_frozen: Collection[str]
) -> torch.optim.Optimizer:
    """Build one optimizer.

    Args:
        module: the module.
        member: the entry of the optimizer.
        names: the names of the parameters that are assigned to it.
        hold_frozen: as in `build_optimizer`.
    """
    config, collector = member.optimizer, ErrorCollector()
    with collector.collect(member.groups_loc[:-1]):
        groups = build_param_groups(
            module, member.param_groups, config.options, member.select, hold_frozen=hold_frozen, names=names
        )
    collector.raise_collected()
    params: list[Any] = groups if member.param_groups else [p for group in groups for p in group["params"]]
    with _construction(config, config.arguments):
        # An optimizer without parameters gets some when groups are added. The constructors require a parameter.
        optimizer = construct_optimizer(
            config.registration, params or dummy_parameters(config.registration), config.arguments, module=module
        )
    if not params:
        optimizer.param_groups.clear()
        optimizer.state.clear()
    # Schedulers write into tensors. Clone them, so that no group shares one with the configuration or another group.
    for group in optimizer.param_groups:
        group.update({key: value.detach().clone() for key, value in group.items() if isinstance(value, torch.Tensor)})
    return optimizer


@contextmanager
def _construction(config: OptimizerConfig | SchedulerConfig, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Wrap exceptions raised by third-party constructors, and set the locations of the errors.

    Args:
        config: the optimizer or scheduler that is constructed.
        arguments: the constructor arguments.
    """
    try:
        with third_party_errors(config.registration.spec.name, arguments):
            yield
    except OptplugError as error:
        collector = ErrorCollector()
        collector.add(error, config.loc, config.argument_loc)
        collector.raise_collected()


def _replace_links(
    collector: ErrorCollector, module: nn.Module, options: Mapping[str, Any], loc_of: Callable[[str], Loc]
) -> dict[str, Any]:
    """Options in which each link is replaced by its value; `loc_of` returns the location of an option."""
    result = dict(options)
    for key, value in options.items():
        if is_link(value):
            with collector.collect(loc_of(key)):
                result[key] = to_builtins(resolve_link(module, value))
    return result


def _keys_at(loc: Loc) -> Callable[[str], Loc]:
    """A function that returns the location of a key of the mapping at a location."""
    return lambda key: (*loc, key)


def is_link(value: Any) -> bool:
    """Whether a value is the text of a link, such as `module.lr`."""
    return isinstance(value, str) and LINK_PATTERN.fullmatch(value) is not None


def resolve_link(module: nn.Module, link: str) -> Any:
    """Read the attribute of a module that a link names.

    Args:
        module: the module.
        link: such as `module.lr`, or `module.hparams.lr` for a key of a mapping.

    Raises:
        ConfigError: the attribute does not exist, with the nearest match; or reading it raises an exception.
    """
    found: Any = module
    for name in link.split(".")[1:]:
        is_mapping = isinstance(found, Mapping)
        known = [key for key in map(str, found if is_mapping else dir(found)) if not key.startswith("_")]
        try:
            found = found[name] if is_mapping else getattr(found, name)
        except Exception as error:  # a property may raise anything
            if name in known:
                raise ConfigError(f"{link} cannot be read: {one_line(error)}") from error
            missing = f"{type(found).__name__} has no {'key' if is_mapping else 'attribute'} {name!r}"
            raise ConfigError(f"{link} cannot be resolved: {missing}{did_you_mean(name, known)}") from None
    return found


def resolve_links(module: nn.Module, config: Config) -> dict[str, Any]:
    """The current value of each link in a configuration, by the text of the link.

    Raises:
        ConfigError: as `resolve_link`.
    """
    found: dict[str, Any] = {}
    for setup in config.setups:
        for entry in setup.entries:
            given = [member.optimizer.hyperparameters for member in entry.members]
            given += [rule.options for rule in entry.param_groups if isinstance(rule, GroupRule)]
            for options in given:
                found |= {value: resolve_link(module, value) for value in options.values() if is_link(value)}
    return found


def build_schedule(
    optimizer: torch.optim.Optimizer, setup: OptimizerSetup, mode: str | None = None, *, counts_steps: bool = True
) -> LRScheduler | None:
    """Build the scheduler of an optimizer: a `PerGroup` if groups have their own schedules; None without a schedule.

    Args:
        optimizer: the optimizer, built from the setup.
        setup: the setup, with all lengths resolved.
        mode: as in `build_scheduler`.
        counts_steps: as in `build_scheduler`.

    Raises:
        As `build_scheduler`.
    """

    def factory(config: SchedulerConfig) -> ScheduleFactory:
        return lambda view: build_scheduler(view, config, mode, counts_steps=counts_steps)

    if setup.leading_schedule is not None:
        collector, members = ErrorCollector(), [member for entry in setup.entries for member in entry.members]
        with collector.collect(setup.leading_schedule.loc):
            check_learning_rates(optimizer, members[0].optimizer.registration if len(members) == 1 else None)
        collector.raise_collected()
    _warn_of_one_lr(optimizer, setup)
    if not setup.group_schedules:
        return None if setup.scheduler is None else factory(setup.scheduler)(optimizer)
    configs = setup.named_schedules
    scheduler = PerGroup(optimizer, {name: factory(config) for name, config in configs.items()})
    scheduler.ends = {name: config.end for name, config in configs.items() if config.end is not None}
    return scheduler


def _warn_of_one_lr(optimizer: torch.optim.Optimizer, setup: OptimizerSetup) -> None:
    """Warn if a schedule sets one learning rate for an optimizer of matrices and its fallback."""
    names = [entry.optimizer.registration.name for one in setup.entries if one.fallback for entry in one.members]
    if not names or len(optimizer.param_groups) < 2:
        return
    for schedule in setup.schedules:
        if isinstance(schedule.arguments.get("max_lr"), (int, float)):
            groups = listing(str(group["name"]) for group in optimizer.param_groups)
            message = f"max_lr of {schedule.name} is one learning rate for {' and '.join(names)}"
            warnings.warn(f"{message}: give a list with one for each group ({groups})", UserWarning, stacklevel=3)


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    scheduler_config: SchedulerConfig,
    mode: str | None = None,
    *,
    counts_steps: bool = True,
) -> LRScheduler:
    """Build the scheduler of an optimizer, with its warmup.

    Args:
        optimizer: the optimizer whose learning rates are scheduled.
        scheduler_config: from `optplug.config.parse.parse`, with all lengths resolved
            (`optplug.config.training_length.resolve_lengths`).
        mode: `"min"` or `"max"`; passed to a scheduler that takes a metric and has an argument `mode`.
        counts_steps: whether the warmup counts the optimizer steps itself; see `Warmup`. Default: True.

    Raises:
        ConfigError: an error raised by a third-party class.
        OptplugError: whatever the scheduler class raises.
    """
    if scheduler_config.name is None:
        scheduler: LRScheduler = Unscheduled(optimizer)
    else:
        registration = scheduler_config.registration
        arguments = dict(scheduler_config.arguments)
        if mode is not None and scheduler_config.takes_metric and "mode" in configurable_arguments(registration):
            arguments["mode"] = mode
        with _construction(scheduler_config, arguments):
            scheduler = _construct_scheduler(scheduler_config.name, optimizer, arguments)
    for group in optimizer.param_groups:  # ReduceLROnPlateau does not store base learning rates
        group.setdefault("initial_lr", float(group["lr"]))
    if scheduler_config.warmup is not None and scheduler_config.warmup.length:
        warmup = scheduler_config.warmup
        interval = "validation" if scheduler_config.takes_metric else scheduler_config.interval
        cls = PlateauWarmup if isinstance(scheduler, ReduceLROnPlateau) else Warmup
        scheduler = cls(
            scheduler,
            int(warmup.length),
            warmup.start_factor,
            delays_schedule=warmup.delays_schedule,
            counts_steps=counts_steps,
            interval=interval,
        )
    return scheduler


def check_parameter_partition(module: nn.Module, config: Config) -> None:
    """Check that each trainable parameter is selected by exactly one of several optimizers.

    A frozen parameter may be selected by none or several; then no optimizer holds it.

    Args:
        module: the module.
        config: the configuration. Without selectors there is nothing to check.

    Raises:
        ConfigError: two optimizers select the same parameter, or no optimizer selects a parameter; with the names.
        ConfigErrors: several of these errors.
    """
    located = [(entry.optimizer.loc, entry) for setup in config.setups for entry in setup.entries]
    if all(entry.select is None for _, entry in located):
        return
    collector = ErrorCollector()
    parameters = module_parameters(module)
    for loc, entry in located:
        with collector.collect(loc):
            if entry.select is not None:
                check_selector(entry.select, parameters, module)
    locs_of = {
        p.name: [loc for loc, entry in located if entry.select is None or entry.select.selects(p)]
        for p in parameters
        if p.is_trainable
    }
    shared = [name for name, locs in locs_of.items() if len(locs) > 1]
    unassigned = [name for name, locs in locs_of.items() if not locs]
    if shared:
        both = " and ".join(map(loc_text, locs_of[shared[0]]))
        message = f"{both} both select {short_list(shared)}: a parameter must have exactly one optimizer"
        collector.add(ConfigError(message), ("optimizer",))
    if unassigned:
        message = f"no optimizer selects {short_list(unassigned)}: select them too, or freeze them"
        collector.add(ConfigError(message), ("optimizer",))
    collector.raise_collected()


# --------------------------------------------------------------------------- checks without a model


def parse_and_check(optimizer: Any = None, scheduler: Any = None, **options: Any) -> Config:
    """Parse a configuration and check everything that does not depend on the model's parameters.

    Values of hyperparameters are checked by a dry run: optimizers and schedulers are built on dummy parameters.

    Args:
        optimizer: as in `optplug.config.parse.parse`.
        scheduler: as in `optplug.config.parse.parse`.
        options: as in `optplug.config.parse.parse`.

    Raises:
        OptplugError: as `optplug.config.parse.parse`.
        HyperparameterError: a class rejects a value.
        HyperparameterTypeError: a class rejects the type of a value.
        EngineError: the engine does not exist or cannot be used.
        ConfigErrors: several errors; all of them are reported.
    """
    collector = ErrorCollector()
    config = parse_collecting(collector, optimizer, scheduler, **options)
    _dry_run(collector, config)
    collector.sort({"optimizer": optimizer, "scheduler": scheduler, **options})
    collector.raise_collected()
    return config


def _dry_run(collector: ErrorCollector, config: Config) -> None:
    """Build everything once on dummy parameters, so that invalid values are found before there is a model."""
    for setup in config.setups:
        for entry in setup.entries:
            first, *others = entry.members
            _check_member(collector, setup, first)
            for member in others:
                found = ErrorCollector()
                _check_member(found, setup, member)
                reported = {error.loc for error in collector.errors}  # the group rules apply to the first member too
                collector.errors += [error for error in found.errors if error.loc not in reported]
        for schedule in setup.schedules:
            if schedule.name is not None:
                _dry_run_scheduler(collector, setup, schedule)


def _check_member(collector: ErrorCollector, setup: OptimizerSetup, member: OptimizerEntry) -> None:
    """Check the values of an optimizer, and that it has a learning rate if there is a schedule."""
    registration = member.optimizer.registration
    if "module" in registration.spec.capabilities and member.param_groups:
        message = f"{registration.name} takes the module and makes its own parameter groups: remove param_groups"
        collector.add(ConfigError(message), member.groups_loc)
        return
    if setup.is_combined and not registration.spec.capabilities.isdisjoint({"closure", "gradients_first"}):
        message = f"{registration.name} evaluates the closure in its own step, and combine evaluates it once for all"
        collector.add(ConfigError(f"{message}: use {registration.name} alone"), member.optimizer.loc)
        return
    rehearsed = _dry_run_entry(collector, member)
    is_link = not _without_links({"lr": member.optimizer.options.get("lr", 0)})
    if rehearsed is not None and not is_link:
        for schedule in setup.schedules:
            with collector.collect(schedule.loc):
                check_learning_rates(rehearsed, registration)


def _dry_run_entry(collector: ErrorCollector, entry: OptimizerEntry) -> torch.optim.Optimizer | None:
    """Construct the optimizer of an entry on small parameters, and the optimizer that it wraps; return the first."""
    rehearsed, errors = None, collector.errors
    before = len(errors)
    for layer in reversed(entry.layers):
        start, reported = len(errors), {error.loc for error in errors[before:]}
        rehearsed = _dry_run_layer(collector, layer)
        # A group rule may apply to several of the optimizers.
        errors[start:] = [error for error in errors[start:] if error.loc not in reported]
        if _has_errors(collector, layer.optimizer.loc):  # a wrapper would report the errors of its base again
            return None
    return rehearsed


def check_learning_rates(optimizer: torch.optim.Optimizer, registration: Registration | None) -> None:
    """Check that a schedule or a warmup can change the learning rates of an optimizer.

    Args:
        optimizer: the optimizer.
        registration: its registration; None if the module has built it.

    Raises:
        ConfigError: a parameter group has none.
    """
    lrs = [group.get("lr", ...) for group in optimizer.param_groups]
    if ... not in lrs and None not in lrs:
        return
    name = type(optimizer).__name__ if registration is None else registration.name
    has = "has lr=None" if None in lrs else "has no lr"
    takes_lr = registration is not None and "lr" in configurable_arguments(registration)
    remedy = "give the optimizer an lr, or remove the scheduler" if takes_lr else "remove the scheduler"
    raise ConfigError(f"a schedule changes the lr of parameter groups, and {name} {has}: {remedy}")


def _dry_run_layer(collector: ErrorCollector, entry: OptimizerEntry) -> torch.optim.Optimizer | None:
    """Construct one optimizer on small parameters, and check the rules of its groups.

    Returns:
        The optimizer with all arguments; None after an error, and if it can only be constructed on the real parameters.
    """
    optimizer_config = entry.optimizer
    registration = optimizer_config.registration
    built: list[torch.optim.Optimizer] = []
    wrapped = optimizer_config.change(_assumed_hyperparameters).arguments.get(BASE_KEY)

    def construct(arguments: Mapping[str, Any], options: Mapping[str, Any] = MappingProxyType({})) -> None:
        given = arguments if wrapped is None else {**arguments, BASE_KEY: wrapped}
        with suppress(ImpossibleConstructionError):
            built.append(rehearse(registration, given, options or None))

    given = _assumed_hyperparameters(optimizer_config)
    loc = optimizer_config.loc
    is_known = not has_unresolved(optimizer_config.hyperparameters)
    argument_loc = optimizer_config.argument_loc
    accepted = _accepted_arguments(collector, construct, given, loc, argument_loc, report_contradictions=is_known)
    is_valid = not _has_errors(collector, loc)
    if not is_valid:  # the groups are checked with arguments that do not contradict each other
        accepted = next((a for a in (accepted, {}) if a is not None and _is_accepted(construct, a)), None)
    if accepted is None:
        return None
    rehearsed = built[0] if is_valid and built else None
    for i, rule in enumerate(entry.param_groups):
        rule_loc = (*entry.groups_loc, i)
        if isinstance(rule, LayerDecay) and "lr" not in configurable_arguments(registration):
            collector.add(ConfigError(f"{registration.name} has no lr for layer_decay to multiply"), rule_loc)
        if "one_lr" in registration.spec.capabilities and isinstance(rule, (GroupRule, LayerDecay)):
            _report_other_lr(collector, optimizer_config, rule, rule_loc)
        if not isinstance(rule, GroupRule):
            continue
        base = dataclasses.replace(optimizer_config, hyperparameters=accepted).options
        for multiplier, key in MULTIPLIERS.items():
            if multiplier in rule.options and base.get(key) is None:
                message = f"{registration.name} has no value of {key} to multiply"
                collector.add(ConfigError(message), (*rule_loc, multiplier))
        options = {k: v for k, v in _without_links(rule.options).items() if k not in MULTIPLIERS}
        if options:
            construct_group = functools.partial(construct, accepted)
            _accepted_arguments(
                collector,
                construct_group,
                options,
                rule_loc,
                _keys_at(rule_loc),
                report_contradictions=is_valid and is_known,
            )
    return rehearsed


def _report_other_lr(
    collector: ErrorCollector, optimizer_config: OptimizerConfig, rule: GroupRule | LayerDecay, loc: Loc
) -> None:
    """Collect an error if a group has another learning rate than 0 and that of the optimizer, which requires one."""
    name, lr = optimizer_config.registration.name, optimizer_config.options.get("lr")
    message = f"{name} requires the same lr in all parameter groups, or 0"
    if isinstance(rule, LayerDecay):
        if rule.decay != 1:
            collector.add(ConfigError(f"{message}: remove layer_decay"), loc)
        return
    given = _without_links(rule.options)
    for key, allowed in (("lr", (0, lr)), ("lr_mult", (0, 1))):
        if key in given and None not in allowed and given[key] not in allowed:
            collector.add(ConfigError(f"{message}: remove {key}, or set lr in optimizer"), (*loc, key))
    if rule.scheduler is not None and rule.scheduler.name is not None:
        collector.add(ConfigError(f"{message}: remove the scheduler of the group"), (*loc, "scheduler"))


def _is_accepted(construct: Callable[[Mapping[str, Any]], None], arguments: Mapping[str, Any]) -> bool:
    try:
        construct(arguments)
    except OptplugError:
        return False
    return True


def _has_errors(collector: ErrorCollector, loc: Loc) -> bool:
    """Whether an error of the mapping at a location, or of a value in it, has been collected."""
    return any(error.loc[: len(loc)] == loc for error in collector.errors)


def _dry_run_scheduler(collector: ErrorCollector, setup: OptimizerSetup, scheduler_config: SchedulerConfig) -> None:
    assert scheduler_config.name is not None
    name = scheduler_config.name
    registration = scheduler_config.registration
    is_foreign = not is_strict(target_of(registration))
    if is_foreign and (registration.spec.unsupported or not _has_valid_functions(collector, scheduler_config)):
        return
    given = {key: value for key, value in scheduler_config.arguments.items() if not has_unresolved(value)}
    relative = {key for key in scheduler_config.length_arguments if is_relative(given.get(key))}
    if depends_on_training_length(scheduler_config):
        alone = dataclasses.replace(scheduler_config, arguments=given, warmup=None)
        given |= resolve_lengths(alone, _assumed_training(alone)).arguments
    is_known = not relative and not has_unresolved(scheduler_config.arguments)
    group_counts = {1}
    if any(entry.param_groups or entry.fallback for entry in setup.entries) or len(setup.entries) != 1:
        # The number of groups depends on the module. Assume that arguments with one value per group have the right
        # length.
        lengths = {len(value) for value in given.values() if isinstance(value, (list, tuple))}
        group_counts = lengths - {0} or {1}
    if len(group_counts) != 1:
        return
    lrs = [entry.optimizer.options.get("lr") for entry in setup.entries]
    lr = next((lr for lr in lrs if isinstance(lr, (int, float)) and lr > 0), 0.1)

    def construct_it(arguments: Mapping[str, Any]) -> Schedule:
        # The class of the optimizer does not matter: schedulers use its parameter groups only. Some set the momentum.
        groups = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(*group_counts)]
        return _construct_scheduler(name, torch.optim.Optimizer(groups, {"lr": lr, "momentum": 0.9}), arguments)

    def construct(arguments: Mapping[str, Any]) -> None:
        try:
            if is_foreign:
                rehearse_scheduler(registration, arguments, construct_it)
            else:
                construct_it(arguments)
        except OptplugError as joined:
            _explain_missing_length(scheduler_config, arguments, joined)
            # With the real lengths, these errors may not occur, or have other numbers in them.
            if not {error.argument for error in joined.errors} <= {*relative, None} or not relative:
                raise
        except (ImpossibleConstructionError, TypeError, ValueError, LookupError, ArithmeticError):
            pass  # it may need the real optimizer; an actual error is raised again when the scheduler is built

    # Values for the required arguments that are missing or invalid.
    required = [key for key, p in configurable_arguments(registration).items() if p.default is p.empty]
    valid = {key: value for key, value in declared_cases(registration)[0].items() if key in required}
    loc, argument_loc = scheduler_config.loc, scheduler_config.argument_loc
    _accepted_arguments(collector, construct, given, loc, argument_loc, valid, report_contradictions=is_known)


def _has_valid_functions(collector: ErrorCollector, scheduler_config: SchedulerConfig) -> bool:
    """Check the arguments of a third-party scheduler that are functions. The scheduler is not constructed."""
    registration, given = scheduler_config.registration, scheduler_config.arguments
    if function_arguments(registration):
        from optplug.config.expressions import resolve_function_arguments

        known = {key: value for key, value in given.items() if not has_unresolved(value)}
        try:
            resolve_function_arguments(registration, known)
        except OptplugError as joined:
            collector.add(joined, scheduler_config.loc, scheduler_config.argument_loc)
            return False
    return True


def _explain_missing_length(
    scheduler_config: SchedulerConfig, arguments: Mapping[str, Any], joined: OptplugError
) -> None:
    """Add to the error about a length that is not given that it may be `auto`; its location is that of the schedule."""
    total = scheduler_config.length_argument
    for error in joined.errors:
        if total is not None and error.argument == total and total not in arguments:
            hint = missing_length_hint(scheduler_config.registration, [total])
            error.args, error.argument = (f"{error.message}{hint}",), None


def _assumed_training(scheduler_config: SchedulerConfig) -> TrainingLength:
    """A training that is longer than all numbers in the lengths of a schedule, for a dry run."""
    lengths = (scheduler_config.arguments.get(name) for name in scheduler_config.all_lengths)
    steps = 1000 * int(max((1, *(number for length in lengths for number in numbers_in(length)))))
    return TrainingLength(steps, steps, EpochSteps(((0, 1),)), is_dry_run=True)


def _assumed_hyperparameters(optimizer: OptimizerConfig) -> dict[str, Any]:
    """The hyperparameters that are known without model and training, and a number for a length of the training."""
    given = _without_links(optimizer.hyperparameters)
    lengths = length_arguments(optimizer.registration)
    return {key: 1000 if key in lengths and is_relative(value) else value for key, value in given.items()}


def _without_links(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not is_link(value) and not has_unresolved(value)}


def _accepted_arguments(
    collector: ErrorCollector,
    construct: Callable[[Mapping[str, Any]], None],
    given: Mapping[str, Any],
    loc: Loc,
    argument_loc: Callable[[str], Loc],
    substitutes: Mapping[str, Any] = MappingProxyType({}),
    *,
    report_contradictions: bool = True,
) -> dict[str, Any] | None:
    """Collect the errors that a constructor raises.

    Args:
        collector: collects the errors. If it has an error at `loc`, arguments are missing in `given`. Contradictions
            are not reported then: a missing argument may be their cause.
        construct: calls the constructor.
        given: the arguments.
        loc: the location of the mapping that has the arguments.
        argument_loc: returns the location of an argument.
        substitutes: valid values for required arguments.
        report_contradictions: False if the arguments on which those in `given` depend may be wrong.

    Returns:
        The arguments without the wrong ones; None after an error that is not about one of the given arguments.
    """
    report_contradictions = report_contradictions and not _has_errors(collector, loc)
    faulty: set[str | None] = set()

    def given_loc(name: str) -> Loc:
        """The location of an argument. If it is not given, it contradicts the only given one, or several."""
        given_name = name if name in given else next(iter(given)) if len(given) == 1 else None
        return loc if given_name is None else argument_loc(given_name)

    try:
        construct({**substitutes, **given})
    except OptplugError as joined:
        for error in joined.errors:
            faulty.add(error.argument)
            if report_contradictions or not error.is_contradiction:
                if error.argument not in given:
                    error.inside = ()
                collector.add(error, loc, given_loc)
    return {key: value for key, value in given.items() if key not in faulty} if faulty <= set(given) else None
