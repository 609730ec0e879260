"""Safe loading: `torch.load(weights_only=True)` loads optplug's own classes, in new processes, and no others."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import optplug
from optplug.errors import PluginError
from optplug.lightning import ConfigureOptimizers
from optplug.lightning.stepping_callback import SteppingCallback
from optplug.registry import registry, safe_globals
from optplug.registry.safe_globals import CORE_CLASSES, SafeGlobal, safe_targets
from support import first_party

IMPORTS = {
    "optplug, then torch": "import optplug, torch",
    "torch, then optplug": "import torch, optplug",
    "the callback": "import torch; from optplug.lightning import ConfigureOptimizers",
    "the callback of the other name": "import torch; from optplug.pytorch_lightning import ConfigureOptimizers",
}


def new_process(program: str, *arguments: str) -> str:
    ran = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def parameters() -> list[torch.nn.Parameter]:
    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones(3, 2)
    return [p]


def stepped(name: str) -> torch.optim.Optimizer:
    optimizer = optplug.create_optimizer(name, parameters())
    optimizer.step()
    return optimizer


# ---------------------------------------------------------------- what is declared


def test_declared_classes_are_the_registered_ones_of_optplug() -> None:
    kinds = ("optimizer", "scheduler")
    targets = [registry.resolve(kind, name).spec.target for kind in kinds for name in first_party(kind)]

    assert len(targets) > 40
    assert sorted(safe_targets()) == sorted([*CORE_CLASSES, *targets])
    assert {SafeGlobal(target) for target in safe_targets()} <= set(torch.serialization.get_safe_globals())


@pytest.mark.parametrize("target", safe_targets())
def test_declared_name_is_that_in_pickles(target: str) -> None:
    cls, name = SafeGlobal(target)

    assert name == f"{cls.__module__}.{cls.__qualname__}"
    assert isinstance(cls, type)
    assert pickle.loads(pickle.dumps(cls)) is cls


def test_classes_of_other_packages_are_not_declared(tmp_path: Path) -> None:
    torch.save(torch.optim.SGD, tmp_path / "class.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"torch\.optim\.sgd\.SGD"):
        torch.load(tmp_path / "class.pt", weights_only=True)


def test_class_that_cannot_be_imported_is_refused_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "optplug.lightning.callback:ConfigureOptimizers"
    imported = safe_globals._imported
    torch.save({"class": optplug.get_optimizer("adam")}, tmp_path / "class.pt")
    torch.save(ConfigureOptimizers("adam"), tmp_path / "callback.pt")
    monkeypatch.setattr(safe_globals, "_imported", lambda target: 1 / 0 if target == broken else imported(target))

    assert torch.load(tmp_path / "class.pt", weights_only=True) == {"class": optplug.get_optimizer("adam")}
    with pytest.raises(PluginError, match=rf"'{re.escape(broken)}' could not be imported: ZeroDivisionError"):
        torch.load(tmp_path / "callback.pt", weights_only=True)


# ---------------------------------------------------------------- imports


def test_import_of_optplug_imports_neither_torch_nor_plugins() -> None:
    found = new_process(
        "import sys, optplug, optplug.lightning\n"
        "print([name for name in sys.modules if name == 'torch' or name.startswith(('optplug_', 'torch.'))])"
    )
    assert found == "[]"


@pytest.mark.parametrize("imports", list(IMPORTS)[:2])
def test_declaration_imports_no_optimizer_and_leaves_no_import_hook(imports: str) -> None:
    found = new_process(
        f"import sys; {IMPORTS[imports]}\n"
        "declared = [each for each in torch.serialization.get_safe_globals() if type(each).__name__ == 'SafeGlobal']\n"
        "modules = [name for name in sys.modules if name.startswith('optplug_') and '.' in name]\n"
        "print(len(declared), modules, [f for f in sys.meta_path if 'Torch' in getattr(f, '__name__', '')])"
    )
    assert found == f"{len(safe_targets())} [] []"


def test_declaration_skips_no_other_finder() -> None:
    found = new_process(
        "import sys\n"
        "class Other:\n"
        "    seen = []\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        self.seen.append(name)\n"
        "import optplug\n"
        "other, hook = Other(), sys.meta_path[0]\n"
        "sys.meta_path.insert(1, other)\n"
        "names, find_spec = [], hook.find_spec\n"
        "hook.find_spec = staticmethod(lambda name, *others: (names.append(name), find_spec(name))[1])\n"
        "import torch\n"
        "print(hook in sys.meta_path, [name for name in names if name not in other.seen])"
    )
    assert found == "False []"


def test_plugin_that_fails_is_left_out_alone() -> None:
    found = new_process(
        "import sys, optplug\n"
        "sys.modules['optplug_modern'] = None\n"
        "import torch\n"
        "declared = torch.serialization.get_safe_globals()\n"
        "names = [tuple.__getitem__(each, 1) for each in declared if isinstance(each, tuple)]\n"
        "print([any(name.startswith(package) for name in names) for package in ('optplug_classic', 'optplug_modern')])"
    )
    assert found == "[True, False]"


def test_import_of_torch_does_not_fail_with_the_declaration() -> None:
    found = new_process(
        "import optplug.registry.safe_globals as safe\n"
        "safe._declare = lambda: 1 / 0\n"
        "import sys, torch\n"
        "print(any('Torch' in getattr(finder, '__name__', '') for finder in sys.meta_path))"
    )
    assert found == "False"


def test_second_declaration_changes_nothing() -> None:
    before = torch.serialization.get_safe_globals()
    safe_globals.declare_safe_classes()

    assert sorted(map(repr, torch.serialization.get_safe_globals())) == sorted(map(repr, before))


# ---------------------------------------------------------------- loading in a new process

LOAD = """
loaded = torch.load(sys.argv[1], weights_only=True)
print(sorted(loaded), loaded["class"].__name__, loaded["callback"].config.optimizer.name, loaded["state"]["state"][0])
"""


@pytest.mark.parametrize("imports", IMPORTS)
def test_file_with_a_class_a_callback_and_a_state_is_loaded(imports: str, tmp_path: Path) -> None:
    # As a saved model of darts: the class and the callback are arguments of its trainer.
    state = stepped("lion").state_dict()
    configure = ConfigureOptimizers("lion", {"name": "step_lr", "step_size": 3}, param_groups="no_decay")
    contents = {"class": optplug.get_optimizer("lion"), "callback": configure, "state": state}
    torch.save(contents, tmp_path / "saved.pt")

    loaded = new_process(f"import sys; {IMPORTS[imports]}{LOAD}", str(tmp_path / "saved.pt"))
    assert loaded == f"['callback', 'class', 'state'] Lion lion {state['state'][0]}"


WITH_CONTAINERS = torch.serialization.safe_globals([defaultdict, dict])
"""Attributes of every optimizer of torch. torch's safe loading cannot fill the first, as in an optimizer with state."""


@pytest.mark.parametrize("name", ["adam", "lbfgs", "muon"])
def test_optimizer_object_without_state_is_loaded(name: str, tmp_path: Path) -> None:
    optimizer = optplug.create_optimizer(name, torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)))
    torch.save(optimizer, tmp_path / "optimizer.pt")
    with WITH_CONTAINERS:
        loaded = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert type(loaded) is type(optimizer)
    assert str(loaded.state_dict()) == str(optimizer.state_dict())


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "cosine_annealing_lr", "T_max": "auto", "warmup_steps": 2},
        {"name": "lambda_lr", "lr_lambda": "0.5 ** epoch"},
        {"name": "reduce_lr_on_plateau", "warmup_steps": 2, "monitor": "loss"},
        {"name": "step_lr", "step_size": 2},
    ],
    ids=lambda scheduler: scheduler["name"],
)
def test_scheduler_object_is_loaded(scheduler: dict[str, Any], tmp_path: Path) -> None:
    made = optplug.create_optimizer_and_scheduler(
        torch.nn.Linear(2, 1), {"name": "sgd", "lr": 1.0}, scheduler, epochs=1, steps_per_epoch=4
    )[1]
    torch.save(made, tmp_path / "scheduler.pt")
    with WITH_CONTAINERS:
        loaded = torch.load(tmp_path / "scheduler.pt", weights_only=True)
    assert type(loaded) is type(made)
    assert str(loaded.state_dict()) == str(made.state_dict())


def test_stepping_callback_is_loaded(tmp_path: Path) -> None:
    torch.save(SteppingCallback(manage_third_party_plateaus=True, verbose=False), tmp_path / "callback.pt")
    loaded = torch.load(tmp_path / "callback.pt", weights_only=True)
    assert type(loaded) is SteppingCallback
    assert (loaded.manage_third_party_plateaus, loaded._reporter.verbose) == (True, False)


def test_tool_with_a_list_of_its_own_takes_the_declared_classes() -> None:
    # As darts' `add_safe_globals`: each entry is a callable, or a pair of a callable and its full name.
    (entry,) = (entry for entry in torch.serialization.get_safe_globals() if "optplug_classic.adam:Adam" in repr(entry))
    assert isinstance(entry, tuple)
    assert len(entry) == 2
    cls, name = entry
    assert (cls, name) == (entry[0], entry[1]) == (optplug.get_optimizer("adam"), "optplug_classic.adam.Adam")
