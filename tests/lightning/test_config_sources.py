"""One configuration from Python, YAML, hyperparameters, command lines and Hydra; names and keys in each of them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

import optplug
from optplug.config.build import parse_and_check
from optplug.config.param_groups import group_table
from optplug.errors import ConfigError, ConfigErrors, OptplugError, UnknownNameError
from support import QUIET_NO_SANITY, scheduler_of

# pytest's own command line is in sys.argv, and LightningCLI warns about arguments in both places.
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")

COSINE = "cosine_annealing_lr"
SETTINGS: dict[str, Any] = {
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "scheduler": {
        "name": COSINE,
        "T_max": "auto",
        "interval": "step",
        "warmup": {"epochs": 1},
        "eta_min": 0.001,
    },
    "param_groups": ["no_decay", {"match": "layer.weight", "name": "weights", "lr_mult": 0.5}],
}


def training_outcome(fitted: Any, module: Any) -> dict[str, Any]:
    """Learning rates, parameter groups, weights and scheduler state of a training."""
    optimizer = fitted.optimizers[0]
    options = ("lr", "initial_lr", "weight_decay", "momentum", "name")
    return {
        "lrs": module.lrs,
        "groups": [row.to_dict() for row in group_table(optimizer, module)],
        "options": [{key: group[key] for key in options} for group in optimizer.param_groups],
        "weights": [p.tolist() for p in module.parameters()],
        "schedule": scheduler_of(fitted).state_dict(),
    }


@pytest.fixture
def reference_outcome(pl: Any, self_configured_module: type) -> dict[str, Any]:
    """The outcome of a training with `SETTINGS` from Python."""
    module = self_configured_module(SETTINGS)
    fitted = pl.Trainer(**QUIET_NO_SANITY)
    fitted.fit(module)
    return training_outcome(fitted, module)


# --------------------------------------------------------------- Python, YAML, command line and Hydra train identically


def test_reference_run_applies_all_settings(reference_outcome: dict[str, Any]) -> None:
    assert [group["group"] for group in reference_outcome["groups"]] == ["weights", "no_decay"]
    assert [group["weight_decay"] for group in reference_outcome["groups"]] == [0.01, 0.0]
    assert [group["lr"] for group in reference_outcome["groups"]] == [0.025, 0.05]
    assert reference_outcome["lrs"][0] < reference_outcome["lrs"][3] > reference_outcome["lrs"][11]


def test_callback_and_yaml_train_identically(
    pl: Any, optplug_lightning: Any, scripted_module: type, reference_outcome: dict[str, Any]
) -> None:
    for given in (SETTINGS, yaml.safe_load(yaml.safe_dump(SETTINGS)), parse_and_check(**SETTINGS).to_dict()):
        module = scripted_module()
        fitted = pl.Trainer(**QUIET_NO_SANITY, callbacks=optplug_lightning.ConfigureOptimizers(**given, verbose=False))
        fitted.fit(module)
        assert training_outcome(fitted, module) == reference_outcome


def test_optplug_cli_trains_identically(
    optplug_lightning: Any, scripted_module: type, reference_outcome: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": QUIET_NO_SANITY, **SETTINGS}))

    class Model(scripted_module):
        def __init__(self) -> None:
            super().__init__()

    file_arguments = ["--config", str(path)]
    command_line = [
        "--seed_everything=1",
        f"--trainer={json.dumps(QUIET_NO_SANITY)}",
        "--optimizer",
        "SGD",
        "--optimizer.lr",
        "5e-2",
    ]
    command_line += [
        "--optimizer.momentum",
        "0.9",
        "--optimizer.weight_decay",
        "0.01",
        "--scheduler",
        "Cosine-Annealing-LR",
    ]
    command_line += ["--scheduler.T_max", "auto", "--scheduler.interval", "step", "--scheduler.warmup", "{epochs: 1}"]
    command_line += ["--scheduler.eta_min", "0.001", f"--param_groups={json.dumps(SETTINGS['param_groups'])}"]
    for args in (file_arguments, command_line):
        cli = optplug_lightning.OptplugCLI(Model, run=False, args=args, save_config_callback=None)
        cli.trainer.fit(cli.model)
        assert training_outcome(cli.trainer, cli.model) == reference_outcome


def test_unmodified_lightning_cli_trains_identically(
    pl: Any, optplug_lightning: Any, scripted_module: type, reference_outcome: dict[str, Any], tmp_path: Path
) -> None:
    lightning_cli = importlib.import_module(f"{pl.__name__}.cli").LightningCLI
    callback = {
        "class_path": f"{optplug_lightning.__name__}.ConfigureOptimizers",
        "init_args": {**SETTINGS, "verbose": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 1, "trainer": {**QUIET_NO_SANITY, "callbacks": [callback]}}))

    class Model(scripted_module):
        def __init__(self) -> None:
            super().__init__()

    cli = lightning_cli(Model, run=False, args=["--config", str(path)], save_config_callback=None)
    cli.trainer.fit(cli.model)
    assert training_outcome(cli.trainer, cli.model) == reference_outcome


def test_hydra_trains_identically(
    pl: Any,
    optplug_lightning: Any,
    scripted_module: type,
    self_configured_module: type,
    reference_outcome: dict[str, Any],
) -> None:
    given = OmegaConf.create(
        {
            "lr": 0.05,
            "settings": {**SETTINGS, "optimizer": {**SETTINGS["optimizer"], "lr": "${lr}"}},
            "callback": {
                "_target_": f"{optplug_lightning.__name__}.ConfigureOptimizers",
                "optimizer": "${settings.optimizer}",
                "scheduler": "${settings.scheduler}",
                "param_groups": "${settings.param_groups}",
                "verbose": False,
            },
        }
    )
    module = scripted_module()
    fitted = pl.Trainer(**QUIET_NO_SANITY, callbacks=instantiate(given.callback))
    fitted.fit(module)
    assert training_outcome(fitted, module) == reference_outcome
    module = self_configured_module(given.settings)
    fitted = pl.Trainer(**QUIET_NO_SANITY)
    fitted.fit(module)
    assert training_outcome(fitted, module) == reference_outcome


def test_saved_hyperparameters_train_identically(
    pl: Any, scripted_module: type, reference_outcome: dict[str, Any], tmp_path: Path
) -> None:
    class Model(scripted_module):
        def __init__(self, optimizer: Any, scheduler: Any, param_groups: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

        def configure_optimizers(self) -> Any:
            return optplug.configure_optimizers(self, **self.hparams)

    module = Model(**SETTINGS)
    fitted = pl.Trainer(**QUIET_NO_SANITY)
    fitted.fit(module)
    assert training_outcome(fitted, module) == reference_outcome
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    hparams = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert hparams == SETTINGS
    again = Model(**hparams)
    fitted = pl.Trainer(**QUIET_NO_SANITY)
    fitted.fit(again)
    assert training_outcome(fitted, again) == reference_outcome


def test_checkpoint_and_logger_store_configuration_and_group_table(
    pl: Any, optplug_lightning: Any, fit: Any, reference_outcome: dict[str, Any], tmp_path: Path
) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    fitted, _ = fit(**SETTINGS, logger=logger)
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["optplug"]
    assert parse_and_check(**stored["config"]) == parse_and_check(**SETTINGS)
    assert stored["groups"] == [reference_outcome["groups"]]
    logged = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())["optplug"]
    assert logged["optimizer"] == SETTINGS["optimizer"]
    assert logged["groups"]["no_decay"] == {
        "group": "no_decay",
        "parameters": 1,
        "elements": 1,
        "lr": 0.05,
        "weight_decay": 0.0,
    }


# ---------------------------------------------------------------------------------- Names, keys and interpolated values


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"optimizer": "adamW2"}, UnknownNameError, "optimizer: no optimizer named 'adamW2'; did you mean 'adamw'"),
        (
            {"optimizer": "ranger21x"},
            UnknownNameError,
            "optimizer: no optimizer named 'ranger21x'; installed: adabelief, adadelta",
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
@pytest.mark.usefixtures("without_adapters")
def test_unknown_name_or_key_suggests_nearest(given: Any, error: type[OptplugError], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_and_check(**given)
    assert type(caught.value) is error
    assert message in str(caught.value)


def test_names_ignore_case_and_dashes() -> None:
    assert (
        parse_and_check("AdamW").optimizer.registration
        == parse_and_check("adam-w").optimizer.registration
        == parse_and_check("adamw").optimizer.registration
    )


@pytest.mark.parametrize("key", ["lr_scheduler", "optimiser", "param_group"])
def test_unknown_key_in_a_file_suggests_nearest(
    optplug_lightning: Any, scripted_module: type, tmp_path: Path, capsys: Any, key: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"optimizer": "adam", key: "step_lr"}))

    class Model(scripted_module):
        def __init__(self) -> None:
            super().__init__()

    with pytest.raises(SystemExit):
        optplug_lightning.OptplugCLI(Model, run=False, args=["--config", str(path)])
    nearest = {"lr_scheduler": "scheduler", "optimiser": "optimizer", "param_group": "param_groups"}[key]
    assert f"did you mean '{nearest}'" in capsys.readouterr().err


def test_auto_and_interpolated_values_are_valid_in_yaml(
    optplug_lightning: Any, scripted_module: type, tmp_path: Path, capsys: Any
) -> None:
    class Model(scripted_module):
        def __init__(self) -> None:
            super().__init__()

    def fitted_t_max(t_max: str, **kwargs: Any) -> Any:
        path = tmp_path / "config.yaml"
        scheduler = {"name": COSINE, "T_max": t_max}
        path.write_text(
            yaml.safe_dump(
                {
                    "seed_everything": 1,
                    "trainer": QUIET_NO_SANITY,
                    "optimizer": "adam",
                    "scheduler": scheduler,
                }
            )
        )
        cli = optplug_lightning.OptplugCLI(
            Model, run=False, args=["--config", str(path)], save_config_callback=None, **kwargs
        )
        cli.trainer.fit(cli.model)
        return scheduler_of(cli.trainer).T_max

    assert fitted_t_max("auto") == 3
    assert fitted_t_max("${trainer.max_epochs}", parser_kwargs={"parser_mode": "omegaconf"}) == 3
    with pytest.raises(SystemExit):
        fitted_t_max("${trainer.max_epochs}")
    assert "scheduler.T_max: " in capsys.readouterr().err
