"""The rows of versions that the project is tested with; `make test-versions` runs them."""

from __future__ import annotations

import re
from collections.abc import Sequence
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

    @property
    def name(self) -> str:
        """The minor version of torch."""
        return ".".join(map(str, release(self.torch)[:2]))

    @property
    def packages(self) -> dict[str, str]:
        """The versions of the packages that pip installs, by name."""
        return {
            "torch": self.torch,
            "lightning": self.lightning,
            "pytorch-lightning": self.lightning,
            "numba": self.numba,
        }

    def __str__(self) -> str:
        return f"Python {self.python}, torch {self.torch}, Lightning {self.lightning}, numba {self.numba}"


ROWS = (
    # The oldest supported versions. pyproject.toml declares them.
    Row("3.10", "2.6.0", "2.4.0", "0.60.0"),
    Row("3.11", "2.8.0", "2.5.0", "0.61.2"),
    Row("3.12", "2.11.0", "2.5.6", "0.64.0"),
    Row("3.11", "2.13.0", "2.6.6", "0.68.1"),  # constraints.txt has these
    Row("3.13", "2.14.1", "2.6.6", "0.68.1"),
    Row("3.14", "2.15.0", "2.6.6", "0.68.1"),
)


def select_rows(names: Sequence[str]) -> list[Row]:
    """The rows of these names, in the order of `ROWS`; all rows without names.

    Raises:
        ValueError: no row has one of the names.
    """
    unknown = [name for name in names if name not in {row.name for row in ROWS}]
    if unknown:
        raise ValueError(f"no row {', '.join(unknown)}; the rows are {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if not names or row.name in names]
