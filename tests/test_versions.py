"""The declared versions, and the adaptations to versions that lack something: each says when it can be removed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.tuner import lr_finder
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from versions import ROWS, release

ROOT = Path(__file__).resolve().parent.parent
COMPAT = {
    "torch": ROOT / "optplug/engines/_torch_compat.py",
    "lightning": ROOT / "optplug/lightning/_compat.py",
}
"""The file with the adaptations to each package."""


class Adaptation(NamedTuple):
    """Code of a compat file for versions that lack something.

    Attributes:
        name: the function or class of the compat file.
        package: the package, a key of `COMPAT`.
        until: the first version that does not need the adaptation; if it is unknown, the first tested one.
        is_needed: whether the installed version needs it, by what this version has.
    """

    name: str
    package: str
    until: str
    is_needed: Callable[[], bool]


ADAPTATIONS = (
    Adaptation(
        "check_graph_capture",
        "torch",
        "2.11",
        lambda: not hasattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check"),
    ),
    Adaptation(
        "preserve_version_counters",
        "torch",
        "2.8",
        lambda: "tensors" not in inspect.signature(_unsafe_preserve_version_counter).parameters,
    ),
    Adaptation(
        "repeats_batches",
        "lightning",
        "2.5",
        lambda: not hasattr(_TrainingEpochLoop, "update_restart_stage"),
    ),
    Adaptation(
        "PlateauNames",
        "torch",
        "2.11",
        lambda: hasattr(ReduceLROnPlateau, "is_better"),
    ),
    Adaptation(
        "search_limit",
        "torch",
        "2.11",
        lambda: "max_ls=max_eval" not in inspect.getsource(torch.optim.LBFGS.step),
    ),
    Adaptation(
        "SchedulerBase",
        "torch",
        "2.8",
        lambda: not hasattr(LRScheduler, "_is_initial"),
    ),
    Adaptation(
        "SchedulerBase",
        "torch",
        "2.11",
        lambda: not hasattr(LRScheduler, "_update_lr"),
    ),
    Adaptation(
        "lr_of_finder",
        "lightning",
        "2.5.4",
        lambda: "param_groups" not in inspect.getsource(lr_finder._lr_find),
    ),
    Adaptation(
        "logs_hyperparameters",
        "lightning",
        "2.6",
        lambda: "enable_autolog_hparams" not in inspect.signature(Trainer).parameters,
    ),
)

each_adaptation = pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=lambda a: f"{a.package}-{a.name}")


def declared_minimum(package: str) -> str:
    """The minimum of a package in pyproject.toml."""
    (found,) = set(re.findall(rf'"{package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text()))
    return found


@each_adaptation
def test_an_adaptation_serves_a_supported_version(adaptation):
    minimum = declared_minimum(adaptation.package)
    assert release(minimum) < release(adaptation.until), (
        f"{adaptation.package} >= {minimum} does not need {adaptation.name}: remove the adaptation"
    )


@each_adaptation
def test_the_installed_version_needs_the_adaptation_if_it_is_older(adaptation):
    installed = version(adaptation.package)
    if all(release(installed) != release(row.packages[adaptation.package]) for row in ROWS):
        pytest.skip("`until` is the first version of the rows that does not need it; this version is in no row")
    assert adaptation.is_needed() == (release(installed) < release(adaptation.until)), (
        f"{adaptation.package} {installed} disagrees with `until` of {adaptation.name}: {adaptation.until}"
    )


@each_adaptation
def test_an_adaptation_is_defined_in_its_compat_file(adaptation):
    source = COMPAT[adaptation.package].read_text()
    assert re.search(rf"^(def|class) {adaptation.name}\b", source, re.MULTILINE)


@pytest.mark.parametrize("package", COMPAT)
def test_the_table_has_every_version_that_a_compat_file_names(package):
    """A compat file names the versions that need an adaptation as in "torch < 2.11"."""
    named = re.findall(rf"\b{package} < ([\d.]*\d)", COMPAT[package].read_text(), re.IGNORECASE)
    assert set(named) == {a.until for a in ADAPTATIONS if a.package == package}


def test_the_constraints_of_the_first_row_are_the_declared_minimums():
    """Of all packages but those of the extras for adapters, tests and documentation."""
    _, _, declared = (ROOT / "pyproject.toml").read_text().partition("[project]")
    for extra in ("adapters", "docs", "huggingface", "test"):
        declared = re.sub(rf"^{extra} = \[.*?\]", "", declared, flags=re.MULTILINE | re.DOTALL)
    minimums = dict(re.findall(r'"([\w-]+)[^"]*>=([\d.]+)"', declared.lower()))
    constraints = (ROOT / "constraints-oldest.txt").read_text().lower()
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", constraints, re.MULTILINE))
    assert pins.keys() == minimums.keys() | {"pyparsing"}
    for name, minimum in minimums.items():
        assert re.fullmatch(rf"{re.escape(minimum)}(\.0)*", pins[name]), name


def test_no_row_is_older_than_the_first():
    for package, number in ROWS[0].packages.items():
        assert release(number) == min(release(row.packages[package]) for row in ROWS)


def test_the_rows_have_the_declared_versions_of_python():
    declared = (ROOT / "pyproject.toml").read_text()
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', declared)
    assert set(classifiers) == {row.python for row in ROWS}
    assert f'requires-python = ">={ROWS[0].python}"' in declared
    assert ROWS[0].python == classifiers[0]


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_one_row_has_the_versions_of_the_constraints(file):
    constraints = (ROOT / file).read_text().splitlines()
    pinned = [row for row in ROWS if {f"{name}=={number}" for name, number in row.packages.items()} <= {*constraints}]
    assert len(pinned) == 1
