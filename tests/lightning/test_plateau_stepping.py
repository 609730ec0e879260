"""When plateau schedulers step, what patience counts, and which values count."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optplug
from optplug.errors import WiringError
from support import (
    BATCHES_PER_EPOCH,
    PATIENT_PLATEAU,
    PLATEAU,
    RISING,
    SGD,
    lr_finder,
    plateau_summary,
    printed_lines,
    scheduler_of,
)

NAN, INF = float("nan"), float("inf")

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


# --------------------------------------------------------------------------------------------------- Validation metrics


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
def test_plateau_steps_once_per_completed_validation(
    scripted_module: type, trainer: Any, quiet_callback: Any, arguments: dict[str, Any], steps: Any, monitor: str | None
):
    module = scripted_module(val=RISING)
    trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor=monitor), **arguments).fit(module)
    assert module.scheduler_steps == [(*step, float(value)) for value, step in enumerate(steps, 1)]


@pytest.mark.both_import_names
@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"val_check_interval": 0.25, "max_epochs": 2}, [(epoch, n) for n in range(1, 9) for epoch in [(n - 1) // 4]]),
        ({"check_val_every_n_epoch": 3, "max_epochs": 9}, [(2, 12), (5, 24), (8, 36)]),
    ],
    ids=str,
)
def test_plateau_counts_one_step_per_completed_validation(fit_plateau: Any, arguments: Any, steps: Any) -> None:
    fitted, module = fit_plateau(RISING, **arguments)
    assert scheduler_of(fitted).last_epoch == len(steps)
    assert module.scheduler_steps == [(*step, float(value)) for value, step in enumerate(steps, 1)]


def test_sanity_check_does_not_step_plateau(fit_plateau: Any, scripted_module: type) -> None:
    class SanityRecorder(scripted_module):
        sanity_steps = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.sanity_steps += self.trainer.sanity_checking

        def on_train_start(self) -> None:
            plateau = scheduler_of(self.trainer)
            self.before = (plateau.last_epoch, plateau.best, plateau.num_bad_epochs)

    fitted, module = fit_plateau(module=SanityRecorder(val=RISING), max_epochs=1)
    assert module.sanity_steps == 2
    assert module.before == (0, INF, 0)
    assert (scheduler_of(fitted).last_epoch, scheduler_of(fitted).best) == (1, 1.0)


def test_cut_applies_from_the_next_batch(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module(val=RISING)
    trainer(callbacks=quiet_callback(SGD, PLATEAU), val_check_interval=0.5).fit(module)
    assert module.lrs == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]


def test_plateau_steps_once_per_validation_with_validation_every_second_epoch(
    pl: Any, fit_plateau: Any, torch_module: type, trainer: Any, optplug_lightning: Any
) -> None:
    every = {"check_val_every_n_epoch": 2, "max_epochs": 5}  # Lightning issue 10496
    for arguments in ({}, {"monitor": "val_loss"}):
        fitted, module = fit_plateau(RISING, **arguments, **every)
        assert fitted.current_epoch == 5
        assert module.step_values == [1.0, 2.0]
    module = torch_module(val=RISING, entry={"monitor": "val_loss"})
    fitted = trainer(callbacks=optplug_lightning.ConfigureOptimizers(verbose=False), **every)
    fitted.fit(module)
    assert fitted.current_epoch == 5
    assert module.step_values == [1.0, 2.0]
    without_optplug = torch_module(val=RISING, entry={"monitor": "val_loss"})
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="which is not available"):
        trainer(**every).fit(without_optplug)


def test_plateau_steps_once_if_first_validation_is_in_the_last_epoch(
    scripted_module: type, trainer: Any, quiet_callback: Any
):
    module = scripted_module(val=RISING)
    trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor="val_loss"), check_val_every_n_epoch=3).fit(module)
    assert module.step_values == [1.0]


def test_plateau_steps_only_in_validations_that_log_the_metric(
    scripted_module: type, trainer: Any, quiet_callback: Any
):
    class LogsInEvenEpochs(scripted_module):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            if self.current_epoch % 2 == 0:
                self.log("val_rare", float(self.current_epoch))

    module = LogsInEvenEpochs(val={"val_loss": [1.0]})
    trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor="val_rare", mode="min"), max_epochs=5).fit(module)
    assert module.step_values == [0.0, 2.0, 4.0]


def test_epoch_without_validation_does_not_change_plateau(
    pl: Any, fit_plateau: Any, scripted_module: type, tmp_path: Path
) -> None:
    class PlateauRecorder(scripted_module):
        def on_train_epoch_start(self) -> None:
            plateau = scheduler_of(self.trainer)
            self.counts = [*getattr(self, "counts", []), (plateau.num_bad_epochs, plateau.last_epoch)]

    module = PlateauRecorder(val=RISING)
    fitted, _ = fit_plateau(
        None,
        PATIENT_PLATEAU,
        module=module,
        callbacks=[pl.callbacks.LearningRateMonitor("step")],
        logger=pl.loggers.CSVLogger(tmp_path),
        log_every_n_steps=1,
        check_val_every_n_epoch=2,
        max_epochs=7,
    )
    assert module.counts == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 2), (1, 2), (2, 3)]
    assert (scheduler_of(fitted).num_bad_epochs, scheduler_of(fitted).last_epoch) == (2, 3)


@pytest.mark.both_import_names
def test_early_stopping_and_plateau_observe_the_same_values(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any
):
    module = scripted_module(val=RISING)
    stopping = pl.callbacks.EarlyStopping("val_loss", patience=2)
    trainer(callbacks=[stopping, quiet_callback(SGD, PLATEAU)], max_epochs=9).fit(module)
    assert module.step_values == [1.0, 2.0, 3.0]


# ----------------------------------------------------------------------------------------------------- Training metrics


@pytest.mark.parametrize(
    "arguments",
    [{}, {"limit_val_batches": 0}, {"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}],
    ids=str,
)
@pytest.mark.parametrize("where", ["train", "late"])
def test_training_metric_steps_plateau_once_per_epoch(
    scripted_module: type, trainer: Any, quiet_callback: Any, where: str, arguments: dict[str, Any]
):
    module = scripted_module(**{where: {"train_loss": range(1, 9)}}, val={"other": [1.0]})
    trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor="train_loss"), **arguments).fit(module)
    assert module.step_values == [1.0, 2.0, 3.0]
    assert module.lrs == [1.0] * 8 + [0.5] * 4


@pytest.mark.parametrize("arguments", [{}, {"limit_val_batches": 0}, {"val_check_interval": 0.5}], ids=str)
def test_last_value_of_the_epoch_counts_for_a_metric_logged_per_batch(
    scripted_module: type, trainer: Any, quiet_callback: Any, arguments: dict[str, Any]
):
    class LogsPerBatch(scripted_module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train_loss", float(10 * self.current_epoch + batch_idx))
            return super().training_step(batch, batch_idx)

    module = LogsPerBatch(val={"other": [1.0]})
    trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor="train_loss"), **arguments).fit(module)
    assert module.step_values == [3.0, 13.0, 23.0]


# ---------------------------------------------------------------------------------------------------- Units of patience


@pytest.mark.parametrize(
    ("unit", "patience", "arguments", "cut"),
    [
        # Two validations per epoch; every value except the first is bad.
        ("validations", 1, {"val_check_interval": 0.5}, (1, 6)),
        ("epochs", 1, {"val_check_interval": 0.5}, (2, 10)),
        ("epochs", 0, {"val_check_interval": 0.5}, (1, 6)),
        ("steps", 5, {"val_check_interval": 0.5}, (1, 8)),
        ("steps", 6, {"val_check_interval": 0.5}, (2, 10)),
        ("steps", 0, {"val_check_interval": 0.5}, (0, 4)),
        ("steps", 2, {"val_check_interval": 0.5, "accumulate_grad_batches": 2}, (1, 4)),
        # One validation every two epochs.
        ("validations", 2, {"check_val_every_n_epoch": 2}, (7, 32)),
        ("epochs", 2, {"check_val_every_n_epoch": 2}, (5, 24)),
        ("epochs", 1, {"check_val_every_n_epoch": 2}, (3, 16)),
        ("steps", 8, {"check_val_every_n_epoch": 2}, (5, 24)),
    ],
)
def test_patience_counts_in_its_unit(
    fit_plateau: Any, capsys: Any, unit: str, patience: int, arguments: Any, cut: Any
) -> None:
    configuration = {**PLATEAU, "patience": patience, "patience_unit": unit, "cooldown": 10**6}
    _, module = fit_plateau(RISING, configuration, max_epochs=8, **arguments)
    epoch, step = cut
    batches = step * arguments.get("accumulate_grad_batches", 1)
    assert module.lrs == [1.0] * batches + [0.5] * (8 * BATCHES_PER_EPOCH - batches)
    assert f", 1 cut (epoch {epoch}), " in plateau_summary(capsys)


@pytest.mark.parametrize(("unit", "patience", "epochs"), [("epochs", 1, [2, 4]), ("steps", 7, [2, 4])])
def test_patience_for_a_training_metric_counts_in_its_unit(
    fit_plateau: Any, scripted_module: type, capsys: Any, unit: str, patience: int, epochs: Any
) -> None:
    for where in ("train", "late"):
        module = scripted_module(**{where: {"train_loss": range(1, 9)}})
        configuration = {**PLATEAU, "patience": patience, "patience_unit": unit}
        fit_plateau(None, configuration, module=module, monitor="train_loss", max_epochs=5)
        assert plateau_summary(capsys) == (
            "plateau: 5 epochs seen, 2 cuts (epochs 2, 4), monitor train_loss (min) from the configuration"
        )


def test_improvement_restarts_patience_in_every_unit(fit_plateau: Any) -> None:
    values = {"val_loss": [9, 9, 9, 8, 8, 8, 7, 7, 7, 7]}  # two bad values in a row; three at the end
    for unit, patience in (("validations", 2), ("epochs", 2), ("steps", 2 * BATCHES_PER_EPOCH)):
        _, module = fit_plateau(values, {**PLATEAU, "patience": patience, "patience_unit": unit}, max_epochs=11)
        assert module.lrs == [1.0] * 10 * BATCHES_PER_EPOCH + [0.5] * BATCHES_PER_EPOCH


# --------------------------------------------------------------------------------------------------------------- Warmup


def test_plateau_with_warmup_ramps_then_cuts(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module(val=RISING)
    trainer(callbacks=quiet_callback(SGD, {**PLATEAU, "warmup_steps": 6}), max_epochs=4).fit(module)
    assert module.lrs == pytest.approx(
        [warm / 36 for warm in (6, 11, 16, 21, 26, 31)] + [1, 1] + [0.5] * 4 + [0.25] * 4, rel=1e-12
    )


@pytest.mark.parametrize("accumulated", [1, 2])
def test_warmup_ramps_per_step_and_cuts_persist(fit_plateau: Any, accumulated: int) -> None:
    configuration = {**PLATEAU, "warmup": {"steps": 6, "start_factor": 0.5}}
    epochs = 4 * accumulated
    interval = {"accumulate_grad_batches": accumulated, "check_val_every_n_epoch": accumulated}
    fitted, module = fit_plateau(RISING, configuration, max_epochs=epochs, **interval)
    # Validations run after 4, 8, 12 and 16 steps. The first has the best value; the second is the first bad one that
    # counts, because it comes after the warmup.
    steps = [0.5 + 0.5 * min(n, 6) / 6 for n in range(8)] + [0.5] * 4 + [0.25] * 4
    assert module.lrs == pytest.approx([lr for lr in steps for _ in range(accumulated)], rel=1e-12)
    assert fitted.optimizers[0].param_groups[0]["lr"] == 0.125


def test_bad_values_during_warmup_do_not_count(fit_plateau: Any, scripted_module: type) -> None:
    class PlateauRecorder(scripted_module):
        def on_train_batch_start(self, *_: Any) -> None:
            plateau = scheduler_of(self.trainer)
            self.counts = [*getattr(self, "counts", []), (plateau.last_epoch, plateau.num_bad_epochs)]

    configuration = {**PLATEAU, "patience": 1, "warmup_steps": 9}
    module = PlateauRecorder(val={"val_loss": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    _, module = fit_plateau(None, configuration, module=module, max_epochs=3, val_check_interval=0.5)
    # A validation runs after every second step. Those after 2, 4, 6 and 8 steps are in the warmup; 10 and 12 count.
    assert module.counts == [(n // 2, 1 if n >= 10 else 0) for n in range(12)]
    _, module = fit_plateau(RISING, configuration, max_epochs=5, val_check_interval=0.5)
    assert module.lrs[9:] == [1.0] * 3 + [0.5] * 4 + [0.25] * 4


def test_best_value_of_the_warmup_is_kept(fit_plateau: Any) -> None:
    _, module = fit_plateau({"val_loss": [1.0, 2.0, 0.5, 0.9]}, {**PLATEAU, "warmup_steps": 9}, max_epochs=5)
    assert module.lrs[9:] == [1.0] * 7 + [0.5] * 4


def test_state_dict_contains_plateau_and_warmup(
    fit_plateau: Any, optplug_lightning: Any, scripted_module: type, trainer: Any, tmp_path: Path
) -> None:
    configuration = {**PLATEAU, "warmup_steps": 6}
    _, whole = fit_plateau(RISING, configuration, max_epochs=5)
    for epochs in (1, 3):  # during the warmup, and after cuts
        fitted, _ = fit_plateau(RISING, configuration, max_epochs=epochs)
        fitted.save_checkpoint(tmp_path / "saved.ckpt")
        (state,) = torch.load(tmp_path / "saved.ckpt", weights_only=True)["lr_schedulers"]
        assert state == scheduler_of(fitted).state_dict()

        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        plateau = optplug.create_scheduler("reduce_lr_on_plateau", optimizer)
        fresh = optplug.schedulers.warmup.Warmup(plateau, 99)
        fresh.load_state_dict(state)
        assert fresh.state_dict() == state
        assert (fresh.steps_taken, fresh.best) == (min(4 * epochs, 6), 1.0)

        rest = scripted_module(val=RISING)
        again = trainer(
            callbacks=optplug_lightning.ConfigureOptimizers(SGD, configuration, verbose=False), max_epochs=5
        )
        again.fit(rest, ckpt_path=tmp_path / "saved.ckpt")
        assert rest.lrs == whole.lrs[epochs * BATCHES_PER_EPOCH :]


# ------------------------------------------------------------------------------------------- Values that are not finite


NONFINITE_VALUES = [NAN, INF, -INF]


def test_nan_counts_as_bad_value(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module(val={"val_loss": [1.0, float("nan"), 0.5]})
    trainer(callbacks=quiet_callback(SGD, PLATEAU)).fit(module)
    assert module.lrs == [1.0] * 8 + [0.5] * 4


@pytest.mark.filterwarnings("ignore:val_loss. the configuration has mode max, but the name means min")
@pytest.mark.parametrize("value", NONFINITE_VALUES, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_nonfinite_value_counts_as_bad_by_default(fit_plateau: Any, capsys: Any, mode: str, value: float) -> None:
    better = 0.5 if mode == "min" else 2.0
    for scheduler_keys in ({}, {"on_nonfinite": "bad"}):
        fitted, module = fit_plateau(
            {"val_loss": [1.0, value, better]}, {**PLATEAU, **scheduler_keys}, mode=mode, max_epochs=4
        )
        assert module.lrs == [1.0] * 8 + [0.5] * 8
        assert scheduler_of(fitted).best == better
        assert ": 4 validations seen, 2 cuts (epochs 1, 3), " in plateau_summary(capsys)


@pytest.mark.filterwarnings("ignore:val_loss. the configuration has mode max, but the name means min")
@pytest.mark.parametrize("value", NONFINITE_VALUES, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("scheduler_keys", ["bad", "ignore"])
def test_nonfinite_value_is_never_the_best(fit_plateau: Any, scheduler_keys: str, mode: str, value: float) -> None:
    fitted, _ = fit_plateau(
        {"val_loss": [value, value, 1.0]}, {**PATIENT_PLATEAU, "on_nonfinite": scheduler_keys}, mode=mode, max_epochs=2
    )
    assert scheduler_of(fitted).best == (INF if mode == "min" else -INF)
    fitted, _ = fit_plateau(
        {"val_loss": [value, 1.0, value]}, {**PATIENT_PLATEAU, "on_nonfinite": scheduler_keys}, mode=mode
    )
    assert scheduler_of(fitted).best == 1.0
    assert scheduler_of(fitted).num_bad_epochs == (1 if scheduler_keys == "bad" else 0)


@pytest.mark.filterwarnings("ignore:val_loss. the configuration has mode max, but the name means min")
@pytest.mark.parametrize("value", NONFINITE_VALUES, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_on_nonfinite_ignore_skips_value_and_reports(fit_plateau: Any, capsys: Any, mode: str, value: float) -> None:
    values = {"val_loss": [1.0, value, value, 1.0]}
    fitted, module = fit_plateau(values, {**PLATEAU, "on_nonfinite": "ignore"}, mode=mode, max_epochs=4)
    assert module.lrs == [1.0] * 16
    assert scheduler_of(fitted).last_epoch == 2  # ignored values do not step the plateau
    lines = printed_lines(capsys)
    for epoch in (1, 2):
        assert f"epoch {epoch}: val_loss is {value}, which reduce_lr_on_plateau ignores" in lines
    assert lines[-1] == (
        "plateau: 4 validations seen, 2 of them not finite and ignored, 1 cut (epoch 3), "
        f"monitor val_loss ({mode}) from the only validation loss that the first validation logs"
    )


@pytest.mark.parametrize("value", NONFINITE_VALUES, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_on_nonfinite_raise_raises_wiring_error(
    fit_plateau: Any, scripted_module: type, mode: str, value: float
) -> None:
    module = scripted_module(val={"val_score": [1.0, value]})
    with pytest.raises(WiringError) as caught:
        fit_plateau(None, {**PLATEAU, "on_nonfinite": "raise"}, module=module, monitor="val_score", mode=mode)
    assert str(caught.value) == (f"epoch 1: val_score is {value}, and reduce_lr_on_plateau has on_nonfinite: raise")
    assert len(module.lrs) == 2 * BATCHES_PER_EPOCH


@pytest.mark.parametrize("value", NONFINITE_VALUES, ids=str)
def test_cut_message_shows_nonfinite_value(fit_plateau: Any, capsys: Any, value: float) -> None:
    fit_plateau({"val_loss": [1.0, value]}, max_epochs=2)
    assert f"epoch 1: val_loss is {value}, not better than 1: learning rate 1 -> 0.5" in printed_lines(capsys)


@pytest.mark.parametrize("unit", ["validations", "epochs", "steps"])
def test_patience_does_not_count_ignored_values(fit_plateau: Any, unit: str) -> None:
    patience = BATCHES_PER_EPOCH if unit == "steps" else 1
    configuration = {**PLATEAU, "patience": patience, "patience_unit": unit, "on_nonfinite": "ignore"}
    _, module = fit_plateau({"val_loss": [1.0, NAN, 2.0, 3.0]}, configuration, max_epochs=5)
    assert module.lrs == [1.0] * 16 + [0.5] * 4


def test_nonfinite_value_during_warmup_is_not_stored_as_best(fit_plateau: Any) -> None:
    configuration = {**PLATEAU, "warmup_steps": 5, "on_nonfinite": "bad"}
    fitted, _ = fit_plateau({"val_loss": [-INF, 1.0, -INF]}, configuration)
    assert scheduler_of(fitted).best == 1.0
    assert fitted.optimizers[0].param_groups[0]["lr"] == 0.5


# ---------------------------------------------------------------------------------------- Training without a validation


class WarningRecorder:
    """A mixin for modules that records the warnings before the first batch."""

    def on_train_start(self) -> None:
        self.early_warnings = [str(w.message) for w in self.caught if w.category is UserWarning]


def plateau_warnings(fitted: Any, module: Any) -> list[str]:
    """Fit, and return the warnings about the plateau; all of them must come before the first batch."""
    with warnings.catch_warnings(record=True) as module.caught:
        warnings.simplefilter("always")
        fitted.fit(module)
    found = [str(w.message) for w in module.caught if "reduce_lr_on_plateau" in str(w.message)]
    assert found == [text for text in module.early_warnings if "reduce_lr_on_plateau" in text]
    return found


@pytest.mark.parametrize("monitor", ["val_loss", None])
@pytest.mark.parametrize("sanity", [2, 0])
def test_max_steps_before_the_first_validation_warns(
    scripted_module: type, trainer: Any, optplug_lightning: Any, monitor: str | None, sanity: int
) -> None:
    module = type("RecordingModule", (WarningRecorder, scripted_module), {})(val=RISING)  # Lightning issue 8839
    configure = optplug_lightning.ConfigureOptimizers(SGD, PLATEAU, monitor=monitor)
    fitted = trainer(callbacks=configure, max_steps=2, num_sanity_val_steps=sanity)
    # The sanity check shows the name of the metric.
    metric = "val_loss" if monitor or sanity else "a validation loss"
    assert plateau_warnings(fitted, module) == [
        f"reduce_lr_on_plateau is never stepped, unless training itself logs {metric}: the first validation comes "
        "after 4 optimizer steps, and max_steps is 2"
    ]
    assert fitted.global_step == 2
    assert module.scheduler_steps == []


@pytest.mark.parametrize(
    ("arguments", "validations"),
    [
        ({"max_steps": 3}, 0),
        ({"max_steps": 4}, 1),
        ({"max_steps": 1, "accumulate_grad_batches": 2}, 0),
        ({"max_steps": 2, "accumulate_grad_batches": 3}, 1),
        ({"max_steps": 1, "accumulate_grad_batches": 3, "val_check_interval": 0.75}, 1),
        ({"max_steps": 1, "accumulate_grad_batches": 2, "val_check_interval": 0.75}, 0),
        ({"max_steps": 1, "val_check_interval": 0.25}, 1),
        ({"max_steps": 1, "val_check_interval": 0.5}, 0),
        ({"max_steps": 7, "check_val_every_n_epoch": 2}, 0),
        ({"max_steps": 8, "check_val_every_n_epoch": 2}, 1),
        ({"max_epochs": 2, "check_val_every_n_epoch": 3}, 0),
        ({"max_epochs": 3, "check_val_every_n_epoch": 3}, 1),
        ({"limit_val_batches": 0}, 0),
    ],
    ids=str,
)
def test_warning_if_and_only_if_no_validation_will_complete(
    scripted_module: type, trainer: Any, optplug_lightning: Any, arguments: Any, validations: int
) -> None:
    module = type("RecordingModule", (WarningRecorder, scripted_module), {})(val=RISING)
    fitted = trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, PLATEAU, monitor="val_loss"), **arguments)
    assert len(plateau_warnings(fitted, module)) == (0 if validations else 1)
    assert len(module.scheduler_steps) == validations


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 100},
            "the next validation would come after 100 batches, and the training has 12",
        ),
        ({"barebones": True}, "barebones=True disables logging"),
    ],
    ids=["batches across epochs", "barebones"],
)
@pytest.mark.filterwarnings("ignore:.*barebones")
def test_metric_that_cannot_be_logged_gives_one_warning(
    scripted_module: type, trainer: Any, optplug_lightning: Any, arguments: Any, reason: str
) -> None:
    module = type("RecordingModule", (WarningRecorder, scripted_module), {})(val=RISING)
    fitted = trainer(
        callbacks=optplug_lightning.ConfigureOptimizers(SGD, PLATEAU, monitor="val_loss"), max_epochs=3, **arguments
    )
    assert plateau_warnings(fitted, module) == [
        f"reduce_lr_on_plateau is never stepped, unless training itself logs val_loss: {reason}"
    ]
    assert fitted.current_epoch == 3
    assert module.scheduler_steps == []


def test_training_without_validation_gives_one_warning(
    scripted_module: type, trainer: Any, optplug_lightning: Any
) -> None:
    module = type("RecordingModule", (WarningRecorder, scripted_module), {})(val=RISING)
    fitted = trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, PLATEAU), limit_val_batches=0)
    assert plateau_warnings(fitted, module) == [
        "reduce_lr_on_plateau is never stepped, unless training itself logs a validation loss: no validation runs "
        "(there is no validation_step, no data for it, or limit_val_batches is 0)"
    ]
    assert fitted.current_epoch == 3
    assert is_initial(scheduler_of(fitted))
    assert module.scheduler_steps == []


# -------------------------------------------------------------------------------------------------- Dry runs and tuners


LINKED_SGD = {"name": "sgd", "lr": "module.lr"}


@pytest.fixture
def tunable_module(scripted_module: type) -> Any:
    """A module for tuners. At each start of a training, it records whether its plateaus are in the initial state."""

    class Tunable(scripted_module):
        lr, batch_size = 0.5, 2

        def __init__(self) -> None:
            super().__init__(val=RISING)
            self.starts: list[Any] = []

        @property
        def plateau_values(self) -> list[float]:
            """The values of plateau steps; the steps of the tuner's own scheduler have none."""
            return [value for value in self.step_values if value is not None]

        def on_train_start(self) -> None:
            schedulers = [entry.scheduler for entry in self.trainer.lr_scheduler_configs]
            self.starts.append([is_initial(scheduler) for scheduler in schedulers if hasattr(scheduler, "best")])

        def train_dataloader(self) -> DataLoader:
            torch.manual_seed(1)
            x = torch.randn(16, 4)
            return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=self.batch_size)

    return Tunable()


def is_initial(plateau: Any) -> bool:
    return (plateau.best, plateau.last_epoch, plateau.num_bad_epochs, plateau.cooldown_counter) == (INF, 0, 0, 0)


def plateau_messages(capture: Any) -> list[str]:
    """The printed lines about plateaus, without the summary at the start of a fit."""
    return [line for line in printed_lines(capture) if "plateau" in line and not line.startswith("scheduler ")]


def test_fast_dev_run_does_not_step_plateau(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module(val=RISING)
    trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor="not_logged_yet", mode="min"), fast_dev_run=True).fit(module)
    assert module.scheduler_steps == []


@pytest.mark.usefixtures("without_adapters")
def test_fast_dev_run_reports_that_plateau_is_not_stepped(fit_plateau: Any, capsys: Any) -> None:
    for arguments in ({}, {"monitor": "val_nothing", "mode": "min"}):
        fitted, module = fit_plateau(RISING, fast_dev_run=2, **arguments)
        assert plateau_messages(capsys) == ["fast_dev_run: reduce_lr_on_plateau is not stepped"]
        assert is_initial(scheduler_of(fitted))
        assert module.scheduler_steps == []


@pytest.mark.usefixtures("restore_interrupt_handler")
@pytest.mark.usefixtures("without_adapters")
def test_interrupted_fast_dev_run_prints_no_plateau_summary(
    fit_plateau: Any, scripted_module: type, capsys: Any
) -> None:
    class Interrupted(scripted_module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit_plateau(module=Interrupted(), fast_dev_run=True)
    assert plateau_messages(capsys) == ["fast_dev_run: reduce_lr_on_plateau is not stepped"]


@pytest.mark.parametrize("tuner_name", ["lr_find", "scale_batch_size"])
def test_tuner_does_not_step_plateau(
    pl: Any, optplug_lightning: Any, tunable_module: Any, trainer: Any, capsys: Any, tuner_name: str
) -> None:
    fitted = trainer(callbacks=optplug_lightning.ConfigureOptimizers(LINKED_SGD, PLATEAU), max_epochs=2)
    tuner = pl.tuner.Tuner(fitted)
    if tuner_name == "lr_find":
        tuner.lr_find(tunable_module, num_training=40)  # as many batches as five epochs have
        assert tunable_module.lr != 0.5
    else:
        tuner.scale_batch_size(tunable_module, max_trials=2, steps_per_trial=2)
        assert tunable_module.batch_size > 2
    assert len(plateau_messages(capsys)) <= 1
    assert tunable_module.plateau_values == []
    assert is_initial(scheduler_of(fitted))
    fitted.fit(tunable_module)  # a fit after tuning steps the plateau
    assert tunable_module.starts[-1] == [True]
    assert tunable_module.plateau_values[-2:] == [
        float(value) for value in range(int(tunable_module.validations) - 1, int(tunable_module.validations) + 1)
    ]
    assert scheduler_of(fitted).last_epoch == 2


@pytest.mark.parametrize("tuner_name", ["LearningRateFinder", "BatchSizeFinder"])
def test_tuning_callback_does_not_step_plateau(
    pl: Any, fit_plateau: Any, tunable_module: Any, capsys: Any, tuner_name: str
) -> None:
    if tuner_name == "LearningRateFinder":
        finder = lr_finder(pl, num_training_steps=40)
    else:
        finder = pl.callbacks.BatchSizeFinder(max_trials=2, steps_per_trial=2)
    fitted, _ = fit_plateau(optimizer=LINKED_SGD, module=tunable_module, callbacks=[finder], max_epochs=2, verbose=True)
    assert (tunable_module.lr != 0.5) == (tuner_name == "LearningRateFinder")
    assert (tunable_module.batch_size != 2) == (tuner_name == "BatchSizeFinder")
    assert tunable_module.starts[-1] == [True]
    assert len(tunable_module.plateau_values) == scheduler_of(fitted).last_epoch == 2
    lines = plateau_messages(capsys)
    assert [line for line in lines if line.startswith("plateau: 2 validations seen, ")] == lines[-1:]
    assert len([line for line in lines if "monitors" in line]) == 1
