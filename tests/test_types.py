"""The static types of optplug's functions in the code of a user who runs `mypy --strict`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from support import LIGHTNING, lines_with_type_errors

CODE = """
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import assert_type

import optplug
from optplug.config.options import Schedule
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
    assert_type(optplug.create_scheduler("step_lr", given, step_size=3), Schedule)
    assert_type(optplug.create_optimizer_and_scheduler(module, given), tuple[Optimizer, None])
    assert_type(optplug.create_optimizer_and_scheduler(module, "adam", STEP), tuple[Optimizer, Schedule])
    assert_type(
        optplug.create_optimizer_and_scheduler(module, "adam", scheduler=STEP, mode="min", total_steps=3),
        tuple[Optimizer, Schedule],
    )
    assert_type(
        optplug.create_optimizer_and_scheduler(module, **config, epochs=3), tuple[Optimizer, Schedule | Any]
    )
    assert_type(
        optplug.create_optimizer_and_scheduler(module, [config]), list[tuple[Optimizer, Schedule | None]]
    )


def step(module: nn.Module, given: Optimizer) -> LRScheduler:
    _, plateau = optplug.create_optimizer_and_scheduler(module, "adam", {"name": "reduce_lr_on_plateau", "mode": "min"})
    plateau.step(0.5)
    optplug.create_scheduler("reduce_lr_on_plateau", given).step(0.5)
    optimizer, by_keyword = optplug.create_optimizer_and_scheduler(module, optimizer="adam", scheduler="step_lr")
    assert_type(optimizer, Optimizer)
    by_keyword.step()
    return plateau


def of_several_types(
    module: nn.Module, o: str | dict[str, Any] | list[dict[str, Any]], one: str | dict[str, Any], s: str | None
) -> None:
    assert_type(optplug.configure_optimizers(module, one, s), OptimizerDict | OptimizerLRSchedulerDict)
    _, scheduler = optplug.create_optimizer_and_scheduler(module, one, s)
    assert_type(scheduler, Schedule | None)
    for returned in (optplug.configure_optimizers(module, o, s), optplug.configure_optimizers(module, o)):
        if isinstance(returned, list):
            returned = returned[0]
        assert_type(returned["optimizer"], Optimizer)
    pairs = optplug.create_optimizer_and_scheduler(module, o, s)
    optimizer, scheduler = pairs[0] if isinstance(pairs, list) else pairs
    assert_type(optimizer, Optimizer)
    assert_type(scheduler, Schedule | None)


class FromTwoHyperparameters(pl.LightningModule):
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return optplug.configure_optimizers(
            self, optimizer=self.hparams["optimizer"], scheduler=self.hparams["scheduler"], verbose=False
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
    expected = set(range(first, first + 6))
    if LIGHTNING < (2, 5):  # the types of the hook have no schedule that is always there, and none that never is
        expected |= {
            i for i, line in enumerate(CODE.splitlines(), 1) if re.search(r"\breturn (optplug|returned)", line)
        }
    assert lines == expected, output
