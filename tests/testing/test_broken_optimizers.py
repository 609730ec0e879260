"""Each fault of an optimizer without a rule is detected by the promise meant for it."""

from __future__ import annotations

from typing import Any

import pytest

from broken_optimizers import (
    FAULTY,
    DeclaresAClosureInPlaceOfGradientsFirst,
    NeedsAnUndeclaredClosure,
    NeedsUndeclaredGradientsFirst,
    Plain,
    WithModes,
)
from correct_optimizers import CORRECT, name_of
from optplug.testing import conformance_report, rules
from optplug.testing.optimizers import PROMISES
from optplug.testing.properties import promises_in


@pytest.mark.parametrize("cls", [Plain, WithModes])
def test_correct_optimizer_keeps_all_promises(cls: type[Plain]) -> None:
    report = conformance_report(cls)
    assert report.broken == ()
    assert len(report.kept) >= 21


@pytest.mark.parametrize("what", CORRECT, ids=name_of)
def test_correct_optimizers_of_many_kinds_keep_all_promises(what: Any) -> None:
    report = conformance_report(what)
    assert [f"{each.promise}: {each.what}" for each in report.broken] == []
    assert len(report.kept) >= 14


def test_remedy_says_which_use_of_the_closure_to_declare() -> None:
    remedies = {
        cls: [each.remedy for each in conformance_report(cls).broken]
        for cls in (NeedsUndeclaredGradientsFirst, DeclaresAClosureInPlaceOfGradientsFirst, NeedsAnUndeclaredClosure)
    }
    assert list(remedies.values()) == [
        ["declare 'gradients_first'"],
        ["declare 'gradients_first' in place of 'closure'"],
        ["declare 'closure'"],
    ]


@pytest.mark.parametrize("cls", FAULTY, ids=lambda cls: cls.__name__)
def test_fault_breaks_the_promise_meant_for_it(cls: type[Plain]) -> None:
    broken = {each.promise: each for each in conformance_report(cls).broken}
    assert set(broken) == {cls.promise, *cls.others}, [f"{each.promise}: {each.what}" for each in broken.values()]
    found = broken[cls.promise]
    assert found.blame == cls.blame
    assert found.remedy
    assert found.what


def test_every_promise_of_optimizers_without_a_rule_is_tested_by_a_fault() -> None:
    promised = {each.name for each in PROMISES} - {each.name for each in promises_in(rules)}
    assert {cls.promise for cls in FAULTY} == promised
    assert len(FAULTY) >= 30
