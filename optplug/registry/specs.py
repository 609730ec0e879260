"""What a plugin says about an optimizer, a scheduler or a function, without importing it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from optplug.errors import SpecError, did_you_mean, listing

API_VERSION = 1
"""The plugin interface this optplug speaks. A spec written for another version is refused, by name."""

OLDEST_API_VERSION = 1

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_TARGET = re.compile(f"{_PATH}:{_PATH}")


def lookup_key(name: str) -> str:
    """What a name is compared by: case, `-` and `_` do not count."""
    return name.lower().replace("-", "").replace("_", "")


def snake_case(name: str) -> str:
    """`SignDescent` -> `sign_descent`, `StepLR` -> `step_lr`, `SGD` -> `sgd`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@dataclass(frozen=True)
class Spec:
    """One name that a plugin offers.

    Args:
        name: canonical name in snake case, e.g. `"sparse_adam"`.
        target: `"module:object"`, imported when the name is first asked for, or the class (the function) itself.
        summary: one line for listings.
        capabilities: words of the kind's vocabulary (`CAPABILITIES`); the conformance kit checks them for truth.
        api_version: the `optplug.API_VERSION` the plugin was written for.

    Raises:
        SpecError: for a malformed name, target or summary, an unknown capability, a foreign API version.
    """

    name: str
    target: str | type | Callable[..., Any]
    summary: str = ""
    capabilities: Set[str] = frozenset()
    api_version: int = API_VERSION

    kind: ClassVar[str]
    CAPABILITIES: ClassVar[Mapping[str, str]]
    thing: ClassVar[tuple[str, str]] = ("class", "classes")
    """What a target is, one and many."""

    @staticmethod
    def is_thing(target: object) -> bool:
        """Whether a target is of the right sort."""
        return isinstance(target, type)

    def __post_init__(self) -> None:
        # The version first: a spec from another age may be malformed in every other way.
        if not isinstance(self.api_version, int):
            raise SpecError(f"api_version of {self.kind} {self.name!r} must be an int, got {self.api_version!r}")
        if not OLDEST_API_VERSION <= self.api_version <= API_VERSION:
            remedy = "update optplug" if self.api_version > API_VERSION else "update the plugin"
            raise SpecError(
                f"{self.kind} {self.name!r} was written for plugin API {self.api_version}; this optplug speaks "
                f"{OLDEST_API_VERSION} to {API_VERSION}: {remedy}"
            )
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise SpecError(f"{self.kind} name {self.name!r} is not snake case (e.g. 'sign_descent')")
        if isinstance(self.target, str):
            if not _TARGET.fullmatch(self.target):
                raise SpecError(f"target {self.target!r} of {self.kind} {self.name!r} is not 'module:object'")
        elif not self.is_thing(self.target):
            raise SpecError(
                f"target of {self.kind} {self.name!r} is {self.target!r}: give 'module:object' or a {self.thing[0]}"
            )
        if not isinstance(self.summary, str):
            raise SpecError(f"summary of {self.kind} {self.name!r} must be text, got {self.summary!r}")
        given: Any = self.capabilities
        words = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(isinstance(word, str) for word in words):
            raise SpecError(f"capabilities of {self.kind} {self.name!r} must be a set of words, got {given!r}")
        object.__setattr__(self, "capabilities", frozenset(words))
        for word in sorted(self.capabilities):
            if word not in self.CAPABILITIES:
                raise SpecError(
                    f"{self.kind} {self.name!r} declares capability {word!r}; known are "
                    f"{listing(self.CAPABILITIES)}{did_you_mean(word, self.CAPABILITIES)}"
                )


@dataclass(frozen=True)
class OptimizerSpec(Spec):
    """An optimizer by name; arguments and errors as in `Spec`."""

    kind: ClassVar[str] = "optimizer"
    CAPABILITIES: ClassVar[Mapping[str, str]] = {
        "closure": "step() needs a closure that re-evaluates the model",
        "complex": "takes complex parameters",
        "create_graph": "needs gradients made with create_graph=True",
        "modes": "has train() and eval() modes",
        "sparse": "takes sparse gradients",
        "sparse_only": "takes sparse gradients only",
    }


LENGTHS = ("T_max", "total_steps", "total_iters", "num_training_steps")
"""What arguments are usually called that say how many steps a whole schedule has."""


@dataclass(frozen=True)
class SchedulerSpec(Spec):
    """A learning-rate scheduler by name; arguments and errors as in `Spec`.

    Args:
        interval: `"epoch"` or `"step"`, the unit in which the schedule naturally counts.
        length: the argument that says how many steps the whole schedule has, where there is one; a configuration may
            give it as `auto`. Arguments of the names in `LENGTHS` need no declaration.
    """

    interval: Literal["epoch", "step"] = "epoch"
    length: str = ""

    kind: ClassVar[str] = "scheduler"
    CAPABILITIES: ClassVar[Mapping[str, str]] = {"metric": "step() takes the monitored metric"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval not in ("epoch", "step"):
            raise SpecError(f"interval {self.interval!r} of scheduler {self.name!r} is neither 'epoch' nor 'step'")
        if not isinstance(self.length, str):
            raise SpecError(f"length of scheduler {self.name!r} must be the name of an argument, got {self.length!r}")


@dataclass(frozen=True)
class FunctionSpec(Spec):
    """A function of the epoch by name, for the arguments of schedulers; arguments and errors as in `Spec`."""

    kind: ClassVar[str] = "function"
    CAPABILITIES: ClassVar[Mapping[str, str]] = {}
    thing: ClassVar[tuple[str, str]] = ("function", "functions")

    @staticmethod
    def is_thing(target: object) -> bool:
        return callable(target) and not isinstance(target, type)


def spec_of(spec_class: type[Spec], thing: Any) -> Spec:
    """The spec of a class or function that a plugin returned as it is; a class's attributes may declare the rest.

    Raises:
        SpecError: for what has no name to be called by.
    """
    name = getattr(thing, "__name__", "")
    if name in ("", "<lambda>"):
        raise SpecError(
            f"{thing!r} has no name to be registered under: make it a function by def, or give "
            f"{spec_class.__name__}(name, function)"
        )
    options: dict[str, Any] = {
        key: getattr(thing, key) for key in ("capabilities", "interval", "length") if _declares(spec_class, thing, key)
    }
    doc = (thing.__doc__ or "").strip().partition("\n")[0]
    return spec_class(snake_case(name), thing, summary=doc, **options)


def _declares(spec_class: type[Spec], thing: Any, key: str) -> bool:
    value = getattr(thing, key, None)
    return key in spec_class.__dataclass_fields__ and isinstance(value, (str, Iterable))
