"""Parameter groups from globs over parameter names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import optplug
from optplug.config import parse
from optplug.errors import ConfigError
from optplug.groups import param_groups, trainable


def network() -> nn.Module:
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), "head": nn.Linear(3, 1)})


def group(module: nn.Module, *rules: dict[str, Any], optimizer: str = "adam") -> list[dict[str, Any]]:
    return param_groups(module, parse(optimizer, param_groups=list(rules)).param_groups)


def names(module: nn.Module, made: list[dict[str, Any]]) -> dict[str, list[str]]:
    """By group name, the names of its parameters."""
    known = {id(p): name for name, p in module.named_parameters()}
    return {g["name"]: [known[id(p)] for p in g["params"]] for g in made}


def options(made: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {g["name"]: {k: v for k, v in g.items() if k not in ("params", "name")} for g in made}


def test_without_rules_there_is_one_nameless_group():
    module = network()
    (only,) = param_groups(module, ())
    assert list(only) == ["params"]
    assert [id(p) for p in only["params"]] == [id(p) for p in module.parameters()]


def test_a_rule_takes_what_it_matches_and_leaves_the_rest():
    module = network()
    made = group(module, {"match": "*.bias", "weight_decay": 0.0})
    assert names(module, made) == {
        "default": ["body.0.weight", "body.1.weight", "head.weight"],
        "*.bias": ["body.0.bias", "body.1.bias", "head.bias"],
    }
    assert options(made) == {"default": {}, "*.bias": {"weight_decay": 0.0}}


def test_rules_cascade():
    module = network()
    made = group(module, {"match": "*.bias", "weight_decay": 0.0}, {"match": "head.*", "name": "head", "lr": 0.1})
    assert names(module, made) == {
        "default": ["body.0.weight", "body.1.weight"],
        "*.bias": ["body.0.bias", "body.1.bias"],
        "head": ["head.weight"],
        "*.bias + head": ["head.bias"],
    }
    assert options(made)["*.bias + head"] == {"weight_decay": 0.0, "lr": 0.1}


def test_a_later_rule_wins():
    module = network()
    made = group(module, {"match": "*", "lr": 0.1, "eps": 1.0}, {"match": "head.*", "lr": 0.2})
    assert options(made) == {"*": {"lr": 0.1, "eps": 1.0}, "* + head.*": {"lr": 0.2, "eps": 1.0}}
    everything_twice = group(module, {"match": "head.*", "lr": 0.2}, {"match": "*", "name": "all", "lr": 0.1})
    assert [g["lr"] for g in everything_twice] == [0.1]


def test_equal_options_make_one_group():
    module = network()
    rules = [{"match": "*.bias", "weight_decay": 0}, {"match": "body.1.*", "name": "norm", "weight_decay": 0.0}]
    made = group(module, *rules)
    assert names(module, made) == {
        "default": ["body.0.weight", "head.weight"],
        "*.bias": ["body.0.bias", "body.1.weight", "body.1.bias", "head.bias"],
    }


def test_several_globs_make_one_group():
    module = network()
    made = group(module, {"match": ["*.bias", "body.1.*"], "name": "no_decay", "weight_decay": 0.0})
    assert len(names(module, made)["no_decay"]) == 4


def test_a_rule_without_options_changes_nothing():
    assert [g["name"] for g in group(network(), {"match": "*.bias"})] == ["default"]


def test_two_groups_of_one_name_are_refused():
    with pytest.raises(ConfigError) as caught:
        group(network(), {"match": "*.bias", "name": "default", "lr": 1.0})
    assert str(caught.value) == "param_groups make two groups named 'default': rename the rule of that name"
    rules = [("*.bias", "a"), ("head.*", "b"), ("body.1.weight", "a + b")]
    with pytest.raises(ConfigError, match=r"two groups named 'a \+ b'"):
        group(
            network(),
            *({"match": m, "name": n, k: 1.0} for (m, n), k in zip(rules, ("lr", "eps", "weight_decay"), strict=True)),
        )


def test_a_rule_that_takes_everything_may_be_called_default():
    assert [g["name"] for g in group(network(), {"match": "*", "name": "default", "lr": 1.0})] == ["default"]


def test_frozen_parameters_are_left_out():
    module = network()
    module["body"].requires_grad_(False)
    assert [name for name, _ in trainable(module)] == ["head.weight", "head.bias"]
    assert names(module, group(module, {"match": "*.bias", "lr": 1.0})) == {
        "default": ["head.weight"],
        "*.bias": ["head.bias"],
    }


def test_a_shared_parameter_is_in_one_group():
    module = network()
    module["tied"] = nn.Linear(3, 1)
    module["tied"].weight = module["head"].weight
    made = group(module, {"match": "head.*", "lr": 1.0})
    assert [name for group in names(module, made).values() for name in group].count("head.weight") == 1
    with pytest.raises(ConfigError, match=r"'tied.weight' matches no trainable parameter"):
        group(module, {"match": "tied.weight", "lr": 1.0})


def test_a_glob_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError) as caught:
        group(network(), {"match": "head.*"}, {"match": ["head.bias", "head.weigth"], "lr": 1.0})
    assert str(caught.value) == (
        "param_groups[1]: 'head.weigth' matches no trainable parameter of ModuleDict; did you mean 'head.weight', "
        "'head.bias'? They are body.0.weight, body.0.bias, body.1.weight, body.1.bias, head.weight, head.bias."
    )


def test_a_glob_that_matches_only_what_is_frozen_is_refused():
    module = network()
    module["head"].requires_grad_(False)
    with pytest.raises(
        ConfigError, match=r"^param_groups\[0\]: 'head.\*' matches no trainable parameter of ModuleDict"
    ):
        group(module, {"match": "head.*", "lr": 1.0})


def test_a_long_list_of_parameters_is_shortened():
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(ConfigError, match=r"5.weight, 5.bias and 8 more\.$"):
        group(module, {"match": "nothing"})


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match=r"^Flatten has nothing to train: it has no parameters$"):
        trainable(nn.Flatten())
    with pytest.raises(ConfigError, match=r"^Linear has nothing to train: all 2 of its parameters are frozen$"):
        trainable(nn.Linear(1, 1).requires_grad_(False))


def test_globs_distinguish_case():
    with pytest.raises(ConfigError, match="matches no trainable parameter"):
        group(network(), {"match": "Head.*", "lr": 1.0})


@pytest.mark.parametrize("prefix", ["_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module."])
def test_globs_do_not_see_wrappers(prefix: str):
    module = nn.Module()
    module.add_module(prefix[:-1], nn.Sequential(nn.Linear(1, 1)))
    module.get_submodule(prefix[:-1]).add_module("inner", nn.Module())
    module.get_submodule(prefix + "inner").add_module(prefix[:-1], nn.Linear(1, 1))
    assert [name for name, _ in trainable(module)] == ["0.weight", "0.bias", "inner.weight", "inner.bias"]
    assert [g["name"] for g in group(module, {"match": "inner.*", "lr": 1.0})] == ["default", "inner.*"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")  # torch's own import
def test_a_compiled_module_has_its_bare_names():
    module = torch.compile(network())
    assert [name for name, _ in trainable(module)] == [name for name, _ in network().named_parameters()]


def test_the_optimizer_has_the_groups():
    module = network()
    rules = [{"match": "*.bias", "name": "biases", "weight_decay": 0.0, "lr": 0.5}]
    optimizer = optplug.configure_optimizers(module, {"name": "adam", "weight_decay": 0.1}, param_groups=rules)[
        "optimizer"
    ]
    assert [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        ("default", 1e-3, 0.1, 3),
        ("biases", 0.5, 0.0, 3),
    ]


PATTERNS = ["*", "*.bias", "*.weight", "body.*", "head.*", "body.1.*", "body.?.bias", "*[ar]d*", "head.bias"]
RULES = st.lists(
    st.fixed_dictionaries(
        {"match": st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3)},
        optional={
            "lr": st.sampled_from([0.1, 0.2]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "amsgrad": st.booleans(),
        },
    ),
    max_size=5,
)


@given(RULES, st.sets(st.sampled_from([name for name, _ in network().named_parameters()])))
def test_every_trainable_parameter_is_in_exactly_one_group(rules: list[dict[str, Any]], frozen: set[str]):
    module = network()
    for name, p in module.named_parameters():
        p.requires_grad_(name not in frozen)
    rules = [{**rule, "name": f"rule{i}"} for i, rule in enumerate(rules)]
    try:
        made = group(module, *rules)
    except ConfigError:  # everything is frozen, or all that a glob matches
        return
    grouped = [id(p) for g in made for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    if rules:
        assert len({g["name"] for g in made}) == len(made)
        found = list(options(made).values())
        assert all(one != other for i, one in enumerate(found) for other in found[:i])
