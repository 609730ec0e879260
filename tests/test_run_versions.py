"""The script that tests rows of versions: the choice of rows, the environments, and the tables of the results."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

import run_versions
from run_versions import RowError, check_versions, environment_of, find_python, requirements
from version_results import difference_property, read_result, summary, update_tables
from versions import ROWS, release, select_rows

OLDEST = ROWS[0]

JUNIT = f"""<testsuites><testsuite name="fast" errors="1" failures="1" skipped="3" tests="7" time="125.4"
 timestamp="2026-01-02T03:04:05.678">
<testcase classname="tests.test_a" name="test_passes"><properties>
<property name="{difference_property("adam", "torch.float64")}" value="1e-15"/></properties></testcase>
<testcase classname="tests.test_a" name="test_passes_too"><properties>
<property name="{difference_property("adam", "torch.float64")}" value="2.5e-14"/></properties></testcase>
<testcase classname="tests.test_a" name="test_fails"><failure message="m">text</failure></testcase>
<testcase classname="tests.test_a" name="test_has_an_error"><error message="m">text</error></testcase>
<testcase classname="tests.test_a" name="test_a[1]"><skipped message="needs a | b"/></testcase>
<testcase classname="tests.test_a" name="test_a[2]"><skipped message="needs a | b"/></testcase>
<testcase classname="tests.test_a" name="test_b"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""

PAGE = """before
<!-- table: tests -->
<!-- end of table -->
<!-- table: skipped -->
<!-- end of table -->
<!-- table: parity -->
| old |
<!-- end of table -->
<!-- table: step time -->
<!-- end of table -->
"""


@pytest.fixture
def results(tmp_path):
    """A folder with the results of the oldest row."""
    (tmp_path / f"{OLDEST.name}.xml").write_text(JUNIT)
    cells = [{"optimizer": name, "profile": "tiny", "ratio": r} for name, r in (("adam", 0.25), ("sgd", 1.0))]
    (tmp_path / f"{OLDEST.name}.json").write_text(json.dumps({"cells": cells}))
    return tmp_path


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("2.6", (2, 6)), ("2.15.0rc1", (2, 15, 0))]
)
def test_release_has_the_numbers_of_a_version(version, numbers):
    assert release(version) == numbers


def test_every_row_is_selected_without_names_and_names_are_unique():
    assert select_rows([]) == [*ROWS]
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_named_rows_are_selected_in_the_order_of_the_table():
    assert select_rows([ROWS[-1].name, OLDEST.name]) == [OLDEST, ROWS[-1]]


def test_an_unknown_row_is_an_error_that_names_the_rows(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_versions.main(["1.0"])
    assert f"no row 1.0; the rows are {', '.join(row.name for row in ROWS)}" in capsys.readouterr().err


def test_junit_file_is_counted(results):
    found = read_result(results / f"{OLDEST.name}.xml")
    assert (found.suite, found.date, found.passed, found.seconds) == ("fast", "2026-01-02", 2, 125.4)
    assert found.failed == ["tests.test_a::test_fails", "tests.test_a::test_has_an_error"]
    assert found.skipped == {"needs a | b": 2, "no GPU": 1}
    assert found.differences == {("adam", "float64"): 2.5e-14}


def test_summary_has_one_line_for_each_row_then_reasons_and_failures(results):
    outcomes = {OLDEST: read_result(results / f"{OLDEST.name}.xml"), ROWS[-1]: "not run: python3.14 not found"}
    assert summary(outcomes) == [
        f"2.6   {OLDEST}: 2 passed, 2 failed, 3 skipped, fast tests, 2 min",
        f"2.15  {ROWS[-1]}: not run: python3.14 not found",
        "2.6   skipped 2: needs a | b",
        "2.6   skipped 1: no GPU",
        "2.6   failed: tests.test_a::test_fails",
        "2.6   failed: tests.test_a::test_has_an_error",
    ]


def test_tables_are_written_between_their_markers(results):
    page = update_tables(PAGE, results)
    assert f"| {' | '.join(OLDEST)} | fast | 2026-01-02 | 2 | 2 | 3 | 2 min |\n" in page
    assert f"| {' | '.join(ROWS[-1])} | not run |" in page
    assert "| needs a \\| b | 2 |\n" in page
    assert "| adam | float64 | 2.5e-14 |\n" in page
    assert "| `adam` | 0.25 |\n| `sgd` | 1.00 |\n| geometric mean | 0.50 |\n" in page
    assert page.startswith("before\n<!-- table: tests -->\n")
    assert "old" not in page
    assert update_tables(page, results) == page


def test_a_temporary_environment_is_removed_after_an_interruption():
    folders = []

    def interrupt():
        with environment_of(OLDEST, None) as folder:
            folder.mkdir()
            folders.append(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not folders[0].parent.exists()


def test_a_kept_environment_stays(tmp_path):
    with environment_of(OLDEST, tmp_path) as folder:
        folder.mkdir()
    assert folder == tmp_path / OLDEST.name
    assert folder.exists()


def test_python_on_the_path_has_to_run(tmp_path, monkeypatch):
    command = tmp_path / "python9.9"
    command.write_text("#!/bin/sh\nexit 127\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RowError, match=r"python9\.9 not found"):
        find_python("9.9")
    command.write_text("#!/bin/sh\nexit 0\n")
    assert find_python("9.9") == str(command)


def test_a_row_whose_python_is_missing_is_reported(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(run_versions, "RESULTS", tmp_path / "results")
    assert run_versions.run_rows([OLDEST], None, is_slow=False) == 1
    assert f"{OLDEST}: not run: python{OLDEST.python} not found" in capsys.readouterr().out


def test_installed_versions_have_to_be_those_of_the_row():
    installed = {"python": OLDEST.python, **OLDEST.packages, "torch": f"{OLDEST.torch}+cpu"}
    check_versions(OLDEST, installed)
    with pytest.raises(RowError, match=r"^installed is numba 0\.1, not 0\.60\.0$"):
        check_versions(OLDEST, {**installed, "numba": "0.1"})


def test_a_row_with_a_file_of_constraints_is_installed_with_all_of_them():
    given = [(row, a) for row in ROWS for a in requirements(row, run_versions.ROOT) if a.startswith("--constraint")]
    (latest,) = (row for row, _ in given[1:])
    assert given == [
        (OLDEST, f"--constraint={run_versions.ROOT / 'constraints-oldest.txt'}"),
        (latest, f"--constraint={run_versions.ROOT / 'constraints.txt'}"),
    ]


def test_an_interrupted_command_ends_with_its_children():
    """The grandchild keeps a pipe open until it ends."""
    grandchild = "print('ready', flush=True); import time; time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    script = (  # a process in the background inherits that SIGINT is ignored
        "import signal, sys, run_versions; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"run_versions.run(sys.executable, '-c', {child!r}, output=sys.stdout)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=run_versions.ROOT / "tests", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    while b"ready" not in process.stdout.readline().split():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=50)
