"""Entries of a benchmark: an optimizer, its options, and the baseline that it is compared with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.config.build import create_optimizer, parse_and_check
from optplug.config.inline_entry import parse_inline_entry
from optplug.errors import ConfigError, OptplugError, listing, one_line
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.registry import registry
from optplug.registry.signature import configurable_arguments

OptimizerFactory = Callable[[Sequence[Tensor]], Optimizer]
"""Creates an optimizer of given parameters."""

_UNSUPPORTED = {
    "closure": "needs a closure, whose time is the time of the model",
    "create_graph": "needs gradients with a graph",
    "matrix_only": "takes matrices only, and the profiles have vectors",
    "sparse_only": "takes sparse gradients only",
}
"""Capabilities of optimizers that cannot be measured, and the reason for the message."""

_PATH_KEYWORDS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}
"""Keywords that select a path of a torch optimizer. A class has a path if its constructor takes the true keywords."""

_ENGINE_OPTIONS = ("foreach", "fused", "engine")
"""Options that select how a step is computed. They are not passed to torch: all of torch's paths are measured."""


@dataclass(frozen=True)
class Entry:
    """An optimizer with options, and the baseline of its comparison.

    Attributes:
        label: the text from which the entry was parsed: `adam`, `sgd:momentum=0.9`.
        name: the name in the registry.
        options: the hyperparameters.
        reference: torch's class of the same name. None: the baseline is the optimizer itself with `foreach=False`.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    reference: type[Optimizer] | None = None

    @property
    def baseline(self) -> str:
        """The name of the baseline."""
        return "itself, foreach=False" if self.reference is None else f"torch.optim.{self.reference.__name__}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on options that the baseline does not have."""
        named = [key for key in _ENGINE_OPTIONS if key in self.options]
        return (f"the baseline is measured without {', '.join(named)}",) if named else ()

    def create(self, params: Sequence[Tensor], engine: str) -> Optimizer:
        """Create the optimizer.

        Args:
            params: the parameters.
            engine: the engine, if the class takes one and the options do not contain it.
        """
        takes_engine = "engine" in configurable_arguments(registry.resolve("optimizer", self.name))
        return create_optimizer(self.name, params, **({"engine": engine} if takes_engine else {}) | self.options)

    def baseline_paths(self, *, compiled: bool = False) -> dict[str, OptimizerFactory]:
        """Return the paths of the baseline by name: the loop, and `foreach` and `fused` if its constructor takes them.

        Args:
            compiled: also return the optimizer for `torch.compile`: `foreach` if the class has it, else the loop.
        """
        if self.reference is None:
            return {"own loop": self._create_own_loop}
        cls, options = self.reference, {k: v for k, v in self.options.items() if k not in _ENGINE_OPTIONS}
        known = inspect.signature(cls).parameters
        keywords_by_path = {
            path: {key: value for key, value in keywords.items() if key in known}
            for path, keywords in _PATH_KEYWORDS.items()
            if all(key in known for key, value in keywords.items() if value)
        }
        if compiled:
            keywords_by_path["compile"] = keywords_by_path.get("foreach", {})

        def factory(keywords: dict[str, Any]) -> OptimizerFactory:
            return lambda params: cls(params, **{**options, **keywords})

        return {path: factory(keywords) for path, keywords in keywords_by_path.items()}

    def _create_own_loop(self, params: Sequence[Tensor]) -> Optimizer:
        optimizer = self.create(params, "auto")
        for group in optimizer.param_groups:
            group["foreach"] = False
        return optimizer


def parse_entry(text: str) -> Entry:
    """Parse `[plugin:]name[:option=value,option=value]`, e.g. `sgd:momentum=0.9,nesterov=True`.

    Args:
        text: the text. Values are Python literals, `true` or `false`; any other value is text.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: the name cannot be resolved.
        ConfigError: an option is malformed or unknown, or torch's class lacks an option that changes the computation;
            or the optimizer has no step on dense gradients, or no baseline. Errors of the optimizer class.
    """
    name, options = parse_inline_entry(text)
    spec = registry.resolve("optimizer", name).spec
    for capability in sorted(spec.capabilities & set(_UNSUPPORTED)):
        raise ConfigError(f"{name} {_UNSUPPORTED[capability]}: bench steps all tensors, with dense gradients")
    cls = registry.get("optimizer", name)
    parse_and_check({"name": name, "args": options})
    reference = getattr(torch.optim, cls.__name__, None)
    if not (isinstance(reference, type) and issubclass(reference, Optimizer)):
        if not issubclass(cls, RuleOptimizer):
            raise ConfigError(f"{name} has no baseline: torch.optim has no {cls.__name__}")
        reference = None
    else:
        known = inspect.signature(reference).parameters
        if lacking := [key for key in options if key not in known and key not in _ENGINE_OPTIONS]:
            raise ConfigError(f"{text!r} has no baseline: torch.optim.{cls.__name__} has no option {listing(lacking)}")
    return Entry(text.strip(), name, options, reference)


def select_entries(texts: Iterable[str] = ()) -> tuple[list[Entry], dict[str, str]]:
    """Parse entries, or without texts make one of each registered optimizer that torch.optim has too.

    Returns:
        The entries, without duplicates; and for each registered optimizer that is skipped, by name, the reason.

    Raises:
        Errors of `parse_entry` for the given texts.
    """
    texts = list(texts)
    if texts:
        unique: dict[tuple[str, str], Entry] = {}
        for entry in map(parse_entry, texts):
            qualified_name = registry.resolve("optimizer", entry.name).qualified_name
            unique.setdefault((qualified_name, repr(sorted(entry.options.items()))), entry)
        return list(unique.values()), {}
    found, skipped = [], {}
    for name in registry.names("optimizer"):
        try:
            entry = parse_entry(name)
        except OptplugError as error:
            skipped[name] = one_line(error)
        else:
            if entry.reference is None:
                skipped[name] = "torch.optim has no class of this name; give the name to compare it with its own loop"
            else:
                found.append(entry)
    return found, skipped
