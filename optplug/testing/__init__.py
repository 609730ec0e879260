"""The conformance kit: checks of the properties that every optimizer and every scheduler must have.

Tests of optplug itself are not here but in `tests/`. Example:

    import optplug.testing, pytest

    @pytest.mark.parametrize("check", optplug.testing.optimizer_checks("qhm"), ids=str)
    def test_qhm_conforms(check):
        check()

or, in one call, `optplug.testing.check_optimizer("qhm")`. The class attribute `cases` has the settings to test: a list
of keyword arguments. Most checks compare two computations that must give equal results: an engine and engine `loop`, a
resumed run and an uninterrupted one, maximizing f and minimizing -f.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import listing
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.testing.checks import Check, case_label, declared_cases, resolve_class, run_all
from optplug.testing.optimizers import collect_checks
from optplug.testing.schedulers import SchedulerUnderTest
from optplug.testing.trajectory import OptimizerUnderTest

__all__ = [
    "Check",
    "check_optimizer",
    "check_scheduler",
    "inapplicable_checks",
    "optimizer_checks",
    "scheduler_checks",
]


def optimizer_checks(optimizer: str | type[Optimizer]) -> list[Check]:
    """Return the checks that apply to an optimizer, for every engine and every case.

    Args:
        optimizer: a registered name, or a class. Its attribute `cases` has the keyword arguments to test (default: one
            case without arguments). The capabilities of the spec, or else of the class, determine the expectations.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: see `optplug.get_optimizer`.
        TypeError: `optimizer` is neither a name nor an optimizer class.
    """
    return collect_checks(OptimizerUnderTest.of(optimizer))[0]


def inapplicable_checks(optimizer: str | type[Optimizer]) -> dict[str, str]:
    """Return the properties and engines that do not apply to an optimizer, each with the reason.

    Argument and errors: see `optimizer_checks`.
    """
    return collect_checks(OptimizerUnderTest.of(optimizer))[1]


def check_optimizer(optimizer: str | type[Optimizer]) -> dict[str, str]:
    """Run all checks that apply to an optimizer.

    Args:
        optimizer: a registered name, or a class.

    Returns:
        The properties and engines that do not apply, each with the reason; see `inapplicable_checks`.

    Raises:
        AssertionError: some checks failed; the message has one line for each. Errors of `optimizer_checks`.
    """
    checks, inapplicable = collect_checks(OptimizerUnderTest.of(optimizer))
    run_all(checks)
    return inapplicable


def scheduler_checks(scheduler: str | type[LRScheduler], **arguments: Any) -> list[Check]:
    """Return the checks that apply to a scheduler.

    Args:
        scheduler: a registered name, or a class.
        arguments: keyword arguments of its constructor. Default: each entry of the class attribute `cases`; without
            `cases`, no arguments.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: see `optplug.get_scheduler`.
        TypeError: `scheduler` is neither a name nor a scheduler class, or required arguments are missing.
    """
    cls, capabilities = resolve_class("scheduler", scheduler, LRScheduler)
    cases = (arguments,) if arguments else declared_cases(cls)
    keyword_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(cls).parameters.values())[1:]  # without the optimizer
    required = [p.name for p in parameters if p.default is p.empty and p.kind in keyword_kinds]
    if missing := [name for name in required if name not in cases[0]]:
        raise TypeError(
            f"{cls.__name__} needs {listing(missing)}: pass arguments to scheduler_checks, or add `cases` to the class"
        )
    checks = []
    for case in cases:
        subject = SchedulerUnderTest(cls, case, "metric" in capabilities)
        names = [
            "groups_are_independent",
            "resumed_equals_uninterrupted",
            "tensor_lr_is_updated_in_place",
            "get_last_lr_returns_group_lrs",
        ]
        if issubclass(cls, ClosedFormLR):
            names.append("steps_equal_closed_form")
        checks += [Check(f"{name}[{case_label(case)}]", getattr(subject, name)) for name in names]
    return checks


def check_scheduler(scheduler: str | type[LRScheduler], **arguments: Any) -> None:
    """Run all checks of `scheduler_checks`.

    Raises:
        AssertionError: some checks failed; the message has one line for each. Errors of `scheduler_checks`.
    """
    run_all(scheduler_checks(scheduler, **arguments))
