"""Feature row 9: interrupted and resumed equals uninterrupted, wherever the checkpoint was written.

Rates at every batch, counters and the last line are equal bit for bit; weights and optimizer states too, wherever the
data go on where they were. What Lightning makes impossible is warned about, and tested to be so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

BATCHES, EPOCHS = 4, 5
ADAM = {"name": "adam", "lr": 0.1}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}
COSINE = {"name": "cosine_annealing_lr"}
VALUES = [5.0, 4.0, 6.0, 3.0, 7.0, 8.0, 2.0, 9.0, 1.0, 2.0, 0.5, 3.0]
"""The best comes first, at checkpoints and later, so that a lost or repeated step shows."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


class Setting(NamedTuple):
    """Where a checkpoint is written, and under which schedule.

    Attributes:
        saver: of ModelCheckpoint. step: of the checkpoint to go on from. trainer: its arguments.
        logs: where the metric is logged; the true loss, or values that are told.
        data: whether they go on in the middle of an epoch. lost: what the warning says; "" for none.
        by_hand: the hook in which another callback, listed before ours, saves too.
    """

    saver: dict[str, Any]
    step: int
    scheduler: dict[str, Any] = PLATEAU
    trainer: dict[str, Any] = {}  # noqa: RUF012  # nobody writes into it
    logs: str = "val"
    data: bool = False
    optimizer: dict[str, Any] = ADAM
    lost: str = ""
    by_hand: str = "on_train_batch_end"


EPOCH_END = {"save_on_train_epoch_end": True}
VALIDATION_END = {"save_on_train_epoch_end": False}
HALVES = {"val_check_interval": 0.5}
SECOND = {"check_val_every_n_epoch": 2}
BY_BATCHES = {"check_val_every_n_epoch": None, "val_check_interval": 3}
MAX_STEPS = {"max_steps": BATCHES * EPOCHS, "max_epochs": -1}

SETTINGS = {
    "epoch end": Setting(EPOCH_END, 8),
    "validation end": Setting(VALIDATION_END, 8),
    "middle of an epoch": Setting({"every_n_train_steps": 2}, 6),
    "middle of an epoch, data go on": Setting({"every_n_train_steps": 2}, 6, data=True),
    "max_steps, epoch end": Setting(EPOCH_END, 8, trainer=MAX_STEPS),
    "max_steps, validation end": Setting(VALIDATION_END, 8, trainer=MAX_STEPS),
    "two validations an epoch, epoch end": Setting(EPOCH_END, 8, trainer=HALVES),
    "two validations an epoch, first": Setting(VALIDATION_END, 6, trainer=HALVES),
    "two validations an epoch, first, data go on": Setting(VALIDATION_END, 6, trainer=HALVES, data=True),
    "two validations an epoch, second": Setting(VALIDATION_END, 8, trainer=HALVES),
    "two validations an epoch, between them": Setting({"every_n_train_steps": 3}, 9, trainer=HALVES, data=True),
    "every second epoch, epoch with": Setting(EPOCH_END, 8, trainer=SECOND),
    "every second epoch, epoch without": Setting(EPOCH_END, 12, trainer=SECOND),
    "every second epoch, validation end": Setting(VALIDATION_END, 8, trainer=SECOND),
    "every three batches, validation end": Setting(VALIDATION_END, 9, trainer=BY_BATCHES, data=True),
    "every three batches, epoch end": Setting(EPOCH_END, 8, trainer=BY_BATCHES),
    "training metric, epoch end": Setting(EPOCH_END, 8, logs="train"),
    "metric of on_train_epoch_end, epoch end": Setting(EPOCH_END, 8, logs="late"),
    "metric of on_train_epoch_end, validation end": Setting(VALIDATION_END, 8, logs="late"),
    "metric of on_train_epoch_end, middle": Setting({"every_n_train_steps": 2}, 6, logs="late", data=True),
    "warmup, middle of it": Setting({"every_n_train_steps": 2}, 6, {**PLATEAU, "warmup_steps": 9}, data=True),
    "warmup, epoch end": Setting(EPOCH_END, 8, {**PLATEAU, "patience": 1, "warmup_steps": 10}),
    "true loss, middle": Setting(
        {"every_n_train_steps": 2}, 6, {**PLATEAU, "threshold": 0.9}, logs="true val", data=True
    ),
    "true loss, first of two validations": Setting(
        VALIDATION_END, 6, {**PLATEAU, "threshold": 0.9}, HALVES, logs="true val", data=True
    ),
    "metric now and then, epoch end": Setting(EPOCH_END, 4, trainer={"num_sanity_val_steps": 0}, logs="now and then"),
    "saved by hand, by step": Setting({"every_n_epochs": 9}, 6, {**COSINE, "T_max": 20, "interval": "step"}, data=True),
    "saved by hand, after a validation": Setting({"every_n_epochs": 9}, 8, by_hand="on_validation_end"),
    "patience in epochs": Setting(VALIDATION_END, 8, {**PLATEAU, "patience": 1, "patience_unit": "epochs"}, HALVES),
    "patience in steps": Setting(VALIDATION_END, 8, {**PLATEAU, "patience": 3, "patience_unit": "steps"}, HALVES),
    "cooldown": Setting(EPOCH_END, 8, {**PLATEAU, "cooldown": 2}, trainer=HALVES),
    "accumulation": Setting(VALIDATION_END, 4, trainer={"accumulate_grad_batches": 2}),
    "cosine auto by step, middle": Setting(
        {"every_n_train_steps": 2}, 6, {**COSINE, "T_max": "auto", "interval": "step"}, data=True
    ),
    "cosine by three steps, epoch end": Setting(
        EPOCH_END, 8, {**COSINE, "T_max": 6, "interval": "step", "frequency": 3}, optimizer=SGD
    ),
    "cosine by epoch, last batch": Setting({"every_n_train_steps": 4}, 8, {**COSINE, "T_max": 5}, optimizer=SGD),
    "step_lr by two epochs, middle": Setting(
        {"every_n_train_steps": 2}, 6, {"name": "step_lr", "step_size": 1, "frequency": 2}, data=True
    ),
    "impossible: last batch of an epoch": Setting(
        {"every_n_train_steps": 4}, 8, lost="before the validation that was due"
    ),
    "impossible: a batch before a validation": Setting(
        {"every_n_train_steps": 2}, 6, trainer=HALVES, data=True, lost="before the validation that was due"
    ),
    "impossible: by hand, before a validation": Setting(
        {"every_n_epochs": 9}, 8, by_hand="on_train_batch_end", lost="before the validation that was due"
    ),
    "impossible: by hand, within a validation": Setting(
        {"every_n_epochs": 9}, 8, by_hand="on_validation_epoch_end", lost="before the validation that was due"
    ),
    "impossible: by hand, before on_train_epoch_end": Setting(
        {"every_n_epochs": 9},
        8,
        logs="late",
        by_hand="on_train_epoch_end",
        lost="before the module's on_train_epoch_end",
    ),
    "impossible: training metric, validation end": Setting(VALIDATION_END, 8, logs="train", lost="within epoch 1"),
    "impossible: training metric, middle": Setting(
        {"every_n_train_steps": 2}, 6, logs="true train", data=True, lost="within epoch 1"
    ),
}
"""All may be trained automatically or manually, but accumulation."""


class GoingOn(DataLoader):
    """A data loader that goes on in the middle of an epoch."""

    given, start = 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.given, start, self.start = self.start, self.start, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= start:
                self.given += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % BATCHES}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"]


def outcome(run: Any, module: Any) -> dict[str, Any]:
    """Weights, optimizer state and scheduler counters after a run."""
    return {
        "weights": {name: p.tolist() for name, p in module.named_parameters()},
        "optimizer": [
            {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
            for state in run.optimizers[0].state.values()
        ],
    }


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_row_9_a_resumed_run_equals_an_uninterrupted_one(
    pl: Any, ours: Any, scripted: type, trainer: Any, tmp_path: Path, capsys: Any, setting: Setting, automatic: bool
) -> None:
    if not automatic and "accumulate_grad_batches" in setting.trainer:
        setting = setting._replace(trainer={}, step=8)  # Lightning refuses it: the module accumulates if it likes

    class Module(scripted):
        def train_dataloader(self) -> DataLoader:
            torch.manual_seed(1)
            x = torch.randn(2 * BATCHES, 4)
            kind = GoingOn if setting.data else DataLoader
            return kind(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=2)

        def on_validation_epoch_end(self) -> None:
            if setting.logs == "now and then" and self.current_epoch % 2 == 0:
                self.log("val_err", VALUES[self.current_epoch // 2])
            super().on_validation_epoch_end()

    def fit(**kwargs: Any) -> tuple[Any, Any, str]:
        _, true, where = setting.logs.rpartition("true ")
        metric = "val_loss" if where == "val" else "train_loss"
        logs = {"val": {"val_other": None}, where: {metric: None if true else VALUES}}
        if where == "now and then":
            metric, logs = "val_err", {"val": {"val_other": None}}
        module = Module(**logs, automatic=automatic)
        monitor = metric if "plateau" in setting.scheduler["name"] else None
        own = ours.ConfigureOptimizers(setting.optimizer, setting.scheduler, monitor=monitor)

        def save(callback: Any, run: Any, *_: Any) -> None:
            if run.global_step and not run.sanity_checking:
                run.save_checkpoint(tmp_path / f"by_hand-step={run.global_step}.ckpt")

        other = type("Other", (pl.callbacks.Callback,), {setting.by_hand: save})()
        saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **setting.saver)
        run = trainer(
            **{"max_epochs": EPOCHS, "enable_checkpointing": True, "callbacks": [other, own, saver], **setting.trainer}
        )
        run.fit(module, **kwargs)
        last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("optplug: plateau: ")]
        return run, module, "".join(last)

    whole, straight, said = fit()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        by_hand = "by_hand-" if "every_n_epochs" in setting.saver else ""
        resumed, rest, said_again = fit(ckpt_path=tmp_path / f"{by_hand}step={setting.step}.ckpt")
    missed = [str(w.message) for w in caught if "misses a value" in str(w.message)]
    schedules = [[entry.scheduler.state_dict() for entry in one.lr_scheduler_configs] for one in (whole, resumed)]
    equal = (
        rest.rates == straight.rates[-len(rest.rates) :]
        and rest.stepped == straight.stepped[-len(rest.stepped) :]  # what each step heard
        and schedules[0] == schedules[1]
        and said == said_again
    )
    assert len(rest.rates) >= BATCHES
    if setting.lost:
        assert len(missed) == 1
        assert setting.lost in missed[0]
        assert not equal
        return
    assert missed == []
    assert equal
    if setting.data or setting.step % BATCHES == 0:
        assert outcome(resumed, rest) == outcome(whole, straight)
