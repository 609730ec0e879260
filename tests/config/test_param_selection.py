"""Selectors: selection of parameters by glob, regular expression and class of the module."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from optplug.config.param_selection import (
    Selector,
    check_selector,
    compile_numbered_glob,
    module_parameters,
)
from optplug.config.parse import parse_selector
from optplug.errors import (
    ConfigError,
    ConfigErrors,
    ConfigTypeError,
    ErrorCollector,
    OptplugError,
    loc_text,
    short_list,
)

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


def selector_of(given: Any) -> Selector:
    """The selector of a configuration entry. Raises its errors."""
    collector = ErrorCollector()
    selector = parse_selector(given, collector, ("entry",))
    collector.raise_collected()
    return selector


def selected(module: nn.Module, **patterns: Any) -> list[str]:
    """The names of the selected parameters. Raises an error for a pattern without a match."""
    selector = selector_of(patterns)
    parameters = module_parameters(module)
    check_selector(selector, parameters, module)
    return [p.name for p in parameters if selector.selects(p)]


def raised_error(error: type[OptplugError], module: nn.Module, **patterns: Any) -> OptplugError:
    with pytest.raises(error) as caught:
        selected(module, **patterns)
    assert type(caught.value) is error
    return caught.value


# ------------------------------------------------------------------------------------------ module_parameters


def test_module_parameters_are_named_parameters_including_frozen_ones():
    module = network()
    module["head"].requires_grad_(False)
    found = module_parameters(module)
    assert [(p.name, id(p.tensor)) for p in found] == [(name, id(p)) for name, p in module.named_parameters()]
    assert [p.name for p in found if not p.is_trainable] == ["head.weight", "head.bias"]


def test_module_that_contains_itself_lists_each_parameter_once():
    module = nn.Sequential(nn.Linear(1, 1))
    module.add_module("again", module)
    assert [p.name for p in module_parameters(module)] == ["0.weight", "0.bias"]


# ------------------------------------------------------------------------------------------ match and regex


def test_glob_matches_whole_names():
    assert selected(network(), match="head.*") == ["head.weight", "head.bias"]
    assert selected(network(), match="*.bias") == [
        "blocks.0.linear.bias",
        "blocks.0.norm.bias",
        "blocks.1.linear.bias",
        "blocks.1.norm.bias",
        "head.bias",
    ]
    assert selected(network(), match="blocks.[1].scale") == ["blocks.1.scale"]
    raised_error(ConfigError, network(), match="head")


def test_regular_expression_is_searched_for_in_names():
    assert selected(network(), regex="head") == ["head.weight", "head.bias"]
    assert selected(network(), regex=r"\.[01]\.scale$") == ["blocks.0.scale", "blocks.1.scale"]
    assert selected(network(), regex="^(?!blocks).*bias") == ["head.bias"]
    raised_error(ConfigError, network(), regex="^linear")


@pytest.mark.parametrize("key", ["match", "regex", "type"])
def test_patterns_are_case_sensitive(key: str):
    patterns = {"match": "Head.*", "regex": "Head", "type": "mylinear"}
    raised_error(ConfigError, network(), **{key: patterns[key]})


# ------------------------------------------------------------------------------------------ type


def test_type_is_the_class_of_the_module_with_the_attribute():
    assert selected(network(), type="LayerNorm") == [f"blocks.{i}.norm.{p}" for i in (0, 1) for p in ("weight", "bias")]
    # Only the block's own parameters, not those of its submodules.
    assert selected(network(), type="WideBlock") == ["blocks.1.scale"]


def test_type_matches_base_classes():
    assert selected(network(), type="Block") == ["blocks.0.scale", "blocks.1.scale"]
    assert selected(network(), type="Linear") == [
        *(f"blocks.{i}.linear.{p}" for i in (0, 1) for p in ("weight", "bias")),
        "head.weight",
        "head.bias",
    ]
    assert selected(network(), type="MyLinear") == ["head.weight", "head.bias"]
    assert selected(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2)), type="_BatchNorm") == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    ]


def test_type_is_a_glob():
    assert selected(network(), type="*Block") == ["blocks.0.scale", "blocks.1.scale"]
    assert selected(network(), type="[WM]*") == ["blocks.1.scale", "head.weight", "head.bias"]


@pytest.mark.parametrize("pattern", ["Module", "object", "*Mod*"])
def test_type_does_not_match_nn_module_and_object(pattern: str):
    raised_error(ConfigError, network(), type=pattern)


def test_type_of_parameters_in_a_container_is_the_container():
    module = nn.Module()
    module.few = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    module.named = nn.ParameterDict({"a": torch.zeros(1)})
    assert selected(module, type="ParameterList") == ["few.0", "few.1"]
    assert selected(module, type="ParameterDict") == ["named.a"]


def test_type_matches_the_base_of_a_class_made_at_run_time():
    module = nn.Sequential(MyLinear(2, 2))
    module[0].__class__ = type("ShardedMyLinear", (MyLinear,), {})
    assert selected(module, type="MyLinear") == selected(module, type="Sharded*") == ["0.weight", "0.bias"]


def test_parametrization_has_the_type_of_the_parametrized_module():
    module = nn.Sequential(parametrizations.weight_norm(MyLinear(2, 3)), nn.LayerNorm(3))
    originals = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]
    assert selected(module, type="MyLinear") == selected(module, type="Linear") == ["0.bias", *originals]
    assert selected(module, match="0.param*") == originals
    local_names = {p.name: p.attributes[0].local_name for p in module_parameters(module)}
    assert local_names["0.parametrizations.weight.original0"] == "weight"
    alone = parametrizations.weight_norm(nn.Linear(2, 3))  # the parametrized module is the root
    assert selected(alone, type="Linear") == ["bias", *(name[2:] for name in originals)]


def test_parameters_of_a_parametrization_module_have_its_type():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return self.factor * weight

    module = nn.Sequential(nn.Linear(2, 3))
    parametrize.register_parametrization(module[0], "weight", Scaled())
    assert selected(module, type="Scaled") == ["0.parametrizations.weight.0.factor"]
    assert selected(module, type="Linear") == ["0.bias", "0.parametrizations.weight.original"]


def test_type_matches_in_a_copy_of_a_parametrized_module():
    module = copy.deepcopy(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3))))
    assert len(selected(module, type="Linear")) == 3


# ------------------------------------------------------------------------------------------ wrappers


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_parameter_names_have_no_wrapper_prefixes(prefix: str):
    module = nn.Module()
    module.add_module(prefix, nn.Sequential(MyLinear(1, 1)))
    module.get_submodule(prefix).add_module("inner", nn.Module())
    module.get_submodule(f"{prefix}.inner").add_module(prefix, nn.Linear(1, 1))
    assert [p.name for p in module_parameters(module)] == ["0.weight", "0.bias", "inner.weight", "inner.bias"]
    assert selected(module, match="inner.*") == ["inner.weight", "inner.bias"]
    assert selected(module, regex="^0") == selected(module, type="MyLinear") == ["0.weight", "0.bias"]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_type_of_a_parametrized_module_in_a_wrapper(prefix: str):
    module = nn.Module()
    module.add_module(prefix, parametrizations.weight_norm(nn.Linear(1, 1)))
    assert selected(module, type="Linear") == ["bias", *(f"parametrizations.weight.original{i}" for i in (0, 1))]


def test_compiled_module_has_the_original_names_and_types():
    module = torch.compile(network())
    assert [p.name for p in module_parameters(module)] == [name for name, _ in network().named_parameters()]
    assert selected(module, type="MyLinear") == ["head.weight", "head.bias"]


# ------------------------------------------------------------------------------------------ several keys


def test_parameter_is_selected_only_if_all_keys_match():
    assert selected(network(), match="blocks.*", regex="bias$", type="Linear") == [
        "blocks.0.linear.bias",
        "blocks.1.linear.bias",
    ]
    assert selected(network(), match="*.weight", type="LayerNorm") == ["blocks.0.norm.weight", "blocks.1.norm.weight"]


@pytest.mark.parametrize(
    ("key", "patterns"),
    [
        ("match", ["head.weight", "*.scale"]),
        ("regex", ["head.w", "scale"]),
        ("type", ["*Block"]),
    ],
)
def test_one_of_several_patterns_of_a_key_must_match(key: str, patterns: list[str]):
    rest = [] if key == "type" else ["head.weight"]
    assert selected(network(), **{key: patterns}) == ["blocks.0.scale", "blocks.1.scale", *rest]
    assert selected(network(), **{key: tuple(patterns)}) == selected(network(), **{key: patterns})


def test_keys_with_several_patterns_select_their_intersection():
    assert selected(network(), match=["head.*", "blocks.0.*"], type=["LayerNorm", "MyLinear"]) == [
        "blocks.0.norm.weight",
        "blocks.0.norm.bias",
        "head.weight",
        "head.bias",
    ]


def tied_network() -> nn.Module:
    module = nn.Module()
    module.embed = nn.Embedding(3, 2)
    module.out = nn.Linear(2, 3)
    module.out.weight = module.embed.weight
    return module


def test_shared_parameter_is_selected_by_each_of_its_names_and_types():
    for patterns in (
        {"match": "embed.weight"},
        {"match": "out.weight"},
        {"regex": "^out.w"},
        {"type": "Embedding"},
        {"type": "Linear", "regex": "weight"},
    ):
        assert selected(tied_network(), **patterns) == ["embed.weight"]
    assert selected(tied_network(), type="Linear") == ["embed.weight", "out.bias"]
    assert [p.name for p in module_parameters(tied_network())] == ["embed.weight", "out.bias"]


def test_all_keys_must_match_the_same_attribute_of_a_shared_parameter():
    error = raised_error(ConfigError, tied_network(), match="embed.*", type="Linear")
    assert str(error) == "no parameter of Module is selected by match 'embed.*', type 'Linear' together"


def test_shared_module_is_selected_by_each_of_its_names():
    shared = nn.Linear(1, 1)
    module = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    for pattern in ("a.*", "b.0.*"):
        assert selected(module, match=pattern) == ["a.weight", "a.bias"]


# ------------------------------------------------------------------------------------------ errors


def test_pattern_without_a_match_is_rejected_with_near_matches():
    error = raised_error(ConfigError, network()["head"], match=["weight", "wieght"])
    assert loc_text(error.loc) == "match"
    assert str(error) == ("match: 'wieght' matches no parameter of MyLinear; did you mean 'weight'?")
    error = raised_error(ConfigError, network(), type="MyLinaer")
    assert loc_text(error.loc) == "type"
    assert str(error) == ("type: 'MyLinaer' matches no parameter of ModuleDict; did you mean 'MyLinear', 'Linear'?")


def test_error_lists_the_known_names_without_near_matches():
    error = raised_error(ConfigError, nn.Linear(1, 1), regex="zzz")
    assert (loc_text(error.loc), error.message) == (
        "regex",
        "'zzz' matches no parameter of Linear; its parameters are weight, bias",
    )
    error = raised_error(ConfigError, network(), type="zzz")
    assert error.message == (
        "'zzz' matches no parameter of ModuleDict; the classes that have parameters are Block, Linear, LayerNorm, "
        "WideBlock, MyLinear"
    )


def test_pattern_that_matches_only_frozen_parameters_is_accepted():
    module = network()
    module["head"].requires_grad_(False)
    assert selected(module, match="head.*") == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("match", 5, ConfigTypeError, "must be a glob, or a list of them, got 5"),
        ("match", "", ConfigTypeError, "must be a glob, or a list of them, got ''"),
        ("match", None, ConfigTypeError, "must be a glob, or a list of them, got None"),
        ("regex", [], ConfigTypeError, "must be a regular expression, or a list of them, got []"),
        (
            "regex",
            "a(",
            ConfigError,
            "'a(' is not a valid regular expression: missing ), unterminated subpattern at position 1",
        ),
        (
            "regex",
            "a{99999999999999999999}",
            ConfigError,
            "'a{99999999999999999999}' is not a valid regular expression: ",
        ),
        ("regex", "(?<=a*)b", ConfigError, "'(?<=a*)b' is not a valid regular expression: "),
        (
            "type",
            {"Linear": 1},
            ConfigTypeError,
            "must be a glob over class names, or a list of them, got {'Linear': 1}",
        ),
        ("type", nn.Linear, ConfigTypeError, "must be a glob over class names, or a list of them, got <class "),
    ],
)
def test_invalid_patterns_are_rejected(key: str, value: Any, error: type[OptplugError], message: str):
    with pytest.raises(error) as caught:
        selector_of({key: value, "lr": 1})
    assert type(caught.value) is error
    assert loc_text(caught.value.loc) == f"entry.{key}"
    assert str(caught.value).startswith(f"entry.{key}: {message}")


def test_error_has_the_location_of_the_invalid_pattern():
    with pytest.raises(ConfigErrors) as caught:
        selector_of({"type": ["Linear", 1, ""], "regex": ["a", "("]})
    assert list(map(str, caught.value.errors)) == [
        "entry.regex[1]: '(' is not a valid regular expression: missing ), unterminated subpattern at position 0",
        "entry.type[1]: must be a glob over class names, got 1",
        "entry.type[2]: must be a glob over class names, got ''",
    ]


def test_errors_of_several_keys_are_collected():
    with pytest.raises(ConfigErrors) as caught:
        selector_of({"type": [], "match": "a", "regex": "("})
    assert [loc_text(error.loc) for error in caught.value.errors] == ["entry.regex", "entry.type"]


def test_selector_ignores_other_keys_and_round_trips():
    selector = selector_of({"match": "a", "type": ["b", "c"], "lr": 1})
    assert selector == Selector(match=("a",), type=("b", "c"))
    assert selector.to_dict() == {"match": ["a"], "type": ["b", "c"]}
    assert selector_of(selector.to_dict()) == selector
    assert str(selector) == "a b c"
    assert selector_of({"lr": 1}) == Selector()


# ------------------------------------------------------------------------------------------ helpers


def test_short_list_limits_the_number_of_words():
    assert short_list(list("abcd"), limit=2) == "a, b and 2 more"
    assert short_list(list("ab"), limit=2) == "a, b"
    assert short_list([]) == "none"


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
def test_compile_numbered_glob_captures_the_numbers(glob: str, name: str, numbers: tuple[str, ...] | None):
    found = compile_numbered_glob(glob).match(name)
    assert (found and found.groups()) == numbers
    assert isinstance(compile_numbered_glob(glob), re.Pattern)
