"""Parameter groups added during training: every scheduler treats them like groups that exist from the start."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import optplug
from optplug.config.expressions import resolve_function_arguments
from optplug.config.param_groups import ParameterInfo, name_groups, parameter_infos
from optplug.optim.combined import Combined
from optplug.registry.plugin_registry import unregistered
from optplug.schedulers.adapters import adapter_for
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.warmup import Warmup
from support import TORCH, ignore_epoch_of_sequential_lr, since_torch

pytestmark = ignore_epoch_of_sequential_lr

BASES = (0.1, 0.02)
STEPS = 16
SCHEDULER_NAMES = optplug.list_schedulers("optplug-schedules:*")
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


def lrs_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def scaled_lrs(factor, optimizer):
    """An argument with one value per group, proportional to the base learning rates."""
    return [factor * lr for lr in lrs_of(optimizer)]


def first_and_other_groups(first, others, optimizer):
    return [first] + [others] * (len(optimizer.param_groups) - 1)


def decaying(t):
    return 0.9**t


def alternating(t):
    return t // 3 % 2


class ThirdPartyLR(lr_scheduler.LRScheduler):
    def get_lr(self):
        return [base / (1 + self.last_epoch) for base in self.base_lrs]


def factory_from_case(cls, case):
    # Bounds do not scale with the learning rate.
    given = {**case, "min_lr": 0.0, "eps": 0.0} if cls is Plateau else case

    def make(optimizer):
        own = {key: scaled_lrs(10 * given[key], optimizer) for key in ("base_lr", "max_lr") if key in given}
        return cls(optimizer, **{**resolve_function_arguments(unregistered("scheduler", cls), given), **own})

    return make


OPTPLUG_SCHEDULERS = {
    f"{name} {i}": factory_from_case(cls, case)
    for name, cls in ((name, optplug.get_scheduler(name)) for name in SCHEDULER_NAMES)
    for i, case in enumerate(cls.cases)
} | {
    "lambda_lr by group": lambda o: Lambda(o, first_and_other_groups(alternating, decaying, o)),
    "cosine_annealing_lr beyond T_max": lambda o: Cosine(o, 5, 0.005),
    "step_lr to zero": lambda o: Step(o, 5, 0.0),
    "cyclic_lr with momenta by group": lambda o: optplug.get_scheduler("cyclic_lr")(
        o,
        scaled_lrs(1, o),
        scaled_lrs(5, o),
        3,
        base_momentum=first_and_other_groups(0.7, 0.75, o),
        max_momentum=first_and_other_groups(0.8, 0.85, o),
    ),
    "sequential with one_cycle_lr": lambda o: optplug.get_scheduler("sequential")(
        o,
        [
            {"name": "linear_lr", "length": 4, "start_factor": 0.1},
            {"name": "one_cycle_lr", "max_lr": scaled_lrs(10, o), "total_steps": 30},
        ],
    ),
    "multiplicative_lr by group": lambda o: optplug.get_scheduler("multiplicative_lr")(
        o, first_and_other_groups(lambda t: 0.5, lambda t: 0.9, o)
    ),
    "in SequentialLR": lambda o: lr_scheduler.SequentialLR(o, [Step(o, 3, 0.5), Cosine(o, 9)], [6]),
    "in ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([Step(o, 3, 0.5), Exponential(o, 0.9)]),
}

TORCH_SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, alternating),
    "LambdaLR by group": lambda o: lr_scheduler.LambdaLR(o, first_and_other_groups(alternating, decaying, o)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9 if t % 2 else 0.8),
    "MultiplicativeLR by group": lambda o: lr_scheduler.MultiplicativeLR(
        o, first_and_other_groups(lambda t: 0.5, lambda t: 0.9, o)
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "StepLR to zero": lambda o: lr_scheduler.StepLR(o, 5, 0.0),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 9], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 8),
    "LinearLR to zero": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingLR with eta_min": lambda o: lr_scheduler.CosineAnnealingLR(o, 7, 0.005),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2, 0.005),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, scaled_lrs(10, o), 2 * STEPS),
    "OneCycleLR with three phases": lambda o: lr_scheduler.OneCycleLR(
        o, scaled_lrs(10, o), 2 * STEPS, three_phase=True
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o,
        scaled_lrs(1, o),
        scaled_lrs(5, o),
        3,
        base_momentum=first_and_other_groups(0.7, 0.75, o),
        max_momentum=first_and_other_groups(0.8, 0.85, o),
    ),
    "CyclicLR without momentum": lambda o: lr_scheduler.CyclicLR(
        o, scaled_lrs(1, o), scaled_lrs(5, o), 3, mode="exp_range", gamma=0.9, cycle_momentum=False
    ),
    "SWALR": lambda o: SWALR(o, scaled_lrs(3, o), 6),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1, eps=0.0),
    "ReduceLROnPlateau with bounds": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, factor=0.5, patience=1, eps=0.0, min_lr=first_and_other_groups(1e-9, 1e-10, o)
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "SequentialLR, eta_min in the second": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.CosineAnnealingLR(o, 9, 0.005)], [6]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.2, 1.0, 5), lr_scheduler.MultiplicativeLR(o, lambda t: 0.9)]
    ),
    "third-party": ThirdPartyLR,
}

ALL_SCHEDULERS = {f"optplug {name}": make for name, make in OPTPLUG_SCHEDULERS.items()} | {
    f"torch {name}": make for name, make in TORCH_SCHEDULERS.items()
}
NOT_COMPOSED = {
    name: make for name, make in ALL_SCHEDULERS.items() if "Sequential" not in name and "Chained" not in name
}
SHARE_TENSORS_BEFORE_2_11 = [
    *TORCH_SCHEDULERS.values(),
    *(make for name, make in OPTPLUG_SCHEDULERS.items() if "Sequential" in name or "Chained" in name),
]
"""Schedulers of torch, which before 2.11 have the tensors of the groups as `base_lrs` and last learning rates."""
all_schedulers = pytest.mark.parametrize("make", ALL_SCHEDULERS.values(), ids=ALL_SCHEDULERS)


def take_step(scheduler):
    scheduler.optimizer.step()
    if isinstance(scheduler, Warmup):
        scheduler.warmup_step()
    inner = scheduler.scheduler if isinstance(scheduler, Warmup) else scheduler
    scheduler.step(*[1.0] * isinstance(inner, lr_scheduler.ReduceLROnPlateau))


def scheduled_values(optimizer):
    """Every option that a scheduler may set, for each group."""
    return [
        (float(group["lr"]), group.get("momentum", 0.0), *group.get("betas", ())) for group in optimizer.param_groups
    ]


def is_close(one, other):
    return one == pytest.approx(other, rel=1e-9, abs=1e-13)


def values_with_added_and_initial_groups(make, additions, kind=sgd, follow=follow_groups, make_lr=float):
    """After each step, the values of an optimizer with added groups, and of one with all groups from the start.

    Args:
        make: builds the scheduler for an optimizer.
        additions: pairs of a step and a ratio. Before the step, a group is added whose lr is the ratio times the lr of
            the last group.
        kind: builds the optimizer from learning rates.
        follow: called with the scheduler before each step.
        make_lr: converts a learning rate before it is given to an optimizer.
    """
    optimizer = kind(*map(make_lr, BASES))
    scheduler = make(optimizer)
    bases, grown = list(BASES), []
    for t in range(STEPS):
        last, base = without_warmup(scheduler)[-1], bases[-1]
        base_now = optimizer.param_groups[-1].get("initial_lr")
        for _, ratio in (pair for pair in additions if pair[0] == t):
            optimizer.add_param_group(group(make_lr(ratio * (last or base_now))))
            bases.append(base * ratio)
        follow(scheduler)
        take_step(scheduler)
        grown.append(scheduled_values(optimizer))
    reference = kind(*map(make_lr, bases))
    scheduler = make(reference)
    whole = []
    for _ in range(STEPS):
        take_step(scheduler)
        whole.append(scheduled_values(reference))
    return grown, [values[: len(present)] for values, present in zip(whole, grown, strict=True)]


def without_warmup(scheduler):
    return scheduler._lrs_without_warmup if isinstance(scheduler, Warmup) else lrs_of(scheduler.optimizer)


def assert_same_values(grown, whole):
    for t, (one, other) in enumerate(zip(grown, whole, strict=True)):
        for i, (group_, reference) in enumerate(zip(one, other, strict=True)):
            assert is_close(group_, reference), f"group {i} after step {t}"


# -------------------------------------------------------------------- added groups equal groups from the start


@all_schedulers
def test_group_added_at_any_step_equals_group_from_the_start(make):
    for k in range(STEPS):
        assert_same_values(*values_with_added_and_initial_groups(make, [(k, 0.3)]))


@all_schedulers
def test_group_added_to_adam_equals_group_from_the_start(make):
    assert_same_values(*values_with_added_and_initial_groups(make, [(4, 0.3)], adam))


@all_schedulers
@settings(max_examples=20)
@given(additions=st.lists(st.tuples(st.integers(0, STEPS - 1), st.sampled_from([0.1, 0.5, 1.0, 3.0])), max_size=4))
def test_groups_added_at_random_steps_equal_groups_from_the_start(make, additions):
    assert_same_values(*values_with_added_and_initial_groups(make, additions))


@pytest.mark.parametrize("make", OPTPLUG_SCHEDULERS.values(), ids=OPTPLUG_SCHEDULERS)
def test_optplug_schedulers_include_added_groups_without_follow_groups(make):
    for k in range(STEPS):
        assert_same_values(*values_with_added_and_initial_groups(make, [(k, 0.3), (k + 2, 2.0)], follow=id))


@pytest.mark.parametrize("make", NOT_COMPOSED.values(), ids=NOT_COMPOSED)
@pytest.mark.parametrize("follow", [follow_groups, id], ids=["follow_groups", "step"])
def test_group_added_within_warmup_keeps_its_ratio_to_the_lr_without_warmup(make, follow):
    for k in range(STEPS):
        assert_same_values(
            *values_with_added_and_initial_groups(lambda o: Warmup(make(o), 6), [(k, 0.3)], follow=follow)
        )


def tensor_lr(lr):
    return torch.tensor(float(lr), dtype=torch.float64)


@all_schedulers
def test_tensor_lrs_are_scheduled(make):
    # torch < 2.11: SequentialLR makes the base learning rate and the current one the same tensor.
    is_wrong = make is TORCH_SCHEDULERS["SequentialLR, eta_min in the second"]
    with since_torch((2, 11) if is_wrong else TORCH, AssertionError, "after step"):
        assert_same_values(*values_with_added_and_initial_groups(make, [(4, 0.3), (9, 0.5)], make_lr=tensor_lr))


@all_schedulers
def test_tensor_lrs_are_not_shared(make):
    optimizer = sgd(*map(tensor_lr, BASES))
    scheduler = make(optimizer)
    take_step(scheduler)
    optimizer.add_param_group(group(optimizer.param_groups[-1]["lr"]))  # torch does so for a group without lr
    follow_groups(scheduler)
    attributes = [vars(one) for one in (scheduler, *getattr(scheduler, "_schedulers", ()))]
    values = [value for group_ in optimizer.param_groups for value in group_.values()]
    last_lrs = [value for own in attributes for value in own.get("_last_lr", ())]  # SequentialLR shares its member's
    values += [
        value for own in attributes for name, held in own.items() if name[0] != "_" for value in list_or_empty(held)
    ]
    pointers, others = ([v.data_ptr() for v in vs if isinstance(v, torch.Tensor)] for vs in (values, last_lrs))
    assert len(pointers) >= 3
    are_shared = len(set(pointers)) < len(pointers) or bool(set(pointers) & set(others))
    assert are_shared == (TORCH < (2, 11) and make in SHARE_TENSORS_BEFORE_2_11)


def list_or_empty(value):
    return value if isinstance(value, list) else []


def test_groups_added_together_keep_their_ratios_to_the_last_existing_group():
    optimizer = sgd(0.1, 0.02)
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    take_step(scheduler)
    optimizer.add_param_group(group(0.001))
    optimizer.add_param_group(group(0.03))
    follow_groups(scheduler)
    assert scheduler.base_lrs == pytest.approx([0.1, 0.02, 0.002, 0.06])
    assert [g["initial_lr"] for g in optimizer.param_groups] == scheduler.base_lrs


def test_initial_lr_of_added_group_is_its_base_lr():
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
def test_base_lr_of_added_group_is_its_lr_if_last_group_has_lr_zero(make):
    optimizer = sgd(0.1)
    scheduler = make(optimizer, gamma=0.5)
    take_step(scheduler)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.add_param_group(group(0.03))
    follow_groups(scheduler)
    assert scheduler.base_lrs == [0.1, 0.03]
    take_step(scheduler)
    assert lrs_of(optimizer) == [0.0, pytest.approx(0.03 * 0.5**2)]


@pytest.mark.parametrize("lr", [0.0, 0.03])
def test_cyclic_lr_from_zero_keeps_max_lr_for_added_group(lr):
    optimizer = sgd(0.1)
    scheduler = lr_scheduler.CyclicLR(optimizer, 0.0, 1.0, 4)
    optimizer.add_param_group(group(lr))
    follow_groups(scheduler)
    assert (scheduler.base_lrs, scheduler.max_lrs) == ([0.0, lr], [1.0, 1.0])


def test_group_added_after_group_with_base_lr_zero_is_scheduled():
    optimizer = sgd(0.0)
    scheduler = Exponential(optimizer, 0.5)
    optimizer.add_param_group(group(0.2))
    take_step(scheduler)
    assert lrs_of(optimizer) == [0.0, 0.1]


@pytest.mark.parametrize("cls", [Plateau, lr_scheduler.ReduceLROnPlateau], ids=["optplug", "torch"])
def test_last_min_lr_of_plateau_applies_to_added_group(cls):
    optimizer = sgd(0.1, 0.1)
    scheduler = cls(optimizer, patience=0, min_lr=[0.05, 0.02])
    optimizer.add_param_group(group(0.3))
    if cls is not Plateau:
        follow_groups(scheduler)
    for _ in range(5):
        take_step(scheduler)
    assert (lrs_of(optimizer), scheduler.min_lrs) == ([0.05, 0.02, 0.02], [0.05, 0.02, 0.02])


def test_lr_below_eta_min_never_becomes_negative():
    for cls, k in itertools.product((Cosine, lr_scheduler.CosineAnnealingLR), range(20)):
        optimizer = sgd(0.1)
        scheduler = cls(optimizer, 7, 0.01)
        for t in range(40):
            if t == k:
                optimizer.add_param_group(group(optimizer.param_groups[0]["lr"] / 10))
            follow_groups(scheduler)
            take_step(scheduler)
            assert min(lrs_of(optimizer)) > 0
            assert max(lrs_of(optimizer)) <= 0.1 * (1 + 1e-12)


# -------------------------------------------------------------------------------- what follow_groups does not change


@all_schedulers
def test_follow_groups_without_new_groups_changes_nothing(make):
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


def test_earlier_state_dict_is_not_modified():
    scheduler = Exponential(sgd(0.1), 0.9)
    state = scheduler.state_dict()
    scheduler.optimizer.add_param_group(group(0.2))
    follow_groups(scheduler)
    assert (state["base_lrs"], state["_last_lr"]) == ([0.1], [0.1])
    assert (scheduler.base_lrs, scheduler.get_last_lr()) == ([0.1, 0.2], [0.1, 0.2])


def test_follow_groups_ignores_removed_groups():
    scheduler = lr_scheduler.ExponentialLR(sgd(0.1, 0.2), 0.9)
    del scheduler.optimizer.param_groups[1]
    follow_groups(scheduler)
    assert scheduler.base_lrs == [0.1, 0.2]


def test_follow_groups_method_of_a_scheduler_is_called():
    class WithMethod(ThirdPartyLR):
        def follow_groups(self):
            self.base_lrs = [7.0] * len(self.optimizer.param_groups)

    scheduler = WithMethod(sgd())
    follow_groups(lr_scheduler.ChainedScheduler([scheduler]))
    assert scheduler.base_lrs == [7.0, 7.0]


# ------------------------------------------------------------------------------------------------ checkpoints


@all_schedulers
@pytest.mark.parametrize("warmup", [False, True])
def test_resume_from_checkpoint_with_added_groups_is_exact(make, warmup):
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
        assert scheduled_values(resumed) == scheduled_values(optimizer)
    assert again.get_last_lr() == scheduler.get_last_lr()


def test_apply_settings_extends_lists_for_added_groups():
    for make, name in ((lambda o, f: Lambda(o, [f, f]), "lr_lambdas"), (lambda o, f: Plateau(o, min_lr=[1, 2]), 0)):
        saved = make(sgd(*BASES), decaying)
        saved.optimizer.add_param_group(group(0.01))
        follow_groups(saved)
        optimizer = sgd(*BASES)
        scheduler = make(optimizer, decaying)
        fresh = copy.deepcopy(scheduler.state_dict())
        optimizer.add_param_group(group(0.01))
        scheduler.load_state_dict(saved.state_dict())
        assert adapter_for(scheduler).apply_settings(fresh, list(BASES), list(BASES))
        assert scheduler.lr_lambdas == [decaying] * 3 if name else scheduler.min_lrs == [1, 2, 2]


# ------------------------------------------------------------------------------------------------ group names


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
def test_added_group_is_named_after_common_parameter_prefix(pick, name):
    module = Network()
    optimizer = sgd(0.1)
    optimizer.add_param_group({"params": pick(module)})
    assert name_groups(optimizer, parameter_infos(module), 1) == [name]
    assert [g.get("name") for g in optimizer.param_groups] == [None, name]


def test_group_names_are_unique_and_free_names_are_kept():
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
    assert name_groups(optimizer, parameter_infos(module), 2) == expected
    assert [g["name"] for g in optimizer.param_groups] == ["backbone", "head 2", *expected]
    assert name_groups(optimizer, parameter_infos(module), 2) == expected
    assert name_groups(optimizer, parameter_infos(module), len(optimizer.param_groups)) == []


def test_group_name_uses_only_the_given_parameter_infos():
    p, q = parameter(), parameter()
    optimizer = sgd(0.1)
    optimizer.add_param_group({"params": [p, q]})
    assert name_groups(
        optimizer, [ParameterInfo(id(p), "a.b.c", 1, True), ParameterInfo(id(q), "a.b.d", 1, True)], 1
    ) == ["a.b"]


def combined_optimizer():
    return Combined([torch.optim.SGD([group(0.1)], momentum=0.9), torch.optim.Adam([group(0.02)])])


def test_groups_added_to_combined_optimizer_are_scheduled_and_named():
    module, optimizer = Network(), combined_optimizer()
    scheduler = Warmup(Lambda(optimizer, [decaying, alternating]), 3)
    optimizer.add_param_group({"params": module.backbone.parameters(), "lr": 0.3, "member": 0})
    optimizer.add_param_group({"params": module.head.parameters(), "lr": 0.4, "member": "Adam", "name": "head"})
    follow_groups(scheduler)
    assert name_groups(optimizer, parameter_infos(module), 2) == ["sgd_2", "head"]
    assert [g["name"] for g in optimizer.param_groups] == ["sgd", "adam", "sgd_2", "head"]
    for _ in range(4):
        take_step(scheduler)
    assert lrs_of(optimizer) == pytest.approx([0.1 * decaying(4), 0.02, 0.3, 0.4])


def test_all_closed_form_schedulers_are_covered():
    assert {optplug.get_scheduler(name) for name in SCHEDULER_NAMES} >= {
        cls for cls in (Cosine, Exponential, Step, Lambda) if issubclass(cls, ClosedFormLR)
    }
    assert {name.split()[0] for name in OPTPLUG_SCHEDULERS} >= set(SCHEDULER_NAMES)
