"""The command `optplug doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import optplug
from optplug import OptimizerSpec, SchedulerSpec
from optplug.cli.app import app
from optplug.cli.doctor import notes, problems
from optplug.engines import ENGINES
from optplug.registry import Registry
from support import environment_with

FIRST_PARTY = ("optplug-classic", "optplug-modern", "optplug-schedules")


class Offers:
    """A plugin with given optimizers and schedules."""

    def __init__(self, *optimizers: Any, schedulers: tuple[Any, ...] = ()) -> None:
        self.optimizers = list(optimizers)
        self.schedulers = list(schedulers)

    @optplug.hookimpl
    def optplug_optimizers(self) -> list[Any]:
        return self.optimizers

    @optplug.hookimpl
    def optplug_schedulers(self) -> list[Any]:
        return self.schedulers


def spec(name: str, precedence: int = 0) -> OptimizerSpec:
    return OptimizerSpec(name, "nowhere:Nothing", precedence=precedence)


@pytest.fixture
def diagnose(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `optplug doctor` with plugins, given by name as objects or as functions that load them."""

    class Point(EntryPoint):
        def load(self) -> Any:
            plugin = plugins[self.name]
            return plugin() if callable(plugin) else plugin

    plugins: dict[str, Any] = {}

    def run(*arguments: str, **given: Any) -> Any:
        plugins.update(given)
        points = [Point(name, name, "optplug") for name in given]
        monkeypatch.setattr("optplug.cli.doctor.registry", Registry(points))
        return CliRunner().invoke(app, ["doctor", *arguments])

    return run


def data(result: Any, exit_code: int) -> dict[str, Any]:
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_doctor_finds_no_problem_with_optplug_alone(monkeypatch: pytest.MonkeyPatch):
    own = [point for point in entry_points(group="optplug") if point.name in FIRST_PARTY]
    monkeypatch.setattr("optplug.cli.doctor.registry", Registry(own))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert f"optplug {optplug.__version__}, torch {version('torch')}" in lines[0]
    for engine in ENGINES:
        assert any(line.split() == [engine.name, "available"] for line in lines)
    for name in FIRST_PARTY:
        (row,) = (line.split() for line in lines if line.startswith(f"{name} "))
        kind = "scheduler" if name == "optplug-schedules" else "optimizer"
        assert row[:4] == [name, "optplug", optplug.__version__, str(len(Registry(own).names(kind, f"{name}:*")))]
        assert float(row[4]) >= 0
    assert lines[-1] == "no problems"


def test_doctor_reports_states_of_plugins_and_problems(diagnose: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPTPLUG_DISABLE", "asleep")
    found = data(
        diagnose(
            "--json",
            zoo=Offers(spec("lion"), spec("ant")),
            den=Offers(spec("lion")),
            adapter=Offers(spec("ant", 3), spec("cat", 3)),
            unused=Offers(),
            mixed=Offers(3, spec("dog")),
            broken=lambda: 1 / 0,
            asleep=Offers(spec("bear")),
        ),
        exit_code=1,
    )
    assert {each["plugin"]: (each["state"], each["names"]) for each in found["plugins"]} == {
        "zoo": ("active", 2),
        "den": ("active", 1),
        "adapter": ("active", 2),
        "unused": ("inactive", 0),
        "mixed": ("active", 1),
        "broken": ("quarantined", 0),
        "asleep": ("disabled", 0),
    }
    assert found["clashes"] == [{"kind": "optimizer", "name": "lion", "choices": ["den:lion", "zoo:lion"]}]
    shared = {"kind": "optimizer", "name": "ant", "chosen": "zoo:ant", "others": ["adapter:ant"]}
    assert found["shared_names"] == [shared]
    assert [each["name"] for each in found["rejected"]] == ["3"]
    assert found["problems"] == [
        "plugin broken (broken ?) is quarantined: ZeroDivisionError: division by zero",
        "optimizer 3 of plugin mixed is not used: optplug_optimizers() returned 3 in its list; items must be "
        "OptimizerSpec or classes or functions",
        "optimizer lion is ambiguous: write den:lion or zoo:lion",
    ]
    assert found["notes"] == []


def test_doctor_prints_what_its_json_has(diagnose: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPTPLUG_DISABLE", "asleep")
    plugins = {f"plugin{i:02}": Offers(spec(f"name{i}")) for i in range(25)}
    result = diagnose(**plugins, unused=Offers(), broken=lambda: 1 / 0, asleep=Offers(), late=Offers(spec("name7", 3)))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert sum(line.startswith(("plugin0", "plugin1", "plugin2", "late")) for line in lines) == 20
    assert any(line.startswith("6 further plugins with 6 names, ") for line in lines)
    assert "no names (an adapter whose package is not installed): unused" in lines
    assert "disabled by OPTPLUG_DISABLE: asleep" in lines
    assert "names of several plugins, of which the first is meant: name7" in lines
    assert lines[-1] == "problem: plugin broken (broken ?) is quarantined: ZeroDivisionError: division by zero"


def test_doctor_names_slow_plugins(diagnose: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("optplug.registry.plugin_registry.SLOW_PACKAGES", ("slow_package",))

    def importing() -> Offers:
        monkeypatch.setitem(sys.modules, "slow_package", sys)
        return Offers(spec("lion"))

    def waiting() -> Offers:
        time.sleep(0.2)
        return Offers(spec("tiger"), schedulers=(SchedulerSpec("tiger", "nowhere:Nothing"),))

    found = data(diagnose("--json", a=waiting, b=importing), exit_code=0)
    assert [each["imports"] for each in found["plugins"]] == [[], ["slow_package"]]
    waited = found["plugins"][0]["milliseconds"]
    assert waited >= 200
    assert found["notes"] == [
        f"plugin a takes {waited:.0f} ms when names are listed",
        "plugin b imports slow_package when names are listed: its specs should name 'module:object'",
    ]


@pytest.mark.parametrize(
    ("installed", "reason", "wrong", "noted"),
    [
        (None, "numba is not installed", [], ["steps on the CPU are not fused: numba is not installed"]),
        ("0.1", "numba is too old", ["engine numba is not available: numba is too old"], []),
        ("0.68", "", [], []),
    ],
)
def test_missing_numba_is_a_note_and_an_unusable_one_a_problem(
    diagnose: Any, installed: Any, reason: str, wrong: list[str], noted: list[str], monkeypatch: pytest.MonkeyPatch
):
    facts = data(diagnose("--json", zoo=Offers(spec("lion"))), exit_code=0)
    engines = [{"engine": "numba", "unavailable": reason}, {"engine": "triton", "unavailable": "not in this version"}]
    facts |= {"engines": engines, "versions": {"numba": installed}}
    assert list(problems(facts)) == wrong
    assert [note for note in notes(facts) if "threads" not in note] == noted


def test_doctor_asks_each_engine(diagnose: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(ENGINES[0]), "unavailable", lambda self: "no reason")
    found = data(diagnose("--json", zoo=Offers(spec("lion"))), exit_code=1)
    states = {each["engine"]: each["unavailable"] for each in found["engines"]}
    assert states == {ENGINES[0].name: "no reason", "foreach": "", "loop": "", "triton": "not part of this version"}


def test_doctor_loads_plugins_before_torch(tmp_path: Path):
    tmp_path.joinpath("eager.py").write_text(
        "import torch, optplug\n\n@optplug.hookimpl\ndef optplug_optimizers():\n    return []\n"
    )
    info = tmp_path / "eager-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: eager\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[optplug]\neager = eager\n")
    command = [sys.executable, "-m", "optplug", "doctor", "--json"]
    run = subprocess.run(command, env=environment_with(tmp_path), capture_output=True, text=True, check=False)
    (eager,) = (each for each in json.loads(run.stdout)["plugins"] if each["plugin"] == "eager")
    assert "torch" in eager["imports"]


def test_doctor_reports_that_torch_cannot_be_imported(tmp_path: Path):
    tmp_path.joinpath("torch.py").write_text("raise ImportError('libtorch.so is missing')")
    command = [sys.executable, "-m", "optplug", "doctor"]
    run = subprocess.run(command, env=environment_with(tmp_path), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, "")
    assert "problem: torch cannot be used: ImportError: libtorch.so is missing\n" in run.stdout


def test_doctor_says_which_plugin_an_adapter_gives_way_to(diagnose: Any, monkeypatch: pytest.MonkeyPatch):
    points = [EntryPoint("zoo", value, "optplug") for value in ("adapter", "own")]
    offered = {"adapter": Offers(spec("lion", 3)), "own": Offers(spec("lion"))}
    monkeypatch.setattr(EntryPoint, "load", lambda point: offered[point.value])
    monkeypatch.setattr("optplug.cli.doctor.registry", Registry(points))
    found = data(CliRunner().invoke(app, ["doctor", "--json"]), exit_code=0)
    states = {each["package"]: (each["state"], each["cause"]) for each in found["plugins"]}
    assert states == {"adapter": ("inactive", "gives way to plugin zoo (own ?)"), "own": ("active", "")}
    lines = CliRunner().invoke(app, ["doctor"]).stdout.splitlines()
    assert "adapter zoo (adapter ?) gives way to plugin zoo (own ?)" in lines
    assert not any(line.startswith("no names") for line in lines)
