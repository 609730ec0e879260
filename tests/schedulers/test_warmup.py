"""Warmup around any scheduler: learning rate = base learning rate x warmup factor x schedule."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

import optplug
from optplug.errors import ConfigError, ConfigTypeError
from optplug.schedulers.adapters import adapter_for
from optplug.schedulers.warmup import Warmup
from support import SGD

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "optplug's cosine": lambda o: optplug.create_scheduler("cosine_annealing_lr", o, T_max=9, eta_min=0.01),
    "torch's cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 9, 0.01),
    "torch's LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "torch's StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "torch's MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 7], 0.1),
}


def sgd(*lrs: Any) -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs or (0.5,)]
    return torch.optim.SGD(groups)


def lrs_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def make_plateau(optimizer: Any, **arguments: Any) -> Any:
    return optplug.create_scheduler("reduce_lr_on_plateau", optimizer, **arguments)


def lrs_without_warmup(make: Callable[[Any], Any], lrs: tuple[float, ...], steps: int) -> list[list[float]]:
    """Return the learning rates of a schedule without warmup, before the first step and after each step."""
    optimizer = sgd(*lrs)
    scheduler = make(optimizer)
    path = [lrs_of(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        path.append(lrs_of(optimizer))
    return path


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("start", [None, 0.2, 1.0])
def test_lr_is_base_lr_times_warmup_factor_times_schedule(make: Any, start: float | None):
    lrs, n = (0.5, 0.1), 4
    optimizer = sgd(*lrs)
    warmup = Warmup(make(optimizer), n, start)
    first = 1 / n if start is None else start
    for step, expected in enumerate(lrs_without_warmup(make, lrs, 12)):
        factor = 1.0 if step >= n else first + (1 - first) * step / n
        assert lrs_of(optimizer) == [lr * factor for lr in expected]
        assert warmup.get_last_lr() == lrs_of(optimizer)
        optimizer.step()
        warmup.warmup_step()
        warmup.step()


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedule_may_step_less_often_than_the_optimizer(make: Any):
    optimizer = sgd()
    warmup = Warmup(make(optimizer), 5)
    for epoch, (lr,) in enumerate(lrs_without_warmup(make, (0.5,), 4)):
        for batch in range(3):
            assert lrs_of(optimizer) == [lr * min(1, warmup.factor(3 * epoch + batch))]
            optimizer.step()
            warmup.warmup_step()
        warmup.step()


@given(
    steps=st.integers(1, 50),
    start=st.none() | st.floats(0.001, 1),
    moves=st.lists(st.sampled_from(["warmup_step", "step"]), max_size=60),
)
def test_lr_is_warmup_factor_times_schedule_for_any_order_of_steps(steps: int, start: float | None, moves: list[str]):
    make = SCHEDULERS["torch's LambdaLR"]
    optimizer = sgd()
    warmup = Warmup(make(optimizer), steps, start)
    optimizer.step()
    for move in moves:
        getattr(warmup, move)()
    expected = lrs_without_warmup(make, (0.5,), moves.count("step"))[-1][0] * warmup.factor(moves.count("warmup_step"))
    assert math.isclose(lrs_of(optimizer)[0], expected, rel_tol=1e-12)


def test_lrs_after_the_warmup_equal_those_of_the_schedule():
    make = SCHEDULERS["optplug's cosine"]
    optimizer = sgd()
    warmup = Warmup(make(optimizer), 3)
    for expected in lrs_without_warmup(make, (0.5,), 9)[1:]:
        optimizer.step()
        warmup.warmup_step()
        warmup.step()
        if not warmup.is_warming_up:
            assert lrs_of(optimizer) == expected


def test_steps_are_counted_during_the_warmup_only():
    warmup = Warmup(SCHEDULERS["optplug's cosine"](sgd()), 2)
    assert [warmup.is_warming_up for _ in range(4) if warmup.warmup_step() is None] == [True, False, False, False]
    assert warmup.steps_taken == 2


# ----------------------------------------------------------------------------------------- schedule after the warmup


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("start", [None, 0.2])
@pytest.mark.parametrize("counts_steps", [False, True])
def test_delayed_schedule_starts_when_the_warmup_ends(make: Any, start: float | None, counts_steps: bool):
    lrs, n = (0.5, 0.1), 4
    alone = lrs_without_warmup(make, lrs, 10)
    optimizer = sgd(*lrs)
    warmup = Warmup(make(optimizer), n, start, delays_schedule=True, counts_steps=counts_steps)
    for step in range(n + 10):
        expected = alone[max(0, step - n)]
        assert lrs_of(optimizer) == [lr * warmup.factor(step) for lr in expected]
        assert warmup.scheduler.last_epoch == max(0, step - n)
        optimizer.step()
        if not counts_steps:
            warmup.warmup_step()
        warmup.step()


@pytest.mark.parametrize(("n", "first"), [(1, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 3)])
@pytest.mark.parametrize("counts_steps", [False, True])
def test_delayed_schedule_that_steps_per_epoch_starts_with_the_next_epoch(n: int, first: int, counts_steps: bool):
    make = SCHEDULERS["torch's StepLR"]
    alone = lrs_without_warmup(make, (0.5,), 8)
    optimizer = sgd()
    warmup = Warmup(make(optimizer), n, delays_schedule=True, counts_steps=counts_steps, interval="epoch")
    for epoch in range(8):
        assert warmup.scheduler.last_epoch == max(0, epoch - first)
        for batch in range(3):
            assert lrs_of(optimizer) == [alone[max(0, epoch - first)][0] * warmup.factor(3 * epoch + batch)]
            optimizer.step()
            if not counts_steps:
                warmup.warmup_step()
        warmup.step()


@pytest.mark.parametrize("name", ["optplug's cosine", "torch's LambdaLR", "torch's MultiStepLR"])
@pytest.mark.parametrize("counts_steps", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_delayed_schedule_resumes_at_every_step(name: str, counts_steps: bool, every: int):
    def build(optimizer: Any) -> Warmup:
        inner = SCHEDULERS[name](optimizer)
        interval = "step" if every == 1 else "epoch"
        return Warmup(inner, 5, delays_schedule=True, counts_steps=counts_steps, interval=interval)

    def run(warmup: Warmup, optimizer: Any, steps: range) -> list[list[float]]:
        path = []
        for step in steps:
            path.append(lrs_of(optimizer))
            optimizer.step()
            if not counts_steps:
                warmup.warmup_step()
            if (step + 1) % every == 0:
                warmup.step()
        return path

    optimizer = sgd(0.5, 0.1)
    whole = run(build(optimizer), optimizer, range(16))
    for stop in range(16):
        before, after = sgd(0.5, 0.1), sgd(0.5, 0.1)
        warmup = build(before)
        path = run(warmup, before, range(stop))
        resumed = build(after)
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        resumed.load_state_dict(copy.deepcopy(warmup.state_dict()))
        assert path + run(resumed, after, range(stop, 16)) == whole


def test_plateau_is_stepped_during_a_warmup_that_delays_schedules():
    optimizer = sgd()
    warmup = Warmup(make_plateau(optimizer, patience=0, factor=0.1), 2, delays_schedule=True)
    for value in (5.0, 4.0):
        warmup.warmup_step()
        warmup.step(value)
    assert (warmup.best, lrs_of(optimizer)) == (4.0, [0.5])
    warmup.step(6.0)
    assert lrs_of(optimizer) == [0.05]


def test_checkpoint_decides_whether_the_schedule_is_delayed():
    make = SCHEDULERS["optplug's cosine"]
    for saved, configured in ((True, False), (False, True)):
        warmup = Warmup(make(sgd()), 3, delays_schedule=saved)
        loaded = Warmup(make(sgd()), 3, delays_schedule=configured)
        loaded.load_state_dict(warmup.state_dict())
        assert loaded.delays_schedule is saved
        assert ("delays_schedule" in warmup.state_dict()["warmup"]) is saved


# ------------------------------------------------------------------------------------------------------------- plateaus


def test_plateau_counts_no_bad_values_during_warmup_but_stores_the_best():
    optimizer = sgd()
    warmup = Warmup(make_plateau(optimizer, patience=1, factor=0.1), 3)
    for value in (5.0, 4.0, 7.0):
        warmup.step(value)
        warmup.step(9.0)
        assert (warmup.num_bad_epochs, warmup.patience) == (0, 1)
        warmup.warmup_step()
    assert (warmup.best, lrs_of(optimizer)) == (4.0, [0.5])
    warmup.step(4.5)
    assert (warmup.num_bad_epochs, lrs_of(optimizer)) == (1, [0.5])
    warmup.step(4.5)
    assert lrs_of(optimizer) == [0.05]


def test_plateau_of_torch_can_be_warmed_up():
    optimizer = sgd()
    warmup = Warmup(lr_scheduler.ReduceLROnPlateau(optimizer, patience=0), 2)
    paths = []
    for value in (1.0, 2.0, 3.0, 4.0):
        paths += lrs_of(optimizer)
        warmup.step(value)
        warmup.warmup_step()
    assert paths == [0.25, 0.375, 0.5, 0.05]


def test_min_lr_applies_to_the_lr_without_warmup():
    optimizer = sgd(0.5)
    warmup = Warmup(make_plateau(optimizer, patience=0, factor=0.1, min_lr=0.2), 2)
    assert lrs_of(optimizer) == [0.25]
    warmup.step(1.0)
    assert lrs_of(optimizer) == [0.25]  # the plateau sees 0.5, the lr without warmup
    for _ in range(2):
        warmup.warmup_step()
    for _ in range(3):
        warmup.step(2.0)
    assert lrs_of(optimizer) == [0.2]


def test_exception_in_step_restores_patience_and_lrs():
    optimizer = sgd()
    warmup = Warmup(make_plateau(optimizer, patience=3), 2)
    with pytest.raises(ValueError, match="could not convert"):
        warmup.step("no number")
    assert (warmup.patience, lrs_of(optimizer)) == (3, [0.25])


# ---------------------------------------------------------------------------------------------------------------- state


def train(warmup: Warmup, optimizer: Any, steps: range, takes_metric: bool) -> list[list[float]]:
    path = []
    for step in steps:
        optimizer.step()
        warmup.warmup_step()
        if step % 2:
            warmup.step(*((float(step),) if takes_metric else ()))
        path.append(lrs_of(optimizer))
    return path


@pytest.mark.parametrize("name", ["optplug's cosine", "torch's StepLR", "plateau"])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resumed_warmup_equals_uninterrupted_warmup(name: str, stop: int):
    make = SCHEDULERS.get(name, lambda o: make_plateau(o, patience=0, factor=0.5))
    takes_metric = name == "plateau"
    optimizer = sgd(0.5, 0.1)
    whole = train(Warmup(make(optimizer), 5), optimizer, range(14), takes_metric)

    before = sgd(0.5, 0.1)
    warmup = Warmup(make(before), 5)
    path = train(warmup, before, range(stop), takes_metric)
    file = io.BytesIO()
    torch.save({"optimizer": before.state_dict(), "scheduler": warmup.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)

    after = sgd(0.5, 0.1)
    resumed = Warmup(make(after), 5)
    after.load_state_dict(loaded["optimizer"])
    resumed.load_state_dict(loaded["scheduler"])
    assert path + train(resumed, after, range(stop, 14), takes_metric) == whole


def test_state_dict_contains_plain_values_of_warmup_and_scheduler():
    warmup = Warmup(make_plateau(sgd(0.5, 0.1)), 4)
    warmup.warmup_step()
    state = warmup.state_dict()
    assert state["warmup"] == {
        "warmed": 1,
        "optimizer_steps": 1,
        "calls": 0,
        "steps_at_call": 0,
        "inner_lrs": [0.5, 0.1],
        "shown_lrs": [0.5 * 0.4375, 0.1 * 0.4375],
        "steps": 4,
        "start_factor": 0.25,
    }
    assert state["scheduler"] == warmup.scheduler.state_dict()
    warmup.warmup_step()
    assert state["warmup"]["warmed"] == 1


def of_older_version(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict of a warmup, without the counts that older versions of optplug did not store."""
    own = {k: v for k, v in state["warmup"].items() if k not in ("optimizer_steps", "calls", "steps_at_call")}
    return {**state, "warmup": own}


def test_warmup_that_had_ended_in_an_older_version_stays_ended_with_a_longer_length():
    optimizer, longer = sgd(), sgd()
    warmup = Warmup(SCHEDULERS["optplug's cosine"](optimizer), 2)
    train(warmup, optimizer, range(4), False)
    for state, is_warming_up in ((of_older_version(warmup.state_dict()), False), (warmup.state_dict(), True)):
        loaded = Warmup(SCHEDULERS["optplug's cosine"](longer), 9)
        configured = copy.deepcopy(loaded.state_dict())
        loaded.load_state_dict(copy.deepcopy(state))
        adapter_for(loaded).apply_settings(configured, [0.5], [0.5])
        assert loaded.is_warming_up is is_warming_up


@pytest.mark.parametrize("steps", [3, 9])
def test_start_of_a_schedule_cannot_change_where_the_steps_before_are_not_known(steps: int):
    optimizer = sgd()
    warmup = Warmup(SCHEDULERS["optplug's cosine"](optimizer), steps)
    train(warmup, optimizer, range(6), False)
    configured = Warmup(SCHEDULERS["optplug's cosine"](sgd()), steps, delays_schedule=True).state_dict()
    warmup.load_state_dict(of_older_version(warmup.state_dict()))
    with pytest.raises(ConfigError, match="CosineAnnealingLR started at another step, and the number of its steps"):
        adapter_for(warmup).apply_settings(configured, [0.5], [0.5])


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", ["optplug's cosine", "torch's StepLR", "plateau"])
def test_copy_continues_like_the_original(name: str, duplicate: Any):
    make = SCHEDULERS.get(name, lambda o: make_plateau(o, patience=0, factor=0.5))
    optimizer = sgd(0.5, 0.1)
    warmup = Warmup(make(optimizer), 5)
    train(warmup, optimizer, range(3), name == "plateau")
    twin = duplicate(warmup)
    before = lrs_of(twin.optimizer)
    assert twin.optimizer is not optimizer
    assert before == lrs_of(optimizer)
    original = train(warmup, optimizer, range(3, 9), name == "plateau")
    assert lrs_of(twin.optimizer) == before
    assert train(twin, twin.optimizer, range(3, 9), name == "plateau") == original


# -------------------------------------------------------------------------------- changes by other code


def test_group_added_later_warms_up_to_its_own_base_lr():
    optimizer = sgd(0.5)
    warmup = Warmup(make_plateau(optimizer, patience=0), 4)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1})
    warmup.warmup_step()
    assert lrs_of(optimizer) == [0.5 * 0.4375, 0.1 * 0.4375]
    for _ in range(3):
        warmup.warmup_step()
    assert lrs_of(optimizer) == [0.5, 0.1]
    warmup.step(1.0)
    warmup.step(2.0)
    assert lrs_of(optimizer) == pytest.approx([0.05, 0.01], rel=1e-15)


@pytest.mark.parametrize("inner", ["optplug's cosine", "plateau"])
def test_lr_set_by_other_code_is_the_lr_without_warmup(inner: str):
    optimizer = sgd(0.5, 0.1)
    warmup = Warmup(make_plateau(optimizer) if inner == "plateau" else SCHEDULERS[inner](optimizer), 4, 0.5)
    optimizer.param_groups[0]["lr"] = 1.0
    warmup.apply_changed_lrs()
    assert lrs_of(optimizer) == [0.5, 0.05]
    warmup.apply_changed_lrs()
    assert lrs_of(optimizer) == [0.5, 0.05]
    for factor in (0.625, 0.75, 0.875, 1.0):
        optimizer.step()
        warmup.warmup_step()
        assert lrs_of(optimizer) == [factor, 0.1 * factor]
    optimizer.param_groups[1]["lr"] = 0.3
    warmup.apply_changed_lrs()
    assert lrs_of(optimizer) == [1.0, 0.3]
    if inner == "plateau":
        warmup.step(1.0)
        assert lrs_of(optimizer) == [1.0, 0.3]


@pytest.mark.parametrize("warmed", [1, 3])
def test_warmup_continues_after_an_earlier_optimizer_state_is_loaded(warmed: int):
    optimizer = sgd(0.5, 0.1)
    warmup = Warmup(lr_scheduler.ConstantLR(optimizer, 1.0), 4)
    earlier = copy.deepcopy(optimizer.state_dict())
    for _ in range(warmed):
        warmup.warmup_step()
    optimizer.load_state_dict(earlier)
    for step in range(warmed + 1, 6):
        optimizer.step()
        warmup.warmup_step()
        factor = min(1.0, 0.25 + 0.75 * step / 4)
        assert lrs_of(optimizer) == pytest.approx([0.5 * factor, 0.1 * factor], rel=1e-15)
    assert not warmup.lrs_from_outside


def test_rates_that_are_loaded_after_the_warmup_are_kept():
    optimizer = sgd(0.5)
    warmup = Warmup(lr_scheduler.ExponentialLR(optimizer, 0.5), 1)
    optimizer.step()
    warmup.warmup_step()
    earlier = copy.deepcopy(optimizer.state_dict())
    warmup.step()
    optimizer.load_state_dict(earlier)
    warmup.step()
    assert lrs_of(optimizer) == [0.25]


@pytest.mark.parametrize("name", ["optplug's cosine", "plateau"])
def test_tensor_lr_is_changed_in_place(name: str):
    lr = torch.tensor(0.5, dtype=torch.float64)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    before = optimizer.param_groups[0]["lr"]
    make = SCHEDULERS.get(name, lambda o: make_plateau(o, patience=0, factor=0.5))
    warmup = Warmup(make(optimizer), 5)
    plain = sgd(0.5)
    expected = train(Warmup(make(plain), 5), plain, range(12), name == "plateau")
    assert train(warmup, optimizer, range(12), name == "plateau") == expected
    assert optimizer.param_groups[0]["lr"] is before


def test_initial_lr_of_the_group_is_the_base_lr():
    optimizer = sgd(0.5)
    Warmup(make_plateau(optimizer), 4)
    assert optimizer.param_groups[0]["initial_lr"] == 0.5


def test_attributes_of_the_inner_scheduler_can_be_read_from_the_warmup():
    warmup = Warmup(SCHEDULERS["optplug's cosine"](sgd()), 4)
    assert (warmup.T_max, warmup.last_epoch, warmup.base_lrs) == (9, 0, [0.5])
    assert isinstance(warmup, lr_scheduler.LRScheduler)
    with pytest.raises(AttributeError):
        _ = warmup.patience


@pytest.mark.parametrize(
    ("steps", "start", "error", "message"),
    [
        (0, None, ConfigError, "warmup steps must be at least 1, got 0; to train without warmup, omit it"),
        (1.0, None, ConfigTypeError, "warmup steps must be a whole number of optimizer steps, got 1.0; write 1"),
        (True, None, ConfigTypeError, "warmup steps must be a whole number of optimizer steps, got True"),
        (1, 0.0, ConfigError, "warmup start_factor must be above 0 and at most 1, got 0.0"),
        (1, 1.5, ConfigError, "warmup start_factor must be above 0 and at most 1, got 1.5"),
        (1, math.nan, ConfigError, "warmup start_factor must be above 0 and at most 1, got nan"),
        (1, "0.5", ConfigTypeError, "warmup start_factor must be a number, got '0.5'; write 0.5"),
    ],
)
def test_invalid_warmup_arguments_raise(steps: Any, start: Any, error: type[Exception], message: str):
    with pytest.raises(error) as caught:
        Warmup(SCHEDULERS["optplug's cosine"](sgd()), steps, start)
    assert str(caught.value) == message


@pytest.mark.parametrize("first", ["cosine", "plateau", "warmup"])
@pytest.mark.parametrize("second", ["cosine", "plateau", "warmup"])
def test_state_of_another_kind_of_scheduler_raises(first: str, second: str):
    def make(kind: str) -> Any:
        optimizer = optplug.create_optimizer("sgd", [torch.zeros(1, requires_grad=True)], lr=1.0)
        if kind == "plateau":
            return optplug.create_scheduler("reduce_lr_on_plateau", optimizer)
        cosine = optplug.create_scheduler("cosine_annealing_lr", optimizer, T_max=5)
        return Warmup(cosine, 3) if kind == "warmup" else cosine

    saved, target = make(first).state_dict(), make(second)
    if first == second:
        target.load_state_dict(saved)
    else:
        with pytest.raises(ConfigError, match=r"^the checkpoint's scheduler is not a "):
            target.load_state_dict(saved)


@pytest.mark.parametrize("curve", [lambda t: (t + 1) / 10, lambda t: t / 10], ids=["from a tenth", "from zero"])
def test_closed_form_schedule_may_start_below_the_base_lr(curve: Any):
    class Curve(optplug.ClosedFormLR):
        def multiplier(self, t: int) -> float:
            return curve(t)

    optimizer = optplug.create_optimizer("sgd", [torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = Curve(optimizer)
    for t in range(5):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * curve(t), abs=1e-15)
        optimizer.step()
        schedule.step()


# ------------------------------------------------------------------------------ warmup without scheduler


def warmup_factors(steps: int, batches: int, first: float | None = None) -> list[float]:
    """Return the warmup factor of each batch."""
    start = 1 / steps if first is None else first
    return [min(1.0, start + (1 - start) * step / steps) for step in range(batches)]


@pytest.mark.parametrize(
    ("given", "steps", "first"),
    [
        ({"warmup_steps": 6}, 6, None),
        ({"warmup": {"epochs": 1.5}}, 6, None),
        ({"warmup": {"ratio": 0.5, "start_factor": 0.2}}, 6, 0.2),
        ({"warmup": {"steps": 20}}, 20, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_callback", [True, False], ids=["callback", "helper"])
def test_warmup_without_scheduler_ends_at_a_constant_lr(
    scripted_module: type,
    self_configured_module: type,
    trainer: Any,
    optplug_lightning: Any,
    given: Any,
    steps: int,
    first: Any,
    with_callback: bool,
):
    if with_callback:
        module = scripted_module()
        run = trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, given, verbose=False))
    else:
        module, run = self_configured_module({"optimizer": SGD, "scheduler": given}), trainer()
    run.fit(module)
    assert module.lrs == pytest.approx(warmup_factors(steps, 12, first), rel=1e-12)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(warmup_factors(steps, 13, first)[-1], rel=1e-12)


@pytest.mark.parametrize(("warmup", "steps"), [({"epochs": 1}, 4), ({"ratio": 0.25}, 3)], ids=str)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_warmup_epochs_and_ratio_count_optimizer_steps(
    scripted_module: type, trainer: Any, optplug_lightning: Any, warmup: Any, steps: int, accumulate: int
):
    module = scripted_module()
    callback = optplug_lightning.ConfigureOptimizers(SGD, {"warmup": warmup}, verbose=False)
    trainer(callbacks=callback, accumulate_grad_batches=accumulate).fit(module)
    counted = steps if accumulate == 1 else 2  # of 6 steps, a third and a quarter
    expected = [warmup_factors(counted, 12)[batch // accumulate] for batch in range(12)]
    assert module.lrs == pytest.approx(expected, rel=1e-12)


def test_warmup_without_scheduler_for_the_optimizer_of_the_module(
    scripted_module: type, trainer: Any, optplug_lightning: Any
):
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=2.0)

    module = Own()
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(scheduler={"warmup_steps": 4}, verbose=False)).fit(module)
    assert module.lrs == pytest.approx([2.0 * factor for factor in warmup_factors(4, 12)], rel=1e-12)


def test_warmup_without_scheduler_is_resumed(self_configured_module: type, trainer: Any, tmp_path: Any):
    choice = {"optimizer": SGD, "scheduler": {"warmup_steps": 10}}
    whole = self_configured_module(choice)
    trainer().fit(whole)
    first, second = self_configured_module(choice), self_configured_module(choice)
    stopped = trainer(max_epochs=1)
    stopped.fit(first)
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    trainer().fit(second, ckpt_path=tmp_path / "a.ckpt")
    assert first.lrs + second.lrs == whole.lrs == pytest.approx(warmup_factors(10, 12), rel=1e-12)


def test_summary_states_warmup_without_scheduler(
    scripted_module: type, trainer: Any, optplug_lightning: Any, capsys: Any
):
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, {"warmup": {"epochs": 1}}), max_epochs=1).fit(
        scripted_module()
    )
    assert "optplug: a warmup of 4 steps, then the learning rate is constant\n" in capsys.readouterr().out
