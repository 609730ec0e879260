"""The results of the rows of versions.py, read from the files of a run, and the tables of docs/versions.md."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

from versions import ROWS, Row

DIFFERENCE = "largest difference from torch: "
"""The first words of the name of a property that parity tests record."""


def difference_property(optimizer: str, dtype: object) -> str:
    """The name of the property with the largest difference from torch."""
    return f"{DIFFERENCE}{optimizer}; {str(dtype).removeprefix('torch.')}"


def suite_name(is_slow: bool, commit: str) -> str:
    """The `junit_suite_name` of a run."""
    tests = "all" if is_slow else "fast"
    return f"{tests}, commit {commit}" if commit else tests


class Result(NamedTuple):
    """The tests of one row.

    Attributes:
        suite: "fast" or "all".
        commit: the short hash, with "+" if the files differed from the commit; empty without Git.
        date: the day on which the tests ran.
        passed: the number of tests that passed.
        failed: the names of the tests that failed, or whose fixtures raised an error.
        skipped: the number of skipped tests, by reason.
        seconds: the duration.
        differences: the largest difference from torch, by optimizer and dtype.
    """

    suite: str
    commit: str
    date: str
    passed: int
    failed: list[str]
    skipped: Counter[str]
    seconds: float
    differences: dict[tuple[str, str], float]

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {len(self.failed)} failed, {self.skipped.total()} skipped"
        return f"{counts}, {self.suite} tests, {round(self.seconds / 60)} min"


def read_result(path: Path) -> Result:
    """The result in a file of `pytest --junit-xml`, whose `junit_suite_name` is a `suite_name`."""
    suite = next(ET.parse(path).iter("testsuite"))
    passed, failed, skipped = 0, [], Counter[str]()
    differences: dict[tuple[str, str], float] = {}
    for case in suite.iter("testcase"):
        reason = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif reason is not None:
            skipped[reason.get("message", "")] += 1
        else:
            passed += 1
        for key, difference in _differences(case):
            differences[key] = max(differences.get(key, 0.0), difference)
    name, _, commit = suite.get("name", "").partition(", commit ")
    date, _, _ = suite.get("timestamp", "").partition("T")
    return Result(name, commit, date, passed, failed, skipped, float(suite.get("time", "0")), differences)


def _differences(case: ET.Element) -> Iterable[tuple[tuple[str, str], float]]:
    for found in case.iter("property"):
        name = found.get("name", "")
        if name.startswith(DIFFERENCE):
            optimizer, _, dtype = name.removeprefix(DIFFERENCE).partition("; ")
            yield (optimizer, dtype), float(found.get("value", "nan"))


def summary(outcomes: Mapping[Row, Result | str]) -> list[str]:
    """One line for each row, the skipped tests by reason, and the names of the failed tests.

    Args:
        outcomes: the result of each row, or the reason why it has none.
    """
    lines = [f"{row.name:5} {row}: {outcome}" for row, outcome in outcomes.items()]
    results = {row: outcome for row, outcome in outcomes.items() if isinstance(outcome, Result)}
    for row, result in results.items():
        lines += [f"{row.name:5} skipped {count}: {reason}" for reason, count in result.skipped.most_common()]
    for row, result in results.items():
        lines += [f"{row.name:5} failed: {name}" for name in result.failed]
    return lines


def update_tables(page: str, folder: Path) -> str:
    """A page with the tables of the results in a folder, between `<!-- table: tests -->` and `<!-- end of table -->`.

    Raises:
        KeyError: a marker names an unknown table.
    """
    results = {row: read_result(file) for row in ROWS if (file := folder / f"{row.name}.xml").exists()}
    times = {row: json.loads(file.read_text()) for row in ROWS if (file := folder / f"{row.name}.json").exists()}
    tables = {
        "tests": _tests_table(results),
        "skipped": _skipped_table(results),
        "parity": _parity_table(results),
        "step time": _time_table(times),
    }
    pattern = r"(<!-- table: ([^\n]+?) -->\n).*?(<!-- end of table -->)"
    return re.sub(pattern, lambda m: m[1] + tables[m[2]] + m[3], page, flags=re.DOTALL)


def _markdown(header: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    header = list(header)
    cells = [header, ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _tests_table(results: Mapping[Row, Result]) -> str:
    lines = []
    for row in ROWS:
        cells: list[Any] = ["not run", *[""] * 6]
        if row in results:
            found = results[row]
            minutes = f"{round(found.seconds / 60)} min"
            counts = (found.passed, len(found.failed), found.skipped.total())
            cells = [found.suite, found.commit, found.date, *counts, minutes]
        lines.append([*row, *cells])
    names = "Python, torch, Lightning, numba, tests, commit, date, passed, failed, skipped, time"
    return _markdown(names.split(", "), lines)


def _skipped_table(results: Mapping[Row, Result]) -> str:
    reasons = dict.fromkeys(reason for found in results.values() for reason in found.skipped)
    lines = [[reason, *(found.skipped[reason] for found in results.values())] for reason in reasons]
    return _markdown(["reason", *(f"torch {row.name}" for row in results)], lines)


def _parity_table(results: Mapping[Row, Result]) -> str:
    lines = [
        [*key, *(f"{found.differences[key]:.1e}" if key in found.differences else "" for found in results.values())]
        for key in sorted({key for found in results.values() for key in found.differences})
    ]
    return _markdown(["optimizer", "dtype", *(f"torch {row.name}" for row in results)], lines)


def _time_table(times: Mapping[Row, Any]) -> str:
    columns = {
        (row, profile): {cell["optimizer"]: cell["ratio"] for cell in report["cells"] if cell["profile"] == profile}
        for row, report in times.items()
        for profile in dict.fromkeys(cell["profile"] for cell in report["cells"])
    }
    optimizers = dict.fromkeys(name for ratios in columns.values() for name in ratios)
    lines = [
        [f"`{name}`", *(f"{ratios[name]:.2f}" if name in ratios else "" for ratios in columns.values())]
        for name in optimizers
    ]
    if columns:
        lines.append(["geometric mean", *(f"{geometric_mean(ratios.values()):.2f}" for ratios in columns.values())])
    return _markdown(["optimizer", *(f"torch {row.name}, `{profile}`" for row, profile in columns)], lines)
