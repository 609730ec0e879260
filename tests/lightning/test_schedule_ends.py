"""What a schedule does after its end: in a training that is resumed with more epochs, and in the curves of a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optplug.config.build import parse_and_check
from optplug.config.lr_curves import dummy_groups, lr_curves
from optplug.config.training_length import EpochSteps, TrainingLength, resolve_setup
from optplug.errors import ConfigError
from support import BATCHES_PER_EPOCH, scheduler_of

SGD = {"name": "sgd", "lr": 0.3, "momentum": 0.9}
EPOCHS, LONGER = 4, 6
STEPS = EPOCHS * BATCHES_PER_EPOCH
STEP = {"interval": "step"}
WARM = {"name": "linear_lr", "length": 5, "start_factor": 0.1}
COSINE = {"name": "cosine_annealing_lr"}
WSD = {"name": "wsd", "decay_steps": 3}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*callbacks used to create", "ignore:You're resuming from a checkpoint that ended before the epoch ended"
)


@pytest.fixture
def resumed(fit: Any, save_every_checkpoint: Any, optplug_lightning: Any, tmp_path: Path) -> Any:
    """A function that trains, and resumes with more epochs at the end or at a step; it returns trainer and all rates.

    The last rate is that after the training.
    """

    def run(scheduler: Any, step: int = STEPS, rule: Any = None, **given: Any) -> Any:
        rules = None if rule is None else [{"match": "layer.bias", **rule}]
        saver = save_every_checkpoint(every_n_train_steps=1, save_on_train_epoch_end=False)
        configure = optplug_lightning.ConfigureOptimizers(SGD, scheduler, param_groups=rules, verbose=False)
        _, first = fit(SGD, None, callbacks=[configure, saver], enable_checkpointing=True, max_epochs=EPOCHS)
        configure = optplug_lightning.ConfigureOptimizers(SGD, scheduler, param_groups=rules, **given)
        path = tmp_path / f"step={step}.ckpt"
        made, second = fit(SGD, None, callbacks=[configure], max_epochs=LONGER, ckpt_path=path)
        groups = made.optimizers[0].param_groups
        return made, [*first.lrs[:step], *second.lrs, float(groups[0]["lr"])], float(groups[-1]["lr"])

    return run


def curves(scheduler: Any, epochs: int = LONGER, rule: Any = None) -> list[list[float]]:
    """The curves of a longer training, of the schedule of the shorter one."""
    rules = None if rule is None else [{"match": "layer.bias", **rule}]
    setup = parse_and_check(SGD, scheduler, param_groups=rules).setup
    lengths = EpochSteps(((0, BATCHES_PER_EPOCH),))
    setup = resolve_setup(setup, TrainingLength(STEPS, EPOCHS, lengths))
    training = TrainingLength(epochs * BATCHES_PER_EPOCH, epochs, lengths)
    return [list(curve.lrs) for curve in lr_curves(dummy_groups(setup, 1.0), setup, training)]


ENDING = [
    {"name": "one_cycle_lr", "max_lr": 0.2, "total_steps": "auto"},
    {"name": "one_cycle_lr", "max_lr": 0.2, "total_steps": {"ratio": 1}},
    {"name": "cosine_annealing_lr", "T_max": "auto"},
    {"name": "cosine_annealing_lr", "T_max": {"ratio": 1}, **STEP},
    {"name": "cosine_annealing_lr", "T_max": {"ratio": 1.0}, **STEP, "warmup": {"steps": 3, "schedule": "after"}},
    {"name": "sequential", "schedules": [WARM, COSINE], **STEP},
    {"name": "sequential", "schedules": [WARM, {**COSINE, "length": "auto", "T_max": {"ratio": 1}}], **STEP},
    {"name": "sequential", "schedules": [WARM, {"name": "one_cycle_lr", "max_lr": 0.2, "length": "auto"}], **STEP},
    {"name": "sequential", "schedules": [WARM, {"name": "sequential", "schedules": [WARM, COSINE]}], **STEP},
]


@pytest.mark.parametrize("scheduler", ENDING, ids=str)
def test_rate_stays_after_the_end_in_training_and_plot(resumed: Any, scheduler: Any) -> None:
    _, lrs, _ = resumed(scheduler)
    assert len(set(lrs[STEPS:])) == 1
    assert lrs == curves(scheduler)[0]
    assert len(set(lrs)) > 3


@pytest.mark.parametrize("scheduler", ENDING[:1] + ENDING[3:4] + ENDING[5:6], ids=str)
def test_rate_of_a_group_stays_after_the_end(resumed: Any, scheduler: Any) -> None:
    other = {"scheduler": {**scheduler, **STEP}}
    _, lrs, last = resumed({"name": "exponential_lr", "gamma": 0.9, **STEP}, rule=other)
    default, group = curves({"name": "exponential_lr", "gamma": 0.9, **STEP}, rule=other)
    assert lrs == default
    assert len(set(default)) == len(default)
    assert group[STEPS - (scheduler["name"] == "one_cycle_lr") :] == [last] * (
        len(group) - STEPS + (scheduler["name"] == "one_cycle_lr")
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "cosine_annealing_lr", "T_max": STEPS, **STEP},
        {"name": "cosine_annealing_lr", "T_max": {"ratio": 0.5}, **STEP},
        {"name": "sequential", "schedules": [WARM, {"name": "exponential_lr", "gamma": 0.9}], **STEP},
        {"name": "sequential", "schedules": [WARM, {**COSINE, "T_max": {"ratio": 0.5}}], **STEP},
    ],
    ids=str,
)
def test_other_schedules_go_on_as_their_formula_says(resumed: Any, scheduler: Any) -> None:
    _, lrs, _ = resumed(scheduler)
    assert len(set(lrs[STEPS:])) > 3
    assert lrs == curves(scheduler)[0]


SEQUENCE = {"name": "sequential", "schedules": [WARM, WSD], **STEP}


@pytest.mark.parametrize("step", [3, 5, 12])
@pytest.mark.parametrize("last", [WSD, {**WSD, "length": "auto"}, {**WSD, "total_steps": {"ratio": 1}}], ids=str)
def test_sequence_that_ends_with_wsd_is_extended(
    fit: Any, resumed: Any, last: Any, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler = {**SEQUENCE, "schedules": [WARM, last]}
    made, lrs, _ = resumed(scheduler, step, verbose=True)
    message = f"scheduler.schedules[1].total_steps is extended from {STEPS} to {LONGER * BATCHES_PER_EPOCH}"
    assert message in capsys.readouterr().out
    assert lrs[:-1] == list(fit(SGD, scheduler, max_epochs=LONGER)[1].lrs)
    assert scheduler_of(made).last_epoch == LONGER * BATCHES_PER_EPOCH


def test_sequence_whose_decay_has_begun_keeps_its_length_and_warns(resumed: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"^scheduler.schedules\[1\].total_steps: the schedule of the checkpoint has 16"
    ):
        _, lrs, _ = resumed(SEQUENCE)
    assert set(lrs[STEPS:]) == {0.0}


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_schedule_that_ends_before_its_part_stays_at_its_last_rate(fit: Any, interval: str) -> None:
    cycle = {"name": "one_cycle_lr", "max_lr": 1.0, "total_steps": 5, "length": 8}
    schedules = [cycle, {"name": "constant_lr", "factor": 0.5, "total_iters": 100}]
    scheduler = {"name": "sequential", "schedules": schedules, "interval": interval}
    epochs = 3 if interval == "step" else 10
    _, recorded = fit(SGD, scheduler, max_epochs=epochs)
    lrs = list(recorded.lrs)[:: 1 if interval == "step" else BATCHES_PER_EPOCH]
    assert len(set(lrs[:5])) == 5
    assert lrs[5:8] == [lrs[4]] * 3
    assert set(lrs[8:]) == {0.15}


def test_summary_has_the_length_of_each_part(fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hold = {"name": "constant_lr", "length": {"ratio": 0.25}}
    fit(SGD, {"name": "sequential", "schedules": [WARM, hold, COSINE], **STEP}, max_epochs=EPOCHS, verbose=True)
    assert [line.removeprefix("optplug: ").strip() for line in capsys.readouterr().out.splitlines() if "[" in line][
        -3:
    ] == [
        "schedules[0] linear_lr: 5 steps",
        "schedules[1] constant_lr: 4 steps: 0.25 of the training",
        "schedules[2] cosine_annealing_lr: 7 steps, what is left of the training",
    ]


def test_summary_of_a_resume_has_the_lengths_of_the_checkpoint(
    resumed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    schedules = [{**WARM, "length": {"ratio": 0.25}}, COSINE]
    resumed({"name": "sequential", "schedules": schedules, **STEP}, verbose=True)
    printed = capsys.readouterr().out
    assert "schedules[0] linear_lr: 4 steps: from the checkpoint; this training has 6" in printed
    assert "schedules[1] cosine_annealing_lr: what is left of the training" in printed


def test_extended_length_has_one_line(resumed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    warmup = {"ratio": 0.125, "schedule": "after"}
    resumed({**WSD, "total_steps": "auto", "warmup": warmup}, 6, verbose=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "total_steps" in line]
    assert [line.partition("scheduler.")[2] for line in lines] == [
        "total_steps is extended from 14 to 22, to fit this training"
    ]


def test_lengths_of_a_sequence_in_the_wrong_unit_are_an_error_before_training(fit: Any) -> None:
    schedules = [WARM, {"name": "linear_lr", "length": STEPS - 5}]
    with pytest.raises(
        ConfigError, match=r"^scheduler.schedules: the sum of the lengths is 16, which is the number of"
    ):
        fit(SGD, {"name": "sequential", "schedules": schedules}, max_epochs=EPOCHS)
