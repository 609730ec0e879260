"""Parameter groups from rules that cascade, and the table that shows them."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optplug
from optplug.config.param_groups import Row, group_table, param_groups, trainable
from optplug.config.param_selection import Selector
from optplug.config.parse import parse
from optplug.errors import ConfigError, ConfigErrors, OptplugError
from optplug.registry import Plugin, Registration, registry
from optplug.registry.specs import OptimizerSpec


def network() -> nn.Module:
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), "head": nn.Linear(3, 1)})


def group(module: nn.Module, *rules: Any, optimizer: str = "adam") -> list[dict[str, Any]]:
    return param_groups(
        module, parse(optimizer, param_groups=list(rules)).param_groups, {"lr": 1e-3, "weight_decay": 0.1}
    )


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
    assert str(caught.value) == (
        "param_groups: two groups would be named 'default': give the rule of that name another one"
    )
    assert caught.value.loc == "param_groups"
    rules = [("*.bias", "a"), ("head.*", "b"), ("body.1.weight", "a + b")]
    with pytest.raises(ConfigError, match=r"two groups would be named 'a \+ b'"):
        group(
            network(),
            *({"match": m, "name": n, k: 1.0} for (m, n), k in zip(rules, ("lr", "eps", "weight_decay"), strict=True)),
        )


def test_a_rule_that_takes_everything_may_be_called_default():
    assert [g["name"] for g in group(network(), {"match": "*", "name": "default", "lr": 1.0})] == ["default"]


def test_frozen_parameters_are_left_out():
    module = network()
    module["body"].requires_grad_(False)
    assert [p.name for p in trainable(module)] == ["head.weight", "head.bias"]
    assert names(module, group(module, {"match": "*.bias", "lr": 1.0})) == {
        "default": ["head.weight"],
        "*.bias": ["head.bias"],
    }


def test_a_shared_parameter_is_in_one_group_by_any_of_its_names():
    module = network()
    module["tied"] = nn.Linear(3, 1)
    module["tied"].weight = module["head"].weight
    by_first = group(module, {"match": "head.weight", "lr": 1.0})
    assert names(module, by_first)["head.weight"] == ["head.weight"]
    by_second = group(module, {"match": "tied.weight", "lr": 1.0})
    assert names(module, by_second)["tied.weight"] == ["head.weight"]
    assert sum(len(g["params"]) for g in by_second) == len(list(module.parameters())) == 7


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError) as caught:
        group(network(), {"match": "head.*"}, {"match": ["head.bias", "head.weigth"], "lr": 1.0})
    assert str(caught.value) == (
        "param_groups[1].match: 'head.weigth' matches no parameter of ModuleDict; its parameters are body.0.weight, "
        "body.0.bias, body.1.weight, body.1.bias, head.weight, head.bias; did you mean 'head.weight', 'head.bias'?"
    )


def test_all_patterns_that_match_nothing_are_refused_at_once():
    with pytest.raises(ConfigErrors) as caught:
        group(network(), {"match": "a"}, {"type": "Linear"}, {"regex": "b$", "name": "x"}, {"type": "Conv2d"})
    assert [error.loc for error in caught.value.errors] == [
        "param_groups[0].match",
        "param_groups[2].regex",
        "param_groups[3].type",
    ]


def test_a_pattern_that_matches_only_what_is_frozen_takes_nothing():
    module = network()
    module["head"].requires_grad_(False)
    made = group(module, {"match": "head.*", "lr": 1.0})
    assert names(module, made) == {"default": ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]}


def test_a_long_list_of_parameters_is_shortened():
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(ConfigError, match=r"5.weight, 5.bias and 8 more$"):
        group(module, {"match": "nothing"})


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match=r"^Flatten has nothing to train: it has no parameters$"):
        trainable(nn.Flatten())
    with pytest.raises(ConfigError, match=r"^Linear has nothing to train: all 2 of its parameters are frozen$"):
        trainable(nn.Linear(1, 1).requires_grad_(False))
    module = network()
    module["head"].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"^ModuleDict has nothing to train: all 2 of those are frozen$"):
        trainable(module, Selector(match=("head.*",)))


# --------------------------------------------------------------------------------------- multipliers


def rates(module: nn.Module, optimizer: Any, *rules: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter by name."""
    made = optplug.configure_optimizers(module, optimizer, param_groups=list(rules))["optimizer"]
    known = {id(p): name for name, p in module.named_parameters()}
    return {known[id(p)]: (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}


def test_a_multiplier_multiplies_the_optimizer_s_rate():
    found = rates(network(), {"name": "adam", "lr": 0.5}, {"match": "head.*", "lr_mult": 4})
    assert (found["head.bias"], found["body.0.bias"]) == ((2.0, 0.0), (0.5, 0.0))


def test_a_multiplier_multiplies_the_default_of_the_optimizer():
    found = rates(network(), "adamw", {"match": "head.*", "lr_mult": 2, "wd_mult": 10})
    assert found["head.weight"] == (0.002, 0.1)
    assert found["body.0.weight"] == (0.001, 0.01)


def test_a_multiplier_multiplies_the_rate_of_a_rule_before_or_after_it():
    multiply, give = {"match": "head.*", "lr_mult": 0.5}, {"match": "*.bias", "lr": 8.0}
    for rules in ((multiply, give), (give, multiply)):
        found = rates(network(), {"name": "sgd", "lr": 1.0}, *rules)
        assert {name: lr for name, (lr, _) in found.items()} == {
            "body.0.weight": 1.0,
            "body.0.bias": 8.0,
            "body.1.weight": 1.0,
            "body.1.bias": 8.0,
            "head.weight": 0.5,
            "head.bias": 4.0,
        }


def test_the_last_multiplier_counts_alone():
    rules = ({"match": "*", "lr_mult": 0.5, "name": "all"}, {"match": "head.*", "lr_mult": 3, "name": "head"})
    found = rates(network(), {"name": "sgd", "lr": 1.0}, *rules)
    assert (found["body.0.bias"][0], found["head.bias"][0]) == (0.5, 3.0)


def test_a_multiplier_of_zero_and_of_one_are_numbers_like_others():
    found = rates(network(), {"name": "adamw", "lr": 1.0}, {"match": "*.bias", "wd_mult": 0, "lr_mult": 1})
    assert (found["head.bias"], found["head.weight"]) == ((1.0, 0.0), (1.0, 0.01))


def test_a_lower_rate_for_the_backbone_and_no_decay_on_biases_combine():
    module = network()
    found = rates(
        module, {"name": "adamw", "lr": 1.0, "weight_decay": 0.5}, {"match": "body.*", "lr_mult": 0.1}, "no_decay"
    )
    assert found == {
        "body.0.weight": (0.1, 0.5),
        "body.0.bias": (0.1, 0.0),
        "body.1.weight": (0.1, 0.0),
        "body.1.bias": (0.1, 0.0),
        "head.weight": (1.0, 0.5),
        "head.bias": (1.0, 0.0),
    }
    made = group(module, {"match": "body.*", "lr_mult": 0.1}, "no_decay", optimizer="adamw")
    assert sorted(names(module, made)) == ["body.*", "body.* + no_decay", "default", "no_decay"]


def test_layers_and_no_decay_combine():
    layers = {"preset": "layer_decay", "decay": 0.5, "layers": ["body.{}.*", "head.*"]}
    found = rates(network(), {"name": "adamw", "lr": 1.0, "weight_decay": 0.5}, layers, "no_decay")
    assert found == {
        "body.0.weight": (0.25, 0.5),
        "body.0.bias": (0.25, 0.0),
        "body.1.weight": (0.5, 0.0),
        "body.1.bias": (0.5, 0.0),
        "head.weight": (1.0, 0.5),
        "head.bias": (1.0, 0.0),
    }


def test_a_rule_after_no_decay_may_bring_decay_back():
    rules = ("no_decay", {"match": "head.bias", "weight_decay": 0.25})
    found = rates(network(), {"name": "adamw", "weight_decay": 0.5}, *rules)
    assert (found["head.bias"][1], found["body.0.bias"][1]) == (0.25, 0.0)


def test_what_the_optimizer_has_not_cannot_be_multiplied():
    with pytest.raises(ConfigError, match=r"^param_groups\[0\]\.wd_mult: rprop has no "):
        optplug.configure_optimizers(network(), "rprop", param_groups=[{"match": "*", "wd_mult": 2}])
    with pytest.raises(ConfigError, match=r"^param_groups\[0\]\.lr_mult: multiplies lr, which this entry gives too"):
        optplug.configure_optimizers(network(), "adam", param_groups=[{"match": "*", "lr_mult": 2, "lr": 1}])


class Guessing(torch.optim.SGD):
    """Somebody else's, which finds its learning rate itself."""

    def __init__(self, params: Any, lr: float | str | None = None, weight_decay: float | None = None) -> None:
        super().__init__(params, lr=0.1)


@pytest.fixture
def guessing(monkeypatch: pytest.MonkeyPatch):
    registry.names("optimizer")
    registration = Registration(OptimizerSpec("guessing", Guessing), Plugin("strangers", "strangers", "1"))
    monkeypatch.setitem(registry._catalogue().registrations["optimizer"], "guessing", [registration])


LAYERED = {"preset": "layer_decay", "decay": 0.5, "layers": ["body.*", "*"]}


@pytest.mark.usefixtures("guessing")
@pytest.mark.parametrize("lr", [None, "auto"])
@pytest.mark.parametrize(
    "rule", [{"match": "*.bias", "lr_mult": 2}, {"match": "*.bias", "lr_mult": 0.5}, LAYERED], ids=str
)
def test_a_rate_that_is_no_number_cannot_be_multiplied(lr: Any, rule: dict[str, Any]):
    with pytest.raises(OptplugError, match=r"^param_groups\[0\]"):
        optplug.configure_optimizers(network(), {"name": "guessing", "lr": lr}, param_groups=[rule])


@pytest.mark.parametrize("multiplier", ["lr_mult", "wd_mult"])
def test_a_multiplier_too_large_for_a_float_is_refused(multiplier: str):
    with pytest.raises(ConfigError, match=rf"^param_groups\[0\]\.{multiplier}: must be "):
        optplug.configure_optimizers(network(), "adam", param_groups=[{"match": "*", multiplier: 10**400}])


def test_a_rule_is_not_to_be_called_like_another_group():
    rules = [{"match": "body.*", "name": "no_decay", "lr": 3.0}, "no_decay"]
    with pytest.raises(ConfigError, match="two groups would be named 'no_decay'"):
        optplug.configure_optimizers(network(), "adam", param_groups=rules)


# ---------------------------------------------------------------------------------- several optimizers


def test_groups_are_made_of_what_an_optimizer_of_several_has():
    module = network()
    given = [
        {"name": "adam", "match": "body.*", "param_groups": [{"match": "*.bias", "lr": 0.5}]},
        {"name": "sgd", "match": "head.*", "param_groups": ["no_decay"], "weight_decay": 0.1},
    ]
    module.automatic_optimization = False
    one, other = (entry["optimizer"] for entry in optplug.configure_optimizers(module, given))
    assert names(module, one.param_groups) == {
        "default": ["body.0.weight", "body.1.weight"],
        "*.bias": ["body.0.bias", "body.1.bias"],
    }
    assert names(module, other.param_groups) == {"default": ["head.weight"], "no_decay": ["head.bias"]}
    combined = optplug.configure_optimizers(module, {"combine": given})["optimizer"]
    assert [len(g["params"]) for g in combined.param_groups] == [2, 2, 1, 1]


def several(module: nn.Module, *entries: Any) -> list[str]:
    """What is wrong with the shares of several optimizers, the same for a list and for one made of several."""
    found = []
    for form, place in ((list(entries), "optimizer"), ({"combine": list(entries)}, "optimizer.combine")):
        with pytest.raises(ConfigError) as caught:
            optplug.configure_optimizers(module, form)
        errors = getattr(caught.value, "errors", (caught.value,))
        found.append([str(error).replace(f"{place}[", "optimizer[") for error in errors])
    assert found[0] == found[1]
    return found[0]


def test_several_optimizers_share_the_parameters_out():
    adam, sgd = {"name": "adam", "match": "body.*"}, {"name": "sgd", "match": "head.*"}
    module = network()
    assert several(module, adam, {**sgd, "match": "head.weight"}) == [
        "optimizer: no optimizer has head.bias: select them too, or freeze them"
    ]
    assert several(module, adam, {**sgd, "match": "*.bias"}) == [
        "optimizer: optimizer[0] and optimizer[1] both have body.0.bias, body.1.bias: a parameter has one optimizer",
        "optimizer: no optimizer has head.weight: select them too, or freeze them",
    ]
    assert several(module, adam, sgd, {"name": "sgd", "match": "haed.*"})[0].startswith(
        "optimizer[2].match: 'haed.*' matches no parameter of ModuleDict; "
    )


def test_a_frozen_parameter_needs_no_optimizer():
    module = network()
    module["head"].bias.requires_grad_(False)
    given = {"combine": [{"name": "adam", "match": "body.*"}, {"name": "sgd", "match": "head.weight"}]}
    made = optplug.configure_optimizers(module, given)["optimizer"]
    assert [len(g["params"]) for g in made.param_groups] == [4, 1]


def test_an_optimizer_whose_parameters_are_all_frozen_is_refused_with_its_place():
    module = network()
    module["head"].requires_grad_(False)
    given = [{"name": "adam", "match": "body.*"}, {"name": "sgd", "match": "head.*"}]
    assert several(module, *given) == ["optimizer[1]: ModuleDict has nothing to train: all 2 of those are frozen"]


# ------------------------------------------------------------------------------------------- the table


def test_the_table_shows_groups_and_what_no_group_has():
    module = network()
    module["body"][1].requires_grad_(False)
    made = optplug.configure_optimizers(
        module, {"name": "adamw", "lr": 0.5}, param_groups=["no_decay", {"match": "body.1.*", "lr": 3.0}]
    )["optimizer"]
    table = group_table(made, module)
    assert list(table) == [
        Row("default", ("body.0.weight", "head.weight"), 9, 0.5, 0.01),
        Row("no_decay", ("body.0.bias", "head.bias"), 4, 0.5, 0.0),
        Row("(frozen)", ("body.1.weight", "body.1.bias"), 6, None, None),
    ]
    assert str(table).splitlines() == [
        "group     parameters  elements   lr  weight_decay",
        "default            2         9  0.5          0.01",
        "no_decay           2         4  0.5             0",
        "(frozen)           2         6    -             -",
    ]
    assert table[0].to_dict() == {
        "group": "default",
        "parameters": ["body.0.weight", "head.weight"],
        "elements": 9,
        "lr": 0.5,
        "weight_decay": 0.01,
    }


def test_the_table_of_any_optimizer_shows_rates_before_schedule_and_other_optimizers_parameters():
    module = network()
    made = torch.optim.SGD(module["head"].parameters(), lr=0.5)
    torch.optim.lr_scheduler.LambdaLR(made, lambda t: 0.1)
    assert made.param_groups[0]["lr"] == pytest.approx(0.05)
    assert list(group_table(made, module)) == [
        Row("0", ("head.weight", "head.bias"), 4, 0.5, 0.0),
        Row("(elsewhere)", ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"), 15, None, None),
    ]
    assert list(group_table(made)) == [Row("0", ("0.0", "0.1"), 4, 0.5, 0.0)]


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


# ------------------------------------------------------------------------------------------ properties

PATTERNS = ["*", "*.bias", "*.weight", "body.*", "head.*", "body.1.*", "body.?.bias", "*[ar]d*", "head.bias"]
NORMS_AND_BIASES = {"body.0.bias", "body.1.weight", "body.1.bias", "head.bias"}
LAYER_RATES = {"body.0": 0.25, "body.1": 0.5, "head": 1.0}
LAYERS = {"preset": "layer_decay", "decay": 0.5, "layers": ["body.{}.*", "head.*"]}
RULES = st.lists(
    st.sampled_from(["no_decay", LAYERS])
    | st.builds(
        lambda select, given, lr, wd: {**select, **given, **lr, **wd},
        st.builds(
            lambda key, patterns: {key: patterns},
            st.just("match"),
            st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3),
        )
        | st.sampled_from([{"type": "Linear"}, {"type": ["LayerNorm"]}, {"regex": "bias$"}])
        | st.just({"match": "body.*", "type": "Linear"}),
        st.sampled_from([{}, {"amsgrad": True}, {"amsgrad": False}]),
        st.sampled_from([{}, {"lr": 0.1}, {"lr": 0.2}, {"lr_mult": 0.5}, {"lr_mult": 1}]),
        st.sampled_from([{}, {"weight_decay": 0.0}, {"weight_decay": 0.1}, {"wd_mult": 2}, {"wd_mult": 0}]),
    ),
    max_size=5,
)
BASES = st.sampled_from([{}, {"lr": 0.3}, {"lr": 0.3, "weight_decay": 0.7}])


def hit(name: str, rule: dict[str, Any]) -> bool:
    """Whether a rule selects a parameter of `network()`, in words of its own."""
    kind = "LayerNorm" if name.startswith("body.1") else "Linear"
    ways = {
        "match": lambda pattern: fnmatch.fnmatchcase(name, pattern),
        "type": lambda pattern: kind == pattern,
        "regex": lambda pattern: name.endswith(pattern.rstrip("$")),
    }
    found = []
    for key, way in ways.items():
        if key in rule:
            patterns = [rule[key]] if isinstance(rule[key], str) else rule[key]
            found.append(any(way(pattern) for pattern in patterns))
    return all(found)


def naive(name: str, base: dict[str, Any], rules: list[Any]) -> dict[str, Any]:
    """The options of one parameter, each rule in its turn."""
    options = {"lr": 1e-3, "weight_decay": 1e-2, "amsgrad": False, **base}
    lr_mult = wd_mult = 1
    for rule in rules:
        if rule == "no_decay":
            options["weight_decay"] = 0.0 if name in NORMS_AND_BIASES else options["weight_decay"]
        elif rule is LAYERS:
            lr_mult = LAYER_RATES[name.rpartition(".")[0]]
        elif hit(name, rule):
            lr_mult, wd_mult = rule.get("lr_mult", lr_mult), rule.get("wd_mult", wd_mult)
            options.update({key: rule[key] for key in options if key in rule})
    options["lr"] *= lr_mult
    options["weight_decay"] *= wd_mult
    return options


@given(RULES, BASES, st.sets(st.sampled_from([name for name, _ in network().named_parameters()])))
@settings(max_examples=300)
def test_every_parameter_has_one_group_and_the_options_that_follow_from_the_rules(
    rules: list[Any], base: dict[str, Any], frozen: set[str]
):
    module = network()
    for name, p in module.named_parameters():
        p.requires_grad_(name not in frozen)
    named = [{**rule, "name": f"rule{i}"} if hit_rule(rule) else rule for i, rule in enumerate(rules)]
    if len(frozen) == len(list(module.parameters())):
        with pytest.raises(ConfigError, match="nothing to train"):
            optplug.configure_optimizers(module, {"name": "adamw", **base}, param_groups=named)
        return
    made = optplug.configure_optimizers(module, {"name": "adamw", **base}, param_groups=named)["optimizer"]
    known = {id(p): name for name, p in module.named_parameters()}
    grouped = [known[id(p)] for g in made.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(set(known.values()) - frozen)
    for g in made.param_groups:
        for p in g["params"]:
            expected = naive(known[id(p)], base, rules)
            assert {key: g[key] for key in expected} == expected
    if rules:
        assert len({g["name"] for g in made.param_groups}) == len(made.param_groups)


def hit_rule(rule: Any) -> bool:
    """Whether it is no preset."""
    return isinstance(rule, dict) and "preset" not in rule


@given(RULES)
def test_groups_differ_in_their_options(rules: list[Any]):
    module = network()
    named = [{**rule, "name": f"rule{i}"} if hit_rule(rule) else rule for i, rule in enumerate(rules)]
    config = parse("adamw", param_groups=named)
    base = {"lr": 1e-3, "weight_decay": 1e-2}
    made = param_groups(module, config.param_groups, base)
    found = [{key: value for key, value in g.items() if key not in ("params", "name")} for g in made]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])
