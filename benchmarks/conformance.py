"""Test one optimizer of each adapted package with the conformance kit, and write the table of docs/check.md.

Usage: `python benchmarks/conformance.py [NAME ...]`. The packages that are not installed are left out.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from pathlib import Path

from optplug.errors import UnknownNameError
from optplug.testing import ConformanceReport, conformance_report

NAMES = (
    *("torch:adamw", "lion-pytorch:lion", "prodigyopt:prodigy", "schedulefree:schedule_free_adamw"),
    *("dadaptation:dadapt_adam", "timm:adamp", "pytorch-optimizer:splus", "optimi:adam", "heavyball:heavy_soap"),
    *("bitsandbytes:adamw8bit", "torchao:adamw8bit", "torch-optimizer:ranger"),
)
PAGE = Path(__file__).parent.parent / "docs" / "check.md"
START, END = "<!-- reports -->\n", "<!-- end of reports -->\n"


def row(report: ConformanceReport) -> str:
    """Return a report as a row of a table."""
    broken = "; ".join(f"`{each.promise}` ({each.blame}): {each.what}" for each in report.broken)
    cells = (f"`{report.name}`", report.package, str(len(report.kept)), broken.replace("|", "\\|") or "none")
    return f"| {' | '.join(cells)} |\n"


def main(names: list[str]) -> None:
    """Print the table, and write it to the page if all packages are tested."""
    table = "| name | package | kept | broken, and whose fault it is |\n|---|---|---|---|\n"
    for name in names or NAMES:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")
                report = conformance_report(name)
        except UnknownNameError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        print(f"{name}: {report.seconds:.1f} s", file=sys.stderr, flush=True)
        table += row(report)
    print(table)
    if not names:
        text = PAGE.read_text()
        PAGE.write_text(re.sub(f"(?s){START}.*{END}", lambda _: f"{START}{table}{END}", text))


if __name__ == "__main__":
    main(sys.argv[1:])
