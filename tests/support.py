"""Configurations, trainer arguments and helper functions that several test files use; `tests` is on pytest's path."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import optplug
from optplug.registry import Plugin, Registration
from optplug.registry.specs import lookup_key
from versions import release

LIGHTNING = release(version("lightning"))
"""The numbers of the installed Lightning."""
TORCH = release(torch.__version__)[:2]
"""Major and minor number of the installed torch."""

NEW_IN_TORCH = {("adam", "decoupled_weight_decay"): (2, 8), ("lbfgs", "maximize"): (2, 14)}
"""By name and argument: the first tested version of torch whose class has the argument, where an older one lacks it."""

needs_fsdp2_on_cpu = pytest.mark.skipif(
    TORCH < (2, 8), reason="torch 2.6: FSDP2 needs streams that the CPU lacks; 2.8 does not"
)
ignore_epoch_of_sequential_lr = pytest.mark.filterwarnings(
    *(["ignore:The epoch parameter in `scheduler.step"] if TORCH < (2, 11) else [])
)
"""Mark of tests that step SequentialLR. torch < 2.11: it steps its schedulers with an epoch, which is deprecated."""

BATCHES_PER_EPOCH = 4
"""Number of batches of the scripted module."""

ADAM = {"name": "adam", "lr": 1.0}
SGD = {"name": "sgd", "lr": 1.0}
COSINE = {"name": "cosine_annealing_lr", "T_max": 6}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}
PATIENT_PLATEAU = {**PLATEAU, "patience": 99}
RISING = {"val_loss": range(1, 40)}
RISING_LOSSES = {"val_loss": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 3,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Arguments of a trainer without output and files."""

QUIET_NO_SANITY = {**QUIET, "num_sanity_val_steps": 0}


def cosine(t: int, period: int = 6) -> float:
    """The multiplier of cosine annealing after `t` steps."""
    scheduler = optplug.create_scheduler("cosine_annealing_lr", torch.optim.SGD([torch.zeros(1)], lr=1.0), T_max=period)
    return scheduler.multiplier(t)


def scheduler_of(fitted: Any) -> Any:
    """The first scheduler of a trainer."""
    return fitted.lr_scheduler_configs[0].scheduler


def final_lrs(made: Any) -> list[float]:
    """The learning rates of the first optimizer of a trainer, rounded to nine decimals."""
    return [round(float(group["lr"]), 9) for group in made.optimizers[0].param_groups]


def rounded(lrs: Any) -> list[float]:
    """Learning rates, rounded to nine decimals."""
    return [round(float(lr), 9) for lr in lrs]


def printed_lines(capture: Any) -> list[str]:
    """The lines that optplug has printed, without their prefix."""
    return [line.removeprefix("optplug: ") for line in capture.readouterr().out.splitlines() if "optplug: " in line]


def plateau_summary(capture: Any) -> str:
    """The only plateau summary among the printed lines."""
    (line,) = (line for line in printed_lines(capture) if line.startswith("plateau"))
    return line


def first_party(kind: str) -> list[str]:
    """The names of a kind that optplug's own plugins have, without those of other packages."""
    own = ("optplug-classic", "optplug-modern", "optplug-schedules")
    return sorted(name for plugin in own for name in optplug.registry.registry.names(kind, f"{plugin}:*"))


@contextmanager
def only_first_party() -> Iterator[None]:
    """Inside, the registry has the names of optplug's own plugins only, whatever packages are installed."""
    discovered = optplug.registry.registry._discovered()
    everything = discovered.registrations
    discovered.registrations = {kind: _first_party_registrations(kind) for kind in everything}
    try:
        yield
    finally:
        discovered.registrations = everything


def _first_party_registrations(kind: str) -> dict[str, list[Registration]]:
    found = (optplug.registry.registry.resolve(kind, name) for name in first_party(kind))
    return {lookup_key(each.name): [each] for each in found}


def register_too(monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    """Let an adapter `later`, and no other, have a name too, which means the registration of another plugin."""
    spec_class = optplug.registry.KINDS[kind]
    spec = spec_class(name, "later.nowhere:Nothing", precedence=99)
    first = optplug.registry.registry.resolve(kind, name)
    registrations = optplug.registry.registry._discovered().registrations[kind]
    later = optplug.registry.Registration(spec, optplug.registry.Plugin("later", "later-dist", "1"))
    monkeypatch.setitem(registrations, name.replace("_", ""), [first, later])


def environment_with(path: Path, **variables: str) -> dict[str, str]:
    """The environment variables of a new interpreter that has a folder first on its path."""
    paths = [str(path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}


def loaded_registration(spec: Any, package: str) -> Registration:
    """The registration of an adapter's spec with its class, also where the adapter is not installed as a plugin."""
    registration = Registration(spec, Plugin(package, package, "1"))
    return replace(registration, spec=replace(spec, target=registration.load()))


def torch_has(name: str, argument: str) -> bool:
    """Whether the class of the installed torch has an argument that some supported version has."""
    return NEW_IN_TORCH.get((name, argument), TORCH) <= TORCH


@contextmanager
def since_torch(first: tuple[int, int], error: type[Exception], match: str) -> Iterator[None]:
    """Run the block, which works since the first version of torch; expect the error from older versions."""
    if first <= TORCH:
        yield
    else:
        with pytest.raises(error, match=match):
            yield


def lr_finder(pl: Any, **arguments: Any) -> Any:
    """A learning-rate finder after which the training begins with the first batch, on every version of Lightning.

    Lightning < 2.5.4: the first epoch continues after the last batch of the finder, also without optplug.
    """

    class Finder(pl.callbacks.LearningRateFinder):
        def lr_find(self, trainer: Any, module: Any) -> None:
            super().lr_find(trainer, module)
            if LIGHTNING < (2, 5, 4):
                trainer.fit_loop._combined_loader = None
                trainer.fit_loop.setup_data()

    return Finder(**arguments)


def lines_with_type_errors(code: str, folder: Path, pytestconfig: Any) -> tuple[set[int], str]:
    """The numbers of the lines in which `mypy --strict` reports an error in the code of a user, and its output."""
    snippet = folder / "snippet.py"
    snippet.write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(snippet)]
    command += ["--follow-imports=silent"]  # the package itself is checked elsewhere
    command += [f"--cache-dir={pytestconfig.cache.mkdir('mypy')}"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return {int(number) for number in re.findall(r"snippet\.py:(\d+): error", result.stdout)}, result.stdout
