"""Features that Lightning's users ask for; the number in a test's name is that of the row in the list of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, IterableDataset

import optplug
from optplug.config.build import checked
from optplug.config.param_groups import group_table
from optplug.errors import ConfigError, ConfigErrors, OptplugError, UnknownNameError, WiringError
from optplug.lightning.checkpoint_metadata import tables
from optplug.registry.specs import SchedulerSpec

BATCHES = 4
"""Of an epoch of the scripted module."""

ADAM = {"name": "adam", "lr": 0.1}
SGD = {"name": "sgd", "lr": 0.1}
COSINE = "cosine_annealing_lr"

pytestmark = [
    # pytest's own command line stands in sys.argv, which LightningCLI takes for somebody's mistake.
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended"),
    # Resuming into the folder of the checkpoint is what some tests are about.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Forked processes report that their parent has threads; that is how ddp_fork works.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


class CosineWarmup(optplug.ClosedFormLR):
    """A linear rise, then half a cosine; counts optimizer steps."""

    interval = "step"
    length = "total_steps"

    def __init__(self, optimizer: Any, total_steps: int, rise: int = 2, last_epoch: int = -1) -> None:
        self.total_steps, self.rise = total_steps, rise
        super().__init__(optimizer, last_epoch)

    def multiplier(self, t: int) -> float:
        if t < self.rise:
            return (t + 1) / (self.rise + 1)
        return max(0.0, 1 - (t - self.rise) / (self.total_steps - self.rise))


@pytest.fixture
def plugins(strangers: Any) -> None:
    """`one_cycle_lr` and `cosine_warmup`, which count steps, from somebody else's plugin."""
    strangers(
        SchedulerSpec("one_cycle_lr", OneCycleLR, interval="step"),
        SchedulerSpec("cosine_warmup", CosineWarmup, interval="step", length="total_steps"),
    )


def rounded(rates: Any) -> list[float]:
    return [round(float(rate), 9) for rate in rates]


def schedule(made: Any) -> Any:
    return made.lr_scheduler_configs[0].scheduler


# --------------------------------------------------------------------------------------- intervals


@pytest.mark.usefixtures("plugins")
def test_row_14_the_interval_is_declared_by_the_scheduler_plugin(fit: Any) -> None:
    made, module = fit(ADAM, {"name": "one_cycle_lr", "max_lr": 0.1, "total_steps": 12})
    assert schedule(made).last_epoch == 11  # its twelfth rate, from 0 on; there is no thirteenth
    assert len(set(rounded(module.rates))) == 12
    made, module = fit(ADAM, {"name": "cosine_warmup", "total_steps": 12})
    assert schedule(made).last_epoch == 12
    assert rounded(module.rates[:4]) == rounded([0.1 / 3, 0.2 / 3, 0.1, 0.09])


def test_row_15_steps_counted_in_epochs_are_detected(fit: Any, scripted: type) -> None:
    module = scripted()
    with pytest.raises(ConfigError) as caught:
        fit(ADAM, {"name": COSINE, "T_max": 3 * BATCHES}, module=module)
    assert module.rates == []
    assert str(caught.value) == (
        "scheduler.T_max: is 12, which is the number of optimizer steps of this training, and the schedule is stepped "
        "once in an epoch, of which there are 3: say interval: step, or T_max: auto"
    )
    for wrong in (
        {"scheduler": {"T_max": 3 * BATCHES, "interval": "epoch"}},
        {"scheduler": {"T_max": 3 * BATCHES - 2, "warmup_steps": 2}},
        {"scheduler": {"T_max": 3 * BATCHES // 2}, "accumulate_grad_batches": 2},
        {"scheduler": {"T_max": 3 * BATCHES}, "accumulate_grad_batches": 2},  # batches
    ):
        given = wrong.pop("scheduler")
        with pytest.raises(ConfigError, match=r"^scheduler.T_max: is \d+, which is the number of"):
            fit(ADAM, {"name": COSINE, **given}, **wrong)


@pytest.mark.parametrize("right", [{"T_max": 3}, {"T_max": 50}, {"T_max": 12, "interval": "step"}, {"T_max": "auto"}])
def test_row_15_other_lengths_are_not_refused(fit: Any, right: Any) -> None:
    fit(ADAM, {"name": COSINE, **right})


@pytest.mark.parametrize(("accumulated", "epochs"), [(1, 3), (2, 6), (4, 9)])
def test_row_16_frequency_counts_optimizer_steps_across_epochs(fit: Any, accumulated: int, epochs: int) -> None:
    halving = {"name": "exponential_lr", "gamma": 0.5, "interval": "step", "frequency": 3}
    made, module = fit(SGD, halving, accumulate_grad_batches=accumulated, max_epochs=epochs)
    steps = epochs * BATCHES // accumulated
    assert made.global_step == steps
    assert schedule(made).last_epoch == steps // 3
    assert rounded(module.rates) == rounded(
        0.1 * 0.5 ** (batch // accumulated // 3) for batch in range(epochs * BATCHES)
    )


# ------------------------------------------------------------------------------------------ totals


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("arguments", "total"),
    [
        ({}, 12),
        ({"accumulate_grad_batches": 2}, 6),
        ({"accumulate_grad_batches": 3}, 6),
        ({"max_steps": 5}, 5),
        ({"max_steps": 5, "max_epochs": -1}, 5),
        ({"max_steps": 50}, 12),
        ({"limit_train_batches": 2}, 6),
        ({"overfit_batches": 1}, 3),
        ({"max_time": {"hours": 1}}, 12),
    ],
    ids=str,
)
def test_row_18_total_steps_auto_is_the_number_of_optimizer_steps(fit: Any, arguments: Any, total: int) -> None:
    made, _ = fit(ADAM, {"name": "one_cycle_lr", "max_lr": 0.1, "total_steps": "auto"}, **arguments)
    assert (schedule(made).total_steps, schedule(made).last_epoch, made.global_step) == (total, total, total)


@pytest.mark.parametrize(
    ("arguments", "total"), [({}, 3), ({"max_steps": 5}, 2), ({"max_steps": 5, "max_epochs": -1}, 2)], ids=str
)
def test_row_18_auto_is_the_number_of_epochs_for_a_schedule_of_epochs(fit: Any, arguments: Any, total: int) -> None:
    made, _ = fit(ADAM, {"name": COSINE, "T_max": "auto"}, **arguments)
    assert schedule(made).T_max == total
    made, _ = fit(ADAM, {"name": COSINE, "T_max": "auto", "interval": "step", "frequency": 2}, max_epochs=2)
    assert (schedule(made).T_max, schedule(made).last_epoch) == (4, 4)


class Unsized(IterableDataset):
    def __iter__(self) -> Any:
        return iter([(torch.ones(4), torch.ones(1))] * 8)


@pytest.mark.parametrize(
    ("interval", "arguments", "complaint"),
    [
        ("step", {"max_epochs": 2}, "the training data have no length"),
        (
            "epoch",
            {"max_steps": 4, "max_epochs": -1},
            "the training data have no length .*: give a number, or interval: step",
        ),
        ("step", {"max_epochs": -1, "max_time": {"seconds": 5}}, "the trainer stops by max_time"),
    ],
)
def test_row_18_data_without_a_length_have_a_clear_error(
    fit: Any, scripted: type, interval: str, arguments: Any, complaint: str
) -> None:
    module = scripted()
    module.train_dataloader = lambda: DataLoader(Unsized(), batch_size=2)
    with pytest.raises(ConfigError, match=rf"^scheduler.T_max: is auto, and {complaint}"):
        fit(ADAM, {"name": COSINE, "T_max": "auto", "interval": interval}, module=module, **arguments)
    assert module.rates == []


def test_row_18_data_without_a_length_and_max_steps_is_enough(fit: Any, scripted: type) -> None:
    module = scripted()
    module.train_dataloader = lambda: DataLoader(Unsized(), batch_size=2)
    made, _ = fit(
        ADAM, {"name": COSINE, "T_max": "auto", "interval": "step"}, module=module, max_steps=3, max_epochs=-1
    )
    assert schedule(made).T_max == 3


def test_row_18_a_training_that_max_time_ends_has_a_clear_error(fit: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        fit(ADAM, {"name": COSINE, "T_max": "auto"}, max_epochs=-1, max_time={"seconds": 5})
    assert str(caught.value) == (
        "scheduler.T_max: is auto, and the trainer stops by max_time, so nobody knows how many steps there will be: "
        "set the trainer's max_steps, or give a number"
    )


def test_row_18_an_endless_training_has_a_clear_error(fit: Any) -> None:
    with pytest.raises(ConfigError, match="the trainer has neither max_epochs nor max_steps: set"):
        fit(ADAM, {"name": COSINE, "T_max": "auto"}, max_epochs=-1)


def test_row_18_without_a_trainer_auto_has_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"^scheduler.T_max: is auto, and no trainer is attached"):
        optplug.configure_optimizers(nn.Linear(1, 1), "adam", {"name": COSINE, "T_max": "auto"})


@pytest.mark.usefixtures("plugins")
def test_row_18_nothing_crashes_beyond_the_end(fit: Any, tmp_path: Path) -> None:
    chosen = (ADAM, {"name": "one_cycle_lr", "max_lr": 0.1, "total_steps": "auto"})
    made, _ = fit(*chosen, max_epochs=2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    longer, module = fit(*chosen, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert longer.global_step == 4 * BATCHES
    assert schedule(longer).last_epoch == 2 * BATCHES  # the checkpoint's schedule is over
    assert len(set(module.rates)) == 1


@pytest.mark.timeout(90)
def test_row_18_several_processes_share_the_steps(
    ours: Any, scripted: type, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    class Telling(scripted):
        def on_train_end(self) -> None:
            told = {"total": schedule(self.trainer).T_max, "steps": self.trainer.global_step, "rates": self.rates}
            (tmp_path / f"{self.global_rank}.json").write_text(json.dumps(told))

    callback = ours.ConfigureOptimizers(ADAM, {"name": COSINE, "T_max": "auto", "interval": "step"}, verbose=False)
    trainer(devices=2, strategy="ddp_fork", callbacks=callback).fit(Telling())
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["total"] == first["steps"] == 3 * BATCHES // 2


def test_row_18_a_batch_size_finder_that_changes_the_length_is_noticed(
    pl: Any, ours: Any, digits_module: type, trainer: Any
) -> None:
    class Sized(digits_module):
        batch_size = 16

        def train_dataloader(self) -> DataLoader:
            return DataLoader(self.train_data, batch_size=self.batch_size)

    finder = pl.callbacks.BatchSizeFinder(mode="power", steps_per_trial=1, max_trials=2)
    callback = ours.ConfigureOptimizers("sgd", {"name": COSINE, "T_max": "auto", "interval": "step"}, verbose=False)
    made, module = trainer(max_epochs=1, callbacks=[finder, callback], limit_val_batches=0), Sized()
    made.fit(module)
    assert module.batch_size != 16
    assert schedule(made).T_max == made.global_step == -(-1440 // module.batch_size)


# -------------------------------------------------------------------------------------- one schema

SETTINGS: dict[str, Any] = {
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "scheduler": {"name": COSINE, "T_max": "auto", "interval": "step", "warmup": {"epochs": 1}, "eta_min": 0.001},
    "param_groups": ["no_decay", {"match": "layer.weight", "name": "weights", "lr_mult": 0.5}],
}


def outcome(made: Any, module: Any) -> dict[str, Any]:
    """Rates, groups and weights of a training."""
    optimizer = made.optimizers[0]
    options = ("lr", "initial_lr", "weight_decay", "momentum", "name")
    return {
        "rates": module.rates,
        "groups": [row.to_dict() for row in group_table(optimizer, module)],
        "options": [{key: group[key] for key in options} for group in optimizer.param_groups],
        "weights": [p.tolist() for p in module.parameters()],
        "schedule": schedule(made).state_dict(),
    }


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 3,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


@pytest.fixture
def straight(pl: Any, helped: type) -> dict[str, Any]:
    """The training of `SETTINGS`, in Python."""
    module = helped(SETTINGS)
    made = pl.Trainer(**QUIET)
    made.fit(module)
    return outcome(made, module)


def test_row_19_the_settings_do_what_they_say(straight: dict[str, Any]) -> None:
    assert [group["group"] for group in straight["groups"]] == ["weights", "no_decay"]
    assert [group["weight_decay"] for group in straight["groups"]] == [0.01, 0.0]
    assert [group["lr"] for group in straight["groups"]] == [0.025, 0.05]
    assert straight["rates"][0] < straight["rates"][3] > straight["rates"][11]


def test_row_19_python_callback_and_yaml_train_the_same(
    pl: Any, ours: Any, scripted: type, straight: dict[str, Any]
) -> None:
    for given in (SETTINGS, yaml.safe_load(yaml.safe_dump(SETTINGS)), checked(**SETTINGS).to_dict()):
        module = scripted()
        made = pl.Trainer(**QUIET, callbacks=ours.ConfigureOptimizers(**given, verbose=False))
        made.fit(module)
        assert outcome(made, module) == straight


def test_row_19_our_command_line_trains_the_same(
    ours: Any, scripted: type, straight: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": QUIET, **SETTINGS}))

    class Model(scripted):
        def __init__(self) -> None:
            super().__init__()

    by_file = ["--config", str(path)]
    by_words = ["--seed_everything=1", f"--trainer={json.dumps(QUIET)}", "--optimizer", "SGD", "--optimizer.lr", "5e-2"]
    by_words += [
        "--optimizer.momentum",
        "0.9",
        "--optimizer.weight_decay",
        "0.01",
        "--scheduler",
        "Cosine-Annealing-LR",
    ]
    by_words += ["--scheduler.T_max", "auto", "--scheduler.interval", "step", "--scheduler.warmup", "{epochs: 1}"]
    by_words += ["--scheduler.eta_min", "0.001", f"--param_groups={json.dumps(SETTINGS['param_groups'])}"]
    for args in (by_file, by_words):
        cli = ours.OptplugCLI(Model, run=False, args=args, save_config_callback=None)
        cli.trainer.fit(cli.model)
        assert outcome(cli.trainer, cli.model) == straight


def test_row_19_an_unmodified_lightning_cli_trains_the_same(
    pl: Any, ours: Any, scripted: type, straight: dict[str, Any], tmp_path: Path
) -> None:
    import importlib

    lightning_cli = importlib.import_module(f"{pl.__name__}.cli").LightningCLI
    callback = {"class_path": f"{ours.__name__}.ConfigureOptimizers", "init_args": {**SETTINGS, "verbose": False}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": {**QUIET, "callbacks": [callback]}}))

    class Model(scripted):
        def __init__(self) -> None:
            super().__init__()

    cli = lightning_cli(Model, run=False, args=["--config", str(path)], save_config_callback=None)
    cli.trainer.fit(cli.model)
    assert outcome(cli.trainer, cli.model) == straight


def test_row_19_hydra_trains_the_same(
    pl: Any, ours: Any, scripted: type, helped: type, straight: dict[str, Any]
) -> None:
    given = OmegaConf.create(
        {
            "rate": 0.05,
            "settings": {**SETTINGS, "optimizer": {**SETTINGS["optimizer"], "lr": "${rate}"}},
            "callback": {
                "_target_": f"{ours.__name__}.ConfigureOptimizers",
                "optimizer": "${settings.optimizer}",
                "scheduler": "${settings.scheduler}",
                "param_groups": "${settings.param_groups}",
                "verbose": False,
            },
        }
    )
    module = scripted()
    made = pl.Trainer(**QUIET, callbacks=instantiate(given.callback))
    made.fit(module)
    assert outcome(made, module) == straight
    module = helped(given.settings)
    made = pl.Trainer(**QUIET)
    made.fit(module)
    assert outcome(made, module) == straight


def test_row_19_saved_hyperparameters_train_the_same(
    pl: Any, scripted: type, straight: dict[str, Any], tmp_path: Path
) -> None:
    class Model(scripted):
        def __init__(self, optimizer: Any, scheduler: Any, param_groups: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

        def configure_optimizers(self) -> Any:
            return optplug.configure_optimizers(self, **self.hparams)

    module = Model(**SETTINGS)
    made = pl.Trainer(**QUIET)
    made.fit(module)
    assert outcome(made, module) == straight
    made.save_checkpoint(tmp_path / "last.ckpt")
    hparams = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert hparams == SETTINGS
    again = Model(**hparams)
    made = pl.Trainer(**QUIET)
    made.fit(again)
    assert outcome(made, again) == straight


def test_row_19_the_choice_and_its_table_are_stored_with_the_run(
    pl: Any, ours: Any, fit: Any, straight: dict[str, Any], tmp_path: Path
) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    made, _ = fit(**SETTINGS, logger=logger)
    made.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["optplug"]
    assert checked(**stored["config"]) == checked(**SETTINGS)
    assert stored["groups"] == [straight["groups"]]
    logged = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())["optplug"]
    assert logged["optimizer"] == SETTINGS["optimizer"]
    assert logged["groups"]["no_decay"] == {
        "group": "no_decay",
        "parameters": 1,
        "elements": 1,
        "lr": 0.05,
        "weight_decay": 0.0,
    }


@pytest.mark.parametrize("own", ["optimizer", "mapping", "list", "two lists"])
def test_row_19_a_scheduler_without_an_optimizer_schedules_the_modules_own(fit: Any, scripted: type, own: str) -> None:
    class Own(scripted):
        def configure_optimizers(self) -> Any:
            made = torch.optim.SGD(self.parameters(), lr=0.1)
            return {"optimizer": made, "mapping": {"optimizer": made}, "list": [made], "two lists": ([made], [])}[own]

    made, module = fit(None, {"name": "exponential_lr", "gamma": 0.5}, module=Own())
    assert type(made.optimizers[0]) is torch.optim.SGD
    assert rounded(module.rates[::BATCHES]) == [0.1, 0.05, 0.025]
    assert "configure_optimizers" not in vars(module)


def test_row_19_a_scheduler_without_any_optimizer_is_refused(fit: Any, scripted: type) -> None:
    with pytest.raises(
        WiringError, match=r"^scheduler: there is no optimizer to schedule: .* add e.g. optimizer: adam"
    ):
        fit(None, "reduce_lr_on_plateau")

    class Both(scripted):
        def configure_optimizers(self) -> Any:
            made = torch.optim.SGD(self.parameters(), lr=0.1)
            return [made], [torch.optim.lr_scheduler.StepLR(made, 1)]

    with pytest.raises(WiringError, match="returns a schedule, and one is configured from outside too"):
        fit(None, {"name": "exponential_lr", "gamma": 0.5}, module=Both())
    made, _ = fit(None, {"name": "exponential_lr", "gamma": 0.5}, module=Both(), override=True)
    assert type(schedule(made)) is optplug.get_scheduler("exponential_lr")


def test_row_19_an_optimizer_without_a_scheduler_keeps_its_rate(fit: Any) -> None:
    made, module = fit(ADAM)
    assert made.lr_scheduler_configs == []
    assert set(module.rates) == {0.1}


# ------------------------------------------------------------------------------------- suggestions


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"optimizer": "adamW2"}, UnknownNameError, "optimizer: no optimizer named 'adamW2'; did you mean 'adamw'"),
        (
            {"optimizer": "ranger21x"},
            UnknownNameError,
            "optimizer: no optimizer named 'ranger21x'. Installed: adadelta",
        ),
        ({"optimizer": {"name": "adam", "init_kwargs": {"lr": 1}}}, ConfigError, "optimizer.init_kwargs: "),
        ({"optimizer": {"name": "adam", "learning_rate": 1}}, ConfigError, "did you mean 'lr'?"),
        ({"optimizer": {"name": "adam", "lr_scheduler": 1}}, ConfigError, "optimizer.lr_scheduler: "),
        (
            {"optimizer": "adam", "scheduler": {"name": "cosine"}},
            UnknownNameError,
            "did you mean 'cosine_annealing_lr'",
        ),
        (
            {"optimizer": "adam", "scheduler": {"name": "step_lr", "stepsize": 3}},
            ConfigErrors,
            "did you mean 'step_size'",
        ),
        ({"optimizer": "adam", "param_groups": [{"math": "*"}]}, ConfigError, "did you mean 'match'"),
        ({"optimizer": "adam", "param_groups": "no-decay"}, ConfigError, "did you mean 'no_decay'"),
        ({"optimizer": "adam", "on_resume": "overide_hparams"}, ConfigError, "did you mean 'override_hparams'"),
    ],
    ids=str,
)
def test_row_20_an_unknown_key_or_name_has_a_suggestion(given: Any, error: type[OptplugError], words: str) -> None:
    with pytest.raises(error) as caught:
        checked(**given)
    assert type(caught.value) is error
    assert words in str(caught.value)


def test_row_20_case_and_dashes_do_not_matter() -> None:
    assert (
        checked("AdamW").optimizer.registration
        == checked("adam-w").optimizer.registration
        == checked("adamw").optimizer.registration
    )


@pytest.mark.parametrize("key", ["lr_scheduler", "optimiser", "param_group"])
def test_row_20_a_wrong_key_in_a_file_has_a_suggestion(
    ours: Any, scripted: type, tmp_path: Path, capsys: Any, key: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"optimizer": "adam", key: "step_lr"}))

    class Model(scripted):
        def __init__(self) -> None:
            super().__init__()

    with pytest.raises(SystemExit):
        ours.OptplugCLI(Model, run=False, args=["--config", str(path)])
    right = {"lr_scheduler": "scheduler", "optimiser": "optimizer", "param_group": "param_groups"}[key]
    assert f"did you mean '{right}'" in capsys.readouterr().err


# --------------------------------------------------------------------------------- interpolation


def test_row_21_auto_and_interpolated_values_are_valid_in_yaml(
    ours: Any, scripted: type, tmp_path: Path, capsys: Any
) -> None:
    class Model(scripted):
        def __init__(self) -> None:
            super().__init__()

    def cli(t_max: str, **kwargs: Any) -> Any:
        path = tmp_path / "config.yaml"
        scheduler = {"name": COSINE, "T_max": t_max}
        path.write_text(
            yaml.safe_dump({"seed_everything": 1, "trainer": QUIET, "optimizer": "adam", "scheduler": scheduler})
        )
        made = ours.OptplugCLI(Model, run=False, args=["--config", str(path)], save_config_callback=None, **kwargs)
        made.trainer.fit(made.model)
        return schedule(made.trainer).T_max

    assert cli("auto") == 3
    assert cli("${trainer.max_epochs}", parser_kwargs={"parser_mode": "omegaconf"}) == 3
    with pytest.raises(SystemExit):
        cli("${trainer.max_epochs}")
    assert "scheduler.T_max: " in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(4), "mlp": nn.Linear(4, 4)}) for _ in range(2))
        self.head = nn.Linear(4, 2)


def named(module: nn.Module, optimizer: Any) -> dict[str, set[str]]:
    return {row.group: set(row.parameters) for row in group_table(optimizer, module)}


def built(module: nn.Module, optimizer: Any, groups: Any) -> Any:
    return optplug.configure_optimizers(module, optimizer, param_groups=groups)["optimizer"]


def test_row_22_no_decay_takes_norms_biases_and_embeddings() -> None:
    module = Net()
    optimizer = built(module, {"name": "adamw", "weight_decay": 0.1}, "no_decay")
    decayed = {"blocks.0.mlp.weight", "blocks.1.mlp.weight", "head.weight"}
    everything = {name for name, _ in module.named_parameters()}
    assert named(module, optimizer) == {"default": decayed, "no_decay": everything - decayed}
    assert {g["name"]: g["weight_decay"] for g in optimizer.param_groups} == {"default": 0.1, "no_decay": 0.0}


def test_row_22_layer_decay_and_regex_multipliers_combine_and_every_group_is_named() -> None:
    module = Net()
    rules = [
        {"preset": "layer_decay", "decay": 0.5, "layers": ["embed.*", "blocks.{}.*", "head.*"]},
        "no_decay",
        {"regex": r"^head\.(weight|bias)$", "name": "head", "lr_mult": 10, "wd_mult": 2},
    ]
    optimizer = built(module, {"name": "adamw", "lr": 0.8, "weight_decay": 0.1}, rules)
    rows = {row.group: (set(row.parameters), row.lr, row.weight_decay) for row in group_table(optimizer, module)}
    assert rows == {
        "embed.* + no_decay": ({"embed.weight"}, 0.1, 0.0),
        "blocks.0.* + no_decay": ({f"blocks.0.{n}" for n in ("norm.weight", "norm.bias", "mlp.bias")}, 0.2, 0.0),
        "blocks.0.*": ({"blocks.0.mlp.weight"}, 0.2, 0.1),
        "blocks.1.* + no_decay": ({f"blocks.1.{n}" for n in ("norm.weight", "norm.bias", "mlp.bias")}, 0.4, 0.0),
        "blocks.1.*": ({"blocks.1.mlp.weight"}, 0.4, 0.1),
        "head.* + head": ({"head.weight"}, 8.0, 0.2),
        "head.* + no_decay + head": ({"head.bias"}, 8.0, 0.0),
    }


@pytest.mark.parametrize("name", optplug.list_optimizers())
def test_row_22_each_trainable_parameter_is_in_one_group_and_no_optimizer_gets_an_option_it_lacks(name: str) -> None:
    module = Net()
    module.head.requires_grad_(False)
    optimizer = built(module, name, "no_decay")
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)
    has = "weight_decay" in optimizer.defaults
    assert all(("weight_decay" in group) == has for group in optimizer.param_groups)
    assert len(names) == 1 + has


# ---------------------------------------------------------------------------- several optimizers

TWO: list[dict[str, Any]] = [
    {"name": "sgd", "lr": 0.1, "match": "layer.weight", "scheduler": {"name": "exponential_lr", "gamma": 0.5}},
    {
        "name": "adam",
        "lr": 0.01,
        "match": "layer.bias",
        "scheduler": {"name": COSINE, "T_max": "auto", "interval": "step", "frequency": 2},
        "param_groups": [{"type": "Linear", "name": "biases", "weight_decay": 0.0}],
    },
]


def test_row_23_two_optimizers_in_automatic_optimisation_are_refused_early(
    fit: Any, scripted: type, helped: type
) -> None:
    words = r"^optimizer: automatic optimisation steps one optimizer, and 2 are configured: set "
    words += (
        r"self.automatic_optimization = False in \w+.__init__ and step each in training_step, or make one of them all"
    )
    module = scripted()
    with pytest.raises(WiringError, match=words):
        fit(TWO, module=module)
    assert module.rates == []
    with pytest.raises(WiringError, match=words):
        helped({"optimizer": TWO}).configure_optimizers()


@pytest.mark.parametrize("helper", [False, True], ids=["callback", "helper"])
def test_row_23_two_optimizers_train_in_manual_optimisation(
    pl: Any, fit: Any, scripted: type, trainer: Any, helper: bool
) -> None:
    class Manual(scripted):
        def __init__(self) -> None:
            super().__init__(automatic=False)
            self.second: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            self.rates.append(first.param_groups[0]["lr"])
            self.second.append(second.param_groups[0]["lr"])
            loss = self.loss(batch)
            self.manual_backward(loss)
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()

    if helper:
        module = type(
            "Helped", (Manual,), {"configure_optimizers": lambda self: optplug.configure_optimizers(self, TWO)}
        )()
        made = trainer()
        made.fit(module)
    else:
        made, module = fit(TWO, module=Manual())
    assert [type(o).__name__ for o in made.optimizers] == ["SGD", "Adam"]
    assert [named(module, o) for o in made.optimizers] == [
        {"0": {"layer.weight"}, "(elsewhere)": {"layer.bias"}},
        {"biases": {"layer.bias"}, "(elsewhere)": {"layer.weight"}},
    ]
    assert rounded(module.rates[::BATCHES]) == [0.1, 0.05, 0.025]
    assert made.lr_scheduler_configs[1].scheduler.T_max == 6  # 12 steps of its own, every second
    assert rounded(module.second) == rounded(
        0.01 * (1 + torch.cos(torch.tensor(torch.pi * (step // 2) / 6, dtype=torch.float64))) / 2 for step in range(12)
    )


def test_row_23_a_combined_optimizer_keeps_automatic_optimisation(fit: Any, scripted: type) -> None:
    entries = [{key: value for key, value in entry.items() if key != "scheduler"} for entry in TWO]
    made, module = fit({"combine": entries}, {"name": "exponential_lr", "gamma": 0.5})
    assert made.global_step == 3 * BATCHES
    assert len(made.optimizers) == 1
    assert [group["lr"] for group in made.optimizers[0].param_groups] == [0.1 / 8, 0.01 / 8]

    apart = scripted()
    torch.manual_seed(0)
    reference = [torch.optim.SGD([apart.layer.weight], lr=0.1), torch.optim.Adam([apart.layer.bias], lr=0.01)]
    for epoch in range(3):
        for x, y in apart.train_dataloader():
            loss = nn.functional.mse_loss(apart.layer(x), y)
            loss.backward()
            for optimizer in reference:
                optimizer.step()
                optimizer.zero_grad()
        for optimizer, lr in zip(reference, (0.1, 0.01), strict=True):
            optimizer.param_groups[0]["lr"] = lr * 0.5 ** (epoch + 1)
    for mine, other in zip(module.layer.parameters(), apart.layer.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            [{"name": "sgd", "match": "layer.*"}, {"name": "adam", "match": "*.bias"}],
            r"^optimizer: optimizer.combine\[0\] and optimizer.combine\[1\] both have layer.bias: a parameter has one",
        ),
        (
            [{"name": "sgd", "match": "layer.weight"}, {"name": "adam", "regex": "weight"}],
            "no optimizer has layer.bias: select them too, or freeze them",
        ),
        (
            [{"name": "sgd", "match": "layer.wieght"}, {"name": "adam", "match": "*.bias"}],
            r"optimizer.combine\[0\].match: 'layer.wieght' matches no parameter of \w+; its parameters are layer",
        ),
        (
            [{"name": "sgd", "match": "*"}, {"name": "adam"}],
            r"^optimizer.combine\[1\]: needs one of match, regex, type",
        ),
    ],
)
def test_row_23_each_parameter_has_one_optimizer(fit: Any, entries: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit({"combine": entries})


# ----------------------------------------------------------------------------------------- resume


@pytest.fixture
def half(fit: Any, tmp_path: Path) -> Any:
    """A checkpoint after two epochs of Adam at 0.1, with halving."""
    made, _ = fit(ADAM, {"name": "exponential_lr", "gamma": 0.5}, max_epochs=2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    return tmp_path / "half.ckpt"


def test_row_29_keep_takes_everything_from_the_checkpoint_and_prints_what_differs(
    fit: Any, half: Path, capsys: Any
) -> None:
    changed = {"name": "adam", "lr": 0.4}
    made, module = fit(changed, {"name": "exponential_lr", "gamma": 0.25}, ckpt_path=half, verbose=True)
    assert rounded(module.rates[::BATCHES]) == [0.025]
    assert schedule(made).gamma == 0.5
    said = capsys.readouterr().out
    assert "resumed with on_resume: keep: learning rates, options and counters are the checkpoint's" in said
    assert "optimizer.lr is 0.4 in the configuration and 0.1 in the checkpoint: the checkpoint's counts" in said
    assert "scheduler.gamma is 0.25 in the configuration and 0.5 in the checkpoint: the checkpoint's counts" in said


def test_row_29_override_hparams_takes_the_numbers_of_the_configuration(fit: Any, half: Path, capsys: Any) -> None:
    changed = {"name": "adam", "lr": 0.4, "eps": 1e-3}
    made, module = fit(
        changed,
        {"name": "exponential_lr", "gamma": 0.25},
        ckpt_path=half,
        on_resume="override_hparams",
        verbose=True,
    )
    assert rounded(module.rates[::BATCHES]) == rounded([0.4 * 0.25**2])
    assert made.optimizers[0].param_groups[0]["eps"] == 1e-3
    assert schedule(made).last_epoch == 3
    assert made.global_step == 3 * BATCHES
    assert {float(state["step"]) for state in made.optimizers[0].state.values()} == {3.0 * BATCHES}
    said = capsys.readouterr().out
    assert "optimizer.lr is 0.4 in the configuration and 0.1 in the checkpoint: the configuration's counts" in said


def test_row_29_override_without_changes_changes_nothing(fit: Any, half: Path) -> None:
    for scheduler in ({"name": "exponential_lr", "gamma": 0.5},):
        kept = fit(ADAM, scheduler, ckpt_path=half, max_epochs=4)
        overridden = fit(ADAM, scheduler, ckpt_path=half, max_epochs=4, on_resume="override_hparams")
        assert kept[1].rates == overridden[1].rates
        for mine, other in zip(kept[1].parameters(), overridden[1].parameters(), strict=True):
            assert torch.equal(mine, other)


def test_row_29_override_reaches_plateaus_and_warmups(fit: Any, scripted: type, tmp_path: Path) -> None:
    plateau = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5, "warmup_steps": 2}
    values = {"val_loss": [1.0, 2.0, 3.0, 4.0]}
    made, _ = fit(SGD, plateau, module=scripted(val=values), num_sanity_val_steps=0)
    assert made.optimizers[0].param_groups[0]["lr"] == 0.025
    made.save_checkpoint(tmp_path / "cut.ckpt")
    changed = {**plateau, "patience": 7}
    made, module = fit(
        {"name": "sgd", "lr": 0.8},
        changed,
        module=scripted(val=values),
        ckpt_path=tmp_path / "cut.ckpt",
        max_epochs=5,
        on_resume="override_hparams",
    )
    assert set(rounded(module.rates)) == {0.2}  # the two cuts stay
    assert schedule(made).patience == 7


def test_row_29_reset_scheduler_starts_the_schedule_anew_and_keeps_the_moments(fit: Any, half: Path) -> None:
    made, module = fit(
        {"name": "adam", "lr": 0.4}, {"name": "step_lr", "step_size": 1}, ckpt_path=half, on_resume="reset_scheduler"
    )
    assert rounded(module.rates[::BATCHES]) == [0.4]
    assert schedule(made).last_epoch == 1
    assert {float(state["step"]) for state in made.optimizers[0].state.values()} == {3.0 * BATCHES}


def test_row_29_reset_all_keeps_the_weights_alone(fit: Any, half: Path) -> None:
    made, module = fit({"name": "sgd", "lr": 0.0}, ckpt_path=half, on_resume="reset_all")
    assert made.current_epoch == 3
    weights = torch.load(half, weights_only=True)["state_dict"]
    assert torch.equal(module.layer.weight, weights["layer.weight"])
    made, _ = fit(ADAM, ckpt_path=half, on_resume="reset_all")
    assert {float(state["step"]) for state in made.optimizers[0].state.values()} == {float(BATCHES)}


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (
            {"optimizer": "sgd"},
            "the optimizer of the checkpoint is adam, and the configuration says sgd; on_resume: reset_all",
        ),
        (
            {"optimizer": ADAM},
            "the schedule of the checkpoint is exponential_lr, and the configuration says none; on_resume",
        ),
        (
            {"optimizer": ADAM, "scheduler": {"name": "step_lr", "step_size": 1}},
            "the schedule of the checkpoint is exponential_lr, and the configuration says step_lr; on_resume: "
            "reset_all keeps the weights and starts optimizer and schedule anew, reset_scheduler the schedule alone",
        ),
        (
            {
                "optimizer": ADAM,
                "scheduler": {"name": "exponential_lr", "gamma": 0.5},
                "param_groups": [{"match": "*.bias", "lr": 1.0}],
            },
            r"the checkpoint's parameter groups are 0, now there are default, \*.bias; group 0 is now without layer.b",
        ),
    ],
    ids=["optimizer", "no schedule", "schedule", "groups"],
)
def test_row_29_another_class_is_explained(fit: Any, half: Path, chosen: Any, words: str) -> None:
    with pytest.raises(WiringError, match=words):
        fit(**chosen, ckpt_path=half)


# ----------------------------------------------------------------------------- late construction


def late(scripted: type) -> type:
    class Late(scripted):
        def __init__(self) -> None:
            super().__init__()
            del self.layer
            self.layer = None

        def configure_model(self) -> None:
            if self.layer is None:
                torch.manual_seed(0)
                self.layer = nn.Linear(4, 1)

    return Late


def test_row_33_a_model_built_in_configure_model_is_optimized_from_the_command_line(ours: Any, scripted: type) -> None:
    args = [
        "--seed_everything=1",
        f"--trainer={json.dumps(QUIET)}",
        "--optimizer",
        "sgd",
        "--optimizer.lr",
        "0.1",
        "--param_groups",
        "no_decay",
    ]
    cli = ours.OptplugCLI(late(scripted), run=False, args=args, save_config_callback=None)
    cli.trainer.fit(cli.model)
    (optimizer,) = cli.trainer.optimizers
    assert named(cli.model, optimizer) == {"default": {"layer.weight"}, "no_decay": {"layer.bias"}}
    torch.manual_seed(0)
    assert not torch.equal(cli.model.layer.weight, nn.Linear(4, 1).weight)


@pytest.mark.timeout(90)
def test_row_33_two_processes_optimize_a_model_built_late(
    ours: Any, scripted: type, trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    class Telling(late(scripted)):
        def on_train_end(self) -> None:
            told = {"groups": [row.group for row in group_table(self.trainer.optimizers[0], self)]}
            told["weights"] = [p.tolist() for p in self.parameters()]
            (tmp_path / f"{self.global_rank}.json").write_text(json.dumps(told))

    callback = ours.ConfigureOptimizers(ADAM, param_groups="no_decay", verbose=False)
    trainer(devices=2, strategy="ddp_fork", callbacks=callback).fit(Telling())
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["groups"] == ["default", "no_decay"]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _sharded(pl: Any, ours: Any, scripted: type, rank: int, port: int, folder: Path) -> None:
    """One of two processes of FSDP2; writes what it ends with, or its traceback."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    code = 1
    try:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        told: dict[str, Any] = {}

        class Sharded(scripted):
            def on_train_end(self) -> None:
                (optimizer,) = self.trainer.optimizers
                told["groups"] = {row["group"]: row["parameters"] for row in tables(self.trainer)[0]}
                told["sharded"] = all(isinstance(p, DTensor) for g in optimizer.param_groups for p in g["params"])
                # Not those of the module: FSDP leaves whole ones there after a validation.
                told["weights"] = [p.full_tensor().tolist() for g in optimizer.param_groups for p in g["params"]]

            def configure_model(self) -> None:
                mesh = self.device_mesh["data_parallel"]
                fully_shard(self.layer, mesh=mesh)
                fully_shard(self, mesh=mesh)

        strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        callback = ours.ConfigureOptimizers(ADAM, param_groups="no_decay", verbose=False)
        made = pl.Trainer(
            **{**QUIET, "devices": 2}, strategy=strategy, callbacks=callback, use_distributed_sampler=False
        )
        made.fit(Sharded())
        (folder / f"{rank}.json").write_text(json.dumps(told))
        code = 0
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


@pytest.mark.timeout(120)
def test_row_33_fsdp2_shards_have_their_groups_by_name(
    pl: Any, ours: Any, fit: Any, scripted: type, tmp_path: Path
) -> None:
    import torch.distributed.fsdp  # the forked processes inherit it

    context, port = multiprocessing.get_context("fork"), _free_port()
    children = [context.Process(target=_sharded, args=(pl, ours, scripted, rank, port, tmp_path)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        if child.is_alive():
            child.kill()
    failures = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert failures == []
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["sharded"]
    assert first["groups"] == {"default": ["layer.weight"], "no_decay": ["layer.bias"]}
    _, whole = fit(ADAM, param_groups="no_decay")
    for mine, other in zip(first["weights"], whole.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(mine), other.detach())


# ------------------------------------------------------------------------------- learning-rate finder


def test_the_learning_rate_finder_reaches_the_configuration_through_a_link(
    pl: Any, ours: Any, digits_module: type, trainer: Any
) -> None:
    class Rated(digits_module):
        lr = 0.5

    settings = ({"name": "sgd", "lr": "module.lr"}, {"name": COSINE, "T_max": "auto"})
    groups = [{"match": "*.bias", "name": "biases", "lr_mult": 2}]
    # As a callback, the finder runs when the optimizer is there already.
    finder = pl.callbacks.LearningRateFinder(num_training_steps=40)
    callback = ours.ConfigureOptimizers(*settings, param_groups=groups, verbose=False)
    made, module = (
        trainer(max_epochs=1, callbacks=[finder, callback], limit_val_batches=0, num_sanity_val_steps=0),
        Rated(),
    )
    made.fit(module)
    assert module.lr != 0.5
    assert [group["initial_lr"] for group in made.optimizers[0].param_groups] == [module.lr, 2 * module.lr]
    assert schedule(made).base_lrs == [module.lr, 2 * module.lr]


def test_steps_of_several_optimizers_are_counted_on_when_a_run_is_resumed(
    fit: Any, scripted: type, tmp_path: Path
) -> None:
    class Critic(scripted):
        """Steps its second optimizer in every second batch only."""

        def __init__(self) -> None:
            super().__init__(automatic=False)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            self.manual_backward(self.loss(batch))
            first.step()
            if batch_idx % 2:
                second.step()
            self.rates.append([o.param_groups[0]["lr"] for o in (first, second)])

    halving = {"name": "exponential_lr", "gamma": 0.5, "interval": "step", "frequency": 3}
    two = [
        {"name": "sgd", "lr": 1.0, "match": "*.weight", "scheduler": halving},
        {"name": "sgd", "lr": 1.0, "match": "*.bias", "scheduler": halving},
    ]
    _, whole = fit(two, module=Critic(), max_epochs=4)
    assert [first for first, _ in whole.rates] == [0.5 ** (step // 3) for step in range(16)]
    assert [second for _, second in whole.rates] == [0.5 ** (step // 2 // 3) for step in range(16)]
    made, _ = fit(two, module=Critic(), max_epochs=2)
    made.save_checkpoint(tmp_path / "half.ckpt")
    _, rest = fit(two, module=Critic(), max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert rest.rates == whole.rates[8:]
