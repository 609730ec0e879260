"""The report of all checks of one optimizer or scheduler: which promises hold, which do not, and whose fault it is."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import UnknownNameError
from optplug.registry import Registration, registry
from optplug.registry.signature import target_of
from optplug.registry.specs import SchedulerSpec
from optplug.testing.checks import Check, registration_of
from optplug.testing.optimizers import collect_checks
from optplug.testing.schedulers import collect_scheduler_checks
from optplug.testing.trajectory import OptimizerUnderTest


@dataclass(frozen=True)
class Broken:
    """A promise that is not kept.

    Attributes:
        promise: the name of the promise.
        meaning: the promise in one sentence.
        checks: the ids of the checks that failed.
        tested: the number of checks of the promise.
        what: what happened in the first failed check, on one line.
        blame: `"class"` or `"declaration"`: see `optplug.errors.ConformanceError`.
        remedy: what to change; empty if it is not known.
    """

    promise: str
    meaning: str
    checks: tuple[str, ...]
    tested: int
    what: str
    blame: str
    remedy: str


@dataclass(frozen=True)
class ConformanceReport:
    """The result of all checks of an optimizer or scheduler.

    Attributes:
        kind: `"optimizer"` or `"scheduler"`.
        name: its canonical name.
        plugin: the plugin that registers it, as `name (distribution version)`.
        target: the module and the name of the class or function.
        package: the package of the class with its version, such as `torch 2.13.0`.
        capabilities: the declared capabilities.
        tested: the tested cases and engines.
        kept: the promises that hold.
        broken: the promises that do not.
        inapplicable: the promises and engines that do not apply, by name the reasons.
        checks: the number of checks.
        seconds: the time that the checks took.
    """

    kind: str
    name: str
    plugin: str
    target: str
    package: str
    capabilities: tuple[str, ...]
    tested: str
    kept: tuple[str, ...]
    broken: tuple[Broken, ...]
    inapplicable: dict[str, str]
    checks: int
    seconds: float

    @property
    def conforms(self) -> bool:
        """Whether all promises that apply hold."""
        return not self.broken

    def as_dict(self) -> dict[str, Any]:
        """Return the report as data for JSON."""
        return {**dataclasses.asdict(self), "conforms": self.conforms}


def conformance_report(
    what: Any, *, engines: Iterable[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> ConformanceReport:
    """Run all checks of an optimizer or a scheduler.

    Args:
        what: a registered name, a class or a spec.
        engines: names of the engines to test, for a `RuleOptimizer`. Default: all.
        progress: called before each check with its index and the number of checks. Default: none.

    Raises:
        Errors of `optimizer_checks` and `scheduler_checks`.
    """
    start = time.perf_counter()
    kind = optimizer_or_scheduler(what)
    inapplicable: dict[str, str] = {}
    if kind == "optimizer":
        subject = OptimizerUnderTest.of(what, engines)
        registration = subject.registration
        checks, inapplicable = collect_checks(subject)
        settings = [_plural(len(subject.cases), "case"), *subject.engines]
        tested = ", ".join([*settings, str(subject.dtype).removeprefix("torch.")])
    else:
        registration = registration_of(kind, what, LRScheduler)
        checks = collect_scheduler_checks(what, {})
        tested = _plural(len({check.id.partition("[")[2] for check in checks}), "case")
    broken = _broken_promises(checks, progress)
    names = {each.promise for each in broken}
    target = target_of(registration)
    return ConformanceReport(
        kind=kind,
        name=registration.name,
        plugin=str(registration.plugin),
        target=_full_name(target),
        package=_package_of(target, registration),
        capabilities=tuple(sorted(registration.spec.capabilities)),
        tested=tested,
        kept=tuple(dict.fromkeys(check.promise for check in checks if check.promise not in names)),
        broken=broken,
        inapplicable=inapplicable,
        checks=len(checks),
        seconds=time.perf_counter() - start,
    )


def optimizer_or_scheduler(what: Any) -> str:
    """Return the kind of a registered name, a class or a spec: what is no scheduler is taken for an optimizer."""
    if isinstance(what, str):
        try:
            registry.resolve("scheduler", what)
        except UnknownNameError:
            return "optimizer"
        return "scheduler"
    is_scheduler = isinstance(what, SchedulerSpec) or (isinstance(what, type) and issubclass(what, LRScheduler))
    return "scheduler" if is_scheduler else "optimizer"


def _broken_promises(checks: list[Check], progress: Callable[[int, int], None] | None) -> tuple[Broken, ...]:
    by_promise: dict[str, list[Check]] = {}
    broken: dict[str, Broken] = {}
    for check in checks:
        by_promise.setdefault(check.promise, []).append(check)
    for i, check in enumerate(checks):
        if progress is not None:
            progress(i, len(checks))
        error = check.failure()
        if error is None:
            continue
        if (first := broken.get(check.promise)) is not None:
            broken[check.promise] = dataclasses.replace(first, checks=(*first.checks, check.id))
            continue
        tested, what = len(by_promise[check.promise]), " ".join(str(error).split())
        broken[check.promise] = Broken(
            check.promise, check.meaning, (check.id,), tested, what, error.blame, error.remedy
        )
    return tuple(broken.values())


def _full_name(target: Any) -> str:
    """Return the module and the name of a class, a function, a functools.partial or another callable object."""
    named = _named(target)
    return f"{named.__module__}.{named.__qualname__}"


def _named(target: Any) -> Any:
    while isinstance(target, functools.partial):
        target = target.func
    return target if hasattr(target, "__qualname__") else type(target)


def _package_of(target: Any, registration: Registration) -> str:
    """Return the package of a class with its version, such as `torch 2.13.0`."""
    package = _named(target).__module__.partition(".")[0]
    distributions = metadata.packages_distributions().get(package)
    if distributions:
        return f"{distributions[0]} {metadata.version(distributions[0])}"
    plugin = registration.plugin  # an editable install has no list of its modules
    return package if plugin.version == "?" else f"{plugin.distribution} {plugin.version}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
