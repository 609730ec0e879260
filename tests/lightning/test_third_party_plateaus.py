"""`ReduceLROnPlateau` schedulers that the module built itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import optplug
from optplug.lightning.managed_scheduler import ManagedFrequency
from support import BATCHES_PER_EPOCH, COSINE, RISING, SGD, printed_lines


@pytest.mark.both_import_names
def test_plateau_is_managed_during_fit_and_released_after(
    torch_module: type, trainer: Any, quiet_callback: Any, frequency_recorder: Any
):
    module = torch_module(val=RISING, entry={"monitor": "val_loss"})
    fitted = trainer(callbacks=[quiet_callback(), recorder := frequency_recorder()], val_check_interval=0.5)
    fitted.fit(module)
    assert [type(frequency) for frequency in recorder.frequencies] == [ManagedFrequency]
    assert [entry.frequency for entry in fitted.lr_scheduler_configs] == [1]
    assert module.step_values == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert fitted.optimizers[0].param_groups[0]["lr"] == 0.5**5


@pytest.mark.parametrize("frequency", [1, 4])
def test_plateau_with_interval_step_steps_once_per_validation(
    torch_module: type, trainer: Any, quiet_callback: Any, frequency_recorder: Any, frequency: int
):
    module = torch_module(val=RISING, entry={"monitor": "val_loss", "interval": "step", "frequency": frequency})
    trainer(callbacks=[quiet_callback(), recorder := frequency_recorder()], val_check_interval=0.5).fit(module)
    assert [type(frequency) for frequency in recorder.frequencies] == [ManagedFrequency]
    assert module.step_values == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_plateau_with_interval_step_before_the_first_validation(
    pl: Any, torch_module: type, trainer: Any, optplug_lightning: Any
) -> None:
    module = torch_module(val=RISING, entry={"monitor": "val_loss", "interval": "step"})  # Lightning issue 1156
    fitted = trainer(callbacks=optplug_lightning.ConfigureOptimizers(verbose=False))
    fitted.fit(module)
    assert fitted.global_step == 3 * BATCHES_PER_EPOCH
    assert module.step_values == [1.0, 2.0, 3.0]
    assert module.lrs == [1.0] * 8 + [0.5] * 4
    without_optplug = torch_module(val=RISING, entry={"monitor": "val_loss", "interval": "step"})
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="which is not available"):
        trainer().fit(without_optplug)


def test_missing_metric_is_allowed_if_not_strict(torch_module: type, trainer: Any, quiet_callback: Any):
    module = torch_module(val=RISING, entry={"monitor": "val_los", "strict": False})
    trainer(callbacks=quiet_callback()).fit(module)
    assert module.scheduler_steps == []


def test_missing_metric_that_is_not_strict_is_reported_once(
    torch_module: type, trainer: Any, optplug_lightning: Any, capsys: Any
) -> None:
    module = torch_module(val=RISING, entry={"monitor": "val_los", "strict": False})
    trainer(callbacks=optplug_lightning.ConfigureOptimizers(), num_sanity_val_steps=0).fit(module)
    lines = [line for line in printed_lines(capsys) if "not logged" in line]
    assert lines == [
        "ReduceLROnPlateau monitors 'val_los' (from the module's configure_optimizers), which is not logged; did you "
        "mean 'val_loss'?"
    ]


# ---------------------------------------------------------------------- Plateaus that stay with Lightning or the module


def test_lightning_steps_plateau_on_a_metric_logged_per_batch(
    scripted_module: type, torch_module: type, trainer: Any, quiet_callback: Any, frequency_recorder: Any
):
    class LogsPerBatch(torch_module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train_loss", 1.0)
            return super().training_step(batch, batch_idx)

    module = LogsPerBatch(entry={"monitor": "train_loss", "interval": "step", "frequency": 2})
    trainer(callbacks=[quiet_callback(), recorder := frequency_recorder()]).fit(module)
    assert recorder.frequencies == [2]
    assert module.step_values == [1.0] * 6


@pytest.mark.parametrize("frequency", [1, 2])
def test_lightning_steps_plateau_with_a_frequency(
    scripted_module: type, trainer: Any, optplug_lightning: Any, frequency: int
):
    class WithFrequency(scripted_module):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            entry = {"scheduler": plateau, "monitor": "val_loss", "frequency": frequency}
            return {"optimizer": optimizer, "lr_scheduler": entry}

    fitted = trainer(callbacks=optplug_lightning.ConfigureOptimizers(), max_epochs=4)
    fitted.fit(WithFrequency(val=RISING))
    assert fitted.lr_scheduler_configs[0].scheduler.last_epoch == 4 // frequency


def test_added_callback_does_not_manage_third_party_plateaus(torch_module: type, trainer: Any, frequency_recorder: Any):
    class WithUnusedConfiguration(torch_module):
        def configure_optimizers(self) -> Any:
            optplug.configure_optimizers(self, SGD, COSINE)  # adds the callback
            return super().configure_optimizers()

    module = WithUnusedConfiguration(val=RISING, entry={"monitor": "val_loss"})
    trainer(callbacks=[recorder := frequency_recorder()]).fit(module)
    assert recorder.frequencies == [1]


def test_module_steps_its_plateau_in_manual_optimization(torch_module: type, trainer: Any, quiet_callback: Any):
    module = torch_module(val=RISING, automatic=False, entry={})
    trainer(callbacks=quiet_callback()).fit(module)
    assert module.scheduler_steps == []
