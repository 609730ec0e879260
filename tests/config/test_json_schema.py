"""The JSON Schema of a configuration: valid itself, and of one mind with `checked` as far as JSON Schema can say it."""

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
from optplug.config.build import checked
from optplug.config.json_schema import json_schema
from optplug.config.param_group_presets import PRESETS
from optplug.errors import OptplugError
from optplug.optim.ranges import COMMON, above_zero, at_least, unit_interval
from optplug.registry import Plugin, Quarantined, Registration, registry
from optplug.registry.specs import OptimizerSpec, SchedulerSpec

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
OWN = ("optimizer", "scheduler", "param_groups")

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}
LAYERS = {"preset": "layer_decay", "decay": 0.75, "layers": ["embed.*", "blocks.{}.*", "*"]}


def plain(value: Any) -> Any:
    """As YAML would read it: lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def refusals(config: Any, schema: Any = None) -> list[str]:
    validator = VALIDATOR if schema is None else jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(config)]


def check(config: dict[str, Any]) -> None:
    checked(**{key: config[key] for key in OWN if key in config})


def cases(kind: str) -> Iterator[dict[str, Any]]:
    for registration in registry.registrations(kind):
        if registration.plugin.distribution == "optplug":
            for case in registry.get(kind, registration.qualified).cases:
                yield {"name": registration.name, **plain(case)}


def test_the_schema_is_valid_and_plain_and_the_same_each_time():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.dumps(SCHEMA, allow_nan=False) == json.dumps(json_schema(), allow_nan=False)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["$ref"]] if "$ref" in node else []
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_every_reference_leads_somewhere_and_every_definition_is_used():
    found = set(references(SCHEMA))
    for reference in found:
        target: Any = SCHEMA
        for key in reference.removeprefix("#/").split("/"):
            target = target[key]
    used = {reference.split("/")[2] for reference in found}
    assert used == set(SCHEMA["$defs"])


def test_it_imports_no_lightning():
    program = (
        "import sys, optplug.config.json_schema\noptplug.schema.json_schema()\n"
        "print(sorted({'lightning', 'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True)
    assert ran.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------- what it takes


@pytest.mark.parametrize("case", [*cases("optimizer")], ids=str)
def test_every_case_of_an_optimizer_is_taken(case: dict[str, Any]):
    name, arguments = case["name"], {key: value for key, value in case.items() if key != "name"}
    for optimizer in (case, {"name": name, "args": arguments}):
        assert refusals({"optimizer": optimizer}) == []
        check({"optimizer": optimizer})


@pytest.mark.parametrize("case", [*cases("scheduler")], ids=str)
def test_every_case_of_a_scheduler_is_taken(case: dict[str, Any]):
    name, arguments = case["name"], {key: value for key, value in case.items() if key != "name"}
    taken = [{"name": name, "args": arguments, "warmup_steps": 3}]
    taken += [case] if "mode" not in arguments else []
    for scheduler in taken:
        assert refusals({"optimizer": "adam", "scheduler": scheduler}) == []
        check({"optimizer": "adam", "scheduler": scheduler})


SGD = {"name": "sgd", "lr": 0.1, "match": "a.*"}
ADAM = {"name": "adam", "regex": ["^b"]}
GOOD = [
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


@pytest.mark.parametrize("config", GOOD, ids=json.dumps)
def test_a_good_configuration_is_taken_at_the_top_and_under_each_subcommand(config: dict[str, Any]):
    assert refusals(config) == []
    for subcommand in ("fit", "validate", "test", "predict"):
        assert refusals({subcommand: config}) == []
    check(config)


def test_keys_that_are_not_ours_and_those_of_the_command_line_are_taken():
    assert refusals({"trainer": {"max_epochs": 3}, "model": {"name": "x"}, "seed_everything": True, "data": None}) == []
    assert refusals({"optimizer": None, "scheduler": None, "param_groups": None, "override": True}) == []
    for what in ("keep", "override_hparams", "reset_scheduler", "reset_all"):
        assert refusals({"on_resume": what}) == []


# --------------------------------------------------------------------------------------------- what it refuses

BAD_OPTIMIZERS = [
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
    {"name": "adam", "lr": "1e-3"},
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
BAD_SCHEDULERS = [
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
    {**COSINE, "T_max": "10"},
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
    {**COSINE, "warmup": 5},
    {**COSINE, "warmup": {}},
    {**COSINE, "warmup": {"step": 5}},
    {**COSINE, "warmup": {"steps": 5, "epochs": 1}},
    {**COSINE, "warmup": {"ratio": 1.5}},
    {**COSINE, "warmup": {"epochs": "1"}},
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
BAD_GROUPS = [
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
    [{"match": "*", "lr": "1e-3"}],
    [{"match": "*", "betas": [0.9]}],
    [{"match": "*", "lr_mult": -1}],
    [{"match": "*", "lr_mult": "2"}],
    [{"match": "*", "lr_mult": 2, "lr": 0.1}],
    [{"preset": "no_decays"}],
    [{"preset": "no_decay", "of": "weights"}],
    [{"preset": "no_decay", "of": []}],
    [{"preset": "no_decay", "match": "*"}],
    [{"preset": "layer_decay", "decay": 0.5}],
    [{**LAYERS, "decay": 0}],
    [{**LAYERS, "layers": "*"}],
]
BAD = [
    *({"optimizer": bad} for bad in BAD_OPTIMIZERS),
    *({"optimizer": "adam", "scheduler": bad} for bad in BAD_SCHEDULERS),
    *({"optimizer": "adam", "param_groups": bad} for bad in BAD_GROUPS),
    {"optimizer": "sparse_adam", "param_groups": [{"match": "a", "wd_mult": 2}]},
    {"optimizer": [SGD], "scheduler": COSINE},
    {"optimizer": [SGD], "param_groups": "no_decay"},
    {"optimizer": {"combine": [SGD]}, "param_groups": "no_decay"},
]


@pytest.mark.parametrize("config", BAD, ids=json.dumps)
def test_a_bad_configuration_is_refused_and_by_checked_too(config: dict[str, Any]):
    assert refusals(config) != []
    assert refusals({"fit": config}) != []
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
def test_a_wrong_key_or_value_beside_the_optimizer_is_refused(config: dict[str, Any]):
    assert refusals({"optimizer": "adam", **config}) != []
    assert refusals({"fit": {"optimizer": "adam", **config}}) != []
    described = SCHEMA["$defs"]["configuration"]["properties"]
    assert all(described[key]["description"] for key in config)


def test_groups_of_an_optimizer_of_another_file_may_have_the_options_of_any():
    assert refusals({"param_groups": [{"match": "a", "momentum": 0.5, "amsgrad": True}]}) == []
    assert refusals({"param_groups": [{"match": "a", "momentun": 0.5}]}) != []


# ------------------------------------------------------------------------------------------------ what it tells


def test_names_are_listed_for_completion():
    names = SCHEMA["$defs"]["optimizer.mapping"]["properties"]["name"]["anyOf"][0]["enum"]
    assert names == optplug.list_optimizers()
    alone = SCHEMA["$defs"]["scheduler"]["anyOf"][0]["enum"]
    assert alone == ["reduce_lr_on_plateau"]  # the others need an argument
    assert SCHEMA["$defs"]["scheduler.mapping"]["properties"]["name"]["anyOf"][0]["enum"] == optplug.list_schedulers()


def test_an_argument_has_its_type_default_words_and_range():
    arguments = SCHEMA["$defs"]["optimizer:adam.arguments"]["properties"]
    assert arguments["lr"] == {
        "description": "learning rate γ ≥ 0.",  # noqa: RUF001
        "anyOf": [{"type": "number", "minimum": 0}, {"$ref": "#/$defs/link"}],
        "default": 0.001,
    }
    assert arguments["betas"]["anyOf"][0] == {
        "type": "array",
        "items": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        "minItems": 2,
        "maxItems": 2,
    }
    assert arguments["betas"]["default"] == [0.9, 0.999]
    assert arguments["engine"]["default"] == "auto"
    assert "default" not in SCHEMA["$defs"]["scheduler:cosine_annealing_lr.arguments"]["properties"]["T_max"]


def test_how_a_metric_is_heard_is_offered_and_described():
    of_plateau = SCHEMA["$defs"]["scheduler:reduce_lr_on_plateau"]["properties"]
    assert of_plateau["patience_unit"]["enum"] == ["validations", "epochs", "steps", None]
    assert of_plateau["on_nonfinite"]["enum"] == ["bad", "ignore", "raise", None]
    assert all(of_plateau[key]["description"] for key in ("monitor", "mode", "patience_unit", "on_nonfinite"))


def test_bounds_say_what_the_range_says_and_a_range_is_still_a_key():
    made = [at_least(0, "x"), at_least(1, "x", whole=True), above_zero("x"), unit_interval("x"), *COMMON]
    for range_ in made:
        kind = "integer" if range_.whole else "number"
        for value in (-1, -1e-9, 0, 1e-9, 0.5, 1, 1 + 1e-9, 2):
            if not (range_.whole and value != int(value)):
                allowed = jsonschema.Draft202012Validator({"type": kind, **range_.bounds}).is_valid(value)
                assert allowed == range_.holds(value), (range_, value)
        assert range_.bounds
        assert {range_: 1}[range_] == 1
    assert COMMON[0] == copy.deepcopy(COMMON[0])


def test_every_preset_is_known():
    assert set(SCHEMA["$defs"]["preset"]["properties"]["preset"]["enum"]) == set(PRESETS)
    assert len(SCHEMA["$defs"]["preset"]["allOf"]) == len(PRESETS)


# ----------------------------------------------------------------------------------- classes of somebody else's


class Stranger(torch.optim.SGD):
    """Somebody's.

    Args:
        mood: of the day.
    """

    def __init__(self, params: Any, lr: float, mood: str = "good", odd: dict[str, int] | None = None, any_=3) -> None:
        super().__init__(params, lr=lr)


class Endless:
    """Takes whatever it is given, and nobody says what."""

    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None: ...

    step = zero_grad = add_param_group = state_dict = load_state_dict = lambda self: None


class Timed(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer: Any, span: int, name: str = "x", last_epoch: int = -1) -> None: ...


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> Any:
    registry.names("optimizer")
    registrations = registry._catalogue().registrations

    def put(kind: str, spec: Any, plugins: tuple[str, ...] = ("strangers",)) -> None:
        made = [Registration(spec, Plugin(plugin, plugin, "1")) for plugin in plugins]
        monkeypatch.setitem(registrations[kind], spec.name.replace("_", ""), made)

    put("optimizer", OptimizerSpec("stranger", Stranger))
    put("optimizer", OptimizerSpec("endless", Endless))
    put("optimizer", OptimizerSpec("twice", Stranger), ("one", "an-other"))
    put("optimizer", OptimizerSpec("lost", "nowhere.to:Be_Found"))
    put("scheduler", SchedulerSpec("timed", Timed, length="span"))
    put("scheduler", SchedulerSpec("constant", Timed))
    put("scheduler", SchedulerSpec("mapping", Timed))
    return json_schema()


def test_a_stranger_appears_with_what_its_annotations_say(strangers: Any):
    arguments = strangers["$defs"]["optimizer:stranger.arguments"]["properties"]
    assert arguments["mood"] == {"description": "of the day.", "type": "string", "default": "good"}
    assert arguments["lr"].pop("description")  # torch's words, by way of the base class
    assert arguments["lr"] == {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/link"}]}  # it declares no range
    assert arguments["any_"] == {"default": 3}
    assert arguments["odd"]["anyOf"] == [
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "null"},
        {"$ref": "#/$defs/link"},
    ]
    assert refusals({"optimizer": {"name": "stranger", "lr": -1, "mood": "bad"}}, strangers) == []
    assert refusals({"optimizer": {"name": "stranger", "lr": 1, "mod": "bad"}}, strangers) != []
    assert refusals({"optimizer": "stranger"}, strangers) != []  # which needs a rate


def test_a_name_may_be_that_of_a_part_of_the_form(strangers: Any):
    for good in ({"name": "constant", "span": 3}, {"name": "mapping", "span": 3}, {"warmup_steps": 3}):
        assert refusals({"scheduler": good}, strangers) == []
    assert refusals({"scheduler": {"name": "constant", "warmup_steps": 3}}, strangers) != []


def test_options_that_go_nowhere_may_be_anything(strangers: Any):
    for where in ({"whatever": [1]}, {"args": {"whatever": [1]}}):
        assert refusals({"optimizer": {"name": "endless", **where}}, strangers) == []
        assert refusals({"optimizer": {"name": "endless", "lr": "fast", **where}}, strangers) != []
    assert refusals({"optimizer": "endless", "param_groups": [{"match": "a", "whatever": 3}]}, strangers) == []
    assert refusals({"optimizer": "endless", "param_groups": [{"match": "a", "engine": "loop"}]}, strangers) != []


def test_a_name_that_two_plugins_offer_needs_its_plugin(strangers: Any):
    names = strangers["$defs"]["optimizer.mapping"]["properties"]["name"]["anyOf"][0]["enum"]
    assert {"one:twice", "an-other:twice"} <= set(names)
    for name in ("one:twice", "an-other:twice", "AnOther:Twice"):
        assert refusals({"optimizer": {"name": name, "lr": 1}}, strangers) == []
    assert refusals({"optimizer": {"name": "twice", "lr": 1}}, strangers) != []


def test_an_argument_that_has_the_name_of_a_key_goes_under_args_and_a_declared_length_may_be_auto(strangers: Any):
    good = {"name": "timed", "span": "auto", "args": {"name": "y"}}
    assert refusals({"scheduler": good}, strangers) == []
    assert refusals({"scheduler": {**good, "span": "long"}}, strangers) != []
    assert refusals({"scheduler": {**good, "args": {"name": 3}}}, strangers) != []


def test_what_cannot_be_loaded_is_left_out_and_named(strangers: Any, monkeypatch: pytest.MonkeyPatch):
    assert "optimizer 'lost' of plugin strangers (strangers 1) could not be loaded" in strangers["$comment"]
    assert refusals({"optimizer": "lost"}, strangers) != []
    broken = Quarantined(Plugin("broken", "broken", "1"), "ValueError: no", "")
    monkeypatch.setattr(registry._catalogue(), "quarantined", [broken])
    assert "plugin broken (broken 1) was left out: ValueError: no" in json_schema()["$comment"]
    assert "$comment" not in SCHEMA


# -------------------------------------------------------------------------------------------------- properties

INEXPRESSIBLE = (
    r"whole number.*got -?\d+\.0(; write -?\d+)?$",
    r"(LR|ReduceLROnPlateau): \w+ must be (at least|finite)|Factor should be|LBFGS|min_lrs",  # they declare no ranges
    r"is no regular expression",
    r"Nesterov momentum requires",
    r"give it once$|^param_groups: two entries are named",
)
"""Messages of `checked` about what a schema cannot say."""

BEYOND = [
    {"optimizer": {"name": "adam", "lr": float("inf")}},
    {"optimizer": {"name": "adam", "engine": "triton"}},
    {"optimizer": {"name": "adam", "engine": "numba", "foreach": True}},
    {"optimizer": {"name": "adam", "state_dtype": "int8"}},
    {"optimizer": {"name": "sgd", "nesterov": True}},
    {"optimizer": {"name": "lbfgs", "max_iter": 0}},
    {"optimizer": {"name": "lbfgs", "line_search_fn": "wolfe"}},
    {"optimizer": "adam", "scheduler": {**COSINE, "T_max": 0}},
    {"optimizer": "adam", "scheduler": {**COSINE, "warmup_steps": 3.0}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "factor": 1.5}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "min_lr": [0.1, 0.2]}},
    {"optimizer": "adam", "scheduler": {**PLATEAU, "mode": "min", "args": {"mode": "max"}}},
    {"optimizer": "adam", "scheduler": {"name": "lambda_lr", "lr_lambda": "import os"}},
    {"optimizer": "adam", "param_groups": [{"regex": "*"}]},
    {"optimizer": "adam", "param_groups": [{"match": "a", "name": "x"}, {"match": "b", "name": "x"}]},
    {"param_groups": "no_decay"},  # another file may have the optimizer
]


@pytest.mark.parametrize("config", BEYOND, ids=str)
def test_what_no_schema_can_say_is_left_to_checked(config: dict[str, Any]):
    assert refusals(config) == []
    with pytest.raises(OptplugError):
        check(config)


VALID: list[dict[str, Any]] = [
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


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in nested mappings and lists."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


@st.composite
def mutated(draw: Any) -> dict[str, Any]:
    """A valid configuration with one or two values dropped, renamed, replaced or added."""
    config = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        found = [place for place in places(config) if len(place) > 1]
        path = draw(st.sampled_from(found or [("optimizer",)]))
        parent: Any = config
        for key in path[:-1]:
            parent = parent[key]
        value, what = draw(VALUES), draw(st.sampled_from(["replace", "replace", "drop", "rename", "add"]))
        if isinstance(parent, dict) and what != "replace":
            old = parent.pop(path[-1]) if what != "add" else value
            if what != "drop":
                parent[draw(st.sampled_from(WORDS))] = old
        else:
            parent[path[-1]] = value
    return config


@given(mutated())
@settings(max_examples=500)
@pytest.mark.filterwarnings("ignore:verbose does nothing:DeprecationWarning")
def test_schema_and_checked_refuse_the_same_as_far_as_a_schema_can(config: dict[str, Any]):
    found = refusals(config)
    try:
        check(config)
    except OptplugError as error:
        says = [str(each) for each in getattr(error, "errors", [error])]
        beyond = all(any(re.search(pattern, each) for pattern in INEXPRESSIBLE) for each in says)
        assert found or beyond, says
    else:
        # Stricter by the annotations: a fraction where the class says `int`; a link where no number stands.
        assert all(re.search(r"is not of type 'integer'|module\.lr", each) for each in found), found
