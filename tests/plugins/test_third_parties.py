"""Optimizers and schedulers of the packages that the tests need: the checks of the benchmark of all packages."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import pytest
import third_parties
import torch
from third_parties import NOT_APPLICABLE, OK, OPTIMIZER_CHECKS, check

from optplug import OptimizerSpec, SchedulerSpec
from optplug.testing.optimizers import collect_checks
from optplug.testing.trajectory import OptimizerUnderTest
from optplug_adapters.packages import PRECEDENCE

OF_COLLECTION = (
    *("adabelief", "adafactor", "adahessian", "adashift", "bsam", "lars", "lora_rite", "lookahead"),
    *("muon", "orthograd", "ranger21", "sam", "schedulefree_adamw", "soap", "splus"),
)
"""Names of pytorch_optimizer that are checked here, one for each kind of optimizer."""

PACKAGES = ("torch", "lion_pytorch", "prodigyopt", "schedulefree", "pytorch_optimizer")


def specs() -> list[Any]:
    """Parameters (kind, spec) of the installed packages."""
    found = []
    for package in PACKAGES:
        plugin = importlib.import_module(f"optplug_adapters.{package}") if find_spec(package) else None
        for kind in ("optimizer", "scheduler"):
            for spec in getattr(plugin, f"optplug_{kind}s", list)():
                if (package, kind) != ("pytorch_optimizer", "optimizer") or spec.name in OF_COLLECTION:
                    found.append(pytest.param(kind, spec, id=f"{package}-{kind}-{spec.name}"))
    return found


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("kind", "spec"), specs())
def test_third_party_passes_every_check_of_the_benchmark(
    kind: str, spec: Any, register_optimizers: Any, register_schedulers: Any
):
    (register_optimizers if kind == "optimizer" else register_schedulers)(spec)
    outcomes = check(kind, f"third-party:{spec.name}")
    failed = {name: text for name, text in outcomes.items() if text != OK and not text.startswith(NOT_APPLICABLE)}
    assert not failed


FAMILIES = tuple(package for package in PRECEDENCE if package != "transformers" and find_spec(package))
"""The adapted packages with optimizers that are installed."""


@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("package", FAMILIES)
def test_declared_capabilities_of_every_optimizer_are_correct(package: str, register_optimizers: Any):
    specs = importlib.import_module(f"optplug_adapters.{package}").optplug_optimizers()
    register_optimizers(*specs)
    false: dict[str, list[str]] = {}
    for spec in specs:
        checks, _ = collect_checks(OptimizerUnderTest.of(f"third-party:{spec.name}"))
        errors = [each.failure() for each in checks if each.promise.startswith("capability_")]
        if found := [str(error) for error in errors if error is not None and error.blame == "declaration"]:
            false[spec.name] = found
    assert not false


# ------------------------------------------------------------------------------------------ the checks themselves


class Forgetful(torch.optim.SGD):
    """SGD whose momentum is lost when its state is loaded."""

    def __init__(self, params: Any, lr: Any = 0.1) -> None:
        super().__init__(params, lr=0.1, momentum=0.9)

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict({**state_dict, "state": {}})


class Diverging(torch.optim.SGD):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return closure() if closure else None


class Unstable(torch.optim.SGD):
    """Makes larger steps in each further training."""

    trainings = 0

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        type(self).trainings += 1
        super().__init__(params, lr=lr * self.trainings)


@pytest.mark.parametrize(
    ("cls", "failing"),
    [
        (Forgetful, {"resumes": r"the weights differ by .*package: natively by"}),
        (Diverging, {"trains": "not finite", "native": "not finite", "groups": "not finite"}),
        (Unstable, {"equal": "the weights differ"}),
    ],
    ids=["Forgetful", "Diverging", "Unstable"],
)
def test_checks_detect_faults(cls: Any, failing: dict[str, str], register_optimizers: Any):
    register_optimizers(OptimizerSpec("faulty", f"{__name__}:{cls.__name__}", precedence=5))
    outcomes = check("optimizer", "third-party:faulty")
    found = {name: text for name, text in outcomes.items() if text != OK and not text.startswith(NOT_APPLICABLE)}
    assert found.keys() >= failing.keys()
    for name, words in failing.items():
        assert any(part in found[name] for part in words.split(".*")), found
    assert outcomes.keys() <= OPTIMIZER_CHECKS.keys()


def test_check_that_takes_too_long_fails(register_optimizers: Any, monkeypatch: pytest.MonkeyPatch):
    def endless(*_: Any, **__: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(third_parties, "_train_natively", endless)
    register_optimizers(OptimizerSpec("slow", torch.optim.SGD, precedence=5))
    assert check("optimizer", "third-party:slow", limit=20)["native"] == "takes too long"


def test_scheduler_with_other_lrs_is_detected(register_schedulers: Any, monkeypatch: pytest.MonkeyPatch):
    register_schedulers(SchedulerSpec("halving", torch.optim.lr_scheduler.StepLR, cases=({"step_size": 2},)))
    assert set(check("scheduler", "third-party:halving").values()) == {OK}
    monkeypatch.setattr(third_parties, "_lrs_natively", lambda *_, **__: [0.05] * third_parties.STEPS)
    assert "learning rates differ" in check("scheduler", "third-party:halving")["equal"]
