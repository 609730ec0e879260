"""The wheel and the source distribution: their files, and what they do in clean environments."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

import optplug
from environments import ROOT, Environment
from source_tree import copy_source, source_files

VERSION = optplug.__version__
WHEEL = f"optplug-{VERSION}-py3-none-any.whl"
SDIST = f"optplug-{VERSION}.tar.gz"
DIST_INFO = f"optplug-{VERSION}.dist-info"
FILES = source_files(ROOT)


class Built:
    """Wheels and a source distribution of a clean copy of the repository.

    Attributes:
        wheel: the wheel that is built from the copy.
        sdist: the source distribution.
        wheel_of_sdist: the wheel that is built from the source distribution.
        unpacked: the folder of the unpacked source distribution.
    """

    def __init__(self, folder: Path) -> None:
        tree = folder / "tree"
        copy_source(ROOT, tree)
        self.sdist = build(tree, folder / "dist", "--sdist") / SDIST
        self.wheel = build(tree, folder / "dist", "--wheel") / WHEEL
        with tarfile.open(self.sdist) as archive:
            archive.extractall(folder, filter="data")
        self.unpacked = folder / f"optplug-{VERSION}"
        self.wheel_of_sdist = build(self.unpacked, folder / "from_sdist", "--wheel") / WHEEL


def build(source: Path, target: Path, kind: str) -> Path:
    """Run `python -m build` and return the folder of the result."""
    command = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", str(target), str(source)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return target


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A clean environment with the wheel and the extras that the commands of the README need."""
    extras = ("cli", "cpu", "demo", "lightning")
    return Environment(tmp_path_factory.mktemp("environment"), built.wheel, extras, use_pip=True)


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_has_the_packages_and_nothing_else(built: Built) -> None:
    modules = [name for name in FILES if name.startswith("optplug/")]
    plugins = [name.removeprefix("plugins/") for name in FILES if name.startswith("plugins/")]
    assert all(name.endswith((".py", "/py.typed")) for name in modules + plugins)
    packages = ("optplug", "optplug_classic", "optplug_modern", "optplug_schedules")
    assert {f"{package}/py.typed" for package in packages} <= {*modules, *plugins}
    metadata = [
        f"{DIST_INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    ]
    assert sorted(contents(built.wheel)) == sorted([*modules, *plugins, *metadata])


def test_source_distribution_has_the_repository_without_the_files_of_its_service(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = [member.name for member in archive.getmembers() if not member.isdir()]
    expected = [name for name in FILES if not name.startswith(".ci/")]
    assert sorted(names) == sorted(f"optplug-{VERSION}/{name}" for name in [*expected, "PKG-INFO"])


def test_wheel_of_the_source_distribution_is_the_wheel_of_the_repository(built: Built) -> None:
    assert contents(built.wheel_of_sdist) == contents(built.wheel)


COMMANDS = {
    ("optplug", "list"): "reduce_lr_on_plateau",
    ("python", "-m", "optplug", "list", "adam*"): "adamw",
    ("optplug", "info", "adam"): "amsgrad",
    ("optplug", "validate", "examples/sgd_cosine.yaml"): "sgd_cosine.yaml",
    ("optplug", "schema"): "reduce_lr_on_plateau",
    ("optplug", "groups", "examples/sgd_cosine.yaml", "--model", "examples/digits.py:DigitsClassifier"): "no_decay",
    ("optplug", "plot", "examples/sgd_cosine.yaml", "--steps-per-epoch", "23"): "optimizer steps (23 per epoch)",
    ("optplug", "bench", "sgd", "--profile", "tiny", "--rounds", "5", "--seconds", "0", "--no-cold"): "sgd",
}
"""Commands of the README, and a word of the output of each."""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_of_the_readme_run_with_the_wheel(
    command: tuple[str, ...], built: Built, environment: Environment
) -> None:
    ran = environment.run(*command, cwd=built.unpacked / "docs" if command[1] == "-m" else built.unpacked)
    assert ran.returncode == 0, ran.stderr
    assert COMMANDS[command] in ran.stdout


def test_installed_packages_are_those_of_the_wheel(environment: Environment) -> None:
    modules = ["optplug", "optplug_classic", "optplug_modern", "optplug_schedules", "optplug.lightning.callback"]
    code = f"import importlib\nfor name in {modules}: print(importlib.import_module(name).__file__)"
    ran = environment.run("python", "-c", code)
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.splitlines():
        assert Path(line).is_relative_to(environment.site_packages)


def test_type_checkers_see_the_types_of_the_installed_packages(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "from optplug import list_optimizers\n"
        "from optplug_classic.adam import Adam\n"
        "from optplug_schedules.step_lr import StepLR\n"
        "reveal_type(list_optimizers)\n"
        "reveal_type(Adam.rule)\n"
        "reveal_type(StepLR.multiplier)\n"
    )
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n[mypy-torch.*]\nfollow_imports = skip\n")  # faster
    command = [sys.executable, "-m", "mypy", f"--python-executable={environment.python}", "user.py"]
    variables = {key: value for key, value in os.environ.items() if key not in ("MYPYPATH", "PYTHONPATH")}
    ran = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=240)
    assert "error" not in ran.stdout, ran.stdout
    assert ran.stdout.count("Revealed type is") == 3, ran.stdout + ran.stderr
    assert '"Any"' not in ran.stdout


@pytest.fixture
def unpacked_with_index(built: Built) -> Iterator[Path]:
    """The unpacked source distribution, where `make` can install the versions of `constraints.txt`; else skips."""
    if f"torch=={torch.__version__.partition('+')[0]}" not in (ROOT / "constraints.txt").read_text().splitlines():
        pytest.skip("make installs the versions of constraints.txt, which are not those of this environment")
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "pluggy"]
    probe += ["--retries=0", "--timeout=15", f"--dest={built.unpacked.parent / 'probe'}"]
    ran = subprocess.run(probe, capture_output=True, text=True, timeout=120)
    if ran.returncode != 0:
        pytest.skip(f"no package index: {ran.stderr.strip().splitlines()[-1]}")
    yield built.unpacked
    subprocess.run(["make", "clean"], cwd=built.unpacked, check=True)  # .venv is large


@pytest.mark.slow
@pytest.mark.timeout(1800)  # under 4 minutes on an idle machine
def test_make_commands_run_in_the_source_distribution(unpacked_with_index: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MAKE"))}
    collect = [".venv/bin/python", "-m", "pytest", "-q", "--collect-only"]
    for command in (["make", "demo", f"PYTHON={sys.executable}"], ["make", "lint"], collect):
        ran = subprocess.run(command, cwd=unpacked_with_index, env=variables, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    for name in ("adam_plateau", "sgd_cosine", "gan"):
        assert list((unpacked_with_index / "runs" / name).rglob("*.csv"))
