"""Bad input to every optimizer: tried, and refused. `python tests/test_bad_inputs.py` counts, class by class.

A refusal is as it should be when the type is right, the message has the words that help, no warning goes with it, and
what was already running is unchanged and steps on as its twin does that never saw the bad input. Where torch raises an
error of its own on the same call, ours is of that type and begins with torch's text.
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
from optplug.optim.dispatch import ENGINE_KEYS as HOW_TO_RUN
from optplug.optim.ranges import COMMON_RANGES, Range

CLASSES = {name: optplug.get_optimizer(name) for name in optplug.list_optimizers()}
CLASSES = {name: cls for name, cls in CLASSES.items() if cls.__module__.startswith("optplug_classic.")}
THREE_STATES = ("foreach", "fused")
OPTIMIZER_WIDE_OPTIONS = ("engine", "state_dtype")
RANGES_OF_TUPLES = {  # no range of one element says it: check_options does
    "etas": [(0.0, 1.2), (-0.1, 1.2), (1.0, 1.2), (1.5, 1.2), (0.5, 1.0), (0.5, 0.9), (0.5, -1.2), (1.0, 0.5)],
    "step_sizes": [(1.0, 0.5)],
}
NEGATIVE, NOT_COUNTS, NOT_FRACTIONS = (-0.25, -1e-9), (0, -3), (-1e-9, 1.25)
OUTSIDE: dict[str, tuple[float, ...]] = {  # what the docstrings say, by hand: a range of the product could be wrong
    **dict.fromkeys(("lr", "eps", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value"), NEGATIVE),
    **dict.fromkeys(("lambd", "t0", "step_sizes", "tolerance_grad", "tolerance_change"), NEGATIVE),
    **dict.fromkeys(("max_iter", "max_eval", "history_size"), NOT_COUNTS),
    **dict.fromkeys(("rho", "alpha"), NOT_FRACTIONS),
    "betas": (*NOT_FRACTIONS, 1.0),
    "ASGD.alpha": NEGATIVE,
    **dict.fromkeys(("SparseAdam.lr", "SparseAdam.eps"), (0.0, *NEGATIVE)),
    "dampening": (),
    "etas": (),
}


def outside(cls: Any, key: str) -> tuple[float, ...]:
    """Numbers that are not allowed there; every number has an entry."""
    return OUTSIDE[own] if (own := f"{cls.__name__}.{key}") in OUTSIDE else OUTSIDE[key]


def theirs(name: str) -> Any:
    """The class of torch.optim of the same name."""
    return getattr(torch.optim, CLASSES[name].__name__)


def signature(cls: Any) -> dict[str, Any]:
    """The constructor's keywords and their defaults."""
    return {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name != "params"}


def ranges(cls: Any) -> dict[str, Range]:
    own = getattr(cls, "ranges", None)
    return {r.name: r for r in (*COMMON_RANGES, *(sys.modules[cls.__module__].RANGES if own is None else own))}


# --------------------------------------------------------------------------------------------- what is put to the test


def parameter(*values: float, **options: Any) -> torch.Tensor:
    return torch.tensor(values or (1.0, -2.0), requires_grad=True, **options)


class Running:
    """An optimizer on two parameters, in two groups where it takes two, that has made a step.

    Args:
        cls: ours or torch's. options: the constructor's.
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

    def go(self) -> Running:
        self.evaluate()
        self.optimizer.step(self.evaluate)
        return self

    def picture(self) -> Any:
        """Everything a refusal must leave alone, copied."""
        hooks = {k: len(v) for k, v in vars(self.optimizer).items() if k.endswith("_hooks")}
        values = [p.detach().clone() for p in self.params]
        groups = [[id(p) for p in group["params"]] for group in self.optimizer.param_groups]
        keys = [sorted(group) for group in self.optimizer.param_groups]
        return copy.deepcopy([self.optimizer.state_dict(), self.optimizer.defaults, hooks, values, groups, keys])


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        a, b = (t.to_dense() if t.layout is not torch.strided else t for t in (a, b))
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Args:
        what: it, in words.
        do: given a class, or with `running` options a `Running`, what must be refused.
        error: the class of optplug.errors, or None where torch's base class refuses by itself.
        builtin: what else the exception is.
        words: what its message contains.
        running: the options of an optimizer to run first; None for bad input to the constructor.
        mend: for an optimizer that can make no step as it was built: what makes it usable.
        ours_only: torch has no such option.
        hint: whether the message must end by naming the nearest match, `words[-1]`.
    """

    what: str
    do: Callable[[Any], Any]
    error: type[Exception] | None
    builtin: type[Exception]
    words: tuple[str, ...]
    running: dict[str, Any] | None = None
    mend: Callable[[Running], Any] | None = None
    ours_only: bool = False
    hint: bool = False


def refusal(act: Callable[[], Any], on_warning: str) -> Exception | None:
    """The exception, if there is one; a warning of ours is one."""
    with warnings.catch_warnings():
        warnings.simplefilter(on_warning)
        try:
            act()
        except Exception as error:
            return error
    return None


def is_deliberate(error: Exception) -> bool:
    """Whether torch checked for it, rather than stumbled: its last line raises, or Python itself refused the call."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (last.line or "").startswith("raise") or " keyword argument " in str(error)


def complaints(name: str, bad: Bad) -> list[str]:
    """What is wrong with how ours takes this input; nothing when it is refused as it should be."""
    cls, found = CLASSES[name], []
    subject = before = None
    if bad.running is not None:
        subject = running(cls, bad)
        before = subject.picture()
    error = refusal(lambda: bad.do(cls if subject is None else subject), "error")
    if error is None:
        return ["accepted"]
    said = str(error)
    if not isinstance(error, bad.builtin):
        found.append(f"{type(error).__name__} is no {bad.builtin.__name__}")
    if bad.error is not None and type(error) is not bad.error:
        found.append(f"{type(error).__name__} instead of {bad.error.__name__}")
    found += [f"the message lacks {word!r}" for word in bad.words if word not in said]
    if bad.hint and bad.words[-1] not in said.partition("did you mean ")[2]:
        found.append(f"it does not name {bad.words[-1]} as near")
    if subject is not None:
        if not same(before, subject.picture()):
            found.append("what was running has changed")
        if not same(one_step_on(subject, bad.mend), undisturbed(name, tuple(bad.running.items()), bad.mend)):
            found.append("it does not step on like its twin")
    if not bad.ours_only:
        found += unlike_torch(name, bad, error)
    return [f"{one}: {type(error).__name__}: {said}" for one in found]


def running(cls: Any, bad: Bad) -> Running:
    """What is running when the bad input comes: after a step, if it can make one."""
    subject = Running(cls, bad.running or {})
    return subject if bad.mend else subject.go()


def one_step_on(subject: Running, mend: Callable[[Running], Any] | None) -> Any:
    """The parameters after one more step."""
    if mend:
        mend(subject)
    return [p.detach().clone() for p in subject.go().params]


@functools.cache
def undisturbed(name: str, options: tuple[tuple[str, Any], ...], mend: Callable[[Running], Any] | None) -> Any:
    """The same for the twin."""
    bad = Bad("nothing", Running.go, None, Exception, (), dict(options), mend)
    return one_step_on(running(CLASSES[name], bad), mend)


OTHER_WORDS = {
    "If capturable=True, params, mus, etas, and state_steps": "If capturable=True, params and state_steps",
    "Adam does not support sparse gradients": "AdamW does not support sparse gradients",
    "Invalid eta values": "Invalid etas[",
}
"""Where our message begins otherwise than torch's; docs/torch.md says so."""


def unlike_torch(name: str, bad: Bad, error: Exception) -> list[str]:
    """What differs from torch's refusal of the same input, if torch has one."""
    subject = theirs(name) if bad.running is None else running(theirs(name), bad)
    other = refusal(lambda: bad.do(subject), "ignore")
    if other is None or not is_deliberate(other):
        return []
    if isinstance(error, HyperparameterTypeError) and isinstance(other, ValueError):
        return []  # torch takes True for the number 1, which is out of range; with us it is no number
    found = []
    if not isinstance(error, type(other)):
        found.append(f"torch's is {type(other).__name__}")
    text = str(other).partition("[")[0] if isinstance(error, RecordingError) else str(other)
    known = next((str(error).startswith(ours) for start, ours in OTHER_WORDS.items() if text.startswith(start)), False)
    if not (str(error).startswith(text) or known):
        found.append(f"does not begin with torch's text {text!r}")
    return found


# ----------------------------------------------------------------------------------------------------- bad values

Value = tuple[Any, type[Exception], type[Exception], tuple[str, ...]]
OUT, TYPE = (HyperparameterError, ValueError), (HyperparameterTypeError, TypeError)


def bad_numbers(name: str, range_: Range | None) -> Iterator[Value]:
    """Bad values of one number: what no number is allowed to be, and every side that is out of its range."""
    whole = range_ is not None and range_.whole
    probes: list[Any] = [-1e300, -1.0, -1e-12, 0.0, 1.0, 1 + 1e-12, 1e300]
    probes += [-1, -(10**6), 0] if range_ is not None else []
    for number in probes:
        if range_ is not None and not (whole and isinstance(number, float)) and not range_.holds(number):
            yield number, *OUT, (range_.message_start, f": {number} (", name, f"must be {range_.words}")
    for number in (math.nan, math.inf, -math.inf):
        if whole:
            yield number, *TYPE, (name, "must be a whole number", str(number))
        else:
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
    yield "1e-3", *TYPE, (name, "must be a number", "'1e-3' (str)", "YAML reads 1e-3 as text, write 1.0e-3")
    yield "0.5", *TYPE, (name, "must be a number", "'0.5' (str)", "write it without quotes")
    yield "fast", *TYPE, (name, "must be a number", "'fast' (str)")
    yield None, *TYPE, (name, "must be a number", "None (NoneType)")
    yield True, *TYPE, (name, "must be a number", "True (bool)")
    yield [0.5], *TYPE, (name, "must be a number", "[0.5] (list)")
    yield {}, *TYPE, (name, "must be a number", "{} (dict)")
    yield 1j, *TYPE, (name, "must be a number", "1j (complex)")
    yield torch.tensor(1j), *TYPE, (name, "must be a number")
    yield torch.tensor([0.5, 0.5]), *OUT, (f"Tensor {name} must be 1-element", "(2,)")
    yield np.array([0.5, 0.5]), *TYPE, (name, "must be a number")


def bad_tuples(
    name: str, default: tuple[Any, ...], range_: Range | None, outsiders: tuple[float, ...]
) -> Iterator[Value]:
    """Bad values of a pair: its length, its kind, and each element bad by itself."""
    pair = (f"{name} must be 2 numbers",)
    for wrong in ((), default[:1], (*default, 0.5), [0.5]):
        yield wrong, *OUT, (*pair, "got ")
    for kind in (0.9, "0.9, 0.99", None, True, {0.9, 0.99}, {"0": 0.9, "1": 0.99}, torch.tensor([0.9, 0.99])):
        yield kind, *TYPE, (*pair, "got ")
    for i in range(2):
        for number in outsiders:
            elements = list(default)
            elements[i] = number
            yield tuple(elements), *OUT, ("Invalid", f"{name}[{i}] must be ", f": {number} (")
        mixed = list(default)
        mixed[i] = torch.tensor(float(mixed[i]))
        yield tuple(mixed), *OUT, (f"{name} must be either both floats or both Tensors",)
        ranged = range_ and Range(name, range_.words, range_.holds, called=f"{range_.called} at index {i}")
        for value, error, builtin, words in bad_numbers(f"{name}[{i}]", ranged):
            if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
                continue  # a pair with one tensor is refused for that already
            elements = list(default)
            elements[i] = value
            yield tuple(elements), error, builtin, words
    for value in RANGES_OF_TUPLES.get(name, []):
        yield value, *OUT, (f"Invalid {name.replace('_', ' ').removesuffix('s')}", f"{value[0]}, {value[1]} (")


def bad_values(cls: Any, key: str, default: Any) -> Iterator[Value]:
    """Bad values of one keyword, by what its default shows it to be."""
    range_ = ranges(cls).get(key)
    if key in THREE_STATES:
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
        yield from bad_tuples(key, default, range_, outside(cls, key))
    else:
        for number in outside(cls, key):
            yield number, *OUT, ("Invalid", f"{key} must be ", f": {number} (")
        allowed = (None,) if key == "max_eval" else ()
        yield from ((v, *rest) for v, *rest in bad_numbers(key, range_) if not any(v is a for a in allowed))


def shown(value: Any) -> str:
    return re.sub(r"10{400}", "10**400", re.sub(r"\s+", " ", repr(value)))


def combinations(cls: Any) -> Iterator[tuple[dict[str, Any], Value]]:
    """Options that are bad together only."""
    keys = signature(cls)
    if "foreach" in keys:
        for engine, foreach in (("loop", True), ("foreach", False)):
            words = (f"foreach={foreach}", "contradicts", f"engine={engine!r}")
            yield {"foreach": foreach, "engine": engine}, (None, EngineError, RuntimeError, words)
        words = ("differentiable=True needs engine 'loop'",)
        yield {"foreach": True, "differentiable": True}, (None, RecordingError, AssertionError, words)
        yield {"engine": "foreach", "differentiable": True}, (None, RecordingError, AssertionError, words)
    if "fused" in keys:
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


def values(name: str) -> Iterator[Bad]:
    """Every bad value and combination: to the constructor, in a group of it, in a later group, in a state dict."""
    cls = CLASSES[name]
    known, torchs, single = signature(cls), signature(theirs(name)), issubclass(cls, torch.optim.LBFGS)
    given = [({key: v}, (v, *rest)) for key, default in known.items() for v, *rest in bad_values(cls, key, default)]
    for options, (_, error, builtin, words) in [*given, *combinations(cls)]:
        what = ", ".join(f"{key}={shown(value)}" for key, value in options.items())
        bad = functools.partial(
            Bad, error=error, builtin=builtin, words=words, ours_only=not options.keys() <= torchs.keys()
        )
        yield bad(what, functools.partial(construct, options=options))
        whole = {key: value for key, value in options.items() if key in OPTIMIZER_WIDE_OPTIONS}
        if whole == options:
            continue
        own = {key: value for key, value in options.items() if key not in whole}
        yield bad(f"a group's {what}", functools.partial(construct_group, options=own, whole=whole))
        if not single:
            yield bad(f"a later group's {what}", functools.partial(add_group, options=own), running=whole)
        # A state dict has what schedules wrote, whatever constructors allow; how to run is not taken from it.
        if not options.keys() & {*HOW_TO_RUN, *OPTIMIZER_WIDE_OPTIONS} and not merely_out_of_range(cls, options):
            load = functools.partial(load_with, options=own)
            endless = all(isinstance(v, float) and not math.isfinite(v) for v in options.values())
            kinds = {"error": HyperparameterError, "builtin": ValueError} if endless else {}
            yield bad(
                f"a state dict's {what}",
                load,
                running={},
                words=words if "line_search_fn" in options else tuple(options),
                **kinds,
            )


def merely_out_of_range(cls: Any, options: dict[str, Any]) -> bool:
    """Whether every value is of its kind, and finite."""

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
        fits(value, 1 if key == "max_eval" else signature(cls)[key])
        for key, value in options.items()
        if key in signature(cls)
    )


def construct(cls: Any, options: dict[str, Any]) -> Any:
    return cls([parameter()], **options)


def construct_group(cls: Any, options: dict[str, Any], whole: dict[str, Any] | None = None) -> Any:
    return cls([{"params": [parameter()], **options}], **(whole or {}))


def add_group(subject: Running, options: dict[str, Any]) -> None:
    subject.optimizer.add_param_group({"params": [parameter()], **options})


def load_with(subject: Running, options: dict[str, Any]) -> None:
    saved = copy.deepcopy(subject.optimizer.state_dict())
    saved["param_groups"][-1].update(options)
    for state in saved["state"].values():  # so that a state loaded before the refusal shows
        state.update({k: v + 1 for k, v in state.items() if isinstance(v, torch.Tensor)})
    subject.optimizer.load_state_dict(saved)


# ------------------------------------------------------------------------------------------------------- bad keywords

MISSPELT = {"learning_rate": "lr", "weigth_decay": "weight_decay", "beta": "betas", "moment": "momentum"}
MISSPELT |= {"weight_decy": "weight_decay", "epsilon": "eps", "stepsize": "step_sizes", "Foreach": "foreach"}


def misspellings(keys: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Wrong words, each with the keyword it is meant to be, if the class has it."""
    for wrong, right in MISSPELT.items():
        yield wrong, right if right in keys else ""
    for right in keys:
        if len(right) > 3:  # one letter less
            yield right[: len(right) // 2] + right[len(right) // 2 + 1 :], right
    yield "zzzzzz", ""


def keywords(name: str) -> Iterator[Bad]:
    cls = CLASSES[name]
    known, single = signature(cls), issubclass(cls, torch.optim.LBFGS)
    of_groups = {key: v for key, v in known.items() if key not in OPTIMIZER_WIDE_OPTIONS}
    for wrong, right in misspellings(known):
        words = (repr(wrong), repr(right) if right else "; it has " if wrong == "zzzzzz" else "; ")
        bad = functools.partial(Bad, words=words, hint=bool(right))
        options = {wrong: 0.5}
        yield bad(f"keyword {wrong}", functools.partial(construct, options=options), *TYPE)
        yield bad(
            f"create_optimizer's keyword {wrong}", functools.partial(create, name, options), ConfigError, ValueError
        )
        if right and right not in of_groups:
            continue
        yield bad(f"a group's key {wrong}", functools.partial(construct_group, options=options), *OUT)
        if not single:
            yield bad(f"a later group's key {wrong}", functools.partial(add_group, options=options), *OUT, running={})
    absent = [
        key for key in (*HOW_TO_RUN, "maximize", "decoupled_weight_decay", *OPTIMIZER_WIDE_OPTIONS) if key not in known
    ]
    for key in absent:
        act = functools.partial(construct, options={key: None})
        ours_only = key in signature(theirs(name))
        yield Bad(
            f"keyword {key}, which it does not have",
            act,
            *TYPE,
            (f"unexpected keyword argument {key!r}; ",),
            ours_only=ours_only,
        )
        act = functools.partial(create, name, {key: True})
        yield Bad(f"create_optimizer's {key}, which it does not have", act, ConfigError, ValueError, (repr(key),))
    if "weight_decay" not in known:
        options = {"decoupled_weight_decay": True}
        words = ("has no option 'decoupled_weight_decay'",)
        yield Bad("a group's decoupled decay of none", functools.partial(construct_group, options=options), *OUT, words)
    for key in OPTIMIZER_WIDE_OPTIONS:
        words = (repr(key), "it has")
        yield Bad(f"a group's {key}", functools.partial(construct_group, options={key: "loop"}), *OUT, words)
    many = functools.partial(lambda cls: cls([parameter()], *([0.1] * 40)))
    yield Bad("forty positional arguments", many, None, TypeError, ("positional argument",))
    yield Bad("no arguments", lambda cls: cls(), None, TypeError, ("params",))
    yield Bad(
        "a misspelt name",
        functools.partial(lambda cls, word: optplug.create_optimizer(word, [parameter()]), word=f"{name}q"),
        UnknownNameError, LookupError, (f"{name}q", repr(name)), ours_only=True, hint=True,
    )  # fmt: skip
    frozen = nn.Linear(2, 2).requires_grad_(False)
    for module, why in ((nn.ReLU(), "no parameters"), (frozen, "frozen")):
        act = functools.partial(lambda cls, module: optplug.create_optimizer(name, module), module=module)
        yield Bad(
            f"a module with {why}", act, ConfigError, ValueError, ("no trainable parameters", why), ours_only=True
        )


def create(name: str, options: dict[str, Any], cls: Any) -> Any:
    """`create_optimizer`; for torch, which has none, nothing to compare."""
    return optplug.create_optimizer(name, [parameter()], **options) if cls is CLASSES[name] else None


# ---------------------------------------------------------------------------------------------------- bad parameters


def bad_params(cls: Any) -> Iterator[tuple[str, Callable[[], Any], type[Exception] | None, type[Exception], Any]]:
    """Name, what makes the parameters anew, and the expected refusal."""
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
        warnings.simplefilter("ignore")  # that this layout is in beta
        compressed = torch.zeros(2, 2).to_sparse_csr()
    for kind, tensor in (("sparse", torch.zeros(3).to_sparse()), ("compressed", compressed)):
        words = ("dense parameter",) if single else ("Sparse params at indices [[0, 1]]", "requires dense parameter")
        yield f"a {kind} parameter", lambda t=tensor: [parameter(), t], ParameterError, ValueError, words
    if "complex" not in cls.capabilities:
        words = ("Complex params at indices [[0, 1]]", "does not support complex parameters")
        complexes = [parameter(), parameter(1j, dtype=torch.complex64)]
        yield "a complex parameter", lambda: complexes, ParameterError, ValueError, words


def params(name: str) -> Iterator[Bad]:
    cls = CLASSES[name]
    for what, make, error, builtin, words in bad_params(cls):
        act = functools.partial(lambda cls, make: cls(make()), make=make)
        warned = "params" in words[0] and "duplicate" in what  # torch only warns
        yield Bad(what, act, error, builtin, words, ours_only=warned)
    if issubclass(cls, torch.optim.LBFGS):
        words = ("LBFGS doesn't support per-parameter options (parameter groups)",)
        act = functools.partial(add_group, options={})
        yield Bad("a second group", act, ParameterError, ValueError, words, running={})
        return
    groups: list[tuple[str, Callable[[Running], Any], Any, type[Exception], tuple[str, ...]]] = [
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
        ours_only = what == "a duplicate"  # torch only warns
        yield Bad(f"a later group: {what}", act, error, builtin, words, running={}, ours_only=ours_only)


# ------------------------------------------------------------------------------------------- bad steps, bad state dicts


def step_with(subject: Running, where: int, layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A step for which one gradient is of another layout."""
    subject.evaluate()
    p = subject.params[where]
    p.grad = layout(torch.ones_like(p).detach())
    subject.optimizer.step()


def steps(name: str) -> Iterator[Bad]:
    cls = CLASSES[name]
    for closure in (3, "loss", torch.tensor(1.0), [len]):
        act = functools.partial(lambda subject, c: subject.optimizer.step(c), c=closure)
        yield Bad(f"step({shown(closure)})", act, None, TypeError, ("not callable",), running={})
    if issubclass(cls, torch.optim.LBFGS):
        yield Bad("step()", lambda s: s.optimizer.step(), None, TypeError, ("closure",), running={})
        yield Bad("step(None)", lambda s: s.optimizer.step(None), None, TypeError, ("not callable",), running={})
        act = functools.partial(lambda s: s.optimizer.step(lambda: s.evaluate() and None))
        yield Bad("a closure without a loss", act, ConfigTypeError, TypeError, ("returned None",), running={})
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
            yield Bad(what_where, act, SparseGradientError, RuntimeError, words, running=options)
    if "capturable" in signature(cls):

        def uncapture(subject: Running) -> None:
            for group in subject.optimizer.param_groups:
                group["capturable"] = False

        words = ("If capturable=True, params and state_steps must be on supported devices", "cpu")
        options = {"capturable": True}
        act = functools.partial(lambda subject: subject.optimizer.step(subject.evaluate))
        for more in ({}, {"foreach": False}):
            yield Bad(f"capturable on the CPU {more}", act, RecordingError, AssertionError, words,
                      running={**options, **more}, mend=uncapture)  # fmt: skip


def strangers(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Optimizers whose averages this one could not go on with, and options that make them keep some."""
    own = {"adam": "adam", "adamw": "adam", "sparse_adam": "adam"}
    for other in CLASSES:
        goes_on = (name, other) == ("rmsprop", "adadelta")  # square_avg means the same; the rest is kept like a user's
        if own.get(other, other) != own.get(name, name) and not goes_on:
            yield other, {"momentum": 0.9} if other == "sgd" else {}


def load_stranger(subject: Running, other: str, options: dict[str, Any]) -> None:
    """What another optimizer saved after a step on as many groups of as many parameters."""
    saved = Running(CLASSES[other], options).go().optimizer.state_dict()
    groups = subject.optimizer.state_dict()["param_groups"]
    subject.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def load_changed(subject: Running, change: Callable[[dict[str, Any]], Any]) -> None:
    saved = copy.deepcopy(subject.optimizer.state_dict())
    change(saved)
    subject.optimizer.load_state_dict(saved)


def state_dicts(name: str) -> Iterator[Bad]:
    for other, options in strangers(name):
        act = functools.partial(load_stranger, other=other, options=options)
        words = ("state of another optimizer", "keeps")
        running = {"momentum": 0.9} if name == "sgd" else {}
        yield Bad(f"the state of {other}", act, *OUT, words, running=running)
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
        yield Bad(f"a state dict {what}", act, None, ValueError, words, running={})


# -------------------------------------------------------------------------------------------------------------- tests

SECTIONS = (values, keywords, params, steps, state_dicts)


def bad_inputs(name: str) -> list[Bad]:
    return [bad for section in SECTIONS for bad in section(name)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
@pytest.mark.parametrize("name", CLASSES)
def test_bad_input_is_refused(name: str, section: Callable[[str], Iterator[Bad]]) -> None:
    wrong = {bad.what: found for bad in section(name) if (found := complaints(name, bad))}
    assert not wrong


TORCHS = [
    (name, i, entry.optimizer_error_input.desc)
    for info in optim_db
    for name, cls in CLASSES.items()
    if info.optim_cls is theirs(name)
    for i, entry in enumerate(info.optim_error_inputs_func("cpu", torch.float32))
]


def torchs_complaints(name: str, i: int) -> list[str]:
    """What is wrong with how ours takes the i-th bad input of torch's own list."""
    info = next(info for info in optim_db if info.optim_cls is theirs(name))
    entry = info.optim_error_inputs_func("cpu", torch.float32)[i]
    given = entry.optimizer_error_input
    params = [parameter()] if given.params is None else given.params

    def act() -> None:
        optimizer = CLASSES[name](params, **given.kwargs)
        if entry.error_on is OptimizerErrorEnum.STEP_ERROR:
            optimizer.step()

    error = refusal(act, "error")
    if error is None:
        return ["accepted"]
    warned = entry.error_type is UserWarning  # "in future, this will cause an error": with us it does
    expected = ParameterError if warned else entry.error_type
    found = [] if isinstance(error, expected) else [f"no {expected.__name__}"]
    found += [] if re.search(entry.error_regex, str(error)) else [f"does not match {entry.error_regex!r}"]
    return [f"{one}: {type(error).__name__}: {error}" for one in found]


@pytest.mark.parametrize(("name", "i", "desc"), TORCHS)
def test_what_torchs_own_tests_refuse_is_refused(name: str, i: int, desc: str) -> None:
    assert not torchs_complaints(name, i)


def test_every_class_is_tried_with_every_keyword_it_has() -> None:
    documented = {"Adadelta", "Adagrad", "Adam", "AdamW", "SparseAdam", "Adamax", "ASGD", "LBFGS", "RMSprop", "Rprop"}
    assert {cls.__name__ for cls in CLASSES.values()} == documented | {"SGD"}
    for name, cls in CLASSES.items():
        tried = {bad.what.partition("=")[0] for bad in values(name)}
        assert tried >= signature(cls).keys()
        assert {"HyperparameterError", "HyperparameterTypeError"} <= {bad.error.__name__ for bad in values(name)}
        for bad in bad_inputs(name):
            assert issubclass(bad.error or errors.ParameterError, errors.OptplugError)


def main() -> int:
    """One line per class: how many bad inputs were tried, and how many refused as they should be."""
    wrong: list[str] = []
    for name in CLASSES:
        results = [(bad.what, complaints(name, bad)) for bad in bad_inputs(name)]
        results += [(f"torch's list: {d}", torchs_complaints(name, i)) for n, i, d in TORCHS if n == name]
        refused = sum(found != ["accepted"] for _, found in results)
        good = sum(not found for _, found in results)
        print(f"{name:12} {len(results):4} tried, {refused:4} refused, {good:4} of them as they should be")
        wrong += [f"{name}: {what}: {one}" for what, found in results for one in found]
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
