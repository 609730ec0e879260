"""What a promise of the conformance kit is, and the conditions under which promises apply."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from optplug.errors import EngineError, one_line
from optplug.optim.combined import has_train_eval_modes
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.registry.signature import accepts_any_argument, configurable_arguments
from optplug.rules.trace import rule_signature
from optplug.testing.trajectory import NEEDS_CLOSURE, NEEDS_LOSS, OptimizerUnderTest

Condition = Callable[[OptimizerUnderTest, Mapping[str, Any]], "str | None"]
"""Returns None if a promise applies to an optimizer with some options, and else the reason why it does not."""

_Test = Callable[[OptimizerUnderTest, dict[str, Any]], None]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Promise:
    """A property that an optimizer must have.

    Attributes:
        name: what is promised.
        test: raises an exception if an optimizer with some options does not have the property.
        obstacle: returns why the promise does not apply.
        every_engine: whether it is tested with every engine; else once for each case.
        remedy: what the author of an optimizer without the property can change.
    """

    name: str
    test: _Test
    obstacle: Condition
    every_engine: bool
    remedy: str

    @property
    def meaning(self) -> str:
        """The promise in one sentence: the beginning of the docstring of its test."""
        return " ".join((inspect.getdoc(self.test) or "").partition("\n\n")[0].split())


def promise(*conditions: Condition, every_engine: bool = True, remedy: str = "") -> Callable[[_Test], Promise]:
    """Make a promise of its test. The name of the function is that of the promise.

    Args:
        conditions: the promise applies if all of them do.
        every_engine: see `Promise`.
        remedy: see `Promise`.
    """

    def obstacle(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
        return next(filter(None, (condition(subject, options) for condition in conditions)), None)

    return lambda test: Promise(test.__name__.lstrip("_"), test, obstacle, every_engine, remedy)


def promises_in(module: ModuleType) -> tuple[Promise, ...]:
    """Return the promises of a module, in their order."""
    return tuple(value for value in vars(module).values() if isinstance(value, Promise))


# ------------------------------------------------------------------------------------------ conditions


def is_rule(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    return None if subject.is_rule else "not a RuleOptimizer: it has no rule and no engines"


def steps_with_given_gradients(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    needs = subject.capabilities & NEEDS_LOSS
    return f"it needs {' and '.join(sorted(needs))}" if needs else None


def steps_without_closure(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    needs = subject.capabilities & NEEDS_CLOSURE
    return f"it needs {' and '.join(sorted(needs))}" if needs else None


def has_lr(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    groups = subject.build([parameter(subject)], options).param_groups
    return None if all(group.get("lr") is not None for group in groups) else "its parameter groups have no lr"


def has_option(option: str) -> Condition:
    def applies(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
        registration = subject.registration
        is_argument = option in configurable_arguments(registration) or accepts_any_argument(registration)
        has = is_argument and option in defaults_of(subject, options)
        return None if has else f"it has no option {option!r}"

    return applies


def has_modes(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    optimizer = subject.build([parameter(subject)], options)
    return None if has_train_eval_modes(optimizer) else "it has no train() and eval()"


def takes_several_groups(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    try:
        subject.build([{"params": [parameter(subject)]}, {"params": [parameter(subject)]}], options)
    except Exception as error:
        return f"the constructor refuses several parameter groups: {one_line(error)}"
    return None


def has_common_weight_decay(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    rule = cast(type[RuleOptimizer], subject.cls).rule
    return "its rule implements weight decay itself" if "weight_decay" in rule_signature(rule).hyperparameters else None


def takes_modifiers(*names: str) -> Condition:
    def applies(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
        return next(filter(None, (modifier_obstacle(subject, name) for name in names)), None)

    return applies


def modifier_obstacle(subject: OptimizerUnderTest, name: str) -> str | None:
    """Return why a modifier does not apply to a `RuleOptimizer`; None if it does."""
    if name not in inspect.signature(subject.cls).parameters:
        return f"it has no option {name!r}"
    signature = rule_signature(cast(type[RuleOptimizer], subject.cls).rule)
    if name in signature.hyperparameters + signature.flags:
        return f"its rule implements {name} itself"
    if name == "agc" and "sparse_only" in subject.capabilities:
        return "it takes sparse gradients only, which agc does not support"
    return None


# ------------------------------------------------------------------------------------------ helpers


def defaults_of(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attribute `defaults` of the optimizer."""
    return getattr(subject.build([parameter(subject)], options), "defaults", {})


def parameter(subject: OptimizerUnderTest) -> Tensor:
    """Return a parameter that the optimizer takes: with one element, or of the first shape of the spec."""
    return nn.Parameter(torch.zeros(subject.fit_shapes(((1,), (1,), (1,)))[0], dtype=subject.dtype))


def raises(function: Callable[[], object]) -> bool:
    """Whether a function raises an exception."""
    try:
        function()
    except Exception:
        return True
    return False


def with_auto_as_fallback(function: Callable[[dict[str, Any]], _T], options: dict[str, Any]) -> _T:
    """Call a function with the options; if their engine cannot take the tensors, again with engine `auto`."""
    try:
        return function(options)
    except EngineError:
        return function({**options, "engine": "auto"})
