"""`on_resume`: what a resumed run takes from the checkpoint and what from the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optplug.errors import WiringError
from support import BATCHES_PER_EPOCH, rounded, scheduler_of

ADAM = {"name": "adam", "lr": 0.1}
SGD = {"name": "sgd", "lr": 0.1}


@pytest.fixture
def two_epoch_checkpoint(fit: Any, tmp_path: Path) -> Path:
    """A checkpoint after two epochs of Adam with learning rate 0.1, halved after each epoch."""
    fitted, _ = fit(ADAM, {"name": "exponential_lr", "gamma": 0.5}, max_epochs=2)
    fitted.save_checkpoint(tmp_path / "half.ckpt")
    return tmp_path / "half.ckpt"


def test_policy_keep_restores_the_checkpoint_and_reports_differences(
    fit: Any, two_epoch_checkpoint: Path, capsys: Any
) -> None:
    changed = {"name": "adam", "lr": 0.4}
    fitted, module = fit(
        changed, {"name": "exponential_lr", "gamma": 0.25}, ckpt_path=two_epoch_checkpoint, verbose=True
    )
    assert rounded(module.lrs[::BATCHES_PER_EPOCH]) == [0.025]
    assert scheduler_of(fitted).gamma == 0.5
    printed = capsys.readouterr().out
    assert "resumed with on_resume: keep: learning rates, options and counters come from the checkpoint" in printed
    assert (
        "optimizer.lr is 0.4 in the configuration and 0.1 in the checkpoint: the value of the checkpoint is used"
        in printed
    )
    assert (
        "scheduler.gamma is 0.25 in the configuration and 0.5 in the checkpoint: the value of the checkpoint is used"
        in printed
    )


def test_override_hparams_uses_the_configured_values(fit: Any, two_epoch_checkpoint: Path, capsys: Any) -> None:
    changed = {"name": "adam", "lr": 0.4, "eps": 1e-3}
    fitted, module = fit(
        changed,
        {"name": "exponential_lr", "gamma": 0.25},
        ckpt_path=two_epoch_checkpoint,
        on_resume="override_hparams",
        verbose=True,
    )
    assert rounded(module.lrs[::BATCHES_PER_EPOCH]) == rounded([0.4 * 0.25**2])
    assert fitted.optimizers[0].param_groups[0]["eps"] == 1e-3
    assert scheduler_of(fitted).last_epoch == 3
    assert fitted.global_step == 3 * BATCHES_PER_EPOCH
    assert {float(state["step"]) for state in fitted.optimizers[0].state.values()} == {3.0 * BATCHES_PER_EPOCH}
    printed = capsys.readouterr().out
    assert (
        "optimizer.lr is 0.4 in the configuration and 0.1 in the checkpoint: the value of the configuration is used"
        in printed
    )


def test_override_hparams_without_changes_equals_keep(fit: Any, two_epoch_checkpoint: Path) -> None:
    given = {"scheduler": {"name": "exponential_lr", "gamma": 0.5}, "ckpt_path": two_epoch_checkpoint, "max_epochs": 4}
    _, kept = fit(ADAM, **given)
    _, overridden = fit(ADAM, **given, on_resume="override_hparams")
    assert kept.lrs == overridden.lrs
    for p, q in zip(kept.parameters(), overridden.parameters(), strict=True):
        assert torch.equal(p, q)


def test_override_hparams_updates_plateau_and_warmup(fit: Any, scripted_module: type, tmp_path: Path) -> None:
    plateau = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "warmup_steps": 2}
    values = {"val_loss": [1.0, 2.0, 3.0, 4.0]}
    fitted, _ = fit(SGD, plateau, module=scripted_module(val=values), num_sanity_val_steps=0)
    assert fitted.optimizers[0].param_groups[0]["lr"] == 0.025
    fitted.save_checkpoint(tmp_path / "cut.ckpt")
    changed = {**plateau, "patience": 7}
    fitted, module = fit(
        {"name": "sgd", "lr": 0.8},
        changed,
        module=scripted_module(val=values),
        ckpt_path=tmp_path / "cut.ckpt",
        max_epochs=5,
        on_resume="override_hparams",
    )
    assert set(rounded(module.lrs)) == {0.2}  # the two cuts still apply
    assert scheduler_of(fitted).patience == 7


def test_reset_scheduler_restarts_schedule_and_keeps_optimizer_state(fit: Any, two_epoch_checkpoint: Path) -> None:
    fitted, module = fit(
        {"name": "adam", "lr": 0.4},
        {"name": "step_lr", "step_size": 1},
        ckpt_path=two_epoch_checkpoint,
        on_resume="reset_scheduler",
    )
    assert rounded(module.lrs[::BATCHES_PER_EPOCH]) == [0.4]
    assert scheduler_of(fitted).last_epoch == 1
    assert {float(state["step"]) for state in fitted.optimizers[0].state.values()} == {3.0 * BATCHES_PER_EPOCH}


def test_reset_all_keeps_only_the_weights(fit: Any, two_epoch_checkpoint: Path) -> None:
    fitted, module = fit({"name": "sgd", "lr": 0.0}, ckpt_path=two_epoch_checkpoint, on_resume="reset_all")
    assert fitted.current_epoch == 3
    weights = torch.load(two_epoch_checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(module.layer.weight, weights["layer.weight"])
    fitted, _ = fit(ADAM, ckpt_path=two_epoch_checkpoint, on_resume="reset_all")
    assert {float(state["step"]) for state in fitted.optimizers[0].state.values()} == {float(BATCHES_PER_EPOCH)}


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (
            {"optimizer": "sgd"},
            "the optimizer of the checkpoint is adam, but the configuration has sgd; on_resume: reset_all",
        ),
        (
            {"optimizer": ADAM},
            "the schedule of the checkpoint is exponential_lr, but the configuration has none; on_resume",
        ),
        (
            {"optimizer": ADAM, "scheduler": {"name": "step_lr", "step_size": 1}},
            "the schedule of the checkpoint is exponential_lr, but the configuration has step_lr; on_resume: "
            "reset_all keeps the weights and restarts optimizer and schedule, reset_scheduler restarts the schedule "
            "alone",
        ),
        (
            {
                "optimizer": ADAM,
                "scheduler": {"name": "exponential_lr", "gamma": 0.5},
                "param_groups": [{"match": "*.bias", "lr": 1.0}],
            },
            r"the parameter groups of the checkpoint are 0, but the configuration has default, \*.bias; group 0 no "
            r"longer has layer.b",
        ),
    ],
    ids=["optimizer", "no schedule", "schedule", "groups"],
)
def test_incompatible_checkpoint_raises(fit: Any, two_epoch_checkpoint: Path, configuration: Any, message: str) -> None:
    with pytest.raises(WiringError, match=message):
        fit(**configuration, ckpt_path=two_epoch_checkpoint)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "exponential_lr", "gamma": 0.5},
        {"name": "reduce_lr_on_plateau", "patience": 0, "monitor": "val_loss"},
        {"name": "reduce_lr_on_plateau", "patience": 0, "monitor": "val_loss", "warmup_steps": 3},
        {"name": "cosine_annealing_lr", "T_max": 6},
        {"name": "lambda_lr", "lr_lambda": "1 / (1 + epoch)"},
        None,
    ],
    ids=["exponential", "plateau", "plateau with warmup", "cosine", "lambda", "no scheduler"],
)
def test_group_whose_lr_was_zero_gets_its_share_of_the_lr(
    fit: Any, scripted_module: type, scheduler: Any, tmp_path: Path
) -> None:
    def run(multiplier: float, epochs: int, **options: Any) -> Any:
        module = scripted_module(val={"val_loss": [1.0, 2.0, 3.0]})
        groups = [{"match": "layer.bias", "lr_mult": multiplier}]
        return fit({**SGD, "lr": 1.0}, scheduler, param_groups=groups, max_epochs=epochs, module=module, **options)[0]

    run(0.0, 2).save_checkpoint(tmp_path / "stage1.ckpt")
    resumed = run(0.1, 3, ckpt_path=tmp_path / "stage1.ckpt", on_resume="override_hparams")
    first, second = (group["lr"] for group in resumed.optimizers[0].param_groups)
    assert first > 0
    assert second == pytest.approx(first / 10)
