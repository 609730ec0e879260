"""The key `base`: optimizers that wrap another one, by name."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import pytorch_optimizer
import torch
from torch import nn

import optplug
from optplug.config.build import build_optimizer, parse_and_check
from optplug.config.describe import describe_registration
from optplug.config.json_schema import json_schema
from optplug.config.parse import parse
from optplug.errors import OptplugError
from optplug.optim.adapted_step import original_class
from optplug.registry import registry
from optplug.registry.specs import OptimizerSpec


class Scaled(torch.optim.Optimizer):
    """Takes the class of its base, and scales each gradient.

    Args:
        params: the parameters.
        base_optimizer: the class of the base.
        scale: the factor of the gradients.
        **options: the arguments of the base.
    """

    def __init__(self, params: Any, base_optimizer: Any, scale: float = 0.5, foreach: Any = None, **options: Any):
        super().__init__(params, {"scale": scale, **options})
        self.base = base_optimizer(self.param_groups, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(group["scale"])
        self.base.step()
        return loss


class WithDefault(Scaled):
    """Takes the class of its base, or torch's SGD."""

    def __init__(self, params: Any, base_optimizer: Any = torch.optim.SGD, scale: float = 0.5, **options: Any):
        super().__init__(params, base_optimizer, scale, **options)


SPECS = [
    OptimizerSpec("look", pytorch_optimizer.Lookahead, base="optimizer"),
    OptimizerSpec("free", pytorch_optimizer.ScheduleFreeWrapper, base="optimizer", capabilities={"modes"}),
    OptimizerSpec("scaled", Scaled, base="base_optimizer"),
    OptimizerSpec("with_default", WithDefault, base="base_optimizer"),
    OptimizerSpec("from_torch", torch.optim.RAdam),
]


@pytest.fixture(autouse=True)
def wrappers(register_optimizers):
    register_optimizers(*SPECS)


def model() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module.rate = 0.25
    return module


def build(optimizer: Any, module: nn.Module | None = None, **options: Any) -> Any:
    return build_optimizer(module or model(), parse_and_check(optimizer, **options).setup)


def errors_of(optimizer: Any, **options: Any) -> list[str]:
    with pytest.raises(OptplugError) as caught:
        parse_and_check(optimizer, **options)
    return [str(error) for error in caught.value.errors]


# ------------------------------------------------------------------------------------------ construction


def test_base_is_built_and_passed_first():
    made = build({"name": "look", "k": 3, "base": {"name": "sgd", "lr": 0.2}})
    assert (original_class(made), type(made.optimizer)) == (pytorch_optimizer.Lookahead, optplug.get_optimizer("sgd"))
    assert (made.k, made.optimizer.defaults["lr"]) == (3, 0.2)


def test_class_of_base_is_passed_with_its_options():
    made = build({"name": "scaled", "scale": 0.1, "base": {"name": "adamw", "lr": 0.2, "engine": "loop"}})
    assert (original_class(made), type(made.base)) == (Scaled, optplug.get_optimizer("adamw"))
    assert (made.param_groups[0]["scale"], made.param_groups[0]["lr"], made.base.engine) == (0.1, 0.2, "loop")


def test_option_of_base_with_a_name_of_the_wrapper_reaches_the_base():
    made = build({"name": "scaled", "base": {"name": "sgd", "foreach": True}})
    assert made.base.defaults["foreach"] is True


@pytest.mark.parametrize("wrapper", ["look", "scaled"])
@pytest.mark.parametrize("base", ["sgd", {"name": "SGD"}, {"name": "sgd", "args": {"lr": 0.01}}])
def test_base_may_be_a_name(wrapper, base):
    made = build({"name": wrapper, "base": base})
    assert type(made.optimizer if wrapper == "look" else made.base) is optplug.get_optimizer("sgd")


def test_third_party_optimizer_is_a_base():
    assert type(build({"name": "look", "base": {"name": "from_torch", "lr": 1}}).optimizer) is torch.optim.RAdam


def test_base_with_a_base():
    made = build({"name": "look", "base": {"name": "scaled", "base": {"name": "sgd", "lr": 0.3}}})
    assert (original_class(made.optimizer), made.optimizer.base.defaults["lr"]) == (Scaled, 0.3)


def test_wrapper_with_a_default_base():
    assert type(build("with_default").base) is torch.optim.SGD
    assert type(build({"name": "with_default", "base": "adamw"}).base) is optplug.get_optimizer("adamw")


@pytest.mark.parametrize("of_module", [False, True])
def test_create_optimizer(of_module):
    module = model()
    params = module if of_module else module.parameters()
    made = optplug.create_optimizer("scaled", params, scale=0.1, base={"name": "sgd", "lr": 0.2})
    assert (type(made.base), made.param_groups[0]["lr"], made.param_groups[0]["scale"]) == (
        optplug.get_optimizer("sgd"),
        0.2,
        0.1,
    )
    assert [id(p) for p in made.param_groups[0]["params"]] == [id(p) for p in module.parameters()]


def test_create_optimizer_with_groups():
    groups = [{"params": [torch.zeros(2)], "lr": 0.5}, {"params": [torch.zeros(3)]}]
    made = optplug.create_optimizer("look", groups, base={"name": "sgd", "lr": 0.2})
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.2]


def test_steps_equal_those_of_the_wrapper_around_torchs_class():
    made, expected = model(), model()
    ours = build({"name": "scaled", "base": {"name": "adamw", "lr": 0.1}}, made)
    theirs = Scaled(expected.parameters(), torch.optim.AdamW, lr=0.1)
    for module, optimizer in ((made, ours), (expected, theirs)):
        for number in range(20):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.9**number
            optimizer.zero_grad()
            module(torch.ones(2, 3)).pow(2).sum().backward()
            optimizer.step()
    for p, q in zip(made.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("base", ["sgd", "of_torch"])
def test_group_that_is_added_has_the_options_of_the_base(base, register_optimizers):
    register_optimizers(
        OptimizerSpec("of_torch", torch.optim.SGD), OptimizerSpec("sam", pytorch_optimizer.SAM, base="base_optimizer")
    )
    module = model()
    module[2].requires_grad_(False)
    made = build({"name": "sam", "base": {"name": base, "lr": 0.5, "momentum": 0.9}}, module)
    before = module[2].weight.detach().clone()
    module[2].requires_grad_(True)
    made.add_param_group({"params": list(module[2].parameters()), "lr": 0.25})
    assert [(group["lr"], group["momentum"]) for group in made.param_groups] == [(0.5, 0.9), (0.25, 0.9)]

    def closure() -> torch.Tensor:
        loss = module(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    closure()
    made.step(closure)
    assert not torch.equal(module[2].weight, before)


# ------------------------------------------------------------------------------------------ the configuration


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "look", "k": 3, "base": {"name": "sgd", "lr": 0.2}},
        {"name": "scaled", "base": {"name": "adamw"}},
        {"name": "look", "base": {"name": "scaled", "scale": 0.2, "base": {"name": "sgd", "lr": 0.2}}},
        {"name": "with_default"},
    ],
)
def test_round_trip(optimizer):
    config = parse(optimizer)
    assert config.to_dict() == {"optimizer": optimizer}
    assert parse(**config.to_dict()) == config


def test_link_in_base():
    made = build({"name": "look", "base": {"name": "sgd", "lr": "module.rate"}})
    assert made.param_groups[0]["lr"] == 0.25


def test_wrong_link_in_base_has_its_location():
    with pytest.raises(OptplugError, match=re.escape("optimizer.base.lr:")):
        build({"name": "look", "base": {"name": "sgd", "lr": "module.rat"}})


def test_text_in_base_is_read_as_a_number():
    assert build({"name": "look", "base": {"name": "sgd", "lr": "1e-3"}}).param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("wrapper", ["look", "scaled"])
def test_group_rules_apply_to_options_of_the_base(wrapper):
    made = build(
        {"name": wrapper, "base": {"name": "adamw", "lr": 0.1, "weight_decay": 0.2}},
        param_groups=["no_decay", {"match": "2.*", "lr_mult": 10, "weight_decay": 0.5}],
    )
    found = [(round(group["lr"], 9), group["weight_decay"]) for group in made.param_groups]
    assert sorted(found) == [(0.1, 0.0), (0.1, 0.2), (1.0, 0.5)]


def test_group_rule_sets_an_option_of_a_wrapper_that_has_the_groups():
    made = build({"name": "scaled", "base": "sgd"}, param_groups=[{"match": "2.*", "scale": 0.125}])
    assert sorted(group["scale"] for group in made.param_groups) == [0.125, 0.5]


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("look", ["optimizer: look needs base, the optimizer that it wraps: write base: {name: sgd, lr: 0.1}"]),
        ({"name": "look", "base": None}, ["optimizer: look needs base"]),
        (
            {"name": "look", "base": 3},
            ["optimizer.base: must be a name or a mapping with a name, got 3 (int)"],
        ),
        ({"name": "look", "base": {"lr": 0.1}}, ["optimizer.base: needs a name; it has lr"]),
        ({"name": "look", "base": "sgdd"}, ["optimizer.base: no optimizer named 'sgdd'; did you mean 'sgd'"]),
        ({"name": "look", "base": {"name": "sgdd"}}, ["optimizer.base.name: no optimizer named 'sgdd'"]),
        (
            {"name": "look", "base": {"name": "sgd", "momentun": 0.9}},
            ["optimizer.base.momentun: sgd has no option 'momentun'; did you mean 'momentum'"],
        ),
        ({"name": "look", "base": {"name": "sgd", "lr": -1}}, ["optimizer.base.lr: Invalid learning rate: -1"]),
        (
            {"name": "look", "base": {"name": "sgd", "args": {"lr": "fast"}}},
            ["optimizer.base.args.lr: SGD: lr must be a number, got 'fast'"],
        ),
        (
            {"name": "look", "lr": 0.1, "base": "sgd"},
            ["optimizer.lr: look has no option 'lr'; it is an option of sgd: write base: {name: sgd, lr: 0.1}"],
        ),
        (
            {"name": "scaled", "lr": 0.1, "base": "sgd"},
            ["optimizer.lr: scaled has no option 'lr'; it is an option of sgd: write base: {name: sgd, lr: 0.1}"],
        ),
        (
            {"name": "scaled", "scal": 0.1, "base": "sgd"},
            ["optimizer.scal: scaled has no option 'scal'; did you mean 'scale'"],
        ),
        (
            {"name": "scaled", "base_optimizer": "sgd", "base": "sgd"},
            ["optimizer.base_optimizer: scaled has no"],
        ),
        (
            {"name": "sgd", "base": "adamw"},
            ["optimizer.base: sgd has no option 'base'; base is a key of optimizers"],
        ),
        (
            {"name": "look", "optimizer": "sgd", "base": "sgd"},
            ["optimizer.optimizer: look has no option 'optimizer'; write base: {name: ...}"],
        ),
        ({"name": "scaled", "base": {"name": "sgd", "lr": -1}}, ["optimizer.base.lr: Invalid learning rate: -1"]),
        (
            {"name": "scaled", "base": {"name": "from_torch", "lr": -1}},
            ["optimizer.base.lr: Invalid learning rate: -1"],
        ),
        ({"name": "look", "k": -1, "base": "sgd"}, ["optimizer.k: look rejected k=-1"]),
        (
            {"name": "look", "base": "lbfgs"},
            ["optimizer.base: lbfgs cannot be the base of look (step() needs a closure"],
        ),
        (
            {"name": "look", "base": "muon"},
            ["optimizer.base: muon cannot be the base of look (takes parameters"],
        ),
        (
            {"name": "scaled", "base": "schedule_free_sgd"},
            ["optimizer.base: schedule_free_sgd cannot be the base of scaled (has train() and eval() modes)"],
        ),
        (
            {"name": "scaled", "base": {"name": "look", "base": "sgd"}},
            ["optimizer.base: scaled takes the class of its base and its options, but look wraps another optimizer"],
        ),
        (
            {"name": "look", "base": {"name": "look"}},
            ["optimizer.base: look needs base, the optimizer that it wraps"],
        ),
    ],
)
def test_errors_have_locations(optimizer, expected):
    found = errors_of(optimizer)
    assert len(found) == len(expected)
    for text, start in zip(found, expected, strict=True):
        assert text.startswith(start)


@pytest.mark.parametrize(
    ("wrapper", "rule", "expected"),
    [
        ("look", {"k": 3}, "param_groups[0].k: adamw has no option 'k'"),
        ("look", {"lr": -1}, "param_groups[0].lr: Invalid learning rate: -1"),
        ("scaled", {"lr": -1}, "param_groups[0].lr: Invalid learning rate: -1"),
        (
            "scaled",
            {"sacle": 0.2},
            "param_groups[0].sacle: scaled and adamw have no option 'sacle'; did you mean",
        ),
        ("scaled", {"engine": "loop"}, "param_groups[0].engine: engine applies to the whole optimizer"),
    ],
)
def test_errors_in_group_rules(wrapper, rule, expected):
    (found,) = errors_of({"name": wrapper, "base": "adamw"}, param_groups=[{"match": "2.*", **rule}])
    assert found.startswith(expected)


def test_error_of_a_third_party_base_has_its_location():
    with pytest.raises(OptplugError, match=r"^optimizer\.base\.betas: from_torch rejected betas=\[0.9, 2.0\]"):
        build({"name": "look", "base": {"name": "from_torch", "betas": [0.9, 2.0]}})


# ------------------------------------------------------------------------------------------ schema and description


@pytest.mark.parametrize(
    ("optimizer", "is_valid"),
    [
        ({"name": "look", "base": "sgd"}, True),
        ({"name": "look", "base": {"name": "sgd", "lr": 0.1}}, True),
        ({"name": "look", "base": {"name": "scaled", "base": "sgd"}}, True),
        ({"name": "with_default"}, True),
        ("with_default", True),
        ("look", False),
        ({"name": "look"}, False),
        ({"name": "look", "base": 3}, False),
        ({"name": "look", "base": {"lr": 0.1}}, False),
        ({"name": "look", "base": {"name": "sgd", "momentun": 0.1}}, False),
        ({"name": "look", "base": "muon"}, False),
        ({"name": "sgd", "base": "adamw"}, False),
        ({"name": "scaled", "lr": 0.1, "base": "sgd"}, False),
    ],
)
def test_json_schema(optimizer, is_valid):
    schema = json_schema()
    json.dumps(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid({"optimizer": optimizer}) is is_valid
    assert is_valid is (not _raises(optimizer))


def _raises(optimizer: Any) -> bool:
    try:
        parse_and_check(optimizer)
    except OptplugError:
        return True
    return False


def test_json_schema_of_groups_has_options_of_the_base():
    validator = jsonschema.Draft202012Validator(json_schema())
    optimizer = {"name": "look", "base": "adamw"}
    assert validator.is_valid({"optimizer": optimizer, "param_groups": [{"match": "2.*", "weight_decay": 0.1}]})


def test_description_has_the_key():
    text = describe_registration(registry.resolve("optimizer", "look"))
    assert re.search(r"^base +a name or a mapping with a name", text, re.MULTILINE)
    assert not re.search(r"^optimizer ", text, re.MULTILINE)
