"""StochasticWeightAveraging trains with optplug's schedules as with torch's, and warns only where it should."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from support import SGD

SCHEDULES: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "epoch": ({"name": "exponential_lr", "gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9), {}),
    "plateau": (
        {"name": "reduce_lr_on_plateau", "patience": 0},
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
        {"monitor": "val_loss"},
    ),
    "step": (
        {"name": "cosine_annealing_lr", "T_max": 40, "interval": "step"},
        lambda o: lr_scheduler.CosineAnnealingLR(o, 40),
        {"interval": "step"},
    ),
    "every two epochs": (
        {"name": "exponential_lr", "gamma": 0.9, "frequency": 2},
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        {"frequency": 2},
    ),
}


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_weight_averaging_trains_as_with_torchs_schedule(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, schedule: Any, batch_norm: bool
) -> None:
    own, make_torchs, entry = schedule

    class Module(scripted_module):
        def __init__(self) -> None:
            super().__init__(val={"val_loss": [3.0, 2.0, 4.0]})
            if batch_norm:
                self.layer = nn.Sequential(nn.BatchNorm1d(4), self.layer)

    class Native(Module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make_torchs(optimizer), **entry}}

    def run(module: Any, *callbacks: Any) -> tuple[Any, list[str]]:
        averaging = pl.callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(callbacks=[*callbacks, averaging], max_epochs=6).fit(module)
        messages = [str(warning.message).partition(".")[0] for warning in caught]
        return module, [message for message in messages if message.startswith("SWA ")]

    native, native_warnings = run(Native())
    module, module_warnings = run(Module(), quiet_callback({**SGD, "lr": 0.1}, own))
    assert module.lrs == pytest.approx(native.lrs, rel=1e-12)
    for name, value in native.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)
    assert module_warnings == native_warnings
    assert bool(native_warnings) == (schedule in (SCHEDULES["step"], SCHEDULES["every two epochs"]))
