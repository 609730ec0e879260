"""Curves of learning rates as text for a terminal, and as a picture (matplotlib)."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from optplug.bench.plot import check_plot_path
from optplug.cli.terminal_plot import MARKS, draw_curves, ticks
from optplug.config.lr_curves import Curve

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
"""Okabe and Ito's colors, which color-blind readers can tell apart."""

DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
"""Curves differ in their dashes too: where two of them coincide, both are visible."""

TERMINAL_COLORS = ("color(32)", "color(166)", "color(35)", "color(170)", "color(38)", "color(136)", "color(244)")
"""Similar colors that are readable on a dark and on a light background."""


MAX_DECADES = 8
"""The length of a logarithmic axis: a schedule that ends at 0 comes arbitrarily close to it."""


LINE = 92
"""The number of characters in a line of the legend of a picture."""


@dataclass(frozen=True)
class LrPlot:
    """What is drawn.

    Attributes:
        curves: the curves, each with its label.
        title: the title.
        x_label: the unit of the horizontal axis.
        caption: remarks, one for each line.
        log: whether the learning rate has a logarithmic axis.
        momentum: whether a second panel shows the momentum.
    """

    curves: Sequence[tuple[str, Curve]]
    title: str
    x_label: str
    caption: Sequence[str] = ()
    log: bool = False
    momentum: bool = False

    @property
    def y_label(self) -> str:
        return "learning rate (log scale)" if self.log else "learning rate"

    def to_json(self) -> str:
        """The numbers."""
        data = {
            "x": self.x_label,
            "caption": list(self.caption),
            "curves": [
                {
                    "label": label,
                    "groups": list(curve.groups),
                    "lr": list(curve.lrs),
                    **({"momentum": list(curve.momentums)} if curve.momentums else {}),
                }
                for label, curve in self.curves
            ],
        }
        return json.dumps(data) + "\n"


# ------------------------------------------------------------------------------------------ picture


def write_picture(plot: LrPlot, path: Path, description: str | None = None) -> None:
    """Write a picture. The bytes of an SVG depend on nothing but the arguments and the version of matplotlib.

    Args:
        plot: what is drawn.
        path: the file; its suffix selects the format.
        description: metadata of an SVG. Default: none.

    Raises:
        ConfigError: errors of `optplug.bench.plot.check_plot_path`.
    """
    check_plot_path(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    caption = [line for text in plot.caption for line in textwrap.wrap(text, LINE)]
    labels = [textwrap.fill(textwrap.shorten(label, 3 * LINE, placeholder=" ..."), LINE) for label, _ in plot.curves]
    columns = 2 if max(map(len, labels)) < LINE // 2 and len(labels) > 1 else 1
    below = math.ceil(sum(label.count("\n") + 1 for label in labels) / columns) + len(caption)
    figure = Figure(figsize=(7, 2.8 + 0.2 * below + 1.2 * plot.momentum), layout="constrained", facecolor="white")
    ratios = [2, 1] if plot.momentum else [1]
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for k, (label, (_, curve)) in enumerate(zip(labels, plot.curves, strict=True)):
        style: Any = {
            "color": COLORS[k % len(COLORS)],
            "linestyle": DASHES[k % len(DASHES)],
            "linewidth": 1.8,
            "drawstyle": "steps-post" if len(curve.lrs) <= 200 else "default",
            "label": label,
        }
        panels[0].plot(curve.lrs, **style)
        if plot.momentum:
            panels[1].plot(curve.momentums, **style)
    for axes, name in zip(panels, (plot.y_label, "momentum"), strict=False):
        axes.set_ylabel(name)
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    if plot.log:
        panels[0].set_yscale("log", nonpositive="clip")
        positive = [lr for _, curve in plot.curves for lr in curve.lrs if lr > 0]
        if positive:
            panels[0].set_ylim(bottom=max(min(positive), max(positive) * 10**-MAX_DECADES) / 1.5)
    else:
        top = panels[0].get_ylim()[1]
        panels[0].set_ylim(bottom=min(-0.02 * top, panels[0].get_ylim()[0]))
    panels[-1].set_xlabel(plot.x_label)
    panels[-1].xaxis.set_major_formatter("{x:,.0f}")
    figure.suptitle(textwrap.fill(plot.title, LINE * 3 // 4), fontsize=12, x=0.02, ha="left")
    handles, _ = panels[0].get_legend_handles_labels()
    if plot.caption or len(handles) > 1 or not plot.title.endswith(plot.curves[0][0]):
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize=9,
            handlelength=3,
            title="\n".join(caption) or None,
            title_fontsize=9,
            alignment="left",
        )
    # Text of an SVG as text, not as outlines: half the size, and it can be searched and read aloud.
    with rc_context({"svg.hashsalt": "optplug", "svg.fonttype": "none", "path.simplify_threshold": 0.2}):
        metadata = {"Date": None, "Description": description} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


# ----------------------------------------------------------------------------------------- terminal


def plot_as_text(plot: LrPlot, width: int, rows: int = 16, *, braille: bool = True) -> Text:
    """Draw the curves with characters, with axes, legend and caption.

    Args:
        plot: what is drawn.
        width: the width of the terminal.
        rows: the number of lines of the curves. Default: 16.
        braille: whether the terminal has braille characters, and lines for the axes. Default: True.
    """
    text = Text().append(f"{plot.title}\n\n", "bold")
    lrs = [curve.lrs for _, curve in plot.curves]
    text.append_text(_panel(plot.y_label, lrs, size=(width, rows), log=plot.log, braille=braille))
    if plot.momentum:
        momentums = [curve.momentums for _, curve in plot.curves]
        text.append_text(_panel("momentum", momentums, size=(width, rows // 2), from_zero=False, braille=braille))
    text.append(f"{plot.x_label:>{width - 1}}\n")
    for k, (label, _) in enumerate(plot.curves):
        if len(plot.curves) > 1:
            text.append(f"  {MARKS[k % len(MARKS)]}  ", f"bold {_color(k)}").append(f"{label}\n")
        elif not plot.title.endswith(label):
            text.append(f"  {label}\n")
    return text.append("".join(f"  {line}\n" for line in plot.caption))


def _color(k: int) -> str:
    return TERMINAL_COLORS[k % len(TERMINAL_COLORS)]


def _panel(
    name: str,
    curves: Sequence[Sequence[float]],
    *,
    size: tuple[int, int],
    log: bool = False,
    from_zero: bool = True,
    braille: bool = True,
) -> Text:
    """Curves with a vertical and a horizontal axis."""
    width, rows = size
    if log:
        curves = [[math.log10(value) if value > 0 else math.nan for value in values] for values in curves]
    known = [value for values in curves for value in values if not math.isnan(value)] or [0.0]
    high = max(known)
    low = max(min(known), high - MAX_DECADES) if log else min(0.0, *known) if from_zero else min(known)
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    labels = {
        round((high - value) / (high - low) * (4 * rows - 1)) // 4: f"{10**value:.2g}" if log else f"{value:.6g}"
        for value in ticks(low, high, 5)
    }
    margin = max(map(len, labels.values()), default=0) + 2
    columns = max(width - margin - 2, 10)
    line, corner, down, right = "│└┬─" if braille else "|++-"
    text = Text(f"{name}\n")
    for y, cells in enumerate(draw_curves(curves, (low, high), columns, rows, braille=braille)):
        text.append(f"{labels.get(y, ''):>{margin - 1}} {'┤' if braille and y in labels else line}")
        for character, k in cells:
            text.append(character, None if k is None else _color(k))
        text.append("\n")
    last = len(curves[0]) - 1
    whole = [value for value in ticks(0, last, max(columns // 11, 1)) if abs(value - round(value)) < 1e-6]
    places = {round(value / last * (columns - 1)): f"{round(value):,}" for value in whole}
    text.append(f"{' ' * margin}{corner}{''.join(down if x in places else right for x in range(columns))}\n")
    numbers = ""
    for x, number in places.items():
        numbers = numbers.ljust(min(margin + 1 + x - len(number) // 2, width - 1 - len(number))) + number
    return text.append(f"{numbers}\n")
