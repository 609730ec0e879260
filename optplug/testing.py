"""The conformance kit: properties that every optimizer and scheduler must have, each a check that can fail.

    import optplug.testing, pytest

    @pytest.mark.parametrize("check", optplug.testing.optimizer_checks("lion"), ids=str)
    def test_lion_conforms(check):
        check()

or, in one call, `optplug.testing.check_optimizer("lion")`. Settings worth testing stand beside the algorithm, in its
class attribute `cases` (a list of keyword arguments). What convergence cannot show is shown by comparing two things
that must be equal: an engine and the loop, resumed and uninterrupted, ascent on f and descent on -f.
"""

from __future__ import annotations

import copy
import functools
import gc
import io
import math
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import EngineError, HyperparameterError
from optplug.registry import registry
from optplug.rules.driver import RuleOptimizer
from optplug.rules.execution import ENGINES
from optplug.rules.trace import signature_of
from optplug.schedules import ClosedFormLR

__all__ = [
    "Check",
    "check_optimizer",
    "check_scheduler",
    "inapplicable_checks",
    "optimizer_checks",
    "scheduler_checks",
]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STEPS = 10
CHANGE = 6
"""Before this step the learning rate is halved."""

UNITS = 4.0
"""How many units in the last place (of the largest parameter) an engine may lose per step. Rounding costs half a unit
for storing the parameter and a few for the states; a wrong formula costs thousands in float64 and float32."""

SHAPES = ((5, 3), (7,), (), (0, 2))


@dataclass(frozen=True)
class Check:
    """One property of one optimizer or scheduler in one case.

    Attributes:
        id: `property[case]`, unique, fit for a pytest id.
    """

    id: str
    run: Callable[[], None] = field(repr=False)

    def __call__(self) -> None:
        """Raises AssertionError, with property, case and figures, when the property does not hold."""
        try:
            self.run()
        except AssertionError as error:
            raise AssertionError(f"{self.id}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{self.id}: raised {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return self.id


# ------------------------------------------------------------------------------------------------ the public functions


def optimizer_checks(optimizer: str | type[Optimizer]) -> list[Check]:
    """The checks that apply to an optimizer, for every engine, case and dtype.

    Args:
        optimizer: a registered name, or a class. Its `cases` (keyword arguments; default: one, without any) are what is
            tested; its capabilities, of the spec or else the class, say what must hold.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: as in `optplug.get_optimizer`.
        TypeError: neither a name nor a class of optimizers.
    """
    return _split(_Subject.of(optimizer))[0]


def inapplicable_checks(optimizer: str | type[Optimizer]) -> dict[str, str]:
    """The properties (and engines) that do not apply to an optimizer, each with the reason; errors as above."""
    return _split(_Subject.of(optimizer))[1]


def check_optimizer(optimizer: str | type[Optimizer]) -> dict[str, str]:
    """Run every check that applies.

    Args:
        optimizer: a registered name, or a class.

    Returns:
        What does not apply, and why; see `inapplicable_checks`.

    Raises:
        AssertionError: with all failures, one a line. Errors of `optimizer_checks`.
    """
    checks, inapplicable = _split(_Subject.of(optimizer))
    _run_all(checks)
    return inapplicable


def scheduler_checks(scheduler: str | type[LRScheduler], **arguments: Any) -> list[Check]:
    """The checks that apply to a scheduler.

    Args:
        scheduler: a registered name, or a class.
        arguments: of its constructor. Default: each entry of the class's `cases`, or no arguments.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: as in `optplug.get_scheduler`.
        TypeError: neither a name nor a class of schedulers.
    """
    cls, capabilities = _look_up("scheduler", scheduler, LRScheduler)
    cases = (arguments,) if arguments else _cases(cls)
    checks = []
    for case in cases:
        schedule = _Schedule(cls, case, "metric" in capabilities)
        names = [
            "groups_go_their_own_way",
            "resumed_equals_uninterrupted",
            "a_tensor_lr_is_set_in_place",
            "reports_last_lr",
        ]
        if issubclass(cls, ClosedFormLR):
            names.append("recursion_equals_closed_form")
        checks += [Check(f"{name}[{_label(case)}]", getattr(schedule, name)) for name in names]
    return checks


def check_scheduler(scheduler: str | type[LRScheduler], **arguments: Any) -> None:
    """Run every check of `scheduler_checks`.

    Raises:
        AssertionError: with all failures, one a line. Errors of `scheduler_checks`.
    """
    _run_all(scheduler_checks(scheduler, **arguments))


def _run_all(checks: Sequence[Check]) -> None:
    failures = []
    for check in checks:
        try:
            check()
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, f"{len(failures)} of {len(checks)} checks failed:\n" + "\n".join(failures)


def _look_up(kind: str, what: str | type, base: type) -> tuple[type, frozenset[str]]:
    if isinstance(what, str):
        return registry.get(kind, what), registry.find(kind, what).spec.capabilities
    if not (isinstance(what, type) and issubclass(what, base)):
        raise TypeError(f"expected the name of {'an' if kind[0] in 'aeiou' else 'a'} {kind} or its class, got {what!r}")
    return what, frozenset(getattr(what, "capabilities", ()))


def _cases(cls: type) -> tuple[dict[str, Any], ...]:
    declared: Sequence[Mapping[str, Any]] = getattr(cls, "cases", ())
    return tuple(dict(case) for case in declared) or ({},)


# ------------------------------------------------------------------------------------------------ what is tested


@dataclass(frozen=True)
class _Subject:
    """An optimizer under test."""

    cls: type[Optimizer]
    cases: tuple[dict[str, Any], ...]
    capabilities: frozenset[str]
    engines: tuple[str, ...]
    without: Mapping[str, str]

    @classmethod
    def of(cls, optimizer: str | type[Optimizer]) -> _Subject:
        found, capabilities = _look_up("optimizer", optimizer, Optimizer)
        cases = _cases(found)
        engines, without = [], {}
        for engine in ENGINES[1:] if issubclass(found, RuleOptimizer) else ():
            try:
                _Run(_Subject(found, cases, capabilities, (), {}), {**cases[0], "engine": engine}).go(0, 1)
                engines.append(engine)
            except EngineError as error:
                without[f"engine {engine}"] = str(error)
        return cls(found, cases, capabilities, tuple(engines), without)

    @property
    def is_rule(self) -> bool:
        return issubclass(self.cls, RuleOptimizer)

    def settings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every case on every engine, labelled."""
        for case in self.cases:
            for engine in self.engines:
                yield f"{engine}-{_label(case)}", {**case, "engine": engine}
            if not self.engines:
                yield _label(case), case


class _Run:
    """Parameters, their gradients, and an optimizer that takes steps. Equal arguments give equal runs."""

    def __init__(
        self,
        subject: _Subject,
        options: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float64,
        rounded: torch.dtype | None = None,
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        params: list[Tensor] | None = None,
    ) -> None:
        self.subject = subject
        self.dtype = dtype
        self.rounded = rounded or dtype
        self.params = params or [
            _noise(shape, i).to(self.rounded).to(dtype).requires_grad_() for i, shape in enumerate(shapes)
        ]
        self.initial = [p.detach().clone() for p in self.params]
        self.optimizer = subject.cls(self.params, **options)

    def gradient(self, step: int, index: int) -> Tensor | None:
        """The first parameter always has one, the second comes late, the third pauses."""
        if (index == 1 and step < 3) or (index == 2 and step == 4):
            return None
        p = self.params[index]
        g = _noise(p.shape if not p.is_complex() else (*p.shape, 2), 100 * (step + 1) + index)
        g = g.sign() * (0.5 + g.abs() % 1)  # of moderate size, so that its square is in the range of float16
        g = g.to(self.rounded).to(p.real.dtype)
        return torch.view_as_complex(g) if p.is_complex() else g

    def place(self, step: int) -> None:
        for i, p in enumerate(self.params):
            p.grad = self.gradient(step, i)

    def halve_lr(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] / 2

    def go(self, start: int = 0, stop: int = STEPS) -> _Run:
        for step in range(start, stop):
            if step == CHANGE:
                self.halve_lr()
            self.place(step)
            _take(self.subject, self.optimizer, self.params)
        return self

    @property
    def moved(self) -> float:
        return _distance(self.params, self.initial)


def _take(
    subject: _Subject, optimizer: Optimizer, params: Sequence[Tensor], loss: Callable[[], Tensor] | None = None
) -> None:
    """A step with the gradients that are there; what needs a closure or a graph gets `loss`.

    Default: a quadratic with these gradients.
    """
    if not subject.capabilities & {"closure", "create_graph"}:
        optimizer.step()
        return
    owners = [p for p in params if p.grad is not None]
    targets = [p.detach() - cast(Tensor, p.grad) for p in owners]

    def quadratic() -> Tensor:
        return torch.stack([((p - t) ** 2).sum() / 2 for p, t in zip(owners, targets, strict=True)]).sum()

    def closure() -> Tensor:
        with torch.enable_grad():
            value = (loss or quadratic)()
            gradients = torch.autograd.grad(value, owners, create_graph="create_graph" in subject.capabilities)
        for p, g in zip(owners, gradients, strict=True):
            p.grad = g
        return value

    if "closure" in subject.capabilities:
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        optimizer.step()


@functools.lru_cache(maxsize=4096)
def _noise_of(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _noise(shape: Sequence[int], seed: int) -> Tensor:
    return _noise_of(tuple(shape), seed).clone()


def _label(case: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in case.items()).replace(" ", "") or "default"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The largest difference; infinite when only one of two numbers is NaN."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = x.detach(), y.detach()
        x, y = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (x, y))
        x, y = x.to(torch.float64), y.to(torch.float64)
        if not bool((x.isnan() == y.isnan()).all()):
            return math.inf
        same = (x == y) | (x.isnan() & y.isnan())  # infinities are equal, though their difference is NaN
        difference = torch.where(same, 0.0, (x - y).abs())
        worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
    return worst


def _equal(what: str, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.dtype == y.dtype, f"{what}: parameter {i} is {_short(x.dtype)} and {_short(y.dtype)}"
        assert x.shape == y.shape, f"{what}: parameter {i} has shape {tuple(x.shape)} and {tuple(y.shape)}"
        difference = _distance([x], [y])
        assert difference == 0, f"{what}: parameter {i} differs by {difference:.3g}, must be equal bit for bit"


def _close(what: str, a: Sequence[Tensor], b: Sequence[Tensor], moved: float, limit: float = 1e-11) -> None:
    """`a` is what was tested; `b` is what it must be."""
    figure = _distance(a, b) / (moved or 1.0)
    assert figure <= limit, (
        f"{what}: differ by {figure:.3g} of the distance moved ({moved:.3g}), allowed is {limit:.3g}"
    )


def _states_of(optimizer: Optimizer) -> list[Tensor]:
    packed = optimizer.state_dict()["state"]
    return [v for i in sorted(packed) for _, v in sorted(packed[i].items()) if isinstance(v, Tensor)]


def _saved_and_loaded(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ------------------------------------------------------------------------------------------------ the properties

_Property = Callable[[_Subject, dict[str, Any]], None]


@dataclass(frozen=True)
class _Kind:
    run: _Property
    applies: Callable[[_Subject, Mapping[str, Any]], str | None]
    every_engine: bool


_PROPERTIES: dict[str, _Kind] = {}


def _always(subject: _Subject, options: Mapping[str, Any]) -> str | None:
    return None


def _rules_only(subject: _Subject, options: Mapping[str, Any]) -> str | None:
    return None if subject.is_rule else "an ordinary Optimizer class, without rule and engines"


def _plain_steps_only(subject: _Subject, options: Mapping[str, Any]) -> str | None:
    needs = subject.capabilities & {"closure", "create_graph"}
    return f"it needs {' and '.join(sorted(needs))}" if needs else None


def _has(option: str) -> Callable[[_Subject, Mapping[str, Any]], str | None]:
    def applies(subject: _Subject, options: Mapping[str, Any]) -> str | None:
        return _plain_steps_only(subject, options) or (
            None if option in _defaults(subject, options) else f"it has no option {option!r}"
        )

    return applies


def _has_common_decay(subject: _Subject, options: Mapping[str, Any]) -> str | None:
    if reason := _rules_only(subject, options) or _has("weight_decay")(subject, options):
        return reason
    rule = cast(type[RuleOptimizer], subject.cls).rule
    return "its rule does weight decay in its own way" if "weight_decay" in signature_of(rule).hypers else None


def _defaults(subject: _Subject, options: Mapping[str, Any]) -> dict[str, Any]:
    return subject.cls([torch.zeros(1, requires_grad=True)], **options).defaults


def _property(
    applies: Callable[[_Subject, Mapping[str, Any]], str | None] = _always, *, every_engine: bool = True
) -> Callable[[_Property], _Property]:
    """Add a property: checked in every case, and there on every engine unless engines do not matter."""

    def add(run: _Property) -> _Property:
        _PROPERTIES[run.__name__.lstrip("_")] = _Kind(run, applies, every_engine)
        return run

    return add


def _split(subject: _Subject) -> tuple[list[Check], dict[str, str]]:
    """The checks that apply, and the reasons why others do not."""
    checks: list[Check] = []
    inapplicable = dict(subject.without)
    for name, kind in _PROPERTIES.items():
        settings = list(subject.settings()) if kind.every_engine else [(_label(c), c) for c in subject.cases]
        for label, options in settings:
            if reason := kind.applies(subject, options):
                inapplicable.setdefault(name, reason)
            else:
                checks.append(Check(f"{name}[{label}]", functools.partial(kind.run, subject, options)))
    for name in {check.id.partition("[")[0] for check in checks}:  # what applies to one case does apply
        inapplicable.pop(name, None)
    return checks, inapplicable


@_property(_rules_only)
def _engine_agrees_with_loop(subject: _Subject, options: dict[str, Any]) -> None:
    """In each dtype, against `loop` in float64 on the same (rounded) inputs."""
    for dtype in DTYPES:
        run = _Run(subject, options, dtype=dtype).go()
        oracle = _Run(subject, {**options, "engine": "loop"}, rounded=dtype).go()
        size = max(float(p.detach().abs().max()) for p in oracle.params if p.numel())
        unit = torch.finfo(dtype).eps * (size + oracle.moved)
        figure = _distance(run.params, oracle.params) / unit
        assert figure <= UNITS * STEPS, (
            f"in {_short(dtype)} off the loop in float64 by {figure:.3g} units in the last place after {STEPS} steps, "
            f"allowed are {UNITS * STEPS:.3g}"
        )


@_property(_rules_only)
def _report_names_the_engine(subject: _Subject, options: dict[str, Any]) -> None:
    run = _Run(subject, options)
    optimizer = cast(RuleOptimizer, run.optimizer)
    for ran in (False, True):
        reports = optimizer.engine_report()
        engines = sorted({report.engine for report in reports})
        assert engines == [options["engine"]], f"engine_report() tells {engines}, asked for was {options['engine']!r}"
        assert {report.ran for report in reports} == {ran}, f"engine_report() has ran={not ran}, it must be {ran}"
        with_gradient = sum(run.gradient(0, i) is not None for i in range(len(run.params))) if ran else len(run.params)
        told = sum(report.tensors for report in reports)
        assert told == with_gradient, f"engine_report() tells of {told} tensors, it must be {with_gradient}"
        run.go(0, 1)


@_property(_plain_steps_only)
def _gradients_are_left_alone(subject: _Subject, options: dict[str, Any]) -> None:
    run = _Run(subject, options)
    for step in range(3):
        run.place(step)
        before = {i: (p.grad, p.grad.clone()) for i, p in enumerate(run.params) if p.grad is not None}
        run.optimizer.step()
        for i, (grad, copied) in before.items():
            assert run.params[i].grad is grad, f"step {step} replaced the gradient of parameter {i}"
            _equal(f"the gradient before and after step {step}", [grad], [copied])


@_property()
def _parameters_without_gradient_stay_put(subject: _Subject, options: dict[str, Any]) -> None:
    run = _Run(subject, options)
    run.gradient = lambda step, index: None if index == 0 else _Run.gradient(run, step, index)  # type: ignore[method-assign]
    run.go()
    _equal("a parameter without gradient", run.params[:1], run.initial[:1])
    state = run.optimizer.state.get(run.params[0])
    if not subject.capabilities & {"closure"}:
        assert not state, f"a parameter without gradient has state {sorted(state or ())}"


@_property()
def _resumed_equals_uninterrupted(subject: _Subject, options: dict[str, Any]) -> None:
    through = _Run(subject, options).go()
    first = _Run(subject, options).go(0, 5)
    saved = _saved_and_loaded(first.optimizer.state_dict())
    second = _Run(subject, options, params=[p.detach().clone().requires_grad_() for p in first.params])
    second.optimizer.load_state_dict(saved)
    second.go(5)
    _equal("resumed and uninterrupted", second.params, through.params)
    _equal("state, resumed and uninterrupted", _states_of(second.optimizer), _states_of(through.optimizer))


@_property()
def _copies_continue_identically(subject: _Subject, options: dict[str, Any]) -> None:
    through = _Run(subject, options).go()
    for how, duplicate in _COPIES.items():
        first = _Run(subject, options).go(0, 5)
        # What is copied is the optimizer alone: the parameters are then the ones in its groups.
        optimizer = duplicate(first.optimizer)
        second = _Run(subject, options, params=[p for group in optimizer.param_groups for p in group["params"]])
        second.optimizer = optimizer
        second.go(5)
        _equal(f"{how} and original", second.params, through.params)
        for name in ("engine", "state_dtype") if subject.is_rule else ():
            kept, original = getattr(optimizer, name), getattr(first.optimizer, name)
            assert kept == original, f"{how} has {name} {kept!r}, the original {original!r}"


_COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),  # noqa: S301  its own
}


@_property(_has("maximize"))
def _maximize_is_descent_on_the_negative(subject: _Subject, options: dict[str, Any]) -> None:
    up = _Run(subject, {**options, "maximize": True}).go()
    down = _Run(subject, {**options, "maximize": False})
    given = down.gradient
    down.gradient = lambda step, index: None if (g := given(step, index)) is None else -g  # type: ignore[method-assign]
    down.go()
    _equal("maximize on f and minimise on -f", up.params, down.params)


@_property(_has_common_decay)
def _weight_decay_is_its_formula(subject: _Subject, options: dict[str, Any]) -> None:
    decay = 0.25
    decayed = _Run(subject, {**options, "weight_decay": decay}).go()
    by_hand = _Run(subject, {**options, "weight_decay": 0.0})
    group = by_hand.optimizer.param_groups[0]
    decoupled, sign = bool(group.get("decoupled_weight_decay")), -1 if group["maximize"] else 1
    given = by_hand.gradient

    def gradient(step: int, index: int) -> Tensor | None:
        g, p = given(step, index), by_hand.params[index].detach()
        if g is not None and decoupled:
            p.mul_(1 - group["lr"] * decay)
        return g if g is None or decoupled else g + sign * decay * p

    by_hand.gradient = gradient  # type: ignore[method-assign]
    by_hand.go()
    formula = "p shrunk by lr * weight_decay first" if decoupled else "weight_decay * p added to the gradient"
    _close(f"weight_decay={decay} and {formula}", decayed.params, by_hand.params, decayed.moved)


@_property(_plain_steps_only)
def _lr_may_change(subject: _Subject, options: dict[str, Any]) -> None:
    """As an optimizer that is built with the new rate and takes over the state: nothing remembers the old one."""
    changed = _Run(subject, options).go(0, CHANGE + 1)
    first = _Run(subject, options).go(0, CHANGE)
    saved = copy.deepcopy(first.optimizer.state_dict())
    for group in saved["param_groups"]:
        group["lr"] /= 2
    built = _Run(subject, {**options, "lr": saved["param_groups"][0]["lr"]}, params=first.params)
    built.optimizer.load_state_dict(saved)
    built.place(CHANGE)
    built.optimizer.step()
    _equal("lr changed midway and optimizer built with it", changed.params, built.params)


@_property(_plain_steps_only)
def _layout_does_not_matter(subject: _Subject, options: dict[str, Any]) -> None:
    """Transposed, channels_last, strided, 0-dim and empty parameters and gradients, against contiguous ones."""
    shapes = ((4, 3), (2, 3, 4, 4), (6,), (), (3, 0))

    def laid_out(i: int, t: Tensor) -> Tensor:
        if i == 0:
            return t.t().contiguous().t()
        if i == 1:
            return t.contiguous(memory_format=torch.channels_last)
        return torch.stack([t, t], -1)[..., 0] if i == 2 else t

    plain = _Run(subject, options, shapes=shapes).go()
    for what, params, gradients in (("parameters", True, False), ("gradients", False, True), ("both", True, True)):
        tensors = [_noise(shape, i) for i, shape in enumerate(shapes)]
        odd = _Run(
            subject,
            options,
            params=[(laid_out(i, t) if params else t).requires_grad_() for i, t in enumerate(tensors)],
        )
        given = odd.gradient

        def gradient(step: int, index: int, given: Any = given, gradients: bool = gradients) -> Tensor | None:
            g = given(step, index)
            return laid_out(index, g) if gradients and g is not None else g

        odd.gradient = gradient  # type: ignore[method-assign]
        odd.go()
        _close(f"non-contiguous {what} and contiguous ones", odd.params, plain.params, plain.moved, 1e-12)


@_property(_plain_steps_only)
def _capability_complex_is_true(subject: _Subject, options: dict[str, Any]) -> None:
    """Declared: as its real view, conjugated gradients as well. Not declared: refused."""

    def complex_run(*, conjugated: bool) -> _Run:
        params = [
            torch.view_as_complex(_noise((*shape, 2), i)).requires_grad_() for i, shape in enumerate(((3, 2), (4,), ()))
        ]
        run = _Run(subject, options, params=params)
        given = run.gradient

        def gradient(step: int, index: int) -> Tensor | None:
            g = given(step, index)
            return g.conj().resolve_conj().conj() if conjugated and g is not None else g

        run.gradient = gradient  # type: ignore[method-assign]
        return run.go()

    def real_run() -> _Run:
        run = _Run(
            subject,
            options,
            params=[_noise((*shape, 2), i).requires_grad_() for i, shape in enumerate(((3, 2), (4,), ()))],
        )
        return run.go()

    real = real_run()
    if "complex" in subject.capabilities:
        for conjugated in (False, True):
            views = [torch.view_as_real(p.detach()) for p in complex_run(conjugated=conjugated).params]
            what = "complex parameters with conjugated gradients" if conjugated else "complex parameters"
            _close(f"{what} and their real view", views, real.params, real.moved)
        return
    try:
        run = complex_run(conjugated=False)
    except Exception:
        return
    views = [torch.view_as_real(p.detach()) for p in run.params]
    right = _distance(views, real.params) <= 1e-11 * (real.moved or 1.0)
    advice = "declare 'complex'" if right else "and steps them wrongly: refuse them"
    raise AssertionError(f"it does not declare 'complex' but takes complex parameters: {advice}")


@_property(_plain_steps_only)
def _capability_sparse_is_true(subject: _Subject, options: dict[str, Any]) -> None:
    """Declared: as the dense step on the rows that the gradient names. Not declared: refused."""
    touched = [1, 4]
    values = _noise((3, 3), 7)
    whole = _noise((6, 3), 5).requires_grad_()
    rows = whole.detach()[touched].clone().requires_grad_()
    gradient = torch.sparse_coo_tensor(torch.tensor([[1, 4, 1]]), values, (6, 3), check_invariants=True)
    sparse, dense = (_Run(subject, options, params=[p]) for p in (whole, rows))

    def step() -> None:
        for _ in range(3):
            whole.grad, rows.grad = gradient.clone(), torch.stack([values[0] + values[2], values[1]])
            sparse.optimizer.step()
            dense.optimizer.step()

    if "sparse" in subject.capabilities:
        step()
        _close("touched rows and the dense step on them", [whole[touched]], [rows], dense.moved)
        rest = [i for i in range(6) if i not in touched]
        _equal("rows that the gradient does not name", [whole[rest]], [sparse.initial[0][rest]])
        return
    assert _refuses(step), "it does not declare 'sparse' but takes sparse gradients: declare it, or refuse them"


@_property()
def _capabilities_modes_and_closure_are_true(subject: _Subject, options: dict[str, Any]) -> None:
    run = _Run(subject, options)
    has_modes = all(callable(getattr(run.optimizer, mode, None)) for mode in ("train", "eval"))
    declared = "modes" in subject.capabilities
    assert has_modes == declared, (
        f"it {'has' if has_modes else 'has no'} train() and eval(), but 'modes' is declared: {declared}"
    )
    run.place(0)
    for capability, what in {"closure": "without closure", "create_graph": "with gradients without graph"}.items():
        if capability in subject.capabilities:
            assert _refuses(run.optimizer.step), f"it declares {capability!r} but steps {what}"


def _refuses(act: Callable[[], object]) -> bool:
    try:
        act()
    except Exception:
        return True
    return False


@_property(_plain_steps_only)
def _closure_is_called_once_before_the_update(subject: _Subject, options: dict[str, Any]) -> None:
    run = _Run(subject, options)
    run.place(0)
    calls: list[tuple[bool, bool]] = []

    def closure() -> str:
        calls.append((torch.is_grad_enabled(), run.moved == 0))
        return "the loss"

    with torch.no_grad():
        returned: Any = run.optimizer.step(closure)  # type: ignore[arg-type]
    assert len(calls) == 1, f"step(closure) called the closure {len(calls)} times"
    assert calls[0][0], "step(closure) called the closure with gradients disabled"
    assert calls[0][1], "step(closure) updated parameters before it called the closure"
    assert returned == "the loss", f"step(closure) returned {returned!r} instead of the closure's loss"


@_property(_plain_steps_only)
def _groups_may_be_added(subject: _Subject, options: dict[str, Any]) -> None:
    """A group added while training steps as in an optimizer of its own; the others go on as if alone."""
    alone = _Run(subject, options).go()
    late = _Run(subject, options, shapes=((2, 2),))
    late.halve_lr()
    run = _Run(subject, options).go(0, CHANGE + 1)
    added = late.initial[0].clone().requires_grad_()
    run.optimizer.add_param_group({"params": [added], "lr": late.optimizer.param_groups[0]["lr"]})
    for step in range(CHANGE + 1, STEPS):
        run.place(step)
        late.place(step)
        added.grad = cast(Tensor, late.params[0].grad).clone()
        run.optimizer.step()
        late.optimizer.step()
    if subject.is_rule:  # an ordinary class may look at all its parameters together
        _equal("parameters with a group added and without", run.params, alone.params)
        _equal("a group added while training and an optimizer of its own", [added], late.params)
    else:
        assert _distance([added], late.initial) > 0, "parameters of a group added while training did not move"


@_property(_rules_only)
def _state_dtype_is_kept(subject: _Subject, options: dict[str, Any]) -> None:
    """bfloat16 parameters with float32 states: also after a state dict was loaded."""
    options = {**options, "state_dtype": torch.float32}
    run = _Run(subject, options, dtype=torch.bfloat16).go(0, 5)
    other = _Run(subject, options, params=[p.detach().clone().requires_grad_() for p in run.params])
    other.optimizer.load_state_dict(_saved_and_loaded(run.optimizer.state_dict()))
    other.dtype = other.rounded = torch.bfloat16
    for when, optimizer in (("", run.optimizer), (" after load_state_dict", other.optimizer)):
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    assert value.dtype == torch.float32, f"{name} is {_short(value.dtype)}{when}, must be float32"
    _equal("resumed and uninterrupted", other.go(5).params, run.go(5).params)


@_property(_rules_only, every_engine=False)
def _wrong_options_are_refused(subject: _Subject, options: dict[str, Any]) -> None:
    run = _Run(subject, options)
    misspelt = run.optimizer.defaults.copy()
    for name in misspelt:
        if len(name) < 4:  # too short for a typing error to be near
            continue
        wrong = name[:1] + name[2] + name[1] + name[3:] if name[1] != name[2] else name + "x"
        for where, act in _places(subject, options, {wrong: 0.1}):
            said = _complaint(act)
            assert said is not None, f"{where} accepts the unknown option {wrong!r}"
            assert repr(name) in said, f"{where} refuses {wrong!r} without naming {name!r}: {said}"
    for lr in (-1.0, math.nan, math.inf, -math.inf):
        for where, act in _places(subject, options, {"lr": lr}):
            said = _complaint(act)
            assert said is not None, f"{where} accepts lr={lr}"
            assert said.startswith("Invalid learning rate: "), f"{where} refuses lr={lr} in other words: {said}"


def _complaint(act: Callable[[], object]) -> str | None:
    try:
        act()
    except HyperparameterError as error:
        return str(error)
    return None


def _places(
    subject: _Subject, options: Mapping[str, Any], group: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """The ways in which a group's options reach an optimizer."""
    build = cast(Any, subject.cls)
    yield (
        "a group of the constructor",
        lambda: build([{"params": [torch.zeros(1, requires_grad=True)], **group}], **options),
    )
    optimizer = build([torch.zeros(1, requires_grad=True)], **options)
    yield (
        "add_param_group",
        lambda: optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], **group}),
    )


@_property()
def _a_dropped_optimizer_is_freed(subject: _Subject, options: dict[str, Any]) -> None:
    """At once, by reference counts: a cycle would keep the parameters, and their memory, until the collector comes."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        run = _Run(subject, options).go(0, 2)
        run.optimizer.load_state_dict(run.optimizer.state_dict())
        if subject.is_rule:
            cast(RuleOptimizer, run.optimizer).engine_report()
        dropped, kept = weakref.ref(run.optimizer), weakref.ref(run.params[0])
        del run
        assert dropped() is None, "a reference cycle (or a cache) keeps the optimizer alive after it was dropped"
        assert kept() is None, "something keeps the parameters alive after the optimizer was dropped"
    finally:
        if collecting:
            gc.enable()


@_property()
def _the_bowl_goes_down(subject: _Subject, options: dict[str, Any]) -> None:
    """x² from 2 and -1; with maximize, -x²."""
    x = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    optimizer = subject.cls([x], **options)
    sign = -1 if optimizer.param_groups[0].get("maximize") else 1
    start = float((x.detach() ** 2).sum())
    for _ in range(30):
        x.grad = sign * 2 * x.detach()
        _take(subject, optimizer, [x], lambda: sign * (x**2).sum())
    end = float((x.detach() ** 2).sum())
    assert end < start, f"30 steps on x² lead from {start:.6g} to {end:.6g}"


# ------------------------------------------------------------------------------------------------ schedulers


class _Carrier(Optimizer):
    """An optimizer that only carries learning rates."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


@dataclass(frozen=True)
class _Schedule:
    """A scheduler under test, in one case."""

    cls: type[LRScheduler]
    arguments: Mapping[str, Any]
    takes_metric: bool
    steps: int = 50

    def build(self, lrs: Sequence[float | Tensor], **groups: Any) -> LRScheduler:
        params = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, **groups} for lr in lrs]
        return self.cls(_Carrier(params, {"lr": 0.1}), **self.arguments)

    def step(self, scheduler: LRScheduler, t: int) -> list[float]:
        """Take a step and tell the rates; the metric falls for a while, then stays."""
        scheduler.optimizer.step()
        if self.takes_metric:
            cast(Any, scheduler).step(max(1.0, 5.0 - 0.7 * t) + 0.01 * (t % 3))
        else:
            scheduler.step()
        return [float(group["lr"]) for group in scheduler.optimizer.param_groups]

    def rates(self, scheduler: LRScheduler, start: int, stop: int) -> list[list[float]]:
        return [self.step(scheduler, t) for t in range(start, stop)]

    def recursion_equals_closed_form(self) -> None:
        scheduler = cast(ClosedFormLR, self.build([0.1, 3.0]))
        for t in range(self.steps):
            stepped = self.step(scheduler, t)
            for i, closed in enumerate(map(float, scheduler._get_closed_form_lr())):
                figure = abs(stepped[i] - closed) / float(scheduler.base_lrs[i])
                assert figure <= 1e-11, (
                    f"after {t + 1} steps the rate is {stepped[i]:.17g}, the closed form {closed:.17g} "
                    f"(relative to the base rate: {figure:.3g}, allowed is 1e-11)"
                )

    def groups_go_their_own_way(self) -> None:
        lrs = [0.1, 3.0, 0.02]
        together = self.rates(self.build(lrs), 0, self.steps)
        for i, lr in enumerate(lrs):
            alone = [rates[0] for rates in self.rates(self.build([lr]), 0, self.steps)]
            for t, rates in enumerate(together):
                assert rates[i] == alone[t], f"after {t + 1} steps group {i} has {rates[i]:.17g}, alone {alone[t]:.17g}"

    def resumed_equals_uninterrupted(self) -> None:
        half = self.steps // 2
        through = self.rates(self.build([0.1, 3.0]), 0, self.steps)
        first = self.build([0.1, 3.0])
        self.rates(first, 0, half)
        saved = _saved_and_loaded({"scheduler": first.state_dict(), "optimizer": first.optimizer.state_dict()})
        second = self.build([0.1, 3.0])
        second.optimizer.load_state_dict(saved["optimizer"])
        second.load_state_dict(saved["scheduler"])
        for t, (a, b) in enumerate(zip(self.rates(second, half, self.steps), through[half:], strict=True), half + 1):
            assert a == b, f"after {t} steps the resumed rates are {a}, the uninterrupted ones {b}"

    def a_tensor_lr_is_set_in_place(self) -> None:
        rate = torch.tensor(0.1, dtype=torch.float64)
        tensors, floats = self.build([rate]), self.build([0.1])
        held = tensors.optimizer.param_groups[0]["lr"]
        for t in range(self.steps):
            got, expected = self.step(tensors, t)[0], self.step(floats, t)[0]
            assert tensors.optimizer.param_groups[0]["lr"] is held, f"step {t + 1} replaced the tensor that is the rate"
            assert abs(got - expected) <= 1e-12, (
                f"after {t + 1} steps the tensor is {got:.17g}, a float would be {expected:.17g}"
            )

    def reports_last_lr(self) -> None:
        scheduler = self.build([0.1, 3.0])
        for t in range(self.steps):
            rates, told = self.step(scheduler, t), [float(lr) for lr in scheduler.get_last_lr()]
            assert told == rates, f"after {t + 1} steps get_last_lr() tells {told}, the groups have {rates}"
