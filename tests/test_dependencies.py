"""What works with the required dependencies only, and what the messages about missing and old packages say."""

from __future__ import annotations

import re
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from environments import Environment, build_wheel
from optplug.engines import _torch_compat
from optplug.errors import upgrade_hint
from optplug.lightning import _compat


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_minimum_versions_in_the_code_are_those_of_the_metadata(wheel: Path) -> None:
    (name,) = (name for name in ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    metadata = HeaderParser().parsestr(ZipFile(wheel).read(name).decode())
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist") or ()]
    declared = {one.name: str(one.specifier) for one in requirements}
    for name, minimum in (
        ("torch", _torch_compat.MINIMUM_TORCH),
        ("lightning", _compat.MINIMUM_VERSION),
        ("pytorch-lightning", _compat.MINIMUM_VERSION),
    ):
        assert declared[name] == ">={}.{}".format(*minimum)


def test_required_dependencies_suffice_to_train(wheel: Path, tmp_path: Path) -> None:
    program = """
import sys, warnings

import optplug, torch

model = torch.nn.Linear(2, 1)
warnings.filterwarnings("ignore", "muon gets no parameter")
for name in optplug.list_optimizers("optplug-classic:*") + optplug.list_optimizers("optplug-modern:*"):
    if name in ("lbfgs", "sparse_adam"):  # they take a closure, and sparse gradients
        continue
    optimizer, scheduler = optplug.create_optimizer_and_scheduler(model, name, {"name": "step_lr", "step_size": 2})
    for _ in range(3):
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        scheduler.step()
    engines = [report.engine for report in optimizer.engine_report()]
    # These have other states for matrices than for vectors, so they step weight and bias apart.
    assert engines == ["foreach"] * (2 if name in ("adafactor", "soap") else 1), (name, engines)
optplug.testing.check_optimizer("sgd")
assert not {"numpy", "numba", "yaml", "pytest", "lightning", "pytorch_lightning"} & set(sys.modules)
"""
    environment = Environment(tmp_path / "environment", wheel)
    ran = environment.run("python", "-W", "ignore:Failed to initialize NumPy", "-c", program)
    assert ran.returncode == 0, ran.stderr
    ran = environment.run("python", "-m", "optplug", "list")
    assert ran.returncode == 1
    assert re.fullmatch(r"the optplug command needs (typer|rich): pip install 'optplug\[cli\]'\n", ran.stderr)


def test_old_torch_is_named_with_its_version() -> None:
    program = """
import sys

import torch

torch.__version__ = "2.5.1"
import optplug

for statement in sys.argv[1:]:
    try:
        exec(statement)
    except optplug.errors.OptplugError as error:
        print(error)
    else:
        print("no error")
"""
    statements = [
        "from optplug import RuleOptimizer",
        "optplug.create_optimizer('adam', [torch.zeros(1)])",
        "optplug.create_optimizer_and_scheduler(torch.nn.Linear(1, 1), 'adam')",
        "optplug.get_optimizer('adam')",
        "optplug.configure_optimizers(torch.nn.Linear(1, 1), 'adam')",
        "from optplug.lightning import ConfigureOptimizers",
    ]
    ran = subprocess.run([sys.executable, "-c", program, *statements], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(statements)
    for line in lines:
        assert line.endswith('optplug needs torch 2.6 or later; torch 2.5.1 is installed: pip install "torch>=2.6"')


@pytest.mark.parametrize(
    ("version", "is_old"),
    [
        ("2.5.1", True),
        ("2.5.1+cpu", True),
        ("1.13.0", True),
        ("2.6.0", False),
        ("2.10.0+cu128", False),
        ("2.6.0a0+git", False),
        ("3.0", False),
        ("a source checkout", False),
    ],
)
def test_upgrade_hint_compares_numbers(version: str, is_old: bool) -> None:
    hint = f'torch {version} is installed: pip install "torch>=2.6"' if is_old else ""
    assert upgrade_hint("torch", version, (2, 6)) == hint
