"""Schedules of parameter groups in a trainer: steps, resume and its policies, plateaus, finder, finetuning, loggers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optplug.errors import WiringError
from optplug.schedulers.per_group import PerGroup
from support import lr_finder, printed_lines, scheduler_of

BATCHES, EPOCHS = 4, 4
STEPS = BATCHES * EPOCHS
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
COSINE = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
STEP = {"name": "step_lr", "step_size": 3, "gamma": 0.5, "interval": "step"}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}
RISING = {"val_loss": [1.0, 2.0, 3.0, 4.0, 5.0]}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


def layer(schedule: Any, **options: Any) -> dict[str, Any]:
    """A rule for the last layer."""
    return {"match": "layer.*", "scheduler": schedule, **options}


@pytest.fixture
def two_layer_module(scripted_module: type) -> Any:
    """A module with a backbone. It records the learning rates of all groups at each optimizer step."""

    class TwoLayers(scripted_module):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**{"val": RISING, **kwargs})
            last = self.layer
            del self.layer
            self.backbone, self.layer = nn.Linear(4, 4), last
            self.lr = 0.1
            self.rates: list[list[float]] = []

        def loss(self, batch: Any) -> torch.Tensor:
            # A small loss, because the learning rates are large.
            return 1e-3 * nn.functional.mse_loss(self.layer(self.backbone(batch[0])), batch[1])

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.rates.append([float(group["lr"]) for group in optimizer.param_groups])

    return TwoLayers


@pytest.fixture
def fit_layers(fit: Any, two_layer_module: type) -> Any:
    """Fits the module; returns the trainer and the module."""

    def run(scheduler: Any, groups: Any, *, optimizer: Any = SGD, module: Any = None, **given: Any) -> Any:
        module = two_layer_module() if module is None else module
        return fit(optimizer, scheduler, param_groups=groups, module=module, **{"max_epochs": EPOCHS, **given})

    return run


# ------------------------------------------------------------------------------------------------ steps

PAIRS = {
    "steps": (COSINE, STEP),
    "epochs": ({"name": "cosine_annealing_lr", "T_max": "auto"}, {"name": "step_lr", "step_size": 1}),
    "a constant rate": (COSINE, None),
    "none and steps": (None, STEP),
    "warmups": ({**COSINE, "warmup_steps": 5}, {**STEP, "warmup": {"ratio": 0.5}}),
    "a warmup alone": ({"warmup_steps": 6}, {**COSINE, "warmup": {"epochs": 1}}),
    "every second step": ({**COSINE, "frequency": 2}, {**STEP, "frequency": 2}),
    "plateaus": (PLATEAU, {**PLATEAU, "factor": 0.1, "warmup_steps": 7}),
    "plateau and constant": (None, PLATEAU),
    "plateau with epochs": ({**PLATEAU, "patience_unit": "epochs"}, {**PLATEAU, "patience_unit": "epochs"}),
}
pairs = pytest.mark.parametrize(("base", "schedule"), PAIRS.values(), ids=PAIRS)


@pairs
def test_each_group_has_the_rates_of_its_schedule_alone(fit_layers: Any, base: Any, schedule: Any):
    made, module = fit_layers(base, [layer(schedule, lr=0.4)])
    _, first = fit_layers(base, [{"match": "layer.*", "lr": 0.4}])
    _, second = fit_layers(schedule, [{"match": "layer.*", "lr": 0.4}])
    assert module.rates == [[a[0], b[1]] for a, b in zip(first.rates, second.rates, strict=True)]
    assert len(made.lr_scheduler_configs) == 1
    assert isinstance(scheduler_of(made), PerGroup)


@pytest.mark.both_import_names
@pytest.mark.parametrize(("saver", "stop"), [({"every_n_train_steps": 2}, 6), ({"save_on_train_epoch_end": True}, 8)])
@pairs
def test_run_resumed_in_the_middle_is_equal_bit_for_bit(
    fit_layers: Any,
    save_every_checkpoint: Any,
    optplug_lightning: Any,
    tmp_path: Path,
    base: Any,
    schedule: Any,
    saver: Any,
    stop: int,
):
    rules = ["no_decay", layer(schedule, lr=0.4), {"match": "backbone.bias", "scheduler": None}]

    def run(*callbacks: Any, **given: Any) -> Any:
        mine = optplug_lightning.ConfigureOptimizers(SGD, base, param_groups=rules, verbose=False)
        return fit_layers(None, None, callbacks=[mine, *callbacks], **given)

    saver = save_every_checkpoint(**saver)
    made, uninterrupted = run(saver, enable_checkpointing=True)
    resumed_trainer, resumed = run(ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert resumed.rates == uninterrupted.rates[stop:]
    assert scheduler_of(resumed_trainer).state_dict() == scheduler_of(made).state_dict()
    if stop % BATCHES == 0:  # else Lightning starts the epoch with other batches
        assert torch.equal(resumed.backbone.weight, uninterrupted.backbone.weight)


def test_lengths_that_are_auto_end_one_by_one(fit_layers: Any):
    # Two epochs more than the schedule: the length in the checkpoint stays.
    made, _ = fit_layers(COSINE, [layer(COSINE)], max_epochs=2)
    path = Path(made.default_root_dir) / "saved.ckpt"
    made.save_checkpoint(path)
    made, module = fit_layers(COSINE, [layer(COSINE)], ckpt_path=path)
    assert module.rates[-1] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert [one.T_max for one in scheduler_of(made).schedules.values()] == [2 * BATCHES] * 2


def test_longer_training_extends_the_schedule_of_a_group(
    fit_layers: Any, save_every_checkpoint: Any, optplug_lightning: Any, tmp_path: Path, capsys: Any
):
    rules = [layer({"name": "wsd", "total_steps": "auto", "decay_steps": 4, "warmup_steps": 2})]

    def run(*callbacks: Any, **given: Any) -> Any:
        mine = optplug_lightning.ConfigureOptimizers(SGD, EXPONENTIAL, param_groups=rules)
        return fit_layers(None, None, callbacks=[mine, *callbacks], **given)

    run(save_every_checkpoint(save_on_train_epoch_end=True), enable_checkpointing=True)
    _, uninterrupted = run(max_epochs=EPOCHS + 2)
    capsys.readouterr()
    _, resumed = run(max_epochs=EPOCHS + 2, ckpt_path=tmp_path / "step=8.ckpt")
    assert resumed.rates == uninterrupted.rates[8:]
    message = "param_groups[0].scheduler.total_steps is extended from 16 to 24, to fit this training"
    assert message in capsys.readouterr().out


@pytest.mark.usefixtures("without_adapters")
def test_summary_shows_the_schedule_of_each_group(fit_layers: Any, capsys: Any):
    rules = [layer({**STEP, "warmup_steps": 3}), {"match": "layer.bias", "scheduler": None}]
    fit_layers(COSINE, rules, verbose=True)
    lines = [line.strip() for line in printed_lines(capsys)]
    start = next(i for i, line in enumerate(lines) if line.startswith("group "))
    assert [line.split()[-1] for line in lines[start : start + 4]] == ["schedule", "-", "layer.*", "layer.bias"]
    plugin = "from plugin optplug-schedules (optplug 0.1.0), stepped every step"
    assert lines[start + 5 : start + 9] == [
        f"other groups: scheduler cosine_annealing_lr {plugin}",
        "T_max is 16: as long as the training",
        f"schedule layer.*: scheduler step_lr {plugin}, with a warmup of 3 steps",
        "schedule layer.bias: the learning rate is constant",
    ]


# ------------------------------------------------------------------------------------------------ plateaus


def test_plateau_of_a_group_observes_the_metric(fit_layers: Any, capsys: Any):
    made, module = fit_layers(None, [layer(PLATEAU, lr=0.4)], verbose=True)
    assert module.step_values == [1.0, 2.0, 3.0, 4.0]
    assert [row[-1] for row in module.rates[::BATCHES]] == [0.4, 0.4, 0.2, 0.1]
    printed = capsys.readouterr().out
    assert "epoch 1: val_loss is 2, not better than 1: learning rate 0.4 -> 0.2" in printed
    assert "plateau: 4 validations seen, 3 cuts (epochs 1, 2, 3), monitor val_loss (min)" in printed
    assert scheduler_of(made).schedules["layer.*"].best == 1.0


def test_monitor_and_mode_of_the_top_level_apply_to_the_plateau_of_a_group(fit_layers: Any, two_layer_module: type):
    module = two_layer_module(val={"val_loss": [1.0], "score": [0.1, 0.2, 0.3, 0.4]})
    made, module = fit_layers(None, [layer(PLATEAU)], module=module, monitor="score", mode="max")
    assert module.step_values == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert scheduler_of(made).schedules["layer.*"].best == pytest.approx(0.4)


def test_mode_that_is_found_late_reaches_all_plateaus(fit_layers: Any, two_layer_module: type):
    module = two_layer_module(val={"val_acc": [0.1, 0.2, 0.3, 0.4]})
    plateau = {**PLATEAU, "monitor": "val_acc"}
    made, _ = fit_layers(PLATEAU, [layer(plateau)], module=module)
    assert [one.mode for one in scheduler_of(made).schedules.values()] == ["max", "max"]


# ------------------------------------------------------------------------------------------------ policies


@pytest.fixture
def checkpoint(fit_layers: Any, tmp_path: Path) -> Path:
    """A checkpoint after two epochs with two schedules."""
    made, _ = fit_layers(EXPONENTIAL, [layer(STEP, lr=0.4)], max_epochs=2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    return tmp_path / "half.ckpt"


EXPONENTIAL = {"name": "exponential_lr", "gamma": 0.5, "interval": "step"}


def test_override_hparams_sets_the_settings_of_each_schedule(fit_layers: Any, checkpoint: Path):
    base, schedule = {**EXPONENTIAL, "gamma": 0.9}, {**STEP, "step_size": 2, "gamma": 0.1}
    changed = {**SGD, "lr": 1.0}
    _, module = fit_layers(
        base, [layer(schedule, lr=2.0)], optimizer=changed, ckpt_path=checkpoint, on_resume="override_hparams"
    )
    assert module.rates[0] == pytest.approx([0.9**8, 2.0 * 0.1**4])
    assert module.rates[1] == pytest.approx([0.9**9, 2.0 * 0.1**4])


def test_renamed_rule_with_a_schedule_is_an_error_that_names_the_remedy(fit_layers: Any, checkpoint: Path):
    renamed = {"match": "*layer.*", "scheduler": STEP, "lr": 0.4}
    with pytest.raises(WiringError, match=r"only renamed, give it its old name with the key name$"):
        fit_layers(EXPONENTIAL, [renamed], ckpt_path=checkpoint)
    _, module = fit_layers(EXPONENTIAL, [{**renamed, "name": "layer.*"}], ckpt_path=checkpoint)
    assert len(module.rates) == STEPS // 2
    with pytest.raises(WiringError, match=r"restarts the schedule alone$"):
        fit_layers(COSINE, [{**renamed, "scheduler": COSINE}], ckpt_path=checkpoint)


@pytest.mark.parametrize("policy", ["reset_scheduler", "reset_all"])
def test_reset_restarts_each_schedule(fit_layers: Any, checkpoint: Path, policy: str):
    made, module = fit_layers(COSINE, [layer(STEP, lr=0.4)], ckpt_path=checkpoint, on_resume=policy)
    assert module.rates[0] == [0.1, 0.4]
    assert module.rates[3][1] == 0.2
    assert scheduler_of(made).last_epoch == STEPS // 2


def test_reset_scheduler_accepts_a_checkpoint_without_group_schedules(fit_layers: Any, tmp_path: Path):
    made, _ = fit_layers(EXPONENTIAL, [{"match": "layer.*", "lr": 0.4}], max_steps=6, max_epochs=-1)
    made.save_checkpoint(tmp_path / "plain.ckpt")
    rules = [layer(STEP, lr=0.4)]
    with pytest.raises(WiringError, match=r"the schedule of the checkpoint is exponential_lr, but .* step_lr of layer"):
        fit_layers(EXPONENTIAL, rules, ckpt_path=tmp_path / "plain.ckpt")
    made, module = fit_layers(EXPONENTIAL, rules, ckpt_path=tmp_path / "plain.ckpt", on_resume="reset_scheduler")
    assert module.rates[3] == pytest.approx([0.1 * 0.5**3, 0.2])
    assert [group.get("schedule", "") for group in made.optimizers[0].param_groups] == ["", "layer.*"]


def test_keep_restores_and_reports_the_settings_of_a_group_schedule(fit_layers: Any, checkpoint: Path, capsys: Any):
    changed = {**STEP, "gamma": 0.9, "frequency": 2}
    made, module = fit_layers(
        {**EXPONENTIAL, "frequency": 2}, [layer(changed, lr=0.4)], ckpt_path=checkpoint, verbose=True
    )
    assert module.rates[1][1] == pytest.approx(0.4 * 0.5**3)
    assert scheduler_of(made).last_epoch == STEPS  # stepped as often as the checkpoint says
    message = "param_groups[0].scheduler.gamma is 0.9 in the configuration and 0.5 in the checkpoint"
    assert message in capsys.readouterr().out


def test_plan_of_a_checkpoint_without_a_top_level_schedule_is_restored(fit_layers: Any, tmp_path: Path):
    made, _ = fit_layers(None, [layer({**STEP, "frequency": 2})], max_epochs=2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    made, _ = fit_layers(None, [layer(STEP)], ckpt_path=tmp_path / "half.ckpt")
    assert scheduler_of(made).last_epoch == STEPS // 2


# ------------------------------------------------------------------------------------------------ other callbacks


@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 2}], ids=["no warmup", "warmup"])
def test_rate_of_the_finder_is_the_base_of_each_schedule(
    pl: Any, fit_layers: Any, optplug_lightning: Any, two_layer_module: type, warmup: Any
):
    class Module(two_layer_module):  # type: ignore[misc]
        def train_dataloader(self) -> DataLoader:
            torch.manual_seed(1)
            x = torch.randn(64, 4)
            return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=2)

        def on_train_start(self) -> None:
            self.rates.clear()  # those of the search

    mine = optplug_lightning.ConfigureOptimizers(
        SGD, EXPONENTIAL, param_groups=[layer({**STEP, **warmup})], verbose=False
    )
    finder = lr_finder(pl, num_training_steps=30)
    made, module = fit_layers(None, None, module=Module(), callbacks=[mine, finder], max_steps=6)
    found = finder.optimal_lr.suggestion()
    assert found not in (None, 0.1)
    assert scheduler_of(made).base_lrs == [found, found]
    assert module.rates[0] == pytest.approx([found, found / 2 if warmup else found])
    assert module.rates[-1] == pytest.approx([found * 0.5**5, found * 0.5])


LATE = {"name": "exponential_lr", "gamma": 0.5, "interval": "step"}


@pytest.fixture
def fit_finetuning(pl: Any, fit_layers: Any, optplug_lightning: Any) -> Any:
    """Fits with a finetuning callback that adds the backbone's group in epoch 1, with learning rate 0.05."""

    class Unfreeze(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.backbone)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(module.backbone, optimizer, lr=0.05)

    def run(schedule: Any, rules: Any, callback: Any = Unfreeze, **given: Any) -> Any:
        mine = optplug_lightning.ConfigureOptimizers(SGD, schedule, param_groups=rules, verbose=False)
        return fit_layers(None, None, callbacks=[mine, callback()], **given)

    return run


def test_group_of_a_finetuning_callback_has_the_schedule_of_its_rule(fit_finetuning: Any, tmp_path: Path):
    rules = [{"match": "backbone.*", "scheduler": LATE}, layer(None, lr=0.4)]
    made, module = fit_finetuning(STEP, rules)
    assert [len(row) for row in module.rates] == [1] * BATCHES + [2] * (STEPS - BATCHES)
    assert {row[0] for row in module.rates} == {0.4}
    assert [row[1] for row in module.rates[BATCHES:]] == pytest.approx([0.05 * 0.5**i for i in range(12)])
    made, first = fit_finetuning(STEP, rules, max_epochs=2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit_finetuning(STEP, rules, ckpt_path=tmp_path / "half.ckpt")
    assert first.rates + resumed.rates == module.rates


def test_backbone_finetuning_with_a_schedule_for_the_backbone(pl: Any, fit_finetuning: Any):
    def callback() -> Any:
        return pl.callbacks.BackboneFinetuning(1, lambda_func=lambda epoch: 1.0, backbone_initial_ratio_lr=0.5)

    _, module = fit_finetuning(None, [{"match": "backbone.*", "scheduler": LATE}, layer(STEP, lr=0.4)], callback)
    second = module.rates[BATCHES : 2 * BATCHES]
    assert [row[1] for row in second] == pytest.approx([second[0][1] * 0.5**i for i in range(BATCHES)])
    assert [row[0] for row in module.rates] == pytest.approx([0.4 * 0.5 ** (i // 3) for i in range(STEPS)])


def test_learning_rate_monitor_logs_all_groups(pl: Any, fit_layers: Any, optplug_lightning: Any, tmp_path: Path):
    mine = optplug_lightning.ConfigureOptimizers(SGD, COSINE, param_groups=[layer(STEP)], verbose=False)
    logger, monitor = pl.loggers.CSVLogger(tmp_path), pl.callbacks.LearningRateMonitor("step")
    _, module = fit_layers(None, None, callbacks=[mine, monitor], logger=logger, log_every_n_steps=1)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr-SGD/layer.*"]]
    assert [[float(row["lr-SGD/default"]), float(row["lr-SGD/layer.*"])] for row in rows] == module.rates


def test_rates_that_other_code_sets_in_a_warmup_are_reported(
    pl: Any, fit_layers: Any, optplug_lightning: Any, capsys: Any
):
    class Change(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[1]["lr"] = 0.7

    rules = [layer({**STEP, "warmup_steps": 10, "step_size": 100})]
    mine = optplug_lightning.ConfigureOptimizers(SGD, COSINE, param_groups=rules)
    _, module = fit_layers(None, None, callbacks=[mine, Change()])
    assert "other code has set lr during the warmup: 0.7 (group 1)" in capsys.readouterr().out
    assert module.rates[-1][1] == 0.7


def test_combination_resumes(fit_layers: Any, tmp_path: Path):
    members = [
        {**SGD, "match": "backbone.*", "param_groups": [{"match": "*.bias", "scheduler": STEP}]},
        {"name": "adam", "lr": 0.2, "match": "layer.*", "param_groups": [{"match": "layer.weight", "scheduler": None}]},
    ]
    optimizer = {"combine": members}
    _, module = fit_layers(COSINE, None, optimizer=optimizer)
    made, first = fit_layers(COSINE, None, optimizer=optimizer, max_epochs=EPOCHS, limit_train_batches=BATCHES)
    assert first.rates == module.rates
    made, first = fit_layers({**COSINE, "T_max": STEPS}, None, optimizer=optimizer, max_epochs=2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    made, second = fit_layers({**COSINE, "T_max": STEPS}, None, optimizer=optimizer, ckpt_path=tmp_path / "half.ckpt")
    assert first.rates + second.rates == module.rates
    assert torch.equal(second.backbone.weight, module.backbone.weight)
    assert scheduler_of(made).names == ["", "*.bias", "layer.weight", ""]


def test_manual_optimizers_have_their_own_group_schedules(fit: Any, two_layer_module: type):
    class Manual(two_layer_module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(automatic=False)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers = self.optimizers()
            self.all_rates = [group["lr"] for one in optimizers for group in one.param_groups]
            self.manual_backward(self.loss(batch))
            for one in optimizers:
                one.step()
                one.zero_grad()

    entries = [
        {**SGD, "match": "backbone.*", "param_groups": [{"match": "*.bias", "scheduler": STEP}]},
        {**SGD, "match": "layer.*", "scheduler": EXPONENTIAL},
    ]
    _, module = fit(entries, module=Manual(), max_epochs=EPOCHS)
    assert module.all_rates == pytest.approx([0.1, 0.1 * 0.5**5, 0.1 * 0.5**15])


# ------------------------------------------------------------------------------------------------ command line


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_cli_takes_the_schedule_of_a_group(optplug_lightning: Any, two_layer_module: type, tmp_path: Path):
    quiet = {"accelerator": "cpu", "max_epochs": EPOCHS, "logger": False, "enable_checkpointing": False}
    hidden = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(tmp_path)}
    config = {"optimizer": SGD, "scheduler": EXPONENTIAL, "param_groups": [layer(STEP, lr=0.4), {"match": "*.bias"}]}
    config["param_groups"][1]["scheduler"] = None
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": {**quiet, **hidden}, **config}))

    class Module(two_layer_module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

    cli = optplug_lightning.OptplugCLI(Module, run=False, args=["--config", str(path)], save_config_callback=None)
    cli.trainer.fit(cli.model)
    rates = dict(zip([g["name"] for g in cli.trainer.optimizers[0].param_groups], cli.model.rates[-1], strict=True))
    expected = {"default": 0.1 * 0.5**15, "*.bias": 0.1, "layer.*": 0.4 * 0.5**5, "layer.* + *.bias": 0.4}
    assert rates == pytest.approx(expected)
