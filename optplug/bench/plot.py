"""The plot of a report: the time of optplug divided by that of torch's fastest path, by profile and optimizer."""

from __future__ import annotations

from pathlib import Path

from optplug.bench.results import Cell, Report, geometric_mean
from optplug.errors import ConfigError, listing

FASTER_COLOR, SLOWER_COLOR, MEMORY_LIMIT_COLOR = "#2a6f97", "#c8553d", "#444444"


def check_plot_path(path: Path) -> None:
    """Check that `draw` can write this file, so that errors are reported before the measurement.

    Raises:
        ConfigError: matplotlib is not installed, or does not support the suffix.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError:
        raise ConfigError("a plot needs matplotlib: pip install 'optplug[demo]'") from None
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".") not in known:
        raise ConfigError(f"a plot {path.name!r} cannot be written; its suffix must be one of {listing(known)}")


def draw(report: Report, path: Path) -> None:
    """Write the plot: one panel for each profile, one bar for each optimizer, and a line at ratio 1.

    Args:
        report: the report; it must have a cell.
        path: the file; its suffix selects the format.

    Raises:
        ConfigError: the report has no cells. Errors of `check_plot_path`.
    """
    check_plot_path(path)
    from matplotlib.figure import Figure

    compared = [(cell, cell.ratio) for cell in report.cells if cell.ratio is not None]
    if not compared:
        raise ConfigError("the report has no cells with a baseline: there is nothing to plot")
    optimizers = list(dict.fromkeys(cell.optimizer for cell, _ in compared))
    profiles = list(dict.fromkeys(cell.profile for cell, _ in compared))
    longest = max(map(len, optimizers))
    width = 1.2 + 0.09 * longest + 2.6 * len(profiles)
    figure = Figure(figsize=(max(width, 7), 1.9 + 0.36 * len(optimizers)), layout="constrained")
    panels = figure.subplots(1, len(profiles), sharex=True, sharey=True, squeeze=False)[0]
    memory_limits = [limit for cell, _ in compared if (limit := cell.limit_ratio) is not None]
    x_limit = 1.22 * max(1.0, *(ratio for _, ratio in compared), *memory_limits)
    for axes, profile in zip(panels, profiles, strict=True):
        cells = [cell for cell, _ in compared if cell.profile == profile]
        positions = [optimizers.index(cell.optimizer) for cell in cells]
        ratios = [ratio for cell, ratio in compared if cell.profile == profile]
        ticks = [
            (y, limit) for y, cell in zip(positions, cells, strict=True) if (limit := cell.limit_ratio) is not None
        ]
        axes.barh(
            positions,
            ratios,
            height=0.68,
            color=[FASTER_COLOR if ratio <= 1 else SLOWER_COLOR for ratio in ratios],
            zorder=2,
        )
        for y, limit in ticks:
            axes.vlines(limit, y - 0.34, y + 0.34, color="white", linewidth=3.5, zorder=3)
            axes.vlines(limit, y - 0.34, y + 0.34, color=MEMORY_LIMIT_COLOR, linewidth=1.8, zorder=4)
        axes.axvline(1, color="black", linewidth=1, zorder=5)
        for y, cell, ratio in zip(positions, cells, ratios, strict=True):
            axes.text(
                max(ratio, dict(ticks).get(y, 0)) + 0.015 * x_limit,
                y,
                f"{ratio:.2f}{'?' * cell.is_doubtful}",
                va="center",
                fontsize=9,
                zorder=6,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
        with_torch = [r for cell, r in zip(cells, ratios, strict=True) if cell.is_compared_with_torch]
        mean = geometric_mean(with_torch)
        axes.set_title(f"{profile}\n{_size(cells[0])}\nmean {mean:.2f}", fontsize=10)
        axes.set_xlim(0, x_limit)
        axes.grid(axis="x", color="#dddddd", zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    without_torch = {cell.optimizer for cell, _ in compared if not cell.is_compared_with_torch}
    panels[0].set_yticks(
        range(len(optimizers)), [f"{name} (own loop)" if name in without_torch else name for name in optimizers]
    )
    panels[0].invert_yaxis()
    machine, versions = report.machine, report.versions
    figure.suptitle("One step: optplug's time divided by that of torch's fastest path", fontsize=12, x=0.01, ha="left")
    figure.supxlabel(
        "Below 1 optplug is faster; the tick is the memory limit.  "
        f"{machine['cpu']}, {machine['threads']} threads, torch {versions.get('torch', 'unknown')}",
        fontsize=8.5,
    )
    figure.savefig(path, dpi=150)


def _size(cell: Cell) -> str:
    """Return the number of tensors and of their elements, e.g. `161 tensors, 25.6 M`."""
    tensors = f"{cell.tensors:,} {'tensor' if cell.tensors == 1 else 'tensors'}"
    number = cell.elements
    short = f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number / 1e3:.3g} k" if number >= 1e3 else str(number)
    return f"{tensors}, {short}"
