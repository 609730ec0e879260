"""The one form of a configuration, in Python, YAML and hparams.

optimizer: adam                 # or {name: adam, lr: 1.0e-3, args: {...}}; or a list of these; or {combine: [...]}
scheduler: {name: cosine_annealing_lr, T_max: auto, warmup_steps: 100}
param_groups: [no_decay, {match: "head.*", lr_mult: 10}]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optplug.config import param_selection
from optplug.config.builtins import saved
from optplug.config.param_groups import AnyRule
from optplug.config.param_selection import Selector
from optplug.registry import Registration, registry
from optplug.registry.signature import configurable
from optplug.registry.specs import LENGTHS, SchedulerSpec

ARGS = "args"
METRIC_KEYS = ("monitor", "mode", "patience_unit", "on_nonfinite")
"""Those of a scheduler that takes a metric."""

WIRING_KEYS = {
    "optimizer": ("name", ARGS),
    "scheduler": ("name", ARGS, "interval", "frequency", "warmup", "warmup_steps", *METRIC_KEYS),
}
"""Keys that are optplug's own; an algorithm's argument of the same name goes under `args`."""

KEYS = ("optimizer", "scheduler", "param_groups", "monitor", "mode", "on_resume")
"""What a configuration has."""

SUBCOMMANDS = ("fit", "validate", "test", "predict")
"""LightningCLI's, under which a file may have the keys too."""

MEMBER_KEYS = (*param_selection.SELECTOR_KEYS, "param_groups", "scheduler")
"""What an optimizer of several has besides."""

WARMUP_UNITS = ("steps", "epochs", "ratio")
OF_THE_WHOLE = ("engine", "state_dtype")
"""Options of an optimizer that no group has of its own."""

ON_RESUME = ("keep", "override_hparams", "reset_scheduler", "reset_all")
"""What counts when a run goes on from a checkpoint: everything of the checkpoint; the configuration's numbers; its
schedule, from the start; its optimizer and schedule, from the start."""

PATIENCE_UNITS = ("validations", "epochs", "steps")
"""What the patience of a scheduler that takes a metric counts since the last improvement: completed validations that
logged the metric (for a training metric, epochs); epochs; optimizer steps. It acts at a validation in any case."""

ON_NONFINITE = ("bad", "ignore", "raise")
"""What a metric that is NaN or infinite does, which is never the best: it counts as a bad value; it is not heard, and
patience does not count it; it ends the training with an error."""

AUTO = "auto"
LINK = re.compile(r"module(\.[A-Za-z_]\w*)+")
"""A number that is an attribute of the module, such as `module.lr`."""


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name and its hyperparameters."""

    name: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @property
    def registration(self) -> Registration:
        return registry.find("optimizer", self.name)

    def to_dict(self) -> dict[str, Any]:
        return _with_arguments("optimizer", self.name, self.hyperparameters)


@dataclass(frozen=True)
class WarmupConfig:
    """A linear warmup: its length in optimizer steps, in epochs, or as a share of all steps, and its first factor."""

    length: float
    unit: str = "steps"
    start_factor: float | None = None

    def to_dict(self) -> dict[str, Any]:
        start = {} if self.start_factor is None else {"start_factor": self.start_factor}
        return {self.unit: self.length, **start}


@dataclass(frozen=True)
class SchedulerConfig:
    """A scheduler by name, its arguments, and when it steps.

    Attributes:
        name: None for a warmup alone.
        interval: `"epoch"` or `"step"`; a scheduler that takes a metric steps per completed validation instead.
        frequency: every how many epochs, or optimizer steps.
        warmup: None for none.
        monitor: the metric a plateau watches, or None to infer it. mode: `"min"`, `"max"` or None to infer it.
        patience_unit: of `PATIENCE_UNITS`. on_nonfinite: of `ON_NONFINITE`. Both for a scheduler that takes a metric.
    """

    name: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    interval: str = "epoch"
    frequency: int = 1
    warmup: WarmupConfig | None = None
    monitor: str | None = None
    mode: str | None = None
    patience_unit: str = PATIENCE_UNITS[0]
    on_nonfinite: str = ON_NONFINITE[0]

    @property
    def registration(self) -> Registration:
        assert self.name is not None
        return registry.find("scheduler", self.name)

    @property
    def takes_metric(self) -> bool:
        return self.name is not None and "metric" in self.registration.spec.capabilities

    @property
    def length(self) -> str | None:
        """The argument that says how many steps the schedule has."""
        return None if self.name is None else length_of(self.registration)

    def to_dict(self) -> dict[str, Any]:
        wiring: dict[str, Any] = {}
        if self.name is not None and not self.takes_metric:
            wiring |= {"interval": self.interval, "frequency": self.frequency}
        heard = {key: getattr(self, key) for key in METRIC_KEYS}
        wiring |= {key: value for key, value in heard.items() if value != getattr(SchedulerConfig, key)}  # its default
        if self.warmup is not None:
            wiring["warmup"] = self.warmup.to_dict()
        return {**_with_arguments("scheduler", self.name, self.arguments), **wiring}


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer and its parameters.

    Attributes:
        select: which of the module's; None for all. param_groups: the rules of its groups.
        index: its number among several, as they were given.
    """

    optimizer: OptimizerConfig
    param_groups: tuple[AnyRule, ...] = ()
    select: Selector | None = None
    index: int = field(default=0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As an entry of several."""
        groups = {"param_groups": [rule.to_dict() for rule in self.param_groups]} if self.param_groups else {}
        return {**self.optimizer.to_dict(), **(self.select.to_dict() if self.select else {}), **groups}


@dataclass(frozen=True)
class OptimizerSetup:
    """What makes one optimizer of the trainer: a member, several to be combined, or none: the module has its own."""

    members: tuple[OptimizerEntry, ...] = ()
    scheduler: SchedulerConfig | None = None
    combined: bool = False


@dataclass(frozen=True)
class Config:
    """What to train with. Plain data: it survives pickle and deepcopy, and holds no trainer and no module.

    Attributes:
        parts: one, or in manual optimisation several. several: whether they were given as a list.
        on_resume: of `ON_RESUME`.
    """

    setups: tuple[OptimizerSetup, ...]
    several: bool = False
    on_resume: str = ON_RESUME[0]

    def loc(self, setup: OptimizerSetup) -> str:
        """Where a part stands in the configuration."""
        return f"optimizer[{setup.members[0].index}]" if self.several and setup.members else "optimizer"

    def scheduler_loc(self, setup: OptimizerSetup) -> str:
        """Where the schedule of a part stands in the configuration."""
        return f"{self.loc(setup)}.scheduler" if self.several else "scheduler"

    @property
    def setup(self) -> OptimizerSetup:
        """The only part."""
        (setup,) = self.setups
        return setup

    @property
    def optimizer(self) -> OptimizerConfig:
        """That of the only member of the only part."""
        return self.setup.members[0].optimizer

    @property
    def scheduler(self) -> SchedulerConfig | None:
        """That of the only part."""
        return self.setup.scheduler

    @property
    def param_groups(self) -> tuple[AnyRule, ...]:
        """Those of the only member of the only part."""
        return self.setup.members[0].param_groups

    def to_dict(self) -> dict[str, Any]:
        """The same configuration as plain data, which `parse(**...)` takes, with everything spelled out."""
        found: dict[str, Any] = {} if self.on_resume == ON_RESUME[0] else {"on_resume": self.on_resume}
        if self.several:
            entries = []
            for setup in self.setups:
                schedule = {} if setup.scheduler is None else {"scheduler": setup.scheduler.to_dict()}
                entries.append({**setup.members[0].to_dict(), **schedule})
            return {"optimizer": entries, **found}
        members = self.setup.members
        if self.setup.combined:
            found["optimizer"] = {"combine": [member.to_dict() for member in members]}
        elif members:
            found["optimizer"] = members[0].optimizer.to_dict()
            if members[0].param_groups:
                found["param_groups"] = [rule.to_dict() for rule in members[0].param_groups]
        if self.scheduler is not None:
            found["scheduler"] = self.scheduler.to_dict()
        return found


def _with_arguments(kind: str, name: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    reserved = {*WIRING_KEYS[kind], *(MEMBER_KEYS if kind == "optimizer" else ())}
    plainly = {key: saved(value) for key, value in arguments.items() if key not in reserved}
    nested = {key: saved(value) for key, value in arguments.items() if key in reserved}
    return {**({} if name is None else {"name": name}), **plainly, **({ARGS: nested} if nested else {})}


def length_of(registration: Registration) -> str | None:
    """The argument of a scheduler that says how many steps the whole schedule has."""
    assert isinstance(registration.spec, SchedulerSpec)
    known = configurable(registration)
    return registration.spec.length or next((name for name in LENGTHS if name in known), None)
