"""The properties that the conformance kit checks for optimizers. Each is a function with the decorator `_property`."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import math
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from optplug.errors import EngineError, HyperparameterError
from optplug.optim import dispatch
from optplug.optim.ranges import declared_ranges
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.rules.trace import TracedRule, rule_signature, trace
from optplug.testing.checks import (
    Check,
    assert_close,
    assert_equal,
    case_label,
    dtype_name,
    max_difference,
    save_and_load,
    state_tensors,
)
from optplug.testing.modifiers import MODIFIERS, modified_run, run_by_definition
from optplug.testing.trajectory import (
    DTYPES,
    LR_CHANGE_STEP,
    STEPS,
    ULPS_PER_STEP,
    OptimizerUnderTest,
    Trajectory,
    seeded_randn,
    take_step,
)

_Property = Callable[[OptimizerUnderTest, dict[str, Any]], None]
_T = TypeVar("_T")


@dataclass(frozen=True)
class _PropertyCheck:
    """A property, the condition under which it applies, and whether it is checked with every engine."""

    run: _Property
    reason_not_applicable: Callable[[OptimizerUnderTest, Mapping[str, Any]], str | None]
    every_engine: bool


_PROPERTIES: dict[str, _PropertyCheck] = {}


def _applies_always(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    return None


def _applies_to_rules(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    return None if subject.is_rule else "not a RuleOptimizer: it has no rule and no engines"


def _applies_to_plain_steps(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    needs = subject.capabilities & {"closure", "create_graph"}
    return f"it needs {' and '.join(sorted(needs))}" if needs else None


def _applies_to_option(option: str) -> Callable[[OptimizerUnderTest, Mapping[str, Any]], str | None]:
    def applies(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
        return None if option in _defaults(subject, options) else f"it has no option {option!r}"

    return applies


def _applies_to_common_weight_decay(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    conditions = (_applies_to_rules, _applies_to_plain_steps, _applies_to_option("weight_decay"))
    if reason := next(filter(None, (applies(subject, options) for applies in conditions)), None):
        return reason
    rule = cast(type[RuleOptimizer], subject.cls).rule
    return "its rule implements weight decay itself" if "weight_decay" in rule_signature(rule).hyperparameters else None


def _applies_to_modifiers(*names: str) -> Callable[[OptimizerUnderTest, Mapping[str, Any]], str | None]:
    def applies(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
        reason = _applies_to_rules(subject, options) or _applies_to_plain_steps(subject, options)
        return reason or next(filter(None, (_modifier_obstacle(subject, name) for name in names)), None)

    return applies


def _modifier_obstacle(subject: OptimizerUnderTest, name: str) -> str | None:
    """Return why a modifier does not apply to a `RuleOptimizer`; None if it does."""
    if name not in inspect.signature(subject.cls).parameters:
        return f"it has no option {name!r}"
    signature = rule_signature(cast(type[RuleOptimizer], subject.cls).rule)
    if name in signature.hyperparameters + signature.flags:
        return f"its rule implements {name} itself"
    if name == "agc" and "sparse_only" in subject.capabilities:
        return "it takes sparse gradients only, which agc does not support"
    return None


def _defaults(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> dict[str, Any]:
    return subject.cls([_zeros(subject)], **options).defaults


def _zeros(subject: OptimizerUnderTest) -> Tensor:
    """Return a parameter with one element."""
    return torch.zeros(subject.fit_shape((1,)), requires_grad=True)


def _property(
    applies: Callable[[OptimizerUnderTest, Mapping[str, Any]], str | None] = _applies_always,
    *,
    every_engine: bool = True,
) -> Callable[[_Property], _Property]:
    """Register a property.

    Args:
        applies: returns None, or the reason why the property does not apply to an optimizer with some options.
        every_engine: whether the property is checked with every engine; else once for each case.
    """

    def add(run: _Property) -> _Property:
        _PROPERTIES[run.__name__.lstrip("_")] = _PropertyCheck(run, applies, every_engine)
        return run

    return add


def collect_checks(subject: OptimizerUnderTest) -> tuple[list[Check], dict[str, str]]:
    """Return the checks that apply to an optimizer, and for the other properties the reason."""
    checks: list[Check] = []
    inapplicable = dict(subject.unavailable_engines)
    for name, prop in _PROPERTIES.items():
        settings = (
            list(subject.cases_and_engines()) if prop.every_engine else [(case_label(c), c) for c in subject.cases]
        )
        for setting, options in settings:
            if reason := prop.reason_not_applicable(subject, options):
                inapplicable.setdefault(name, reason)
            else:
                checks.append(Check(f"{name}[{setting}]", functools.partial(prop.run, subject, options)))
    # A property that applies to some case is not inapplicable.
    for name in {check.id.partition("[")[0] for check in checks}:
        inapplicable.pop(name, None)
    return checks, inapplicable


def _with_auto_as_fallback(function: Callable[[dict[str, Any]], _T], options: dict[str, Any]) -> _T:
    """Call a function with the options; if their engine cannot take the tensors, again with engine `auto`."""
    try:
        return function(options)
    except EngineError:
        return function({**options, "engine": "auto"})


@_property(_applies_to_rules)
def _engine_agrees_with_loop(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """For each dtype, the result is close to engine `loop` in float64 with the same rounded inputs."""
    for dtype in DTYPES:
        run = Trajectory(subject, options, dtype=dtype).run_steps()
        oracle = Trajectory(subject, {**options, "engine": "loop"}, rounded=dtype).run_steps()
        size = max(float(p.detach().abs().max()) for p in oracle.params if p.numel())
        unit = torch.finfo(dtype).eps * (size + oracle.distance_moved)
        difference = max_difference(run.params, oracle.params) / unit
        assert difference <= ULPS_PER_STEP * STEPS, (
            f"in {dtype_name(dtype)} the difference from engine loop in float64 is {difference:.3g} units in the last "
            f"place after {STEPS} steps, allowed are {ULPS_PER_STEP * STEPS:.3g}"
        )


@_property(_applies_to_rules)
def _engine_report_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    run = Trajectory(subject, options)
    optimizer = cast(RuleOptimizer, run.optimizer)
    for ran in (False, True):
        reports = optimizer.engine_report()
        engines = sorted({report.engine for report in reports})
        assert engines == [options["engine"]], (
            f"engine_report() has the engines {engines}, requested was {options['engine']!r}"
        )
        assert {report.ran for report in reports} == {ran}, f"engine_report() has ran={not ran}, it must be ran={ran}"
        with_gradient = sum(run.gradient(0, i) is not None for i in range(len(run.params))) if ran else len(run.params)
        tensors = sum(report.tensors for report in reports)
        assert tensors == with_gradient, f"engine_report() has {tensors} tensors, it must be {with_gradient}"
        run.run_steps(0, 1)


@_property(_applies_to_plain_steps)
def _gradients_are_not_modified(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    run = Trajectory(subject, options)
    for step in range(3):
        run.set_gradients(step)
        before = {i: (p.grad, p.grad.clone()) for i, p in enumerate(run.params) if p.grad is not None}
        run.optimizer.step()
        for i, (grad, clone) in before.items():
            assert run.params[i].grad is grad, f"step {step} replaced the gradient of parameter {i}"
            assert_equal(f"the gradient before and after step {step}", [grad], [clone])


@_property()
def _parameters_without_gradient_do_not_change(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    run = Trajectory(subject, options)
    run.gradient = lambda step, index: None if index == 0 else Trajectory.gradient(run, step, index)  # type: ignore[method-assign]
    run.run_steps()
    assert_equal("a parameter without gradient", run.params[:1], run.initial[:1])
    state = run.optimizer.state.get(run.params[0])
    if not subject.capabilities & {"closure"}:
        assert not state, f"a parameter without gradient has state {sorted(state or ())}"


@_property()
def _resumed_equals_uninterrupted(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    uninterrupted = Trajectory(subject, options).run_steps()
    first = Trajectory(subject, options).run_steps(0, 5)
    saved = save_and_load(first.optimizer.state_dict())
    second = Trajectory(subject, options, params=[p.detach().clone().requires_grad_() for p in first.params])
    second.optimizer.load_state_dict(saved)
    second.run_steps(5)
    assert_equal("resumed and uninterrupted", second.params, uninterrupted.params)
    assert_equal(
        "state, resumed and uninterrupted", state_tensors(second.optimizer), state_tensors(uninterrupted.optimizer)
    )


@_property()
def _copies_continue_identically(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    uninterrupted = Trajectory(subject, options).run_steps()
    for how, duplicate in _COPIES.items():
        first = Trajectory(subject, options).run_steps(0, 5)
        # Only the optimizer is copied: its groups contain the copied parameters.
        optimizer = duplicate(first.optimizer)
        second = Trajectory(subject, options, params=[p for group in optimizer.param_groups for p in group["params"]])
        second.optimizer = optimizer
        second.run_steps(5)
        assert_equal(f"{how} and original", second.params, uninterrupted.params)
        for name in ("engine", "state_dtype") if subject.is_rule else ():
            copied, original = getattr(optimizer, name), getattr(first.optimizer, name)
            assert copied == original, f"{how} has {name} {copied!r}, the original has {original!r}"


_COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),  # noqa: S301  the data is trusted
}


@_property(_applies_to_option("maximize"))
def _maximize_equals_minimizing_the_negative(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    up = Trajectory(subject, {**options, "maximize": True}).run_steps()
    down = Trajectory(subject, {**options, "maximize": False})
    given = down.gradient
    down.gradient = lambda step, index: None if (g := given(step, index)) is None else -g  # type: ignore[method-assign]
    down.run_steps()
    assert_equal("maximizing f and minimizing -f", up.params, down.params)


@_property(_applies_to_common_weight_decay)
def _weight_decay_matches_formula(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    decay = 0.25
    decayed = Trajectory(subject, {**options, "weight_decay": decay}).run_steps()
    by_hand = Trajectory(subject, {**options, "weight_decay": 0.0})
    group = by_hand.optimizer.param_groups[0]
    decoupled, sign = bool(group.get("decoupled_weight_decay")), -1 if group["maximize"] else 1
    given = by_hand.gradient

    def gradient(step: int, index: int) -> Tensor | None:
        g, p = given(step, index), by_hand.params[index].detach()
        if g is not None and decoupled:
            p.mul_(1 - group["lr"] * decay)
        return g if g is None or decoupled else g + sign * decay * p

    by_hand.gradient = gradient  # type: ignore[method-assign]
    by_hand.run_steps()
    formula = "p scaled by 1 - lr * weight_decay first" if decoupled else "weight_decay * p added to the gradient"
    assert_close(f"weight_decay={decay} and {formula}", decayed.params, by_hand.params, decayed.distance_moved)


def _check_modifiers(subject: OptimizerUnderTest, options: dict[str, Any], *names: str) -> None:
    """Compare an optimizer with some modifiers with their definition."""
    modifiers = {name: MODIFIERS[name] for name in names}
    run = _with_auto_as_fallback(lambda options: modified_run(subject, options, modifiers), options)
    by_definition = run_by_definition(subject, options, modifiers)
    assert_close(
        f"{case_label(modifiers)} and its definition", run.params, by_definition.params, by_definition.distance_moved
    )
    states, expected = state_tensors(run.optimizer), state_tensors(by_definition.optimizer)
    size = max_difference(expected, [torch.zeros_like(t) for t in expected])
    assert_close(f"the states with {case_label(modifiers)} and by its definition", states, expected, size)


@_property(_applies_to_modifiers("clip_value"))
def _clip_value_matches_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The step is that of a gradient whose elements are limited."""
    _check_modifiers(subject, options, "clip_value")


@_property(_applies_to_modifiers("clip_norm"))
def _clip_norm_matches_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The step is that of a gradient whose norm is limited."""
    _check_modifiers(subject, options, "clip_norm")


@_property(_applies_to_modifiers("agc"))
def _agc_matches_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The step is that of a gradient whose norm is limited in proportion to that of the parameter."""
    _check_modifiers(subject, options, "agc")


@_property(_applies_to_modifiers("cautious"))
def _cautious_matches_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The updates that do not descend are omitted."""
    _check_modifiers(subject, options, "cautious")


@_property(_applies_to_modifiers())
def _all_modifiers_match_definition(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The modifiers are applied in the documented order."""
    _check_modifiers(subject, options, *(name for name in MODIFIERS if not _modifier_obstacle(subject, name)))


@_property(_applies_to_plain_steps)
def _lr_changes_take_effect(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A changed lr gives the same step as a new optimizer with this lr and the same state."""
    changed = Trajectory(subject, options).run_steps(0, LR_CHANGE_STEP + 1)
    first = Trajectory(subject, options).run_steps(0, LR_CHANGE_STEP)
    saved = copy.deepcopy(first.optimizer.state_dict())
    for group in saved["param_groups"]:
        group["lr"] /= 2
    new = Trajectory(subject, {**options, "lr": saved["param_groups"][0]["lr"]}, params=first.params)
    new.optimizer.load_state_dict(saved)
    new.set_gradients(LR_CHANGE_STEP)
    new.optimizer.step()
    assert_equal("an optimizer whose lr was changed and a new optimizer with this lr", changed.params, new.params)


@_property(_applies_to_plain_steps)
def _memory_layout_has_no_effect(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Transposed, channels_last, strided, 0-dim and empty tensors give the same results as contiguous ones."""
    shapes = [subject.fit_shape(shape) for shape in ((4, 3), (2, 3, 4, 4), (6,), (), (3, 0))]

    def with_layout(i: int, t: Tensor) -> Tensor:
        if i == 0:
            return t.t().contiguous().t()
        if i == 1:
            return t.contiguous(memory_format=torch.channels_last)
        return torch.stack([t, t], -1)[..., 0] if i == 2 else t

    plain = Trajectory(subject, options, shapes=shapes).run_steps()
    for what, params, gradients in (("parameters", True, False), ("gradients", False, True), ("both", True, True)):

        def run_with_layout(options: dict[str, Any], params: bool = params, gradients: bool = gradients) -> Trajectory:
            tensors = [seeded_randn(shape, i) for i, shape in enumerate(shapes)]
            tensors = [(with_layout(i, t) if params else t).requires_grad_() for i, t in enumerate(tensors)]
            run = Trajectory(subject, options, params=tensors)
            given = run.gradient

            def gradient(step: int, index: int) -> Tensor | None:
                g = given(step, index)
                return with_layout(index, g) if gradients and g is not None else g

            run.gradient = gradient  # type: ignore[method-assign]
            return run.run_steps()

        other = _with_auto_as_fallback(run_with_layout, options)
        assert_close(
            f"non-contiguous {what} and contiguous ones", other.params, plain.params, plain.distance_moved, 1e-12
        )


@_property(_applies_to_plain_steps)
def _capability_complex_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Declared: the result equals that of the real view, also with conjugated gradients. Not declared: step raises."""
    shapes = [(*subject.fit_shape(shape), 2) for shape in ((3, 2), (4,), ())]

    def complex_run(options: dict[str, Any], *, conjugated: bool) -> Trajectory:
        params = [torch.view_as_complex(seeded_randn(shape, i)).requires_grad_() for i, shape in enumerate(shapes)]
        run = Trajectory(subject, options, params=params)
        given = run.gradient

        def gradient(step: int, index: int) -> Tensor | None:
            g = given(step, index)
            return g.conj().resolve_conj().conj() if conjugated and g is not None else g

        run.gradient = gradient  # type: ignore[method-assign]
        return run.run_steps()

    def real_run() -> Trajectory:
        params = [seeded_randn(shape, i).requires_grad_() for i, shape in enumerate(shapes)]
        return Trajectory(subject, options, params=params).run_steps()

    real = real_run()
    if "complex" in subject.capabilities:
        for conjugated in (False, True):
            function = functools.partial(complex_run, conjugated=conjugated)
            views = [torch.view_as_real(p.detach()) for p in _with_auto_as_fallback(function, options).params]
            what = "complex parameters with conjugated gradients" if conjugated else "complex parameters"
            assert_close(f"{what} and their real view", views, real.params, real.distance_moved)
        return
    try:
        run = complex_run(options, conjugated=False)
    except Exception:
        return
    views = [torch.view_as_real(p.detach()) for p in run.params]
    is_correct = max_difference(views, real.params) <= 1e-11 * (real.distance_moved or 1.0)
    advice = "declare 'complex'" if is_correct else "the step is wrong: raise an error for them"
    raise AssertionError(f"it does not declare 'complex' but takes complex parameters: {advice}")


@_property(_applies_to_plain_steps)
def _capability_sparse_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Declared: rows in the gradient get the dense step. Not declared: step raises."""
    if options.get("weight_decay"):  # decays all rows, so it is excluded here
        options = {**options, "weight_decay": 0.0}
    _with_auto_as_fallback(functools.partial(_check_rows_in_gradient, subject), options)
    if "sparse" in subject.capabilities:
        _with_auto_as_fallback(functools.partial(_check_rows_not_in_gradient, subject), options)


def _check_rows_in_gradient(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> None:
    rows_in_gradient = [1, 4]
    values = seeded_randn((3, 3), 7)
    whole = seeded_randn((6, 3), 5).requires_grad_()
    rows = whole.detach()[rows_in_gradient].clone().requires_grad_()
    gradient = torch.sparse_coo_tensor(torch.tensor([[1, 4, 1]]), values, (6, 3), check_invariants=True)
    sparse, dense = (Trajectory(subject, options, params=[p]) for p in (whole, rows))

    def step() -> None:
        for _ in range(3):
            whole.grad = gradient.clone()
            rows.grad = subject.convert_gradient(torch.stack([values[0] + values[2], values[1]]))
            sparse.optimizer.step()
            dense.optimizer.step()

    if "sparse" not in subject.capabilities:
        assert _raises(step), (
            "it does not declare 'sparse' but takes sparse gradients: declare it, or raise an error for them"
        )
        return
    step()
    assert_close(
        "rows in the sparse gradient and the dense step on them",
        [whole[rows_in_gradient]],
        [rows],
        dense.distance_moved,
    )
    rest = [i for i in range(6) if i not in rows_in_gradient]
    assert_equal("rows that are not in the sparse gradient", [whole[rest]], [sparse.initial[0][rest]])


def _check_rows_not_in_gradient(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> None:
    """Rows that are not in the current gradient either never change, or change as with a dense gradient of zeros."""
    rows_by_step = ([1, 4], [0, 4], [2], [1, 2], [5, 0])
    runs = [Trajectory(subject, options, shapes=((6, 3),)) for _ in range(2)]
    sparse, dense = (run.params[0] for run in runs)
    unchanged = True
    for i, rows_in_gradient in enumerate(rows_by_step):
        gradient = torch.zeros(6, 3, dtype=torch.float64)
        gradient[rows_in_gradient] = seeded_randn((len(rows_in_gradient), 3), i)
        before = sparse.detach().clone()
        sparse.grad, dense.grad = gradient.to_sparse(1), subject.convert_gradient(gradient)
        for run in runs:
            run.optimizer.step()
        rest = [row for row in range(6) if row not in rows_in_gradient]
        unchanged = unchanged and torch.equal(sparse[rest], before[rest])
    if not unchanged:
        assert_close("sparse gradients and dense ones with zeros", [sparse], [dense], runs[1].distance_moved)


@_property(every_engine=False)
def _capability_matrix_only_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Declared: the constructor raises for vectors. Not declared: it takes them."""
    refused = _raises(lambda: subject.cls([torch.zeros(3, requires_grad=True)], **options))
    declared = "matrix_only" in subject.capabilities
    assert refused == declared, (
        f"it {'refuses' if refused else 'takes'} vectors, but 'matrix_only' is declared: {declared}"
    )


@_property(_applies_to_plain_steps)
def _capability_sparse_only_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Declared: step raises for dense gradients."""
    run = Trajectory(subject, options)
    for i, p in enumerate(run.params):
        p.grad = run.gradient(3, i)
    rejected = _raises(run.optimizer.step)
    declared = "sparse_only" in subject.capabilities
    assert rejected == declared, (
        f"it {'rejects' if rejected else 'takes'} dense gradients, but 'sparse_only' is declared: {declared}"
    )


@_property()
def _capabilities_modes_and_closure_are_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    run = Trajectory(subject, options)
    has_modes = all(callable(getattr(run.optimizer, mode, None)) for mode in ("train", "eval"))
    declared = "modes" in subject.capabilities
    assert has_modes == declared, (
        f"it {'has' if has_modes else 'lacks'} train() and eval(), but 'modes' is declared: {declared}"
    )
    run.set_gradients(0)
    for capability, what in {"closure": "without a closure", "create_graph": "with gradients without a graph"}.items():
        if capability in subject.capabilities:
            assert _raises(run.optimizer.step), f"it declares {capability!r} but its step succeeds {what}"


def _raises(function: Callable[[], object]) -> bool:
    try:
        function()
    except Exception:
        return True
    return False


@_property(_applies_to_plain_steps)
def _closure_is_called_once_before_the_update(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    run = Trajectory(subject, options)
    run.set_gradients(0)
    calls: list[tuple[bool, bool]] = []

    def closure() -> str:
        calls.append((torch.is_grad_enabled(), run.distance_moved == 0))
        return "the loss"

    with torch.no_grad():
        returned: Any = run.optimizer.step(closure)  # type: ignore[arg-type]
    assert len(calls) == 1, f"step(closure) called the closure {len(calls)} times"
    assert calls[0][0], "step(closure) called the closure with gradients disabled"
    assert calls[0][1], "step(closure) updated parameters before it called the closure"
    assert returned == "the loss", f"step(closure) returned {returned!r} instead of the closure's loss"


@_property(_applies_to_plain_steps)
def _added_groups_are_stepped(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A group that is added later steps as in a separate optimizer; the other groups step as without it."""
    alone = Trajectory(subject, options).run_steps()
    late = Trajectory(subject, options, shapes=((2, 2),))
    late.halve_lr()
    run = Trajectory(subject, options).run_steps(0, LR_CHANGE_STEP + 1)
    added = late.initial[0].clone().requires_grad_()
    run.optimizer.add_param_group({"params": [added], "lr": late.optimizer.param_groups[0]["lr"]})
    for step in range(LR_CHANGE_STEP + 1, STEPS):
        run.set_gradients(step)
        late.set_gradients(step)
        added.grad = cast(Tensor, late.params[0].grad).clone()
        run.optimizer.step()
        late.optimizer.step()
    if subject.is_rule and not _combines_parameters(cast(RuleOptimizer, run.optimizer)):
        assert_equal("parameters with and without an added group", run.params, alone.params)
        assert_equal("an added group and a separate optimizer", [added], late.params)
    else:
        assert max_difference([added], late.initial) > 0, "the parameters of an added group did not change"


def _combines_parameters(optimizer: RuleOptimizer) -> bool:
    """Whether the rule reduces over several parameters. A class without a rule may combine them too."""
    group = optimizer.param_groups[0]
    settings = dispatch.group_settings(optimizer.engine, group, optimizer._variant(group), optimizer.state_dtype)
    traced = trace(settings.variant, settings.lengths)
    return isinstance(traced, TracedRule) and traced.shared_reductions > 0


@_property(_applies_to_rules)
def _state_dtype_is_kept(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """bfloat16 parameters have float32 states, also after load_state_dict."""
    options = {**options, "state_dtype": torch.float32}
    run = Trajectory(subject, options, dtype=torch.bfloat16).run_steps(0, 5)
    other = Trajectory(subject, options, params=[p.detach().clone().requires_grad_() for p in run.params])
    other.optimizer.load_state_dict(save_and_load(run.optimizer.state_dict()))
    other.dtype = other.rounded = torch.bfloat16
    for when, optimizer in (("", run.optimizer), (" after load_state_dict", other.optimizer)):
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    assert value.dtype == torch.float32, f"{name} is {dtype_name(value.dtype)}{when}, must be float32"
    assert_equal("resumed and uninterrupted", other.run_steps(5).params, run.run_steps(5).params)


@_property(_applies_to_rules, every_engine=False)
def _invalid_options_are_rejected(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    run = Trajectory(subject, options)
    misspelt = run.optimizer.defaults.copy()
    for name in misspelt:
        if len(name) < 4:  # too short: a misspelling of it is not similar enough
            continue
        wrong = name[:1] + name[2] + name[1] + name[3:] if name[1] != name[2] else name + "x"
        for where, act in _ways_to_add_group(subject, options, {wrong: 0.1}):
            message = _hyperparameter_error(act)
            assert message is not None, f"{where} accepts the unknown option {wrong!r}"
            assert repr(name) in message, f"{where} rejects {wrong!r}, but the message lacks {name!r}: {message}"
    start = declared_ranges(subject.cls)["lr"].message_start
    for lr in (-1.0, math.nan, math.inf, -math.inf):
        for where, act in _ways_to_add_group(subject, options, {"lr": lr}):
            message = _hyperparameter_error(act)
            assert message is not None, f"{where} accepts lr={lr}"
            assert message.startswith(f"{start}: "), (
                f"{where} rejects lr={lr}, but the message does not begin with '{start}: ': {message}"
            )


def _hyperparameter_error(act: Callable[[], object]) -> str | None:
    """Call a function and return the message of a HyperparameterError; None if it raises none."""
    try:
        act()
    except HyperparameterError as error:
        return str(error)
    return None


def _ways_to_add_group(
    subject: OptimizerUnderTest, options: Mapping[str, Any], group: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the ways to pass a parameter group to an optimizer: a description, and a function that does it."""
    build = cast(Any, subject.cls)
    yield (
        "a group of the constructor",
        lambda: build([{"params": [_zeros(subject)], **group}], **options),
    )
    optimizer = build([_zeros(subject)], **options)
    yield (
        "add_param_group",
        lambda: optimizer.add_param_group({"params": [_zeros(subject)], **group}),
    )


@_property()
def _unreferenced_optimizer_is_freed(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The optimizer is freed by reference counting: a cycle would keep its memory until the garbage collector runs."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        run = Trajectory(subject, options).run_steps(0, 2)
        run.optimizer.load_state_dict(run.optimizer.state_dict())
        if subject.is_rule:
            cast(RuleOptimizer, run.optimizer).engine_report()
        optimizer, parameter = weakref.ref(run.optimizer), weakref.ref(run.params[0])
        del run
        assert optimizer() is None, "a reference cycle or a cache keeps the optimizer alive"
        assert parameter() is None, "a reference keeps the parameters alive after the optimizer was freed"
    finally:
        if was_enabled:
            gc.enable()


@_property()
def _quadratic_loss_decreases(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """30 steps that minimize x², or maximize -x², from 2 and -1, decrease x²."""
    x = torch.tensor([2.0, -1.0], dtype=torch.float64).view(subject.fit_shape((2,))).requires_grad_()
    optimizer = subject.cls([x], **options)
    sign = -1 if optimizer.param_groups[0].get("maximize") else 1
    start = float((x.detach() ** 2).sum())
    for _ in range(30):
        x.grad = subject.convert_gradient(sign * 2 * x.detach())
        take_step(subject, optimizer, [x], lambda: sign * (x**2).sum())
    end = float((x.detach() ** 2).sum())
    assert end < start, f"30 steps on x² change it from {start:.6g} to {end:.6g}; it must decrease"
