"""Creation of the shims: classes with a registered name, its signature, and a call that builds the registered class."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
import typing
import warnings
from typing import Any

import torch
from jsonargparse.typing import register_type
from torch.optim.lr_scheduler import LRScheduler

from optplug.config.third_party import third_party_errors
from optplug.errors import ConfigError, ConfigTypeError, one_line
from optplug.registry import Registration, registry
from optplug.registry.signature import (
    Argument,
    base_argument,
    documented_arguments,
    function_arguments,
    requires_base,
)
from optplug.registry.specs import LENGTH_ARGUMENTS

BASE_TYPE = str | dict[str, Any]
"""The type of the additional argument of an optimizer that wraps another one: its name, or a mapping with it."""

MONITOR = Argument("monitor", str, inspect.Parameter.empty, "the metric to monitor")
"""Additional argument of a scheduler that takes a metric. LightningCLI's ReduceLROnPlateau has the same argument."""

LIGHTNING_CLI_MODULES = ("lightning.pytorch.cli", "pytorch_lightning.cli")


def make_shims(kind: str, module: str) -> dict[str, type]:
    """Create a shim for every registered name of a kind.

    Args:
        kind: `"optimizer"` or `"scheduler"`.
        module: the name of the module that will contain the shims.

    Returns:
        The shims by their names in the module.
    """
    made = {}
    for shortest, registration in zip(registry.names(kind), registry.registrations(kind), strict=True):
        qualified = re.sub(r"\W", "_", f"{registration.plugin.name}__{registration.name}")
        name = registration.name if shortest == registration.name else qualified
        builder = OptimizerBuilder(registration) if kind == "optimizer" else SchedulerBuilder(registration)
        contents = {"__new__": _ShimNew(builder), "__doc__": registration.spec.summary, "__module__": module}
        made[name] = type(name, (builder.base_class,), contents)
    return made


class _ShimNew:
    # The `__new__` of a shim. A parser reads the signature and the docstring only of the chosen shim, and only then the
    # registered class is loaded. This is a comment because `__doc__` is a property below.

    def __init__(self, builder: OptimizerBuilder) -> None:
        self.__name__ = "__new__"
        self.builder = builder

    def __call__(self, cls: type, target: Any, /, **given: Any) -> Any:
        return self.builder.build(target, given)

    @property
    def __signature__(self) -> inspect.Signature:
        positional = ("cls", self.builder.target_name)
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in positional]
        for a in self.builder.arguments:
            hint = self.builder.parser_type(a)
            keyword = inspect.Parameter(a.name, inspect.Parameter.KEYWORD_ONLY, default=a.default, annotation=hint)
            parameters.append(keyword)
        return inspect.Signature(parameters)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        registration = self.builder.registration
        head = [registration.spec.summary or registration.name, "", "Args:"]
        return "\n".join([*head, *(f"    {a.name}: {a.description}" for a in self.builder.arguments if a.description)])


# ------------------------------------------------------------------------------------------ builders


class OptimizerBuilder:
    """The signature of an optimizer's shim, and the construction of the optimizer.

    Attributes:
        base_class: the base class of the shim. LightningCLI finds shims as subclasses of torch's classes.
        target_name: the name of the positional argument.
        registration: the registered name.
    """

    base_class: type = torch.optim.Optimizer
    target_name = "params"

    def __init__(self, registration: Registration) -> None:
        self.registration = registration

    @functools.cached_property
    def class_arguments(self) -> list[Argument]:
        """The arguments of the registered class. If the class cannot be loaded: a warning, and no arguments."""
        try:
            return documented_arguments(self.registration)
        except Exception as error:  # a third-party module can raise anything; the parser would hide the cause
            warnings.warn(f"optplug.shims: {one_line(error)}", stacklevel=2)
            return []

    @property
    def arguments(self) -> list[Argument]:
        """The arguments of the shim."""
        if not base_argument(self.registration):
            return self.class_arguments
        from optplug.config.form import BASE, BASE_KEY  # a local import: it loads classes named like torch's

        is_required = requires_base(self.registration)
        type_, default = (BASE_TYPE, inspect.Parameter.empty) if is_required else (BASE_TYPE | None, None)
        return [Argument(BASE_KEY, type_, default, BASE[BASE_KEY].plain_words), *self.class_arguments]

    def parser_type(self, argument: Argument) -> Any:
        """The type of an argument for the parser."""
        return _without_dtype(argument.type)

    def build(self, target: Any, given: dict[str, Any]) -> Any:
        from optplug.config.build import create_optimizer  # a local import: it loads classes named like torch's

        with third_party_errors(self.registration.spec.name, given):
            return create_optimizer(self.registration.qualified_name, target, **given)


class SchedulerBuilder(OptimizerBuilder):
    """The signature of a scheduler's shim, and the construction of the scheduler."""

    base_class = LRScheduler
    target_name = "optimizer"

    @property
    def takes_metric(self) -> bool:
        return "metric" in self.registration.spec.capabilities

    @property
    def arguments(self) -> list[Argument]:
        has_own_monitor = any(argument.name == MONITOR.name for argument in self.class_arguments)
        return [MONITOR, *self.class_arguments] if self.takes_metric and not has_own_monitor else self.class_arguments

    def parser_type(self, argument: Argument) -> Any:
        if argument is MONITOR:
            return argument.type
        if argument.name in function_arguments(self.registration):
            return str | float | list[str | float]
        if argument.name in (getattr(self.registration.spec, "length", ""), *LENGTH_ARGUMENTS):
            return Length if argument.type in (int, Any) else typing.Union[argument.type, Length]  # noqa: UP007
        return super().parser_type(argument)

    def build(self, target: Any, given: dict[str, Any]) -> Any:
        from optplug.config.build import create_scheduler  # a local import: it loads classes named like torch's

        monitor = given.get(MONITOR.name)
        if MONITOR in self.arguments:
            given = {key: value for key, value in given.items() if key != MONITOR.name}
            if not isinstance(monitor, str) or not monitor:
                raise ConfigError(
                    f"scheduler {self.registration.name!r} needs monitor, the name of a metric, got {monitor!r}"
                )
        with third_party_errors(self.registration.spec.name, given):
            scheduler = create_scheduler(self.registration.qualified_name, target, **given)
            if self.takes_metric:
                _add_lightning_base(scheduler, monitor)
        return scheduler


def _add_lightning_base(scheduler: Any, monitor: Any) -> None:
    """Make a scheduler an instance of LightningCLI's ReduceLROnPlateau too, and set its monitor.

    LightningCLI tests for its own class with `isinstance`, and reads the attribute `monitor`. The two import names of
    Lightning have different classes. All loaded ones are added, since one of them belongs to the running LightningCLI.
    """
    plateaus = [sys.modules[name].ReduceLROnPlateau for name in LIGHTNING_CLI_MODULES if name in sys.modules]
    cls: Any = type(scheduler)
    scheduler.__class__ = _with_bases(cls, *plateaus)
    scheduler.monitor = monitor


@functools.cache
def _with_bases(cls: Any, *bases: Any) -> Any:
    missing = [base for base in bases if not issubclass(cls, base)]
    # LightningCLI does not offer classes with "<locals>" in their qualified name.
    contents = {"__module__": __name__, "__qualname__": f"_with_bases.<locals>.{cls.__name__}", "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, *missing), contents) if missing else cls


# ------------------------------------------------------------------------------------------ types


class Length(int):
    """The number of steps of a whole schedule. A type for parsers only; the parsed value is an int."""


def _parse_length(value: Any) -> int:
    if value == "auto":
        raise ConfigError(
            "LightningCLI cannot compute the length for 'auto': give a number, or use OptplugCLI or the callback "
            "ConfigureOptimizers, which compute it from the trainer"
        )
    try:
        return int(str(value))
    except ValueError:
        raise ConfigTypeError(f"must be a whole number, got {value!r}") from None


register_type(
    Length,
    serializer=int,
    deserializer=_parse_length,
    type_check=lambda value, _: isinstance(value, int) and not isinstance(value, bool),
)


def _without_dtype(hint: Any) -> Any:
    """The type with `str` in place of `torch.dtype`: a configuration gives a dtype as text."""
    if hint is torch.dtype:
        return str
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_without_dtype, typing.get_args(hint)))]  # noqa: UP007  # made at run time
    return hint
