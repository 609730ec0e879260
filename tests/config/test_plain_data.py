"""Mappings and lists of other libraries in a configuration: OmegaConf, argparse, jsonargparse."""

from __future__ import annotations

import argparse
from types import MappingProxyType
from typing import Any

import jsonargparse
import omegaconf
import pytest

from optplug.config.build import parse_and_check
from optplug.config.model import OptimizerConfig
from optplug.errors import ConfigError, loc_text

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
CONFIG: dict[str, Any] = {
    "optimizer": {"name": "sgd", "lr": 0.1, "args": {"momentum": 0.9}},
    "scheduler": {"name": "multi_step_lr", "milestones": [2, 4], "warmup": {"steps": 5}},
    "param_groups": ["no_decay", {"match": ["a", "b"], "lr": 0.5}],
}


def to_omegaconf(given: Any) -> Any:
    return omegaconf.OmegaConf.create(given)


def to_namespace(given: Any, kind: type = argparse.Namespace) -> Any:
    """Replace mappings by namespaces, recursively."""
    if isinstance(given, dict):
        return kind(**{key: to_namespace(value, kind) for key, value in given.items()})
    return [to_namespace(value, kind) for value in given] if isinstance(given, list) else given


@pytest.mark.parametrize(
    "convert",
    [to_omegaconf, to_namespace, lambda given: to_namespace(given, jsonargparse.Namespace), MappingProxyType],
    ids=["OmegaConf", "argparse", "jsonargparse", "mappingproxy"],
)
def test_mappings_of_other_libraries_become_builtins(convert: Any):
    def converted(value: Any) -> Any:
        return convert(value) if isinstance(value, dict) or convert is not MappingProxyType else value

    config = parse_and_check(**{key: converted(value) for key, value in CONFIG.items()})
    assert config == parse_and_check(**CONFIG)
    assert type(config.optimizer.hyperparameters) is dict
    assert type(config.scheduler.arguments["milestones"]) is list
    combined = {"combine": [{"name": "adam", "match": "a"}, {"name": "sgd", "match": "b"}]}
    assert parse_and_check(converted(combined)) == parse_and_check(combined)


def test_interpolations_are_resolved():
    whole = to_omegaconf({"lr": 0.25, "names": {"best": "adam"}, "optimizer": {"name": "${names.best}", "lr": "${lr}"}})
    assert parse_and_check(whole.optimizer).optimizer == OptimizerConfig("adam", {"lr": 0.25})


@pytest.mark.parametrize(
    ("given", "loc", "words"),
    [
        ({"optimizer": {"name": "adam", "lr": "${nowhere.lr}"}}, "optimizer.lr", "nowhere.lr"),
        ({"optimizer": {"name": "adam", "lr": "???"}}, "optimizer.lr", "issing"),
        ({"optimizer": {"name": "adam", "betas": [0.9, "???"]}}, "optimizer.betas[1]", "issing"),
        (
            {"optimizer": "adam", "param_groups": [{"match": "*"}, {"match": "*", "lr": "${x}"}]},
            "param_groups[1].lr",
            "x",
        ),
        (
            {"optimizer": "adam", "scheduler": {**COSINE, "warmup": {"steps": "???"}}},
            "scheduler.warmup.steps",
            "issing",
        ),
        ({"optimizer": {"name": "adam", "lr": "${nonsense:1}"}}, "optimizer.lr", "nonsense"),
    ],
    ids=str,
)
def test_unresolvable_interpolation_raises_config_error(given: Any, loc: str, words: str, error_message: Any):
    whole = to_omegaconf(given)
    message = error_message(ConfigError, **{key: whole[key] for key in whole})
    assert message.startswith(f"{loc}: cannot be read: ")
    assert words in message


def test_unresolvable_interpolation_is_reported_with_other_errors(collected_errors: Any):
    whole = to_omegaconf({"optimizer": {"name": "adam", "lr": "???"}, "scheduler": {**COSINE, "frequency": 0}})
    errors = collected_errors(whole.optimizer, whole.scheduler)
    assert [loc_text(error.loc) for error in errors] == ["optimizer.lr", "scheduler.frequency"]
