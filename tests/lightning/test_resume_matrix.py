"""A resumed run equals an uninterrupted run, wherever the checkpoint was written.

Learning rates at every batch, scheduler states and the plateau's summary are bit-identical. So are weights and
optimizer states if the checkpoint was written between epochs or the data loader can resume within an epoch. For the
cases that Lightning makes impossible, the test checks that there is a warning and that the runs differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from support import LIGHTNING, PLATEAU

BATCHES, EPOCHS = 4, 5
ADAM = {"name": "adam", "lr": 0.1}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
COSINE = {"name": "cosine_annealing_lr"}
VALUES = [5.0, 4.0, 6.0, 3.0, 7.0, 8.0, 2.0, 9.0, 1.0, 2.0, 0.5, 3.0]
"""The best value changes before and after each checkpoint, so that a lost or a repeated step changes the result."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


class Setting(NamedTuple):
    """A checkpoint to resume from, and the schedule, metric and data of the run.

    Attributes:
        saver: arguments of ModelCheckpoint.
        step: the global step of the checkpoint to resume from.
        scheduler: the configured schedule.
        trainer: arguments of the trainer.
        metric: where the monitored metric is logged, and its values. Fixed values in validation (`"val"`), in training
            (`"train"`), in on_train_epoch_end (`"late"`) or in validation in `"every second epoch"`; or the loss
            (`"loss in val"`, `"loss in train"`).
        resumable_data: whether the data loader resumes within an epoch.
        optimizer: the configured optimizer.
        warning: part of the warning about a lost metric value; empty if no value is lost.
        save_hook: the hook in which another callback also saves checkpoints. It precedes `ConfigureOptimizers` in the
            list of callbacks.
    """

    saver: dict[str, Any]
    step: int
    scheduler: dict[str, Any] = PLATEAU
    trainer: dict[str, Any] = {}  # noqa: RUF012  # never modified
    metric: str = "val"
    resumable_data: bool = False
    optimizer: dict[str, Any] = ADAM
    warning: str = ""
    save_hook: str = "on_train_batch_end"

    @property
    def expected_warning(self) -> str:
        """`warning`, unless Lightning < 2.5 runs the validation again in which the checkpoint was written."""
        is_repeated = LIGHTNING < (2, 5) and self.save_hook.startswith("on_validation") and "due" in self.warning
        return "" if is_repeated else self.warning


EPOCH_END = {"save_on_train_epoch_end": True}
VALIDATION_END = {"save_on_train_epoch_end": False}
VALIDATE_TWICE_PER_EPOCH = {"val_check_interval": 0.5}
VALIDATE_EVERY_SECOND_EPOCH = {"check_val_every_n_epoch": 2}
VALIDATE_EVERY_THREE_BATCHES = {"check_val_every_n_epoch": None, "val_check_interval": 3}
MAX_STEPS = {"max_steps": BATCHES * EPOCHS, "max_epochs": -1}

SETTINGS = {
    "epoch end": Setting(EPOCH_END, 8),
    "validation end": Setting(VALIDATION_END, 8),
    "middle of an epoch": Setting({"every_n_train_steps": 2}, 6),
    "middle of an epoch, resumable data": Setting({"every_n_train_steps": 2}, 6, resumable_data=True),
    "max_steps, epoch end": Setting(EPOCH_END, 8, trainer=MAX_STEPS),
    "max_steps, validation end": Setting(VALIDATION_END, 8, trainer=MAX_STEPS),
    "two validations per epoch, epoch end": Setting(EPOCH_END, 8, trainer=VALIDATE_TWICE_PER_EPOCH),
    "two validations per epoch, after the first": Setting(VALIDATION_END, 6, trainer=VALIDATE_TWICE_PER_EPOCH),
    "two validations per epoch, after the first, resumable data": Setting(
        VALIDATION_END, 6, trainer=VALIDATE_TWICE_PER_EPOCH, resumable_data=True
    ),
    "two validations per epoch, after the second": Setting(VALIDATION_END, 8, trainer=VALIDATE_TWICE_PER_EPOCH),
    "two validations per epoch, between the two": Setting(
        {"every_n_train_steps": 3}, 9, trainer=VALIDATE_TWICE_PER_EPOCH, resumable_data=True
    ),
    "validation every second epoch, epoch with validation": Setting(EPOCH_END, 8, trainer=VALIDATE_EVERY_SECOND_EPOCH),
    "validation every second epoch, epoch without validation": Setting(
        EPOCH_END, 12, trainer=VALIDATE_EVERY_SECOND_EPOCH
    ),
    "validation every second epoch, validation end": Setting(VALIDATION_END, 8, trainer=VALIDATE_EVERY_SECOND_EPOCH),
    "validation every three batches, validation end": Setting(
        VALIDATION_END, 9, trainer=VALIDATE_EVERY_THREE_BATCHES, resumable_data=True
    ),
    "validation every three batches, epoch end": Setting(EPOCH_END, 8, trainer=VALIDATE_EVERY_THREE_BATCHES),
    "training metric, epoch end": Setting(EPOCH_END, 8, metric="train"),
    "metric of on_train_epoch_end, epoch end": Setting(EPOCH_END, 8, metric="late"),
    "metric of on_train_epoch_end, validation end": Setting(VALIDATION_END, 8, metric="late"),
    "metric of on_train_epoch_end, middle of an epoch": Setting(
        {"every_n_train_steps": 2}, 6, metric="late", resumable_data=True
    ),
    "warmup, within the warmup": Setting(
        {"every_n_train_steps": 2}, 6, {**PLATEAU, "warmup_steps": 9}, resumable_data=True
    ),
    "warmup, epoch end": Setting(EPOCH_END, 8, {**PLATEAU, "patience": 1, "warmup_steps": 10}),
    "warmup before the schedule, within the warmup": Setting(
        {"every_n_train_steps": 2},
        6,
        {**COSINE, "T_max": "auto", "interval": "step", "warmup": {"ratio": 0.45, "schedule": "after"}},
        resumable_data=True,
    ),
    "warmup before the schedule, after the warmup": Setting(
        {"every_n_train_steps": 2},
        10,
        {**COSINE, "T_max": {"ratio": 1}, "interval": "step", "warmup": {"steps": 7, "schedule": "after"}},
        resumable_data=True,
    ),
    "warmup before a schedule that steps per epoch": Setting(
        EPOCH_END, 8, {**COSINE, "T_max": "auto", "warmup": {"steps": 6, "schedule": "after"}}
    ),
    "loss as metric, middle of an epoch": Setting(
        {"every_n_train_steps": 2}, 6, {**PLATEAU, "threshold": 0.9}, metric="loss in val", resumable_data=True
    ),
    "loss as metric, after the first of two validations": Setting(
        VALIDATION_END,
        6,
        {**PLATEAU, "threshold": 0.9},
        VALIDATE_TWICE_PER_EPOCH,
        metric="loss in val",
        resumable_data=True,
    ),
    "metric in every second epoch, epoch end": Setting(
        EPOCH_END, 4, trainer={"num_sanity_val_steps": 0}, metric="every second epoch"
    ),
    "saved by a callback, after a batch": Setting(
        {"every_n_epochs": 9}, 6, {**COSINE, "T_max": 20, "interval": "step"}, resumable_data=True
    ),
    "saved by a callback, after a validation": Setting({"every_n_epochs": 9}, 8, save_hook="on_validation_end"),
    "patience in epochs": Setting(
        VALIDATION_END, 8, {**PLATEAU, "patience": 1, "patience_unit": "epochs"}, VALIDATE_TWICE_PER_EPOCH
    ),
    "patience in steps": Setting(
        VALIDATION_END, 8, {**PLATEAU, "patience": 3, "patience_unit": "steps"}, VALIDATE_TWICE_PER_EPOCH
    ),
    "cooldown": Setting(EPOCH_END, 8, {**PLATEAU, "cooldown": 2}, trainer=VALIDATE_TWICE_PER_EPOCH),
    "accumulation": Setting(VALIDATION_END, 4, trainer={"accumulate_grad_batches": 2}),
    "cosine per step with auto, middle of an epoch": Setting(
        {"every_n_train_steps": 2}, 6, {**COSINE, "T_max": "auto", "interval": "step"}, resumable_data=True
    ),
    "cosine every three steps, epoch end": Setting(
        EPOCH_END, 8, {**COSINE, "T_max": 6, "interval": "step", "frequency": 3}, optimizer=SGD
    ),
    "cosine per epoch, after the last batch": Setting(
        {"every_n_train_steps": 4}, 8, {**COSINE, "T_max": 5}, optimizer=SGD
    ),
    "step_lr every two epochs, middle of an epoch": Setting(
        {"every_n_train_steps": 2}, 6, {"name": "step_lr", "step_size": 1, "frequency": 2}, resumable_data=True
    ),
    "value lost: after the last batch of an epoch": Setting(
        {"every_n_train_steps": 4}, 8, warning="before the validation that was due"
    ),
    "value lost: after the batch before a validation": Setting(
        {"every_n_train_steps": 2},
        6,
        trainer=VALIDATE_TWICE_PER_EPOCH,
        resumable_data=True,
        warning="before the validation that was due",
    ),
    "value lost: saved by a callback before a validation": Setting(
        {"every_n_epochs": 9}, 8, save_hook="on_train_batch_end", warning="before the validation that was due"
    ),
    "value lost: saved by a callback within a validation": Setting(
        {"every_n_epochs": 9}, 8, save_hook="on_validation_epoch_end", warning="before the validation that was due"
    ),
    **{
        f"value lost: saved in {hook}": Setting(
            {"every_n_epochs": 9}, 8, save_hook=hook, warning="before the validation that was due"
        )
        for hook in ("on_validation_start", "on_validation_batch_start", "on_validation_batch_end")
    },
    "value lost: saved in on_validation_start, within an epoch": Setting(
        {"every_n_epochs": 9},
        6,
        trainer=VALIDATE_TWICE_PER_EPOCH,
        resumable_data=True,
        save_hook="on_validation_start",
        warning="before the validation that was due",
    ),
    "value lost: metric of on_train_epoch_end, after the last batch": Setting(
        {"every_n_train_steps": 4}, 8, metric="late", warning="before the module's on_train_epoch_end"
    ),
    "metric of on_train_epoch_end, validation start": Setting(
        {"every_n_epochs": 9}, 8, metric="late", save_hook="on_validation_start"
    ),
    "value lost: training metric, validation start": Setting(
        {"every_n_epochs": 9}, 8, metric="train", save_hook="on_validation_start", warning="within epoch 1"
    ),
    "value lost: saved by a callback before on_train_epoch_end": Setting(
        {"every_n_epochs": 9},
        8,
        metric="late",
        save_hook="on_train_epoch_end",
        warning="before the module's on_train_epoch_end",
    ),
    "value lost: training metric, validation end": Setting(VALIDATION_END, 8, metric="train", warning="within epoch 1"),
    "value lost: training metric, middle of an epoch": Setting(
        {"every_n_train_steps": 2}, 6, metric="loss in train", resumable_data=True, warning="within epoch 1"
    ),
}
"""Each setting runs with automatic and with manual optimization; accumulation is possible only in automatic."""


REPEATED_BATCH = {
    "middle of an epoch",
    "middle of an epoch, resumable data",
    "two validations per epoch, between the two",
    "warmup, within the warmup",
    "loss as metric, middle of an epoch",
    "cosine per epoch, after the last batch",
    "value lost: after the last batch of an epoch",
    "value lost: after the batch before a validation",
    "value lost: saved by a callback before a validation",
    "value lost: metric of on_train_epoch_end, after the last batch",
}
"""The settings whose result depends on what Lightning does with the batch in which the checkpoint was written."""

repeated_batch = pytest.mark.xfail(
    LIGHTNING < (2, 5),
    strict=True,
    reason="Lightning < 2.5: after a resume it counts the batch again in which the checkpoint was written",
)


class ResumableDataLoader(DataLoader):
    """A data loader that resumes within an epoch."""

    yielded, start = 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.yielded, start, self.start = self.start, self.start, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= start:
                self.yielded += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"yielded": self.yielded % BATCHES}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["yielded"]


def weights_and_states(run: Any, module: Any) -> dict[str, Any]:
    """The weights and the optimizer states after a run."""
    return {
        "weights": {name: p.tolist() for name, p in module.named_parameters()},
        "optimizer": [
            {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
            for state in run.optimizers[0].state.values()
        ],
    }


@pytest.mark.parametrize("automatic", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["automatic", "manual"])
@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(setting, id=name, marks=[repeated_batch] if name in REPEATED_BATCH else [])
        for name, setting in SETTINGS.items()
    ],
)
def test_resumed_run_equals_uninterrupted_run(
    pl: Any,
    optplug_lightning: Any,
    scripted_module: type,
    trainer: Any,
    tmp_path: Path,
    save_every_checkpoint: Any,
    capsys: Any,
    setting: Setting,
    automatic: bool,
) -> None:
    if not automatic and "accumulate_grad_batches" in setting.trainer:
        setting = setting._replace(trainer={}, step=8)  # Lightning raises: a module accumulates itself

    class Module(scripted_module):
        def train_dataloader(self) -> DataLoader:
            torch.manual_seed(1)
            x = torch.randn(2 * BATCHES, 4)
            kind = ResumableDataLoader if setting.resumable_data else DataLoader
            return kind(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=2)

        def on_validation_epoch_end(self) -> None:
            if setting.metric == "every second epoch" and self.current_epoch % 2 == 0:
                self.log("val_err", VALUES[self.current_epoch // 2])
            super().on_validation_epoch_end()

    def fit(**kwargs: Any) -> tuple[Any, Any, str]:
        _, is_loss, place = setting.metric.rpartition("loss in ")
        metric = "val_loss" if place == "val" else "train_loss"
        logs = {"val": {"val_other": None}, place: {metric: None if is_loss else VALUES}}
        if place == "every second epoch":
            metric, logs = "val_err", {"val": {"val_other": None}}
        module = Module(**logs, automatic=automatic)
        monitor = metric if "plateau" in setting.scheduler["name"] else None
        own = optplug_lightning.ConfigureOptimizers(setting.optimizer, setting.scheduler, monitor=monitor)

        def save(callback: Any, run: Any, *_: Any) -> None:
            if run.global_step and not run.sanity_checking:
                run.save_checkpoint(tmp_path / f"saved_by_callback-step={run.global_step}.ckpt")

        saving_callback = type("SavingCallback", (pl.callbacks.Callback,), {setting.save_hook: save})()
        saver = save_every_checkpoint(**setting.saver)
        run = trainer(
            **{
                "max_epochs": EPOCHS,
                "enable_checkpointing": True,
                "callbacks": [saving_callback, own, saver],
                **setting.trainer,
            }
        )
        run.fit(module, **kwargs)
        last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("optplug: plateau: ")]
        return run, module, "".join(last)

    first_run, uninterrupted, summary = fit()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prefix = "saved_by_callback-" if "every_n_epochs" in setting.saver else ""
        second_run, resumed, second_summary = fit(ckpt_path=tmp_path / f"{prefix}step={setting.step}.ckpt")
    lost_value_warnings = [str(w.message) for w in caught if "misses a value" in str(w.message)]
    schedules = [
        [entry.scheduler.state_dict() for entry in one.lr_scheduler_configs] for one in (first_run, second_run)
    ]
    equal = (
        resumed.lrs == uninterrupted.lrs[-len(resumed.lrs) :]
        and resumed.scheduler_steps == uninterrupted.scheduler_steps[-len(resumed.scheduler_steps) :]
        and schedules[0] == schedules[1]
        and summary == second_summary
    )
    assert len(resumed.lrs) >= BATCHES
    if setting.expected_warning:
        assert len(lost_value_warnings) == 1
        assert setting.expected_warning in lost_value_warnings[0]
        assert not equal
        return
    assert lost_value_warnings == []
    assert equal
    if setting.resumable_data or setting.step % BATCHES == 0:
        assert weights_and_states(second_run, resumed) == weights_and_states(first_run, uninterrupted)
