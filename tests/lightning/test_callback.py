"""The callback `ConfigureOptimizers`: what it configures, errors before training, restored state, and the summary."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import types
from abc import ABC, ABCMeta
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pytest
import torch
from torch import nn

import optplug
from optplug.errors import ConfigError, WiringError
from optplug.lightning.managed_scheduler import ManagedFrequency
from optplug.registry import Plugin, Registration, registry
from optplug.registry.specs import OptimizerSpec
from support import (
    ADAM,
    BATCHES_PER_EPOCH,
    COSINE,
    LIGHTNING,
    PLATEAU,
    RISING,
    SGD,
    cosine,
    printed_lines,
    register_too,
    rounded,
    scheduler_of,
)

# ----------------------------------------------------------------------------------------- What the callback configures


@pytest.mark.both_import_names
def test_callback_configures_module_without_configure_optimizers(
    scripted_module: type, trainer: Any, quiet_callback: Any
):
    module = scripted_module()
    trainer(callbacks=[quiet_callback(ADAM, COSINE)]).fit(module)
    assert module.lrs == [cosine(epoch) for epoch in range(3) for _ in range(4)]


def test_callback_can_be_passed_without_a_list(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module()
    trainer(callbacks=quiet_callback(ADAM, COSINE)).fit(module)
    assert module.lrs[-1] == cosine(2)


@pytest.mark.both_import_names
@pytest.mark.parametrize("without_list", [True, False])
def test_callback_from_one_import_name_works_in_trainer_of_the_other(
    scripted_module: type, trainer: Any, optplug_lightning: Any, without_list: bool
):
    names = {"optplug.lightning", "optplug.pytorch_lightning"}
    (other,) = names - {optplug_lightning.__name__}
    callback = importlib.import_module(other).ConfigureOptimizers(SGD, COSINE, verbose=False)
    module = scripted_module()
    trainer(callbacks=callback if without_list else [callback]).fit(module)
    assert module.lrs[-1] == cosine(2)


def test_module_can_return_callback_from_configure_callbacks(scripted_module: type, trainer: Any, quiet_callback: Any):
    class WithCallback(scripted_module):
        def configure_callbacks(self) -> Any:
            return quiet_callback(ADAM, COSINE)

    module = WithCallback()
    trainer().fit(module)
    assert module.lrs[-1] == cosine(2)


def test_parameters_created_in_configure_model_are_optimized(scripted_module: type, trainer: Any, quiet_callback: Any):
    class Late(scripted_module):
        def __init__(self) -> None:
            super().__init__()
            del self.layer

        def configure_model(self) -> None:
            self.layer = nn.Linear(4, 1)

    module = Late()
    fitted = trainer(callbacks=quiet_callback(ADAM, param_groups=[{"match": "layer.bias", "lr": 0.5}]))
    fitted.fit(module)
    assert [id(p) for g in fitted.optimizers[0].param_groups for p in g["params"]] == [
        id(p) for p in module.parameters()
    ]


def test_parameters_frozen_in_setup_are_held_and_not_stepped(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any
) -> None:
    class Freeze(pl.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            pl_module.layer.bias.requires_grad_(False)

    module = scripted_module()
    before = module.layer.bias.detach().clone()
    fitted = trainer(callbacks=[quiet_callback(ADAM), Freeze()])
    fitted.fit(module)
    (optimizer,) = fitted.optimizers
    assert list(map(id, optimizer.param_groups[0]["params"])) == [id(module.layer.weight), id(module.layer.bias)]
    assert [id(p) for p in optimizer.state] == [id(module.layer.weight)]
    assert torch.equal(module.layer.bias, before)


@pytest.mark.parametrize("returned", ["optimizer", "mapping", "list", "two lists"])
def test_callback_without_optimizer_schedules_the_modules_own_optimizer(
    fit: Any, scripted_module: type, returned: str
) -> None:
    class WithOptimizer(scripted_module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return {
                "optimizer": optimizer,
                "mapping": {"optimizer": optimizer},
                "list": [optimizer],
                "two lists": ([optimizer], []),
            }[returned]

    fitted, module = fit(None, {"name": "exponential_lr", "gamma": 0.5}, module=WithOptimizer())
    assert type(fitted.optimizers[0]) is torch.optim.SGD
    assert rounded(module.lrs[::BATCHES_PER_EPOCH]) == [0.1, 0.05, 0.025]
    assert "configure_optimizers" not in vars(module)


def test_optimizer_without_scheduler_keeps_its_learning_rate(fit: Any) -> None:
    fitted, module = fit({"name": "adam", "lr": 0.1})
    assert fitted.lr_scheduler_configs == []
    assert set(module.lrs) == {0.1}


@pytest.mark.both_import_names
def test_override_replaces_configure_optimizers_for_one_fit(torch_module: type, trainer: Any, quiet_callback: Any):
    module = torch_module()
    fitted = trainer(callbacks=quiet_callback(ADAM, override=True))
    fitted.fit(module)
    assert type(fitted.optimizers[0]) is optplug.get_optimizer("adam")
    fitted = trainer()
    fitted.fit(module)
    assert type(fitted.optimizers[0]) is torch.optim.SGD


def test_learning_rate_finder_sets_linked_learning_rate(
    pl: Any, optplug_lightning: Any, digits_module: type, trainer: Any
) -> None:
    class WithLearningRate(digits_module):
        lr = 0.5

    settings = ({"name": "sgd", "lr": "module.lr"}, {**COSINE, "T_max": "auto"})
    groups = [{"match": "*.bias", "name": "biases", "lr_mult": 2}]
    # The finder runs as a callback, after the optimizer is built.
    finder = pl.callbacks.LearningRateFinder(num_training_steps=40)
    callback = optplug_lightning.ConfigureOptimizers(*settings, param_groups=groups, verbose=False)
    module = WithLearningRate()
    fitted = trainer(max_epochs=1, callbacks=[finder, callback], limit_val_batches=0, num_sanity_val_steps=0)
    fitted.fit(module)
    assert module.lr != 0.5
    assert [group["initial_lr"] for group in fitted.optimizers[0].param_groups] == [module.lr, 2 * module.lr]
    assert scheduler_of(fitted).base_lrs == [module.lr, 2 * module.lr]


def test_trainer_clips_gradients(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module()
    before = [p.detach().clone() for p in module.parameters()]
    trainer(callbacks=quiet_callback(SGD), max_steps=1, gradient_clip_val=0.01).fit(module)
    moved = torch.cat([(p - q).detach().flatten() for p, q in zip(module.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        ({"name": "adam", "lr": 1e-2}, {"name": "reduce_lr_on_plateau", "patience": 1, "warmup_steps": 20}),
        (
            {"name": "sgd", "lr": 0.5, "momentum": 0.9},
            {"name": "cosine_annealing_lr", "T_max": 138, "interval": "step", "warmup_steps": 20},
        ),
    ],
    ids=["adam", "sgd"],
)
def test_digits_classifier_learns(
    digits_module: type, trainer: Any, quiet_callback: Any, optimizer: Any, scheduler: Any
):
    module = digits_module()
    fitted = trainer(
        callbacks=quiet_callback(optimizer, scheduler, param_groups=[{"match": "*.bias", "weight_decay": 0.0}]),
        max_epochs=6,
    )
    fitted.fit(module)
    assert fitted.callback_metrics["val_acc"] > 0.85


# ----------------------------------------------------------------------------------------------- Errors before training


@pytest.mark.both_import_names
def test_module_with_configure_optimizers_raises(torch_module: type, trainer: Any, quiet_callback: Any):
    module = torch_module()
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=quiet_callback(ADAM)).fit(module)
    assert str(caught.value) == (
        "TorchModule defines configure_optimizers, and the configuration has an optimizer too: remove one, or pass "
        "override=True to replace the module's own"
    )
    assert module.lrs == []


def test_configure_optimizers_set_on_the_instance_raises(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters())
    with pytest.raises(WiringError, match="defines configure_optimizers"):
        trainer(callbacks=quiet_callback(ADAM)).fit(module)


def test_two_configuring_callbacks_raise(scripted_module: type, trainer: Any, quiet_callback: Any):
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=[quiet_callback(ADAM), quiet_callback(SGD)]).fit(scripted_module())
    assert str(caught.value).startswith("two ConfigureOptimizers callbacks configure ScriptedModule_")


def test_module_without_trainable_parameters_raises_before_training(
    scripted_module: type, trainer: Any, quiet_callback: Any
):
    module = scripted_module().requires_grad_(False)
    with pytest.raises(ConfigError, match="has no trainable parameters: all 2 parameters are frozen"):
        trainer(callbacks=quiet_callback(ADAM)).fit(module)
    assert module.lrs == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"param_groups": []}, "param_groups: requires an optimizer: add e.g. optimizer: adam"),
        (
            {"param_groups": "no_decay", "scheduler": COSINE},
            "param_groups: requires an optimizer: add e.g. optimizer: adam",
        ),
        (
            {"monitor": "x"},
            "monitor: 'x' requires a scheduler that takes a metric, and no scheduler is configured",
        ),
        ({"mode": "min"}, "mode: 'min' requires a scheduler that takes a metric, and no scheduler is configured"),
    ],
)
def test_callback_without_optimizer_accepts_only_a_scheduler(
    scripted_module: type, trainer: Any, quiet_callback: Any, arguments: dict[str, Any], message: str
):
    with pytest.raises(ConfigError) as caught:
        quiet_callback(**arguments)
    assert str(caught.value) == message

    class WithOptimizer(scripted_module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module = WithOptimizer()
    trainer(callbacks=quiet_callback(scheduler={**COSINE, "T_max": 20})).fit(module)
    assert module.lrs == pytest.approx([cosine(batch // 4, 20) for batch in range(12)], rel=1e-12)


def test_scheduler_without_any_optimizer_raises(fit: Any, scripted_module: type) -> None:
    with pytest.raises(WiringError, match=r"^scheduler: no optimizer is configured, .* add e.g. optimizer: adam"):
        fit(None, "reduce_lr_on_plateau")

    class WithSchedule(scripted_module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(WiringError, match="returns a schedule, and the configuration has one too"):
        fit(None, {"name": "exponential_lr", "gamma": 0.5}, module=WithSchedule())
    fitted, _ = fit(None, {"name": "exponential_lr", "gamma": 0.5}, module=WithSchedule(), override=True)
    assert type(scheduler_of(fitted)) is optplug.get_scheduler("exponential_lr")


def test_constructor_reports_unknown_optimizer_name(quiet_callback: Any):
    with pytest.raises(LookupError, match="did you mean 'adam'"):
        quiet_callback("adm")


# -------------------------------------------------------------------------------------------- Restored state and copies


@pytest.mark.parametrize("stop", [False, True], ids=["fit", "exception"])
@pytest.mark.parametrize("configuration", [COSINE, PLATEAU], ids=["cosine", "plateau"])
def test_module_and_trainer_are_restored_after_fit_and_exception(
    pl: Any,
    scripted_module: type,
    trainer: Any,
    quiet_callback: Any,
    frequency_recorder: Any,
    stop: bool,
    configuration: Any,
):
    module = scripted_module(val={"val_loss": None})
    before = dict(vars(module))
    fitted = trainer(callbacks=[quiet_callback(ADAM, {**configuration}), recorder := frequency_recorder(stop)])
    if stop:
        with pytest.raises(frequency_recorder.StopFit):
            fitted.fit(module)
    else:
        fitted.fit(module)
    assert [type(frequency) for frequency in recorder.frequencies] == [ManagedFrequency]
    assert [entry.frequency for entry in fitted.lr_scheduler_configs] == [1]
    assert "configure_optimizers" not in vars(module)
    assert set(vars(module)) - set(before) <= {"_trainer", "_example_input_array", "_hparams"}
    with pytest.raises(Exception, match="No `configure_optimizers"):
        trainer().fit(module)


def test_callback_fits_several_modules(scripted_module: type, trainer: Any, quiet_callback: Any):
    configure = quiet_callback(ADAM, {**PLATEAU})
    for _ in range(2):
        module = scripted_module(val=RISING)
        trainer(callbacks=configure).fit(module)
        assert module.step_values == [1.0, 2.0, 3.0]


def test_validate_and_test_without_fit_leave_module_unchanged(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module(val={"val_loss": [3.0]})
    fitted = trainer(callbacks=quiet_callback(ADAM, PLATEAU, monitor="nothing", mode="min"))
    assert fitted.validate(module, verbose=False) == [{"val_loss": 3.0}]
    assert list(fitted.test(module, verbose=False)[0]) == ["test_loss"]
    assert "configure_optimizers" not in vars(module)
    assert module.scheduler_steps == []


def test_validate_after_fit_does_not_step_schedulers(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module(val=RISING)
    fitted = trainer(callbacks=quiet_callback(ADAM, PLATEAU))
    fitted.fit(module)
    before = list(module.scheduler_steps)
    fitted.validate(module, verbose=False)
    assert module.scheduler_steps == before


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copy_of_attached_module_optimizes_its_own_parameters(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, duplicate: Any
):
    copies = []

    class Copy(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            copies.append(duplicate(pl_module))

    trainer(callbacks=[quiet_callback(ADAM), Copy()]).fit(scripted_module())
    (duplicated,) = copies
    (group,) = duplicated.configure_optimizers()["optimizer"].param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in duplicated.parameters()]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"]
)
def test_copied_callback_trains_identically(scripted_module: type, trainer: Any, quiet_callback: Any, duplicate: Any):
    module = scripted_module(val=RISING)
    trainer(callbacks=duplicate(quiet_callback(ADAM, PLATEAU))).fit(module)
    assert module.lrs[-1] == 0.5


@pytest.mark.parametrize("when", ["before a fit", "after a fit"])
def test_callback_in_a_file_is_plain_data(
    scripted_module: type, trainer: Any, optplug_lightning: Any, quiet_callback: Any, tmp_path: Path, when: str
):
    schedule = {**COSINE, "warmup_steps": 2}
    configure = quiet_callback(ADAM, schedule, param_groups="no_decay", on_resume="reset_all")
    first, second = scripted_module(), scripted_module()
    if when == "before a fit":
        torch.save(configure, tmp_path / "callback.pt")
    trainer(callbacks=configure).fit(first)
    if when == "after a fit":
        torch.save(configure, tmp_path / "callback.pt")
    with torch.serialization.safe_globals([optplug_lightning.ConfigureOptimizers]):
        loaded = torch.load(tmp_path / "callback.pt", weights_only=True)
    assert loaded.config == configure.config
    trainer(callbacks=loaded).fit(second)
    assert second.lrs == first.lrs


def test_copied_callback_keeps_the_attributes_of_a_derived_class(optplug_lightning: Any):
    class Derived(optplug_lightning.ConfigureOptimizers):
        def __init__(self, note: str) -> None:
            super().__init__("adam", {"name": "lambda_lr", "lr_lambda": "0.5 ** epoch"}, override=True)
            self.note = note

    copied = copy.deepcopy(Derived("kept"))
    assert (copied.note, copied.override, copied.config.scheduler.name) == ("kept", True, "lambda_lr")


# ---------------------------------------------------------------------------------------- Summary at the start of a fit


def _alternatives(optimizer: str, scheduler: str) -> list[str]:
    """What the summary says of the adapters that have the names too, if there are any."""
    registry = optplug.registry.registry
    texts = (registry.others_text("optimizer", optimizer), registry.others_text("scheduler", scheduler))
    return [text for text in texts if text]


@pytest.mark.parametrize("qualified", [False, True])
def test_summary_names_the_other_plugins_of_a_name_once(
    scripted_module: type, trainer: Any, optplug_lightning: Any, capsys: Any, monkeypatch: Any, qualified: bool
):
    register_too(monkeypatch, "optimizer", "sgd")
    register_too(monkeypatch, "scheduler", "cosine_annealing_lr")
    names = ("optplug-classic:sgd", "optplug-schedules:cosine_annealing_lr") if qualified else ("sgd", COSINE["name"])
    configure = optplug_lightning.ConfigureOptimizers({**SGD, "name": names[0]}, {**COSINE, "name": names[1]})
    trainer(callbacks=configure, max_epochs=2).fit(scripted_module())
    lines = printed_lines(capsys)
    alternatives = [line.strip() for line in lines if "also " in line]
    assert alternatives == ([] if qualified else _alternatives("sgd", "cosine_annealing_lr"))
    assert qualified or ["later:sgd" in alternatives[0], "later:cosine" in alternatives[1]] == [True, True]
    assert [lines.index(f"  {also}") - 1 for also in alternatives] == [
        i for i, line in enumerate(lines) if " from plugin " in line and not qualified
    ]


def test_summary_has_exact_lines(scripted_module: type, trainer: Any, optplug_lightning: Any, capsys: Any):
    module = scripted_module(val=RISING)
    configure = optplug_lightning.ConfigureOptimizers(
        {"name": "adam", "lr": 0.5},
        {**PLATEAU, "warmup_steps": 2},
        param_groups=[{"match": "*.bias", "weight_decay": 0.1}],
        monitor="val_loss",
    )
    fitted = trainer(callbacks=configure)
    capsys.readouterr()
    fitted.fit(module)
    report = fitted.optimizers[0].engine_report()[0]
    version = optplug.__version__
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("optplug")]
    alternatives = [line for line in printed if line.startswith("optplug:   also ")]
    assert alternatives == [f"optplug:   {also}" for also in _alternatives("adam", "reduce_lr_on_plateau")]
    assert [line for line in printed if line not in alternatives] == [
        f"optplug: optimizer adam from plugin optplug-classic (optplug {version})",
        "optplug:   group    parameters  elements   lr  weight_decay",
        "optplug:   default           1         4  0.5             0",
        "optplug:   *.bias            1         1  0.5           0.1",
        f"optplug:   engine {report.engine} ({report.reason}) for groups default, *.bias",
        f"optplug: scheduler reduce_lr_on_plateau from plugin optplug-schedules (optplug {version}), stepped each "
        "completed validation, after a warmup of 2 steps",
        "optplug:   monitor val_loss (min) from the configuration",
        "optplug: epoch 1: val_loss is 2, not better than 1: learning rate 0.5 -> 0.25",
        "optplug: epoch 2: val_loss is 3, not better than 1: learning rate 0.25 -> 0.125",
        "optplug: plateau: 3 validations seen, 2 cuts (epochs 1, 2), monitor val_loss (min) from the configuration",
    ]


@pytest.mark.parametrize(
    ("scheduler_keys", "when"),
    [({}, "every epoch"), ({"frequency": 3}, "every 3 epochs"), ({"interval": "step"}, "every step")],
    ids=str,
)
def test_summary_states_when_scheduler_steps(
    scripted_module: type, trainer: Any, optplug_lightning: Any, capsys: Any, scheduler_keys: Any, when: str
):
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, {**COSINE, **scheduler_keys}), max_epochs=1).fit(
        scripted_module()
    )
    assert f"(optplug {optplug.__version__}), stepped {when}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scheduler", "when"),
    [
        ({**COSINE, "warmup_steps": 8}, "every epoch, with a warmup of 8 steps"),
        ({**COSINE, "interval": "step", "warmup_steps": 8}, "every step, with a warmup of 8 steps"),
        ({**PLATEAU, "warmup_steps": 8}, "each completed validation, after a warmup of 8 steps"),
    ],
    ids=["epoch", "step", "plateau"],
)
def test_summary_states_whether_the_schedule_starts_after_the_warmup(
    fit: Any, scripted_module: type, capsys: Any, scheduler: Any, when: str
):
    fit(SGD, scheduler, module=scripted_module(val=RISING), verbose=True)
    assert f"), stepped {when}\n" in capsys.readouterr().out


def test_summary_states_engines_with_their_groups_in_one_line(fit: Any, capsys: Any):
    members = [
        {"name": "adam", "engine": "foreach", "match": "*.weight"},
        {"name": "sgd", "engine": "loop", "match": "*.bias"},
    ]
    fit({"combine": members}, verbose=True)
    (line,) = (line for line in printed_lines(capsys) if "engine" in line)
    assert line == "  engine foreach (engine='foreach') for group adam; engine loop (engine='loop') for group sgd"


def test_summary_states_missing_scheduler(scripted_module: type, trainer: Any, optplug_lightning: Any, capsys: Any):
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD), max_epochs=1).fit(scripted_module())
    assert "optplug: no schedule: the learning rate is constant\n" in capsys.readouterr().out


def test_summary_accepts_optimizer_without_learning_rate(
    scripted_module: type, trainer: Any, quiet_callback: Any, monkeypatch: Any
):
    class WithStepSize(torch.optim.Optimizer):
        def __init__(self, params, step_size=0.1):
            super().__init__(params, {"step_size": step_size})

        def step(self, closure=None):
            return closure()

    registration = Registration(OptimizerSpec("with_step_size", WithStepSize), Plugin("p", "d", "1"))
    monkeypatch.setattr(registry, "resolve", lambda kind, name: registration)
    monkeypatch.setattr(registry, "get", lambda kind, name: WithStepSize)
    trainer(callbacks=quiet_callback("with_step_size"), max_epochs=1).fit(scripted_module())


def test_verbose_false_prints_nothing(scripted_module: type, trainer: Any, quiet_callback: Any, capsys: Any):
    trainer(callbacks=quiet_callback(SGD, PLATEAU)).fit(scripted_module(val=RISING))
    assert "optplug" not in capsys.readouterr().out


def rejects_class(message: str) -> Any:
    """The error about a class in the place of a callback, with a message of optplug.

    Lightning < 2.6 raises an error of its own when the trainer is constructed.
    """
    if LIGHTNING < (2, 6):
        return pytest.raises(ValueError, match="Expected a parent")
    return pytest.raises(WiringError, match=message)


@pytest.mark.both_import_names
def test_class_in_place_of_a_callback_is_an_error_and_later_fits_work(
    scripted_module: type, trainer: Any, optplug_lightning: Any, quiet_callback: Any
):
    cls = optplug_lightning.ConfigureOptimizers
    subclass = type("MyCallback", (cls,), {})
    before = {one: set(vars(one)) for parent in (cls, subclass) for one in parent.__mro__}
    for listed in (cls, subclass):
        with rejects_class(rf"the class {listed.__name__}.*callbacks=\[{listed.__name__}\(\.\.\.\)\]"):
            trainer(callbacks=[listed]).fit(scripted_module())
        with rejects_class(r"add the parentheses"):
            trainer(callbacks=[listed]).validate(scripted_module())
    assert {one: set(vars(one)) for one in before} == before
    assert isinstance(inspect.getattr_static(subclass, "log"), type(inspect.getattr_static(cls, "log")))
    module = scripted_module()
    trainer(callbacks=[quiet_callback("sgd")]).fit(module)
    assert module.lrs


class Registry(type):
    """A metaclass that does not derive from ABCMeta."""


@pytest.mark.parametrize(
    ("base", "metaclass"),
    [(Protocol, type(Protocol)), (ABC, ABCMeta), (Generic[TypeVar("T")], type), (object, Registry)],
    ids=["protocol", "abstract", "generic", "own metaclass"],
)
def test_callback_can_be_combined_with_other_classes(
    optplug_lightning: Any, trainer: Any, scripted_module: type, base: Any, metaclass: Any
):
    mixin = types.new_class("Mixin", (base,), {"metaclass": metaclass})
    derived = types.new_class("Derived", (optplug_lightning.ConfigureOptimizers, mixin))
    trainer(callbacks=derived(SGD, verbose=False)).fit(module := scripted_module())
    assert set(module.lrs) == {1.0}
    with rejects_class(r"the class Derived, not an object"):
        trainer(callbacks=[derived]).fit(scripted_module())
