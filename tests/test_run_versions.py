"""The script that tests rows of versions: the choice of rows, the environments, and the tables of the results.

Whole runs use commands `pythonX.Y` that imitate venv, pip and pytest.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import run_versions
from run_versions import RowError, check_versions, clean_environ, environment_of, find_python, requirements
from source_tree import source_files
from version_results import difference_property, read_result, summary, update_tables
from versions import ROWS, release, select_rows

OLDEST, NEWEST = ROWS[0], ROWS[-1]

JUNIT = f"""<testsuites><testsuite name="fast, commit 1a2b3c4" errors="1" failures="1" skipped="3" tests="7"
 time="125.4" timestamp="2026-01-02T03:04:05.678">
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
    assert select_rows([NEWEST.name, OLDEST.name]) == [OLDEST, NEWEST]


def test_an_unknown_row_is_an_error_that_names_the_rows(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_versions.main(["1.0"])
    assert f"no row 1.0; the rows are {', '.join(row.name for row in ROWS)}" in capsys.readouterr().err


def test_junit_file_is_counted(results):
    found = read_result(results / f"{OLDEST.name}.xml")
    assert (found.suite, found.commit, found.date) == ("fast", "1a2b3c4", "2026-01-02")
    assert (found.passed, found.seconds) == (2, 125.4)
    assert found.failed == ["tests.test_a::test_fails", "tests.test_a::test_has_an_error"]
    assert found.skipped == {"needs a | b": 2, "no GPU": 1}
    assert found.differences == {("adam", "float64"): 2.5e-14}


def test_summary_has_one_line_for_each_row_then_reasons_and_failures(results):
    outcomes = {OLDEST: read_result(results / f"{OLDEST.name}.xml"), NEWEST: "not run: python3.14 not found"}
    assert summary(outcomes) == [
        f"2.6   {OLDEST}: 2 passed, 2 failed, 3 skipped, fast tests, 2 min",
        f"2.15  {NEWEST}: not run: python3.14 not found",
        "2.6   skipped 2: needs a | b",
        "2.6   skipped 1: no GPU",
        "2.6   failed: tests.test_a::test_fails",
        "2.6   failed: tests.test_a::test_has_an_error",
    ]


def test_tables_are_written_between_their_markers(results):
    page = update_tables(PAGE, results)
    assert f"| {' | '.join(OLDEST)} | fast | 1a2b3c4 | 2026-01-02 | 2 | 2 | 3 | 2 min |\n" in page
    assert f"| {' | '.join(NEWEST)} | not run |" in page
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


def test_variables_that_change_the_tests_are_not_passed_on(monkeypatch):
    for name in ("PYTHONPATH", "PYTHONOPTIMIZE", "PYTEST_ADDOPTS", "VIRTUAL_ENV", "TMPDIR"):
        monkeypatch.setenv(name, "x")
    assert {"PYTHONPATH", "PYTHONOPTIMIZE", "PYTEST_ADDOPTS", "VIRTUAL_ENV", "TMPDIR"} & {*clean_environ()} == {
        "TMPDIR"
    }


def test_make_passes_its_variables_on():
    for slow, option in (("SLOW=0", []), ("SLOW=1", ["--slow"])):
        command = ["make", "--dry-run", "--no-print-directory", "test-versions"]
        command += ["ROWS=2.6 2.15", "ENVIRONMENTS=a folder", slow]
        printed = subprocess.run(command, cwd=run_versions.ROOT, check=True, capture_output=True, text=True).stdout
        assert shlex.split(printed)[2:] == ["2.6", "2.15", *option, "--environments", "a folder"]


def test_without_git_the_files_are_those_outside_of_generated_folders(tmp_path):
    kept = ["a.py", "docs/build.md", "docs/runs/b.py", "tests/c.py"]
    others = [
        "PKG-INFO",
        "runs/r.xml",
        "docs/build/x",
        "a.egg-info/x",
        "tests/__pycache__/x",
        "env/pyvenv.cfg",
        "env/x",
    ]
    for name in [*kept, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    ignored = (run_versions.ROOT / ".gitignore").read_text()
    assert all(line.endswith("/") for line in ignored.splitlines())
    (tmp_path / ".gitignore").write_text(ignored)
    (tmp_path / "link").symlink_to("missing")
    assert source_files(tmp_path) == sorted([".gitignore", "link", *kept])


FAKE_PYTHON = f"""#!{sys.executable} -S
import json, os, shutil, sys, time
from pathlib import Path

command = " ".join(sys.argv[1:])
if os.environ.get("FAKE_FAILURE", "no failure") in command:
    sys.exit(4)
if command.startswith("-m venv"):
    folder = Path(sys.argv[-1])
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    shutil.copy(__file__, folder / "bin" / "python")
elif command.startswith("-m pytest"):
    if "FAKE_SIGNAL" in os.environ:
        os.kill(os.getppid(), int(os.environ["FAKE_SIGNAL"]))
        time.sleep(0.5)
    (suite,) = (a.partition("=")[2] for a in sys.argv if a.startswith("junit_suite_name="))
    file = Path(sys.argv[sys.argv.index("--junit-xml") + 1])
    file.write_text(f'<testsuites><testsuite name="{{suite}}"><testcase/></testsuite></testsuites>')
elif sys.argv[1] == "-c" and sys.argv[3:]:
    versions = { ({row.name: {"python": row.python, **row.packages} for row in ROWS}) }
    print(json.dumps(versions[Path(__file__).parts[-3]]))
"""


class Checkout:
    """A Git repository with the script, fake commands `pythonX.Y`, and an untracked file."""

    def __init__(self, folder: Path) -> None:
        self.root, self.commands, self.temporary = folder / "checkout", folder / "bin", folder / "temporary"
        for created in (self.root / "tests", self.commands, self.temporary):
            created.mkdir(parents=True)
        for name in ("run_versions.py", "source_tree.py", "version_results.py", "versions.py"):
            shutil.copy(run_versions.ROOT / "tests" / name, self.root / "tests" / name)
        for row in (OLDEST, NEWEST):
            command = self.commands / f"python{row.python}"
            command.write_text(FAKE_PYTHON)
            command.chmod(0o755)
        (self.root / "link").symlink_to("missing")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "commit", "--quiet", "-ma")
        (self.root / ".python-version").touch()

    def git(self, *command: str) -> str:
        return subprocess.run(["git", *command], cwd=self.root, check=True, capture_output=True, text=True).stdout

    def run(self, *arguments: str, action: str = "SIG_DFL", **variables: str) -> tuple[int, str]:
        """The exit status and the output of the script, where SIGHUP has an action, without installed packages."""
        code = f"import signal, sys; signal.signal(signal.SIGHUP, signal.{action}); import run_versions as r; "
        ran = subprocess.run(
            [sys.executable, "-S", "-c", f"{code}sys.exit(r.main({[*arguments]}))"],
            cwd=self.root / "tests",
            env={"PATH": f"{self.commands}:{os.environ['PATH']}", "TMPDIR": str(self.temporary), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
        )
        return ran.returncode, ran.stdout

    @property
    def results(self) -> Path:
        return self.root / "runs" / "versions"


@pytest.fixture
def checkout(tmp_path):
    if not shutil.which("git"):
        pytest.skip("no git")
    return Checkout(tmp_path)


def test_rows_are_installed_and_tested_and_their_environments_removed(checkout):
    status, output = checkout.run(OLDEST.name, NEWEST.name)
    assert status == 0, output
    for row in (OLDEST, NEWEST):
        assert f"{row}: 1 passed, 0 failed, 0 skipped, fast tests" in output
        log = (checkout.results / f"{row.name}.log").read_text()
        assert f"-m pip install torch=={row.torch} lightning=={row.lightning}" in log
        assert "-m not slow" in log
    assert not [*checkout.temporary.iterdir()]


def test_the_copy_has_the_files_that_git_tracks(checkout, tmp_path):
    tracked = checkout.git("ls-files").splitlines()
    (checkout.root / "removed").touch()
    checkout.git("add", "removed")
    (checkout.root / "removed").unlink()
    for _ in range(2):
        status, output = checkout.run(OLDEST.name, "--environments", str(tmp_path / "kept"))
        assert status == 0, output
        copied = tmp_path / "kept" / OLDEST.name / "source"
        files = [path.relative_to(copied).as_posix() for path in copied.rglob("*") if not path.is_dir()]
        assert sorted(files) == tracked
        (copied / "left_by_a_test.py").touch()


def test_the_table_has_the_tests_and_the_commit_of_each_row(checkout):
    page = checkout.root / "page.md"
    page.write_text(PAGE)
    commit = checkout.git("rev-parse", "--short", "HEAD").strip()
    checkout.run(OLDEST.name)
    with (checkout.root / "tests" / "run_versions.py").open("a") as file:
        file.write("\n")
    checkout.run(NEWEST.name, "--slow")
    assert "not slow" not in (checkout.results / f"{NEWEST.name}.log").read_text()
    assert checkout.run("--write", str(page)) == (0, "")
    assert f"| {' | '.join(OLDEST)} | fast | {commit} |" in page.read_text()
    assert f"| {' | '.join(NEWEST)} | all | {commit}+ |" in page.read_text()


def test_a_row_that_cannot_be_installed_does_not_stop_the_others(checkout):
    status, output = checkout.run(OLDEST.name, NEWEST.name, FAKE_FAILURE=f"torch=={OLDEST.torch}")
    assert status == 1
    assert f"{OLDEST}: not run: `-m pip install` ended with status 4, see {checkout.results}" in output
    assert f"{NEWEST}: 1 passed" in output
    assert not [*checkout.temporary.iterdir()]


def test_an_error_of_the_system_does_not_stop_the_other_rows(checkout):
    (checkout.results / f"{OLDEST.name}.log").mkdir(parents=True)
    status, output = checkout.run(OLDEST.name, NEWEST.name)
    assert status == 1
    assert f"{OLDEST}: not run: [Errno 21] Is a directory" in output
    assert f"{NEWEST}: 1 passed" in output


def test_an_incomplete_environment_is_created_again(checkout, tmp_path):
    python = tmp_path / "kept" / OLDEST.name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    for created in (True, False):
        status, output = checkout.run(OLDEST.name, "--environments", str(tmp_path / "kept"))
        assert status == 0, output
        assert ("-m venv" in (checkout.results / f"{OLDEST.name}.log").read_text()) == created


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_the_environment_is_removed_after_a_signal(checkout, number):
    status, output = checkout.run(OLDEST.name, NEWEST.name, FAKE_SIGNAL=str(int(number)))
    assert status == 128 + number, output
    assert f"{NEWEST.name}: " not in output
    assert not [*checkout.temporary.iterdir()]


def test_a_closed_terminal_does_not_end_a_run_under_nohup(checkout):
    status, output = checkout.run(OLDEST.name, action="SIG_IGN", FAKE_SIGNAL=str(int(signal.SIGHUP)))
    assert status == 0, output


def test_a_second_signal_does_not_interrupt_the_removal(monkeypatch):
    handlers = {signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    with pytest.raises(SystemExit, match="129"):
        run_versions.exit_on_signal(signal.SIGHUP, None)
    assert {*handlers.values()} == {signal.SIG_IGN}
