"""Curves drawn with characters: two by four dots of braille for each character, or `*` where braille is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

BITS = ((1, 8), (2, 16), (4, 32), (64, 128))
"""The bit of each dot of a braille character, by row and column."""

MARKS = "abcdefghijklmnopqrstuvwxyz"
"""The letters of the curves: with them, curves can be told apart without colors."""

Cell = tuple[str, int | None]
"""A character, and the index of its curve; None outside the curves."""


def draw_curves(
    curves: Sequence[Sequence[float]], ends: tuple[float, float], columns: int, rows: int, *, braille: bool = True
) -> list[list[Cell]]:
    """Draw curves over the same axis, each with its letter; a single curve has none.

    Args:
        curves: the values of each, at equal distances from the first to the last column; NaN is not drawn.
        ends: the values of the lowest and of the highest row.
        columns: the width in characters.
        rows: the height in characters.
        braille: whether the terminal has braille characters.
    """
    bits = [[0] * columns for _ in range(rows)]
    owner: list[list[int | None]] = [[None] * columns for _ in range(rows)]
    marks: dict[tuple[int, int], str] = {}
    for k, values in enumerate(curves):
        for x, top, bottom in _dot_columns(values, ends, 2 * columns, 4 * rows):
            for y in range(top, bottom + 1):
                bits[y // 4][x // 2] |= BITS[y % 4][x % 2]
                owner[y // 4][x // 2] = k
            if len(curves) > 1 and x // 2 % (4 * len(curves)) == 4 * k + 2:
                marks[(top + bottom) // 8, x // 2] = MARKS[k % len(MARKS)]
                owner[(top + bottom) // 8][x // 2] = k
    dots = [[(chr(0x2800 + b) if braille else "*") if b else " " for b in line] for line in bits]
    return [[(marks.get((y, x), dot), owner[y][x]) for x, dot in enumerate(line)] for y, line in enumerate(dots)]


def _dot_columns(
    values: Sequence[float], ends: tuple[float, float], width: int, height: int
) -> list[tuple[int, int, int]]:
    """The dots of a curve: for each column of dots its index, and the rows of the highest and of the lowest dot."""
    low, high = ends
    found, last = [], len(values) - 1
    before: list[float] = []
    for x in range(width):
        start = x * last // (width - 1)
        part = [v for v in values[start : max(start + 1, (x + 1) * last // (width - 1))] if not math.isnan(v)]
        if not part:
            before = []
            continue
        top, bottom = (
            min(max(round((high - value) / (high - low) * (height - 1)), 0), height - 1)
            for value in (max(part + before), min(part + before))
        )
        found.append((x, top, bottom))
        before = part[-1:]  # a vertical line connects the columns
    return found


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` + 1 round numbers at equal distances between two numbers."""
    span = (high - low) / count
    power = 10.0 ** math.floor(math.log10(span))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
