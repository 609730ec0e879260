"""Values of schedulers of other packages: their types, and values that a class refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

import optplug
from optplug import SchedulerSpec
from optplug.config.build import parse_and_check
from optplug.errors import ConfigError, HyperparameterTypeError


class OwnError(Exception):
    """Does not derive from ValueError."""


class Foreign(LRScheduler):
    def __init__(  # type: ignore[no-untyped-def]
        self,
        optimizer: Any,
        step_size: int,
        total: int = 10,
        gamma=0.5,
        low: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        print("a banner")
        if low < 0:
            raise OwnError(f"low is {low}")
        if step_size > total:
            raise ValueError("too long")
        if isinstance(gamma, list) and len(gamma) != len(optimizer.param_groups):
            raise ValueError("gamma: one number for each group")
        if any(group["lr"] < low for group in optimizer.param_groups):
            raise ValueError("low is above lr")
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]


class NeedsOptimizer(Foreign):
    """Needs a real optimizer."""

    def __init__(self, optimizer: Any, gamma: float = 0.5) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            raise TypeError("no SGD")
        super().__init__(optimizer, 1, gamma=gamma)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from optplug.registry import Plugin, Registration, registry

    registry.names("scheduler")
    for spec in (
        SchedulerSpec("foreign", Foreign, interval="step", length="total", lengths=("step_size",)),
        SchedulerSpec("needs_optimizer", NeedsOptimizer),
    ):
        registration = Registration(spec, Plugin("third-party", "third-party", "1"))
        key = spec.name.replace("_", "")
        monkeypatch.setitem(registry._discovered().registrations["scheduler"], key, [registration])


def check(**arguments: Any) -> None:
    parse_and_check({"name": "sgd", "lr": 1.0}, {"name": "foreign", "step_size": 2, **arguments})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step_size": "two"}, "step_size must be a number, got 'two'"),
        ({"total": "x"}, "total must be a number, got 'x'"),
        ({"gamma": "x"}, "gamma must be a number"),
        ({"low": [0.1]}, "low must be a number"),
    ],
    ids=str,
)
def test_value_of_a_wrong_type_is_refused(given: Any, words: str):
    with pytest.raises(HyperparameterTypeError, match=rf"^scheduler\.{next(iter(given))}: foreign: {words}"):
        check(**given)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(HyperparameterTypeError, match=f"^foreign: {words}"):
        optplug.create_scheduler("foreign", optimizer, **{"step_size": 2, **given})


@pytest.mark.parametrize(
    ("given", "loc", "words"),
    [
        ({"low": -1}, "low", "foreign rejected step_size=2, low=-1: low is -1"),
        ({"step_size": 11}, "step_size", "foreign rejected step_size=11: too long"),
        ({"args": {"low": -1}}, r"args\.low", "foreign rejected step_size=2, low=-1"),
        ({"gamma": [0.1, 0.2]}, "gamma", r"foreign rejected .*: gamma: one number for each group"),
        ({"low": -1, "total": "auto"}, "low", "foreign rejected"),
    ],
    ids=str,
)
def test_refused_value_has_its_location(
    given: Any, loc: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Foreign, "cases", ({"step_size": 3},), raising=False)
    with pytest.raises(ConfigError, match=rf"^scheduler\.{loc}: {words}"):
        check(**given)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "given",
    [
        {"step_size": -1},
        {"step_size": {"ratio": 0.5}, "total": "auto"},
        {"step_size": {"epochs": 50}},  # its number is not known yet
        {"low": 0.5},  # below lr
        {"gamma": [0.5]},
    ],
    ids=str,
)
def test_value_that_may_be_valid_is_accepted(given: Any):
    check(**given)


def test_scheduler_that_needs_the_optimizer_is_accepted():
    parse_and_check({"name": "sgd", "lr": 0.1}, {"name": "needs_optimizer", "gamma": 0.2})
