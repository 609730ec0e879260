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
from rich.text import Text

from optplug.errors import ConfigError, OptplugError, describe, did_you_mean, listing

if TYPE_CHECKING:
    import torch

    from optplug.bench import Cell, Failure, Report, Timing

DTYPES = ("float32", "float64", "bfloat16", "float16")
WIDE = 150
"""Columns of a table that goes to no terminal."""

MEASURING = ("names", "profile", "rounds", "seconds", "engine", "compile_", "cold", "threads", "dtype")
"""Parameters of the command that mean nothing with --from."""


def bench(
    context: typer.Context,
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
    engine: Annotated[str, typer.Option(help="Of our optimizers.")] = "auto",
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
    The default run takes half an hour or so, and up to 8 GB of memory.
    """
    try:
        for path in (json, picture):
            if path is not None:
                _check_writable(path)
        if picture is not None:
            from optplug.bench.plot import check

            check(picture)
        if from_ is not None:
            given = [
                name for name in MEASURING if (s := context.get_parameter_source(name)) and s.name == "COMMANDLINE"
            ]
            if given:
                named = listing(name if name == "names" else "--" + name.strip("_") for name in given)
                raise ConfigError(f"--from shows what a file has: leave {named} out")
            report, page = _read(from_, markdown=markdown)
        else:
            report = _measured(
                names or [],
                profile or [],
                engine=engine,
                rounds=rounds,
                seconds=seconds,
                compiled=compile_,
                cold=cold,
                dtype=dtype,
                threads=threads,
            )
            page = _page(report, markdown=markdown)
        _print(page)
        for failure in report.failures:
            typer.echo(f"error: {failure.optimizer} on {failure.profile}: {failure.reason}", err=True)
        if json is not None:
            json.write_text(report.to_json())
        if picture is not None and report.cells:
            from optplug.bench.plot import draw

            draw(report, picture)
    except (OptplugError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if from_ is None and "interrupted" in report.settings:
        raise typer.Exit(130)
    if report.failures:
        raise typer.Exit(1)


def _check_writable(path: Path) -> None:
    """Refuse what cannot be written after half an hour."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r} to write {path.name} to")
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a folder, not a file to write")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{str(path)!r} may not be written")


def _read(path: Path, *, markdown: bool) -> tuple[Report, list[Table | str]]:
    """A report, and what is printed of it: the figures of a file may be anything."""
    from optplug.bench import Report

    try:
        report = Report.from_json(path.read_text())
        return report, _page(report, markdown=markdown)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except OptplugError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # as many kinds as there are files
        raise ConfigError(f"{path}: this is no result of optplug bench: {describe(error)}") from error


def _measured(names: list[str], profiles: list[str], *, dtype: str, **settings: Any) -> Report:
    """Measure, with progress on stderr.

    Raises:
        typer.Exit: interrupted before there was anything to show.
    """
    from optplug.bench import PROFILES, Report, entries, environment, measure, profile
    from optplug.optim.dispatch import check_engine

    check_engine(settings["engine"])
    kind = _dtype(dtype)
    several, left_out = entries(names)
    chosen = list(dict.fromkeys(map(profile, profiles or PROFILES)))
    for name, reason in left_out.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    told = {"names": names, "profiles": profiles, "dtype": dtype, **settings}
    where = environment.describe()
    found: list[Cell | Failure] = []
    with _progress(len(several) * len(chosen)) as (phase, done):
        try:
            for result in measure(several, chosen, dtype=kind, progress=phase, **settings):
                found.append(result)
                done(result)
        except KeyboardInterrupt:
            told["interrupted"] = True
    report = Report.of(found, told, where)
    if "interrupted" in told:
        if not report.cells:
            typer.echo("interrupted before anything was measured: nothing is written", err=True)
            raise typer.Exit(130)
        typer.echo("interrupted: this is what was measured until then", err=True)
    return report


def _dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise ConfigError(f"no dtype {name!r} for bench; there are {listing(DTYPES)}{did_you_mean(name, DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


@contextmanager
def _progress(cells: int) -> Iterator[tuple[Callable[[str], None], Callable[[Cell | Failure], None]]]:
    """What is being done, and what was: a bar on a terminal, else a line at each cell's start and one at its end."""
    began = time.perf_counter()
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=cells)
            yield lambda text: bar.update(task, description=escape(text)), lambda result: bar.advance(task)
        return
    started: list[str] = []

    def phase(text: str) -> None:
        cell = text.rpartition(": ")[0]
        if cell not in started:
            started.append(cell)
            typer.echo(f"{len(started)}/{cells} {cell}", err=True)

    def done(result: Cell | Failure) -> None:
        said = f"ratio {ratio:.2f}" if (ratio := getattr(result, "ratio", None)) else "failed"
        elapsed = time.perf_counter() - began
        typer.echo(f"{result.optimizer} on {result.profile}: {said} ({elapsed:.0f} s)", err=True)

    yield phase, done


# ----------------------------------------------------------------------- tables


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.{1 if seconds >= 0.01 else 2 if seconds >= 0.001 else 3}f}"


def _mib(extra: int) -> str:
    return f"{extra / 2**20:.1f}"


def _title(cell: Cell) -> str:
    tensors = "tensor" if cell.tensors == 1 else "tensors"
    return f"{cell.profile}: {cell.tensors:,} {tensors}, {cell.elements:,} {cell.dtype} elements"


def _page(report: Report, *, markdown: bool) -> list[Table | str]:
    """All that is printed of a report."""
    if not report.cells:
        return []
    if markdown:
        return ["\n\n".join(markdown_of(report))]
    page: list[Table | str] = []
    for name in report.profiles:
        cells = report.on(name)
        page += [_table(cells), *notes_of(cells), ""]
    return [*page, *legend_of(report), machine_of(report), *summary_of(report)]


def _print(page: list[Table | str]) -> None:
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=WIDE)
    for one in page:
        out.print(Text(one) if isinstance(one, str) else one, soft_wrap=isinstance(one, str))


def _table(cells: list[Cell]) -> Table:
    """One profile: times are medians in ms, memory is in MiB. All columns, or on a narrow terminal the needed ones."""
    out = Console()
    width = out.width if out.is_terminal else WIDE
    paths = list(dict.fromkeys(timing.path for cell in cells for timing in cell.paths))
    rows = []
    for cell in cells:
        by_path = {timing.path: timing for timing in cell.paths}
        rows.append(
            {
                "optimizer": escape(cell.optimizer),
                "engine": cell.engine or "-",
                "ours ms": _ms(cell.ours.median),
                "best ms": f"{_ms(cell.best.median)} {cell.best.path}",
                **{path: _mark(by_path[path], cell.best) if path in by_path else "-" for path in paths},
                "ratio": _ratio(cell),
                "limit ms": _ms(cell.limit.median) if cell.fraction is not None else "-",
                "of limit": _fraction(cell),
                "first, second ms": ", ".join(map(_ms, cell.ours.first)) + ("" if cell.ours.cold else " (warm)"),
                "MiB": _mib(cell.ours.extra_bytes),
                "torch's": _mib(cell.best.extra_bytes) if cell.of_torch else "-",
            }
        )

    def table(*columns: str) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold", title=_title(cells[0]), title_justify="left")
        for column in columns:
            left = column in ("optimizer", "engine")
            fold = column == "optimizer"  # a name with many options shall not push the figures out
            made.add_column(column, justify="left" if left else "right", no_wrap=not fold, overflow="fold")
        for row in rows:
            made.add_row(*(row[column] for column in columns))
        return made

    wide = table(*(column for column in rows[0] if column != "best ms"))
    if out.measure(wide, options=out.options.update(width=10 * WIDE)).maximum <= width:
        return wide
    return table("optimizer", "ours ms", "best ms", "ratio", "of limit")


def _mark(timing: Timing, best: Timing) -> str:
    return f"*[bold]{_ms(timing.median)}[/bold]" if timing is best else _ms(timing.median)


def _ratio(cell: Cell) -> str:
    return f"{cell.ratio:.2f}{'?' * cell.doubtful}"


def _fraction(cell: Cell) -> str:
    return "-" if cell.fraction is None else f"{cell.fraction:.0%}"


def notes_of(cells: list[Cell]) -> list[str]:
    """What a reader of the figures must know about single optimizers and their engines."""
    from optplug.bench.results import SPREAD

    notes = [f"{cell.optimizer} is compared with {cell.against}" for cell in cells if not cell.of_torch]
    notes += [f"{cell.optimizer}: {note}" for cell in cells for note in cell.notes]
    notes += [f"{c.optimizer}, {path} is left out: {reason}" for c in cells for path, reason in c.left_out.items()]
    notes += [
        f"{cell.optimizer}, compile: first and second step {', '.join(map(_ms, timing.first))} ms"
        for cell in cells
        for timing in cell.paths
        if timing.path == "compile"
    ]
    notes += [f"{cell.optimizer}: doubtful, {complaint}" for cell in cells for complaint in cell.complaints]
    if any(cell.doubtful for cell in cells):
        notes.append(f"?: doubtful, the upper quartile of one of the two times is more than {SPREAD} times the lower")
    return [*notes, *dict.fromkeys(f"{cell.engine}: {cell.reason}" for cell in cells if cell.engine)]


def summary_of(report: Report) -> list[str]:
    """The geometric means of the ratios, and the worst one, where torch is what is compared with."""
    from optplug.bench import geometric_mean

    cells = [cell for cell in report.cells if cell.of_torch]
    if not cells:
        return []
    profiles = dict.fromkeys(cell.profile for cell in cells)
    lines = [f"{name} {geometric_mean(c.ratio for c in cells if c.profile == name):.2f}" for name in profiles]
    worst = max(cells, key=lambda cell: cell.ratio)
    return [
        f"geometric mean of the ratios: {', '.join(lines)}; all {geometric_mean(c.ratio for c in cells):.2f}",
        f"worst: {worst.optimizer} on {worst.profile}, {worst.ratio:.2f} of torch's {worst.best.path}",
    ]


def machine_of(report: Report) -> str:
    """Where and with what it was measured, in one line."""
    machine, versions = report.machine, report.versions
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    load = "unknown" if machine["load"] is None else f"{machine['load']:.2f}"
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, load {load} at the start"
    cut = " (interrupted)" if report.settings.get("interrupted") else ""
    return f"{where}; {packages}; {report.date[:10]}{cut}"


def legend_of(report: Report) -> list[str]:
    """How to read the tables."""
    if any(cell.ours.cold for cell in report.cells):
        first = "in a fresh process, where the first pays for imports and compilation"
    else:
        first = "in this process, where the first optimizer pays for imports"
    return [
        "Medians; * is torch's fastest path, the ratio is ours over it. MiB: a step's extra memory, ours and",
        "torch's fastest. The limit is a kernel that reads and writes the same arrays with one addition each, told",
        "where ours ran with the same engine; with many small tensors it contains the overhead for each of them.",
        f"First and second step: {first}.",
    ]


def markdown_of(report: Report) -> Iterator[str]:
    """A report that has cells as Markdown: a paragraph, and a table for every profile."""
    yield machine_of(report) + "."
    for name in report.profiles:
        cells = report.on(name)
        rows = [
            f"| {_title(cells[0])} | optplug | torch's best | ratio | of the memory limit |",
            "|---|---|---|---|---|",
        ]
        for cell in cells:
            best = f"{_ms(cell.best.median)} ms, `{cell.best.path}`"
            shares = f"{_ratio(cell)} | {_fraction(cell)}"
            rows.append(f"| `{cell.optimizer}` | {_ms(cell.ours.median)} ms | {best} | {shares} |")
        yield "\n".join([*rows, *(f"\n{note}." for note in notes_of(cells))])
    yield "With many small tensors the memory limit contains the overhead for each of them."
    if summary := summary_of(report):
        yield "; ".join(summary).capitalize() + "."
