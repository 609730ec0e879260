"""Training by name prints no deprecation warning, except those that other packages cause."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import training_by_name
from training_by_name import Deprecation
from versions import release
from warnings_of_others import WARNINGS_OF_OTHERS, WarningOfOthers

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("optplug", "plugins") for path in (ROOT / folder).rglob("*.py"))


def deprecations_of_training(way: str) -> list[Deprecation]:
    """The deprecation warnings of a process that trains in one way: an import name of Lightning, or `plain`."""
    command = [sys.executable, "-W", "always", str(ROOT / "tests/training_by_name.py"), way]
    environ = {**os.environ, "JSONARGPARSE_DEPRECATION_WARNINGS": "all"}  # otherwise it shows one of each type
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert result.returncode == 0, result.stderr
    return [Deprecation(**fields) for fields in json.loads(result.stdout)]


def is_caused_by(entry: WarningOfOthers, found: Deprecation) -> bool:
    caller = found.caller.removeprefix("pytorch_")  # both import names of Lightning are one package
    return caller == entry.package and re.match(entry.message, found.text) is not None


@pytest.mark.parametrize(
    "way", ["plain", "lightning.pytorch", pytest.param("pytorch_lightning", marks=pytest.mark.slow)]
)
def test_training_by_name_causes_no_deprecation_warning(way):
    found = deprecations_of_training(way)
    expected = [entry for entry in WARNINGS_OF_OTHERS if entry.is_expected()]
    unknown = [one for one in found if not any(is_caused_by(entry, one) for entry in expected)]
    assert not unknown, "\n\n".join(f"{one.caller}: {one.text}\n" + "\n".join(one.stack) for one in unknown)


@pytest.mark.parametrize("entry", WARNINGS_OF_OTHERS, ids=lambda entry: entry.message)
def test_ignored_deprecations_are_those_of_supported_versions(entry):
    (minimum,) = set(re.findall(rf'"{entry.package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text()))
    assert release(minimum)[:2] <= entry.newest, f"{entry.package} {entry.newest} is not supported: remove the entry"


def test_sources_compile_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in SOURCES:
            compile(path.read_text(), str(path), "exec")


@pytest.mark.parametrize(
    "deprecated",
    [
        "import warnings\ndef function(): warnings.warn('deprecated', UserWarning)",
        "import typing_extensions\n@typing_extensions.deprecated('no longer')\ndef function(): ...",
    ],
    ids=["warn", "decorator"],
)
def test_the_package_that_calls_what_is_deprecated_is_recorded(monkeypatch, deprecated):
    library = {"__name__": "library.module"}
    user = {"__name__": "user.module"}
    exec(deprecated, library)
    exec("def call(function): function()", user)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", training_by_name.record)
        monkeypatch.setattr(training_by_name, "recorded", recorded := [])
        user["call"](library["function"])
    assert [one.caller for one in recorded] == ["user"]
