"""Private names of Lightning: they are used in one module only, exist in the installed version, and have fallbacks."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import optplug.lightning
from optplug.errors import WiringError
from optplug.lightning import _compat

FOLDER = Path(optplug.lightning.__path__[0])
FILES = sorted(path.name for path in FOLDER.glob("*.py"))

OWNERS: dict[str, Callable[[Any], Any]] = {
    "_trainer": lambda pl: pl.LightningModule(),
    "_checkpoint_connector": lambda pl: new_trainer(pl),
    "_loaded_checkpoint": lambda pl: new_trainer(pl)._checkpoint_connector,
    "_lightning_optimizers": lambda pl: pl.strategies.SingleDeviceStrategy(),
    "_results": lambda pl: new_trainer(pl),
    "_batches_that_stepped": lambda pl: new_trainer(pl).fit_loop.epoch_loop,
    "_should_check_val_fx": lambda pl: new_trainer(pl).fit_loop.epoch_loop,
    "_combined_loader_states_to_load": lambda pl: new_trainer(pl).fit_loop,
    "_load_combined_loader_states": lambda pl: new_trainer(pl).fit_loop,
    "_log_hyperparams": lambda pl: pl.LightningModule(),
    "_actions": lambda pl: importlib.import_module(f"{pl.__name__}.cli").LightningArgumentParser(),
    "_data_fetcher": lambda pl: new_trainer(pl).fit_loop,
    "_early_exit": lambda pl: pl.callbacks.LearningRateFinder(),
    "_update_attr": lambda pl: pl.callbacks.LearningRateFinder(),
    "_attr_name": lambda pl: pl.callbacks.LearningRateFinder(),
    "_extract_lr": lambda pl: pl.callbacks.LearningRateMonitor(),
}
"""For each private name, the object of Lightning that has it."""


def new_trainer(pl: Any) -> Any:
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.AST) -> set[str]:
    """The private names that a file reads from objects or imports, also through `getattr` and its relatives."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            found |= {argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("optplug"):
            found |= {part for alias in node.names for part in (*(node.module or "").split("."), alias.name)}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
    return {name for name in found if is_private(name)}


def own_names(tree: ast.AST) -> Iterator[str]:
    """The names that a file defines: functions, classes, and attributes that it assigns."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    yield target.attr
                elif isinstance(target, ast.Name):
                    yield target.id


def parsed(file: str) -> ast.Module:
    return ast.parse((FOLDER / file).read_text())


@pytest.mark.parametrize("file", [file for file in FILES if file != "_compat.py"])
def test_private_names_of_lightning_are_used_in_compat_only(file: str) -> None:
    own = {name for other in FILES for name in own_names(parsed(other))}
    assert private_names(parsed(file)) - own == set()


@pytest.mark.parametrize(
    "source", ["trainer._results", "getattr(x, '_results', 0)", "from a._b import c", "from a import _c", "import a._b"]
)
def test_use_of_a_private_name_is_found(source: str) -> None:
    assert len(private_names(ast.parse(source))) == 1


def test_every_private_name_in_compat_is_tested() -> None:
    assert private_names(parsed("_compat.py")) == set(OWNERS)


@pytest.mark.both_import_names
@pytest.mark.parametrize("name", OWNERS)
def test_installed_lightning_has_the_private_name(pl: Any, name: str) -> None:
    assert hasattr(OWNERS[name](pl), name)


OTHER_LOOPS = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=object()))

FALLBACKS: dict[str, tuple[Callable[[], Any], Any]] = {
    "attached_trainer": (lambda: _compat.attached_trainer(object()), None),
    "loaded_checkpoint, no connector": (lambda: _compat.loaded_checkpoint(SimpleNamespace()), None),
    "loaded_checkpoint, no attribute": (
        lambda: _compat.loaded_checkpoint(SimpleNamespace(_checkpoint_connector=object())),
        None,
    ),
    "options_of_parser": (lambda: _compat.options_of_parser(object()), []),
    "validation_is_repeated": (
        lambda: _compat.validation_is_repeated(
            SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(val_loop=object())))
        ),
        False,
    ),
    "as_misconfiguration": (
        lambda: type(_compat.as_misconfiguration(SimpleNamespace(), WiringError("missing"))),
        WiringError,
    ),
    "logged_metric_objects": (lambda: list(_compat.logged_metric_objects(SimpleNamespace())), []),
    "logging_step": (
        lambda: _compat.logging_step(
            SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()), global_step=7)
        ),
        7,
    ),
    "saved_epochs, no loops": (lambda: _compat.saved_epochs(OTHER_LOOPS, {"epoch": 3}), (3, 0)),
    "saved_epochs, other loops": (
        lambda: _compat.saved_epochs(OTHER_LOOPS, {"epoch": 3, "loops": {"fit_loop": {}}}),
        (3, 0),
    ),
    "restore_data_loaders": (
        lambda: _compat.restore_data_loaders(SimpleNamespace(fit_loop=SimpleNamespace())),
        None,
    ),
    "logs_hyperparameters": (
        lambda: _compat.logs_hyperparameters(SimpleNamespace(lightning_module=SimpleNamespace(hparams={"a": 1})), "b"),
        True,
    ),
    "validation_is_due": (
        lambda: _compat.validation_is_due(
            SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()), enable_validation=True)
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_fallback_if_lightning_lacks_the_private_name(name: str) -> None:
    call, expected = FALLBACKS[name]
    assert call() == expected


@pytest.mark.both_import_names
def test_callback_is_recognized_by_its_class(pl: Any) -> None:
    class Subclass(pl.callbacks.Timer):
        pass

    class Timer:
        pass

    assert _compat.is_lightning_callback(Subclass(), "Timer")
    assert not _compat.is_lightning_callback(Timer(), "Timer")


def test_finetuning_callbacks_are_found_under_either_name_and_without_callbacks(pl: Any) -> None:
    callback = pl.callbacks.BackboneFinetuning()
    trainer = SimpleNamespace(callbacks=[callback, pl.Callback()])
    assert _compat.finetuning_callbacks(trainer) == [callback]
    assert _compat.finetuning_callbacks(SimpleNamespace()) == _compat.finetuning_callbacks(None) == []


def test_add_param_group_is_shared_only_if_the_optimizer_has_its_own() -> None:
    plain, own = SimpleNamespace(), SimpleNamespace(add_param_group=len)
    wrappers = [SimpleNamespace(optimizer=plain), SimpleNamespace(optimizer=own), plain]
    _compat.share_add_param_group(SimpleNamespace(strategy=SimpleNamespace(_lightning_optimizers=wrappers)))
    assert [getattr(wrapper, "add_param_group", None) for wrapper in wrappers] == [None, len, None]
    _compat.share_add_param_group(SimpleNamespace(strategy=SimpleNamespace()))
