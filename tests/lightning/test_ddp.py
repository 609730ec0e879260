"""Two processes: the ranks agree about every step of a plateau, whatever each of them logs."""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn

from optplug.errors import WiringError

pytestmark = [
    pytest.mark.timeout(90),
    # Values that differ between the ranks are what these tests are about.
    pytest.mark.filterwarnings("ignore:It is recommended to use .self.log.*sync_dist=True"),
    # Forked processes report that their parent has threads; that is how ddp_fork works.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # What saved the checkpoint is of no more use where a run goes on.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
]
ADAM = {"name": "adam", "lr": 0.1}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def fit(scripted: type, ours: Any, trainer: Any, tmp_path: Path) -> Any:
    """Fits on two ranks, which log what `log(module, rank)` logs in each validation; returns each rank's end."""

    class Ranked(scripted):
        log_as: Any = None

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            type(self).log_as(self, self.global_rank)

        def on_train_end(self) -> None:
            ends = {"rates": self.rates, "weights": torch.cat([p.flatten() for p in self.parameters()]).tolist()}
            ends["heard"] = [metric for *_, metric in self.stepped]
            (tmp_path / f"{self.global_rank}.json").write_text(json.dumps(ends))

    def run(log: Any, scheduler: Any = PLATEAU, monitor: str | None = "val_loss", **arguments: Any) -> list[Any]:
        Ranked.log_as = staticmethod(log)
        callback = ours.ConfigureOptimizers(ADAM, scheduler, monitor=monitor, verbose=False)
        strategy = {"devices": 2, "strategy": "ddp_fork", "callbacks": callback, "use_distributed_sampler": False}
        module = Ranked(automatic=arguments.pop("automatic", True))
        if own := arguments.pop("own", None):
            own(module)
        trainer(**{**strategy, "max_epochs": 4, **arguments}).fit(module)
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    return run


def differing(module: Any, rank: int) -> None:
    """Rank 0 gets better, rank 1 gets worse by more."""
    epoch = module.current_epoch
    module.log("val_loss", float(-epoch if rank == 0 else 3 * epoch), batch_size=2)


@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_ranks_that_log_different_values_agree(fit: Any, monitor: str | None):
    first, second = fit(differing, monitor=monitor)
    assert first == second
    assert first["heard"] == [0.0, 1.0, 2.0, 3.0]
    assert first["rates"] == [0.1] * 8 + [0.05] * 4 + [0.025] * 4


def test_ranks_agree_while_warming_up(fit: Any):
    first, second = fit(differing, {**PLATEAU, "warmup_steps": 6})
    assert first == second
    assert first["rates"][:2] == pytest.approx([0.1 / 6, 0.1 * 11 / 36])
    assert first["rates"][-1] == 0.025


@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_a_metric_of_rank_zero_only_is_heard_on_both(fit: Any, monitor: str | None):
    def log(module: Any, rank: int) -> None:
        if rank == 0:
            module.log("val_loss", float(module.current_epoch), batch_size=2, rank_zero_only=True)

    first, second = fit(log, monitor=monitor)
    assert first == second
    assert first["heard"] == [0.0, 1.0, 2.0, 3.0]


def test_not_a_number_on_one_rank_is_a_bad_value_on_both(fit: Any):
    def log(module: Any, rank: int) -> None:
        module.log(
            "val_loss", float("nan") if rank and module.current_epoch else 1.0 - module.current_epoch, batch_size=2
        )

    first, second = fit(log)
    assert first["rates"] == second["rates"] == [0.1] * 8 + [0.05] * 4 + [0.025] * 4
    assert first["weights"] == second["weights"]


def test_a_metric_that_no_rank_logs_ends_both(fit: Any):
    with pytest.raises(Exception, match=r"monitors 'val_loss2' .*; did you mean 'val_loss'") as caught:
        fit(differing, monitor="val_loss2")
    assert isinstance(caught.value, WiringError) or "WiringError" in str(caught.value)


def test_other_schedules_step_alike_on_both_ranks(fit: Any):
    first, second = fit(differing, {"name": "cosine_annealing_lr", "T_max": 16, "interval": "step"}, monitor=None)
    assert first == second
    assert len(first["heard"]) == 16


# -------------------------------------------------------------------------- what each rank may log


def on_rank_zero_only(module: Any, rank: int) -> None:
    if rank == 0:
        module.log("val_loss", float(module.current_epoch), batch_size=2, rank_zero_only=True)


def on_one_rank_at_a_time(module: Any, rank: int) -> None:
    if rank == module.current_epoch % 2:
        module.log("val_loss", float(module.current_epoch), batch_size=2)


def on_rank_one_at_times(module: Any, rank: int) -> None:
    """Its value, where there is one, brings the mean down."""
    if rank == 0 or module.current_epoch in (1, 3):
        module.log("val_loss", float(module.current_epoch if rank == 0 else -10 * module.current_epoch), batch_size=2)


def not_a_number_on_one(module: Any, rank: int) -> None:
    bad = rank == 1 and module.current_epoch == 2
    module.log("val_loss", math.nan if bad else -float(module.current_epoch), batch_size=2)


def infinite_on_both_with_other_signs(module: Any, rank: int) -> None:
    value = -math.inf if rank else math.inf
    module.log("val_loss", value if module.current_epoch == 2 else -float(module.current_epoch), batch_size=2)


LOGGED: dict[str, Any] = {
    "differing": (differing, [0.0, 1.0, 2.0, 3.0]),
    "rank zero only": (on_rank_zero_only, [0.0, 1.0, 2.0, 3.0]),
    "one at a time": (on_one_rank_at_a_time, [0.0, 1.0, 2.0, 3.0]),
    "rank one at times": (on_rank_one_at_times, [0.0, -4.5, 2.0, -13.5]),
    "NaN on one": (not_a_number_on_one, [0.0, -1.0, math.nan, -3.0]),
    "inf and -inf": (infinite_on_both_with_other_signs, [0.0, -1.0, math.nan, -3.0]),
}
RATES = {
    "differing": [0.1, 0.1, 0.05, 0.025],
    "rank zero only": [0.1, 0.1, 0.05, 0.025],
    "one at a time": [0.1, 0.1, 0.05, 0.025],
    "rank one at times": [0.1, 0.1, 0.1, 0.05],
    "NaN on one": [0.1, 0.1, 0.1, 0.05],
    "inf and -inf": [0.1, 0.1, 0.1, 0.05],
}
automatically = pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
each_log = pytest.mark.parametrize("logged", LOGGED)


def epochs(rates: list[float], batches: int = 4) -> list[float]:
    return [rates[i] for i in range(0, len(rates), batches)]


@automatically
@each_log
def test_row_10_whatever_the_ranks_log_they_agree(fit: Any, logged: str, automatic: bool) -> None:
    log, heard = LOGGED[logged]
    first, second = fit(log, automatic=automatic)
    for end in (first, second):
        assert end["heard"] == pytest.approx(heard, nan_ok=True)
        assert epochs(end["rates"]) == RATES[logged]
    assert first["rates"] == second["rates"]
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize("policy", ["ignore", "bad"])
def test_row_10_what_is_not_finite_is_treated_alike(fit: Any, policy: str) -> None:
    first, second = fit(not_a_number_on_one, {**PLATEAU, "on_nonfinite": policy})
    assert (first["rates"], first["weights"]) == (second["rates"], second["weights"])
    assert epochs(first["rates"])[-1] == {"ignore": 0.1, "bad": 0.05}[policy]


@automatically
def test_row_10_several_validations_in_an_epoch(fit: Any, automatic: bool) -> None:
    def log(module: Any, rank: int) -> None:
        if rank == int(module.validations) % 2:
            module.log("val_loss", float(module.validations), batch_size=2)

    first, second = fit(log, automatic=automatic, max_epochs=2, val_check_interval=2)
    assert first == second
    assert first["heard"] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("rank", [0, 1])
def test_row_10_a_nearly_right_name_that_one_rank_logs(fit: Any, rank: int) -> None:
    def log(module: Any, here: int) -> None:
        module.log("val_acc", 1.0, batch_size=2)
        if here == rank:
            module.log("val/loss", float(module.current_epoch), batch_size=2)

    first, second = fit(log, monitor="val_loss")
    assert first == second
    assert epochs(first["rates"]) == [0.1, 0.1, 0.05, 0.025]


@pytest.mark.parametrize("rank", [0, 1])
def test_row_10_the_only_loss_is_that_of_one_rank(fit: Any, rank: int) -> None:
    def log(module: Any, here: int) -> None:
        if here == rank:
            module.log("val_loss", float(module.current_epoch), batch_size=2)

    first, second = fit(log, monitor=None)
    assert first == second
    assert epochs(first["rates"]) == [0.1, 0.1, 0.05, 0.025]


@pytest.mark.parametrize("rank", [0, 1])
def test_row_10_names_that_differ_between_the_ranks_end_both(fit: Any, rank: int) -> None:
    def log(module: Any, here: int) -> None:
        module.log("val/loss" if here == rank else "val-loss", 1.0, batch_size=2)

    with pytest.raises(Exception, match=r"say which with scheduler.monitor") as caught:
        fit(log)
    assert isinstance(caught.value, WiringError) or "WiringError" in str(caught.value)


class Score(torchmetrics.MeanMetric):
    higher_is_better = True


@pytest.mark.parametrize("rank", [0, 1])
def test_row_10_a_metric_that_one_rank_logs_tells_the_mode_to_both(fit: Any, rank: int) -> None:
    """More of it is better, which its name does not tell."""

    def own(module: Any) -> None:
        module.score = Score(sync_on_compute=False)

    def log(module: Any, here: int) -> None:
        if here == rank:
            module.score(float(module.current_epoch))
            module.log("val_score", module.score, batch_size=2)

    first, second = fit(log, monitor="val_score", own=own)
    assert first == second
    assert epochs(first["rates"]) == [0.1] * 4


@automatically
@pytest.mark.parametrize("monitor", ["val_loss", None, "val_nll"])
def test_row_10_a_metric_that_nobody_logs_ends_both(fit: Any, automatic: bool, monitor: str | None) -> None:
    def log(module: Any, rank: int) -> None:
        if rank:
            module.log("val_acc", 1.0, batch_size=2)

    with pytest.raises(
        Exception, match=r"reduce_lr_on_plateau (monitors|looks for)|logged no validation loss"
    ) as caught:
        fit(log, monitor=monitor, automatic=automatic)
    assert isinstance(caught.value, WiringError) or "WiringError" in str(caught.value)


# ------------------------------------------------------------------------------------- other ways


def _ranked(namespace: str) -> type:
    class Ranked(importlib.import_module(namespace).LightningModule):
        """As in `fit`, for processes that are spawned, which look it up by its name."""

        def __init__(self, folder: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.folder, self.rates = nn.Linear(4, 1), folder, []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return self.layer(batch).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            differing(self, self.global_rank)

        def on_train_end(self) -> None:
            ends = {"rates": self.rates, "weights": [p.tolist() for p in self.parameters()]}
            (Path(self.folder) / f"{self.global_rank}.json").write_text(json.dumps(ends))

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2)

        val_dataloader = train_dataloader

    return Ranked


for _namespace in ("lightning.pytorch", "pytorch_lightning"):
    _class = _ranked(_namespace)
    _class.__qualname__ = _class.__name__ = f"Ranked_{_namespace.replace('.', '_')}"
    globals()[_class.__name__] = _class


@pytest.mark.slow
def test_row_10_in_processes_that_are_spawned(pl: Any, ours: Any, trainer: Any, tmp_path: Path) -> None:
    module = globals()[f"Ranked_{pl.__name__.replace('.', '_')}"](str(tmp_path))
    callback = ours.ConfigureOptimizers(ADAM, PLATEAU, monitor="val_loss", verbose=False)
    settings = {"devices": 2, "strategy": "ddp_spawn", "use_distributed_sampler": False, "max_epochs": 4}
    trainer(**settings, callbacks=callback).fit(module)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert epochs(first["rates"]) == [0.1, 0.1, 0.05, 0.025]


def _sharded(
    rank: int, port: int, folder: Path, scripted: type, log: Any, make: Any, automatic: bool, path: Any
) -> None:
    """One of two processes of FSDP2; writes what it ends with, or its traceback."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    code = 1
    try:
        from torch.distributed.fsdp import fully_shard

        class Sharded(scripted):
            def configure_model(self) -> None:
                mesh = self.device_mesh["data_parallel"]
                fully_shard(self.layer, mesh=mesh)
                fully_shard(self, mesh=mesh)

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                log(self, rank)

            def on_train_end(self) -> None:
                groups = self.trainer.optimizers[0].param_groups
                weights = [p.full_tensor().tolist() for group in groups for p in group["params"]]
                ends = {"rates": self.rates, "weights": weights, "heard": [metric for *_, metric in self.stepped]}
                (folder / f"{rank}.json").write_text(json.dumps(ends))

        make().fit(Sharded(automatic=automatic), ckpt_path=path)
        code = 0
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


@pytest.fixture
def sharded(pl: Any, ours: Any, scripted: type, trainer: Any, tmp_path: Path) -> Any:
    """As `fit`, under FSDP2; returns each rank's end, or its traceback."""
    importlib.import_module("torch.distributed.fsdp")  # the forked processes inherit it

    def run(
        log: Any,
        scheduler: Any = PLATEAU,
        *,
        optimizer: Any = ADAM,
        monitor: str | None = "val_loss",
        automatic: bool = True,
        path: Any = None,
        saver: Any = None,
        on_resume: str | None = None,
        **arguments: Any,
    ) -> list[Any]:
        def make() -> Any:
            callback = ours.ConfigureOptimizers(
                optimizer, scheduler, monitor=monitor, on_resume=on_resume, verbose=False
            )
            callbacks = [callback, *([] if saver is None else [saver])]
            strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
            given = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False, "max_epochs": 4}
            given["enable_checkpointing"] = saver is not None
            return trainer(**{**given, **arguments}, callbacks=callbacks)

        for told in [*tmp_path.glob("?.json"), *tmp_path.glob("?.txt")]:
            told.unlink()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        context = multiprocessing.get_context("fork")
        given = (port, tmp_path, scripted, log, make, automatic, path)
        children = [context.Process(target=_sharded, args=(rank, *given)) for rank in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
            if child.is_alive():
                child.kill()
        return [
            (tmp_path / f"{rank}.txt").read_text()
            if (tmp_path / f"{rank}.txt").exists()
            else json.loads((tmp_path / f"{rank}.json").read_text())
            for rank in range(2)
        ]

    return run


@automatically
@each_log
def test_row_10_shards_agree_whatever_the_ranks_log(sharded: Any, logged: str, automatic: bool) -> None:
    log, heard = LOGGED[logged]
    first, second = sharded(log, automatic=automatic)
    assert isinstance(first, dict), first
    assert first["heard"] == pytest.approx(heard, nan_ok=True)
    assert epochs(first["rates"]) == RATES[logged]
    assert (first["rates"], first["weights"]) == (second["rates"], second["weights"])


def test_row_10_a_metric_that_nobody_logs_ends_both_shards(sharded: Any) -> None:
    for end in sharded(differing, monitor="val_nll"):
        assert "WiringError: reduce_lr_on_plateau monitors 'val_nll'" in end


@pytest.mark.parametrize("scheduler", [PLATEAU, {**PLATEAU, "warmup_steps": 6}], ids=["plain", "warmed up"])
def test_row_10_shards_that_go_on_equal_the_uninterrupted(
    pl: Any, sharded: Any, tmp_path: Path, scheduler: Any
) -> None:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1)
    whole, _ = sharded(differing, scheduler, saver=saver)
    assert isinstance(whole, dict), whole
    path = tmp_path / "saved" / "epoch=1.ckpt"
    first, second = sharded(differing, scheduler, path=path)
    assert isinstance(first, dict), first
    assert first == second
    assert first["rates"] == whole["rates"][8:]
    assert first["weights"] == whole["weights"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"scheduler": {"name": "cosine_annealing_lr", "T_max": 4}}, "the schedule of the checkpoint is reduce_lr_on"),
        ({"optimizer": {"name": "adamw", "lr": 0.1}}, "the optimizer of the checkpoint is adam,"),
        ({"on_resume": "reset_all"}, "on_resume: reset_all cannot be had with ModelParallelStrategy"),
    ],
    ids=["schedule", "optimizer of the same state", "a policy"],
)
def test_row_10_shards_of_another_choice_are_refused_by_name(
    pl: Any, sharded: Any, tmp_path: Path, other: Any, says: str
) -> None:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1)
    sharded(differing, saver=saver, max_epochs=1)
    path = tmp_path / "saved" / "epoch=0.ckpt"
    monitor = None if "scheduler" in other else "val_loss"
    for end in sharded(differing, path=path, monitor=monitor, **other):
        assert f"WiringError: {says}" in end
