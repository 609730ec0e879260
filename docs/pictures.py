"""Draws docs/schedules/NAME.svg for every schedule, with the settings of docs/pictures.yaml.

python docs/pictures.py [NAME ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from optplug.cli.lr_plot import LrPlot, write_picture
from optplug.cli.plot_sources import PlotOptions, make_plot

FOLDER = Path(__file__).parent / "schedules"
STEPS = 1000


def entries() -> dict[str, Any]:
    """The entries of docs/pictures.yaml, by the name of the schedule."""
    found: dict[str, Any] = yaml.safe_load((FOLDER.parent / "pictures.yaml").read_text())
    return found


def plot_of(name: str, entry: Any) -> LrPlot:
    """The plot of a schedule."""
    texts = [json.dumps({"name": name, **arguments}) for arguments in entry["settings"]]
    return make_plot(texts, PlotOptions(steps=STEPS, momentum=entry.get("momentum", False)), title=name)


def description_of(plot: LrPlot) -> str:
    """The data of a plot in short. The file contains it, so that it can be compared whatever the drawing looks like."""
    short = {label: [float(f"{lr:.6g}") for lr in curve.lrs[:: STEPS // 20]] for label, curve in plot.curves}
    return json.dumps(short)


def write(name: str, entry: Any, folder: Path = FOLDER) -> Path:
    """Draw a schedule; return the file."""
    path = folder / f"{name}.svg"
    plot = plot_of(name, entry)
    write_picture(plot, path, description_of(plot))
    return path


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, entry in entries().items():
        if not names or name in names:
            print(write(name, entry))


if __name__ == "__main__":
    main(sys.argv[1:])
