"""The conformance kit: promises that every optimizer and every scheduler must keep, and their tests.

Tests of optplug itself are not here but in `tests/`. Example:

    from optplug import testing

    @testing.parametrize("qhm")
    def test_qhm_conforms(check):
        check()

or, in one call, `testing.check_optimizer("qhm")`. The field `cases` of the spec, or the class attribute, has the
settings to test: a list of keyword arguments. Most checks compare two computations that must give equal results: a
resumed run and an uninterrupted one, maximizing f and minimizing -f, an engine and engine `loop`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.registry.specs import OptimizerSpec, SchedulerSpec
from optplug.testing.checks import Check, run_all
from optplug.testing.optimizers import collect_checks
from optplug.testing.report import ConformanceReport, conformance_report, optimizer_or_scheduler
from optplug.testing.schedulers import collect_scheduler_checks
from optplug.testing.trajectory import OptimizerUnderTest

__all__ = [
    "Check",
    "ConformanceReport",
    "check_optimizer",
    "check_scheduler",
    "conformance_report",
    "inapplicable_checks",
    "optimizer_checks",
    "parametrize",
    "scheduler_checks",
]


def optimizer_checks(
    optimizer: str | type[Optimizer] | OptimizerSpec, *, engines: Iterable[str] | None = None
) -> list[Check]:
    """Return the checks that apply to an optimizer, for every engine and every case.

    Args:
        optimizer: a registered name, a class or a spec. `cases` of the spec, or else of the class, has the keyword
            arguments to test (default: one case without arguments). The capabilities determine the expectations.
        engines: names of the engines to test, for a `RuleOptimizer`. Default: all.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: see `optplug.get_optimizer`.
        ConfigTypeError: `optimizer` is neither a name nor an optimizer class nor a spec.
        SpecError: a class has no valid name, or `exceptions` has an unknown promise.
    """
    return collect_checks(OptimizerUnderTest.of(optimizer, engines))[0]


def inapplicable_checks(optimizer: str | type[Optimizer] | OptimizerSpec) -> dict[str, str]:
    """Return the promises and engines that do not apply to an optimizer, each with the reason.

    Argument and errors: see `optimizer_checks`.
    """
    return collect_checks(OptimizerUnderTest.of(optimizer))[1]


def check_optimizer(optimizer: str | type[Optimizer] | OptimizerSpec) -> dict[str, str]:
    """Run all checks that apply to an optimizer.

    Args:
        optimizer: a registered name, a class or a spec.

    Returns:
        The promises and engines that do not apply, each with the reason; see `inapplicable_checks`.

    Raises:
        AssertionError: some checks failed; the message has one line for each. Errors of `optimizer_checks`.
    """
    checks, inapplicable = collect_checks(OptimizerUnderTest.of(optimizer))
    run_all(checks)
    return inapplicable


def scheduler_checks(scheduler: str | type[LRScheduler] | SchedulerSpec, **arguments: Any) -> list[Check]:
    """Return the checks that apply to a scheduler.

    Args:
        scheduler: a registered name, a class or a spec.
        arguments: keyword arguments of its constructor. Default: each entry of `cases` of the spec, or else of the
            class; without `cases`, no arguments. Required lengths have a default.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: see `optplug.get_scheduler`.
        ConfigTypeError: `scheduler` is neither a name nor a scheduler class nor a spec, or required arguments are
            missing.
    """
    return collect_scheduler_checks(scheduler, arguments)


def check_scheduler(scheduler: str | type[LRScheduler] | SchedulerSpec, **arguments: Any) -> None:
    """Run all checks of `scheduler_checks`.

    Raises:
        AssertionError: some checks failed; the message has one line for each. Errors of `scheduler_checks`.
    """
    run_all(scheduler_checks(scheduler, **arguments))


def parametrize(what: str | type | OptimizerSpec | SchedulerSpec, **arguments: Any) -> Any:
    """Return a decorator for a pytest function with the argument `check`: it runs once for each check.

    Args:
        what: an optimizer or a scheduler: a registered name, a class or a spec.
        arguments: as in `scheduler_checks`, or `engines` as in `optimizer_checks`.

    Raises:
        Exceptions of `optimizer_checks` and `scheduler_checks`.
    """
    import pytest

    checks_of: Any = optimizer_checks if optimizer_or_scheduler(what) == "optimizer" else scheduler_checks
    checks = checks_of(what, **arguments)
    return pytest.mark.parametrize("check", checks, ids=str)
