"""Selection of parameters by their number of dimensions, and of the rest that no other optimizer selects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import optplug
from optplug.config.build import build_optimizer, check_parameter_partition, frozen_to_hold, parse_and_check
from optplug.config.param_groups import group_table
from optplug.errors import ConfigError, ConfigErrors, OptplugError, loc_text

SGD = {"name": "sgd", "lr": 0.1}
REST = {"name": "adam", "rest": True}


def network() -> nn.Module:
    return nn.ModuleDict(
        {"conv": nn.Conv1d(2, 3, 1), "body": nn.Linear(3, 3), "scale": nn.ParameterList([torch.ones(())])}
    )


def members(entries: Any, module: nn.Module | None = None, **options: Any) -> list[list[str]]:
    """The names of the parameters that each optimizer of `combine` gets."""
    module = module or network()
    config = parse_and_check({"combine": entries}, **options)
    check_parameter_partition(module, config)
    optimizer: Any = build_optimizer(module, config.setup, hold_frozen=frozen_to_hold(module, config))
    names = {p: name for name, p in module.named_parameters()}
    return [[names[p] for group in member.param_groups for p in group["params"]] for member in optimizer.members]


def table_of(param_groups: Any, module: nn.Module) -> dict[str, tuple[str, ...]]:
    config = parse_and_check(SGD, param_groups=param_groups)
    return {row.group: row.parameters for row in group_table(build_optimizer(module, config.setup), module)}


def message_of(error: type[OptplugError], entries: Any, module: nn.Module | None = None) -> str:
    with pytest.raises(error) as caught:
        members(entries, module)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ndim", "names"),
    [
        (2, ["body.weight"]),
        ("2", ["body.weight"]),
        ([2, 3], ["conv.weight", "body.weight"]),
        (0, ["scale.0"]),
    ],
    ids=str,
)
def test_ndim_selects_and_rest_takes_all_others(ndim: Any, names: list[str]):
    selected, rest = members([{**SGD, "ndim": ndim}, REST])
    assert selected == names
    assert rest == [name for name, _ in network().named_parameters() if name not in names]


def test_order_of_the_entry_with_rest_does_not_matter():
    rest, selected = members([REST, {**SGD, "ndim": 2}])
    assert (selected, len(rest)) == (["body.weight"], 4)


def test_ndim_is_a_condition_beside_other_keys():
    assert members([{**SGD, "ndim": [1, 2], "match": "body.*", "type": "Linear"}, REST])[0] == [
        "body.weight",
        "body.bias",
    ]
    assert members([{**SGD, "ndim": 1, "match": "body.*"}, REST])[0] == ["body.bias"]


def test_rest_with_several_other_optimizers():
    selected = members([{**SGD, "ndim": 2}, {**SGD, "match": "conv.*"}, REST])
    assert selected == [["body.weight"], ["conv.weight", "conv.bias"], ["body.bias", "scale.0"]]


def test_rest_holds_frozen_parameters():
    module = network()
    module["body"].bias.requires_grad_(False)
    assert "body.bias" in members([{**SGD, "ndim": 2}, REST], module)[1]


def test_rest_in_a_list_of_optimizers():
    made = optplug.create_optimizer_and_scheduler(network(), [{**SGD, "match": "conv.*"}, REST])
    assert [len(optimizer.param_groups[0]["params"]) for optimizer, _ in made] == [2, 3]


def test_rest_of_a_single_entry_is_the_whole_module():
    assert len(members([REST])[0]) == 5


def test_group_rule_selects_by_ndim():
    table = table_of([{"ndim": 1, "weight_decay": 0.0}, {"ndim": [2, 3], "type": "Conv*", "lr_mult": 2}], network())
    assert table == {
        "Conv* ndim 2 ndim 3": ("conv.weight",),
        "ndim 1": ("conv.bias", "body.bias"),
        "default": ("body.weight", "scale.0"),
    }


def test_selection_by_shape_round_trips():
    config = parse_and_check({"combine": [{**SGD, "ndim": [2, 3], "match": "*"}, REST]})
    given = config.to_dict()
    assert given["optimizer"]["combine"] == [
        {**SGD, "match": ["*"], "ndim": [2, 3]},
        {"name": "adam", "rest": True},
    ]
    assert parse_and_check(**given) == config


def test_one_of_several_numbers_of_dimensions_is_enough():
    assert members([{**SGD, "ndim": [2, 7]}, REST])[0] == members([{**SGD, "ndim": 2}, REST])[0]
    message = message_of(ConfigError, [{**SGD, "ndim": [7, 8]}, REST])
    assert message.startswith("optimizer.combine[0].ndim: 7 matches no parameter of ModuleDict; ")


def test_ndim_without_a_match_names_the_dimensions_of_the_model():
    message = message_of(ConfigError, [{**SGD, "ndim": 7}, REST])
    assert message == (
        "optimizer.combine[0].ndim: 7 matches no parameter of ModuleDict; the numbers of dimensions of its "
        "parameters are 0, 1, 2, 3"
    )


def test_rest_without_parameters_raises():
    assert message_of(ConfigError, [{**SGD, "match": "*"}, REST]) == (
        "optimizer.combine[1].rest: no parameter of ModuleDict is left: the other optimizers select all of them"
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{**SGD, "ndim": 2}, REST, REST], "[2].rest: optimizer.combine[1] takes the rest already"),
        (
            [{**SGD, "ndim": 2}, {**REST, "match": "b*"}],
            "[1].rest: selects all parameters that no other optimizer selects: omit match, or rest",
        ),
        ([{**SGD, "ndim": 2}, {**REST, "rest": 1}], "[1].rest: must be True or False, got 1 (int)"),
        (
            [{**SGD, "ndim": 2}, {**REST, "rest": False}],
            "[1]: needs one of match, regex, type, ndim, rest to select its parameters",
        ),
        ([{**SGD, "ndim": -1}, REST], "[0].ndim: must be at least 0 and at most 99, got -1"),
        ([{**SGD, "ndim": [2, True]}, REST], "[0].ndim[1]: must be a whole number, got True"),
        ([{**SGD, "ndim": []}, REST], "[0].ndim: must be a number of dimensions, or a list of them, got []"),
    ],
    ids=str,
)
def test_invalid_selection_raises(entries: Any, message: str):
    with pytest.raises(OptplugError) as caught:
        parse_and_check({"combine": entries})
    errors = [f"{loc_text(error.loc)}: {error.message}" for error in caught.value.errors]
    assert f"optimizer.combine{message}" in errors


def test_lazy_parameter_cannot_be_selected_by_ndim():
    lazy = nn.ModuleDict({"lazy": nn.LazyLinear(2), "body": nn.Linear(2, 2)})
    message = message_of((ConfigError, ConfigErrors), [{**SGD, "ndim": 2}, REST], lazy)
    assert "lazy.weight has no shape yet: call the model once before its optimizer is built" in message
    assert members([{**SGD, "match": "lazy.*"}, REST], lazy) == [
        ["lazy.weight", "lazy.bias"],
        ["body.weight", "body.bias"],
    ]


class FullyShardedDataParallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.zeros(12))


def test_parameters_that_fsdp_has_flattened_cannot_be_selected_by_ndim():
    module = nn.ModuleDict({"wrapped": FullyShardedDataParallel(), "body": nn.Linear(2, 2)})
    message = message_of(ConfigError, [{**SGD, "ndim": 2}, REST], module)
    assert "use FSDP2 (ModelParallelStrategy)" in message
