"""Resuming from checkpoints: equality with an uninterrupted run, the policies of `on_resume`, and error messages."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from optplug.errors import WiringError
from support import LIGHTNING, PLATEAU, RISING, RISING_LOSSES, SGD, final_lrs

BATCHES = 4
"""The number of batches in an epoch of `scripted_module`."""

ADAM = {"name": "adam", "lr": 0.1}
CONFIGURATIONS = {
    "adam, plateau": (ADAM, PLATEAU),
    "adam, plateau, warmup": (ADAM, {**PLATEAU, "patience": 1, "warmup_steps": 10}),
    "sgd, cosine, warmup": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "cosine_annealing_lr", "T_max": 5, "warmup_steps": 10},
    ),
    "sgd, cosine per step": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "cosine_annealing_lr", "T_max": 20, "interval": "step", "frequency": 3},
    ),
}
# The best value changes before and after the checkpoint, so that a lost or a repeated step changes the result.
VAL_LOSSES = {"val_loss": [5.0, 4.0, 6.0, 3.0, 7.0, 8.0, 2.0]}
EPOCHS = 5

# The resumed runs save into the folder of the checkpoint that they resume from.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


# ----------------------------------------------------------------------- equality with an uninterrupted run


def final_state(run: Any, module: Any) -> dict[str, Any]:
    """Weights, optimizer states and scheduler states after a run."""
    return {
        "weights": {name: p.tolist() for name, p in module.state_dict().items()},
        "optimizer": [
            [
                {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
                for state in o.state.values()
            ]
            for o in run.optimizers
        ],
        "scheduler": [entry.scheduler.state_dict() for entry in run.lr_scheduler_configs],
    }


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize(
    ("entry_point", "at_epoch_end", "arguments"),
    [
        ("callback", True, {}),
        ("module", True, {}),
        ("callback", False, {}),
        ("callback", True, {"val_check_interval": 0.5}),
        ("callback", True, {"check_val_every_n_epoch": 2}),
        ("callback", True, {"max_steps": 4 * EPOCHS, "max_epochs": -1}),
    ],
    ids=[
        "epoch end",
        "configure_optimizers",
        "validation end",
        "two validations per epoch",
        "every second epoch",
        "max_steps",
    ],
)
def test_resumed_run_equals_uninterrupted_run(
    scripted_module: type,
    self_configured_module: type,
    optplug_lightning: Any,
    trainer: Any,
    save_every_checkpoint: Any,
    tmp_path: Path,
    configuration: Any,
    entry_point: str,
    at_epoch_end: bool,
    arguments: Any,
):
    optimizer, scheduler = configuration

    def fit(**kwargs: Any) -> tuple[Any, Any]:
        if entry_point == "module":
            module, own = self_configured_module({"optimizer": optimizer, "scheduler": scheduler}, val=VAL_LOSSES), []
        else:
            module = scripted_module(val=VAL_LOSSES)
            own = [optplug_lightning.ConfigureOptimizers(optimizer, scheduler, verbose=False)]
        callbacks = [*own, save_every_checkpoint("{epoch}-{step}", save_on_train_epoch_end=at_epoch_end)]
        run = trainer(**{"max_epochs": EPOCHS, "enable_checkpointing": True, "callbacks": callbacks, **arguments})
        run.fit(module, **kwargs)
        return run, module

    uninterrupted_trainer, uninterrupted = fit()
    resumed_trainer, resumed = fit(ckpt_path=tmp_path / "epoch=1-step=8.ckpt")
    assert resumed.lrs == uninterrupted.lrs[8:]
    assert resumed.scheduler_steps == [step for step in uninterrupted.scheduler_steps if step[0] > 1]
    assert final_state(resumed_trainer, resumed) == final_state(uninterrupted_trainer, uninterrupted)


@pytest.mark.both_import_names
@pytest.mark.parametrize("hook", ["train", "late"])
def test_plateau_on_training_metric_resumes_from_epoch_end(
    scripted_module: type, optplug_lightning: Any, trainer: Any, save_every_checkpoint: Any, tmp_path: Path, hook: str
):
    optimizer, scheduler = CONFIGURATIONS["adam, plateau"]

    def fit(**kwargs: Any) -> tuple[Any, Any]:
        module = scripted_module(**{hook: {"train_loss": VAL_LOSSES["val_loss"]}})
        own = optplug_lightning.ConfigureOptimizers(optimizer, scheduler, monitor="train_loss", verbose=False)
        run = trainer(
            max_epochs=EPOCHS,
            enable_checkpointing=True,
            callbacks=[own, save_every_checkpoint("{epoch}-{step}", save_on_train_epoch_end=True)],
        )
        run.fit(module, **kwargs)
        return run, module

    uninterrupted_trainer, uninterrupted = fit()
    assert [metric for *_, metric in uninterrupted.scheduler_steps] == VAL_LOSSES["val_loss"][:EPOCHS]
    resumed_trainer, resumed = fit(ckpt_path=tmp_path / "epoch=1-step=8.ckpt")
    assert resumed.lrs == uninterrupted.lrs[8:]
    assert [metric for *_, metric in resumed.scheduler_steps] == VAL_LOSSES["val_loss"][2:EPOCHS]
    assert final_state(resumed_trainer, resumed) == final_state(uninterrupted_trainer, uninterrupted)


# ------------------------------------------------------------------------------------------- checkpoints

PLAIN_TYPES = (int, float, str, bool, type(None))


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, PLAIN_TYPES) and is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return type(value) in PLAIN_TYPES


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_checkpoint_loads_with_weights_only_and_holds_plain_data(
    scripted_module: type, optplug_lightning: Any, trainer: Any, tmp_path: Path, configuration: Any
):
    optimizer, scheduler = configuration
    run = trainer(callbacks=optplug_lightning.ConfigureOptimizers(optimizer, scheduler, verbose=False))
    run.fit(scripted_module(val=VAL_LOSSES))
    run.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert is_plain(loaded["lr_schedulers"])
    assert is_plain(loaded["callbacks"])
    assert all(is_plain(state["param_groups"]) for state in loaded["optimizer_states"])
    assert all(
        isinstance(v, torch.Tensor)
        for o in loaded["optimizer_states"]
        for state in o["state"].values()
        for v in state.values()
    )


@pytest.mark.parametrize("first", ["torch", "optplug"])
@pytest.mark.parametrize("with_plateau", [False, True], ids=["no schedule", "plateau"])
def test_checkpoints_are_exchangeable_with_torch_adam(
    scripted_module: type, optplug_lightning: Any, trainer: Any, tmp_path: Path, first: str, with_plateau: bool
):
    class WithTorchAdam(scripted_module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            if not with_plateau:
                return optimizer
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    def fit(implementation: str, epochs: int, **kwargs: Any) -> tuple[Any, Any]:
        if implementation == "torch":
            module, callback = WithTorchAdam(val=VAL_LOSSES), optplug_lightning.ConfigureOptimizers(verbose=False)
        else:
            scheduler = PLATEAU if with_plateau else None
            module = scripted_module(val=VAL_LOSSES)
            callback = optplug_lightning.ConfigureOptimizers(ADAM, scheduler, verbose=False)
        run = trainer(max_epochs=epochs, callbacks=callback)
        run.fit(module, **kwargs)
        return run, module

    second = {"torch": "optplug", "optplug": "torch"}[first]
    uninterrupted_trainer, uninterrupted = fit(first, 4)
    start, _ = fit(first, 2)
    start.save_checkpoint(tmp_path / "half.ckpt")
    run, resumed = fit(second, 4, ckpt_path=tmp_path / "half.ckpt")
    assert type(run.optimizers[0]) is not type(uninterrupted_trainer.optimizers[0])
    assert resumed.lrs == uninterrupted.lrs[8:]
    for p, q in zip(resumed.parameters(), uninterrupted.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    for state, other in zip(
        run.optimizers[0].state.values(), uninterrupted_trainer.optimizers[0].state.values(), strict=True
    ):
        assert set(state) == set(other)
        assert state["step"] == other["step"]


def test_checkpoint_is_saved_before_a_nonfinite_metric_raises(
    fit: Any, save_every_checkpoint: Any, optplug_lightning: Any, scripted_module: type, tmp_path: Path
) -> None:
    scheduler = {**PLATEAU, "on_nonfinite": "raise"}
    callback = optplug_lightning.ConfigureOptimizers(SGD, scheduler, monitor="train_loss")
    callbacks = [callback, save_every_checkpoint("{epoch}", save_on_train_epoch_end=True)]
    module = scripted_module(late={"train_loss": [1.0, float("nan")]})
    with pytest.raises(WiringError, match="epoch 1: train_loss is nan"):
        fit(SGD, module=module, callbacks=callbacks, enable_checkpointing=True)
    assert (tmp_path / "epoch=1.ckpt").exists()
    with pytest.warns(UserWarning, match="epoch 1: train_loss is nan"):  # in the last epoch there is a warning only
        fit(SGD, module=scripted_module(late=module.late), callbacks=callbacks, enable_checkpointing=True, max_epochs=2)


# ---------------------------------------------------------------------------------- policies of on_resume


@pytest.fixture
def saved(fit: Any, tmp_path: Path) -> Any:
    """Fits as `fit` does, for two epochs by default, and saves a checkpoint; returns trainer, module and path."""

    def run(*args: Any, **kwargs: Any) -> Any:
        made, module = fit(*args, **{"max_epochs": 2, "num_sanity_val_steps": 0, **kwargs})
        made.save_checkpoint(tmp_path / "saved.ckpt")
        return made, module, tmp_path / "saved.ckpt"

    return run


@pytest.mark.parametrize("lr", [1.0, 2.0])
def test_override_hparams_keeps_the_cuts_of_a_plateau(fit: Any, scripted_module: type, saved: Any, lr: float) -> None:
    made, _, path = saved(SGD, PLATEAU, module=scripted_module(val=RISING_LOSSES), max_epochs=4)
    assert final_lrs(made) == [0.125]
    values = {"val_loss": [0.5]}  # an improvement: no further cut
    made, module = fit(
        {"name": "sgd", "lr": lr},
        PLATEAU,
        module=scripted_module(val=values),
        ckpt_path=path,
        max_epochs=5,
        on_resume="override_hparams",
    )
    assert set(module.lrs) == {0.125 * lr}


TWO_METRICS = {"val_loss": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "val_mse": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]}


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize("policy", ["override_hparams", "reset_scheduler", "reset_all"])
def test_changed_monitor_discards_the_best_value(
    fit: Any, scripted_module: type, saved: Any, tmp_path: Path, policy: str, sanity: int
) -> None:
    _, _, path = saved(SGD, {**PLATEAU, "patience": 9}, module=scripted_module(val=TWO_METRICS), monitor="val_loss")
    given = {"monitor": "val_mse", "num_sanity_val_steps": sanity}  # a resumed run may have a sanity check too
    patient = {**PLATEAU, "patience": 0}
    made, module = fit(
        SGD, patient, module=scripted_module(val=TWO_METRICS), ckpt_path=path, max_epochs=5, on_resume=policy, **given
    )
    assert final_lrs(made) == [1.0]
    assert [metric for *_, metric in module.scheduler_steps] == [7.0, 6.0, 5.0]
    made.save_checkpoint(tmp_path / "again.ckpt")
    _, module = fit(
        SGD, patient, module=scripted_module(val=TWO_METRICS), ckpt_path=tmp_path / "again.ckpt", max_epochs=6, **given
    )
    assert [metric for *_, metric in module.scheduler_steps] == [4.0]


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize("other", [{"monitor": "val_mse"}, {"monitor": "val_loss", "mode": "max"}], ids=str)
def test_policy_keep_restores_the_monitored_metric_and_its_best_value(
    fit: Any, scripted_module: type, saved: Any, capsys: Any, other: Any, sanity: int
) -> None:
    _, _, path = saved(SGD, {**PLATEAU, "patience": 1}, module=scripted_module(val=TWO_METRICS), monitor="val_loss")
    made, module = fit(
        SGD,
        {**PLATEAU, "patience": 1},
        module=scripted_module(val=TWO_METRICS),
        ckpt_path=path,
        max_epochs=4,
        num_sanity_val_steps=sanity,
        verbose=True,
        **other,
    )
    assert [metric for *_, metric in module.scheduler_steps] == pytest.approx([0.3, 0.4])
    assert final_lrs(made) == [0.5]
    assert capsys.readouterr().out.endswith(
        "plateau: 4 validations seen, 1 cut (epoch 2), monitor val_loss (min) from the checkpoint\n"
    )


@pytest.mark.parametrize("policy", ["keep", "override_hparams"])
def test_patience_unit_and_on_nonfinite_follow_the_policy(
    fit: Any, scripted_module: type, saved: Any, policy: str
) -> None:
    plans: list[Any] = []

    class RecordsPlan(scripted_module):
        def on_train_end(self) -> None:
            plans.extend(managed.plan for managed in self.trainer.callbacks[0].fit_state.managed)

    before = {"scheduler": {**PLATEAU, "patience_unit": "epochs", "on_nonfinite": "ignore"}, "monitor": "val_loss"}
    _, _, path = saved(SGD, module=scripted_module(val=RISING_LOSSES), **before)
    now = {**before, "scheduler": {**PLATEAU, "patience_unit": "steps"}}
    fit(SGD, module=RecordsPlan(val=RISING_LOSSES), ckpt_path=path, max_epochs=3, on_resume=policy, **now)
    (plan,) = plans
    assert (plan.patience_unit, plan.on_nonfinite) == (("epochs", "ignore") if policy == "keep" else ("steps", "bad"))


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_reset_scheduler_restarts_the_patience(fit: Any, scripted_module: type, saved: Any, unit: str) -> None:
    given = {"scheduler": {**PLATEAU, "patience": 3, "patience_unit": unit}, "monitor": "val_loss"}
    _, _, path = saved(SGD, module=scripted_module(val=RISING_LOSSES), max_epochs=5, **given)
    nothing = scripted_module(val={"val_loss": [float("nan")]})
    given["scheduler"]["patience"] = 3 if unit == "epochs" else 3 * BATCHES
    made, _ = fit(SGD, module=nothing, ckpt_path=path, max_epochs=8, on_resume="reset_scheduler", **given)
    assert final_lrs(made) == [1.0]


def test_override_hparams_keeps_and_reports_the_lr_of_a_torch_plateau(
    fit: Any, scripted_module: type, trainer: Any, tmp_path: Path, capsys: Any
) -> None:
    class Own(scripted_module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    plain = trainer(max_epochs=3)
    plain.fit(Own(val=RISING_LOSSES))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    assert final_lrs(plain) == [0.25]
    better = scripted_module(val={"val_loss": [0.5]})
    given = {"ckpt_path": tmp_path / "plain.ckpt", "max_epochs": 4, "on_resume": "override_hparams", "verbose": True}
    made, _ = fit(SGD, PLATEAU, module=better, **given)
    assert final_lrs(made) == [0.25]
    assert "the checkpoint has no base learning rate: the learning rate stays at 0.25\n" in capsys.readouterr().out


def test_override_hparams_applies_a_changed_warmup_length(fit: Any, scripted_module: type, saved: Any) -> None:
    better = {"val_loss": [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]}
    _, _, path = saved(SGD, {**PLATEAU, "warmup_steps": 8}, module=scripted_module(val=better), max_epochs=1)
    made, module = fit(
        SGD,
        {**PLATEAU, "warmup_steps": 16},
        module=scripted_module(val=better),
        ckpt_path=path,
        max_epochs=5,
        on_resume="override_hparams",
    )
    assert final_lrs(made) == [1.0]
    assert module.lrs[:2] == [1 / 16 + 15 / 16 * 4 / 16, 1 / 16 + 15 / 16 * 5 / 16]


def test_policy_keep_restores_the_warmup_length(fit: Any, saved: Any) -> None:
    exponential = {"name": "exponential_lr", "gamma": 1.0}
    _, uninterrupted, _ = saved(SGD, {**exponential, "warmup_steps": 8})
    _, _, path = saved(SGD, {**exponential, "warmup_steps": 8}, max_epochs=1)
    _, resumed = fit(SGD, {**exponential, "warmup_steps": 100}, ckpt_path=path, max_epochs=2)
    assert resumed.lrs == uninterrupted.lrs[BATCHES:]


def test_policy_keep_restores_interval_and_frequency(fit: Any, saved: Any) -> None:
    by_step = {"name": "exponential_lr", "gamma": 0.5, "interval": "step", "frequency": 2}
    _, uninterrupted, _ = saved(SGD, by_step)
    _, _, path = saved(SGD, by_step, max_epochs=1)
    _, resumed = fit(SGD, {"name": "exponential_lr", "gamma": 0.5}, ckpt_path=path, max_epochs=2)
    assert resumed.lrs == uninterrupted.lrs[BATCHES:]


def test_resume_reports_differences_with_the_value_that_is_used(fit: Any, saved: Any, capsys: Any) -> None:
    _, _, path = saved(SGD, {"name": "step_lr", "step_size": 9})
    fit(
        {"name": "sgd", "lr": 2.0, "momentum": 0.9},
        {"name": "step_lr", "step_size": 7},
        ckpt_path=path,
        on_resume="reset_scheduler",
        verbose=True,
    )
    output = capsys.readouterr().out
    expected = {
        "optimizer.lr is 2.0 in the configuration and 1.0 in the checkpoint": "configuration",
        "group 0: lr is 2.0 in the configuration and 1.0 in the checkpoint": "configuration",
        "optimizer.momentum is 0.9 in the configuration and the default in the checkpoint": "checkpoint",
        "scheduler.step_size is 7 in the configuration and 9 in the checkpoint": "configuration",
    }
    for difference, source in expected.items():
        assert f"{difference}: the value of the {source} is used\n" in output
    assert "on_resume is" not in output


def test_restored_auto_length_is_reported(fit: Any, saved: Any, capsys: Any) -> None:
    cosine = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
    _, _, path = saved(SGD, cosine, max_epochs=1)
    fit(SGD, cosine, ckpt_path=path, max_epochs=3, verbose=True)
    assert "T_max is 4: from the checkpoint; this training has 12" in capsys.readouterr().out


def test_on_resume_applies_without_a_schedule(self_configured_module: type, trainer: Any, tmp_path: Path) -> None:
    def run(epochs: int, **kwargs: Any) -> Any:
        path = kwargs.pop("ckpt_path", None)
        module = self_configured_module({"optimizer": {"name": "sgd", "lr": kwargs.pop("lr")}, **kwargs})
        made = trainer(max_epochs=epochs, enable_checkpointing=True)
        made.fit(module, ckpt_path=path)
        return made, module

    made, _ = run(1, lr=0.1)
    path = made.checkpoint_callback.best_model_path
    assert torch.load(path, weights_only=True)["optplug"]["config"] == {"optimizer": {"name": "sgd", "lr": 0.1}}
    assert set(run(2, lr=0.5, ckpt_path=path)[1].lrs) == {0.1}
    assert set(run(2, lr=0.5, ckpt_path=path, on_resume="override_hparams")[1].lrs) == {0.5}


def test_resume_with_another_class_of_the_own_optimizer_raises(fit: Any, scripted_module: type, saved: Any) -> None:
    class Own(scripted_module):
        cls: Any = torch.optim.SGD

        def configure_optimizers(self) -> Any:
            return self.cls(self.parameters(), lr=0.1)

    exponential = {"name": "exponential_lr", "gamma": 0.5}
    _, _, path = saved(None, exponential, module=Own())
    other = Own()
    other.cls = torch.optim.Adam
    with pytest.raises(WiringError, match="the optimizer of the checkpoint is SGD, but the configuration has Adam"):
        fit(None, exponential, module=other, ckpt_path=path)


def test_resume_with_an_added_warmup_raises(fit: Any, saved: Any) -> None:
    _, _, path = saved(SGD, {"name": "step_lr", "step_size": 9})
    with pytest.raises(WiringError, match="is step_lr, but the configuration has step_lr with a warmup; on_resume: "):
        fit(SGD, {"name": "step_lr", "step_size": 9, "warmup_steps": 3}, ckpt_path=path)


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=:UserWarning")  # Lightning resumes OnExceptionCheckpoint by itself
@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_epoch_start"])
def test_checkpoint_of_an_exception_within_a_validation_warns_about_the_lost_value(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any, hook: str
) -> None:
    def fail(module: Any, *args: Any) -> None:
        if module.trainer.current_epoch == 1:
            raise ZeroDivisionError
        return getattr(scripted_module, hook)(module, *args)

    failing = type("Failing", (scripted_module,), {hook: fail})
    saver = pl.callbacks.OnExceptionCheckpoint(tmp_path)
    made = trainer(callbacks=[quiet_callback(SGD, PLATEAU), saver], enable_checkpointing=True)
    with pytest.raises(ZeroDivisionError):
        made.fit(failing(val=RISING))
    resumed = scripted_module(val=RISING)
    lost = r"reduce_lr_on_plateau misses a value of val_loss: .* Lightning does not run"
    with pytest.warns(UserWarning, match=lost) if LIGHTNING >= (2, 5) else nullcontext():
        trainer(callbacks=quiet_callback(SGD, PLATEAU)).fit(resumed, ckpt_path=tmp_path / "on_exception.ckpt")
    # Lightning < 2.5 runs the validation again.
    assert resumed.step_values == ([2.0, 3.0] if LIGHTNING < (2, 5) else [2.0])


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=:UserWarning")
def test_checkpoint_of_an_exception_before_a_late_value_warns(
    pl: Any, scripted_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any
) -> None:
    class Failing(scripted_module):
        def on_train_epoch_end(self) -> None:
            if self.trainer.current_epoch == 1:
                raise ZeroDivisionError
            super().on_train_epoch_end()

    plateau = {**PLATEAU, "monitor": "late_loss", "mode": "min"}
    late = {"late_loss": [1.0, 2.0, 3.0]}
    saver = pl.callbacks.OnExceptionCheckpoint(tmp_path)
    with pytest.raises(ZeroDivisionError):
        trainer(callbacks=[quiet_callback(SGD, plateau), saver], enable_checkpointing=True).fit(Failing(late=late))
    saved = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["optplug"]
    assert saved["late_due"]
    assert saved["steps_handled"] == [8]


def test_checkpoint_within_a_validation_step_loses_no_value(
    scripted_module: type, trainer: Any, quiet_callback: Any, tmp_path: Any
) -> None:
    class Saving(scripted_module):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.current_epoch == 1 and not self.trainer.sanity_checking and batch_idx == 0:
                self.trainer.save_checkpoint(tmp_path / "saved.ckpt")
            return super().validation_step(batch, batch_idx)

    trainer(callbacks=quiet_callback(SGD, PLATEAU)).fit(Saving(val=RISING))
    module = scripted_module(val=RISING)
    fitted = trainer(callbacks=quiet_callback(SGD, PLATEAU))
    fitted.fit(module, ckpt_path=tmp_path / "saved.ckpt")
    assert fitted.lr_scheduler_configs[0].scheduler.last_epoch == 3
