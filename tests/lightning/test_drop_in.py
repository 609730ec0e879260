"""optplug's classes in the place of torch's: `torch.optim` and `torch.optim.lr_scheduler` hold them while a test runs.

A module that reads `torch.optim.Adam` then trains with optplug's class, in Lightning and in a plain loop. Its weights
are those of torch's class, and so are those of the same optimizer by name.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import optplug
from optplug.registry import registry
from support import first_party

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adadelta": {"lr": 1.0, "rho": 0.8},
    "adafactor": {"lr": 0.1, "d": 1.5},
    "adagrad": {"lr": 0.1, "lr_decay": 0.01},
    "adam": {"lr": 0.1, "weight_decay": 0.01},
    "adamax": {"lr": 0.1},
    "adamw": {"lr": 0.1, "amsgrad": True},
    "asgd": {"lr": 0.1, "t0": 4.0},
    "lbfgs": {"lr": 0.5, "max_iter": 3, "history_size": 4},
    "nadam": {"lr": 0.1},
    "radam": {"lr": 0.1, "betas": (0.9, 0.7)},
    "rmsprop": {"lr": 0.05, "momentum": 0.5, "centered": True},
    "rprop": {"lr": 0.05, "etas": [0.4, 1.3]},
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "sparse_adam": {"lr": 0.1},
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "constant_lr": {"factor": 0.5, "total_iters": 2},
    "cosine_annealing_lr": {"T_max": 3, "eta_min": 0.01},
    "cosine_annealing_warm_restarts": {"T_0": 2},
    "exponential_lr": {"gamma": 0.7},
    "lambda_lr": {"lr_lambda": lambda epoch: 1 / (1 + epoch)},
    "linear_lr": {"start_factor": 0.5, "total_iters": 3},
    "multi_step_lr": {"milestones": [1, 2], "gamma": 0.3},
    "multiplicative_lr": {"lr_lambda": lambda epoch: 1 / (1 + epoch)},
    "polynomial_lr": {"total_iters": 4},
    "reduce_lr_on_plateau": {"patience": 0, "factor": 0.5, "threshold": 10.0, "threshold_mode": "abs"},
    "step_lr": {"step_size": 2, "gamma": 0.2},
}
TORCH_OPTIMIZERS = frozenset(vars(torch.optim))
"""The names in `torch.optim`."""

CLOSE = {"rtol": 1e-8, "atol": 1e-9}
"""In double precision; with a learning rate in a float32 tensor, torch's SparseAdam rounds its steps to float32."""


def class_name(name: str, kind: str = "optimizer") -> str:
    """The name that torch and optplug have for the class of an optimizer or a scheduler."""
    get = optplug.get_optimizer if kind == "optimizer" else optplug.get_scheduler
    return str(get(name).__name__)


@pytest.fixture
def put_in_place(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts all classes of optplug into `torch.optim` and `torch.optim.lr_scheduler`."""

    def put() -> None:
        for name in OPTIMIZERS:
            monkeypatch.setattr(torch.optim, class_name(name), optplug.get_optimizer(name))
        for name in SCHEDULERS:
            monkeypatch.setattr(lr_scheduler, class_name(name, "scheduler"), optplug.get_scheduler(name))

    return put


@pytest.fixture
def module_class(scripted_module: type) -> type:
    """A module that builds optimizer and scheduler from the classes that torch's modules hold at that time."""

    class LateBound(scripted_module):
        def __init__(self, optimizer: str, scheduler: str | None = None) -> None:
            super().__init__(val={"val_loss": [3.0, 2.0, 2.0, 2.5]})
            self.names = optimizer, scheduler
            if optimizer == "sparse_adam":
                self.layer = nn.Embedding(2, 1, sparse=True)

        def loss(self, batch: Any) -> torch.Tensor:
            x, y = batch
            given = (x[:, 0] > 0).long() if isinstance(self.layer, nn.Embedding) else x
            return nn.functional.mse_loss(self.layer(given), y)

        def configure_optimizers(self) -> Any:
            name, schedule = self.names
            optimizer = getattr(torch.optim, class_name(name))(self.parameters(), **OPTIMIZERS[name])
            if schedule is None:
                return optimizer
            make = getattr(lr_scheduler, class_name(schedule, "scheduler"))
            entry = {"scheduler": make(optimizer, **SCHEDULERS[schedule]), "monitor": "val_loss"}
            return {"optimizer": optimizer, "lr_scheduler": entry}

    return LateBound


@pytest.fixture
def train(trainer: Any) -> Any:
    """A function that fits a module for five epochs in double precision and returns the module."""

    def run(module: Any, *callbacks: Any) -> Any:
        trainer(max_epochs=5, precision="64-true", callbacks=list(callbacks)).fit(module)
        return module

    return run


def test_every_name_has_a_case() -> None:
    # Muon takes matrices only; the module has vectors too.
    of_torch = [name for name in first_party("optimizer") if class_name(name) in TORCH_OPTIMIZERS and name != "muon"]
    assert sorted(OPTIMIZERS) == of_torch
    # By name, the others are stepped after each optimizer step by default.
    names = [n for n in first_party("scheduler") if registry.resolve("scheduler", n).spec.interval == "epoch"]
    assert sorted(SCHEDULERS) == [name for name in names if class_name(name, "scheduler") in vars(lr_scheduler)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_trains_as_torchs(
    name: str, put_in_place: Any, module_class: type, train: Any, quiet_callback: Any
) -> None:
    torchs = train(module_class(name))
    by_name = train(module_class(name), quiet_callback({"name": name, **OPTIMIZERS[name]}, override=True))
    put_in_place()
    swapped = train(module_class(name))

    assert type(torchs.trainer.optimizers[0]).__module__.startswith("torch.")
    for other in (by_name, swapped):
        assert type(other.trainer.optimizers[0]) is optplug.get_optimizer(name)
        torch.testing.assert_close(other.state_dict(), torchs.state_dict(), **CLOSE)


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_scheduler_steps_as_torchs(
    schedule: str, put_in_place: Any, module_class: type, train: Any, quiet_callback: Any
) -> None:
    torchs = train(module_class("sgd", schedule))
    given = {"lr_lambda": "1 / (1 + epoch)"} if schedule == "lambda_lr" else SCHEDULERS[schedule]
    monitor = "val_loss" if schedule == "reduce_lr_on_plateau" else None
    configuration = {"name": "sgd", **OPTIMIZERS["sgd"]}, {"name": schedule, **given}
    by_name = train(module_class("sgd", schedule), quiet_callback(*configuration, monitor=monitor, override=True))
    put_in_place()
    swapped = train(module_class("sgd", schedule))

    assert len(set(torchs.lrs)) > 1
    for other in (by_name, swapped):
        assert other.lrs == pytest.approx(torchs.lrs, rel=1e-12)
        torch.testing.assert_close(other.state_dict(), torchs.state_dict(), **CLOSE)


def torch_inputs() -> list[Any]:
    """The inputs of torch's own optimizer tests, one parameter for each optimizer and input."""
    try:
        from torch.testing._internal.common_optimizers import optim_db
    except ImportError as error:  # an internal module, which a version of torch may lack
        return [pytest.param("", {}, marks=pytest.mark.skip(reason=f"this torch has no optim_db: {error}"))]
    names = {class_name(name): name for name in OPTIMIZERS}
    return [
        pytest.param(info.optim_cls.__name__, given.kwargs, id=f"{info.optim_cls.__name__}-{given.desc}")
        for info in optim_db
        if info.optim_cls.__name__ in names
        for given in info.optim_inputs_func(device="cpu")
    ]


@pytest.mark.parametrize(("name", "kwargs"), torch_inputs())
def test_inputs_of_torchs_tests(name: str, kwargs: dict[str, Any], put_in_place: Any) -> None:
    def trained() -> list[torch.Tensor]:
        """The parameter after each of ten steps."""
        parameter = nn.Parameter(torch.linspace(-1, 2, 8, dtype=torch.float64).reshape(4, 2))
        optimizer = getattr(torch.optim, name)([parameter], **copy.deepcopy(kwargs))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (parameter**2 - parameter).sum()
            loss.backward()
            if name == "SparseAdam":
                parameter.grad = parameter.grad.to_sparse(1)  # type: ignore[union-attr]
            return loss

        values = []
        for _ in range(10):
            optimizer.step(closure)
            values.append(parameter.detach().clone())
        return values

    expected = trained()
    put_in_place()
    torch.testing.assert_close(trained(), expected, **CLOSE)
