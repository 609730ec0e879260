"""Entries of a benchmark: an optimizer, its options, and the baseline that it is compared with, if there is one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.bench.profiles import Profile
from optplug.config.build import create_optimizer, parse_and_check
from optplug.config.form import BASE_KEY
from optplug.config.inline_entry import parse_inline_entry
from optplug.errors import ConfigError, OptplugError, listing, one_line
from optplug.registry import Registration, registry
from optplug.registry.signature import configurable_arguments, declared_cases, target_of
from optplug.registry.specs import is_rule

OptimizerFactory = Callable[[Sequence[Tensor]], Optimizer]
"""Creates an optimizer of given parameters."""

_UNSUPPORTED = {
    "closure": "needs a closure, whose time is the time of the model",
    "create_graph": "needs gradients with a graph",
    "gradients_first": "needs a closure, whose time is the time of the model",
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
        reference: torch's class of the same name. None: the baseline is the optimizer itself with `foreach=False`, or
            for a class that is not a RuleOptimizer nothing.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    reference: type[Optimizer] | None = None

    @property
    def baseline(self) -> str:
        """The name of the baseline; empty if there is none."""
        if self.reference is not None:
            return f"torch.optim.{self.reference.__name__}"
        return "itself, foreach=False" if is_rule(target_of(self.registration)) else ""

    @property
    def registration(self) -> Registration:
        return registry.resolve("optimizer", self.name)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on options that the baseline does not have."""
        named = [key for key in _ENGINE_OPTIONS if key in self.options] if self.baseline else []
        return (f"the baseline is measured without {', '.join(named)}",) if named else ()

    def measured_profile(self, profile: Profile) -> Profile:
        """Return a profile without the parameters whose number of dimensions the optimizer does not take.

        Raises:
            ConfigError: the optimizer takes none of the parameters.
        """
        dims = {len(shape) for shape in getattr(self.registration.spec, "shapes", ())}
        if "matrix_only" in self.registration.spec.capabilities:
            dims = dims or {2}
        shapes = tuple(shape for shape in profile.shapes if not dims or len(shape) in dims)
        if not shapes:
            taken = " or ".join(map(str, sorted(dims)))
            raise ConfigError(f"takes parameters with {taken} dimensions only: {profile.name} has none")
        return Profile(profile.name, shapes)

    def create(self, params: Sequence[Tensor], engine: str) -> Optimizer:
        """Create the optimizer, in training mode.

        Args:
            params: the parameters.
            engine: the engine, if the class takes one and the options do not contain it.
        """
        takes_engine = "engine" in configurable_arguments(self.registration)
        options = ({"engine": engine} if takes_engine else {}) | self.options
        given: Any = params
        if "module" in self.registration.spec.capabilities:
            given = _module_of(params)
        elif "named_params" in self.registration.spec.capabilities:
            given = [(f"p{i}", p) for i, p in enumerate(params)]
        optimizer = create_optimizer(self.name, given, **options)
        if "modes" in self.registration.spec.capabilities:
            optimizer.train()  # type: ignore[attr-defined]  # of schedule-free optimizers
        return optimizer

    def baseline_paths(self, *, compiled: bool = False) -> dict[str, OptimizerFactory]:
        """Return the paths of the baseline by name: the loop, and `foreach` and `fused` if its constructor takes them.

        Args:
            compiled: also return the optimizer for `torch.compile`: `foreach` if the class has it, else the loop.
        """
        if self.reference is None:
            return {"own loop": self._create_own_loop} if self.baseline else {}
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
        text: the text. Values are Python literals, `true` or `false`; any other value is text. Required arguments that
            it does not have are those of the first case that the optimizer declares.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: the name cannot be resolved.
        ConfigError: an option is malformed or unknown, or torch's class lacks an option of a RuleOptimizer that changes
            the computation; or the optimizer cannot be measured. Errors of the optimizer class.
    """
    name, given = parse_inline_entry(text)
    registration = registry.resolve("optimizer", name)
    if reason := unmeasurable_reason(registration):
        raise ConfigError(f"{name} {reason}")
    options = {**_required_arguments(registration), **given}
    target = target_of(registration)
    parse_and_check({"name": name, "args": options})
    reference = getattr(torch.optim, getattr(target, "__name__", ""), None)
    if not (isinstance(reference, type) and issubclass(reference, Optimizer)):
        return Entry(text.strip(), name, options)
    known = inspect.signature(reference).parameters
    lacking = [key for key in options if key not in known and key not in _ENGINE_OPTIONS]
    if lacking and is_rule(target_of(registration)):
        message = f"torch.optim.{reference.__name__} has no option {listing(lacking)}"
        raise ConfigError(f"{text!r} has no baseline: {message}")
    return Entry(text.strip(), name, options, None if lacking else reference)


def unmeasurable_reason(registration: Registration) -> str | None:
    """Return why the steps of an optimizer cannot be measured, without loading it; None if they can."""
    spec = registration.spec
    for capability in sorted(spec.capabilities & set(_UNSUPPORTED)):
        return f"{_UNSUPPORTED[capability]}: bench steps all tensors, with dense gradients"
    return f"cannot be used: {unsupported}" if (unsupported := getattr(spec, "unsupported", "")) else None


def _required_arguments(registration: Registration) -> dict[str, Any]:
    """Return values for the required arguments of an optimizer, from the first case that it declares."""
    known, case = configurable_arguments(registration), declared_cases(registration)[0]
    required = {name for name, parameter in known.items() if parameter.default is parameter.empty}
    return {name: value for name, value in case.items() if name in required or name == BASE_KEY}


def _module_of(params: Sequence[Tensor]) -> torch.nn.Module:
    """Return a module whose parameters share the memory and the gradients of given ones."""
    module = torch.nn.ParameterList(torch.nn.Parameter(p.detach()) for p in params)
    for own, p in zip(module.parameters(), params, strict=True):
        own.grad = p.grad
    return module


def select_entries(texts: Iterable[str] = ()) -> tuple[list[Entry], dict[str, str]]:
    """Parse entries, or without texts make one of each registered optimizer that torch.optim has too.

    Returns:
        The entries, without duplicates; and for each optimizer that is skipped, by text or name, the reason. Without
        texts, adapters are not considered.

    Raises:
        Errors of `parse_entry` for the given texts, except that an optimizer cannot be measured.
    """
    found: dict[tuple[str, str], Entry] = {}
    skipped = {}
    texts = list(texts)
    for text in texts:
        registration = registry.resolve("optimizer", parse_inline_entry(text)[0])
        if reason := unmeasurable_reason(registration):
            skipped[text] = reason
        else:
            entry = parse_entry(text)
            found.setdefault((registration.qualified_name, repr(sorted(entry.options.items()))), entry)
    for name, registration in () if texts else registry.named_registrations("optimizer", "*"):
        if registration.spec.precedence > 0:
            continue
        if "matrix_only" in registration.spec.capabilities:
            skipped[name] = "takes matrices only, which not every profile has; give the name to measure it"
            continue
        try:
            entry = parse_entry(name)
        except OptplugError as error:
            skipped[name] = one_line(error)
        else:
            if entry.reference is None:
                own = "its own loop" if entry.baseline else "others"
                skipped[name] = f"torch.optim has no class of this name; give the name to compare it with {own}"
            else:
                found[registration.qualified_name, ""] = entry
    return list(found.values()), skipped
