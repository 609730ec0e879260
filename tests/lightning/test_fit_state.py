"""The state of a fit: one object per fit, held by the callback. It survives copies, and holds no objects afterwards."""

from __future__ import annotations

import ast
import copy
import gc
import importlib
import pickle
import pkgutil
import weakref
from collections.abc import MutableMapping, MutableSequence, MutableSet
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import optplug.lightning
from optplug.lightning.reporter import Reporter
from support import ADAM, COSINE, PLATEAU, RISING, SGD, scheduler_of

FOLDER = Path(optplug.lightning.__path__[0])
FILES = sorted(path.name for path in FOLDER.glob("*.py"))
MODULES = [f"optplug.lightning.{module.name}" for module in pkgutil.iter_modules(optplug.lightning.__path__)]
COSINE_BY_STEP = {**COSINE, "interval": "step"}


# ----------------------------------------------------------------------------------------------- the source


def is_mutable_container(value: Any) -> bool:
    kinds = (MutableMapping, MutableSequence, MutableSet, weakref.WeakSet)
    return isinstance(value, kinds) or hasattr(value, "cache_info")


@pytest.mark.parametrize("name", MODULES)
def test_module_has_no_mutable_containers(name: str) -> None:
    found = vars(importlib.import_module(name))
    assert [key for key, value in found.items() if key[:2] != "__" and is_mutable_container(value)] == []


@pytest.mark.parametrize(
    "value", [{}, [], set(), weakref.WeakSet(), weakref.WeakKeyDictionary()], ids=lambda value: type(value).__name__
)
def test_mutable_containers_are_recognized(value: Any) -> None:
    assert is_mutable_container(value)


@pytest.mark.parametrize("file", FILES)
def test_frames_of_callers_are_not_read(file: str) -> None:
    tree = ast.parse((FOLDER / file).read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"_getframe", "currentframe", "f_locals", "f_back", "stack"}


@pytest.mark.parametrize("file", [file for file in FILES if file != "reporter.py"])
def test_only_the_reporter_prints_and_warns(file: str) -> None:
    calls = [node for node in ast.walk(ast.parse((FOLDER / file).read_text())) if isinstance(node, ast.Call)]
    found = [ast.unparse(call.func) for call in calls]
    by_others = [name for name in found if name.rpartition(".")[2] in ("print", "warn") and "reporter." not in name]
    assert by_others == (["print"] if file == "cli.py" else [])  # --optimizer.help prints the documentation


# ----------------------------------------------------------------------------------------------- one fit after another


@pytest.mark.both_import_names
def test_each_fit_has_a_state_of_its_own(scripted_module: type, trainer: Any, quiet_callback: Any) -> None:
    configure = quiet_callback(ADAM, PLATEAU)
    states = []
    for epochs in (3, 2):
        trainer(callbacks=[configure], max_epochs=epochs).fit(scripted_module(val=RISING))
        states.append(configure.fit_state)
    assert states[0] is not states[1]
    assert [[history.observed for history in state.histories] for state in states] == [[3], [2]]
    assert [[counter.count for counter in state.step_counters] for state in states] == [[12], [8]]


def test_two_fits_with_one_trainer_continue(scripted_module: type, trainer: Any, quiet_callback: Any) -> None:
    module = scripted_module()
    made = trainer(callbacks=[quiet_callback(ADAM, COSINE)], max_epochs=2)
    made.fit(module)
    made.fit_loop.max_epochs = 3
    made.fit(module)
    assert scheduler_of(made).last_epoch == 1  # the second fit has built a new schedule
    assert len(made.callbacks[0].fit_state.step_counters) == 1


@pytest.mark.parametrize("stop", [False, True], ids=["fit", "exception"])
def test_callback_holds_no_optimizer_after_the_fit(
    scripted_module: type, trainer: Any, quiet_callback: Any, frequency_recorder: Any, stop: bool
) -> None:
    configure = quiet_callback(ADAM, PLATEAU)
    made = trainer(callbacks=[configure, frequency_recorder(stop)])
    try:
        made.fit(scripted_module(val=RISING))
    except frequency_recorder.StopFit as error:
        error.__traceback__ = None
    references = [weakref.ref(made.optimizers[0]), weakref.ref(scheduler_of(made))]
    made.strategy.lightning_module.trainer = None
    del made
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_checkpoint_saved_after_the_fit_has_the_metadata(
    scripted_module: type, trainer: Any, quiet_callback: Any, tmp_path: Path
) -> None:
    made = trainer(callbacks=[quiet_callback(ADAM, PLATEAU)])
    made.fit(scripted_module(val=RISING))
    made.validate(made.lightning_module, verbose=False)
    made.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)["optplug"]
    assert saved["config"]["optimizer"] == ADAM
    assert [row["group"] for row in saved["groups"][0]] == ["0"]
    assert saved["steps"] == [12]
    assert saved["plateau_histories"][0]["observed"] == 3


class WithoutSetup:
    """A mixin of a user that overrides hooks of the callback without calling them."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pass


def test_subclass_that_overrides_setup_works_in_several_fits(
    scripted_module: type, trainer: Any, optplug_lightning: Any
) -> None:
    subclass = type("Own", (WithoutSetup, optplug_lightning.ConfigureOptimizers), {})
    configure = subclass(ADAM, COSINE, verbose=False)
    for _ in range(2):
        made = trainer(callbacks=[configure])
        made.fit(scripted_module())
        assert scheduler_of(made).last_epoch == 3
        assert [configured.config for _, configured in configure.fit_state.configured(made)] == [configure.config]


# ----------------------------------------------------------------------------------------------- rebuilt optimizers


def test_optimizers_rebuilt_during_the_fit_replace_the_earlier_ones(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any
) -> None:
    counts: list[int] = []

    class Rebuild(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.strategy.setup_optimizers(trainer)

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            counts.append(len(trainer.callbacks[0].fit_state.built))

    made = trainer(callbacks=[quiet_callback(SGD, COSINE_BY_STEP), Rebuild()])
    with pytest.warns(UserWarning, match="is no longer among the trainer's schedulers"):
        made.fit(scripted_module())
    assert counts == [1] * 12


def test_module_may_configure_each_optimizer_on_its_own(two_optimizer_module: type, trainer: Any) -> None:
    class Own(two_optimizer_module):
        def configure_optimizers(self) -> Any:
            plain = torch.optim.SGD([self.layer.bias], lr=1.0)
            self.layer.bias.requires_grad_(False)
            made = [optplug.configure_optimizers(self, SGD, COSINE_BY_STEP), {"optimizer": plain}]
            self.layer.bias.requires_grad_(True)
            return made

    made = trainer(max_epochs=1)
    module = Own()
    made.fit(module)
    assert [first for first, _ in module.lrs] == pytest.approx([1.0, 0.933, 0.75, 0.5], abs=1e-3)
    assert {second for _, second in module.lrs} == {1.0}


class WrappingOptimizer:
    """The optimizer of a strategy such as DeepSpeed, around that of `configure_optimizers`. It has no step hooks."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        if name in ("optimizer", "register_step_post_hook"):
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


@pytest.mark.parametrize("schedule", [COSINE_BY_STEP, PLATEAU], ids=["cosine", "plateau"])
def test_schedule_of_an_optimizer_that_the_strategy_wraps_is_stepped(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, schedule: Any
) -> None:
    class Wrapping(pl.strategies.SingleDeviceStrategy):
        def setup_optimizers(self, trainer: Any) -> None:
            super().setup_optimizers(trainer)
            self.optimizers = [WrappingOptimizer(optimizer) for optimizer in self.optimizers]

    configure = quiet_callback(ADAM, schedule)
    strategy = Wrapping(device="cpu")
    made = trainer(callbacks=[configure], strategy=strategy)
    module = scripted_module(val=RISING)
    made.fit(module)
    assert scheduler_of(made).last_epoch == (12 if schedule is COSINE_BY_STEP else 3)
    assert module.lrs[-1] < 1.0
    assert [counter.count for counter in configure.fit_state.step_counters] == [12]
    assert configure.fit_state.configured(made) == []  # as without optplug's optimizer: there is no group table


# ----------------------------------------------------------------------------------------------- copies during a fit


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("schedule", [PLATEAU, {**COSINE_BY_STEP, "warmup_steps": 2}], ids=["plateau", "warmup"])
def test_copy_made_during_a_fit_refers_to_the_copied_optimizer(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, duplicate: Any, schedule: Any
) -> None:
    copies: list[Any] = []
    configure = quiet_callback(ADAM, schedule)

    class Copy(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 1 and not copies:
                log, configure.__dict__["log"] = configure.__dict__["log"], None  # the module refers to the data
                copies.append(duplicate((configure, trainer.optimizers)))
                configure.__dict__["log"] = log

    made = trainer(callbacks=[configure, Copy()])
    made.fit(scripted_module(val=RISING))
    ((copied, optimizers),) = copies
    assert optimizers[0] is not made.optimizers[0]
    found = copied.fit_state.configured(SimpleNamespace(optimizers=optimizers))
    assert [(optimizer, configured.config) for optimizer, configured in found] == [(optimizers[0], configure.config)]
    (managed,) = copied.fit_state.managed
    assert managed.scheduler is managed.adapter.scheduler
    assert managed.scheduler.optimizer is optimizers[0]
    module = scripted_module(val=RISING)
    trainer(callbacks=[copied]).fit(module)  # the copy can be used for a fit of its own
    assert len(module.lrs) == 12


# ----------------------------------------------------------------------------------------------- the reporter


def rank(*, zero: bool) -> Any:
    """A trainer that is, or is not, on rank zero."""
    return SimpleNamespace(is_global_zero=zero)


@pytest.mark.parametrize("verbose", [True, False])
def test_reporter_prints_if_verbose(verbose: bool, capsys: Any) -> None:
    Reporter(verbose).report(rank(zero=True), "text")
    assert capsys.readouterr().out == ("optplug: text\n" if verbose else "")


@pytest.mark.parametrize("verbose", [True, False])
def test_reporter_warns_on_rank_zero(verbose: bool) -> None:
    Reporter(verbose).warn(rank(zero=False), "text")
    for trainer in (rank(zero=True), None):
        with pytest.warns(UserWarning, match="text"):
            Reporter(verbose).warn(trainer, "text")
