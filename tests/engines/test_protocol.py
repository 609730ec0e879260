"""A new engine needs one file (`numpy_engine.py`) and one entry in `ENGINES`."""

from __future__ import annotations

import ast
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import optplug
from numpy_engine import NumpyEngine
from optplug import engines
from optplug.engines.protocol import BucketKey
from optplug.errors import EngineError
from optplug.testing import inapplicable_checks, optimizer_checks
from support import first_party

Adam, SGD = (optplug.get_optimizer(name) for name in ("adam", "sgd"))
RULES = [name for name in first_party("optimizer") if issubclass(optplug.get_optimizer(name), optplug.RuleOptimizer)]
REDUCING_RULES = ("adafactor", "lamb", "lars", "prodigy")
MATRIX_RULES = ("muon", "soap")
PACKAGE = Path(optplug.__file__).parent


@pytest.fixture
def numpy_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[NumpyEngine]:
    """Inserts the engine before all others."""
    engine = NumpyEngine()
    monkeypatch.setattr(engines, "ENGINES", [engine, *engines.ENGINES])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield engine
    torch.set_num_threads(threads)


def stepped(params: list[torch.Tensor], cls: Any = Adam, **options: Any) -> Any:
    optimizer = cls(params, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(3):
        optimizer.step()
    return optimizer


def real() -> torch.Tensor:
    return torch.ones(3, requires_grad=True)


def complex_() -> torch.Tensor:
    return torch.ones(3, dtype=torch.complex64, requires_grad=True)


def reports(optimizer: Any) -> set[tuple[str, str]]:
    return {(report.engine, report.reason) for report in optimizer.engine_report()}


@pytest.mark.parametrize("name", [name for name in RULES if name not in REDUCING_RULES + MATRIX_RULES])
def test_new_engine_conforms(name, numpy_engine):
    checks = [check for check in optimizer_checks(name) if "[numpy-" in check.id]
    cases = len(optplug.get_optimizer(name).cases)
    assert sum(check.id.startswith("engine_agrees_with_loop[") for check in checks) == cases
    assert "engine numpy" not in inapplicable_checks(name)
    for check in checks:
        check()


@pytest.mark.parametrize("name", REDUCING_RULES)
def test_new_engine_does_not_step_rules_that_reduce(name, numpy_engine):
    reason = "the rule reduces, engine numpy does not"
    assert not [check.id for check in optimizer_checks(name) if "[numpy-" in check.id]
    assert inapplicable_checks(name)["engine numpy"] == (
        f"engine 'numpy' cannot take a parameter: {reason}; use engine='auto'"
    )
    assert reports(stepped([real()], optplug.get_optimizer(name))) == {("numba", f"auto: {reason}")}


@pytest.mark.parametrize("name", MATRIX_RULES)
def test_new_engine_does_not_step_rules_with_matrix_functions(name, numpy_engine):
    assert not [check.id for check in optimizer_checks(name) if "[numpy-" in check.id]
    assert "engine numpy calls no matrix functions; use engine='auto'" in inapplicable_checks(name)["engine numpy"]


def test_auto_takes_the_first_engine_that_supports_the_parameters(numpy_engine):
    assert reports(stepped([real(), complex_()])) == {
        ("numpy", "auto: NumPy arrays"),
        ("numba", "auto: engine numpy takes real parameters only"),
    }
    shared = torch.ones(4)
    overlapping = [shared[:3].requires_grad_(), shared[1:].requires_grad_()]
    assert reports(stepped(overlapping)) == {
        ("loop", "auto: the parameter shares memory with another parameter or with itself")
    }


def test_reason_states_why_each_faster_engine_was_passed_over(numpy_engine):
    z = torch.ones(3, dtype=torch.complex64)
    z.requires_grad_().grad = torch.ones(3, dtype=torch.complex64).conj()
    optimizer = Adam([z])
    optimizer.step()
    assert reports(optimizer) == {
        ("foreach", "auto: engine numpy takes real parameters only; its gradient is a lazy conjugate")
    }


def test_requested_engine_steps_or_raises_with_its_reason(numpy_engine):
    assert reports(stepped([real()], engine="numpy")) == {("numpy", "engine='numpy'")}
    p = complex_()
    with pytest.raises(EngineError) as caught:
        stepped([p], engine="numpy")
    assert str(caught.value) == (
        "engine 'numpy' cannot take a parameter: engine numpy takes real parameters only; use engine='auto'"
    )
    assert torch.equal(p.detach(), torch.ones(3, dtype=torch.complex64))
    for option, value in (("differentiable", True), ("foreach", True), ("foreach", False)):
        with pytest.raises(EngineError, match=r"needs engine 'loop'|contradicts engine='numpy'"):
            Adam([real()], engine="numpy", **{option: value})
    with pytest.raises(EngineError, match=r"no engine named 'nunpy'.*'numpy'"):
        Adam([real()], engine="nunpy")


def test_options_that_keep_scalars_as_tensors_exclude_the_engine(numpy_engine):
    assert reports(SGD([real()], differentiable=True)) == {
        ("loop", "auto: differentiable=True keeps scalars as tensors")
    }
    with pytest.raises(EngineError, match=r"capturable=True needs engine 'loop' \(or 'auto'\), not 'numpy'"):
        stepped([real()], engine="numpy", capturable=True)


def test_engine_is_asked_once_per_bucket(numpy_engine, monkeypatch):
    keys: list[BucketKey] = []
    monkeypatch.setattr(numpy_engine, "unsupported", lambda key, traced: keys.append(key), raising=False)
    optimizer = stepped([real(), torch.ones(2, dtype=torch.float64, requires_grad=True)])
    asked = len(keys)
    assert [key.param_dtype for key in keys[:2]] == [torch.float32, torch.float64]
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert len(keys) == asked


def test_engine_is_removed_with_its_entry():
    with pytest.raises(EngineError, match="no engine named 'numpy'"):
        Adam([real()], engine="numpy")


# ------------------------------------------------------------------------------------------ the list


def test_type_of_engine_names_equals_the_list():
    assert {*typing.get_args(engines.Engine)} == {*engines.engine_names()}
    assert engines.engine_names() == ["auto", "loop", "foreach", "numba"]


def test_last_engine_supports_everything():
    last = engines.ENGINES[-1]
    assert not last.runs_graph
    assert last.tensor_scalars == {"differentiable", "capturable"}


@pytest.mark.parametrize("file", sorted(PACKAGE.joinpath("optim").glob("*.py")), ids=lambda file: file.name)
def test_optimizers_know_no_engine_by_name(file):
    tree = ast.parse(file.read_text())
    names = {engine.name for engine in engines.ENGINES} | {*engines.PLANNED}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    imported = {f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert texts & names <= {"foreach"}  # torch's option of this name
    assert not any(part in names for name in imported for part in name.split("."))
