"""`optplug.configure_optimizers` in a module, and what it builds: lengths, learning rates, copies, and errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug.config.build import parse_and_check
from optplug.errors import ConfigError, ConfigTypeError, WiringError
from optplug.lightning.managed_scheduler import ManagedFrequency
from optplug.lightning.scheduler_stepper import SchedulerStepper
from support import ADAM, COSINE, PLATEAU, RISING, RISING_LOSSES, SGD, cosine, final_lrs, lr_finder


@pytest.mark.both_import_names
def test_module_may_return_the_result_of_optplug_configure_optimizers(self_configured_module: type, trainer: Any):
    module = self_configured_module({"optimizer": ADAM, "scheduler": COSINE})
    fitted = trainer()
    fitted.fit(module)
    assert type(fitted.optimizers[0]) is optplug.get_optimizer("adam")
    assert module.lrs == [cosine(epoch) for epoch in range(3) for _ in range(4)]


@pytest.mark.both_import_names
def test_configure_optimizers_and_callback_train_identically(
    scripted_module: type, self_configured_module: type, trainer: Any, quiet_callback: Any
):
    configuration = {"optimizer": {"name": "adam", "lr": 0.1}, "scheduler": {**PLATEAU, "warmup_steps": 5}}
    configuration["param_groups"] = [{"match": "*.bias", "lr": 0.5}]
    self_configured, with_callback = self_configured_module(configuration, val=RISING), scripted_module(val=RISING)
    trainer().fit(self_configured)
    trainer(callbacks=[quiet_callback(**configuration)]).fit(with_callback)
    assert self_configured.lrs == with_callback.lrs
    assert self_configured.scheduler_steps == with_callback.scheduler_steps
    for p, q in zip(self_configured.parameters(), with_callback.parameters(), strict=True):
        assert torch.equal(p, q)


def test_changes_to_the_returned_dictionary_take_effect(scripted_module: type, trainer: Any):
    class WithEditedDictionary(scripted_module):
        def configure_optimizers(self):
            returned = optplug.configure_optimizers(self, SGD, COSINE)
            returned["lr_scheduler"]["frequency"] = 2
            return returned

    fitted = trainer(max_epochs=4)
    fitted.fit(WithEditedDictionary())
    assert fitted.lr_scheduler_configs[0].scheduler.last_epoch == 2


def module_with_inner_module(pl: Any, inner: Any, configure: Any) -> Any:
    """A LightningModule that contains another one, and a layer outside of it.

    Args:
        pl: Lightning.
        inner: the class of the inner module.
        configure: the function that is called with the outer module as its `configure_optimizers`.
    """

    class Outer(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = inner(), nn.Linear(1, 1)

        def training_step(self, batch: Any) -> Any:
            return self.head(self.inner.layer(batch[0])).mean()

        def configure_optimizers(self) -> Any:
            return configure(self)

        def train_dataloader(self) -> Any:
            return self.inner.train_dataloader()

    return Outer()


@pytest.mark.both_import_names
@pytest.mark.parametrize("scheduler", [None, COSINE], ids=["no schedule", "cosine"])
@pytest.mark.parametrize("explicit", [False, True], ids=["no callback", "callback"])
def test_submodule_in_place_of_the_lightning_module_raises(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, scheduler: Any, explicit: bool
):
    module = module_with_inner_module(
        pl, scripted_module, lambda outer: optplug.configure_optimizers(outer.inner, "adam", scheduler)
    )
    with pytest.raises(WiringError) as caught:
        trainer(callbacks=[quiet_callback()] * explicit).fit(module)
    assert str(caught.value) == (
        f"configure_optimizers takes the LightningModule itself, got {scripted_module.__name__} from Outer: pass self, "
        "and select parameters with param_groups"
    )


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_warmup_of_a_plain_submodule_ramps_although_lightning_steps_the_schedule(
    pl: Any, scripted_module: type, trainer: Any, interval: str
):
    class Recorder(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            lrs.append(optimizer.param_groups[0]["lr"])

    lrs: list[float] = []
    scheduler = {**COSINE, "interval": interval, "warmup_steps": 10}
    module = module_with_inner_module(
        pl, scripted_module, lambda outer: optplug.configure_optimizers(outer.inner.layer, ADAM, scheduler)
    )
    trainer(callbacks=[Recorder()]).fit(module)
    steps = [i if interval == "step" else i // 4 for i in range(12)]
    assert lrs == pytest.approx([min(1, 0.1 + 0.09 * i) * cosine(t) for i, t in enumerate(steps)], abs=1e-15)


def test_inner_modules_that_configure_themselves_are_allowed_if_all_parameters_are_optimized(
    pl: Any, self_configured_module: type, trainer: Any
):
    def inner() -> Any:
        return self_configured_module({"optimizer": SGD, "scheduler": COSINE})

    module = module_with_inner_module(pl, inner, lambda outer: outer.inner.configure_optimizers())
    with pytest.raises(WiringError, match="takes the LightningModule itself"):
        trainer().fit(module)
    module = module_with_inner_module(pl, inner, lambda outer: outer.inner.configure_optimizers())
    module.head.requires_grad_(False)
    fitted = trainer()
    fitted.fit(module)
    assert fitted.lr_scheduler_configs[0].scheduler.last_epoch == 3


# ----------------------------------------------------------- The callback that configure_optimizers adds to the trainer


@pytest.mark.parametrize("stop", [False, True], ids=["fit", "exception"])
def test_stepping_callback_is_added_for_one_fit(
    self_configured_module: type, trainer: Any, optplug_lightning: Any, frequency_recorder: Any, stop: bool
):
    callbacks = [frequency_recorder(stop)]
    module = self_configured_module({"optimizer": ADAM, "scheduler": PLATEAU}, val=RISING)
    fitted = trainer(callbacks=callbacks)
    before = list(fitted.callbacks)
    if stop:
        with pytest.raises(frequency_recorder.StopFit):
            fitted.fit(module)
    else:
        fitted.fit(module)
    assert [type(frequency) for frequency in callbacks[0].frequencies] == [ManagedFrequency]
    assert len(callbacks) == 1
    assert fitted.callbacks == before
    assert [entry.frequency for entry in fitted.lr_scheduler_configs] == [1]


def test_stepping_callback_is_added_only_if_the_trainer_has_none(
    pl: Any, self_configured_module: type, trainer: Any, quiet_callback: Any
):
    counts: list[int] = []

    class Count(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            counts.append(sum(isinstance(c, SchedulerStepper) for c in trainer.callbacks))

    trainer(callbacks=[quiet_callback(), Count()]).fit(self_configured_module({"optimizer": ADAM, "scheduler": COSINE}))
    trainer(callbacks=[Count()]).fit(self_configured_module({"optimizer": ADAM}))
    trainer(callbacks=[Count()]).fit(self_configured_module({"optimizer": ADAM, "scheduler": COSINE}))
    assert counts == [1, 1, 1]


def test_added_callback_comes_before_model_checkpoint(
    pl: Any, self_configured_module: type, trainer: Any, tmp_path: Any
):
    order: list[str] = []

    class RecordOrder(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            order.extend(type(c).__name__ for c in trainer.callbacks)

    model_checkpoint = pl.callbacks.ModelCheckpoint(dirpath=tmp_path)
    trainer(callbacks=[model_checkpoint, RecordOrder()], enable_checkpointing=True).fit(
        self_configured_module({"optimizer": ADAM, "scheduler": COSINE})
    )
    assert order == ["SteppingCallback", "RecordOrder", "ModelCheckpoint"]


# ------------------------------------------------------------------------------- lengths, steps and learning rates


def test_lr_set_by_the_lr_finder_is_the_base_lr_of_a_warmup(
    pl: Any, optplug_lightning: Any, digits_module: type, trainer: Any
) -> None:
    class WithLR(digits_module):
        lr = 0.5

        def on_train_batch_start(self, *_: Any) -> None:
            self.seen = [*getattr(self, "seen", []), self.trainer.optimizers[0].param_groups[0]["lr"]]

    finder = lr_finder(pl, num_training_steps=40)
    callback = optplug_lightning.ConfigureOptimizers({"name": "sgd", "lr": 0.01}, {"warmup_steps": 10}, verbose=False)
    quiet = {"max_epochs": 1, "limit_val_batches": 0, "limit_train_batches": 20, "num_sanity_val_steps": 0}
    made, module = trainer(callbacks=[finder, callback], **quiet), WithLR()
    made.fit(module)
    assert module.lr != 0.5
    assert module.seen[-1] == pytest.approx(module.lr)
    assert module.seen[-20:][0] == pytest.approx(module.lr / 10)


@pytest.mark.both_import_names
def test_steps_of_an_unwrapped_optimizer_are_counted_in_manual_optimization(fit: Any, scripted_module: type) -> None:
    class WithUnwrappedOptimizer(scripted_module):
        def __init__(self) -> None:
            super().__init__(automatic=False)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            self.lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    _, module = fit(
        SGD, {"name": "exponential_lr", "gamma": 0.5, "interval": "step"}, module=WithUnwrappedOptimizer(), max_epochs=1
    )
    assert module.lrs == [1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(("frequency", "length"), [(1, 12), (5, 2), (12, 1), (13, 1)])
def test_auto_length_is_divided_by_the_frequency(fit: Any, frequency: int, length: int) -> None:
    cosine = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step", "frequency": frequency}
    made, _ = fit(SGD, cosine)
    assert made.lr_scheduler_configs[0].scheduler.T_max == length
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == (length if frequency < 13 else 0)


def test_exception_of_the_data_loader_is_propagated(fit: Any, scripted_module: type) -> None:
    module = scripted_module()

    def broken() -> Any:
        raise KeyError("my own")

    module.train_dataloader = broken
    with pytest.raises(KeyError, match="my own"):
        fit(SGD, {"name": "cosine_annealing_lr", "T_max": "auto"}, module=module)


def test_replaced_schedule_does_not_change_the_lr(fit: Any, scripted_module: type) -> None:
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            made = torch.optim.SGD(self.parameters(), lr=1.0)
            return [made], [torch.optim.lr_scheduler.LinearLR(made, 0.1)]

    _, module = fit(None, {"name": "step_lr", "step_size": 9}, module=Own(), override=True)
    assert set(module.lrs) == {1.0}


# ---------------------------------------------------------------------------------------- copies and shared values


def test_tensor_lr_is_cloned_for_each_group(fit: Any) -> None:
    lr = torch.tensor(1.0)
    given = {"name": "sgd", "lr": lr}
    groups = [{"match": "*.bias", "momentum": 0.5}]
    made, _ = fit(given, {"name": "exponential_lr", "gamma": 0.5}, param_groups=groups)
    assert final_lrs(made) == [0.125, 0.125]
    assert float(lr) == 1.0


def test_copy_made_during_training_can_be_trained(
    fit: Any, pl: Any, optplug_lightning: Any, scripted_module: type, trainer: Any
) -> None:
    copies: list[Any] = []

    class Copy(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            module_trainer, pl_module._trainer = pl_module._trainer, None
            copies.append(copy.deepcopy(pl_module))
            pl_module._trainer = module_trainer

    trainer(callbacks=[optplug_lightning.ConfigureOptimizers(SGD, verbose=False), Copy()], max_epochs=1).fit(
        scripted_module()
    )
    made, _ = fit({"name": "sgd", "lr": 0.5}, module=copies[0], max_epochs=1)
    assert final_lrs(made) == [0.5]


# ------------------------------------------------------------------------------------------------------- errors


def test_second_callback_without_optimizer_raises(optplug_lightning: Any, scripted_module: type, trainer: Any) -> None:
    callbacks = [
        optplug_lightning.ConfigureOptimizers(SGD, PLATEAU, verbose=False),
        optplug_lightning.ConfigureOptimizers(verbose=False),
    ]
    module = scripted_module(val=RISING_LOSSES)
    with pytest.raises(WiringError, match="the trainer has two ConfigureOptimizers callbacks: keep one"):
        trainer(callbacks=callbacks).fit(module)
    assert module.lrs == []


@pytest.mark.parametrize("given", [[{**SGD, "match": "*.bias"}], {"combine": [{**SGD, "match": "*.bias"}]}], ids=str)
def test_single_entry_with_selector_raises_for_parameters_that_are_not_selected(given: Any) -> None:
    module = nn.ModuleDict({"a": nn.Linear(1, 1)})
    with pytest.raises(ConfigError, match=r"no optimizer selects a\.weight: select them too, or freeze them"):
        optplug.configure_optimizers(module, given)
    module["a"].weight.requires_grad_(False)
    assert parse_and_check(**parse_and_check(given).to_dict()) == parse_and_check(given)
    optplug.configure_optimizers(module, given)


@pytest.mark.parametrize("name", ["override", "verbose"])
def test_flags_must_be_bool(optplug_lightning: Any, name: str) -> None:
    with pytest.raises(ConfigTypeError, match=f"^{name}: must be True or False, got 'no'"):
        optplug_lightning.ConfigureOptimizers("adam", **{name: "no"})


@pytest.mark.parametrize("given", [{"on_resume": "reset_al"}, {"on_resume": "reset_all"}, {"monitor": "x"}], ids=str)
def test_on_resume_and_monitor_without_optimizer_raise(optplug_lightning: Any, given: Any) -> None:
    with pytest.raises(ConfigError):
        optplug_lightning.ConfigureOptimizers(**given)
    module = nn.Linear(1, 1)
    with pytest.raises(ConfigError):
        optplug.configure_optimizers(module, torch.optim.SGD(module.parameters()), **given)
