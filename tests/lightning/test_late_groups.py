"""Groups added during training: every scheduler schedules them as if they had been there from the start."""

from __future__ import annotations

import copy
import importlib
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import optplug
from optplug.config.expressions import resolved
from optplug.config.param_groups import Known, known, name_groups
from optplug.optim.combined import Combined
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.rebase import overruled
from optplug.schedulers.warmup import Warmup

BASES = (0.1, 0.02)
STEPS = 16
NAMES = optplug.list_schedulers("optplug-schedules:*")
Plateau, Lambda, Cosine, Exponential, Step = (
    optplug.get_scheduler(name)
    for name in ("reduce_lr_on_plateau", "lambda_lr", "cosine_annealing_lr", "exponential_lr", "step_lr")
)


def parameter():
    return torch.zeros(1, requires_grad=True)


def group(lr, **options):
    return {"params": [parameter()], "lr": lr, **options}


def sgd(*lrs, **options):
    return torch.optim.SGD([group(lr) for lr in lrs or BASES], momentum=0.9, **options)


def adam(*lrs):
    return torch.optim.Adam([group(lr) for lr in lrs])


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def times(factor, optimizer):
    """An argument by group, in proportion to the base rates."""
    return [factor * rate for rate in rates(optimizer)]


def first_and_others(first, others, optimizer):
    return [first] + [others] * (len(optimizer.param_groups) - 1)


def falling(t):
    return 0.9**t


def blinking(t):
    return t // 3 % 2


class Stranger(lr_scheduler.LRScheduler):
    def get_lr(self):
        return [base / (1 + self.last_epoch) for base in self.base_lrs]


def of_case(cls, case):
    given = {**case, "min_lr": 0.0, "eps": 0.0} if cls is Plateau else case  # bounds are no matter of ratios
    return lambda optimizer: cls(optimizer, **resolved(cls, given))


OURS = {
    f"{name} {i}": of_case(cls, case)
    for name, cls in ((name, optplug.get_scheduler(name)) for name in NAMES)
    for i, case in enumerate(cls.cases)
} | {
    "lambda_lr by group": lambda o: Lambda(o, first_and_others(blinking, falling, o)),
    "cosine_annealing_lr risen again": lambda o: Cosine(o, 5, 0.005),
    "step_lr to nothing": lambda o: Step(o, 5, 0.0),
    "in SequentialLR": lambda o: lr_scheduler.SequentialLR(o, [Step(o, 3, 0.5), Cosine(o, 9)], [6]),
    "in ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([Step(o, 3, 0.5), Exponential(o, 0.9)]),
}

TORCH = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, blinking),
    "LambdaLR by group": lambda o: lr_scheduler.LambdaLR(o, first_and_others(blinking, falling, o)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9 if t % 2 else 0.8),
    "MultiplicativeLR by group": lambda o: lr_scheduler.MultiplicativeLR(
        o, first_and_others(lambda t: 0.5, lambda t: 0.9, o)
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "StepLR to nothing": lambda o: lr_scheduler.StepLR(o, 5, 0.0),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 9], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 8),
    "LinearLR to nothing": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingLR above a floor": lambda o: lr_scheduler.CosineAnnealingLR(o, 7, 0.005),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2, 0.005),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, times(10, o), 2 * STEPS),
    "OneCycleLR in three phases": lambda o: lr_scheduler.OneCycleLR(o, times(10, o), 2 * STEPS, three_phase=True),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o,
        times(1, o),
        times(5, o),
        3,
        base_momentum=first_and_others(0.7, 0.75, o),
        max_momentum=first_and_others(0.8, 0.85, o),
    ),
    "CyclicLR without momentum": lambda o: lr_scheduler.CyclicLR(
        o, times(1, o), times(5, o), 3, mode="exp_range", gamma=0.9, cycle_momentum=False
    ),
    "SWALR": lambda o: SWALR(o, times(3, o), 6),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1, eps=0.0),
    "ReduceLROnPlateau with bounds": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, factor=0.5, patience=1, eps=0.0, min_lr=first_and_others(1e-9, 1e-10, o)
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.2, 1.0, 5), lr_scheduler.MultiplicativeLR(o, lambda t: 0.9)]
    ),
    "a stranger's": Stranger,
}

EVERY = {f"optplug's {name}": make for name, make in OURS.items()} | {
    f"torch's {name}": make for name, make in TORCH.items()
}
UNSTEADY = {name: make for name, make in EVERY.items() if "Sequential" not in name and "Chained" not in name}
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


def take_step(scheduler):
    scheduler.optimizer.step()
    if isinstance(scheduler, Warmup):
        scheduler.warmup_step()
    inner = scheduler.scheduler if isinstance(scheduler, Warmup) else scheduler
    scheduler.step(*[1.0] * isinstance(inner, lr_scheduler.ReduceLROnPlateau))


def shown(optimizer):
    """All that a scheduler sets in the groups."""
    return [
        (float(group["lr"]), group.get("momentum", 0.0), *group.get("betas", ())) for group in optimizer.param_groups
    ]


def close(one, other):
    return one == pytest.approx(other, rel=1e-9, abs=1e-13)


def runs(make, additions, kind=sgd, follow=follow_groups, as_rate=float):
    """By step, what the groups have that were added by and by, and what they have that were there from the start.

    Args:
        additions: pairs of a step and the ratio of the group that is added before it.
    """
    optimizer = kind(*map(as_rate, BASES))
    scheduler = make(optimizer)
    bases, grown = list(BASES), []
    for t in range(STEPS):
        last, base = without_warmup(scheduler)[-1], bases[-1]
        base_now = optimizer.param_groups[-1].get("initial_lr")
        for _, ratio in (pair for pair in additions if pair[0] == t):
            optimizer.add_param_group(group(as_rate(ratio * (last or base_now))))
            bases.append(base * ratio)
        follow(scheduler)
        take_step(scheduler)
        grown.append(shown(optimizer))
    reference = kind(*map(as_rate, bases))
    scheduler = make(reference)
    whole = []
    for _ in range(STEPS):
        take_step(scheduler)
        whole.append(shown(reference))
    return grown, [path[: len(there)] for path, there in zip(whole, grown, strict=True)]


def without_warmup(scheduler):
    return scheduler._inner_lrs if isinstance(scheduler, Warmup) else rates(scheduler.optimizer)


def assert_same_paths(grown, whole):
    for t, (one, other) in enumerate(zip(grown, whole, strict=True)):
        for i, (group_, reference) in enumerate(zip(one, other, strict=True)):
            assert close(group_, reference), f"group {i} after step {t}"


# ------------------------------------------------------------------------------------------------ the law


@every
def test_a_group_added_at_any_step_is_scheduled_as_from_the_start(make):
    for k in range(STEPS):
        assert_same_paths(*runs(make, [(k, 0.3)]))


@every
def test_so_it_is_where_betas_are_scheduled(make):
    assert_same_paths(*runs(make, [(4, 0.3)], adam))


@every
@settings(max_examples=20)
@given(additions=st.lists(st.tuples(st.integers(0, STEPS - 1), st.sampled_from([0.1, 0.5, 1.0, 3.0])), max_size=4))
def test_so_are_several_at_random_steps(make, additions):
    assert_same_paths(*runs(make, additions))


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_ours_follow_by_themselves(make):
    for k in range(STEPS):
        assert_same_paths(*runs(make, [(k, 0.3), (k + 2, 2.0)], follow=id))


@pytest.mark.parametrize("make", UNSTEADY.values(), ids=UNSTEADY)
@pytest.mark.parametrize("follow", [follow_groups, id], ids=["told", "by itself"])
def test_within_a_warmup_they_do_so_from_their_rate_without_warmup(make, follow):
    for k in range(STEPS):
        assert_same_paths(*runs(lambda o: Warmup(make(o), 6), [(k, 0.3)], follow=follow))


@every
def test_rates_that_are_tensors_are_followed_and_shared_by_nobody(make):
    def as_rate(rate):
        return torch.tensor(float(rate), dtype=torch.float64)

    assert_same_paths(*runs(make, [(4, 0.3), (9, 0.5)], as_rate=as_rate))
    optimizer = sgd(*map(as_rate, BASES))
    scheduler = make(optimizer)
    take_step(scheduler)
    optimizer.add_param_group(group(optimizer.param_groups[-1]["lr"]))  # as torch does with a default
    follow_groups(scheduler)
    kept = [vars(one) for one in (scheduler, *getattr(scheduler, "_schedulers", ()))]
    values = [value for group_ in optimizer.param_groups for value in group_.values()]
    told = [value for own in kept for value in own.get("_last_lr", ())]  # SequentialLR tells its member's
    values += [value for own in kept for name, held in own.items() if name[0] != "_" for value in as_list(held)]
    pointers, others = ([v.data_ptr() for v in vs if isinstance(v, torch.Tensor)] for vs in (values, told))
    assert len(set(pointers)) == len(pointers) >= 3
    assert not set(pointers) & set(others)


def as_list(value):
    return value if isinstance(value, list) else []


def test_two_groups_before_one_step_are_both_in_proportion_to_the_last_old_one():
    optimizer = sgd(0.1, 0.02)
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    take_step(scheduler)
    optimizer.add_param_group(group(0.001))
    optimizer.add_param_group(group(0.03))
    follow_groups(scheduler)
    assert scheduler.base_lrs == pytest.approx([0.1, 0.02, 0.002, 0.06])
    assert [g["initial_lr"] for g in optimizer.param_groups] == scheduler.base_lrs


def test_an_initial_lr_that_a_group_brings_is_its_base_rate():
    optimizer = sgd(0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 1.0, 20)
    take_step(scheduler)
    before = optimizer.param_groups[0]
    optimizer.add_param_group(group(0.5, initial_lr=before["initial_lr"] / 4, min_lr=1e-9))
    follow_groups(scheduler)
    added = optimizer.param_groups[1]
    assert (added["lr"], added["initial_lr"], added["min_lr"]) == (0.5, before["initial_lr"] / 4, 1e-9)
    assert scheduler.base_lrs == [before["initial_lr"], added["initial_lr"]]
    assert added["max_lr"] == pytest.approx(before["max_lr"] / 4)


@pytest.mark.parametrize("make", [Exponential, lr_scheduler.ExponentialLR])
def test_beside_a_rate_of_0_the_own_rate_is_the_base(make):
    optimizer = sgd(0.1)
    scheduler = make(optimizer, gamma=0.5)
    take_step(scheduler)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.add_param_group(group(0.03))
    follow_groups(scheduler)
    assert scheduler.base_lrs == [0.1, 0.03]
    take_step(scheduler)
    assert rates(optimizer) == [0.0, pytest.approx(0.03 * 0.5**2)]


@pytest.mark.parametrize("rate", [0.0, 0.03])
def test_a_cycle_that_starts_at_0_has_its_height_for_a_new_group(rate):
    optimizer = sgd(0.1)
    scheduler = lr_scheduler.CyclicLR(optimizer, 0.0, 1.0, 4)
    optimizer.add_param_group(group(rate))
    follow_groups(scheduler)
    assert (scheduler.base_lrs, scheduler.max_lrs) == ([0.0, rate], [1.0, 1.0])


def test_a_group_of_rate_0_without_schedule_leaves_others_alone():
    optimizer = sgd(0.0)
    scheduler = Exponential(optimizer, 0.5)
    optimizer.add_param_group(group(0.2))
    take_step(scheduler)
    assert rates(optimizer) == [0.0, 0.1]


@pytest.mark.parametrize("ours", [True, False])
def test_the_last_bound_of_a_plateau_holds_for_new_groups(ours):
    optimizer = sgd(0.1, 0.1)
    scheduler = (Plateau if ours else lr_scheduler.ReduceLROnPlateau)(optimizer, patience=0, min_lr=[0.05, 0.02])
    optimizer.add_param_group(group(0.3))
    if not ours:
        follow_groups(scheduler)
    for _ in range(5):
        take_step(scheduler)
    assert (rates(optimizer), scheduler.min_lrs) == ([0.05, 0.02, 0.02], [0.05, 0.02, 0.02])


def test_a_rate_below_the_floor_never_becomes_negative():
    for cls, k in itertools.product((Cosine, lr_scheduler.CosineAnnealingLR), range(20)):
        optimizer = sgd(0.1)
        scheduler = cls(optimizer, 7, 0.01)
        for t in range(40):
            if t == k:
                optimizer.add_param_group(group(optimizer.param_groups[0]["lr"] / 10))
            follow_groups(scheduler)
            take_step(scheduler)
            assert min(rates(optimizer)) > 0
            assert max(rates(optimizer)) <= 0.1 * (1 + 1e-12)


# ------------------------------------------------------------------------------------------------ what it leaves alone


@every
def test_where_nothing_was_added_nothing_changes_and_twice_is_once(make):
    optimizer = sgd()
    scheduler = make(optimizer)
    for added in (False, True):
        take_step(scheduler)
        if added:
            optimizer.add_param_group(group(0.01))
            follow_groups(scheduler)
        before = copy.deepcopy((scheduler.state_dict(), [{**g, "params": ()} for g in optimizer.param_groups]))
        held = {name: id(value) for name, value in vars(scheduler).items()}
        follow_groups(scheduler)
        assert (scheduler.state_dict(), [{**g, "params": ()} for g in optimizer.param_groups]) == before
        assert {name: id(value) for name, value in vars(scheduler).items()} == held
        assert len(scheduler.get_last_lr()) == len(optimizer.param_groups)


def test_a_state_that_was_taken_before_stays_as_it_was():
    scheduler = Exponential(sgd(0.1), 0.9)
    state = scheduler.state_dict()
    scheduler.optimizer.add_param_group(group(0.2))
    follow_groups(scheduler)
    assert (state["base_lrs"], state["_last_lr"]) == ([0.1], [0.1])
    assert (scheduler.base_lrs, scheduler.get_last_lr()) == ([0.1, 0.2], [0.1, 0.2])


def test_groups_that_were_removed_are_not_its_business():
    scheduler = lr_scheduler.ExponentialLR(sgd(0.1, 0.2), 0.9)
    del scheduler.optimizer.param_groups[1]
    follow_groups(scheduler)
    assert scheduler.base_lrs == [0.1, 0.2]


def test_one_that_can_do_it_itself_does():
    class Own(Stranger):
        def follow_groups(self):
            self.base_lrs = [7.0] * len(self.optimizer.param_groups)

    scheduler = Own(sgd())
    follow_groups(lr_scheduler.ChainedScheduler([scheduler]))
    assert scheduler.base_lrs == [7.0, 7.0]


# ------------------------------------------------------------------------------------------------ checkpoints


@every
@pytest.mark.parametrize("warmup", [False, True])
def test_what_goes_on_from_a_checkpoint_with_more_groups_goes_on_exactly(make, warmup):
    def build():
        optimizer = sgd()
        scheduler = make(optimizer)
        return optimizer, Warmup(scheduler, 9) if warmup else scheduler

    optimizer, scheduler = build()
    for t in range(STEPS // 2):
        if t == 5:
            optimizer.add_param_group(group(0.01))
        follow_groups(scheduler)
        take_step(scheduler)
    resumed, again = build()
    resumed.add_param_group(group(0.01))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    for _ in range(STEPS // 2):
        for one in (scheduler, again):
            follow_groups(one)
            take_step(one)
        assert shown(resumed) == shown(optimizer)
    assert again.get_last_lr() == scheduler.get_last_lr()


def test_settings_of_a_configuration_overrule_a_checkpoint_with_more_groups():
    for make, name in ((lambda o, f: Lambda(o, [f, f]), "lr_lambdas"), (lambda o, f: Plateau(o, min_lr=[1, 2]), 0)):
        saved = make(sgd(*BASES), falling)
        saved.optimizer.add_param_group(group(0.01))
        follow_groups(saved)
        optimizer = sgd(*BASES)
        scheduler = make(optimizer, falling)
        fresh = copy.deepcopy(scheduler.state_dict())
        optimizer.add_param_group(group(0.01))
        scheduler.load_state_dict(saved.state_dict())
        assert overruled(scheduler, fresh, list(BASES), [1.0, 1.0])
        assert scheduler.lr_lambdas == [falling] * 3 if name else scheduler.min_lrs == [1, 2, 2]


# ------------------------------------------------------------------------------------------------ names


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.backbone_2 = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1, bias=False)


@pytest.mark.parametrize(
    ("pick", "name"),
    [
        (lambda m: m.backbone.parameters(), "backbone"),
        (lambda m: m.backbone[0].parameters(), "backbone.0"),
        (lambda m: m.backbone_2.parameters(), "backbone_2"),
        (lambda m: m.head.parameters(), "head.weight"),
        (lambda m: [*m.backbone.parameters(), *m.backbone_2.parameters()], "group 1"),
        (lambda m: [*m.backbone.parameters(), parameter()], "group 1"),
        (lambda m: [parameter()], "group 1"),
    ],
)
def test_a_group_is_named_after_what_its_parameters_have_in_common(pick, name):
    module = Network()
    optimizer = sgd(0.1)
    optimizer.add_param_group({"params": pick(module)})
    assert name_groups(optimizer, known(module), 1) == [name]
    assert [g.get("name") for g in optimizer.param_groups] == [None, name]


def test_no_two_groups_have_one_name_and_a_name_that_is_free_is_kept():
    module = Network()
    optimizer = torch.optim.SGD([group(0.1, name="backbone"), group(0.1, name="head 2")])
    for name, params in ((None, [module.backbone[0].weight, module.backbone[1].weight]), ("head", [parameter()])):
        optimizer.add_param_group({"params": params, **({"name": name} if name else {})})
    more = [
        {"params": [module.backbone[0].bias, module.backbone[1].bias]},
        group(0.1, name="head"),
        group(0.1, name=""),
    ]
    for one in (*more, {"params": module.backbone_2.parameters(), "name": "backbone 3"}):
        optimizer.add_param_group(one)
    expected = ["backbone 2", "head", "backbone 4", "head 3", "group 6", "backbone 3"]
    assert name_groups(optimizer, known(module), 2) == expected
    assert [g["name"] for g in optimizer.param_groups] == ["backbone", "head 2", *expected]
    assert name_groups(optimizer, known(module), 2) == expected
    assert name_groups(optimizer, known(module), len(optimizer.param_groups)) == []


def test_a_name_is_made_of_what_is_known_alone():
    p, q = parameter(), parameter()
    optimizer = sgd(0.1)
    optimizer.add_param_group({"params": [p, q]})
    assert name_groups(optimizer, [Known(id(p), "a.b.c", 1, True), Known(id(q), "a.b.d", 1, True)], 1) == ["a.b"]


def combination():
    return Combined([torch.optim.SGD([group(0.1)], momentum=0.9), torch.optim.Adam([group(0.02)])])


def test_the_groups_of_a_combination_are_followed_and_named():
    module, optimizer = Network(), combination()
    scheduler = Warmup(Lambda(optimizer, [falling, blinking]), 3)
    optimizer.add_param_group({"params": module.backbone.parameters(), "lr": 0.3, "member": 0})
    optimizer.add_param_group({"params": module.head.parameters(), "lr": 0.4, "member": "Adam", "name": "head"})
    follow_groups(scheduler)
    assert name_groups(optimizer, known(module), 2) == ["sgd_2", "head"]
    assert [g["name"] for g in optimizer.param_groups] == ["sgd", "adam", "sgd_2", "head"]
    for _ in range(4):
        take_step(scheduler)
    assert rates(optimizer) == pytest.approx([0.1 * falling(4), 0.02, 0.3, 0.4])


def test_groups_added_through_lightning_s_optimizer_are_followed_and_named(pl):
    wrap = importlib.import_module(f"{pl.__name__}.core.optimizer").LightningOptimizer
    for optimizer in (sgd(0.1, 0.02), combination()):
        module, scheduler = Network(), lr_scheduler.StepLR(optimizer, 1, 0.5)
        given: dict[str, Any] = {"member": 0} if isinstance(optimizer, Combined) else {}
        wrap(optimizer).add_param_group({"params": module.head.parameters(), "lr": 0.04, **given})
        follow_groups(scheduler)
        assert name_groups(optimizer, known(module), 2) == ["sgd_2" if given else "head.weight"]
        assert scheduler.base_lrs == pytest.approx([0.1, 0.02, 0.04])


def test_every_closed_form_of_ours_is_among_these():
    assert {optplug.get_scheduler(name) for name in NAMES} >= {
        cls for cls in (Cosine, Exponential, Step, Lambda) if issubclass(cls, ClosedFormLR)
    }
    assert {name.split()[0] for name in OURS} >= set(NAMES)
