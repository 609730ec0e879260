"""The one form of a configuration, in Python, YAML and hparams, and every check that needs no parameters.

optimizer: adam                                   # or {name: adam, lr: 1.0e-3, args: {...}}
scheduler: {name: cosine_annealing_lr, T_max: 30, warmup_steps: 100}
param_groups: [{match: "*.bias", weight_decay: 0.0}]
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from optplug.errors import ConfigError, ConfigTypeError, OptplugError, did_you_mean, listing
from optplug.registry import Offer, registry
from optplug.specs import SchedulerSpec, Spec

ARGS = "args"
WIRING_KEYS = {
    "optimizer": ("name", ARGS),
    "scheduler": ("name", ARGS, "interval", "frequency", "warmup", "warmup_steps", "monitor", "mode"),
}
"""Keys that are optplug's own; an algorithm's argument of the same name goes under `args`."""

NOT_CONFIGURABLE = ("params", "optimizer", "last_epoch")
"""Constructor arguments that the wiring supplies."""


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name and its hyperparameters."""

    name: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @property
    def offer(self) -> Offer:
        return registry.find("optimizer", self.name)


@dataclass(frozen=True)
class SchedulerConfig:
    """A scheduler by name, its arguments, and when it steps.

    Attributes:
        interval: `"epoch"` or `"step"`; a scheduler that takes a metric steps per completed validation instead.
        frequency: every how many epochs, or optimizer steps.
        warmup_steps: length of the warmup in optimizer steps, 0 for none. warmup_start: its first factor, or None.
        monitor: the metric a plateau watches, or None to infer it. mode: `"min"`, `"max"` or None to infer it.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    interval: str = "epoch"
    frequency: int = 1
    warmup_steps: int = 0
    warmup_start: float | None = None
    monitor: str | None = None
    mode: str | None = None

    @property
    def offer(self) -> Offer:
        return registry.find("scheduler", self.name)

    @property
    def takes_metric(self) -> bool:
        return "metric" in self.offer.spec.capabilities


@dataclass(frozen=True)
class Config:
    """What to train with. Plain data: it survives pickle and deepcopy, and holds no trainer and no module."""

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig | None = None
    param_groups: tuple[dict[str, Any], ...] = ()


def parse(
    optimizer: Any,
    scheduler: Any = None,
    *,
    param_groups: Any = None,
    monitor: str | None = None,
    mode: str | None = None,
) -> Config:
    """Check a configuration and give it its one form.

    Args:
        optimizer: a name, or a mapping with `name` and hyperparameters.
        scheduler: a name, a mapping with `name`, arguments and wiring keys, or None.
        param_groups: a list of mappings, each with `match` and options, or None.
        monitor: what `scheduler.monitor` would say. mode: what `scheduler.mode` would say.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: the name. ConfigError: a wrong key, value or combination.
        ConfigTypeError: a wrong type. The values of hyperparameters are for `optplug.build.checked` to find wrong.
    """
    parsed_optimizer = _optimizer(optimizer)
    parsed_scheduler = _scheduler(scheduler, monitor, mode)
    return Config(parsed_optimizer, parsed_scheduler, _param_groups(param_groups, parsed_optimizer))


# -------------------------------------------------------------------- optimizer


def _optimizer(given: Any) -> OptimizerConfig:
    name, _, arguments = _split("optimizer", given)
    offer = registry.find("optimizer", name)
    check_arguments(offer, arguments)
    return OptimizerConfig(name, arguments)


# -------------------------------------------------------------------- scheduler


def _scheduler(given: Any, monitor: Any, mode: Any) -> SchedulerConfig | None:
    if given is None:
        for key, value in (("monitor", monitor), ("mode", mode)):
            if value is not None:
                raise ConfigError(f"{key}={value!r} needs a scheduler that takes a metric, and there is no scheduler")
        return None
    name, wiring, arguments = _split("scheduler", given)
    offer = registry.find("scheduler", name)
    for key, value in (("monitor", monitor), ("mode", mode)):
        if value is not None and wiring.setdefault(key, value) != value:
            raise ConfigError(f"{key} is {value!r} and scheduler.{key} is {wiring[key]!r}: give it once")
    check_arguments(offer, arguments)
    interval, frequency = _interval(offer, wiring)
    steps, start = _warmup(wiring)
    monitor, mode = _metric(offer, wiring, arguments)
    return SchedulerConfig(name, arguments, interval, frequency, steps, start, monitor, mode)


def _interval(offer: Offer, wiring: Mapping[str, Any]) -> tuple[str, int]:
    assert isinstance(offer.spec, SchedulerSpec)
    interval = wiring.get("interval", offer.spec.interval)
    frequency = wiring.get("frequency", 1)
    if interval not in ("epoch", "step"):
        raise ConfigError(f"scheduler.interval must be 'epoch' or 'step', got {interval!r}")
    if isinstance(frequency, bool) or not isinstance(frequency, int):
        raise ConfigTypeError(f"scheduler.frequency must be a whole number, got {frequency!r}")
    if frequency < 1:
        raise ConfigError(f"scheduler.frequency must be at least 1, got {frequency}")
    if "metric" in offer.spec.capabilities and (interval, frequency) != ("epoch", 1):
        raise ConfigError(
            f"{offer.name} steps once per completed validation (or per epoch, for a training metric): "
            f"leave out scheduler.interval and scheduler.frequency, got {interval!r} and {frequency}"
        )
    return interval, frequency


def _warmup(wiring: Mapping[str, Any]) -> tuple[int, float | None]:
    from optplug.schedules import check_warmup

    if "warmup" in wiring and "warmup_steps" in wiring:
        raise ConfigError("scheduler.warmup_steps is short for scheduler.warmup: {steps: ...}: give one of them")
    warmup = wiring.get("warmup", {"steps": wiring["warmup_steps"]} if "warmup_steps" in wiring else None)
    if warmup is None:
        return 0, None
    if not isinstance(warmup, Mapping):
        raise ConfigTypeError(f"scheduler.warmup must be a mapping such as {{steps: 100}}, got {warmup!r}")
    known = ("steps", "start_factor")
    for key in warmup:
        if key not in known:
            raise ConfigError(f"scheduler.warmup has no key {key!r}; it has {listing(known)}{did_you_mean(key, known)}")
    if "steps" not in warmup:
        raise ConfigError("scheduler.warmup needs steps, the number of optimizer steps")
    steps, start = warmup["steps"], warmup.get("start_factor")
    none = type(steps) is int and steps == 0
    check_warmup(1 if none else steps, start)
    return (0, None) if none else (steps, start)


def _metric(offer: Offer, wiring: Mapping[str, Any], arguments: dict[str, Any]) -> tuple[str | None, str | None]:
    monitor = wiring.get("monitor")
    mode = wiring.get("mode")
    if "metric" not in offer.spec.capabilities:
        for key, value in (("monitor", monitor), ("mode", mode)):
            if value is not None:
                raise ConfigError(
                    f"{offer.name} takes no metric: scheduler.{key}={value!r} has no use"
                    + (f"; its own argument {key} goes under {ARGS}" if key in configurable(offer) else "")
                )
        return None, None
    if "mode" in arguments:  # under args it means the same
        own = arguments.pop("mode")
        if mode not in (None, own):
            raise ConfigError(f"scheduler.mode is {mode!r} and scheduler.{ARGS}.mode is {own!r}: give it once")
        mode = own
    if monitor is not None and not isinstance(monitor, str):
        raise ConfigTypeError(f"monitor must be the name of a metric, got {monitor!r}")
    if monitor == "":
        raise ConfigError("monitor is empty: name a metric, or leave it out to have it inferred")
    if mode not in (None, "min", "max"):
        raise ConfigError(f"mode must be 'min' or 'max', got {mode!r}")
    return monitor, mode


# ------------------------------------------------------------------ param groups


def _param_groups(given: Any, optimizer: OptimizerConfig) -> tuple[dict[str, Any], ...]:
    if given is None:
        return ()
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise ConfigTypeError(f"param_groups must be a list of mappings, got {given!r}")
    known = [key for key in configurable(optimizer.offer) if key not in ("engine", "state_dtype")]  # of the whole
    rules = []
    for i, rule in enumerate(given):
        place = f"param_groups[{i}]"
        if not isinstance(rule, Mapping):
            raise ConfigTypeError(
                f"{place} must be a mapping such as {{match: '*.bias', weight_decay: 0.0}}, got {rule!r}"
            )
        if "match" not in rule:
            raise ConfigError(f"{place} needs match, a glob over parameter names; it has {listing(rule)}")
        patterns = [rule["match"]] if isinstance(rule["match"], str) else rule["match"]
        if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise ConfigTypeError(f"{place}.match must be a glob or a list of globs, got {rule['match']!r}")
        options = {str(k): v for k, v in rule.items() if k not in ("match", "name")}
        for key in options:
            if key not in known:
                raise ConfigError(
                    f"{place}: {optimizer.offer.name} has no option {key!r}; it has "
                    f"{listing(sorted(known))}{did_you_mean(key, known)}"
                )
        name = rule.get("name", " ".join(patterns))
        if not isinstance(name, str):
            raise ConfigTypeError(f"{place}.name must be text, got {name!r}")
        rules.append({"match": list(patterns), "name": name, **options})
    names = [rule["name"] for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two entries of param_groups are named {name!r}: give each its own name")
    return tuple(rules)


# ------------------------------------------------------------------------ shared


def _split(kind: str, given: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name, wiring keys, and the algorithm's own arguments."""
    if isinstance(given, str):
        return given, {}, {}
    if not isinstance(given, Mapping):
        raise ConfigTypeError(f"{kind} must be a name or a mapping with a name, got {given!r} ({type(given).__name__})")
    for key in given:
        if not isinstance(key, str):
            raise ConfigTypeError(f"{kind} has the key {key!r}; keys are text")
    if "name" not in given:
        near = next((f": is {key!r} meant to be 'name'?" for key in given if did_you_mean(key, ["name"])), "")
        if {"class_path", "init_args"} & set(given):
            near = ": write {name: ..., lr: ...}; optplug looks names up and imports no class_path"
        raise ConfigError(f"{kind} needs a name; it has {listing(given)}{near}")
    if not isinstance(given["name"], str):
        raise ConfigTypeError(f"{kind}.name must be text, got {given['name']!r}")
    wiring = {key: value for key, value in given.items() if key in WIRING_KEYS[kind]}
    arguments = {key: value for key, value in given.items() if key not in WIRING_KEYS[kind]}
    extra = wiring.pop(ARGS, None)
    extra = {} if extra is None else extra
    if not isinstance(extra, Mapping):
        raise ConfigTypeError(f"{kind}.{ARGS} must be a mapping of arguments, got {extra!r}")
    twice = sorted(set(extra) & set(arguments))
    if twice:
        raise ConfigError(f"{kind} gives {listing(twice)} both directly and under {ARGS}")
    return wiring.pop("name"), wiring, {**arguments, **extra}


def configurable(offer: Offer) -> dict[str, inspect.Parameter]:
    """The constructor arguments a configuration may set, by name.

    Raises:
        PluginError: the class cannot be loaded.
    """
    return _constructor(registry.get(offer.spec.kind, offer.qualified))[0]


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _constructor(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """The configurable constructor arguments, and whether they are all there are.

    A constructor that takes `**options` hands them to its base class, whose arguments with a default count then.
    """
    found: dict[str, inspect.Parameter] = {}
    for depth, base in enumerate(c for c in cls.__mro__ if "__init__" in vars(c)):
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())
        for p in parameters[2:]:  # after self and the parameters, or self and the optimizer
            inherited = depth and p.default is p.empty  # the class itself gives it
            if p.kind in _NAMED and p.name not in NOT_CONFIGURABLE and not inherited:
                found.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found, True
    return found, False


def check_arguments(offer: Offer, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments the class does not have, and miss those it needs.

    Raises:
        ConfigError: with the nearest valid spelling.
    """
    known, complete = _constructor(registry.get(offer.spec.kind, offer.qualified))
    wiring = [key for key in WIRING_KEYS[offer.spec.kind] if key != "name"]
    if complete:
        for key in arguments:
            if key not in known:
                misplaced = offer.spec.kind == "optimizer" and key in WIRING_KEYS["scheduler"] and key != "name"
                hint = f"; {key!r} belongs to scheduler" if misplaced else did_you_mean(key, [*known, *wiring])
                raise ConfigError(
                    f"{offer.spec.kind} {offer.name!r} has no option {key!r}; it has {listing(sorted(known))}, "
                    f"and in a configuration {listing(wiring)}{hint}"
                )
    missing = [name for name, p in known.items() if p.default is p.empty and name not in arguments]
    if missing:
        raise ConfigError(f"{offer.spec.kind} {offer.name!r} needs {listing(missing)}")


@contextmanager
def refusals(spec: Spec, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Make one of our errors of what a class of somebody else's says to its arguments."""
    try:
        yield
    except OptplugError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        kind = ConfigTypeError if isinstance(error, TypeError) else ConfigError
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items()) or "its defaults"
        raise kind(f"{spec.kind} {spec.name!r} refused {given}: {error}") from error
