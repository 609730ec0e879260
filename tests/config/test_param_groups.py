"""Parameter groups: cascading rules, multipliers, several optimizers, and the table of groups."""

from __future__ import annotations

import copy
import fnmatch
import pickle
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import optplug
from optplug.config.build import build_optimizer, check_parameter_partition, frozen_to_hold, parse_and_check
from optplug.config.param_groups import GroupTableRow, build_param_groups, group_table, trainable_parameters
from optplug.config.param_selection import Selector, module_parameters
from optplug.config.parse import parse
from optplug.errors import ConfigError, ConfigErrors, OptplugError, loc_text
from optplug.registry import Plugin, Registration, registry
from optplug.registry.specs import OptimizerSpec


def network() -> nn.Module:
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), "head": nn.Linear(3, 1)})


def make_groups(module: nn.Module, *rules: Any, optimizer: str = "adam") -> list[dict[str, Any]]:
    """The parameter groups, frozen parameters included."""
    config, names = parse(optimizer, param_groups=list(rules)), [p.name for p in module_parameters(module)]
    return build_param_groups(module, config.param_groups, {"lr": 1e-3, "weight_decay": 0.1}, hold_frozen=names)


def built(module: nn.Module, optimizer: Any, **options: Any) -> list[torch.optim.Optimizer]:
    """The optimizers of a configuration, with the frozen parameters that they hold in a trainer."""
    config = parse_and_check(optimizer, **options)
    check_parameter_partition(module, config)
    hold_frozen = frozen_to_hold(module, config)
    return [build_optimizer(module, setup, hold_frozen=hold_frozen) for setup in config.setups]


def parameters_by_group(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The names of the parameters of each group, by the name of the group."""
    names = {id(p): name for name, p in module.named_parameters()}
    return {g["name"]: [names[id(p)] for p in g["params"]] for g in groups}


def options_by_group(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {g["name"]: {k: v for k, v in g.items() if k not in ("params", "name")} for g in groups}


def test_without_rules_there_is_one_group_without_name():
    module = network()
    (only,) = build_param_groups(module, ())
    assert list(only) == ["params"]
    assert [id(p) for p in only["params"]] == [id(p) for p in module.parameters()]


def test_rule_splits_off_the_parameters_that_it_matches():
    module = network()
    made = make_groups(module, {"match": "*.bias", "weight_decay": 0.0})
    assert parameters_by_group(module, made) == {
        "default": ["body.0.weight", "body.1.weight", "head.weight"],
        "*.bias": ["body.0.bias", "body.1.bias", "head.bias"],
    }
    assert options_by_group(made) == {"default": {}, "*.bias": {"weight_decay": 0.0}}


def test_rules_cascade_and_combine_their_options():
    module = network()
    made = make_groups(module, {"match": "*.bias", "weight_decay": 0.0}, {"match": "head.*", "name": "head", "lr": 0.1})
    assert parameters_by_group(module, made) == {
        "default": ["body.0.weight", "body.1.weight"],
        "*.bias": ["body.0.bias", "body.1.bias"],
        "head": ["head.weight"],
        "*.bias + head": ["head.bias"],
    }
    assert options_by_group(made)["*.bias + head"] == {"weight_decay": 0.0, "lr": 0.1}


def test_last_rule_that_sets_an_option_wins():
    module = network()
    made = make_groups(module, {"match": "*", "lr": 0.1, "eps": 1.0}, {"match": "head.*", "lr": 0.2})
    assert options_by_group(made) == {"*": {"lr": 0.1, "eps": 1.0}, "* + head.*": {"lr": 0.2, "eps": 1.0}}
    all_overridden = make_groups(module, {"match": "head.*", "lr": 0.2}, {"match": "*", "name": "all", "lr": 0.1})
    assert [g["lr"] for g in all_overridden] == [0.1]


def test_parameters_with_equal_options_form_one_group():
    module = network()
    rules = [{"match": "*.bias", "weight_decay": 0}, {"match": "body.1.*", "name": "norm", "weight_decay": 0.0}]
    made = make_groups(module, *rules)
    assert parameters_by_group(module, made) == {
        "default": ["body.0.weight", "head.weight"],
        "*.bias": ["body.0.bias", "body.1.weight", "body.1.bias", "head.bias"],
    }


def test_rule_with_several_globs_makes_one_group():
    module = network()
    made = make_groups(module, {"match": ["*.bias", "body.1.*"], "name": "no_decay", "weight_decay": 0.0})
    assert len(parameters_by_group(module, made)["no_decay"]) == 4


def test_rule_without_options_creates_no_group():
    assert [g["name"] for g in make_groups(network(), {"match": "*.bias"})] == ["default"]


def test_two_groups_with_the_same_name_are_rejected():
    with pytest.raises(ConfigError) as caught:
        make_groups(network(), {"match": "*.bias", "name": "default", "lr": 1.0})
    assert str(caught.value) == (
        "param_groups: two groups would be named 'default': give the rule of this name another name"
    )
    assert loc_text(caught.value.loc) == "param_groups"
    rules = [("*.bias", "a"), ("head.*", "b"), ("body.1.weight", "a + b")]
    with pytest.raises(ConfigError, match=r"two groups would be named 'a \+ b'"):
        make_groups(
            network(),
            *({"match": m, "name": n, k: 1.0} for (m, n), k in zip(rules, ("lr", "eps", "weight_decay"), strict=True)),
        )


def test_rule_that_matches_every_parameter_may_be_named_default():
    assert [g["name"] for g in make_groups(network(), {"match": "*", "name": "default", "lr": 1.0})] == ["default"]


def test_frozen_parameters_are_held_in_the_groups_of_their_rules():
    module, unfrozen = network(), network()
    module["body"].requires_grad_(False)
    rule = {"match": "*.bias", "lr": 1.0}
    held = parameters_by_group(module, make_groups(module, rule))
    assert held == parameters_by_group(unfrozen, make_groups(unfrozen, rule))
    assert sum(map(len, held.values())) == 6


def test_frozen_parameters_are_in_no_group_without_hold_frozen():
    module = network()
    module["body"].requires_grad_(False)
    assert [p.name for p in trainable_parameters(module)] == ["head.weight", "head.bias"]
    config = parse("adam", param_groups=[{"match": "*.bias", "lr": 1.0}])
    made = build_param_groups(module, config.param_groups, {})
    assert parameters_by_group(module, made) == {"default": ["head.weight"], "*.bias": ["head.bias"]}


def test_parameters_that_cannot_require_gradients_are_in_no_group():
    module = network()
    module.register_parameter("codes", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    (made,) = built(module, "adam")
    assert group_table(made, module)[1] == GroupTableRow("(frozen)", ("codes",), 2, None, None)


def test_shared_parameter_is_in_one_group_and_matched_by_each_of_its_names():
    module = network()
    module["tied"] = nn.Linear(3, 1)
    module["tied"].weight = module["head"].weight
    by_first = make_groups(module, {"match": "head.weight", "lr": 1.0})
    assert parameters_by_group(module, by_first)["head.weight"] == ["head.weight"]
    by_second = make_groups(module, {"match": "tied.weight", "lr": 1.0})
    assert parameters_by_group(module, by_second)["tied.weight"] == ["head.weight"]
    assert sum(len(g["params"]) for g in by_second) == len(list(module.parameters())) == 7


def test_pattern_without_a_match_is_rejected():
    with pytest.raises(ConfigError) as caught:
        make_groups(network(), {"match": "head.*"}, {"match": ["head.bias", "head.weigth"], "lr": 1.0})
    assert str(caught.value) == (
        "param_groups[1].match: 'head.weigth' matches no parameter of ModuleDict; did you mean "
        "'head.weight', 'head.bias'?"
    )


def test_all_patterns_without_a_match_are_reported_together():
    with pytest.raises(ConfigErrors) as caught:
        make_groups(network(), {"match": "a"}, {"type": "Linear"}, {"regex": "b$", "name": "x"}, {"type": "Conv2d"})
    assert [loc_text(error.loc) for error in caught.value.errors] == [
        "param_groups[0].match",
        "param_groups[2].regex",
        "param_groups[3].type",
    ]


def test_rule_that_matches_only_frozen_parameters_creates_their_group():
    module = network()
    module["head"].requires_grad_(False)
    made = make_groups(module, {"match": "head.*", "lr": 1.0})
    assert parameters_by_group(module, made) == {
        "default": ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"],
        "head.*": ["head.weight", "head.bias"],
    }


def test_list_of_parameter_names_in_an_error_is_shortened():
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(ConfigError, match=r"; its parameters are 0\.weight, .*, 3\.weight, 3\.bias and 12 more$"):
        make_groups(module, {"match": "nothing"})


def test_module_without_trainable_parameters_is_rejected():
    with pytest.raises(ConfigError, match=r"^Flatten has no trainable parameters: it has no parameters$"):
        trainable_parameters(nn.Flatten())
    with pytest.raises(ConfigError, match=r"^Linear has no trainable parameters: all 2 parameters are frozen$"):
        trainable_parameters(nn.Linear(1, 1).requires_grad_(False))
    module = network()
    module["head"].requires_grad_(False)
    with pytest.raises(
        ConfigError, match=r"^ModuleDict has no trainable parameters: all 2 selected parameters are frozen$"
    ):
        trainable_parameters(module, Selector(match=("head.*",)))


# ------------------------------------------------------------------------------------------ multipliers


def lr_and_weight_decay(module: nn.Module, optimizer: Any, *rules: Any) -> dict[str, tuple[float, float]]:
    """The learning rate and weight decay of each parameter, by its name."""
    made = optplug.configure_optimizers(module, optimizer, param_groups=list(rules))["optimizer"]
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}


def test_multiplier_multiplies_the_lr_of_the_optimizer():
    found = lr_and_weight_decay(network(), {"name": "adam", "lr": 0.5}, {"match": "head.*", "lr_mult": 4})
    assert (found["head.bias"], found["body.0.bias"]) == ((2.0, 0.0), (0.5, 0.0))


def test_multiplier_multiplies_the_default_of_the_optimizer():
    found = lr_and_weight_decay(network(), "adamw", {"match": "head.*", "lr_mult": 2, "wd_mult": 10})
    assert found["head.weight"] == (0.002, 0.1)
    assert found["body.0.weight"] == (0.001, 0.01)


def test_multiplier_multiplies_the_lr_of_an_earlier_or_later_rule():
    multiply, give = {"match": "head.*", "lr_mult": 0.5}, {"match": "*.bias", "lr": 8.0}
    for rules in ((multiply, give), (give, multiply)):
        found = lr_and_weight_decay(network(), {"name": "sgd", "lr": 1.0}, *rules)
        assert {name: lr for name, (lr, _) in found.items()} == {
            "body.0.weight": 1.0,
            "body.0.bias": 8.0,
            "body.1.weight": 1.0,
            "body.1.bias": 8.0,
            "head.weight": 0.5,
            "head.bias": 4.0,
        }


def test_last_multiplier_replaces_earlier_ones():
    rules = ({"match": "*", "lr_mult": 0.5, "name": "all"}, {"match": "head.*", "lr_mult": 3, "name": "head"})
    found = lr_and_weight_decay(network(), {"name": "sgd", "lr": 1.0}, *rules)
    assert (found["body.0.bias"][0], found["head.bias"][0]) == (0.5, 3.0)


def test_multipliers_of_zero_and_one_are_applied():
    found = lr_and_weight_decay(
        network(), {"name": "adamw", "lr": 1.0}, {"match": "*.bias", "wd_mult": 0, "lr_mult": 1}
    )
    assert (found["head.bias"], found["head.weight"]) == ((1.0, 0.0), (1.0, 0.01))


def test_lr_multiplier_of_a_backbone_combines_with_no_decay():
    module = network()
    found = lr_and_weight_decay(
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
    made = make_groups(module, {"match": "body.*", "lr_mult": 0.1}, "no_decay", optimizer="adamw")
    assert sorted(parameters_by_group(module, made)) == ["body.*", "body.* + no_decay", "default", "no_decay"]


def test_layer_decay_combines_with_no_decay():
    layers = {"preset": "layer_decay", "decay": 0.5, "layers": ["body.{}.*", "head.*"]}
    found = lr_and_weight_decay(network(), {"name": "adamw", "lr": 1.0, "weight_decay": 0.5}, layers, "no_decay")
    assert found == {
        "body.0.weight": (0.25, 0.5),
        "body.0.bias": (0.25, 0.0),
        "body.1.weight": (0.5, 0.0),
        "body.1.bias": (0.5, 0.0),
        "head.weight": (1.0, 0.5),
        "head.bias": (1.0, 0.0),
    }


def test_rule_after_no_decay_can_set_weight_decay_again():
    rules = ("no_decay", {"match": "head.bias", "weight_decay": 0.25})
    found = lr_and_weight_decay(network(), {"name": "adamw", "weight_decay": 0.5}, *rules)
    assert (found["head.bias"][1], found["body.0.bias"][1]) == (0.25, 0.0)


def test_multiplier_of_an_absent_or_also_set_option_is_rejected():
    with pytest.raises(ConfigError, match=r"^param_groups\[0\]\.wd_mult: rprop has no "):
        optplug.configure_optimizers(network(), "rprop", param_groups=[{"match": "*", "wd_mult": 2}])
    with pytest.raises(
        ConfigError, match=r"^param_groups\[0\]\.lr_mult: multiplies lr, which this entry sets too: give only one"
    ):
        optplug.configure_optimizers(network(), "adam", param_groups=[{"match": "*", "lr_mult": 2, "lr": 1}])


class AutomaticLr(torch.optim.SGD):
    """A third-party optimizer that determines its learning rate itself."""

    def __init__(self, params: Any, lr: float | str | None = None, weight_decay: float | None = None) -> None:
        super().__init__(params, lr=0.1)


@pytest.fixture
def automatic_lr(monkeypatch: pytest.MonkeyPatch):
    """Registers `AutomaticLr`."""
    registry.names("optimizer")
    registration = Registration(OptimizerSpec("automatic_lr", AutomaticLr), Plugin("third-party", "third-party", "1"))
    monkeypatch.setitem(registry._discovered().registrations["optimizer"], "automaticlr", [registration])


LAYER_DECAY_RULE = {"preset": "layer_decay", "decay": 0.5, "layers": ["body.*", "*"]}


@pytest.mark.usefixtures("automatic_lr")
@pytest.mark.parametrize(
    ("lr", "error"),
    [(None, r"^param_groups\[0\]"), ("auto", r"optimizer\.lr: automatic_lr: lr must be a number, got 'auto'")],
)
@pytest.mark.parametrize(
    "rule", [{"match": "*.bias", "lr_mult": 2}, {"match": "*.bias", "lr_mult": 0.5}, LAYER_DECAY_RULE], ids=str
)
def test_multiplier_of_an_lr_that_is_not_a_number_is_rejected(lr: Any, error: str, rule: dict[str, Any]):
    with pytest.raises(OptplugError, match=error):
        optplug.configure_optimizers(network(), {"name": "automatic_lr", "lr": lr}, param_groups=[rule])


@pytest.mark.parametrize("multiplier", ["lr_mult", "wd_mult"])
def test_multiplier_too_large_for_a_float_is_rejected(multiplier: str):
    with pytest.raises(ConfigError, match=rf"^param_groups\[0\]\.{multiplier}: must be "):
        optplug.configure_optimizers(network(), "adam", param_groups=[{"match": "*", multiplier: 10**400}])


def test_rule_with_the_name_of_a_preset_group_is_rejected():
    rules = [{"match": "body.*", "name": "no_decay", "lr": 3.0}, "no_decay"]
    with pytest.raises(ConfigError, match="two groups would be named 'no_decay'"):
        optplug.configure_optimizers(network(), "adam", param_groups=rules)


# ------------------------------------------------------------------------------------------ several optimizers


def test_each_of_several_optimizers_groups_its_own_parameters():
    module = network()
    given = [
        {"name": "adam", "match": "body.*", "param_groups": [{"match": "*.bias", "lr": 0.5}]},
        {"name": "sgd", "match": "head.*", "param_groups": ["no_decay"], "weight_decay": 0.1},
    ]
    module.automatic_optimization = False
    one, other = (entry["optimizer"] for entry in optplug.configure_optimizers(module, given))
    assert parameters_by_group(module, one.param_groups) == {
        "default": ["body.0.weight", "body.1.weight"],
        "*.bias": ["body.0.bias", "body.1.bias"],
    }
    assert parameters_by_group(module, other.param_groups) == {"default": ["head.weight"], "no_decay": ["head.bias"]}
    combined = optplug.configure_optimizers(module, {"combine": given})["optimizer"]
    assert [len(g["params"]) for g in combined.param_groups] == [2, 2, 1, 1]


def partition_errors(module: nn.Module, *entries: Any) -> list[str]:
    """The errors for several optimizers. Asserts that they are the same for a list and for `combine`."""
    found = []
    for form, loc in ((list(entries), "optimizer"), ({"combine": list(entries)}, "optimizer.combine")):
        with pytest.raises(ConfigError) as caught:
            optplug.configure_optimizers(module, form)
        errors = getattr(caught.value, "errors", (caught.value,))
        found.append([str(error).replace(f"{loc}[", "optimizer[") for error in errors])
    assert found[0] == found[1]
    return found[0]


def test_each_parameter_must_have_exactly_one_of_several_optimizers():
    adam, sgd = {"name": "adam", "match": "body.*"}, {"name": "sgd", "match": "head.*"}
    module = network()
    assert partition_errors(module, adam, {**sgd, "match": "head.weight"}) == [
        "optimizer: no optimizer selects head.bias: select them too, or freeze them"
    ]
    assert partition_errors(module, adam, {**sgd, "match": "*.bias"}) == [
        "optimizer: optimizer[0] and optimizer[1] both select body.0.bias, body.1.bias: a parameter must have exactly "
        "one optimizer",
        "optimizer: no optimizer selects head.weight: select them too, or freeze them",
    ]
    assert partition_errors(module, adam, sgd, {"name": "sgd", "match": "haed.*"})[0].startswith(
        "optimizer[2].match: 'haed.*' matches no parameter of ModuleDict; "
    )


def test_frozen_parameter_needs_no_optimizer_and_is_shown():
    module = network()
    module["head"].bias.requires_grad_(False)
    given = {"combine": [{"name": "adam", "match": "body.*"}, {"name": "sgd", "match": "head.weight"}]}
    made = optplug.configure_optimizers(module, given)["optimizer"]
    assert [len(g["params"]) for g in made.param_groups] == [4, 1]
    assert group_table(made, module)[-1] == GroupTableRow("(frozen)", ("head.bias",), 1, None, None)


@pytest.mark.parametrize("combined", [False, True], ids=["list", "combine"])
def test_optimizer_with_only_frozen_parameters_holds_them(combined: bool):
    module = network()
    module["head"].requires_grad_(False)
    given: Any = [{"name": "adam", "match": "body.*"}, {"name": "sgd", "match": "head.*"}]
    optimizers = built(module, {"combine": given} if combined else given)
    assert [len(g["params"]) for optimizer in optimizers for g in optimizer.param_groups] == [4, 2]
    assert [row.frozen for row in group_table(optimizers[-1]) if row.frozen] == [2]


@pytest.mark.parametrize("combined", [False, True], ids=["list", "combine"])
def test_frozen_parameter_that_two_optimizers_select_is_in_no_group(combined: bool):
    module = network()
    module["body"][1].requires_grad_(False)
    given: Any = [{"name": "adam", "match": "body.*"}, {"name": "sgd", "match": ["head.*", "body.1.*"]}]
    optimizers = built(module, {"combine": given} if combined else given)
    assert [len(g["params"]) for optimizer in optimizers for g in optimizer.param_groups] == [2, 2]
    frozen = GroupTableRow("(frozen)", ("body.1.weight", "body.1.bias"), 6, None, None)
    assert all(frozen in group_table(optimizer, module) for optimizer in optimizers)


def test_optimizers_without_a_trainer_hold_no_frozen_parameters():
    module = network()
    module["body"].requires_grad_(False)
    before = [p.detach().clone() for p in module["body"].parameters()]
    for p in module.parameters():
        p.grad = torch.ones_like(p)  # of steps before the layer was frozen
    for made in (
        optplug.create_optimizer("sgd", module, lr=0.1),
        optplug.create_optimizer("sgd", module, lr=0.1, param_groups="no_decay"),
        optplug.configure_optimizers(module, "sgd")["optimizer"],
    ):
        made.step()
    assert all(torch.equal(p, old) for p, old in zip(module["body"].parameters(), before, strict=True))


def test_plain_loop_loads_the_state_of_an_optimizer_over_the_trainable_parameters():
    module = network()
    module["body"].requires_grad_(False)
    theirs = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.5)
    made = optplug.create_optimizer("adamw", module)
    made.load_state_dict(theirs.state_dict())
    assert made.param_groups[0]["lr"] == 0.5


def test_optimizers_of_a_module_without_trainable_parameters_are_rejected():
    module = network().requires_grad_(False)
    given = [{"name": "adam", "match": "body.*"}, {"name": "sgd", "match": "head.*"}]
    assert partition_errors(module, *given)[0].endswith(
        "ModuleDict has no trainable parameters: all 6 parameters are frozen"
    )


# ------------------------------------------------------------------------------------------ the table


def test_table_shows_groups_and_parameters_in_no_group():
    module = network()
    module["body"][1].requires_grad_(False)
    module["body"][0].bias.requires_grad_(False)
    rules = ["no_decay", {"match": "body.1.*", "lr": 3.0}]
    (made,) = built(module, {"name": "adamw", "lr": 0.5}, param_groups=rules)
    table = group_table(made, module)
    assert list(table) == [
        GroupTableRow("default", ("body.0.weight", "head.weight"), 9, 0.5, 0.01),
        GroupTableRow("no_decay", ("body.0.bias", "head.bias"), 1, 0.5, 0.0, 1, 3),
        GroupTableRow("no_decay + body.1.*", ("body.1.weight", "body.1.bias"), 0, 3.0, 0.0, 2, 6),
    ]
    assert str(table).splitlines() == [
        "group                parameters  elements  frozen   lr  weight_decay",
        "default                       2         9       -  0.5          0.01",
        "no_decay                      1         1   1 (3)  0.5             0",
        "no_decay + body.1.*           0         0   2 (6)    3             0",
    ]
    assert table[0].to_dict() == {
        "group": "default",
        "parameters": ["body.0.weight", "head.weight"],
        "elements": 9,
        "lr": 0.5,
        "weight_decay": 0.01,
    }
    assert [table[2].to_dict()[key] for key in ("frozen", "frozen_elements")] == [2, 6]


def test_table_of_torch_optimizer_shows_base_lr_and_parameters_in_no_group():
    module = network()
    made = torch.optim.SGD(module["head"].parameters(), lr=0.5)
    torch.optim.lr_scheduler.LambdaLR(made, lambda t: 0.1)
    assert made.param_groups[0]["lr"] == pytest.approx(0.05)
    assert list(group_table(made, module)) == [
        GroupTableRow("0", ("head.weight", "head.bias"), 4, 0.5, 0.0),
        GroupTableRow("(elsewhere)", ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"), 15, None, None),
    ]
    assert list(group_table(made)) == [GroupTableRow("0", ("0.0", "0.1"), 4, 0.5, 0.0)]


def test_optimizer_has_the_groups_of_the_rules():
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
LAYER_MULTIPLIERS = {"body.0": 0.25, "body.1": 0.5, "head": 1.0}
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


def is_selected(name: str, rule: dict[str, Any]) -> bool:
    """Whether a rule selects a parameter of `network()`, computed independently of optplug."""
    class_name = "LayerNorm" if name.startswith("body.1") else "Linear"
    matchers = {
        "match": lambda pattern: fnmatch.fnmatchcase(name, pattern),
        "type": lambda pattern: class_name == pattern,
        "regex": lambda pattern: name.endswith(pattern.rstrip("$")),
    }
    found = []
    for key, matches in matchers.items():
        if key in rule:
            patterns = [rule[key]] if isinstance(rule[key], str) else rule[key]
            found.append(any(matches(pattern) for pattern in patterns))
    return all(found)


def expected_options(name: str, base: dict[str, Any], rules: list[Any]) -> dict[str, Any]:
    """The options of one parameter, from one rule after another."""
    options = {"lr": 1e-3, "weight_decay": 1e-2, "amsgrad": False, **base}
    lr_mult = wd_mult = 1
    for rule in rules:
        if rule == "no_decay":
            options["weight_decay"] = 0.0 if name in NORMS_AND_BIASES else options["weight_decay"]
        elif rule is LAYERS:
            lr_mult = LAYER_MULTIPLIERS[name.rpartition(".")[0]]
        elif is_selected(name, rule):
            lr_mult, wd_mult = rule.get("lr_mult", lr_mult), rule.get("wd_mult", wd_mult)
            options.update({key: rule[key] for key in options if key in rule})
    options["lr"] *= lr_mult
    options["weight_decay"] *= wd_mult
    return options


@given(RULES, BASES, st.sets(st.sampled_from([name for name, _ in network().named_parameters()])))
@settings(max_examples=300)
def test_every_parameter_is_in_one_group_with_the_expected_options(
    rules: list[Any], base: dict[str, Any], frozen: set[str]
):
    module = network()
    for name, p in module.named_parameters():
        p.requires_grad_(name not in frozen)
    named = [{**rule, "name": f"rule{i}"} if is_selector_rule(rule) else rule for i, rule in enumerate(rules)]
    if len(frozen) == len(list(module.parameters())):
        with pytest.raises(ConfigError, match="has no trainable parameters"):
            optplug.configure_optimizers(module, {"name": "adamw", **base}, param_groups=named)
        return
    (made,) = built(module, {"name": "adamw", **base}, param_groups=named)
    names = {id(p): name for name, p in module.named_parameters()}
    grouped = [names[id(p)] for g in made.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(names.values())
    for g in made.param_groups:
        for p in g["params"]:
            expected = expected_options(names[id(p)], base, rules)
            assert {key: g[key] for key in expected} == expected
    if rules:
        assert len({g["name"] for g in made.param_groups}) == len(made.param_groups)


def is_selector_rule(rule: Any) -> bool:
    """Whether a rule is not a preset."""
    return isinstance(rule, dict) and "preset" not in rule


@given(RULES)
def test_no_two_groups_have_equal_options(rules: list[Any]):
    module = network()
    named = [{**rule, "name": f"rule{i}"} if is_selector_rule(rule) else rule for i, rule in enumerate(rules)]
    config = parse("adamw", param_groups=named)
    base = {"lr": 1e-3, "weight_decay": 1e-2}
    made = build_param_groups(module, config.param_groups, base)
    found = [{key: value for key, value in g.items() if key not in ("params", "name")} for g in made]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


# ------------------------------------------------------------------------------------------ groups added later


@pytest.mark.parametrize("combined", [False, True], ids=["one optimizer", "combine"])
def test_optimizer_of_a_configuration_is_copied_without_its_module(combined: bool):
    module = network()
    module["head"].requires_grad_(False)
    parts = [{"name": "adam", "match": "body.*"}, {"name": "sgd", "match": "head.*"}]
    (made,) = built(module, {"combine": parts} if combined else "adam")
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        copied.add_param_group({"params": [torch.zeros(1)], **({"member": 0} if combined else {})})
        assert len(copied.param_groups) == len(made.param_groups) + 1


def test_optimizer_with_added_groups_is_freed_without_garbage_collection():
    module = network()
    reference = weakref.ref(optplug.configure_optimizers(module, "sgd", param_groups="no_decay")["optimizer"])
    assert reference() is None


def test_module_that_no_longer_exists_applies_no_rules():
    module = network()
    made = optplug.configure_optimizers(module, {"name": "adamw", "weight_decay": 0.5}, param_groups="no_decay")
    del module
    made["optimizer"].add_param_group({"params": nn.Linear(1, 1).bias})
    assert made["optimizer"].param_groups[-1]["weight_decay"] == 0.5
