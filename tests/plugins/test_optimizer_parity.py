"""Against torch's own, option by option. `python tests/test_parity.py` prints the worst figures.

The figure is max|a - b| / max|moved| after 50 steps, with a gradient that comes late, one that pauses, and a learning
rate that changes midway. States count as well, as max|a - b| / max|b|: ASGD's average, for one, moves no parameter.
SparseAdam, which takes no dense gradients, and what the others do with sparse ones are in tests/test_sparse.py.

Engine `numba` adds products that it has not rounded first, and is thereby a little nearer to the exact result. So its
float32 is held against torch's float64: it must be no further from it than torch's float32 is.
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import itertools
import math
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import optplug

ENGINES = ("loop", "foreach", "numba")
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5}
TORCH = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adamax": torch.optim.Adamax,
    "asgd": torch.optim.ASGD,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
}

# What changes what is computed: tried in every combination.
DECAY = {"weight_decay": 0.1}
MOMENTUM = {"momentum": 0.9}
SWITCHES: dict[str, list[dict[str, Any]]] = {
    "sgd": [DECAY, MOMENTUM, {"dampening": 0.3}, {"nesterov": True}],
    "adam": [DECAY, {"decoupled_weight_decay": True}, {"amsgrad": True}],
    "adamw": [DECAY, {"amsgrad": True}],
    "adadelta": [DECAY],
    "adagrad": [DECAY],
    "adamax": [DECAY],
    "asgd": [DECAY],
    "rmsprop": [DECAY, MOMENTUM, {"centered": True}],
    "rprop": [],
}
# What changes a number: all of them with every combination of switches, each alone with no switch and with all.
# Adadelta's default of 1 is slow: at less, 50 steps would be a few units in the last place of a float32 parameter.
_OF_ADAM = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}
NUMBERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05},
    "adam": _OF_ADAM,
    "adamw": _OF_ADAM,
    "adadelta": {"lr": 3.0, "rho": 0.5, "eps": 1e-3},
    "adagrad": {"lr": 0.1, "lr_decay": 0.05, "initial_accumulator_value": 0.3, "eps": 0.1},
    "adamax": {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1},
    "asgd": {"lr": 0.1, "lambd": 0.05, "alpha": 0.5, "t0": 15.0},
    "rmsprop": {"lr": 0.1, "alpha": 0.8, "eps": 0.1},
    "rprop": {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (0.02, 0.2)},
}
# The ends of the ranges, and two numbers that act only together.
ENDS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"momentum": 0.9, "dampening": 1.0}, {"momentum": 1.0, "nesterov": True}],
    "adam": [{"betas": (0.0, 0.99)}, {"betas": (0.0, 0.0), "eps": 0.0}],
    "adamw": [{"betas": (0.0, 0.99)}, {"weight_decay": 0.0}],
    "adadelta": [{"rho": 0.0}, {"rho": 1.0}],
    "adagrad": [{"eps": 0.0}],
    "adamax": [{"betas": (0.0, 0.0)}, {"eps": 0.0}],
    "asgd": [{"lambd": 0.0}, {"lambd": 0.1, "alpha": 0.0}, {"lambd": 0.1, "alpha": 1.0}, {"t0": 0.0}],
    "rmsprop": [{"alpha": 0.0}, {"alpha": 1.0, "eps": 1.0}, {"eps": 0.0}],
    "rprop": [{"step_sizes": (0.0, 50.0)}, {"step_sizes": (0.01, 0.01)}],
}


def combinations(name: str) -> Iterator[dict[str, Any]]:
    """Every option that torch documents and that changes numbers, alone and with the others."""
    switches = [*SWITCHES[name], {"maximize": True}]
    for chosen in itertools.product((False, True), repeat=len(switches)):
        on = {
            key: value for switch, is_on in zip(switches, chosen, strict=True) if is_on for key, value in switch.items()
        }
        refused = on.get("nesterov") and not (on.get("momentum") and not on.get("dampening"))
        idle = on.get("decoupled_weight_decay") and not on.get("weight_decay")
        if not (refused or idle):
            yield on
            yield {**NUMBERS[name], **on}
    for key, value in NUMBERS[name].items():
        yield {key: value}
        yield {k: v for k, v in STATEFUL[name].items() if k == key or k not in NUMBERS[name]}
    yield from ENDS[name]


STATEFUL = {
    name: {**NUMBERS[name], **{k: v for switch in SWITCHES[name] for k, v in switch.items() if k != "dampening"}}
    for name in TORCH
}
"""By name, everything that may go together."""


def label(options: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items()).replace(" ", "") or "default"


@functools.lru_cache(maxsize=1000)
def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Trajectory:
    """Parameters and an optimizer that take the same 50 steps whoever made it."""

    def __init__(
        self,
        cls,
        dtype: torch.dtype,
        *,
        rounded: torch.dtype | None = None,
        shapes: tuple[tuple[int, ...], ...] = ((5, 3), (7,), (), (0,), (4,)),
        **options: Any,
    ) -> None:
        self.rounded = rounded or dtype
        generator = torch.Generator().manual_seed(0)
        self.params = [
            torch.randn(s, generator=generator, dtype=torch.float64).to(self.rounded).to(dtype).requires_grad_()
            for s in shapes
        ]
        self.initial = [p.detach().clone() for p in self.params]
        half = len(shapes) // 2
        self.optimizer = cls([{"params": self.params[:half]}, {"params": self.params[half:]}], **options)

    def go(self, start: int = 0, stop: int = 50):
        for step in range(start, stop):
            for i, p in enumerate(self.params):
                g = noise(tuple(p.shape), 97 * step + i)
                absent = (i == 1 and step < 7) or (i == 2 and step % 10 == 3)
                p.grad = None if absent else g.to(self.rounded, copy=True).to(p.dtype)
            if step == 25:
                group = self.optimizer.param_groups[0]
                group["lr"] = group["lr"] * 0.3
            self.optimizer.step()
        return self

    def resume(self, first: Trajectory, state_dict: dict[str, Any] | None = None):
        """Go on where `first` is, by its state dict, or by what became of it."""
        for p, q in zip(self.params, first.params, strict=True):
            p.data.copy_(q.data)
        self.optimizer.load_state_dict(saved(first.optimizer) if state_dict is None else state_dict)
        return self

    def figure(self, other: Trajectory) -> float:
        """How far from `other`, at the worst."""
        return max(self.figures(other).values())

    def figures(self, other: Trajectory) -> dict[str, float]:
        """How far from `other` the parameters (`p`) and each state are, relative to how far or how large those are."""
        far, size = defaultdict(float), defaultdict(float)

        def compare(what, a, b, origin):
            assert a.shape == b.shape, what
            assert torch.stack([a, b]).isfinite().all(), what
            if b.numel():
                far[what] = max(far[what], float((a - b).detach().abs().max()))
                size[what] = max(size[what], float((b - origin).detach().abs().max()))

        for p, q, origin in zip(self.params, other.params, other.initial, strict=True):
            compare("p", p, q, origin)
            ours, theirs = self.optimizer.state.get(p, {}), other.optimizer.state.get(q, {})
            assert ours.keys() == theirs.keys()
            for name, state in theirs.items():
                compare(name, ours[name], state, torch.zeros_like(state))
        assert size["p"] > 0, "nothing moved"
        return {what: distance / size[what] if distance else 0.0 for what, distance in far.items()}


def saved(optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def worst(name: str, engine: str, dtype: torch.dtype) -> tuple[float, str]:
    """The worst figure over all combinations, and where."""
    figures = []
    for options in combinations(name):
        ours = Trajectory(optplug.get_optimizer(name), dtype, engine=engine, **options).go()
        figures.append((ours.figure(theirs(name, dtype, tuple(options.items()))), label(options)))
    return max(figures)


@functools.cache
def theirs(
    name: str, dtype: torch.dtype, options: tuple[tuple[str, Any], ...], rounded: torch.dtype | None = None
) -> Trajectory:
    """Where torch's gets: every engine is held against it."""
    return Trajectory(TORCH[name], dtype, rounded=rounded, foreach=False, **dict(options)).go()


FOLLOWS = [(engine, dtype) for engine in ENGINES for dtype in LIMITS if (engine, dtype) != ("numba", torch.float32)]


@pytest.mark.parametrize(("engine", "dtype"), FOLLOWS, ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_every_option_follows_torch(name, engine, dtype):
    figure, where = worst(name, engine, dtype)
    print(f"{name:8} {engine:8} {dtype}: {figure:.1e} at {where}")
    assert figure <= LIMITS[dtype], where


@dataclass(frozen=True)
class Accuracy:
    """Figures of engine `numba` and of torch's loop, both in float32, off torch's loop in float64."""

    ours: float
    torchs: float
    where: str


def accuracies(name: str) -> list[Accuracy]:
    """By setting, at the worst element."""
    found = []
    for options in combinations(name):
        exact = theirs(name, torch.float64, tuple(options.items()), torch.float32)
        ours = Trajectory(optplug.get_optimizer(name), torch.float32, engine="numba", **options).go()
        torchs = theirs(name, torch.float32, tuple(options.items()))
        found.append(Accuracy(ours.figure(exact), torchs.figure(exact), label(options)))
    return found


@pytest.mark.parametrize("name", TORCH)
def test_float32_of_numba_is_as_close_to_float64_as_torchs_float32(name):
    found = accuracies(name)
    for each in found:  # three dozen elements: chance may favour either
        assert each.ours <= max(LIMITS[torch.float32], 1.5 * each.torchs), each
    assert max(a.ours for a in found) <= max(a.torchs for a in found)


def mean_accuracies(name: str) -> list[Accuracy]:
    """By setting, the root of the mean square over 20,001 parameters after 20 steps."""

    def run(cls, dtype, **options):
        made = Trajectory(cls, dtype, rounded=torch.float32, shapes=((20_001,),), **options).go(0, 20)
        return made.params[0].detach().double()

    found = []
    for options in combinations(name):
        exact = run(TORCH[name], torch.float64, foreach=False, **options)
        ours = run(optplug.get_optimizer(name), torch.float32, engine="numba", **options)
        torchs = run(TORCH[name], torch.float32, foreach=False, **options)
        rms = [float((t - exact).square().mean().sqrt()) for t in (ours, torchs)]
        found.append(Accuracy(*rms, label(options)))
    return found


def ratio(each: Accuracy) -> float:
    return each.ours / each.torchs if each.ours else 0.0


@pytest.mark.parametrize("name", TORCH)
def test_float32_of_numba_is_on_average_as_close_to_float64_as_torchs_float32(name):
    for each in mean_accuracies(name):
        assert ratio(each) <= 1.02, each


@pytest.mark.parametrize("name", TORCH)
def test_every_option_of_torchs_signature_is_among_the_combinations(name):
    how_to_run = {"params", "foreach", "capturable", "differentiable", "fused"}
    options = set(inspect.signature(TORCH[name]).parameters) - how_to_run
    assert options == {key for combination in combinations(name) for key in combination}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_a_float32_tensor_as_lr_serves_float64_parameters(name, engine):
    for lr, options in itertools.product((1e-3, 0.01), ({}, STATEFUL[name])):
        options = {**options, "lr": torch.tensor(lr)}
        pair = []
        for cls, how in ((optplug.get_optimizer(name), {"engine": engine}), (TORCH[name], {"foreach": False})):
            pair.append(Trajectory(cls, torch.float64, **how, **copy.deepcopy(options)).go())
        figures = pair[0].figures(pair[1])
        # torch computes ASGD's next step size in the float32 of the rate, and may round it to a neighbour of ours.
        assert figures.pop("eta", 0.0) <= 2**-23
        assert max(figures.values()) <= 1e-7


@pytest.mark.parametrize("engine", ENGINES)
def test_every_hyperparameter_that_torch_takes_as_a_tensor_is_taken_as_one(engine):
    def tensor(value, *shape):
        return torch.full(shape, value, dtype=torch.float64)

    betas = {"lr": tensor(0.01), "betas": (tensor(0.9, 1, 1), tensor(0.99)), "amsgrad": True}
    cases = {name: {"lr": tensor(0.01, 1)} for name in TORCH}
    cases |= {"sgd": {"momentum": 0.9, "weight_decay": tensor(0.1)}, "adam": betas, "adamw": betas}
    for name, options in cases.items():
        pair = []
        for cls, how in ((optplug.get_optimizer(name), {"engine": engine}), (TORCH[name], {"foreach": False})):
            pair.append(Trajectory(cls, torch.float64, **how, **copy.deepcopy(options)).go())
        assert pair[0].figure(pair[1]) <= 1e-11, name


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_complex_parameters_follow_torch(name, engine, dtype):
    def run(cls, dtype=dtype, rounded=dtype, **options):
        p = torch.view_as_complex(noise((4, 2), 99)).to(rounded).to(dtype, copy=True).requires_grad_()
        first = p.detach().clone()
        optimizer = cls([p], **options)
        for step in range(50):
            p.grad = torch.view_as_complex(noise((4, 2), step)).to(rounded).to(dtype, copy=True)
            optimizer.step()
        states = {k: v for k, v in optimizer.state[p].items() if v.is_complex()}
        return {"p": p.detach() - first, **states}

    for options in ({}, NUMBERS[name], STATEFUL[name], {**STATEFUL[name], "maximize": True}):
        ours = run(optplug.get_optimizer(name), engine=engine, **options)
        theirs = run(TORCH[name], foreach=False, **options)
        exact = run(TORCH[name], torch.complex128, foreach=False, **options)
        assert ours.keys() == theirs.keys()
        for key, state in theirs.items():
            against, limit = state, LIMITS[dtype.to_real()]
            if (engine, dtype) == ("numba", torch.complex64):  # as in real numbers
                against = exact[key]
                limit = max(limit, 1.5 * float((state - against).abs().max() / against.abs().max()))
            assert float((ours[key] - against).abs().max() / against.abs().max()) <= limit, (key, label(options))


# ---------------------------------------------------------------------------------- torch's own lists of arguments


def _in_float64(value: Any) -> Any:
    """What torch computes from a float32 tensor it rounds to float32."""
    if isinstance(value, dict):
        return {key: _in_float64(v) for key, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_in_float64, value))
    return value.double() if isinstance(value, torch.Tensor) else value


@functools.cache
def torchs_lists() -> dict[str, list[dict[str, Any]]]:
    """What torch's tests give its optimizers, by class name; `capturable` included, which they keep for the GPU.

    From another process: their module freezes `torch.backends`.
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


@pytest.mark.parametrize("name", TORCH)
def test_what_torch_tests_its_optimizers_with_does_the_same_here(name):
    def run(cls, kwargs, **how):
        return Trajectory(cls, torch.float64, **copy.deepcopy(kwargs), **how).go(0, 10)

    ours = optplug.get_optimizer(name)
    lists = {label(kwargs): _in_float64(kwargs) for kwargs in torchs_lists()[TORCH[name].__name__]}
    assert len(lists) >= 5
    for kwargs in lists.values():
        if kwargs.get("capturable"):  # refused on a CPU, at the first step
            for cls, how in ((TORCH[name], {"foreach": False}), (ours, {"engine": "loop"}), (ours, {})):
                with pytest.raises(AssertionError, match=r"^If capturable=True, params"):
                    run(cls, kwargs, **how)
            with pytest.raises(RuntimeError, match="capturable=True needs engine 'loop'"):
                run(ours, kwargs, engine="foreach")
        else:
            theirs = run(TORCH[name], kwargs, foreach=False)
            for engine in ENGINES:
                assert run(ours, kwargs, engine=engine).figure(theirs) <= 1e-11, (engine, label(kwargs))


# ---------------------------------------------------------------------------------------------- state dicts


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("direction", ["ours continues torch's", "torch's continues ours"])
def test_state_dicts_are_exchanged(name, engine, direction):
    ours, theirs = (optplug.get_optimizer(name), {"engine": engine}), (TORCH[name], {"foreach": False})
    (first_cls, first_how), (then_cls, then_how) = (theirs, ours) if direction.startswith("ours") else (ours, theirs)
    for dtype, limit in LIMITS.items():
        first = Trajectory(first_cls, dtype, **STATEFUL[name], **first_how).go(0, 20)
        then = Trajectory(then_cls, dtype, **then_how).resume(first)  # the state dict brings the hyperparameters
        through = Trajectory(TORCH[name], dtype, **STATEFUL[name], foreach=False).go()
        assert then.go(20).figure(through) <= limit, f"{direction} in {dtype}"
        for a, b in zip(then.optimizer.param_groups, through.optimizer.param_groups, strict=True):
            assert {key: a[key] for key in STATEFUL[name]} == {key: b[key] for key in STATEFUL[name]}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_what_torch_loaded_and_saved_again_is_continued(name, engine):
    first = Trajectory(TORCH[name], torch.float64, **STATEFUL[name], foreach=False).go(0, 20)
    again = Trajectory(TORCH[name], torch.float64, foreach=False).resume(first).go(20, 30)
    then = Trajectory(optplug.get_optimizer(name), torch.float64, engine=engine).resume(again).go(30)
    through = Trajectory(TORCH[name], torch.float64, foreach=False).resume(again).go(30)
    assert then.figure(through) <= 1e-11


RECENT = ("nesterov", "amsgrad", "momentum", "centered", "maximize")
"""The hyperparameters that torch's own loading supplies where an old state dict lacks them."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_an_old_state_dict_lacks_keys_and_has_plain_numbers_for_scalars(name, engine):
    lacking = {"foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
    if name != "sgd":
        lacking |= {*RECENT}
    else:
        lacking |= {"nesterov", "maximize"}
    options = {key: value for key, value in STATEFUL[name].items() if key not in lacking}
    first = Trajectory(TORCH[name], torch.float64, foreach=False, **options).go(0, 20)
    old = copy.deepcopy(first.optimizer.state_dict())
    for group in old["param_groups"]:
        for key in lacking:
            group.pop(key, None)
    plain = 0
    for state in old["state"].values():
        for key in {"step", "eta", "mu"} & state.keys():
            state[key] = int(state[key]) if key == "step" else float(state[key])
            plain += 1
    assert plain or name == "sgd"
    results = []
    for cls, how in ((TORCH[name], {"foreach": False}), (optplug.get_optimizer(name), {"engine": engine})):
        results.append(Trajectory(cls, torch.float64, **how).resume(first, copy.deepcopy(old)).go(20))
    theirs, ours = results
    assert ours.figure(theirs) <= 1e-11
    group = theirs.optimizer.param_groups[0]
    there = {key: value for key, value in group.items() if key not in ("params", "foreach", "fused")}
    assert {key: ours.optimizer.param_groups[0][key] for key in there} == there
    assert lacking & there.keys(), "nothing was lacking"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_momentum_buffer_in_an_old_state_dict_counts_as_none(engine):
    old = torch.optim.SGD([torch.zeros(1)], momentum=0.9).state_dict()
    old["state"] = {0: {"momentum_buffer": None}}
    results = []
    for cls, how in ((torch.optim.SGD, {"foreach": False}), (optplug.get_optimizer("sgd"), {"engine": engine})):
        p = torch.ones(3, requires_grad=True)
        optimizer = cls([p], lr=0.1, momentum=0.9, dampening=0.5, **how)
        optimizer.load_state_dict(
            {**copy.deepcopy(old), "param_groups": [{**old["param_groups"][0], "dampening": 0.5}]}
        )
        for _ in range(3):
            p.grad = torch.full_like(p, 2.0)
            optimizer.step()
        results.append(p.detach())
    assert torch.allclose(*results, rtol=0, atol=1e-9)


def test_a_state_dict_of_adam_continues_decoupled_in_adamw_as_in_torch():
    first = Trajectory(torch.optim.Adam, torch.float64, weight_decay=0.1).go(0, 20)
    results = []
    for cls, options in ((torch.optim.AdamW, {"foreach": False}), (optplug.get_optimizer("adamw"), {})):
        results.append(Trajectory(cls, torch.float64, **options).resume(first).go(20))
    assert results[1].figure(results[0]) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_names_dtypes_and_places_of_the_state_are_torchs(name, engine, dtype):
    def states(cls, options):
        params = [torch.ones(s, dtype=dtype).requires_grad_() for s in ((3, 2), (4,))]
        if name != "adagrad":  # torch's makes all states at once, ours at a parameter's first step
            params.append(torch.ones((), dtype=dtype).requires_grad_())
        params.append(torch.ones(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_())
        optimizer = cls(params, **options)
        for p in (*params[:2], params[-1]):
            p.grad = torch.ones_like(p)
        optimizer.step()
        packed = optimizer.state_dict()["state"]
        described = {i: {k: (v.dtype, v.device, v.shape, v.stride()) for k, v in packed[i].items()} for i in packed}
        return described, optimizer.param_groups[0]

    for options in ({}, STATEFUL[name], {"maximize": True}):
        ours, a = states(optplug.get_optimizer(name), {**options, "engine": engine})
        theirs, b = states(TORCH[name], {**options, "foreach": False})
        assert ours == theirs
        shared = b.keys() - {"params", "foreach"}
        assert {key: a[key] for key in shared} == {key: b[key] for key in shared}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_scalar_states_are_float64_where_that_is_the_default_as_in_torch(name, engine):
    torch.set_default_dtype(torch.float64)
    try:
        ours = Trajectory(optplug.get_optimizer(name), torch.float64, engine=engine, **STATEFUL[name]).go()
        theirs = Trajectory(TORCH[name], torch.float64, foreach=False, **STATEFUL[name]).go()
    finally:
        torch.set_default_dtype(torch.float32)
    dtypes = [
        [{key: value.dtype for key, value in run.optimizer.state[p].items()} for p in run.params]
        for run in (ours, theirs)
    ]
    assert dtypes[0] == dtypes[1]
    assert ours.figure(theirs) <= 1e-11


if __name__ == "__main__":
    print(f"{'':8} {'engine':8} {'dtype':14} {'worst':>8}  allowed  at")
    for name, (engine, dtype) in itertools.product(TORCH, FOLLOWS):
        figure, where = worst(name, engine, dtype)
        print(f"{name:8} {engine:8} {dtype!s:14} {figure:8.1e}  {LIMITS[dtype]:7.0e}  {where}")
    print("\nfloat32 off torch's float64: engine numba, torch's loop")
    print(f"{'':8} {'at the worst':>17}   {'root mean square, numba / torch: mean, worst, at':>17}")
    for name in TORCH:
        ends, means = accuracies(name), mean_accuracies(name)
        ours, torchs = max(a.ours for a in ends), max(a.torchs for a in ends)
        mean = math.exp(sum(math.log(ratio(a) or 1.0) for a in means) / len(means))
        furthest = max(means, key=ratio)
        print(f"{name:8} {ours:8.1e} {torchs:8.1e}   {mean:4.2f} {ratio(furthest):5.3f}  {furthest.where}")
