"""Optimizers whose parameter groups have no learning rate: they train, and are reported, logged and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optplug import OptimizerSpec
from support import QUIET_NO_SANITY, printed_lines


class Sets(torch.optim.SGD):
    """Sets its learning rate itself; the groups have lr=None, or no lr.

    Args:
        has_key: whether the groups have lr=None.
        first: the index of the first group without a learning rate.
    """

    def __init__(self, params: Any, lr: float | None = None, *, has_key: bool = True, first: int = 0) -> None:
        super().__init__(params, 0.1)
        for group in self.param_groups[first:]:
            group["lr"] = lr
            if not has_key:
                del group["lr"]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad, alpha=0.1)
        return loss


@pytest.mark.parametrize("has_key", [True, False], ids=["lr=None", "no lr"])
@pytest.mark.parametrize("policy", ["keep", "override_hparams", "reset_all"])
def test_optimizer_without_learning_rate_trains_and_resumes(
    register_optimizers: Any,
    optplug_lightning: Any,
    scripted_module: Any,
    trainer: Any,
    pl: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    has_key: bool,
    policy: str,
):
    register_optimizers(OptimizerSpec("sets", Sets))

    class Model(scripted_module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

    def fit(folder: str, epochs: int, **kwargs: Any) -> Any:
        configure = optplug_lightning.ConfigureOptimizers({"name": "sets", "has_key": has_key}, on_resume=policy)
        monitor = pl.callbacks.LearningRateMonitor()
        logger = pl.loggers.CSVLogger(tmp_path / folder)
        module = Model()
        settings = {**QUIET_NO_SANITY, "logger": logger, "callbacks": [configure, monitor], "log_every_n_steps": 1}
        made = trainer(**{**settings, "max_epochs": epochs})
        made.fit(module, **kwargs)
        assert "_extract_lr" not in vars(monitor)
        assert configure.fit_state.changed_monitors == []
        assert not any(monitor.lrs.values())
        return made, module

    made, module = fit("first", 1)
    before = module.layer.weight.detach().clone()
    made.save_checkpoint(tmp_path / "saved.ckpt")
    assert any(line.startswith("optimizer sets from plugin") for line in printed_lines(capsys))
    _, resumed = fit("second", 2, ckpt_path=tmp_path / "saved.ckpt")
    _, uninterrupted = fit("third", 2)
    assert torch.equal(resumed.layer.weight, uninterrupted.layer.weight)
    assert not torch.equal(resumed.layer.weight, before)


def test_monitor_logs_the_groups_with_a_learning_rate(
    register_optimizers: Any, optplug_lightning: Any, scripted_module: Any, trainer: Any, pl: Any, tmp_path: Path
):
    register_optimizers(OptimizerSpec("sets", Sets))
    configure = optplug_lightning.ConfigureOptimizers(
        {"name": "sets", "has_key": False, "first": 1}, param_groups=[{"match": "*.bias"}], verbose=False
    )
    monitor = pl.callbacks.LearningRateMonitor("step")
    logger = pl.loggers.CSVLogger(tmp_path)
    made = trainer(
        **{**QUIET_NO_SANITY, "logger": logger, "log_every_n_steps": 1, "max_epochs": 1},
        callbacks=[configure, monitor],
    )
    made.fit(scripted_module())
    (logged,) = (rates for name, rates in monitor.lrs.items() if rates)
    assert logged == [0.1] * 4
