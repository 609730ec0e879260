"""Construction of optimizers and schedulers on small parameters, to find refused values before there is a model.

A class of another package is constructed in `optplug.config.isolation.isolated`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from optplug.config.construction import check_values, construct_optimizer
from optplug.config.form import BASE_KEY
from optplug.config.isolation import isolated
from optplug.config.third_party import third_party_errors
from optplug.errors import DependencyError, OptplugError, PluginError
from optplug.optim.strict_kwargs import is_strict
from optplug.registry import Registration
from optplug.registry.signature import configurable_arguments, declared_cases, target_of

_Construct = Callable[[Mapping[str, Any], "Mapping[str, Any] | None"], Any]
"""Constructs an optimizer or scheduler from its arguments and the options of a second parameter group."""


class ImpossibleConstructionError(Exception):
    """An optimizer or scheduler cannot be constructed on small parameters. This is no error of the configuration."""


def dummy_parameters(registration: Registration) -> list[nn.Parameter]:
    """Small parameters that an optimizer accepts."""
    declared = getattr(registration.spec, "shapes", ())
    if not declared and is_strict(target_of(registration)):
        declared = ((1,) * (2 if "matrix_only" in registration.spec.capabilities else 1),)
    return [nn.Parameter(torch.zeros(shape)) for shape in declared or ((2, 2),)]


def rehearse(
    registration: Registration, arguments: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> Optimizer:
    """Construct an optimizer on small parameters.

    Args:
        registration: the optimizer.
        arguments: its arguments. For a class of another package, the plugin's `cases` replace missing required ones.
        options: the options of a second parameter group. Default: there are no groups.

    Raises:
        OptplugError: the class refuses a value. Its `argument` is the argument or the option, if that is known.
        DependencyError: the class needs a package that is not installed.
        PluginError: `build` cannot be imported, or a factory does not return an optimizer.
        ImpossibleConstructionError: a class of another package also refuses the values that its plugin declares, or
            raises another exception.
    """
    construct = functools.partial(_construct, registration)
    if is_strict(target_of(registration)):
        return construct(arguments, options)
    required, valid = _required(registration)
    arguments = {**valid, **arguments}
    check_values(registration, [] if options is None else [options], arguments)
    if any(key not in arguments for key in required):
        raise ImpossibleConstructionError
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ImpossibleConstructionError  # its constructor may communicate with the other processes
    optimizer: Optimizer = _rehearsed(registration, construct, arguments, options)
    return optimizer


def rehearse_scheduler(
    registration: Registration, arguments: Mapping[str, Any], construct: Callable[[Mapping[str, Any]], Any]
) -> None:
    """Construct a scheduler of another package.

    Args:
        registration: the scheduler.
        arguments: its arguments. The plugin's `cases` replace missing required ones.
        construct: constructs it on an optimizer.

    Raises:
        OptplugError, ImpossibleConstructionError: as `rehearse`.
    """
    required, valid = _required(registration)
    arguments = {**valid, **arguments}
    check_values(registration, [], arguments)
    if any(key not in arguments for key in required):
        raise ImpossibleConstructionError

    def construct_it(given: Mapping[str, Any], _: Mapping[str, Any] | None) -> Any:
        with third_party_errors(registration.name, given):
            return construct(given)

    _rehearsed(registration, construct_it, arguments, None)


def _rehearsed(
    registration: Registration, construct: _Construct, arguments: Mapping[str, Any], options: Mapping[str, Any] | None
) -> Any:
    try:
        with isolated():
            return construct(arguments, options)
    except OptplugError as error:
        if error.argument is None and not isinstance(error, (DependencyError, PluginError)):
            error.argument = _refused_argument(registration, construct, arguments, options)
        raise
    except Exception as error:  # the constructor of a third-party class can raise anything
        raise ImpossibleConstructionError from error


def _construct(
    registration: Registration, arguments: Mapping[str, Any], options: Mapping[str, Any] | None
) -> Optimizer:
    first, second = dummy_parameters(registration), [] if options is None else dummy_parameters(registration)
    module = nn.ParameterList([*first, *second])
    params: list[Any] = first if options is None else [{"params": first}, {"params": second, **options}]
    with third_party_errors(registration.name, {**arguments, **(options or {})}):
        return construct_optimizer(registration, params, arguments, module=module)


def _refused_argument(
    registration: Registration, construct: _Construct, arguments: Mapping[str, Any], options: Mapping[str, Any] | None
) -> str | None:
    """The argument or option without which it can be constructed; None if there is no single one.

    Raises:
        ImpossibleConstructionError: it cannot be constructed with the values that its plugin declares either.
    """
    without: dict[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]]
    if options is not None:
        is_possible = _is_accepted(construct, arguments)
        without = {key: (arguments, _without(options, key)) for key in options}
    else:
        required, valid = _required(registration)
        reference = {
            **{key: arguments[key] for key in (*required, BASE_KEY) if key in arguments},
            **declared_cases(registration)[0],
        }
        is_possible = reference != arguments and _is_accepted(construct, reference)
        without = {key: ({**valid, **_without(arguments, key)}, None) for key in arguments}
    if not is_possible:
        raise ImpossibleConstructionError
    return next((key for key, given in without.items() if _is_accepted(construct, *given)), None)


def _required(registration: Registration) -> tuple[list[str], dict[str, Any]]:
    """The required arguments, and the values of those that the plugin declares."""
    required = [key for key, p in configurable_arguments(registration).items() if p.default is p.empty]
    return required, {key: value for key, value in declared_cases(registration)[0].items() if key in required}


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _is_accepted(construct: _Construct, arguments: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> bool:
    try:
        with isolated():
            construct(arguments, options)
    except Exception:  # of another package
        return False
    return True
