"""`optplug.configure_optimizers` in a module's own `configure_optimizers`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import optplug
from optplug.errors import WiringError
from optplug.lightning.managed_scheduler import NEVER_STEPPED_BY_LIGHTNING
from optplug.lightning.scheduler_stepper import SchedulerStepper
from support import ADAM, COSINE, PLATEAU, RISING, SGD, cosine


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


def test_submodule_in_place_of_the_lightning_module_raises(pl: Any, trainer: Any):
    class PassesSubmodule(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch):
            return self.net(batch[0]).mean()

        def configure_optimizers(self):
            return optplug.configure_optimizers(self.net, "adam", COSINE)

    with pytest.raises(WiringError) as caught:
        trainer().fit(PassesSubmodule(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4))))
    assert str(caught.value) == (
        "configure_optimizers takes the LightningModule itself, got Linear from PassesSubmodule: pass self, and select "
        "parameters with param_groups"
    )


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
    assert callbacks[0].frequencies == [NEVER_STEPPED_BY_LIGHTNING]
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
