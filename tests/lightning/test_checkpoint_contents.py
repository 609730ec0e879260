"""Checkpoints: devices of restored optimizer states, and plain data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optplug
from support import ADAM, PLATEAU, RISING

NAN = float("nan")

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

OPTIMIZER_FACTORIES = {
    "torch": lambda params: torch.optim.Adam(params, lr=0.1),
    **{
        name: lambda params, name=name: optplug.create_optimizer(name, params, lr=0.1)
        for name in ("adam", "adamw", "adagrad")
    },
}


def state_after_two_steps(optimizer: Any, module: nn.Module) -> dict[str, Any]:
    """The state dict of an optimizer after two steps."""
    for _ in range(2):
        module(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    return optimizer.state_dict()


def step_placements(module: Any) -> list[tuple[Any, ...]]:
    """For the state of each parameter: device, dtype and value of `step`, and device of `exp_avg`."""
    return [
        (state["step"].device.type, state["step"].dtype, float(state["step"]), state["exp_avg"].device.type)
        for state in module.trainer.optimizers[0].state.values()
    ]


# --------------------------------------------------------------------------------- Devices of restored optimizer states


@pytest.mark.parametrize("make", OPTIMIZER_FACTORIES.values(), ids=OPTIMIZER_FACTORIES)
def test_loaded_step_stays_on_the_cpu(pl: Any, make: Any) -> None:
    module = nn.Linear(4, 1)
    saved = state_after_two_steps(make(module.parameters()), module)
    # The meta device is available on every machine.
    meta_module = nn.Linear(4, 1, device="meta")
    optimizer = make(meta_module.parameters())
    strategy = pl.strategies.SingleDeviceStrategy(device="meta")  # moves loaded states to its device
    strategy.optimizers = [optimizer]
    for load in (
        optimizer.load_state_dict,
        lambda state: strategy.load_optimizer_state_dict({"optimizer_states": [state]}),
    ):
        load(saved)
        for state in optimizer.state.values():
            assert (state["step"].device.type, state["step"].dtype, float(state["step"])) == ("cpu", torch.float32, 2.0)
            others = {name: value for name, value in state.items() if name != "step"}
            assert others
            assert {value.device.type for value in others.values()} == {"meta"}


@pytest.mark.parametrize("library", ["optplug", "torch"])
def test_step_stays_on_the_cpu_after_resume(
    optplug_lightning: Any, scripted_module: type, trainer: Any, tmp_path: Path, library: str
) -> None:
    class PlacementRecorder(scripted_module):
        def on_train_start(self) -> None:
            self.placements = step_placements(self)

    configure = {"optplug": (ADAM, PLATEAU), "torch": (None, PLATEAU)}[library]
    if library == "torch":
        PlacementRecorder.configure_optimizers = lambda self: torch.optim.Adam(self.parameters(), lr=1.0)
    for path in (None, tmp_path / "saved.ckpt"):
        fitted = trainer(
            callbacks=optplug_lightning.ConfigureOptimizers(*configure, verbose=False), max_epochs=2 if path else 1
        )
        module = PlacementRecorder(val=RISING)
        fitted.fit(module, ckpt_path=path)
        fitted.save_checkpoint(tmp_path / "saved.ckpt")
    assert module.placements == [("cpu", torch.float32, 4.0, "cpu")] * 2
    assert step_placements(module) == [("cpu", torch.float32, 8.0, "cpu")] * 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none")
@pytest.mark.parametrize("make", OPTIMIZER_FACTORIES.values(), ids=OPTIMIZER_FACTORIES)
def test_step_stays_on_the_cpu_for_gpu_parameters(
    scripted_module: type, trainer: Any, tmp_path: Path, make: Any
) -> None:
    class OnGpu(scripted_module):
        def configure_optimizers(self) -> Any:
            return make(self.parameters())

        def on_train_start(self) -> None:
            for state in self.trainer.optimizers[0].state.values():
                assert (state["step"].device.type, state["step"].dtype) == ("cpu", torch.float32)
                assert {value.device.type for name, value in state.items() if name != "step"} == {"cuda"}

    for path in (None, tmp_path / "saved.ckpt"):
        fitted = trainer(accelerator="cuda", max_epochs=2 if path else 1)
        module = OnGpu()
        fitted.fit(module, ckpt_path=path)
        fitted.save_checkpoint(tmp_path / "saved.ckpt")
    assert {float(state["step"]) for state in fitted.optimizers[0].state.values()} == {8.0}


# --------------------------------------------------------------------------------------- Checkpoints contain plain data


def test_checkpoint_loads_with_weights_only(
    pl: Any, fit_plateau: Any, scripted_module: type, model_checkpoint: Any, tmp_path: Path
) -> None:
    module = scripted_module(val={"val_loss": [1.0, NAN, 3.0]})
    callbacks = [model_checkpoint("val_loss"), pl.callbacks.EarlyStopping("val_loss", patience=9, check_finite=False)]
    configuration = {**PLATEAU, "warmup_steps": 2, "patience_unit": "steps", "on_nonfinite": "ignore", "min_lr": 0.01}
    fitted, _ = fit_plateau(
        None, configuration, optimizer=ADAM, module=module, callbacks=callbacks, enable_checkpointing=True
    )
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    written = sorted(tmp_path.rglob("*.ckpt"))
    assert len(written) == 2
    for path in written:
        assert set(torch.load(path, weights_only=True)) > {"lr_schedulers", "optimizer_states", "optplug"}


def test_autouse_fixture_checks_the_checkpoints_of_each_test(
    request: pytest.FixtureRequest, scripted_module: type, tmp_path: Path, capfd: Any
) -> None:
    assert "check_checkpoints_hold_plain_data" in request.fixturenames
    file = tmp_path / "test_it.py"
    file.write_text(
        "import torch\n"
        "class Thing: pass\n"
        "def test_plain(tmp_path): torch.save({'lr': 1.0}, tmp_path / 'a.ckpt')\n"
        "def test_folder(tmp_path): (tmp_path / 'shards.ckpt').mkdir()\n"
        "def test_none(): pass\n"
        "def test_object(tmp_path):\n"
        "    (tmp_path / 'deep').mkdir()\n"
        "    torch.save({'thing': Thing()}, tmp_path / 'deep' / 'b.ckpt')\n"
    )
    config = tmp_path / "pytest.ini"
    config.write_text("[pytest]\n")
    arguments = [str(file), "-c", str(config), "--import-mode=importlib", "-p", "no:cacheprovider"]
    arguments += ["--basetemp", str(tmp_path / "base")]
    assert pytest.main(arguments, plugins=[sys.modules[scripted_module.__module__]]) == pytest.ExitCode.TESTS_FAILED
    printed = capfd.readouterr().out
    assert "ERROR at teardown of test_object" in printed
    assert "b.ckpt" in printed
    assert "4 passed, 1 error" in printed
    # Move the checkpoint with an object out of tmp_path, where this test's own check would find it.
    (tmp_path / "base").rename(tmp_path.parent / f"{tmp_path.name}_checked")
