"""The commands `optplug list` and `optplug info`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import optplug
from optplug.cli.app import app
from optplug.registry import Plugin, QuarantinedPlugin, registry


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
    assert rows["adam"][:3] == ["optplug-classic", "optplug", optplug.__version__]
    assert " ".join(rows["adam"][3:]) == "adaptive moment estimation"
    assert rows["reduce_lr_on_plateau"][0] == "optplug-schedules"


def test_list_takes_a_glob(command: Any):
    result = command("list", "adam*")
    names = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert names == ["optimizer", *optplug.list_optimizers("adam*")]
    by_plugin = command("list", "optplug-schedules:*").stdout
    assert "cosine_annealing_lr" in by_plugin
    assert "adam" not in by_plugin


def test_list_without_matches_fails(command: Any):
    result = command("list", "zzz*")
    assert result.exit_code == 1
    assert result.stderr == "no optimizer, scheduler or function matches 'zzz*'\n"


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


@pytest.mark.parametrize(
    ("name", "interval"), [("reduce-lr-on-plateau", "validation"), ("optplug-schedules:cosine_annealing_lr", "epoch")]
)
def test_info_of_a_scheduler_shows_its_interval(command: Any, name: str, interval: str):
    assert f"  interval      {interval}\n" in command("info", name).stdout


def test_info_of_an_unknown_name_suggests_the_nearest_names(command: Any):
    result = command("info", "adm")
    assert result.exit_code == 1
    assert result.stdout == ""
    message = "error: no optimizer, scheduler or function named 'adm'; did you mean 'adam', 'radam', 'nadam'?\n"
    assert result.stderr == message


def test_python_m_optplug_lists_without_importing_torch(tmp_path: Path):
    blocked = tmp_path / "torch"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('torch is not needed for this')")
    result = subprocess.run(
        [sys.executable, "-m", "optplug", "list"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OPTPLUG_DISABLE": "optplug-schedules"},
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
