"""Environments with one, both or none of Lightning's two packages."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from environments import Environment, build_wheel
from optplug.errors import MissingLightningError
from optplug.lightning import _compat

LIGHTNING_OF = {
    "lightning": {"extras": ("lightning",), "without": ("pytorch-lightning",)},  # which the distribution requires
    "pytorch_lightning": {"extras": ("pytorch-lightning",)},
    "both": {"extras": ("lightning",)},
    "neither": {"extras": ()},
}
"""For each environment, the arguments of `Environment` that say which packages of Lightning it has."""

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
def callback_of(name):
    optplug_module = importlib.import_module(f"optplug.{name}")
    plateau = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "monitor": "val_loss"}
    return optplug_module.ConfigureOptimizers({"name": "adam", "lr": 0.1}, plateau, verbose=False)


EXPECTED_LRS = [0.1, 0.1, 0.05, 0.025]
IMPORT_NAMES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
"""
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """A function that returns one of the environments of `LIGHTNING_OF`."""
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))

    @functools.cache
    def make(name: str) -> Environment:
        arguments = LIGHTNING_OF[name]
        extras = ("cli", "cpu", *arguments["extras"])
        return Environment(tmp_path_factory.mktemp(name), wheel, extras, without=arguments.get("without", ()))

    return make


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new process of the running environment, which has both packages."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_optplug_works_with_one_lightning_package_installed(name: str, environment: Callable) -> None:
    (other,) = {"lightning", "pytorch_lightning"} - {name}
    ran = environment(name).run(
        "python",
        "-c",
        f"""{FIT_PROGRAM}
import importlib.util

assert importlib.util.find_spec({other!r}) is None
for module in ("lightning", "pytorch_lightning"):  # each of the two modules works with the installed package
    assert lrs_of_fit(IMPORT_NAMES[{name!r}], [callback_of(module)]) == EXPECTED_LRS
    assert lrs_of_fit(IMPORT_NAMES[{name!r}], callback_of(module)) == EXPECTED_LRS
    cli = importlib.import_module(f"optplug.{{module}}").OptplugCLI
    assert issubclass(cli, importlib.import_module(IMPORT_NAMES[{name!r}] + ".cli").LightningCLI)
""",
    )
    assert ran.returncode == 0, ran.stderr


def test_callback_works_under_both_import_names(environment: Callable) -> None:
    ran = environment("both").run(
        "python",
        "-c",
        f"""{FIT_PROGRAM}
for name, import_name in IMPORT_NAMES.items():
    for module in IMPORT_NAMES:
        assert lrs_of_fit(import_name, [callback_of(module)]) == EXPECTED_LRS
        bare = callback_of(module)
        assert lrs_of_fit(import_name, bare) == EXPECTED_LRS
        assert lrs_of_fit(import_name, bare) == EXPECTED_LRS  # the callback can be used again
    cli = importlib.import_module(f"optplug.{{name}}").OptplugCLI
    assert issubclass(cli, importlib.import_module(import_name + ".cli").LightningCLI)
""",
    )
    assert ran.returncode == 0, ran.stderr


def test_without_lightning_the_functions_work(environment: Callable) -> None:
    ran = environment("neither").run(
        "python",
        "-c",
        """
import importlib.util, sys

import optplug, torch
from optplug import shims, testing

module = torch.nn.Linear(2, 1)
assert {"adam", "sgd"} < set(optplug.list_optimizers())
optimizer = optplug.create_optimizer("adam", module.parameters(), lr=0.1)
optplug.create_scheduler("reduce_lr_on_plateau", optimizer, mode="min")
made = optplug.configure_optimizers(module, "adam", {"name": "exponential_lr", "gamma": 0.5})
assert made["lr_scheduler"]["scheduler"].optimizer is made["optimizer"]
cosine = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
optimizer, scheduler = optplug.create_optimizer_and_scheduler(module, "adam", cosine, total_steps=3)
for _ in range(3):
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    scheduler.step()
assert scheduler.get_last_lr() == [0.0]
assert {report.engine for report in optimizer.engine_report()} == {"numba"}
assert shims.optimizers.adam([torch.zeros(1)])
testing.check_optimizer("sgd")
testing.check_scheduler("step_lr", step_size=2)
assert not {"lightning", "pytorch_lightning", "lightning_fabric"} & set(sys.modules)
assert importlib.util.find_spec("lightning") is importlib.util.find_spec("pytorch_lightning") is None
""",
    )
    assert ran.returncode == 0, ran.stderr


NET_FILE = "import torch\n\n\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(2, 1)\n"
COMMANDS = {
    ("list",): "reduce_lr_on_plateau",
    ("info", "adam"): "amsgrad",
    ("schema",): '"$schema"',
    ("validate", "config.yaml"): "config.yaml",
    ("groups", "config.yaml", "--model", "net.py:Net"): "weight_decay",
    ("bench", "sgd", "--profile", "tiny", "--rounds", "5", "--seconds", "0", "--no-cold"): "sgd",
}
"""Commands, and a word of the output of each."""


def test_without_lightning_the_commands_work(environment: Callable, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET_FILE)
    (tmp_path / "config.yaml").write_text("optimizer: {name: adam, weight_decay: 0.1}\nparam_groups: [no_decay]\n")
    program = """
import sys

from optplug.cli.app import app

for line in sys.argv[1:]:
    app(line.split(), standalone_mode=False)
"""
    ran = environment("neither").run("python", "-c", program, *map(" ".join, COMMANDS), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for command, word in COMMANDS.items():
        assert word in ran.stdout, command


ENTRY_POINTS = {
    "from optplug.lightning import ConfigureOptimizers": "optplug.lightning.ConfigureOptimizers",
    "from optplug.pytorch_lightning import ConfigureOptimizers": "optplug.pytorch_lightning.ConfigureOptimizers",
    "optplug.lightning.OptplugCLI": "optplug.lightning.OptplugCLI",
    "from optplug.pytorch_lightning import OptplugCLI": "optplug.pytorch_lightning.OptplugCLI",
    "import optplug.lightning.callback": "the callback of optplug",
    # A module that has a trainer; a mock object, since there is no trainer without Lightning.
    "module._trainer = MagicMock(); optplug.configure_optimizers(module, 'adam')": "the callback of optplug",
}
"""Statements that need Lightning, and what the message names."""

ENTRY_POINTS_PROGRAM = f"""
import sys
from unittest.mock import MagicMock

import optplug, torch

module = torch.nn.Linear(2, 1)
for statement in {list(ENTRY_POINTS)!r}:
    try:
        exec(statement)
    except ImportError as error:
        assert isinstance(error, optplug.errors.MissingLightningError)
        print(error)
"""


def messages_of_entry_points(environment: Environment) -> list[str]:
    ran = environment.run("python", "-c", ENTRY_POINTS_PROGRAM)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_without_lightning_the_error_names_what_needs_it_and_the_packages_to_install(environment: Callable) -> None:
    missing = "neither of its packages is installed: pip install lightning, or pip install pytorch-lightning"
    expected = [f"{wanted} needs Lightning 2.4 or later; {missing}" for wanted in ENTRY_POINTS.values()]
    assert messages_of_entry_points(environment("neither")) == expected


def installed_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let `_compat` find packages of Lightning of these versions only; an empty version: without metadata."""

    def version(distribution: str) -> str:
        if not versions[distribution.replace("-", "_")]:
            raise _compat.importlib.metadata.PackageNotFoundError
        return versions[distribution.replace("-", "_")]

    monkeypatch.setattr(_compat, "_is_installed", versions.__contains__)
    monkeypatch.setattr(_compat.importlib.metadata, "version", version)


@pytest.mark.parametrize(
    ("versions", "hint"),
    [
        ({"lightning": "2.3.3"}, 'lightning 2.3.3 is installed: pip install "lightning>=2.4"'),
        ({"pytorch_lightning": "1.9.5"}, 'pytorch-lightning 1.9.5 is installed: pip install "pytorch-lightning>=2.4"'),
        (
            {"lightning": "2.3.3", "pytorch_lightning": "2.3.0"},
            'lightning 2.3.3 is installed: pip install "lightning>=2.4"; '
            'pytorch-lightning 2.3.0 is installed: pip install "pytorch-lightning>=2.4"',
        ),
    ],
)
def test_old_lightning_is_named_with_its_version(
    versions: dict[str, str], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_versions(monkeypatch, **versions)
    with pytest.raises(MissingLightningError) as caught:
        _compat.supported_import_names("it")
    assert str(caught.value) == f"it needs Lightning 2.4 or later; {hint}"


@pytest.mark.parametrize("version", ["2.4.0", "2.10.0", "3.0.0", "2.4.0rc1", "2.5.0.dev20240601", "unknown", ""])
def test_supported_lightning_is_found_beside_an_old_one(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_versions(monkeypatch, lightning="2.3.3", pytorch_lightning=version)
    assert _compat.supported_import_names("it") == ["pytorch_lightning"]


def test_name_of_an_old_package_is_an_error_beside_a_supported_one(monkeypatch: pytest.MonkeyPatch) -> None:
    installed_versions(monkeypatch, lightning="2.6.0", pytorch_lightning="2.3.3")
    assert _compat.supported_import_name("it", "lightning.pytorch") == "lightning.pytorch"
    with pytest.raises(MissingLightningError, match=r"pytorch-lightning 2\.3\.3 is installed"):
        _compat.supported_import_name("it", "pytorch_lightning")


def test_folder_with_the_name_of_lightning_is_no_lightning(environment: Callable, tmp_path: Path) -> None:
    (tmp_path / "lightning" / "pytorch").mkdir(parents=True)
    ran = environment("neither").run("python", "-c", "from optplug.lightning import ConfigureOptimizers", cwd=tmp_path)
    assert "MissingLightningError" in ran.stderr


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
import logging, sys

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
import sys

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
import sys
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
