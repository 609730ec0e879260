"""Schedules without a class in torch, `min_lr_ratio`, sequences, momentum, and lengths that change during training."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

import optplug
from optplug.errors import ConfigError, HyperparameterError
from optplug.schedulers.adapters import OneCycleAdapter, adapter_for
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.warmup import Warmup
from support import ignore_epoch_of_sequential_lr

pytestmark = ignore_epoch_of_sequential_lr
LIMIT = 1e-12


class Idle(torch.optim.Optimizer):
    def step(self, closure=None):
        """Do nothing."""


def optimizer_of(*lrs, kind=torch.optim.SGD, **options):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs or (0.1, 3.0)]
    return kind(groups, **({"momentum": 0.9} if kind is torch.optim.SGD else {}), **options)


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def values_of(optimizer):
    momenta = [group["betas"][0] if "betas" in group else group["momentum"] for group in optimizer.param_groups]
    return [*lrs_of(optimizer), *momenta]


def take_steps(scheduler, steps):
    history = []
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        history.append(values_of(scheduler.optimizer))
    return history


def multipliers(name, steps, **arguments):
    """The learning rates at 0, 1, ... steps, for the base learning rate 1."""
    optimizer = optimizer_of(1.0)
    scheduler = optplug.create_scheduler(name, optimizer, **arguments)
    return [lrs_of(optimizer)[0], *(values[0] for values in take_steps(scheduler, steps))]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    assert max(abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)) <= LIMIT


# ------------------------------------------------------------------------------------------- formulas

DECAYS = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}


@pytest.mark.parametrize("ratio", [0.0, 0.1])
@pytest.mark.parametrize("decay", DECAYS)
def test_wsd_equals_its_formula(decay, ratio):
    seen = multipliers("wsd", 300, total_steps=250, decay_steps=60, warmup_steps=40, decay=decay, min_lr_ratio=ratio)
    for t, lr in enumerate(seen):
        warmup = min(1.0, 1 / 40 + (1 - 1 / 40) * t / 40)
        g = DECAYS[decay](min(max((t - 190) / 60, 0.0), 1.0))
        assert lr == pytest.approx(ratio + (1 - ratio) * warmup * g, abs=LIMIT)
    assert seen[0] == pytest.approx(ratio + (1 - ratio) / 40)
    assert seen[40:191] == pytest.approx([1.0] * 151, abs=LIMIT)
    assert seen[250:] == pytest.approx([ratio] * 51, abs=LIMIT)


def test_warmup_of_wsd_equals_the_key_warmup():
    optimizer = optimizer_of(1.0)
    scheduler = Warmup(optplug.create_scheduler("wsd", optimizer, total_steps=50, decay_steps=10), 20)
    seen = [lrs_of(optimizer)[0]]
    for _ in range(49):
        optimizer.step()
        scheduler.warmup_step()
        scheduler.step()
        seen.append(lrs_of(optimizer)[0])
    assert seen == pytest.approx(multipliers("wsd", 49, total_steps=50, decay_steps=10, warmup_steps=20), abs=LIMIT)


@pytest.mark.parametrize(("warmup", "timescale"), [(0, None), (0, 50), (30, None), (30, 7), (1, 2.5)])
def test_inverse_sqrt_equals_its_formula(warmup, timescale):
    seen = multipliers("inverse_sqrt", 300, warmup_steps=warmup, timescale=timescale)
    scale = timescale or warmup or 10_000
    for t, lr in enumerate(seen):
        expected = 1 / warmup + (1 - 1 / warmup) * t / warmup if t < warmup else math.sqrt(scale / (t - warmup + scale))
        assert lr == pytest.approx(expected, abs=LIMIT)
    if timescale is None and warmup:
        assert seen[120] == pytest.approx(math.sqrt(warmup / 120), abs=LIMIT)


# -------------------------------------------------------------------------------------------- min_lr_ratio

TO_FLOOR = {
    "cosine_annealing_lr": {"T_max": 40},
    "polynomial_lr": {"total_iters": 40, "power": 2.0},
    "linear_lr": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 40},
    "wsd": {"total_steps": 40, "decay_steps": 30, "decay": "1-sqrt"},
}
BOUNDED = {
    "step_lr": {"step_size": 3, "gamma": 0.5},
    "multi_step_lr": {"milestones": [3, 9, 20]},
    "exponential_lr": {"gamma": 0.8},
    "lambda_lr": {"lr_lambda": "0.9 ** epoch"},
    "multiplicative_lr": {"lr_lambda": "0.8"},
    "inverse_sqrt": {"timescale": 1},
}


@pytest.mark.parametrize("name", TO_FLOOR)
def test_decay_ends_at_min_lr_ratio(name):
    without, seen = (multipliers(name, 40, **TO_FLOOR[name], min_lr_ratio=r) for r in (0.0, 0.2))
    assert seen == pytest.approx([0.2 + 0.8 * lr for lr in without], abs=LIMIT)
    assert seen[40] == pytest.approx(0.2, abs=LIMIT)


@pytest.mark.parametrize("name", BOUNDED)
def test_learning_rate_is_not_below_min_lr_ratio(name):
    without, seen = (multipliers(name, 40, **BOUNDED[name], min_lr_ratio=r) for r in (0.0, 0.2))
    assert seen == pytest.approx([max(0.2, lr) for lr in without], abs=LIMIT)
    assert 0.2 == pytest.approx(seen[-1], abs=LIMIT) != without[-1]


def test_restarts_end_at_min_lr_ratio():
    seen = multipliers("cosine_annealing_warm_restarts", 30, T_0=10, min_lr_ratio=0.2)
    assert min(seen) == pytest.approx(0.2 + 0.8 * (1 + math.cos(0.9 * math.pi)) / 2, abs=LIMIT)
    assert seen[10] == seen[20] == 1.0


@pytest.mark.parametrize("name", [*TO_FLOOR, *BOUNDED])
def test_floor_is_a_ratio_of_each_base_learning_rate(name):
    optimizer = optimizer_of(0.1, 3.0)
    arguments = {**TO_FLOOR, **BOUNDED}[name]
    scheduler = optplug.create_scheduler(name, optimizer, **arguments, min_lr_ratio=0.2)
    for lrs in take_steps(scheduler, 40):
        assert lrs[0] >= 0.02 * (1 - LIMIT)
        assert lrs[1] == pytest.approx(30 * lrs[0])


def test_two_floors_contradict():
    with pytest.raises(HyperparameterError, match="min_lr_ratio and eta_min both set a lower bound") as caught:
        optplug.create_scheduler("cosine_annealing_lr", optimizer_of(), T_max=9, eta_min=0.01, min_lr_ratio=0.1)
    assert (caught.value.argument, caught.value.is_contradiction) == ("min_lr_ratio", True)


@pytest.mark.parametrize("name", [*TO_FLOOR, *BOUNDED])
def test_state_without_min_lr_ratio_has_none(name):
    """Checkpoints of torch and of older versions have no `min_lr_ratio`."""
    arguments = {**TO_FLOOR, **BOUNDED}[name]
    old, new = (optplug.create_scheduler(name, optimizer_of(), **arguments, min_lr_ratio=r) for r in (0.0, 0.2))
    assert "min_lr_ratio" not in old.state_dict()
    assert new.state_dict()["min_lr_ratio"] == 0.2
    new.load_state_dict(old.state_dict())
    assert new.min_lr_ratio == 0.0
    assert new.state_dict().keys() == old.state_dict().keys()


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.2), (0.2, 0.0), (0.2, 0.5)])
@pytest.mark.parametrize("name", [*TO_FLOOR, *BOUNDED])
def test_resume_applies_the_configured_min_lr_ratio(name, before, after):
    arguments = {**TO_FLOOR, **BOUNDED}[name]
    saved, expected = (
        optplug.create_scheduler(name, optimizer_of(), **arguments, min_lr_ratio=r) for r in (before, after)
    )
    configured = expected.state_dict()
    take_steps(saved, 25)
    take_steps(expected, 25)
    adapter_for(saved).apply_settings(configured, [0.1, 3.0], [0.1, 3.0])
    assert_equal([lrs_of(saved.optimizer)], [lrs_of(expected.optimizer)])
    assert_equal(take_steps(saved, 10), take_steps(expected, 10))


# ---------------------------------------------------------------------------------------------- extend


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_wsd_extends_its_constant_part_without_a_jump(warmup_steps):
    arguments = {"decay_steps": 20, "warmup_steps": warmup_steps, "decay": "1-sqrt"}
    scheduler = optplug.create_scheduler("wsd", optimizer_of(), total_steps=60, **arguments)
    longer = optplug.create_scheduler("wsd", optimizer_of(), total_steps=100, **arguments)
    assert_equal(take_steps(scheduler, 40), take_steps(longer, 40))
    before = lrs_of(scheduler.optimizer)
    assert scheduler.extend(100)
    assert lrs_of(scheduler.optimizer) == before
    assert_equal(take_steps(scheduler, 70), take_steps(longer, 70))


@pytest.mark.parametrize(("steps", "length"), [(41, 100), (60, 100), (30, 49), (5, 25)])
def test_wsd_is_not_extended_where_its_learning_rate_would_jump(steps, length):
    scheduler = optplug.create_scheduler("wsd", optimizer_of(), total_steps=60, decay_steps=20, warmup_steps=10)
    take_steps(scheduler, steps)
    assert not scheduler.extend(length)
    assert scheduler.total_steps == 60


def test_other_schedules_are_not_extended():
    scheduler = optplug.create_scheduler("cosine_annealing_lr", optimizer_of(), T_max=9)
    assert not scheduler.extend(20)
    assert scheduler.T_max == 9


def test_sequence_extends_its_last_schedule():
    parts = [{"name": "linear_lr", "length": 10}, {"name": "wsd", "length": 30, "decay_steps": 5}]
    scheduler = optplug.create_scheduler("sequential", optimizer_of(1.0), schedules=parts)
    assert scheduler.extend(60)
    seen = [values[0] for values in take_steps(scheduler, 60)]
    assert seen[9:55] == [1.0] * 46
    assert seen[59] == 0.0


# ------------------------------------------------------------------------------------------- sequences

PARTS = {
    "linear_lr": ({"start_factor": 0.1, "total_iters": 20}, lr_scheduler.LinearLR),
    "constant_lr": ({"factor": 0.5, "total_iters": 11}, lr_scheduler.ConstantLR),
    "exponential_lr": ({"gamma": 0.97}, lr_scheduler.ExponentialLR),
    "step_lr": ({"step_size": 7, "gamma": 0.5}, lr_scheduler.StepLR),
    "cosine_annealing_lr": ({"T_max": 31, "eta_min": 0.01}, lr_scheduler.CosineAnnealingLR),
    "polynomial_lr": ({"total_iters": 60, "power": 2.0}, lr_scheduler.PolynomialLR),
    "cosine_annealing_warm_restarts": ({"T_0": 9, "T_mult": 2}, lr_scheduler.CosineAnnealingWarmRestarts),
}


def both_sequences(names, lengths, lrs=(0.1, 3.0)):
    parts = [{"name": name, "length": length, **PARTS[name][0]} for name, length in zip(names, lengths, strict=False)]
    parts.append({"name": names[-1], **PARTS[names[-1]][0]})
    ours = optplug.create_scheduler("sequential", optimizer_of(*lrs), schedules=parts)
    optimizer = optimizer_of(*lrs)
    members = [PARTS[name][1](optimizer, **PARTS[name][0]) for name in names]
    return ours, lr_scheduler.SequentialLR(optimizer, members, list(itertools.accumulate(lengths)))


@pytest.mark.parametrize("names", list(itertools.permutations(PARTS, 2)), ids="-".join)
def test_pair_in_sequence_equals_torch(names):
    ours, theirs = both_sequences(names, [40])
    assert_equal([values_of(ours.optimizer)], [values_of(theirs.optimizer)])
    assert_equal(take_steps(ours, 300), take_steps(theirs, 300))


def test_sequence_of_all_equals_torch():
    ours, theirs = both_sequences(list(PARTS), [11, 5, 40, 33, 20, 90])
    assert_equal(take_steps(ours, 300), take_steps(theirs, 300))


@pytest.mark.parametrize("steps", [0, 10, 11, 12, 30])
@pytest.mark.parametrize("ours_first", [True, False], ids=["to torch", "from torch"])
def test_state_of_sequence_is_exchanged_with_torch(steps, ours_first):
    names, lengths = ["linear_lr", "cosine_annealing_warm_restarts", "exponential_lr"], [11, 40]
    first, then = (both_sequences(names, lengths)[i] for i in ((0, 1) if ours_first else (1, 0)))
    take_steps(first, steps)
    then.optimizer.load_state_dict(first.optimizer.state_dict())
    then.load_state_dict(first.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal(take_steps(then, 60), take_steps(first, 60))


def test_sequence_composes_with_another_scheduler_as_torchs():
    ours, theirs = both_sequences(["linear_lr", "exponential_lr"], [40])
    others = [lr_scheduler.ExponentialLR(scheduler.optimizer, 0.99) for scheduler in (ours, theirs)]
    for _ in range(100):
        for scheduler, other in zip((ours, theirs), others, strict=True):
            scheduler.optimizer.step()
            other.step()
            scheduler.step()
        assert_equal([lrs_of(ours.optimizer)], [lrs_of(theirs.optimizer)])


def test_length_sets_the_total_length_of_a_member():
    parts = [{"name": "linear_lr", "length": 10, "start_factor": 0.1}, {"name": "cosine_annealing_lr", "length": 20}]
    seen = multipliers("sequential", 30, schedules=parts)
    assert seen[5] == pytest.approx(0.55)
    assert (seen[10], seen[20], seen[30]) == (1.0, pytest.approx(0.5), pytest.approx(0.0, abs=LIMIT))


def test_sequence_in_a_sequence():
    inner = {
        "name": "sequential",
        "schedules": [{"name": "constant_lr", "length": 4}, {"name": "exponential_lr", "gamma": 0.5}],
    }
    seen = multipliers(
        "sequential", 9, schedules=[{**inner, "length": 6}, {"name": "step_lr", "step_size": 1, "gamma": 0.1}]
    )
    assert seen == pytest.approx([1 / 3] * 4 + [1.0, 0.5] + [1.0, 0.1, 0.01, 0.001])


def test_momentum_of_a_later_member_is_not_set_before_it_begins():
    parts = [{"name": "linear_lr", "length": 5}, {"name": "one_cycle_lr", "max_lr": 1.0, "total_steps": 30}]
    scheduler = optplug.create_scheduler("sequential", optimizer_of(0.1), schedules=parts)
    assert values_of(scheduler.optimizer) == pytest.approx([0.1 / 3, 0.9])
    assert [values[1] for values in take_steps(scheduler, 4)] == [0.9] * 4
    alone = optplug.create_scheduler("one_cycle_lr", optimizer_of(0.1), max_lr=1.0, total_steps=30)
    expected = [values_of(alone.optimizer), *take_steps(alone, 20)]
    assert_equal(take_steps(scheduler, 21), expected)
    assert adapter_for(scheduler).last_step == 34


def test_resumed_sequence_continues_at_last_epoch():
    whole, _ = both_sequences(["linear_lr", "cosine_annealing_lr", "exponential_lr"], [20, 31], (0.1,))
    for start in (3, 18, 19, 20, 40, 55):
        reference, _ = both_sequences(["linear_lr", "cosine_annealing_lr", "exponential_lr"], [20, 31], (0.1,))
        seen = take_steps(reference, start + 1)
        parts = [{"name": n, "length": 20, **PARTS[n][0]} for n in ("linear_lr",)]
        parts += [{"name": "cosine_annealing_lr", "length": 31, **PARTS["cosine_annealing_lr"][0]}]
        parts += [{"name": "exponential_lr", **PARTS["exponential_lr"][0]}]
        optimizer = optimizer_of(seen[-1][0])
        optimizer.param_groups[0]["initial_lr"] = 0.1
        resumed = optplug.create_scheduler("sequential", optimizer, schedules=parts, last_epoch=start)
        assert_equal(take_steps(resumed, 20), take_steps(reference, 20))
    assert lrs_of(whole.optimizer) == [pytest.approx(0.01)]


def test_sequence_of_another_number_of_schedules_is_rejected():
    one = optplug.create_scheduler("sequential", optimizer_of(), schedules=[{"name": "linear_lr"}])
    two, _ = both_sequences(["linear_lr", "step_lr"], [5])
    with pytest.raises(ConfigError, match="has 2 schedules, this one 1"):
        one.load_state_dict(two.state_dict())


def test_settings_of_the_members_are_applied_on_resume():
    saved, _ = both_sequences(["linear_lr", "exponential_lr"], [20])
    parts = [{"name": "linear_lr", "length": 30}, {"name": "exponential_lr", "gamma": 0.5}]
    expected = optplug.create_scheduler("sequential", optimizer_of(0.2, 6.0), schedules=parts)
    configured = expected.state_dict()
    take_steps(saved, 25)
    take_steps(expected, 25)
    for group, base in zip(saved.optimizer.param_groups, (0.2, 6.0), strict=True):
        group["initial_lr"] = base
    assert adapter_for(saved).apply_settings(configured, [0.2, 6.0], [0.1, 3.0])
    assert_equal(take_steps(saved, 20), take_steps(expected, 20))


# --------------------------------------------------------------------------------- restarts and momentum


@pytest.mark.parametrize("T_mult", [1, 2, 3])
def test_restarts_with_fractional_epochs_equal_torch(T_mult):
    histories = []
    for cls in (optplug.get_scheduler("cosine_annealing_warm_restarts"), lr_scheduler.CosineAnnealingWarmRestarts):
        scheduler = cls(optimizer_of(), 5, T_mult, eta_min=0.01)
        scheduler.optimizer.step()
        seen = []
        for epoch in (0, 0.25, 3.5, None, None, None, 17.25, None, 2, None, 40.125):
            scheduler.step(epoch)
            seen.append(lrs_of(scheduler.optimizer))
            state = scheduler.state_dict()
            seen[-1] += [state["T_cur"], state["T_i"], state["last_epoch"]]
        histories.append(seen)
    assert_equal(*histories)


@pytest.mark.parametrize("ours_first", [True, False], ids=["to torch", "from torch"])
def test_fraction_of_an_epoch_is_part_of_the_state(ours_first):
    ours, theirs = (
        cls(optimizer_of(), 5, 2)
        for cls in (optplug.get_scheduler("cosine_annealing_warm_restarts"), lr_scheduler.CosineAnnealingWarmRestarts)
    )
    first, then = (ours, theirs) if ours_first else (theirs, ours)
    first.optimizer.step()
    first.step(3.25)
    then.optimizer.load_state_dict(first.optimizer.state_dict())
    then.load_state_dict(first.state_dict())
    assert_equal(take_steps(then, 20), take_steps(first, 20))


def test_base_learning_rates_of_a_sequence_are_not_those_of_its_cycle():
    def make(lr):
        parts = [{"name": "linear_lr", "length": 4}, {"name": "cyclic_lr", "base_lr": 0.01, "max_lr": 0.5}]
        return optplug.create_scheduler("sequential", optimizer_of(lr), schedules=parts)

    changed, expected = make(0.1), make(0.7)
    adapter_for(changed).set_base_lrs([0.7])
    assert_equal(take_steps(changed, 20), take_steps(expected, 20))


def test_restarts_continue_where_torch_counts_from_last_epoch():
    cls = optplug.get_scheduler("cosine_annealing_warm_restarts")
    for start in (5, 28, 79):
        optimizer = optimizer_of(0.1)
        optimizer.param_groups[0]["initial_lr"] = 0.1
        cls(optimizer, 7, 2, last_epoch=start)
        reference = lr_scheduler.CosineAnnealingWarmRestarts(optimizer_of(0.1), 7, 2)
        reference.step(start + 1)
        assert_equal([lrs_of(optimizer)], [lrs_of(reference.optimizer)])


CYCLES = {
    "one_cycle_lr": (
        lambda o: {"max_lr": [0.5] * len(o.param_groups), "total_steps": 60, "base_momentum": 0.6},
        lr_scheduler.OneCycleLR,
    ),
    "cyclic_lr": (
        lambda o: {"base_lr": 0.01, "max_lr": [0.5] * len(o.param_groups), "step_size_up": 7, "max_momentum": 0.99},
        lr_scheduler.CyclicLR,
    ),
}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("name", CYCLES)
def test_momentum_or_first_beta_equals_torch(name, kind):
    arguments, cls = CYCLES[name]
    ours, theirs = optimizer_of(kind=kind), optimizer_of(kind=kind)
    one = optplug.create_scheduler(name, ours, **arguments(ours))
    other = cls(theirs, **arguments(theirs))
    assert values_of(ours) == values_of(theirs)
    history = take_steps(one, 55)
    assert_equal(history, take_steps(other, 55))
    assert len({values[2] for values in history}) > 10


def test_groups_without_momentum_are_left_alone():
    optimizer = optimizer_of(kind=Idle, defaults={"lr": 0.1, "momentum": 0.9})
    optimizer.add_param_group({"params": [torch.zeros(1)], "lr": 0.1})
    del optimizer.param_groups[1]["momentum"], optimizer.param_groups[2]["momentum"]
    optimizer.param_groups[1]["betas"] = (0.7, 0.999)
    scheduler = optplug.create_scheduler("one_cycle_lr", optimizer, max_lr=1.0, total_steps=30)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert {"momentum", "betas"}.isdisjoint(optimizer.param_groups[2])
    assert "momentum" not in optimizer.param_groups[1]
    assert optimizer.param_groups[1]["betas"] == (optimizer.param_groups[0]["momentum"], 0.999)


@pytest.mark.parametrize("name", CYCLES)
def test_learning_rate_of_the_optimizer_is_not_used(name):
    arguments, _ = CYCLES[name]
    first, second = optimizer_of(0.1, 0.1), optimizer_of(7.0, 9.0)
    schedulers = [optplug.create_scheduler(name, o, **arguments(o)) for o in (first, second)]
    adapter_for(schedulers[1]).set_base_lrs([0.3, 0.4])  # of the learning-rate finder
    assert values_of(first) == values_of(second)
    assert_equal(*(take_steps(scheduler, 20) for scheduler in schedulers))


@pytest.mark.parametrize("name", CYCLES)
def test_warmup_multiplies_the_learning_rate_only(name):
    arguments, _ = CYCLES[name]
    alone, optimizer = optimizer_of(), optimizer_of()
    reference = optplug.create_scheduler(name, alone, **arguments(alone))
    warmup = Warmup(optplug.create_scheduler(name, optimizer, **arguments(optimizer)), 10)
    for t in range(1, 30):
        take_steps(reference, 1)
        optimizer.step()
        warmup.warmup_step()
        warmup.step()
        factor = min(1.0, 0.1 + 0.09 * t)
        expected = [*(factor * lr for lr in lrs_of(alone)), *values_of(alone)[2:]]
        assert_equal([values_of(optimizer)], [expected])


def test_settings_of_cyclic_lr_are_applied_on_resume():
    saved, expected = (
        optplug.create_scheduler("cyclic_lr", optimizer_of(0.1), base_lr=base, max_lr=top, step_size_up=up)
        for base, top, up in ((0.01, 0.1, 5), (0.02, 0.5, 9))
    )
    configured = expected.state_dict()
    take_steps(saved, 7)
    take_steps(expected, 7)
    saved.optimizer.param_groups[0]["initial_lr"] = 0.02
    assert adapter_for(saved).apply_settings(configured, [0.02], [0.01])
    assert_equal([values_of(saved.optimizer)], [values_of(expected.optimizer)])
    assert_equal(take_steps(saved, 20), take_steps(expected, 20))


def test_late_group_of_one_cycle_keeps_its_ratio_and_gets_the_momentum():
    optimizer = optimizer_of(0.1)
    scheduler = optplug.create_scheduler("one_cycle_lr", optimizer, max_lr=1.0, total_steps=40)
    take_steps(scheduler, 7)
    lr = lrs_of(optimizer)[0]
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.3 * lr, "momentum": 0.1})
    follow_groups(scheduler)
    for values in take_steps(scheduler, 30):
        assert values[1] == pytest.approx(0.3 * values[0])
        assert values[3] == values[2]


def test_last_step_of_one_cycle_is_known():
    ours = optplug.create_scheduler("one_cycle_lr", optimizer_of(), max_lr=1.0, total_steps=40)
    theirs = lr_scheduler.OneCycleLR(optimizer_of(), 1.0, 40)
    assert adapter_for(ours).last_step == OneCycleAdapter(theirs).last_step == 39
    for _ in range(40):
        take_steps(ours, 1)
    with pytest.raises(
        HyperparameterError, match=r"Tried to step 41 times\. The specified number of total steps is 40"
    ):
        take_steps(ours, 1)


def test_there_are_at_least_sixteen_schedulers_with_a_closed_form_except_plateau():
    names = optplug.list_schedulers("optplug-schedules:*")
    assert len(names) >= 16
    assert [n for n in names if not issubclass(optplug.get_scheduler(n), ClosedFormLR)] == ["reduce_lr_on_plateau"]
