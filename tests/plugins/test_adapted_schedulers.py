"""Schedulers of timm and pytorch_optimizer by name: as in a loop of the package, with checkpoints and late groups."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import sys
from typing import Any

import pytest
import torch

import optplug
from optplug.errors import PluginError, UnknownNameError
from optplug.registry import Registration
from optplug.registry.signature import configurable_arguments, target_of
from optplug.schedulers.late_groups import follow_groups
from optplug_adapters.packages import is_installed
from optplug_adapters.schedules import AdaptedSchedule
from support import loaded_registration

pytestmark = pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")  # the adapter saves its state

NATIVE_MODULES = {"pytorch_optimizer": "pytorch_optimizer", "timm": "timm.scheduler"}
"""By the package, the module from which its users import schedulers."""

NATIVE_NAMES = {"chebyshev_schedule": "get_chebyshev_schedule"}

STEPS = 9


def registrations(package: str) -> dict[str, Registration]:
    module = importlib.import_module(f"optplug_adapters.{package}")
    return {spec.name: loaded_registration(spec, package) for spec in module.optplug_schedulers()}


SCHEDULERS = [
    pytest.param(package, name, case, id=f"{package}-{name}-{i}")
    for package in NATIVE_MODULES
    for name, registration in registrations(package).items()
    for i, case in enumerate(registration.spec.cases or ({},))
]


def two_groups() -> torch.optim.SGD:
    groups = [{"params": [torch.zeros(2, requires_grad=True)], "lr": lr} for lr in (0.1, 0.2)]
    return torch.optim.SGD(groups, lr=0.1)


def lrs_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def build(package: str, name: str, optimizer: torch.optim.Optimizer, case: Any) -> Any:
    return target_of(registrations(package)[name])(optimizer, **case)


def metric(step: int) -> float:
    """Improves in the first three steps: timm maximizes."""
    return float(min(step, 3))


def run(scheduler: Any, steps: range) -> list[list[float]]:
    found = []
    for step in steps:
        scheduler.optimizer.step()
        scheduler.step(*([metric(step)] if "plateau" in type(scheduler).__name__.lower() else []))
        found.append(lrs_of(scheduler.optimizer))
    return found


@pytest.mark.parametrize(("package", "name", "case"), SCHEDULERS)
def test_learning_rates_are_those_of_a_loop_of_the_package(package: str, name: str, case: Any):
    optimizer = two_groups()
    scheduler = build(package, name, optimizer, case)
    start = lrs_of(optimizer)
    adapted = [start, *run(scheduler, range(1, STEPS + 1))]

    optimizer = two_groups()
    cls = registrations(package)[name].spec.target.__name__
    native = getattr(importlib.import_module(NATIVE_MODULES[package]), NATIVE_NAMES.get(cls, cls))(optimizer, **case)
    expected = [lrs_of(optimizer)]
    for step in range(1, STEPS + 1):
        optimizer.step()
        native.step(*([step, metric(step)] if package == "timm" else []))
        expected.append(lrs_of(optimizer))
    assert adapted == expected
    assert len({tuple(lrs) for lrs in adapted}) > 2 or "plateau" in name
    assert scheduler.get_last_lr() == adapted[-1]


@pytest.mark.parametrize(("package", "name", "case"), SCHEDULERS)
def test_interrupted_schedule_continues_from_a_safely_loaded_checkpoint(package: str, name: str, case: Any):
    case = {**case, "patience_t": 1} if "plateau" in name else case
    optimizer = two_groups()
    expected = run(build(package, name, optimizer, case), range(1, STEPS + 1))[4:]

    optimizer = two_groups()
    scheduler = build(package, name, optimizer, case)
    run(scheduler, range(1, 5))
    file = io.BytesIO()
    torch.save({"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    optimizer = two_groups()
    scheduler = build(package, name, optimizer, case)
    scheduler.load_state_dict(saved["scheduler"])
    optimizer.load_state_dict(saved["optimizer"])
    assert run(scheduler, range(5, STEPS + 1)) == expected


@pytest.mark.parametrize(("package", "name", "case"), SCHEDULERS)
def test_scheduler_can_be_copied_and_pickled(package: str, name: str, case: Any):
    scheduler = build(package, name, two_groups(), case)
    run(scheduler, range(1, 3))
    copies = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    expected = run(scheduler, range(3, 6))
    for copied in copies:
        assert run(copied, range(3, 6)) == expected


@pytest.mark.parametrize("package", NATIVE_MODULES)
def test_arguments_that_optplug_sets_itself_cannot_be_configured(package: str):
    for name, registration in registrations(package).items():
        assert not {"t_in_epochs", "initialize", "last_epoch", "optimizer"} & set(configurable_arguments(registration))
        assert configurable_arguments(registration).keys() >= {*registration.spec.lengths}, name


def test_late_group_follows_the_schedule_of_timm():
    if not is_installed("timm"):
        pytest.skip("timm is not installed")
    optimizer = two_groups()
    scheduler = build("timm", "cosine_lr_scheduler", optimizer, {"t_initial": 8, "warmup_t": 4, "warmup_lr_init": 0.0})
    run(scheduler, range(1, 3))
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": optimizer.param_groups[1]["lr"]})
    follow_groups(scheduler)
    for _, second, third in run(scheduler, range(3, 9)):
        assert third == pytest.approx(second)


def test_length_of_a_schedule_of_timm_ends_it():
    if not is_installed("timm"):
        pytest.skip("timm is not installed")
    scheduler = build("timm", "cosine_lr_scheduler", two_groups(), {"t_initial": 5})
    assert scheduler.t_initial == 5
    assert optplug.schedulers.adapters.adapter_for(scheduler).length("t_initial", 99) == 5


def test_unknown_scheduler_of_timm_is_an_attribute_error():
    if not is_installed("timm"):
        pytest.skip("timm is not installed")
    module = importlib.import_module("optplug_adapters.timm_schedulers")
    for name in ("Cosine", "AbsentLRScheduler"):
        with pytest.raises(AttributeError, match=name):
            getattr(module, name)


def test_schedule_of_pytorch_optimizer_by_name_in_a_configuration():
    try:
        built = optplug.create_optimizer_and_scheduler(
            torch.nn.Linear(1, 1),
            {"name": "sgd", "lr": 0.1},
            {"name": "pytorch_optimizer:cosine_scheduler", "t_max": "auto", "max_lr": 0.5, "warmup_steps": 2},
            total_steps=8,
            verbose=False,
        )
    except UnknownNameError:
        pytest.skip("the adapters are not registered as plugins in this environment")
    assert built[1].schedule.total_steps == 8


# ---------------------------------------------------------------- the state of any scheduler


class SchedulerWithState:
    """A scheduler of another package, with a state of many types."""

    def __init__(self, optimizer: torch.optim.Optimizer, value: Any) -> None:
        self.optimizer = optimizer
        self.value = value


class AdaptedWithState(AdaptedSchedule):
    def advance(self) -> None:
        """Change nothing."""


def adapted_with(value: Any) -> AdaptedWithState:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "initial_lr": 0.1}], lr=0.1)
    return AdaptedWithState(optimizer, SchedulerWithState(optimizer, value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("numpy.float64(0.5)", 0.5),
        ("numpy.float32(0.5)", 0.5),
        ("numpy.int64(3)", 3),
        ("numpy.bool_(True)", True),
        ("(numpy.int64(3), [numpy.float32(0.5)])", (3, [0.5])),
        ("{numpy.int64(3): {'a': (numpy.float64(0.5), None, 'text')}}", {3: {"a": (0.5, None, "text")}}),
    ],
)
def test_numbers_of_numpy_are_saved_as_numbers_of_python(value: str, expected: Any):
    pytest.importorskip("numpy")
    saved = io.BytesIO()
    torch.save(adapted_with(eval(value, {"numpy": sys.modules["numpy"]})).state_dict(), saved)
    saved.seek(0)
    found = torch.load(saved, weights_only=True)["schedule"]
    assert found == {"value": expected}
    assert repr(found["value"]) == repr(expected)  # types too


@pytest.mark.parametrize("value", [object(), [object()], {"a": (1, object())}, {1, 2}])
def test_state_that_a_checkpoint_cannot_contain_is_an_error(value: Any):
    with pytest.raises(
        PluginError, match="the state of AdaptedWithState cannot be saved: a checkpoint has no room for"
    ):
        adapted_with(value).state_dict()
