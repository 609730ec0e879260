"""Construction of an optimizer from its registration: the only calls of optimizer classes and of factories."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from optplug.config.argument_values import value_errors
from optplug.config.form import ARGS, BASE_KEY
from optplug.config.third_party import third_party_errors
from optplug.errors import ConfigError, ConfigTypeError, ErrorCollector, OptplugError, PluginError, one_line, short_list
from optplug.optim.adapted_step import (
    adapt_step,
    check_closure_call,
    evaluate_first,
    evaluate_first_and_pass,
    has_step_of_torch,
    require_closure,
    takes_no_arguments,
)
from optplug.optim.strict_kwargs import is_strict
from optplug.registry import Registration, registry
from optplug.registry.signature import base_argument, configurable_arguments, takes_built_base, target_of


def construct_optimizer(
    registration: Registration, params: Any, arguments: Mapping[str, Any], *, module: nn.Module | None = None
) -> Optimizer:
    """Construct an optimizer.

    Args:
        registration: the optimizer.
        params: what torch's optimizers accept: tensors, pairs of a name and a tensor, or dicts that each describe a
            parameter group.
        arguments: the other arguments of the class or factory. For an optimizer that wraps another one, also `base`: a
            name, or a mapping with `name` and arguments, which may be under `args`.
        module: the module that has the parameters. Default: None. It is required for a class that takes the module, and
            for one that takes pairs unless `params` has the names.

    Returns:
        The optimizer. Its class may be a subclass with another `step`, which evaluates the closure (capabilities
        `no_closure` and `gradients_first`) or checks it (other classes of other packages, if `step` is not torch's).

    Raises:
        ConfigError: the optimizer is unsupported, or it cannot have parameter groups or some of the parameters only.
        ConfigTypeError: the module, or the names of the parameters, are missing.
        PluginError: the factory does not return an optimizer.
        Exception: whatever the class or factory raises.
    """
    check_is_supported(registration)
    target, build = target_of(registration), registration.load_build()
    if not is_strict(target):
        check_values(registration, params, arguments)
    accepted, arguments = _with_base(registration, _accepted_params(registration, params, module), arguments, module)
    with _refused_groups(registration, accepted):
        made = target(accepted, **arguments) if build is None else build(target, accepted, **arguments)
    if not isinstance(made, Optimizer):
        raise PluginError(
            f"optimizer {registration.name!r} of plugin {registration.plugin} returned "
            f"a {type(made).__name__}, which is not a torch.optim.Optimizer"
        )
    _adapt_step(registration, made)
    if base_argument(registration) and hasattr(made, "defaults"):
        # Sets what is missing for hooks if the class does not call torch's constructor. Only now: torch also changes
        # the class of `made`, which must not be that of other instances.
        Optimizer.__setstate__(made, {})
    return made


def check_is_supported(registration: Registration) -> None:
    """Check that a training loop can use an optimizer or scheduler.

    Raises:
        ConfigError: its spec declares why not.
    """
    spec = registration.spec
    if spec.unsupported:
        raise ConfigError(f"{spec.name} of plugin {registration.plugin.name} cannot be used: {spec.unsupported}")


def _adapt_step(registration: Registration, optimizer: Optimizer) -> None:
    capabilities, name = registration.spec.capabilities, registration.name
    if "gradients_first" in capabilities:
        adapt_step(optimizer, evaluate_first_and_pass, name)
    elif "no_closure" in capabilities or takes_no_arguments(optimizer.step):
        adapt_step(optimizer, evaluate_first, name)
    elif not is_strict(target_of(registration)):
        if "closure" in capabilities:
            adapt_step(optimizer, require_closure, name)
        elif not has_step_of_torch(optimizer):
            adapt_step(optimizer, check_closure_call, name)


def check_values(registration: Registration, params: Any, arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a class of another package, and the options of its parameter groups.

    Raises:
        HyperparameterError: a learning rate is below 0, a choice does not exist, or a list has the wrong length.
        HyperparameterTypeError: a value has not the type of the argument.
    """
    groups = [item for item in params if isinstance(item, Mapping)] if isinstance(params, list) else []
    collector = ErrorCollector()
    for options in (arguments, *groups):
        for error in value_errors(registration, options):
            collector.add(error)
    collector.raise_joined()


# ------------------------------------------------------------------------------------------ the base of a wrapper


def _with_base(
    wrapper: Registration, params: Any, arguments: Mapping[str, Any], module: nn.Module | None
) -> tuple[Any, Mapping[str, Any]]:
    """The first argument and the others of a class, with the base of a wrapper: built, or as a class with its options.

    Raises:
        OptplugError: as `construct_optimizer`. The locations of errors about the base begin with `base`.
    """
    given = arguments.get(BASE_KEY)
    if given is None or not base_argument(wrapper):
        return params, arguments
    mapping: Mapping[str, Any] = {"name": given} if isinstance(given, str) else given
    base = registry.resolve("optimizer", mapping["name"])
    options = {**mapping, **(mapping.get(ARGS) or {})}
    options = {key: value for key, value in options.items() if key not in ("name", ARGS)}
    others = {key: value for key, value in arguments.items() if key != BASE_KEY}
    if takes_built_base(wrapper):
        return _built_base(base, params, options, module), others
    # A keyword that is also an argument of the wrapper would not reach the base.
    shared = {key: options[key] for key in options.keys() & configurable_arguments(wrapper).keys()}
    passed_on = {key: value for key, value in options.items() if key not in shared}
    cls, build = target_of(base), base.load_build()
    cls = cls if build is None else functools.partial(build, cls)
    return params, {**passed_on, **others, base_argument(wrapper): functools.partial(cls, **shared) if shared else cls}


def _built_base(base: Registration, params: Any, options: Mapping[str, Any], module: nn.Module | None) -> Optimizer:
    try:
        with third_party_errors(base.name, options):
            return construct_optimizer(base, params, options, module=module)
    except OptplugError as joined:
        for error in joined.errors:
            error.loc = (BASE_KEY, *((error.argument,) if error.argument else ()), *error.inside, *error.loc)
            error.argument = None
        raise


# ------------------------------------------------------------------------------------------ the parameters


def _accepted_params(registration: Registration, params: Any, module: nn.Module | None) -> Any:
    """The first argument of a class: the parameters, the module, or pairs of a name and a parameter."""
    if "module" in registration.spec.capabilities:
        return _whole_module(registration, params, module)
    if "named_params" in registration.spec.capabilities:
        return _named(registration, params, module)
    return params


def _whole_module(registration: Registration, params: Any, module: nn.Module | None) -> nn.Module:
    name = registration.name
    if module is None:
        raise ConfigTypeError(f"{name} takes a module in place of parameters: pass the module")
    params = list(params)
    if any(isinstance(item, Mapping) for item in params):
        raise ConfigError(f"{name} takes the module and makes its own parameter groups: remove param_groups")
    given = {id(p) for p in params}
    others = [key for key, p in module.named_parameters() if p.requires_grad and id(p) not in given]
    if others:
        message = f"{name} takes the whole module, and cannot leave out {short_list(others)}"
        raise ConfigError(f"{message}: give it all parameters, or freeze the others")
    return module


def _named(registration: Registration, params: Any, module: nn.Module | None) -> list[Any]:
    """Pairs of a name and a parameter, also within the dicts of parameter groups."""
    names = {id(p): key for key, p in module.named_parameters()} if module is not None else {}

    def pair(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        if id(item) not in names:
            raise ConfigTypeError(
                f"{registration.name} takes pairs of a name and a parameter: pass the module, or its named_parameters()"
            )
        return names[id(item)], item

    def pairs(items: Any) -> list[Any]:
        return [pair(item) for item in (items if isinstance(items, Iterable) and not _is_pair(items) else [items])]

    return [
        {**item, "params": pairs(item["params"])} if isinstance(item, Mapping) and "params" in item else pair(item)
        for item in params
    ]


@contextmanager
def _refused_groups(registration: Registration, params: Any) -> Iterator[None]:
    """Explain the error of a class that takes pairs of a name and a parameter, but no parameter groups."""
    has_groups = isinstance(params, list) and any(isinstance(item, Mapping) for item in params)
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        if has_groups and "named_params" in registration.spec.capabilities:
            message = f"{registration.name} takes no parameter groups: remove param_groups ({one_line(error)})"
            raise ConfigError(message) from error
        raise


def _is_pair(item: Any) -> bool:
    return isinstance(item, torch.Tensor) or (isinstance(item, tuple) and bool(item) and isinstance(item[0], str))
