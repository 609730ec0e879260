"""Schedules that are stepped in epochs advance once per epoch that Lightning counts, also if the epoch ends early."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from support import BATCHES_PER_EPOCH, LIGHTNING, SGD, scheduler_of

HALVING = {"name": "exponential_lr", "gamma": 0.5}

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps"),
    pytest.mark.filterwarnings("ignore:Length of IterableDataset"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),  # an epoch without an optimizer step
]


class Stream(IterableDataset):
    """Samples without a known number."""

    def __iter__(self) -> Iterator[Any]:
        torch.manual_seed(1)
        for x in torch.randn(2 * BATCHES_PER_EPOCH, 4):
            yield x, x.sum(0, keepdim=True)


class OverstatedLength(DataLoader):
    """A data loader that yields fewer batches than its length says."""

    def __len__(self) -> int:
        return super().__len__() + 2


def batches(number: int, kind: type = DataLoader) -> DataLoader:
    torch.manual_seed(1)
    x = torch.randn(2 * number, 4)
    return kind(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=2)


@pytest.fixture
def recording_module(scripted_module: type) -> type:
    """The class of a module that records epoch, batch and learning rate of each training step.

    `skip_from` is the batch from which on the rest of an epoch is skipped, `stop` epoch and batch after which the
    training stops, and `data` makes the training data.
    """

    class Recording(scripted_module):
        def __init__(self, data: Any = None, skip_from: int | None = None, stop: Any = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.data, self.skip_from, self.stop = data, skip_from, stop
            self.batches: list[tuple[int, int, float]] = []
            self.starts: list[tuple[int, float]] = []

        def lr(self) -> float:
            return float(self.trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_epoch_start(self) -> None:
            self.starts.append((self.trainer.current_epoch, self.lr()))

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == self.skip_from else None

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.batches.append((self.trainer.current_epoch, batch_idx, self.lr()))
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (self.trainer.current_epoch, batch_idx) == self.stop:
                self.trainer.should_stop = True

    Recording.train_dataloader = lambda self: self.data(self) if self.data else scripted_module.train_dataloader(self)
    return Recording


@pytest.fixture
def saved_epochs(pl: Any, tmp_path: Any) -> Any:
    """A callback that saves a checkpoint in `on_train_epoch_end` and reads its epoch and scheduler step back."""

    class Save(pl.callbacks.Checkpoint):
        def __init__(self) -> None:
            self.last_epochs: list[int] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "epoch.ckpt")
            saved = torch.load(tmp_path / "epoch.ckpt", weights_only=True)
            self.last_epochs.append(saved["lr_schedulers"][0]["last_epoch"])

    return Save()


EARLY_ENDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full epochs": ({}, {}),
    "-1 in the third batch": ({"skip_from": 2}, {}),
    "-1 in the last batch": ({"skip_from": 3}, {}),
    "-1 in the first batch": ({"skip_from": 0}, {}),
    "loader shorter than its length": ({"data": lambda _: batches(4, OverstatedLength)}, {}),
    "loader without length": ({"data": lambda _: DataLoader(Stream(), batch_size=2)}, {}),
    "loader without length, limited": (
        {"data": lambda _: DataLoader(Stream(), batch_size=2)},
        {"limit_train_batches": 3, "limit_val_batches": 0},
    ),
    "loader without length, limit not reached": (
        {"data": lambda _: DataLoader(Stream(), batch_size=2)},
        {"limit_train_batches": 9, "limit_val_batches": 0},
    ),
    "new loader of another length in each epoch": (
        {"data": lambda module: batches(2 + module.trainer.current_epoch)},
        {"reload_dataloaders_every_n_epochs": 1},
    ),
    "limit_train_batches": ({}, {"limit_train_batches": 2}),
    "overfit_batches": ({}, {"overfit_batches": 2}),
    "accumulation, -1": ({"skip_from": 3}, {"accumulate_grad_batches": 2}),
    "accumulation over the epoch's end": ({}, {"accumulate_grad_batches": 3}),
    "max_steps within an epoch": ({}, {"max_epochs": -1, "max_steps": 10}),
    "should_stop within an epoch": ({"stop": (2, 1)}, {}),
    "should_stop in a run with max_steps": ({"stop": (2, 1)}, {"max_epochs": -1, "max_steps": 50}),
    "max_epochs with max_steps at its end": ({}, {"max_epochs": 3, "max_steps": 12}),
}


@pytest.mark.parametrize("frequency", [1, 2])
@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize("end", EARLY_ENDS.values(), ids=EARLY_ENDS)
def test_each_epoch_counts_once_before_its_checkpoint(
    recording_module: type,
    trainer: Any,
    quiet_callback: Any,
    saved_epochs: Any,
    end: Any,
    automatic: bool,
    frequency: int,
) -> None:
    module_arguments, trainer_arguments = end
    if not automatic:
        trainer_arguments = {k: v for k, v in trainer_arguments.items() if k != "accumulate_grad_batches"}
    module = recording_module(automatic=automatic, **module_arguments)
    configure = quiet_callback(SGD, {**HALVING, "frequency": frequency})
    arguments = {"max_epochs": 4, "enable_checkpointing": True, **trainer_arguments}
    fitted = trainer(callbacks=[saved_epochs, configure], **arguments)
    fitted.fit(module)
    epochs = fitted.current_epoch
    assert epochs >= 3
    assert module.starts == [(epoch, 0.5 ** (epoch // frequency)) for epoch in range(epochs)]
    assert all(lr == 0.5 ** (epoch // frequency) for epoch, _, lr in module.batches)
    assert saved_epochs.last_epochs == [(epoch + 1) // frequency for epoch in range(epochs)]
    assert scheduler_of(fitted).last_epoch == epochs // frequency


def test_skipped_epochs_count_as_with_lightning_alone(
    recording_module: type, trainer: Any, quiet_callback: Any
) -> None:
    class Native(recording_module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    native, module = Native(skip_from=2), recording_module(skip_from=2)
    trainer(max_epochs=4).fit(native)
    trainer(callbacks=quiet_callback(SGD, HALVING), max_epochs=4).fit(module)
    assert [lr for *_, lr in module.batches] == [0.5**epoch for epoch, *_ in module.batches]
    if LIGHTNING < (2, 6):  # Lightning 2.5.6 does not step a schedule after a skipped epoch, 2.6.6 does
        assert {lr for *_, lr in native.batches} == {1.0}
    else:
        assert native.batches == module.batches
        assert torch.equal(module.layer.weight, native.layer.weight)


def test_epochs_of_several_optimizers_count_once(two_optimizer_module: type, trainer: Any, quiet_callback: Any) -> None:
    class Skipping(two_optimizer_module):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    optimizers = [
        {**SGD, "match": "*.weight", "scheduler": HALVING},
        {**SGD, "match": "*.bias", "scheduler": {**HALVING, "frequency": 2}},
    ]
    module = Skipping()
    trainer(callbacks=quiet_callback(optimizers), max_epochs=4).fit(module)
    assert module.lrs == [[0.5**epoch, 0.5 ** (epoch // 2)] for epoch in range(4) for _ in range(2)]


def test_epoch_without_a_batch_does_not_count(recording_module: type, trainer: Any, quiet_callback: Any) -> None:
    class SometimesEmpty(Stream):
        epochs = 0

        def __iter__(self) -> Iterator[Any]:
            self.epochs += 1
            return iter(()) if self.epochs == 2 else super().__iter__()

    data = DataLoader(SometimesEmpty(), batch_size=2)
    module = recording_module(data=lambda _: data)
    fitted = trainer(callbacks=quiet_callback(SGD, HALVING), max_epochs=3)
    fitted.fit(module)
    assert scheduler_of(fitted).last_epoch == len({epoch for epoch, *_ in module.batches})


def test_patience_in_epochs_counts_epochs_that_end_early(
    recording_module: type, trainer: Any, quiet_callback: Any
) -> None:
    plateau = {"name": "reduce_lr_on_plateau", "patience": 1, "factor": 0.5, "patience_unit": "epochs"}
    paths = []
    for skip_from in (None, 2):
        module = recording_module(skip_from=skip_from, train={"train_loss": range(1, 9)})
        trainer(callbacks=quiet_callback(SGD, plateau, monitor="train_loss"), max_epochs=6).fit(module)
        paths.append(module.starts)
    assert paths[0] == paths[1] == list(enumerate([1.0, 1.0, 1.0, 0.5, 0.5, 0.25]))


# --------------------------------------------------------------------------------------------------------- resume

STOPPED = {
    "max_steps within an epoch": ({}, {"max_epochs": -1, "max_steps": 6}),
    "-1": ({"skip_from": 2}, {"max_epochs": 2}),
}
STOPPED["should_stop within an epoch"] = ({"stop": (1, 1)}, {"max_epochs": 9})
RESUMED_BY = {"epochs": {"max_epochs": 5}, "steps": {"max_epochs": -1, "max_steps": 18}}
SAVED_IN = ["on_train_batch_end", "on_train_epoch_end", "on_train_end"]


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize("saved_in", SAVED_IN)
@pytest.mark.parametrize("limit", RESUMED_BY.values(), ids=RESUMED_BY)
@pytest.mark.parametrize("stopped", STOPPED.values(), ids=STOPPED)
def test_resume_after_an_early_end(
    pl: Any,
    recording_module: type,
    trainer: Any,
    quiet_callback: Any,
    tmp_path: Any,
    stopped: Any,
    limit: Any,
    saved_in: str,
    automatic: bool,
) -> None:
    """The schedule is where Lightning's count of epochs is, whether Lightning resumes in the same epoch or the next."""
    module_arguments, trainer_arguments = stopped
    path = tmp_path / "last.ckpt"
    hook = {saved_in: lambda callback, run, *_: run.save_checkpoint(path)}
    save = type("Save", (pl.callbacks.Callback,), hook)()

    def run(arguments: Any, module_arguments: Any, ckpt_path: Any = None, save: Any = ()) -> Any:
        module = recording_module(automatic=automatic, **module_arguments)
        configure = quiet_callback(SGD, {**HALVING, "warmup_steps": 1})
        fitted = trainer(callbacks=[configure, *save], enable_checkpointing=True, **arguments)
        fitted.fit(module, ckpt_path=ckpt_path)
        return fitted, module

    run(trainer_arguments, module_arguments, save=[save])
    resumed_arguments = {k: v for k, v in module_arguments.items() if k != "stop"}
    fitted, module = run(limit, resumed_arguments, ckpt_path=path)
    assert len(module.batches) > 4
    assert [lr for *_, lr in module.batches] == [0.5**epoch for epoch, *_ in module.batches]
    assert scheduler_of(fitted).last_epoch == fitted.current_epoch


@pytest.mark.parametrize("frequency", [1, 2])
def test_training_in_parts_equals_uninterrupted_training(
    recording_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any, frequency: int, pl: Any
) -> None:
    """Each part has three steps, an epoch has four batches, and a part resumes where the last one ended."""

    def run(steps: int, ckpt_path: Any = None) -> Any:
        module = recording_module()
        configure = quiet_callback({**SGD, "momentum": 0.9}, {**HALVING, "frequency": frequency})
        saver = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
        fitted = trainer(callbacks=[configure, saver], enable_checkpointing=True, max_epochs=-1, max_steps=steps)
        fitted.fit(module, ckpt_path=ckpt_path)
        return module.batches

    parts = run(3)
    for steps in (6, 9, 12, 15, 18):
        (last,) = tmp_path.glob("last*.ckpt")
        last.rename(tmp_path / "resume.ckpt")
        parts += run(steps, tmp_path / "resume.ckpt")
    assert parts == run(18)


@pytest.fixture
def resume_within_an_epoch(recording_module: type, trainer: Any, quiet_callback: Any, pl: Any, tmp_path: Any) -> Any:
    """A function that trains for one and a half epochs, then resumes for two, and returns the resumed module."""

    def run(module: Any, scheduler: Any, optimizer: Any = SGD, on_resume: str | None = None, **arguments: Any) -> Any:
        path = tmp_path / "half.ckpt"
        hook = {"on_train_epoch_end": lambda callback, run, *_: run.save_checkpoint(path)}
        save = type("Save", (pl.callbacks.Callback,), hook)()
        trainer(callbacks=[quiet_callback(SGD, scheduler), save], max_epochs=-1, max_steps=6).fit(recording_module())
        second = quiet_callback(optimizer, scheduler, on_resume=on_resume)
        trainer(callbacks=second, max_epochs=-1, max_steps=14, **arguments).fit(module, ckpt_path=path)
        return module

    return run


@pytest.mark.parametrize("scheduler", [HALVING, {**HALVING, "warmup_steps": 1}], ids=["plain", "warmup"])
@pytest.mark.parametrize("hook", ["on_load_checkpoint", "on_train_start", "on_train_batch_start"])
def test_options_set_before_the_first_batch_are_kept(
    recording_module: type, resume_within_an_epoch: Any, scheduler: Any, hook: str
) -> None:
    class Sets(recording_module):
        has_set = False

        def set_options(self, groups: Any) -> None:
            if not self.has_set:
                self.has_set = True
                groups[0].update(lr=0.05, weight_decay=0.125)

    def change(module: Any, *args: Any) -> None:
        saved = args[0]["optimizer_states"][0] if hook == "on_load_checkpoint" else None
        module.set_options(saved["param_groups"] if saved else module.trainer.optimizers[0].param_groups)

    setattr(Sets, hook, change)
    module = resume_within_an_epoch(Sets(), scheduler)
    assert [lr for *_, lr in module.batches] == pytest.approx([0.05] * 2 + [0.025] * 4 + [0.0125] * 2)
    assert module.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.125


RATES_BY_POLICY = {
    "keep": [0.5, 0.25, 0.125],
    "override_hparams": [1.0, 0.5, 0.25],
    "reset_scheduler": [2.0, 1.0, 0.5],
    "reset_all": [2.0, 1.0, 0.5],
}


@pytest.mark.parametrize("sanity_steps", [0, 1])
@pytest.mark.parametrize(("policy", "expected"), RATES_BY_POLICY.items(), ids=RATES_BY_POLICY)
def test_epoch_in_which_a_training_resumes_counts_with_each_policy(
    recording_module: type, resume_within_an_epoch: Any, policy: str, expected: list[float], sanity_steps: int
) -> None:
    doubled = {**SGD, "lr": 2.0}
    module = resume_within_an_epoch(recording_module(), HALVING, doubled, policy, num_sanity_val_steps=sanity_steps)
    rates = dict.fromkeys((epoch, lr) for epoch, _, lr in module.batches)
    assert list(rates) == list(zip([1, 2, 3], expected, strict=True))


@pytest.mark.parametrize("saved_in", ["on_validation_start", "on_validation_end", "on_train_epoch_end", "on_train_end"])
@pytest.mark.parametrize("limit", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 16}], ids=["epochs", "steps"])
def test_resumed_epoch_end_does_not_count_again(
    pl: Any, recording_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any, saved_in: str, limit: Any
) -> None:
    path = tmp_path / "saved.ckpt"

    def save(callback: Any, run: Any, *_: Any) -> None:
        if run.current_epoch - (saved_in == "on_train_end") == 1:
            run.save_checkpoint(path)

    saver = type("Save", (pl.callbacks.Callback,), {saved_in: save})()

    def run(arguments: Any, callbacks: Any = (), ckpt_path: Any = None) -> Any:
        module = recording_module()
        fitted = trainer(callbacks=[quiet_callback(SGD, HALVING), *callbacks], enable_checkpointing=True, **arguments)
        fitted.fit(module, ckpt_path=ckpt_path)
        return module

    run({"max_epochs": 2}, [saver])
    resumed = run(limit, ckpt_path=path)
    assert [lr for *_, lr in resumed.batches] == [0.25] * 4 + [0.125] * 4


@pytest.mark.parametrize("saved_in", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_resume_from_a_checkpoint_without_an_epoch_count(
    pl: Any, recording_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any, saved_in: str
) -> None:
    """Checkpoints of Lightning alone: it steps the schedule after the last batch of an epoch."""
    path = tmp_path / "saved.ckpt"

    class Native(recording_module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    def save(callback: Any, run: Any, *_: Any) -> None:
        if run.current_epoch == 1:
            run.save_checkpoint(path)

    saver = type("Save", (pl.callbacks.Callback,), {saved_in: save})()
    trainer(callbacks=saver, enable_checkpointing=True, max_epochs=2).fit(Native())
    module = recording_module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = trainer(callbacks=quiet_callback(SGD, HALVING), max_epochs=4)
        fitted.fit(module, ckpt_path=path)
    if LIGHTNING < (2, 5) and saved_in == "on_train_batch_end":
        # Lightning trains the last batch of epoch 1 once more, and the schedule is stepped once more after it.
        assert [lr for *_, lr in module.batches] == [0.25] + [0.125] * 4 + [0.0625] * 4
        assert scheduler_of(fitted).last_epoch == 5
    else:
        assert [lr for *_, lr in module.batches] == [0.25] * 4 + [0.125] * 4
        assert scheduler_of(fitted).last_epoch == 4


def test_metric_of_on_train_epoch_end_is_used_once_although_lightning_calls_the_hook_again(
    pl: Any, recording_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any
) -> None:
    plateau = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}

    def run(steps: int, ckpt_path: Any = None) -> Any:
        module = recording_module(late={"late_loss": range(1, 9)})
        saver = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
        configure = quiet_callback(SGD, plateau, monitor="late_loss")
        fitted = trainer(callbacks=[configure, saver], enable_checkpointing=True, max_epochs=-1, max_steps=steps)
        fitted.fit(module, ckpt_path=ckpt_path)
        return module.batches

    assert run(8) + run(16, tmp_path / "last.ckpt") == run(16)


def test_optimizer_steps_between_batches_are_scheduled_after_a_resume(
    pl: Any, recording_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any
) -> None:
    class StepsAtEpochEnd(recording_module):
        def on_train_epoch_end(self) -> None:
            self.optimizers().step()

    def run(epochs: int, ckpt_path: Any = None) -> Any:
        module = StepsAtEpochEnd(automatic=False)
        saver = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
        configure = quiet_callback(SGD, {**HALVING, "interval": "step", "warmup_steps": 20})
        fitted = trainer(callbacks=[configure, saver], enable_checkpointing=True, max_epochs=epochs)
        fitted.fit(module, ckpt_path=ckpt_path)
        return module.batches

    assert run(2) + run(4, tmp_path / "last.ckpt") == run(4)
