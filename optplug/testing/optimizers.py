"""The properties of optimizers."""

from __future__ import annotations

import copy
import functools
import gc
import math
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from optplug.errors import EngineError, HyperparameterError
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.rules.trace import signature_of
from optplug.testing.checks import Check, close, distance, equal, label, saved_and_loaded, short, states_of
from optplug.testing.subjects import CHANGE, DTYPES, STEPS, UNITS, Run, Subject, noise, take

_Property = Callable[[Subject, dict[str, Any]], None]
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Kind:
    run: _Property
    applies: Callable[[Subject, Mapping[str, Any]], str | None]
    every_engine: bool


_PROPERTIES: dict[str, _Kind] = {}


def _always(subject: Subject, options: Mapping[str, Any]) -> str | None:
    return None


def _rules_only(subject: Subject, options: Mapping[str, Any]) -> str | None:
    return None if subject.is_rule else "an ordinary Optimizer class, without rule and engines"


def _plain_steps_only(subject: Subject, options: Mapping[str, Any]) -> str | None:
    needs = subject.capabilities & {"closure", "create_graph"}
    return f"it needs {' and '.join(sorted(needs))}" if needs else None


def _has(option: str) -> Callable[[Subject, Mapping[str, Any]], str | None]:
    def applies(subject: Subject, options: Mapping[str, Any]) -> str | None:
        return _plain_steps_only(subject, options) or (
            None if option in _defaults(subject, options) else f"it has no option {option!r}"
        )

    return applies


def _has_common_decay(subject: Subject, options: Mapping[str, Any]) -> str | None:
    if reason := _rules_only(subject, options) or _has("weight_decay")(subject, options):
        return reason
    rule = cast(type[RuleOptimizer], subject.cls).rule
    return "its rule does weight decay in its own way" if "weight_decay" in signature_of(rule).hypers else None


def _defaults(subject: Subject, options: Mapping[str, Any]) -> dict[str, Any]:
    return subject.cls([torch.zeros(1, requires_grad=True)], **options).defaults


def _property(
    applies: Callable[[Subject, Mapping[str, Any]], str | None] = _always, *, every_engine: bool = True
) -> Callable[[_Property], _Property]:
    """Add a property: checked in every case, and there on every engine unless engines do not matter."""

    def add(run: _Property) -> _Property:
        _PROPERTIES[run.__name__.lstrip("_")] = _Kind(run, applies, every_engine)
        return run

    return add


def split(subject: Subject) -> tuple[list[Check], dict[str, str]]:
    """The checks that apply, and the reasons why others do not."""
    checks: list[Check] = []
    inapplicable = dict(subject.without)
    for name, kind in _PROPERTIES.items():
        settings = list(subject.settings()) if kind.every_engine else [(label(c), c) for c in subject.cases]
        for setting, options in settings:
            if reason := kind.applies(subject, options):
                inapplicable.setdefault(name, reason)
            else:
                checks.append(Check(f"{name}[{setting}]", functools.partial(kind.run, subject, options)))
    for name in {check.id.partition("[")[0] for check in checks}:  # what applies to one case does apply
        inapplicable.pop(name, None)
    return checks, inapplicable


def _or_auto(go: Callable[[dict[str, Any]], _T], options: dict[str, Any]) -> _T:
    """What it does with an engine, or where that refuses such tensors with `auto`, which must find one for them."""
    try:
        return go(options)
    except EngineError:
        return go({**options, "engine": "auto"})


@_property(_rules_only)
def _engine_agrees_with_loop(subject: Subject, options: dict[str, Any]) -> None:
    """In each dtype, against `loop` in float64 on the same (rounded) inputs."""
    for dtype in DTYPES:
        run = Run(subject, options, dtype=dtype).go()
        oracle = Run(subject, {**options, "engine": "loop"}, rounded=dtype).go()
        size = max(float(p.detach().abs().max()) for p in oracle.params if p.numel())
        unit = torch.finfo(dtype).eps * (size + oracle.moved)
        figure = distance(run.params, oracle.params) / unit
        assert figure <= UNITS * STEPS, (
            f"in {short(dtype)} off the loop in float64 by {figure:.3g} units in the last place after {STEPS} steps, "
            f"allowed are {UNITS * STEPS:.3g}"
        )


@_property(_rules_only)
def _report_names_the_engine(subject: Subject, options: dict[str, Any]) -> None:
    run = Run(subject, options)
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
def _gradients_are_left_alone(subject: Subject, options: dict[str, Any]) -> None:
    run = Run(subject, options)
    for step in range(3):
        run.place(step)
        before = {i: (p.grad, p.grad.clone()) for i, p in enumerate(run.params) if p.grad is not None}
        run.optimizer.step()
        for i, (grad, copied) in before.items():
            assert run.params[i].grad is grad, f"step {step} replaced the gradient of parameter {i}"
            equal(f"the gradient before and after step {step}", [grad], [copied])


@_property()
def _parameters_without_gradient_stay_put(subject: Subject, options: dict[str, Any]) -> None:
    run = Run(subject, options)
    run.gradient = lambda step, index: None if index == 0 else Run.gradient(run, step, index)  # type: ignore[method-assign]
    run.go()
    equal("a parameter without gradient", run.params[:1], run.initial[:1])
    state = run.optimizer.state.get(run.params[0])
    if not subject.capabilities & {"closure"}:
        assert not state, f"a parameter without gradient has state {sorted(state or ())}"


@_property()
def _resumed_equals_uninterrupted(subject: Subject, options: dict[str, Any]) -> None:
    through = Run(subject, options).go()
    first = Run(subject, options).go(0, 5)
    saved = saved_and_loaded(first.optimizer.state_dict())
    second = Run(subject, options, params=[p.detach().clone().requires_grad_() for p in first.params])
    second.optimizer.load_state_dict(saved)
    second.go(5)
    equal("resumed and uninterrupted", second.params, through.params)
    equal("state, resumed and uninterrupted", states_of(second.optimizer), states_of(through.optimizer))


@_property()
def _copies_continue_identically(subject: Subject, options: dict[str, Any]) -> None:
    through = Run(subject, options).go()
    for how, duplicate in _COPIES.items():
        first = Run(subject, options).go(0, 5)
        # What is copied is the optimizer alone: the parameters are then the ones in its groups.
        optimizer = duplicate(first.optimizer)
        second = Run(subject, options, params=[p for group in optimizer.param_groups for p in group["params"]])
        second.optimizer = optimizer
        second.go(5)
        equal(f"{how} and original", second.params, through.params)
        for name in ("engine", "state_dtype") if subject.is_rule else ():
            kept, original = getattr(optimizer, name), getattr(first.optimizer, name)
            assert kept == original, f"{how} has {name} {kept!r}, the original {original!r}"


_COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),  # noqa: S301  its own
}


@_property(_has("maximize"))
def _maximize_is_descent_on_the_negative(subject: Subject, options: dict[str, Any]) -> None:
    up = Run(subject, {**options, "maximize": True}).go()
    down = Run(subject, {**options, "maximize": False})
    given = down.gradient
    down.gradient = lambda step, index: None if (g := given(step, index)) is None else -g  # type: ignore[method-assign]
    down.go()
    equal("maximize on f and minimise on -f", up.params, down.params)


@_property(_has_common_decay)
def _weight_decay_is_its_formula(subject: Subject, options: dict[str, Any]) -> None:
    decay = 0.25
    decayed = Run(subject, {**options, "weight_decay": decay}).go()
    by_hand = Run(subject, {**options, "weight_decay": 0.0})
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
    close(f"weight_decay={decay} and {formula}", decayed.params, by_hand.params, decayed.moved)


@_property(_plain_steps_only)
def _lr_may_change(subject: Subject, options: dict[str, Any]) -> None:
    """As an optimizer that is built with the new rate and takes over the state: nothing remembers the old one."""
    changed = Run(subject, options).go(0, CHANGE + 1)
    first = Run(subject, options).go(0, CHANGE)
    saved = copy.deepcopy(first.optimizer.state_dict())
    for group in saved["param_groups"]:
        group["lr"] /= 2
    built = Run(subject, {**options, "lr": saved["param_groups"][0]["lr"]}, params=first.params)
    built.optimizer.load_state_dict(saved)
    built.place(CHANGE)
    built.optimizer.step()
    equal("lr changed midway and optimizer built with it", changed.params, built.params)


@_property(_plain_steps_only)
def _layout_does_not_matter(subject: Subject, options: dict[str, Any]) -> None:
    """Transposed, channels_last, strided, 0-dim and empty parameters and gradients, against contiguous ones."""
    shapes = ((4, 3), (2, 3, 4, 4), (6,), (), (3, 0))

    def laid_out(i: int, t: Tensor) -> Tensor:
        if i == 0:
            return t.t().contiguous().t()
        if i == 1:
            return t.contiguous(memory_format=torch.channels_last)
        return torch.stack([t, t], -1)[..., 0] if i == 2 else t

    plain = Run(subject, options, shapes=shapes).go()
    for what, params, gradients in (("parameters", True, False), ("gradients", False, True), ("both", True, True)):

        def go(options: dict[str, Any], params: bool = params, gradients: bool = gradients) -> Run:
            tensors = [noise(shape, i) for i, shape in enumerate(shapes)]
            tensors = [(laid_out(i, t) if params else t).requires_grad_() for i, t in enumerate(tensors)]
            run = Run(subject, options, params=tensors)
            given = run.gradient

            def gradient(step: int, index: int) -> Tensor | None:
                g = given(step, index)
                return laid_out(index, g) if gradients and g is not None else g

            run.gradient = gradient  # type: ignore[method-assign]
            return run.go()

        odd = _or_auto(go, options)
        close(f"non-contiguous {what} and contiguous ones", odd.params, plain.params, plain.moved, 1e-12)


@_property(_plain_steps_only)
def _capability_complex_is_true(subject: Subject, options: dict[str, Any]) -> None:
    """Declared: as its real view, conjugated gradients as well. Not declared: refused."""

    def complex_run(options: dict[str, Any], *, conjugated: bool) -> Run:
        params = [
            torch.view_as_complex(noise((*shape, 2), i)).requires_grad_() for i, shape in enumerate(((3, 2), (4,), ()))
        ]
        run = Run(subject, options, params=params)
        given = run.gradient

        def gradient(step: int, index: int) -> Tensor | None:
            g = given(step, index)
            return g.conj().resolve_conj().conj() if conjugated and g is not None else g

        run.gradient = gradient  # type: ignore[method-assign]
        return run.go()

    def real_run() -> Run:
        run = Run(
            subject,
            options,
            params=[noise((*shape, 2), i).requires_grad_() for i, shape in enumerate(((3, 2), (4,), ()))],
        )
        return run.go()

    real = real_run()
    if "complex" in subject.capabilities:
        for conjugated in (False, True):
            go = functools.partial(complex_run, conjugated=conjugated)
            views = [torch.view_as_real(p.detach()) for p in _or_auto(go, options).params]
            what = "complex parameters with conjugated gradients" if conjugated else "complex parameters"
            close(f"{what} and their real view", views, real.params, real.moved)
        return
    try:
        run = complex_run(options, conjugated=False)
    except Exception:
        return
    views = [torch.view_as_real(p.detach()) for p in run.params]
    right = distance(views, real.params) <= 1e-11 * (real.moved or 1.0)
    advice = "declare 'complex'" if right else "and steps them wrongly: refuse them"
    raise AssertionError(f"it does not declare 'complex' but takes complex parameters: {advice}")


@_property(_plain_steps_only)
def _capability_sparse_is_true(subject: Subject, options: dict[str, Any]) -> None:
    """Declared: as the dense step on the rows that the gradient names. Not declared: refused."""
    if options.get("weight_decay"):  # for all rows, so that it has no meaning here
        options = {**options, "weight_decay": 0.0}
    _or_auto(functools.partial(_named_rows_follow_dense_ones, subject), options)
    if "sparse" in subject.capabilities:
        _or_auto(functools.partial(_later_rows_follow_one_meaning, subject), options)


def _named_rows_follow_dense_ones(subject: Subject, options: Mapping[str, Any]) -> None:
    touched = [1, 4]
    values = noise((3, 3), 7)
    whole = noise((6, 3), 5).requires_grad_()
    rows = whole.detach()[touched].clone().requires_grad_()
    gradient = torch.sparse_coo_tensor(torch.tensor([[1, 4, 1]]), values, (6, 3), check_invariants=True)
    sparse, dense = (Run(subject, options, params=[p]) for p in (whole, rows))

    def step() -> None:
        for _ in range(3):
            whole.grad = gradient.clone()
            rows.grad = subject.given(torch.stack([values[0] + values[2], values[1]]))
            sparse.optimizer.step()
            dense.optimizer.step()

    if "sparse" not in subject.capabilities:
        assert _refuses(step), "it does not declare 'sparse' but takes sparse gradients: declare it, or refuse them"
        return
    step()
    close("touched rows and the dense step on them", [whole[touched]], [rows], dense.moved)
    rest = [i for i in range(6) if i not in touched]
    equal("rows that no gradient named", [whole[rest]], [sparse.initial[0][rest]])


def _later_rows_follow_one_meaning(subject: Subject, options: Mapping[str, Any]) -> None:
    """Rows named before and not now are left alone, or else go on as under a dense gradient that is zero there."""
    named = ([1, 4], [0, 4], [2], [1, 2], [5, 0])
    runs = [Run(subject, options, shapes=((6, 3),)) for _ in range(2)]
    sparse, dense = (run.params[0] for run in runs)
    left_alone = True
    for i, touched in enumerate(named):
        gradient = torch.zeros(6, 3, dtype=torch.float64)
        gradient[touched] = noise((len(touched), 3), i)
        before = sparse.detach().clone()
        sparse.grad, dense.grad = gradient.to_sparse(1), subject.given(gradient)
        for run in runs:
            run.optimizer.step()
        rest = [row for row in range(6) if row not in touched]
        left_alone = left_alone and torch.equal(sparse[rest], before[rest])
    if not left_alone:
        close("sparse gradients and dense ones with zeros", [sparse], [dense], runs[1].moved)


@_property(_plain_steps_only)
def _capability_sparse_only_is_true(subject: Subject, options: dict[str, Any]) -> None:
    """Declared: dense gradients are refused."""
    run = Run(subject, options)
    for i, p in enumerate(run.params):
        p.grad = run.gradient(3, i)
    refused = _refuses(run.optimizer.step)
    declared = "sparse_only" in subject.capabilities
    assert refused == declared, (
        f"it {'refuses' if refused else 'takes'} dense gradients, but 'sparse_only' is declared: {declared}"
    )


@_property()
def _capabilities_modes_and_closure_are_true(subject: Subject, options: dict[str, Any]) -> None:
    run = Run(subject, options)
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
def _closure_is_called_once_before_the_update(subject: Subject, options: dict[str, Any]) -> None:
    run = Run(subject, options)
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
def _groups_may_be_added(subject: Subject, options: dict[str, Any]) -> None:
    """A group added while training steps as in an optimizer of its own; the others go on as if alone."""
    alone = Run(subject, options).go()
    late = Run(subject, options, shapes=((2, 2),))
    late.halve_lr()
    run = Run(subject, options).go(0, CHANGE + 1)
    added = late.initial[0].clone().requires_grad_()
    run.optimizer.add_param_group({"params": [added], "lr": late.optimizer.param_groups[0]["lr"]})
    for step in range(CHANGE + 1, STEPS):
        run.place(step)
        late.place(step)
        added.grad = cast(Tensor, late.params[0].grad).clone()
        run.optimizer.step()
        late.optimizer.step()
    if subject.is_rule:  # an ordinary class may look at all its parameters together
        equal("parameters with a group added and without", run.params, alone.params)
        equal("a group added while training and an optimizer of its own", [added], late.params)
    else:
        assert distance([added], late.initial) > 0, "parameters of a group added while training did not move"


@_property(_rules_only)
def _state_dtype_is_kept(subject: Subject, options: dict[str, Any]) -> None:
    """bfloat16 parameters with float32 states: also after a state dict was loaded."""
    options = {**options, "state_dtype": torch.float32}
    run = Run(subject, options, dtype=torch.bfloat16).go(0, 5)
    other = Run(subject, options, params=[p.detach().clone().requires_grad_() for p in run.params])
    other.optimizer.load_state_dict(saved_and_loaded(run.optimizer.state_dict()))
    other.dtype = other.rounded = torch.bfloat16
    for when, optimizer in (("", run.optimizer), (" after load_state_dict", other.optimizer)):
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    assert value.dtype == torch.float32, f"{name} is {short(value.dtype)}{when}, must be float32"
    equal("resumed and uninterrupted", other.go(5).params, run.go(5).params)


@_property(_rules_only, every_engine=False)
def _wrong_options_are_refused(subject: Subject, options: dict[str, Any]) -> None:
    run = Run(subject, options)
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
    subject: Subject, options: Mapping[str, Any], group: dict[str, Any]
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
def _a_dropped_optimizer_is_freed(subject: Subject, options: dict[str, Any]) -> None:
    """At once, by reference counts: a cycle would keep the parameters, and their memory, until the collector comes."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        run = Run(subject, options).go(0, 2)
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
def _the_bowl_goes_down(subject: Subject, options: dict[str, Any]) -> None:
    """x² from 2 and -1; with maximize, -x²."""
    x = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    optimizer = subject.cls([x], **options)
    sign = -1 if optimizer.param_groups[0].get("maximize") else 1
    start = float((x.detach() ** 2).sum())
    for _ in range(30):
        x.grad = subject.given(sign * 2 * x.detach())
        take(subject, optimizer, [x], lambda: sign * (x**2).sum())
    end = float((x.detach() ** 2).sum())
    assert end < start, f"30 steps on x² lead from {start:.6g} to {end:.6g}"
