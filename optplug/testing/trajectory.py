"""An optimizer under test, and reproducible trajectories: the same arguments give the same gradients and steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from inspect import Parameter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optplug.config.construction import construct_optimizer
from optplug.config.form import BASE_KEY
from optplug.engines import PLANNED, engine_names
from optplug.errors import EngineError, one_line
from optplug.optim.combined import has_train_eval_modes
from optplug.optim.rule_optimizer import RuleOptimizer
from optplug.registry import Registration
from optplug.registry.signature import configurable_arguments, declared_cases, target_of
from optplug.registry.specs import LENGTH_ARGUMENTS, OptimizerSpec
from optplug.testing.checks import case_label, max_difference, registration_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STEPS = 10
RARE_STEPS = 12
"""Steps in which an optimizer that acts rarely, e.g. that accumulates gradients, must change a parameter."""

LR_CHANGE_STEP = 6
"""The learning rate is halved before this step."""

INTERRUPTIONS = ((0, 5), (5, 7))
"""The steps before each interruption: two numbers, since a state can be lost that every few steps is not needed."""

ULPS_PER_STEP = 4.0
"""Allowed error of an engine per step, in units in the last place of the largest parameter.

Rounding costs half a unit for storing the parameter and a few units for the states. A wrong formula costs thousands of
units in float64 and float32.
"""

SHAPES = ((5, 3), (7,), (), (0, 2))
LAYOUT_SHAPES = ((4, 3), (2, 3, 4, 4), (6,), (), (3, 0))
COMPLEX_SHAPES = ((3, 2), (4,), ())

FOUR_DIMENSIONS = "tensors of four dimensions"

NEEDS_CLOSURE = frozenset({"closure", "gradients_first"})
"""Capabilities of optimizers whose step needs a closure."""

NEEDS_LOSS = NEEDS_CLOSURE | {"create_graph"}
"""Capabilities of optimizers that cannot step with given gradients."""


@dataclass(frozen=True)
class OptimizerUnderTest:
    """An optimizer, and what the kit tests it with.

    Attributes:
        registration: the spec, and the plugin that registered it.
        cases: keyword arguments of the constructor, one mapping for each case.
        capabilities: the declared capabilities.
        engines: the engines that can step the first case; empty for a class that is not a `RuleOptimizer`.
        unavailable_engines: for each other engine, by `"engine NAME"`, the reason.
        dtype: the dtype of the parameters: float64 if the optimizer takes it.
        limits: for each kind of parameters that the optimizer does not take, by its name, the error.
    """

    registration: Registration
    cases: tuple[dict[str, Any], ...]
    capabilities: frozenset[str]
    engines: tuple[str, ...] = ()
    unavailable_engines: Mapping[str, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    limits: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, optimizer: str | type[Optimizer] | OptimizerSpec, engines: Iterable[str] | None = None
    ) -> OptimizerUnderTest:
        """Resolve a registered name, a class or a spec, and find the engines and parameters that it takes.

        Args:
            optimizer: the name, the class or the spec.
            engines: the engines to test. Default: all of this version.
        """
        registration = registration_of("optimizer", optimizer, Optimizer)
        capabilities = frozenset(registration.spec.capabilities)
        subject = cls(registration, _complete_cases(registration), capabilities)
        names = [*engine_names()[1:], *PLANNED] if engines is None else list(engines)
        return subject._with_engines(names) if subject.is_rule else subject._with_limits()

    @property
    def spec(self) -> OptimizerSpec:
        return cast(OptimizerSpec, self.registration.spec)

    @property
    def cls(self) -> Any:
        """The class, or the function that returns an optimizer."""
        return target_of(self.registration)

    @property
    def is_rule(self) -> bool:
        """Whether the class is a `RuleOptimizer`."""
        return isinstance(self.cls, type) and issubclass(self.cls, RuleOptimizer)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of three or more parameters: those of the spec, else a matrix, a vector, a scalar, an empty one."""
        return self.fit_shapes(SHAPES)

    def fit_shapes(self, shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the spec, at least three; without any, those of the given ones that it takes."""
        if self.spec.shapes:
            return (*self.spec.shapes,) * -(-3 // len(self.spec.shapes))
        taken = tuple(shape for shape in map(self.fit_shape, shapes) if _kind_of_shape(shape) not in self.limits)
        return taken if len(taken) >= 3 else (*taken, (5, 3), (4, 3), (3, 3))[:3]

    def fit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape that the optimizer takes: one that takes matrices only gets vectors as single columns."""
        missing = 2 - len(shape) if "matrix_only" in self.capabilities else 0
        return (*shape, *(1,) * missing)

    def convert_gradient(self, gradient: Tensor | None) -> Tensor | None:
        """Return a gradient in the layout that the optimizer takes: sparse if it takes sparse gradients only."""
        if gradient is None or "sparse_only" not in self.capabilities:
            return gradient
        return gradient.to_sparse(1) if gradient.dim() else gradient.to_sparse()

    def cases_and_engines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each case with each engine: a label, and the keyword arguments."""
        for case in self.cases:
            for engine in self.engines:
                yield f"{engine}-{case_label(case)}", {**case, "engine": engine}
            if not self.engines:
                yield case_label(case), case

    def build(self, params: Sequence[Any], options: Mapping[str, Any]) -> Optimizer:
        """Return the optimizer in train mode, built as for a configuration.

        Args:
            params: the parameters, or parameter groups.
            options: the keyword arguments of the constructor.
        """
        arguments = dict(options)
        if self.spec.base:
            arguments.setdefault(BASE_KEY, {"name": "sgd", "lr": 0.1})
        with reproducible(self, 0):
            optimizer = construct_optimizer(self.registration, params, arguments, module=_module_of(params))
        if has_train_eval_modes(optimizer):
            cast(Any, optimizer).train()
        return optimizer

    def declaring(self, *capabilities: str) -> OptimizerUnderTest:
        """Return the subject with further declared capabilities."""
        return self._with_capabilities(self.capabilities | {*capabilities})

    def not_declaring(self, *capabilities: str) -> OptimizerUnderTest:
        """Return the subject without some declared capabilities."""
        return self._with_capabilities(self.capabilities - {*capabilities})

    def _with_capabilities(self, capabilities: frozenset[str]) -> OptimizerUnderTest:
        registration = replace(self.registration, spec=replace(self.spec, target=self.cls, capabilities=capabilities))
        return replace(self, registration=registration, capabilities=capabilities)

    def _with_engines(self, names: Sequence[str]) -> OptimizerUnderTest:
        """Return the subject with those of the engines that can step the first case."""
        engines, unavailable = [], {}
        for engine in names:
            try:
                Trajectory(self, {**self.cases[0], "engine": engine}).run_steps(0, 1)
                engines.append(engine)
            except EngineError as error:
                unavailable[f"engine {engine}"] = str(error)
            except Exception:  # the checks report every other error
                engines.append(engine)
        return replace(self, engines=tuple(engines), unavailable_engines=unavailable)

    def _with_limits(self) -> OptimizerUnderTest:
        """Return the subject with the dtype and the kinds of parameters that the class takes."""
        case = self.cases[0]
        error = step_error(self, case)
        if error is None:
            return self._with_limit_of_dimensions()
        matrices = replace(self, limits=dict.fromkeys(("vectors", "scalars", "empty tensors"), ""))
        in_float32 = replace(matrices, dtype=torch.float32)
        found = next((each for each in (matrices, in_float32) if step_error(each, case) is None), None)
        if found is None:  # no step can be taken; a check reports it
            return self
        limits: dict[str, str] = {}
        if found is in_float32:
            limits["float64"] = _text(step_error(matrices, case))
        for kind in () if self.spec.shapes else matrices.limits:
            others = {other: "" for other in matrices.limits if other != kind}
            if error := step_error(replace(found, limits=others), case):
                limits[kind] = _text(error)
        return replace(found, limits=limits)._with_limit_of_dimensions()

    def _with_limit_of_dimensions(self) -> OptimizerUnderTest:
        """Return the subject without the tensors of four dimensions, if the class refuses them."""
        if self.spec.shapes:
            return self
        error = step_error(self, self.cases[0], ((2, 3, 4, 4), (4, 3), (2, 2)))
        return self if error is None else replace(self, limits={**self.limits, FOUR_DIMENSIONS: _text(error)})


def _module_of(params: Sequence[Any]) -> nn.Module:
    """Return a module that has the parameters, for an optimizer that takes a module or names."""
    module = nn.Module()
    tensors = [p for item in params for p in (item["params"] if isinstance(item, Mapping) else [item])]
    for i, p in enumerate(tensors):
        if isinstance(p, nn.Parameter):
            module.register_parameter(f"weight{i}", p)
    return module


def _complete_cases(registration: Registration) -> tuple[dict[str, Any], ...]:
    """Return the declared cases; each has a learning rate and lengths if the constructor requires them."""
    arguments = configurable_arguments(registration)
    required = [name for name, p in arguments.items() if p.default is Parameter.empty]
    values = {"lr": 1e-3, getattr(registration.spec, "length", ""): STEPS, **dict.fromkeys(LENGTH_ARGUMENTS, STEPS)}
    given = {name: values[name] for name in required if name in values}
    return tuple({**given, **case} for case in declared_cases(registration))


def _kind_of_shape(shape: Sequence[int]) -> str:
    if 0 in shape:
        return "empty tensors"
    return {0: "scalars", 1: "vectors", 4: FOUR_DIMENSIONS}.get(len(shape), "matrices")


def step_error(
    subject: OptimizerUnderTest, options: Mapping[str, Any], shapes: Sequence[tuple[int, ...]] | None = None
) -> Exception | None:
    """Return the exception that the construction or one of the first steps raises; None if there is none."""
    try:
        Trajectory(subject, options, shapes=shapes).run_steps(0, 4)
    except Exception as error:
        return error
    return None


def _text(error: Exception | None) -> str:
    return one_line(error) if error else ""


class Trajectory:
    """Parameters, generated gradients, and an optimizer that steps them.

    Args:
        subject: the optimizer under test.
        options: the keyword arguments of its constructor.
        dtype: the dtype of the parameters. Default: that of the optimizer under test.
        rounded: the dtype to which the initial parameters and the gradients are rounded. Default: `dtype`.
        shapes: the shapes of the parameters, as far as the optimizer takes them (`OptimizerUnderTest.fit_shape`).
            Default: `OptimizerUnderTest.shapes`.
        params: the parameters, in place of generated ones.
        groups: options of parameter groups, one for each parameter. Default: one group without options.
        seed: the seed of the random numbers that the optimizer draws.
    """

    def __init__(
        self,
        subject: OptimizerUnderTest,
        options: Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        rounded: torch.dtype | None = None,
        shapes: Sequence[tuple[int, ...]] | None = None,
        params: list[Tensor] | None = None,
        groups: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
    ) -> None:
        self.subject = subject
        self.seed = seed
        self.dtype = dtype or subject.dtype
        self.rounded = rounded or self.dtype
        self.params = params or [
            nn.Parameter(seeded_randn(shape, i).to(self.rounded).to(self.dtype))
            for i, shape in enumerate(subject.shapes if shapes is None else map(subject.fit_shape, shapes))
        ]
        self.initial = [p.detach().clone() for p in self.params]
        grouped = [{"params": [p], **group} for p, group in zip(self.params, groups, strict=bool(groups))]
        self.optimizer = subject.build(grouped or self.params, options)

    def gradient(self, step: int, index: int) -> Tensor | None:
        """Return the gradient of a parameter at a step.

        Parameter 1 has no gradient before step 3, and parameter 2 has none at step 4.
        """
        if (index == 1 and step < 3) or (index == 2 and step == 4):
            return None
        p = self.params[index]
        g = seeded_randn(p.shape if not p.is_complex() else (*p.shape, 2), 100 * (step + 1) + index)
        g = g.sign() * (0.5 + g.abs() % 1)  # moderate size, so that the square is in the range of float16
        g = g.to(self.rounded).to(p.dtype.to_real())
        return torch.view_as_complex(g) if p.is_complex() else g

    def set_gradients(self, step: int) -> None:
        """Set the gradients of all parameters to those of a step."""
        for i, p in enumerate(self.params):
            p.grad = self.subject.convert_gradient(self.gradient(step, i))

    def halve_lr(self) -> None:
        """Halve the learning rate of each group that has one."""
        self.scale_lr(0.5)

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate of each group that has one."""
        for group in self.optimizer.param_groups:
            if group.get("lr") is not None:
                group["lr"] = group["lr"] * factor

    def take_step(self, step: int) -> None:
        """Take a step with its gradients, and random numbers that depend on the step only."""
        self.set_gradients(step)
        with reproducible(self.subject, self.seed + step):
            take_step(self.subject, self.optimizer, self.params)

    def run_steps(self, start: int = 0, stop: int = STEPS) -> Trajectory:
        """Take the steps from `start` to `stop`, and halve the learning rate before `LR_CHANGE_STEP`."""
        for step in range(start, stop):
            if step == LR_CHANGE_STEP:
                self.halve_lr()
            self.take_step(step)
        return self

    @property
    def distance_moved(self) -> float:
        """The largest change of a parameter's element since the start."""
        return max_difference(self.params, self.initial)


def take_step(
    subject: OptimizerUnderTest,
    optimizer: Optimizer,
    params: Sequence[Tensor],
    loss: Callable[[], Tensor] | None = None,
    *,
    keeps_gradients: bool = False,
) -> None:
    """Take a step with the current gradients.

    An optimizer that needs a closure, or gradients with a graph, evaluates `loss`. Default: a quadratic function that
    has the current gradients, and a maximum in place of a minimum if the optimizer maximizes. A step with a closure
    begins without gradients, as in a training, unless `keeps_gradients`.
    """
    if not subject.capabilities & NEEDS_LOSS:
        optimizer.step()
        return
    with_gradient = [p for p in params if p.grad is not None]
    sign = -1 if optimizer.param_groups[0].get("maximize") else 1
    targets = [p.detach() - sign * cast(Tensor, p.grad) for p in with_gradient]

    def quadratic() -> Tensor:
        distances = [((p - t) ** 2).sum() for p, t in zip(with_gradient, targets, strict=True)]
        return sign * torch.stack(distances).sum() / 2

    def closure() -> Tensor:
        with torch.enable_grad():
            value = (loss or quadratic)()
            gradients = torch.autograd.grad(value, with_gradient, create_graph="create_graph" in subject.capabilities)
        for p, g in zip(with_gradient, gradients, strict=True):
            p.grad = g
        return value

    if subject.capabilities & NEEDS_CLOSURE:
        if not keeps_gradients:
            for p in params:
                p.grad = None
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        optimizer.step()


@contextmanager
def reproducible(subject: OptimizerUnderTest, seed: int) -> Iterator[None]:
    """Seed torch's random numbers, since some optimizers add noise, and do not compile, which takes minutes.

    The state of the random numbers is restored afterwards. Compilation is left as it is for a `RuleOptimizer`, since
    it compiles nothing, and torch's import of the compiler takes a second.
    """
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        with nullcontext() if subject.is_rule else torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.random.set_rng_state(state)


@functools.lru_cache(maxsize=4096)
def _cached_randn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded_randn(shape: Sequence[int], seed: int) -> Tensor:
    """Return standard normal float64 numbers, the same for the same shape and seed."""
    return _cached_randn(tuple(shape), seed).clone()
