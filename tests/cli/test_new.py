"""The command `optplug new`: names, refusals, and generated distributions after an editable install."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pluggy
import pytest
from typer.testing import CliRunner

from optplug.cli.app import app
from optplug.cli.new import TARGETS, new_project
from optplug.registry import registry
from optplug.registry.specs import SchedulerSpec, snake_case
from plugin_projects import EditableInstall, run

KINDS = tuple(TARGETS)


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `optplug new` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["new", *arguments])


@pytest.mark.parametrize(
    ("typed", "name", "class_name"),
    [
        ("sign_descent", "sign_descent", "SignDescent"),
        ("Sign Descent", "sign_descent", "SignDescent"),
        ("sign-descent", "sign_descent", "SignDescent"),
        ("SignDescent", "sign_descent", "SignDescent"),
        ("SGDW", "sgdw", "SGDW"),
        ("qhm2", "qhm2", "Qhm2"),
        ("a_2b", "a2b", "A2b"),  # the name under which a class A2b is registered
        ("  signDescent! ", "sign_descent", "SignDescent"),
    ],
)
def test_names_are_normalised(typed: str, name: str, class_name: str) -> None:
    project = new_project(typed, "class")

    assert (project.name, project.object, snake_case(project.object)) == (name, class_name, name)
    assert project.distribution == name.replace("_", "-")
    assert new_project(typed, "factory").object == name


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "'' has no letter: choose a name such as 'sign_descent'"),
        ("--", "'--' has no letter: choose a name such as 'sign_descent'"),
        ("2fast", "'2fast' does not begin with a letter: choose a name such as 'opt_2fast'"),
        ("Rprop µ", "'Rprop µ' is not ASCII: a package has a name of a-z, 0-9 and '_', such as 'sign_descent'"),
        ("class", "'class' is a word of Python: choose another name, such as 'my_class'"),
        ("Sum", "'sum' is a word of Python: choose another name, such as 'my_sum'"),
        ("random", "'random' is a module of Python's standard library: choose another name, such as 'my_random'"),
        ("tests", "'tests' is the folder of the plugin's tests: choose another name, such as 'my_tests'"),
        (
            "pluggy",
            f"'pluggy' is the installed module {pluggy.__file__}: choose another name, such as 'my_pluggy'",
        ),
    ],
)
def test_bad_and_taken_names_are_refused(invoke: Any, tmp_path: Path, typed: str, message: str) -> None:
    result = invoke("--", typed)

    assert (result.exit_code, result.stderr) == (1, f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_name_of_an_installed_plugin_is_refused(invoke: Any) -> None:
    plugin = next(plugin for plugin in registry.plugins if plugin.name == "optplug-modern")

    assert f"'optplug_modern' is the installed plugin {plugin}: choose" in invoke("optplug modern").stderr


def test_name_that_another_plugin_registers_is_reported(invoke: Any, tmp_path: Path) -> None:
    result = invoke("lion")
    (plugin,) = (plugin for plugin in registry.plugins if plugin.name == "optplug-modern")
    clash = "'lion' alone will be ambiguous; write 'lion:lion' or 'optplug-modern:lion'"

    assert result.exit_code == 0
    assert result.stderr == f"warning: plugin {plugin} registers optimizer 'lion' too: {clash}\n"
    assert 'get_optimizer("lion:lion")' in (tmp_path / "lion" / "tests" / "test_lion.py").read_text()


def test_name_that_an_adapter_registers_stays_unambiguous(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registration = registry.resolve("scheduler", "step_lr")
    adapted = type(registration)(SchedulerSpec("steep", "no.such:Steep", precedence=1), registration.plugin)
    monkeypatch.setattr(registry, "registrations", lambda kind: [adapted])
    result = invoke("steep", "--kind", "schedule")

    assert "'steep' alone will mean the new plugin, 'optplug-schedules:steep' the other" in result.stderr


@pytest.mark.parametrize("in_the_way", ["file", "folder"])
def test_nothing_is_overwritten(invoke: Any, tmp_path: Path, in_the_way: str) -> None:
    path = tmp_path / "sign-descent" / "notes" if in_the_way == "folder" else tmp_path / "sign-descent"
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    result = invoke("sign_descent")

    assert result.exit_code == 1
    assert result.stderr.startswith("error: sign-descent exists and is not an empty folder: choose another name")
    assert path.read_text() == "mine"
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


def test_files_are_written_into_the_given_folder_and_listed(invoke: Any, tmp_path: Path) -> None:
    result = invoke("Sign Descent", "--directory", "deep/folder", "--kind", "class")
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    first, *listed, last = result.stdout.splitlines()

    assert first.startswith("optimizer 'sign_descent': SignDescent in deep/folder/sign_descent/optimizer.py")
    assert sorted(line.strip() for line in listed) == written
    assert last == 'next: cd deep/folder; pip install -e ".[test]"; pytest'
    assert "$" not in "".join((tmp_path / path).read_text() for path in written)


def test_unknown_kind_is_refused(invoke: Any) -> None:
    result = invoke("sign_descent", "--kind", "rules")

    assert result.exit_code == 2
    assert "rule" in result.stderr


# ---------------------------------------------------------------- the generated distributions

PROGRAM = """
import sys, optplug
from optplug.registry import registry
assert registry.resolve({kind!r}, {name!r}).plugin.name == "sign-descent", registry.quarantined
assert "torch" not in sys.modules
import torch
weight = torch.nn.Parameter(torch.zeros(2))
optimizer, scheduler = optplug.create_optimizer_and_scheduler(
    torch.nn.ParameterList([weight]), {optimizer!r}, {scheduler!r}, epochs=1, steps_per_epoch=4
)
for _ in range(3):
    weight.grad = torch.ones(2)
    optimizer.step()
    scheduler and scheduler.step()
assert torch.all(weight < 0), weight
"""


class Installed:
    """A distribution that `optplug new` has written, as an editable install."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.source = folder / "sign-descent"
        result = CliRunner().invoke(app, ["new", "sign_descent", "--kind", kind, "--directory", str(self.source)])
        assert result.exit_code == 0, result.stderr
        self.environment = EditableInstall(folder / "environment", self.source)


@pytest.fixture(scope="module", params=KINDS)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_generated_code_passes_ruff(installed: Installed, tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # without the files of the build
    shutil.copytree(installed.source, copy, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=copy)
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".", cwd=copy)


@pytest.mark.slow
def test_generated_plugin_is_used_by_name(installed: Installed, tmp_path: Path) -> None:
    own: dict[str, Any] = {"name": "sign_descent", "lr": 0.1}
    names = {"kind": "optimizer", "name": "Sign-Descent", "optimizer": own, "scheduler": None}
    if installed.kind == "schedule":
        scheduler = {"name": "sign_descent", "decay": 0.5}
        names.update(kind="scheduler", optimizer={"name": "sgd", "lr": 0.1}, scheduler=scheduler)
    installed.environment.run("-c", PROGRAM.format(**names), cwd=tmp_path)


@pytest.mark.slow
def test_example_of_the_generated_readme_is_valid(installed: Installed, tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (installed.source / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.yaml").write_text(example)
    ran = installed.environment.run("-m", "optplug", "validate", "example.yaml", cwd=tmp_path)
    assert "is valid" in ran.stdout


@pytest.mark.slow
def test_generated_tests_pass(installed: Installed) -> None:
    ran = installed.environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=installed.source)
    assert re.search(r"[1-9]\d* passed", ran.stdout)
    assert "skipped" not in ran.stdout


def test_folder_that_cannot_be_written_is_an_error(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("sign_descent", "--directory", "file/plugin")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "file/plugin" in result.stderr
    assert "Traceback" not in result.output
