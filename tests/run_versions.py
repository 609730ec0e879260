"""Run the tests with the rows of versions.py, each row in an environment of its own.

    python tests/run_versions.py [ROW ...] [--slow] [--environments DIR]
    python tests/run_versions.py --write docs/versions.md    # the tables, from the results of earlier runs

A row needs its Python on the PATH. `runs/versions` gets the output and the JUnit file of each row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from source_tree import commit, copy_source
from version_results import Result, read_result, suite_name, summary, update_tables
from versions import Row, release, select_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "runs" / "versions"
EXTRAS = "cli,cpu,demo,test"

INSTALLED = """
import json, sys
from importlib.metadata import version
found = {"python": "%d.%d" % sys.version_info[:2], **{name: version(name) for name in sys.argv[1:]}}
print(json.dumps(found))
"""


class RowError(Exception):
    """A row cannot be tested; the message says why."""


def find_python(version: str) -> str:
    """The path of `pythonX.Y` on the PATH.

    Raises:
        RowError: there is none that runs. A version manager may put a command there for a version it does not have.
    """
    for folder in os.get_exec_path():
        found = shutil.which(f"python{version}", path=folder)
        if found and succeeds(found, "-c", ""):
            return found
    raise RowError(f"python{version} not found")


def succeeds(*command: str) -> bool:
    """Whether a command exists and ends without an error."""
    try:
        return subprocess.run(command, check=False, capture_output=True, env=clean_environ()).returncode == 0
    except OSError:
        return False


@contextmanager
def environment_of(row: Row, kept: Path | None) -> Iterator[Path]:
    """The folder of the row's environment: in `kept`, or temporary, then it is removed at the end."""
    if kept is not None:
        yield kept.resolve() / row.name
        return
    with tempfile.TemporaryDirectory(prefix=f"optplug-{row.name}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / row.name


def run_row(row: Row, kept: Path | None, is_slow: bool) -> Result:
    """Install the row's versions, and run the tests.

    Raises:
        RowError, OSError, subprocess.CalledProcessError: something failed that is not a test.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    junit, log = RESULTS / f"{row.name}.xml", RESULTS / f"{row.name}.log"
    junit.unlink(missing_ok=True)
    with environment_of(row, kept) as environment, log.open("w") as output:
        python, source = environment / "bin" / "python", environment / "source"
        if not succeeds(str(python), "-m", "pip", "--version"):  # new, or its creation was interrupted
            run(find_python(row.python), "-m", "venv", "--clear", str(environment), output=output)
        suite = suite_name(is_slow, commit(ROOT))
        copy_source(ROOT, source)  # changes during the tests have no effect on them
        print(f"{row.name}: installing {row}; output in {log}", flush=True)
        run(str(python), "-m", "pip", "install", "--upgrade", "pip", output=output)
        run(str(python), "-m", "pip", "install", *requirements(row, source), output=output)
        check_versions(row, installed_versions(python, row))
        print(f"{row.name}: testing", flush=True)
        status = run(str(python), *pytest_arguments(junit, suite, is_slow), output=output, cwd=source, allowed=range(6))
        if status > 1 or not junit.exists():  # an interruption, or an error of pytest itself
            junit.unlink(missing_ok=True)
            raise RowError(f"pytest ended with status {status}, see {log}")
        return read_result(junit)


def requirements(row: Row, source: Path) -> list[str]:
    """The arguments of `pip install`. A row whose versions are in a file of constraints takes all from there."""
    pins = [f"{name}=={version}" for name, version in row.packages.items()]
    constrained = [
        f"--constraint={file}"
        for file in sorted(source.glob("constraints*.txt"))
        if set(pins) <= set(file.read_text().splitlines())
    ]
    return [*constrained, *pins, "--editable", f"{source}[{EXTRAS}]"]


def pytest_arguments(junit: Path, suite: str, is_slow: bool) -> list[str]:
    """The arguments of Python that run the tests."""
    arguments = ["-m", "pytest", "--numprocesses", "auto", "--dist", "worksteal", "--junit-xml", str(junit)]
    return [*arguments, "-o", f"junit_suite_name={suite}", *([] if is_slow else ["-m", "not slow"])]


def installed_versions(python: Path, row: Row) -> dict[str, str]:
    """The installed versions of Python and of the row's packages."""
    command = [str(python), "-c", INSTALLED, *row.packages]
    found = subprocess.run(command, check=False, capture_output=True, text=True, env=clean_environ())
    if found.returncode:
        raise RowError(f"the installed versions cannot be read: {found.stderr.strip()}")
    return dict(json.loads(found.stdout))


def check_versions(row: Row, installed: Mapping[str, str]) -> None:
    """Check that the installed versions are those of the row; a build such as 2.13.0+cpu is.

    Raises:
        RowError: one is not.
    """
    expected = {"python": row.python, **row.packages}
    wrong = [name for name, version in expected.items() if release(installed[name]) != release(version)]
    if wrong:
        raise RowError(", ".join(f"installed is {name} {installed[name]}, not {expected[name]}" for name in wrong))


def run(*command: str, output: Any, cwd: Path = ROOT, allowed: Sequence[int] = (0,)) -> int:
    """Run a command, append its output to a file, and return its status.

    Raises:
        RowError: it ended with a status that is not allowed.
    """
    output.write(f"$ {' '.join(command)}\n")
    output.flush()
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=clean_environ(), start_new_session=True
    )
    try:
        status = process.wait()
    finally:
        if process.poll() is None:  # interrupted: end the workers of pytest too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status not in allowed:
        raise RowError(f"`{' '.join(command[1:4])}` ended with status {status}, see {output.name}")
    return status


def clean_environ() -> dict[str, str]:
    """The environment variables, without those that change what Python imports or what pytest runs."""
    prefixes = ("PYTEST_", "PYTHON", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}


def run_rows(rows: Sequence[Row], kept: Path | None, is_slow: bool) -> int:
    """Run rows, print the summary, and return the exit status: 0 if all tests of all rows passed."""
    outcomes: dict[Row, Result | str] = {}
    try:
        for row in rows:
            try:
                outcomes[row] = run_row(row, kept, is_slow)
            except (RowError, OSError, subprocess.CalledProcessError) as error:
                outcomes[row] = f"not run: {error}"
            print(f"{row.name}: {outcomes[row]}", flush=True)
    finally:
        print("\n".join(["", *summary(outcomes)]))
    return int(any(isinstance(outcome, str) or bool(outcome.failed) for outcome in outcomes.values()))


def exit_on_signal(number: int, _: Any) -> None:
    """Exit, which removes the environment. A closed terminal signals several times; later signals are ignored."""
    for each in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help="a minor version of torch, such as 2.6; default: all rows"
    )
    parser.add_argument("--slow", action="store_true", help="run all tests, not only the fast ones")
    parser.add_argument(
        "--environments", type=Path, metavar="DIR", help="keep the environments here, and use them again"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="run nothing; write the tables of a page")
    given = parser.parse_args(arguments)
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        given.write.write_text(update_tables(page, RESULTS), encoding="utf-8")
        return 0
    try:
        rows = select_rows(given.rows)
    except ValueError as error:
        parser.error(str(error))
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, exit_on_signal)
    return run_rows(rows, given.environments, given.slow)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
