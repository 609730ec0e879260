"""Under Lightning's trainer, by both import names: who builds, who steps when, what is said and left behind."""

from __future__ import annotations

import copy
import csv
import importlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug.errors import ConfigError, WiringError
from optplug.lightning.managed_scheduler import NEVER
from optplug.lightning.monitor import mode_by_name, only_validation_loss
from optplug.lightning.scheduler_stepper import SchedulerStepper

ADAM = {"name": "adam", "lr": 1.0}
SGD = {"name": "sgd", "lr": 1.0}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}
COSINE = {"name": "cosine_annealing_lr", "T_max": 6}
RISING = {"val_loss": range(1, 20)}


def cosine(t: int, period: int = 6) -> float:
    scheduler = optplug.create_scheduler("cosine_annealing_lr", torch.optim.SGD([torch.zeros(1)], lr=1.0), T_max=period)
    return scheduler.multiplier(t)


def values(module: Any) -> list[float]:
    return [metric for _, _, metric in module.stepped]


@pytest.fixture
def callback(ours: Any) -> Any:
    """Makes the callback, which says nothing."""

    def make(*args: Any, **kwargs: Any) -> Any:
        return ours.ConfigureOptimizers(*args, **{"verbose": False, **kwargs})

    return make


@pytest.fixture
def own(scripted: type) -> type:
    """A module that configures torch's SGD, and torch's plateau if asked."""

    class Own(scripted):
        entry: dict[str, Any] | None = None

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            if self.entry is None:
                return optimizer
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.entry}}

    return Own


# ------------------------------------------------------------------------------------------ who builds


def test_a_module_asks_the_helper(helped: type, trainer: Any):
    module = helped({"optimizer": ADAM, "scheduler": COSINE})
    run = trainer()
    run.fit(module)
    assert type(run.optimizers[0]) is optplug.get_optimizer("adam")
    assert module.rates == [cosine(epoch) for epoch in range(3) for _ in range(4)]


def test_a_callback_configures_a_module_that_has_no_configure_optimizers(scripted: type, trainer: Any, callback: Any):
    module = scripted()
    trainer(callbacks=[callback(ADAM, COSINE)]).fit(module)
    assert module.rates == [cosine(epoch) for epoch in range(3) for _ in range(4)]


def test_helper_and_callback_train_alike(scripted: type, helped: type, trainer: Any, callback: Any):
    choice = {"optimizer": {"name": "adam", "lr": 0.1}, "scheduler": {**PLATEAU, "warmup_steps": 5}}
    choice["param_groups"] = [{"match": "*.bias", "lr": 0.5}]
    inside, outside = helped(choice, val=RISING), scripted(val=RISING)
    trainer().fit(inside)
    trainer(callbacks=[callback(**choice)]).fit(outside)
    assert inside.rates == outside.rates
    assert inside.stepped == outside.stepped
    for p, q in zip(inside.parameters(), outside.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_callback_may_be_passed_bare(scripted: type, trainer: Any, callback: Any):
    module = scripted()
    trainer(callbacks=callback(ADAM, COSINE)).fit(module)
    assert module.rates[-1] == cosine(2)


@pytest.mark.parametrize("bare", [True, False])
def test_the_class_for_one_import_name_serves_the_other(scripted: type, trainer: Any, ours: Any, bare: bool):
    names = {"optplug.lightning", "optplug.pytorch_lightning"}
    (other,) = names - {ours.__name__}
    foreign = importlib.import_module(other).ConfigureOptimizers(SGD, COSINE, verbose=False)
    module = scripted()
    trainer(callbacks=foreign if bare else [foreign]).fit(module)
    assert module.rates[-1] == cosine(2)


def test_the_callback_may_come_from_the_module(scripted: type, trainer: Any, callback: Any):
    class Bringing(scripted):
        def configure_callbacks(self) -> Any:
            return callback(ADAM, COSINE)

    module = Bringing()
    trainer().fit(module)
    assert module.rates[-1] == cosine(2)


def test_a_callback_beside_the_module_s_own_is_refused(own: type, trainer: Any, callback: Any):
    module = own()
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=callback(ADAM)).fit(module)
    assert str(caught.value) == (
        "Own defines configure_optimizers, and an optimizer is configured from outside too: remove one, or pass "
        "override=True to replace the module's own"
    )
    assert module.rates == []


def test_a_callback_beside_a_bound_configure_optimizers_is_refused(scripted: type, trainer: Any, callback: Any):
    module = scripted()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters())
    with pytest.raises(WiringError, match="defines configure_optimizers"):
        trainer(callbacks=callback(ADAM)).fit(module)


def test_override_replaces_the_module_s_own_for_one_fit(own: type, trainer: Any, callback: Any):
    module = own()
    run = trainer(callbacks=callback(ADAM, override=True))
    run.fit(module)
    assert type(run.optimizers[0]) is optplug.get_optimizer("adam")
    run = trainer()
    run.fit(module)
    assert type(run.optimizers[0]) is torch.optim.SGD


def test_two_callbacks_are_refused(scripted: type, trainer: Any, callback: Any):
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=[callback(ADAM), callback(SGD)]).fit(scripted())
    assert str(caught.value).startswith("two ConfigureOptimizers callbacks want to configure Scripted_")


def test_layers_made_in_configure_model_are_optimized(scripted: type, trainer: Any, callback: Any):
    class Late(scripted):
        def __init__(self) -> None:
            super().__init__()
            del self.layer

        def configure_model(self) -> None:
            self.layer = nn.Linear(4, 1)

    module = Late()
    run = trainer(callbacks=callback(ADAM, param_groups=[{"match": "layer.bias", "lr": 0.5}]))
    run.fit(module)
    assert [id(p) for g in run.optimizers[0].param_groups for p in g["params"]] == [id(p) for p in module.parameters()]


def test_what_a_callback_freezes_in_setup_is_left_out(pl: Any, scripted: type, trainer: Any, callback: Any):
    class Freeze(pl.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            pl_module.layer.bias.requires_grad_(False)

    module = scripted()
    run = trainer(callbacks=[callback(ADAM), Freeze()])
    run.fit(module)
    assert [id(p) for p in run.optimizers[0].param_groups[0]["params"]] == [id(module.layer.weight)]


def test_nothing_to_train_is_said_before_the_first_batch(scripted: type, trainer: Any, callback: Any):
    module = scripted().requires_grad_(False)
    with pytest.raises(ConfigError, match="has nothing to train: all 2 of its parameters are frozen"):
        trainer(callbacks=callback(ADAM)).fit(module)
    assert module.rates == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"param_groups": []}, "param_groups: needs an optimizer beside it: add e.g. optimizer: adam"),
        (
            {"param_groups": "no_decay", "scheduler": COSINE},
            "param_groups: needs an optimizer beside it: add e.g. optimizer: adam",
        ),
        (
            {"monitor": "x"},
            "monitor: 'x' needs a scheduler that takes a metric, and there is no scheduler",
        ),
        ({"mode": "min"}, "mode: 'min' needs a scheduler that takes a metric, and there is no scheduler"),
    ],
)
def test_a_callback_without_an_optimizer_takes_a_schedule_and_no_more(
    scripted: type, trainer: Any, callback: Any, arguments: dict[str, Any], message: str
):
    with pytest.raises(ConfigError) as caught:
        callback(**arguments)
    assert str(caught.value) == message

    class Own(scripted):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module = Own()
    trainer(callbacks=callback(scheduler={**COSINE, "T_max": 20})).fit(module)
    assert module.rates == pytest.approx([cosine(batch // 4, 20) for batch in range(12)], rel=1e-12)


def test_a_callback_is_refused_when_it_is_made(callback: Any):
    with pytest.raises(LookupError, match="did you mean 'adam'"):
        callback("adm")


# --------------------------------------------------------------------------------- what is left behind


class Interrupt(Exception):
    pass


@pytest.fixture
def spy(pl: Any) -> Any:
    """A callback that remembers the frequency of each scheduler entry while training, and stops a fit if told."""

    class Spy(pl.Callback):
        def __init__(self, stop: bool = False) -> None:
            self.stop = stop
            self.frequencies: list[int] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.frequencies = [entry.frequency for entry in trainer.lr_scheduler_configs]
            if self.stop and trainer.current_epoch:
                raise Interrupt

    return Spy


@pytest.mark.parametrize("stop", [False, True], ids=["fit", "exception"])
@pytest.mark.parametrize("chosen", [COSINE, PLATEAU], ids=["cosine", "plateau"])
def test_everything_is_restored_after_a_fit_and_an_exception(
    pl: Any, scripted: type, trainer: Any, callback: Any, spy: Any, stop: bool, chosen: Any
):
    module = scripted(val={"val_loss": None})
    before = dict(vars(module))
    run = trainer(callbacks=[callback(ADAM, {**chosen}), watch := spy(stop)])
    if stop:
        with pytest.raises(Interrupt):
            run.fit(module)
    else:
        run.fit(module)
    assert watch.frequencies == [NEVER]
    assert [entry.frequency for entry in run.lr_scheduler_configs] == [1]
    assert "configure_optimizers" not in vars(module)
    assert set(vars(module)) - set(before) <= {"_trainer", "_example_input_array", "_hparams"}
    with pytest.raises(Exception, match="No `configure_optimizers"):
        trainer().fit(module)


def test_a_callback_fits_several_times_and_several_modules(scripted: type, trainer: Any, callback: Any):
    configure = callback(ADAM, {**PLATEAU})
    for _ in range(2):
        module = scripted(val=RISING)
        trainer(callbacks=configure).fit(module)
        assert values(module) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("stop", [False, True], ids=["fit", "exception"])
def test_the_helper_adds_an_owner_for_one_fit(helped: type, trainer: Any, ours: Any, spy: Any, stop: bool):
    mine = [spy(stop)]
    module = helped({"optimizer": ADAM, "scheduler": PLATEAU}, val=RISING)
    run = trainer(callbacks=mine)
    before = list(run.callbacks)
    if stop:
        with pytest.raises(Interrupt):
            run.fit(module)
    else:
        run.fit(module)
    assert mine[0].frequencies == [NEVER]
    assert len(mine) == 1
    assert run.callbacks == before
    assert [entry.frequency for entry in run.lr_scheduler_configs] == [1]


def test_the_helper_adds_an_owner_where_none_is(pl: Any, helped: type, trainer: Any, callback: Any):
    seen: list[int] = []

    class Count(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(sum(isinstance(c, SchedulerStepper) for c in trainer.callbacks))

    trainer(callbacks=[callback(), Count()]).fit(helped({"optimizer": ADAM, "scheduler": COSINE}))
    trainer(callbacks=[Count()]).fit(helped({"optimizer": ADAM}))
    trainer(callbacks=[Count()]).fit(helped({"optimizer": ADAM, "scheduler": COSINE}))
    assert seen == [1, 1, 1]


def test_an_owner_steps_before_anybody_saves(pl: Any, helped: type, trainer: Any, tmp_path: Any):
    seen: list[str] = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.extend(type(c).__name__ for c in trainer.callbacks)

    saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path)
    trainer(callbacks=[saver, Look()], enable_checkpointing=True).fit(helped({"optimizer": ADAM, "scheduler": COSINE}))
    assert seen == ["SteppingCallback", "Look", "ModelCheckpoint"]


def test_validate_and_test_without_fit_are_left_alone(scripted: type, trainer: Any, callback: Any):
    module = scripted(val={"val_loss": [3.0]})
    run = trainer(callbacks=callback(ADAM, PLATEAU, monitor="nothing", mode="min"))
    assert run.validate(module, verbose=False) == [{"val_loss": 3.0}]
    assert list(run.test(module, verbose=False)[0]) == ["test_loss"]
    assert "configure_optimizers" not in vars(module)
    assert module.stepped == []


def test_validate_after_fit_steps_nothing(scripted: type, trainer: Any, callback: Any):
    module = scripted(val=RISING)
    run = trainer(callbacks=callback(ADAM, PLATEAU))
    run.fit(module)
    before = list(module.stepped)
    run.validate(module, verbose=False)
    assert module.stepped == before


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_a_bound_module_optimizes_its_own_parameters(
    pl: Any, scripted: type, trainer: Any, callback: Any, duplicate: Any
):
    copies = []

    class Copy(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            copies.append(duplicate(pl_module))

    trainer(callbacks=[callback(ADAM), Copy()]).fit(scripted())
    (twin,) = copies
    (group,) = twin.configure_optimizers()["optimizer"].param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in twin.parameters()]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"]
)
def test_a_copied_callback_does_the_same(scripted: type, trainer: Any, callback: Any, duplicate: Any):
    module = scripted(val=RISING)
    trainer(callbacks=duplicate(callback(ADAM, PLATEAU))).fit(module)
    assert module.rates[-1] == 0.5


# ---------------------------------------------------------------------------------- when plateaus step


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, [(0, 4), (1, 8), (2, 12)]),
        ({"num_sanity_val_steps": 0}, [(0, 4), (1, 8), (2, 12)]),
        ({"val_check_interval": 0.5}, [(0, 2), (0, 4), (1, 6), (1, 8), (2, 10), (2, 12)]),
        ({"check_val_every_n_epoch": 2, "max_epochs": 5}, [(1, 8), (3, 16)]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 3}, [(0, 3), (1, 6), (2, 9), (2, 12)]),
        ({"accumulate_grad_batches": 2}, [(0, 2), (1, 4), (2, 6)]),
        ({"limit_train_batches": 3}, [(0, 3), (1, 6), (2, 9)]),
        ({"max_steps": 6}, [(0, 4)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_a_plateau_steps_once_per_completed_validation(
    scripted: type, trainer: Any, callback: Any, arguments: dict[str, Any], steps: Any, monitor: str | None
):
    module = scripted(val=RISING)
    trainer(callbacks=callback(SGD, PLATEAU, monitor=monitor), **arguments).fit(module)
    assert module.stepped == [(*step, float(value)) for value, step in enumerate(steps, 1)]


def test_the_rate_is_cut_at_once(scripted: type, trainer: Any, callback: Any):
    module = scripted(val=RISING)
    trainer(callbacks=callback(SGD, PLATEAU), val_check_interval=0.5).fit(module)
    assert module.rates == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]


def test_a_fast_dev_run_leaves_a_plateau_alone(scripted: type, trainer: Any, callback: Any):
    module = scripted(val=RISING)
    trainer(callbacks=callback(SGD, PLATEAU, monitor="not_logged_yet", mode="min"), fast_dev_run=True).fit(module)
    assert module.stepped == []


@pytest.mark.parametrize(
    "arguments",
    [{}, {"limit_val_batches": 0}, {"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}],
    ids=str,
)
@pytest.mark.parametrize("where", ["train", "late"])
def test_a_plateau_on_a_training_metric_steps_once_an_epoch(
    scripted: type, trainer: Any, callback: Any, where: str, arguments: dict[str, Any]
):
    module = scripted(**{where: {"train_loss": range(1, 9)}}, val={"other": [1.0]})
    trainer(callbacks=callback(SGD, PLATEAU, monitor="train_loss"), **arguments).fit(module)
    assert values(module) == [1.0, 2.0, 3.0]
    assert module.rates == [1.0] * 8 + [0.5] * 4


@pytest.mark.parametrize("arguments", [{}, {"limit_val_batches": 0}, {"val_check_interval": 0.5}], ids=str)
def test_a_plateau_on_a_metric_of_each_batch_takes_the_last_of_the_epoch(
    scripted: type, trainer: Any, callback: Any, arguments: dict[str, Any]
):
    class PerBatch(scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train_loss", float(10 * self.current_epoch + batch_idx))
            return super().training_step(batch, batch_idx)

    module = PerBatch(val={"other": [1.0]})
    trainer(callbacks=callback(SGD, PLATEAU, monitor="train_loss"), **arguments).fit(module)
    assert values(module) == [3.0, 13.0, 23.0]


def test_a_metric_logged_in_some_epochs_counts_in_those(scripted: type, trainer: Any, callback: Any):
    class EveryOther(scripted):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            if self.current_epoch % 2 == 0:
                self.log("val_rare", float(self.current_epoch))

    module = EveryOther(val={"val_loss": [1.0]})
    trainer(callbacks=callback(SGD, PLATEAU, monitor="val_rare", mode="min"), max_epochs=5).fit(module)
    assert values(module) == [0.0, 2.0, 4.0]


def test_a_plateau_warms_up(scripted: type, trainer: Any, callback: Any):
    module = scripted(val=RISING)
    trainer(callbacks=callback(SGD, {**PLATEAU, "warmup_steps": 6}), max_epochs=4).fit(module)
    assert module.rates == pytest.approx(
        [warm / 36 for warm in (6, 11, 16, 21, 26, 31)] + [1, 1] + [0.5] * 4 + [0.25] * 4, rel=1e-12
    )


def test_not_a_number_is_a_bad_value(scripted: type, trainer: Any, callback: Any):
    module = scripted(val={"val_loss": [1.0, float("nan"), 0.5]})
    trainer(callbacks=callback(SGD, PLATEAU)).fit(module)
    assert module.rates == [1.0] * 8 + [0.5] * 4


# -------------------------------------------------------------------------------- when the others step


@pytest.mark.parametrize(
    ("wiring", "arguments", "path"),
    [
        ({}, {}, [0] * 4 + [1] * 4 + [2] * 4),
        ({"frequency": 2}, {"max_epochs": 4}, [0] * 8 + [1] * 8),
        ({"interval": "step"}, {}, list(range(12))),
        ({"interval": "step", "frequency": 3}, {}, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
        ({"interval": "step"}, {"accumulate_grad_batches": 2}, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        ({"interval": "step"}, {"accumulate_grad_batches": 3}, [0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]),
        ({"interval": "step", "frequency": 3}, {"accumulate_grad_batches": 2}, [0] * 6 + [1] * 6),
        ({}, {"limit_train_batches": 2}, [0, 0, 1, 1, 2, 2]),
        ({}, {"limit_val_batches": 0}, [0] * 4 + [1] * 4 + [2] * 4),
        ({}, {"val_check_interval": 0.5}, [0] * 4 + [1] * 4 + [2] * 4),
    ],
    ids=str,
)
def test_schedules_step_by_epoch_or_by_optimizer_step(
    scripted: type, trainer: Any, callback: Any, wiring: dict[str, Any], arguments: dict[str, Any], path: list[int]
):
    module = scripted()
    trainer(callbacks=callback(SGD, {**COSINE, "T_max": 20, **wiring}), **arguments).fit(module)
    assert module.rates == pytest.approx([cosine(t, 20) for t in path], rel=1e-12)
    assert len(module.stepped) == max(path) + 1  # the last step is seen by no batch
    assert all(metric is None for metric in values(module))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_warmup_counts_optimizer_steps(scripted: type, trainer: Any, callback: Any, accumulate: int):
    module = scripted()
    wiring = {"warmup": {"steps": 4, "start_factor": 0.2}}
    schedule = {**COSINE, "T_max": 20, **wiring}
    trainer(callbacks=callback(SGD, schedule), accumulate_grad_batches=accumulate).fit(module)
    warm = [min(1.0, 0.2 + 0.8 * (batch // accumulate) / 4) for batch in range(12)]
    assert module.rates == pytest.approx([w * cosine(batch // 4, 20) for batch, w in enumerate(warm)], rel=1e-12)


def test_a_user_s_own_lr_scheduler_step_is_honoured(scripted: type, trainer: Any, callback: Any):
    class Contrary(scripted):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.stepped.append(metric)

    for chosen, expected in (
        (PLATEAU, [1.0, 2.0, 3.0]),
        (COSINE, [None] * 3),
        ({**COSINE, "interval": "step"}, [None] * 12),
    ):
        module = Contrary(val=RISING)
        trainer(callbacks=callback(SGD, chosen)).fit(module)
        assert module.stepped == expected
        assert module.rates == [1.0] * 12


# --------------------------------------------------------------------------------- manual optimisation


@pytest.mark.parametrize("with_callback", [True, False], ids=["callback", "helper"])
def test_in_manual_optimisation_the_owner_steps(
    scripted: type, helped: type, trainer: Any, callback: Any, with_callback: bool
):
    for chosen, stepped in (
        (PLATEAU, 3),
        (COSINE, 3),
        ({**COSINE, "interval": "step"}, 12),
        ({**PLATEAU, "warmup_steps": 9}, 3),
    ):
        choice = {"optimizer": SGD, "scheduler": chosen}
        kwargs = {"val": RISING, "automatic": False}
        module = scripted(**kwargs) if with_callback else helped(choice, **kwargs)
        trainer(callbacks=callback(**choice) if with_callback else None).fit(module)
        assert len(module.stepped) == stepped
        automatic = scripted(val=RISING)
        trainer(callbacks=callback(**choice)).fit(automatic)
        assert module.rates == automatic.rates


def test_every_step_taken_by_hand_counts(scripted: type, trainer: Any, callback: Any):
    class Twice(scripted):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            super().training_step(batch, batch_idx)

    module = Twice(automatic=False)
    chosen = {**COSINE, "T_max": 40, "interval": "step", "frequency": 3, "warmup_steps": 8}
    trainer(callbacks=callback(SGD, chosen)).fit(module)
    expected = [cosine(2 * batch // 3, 40) * min(1.0, (1 + 7 / 8 * 2 * batch) / 8) for batch in range(12)]
    assert module.rates[::2] == pytest.approx(expected, rel=1e-12)
    assert len(module.stepped) == 8


def test_a_foreign_plateau_in_manual_optimisation_is_the_user_s(own: type, trainer: Any, callback: Any):
    module = own(val=RISING, automatic=False)
    module.entry = {}
    trainer(callbacks=callback()).fit(module)
    assert module.stepped == []


# ------------------------------------------------------------------------------------ foreign plateaus


def test_a_foreign_plateau_is_taken_over_and_released(own: type, trainer: Any, callback: Any, spy: Any):
    module = own(val=RISING)
    module.entry = {"monitor": "val_loss"}
    run = trainer(callbacks=[callback(), watch := spy()], val_check_interval=0.5)
    run.fit(module)
    assert watch.frequencies == [NEVER]
    assert [entry.frequency for entry in run.lr_scheduler_configs] == [1]
    assert values(module) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5**5


@pytest.mark.parametrize("frequency", [1, 4])
def test_a_foreign_plateau_by_step_hears_each_validation_once(
    own: type, trainer: Any, callback: Any, spy: Any, frequency: int
):
    module = own(val=RISING)
    module.entry = {"monitor": "val_loss", "interval": "step", "frequency": frequency}
    trainer(callbacks=[callback(), watch := spy()], val_check_interval=0.5).fit(module)
    assert watch.frequencies == [NEVER]
    assert values(module) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_foreign_plateau_on_a_metric_of_each_batch_is_left_to_lightning(
    scripted: type, own: type, trainer: Any, callback: Any, spy: Any
):
    class PerBatch(own):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train_loss", 1.0)
            return super().training_step(batch, batch_idx)

    module = PerBatch()
    module.entry = {"monitor": "train_loss", "interval": "step", "frequency": 2}
    trainer(callbacks=[callback(), watch := spy()]).fit(module)
    assert watch.frequencies == [2]
    assert values(module) == [1.0] * 6


def test_the_owner_that_the_helper_adds_leaves_foreign_plateaus_alone(own: type, trainer: Any, spy: Any):
    class Both(own):
        def configure_optimizers(self) -> Any:
            optplug.configure_optimizers(self, SGD, COSINE)  # adds an owner
            return super().configure_optimizers()

    module = Both(val=RISING)
    module.entry = {"monitor": "val_loss"}
    trainer(callbacks=[watch := spy()]).fit(module)
    assert watch.frequencies == [1]


def test_a_foreign_plateau_that_is_not_strict_may_miss_its_metric(own: type, trainer: Any, callback: Any):
    module = own(val=RISING)
    module.entry = {"monitor": "val_los", "strict": False}
    trainer(callbacks=callback()).fit(module)
    assert module.stepped == []


# ------------------------------------------------------------------------------------ monitor and mode


@pytest.fixture
def watching(pl: Any, tmp_path: Any) -> Any:
    """Makes callbacks that watch metrics."""

    def make(**monitors: Any) -> list[Any]:
        made: list[Any] = []
        for kind, metrics in monitors.items():
            for i, (monitor, mode) in enumerate(metrics):
                if kind == "stop":
                    made.append(pl.callbacks.EarlyStopping(monitor, mode=mode, patience=99))
                else:
                    saver = pl.callbacks.ModelCheckpoint(
                        tmp_path / str(i), monitor=monitor, mode=mode, filename="{epoch}"
                    )
                    made.append(saver)
        return made

    return make


METRICS = {"val_loss": [1.0, 2.0, 3.0], "val_acc": [0.1, 0.2, 0.3], "val_score": [10.0, 20.0, 30.0]}


@pytest.mark.parametrize(
    ("monitors", "chosen", "first", "cuts", "line"),
    [
        ({"stop": [("val_acc", "max")]}, {"monitor": "val_loss"}, 1.0, 2, "val_loss (min) from the configuration"),
        ({"stop": [("val_score", "min")]}, {"monitor": "val_score"}, 10.0, 2, "val_score (min) from the configuration"),
        ({"save": [("val_score", "max")]}, {"monitor": "val_score"}, 10.0, 0, "val_score (max) from the configuration"),
        ({}, {"monitor": "val_acc"}, 0.1, 0, "val_acc (max) from the configuration"),
        ({}, {"monitor": "val_acc", "mode": "min"}, 0.1, 2, "val_acc (min) from the configuration"),
        ({"stop": [("val_acc", "max")], "save": [("val_loss", "min")]}, {}, 0.1, 0, "val_acc (max) from EarlyStopping"),
        ({"save": [("val_score", "min")]}, {}, 10.0, 2, "val_score (min) from ModelCheckpoint"),
        ({"save": [("val_score", "min")]}, {"mode": "max"}, 10.0, 0, "val_score (max) from ModelCheckpoint"),
    ],
    ids=str,
)
def test_the_monitor_is_said_or_watched_by_a_callback(
    scripted: type,
    trainer: Any,
    ours: Any,
    watching: Any,
    capsys: Any,
    monitors: Any,
    chosen: Any,
    first: float,
    cuts: int,
    line: str,
):
    module = scripted(val=METRICS)
    configure = ours.ConfigureOptimizers(SGD, {**PLATEAU, **chosen})
    trainer(callbacks=[configure, *watching(**monitors)], enable_checkpointing="save" in monitors).fit(module)
    assert values(module)[0] == pytest.approx(first)
    assert len(module.stepped) == 3
    assert module.rates[-1] == 0.5 ** max(0, cuts - 1)
    assert f"optplug:   monitor {line}\n" in capsys.readouterr().out


@pytest.mark.parametrize("forms", [{}, {"on_step": True, "on_epoch": True}], ids=["", "both forms"])
def test_the_only_validation_loss_is_found_aloud(scripted: type, trainer: Any, ours: Any, capsys: Any, forms: Any):
    class Forms(scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", float(self.validations), batch_size=2, **forms)
            self.log("val_acc", 0.5, batch_size=2)

    module = Forms(train={"train_loss": [1.0]})
    trainer(callbacks=ours.ConfigureOptimizers(SGD, PLATEAU)).fit(module)
    assert values(module) == [0.0, 1.0, 2.0]
    assert (
        "optplug: reduce_lr_on_plateau follows val/loss (min), the only validation loss\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("val", "message", "batches"),
    [
        (
            {"val_loss_a": [1.0], "val_loss_b": [1.0], "val_acc": [1.0]},
            "the validation logged the validation losses val_loss_a, val_loss_b; set scheduler.monitor to one of "
            "val_acc, val_loss_a, val_loss_b",
            0,  # the sanity check tells
        ),
        (
            {"val_acc": [1.0]},
            "the validation logged no validation loss; set scheduler.monitor to one of val_acc",
            4,
        ),
        ({}, "the validation logged no validation loss; set scheduler.monitor to one of none", 4),
    ],
    ids=["two", "none", "nothing"],
)
def test_no_or_two_validation_losses_are_refused(
    scripted: type, trainer: Any, callback: Any, val: Any, message: str, batches: int
):
    module = scripted(val=val, train={"train_loss": [1.0]})
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=callback(SGD, PLATEAU)).fit(module)
    assert str(caught.value) == message
    assert len(module.rates) == batches


@pytest.mark.parametrize("arguments", [{}, {"val_check_interval": 0.5}, {"max_epochs": 1}], ids=str)
def test_a_validation_metric_that_nothing_logs_is_refused_after_the_first_validation(
    scripted: type, trainer: Any, callback: Any, arguments: dict[str, Any]
):
    module = scripted(val={"val_loss": [1.0]}, train={"train_loss": [1.0]})
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=callback(SGD, PLATEAU, monitor="val_los", mode="min"), **arguments).fit(module)
    assert str(caught.value) == (
        "reduce_lr_on_plateau monitors 'val_los' (from the configuration), which nothing logs; logged are "
        "val_loss; did you mean 'val_loss'?"
    )
    assert len(module.rates) == (2 if "val_check_interval" in arguments else 4)


def test_a_plateau_that_never_had_a_value_says_so_at_the_end(scripted: type, trainer: Any, callback: Any):
    class Stops(scripted):
        def on_train_batch_end(self, *_: Any) -> None:
            self.trainer.should_stop = True
            self.trainer.limit_val_batches = 0

    run = trainer(callbacks=callback(SGD, PLATEAU, monitor="val_loss"))
    with pytest.warns(UserWarning, match="reduce_lr_on_plateau was never stepped: monitor val_loss"):
        run.fit(Stops(val={"val_loss": [1.0]}))


def test_the_helper_wants_the_module_itself(pl: Any, trainer: Any):
    class Sub(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch):
            return self.net(batch[0]).mean()

        def configure_optimizers(self):
            return optplug.configure_optimizers(self.net, "adam", COSINE)

    with pytest.raises(WiringError) as caught:
        trainer().fit(Sub(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4))))
    assert str(caught.value) == (
        "configure_optimizers takes the LightningModule itself, got Linear from Sub: pass self, and tell parameters "
        "apart with param_groups"
    )


def test_a_schedule_that_the_module_steps_too_is_refused(scripted: type, trainer: Any, callback: Any):
    class Twice(scripted):
        def on_train_epoch_end(self):
            self.lr_schedulers().step()

    with pytest.raises(WiringError, match=r"take scheduler\.step\(\) out of the module"):
        trainer(callbacks=callback(SGD, COSINE)).fit(Twice(automatic=False))


def test_what_the_module_changes_in_the_helper_s_dictionary_counts(scripted: type, trainer: Any):
    class Edited(scripted):
        def configure_optimizers(self):
            returned = optplug.configure_optimizers(self, SGD, COSINE)
            returned["lr_scheduler"]["frequency"] = 2
            return returned

    run = trainer(max_epochs=4)
    run.fit(Edited())
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 2


@pytest.mark.parametrize("frequency", [1, 2])
def test_a_foreign_plateau_with_a_frequency_stays_with_lightning(
    scripted: type, trainer: Any, ours: Any, frequency: int
):
    class Own(scripted):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            entry = {"scheduler": plateau, "monitor": "val_loss", "frequency": frequency}
            return {"optimizer": optimizer, "lr_scheduler": entry}

    run = trainer(callbacks=ours.ConfigureOptimizers(), max_epochs=4)
    run.fit(Own(val=RISING))
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 4 // frequency


def test_the_account_does_without_a_learning_rate(scripted: type, trainer: Any, callback: Any, monkeypatch: Any):
    from optplug.registry import Plugin, Registration, registry
    from optplug.registry.specs import OptimizerSpec

    class Steps(torch.optim.Optimizer):
        def __init__(self, params, step_size=0.1):
            super().__init__(params, {"step_size": step_size})

        def step(self, closure=None):
            return closure()

    registration = Registration(OptimizerSpec("steps", Steps), Plugin("p", "d", "1"))
    monkeypatch.setattr(registry, "find", lambda kind, name: registration)
    monkeypatch.setattr(registry, "get", lambda kind, name: Steps)
    trainer(callbacks=callback("steps"), max_epochs=1).fit(scripted())


def test_a_metric_of_a_late_validation_is_waited_for(scripted: type, trainer: Any, callback: Any):
    module = scripted(val=RISING)
    trainer(callbacks=callback(SGD, PLATEAU, monitor="val_loss"), check_val_every_n_epoch=3).fit(module)
    assert values(module) == [1.0]


@pytest.mark.parametrize(
    ("monitors", "message"),
    [
        (
            {"stop": [("val_loss", "min"), ("val_acc", "max")]},
            "EarlyStopping callbacks watch val_acc, val_loss: say which with scheduler.monitor",
        ),
        (
            {"save": [("val_loss", "min"), ("val_acc", "max")]},
            "ModelCheckpoint callbacks watch val_acc, val_loss: say which with scheduler.monitor",
        ),
        (
            {"stop": [("val_loss", "min")], "save": [("val_loss", "max")]},
            "EarlyStopping says min, ModelCheckpoint says max for 'val_loss': say which with scheduler.mode",
        ),
    ],
    ids=["EarlyStopping", "ModelCheckpoint", "mode"],
)
def test_callbacks_that_disagree_are_refused(
    scripted: type, trainer: Any, callback: Any, watching: Any, monitors: Any, message: str
):
    module = scripted(val=METRICS)
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=[callback(SGD, PLATEAU), *watching(**monitors)], enable_checkpointing=True).fit(module)
    assert str(caught.value) == message
    assert module.rates == []


def test_what_is_said_settles_what_callbacks_disagree_about(scripted: type, trainer: Any, callback: Any, watching: Any):
    module = scripted(val=METRICS)
    others = watching(stop=[("val_loss", "min"), ("val_acc", "max")])
    trainer(callbacks=[callback(SGD, PLATEAU, monitor="val_score", mode="max"), *others]).fit(module)
    assert values(module) == [10.0, 20.0, 30.0]


def test_a_mode_that_the_name_does_not_tell_is_asked_for(scripted: type, trainer: Any, callback: Any):
    module = scripted(val=METRICS)
    with pytest.raises(ConfigError) as caught:
        trainer(callbacks=callback(SGD, PLATEAU, monitor="val_score")).fit(module)
    assert str(caught.value) == (
        "cannot tell from the name whether more or less 'val_score' is better: set scheduler.mode"
    )
    assert module.rates == []


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (
            "min",
            "loss val_loss val/loss valid.loss train_loss loss_epoch val-error rmse val_mae test/WER cross_entropy",
        ),
        ("max", "acc val_acc val/accuracy top5 val_auroc f1 val_F1 mAP iou val/dice bleu reward r2"),
        (None, "score val metric top1_error loss_accuracy glossy mapping value"),
    ],
)
def test_the_mode_is_told_by_the_name(mode: str | None, names: str):
    for name in names.split():
        if mode is None:
            with pytest.raises(ConfigError, match=f"more or less '{name}' is better"):
                mode_by_name(name)
        else:
            assert mode_by_name(name) == mode


def test_the_forms_of_one_metric_are_one_validation_loss():
    assert only_validation_loss(["val_loss", "val_loss_step", "val_loss_epoch", "lr-val_loss", "val_acc"]) == "val_loss"
    assert only_validation_loss(["val_loss_epoch"]) == "val_loss_epoch"


# ---------------------------------------------------------------------------------------- what is said


def test_the_account_is_exact(scripted: type, trainer: Any, ours: Any, capsys: Any):
    module = scripted(val=RISING)
    configure = ours.ConfigureOptimizers(
        {"name": "adam", "lr": 0.5},
        {**PLATEAU, "warmup_steps": 2},
        param_groups=[{"match": "*.bias", "weight_decay": 0.1}],
        monitor="val_loss",
    )
    run = trainer(callbacks=configure)
    capsys.readouterr()
    run.fit(module)
    reports = [str(report) for report in run.optimizers[0].engine_report()]
    version = optplug.__version__
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("optplug")] == [
        f"optplug: optimizer adam from plugin optplug-classic (optplug {version})",
        "optplug:   group    parameters  elements   lr  weight_decay",
        "optplug:   default           1         4  0.5             0",
        "optplug:   *.bias            1         1  0.5           0.1",
        *(f"optplug:   engine of {report}" for report in reports),
        f"optplug: scheduler reduce_lr_on_plateau from plugin optplug-schedules (optplug {version}), stepped each "
        "completed validation, after a warmup of 2 steps",
        "optplug:   monitor val_loss (min) from the configuration",
        "optplug: epoch 1: val_loss is 2, not better than 1: learning rate 0.5 -> 0.25",
        "optplug: epoch 2: val_loss is 3, not better than 1: learning rate 0.25 -> 0.125",
        "optplug: plateau: 3 validations seen, 2 cuts (epochs 1, 2), monitor val_loss (min) from the configuration",
    ]


@pytest.mark.parametrize(
    ("wiring", "when"),
    [({}, "every epoch"), ({"frequency": 3}, "every 3 epochs"), ({"interval": "step"}, "every step")],
    ids=str,
)
def test_the_account_says_when_a_schedule_steps(
    scripted: type, trainer: Any, ours: Any, capsys: Any, wiring: Any, when: str
):
    trainer(callbacks=ours.ConfigureOptimizers(SGD, {**COSINE, **wiring}), max_epochs=1).fit(scripted())
    assert f"(optplug {optplug.__version__}), stepped {when}\n" in capsys.readouterr().out


def test_the_account_says_that_there_is_no_schedule(scripted: type, trainer: Any, ours: Any, capsys: Any):
    trainer(callbacks=ours.ConfigureOptimizers(SGD), max_epochs=1).fit(scripted())
    assert "optplug: no schedule: the learning rate stays as it is\n" in capsys.readouterr().out


def test_the_epoch_of_a_cut_is_the_epoch_of_the_value(scripted: type, trainer: Any, ours: Any, capsys: Any):
    module = scripted(late={"train_loss": range(1, 9)})
    trainer(callbacks=ours.ConfigureOptimizers(SGD, PLATEAU, monitor="train_loss")).fit(module)
    cuts = [line for line in capsys.readouterr().out.splitlines() if "learning rate" in line]
    assert cuts == [
        "optplug: epoch 1: train_loss is 2, not better than 1: learning rate 1 -> 0.5",
        "optplug: epoch 2: train_loss is 3, not better than 1: learning rate 0.5 -> 0.25",
    ]


def test_a_quiet_callback_says_nothing(scripted: type, trainer: Any, callback: Any, capsys: Any):
    trainer(callbacks=callback(SGD, PLATEAU)).fit(scripted(val=RISING))
    assert "optplug" not in capsys.readouterr().out


# -------------------------------------------------------------------------------- with Lightning's own


def test_the_learning_rate_monitor_sees_the_rates(pl: Any, scripted: type, trainer: Any, callback: Any, tmp_path: Any):
    module = scripted(val=RISING)
    logger = pl.loggers.CSVLogger(tmp_path)
    groups = [{"match": "*.bias", "name": "biases", "lr": 0.5}]
    watch = pl.callbacks.LearningRateMonitor("step")
    configure = callback(SGD, {**PLATEAU, "warmup_steps": 4}, param_groups=groups)
    trainer(callbacks=[configure, watch], logger=logger, log_every_n_steps=1).fit(module)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr-SGD/biases"]]
    assert [float(row["lr-SGD/default"]) for row in rows] == module.rates
    assert [float(row["lr-SGD/biases"]) for row in rows] == [rate / 2 for rate in module.rates]


def test_early_stopping_and_the_plateau_hear_the_same_metric(pl: Any, scripted: type, trainer: Any, callback: Any):
    module = scripted(val=RISING)
    stopping = pl.callbacks.EarlyStopping("val_loss", patience=2)
    trainer(callbacks=[stopping, callback(SGD, PLATEAU)], max_epochs=9).fit(module)
    assert values(module) == [1.0, 2.0, 3.0]


def test_gradients_are_clipped(scripted: type, trainer: Any, callback: Any):
    module = scripted()
    before = [p.detach().clone() for p in module.parameters()]
    trainer(callbacks=callback(SGD), max_steps=1, gradient_clip_val=0.01).fit(module)
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
def test_handwritten_digits_are_learned(
    digits_module: type, trainer: Any, callback: Any, optimizer: Any, scheduler: Any
):
    module = digits_module()
    run = trainer(
        callbacks=callback(optimizer, scheduler, param_groups=[{"match": "*.bias", "weight_decay": 0.0}]), max_epochs=6
    )
    run.fit(module)
    assert run.callback_metrics["val_acc"] > 0.85
