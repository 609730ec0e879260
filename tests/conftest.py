"""Shared fixtures: Lightning under both import names, modules that log scripted values, and quiet trainers."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optplug
from optplug.registry import Plugin, Registration, registry
from optplug.registry.specs import lookup_key
from support import BATCHES_PER_EPOCH, QUIET, only_first_party
from version_results import difference_property
from warnings_of_others import WARNINGS_OF_OTHERS

# The same examples on every machine and in every run; the time of an example is not tested.
settings.register_profile("optplug", derandomize=True, deadline=None)
settings.load_profile("optplug")

# The optplug module for each import name of Lightning.
OPTPLUG_MODULES = {"lightning.pytorch": "optplug.lightning", "pytorch_lightning": "optplug.pytorch_lightning"}


@pytest.fixture(autouse=True)
def check_checkpoints_hold_plain_data(request: pytest.FixtureRequest) -> Iterator[None]:
    """Load all checkpoints that a test has written with `weights_only=True`; sharded checkpoints (folders) excepted."""
    folder: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for path in folder.rglob("*.ckpt") if folder else ():
        if path.is_file():
            try:
                torch.load(path, weights_only=True)
            except UnpicklingError as error:
                pytest.fail(f"{path} holds more than plain data: {error}", pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Ignore the warnings that other packages cause."""
    for entry in WARNINGS_OF_OTHERS:
        if entry.is_expected():
            config.addinivalue_line("filterwarnings", f"ignore:{entry.message}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked `both_import_names` once for each import name of Lightning."""
    if "pl" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_import_names"):
        metafunc.parametrize("pl", OPTPLUG_MODULES, indirect=True)


@pytest.fixture
def pl(request: pytest.FixtureRequest) -> Any:
    """Lightning as `lightning.pytorch`; with the mark `both_import_names`, also as `pytorch_lightning`."""
    return importlib.import_module(getattr(request, "param", "lightning.pytorch"))


@pytest.fixture
def optplug_lightning(pl: Any) -> Any:
    """`optplug.lightning` or `optplug.pytorch_lightning`, for the import name of `pl`."""
    return importlib.import_module(OPTPLUG_MODULES[pl.__name__])


class ScriptedModule:
    """A linear layer with four batches of two samples per epoch. It logs given values and records learning rates.

    Args:
        val: the values of each validation metric, one for each completed validation. The last value repeats.
            `{"val_loss": None}` logs the computed loss.
        train: the values of each training metric, one for each epoch, logged in `training_step`.
        late: the values of each training metric, one for each epoch, logged in `on_train_epoch_end`.
        automatic: whether optimization is automatic.

    Attributes:
        lrs: the learning rate of the first parameter group at each training step.
        scheduler_steps: epoch, global step and metric value of each scheduler step.
    """

    def __init__(self, val: Any = None, train: Any = None, late: Any = None, automatic: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.val, self.train_values, self.late = val or {}, train or {}, late or {}
        self.automatic_optimization = automatic
        self.register_buffer("validations", torch.tensor(0))
        self.validated_batch: int | None = None  # the number of the batch before the last validation of a fit
        self.lrs: list[float] = []
        self.scheduler_steps: list[Any] = []

    @property
    def step_values(self) -> list[Any]:
        """The metric value of each scheduler step; None for a step without a metric."""
        return [value for *_, value in self.scheduler_steps]

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.layer(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if self.trainer.optimizers:
            self.lrs.append(float(self.trainer.optimizers[0].param_groups[0].get("lr", "nan")))
        self._log(self.train_values, self.trainer.current_epoch, loss, on_step=False, on_epoch=True)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    @property
    def is_validation_repeated(self) -> bool:
        """Whether Lightning runs a validation of the fit again, as before 2.5 when it resumes."""
        is_fit = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        return is_fit and self.trainer.fit_loop.total_batch_idx == self.validated_batch

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log(self.val, int(self.validations) - self.is_validation_repeated, self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), batch_size=2)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking and not self.is_validation_repeated:
            self.validations += 1
            self.validated_batch = self.trainer.fit_loop.total_batch_idx

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validated_batch"] = self.validated_batch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.validated_batch = checkpoint.get("validated_batch")

    def on_train_epoch_end(self) -> None:
        self._log(self.late, self.trainer.current_epoch, None)

    def _log(self, metrics: Any, i: int, loss: Any, **kwargs: Any) -> None:
        for name, values in metrics.items():
            value = loss if values is None else float(values[min(i, len(values) - 1)])
            self.log(name, value, batch_size=2, **kwargs)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.scheduler_steps.append((self.trainer.current_epoch, self.trainer.global_step, metric))
        super().lr_scheduler_step(scheduler, metric)

    def _data(self) -> DataLoader:
        torch.manual_seed(1)
        x = torch.randn(2 * BATCHES_PER_EPOCH, 4)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=2)

    train_dataloader = val_dataloader = test_dataloader = _data


class SelfConfiguredModule(ScriptedModule):
    """A module whose own `configure_optimizers` passes a configuration to `optplug.configure_optimizers`."""

    def __init__(self, configuration: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.configuration = configuration

    def configure_optimizers(self) -> Any:
        return optplug.configure_optimizers(self, **self.configuration)


# Classes at module level, because pickle looks them up by name.
for _import_name in OPTPLUG_MODULES:
    for _class in (ScriptedModule, SelfConfiguredModule):
        _name = f"{_class.__name__}_{_import_name.replace('.', '_')}"
        _module = importlib.import_module(_import_name).LightningModule
        globals()[_name] = type(_name, (_class, _module), {"__module__": __name__, "__qualname__": _name})


@pytest.fixture
def scripted_module(pl: Any) -> type:
    """The class of a module without `configure_optimizers`; see `ScriptedModule`."""
    return globals()[f"ScriptedModule_{pl.__name__.replace('.', '_')}"]


@pytest.fixture
def self_configured_module(pl: Any) -> type:
    """The class of a module that configures itself; see `SelfConfiguredModule`."""
    return globals()[f"SelfConfiguredModule_{pl.__name__.replace('.', '_')}"]


@pytest.fixture
def trainer(pl: Any, tmp_path: Any) -> Any:
    """A factory of trainers without output and files. Default: three epochs on one CPU."""

    def make(**kwargs: Any) -> Any:
        return pl.Trainer(**{**QUIET, "default_root_dir": tmp_path, **kwargs})

    return make


@pytest.fixture
def register_schedulers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that registers schedulers by their specs, as a third-party plugin does."""
    return functools.partial(register_specs, monkeypatch, "scheduler")


@pytest.fixture
def without_adapters() -> Iterator[None]:
    """Hides the names of other packages: which of them are installed has no effect on the test."""
    with only_first_party():
        yield


@pytest.fixture
def register_optimizers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that registers optimizers by their specs, as a third-party plugin does."""
    return functools.partial(register_specs, monkeypatch, "optimizer")


def register_specs(monkeypatch: pytest.MonkeyPatch, kind: str, *specs: Any) -> None:
    registry.names(kind)
    registrations = registry._discovered().registrations[kind]
    plugin = Plugin("third-party", "third-party", "1")
    for spec in specs:
        monkeypatch.setitem(registrations, lookup_key(spec.name), [Registration(spec, plugin)])


@pytest.fixture
def fit(optplug_lightning: Any, scripted_module: type, trainer: Any) -> Any:
    """A function that fits a module with arguments of ConfigureOptimizers; it returns the trainer and the module."""

    def run(optimizer: Any, scheduler: Any = None, *, module: Any = None, ckpt_path: Any = None, **given: Any) -> Any:
        names = ("param_groups", "monitor", "mode", "on_resume", "override", "verbose")
        own = {"verbose": False, **{key: given.pop(key) for key in names if key in given}}
        module = scripted_module() if module is None else module
        made = trainer(**{"callbacks": [optplug_lightning.ConfigureOptimizers(optimizer, scheduler, **own)], **given})
        made.fit(module, ckpt_path=ckpt_path)
        return made, module

    return run


def _digits() -> tuple[TensorDataset, TensorDataset]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    return TensorDataset(images[:1440], labels[:1440]), TensorDataset(images[1440:], labels[1440:])


@pytest.fixture
def digits_module(pl: Any) -> type:
    """The class of a classifier of scikit-learn's handwritten digits, without `configure_optimizers`."""

    class Digits(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            self.train_data, self.val_data = _digits()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            logits = self.network(batch[0])
            self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
            self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

        def train_dataloader(self) -> DataLoader:
            shuffled = torch.Generator().manual_seed(0)
            return DataLoader(self.train_data, batch_size=64, shuffle=True, generator=shuffled)

        def val_dataloader(self) -> DataLoader:
            return DataLoader(self.val_data, batch_size=357)

    return Digits


@pytest.fixture
def record_difference(record_property: Any) -> Any:
    """A function that adds the largest difference from an optimizer of torch to the JUnit file."""

    def record(optimizer: str, dtype: torch.dtype, difference: float) -> None:
        record_property(difference_property(optimizer, dtype), difference)

    return record
