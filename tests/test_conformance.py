"""Everything that is registered, against the conformance kit. To register is to be tested."""

from __future__ import annotations

import pytest

import optplug
from optplug.testing import Check, inapplicable_checks, optimizer_checks, scheduler_checks

OPTIMIZERS = [
    pytest.param(check, id=f"{n}-{check}") for n in optplug.list_optimizers() for check in optimizer_checks(n)
]
SCHEDULERS = [
    pytest.param(check, id=f"{n}-{check}") for n in optplug.list_schedulers() for check in scheduler_checks(n)
]


@pytest.mark.parametrize("check", OPTIMIZERS)
def test_optimizer_conforms(check: Check):
    check()


@pytest.mark.parametrize("check", SCHEDULERS)
def test_scheduler_conforms(check: Check):
    check()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_nothing_but_the_engines_of_later_versions_is_left_out_for_the_classics(name: str):
    assert sorted(inapplicable_checks(name)) == ["engine numba", "engine triton"]


def test_the_classics_are_tested_on_both_engines_in_every_case():
    for name in ("adam", "adamw", "sgd"):
        ids = {check.id for check in optimizer_checks(name)}
        for case in optplug.get_optimizer(name).cases:
            label = ",".join(f"{key}={value}" for key, value in case.items()).replace(" ", "") or "default"
            assert {f"engine_agrees_with_loop[{engine}-{label}]" for engine in ("loop", "foreach")} <= ids
