"""The JSON Schema of a configuration: validity, completion data, and agreement with `parse_and_check`."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optplug
from optplug.config.build import parse_and_check
from optplug.config.form import PRESETS
from optplug.config.json_schema import json_schema
from optplug.errors import OptplugError
from optplug.optim.ranges import COMMON_RANGES, above_zero, at_least, unit_interval
from optplug.registry import Plugin, QuarantinedPlugin, Registration, registry
from optplug.registry.specs import OptimizerSpec, SchedulerSpec
from support import first_party, only_first_party

with only_first_party():
    SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CHECKED_KEYS = ("optimizer", "scheduler", "param_groups")

pytestmark = pytest.mark.usefixtures("without_adapters")

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}
LAYERS = {"preset": "layer_decay", "decay": 0.75, "layers": ["embed.*", "blocks.{}.*", "*"]}


def as_yaml_reads(value: Any) -> Any:
    """The value with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: as_yaml_reads(item) for key, item in value.items()}
    return [as_yaml_reads(item) for item in value] if isinstance(value, (list, tuple)) else value


def schema_errors(config: Any, schema: Any = None) -> list[str]:
    validator = VALIDATOR if schema is None else jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(config)]


def check(config: dict[str, Any]) -> None:
    parse_and_check(**{key: config[key] for key in CHECKED_KEYS if key in config})


def declared_cases(kind: str) -> Iterator[dict[str, Any]]:
    """The `cases` of the first-party classes, as configurations."""
    for name in first_party(kind):
        for case in registry.get(kind, name).cases:
            yield {"name": name, **as_yaml_reads(case)}


def test_schema_is_valid_serializable_and_deterministic():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.dumps(SCHEMA, allow_nan=False) == json.dumps(json_schema(), allow_nan=False)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def references(node: Any) -> Iterator[str]:
    """All `$ref` in a schema."""
    if isinstance(node, dict):
        yield from [node["$ref"]] if "$ref" in node else []
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_references_resolve_and_every_definition_is_used():
    found = set(references(SCHEMA))
    for reference in found:
        target: Any = SCHEMA
        for key in reference.removeprefix("#/").split("/"):
            target = target[key]
    used = {reference.split("/")[2] for reference in found}
    assert used == set(SCHEMA["$defs"])


def test_json_schema_does_not_import_lightning():
    program = (
        "import sys, optplug.config.json_schema\noptplug.schema.json_schema()\n"
        "print(sorted({'lightning', 'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True)
    assert ran.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------ accepted configurations


@pytest.mark.parametrize("case", [*declared_cases("optimizer")], ids=str)
def test_declared_cases_of_optimizers_are_accepted(case: dict[str, Any]):
    name, arguments = case["name"], {key: value for key, value in case.items() if key != "name"}
    for optimizer in (case, {"name": name, "args": arguments}):
        assert schema_errors({"optimizer": optimizer}) == []
        check({"optimizer": optimizer})


@pytest.mark.parametrize("case", [*declared_cases("scheduler")], ids=str)
def test_declared_cases_of_schedulers_are_accepted(case: dict[str, Any]):
    name, arguments = case["name"], {key: value for key, value in case.items() if key != "name"}
    warmup = {"warmup": {"steps": 3}} if "warmup_steps" in arguments else {"warmup_steps": 3}
    forms = [{"name": name, "args": arguments, **warmup}]
    forms += [case] if "mode" not in arguments else []
    for scheduler in forms:
        assert schema_errors({"optimizer": "adam", "scheduler": scheduler}) == []
        check({"optimizer": "adam", "scheduler": scheduler})


SGD = {"name": "sgd", "lr": 0.1, "match": "a.*"}
ADAM = {"name": "adam", "regex": ["^b"]}
VALID_CONFIGS = [
    {"optimizer": "adam"},
    {"optimizer": "Sparse-Adam"},
    {"optimizer": "S_G_D"},
    {"optimizer": "optplug-classic:adam"},
    {"optimizer": {"name": "OPTPLUG_CLASSIC:ADAMW", "lr": 1}},
    {"optimizer": {"name": "adam", "args": None}},
    {"optimizer": {"name": "adam", "lr": 0.1, "args": {"eps": 1e-6}}},
    {"optimizer": {"name": "adam", "betas": [0.8, 0.9], "engine": "loop", "state_dtype": "float32", "foreach": None}},
    {"optimizer": {"name": "adam", "lr": "module.lr", "weight_decay": "module.hparams.wd"}},
    {"optimizer": {"name": "adam", "betas": "module.betas"}},
    {"optimizer": {"name": "lbfgs", "max_eval": None, "line_search_fn": "strong_wolfe"}},
    {"scheduler": {"warmup_steps": 5}},
    {"optimizer": "adam", "scheduler": None, "param_groups": None},
    {"optimizer": "adam", "scheduler": "reduce_lr_on_plateau"},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "monitor": "x", "mode": "max", "min_lr": [0.1], "patience": 3}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "args": {"mode": "max"}, "frequency": 1, "interval": "epoch"}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "patience_unit": "steps", "on_nonfinite": "ignore"}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "patience_unit": None, "on_nonfinite": None, "monitor": "lr_loss"}},
    {"optimizer": "adam", "scheduler": {**COSINE, "patience_unit": None, "on_nonfinite": None}},
    {"optimizer": "adam", "scheduler": PLATEAU, "monitor": "lr"},
    {"optimizer": "adam", "scheduler": {**COSINE, "interval": "step", "frequency": 2, "warmup_steps": 0}},
    {"optimizer": "adam", "scheduler": {**COSINE, "T_max": "auto", "warmup": None, "monitor": None}},
    {"optimizer": "adam", "scheduler": {**COSINE, "warmup": {"steps": 5, "start_factor": 0.5}}},
    {"optimizer": "adam", "scheduler": {**COSINE, "warmup": {"epochs": 0.5, "start_factor": None}}},
    {"optimizer": "adam", "scheduler": {"warmup": {"ratio": 0.1}}},
    {"optimizer": "adam", "scheduler": {"name": "Cosine-Annealing-LR", "args": {"T_max": 10}, "eta_min": 0}},
    {"optimizer": "adam", "scheduler": {"name": "lambda_lr", "lr_lambda": "0.95 ** epoch"}},
    {"optimizer": "adam", "scheduler": {"name": "lambda_lr", "lr_lambda": 0.5}},
    {"optimizer": "adam", "scheduler": {"name": "lambda_lr", "lr_lambda": ["1 / (1 + epoch)"]}},
    {"optimizer": "adam", "scheduler": {"name": "multi_step_lr", "milestones": [3, 1]}},
    {"optimizer": "adam", "param_groups": "no_decay"},
    {"optimizer": "adam", "param_groups": []},
    {"optimizer": "adam", "param_groups": ["no_decay", {"preset": "no_decay", "of": "norms"}, LAYERS]},
    {"optimizer": "adam", "param_groups": [{"preset": "no_decay", "of": ["norms", "biases", "embeddings"]}]},
    {"optimizer": "adam", "param_groups": [{"match": ["a", "b"], "name": "x", "lr": 1, "wd_mult": 0}]},
    {"optimizer": "sgd", "param_groups": [{"regex": "^a", "type": "Linear", "lr_mult": 0.1, "momentum": 0.5}]},
    {"optimizer": {"name": "sgd"}, "param_groups": [{"match": "a", "lr": "module.lr", "nesterov": False}]},
    {"optimizer": [{**SGD, "param_groups": ["no_decay"], "scheduler": COSINE}, {**ADAM, "scheduler": None}]},
    {"optimizer": [{"name": "adam"}]},
    {"optimizer": {"combine": [SGD, {**ADAM, "param_groups": [{"match": "c", "amsgrad": True}]}]}, "scheduler": COSINE},
]


@pytest.mark.parametrize("config", VALID_CONFIGS, ids=json.dumps)
def test_valid_config_is_accepted_at_the_top_and_under_each_subcommand(config: dict[str, Any]):
    assert schema_errors(config) == []
    for subcommand in ("fit", "validate", "test", "predict"):
        assert schema_errors({subcommand: config}) == []
    check(config)


def test_keys_of_lightning_cli_and_of_the_callback_are_accepted():
    assert (
        schema_errors({"trainer": {"max_epochs": 3}, "model": {"name": "x"}, "seed_everything": True, "data": None})
        == []
    )
    assert schema_errors({"optimizer": None, "scheduler": None, "param_groups": None, "override": True}) == []
    for on_resume in ("keep", "override_hparams", "reset_scheduler", "reset_all"):
        assert schema_errors({"on_resume": on_resume}) == []


# ------------------------------------------------------------------------------------------ refused configurations

INVALID_OPTIMIZERS = [
    "adamm",
    "torch.optim.Adam",
    "optplug-schedules:adam",
    ":adam",
    "a dam",
    3,
    True,
    [],
    {},
    {"lr": 0.1},
    {"nam": "adam"},
    {"name": 3},
    {"name": None},
    {"name": "adamm"},
    {"class_path": "torch.optim.Adam"},
    {"class_path": "torch.optim.Adam", "init_args": {"lr": 1}},
    {"name": "adam", "class_path": "torch.optim.Adam"},
    {"name": "adam", "weigth_decay": 0.1},
    {"name": "adam", "params": []},
    {"name": "adam", "lr": "1e"},
    {"name": "adam", "lr": "model.lr"},
    {"name": "adam", "lr": -0.1},
    {"name": "adam", "lr": None},
    {"name": "adam", "lr": True},
    {"name": "adam", "lr": [0.1]},
    {"name": "sparse_adam", "eps": 0},
    {"name": "adam", "betas": [0.9]},
    {"name": "adam", "betas": [0.9, 0.99, 0.999]},
    {"name": "adam", "betas": [0.9, 1.0]},
    {"name": "adam", "betas": 0.9},
    {"name": "adam", "betas": ["module.beta", 0.9]},
    {"name": "rmsprop", "alpha": 1.5},
    {"name": "adam", "amsgrad": 1},
    {"name": "adam", "foreach": "yes"},
    {"name": "adam", "engine": "fast"},
    {"name": "adam", "state_dtype": 32},
    {"name": "adam", "warmup_steps": 3},
    {"name": "adam", "args": "lr"},
    {"name": "adam", "args": {"weigth_decay": 0.1}},
    {"name": "adam", "args": {"lr": -1}},
    {"name": "adam", "lr": 0.1, "args": {"lr": 0.1}},
    {"name": "adam", "match": "a"},
    {"name": "adam", "scheduler": COSINE},
    {"name": "lbfgs", "max_iter": "many"},
    {"name": "lbfgs", "weight_decay": 0.1},
    ["adam"],
    [{**SGD, "match": ""}],
    [{**SGD, "match": []}],
    [SGD, {"name": "adam"}],
    [{**SGD, "scheduler": "cosine_annealing_lr"}],
    [{**SGD, "param_groups": [{"match": "a", "betas": [0.1, 0.2]}]}],
    {"combine": []},
    {"combine": SGD},
    {"combine": [SGD], "lr": 0.1},
    {"combine": [{**SGD, "scheduler": COSINE}]},
    {"combine": [{**SGD, "lr": -1}]},
]
INVALID_SCHEDULERS = [
    "cosine",
    "cosine_annealing_lr",
    5,
    [COSINE],
    {},
    {"T_max": 10},
    {"class_path": "torch.optim.lr_scheduler.StepLR"},
    {"name": "cosine_annealing_lr"},
    {"name": "cosine_annealing_lr", "t_max": 10},
    {"name": "cosine_annealing_lr", "args": {}},
    {**COSINE, "args": {"T_max": 10}},
    {**COSINE, "T_max": "ten"},
    {**COSINE, "T_max": [3]},
    {**COSINE, "eta_min": "auto"},
    {**COSINE, "eta_min": "module.lr"},
    {**COSINE, "last_epoch": 3},
    {**COSINE, "interval": "batch"},
    {**COSINE, "frequency": 0},
    {**COSINE, "frequency": 1.5},
    {**COSINE, "frequency": True},
    {**COSINE, "monitor": "val_loss"},
    {**COSINE, "patience_unit": "validations"},
    {**COSINE, "on_nonfinite": "bad"},
    {**COSINE, "warmup_steps": -1},
    {**COSINE, "warmup_steps": None},
    {**COSINE, "warmup_steps": 1.5},
    {**COSINE, "warmup": 1},
    {**COSINE, "warmup": 5.5},
    {**COSINE, "warmup": [5]},
    {**COSINE, "T_max": {"ratio": 1.5}},
    {**COSINE, "T_max": {"ratoi": 0.5}},
    {**COSINE, "T_max": {"steps": 5, "ratio": 0.5}},
    {**COSINE, "eta_min": {"ratio": 0.5}},
    {**COSINE, "warmup": {}},
    {**COSINE, "warmup": {"step": 5}},
    {**COSINE, "warmup": {"steps": 5, "epochs": 1}},
    {**COSINE, "warmup": {"ratio": 1.5}},
    {**COSINE, "warmup": {"epochs": "one"}},
    {**COSINE, "warmup": {"steps": 5, "start_factor": 0}},
    {**COSINE, "warmup_steps": 1, "warmup": {"steps": 1}},
    {"warmup_steps": 5, "T_max": 10},
    {"warmup_steps": 5, "patience_unit": "steps"},
    {"warmup_steps": 5, "on_nonfinite": "bad"},
    {**PLATEAU, "monitor": ""},
    {**PLATEAU, "monitor": "lr-Adam"},
    {**PLATEAU, "patience_unit": "epoch"},
    {**PLATEAU, "patience_unit": 1},
    {**PLATEAU, "on_nonfinite": "ignored"},
    {**PLATEAU, "args": {"on_nonfinite": "bad"}},
    {**PLATEAU, "mode": "low"},
    {**PLATEAU, "interval": "step"},
    {**PLATEAU, "frequency": 2},
    {**PLATEAU, "threshold_mode": "both"},
    {"name": "lambda_lr", "lr_lambda": {"epoch": 1}},
    {"name": "lambda_lr", "lr_lambda": [None]},
    {"name": "multi_step_lr", "milestones": "30"},
    {"name": "multi_step_lr", "milestones": [1.5]},
]
INVALID_PARAM_GROUPS = [
    5,
    "layer_decay",
    "no_decays",
    {"match": "*"},
    ["*.bias"],
    [3],
    [{"lr": 1}],
    [{"match": 5}],
    [{"match": []}],
    [{"match": ["a", 1]}],
    [{"match": "*", "name": None}],
    [{"match": "*", "wd": 0}],
    [{"match": "*", "momentum": 0.5}],
    [{"match": "*", "engine": "loop"}],
    [{"match": "*", "lr": "1e-3x"}],
    [{"match": "*", "betas": [0.9]}],
    [{"match": "*", "lr_mult": -1}],
    [{"match": "*", "lr_mult": "2,5"}],
    [{"match": "*", "lr_mult": 2, "lr": 0.1}],
    [{"preset": "no_decays"}],
    [{"preset": "no_decay", "of": "weights"}],
    [{"preset": "no_decay", "of": []}],
    [{"preset": "no_decay", "match": "*"}],
    [{"preset": "layer_decay", "decay": 0.5}],
    [{**LAYERS, "decay": 0}],
    [{**LAYERS, "layers": "*"}],
]
INVALID_CONFIGS = [
    *({"optimizer": value} for value in INVALID_OPTIMIZERS),
    *({"optimizer": "adam", "scheduler": value} for value in INVALID_SCHEDULERS),
    *({"optimizer": "adam", "param_groups": value} for value in INVALID_PARAM_GROUPS),
    {"optimizer": "sparse_adam", "param_groups": [{"match": "a", "wd_mult": 2}]},
    {"optimizer": [SGD], "scheduler": COSINE},
    {"optimizer": [SGD], "param_groups": "no_decay"},
    {"optimizer": {"combine": [SGD]}, "param_groups": "no_decay"},
]


@pytest.mark.parametrize("config", INVALID_CONFIGS, ids=json.dumps)
def test_invalid_config_is_rejected_by_schema_and_parse_and_check(config: dict[str, Any]):
    assert schema_errors(config) != []
    assert schema_errors({"fit": config}) != []
    with pytest.raises(OptplugError):
        check(config)


@pytest.mark.parametrize(
    "config",
    [
        {"lr_scheduler": COSINE},
        {"optimizers": ["adam"]},
        {"schedulers": None},
        {"override": "yes"},
        {"on_resume": "forget"},
        {"scheduler": PLATEAU, "monitor": "lr-Adam"},
    ],
    ids=json.dumps,
)
def test_invalid_top_level_key_or_value_is_rejected_with_a_description(config: dict[str, Any]):
    assert schema_errors({"optimizer": "adam", **config}) != []
    assert schema_errors({"fit": {"optimizer": "adam", **config}}) != []
    described = SCHEMA["$defs"]["configuration"]["properties"]
    assert all(described[key]["description"] for key in config)


def test_param_groups_without_optimizer_accept_the_options_of_every_optimizer():
    assert schema_errors({"param_groups": [{"match": "a", "momentum": 0.5, "amsgrad": True}]}) == []
    assert schema_errors({"param_groups": [{"match": "a", "momentun": 0.5}]}) != []


# ------------------------------------------------------------------------------------------ content


def test_registered_names_are_listed_for_completion():
    names = SCHEMA["$defs"]["optimizer.name"]["anyOf"][0]["enum"]
    assert names == optplug.list_optimizers()
    name_only = SCHEMA["$defs"]["scheduler"]["anyOf"][0]["enum"]
    # The others have a required argument.
    assert name_only == ["constant_lr", "inverse_sqrt", "linear_lr", "polynomial_lr", "reduce_lr_on_plateau"]
    assert SCHEMA["$defs"]["scheduler.name"]["anyOf"][0]["enum"] == optplug.list_schedulers()


def test_argument_has_type_default_description_and_range():
    arguments = SCHEMA["$defs"]["optimizer:adam.arguments"]["properties"]
    assert arguments["lr"] == {
        "description": r"learning rate :math:`\gamma \ge 0`.",
        "anyOf": [{"type": "number", "minimum": 0}, {"$ref": "#/$defs/number_text"}, {"$ref": "#/$defs/link"}],
        "default": 0.001,
    }
    assert arguments["betas"]["anyOf"][0] == {
        "type": "array",
        "items": {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"$ref": "#/$defs/number_text"}]},
        "minItems": 2,
        "maxItems": 2,
    }
    assert arguments["betas"]["default"] == [0.9, 0.999]
    assert arguments["engine"]["default"] == "auto"
    assert "default" not in SCHEMA["$defs"]["scheduler:cosine_annealing_lr.arguments"]["properties"]["T_max"]


def test_keys_of_a_metric_scheduler_are_listed_and_described():
    of_plateau = {}
    for part in SCHEMA["$defs"]["scheduler:reduce_lr_on_plateau"]["allOf"]:
        of_plateau |= SCHEMA["$defs"][part["$ref"].removeprefix("#/$defs/")]["properties"]
    assert of_plateau["patience_unit"]["enum"] == ["validations", "epochs", "steps", None]
    assert of_plateau["on_nonfinite"]["enum"] == ["bad", "ignore", "raise", None]
    assert all(of_plateau[key]["description"] for key in ("monitor", "mode", "patience_unit", "on_nonfinite"))


def test_bounds_of_a_range_agree_with_the_range_and_ranges_are_hashable():
    made = [at_least(0, "x"), at_least(1, "x", whole=True), above_zero("x"), unit_interval("x"), *COMMON_RANGES]
    for range_ in made:
        kind = "integer" if range_.whole else "number"
        for value in (-1, -1e-9, 0, 1e-9, 0.5, 1, 1 + 1e-9, 2):
            if not (range_.whole and value != int(value)):
                allowed = jsonschema.Draft202012Validator({"type": kind, **range_.bounds}).is_valid(value)
                assert allowed == range_.holds(value), (range_, value)
        assert range_.bounds
        assert {range_: 1}[range_] == 1
    assert COMMON_RANGES[0] == copy.deepcopy(COMMON_RANGES[0])


def test_every_preset_is_in_the_schema():
    assert set(SCHEMA["$defs"]["preset"]["properties"]["preset"]["enum"]) == set(PRESETS)
    assert len(SCHEMA["$defs"]["preset"]["allOf"]) == len(PRESETS)


# ------------------------------------------------------------------------------------------ third-party classes


class Documented(torch.optim.SGD):
    """A third-party optimizer.

    Args:
        variant: name of the variant.
    """

    def __init__(
        self, params: Any, lr: float, variant: str = "plain", table: dict[str, int] | None = None, untyped=3
    ) -> None:
        super().__init__(params, lr=lr)


class AnyOptions:
    """An optimizer that accepts any option."""

    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None: ...

    step = zero_grad = add_param_group = state_dict = load_state_dict = lambda self: None


class WithLength(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer: Any, span: int, name: str = "x", last_epoch: int = -1) -> None: ...


@pytest.fixture
def third_party_schema(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The schema with third-party classes registered."""
    registry.names("optimizer")
    registrations = registry._discovered().registrations

    def register(kind: str, spec: Any, plugins: tuple[str, ...] = ("third-party",)) -> None:
        made = [Registration(spec, Plugin(plugin, plugin, "1")) for plugin in plugins]
        monkeypatch.setitem(registrations[kind], spec.name.replace("_", ""), made)

    register("optimizer", OptimizerSpec("documented", Documented))
    register("optimizer", OptimizerSpec("any_options", AnyOptions))
    register("optimizer", OptimizerSpec("ambiguous", Documented), ("one", "an-other"))
    register("optimizer", OptimizerSpec("unloadable", "missing.module:Missing"))
    register("scheduler", SchedulerSpec("with_length", WithLength, length="span"))
    register("scheduler", SchedulerSpec("constant", WithLength))
    register("scheduler", SchedulerSpec("mapping", WithLength))
    return json_schema()


def test_third_party_arguments_follow_their_annotations(third_party_schema: Any):
    arguments = third_party_schema["$defs"]["optimizer:documented.arguments"]["properties"]
    assert arguments["variant"] == {"description": "name of the variant.", "type": "string", "default": "plain"}
    assert arguments["lr"].pop("description")  # from the docstring of the base class, torch's SGD
    assert arguments["lr"] == {
        "anyOf": [{"type": "number"}, {"$ref": "#/$defs/number_text"}, {"$ref": "#/$defs/link"}]
    }  # the class declares no range
    assert arguments["untyped"] == {"default": 3}
    assert arguments["table"]["anyOf"] == [
        {"type": "object", "additionalProperties": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/number_text"}]}},
        {"type": "null"},
        {"$ref": "#/$defs/link"},
    ]
    assert schema_errors({"optimizer": {"name": "documented", "lr": -1, "variant": "other"}}, third_party_schema) == []
    assert schema_errors({"optimizer": {"name": "documented", "lr": 1, "varian": "other"}}, third_party_schema) != []
    assert schema_errors({"optimizer": "documented"}, third_party_schema) != []  # lr is required


def test_name_of_a_class_may_equal_that_of_another_definition(third_party_schema: Any):
    for scheduler in ({"name": "constant", "span": 3}, {"name": "mapping", "span": 3}, {"warmup_steps": 3}):
        assert schema_errors({"scheduler": scheduler}, third_party_schema) == []
    assert schema_errors({"scheduler": {"name": "constant", "warmup_steps": 3}}, third_party_schema) != []


def test_class_with_var_keyword_accepts_any_option(third_party_schema: Any):
    for options in ({"whatever": [1]}, {"args": {"whatever": [1]}}):
        assert schema_errors({"optimizer": {"name": "any_options", **options}}, third_party_schema) == []
        assert schema_errors({"optimizer": {"name": "any_options", "lr": "fast", **options}}, third_party_schema) != []
    assert (
        schema_errors({"optimizer": "any_options", "param_groups": [{"match": "a", "whatever": 3}]}, third_party_schema)
        == []
    )
    assert (
        schema_errors(
            {"optimizer": "any_options", "param_groups": [{"match": "a", "engine": "loop"}]}, third_party_schema
        )
        != []
    )


def test_ambiguous_name_needs_its_plugin(third_party_schema: Any):
    names = third_party_schema["$defs"]["optimizer.name"]["anyOf"][0]["enum"]
    assert {"one:ambiguous", "an-other:ambiguous"} <= set(names)
    for name in ("one:ambiguous", "an-other:ambiguous", "AnOther:Ambiguous"):
        assert schema_errors({"optimizer": {"name": name, "lr": 1}}, third_party_schema) == []
    assert schema_errors({"optimizer": {"name": "ambiguous", "lr": 1}}, third_party_schema) != []


def test_argument_named_like_a_key_goes_under_args_and_declared_length_accepts_auto(third_party_schema: Any):
    valid = {"name": "with_length", "span": "auto", "args": {"name": "y"}}
    assert schema_errors({"scheduler": valid}, third_party_schema) == []
    assert schema_errors({"scheduler": {**valid, "span": "long"}}, third_party_schema) != []
    assert schema_errors({"scheduler": {**valid, "args": {"name": 3}}}, third_party_schema) != []


def test_unloadable_class_is_left_out_and_listed_in_the_comment(
    third_party_schema: Any, monkeypatch: pytest.MonkeyPatch
):
    assert (
        "optimizer 'unloadable' of plugin third-party (third-party 1) could not be loaded"
        in third_party_schema["$comment"]
    )
    assert schema_errors({"optimizer": "unloadable"}, third_party_schema) != []
    broken = QuarantinedPlugin(Plugin("broken", "broken", "1"), "ValueError: no", "")
    monkeypatch.setattr(registry._discovered(), "quarantined", [broken])
    assert "plugin broken (broken 1) is quarantined: ValueError: no" in json_schema()["$comment"]
    assert "$comment" not in SCHEMA


# ------------------------------------------------------------------------------------------ adapters


def foreign_class(i: int) -> type:
    """A class with ten arguments, of which two have other defaults in other classes."""

    class Foreign(torch.optim.SGD):
        """An optimizer.

        Args:
            lr: the learning rate, described at length.
        """

        def __init__(
            self,
            params: Any,
            lr: float = 1 / (i % 20 + 1),
            betas: tuple[float, float] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 0.0,
            weight_decouple: bool = True,
            fixed_decay: bool = False,
            ams_bound: bool = False,
            foreach: bool | None = None,
            maximize: bool = False,
            period: int = i // 6,
        ) -> None:
            super().__init__(params, lr=lr)

    return Foreign


@pytest.fixture
def with_adapters(monkeypatch: pytest.MonkeyPatch, without_adapters: None) -> None:
    """Registers 300 classes of an adapter, and one whose package is not imported yet."""
    registry.names("optimizer")
    registrations = registry._discovered().registrations["optimizer"]
    specs = [OptimizerSpec(f"foreign_{i}", foreign_class(i), precedence=5) for i in range(300)]
    for spec in (*specs, OptimizerSpec("slow_import", "slow_package:Slow", precedence=5)):
        made = [Registration(spec, Plugin("collection", "collection", "1"))]
        monkeypatch.setitem(registrations, spec.name.replace("_", ""), made)


def test_schema_of_300_classes_of_adapters_is_small_and_as_strict(with_adapters: None):
    schema = json_schema()
    assert len(json.dumps(schema, separators=(",", ":"))) < 1_000_000
    valid = {"name": "foreign_7", "lr": 0.1, "args": {"betas": [0.8, 0.9]}}
    validator = jsonschema.Draft202012Validator(schema)
    groups = [{"match": "a", "eps": 0.1, "lr_mult": 2}]
    assert validator.is_valid({"optimizer": valid, "param_groups": groups})
    assert validator.is_valid({"optimizer": "Collection:Foreign-7"})
    for further in (
        {"lrr": 1},
        {"args": {"lrr": 1}},
        {"lr": "fast"},
        {"betas": [0.1]},
        {"args": {"lr": 1}},
        {"rest": 1},
    ):
        assert not validator.is_valid({"optimizer": {**valid, **further}}), further
    for further in ({"epss": 1}, {"eps": "small"}, {"lr": 1}, {"params": []}):
        assert not validator.is_valid({"optimizer": valid, "param_groups": [{**groups[0], **further}]}), further


def test_class_of_a_package_that_is_not_imported_is_known_by_name(with_adapters: None):
    schema = json_schema()
    assert schema_errors({"optimizer": {"name": "slow_import", "lr": 1, "args": {"x": 1}}}, schema) == []
    assert (
        schema_errors({"optimizer": "collection:slow_import", "param_groups": [{"match": "a", "x": 1}]}, schema) == []
    )
    assert schema_errors({"optimizer": {"name": "slow_import", "params": 1, "rest": 3}}, schema) != []
    assert schema_errors({"optimizer": "slow_imports"}, schema) != []
    assert schema_errors({"optimizer": {"name": "adam", "lrr": 1}}, schema) != []
    assert "could not be loaded from 'slow_package:Slow'" in json_schema("complete")["$comment"]


def test_schema_of_names_loads_no_class(with_adapters: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_loaded", {})
    schema = json_schema("names")
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not [each for each in registry._loaded if each.spec.kind == "optimizer"]
    assert schema["$defs"]["optimizer.name"]["anyOf"][0]["enum"] == optplug.list_optimizers()
    assert schema_errors({"optimizer": {"name": "adam", "lrr": 1}, "scheduler": "step_lr"}, schema) == []
    assert schema_errors({"optimizer": "adamm"}, schema) != []
    assert schema_errors({"optimizer": "adam", "scheduler": {"name": "step", "step_size": 1}}, schema) != []


# ------------------------------------------------------------------------------------------ parse_and_check

UNDETECTABLE = (
    r"whole number.*got -?\d+\.0(; write -?\d+)?$",
    r"(LR|ReduceLROnPlateau): \w+ must be (at least|finite)|Factor should be|LBFGS|min_lrs",  # without `ranges`
    r"is not a valid regular expression",
    r"Nesterov momentum requires",
    r"give it once$|^param_groups: two entries are named",
)
"""Messages of `parse_and_check` for errors that a JSON Schema cannot detect."""

UNDETECTABLE_CONFIGS = [
    {"optimizer": {"name": "adam", "lr": float("inf")}},
    {"optimizer": {"name": "adam", "engine": "numba", "foreach": True}},
    {"optimizer": {"name": "adam", "state_dtype": "int8"}},
    {"optimizer": {"name": "sgd", "nesterov": True}},
    {"optimizer": {"name": "lbfgs", "max_iter": 0}},
    {"optimizer": {"name": "lbfgs", "line_search_fn": "wolfe"}},
    {"optimizer": "adam", "scheduler": {**COSINE, "T_max": 0}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "factor": 1.5}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "min_lr": [0.1, 0.2]}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "mode": "min", "args": {"mode": "max"}}},
    {"optimizer": "adam", "scheduler": {"name": "lambda_lr", "lr_lambda": "import os"}},
    {"optimizer": "adam", "param_groups": [{"regex": "*"}]},
    {"optimizer": "adam", "param_groups": [{"match": "a", "name": "x"}, {"match": "b", "name": "x"}]},
    {"param_groups": "no_decay"},  # another file may contain the optimizer
]


@pytest.mark.parametrize("config", UNDETECTABLE_CONFIGS, ids=str)
def test_errors_that_a_schema_cannot_detect_are_left_to_parse_and_check(config: dict[str, Any]):
    assert schema_errors(config) == []
    with pytest.raises(OptplugError):
        check(config)


MUTATION_BASES: list[dict[str, Any]] = [
    {
        "optimizer": {"name": "adam", "lr": 1e-3, "betas": [0.9, 0.99], "args": {"eps": 1e-6}},
        "param_groups": ["no_decay"],
    },
    {
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "scheduler": {**COSINE, "interval": "step", "frequency": 2, "warmup": {"steps": 3}},
        "param_groups": [{"match": "*.bias", "weight_decay": 0.0}, {"regex": ["a", "b"], "name": "x", "lr_mult": 0.5}],
    },
    {"optimizer": {"name": "adamw"}, "scheduler": {**PLATEAU, "patience": 3, "monitor": "loss", "warmup_steps": 5}},
    {"optimizer": "sgd", "scheduler": {**PLATEAU, "patience_unit": "steps", "on_nonfinite": "raise", "mode": "min"}},
    {"optimizer": [{**SGD, "scheduler": COSINE}, {**ADAM, "param_groups": [LAYERS]}]},
    {"optimizer": {"combine": [SGD, ADAM]}, "scheduler": {"warmup": {"ratio": 0.1}}},
]
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
    "params",
    "engine",
    "class_path",
    "preset",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(-2, 2)
    | st.sampled_from(
        ["1e-3", "adam", "step", "min", "*", "torch.optim.SGD", "a:b", "auto", "module.lr", "no_decay", ""]
    )
    | st.sampled_from(["epochs", "epoch", "ignore", "lr-Adam"])
)
VALUES = SCALARS | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=2),
    max_leaves=5,
)


def paths_of(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in nested mappings and lists."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(inner for key, child in children for inner in paths_of(child, (*path, key)))]


@st.composite
def mutated(draw: Any) -> dict[str, Any]:
    """A valid configuration with one or two values dropped, renamed, replaced or added."""
    config = copy.deepcopy(draw(st.sampled_from(MUTATION_BASES)))
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        paths = [path for path in paths_of(config) if len(path) > 1]
        path = draw(st.sampled_from(paths or [("optimizer",)]))
        parent: Any = config
        for key in path[:-1]:
            parent = parent[key]
        value, action = draw(VALUES), draw(st.sampled_from(["replace", "replace", "drop", "rename", "add"]))
        if isinstance(parent, dict) and action != "replace":
            old = parent.pop(path[-1]) if action != "add" else value
            if action != "drop":
                parent[draw(st.sampled_from(WORDS))] = old
        else:
            parent[path[-1]] = value
    return config


@given(mutated())
@settings(max_examples=500)
@pytest.mark.filterwarnings("ignore:verbose does nothing:DeprecationWarning")
def test_schema_and_parse_and_check_agree_on_mutated_configs(config: dict[str, Any]):
    found = schema_errors(config)
    try:
        check(config)
    except OptplugError as error:
        messages = [str(each) for each in getattr(error, "errors", [error])]
        undetectable = all(any(re.search(pattern, each) for pattern in UNDETECTABLE) for each in messages)
        assert found or undetectable, messages
    else:
        # The schema refuses more: a fraction where the annotation is `int`, and a link where it is not a number.
        assert all(re.search(r"is not of type 'integer'|module\.lr", each) for each in found), found
