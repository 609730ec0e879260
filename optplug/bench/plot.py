"""The picture of a report: for every profile, our time over torch's best, by optimizer."""

from __future__ import annotations

from pathlib import Path

from optplug.bench.results import Cell, Report, geometric_mean
from optplug.errors import ConfigError, listing

FASTER, SLOWER, LIMIT = "#2a6f97", "#c8553d", "#444444"


def check(path: Path) -> None:
    """Refuse what `draw` could not write, before anything is measured.

    Raises:
        ConfigError: matplotlib is missing, or writes no files that end like this.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError:
        raise ConfigError("a picture needs matplotlib: pip install 'optplug[demo]'") from None
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in known:
        raise ConfigError(f"a picture {path.name!r} cannot be written; its name may end in {listing(known)}")


def draw(report: Report, path: Path) -> None:
    """Write the picture: a panel for every profile, a bar for every optimizer, torch's best path at 1.

    Args:
        report: with one cell at least. path: its suffix says in which format.

    Raises:
        ConfigError: as `check`, or there is nothing to draw.
    """
    check(path)
    from matplotlib.figure import Figure

    if not report.cells:
        raise ConfigError("nothing was measured: there is nothing to draw")
    optimizers = list(dict.fromkeys(cell.optimizer for cell in report.cells))
    longest = max(map(len, optimizers))
    width = 1.2 + 0.09 * longest + 2.6 * len(report.profiles)
    figure = Figure(figsize=(max(width, 7), 1.9 + 0.36 * len(optimizers)), layout="constrained")
    panels = figure.subplots(1, len(report.profiles), sharex=True, sharey=True, squeeze=False)[0]
    reach = 1.22 * max(1.0, *(cell.ratio for cell in report.cells))
    for axes, profile in zip(panels, report.profiles, strict=True):
        cells = report.on(profile)
        at = [optimizers.index(cell.optimizer) for cell in cells]
        ratios = [cell.ratio for cell in cells]
        ticks = [(y, c.limit.median / c.best.median) for y, c in zip(at, cells, strict=True) if c.fraction is not None]
        axes.barh(at, ratios, height=0.68, color=[FASTER if ratio <= 1 else SLOWER for ratio in ratios], zorder=2)
        for y, limit in ticks:
            axes.vlines(limit, y - 0.34, y + 0.34, color="white", linewidth=3.5, zorder=3)
            axes.vlines(limit, y - 0.34, y + 0.34, color=LIMIT, linewidth=1.8, zorder=4)
        axes.axvline(1, color="black", linewidth=1, zorder=5)
        for y, cell in zip(at, cells, strict=True):
            axes.text(
                max(cell.ratio, dict(ticks).get(y, 0)) + 0.015 * reach,
                y,
                f"{cell.ratio:.2f}{'?' * cell.doubtful}",
                va="center",
                fontsize=9,
                zorder=6,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
        axes.set_title(
            f"{profile}\n{_size(cells[0])}\nmean {geometric_mean(c.ratio for c in cells if c.of_torch):.2f}",
            fontsize=10,
        )
        axes.set_xlim(0, reach)
        axes.grid(axis="x", color="#dddddd", zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    alone = {cell.optimizer for cell in report.cells if not cell.of_torch}
    panels[0].set_yticks(range(len(optimizers)), [f"{one} (own loop)" if one in alone else one for one in optimizers])
    panels[0].invert_yaxis()
    machine, versions = report.machine, report.versions
    figure.suptitle("One step: optplug's time over that of torch's fastest path", fontsize=12, x=0.01, ha="left")
    figure.supxlabel(
        "below 1 optplug is faster; the tick is the memory limit.  "
        f"{machine['cpu']}, {machine['threads']} threads, torch {versions.get('torch', 'unknown')}",
        fontsize=8.5,
    )
    figure.savefig(path, dpi=150)


def _size(cell: Cell) -> str:
    """`161 tensors, 25.6 M`: how many elements they have together."""
    tensors = f"{cell.tensors:,} {'tensor' if cell.tensors == 1 else 'tensors'}"
    number = cell.elements
    short = f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number / 1e3:.3g} k" if number >= 1e3 else str(number)
    return f"{tensors}, {short}"
