"""Plateaus under Lightning; the number in a test's name is that of the row in the list of what users ask for."""

from __future__ import annotations

import csv
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection

import optplug
from optplug.errors import ConfigError, WiringError

BATCHES = 4
"""Of an epoch of the scripted module."""

ADAM = {"name": "adam", "lr": 1.0}
SGD = {"name": "sgd", "lr": 1.0}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}
PATIENT = {**PLATEAU, "patience": 99}
RISING = {"val_loss": range(1, 40)}
NAN, INF = float("nan"), float("inf")

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


@pytest.fixture
def run(ours: Any, scripted: type, trainer: Any) -> Any:
    """Fits a module that logs `val` under SGD and a plateau, and says what it does; returns the trainer and the module.

    `beside` are other callbacks, `monitor` and `mode` the callback's.
    """

    def fit(
        val: Any = None,
        scheduler: Any = PLATEAU,
        *,
        optimizer: Any = SGD,
        module: Any = None,
        beside: Any = (),
        **given: Any,
    ) -> Any:
        own = {key: given.pop(key) for key in ("monitor", "mode", "verbose") if key in given}
        module = scripted(val=val) if module is None else module
        made = trainer(callbacks=[ours.ConfigureOptimizers(optimizer, scheduler, **own), *beside], **given)
        made.fit(module)
        return made, module

    return fit


@pytest.fixture
def torch_s(scripted: type) -> Any:
    """Makes modules with torch's SGD and plateau, which optplug has not built."""

    class Own(scripted):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, **self.entry}}

    def make(val: Any, **entry: Any) -> Any:
        module = Own(val=val)
        module.entry = {"monitor": "val_loss", **entry}
        return module

    return make


@pytest.fixture
def signals() -> Iterator[None]:
    """Lightning ignores further interrupts for good."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def plateau_of(made: Any) -> Any:
    return made.lr_scheduler_configs[0].scheduler


def heard(module: Any) -> list[float]:
    return [value for _, _, value in module.stepped if value is not None]


def said(capsys: Any) -> list[str]:
    """What optplug has said, without its prefix."""
    return [line.removeprefix("optplug: ") for line in capsys.readouterr().out.splitlines() if "optplug: " in line]


def audit(capsys: Any) -> str:
    """The one line at the end."""
    lines = [line for line in said(capsys) if line.startswith("plateau")]
    assert len(lines) == 1
    return lines[0]


# -------------------------------------------------------------------------- row 1: when plateaus step


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"val_check_interval": 0.25, "max_epochs": 2}, [(epoch, n) for n in range(1, 9) for epoch in [(n - 1) // 4]]),
        ({"check_val_every_n_epoch": 3, "max_epochs": 9}, [(2, 12), (5, 24), (8, 36)]),
    ],
    ids=str,
)
def test_row_1_a_plateau_steps_once_per_finished_validation(run: Any, arguments: Any, steps: Any) -> None:
    made, module = run(RISING, **arguments)
    assert plateau_of(made).last_epoch == len(steps)
    assert module.stepped == [(*step, float(value)) for value, step in enumerate(steps, 1)]


def test_row_1_the_sanity_check_steps_nothing(run: Any, scripted: type) -> None:
    class Watched(scripted):
        sanity = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.sanity += self.trainer.sanity_checking

        def on_train_start(self) -> None:
            plateau = plateau_of(self.trainer)
            self.before = (plateau.last_epoch, plateau.best, plateau.num_bad_epochs)

    made, module = run(module=Watched(val=RISING), max_epochs=1)
    assert module.sanity == 2
    assert module.before == (0, INF, 0)
    assert (plateau_of(made).last_epoch, plateau_of(made).best) == (1, 1.0)


@pytest.mark.parametrize(
    ("unit", "patience", "arguments", "cut"),
    [
        # With two validations in each epoch, all but the first of them bad.
        ("validations", 1, {"val_check_interval": 0.5}, (1, 6)),
        ("epochs", 1, {"val_check_interval": 0.5}, (2, 10)),
        ("epochs", 0, {"val_check_interval": 0.5}, (1, 6)),
        ("steps", 5, {"val_check_interval": 0.5}, (1, 8)),
        ("steps", 6, {"val_check_interval": 0.5}, (2, 10)),
        ("steps", 0, {"val_check_interval": 0.5}, (0, 4)),
        ("steps", 2, {"val_check_interval": 0.5, "accumulate_grad_batches": 2}, (1, 4)),
        # With one in two epochs.
        ("validations", 2, {"check_val_every_n_epoch": 2}, (7, 32)),
        ("epochs", 2, {"check_val_every_n_epoch": 2}, (5, 24)),
        ("epochs", 1, {"check_val_every_n_epoch": 2}, (3, 16)),
        ("steps", 8, {"check_val_every_n_epoch": 2}, (5, 24)),
    ],
)
def test_row_1_patience_counts_in_its_unit(
    run: Any, capsys: Any, unit: str, patience: int, arguments: Any, cut: Any
) -> None:
    chosen = {**PLATEAU, "patience": patience, "patience_unit": unit, "cooldown": 10**6}
    _, module = run(RISING, chosen, max_epochs=8, **arguments)
    epoch, step = cut
    batches = step * arguments.get("accumulate_grad_batches", 1)
    assert module.rates == [1.0] * batches + [0.5] * (8 * BATCHES - batches)
    assert f", 1 cut (epoch {epoch}), " in audit(capsys)


@pytest.mark.parametrize(("unit", "patience", "epochs"), [("epochs", 1, [2, 4]), ("steps", 7, [2, 4])])
def test_row_1_patience_for_a_training_metric_counts_in_its_unit(
    run: Any, scripted: type, capsys: Any, unit: str, patience: int, epochs: Any
) -> None:
    for where in ("train", "late"):
        module = scripted(**{where: {"train_loss": range(1, 9)}})
        chosen = {**PLATEAU, "patience": patience, "patience_unit": unit}
        run(None, chosen, module=module, monitor="train_loss", max_epochs=5)
        assert audit(capsys) == (
            "plateau: 5 epochs seen, 2 cuts (epochs 2, 4), monitor train_loss (min) from the configuration"
        )


def test_row_1_an_improvement_starts_the_count_anew_in_every_unit(run: Any) -> None:
    values = {"val_loss": [9, 9, 9, 8, 8, 8, 7, 7, 7, 7]}  # two bad ones in a row, and at the end three
    for unit, patience in (("validations", 2), ("epochs", 2), ("steps", 2 * BATCHES)):
        _, module = run(values, {**PLATEAU, "patience": patience, "patience_unit": unit}, max_epochs=11)
        assert module.rates == [1.0] * 10 * BATCHES + [0.5] * BATCHES


# ------------------------------------------------------------- row 2: the metric is never "not available"


def test_row_2_a_validation_in_every_second_epoch(pl: Any, run: Any, torch_s: Any, trainer: Any, ours: Any) -> None:
    every = {"check_val_every_n_epoch": 2, "max_epochs": 5}  # pl#10496
    for arguments in ({}, {"monitor": "val_loss"}):
        made, module = run(RISING, **arguments, **every)
        assert made.current_epoch == 5
        assert heard(module) == [1.0, 2.0]
    module = torch_s(RISING)
    made = trainer(callbacks=ours.ConfigureOptimizers(verbose=False), **every)
    made.fit(module)
    assert made.current_epoch == 5
    assert heard(module) == [1.0, 2.0]
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="which is not available"):
        trainer(**every).fit(torch_s(RISING))  # without optplug


class Early:
    """Mixed into a module, it remembers the warnings there were before the first batch."""

    def on_train_start(self) -> None:
        self.warned = [str(one.message) for one in self.caught if one.category is UserWarning]


def foretold(made: Any, module: Any) -> list[str]:
    """Fits, and returns our warnings before the first batch; there must be none later."""
    with warnings.catch_warnings(record=True) as module.caught:
        warnings.simplefilter("always")
        made.fit(module)
    ours = [str(one.message) for one in module.caught if "reduce_lr_on_plateau" in str(one.message)]
    assert ours == [text for text in module.warned if "reduce_lr_on_plateau" in text]
    return ours


@pytest.mark.parametrize("monitor", ["val_loss", None])
@pytest.mark.parametrize("sanity", [2, 0])
def test_row_2_max_steps_before_the_first_validation(
    scripted: type, trainer: Any, ours: Any, monitor: str | None, sanity: int
) -> None:
    module = type("EarlyModule", (Early, scripted), {})(val=RISING)  # pl#8839
    configure = ours.ConfigureOptimizers(SGD, PLATEAU, monitor=monitor)
    made = trainer(callbacks=configure, max_steps=2, num_sanity_val_steps=sanity)
    metric = "val_loss" if monitor or sanity else "a validation loss"  # which the sanity check has shown
    assert foretold(made, module) == [
        f"reduce_lr_on_plateau is never stepped, unless training itself logs {metric}: the first validation comes "
        "after 4 optimizer steps, and max_steps is 2"
    ]
    assert made.global_step == 2
    assert module.stepped == []


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
def test_row_2_the_warning_comes_when_no_validation_will(
    scripted: type, trainer: Any, ours: Any, arguments: Any, validations: int
) -> None:
    module = type("EarlyModule", (Early, scripted), {})(val=RISING)
    made = trainer(callbacks=ours.ConfigureOptimizers(SGD, PLATEAU, monitor="val_loss"), **arguments)
    assert len(foretold(made, module)) == (0 if validations else 1)
    assert len(module.stepped) == validations


def test_row_2_a_plateau_by_step_before_the_first_validation(pl: Any, torch_s: Any, trainer: Any, ours: Any) -> None:
    module = torch_s(RISING, interval="step")  # pl#1156
    made = trainer(callbacks=ours.ConfigureOptimizers(verbose=False))
    made.fit(module)
    assert made.global_step == 3 * BATCHES
    assert heard(module) == [1.0, 2.0, 3.0]
    assert module.rates == [1.0] * 8 + [0.5] * 4
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="which is not available"):
        trainer().fit(torch_s(RISING, interval="step"))  # without optplug


# ------------------------------------------------------------------- row 3: which metric, and who said so


@pytest.fixture
def saver(pl: Any, tmp_path: Path) -> Any:
    """Makes ModelCheckpoints."""
    return lambda monitor, **kwargs: pl.callbacks.ModelCheckpoint(tmp_path / "saved", monitor=monitor, **kwargs)


def test_row_3_the_metric_of_model_checkpoint_is_followed_aloud(run: Any, saver: Any, capsys: Any) -> None:
    val = {"val_f1": [0.1, 0.3, 0.2], "val_loss": [1.0, 2.0, 3.0]}
    _, module = run(val, beside=[saver("val_f1", mode="max")], enable_checkpointing=True, max_epochs=4)
    assert heard(module) == pytest.approx([0.1, 0.3, 0.2, 0.2])
    assert module.rates == [1.0] * 12 + [0.5] * 4
    assert "  monitor val_f1 (max) from ModelCheckpoint" in said(capsys)


@pytest.mark.parametrize("monitor", ["step", "epoch", "lr-SGD"])
def test_row_3_what_is_no_metric_is_never_a_candidate(
    pl: Any, run: Any, saver: Any, tmp_path: Path, capsys: Any, monitor: str
) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    beside = [pl.callbacks.LearningRateMonitor(), saver(monitor, mode="max", save_top_k=1)]
    _, module = run(RISING, beside=beside, logger=logger, enable_checkpointing=True, log_every_n_steps=1)
    assert heard(module) == [1.0, 2.0, 3.0]
    assert "reduce_lr_on_plateau follows val_loss (min), the only validation loss" in said(capsys)
    assert (tmp_path / "saved").exists()  # the checkpoints were its business


def test_row_3_another_callback_s_metric_counts_beside_what_is_none(run: Any, saver: Any, pl: Any, capsys: Any) -> None:
    beside = [pl.callbacks.EarlyStopping("val_acc", mode="max", patience=9), saver("step", mode="max")]
    run({"val_acc": [0.5], "val_loss": [1.0]}, beside=beside, enable_checkpointing=True)
    assert audit(capsys).endswith("monitor val_acc (max) from EarlyStopping")


# ---------------------------------------------------------------------------- row 4: nearly the same name


@pytest.mark.parametrize(
    ("asked", "logged"),
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
def test_row_4_a_near_name_is_followed_aloud(run: Any, capsys: Any, asked: str, logged: str, sanity: int) -> None:
    _, module = run({logged: [1.0, 2.0], "val_acc": [1.0]}, monitor=asked, num_sanity_val_steps=sanity)
    assert heard(module) == [1.0, 2.0, 2.0]
    lines = said(capsys)
    asks = f"reduce_lr_on_plateau monitors {asked!r} (from the configuration)"
    aloud = f"{asks}, which nothing logs; it will follow {logged!r}"
    assert lines.count(aloud) == 1
    assert lines[-1].endswith(f"monitor {logged} (min) from the configuration")


def two_loaders(scripted: type) -> type:
    class Two(scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            for name in self.logged[dataloader_idx]:
                self.log(name, float(self.validations + dataloader_idx), batch_size=2)

        def val_dataloader(self) -> Any:
            return [super().val_dataloader(), super().val_dataloader()]

    return Two


def test_row_4_the_number_of_a_data_loader_may_be_left_out(run: Any, scripted: type, capsys: Any) -> None:
    module = two_loaders(scripted)()
    module.logged = (["val_loss"], ["val_acc"])
    run(module=module, monitor="val_loss")
    assert heard(module) == [0.0, 1.0, 2.0]
    assert "which nothing logs; it will follow 'val_loss/dataloader_idx_0'" in "\n".join(said(capsys))


def test_row_4_two_data_loaders_are_two_candidates(run: Any, scripted: type) -> None:
    module = two_loaders(scripted)()
    module.logged = (["val_loss"], ["val_loss"])
    with pytest.raises(WiringError) as caught:
        run(module=module, monitor="val_loss")
    assert str(caught.value) == (
        "reduce_lr_on_plateau monitors 'val_loss' (from the configuration), and logged are val_loss/dataloader_idx_0, "
        "val_loss/dataloader_idx_1: say which with scheduler.monitor"
    )
    module.logged = (["val_loss"], ["val_loss"])
    other = two_loaders(scripted)()
    other.logged = module.logged
    run(module=other, monitor="val/loss/dataloader_idx_1")
    assert heard(other) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("sanity", [2, 0])
def test_row_4_two_candidates_are_an_error_that_lists_them(run: Any, scripted: type, sanity: int) -> None:
    module = scripted(val={"val_loss": [1.0], "val-loss": [1.0], "val_acc": [1.0]})
    with pytest.raises(WiringError) as caught:
        run(module=module, monitor="val/loss", num_sanity_val_steps=sanity)
    assert str(caught.value) == (
        "reduce_lr_on_plateau monitors 'val/loss' (from the configuration), and logged are val-loss, val_loss: say "
        "which with scheduler.monitor"
    )
    assert len(module.rates) == (0 if sanity else BATCHES)


def test_row_4_the_very_name_counts_more_than_near_ones(run: Any, capsys: Any) -> None:
    _, module = run({"val/loss": [3.0], "val_loss": [1.0]}, monitor="val_loss")
    assert heard(module) == [1.0, 1.0, 1.0]
    assert not any("nothing logs" in line for line in said(capsys))


def test_row_4_no_candidate_is_an_error_after_the_first_validation(run: Any, scripted: type, capsys: Any) -> None:
    module = scripted(val={"val_loss": [1.0], "val_acc": [1.0]}, train={"train_loss": [1.0]})
    with pytest.raises(WiringError) as caught:
        run(module=module, monitor="val_losss", mode="min")
    text = (
        "reduce_lr_on_plateau monitors 'val_losss' (from the configuration), which {}; logged are val_acc, val_loss; "
    )
    assert str(caught.value) == text.format("nothing logs") + "did you mean 'val_loss'?"
    assert len(module.rates) == BATCHES
    # It is said once more, and before: the sanity check may be no full validation.
    assert text.format("the sanity check does not log") + "did you mean 'val_loss'?" in said(capsys)


def test_row_4_a_training_metric_by_a_near_name(run: Any, scripted: type, capsys: Any) -> None:
    for where in ("train", "late"):
        module = scripted(**{where: {"train_loss": range(1, 9)}}, val={"val_loss": [1.0]})
        run(module=module, monitor="train/loss")
        assert heard(module) == [1.0, 2.0, 3.0]
        assert module.rates == [1.0] * 8 + [0.5] * 4
        assert "which nothing logs; it will follow 'train_loss'" in "\n".join(said(capsys))


# ------------------------------------------------------------------------------- row 5: more or less


class Score(MeanMetric):
    """A mean that says it is better the more it is."""

    higher_is_better = True


class Penalty(MeanMetric):
    """A mean that says it is better the less it is."""

    higher_is_better = False


def measured(scripted: type, metrics: Any, values: Any = (1.0, 2.0, 3.0), **logging: Any) -> Any:
    """A module that logs metrics of torchmetrics by their names: each validation one of the values."""

    class Measured(scripted):
        def __init__(self) -> None:
            super().__init__()
            self.collected = isinstance(metrics, MetricCollection)
            self.metrics = metrics if self.collected else nn.ModuleDict(metrics)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            value = values[min(int(self.validations), len(values) - 1)]
            if self.collected:
                self.metrics.update(value)
                self.log_dict(self.metrics, **logging)
            else:
                for name, metric in self.metrics.items():
                    metric.update(value)
                    self.log(name, metric, **logging)

        def on_train_start(self) -> None:
            self.mode_before = plateau_of(self.trainer).mode

    return Measured()


def test_row_5_the_name_tells_the_mode(run: Any, capsys: Any) -> None:
    _, module = run({"val_acc": [0.1, 0.2, 0.3, 0.2]}, monitor="val_acc", max_epochs=5)
    assert module.rates == [1.0] * 16 + [0.5] * 4
    assert audit(capsys).endswith("monitor val_acc (max) from the configuration")


def test_row_5_a_name_that_does_not_tell_is_an_error(run: Any, scripted: type) -> None:
    module = scripted(val={"val_score": [1.0]})
    with pytest.raises(ConfigError) as caught:
        run(module=module, monitor="val_score")
    assert str(caught.value) == (
        "cannot tell from the name whether more or less 'val_score' is better: set scheduler.mode"
    )
    assert module.rates == []


@pytest.mark.parametrize("mode", ["max", "min"])
def test_row_5_early_stopping_wins(pl: Any, run: Any, scripted: type, capsys: Any, mode: str) -> None:
    contrary = Penalty() if mode == "max" else Score()
    module = measured(scripted, {"val_score": contrary})
    other = {"min": "max", "max": "min"}[mode]
    says = (
        f"val_score: a callback says {mode}, and the metric itself {other}; {mode} counts, unless scheduler.mode is set"
    )
    with pytest.warns(UserWarning, match=says):
        run(module=module, beside=[pl.callbacks.EarlyStopping("val_score", mode=mode, patience=9)])
    assert module.rates[-1] == (1.0 if mode == "max" else 0.5)
    assert audit(capsys).endswith(f"monitor val_score ({mode}) from EarlyStopping")


def test_row_5_a_callback_that_contradicts_the_name_is_believed_aloud(pl: Any, run: Any, scripted: type) -> None:
    module = scripted(val={"val_f1": [0.1, 0.2, 0.3]})
    says = "val_f1: EarlyStopping says min, and the name max; min counts, unless scheduler.mode is set"
    with pytest.warns(UserWarning, match=says):
        run(module=module, beside=[pl.callbacks.EarlyStopping("val_f1", patience=9)])
    assert module.rates[-1] == 0.5


def test_row_5_the_configuration_wins_over_all(pl: Any, run: Any, scripted: type, capsys: Any) -> None:
    module = measured(scripted, {"val_score": Score()})
    beside = [pl.callbacks.EarlyStopping("val_score", mode="max", patience=9)]
    run(module=module, mode="min", beside=beside)
    assert module.rates[-1] == 0.5
    assert audit(capsys).endswith("monitor val_score (min) from EarlyStopping")


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize(
    ("name", "metric", "mode", "cut", "aloud"),
    [
        ("val_score", Score, "max", False, "val_score is better the more it is"),
        ("val_score", Penalty, "min", True, "val_score is better the less it is"),
        ("val_loss", Score, "max", False, "val_loss is better the more it is"),
        ("val_acc", Penalty, "min", True, "val_acc is better the less it is"),
        ("val_acc", Score, "max", False, None),
        ("val_loss", MeanMetric, "min", True, None),
    ],
)
def test_row_5_a_metric_of_torchmetrics_tells_aloud(
    run: Any, scripted: type, capsys: Any, name: str, metric: Any, mode: str, cut: bool, aloud: Any, sanity: int
) -> None:
    module = measured(scripted, {name: metric()})
    made, _ = run(module=module, monitor=name, num_sanity_val_steps=sanity)
    assert heard(module) == [1.0, 2.0, 3.0]
    assert module.rates[-1] == (0.5 if cut else 1.0)
    assert plateau_of(made).best == (1.0 if cut else 3.0)
    lines = said(capsys)
    assert [line for line in lines if "is better the" in line] == (
        [] if aloud is None else [f"reduce_lr_on_plateau: {aloud}"]
    )
    assert lines[-1].endswith(f"monitor {name} ({mode}) from the configuration")
    if sanity:
        assert module.mode_before == mode  # settled before the first batch


@pytest.mark.parametrize("sanity", [2, 0])
def test_row_5_a_metric_that_does_not_tell_is_an_error(run: Any, scripted: type, sanity: int) -> None:
    module = measured(scripted, {"val_score": MeanMetric(), "val_other": Score()})
    with pytest.raises(ConfigError, match=r"more or less 'val_score' is better: set scheduler\.mode"):
        run(module=module, monitor="val_score", num_sanity_val_steps=sanity)
    assert len(module.rates) == (0 if sanity else BATCHES)


@pytest.mark.parametrize(("metric", "mode"), [(Score, "max"), (Penalty, "min")])
def test_row_5_a_collection_of_metrics_tells(run: Any, scripted: type, capsys: Any, metric: Any, mode: str) -> None:
    module = measured(scripted, MetricCollection({"score": metric(), "other": MeanMetric()}, prefix="val_"))
    run(module=module, monitor="val_score")
    assert heard(module) == [1.0, 2.0, 3.0]
    assert audit(capsys).endswith(f"monitor val_score ({mode}) from the configuration")


def test_row_5_a_metric_tells_by_each_of_its_names(run: Any, scripted: type, capsys: Any) -> None:
    for monitor in ("val_score", "val_score_epoch"):
        module = measured(scripted, {"val_score": Score()}, on_step=True, on_epoch=True)
        run(module=module, monitor=monitor)
        assert audit(capsys).endswith(f"monitor {monitor} (max) from the configuration")
    module = measured(scripted, {"val_score": Score()})
    run(module=module, monitor="val/score")
    assert audit(capsys).endswith("monitor val_score (max) from the configuration")


@pytest.mark.parametrize("where", ["training_step", "on_train_epoch_end", "on_validation_epoch_end"])
def test_row_5_a_metric_tells_wherever_it_is_logged(run: Any, scripted: type, capsys: Any, where: str) -> None:
    class Measured(scripted):
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
    run(module=(module := Measured()), monitor=monitor)
    assert heard(module) == [0.0, 1.0, 2.0]
    lines = said(capsys)
    assert f"reduce_lr_on_plateau: {monitor} is better the more it is" in lines
    assert ", 0 cuts, " in lines[-1]


# --------------------------------------------------------- row 6: never a learning rate, never a stale value


def test_row_6_learning_rates_are_never_monitored(pl: Any, run: Any, tmp_path: Path, capsys: Any) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    watch = pl.callbacks.LearningRateMonitor
    made, module = run(RISING, PATIENT, optimizer=ADAM, beside=[watch("epoch")], logger=logger, log_every_n_steps=1)
    assert "lr-Adam" in made.callback_metrics
    assert heard(module) == [1.0, 2.0, 3.0]
    assert audit(capsys).endswith("monitor val_loss (min) from the only validation loss that the first validation logs")
    with pytest.raises(WiringError) as caught:  # nor are they offered
        run({"val_acc": [1.0]}, optimizer=ADAM, beside=[watch("epoch")], logger=logger, log_every_n_steps=1)
    assert str(caught.value) == ("the validation logged no validation loss; set scheduler.monitor to one of val_acc")


@pytest.mark.parametrize("where", ["callback", "scheduler"])
def test_row_6_a_learning_rate_that_is_asked_for_is_refused(ours: Any, where: str) -> None:
    inner, outer = ({"monitor": "lr-Adam"}, {}) if where == "scheduler" else ({}, {"monitor": "lr-Adam"})
    with pytest.raises(ConfigError, match="lr-Adam"):
        ours.ConfigureOptimizers(ADAM, {**PLATEAU, **inner}, **outer)


def test_row_6_an_epoch_without_validation_changes_nothing(pl: Any, run: Any, scripted: type, tmp_path: Path) -> None:
    class Counting(scripted):
        def on_train_epoch_start(self) -> None:
            plateau = plateau_of(self.trainer)
            self.counts = [*getattr(self, "counts", []), (plateau.num_bad_epochs, plateau.last_epoch)]

    module = Counting(val=RISING)
    made, _ = run(
        None,
        PATIENT,
        module=module,
        beside=[pl.callbacks.LearningRateMonitor("step")],
        logger=pl.loggers.CSVLogger(tmp_path),
        log_every_n_steps=1,
        check_val_every_n_epoch=2,
        max_epochs=7,
    )
    assert module.counts == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 2), (1, 2), (2, 3)]
    assert (plateau_of(made).num_bad_epochs, plateau_of(made).last_epoch) == (2, 3)


# ---------------------------------------------------------------------- row 7: manual optimisation


def by_hand(scripted: type, **kwargs: Any) -> Any:
    """A module that steps two optimizers in each batch."""

    class ByHand(scripted):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers = self.optimizers()
            self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
            self.manual_backward(self.loss(batch))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    return ByHand(automatic=False, **kwargs)


def test_row_7_each_of_two_optimizers_has_its_own_plateau(run: Any, scripted: type, capsys: Any) -> None:
    val = {"val_loss": [1, 2, 3, 4, 5, 6], "val_acc": [0.5, 0.6, 0.4, 0.7, 0.3, 0.2]}
    plateaus = ({**PLATEAU, "monitor": "val_loss"}, {**PLATEAU, "patience": 1, "factor": 0.1, "monitor": "val_acc"})
    automatic = []
    for plateau, optimizer in zip(plateaus, (SGD, ADAM), strict=True):
        automatic.append(run(val, plateau, optimizer=optimizer, max_epochs=7)[1].rates)
    capsys.readouterr()
    two = [
        {**SGD, "match": "*.weight", "scheduler": plateaus[0]},
        {**ADAM, "match": "*.bias", "scheduler": plateaus[1]},
    ]
    module = by_hand(scripted, val=val)
    run(None, None, optimizer=two, module=module, max_epochs=7)
    assert [list(rates) for rates in zip(*module.rates, strict=True)] == automatic
    assert automatic[0][-1] == 0.5**5
    assert automatic[1][-1] == 0.1
    source = "from the configuration"
    assert [line for line in said(capsys) if line.startswith("plateau_")] == [
        f"plateau_0: 7 validations seen, 6 cuts (epochs 1, 2, 3, 4, 5, 6), monitor val_loss (min) {source}",
        f"plateau_1: 7 validations seen, 1 cut (epoch 5), monitor val_acc (max) {source}",
    ]


def test_row_7_the_plateau_of_the_second_optimizer_alone(run: Any, scripted: type, capsys: Any) -> None:
    module = by_hand(scripted, val=RISING)
    two = [{**SGD, "match": "*.weight"}, {**SGD, "match": "*.bias", "scheduler": PLATEAU}]
    run(None, None, optimizer=two, module=module)
    assert module.rates == [[1.0, 1.0]] * 8 + [[1.0, 0.5]] * 4
    assert audit(capsys).startswith("plateau: 3 validations seen, 2 cuts (epochs 1, 2), monitor val_loss (min) from ")


# ------------------------------------------------------------------------------ row 8: warmup


@pytest.mark.parametrize("accumulated", [1, 2])
def test_row_8_the_rate_ramps_by_step_and_cuts_persist(run: Any, accumulated: int) -> None:
    chosen = {**PLATEAU, "warmup": {"steps": 6, "start_factor": 0.5}}
    epochs = 4 * accumulated
    interval = {"accumulate_grad_batches": accumulated, "check_val_every_n_epoch": accumulated}
    made, module = run(RISING, chosen, max_epochs=epochs, **interval)
    # The validations after 4, 8, 12 and 16 steps: the first is the best, the second the first that counts.
    steps = [0.5 + 0.5 * min(n, 6) / 6 for n in range(8)] + [0.5] * 4 + [0.25] * 4
    assert module.rates == pytest.approx([rate for rate in steps for _ in range(accumulated)], rel=1e-12)
    assert made.optimizers[0].param_groups[0]["lr"] == 0.125


def test_row_8_bad_validations_in_the_warmup_do_not_count(run: Any, scripted: type) -> None:
    class Counting(scripted):
        def on_train_batch_start(self, *_: Any) -> None:
            plateau = plateau_of(self.trainer)
            self.counts = [*getattr(self, "counts", []), (plateau.last_epoch, plateau.num_bad_epochs)]

    chosen = {**PLATEAU, "patience": 1, "warmup_steps": 9}
    module = Counting(val={"val_loss": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    _, module = run(None, chosen, module=module, max_epochs=3, val_check_interval=0.5)
    # A validation after every second step; those after 2, 4, 6 and 8 are in the warmup, 10 and 12 count.
    assert module.counts == [(n // 2, 1 if n >= 10 else 0) for n in range(12)]
    _, module = run(RISING, chosen, max_epochs=5, val_check_interval=0.5)
    assert module.rates[9:] == [1.0] * 3 + [0.5] * 4 + [0.25] * 4


def test_row_8_the_best_of_the_warmup_is_remembered(run: Any) -> None:
    _, module = run({"val_loss": [1.0, 2.0, 0.5, 0.9]}, {**PLATEAU, "warmup_steps": 9}, max_epochs=5)
    assert module.rates[9:] == [1.0] * 7 + [0.5] * 4


def test_row_8_all_of_it_is_in_one_dictionary(
    run: Any, ours: Any, scripted: type, trainer: Any, tmp_path: Path
) -> None:
    chosen = {**PLATEAU, "warmup_steps": 6}
    _, whole = run(RISING, chosen, max_epochs=5)
    for epochs in (1, 3):  # within the warmup, and after cuts
        made, _ = run(RISING, chosen, max_epochs=epochs)
        made.save_checkpoint(tmp_path / "saved.ckpt")
        (state,) = torch.load(tmp_path / "saved.ckpt", weights_only=True)["lr_schedulers"]
        assert state == plateau_of(made).state_dict()

        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        plateau = optplug.create_scheduler("reduce_lr_on_plateau", optimizer)
        fresh = optplug.schedulers.warmup.Warmup(plateau, 99)
        fresh.load_state_dict(state)
        assert fresh.state_dict() == state
        assert (fresh.warmed, fresh.best) == (min(4 * epochs, 6), 1.0)

        rest = scripted(val=RISING)
        again = trainer(callbacks=ours.ConfigureOptimizers(SGD, chosen, verbose=False), max_epochs=5)
        again.fit(rest, ckpt_path=tmp_path / "saved.ckpt")
        assert rest.rates == whole.rates[epochs * BATCHES :]


# --------------------------------------------------------------------- row 12: values that are not finite

BAD_VALUES = [NAN, INF, -INF]


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_row_12_not_finite_is_bad(run: Any, capsys: Any, mode: str, value: float) -> None:
    better = 0.5 if mode == "min" else 2.0
    for wiring in ({}, {"on_nonfinite": "bad"}):
        made, module = run({"val_loss": [1.0, value, better]}, {**PLATEAU, **wiring}, mode=mode, max_epochs=4)
        assert module.rates == [1.0] * 8 + [0.5] * 8
        assert plateau_of(made).best == better
        assert ": 4 validations seen, 2 cuts (epochs 1, 3), " in audit(capsys)


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("wiring", ["bad", "ignore"])
def test_row_12_not_finite_is_never_the_best(run: Any, wiring: str, mode: str, value: float) -> None:
    made, _ = run({"val_loss": [value, value, 1.0]}, {**PATIENT, "on_nonfinite": wiring}, mode=mode, max_epochs=2)
    assert plateau_of(made).best == (INF if mode == "min" else -INF)  # as fresh
    made, _ = run({"val_loss": [value, 1.0, value]}, {**PATIENT, "on_nonfinite": wiring}, mode=mode)
    assert plateau_of(made).best == 1.0
    assert plateau_of(made).num_bad_epochs == (1 if wiring == "bad" else 0)


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_row_12_not_finite_may_be_ignored_aloud(run: Any, capsys: Any, mode: str, value: float) -> None:
    values = {"val_loss": [1.0, value, value, 1.0]}
    made, module = run(values, {**PLATEAU, "on_nonfinite": "ignore"}, mode=mode, max_epochs=4)
    assert module.rates == [1.0] * 16
    assert plateau_of(made).last_epoch == 2  # it was not stepped
    lines = said(capsys)
    for epoch in (1, 2):
        assert f"epoch {epoch}: val_loss is {value}: reduce_lr_on_plateau ignores it" in lines
    assert lines[-1] == (
        "plateau: 4 validations seen, 2 of them not finite and ignored, 1 cut (epoch 3), "
        f"monitor val_loss ({mode}) from the only validation loss that the first validation logs"
    )


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_row_12_not_finite_may_be_an_error(run: Any, scripted: type, mode: str, value: float) -> None:
    module = scripted(val={"val_score": [1.0, value]})
    with pytest.raises(WiringError) as caught:
        run(None, {**PLATEAU, "on_nonfinite": "raise"}, module=module, monitor="val_score", mode=mode)
    assert str(caught.value) == (f"epoch 1: val_score is {value}, and reduce_lr_on_plateau has on_nonfinite: raise")
    assert len(module.rates) == 2 * BATCHES


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
def test_row_12_the_line_of_a_cut_says_what_the_value_was(run: Any, capsys: Any, value: float) -> None:
    run({"val_loss": [1.0, value]}, max_epochs=2)
    assert f"epoch 1: val_loss is {value}, not better than 1: learning rate 1 -> 0.5" in said(capsys)


@pytest.mark.parametrize("unit", ["validations", "epochs", "steps"])
def test_row_12_patience_does_not_count_what_is_ignored(run: Any, unit: str) -> None:
    patience = BATCHES if unit == "steps" else 1
    chosen = {**PLATEAU, "patience": patience, "patience_unit": unit, "on_nonfinite": "ignore"}
    _, module = run({"val_loss": [1.0, NAN, 2.0, 3.0]}, chosen, max_epochs=5)
    assert module.rates == [1.0] * 16 + [0.5] * 4


def test_row_12_in_a_warmup_too(run: Any) -> None:
    chosen = {**PLATEAU, "warmup_steps": 5, "on_nonfinite": "bad"}
    made, _ = run({"val_loss": [-INF, 1.0, -INF]}, chosen)
    assert plateau_of(made).best == 1.0
    assert made.optimizers[0].param_groups[0]["lr"] == 0.5


# ----------------------------------------------------- row 13: dry runs, tuners, training without validation


@pytest.fixture
def tunable(scripted: type) -> Any:
    """A module that tuners can tune; it remembers its plateau as it was at each start of a training."""

    class Tunable(scripted):
        lr, batch_size = 0.5, 2

        def __init__(self) -> None:
            super().__init__(val=RISING)
            self.starts: list[Any] = []

        def on_train_start(self) -> None:
            schedulers = [entry.scheduler for entry in self.trainer.lr_scheduler_configs]
            self.starts.append([untouched(one) for one in schedulers if hasattr(one, "best")])

        def train_dataloader(self) -> DataLoader:
            torch.manual_seed(1)
            x = torch.randn(16, 4)
            return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=self.batch_size)

    return Tunable()


def untouched(plateau: Any) -> bool:
    return (plateau.best, plateau.last_epoch, plateau.num_bad_epochs, plateau.cooldown_counter) == (INF, 0, 0, 0)


LINKED = {"name": "sgd", "lr": "module.lr"}


def of_plateaus(capsys: Any) -> list[str]:
    """Messages about plateaus that are not of the account at the start of a fit."""
    return [line for line in said(capsys) if "plateau" in line and not line.startswith("scheduler ")]


def test_row_13_a_dry_run_says_that_the_plateau_is_not_stepped(run: Any, capsys: Any) -> None:
    for arguments in ({}, {"monitor": "val_nothing", "mode": "min"}):
        made, module = run(RISING, fast_dev_run=2, **arguments)
        assert of_plateaus(capsys) == ["fast_dev_run: reduce_lr_on_plateau is not stepped"]
        assert untouched(plateau_of(made))
        assert module.stepped == []


@pytest.mark.usefixtures("signals")
def test_row_13_an_interrupted_dry_run_says_no_more(run: Any, scripted: type, capsys: Any) -> None:
    class Interrupted(scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run(module=Interrupted(), fast_dev_run=True)
    assert of_plateaus(capsys) == ["fast_dev_run: reduce_lr_on_plateau is not stepped"]


@pytest.mark.parametrize("way", ["lr_find", "scale_batch_size"])
def test_row_13_a_tuner_does_not_step_the_plateau(
    pl: Any, ours: Any, tunable: Any, trainer: Any, capsys: Any, way: str
) -> None:
    made = trainer(callbacks=ours.ConfigureOptimizers(LINKED, PLATEAU), max_epochs=2)
    tuner = pl.tuner.Tuner(made)
    if way == "lr_find":
        tuner.lr_find(tunable, num_training=40)  # five epochs' worth
        assert tunable.lr != 0.5
    else:
        tuner.scale_batch_size(tunable, max_trials=2, steps_per_trial=2)
        assert tunable.batch_size > 2
    assert len(of_plateaus(capsys)) <= 1
    assert heard(tunable) == []
    assert untouched(plateau_of(made))
    made.fit(tunable)  # and works afterwards
    assert tunable.starts[-1] == [True]
    assert heard(tunable)[-2:] == [
        float(value) for value in range(int(tunable.validations) - 1, int(tunable.validations) + 1)
    ]
    assert plateau_of(made).last_epoch == 2


@pytest.mark.parametrize("way", ["LearningRateFinder", "BatchSizeFinder"])
def test_row_13_a_tuning_callback_does_not_step_the_plateau(
    pl: Any, run: Any, tunable: Any, capsys: Any, way: str
) -> None:
    arguments = {"num_training_steps": 40} if way == "LearningRateFinder" else {"max_trials": 2, "steps_per_trial": 2}
    finder = getattr(pl.callbacks, way)(**arguments)
    made, _ = run(optimizer=LINKED, module=tunable, beside=[finder], max_epochs=2, verbose=True)
    assert (tunable.lr != 0.5) == (way == "LearningRateFinder")
    assert (tunable.batch_size != 2) == (way == "BatchSizeFinder")
    assert tunable.starts[-1] == [True]
    assert len(heard(tunable)) == plateau_of(made).last_epoch == 2
    lines = of_plateaus(capsys)
    assert [line for line in lines if line.startswith("plateau: 2 validations seen, ")] == lines[-1:]
    assert len([line for line in lines if "follows" in line]) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 100},
            "the next validation would come after 100 batches, and the training has 12",
        ),
        ({"barebones": True}, "barebones=True logs nothing"),
    ],
    ids=["batches across epochs", "barebones"],
)
@pytest.mark.filterwarnings("ignore:.*barebones")
def test_row_13_a_metric_that_cannot_come_is_one_warning(
    scripted: type, trainer: Any, ours: Any, arguments: Any, why: str
) -> None:
    module = type("EarlyModule", (Early, scripted), {})(val=RISING)
    made = trainer(callbacks=ours.ConfigureOptimizers(SGD, PLATEAU, monitor="val_loss"), max_epochs=3, **arguments)
    assert foretold(made, module) == [
        f"reduce_lr_on_plateau is never stepped, unless training itself logs val_loss: {why}"
    ]
    assert made.current_epoch == 3
    assert module.stepped == []


def test_row_13_without_validation_one_warning_and_no_step(scripted: type, trainer: Any, ours: Any) -> None:
    module = type("EarlyModule", (Early, scripted), {})(val=RISING)
    made = trainer(callbacks=ours.ConfigureOptimizers(SGD, PLATEAU), limit_val_batches=0)
    assert foretold(made, module) == [
        "reduce_lr_on_plateau is never stepped, unless training itself logs a validation loss: no validation runs "
        "(there is no validation_step, no data for it, or limit_val_batches is 0)"
    ]
    assert made.current_epoch == 3
    assert untouched(plateau_of(made))
    assert module.stepped == []


# ------------------------------------------------------------------------- row 28: where states are


def trained(optimizer: Any, module: nn.Module) -> dict[str, Any]:
    """The state dict of an optimizer after two steps."""
    for _ in range(2):
        module(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    return optimizer.state_dict()


MAKERS = {
    "torch": lambda params: torch.optim.Adam(params, lr=0.1),
    **{
        name: lambda params, name=name: optplug.create_optimizer(name, params, lr=0.1)
        for name in ("adam", "adamw", "adagrad")
    },
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_row_28_a_loaded_step_stays_where_it_is_counted(pl: Any, make: Any) -> None:
    module = nn.Linear(4, 1)
    saved = trained(make(module.parameters()), module)
    # A device that is not the CPU, and that every machine has.
    there = nn.Linear(4, 1, device="meta")
    optimizer = make(there.parameters())
    strategy = pl.strategies.SingleDeviceStrategy(device="meta")  # which moves what has been loaded
    strategy.optimizers = [optimizer]
    for load in (
        optimizer.load_state_dict,
        lambda state: strategy.load_optimizer_state_dict({"optimizer_states": [state]}),
    ):
        load(saved)
        for state in optimizer.state.values():
            assert (state["step"].device.type, state["step"].dtype, float(state["step"])) == ("cpu", torch.float32, 2.0)
            others = {name: value for name, value in state.items() if name != "step"}
            assert others
            assert {value.device.type for value in others.values()} == {"meta"}


@pytest.mark.parametrize("whose", ["optplug", "torch"])
def test_row_28_the_step_stays_on_the_cpu_in_a_resumed_run(
    ours: Any, scripted: type, trainer: Any, tmp_path: Path, whose: str
) -> None:
    class Placed(scripted):
        def on_train_start(self) -> None:
            self.placed = places(self)

    configure = {"optplug": (ADAM, PLATEAU), "torch": (None, PLATEAU)}[whose]
    if whose == "torch":
        Placed.configure_optimizers = lambda self: torch.optim.Adam(self.parameters(), lr=1.0)
    for path in (None, tmp_path / "saved.ckpt"):
        made = trainer(callbacks=ours.ConfigureOptimizers(*configure, verbose=False), max_epochs=2 if path else 1)
        module = Placed(val=RISING)
        made.fit(module, ckpt_path=path)
        made.save_checkpoint(tmp_path / "saved.ckpt")
    assert module.placed == [("cpu", torch.float32, 4.0, "cpu")] * 2
    assert places(module) == [("cpu", torch.float32, 8.0, "cpu")] * 2


def places(module: Any) -> list[tuple[Any, ...]]:
    """Of each parameter's state: device, dtype and value of the step, device of the moments."""
    return [
        (state["step"].device.type, state["step"].dtype, float(state["step"]), state["exp_avg"].device.type)
        for state in module.trainer.optimizers[0].state.values()
    ]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none")
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_row_28_on_a_gpu_the_step_stays_on_the_cpu(scripted: type, trainer: Any, tmp_path: Path, make: Any) -> None:
    class OnGpu(scripted):
        def configure_optimizers(self) -> Any:
            return make(self.parameters())

        def on_train_start(self) -> None:
            for state in self.trainer.optimizers[0].state.values():
                assert (state["step"].device.type, state["step"].dtype) == ("cpu", torch.float32)
                assert {value.device.type for name, value in state.items() if name != "step"} == {"cuda"}

    for path in (None, tmp_path / "saved.ckpt"):
        made = trainer(accelerator="cuda", max_epochs=2 if path else 1)
        module = OnGpu()
        made.fit(module, ckpt_path=path)
        made.save_checkpoint(tmp_path / "saved.ckpt")
    assert {float(state["step"]) for state in made.optimizers[0].state.values()} == {8.0}


# ------------------------------------------------------------------- row 30: checkpoints are plain data


def test_row_30_a_checkpoint_with_all_of_it_loads_with_weights_only(
    pl: Any, run: Any, scripted: type, saver: Any, tmp_path: Path
) -> None:
    module = scripted(val={"val_loss": [1.0, NAN, 3.0]})
    beside = [saver("val_loss"), pl.callbacks.EarlyStopping("val_loss", patience=9, check_finite=False)]
    chosen = {**PLATEAU, "warmup_steps": 2, "patience_unit": "steps", "on_nonfinite": "ignore", "min_lr": 0.01}
    made, _ = run(None, chosen, optimizer=ADAM, module=module, beside=beside, enable_checkpointing=True)
    made.save_checkpoint(tmp_path / "last.ckpt")
    written = sorted(tmp_path.rglob("*.ckpt"))
    assert len(written) == 2
    for path in written:
        assert set(torch.load(path, weights_only=True)) > {"lr_schedulers", "optimizer_states", "optplug"}


def test_row_30_every_test_looks_at_the_checkpoints_it_wrote(
    request: pytest.FixtureRequest, scripted: type, tmp_path: Path, capfd: Any
) -> None:
    assert "checkpoints_are_plain" in request.fixturenames
    file = tmp_path / "test_it.py"
    file.write_text(
        "import torch\n"
        "class Thing: pass\n"
        "def test_plain(tmp_path): torch.save({'lr': 1.0}, tmp_path / 'a.ckpt')\n"
        "def test_folder(tmp_path): (tmp_path / 'shards.ckpt').mkdir()\n"
        "def test_none(): pass\n"
        "def test_object(tmp_path):\n"
        "    (tmp_path / 'deep').mkdir()\n"
        "    torch.save({'thing': Thing()}, tmp_path / 'deep' / 'b.ckpt')\n"
    )
    config = tmp_path / "pytest.ini"
    config.write_text("[pytest]\n")
    arguments = [str(file), "-c", str(config), "--import-mode=importlib", "-p", "no:cacheprovider"]
    arguments += ["--basetemp", str(tmp_path / "base")]
    assert pytest.main(arguments, plugins=[sys.modules[scripted.__module__]]) == pytest.ExitCode.TESTS_FAILED
    printed = capfd.readouterr().out
    assert "ERROR at teardown of test_object" in printed
    assert "b.ckpt" in printed
    assert "4 passed, 1 error" in printed
    (tmp_path / "base").rename(tmp_path.parent / f"{tmp_path.name}_looked_at")  # it is meant to hold one that fails


# ------------------------------------------------------------------------------ row 36: what is said

TWELVE = {"val_loss": [2.0, 1.0, *[3.0] * 10]}
LINE = "plateau: 12 validations seen, 2 cuts (epochs 5, 9), monitor val_loss (min) from ModelCheckpoint"
THREE = {**PLATEAU, "patience": 3}


@pytest.fixture
def twelve(run: Any, saver: Any) -> Any:
    """Fits twelve epochs with cuts in epochs 5 and 9, beside ModelCheckpoint."""
    return lambda **kwargs: run(
        **{"val": TWELVE, "scheduler": THREE, "beside": [saver("val_loss")], "max_epochs": 12, **kwargs},
        enable_checkpointing=True,
    )


def logged(logger: Any, name: str) -> list[tuple[int, float]]:
    """The steps and the values that a CSVLogger has of a metric."""
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]


def test_row_36_the_audit_line_is_exact(twelve: Any, capsys: Any) -> None:
    twelve()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"optplug: {LINE}"
    assert printed.count(f"optplug: {LINE}") == 1


def test_row_36_each_cut_is_said_and_logged(pl: Any, twelve: Any, tmp_path: Path, capsys: Any) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    twelve(logger=logger, log_every_n_steps=1)
    cuts = [line for line in said(capsys) if "learning rate" in line]
    assert cuts == [
        "epoch 5: val_loss is 3, not better than 1: learning rate 1 -> 0.5",
        "epoch 9: val_loss is 3, not better than 1: learning rate 0.5 -> 0.25",
    ]
    where = [step for step, _ in logged(logger, "val_loss")]  # at the step of the value, as Lightning counts it
    assert logged(logger, "reduce_lr_on_plateau/cuts") == [(where[5], 1), (where[9], 2)]


def test_row_36_cuts_are_logged_to_every_logger_and_by_plateau(
    pl: Any, run: Any, scripted: type, tmp_path: Path
) -> None:
    loggers = [pl.loggers.CSVLogger(tmp_path, name) for name in ("a", "b")]
    two = [{**SGD, "match": f"*.{name}", "scheduler": PLATEAU} for name in ("weight", "bias")]
    run(None, None, optimizer=two, module=by_hand(scripted, val=RISING), logger=loggers, log_every_n_steps=1)
    for logger in loggers:
        for i in range(2):
            cuts = logged(logger, f"reduce_lr_on_plateau_{i}/cuts")
            assert [number for _, number in cuts] == [1, 2]


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_row_36_the_lines_survive_a_progress_bar(pl: Any, twelve: Any, saver: Any, capsys: Any, bar: str) -> None:
    made, _ = twelve(beside=[saver("val_loss"), getattr(pl.callbacks, bar)()], enable_progress_bar=True)
    assert type(made.progress_bar_callback).__name__ == bar
    cursor = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
    printed = cursor.sub("\n", capsys.readouterr().out).splitlines()
    assert printed.count(f"optplug: {LINE}") == 1
    assert printed.count("optplug: epoch 5: val_loss is 3, not better than 1: learning rate 1 -> 0.5") == 1


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:It is recommended to use .self.log.*sync_dist=True")
def test_row_36_rank_zero_alone_speaks(run: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run(RISING, devices=2, strategy="ddp_fork", monitor="val_loss")
    lines = said(capfd)
    assert lines.count("epoch 1: val_loss is 2, not better than 1: learning rate 1 -> 0.5") == 1
    assert (
        lines.count("plateau: 3 validations seen, 2 cuts (epochs 1, 2), monitor val_loss (min) from the configuration")
        == 1
    )


def test_row_36_a_quiet_callback_says_nothing_and_logs(pl: Any, twelve: Any, tmp_path: Path, capsys: Any) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    twelve(verbose=False, logger=logger, log_every_n_steps=1)
    assert "optplug" not in capsys.readouterr().out
    assert len(logged(logger, "reduce_lr_on_plateau/cuts")) == 2


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("where", ["training_step", "validation_step", "on_train_epoch_end"])
def test_row_36_after_an_interrupt_too(run: Any, scripted: type, capsys: Any, where: str) -> None:
    class Interrupted(scripted):
        pass

    def interrupt(self: Any, *args: Any) -> Any:
        if self.trainer.current_epoch == 2 and not self.trainer.sanity_checking:
            raise KeyboardInterrupt
        return getattr(scripted, where)(self, *args)

    setattr(Interrupted, where, interrupt)
    with pytest.raises(SystemExit):
        run(None, {**PLATEAU, "monitor": "val_loss"}, module=Interrupted(val=RISING), max_epochs=9)
    seen = 3 if where == "on_train_epoch_end" else 2
    cuts = "2 cuts (epochs 1, 2)" if seen == 3 else "1 cut (epoch 1)"
    assert audit(capsys) == f"plateau: {seen} validations seen, {cuts}, monitor val_loss (min) from the configuration"


@pytest.mark.parametrize("where", ["train", "late"])
def test_row_36_epochs_are_counted_for_a_training_metric(run: Any, scripted: type, capsys: Any, where: str) -> None:
    run(module=scripted(**{where: {"train_loss": range(1, 9)}}), monitor="train_loss", max_epochs=1)
    assert audit(capsys) == "plateau: 1 epoch seen, 0 cuts, monitor train_loss (min) from the configuration"
