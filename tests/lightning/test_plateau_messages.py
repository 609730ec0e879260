"""What is printed and logged about plateau schedulers."""

from __future__ import annotations

import csv
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from support import LIGHTNING, PLATEAU, RISING, SGD, plateau_summary, printed_lines
from versions import release

TWELVE_VALUES = {"val_loss": [2.0, 1.0, *[3.0] * 10]}
PLATEAU_SUMMARY = "plateau: 12 validations seen, 2 cuts (epochs 5, 9), monitor val_loss (min) from ModelCheckpoint"

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


@pytest.fixture
def fit_twelve_epochs(fit_plateau: Any, model_checkpoint: Any) -> Any:
    """A function that fits twelve epochs with cuts in epochs 5 and 9, with ModelCheckpoint."""
    return lambda **kwargs: fit_plateau(
        **{
            "val": TWELVE_VALUES,
            "scheduler": {**PLATEAU, "patience": 3},
            "callbacks": [model_checkpoint("val_loss")],
            "max_epochs": 12,
            **kwargs,
        },
        enable_checkpointing=True,
    )


def logged_values(logger: Any, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric in the file of a CSVLogger."""
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]


@pytest.mark.both_import_names
def test_plateau_summary_is_exact(fit_twelve_epochs: Any, capsys: Any) -> None:
    fit_twelve_epochs()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"optplug: {PLATEAU_SUMMARY}"
    assert printed.count(f"optplug: {PLATEAU_SUMMARY}") == 1


def test_each_cut_is_printed_and_logged(pl: Any, fit_twelve_epochs: Any, tmp_path: Path, capsys: Any) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    fit_twelve_epochs(logger=logger, log_every_n_steps=1)
    cuts = [line for line in printed_lines(capsys) if "learning rate" in line]
    assert cuts == [
        "epoch 5: val_loss is 3, not better than 1: learning rate 1 -> 0.5",
        "epoch 9: val_loss is 3, not better than 1: learning rate 0.5 -> 0.25",
    ]
    # Cuts are logged at the step at which Lightning logs the value.
    steps = [step for step, _ in logged_values(logger, "val_loss")]
    assert logged_values(logger, "reduce_lr_on_plateau/cuts") == [(steps[5], 1), (steps[9], 2)]


def test_cuts_are_logged_to_every_logger_for_each_plateau(
    pl: Any, fit_plateau: Any, two_optimizer_module: type, tmp_path: Path
) -> None:
    loggers = [pl.loggers.CSVLogger(tmp_path, name) for name in ("a", "b")]
    two = [{**SGD, "match": f"*.{name}", "scheduler": PLATEAU} for name in ("weight", "bias")]
    fit_plateau(None, None, optimizer=two, module=two_optimizer_module(val=RISING), logger=loggers, log_every_n_steps=1)
    for logger in loggers:
        for i in range(2):
            cuts = logged_values(logger, f"reduce_lr_on_plateau_{i}/cuts")
            assert [number for _, number in cuts] == [1, 2]


def test_cut_message_shows_the_epoch_of_the_value(
    scripted_module: type, trainer: Any, optplug_lightning: Any, capsys: Any
):
    module = scripted_module(late={"train_loss": range(1, 9)})
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, PLATEAU, monitor="train_loss")).fit(module)
    cuts = [line for line in capsys.readouterr().out.splitlines() if "learning rate" in line]
    assert cuts == [
        "optplug: epoch 1: train_loss is 2, not better than 1: learning rate 1 -> 0.5",
        "optplug: epoch 2: train_loss is 3, not better than 1: learning rate 0.5 -> 0.25",
    ]


needs_older_rich = pytest.mark.skipif(
    LIGHTNING < (2, 5, 3) and release(version("rich")) >= (14, 1),
    reason="Lightning < 2.5.3: RichProgressBar fails with rich >= 14.1",
)


@pytest.mark.parametrize("bar", [pytest.param("RichProgressBar", marks=needs_older_rich), "TQDMProgressBar"])
def test_messages_are_printed_beside_a_progress_bar(
    pl: Any, fit_twelve_epochs: Any, model_checkpoint: Any, capsys: Any, bar: str
) -> None:
    fitted, _ = fit_twelve_epochs(
        callbacks=[model_checkpoint("val_loss"), getattr(pl.callbacks, bar)()], enable_progress_bar=True
    )
    assert type(fitted.progress_bar_callback).__name__ == bar
    cursor_movement = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
    printed = cursor_movement.sub("\n", capsys.readouterr().out).splitlines()
    assert printed.count(f"optplug: {PLATEAU_SUMMARY}") == 1
    assert printed.count("optplug: epoch 5: val_loss is 3, not better than 1: learning rate 1 -> 0.5") == 1


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:It is recommended to use .self.log.*sync_dist=True")
def test_only_rank_zero_prints(fit_plateau: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fit_plateau(RISING, devices=2, strategy="ddp_fork", monitor="val_loss")
    lines = printed_lines(capfd)
    assert lines.count("epoch 1: val_loss is 2, not better than 1: learning rate 1 -> 0.5") == 1
    assert (
        lines.count("plateau: 3 validations seen, 2 cuts (epochs 1, 2), monitor val_loss (min) from the configuration")
        == 1
    )


def test_verbose_false_prints_nothing_and_logs_cuts(
    pl: Any, fit_twelve_epochs: Any, tmp_path: Path, capsys: Any
) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    fit_twelve_epochs(verbose=False, logger=logger, log_every_n_steps=1)
    assert "optplug" not in capsys.readouterr().out
    assert len(logged_values(logger, "reduce_lr_on_plateau/cuts")) == 2


@pytest.mark.usefixtures("restore_interrupt_handler")
@pytest.mark.parametrize("where", ["training_step", "validation_step", "on_train_epoch_end"])
def test_plateau_summary_is_printed_after_an_interrupt(
    fit_plateau: Any, scripted_module: type, capsys: Any, where: str
) -> None:
    class Interrupted(scripted_module):
        pass

    def interrupt(self: Any, *args: Any) -> Any:
        if self.trainer.current_epoch == 2 and not self.trainer.sanity_checking:
            raise KeyboardInterrupt
        return getattr(scripted_module, where)(self, *args)

    setattr(Interrupted, where, interrupt)
    with pytest.raises(SystemExit):
        fit_plateau(None, {**PLATEAU, "monitor": "val_loss"}, module=Interrupted(val=RISING), max_epochs=9)
    seen = 3 if where == "on_train_epoch_end" else 2
    cuts = "2 cuts (epochs 1, 2)" if seen == 3 else "1 cut (epoch 1)"
    assert (
        plateau_summary(capsys)
        == f"plateau: {seen} validations seen, {cuts}, monitor val_loss (min) from the configuration"
    )


@pytest.mark.parametrize("where", ["train", "late"])
def test_plateau_summary_counts_epochs_for_a_training_metric(
    fit_plateau: Any, scripted_module: type, capsys: Any, where: str
) -> None:
    fit_plateau(module=scripted_module(**{where: {"train_loss": range(1, 9)}}), monitor="train_loss", max_epochs=1)
    assert plateau_summary(capsys) == "plateau: 1 epoch seen, 0 cuts, monitor train_loss (min) from the configuration"


def test_plateau_without_values_warns_at_the_end(scripted_module: type, trainer: Any, quiet_callback: Any):
    class StopsBeforeValidation(scripted_module):
        def on_train_batch_end(self, *_: Any) -> None:
            self.trainer.should_stop = True
            self.trainer.limit_val_batches = 0

    fitted = trainer(callbacks=quiet_callback(SGD, PLATEAU, monitor="val_loss"))
    with pytest.warns(UserWarning, match="reduce_lr_on_plateau was never stepped: monitor val_loss"):
        fitted.fit(StopsBeforeValidation(val={"val_loss": [1.0]}))


@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_summary_of_a_plateau_without_values_names_what_was_logged(
    fit_plateau: Any, scripted_module: type, capsys: Any, monitor: str | None
) -> None:
    arguments = {} if monitor is None else {"monitor": monitor}
    module = scripted_module(val=RISING, train={"train_loss": [1.0], "Train acc": [1.0]})
    with pytest.warns(UserWarning, match="reduce_lr_on_plateau is never stepped"):
        fit_plateau(module=module, limit_val_batches=0, **arguments)
    absence = "no validation loss was logged, so no value was received"
    if monitor is not None:
        absence = "monitor val_loss received no value"
    assert plateau_summary(capsys) == f"plateau: {absence}; logged metrics: 'Train acc', train_loss"
