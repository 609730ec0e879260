"""Every registered optimizer and scheduler: trains by name, resumes, refuses wrong values. A table by family.

    python benchmarks/third_parties.py [--family NAME ...] [--name NAME ...] [--kind KIND] [--json FILE] [--processes 2]

A family is a plugin: optplug's own, and one for each adapted package. Each family runs in a process of its own, two at
a time; a process that crashes is started again with the names that are left. `tests/third_parties.py` has the checks.
Compilation by `torch.compile` is switched off: it changes no result, and takes minutes for each name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from optplug.registry import registry

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from third_parties import CHECKS, NOT_APPLICABLE, OK  # noqa: E402  # `tests` is not a package

LIMIT = 60
"""Seconds for each check of a name."""

Outcomes = dict[str, str]
Job = tuple[str, str, list[str]]
"""A kind, a family, and its names."""


def jobs(kinds: list[str], families: list[str], names: list[str]) -> Iterator[Job]:
    """The names to check, by kind and family; empty lists select all."""
    for kind in kinds:
        by_family: dict[str, list[str]] = {}
        for registration in registry.registrations(kind):
            selected = not names or {registration.name, registration.qualified_name} & set(names)
            if selected and (not families or registration.plugin.name in families):
                by_family.setdefault(registration.plugin.name, []).append(registration.qualified_name)
        for family, members in by_family.items():
            yield kind, family, members


def run(job: Job) -> dict[str, Outcomes]:
    """The outcomes of the checks of each name of a family."""
    kind, _, names = job
    found: dict[str, Outcomes] = {}
    while left := [name for name in names if name not in found]:
        command = [sys.executable, str(TESTS / "third_parties.py"), kind, str(LIMIT), *left]
        environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
        started = left[0]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                started = answer.get("starts", started)
                if "outcomes" in answer:
                    found[answer["name"]] = answer["outcomes"]
                    _show_progress(kind, answer["name"], answer["outcomes"])
            code = process.wait()
            errors.seek(0)
            lines = errors.read().strip().splitlines() or ["no output"]
        if started not in found:
            found[started] = {"loads": f"the process ended with code {code}: {lines[-1][:160]}"}
    return found


def _show_progress(kind: str, name: str, outcomes: Outcomes) -> None:
    failed = [f"{check}: {each}" for check, each in outcomes.items() if not _is_passed(each)]
    print(f"{kind} {name}: {'; '.join(failed) or 'passed'}", file=sys.stderr, flush=True)


def _is_passed(outcome: str) -> bool:
    return outcome == OK or outcome.startswith(NOT_APPLICABLE)


def table(kind: str, results: dict[str, dict[str, Outcomes]]) -> str:
    """A table in Markdown: by family, how many names pass each check, of those to which it applies."""
    checks = CHECKS[kind]
    rows = [["family", "names", *checks], ["---"] * (len(checks) + 2)]
    every: list[Outcomes] = []
    for family, outcomes in results.items():
        every += outcomes.values()
        rows.append([family, str(len(outcomes)), *(_count(list(outcomes.values()), check) for check in checks)])
    rows.append(["all", str(len(every)), *(_count(every, check) for check in checks)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _count(outcomes: list[Outcomes], check: str) -> str:
    applies = [each for each in outcomes if not each.get(check, "").startswith(NOT_APPLICABLE)]
    return f"{sum(each.get(check) == OK for each in applies)}/{len(applies)}" if applies else "-"


def failures(results: dict[str, dict[str, Outcomes]]) -> Iterator[str]:
    """One line for each failure: name, check, cause."""
    for outcomes in results.values():
        for name, by_check in outcomes.items():
            for check, outcome in by_check.items():
                if not _is_passed(outcome):
                    yield f"- `{name}` {check}: {outcome}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=[], help="names of plugins")
    parser.add_argument("--name", nargs="+", default=[], help="names, alone or as plugin:name")
    parser.add_argument("--kind", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--json", type=Path, help="a file for the outcomes of each name")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    started = time.perf_counter()
    made = list(jobs(given.kind, given.family, given.name))
    with ThreadPoolExecutor(given.processes) as pool:
        found = list(pool.map(run, made))
    document: dict[str, Any] = {kind: {} for kind in given.kind}
    for (kind, family, _), outcomes in zip(made, found, strict=True):
        document[kind][family] = outcomes
    for kind, results in document.items():
        if results:
            print(f"{table(kind, results)}\n")
            print("\n".join(failures(results)), end="\n\n")
    print(f"{time.perf_counter() - started:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
