"""Two processes: both ranks take the same plateau steps, whatever each rank logs."""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import socket
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn

from optplug.errors import WiringError
from support import PLATEAU, needs_fsdp2_on_cpu

pytestmark = [
    pytest.mark.timeout(90),
    # The tests log different values on the ranks on purpose.
    pytest.mark.filterwarnings("ignore:It is recommended to use .self.log.*sync_dist=True"),
    # ddp_fork forks a process that has threads; Python 3.12 and later warn.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # The resumed runs have no ModelCheckpoint.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
]
ADAM = {"name": "adam", "lr": 0.1}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def fit(scripted_module: type, optplug_lightning: Any, trainer: Any, tmp_path: Path) -> Any:
    """Fits on two ranks, each of which calls `log(module, rank)` in validation; returns the result of each rank."""

    class RankedModule(scripted_module):
        log_function: Any = None

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            type(self).log_function(self, self.global_rank)

        def on_train_end(self) -> None:
            result = {"lrs": self.lrs, "weights": torch.cat([p.flatten() for p in self.parameters()]).tolist()}
            result["metrics"] = [metric for *_, metric in self.scheduler_steps]
            (tmp_path / f"{self.global_rank}.json").write_text(json.dumps(result))

    def run(log: Any, scheduler: Any = PLATEAU, monitor: str | None = "val_loss", **arguments: Any) -> list[Any]:
        RankedModule.log_function = staticmethod(log)
        callback = optplug_lightning.ConfigureOptimizers(ADAM, scheduler, monitor=monitor, verbose=False)
        strategy = {"devices": 2, "strategy": "ddp_fork", "callbacks": callback, "use_distributed_sampler": False}
        module = RankedModule(automatic=arguments.pop("automatic", True))
        if prepare := arguments.pop("prepare", None):
            prepare(module)
        trainer(**{**strategy, "max_epochs": 4, **arguments}).fit(module)
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    return run


def log_different_values(module: Any, rank: int) -> None:
    """The value of rank 0 decreases, and that of rank 1 increases faster."""
    epoch = module.current_epoch
    module.log("val_loss", float(-epoch if rank == 0 else 3 * epoch), batch_size=2)


@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_ranks_with_different_values_agree(fit: Any, monitor: str | None):
    first, second = fit(log_different_values, monitor=monitor)
    assert first == second
    assert first["metrics"] == [0.0, 1.0, 2.0, 3.0]
    assert first["lrs"] == [0.1] * 8 + [0.05] * 4 + [0.025] * 4


def test_ranks_agree_during_warmup(fit: Any):
    first, second = fit(log_different_values, {**PLATEAU, "warmup_steps": 6})
    assert first == second
    assert first["lrs"][:2] == pytest.approx([0.1 / 6, 0.1 * 11 / 36])
    assert first["lrs"][-1] == 0.025


@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_metric_of_rank_zero_is_observed_on_both_ranks(fit: Any, monitor: str | None):
    def log(module: Any, rank: int) -> None:
        if rank == 0:
            module.log("val_loss", float(module.current_epoch), batch_size=2, rank_zero_only=True)

    first, second = fit(log, monitor=monitor)
    assert first == second
    assert first["metrics"] == [0.0, 1.0, 2.0, 3.0]


def test_nan_on_one_rank_is_a_bad_value_on_both(fit: Any):
    def log(module: Any, rank: int) -> None:
        module.log(
            "val_loss", float("nan") if rank and module.current_epoch else 1.0 - module.current_epoch, batch_size=2
        )

    first, second = fit(log)
    assert first["lrs"] == second["lrs"] == [0.1] * 8 + [0.05] * 4 + [0.025] * 4
    assert first["weights"] == second["weights"]


def test_metric_that_no_rank_logs_raises_on_both(fit: Any):
    with pytest.raises(Exception, match=r"monitors 'val_loss2' .*; did you mean 'val_loss'") as caught:
        fit(log_different_values, monitor="val_loss2")
    assert isinstance(caught.value, WiringError) or "WiringError" in str(caught.value)


def test_schedule_without_metric_steps_equally_on_both_ranks(fit: Any):
    first, second = fit(
        log_different_values, {"name": "cosine_annealing_lr", "T_max": 16, "interval": "step"}, monitor=None
    )
    assert first == second
    assert len(first["metrics"]) == 16


# -------------------------------------------------------------------------- different values on the ranks


def log_on_rank_zero_only(module: Any, rank: int) -> None:
    if rank == 0:
        module.log("val_loss", float(module.current_epoch), batch_size=2, rank_zero_only=True)


def log_on_alternating_ranks(module: Any, rank: int) -> None:
    if rank == module.current_epoch % 2:
        module.log("val_loss", float(module.current_epoch), batch_size=2)


def log_on_rank_one_sometimes(module: Any, rank: int) -> None:
    """The value of rank 1, which it logs in epochs 1 and 3, decreases the mean."""
    if rank == 0 or module.current_epoch in (1, 3):
        module.log("val_loss", float(module.current_epoch if rank == 0 else -10 * module.current_epoch), batch_size=2)


def log_nan_on_rank_one(module: Any, rank: int) -> None:
    bad = rank == 1 and module.current_epoch == 2
    module.log("val_loss", math.nan if bad else -float(module.current_epoch), batch_size=2)


def log_opposite_infinities(module: Any, rank: int) -> None:
    value = -math.inf if rank else math.inf
    module.log("val_loss", value if module.current_epoch == 2 else -float(module.current_epoch), batch_size=2)


LOG_FUNCTIONS: dict[str, Any] = {
    "different values": (log_different_values, [0.0, 1.0, 2.0, 3.0]),
    "rank zero only": (log_on_rank_zero_only, [0.0, 1.0, 2.0, 3.0]),
    "alternating ranks": (log_on_alternating_ranks, [0.0, 1.0, 2.0, 3.0]),
    "rank one sometimes": (log_on_rank_one_sometimes, [0.0, -4.5, 2.0, -13.5]),
    "NaN on one rank": (log_nan_on_rank_one, [0.0, -1.0, math.nan, -3.0]),
    "opposite infinities": (log_opposite_infinities, [0.0, -1.0, math.nan, -3.0]),
}
EXPECTED_LRS = {
    "different values": [0.1, 0.1, 0.05, 0.025],
    "rank zero only": [0.1, 0.1, 0.05, 0.025],
    "alternating ranks": [0.1, 0.1, 0.05, 0.025],
    "rank one sometimes": [0.1, 0.1, 0.1, 0.05],
    "NaN on one rank": [0.1, 0.1, 0.1, 0.05],
    "opposite infinities": [0.1, 0.1, 0.1, 0.05],
}
automatic_and_manual = pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
all_log_functions = pytest.mark.parametrize("case", LOG_FUNCTIONS)


def lrs_by_epoch(lrs: list[float], batches: int = 4) -> list[float]:
    return [lrs[i] for i in range(0, len(lrs), batches)]


@automatic_and_manual
@all_log_functions
def test_ranks_agree_whatever_each_logs(fit: Any, case: str, automatic: bool) -> None:
    log, metrics = LOG_FUNCTIONS[case]
    first, second = fit(log, automatic=automatic)
    for result in (first, second):
        assert result["metrics"] == pytest.approx(metrics, nan_ok=True)
        assert lrs_by_epoch(result["lrs"]) == EXPECTED_LRS[case]
    assert first["lrs"] == second["lrs"]
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize("policy", ["ignore", "bad"])
def test_nonfinite_values_are_treated_equally_on_both_ranks(fit: Any, policy: str) -> None:
    first, second = fit(log_nan_on_rank_one, {**PLATEAU, "on_nonfinite": policy})
    assert (first["lrs"], first["weights"]) == (second["lrs"], second["weights"])
    assert lrs_by_epoch(first["lrs"])[-1] == {"ignore": 0.1, "bad": 0.05}[policy]


@automatic_and_manual
def test_ranks_agree_with_several_validations_per_epoch(fit: Any, automatic: bool) -> None:
    def log(module: Any, rank: int) -> None:
        if rank == int(module.validations) % 2:
            module.log("val_loss", float(module.validations), batch_size=2)

    first, second = fit(log, automatic=automatic, max_epochs=2, val_check_interval=2)
    assert first == second
    assert first["metrics"] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("rank", [0, 1])
def test_near_match_of_the_monitor_logged_by_one_rank_is_used(fit: Any, rank: int) -> None:
    def log(module: Any, here: int) -> None:
        module.log("val_acc", 1.0, batch_size=2)
        if here == rank:
            module.log("val/loss", float(module.current_epoch), batch_size=2)

    first, second = fit(log, monitor="val_loss")
    assert first == second
    assert lrs_by_epoch(first["lrs"]) == [0.1, 0.1, 0.05, 0.025]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_validation_loss_logged_by_one_rank_is_used(fit: Any, rank: int) -> None:
    def log(module: Any, here: int) -> None:
        if here == rank:
            module.log("val_loss", float(module.current_epoch), batch_size=2)

    first, second = fit(log, monitor=None)
    assert first == second
    assert lrs_by_epoch(first["lrs"]) == [0.1, 0.1, 0.05, 0.025]


@pytest.mark.parametrize("rank", [0, 1])
def test_two_near_matches_on_different_ranks_raise_on_both(fit: Any, rank: int) -> None:
    def log(module: Any, here: int) -> None:
        module.log("val/loss" if here == rank else "val-loss", 1.0, batch_size=2)

    with pytest.raises(Exception, match=r"set scheduler.monitor") as caught:
        fit(log)
    assert isinstance(caught.value, WiringError) or "WiringError" in str(caught.value)


class Score(torchmetrics.MeanMetric):
    higher_is_better = True


@pytest.mark.parametrize("rank", [0, 1])
def test_metric_object_on_one_rank_gives_the_mode_on_both(fit: Any, rank: int) -> None:
    """A higher value is better; the name of the metric does not show it."""

    def prepare(module: Any) -> None:
        module.score = Score(sync_on_compute=False)

    def log(module: Any, here: int) -> None:
        if here == rank:
            module.score(float(module.current_epoch))
            module.log("val_score", module.score, batch_size=2)

    first, second = fit(log, monitor="val_score", prepare=prepare)
    assert first == second
    assert lrs_by_epoch(first["lrs"]) == [0.1] * 4


@automatic_and_manual
@pytest.mark.parametrize("monitor", ["val_loss", None, "val_nll"])
def test_metric_that_no_rank_logs_raises_on_both_in_each_mode(fit: Any, automatic: bool, monitor: str | None) -> None:
    def log(module: Any, rank: int) -> None:
        if rank:
            module.log("val_acc", 1.0, batch_size=2)

    with pytest.raises(Exception, match=r"reduce_lr_on_plateau monitors|the validation logged no loss") as caught:
        fit(log, monitor=monitor, automatic=automatic)
    assert isinstance(caught.value, WiringError) or "WiringError" in str(caught.value)


def test_warning_names_a_parameter_unfrozen_after_the_module_was_wrapped(fit: Any) -> None:
    def unfreeze(module: Any, rank: int) -> None:
        module.layer.bias.requires_grad_(True)
        warnings.filterwarnings("error", message="layer.bias: frozen when")
        module.log("val_loss", 1.0)

    with pytest.raises(Exception, match=r"layer\.bias: frozen when DistributedDataParallel wrapped the module"):
        fit(unfreeze, prepare=lambda module: module.layer.bias.requires_grad_(False))


# ------------------------------------------------------------------------------- spawned processes and FSDP2


def _make_ranked_module(import_name: str) -> type:
    class RankedModule(importlib.import_module(import_name).LightningModule):
        """The module of `fit` at module level, because spawned processes unpickle it by its name."""

        def __init__(self, folder: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.folder, self.lrs = nn.Linear(4, 1), folder, []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return self.layer(batch).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            log_different_values(self, self.global_rank)

        def on_train_end(self) -> None:
            result = {"lrs": self.lrs, "weights": [p.tolist() for p in self.parameters()]}
            (Path(self.folder) / f"{self.global_rank}.json").write_text(json.dumps(result))

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2)

        val_dataloader = train_dataloader

    return RankedModule


for _import_name in ("lightning.pytorch", "pytorch_lightning"):
    _class = _make_ranked_module(_import_name)
    _class.__qualname__ = _class.__name__ = f"Ranked_{_import_name.replace('.', '_')}"
    globals()[_class.__name__] = _class


@pytest.mark.slow
@pytest.mark.both_import_names
def test_ranks_agree_in_spawned_processes(pl: Any, optplug_lightning: Any, trainer: Any, tmp_path: Path) -> None:
    module = globals()[f"Ranked_{pl.__name__.replace('.', '_')}"](str(tmp_path))
    callback = optplug_lightning.ConfigureOptimizers(ADAM, PLATEAU, monitor="val_loss", verbose=False)
    settings = {"devices": 2, "strategy": "ddp_spawn", "use_distributed_sampler": False, "max_epochs": 4}
    trainer(**settings, callbacks=callback).fit(module)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert lrs_by_epoch(first["lrs"]) == [0.1, 0.1, 0.05, 0.025]


def _run_sharded_rank(
    rank: int, port: int, folder: Path, scripted_module: type, log: Any, make: Any, automatic: bool, path: Any
) -> None:
    """Run one of two FSDP2 processes. It writes its result to a file, or its traceback if it fails."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    code = 1
    try:
        from torch.distributed.fsdp import fully_shard

        class Sharded(scripted_module):
            def configure_model(self) -> None:
                mesh = self.device_mesh["data_parallel"]
                fully_shard(self.layer, mesh=mesh)
                fully_shard(self, mesh=mesh)

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                log(self, rank)

            def on_train_end(self) -> None:
                groups = self.trainer.optimizers[0].param_groups
                weights = [p.full_tensor().tolist() for group in groups for p in group["params"]]
                result = {
                    "lrs": self.lrs,
                    "weights": weights,
                    "metrics": [metric for *_, metric in self.scheduler_steps],
                }
                (folder / f"{rank}.json").write_text(json.dumps(result))

        make().fit(Sharded(automatic=automatic), ckpt_path=path)
        code = 0
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


@pytest.fixture
def fit_sharded(pl: Any, optplug_lightning: Any, scripted_module: type, trainer: Any, tmp_path: Path) -> Any:
    """Like `fit`, with FSDP2; returns for each rank the result, or the traceback if it failed."""
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
            callback = optplug_lightning.ConfigureOptimizers(
                optimizer, scheduler, monitor=monitor, on_resume=on_resume, verbose=False
            )
            callbacks = [callback, *([] if saver is None else [saver])]
            strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
            given = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False, "max_epochs": 4}
            given["enable_checkpointing"] = saver is not None
            return trainer(**{**given, **arguments}, callbacks=callbacks)

        for file in [*tmp_path.glob("?.json"), *tmp_path.glob("?.txt")]:
            file.unlink()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        context = multiprocessing.get_context("fork")
        given = (port, tmp_path, scripted_module, log, make, automatic, path)
        children = [context.Process(target=_run_sharded_rank, args=(rank, *given)) for rank in range(2)]
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


@needs_fsdp2_on_cpu
@automatic_and_manual
@all_log_functions
def test_sharded_ranks_agree_whatever_each_logs(fit_sharded: Any, case: str, automatic: bool) -> None:
    log, metrics = LOG_FUNCTIONS[case]
    first, second = fit_sharded(log, automatic=automatic)
    assert isinstance(first, dict), first
    assert first["metrics"] == pytest.approx(metrics, nan_ok=True)
    assert lrs_by_epoch(first["lrs"]) == EXPECTED_LRS[case]
    assert (first["lrs"], first["weights"]) == (second["lrs"], second["weights"])


@needs_fsdp2_on_cpu
def test_metric_that_no_rank_logs_raises_on_both_sharded_ranks(fit_sharded: Any) -> None:
    for result in fit_sharded(log_different_values, monitor="val_nll"):
        assert "WiringError: reduce_lr_on_plateau monitors 'val_nll'" in result


@needs_fsdp2_on_cpu
@pytest.mark.parametrize("scheduler", [PLATEAU, {**PLATEAU, "warmup_steps": 6}], ids=["no warmup", "warmup"])
def test_sharded_resume_equals_uninterrupted_run(pl: Any, fit_sharded: Any, tmp_path: Path, scheduler: Any) -> None:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1)
    uninterrupted, _ = fit_sharded(log_different_values, scheduler, saver=saver)
    assert isinstance(uninterrupted, dict), uninterrupted
    path = tmp_path / "saved" / "epoch=1.ckpt"
    first, second = fit_sharded(log_different_values, scheduler, path=path)
    assert isinstance(first, dict), first
    assert first == second
    assert first["lrs"] == uninterrupted["lrs"][8:]
    assert first["weights"] == uninterrupted["weights"]


@needs_fsdp2_on_cpu
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": {"name": "cosine_annealing_lr", "T_max": 4}}, "the schedule of the checkpoint is reduce_lr_on"),
        ({"optimizer": {"name": "adamw", "lr": 0.1}}, "the optimizer of the checkpoint is adam,"),
        ({"on_resume": "reset_all"}, "on_resume: reset_all is not supported with ModelParallelStrategy"),
    ],
    ids=["schedule", "optimizer with the same states", "policy"],
)
def test_sharded_resume_with_another_configuration_raises(
    pl: Any, fit_sharded: Any, tmp_path: Path, changes: Any, message: str
) -> None:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1)
    fit_sharded(log_different_values, saver=saver, max_epochs=1)
    path = tmp_path / "saved" / "epoch=0.ckpt"
    monitor = None if "scheduler" in changes else "val_loss"
    for result in fit_sharded(log_different_values, path=path, monitor=monitor, **changes):
        assert f"WiringError: {message}" in result
