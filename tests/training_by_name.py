"""Trains by name in every way, and prints the deprecation warnings that occur, as JSON.

Usage: python -W always training_by_name.py IMPORT_NAME

IMPORT_NAME is `lightning.pytorch`, `pytorch_lightning`, or `plain` for training loops without a trainer.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import os
import sys
import warnings
from itertools import product, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NamedTuple

DEPRECATIONS = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)
WRAPPERS = {"contextlib", "functools", "importlib", "typing_extensions", "warnings", "_py_warnings"}
"""Modules that emit a warning, or make a call, on behalf of another module."""

FUNCTIONS_OF_DEPRECATED = {"wrapper", "__new__", "__init_subclass__"}
"""The functions by which the decorator `deprecated` emits its warning."""


class Deprecation(NamedTuple):
    """A deprecation warning.

    Attributes:
        category: the name of its class.
        text: the message.
        caller: the package that calls what is deprecated.
        stack: file and line of each frame, the innermost first.
    """

    category: str
    text: str
    caller: str
    stack: tuple[str, ...]


recorded: list[Deprecation] = []


def record(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Record a warning if it is about a deprecation. Takes the place of `warnings.showwarning`."""
    text = " ".join(str(message).split())
    if issubclass(category, DEPRECATIONS) or "deprecat" in text.lower():
        frames = frames_of_stack()
        stack = tuple(f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in frames)
        recorded.append(Deprecation(category.__name__, text, calling_package(frames), stack))


def frames_of_stack() -> list[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    frames = []
    while (frame := frame and frame.f_back) is not None:
        frames.append(frame)
    return frames


def calling_package(frames: list[FrameType]) -> str:
    """The package that calls the function which emits a warning; for the decorator `deprecated`, the function itself.

    The package that emits the warning, if no other package is in the stack.
    """
    emitting = list(takewhile(lambda frame: package_of(frame) in WRAPPERS, frames))
    names = [name for name in map(package_of, frames) if name not in WRAPPERS]
    if any(frame.f_code.co_name in FUNCTIONS_OF_DEPRECATED for frame in emitting):
        return names[0]
    return next((name for name in names if name != names[0]), names[0])


def package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def train_in_plain_loops() -> None:
    """Train with every optimizer, engine and scheduler, and with the classes' state dicts and copies."""
    import torch

    import optplug
    from optplug.engines import ENGINES
    from optplug.registry import registry
    from optplug.registry.signature import declared_cases
    from support import first_party

    def train(name: str, scheduler: Any = None, **arguments: Any) -> None:
        module = torch.nn.Embedding(4, 2, sparse=name == "sparse_adam")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = module(torch.tensor([0, 2])).square().sum()
            loss.backward()
            return loss

        built = optplug.create_optimizer_and_scheduler(
            module, {"name": name, **arguments}, scheduler, total_steps=4, verbose=False, **monitored(scheduler)
        )
        optimizer, schedule = built
        for _ in range(3):
            loss = optimizer.step(closure)
            if schedule is not None:
                schedule.step(*([loss] if monitored(scheduler) else []))
        for part in filter(None, built):
            part.load_state_dict(copy.deepcopy(part.state_dict()))
        torch.save(copy.deepcopy(optimizer), io.BytesIO())
        optimizer.step(closure)

    for name in first_party("optimizer"):
        engines = [{}] if name == "lbfgs" else [{"engine": engine.name} for engine in ENGINES]
        if name == "sparse_adam":
            engines = [{}]
        for case, engine in product(declared_cases(registry.resolve("optimizer", name)), engines):
            train(name, **case, **engine)
    for name in first_party("scheduler"):
        cases = declared_cases(registry.resolve("scheduler", name))
        for case, warmup in product(cases, ({}, {"warmup": {"steps": 2}})):
            train("sgd", {"name": name, "args": case, **warmup})


def monitored(scheduler: Any) -> dict[str, str]:
    """The `monitor` of a scheduler that takes a metric."""
    return {"monitor": "val_loss"} if scheduler and scheduler["name"] == "reduce_lr_on_plateau" else {}


def train_with_trainer(import_name: str) -> None:
    """Train with the callback, `configure_optimizers`, OptplugCLI and LightningCLI, and resume from a checkpoint."""
    import torch

    pl = importlib.import_module(import_name)

    import optplug
    from optplug.registry import registry
    from optplug.registry.signature import declared_cases
    from support import QUIET, first_party

    own = importlib.import_module(
        "optplug.lightning" if import_name == "lightning.pytorch" else "optplug.pytorch_lightning"
    )

    class Module(pl.LightningModule):
        def __init__(self, sparse: bool = False) -> None:
            super().__init__()
            self.layer = torch.nn.Embedding(4, 2, sparse=sparse)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch[0]).square().sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.layer(batch[0]).square().sum(), batch_size=2)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(4)), batch_size=2)

        val_dataloader = train_dataloader

    class SelfConfigured(Module):
        def configure_optimizers(self) -> Any:
            return optplug.configure_optimizers(self, "adam", "reduce_lr_on_plateau", param_groups="no_decay")

    def fit(optimizer: Any, scheduler: Any = None, **options: Any) -> None:
        callback = own.ConfigureOptimizers(optimizer, scheduler, **options)
        sparse = optimizer == "sparse_adam"
        pl.Trainer(**QUIET, callbacks=[callback]).fit(Module(sparse))

    for name in first_party("optimizer"):
        fit(name)
    for name in first_party("scheduler"):
        for case, interval in product(declared_cases(registry.resolve("scheduler", name)), ("epoch", "step")):
            fit("adam", {"name": name, "args": case, **({} if monitored({"name": name}) else {"interval": interval})})
    fit("adamw", {"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"epochs": 1}}, param_groups="no_decay")
    pl.Trainer(**QUIET).fit(SelfConfigured())

    def saving_trainer(epochs: int, optimizer: Any, scheduler: Any) -> Any:
        loud = {"logger": pl.loggers.CSVLogger("logs"), "enable_checkpointing": True, "max_epochs": epochs}
        callback = own.ConfigureOptimizers(optimizer, scheduler)
        return pl.Trainer(**{**QUIET, **loud}, callbacks=[callback, pl.callbacks.LearningRateMonitor()])

    for names in (("adam", "reduce_lr_on_plateau"), ("sgd", {"name": "step_lr", "step_size": 1})):
        first = saving_trainer(1, *names)
        first.fit(Module())
        first.save_checkpoint("last.ckpt")
        saving_trainer(2, *names).fit(Module(), ckpt_path="last.ckpt")

    lightning_cli = importlib.import_module(f"{import_name}.cli")
    importlib.import_module("optplug.shims")
    settings = [f"--trainer.{key}={value}" for key, value in QUIET.items()]
    for cli, key in ((own.OptplugCLI, "scheduler"), (lightning_cli.LightningCLI, "lr_scheduler")):
        sys.argv = ["train.py", "fit", *settings, "--optimizer=adam", f"--{key}=step_lr", f"--{key}.step_size=1"]
        cli(Module, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    warnings.showwarning = record
    sys.path.insert(0, str(Path(__file__).parent))
    output, sys.stdout = sys.stdout, io.StringIO()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        train_in_plain_loops() if sys.argv[1] == "plain" else train_with_trainer(sys.argv[1])
        os.chdir("/")
    json.dump([one._asdict() for one in recorded], output)
