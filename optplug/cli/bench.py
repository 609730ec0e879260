"""`optplug bench`. torch is imported when the command runs, so that `optplug list` does without it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from optplug.errors import ConfigError, OptplugError, did_you_mean, listing

if TYPE_CHECKING:
    import torch

    from optplug.bench import Cell, Failure, Report, Timing

DTYPES = ("float32", "float64", "bfloat16", "float16")
WIDE = 150
"""Columns of a table that goes to no terminal."""


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Optimizers, options after a colon: adam 'sgd:momentum=0.9,nesterov=True'. Default: all that torch "
            "has too and that step on dense gradients.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="tiny, resnet50, gpt2 or one; may be repeated. Default: all.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=5, help="At most so many rounds, each one step of every path.")] = 51,
    seconds: Annotated[float, typer.Option(min=0, help="Time for the rounds of a cell; 5 rounds in any case.")] = 10.0,
    engine: Annotated[str, typer.Option(help="Of our optimizers and of the memory limit.")] = "auto",
    compile_: Annotated[bool, typer.Option("--compile", help="Also torch.compile of torch's step.")] = False,
    cold: Annotated[bool, typer.Option(help="Take the first two steps in a fresh process.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads. Default: as torch chooses.")] = None,
    dtype: Annotated[str, typer.Option(help=f"Of parameters and gradients: {listing(DTYPES)}.")] = "float32",
    json: Annotated[Path | None, typer.Option(help="Write everything measured to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the ratios into this file (.png, .svg, .pdf).")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown tables, as the documentation has.")
    ] = False,
    from_: Annotated[Path | None, typer.Option("--from", help="Measure nothing: show what --json wrote.")] = None,
) -> None:
    """Time steps of optimizers against every path torch has for them, and against the memory limit.

    All paths of an optimizer take turns in this process; figures are medians. Ratios are ours over torch's fastest.
    """
    # Asked for memory, torch's profiler would note every start on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        for path in (json, picture):
            if path is not None and not path.absolute().parent.is_dir():
                raise ConfigError(f"there is no folder {str(path.parent)!r} to write {path.name} to")
        if picture is not None:
            from optplug.bench.picture import check

            check(picture)
        if from_ is not None:
            if names or profile:
                raise ConfigError("--from shows what a file has: leave names and profiles out")
            report = _read(from_)
        else:
            report = _measured(
                names or [],
                profile or [],
                show=not markdown,
                engine=engine,
                rounds=rounds,
                seconds=seconds,
                compiled=compile_,
                cold=cold,
                dtype=dtype,
                threads=threads,
            )
        if json is not None:
            json.write_text(report.to_json())
        if markdown:
            typer.echo("\n\n".join(markdown_of(report)))
        elif from_ is not None:
            for name in report.profiles:
                _print_table(report.on(name))
        if not markdown:
            _print_summary(report)
        if picture is not None:
            from optplug.bench.picture import draw

            draw(report, picture)
    except (OptplugError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for failure in report.failures:
        typer.echo(f"error: {failure.optimizer} on {failure.profile}: {failure.reason}", err=True)
    if report.failures:
        raise typer.Exit(1)


def _read(path: Path) -> Report:
    from optplug.bench import Report

    try:
        return Report.from_json(path.read_text())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _measured(names: list[str], profiles: list[str], *, show: bool, dtype: str, **settings: Any) -> Report:
    """Measure, with progress on stderr and, if wanted, a table of each profile as soon as it is there."""
    from optplug.bench import PROFILES, Report, entries, measure, profile
    from optplug.rules.execution import check_engine

    check_engine(settings["engine"])
    kind = _dtype(dtype)
    several, left_out = entries(names)
    chosen = [profile(name) for name in dict.fromkeys(profiles or PROFILES)]
    for name, reason in left_out.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    found: list[Cell | Failure] = []
    with _progress(len(several) * len(chosen)) as (phase, done):
        try:
            for result in measure(several, chosen, dtype=kind, progress=phase, **settings):
                found.append(result)
                done(result)
        except KeyboardInterrupt:
            typer.echo("interrupted: what follows is what was measured until then", err=True)
    report = Report.of(found, {"names": names, "profiles": profiles, "dtype": dtype, **settings})
    for name in report.profiles if show else ():
        _print_table(report.on(name))
    return report


def _dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise ConfigError(f"no dtype {name!r} for bench; there are {listing(DTYPES)}{did_you_mean(name, DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


@contextmanager
def _progress(cells: int) -> Iterator[tuple[Callable[[str], None], Callable[[Cell | Failure], None]]]:
    """What is being done, and what was: a bar on a terminal, else a line for each cell."""
    began = time.perf_counter()
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=cells)
            yield lambda text: bar.update(task, description=text), lambda result: bar.advance(task)
        return
    count = 0

    def done(result: Cell | Failure) -> None:
        nonlocal count
        count += 1
        said = f"ratio {ratio:.2f}" if (ratio := getattr(result, "ratio", None)) else "failed"
        elapsed = time.perf_counter() - began
        typer.echo(f"{count}/{cells} {result.optimizer} on {result.profile}: {said} ({elapsed:.0f} s)", err=True)

    yield lambda text: None, done


# ----------------------------------------------------------------------- tables


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.{1 if seconds >= 0.01 else 2 if seconds >= 0.001 else 3}f}"


def _mib(extra: int) -> str:
    return f"{extra / 2**20:.1f}"


def _title(cell: Cell) -> str:
    tensors = "tensor" if cell.tensors == 1 else "tensors"
    return f"{cell.profile}: {cell.tensors:,} {tensors}, {cell.elements:,} {cell.dtype} elements"


def _print_table(cells: list[Cell]) -> None:
    """One profile: times are medians in ms, memory is in MiB."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=WIDE)
    paths = list(dict.fromkeys(timing.path for cell in cells for timing in cell.paths))
    table = Table(box=None, pad_edge=False, header_style="bold", title=_title(cells[0]), title_justify="left")
    for column in ("optimizer", "engine", "ours ms", *paths, "ratio", "limit ms", "of limit", "first, second ms"):
        table.add_column(column, justify="left" if column in ("optimizer", "engine") else "right", no_wrap=True)
    table.add_column("MiB", justify="right")
    table.add_column("torch's", justify="right")
    for cell in cells:
        by_path = {timing.path: timing for timing in cell.paths}
        table.add_row(
            escape(cell.optimizer),
            cell.engine or "-",
            _ms(cell.ours.median),
            *(_mark(by_path[path], cell.best) if path in by_path else "-" for path in paths),
            f"{cell.ratio:.2f}",
            _ms(cell.limit.median),
            f"{cell.fraction:.0%}",
            ", ".join(map(_ms, cell.ours.first)) + ("" if cell.ours.cold else " (warm)"),
            _mib(cell.ours.extra_bytes),
            _mib(cell.best.extra_bytes),
        )
    out.print(table)
    for note in notes_of(cells):
        out.print(escape(note), style="dim")
    out.print()


def _mark(timing: Timing, best: Timing) -> str:
    return f"*[bold]{_ms(timing.median)}[/bold]" if timing is best else _ms(timing.median)


def notes_of(cells: list[Cell]) -> list[str]:
    """What a reader of the figures must know about single optimizers."""
    notes = [f"{cell.optimizer} is compared with {cell.against}" for cell in cells if "torch.optim" not in cell.against]
    notes += [f"{c.optimizer}, {path} is left out: {reason}" for c in cells for path, reason in c.left_out.items()]
    notes += [
        f"{cell.optimizer}, compile: first and second step {', '.join(map(_ms, timing.first))} ms"
        for cell in cells
        for timing in cell.paths
        if timing.path == "compile"
    ]
    notes += [f"{cell.optimizer}: doubtful, {complaint}" for cell in cells for complaint in cell.complaints]
    return notes


def summary_of(report: Report) -> list[str]:
    """The geometric means of the ratios, and the worst one."""
    from optplug.bench import geometric_mean

    lines = [f"{name} {geometric_mean(cell.ratio for cell in report.on(name)):.2f}" for name in report.profiles]
    worst = max(report.cells, key=lambda cell: cell.ratio)
    return [
        f"geometric mean of the ratios: {', '.join(lines)}; all {geometric_mean(c.ratio for c in report.cells):.2f}",
        f"worst: {worst.optimizer} on {worst.profile}, {worst.ratio:.2f} of torch's {worst.best.path}",
    ]


def machine_of(report: Report) -> str:
    """Where and with what it was measured, in one line."""
    machine, versions = report.machine, report.versions
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; {packages}; {report.date[:10]}"


def _print_summary(report: Report) -> None:
    out = Console(soft_wrap=True, highlight=False)
    if report.cells:
        out.print("Medians; * is torch's fastest path, the ratio is ours over it. MiB: a step's extra memory, ours and")
        out.print(
            "torch's fastest. The limit is a kernel that reads and writes the same arrays with one addition each."
        )
        if any(cell.ours.cold for cell in report.cells):
            out.print("First and second step: in a fresh process, where the first pays for imports and compilation.")
        else:
            out.print("First and second step: in this process, where the first optimizer pays for imports.")
        for line in (machine_of(report), *summary_of(report)):
            out.print(escape(line))


def markdown_of(report: Report) -> Iterator[str]:
    """The report as Markdown: a paragraph, and a table for every profile."""
    if not report.cells:
        raise ConfigError("nothing was measured: there is no table")
    yield machine_of(report) + "."
    for name in report.profiles:
        cells = report.on(name)
        rows = [
            f"| {_title(cells[0])} | optplug | torch's best | ratio | of the memory limit |",
            "|---|---|---|---|---|",
        ]
        for cell in cells:
            best = f"{_ms(cell.best.median)} ms, `{cell.best.path}`"
            shares = f"{cell.ratio:.2f} | {cell.fraction:.0%}"
            rows.append(f"| `{cell.optimizer}` | {_ms(cell.ours.median)} ms | {best} | {shares} |")
        yield "\n".join([*rows, *(f"\n{note}." for note in notes_of(cells))])
    yield "; ".join(summary_of(report)).capitalize() + "."
