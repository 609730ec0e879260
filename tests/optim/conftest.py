"""Fixtures of the tests of the contract of `torch.optim.Optimizer`, which every optimizer of optplug must fulfil.

torch's optimizer of the same name is the reference. The mark `optimizers(selection)` runs a test for each optimizer in
the selection, as its argument `name`. With `engines=True` it runs once per engine too, as its argument `engine`, which
is None for an optimizer without engines.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from optplug.registry.plugin_registry import unregistered
from optplug.testing.checks import assert_close, assert_equal, state_tensors
from optplug.testing.trajectory import SHAPES, OptimizerUnderTest, Trajectory, seeded_randn
from support import first_party

FULL_STATE_OPTIONS: dict[str, dict[str, Any]] = {
    "adadelta": {"lr": 0.5, "weight_decay": 0.05},
    "adabelief": {"lr": 0.1, "weight_decay": 0.05},
    "adafactor": {"lr": 0.1, "weight_decay": 0.05},
    "adagrad": {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05},
    "adam": {"lr": 0.1, "amsgrad": True, "weight_decay": 0.05},
    "adan": {"lr": 0.1, "weight_decay": 0.05},
    "ademamix": {"lr": 0.1, "weight_decay": 0.05, "t_alpha_beta3": 20.0},
    "adopt": {"lr": 0.1, "weight_decay": 0.05},
    "adamax": {"lr": 0.1, "weight_decay": 0.05},
    "adamw": {"lr": 0.1, "amsgrad": True},
    "asgd": {"lr": 0.05, "t0": 2.0, "alpha": 0.5, "lambd": 0.05, "weight_decay": 0.05},
    "lbfgs": {"lr": 0.5, "max_iter": 3, "history_size": 3},
    "lamb": {"lr": 0.05, "weight_decay": 0.05},
    "lars": {"lr": 0.5, "trust_coefficient": 0.1, "weight_decay": 0.05},
    "lion": {"lr": 0.05, "weight_decay": 0.05},
    "muon": {"lr": 0.05, "ns_dtype": "float32"},
    "nadam": {"lr": 0.05, "momentum_decay": 0.1, "weight_decay": 0.05},
    "prodigy": {"lr": 0.5, "d0": 0.1, "weight_decay": 0.05},
    "radam": {"lr": 0.05, "weight_decay": 0.05, "betas": (0.9, 0.9)},
    "rmsprop": {"lr": 0.05, "momentum": 0.9, "centered": True, "weight_decay": 0.05},
    "rprop": {"lr": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05},
    "schedule_free_adamw": {"lr": 0.1, "weight_decay": 0.05, "warmup_steps": 3},
    "schedule_free_sgd": {"lr": 0.1, "weight_decay": 0.05, "warmup_steps": 3},
    "signum": {"lr": 0.05, "weight_decay": 0.05},
    # The eigenvectors of a larger side than the rank of a gradient depend on rounding.
    "soap": {"lr": 0.1, "max_precondition_dim": 3, "precondition_frequency": 2},
    "sparse_adam": {"lr": 0.1},
}
"""Options with which every optimizer has all its states, and changes the parameters considerably."""

SHAPES_WITH_TORCH = {"adafactor": ((5, 3), (7,), (), (2, 4, 3))}
"""Shapes without empty ones where torch raises ZeroDivisionError for them."""


@functools.cache
def optimizers_under_test() -> dict[str, OptimizerUnderTest]:
    return {name: OptimizerUnderTest.of(name) for name in first_party("optimizer")}


@functools.cache
def classes_of_torch() -> dict[str, type]:
    # torch's Muon always computes in bfloat16; tests/plugins compares with it.
    classes = {name: subject.cls.__name__ for name, subject in optimizers_under_test().items() if name != "muon"}
    return {name: vars(torch.optim)[cls] for name, cls in classes.items() if cls in vars(torch.optim)}


def shares_states(name: str) -> bool:
    """Whether an optimizer has states that all parameters share."""
    return any(state.shared for state in getattr(optimizers_under_test()[name].cls, "states", ()))


def select(selection: str) -> list[str]:
    """Return the names of a selection: `all`, or words that each exclude some, as in `torch without_closure`.

    `torch` leaves those that torch has too, `without_closure` those whose step needs no closure, and `dense` those
    that also take dense gradients, `independent` those whose step of a parameter depends on no other parameter.
    """
    words, names = set(selection.split()), list(optimizers_under_test())
    excluded: set[str] = set()
    if words & {"without_closure", "dense"}:
        excluded.add("closure")
    if "dense" in words:
        excluded.add("sparse_only")
    return [
        name
        for name in names
        if not optimizers_under_test()[name].capabilities & excluded
        and ("torch" not in words or name in classes_of_torch())
        and ("independent" not in words or not shares_states(name))
    ]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "optimizers(selection, engines=False): runs for each optimizer of the selection")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("optimizers")
    if mark is None:
        return
    names = select(mark.args[0])
    if mark.kwargs.get("engines"):
        tested_optimizers = optimizers_under_test()
        pairs = [(name, engine) for name in names for engine in tested_optimizers[name].engines or (None,)]
        metafunc.parametrize(("name", "engine"), pairs)
    else:
        metafunc.parametrize("name", names)


class OptimizerRun(Trajectory):
    """A trajectory that can be compared with others."""

    def assert_equals(self, other: Trajectory, what: str = "") -> None:
        """Assert that parameters and states are equal bit for bit."""
        assert_equal(what, self.params, other.params)
        assert_equal(f"state, {what}", state_tensors(self.optimizer), state_tensors(other.optimizer))

    def assert_close_to(self, other: Trajectory, limit: float = 1e-11) -> None:
        """Assert that the parameters are close to those of torch's optimizer, which must have moved."""
        assert_close("ours and torch's", self.params, other.params, other.distance_moved, limit)
        assert other.distance_moved > 0


@pytest.fixture(scope="session")
def tested_optimizers() -> dict[str, OptimizerUnderTest]:
    """The optimizers under test by name."""
    return optimizers_under_test()


@pytest.fixture(scope="session")
def torch_classes() -> dict[str, type]:
    """torch's class of the same name, for each optimizer that torch has."""
    return classes_of_torch()


@pytest.fixture(scope="session")
def full_state_options() -> dict[str, dict[str, Any]]:
    """The options that `make_run` uses by default; see `FULL_STATE_OPTIONS`."""
    return FULL_STATE_OPTIONS


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Any]:
    """Makes an `OptimizerRun`.

    Args:
        name: name of the optimizer.
        params: the parameters. Default: generated ones.
        groups: the first argument of the constructor. Default: `params`.
        of: `"optplug"`, or `"torch"` for torch's optimizer of the same name.
        options: hyperparameters, which override `FULL_STATE_OPTIONS`. `engine=None` is left out.
    """

    def make(
        name: str, params: list[Tensor] | None = None, groups: Any = None, *, of: str = "optplug", **options: Any
    ) -> OptimizerRun:
        subject = optimizers_under_test()[name]
        if of == "torch":
            cls = classes_of_torch()[name]
            has_foreach = "foreach" in cls([torch.zeros(1, requires_grad=True)]).defaults
            subject, options = (
                replace(subject, registration=unregistered("optimizer", cls)),
                {**options, **({"foreach": False} if has_foreach else {})},
            )
        options = {**FULL_STATE_OPTIONS.get(name, {}), **options}
        options = {key: value for key, value in options.items() if (key, value) != ("engine", None)}
        run = OptimizerRun(subject, options, params=params, shapes=SHAPES_WITH_TORCH.get(name, SHAPES))
        if groups is not None:
            run.optimizer = subject.cls(groups, **options)
        return run

    return make


@pytest.fixture
def make_params(request: pytest.FixtureRequest) -> Callable[..., list[Tensor]]:
    """Makes float64 parameters of the given shapes; by default a matrix, a vector and another matrix.

    For the optimizer under test the shapes are fitted (`OptimizerUnderTest.fit_shape`).
    """
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    subject = optimizers_under_test().get(parameters.get("name", ""))

    def make(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
        fitted = [subject.fit_shape(s) if subject else s for s in shapes or ((4, 3), (5,), (2, 2))]
        return [seeded_randn(shape, i).to(dtype).requires_grad_() for i, shape in enumerate(fitted)]

    return make


@pytest.fixture(scope="session")
def outcome() -> Callable[[Callable[[], Any]], Any]:
    """Calls a function, and returns its result, or the type and the message of its exception."""

    def call(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            return type(error), str(error)

    return call


@pytest.fixture(scope="session")
def assert_error_like_torch() -> Callable[[Any, Any], None]:
    """Asserts of two outcomes that both are errors, the first of torch's type and with torch's message at the start."""

    def check(ours: Any, theirs: Any) -> None:
        assert issubclass(ours[0], theirs[0])
        assert ours[1].startswith(theirs[1])

    return check


@pytest.fixture(autouse=True)
def float64_scalar_states_of_nadam(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch uses the rounded product of the momenta, optplug rounds only what it stores; in float64 they are equal."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    before = torch.get_default_dtype()
    if parameters.get("name") == "nadam":
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """Runs the module in one thread: the tensors are small, and threads of parallel test runs slow each other down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gc_disabled() -> Iterator[None]:
    """Disables the garbage collector: objects in reference cycles are not freed."""
    was_enabled = gc.isenabled()
    gc.disable()
    yield
    if was_enabled:
        gc.enable()
