"""Tables of text. They need no rich, whose import and layout take longer than the rest of `optplug list`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

import typer

MIN_WIDTH = 20
"""The smallest width of the last column on a terminal, in characters."""


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. On a terminal the last column is wrapped, and else each row is one line."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = max(MIN_WIDTH, shutil.get_terminal_size().columns - indent) if sys.stdout.isatty() else None
    for row in (header, *rows):
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        last = row[-1] if room is None else f"\n{' ' * indent}".join(textwrap.wrap(row[-1], room))
        typer.secho(f"{start}{last}".rstrip(), bold=row is header)
