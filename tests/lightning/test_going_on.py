"""What a resumed run, a finder, a frozen layer or a copy may not change behind the configuration's back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug.config.build import checked
from optplug.errors import ConfigError, ConfigTypeError, WiringError
from optplug.lightning.stepping_plan import stepping_plans

BATCHES = 4
SGD = {"name": "sgd", "lr": 1.0}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}
WORSE = {"val_loss": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def rates(made: Any) -> list[float]:
    return [round(float(group["lr"]), 9) for group in made.optimizers[0].param_groups]


@pytest.fixture
def saved(fit: Any, tmp_path: Path) -> Any:
    """Trains two epochs unless told otherwise, and saves a checkpoint."""

    def run(*args: Any, **kwargs: Any) -> Any:
        made, module = fit(*args, **{"max_epochs": 2, "num_sanity_val_steps": 0, **kwargs})
        made.save_checkpoint(tmp_path / "saved.ckpt")
        return made, module, tmp_path / "saved.ckpt"

    return run


# -------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("lr", [1.0, 2.0])
def test_cuts_of_a_plateau_stay_when_hyperparameters_are_overridden(
    fit: Any, scripted: type, saved: Any, lr: float
) -> None:
    made, _, path = saved(SGD, PLATEAU, module=scripted(val=WORSE), max_epochs=4)
    assert rates(made) == [0.125]
    values = {"val_loss": [0.5]}  # better again
    made, module = fit(
        {"name": "sgd", "lr": lr},
        PLATEAU,
        module=scripted(val=values),
        ckpt_path=path,
        max_epochs=5,
        on_resume="override_hparams",
    )
    assert set(module.rates) == {0.125 * lr}


TWO = {"val_loss": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "val_mse": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]}


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize("policy", ["override_hparams", "reset_scheduler", "reset_all"])
def test_another_metric_is_not_measured_by_the_best_of_the_one_before(
    fit: Any, scripted: type, saved: Any, tmp_path: Path, policy: str, sanity: int
) -> None:
    _, _, path = saved(SGD, {**PLATEAU, "patience": 9}, module=scripted(val=TWO), monitor="val_loss")
    given = {"monitor": "val_mse", "num_sanity_val_steps": sanity}  # a resumed run may have a sanity check, too
    patient = {**PLATEAU, "patience": 0}
    made, module = fit(SGD, patient, module=scripted(val=TWO), ckpt_path=path, max_epochs=5, on_resume=policy, **given)
    assert rates(made) == [1.0]
    assert [metric for *_, metric in module.stepped] == [7.0, 6.0, 5.0]
    made.save_checkpoint(tmp_path / "again.ckpt")
    _, module = fit(SGD, patient, module=scripted(val=TWO), ckpt_path=tmp_path / "again.ckpt", max_epochs=6, **given)
    assert [metric for *_, metric in module.stepped] == [4.0]


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize("other", [{"monitor": "val_mse"}, {"monitor": "val_loss", "mode": "max"}], ids=str)
def test_keep_keeps_the_metric_and_its_best(
    fit: Any, scripted: type, saved: Any, capsys: Any, other: Any, sanity: int
) -> None:
    _, _, path = saved(SGD, {**PLATEAU, "patience": 1}, module=scripted(val=TWO), monitor="val_loss")
    made, module = fit(
        SGD,
        {**PLATEAU, "patience": 1},
        module=scripted(val=TWO),
        ckpt_path=path,
        max_epochs=4,
        num_sanity_val_steps=sanity,
        verbose=True,
        **other,
    )
    assert [metric for *_, metric in module.stepped] == pytest.approx([0.3, 0.4])
    assert rates(made) == [0.5]
    assert capsys.readouterr().out.endswith(
        "plateau: 4 validations seen, 1 cut (epoch 2), monitor val_loss (min) from the checkpoint\n"
    )


@pytest.mark.parametrize("policy", ["keep", "override_hparams"])
def test_what_patience_counts_and_what_is_not_finite_obey_on_resume(
    fit: Any, scripted: type, saved: Any, policy: str
) -> None:
    before = {"scheduler": {**PLATEAU, "patience_unit": "epochs", "on_nonfinite": "ignore"}, "monitor": "val_loss"}
    _, _, path = saved(SGD, module=scripted(val=WORSE), **before)
    now = {**before, "scheduler": {**PLATEAU, "patience_unit": "steps"}}
    made, _ = fit(SGD, module=scripted(val=WORSE), ckpt_path=path, max_epochs=3, on_resume=policy, **now)
    plan = stepping_plans[made.lr_scheduler_configs[0].scheduler]
    assert (plan.unit, plan.on_nonfinite) == (("epochs", "ignore") if policy == "keep" else ("steps", "bad"))


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_a_plateau_that_starts_anew_is_patient_from_there(fit: Any, scripted: type, saved: Any, unit: str) -> None:
    given = {"scheduler": {**PLATEAU, "patience": 3, "patience_unit": unit}, "monitor": "val_loss"}
    _, _, path = saved(SGD, module=scripted(val=WORSE), max_epochs=5, **given)
    nothing = scripted(val={"val_loss": [float("nan")]})
    given["scheduler"]["patience"] = 3 if unit == "epochs" else 3 * BATCHES
    made, _ = fit(SGD, module=nothing, ckpt_path=path, max_epochs=8, on_resume="reset_scheduler", **given)
    assert rates(made) == [1.0]


def test_the_rate_of_somebody_else_s_plateau_stays_when_hyperparameters_are_overridden(
    fit: Any, scripted: type, trainer: Any, tmp_path: Path, capsys: Any
) -> None:
    class Own(scripted):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    plain = trainer(max_epochs=3)
    plain.fit(Own(val=WORSE))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    assert rates(plain) == [0.25]
    better = scripted(val={"val_loss": [0.5]})
    given = {"ckpt_path": tmp_path / "plain.ckpt", "max_epochs": 4, "on_resume": "override_hparams", "verbose": True}
    made, _ = fit(SGD, PLATEAU, module=better, **given)
    assert rates(made) == [0.25]
    assert "the checkpoint does not tell its base learning rate: 0.25 stays\n" in capsys.readouterr().out


def test_two_owners_are_refused(ours: Any, scripted: type, trainer: Any) -> None:
    callbacks = [ours.ConfigureOptimizers(SGD, PLATEAU, verbose=False), ours.ConfigureOptimizers(verbose=False)]
    module = scripted(val=WORSE)
    with pytest.raises(WiringError, match="two ConfigureOptimizers callbacks are among the trainer's: keep one"):
        trainer(callbacks=callbacks).fit(module)
    assert module.rates == []


def test_an_error_does_not_cost_the_checkpoint(fit: Any, pl: Any, ours: Any, scripted: type, tmp_path: Path) -> None:
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    callbacks = [ours.ConfigureOptimizers(SGD, {**PLATEAU, "on_nonfinite": "raise"}, monitor="train_loss"), saver]
    module = scripted(late={"train_loss": [1.0, float("nan")]})
    with pytest.raises(WiringError, match="epoch 1: train_loss is nan"):
        fit(SGD, module=module, callbacks=callbacks, enable_checkpointing=True)
    assert (tmp_path / "epoch=1.ckpt").exists()
    with pytest.warns(UserWarning, match="epoch 1: train_loss is nan"):  # the training is done
        fit(SGD, module=scripted(late=module.late), callbacks=callbacks, enable_checkpointing=True, max_epochs=2)


def test_a_changed_warmup_under_a_plateau_ends_at_the_base_rate(fit: Any, scripted: type, saved: Any) -> None:
    better = {"val_loss": [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]}
    _, _, path = saved(SGD, {**PLATEAU, "warmup_steps": 8}, module=scripted(val=better), max_epochs=1)
    made, module = fit(
        SGD,
        {**PLATEAU, "warmup_steps": 16},
        module=scripted(val=better),
        ckpt_path=path,
        max_epochs=5,
        on_resume="override_hparams",
    )
    assert rates(made) == [1.0]
    assert module.rates[:2] == [1 / 16 + 15 / 16 * 4 / 16, 1 / 16 + 15 / 16 * 5 / 16]


def test_keep_keeps_the_length_of_a_warmup(fit: Any, saved: Any) -> None:
    halving = {"name": "exponential_lr", "gamma": 1.0}
    _, whole, _ = saved(SGD, {**halving, "warmup_steps": 8})
    _, _, path = saved(SGD, {**halving, "warmup_steps": 8}, max_epochs=1)
    _, rest = fit(SGD, {**halving, "warmup_steps": 100}, ckpt_path=path, max_epochs=2)
    assert rest.rates == whole.rates[BATCHES:]


def test_keep_keeps_interval_and_frequency(fit: Any, saved: Any) -> None:
    by_step = {"name": "exponential_lr", "gamma": 0.5, "interval": "step", "frequency": 2}
    _, whole, _ = saved(SGD, by_step)
    _, _, path = saved(SGD, by_step, max_epochs=1)
    _, rest = fit(SGD, {"name": "exponential_lr", "gamma": 0.5}, ckpt_path=path, max_epochs=2)
    assert rest.rates == whole.rates[BATCHES:]


def test_what_differs_is_said_as_it_counts(fit: Any, saved: Any, capsys: Any) -> None:
    _, _, path = saved(SGD, {"name": "step_lr", "step_size": 9})
    fit(
        {"name": "sgd", "lr": 2.0, "momentum": 0.9},
        {"name": "step_lr", "step_size": 7},
        ckpt_path=path,
        on_resume="reset_scheduler",
        verbose=True,
    )
    said = capsys.readouterr().out
    assert "optimizer.lr is 2.0 in the configuration and 1.0 in the checkpoint: the configuration's counts" in said
    assert "group 0: lr is 2.0 in the configuration and 1.0 in the checkpoint: the configuration's counts" in said
    assert "optimizer.momentum is 0.9 in the configuration and the default in the checkpoint: the checkpoint's" in said
    assert "scheduler.step_size is 7 in the configuration and 9 in the checkpoint: the configuration's counts" in said
    assert "on_resume is" not in said


def test_a_longer_run_of_an_auto_schedule_says_what_its_length_is(fit: Any, saved: Any, capsys: Any) -> None:
    cosine = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
    _, _, path = saved(SGD, cosine, max_epochs=1)
    fit(SGD, cosine, ckpt_path=path, max_epochs=3, verbose=True)
    assert "T_max is 4: the checkpoint's; the training has 12" in capsys.readouterr().out


def test_the_helper_without_a_schedule_obeys_on_resume_too(helped: type, trainer: Any, tmp_path: Path) -> None:
    def run(epochs: int, **kwargs: Any) -> Any:
        path = kwargs.pop("ckpt_path", None)
        module = helped({"optimizer": {"name": "sgd", "lr": kwargs.pop("lr")}, **kwargs})
        made = trainer(max_epochs=epochs, enable_checkpointing=True)
        made.fit(module, ckpt_path=path)
        return made, module

    made, _ = run(1, lr=0.1)
    path = made.checkpoint_callback.best_model_path
    assert torch.load(path, weights_only=True)["optplug"]["config"] == {"optimizer": {"name": "sgd", "lr": 0.1}}
    assert set(run(2, lr=0.5, ckpt_path=path)[1].rates) == {0.1}
    assert set(run(2, lr=0.5, ckpt_path=path, on_resume="override_hparams")[1].rates) == {0.5}


def test_another_class_of_the_module_s_own_optimizer_is_refused(fit: Any, scripted: type, saved: Any) -> None:
    class Own(scripted):
        cls: Any = torch.optim.SGD

        def configure_optimizers(self) -> Any:
            return self.cls(self.parameters(), lr=0.1)

    halving = {"name": "exponential_lr", "gamma": 0.5}
    _, _, path = saved(None, halving, module=Own())
    other = Own()
    other.cls = torch.optim.Adam
    with pytest.raises(WiringError, match="the optimizer of the checkpoint is SGD, and the configuration says Adam"):
        fit(None, halving, module=other, ckpt_path=path)


def test_a_warmup_that_comes_or_goes_is_another_schedule(fit: Any, saved: Any) -> None:
    _, _, path = saved(SGD, {"name": "step_lr", "step_size": 9})
    with pytest.raises(WiringError, match="is step_lr, and the configuration says step_lr with a warmup; on_resume: "):
        fit(SGD, {"name": "step_lr", "step_size": 9, "warmup_steps": 3}, ckpt_path=path)


@pytest.mark.parametrize("policy", ["keep", "override_hparams", "reset_scheduler"])
@pytest.mark.parametrize("first", [True, False], ids=["ours first", "ours last"])
def test_layers_that_a_callback_thaws_go_on(
    pl: Any, ours: Any, scripted: type, trainer: Any, tmp_path: Path, policy: str, first: bool
) -> None:
    class Thaw(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.backbone)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.backbone, optimizer, lr=0.01)

    class Two(scripted):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(4, 4)

        def loss(self, batch: Any) -> Any:
            return nn.functional.mse_loss(self.layer(self.backbone(batch[0])), batch[1])

    def run(**kwargs: Any) -> Any:
        path = kwargs.pop("ckpt_path", None)
        mine = ours.ConfigureOptimizers(
            "sgd", {"name": "exponential_lr", "gamma": 0.5}, verbose=False, on_resume=policy
        )
        callbacks = [mine, Thaw()] if first else [Thaw(), mine]
        made = trainer(callbacks=callbacks, **kwargs)
        made.fit(Two(), ckpt_path=path)
        return made

    made = run(max_epochs=2)
    made.save_checkpoint(tmp_path / "thawed.ckpt")
    made = run(max_epochs=3, ckpt_path=tmp_path / "thawed.ckpt")
    assert made.current_epoch == 3
    assert len(made.optimizers[0].param_groups) == 2


# ------------------------------------------------------------------------------------ finders and steps


def test_a_rate_that_the_finder_sets_under_a_warmup_is_the_base_rate(
    pl: Any, ours: Any, digits_module: type, trainer: Any
) -> None:
    class Rated(digits_module):
        lr = 0.5

        def on_train_batch_start(self, *_: Any) -> None:
            self.seen = [*getattr(self, "seen", []), self.trainer.optimizers[0].param_groups[0]["lr"]]

    finder = pl.callbacks.LearningRateFinder(num_training_steps=40)
    callback = ours.ConfigureOptimizers({"name": "sgd", "lr": 0.01}, {"warmup_steps": 10}, verbose=False)
    quiet = {"max_epochs": 1, "limit_val_batches": 0, "limit_train_batches": 20, "num_sanity_val_steps": 0}
    made, module = trainer(callbacks=[finder, callback], **quiet), Rated()
    made.fit(module)
    assert module.lr != 0.5
    assert module.seen[-1] == pytest.approx(module.lr)
    assert module.seen[-20:][0] == pytest.approx(module.lr / 10)


def test_the_steps_of_a_raw_optimizer_count_in_manual_optimisation(fit: Any, scripted: type) -> None:
    class Raw(scripted):
        def __init__(self) -> None:
            super().__init__(automatic=False)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            self.rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    _, module = fit(SGD, {"name": "exponential_lr", "gamma": 0.5, "interval": "step"}, module=Raw(), max_epochs=1)
    assert module.rates == [1.0, 0.5, 0.25, 0.125]


def test_accumulation_that_changes_has_no_known_length(pl: Any, ours: Any, scripted: type, trainer: Any) -> None:
    changing = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    cosine = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
    callbacks = [changing, ours.ConfigureOptimizers(SGD, cosine, verbose=False)]
    with pytest.raises(ConfigError, match="is auto, and accumulation changes from epoch to epoch"):
        trainer(callbacks=callbacks).fit(scripted())


@pytest.mark.parametrize(("frequency", "length"), [(1, 12), (5, 2), (12, 1), (13, 1)])
def test_auto_is_as_often_as_the_schedule_is_stepped(fit: Any, frequency: int, length: int) -> None:
    cosine = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step", "frequency": frequency}
    made, _ = fit(SGD, cosine)
    assert made.lr_scheduler_configs[0].scheduler.T_max == length
    assert made.lr_scheduler_configs[0].scheduler.last_epoch == (length if frequency < 13 else 0)


def test_what_the_user_s_data_raise_is_not_hidden(fit: Any, scripted: type) -> None:
    module = scripted()

    def broken() -> Any:
        raise KeyError("my own")

    module.train_dataloader = broken
    with pytest.raises(KeyError, match="my own"):
        fit(SGD, {"name": "cosine_annealing_lr", "T_max": "auto"}, module=module)


def test_a_replaced_schedule_leaves_no_rate_behind(fit: Any, scripted: type) -> None:
    class Own(scripted):
        def configure_optimizers(self) -> Any:
            made = torch.optim.SGD(self.parameters(), lr=1.0)
            return [made], [torch.optim.lr_scheduler.LinearLR(made, 0.1)]

    _, module = fit(None, {"name": "step_lr", "step_size": 9}, module=Own(), override=True)
    assert set(module.rates) == {1.0}


# ------------------------------------------------------------------------------------------- sharing


def test_a_rate_that_is_a_tensor_is_neither_the_configuration_s_nor_another_group_s(fit: Any) -> None:
    rate = torch.tensor(1.0)
    given = {"name": "sgd", "lr": rate}
    groups = [{"match": "*.bias", "momentum": 0.5}]
    made, _ = fit(given, {"name": "exponential_lr", "gamma": 0.5}, param_groups=groups)
    assert rates(made) == [0.125, 0.125]
    assert float(rate) == 1.0


def test_a_copy_made_in_training_can_be_trained(fit: Any, pl: Any, ours: Any, scripted: type, trainer: Any) -> None:
    copies: list[Any] = []

    class Copy(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            module_trainer, pl_module._trainer = pl_module._trainer, None
            copies.append(copy.deepcopy(pl_module))
            pl_module._trainer = module_trainer

    trainer(callbacks=[ours.ConfigureOptimizers(SGD, verbose=False), Copy()], max_epochs=1).fit(scripted())
    made, _ = fit({"name": "sgd", "lr": 0.5}, module=copies[0], max_epochs=1)
    assert rates(made) == [0.5]


@pytest.mark.parametrize("given", [[{**SGD, "match": "*.bias"}], {"combine": [{**SGD, "match": "*.bias"}]}], ids=str)
def test_one_entry_with_a_selector_leaves_nothing_out_silently(given: Any) -> None:
    module = nn.ModuleDict({"a": nn.Linear(1, 1)})
    with pytest.raises(ConfigError, match=r"no optimizer has a\.weight: select them too, or freeze them"):
        optplug.configure_optimizers(module, given)
    module["a"].weight.requires_grad_(False)
    assert checked(**checked(given).to_dict()) == checked(given)
    optplug.configure_optimizers(module, given)


@pytest.mark.parametrize("name", ["override", "verbose"])
def test_flags_are_flags(ours: Any, name: str) -> None:
    with pytest.raises(ConfigTypeError, match=f"^{name}: must be True or False, got 'no'"):
        ours.ConfigureOptimizers("adam", **{name: "no"})


@pytest.mark.parametrize("given", [{"on_resume": "reset_al"}, {"on_resume": "reset_all"}, {"monitor": "x"}], ids=str)
def test_options_without_anything_to_apply_to_are_refused(ours: Any, given: Any) -> None:
    with pytest.raises(ConfigError):
        ours.ConfigureOptimizers(**given)
    module = nn.Linear(1, 1)
    with pytest.raises(ConfigError):
        optplug.configure_optimizers(module, torch.optim.SGD(module.parameters()), **given)


def test_a_submodule_is_refused_without_a_schedule_too(scripted: type, trainer: Any) -> None:
    class Wrong(scripted):
        def configure_optimizers(self) -> Any:
            return optplug.configure_optimizers(self.layer, "sgd")

    with pytest.raises(WiringError, match="takes the LightningModule itself, got Linear from Wrong: pass self"):
        trainer().fit(Wrong())
