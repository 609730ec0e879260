"""Two processes: the ranks agree about every step of a plateau, whatever each of them logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optplug.errors import WiringError

pytestmark = [
    pytest.mark.timeout(90),
    # Values that differ between the ranks are what these tests are about.
    pytest.mark.filterwarnings("ignore:It is recommended to use .self.log.*sync_dist=True"),
    # Forked processes report that their parent has threads; that is how ddp_fork works.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
ADAM = {"name": "adam", "lr": 0.1}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def fit(scripted: type, ours: Any, trainer: Any, tmp_path: Path) -> Any:
    """Fits on two ranks, which log what `log(module, rank)` logs in each validation; returns each rank's end."""

    class Ranked(scripted):  # type: ignore[misc,valid-type]
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
        trainer(**{**strategy, "max_epochs": 4, **arguments}).fit(Ranked())
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
