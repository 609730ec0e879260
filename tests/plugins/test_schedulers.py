"""The closed-form schedulers compared with those of torch.

`python tests/plugins/test_schedulers.py` prints the largest differences: max|a - b| of the learning rates over 300
steps, relative for learning rates above 1.
"""

from __future__ import annotations

import copy
import functools
import io
import math
import operator
import pickle
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

import optplug
from optplug.config.expressions import Expression
from optplug.errors import ConfigError, HyperparameterError
from support import TORCH as TORCH_VERSION
from support import since_torch

LIMIT = 1e-12


def decaying(t):
    return 0.97**t


def harmonic(t):
    return 1 / (1 + t)


def alternating(t):
    return t // 3 % 2


def decaying_factor(t):
    return 0.99


def rising_and_falling(t):
    return 0.5 if t % 9 == 0 else 1.07


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
    "lambda_lr": [{"lr_lambda": decaying}, {"lr_lambda": harmonic}, {"lr_lambda": alternating}],
    "constant_lr": [{}, {"factor": 0.5, "total_iters": 30}, {"factor": 1, "total_iters": 1}, {"total_iters": 500}],
    "linear_lr": [
        {},
        {"start_factor": 0.01, "total_iters": 80},
        {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 200},
        {"start_factor": 0.7, "end_factor": 0.1, "total_iters": 29},
        {"start_factor": 1, "total_iters": 1},
    ],
    "polynomial_lr": [
        {},
        {"total_iters": 200, "power": 2.0},
        {"total_iters": 30, "power": 0.5},
        {"total_iters": 1, "power": 0},
        {"total_iters": 500},
    ],
    "one_cycle_lr": [
        {"max_lr": 1.0, "total_steps": 300},
        {"max_lr": 0.5, "epochs": 9, "steps_per_epoch": 50, "anneal_strategy": "linear"},
        {"max_lr": 2, "total_steps": 301, "three_phase": True, "pct_start": 0.4, "base_momentum": 0.5},
        {"max_lr": 0.1, "total_steps": 310, "div_factor": 5, "final_div_factor": 10, "cycle_momentum": False},
        {"max_lr": 0.1, "total_steps": 320, "pct_start": 0.0, "max_momentum": 0.99},
    ],
    "cyclic_lr": [
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 20},
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 20, "step_size_down": 7, "mode": "triangular2"},
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 9, "mode": "exp_range", "gamma": 0.99},
        {"base_lr": 0, "max_lr": 1, "step_size_up": 5, "scale_fn": harmonic, "base_momentum": 0.5},
        {"base_lr": 0, "max_lr": 1, "step_size_up": 5, "scale_fn": decaying, "scale_mode": "iterations"},
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 30, "cycle_momentum": False},
    ],
    "cosine_annealing_warm_restarts": [
        {"T_0": 10},
        {"T_0": 7, "T_mult": 2},
        {"T_0": 100, "T_mult": 3, "eta_min": 0.01},
        {"T_0": 1},
        {"T_0": 500, "eta_min": 0.05},
    ],
    "multiplicative_lr": [{"lr_lambda": decaying_factor}, {"lr_lambda": rising_and_falling}],
}
OURS = {name: optplug.get_scheduler(name) for name in ARGUMENTS}
TORCH = {name: getattr(lr_scheduler, cls.__name__) for name, cls in OURS.items()}
StepLR, MultiStepLR, ExponentialLR, CosineAnnealingLR, LambdaLR = list(OURS.values())[:5]


def case_id(value):
    if isinstance(value, dict):
        return ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in value.items()).replace(" ", "")
    return None


CASES = [pytest.param(name, a, id=f"{name}-{case_id(a)}") for name in ARGUMENTS for a in ARGUMENTS[name]]
each_case = pytest.mark.parametrize(("name", "arguments"), CASES)
each_name = pytest.mark.parametrize("name", ARGUMENTS)


def sgd(*lrs, **options):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, **options} for lr in lrs]
    return torch.optim.SGD(groups, lr=1, momentum=0.9)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def momenta_of(optimizer):
    return [group["betas"][0] if "betas" in group else group["momentum"] for group in optimizer.param_groups]


def lr_history(make, steps=300, lrs=(0.1, 0.02)):
    optimizer = sgd(*lrs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR steps with an epoch, which torch deprecates
        schedulers = make(optimizer)
        history = [[*lrs_of(optimizer), *momenta_of(optimizer)]]
        for _ in range(steps):
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
            history.append([*lrs_of(optimizer), *momenta_of(optimizer)])
            assert lrs_of(optimizer) == [float(lr) for lr in schedulers[-1].get_last_lr()]
    return history


def max_difference(a, b):
    return max(abs(x - y) / max(1, abs(y)) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))


def assert_equal_lrs(a, b):
    assert max_difference(a, b) <= LIMIT


# ---------------------------------------------------------------------------------------------- learning rates


def single(cls, arguments):
    return lambda o: [cls(o, **arguments)]


@each_case
@pytest.mark.parametrize("lrs", [(0.1,), (0.1, 0.02, 1.0)], ids=["one", "three"])
def test_single_scheduler_equals_torch(name, arguments, lrs):
    ours = lr_history(single(OURS[name], arguments), lrs=lrs)
    assert_equal_lrs(ours, lr_history(single(TORCH[name], arguments), lrs=lrs))


COMPOSITIONS = {
    "before torch's": lambda make: lambda o: [make(o), lr_scheduler.StepLR(o, 20, 0.7)],
    "after torch's": lambda make: lambda o: [lr_scheduler.ExponentialLR(o, 0.99), make(o)],
    "twice": lambda make: lambda o: [make(o), make(o)],
    "beside torch's cosine": lambda make: lambda o: [lr_scheduler.CosineAnnealingLR(o, 25, 0.01), make(o)],
    "beside torch's lambda": lambda make: lambda o: [lr_scheduler.LambdaLR(o, decaying), make(o)],
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
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_composed_scheduler_equals_torch(name, arguments, composition):
    ours, theirs = (
        lr_history(COMPOSITIONS[composition](lambda o, cls=classes[name]: cls(o, **arguments)))
        for classes in (OURS, TORCH)
    )
    assert_equal_lrs(ours, theirs)


@pytest.mark.parametrize("order", [list(ARGUMENTS), list(ARGUMENTS)[::-1]], ids=["forward", "reversed"])
def test_all_schedulers_on_one_optimizer_equal_torch_also_mixed_with_torch(order):
    def make(classes):
        return lambda o: [cls(o, **ARGUMENTS[name][0]) for name, cls in zip(order, classes, strict=True)]

    expected = lr_history(make([TORCH[name] for name in order]))
    assert_equal_lrs(lr_history(make([OURS[name] for name in order])), expected)
    mixed = [(OURS if i % 2 else TORCH)[name] for i, name in enumerate(order)]
    assert_equal_lrs(lr_history(make(mixed)), expected)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 60), max_size=12), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.25]), st.integers(-1, 20))
def test_random_milestones_equal_torch(milestones, gamma, start):
    def make(cls):
        return lambda o: [cls(o, milestones, gamma)]

    assert_equal_lrs(lr_history(make(MultiStepLR), 70), lr_history(make(TORCH["multi_step_lr"]), 70))
    assert_resumes_as_torch("multi_step_lr", {"milestones": milestones, "gamma": gamma}, start)


@settings(max_examples=60)
@given(st.integers(1, 80), st.floats(0, 1.3), st.integers(-1, 90))
def test_random_step_sizes_equal_torch(step_size, gamma, start):
    def make(cls):
        return lambda o: [cls(o, step_size, gamma)]

    assert max_difference(lr_history(make(StepLR), 20), lr_history(make(TORCH["step_lr"]), 20)) <= LIMIT
    assert_resumes_as_torch("step_lr", {"step_size": step_size, "gamma": gamma}, start)


def test_one_lambda_per_group():
    arguments = {"lr_lambda": [decaying, alternating]}
    assert_equal_lrs(lr_history(single(LambdaLR, arguments)), lr_history(single(TORCH["lambda_lr"], arguments)))
    seen = lr_history(single(LambdaLR, arguments))
    assert seen[4][:2] == pytest.approx([0.1 * 0.97**4, 0.02])
    assert seen[6][:2] == pytest.approx([0.1 * 0.97**6, 0.0])


# ----------------------------------------------------------------------- last_epoch, step(epoch) and get_lr()


GROUP_OPTIONS = {"one_cycle_lr": {"max_lr": 0.9, "min_lr": 1e-5, "base_momentum": 0.6, "max_momentum": 0.99}}
"""What a resumed scheduler finds in the groups, beside `initial_lr`."""


def assert_resumes_as_torch(name, arguments, start):
    histories = []
    for cls in (OURS[name], TORCH[name]):
        optimizer = sgd(0.05, initial_lr=0.1, **GROUP_OPTIONS.get(name, {}))
        scheduler = cls(optimizer, last_epoch=start, **arguments)
        seen = lrs_of(optimizer)
        optimizer.step()
        for _ in range(12):
            scheduler.step()
            seen += [*lrs_of(optimizer), *momenta_of(optimizer)]
        histories.append([seen])
    assert_equal_lrs(*histories)


@each_case
@pytest.mark.parametrize("start", [-1, 0, 2, 5, 28, 29, 79])
def test_resuming_at_last_epoch_equals_torch(name, arguments, start):
    if arguments.get("T_mult", 1) > 1 and start > arguments["T_0"]:
        return  # see test_restarts_continue_where_torch_counts_from_last_epoch
    assert_resumes_as_torch(name, arguments, start)


@each_case
def test_step_with_epoch_equals_torch_and_warns(name, arguments):
    histories, texts = [], []
    for cls in (OURS[name], TORCH[name]):
        optimizer = sgd(0.1, 0.02)
        scheduler = cls(optimizer, **arguments)
        optimizer.step()
        seen = []
        for epoch in (3, 17, 0, 40, None, None, 6):
            if epoch is None:
                scheduler.step()
            else:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    scheduler.step(epoch)
                texts.append([str(warning.message) for warning in caught])
            seen.append(lrs_of(optimizer))
        histories.append(seen)
    assert_equal_lrs(*histories)
    assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]
    warns = name != "cosine_annealing_warm_restarts"  # torch documents the argument for this class only
    assert [len(text) for text in texts] == [warns] * len(texts)
    assert all("epoch parameter" in text for one in texts for text in one)


@each_case
@pytest.mark.parametrize("start", [-1, 5])
def test_get_lr_outside_of_step_equals_torch_and_warns(name, arguments, start):
    histories, texts = [], []
    for cls in (OURS[name], TORCH[name]):
        optimizer = sgd(0.1, 0.02, initial_lr=0.1, **GROUP_OPTIONS.get(name, {}))
        scheduler = cls(optimizer, last_epoch=start, **arguments)
        optimizer.step()
        seen = []
        for _ in range(9):
            with pytest.warns(UserWarning, match="get_last_lr") as caught:
                seen.append(scheduler.get_lr())
            texts.append([str(warning.message) for warning in caught])
            scheduler.step()
        histories.append(seen)
    assert_equal_lrs(*histories)
    assert texts[:9] == texts[9:]


@each_name
def test_resuming_without_initial_lr_raises_as_in_torch(name):
    texts = []
    for cls in (OURS[name], TORCH[name]):
        with pytest.raises(KeyError) as caught:
            cls(sgd(0.1), **ARGUMENTS[name][0], last_epoch=1)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


@each_case
def test_tensor_lr_is_updated_in_place_as_in_torch(name, arguments):
    histories = []
    for cls in (OURS[name], TORCH[name]):
        lrs = [torch.tensor(lr, dtype=torch.float64) for lr in (0.1, 0.02)]
        optimizer = sgd(*lrs)
        scheduler = cls(optimizer, **arguments)
        seen = []
        for _ in range(100):
            optimizer.step()
            scheduler.step()
            seen.append([lr.item() for lr in lrs])
            assert [group["lr"] is lr for group, lr in zip(optimizer.param_groups, lrs, strict=True)] == [True, True]
            is_shared = any(a is b for a in scheduler.get_last_lr() for b in lrs)
            assert is_shared == (TORCH_VERSION < (2, 11) and cls is TORCH[name])
        histories.append(seen)
        if not OURS[name].has_own_lrs:
            assert [float(lr) for lr in scheduler.base_lrs] == [0.1, 0.02]
    assert_equal_lrs(*histories)


@each_case
def test_tensor_lr_with_a_dimension_is_updated_as_in_torch(name, arguments):
    histories = []
    for cls in (OURS[name], TORCH[name]):
        lr = torch.tensor([0.1], dtype=torch.float64)
        seen = [lr.item()]
        with since_torch((2, 8), RuntimeError, "fill_ only supports 0-dimension value tensor"):
            scheduler = cls(sgd(lr), **arguments)
            for _ in range(100):
                scheduler.optimizer.step()
                scheduler.step()
                seen.append(lr.item())
        histories.append([seen])
    assert_equal_lrs(*histories)


@each_case
@pytest.mark.parametrize("start", [-1, 3])
def test_get_lr_returns_new_tensors(name, arguments, start):
    if OURS[name].has_own_lrs:
        return  # they are floats
    rate = torch.tensor(0.1, dtype=torch.float64)
    scheduler = OURS[name](sgd(rate, initial_lr=torch.tensor(0.1, dtype=torch.float64)), last_epoch=start, **arguments)
    before = rate.item()
    with pytest.warns(UserWarning, match="get_last_lr"):
        (histories,) = scheduler.get_lr()
    histories.fill_(7.0)
    assert (rate.item(), float(scheduler.base_lrs[0])) == (before, 0.1)


def test_overflow_in_constructor_and_step_with_epoch_raises():
    scheduler = ExponentialLR(sgd(0.1), gamma=1e200)
    scheduler.optimizer.step()
    with (
        pytest.raises(HyperparameterError, match="ExponentialLR: the learning rate overflows at step 2"),
        pytest.warns(UserWarning, match="epoch parameter"),
    ):
        scheduler.step(2)
    with pytest.raises(HyperparameterError, match="MultiStepLR: the learning rate overflows at step 0"):
        MultiStepLR(sgd(0.1), [0, 0], 1e200)


def test_lr_that_underflows_composes_as_in_torch():
    def make(cls):
        return lambda o: [cls(o, 0.5), lr_scheduler.ExponentialLR(o, 2.0)]

    assert_equal_lrs(
        lr_history(make(ExponentialLR), 1100, (0.1,)), lr_history(make(TORCH["exponential_lr"]), 1100, (0.1,))
    )


def test_group_added_later_equals_torch():
    histories = []
    for cls in (ExponentialLR, TORCH["exponential_lr"]):
        optimizer = sgd(0.1)
        scheduler = cls(optimizer, 0.9)
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 3.0})
        optimizer.step()
        scheduler.step()
        histories.append([lrs_of(optimizer)])
    assert_equal_lrs(*histories)


def test_group_added_later_has_closed_form():
    optimizer = sgd(0.1)
    scheduler = ExponentialLR(optimizer, 0.9)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 3.0})
    optimizer.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(4)
    assert lrs_of(optimizer) == pytest.approx([0.1 * 0.9**4, 3.0 * 0.9**4], rel=1e-15)


# ------------------------------------------------------------------------------------------------ state dicts


def save_and_load(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_name
@pytest.mark.parametrize("ours_first", [True, False], ids=["to torch", "from torch"])
def test_state_dicts_are_exchanged_with_torch(name, ours_first):
    classes = (OURS[name], TORCH[name]) if ours_first else (TORCH[name], OURS[name])
    (given, other), optimizers = ARGUMENTS[name][:2], [sgd(0.1, 0.02), sgd(0.1, 0.02)]
    if "lr_lambda" in given:
        other = given  # the state does not contain plain functions
    first, then = classes[0](optimizers[0], **given), classes[1](optimizers[1], **other)
    for _ in range(35):
        optimizers[0].step()
        first.step()
    state = save_and_load(first.state_dict())
    before = copy.deepcopy(state)
    assert state.keys() == then.state_dict().keys()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    then.load_state_dict(state)
    assert state == before or then.__class__ is lr_scheduler.CyclicLR  # torch removes a key
    optimizers[1].step()
    for _ in range(60):
        first.step()
        then.step()
        assert_equal_lrs([lrs_of(optimizers[0])], [lrs_of(optimizers[1])])
        assert_equal_lrs([momenta_of(optimizers[0])], [momenta_of(optimizers[1])])


def test_milestones_are_stored_as_counter_and_accepted_as_counter():
    first = MultiStepLR(sgd(0.1), [3, 1, 3])
    assert first.milestones == Counter({3: 2, 1: 1})
    assert type(save_and_load(first.state_dict())["milestones"]) is Counter
    assert MultiStepLR(sgd(0.1), first.milestones).milestones == first.milestones
    assert MultiStepLR(sgd(0.1), iter([3, 1, 3])).milestones == first.milestones


def test_numpy_numbers_are_stored_as_python_numbers():
    numpy = pytest.importorskip("numpy")
    for scheduler in (
        StepLR(sgd(0.1), numpy.int64(3), numpy.float32(0.5)),
        MultiStepLR(sgd(0.1), numpy.arange(3), numpy.float64(0.5)),
        CosineAnnealingLR(sgd(0.1), numpy.int32(7), last_epoch=numpy.int64(-1)),
    ):
        assert save_and_load(scheduler.state_dict()) == scheduler.state_dict()
        for value in vars(scheduler).values():
            assert type(value).__module__ != "numpy"


class DecayFunction:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, t):
        return self.factor**t

    def method(self, t):
        return self.factor**t


class CallableWithoutDict:
    __slots__ = ()

    def __call__(self, t):
        return 1.0


def test_state_dict_contains_attributes_of_callable_objects_only():
    stateless = [
        decaying,
        lambda t: 1.0,
        math.exp,
        DecayFunction(0.5).method,
        functools.partial(pow, 0.5),
        CallableWithoutDict(),
        float,
    ]
    scheduler = LambdaLR(sgd(*[0.1] * 9), [DecayFunction(0.5), *stateless, Expression("0.9 ** epoch")])
    state = save_and_load(scheduler.state_dict())
    assert state["lr_lambdas"] == [{"factor": 0.5}, *[None] * 7, {"text": "0.9 ** epoch"}]
    scheduler.state_dict()["lr_lambdas"][0]["factor"] = 3
    assert scheduler.lr_lambdas[0].factor == 0.5


@pytest.mark.parametrize(
    "classes", [(LambdaLR, TORCH["lambda_lr"]), (TORCH["lambda_lr"], LambdaLR), (LambdaLR, LambdaLR)]
)
def test_attributes_of_callable_objects_are_exchanged_with_torch(classes):
    first, then = (
        cls(sgd(0.1, 0.2), [DecayFunction(f), Expression(t)])
        for cls, f, t in zip(classes, (0.5, 0.9), ("1 / 2", "1 / 3"), strict=True)
    )
    state = save_and_load(first.state_dict())
    before, held = copy.deepcopy(state), list(then.lr_lambdas)
    then.load_state_dict(state)
    assert state == before
    assert all(map(operator.is_, then.lr_lambdas, held))
    assert (held[0].factor, held[1](3)) == (0.5, 0.5)


@each_name
def test_state_dict_of_another_scheduler_is_rejected(name):
    scheduler = OURS[name](sgd(0.1), **ARGUMENTS[name][0])
    with pytest.raises(
        ConfigError, match=f"the checkpoint's scheduler is not a {OURS[name].__name__}: it has the keys"
    ):
        scheduler.load_state_dict({"best": 3, "last_epoch": 3})
    functions = {"lambda_lr", "multiplicative_lr"}  # torch's state dicts of both have the same keys
    for other in OURS.keys() - (functions if name in functions else {name}):
        before = copy.deepcopy(scheduler.state_dict())
        with pytest.raises(ConfigError, match="the checkpoint's scheduler is no"):
            scheduler.load_state_dict(OURS[other](sgd(0.1), **ARGUMENTS[other][0]).state_dict())
        assert scheduler.state_dict().keys() == before.keys()


def test_additional_attributes_are_saved_and_loaded():
    scheduler = OURS["step_lr"](sgd(0.1), step_size=2)
    scheduler.run = "x"
    other = OURS["step_lr"](sgd(0.1), step_size=3)
    other.load_state_dict(scheduler.state_dict())
    assert (other.run, other.step_size) == ("x", 2)


def test_overflow_in_a_step_raises():
    scheduler = OURS["exponential_lr"](sgd(0.1), gamma=1e200)
    scheduler.optimizer.step()
    scheduler.step()
    with pytest.raises(HyperparameterError, match="ExponentialLR: the learning rate overflows at step 2"):
        scheduler.step()


def test_attributes_for_plain_function_are_rejected_unless_empty():
    scheduler = LambdaLR(sgd(0.1), decaying)
    saved = LambdaLR(sgd(0.1), DecayFunction(0.5)).state_dict()
    with pytest.raises(ConfigError, match=r"has the attributes \{'factor': 0.5\}, but <function decaying"):
        scheduler.load_state_dict(saved)
    assert "factor" not in vars(decaying)
    scheduler.load_state_dict({**saved, "lr_lambdas": [{}]})  # torch saves {} for a functools.partial
    with pytest.raises(ConfigError, match="has no attributes"):
        LambdaLR(sgd(0.1), CallableWithoutDict()).load_state_dict(saved)
    with pytest.raises(ConfigError, match="has 2 lr_lambdas, this one 1"):
        scheduler.load_state_dict({**saved, "lr_lambdas": [None, None]})


@each_name
def test_schedulers_can_be_pickled_and_deep_copied(name):
    arguments = {"lr_lambda": "0.9 ** epoch"} if "lr_lambda" in ARGUMENTS[name][0] else ARGUMENTS[name][0]
    scheduler = optplug.create_scheduler(name, optplug.create_optimizer("sgd", nn.Linear(2, 1), lr=0.1), **arguments)
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler.state_dict()))):
        state = twin if isinstance(twin, dict) else twin.state_dict()
        assert state == scheduler.state_dict()


# --------------------------------------------------------------------------------------------- configurations


def configure(scheduler, **options):
    module = nn.Linear(2, 1)
    made = optplug.configure_optimizers(module, {"name": "sgd", "lr": 0.1}, scheduler, **options)
    return made["lr_scheduler"]["scheduler"]


def step_and_record_lrs(scheduler, steps):
    seen = [lrs_of(scheduler.optimizer)]
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        seen.append(lrs_of(scheduler.optimizer))
    return seen


@each_case
def test_configuration_builds_the_same_scheduler_as_the_class(name, arguments):
    if not {"lr_lambda", "scale_fn"}.isdisjoint(arguments) or isinstance(arguments.get("milestones"), range):
        return
    interval = {"interval": "epoch"}
    own = {"args": {"mode": arguments["mode"]}} if "mode" in arguments else {}
    given = {key: value for key, value in arguments.items() if key != "mode"}
    assert_equal_lrs(
        step_and_record_lrs(configure({"name": name, **given, **own, **interval}), 50),
        step_and_record_lrs(OURS[name](sgd(0.1), **arguments), 50),
    )


def worst_difference(kind):
    """The largest difference from torch over all cases, and its case. `kind` is "single" or "composed"."""
    differences = []
    compositions = COMPOSITIONS if kind == "composed" else {"single": lambda make: lambda o: [make(o)]}
    for name, cases in ARGUMENTS.items():
        for arguments in cases:
            for composition, compose in compositions.items():
                ours, theirs = (
                    lr_history(compose(lambda o, cls=cls: cls(o, **arguments)), lrs=(0.1, 0.02, 1.0))  # noqa: B023
                    for cls in (OURS[name], TORCH[name])
                )
                differences.append((max_difference(ours, theirs), f"{name} {case_id(arguments)} {composition}"))
    return max(differences)


if __name__ == "__main__":
    for kind in ("single", "composed"):
        difference, case = worst_difference(kind)
        print(f"{kind:9} {difference:8.1e}  allowed {LIMIT:.0e}  {case}")
