"""Listing and look-up with 200 plugin distributions: what is imported. Times: `benchmarks/listing.py`."""

from __future__ import annotations

import runpy
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from optplug.errors import UnknownNameError
from optplug.registry import Registry

LISTING = Path(__file__).parents[2] / "benchmarks" / "listing.py"
LOADED_LATER = (
    "torch",
    "lightning",
    "pytorch_lightning",
    "numpy",
    "numba",
    "rich",
    "yaml",
    "optplug.config",
    "optplug.optim",
)
ADAPTED = (
    *("bitsandbytes", "dadaptation", "heavyball", "lion_pytorch", "optimi", "prodigyopt", "pytorch_optimizer"),
    *("schedulefree", "timm", "torch_optimizer", "torchao", "transformers"),
)


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """The names that the benchmark defines."""
    return runpy.run_path(str(LISTING))


@pytest.fixture(scope="module")
def many(benchmark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 200 plugin distributions, each with three optimizers and a schedule."""
    folder = tmp_path_factory.mktemp("many")
    benchmark["write_distributions"](folder)
    return folder


@pytest.mark.parametrize(
    ("name", "module"), [("generated007_second", "generated007_second"), ("adam", "optplug_classic.adam")]
)
def test_listing_imports_no_optimizer_and_a_name_imports_one(benchmark: Any, many: Path, name: str, module: str):
    listing, listed, loaded = benchmark["imported"](many, name)
    names = {line.split()[0] for line in listing.splitlines() if line}
    assert {f"generated{i:03}_{each}" for i in range(200) for each in (*benchmark["NAMES"], "lr")} <= names
    assert {"adam", "step_lr"} <= names
    assert not {*LOADED_LATER, *ADAPTED} & set(listed)
    assert not [each for each in listed if each.startswith("generated") and "_" in each]
    assert {f"generated{i:03}" for i in range(200)} <= set(listed)
    of_plugins = [each for each in loaded if each.startswith(("generated", "optplug_"))]
    assert of_plugins == [module]
    assert not set(ADAPTED) & set(loaded)


def test_unknown_name_error_is_short_with_many_names_and_many_quarantined_plugins(many: Path, benchmark: Any):
    points = [p for d in distributions(path=[str(many)]) for p in d.entry_points.select(group="optplug")]
    registry = Registry(points)  # the modules are not on the path: each plugin is quarantined
    with pytest.raises(UnknownNameError) as caught:
        registry.resolve("optimizer", "xyz")
    assert len(registry.quarantined) == 200
    message = str(caught.value)
    assert message.count("is quarantined: ModuleNotFoundError") == 3
    assert "(Also quarantined: generated003, generated004," in message
    assert message.endswith("and 189 more; `optplug doctor` shows the causes.)")
    assert len(message) < 700


def test_unknown_name_error_lists_few_of_many_names(many: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(many))
    points = [p for d in distributions(path=[str(many)]) for p in d.entry_points.select(group="optplug")]
    registry = Registry(points)
    assert len(registry.names("optimizer")) == 600
    with pytest.raises(UnknownNameError) as caught:
        registry.resolve("optimizer", "xyz")
    assert len(str(caught.value)) < 300
    assert str(caught.value).endswith("and 592 more (see optplug list).")
    with pytest.raises(UnknownNameError, match="did you mean 'generated007_second'"):
        registry.resolve("optimizer", "generated007_secnd")
