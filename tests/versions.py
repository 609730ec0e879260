"""The rows of versions that the project is tested with."""

from __future__ import annotations

import re
from typing import NamedTuple


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without a suffix: (2, 13, 0) of "2.13.0+cpu"."""
    found = re.match(r"\d+(\.\d+)*", version)
    if found is None:
        raise ValueError(f"not a version: {version!r}")
    return tuple(map(int, found[0].split(".")))


class Row(NamedTuple):
    """Versions that are tested together."""

    python: str
    torch: str
    lightning: str
    numba: str


ROWS = (
    Row("3.10", "2.6.0", "2.4.0", "0.60.0"),
    Row("3.11", "2.8.0", "2.5.0", "0.61.2"),
    Row("3.12", "2.11.0", "2.5.6", "0.64.0"),
    Row("3.11", "2.13.0", "2.6.6", "0.68.1"),  # constraints.txt
    Row("3.13", "2.14.1", "2.6.6", "0.68.1"),
    Row("3.14", "2.15.0", "2.6.6", "0.68.1"),
)
