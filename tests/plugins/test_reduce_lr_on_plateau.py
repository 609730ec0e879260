"""ReduceLROnPlateau compared with torch's class, and its positions (`at`)."""

from __future__ import annotations

import io
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

import optplug
from optplug.schedulers.adapters import adapter_for
from optplug.schedulers.warmup import Warmup
from support import TORCH

ReduceLROnPlateau = optplug.get_scheduler("reduce_lr_on_plateau")
CLASSES = (ReduceLROnPlateau, lr_scheduler.ReduceLROnPlateau)


def sgd(*lrs, **options):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr, **options} for lr in lrs], lr=1)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def save_and_load(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---------------------------------------------------------------------------------------- comparison with torch


def common_state(plateau, ignore=()):
    """The state dict, except for some keys and those that only torch's class has."""
    ignored = {*ignore, "verbose"} if TORCH < (2, 8) else ignore
    return {key: value for key, value in plateau.state_dict().items() if key not in ignored}


METRICS = st.one_of(
    st.floats(-3, 3), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0]), st.integers(-2, 2).map(float)
)
COUNTERS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "mode_worse", "min_lrs", "_last_lr")


def equal_or_both_nan(a, b):
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal_or_both_nan, a, b))
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
def test_counters_and_lrs_equal_torch_on_random_metrics(metrics, arguments):
    ours, theirs = (cls(sgd(0.1, 0.02), **arguments) for cls in CLASSES)
    for metric in metrics:
        ours.step(metric)
        theirs.step(metric)
        for name in COUNTERS:
            assert equal_or_both_nan(getattr(ours, name), getattr(theirs, name)), name
        for a, b in zip(ours.optimizer.param_groups, theirs.optimizer.param_groups, strict=True):
            assert equal_or_both_nan(a["lr"], b["lr"])
    states = [common_state(plateau) for plateau in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert equal_or_both_nan(states[0][name], value), name


def test_chained_with_a_torch_scheduler_equals_torch():
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

    ours, theirs = (
        torch.tensor(run(cls), dtype=torch.float64) for cls in (ReduceLROnPlateau, lr_scheduler.ReduceLROnPlateau)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_state_dicts_are_exchanged_with_torch():
    for classes in (
        (ReduceLROnPlateau, lr_scheduler.ReduceLROnPlateau),
        (lr_scheduler.ReduceLROnPlateau, ReduceLROnPlateau),
    ):
        first, then = (cls(sgd(0.1), patience=p) for cls, p in zip(classes, (1, 5), strict=True))
        for _ in range(3):
            first.step(1.0)
        then.load_state_dict(save_and_load(first.state_dict()))
        assert common_state(then) == common_state(first)


# ---------------------------------------------------------------------------------------------- positions (`at`)


ARGUMENTS = {
    "mode": st.sampled_from(["min", "max"]),
    "factor": st.sampled_from([0.0, 0.1, 0.5, 0.99]),
    "patience": st.integers(0, 4),
}
POSITION_KEYS = {"position", "elapsed"}


def assert_equal_states(ours, theirs, ignore=()):
    """Assert that two schedulers have equal state dicts, except for some keys, and equal learning rates."""
    states = [common_state(plateau, {*ignore, *POSITION_KEYS}) for plateau in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert equal_or_both_nan(states[0][name], value), name
    assert equal_or_both_nan(lrs_of(ours.optimizer), lrs_of(theirs.optimizer))


@settings(max_examples=150)
@given(
    metrics=st.lists(METRICS, min_size=1, max_size=40),
    arguments=st.fixed_dictionaries({**ARGUMENTS, "cooldown": st.integers(0, 3)}),
    unit=st.integers(1, 50),
)
def test_equidistant_positions_equal_torch(metrics, arguments, unit):
    theirs = lr_scheduler.ReduceLROnPlateau(sgd(0.1, 0.02), **arguments)
    plain = ReduceLROnPlateau(sgd(0.1, 0.02), **arguments)
    # One unit can be several of another unit: a patience of 3 epochs is a patience of 3 * 50 optimizer steps.
    scaled = {**arguments, "patience": arguments["patience"] * unit, "cooldown": arguments["cooldown"] * unit}
    longer = ReduceLROnPlateau(sgd(0.1, 0.02), **scaled)
    for i, metric in enumerate(metrics, 1):
        plain.at(i)
        longer.at(i * unit)
        for plateau in (theirs, plain, longer):
            plateau.step(metric)
        assert_equal_states(plain, theirs)
        assert_equal_states(longer, theirs, ignore=("patience", "cooldown", "num_bad_epochs", "cooldown_counter"))
        assert longer.num_bad_epochs == theirs.num_bad_epochs * unit
        assert longer.cooldown_counter == theirs.cooldown_counter * unit


@settings(max_examples=150)
@given(
    steps=st.lists(st.tuples(st.integers(0, 4), METRICS), min_size=1, max_size=40),
    arguments=st.fixed_dictionaries(ARGUMENTS),
)
def test_patience_counts_from_last_improvement_or_reduction(steps, arguments):
    plateau = ReduceLROnPlateau(sgd(1.0), **arguments)
    position = last = 0
    rate, best = 1.0, math.inf if arguments["mode"] == "min" else -math.inf
    for more, metric in steps:
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
        assert equal_or_both_nan(plateau.best, best)


def test_two_values_at_one_position_count_once():
    plateau = ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=1, cooldown=2)
    bad, cool = [], []
    for position in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6):
        plateau.at(position)
        plateau.step(1.0)
        bad.append(plateau.num_bad_epochs)
        cool.append(plateau.cooldown_counter)
    assert bad == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert cool == [0, 0, 0, 0, 2, 2, 1, 1, 0, 0, 0, 0]


def test_cooldown_ends_when_a_step_passes_it():
    plateau = ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=0, cooldown=10)
    for position, cooldown in ((1, 0), (2, 10), (100, 0), (101, 10), (108, 3), (109, 2)):
        plateau.at(position)
        plateau.step(1.0)
        assert plateau.cooldown_counter == cooldown
    assert lrs_of(plateau.optimizer) == [0.25]


def test_position_is_saved_and_restored():
    def step_at(plateau, positions):
        for position in positions:
            plateau.at(position)
            plateau.step(1.0)

    plateau = ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=30)
    plateau.step(1.0)
    assert not POSITION_KEYS & plateau.state_dict().keys()
    step_at(plateau, (10, 20))
    plateau.at(25)
    state = save_and_load(plateau.state_dict())
    assert (state["position"], state["elapsed"]) == (25, 5)
    resumed = ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=30)
    resumed.load_state_dict(state)
    for one in (plateau, resumed):
        one.step(1.0)
        step_at(one, (26, 31, 32))
    assert_equal_states(resumed, plateau)
    assert (resumed.position, resumed.num_bad_epochs) == (32, 1)
    assert lrs_of(resumed.optimizer) == [0.5]
    resumed.load_state_dict(save_and_load(lr_scheduler.ReduceLROnPlateau(sgd(1.0)).state_dict()))


def test_position_applies_to_one_step_and_smaller_position_counts_zero():
    plateau = ReduceLROnPlateau(sgd(1.0), patience=100)
    plateau.step(1.0)
    for position, bad in ((7, 7), (None, 8), (3, 8), (5, 10)):
        if position is not None:
            plateau.at(position)
        plateau.step(1.0)
        assert plateau.num_bad_epochs == bad
    assert "elapsed" in plateau.state_dict()
    plateau.at(15)
    plateau.at(16)  # no step at 15: the units up to 15 do not count
    plateau.step(1.0)
    assert plateau.num_bad_epochs == 11


def test_apply_settings_keeps_the_position():
    fresh, restored = (ReduceLROnPlateau(sgd(0.1), patience=patience) for patience in (7, 3))
    for plateau, position in ((fresh, 2), (restored, 9)):
        plateau.step(1.0)
        plateau.at(position)
    adapter_for(restored).apply_settings(fresh.state_dict(), [0.1], [0.1])
    assert (restored.patience, restored.position, restored.elapsed) == (7, 9, 9)


def test_warmup_passes_position_to_the_scheduler():
    plateau = ReduceLROnPlateau(sgd(1.0), factor=0.5, patience=3)
    warmup = Warmup(plateau, 1)
    warmup.warmup_step()
    for position in (4, 7, 8):
        warmup.at(position)
        warmup.step(1.0)
    assert lrs_of(warmup.optimizer) == [0.5]
    assert warmup.state_dict()["scheduler"]["position"] == 8
