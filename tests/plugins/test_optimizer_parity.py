"""The optimizers compared with torch's classes, for all options.

`python tests/plugins/test_optimizer_parity.py` prints the largest differences. The difference of the parameters is
max|a - b| / max|moved| after 50 steps, with a late gradient, a missing gradient, and a change of the learning rate. The
difference of a state is max|a - b| / max|b|: for example, ASGD's average does not affect the parameters. Sparse
gradients and SparseAdam are in tests/optim/test_sparse.py.

Engine `numba` adds products without rounding them first, so its results are slightly more accurate than torch's. Its
float32 results are therefore compared with torch's float64 results: their error must not be larger than that of torch's
float32 results.

NAdam's state `mu_product` is float32. torch uses the rounded product in the same step; optplug rounds only what it
stores. So NAdam is compared with scalar states in float64, the default dtype of its tests. With float32 states the
difference is at most 1e-7.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

import optplug
from optplug.testing.trajectory import OptimizerUnderTest

sys.path.append(str(Path(__file__).parents[1]))  # when this file is run as a program
from parity import Trajectory, noise, option_combinations, options_id
from support import TORCH as INSTALLED
from support import since_torch, torch_has

ENGINES = ("loop", "foreach", "numba")
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5}
TORCH = {
    "adafactor": torch.optim.Adafactor,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adamax": torch.optim.Adamax,
    "asgd": torch.optim.ASGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
}


@functools.cache
def engines_of(name: str) -> tuple[str, ...]:
    """The engines that run the rule of an optimizer."""
    return OptimizerUnderTest.of(name).engines


def takes_complex(name: str) -> bool:
    return "complex" in optplug.get_optimizer(name).capabilities


NAMES_AND_ENGINES = [(name, engine) for name in TORCH for engine in engines_of(name)]
NUMBA_NAMES = [name for name in TORCH if "numba" in engines_of(name)]

SHAPES = {"adafactor": ((5, 3), (7,), (), (1, 4), (6, 1), (4, 3, 3, 3), (5, 7, 1, 1), (1, 1), (3,))}
"""Shapes other than those of `parity.Trajectory`. torch's Adafactor cannot step empty tensors."""

# Options that change the computation. All combinations are tested.
DECAY = {"weight_decay": 0.1}
DECOUPLED = {"decoupled_weight_decay": True}
MOMENTUM = {"momentum": 0.9}
SWITCHES: dict[str, list[dict[str, Any]]] = {
    "adafactor": [DECAY],
    "sgd": [DECAY, MOMENTUM, {"dampening": 0.3}, {"nesterov": True}],
    "adam": [DECAY, DECOUPLED, {"amsgrad": True}],
    "adamw": [DECAY, {"amsgrad": True}],
    "adadelta": [DECAY],
    "adagrad": [DECAY],
    "adamax": [DECAY],
    "asgd": [DECAY],
    "nadam": [DECAY, DECOUPLED],
    "radam": [DECAY, DECOUPLED],
    "rmsprop": [DECAY, MOMENTUM, {"centered": True}],
    "rprop": [],
}
# Options that are numbers. All of them are tested with every combination of switches; each one is tested with no switch
# and with all switches. Adadelta's updates are small: with a smaller lr, 50 steps would change a float32 parameter by a
# few units in the last place only.
_ADAM_NUMBERS = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}
NUMBERS: dict[str, dict[str, Any]] = {
    "adafactor": {"lr": 0.1, "beta2_decay": -0.5, "eps": (1e-3, 0.1), "d": 1.5},
    "sgd": {"lr": 0.05},
    "adam": _ADAM_NUMBERS,
    "adamw": _ADAM_NUMBERS,
    "adadelta": {"lr": 3.0, "rho": 0.5, "eps": 1e-3},
    "adagrad": {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.3, "eps": 0.1},
    "adamax": {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1},
    "asgd": {"lr": 0.1, "lambd": 0.05, "alpha": 0.5, "t0": 15.0},
    "nadam": {**_ADAM_NUMBERS, "momentum_decay": 0.1},
    "radam": _ADAM_NUMBERS,
    "rmsprop": {"lr": 0.1, "alpha": 0.8, "eps": 0.1},
    "rprop": {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (0.02, 0.2)},
}
# The limits of the ranges, and numbers that have an effect only together.
EXTREME_VALUES: dict[str, list[dict[str, Any]]] = {
    # With the second values both limits apply: gradients and parameters are smaller.
    "adafactor": [{"beta2_decay": 0.0}, {"eps": (2.0, 3.0)}, {"eps": (0.0, 0.0)}, {"lr": 0.9, "weight_decay": 1.0}],
    "sgd": [{"momentum": 0.9, "dampening": 1.0}, {"momentum": 1.0, "nesterov": True}],
    "adam": [{"betas": (0.0, 0.99)}, {"betas": (0.0, 0.0), "eps": 0.0}],
    "adamw": [{"betas": (0.0, 0.99)}, {"weight_decay": 0.0}],
    "adadelta": [{"rho": 0.0}, {"rho": 1.0}],
    "adagrad": [{"eps": 0.0}],
    "adamax": [{"betas": (0.0, 0.0)}, {"eps": 0.0}],
    "asgd": [{"lambd": 0.0}, {"lambd": 0.1, "alpha": 0.0}, {"lambd": 0.1, "alpha": 1.0}, {"t0": 0.0}],
    "nadam": [{"betas": (0.0, 0.99)}, {"betas": (0.0, 0.0), "eps": 0.0}, {"momentum_decay": 0.0}],
    # With the second betas no step is rectified; with the third ones, those from the tenth on.
    "radam": [{"betas": (0.0, 0.99)}, {"betas": (0.5, 0.6)}, {"betas": (0.9, 0.7), "eps": 1e-3}],
    "rmsprop": [{"alpha": 0.0}, {"alpha": 1.0, "eps": 1.0}, {"eps": 0.0}],
    "rprop": [{"step_sizes": (0.0, 50.0)}, {"step_sizes": (0.01, 0.01)}],
}


def trajectory(name: str, cls: Any, dtype: torch.dtype, **options: Any) -> Trajectory:
    """A trajectory with shapes for an optimizer."""
    return Trajectory(cls, dtype, **({"shapes": SHAPES[name]} if name in SHAPES else {}), **options)


def combinations(name: str) -> Iterator[dict[str, Any]]:
    """All combinations of the options of torch that change the result."""
    for options in option_combinations([*SWITCHES[name], {"maximize": True}], NUMBERS[name], ALL_OPTIONS[name]):
        refused = options.get("nesterov") and not (options.get("momentum") and not options.get("dampening"))
        idle = options.get("decoupled_weight_decay") and not options.get("weight_decay")
        if not (refused or idle):
            yield options
    yield from EXTREME_VALUES[name]


ALL_OPTIONS = {
    name: {**NUMBERS[name], **{k: v for switch in SWITCHES[name] for k, v in switch.items() if k != "dampening"}}
    for name in TORCH
}
"""By name, the options that can be combined, all at once."""
OPTIONS_IN_TORCH = {
    name: {key: value for key, value in options.items() if torch_has(name, key)}
    for name, options in ALL_OPTIONS.items()
}
"""The same for the class of the installed torch."""


def reference(name: str, params: Any, **options: Any) -> torch.optim.Optimizer:
    """torch's optimizer with these options and `foreach=False`.

    torch < 2.8: Adam has no `decoupled_weight_decay`. With it, Adam is AdamW with another default of `weight_decay`.
    """
    cls = TORCH[name]
    if name == "adam" and not torch_has(name, "decoupled_weight_decay") and "decoupled_weight_decay" in options:
        options = {"weight_decay": 0.0, **options}
        cls = torch.optim.AdamW if options.pop("decoupled_weight_decay") else cls
    return cls(params, foreach=False, **options)


def classes(name: str, engine: str) -> tuple[Callable[..., torch.optim.Optimizer], ...]:
    """What constructs optplug's optimizer with the engine, and torch's."""
    return functools.partial(optplug.get_optimizer(name), engine=engine), functools.partial(reference, name)


@contextmanager
def scalar_states_for(name: str) -> Iterator[None]:
    """Scalar states are float64 for NAdam."""
    torch.set_default_dtype(torch.float64 if name == "nadam" else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def scalar_states(request: pytest.FixtureRequest) -> Iterator[None]:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    with scalar_states_for(parameters.get("name", "")):
        yield


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_scalar_states_of_nadam(engine):
    for options in ({}, ALL_OPTIONS["nadam"], {"momentum_decay": 0.0}):
        ours, theirs = (Trajectory(cls, torch.float64, **options).run_steps() for cls in classes("nadam", engine))
        differences = ours.differences(theirs)
        assert 0 < differences.pop("mu_product") <= 2e-6
        assert max(differences.values()) <= 1e-7


def worst_difference(name: str, engine: str, dtype: torch.dtype) -> tuple[float, str]:
    """The largest difference from torch over all combinations, and the options."""
    differences = []
    for options in combinations(name):
        ours = trajectory(name, optplug.get_optimizer(name), dtype, engine=engine, **options).run_steps()
        differences.append(
            (ours.max_difference(torch_trajectory(name, dtype, tuple(options.items()))), options_id(options))
        )
    return max(differences)


@functools.cache
def torch_trajectory(
    name: str, dtype: torch.dtype, options: tuple[tuple[str, Any], ...], rounded: torch.dtype | None = None
) -> Trajectory:
    """The trajectory of torch's class."""
    return trajectory(name, functools.partial(reference, name), dtype, rounded=rounded, **dict(options)).run_steps()


COMPARED = [
    (name, engine, dtype)
    for name, engine in NAMES_AND_ENGINES
    for dtype in LIMITS
    if (engine, dtype) != ("numba", torch.float32)
]


@pytest.mark.parametrize(
    ("name", "engine", "dtype"),
    [pytest.param(*case, marks=pytest.mark.slow if case[2] is torch.float32 else ()) for case in COMPARED],
    ids=str,
)
def test_all_option_combinations_equal_torch(name, engine, dtype, record_difference):
    difference, where = worst_difference(name, engine, dtype)
    record_difference(name, dtype, difference)
    assert difference <= LIMITS[dtype], where


@dataclass(frozen=True)
class Errors:
    """The errors of float32 results, relative to torch's results in float64.

    Attributes:
        ours: the error of engine `numba`.
        torchs: the error of torch with `foreach=False`.
        options: the options of the optimizer.
    """

    ours: float
    torch_error: float
    options: str


def max_errors(name: str) -> list[Errors]:
    """The largest errors, for each combination of options."""
    found = []
    for options in combinations(name):
        exact = torch_trajectory(name, torch.float64, tuple(options.items()), torch.float32)
        ours = trajectory(name, optplug.get_optimizer(name), torch.float32, engine="numba", **options).run_steps()
        torch_error = torch_trajectory(name, torch.float32, tuple(options.items()))
        found.append(Errors(ours.max_difference(exact), torch_error.max_difference(exact), options_id(options)))
    return found


@pytest.mark.parametrize("name", NUMBA_NAMES)
def test_float32_numba_is_as_accurate_as_torch(name):
    found = max_errors(name)
    for errors in found:  # few elements: a single result can be less accurate by chance
        assert errors.ours <= max(LIMITS[torch.float32], 1.5 * errors.torch_error), errors
    # By chance NAdam's largest error is 6 % above that of torch; on average both are equal, see the next test.
    assert max(a.ours for a in found) <= max(a.torch_error for a in found) * (1.1 if name == "nadam" else 1)


def rms_errors(name: str) -> list[Errors]:
    """The root mean square errors of 20,001 parameters after 20 steps, for each combination of options."""

    def run(cls, dtype, **options):
        made = Trajectory(cls, dtype, rounded=torch.float32, shapes=((20_001,),), **options).run_steps(0, 20)
        return made.params[0].detach().double()

    found = []
    for options in combinations(name):
        exact = run(functools.partial(reference, name), torch.float64, **options)
        ours = run(optplug.get_optimizer(name), torch.float32, engine="numba", **options)
        torch_error = run(functools.partial(reference, name), torch.float32, **options)
        rms = [float((t - exact).square().mean().sqrt()) for t in (ours, torch_error)]
        found.append(Errors(*rms, options_id(options)))
    return found


def error_ratio(errors: Errors) -> float:
    return errors.ours / errors.torch_error if errors.ours else 0.0


@pytest.mark.parametrize("name", NUMBA_NAMES)
def test_float32_numba_is_as_accurate_as_torch_on_average(name):
    for errors in rms_errors(name):
        assert error_ratio(errors) <= 1.02, errors


@pytest.mark.parametrize("name", TORCH)
def test_combinations_cover_all_options_of_torch(name):
    engine_keys = {"params", "foreach", "capturable", "differentiable", "fused"}
    options = set(inspect.signature(TORCH[name]).parameters) - engine_keys
    assert options == {key for combination in combinations(name) for key in combination if torch_has(name, key)}


@pytest.mark.parametrize(("name", "engine"), NAMES_AND_ENGINES)
def test_float32_tensor_lr_with_float64_parameters(name, engine):
    for lr, options in itertools.product((1e-3, 0.01), ({}, ALL_OPTIONS[name])):
        options = {**options, "lr": torch.tensor(lr, dtype=torch.float32)}
        # torch's Adafactor computes the factor of the weight decay in float32, which rounds the whole parameter.
        theirs_options = {**options, "lr": options["lr"].double()} if name == "adafactor" else options
        ours, theirs = (
            trajectory(name, cls, torch.float64, **copy.deepcopy(given)).run_steps()
            for cls, given in zip(classes(name, engine), (options, theirs_options), strict=True)
        )
        differences = ours.differences(theirs)
        # torch computes ASGD's next step size in float32, the dtype of lr, so the last bit can differ.
        assert differences.pop("eta", 0.0) <= 2**-23
        assert max(differences.values()) <= 1e-7


@pytest.mark.parametrize("engine", ENGINES)
def test_tensor_hyperparameters_equal_torch(engine):
    def tensor(value, *shape):
        return torch.full(shape, value, dtype=torch.float64)

    def run(name, cls, options):
        return trajectory(name, cls, torch.float64, **copy.deepcopy(options)).run_steps()

    betas = {"lr": tensor(0.01), "betas": (tensor(0.9, 1, 1), tensor(0.99)), "amsgrad": True}
    cases = [(name, (2, 8), {"lr": tensor(0.01, 1)}) for name in TORCH]
    cases += [("sgd", (2, 6), {"momentum": 0.9, "weight_decay": tensor(0.1)})]
    cases += [(name, (2, 11), betas) for name in ("adam", "adamw")]
    for name, first_version, options in cases:
        if engine not in engines_of(name):
            continue
        ours, theirs = classes(name, engine)
        if name != "asgd":  # torch < 2.8: the states of ASGD take the shape of lr
            with since_torch(first_version, TypeError, "must be Number, not Tensor"):
                run(name, theirs, options)
        taken = options if first_version <= INSTALLED else without_dimensions(options)
        with scalar_states_for(name):
            assert run(name, ours, options).max_difference(run(name, theirs, taken)) <= 1e-11, name


def without_dimensions(options: dict[str, Any]) -> dict[str, Any]:
    """The options with each tensor as a tensor without dimensions."""
    return tree_map_only(torch.Tensor, lambda t: t.reshape(()), options)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64], ids=str)
@pytest.mark.parametrize(("name", "engine"), [pair for pair in NAMES_AND_ENGINES if takes_complex(pair[0])])
def test_complex_parameters_equal_torch(name, engine, dtype):
    def run(cls, dtype=dtype, rounded=dtype, **options):
        p = torch.view_as_complex(noise((4, 2), 99)).to(rounded).to(dtype, copy=True).requires_grad_()
        first = p.detach().clone()
        optimizer = cls([p], **options)
        for step in range(50):
            p.grad = torch.view_as_complex(noise((4, 2), step)).to(rounded).to(dtype, copy=True)
            optimizer.step()
        states = {k: v for k, v in optimizer.state[p].items() if v.is_complex()}
        return {"p": p.detach() - first, **states}

    for options in ({}, NUMBERS[name], ALL_OPTIONS[name], {**ALL_OPTIONS[name], "maximize": True}):
        ours = run(optplug.get_optimizer(name), engine=engine, **options)
        theirs = run(functools.partial(reference, name), **options)
        exact = run(functools.partial(reference, name), torch.complex128, **options)
        assert ours.keys() == theirs.keys()
        for key, state in theirs.items():
            against, limit = state, LIMITS[dtype.to_real()]
            if (engine, dtype) == ("numba", torch.complex64):  # as for real parameters
                against = exact[key]
                limit = max(limit, 1.5 * float((state - against).abs().max() / against.abs().max()))
            assert float((ours[key] - against).abs().max() / against.abs().max()) <= limit, (key, options_id(options))


# ---------------------------------------------------------------------------------- the options of torch's tests


def _in_float64(value: Any) -> Any:
    """Convert float32 tensors to float64, because torch rounds results of float32 tensors to float32."""
    if isinstance(value, dict):
        return {key: _in_float64(v) for key, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_in_float64, value))
    return value.double() if isinstance(value, torch.Tensor) else value


@functools.cache
def torch_test_options() -> dict[str, list[dict[str, Any]]]:
    """The options with which torch's own tests create its optimizers, by class name.

    `capturable` is included, which these tests use on GPUs only. The options are read in another process, because the
    import of their module freezes `torch.backends`.
    """
    write = (
        "import sys, torch; from torch.testing._internal.common_optimizers import optim_db; torch.save({"
        "info.optim_cls.__name__: [i.kwargs for d in ('cpu', 'mps', 'cuda') for i in info.optim_inputs_func(d)] "
        "for info in optim_db}, sys.argv[1])"
    )
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/lists"
        subprocess.run([sys.executable, "-W", "ignore", "-c", write, path], check=True)
        return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH)
def test_options_of_torch_tests_equal_torch(name):
    def run(cls, kwargs, **engine_options):
        return trajectory(name, cls, torch.float64, **copy.deepcopy(kwargs), **engine_options).run_steps(0, 10)

    ours = optplug.get_optimizer(name)
    lists = {options_id(kwargs): _in_float64(kwargs) for kwargs in torch_test_options()[TORCH[name].__name__]}
    assert len(lists) >= 5
    for kwargs in lists.values():
        if kwargs.get("capturable"):  # raises on a CPU, in the first step
            for cls, engine_options in ((TORCH[name], {"foreach": False}), (ours, {"engine": "loop"}), (ours, {})):
                with pytest.raises(AssertionError, match=r"^If capturable=True, params"):
                    run(cls, kwargs, **engine_options)
            with pytest.raises(RuntimeError, match="capturable=True needs engine 'loop'"):
                run(ours, kwargs, engine="foreach")
        else:
            theirs = run(TORCH[name], kwargs, foreach=False)
            for engine in engines_of(name):
                assert run(ours, kwargs, engine=engine).max_difference(theirs) <= 1e-11, (engine, options_id(kwargs))


# ---------------------------------------------------------------------------------------------- state dicts


@pytest.mark.parametrize(("name", "engine"), NAMES_AND_ENGINES)
@pytest.mark.parametrize("direction", ["ours continues torch's", "torch's continues ours"])
def test_state_dicts_are_exchanged_with_torch(name, engine, direction):
    ours, theirs = (optplug.get_optimizer(name), {"engine": engine}), (TORCH[name], {"foreach": False})
    (first_cls, first_engine_options), (then_cls, then_engine_options) = (
        (theirs, ours) if direction.startswith("ours") else (ours, theirs)
    )
    for dtype, limit in LIMITS.items():
        first = trajectory(name, first_cls, dtype, **OPTIONS_IN_TORCH[name], **first_engine_options).run_steps(0, 20)
        # The state dict contains the hyperparameters.
        then = trajectory(name, then_cls, dtype, **then_engine_options).resume(first)
        through = trajectory(name, TORCH[name], dtype, **OPTIONS_IN_TORCH[name], foreach=False).run_steps()
        assert then.run_steps(20).max_difference(through) <= limit, f"{direction} in {dtype}"
        for a, b in zip(then.optimizer.param_groups, through.optimizer.param_groups, strict=True):
            assert {key: a[key] for key in OPTIONS_IN_TORCH[name]} == {key: b[key] for key in OPTIONS_IN_TORCH[name]}


@pytest.mark.parametrize(("name", "engine"), NAMES_AND_ENGINES)
def test_state_dict_that_torch_loaded_and_saved_is_continued(name, engine):
    first = trajectory(name, TORCH[name], torch.float64, **OPTIONS_IN_TORCH[name], foreach=False).run_steps(0, 20)
    again = trajectory(name, TORCH[name], torch.float64, foreach=False).resume(first).run_steps(20, 30)
    then = trajectory(name, optplug.get_optimizer(name), torch.float64, engine=engine).resume(again).run_steps(30)
    through = trajectory(name, TORCH[name], torch.float64, foreach=False).resume(again).run_steps(30)
    assert then.max_difference(through) <= 1e-11


KEYS_SUPPLIED_BY_TORCH = ("nesterov", "amsgrad", "momentum", "centered", "maximize")
"""The hyperparameters that torch adds when it loads an old state dict without them."""


@pytest.mark.parametrize(("name", "engine"), NAMES_AND_ENGINES)
def test_old_state_dict_with_missing_keys_and_plain_numbers_is_loaded(name, engine):
    lacking = {"foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
    if name != "sgd":
        lacking |= {*KEYS_SUPPLIED_BY_TORCH}
    else:
        lacking |= {"nesterov", "maximize"}
    if name == "adafactor":  # the oldest version of torch's class has this key
        lacking -= {"maximize"}
    options = {key: value for key, value in ALL_OPTIONS[name].items() if key not in lacking}
    first = trajectory(name, TORCH[name], torch.float64, foreach=False, **options).run_steps(0, 20)
    old = copy.deepcopy(first.optimizer.state_dict())
    for group in old["param_groups"]:
        for key in lacking:
            group.pop(key, None)
    plain = 0
    for state in old["state"].values():
        for key in {"step", "eta", "mu", "mu_product"} & state.keys():
            state[key] = int(state[key]) if key == "step" else float(state[key])
            plain += 1
    assert plain or name == "sgd"
    results = []
    for cls, engine_options in ((TORCH[name], {"foreach": False}), (optplug.get_optimizer(name), {"engine": engine})):
        run = trajectory(name, cls, torch.float64, **engine_options)
        results.append(run.resume(first, copy.deepcopy(old)).run_steps(20))
    theirs, ours = results
    assert ours.max_difference(theirs) <= 1e-11
    group = theirs.optimizer.param_groups[0]
    there = {key: value for key, value in group.items() if key not in ("params", "foreach", "fused")}
    assert {key: ours.optimizer.param_groups[0][key] for key in there} == there
    assert lacking & there.keys() or name == "adafactor", "no key was missing"


@pytest.mark.parametrize("engine", ENGINES)
def test_momentum_buffer_none_in_old_state_dict_is_ignored(engine):
    old = torch.optim.SGD([torch.zeros(1)], momentum=0.9).state_dict()
    old["state"] = {0: {"momentum_buffer": None}}
    results = []
    for cls, engine_options in (
        (torch.optim.SGD, {"foreach": False}),
        (optplug.get_optimizer("sgd"), {"engine": engine}),
    ):
        p = torch.ones(3, requires_grad=True)
        optimizer = cls([p], lr=0.1, momentum=0.9, dampening=0.5, **engine_options)
        optimizer.load_state_dict(
            {**copy.deepcopy(old), "param_groups": [{**old["param_groups"][0], "dampening": 0.5}]}
        )
        for _ in range(3):
            p.grad = torch.full_like(p, 2.0)
            optimizer.step()
        results.append(p.detach())
    assert torch.allclose(*results, rtol=0, atol=1e-9)


def test_adamw_continues_state_dict_of_adam_with_decoupled_decay():
    first = Trajectory(torch.optim.Adam, torch.float64, weight_decay=0.1).run_steps(0, 20)
    results = []
    for cls, options in ((torch.optim.AdamW, {"foreach": False}), (optplug.get_optimizer("adamw"), {})):
        results.append(Trajectory(cls, torch.float64, **options).resume(first).run_steps(20))
    assert results[1].max_difference(results[0]) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize(("name", "engine"), NAMES_AND_ENGINES)
def test_state_has_names_dtypes_devices_and_strides_of_torch(name, engine, dtype):
    def states(cls, options):
        params = [torch.ones(s, dtype=dtype).requires_grad_() for s in ((3, 2), (4,))]
        if name != "adagrad":  # torch's Adagrad creates all states in the constructor
            params.append(torch.ones((), dtype=dtype).requires_grad_())
        params.append(torch.ones(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_())
        optimizer = cls(params, **options)
        for p in (*params[:2], params[-1]):
            p.grad = torch.ones_like(p)
        optimizer.step()
        packed = optimizer.state_dict()["state"]
        described = {i: {k: (v.dtype, v.device, v.shape, v.stride()) for k, v in packed[i].items()} for i in packed}
        return described, optimizer.param_groups[0]

    if dtype.is_complex and not takes_complex(name):
        pytest.skip("it takes no complex parameters")
    if name == "adafactor" and engine == "numba":
        engine = "auto"  # numba does not take the rows of channels_last tensors
    for options in ({}, ALL_OPTIONS[name], {"maximize": True}):
        (ours, a), (theirs, b) = (states(cls, options) for cls in classes(name, engine))
        assert ours == theirs
        shared = b.keys() - {"params", "foreach"}
        assert {key: a[key] for key in shared} == {key: b[key] for key in shared}


@pytest.mark.parametrize(("name", "engine"), NAMES_AND_ENGINES)
def test_scalar_states_have_the_default_dtype_float64_as_in_torch(name, engine):
    torch.set_default_dtype(torch.float64)
    try:
        ours, theirs = (
            trajectory(name, cls, torch.float64, **ALL_OPTIONS[name]).run_steps() for cls in classes(name, engine)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    dtypes = [
        [{key: value.dtype for key, value in run.optimizer.state[p].items()} for p in run.params]
        for run in (ours, theirs)
    ]
    assert dtypes[0] == dtypes[1]
    assert ours.max_difference(theirs) <= 1e-11


if __name__ == "__main__":
    print(f"{'':8} {'engine':8} {'dtype':14} {'largest':>8}  allowed  options")
    for name, engine, dtype in COMPARED:
        with scalar_states_for(name):
            difference, where = worst_difference(name, engine, dtype)
        print(f"{name:8} {engine:8} {dtype!s:14} {difference:8.1e}  {LIMITS[dtype]:7.0e}  {where}")
    print("\nerrors of float32, relative to float64: engine numba, torch")
    print(f"{'':8} {'maximum':>17}   {'root mean square, numba / torch: mean, largest, options':>17}")
    for name in NUMBA_NAMES:
        with scalar_states_for(name):
            ends, means = max_errors(name), rms_errors(name)
        ours, torch_error = max(a.ours for a in ends), max(a.torch_error for a in ends)
        mean = math.exp(sum(math.log(error_ratio(a) or 1.0) for a in means) / len(means))
        furthest = max(means, key=error_ratio)
        print(f"{name:8} {ours:8.1e} {torch_error:8.1e}   {mean:4.2f} {error_ratio(furthest):5.3f}  {furthest.options}")
