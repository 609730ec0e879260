"""Invalid input to every optimizer. `python tests/plugins/test_optimizer_inputs.py` prints the counts per class.

An input is rejected correctly if the exception has the right type, the message contains the expected words, no warning
is issued, and an optimizer that was running is unchanged and continues like one that never received the input. Where
torch raises an error of its own for the same call, the exception has torch's type and its message begins with torch's
text.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import optplug
from optplug import errors
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    EngineError,
    HyperparameterError,
    HyperparameterTypeError,
    LineSearchError,
    ParameterError,
    RecordingError,
    SparseGradientError,
    UnknownNameError,
)
from optplug.optim.dispatch import ENGINE_KEYS
from optplug.optim.ranges import COMMON_RANGES, Range
from support import first_party

CLASSES = {name: optplug.get_optimizer(name) for name in first_party("optimizer")}
CLASSES = {name: cls for name, cls in CLASSES.items() if cls.__module__.startswith("optplug_classic.")}
OPTIONAL_BOOLS = ("foreach", "fused")
OPTIONAL_NUMBERS = ("max_eval", "clip_value", "clip_norm", "agc")
OPTIMIZER_WIDE_OPTIONS = ("engine", "state_dtype")
RANGES_OF_TUPLES = {  # constraints between elements, which `check_options` checks
    "etas": [(0.0, 1.2), (-0.1, 1.2), (1.0, 1.2), (1.5, 1.2), (0.5, 1.0), (0.5, 0.9), (0.5, -1.2), (1.0, 0.5)],
    "step_sizes": [(1.0, 0.5)],
}
NEGATIVE, INVALID_COUNTS, INVALID_FRACTIONS = (-0.25, -1e-9), (0, -3), (-1e-9, 1.25)
# Copied from the docstrings, because the declared ranges could be wrong. A class can have its own entry.
OUT_OF_RANGE: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("lr", "eps", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value"), NEGATIVE),
    **dict.fromkeys(("lambd", "t0", "step_sizes"), NEGATIVE),
    **dict.fromkeys(("tolerance_grad", "tolerance_change"), ()),
    **dict.fromkeys(("max_iter", "max_eval", "history_size"), INVALID_COUNTS),
    **dict.fromkeys(("rho", "alpha"), INVALID_FRACTIONS),
    **dict.fromkeys(("clip_value", "clip_norm", "agc"), (0.0, *NEGATIVE)),
    "betas": (*INVALID_FRACTIONS, 1.0),
    "ASGD.alpha": NEGATIVE,
    **dict.fromkeys(("SparseAdam.lr", "SparseAdam.eps"), (0.0, *NEGATIVE)),
    "dampening": (),
    "etas": (),
}


def out_of_range_values(cls: Any, key: str) -> tuple[float, ...]:
    """Numbers that are not allowed for a hyperparameter. Every hyperparameter has an entry."""
    return OUT_OF_RANGE[own] if (own := f"{cls.__name__}.{key}") in OUT_OF_RANGE else OUT_OF_RANGE[key]


def torch_class(name: str) -> Any:
    """The class of `torch.optim` with the same name."""
    return getattr(torch.optim, CLASSES[name].__name__)


def keyword_defaults(cls: Any) -> dict[str, Any]:
    """The keywords of the constructor and their defaults."""
    return {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name != "params"}


def declared_ranges(cls: Any) -> dict[str, Range]:
    if not issubclass(cls, optplug.RuleOptimizer):
        return {r.name: r for r in (*COMMON_RANGES, *sys.modules[cls.__module__].RANGES)}
    return {r.name: r for r in (*COMMON_RANGES, *optplug.RuleOptimizer.ranges, *cls.ranges)}


# ------------------------------------------------------------------------------------------------ invalid inputs


def parameter(*values: float, **options: Any) -> torch.Tensor:
    return torch.tensor(values or (1.0, -2.0), requires_grad=True, **options)


class RunningOptimizer:
    """An optimizer on two parameters, in two groups if the class supports groups.

    Args:
        cls: the class, of optplug or torch.
        options: the options of the constructor.
    """

    def __init__(self, cls: Any, options: dict[str, Any]) -> None:
        self.params = [parameter(1.0, -2.0), parameter(3.0, 0.5, 4.0)]
        self.single = issubclass(cls, torch.optim.LBFGS)
        self.sparse = cls.__name__ == "SparseAdam"
        groups = [self.params] if self.single else [[p] for p in self.params]
        self.optimizer = cls([{"params": params} for params in groups], **options)

    def evaluate(self) -> torch.Tensor:
        for p in self.params:
            gradient = 0.1 * (p.detach() - 1)
            p.grad = gradient.to_sparse() if self.sparse else gradient
        return sum((0.05 * ((p.detach() - 1) ** 2).sum() for p in self.params), torch.tensor(0.0))

    def take_step(self) -> RunningOptimizer:
        self.evaluate()
        self.optimizer.step(self.evaluate)
        return self

    def snapshot(self) -> Any:
        """A copy of everything that an invalid input must not change."""
        hooks = {k: len(v) for k, v in vars(self.optimizer).items() if k.endswith("_hooks")}
        values = [p.detach().clone() for p in self.params]
        groups = [[id(p) for p in group["params"]] for group in self.optimizer.param_groups]
        keys = [sorted(group) for group in self.optimizer.param_groups]
        return copy.deepcopy([self.optimizer.state_dict(), self.optimizer.defaults, hooks, values, groups, keys])


def equal_with_types(a: Any, b: Any) -> bool:
    """Whether two values are bitwise equal and have equal types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_with_types(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal_with_types, a, b))
    if isinstance(a, torch.Tensor):
        a, b = (t.to_dense() if t.layout is not torch.strided else t for t in (a, b))
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


@dataclass(frozen=True)
class InvalidInput:
    """One invalid input.

    Attributes:
        description: a description of the input.
        action: called with a class, or if `running_options` is set with a `RunningOptimizer`; must raise.
        error: the class of `optplug.errors`, or None if torch's base class raises.
        builtin: another class that the exception must have.
        words: the words that the message must contain.
        running_options: the options of an optimizer that runs before; None for input to the constructor.
        repair: for an optimizer that cannot step with its options: makes it usable.
        not_in_torch: whether torch does not have the option, so that there is nothing to compare.
        hint: whether the message must suggest `words[-1]`.
    """

    description: str
    action: Callable[[Any], Any]
    error: type[Exception] | None
    builtin: type[Exception]
    words: tuple[str, ...]
    running_options: dict[str, Any] | None = None
    repair: Callable[[RunningOptimizer], Any] | None = None
    not_in_torch: bool = False
    hint: bool = False


def exception_of(act: Callable[[], Any], on_warning: str) -> Exception | None:
    """The exception that a call raises, or None.

    Args:
        act: the call.
        on_warning: the warnings filter; "error" turns warnings into exceptions.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(on_warning)
        try:
            act()
        except Exception as error:
            return error
    return None


def is_explicit_check(error: Exception) -> bool:
    """Whether torch checks for the input: the last frame has a `raise` statement, or Python rejected the call."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (last.line or "").startswith("raise") or " keyword argument " in str(error)


def find_problems(name: str, invalid: InvalidInput) -> list[str]:
    """The problems with how the optimizer handles an invalid input; an empty list if it is rejected correctly."""
    cls, found = CLASSES[name], []
    subject = before = None
    if invalid.running_options is not None:
        subject = start(cls, invalid)
        before = subject.snapshot()
    error = exception_of(lambda: invalid.action(cls if subject is None else subject), "error")
    if error is None:
        return ["accepted"]
    message = str(error)
    if not isinstance(error, invalid.builtin):
        found.append(f"{type(error).__name__} is no {invalid.builtin.__name__}")
    if invalid.error is not None and type(error) is not invalid.error:
        found.append(f"{type(error).__name__} instead of {invalid.error.__name__}")
    found += [f"the message lacks {word!r}" for word in invalid.words if word not in message]
    if invalid.hint and invalid.words[-1] not in message.partition("did you mean ")[2]:
        found.append(f"it does not suggest {invalid.words[-1]}")
    if subject is not None:
        if not equal_with_types(before, subject.snapshot()):
            found.append("the running optimizer has changed")
        if not equal_with_types(
            parameters_after_a_step(subject, invalid.repair),
            parameters_without_invalid_input(name, tuple(invalid.running_options.items()), invalid.repair),
        ):
            found.append("the next step differs from that of an undisturbed optimizer")
    if not invalid.not_in_torch:
        found += find_differences_from_torch(name, invalid, error)
    return [f"{one}: {type(error).__name__}: {message}" for one in found]


def start(cls: Any, invalid: InvalidInput) -> RunningOptimizer:
    """The optimizer that receives the invalid input: after a step, if it can make a step."""
    subject = RunningOptimizer(cls, invalid.running_options or {})
    return subject if invalid.repair else subject.take_step()


def parameters_after_a_step(subject: RunningOptimizer, repair: Callable[[RunningOptimizer], Any] | None) -> Any:
    """The parameters after another step."""
    if repair:
        repair(subject)
    return [p.detach().clone() for p in subject.take_step().params]


@functools.cache
def parameters_without_invalid_input(
    name: str, options: tuple[tuple[str, Any], ...], repair: Callable[[RunningOptimizer], Any] | None
) -> Any:
    """The same for an optimizer that never received the invalid input."""
    invalid = InvalidInput("nothing", RunningOptimizer.take_step, None, Exception, (), dict(options), repair)
    return parameters_after_a_step(start(CLASSES[name], invalid), repair)


DIFFERENT_MESSAGES = {
    "If capturable=True, params, mus, etas, and state_steps": "If capturable=True, params and state_steps",
    "Adam does not support sparse gradients": "AdamW does not support sparse gradients",
    "Invalid eta values": "Invalid etas[",
}
"""The messages that do not begin with torch's text. docs/torch.md documents them."""


def find_differences_from_torch(name: str, invalid: InvalidInput, error: Exception) -> list[str]:
    """The differences from torch's exception for the same input, if torch raises one."""
    subject = torch_class(name) if invalid.running_options is None else start(torch_class(name), invalid)
    other = exception_of(lambda: invalid.action(subject), "ignore")
    if other is None or not is_explicit_check(other):
        return []
    if isinstance(error, HyperparameterTypeError) and isinstance(other, ValueError):
        return []  # torch treats True as the number 1, which is out of range; optplug does not accept a bool
    found = []
    if not isinstance(error, type(other)):
        found.append(f"torch's is {type(other).__name__}")
    text = str(other).partition("[")[0] if isinstance(error, RecordingError) else str(other)
    text = text.partition(". Did you mean")[0]  # Python >= 3.13 suggests a keyword
    known = next(
        (str(error).startswith(ours) for start, ours in DIFFERENT_MESSAGES.items() if text.startswith(start)), False
    )
    if not (str(error).startswith(text) or known):
        found.append(f"does not begin with torch's text {text!r}")
    return found


# ------------------------------------------------------------------------------------------------- invalid values

Value = tuple[Any, type[Exception], type[Exception], tuple[str, ...]]
OUT, TYPE = (HyperparameterError, ValueError), (HyperparameterTypeError, TypeError)


def invalid_numbers(name: str, range_: Range | None) -> Iterator[Value]:
    """Invalid values of a number: wrong types, values that are not finite, and values out of range."""
    whole = range_ is not None and range_.whole
    probes: list[Any] = [-1e300, -1.0, -1e-12, 0.0, 1.0, 1 + 1e-12, 1e300]
    probes += [-1, -(10**6), 0] if range_ is not None else []
    for number in probes:
        if range_ is not None and not (whole and isinstance(number, float)) and not range_.holds(number):
            yield number, *OUT, (range_.message_start, f": {number} (", name, f"must be {range_.words}")
    for number in (math.nan, math.inf, -math.inf):
        if whole:
            yield number, *TYPE, (name, "must be a whole number", str(number))
        elif range_ is None or range_.finite or not range_.holds(number):
            holds = range_ is None or range_.holds(number)
            words = "must be finite" if holds or range_ is None else f"must be {range_.words}"
            yield number, *OUT, ("Invalid", f": {number} (", name, words)
    if whole:
        yield 2.5, *TYPE, (name, "must be a whole number", "2.5 (float)")
        yield 1e1, *TYPE, (name, "must be a whole number", "10.0 (float)")
    else:
        yield torch.tensor(math.nan), *OUT, ("Invalid", ": nan (", name)
        if range_ is not None and not range_.holds(-1.0):
            yield torch.tensor(-1.0), *OUT, (range_.message_start, ": -1.0 (", name, range_.words)
        yield 10**400, *OUT, ("Invalid", name, "must be")
    yield "1e-3", *TYPE, (name, "must be a number", "'1e-3' (str)", "; write 0.001")
    yield "0.5", *TYPE, (name, "must be a number", "'0.5' (str)", "; write 0.5")
    yield "fast", *TYPE, (name, "must be a number", "'fast' (str)")
    yield None, *TYPE, (name, "must be a number", "None (NoneType)")
    yield True, *TYPE, (name, "must be a number", "True (bool)")
    yield [0.5], *TYPE, (name, "must be a number", "[0.5] (list)")
    yield {}, *TYPE, (name, "must be a number", "{} (dict)")
    yield 1j, *TYPE, (name, "must be a number", "1j (complex)")
    yield torch.tensor(1j), *TYPE, (name, "must be a number")
    yield torch.tensor([0.5, 0.5]), *OUT, (f"Tensor {name} must be 1-element", "(2,)")
    yield np.array([0.5, 0.5]), *TYPE, (name, "must be a number")


def invalid_tuples(
    name: str, default: tuple[Any, ...], range_: Range | None, out_of_range: tuple[float, ...]
) -> Iterator[Value]:
    """Invalid values of a pair: wrong length, wrong type, and invalid elements."""
    pair = (f"{name} must be 2 numbers",)
    for wrong in ((), default[:1], (*default, 0.5), [0.5]):
        yield wrong, *OUT, (*pair, "got ")
    for kind in (0.9, "0.9, 0.99", None, True, {0.9, 0.99}, {"0": 0.9, "1": 0.99}, torch.tensor([0.9, 0.99])):
        yield kind, *TYPE, (*pair, "got ")
    for i in range(2):
        for number in out_of_range:
            elements = list(default)
            elements[i] = number
            yield tuple(elements), *OUT, ("Invalid", f"{name}[{i}] must be ", f": {number} (")
        mixed = list(default)
        mixed[i] = torch.tensor(float(mixed[i]))
        yield tuple(mixed), *OUT, (f"{name} must be either both floats or both Tensors",)
        ranged = range_ and Range(name, range_.words, range_.holds, called=f"{range_.called} at index {i}")
        for value, error, builtin, words in invalid_numbers(f"{name}[{i}]", ranged):
            if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
                continue  # a pair of a number and a tensor is tested above
            elements = list(default)
            elements[i] = value
            yield tuple(elements), error, builtin, words
    for value in RANGES_OF_TUPLES.get(name, []):
        yield value, *OUT, (f"Invalid {name.replace('_', ' ').removesuffix('s')}", f"{value[0]}, {value[1]} (")


def invalid_values(cls: Any, key: str, default: Any) -> Iterator[Value]:
    """Invalid values of a keyword, chosen by the type of its default."""
    range_ = declared_ranges(cls).get(key)
    if key in OPTIONAL_BOOLS:
        for value in (1, 0, "yes", "True", [], torch.tensor(True), 0.5):
            yield value, *TYPE, (key, "must be True, False or None", f"got {value!r}")
    elif key == "engine":
        for value, nearest in {"forech": "foreach", "lop": "loop", "Auto": "auto", "": "", 3: "", None: ""}.items():
            yield (
                value,
                EngineError,
                RuntimeError,
                (repr(value), repr(nearest) if nearest else "auto, loop, foreach, numba"),
            )
        yield (
            "triton",
            EngineError,
            RuntimeError,
            ("'triton'", "not part of this version", "auto, loop, foreach, numba"),
        )
    elif key == "state_dtype":
        for value in ("float31", "int8", "nn", torch.int8, torch.complex64, torch.bool, float, 32, True, []):
            yield value, *TYPE, ("state_dtype must be a floating-point torch.dtype or None, got ",)
    elif key == "line_search_fn":
        for value in ("strong_wolf", "wolfe", "", 1, True, [], len):
            nearest = "did you mean 'strong_wolfe'" if value in ("strong_wolf", "wolfe") else "None"
            words = ("only 'strong_wolfe' is supported", repr(value), nearest)
            yield value, LineSearchError, RuntimeError, words
    elif isinstance(default, bool):
        for value in (1, 0, "yes", "True", None, [], torch.tensor(True), 0.5):
            yield value, *TYPE, (key, "must be True or False", f"got {value!r} ({type(value).__name__})")
    elif isinstance(default, tuple):
        yield from invalid_tuples(key, default, range_, out_of_range_values(cls, key))
    else:
        for number in out_of_range_values(cls, key):
            yield number, *OUT, ("Invalid", f"{key} must be ", f": {number} (")
        allowed = (None,) if key in OPTIONAL_NUMBERS else ()
        yield from ((v, *rest) for v, *rest in invalid_numbers(key, range_) if not any(v is a for a in allowed))


def short_repr(value: Any) -> str:
    return re.sub(r"10{400}", "10**400", re.sub(r"\s+", " ", repr(value)))


def combinations(cls: Any) -> Iterator[tuple[dict[str, Any], Value]]:
    """Options that are invalid only in combination."""
    keys = keyword_defaults(cls)
    if "foreach" in keys:
        for engine, foreach in (("loop", True), ("foreach", False)):
            words = (f"foreach={foreach}", "contradicts", f"engine={engine!r}")
            yield {"foreach": foreach, "engine": engine}, (None, EngineError, RuntimeError, words)
        words = ("differentiable=True needs engine 'loop'",)
        yield {"foreach": True, "differentiable": True}, (None, RecordingError, AssertionError, words)
        yield {"engine": "foreach", "differentiable": True}, (None, RecordingError, AssertionError, words)
    if keys.keys() >= {"fused", "foreach", "differentiable"}:
        words = ("`fused` and `foreach` cannot be `True` together.",)
        yield {"fused": True, "foreach": True}, (None, EngineError, RuntimeError, words)
        words = ("`fused` does not support `differentiable`",)
        yield {"fused": True, "differentiable": True}, (None, EngineError, RuntimeError, words)
    if cls.__name__ in ("Adam", "AdamW"):
        text = " as a Tensor is not supported for capturable=False and foreach=True"
        yield {"foreach": True, "lr": torch.tensor(0.1)}, (None, *OUT, (f"lr{text}",))
        tensors = (torch.tensor(0.9), torch.tensor(0.99))
        yield {"foreach": True, "betas": tensors}, (None, *OUT, (f"betas[0]{text}",))
    if "nesterov" in keys:
        words = ("Nesterov momentum requires a momentum and zero dampening",)
        yield {"nesterov": True}, (None, *OUT, words)
        yield {"nesterov": True, "dampening": 0.1}, (None, *OUT, words)
        yield {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, (None, *OUT, words)
        yield {"nesterov": True, "momentum": 0.9, "dampening": -0.1}, (None, *OUT, words)


def value_inputs(name: str) -> Iterator[InvalidInput]:
    """Every invalid value and combination: in the constructor, in a group, in a later group and in a state dict."""
    cls = CLASSES[name]
    known, torchs, single = (
        keyword_defaults(cls),
        keyword_defaults(torch_class(name)),
        issubclass(cls, torch.optim.LBFGS),
    )
    given = [({key: v}, (v, *rest)) for key, default in known.items() for v, *rest in invalid_values(cls, key, default)]
    for options, (_, error, builtin, words) in [*given, *combinations(cls)]:
        what = ", ".join(f"{key}={short_repr(value)}" for key, value in options.items())
        invalid_input = functools.partial(
            InvalidInput, error=error, builtin=builtin, words=words, not_in_torch=not options.keys() <= torchs.keys()
        )
        yield invalid_input(what, functools.partial(construct, options=options))
        whole = {key: value for key, value in options.items() if key in OPTIMIZER_WIDE_OPTIONS}
        if whole == options:
            continue
        own = {key: value for key, value in options.items() if key not in whole}
        yield invalid_input(f"a group's {what}", functools.partial(construct_group, options=own, whole=whole))
        if not single:
            yield invalid_input(
                f"a later group's {what}", functools.partial(add_group, options=own), running_options=whole
            )
        # A state dict may have values out of range, which schedulers wrote. Engine options are not loaded.
        if not options.keys() & {*ENGINE_KEYS, *OPTIMIZER_WIDE_OPTIONS} and not is_out_of_range_only(cls, options):
            load = functools.partial(load_with, options=own)
            endless = all(isinstance(v, float) and not math.isfinite(v) for v in options.values())
            kinds = {"error": HyperparameterError, "builtin": ValueError} if endless else {}
            yield invalid_input(
                f"a state dict's {what}",
                load,
                running_options={},
                words=words if "line_search_fn" in options else tuple(options),
                **kinds,
            )


def is_out_of_range_only(cls: Any, options: dict[str, Any]) -> bool:
    """Whether every value has the right type and is finite, so that it can only be out of range."""

    def fits(value: Any, default: Any) -> bool:
        if isinstance(default, tuple):
            alike = isinstance(value, (tuple, list)) and len(value) == len(default)
            return alike and len({isinstance(v, torch.Tensor) for v in value}) == 1 and all(fits(v, 0.0) for v in value)
        if isinstance(default, bool):
            return isinstance(value, bool)
        if isinstance(default, str) or default is None:
            return isinstance(value, (str, type(None)))
        if isinstance(value, torch.Tensor):
            return value.numel() == 1 and value.is_floating_point() and bool(value.isfinite())
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e308

    return all(
        fits(value, 1 if key in OPTIONAL_NUMBERS else keyword_defaults(cls)[key])
        for key, value in options.items()
        if key in keyword_defaults(cls)
    )


def construct(cls: Any, options: dict[str, Any]) -> Any:
    return cls([parameter()], **options)


def construct_group(cls: Any, options: dict[str, Any], whole: dict[str, Any] | None = None) -> Any:
    return cls([{"params": [parameter()], **options}], **(whole or {}))


def add_group(subject: RunningOptimizer, options: dict[str, Any]) -> None:
    subject.optimizer.add_param_group({"params": [parameter()], **options})


def load_with(subject: RunningOptimizer, options: dict[str, Any]) -> None:
    saved = copy.deepcopy(subject.optimizer.state_dict())
    saved["param_groups"][-1].update(options)
    for state in saved["state"].values():  # to detect a state that is loaded before the exception
        state.update({k: v + 1 for k, v in state.items() if isinstance(v, torch.Tensor)})
    subject.optimizer.load_state_dict(saved)


# ----------------------------------------------------------------------------------------------- invalid keywords

MISSPELLINGS = {"learning_rate": "lr", "weigth_decay": "weight_decay", "beta": "betas", "moment": "momentum"}
MISSPELLINGS |= {"weight_decy": "weight_decay", "epsilon": "eps", "stepsize": "step_sizes", "Foreach": "foreach"}


def misspellings(keys: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Misspelt keywords, each with the intended keyword, or "" if the class does not have it."""
    for wrong, right in MISSPELLINGS.items():
        yield wrong, right if right in keys else ""
    for right in keys:
        if len(right) > 3:  # without one letter
            yield right[: len(right) // 2] + right[len(right) // 2 + 1 :], right
    yield "zzzzzz", ""


def keyword_inputs(name: str) -> Iterator[InvalidInput]:
    cls = CLASSES[name]
    known, single = keyword_defaults(cls), issubclass(cls, torch.optim.LBFGS)
    of_groups = {key: v for key, v in known.items() if key not in OPTIMIZER_WIDE_OPTIONS}
    for wrong, right in misspellings(known):
        words = (repr(wrong), repr(right) if right else "; it has " if wrong == "zzzzzz" else "; ")
        invalid_input = functools.partial(InvalidInput, words=words, hint=bool(right))
        options = {wrong: 0.5}
        yield invalid_input(f"keyword {wrong}", functools.partial(construct, options=options), *TYPE)
        yield invalid_input(
            f"create_optimizer's keyword {wrong}", functools.partial(create, name, options), ConfigError, ValueError
        )
        if right not in of_groups and wrong != "Foreach":  # a group keeps keys of the user
            continue
        yield invalid_input(f"a group's key {wrong}", functools.partial(construct_group, options=options), *OUT)
        if not single:
            yield invalid_input(
                f"a later group's key {wrong}", functools.partial(add_group, options=options), *OUT, running_options={}
            )
    absent = [
        key for key in (*ENGINE_KEYS, "maximize", "decoupled_weight_decay", *OPTIMIZER_WIDE_OPTIONS) if key not in known
    ]
    for key in absent:
        act = functools.partial(construct, options={key: None})
        not_in_torch = key in keyword_defaults(torch_class(name))
        yield InvalidInput(
            f"keyword {key}, which it does not have",
            act,
            *TYPE,
            (f"unexpected keyword argument {key!r}; ",),
            not_in_torch=not_in_torch,
        )
        act = functools.partial(create, name, {key: True})
        yield InvalidInput(
            f"create_optimizer's {key}, which it does not have", act, ConfigError, ValueError, (repr(key),)
        )
    if "weight_decay" not in known:
        options = {"decoupled_weight_decay": True}
        words = ("has no option 'decoupled_weight_decay'",)
        yield InvalidInput(
            "a group's decoupled_weight_decay without weight_decay",
            functools.partial(construct_group, options=options),
            *OUT,
            words,
        )
    for key in OPTIMIZER_WIDE_OPTIONS:
        words = (repr(key), "it has")
        yield InvalidInput(f"a group's {key}", functools.partial(construct_group, options={key: "loop"}), *OUT, words)
    many = functools.partial(lambda cls: cls([parameter()], *([0.1] * 40)))
    yield InvalidInput("forty positional arguments", many, None, TypeError, ("positional argument",))
    yield InvalidInput("no arguments", lambda cls: cls(), None, TypeError, ("params",))
    yield InvalidInput(
        "a misspelt name",
        functools.partial(lambda cls, word: optplug.create_optimizer(word, [parameter()]), word=f"{name}q"),
        UnknownNameError, LookupError, (f"{name}q", repr(name)), not_in_torch=True, hint=True,
    )  # fmt: skip
    frozen = nn.Linear(2, 2).requires_grad_(False)
    for module, why in ((nn.ReLU(), "no parameters"), (frozen, "frozen")):
        act = functools.partial(lambda cls, module: optplug.create_optimizer(name, module), module=module)
        yield InvalidInput(
            f"a module with {why}", act, ConfigError, ValueError, ("no trainable parameters", why), not_in_torch=True
        )


def create(name: str, options: dict[str, Any], cls: Any) -> Any:
    """Call `create_optimizer`. torch has no such function, so for its classes this does nothing."""
    return optplug.create_optimizer(name, [parameter()], **options) if cls is CLASSES[name] else None


# --------------------------------------------------------------------------------------------- invalid parameters


def invalid_params(cls: Any) -> Iterator[tuple[str, Callable[[], Any], type[Exception] | None, type[Exception], Any]]:
    """A description, a function that creates the parameters, and the expected exception."""
    not_tensor = "optimizer can only optimize Tensors"
    yield "an empty list", list, None, ValueError, ("empty parameter list",)
    yield "an exhausted generator", lambda: (p for p in ()), None, ValueError, ("empty parameter list",)
    yield "a bare tensor", parameter, None, TypeError, ("iterable of Tensors or dicts", "FloatTensor")
    yield "a set", lambda: {parameter()}, None, TypeError, ("ordered collections",)
    yield "a set in a group", lambda: [{"params": {parameter()}}], None, TypeError, ("ordered collections",)
    yield "a group, bare", lambda: {"params": [parameter()]}, None, TypeError, (not_tensor, "str")
    yield "a state dict", lambda: {"weight": parameter()}, None, TypeError, (not_tensor, "str")
    yield "text", lambda: "params", None, TypeError, (not_tensor, "str")
    yield "None", lambda: None, None, TypeError, ("NoneType", "not iterable")
    yield "a number", lambda: 3, None, TypeError, ("int", "not iterable")
    yield "a module", lambda: nn.Linear(2, 1), None, TypeError, ("Linear", "not iterable")
    yield "a method", lambda: nn.Linear(2, 1).parameters, None, TypeError, ("method", "not iterable")
    yield "None in the list", lambda: [parameter(), None], None, TypeError, (not_tensor, "NoneType")
    yield "text in the list", lambda: [parameter(), "weight"], None, TypeError, (not_tensor, "str")
    yield "an integer in the list", lambda: [parameter(), 3], None, TypeError, (not_tensor, "int")
    yield "a list in the list", lambda: [[parameter()]], None, TypeError, (not_tensor, "list")
    yield "an array in the list", lambda: [np.zeros(2)], None, TypeError, (not_tensor, "ndarray")
    yield "a name without a tensor", lambda: [("w", 3)], None, TypeError, (not_tensor, "int")
    yield "a group's None", lambda: [{"params": None}], None, TypeError, ("NoneType",)
    yield "a group's integer", lambda: [{"params": [3]}], None, TypeError, (not_tensor, "int")
    yield "a non-leaf", lambda: [parameter() * 2], None, ValueError, ("can't optimize a non-leaf Tensor",)
    p = parameter()
    duplicate = "optimizer contains a parameter group with duplicate parameters"
    yield "a duplicate", lambda: [p, parameter(), p], ParameterError, ValueError, (duplicate,)
    yield "a named duplicate", lambda: [("a", p), ("b", p)], ParameterError, ValueError, (duplicate,)
    yield "a duplicate in a group", lambda: [{"params": [p, p]}], ParameterError, ValueError, (duplicate,)
    missing = ("all optimizer params should be with/without names", "missing")
    yield "some with names", lambda: [("a", p), parameter()], None, ValueError, missing
    yield "the first without a name", lambda: [parameter(), ("a", p)], None, ValueError, missing
    yield "a dict after a tensor", lambda: [p, {"params": [parameter()]}], None, TypeError, (not_tensor, "dict")
    needs = ("needs 'params'",)
    single = issubclass(cls, torch.optim.LBFGS)
    for wrong in ("param", "parms", "Params", "paramters"):
        group = {wrong: [parameter()]}
        yield f"a group with {wrong}", lambda g=group: [dict(g)], ParameterError, ValueError, (*needs, f"'{wrong}'")
    yield "a group with lr only", lambda: [{"lr": 0.1}], ParameterError, ValueError, (*needs, "lr")
    yield "an empty group", lambda: [{}], ParameterError, ValueError, (*needs, "none")
    if single:
        words = ("LBFGS doesn't support per-parameter options (parameter groups)",)
        yield "two groups", lambda: [{"params": [p]}, {"params": [parameter()]}], ParameterError, ValueError, words
    else:
        shared = ("some parameters appear in more than one parameter group",)
        yield "one in two groups", lambda: [{"params": [p]}, {"params": [p]}], None, ValueError, shared
        words = ("all optimizer param groups should be with/without names", "cannot add param group with names")
        mixed = [{"params": [("a", p)]}, {"params": [parameter()]}]
        yield "groups with names after some without", lambda: mixed[::-1], None, ValueError, words
        words = ("all optimizer param groups should be with/without names", "cannot add param group without names")
        yield "groups without names after some with", lambda: mixed, None, ValueError, words
        words = ("param_group must be a dict", "Tensor")
        yield "a tensor after a dict", lambda: [{"params": [parameter()]}, p], None, TypeError, words
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this layout is in beta
        compressed = torch.zeros(2, 2).to_sparse_csr()
    for kind, tensor in (("sparse", torch.zeros(3).to_sparse()), ("compressed", compressed)):
        words = ("dense parameter",) if single else ("Sparse params at indices [[0, 1]]", "requires dense parameter")
        yield f"a {kind} parameter", lambda t=tensor: [parameter(), t], ParameterError, ValueError, words
    if "complex" not in cls.capabilities:
        words = ("Complex params at indices [[0, 1]]", "does not support complex parameters")
        complexes = [parameter(), parameter(1j, dtype=torch.complex64)]
        yield "a complex parameter", lambda: complexes, ParameterError, ValueError, words


def params_inputs(name: str) -> Iterator[InvalidInput]:
    cls = CLASSES[name]
    for what, make, error, builtin, words in invalid_params(cls):
        act = functools.partial(lambda cls, make: cls(make()), make=make)
        warned = "params" in words[0] and "duplicate" in what  # torch warns and does not raise
        yield InvalidInput(what, act, error, builtin, words, not_in_torch=warned)
    if issubclass(cls, torch.optim.LBFGS):
        words = ("LBFGS doesn't support per-parameter options (parameter groups)",)
        act = functools.partial(add_group, options={})
        yield InvalidInput("a second group", act, ParameterError, ValueError, words, running_options={})
        return
    groups: list[tuple[str, Callable[[RunningOptimizer], Any], Any, type[Exception], tuple[str, ...]]] = [
        ("no dict", lambda s: [parameter()], None, TypeError, ("param_group must be a dict", "list")),
        ("a tensor", lambda s: parameter(), None, TypeError, ("param_group must be a dict", "Tensor")),
        ("no params", lambda s: {"lr": 0.1}, ParameterError, ValueError, ("group 2 needs 'params'", "lr")),
        ("param", lambda s: {"param": [parameter()]}, ParameterError, ValueError, ("needs 'params'", "'param'")),
        ("a set", lambda s: {"params": {parameter()}}, None, TypeError, ("ordered collections",)),
        ("None", lambda s: {"params": None}, None, TypeError, ("NoneType",)),
        ("text", lambda s: {"params": "weight"}, None, TypeError, ("can only optimize Tensors", "str")),
        ("an integer", lambda s: {"params": [3]}, None, TypeError, ("can only optimize Tensors", "int")),
        ("a non-leaf", lambda s: {"params": [parameter() * 2]}, None, ValueError, ("non-leaf",)),
        ("a duplicate", lambda s: {"params": [(q := parameter()), q]}, ParameterError, ValueError, ("duplicate",)),
        ("an old one", lambda s: {"params": [parameter(), s.params[0]]}, None, ValueError, ("more than one",)),
        ("a name", lambda s: {"params": [("a", parameter())]}, None, ValueError, ("param group with names",)),
        ("a half name", lambda s: {"params": [("a", parameter()), parameter()]}, None, ValueError, ("are missing",)),
        ("a sparse one", lambda s: {"params": [torch.zeros(3).to_sparse()]}, ParameterError, ValueError,
         ("Sparse params at indices [[2, 0]]",)),
    ]  # fmt: skip
    if "complex" not in cls.capabilities:
        words = ("Complex params at indices [[2, 0]]",)
        groups.append(("a complex one", lambda s: {"params": [parameter(1j)]}, ParameterError, ValueError, words))
    for what, make_group, error, builtin, words in groups:
        act = functools.partial(lambda subject, make: subject.optimizer.add_param_group(make(subject)), make=make_group)
        not_in_torch = what == "a duplicate"  # torch warns and does not raise
        yield InvalidInput(
            f"a later group: {what}", act, error, builtin, words, running_options={}, not_in_torch=not_in_torch
        )


# ------------------------------------------------------------------------------ invalid steps, invalid state dicts


def step_with(subject: RunningOptimizer, where: int, layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A step in which one gradient has another layout."""
    subject.evaluate()
    p = subject.params[where]
    p.grad = layout(torch.ones_like(p).detach())
    subject.optimizer.step()


def step_inputs(name: str) -> Iterator[InvalidInput]:
    cls = CLASSES[name]
    for closure in (3, "loss", torch.tensor(1.0), [len]):
        act = functools.partial(lambda subject, c: subject.optimizer.step(c), c=closure)
        yield InvalidInput(f"step({short_repr(closure)})", act, None, TypeError, ("not callable",), running_options={})
    if issubclass(cls, torch.optim.LBFGS):
        yield InvalidInput("step()", lambda s: s.optimizer.step(), None, TypeError, ("closure",), running_options={})
        yield InvalidInput(
            "step(None)", lambda s: s.optimizer.step(None), None, TypeError, ("not callable",), running_options={}
        )
        act = functools.partial(lambda s: s.optimizer.step(lambda: s.evaluate() and None))
        yield InvalidInput(
            "a closure without a loss", act, ConfigTypeError, TypeError, ("returned None",), running_options={}
        )
        return
    layouts: list[tuple[str, Any, dict[str, Any], tuple[str, ...]]] = []
    if "sparse_only" in cls.capabilities:
        words = ("SparseAdam does not support dense gradients", "Adam instead")
        layouts.append(("dense", torch.Tensor.clone, {}, words))
    elif "sparse" in cls.capabilities:
        words = ("weight_decay option is not compatible with sparse gradients",)
        layouts.append(("sparse with a decay", torch.Tensor.to_sparse, {"weight_decay": 0.1}, words))
    else:
        words = ("does not support sparse gradients",)
        layouts.append(("sparse", torch.Tensor.to_sparse, {}, words))
    for what, layout, options, words in layouts:
        for where, place in enumerate(("first", "second")):
            act = functools.partial(step_with, where=where, layout=layout)
            what_where = f"the {place} group's gradient {what}"
            yield InvalidInput(what_where, act, SparseGradientError, RuntimeError, words, running_options=options)
    if "capturable" in keyword_defaults(cls):

        def uncapture(subject: RunningOptimizer) -> None:
            for group in subject.optimizer.param_groups:
                group["capturable"] = False

        words = ("If capturable=True, params and state_steps must be on supported devices", "cpu")
        options = {"capturable": True}
        act = functools.partial(lambda subject: subject.optimizer.step(subject.evaluate))
        for more in ({}, {"foreach": False}):
            yield InvalidInput(f"capturable on the CPU {more}", act, RecordingError, AssertionError, words,
                      running_options={**options, **more}, repair=uncapture,
                      not_in_torch="capturable" not in keyword_defaults(torch_class(name)))  # fmt: skip


def incompatible_optimizers(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Optimizers whose state cannot be loaded by this one, and options with which they have state."""
    own = {"adam": "adam", "adamw": "adam", "sparse_adam": "adam"}
    for other in CLASSES:
        is_compatible = (name, other) == ("rmsprop", "adadelta")  # square_avg has the same meaning; other keys are kept
        if own.get(other, other) != own.get(name, name) and not is_compatible:
            yield other, {"momentum": 0.9} if other == "sgd" else {}


def load_state_of(subject: RunningOptimizer, other: str, options: dict[str, Any]) -> None:
    """Load the state of another optimizer after a step, with the same groups and parameters."""
    saved = RunningOptimizer(CLASSES[other], options).take_step().optimizer.state_dict()
    groups = subject.optimizer.state_dict()["param_groups"]
    subject.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def load_changed(subject: RunningOptimizer, change: Callable[[dict[str, Any]], Any]) -> None:
    saved = copy.deepcopy(subject.optimizer.state_dict())
    change(saved)
    subject.optimizer.load_state_dict(saved)


def state_dict_inputs(name: str) -> Iterator[InvalidInput]:
    for other, options in incompatible_optimizers(name):
        act = functools.partial(load_state_of, other=other, options=options)
        words = ("state of another optimizer", "keeps")
        running = {"momentum": 0.9} if name == "sgd" else {}
        yield InvalidInput(f"the state of {other}", act, *OUT, words, running_options=running)
    number, size = ("different number of parameter groups",), ("doesn't match the size of optimizer's group",)
    changes: list[tuple[str, Callable[[dict[str, Any]], Any], tuple[str, ...]]] = [
        ("without groups", lambda saved: saved["param_groups"].clear(), number),
        ("with one group more", lambda saved: saved["param_groups"].append({"params": []}), number),
        ("with one group less", lambda saved: saved["param_groups"].pop(), number),
        ("with one parameter more", lambda saved: saved["param_groups"][-1]["params"].append(99), size),
        ("with one parameter less", lambda saved: saved["param_groups"][-1]["params"].pop(), size),
    ]
    for what, change, words in changes:
        act = functools.partial(load_changed, change=change)
        yield InvalidInput(f"a state dict {what}", act, None, ValueError, words, running_options={})


# -------------------------------------------------------------------------------------------------------------- tests

SECTIONS = (value_inputs, keyword_inputs, params_inputs, step_inputs, state_dict_inputs)


def all_invalid_inputs(name: str) -> list[InvalidInput]:
    return [invalid for section in SECTIONS for invalid in section(name)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
@pytest.mark.parametrize("name", CLASSES)
def test_invalid_input_is_rejected(name: str, section: Callable[[str], Iterator[InvalidInput]]) -> None:
    wrong = {invalid.description: found for invalid in section(name) if (found := find_problems(name, invalid))}
    assert not wrong


@pytest.mark.parametrize("name", CLASSES)
def test_group_keeps_a_key_that_resembles_no_option_of_the_class(name: str) -> None:
    known = keyword_defaults(CLASSES[name])
    own = {wrong: 0.5 for wrong, right in misspellings(known) if not right and wrong != "Foreach"}
    assert "zzzzzz" in own
    group = construct_group(CLASSES[name], own).param_groups[0]
    assert {key: group[key] for key in own} == own


TORCH_INPUTS = [
    (name, i, entry.optimizer_error_input.desc)
    for info in optim_db
    for name, cls in CLASSES.items()
    if info.optim_cls is torch_class(name)
    for i, entry in enumerate(info.optim_error_inputs_func("cpu", torch.float32))
]


def find_problems_on_torch_input(name: str, i: int) -> list[str]:
    """The problems with how the optimizer handles the i-th invalid input of torch's own tests."""
    info = next(info for info in optim_db if info.optim_cls is torch_class(name))
    entry = info.optim_error_inputs_func("cpu", torch.float32)[i]
    given = entry.optimizer_error_input
    params = [parameter()] if given.params is None else given.params

    def act() -> None:
        optimizer = CLASSES[name](params, **given.kwargs)
        if entry.error_on is OptimizerErrorEnum.STEP_ERROR:
            optimizer.step()

    error = exception_of(act, "error")
    if error is None:
        return ["accepted"]
    warned = issubclass(entry.error_type, Warning)  # torch: "will be an error in a future release"; optplug raises
    expected = (ParameterError, TypeError) if warned else (entry.error_type,)
    found = [] if isinstance(error, expected) else [f"none of {[cls.__name__ for cls in expected]}"]
    found += [] if re.search(entry.error_regex, str(error)) else [f"does not match {entry.error_regex!r}"]
    return [f"{one}: {type(error).__name__}: {error}" for one in found]


@pytest.mark.parametrize(("name", "i", "desc"), TORCH_INPUTS)
def test_invalid_input_of_torch_tests_is_rejected(name: str, i: int, desc: str) -> None:
    assert not find_problems_on_torch_input(name, i)


def test_all_classes_and_keywords_are_tested() -> None:
    documented = {"Adadelta", "Adagrad", "Adam", "AdamW", "SparseAdam", "Adamax", "ASGD", "LBFGS", "RMSprop", "Rprop"}
    assert {cls.__name__ for cls in CLASSES.values()} == documented | {"SGD"}
    for name, cls in CLASSES.items():
        tried = {invalid.description.partition("=")[0] for invalid in value_inputs(name)}
        assert tried >= keyword_defaults(cls).keys()
        assert {"HyperparameterError", "HyperparameterTypeError"} <= {
            invalid.error.__name__ for invalid in value_inputs(name)
        }
        for invalid in all_invalid_inputs(name):
            assert issubclass(invalid.error or errors.ParameterError, errors.OptplugError)


def main() -> int:
    """Print, for each class, how many invalid inputs were tried and how many were rejected correctly."""
    wrong: list[str] = []
    for name in CLASSES:
        results = [(invalid.description, find_problems(name, invalid)) for invalid in all_invalid_inputs(name)]
        results += [
            (f"torch's list: {d}", find_problems_on_torch_input(name, i)) for n, i, d in TORCH_INPUTS if n == name
        ]
        rejected = sum(found != ["accepted"] for _, found in results)
        good = sum(not found for _, found in results)
        print(f"{name:12} {len(results):4} tried, {rejected:4} rejected, {good:4} of them correctly")
        wrong += [f"{name}: {what}: {one}" for what, found in results for one in found]
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
