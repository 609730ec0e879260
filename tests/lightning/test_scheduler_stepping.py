"""When schedulers without a metric step: intervals, frequencies, warmup, and manual optimization."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from optplug.errors import WiringError
from support import BATCHES_PER_EPOCH, COSINE, PLATEAU, RISING, SGD, cosine, rounded, scheduler_of

# -------------------------------------------------------------------------------------------- Intervals and frequencies


@pytest.mark.both_import_names
@pytest.mark.parametrize(
    ("scheduler_keys", "arguments", "path"),
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
def test_schedulers_step_per_epoch_or_per_optimizer_step(
    scripted_module: type,
    trainer: Any,
    quiet_callback: Any,
    scheduler_keys: dict[str, Any],
    arguments: dict[str, Any],
    path: list[int],
):
    module = scripted_module()
    trainer(callbacks=quiet_callback(SGD, {**COSINE, "T_max": 20, **scheduler_keys}), **arguments).fit(module)
    assert module.lrs == pytest.approx([cosine(t, 20) for t in path], rel=1e-12)
    assert len(module.scheduler_steps) == max(path) + 1  # no batch runs after the last step
    assert all(metric is None for metric in module.step_values)


@pytest.mark.parametrize(("accumulated", "epochs"), [(1, 3), (2, 6), (4, 9)])
def test_frequency_counts_optimizer_steps_across_epochs(fit: Any, accumulated: int, epochs: int) -> None:
    halving = {"name": "exponential_lr", "gamma": 0.5, "interval": "step", "frequency": 3}
    fitted, module = fit({**SGD, "lr": 0.1}, halving, accumulate_grad_batches=accumulated, max_epochs=epochs)
    steps = epochs * BATCHES_PER_EPOCH // accumulated
    assert fitted.global_step == steps
    assert scheduler_of(fitted).last_epoch == steps // 3
    assert rounded(module.lrs) == rounded(
        0.1 * 0.5 ** (batch // accumulated // 3) for batch in range(epochs * BATCHES_PER_EPOCH)
    )


@pytest.mark.usefixtures("step_schedulers")
def test_plugin_declares_default_interval(fit: Any) -> None:
    fitted, module = fit({"name": "adam", "lr": 0.1}, {"name": "one_cycle_lr", "max_lr": 0.1, "total_steps": 12})
    assert scheduler_of(fitted).last_epoch == 11  # the last of the twelve learning rates, counted from 0
    assert len(set(rounded(module.lrs))) == 12
    fitted, module = fit({"name": "adam", "lr": 0.1}, {"name": "rise_and_fall", "total_steps": 12})
    assert scheduler_of(fitted).last_epoch == 12
    assert rounded(module.lrs[:4]) == rounded([0.1 / 3, 0.2 / 3, 0.1, 0.09])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_warmup_counts_optimizer_steps(scripted_module: type, trainer: Any, quiet_callback: Any, accumulate: int):
    module = scripted_module()
    scheduler_keys = {"warmup": {"steps": 4, "start_factor": 0.2}}
    schedule = {**COSINE, "T_max": 20, **scheduler_keys}
    trainer(callbacks=quiet_callback(SGD, schedule), accumulate_grad_batches=accumulate).fit(module)
    warm = [min(1.0, 0.2 + 0.8 * (batch // accumulate) / 4) for batch in range(12)]
    assert module.lrs == pytest.approx([w * cosine(batch // 4, 20) for batch, w in enumerate(warm)], rel=1e-12)


def test_learning_rate_monitor_logs_the_learning_rates(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any
):
    module = scripted_module(val=RISING)
    logger = pl.loggers.CSVLogger(tmp_path)
    groups = [{"match": "*.bias", "name": "biases", "lr": 0.5}]
    lr_monitor = pl.callbacks.LearningRateMonitor("step")
    configure = quiet_callback(SGD, {**PLATEAU, "warmup_steps": 4}, param_groups=groups)
    trainer(callbacks=[configure, lr_monitor], logger=logger, log_every_n_steps=1).fit(module)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr-SGD/biases"]]
    assert [float(row["lr-SGD/default"]) for row in rows] == module.lrs
    assert [float(row["lr-SGD/biases"]) for row in rows] == [lr / 2 for lr in module.lrs]


# ----------------------------------------------------------------- lr_scheduler_step and scheduler.step() in the module


def test_overridden_lr_scheduler_step_is_called(scripted_module: type, trainer: Any, quiet_callback: Any):
    class WithOverride(scripted_module):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.scheduler_steps.append(metric)

    for configuration, expected in (
        (PLATEAU, [1.0, 2.0, 3.0]),
        (COSINE, [None] * 3),
        ({**COSINE, "interval": "step"}, [None] * 12),
    ):
        module = WithOverride(val=RISING)
        trainer(callbacks=quiet_callback(SGD, configuration)).fit(module)
        assert module.scheduler_steps == expected
        assert module.lrs == [1.0] * 12


def test_scheduler_stepped_by_the_module_too_raises(scripted_module: type, trainer: Any, quiet_callback: Any):
    class StepsSchedulerItself(scripted_module):
        def on_train_epoch_end(self):
            self.lr_schedulers().step()

    with pytest.raises(WiringError, match=r"remove scheduler\.step\(\) from the module"):
        trainer(callbacks=quiet_callback(SGD, COSINE)).fit(StepsSchedulerItself(automatic=False))


# -------------------------------------------------------------------------------------------------- Manual optimization


@pytest.mark.both_import_names
@pytest.mark.parametrize("with_callback", [True, False], ids=["callback", "self-configured"])
def test_schedulers_step_in_manual_optimization(
    scripted_module: type, self_configured_module: type, trainer: Any, quiet_callback: Any, with_callback: bool
):
    for scheduler, count in (
        (PLATEAU, 3),
        (COSINE, 3),
        ({**COSINE, "interval": "step"}, 12),
        ({**PLATEAU, "warmup_steps": 9}, 3),
    ):
        configuration = {"optimizer": SGD, "scheduler": scheduler}
        kwargs = {"val": RISING, "automatic": False}
        module = scripted_module(**kwargs) if with_callback else self_configured_module(configuration, **kwargs)
        trainer(callbacks=quiet_callback(**configuration) if with_callback else None).fit(module)
        assert len(module.scheduler_steps) == count
        automatic = scripted_module(val=RISING)
        trainer(callbacks=quiet_callback(**configuration)).fit(automatic)
        assert module.lrs == automatic.lrs


def test_every_manual_optimizer_step_counts(scripted_module: type, trainer: Any, quiet_callback: Any):
    class StepsSchedulerItself(scripted_module):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            super().training_step(batch, batch_idx)

    module = StepsSchedulerItself(automatic=False)
    configuration = {**COSINE, "T_max": 40, "interval": "step", "frequency": 3, "warmup_steps": 8}
    trainer(callbacks=quiet_callback(SGD, configuration)).fit(module)
    expected = [cosine(2 * batch // 3, 40) * min(1.0, (1 + 7 / 8 * 2 * batch) / 8) for batch in range(12)]
    assert module.lrs[::2] == pytest.approx(expected, rel=1e-12)
    assert len(module.scheduler_steps) == 8
