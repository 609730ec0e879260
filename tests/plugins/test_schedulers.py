"""The schedulers against torch's own, and functions of the epoch. `python tests/test_schedulers.py` prints the figures.

The figure is max|a - b| of the learning rates over 200 steps, relative where a rate is above 1.
"""

from __future__ import annotations

import copy
import functools
import io
import math
import operator
import pickle
import sys
import time
import warnings
from collections import Counter
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

import optplug
from optplug import FunctionSpec, OptimizerSpec
from optplug.config.build import checked
from optplug.config.expressions import FUNCTIONS, LONGEST, NAMES, Expression, as_function
from optplug.errors import (
    AmbiguousNameError,
    ConfigError,
    ConfigTypeError,
    HyperparameterError,
    PluginError,
    SpecError,
    UnknownNameError,
)
from optplug.registry import Plugin, Registration, Registry, registry
from optplug.schedulers.rebase import overruled
from optplug.schedulers.warmup import Warmup

LIMIT = 1e-12


def falling(t):
    return 0.97**t


def harmonic(t):
    return 1 / (1 + t)


def blinking(t):
    return t // 3 % 2


ARGUMENTS = {
    "step_lr": [
        {"step_size": 30},
        {"step_size": 1, "gamma": 0.97},
        {"step_size": 7, "gamma": 0.5},
        {"step_size": 3, "gamma": 0.0},
        {"step_size": 20, "gamma": 1.3},
        {"step_size": 500},
    ],
    "multi_step_lr": [
        {"milestones": [30, 80]},
        {"milestones": []},
        {"milestones": [0]},
        {"milestones": (80, 30, 6, 6), "gamma": 0.7},
        {"milestones": [0, 0, 1, 199], "gamma": 0.5},
        {"milestones": range(3, 190, 10), "gamma": 1.2},
        {"milestones": [6], "gamma": 0},
    ],
    "exponential_lr": [{"gamma": 0.9}, {"gamma": 0.99}, {"gamma": 1}, {"gamma": 0.0}, {"gamma": 1.01}],
    "cosine_annealing_lr": [
        {"T_max": 10},
        {"T_max": 200},
        {"T_max": 33, "eta_min": 0.001},
        {"T_max": 1},
        {"T_max": 7, "eta_min": 0.05},
    ],
    "lambda_lr": [{"lr_lambda": falling}, {"lr_lambda": harmonic}, {"lr_lambda": blinking}],
}
OURS = {name: optplug.get_scheduler(name) for name in ARGUMENTS}
TORCH = {name: getattr(lr_scheduler, cls.__name__) for name, cls in OURS.items()}
Step, MultiStep, Exponential, Cosine, Lambda = OURS.values()
Plateau = optplug.get_scheduler("reduce_lr_on_plateau")


def label(value):
    if isinstance(value, dict):
        return ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in value.items()).replace(" ", "")
    return None


CASES = [pytest.param(name, a, id=f"{name}-{label(a)}") for name in ARGUMENTS for a in ARGUMENTS[name]]
each_case = pytest.mark.parametrize(("name", "arguments"), CASES)
each_name = pytest.mark.parametrize("name", ARGUMENTS)


def sgd(*lrs, **options):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, **options} for lr in lrs], lr=1)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def rates(make, steps=200, lrs=(0.1, 0.02)):
    optimizer = sgd(*lrs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR steps with an epoch, which torch deprecates
        schedulers = make(optimizer)
        told = [lrs_of(optimizer)]
        for _ in range(steps):
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
            told.append(lrs_of(optimizer))
            assert lrs_of(optimizer) == [float(lr) for lr in schedulers[-1].get_last_lr()]
    return told


def figure(a, b):
    return max(abs(x - y) / max(1, abs(y)) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))


def assert_equal_rates(a, b):
    assert figure(a, b) <= LIMIT


# ---------------------------------------------------------------------------------------------- learning rates


def alone(cls, arguments):
    return lambda o: [cls(o, **arguments)]


@each_case
@pytest.mark.parametrize("lrs", [(0.1,), (0.1, 0.02, 1.0)], ids=["one", "three"])
def test_alone_it_follows_torch(name, arguments, lrs):
    ours = rates(alone(OURS[name], arguments), lrs=lrs)
    assert_equal_rates(ours, rates(alone(TORCH[name], arguments), lrs=lrs))


COMPOSED = {
    "before torch's": lambda make: lambda o: [make(o), lr_scheduler.StepLR(o, 20, 0.7)],
    "after torch's": lambda make: lambda o: [lr_scheduler.ExponentialLR(o, 0.99), make(o)],
    "twice": lambda make: lambda o: [make(o), make(o)],
    "beside torch's cosine": lambda make: lambda o: [lr_scheduler.CosineAnnealingLR(o, 25, 0.01), make(o)],
    "beside torch's lambda": lambda make: lambda o: [lr_scheduler.LambdaLR(o, falling), make(o)],
    "chained": lambda make: (
        lambda o: [
            lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.99), make(o), lr_scheduler.ConstantLR(o)])
        ]
    ),
    "first of a sequence": lambda make: (
        lambda o: [lr_scheduler.SequentialLR(o, [make(o), lr_scheduler.ExponentialLR(o, 0.9)], [50])]
    ),
    "second of a sequence": lambda make: (
        lambda o: [lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), make(o)], [5])]
    ),
    "a sequence of its own": lambda make: (
        lambda o: [lr_scheduler.SequentialLR(o, [make(o), make(o), make(o)], [5, 40])]
    ),
    "a sequence in a sequence": lambda make: (
        lambda o: [
            lr_scheduler.SequentialLR(
                o, [lr_scheduler.SequentialLR(o, [make(o), make(o)], [9]), lr_scheduler.ExponentialLR(o, 0.9)], [30]
            )
        ]
    ),
}


@each_case
@pytest.mark.parametrize("how", COMPOSED)
def test_composed_it_follows_torch(name, arguments, how):
    ours, theirs = (rates(COMPOSED[how](lambda o, cls=classes[name]: cls(o, **arguments))) for classes in (OURS, TORCH))
    assert_equal_rates(ours, theirs)


@pytest.mark.parametrize("order", [list(ARGUMENTS), list(ARGUMENTS)[::-1]], ids=["forth", "back"])
def test_all_on_one_optimizer_follow_torch_whoever_s_each_is(order):
    def make(classes):
        return lambda o: [cls(o, **ARGUMENTS[name][0]) for name, cls in zip(order, classes, strict=True)]

    expected = rates(make([TORCH[name] for name in order]))
    assert_equal_rates(rates(make([OURS[name] for name in order])), expected)
    mixed = [(OURS if i % 2 else TORCH)[name] for i, name in enumerate(order)]
    assert_equal_rates(rates(make(mixed)), expected)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 60), max_size=12), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.25]), st.integers(-1, 20))
def test_any_milestones_follow_torch(milestones, gamma, start):
    def make(cls):
        return lambda o: [cls(o, milestones, gamma)]

    assert_equal_rates(rates(make(MultiStep), 70), rates(make(TORCH["multi_step_lr"]), 70))
    assert_resumes_as_torch("multi_step_lr", {"milestones": milestones, "gamma": gamma}, start)


@settings(max_examples=60)
@given(st.integers(1, 80), st.floats(0, 1.3), st.integers(-1, 90))
def test_any_steps_follow_torch(step_size, gamma, start):
    def make(cls):
        return lambda o: [cls(o, step_size, gamma)]

    assert figure(rates(make(Step), 20), rates(make(TORCH["step_lr"]), 20)) <= LIMIT
    assert_resumes_as_torch("step_lr", {"step_size": step_size, "gamma": gamma}, start)


def test_lambdas_may_differ_by_group():
    arguments = {"lr_lambda": [falling, blinking]}
    assert_equal_rates(rates(alone(Lambda, arguments)), rates(alone(TORCH["lambda_lr"], arguments)))
    seen = rates(alone(Lambda, arguments))
    assert seen[4] == pytest.approx([0.1 * 0.97**4, 0.02])
    assert seen[6] == pytest.approx([0.1 * 0.97**6, 0.0])


# ------------------------------------------------------------------------------------ resuming, jumping, asking


def assert_resumes_as_torch(name, arguments, start):
    told = []
    for cls in (OURS[name], TORCH[name]):
        optimizer = sgd(0.05, initial_lr=0.1)
        scheduler = cls(optimizer, last_epoch=start, **arguments)
        seen = lrs_of(optimizer)
        optimizer.step()
        for _ in range(12):
            scheduler.step()
            seen += lrs_of(optimizer)
        told.append([seen])
    assert_equal_rates(*told)


@each_case
@pytest.mark.parametrize("start", [-1, 0, 2, 5, 28, 29, 79])
def test_it_resumes_at_last_epoch_as_torch_s_does(name, arguments, start):
    assert_resumes_as_torch(name, arguments, start)


@each_case
def test_it_jumps_to_an_epoch_with_torch_s_warning(name, arguments):
    told, texts = [], []
    for cls in (OURS[name], TORCH[name]):
        optimizer = sgd(0.1, 0.02)
        scheduler = cls(optimizer, **arguments)
        optimizer.step()
        seen = []
        for epoch in (3, 17, 0, 40, None, None, 6):
            if epoch is None:
                scheduler.step()
            else:
                with pytest.warns(UserWarning, match="epoch parameter") as caught:
                    scheduler.step(epoch)
                texts.append([str(warning.message) for warning in caught])
            seen.append(lrs_of(optimizer))
        told.append(seen)
    assert_equal_rates(*told)
    assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]


@each_case
@pytest.mark.parametrize("start", [-1, 5])
def test_get_lr_by_hand_warns_and_tells_as_torch_s(name, arguments, start):
    told, texts = [], []
    for cls in (OURS[name], TORCH[name]):
        optimizer = sgd(0.1, 0.02, initial_lr=0.1)
        scheduler = cls(optimizer, last_epoch=start, **arguments)
        optimizer.step()
        seen = []
        for _ in range(9):
            with pytest.warns(UserWarning, match="get_last_lr") as caught:
                seen.append(scheduler.get_lr())
            texts.append([str(warning.message) for warning in caught])
            scheduler.step()
        told.append(seen)
    assert_equal_rates(*told)
    assert texts[:9] == texts[9:]


@each_name
def test_without_initial_lr_it_cannot_resume_as_in_torch(name):
    texts = []
    for cls in (OURS[name], TORCH[name]):
        with pytest.raises(KeyError) as caught:
            cls(sgd(0.1), **ARGUMENTS[name][0], last_epoch=1)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


@each_case
def test_a_tensor_as_rate_is_set_in_place_to_what_torch_sets(name, arguments):
    told = []
    for cls in (OURS[name], TORCH[name]):
        lrs = [torch.tensor(0.1, dtype=torch.float64), torch.tensor([0.02], dtype=torch.float64)]
        optimizer = sgd(*lrs)
        scheduler = cls(optimizer, **arguments)
        seen = []
        for _ in range(100):
            optimizer.step()
            scheduler.step()
            seen.append([lr.item() for lr in lrs])
            assert [group["lr"] is lr for group, lr in zip(optimizer.param_groups, lrs, strict=True)] == [True, True]
            assert not any(a is b for a in scheduler.get_last_lr() for b in lrs)
        told.append(seen)
        assert [float(lr) for lr in scheduler.base_lrs] == [0.1, 0.02]
    assert_equal_rates(*told)


@each_case
@pytest.mark.parametrize("start", [-1, 3])
def test_what_get_lr_tells_is_nobody_s_tensor(name, arguments, start):
    rate = torch.tensor(0.1, dtype=torch.float64)
    scheduler = OURS[name](sgd(rate, initial_lr=torch.tensor(0.1, dtype=torch.float64)), last_epoch=start, **arguments)
    before = rate.item()
    with pytest.warns(UserWarning, match="get_last_lr"):
        (told,) = scheduler.get_lr()
    told.fill_(7.0)
    assert (rate.item(), float(scheduler.base_lrs[0])) == (before, 0.1)


def test_a_rate_that_overflows_is_refused_in_one_sentence():
    scheduler = Exponential(sgd(0.1), gamma=1e200)
    scheduler.optimizer.step()
    with (
        pytest.raises(HyperparameterError, match="ExponentialLR: the learning rate overflows at step 2"),
        pytest.warns(UserWarning, match="epoch parameter"),
    ):
        scheduler.step(2)
    with pytest.raises(HyperparameterError, match="MultiStepLR: the learning rate overflows at step 0"):
        MultiStep(sgd(0.1), [0, 0], 1e200)


def test_a_rate_that_has_decayed_to_nothing_stays_a_factor_for_others():
    def make(cls):
        return lambda o: [cls(o, 0.5), lr_scheduler.ExponentialLR(o, 2.0)]

    assert_equal_rates(rates(make(Exponential), 1100, (0.1,)), rates(make(TORCH["exponential_lr"]), 1100, (0.1,)))


def test_groups_may_be_added_later_as_in_torch():
    told = []
    for cls in (Exponential, TORCH["exponential_lr"]):
        optimizer = sgd(0.1)
        scheduler = cls(optimizer, 0.9)
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 3.0})
        optimizer.step()
        scheduler.step()
        told.append([lrs_of(optimizer)])
    assert_equal_rates(*told)


def test_groups_that_were_added_have_a_closed_form_too():
    optimizer = sgd(0.1)
    scheduler = Exponential(optimizer, 0.9)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 3.0})
    optimizer.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(4)
    assert lrs_of(optimizer) == pytest.approx([0.1 * 0.9**4, 3.0 * 0.9**4], rel=1e-15)


# ------------------------------------------------------------------------------------------------ state dicts


def saved_and_loaded(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_name
@pytest.mark.parametrize("ours_first", [True, False], ids=["to torch", "from torch"])
def test_state_dicts_are_exchanged_with_torch_s(name, ours_first):
    classes = (OURS[name], TORCH[name]) if ours_first else (TORCH[name], OURS[name])
    (given, other), optimizers = ARGUMENTS[name][:2], [sgd(0.1, 0.02), sgd(0.1, 0.02)]
    if name == "lambda_lr":
        other = given  # plain functions are not in the state
    first, then = classes[0](optimizers[0], **given), classes[1](optimizers[1], **other)
    for _ in range(35):
        optimizers[0].step()
        first.step()
    state = saved_and_loaded(first.state_dict())
    before = copy.deepcopy(state)
    assert state.keys() == then.state_dict().keys()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    then.load_state_dict(state)
    assert state == before
    optimizers[1].step()
    for _ in range(60):
        first.step()
        then.step()
        assert_equal_rates([lrs_of(optimizers[0])], [lrs_of(optimizers[1])])


def test_milestones_are_a_counter_and_of_another_scheduler_too():
    first = MultiStep(sgd(0.1), [3, 1, 3])
    assert first.milestones == Counter({3: 2, 1: 1})
    assert type(saved_and_loaded(first.state_dict())["milestones"]) is Counter
    assert MultiStep(sgd(0.1), first.milestones).milestones == first.milestones
    assert MultiStep(sgd(0.1), iter([3, 1, 3])).milestones == first.milestones


def test_numbers_of_numpy_are_kept_as_python_s_which_every_checkpoint_can_hold():
    numpy = pytest.importorskip("numpy")
    for scheduler in (
        Step(sgd(0.1), numpy.int64(3), numpy.float32(0.5)),
        MultiStep(sgd(0.1), numpy.arange(3), numpy.float64(0.5)),
        Cosine(sgd(0.1), numpy.int32(7), last_epoch=numpy.int64(-1)),
    ):
        assert saved_and_loaded(scheduler.state_dict()) == scheduler.state_dict()
        for value in vars(scheduler).values():
            assert type(value).__module__ != "numpy"


class Decay:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, t):
        return self.factor**t

    def method(self, t):
        return self.factor**t


class Slotted:
    __slots__ = ()

    def __call__(self, t):
        return 1.0


def test_of_callable_objects_the_attributes_are_saved_and_of_all_else_nothing():
    stateless = [falling, lambda t: 1.0, math.exp, Decay(0.5).method, functools.partial(pow, 0.5), Slotted(), float]
    scheduler = Lambda(sgd(*[0.1] * 9), [Decay(0.5), *stateless, Expression("0.9 ** epoch")])
    state = saved_and_loaded(scheduler.state_dict())
    assert state["lr_lambdas"] == [{"factor": 0.5}, *[None] * 7, {"text": "0.9 ** epoch"}]
    scheduler.state_dict()["lr_lambdas"][0]["factor"] = 3
    assert scheduler.lr_lambdas[0].factor == 0.5


@pytest.mark.parametrize("classes", [(Lambda, TORCH["lambda_lr"]), (TORCH["lambda_lr"], Lambda), (Lambda, Lambda)])
def test_attributes_of_callable_objects_are_exchanged(classes):
    first, then = (
        cls(sgd(0.1, 0.2), [Decay(f), Expression(t)])
        for cls, f, t in zip(classes, (0.5, 0.9), ("1 / 2", "1 / 3"), strict=True)
    )
    state = saved_and_loaded(first.state_dict())
    before, held = copy.deepcopy(state), list(then.lr_lambdas)
    then.load_state_dict(state)
    assert state == before
    assert all(map(operator.is_, then.lr_lambdas, held))
    assert (held[0].factor, held[1](3)) == (0.5, 0.5)


@each_name
def test_the_state_of_another_scheduler_is_refused(name):
    scheduler = OURS[name](sgd(0.1), **ARGUMENTS[name][0])
    with pytest.raises(ConfigError, match=f"the checkpoint's scheduler is no {OURS[name].__name__}: it has the keys"):
        scheduler.load_state_dict({"best": 3, "last_epoch": 3})
    for other in OURS.keys() - {name}:
        before = copy.deepcopy(scheduler.state_dict())
        with pytest.raises(ConfigError, match="the checkpoint's scheduler is no"):
            scheduler.load_state_dict(OURS[other](sgd(0.1), **ARGUMENTS[other][0]).state_dict())
        assert scheduler.state_dict().keys() == before.keys()


def test_a_scheduler_may_gain_attributes_and_finds_back_into_its_own_checkpoint():
    scheduler = OURS["step_lr"](sgd(0.1), step_size=2)
    scheduler.run = "x"
    other = OURS["step_lr"](sgd(0.1), step_size=3)
    other.load_state_dict(scheduler.state_dict())
    assert (other.run, other.step_size) == ("x", 2)


def test_a_rate_that_grows_beyond_all_numbers_is_refused():
    scheduler = OURS["exponential_lr"](sgd(0.1), gamma=1e200)
    scheduler.optimizer.step()
    scheduler.step()
    with pytest.raises(HyperparameterError, match="ExponentialLR: the learning rate overflows at step 2"):
        scheduler.step()


def test_attributes_for_a_plain_function_are_refused_and_an_empty_dict_is_none():
    scheduler = Lambda(sgd(0.1), falling)
    saved = Lambda(sgd(0.1), Decay(0.5)).state_dict()
    with pytest.raises(ConfigError, match=r"has the attributes \{'factor': 0.5\}, and <function falling"):
        scheduler.load_state_dict(saved)
    assert "factor" not in vars(falling)
    scheduler.load_state_dict({**saved, "lr_lambdas": [{}]})  # torch's of a partial
    with pytest.raises(ConfigError, match="cannot take them"):
        Lambda(sgd(0.1), Slotted()).load_state_dict(saved)
    with pytest.raises(ConfigError, match="has 2 lr_lambdas, this one 1"):
        scheduler.load_state_dict({**saved, "lr_lambdas": [None, None]})


@each_name
def test_schedulers_survive_pickle_and_deepcopy(name):
    arguments = {"lr_lambda": "0.9 ** epoch"} if name == "lambda_lr" else ARGUMENTS[name][0]
    scheduler = optplug.create_scheduler(name, optplug.create_optimizer("sgd", nn.Linear(2, 1), lr=0.1), **arguments)
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler.state_dict()))):
        state = twin if isinstance(twin, dict) else twin.state_dict()
        assert state == scheduler.state_dict()


# --------------------------------------------------------------------------------------------------- plateau


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
    ours, theirs = (cls(sgd(0.1, 0.02), **arguments) for cls in (Plateau, lr_scheduler.ReduceLROnPlateau))
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
        optimizer = sgd(0.1)
        plateau, other = cls(optimizer, patience=1, cooldown=1, factor=0.5), lr_scheduler.ExponentialLR(optimizer, 0.99)
        seen = []
        for t in range(200):
            optimizer.step()
            plateau.step(5.0 - t if t < 5 else float(t % 7))
            other.step()
            seen.append(lrs_of(optimizer))
        return seen

    assert_equal_rates(run(Plateau), run(lr_scheduler.ReduceLROnPlateau))


def test_states_of_plateaus_are_exchanged_with_torch_s():
    for classes in ((Plateau, lr_scheduler.ReduceLROnPlateau), (lr_scheduler.ReduceLROnPlateau, Plateau)):
        first, then = (cls(sgd(0.1), patience=p) for cls, p in zip(classes, (1, 5), strict=True))
        for _ in range(3):
            first.step(1.0)
        then.load_state_dict(saved_and_loaded(first.state_dict()))
        assert then.state_dict() == first.state_dict()


# ------------------------------------------------------------------------------------------------ expressions


ENVIRONMENT = {"__builtins__": {}, "pi": math.pi, "e": math.e, "abs": abs, "min": min, "max": max}
ENVIRONMENT |= {name: getattr(math, name) for name in ("sqrt", "exp", "log", "cos", "sin")}
ENVIRONMENT |= {"floor": lambda x: float(math.floor(x)), "ceil": lambda x: float(math.ceil(x))}

SAFE = [
    "0.95 ** epoch",
    "1e-3",
    "epoch",
    "epoch // 30 + 2.5",
    "1 / (1 + epoch % 7)",
    "max(0.1, 1 - epoch / 100, e / 9)",
    "0.5 * (1 + cos(pi * epoch / 50))",
    "1 if epoch < 5 else 0.1 if epoch <= 8 else 0.01",
    "not epoch % 2",
    "epoch > 3 and 0.5 or 1",
    "1 < epoch < 4 != 3",
    "-epoch + +3e2",
    "2 ** -epoch",
    "sqrt(abs(min(epoch, 4) - 2)) + exp(-epoch) + log(1 + epoch) + log(8, 2) + sin(epoch) + ceil(epoch / 3)",
    " (epoch\n+ 1) ",
]


@pytest.mark.parametrize("text", SAFE)
def test_an_expression_is_what_python_makes_of_it(text):
    expression = Expression(text)
    for epoch in [*range(20), 1000]:
        value = expression(epoch)
        assert type(value) is float
        expected = float(eval(text.strip(), {**ENVIRONMENT, "epoch": epoch}))
        assert value == pytest.approx(expected, rel=1e-14, abs=0)


def combined(inner):
    pairs = st.tuples(inner, inner)
    return st.one_of(
        st.builds("({0[0]} {1} {0[1]})".format, pairs, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"])),
        st.builds(
            "{1}({0})".format, inner, st.sampled_from(["abs", "sqrt", "exp", "log", "cos", "sin", "floor", "ceil"])
        ),
        st.builds("{1}({0[0]}, {0[1]})".format, pairs, st.sampled_from(["min", "max"])),
        st.builds("-{0}".format, inner),
        st.builds("({0[0]} if {0[1]} {1} {2} else {2})".format, pairs, st.sampled_from(["<", ">=", "=="]), inner),
    )


ATOMS = st.sampled_from(["epoch", "pi", "e", "0.0", "1.0", "2.0", "0.5", "7.25", "1e3"])


@settings(max_examples=400)
@given(st.recursive(ATOMS, combined, max_leaves=8), st.integers(0, 50))
def test_any_expression_is_what_python_makes_of_it_or_is_refused_where_python_fails(text, epoch):
    def ours():
        try:
            return Expression.__call__(unchecked, epoch)
        except ConfigError:
            return None

    def python():
        try:
            value = eval(text, {**ENVIRONMENT, "epoch": float(epoch)})
            return value if not isinstance(value, complex) and math.isfinite(value) else None
        except (ArithmeticError, ValueError, TypeError):  # TypeError: of a complex intermediate result
            return None

    unchecked = Expression("1")
    unchecked.text = text
    a, b = ours(), python()
    if "**" in text and a is None:  # two complex powers may make a real number again; to us they are wrong
        return
    assert a == b


MALICIOUS = {
    "import": ("__import__('os')", "there is no function '__import__'"),
    "import and call": ("__import__('os').system('true')", "only functions can be called"),
    "attribute of a number": ("(1).__class__", "Attribute is not allowed"),
    "attribute of a name": ("epoch.__class__.__mro__[1]", "Subscript is not allowed"),
    "attribute of a function": ("abs.__self__", "Attribute is not allowed"),
    "calling a call": ("abs(epoch)(3)", "only functions can be called"),
    "calling a number": ("3(4)", "only functions can be called"),
    "calling a name": ("epoch(3)", "there is no function 'epoch'"),
    "eval": ("eval('1')", "there is no function 'eval'"),
    "open": ("open('/etc/passwd')", "there is no function 'open'"),
    "a dunder": ("__builtins__", "there is no name '__builtins__'"),
    "a function as a value": ("max", "max is a function: write max(epoch)"),
    "a function as an argument": ("max(epoch, exp)", "exp is a function: write exp(epoch)"),
    "a lambda": ("lambda epoch: 1", "write what it returns alone"),
    "a comprehension": ("[x for x in (1, 2)]", "ListComp is not allowed"),
    "a generator": ("max(x for x in y)", "max of 1 numbers; it takes 2 or more"),
    "a starred argument": ("max(1, *(2, 3))", "Starred is not allowed"),
    "a keyword": ("log(epoch, base=2)", "log takes no arguments by name"),
    "keywords": ("log(**epoch)", "log takes no arguments by name"),
    "an f-string": ("f'{epoch}'", "JoinedStr is not allowed"),
    "text": ("'a' * 3", "'a' is no number"),
    "a long text": ("'a' * 10**9", "'a' is no number"),
    "a complex number": ("1j", "'1j' is no number"),
    "nothing": ("None + 1", "'None' is no number"),
    "an ellipsis": ("...", "'Ellipsis' is no number"),
    "a list": ("[1][0]", "Subscript is not allowed"),
    "a dict": ("{}", "Dict is not allowed"),
    "an assignment": ("epoch := 3", "is no expression (invalid syntax)"),
    "a nested assignment": ("(epoch := 3)", "NamedExpr is not allowed"),
    "a statement": ("import os", "is no expression (invalid syntax)"),
    "two statements": ("1; 2", "is no expression (invalid syntax)"),
    "two lines": ("1\n2", "is no expression (invalid syntax)"),
    "a null byte": ("1\0", "is no expression"),
    "nothing at all": ("  ", "is no expression"),
    "a tower of powers": ("9**9**9", "has no value at epoch 0: OverflowError"),
    "a great power": ("9 ** 9999999", "has no value at epoch 0: OverflowError: (34, 'Numerical result out of range')"),
    "a taller tower": ("9**9**9**9**9**9", "has no value at epoch 0: OverflowError"),
    "a tower of truths": ("(1>0)+(1>0)**((1>0)+(1>0))**99999999**9", "OverflowError"),
    "a great integer": ("10**400", "has no value at epoch 0: OverflowError"),
    "a great literal": ("9" * 400, "int too large"),
    "a power of negatives": ("(-8) ** (1 / 3)", "-8 ** 0.333333 is complex"),
    "a shift": ("1 << 10**9", "LShift is not allowed"),
    "a bitwise or": ("1 | 2", "BitOr is not allowed"),
    "a caret": ("0.95 ^ epoch", "a power is written **, not ^"),
    "membership": ("1 in (1, 2)", "In is not allowed"),
    "too long": ("1+" * LONGEST + "1", f"has {2 * LONGEST + 1} characters, {LONGEST} are allowed"),
    "much too long": ("(" * 10**6, "has 1000000 characters"),
    "a very long name": ("x" * 10**6, "has 1000000 characters"),
    "too deep": ("-" * (LONGEST - 1) + "1", "RecursionError"),
    "many brackets": ("(" * (LONGEST // 2) + "1", "is no expression"),
    "a branch never taken": ("1 if epoch >= 0 else danger", "there is no name 'danger'"),
    "a call never taken": ("1 if epoch >= 0 else sqrt(1, 2)", "sqrt of 2 numbers; it takes 1"),
    "a misspelt name": ("0.95 ** epch", "there is no name 'epch'; there are epoch, e, pi; did you mean 'epoch'?"),
    "a misspelt function": ("sqr(epoch)", "did you mean 'sqrt'?"),
    "too many arguments": ("log(1, 2, 3)", "log of 3 numbers; it takes 1 to 2"),
    "infinity": ("1e308 * 10", "is inf at epoch 0"),
    "not a number": ("(1e308 * 10) - (1e308 * 10)", "is nan at epoch 0"),
    "division by zero": ("1 / epoch", "expression '1 / epoch' has no value at epoch 0: ZeroDivisionError"),
    "out of a domain": ("log(epoch)", "has no value at epoch 0: ValueError"),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_what_is_no_arithmetic_is_refused_quickly(case):
    text, complaint = MALICIOUS[case]
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        as_function(text)
    assert time.perf_counter() - start < 10  # what is not refused at once would take hours
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "epoch", "complaint"),
    [
        ("1 / (epoch - 3)", 3, "expression '1 / (epoch - 3)' has no value at epoch 3: ZeroDivisionError"),
        ("exp(epoch)", 800, "expression 'exp(epoch)' has no value at epoch 800: OverflowError"),
        (
            "(2 - epoch) ** 0.5",
            3,
            "expression '(2 - epoch) ** 0.5' has no value at epoch 3: ValueError: -1 ** 0.5 is c",
        ),
        ("1e300 * epoch ** 9", 10, "expression '1e300 * epoch ** 9' is inf at epoch 10"),
    ],
)
def test_an_epoch_without_a_value_is_named_when_it_comes(text, epoch, complaint):
    expression = Expression(text)
    with pytest.raises(ConfigError) as caught:
        expression(epoch)
    assert str(caught.value).startswith(complaint)
    scheduler = optplug.create_scheduler("lambda_lr", sgd(0.1), lr_lambda=text)
    scheduler.last_epoch = epoch - 1
    scheduler.optimizer.step()
    with pytest.raises(ConfigError, match="at epoch"):
        scheduler.step()


def test_an_expression_is_its_text_and_is_parsed_once(monkeypatch):
    import optplug.config.expressions as module

    module._parsed.cache_clear()
    expression = Expression(" 0.5 ** epoch ")
    twin = pickle.loads(pickle.dumps(copy.deepcopy(expression)))
    assert vars(expression) == vars(twin) == {"text": "0.5 ** epoch"}
    assert [expression(t) for t in range(4)] == [twin(t) for t in range(4)] == [1, 0.5, 0.25, 0.125]
    assert module._parsed.cache_info().misses == 1
    assert repr(expression) == "Expression('0.5 ** epoch')"


@pytest.mark.parametrize("value", [None, True, {}, [], {"text": "1"}, b"1"])
def test_what_stands_for_no_function_is_a_type_error(value):
    with pytest.raises(ConfigTypeError, match=r"must be an expression such as '0.95 \*\* epoch', the name of a reg"):
        as_function(value)
    with pytest.raises(ConfigTypeError, match="an expression must be text"):
        Expression(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400])
def test_a_number_without_a_finite_value_is_refused(value):
    with pytest.raises(ConfigError):
        as_function(value)


@pytest.mark.parametrize("value", [0, 3, 0.5, -1.5, 1e-30, torch.tensor(0.25).item()])
def test_a_number_is_an_expression(value):
    assert as_function(value)(7) == value


# ------------------------------------------------------------------------------------------- registered functions


def ramp(epoch):
    """Up for five epochs, then flat.

    And so on.
    """
    return min(1.0, (epoch + 1) / 5)


@pytest.fixture
def offered(monkeypatch):
    """Lets plugins offer functions: `offered(plugin, ramp)`."""

    def registration(plugin, *functions):
        registrations = registry._catalogue().registrations["function"]
        for function in functions:
            spec = function if isinstance(function, FunctionSpec) else FunctionSpec(function.__name__, function)
            key = spec.name.replace("_", "")
            monkeypatch.setitem(
                registrations,
                key,
                [*registrations.get(key, []), Registration(spec, Plugin(plugin, f"{plugin}-dist", "1"))],
            )

    return registration


def slow_start(epoch):
    return 0.1 if epoch < 2 else 1.0


@pytest.mark.parametrize(
    "name", ["slow_start", "Slow-Start", "SLOWSTART", " slowStart ", "zoo:slow-start", "Zoo:SlowStart"]
)
def test_a_registered_function_is_found_by_any_spelling(offered, name):
    offered("zoo", slow_start)
    assert as_function(name) is slow_start


def test_names_of_expressions_are_not_to_be_taken(offered):
    offered("zoo", *(FunctionSpec(name, ramp) for name in (*NAMES, "cos", "epoch_1")))
    assert [as_function(name)(1) for name in NAMES] == [1.0, math.e, math.pi]
    assert as_function("epoch-1")(5) == 4.0
    assert as_function("zoo:epoch") is as_function("zoo:epoch-1") is as_function("cos") is ramp
    assert as_function("cos(epoch)")(0) == 1.0


def test_a_name_that_two_plugins_offer_must_say_whose(offered):
    offered("one", ramp)
    offered("two", FunctionSpec("ramp", slow_start))
    with pytest.raises(AmbiguousNameError, match="2 plugins offer function 'ramp': write 'one:ramp' or 'two:ramp'"):
        as_function("ramp")
    assert (as_function("one:ramp"), as_function("two:ramp")) == (ramp, slow_start)


def test_an_unknown_name_gets_the_nearest_of_both(offered):
    offered("zoo", ramp)
    with pytest.raises(UnknownNameError) as caught:
        as_function("rump")
    assert str(caught.value) == (
        "no function named 'rump'; did you mean 'ramp'? Installed: ramp. In an expression there are epoch, e, pi, "
        f"{', '.join(FUNCTIONS)}."
    )
    with pytest.raises(UnknownNameError, match="did you mean 'epoch'"):
        as_function("epohc")
    with pytest.raises(UnknownNameError, match="no function named 'other:ramp'"):
        as_function("other:ramp")
    with pytest.raises(UnknownNameError, match=r"\('adam' is a optimizer\.\)|\('adam' is an optimizer\.\)"):
        as_function("adam")


def plugin_of(monkeypatch, **names):
    module = ModuleType("functions_plugin")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, "functions_plugin", module)
    return Registry([EntryPoint("zoo", "functions_plugin", "optplug")])


def offering(monkeypatch, returned):
    @optplug.hookimpl
    def optplug_functions():
        return returned() if returned.__name__ == "<lambda>" else returned

    return plugin_of(monkeypatch, optplug_functions=optplug_functions, ramp=ramp, nothing=3)


def test_a_plain_function_is_registered_under_its_name(monkeypatch):
    found = offering(monkeypatch, lambda: [ramp])
    assert not found.quarantined
    (registration,) = found.registrations("function")
    assert (registration.name, registration.spec.summary, found.get("function", "Ramp")) == (
        "ramp",
        "Up for five epochs, then flat.",
        ramp,
    )


def test_a_spec_names_a_function_by_its_place_or_itself(monkeypatch):
    unhashable = type("U", (), {"__hash__": None, "__call__": lambda self, t: 1.0})()
    specs = [
        FunctionSpec("far", "functions_plugin:ramp", "far away"),
        FunctionSpec("near", lambda t: 1.0),
        FunctionSpec("thing", unhashable),
        FunctionSpec("c", math.exp),
    ]
    found = offering(monkeypatch, lambda: specs)
    assert found.names("function") == ["c", "far", "near", "thing"]
    assert found.get("function", "far") is ramp
    assert found.get("function", "thing") is unhashable
    assert found.get("function", "near")(3) == 1.0


NONSENSE = {
    "a lambda": (lambda: [lambda t: 1.0], "has no name to be registered under: make it a function by def, or give Fun"),
    "a partial": (lambda: [functools.partial(pow, 0.5)], "has no name to be registered under"),
    "a class": (lambda: [Decay], "returned <class", "items must be FunctionSpec or functions"),
    "text": (
        lambda: ["ramp"],
        "optplug_functions() returned 'ramp' in its list; items must be FunctionSpec or functions",
    ),
    "no list": (lambda: ramp, "returned <function ramp", "it must return a list of specs or functions"),
    "nothing": (lambda: None, "optplug_functions() returned None; it must return a list of specs or functions"),
    "a spec of another kind": (lambda: [OptimizerSpec("x", "m:X")], "items must be FunctionSpec or functions"),
    "a spec class": (lambda: [FunctionSpec], "items must be FunctionSpec or functions"),
    "a target that is a number": (
        lambda: [FunctionSpec("x", 3)],
        "target of function 'x' is 3: give 'module:object' or a",
    ),
    "a target that is a class": (lambda: [FunctionSpec("x", Decay)], "give 'module:object' or a function"),
    "a name in capitals": (lambda: [FunctionSpec("X", ramp)], "function name 'X' is not snake case"),
    "a capability": (
        lambda: [FunctionSpec("x", ramp, capabilities="sparse")],
        "function 'x' declares capability 'sparse'; known are none",
    ),
    "an API of the future": (lambda: [FunctionSpec("x", ramp, api_version=9)], "was written for plugin API 9"),
    "a name twice": (lambda: [ramp, FunctionSpec("RAMP".lower(), ramp)], "optplug_functions() returned 'ramp' twice"),
    "a failure": (lambda: 1 / 0, "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_plugin_whose_functions_are_none_is_quarantined(monkeypatch, case):
    returned, *causes = NONSENSE[case]
    found = offering(monkeypatch, returned)
    assert found.names("function") == []
    (quarantined,) = found.quarantined
    for cause in causes:
        assert cause in quarantined.cause


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("functions_plugin:nothing", "is 3, which is no function (it has no __call__)"),
        ("functions_plugin:Nowhere", "could not be loaded from 'functions_plugin:Nowhere': AttributeError"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("collections:Counter", "is <class 'collections.Counter'>, which is no function"),
    ],
)
def test_a_target_that_is_no_function_is_an_error_when_asked_for(monkeypatch, target, complaint):
    found = offering(monkeypatch, lambda: [FunctionSpec("x", target)])
    assert found.names("function") == ["x"]
    with pytest.raises(PluginError) as caught:
        found.get("function", "x")
    assert complaint.removesuffix(" (it has no __call__)") in str(caught.value)


def test_a_spec_of_a_function_says_so():
    with pytest.raises(SpecError, match="give 'module:object' or a function"):
        FunctionSpec("x", None)
    assert FunctionSpec("x", ramp).kind == "function"


def test_the_hook_is_documented_with_its_signature():
    import inspect

    from optplug.registry import hookspecs

    signature = str(inspect.signature(hookspecs.optplug_functions)).replace("'", "")
    page = Path(__file__).parent.parent.parent.joinpath("docs/plugins.md").read_text()
    assert f"def optplug_functions{signature}" in page


def test_list_and_info_show_functions(offered):
    from typer.testing import CliRunner

    from optplug.cli.app import app

    offered(
        "zoo", FunctionSpec("ramp", ramp, "up, then flat"), FunctionSpec("thing", Decay(0.5)), FunctionSpec("m", max)
    )
    shown = CliRunner().invoke(app, ["list", "ramp"])
    assert [line.split() for line in shown.stdout.splitlines() if line] == [
        ["function", "plugin", "version", "summary"],
        ["ramp", "zoo", "zoo-dist", "1", "up,", "then", "flat"],
    ]
    lines = CliRunner().invoke(app, ["info", "Ramp"]).stdout.splitlines()
    assert lines[:3] == [
        "ramp: up, then flat",
        "  kind          function",
        f"  function      {__name__}.ramp",
    ]
    assert ["epoch", "required"] in [line.split() for line in lines]
    assert "Up for five epochs, then flat." in lines
    assert f"  function      {__name__}.Decay" in CliRunner().invoke(app, ["info", "thing"]).stdout
    assert CliRunner().invoke(app, ["info", "m"]).exit_code == 0  # it has no signature


# --------------------------------------------------------------------------------------------- configurations


def configured(scheduler, **options):
    module = nn.Linear(2, 1)
    made = optplug.configure_optimizers(module, {"name": "sgd", "lr": 0.1}, scheduler, **options)
    return made["lr_scheduler"]["scheduler"]


def go(scheduler, steps):
    seen = [lrs_of(scheduler.optimizer)]
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        seen.append(lrs_of(scheduler.optimizer))
    return seen


@each_case
def test_a_configuration_builds_what_the_class_builds(name, arguments):
    if name == "lambda_lr" or isinstance(arguments.get("milestones"), range):
        return
    assert_equal_rates(go(configured({"name": name, **arguments}), 50), go(OURS[name](sgd(0.1), **arguments), 50))


@pytest.mark.parametrize(
    "value",
    ["0.5 ** epoch", ["0.5 ** epoch"], "halves", "ZOO:Halves", ["halves"], lambda t: 0.5**t, [lambda t: 0.5**t]],
)
def test_a_function_is_given_as_text_by_name_or_itself(offered, value):
    offered("zoo", FunctionSpec("halves", lambda t: 0.5**t))
    assert go(configured({"name": "LambdaLR", "lr_lambda": value}), 3) == [[0.1], [0.05], [0.025], [0.0125]]
    made = optplug.create_scheduler("lambda_lr", sgd(0.1), lr_lambda=value)
    assert go(made, 3) == [[0.1], [0.05], [0.025], [0.0125]]


def test_a_plain_number_is_a_function_and_kinds_may_be_mixed():
    scheduler = optplug.create_scheduler("lambda_lr", sgd(1, 1, 1, 1), lr_lambda=[0.5, "epoch", falling, 2])
    assert go(scheduler, 2)[2] == [0.5, 2, 0.97**2, 2]


def test_a_list_has_one_for_each_group_of_the_configuration():
    groups = [{"match": "bias", "lr": 1.0}]
    scheduler = configured({"name": "lambda_lr", "lr_lambda": ["0.5 ** epoch", 1]}, param_groups=groups)
    by_name = {group["name"]: i for i, group in enumerate(scheduler.optimizer.param_groups)}
    last = go(scheduler, 2)[-1]
    assert sorted(last) in ([0.025, 1.0], [0.1, 0.25])
    assert set(by_name) == {"bias", "default"}
    with pytest.raises(HyperparameterError, match="Expected 2 lr_lambdas, but got 3"):
        configured({"name": "lambda_lr", "lr_lambda": [1, 1, 1]}, param_groups=groups)
    with pytest.raises(HyperparameterError, match="Expected 1 lr_lambdas, but got 2"):
        checked("sgd", {"name": "lambda_lr", "lr_lambda": [1, 1]})


@pytest.mark.parametrize(
    ("value", "kind", "complaint"),
    [
        ("0.95 ** epch", ConfigError, "scheduler.lr_lambda: expression '0.95 ** epch': there is no name 'epch'"),
        ("decay", UnknownNameError, "scheduler.lr_lambda: no function named 'decay'"),
        (["1", "oops(epoch)"], ConfigError, "scheduler.lr_lambda: expression 'oops(epoch)': there is no function"),
        (None, ConfigTypeError, "scheduler.lr_lambda: a function of the epoch must be"),
        ("1 / epoch", ConfigError, "scheduler.lr_lambda: expression '1 / epoch' has no value at epoch 0"),
    ],
)
def test_a_wrong_function_is_refused_before_training(value, kind, complaint):
    with pytest.raises(kind) as caught:
        checked("adam", {"name": "lambda_lr", "lr_lambda": value})
    assert str(caught.value).startswith(complaint)


def test_values_beside_a_list_are_checked_before_training_in_spite_of_groups():
    groups = [{"match": "bias", "lr": 1.0}]
    with pytest.raises(HyperparameterError, match="MultiStepLR: gamma must be at least 0"):
        checked("sgd", {"name": "multi_step_lr", "milestones": [3, 4, 5], "gamma": -1}, param_groups=groups)
    for good in ([], [3], [3, 4, 5]):
        checked("sgd", {"name": "multi_step_lr", "milestones": good}, param_groups=groups)


def test_a_configuration_stays_plain_data(offered):
    offered("zoo", ramp)
    given = {"name": "lambda_lr", "lr_lambda": ["ramp", "0.5"]}
    config = checked("sgd", given, param_groups=[{"match": "bias", "lr": 1.0}])
    assert config.scheduler.arguments == {"lr_lambda": ["ramp", "0.5"]}
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_expression_of_a_checkpoint_is_resumed():
    first = optplug.create_scheduler("lambda_lr", sgd(0.1), lr_lambda="0.5 ** epoch")
    go(first, 3)
    second = optplug.create_scheduler("lambda_lr", sgd(0.1), lr_lambda="0.9 ** epoch")
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert go(second, 3) == go(first, 3)


def test_any_scheduler_may_declare_arguments_that_are_functions(monkeypatch):
    class Twofold(optplug.ClosedFormLR):
        """Two functions, multiplied."""

        functions = ("up", "down")

        def __init__(self, optimizer, up, down="1", last_epoch=-1):
            self.up, self.down = up, down
            super().__init__(optimizer, last_epoch)

        def multiplier(self, t):
            return self.up(t) * (self.down(t) if callable(self.down) else 1)

    spec = optplug.SchedulerSpec("twofold", Twofold)
    registrations = registry._catalogue().registrations["scheduler"]
    monkeypatch.setitem(registrations, "twofold", [Registration(spec, Plugin("p", "d", "1"))])
    made = optplug.create_scheduler("twofold", sgd(0.1), up="1 + epoch", down="0.5 ** epoch")
    assert go(made, 2) == [[0.1], [pytest.approx(0.1)], [pytest.approx(0.075)]]
    assert optplug.create_scheduler("twofold", sgd(0.1), up=2).down == "1"  # a default is the class's own affair


# ------------------------------------------------------------------------------------------ positions of a plateau


SETTINGS = {
    "mode": st.sampled_from(["min", "max"]),
    "factor": st.sampled_from([0.0, 0.1, 0.5, 0.99]),
    "patience": st.integers(0, 4),
}
POSITIONED = {"position", "elapsed"}


def assert_alike(ours, theirs, but=()):
    """Whether two plateaus are in the same state, and so are their rates."""
    states = [
        {key: value for key, value in plateau.state_dict().items() if key not in {*but, *POSITIONED}}
        for plateau in (ours, theirs)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert same(states[0][name], value), name
    assert same(lrs_of(ours.optimizer), lrs_of(theirs.optimizer))


@settings(max_examples=150)
@given(
    metrics=st.lists(METRICS, min_size=1, max_size=40),
    arguments=st.fixed_dictionaries({**SETTINGS, "cooldown": st.integers(0, 3)}),
    unit=st.integers(1, 50),
)
def test_a_plateau_at_even_positions_follows_torch(metrics, arguments, unit):
    theirs = lr_scheduler.ReduceLROnPlateau(sgd(0.1, 0.02), **arguments)
    plain = Plateau(sgd(0.1, 0.02), **arguments)
    # As one unit is many of another: patience of 3 epochs is patience of 3 x 50 steps.
    scaled = {**arguments, "patience": arguments["patience"] * unit, "cooldown": arguments["cooldown"] * unit}
    longer = Plateau(sgd(0.1, 0.02), **scaled)
    for i, metric in enumerate(metrics, 1):
        plain.at(i)
        longer.at(i * unit)
        for plateau in (theirs, plain, longer):
            plateau.step(metric)
        assert_alike(plain, theirs)
        assert_alike(longer, theirs, but=("patience", "cooldown", "num_bad_epochs", "cooldown_counter"))
        assert longer.num_bad_epochs == theirs.num_bad_epochs * unit
        assert longer.cooldown_counter == theirs.cooldown_counter * unit


@settings(max_examples=150)
@given(
    heard=st.lists(st.tuples(st.integers(0, 4), METRICS), min_size=1, max_size=40),
    arguments=st.fixed_dictionaries(SETTINGS),
)
def test_patience_is_the_way_since_the_last_improvement_or_cut(heard, arguments):
    plateau = Plateau(sgd(1.0), **arguments)
    position = last = 0
    rate, best = 1.0, math.inf if arguments["mode"] == "min" else -math.inf
    for more, metric in heard:
        position += more
        if better := plateau._is_better(metric, best):
            best = metric
        if better or position - last > arguments["patience"]:
            if not better and rate - rate * arguments["factor"] > plateau.eps:
                rate *= arguments["factor"]
            last = position
        plateau.at(position)
        plateau.step(metric)
        assert lrs_of(plateau.optimizer) == [rate]
        assert same(plateau.best, best)


def test_two_values_at_one_position_count_once_and_cool_once():
    plateau = Plateau(sgd(1.0), factor=0.5, patience=1, cooldown=2)
    bad, cool = [], []
    for position in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6):
        plateau.at(position)
        plateau.step(1.0)
        bad.append(plateau.num_bad_epochs)
        cool.append(plateau.cooldown_counter)
    assert bad == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert cool == [0, 0, 0, 0, 2, 2, 1, 1, 0, 0, 0, 0]


def test_a_cooldown_that_is_passed_in_one_go_is_over():
    plateau = Plateau(sgd(1.0), factor=0.5, patience=0, cooldown=10)
    for position, cooldown in ((1, 0), (2, 10), (100, 0), (101, 10), (108, 3), (109, 2)):
        plateau.at(position)
        plateau.step(1.0)
        assert plateau.cooldown_counter == cooldown
    assert lrs_of(plateau.optimizer) == [0.25]


def test_a_position_is_in_the_state_once_there_is_one_and_comes_back():
    def go_on(plateau, positions):
        for position in positions:
            plateau.at(position)
            plateau.step(1.0)

    plateau = Plateau(sgd(1.0), factor=0.5, patience=30)
    plateau.step(1.0)
    assert not POSITIONED & plateau.state_dict().keys()
    go_on(plateau, (10, 20))
    plateau.at(25)
    state = saved_and_loaded(plateau.state_dict())
    assert (state["position"], state["elapsed"]) == (25, 5)
    resumed = Plateau(sgd(1.0), factor=0.5, patience=30)
    resumed.load_state_dict(state)
    for one in (plateau, resumed):
        one.step(1.0)
        go_on(one, (26, 31, 32))
    assert_alike(resumed, plateau)
    assert (resumed.position, resumed.num_bad_epochs) == (32, 1)
    assert lrs_of(resumed.optimizer) == [0.5]
    resumed.load_state_dict(saved_and_loaded(lr_scheduler.ReduceLROnPlateau(sgd(1.0)).state_dict()))


def test_a_position_is_of_one_step_and_one_that_goes_back_counts_nothing():
    plateau = Plateau(sgd(1.0), patience=100)
    plateau.step(1.0)
    for position, bad in ((7, 7), (None, 8), (3, 8), (5, 10)):
        if position is not None:
            plateau.at(position)
        plateau.step(1.0)
        assert plateau.num_bad_epochs == bad
    assert "elapsed" in plateau.state_dict()
    plateau.at(15)
    plateau.at(16)  # nothing was heard at 15, and patience does not count the way there
    plateau.step(1.0)
    assert plateau.num_bad_epochs == 11


def test_settings_of_another_run_leave_a_plateau_where_it_is():
    fresh, restored = (Plateau(sgd(0.1), patience=patience) for patience in (7, 3))
    for plateau, position in ((fresh, 2), (restored, 9)):
        plateau.step(1.0)
        plateau.at(position)
    overruled(restored, fresh.state_dict(), [0.1], [1.0])
    assert (restored.patience, restored.position, restored.elapsed) == (7, 9, 9)


def test_a_plateau_under_warmup_is_told_its_position_too():
    plateau = Plateau(sgd(1.0), factor=0.5, patience=3)
    warmup = Warmup(plateau, 1)
    warmup.warmup_step()
    for position in (4, 7, 8):
        warmup.at(position)
        warmup.step(1.0)
    assert lrs_of(warmup.optimizer) == [0.5]
    assert warmup.state_dict()["scheduler"]["position"] == 8


def worst(kind):
    """The worst figure of a way to run, and where."""
    figures = []
    for name, cases in ARGUMENTS.items():
        for arguments in cases:
            ways = {"alone": alone} if kind == "alone" else COMPOSED
            for how, way in ways.items():
                pair = []
                for cls in (OURS[name], TORCH[name]):
                    make = (lambda o, cls=cls, a=arguments: cls(o, **a)) if kind != "alone" else None
                    pair.append(rates(way(cls, arguments) if make is None else way(make), lrs=(0.1, 0.02, 1.0)))
                figures.append((figure(*pair), f"{name} {label(arguments)} {how}"))
    return max(figures)


if __name__ == "__main__":
    for kind in ("alone", "composed"):
        print(f"{kind:9} {worst(kind)[0]:8.1e}  allowed {LIMIT:.0e}  {worst(kind)[1]}")
