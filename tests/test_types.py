"""The static types of optplug's functions in the code of a user who runs `mypy --strict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import lines_with_type_errors

CODE = """
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import assert_type

import optplug
from optplug.lightning.hook_types import OptimizerDict, OptimizerLRSchedulerDict

STEP = {"name": "step_lr", "step_size": 3}


class FromHyperparameters(pl.LightningModule):
    def __init__(self, optim: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return optplug.configure_optimizers(self, **self.hparams["optim"])


class WithSchedule(pl.LightningModule):
    def configure_optimizers(self) -> OptimizerLRScheduler:
        returned = optplug.configure_optimizers(self, "adam", STEP, param_groups=["no_decay", {"match": "head.*"}])
        returned["lr_scheduler"]["frequency"] = 2
        return returned


class WithoutSchedule(pl.LightningModule):
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return optplug.configure_optimizers(self, "adam")


class SeveralOptimizers(pl.LightningModule):
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return optplug.configure_optimizers(self, [{"name": "adam", "match": "a.*"}, {"name": "sgd", "match": "b.*"}])


def use(module: nn.Module, config: dict[str, Any], given: Optimizer, schedule: dict[str, Any] | None) -> None:
    assert_type(optplug.configure_optimizers(module, given), OptimizerDict)
    returned = optplug.configure_optimizers(module, "adam", scheduler=schedule)
    assert_type(returned, OptimizerDict | OptimizerLRSchedulerDict)
    assert_type(optplug.create_optimizer("adam", module, lr=0.1, param_groups="no_decay"), Optimizer)
    assert_type(optplug.create_scheduler("step_lr", given, step_size=3), LRScheduler)
    assert_type(optplug.create_optimizer_and_scheduler(module, given), tuple[Optimizer, None])
    assert_type(optplug.create_optimizer_and_scheduler(module, "adam", STEP), tuple[Optimizer, LRScheduler])
    assert_type(
        optplug.create_optimizer_and_scheduler(module, "adam", scheduler=STEP, mode="min", total_steps=3),
        tuple[Optimizer, LRScheduler],
    )
    assert_type(
        optplug.create_optimizer_and_scheduler(module, **config, epochs=3), tuple[Optimizer, LRScheduler | None]
    )
    assert_type(
        optplug.create_optimizer_and_scheduler(module, [config]), list[tuple[Optimizer, LRScheduler | None]]
    )
"""

WRONG = """

def misuse(module: nn.Module, given: Optimizer) -> None:
    optplug.configure_optimizers(module, "adam", monitr="loss")
    optplug.configure_optimizers(module, 3)
    optplug.configure_optimizers([module], "adam")
    optplug.create_optimizer("adam", module, param_groups=3)
    optplug.create_optimizer_and_scheduler(module, "adam", total_steps="3")
    optplug.create_scheduler("step_lr", module)
"""


def test_mypy_knows_the_types_of_the_public_functions(tmp_path: Path, pytestconfig: Any) -> None:
    lines, output = lines_with_type_errors(CODE + WRONG, tmp_path, pytestconfig)
    first = CODE.count("\n") + 4
    assert lines == set(range(first, first + 6)), output
