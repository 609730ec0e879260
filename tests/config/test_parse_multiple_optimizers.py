"""Parsing of lists of optimizers, and of `combine`."""

from __future__ import annotations

from typing import Any

import omegaconf
import pytest

from optplug.config.build import parse_and_check
from optplug.config.model import Config, OptimizerConfig, OptimizerEntry, OptimizerSetup, SchedulerConfig
from optplug.config.param_group_presets import NoDecay
from optplug.config.param_selection import Selector
from optplug.errors import ConfigError, ConfigTypeError, HyperparameterError, OptplugError, loc_text

PLATEAU = {"name": "reduce_lr_on_plateau"}
GENERATOR = {"name": "adam", "match": "generator.*", "lr": 0.1, "scheduler": {"name": "step_lr", "step_size": 3}}
CRITIC = {"name": "sgd", "type": ["Conv2d", "Linear"], "lr": 0.2, "param_groups": ["no_decay"]}
GLOB_TYPE_MESSAGE = "a glob, or a list of them"
ENTRY_EXAMPLE = "{name: adam, match: 'generator.*', lr: 1.0e-3}"


def test_list_of_optimizers_gives_one_setup_each():
    config = parse_and_check([GENERATOR, CRITIC])
    assert config == Config(
        (
            OptimizerSetup(
                (OptimizerEntry(OptimizerConfig("adam", {"lr": 0.1}), select=Selector(match=("generator.*",))),),
                SchedulerConfig("step_lr", {"step_size": 3}),
            ),
            OptimizerSetup(
                (
                    OptimizerEntry(
                        OptimizerConfig("sgd", {"lr": 0.2}), (NoDecay(),), Selector(type=("Conv2d", "Linear"))
                    ),
                ),
            ),
        ),
        has_optimizer_list=True,
    )


def test_omegaconf_list_is_a_list_of_optimizers():
    assert parse_and_check(omegaconf.OmegaConf.create([GENERATOR, CRITIC])) == parse_and_check([GENERATOR, CRITIC])


def test_combine_gives_one_setup_with_several_entries():
    generator = {key: value for key, value in GENERATOR.items() if key != "scheduler"}
    config = parse_and_check({"combine": [generator, CRITIC]}, PLATEAU, monitor="val_loss")
    assert len(config.setups) == 1
    assert config.setup.entries == tuple(setup.entries[0] for setup in parse_and_check([GENERATOR, CRITIC]).setups)
    assert config.scheduler == SchedulerConfig("reduce_lr_on_plateau", monitor="val_loss")


def test_single_entry_needs_no_selector():
    assert parse_and_check([{"name": "adam"}]) == Config(parse_and_check("adam").setups, has_optimizer_list=True)
    assert parse_and_check({"combine": [{"name": "adam"}]}).optimizer == parse_and_check("adam").optimizer


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ([], ConfigTypeError, ": must be a list of mappings, each with a name, got []"),
        (["adam"], ConfigTypeError, f"[0]: must be a mapping such as {ENTRY_EXAMPLE}, got 'adam'"),
        ([None], ConfigTypeError, f"[0]: must be a mapping such as {ENTRY_EXAMPLE}, got None"),
        ([{"match": "a"}], ConfigError, "[0]: needs a name; it has match"),
        (
            [{"name": "adam"}, {"name": "sgd", "match": "x"}],
            ConfigError,
            "[0]: needs one of match, regex, type, ndim, rest to select its parameters",
        ),
        ([{"name": "adam", "match": 5}], ConfigTypeError, f"[0].match: must be {GLOB_TYPE_MESSAGE}, got 5"),
        (
            [{"name": "adam", "match": "a", "lr": -1}],
            HyperparameterError,
            "[0].lr: Invalid learning rate: -1 (Adam: lr must be at least 0)",
        ),
    ],
    ids=str,
)
def test_invalid_entry_raises(entries: Any, error: type[OptplugError], message: str, error_message: Any):
    assert error_message(error, entries) == f"optimizer{message}"
    assert error_message(error, {"combine": entries}) == f"optimizer.combine{message}"


def test_top_level_keys_of_an_entry_raise_beside_a_list(error_message: Any, collected_errors: Any):
    errors = collected_errors(
        [GENERATOR, CRITIC], "step_lr", param_groups=[{"match": "*"}], monitor="val_loss", mode="min"
    )
    assert {loc_text(error.loc): str(error).partition(": ")[2] for error in errors} == {
        "scheduler": "with several optimizers it belongs to an entry of optimizer",
        "param_groups": "with several optimizers it belongs to an entry of optimizer",
        "monitor": "with several optimizers it belongs to the entry's scheduler",
        "mode": "with several optimizers it belongs to the entry's scheduler",
    }
    assert error_message(ConfigError, {"combine": [{"name": "adam"}]}, param_groups=["no_decay"]) == (
        "param_groups: with several optimizers it belongs to an entry of optimizer"
    )


def test_key_beside_combine_raises(error_message: Any):
    assert error_message(ConfigError, {"combine": [{"name": "adam"}], "lr": 1}) == (
        "optimizer.lr: an optimizer with the key combine has no other key, got 'lr'"
    )


def test_scheduler_in_entry_of_combine_raises(error_message: Any):
    message = error_message(ConfigError, {"combine": [{"name": "adam", "scheduler": "step_lr"}]})
    assert message == (
        "optimizer.combine[0].scheduler: adam has no option 'scheduler'; scheduler belongs to the top level of the "
        "configuration"
    )


def test_invalid_entry_keeps_locations_of_later_entries(collected_errors: Any):
    errors = collected_errors([{"name": "adm", "match": "x"}, {"name": "sgd", "match": "y", "lr": -1}])
    assert [loc_text(error.loc) for error in errors] == ["optimizer[0].name", "optimizer[1].lr"]


def test_invalid_group_keeps_locations_of_later_groups(collected_errors: Any):
    errors = collected_errors("adam", param_groups=[{"match": 5}, {"match": "*", "lr": -3}])
    assert [loc_text(error.loc) for error in errors] == ["param_groups[0].match", "param_groups[1].lr"]
