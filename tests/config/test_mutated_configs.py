"""Random mutations of valid configurations: each fault raises an error at its location, and no value is ignored.

python tests/config/test_mutated_configs.py    # prints the number of tried configurations by kind of fault
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from optplug.config.build import parse_and_check
from optplug.config.json_schema import json_schema
from optplug.errors import ConfigErrors, OptplugError, loc_text
from optplug.lightning.configure import build_from_config
from optplug.registry.specs import lookup_key
from support import first_party, only_first_party

SLOW_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]
MANY_EXAMPLES = settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=SLOW_CHECKS)
CONFIG_COUNTS: Counter[str] = Counter()
"""The number of tried configurations by kind of fault or by outcome."""

ConfigPath = tuple[Any, ...]
"""The keys and indices that lead to a value in a configuration."""


@pytest.fixture(scope="module", autouse=True)
def _names_of_first_party() -> Iterator[None]:
    """A misspelt name must not be that of an optimizer of another package."""
    with only_first_party():
        yield


VALID: list[dict[str, Any]] = [
    {"optimizer": "adam"},
    {"optimizer": {"name": "adam", "lr": 0.001, "betas": [0.9, 0.99], "eps": 1e-8, "amsgrad": True}},
    {
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "args": {"weight_decay": 0.1}},
        "scheduler": {
            "name": "cosine_annealing_lr",
            "T_max": 10,
            "interval": "step",
            "frequency": 2,
            "warmup": {"steps": 3, "start_factor": 0.1},
        },
        "param_groups": [
            "no_decay",
            {"match": "*.bias", "name": "biases", "lr": 0.5},
            {"regex": "weight$", "name": "weights", "lr_mult": 0.5, "wd_mult": 2.0},
            {"type": ["Linear", "*Norm"], "match": "1.*", "dampening": 0.0, "nesterov": False},
        ],
    },
    {
        "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.05, "maximize": False, "engine": "loop"},
        "scheduler": {
            "name": "reduce_lr_on_plateau",
            "patience": 3,
            "factor": 0.5,
            "warmup_steps": 5,
            "monitor": "val_loss",
            "mode": "min",
            "min_lr": 0.0,
            "threshold_mode": "abs",
            "patience_unit": "epochs",
            "on_nonfinite": "raise",
        },
        "param_groups": [
            {"preset": "layer_decay", "decay": 0.75, "layers": ["{}.*"]},
            {"preset": "no_decay", "of": ["norms", "biases"]},
        ],
        "on_resume": "override_hparams",
    },
    {
        "optimizer": [
            {
                "name": "adam",
                "match": "0.*",
                "lr": 0.01,
                "scheduler": {"name": "step_lr", "step_size": 3, "gamma": 0.5},
                "param_groups": [{"match": "0.bias", "eps": 0.1}],
            },
            {
                "name": "rmsprop",
                "match": "1.*",
                "alpha": 0.9,
                "centered": True,
                "scheduler": {
                    "name": "reduce_lr_on_plateau",
                    "monitor": "loss",
                    "patience_unit": "steps",
                    "on_nonfinite": "ignore",
                },
            },
        ]
    },
    {
        "optimizer": {
            "combine": [{"name": "rprop", "match": "0.*", "etas": [0.5, 1.2]}, {"name": "adagrad", "match": "1.*"}]
        },
        "scheduler": {"name": "lambda_lr", "lr_lambda": "0.9 ** epoch"},
    },
    {"optimizer": {"name": "lbfgs", "max_iter": 5, "history_size": 7}, "scheduler": {"warmup": {"steps": 4}}},
    {
        "optimizer": {"name": "asgd", "lambd": 0.1},
        "scheduler": {"name": "multi_step_lr", "milestones": [3, 5], "gamma": 0.1},
    },
]

LENGTH_KEYS = {"T_max", "step_size", "milestones"}

NAMES = (*first_party("optimizer"), *first_party("scheduler"), "no_decay", "layer_decay")


def make_module() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))


class ManualModule(nn.Sequential):
    """Uses manual optimization, as several optimizers require."""

    automatic_optimization = False


def iterate_values(node: Any, path: ConfigPath = ()) -> Iterator[tuple[ConfigPath, Any]]:
    """The path and the value of each node of a configuration, including mappings and lists."""
    yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from iterate_values(child, (*path, key))


def parent(config: Any, path: ConfigPath) -> Any:
    """The mapping or list that contains the value at a path."""
    for key in path[:-1]:
        config = config[key]
    return config


# ---------------------------------------------------------------------------- configurations with one known fault


def key_paths(config: Any) -> list[ConfigPath]:
    """Paths that end in a key of a mapping."""
    return [path for path, _ in iterate_values(config) if path and isinstance(path[-1], str)]


def number_paths(config: Any) -> list[ConfigPath]:
    """Paths of numbers."""
    return [
        path
        for path, value in iterate_values(config)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


@st.composite
def misspelled(draw: Any, word: str) -> str:
    """A word with one letter removed, doubled, replaced or moved."""
    i = draw(st.integers(0, len(word) - 1))
    before, letter, after = word[:i], word[i], word[i + 1 :]
    changed = (before + after, before + letter * 2 + after, before + "q" + after, before + after[::-1] + letter)
    return str(draw(st.sampled_from(changed)))


Fault = tuple[dict[str, Any], ConfigPath, str]
"""A configuration with a fault, the path of the fault, and a word that the message must contain."""


def misspell_key(draw: Any, config: dict[str, Any], paths: list[ConfigPath]) -> Fault:
    path = draw(st.sampled_from(paths))
    container, old = parent(config, path), path[-1]
    new = draw(misspelled(old))
    if new in container or new.lower() == old.lower() or new in ("", "lr", "type", "of"):
        new = old + "_q"
    container[new] = container.pop(old)
    return config, (*path[:-1], new), ""


def misspell_any_key(draw: Any, config: dict[str, Any]) -> Fault:
    return misspell_key(draw, config, key_paths(config))


def misspell_argument(draw: Any, config: dict[str, Any]) -> Fault:
    """Misspell a key whose value does not decide which other keys are allowed."""
    paths = [path for path in key_paths(config) if path[-1] not in STRUCTURAL_KEYS]
    return misspell_key(draw, config, paths) if paths else add_unknown_key(draw, config)


def add_unknown_key(draw: Any, config: dict[str, Any]) -> Fault:
    mappings = [path for path, value in iterate_values(config) if isinstance(value, dict)]
    path = draw(st.sampled_from(mappings))
    parent(config, (*path, ""))["unexpected"] = draw(st.integers() | st.text(max_size=3))
    return config, (*path, "unexpected"), "unexpected"


def misspell_name(draw: Any, config: dict[str, Any]) -> Fault:
    path = draw(
        st.sampled_from([p for p, value in iterate_values(config) if isinstance(value, str) and value in NAMES])
    )
    container = parent(config, path)
    correct = container[path[-1]]
    container[path[-1]] = draw(misspelled(correct).filter(lambda word: lookup_key(word) not in LOOKUP_KEYS))
    return config, path, ""


def misspell_choice(draw: Any, config: dict[str, Any]) -> Fault:
    paths = [p for p in key_paths(config) if p[-1] in CHOICE_KEYS and isinstance(parent(config, p)[p[-1]], str)]
    if not paths:
        return {**config, "on_resume": "kep"}, ("on_resume",), "keep"
    path = draw(st.sampled_from(paths))
    container = parent(config, path)
    correct = container[path[-1]]
    container[path[-1]] = draw(misspelled(correct).filter(lambda word: word != correct))
    return config, path, correct


def change_type(draw: Any, config: dict[str, Any]) -> Fault:
    paths = [p for p in number_paths(config) if p[-1] != "start_factor"]  # start_factor may be None
    if not paths:
        return {"optimizer": draw(st.sampled_from([3, True, [], {}, b"adam"]))}, ("optimizer",), ""
    path = draw(st.sampled_from(paths))
    wrong = draw(st.sampled_from(["fast", "1,5", [], {}, {"a": 1}, True, None, b"x"]))
    parent(config, path)[path[-1]] = wrong
    has_wrong_unit = wrong == {"a": 1} and LENGTH_KEYS & set(path)  # a length may be a mapping with a unit
    return config, (*path, "a") if has_wrong_unit else path, ""


def leave_range(draw: Any, config: dict[str, Any]) -> Fault:
    paths = [p for p in number_paths(config) if p[-1] not in ("step_size", "dampening")]
    if not paths:
        return {**config, "optimizer": {"name": "adam", "lr": -1.0}}, ("optimizer", "lr"), "-1.0"
    path = draw(st.sampled_from(paths))
    parent(config, path)[path[-1]] = draw(st.sampled_from([-1, -0.5, float("nan"), float("inf"), -(10**400)]))
    return config, path, ""


def remove_required_key(draw: Any, config: dict[str, Any]) -> Fault:
    keys = ("name", "T_max", "match", "layers", "decay", "step_size", "milestones")
    required = [p for p in key_paths(config) if p[-1] in keys]
    required = [p for p in required if not (p[-1] == "name" and "match" in parent(config, p) and "param_groups" in p)]
    # In an entry with another selector, match is not required.
    required = [p for p in required if not (p[-1] == "match" and {"regex", "type"} & set(parent(config, p)))]
    required = [p for p in required if not (p[-1] == "name" and {"regex", "type"} & set(parent(config, p)))]
    if not required:
        return {"optimizer": {}}, ("optimizer",), "name"
    path = draw(st.sampled_from(required))
    removed = parent(config, path).pop(path[-1])
    assert removed is not None
    return config, path[:-1], ""


def use_invalid_combination(draw: Any, config: dict[str, Any]) -> Fault:
    combination, path = draw(st.sampled_from(INVALID_COMBINATIONS))
    return copy.deepcopy(combination), path, ""


def change_pattern(draw: Any, config: dict[str, Any]) -> Fault:
    selectors = [p for p in key_paths(config) if p[-1] in ("match", "regex", "type")]
    patterns = [p for p in selectors if isinstance(parent(config, p)[p[-1]], str)]
    if not patterns:
        return {"optimizer": "adam", "param_groups": [{"match": "q*"}]}, ("param_groups", 0, "match"), "q*"
    path = draw(st.sampled_from(patterns))
    parent(config, path)[path[-1]] = draw(st.text("qxz", min_size=2, max_size=5))
    return config, path, ""


FAULTS = {
    "misspelled key": misspell_any_key,
    "unknown key": add_unknown_key,
    "name": misspell_name,
    "choice": misspell_choice,
    "type": change_type,
    "range": leave_range,
    "missing": remove_required_key,
    "combination": use_invalid_combination,
    "pattern": change_pattern,
}
"""Functions that add a fault to a configuration, by kind of fault."""

INDEPENDENT_FAULTS = (misspell_argument, add_unknown_key, misspell_choice, change_type, leave_range)
"""Faults that do not prevent the check of other values."""

STRUCTURAL_KEYS = (
    "optimizer",
    "scheduler",
    "param_groups",
    "combine",
    "name",
    "preset",
    "match",
    "regex",
    "type",
    "warmup",
)
"""Keys whose values decide which other keys are allowed."""


@st.composite
def faulty_configs(draw: Any) -> tuple[str, Fault]:
    """A kind of fault, and a configuration with one such fault."""
    kind = draw(st.sampled_from(list(FAULTS)))
    return kind, FAULTS[kind](draw, copy.deepcopy(draw(st.sampled_from(VALID))))


@st.composite
def configs_with_two_faults(draw: Any) -> tuple[dict[str, Any], ConfigPath, ConfigPath]:
    """A configuration with two faults, and their paths. No fault is inside the value of the other."""
    config = copy.deepcopy(draw(st.sampled_from(VALID)))
    config, first, _ = draw(st.sampled_from(INDEPENDENT_FAULTS))(draw, config)
    config, second, _ = draw(st.sampled_from(INDEPENDENT_FAULTS))(draw, config)
    shorter = min(len(first), len(second))
    assume(first[:shorter] != second[:shorter])
    # Rprop checks the range of `etas` when both values are numbers: it depends on both.
    assume(first[:-1] != second[:-1] or first[-2:-1] != ("etas",))
    assume(first in [path for path, _ in iterate_values(config)])  # the second fault may have renamed the key
    return config, first, second


CHOICE_KEYS = ("interval", "mode", "threshold_mode", "patience_unit", "on_nonfinite", "on_resume")
"""Keys whose value is one of several words."""

LOOKUP_KEYS = {lookup_key(name) for name in (*NAMES, "adadelta")}
INVALID_COMBINATIONS: list[tuple[dict[str, Any], ConfigPath]] = [
    ({"optimizer": {"name": "sgd", "nesterov": True}}, ("optimizer", "nesterov")),
    ({"optimizer": {"name": "adam", "fused": True, "foreach": True}}, ("optimizer", "fused")),
    (
        {"optimizer": "adam", "scheduler": {"name": "step_lr", "step_size": 1, "monitor": "val_loss"}},
        ("scheduler", "monitor"),
    ),
    (
        {"optimizer": "adam", "scheduler": {"name": "step_lr", "step_size": 1, "patience_unit": "epochs"}},
        ("scheduler", "patience_unit"),
    ),
    ({"optimizer": "adam", "scheduler": {"warmup_steps": 1, "on_nonfinite": "bad"}}, ("scheduler", "on_nonfinite")),
    (
        {"optimizer": "adam", "scheduler": {"name": "reduce_lr_on_plateau", "monitor": "lr-Adam"}},
        ("scheduler", "monitor"),
    ),
    ({"optimizer": "adam", "scheduler": "reduce_lr_on_plateau", "patience_unit": "epochs"}, ("patience_unit",)),
    (
        {
            "optimizer": "adam",
            "scheduler": {"name": "step_lr", "step_size": 1, "warmup": {"steps": 1}, "warmup_steps": 1},
        },
        ("scheduler", "warmup_steps"),
    ),
    (
        {"optimizer": "adam", "scheduler": {"name": "reduce_lr_on_plateau", "interval": "step"}},
        ("scheduler", "interval"),
    ),
    ({"optimizer": "adam", "param_groups": [{"match": "*", "lr": 1.0, "lr_mult": 2}]}, ("param_groups", 0, "lr_mult")),
    ({"optimizer": "rprop", "param_groups": [{"match": "*", "wd_mult": 2}]}, ("param_groups", 0, "wd_mult")),
    ({"optimizer": "lbfgs", "param_groups": [{"match": "*", "weight_decay": 2}]}, ("param_groups", 0, "weight_decay")),
    (
        {"optimizer": "adam", "param_groups": [{"match": "a", "name": "x"}, {"match": "b", "name": "x"}]},
        ("param_groups",),
    ),
    ({"optimizer": [{"name": "adam", "match": "a"}], "param_groups": "no_decay"}, ("param_groups",)),
    ({"optimizer": [{"name": "adam", "match": "a"}], "scheduler": {"name": "step_lr", "step_size": 1}}, ("scheduler",)),
    ({"optimizer": [{"name": "adam"}, {"name": "sgd"}]}, ("optimizer", 0)),
    ({"optimizer": "adam", "monitor": "val_loss"}, ("monitor",)),
    ({"param_groups": "no_decay"}, ("param_groups",)),
    ({"optimizer": "adam", "scheduler": {"name": "exponential_lr", "gamma": "auto"}}, ("scheduler", "gamma")),
    ({"optimizer": {"name": "adam", "args": {"lr": 1}, "lr": 1}}, ("optimizer", "args", "lr")),
    ({"optimizer": {"name": "adam", "class_path": "torch.optim.Adam"}}, ("optimizer", "class_path")),
    ({"optimizer": "adam", "scheduler": {"warmup": {"steps": 1, "epochs": 1}}}, ("scheduler", "warmup")),
]


def errors_of(config: dict[str, Any]) -> tuple[OptplugError, ...]:
    """The errors of a configuration when it is parsed, or when it is applied to a module; empty if it is valid."""
    try:
        parsed = parse_and_check(**config)
        build_from_config(ManualModule(*make_module()) if parsed.has_optimizer_list else make_module(), parsed)
    except ConfigErrors as error:
        return error.errors
    except OptplugError as error:
        return (error,)
    return ()


@given(faulty_configs())
@MANY_EXAMPLES
def test_each_fault_raises_an_error_at_its_location(fault: tuple[str, Fault]) -> None:
    kind, (config, path, word) = fault
    before = copy.deepcopy(config)
    errors = errors_of(config)
    CONFIG_COUNTS[kind] += 1
    assert repr(config) == repr(before)
    assert errors
    assert path in [error.loc for error in errors]
    assert all(str(error).startswith(loc_text(error.loc)) for error in errors)
    assert any(word in str(error) for error in errors)


@given(configs_with_two_faults())
@settings(MANY_EXAMPLES, max_examples=200)
def test_two_faults_are_both_reported(faults: tuple[dict[str, Any], ConfigPath, ConfigPath]) -> None:
    config, first, second = faults
    CONFIG_COUNTS["two faults"] += 1
    locs = [error.loc for error in errors_of(config)]
    assert first in locs
    assert second in locs


# ------------------------------------------------------------------------------------------------ random changes

WORDS = [
    "name",
    "args",
    "lr",
    "mode",
    "monitor",
    "patience_unit",
    "on_nonfinite",
    "warmup",
    "steps",
    "match",
    "regex",
    "type",
    "params",
    "engine",
    "class_path",
    "preset",
    "scheduler",
    "param_groups",
    "combine",
    "lr_mult",
    "interval",
    "T_max",
    "weight_decay",
]
"""Keys that mutations add or rename to."""

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0, 1, 0.5])
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(
        ["1e-3", "adam", "step", "min", "*", "torch.optim.SGD", "a:b", "auto", "module.lr", "no_decay", "(", "{}"]
    )
    | st.sampled_from(["epochs", "ignore", "lr-Adam"])
    | st.binary(max_size=2)
    | st.complex_numbers()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.integers(), inner, max_size=2)
    ),
)


@st.composite
def mutated_configs(draw: Any) -> dict[str, Any]:
    """A valid configuration in which one to three values are removed, renamed, replaced or added."""
    config: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        paths = [path for path, _ in iterate_values(config) if path]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        container, value = parent(config, path), draw(VALUES)
        action = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if isinstance(container, dict) and action != "replace":
            old = container.pop(path[-1]) if action != "add" else value
            if action != "remove":
                words = st.sampled_from(WORDS) | st.text(max_size=3)
                container[draw(words if container is config else words | st.integers())] = old
        else:
            container[path[-1]] = value
    return config


SCHEMA = jsonschema.Draft202012Validator(json_schema())


@pytest.mark.slow
@given(mutated_configs())
@MANY_EXAMPLES
@pytest.mark.filterwarnings("ignore:verbose does nothing:DeprecationWarning")
def test_mutated_config_raises_an_optplug_error_or_is_kept_completely(config: dict[str, Any]) -> None:
    errors = errors_of(config)
    CONFIG_COUNTS["random: invalid" if errors else "random: valid"] += 1
    if errors:
        return
    saved = parse_and_check(**config).to_dict()
    kept = " ".join(repr(value) for _, value in iterate_values(saved))
    kept += " ".join(str(path[-1]) for path, _ in iterate_values(saved) if path)
    for path, value in iterate_values(config):
        if isinstance(value, (dict, list, tuple)) or value is None or (path and path[-1] in ("interval", "frequency")):
            continue
        if path[-2:] == ("warmup", "start_factor") or path[-1] in (
            "warmup_steps",
            "steps",
            "epochs",
            "ratio",
            "preset",
        ):
            continue  # a warmup of length zero is parsed as None, whatever its other keys are
        assert str(value) in kept, (path, value, saved)
    assert parse_and_check(**saved) == parse_and_check(**config)


@pytest.mark.parametrize("config", VALID, ids=str)
def test_configs_before_mutation_are_valid(config: dict[str, Any]) -> None:
    assert errors_of(config) == ()
    assert list(SCHEMA.iter_errors(config)) == []


@pytest.mark.parametrize(("config", "path"), INVALID_COMBINATIONS, ids=str)
def test_invalid_combination_raises_an_error_at_its_location(config: dict[str, Any], path: ConfigPath) -> None:
    assert [error.loc for error in errors_of(config)][:1] == [path]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with only_first_party():
        test_each_fault_raises_an_error_at_its_location()
        test_two_faults_are_both_reported()
        test_mutated_config_raises_an_optplug_error_or_is_kept_completely()
    for kind, count in sorted(CONFIG_COUNTS.items()):
        print(f"{kind:24}{count:6}")
