"""`Config.to_dict`: the plain form of a configuration can be stored, and parsing it gives an equal configuration."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from optplug.config.build import parse_and_check
from optplug.config.form import ON_NONFINITE, PATIENCE_UNITS
from optplug.config.model import Config
from optplug.config.parse import parse

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}
GENERATOR = {"name": "adam", "match": "generator.*", "lr": 0.1, "scheduler": {"name": "step_lr", "step_size": 3}}
CRITIC = {"name": "sgd", "type": ["Conv2d", "Linear"], "lr": 0.2, "param_groups": ["no_decay"]}


def is_plain_data(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain_data(child) for key, child in value.items())
    if isinstance(value, list):
        return all(is_plain_data(child) for child in value)
    return value is None or type(value) in (bool, int, float, str)


def assert_round_trip(config: Config) -> None:
    """Check that parsing the plain form, YAML and a checkpoint preserve the configuration."""
    saved = config.to_dict()
    assert is_plain_data(saved)
    assert parse(**saved) == config
    assert yaml.safe_load(yaml.safe_dump(saved)) == saved
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == saved


PATTERNS = st.sampled_from(["*", "*.bias", "head.*", "a b"])
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "match": PATTERNS | st.lists(PATTERNS, min_size=1, max_size=2),
        "regex": st.sampled_from(["bias$", ["a", "b+"]]),
        "type": st.sampled_from(["Linear", ["*Norm*", "Embedding"]]),
    },
).filter(bool)
NUMBERS = st.floats(0, 1e3) | st.integers(0, 5) | st.just("module.lr")
OPTIONS = st.fixed_dictionaries(
    {},
    optional={"weight_decay": NUMBERS, "betas": st.just([0.8, 0.9]), "eps": st.just(1e-6), "maximize": st.booleans()},
)
OPTIMIZERS = st.builds(
    lambda options, lr, is_nested, is_omitted: {
        "name": "Adam",
        **({} if is_omitted else {"args": {"lr": lr}} if is_nested else {"lr": lr}),
        **options,
    },
    OPTIONS,
    NUMBERS,
    st.booleans(),
    st.booleans(),
)
GROUP_RULES = st.builds(
    lambda select, options, lr: {**select, **options, **lr},
    SELECTORS,
    OPTIONS,
    st.sampled_from([{}, {"lr_mult": 0.1}, {"lr": 0.1}, {"lr_mult": 2}]),
)
PRESETS = st.sampled_from(
    [
        "no_decay",
        {"preset": "no_decay", "of": "norms"},
        {"preset": "no_decay", "of": ["biases", "embeddings"]},
        {"preset": "layer_decay", "decay": 1, "layers": ["blocks.{}.*", "*"]},
    ]
)
GROUPS = (
    st.none()
    | st.just("no_decay")
    | st.lists(GROUP_RULES | PRESETS, max_size=3).map(
        lambda rules: [
            {**r, "name": f"rule {i}"} if "preset" not in r and r != "no_decay" else r for i, r in enumerate(rules)
        ]
    )
)
WARMUPS = st.sampled_from(
    [
        {},
        {"warmup_steps": 0},
        {"warmup_steps": 7},
        {"warmup": {"steps": 3, "start_factor": 0.5}},
        {"warmup": {"epochs": 0.5}},
        {"warmup": {"ratio": 0.1}},
    ]
)
INTERVALS = st.sampled_from([{}, {"interval": "step"}, {"interval": "epoch", "frequency": 3}])
METRIC_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "patience_unit": st.sampled_from([None, *PATIENCE_UNITS]),
        "on_nonfinite": st.sampled_from([None, *ON_NONFINITE]),
    },
)
SCHEDULERS = st.one_of(
    st.none(),
    st.just("reduce_lr_on_plateau"),
    st.builds(lambda w, c: {**COSINE, "eta_min": 0.01, **w, **c}, WARMUPS, INTERVALS),
    st.builds(lambda w, c: {"name": "cosine_annealing_lr", "args": {"T_max": "auto"}, **w, **c}, WARMUPS, INTERVALS),
    st.builds(
        lambda w, m, h: {**PLATEAU, **w, **m, **h},
        WARMUPS,
        st.sampled_from([{}, {"monitor": "x"}, {"args": {"mode": "max"}}]),
        METRIC_OPTIONS,
    ),
    st.sampled_from([{"warmup_steps": 3}, {"warmup": {"ratio": 0.5, "start_factor": 1}}]),
)
ENTRIES = st.builds(
    lambda optimizer, select, groups: {**optimizer, **select, **({} if groups is None else {"param_groups": groups})},
    OPTIMIZERS,
    SELECTORS,
    GROUPS,
)
CONFIGS = st.one_of(
    st.fixed_dictionaries(
        {"optimizer": OPTIMIZERS | st.just("adam")}, optional={"scheduler": SCHEDULERS, "param_groups": GROUPS}
    ),
    st.fixed_dictionaries(
        {"optimizer": st.lists(ENTRIES, min_size=1, max_size=3).map(lambda entries: {"combine": entries})},
        optional={"scheduler": SCHEDULERS},
    ),
    st.fixed_dictionaries(
        {
            "optimizer": st.lists(
                st.builds(lambda entry, s: {**entry, "scheduler": s} if s else entry, ENTRIES, SCHEDULERS),
                min_size=1,
                max_size=3,
            )
        }
    ),
    st.fixed_dictionaries({"scheduler": SCHEDULERS.filter(bool)}),
)
ON_RESUME = st.sampled_from([{}, {}, {"on_resume": "keep"}, {"on_resume": "reset_all"}])


@given(CONFIGS, ON_RESUME)
@settings(max_examples=300)
def test_random_config_round_trips(given: dict[str, Any], on_resume: dict[str, str]):
    config = parse(**given, **on_resume)
    assert config.on_resume == on_resume.get("on_resume", "keep")
    assert_round_trip(config)
    assert parse_and_check(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": {"combine": [{"name": "adam", "match": "head.*"}]}},
        {"optimizer": {"combine": [{"name": "adam", "param_groups": ["no_decay"]}]}},
        {"optimizer": [{"name": "adam"}]},
        {"optimizer": {"name": "Optplug-Classic:ADAM", "betas": [0.8, 0.9]}},
        {"optimizer": "adam", "scheduler": {"name": "lambda_lr", "lr_lambda": "0.9 ** epoch"}},
        {"optimizer": "adam", "scheduler": {"warmup_steps": 0}},
        {"scheduler": {**COSINE, "interval": "step", "frequency": 3, "warmup": {"ratio": 0.1, "start_factor": 0.5}}},
        {"scheduler": {**PLATEAU, "monitor": "x", "mode": "max", "warmup_steps": 3}},
        {"scheduler": {**PLATEAU, "patience_unit": "steps", "on_nonfinite": "ignore"}},
        {"scheduler": {"warmup": {"epochs": 2, "start_factor": 1}}, "on_resume": "reset_all"},
        {"optimizer": [GENERATOR, CRITIC], "on_resume": "reset_all"},
        {"optimizer": {"combine": [CRITIC, {"name": "adam", "regex": "a"}]}, "scheduler": COSINE},
    ],
    ids=str,
)
def test_unusual_config_round_trips(given: dict[str, Any]):
    assert_round_trip(parse(**given))


@pytest.mark.usefixtures("third_party_classes")
@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "adam", "scheduler": {"name": "metric_scheduler", "args": {"interval": 7}}},
        {"optimizer": {"name": "sgd_with_key_names", "args": {"type": 5, "match": 6}}},
        {"optimizer": [{"name": "sgd_with_key_names", "type": "Linear", "args": {"match": 6}}]},
        {"optimizer": [{"name": "sgd_with_key_names", "type": "Linear", "args": {"type": 5, "match": 6}}]},
    ],
    ids=str,
)
def test_arguments_named_like_reserved_keys_round_trip(given: dict[str, Any]):
    config = parse(**given)
    choice = given.get("scheduler", given["optimizer"])
    arguments = (choice[0] if isinstance(choice, list) else choice)["args"]
    setup = config.setups[0]
    found = setup.entries[0].optimizer.hyperparameters if setup.scheduler is None else setup.scheduler.arguments
    assert found == arguments
    assert_round_trip(config)


def test_unserializable_values_are_converted():
    config = parse(
        {"name": "adam", "lr": torch.tensor(0.5), "betas": (0.8, 0.9), "state_dtype": torch.bfloat16},
        {"name": "lambda_lr", "lr_lambda": math.sqrt},
    )
    saved = config.to_dict()
    assert is_plain_data(saved)
    assert saved["optimizer"] == {"name": "adam", "lr": 0.5, "betas": [0.8, 0.9], "state_dtype": "bfloat16"}
    assert saved["scheduler"]["lr_lambda"] == "sqrt"
    assert parse(optimizer=saved["optimizer"]).to_dict()["optimizer"] == saved["optimizer"]


def test_plain_form_is_independent_of_the_config():
    config = parse_and_check({"name": "adam", "betas": [0.8, 0.9]}, param_groups=[{"match": "a", "betas": [0.1, 0.2]}])
    before = copy.deepcopy(config)
    saved = config.to_dict()
    saved["optimizer"]["betas"].append(1)
    saved["param_groups"][0]["match"].append("b")
    saved["param_groups"][0]["betas"].append(1)
    assert config == before
