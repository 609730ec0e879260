"""The keywords that every optimizer shares, as types for `**options: Unpack[RuleOptions]`, and their defaults.

Some classes of torch.optim take some of these keywords by position. Their counterparts name these in the constructor
and take the others as one of the smaller types, because type checkers do not allow a keyword in both places.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import TypedDict, TypeVar, get_type_hints

import torch

from optplug.engines import Engine


class ModifierOptions(TypedDict, total=False):
    """The modifiers of every rule that no class of torch.optim has."""

    cautious: bool
    clip_value: float | None
    clip_norm: float | None
    agc: float | None


class EngineOptions(ModifierOptions, total=False):
    """Keywords that no class of torch.optim takes by position."""

    fused: bool | None
    engine: Engine
    state_dtype: torch.dtype | str | None


class StepOptions(TypedDict, total=False):
    """Further keywords that most algorithms have."""

    maximize: bool
    capturable: bool
    differentiable: bool


class DecayOptions(EngineOptions, total=False):
    """`EngineOptions` of an algorithm with weight decay."""

    decoupled_weight_decay: bool


class OptionsWithoutForeach(DecayOptions, StepOptions, total=False):
    """All keywords except `foreach`."""


class OptionsWithoutDecay(EngineOptions, StepOptions, total=False):
    """All keywords except `decoupled_weight_decay`, for algorithms that do not let the user choose the decay."""

    foreach: bool | None


class RuleOptions(OptionsWithoutForeach, total=False):
    """All keywords of `RuleOptimizer`, which documents them."""

    foreach: bool | None


OPTION_DEFAULTS: RuleOptions = {
    "decoupled_weight_decay": False,
    "maximize": False,
    "cautious": False,
    "clip_value": None,
    "clip_norm": None,
    "agc": None,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "engine": "auto",
    "state_dtype": None,
}

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def show_options(constructor: Constructor) -> Constructor:
    """Decorate a constructor so that its signature has the keywords of `RuleOptions` instead of `**options`."""
    own = [p for p in inspect.signature(constructor).parameters.values() if p.kind is not p.VAR_KEYWORD]
    types = get_type_hints(RuleOptions)
    keywords = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in OPTION_DEFAULTS.items()
    ]
    constructor.__signature__ = inspect.Signature([*own, *keywords])  # type: ignore[attr-defined]
    return constructor
