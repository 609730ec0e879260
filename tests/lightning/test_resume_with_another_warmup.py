"""`on_resume: override_hparams` with another warmup: the rates are those of an uninterrupted run with the new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.optim.lr_scheduler import ExponentialLR

from optplug.errors import ConfigError
from optplug.registry.specs import SchedulerSpec
from support import SGD, scheduler_of

COSINE = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
STEP = {"name": "step_lr", "step_size": 3, "gamma": 0.5, "interval": "step"}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 9}
RATIO = {**COSINE, "warmup": {"ratio": 0.25}}
AFTER = {"ratio": 0.25, "schedule": "after"}
EPOCHS, LONGER = 4, 6

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:reduce_lr_on_plateau misses a value of its metric"),
]


def after(steps: int) -> dict[str, Any]:
    return {"steps": steps, "schedule": "after"}


@pytest.fixture
def train(fit: Any, scripted_module: type, save_every_checkpoint: Any, quiet_callback: Any, tmp_path: Path) -> Any:
    """A function that returns the trainer and the rates, from the checkpoint after `step` if it is given."""

    def run(schedule: Any, epochs: int, step: int | None = None, **given: Any) -> Any:
        if step is not None:
            given = {"ckpt_path": tmp_path / f"step={step}.ckpt", "on_resume": "override_hparams", **given}
        elif epochs == EPOCHS:
            saver = save_every_checkpoint(every_n_train_steps=1, save_on_train_epoch_end=False)
            callback = quiet_callback(SGD, schedule, param_groups=given.pop("param_groups", None))
            given |= {"callbacks": [callback, saver], "enable_checkpointing": True}
        module = scripted_module(val={"val_loss": [1.0]})
        made, _ = fit(SGD, schedule, max_epochs=epochs, module=module, **given)
        return made, module.lrs

    return run


CHANGES = {
    "longer training": (RATIO, RATIO),
    "longer warmup": ({**COSINE, "warmup_steps": 2}, {**COSINE, "warmup_steps": 5}),
    "shorter warmup": ({**COSINE, "warmup_steps": 8}, {**COSINE, "warmup_steps": 3}),
    "no schedule": ({"warmup": {"ratio": 0.25}}, {"warmup": {"ratio": 0.25}}),
    "plateau": ({**PLATEAU, "warmup": {"ratio": 0.25}}, {**PLATEAU, "warmup": {"ratio": 0.25}}),
    "longer training, after": ({**COSINE, "warmup": AFTER}, {**COSINE, "warmup": AFTER}),
    "during to after": ({**COSINE, "warmup_steps": 8}, {**COSINE, "warmup": after(8)}),
    "after to during": ({**STEP, "warmup": after(8)}, {**STEP, "warmup_steps": 8}),
    "shorter warmup, after": ({**STEP, "warmup": after(7)}, {**STEP, "warmup": after(4)}),
    "longer warmup, after": ({**STEP, "warmup": after(4)}, {**STEP, "warmup": after(9)}),
    "every second step": (
        {**STEP, "frequency": 2, "warmup": after(4)},
        {**STEP, "frequency": 2, "warmup": after(7)},
    ),
    "epochs": (
        {**STEP, "interval": "epoch", "step_size": 1, "warmup": after(2)},
        {**STEP, "interval": "epoch", "step_size": 1, "warmup": after(7)},
    ),
}
changes = pytest.mark.parametrize(("before", "now"), CHANGES.values(), ids=CHANGES)


@changes
@pytest.mark.parametrize("step", [1, 4, 6, 10, 13])
def test_rates_equal_those_of_an_uninterrupted_run(train: Any, before: Any, now: Any, step: int) -> None:
    train(before, EPOCHS)
    _, whole = train(now, LONGER)
    _, rates = train(now, LONGER, step)
    assert rates == pytest.approx(whole[step:], rel=1e-9)
    assert len(set(whole)) > 1


@pytest.mark.parametrize("name", ["longer training", "longer training, after"])
def test_schedules_of_groups_follow_their_warmup_too(train: Any, name: str) -> None:
    schedule, _ = CHANGES[name]
    groups = {"param_groups": [{"match": "*.bias", "scheduler": schedule}]}
    train(COSINE, EPOCHS, **groups)
    resumed, _ = train(COSINE, LONGER, 10, **groups)
    bias = scheduler_of(resumed).schedules["*.bias"]
    assert bias.warmup_steps == 6
    assert bias.scheduler.last_epoch == 24 - 6 * bias.delays_schedule


def test_schedule_without_a_closed_form_cannot_start_at_another_step(train: Any, register_schedulers: Any) -> None:
    register_schedulers(SchedulerSpec("torch_exponential_lr", ExponentialLR, interval="step"))
    schedule = {"name": "torch_exponential_lr", "gamma": 0.9}
    train({**schedule, "warmup_steps": 4}, EPOCHS)
    with pytest.raises(ConfigError, match=r"another warmup.*ExponentialLR.*on_resume: reset_scheduler"):
        train({**schedule, "warmup": after(4)}, LONGER, 10)
