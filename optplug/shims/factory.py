"""Makes the shims: classes that have a registered name and the signature behind it, and whose call builds by name."""

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

from optplug.config.error_collector import third_party_errors
from optplug.errors import ConfigError, ConfigTypeError, describe
from optplug.registry import Registration, registry
from optplug.registry.signature import Argument, documented
from optplug.registry.specs import LENGTHS

MONITOR = Argument("monitor", str, inspect.Parameter.empty, "the metric to follow")
"""What a schedule that takes a metric takes besides its own arguments, as LightningCLI's plateau does."""

LIGHTNING_CLI = ("lightning.pytorch.cli", "pytorch_lightning.cli")


def shims(kind: str, module: str) -> dict[str, type]:
    """A shim for every installed name of a kind, by what it is called in its module.

    Args:
        kind: `"optimizer"` or `"scheduler"`. module: the name of the module that will hold them.
    """
    registrations = registry.registrations(kind)
    names = [registration.name for registration in registrations]
    made = {}
    for registration in registrations:
        clash = names.count(registration.name) > 1
        name = re.sub(r"\W", "_", f"{registration.plugin.name}__{registration.name}") if clash else registration.name
        chosen = Optimizer(registration) if kind == "optimizer" else Scheduler(registration)
        contents = {"__new__": _New(chosen), "__doc__": registration.spec.summary, "__module__": module}
        made[name] = type(name, (chosen.base,), contents)
    return made


class _New:
    # The `__new__` of a shim. A parser asks for the signature and the docstring of a name that was chosen, and only
    # that loads the class; so `__doc__` is a property, and this is a comment.

    def __init__(self, chosen: Optimizer) -> None:
        self.__name__ = "__new__"
        self.chosen = chosen

    def __call__(self, cls: type, target: Any, /, **given: Any) -> Any:
        return self.chosen.build(target, given)

    @property
    def __signature__(self) -> inspect.Signature:
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ("cls", self.chosen.first)]
        for a in self.chosen.arguments:
            hint = self.chosen.type_of(a)
            keyword = inspect.Parameter(a.name, inspect.Parameter.KEYWORD_ONLY, default=a.default, annotation=hint)
            parameters.append(keyword)
        return inspect.Signature(parameters)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        head = [self.chosen.registration.spec.summary or self.chosen.registration.name, "", "Args:"]
        return "\n".join([*head, *(f"    {a.name}: {a.words}" for a in self.chosen.arguments if a.words)])


# ------------------------------------------------------------- what is behind one


class Optimizer:
    """What the shim of an optimizer takes, and what its call makes."""

    base: type = torch.optim.Optimizer
    first = "params"

    def __init__(self, registration: Registration) -> None:
        self.registration = registration

    @functools.cached_property
    def own(self) -> list[Argument]:
        """The arguments of the class."""
        try:
            return documented(self.registration)
        except Exception as error:  # whatever a stranger's class does; a parser would say that it has no such option
            warnings.warn(f"optplug.shims: {describe(error)}", stacklevel=2)
            return []

    @property
    def arguments(self) -> list[Argument]:
        """The arguments of the shim."""
        return self.own

    def type_of(self, argument: Argument) -> Any:
        """The type of an argument for a parser."""
        return _writable(argument.type)

    def build(self, target: Any, given: dict[str, Any]) -> Any:
        from optplug.config.build import create_optimizer  # here, for what it loads has names of torch's

        with third_party_errors(self.registration.spec.name, given):
            return create_optimizer(self.registration.qualified, target, **given)


class Scheduler(Optimizer):
    """What the shim of a scheduler takes, and what its call makes."""

    base = LRScheduler
    first = "optimizer"

    @property
    def takes_metric(self) -> bool:
        return "metric" in self.registration.spec.capabilities

    @property
    def arguments(self) -> list[Argument]:
        has_own = any(argument.name == MONITOR.name for argument in self.own)
        return [MONITOR, *self.own] if self.takes_metric and not has_own else self.own

    def type_of(self, argument: Argument) -> Any:
        if argument is MONITOR:
            return argument.type
        functions = getattr(registry.get("scheduler", self.registration.qualified), "functions", ())
        if isinstance(functions, (tuple, list)) and argument.name in functions:
            return str | float | list[str | float]
        if argument.name in (getattr(self.registration.spec, "length", ""), *LENGTHS):
            return Length if argument.type in (int, Any) else typing.Union[argument.type, Length]  # noqa: UP007
        return super().type_of(argument)

    def build(self, target: Any, given: dict[str, Any]) -> Any:
        from optplug.config.build import create_scheduler

        monitor = given.get(MONITOR.name)
        if MONITOR in self.arguments:
            given = {key: value for key, value in given.items() if key != MONITOR.name}
            if not isinstance(monitor, str) or not monitor:
                raise ConfigError(
                    f"scheduler {self.registration.name!r} needs monitor, the name of a metric, got {monitor!r}"
                )
        with third_party_errors(self.registration.spec.name, given):
            scheduler = create_scheduler(self.registration.qualified, target, **given)
            if self.takes_metric:
                _make_lightning_cli_s(scheduler, monitor)
        return scheduler


def _make_lightning_cli_s(scheduler: Any, monitor: Any) -> None:
    """Make a plateau one of LightningCLI's too, which asks `isinstance` of its own class and takes the monitor from it.

    Each import name of Lightning has a class of its own; those that are loaded count, since one of them is asking.
    """
    plateaus = [sys.modules[name].ReduceLROnPlateau for name in LIGHTNING_CLI if name in sys.modules]
    cls: Any = type(scheduler)
    scheduler.__class__ = _with_bases(cls, *plateaus)
    scheduler.monitor = monitor


@functools.cache
def _with_bases(cls: Any, *bases: Any) -> Any:
    further = [base for base in bases if not issubclass(cls, base)]
    # A local name is none that LightningCLI would offer.
    contents = {"__module__": __name__, "__qualname__": f"_with_bases.<locals>.{cls.__name__}", "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, *further), contents) if further else cls


# ------------------------------------------------------------------------ types


class Length(int):
    """The number of steps of a whole schedule. A type for parsers; the value is an int."""


def _length(value: Any) -> int:
    if value == "auto":
        raise ConfigError(
            "LightningCLI cannot know what 'auto' is: give a number, or use OptplugCLI or the callback "
            "ConfigureOptimizers, which know how long the fit will be"
        )
    try:
        return int(str(value))
    except ValueError:
        raise ConfigTypeError(f"must be a whole number, got {value!r}") from None


register_type(
    Length,
    serializer=int,
    deserializer=_length,
    type_check=lambda value, _: isinstance(value, int) and not isinstance(value, bool),
)


def _writable(hint: Any) -> Any:
    """A type without `torch.dtype`, which a configuration gives as text."""
    if hint is torch.dtype:
        return str
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_writable, typing.get_args(hint)))]  # noqa: UP007  # made at run time
    return hint
