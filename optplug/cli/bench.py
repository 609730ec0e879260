"""The command `optplug bench`. torch is imported when the command runs, so that `optplug list` does not import it."""

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

from optplug.errors import ConfigError, OptplugError, listing, one_line, suggest

if TYPE_CHECKING:
    import torch

    from optplug.bench import Cell, Failure, Report, Timing

DTYPE_NAMES = ("float32", "float64", "bfloat16", "float16")
WIDE = 150
"""The width of tables, in characters, if the output is not a terminal."""

MEASUREMENT_PARAMETERS = ("names", "profile", "rounds", "seconds", "engine", "compile_", "cold", "threads", "dtype")
"""Parameters of the command that have no effect with --from, and raise an error."""


def bench(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Optimizers, with options after a colon: adam torch:adam 'sgd:momentum=0.9,nesterov=True'. Default: "
            "all of optplug and of plugins that torch.optim has too and that take dense gradients.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="tiny, resnet50, gpt2 or one; may be repeated. Default: all.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=5, help="The largest number of rounds; a round is one step of every path.")
    ] = 51,
    seconds: Annotated[float, typer.Option(min=0, help="Time for the rounds of a cell; at least 5 rounds.")] = 10.0,
    engine: Annotated[str, typer.Option(help="The engine of optplug's optimizers.")] = "auto",
    compile_: Annotated[bool, typer.Option("--compile", help="Also measure torch.compile of torch's step.")] = False,
    cold: Annotated[bool, typer.Option(help="Take the first two steps in a new process.")] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of torch's threads. Default: torch's choice.")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"Dtype of parameters and gradients: {listing(DTYPE_NAMES)}.")] = "float32",
    json: Annotated[Path | None, typer.Option(help="Write all results to this file, as JSON.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write a plot of the ratios to this file (.png, .svg, .pdf).")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    from_: Annotated[Path | None, typer.Option("--from", help="Show a file of --json instead of measuring.")] = None,
) -> None:
    """Measure optimizer steps, and compare them with every path of torch.optim and with the memory limit.

    An optimizer that torch.optim does not have is compared with its own loop, or only measured. All paths of an
    optimizer run in this process in random order. Times are medians. A ratio is the time of optplug divided by that of
    torch's fastest path. The default run takes about half an hour and up to 8 GB of memory.
    """
    try:
        for path in (json, picture):
            if path is not None:
                check_writable(path)
        if picture is not None:
            from optplug.bench.plot import check_plot_path

            check_plot_path(picture)
        if from_ is not None:
            given = [
                name
                for name in MEASUREMENT_PARAMETERS
                if (s := context.get_parameter_source(name))
                and s.name == "COMMANDLINE"
                and (name != "names" or names)  # typer 0.26: the source of an absent argument is the command line too
            ]
            if given:
                named = listing(name if name == "names" else "--" + name.strip("_") for name in given)
                raise ConfigError(f"--from shows the results in a file: remove {named}")
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


def check_writable(path: Path) -> None:
    """Check that a file can be written, so that errors are reported before the measurement.

    Raises:
        ConfigError: the folder does not exist, the path is a folder, or the permission is missing.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{path.name} cannot be written: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} cannot be written: it is a folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{str(path)!r} cannot be written: permission denied")


def _read(path: Path, *, markdown: bool) -> tuple[Report, list[Table | str]]:
    """Read a report and make its page. Both are done here, since values of the file can be invalid in either.

    Raises:
        ConfigError: the file cannot be read, or is not a report.
    """
    from optplug.bench import Report

    try:
        report = Report.from_json(path.read_text())
        return report, _page(report, markdown=markdown)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except OptplugError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # invalid values can raise any exception
        raise ConfigError(f"{path}: this is not a result of optplug bench: {one_line(error)}") from error


def _measured(names: list[str], profiles: list[str], *, dtype: str, **settings: Any) -> Report:
    """Measure, and write the progress to stderr.

    Raises:
        typer.Exit: the user interrupted the run before the first result.
    """
    from optplug.bench import PROFILES, Failure, Report, environment, get_profile, measure, select_entries
    from optplug.optim.dispatch import check_engine

    check_engine(settings["engine"])
    torch_dtype = _dtype(dtype)
    entries, skipped = select_entries(names)
    chosen = list(dict.fromkeys(map(get_profile, profiles or PROFILES)))
    if not entries:
        raise ConfigError("; ".join(f"{name} {reason}" for name, reason in skipped.items()))
    results: list[Cell | Failure] = []
    for name, reason in skipped.items():
        if names:
            results.append(Failure(name, "every profile", reason))
        else:
            typer.echo(f"skipped: {name}: {reason}", err=True)
    all_settings = {"names": names, "profiles": profiles, "dtype": dtype, **settings}
    machine = environment.machine_info()
    with _progress(len(entries) * len(chosen)) as (phase, done):
        try:
            for result in measure(entries, chosen, dtype=torch_dtype, progress=phase, **settings):
                results.append(result)
                done(result)
        except KeyboardInterrupt:
            all_settings["interrupted"] = True
    report = Report.from_results(results, all_settings, machine)
    if "interrupted" in all_settings:
        if not report.cells:
            typer.echo("interrupted before the first result: nothing is written", err=True)
            raise typer.Exit(130)
        typer.echo("interrupted: the results until then follow", err=True)
    return report


def _dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPE_NAMES:
        raise ConfigError(f"no dtype {name!r} for bench{suggest(name, DTYPE_NAMES, intro='there are')}")
    found: torch.dtype = getattr(torch, name)
    return found


@contextmanager
def _progress(cells: int) -> Iterator[tuple[Callable[[str], None], Callable[[Cell | Failure], None]]]:
    """Show the progress: a bar on a terminal, else one line at the start and one at the end of each cell.

    Args:
        cells: the number of cells.

    Yields:
        A function to call with the description of each phase, and a function to call with each result.
    """
    start = time.perf_counter()
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
        outcome = "failed"
        if ours := getattr(result, "ours", None):
            ratio = getattr(result, "ratio", None)
            outcome = f"{_ms(ours.median)} ms" if ratio is None else f"ratio {ratio:.2f}"
        elapsed = time.perf_counter() - start
        typer.echo(f"{result.optimizer} on {result.profile}: {outcome} ({elapsed:.0f} s)", err=True)

    yield phase, done


# ----------------------------------------------------------------------- tables


def _ms(seconds: float) -> str:
    """Format seconds in milliseconds. Small values have more decimals."""
    return f"{1e3 * seconds:.{1 if seconds >= 0.01 else 2 if seconds >= 0.001 else 3}f}"


def _mib(extra: int) -> str:
    return f"{extra / 2**20:.1f}"


def _title(cells: list[Cell]) -> str:
    cell = max(cells, key=lambda cell: cell.tensors)  # an optimizer that takes matrices only has fewer tensors
    tensors = "tensor" if cell.tensors == 1 else "tensors"
    return f"{cell.profile}: {cell.tensors:,} {tensors}, {cell.elements:,} {cell.dtype} elements"


def _page(report: Report, *, markdown: bool) -> list[Table | str]:
    """Return the tables and lines that are printed for a report."""
    if not report.cells:
        return []
    if markdown:
        return ["\n\n".join(markdown_lines(report))]
    page: list[Table | str] = []
    for name in report.profiles:
        cells = report.cells_of(name)
        page += [_table(cells), *cell_notes(cells), ""]
    return [*page, *legend_lines(report), machine_line(report), *ratio_summary_lines(report)]


def _print(page: list[Table | str]) -> None:
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=WIDE)
    for item in page:
        out.print(Text(item) if isinstance(item, str) else item, soft_wrap=isinstance(item, str))


def _table(cells: list[Cell]) -> Table:
    """Return the table of one profile: times are medians in ms, memory is in MiB.

    A table that is wider than the terminal is replaced by one with the most important columns.
    """
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
                "best ms": _best(cell),
                **{path: _mark(by_path[path], cell.best) if path in by_path else "-" for path in paths},
                "ratio": _ratio(cell),
                "limit ms": _limit(cell),
                "of limit": _fraction(cell),
                "first, second ms": ", ".join(map(_ms, cell.ours.first_steps)) + ("" if cell.ours.cold else " (warm)"),
                "MiB": _mib(cell.ours.extra_bytes),
                "torch's": _mib(cell.best.extra_bytes) if cell.best and cell.is_compared_with_torch else "-",
            }
        )

    def table(*columns: str) -> Table:
        result = Table(
            box=None,
            pad_edge=False,
            header_style="bold",
            title=_title(cells),
            title_justify="left",
        )
        for column in columns:
            left = column in ("optimizer", "engine")
            fold = column == "optimizer"  # a label with many options is wrapped, so that all numbers fit
            result.add_column(column, justify="left" if left else "right", no_wrap=not fold, overflow="fold")
        for row in rows:
            result.add_row(*(row[column] for column in columns))
        return result

    wide = table(*(column for column in rows[0] if column != "best ms"))
    if out.measure(wide, options=out.options.update(width=10 * WIDE)).maximum <= width:
        return wide
    return table("optimizer", "ours ms", "best ms", "ratio", "of limit")


def _best(cell: Cell) -> str:
    return f"{_ms(cell.best.median)} {cell.best.path}" if cell.best else "-"


def _limit(cell: Cell) -> str:
    return "-" if cell.memory_limit is None or cell.memory_limit_fraction is None else _ms(cell.memory_limit.median)


def _mark(timing: Timing, best: Timing | None) -> str:
    return f"*[bold]{_ms(timing.median)}[/bold]" if timing is best else _ms(timing.median)


def _ratio(cell: Cell) -> str:
    return "-" if cell.ratio is None else f"{cell.ratio:.2f}{'?' * cell.is_doubtful}"


def _fraction(cell: Cell) -> str:
    return "-" if cell.memory_limit_fraction is None else f"{cell.memory_limit_fraction:.0%}"


def cell_notes(cells: list[Cell]) -> list[str]:
    """Return the notes on single optimizers and engines that are printed under the table of a profile."""
    from optplug.bench.results import MAX_QUARTILE_RATIO

    most = max(cell.tensors for cell in cells)
    notes = [
        f"{cell.optimizer} is compared with {cell.baseline or 'nothing: torch.optim has no class of this name'}"
        for cell in cells
        if not cell.is_compared_with_torch
    ]
    notes += [
        f"{cell.optimizer} is measured on {cell.tensors:,} of {most:,} tensors" for cell in cells if cell.tensors < most
    ]
    notes += [f"{cell.optimizer}: {note}" for cell in cells for note in cell.notes]
    notes += [f"{c.optimizer}, {path} is skipped: {reason}" for c in cells for path, reason in c.skipped.items()]
    notes += [
        f"{cell.optimizer}, compile: first and second step {', '.join(map(_ms, timing.first_steps))} ms"
        for cell in cells
        for timing in cell.paths
        if timing.path == "compile"
    ]
    notes += [f"{cell.optimizer}: doubtful, {warning}" for cell in cells for warning in cell.warnings]
    if any(cell.is_doubtful for cell in cells):
        notes.append(
            f"?: doubtful, the upper quartile of one of the two times is more than {MAX_QUARTILE_RATIO} times the lower"
        )
    return [*notes, *dict.fromkeys(f"{cell.engine}: {cell.reason}" for cell in cells if cell.engine)]


def ratio_summary_lines(report: Report) -> list[str]:
    """Return the geometric means of the ratios and the worst ratio, of the cells that are compared with torch."""
    from optplug.bench import geometric_mean

    compared = [(cell, cell.ratio) for cell in report.cells if cell.is_compared_with_torch and cell.ratio is not None]
    if not compared:
        return []
    profiles = dict.fromkeys(cell.profile for cell, _ in compared)
    lines = [f"{name} {geometric_mean(r for cell, r in compared if cell.profile == name):.2f}" for name in profiles]
    worst, ratio = max(compared, key=lambda pair: pair[1])
    return [
        f"geometric mean of the ratios: {', '.join(lines)}; all {geometric_mean(r for _, r in compared):.2f}",
        f"worst: {worst.optimizer} on {worst.profile}, {ratio:.2f} of torch's {worst.best.path if worst.best else ''}",
    ]


def machine_line(report: Report) -> str:
    """Return the machine, the versions and the date in one line."""
    machine, versions = report.machine, report.versions
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    load = "unknown" if machine["load"] is None else f"{machine['load']:.2f}"
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, load {load} at the start"
    suffix = " (interrupted)" if report.settings.get("interrupted") else ""
    return f"{hardware}; {packages}; {report.date[:10]}{suffix}"


def legend_lines(report: Report) -> list[str]:
    """Return the explanation of the tables."""
    if any(cell.ours.cold for cell in report.cells):
        first = "in a new process; the first step includes imports and compilation"
    else:
        first = "in this process; the first step of the first optimizer includes imports"
    return [
        "Times are medians. * marks torch's fastest path; the ratio is optplug's time divided by that of this path.",
        "MiB is the extra memory of a step, of optplug and of torch's fastest path. The limit is the time of a kernel",
        "that reads and writes the same arrays with one addition each. It is shown if optplug used the same engine.",
        "With many small tensors it includes the overhead for each tensor.",
        f"First, second: the first two steps, {first}.",
    ]


def markdown_lines(report: Report) -> Iterator[str]:
    """Yield a report with cells as Markdown: a paragraph, a table for each profile, and the summary."""
    yield machine_line(report) + "."
    for name in report.profiles:
        cells = report.cells_of(name)
        rows = [
            f"| {_title(cells)} | optplug | torch's best | ratio | of the memory limit |",
            "|---|---|---|---|---|",
        ]
        for cell in cells:
            best = f"{_ms(cell.best.median)} ms, `{cell.best.path}`" if cell.best else "-"
            last_columns = f"{_ratio(cell)} | {_fraction(cell)}"
            rows.append(f"| `{cell.optimizer}` | {_ms(cell.ours.median)} ms | {best} | {last_columns} |")
        yield "\n".join([*rows, *(f"\n{note}." for note in cell_notes(cells))])
    yield "With many small tensors the memory limit includes the overhead for each tensor."
    if summary := ratio_summary_lines(report):
        yield "; ".join(summary).capitalize() + "."
