"""Promises that the declared capabilities are correct."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optplug.errors import ConformanceError, one_line
from optplug.optim.adapted_step import original_class
from optplug.optim.combined import has_train_eval_modes
from optplug.registry.signature import configurable_arguments, constructor_signature
from optplug.testing.checks import assert_close, assert_equal, max_difference
from optplug.testing.properties import parameter, promise, raises, steps_with_given_gradients, with_auto_as_fallback
from optplug.testing.steps import reads_gradients_before_the_closure
from optplug.testing.trajectory import COMPLEX_SHAPES, OptimizerUnderTest, Trajectory, seeded_randn


def _false_declaration(message: object, capability: str) -> ConformanceError:
    """Return the error about a capability that is declared, and that the class does not have."""
    remedy = f"do not declare {capability!r}, or correct the class"
    return ConformanceError(f"it declares {capability!r}, but {message}", blame="declaration", remedy=remedy)


def _missing_declaration(message: str, capability: str) -> ConformanceError:
    return ConformanceError(message, blame="declaration", remedy=f"declare {capability!r}")


def _assert_declaration(capability: str, test: Callable[[], object]) -> None:
    """Run the test of a declared capability, and raise its error as that of a false declaration."""
    try:
        test()
    except AssertionError as error:
        raise _false_declaration(error, capability) from error
    except Exception as error:
        raise _false_declaration(f"it raised {type(error).__name__}: {error}", capability) from error


@promise(steps_with_given_gradients)
def capability_complex_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Declared: complex parameters step as their real view. Not declared: it raises."""
    run = functools.partial(_run_on_complex, subject)
    if "complex" in subject.capabilities:
        real = _run_on_real_view(subject, options)
        _assert_declaration("complex", lambda: _compare(with_auto_as_fallback(run, options), real))
        return
    try:
        made, real = run(options), _run_on_real_view(subject, options)
    except Exception:
        return  # the class refuses them, or the shapes of their real views
    if raises(lambda: _compare(made, real)):
        raise ConformanceError(
            "it takes complex parameters without an error, and its steps are wrong",
            remedy="raise an exception for complex parameters, or compute with torch.view_as_real",
        )
    raise _missing_declaration("it takes complex parameters, but 'complex' is not declared", "complex")


def _declares_complex(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    return None if "complex" in subject.capabilities else "it takes real parameters only"


@promise(steps_with_given_gradients, _declares_complex, remedy="use p.grad.resolve_conj()")
def conjugated_gradients_are_stepped(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Complex gradients that torch has not conjugated yet step as their values."""
    real = _run_on_real_view(subject, options)

    def check(conjugated: bool) -> None:
        _compare(
            with_auto_as_fallback(functools.partial(_run_on_complex, subject, conjugated=conjugated), options), real
        )

    try:
        check(conjugated=True)
    except Exception:
        if not raises(lambda: check(conjugated=False)):  # else capability_complex_is_correct reports it
            raise


def _run_on_real_view(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> Trajectory:
    return Trajectory(subject, options, params=[nn.Parameter(t) for t in _real_views(subject)]).run_steps()


def _real_views(subject: OptimizerUnderTest) -> list[Tensor]:
    shapes = subject.fit_shapes(COMPLEX_SHAPES)
    return [seeded_randn((*shape, 2), i).to(subject.dtype) for i, shape in enumerate(shapes)]


def _run_on_complex(subject: OptimizerUnderTest, options: Mapping[str, Any], *, conjugated: bool = False) -> Trajectory:
    run = Trajectory(subject, options, params=[nn.Parameter(torch.view_as_complex(t)) for t in _real_views(subject)])
    given = run.gradient

    def gradient(step: int, index: int) -> Tensor | None:
        g = given(step, index)
        return g.conj().resolve_conj().conj() if conjugated and g is not None else g

    run.gradient = gradient  # type: ignore[method-assign]
    return run.run_steps()


def _compare(made: Trajectory, real: Trajectory) -> None:
    views = [torch.view_as_real(p.detach()) for p in made.params]
    assert_close("complex parameters and their real view", views, real.params, real.distance_moved)


@promise(steps_with_given_gradients)
def capability_sparse_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Declared: rows in a sparse gradient get the dense step. Not declared: it raises."""
    takes_decay = not subject.is_rule and "weight_decay" in configurable_arguments(subject.registration)
    if takes_decay or options.get("weight_decay"):  # decays all rows, so it is excluded here
        options = {**options, "weight_decay": 0.0}

    def check() -> None:
        with_auto_as_fallback(functools.partial(_check_rows_in_gradient, subject), options)
        with_auto_as_fallback(functools.partial(_check_rows_not_in_gradient, subject), options)

    if "sparse" in subject.capabilities:
        _assert_declaration("sparse", check)
    elif not raises(lambda: _step_sparse(subject, options)):
        if raises(check):
            raise ConformanceError(
                "it takes sparse gradients without an error, and its steps are wrong",
                remedy="raise an exception for sparse gradients",
            )
        raise _missing_declaration("it takes sparse gradients, but 'sparse' is not declared", "sparse")


def _step_sparse(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> None:
    """Take steps with sparse gradients."""
    run = Trajectory(subject, options, params=[nn.Parameter(seeded_randn((6, 3), 5).to(subject.dtype))])
    for step in range(3):
        run.params[0].grad = seeded_randn((6, 3), step).to(subject.dtype).to_sparse(1)
        run.optimizer.step()


def _check_rows_in_gradient(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> None:
    rows_in_gradient = [1, 4]
    values = seeded_randn((3, 3), 7).to(subject.dtype)
    whole = nn.Parameter(seeded_randn((6, 3), 5).to(subject.dtype))
    rows = nn.Parameter(whole.detach()[rows_in_gradient].clone())
    gradient = torch.sparse_coo_tensor(torch.tensor([[1, 4, 1]]), values, (6, 3), check_invariants=True)
    sparse, dense = (Trajectory(subject, options, params=[p]) for p in (whole, rows))
    for _ in range(3):
        whole.grad = gradient.clone()
        rows.grad = subject.convert_gradient(torch.stack([values[0] + values[2], values[1]]))
        sparse.optimizer.step()
        dense.optimizer.step()
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
        gradient = torch.zeros(6, 3, dtype=subject.dtype)
        gradient[rows_in_gradient] = seeded_randn((len(rows_in_gradient), 3), i).to(subject.dtype)
        before = sparse.detach().clone()
        sparse.grad, dense.grad = gradient.to_sparse(1), subject.convert_gradient(gradient)
        for run in runs:
            run.optimizer.step()
        rest = [row for row in range(6) if row not in rows_in_gradient]
        unchanged = unchanged and torch.equal(sparse[rest], before[rest])
    if not unchanged:
        assert_close("sparse gradients and dense ones with zeros", [sparse], [dense], runs[1].distance_moved)


def _shapes_are_not_declared(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    is_declared = subject.spec.shapes and "matrix_only" not in subject.capabilities
    return "the spec declares the shapes that it takes" if is_declared else None


@promise(_shapes_are_not_declared, every_engine=False)
def capability_matrix_only_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Declared: it raises for vectors. Not declared: it takes them."""
    vectors: list[Tensor] = [nn.Parameter(seeded_randn((3,), i).to(subject.dtype)) for i in range(3)]
    refused = raises(lambda: Trajectory(subject, options, params=vectors).run_steps(0, 1))
    if "matrix_only" in subject.capabilities and not refused:
        raise _false_declaration("it takes vectors", "matrix_only")
    if refused and "matrix_only" not in subject.capabilities:
        raise _missing_declaration("it refuses vectors, but 'matrix_only' is not declared", "matrix_only")


@promise(steps_with_given_gradients)
def capability_sparse_only_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """Declared: step raises for dense gradients. Not declared: it takes them."""
    run = Trajectory(subject, options)
    for i, p in enumerate(run.params):
        p.grad = run.gradient(3, i)
    refused = raises(run.optimizer.step)
    if "sparse_only" in subject.capabilities and not refused:
        raise _false_declaration("it takes dense gradients", "sparse_only")
    if refused and "sparse_only" not in subject.capabilities:
        raise _missing_declaration("it refuses dense gradients, but 'sparse_only' is not declared", "sparse_only")


@promise(every_engine=False)
def capability_modes_is_correct(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """'modes' is declared if and only if the optimizer has train() and eval()."""
    has_modes = has_train_eval_modes(Trajectory(subject, options).optimizer)
    if "modes" in subject.capabilities and not has_modes:
        raise _false_declaration("it lacks train() and eval()", "modes")
    if has_modes and "modes" not in subject.capabilities:
        raise _missing_declaration("it has train() and eval(), but 'modes' is not declared", "modes")


def _declares_needs(subject: OptimizerUnderTest, options: Mapping[str, Any]) -> str | None:
    declares = subject.capabilities & {"closure", "create_graph", "gradients_first", "no_closure"}
    return None if declares else "it declares no need of a closure or a graph"


@promise(_declares_needs, every_engine=False)
def declared_needs_are_real(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """'closure', 'create_graph', 'gradients_first' and 'no_closure' are declared only if the steps need it."""
    _closure_is_used_as_declared(subject, options)
    run = Trajectory(subject, options)
    run.set_gradients(3)
    step = functools.partial(original_class(run.optimizer).step, run.optimizer)
    for capability, without in {"closure": "without a closure", "create_graph": "without a graph"}.items():
        if capability in subject.capabilities and not raises(step):
            raise _false_declaration(f"its step succeeds {without}", capability)


def _closure_is_used_as_declared(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    if "closure" in subject.capabilities and reads_gradients_before_the_closure(subject, options):
        message = "it declares 'closure', but step(closure) uses gradients before it calls the closure"
        remedy = "declare 'gradients_first' in place of 'closure'"
        raise ConformanceError(message, blame="declaration", remedy=remedy)
    for capability in ("gradients_first", "no_closure"):
        if capability in subject.capabilities and _calls_the_closure_as_torch_does(subject, options):
            raise _false_declaration("step(closure) calls it as torch's optimizers do", capability)


def _calls_the_closure_as_torch_does(subject: OptimizerUnderTest, options: dict[str, Any]) -> bool:
    """Whether step(closure) of the class itself equals a step with given gradients."""
    class_itself: Any = original_class(Trajectory(subject, options).optimizer)
    if len(inspect.signature(class_itself.step).parameters) == 1:
        return False
    itself = subject.not_declaring("gradients_first", "no_closure")
    with_closure, given = (Trajectory(itself, options) for _ in range(2))
    calls: list[bool] = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        with_closure.set_gradients(3)
        return torch.tensor(1.5)

    try:
        with torch.no_grad():
            with_closure.optimizer.step(closure)  # type: ignore[arg-type]
            given.set_gradients(3)
            given.optimizer.step()
    except Exception:
        return False
    is_equal = max_difference(with_closure.params, given.params) == 0
    return calls == [True] and is_equal and given.distance_moved > 0


@promise(every_engine=False)
def spec_agrees_with_the_class(subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    """'fused' is declared for rules only; `length` and `arguments` of the spec are arguments of the constructor."""
    if ("fused" in subject.capabilities) != subject.is_rule:
        if subject.is_rule:
            raise _missing_declaration("it is a RuleOptimizer, but 'fused' is not declared", "fused")
        raise _false_declaration("it is no RuleOptimizer", "fused")
    registration, spec = subject.registration, subject.spec
    known = {*configurable_arguments(registration)} - {*spec.arguments}
    takes_more = any(p.kind is p.VAR_KEYWORD for p in constructor_signature(subject.cls).parameters.values())
    if spec.length and not (takes_more or spec.length in {*known, *spec.arguments}):
        raise ConformanceError(
            f"`length` is {spec.length!r}, which is no argument of the constructor",
            blame="declaration",
            remedy="let `length` name the argument that is the number of steps, or remove it",
        )
    for name, default in spec.arguments.items():
        try:
            subject.build([parameter(subject)], {**options, name: options.get(name, default)})
        except TypeError as error:
            raise ConformanceError(
                f"`arguments` has {name!r}, which the constructor refuses: {one_line(error)}",
                blame="declaration",
                remedy=f"remove {name!r} from `arguments` of the spec",
            ) from error
