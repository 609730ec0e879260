"""The commands `optplug list` and `optplug info`."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import optplug
from optplug import OptimizerSpec, RuleOptimizer, SchedulerSpec
from optplug.cli.app import app
from optplug.cli.table import print_table
from optplug.registry import Plugin, QuarantinedPlugin, Registry, registry
from support import environment_with, first_party, register_too


@pytest.fixture
def command() -> Any:
    """Runs `optplug` with the arguments; returns click's result."""

    def run(*args: str) -> Any:
        return CliRunner().invoke(app, list(args))

    return run


def test_list_shows_every_name_with_its_plugin(command: Any):
    result = command("list")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    names = optplug.list_optimizers() + optplug.list_schedulers()
    assert set(names) <= set(rows)
    assert rows["adam"][:4] == ["optplug-classic", "optplug", optplug.__version__, "yes"]
    assert " ".join(rows["adam"][4:]).startswith("adaptive moment estimation")
    assert rows["lbfgs"][3] == "-"
    assert rows["reduce_lr_on_plateau"][0] == "optplug-schedules"


def test_list_takes_a_glob(command: Any):
    result = command("list", "adam*")
    names = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert names == ["optimizer", *optplug.list_optimizers("adam*")]
    names = [line.split()[0] for line in command("list", "adamw", "*_lr", "adam").stdout.splitlines() if line.strip()]
    optimizers = sorted({*optplug.list_optimizers("adam"), *optplug.list_optimizers("adamw")})
    assert names == ["optimizer", *optimizers, "scheduler", *optplug.list_schedulers("*_lr")]
    by_plugin = command("list", "optplug-schedules:*").stdout
    assert "cosine_annealing_lr" in by_plugin
    assert "adam" not in by_plugin


def test_list_without_matches_fails(command: Any):
    result = command("list", "zzz*")
    assert result.exit_code == 1
    assert result.stderr == "no optimizer, scheduler or function matches 'zzz*'\n"
    assert command("list", "zzz*", "--json").exit_code == 1


def test_list_names_each_pattern_without_matches(command: Any):
    result = command("list", "zzz*", "adam", "yyy")
    assert result.exit_code == 1
    assert "adam " in result.stdout
    assert [line.split()[-1] for line in result.stderr.splitlines()] == ["'zzz*'", "'yyy'"]


class Foreign(torch.optim.SGD):
    """A class of another package.

    Args:
        speed: how fast.
    """

    def __init__(self, params: Any, speed: float = 0.5, **options: Any) -> None:
        super().__init__(params, lr=speed)


def make_foreign(params: Any, lr: float = 0.25, *, nesterov: bool = False) -> torch.optim.SGD:
    """A function that returns an optimizer."""
    return torch.optim.SGD(params, lr, nesterov=nesterov)


class Foreigners:
    @optplug.hookimpl
    def optplug_optimizers(self) -> list[Any]:
        return [
            OptimizerSpec("foreign", Foreign, package="torch", arguments={"hidden": 3}, precedence=5),
            make_foreign,
        ]


def test_info_of_foreign_classes_and_functions(command: Any, monkeypatch: pytest.MonkeyPatch):
    foreign = Registry([Point("foreigners", "foreigners", "optplug")])
    for module in ("optplug.cli.names", "optplug.config.describe", "optplug.registry.signature"):
        monkeypatch.setattr(f"{module}.registry", foreign)
    result = command("info", "foreign")
    assert result.exit_code == 0, result.stderr
    lines = [re.sub(r"(?<=\S) +", " ", line) for line in result.stdout.splitlines()]
    assert f"  package torch {importlib.metadata.version('torch')}" in lines
    assert {"speed float 0.5", "hidden int | float 3"} <= set(lines)
    # The spec says what `**options` are: not the arguments of the base class.
    assert not any(line.startswith("momentum") for line in lines)
    assert "    how fast." in lines
    result = command("info", "make-foreign")
    assert result.exit_code == 0, result.stderr
    assert f"  function      {make_foreign.__module__}.make_foreign" in result.stdout.splitlines()
    assert "nesterov  bool   False" in result.stdout.splitlines()


class Point(EntryPoint):
    """An entry point of the distribution that a test calls `optplug`, whose plugin is an object."""

    def load(self) -> Any:
        return PLUGINS[self.name]


class Zoo:
    """A plugin with names that optplug and an adapter have too."""

    @optplug.hookimpl
    def optplug_optimizers(self) -> list[Any]:
        return [
            OptimizerSpec("lion", "zoo.nowhere:Lion", "roars"),
            OptimizerSpec("fast", "zoo.nowhere:Fast", capabilities="fused"),
            OptimizerSpec("Bad", "zoo.nowhere:Bad"),
            type("MyRule", (RuleOptimizer,), {"__doc__": "A rule."}),
        ]


class Pets:
    """An adapter of a package."""

    @optplug.hookimpl
    def optplug_optimizers(self) -> list[Any]:
        return [OptimizerSpec(n, f"pytest:{n}", precedence=7, package="pytest") for n in ("lion", "cat")]

    @optplug.hookimpl
    def optplug_schedulers(self) -> list[Any]:
        return [SchedulerSpec("lion", "pytest:Lion", "a schedule", precedence=7, package="no-such-package")]


PLUGINS = {"zoo": Zoo(), "pets": Pets(), "foreigners": Foreigners()}


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of the commands, with the plugins `zoo` and `pets` only."""
    registry = Registry([Point(name, name, "optplug") for name in ("zoo", "pets", "broken")])
    monkeypatch.setattr("optplug.cli.names.registry", registry)
    return registry


def test_list_shows_sources_engines_and_alternatives(command: Any, zoo: Registry):
    result = command("list")
    assert result.exit_code == 0
    assert [re.sub(" +", " ", line) for line in result.stdout.splitlines()] == [
        "optimizer plugin source fused summary",
        f"cat pets pytest {pytest.__version__} -",
        "fast zoo zoo ? yes",
        "lion zoo zoo ? - roars (also pets:lion)",
        "my_rule zoo zoo ? yes A rule.",
        f"pets:lion pets pytest {pytest.__version__} -",
        "",
        "scheduler plugin source fused summary",
        "lion pets no-such-package ? - a schedule",
        "",
        "plugin broken (broken ?) is quarantined: KeyError: 'broken'",
        "optimizer Bad of plugin zoo (zoo ?) is not used: optimizer name 'Bad' is not snake case (e.g. 'sign_descent')",
    ]


def test_list_prints_json(command: Any, zoo: Registry):
    result = command("list", "*lion", "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    lion = {
        "name": "lion",
        "kind": "optimizer",
        "plugin": "zoo",
        "qualified_name": "zoo:lion",
        "package": "zoo",
        "version": "?",
        "fused": False,
        "capabilities": [],
        "summary": "roars",
        "unsupported": "",
        "alternatives": ["pets:lion"],
    }
    assert data["names"][0] == lion
    assert [(each["kind"], each["name"]) for each in data["names"]] == [
        ("optimizer", "lion"),
        ("optimizer", "pets:lion"),
        ("scheduler", "lion"),
    ]
    assert data["quarantined"] == [
        {"plugin": "broken", "package": "broken", "version": "?", "cause": "KeyError: 'broken'"}
    ]
    assert [(each["plugin"], each["kind"], each["name"]) for each in data["rejected"]] == [("zoo", "optimizer", "Bad")]
    assert data["disabled"] == []


def test_list_is_wrapped_on_a_terminal_only(command: Any, zoo: Registry, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    rows = [("lion", "a summary of eight words is rather long")]
    print_table(("name", "summary"), rows)
    assert capsys.readouterr().out == "name  summary\nlion  a summary of eight words is rather long\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    print_table(("name", "summary"), rows)
    text = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert text == "name  summary\nlion  a summary of eight words\n      is rather long\n"


@pytest.mark.parametrize("name", first_party("optimizer"))
def test_first_party_optimizer_declares_fused_if_it_is_a_rule(name: str):
    assert registry.resolve("optimizer", name).is_fused == issubclass(optplug.get_optimizer(name), RuleOptimizer)


def test_list_shows_quarantined_and_disabled_plugins(command: Any, monkeypatch: pytest.MonkeyPatch):
    catalogue = registry._discovered()
    monkeypatch.setattr(
        catalogue, "quarantined", [QuarantinedPlugin(Plugin("bad", "bad-dist", "2"), "ValueError: [oh] no", "")]
    )
    monkeypatch.setattr(catalogue, "disabled", [Plugin("off", "off-dist", "3")])
    out = command("list").stdout
    assert "plugin bad (bad-dist 2) is quarantined: ValueError: [oh] no\n" in out
    assert "plugin off (off-dist 3) is disabled by OPTPLUG_DISABLE\n" in out


def test_info_shows_arguments_and_documentation(command: Any):
    result = command("info", "Adam")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "adam: adaptive moment estimation"
    assert lines[1:5] == [
        "  kind          optimizer",
        "  class         optplug_classic.adam.Adam",
        f"  plugin        optplug-classic (optplug {optplug.__version__})",
        "  plugin API    1 (this optplug supports 1)",
    ]
    rows = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
    assert (rows["lr"], rows["eps"], rows["amsgrad"]) == ("0.001", "1e-08", "False")
    assert "https://arxiv.org/abs/1412.6980" in result.stdout


def test_info_names_the_other_plugins_of_a_name(command: Any, monkeypatch: pytest.MonkeyPatch):
    register_too(monkeypatch, "optimizer", "sgd")
    (line,) = (line for line in command("info", "sgd").stdout.splitlines() if line.startswith("  other plugins"))
    assert line == "  other plugins " + ", ".join(registry.alternatives("optimizer", "sgd"))
    assert line.endswith("later:sgd")


@pytest.mark.parametrize(
    ("name", "interval"), [("reduce-lr-on-plateau", "validation"), ("optplug-schedules:cosine_annealing_lr", "epoch")]
)
def test_info_of_a_scheduler_shows_its_interval(command: Any, name: str, interval: str):
    assert f"  interval      {interval}\n" in command("info", name).stdout


def test_info_of_an_unknown_name_suggests_the_nearest_names(command: Any):
    result = command("info", "adm")
    assert result.exit_code == 1
    assert result.stdout == ""
    start, _, names = result.stderr.partition("'adam', ")
    assert start == "error: no optimizer, scheduler or function named 'adm'; did you mean "
    # Which names are the next ones depends on the installed packages.
    assert re.fullmatch(r"'(\w+)', '(\w+)'\?\n", names), names
    assert all(name in registry.names("optimizer") for name in re.findall(r"\w+", names))


def test_python_m_optplug_lists_without_importing_torch(tmp_path: Path):
    blocked = tmp_path / "torch"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('torch is not needed for this')")
    result = subprocess.run(
        [sys.executable, "-m", "optplug", "list"],
        env=environment_with(tmp_path, OPTPLUG_DISABLE="optplug-schedules"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "adam " in result.stdout
    assert "cosine_annealing_lr" not in result.stdout
    assert "plugin optplug-schedules (optplug " in result.stdout
    assert result.stdout.rstrip().endswith("is disabled by OPTPLUG_DISABLE")


@pytest.mark.parametrize("arguments", [("list", "loud*"), ("check", "loud_sgd")], ids=lambda arguments: arguments[0])
def test_what_a_plugin_prints_is_not_in_the_json(tmp_path: Path, arguments: tuple[str, ...]):
    tmp_path.joinpath("loud.py").write_text(
        "import optplug\nprint('loaded')\n"
        "@optplug.hookimpl\n"
        "def optplug_optimizers():\n"
        "    return [optplug.OptimizerSpec('loud_sgd', 'loud_target:SGD')]\n"
    )
    tmp_path.joinpath("loud_target.py").write_text("from torch.optim import SGD\nprint('imported')\n")
    info = tmp_path / "loud-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[optplug]\nloud = loud\n")
    result = subprocess.run(
        [sys.executable, "-m", "optplug", *arguments, "--json"],
        env=environment_with(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert isinstance(json.loads(result.stdout), (dict, list)), result.stderr
    assert "loaded" in result.stderr
    assert "imported" in result.stderr or arguments[0] == "list"


def test_unusable_names_are_shown_as_such(command: Any, register_optimizers: Any):
    register_optimizers(OptimizerSpec("unusable", torch.optim.SGD, "a summary", unsupported="it needs two models"))
    assert "cannot be used: it needs two models" in command("list", "unusable").stdout
    assert json.loads(command("list", "--json", "unusable").stdout)["names"][0]["unsupported"] == "it needs two models"
    assert "\n  cannot be used: it needs two models\n" in command("info", "unusable").stdout


def test_info_shows_what_a_length_of_an_optimizer_may_be(command: Any, register_optimizers: Any):
    register_optimizers(OptimizerSpec("decaying", torch.optim.SGD, length="momentum"))
    words = " ".join(command("info", "decaying").stdout.split())
    assert "In a configuration also auto, {steps: n}, {epochs: x} or {ratio: x}." in words
