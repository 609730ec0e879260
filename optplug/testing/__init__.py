"""The conformance kit: properties that every optimizer and scheduler must have, each a check that can fail.

    import optplug.testing, pytest

    @pytest.mark.parametrize("check", optplug.testing.optimizer_checks("lion"), ids=str)
    def test_lion_conforms(check):
        check()

or, in one call, `optplug.testing.check_optimizer("lion")`. Settings worth testing stand beside the algorithm, in its
class attribute `cases` (a list of keyword arguments). What convergence cannot show is shown by comparing two things
that must be equal: an engine and the loop, resumed and uninterrupted, ascent on f and descent on -f.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import listing
from optplug.schedulers.closed_form import ClosedFormLR
from optplug.testing.checks import Check, cases_of, label, look_up, run_all
from optplug.testing.optimizers import split
from optplug.testing.schedulers import Schedule
from optplug.testing.subjects import Subject

__all__ = [
    "Check",
    "check_optimizer",
    "check_scheduler",
    "inapplicable_checks",
    "optimizer_checks",
    "scheduler_checks",
]


def optimizer_checks(optimizer: str | type[Optimizer]) -> list[Check]:
    """The checks that apply to an optimizer, for every engine, case and dtype.

    Args:
        optimizer: a registered name, or a class. Its `cases` (keyword arguments; default: one, without any) are what is
            tested; its capabilities, of the spec or else the class, say what must hold.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: as in `optplug.get_optimizer`.
        TypeError: neither a name nor a class of optimizers.
    """
    return split(Subject.of(optimizer))[0]


def inapplicable_checks(optimizer: str | type[Optimizer]) -> dict[str, str]:
    """The properties (and engines) that do not apply to an optimizer, each with the reason; errors as above."""
    return split(Subject.of(optimizer))[1]


def check_optimizer(optimizer: str | type[Optimizer]) -> dict[str, str]:
    """Run every check that applies.

    Args:
        optimizer: a registered name, or a class.

    Returns:
        What does not apply, and why; see `inapplicable_checks`.

    Raises:
        AssertionError: with all failures, one a line. Errors of `optimizer_checks`.
    """
    checks, inapplicable = split(Subject.of(optimizer))
    run_all(checks)
    return inapplicable


def scheduler_checks(scheduler: str | type[LRScheduler], **arguments: Any) -> list[Check]:
    """The checks that apply to a scheduler.

    Args:
        scheduler: a registered name, or a class.
        arguments: of its constructor. Default: each entry of the class's `cases`, or no arguments.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError: as in `optplug.get_scheduler`.
        TypeError: neither a name nor a class of schedulers, or nothing gives arguments that it needs.
    """
    cls, capabilities = look_up("scheduler", scheduler, LRScheduler)
    cases = (arguments,) if arguments else cases_of(cls)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    after = list(inspect.signature(cls).parameters.values())[1:]
    needed = [p.name for p in after if p.default is p.empty and p.kind in named]
    if missing := [name for name in needed if name not in cases[0]]:
        raise TypeError(
            f"{cls.__name__} needs {listing(missing)}: give it `cases`, or give scheduler_checks the arguments"
        )
    checks = []
    for case in cases:
        schedule = Schedule(cls, case, "metric" in capabilities)
        names = [
            "groups_go_their_own_way",
            "resumed_equals_uninterrupted",
            "a_tensor_lr_is_set_in_place",
            "reports_last_lr",
        ]
        if issubclass(cls, ClosedFormLR):
            names.append("recursion_equals_closed_form")
        checks += [Check(f"{name}[{label(case)}]", getattr(schedule, name)) for name in names]
    return checks


def check_scheduler(scheduler: str | type[LRScheduler], **arguments: Any) -> None:
    """Run every check of `scheduler_checks`.

    Raises:
        AssertionError: with all failures, one a line. Errors of `scheduler_checks`.
    """
    run_all(scheduler_checks(scheduler, **arguments))
