"""Against torch's own, option by option. `python tests/test_parity.py` prints the worst figures.

The figure is max|a - b| / max|moved| after 50 steps, with a gradient that comes late, one that pauses, and a learning
rate that changes midway.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

import optplug

ENGINES = ("loop", "foreach")
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5}
TORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def combinations(name: str) -> Iterator[dict[str, Any]]:
    """Every documented option, alone and with the others."""
    if name == "sgd":
        for momentum, dampening, decay, nesterov, maximize in itertools.product(
            (0.0, 0.9), (0.0, 0.3), (0.0, 0.1), (False, True), (False, True)
        ):
            if not (nesterov and (momentum == 0 or dampening)):
                options = {"momentum": momentum, "dampening": dampening, "weight_decay": decay}
                yield {"lr": 0.05, **options, "nesterov": nesterov, "maximize": maximize}
        return
    rates = ({}, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.99)})
    for rate, decay, amsgrad, maximize in itertools.product(rates, (0.0, 0.1), (False, True), (False, True)):
        yield {**rate, "weight_decay": decay, "amsgrad": amsgrad, "maximize": maximize}
    if name == "adam":
        yield {"weight_decay": 0.1, "decoupled_weight_decay": True}
    else:
        yield {}  # its default decay


def label(options: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items()).replace(" ", "") or "default"


@functools.lru_cache(maxsize=1000)
def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Trajectory:
    """Parameters and an optimizer that take the same 50 steps whoever made it."""

    def __init__(self, cls, dtype: torch.dtype, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = ((5, 3), (7,), (), (0,), (4,))
        self.params = [
            torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
        ]
        self.initial = [p.detach().clone() for p in self.params]
        half = len(shapes) // 2
        self.optimizer = cls([{"params": self.params[:half]}, {"params": self.params[half:]}], **options)

    def go(self, start: int = 0, stop: int = 50):
        for step in range(start, stop):
            for i, p in enumerate(self.params):
                g = noise(tuple(p.shape), 97 * step + i)
                absent = (i == 1 and step < 7) or (i == 2 and step % 10 == 3)
                p.grad = None if absent else g.to(p.dtype, copy=True)
            if step == 25:
                group = self.optimizer.param_groups[0]
                group["lr"] = group["lr"] * 0.3
            self.optimizer.step()
        return self

    def figure(self, other: Trajectory) -> float:
        """How far from `other`, relative to how far that moved."""

        def distance(a, b):
            return max(float((x - y).detach().abs().max()) for x, y in zip(a, b, strict=True) if x.numel())

        return distance(self.params, other.params) / distance(other.params, other.initial)


def worst(name: str, engine: str, dtype: torch.dtype) -> tuple[float, str]:
    """The worst figure over all combinations, and where."""
    figures = []
    for options in combinations(name):
        theirs = Trajectory(TORCH[name], dtype, foreach=False, **options).go()
        ours = Trajectory(optplug.get_optimizer(name), dtype, engine=engine, **options).go()
        figures.append((ours.figure(theirs), label(options)))
    return max(figures)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_every_option_follows_torch(name, engine, dtype):
    figure, where = worst(name, engine, dtype)
    print(f"{name:6} {engine:8} {dtype}: {figure:.1e} at {where}")
    assert figure <= LIMITS[dtype], where


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_a_float32_tensor_as_lr_serves_float64_parameters(name, engine):
    for lr, decay in itertools.product((1e-3, 0.01), (0.0, 0.01, 0.1)):
        options = {"lr": torch.tensor(lr), "weight_decay": decay}
        theirs = Trajectory(TORCH[name], torch.float64, foreach=False, **options).go()
        ours = Trajectory(optplug.get_optimizer(name), torch.float64, engine=engine, **options).go()
        assert ours.figure(theirs) <= 1e-7


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_complex_parameters_follow_torch(name, engine, dtype):
    def run(cls, **options):
        params = [torch.randn(4, dtype=dtype, generator=torch.Generator().manual_seed(3)).requires_grad_()]
        first = params[0].detach().clone()
        optimizer = cls(params, **options)
        for step in range(50):
            params[0].grad = torch.randn(4, dtype=dtype, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return params[0].detach(), first

    (a, _), (b, first) = run(optplug.get_optimizer(name), engine=engine), run(TORCH[name], foreach=False)
    assert float((a - b).abs().max() / (b - first).abs().max()) <= LIMITS[dtype.to_real()]


# ---------------------------------------------------------------------------------------------- state dicts


STATEFUL = {"sgd": {"momentum": 0.9}, "adam": {"amsgrad": True}, "adamw": {"amsgrad": True}}


def saved(optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("direction", ["ours continues torch's", "torch's continues ours"])
def test_state_dicts_are_exchanged(name, engine, direction):
    ours = (optplug.get_optimizer(name), {**STATEFUL[name], "engine": engine})
    theirs = (TORCH[name], {**STATEFUL[name], "foreach": False})
    (first_cls, first_options), (then_cls, then_options) = (
        (theirs, ours) if direction.startswith("ours") else (ours, theirs)
    )
    for dtype, limit in LIMITS.items():
        through = Trajectory(TORCH[name], dtype, **theirs[1]).go()
        first = Trajectory(first_cls, dtype, **first_options).go(0, 20)
        then = Trajectory(then_cls, dtype, **then_options)
        for p, q in zip(then.params, first.params, strict=True):
            p.data.copy_(q.data)
        then.optimizer.load_state_dict(saved(first.optimizer))
        then.go(20)
        assert then.figure(through) <= limit, f"{direction} in {dtype}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TORCH)
def test_an_old_state_dict_lacks_keys_and_has_plain_numbers_for_steps(name, engine):
    through = Trajectory(TORCH[name], torch.float64, foreach=False, **STATEFUL[name]).go()
    first = Trajectory(TORCH[name], torch.float64, foreach=False, **STATEFUL[name]).go(0, 20)
    old = copy.deepcopy(first.optimizer.state_dict())
    for group in old["param_groups"]:
        for key in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
            group.pop(key, None)
    for state in old["state"].values():
        if "step" in state:
            state["step"] = int(state["step"])
    then = Trajectory(optplug.get_optimizer(name), torch.float64, engine=engine, **STATEFUL[name])
    for p, q in zip(then.params, first.params, strict=True):
        p.data.copy_(q.data)
    then.optimizer.load_state_dict(old)
    then.go(20)
    assert then.figure(through) <= 1e-11
    assert then.optimizer.param_groups[0]["maximize"] is False


def test_a_state_dict_of_adam_continues_decoupled_in_adamw_as_in_torch():
    first = Trajectory(torch.optim.Adam, torch.float64, weight_decay=0.1).go(0, 20)
    results = []
    for cls, options in ((torch.optim.AdamW, {"foreach": False}), (optplug.get_optimizer("adamw"), {})):
        then = Trajectory(cls, torch.float64, **options)
        for p, q in zip(then.params, first.params, strict=True):
            p.data.copy_(q.data)
        then.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        results.append(then.go(20))
    assert results[1].figure(results[0]) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", ["sgd", "sgd-momentum", "adam", "adam-amsgrad", "adamw-amsgrad"])
def test_names_dtypes_and_places_of_the_state_are_torchs(case, engine, dtype):
    name, _, variant = case.partition("-")
    options = {"": {}, "momentum": {"momentum": 0.9}, "amsgrad": {"amsgrad": True}}[variant]

    def states(cls, **more):
        params = [torch.ones(s, dtype=dtype).requires_grad_() for s in ((3, 2), (4,), ())]
        optimizer = cls(params, **options, **more)
        for p in params[:2]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        packed = optimizer.state_dict()["state"]
        return {
            i: {k: (v.dtype, v.device, v.shape, v.stride()) for k, v in packed[i].items()} for i in packed
        }, optimizer

    (ours, a), (theirs, b) = states(optplug.get_optimizer(name), engine=engine), states(TORCH[name], foreach=False)
    assert ours == theirs
    assert a.param_groups[0].keys() >= b.param_groups[0].keys()
    shared = b.param_groups[0].keys() - {"params", "foreach"}
    assert {k: a.param_groups[0][k] for k in shared} == {k: b.param_groups[0][k] for k in shared}


# ---------------------------------------------------------------------------------------------- schedulers


def rates(make, steps=200, lrs=(0.1, 0.02), wraps=None):
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs], lr=0.1)
    schedulers = make(optimizer)
    told = []
    for _ in range(steps):
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        told.append([group["lr"] for group in optimizer.param_groups])
    return told


def assert_equal_rates(a, b, limit=1e-12):
    figure = max(abs(x - y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))
    assert figure <= limit


COSINES = [{"T_max": 10}, {"T_max": 200}, {"T_max": 33, "eta_min": 0.001}, {"T_max": 1}, {"T_max": 7, "eta_min": 0.05}]
Cosine = optplug.get_scheduler("cosine_annealing_lr")
Plateau = optplug.get_scheduler("reduce_lr_on_plateau")


@pytest.mark.parametrize("arguments", COSINES, ids=label)
@pytest.mark.parametrize("lrs", [(0.1,), (0.1, 0.02, 1.0)])
def test_cosine_annealing_follows_torch(arguments, lrs):
    ours = rates(lambda o: [Cosine(o, **arguments)], lrs=lrs)
    assert_equal_rates(ours, rates(lambda o: [lr_scheduler.CosineAnnealingLR(o, **arguments)], lrs=lrs))


@pytest.mark.parametrize("arguments", COSINES[:3], ids=label)
def test_cosine_annealing_chains_with_torchs_schedulers_as_torchs_does(arguments):
    def two(cls):
        return lambda o: [cls(o, **arguments), lr_scheduler.StepLR(o, 20, 0.7)]

    def chained(cls):
        return lambda o: [lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.99), cls(o, **arguments)])]

    def after(cls):
        return lambda o: [
            lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), cls(o, **arguments)], [5])
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR steps with an epoch, which torch deprecates
        for make in (two, chained, after):
            assert_equal_rates(rates(make(Cosine)), rates(make(lr_scheduler.CosineAnnealingLR)))


@pytest.mark.parametrize("arguments", COSINES[:3], ids=label)
def test_cosine_annealing_resumes_at_last_epoch_and_jumps_to_an_epoch_as_torchs_does(arguments):
    told = []
    for cls in (Cosine, lr_scheduler.CosineAnnealingLR):
        groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": 0.05, "initial_lr": 0.1}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        scheduler = cls(optimizer, last_epoch=5, **arguments)
        seen = [optimizer.param_groups[0]["lr"]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wants get_last_lr() here
            seen += scheduler.get_lr()
        optimizer.step()
        for _ in range(20):
            scheduler.step()
            seen.append(optimizer.param_groups[0]["lr"])
        for epoch in (3, 17, 0, 40):
            with pytest.warns(UserWarning, match="epoch parameter"):
                scheduler.step(epoch)
            seen.append(optimizer.param_groups[0]["lr"])
        told.append([seen])
    assert_equal_rates(*told)


def test_cosine_annealing_without_initial_lr_cannot_resume_as_in_torch():
    texts = []
    for cls in (Cosine, lr_scheduler.CosineAnnealingLR):
        with pytest.raises(KeyError) as caught:
            cls(torch.optim.SGD([torch.zeros(1, requires_grad=True)]), T_max=3, last_epoch=1)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_state_dicts_of_schedulers_are_exchanged_with_torchs():
    for ours, theirs in ((Cosine, lr_scheduler.CosineAnnealingLR), (lr_scheduler.CosineAnnealingLR, Cosine)):
        optimizers = [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for _ in range(2)]
        first, then = ours(optimizers[0], T_max=9), theirs(optimizers[1], T_max=3)
        for _ in range(5):
            optimizers[0].step()
            first.step()
        optimizers[1].load_state_dict(optimizers[0].state_dict())
        then.load_state_dict(copy.deepcopy(first.state_dict()))
        optimizers[1].step()
        for _ in range(20):
            first.step()
            then.step()
            assert optimizers[0].param_groups[0]["lr"] == pytest.approx(optimizers[1].param_groups[0]["lr"], abs=1e-12)


METRICS = st.one_of(
    st.floats(-3, 3), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0]), st.integers(-2, 2).map(float)
)
COUNTERS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "mode_worse", "min_lrs", "_last_lr")


def same(a, b):
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@settings(max_examples=150)
@given(
    metrics=st.lists(METRICS, min_size=1, max_size=40),
    arguments=st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["min", "max"]),
            "factor": st.sampled_from([0.0, 0.1, 0.5, 0.99]),
            "patience": st.integers(0, 4),
            "threshold": st.sampled_from([0.0, 1e-4, 0.5, 1.0, 2.0]),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 3),
            "min_lr": st.sampled_from([0.0, 0.01, [0.05, 0.001]]),
            "eps": st.sampled_from([0.0, 1e-8, 0.01]),
        }
    ),
)
def test_plateau_counts_as_torchs_on_any_metrics(metrics, arguments):
    pair = []
    for cls in (Plateau, lr_scheduler.ReduceLROnPlateau):
        groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 0.02)]
        pair.append(cls(torch.optim.SGD(groups, lr=0.1), **arguments))
    ours, theirs = pair
    for metric in metrics:
        ours.step(metric)
        theirs.step(metric)
        for name in COUNTERS:
            assert same(getattr(ours, name), getattr(theirs, name)), name
        for a, b in zip(ours.optimizer.param_groups, theirs.optimizer.param_groups, strict=True):
            assert same(a["lr"], b["lr"])
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert same(ours.state_dict()[name], value), name


def test_plateau_chains_with_a_torch_scheduler_as_torchs_does():
    def run(cls):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        plateau, other = cls(optimizer, patience=1, cooldown=1, factor=0.5), lr_scheduler.ExponentialLR(optimizer, 0.99)
        seen = []
        for t in range(200):
            optimizer.step()
            plateau.step(5.0 - t if t < 5 else float(t % 7))
            other.step()
            seen.append([optimizer.param_groups[0]["lr"]])
        return seen

    assert_equal_rates(run(Plateau), run(lr_scheduler.ReduceLROnPlateau))


if __name__ == "__main__":
    print(f"{'':6} {'engine':8} {'dtype':14} {'worst':>8}  allowed  at")
    for name, engine, dtype in itertools.product(TORCH, ENGINES, LIMITS):
        figure, where = worst(name, engine, dtype)
        print(f"{name:6} {engine:8} {dtype!s:14} {figure:8.1e}  {LIMITS[dtype]:7.0e}  {where}")
