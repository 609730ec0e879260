"""Learning rates that Lightning's finder suggests, and the learning rate of the configuration."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

NOT_USED = r"^the learning rate that the tuner has found, \S+, is not used: .* Set optimizer.lr: "


@pytest.fixture
def tunable(scripted_module: type) -> Any:
    """The class of a module with the attribute `lr` and enough batches for a search."""

    class Tunable(scripted_module):
        def __init__(self) -> None:
            super().__init__()
            self.lr = 0.5

        def train_dataloader(self) -> DataLoader:
            torch.manual_seed(1)
            x = torch.randn(64, 4)
            return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=2)

    return Tunable


def search(pl: Any, trainer: Any, module: Any, **given: Any) -> Any:
    tuner = importlib.import_module(f"{pl.__name__}.tuner").Tuner(trainer)
    return tuner.lr_find(module, num_training=40, **given)


@pytest.mark.both_import_names
@pytest.mark.parametrize("name", ["lr", "learning_rate", "rate"])
def test_unused_result_of_the_tuner_warns(pl: Any, tunable: type, trainer: Any, quiet_callback: Any, name: str) -> None:
    module, made = tunable(), trainer(callbacks=quiet_callback({"name": "sgd", "lr": 0.25}))
    if name != "lr":
        del module.lr
        setattr(module, name, 0.5)
    with pytest.warns(UserWarning, match=f"{NOT_USED}module.{name} "):
        search(pl, made, module, **({"attr_name": name} if name == "rate" else {}))
    made.fit(module)
    assert module.lrs[-1] == 0.25


@pytest.mark.parametrize("groups", [None, [{"match": "*bias", "lr_mult": 0.5}]], ids=["one group", "two groups"])
def test_linked_result_of_the_tuner_is_used(
    pl: Any, tunable: type, trainer: Any, quiet_callback: Any, recwarn: pytest.WarningsRecorder, groups: Any
) -> None:
    module = tunable()
    made = trainer(callbacks=quiet_callback({"name": "sgd", "lr": "module.lr"}, param_groups=groups))
    found = search(pl, made, module).suggestion()
    made.fit(module)
    assert module.lr == found != 0.5
    assert max(group["lr"] for group in made.optimizers[0].param_groups) == found
    assert [str(warning.message) for warning in recwarn if "not used" in str(warning.message)] == []


def test_search_without_a_change_of_the_module_does_not_warn(
    pl: Any, tunable: type, trainer: Any, quiet_callback: Any, recwarn: pytest.WarningsRecorder
) -> None:
    search(pl, trainer(callbacks=quiet_callback("sgd")), tunable(), update_attr=False)
    assert [str(warning.message) for warning in recwarn if "not used" in str(warning.message)] == []


def test_result_of_the_finder_callback_is_used_without_a_link(
    pl: Any, tunable: type, trainer: Any, quiet_callback: Any, recwarn: pytest.WarningsRecorder
) -> None:
    finder = pl.callbacks.LearningRateFinder(num_training_steps=40)
    module, made = tunable(), trainer(callbacks=[finder, quiet_callback({"name": "sgd", "lr": 0.25})])
    made.fit(module)
    assert made.optimizers[0].param_groups[0]["lr"] == finder.optimal_lr.suggestion() == module.lr
    assert [str(warning.message) for warning in recwarn if "not used" in str(warning.message)] == []


def test_result_of_the_finder_is_the_base_of_a_schedule_after_its_warmup(
    pl: Any, tunable: type, trainer: Any, quiet_callback: Any
) -> None:
    finder = pl.callbacks.LearningRateFinder(num_training_steps=40)
    scheduler = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
    scheduler |= {"warmup": {"steps": 4, "schedule": "after"}}
    module = tunable()
    made = trainer(callbacks=[finder, quiet_callback({"name": "sgd", "lr": 0.25}, scheduler)], max_epochs=1)
    made.fit(module)
    found = finder.optimal_lr.suggestion()
    factors = [min(1.0, 0.25 + 0.75 * i / 4) * (1 + math.cos(math.pi * max(0, i - 4) / 28)) / 2 for i in range(32)]
    assert module.lrs[-32:] == pytest.approx([found * factor for factor in factors], rel=1e-9)
