"""Parsing of `param_groups`: accepted forms and errors."""

from __future__ import annotations

from typing import Any

import pytest

from optplug.config.build import parse_and_check
from optplug.config.model import GroupRule
from optplug.config.param_selection import Selector
from optplug.errors import ConfigError, ConfigTypeError, HyperparameterError, OptplugError

GLOB_TYPE_MESSAGE = "a glob, or a list of them"
LAYER_DECAY_EXAMPLE = "{preset: layer_decay, decay: 0.75, layers: ['embed.*', 'blocks.{}.*', 'head.*']}"
ADAM_GROUP_KEYS = (
    "it has agc, amsgrad, betas, capturable, cautious, clip_norm, clip_value, decoupled_weight_decay and 7 more "
    "(see optplug info adam), and in an entry of param_groups match, regex, type, ndim, name, lr_mult, wd_mult, "
    "scheduler"
)


def test_match_accepts_one_glob_or_a_list():
    single, multiple = parse_and_check(
        "adam", param_groups=[{"match": "a"}, {"match": ["b", "c"], "name": "x", "lr": 1}]
    ).param_groups
    assert single == GroupRule(Selector(match=("a",)), "a", {})
    assert multiple == GroupRule(Selector(match=("b", "c")), "x", {"lr": 1})
    assert parse_and_check("adam", param_groups=[{"match": ["b", "c"]}]).param_groups[0].name == "b c"


def test_param_groups_accepts_tuple_empty_list_and_none():
    assert parse_and_check("adam", param_groups=({"match": "a"},)) == parse_and_check(
        "adam", param_groups=[{"match": "a"}]
    )
    assert (
        parse_and_check("adam", param_groups=[])
        == parse_and_check("adam", param_groups=None)
        == parse_and_check("adam")
    )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (5, ConfigTypeError, ": must be the name of a preset, or a list of group rules and presets, got 5"),
        (
            {"match": "*"},
            ConfigTypeError,
            ": must be the name of a preset, or a list of group rules and presets, got {'match': '*'}; write a list: "
            "[{'match': '*'}]",
        ),
        (
            [5],
            ConfigTypeError,
            "[0]: must be a mapping such as {match: '*.bias', weight_decay: 0.0}, or the name of a preset, got 5",
        ),
        ([{"lr": 1}], ConfigError, "[0]: needs one of match, regex, type, ndim to select parameters; it has lr"),
        ([{"match": 5}], ConfigTypeError, f"[0].match: must be {GLOB_TYPE_MESSAGE}, got 5"),
        ([{"match": []}], ConfigTypeError, f"[0].match: must be {GLOB_TYPE_MESSAGE}, got []"),
        ([{"match": ["a", 1]}], ConfigTypeError, "[0].match[1]: must be a glob, got 1"),
        ([{"match": ""}], ConfigTypeError, f"[0].match: must be {GLOB_TYPE_MESSAGE}, got ''"),
        ([{"type": 5}], ConfigTypeError, "[0].type: must be a glob over class names, or a list of them, got 5"),
        ([{"regex": 5}], ConfigTypeError, "[0].regex: must be a regular expression, or a list of them, got 5"),
        (
            [{"regex": ["ok", "("]}],
            ConfigError,
            "[0].regex[1]: '(' is not a valid regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            [{"match": "*", "lr": 1, "rest": True}],
            ConfigError,
            "[0].rest: a rule has no rest: parameters that no rule selects have the options of the optimizer",
        ),
        (
            [{"rest": True}],
            ConfigError,
            "[0].rest: a rule has no rest: parameters that no rule selects have the options of the optimizer",
        ),
        ([{"match": "*", "name": None}], ConfigTypeError, "[0].name: must be a non-empty string, got None"),
        (
            [{"match": "a"}, {"match": "*", "foo": 0}],
            ConfigError,
            f"[1].foo: adam has no option 'foo'; {ADAM_GROUP_KEYS}",
        ),
        (
            [{"match": "*", "weigth_decay": 0}],
            ConfigError,
            "[0].weigth_decay: adam has no option 'weigth_decay'; did you mean 'weight_decay', "
            "'decoupled_weight_decay'?",
        ),
        (
            [{"match": "*", "lr_mul": 2}],
            ConfigError,
            "[0].lr_mul: adam has no option 'lr_mul'; did you mean 'lr_mult', 'wd_mult'?",
        ),
        (
            [{"match": "*", "engine": "loop"}],
            ConfigError,
            "[0].engine: engine applies to the whole optimizer: set it in optimizer, not in a group",
        ),
        ([{"match": "*", "betas": [0.9]}], HyperparameterError, "[0].betas: Adam: betas must be 2 numbers, got (0.9,)"),
        (
            [{"match": "a", "name": "x"}, {"match": "b", "name": "x"}],
            ConfigError,
            ": entries 0, 1 have the same name 'x' (the default is the pattern): give each its own name",
        ),
        (
            [{"match": "*", "lr": 1, "lr_mult": 2}],
            ConfigError,
            "[0].lr_mult: multiplies lr, which this entry sets too: give only one of them",
        ),
        (
            [{"match": "*", "weight_decay": 1, "wd_mult": 2}],
            ConfigError,
            "[0].wd_mult: multiplies weight_decay, which this entry sets too: give only one of them",
        ),
        ([{"match": "*", "lr_mult": -1}], ConfigError, "[0].lr_mult: must be at least 0 and finite, got -1"),
        ([{"match": "*", "wd_mult": True}], ConfigTypeError, "[0].wd_mult: must be a number, got True"),
        (
            ["no_dcay"],
            ConfigError,
            "[0]: there is no preset 'no_dcay'; did you mean 'no_decay'?",
        ),
        (
            ["*.bias"],
            ConfigError,
            "[0]: there is no preset '*.bias'; write a glob in a mapping: {match: '*.bias', ...}",
        ),
        (["foo"], ConfigError, "[0]: there is no preset 'foo'; the presets are no_decay, layer_decay"),
        (
            [{"preset": "no_dcay"}],
            ConfigError,
            "[0].preset: there is no preset 'no_dcay'; did you mean 'no_decay'?",
        ),
        ([{"preset": 5}], ConfigTypeError, "[0].preset: must be the name of a preset, got 5"),
        (
            [{"preset": "no_decay", "off": 1}],
            ConfigError,
            "[0].off: preset no_decay has no key 'off'; did you mean 'of'?",
        ),
        (
            [{"preset": "no_decay", "of": "norm"}],
            ConfigError,
            "[0].of: must be one of norms, biases, embeddings, got 'norm'; did you mean 'norms'?",
        ),
        (
            [{"preset": "no_decay", "of": []}],
            ConfigTypeError,
            "[0].of: must be one of norms, biases, embeddings, or a list of them, got []",
        ),
        (
            [{"preset": "layer_decay", "layers": ["*"]}],
            ConfigError,
            f"[0]: layer_decay needs decay, for example {LAYER_DECAY_EXAMPLE}",
        ),
        (
            [{"preset": "layer_decay", "decay": 0.5}],
            ConfigError,
            f"[0]: layer_decay needs layers, for example {LAYER_DECAY_EXAMPLE}",
        ),
        (
            [{"preset": "layer_decay", "decay": 2, "layers": ["*"]}],
            ConfigError,
            "[0].decay: must be above 0 and at most 1, got 2",
        ),
        (
            [{"preset": "layer_decay", "decay": "x", "layers": ["*"]}],
            ConfigTypeError,
            "[0].decay: must be a number, got 'x'",
        ),
        (
            [{"preset": "layer_decay", "decay": 0.5, "layers": "*"}],
            ConfigTypeError,
            "[0].layers: must be a list of globs from input to output, got '*'",
        ),
    ],
    ids=str,
)
def test_invalid_param_groups_raise(given: Any, error: type[OptplugError], message: str, error_message: Any):
    assert error_message(error, "adam", param_groups=given) == f"param_groups{message}"
    # The messages are the same for an entry of a list and of combine.
    entry = {"name": "adam", "match": "*", "param_groups": given}
    assert error_message(error, [entry]) == f"optimizer[0].param_groups{message}"
    assert error_message(error, {"combine": [entry]}) == f"optimizer.combine[0].param_groups{message}"


@pytest.mark.parametrize("given", ["layer_decay", ["layer_decay"], [{"preset": "layer_decay"}]], ids=str)
def test_each_missing_key_of_a_preset_is_reported(given: Any, collected_errors: Any):
    loc = "param_groups" if isinstance(given, str) else "param_groups[0]"
    assert list(map(str, collected_errors("adam", param_groups=given))) == [
        f"{loc}: layer_decay needs decay, for example {LAYER_DECAY_EXAMPLE}",
        f"{loc}: layer_decay needs layers, for example {LAYER_DECAY_EXAMPLE}",
    ]


def test_misspelled_selector_is_reported_once(error_message: Any):
    message = error_message(ConfigError, "adam", param_groups=[{"mach": "*", "lr": 1}])
    assert message == (
        "param_groups[0].mach: needs one of match, regex, type, ndim to select parameters; it has mach, lr; did you "
        "mean 'match' instead of 'mach'?"
    )


def test_wd_mult_without_weight_decay_raises(error_message: Any):
    message = error_message(ConfigError, "rprop", param_groups=[{"match": "*", "wd_mult": 2}])
    assert message == "param_groups[0].wd_mult: rprop has no weight_decay to multiply"
