"""Which parameters a selector selects: by name, by regular expression, by the type of their module."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from optplug.config import param_selection
from optplug.config.error_collector import ErrorCollector
from optplug.config.param_selection import Selector, check_use, numbered, parameters_of, shortened
from optplug.errors import ConfigError, ConfigErrors, ConfigTypeError, OptplugError

WRAPPERS = ["_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.scale = nn.Parameter(torch.ones(2))


class WideBlock(Block):
    pass


class MyLinear(nn.Linear):
    pass


def network() -> nn.Module:
    return nn.ModuleDict({"blocks": nn.ModuleList([Block(), WideBlock()]), "head": MyLinear(2, 1)})


BLOCK = ["linear.weight", "linear.bias", "norm.weight", "norm.bias"]


def parsed(given: Any) -> Selector:
    """The selector of an entry, or what is wrong with it."""
    collector = ErrorCollector()
    selector = param_selection.parsed(given, collector, "entry")
    collector.raise_collected()
    return selector


def names(module: nn.Module, **ways: Any) -> list[str]:
    """The names of the selected parameters; every pattern has to select something."""
    selector = parsed(ways)
    parameters = parameters_of(module)
    check_use(selector, parameters, module)
    return [p.name for p in parameters if selector.selects(p)]


def refusal(error: type[OptplugError], module: nn.Module, **ways: Any) -> OptplugError:
    with pytest.raises(error) as caught:
        names(module, **ways)
    assert type(caught.value) is error
    return caught.value


# ----------------------------------------------------------------------------------- the parameters


def test_parameters_are_those_of_the_module_in_its_order_frozen_ones_too():
    module = network()
    module["head"].requires_grad_(False)
    found = parameters_of(module)
    assert [(p.name, id(p.tensor)) for p in found] == [(name, id(p)) for name, p in module.named_parameters()]
    assert [p.name for p in found if not p.trainable] == ["head.weight", "head.bias"]


def test_a_module_inside_itself_is_no_endless_loop():
    module = nn.Sequential(nn.Linear(1, 1))
    module.add_module("again", module)
    assert [p.name for p in parameters_of(module)] == ["0.weight", "0.bias"]


# ------------------------------------------------------------------------------------------- by name


def test_a_glob_selects_whole_names():
    assert names(network(), match="head.*") == ["head.weight", "head.bias"]
    assert names(network(), match="*.bias") == [
        "blocks.0.linear.bias",
        "blocks.0.norm.bias",
        "blocks.1.linear.bias",
        "blocks.1.norm.bias",
        "head.bias",
    ]
    assert names(network(), match="blocks.[1].scale") == ["blocks.1.scale"]
    refusal(ConfigError, network(), match="head")


def test_a_regular_expression_is_searched_for():
    assert names(network(), regex="head") == ["head.weight", "head.bias"]
    assert names(network(), regex=r"\.[01]\.scale$") == ["blocks.0.scale", "blocks.1.scale"]
    assert names(network(), regex="^(?!blocks).*bias") == ["head.bias"]
    refusal(ConfigError, network(), regex="^linear")


@pytest.mark.parametrize("way", ["match", "regex", "type"])
def test_case_counts(way: str):
    patterns = {"match": "Head.*", "regex": "Head", "type": "mylinear"}
    refusal(ConfigError, network(), **{way: patterns[way]})


# ------------------------------------------------------------------------------------------- by type


def test_a_type_is_the_class_of_the_module_that_has_the_parameter():
    assert names(network(), type="LayerNorm") == [f"blocks.{i}.norm.{p}" for i in (0, 1) for p in ("weight", "bias")]
    # Of a block's parameters only its own count, not those of the modules inside.
    assert names(network(), type="WideBlock") == ["blocks.1.scale"]


def test_base_classes_count():
    assert names(network(), type="Block") == ["blocks.0.scale", "blocks.1.scale"]
    assert names(network(), type="Linear") == [
        *(f"blocks.{i}.linear.{p}" for i in (0, 1) for p in ("weight", "bias")),
        "head.weight",
        "head.bias",
    ]
    assert names(network(), type="MyLinear") == ["head.weight", "head.bias"]
    assert names(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2)), type="_BatchNorm") == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    ]


def test_a_type_is_a_glob():
    assert names(network(), type="*Block") == ["blocks.0.scale", "blocks.1.scale"]
    assert names(network(), type="[WM]*") == ["blocks.1.scale", "head.weight", "head.bias"]


@pytest.mark.parametrize("pattern", ["Module", "object", "*Mod*"])
def test_what_every_module_is_selects_nothing(pattern: str):
    refusal(ConfigError, network(), type=pattern)


def test_parameters_that_a_container_has_itself_are_of_its_type():
    module = nn.Module()
    module.few = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    module.named = nn.ParameterDict({"a": torch.zeros(1)})
    assert names(module, type="ParameterList") == ["few.0", "few.1"]
    assert names(module, type="ParameterDict") == ["named.a"]


def test_a_class_made_at_run_time_is_what_it_was_made_of():
    module = nn.Sequential(MyLinear(2, 2))
    module[0].__class__ = type("ShardedMyLinear", (MyLinear,), {})
    assert names(module, type="MyLinear") == names(module, type="Sharded*") == ["0.weight", "0.bias"]


def test_a_tensor_s_parametrisation_is_of_the_module_it_makes_the_tensor_of():
    module = nn.Sequential(parametrizations.weight_norm(MyLinear(2, 3)), nn.LayerNorm(3))
    made = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]
    assert names(module, type="MyLinear") == names(module, type="Linear") == ["0.bias", *made]
    assert names(module, match="0.param*") == made
    places = {p.name: p.attributes[0].own_name for p in parameters_of(module)}
    assert places["0.parametrizations.weight.original0"] == "weight"
    alone = parametrizations.weight_norm(nn.Linear(2, 3))  # the parametrised module is the whole
    assert names(alone, type="Linear") == ["bias", *(name[2:] for name in made)]


def test_a_parametrisation_with_parameters_of_its_own_is_of_its_own_type():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return self.factor * weight

    module = nn.Sequential(nn.Linear(2, 3))
    parametrize.register_parametrization(module[0], "weight", Scaled())
    assert names(module, type="Scaled") == ["0.parametrizations.weight.0.factor"]
    assert names(module, type="Linear") == ["0.bias", "0.parametrizations.weight.original"]


def test_a_parametrised_copy_is_selected_alike():
    module = copy.deepcopy(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3))))
    assert len(names(module, type="Linear")) == 3


# ------------------------------------------------------------------------------------------ wrappers


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_patterns_do_not_see_wrappers(prefix: str):
    module = nn.Module()
    module.add_module(prefix, nn.Sequential(MyLinear(1, 1)))
    module.get_submodule(prefix).add_module("inner", nn.Module())
    module.get_submodule(f"{prefix}.inner").add_module(prefix, nn.Linear(1, 1))
    assert [p.name for p in parameters_of(module)] == ["0.weight", "0.bias", "inner.weight", "inner.bias"]
    assert names(module, match="inner.*") == ["inner.weight", "inner.bias"]
    assert names(module, regex="^0") == names(module, type="MyLinear") == ["0.weight", "0.bias"]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_parametrised_module_in_a_wrapper_keeps_its_type(prefix: str):
    module = nn.Module()
    module.add_module(prefix, parametrizations.weight_norm(nn.Linear(1, 1)))
    assert names(module, type="Linear") == ["bias", *(f"parametrizations.weight.original{i}" for i in (0, 1))]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated:DeprecationWarning")  # torch's own import
def test_a_compiled_module_has_its_bare_names_and_types():
    module = torch.compile(network())
    assert [p.name for p in parameters_of(module)] == [name for name, _ in network().named_parameters()]
    assert names(module, type="MyLinear") == ["head.weight", "head.bias"]


# ------------------------------------------------------------------------------------ ways together


def test_several_ways_all_have_to_select():
    assert names(network(), match="blocks.*", regex="bias$", type="Linear") == [
        "blocks.0.linear.bias",
        "blocks.1.linear.bias",
    ]
    assert names(network(), match="*.weight", type="LayerNorm") == ["blocks.0.norm.weight", "blocks.1.norm.weight"]


@pytest.mark.parametrize(
    ("way", "patterns"),
    [
        ("match", ["head.weight", "*.scale"]),
        ("regex", ["head.w", "scale"]),
        ("type", ["*Block"]),
    ],
)
def test_any_of_several_patterns_selects(way: str, patterns: list[str]):
    rest = [] if way == "type" else ["head.weight"]
    assert names(network(), **{way: patterns}) == ["blocks.0.scale", "blocks.1.scale", *rest]
    assert names(network(), **{way: tuple(patterns)}) == names(network(), **{way: patterns})


def test_several_patterns_of_several_ways():
    assert names(network(), match=["head.*", "blocks.0.*"], type=["LayerNorm", "MyLinear"]) == [
        "blocks.0.norm.weight",
        "blocks.0.norm.bias",
        "head.weight",
        "head.bias",
    ]


def tied() -> nn.Module:
    module = nn.Module()
    module.embed = nn.Embedding(3, 2)
    module.out = nn.Linear(2, 3)
    module.out.weight = module.embed.weight
    return module


def test_a_shared_parameter_is_selected_by_any_of_its_names_and_types():
    for ways in (
        {"match": "embed.weight"},
        {"match": "out.weight"},
        {"regex": "^out.w"},
        {"type": "Embedding"},
        {"type": "Linear", "regex": "weight"},
    ):
        assert names(tied(), **ways) == ["embed.weight"]
    assert names(tied(), type="Linear") == ["embed.weight", "out.bias"]
    assert [p.name for p in parameters_of(tied())] == ["embed.weight", "out.bias"]


def test_ways_together_have_to_select_at_one_place_of_a_shared_parameter():
    says = refusal(ConfigError, tied(), match="embed.*", type="Linear")
    assert str(says) == "no parameter of Module is selected by match 'embed.*', type 'Linear' together"


def test_a_shared_module_has_all_its_names():
    shared = nn.Linear(1, 1)
    module = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    for pattern in ("a.*", "b.0.*"):
        assert names(module, match=pattern) == ["a.weight", "a.bias"]


# -------------------------------------------------------------------------------------------- errors


def test_a_pattern_that_selects_nothing_is_refused_with_the_nearest():
    error = refusal(ConfigError, network()["head"], match=["weight", "wieght"])
    assert error.loc == "match"
    assert str(error) == (
        "'wieght' matches no parameter of MyLinear; its parameters are weight, bias; did you mean 'weight'?"
    )
    error = refusal(ConfigError, network(), type="MyLinaer")
    assert error.loc == "type"
    assert str(error) == (
        "'MyLinaer' matches no parameter of ModuleDict; the classes that have some are Block, Linear, LayerNorm, "
        "WideBlock, MyLinear; did you mean 'MyLinear', 'Linear'?"
    )


def test_where_nothing_is_near_the_names_are_listed():
    error = refusal(ConfigError, nn.Linear(1, 1), regex="zzz")
    assert (error.loc, str(error)) == (
        "regex",
        "'zzz' matches no parameter of Linear; its parameters are weight, bias",
    )


def test_a_pattern_that_selects_only_what_is_frozen_is_used():
    module = network()
    module["head"].requires_grad_(False)
    assert names(module, match="head.*") == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("way", "value", "error", "words"),
    [
        ("match", 5, ConfigTypeError, "must be a glob, or a list of them, got 5"),
        ("match", "", ConfigTypeError, "must be a glob, or a list of them, got ''"),
        ("match", None, ConfigTypeError, "must be a glob, or a list of them, got None"),
        ("regex", [], ConfigTypeError, "must be a regular expression, or a list of them, got []"),
        ("regex", "a(", ConfigError, "'a(' is no regular expression: missing ), unterminated subpattern at position 1"),
        ("regex", "a{99999999999999999999}", ConfigError, "'a{99999999999999999999}' is no regular expression: "),
        ("regex", "(?<=a*)b", ConfigError, "'(?<=a*)b' is no regular expression: "),
        (
            "type",
            ["Linear", 1],
            ConfigTypeError,
            "must be a glob over class names, or a list of them, got ['Linear', 1]",
        ),
        ("type", nn.Linear, ConfigTypeError, "must be a glob over class names, or a list of them, got <class "),
    ],
)
def test_what_is_no_pattern_is_refused(way: str, value: Any, error: type[OptplugError], words: str):
    with pytest.raises(error) as caught:
        parsed({way: value, "lr": 1})
    assert type(caught.value) is error
    assert caught.value.loc == f"entry.{way}"
    assert str(caught.value).startswith(f"entry.{way}: {words}")


def test_every_way_that_is_wrong_is_said():
    with pytest.raises(ConfigErrors) as caught:
        parsed({"type": [], "match": "a", "regex": "("})
    assert [error.loc for error in caught.value.errors] == ["entry.regex", "entry.type"]


def test_a_selector_keeps_to_its_own_keys_and_comes_back():
    selector = parsed({"match": "a", "type": ["b", "c"], "lr": 1})
    assert selector == Selector(match=("a",), type=("b", "c"))
    assert selector.to_dict() == {"match": ["a"], "type": ["b", "c"]}
    assert parsed(selector.to_dict()) == selector
    assert str(selector) == "a b c"
    assert parsed({"lr": 1}) == Selector()


# -------------------------------------------------------------------------------------------- helpers


def test_a_long_list_is_shortened():
    assert shortened(list("abcd"), 2) == "a, b and 2 more"
    assert shortened(list("ab"), 2) == "a, b"
    assert shortened([]) == "none"


@pytest.mark.parametrize(
    ("glob", "name", "numbers"),
    [
        ("blocks.{}.*", "blocks.10.weight", ("10",)),
        ("{}.{}", "3.14", ("3", "14")),
        ("a.{}", "a.1.b", None),
        ("a.{}", "ba.1", None),
        ("blocks.{}.*", "blocks.x.weight", None),
        ("*.[ab]", "x.y.a", ()),
        ("a", "a\n", None),
        ("layer{}[0-2].?", "layer12.w", ("1",)),
    ],
)
def test_a_numbered_glob_gives_its_numbers(glob: str, name: str, numbers: tuple[str, ...] | None):
    found = numbered(glob).match(name)
    assert (found and found.groups()) == numbers
    assert isinstance(numbered(glob), re.Pattern)
