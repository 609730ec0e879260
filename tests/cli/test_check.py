"""Tests of `optplug check`: the report, the exit codes, JSON, several names, errors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner, Result

import optplug
from broken_optimizers import EvalNeedsAState, LosesStateInStateDict, Plain, UndeclaredComplex
from optplug.cli.app import app
from optplug.registry import registry
from optplug.registry.specs import OptimizerSpec, SchedulerSpec

OPTIMIZERS = (
    OptimizerSpec("plain", Plain),
    OptimizerSpec("no_eval", EvalNeedsAState, capabilities={"modes"}),
    OptimizerSpec("no_state", LosesStateInStateDict),
    OptimizerSpec("undeclared", UndeclaredComplex),
    OptimizerSpec("absent", "broken_optimizers:Absent"),
    OptimizerSpec("unusable", Plain, unsupported="it updates in the backward pass; use plain"),
)
SCHEDULERS = (SchedulerSpec("torch_step_lr", torch.optim.lr_scheduler.StepLR, cases=({"step_size": 3},)),)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command in a process with a plugin that has `OPTIMIZERS` and `SCHEDULERS`."""
    module = ModuleType("broken_plugin")
    module.optplug_optimizers = optplug.hookimpl(lambda: list(OPTIMIZERS))  # type: ignore[attr-defined]
    module.optplug_schedulers = optplug.hookimpl(lambda: list(SCHEDULERS))  # type: ignore[attr-defined]
    for hook in ("optplug_optimizers", "optplug_schedulers"):
        getattr(module, hook).__name__ = hook
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("COLUMNS", "110")
    points = [("broken-plugin", module.__name__), ("optplug-classic", "optplug_classic")]
    monkeypatch.setattr(registry, "_points", tuple(EntryPoint(*point, "optplug") for point in points))
    registry.reload()
    yield lambda *arguments: CliRunner().invoke(app, ["check", *arguments])
    monkeypatch.undo()
    registry.reload()


def test_report_of_a_correct_optimizer(check):
    result = check("plain")
    assert result.exit_code == 0
    assert result.stderr == "checking plain\n"
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "optimizer plain",
        "  plugin    broken-plugin (broken_plugin ?)",
        "  class     broken_optimizers.Plain (broken_optimizers)",
        "  declares  none",
    ]
    assert re.fullmatch(r"  tested    1 case, float64: 29 checks in \d+\.\d s", lines[4])
    assert "29 promises kept" in lines
    assert "broken" not in result.stdout.replace("broken_", "").replace("broken-", "")
    assert "  it has no train() and eval(): eval_before_the_first_step_has_no_effect, train_reverts_eval," in lines
    assert max(map(len, lines)) <= 110


def test_fault_of_the_class_is_shown_with_its_remedy(check):
    result = check("no_eval")
    assert result.exit_code == 1
    expected = """\
1 of 32 promises broken
  eval_before_the_first_step_has_no_effect
    promise: train() and eval() before the first step change nothing: a trainer validates before it trains.
    seen:    raised KeyError: 'mean'
    fault:   the class broken_optimizers.EvalNeedsAState
    remedy:  let eval() skip parameters that have no state yet
31 promises kept
"""
    assert expected in result.stdout


def test_fault_of_the_declaration_is_shown_with_its_remedy(check):
    result = check("undeclared")
    assert result.exit_code == 1
    expected = """\
    seen:    it takes complex parameters, but 'complex' is not declared
    fault:   the declaration in broken-plugin (broken_plugin ?)
    remedy:  declare 'complex'
"""
    assert expected in result.stdout


def test_several_names_end_with_one_line_for_each(check):
    result = check("plain", "no_*", "torch_step_lr", "plain")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-4:] == [
        "plain: 29 promises kept",
        "no_eval: 31 promises kept, 1 broken: 1 by the fault of the class",
        "no_state: 27 promises kept, 2 broken: 2 by the fault of the class",
        "torch_step_lr: 4 promises kept",
    ]
    assert "checking no_state (3 of 4)" in result.stderr


def test_json_has_all_that_the_text_has(check):
    result = check("no_state", "torch_step_lr", "--json")
    assert result.exit_code == 1
    optimizer, scheduler = json.loads(result.stdout)
    assert (optimizer["kind"], optimizer["name"], optimizer["conforms"]) == ("optimizer", "no_state", False)
    first = optimizer["broken"][0]
    assert first["promise"] == "resumed_equals_uninterrupted"
    assert first["blame"] == "class"
    assert first["checks"] == ["resumed_equals_uninterrupted[default]"]
    assert "differs by" in first["what"]
    assert all(first[key] for key in ("remedy", "meaning"))
    assert (scheduler["kind"], scheduler["conforms"]) == ("scheduler", True)
    assert set(scheduler["kept"]) == {
        *("groups_are_independent", "resumed_equals_uninterrupted"),
        *("tensor_lr_is_updated_in_place", "get_last_lr_returns_group_lrs"),
    }


def test_engine_limits_the_tested_engines(check):
    result = check("sgd", "--engine", "loop", "--json")
    assert result.exit_code == 0
    (report,) = json.loads(result.stdout)
    assert report["tested"] == "4 cases, loop, float64"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plane"], "error: no optimizer or scheduler named 'plane'; did you mean 'plain'?"),
        (["zzz*"], "error: no optimizer or scheduler matches 'zzz*'"),
        (["plain", "--engine", "lop"], "error: no engine named 'lop'; did you mean 'loop'?"),
    ],
)
def test_unknown_name_or_engine_ends_with_exit_code_2(check, arguments, message):
    result = check(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_class_that_cannot_be_loaded_does_not_end_the_run(check):
    result = check("absent", "plain")
    assert result.exit_code == 2
    assert "error: absent: optimizer 'absent' of plugin broken-plugin" in result.stderr
    assert "AttributeError" in result.stderr
    assert "29 promises kept" in result.stdout


def test_unsupported_optimizer_is_reported_with_the_reason(check):
    result = check("unusable")
    assert result.exit_code == 0
    assert "  tested    no: cannot be used: it updates in the backward pass; use plain" in result.stdout
