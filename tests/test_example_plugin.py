"""The distribution in `examples/lion_plugin`: its size, its build, and its selection by name after pip install."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from plugin_projects import pip_install, run_with_target

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "examples" / "lion_plugin"

FIT = """
model:
  width: 2
optimizer: {name: my_lion, lr: 0.25}
"""

SCRIPT = """
import torch
import lightning.pytorch as pl
from optplug.lightning import OptplugCLI

class Model(pl.LightningModule):
    def __init__(self, width: int = 2):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(width))

    def training_step(self, batch, index):
        return (batch @ self.weight).mean()

    def train_dataloader(self):
        return torch.utils.data.DataLoader([torch.ones(len(self.weight))] * 2)

quiet = dict(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
cli = OptplugCLI(Model, trainer_defaults={**quiet, "enable_model_summary": False})
(optimizer,) = cli.trainer.optimizers
print(type(optimizer).__module__, optimizer.param_groups[0]["lr"], cli.model.weight.tolist())
"""

PROGRAM = """
import optplug, torch
from optplug.registry import registry
assert "my_lion" in optplug.list_optimizers(), registry.quarantined
assert str(registry.resolve("optimizer", "MyLion").plugin) == "my-lion (my-lion 0.1.0)"
weight = torch.nn.Parameter(torch.zeros(2))
optimizer = optplug.create_optimizer("my-lion", [weight], lr=0.25)
for _ in range(4):
    weight.grad = torch.ones(2)
    optimizer.step()
print(type(optimizer).__module__, optimizer.param_groups[0]["lr"], weight.tolist())
"""

EXPECTED = "my_lion 0.25 [-1.0, -1.0]"
"""The module of the optimizer, its learning rate, and the weights after four steps with a positive gradient."""


def written_lines(source: str) -> list[str]:
    """The lines of a module that an author writes: without docstrings, comments and blank lines."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


def test_lion_takes_twelve_lines_of_python_and_three_of_toml() -> None:
    (entry_point,) = re.findall(r"^\[project\.entry-points.*\n(?:.+\n)*", (SOURCE / "pyproject.toml").read_text(), re.M)

    assert len(written_lines((SOURCE / "my_lion.py").read_text())) <= 12
    assert len(entry_point.splitlines()) <= 3


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip has installed the example, from a copy, since a build writes into the source folder."""
    source = tmp_path_factory.mktemp("example") / "lion_plugin"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    return pip_install(source, source.parent / "installed")


def test_installed_files_are_the_module_only(target: Path) -> None:
    assert {path.name for path in target.glob("*.py")} == {"my_lion.py"}
    assert not (target / "tests").exists()


def test_example_is_selected_by_name_in_python(target: Path) -> None:
    assert run_with_target(target, "-c", PROGRAM).stdout.strip() == EXPECTED


@pytest.mark.parametrize("where", ["YAML", "command line"])
def test_example_is_selected_by_name_in_lightning(target: Path, tmp_path: Path, where: str) -> None:
    script, config = tmp_path / "train.py", tmp_path / "lion.yaml"
    script.write_text(SCRIPT)
    config.write_text(FIT)
    options = {"YAML": ["--config", str(config)], "command line": ["--optimizer", "my_lion", "--optimizer.lr", "0.25"]}
    ran = run_with_target(target, str(script), "fit", *options[where], cwd=tmp_path)
    assert ran.stdout.strip().splitlines()[-1] == EXPECTED


def test_misspelt_argument_of_the_example_is_refused(target: Path, tmp_path: Path) -> None:
    program = "import optplug, torch; optplug.create_optimizer('my_lion', [torch.zeros(1)], beta=(0.9, 0.9))"
    ran = run_with_target(target, "-c", program, check=False)
    assert "did you mean 'betas'?" in ran.stderr


@pytest.mark.slow
def test_tests_of_the_example_pass(target: Path, tmp_path: Path) -> None:
    ran = run_with_target(target, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SOURCE / "tests"), cwd=tmp_path)
    assert " passed" in ran.stdout
