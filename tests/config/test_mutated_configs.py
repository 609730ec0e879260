"""Configurations mutated at random from valid ones: what is wrong is refused, at its place, and nothing is dropped.

python tests/test_mutations.py    # how many were tried, by the kind of fault
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import optplug
from optplug.config.build import checked
from optplug.config.error_collector import join_loc
from optplug.config.json_schema import json_schema
from optplug.errors import ConfigErrors, OptplugError
from optplug.lightning.configure import configure

UNHURRIED = [HealthCheck.too_slow, HealthCheck.filter_too_much]
TRIES = settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=UNHURRIED)
TRIED: Counter[str] = Counter()

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

NAMES = (*optplug.list_optimizers(), *optplug.list_schedulers(), "no_decay", "layer_decay")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))


class Manual(nn.Sequential):
    """As `network`, stepping several optimizers itself."""

    automatic_optimization = False


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The path and value of everything in a configuration, containers too."""
    yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


def place(path: tuple[Any, ...]) -> str:
    """A path as errors spell it."""
    text = ""
    for key in path:
        text = join_loc(text, f"[{key}]" if isinstance(key, int) else str(key))
    return text


def parent(config: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        config = config[key]
    return config


# ------------------------------------------------------------------------------- faults by construction


def keyed(config: Any, *without: str) -> list[tuple[Any, ...]]:
    """Paths that end in a key of a mapping."""
    return [path for path, _ in leaves(config) if path and isinstance(path[-1], str) and path[-1] not in without]


def numbers(config: Any) -> list[tuple[Any, ...]]:
    return [path for path, value in leaves(config) if isinstance(value, (int, float)) and not isinstance(value, bool)]


@st.composite
def misspelt(draw: Any, word: str) -> str:
    """A word with one letter lost, doubled, swapped or replaced."""
    i = draw(st.integers(0, len(word) - 1))
    before, letter, after = word[:i], word[i], word[i + 1 :]
    changed = (before + after, before + letter * 2 + after, before + "q" + after, before + after[::-1] + letter)
    return str(draw(st.sampled_from(changed)))


@st.composite
def faulty(draw: Any) -> tuple[str, dict[str, Any], tuple[Any, ...], str]:
    """A kind of fault, a configuration with one, its path, and a word that a message about it must have."""
    config: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(VALID)))
    kind = draw(
        st.sampled_from(["key", "unknown key", "name", "word", "type", "range", "lost", "combination", "pattern"])
    )
    if kind == "key":
        path = draw(st.sampled_from(keyed(config)))
        where, old = parent(config, path), path[-1]
        new = draw(misspelt(old))
        if new in where or new.lower() == old.lower() or new in ("", "lr", "type", "of"):
            new = old + "_q"
        where[new] = where.pop(old)
        return kind, config, (*path[:-1], new), ""
    if kind == "unknown key":
        mappings = [path for path, value in leaves(config) if isinstance(value, dict)]
        path = draw(st.sampled_from(mappings))
        parent(config, (*path, ""))["surprise"] = draw(st.integers() | st.text(max_size=3))
        return kind, config, (*path, "surprise"), "surprise"
    if kind == "name":
        named = [p for p, value in leaves(config) if isinstance(value, str) and value in NAMES]
        path = draw(st.sampled_from(named))
        where = parent(config, path)
        right = where[path[-1]]
        where[path[-1]] = draw(misspelt(right).filter(lambda w: optplug.registry.specs.lookup_key(w) not in LOOKED_UP))
        return kind, config, path, ""
    if kind == "word":
        many = [p for p in keyed(config) if p[-1] in CHOSEN]
        if not many:
            return kind, {"optimizer": "adam", "on_resume": "kep"}, ("on_resume",), "keep"
        path = draw(st.sampled_from(many))
        where = parent(config, path)
        right = where[path[-1]]
        where[path[-1]] = draw(misspelt(right).filter(lambda w: w != right))
        return kind, config, path, right
    if kind == "type":
        many = [p for p in numbers(config) if p[-1] != "start_factor"]  # which may be None
        path = draw(st.sampled_from(many)) if many else ("optimizer",)
        wrong = st.sampled_from(["fast", "1,5", [], {}, {"a": 1}, True, None, b"x"])
        parent(config, path)[path[-1]] = draw(wrong) if many else draw(st.sampled_from([3, True, [], {}, [3], b"adam"]))
        return kind, config, path, ""
    if kind == "range":
        many = [p for p in numbers(config) if p[-1] not in ("step_size", "dampening")]
        path = draw(st.sampled_from(many)) if many else ("optimizer",)
        if not many:
            config["optimizer"] = {"name": "adam", "lr": -1.0}
            return kind, config, ("optimizer", "lr"), "-1.0"
        bad = draw(st.sampled_from([-1, -0.5, float("nan"), float("inf"), -(10**400)]))
        parent(config, path)[path[-1]] = bad
        return kind, config, path, ""
    if kind == "lost":
        needed = [
            p
            for p in keyed(config)
            if p[-1] in ("name", "T_max", "match", "layers", "decay", "step_size", "milestones")
        ]
        needed = [p for p in needed if not (p[-1] == "name" and "match" in parent(config, p) and "param_groups" in p)]
        # In an entry with another way to say which parameters, match is not needed.
        needed = [p for p in needed if not (p[-1] == "match" and {"regex", "type"} & set(parent(config, p)))]
        needed = [p for p in needed if not (p[-1] == "name" and {"regex", "type"} & set(parent(config, p)))]
        if not needed:
            return kind, {"optimizer": {}}, ("optimizer",), "name"
        path = draw(st.sampled_from(needed))
        lost = parent(config, path).pop(path[-1])
        assert lost is not None
        return kind, config, path[:-1], ""
    if kind == "combination":
        fault = draw(st.sampled_from(COMBINATIONS))
        return kind, copy.deepcopy(fault[0]), fault[1], ""
    patterns = [
        p for p in keyed(config) if p[-1] in ("match", "regex", "type") and isinstance(parent(config, p)[p[-1]], str)
    ]
    if not patterns:
        return kind, {"optimizer": "adam", "param_groups": [{"match": "q*"}]}, ("param_groups", 0, "match"), "q*"
    path = draw(st.sampled_from(patterns))
    parent(config, path)[path[-1]] = draw(st.text("qxz", min_size=2, max_size=5))
    return kind, config, path, ""


CHOSEN = ("interval", "mode", "threshold_mode", "patience_unit", "on_nonfinite", "on_resume")
"""Keys of which the value is one of some words."""

LOOKED_UP = {optplug.registry.specs.lookup_key(name) for name in (*NAMES, "adadelta")}
COMBINATIONS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
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


def refused(config: dict[str, Any]) -> tuple[OptplugError, ...]:
    """The errors of a configuration, at construction or on a module; none where it is accepted."""
    try:
        parsed = checked(**config)
        configure(Manual(*network()) if parsed.several else network(), parsed)
    except ConfigErrors as error:
        return error.errors
    except OptplugError as error:
        return (error,)
    return ()


@given(faulty())
@TRIES
def test_whatever_is_wrong_is_refused_at_its_place(fault: tuple[str, dict[str, Any], tuple[Any, ...], str]) -> None:
    kind, config, path, word = fault
    before = copy.deepcopy(config)
    errors = refused(config)
    TRIED[kind] += 1
    assert repr(config) == repr(before)
    assert errors
    says = [error.loc or "optimizer" for error in errors]
    where = place(path)
    assert any(near(said, where) for said in says), (where, says)
    assert all(str(error).startswith(error.loc) for error in errors)
    assert any(word in str(error) for error in errors)


def near(said: str, where: str) -> bool:
    """Whether an error is at the place of a fault, around it or inside it; `args` is no place of its own."""
    said, where = said.replace(".args", ""), where.replace(".args", "").removesuffix(".name")
    return said.startswith(where) or where.startswith(said)


# ------------------------------------------------------------------------------------- any change at all

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
]
WORDS += ["preset", "scheduler", "param_groups", "combine", "lr_mult", "interval", "T_max", "weight_decay"]
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
def mutated(draw: Any) -> dict[str, Any]:
    """A valid configuration with one to three values dropped, renamed, replaced or added."""
    config: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        paths = [path for path, _ in leaves(config) if path]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        where, value = parent(config, path), draw(VALUES)
        what = draw(st.sampled_from(["replace", "drop", "rename", "add"]))
        if isinstance(where, dict) and what != "replace":
            old = where.pop(path[-1]) if what != "add" else value
            if what != "drop":
                words = st.sampled_from(WORDS) | st.text(max_size=3)
                where[draw(words if where is config else words | st.integers())] = old
        else:
            where[path[-1]] = value
    return config


SCHEMA = jsonschema.Draft202012Validator(json_schema())


@given(mutated())
@TRIES
@pytest.mark.filterwarnings("ignore:verbose does nothing:DeprecationWarning")
def test_a_changed_configuration_is_refused_by_an_error_of_ours_or_kept_whole(config: dict[str, Any]) -> None:
    errors = refused(config)
    TRIED["random: refused" if errors else "random: still valid"] += 1
    if errors:
        return
    said = checked(**config).to_dict()
    kept = " ".join(repr(value) for _, value in leaves(said)) + " ".join(str(p[-1]) for p, _ in leaves(said) if p)
    for path, value in leaves(config):
        if isinstance(value, (dict, list, tuple)) or value is None or (path and path[-1] in ("interval", "frequency")):
            continue
        if path[-2:] == ("warmup", "start_factor") or path[-1] in (
            "warmup_steps",
            "steps",
            "epochs",
            "ratio",
            "preset",
        ):
            continue  # a warmup of no length is none, whatever else it says
        assert str(value) in kept, (path, value, said)
    assert checked(**said) == checked(**config)


@pytest.mark.parametrize("config", VALID, ids=str)
def test_the_configurations_that_are_mutated_are_valid(config: dict[str, Any]) -> None:
    assert refused(config) == ()
    assert list(SCHEMA.iter_errors(config)) == []


@pytest.mark.parametrize(("config", "path"), COMBINATIONS, ids=str)
def test_impossible_combinations_are_refused_at_their_place(config: dict[str, Any], path: tuple[Any, ...]) -> None:
    assert [error.loc for error in refused(config)][:1] == [place(path)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    test_whatever_is_wrong_is_refused_at_its_place()
    test_a_changed_configuration_is_refused_by_an_error_of_ours_or_kept_whole()
    for kind, count in sorted(TRIED.items()):
        print(f"{kind:24}{count:6}")
