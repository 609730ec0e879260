"""Which metric a plateau scheduler monitors, and its mode."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from optplug.errors import ConfigError, WiringError
from optplug.lightning.monitor import mode_from_name, only_validation_loss
from support import (
    ADAM,
    BATCHES_PER_EPOCH,
    PATIENT_PLATEAU,
    PLATEAU,
    RISING,
    SGD,
    plateau_summary,
    printed_lines,
    scheduler_of,
)

METRICS = {"val_loss": [1.0, 2.0, 3.0], "val_acc": [0.1, 0.2, 0.3], "val_score": [10.0, 20.0, 30.0]}

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


@pytest.fixture
def monitoring_callbacks(pl: Any, tmp_path: Path) -> Any:
    """A factory of EarlyStopping (`stop`) and ModelCheckpoint (`save`) callbacks from pairs of monitor and mode."""

    def make(**monitors: Any) -> list[Any]:
        callbacks: list[Any] = []
        for kind, metrics in monitors.items():
            for i, (monitor, mode) in enumerate(metrics):
                if kind == "stop":
                    callbacks.append(pl.callbacks.EarlyStopping(monitor, mode=mode, patience=99))
                else:
                    callbacks.append(
                        pl.callbacks.ModelCheckpoint(tmp_path / str(i), monitor=monitor, mode=mode, filename="{epoch}")
                    )
        return callbacks

    return make


# ------------------------------------------------------------------------------------------- Sources of metric and mode


@pytest.mark.parametrize(
    ("monitors", "configuration", "first", "cuts", "line"),
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
@pytest.mark.filterwarnings("ignore:val_acc. the configuration has mode min, but the name means max")
def test_metric_and_mode_come_from_configuration_or_callbacks(
    scripted_module: type,
    trainer: Any,
    optplug_lightning: Any,
    monitoring_callbacks: Any,
    capsys: Any,
    monitors: Any,
    configuration: Any,
    first: float,
    cuts: int,
    line: str,
):
    module = scripted_module(val=METRICS)
    configure = optplug_lightning.ConfigureOptimizers(SGD, {**PLATEAU, **configuration})
    trainer(callbacks=[configure, *monitoring_callbacks(**monitors)], enable_checkpointing="save" in monitors).fit(
        module
    )
    assert module.step_values[0] == pytest.approx(first)
    assert len(module.scheduler_steps) == 3
    assert module.lrs[-1] == 0.5 ** max(0, cuts - 1)
    assert f"optplug:   monitor {line}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("monitors", "message"),
    [
        (
            {"stop": [("val_loss", "min"), ("val_acc", "max")]},
            "EarlyStopping callbacks monitor different metrics: set scheduler.monitor to one of val_acc, val_loss",
        ),
        (
            {"save": [("val_loss", "min"), ("val_acc", "max")]},
            "ModelCheckpoint callbacks monitor different metrics: set scheduler.monitor to one of val_acc, val_loss",
        ),
        (
            {"stop": [("val_loss", "min")], "save": [("val_loss", "max")]},
            "callbacks monitor 'val_loss' with different modes (EarlyStopping: min, ModelCheckpoint: max): set "
            "scheduler.mode",
        ),
    ],
    ids=["EarlyStopping", "ModelCheckpoint", "mode"],
)
def test_disagreeing_callbacks_raise(
    scripted_module: type, trainer: Any, quiet_callback: Any, monitoring_callbacks: Any, monitors: Any, message: str
):
    module = scripted_module(val=METRICS)
    with pytest.raises(WiringError) as caught:
        trainer(
            callbacks=[quiet_callback(SGD, PLATEAU), *monitoring_callbacks(**monitors)], enable_checkpointing=True
        ).fit(module)
    assert str(caught.value) == message
    assert module.lrs == []


def test_configuration_overrides_disagreeing_callbacks(
    scripted_module: type, trainer: Any, quiet_callback: Any, monitoring_callbacks: Any
):
    module = scripted_module(val=METRICS)
    others = monitoring_callbacks(stop=[("val_loss", "min"), ("val_acc", "max")])
    trainer(callbacks=[quiet_callback(SGD, PLATEAU, monitor="val_score", mode="max"), *others]).fit(module)
    assert module.step_values == [10.0, 20.0, 30.0]


@pytest.mark.both_import_names
def test_metric_of_model_checkpoint_is_used_and_reported(fit_plateau: Any, model_checkpoint: Any, capsys: Any) -> None:
    val = {"val_f1": [0.1, 0.3, 0.2], "val_loss": [1.0, 2.0, 3.0]}
    _, module = fit_plateau(
        val, callbacks=[model_checkpoint("val_f1", mode="max")], enable_checkpointing=True, max_epochs=4
    )
    assert module.step_values == pytest.approx([0.1, 0.3, 0.2, 0.2])
    assert module.lrs == [1.0] * 12 + [0.5] * 4
    assert "  monitor val_f1 (max) from ModelCheckpoint" in printed_lines(capsys)


@pytest.mark.parametrize("monitor", ["step", "epoch", "lr-SGD"])
def test_counters_and_learning_rates_of_model_checkpoint_are_not_metrics(
    pl: Any, fit_plateau: Any, model_checkpoint: Any, tmp_path: Path, capsys: Any, monitor: str
) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    callbacks = [pl.callbacks.LearningRateMonitor(), model_checkpoint(monitor, mode="max", save_top_k=1)]
    _, module = fit_plateau(RISING, callbacks=callbacks, logger=logger, enable_checkpointing=True, log_every_n_steps=1)
    assert module.step_values == [1.0, 2.0, 3.0]
    assert "reduce_lr_on_plateau monitors val_loss (min), the only validation loss" in printed_lines(capsys)
    assert (tmp_path / "saved").exists()  # ModelCheckpoint saves checkpoints as usual


def test_metric_of_early_stopping_is_used_beside_a_counter_of_model_checkpoint(
    fit_plateau: Any, model_checkpoint: Any, pl: Any, capsys: Any
) -> None:
    callbacks = [pl.callbacks.EarlyStopping("val_acc", mode="max", patience=9), model_checkpoint("step", mode="max")]
    fit_plateau({"val_acc": [0.5], "val_loss": [1.0]}, callbacks=callbacks, enable_checkpointing=True)
    assert plateau_summary(capsys).endswith("monitor val_acc (max) from EarlyStopping")


def test_logged_learning_rates_are_not_metrics(pl: Any, fit_plateau: Any, tmp_path: Path, capsys: Any) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    lr_monitor = pl.callbacks.LearningRateMonitor("epoch")
    fitted, module = fit_plateau(
        RISING, PATIENT_PLATEAU, optimizer=ADAM, callbacks=[lr_monitor], logger=logger, log_every_n_steps=1
    )
    assert "lr-Adam" in fitted.callback_metrics
    assert module.step_values == [1.0, 2.0, 3.0]
    assert plateau_summary(capsys).endswith(
        "monitor val_loss (min) from the only validation loss that the first validation logs"
    )
    with pytest.raises(WiringError) as caught:  # the error does not suggest learning rates either
        fit_plateau({"val_acc": [1.0]}, optimizer=ADAM, callbacks=[lr_monitor], logger=logger, log_every_n_steps=1)
    assert str(caught.value) == "the validation logged no loss: set scheduler.monitor to one of val_acc"


@pytest.mark.parametrize("where", ["callback", "scheduler"])
def test_learning_rate_as_monitor_raises(optplug_lightning: Any, where: str) -> None:
    inner, outer = ({"monitor": "lr-Adam"}, {}) if where == "scheduler" else ({}, {"monitor": "lr-Adam"})
    with pytest.raises(ConfigError, match="lr-Adam"):
        optplug_lightning.ConfigureOptimizers(ADAM, {**PLATEAU, **inner}, **outer)


# --------------------------------------------------------------------------------------------- The only validation loss


@pytest.mark.both_import_names
@pytest.mark.parametrize("forms", [{}, {"on_step": True, "on_epoch": True}], ids=["", "both forms"])
def test_only_logged_validation_loss_is_the_default_monitor(
    scripted_module: type, trainer: Any, optplug_lightning: Any, capsys: Any, forms: Any
):
    class LogsForms(scripted_module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", float(self.validations), batch_size=2, **forms)
            self.log("val_acc", 0.5, batch_size=2)

    module = LogsForms(train={"train_loss": [1.0]})
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, PLATEAU)).fit(module)
    assert module.step_values == [0.0, 1.0, 2.0]
    assert (
        "optplug: reduce_lr_on_plateau monitors val/loss (min), the only validation loss\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("val", "message", "batches"),
    [
        (
            {"val_loss_a": [1.0], "val_loss_b": [1.0], "val_acc": [1.0]},
            "the validation logged 2 losses: set scheduler.monitor to one of val_loss_a, val_loss_b",
            0,  # the sanity check detects this error
        ),
        (
            {"val_acc": [1.0]},
            "the validation logged no loss: set scheduler.monitor to one of val_acc",
            4,
        ),
        ({}, "the validation logged no metric: log one in validation_step, and set scheduler.monitor", 4),
    ],
    ids=["two", "none", "nothing"],
)
def test_zero_or_several_validation_losses_without_monitor_raise(
    scripted_module: type, trainer: Any, quiet_callback: Any, val: Any, message: str, batches: int
):
    module = scripted_module(val=val, train={"train_loss": [1.0]})
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=quiet_callback(SGD, PLATEAU)).fit(module)
    assert str(caught.value) == message
    assert len(module.lrs) == batches


def test_step_and_epoch_forms_count_as_one_validation_loss():
    assert only_validation_loss(["val_loss", "val_loss_step", "val_loss_epoch", "lr-val_loss", "val_acc"]) == "val_loss"
    assert only_validation_loss(["val_loss_epoch"]) == "val_loss_epoch"


SPELLINGS = ["val_loss", "Validation loss", "val loss", "valLoss", "loss (val)", "eval_loss", "val:loss", "test-loss"]


@pytest.mark.parametrize("monitored", [False, True], ids=["inferred", "monitor"])
@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize("name", SPELLINGS)
def test_metric_and_mode_are_inferred_in_any_spelling(
    fit_plateau: Any, capsys: Any, name: str, sanity: int, monitored: bool
) -> None:
    monitor = {"monitor": name} if monitored else {}
    _, module = fit_plateau({name: [1.0, 2.0]}, **monitor, num_sanity_val_steps=sanity)
    assert module.step_values == [1.0, 2.0, 2.0]
    shown = name if name.replace(":", "").replace("-", "").isidentifier() else repr(name)
    assert f"monitor {shown} (min) from" in plateau_summary(capsys)


@pytest.mark.parametrize("name", [name for name in SPELLINGS if name != "test-loss"])
def test_missing_validation_gives_the_same_warning_in_any_spelling(fit_plateau: Any, name: str) -> None:
    with pytest.warns(UserWarning, match=r"never stepped, unless training itself logs '?" + re.escape(name)):
        _, module = fit_plateau({name: [1.0]}, monitor=name, limit_val_batches=0)
    assert module.lrs == [1.0] * 3 * BATCHES_PER_EPOCH


@pytest.mark.parametrize("sanity", [2, 0])
def test_validation_loss_without_other_words_is_preferred(fit_plateau: Any, capsys: Any, sanity: int) -> None:
    val = {"validation_loss": [1.0], "reconstruction_loss_validation": [3.0], "kl_local_validation": [2.0]}
    _, module = fit_plateau(val, num_sanity_val_steps=sanity)
    assert module.step_values == [1.0, 1.0, 1.0]
    lines = printed_lines(capsys)
    text = "of several validation losses; the others: reconstruction_loss_validation"
    assert f"reduce_lr_on_plateau monitors validation_loss (min), {text}" in lines
    assert lines[-1].endswith(
        "monitor validation_loss (min) from the names of the losses that the first validation logs"
    )


@pytest.mark.parametrize("sanity", [2, 0])
def test_metric_named_eval_may_be_logged_at_the_end_of_the_epoch(
    fit_plateau: Any, scripted_module: type, capsys: Any, sanity: int
) -> None:
    module = scripted_module(val=RISING, late={"eval/return": range(9)})
    fit_plateau(module=module, monitor="eval/return", num_sanity_val_steps=sanity)
    assert plateau_summary(capsys) == "plateau: 3 epochs seen, 0 cuts, monitor eval/return (max) from the configuration"
    module = scripted_module(val=RISING)
    with pytest.raises(WiringError, match=r"monitors 'dev_f1' .* which is not logged; logged metrics: val_loss"):
        fit_plateau(module=module, monitor="dev_f1", num_sanity_val_steps=sanity)
    assert len(module.lrs) == BATCHES_PER_EPOCH


@pytest.mark.parametrize("sanity", [2, 0])
def test_name_with_the_word_sanity_is_used_if_each_validation_logs_it(fit_plateau: Any, sanity: int) -> None:
    _, module = fit_plateau({"sanity_check_val_loss": [1.0, 2.0]}, num_sanity_val_steps=sanity)
    assert module.step_values == [1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "mode"), [("val_dice_coef", "min"), ("val_neg_mean_squared_error", None)], ids=["warns", "silent"]
)
def test_callback_mode_is_compared_with_the_meaning_of_the_whole_name(
    pl: Any, fit_plateau: Any, name: str, mode: str | None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_plateau({name: [1.0]}, callbacks=[pl.callbacks.EarlyStopping(name, mode=mode or "max", patience=9)])
    messages = [str(one.message) for one in caught if "but the name means" in str(one.message)]
    assert len(messages) == (mode is not None)


def test_ambiguity_that_no_sanity_check_can_find_is_announced(fit_plateau: Any, capsys: Any) -> None:
    text = "no sanity check runs: if the first validation logs several losses, training may stop with an error"
    line = f"reduce_lr_on_plateau: {text}; set scheduler.monitor to avoid this"
    fit_plateau(RISING, num_sanity_val_steps=0)
    assert line in printed_lines(capsys)
    fit_plateau(RISING, num_sanity_val_steps=0, monitor="val_loss")
    fit_plateau(RISING)
    assert line not in printed_lines(capsys)


@pytest.mark.parametrize(
    ("logged", "message"),
    [
        (
            ["Val loss A", "val_loss_b"],
            "the validation logged 2 losses: set scheduler.monitor to one of 'Val loss A', ",
        ),
        (
            ["Val score", "val_acc"],
            "the validation logged no loss: set scheduler.monitor to one of 'Val score', val_acc",
        ),
    ],
)
def test_names_with_spaces_are_quoted_in_errors(fit_plateau: Any, logged: list[str], message: str) -> None:
    with pytest.raises(WiringError, match="^" + message):
        fit_plateau({name: [1.0] for name in logged})


@pytest.fixture
def module_with_own_plateau(torch_module: type) -> Any:
    """A factory of modules that log two losses, with their own plateau scheduler in one of Lightning's forms."""

    def make(form: str, mode: str = "min") -> Any:
        class OwnPlateau(torch_module):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode)
                entry = {"scheduler": scheduler, "monitor": "elbo_validation"}
                return {
                    "beside": {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "elbo_validation"},
                    "inside": {"optimizer": optimizer, "lr_scheduler": entry},
                    "lists": ([optimizer], [entry]),
                }[form]

        return OwnPlateau(val={"elbo_validation": [1.0, 2.0, 3.0], "a_loss_val": [5.0], "b_loss_val": [5.0]})

    return make


@pytest.mark.parametrize(("mode", "lr"), [("min", 0.5), ("max", 1.0)])
@pytest.mark.parametrize("form", ["beside", "inside", "lists"])
def test_metric_and_mode_of_the_replaced_schedule_are_used(
    optplug_lightning: Any, trainer: Any, module_with_own_plateau: Any, capsys: Any, form: str, mode: str, lr: float
) -> None:
    module = module_with_own_plateau(form, mode)
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(None, PLATEAU, override=True)).fit(module)
    assert module.step_values == [1.0, 2.0, 3.0]
    assert module.lrs[-1] == lr
    assert plateau_summary(capsys).endswith(f"monitor elbo_validation ({mode}) from the module's own schedule")


def test_callbacks_have_precedence_over_the_replaced_schedule(
    pl: Any, optplug_lightning: Any, trainer: Any, module_with_own_plateau: Any, capsys: Any
) -> None:
    stop = pl.callbacks.EarlyStopping("a_loss_val", patience=9)
    configure = optplug_lightning.ConfigureOptimizers(None, PLATEAU, override=True)
    trainer(callbacks=[configure, stop]).fit(module_with_own_plateau("inside"))
    assert plateau_summary(capsys).endswith("monitor a_loss_val (min) from EarlyStopping")


# ------------------------------------------------------------------------------------- What only the sanity check logs


@pytest.fixture
def fit_with_sanity_names(fit_plateau: Any, scripted_module: type) -> Any:
    """A function that fits a module whose sanity check logs `sanity`, and whose validations log `val`."""

    def run(sanity: list[str], val: list[str], **given: Any) -> Any:
        class LogsByStage(scripted_module):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                for name in sanity if self.trainer.sanity_checking else val:
                    self.log(name, float(self.validations), batch_size=2)

        return fit_plateau(module=LogsByStage(), **given)[1]

    return run


@pytest.mark.parametrize("prefix", ["sanity_check", "RunningStage.SANITY_CHECKING/"])
@pytest.mark.parametrize("monitor", ["val_loss", "val_los", None])
def test_names_of_the_sanity_check_are_not_suggested_or_used(
    fit_with_sanity_names: Any, capsys: Any, monitor: str | None, prefix: str
) -> None:
    sanity, val = [f"{prefix}_val_loss", f"{prefix}_val_MAE"], ["val_loss", "val_MAE"]
    arguments = {} if monitor is None else {"monitor": monitor, "mode": "min"}
    if monitor == "val_los":
        with pytest.raises(WiringError, match=r"is not logged; did you mean 'val_loss'\?$"):
            fit_with_sanity_names(sanity, val, **arguments)
    else:
        assert fit_with_sanity_names(sanity, val, **arguments).step_values == [0.0, 1.0, 2.0]
    assert not [line for line in printed_lines(capsys) if prefix in line]


@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_metric_that_only_the_sanity_check_logs_is_replaced(
    fit_with_sanity_names: Any, capsys: Any, monitor: str | None
) -> None:
    arguments = {} if monitor is None else {"monitor": monitor}
    module = fit_with_sanity_names(["val/loss"], ["valLoss"], **arguments)
    assert module.step_values == [0.0, 1.0, 2.0]
    assert "monitor valLoss (min)" in plateau_summary(capsys)


def test_monitor_that_only_the_sanity_check_logs_raises(fit_with_sanity_names: Any) -> None:
    with pytest.raises(WiringError, match=r"'val_rec_loss' .* is not logged; did you mean 'val_reg_loss'"):
        fit_with_sanity_names(["val_rec_loss"], ["val_reg_loss"], monitor="val_rec_loss")


# ------------------------------------------------------------------------ Metrics that are not logged, and near matches


@pytest.mark.parametrize("arguments", [{}, {"val_check_interval": 0.5}, {"max_epochs": 1}], ids=str)
def test_missing_validation_metric_raises_after_the_first_validation(
    scripted_module: type, trainer: Any, quiet_callback: Any, arguments: dict[str, Any]
):
    module = scripted_module(val={"val_loss": [1.0]}, train={"train_loss": [1.0]})
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor="val_los", mode="min"), **arguments).fit(module)
    assert str(caught.value) == (
        "reduce_lr_on_plateau monitors 'val_los' (from the configuration), which is not logged; did you mean "
        "'val_loss'?"
    )
    assert len(module.lrs) == (2 if "val_check_interval" in arguments else 4)


def test_missing_metric_is_reported_after_sanity_check_and_raised_after_validation(
    fit_plateau: Any, scripted_module: type, capsys: Any
) -> None:
    module = scripted_module(val={"val_loss": [1.0], "val_acc": [1.0]}, train={"train_loss": [1.0]})
    with pytest.raises(WiringError) as caught:
        fit_plateau(module=module, monitor="val_losss", mode="min")
    text = "reduce_lr_on_plateau monitors 'val_losss' (from the configuration), which is not logged"
    assert str(caught.value) == f"{text}; did you mean 'val_loss'?"
    assert len(module.lrs) == BATCHES_PER_EPOCH
    # After the sanity check, which may not be a full validation, it is only printed.
    assert f"{text} in the sanity check; did you mean 'val_loss'?" in printed_lines(capsys)


def test_error_about_a_missing_metric_suggests_the_same_words(fit_plateau: Any) -> None:
    with pytest.raises(WiringError, match=r"is not logged; did you mean 'loss \(valid\)'\?$"):
        fit_plateau({"loss (valid)": [1.0], "val_los": [1.0]}, monitor="val_loss")


@pytest.mark.both_import_names
@pytest.mark.parametrize("arguments", [{"monitor": "val_los"}, {}, {"monitor": "train_los"}], ids=str)
def test_error_about_a_missing_metric_is_a_misconfiguration(pl: Any, fit_plateau: Any, arguments: Any) -> None:
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException) as caught:
        fit_plateau({"val_acc": [1.0]}, **arguments, **({"mode": "min"} if arguments else {}))
    assert isinstance(caught.value, WiringError)
    assert type(caught.value).__qualname__ == "WiringError"
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is WiringError
    assert str(copy) == str(caught.value)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("validation", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 1}], ids=str)
def test_metric_missing_in_the_only_epoch_raises(
    fit_plateau: Any, scripted_module: type, epochs: int, validation: Any
) -> None:
    module = scripted_module(train={"train_loss": [1.0]}, val={"val_loss": [1.0]})
    with pytest.raises(WiringError, match=r"'train_los' .*, which is not logged; did you mean 'train_loss'"):
        fit_plateau(module=module, monitor="train_los", mode="min", max_epochs=epochs, **validation)
    assert len(module.lrs) == BATCHES_PER_EPOCH


def test_metric_missing_in_the_only_epoch_is_allowed_if_not_strict(
    torch_module: type, trainer: Any, quiet_callback: Any
):
    module = torch_module(entry={"monitor": "train_los", "strict": False})
    trainer(callbacks=quiet_callback(), max_epochs=1).fit(module)
    assert module.scheduler_steps == []


@pytest.mark.parametrize(
    ("configured", "logged"),
    [
        ("val/loss", "val_loss"),
        ("val_loss", "val/loss"),
        ("valid.Loss", "valid_loss"),
        ("val_loss_epoch", "val_loss"),
        ("val_loss", "val_loss_epoch"),
        ("val_loss/dataloader_idx_0", "val_loss"),
    ],
)
@pytest.mark.parametrize("sanity", [2, 0])
def test_near_match_of_the_monitor_is_used_and_reported(
    fit_plateau: Any, capsys: Any, configured: str, logged: str, sanity: int
) -> None:
    _, module = fit_plateau({logged: [1.0, 2.0], "val_acc": [1.0]}, monitor=configured, num_sanity_val_steps=sanity)
    assert module.step_values == [1.0, 2.0, 2.0]
    lines = printed_lines(capsys)
    subject = f"reduce_lr_on_plateau monitors {configured!r} (from the configuration)"
    report = f"{subject}, which is not logged; using {logged!r} instead"
    assert lines.count(report) == 1
    assert lines[-1].endswith(f"monitor {logged} (min) from the configuration")


@pytest.fixture
def two_loader_module(scripted_module: type) -> type:
    """The class of a module with two validation data loaders, which log the names in `logged`."""

    class TwoLoaders(scripted_module):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            for name in self.logged[dataloader_idx]:
                self.log(name, float(self.validations + dataloader_idx), batch_size=2)

        def val_dataloader(self) -> Any:
            return [super().val_dataloader(), super().val_dataloader()]

    return TwoLoaders


def test_data_loader_suffix_can_be_omitted(fit_plateau: Any, two_loader_module: type, capsys: Any) -> None:
    module = two_loader_module()
    module.logged = (["val_loss"], ["val_acc"])
    fit_plateau(module=module, monitor="val_loss")
    assert module.step_values == [0.0, 1.0, 2.0]
    assert "which is not logged; using 'val_loss/dataloader_idx_0' instead" in "\n".join(printed_lines(capsys))


def test_metrics_of_two_data_loaders_are_ambiguous(fit_plateau: Any, two_loader_module: type) -> None:
    module = two_loader_module()
    module.logged = (["val_loss"], ["val_loss"])
    with pytest.raises(WiringError) as caught:
        fit_plateau(module=module, monitor="val_loss")
    assert str(caught.value) == (
        "reduce_lr_on_plateau monitors 'val_loss' (from the configuration), which is not logged; set scheduler.monitor "
        "to one of val_loss/dataloader_idx_0, val_loss/dataloader_idx_1"
    )
    module.logged = (["val_loss"], ["val_loss"])
    other = two_loader_module()
    other.logged = module.logged
    fit_plateau(module=other, monitor="val/loss/dataloader_idx_1")
    assert other.step_values == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("sanity", [2, 0])
def test_several_near_matches_raise(fit_plateau: Any, scripted_module: type, sanity: int) -> None:
    module = scripted_module(val={"val_loss": [1.0], "val-loss": [1.0], "val_acc": [1.0]})
    with pytest.raises(WiringError) as caught:
        fit_plateau(module=module, monitor="val/loss", num_sanity_val_steps=sanity)
    assert str(caught.value) == (
        "reduce_lr_on_plateau monitors 'val/loss' (from the configuration), which is not logged; set scheduler.monitor "
        "to one of val-loss, val_loss"
    )
    assert len(module.lrs) == (0 if sanity else BATCHES_PER_EPOCH)


def test_exact_name_takes_precedence_over_near_matches(fit_plateau: Any, capsys: Any) -> None:
    _, module = fit_plateau({"val/loss": [3.0], "val_loss": [1.0]}, monitor="val_loss")
    assert module.step_values == [1.0, 1.0, 1.0]
    assert not any("not logged" in line for line in printed_lines(capsys))


def test_near_match_of_a_training_metric_is_used(fit_plateau: Any, scripted_module: type, capsys: Any) -> None:
    for where in ("train", "late"):
        module = scripted_module(**{where: {"train_loss": range(1, 9)}}, val={"val_loss": [1.0]})
        fit_plateau(module=module, monitor="train/loss")
        assert module.step_values == [1.0, 2.0, 3.0]
        assert module.lrs == [1.0] * 8 + [0.5] * 4
        assert "which is not logged; using 'train_loss' instead" in "\n".join(printed_lines(capsys))


# ----------------------------------------------------------------------------------------------------------------- Mode


class Score(MeanMetric):
    """A mean for which higher is better."""

    higher_is_better = True


class Penalty(MeanMetric):
    """A mean for which lower is better."""

    higher_is_better = False


@pytest.fixture
def torchmetrics_module(scripted_module: type) -> Any:
    """A factory of modules that log torchmetrics objects by name; each validation updates them with the next value."""

    def make(metrics: Any, values: Any = (1.0, 2.0, 3.0), **logging: Any) -> Any:
        class WithMetrics(scripted_module):
            def __init__(self) -> None:
                super().__init__()
                self.is_collection = isinstance(metrics, MetricCollection)
                self.metrics = metrics if self.is_collection else nn.ModuleDict(metrics)

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                value = values[min(int(self.validations), len(values) - 1)]
                if self.is_collection:
                    self.metrics.update(value)
                    self.log_dict(self.metrics, **logging)
                else:
                    for name, metric in self.metrics.items():
                        metric.update(value)
                        self.log(name, metric, **logging)

            def on_train_start(self) -> None:
                self.mode_before_training = scheduler_of(self.trainer).mode

        return WithMetrics()

    return make


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (
            "min",
            "loss val_loss val/loss valid.loss train_loss loss_epoch val-error rmse val_mae test/WER cross_entropy "
            "top1_error",
        ),
        ("max", "acc val_acc val/accuracy top5 val_auroc f1 val_F1 mAP iou val/dice bleu reward r2"),
        (None, "score val metric accuracy_of_loss_map loss_accuracy glossy mapping value"),
    ],
)
def test_mode_from_name_returns_mode_or_raises(mode: str | None, names: str):
    for name in names.split():
        if mode is None:
            with pytest.raises(ConfigError, match=f"^cannot infer from the name '{name}' whether"):
                mode_from_name(name)
        else:
            assert mode_from_name(name) == mode


def test_mode_of_plateau_is_inferred_from_metric_name(fit_plateau: Any, capsys: Any) -> None:
    _, module = fit_plateau({"val_acc": [0.1, 0.2, 0.3, 0.2]}, monitor="val_acc", max_epochs=5)
    assert module.lrs == [1.0] * 16 + [0.5] * 4
    assert plateau_summary(capsys).endswith("monitor val_acc (max) from the configuration")


def test_mode_that_cannot_be_inferred_raises(scripted_module: type, trainer: Any, quiet_callback: Any):
    module = scripted_module(val=METRICS)
    with pytest.raises(ConfigError) as caught:
        trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor="val_score")).fit(module)
    assert str(caught.value) == (
        "cannot infer from the name 'val_score' whether lower or higher values are better: set scheduler.mode"
    )
    assert module.lrs == []


def test_mode_that_cannot_be_inferred_while_saving_raises_in_the_next_epoch(
    fit: Any, scripted_module: type, optplug_lightning: Any, save_every_checkpoint: Any, tmp_path: Any
) -> None:
    module = scripted_module(late={"quality": range(9)})
    module.metric = Score()  # because of this object, the mode is not required when the scheduler is built
    callback = optplug_lightning.ConfigureOptimizers(SGD, PLATEAU, monitor="quality")
    saver = save_every_checkpoint("{epoch}", save_on_train_epoch_end=True)
    with pytest.raises(ConfigError, match="cannot infer from the name 'quality'"):
        fit(None, module=module, callbacks=[callback, saver], enable_checkpointing=True)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=0.ckpt"]
    assert module.scheduler_steps == []


def test_mode_that_cannot_be_inferred_raises_before_training(fit_plateau: Any, scripted_module: type) -> None:
    module = scripted_module(val={"val_score": [1.0]})
    with pytest.raises(ConfigError) as caught:
        fit_plateau(module=module, monitor="val_score")
    assert str(caught.value) == (
        "cannot infer from the name 'val_score' whether lower or higher values are better: set scheduler.mode"
    )
    assert module.lrs == []


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize("name", ["val_los", "valLos"])
def test_spelling_is_checked_before_the_mode_is_required(fit_plateau: Any, name: str, sanity: int) -> None:
    module = None
    with pytest.raises((ConfigError, WiringError)) as caught:
        _, module = fit_plateau(RISING, monitor=name, num_sanity_val_steps=sanity)
    assert module is None
    message = str(caught.value)
    if sanity:
        assert message.endswith(", which is not logged in the sanity check; did you mean 'val_loss'?")
    else:
        assert message == (
            f"cannot infer from the name {name!r} whether lower or higher values are better; did you mean "
            f"{name + 's'!r}? If not, set scheduler.mode"
        )


@pytest.mark.parametrize("sanity", [2, 0])
def test_unknown_mode_raises_before_the_first_batch(fit_plateau: Any, scripted_module: type, sanity: int) -> None:
    module = scripted_module(val=RISING, train={"quality": [1.0]})
    with pytest.raises(ConfigError, match=r"the name 'quality' whether .*: check the spelling, or set scheduler.mode$"):
        fit_plateau(module=module, monitor="quality", num_sanity_val_steps=sanity)
    assert module.lrs == []


def test_monitor_of_a_callback_is_suggested_for_a_misspelt_monitor(fit_plateau: Any, monitoring_callbacks: Any) -> None:
    callbacks = monitoring_callbacks(stop=[("val_score", "max")])
    with pytest.raises(ConfigError, match=r"; did you mean 'val_score'\? If not, set scheduler.mode$"):
        fit_plateau({"val_score": [1.0]}, monitor="val_scor", callbacks=callbacks, num_sanity_val_steps=0)


def test_mode_of_a_misspelt_monitor_is_inferred_from_the_logged_name(fit_plateau: Any, capsys: Any) -> None:
    _, module = fit_plateau({"val_acc": [1.0, 2.0]}, monitor="val.a_cc")
    assert module.step_values == [1.0, 2.0, 2.0]
    assert "monitor val_acc (max) from the configuration" in plateau_summary(capsys)


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize(
    ("name", "mode"), [("val/acc", "min"), ("Validation Accuracy", "min"), ("valLoss", "max"), ("train_f1", "min")]
)
def test_configured_mode_that_contradicts_the_name_warns(
    fit_plateau: Any, scripted_module: type, name: str, mode: str, sanity: int
) -> None:
    module = scripted_module(**{"train" if "train" in name else "val": {name: [1.0]}})
    opposite = "max" if mode == "min" else "min"
    with pytest.warns(UserWarning, match="has mode") as caught:
        fit_plateau(module=module, monitor=name, mode=mode, num_sanity_val_steps=sanity)
    assert [str(w.message) for w in caught if "has mode" in str(w.message)] == [
        f"{name}: the configuration has mode {mode}, but the name means {opposite}; {mode} is used. "
        f"Set mode to {opposite} if this is wrong"
    ]


def test_configured_mode_that_contradicts_the_only_loss_warns(fit_plateau: Any) -> None:
    with pytest.warns(UserWarning, match="val_loss: the configuration has mode max, but the name means min"):
        fit_plateau(RISING, mode="max")


def test_metric_object_that_confirms_the_configured_mode_prevents_the_warning(
    fit_plateau: Any, torchmetrics_module: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit_plateau(module=torchmetrics_module({"val_loss": Score()}), monitor="val_loss", mode="max")


def test_mode_of_the_modules_scheduler_that_contradicts_the_name_warns(
    torch_module: type, trainer: Any, quiet_callback: Any
) -> None:
    module = torch_module(val={"val_acc": [1.0]}, entry={"monitor": "val_acc"})
    with pytest.warns(UserWarning, match="val_acc: the module's scheduler has mode min, but the name means max"):
        trainer(callbacks=quiet_callback()).fit(module)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_callback_mode_overrides_metric_object_and_warns(
    pl: Any, fit_plateau: Any, torchmetrics_module: Any, capsys: Any, mode: str
) -> None:
    metric, opposite = (Penalty(), "min") if mode == "max" else (Score(), "max")
    module = torchmetrics_module({"val_score": metric})
    message = (
        f"val_score: EarlyStopping has mode {mode}, but the metric's higher_is_better means {opposite}; "
        f"{mode} is used. Set scheduler.mode to choose"
    )
    with pytest.warns(UserWarning, match=message):
        fit_plateau(module=module, callbacks=[pl.callbacks.EarlyStopping("val_score", mode=mode, patience=9)])
    assert module.lrs[-1] == (1.0 if mode == "max" else 0.5)
    assert plateau_summary(capsys).endswith(f"monitor val_score ({mode}) from EarlyStopping")


def test_callback_mode_overrides_name_and_warns(pl: Any, fit_plateau: Any, scripted_module: type) -> None:
    module = scripted_module(val={"val_f1": [0.1, 0.2, 0.3]})
    message = "val_f1: EarlyStopping has mode min, but the name means max; min is used. Set scheduler.mode to choose"
    with pytest.warns(UserWarning, match=message):
        fit_plateau(module=module, callbacks=[pl.callbacks.EarlyStopping("val_f1", patience=9)])
    assert module.lrs[-1] == 0.5


def test_configured_mode_overrides_callback_and_metric_object(
    pl: Any, fit_plateau: Any, torchmetrics_module: Any, capsys: Any
) -> None:
    module = torchmetrics_module({"val_score": Score()})
    callbacks = [pl.callbacks.EarlyStopping("val_score", mode="max", patience=9)]
    message = "val_score: the configuration has mode min, but the metric's higher_is_better means max; min is used"
    with pytest.warns(UserWarning, match=message):
        fit_plateau(module=module, mode="min", callbacks=callbacks)
    assert module.lrs[-1] == 0.5
    assert plateau_summary(capsys).endswith("monitor val_score (min) from EarlyStopping")


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize(
    ("name", "metric", "mode", "cut", "report"),
    [
        ("val_score", Score, "max", False, "the mode of val_score is max, from its higher_is_better"),
        ("val_score", Penalty, "min", True, "the mode of val_score is min, from its higher_is_better"),
        ("val_loss", Score, "max", False, "the mode of val_loss is max, from its higher_is_better"),
        ("val_acc", Penalty, "min", True, "the mode of val_acc is min, from its higher_is_better"),
        ("val_acc", Score, "max", False, None),
        ("val_loss", MeanMetric, "min", True, None),
    ],
)
def test_metric_object_overrides_mode_of_name_and_reports(
    fit_plateau: Any,
    torchmetrics_module: Any,
    capsys: Any,
    name: str,
    metric: Any,
    mode: str,
    cut: bool,
    report: Any,
    sanity: int,
) -> None:
    module = torchmetrics_module({name: metric()})
    fitted, _ = fit_plateau(module=module, monitor=name, num_sanity_val_steps=sanity)
    assert module.step_values == [1.0, 2.0, 3.0]
    assert module.lrs[-1] == (0.5 if cut else 1.0)
    assert scheduler_of(fitted).best == (1.0 if cut else 3.0)
    lines = printed_lines(capsys)
    assert [line for line in lines if "the mode of" in line] == (
        [] if report is None else [f"reduce_lr_on_plateau: {report}"]
    )
    assert lines[-1].endswith(f"monitor {name} ({mode}) from the configuration")
    if sanity:
        assert module.mode_before_training == mode


@pytest.mark.parametrize("sanity", [2, 0])
def test_metric_object_without_mode_raises(fit_plateau: Any, torchmetrics_module: Any, sanity: int) -> None:
    module = torchmetrics_module({"val_score": MeanMetric(), "val_other": Score()})
    with pytest.raises(
        ConfigError, match=r"'val_score' whether lower or higher values are better: set scheduler\.mode"
    ):
        fit_plateau(module=module, monitor="val_score", num_sanity_val_steps=sanity)
    assert len(module.lrs) == (0 if sanity else BATCHES_PER_EPOCH)


@pytest.mark.parametrize(("metric", "mode"), [(Score, "max"), (Penalty, "min")])
def test_mode_is_inferred_from_metric_collection(
    fit_plateau: Any, torchmetrics_module: Any, capsys: Any, metric: Any, mode: str
) -> None:
    module = torchmetrics_module(MetricCollection({"score": metric(), "other": MeanMetric()}, prefix="val_"))
    fit_plateau(module=module, monitor="val_score")
    assert module.step_values == [1.0, 2.0, 3.0]
    assert plateau_summary(capsys).endswith(f"monitor val_score ({mode}) from the configuration")


def test_mode_is_inferred_from_metric_object_under_each_logged_name(
    fit_plateau: Any, torchmetrics_module: Any, capsys: Any
) -> None:
    for monitor in ("val_score", "val_score_epoch"):
        module = torchmetrics_module({"val_score": Score()}, on_step=True, on_epoch=True)
        fit_plateau(module=module, monitor=monitor)
        assert plateau_summary(capsys).endswith(f"monitor {monitor} (max) from the configuration")
    module = torchmetrics_module({"val_score": Score()})
    fit_plateau(module=module, monitor="val/score")
    assert plateau_summary(capsys).endswith("monitor val_score (max) from the configuration")


@pytest.mark.parametrize("where", ["training_step", "on_train_epoch_end", "on_validation_epoch_end"])
def test_mode_from_metric_object_logged_in_each_hook(
    fit_plateau: Any, scripted_module: type, capsys: Any, where: str
) -> None:
    class LogsScore(scripted_module):
        def __init__(self) -> None:
            super().__init__()
            self.score = Score()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if where != "on_validation_epoch_end":
                self.score.update(float(self.current_epoch))
            if where == "training_step":
                self.log("score", self.score, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            if where == "on_train_epoch_end":
                self.log("score", self.score)

        def on_validation_epoch_end(self) -> None:
            if where == "on_validation_epoch_end":
                self.score.update(float(self.validations))
                self.log("val_score", self.score)
            super().on_validation_epoch_end()

    monitor = "val_score" if where == "on_validation_epoch_end" else "score"
    fit_plateau(module=(module := LogsScore()), monitor=monitor)
    assert module.step_values == [0.0, 1.0, 2.0]
    lines = printed_lines(capsys)
    assert f"reduce_lr_on_plateau: the mode of {monitor} is max, from its higher_is_better" in lines
    assert ", 0 cuts, " in lines[-1]
