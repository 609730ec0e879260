"""The adapters: names, precedence, installed and absent packages, and the adapter classes."""

from __future__ import annotations

import importlib
import importlib.util
import py_compile
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import optplug
from optplug.errors import ConfigError
from optplug.registry import registry
from optplug.registry.signature import configurable_arguments, declared_cases, documented_arguments
from optplug.registry.specs import Spec, lookup_key
from optplug_adapters import packages
from optplug_adapters.packages import PRECEDENCE, entry, exported_names, is_installed, optimizers, precedence
from support import first_party, loaded_registration

INSTALLED = [package for package in PRECEDENCE if is_installed(package)]

HOOKS = ("optplug_optimizers", "optplug_schedulers")


def module_of(package: str) -> ModuleType:
    return importlib.import_module(f"optplug_adapters.{package}")


def specs_of(package: str) -> list[Spec]:
    module = module_of(package)
    return [spec for hook in HOOKS for spec in getattr(module, hook, list)()]


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package absent, as `import` and `find_spec` see it."""
    monkeypatch.setitem(sys.modules, package, None)


def needs_registered_adapters() -> None:
    if not registry.registrations("optimizer", "torch:*"):
        pytest.skip("the adapters are not registered as plugins in this environment")


@pytest.fixture
def make_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a package with the source text of its `__init__.py`."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)

    return make


# ---------------------------------------------------------------- the tables


@pytest.mark.parametrize("package", PRECEDENCE)
def test_absent_package_registers_nothing(package: str, monkeypatch: pytest.MonkeyPatch):
    hide(monkeypatch, package)
    assert specs_of(package) == []


@pytest.mark.parametrize("package", INSTALLED)
def test_registered_targets_exist_in_the_installed_version(package: str):
    specs = specs_of(package)
    assert specs
    for spec in specs:
        module, _, path = str(spec.target).partition(":")
        assert callable(getattr(importlib.import_module(module), path)), spec.name


@pytest.mark.parametrize("package", INSTALLED)
def test_specs_are_valid_and_have_different_names(package: str):
    by_kind: dict[str, list[str]] = {}
    for spec in specs_of(package):
        assert spec.error is None
        assert spec.summary
        assert spec.summary[-1] != "."
        assert spec.precedence == precedence(package)
        by_kind.setdefault(spec.kind, []).append(lookup_key(spec.name))
    for names in by_kind.values():
        assert len(names) == len(set(names))


@pytest.mark.parametrize("package", INSTALLED)
def test_cases_have_the_arguments_of_the_class(package: str):
    for spec in specs_of(package):
        registration = loaded_registration(spec, package)
        known = configurable_arguments(registration)
        for case in spec.cases:
            of_wrapper = {"base"} if getattr(spec, "base", None) else set()
            assert not case.keys() - known.keys() - of_wrapper, spec.name


def test_required_arguments_have_values_in_the_first_case():
    for package in INSTALLED:
        for spec in specs_of(package):
            registration = loaded_registration(spec, package)
            arguments = documented_arguments(registration)
            required = {argument.name for argument in arguments if argument.required}
            first = declared_cases(registration)[0]
            assert spec.unsupported or required <= first.keys(), f"{package}:{spec.name}"


@pytest.mark.parametrize(
    ("package", "module"), [("torch", "optim"), ("pytorch_optimizer", ""), ("torch_optimizer", "")]
)
def test_every_optimizer_of_the_package_is_registered(package: str, module: str):
    if package not in INSTALLED:
        pytest.skip(f"{package} is not installed")
    found = importlib.import_module(f"{package}.{module}".rstrip("."))
    classes = {
        name
        for name, value in vars(found).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value.__module__.startswith(package if package == "torch" else (package, "pytorch_ranger"))
    }
    registered = {str(spec.target).rpartition(":")[2] for spec in specs_of(package) if spec.kind == "optimizer"}
    assert classes - registered == {"Optimizer"} & classes


# ---------------------------------------------------------------- what is read from the source


def test_class_that_the_installed_version_lacks_is_not_registered(make_package: Any, monkeypatch: pytest.MonkeyPatch):
    make_package("collection", "from .adam import (\n    Adam,\n    Other as Renamed,\n)\nfrom .lion import Lion\n")
    monkeypatch.setattr(packages, "PRECEDENCE", (*PRECEDENCE, "collection"))
    entries = [entry(cls, "words") for cls in ("Adam", "Renamed", "Lion", "Absent", "lion")]
    found = optimizers("collection", *entries)
    assert [spec.name for spec in found] == ["adam", "renamed", "lion"]
    assert [spec.target for spec in found] == ["collection:Adam", "collection:Renamed", "collection:Lion"]
    assert {spec.precedence for spec in found} == {1 + len(PRECEDENCE)}


def test_names_are_those_of_classes_functions_imports_and_assignments(make_package: Any):
    make_package(
        "made",
        'import os\n"""from x import Text"""\nclass A:\n    def method(self): ...\n    inner = 1\ndef b(): ...\n'
        "C = A\nd: int = 2\ntry:\n    from .e import E\nexcept ImportError:\n    pass\n# from f import F\n",
    )
    assert exported_names("made") == {"A", "b", "C", "d", "E"}


def test_package_without_source_text_registers_all_its_classes(
    make_package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_package("bytecode", "A = 1")
    source = tmp_path / "bytecode" / "__init__.py"
    py_compile.compile(str(source), str(source.with_suffix(".pyc")))
    source.unlink()
    monkeypatch.setattr(packages, "PRECEDENCE", (*PRECEDENCE, "bytecode"))
    assert [spec.name for spec in optimizers("bytecode", entry("A", "words"), entry("B", "words"))] == ["a", "b"]


def test_version_without_the_source_file_has_none_of_its_classes(make_package: Any, monkeypatch: pytest.MonkeyPatch):
    make_package("small", "A = 1")
    monkeypatch.setattr(packages, "PRECEDENCE", (*PRECEDENCE, "small"))
    assert optimizers("small", entry("A", "words"), source="missing.py") == []


def test_directory_without_init_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "heavy_directory").mkdir()
    assert importlib.util.find_spec("heavy_directory") is not None
    assert not is_installed("heavy_directory")


# ---------------------------------------------------------------- discovery


def test_discovery_imports_no_adapted_package():
    program = (
        "import sys, importlib\n"
        f"for name in {PRECEDENCE}:\n"
        "    module = importlib.import_module('optplug_adapters.' + name)\n"
        f"    specs = [spec for hook in {HOOKS} for spec in getattr(module, hook, list)()]\n"
        f"print(sorted({{*{PRECEDENCE}, 'numpy'}} & {{*sys.modules}}))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


# ---------------------------------------------------------------- precedence


def test_order_of_the_packages():
    order = ["torch", "lion_pytorch", "prodigyopt", "schedulefree", "dadaptation", "timm", "pytorch_optimizer"]
    order += ["optimi", "heavyball", "bitsandbytes", "torchao", "torch_optimizer", "transformers"]
    assert list(PRECEDENCE) == order
    assert [precedence(package) for package in order] == list(range(1, 14))


@pytest.mark.parametrize("kind", ["optimizer", "scheduler"])
def test_names_of_optplug_mean_its_own_classes_beside_all_adapters(kind: str):
    for name in first_party(kind):
        assert registry.resolve(kind, name).plugin.name.startswith("optplug-")
        assert ":" not in name


def test_adapter_of_torch_is_chosen_by_its_qualified_name():
    needs_registered_adapters()
    model = torch.nn.Linear(2, 1)
    assert type(optplug.create_optimizer("torch:adam", model)) is torch.optim.Adam
    assert type(optplug.create_optimizer("adam", model)).__module__ == "optplug_classic.adam"
    ranger = [each.plugin.name for each in registry.registrations("optimizer", "*:ranger")]
    if ranger:
        first = min(ranger, key=lambda name: precedence(name.replace("-", "_")))
        assert registry.resolve("optimizer", "ranger").plugin.name == first


def test_unsupported_scheduler_is_refused_with_the_remedy():
    needs_registered_adapters()
    optimizer = optplug.create_optimizer("sgd", torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"sequential_lr of plugin torch cannot be used: .* use 'sequential'"):
        optplug.create_scheduler("sequential_lr", optimizer)
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        optplug.create_optimizer_and_scheduler(torch.nn.Linear(1, 1), "sgd", {"name": "torch:sequential_lr"})
    assert caught.value.loc == ("scheduler", "name")
