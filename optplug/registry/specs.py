"""Specs: how a plugin declares an optimizer, a scheduler or a function without importing it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from optplug.errors import SpecError, suggest

API_VERSION = 1
"""The newest version of the plugin API that this optplug supports."""

OLDEST_API_VERSION = 1
"""The oldest supported version of the plugin API. A spec for an unsupported version raises `SpecError`."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_TARGET = re.compile(f"{_PATH}:{_PATH}")


def lookup_key(name: str) -> str:
    """Return the form in which names are compared: lower case, without `-` and `_`."""
    return name.lower().replace("-", "").replace("_", "")


def snake_case(name: str) -> str:
    """Convert a class name: `SignDescent` -> `sign_descent`, `StepLR` -> `step_lr`, `SGD` -> `sgd`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


_keeps_errors: ContextVar[bool] = ContextVar("_keeps_errors", default=False)


@contextmanager
def errors_kept() -> Iterator[None]:
    """Inside, a malformed spec is made with its error in `error`, and does not raise it.

    The registry loads plugins so: the error of one spec must not end the plugin's code, which makes all its specs.
    """
    token = _keeps_errors.set(True)
    try:
        yield
    finally:
        _keeps_errors.reset(token)


@dataclass(frozen=True)
class Spec:
    """One name that a plugin registers. Base class of the specs for optimizers, schedulers and functions.

    Args:
        name: canonical name in snake case, e.g. `"sparse_adam"`.
        target: `"module:object"`, which is imported when the name is first used, or the class or function itself.
        summary: one line for listings.
        capabilities: keys of `CAPABILITIES` of the spec class. The conformance kit tests them. Default: none.
        api_version: the `optplug.API_VERSION` for which the plugin was written.
        cases: keyword arguments of the constructor that the conformance kit tests, one mapping for each case. The first
            also has values for the required arguments. Default: the class attribute `cases`.
        arguments: further keyword arguments, by name their defaults, which the constructor reads from `**kwargs`
            without documenting them in its signature. They are all that `**kwargs` takes. Default: none, and `**kwargs`
            takes the arguments of the base classes.
        precedence: 0 for names that belong to the plugin. An adapter, a plugin for classes of another package, gives a
            positive number. If several plugins register a name, the name alone means that of the lowest precedence; two
            plugins with precedence 0 clash. Default: 0.
        package: the distribution that contains the class, if it is not that of the plugin. Listings show it.
        unsupported: why a training loop cannot use the optimizer or scheduler, with the remedy. A configuration with
            its name is then an error. Default: none.

    Attributes:
        error: why a malformed spec is not used; None for a valid one, and outside of `errors_kept`.

    Mappings are copied. `cases`, `arguments` and `exceptions` do not count in comparisons, since they can hold tensors.

    Raises:
        SpecError: a field is malformed, a capability is unknown, or the API version is unsupported.
    """

    name: str
    target: str | type | Callable[..., Any]
    summary: str = ""
    capabilities: Set[str] = frozenset()
    api_version: int = API_VERSION
    cases: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)
    arguments: Mapping[str, Any] = field(default_factory=dict, compare=False)
    precedence: int = 0
    package: str = ""
    unsupported: str = ""
    error: SpecError | None = field(default=None, init=False, repr=False, compare=False)

    kind: ClassVar[str]
    CAPABILITIES: ClassVar[Mapping[str, str]]
    target_nouns: ClassVar[tuple[str, str]] = ("class", "classes")
    """The noun for a target in messages, singular and plural."""

    @staticmethod
    def is_valid_target(target: object) -> bool:
        """Return whether a loaded target has the right type: a class, or for functions a callable."""
        return isinstance(target, type)

    def __post_init__(self) -> None:
        try:
            self._check()
        except SpecError as error:
            if not _keeps_errors.get():
                raise
            object.__setattr__(self, "error", error)

    def _check(self) -> None:
        """Check the fields, and convert lists to tuples and sets.

        Raises:
            SpecError: see the class.
        """
        # The version is checked first: other fields may have another form in another version.
        if not _is_int(self.api_version):
            raise SpecError(f"api_version of {self.kind} {self.name!r} must be an int, got {self.api_version!r}")
        if not OLDEST_API_VERSION <= self.api_version <= API_VERSION:
            remedy = "update optplug" if self.api_version > API_VERSION else "update the plugin"
            raise SpecError(
                f"{self.kind} {self.name!r} was written for plugin API {self.api_version}; this optplug supports "
                f"{OLDEST_API_VERSION} to {API_VERSION}: {remedy}"
            )
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise SpecError(f"{self.kind} name {self.name!r} is not snake case (e.g. 'sign_descent')")
        if isinstance(self.target, str):
            if not _TARGET.fullmatch(self.target):
                raise SpecError(f"target {self.target!r} of {self.kind} {self.name!r} is not 'module:object'")
        elif not self.is_valid_target(self.target):
            raise SpecError(
                f"target of {self.kind} {self.name!r} is {self.target!r}: "
                f"give 'module:object' or a {self.target_nouns[0]}"
            )
        self._check_is_text("summary")
        self._check_is_text("package")
        self._check_is_text("unsupported")
        given: Any = self.capabilities
        words = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(isinstance(word, str) for word in words):
            raise SpecError(f"capabilities of {self.kind} {self.name!r} must be a set of words, got {given!r}")
        object.__setattr__(self, "capabilities", frozenset(words))
        for word in sorted(self.capabilities):
            if word not in self.CAPABILITIES:
                raise SpecError(
                    f"{self.kind} {self.name!r} declares the unknown capability {word!r}"
                    f"{suggest(word, self.CAPABILITIES, intro='known are', see=f'{type(self).__name__}.CAPABILITIES')}"
                )
        cases: Any = self.cases
        if not isinstance(cases, (tuple, list)) or not all(map(_is_keywords, cases)):
            raise SpecError(f"cases of {self.kind} {self.name!r} must be a list of keyword arguments, got {cases!r}")
        object.__setattr__(self, "cases", tuple(map(dict, cases)))
        if not _is_keywords(self.arguments):
            raise SpecError(f"arguments of {self.kind} {self.name!r} must be a mapping, got {self.arguments!r}")
        object.__setattr__(self, "arguments", dict(self.arguments))
        if not _is_int(self.precedence) or self.precedence < 0:
            raise SpecError(f"precedence of {self.kind} {self.name!r} must be an int >= 0, got {self.precedence!r}")

    def _check_is_text(self, field_name: str) -> None:
        """Raise SpecError unless a field is text."""
        text = getattr(self, field_name)
        if not isinstance(text, str):
            raise SpecError(f"{field_name} of {self.kind} {self.name!r} must be text, got {text!r}")

    def _check_is_argument(self, field_name: str) -> None:
        """Raise SpecError unless a field is the name of an argument, or empty."""
        name = getattr(self, field_name)
        if not isinstance(name, str) or not (name == "" or name.isidentifier()):
            raise SpecError(f"{field_name} of {self.kind} {self.name!r} must be the name of an argument, got {name!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_keywords(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


@dataclass(frozen=True)
class OptimizerSpec(Spec):
    """The spec of an optimizer. Further arguments and errors: see `Spec`.

    Args:
        target: `"module:object"`, a class, or a function that returns an optimizer.
        length: the name of the argument that is the number of optimizer steps of the training. A configuration can set
            it to `auto`. Arguments named as in `LENGTH_ARGUMENTS` need no declaration. Default: none.
        shapes: shapes of parameters that the conformance kit tests, for a class that does not take vectors, scalars or
            empty tensors. Default: a matrix, a vector, a scalar and an empty tensor, as far as the capabilities allow.
        base: the name of the argument that takes another optimizer, for a class that wraps one. If it is the first
            argument of the constructor, the class takes an optimizer. Else the class takes the parameters first, the
            class of the other optimizer as this argument, and its hyperparameters as further keywords. `cases` can have
            the key `base`, as in a configuration. Default: none.
        build: a function `build(cls, params, **arguments)` that is called in place of the class, or `"module:object"`.
            Default: the class is called.
        exceptions: promises of the conformance kit that the optimizer does not keep on purpose, by name the reasons.
            The kit does not test them, and reports the reasons. Default: none.
    """

    length: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    base: str = ""
    build: str | Callable[..., Any] | None = None
    exceptions: Mapping[str, str] = field(default_factory=dict, compare=False)

    kind: ClassVar[str] = "optimizer"
    target_nouns: ClassVar[tuple[str, str]] = ("class or function", "classes or functions")
    CAPABILITIES: ClassVar[Mapping[str, str]] = {
        "closure": "step() needs a closure that re-evaluates the model",
        "complex": "takes complex parameters",
        "create_graph": "needs gradients made with create_graph=True",
        "fused": "is a RuleOptimizer, which engines step in fused kernels",
        "gradients_first": "step(closure) needs gradients, and calls the closure for further ones",
        "matrix_only": "takes parameters with two or more dimensions only",
        "modes": "has train() and eval() modes",
        "module": "takes the module in place of the parameters",
        "named_params": "takes pairs of a name and a parameter in place of the parameters",
        "no_closure": "step() takes no closure, or does not call it",
        "one_lr": "step() requires the same lr in all parameter groups, or 0",
        "sparse": "takes sparse gradients",
        "sparse_only": "takes sparse gradients only",
    }

    @staticmethod
    def is_valid_target(target: object) -> bool:
        return callable(target)

    def _check(self) -> None:
        super()._check()
        self._check_is_argument("length")
        self._check_is_argument("base")
        shapes: Any = self.shapes
        if not isinstance(shapes, (tuple, list)) or not all(map(_is_shape, shapes)):
            raise SpecError(f"shapes of {self.kind} {self.name!r} must be a list of tuples of sizes, got {shapes!r}")
        object.__setattr__(self, "shapes", tuple(map(tuple, shapes)))
        is_build = self.build is None or callable(self.build)
        if not is_build and not (isinstance(self.build, str) and _TARGET.fullmatch(self.build)):
            raise SpecError(f"build of {self.kind} {self.name!r} is {self.build!r}: give 'module:object' or a function")
        if not _is_keywords(self.exceptions) or not all(isinstance(text, str) for text in self.exceptions.values()):
            raise SpecError(f"exceptions of {self.kind} {self.name!r} must map promises to reasons")
        object.__setattr__(self, "exceptions", dict(self.exceptions))


def _is_shape(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(size, int) and size >= 0 for size in value)


LENGTH_ARGUMENTS = ("T_max", "total_steps", "total_iters", "num_training_steps", "num_iterations")
"""Usual names of the argument that sets the total number of steps of a schedule or of an optimizer."""


@dataclass(frozen=True)
class SchedulerSpec(Spec):
    """The spec of a learning-rate scheduler. Further arguments and errors: see `Spec`.

    Args:
        target: `"module:object"`, a class, or a function that takes the optimizer and returns a scheduler.
        interval: `"epoch"` or `"step"`: the default of the configuration key `interval`.
        length: the name of the argument that sets the total number of steps of the schedule. A configuration can then
            set this argument to `auto`. Arguments named as in `LENGTH_ARGUMENTS` need no declaration. Default: none.
        lengths: the names of the other arguments that are numbers of steps of the schedule. Default: none.
        final_lengths: those of `lengths` that are the last steps of the schedule, such as a decay. Default: none.
        functions: the names of the arguments that are functions of the epoch. Default: the class attribute `functions`.
    """

    interval: Literal["epoch", "step"] = "epoch"
    length: str = ""
    lengths: tuple[str, ...] = ()
    final_lengths: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()

    kind: ClassVar[str] = "scheduler"
    target_nouns: ClassVar[tuple[str, str]] = ("class or function", "classes or functions")
    CAPABILITIES: ClassVar[Mapping[str, str]] = {"metric": "step() takes the monitored metric"}

    @staticmethod
    def is_valid_target(target: object) -> bool:
        return callable(target)

    def _check(self) -> None:
        super()._check()
        if self.interval not in ("epoch", "step"):
            raise SpecError(f"interval {self.interval!r} of scheduler {self.name!r} is neither 'epoch' nor 'step'")
        self._check_is_argument("length")
        for field_name in ("lengths", "final_lengths", "functions"):
            names = getattr(self, field_name)
            if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
                raise SpecError(
                    f"{field_name} of scheduler {self.name!r} must be a list of names of arguments, got {names!r}"
                )
            object.__setattr__(self, field_name, tuple(names))
        unknown = [name for name in self.final_lengths if name not in self.lengths]
        if unknown:
            raise SpecError(f"final_lengths of scheduler {self.name!r} must be in its lengths, got {unknown[0]!r}")


@dataclass(frozen=True)
class FunctionSpec(Spec):
    """The spec of a function of the epoch, for arguments of schedulers. Arguments and errors: see `Spec`."""

    kind: ClassVar[str] = "function"
    CAPABILITIES: ClassVar[Mapping[str, str]] = {}
    target_nouns: ClassVar[tuple[str, str]] = ("function", "functions")

    @staticmethod
    def is_valid_target(target: object) -> bool:
        return callable(target) and not isinstance(target, type)


DECLARABLE = (
    *("base", "capabilities", "cases", "exceptions", "final_lengths", "functions"),
    *("interval", "length", "lengths", "shapes", "unsupported"),
)
"""The fields that a class without a spec can declare as class attributes."""


def spec_from_target(spec_class: type[Spec], target: Any, name: str | None = None) -> Spec:
    """Make the spec of a class or function that a plugin returned without a spec.

    Attributes of the target that have the name and the type of a field become this field. A `RuleOptimizer` class has
    the capability `fused`.

    Args:
        spec_class: the class of the spec.
        target: the class or function.
        name: the name of the spec. Default: the target's `__name__` in snake case.

    Raises:
        SpecError: the target has no `__name__` that can be registered, e.g. a lambda.
    """
    name = name or snake_case(getattr(target, "__name__", ""))
    if name in ("", "<lambda>"):
        raise SpecError(
            f"{target!r} has no name to be registered under: make it a function by def, or give "
            f"{spec_class.__name__}(name, function)"
        )
    options: dict[str, Any] = {key: getattr(target, key) for key in DECLARABLE if _declares(spec_class, target, key)}
    if is_rule(target):
        declared = options.get("capabilities", ())
        options["capabilities"] = {"fused", *((declared,) if isinstance(declared, str) else declared)}
    doc = (target.__doc__ or "").strip().partition("\n")[0]
    return spec_class(name, target, summary=doc, **options)


def is_rule(target: Any) -> bool:
    """Return whether a target is a `RuleOptimizer` class."""
    # Compared by name: this file does not import torch.
    return isinstance(target, type) and any(base.__name__ == "RuleOptimizer" for base in target.__mro__)


def _declares(spec_class: type[Spec], target: Any, key: str) -> bool:
    value = getattr(target, key, None)
    return key in spec_class.__dataclass_fields__ and isinstance(value, (str, Iterable))
