"""Environments with one, both or none of Lightning's two packages. Each runs in a process that hides the others."""

from __future__ import annotations

import subprocess
import sys

import pytest

PACKAGES = ("lightning", "pytorch_lightning")

HIDE_PACKAGES = """
import importlib.machinery, sys

hidden = set(sys.argv[1].split())
find_spec = importlib.machinery.PathFinder.find_spec


def find_spec_unless_hidden(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find_spec(name, path, target)


importlib.machinery.PathFinder.find_spec = find_spec_unless_hidden
"""

FIT_FUNCTION = """
import importlib

import optplug
import torch
from torch.utils.data import DataLoader, TensorDataset


def lrs_of_fit(import_name, callback=None):
    \"\"\"The learning rate of each epoch. Without a callback, the module configures itself.\"\"\"
    pl = importlib.import_module(import_name)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.lrs = torch.nn.Linear(4, 1), []

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).square().mean()

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", float(self.current_epoch), batch_size=2)

        def on_train_epoch_start(self):
            self.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    class SelfConfiguredModule(Module):
        def configure_optimizers(self):
            return optplug.configure_optimizers(self, "sgd")

    data = DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    module = SelfConfiguredModule() if callback is None else Module()
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=4, callbacks=callback, **quiet)
    trainer.fit(module, data, data)
    assert "configure_optimizers" not in vars(module)
    return module.lrs
"""

FIT_PROGRAM = (
    FIT_FUNCTION
    + """
for name in ("lightning", "pytorch_lightning"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        assert name in hidden
    else:
        assert name not in hidden


def callback_of(name):
    optplug_module = importlib.import_module(f"optplug.{name}")
    plateau = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "monitor": "val_loss"}
    return optplug_module.ConfigureOptimizers({"name": "adam", "lr": 0.1}, plateau, verbose=False)


EXPECTED_LRS = [0.1, 0.1, 0.05, 0.025]
IMPORT_NAMES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
"""
)


def run(program: str, *hidden: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE_PACKAGES + program, " ".join(hidden)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_optplug_works_with_one_lightning_package_installed(name: str) -> None:
    (other,) = set(PACKAGES) - {name}
    ran = run(
        f"""{FIT_PROGRAM}
import optplug

for module in ("lightning", "pytorch_lightning"):  # each of the two modules works with the installed package
    assert lrs_of_fit(IMPORT_NAMES[{name!r}], [callback_of(module)]) == EXPECTED_LRS
    assert lrs_of_fit(IMPORT_NAMES[{name!r}], callback_of(module)) == EXPECTED_LRS
    cli = importlib.import_module(f"optplug.{{module}}").OptplugCLI
    assert issubclass(cli, importlib.import_module(IMPORT_NAMES[{name!r}] + ".cli").LightningCLI)
assert {other!r} not in sys.modules
""",
        other,
    )
    assert ran.returncode == 0, ran.stderr


def test_callback_works_under_both_import_names() -> None:
    ran = run(
        f"""{FIT_PROGRAM}
for name, import_name in IMPORT_NAMES.items():
    for module in IMPORT_NAMES:
        assert lrs_of_fit(import_name, [callback_of(module)]) == EXPECTED_LRS
        bare = callback_of(module)
        assert lrs_of_fit(import_name, bare) == EXPECTED_LRS
        assert lrs_of_fit(import_name, bare) == EXPECTED_LRS  # the callback can be used again
    cli = importlib.import_module(f"optplug.{{name}}").OptplugCLI
    assert issubclass(cli, importlib.import_module(import_name + ".cli").LightningCLI)
"""
    )
    assert ran.returncode == 0, ran.stderr


def test_without_lightning_everything_except_the_callback_works() -> None:
    ran = run(
        """
import optplug, torch

module = torch.nn.Linear(2, 1)
optimizer = optplug.create_optimizer("adam", module.parameters(), lr=0.1)
optplug.create_scheduler("reduce_lr_on_plateau", optimizer, mode="min")
made = optplug.configure_optimizers(module, "adam", {"name": "exponential_lr", "gamma": 0.5})
assert made["lr_scheduler"]["scheduler"].optimizer is made["optimizer"]
""",
        *PACKAGES,
    )
    assert ran.returncode == 0, ran.stderr


def test_without_lightning_the_error_names_the_packages_to_install() -> None:
    ran = run(
        """
import optplug

for name in ("lightning", "pytorch_lightning"):
    try:
        getattr(optplug, name).ConfigureOptimizers
    except (ImportError, optplug.errors.OptplugError) as error:
        print(error)
""",
        *PACKAGES,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 2
    for line in ran.stdout.splitlines():
        assert "lightning" in line
        assert "install" in line


IMPORT_ORDERS = [
    ("lightning.pytorch", "optplug"),
    ("pytorch_lightning", "optplug"),
    ("optplug", "lightning.pytorch"),
    ("optplug", "pytorch_lightning"),
    ("optplug", "pytorch_lightning", "lightning.pytorch"),
    ("lightning.pytorch", "optplug", "pytorch_lightning"),
]


@pytest.mark.parametrize(
    "order",
    [pytest.param(order, marks=() if i < 2 else pytest.mark.slow) for i, order in enumerate(IMPORT_ORDERS)],
    ids="-".join,
)
def test_optplug_imports_no_other_lightning_and_keeps_its_logger(order: tuple[str, ...]) -> None:
    names = [name for name in order if name != "optplug"]
    ran = run(
        f"""{FIT_FUNCTION}
import logging

for name in {order!r}:
    if name == "optplug":
        from optplug.lightning import ConfigureOptimizers
        from optplug.pytorch_lightning import ConfigureOptimizers as SameClass

        class Subclass(ConfigureOptimizers):
            pass

        early = Subclass("sgd", verbose=False)
    else:
        importlib.import_module(name)
        logging.getLogger(name).setLevel(logging.ERROR)
assert ConfigureOptimizers is SameClass

import lightning_utilities.core.rank_zero


def check():
    for name in ("lightning.pytorch", "pytorch_lightning"):
        assert (name in sys.modules) == (name in {names!r}), name
    assert lightning_utilities.core.rank_zero.log.name == {names[-1]!r} + ".utilities.rank_zero"
    assert lightning_utilities.core.rank_zero.log.getEffectiveLevel() == logging.ERROR


check()
for name in {names!r}:
    for callback in (early, ConfigureOptimizers("sgd", verbose=False)):
        assert isinstance(callback, importlib.import_module(name).Callback)
        assert len(lrs_of_fit(name, callback)) == 4
    lrs_of_fit(name)
    check()
"""
    )
    assert ran.returncode == 0, ran.stderr
    assert "available" not in ran.stderr  # Lightning's lines about devices


@pytest.mark.slow
def test_command_line_accepts_a_callback_class_that_was_imported_before_lightning() -> None:
    ran = run(
        """
from optplug.lightning import ConfigureOptimizers


class Subclass(ConfigureOptimizers):
    pass


import pytorch_lightning
from pytorch_lightning.cli import LightningCLI

callbacks = [{"class_path": "__main__.Subclass", "init_args": {"optimizer": "sgd"}}]
made = LightningCLI(pytorch_lightning.LightningModule, run=False, args={"trainer": {"callbacks": callbacks}})
assert any(isinstance(callback, Subclass) for callback in made.trainer.callbacks)
assert "lightning.pytorch" not in sys.modules
"""
    )
    assert ran.returncode == 0, ran.stderr


def test_callback_class_can_be_imported_beside_a_mock_of_lightning() -> None:
    ran = run(
        """
from unittest.mock import MagicMock

for name in ("lightning", "lightning.pytorch", "lightning.pytorch.callbacks"):
    sys.modules[name] = MagicMock()
from optplug.lightning import ConfigureOptimizers


class Subclass(ConfigureOptimizers):
    pass


Subclass("sgd", verbose=False)
"""
    )
    assert ran.returncode == 0, ran.stderr
