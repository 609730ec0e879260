"""Only the steps of the training count: not those of a tuner that runs within the training, nor of other hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schedulefree import SGDScheduleFree
from torch.optim import lr_scheduler

import optplug
from support import LIGHTNING, PLATEAU, SGD, lr_finder, printed_lines, scheduler_of

HALVING = {"name": "exponential_lr", "gamma": 0.5}
COSINE_BY_STEP = {"name": "cosine_annealing_lr", "T_max": 40, "interval": "step"}
TUNER_VALUE = -100.0
"""The value of every metric that a module logs while a tuner runs. It is better than all others."""

FIND_LR = {"update_attr": True, "num_training_steps": 25, "early_stop_threshold": None}

SCHEDULES: dict[str, Any] = {
    "cosine by step, warmup": {**COSINE_BY_STEP, "warmup_steps": 10},
    "cosine every three steps": {**COSINE_BY_STEP, "frequency": 3},
    "halving by epoch": HALVING,
    "plateau": PLATEAU,
    "plateau, patience in steps": {**PLATEAU, "patience": 3, "patience_unit": "steps"},
    "plateau, training metric": {**PLATEAU, "monitor": "train_loss"},
    "plateau, metric of on_train_epoch_end": {**PLATEAU, "monitor": "late_loss"},
    "plateau, metric of every second validation": {**PLATEAU, "monitor": "val_rare", "mode": "min"},
}
MOMENTS = [  # those in which Lightning itself can run the tuner and then continues the training
    ("LearningRateFinder", "on_train_epoch_start", 0),
    ("LearningRateFinder", "on_train_epoch_start", 2),
    ("LearningRateFinder", "on_validation_end", 1),
    ("LearningRateFinder", "on_train_epoch_end", 1),
    ("BatchSizeFinder", "on_train_epoch_start", 0),
    ("BatchSizeFinder", "on_train_batch_start", 1),
    ("BatchSizeFinder", "on_train_batch_end", 1),
    ("BatchSizeFinder", "on_validation_end", 1),
    ("BatchSizeFinder", "on_train_epoch_end", 1),
]


@pytest.fixture
def tuned_module(scripted_module: type) -> type:
    """The class of a module that records nothing, and logs `TUNER_VALUE`, while a tuner runs."""

    class Tuned(scripted_module):
        batch_size, lr = 2, 1.0
        tuner_runs = False

        def __init__(self, **kwargs: Any) -> None:
            values = [3.0, 4.0, 2.0, 5.0, 6.0, 1.0]
            logs = {"val": {"val_loss": values}, "train": {"train_loss": values}, "late": {"late_loss": values}}
            super().__init__(**{**logs, **kwargs})

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            recorded = list(self.lrs)
            loss = super().training_step(batch, batch_idx)
            if self.tuner_runs:
                self.lrs = recorded
            return loss

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            if self.tuner_runs:  # the tuner's own scheduler
                scheduler.step()
            else:
                super().lr_scheduler_step(scheduler, metric)

        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            if self.tuner_runs or int(self.validations) % 2:
                self.log("val_rare", TUNER_VALUE if self.tuner_runs else float(self.validations))

        def log(self, name: str, value: Any, **kwargs: Any) -> None:
            super().log(name, TUNER_VALUE if self.tuner_runs else value, **kwargs)

    return Tuned


@pytest.fixture
def tuning_callback(pl: Any) -> Any:
    """A factory of tuning callbacks that run once, in the given hook and epoch, in place of the start of the fit."""

    def make(name: str, hook: str, epoch: int, **arguments: Any) -> Any:
        base = type(lr_finder(pl)) if name == "LearningRateFinder" else getattr(pl.callbacks, name)
        if name == "LearningRateFinder":
            run, arguments = base.lr_find, {"num_training_steps": 15, "update_attr": False, **arguments}
        else:
            run, arguments = base.scale_batch_size, {"max_trials": 2, "steps_per_trial": 3, **arguments}

        def tune(callback: Any, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.current_epoch == epoch and not trainer.sanity_checking and not callback.has_run:
                callback.has_run = module.tuner_runs = True
                run(callback, trainer, module)
                module.tuner_runs = False

        hooks = {"on_fit_start": lambda *_: None, "has_run": False, hook: tune}
        return type(f"Own{name}", (base,), hooks)(**arguments)

    return make


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode at the start of training")
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("name", "hook", "epoch"), MOMENTS)
def test_tuner_within_the_training_changes_nothing(
    tuned_module: type,
    tuning_callback: Any,
    trainer: Any,
    quiet_callback: Any,
    name: str,
    hook: str,
    epoch: int,
    schedule: Any,
) -> None:
    def run(*callbacks: Any) -> tuple[Any, Any, Any]:
        module, configure = tuned_module(), quiet_callback({**SGD, "lr": 0.1, "momentum": 0.9}, schedule)
        fitted = trainer(callbacks=[configure, *callbacks], max_epochs=5)
        fitted.fit(module)
        return fitted, module, configure.fit_state

    (plain, expected, expected_state) = run()
    (fitted, module, state) = run(tuner := tuning_callback(name, hook, epoch))
    assert tuner.has_run
    monitor = schedule.get("monitor")
    if LIGHTNING < (2, 5, 0) and schedule.get("name") == PLATEAU["name"]:
        if (name, hook) == ("BatchSizeFinder", "on_train_epoch_start") and schedule.get("monitor") in (
            None,
            "val_rare",
        ):
            # Lightning 2.4 validates after the finder, before the first batch, also without optplug.
            assert int(module.validations) == int(expected.validations) + 1
            return
        if (name, hook) == ("LearningRateFinder", "on_validation_end") and monitor == "train_loss":
            # Lightning 2.4: the plateau does not observe the training metric of the epoch of the finder.
            assert scheduler_of(fitted).last_epoch == scheduler_of(plain).last_epoch - 1
            return
    assert module.lrs == expected.lrs
    assert module.scheduler_steps == expected.scheduler_steps
    assert scheduler_of(fitted).state_dict() == scheduler_of(plain).state_dict()
    assert torch.equal(module.layer.weight, expected.layer.weight)
    assert state.histories == expected_state.histories
    assert state.epochs == expected_state.epochs
    assert [counter.count for counter in state.step_counters] == [fitted.global_step] == [plain.global_step]


@pytest.mark.parametrize("helper", [False, True], ids=["callback", "helper"])
def test_tuner_at_the_start_of_the_fit_changes_nothing(
    pl: Any, tuned_module: type, trainer: Any, quiet_callback: Any, helper: bool
) -> None:
    class Own(tuned_module):
        def configure_optimizers(self) -> Any:
            return optplug.configure_optimizers(self, SGD, {**PLATEAU, "monitor": "train_loss"})

    def run(*callbacks: Any) -> Any:
        module = Own() if helper else tuned_module()
        configure = [] if helper else [quiet_callback(SGD, {**PLATEAU, "monitor": "train_loss"})]
        trainer(callbacks=[*configure, *callbacks], max_epochs=4).fit(module)
        return module

    expected = run()
    module = run(lr_finder(pl, num_training_steps=15, update_attr=False))
    assert module.lrs[-16:] == expected.lrs


@pytest.mark.parametrize("make_optimizer", [SGDScheduleFree])
def test_tuner_within_the_training_keeps_the_mode_of_the_optimizer(
    tuned_module: type, tuning_callback: Any, trainer: Any, quiet_callback: Any, make_optimizer: Any
) -> None:
    class Own(tuned_module):
        def configure_optimizers(self) -> Any:
            return make_optimizer(self.parameters(), lr=0.1)

    def run(*callbacks: Any) -> Any:
        module = Own()
        trainer(callbacks=[quiet_callback(), *callbacks]).fit(module)
        return module.layer.weight

    expected = run()
    torch.testing.assert_close(run(tuning_callback("BatchSizeFinder", "on_train_batch_end", 1)), expected)
    torch.testing.assert_close(run(tuning_callback("LearningRateFinder", "on_train_epoch_start", 1)), expected)


# ------------------------------------------------------------------------------------ learning rates set by others


def test_lr_of_the_finder_is_the_base_of_the_warmup(
    pl: Any, tuned_module: type, tuning_callback: Any, trainer: Any, quiet_callback: Any
) -> None:
    finder = tuning_callback("LearningRateFinder", "on_train_epoch_start", 0, **FIND_LR)
    module = tuned_module()
    trainer(callbacks=[quiet_callback({**SGD, "lr": "module.lr"}, {"warmup_steps": 10}), finder], max_epochs=8).fit(
        module
    )
    assert module.lr != 1.0
    # Lightning < 2.5.4: a finder within the training does not set the learning rates of the optimizer.
    base = module.lr if LIGHTNING >= (2, 5, 4) else 1.0
    ramp = [min(1.0, 0.1 + 0.9 * step / 10) for step in range(32)]
    assert module.lrs == pytest.approx([base * factor for factor in ramp], rel=1e-12)


@pytest.mark.parametrize("scheduler", [{}, COSINE_BY_STEP, HALVING, PLATEAU], ids=["none", "step", "epoch", "plateau"])
@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_validation_end"])
def test_lr_set_by_the_module_during_a_warmup_is_its_base(
    scripted_module: type, trainer: Any, quiet_callback: Any, scheduler: Any, hook: str
) -> None:
    class SetsLR(scripted_module):
        has_set = False

        def set_lr(self) -> None:
            if self.trainer.sanity_checking or self.has_set:
                return
            if hook in ("on_train_start", "on_train_batch_end") or self.trainer.current_epoch == 1:
                self.has_set = True
                self.trainer.optimizers[0].param_groups[0]["lr"] = 10.0

    setattr(SetsLR, hook, lambda self, *_: self.set_lr())
    paths = []
    for module in (SetsLR(val={"val_loss": [1.0]}), scripted_module(val={"val_loss": [1.0]})):
        trainer(callbacks=quiet_callback({**SGD, "lr": 1.0}, {**scheduler, "warmup_steps": 40})).fit(module)
        paths.append(module.lrs)
    first = {"on_train_start": 0, "on_train_epoch_start": 4, "on_train_batch_end": 1, "on_validation_end": 8}[hook]
    ratios = [after / before for after, before in zip(*paths, strict=True)]
    assert ratios[:first] == [1.0] * first
    reached = {"step": 40, "epoch": 4}.get(scheduler.get("interval", "epoch")) and ratios[first]
    assert ratios[first:] == pytest.approx([reached] * (12 - first), rel=1e-9)
    if scheduler in ({}, PLATEAU):
        assert reached == pytest.approx(10.0)


OTHER_SCHEDULERS: dict[str, Any] = {
    "MultiplicativeLR": lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.9),
    "ExponentialLR": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t),
}


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("owner", ["module", "trainer"])
@pytest.mark.parametrize("make_other", OTHER_SCHEDULERS.values(), ids=OTHER_SCHEDULERS)
def test_other_scheduler_of_the_optimizer_combines_with_the_warmup(
    scripted_module: type, trainer: Any, quiet_callback: Any, make_other: Any, owner: str, interval: str
) -> None:
    class HasOther(scripted_module):
        def on_train_start(self) -> None:
            other = make_other(self.trainer.optimizers[0])
            if owner == "module":
                self.other = other
            else:
                entry = type(self.trainer.lr_scheduler_configs[0])(other, interval=interval)
                self.trainer.lr_scheduler_configs.append(entry)

        def step_other(self, when: str) -> None:
            if owner == "module" and interval == when:
                self.other.step()

        def on_train_batch_end(self, *_: Any) -> None:
            self.step_other("step")

        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            self.step_other("epoch")

    module = HasOther()
    trainer(callbacks=quiet_callback({**SGD, "lr": 1.0}, {"warmup_steps": 8})).fit(module)
    per_step = 4 if interval == "epoch" else 1
    assert module.lrs == pytest.approx([0.9 ** (n // per_step) * min(1, 0.125 + 0.875 * n / 8) for n in range(12)])


def test_lr_set_by_other_code_during_a_warmup_is_reported_once(
    scripted_module: type, trainer: Any, optplug_lightning: Any, capsys: Any
) -> None:
    class Halves(scripted_module):
        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.5

    trainer(callbacks=optplug_lightning.ConfigureOptimizers({**SGD, "lr": 1.0}, {"warmup_steps": 8})).fit(Halves())
    lines = [line for line in printed_lines(capsys) if "other code" in line]
    assert lines == [
        "epoch 1: other code has set lr during the warmup: 0.281 (group 0). From now on, this is the learning rate "
        "without the warmup factor"
    ]


# -------------------------------------------------------------------------------------------- steps in other hooks


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize(
    "hook",
    ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_validation_epoch_start", "on_validation_epoch_end"],
)
def test_optimizer_steps_outside_of_the_batches_do_not_count(
    scripted_module: type, trainer: Any, quiet_callback: Any, hook: str, automatic: bool
) -> None:
    def step(module: Any) -> None:
        module.trainer.optimizers[0].step()
        getattr(scripted_module, hook)(module)

    stepping = type("Stepping", (scripted_module,), {hook: step})
    paths = []
    for kind in (stepping, scripted_module):
        module = kind(automatic=automatic)
        trainer(callbacks=quiet_callback(SGD, {**COSINE_BY_STEP, "frequency": 2, "warmup_steps": 9})).fit(module)
        paths.append(module.lrs)
    assert paths[0] == paths[1]


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"])
def test_optimizer_steps_from_the_first_batch_on_count(
    scripted_module: type, trainer: Any, quiet_callback: Any, hook: str
) -> None:
    def step(module: Any, *args: Any) -> None:
        module.optimizers().step()
        getattr(scripted_module, hook)(module, *args)

    stepping = type("Stepping", (scripted_module,), {hook: step})
    fitted = trainer(callbacks=quiet_callback(SGD, COSINE_BY_STEP))
    fitted.fit(stepping(automatic=False))
    # A step after the callback's last on_train_batch_end waits for a batch that does not come.
    expected = {"on_train_batch_start": 24, "on_train_batch_end": 23, "on_train_epoch_end": 14}
    assert scheduler_of(fitted).last_epoch == expected[hook]
