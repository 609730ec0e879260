"""The checks of an optimizer: each promise in each case, for a `RuleOptimizer` with each engine."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from optplug.errors import SpecError, suggest
from optplug.testing import capabilities, groups, modes, rules, steps
from optplug.testing.checks import Check, case_label
from optplug.testing.properties import Promise, promises_in
from optplug.testing.trajectory import OptimizerUnderTest, reproducible, step_error

PROMISES: tuple[Promise, ...] = tuple(
    each for module in (steps, groups, modes, capabilities, rules) for each in promises_in(module)
)
"""All promises, in the order of reports."""


def collect_checks(subject: OptimizerUnderTest) -> tuple[list[Check], dict[str, str]]:
    """Return the checks that apply to an optimizer, and for the other promises the reason.

    In a case in which no step can be taken, only `steps_as_declared` is checked: all others would fail too.

    Raises:
        SpecError: `exceptions` of the spec has an unknown promise.
    """
    exceptions = _exceptions(subject)
    if subject.spec.unsupported:
        return [], {"all promises": f"cannot be used: {subject.spec.unsupported}"}
    checks: list[Check] = []
    inapplicable = dict(subject.unavailable_engines)
    stuck = [case for case in subject.cases if step_error(subject, case) is not None]
    for each in PROMISES:
        settings = (
            list(subject.cases_and_engines()) if each.every_engine else [(case_label(c), c) for c in subject.cases]
        )
        for (setting, options), case in zip(settings, _cases_of(subject, len(settings)), strict=True):
            if each.name in exceptions:
                reason: str | None = exceptions[each.name]
            elif case in stuck and each is not steps.steps_as_declared:
                reason = "no step can be taken: see steps_as_declared"
            else:
                reason = each.obstacle(subject, options)
            if reason:
                inapplicable.setdefault(each.name, reason)
            else:
                run = functools.partial(_run, each, subject, options)
                checks.append(Check(f"{each.name}[{setting}]", run, each.meaning, each.remedy))
    # A promise that applies to some case is not inapplicable.
    for name in {check.promise for check in checks}:
        inapplicable.pop(name, None)
    return checks, inapplicable


def _run(promise: Promise, subject: OptimizerUnderTest, options: dict[str, Any]) -> None:
    with reproducible(subject, 0):
        promise.test(subject, options)


def _cases_of(subject: OptimizerUnderTest, settings: int) -> list[dict[str, object]]:
    """Return the case of each setting: each case has the same number of settings."""
    return [case for case in subject.cases for _ in range(settings // len(subject.cases))]


def _exceptions(subject: OptimizerUnderTest) -> dict[str, str]:
    """Return the promises that the spec or the class declares as exceptions, with their reasons."""
    declared: Mapping[str, str] = subject.spec.exceptions or getattr(subject.cls, "exceptions", {})
    known = [each.name for each in PROMISES]
    for name in declared:
        if name not in known:
            message = f"exceptions of optimizer {subject.spec.name!r} names no promise: {name!r}"
            raise SpecError(f"{message}{suggest(name, known)}")
    return {name: f"declared exception: {reason}" for name, reason in declared.items()}
