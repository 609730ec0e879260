"""Links: values that are read from attributes of the module when the optimizer is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from optplug.config.build import build_optimizer, parse_and_check
from optplug.errors import (
    ConfigError,
    ConfigErrors,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    loc_text,
)


def module_with(**attributes: Any) -> nn.Module:
    module = nn.Linear(2, 1)
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def build(module: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
    return build_optimizer(module, parse_and_check(*args, **kwargs).setup)


def test_link_is_replaced_by_attribute_of_module():
    module = module_with(lr=0.25, hparams={"decay": 0.5, "deep": {"eps": 0.1}})
    optimizer = build(
        module,
        {"name": "adam", "lr": "module.lr", "eps": "module.hparams.deep.eps"},
        param_groups=[{"match": "bias", "weight_decay": "module.hparams.decay"}, {"match": "weight", "lr_mult": 0.5}],
    )
    weight, bias = optimizer.param_groups
    assert (weight["lr"], bias["lr"], weight["eps"], bias["weight_decay"]) == (0.125, 0.25, 0.1, 0.5)


def test_multiplier_applies_to_linked_value():
    module = module_with(lr=0.25, head_lr=0.5)
    rules = [{"match": "bias", "lr": "module.head_lr"}, {"match": "*", "lr_mult": 0.5}]
    weight, bias = build(module, {"name": "adam", "lr": "module.lr"}, param_groups=rules).param_groups
    assert (weight["lr"], bias["lr"]) == (0.125, 0.25)


def test_unresolvable_link_raises_with_nearest_match():
    with pytest.raises(ConfigError) as caught:
        build(module_with(learning_rate=0.1), {"name": "adam", "lr": "module.learning_rat"})
    assert str(caught.value) == (
        "optimizer.lr: module.learning_rat cannot be resolved: Linear has no attribute 'learning_rat'; did you mean "
        "'learning_rate'?"
    )
    with pytest.raises(ConfigError) as caught:
        build(module_with(hparams={"rate": 1}), {"name": "adam", "lr": "module.hparams.rte"})
    assert str(caught.value) == (
        "optimizer.lr: module.hparams.rte cannot be resolved: dict has no key 'rte'; did you mean 'rate'?"
    )


def test_unresolvable_link_of_a_group_has_location_of_the_group():
    message = r"^param_groups\[0\]\.lr: module\.rate cannot be resolved: Linear has no attribute 'rate'"
    with pytest.raises(ConfigError, match=message):
        build(nn.Linear(2, 1), "adam", param_groups=[{"match": "bias", "lr": "module.rate"}])


def test_all_unresolvable_links_are_reported():
    with pytest.raises(ConfigErrors) as caught:
        build(nn.Linear(2, 1), {"name": "adam", "lr": "module.a", "eps": "module.b"})
    assert [loc_text(error.loc) for error in caught.value.errors] == ["optimizer.lr", "optimizer.eps"]


def test_linked_value_out_of_range_raises():
    with pytest.raises(HyperparameterError, match=r"^optimizer(\.lr)?: Invalid learning rate: -1"):
        build(module_with(lr=-1), {"name": "adam", "lr": "module.lr"})


def test_exception_of_a_linked_property_is_wrapped():
    class WithFailingProperty(nn.Linear):
        @property
        def lr(self) -> float:
            raise RuntimeError("not yet")

    with pytest.raises(OptplugError, match=r"^optimizer\.lr: module\.lr .*RuntimeError: not yet"):
        build(WithFailingProperty(2, 1), {"name": "adam", "lr": "module.lr"})


@pytest.mark.parametrize("text", ["module", "module.", "modul.lr", "module.1", "module.a b", " module.lr"])
def test_malformed_link_is_not_resolved(text: str, error_message: Any):
    message = error_message(HyperparameterTypeError, {"name": "adam", "lr": text})
    assert message.startswith(f"optimizer.lr: Adam: lr must be a number, got {text!r}")
