"""The length of a training as computed before the fit, compared with the steps and epochs that the trainer counts."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from optplug.errors import ConfigError
from support import BATCHES_PER_EPOCH, printed_lines, scheduler_of

SGD = {"name": "sgd", "lr": 1.0}
BY_STEP = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
BY_EPOCH = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "epoch"}

ACCUMULATION = {
    "none": {},
    "factor 3": {"accumulate_grad_batches": 3},
    "one entry": {"schedule": {0: 2}},
    "first entry missing": {"schedule": {1: 3}},
    "two entries": {"schedule": {0: 1, 1: 2}},
    "three entries": {"schedule": {0: 4, 1: 3, 2: 1}},
    "entry after the end": {"schedule": {0: 2, 50: 1}},
}
LIMITS = {
    "max_epochs": {"max_epochs": 3},
    "max_steps": {"max_epochs": -1, "max_steps": 5},
    "max_steps first": {"max_epochs": 3, "max_steps": 4},
    "max_epochs first": {"max_epochs": 3, "max_steps": 500},
    "min_epochs": {"max_epochs": 3, "min_epochs": 2},
    "min_steps": {"max_epochs": 3, "max_steps": 5, "min_steps": 5},
    "part of the data": {"max_epochs": 3, "limit_train_batches": 3},
    "fraction of the data": {"max_epochs": 3, "limit_train_batches": 0.5},
    "overfit_batches": {"max_epochs": 3, "overfit_batches": 2},
    "reloaded data": {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1},
    "max_time": {"max_epochs": 3, "max_time": {"hours": 1}},
    "fast_dev_run": {"fast_dev_run": 3},
}


@pytest.fixture
def accumulating(pl: Any, optplug_lightning: Any, trainer: Any) -> Any:
    """A function that makes a trainer; `schedule` is the schedule of a GradientAccumulationScheduler."""

    def make(scheduler: Any, *, optimizer: Any = SGD, schedule: Any = None, callbacks: Any = (), **given: Any) -> Any:
        own = given.pop("own", {})
        used = [optplug_lightning.ConfigureOptimizers(optimizer, scheduler, verbose=False, **own), *callbacks]
        if schedule is not None:
            used.append(pl.callbacks.GradientAccumulationScheduler(dict(schedule)))
        return trainer(callbacks=used, num_sanity_val_steps=0, **given)

    return make


def fitted(made: Any, module: Any, **given: Any) -> Any:
    made.fit(module, **given)
    return made


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("accumulation", ACCUMULATION.values(), ids=ACCUMULATION)
def test_auto_is_what_the_trainer_counts(
    accumulating: Any, scripted_module: type, accumulation: Any, limits: Any
) -> None:
    made = fitted(accumulating(BY_STEP, **accumulation, **limits), scripted_module())
    assert scheduler_of(made).T_max == scheduler_of(made).last_epoch == made.global_step
    made = fitted(accumulating(BY_EPOCH, **accumulation, **limits), scripted_module())
    assert scheduler_of(made).T_max == made.current_epoch


# ------------------------------------------------------------------------------------------------ Lengths with a unit


RATIOS = (0.1, 0.25, 0.5, 0.9, 1.0)
WITH_UNITS = {"name": "multi_step_lr", "milestones": [*({"ratio": ratio} for ratio in RATIOS), {"epochs": 1}]}


def nearest(ratio: float, counted: int) -> int:
    """The whole number that is nearest to a part of a counted number, a half to the even one, and at least 1."""
    return max(1, round(ratio * counted))


@pytest.fixture
def epoch_ends(pl: Any) -> Any:
    """A callback that records the number of optimizer steps at the end of each epoch."""

    class EpochEnds(pl.Callback):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.steps.append(trainer.global_step)

    return EpochEnds()


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("accumulation", ["none", "factor 3", "two entries"])
def test_lengths_with_units_are_parts_of_what_the_trainer_counts(
    accumulating: Any, scripted_module: type, epoch_ends: Any, accumulation: str, limits: Any
) -> None:
    scheduler = {**WITH_UNITS, "interval": "step"}
    made = accumulating(scheduler, callbacks=[epoch_ends], **ACCUMULATION[accumulation], **limits)
    milestones = scheduler_of(fitted(made, scripted_module())).milestones
    ratios = Counter(nearest(ratio, made.global_step) for ratio in RATIOS)
    assert milestones >= ratios
    (first_epoch,) = (milestones - ratios).elements()
    if len(epoch_ends.steps) > 1:  # else the training may have ended within the epoch
        assert first_epoch == epoch_ends.steps[0]


@pytest.mark.parametrize("limits", [*LIMITS.values(), {"max_epochs": 12}, {"max_epochs": 5, "max_steps": 9}], ids=str)
@pytest.mark.parametrize("frequency", [1, 2])
def test_ratio_of_a_schedule_that_steps_per_epoch_is_a_part_of_the_epochs(
    accumulating: Any, scripted_module: type, frequency: int, limits: Any
) -> None:
    scheduler = {"name": "multi_step_lr", "milestones": [{"ratio": 0.6}, {"ratio": 1}], "frequency": frequency}
    made = fitted(accumulating(scheduler, **limits), scripted_module())
    assert scheduler_of(made).milestones == Counter(
        nearest(ratio, made.current_epoch // frequency) for ratio in (0.6, 1)
    )


def test_too_short_length_of_a_schedule_that_steps_per_epoch_raises(accumulating: Any, scripted_module: type) -> None:
    module = scripted_module()
    with pytest.raises(ConfigError, match=r"^scheduler.step_size: is 0.3 steps of the schedule, .* set interval: step"):
        fitted(accumulating({"name": "step_lr", "step_size": {"ratio": 0.1}}, max_epochs=3), module)
    assert module.lrs == []


def test_ratios_with_manual_optimization_and_several_optimizers(accumulating: Any, two_optimizer_module: type) -> None:
    step_lr = {"name": "step_lr", "step_size": {"ratio": 0.5}, "gamma": 0.5}
    optimizers = [
        {**SGD, "match": "*weight", "scheduler": {**step_lr, "interval": "step"}},
        {**SGD, "match": "*bias", "scheduler": step_lr},
    ]
    for limits in ({"max_epochs": 4}, {"max_epochs": -1, "max_steps": 24}):
        made = fitted(accumulating(None, optimizer=optimizers, **limits), two_optimizer_module())
        by_step, by_epoch = (entry.scheduler for entry in made.lr_scheduler_configs)
        counted = (made.global_step // 2, made.current_epoch)
        assert (by_step.step_size, by_epoch.step_size) == tuple(nearest(0.5, count) for count in counted)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return itertools.repeat((torch.ones(4), torch.ones(1)))


@pytest.mark.parametrize("limits", [{"max_epochs": 3, "limit_train_batches": 7}, {"max_epochs": -1, "max_steps": 9}])
def test_ratios_for_data_without_length(accumulating: Any, scripted_module: type, limits: Any) -> None:
    module = scripted_module()
    module.train_dataloader = lambda: DataLoader(Endless(), batch_size=2)
    scheduler = {**WITH_UNITS, "milestones": WITH_UNITS["milestones"][:-1], "interval": "step"}
    made = fitted(accumulating(scheduler, accumulate_grad_batches=2, **limits), module)
    assert scheduler_of(made).milestones == Counter(nearest(ratio, made.global_step) for ratio in RATIOS)


@pytest.mark.timeout(90)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_ratios_count_the_steps_of_one_of_two_processes(
    accumulating: Any, scripted_module: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    class Recording(scripted_module):
        def on_train_end(self) -> None:
            found = {"step_size": scheduler_of(self.trainer).step_size, "steps": self.trainer.global_step}
            (tmp_path / f"{self.global_rank}.json").write_text(json.dumps(found))

    scheduler = {"name": "step_lr", "step_size": {"ratio": 0.5}, "interval": "step"}
    options = {"devices": 2, "strategy": "ddp_fork", "accumulate_grad_batches": accumulation, "max_epochs": 3}
    accumulating(scheduler, **options).fit(Recording())
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    steps = 3 * BATCHES_PER_EPOCH // 2 // accumulation
    assert first == second == {"step_size": nearest(0.5, steps), "steps": steps}


# ------------------------------------------------------------------------------------ Schedules after their warmup

WARMUPS = ({"steps": 2}, {"ratio": 0.3}, {"epochs": 1.5})


@pytest.mark.parametrize("warmup", WARMUPS, ids=str)
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("scheduler", [BY_STEP, BY_EPOCH], ids=["step", "epoch"])
def test_schedule_after_the_warmup_has_the_rest_of_the_training(
    accumulating: Any, scripted_module: type, scheduler: Any, limits: Any, warmup: Any
) -> None:
    for accumulation in ("factor 3", "two entries"):
        given = {**scheduler, "warmup": {**warmup, "schedule": "after"}}
        made = fitted(accumulating(given, **ACCUMULATION[accumulation], **limits), scripted_module())
        scheduled = scheduler_of(made)
        steps, epochs = made.global_step, made.current_epoch
        assert scheduled.T_max == max(1, scheduled.last_epoch)
        if scheduler is BY_STEP:
            assert scheduled.last_epoch == max(0, steps - getattr(scheduled, "warmup_steps", 0))
        else:
            assert scheduled.last_epoch <= epochs


@pytest.mark.parametrize("policy", ["keep", "override_hparams", "reset_scheduler", "reset_all"])
@pytest.mark.parametrize("saved_at", [2, 6])
@pytest.mark.filterwarnings("ignore:.*callbacks used to create", "ignore:You're resuming from a checkpoint")
def test_delayed_schedule_follows_the_policy_of_the_resume(
    accumulating: Any,
    scripted_module: type,
    save_every_checkpoint: Any,
    tmp_path: Path,
    saved_at: int,
    policy: str,
) -> None:
    scheduler = {**BY_STEP, "warmup": {"steps": 4, "schedule": "after"}}
    saver = save_every_checkpoint(every_n_train_steps=1, save_on_train_epoch_end=False)
    whole = scripted_module()
    fitted(accumulating(scheduler, callbacks=[saver], enable_checkpointing=True, max_epochs=3), whole)
    module = scripted_module()
    made = accumulating(scheduler, own={"on_resume": policy}, max_epochs=3)
    fitted(made, module, ckpt_path=tmp_path / f"step={saved_at}.ckpt")
    restarts = policy in ("reset_scheduler", "reset_all")
    assert scheduler_of(made).T_max == scheduler_of(made).last_epoch == 8 - restarts * saved_at
    assert (module.lrs == whole.lrs[saved_at:]) is not restarts
    assert module.lrs[:4] == [0.25, 0.4375, 0.625, 0.8125] if restarts else module.lrs


@pytest.mark.parametrize(
    ("schedule", "words", "length"),
    [
        ("during", "stepped every step, with a warmup of 3 steps", "T_max is 12: as long as the training"),
        (
            "after",
            "stepped every step, after a warmup of 3 steps",
            "T_max is 9: as long as the training after the warmup",
        ),
    ],
)
def test_summary_states_whether_the_schedule_starts_after_the_warmup(
    optplug_lightning: Any,
    trainer: Any,
    scripted_module: type,
    capsys: pytest.CaptureFixture[str],
    schedule: str,
    words: str,
    length: str,
) -> None:
    scheduler = {**BY_STEP, "warmup": {"ratio": 0.25, "schedule": schedule}}
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, scheduler), max_epochs=3).fit(scripted_module())
    printed = " ".join(printed_lines(capsys))
    assert words in printed
    assert length in printed


# ------------------------------------------------------------------------------------------------ Sequences

SEQUENCE = {
    "name": "sequential",
    "schedules": [
        {"name": "linear_lr", "length": {"ratio": 0.25}, "start_factor": 0.1},
        {"name": "constant_lr", "length": {"ratio": 0.5}, "factor": 0.5},
        {"name": "cosine_annealing_lr"},
    ],
}


@pytest.mark.parametrize("limits", ["max_epochs", "max_steps first", "part of the data"])
@pytest.mark.parametrize("warmup", [None, {"steps": 2, "schedule": "after"}], ids=str)
def test_lengths_of_a_sequence_are_parts_of_what_the_trainer_counts(
    accumulating: Any, scripted_module: type, limits: Any, warmup: Any
) -> None:
    made = accumulating({**SEQUENCE, "interval": "step", "warmup": warmup}, **LIMITS[limits])
    scheduler = scheduler_of(fitted(made, scripted_module()))
    sequence = getattr(scheduler, "scheduler", scheduler)
    total = made.global_step - (2 if warmup else 0)
    first, second = nearest(0.25, total), nearest(0.5, total)
    assert sequence._milestones == [first, first + second]
    assert sequence._schedulers[0].total_iters == first
    assert sequence._schedulers[2].T_max == max(1, total - first - second)
    assert sequence.last_epoch == total


@pytest.mark.filterwarnings("ignore:.*callbacks used to create", "ignore:You're resuming from a checkpoint")
def test_sequence_with_units_resumes_in_the_middle(
    accumulating: Any, scripted_module: type, save_every_checkpoint: Any, tmp_path: Path
) -> None:
    scheduler = {**SEQUENCE, "interval": "step"}
    saver = save_every_checkpoint(every_n_train_steps=1, save_on_train_epoch_end=False)
    whole = scripted_module()
    fitted(accumulating(scheduler, callbacks=[saver], enable_checkpointing=True, max_epochs=3), whole)
    assert len(set(whole.lrs)) > 6
    for step in (2, 3, 4, 8, 9, 11):
        module = scripted_module()
        fitted(accumulating(scheduler, max_epochs=3), module, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert module.lrs == whole.lrs[step:]


# ------------------------------------------------------------------------------------------------ Other trainings


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
def test_auto_counts_the_batches_of_combined_loaders(
    pl: Any, accumulating: Any, scripted_module: type, mode: str
) -> None:
    def loader(rows: int) -> DataLoader:
        return DataLoader(TensorDataset(torch.ones(rows, 4), torch.ones(rows, 1)), batch_size=2)

    class Combined(scripted_module):
        def train_dataloader(self) -> Any:
            return pl.utilities.CombinedLoader({"long": loader(14), "short": loader(6)}, mode)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["long"], batch_idx)

    made = fitted(accumulating(BY_STEP, schedule={0: 1, 1: 2}), Combined())
    assert scheduler_of(made).T_max == made.global_step


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 10}, {"max_steps": 10}], ids=str)
def test_auto_counts_the_steps_of_each_of_several_optimizers(
    accumulating: Any, two_optimizer_module: type, limits: Any
) -> None:
    optimizers = [
        {**SGD, "match": "*weight", "scheduler": BY_STEP},
        {**SGD, "match": "*bias", "scheduler": BY_EPOCH},
    ]
    made = fitted(accumulating(None, optimizer=optimizers, **limits), two_optimizer_module())
    by_step, by_epoch = (entry.scheduler for entry in made.lr_scheduler_configs)
    assert (by_step.T_max, by_epoch.T_max) == (made.global_step // 2, made.current_epoch)


def test_warmup_in_epochs_counts_the_steps_of_these_epochs(accumulating: Any, scripted_module: type) -> None:
    # 4, 2 and 2 steps in the first three epochs.
    for warmup, steps in (({"epochs": 1}, 4), ({"epochs": 1.5}, 5), ({"epochs": 2}, 6), ({"ratio": 0.5}, 4)):
        made = accumulating({**BY_STEP, "warmup": warmup}, schedule={0: 1, 1: 2}, max_epochs=3)
        assert scheduler_of(fitted(made, scripted_module())).warmup_steps == steps


@pytest.mark.parametrize("callback", ["subclass", "two callbacks"])
def test_auto_reads_the_factor_that_the_trainer_uses(
    pl: Any, accumulating: Any, scripted_module: type, callback: str
) -> None:
    class MyScheduler(pl.callbacks.GradientAccumulationScheduler):
        pass

    class Third(MyScheduler):
        @property
        def state_key(self) -> str:
            return "third"

    callbacks = [MyScheduler({0: 2})] if callback == "subclass" else [MyScheduler({0: 2}), Third({0: 4})]
    made = fitted(accumulating(BY_STEP, callbacks=callbacks), scripted_module())
    assert scheduler_of(made).T_max == made.global_step


@pytest.mark.parametrize("max_steps", [7, 9, 30])
def test_missing_validation_is_reported_by_the_steps_of_the_epochs(
    accumulating: Any, scripted_module: type, recwarn: pytest.WarningsRecorder, max_steps: int
) -> None:
    # 4 + 2 + 1 steps in the first three epochs; the validation comes after the third.
    module = scripted_module(val={"val_loss": [1.0]})
    plateau = {"name": "reduce_lr_on_plateau", "monitor": "val_loss"}
    limits = {"max_epochs": 3, "max_steps": max_steps, "check_val_every_n_epoch": 3}
    fitted(accumulating(plateau, schedule={0: 1, 1: 2, 2: 4}, **limits), module)
    assert module.validations == 1
    assert [str(warning.message) for warning in recwarn if "stepped" in str(warning.message)] == []


# ------------------------------------------------------------------------------------------- Schedules that start later


@pytest.mark.filterwarnings("ignore:.*callbacks used to create", "ignore:You're resuming from a checkpoint")
@pytest.mark.parametrize("limits", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 7}], ids=str)
@pytest.mark.parametrize("accumulation", ["none", "factor 3", "two entries", "three entries"])
def test_auto_after_a_resume_is_the_length_of_the_schedule(
    accumulating: Any,
    scripted_module: type,
    save_every_checkpoint: Any,
    tmp_path: Path,
    accumulation: str,
    limits: Any,
) -> None:
    given = {**ACCUMULATION[accumulation], **limits}
    saver = save_every_checkpoint(every_n_train_steps=1, save_on_train_epoch_end=False)
    made = fitted(accumulating(BY_STEP, callbacks=[saver], enable_checkpointing=True, **given), scripted_module())
    total = scheduler_of(made).T_max
    for step in (3, 4, 5):
        for policy in ("keep", "override_hparams", "reset_scheduler", "reset_all"):
            made = accumulating(BY_STEP, own={"on_resume": policy}, **given)
            fitted(made, scripted_module(), ckpt_path=tmp_path / f"step={step}.ckpt")
            # After a resume from the last batch of an epoch, Lightning does not call the hook in which
            # GradientAccumulationScheduler sets the factor of the next epoch.
            is_exact = "schedule" not in given or step == 3
            if policy in ("keep", "override_hparams"):
                assert scheduler_of(made).T_max == total
            elif is_exact:
                assert scheduler_of(made).T_max == scheduler_of(made).last_epoch == made.global_step - step


@pytest.mark.parametrize("saved_at", ["train_epoch_end", "validation_end"])
@pytest.mark.parametrize("scheduler", [BY_STEP, BY_EPOCH], ids=["step", "epoch"])
@pytest.mark.filterwarnings("ignore:.*callbacks used to create")
def test_restarted_schedule_is_as_long_as_the_rest_of_the_training(
    accumulating: Any, scripted_module: type, save_every_checkpoint: Any, tmp_path: Path, saved_at: str, scheduler: Any
) -> None:
    saver = save_every_checkpoint(save_on_train_epoch_end=saved_at == "train_epoch_end")
    fitted(accumulating(scheduler, callbacks=[saver], enable_checkpointing=True), scripted_module())
    for policy in ("reset_scheduler", "reset_all"):
        made = accumulating(scheduler, own={"on_resume": policy}, max_epochs=5)
        fitted(made, scripted_module(), ckpt_path=tmp_path / f"step={BATCHES_PER_EPOCH}.ckpt")
        length = 4 * BATCHES_PER_EPOCH if scheduler is BY_STEP else 4
        assert scheduler_of(made).T_max == scheduler_of(made).last_epoch == length


@pytest.mark.parametrize("frequency", [1, 2, 3])
@pytest.mark.parametrize("scheduler", [BY_STEP, BY_EPOCH], ids=["step", "epoch"])
def test_second_fit_has_the_rest_of_the_training_as_length(
    accumulating: Any, scripted_module: type, scheduler: Any, frequency: int
) -> None:
    made, module = accumulating({**scheduler, "frequency": frequency}, max_epochs=3), scripted_module()
    for epochs in (3, 8):
        made.fit_loop.max_epochs = epochs
        made.fit(module)
        assert scheduler_of(made).T_max == scheduler_of(made).last_epoch


def test_second_fit_runs_the_whole_schedule(accumulating: Any, scripted_module: type) -> None:
    made, module = accumulating(BY_EPOCH, max_epochs=2), scripted_module()
    made.fit(module)
    made.fit_loop.max_epochs = 4
    made.fit(module)
    assert module.lrs[::BATCHES_PER_EPOCH] == [1.0, 0.5, 1.0, 0.5]


def test_second_fit_with_max_steps_has_the_remaining_steps(accumulating: Any, scripted_module: type) -> None:
    made, module = accumulating(BY_STEP, max_epochs=-1, max_steps=3), scripted_module()
    made.fit(module)  # ends within an epoch
    made.fit_loop.epoch_loop.max_steps = 12
    made.fit(module)
    assert scheduler_of(made).T_max == scheduler_of(made).last_epoch == 9


def test_warmup_of_a_second_fit_is_a_share_of_the_rest(accumulating: Any, scripted_module: type) -> None:
    made, module = accumulating({**BY_STEP, "warmup": {"ratio": 0.25}}, max_epochs=2), scripted_module()
    made.fit(module)
    assert scheduler_of(made).warmup_steps == 2
    made.fit_loop.max_epochs = 5
    made.fit(module)
    assert scheduler_of(made).warmup_steps == 3


def test_second_fit_counts_its_own_data(accumulating: Any, scripted_module: type) -> None:
    module, made = scripted_module(), accumulating(BY_EPOCH, max_epochs=-1, max_steps=4)
    made.fit(module)
    module.train_dataloader = lambda: DataLoader(TensorDataset(torch.ones(12, 4), torch.ones(12, 1)), batch_size=1)
    made.fit_loop.epoch_loop.max_steps = 28
    made.fit(module)
    assert scheduler_of(made).T_max == 2


def test_second_fit_after_an_interruption_has_the_rest_of_the_training(
    pl: Any, accumulating: Any, scripted_module: type
) -> None:
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 6:
                raise ValueError("stop")

    made, module = accumulating(BY_STEP, callbacks=[Interrupt()]), scripted_module()
    with pytest.raises(ValueError, match="stop"):
        made.fit(module)
    made.fit(module)  # begins with the epoch that was interrupted
    assert scheduler_of(made).T_max == scheduler_of(made).last_epoch == 2 * BATCHES_PER_EPOCH


def test_second_fit_from_a_checkpoint_continues_its_schedule(
    accumulating: Any, scripted_module: type, tmp_path: Path
) -> None:
    made, module = accumulating(BY_EPOCH), scripted_module()
    made.fit(module)
    made.save_checkpoint(tmp_path / "third.ckpt")
    made.fit_loop.max_epochs = 6
    made.fit(module, ckpt_path=tmp_path / "third.ckpt")
    assert scheduler_of(made).T_max == 3
    assert set(module.lrs[3 * BATCHES_PER_EPOCH :]) == {0.0}  # the end of the restored schedule


def test_summary_of_a_second_fit_states_the_length(
    optplug_lightning: Any, trainer: Any, scripted_module: type, capsys: pytest.CaptureFixture[str]
) -> None:
    made, module = (
        trainer(callbacks=optplug_lightning.ConfigureOptimizers(SGD, BY_EPOCH), max_epochs=2),
        scripted_module(),
    )
    made.fit(module)
    made.fit_loop.max_epochs = 5
    made.fit(module)
    lines = [line.strip() for line in printed_lines(capsys) if "T_max" in line]
    assert lines == ["T_max is 2: as long as the training", "T_max is 3: as long as the rest of the training"]


# --------------------------------------------------------------------------------------------- Fits that train nothing


@pytest.mark.parametrize(
    "limits",
    [{"limit_train_batches": 0}, {"max_epochs": 0}, {"max_steps": 0}, {"max_epochs": -1, "max_steps": 0}],
    ids=str,
)
@pytest.mark.parametrize(
    "scheduler",
    [
        BY_STEP,
        BY_EPOCH,
        {**BY_STEP, "warmup": {"epochs": 1}},
        {**BY_STEP, "warmup": {"ratio": 0.5}},
        {"name": "reduce_lr_on_plateau", "patience_unit": "epochs"},
    ],
    ids=["step", "epoch", "warmup in epochs", "warmup ratio", "plateau"],
)
def test_fit_without_training_raises_no_error(
    accumulating: Any, scripted_module: type, scheduler: Any, limits: Any
) -> None:
    module = scripted_module()
    made = fitted(accumulating(scheduler, **limits), module)
    assert (made.global_step, module.lrs) == (0, [])


@pytest.mark.parametrize("warmup", [{"epochs": 1}, {"ratio": 0.5}], ids=str)
def test_resume_without_training_keeps_the_schedule(
    accumulating: Any, scripted_module: type, tmp_path: Path, warmup: Any
) -> None:
    made = fitted(accumulating({**BY_STEP, "warmup": warmup}), scripted_module())
    made.save_checkpoint(tmp_path / "end.ckpt")
    resumed = accumulating({**BY_STEP, "warmup": warmup}, limit_train_batches=0)
    fitted(resumed, scripted_module(), ckpt_path=tmp_path / "end.ckpt")
    assert scheduler_of(resumed).state_dict() == scheduler_of(made).state_dict()


@pytest.mark.filterwarnings("ignore:Total length of")
def test_fit_with_an_empty_loader_raises_no_error(accumulating: Any, scripted_module: type) -> None:
    module = scripted_module()
    module.train_dataloader = lambda: DataLoader(TensorDataset(torch.ones(0, 4), torch.ones(0, 1)))
    made = fitted(accumulating({**BY_STEP, "warmup": {"epochs": 1}}), module)
    assert made.global_step == 0


@pytest.mark.parametrize("entry_point", ["validate", "test"])
def test_evaluation_builds_no_schedule(accumulating: Any, scripted_module: type, entry_point: str) -> None:
    made = accumulating(BY_STEP, max_epochs=-1)  # in a fit, the length would be unknown
    getattr(made, entry_point)(scripted_module(), verbose=False)
    assert made.lr_scheduler_configs == []


@pytest.mark.parametrize(
    ("length", "line"),
    [
        ("auto", "T_max is 12: as long as the training"),
        ({"ratio": 0.5}, "T_max is 6: 0.5 of the training"),
        ({"epochs": 1.5}, "T_max is 6: 1.5 epochs"),
        ({"steps": 9}, "T_max is 9: 9 optimizer steps"),
    ],
    ids=str,
)
def test_summary_states_each_length_that_depends_on_the_training(
    optplug_lightning: Any,
    trainer: Any,
    scripted_module: type,
    capsys: pytest.CaptureFixture[str],
    length: Any,
    line: str,
) -> None:
    callback = optplug_lightning.ConfigureOptimizers(SGD, {**BY_STEP, "T_max": length})
    trainer(callbacks=callback, max_epochs=3).fit(scripted_module())
    assert [text.strip() for text in printed_lines(capsys) if "T_max" in text] == [line]


def test_length_with_a_unit_that_is_the_number_of_steps_is_accepted(
    accumulating: Any, scripted_module: type, recwarn: pytest.WarningsRecorder
) -> None:
    """A plain number that is equal to the number of steps, of a schedule that steps per epoch, is an error."""
    for limits in ({"max_epochs": 3}, {"max_epochs": 3, "max_steps": 12}):
        scheduler = {"name": "cosine_annealing_lr", "T_max": {"epochs": 12}}
        assert scheduler_of(fitted(accumulating(scheduler, **limits), scripted_module())).T_max == 12
    assert [str(warning.message) for warning in recwarn if "T_max" in str(warning.message)] == []


def test_short_lengths_do_not_prevent_a_dry_run(accumulating: Any, scripted_module: type) -> None:
    for scheduler in (
        {"name": "step_lr", "step_size": {"ratio": 0.1}},
        {"name": "wsd", "total_steps": "auto", "decay_steps": {"ratio": 0.2}, "warmup_steps": 100},
    ):
        made = fitted(accumulating(scheduler, fast_dev_run=1), scripted_module())
        assert made.global_step == 1
