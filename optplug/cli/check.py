"""The command `optplug check`. torch and the tested classes are imported when the command runs."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from optplug.errors import OptplugError, UnknownNameError, listing, suggest
from optplug.registry import registry

if TYPE_CHECKING:
    from optplug.testing import ConformanceReport

KINDS = ("optimizer", "scheduler")
WIDTH = 110
"""The largest width of the text, in characters."""

BROKEN = 1
CANNOT_CHECK = 2
"""Exit codes. 0: all promises hold."""


def check(
    names: Annotated[
        list[str],
        typer.Argument(help="Optimizers and schedulers: names, plugin:name, or globs, such as 'ada*' or 'torch:*'."),
    ],
    engine: Annotated[
        list[str] | None, typer.Option(help="Test this engine only; may be repeated. Default: all engines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
) -> None:
    """Test whether optimizers and schedulers keep the promises of the conformance kit.

    The report says what holds, what does not and whose fault it is, and what does not apply.
    Exit codes: 0, all promises are kept; 1, a promise is broken; 2, a name is unknown, or its class cannot be loaded.
    """
    reports: list[ConformanceReport] = []
    failed = False
    try:
        found = [name for each in names for name in _matching_names(each)]
        _check_engines(engine)
    except OptplugError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(CANNOT_CHECK) from None
    for i, name in enumerate(dict.fromkeys(found), 1):
        try:
            with _progress(name, i, len(set(found))) as progress, contextlib.redirect_stdout(sys.stderr):
                reports.append(_report(name, engine, progress))
        except Exception as error:  # the code of a plugin can raise anything
            text = str(error) if isinstance(error, OptplugError) else f"{type(error).__name__}: {error}"
            typer.echo(f"error: {name}: {text}", err=True)
            failed = True
            continue
        if not as_json:
            typer.echo(text_of(reports[-1]) + "\n")
    if as_json:
        typer.echo(json.dumps([report.as_dict() for report in reports], indent=2))
    elif len(reports) > 1:
        typer.echo("\n".join(map(summary, reports)))
    if failed:
        raise typer.Exit(CANNOT_CHECK)
    if not all(report.conforms for report in reports):
        raise typer.Exit(BROKEN)


def _matching_names(pattern: str) -> list[str]:
    """Return the optimizers and schedulers that a name or a glob means.

    Raises:
        UnknownNameError: there are none. Errors of `Registry.resolve`.
    """
    if any(character in pattern for character in "*?["):
        found = [name for kind in KINDS for name in registry.names(kind, pattern)]
        if not found:
            raise UnknownNameError(f"no optimizer or scheduler matches {pattern!r}")
        return found
    for kind in KINDS:
        with contextlib.suppress(UnknownNameError):
            registry.resolve(kind, pattern)
            return [pattern]
    known = [name for kind in KINDS for name in registry.names(kind)]
    hint = suggest(pattern, known, intro="the names are", see="optplug list")
    message = "; ".join([f"no optimizer or scheduler named {pattern!r}{hint}", *map(str, registry.quarantined)])
    raise UnknownNameError(message)


def _check_engines(engines: list[str] | None) -> None:
    from optplug.optim.dispatch import check_engine

    for engine in engines or ():
        check_engine(engine)


def _report(name: str, engines: list[str] | None, progress: Callable[[int, int], None]) -> ConformanceReport:
    from optplug.testing import conformance_report

    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # what the classes print
        warnings.simplefilter("ignore")
        return conformance_report(name, engines=engines, progress=progress)


@contextlib.contextmanager
def _progress(name: str, index: int, names: int) -> Iterator[Callable[[int, int], None]]:
    """Show one line with the number of checks on a terminal, and else one line for each name."""
    title = f"checking {name}" + (f" ({index} of {names})" if names > 1 else "")
    stderr, on_terminal = sys.stderr, sys.stderr.isatty()
    stderr.write(title if on_terminal else f"{title}\n")

    def show(done: int, checks: int) -> None:
        if on_terminal:
            stderr.write(f"\r{title}: {done} of {checks} checks")
            stderr.flush()

    try:
        yield show
    finally:
        if on_terminal:
            stderr.write(f"\r{' ' * (len(title) + 30)}\r")


# ------------------------------------------------------------------------------------------ text


def text_of(report: ConformanceReport) -> str:
    """Return a report as text."""
    tested = (
        f"{report.tested}: {report.checks} checks in {report.seconds:.1f} s"
        if report.checks
        else f"no: {_reason(report)}"
    )
    lines = [
        f"{report.kind} {report.name}",
        f"  plugin    {report.plugin}",
        f"  class     {report.target} ({report.package})",
        f"  declares  {listing(report.capabilities)}",
        f"  tested    {tested if report.checks else f'no: {_reason(report)}'}",
        "",
    ]
    if report.broken:
        lines.append(f"{len(report.broken)} of {_promises(len(report.broken) + len(report.kept))} broken")
    for broken in report.broken:
        count = f" ({len(broken.checks)} of {broken.tested} checks)" if broken.tested > 1 else ""
        fault = f"the class {report.target}" if broken.blame == "class" else f"the declaration in {report.plugin}"
        lines += [
            f"  {broken.promise}",
            *_wrapped("    promise: ", broken.meaning),
            *_wrapped("    seen:    ", _shortened(broken.what) + count),
            *(_wrapped("    in:      ", _setting(broken.checks[0])) if broken.tested > 1 else ()),
            *_wrapped("    fault:   ", fault),
            *(_wrapped("    remedy:  ", broken.remedy) if broken.remedy else ()),
        ]
    if report.kept:
        lines += [f"{_promises(len(report.kept))} kept", *_wrapped("  ", ", ".join(report.kept))]
    if report.inapplicable:
        lines.append("not applicable")
        by_reason: dict[str, list[str]] = {}
        for name, reason in report.inapplicable.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            lines += _wrapped("  ", f"{reason}: {', '.join(names)}")
    return "\n".join(lines)


def _setting(check: str) -> str:
    """Return the case and the engine of a check: what is in brackets in its id."""
    return check.partition("[")[2].removesuffix("]")


def summary(report: ConformanceReport) -> str:
    """Return one line about a report."""
    if not report.checks:
        return f"{report.name}: not tested: {_reason(report)}"
    by_fault = {blame: sum(broken.blame == blame for broken in report.broken) for blame in ("class", "declaration")}
    faults = [f"{number} by the fault of the {blame}" for blame, number in by_fault.items() if number]
    text = f"{report.name}: {_promises(len(report.kept))} kept"
    return f"{text}, {len(report.broken)} broken: {', '.join(faults)}" if faults else text


def _reason(report: ConformanceReport) -> str:
    """Why nothing is tested."""
    return next(iter(report.inapplicable.values()), "no checks")


def _promises(number: int) -> str:
    return f"{number} promise{'' if number == 1 else 's'}"


def _shortened(text: str, length: int = 240) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _wrapped(start: str, text: str) -> list[str]:
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)
