"""Adapters: what each family of schedulers answers, and schedulers of third parties that are not installed."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

import optplug
from optplug.schedulers.adapters import (
    ChainedAdapter,
    LambdaAdapter,
    OneCycleAdapter,
    PlateauAdapter,
    SchedulerAdapter,
    SequentialAdapter,
    TimmAdapter,
    TorchAdapter,
    adapter_for,
)
from optplug.schedulers.closed_form import ClosedFormAdapter
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.per_group import PerGroup, PerGroupAdapter
from optplug.schedulers.warmup import Warmup, WarmupAdapter
from support import ignore_epoch_of_sequential_lr


def sgd(*lrs):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs or (0.1,)])


def lrs_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def add_group(optimizer, lr):
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": lr})


class TimmScheduler:
    """A scheduler with the interface of `timm.scheduler.scheduler.Scheduler`: linear decay over ten epochs."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_group_field = "lr"
        self._initial_param_group_field = "initial_lr"
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_values = [group["initial_lr"] for group in optimizer.param_groups]
        self.metric = None
        self.t_in_epochs = True

    def state_dict(self):
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state_dict):
        self.__dict__.update(state_dict)

    def step(self, epoch, metric=None):
        self.metric = metric
        self.update_groups([value * (1 - epoch / 10) for value in self.base_values])

    def step_update(self, num_updates, metric=None):
        self.metric = metric

    def update_groups(self, values):
        for group, value in zip(self.optimizer.param_groups, values, strict=False):
            group[self.param_group_field] = value


def constant_schedule_with_warmup(optimizer, num_warmup_steps, last_epoch=-1):
    """A copy of the function in `transformers.optimization`: it returns torch's LambdaLR."""

    def lr_lambda(current_step):
        return float(current_step) / float(max(1.0, num_warmup_steps)) if current_step < num_warmup_steps else 1.0

    return lr_scheduler.LambdaLR(optimizer, lr_lambda, last_epoch=last_epoch)


class Unknown:
    """A scheduler of no known family."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


class MultiplyLR(lr_scheduler.LRScheduler):
    """A subclass of torch's `LRScheduler` by a third party."""

    def get_lr(self):
        return [lr * 0.5 for lr in self.base_lrs]


def exponential(optimizer):
    return optplug.create_scheduler("exponential_lr", optimizer, gamma=0.5)


FAMILIES = {
    "optplug, closed form": (exponential, ClosedFormAdapter, 0),
    "optplug, plateau": (lambda o: optplug.create_scheduler("reduce_lr_on_plateau", o), PlateauAdapter, 0),
    "optplug, warmup": (lambda o: Warmup(exponential(o), 3), WarmupAdapter, 0),
    "optplug, per group": (lambda o: PerGroup(o, {}, exponential), PerGroupAdapter, 0),
    "torch, StepLR": (lambda o: lr_scheduler.StepLR(o, 2), TorchAdapter, 0),
    "torch, LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, float), LambdaAdapter, 0),
    "torch, CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.2, cycle_momentum=False), TorchAdapter, 0),
    "torch, OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 9, cycle_momentum=False), OneCycleAdapter, 0),
    "torch, ReduceLROnPlateau": (lr_scheduler.ReduceLROnPlateau, PlateauAdapter, 0),
    "torch, ChainedScheduler": (lambda o: lr_scheduler.ChainedScheduler([exponential(o)]), ChainedAdapter, None),
    "torch, SequentialLR": (
        lambda o: lr_scheduler.SequentialLR(o, [exponential(o), exponential(o)], [2]),
        SequentialAdapter,
        0,
    ),
    "third party, LRScheduler": (MultiplyLR, TorchAdapter, 0),
    "transformers": (lambda o: constant_schedule_with_warmup(o, 4), LambdaAdapter, 0),
    "timm": (TimmScheduler, TimmAdapter, None),
    "unknown": (Unknown, SchedulerAdapter, None),
}


@pytest.mark.parametrize(("make", "adapter", "steps"), FAMILIES.values(), ids=FAMILIES)
def test_family_has_its_adapter(make, adapter, steps):
    scheduler = make(sgd())
    assert type(adapter_for(scheduler)) is adapter
    assert adapter_for(scheduler).step_count == steps


@pytest.mark.parametrize(("make", "adapter", "steps"), FAMILIES.values(), ids=FAMILIES)
def test_settings_of_known_families_are_applied(make, adapter, steps):
    scheduler = make(sgd(0.2))
    state = scheduler.state_dict() if hasattr(scheduler, "state_dict") else {}
    before = lrs_of(scheduler.optimizer)
    applied = adapter_for(scheduler).apply_settings(state, [0.4], [0.2])
    assert applied == (adapter in (ClosedFormAdapter, PlateauAdapter, WarmupAdapter, PerGroupAdapter))
    assert lrs_of(scheduler.optimizer) == pytest.approx([2 * lr for lr in before])


def test_only_one_cycle_has_a_last_step():
    found = {name: adapter_for(make(sgd())).last_step for name, (make, *_) in FAMILIES.items()}
    assert {name: last for name, last in found.items() if last is not None} == {"torch, OneCycleLR": 8}
    assert adapter_for(Warmup(lr_scheduler.OneCycleLR(sgd(), 0.1, 9, cycle_momentum=False), 3)).last_step == 8


def test_length_is_that_of_the_scheduler_or_the_default():
    cosine = optplug.create_scheduler("cosine_annealing_lr", sgd(), T_max=7)
    assert adapter_for(cosine).length("T_max", 5) == 7
    assert adapter_for(Warmup(cosine, 3)).length("T_max", 5) == 7
    assert adapter_for(cosine).length("total", 5) == 5


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("name", ["optplug, plateau", "torch, ReduceLROnPlateau"])
def test_plateau_restarts_with_another_mode(name, warmup):
    plateau = FAMILIES[name][0](sgd())
    scheduler = Warmup(plateau, 1) if warmup else plateau
    for value in (1.0, 2.0):
        scheduler.step(value)
    adapter = adapter_for(scheduler)
    assert (adapter.mode, adapter.best) == ("min", 1.0)
    adapter.restart_with_mode("max")
    assert (adapter.mode, adapter.best, plateau.num_bad_epochs) == ("max", -float("inf"), 0)


@pytest.mark.parametrize("name", ["timm", "unknown", "torch, StepLR"])
def test_schedulers_without_a_metric_have_no_mode(name):
    adapter = adapter_for(FAMILIES[name][0](sgd()))
    adapter.restart_with_mode("max")
    assert (adapter.mode, adapter.best) == (None, None)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "SequentialLR" not in name and "Chained" not in name])
def test_set_base_lrs_before_the_first_step(name):
    scheduler = FAMILIES[name][0](sgd(0.1))
    adapter_for(scheduler).set_base_lrs([0.4])
    assert scheduler.optimizer.param_groups[0]["initial_lr"] == 0.4
    factor = 1 / 3 if "warmup" in name else 1.0
    assert lrs_of(scheduler.optimizer) == pytest.approx([0.4 * factor])


def test_added_group_of_a_transformers_scheduler_is_scheduled():
    optimizer = sgd(0.1)
    scheduler = constant_schedule_with_warmup(optimizer, 4)
    optimizer.step()
    scheduler.step()
    add_group(optimizer, optimizer.param_groups[0]["lr"] / 5)
    follow_groups(scheduler)
    scheduler.step()
    assert lrs_of(optimizer) == pytest.approx([0.05, 0.01])


def test_added_group_of_a_timm_scheduler_is_scheduled():
    optimizer = sgd(0.1)
    scheduler = TimmScheduler(optimizer)
    scheduler.step(5)
    add_group(optimizer, 0.01)
    follow_groups(scheduler)
    assert scheduler.base_values == pytest.approx([0.1, 0.02])
    scheduler.step(6)
    assert lrs_of(optimizer) == pytest.approx([0.04, 0.008])


def test_follow_groups_leaves_an_unknown_scheduler_unchanged():
    scheduler = Unknown(sgd(0.1))
    add_group(scheduler.optimizer, 0.3)
    before = dict(vars(scheduler))
    follow_groups(scheduler)
    assert vars(scheduler) == before
    assert lrs_of(scheduler.optimizer) == [0.1, 0.3]


# ------------------------------------------------------------------ base learning rates of 0


def halve(step):
    return 0.5**step


def third(step):
    return 1 / (1 + 2 * step)


ARGUMENTS = {
    "exponential_lr": {"gamma": 0.5},
    "step_lr": {"step_size": 2},
    "multi_step_lr": {"milestones": [1, 4]},
    "cosine_annealing_lr": {"T_max": 4, "eta_min": 0.01},
    "lambda_lr": {"lr_lambda": "1 / (1 + epoch)"},
}
SCHEDULES_FROM_ZERO = {
    **{name: lambda o, name=name: optplug.create_scheduler(name, o, **ARGUMENTS[name]) for name in ARGUMENTS},
    "warmup": lambda o: Warmup(optplug.create_scheduler("exponential_lr", o, gamma=0.5), 8),
    "torch ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "torch StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "torch CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4, eta_min=0.01),
    "torch LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [halve, third]),
    "torch MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.5),
    "torch CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "torch SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.5)], [5]
    ),
    "torch ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.5)]
    ),
    "timm": TimmScheduler,
}


def advance(scheduler, steps):
    for t in steps:
        if isinstance(scheduler, Warmup):
            scheduler.warmup_step()
        scheduler.step(*([t + 1] if isinstance(scheduler, TimmScheduler) else []))


def override_base_lrs(scheduler, optimizer, base_lrs, configured_state):
    """Give a scheduler new base learning rates, as a resume with `override_hparams` does."""
    old = [group["initial_lr"] for group in optimizer.param_groups]
    for group, base in zip(optimizer.param_groups, base_lrs, strict=True):
        group["initial_lr"] = base
    adapter_for(scheduler).apply_settings(configured_state, base_lrs, old)


@pytest.mark.parametrize("make", SCHEDULES_FROM_ZERO.values(), ids=SCHEDULES_FROM_ZERO)
@pytest.mark.filterwarnings("ignore:Detected call of")
@ignore_epoch_of_sequential_lr
def test_group_with_base_lr_zero_reaches_the_schedule_of_its_new_base_lr(make):
    optimizer, expected = sgd(1.0, 0.0), sgd(1.0, 0.1)
    scheduler, reference = make(optimizer), make(expected)
    configured_state = reference.state_dict()
    advance(scheduler, range(3))
    advance(reference, range(3))
    override_base_lrs(scheduler, optimizer, [1.0, 0.1], configured_state)
    for step in range(3, 9):
        assert lrs_of(optimizer) == pytest.approx(lrs_of(expected), rel=1e-9)
        advance(scheduler, [step])
        advance(reference, [step])


@pytest.mark.parametrize("make", [SCHEDULES_FROM_ZERO["torch StepLR"], SCHEDULES_FROM_ZERO["exponential_lr"]])
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_all_groups_with_base_lr_zero_reach_the_formula(make):
    optimizer, expected = sgd(0.0, 0.0), sgd(1.0, 0.1)
    scheduler, reference = make(optimizer), make(expected)
    configured_state = reference.state_dict()
    advance(scheduler, range(3))
    advance(reference, range(3))
    override_base_lrs(scheduler, optimizer, [1.0, 0.1], configured_state)
    assert lrs_of(optimizer) == pytest.approx(lrs_of(expected), rel=1e-9)


@pytest.mark.parametrize("min_lr", [0.0, 0.02, [0.0, 0.05]], ids=str)
@pytest.mark.parametrize("torchs", [True, False], ids=["torch", "optplug"])
@pytest.mark.parametrize("warmup", [True, False], ids=["warmup", "no warmup"])
def test_plateau_group_with_base_lr_zero_gets_the_cuts_of_the_others(min_lr, torchs, warmup):
    def make(optimizer):
        options = {"patience": 0, "factor": 0.5, "min_lr": min_lr}
        if torchs:
            scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        else:
            scheduler = optplug.create_scheduler("reduce_lr_on_plateau", optimizer, **options)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return Warmup(scheduler, 2) if warmup else scheduler

    def run(scheduler, metrics):
        for metric in metrics:
            adapter_for(scheduler).warmup_step()
            scheduler.step(metric)

    optimizer, expected = sgd(1.0, 0.0), sgd(1.0, 0.1)
    scheduler, reference = make(optimizer), make(expected)
    configured_state = reference.state_dict()
    run(scheduler, [0.0, 0.0, 1.0, 2.0, 3.0])
    run(reference, [0.0, 0.0, 1.0, 2.0, 3.0])
    override_base_lrs(scheduler, optimizer, [1.0, 0.1], configured_state)
    assert lrs_of(optimizer) == pytest.approx(lrs_of(expected))
    run(scheduler, [4.0])
    run(reference, [4.0])
    assert lrs_of(optimizer) == pytest.approx(lrs_of(expected))


@pytest.mark.parametrize("make", [SCHEDULES_FROM_ZERO["torch ExponentialLR"], SCHEDULES_FROM_ZERO["exponential_lr"]])
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_group_added_after_a_group_with_lr_zero_follows_the_schedule_of_the_others(make):
    optimizer = sgd(1.0, 0.0)
    scheduler = make(optimizer)
    advance(scheduler, range(2))
    add_group(optimizer, 0.1)
    follow_groups(scheduler)
    advance(scheduler, range(2, 4))
    assert lrs_of(optimizer) == pytest.approx([0.0625, 0.0, 0.025])
    assert scheduler.base_lrs == pytest.approx([1.0, 0.0, 0.4])
