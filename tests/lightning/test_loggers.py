"""What loggers receive: accepted names, no shadowed hyperparameters; and loggers that refuse what they receive."""

from __future__ import annotations

import inspect
import posixpath
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from optplug.lightning.logger_names import loggable_name, rename_unloggable_groups
from support import ADAM, COSINE, LIGHTNING, PLATEAU, RISING, SGD


def flattened(params: Any, prefix: str = "") -> dict[str, Any]:
    """Nested parameters as MLflow and Comet receive them."""
    if not isinstance(params, dict):
        return {prefix: params}
    return {
        key: value
        for name, inner in params.items()
        for key, value in flattened(inner, f"{prefix}/{name}" if prefix else name).items()
    }


@pytest.fixture
def strict_logger(pl: Any) -> type:
    """The class of a logger with MLflow's rules: the characters and the form of names, and constant parameters."""

    class StrictLogger(pl.loggers.Logger):
        name, version = "strict", "0"

        def __init__(self) -> None:
            super().__init__()
            self.params: dict[str, Any] = {}
            self.metrics: dict[str, float] = {}

        def check_name(self, name: str) -> None:
            if not re.fullmatch(r"[/\w.\- :]*", name, re.ASCII) or len(name) > 250:
                raise ValueError(f"Invalid value {name!r}: Names may only contain alphanumerics")
            if posixpath.normpath(name) != name or name.startswith(("/", ".")):
                raise ValueError(f"Invalid value {name!r}: Names may be treated as files")

        def log_hyperparams(self, params: Any) -> None:
            for name, value in flattened(dict(params)).items():
                self.check_name(name)
                if self.params.get(name, value) != value:
                    raise ValueError(f"Changing param values is not allowed: {name}")
                self.params[name] = value

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            for name in metrics:
                self.check_name(name)
            self.metrics.update(metrics)

    return StrictLogger


@pytest.fixture
def mlflow_like_logger(strict_logger: Any) -> type:
    """The class of a strict logger that removes characters from the names of metrics, as MLFlowLogger does."""

    class LikeMLflow(strict_logger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            super().log_metrics({re.sub(r"[^a-zA-Z0-9_/. -]+", "", name): value for name, value in metrics.items()})

    return LikeMLflow


@pytest.fixture
def module_with_frozen_layer(scripted_module: type) -> Any:
    """A module with a frozen layer, whose validation loss rises."""
    module = scripted_module(val=RISING)
    module.extra = nn.Linear(2, 2).requires_grad_(False)
    return module


def logger_warnings(caught: Any) -> list[str]:
    """The warnings about loggers."""
    return [str(one.message) for one in caught if "what optplug logs" in str(one.message)]


# ------------------------------------------------------------------------------------------------------ Accepted names

NAMES = ["layer.*", "(frozen)", "*", "../up", "a//b", "é", "x" * 300, "", ".", "a:b", "no_decay + b", "/"]


@pytest.mark.parametrize("name", NAMES)
def test_loggable_name_is_accepted_by_strict_loggers(strict_logger: Any, name: str) -> None:
    strict_logger().check_name(f"optplug/groups/{loggable_name(name)}/lr")


def test_acceptable_names_are_logged_unchanged() -> None:
    for name in ("no_decay", "backbone.0.weight", "group 2", "_private", "x-y"):
        assert loggable_name(name) == name


@pytest.mark.parametrize(
    "groups",
    [None, [{"match": "layer.*", "lr_mult": 0.1}], [{"regex": "(w|b)", "lr": 0.1}]],
    ids=["none", "glob", "regex"],
)
def test_strict_logger_accepts_all_names(
    strict_logger: Any, module_with_frozen_layer: Any, fit: Any, groups: Any, recwarn: Any
) -> None:
    logger = strict_logger()
    fit(ADAM, PLATEAU, module=module_with_frozen_layer, param_groups=groups, logger=logger)
    assert logger.params["optplug/optimizer/lr"] == 1.0
    assert any(name.startswith("optplug/groups/") for name in logger.params)
    assert logger.metrics["reduce_lr_on_plateau/cuts"] == 2
    assert not logger_warnings(recwarn)


def test_groups_with_equal_logged_names_are_all_logged(strict_logger: Any, fit: Any) -> None:
    logger = strict_logger()
    rules = [
        {"match": f"*.{part}", "name": name, "lr": 0.1 * lr}
        for part, name, lr in (("weight", "a*", 1), ("bias", "a(", 2))
    ]
    fit(SGD, param_groups=rules, logger=logger)
    assert [value for name, value in logger.params.items() if name.endswith("/group")] == ["a*", "a("]
    assert {"optplug/groups/a/lr", "optplug/groups/a 2/lr"} <= logger.params.keys()


def test_group_name_without_letters_is_replaced(pl: Any, optplug_lightning: Any, strict_logger: Any, fit: Any) -> None:
    logger = strict_logger()
    configure = optplug_lightning.ConfigureOptimizers(SGD, param_groups=[{"match": "*", "lr_mult": 0.5}], verbose=False)
    fit(SGD, callbacks=[configure, pl.callbacks.LearningRateMonitor()], logger=logger)
    assert logger.metrics["lr-SGD/group 0"] == 0.5


@pytest.mark.parametrize("name", ["骨干", "слой 1", "слой", "é*", "*.*", "a//b", "body/", "/a", "../a", "x" * 300])
def test_monitored_group_names_are_accepted(
    pl: Any, optplug_lightning: Any, mlflow_like_logger: type, fit: Any, name: str
) -> None:
    logger = mlflow_like_logger()
    rules = [{"match": "*.weight", "name": name, "lr_mult": 0.5}]
    configure = optplug_lightning.ConfigureOptimizers(SGD, param_groups=rules, verbose=False)
    fit(SGD, callbacks=[configure, pl.callbacks.LearningRateMonitor()], logger=logger)
    assert sorted(value for key, value in logger.metrics.items() if key.startswith("lr-SGD")) == [0.5, 1.0]


def test_monitored_names_of_added_groups_are_accepted(
    pl: Any, optplug_lightning: Any, mlflow_like_logger: type, fit: Any, module_with_frozen_layer: Any
) -> None:
    class AddGroups(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                for parameter in pl_module.extra.requires_grad_(True).parameters():
                    trainer.optimizers[0].add_param_group({"params": [parameter], "name": "слой"})

    logger = mlflow_like_logger()
    configure = optplug_lightning.ConfigureOptimizers(SGD, verbose=False)
    callbacks = [configure, AddGroups(), pl.callbacks.LearningRateMonitor()]
    fit(SGD, module=module_with_frozen_layer, callbacks=callbacks, logger=logger)
    assert {"lr-SGD/group 1", "lr-SGD/group 2"} <= logger.metrics.keys()


def test_renamed_groups_have_different_names() -> None:
    names = ["layer.*", "слой", "group 1", "голова", "a//b", "a/b/", "a_b"]
    optimizer = SimpleNamespace(param_groups=[{"name": name} for name in names] + [{}, {"name": 3}])
    for _ in range(2):
        rename_unloggable_groups(optimizer)
        renamed = [group.get("name") for group in optimizer.param_groups]
        assert renamed == ["layer.*", "group 1 2", "group 1", "group 3", "a_b 2", "a_b 3", "a_b", None, 3]


# ------------------------------------------------------------------------------------------------- Loggers that refuse


@pytest.fixture
def refusing_logger(strict_logger: Any) -> type:
    """The class of a logger that refuses everything."""

    class RefusingLogger(strict_logger):
        def log_hyperparams(self, params: Any) -> None:
            raise PermissionError("read-only disk")

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if any(name.endswith("/cuts") for name in metrics):
                raise PermissionError("read-only disk")

    return RefusingLogger


def test_refusing_logger_causes_one_warning_and_the_others_still_log(
    strict_logger: Any, refusing_logger: Any, scripted_module: type, fit: Any
) -> None:
    loggers = [refusing_logger(), refusing_logger(), strict_logger()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, module = fit(SGD, PLATEAU, module=scripted_module(val=RISING), logger=loggers)
    message = "RefusingLogger did not accept what optplug logs; training continues: PermissionError: read-only disk"
    assert logger_warnings(caught) == [message] * 2
    assert module.lrs[-1] == 0.5
    assert loggers[2].params["optplug/optimizer/lr"] == 1.0
    assert loggers[2].metrics["reduce_lr_on_plateau/cuts"] == 2


def test_changed_parameters_of_a_continued_run_are_a_warning(strict_logger: Any, fit: Any) -> None:
    logger = strict_logger()
    fit({"name": "adam", "lr": 0.1}, logger=logger)
    with pytest.warns(UserWarning, match="StrictLogger did not accept .* Changing param values is not allowed"):
        _, module = fit({"name": "adam", "lr": 0.01}, logger=logger)
    assert set(module.lrs) == {0.01}


# ---------------------------------------------------------------------------------------- Hyperparameters of the module


def logged_by_csv(logger: Any) -> dict[str, Any]:
    """The hyperparameters in the file of a CSVLogger."""
    logger.save()
    file = Path(logger.log_dir) / "hparams.yaml"
    return yaml.safe_load(file.read_text()) or {} if file.exists() else {}


@pytest.fixture
def fit_with_hyperparameters(pl: Any, scripted_module: type, fit: Any, tmp_path: Path) -> Any:
    """A function that fits a module with hyperparameters; it returns the hyperparameters that a CSVLogger has written.

    `save` are arguments of `save_hyperparameters`; the other arguments are for the trainer.
    """

    def run(hyperparameters: dict[str, Any], save: Any = None, **given: Any) -> dict[str, Any]:
        module = scripted_module()
        if save is not None:
            module.save_hyperparameters(hyperparameters, **save)
        logger = pl.loggers.CSVLogger(tmp_path)
        fit(SGD, COSINE, module=module, logger=logger, **given)
        return logged_by_csv(logger)

    return run


def test_hyperparameters_of_the_module_are_not_changed(fit_with_hyperparameters: Any) -> None:
    logged = fit_with_hyperparameters({"lr": 0.5, "optimizer": "own"}, {})
    assert (logged["lr"], logged["optimizer"], logged["optplug"]["optimizer"]) == (0.5, "own", SGD)


def test_hyperparameter_of_the_module_named_optplug_is_not_replaced(fit_with_hyperparameters: Any) -> None:
    assert fit_with_hyperparameters({"optplug": {"own": 1}}, {}) == {"optplug": {"own": 1}}


def test_module_without_hyperparameters_logs_the_configuration(fit_with_hyperparameters: Any) -> None:
    assert set(fit_with_hyperparameters({})) == {"optplug"}


needs_autolog_argument = pytest.mark.skipif(
    LIGHTNING < (2, 6, 0), reason="Lightning 2.5.6: Trainer has no enable_autolog_hparams; 2.6.6 has it"
)


@pytest.mark.parametrize(
    ("save", "arguments"),
    [
        pytest.param({"logger": False}, {}, id="module"),
        pytest.param({}, {"enable_autolog_hparams": False}, id="trainer", marks=needs_autolog_argument),
    ],
)
def test_nothing_is_logged_if_no_hyperparameters_are_wanted(
    fit_with_hyperparameters: Any, save: Any, arguments: Any
) -> None:
    assert fit_with_hyperparameters({"lr": 0.5}, save, **arguments) == {}


@dataclass
class OwnHyperparameters:
    lr: float = 1.0
    optplug: int = 1


class WithoutTruth:
    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")

    __contains__: Any = lambda self, key: bool(self)


@pytest.mark.parametrize("with_logger", [True, False], ids=["logger", "no logger"])
@pytest.mark.parametrize(
    ("hyperparameters", "logged"),
    [(None, True), (3, True), (SimpleNamespace(lr=1), True), (OwnHyperparameters(), False), (WithoutTruth(), False)],
    ids=["None", "number", "namespace", "dataclass", "error"],
)
def test_data_module_with_hyperparameters_of_any_type(
    pl: Any,
    scripted_module: type,
    trainer: Any,
    quiet_callback: Any,
    strict_logger: Any,
    hyperparameters: Any,
    logged: bool,
    with_logger: bool,
) -> None:
    class Data(pl.LightningDataModule):
        hparams = hyperparameters

        def train_dataloader(self) -> Any:
            return module.train_dataloader()

    module, logger = scripted_module(), strict_logger() if with_logger else False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callbacks=quiet_callback(SGD), logger=logger).fit(module, datamodule=Data())
    assert not with_logger or any(name.startswith("optplug/") for name in logger.params) == logged
    assert bool(logger_warnings(caught)) == (with_logger and isinstance(hyperparameters, WithoutTruth))


def test_tensorboard_gets_no_metric_and_the_configuration_before_it_writes_the_file(
    pl: Any, strict_logger: Any, fit: Any
) -> None:
    class LikeTensorBoard(strict_logger):
        written: Any = None

        def log_hyperparams(self, params: Any, metrics: Any = None, step: Any = None) -> None:
            self.params.update(params)
            self.metrics.update({"hp_metric": -1} if metrics is None else metrics)

        def save(self) -> None:
            self.written = self.written or dict(self.params)

    logger = LikeTensorBoard()
    fit(SGD, COSINE, logger=logger)
    assert "hp_metric" not in logger.metrics
    assert set(logger.written) == {"optplug"}
    assert "metrics" in inspect.signature(pl.loggers.TensorBoardLogger.log_hyperparams).parameters


# ---------------------------------------------------------------------------------------------- Metadata in checkpoints


@pytest.mark.parametrize("schedule", [False, True], ids=["no schedule", "schedule of the module"])
def test_checkpoint_of_a_fit_without_part_of_optplug_has_no_metadata(
    optplug_lightning: Any, torch_module: type, trainer: Any, tmp_path: Path, schedule: bool
) -> None:
    class Module(torch_module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return ([optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)] if schedule else [])

    for path in (None, tmp_path / "saved.ckpt"):
        fitted = trainer(callbacks=[optplug_lightning.ConfigureOptimizers()], max_epochs=4 if path else 2)
        fitted.fit(Module(), ckpt_path=path)
        fitted.save_checkpoint(tmp_path / "saved.ckpt")
        assert "optplug" not in torch.load(tmp_path / "saved.ckpt", weights_only=True)
