"""`PerGroup`: schedules of parameter groups against optimizers that have these groups alone."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    MultiplicativeLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

import optplug
from optplug.errors import ConfigError, ConfigTypeError
from optplug.optim.combined import Combined
from optplug.schedulers.adapters import ScheduleEnd, adapter_for
from optplug.schedulers.late_groups import follow_groups
from optplug.schedulers.per_group import PerGroup
from optplug.schedulers.plateau_warmup import PlateauWarmup
from optplug.schedulers.warmup import Warmup

STEPS = 300
LRS = (0.1, 0.2, 0.3, 0.4)
NAMES = ("", "head", "", "neck")
"""The schedule of each group. The groups of one schedule are not neighbors."""


def parameter():
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.full((2,), 0.5)
    return p


def group(lr, name=""):
    return {"params": [parameter()], "lr": lr, **({"schedule": name} if name else {})}


def sgd(*groups, **options):
    return SGD(list(groups), lr=0.1, momentum=0.9, **options)


def ours(name, **arguments):
    return lambda optimizer: optplug.create_scheduler(name, optimizer, **arguments)


def warm(make, steps, cls=Warmup, interval="step"):
    return lambda optimizer: cls(make(optimizer), steps, counts_steps=True, interval=interval)


def sequential(optimizer):
    with warnings.catch_warnings():  # `SequentialLR` passes the epoch to its members
        warnings.simplefilter("ignore")
        return SequentialLR(optimizer, [ExponentialLR(optimizer, 0.9), StepLR(optimizer, 30)], [50])


def halve(step):
    return 0.5 if step % 100 == 0 else 1.0


def rise(step):
    return 1 + step / STEPS


one_cycle = partial(OneCycleLR, max_lr=1.0, total_steps=STEPS + 1)
TRIPLES = {
    "torch": (
        partial(CosineAnnealingLR, T_max=STEPS),
        partial(StepLR, step_size=40),
        partial(ExponentialLR, gamma=0.99),
    ),
    "momentum cycles": (one_cycle, partial(CyclicLR, base_lr=0.1, max_lr=0.5, step_size_up=20), None),
    "functions": (partial(LambdaLR, lr_lambda=rise), None, partial(MultiplicativeLR, lr_lambda=halve)),
    "a list with one value per group": (partial(OneCycleLR, max_lr=[1.0, 2.0], total_steps=400), None, one_cycle),
    "sequence": (sequential, partial(StepLR, step_size=7), None),
    "optplug": (
        ours("cosine_annealing_lr", T_max=STEPS, eta_min=0.01),
        ours("step_lr", step_size=40),
        ours("lambda_lr", lr_lambda="0.99 ** epoch"),
    ),
    "warmups": (warm(partial(ExponentialLR, gamma=0.99), 20), warm(ours("step_lr", step_size=9), 50), one_cycle),
}
triples = pytest.mark.parametrize("triple", TRIPLES.values(), ids=TRIPLES)


def per_group(optimizer, triple):
    default, head, neck = triple
    return PerGroup(optimizer, {"head": head or constant, "neck": neck or constant}, default)


def constant(optimizer):
    return LambdaLR(optimizer, lambda _: 1.0)


def run(optimizer, scheduler, steps, metrics=None):
    """Step, and return the learning rate and the momentum of each group after each step."""
    found = []
    for i in range(steps):
        optimizer.step()
        scheduler.step(*() if metrics is None else [metrics[i]])
        found.append([(float(g["lr"]), g["momentum"]) for g in optimizer.param_groups])
        assert scheduler.get_last_lr() == [float(g["lr"]) for g in optimizer.param_groups]
    return found


@triples
def test_equals_optimizers_with_the_groups_alone(triple):
    optimizer = sgd(*map(group, LRS, NAMES))
    together = run(optimizer, per_group(optimizer, triple), STEPS)
    for name, make in zip(("", "head", "neck"), triple, strict=True):
        indices = [i for i, one in enumerate(NAMES) if one == name]
        alone = sgd(*(group(LRS[i]) for i in indices))
        expected = run(alone, (make or constant)(alone), STEPS)
        assert [[row[i] for i in indices] for row in together] == expected, name


@triples
def test_resumed_run_is_equal_bit_for_bit(triple):
    def new():
        optimizer = sgd(*map(group, LRS, NAMES))
        return optimizer, per_group(optimizer, triple)

    uninterrupted = run(*new(), 60)
    optimizer, scheduler = new()
    before = run(optimizer, scheduler, 25)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    optimizer, scheduler = new()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert before + run(optimizer, scheduler, 35) == uninterrupted


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_copies_continue_alone(copied):
    optimizer = sgd(group(0.1), group(0.2, "head"))
    schedules = {"head": partial(warm_step, 3)}
    scheduler = PerGroup(optimizer, schedules, partial(ExponentialLR, gamma=0.9))
    run(optimizer, scheduler, 5)
    other = copied(scheduler)
    for each in (other.optimizer, optimizer):
        for one in each.param_groups:
            one["params"][0].grad = torch.ones(2)
    assert other.optimizer is not optimizer
    assert run(other.optimizer, other, 10) == run(optimizer, scheduler, 10)


def warm_step(size, optimizer):
    return Warmup(StepLR(optimizer, size), 12, counts_steps=True)


METRICS = [1.0, 0.5, 0.6, 0.7, 0.8, 0.4, 0.5, 0.5, 0.5, 0.5]


def test_metric_is_passed_to_the_schedules_that_take_one():
    plateau = partial(ReduceLROnPlateau, patience=1, factor=0.5)
    optimizer = sgd(group(0.1), group(0.2, "head"), group(0.3, "neck"))
    scheduler = PerGroup(
        optimizer, {"head": plateau, "neck": ours("reduce_lr_on_plateau", patience=0)}, partial(StepLR, step_size=3)
    )
    rates = [[lr for lr, _ in row] for row in run(optimizer, scheduler, 10, METRICS)]
    for i, make in enumerate((partial(StepLR, step_size=3), plateau, ours("reduce_lr_on_plateau", patience=0))):
        alone = sgd(group(LRS[i]))
        schedule = make(alone)
        expected = run(alone, schedule, 10, METRICS if i else None)
        assert [row[i] for row in rates] == [row[0][0] for row in expected]
    assert adapter_for(scheduler).needs_argument
    assert adapter_for(scheduler).best == 0.4
    assert adapter_for(scheduler).mode == "min"
    adapter_for(scheduler).restart_with_mode("max")
    assert [scheduler.schedules[name].mode for name in ("head", "neck")] == ["max", "max"]


def test_plateau_with_warmup_takes_the_metric():
    make = warm(ours("reduce_lr_on_plateau", patience=0, factor=0.5), 3, PlateauWarmup, "validation")
    optimizer, alone = sgd(group(0.1), group(0.2, "head")), sgd(group(0.2))
    rates = run(optimizer, PerGroup(optimizer, {"head": make}), 10, METRICS)
    assert [row[1] for row in rates] == [row[0] for row in run(alone, make(alone), 10, METRICS)]


def test_metric_that_no_schedule_takes_is_refused():
    optimizer = sgd(group(0.1), group(0.2, "head"))
    scheduler = PerGroup(optimizer, {"head": partial(StepLR, step_size=3)})
    optimizer.step()
    with pytest.raises(TypeError, match="no schedule needs one"):
        scheduler.step(0.5)


def test_groups_without_schedule_stay_constant_by_default():
    optimizer = sgd(group(0.1), group(0.2, "head"))
    rates = run(optimizer, PerGroup(optimizer, {"head": partial(StepLR, step_size=3)}), 9)
    assert {row[0][0] for row in rates} == {0.1}
    assert rates[-1][1][0] == pytest.approx(0.2 * 0.1**3)


def test_schedule_stops_at_its_own_end():
    optimizer = sgd(group(0.1), group(0.2, "head"))
    schedules = {"head": partial(CosineAnnealingLR, T_max=5)}
    scheduler = PerGroup(optimizer, schedules, partial(OneCycleLR, max_lr=1.0, total_steps=8))
    scheduler.ends = {"head": ScheduleEnd("T_max", 5)}
    rates = run(optimizer, scheduler, 12)
    assert rates[4][1][0] == pytest.approx(0.0, abs=1e-12)
    assert rates[11][1] == rates[4][1]  # without the end, the learning rate would rise again
    assert rates[11][0] == rates[6][0]  # torch's OneCycleLR raises an error beyond its end


LATE = {
    "default": ("", partial(ExponentialLR, gamma=0.9)),
    "a schedule with groups": ("head", partial(CosineAnnealingLR, T_max=40)),
    "a schedule without groups": ("late", partial(ExponentialLR, gamma=0.8)),
    "a schedule without groups, optplug": ("late", ours("cosine_annealing_lr", T_max=40, eta_min=1e-3)),
    "a warmup without groups": ("late", warm(partial(ExponentialLR, gamma=0.8), 30)),
    "a function without groups": ("late", partial(LambdaLR, lr_lambda=rise)),
}


@pytest.mark.parametrize(("name", "make"), LATE.values(), ids=LATE)
def test_group_added_late_joins_the_schedule_where_it_is(name, make):
    base = 0.1 if name in ("", "late") else 0.2  # a placeholder has the lr of the optimizer's defaults
    schedules = {"head": make if name == "head" else partial(StepLR, step_size=3)}
    if name == "late":
        schedules["late"] = make
    optimizer, alone = sgd(group(0.1), group(0.2, "head")), sgd(group(base))
    scheduler = PerGroup(optimizer, schedules, make if not name else None)
    reference = make(alone)
    run(optimizer, scheduler, 10)
    run(alone, reference, 10)
    optimizer.add_param_group(group(0.05, name))
    alone.add_param_group(group(0.05))
    follow_groups(reference)
    follow_groups(scheduler)
    late = [row[2] for row in run(optimizer, scheduler, 20)]
    assert late == [row[1] for row in run(alone, reference, 20)]
    assert len({lr for lr, _ in late}) > 1


@pytest.mark.parametrize(
    "make", [partial(ExponentialLR, gamma=0.8), partial(LambdaLR, lr_lambda=rise)], ids=["exp", "lambda"]
)
def test_resume_after_a_group_was_added_to_a_schedule_without_groups(make):
    def new(late):
        optimizer = sgd(group(0.1), *([group(0.05, "late")] if late else []))
        return optimizer, PerGroup(optimizer, {"late": make})

    optimizer, scheduler = new(late=False)
    run(optimizer, scheduler, 5)
    optimizer.add_param_group(group(0.05, "late"))
    run(optimizer, scheduler, 5)
    states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    expected = run(optimizer, scheduler, 5)
    optimizer, scheduler = new(late=True)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert run(optimizer, scheduler, 5) == expected


def test_groups_keep_their_schedules_when_a_state_dict_without_names_is_loaded():
    def rates(*names):
        saved = sgd(group(0.1), group(0.7, *names)).state_dict()
        optimizer = sgd(group(0.1), group(0.2, "head"))
        # A warmup reads its groups before each optimizer step.
        scheduler = PerGroup(optimizer, {"head": warm(partial(StepLR, step_size=2), 4)})
        optimizer.load_state_dict(saved)
        found = run(optimizer, scheduler, 6)
        assert scheduler.names == ["", "head"]
        assert optimizer.param_groups[1]["schedule"] == "head"
        return found

    assert rates() == rates("head")


def test_members_of_combined():
    first, second = sgd(group(0.1), group(0.2, "head")), sgd(group(0.3, "head"), group(0.4))
    optimizer = Combined([first, second])
    rates = run(optimizer, PerGroup(optimizer, {"head": partial(ExponentialLR, gamma=0.5)}), 2)
    assert [lr for lr, _ in rates[-1]] == [0.1, 0.2 * 0.25, 0.3 * 0.25, 0.4]


def test_order_of_steps_is_checked_as_by_torch():
    optimizer = sgd(group(0.1), group(0.2, "head"))
    scheduler = PerGroup(optimizer, {"head": partial(StepLR, step_size=3)})
    with pytest.warns(UserWarning, match="before `optimizer.step\\(\\)`"):
        scheduler.step()


def test_tensor_learning_rates():
    optimizer = SGD([{"params": [parameter()]}, {"params": [parameter()], "schedule": "head"}], lr=torch.tensor(0.5))
    for one in optimizer.param_groups:
        one["lr"] = one["lr"].clone()
    scheduler = PerGroup(optimizer, {"head": partial(ExponentialLR, gamma=0.5)})
    optimizer.step()
    scheduler.step()
    assert [float(one["lr"]) for one in optimizer.param_groups] == [0.5, 0.25]


# ------------------------------------------------------------------------------------------ policies of a resume


def test_new_base_learning_rates_reach_each_schedule():
    optimizer = sgd(group(0.1), group(0.2, "head"), group(0.3))
    scheduler = PerGroup(
        optimizer, {"head": warm(partial(ExponentialLR, gamma=0.5), 4)}, ours("cosine_annealing_lr", T_max=10)
    )
    adapter_for(scheduler).set_base_lrs([1.0, 2.0, 3.0])
    assert scheduler.base_lrs == [1.0, 2.0, 3.0]
    assert [float(one["lr"]) for one in optimizer.param_groups] == [1.0, 0.5, 3.0]
    assert [lr for lr, _ in run(optimizer, scheduler, 10)[-1]] == [pytest.approx(0.0), 2 * 0.5**10, pytest.approx(0.0)]


def test_new_settings_reach_each_schedule():
    def new(gamma, step_size, *lrs):
        optimizer = sgd(group(lrs[0]), group(lrs[1], "head"))
        schedules = {"head": ours("step_lr", step_size=step_size, gamma=0.5)}
        return optimizer, PerGroup(optimizer, schedules, ours("exponential_lr", gamma=gamma))

    optimizer, scheduler = new(0.5, 2, 0.1, 0.2)
    run(optimizer, scheduler, 4)
    _, configured = new(0.25, 4, 1.0, 2.0)
    adapter = adapter_for(scheduler)
    assert adapter.apply_settings(configured.state_dict(), [1.0, 2.0], [0.1, 0.2])
    assert [float(one["lr"]) for one in optimizer.param_groups] == pytest.approx([0.25**4, 2.0 * 0.5])
    torch_only = PerGroup(optimizer, {"head": partial(StepLR, step_size=3)})
    assert not adapter_for(torch_only).apply_settings(torch_only.state_dict(), [1.0, 2.0], [1.0, 2.0])


def test_position_of_plateaus_is_set():
    optimizer = sgd(group(0.1), group(0.2, "head"))
    scheduler = PerGroup(optimizer, {"head": warm(ours("reduce_lr_on_plateau"), 3, PlateauWarmup)})
    scheduler.at(7)
    assert scheduler.schedules["head"].position == 7


# ------------------------------------------------------------------------------------------ errors


def test_unknown_schedule_of_a_group_is_refused():
    with pytest.raises(
        ConfigError, match="group 1 names the schedule 'haed', which does not exist; did you mean 'head'"
    ):
        PerGroup(sgd(group(0.1), group(0.2, "haed")), {"head": constant})
    optimizer = sgd(group(0.1), group(0.2, "head"))
    scheduler = PerGroup(optimizer, {"head": constant})
    optimizer.add_param_group(group(0.1, "other"))
    with pytest.raises(ConfigError, match=r"group 2 names the schedule 'other'.*; the schedules are head"):
        scheduler.follow_groups()


def test_scheduler_in_place_of_a_function_is_refused():
    optimizer = sgd(group(0.1), group(0.2, "head"))
    with pytest.raises(ConfigTypeError, match=r"'head' must be a function that builds a scheduler.*, got StepLR"):
        PerGroup(optimizer, {"head": StepLR(optimizer, 3)})


def test_states_of_other_schedulers_are_refused():
    optimizer = sgd(group(0.1), group(0.2, "head"))
    scheduler = PerGroup(optimizer, {"head": constant})
    with pytest.raises(ConfigError, match="is not a PerGroup"):
        scheduler.load_state_dict(StepLR(optimizer, 3).state_dict())
    with pytest.raises(ConfigError, match="is not a StepLR"):
        ours("step_lr", step_size=3)(optimizer).load_state_dict(scheduler.state_dict())
    other = PerGroup(sgd(group(0.1)), {"neck": constant})
    with pytest.raises(ConfigError, match="schedules the default, neck, and this scheduler has the default, head"):
        scheduler.load_state_dict(other.state_dict())
