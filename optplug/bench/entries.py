"""Entries: which optimizer is measured with which options, and what it is measured against."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.config.build import checked, create_optimizer
from optplug.errors import ConfigError, OptplugError, describe, listing
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.registry import registry
from optplug.registry.signature import configurable

Make = Callable[[Sequence[Tensor]], Optimizer]

_NEEDS = {
    "closure": "needs a closure, which costs what the model costs",
    "create_graph": "needs the graph of its gradients",
    "sparse_only": "takes sparse gradients only",
}
"""Capabilities of optimizers that have no step of their own on dense gradients, and how to say it."""

_KEYWORDS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}
"""How torch spells its ways to step; it has a way if its constructor takes what is True."""

_OURS_ALONE = ("foreach", "fused", "engine")
"""Options that say how to step: torch is measured in all its ways."""


@dataclass(frozen=True)
class Entry:
    """An optimizer with its options, and what it is compared with.

    Attributes:
        label: as it was asked for: `adam`, `sgd:momentum=0.9`. name: for the registry. options: its hyperparameters.
        reference: torch's class of the same name, or None: the optimizer itself with `foreach=False`.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    reference: type[Optimizer] | None = None

    @property
    def against(self) -> str:
        """What it is compared with, in words."""
        return "itself, foreach=False" if self.reference is None else f"torch.optim.{self.reference.__name__}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Which options are not the reference's."""
        named = [key for key in _OURS_ALONE if key in self.options]
        return (f"{', '.join(named)} is given to ours alone",) if named else ()

    def ours(self, params: Sequence[Tensor], engine: str) -> Optimizer:
        """The optimizer; `engine` counts where the class takes one and the options do not say."""
        takes_engine = "engine" in configurable(registry.find("optimizer", self.name))
        return create_optimizer(self.name, params, **({"engine": engine} if takes_engine else {}) | self.options)

    def paths(self, *, compiled: bool = False) -> dict[str, Make]:
        """By name, every path of the reference: its loop, and those that its constructor has a keyword for.

        Args:
            compiled: also the one that `torch.compile` gets: `foreach`, which it fuses, where there is that.
        """
        if self.reference is None:
            return {"own loop": self._own_loop}
        cls, options = self.reference, {k: v for k, v in self.options.items() if k not in _OURS_ALONE}
        known = inspect.signature(cls).parameters
        spelled = {
            path: {key: value for key, value in keywords.items() if key in known}
            for path, keywords in _KEYWORDS.items()
            if all(key in known for key, value in keywords.items() if value)
        }
        if compiled:
            spelled["compile"] = spelled.get("foreach", {})

        def make(keywords: dict[str, Any]) -> Make:
            return lambda params: cls(params, **{**options, **keywords})

        return {path: make(keywords) for path, keywords in spelled.items()}

    def _own_loop(self, params: Sequence[Tensor]) -> Optimizer:
        optimizer = self.ours(params, "auto")
        for group in optimizer.param_groups:
            group["foreach"] = False
        return optimizer


def entry(text: str) -> Entry:
    """What `[plugin:]name[:option=value,option=value]` stands for, e.g. `sgd:momentum=0.9,nesterov=True`.

    Values are Python literals (or `true`, `false`); what is none is text.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: the name. ConfigError: a malformed or unknown option, or
        one that changes the computation and that torch lacks; an optimizer without a step on dense gradients, or
        with nothing to be compared with; and what the class raises.
    """
    name, _, given = text.strip().partition("=")
    if given or "=" in text:
        name, _, first = name.rpartition(":")
        if not name:
            raise ConfigError(f"{text!r}: options come after a colon: {first.split(',')[0]}:option=value")
        options = _options(text, f"{first}={given}")
    else:
        options = {}
    spec = registry.find("optimizer", name).spec
    for capability in sorted(spec.capabilities & set(_NEEDS)):
        raise ConfigError(f"{name} {_NEEDS[capability]}: bench times steps on dense gradients")
    cls = registry.get("optimizer", name)
    checked({"name": name, "args": options})
    reference = getattr(torch.optim, cls.__name__, None)
    if not (isinstance(reference, type) and issubclass(reference, Optimizer)):
        if not issubclass(cls, RuleOptimizer):
            raise ConfigError(f"{name} has nothing to be compared with: torch.optim has no {cls.__name__}")
        reference = None
    else:
        known = inspect.signature(reference).parameters
        if lacking := [key for key in options if key not in known and key not in _OURS_ALONE]:
            raise ConfigError(f"{text!r}: torch.optim.{cls.__name__} has no {listing(lacking)} to be compared with")
    return Entry(text.strip(), name, options, reference)


def entries(texts: Iterable[str] = ()) -> tuple[list[Entry], dict[str, str]]:
    """What `entry` makes of each text, and without texts of every registered optimizer that torch has too.

    Returns:
        The entries, each optimizer with the same options once; and by name why an optimizer was left out.
    """
    texts = list(texts)
    if texts:
        several: dict[tuple[str, str], Entry] = {}
        for one in map(entry, texts):
            several.setdefault((registry.find("optimizer", one.name).qualified, repr(sorted(one.options.items()))), one)
        return list(several.values()), {}
    found, left_out = [], {}
    for name in registry.names("optimizer"):
        try:
            one = entry(name)
        except OptplugError as error:
            left_out[name] = describe(error)
        else:
            if one.reference is None:
                left_out[name] = "torch.optim has none of this name; name it to compare it with its own loop"
            else:
                found.append(one)
    return found, left_out


def _options(text: str, given: str) -> dict[str, Any]:
    """`momentum=0.9,betas=(0.9,0.95)`: a comma within brackets belongs to the value."""
    options: dict[str, Any] = {}
    for part in re.split(r",\s*(?![^(\[]*[)\]])", given):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key.isidentifier() and equals and value):
            raise ConfigError(f"{text!r}: write option=value,option=value after the name's colon, not {part!r}")
        if key in options:
            raise ConfigError(f"{text!r} gives {key} twice")
        try:
            options[key] = ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options
