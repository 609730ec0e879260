"""A training that is resumed with another length: `wsd` moves its decay, without a jump of the learning rate."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from support import BATCHES_PER_EPOCH, scheduler_of

SGD = {"name": "sgd", "lr": 1.0}
WSD = {"name": "wsd", "total_steps": "auto", "decay_steps": 4, "warmup_steps": 2}
EPOCHS = 4
STEPS = EPOCHS * BATCHES_PER_EPOCH
"""The decay begins after step 12 of 16."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*callbacks used to create", "ignore:You're resuming from a checkpoint that ended before the epoch ended"
)


@pytest.fixture
def resumed(fit: Any, pl: Any, save_every_checkpoint: Any, optplug_lightning: Any, tmp_path: Path) -> Any:
    """A function that resumes at a step with another number of epochs; it returns the trainer and all rates."""

    def run(scheduler: Any, step: int, epochs: int, **given: Any) -> Any:
        saver = save_every_checkpoint(every_n_train_steps=1, save_on_train_epoch_end=False)
        configure = optplug_lightning.ConfigureOptimizers(SGD, scheduler, verbose=False)
        _, first = fit(SGD, scheduler, callbacks=[configure, saver], enable_checkpointing=True, max_epochs=EPOCHS)
        made, second = fit(SGD, scheduler, max_epochs=epochs, ckpt_path=tmp_path / f"step={step}.ckpt", **given)
        return made, first.lrs[:step] + second.lrs

    return run


def uninterrupted(fit: Any, scheduler: Any, epochs: int) -> list[float]:
    return list(fit(SGD, scheduler, max_epochs=epochs)[1].lrs)


@pytest.mark.parametrize("step", [1, 4, 6, 11, 12])
@pytest.mark.parametrize("epochs", [5, 8])
def test_longer_training_extends_the_constant_part(
    fit: Any, resumed: Any, step: int, epochs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    made, lrs = resumed(WSD, step, epochs, verbose=True)
    assert lrs == uninterrupted(fit, WSD, epochs)
    assert scheduler_of(made).total_steps == epochs * BATCHES_PER_EPOCH == scheduler_of(made).last_epoch
    message = f"scheduler.total_steps is extended from {STEPS} to {epochs * BATCHES_PER_EPOCH}, to fit this training"
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scheduler", "total"),
    [
        ({**WSD, "warmup": {"steps": 3}}, 24),
        ({**WSD, "warmup": {"steps": 3, "schedule": "after"}}, 21),
        ({**WSD, "warmup": {"ratio": 0.125, "schedule": "after"}}, 22),  # the warmup has the length in the checkpoint
        ({**WSD, "total_steps": {"ratio": 1}, "warmup_steps": {"epochs": 0.5}}, 24),
        ({**WSD, "total_steps": {"ratio": 0.75}, "decay_steps": {"steps": 2}}, 18),
        ({**WSD, "frequency": 2, "decay_steps": 2}, 12),
    ],
    ids=str,
)
def test_warmups_units_and_frequencies_are_taken_into_account(resumed: Any, scheduler: Any, total: int) -> None:
    made, _ = resumed(scheduler, 8, 6)
    assert scheduler_of(made).total_steps == total


def test_ratio_of_the_decay_comes_from_the_checkpoint(resumed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = resumed({**WSD, "decay_steps": {"ratio": 0.25}}, 8, 8, verbose=True)
    assert (scheduler_of(made).total_steps, scheduler_of(made).decay_steps) == (32, 4)
    assert "decay_steps is 4: from the checkpoint; this training has 8" in capsys.readouterr().out


def test_shorter_training_moves_the_decay_to_its_end(
    fit: Any, resumed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made, lrs = resumed(WSD, 6, 3, verbose=True)
    assert lrs == uninterrupted(fit, WSD, 3)
    assert scheduler_of(made).total_steps == 12
    assert "scheduler.total_steps is shortened from 16 to 12, to fit this training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "epochs", "rest"),
    [(13, 8, "the learning rate then stays at its last value"), (10, 3, "the training ends before it")],
)
def test_schedule_whose_decay_has_begun_keeps_its_length_and_warns(
    fit: Any, resumed: Any, step: int, epochs: int, rest: str
) -> None:
    with pytest.warns(
        UserWarning, match=f"^scheduler.total_steps: the schedule of the checkpoint has 16 steps.*{rest}"
    ):
        made, lrs = resumed(WSD, step, epochs)
    assert scheduler_of(made).total_steps == STEPS
    whole = uninterrupted(fit, WSD, EPOCHS)
    assert lrs[:STEPS] == whole[: len(lrs)]
    assert set(lrs[STEPS:]) <= {0.0}


@pytest.mark.parametrize(
    "scheduler",
    [{**WSD, "total_steps": STEPS}, {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}],
    ids=["given as a number", "cosine"],
)
def test_other_lengths_come_from_the_checkpoint_without_a_warning(resumed: Any, scheduler: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="scheduler")
        made, _ = resumed(scheduler, 6, 8)
    assert scheduler_of(made).state_dict().get("total_steps", STEPS) == STEPS


@pytest.mark.parametrize(("policy", "total"), [("override_hparams", 32), ("reset_scheduler", 26), ("reset_all", 26)])
def test_other_policies_take_the_length_of_the_configuration(resumed: Any, policy: str, total: int) -> None:
    made, _ = resumed(WSD, 6, 8, on_resume=policy)
    assert scheduler_of(made).total_steps == total


def test_extended_schedule_is_restored_from_its_own_checkpoint(fit: Any, resumed: Any, tmp_path: Path) -> None:
    made, lrs = resumed(WSD, 6, 6)
    made.save_checkpoint(tmp_path / "end.ckpt")
    again, _ = fit(SGD, WSD, max_epochs=6, ckpt_path=tmp_path / "end.ckpt")
    assert scheduler_of(again).total_steps == 24
    assert len(lrs) == 24
