"""Promises of every optimizer: steps, gradients, state, copies, memory."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optplug.config.form import BASE_KEY
from optplug.errors import ConformanceError, listing, one_line
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.registry.signature import accepts_any_argument, configurable_arguments, constructor_signature
from optplug.testing.checks import assert_close, assert_equal, max_difference, save_and_load, state_tensors
from optplug.testing.properties import (
    has_lr,
    has_option,
    promise,
    steps_with_given_gradients,
    steps_without_closure,
    with_auto_as_fallback,
)
from optplug.testing.trajectory import (
    INTERRUPTIONS,
    LAYOUT_SHAPES,
    RARE_STEPS,
    STEPS,
    OptimizerUnderTest,
    Trajectory,
    reproducible,
    seeded_randn,
    step_error,
    take_step,
)

_STATE = "keep all state in `self.state[p]` or in the parameter groups"


@promise(every_engine=False)
def steps_as_declared(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """It can be constructed and stepped in the declared way; parameters move and stay finite."""
    if error := step_error(subject, options):
        raise ConformanceError(f"raised {one_line(error)}", **_diagnosis(subject, options, error)) from error
    run = Trajectory(subject, options)
    assert isinstance(run.optimizer, Optimizer), (
        f"it is a {type(run.optimizer).__name__}, which is not a torch.optim.Optimizer"
    )
    steps = 0
    while steps < RARE_STEPS and not (steps >= 4 and run.distance_moved):
        run.run_steps(steps, steps + 1)
        steps += 1
    if not run.distance_moved:
        remedy = "let one of these steps change the parameters; declare `cases` with a shorter warmup or accumulation"
        raise ConformanceError(f"{steps} steps change no parameter", remedy=remedy)
    assert all(bool(p.isfinite().all()) for p in run.params), f"{steps} steps give parameters that are not finite"


def _diagnosis(subject: OptimizerUnderTest, options: dict[str, Any], error: Exception) -> dict[str, Any]:
    """Return whose fault it is that no step can be taken, and the remedy."""
    if remedy := _fault_of_the_spec(subject, options):
        return {"blame": "declaration", "remedy": remedy}
    for capability in sorted(subject.capabilities):
        if step_error(subject.not_declaring(capability), options) is None:
            return {"blame": "declaration", "remedy": f"do not declare {capability!r}"}
    candidates = ("closure", "gradients_first", "create_graph", "matrix_only", "sparse_only", "named_params", "module")
    for capability in candidates:
        declaring = subject.declaring(capability)
        if step_error(declaring, options) is None and not (
            capability == "closure" and reads_gradients_before_the_closure(declaring, options)
        ):
            return {"blame": "declaration", "remedy": f"declare {capability!r}"}
    if isinstance(error, TypeError) and "required" in str(error):
        return {"blame": "declaration", "remedy": "declare `cases` with values of the required arguments"}
    return {"remedy": "correct the class, or declare `cases`, `shapes` or capabilities with which it steps"}


def _fault_of_the_spec(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str:
    """Return what to correct in a spec that contradicts the class; empty without such a fault."""
    registration, spec = subject.registration, subject.spec
    arguments = configurable_arguments(registration)
    unknown = [name for name in options if name not in arguments and name not in (BASE_KEY, "engine")]
    if spec.base and spec.base not in constructor_signature(subject.cls).parameters:
        return f"let `base` of the spec name an argument of the constructor, which {spec.base!r} is not"
    if unknown and not accepts_any_argument(registration) and not spec.base:
        return f"remove from `cases` what the constructor does not take: {listing(unknown)}"
    try:
        build = registration.load_build()
    except Exception as failure:
        return f"correct `build` of the spec ({one_line(failure)})"
    if build is not None:
        try:
            inspect.signature(build).bind(subject.cls, [], **options)
        except TypeError as failure:
            return f"let `build` of the spec take the class, the parameters and all arguments ({failure})"
    return ""


def reads_gradients_before_the_closure(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> bool:
    """Return whether `step(closure)` depends on gradients that are there before it calls the closure."""
    without, given = (Trajectory(subject, options) for _ in range(2))
    for run in (without, given):
        for step in range(3):
            run.set_gradients(step)
            with reproducible(subject, step):
                take_step(subject, run.optimizer, run.params, keeps_gradients=run is given)
    return max_difference(without.params, given.params) > 0


@promise(
    every_engine=False, remedy="step vectors, scalars and empty tensors in float32 and float64, or declare `shapes`"
)
def all_parameters_are_stepped(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """It takes float64 parameters, vectors, scalars and empty tensors."""
    # A class that refuses vectors may declare 'matrix_only': see capability_matrix_only_is_correct.
    other = {"vectors", "scalars"} if "vectors" in subject.limits else set()
    refused = [f"{kind} ({error})" for kind, error in subject.limits.items() if kind not in other]
    assert not refused, f"it does not take {'; '.join(refused)}"


@promise(steps_with_given_gradients, remedy="compute with a copy of p.grad")
def gradients_are_not_modified(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A step leaves the gradients as they are."""
    run = Trajectory(subject, options)
    for step in range(3):
        run.set_gradients(step)
        before = {i: (p.grad, p.grad.clone()) for i, p in enumerate(run.params) if p.grad is not None}
        run.optimizer.step()
        for i, (grad, clone) in before.items():
            assert run.params[i].grad is grad, f"step {step} replaced the gradient of parameter {i}"
            assert_equal(f"the gradient before and after step {step}", [grad], [clone])


@promise(remedy="skip parameters whose grad is None")
def parameters_without_gradient_do_not_change(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A parameter that has had no gradient does not change."""
    run = Trajectory(subject, options)
    run.gradient = lambda step, index: None if index == 0 else Trajectory.gradient(run, step, index)  # type: ignore[method-assign]
    constructed = set(run.optimizer.state.get(run.params[0]) or ())
    run.run_steps()
    assert_equal("a parameter without gradient", run.params[:1], run.initial[:1])
    made = set(run.optimizer.state.get(run.params[0]) or ()) - constructed
    if not subject.capabilities & {"closure"}:
        assert not made, f"steps give a parameter without gradient the state {sorted(map(str, made))}"


@promise(steps_without_closure, remedy="skip parameters whose grad is None, also those that have state")
def frozen_parameters_do_not_change(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A parameter that is frozen during the training does not change any more."""
    run = Trajectory(subject, options).run_steps(0, 5)
    frozen = run.params[0].requires_grad_(False)
    run.gradient = lambda step, index: None if index == 0 else Trajectory.gradient(run, step, index)  # type: ignore[method-assign]
    before = frozen.detach().clone()
    run.run_steps(5)
    assert_equal("a frozen parameter", [frozen], [before])


@promise(remedy=_STATE)
def resumed_equals_uninterrupted(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A new optimizer that loads the state dict continues bit for bit as without the interruption."""
    uninterrupted = Trajectory(subject, options).run_steps()
    first = Trajectory(subject, options)
    for start, stop in INTERRUPTIONS:
        first.run_steps(start, stop)
        saved = save_and_load(first.optimizer.state_dict(), weights_only=False)
        second = Trajectory(subject, options, params=[nn.Parameter(p.detach().clone()) for p in first.params])
        second.optimizer.load_state_dict(saved)
        second.run_steps(stop)
        assert_equal(f"resumed after {stop} steps and uninterrupted", second.params, uninterrupted.params)
        states = [state_tensors(run.optimizer) for run in (second, uninterrupted)]
        assert len(states[0]) == len(states[1]), "the state of the resumed optimizer has another number of tensors"
        assert_equal(f"state, resumed after {stop} steps and uninterrupted", *states)


@promise(every_engine=False, remedy="put only tensors, numbers, text, lists and dicts into the state")
def state_dict_loads_safely(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """The state dict can be loaded with weights_only=True, torch's default."""
    save_and_load(Trajectory(subject, options).run_steps(0, 4).optimizer.state_dict())


@promise(remedy=f"{_STATE}, or define __getstate__ and __setstate__; keep no functions in them")
def copies_continue_identically(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Copies by deepcopy and by pickle continue bit for bit as the original."""
    uninterrupted = Trajectory(subject, options).run_steps()
    first = Trajectory(subject, options)
    for how, duplicate, start, stop in ((*copied, *steps) for steps in INTERRUPTIONS for copied in _COPIES.items()):
        first.run_steps(start if how == "deepcopy" else stop, stop)
        # Only the optimizer is copied: its groups contain the copied parameters.
        try:
            optimizer = duplicate(first.optimizer)
            params = [p for group in optimizer.param_groups for p in group["params"]]
            second = Trajectory(subject, options, params=params)
            second.optimizer = optimizer
            second.run_steps(stop)
        except Exception as error:
            raise AssertionError(f"{how} raised {one_line(error)}") from error
        assert_equal(f"{how} and original", second.params, uninterrupted.params)
        for name in ("engine", "state_dtype") if subject.is_rule else ():
            copied, original = getattr(optimizer, name), getattr(first.optimizer, name)
            assert copied == original, f"{how} has {name} {copied!r}, the original has {original!r}"


_COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),  # noqa: S301  the data is trusted
}


@promise(every_engine=False, remedy="keep no state in class attributes or globals; copy values given as arguments")
def instances_are_independent(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Two optimizers of the class that step in turns do so bit for bit as one alone, and keep their `defaults`."""
    alone = Trajectory(subject, options).run_steps()
    run, other = Trajectory(subject, options), Trajectory(subject, options)
    before = copy.deepcopy(getattr(run.optimizer, "defaults", {}))
    for step in range(STEPS):
        run.run_steps(step, step + 1)
        other.take_step(STEPS + step)
    assert_equal("an optimizer with another one beside it, and one alone", run.params, alone.params)
    after = getattr(run.optimizer, "defaults", {})
    changed = [key for key in before if key not in after or repr(before[key]) != repr(after[key])]
    assert not changed, f"steps change the attribute `defaults`: {listing(changed)}"


def _steps_parameters_apart(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    together, alone = (Trajectory(subject, options, shapes=subject.shapes[:n]) for n in (2, 1))
    for run in (together, alone):
        run.gradient = functools.partial(_gradient, run)  # type: ignore[method-assign]
        run.run_steps()
    apart = max_difference(together.params[:1], alone.params) <= 1e-6 * alone.distance_moved
    return None if apart else "the step of a parameter depends on other parameters"


def _gradient(run: Trajectory, step: int, index: int) -> Tensor:
    """Return a gradient, for each parameter in each step; it varies little, so that an estimate of the lr grows."""
    shape = run.params[index].shape
    return (seeded_randn(shape, index) + 0.1 * seeded_randn(shape, 100 * (step + 1) + index)).to(run.dtype)


@promise(
    steps_with_given_gradients,
    _steps_parameters_apart,
    every_engine=False,
    remedy="count the steps in `self.state[p]`",
)
def parameters_have_their_own_step_count(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A parameter whose first gradient comes late steps as in an optimizer of its own."""
    late, alone = (Trajectory(subject, options, shapes=subject.shapes[:n]) for n in (2, 1))
    late.gradient = lambda step, index: (  # type: ignore[method-assign]
        None if index == 0 and step < 3 else _gradient(late, step, index)
    )
    alone.gradient = functools.partial(_gradient, alone)  # type: ignore[method-assign]
    for step in range(STEPS):
        late.take_step(step)
        if step >= 3:
            alone.take_step(step)
    assert_close(
        "a parameter with a late first gradient, and it alone", late.params[:1], alone.params, alone.distance_moved
    )


@promise(has_option("maximize"), remedy="negate the gradient if `maximize` of the parameter group is set")
def maximize_equals_minimizing_the_negative(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Maximizing f equals minimizing -f."""
    up = Trajectory(subject, {**options, "maximize": True}).run_steps()
    down = Trajectory(subject, {**options, "maximize": False})
    given = down.gradient
    down.gradient = lambda step, index: None if (g := given(step, index)) is None else -g  # type: ignore[method-assign]
    down.run_steps()
    assert_equal("maximizing f and minimizing -f", up.params, down.params)


def _draws_no_random_numbers(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    if subject.is_rule:
        return None
    runs = [Trajectory(subject, options, seed=seed) for seed in (0, 1000)]
    for run in runs:
        run.run_steps(0, 3)
    differs = max_difference(runs[0].params, runs[1].params) > 0
    return "it draws random numbers, and their order is that of the memory" if differs else None


@promise(
    steps_with_given_gradients,
    _draws_no_random_numbers,
    remedy="use no `view` of p or p.grad, and no memory order; or use `reshape`",
)
def memory_layout_has_no_effect(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Transposed, channels_last, strided, 0-dim and empty tensors give the same results as contiguous ones."""
    shapes = subject.fit_shapes(LAYOUT_SHAPES)

    def with_layout(t: Tensor) -> Tensor:
        if t.dim() == 2:
            return t.t().contiguous().t()
        if t.dim() == 4:
            return t.contiguous(memory_format=torch.channels_last)
        return torch.stack([t, t], -1)[..., 0] if t.dim() else t

    plain = Trajectory(subject, options, shapes=shapes).run_steps()
    # A class may compute in float32. A fault of the layout exchanges elements, which changes more.
    limit = 1e-12 if subject.is_rule else 1e-4
    for what, params, gradients in (("parameters", True, False), ("gradients", False, True), ("both", True, True)):

        def run_with_layout(options: dict[str, Any], params: bool = params, gradients: bool = gradients) -> Trajectory:
            tensors = [seeded_randn(shape, i).to(subject.dtype) for i, shape in enumerate(shapes)]
            leaves: list[Tensor] = [nn.Parameter(with_layout(t) if params else t) for t in tensors]
            run = Trajectory(subject, options, params=leaves)
            given = run.gradient

            def gradient(step: int, index: int) -> Tensor | None:
                g = given(step, index)
                return with_layout(g) if gradients and g is not None else g

            run.gradient = gradient  # type: ignore[method-assign]
            return run.run_steps()

        other = with_auto_as_fallback(run_with_layout, options)
        assert_close(
            f"non-contiguous {what} and contiguous ones", other.params, plain.params, plain.distance_moved, limit
        )


@promise(
    steps_with_given_gradients,
    remedy="begin step(closure) with `with torch.enable_grad(): loss = closure()`, and return the loss; if the class "
    "cannot be changed, declare 'no_closure' or 'gradients_first'",
)
def closure_is_called_once_before_the_update(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """step(closure) calls the closure once, with gradients enabled and before the update, and returns its loss."""
    run = Trajectory(subject, options)
    run.set_gradients(0)
    calls: list[tuple[bool, bool]] = []

    def closure() -> Tensor:
        calls.append((torch.is_grad_enabled(), run.distance_moved == 0))
        return loss

    loss = torch.tensor(1.5)
    with torch.no_grad():
        returned: Any = run.optimizer.step(closure)  # type: ignore[arg-type]
    assert len(calls) == 1, f"step(closure) called the closure {len(calls)} times"
    assert calls[0][0], "step(closure) called the closure with gradients disabled"
    assert calls[0][1], "step(closure) updated parameters before it called the closure"
    assert returned is loss, f"step(closure) returned {returned!r} instead of the closure's loss"


def _gradients_are_without_graph(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    needs_graph = "create_graph" in subject.capabilities
    return "gradients with a graph keep the parameters alive" if needs_graph else None


@promise(
    _gradients_are_without_graph,
    remedy="keep no reference to the optimizer or to parameters in itself, its hooks, caches or globals",
)
def unreferenced_optimizer_is_freed(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
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


@promise(
    steps_with_given_gradients, every_engine=False, remedy="divide by no norm or square of gradients that can be 0"
)
def gradients_of_zero_keep_parameters_finite(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Gradients of zero, from the first step or later, give finite parameters."""
    for zeros in (range(3), range(2, 5)):
        run = Trajectory(subject, options)
        run.gradient = functools.partial(_gradient_or_zero, run, zeros)  # type: ignore[method-assign]
        for step in range(6):
            run.take_step(step)
            finite = all(bool(p.isfinite().all()) for p in run.params)
            assert finite, f"step {step} gives parameters that are not finite; gradients were 0 in step {zeros[0]}"


def _gradient_or_zero(run: Trajectory, zeros: range, step: int, index: int) -> Tensor:
    gradient = _gradient(run, step, index)
    return torch.zeros_like(gradient) if step in zeros else gradient


@promise(steps_with_given_gradients, every_engine=False, remedy="return if no parameter has a gradient")
def steps_without_gradients_succeed(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A step before any gradient is computed raises no error, and changes no parameter."""
    run = Trajectory(subject, options)
    run.optimizer.step()
    assert_equal("parameters before and after a step without gradients", run.params, run.initial)


@promise(
    every_engine=False,
    remedy="use `with torch.no_grad()`, `dtype=` and a torch.Generator in place of global settings",
)
def global_state_is_kept(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """A step keeps the grad mode and the default dtype, and does not seed torch's random numbers."""
    run, dtype, drawn = Trajectory(subject, options), torch.get_default_dtype(), []
    for step in range(2):
        run.set_gradients(step)
        with torch.enable_grad(), reproducible(subject, step):
            take_step(subject, run.optimizer, run.params)
            grad_mode, dtype_after = torch.is_grad_enabled(), torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            drawn.append(float(torch.rand((), dtype=torch.float64)))
        assert grad_mode, "a step leaves gradients disabled"
        assert dtype_after == dtype, f"a step changes torch's default dtype from {dtype} to {dtype_after}"
    assert drawn[0] != drawn[1], "a step seeds torch's random numbers: those after it are always the same"


@promise(remedy="check the sign of the update")
def quadratic_loss_decreases(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """30 steps that minimize x², or maximize -x², from 2 and -1, decrease x²."""
    _, start, end = minimized_quadratic(subject, options)
    assert end < start, f"30 steps on x² change it from {start:.6g} to {end:.6g}; it must decrease"


def minimized_quadratic(subject: OptimizerUnderTest, options: dict[str, Any]) -> tuple[Trajectory, float, float]:
    """Take 30 steps on x², and return the trajectory, and x² at its start and end.

    If they do not decrease x², they are taken with an lr that is 100 times smaller: that of the case may be too large.
    """
    first = _quadratic_steps(subject, options, 1.0)
    if first[2] < first[1] or has_lr(subject, options):
        return first
    smaller = _quadratic_steps(subject, options, 0.01)
    return smaller if smaller[2] < smaller[1] else first


def _quadratic_steps(
    subject: OptimizerUnderTest, options: dict[str, Any], factor: float
) -> tuple[Trajectory, float, float]:
    shape = subject.fit_shapes(((2,), (2,), (2,)))[0]
    x = torch.full(shape, 2.0, dtype=subject.dtype)
    x.view(-1)[1::2] = -1.0
    run = Trajectory(subject, options, params=[nn.Parameter(x)])
    p = run.params[0]
    sign = -1 if run.optimizer.param_groups[0].get("maximize") else 1
    if factor != 1:
        run.scale_lr(factor)
    start = float((p.detach() ** 2).sum())
    for step in range(30):
        p.grad = subject.convert_gradient(sign * 2 * p.detach())
        with reproducible(subject, step):
            take_step(subject, run.optimizer, [p], lambda: sign * (p**2).sum())
    return run, start, float((p.detach() ** 2).sum())
