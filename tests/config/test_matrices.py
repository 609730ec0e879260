"""An optimizer of matrices in one line: which parameters it gets, and which its fallback gets."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import optplug
from matrix_optimizers import MATRIX_OPTIMIZERS, ORTHOGONAL
from optplug.config.build import build_optimizer, check_parameter_partition, frozen_to_hold, parse_and_check
from optplug.config.describe import describe_registration
from optplug.config.json_schema import json_schema
from optplug.config.matrices import assignments
from optplug.config.param_groups import group_table
from optplug.errors import ConfigError, ConfigErrors, OptplugError, loc_text
from optplug.optim.combined import Combined
from optplug.registry import registry
from optplug.registry.specs import OptimizerSpec

MUON = {"name": "orthogonal", "lr": 0.02}


@pytest.fixture(autouse=True)
def matrix_optimizers(register_optimizers: Any) -> None:
    register_optimizers(*MATRIX_OPTIMIZERS)


def build(module: nn.Module, optimizer: Any = MUON, **options: Any) -> Any:
    config = parse_and_check(optimizer, **options)
    check_parameter_partition(module, config)
    return build_optimizer(module, config.setup, hold_frozen=frozen_to_hold(module, config))


def reasons(module: nn.Module, optimizer: Any = MUON) -> dict[str, str]:
    """The reasons by the names of the parameters; those of the optimizer of matrices begin with `*`."""
    entry = parse_and_check(optimizer).setup.entries[0]
    found = assignments(module, entry)
    taken = {name: f"{'' if one.member else '*'}{one.reason}" for name, one in found.items()}
    made = build(module, optimizer)
    names = {p: name for name, p in module.named_parameters()}
    matrices = {names[p] for group in made.members[0].param_groups for p in group["params"]}
    assert matrices == {name for name, reason in taken.items() if reason.startswith("*")}
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(module.parameters()))
    return taken


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))


class Language(nn.Module):
    """A language model whose output layer is tied to its embedding."""

    def __init__(self, *, is_tied: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.head = nn.Linear(8, 11, bias=False)
        if is_tied:
            self.head.weight = self.tokens.weight


class WithSizes(nn.Module):
    """A parameter of each number of dimensions, and a norm and a bias with two."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.experts = nn.Parameter(torch.ones(2, 3, 4))
        self.expert_bias = nn.Parameter(torch.ones(2, 4))
        self.norm = nn.LayerNorm([2, 3])
        self.table = nn.Parameter(torch.ones(1, 2, 3, 4))
        self.spectrum = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))


BODY = {
    "body.layers.0.self_attn.in_proj_weight": "*matrix",
    "body.layers.0.self_attn.in_proj_bias": "vector",
    "body.layers.0.self_attn.out_proj.weight": "*matrix",
    "body.layers.0.self_attn.out_proj.bias": "vector",
    "body.layers.0.linear1.weight": "*matrix",
    "body.layers.0.linear1.bias": "vector",
    "body.layers.0.linear2.weight": "*matrix",
    "body.layers.0.linear2.bias": "vector",
    **{f"body.layers.0.norm{i}.{name}": "vector" for i in (1, 2) for name in ("weight", "bias")},
}


def test_mlp():
    assert reasons(mlp()) == {
        "0.weight": "*matrix",
        "0.bias": "vector",
        "1.weight": "vector",
        "1.bias": "vector",
        "2.weight": "*matrix",
        "2.bias": "vector",
        "3.weight": "output layer",
        "3.bias": "output layer",
    }


@pytest.mark.parametrize("is_tied", [True, False])
def test_language_model(is_tied: bool):
    head = {} if is_tied else {"head.weight": "output layer"}
    found = reasons(Language(is_tied=is_tied))
    expected = {"tokens.weight": "embedding", "pos_embed": "embedding", **BODY, **head}
    assert found == expected


@pytest.mark.filterwarnings("ignore:orthogonal gets no parameter")
def test_convolutions_are_for_the_fallback_unless_asked_for():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv1d(4, 2, 1), nn.ConvTranspose2d(2, 2, 3), nn.Linear(4, 2))
    kernels = ["0.weight", "1.weight", "2.weight"]
    found = reasons(module)
    assert {found[name] for name in kernels} == {"convolution"}
    found = reasons(module, {**MUON, "convolutions": True})
    assert {found[name] for name in kernels} == {"*convolution"}
    assert [found[f"{i}.bias"] for i in (0, 1, 2)] == ["vector"] * 3
    assert found["3.weight"] == "output layer"


def test_convolutions_are_flattened_and_train():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    made = build(module, {**MUON, "convolutions": True})
    flatten = {group["name"]: group.get("flatten") for group in made.param_groups}
    assert flatten == {"orthogonal": False, "orthogonal convolutions": True, "adamw": None}
    before = module[0].weight.detach().clone()
    module(torch.randn(2, 1, 3, 3)).sum().backward()
    made.step()
    assert not torch.equal(module[0].weight, before)


def test_last_layer_of_a_model_with_convolutions_can_be_a_convolution():
    module = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1))
    assert reasons(module, {**MUON, "convolutions": True}) == {
        "0.weight": "*matrix",
        "0.bias": "vector",
        "1.weight": "*convolution",
        "1.bias": "vector",
        "2.weight": "output layer",
        "2.bias": "output layer",
    }


def test_kinds_of_parameters_by_their_dimensions():
    assert reasons(WithSizes()) == {
        "scale": "scalar",
        "experts": "*stack of matrices",
        "expert_bias": "bias",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "table": "4 dimensions",
        "spectrum": "complex numbers",
    }


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9 has no Muon")
def test_torch_muon_takes_no_stacks_and_no_convolutions():
    found = reasons(
        nn.ModuleDict({"a": WithSizes(), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)}), {"name": "torch_muon"}
    )
    assert {name for name, reason in found.items() if reason.startswith("*")} == {"b.weight"}
    assert found["a.experts"] == "stack of matrices"
    with pytest.raises(ConfigError, match=r"^optimizer\.convolutions: torch_muon has no option flatten"):
        parse_and_check({"name": "torch_muon", "convolutions": True})


def test_list_of_modules():
    blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    assert [name for name, reason in reasons(blocks).items() if reason == "*matrix"] == ["0.weight", "1.weight"]


def test_wrapped_module():
    wrapped = nn.ModuleDict({"module": Language()})  # as DistributedDataParallel does
    assert reasons(wrapped) == {f"module.{name}": reason for name, reason in reasons(Language()).items()}
    compiled: Any = torch.compile(mlp())
    assert assignments(compiled, parse_and_check(MUON).setup.entries[0]).keys() == reasons(mlp()).keys()


def test_parametrized_layer():
    module = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2))
    assert reasons(module)["0.parametrizations.weight.original"] == "*matrix"


class WithVectors(nn.Module):
    """Vectors and scalars in parameters with several dimensions, and matrices with one row or column."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(1e-6 * torch.ones(8, 1, 1))
        self.gamma = nn.Parameter(torch.ones(1, 1, 8))
        self.logit_scale = nn.Parameter(torch.ones(1, 1))
        self.query = nn.Parameter(torch.ones(1, 8))
        self.several = nn.Parameter(torch.ones(3, 1, 8))
        self.narrow, self.wide = nn.Linear(8, 1, bias=False), nn.Linear(1, 8, bias=False)
        self.recurrent = nn.RNN(1, 4, bias=False)
        self.new = parametrizations.weight_norm(nn.Linear(3, 6, bias=False))
        self.old = torch.nn.utils.weight_norm(nn.Linear(3, 6, bias=False))
        self.conv = parametrizations.weight_norm(nn.Conv1d(3, 6, 2, bias=False))
        self.depthwise = nn.Conv1d(1, 1, 3, bias=False)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.nn.utils.weight_norm
def test_vectors_with_several_dimensions_are_for_the_fallback():
    found = reasons(WithVectors(), {**MUON, "output": [], "convolutions": True})
    assert found == {
        **dict.fromkeys(["layer_scale", "gamma", "logit_scale", "query", "several"], "vector"),
        **dict.fromkeys(["narrow.weight", "wide.weight"], "*matrix"),
        **dict.fromkeys(["recurrent.weight_ih_l0", "recurrent.weight_hh_l0"], "*matrix"),
        "new.parametrizations.weight.original0": "vector",
        "new.parametrizations.weight.original1": "*matrix",
        "old.weight_g": "vector",
        "old.weight_v": "*matrix",
        "conv.parametrizations.weight.original0": "vector",
        "conv.parametrizations.weight.original1": "*convolution",
        "depthwise.weight": "*convolution",
    }


class WithTables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("wte", "wpe", "pos_emb", "emb_weight", "emb", "latents", "member"):
            self.register_parameter(name, nn.Parameter(torch.ones(3, 4)))


def test_tables_are_embeddings_by_their_names():
    found = reasons(WithTables())
    assert {name for name, reason in found.items() if reason == "embedding"} == {
        "wte",
        "wpe",
        "pos_emb",
        "emb_weight",
        "emb",
    }
    assert found["latents"] == found["member"] == "*matrix"


# ------------------------------------------------------------------------------------------ the output layer


class Declared(nn.Module):
    """A model that declares its output layer by a method."""

    def __init__(self, method: str, layer: Any) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(3, 3), nn.Linear(3, 3)
        setattr(self, method, lambda: layer(self))


@pytest.mark.parametrize("method", ["get_output_embeddings", "get_classifier"])
def test_declared_output_layer(method: str):
    model = Declared(method, lambda self: self.head)
    expected = {
        "head.weight": "output layer",
        "head.bias": "output layer",
        "body.weight": "*matrix",
        "body.bias": "vector",
    }
    assert reasons(model) == expected
    assert reasons(nn.ModuleDict({"model": model})) == {f"model.{name}": why for name, why in expected.items()}


@pytest.mark.filterwarnings("ignore:orthogonal gets no parameter")
def test_declared_output_layer_may_be_several():
    model = Declared("get_classifier", lambda self: (self.head, self.body))
    assert set(reasons(model).values()) == {"output layer"}


def _raise(self: Any) -> Any:
    raise NotImplementedError


def _raise_other(self: Any) -> Any:
    raise RuntimeError("not built yet")


@pytest.mark.parametrize("layer", [lambda self: None, lambda self: nn.Identity(), _raise, _raise_other])
def test_model_that_declares_no_output_layer_has_the_last_linear_one(layer: Any):
    assert reasons(Declared("get_output_embeddings", layer))["body.weight"] == "output layer"


def test_layer_outside_of_a_backbone_is_an_output_layer_too():
    backbone = Declared("get_classifier", lambda self: self.head)
    found = reasons(nn.ModuleDict({"backbone": backbone, "own": nn.Linear(3, 2)}))
    outputs = [name for name, reason in found.items() if reason == "output layer"]
    assert outputs == ["backbone.head.weight", "backbone.head.bias", "own.weight", "own.bias"]


@pytest.mark.filterwarnings("ignore:orthogonal gets no parameter")
def test_output_is_configurable():
    module = nn.ModuleDict({"head": nn.Linear(3, 2), "body": nn.Linear(3, 3)})
    assert reasons(module)["body.weight"] == "output layer"
    found = reasons(module, {**MUON, "output": "head.*"})
    assert (found["head.weight"], found["body.weight"]) == ("output layer", "*matrix")
    found = reasons(module, {**MUON, "output": ["head.weight", "body.*"]})
    assert found == {"head.weight": "output layer", "head.bias": "vector", "body.weight": "output layer"} | {
        "body.bias": "output layer"
    }


def test_model_without_output_layer():
    found = reasons(mlp(), {**MUON, "output": []})
    assert (found["3.weight"], found["3.bias"]) == ("*matrix", "vector")


def outputs(module: nn.Module) -> set[str]:
    """The names of the weights of the output layer, frozen ones included."""
    found = assignments(module, parse_and_check(MUON).setup.entries[0])
    return {name for name, one in found.items() if one.reason == "output layer" and name.endswith("weight")}


def test_frozen_layer_is_no_output_layer_if_others_are_trained():
    student = mlp()
    teacher = copy.deepcopy(student).requires_grad_(False)
    assert outputs(nn.ModuleDict({"student": student, "teacher": teacher})) == {"student.3.weight"}
    student.requires_grad_(False)
    assert outputs(nn.ModuleDict({"student": student, "teacher": teacher})) == {"teacher.3.weight"}


def test_layer_of_averaged_weights_is_no_output_layer():
    module = mlp()
    average = torch.optim.swa_utils.AveragedModel(module)
    assert outputs(nn.ModuleDict({"net": module, "average": average})) == {"net.3.weight"}
    assert outputs(average) == {"module.3.weight"}


def test_output_layer_of_a_frozen_backbone_is_the_head():
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "backbone": mlp().requires_grad_(False)})
    assert outputs(module) == {"head.weight"}


@pytest.mark.parametrize("adapter", [None, nn.LayerNorm(2), nn.Linear(2, 2)], ids=str)
def test_output_layer_stays_the_same_when_groups_are_added(adapter: Any):
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "backbone": mlp().requires_grad_(False)})
    made = optplug.create_optimizer("orthogonal", module)
    module.update({} if adapter is None else {"adapter": adapter})
    added = unfreeze(module["backbone"], made)
    weights = {id(p): name for name, p in module.named_parameters() if name.endswith("weight")}
    (matrices,) = [group["params"] for group in added if group["name"] == "orthogonal backbone"]
    assert [weights[id(p)] for p in matrices] == [f"backbone.{i}.weight" for i in (0, 2, 3)]
    if adapter is not None:  # a linear layer that comes last is an output layer
        made.add_param_group({"params": list(adapter.parameters())})
        assert [group["name"] for group in made.param_groups][3:] == ["adamw adapter"]


# ------------------------------------------------------------------------------------------ the fallback


def test_fallback_is_configurable():
    made = build(mlp(), {**MUON, "fallback": {"name": "lion", "lr": 3e-4}})
    assert [type(member).__name__ for member in made.members] == ["Orthogonal", "Lion"]
    assert [group["lr"] for group in made.param_groups] == [0.02, 3e-4]
    by_name = build(mlp(), {**MUON, "fallback": "sgd"})
    assert type(by_name.members[1]).__name__ == "SGD"


def test_fallback_without_name_is_adamw():
    made = build(mlp(), {**MUON, "fallback": {"lr": 0.5, "betas": [0.8, 0.9]}})
    assert type(made.members[1]).__name__ == "AdamW"
    assert (made.param_groups[1]["lr"], tuple(made.param_groups[1]["betas"])) == (0.5, (0.8, 0.9))
    assert build(mlp()).param_groups[1]["lr"] == 1e-3


def test_selectors_of_the_fallback_move_parameters_to_it():
    found = reasons(mlp(), {**MUON, "fallback": {"match": "2.*"}})
    assert (found["2.weight"], found["2.bias"], found["0.weight"]) == (
        "selected by fallback",
        "selected by fallback",
        "*matrix",
    )
    assert reasons(mlp(), {**MUON, "fallback": {"ndim": 2, "regex": "^0"}})["0.weight"] == "selected by fallback"


def test_options_of_group_rules_go_to_the_members_that_have_them():
    rules = [
        {"match": ["0.*", "1.*"], "lr_mult": 0.5, "name": "first"},
        {"match": "2.*", "momentum": 0.5},
        {"match": "*.bias", "betas": [0.5, 0.6], "weight_decay": 0.0},
    ]
    made = build(mlp(), {**MUON, "fallback": {"lr": 1e-3, "weight_decay": 0.01}}, param_groups=rules)
    groups = {group["name"]: group for group in made.param_groups}
    options = {
        name: (group["lr"], group["weight_decay"], group.get("momentum"), group.get("betas") and tuple(group["betas"]))
        for name, group in groups.items()
    }
    assert options == {
        "orthogonal first": (0.01, 0.1, 0.9, None),
        "orthogonal 2.*": (0.02, 0.1, 0.5, None),
        "adamw first + *.bias": (5e-4, 0.0, None, (0.5, 0.6)),
        "adamw first": (5e-4, 0.01, None, (0.9, 0.999)),
        "adamw *.bias": (1e-3, 0.0, None, (0.5, 0.6)),
        "adamw": (1e-3, 0.01, None, (0.9, 0.999)),
    }


def test_schedule_of_a_rule_applies_to_the_groups_of_both():
    module = mlp()
    rules = [{"match": "0.*", "scheduler": {"name": "exponential_lr", "gamma": 0.5}}]
    made, schedule = optplug.create_optimizer_and_scheduler(
        module, MUON, {"name": "exponential_lr", "gamma": 0.25}, param_groups=rules
    )
    module(torch.randn(3, 4)).sum().backward()
    made.step()
    schedule.step()
    rates = {group["name"]: group["lr"] for group in made.param_groups}
    assert rates == {"orthogonal 0.*": 0.01, "orthogonal": 0.005, "adamw 0.*": 5e-4, "adamw": 2.5e-4}


def test_schedule_with_one_learning_rate_for_both_warns(recwarn: Any):
    def lrs(max_lr: Any) -> Any:
        options = {"base_lr": 0.0, "max_lr": max_lr, "step_size_up": 1, "cycle_momentum": False}
        made, scheduler = optplug.create_optimizer_and_scheduler(mlp(), MUON, {"name": "cyclic_lr", **options})
        made.step()
        scheduler.step()
        return [group["lr"] for group in made.param_groups]

    assert lrs([0.02, 0.001]) == [0.02, 0.001]
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"^max_lr of cyclic_lr is one .* orthogonal and adamw: .*orthogonal, adamw"):
        assert lrs(0.02) == [0.02, 0.02]


def test_presets_apply_to_both():
    layers = {"preset": "layer_decay", "decay": 0.5, "layers": ["0.*", "1.*", "2.*", "3.*"]}
    module_rates = {}
    module = mlp()
    made = build(module, param_groups=["no_decay", layers])
    for name, p in module.named_parameters():
        (group,) = [group for group in made.param_groups if any(p is q for q in group["params"])]
        module_rates[name] = (group["lr"], group["weight_decay"])
    assert module_rates["0.weight"] == (0.02 / 8, 0.1)
    assert module_rates["2.weight"] == (0.02 / 2, 0.1)
    assert module_rates["0.bias"] == (1e-3 / 8, 0.0)
    assert module_rates["3.weight"] == (1e-3, 0.01)


def test_engine_and_maximize_apply_to_the_fallback_too(register_optimizers: Any):
    class Engined(ORTHOGONAL.target):  # type: ignore[misc,name-defined]
        def __init__(self, params: Any, lr: float = 0.1, engine: str = "auto", maximize: bool = False) -> None:
            super().__init__(params, lr)

    register_optimizers(OptimizerSpec("engined", Engined, capabilities={"matrix_only"}))
    made = build(mlp(), {"name": "engined", "engine": "loop", "maximize": True})
    assert (made.members[1].engine, made.param_groups[1]["maximize"]) == ("loop", True)
    made = build(mlp(), {"name": "engined", "maximize": True, "fallback": {"maximize": False}})
    assert made.param_groups[1]["maximize"] is False


def test_links_in_the_fallback_and_in_rules():
    module: Any = mlp()
    module.lr, module.rate = 0.25, 0.125
    rules = [{"match": "0.*", "lr": "module.rate"}]
    made = build(module, {**MUON, "lr": "module.lr", "fallback": {"lr": "module.rate"}}, param_groups=rules)
    assert {group["name"]: group["lr"] for group in made.param_groups} == {
        "orthogonal": 0.25,
        "orthogonal 0.*": 0.125,
        "adamw": 0.125,
        "adamw 0.*": 0.125,
    }


# ------------------------------------------------------------------------------------------ forms


def test_create_optimizer_of_a_module_combines():
    made: Any = optplug.create_optimizer("orthogonal", mlp(), lr=0.1, fallback={"lr": 0.5}, output=[])
    assert isinstance(made, Combined)
    assert [(group["name"], group["lr"], len(group["params"])) for group in made.param_groups] == [
        ("orthogonal", 0.1, 3),
        ("adamw", 0.5, 5),
    ]
    grouped = optplug.create_optimizer("Orthogonal", mlp(), param_groups="no_decay")
    assert [group["name"] for group in grouped.param_groups] == ["orthogonal", "adamw no_decay", "adamw"]


def test_create_optimizer_of_tensors_leaves_the_choice_to_the_class():
    made = optplug.create_optimizer("orthogonal", [torch.zeros(2, 2, requires_grad=True)], lr=0.1)
    assert type(made).__name__ == "Orthogonal"
    with pytest.raises(ValueError, match="takes matrices only"):
        optplug.create_optimizer("orthogonal", [torch.zeros(2, requires_grad=True)])
    with pytest.raises(ConfigError, match="has no option 'fallback'"):
        optplug.create_optimizer("orthogonal", [torch.zeros(2, 2)], fallback="sgd")


def test_optimizer_of_matrices_in_a_plain_training_loop():
    module = mlp()
    made, schedule = optplug.create_optimizer_and_scheduler(module, MUON, {"name": "exponential_lr", "gamma": 0.5})
    module(torch.randn(3, 4)).sum().backward()
    made.step()
    schedule.step()
    assert [group["lr"] for group in made.param_groups] == [0.01, 5e-4]


def test_list_of_optimizers_finds_the_output_layer_of_each():
    module = nn.ModuleDict({"generator": mlp(), "critic": mlp()})
    made = optplug.create_optimizer_and_scheduler(
        module, [{**MUON, "match": "generator.*"}, {**MUON, "match": "critic.*", "fallback": {"lr": 0.5}}]
    )
    names = {p: name for name, p in module.named_parameters()}
    matrices = [[names[p] for p in optimizer.param_groups[0]["params"]] for optimizer, _ in made]
    assert matrices == [[f"{part}.0.weight", f"{part}.2.weight"] for part in ("generator", "critic")]
    assert made[1][0].param_groups[1]["lr"] == 0.5


def test_groups_of_combine_have_the_names_of_the_configuration():
    entries = [{**MUON, "ndim": 2}, {"name": "adamw", "rest": True}]
    made = build(mlp(), {"combine": entries})
    assert [group["name"] for group in made.param_groups] == ["orthogonal", "adamw"]
    old = made.state_dict()
    old["param_groups"][1]["name"] = "adam_w"  # as in older checkpoints
    made.load_state_dict(old)
    assert [group["name"] for group in made.param_groups] == ["orthogonal", "adam_w"]


def test_member_of_combine_gets_what_it_selects():
    entries = [{**MUON, "ndim": 2}, {"name": "sgd", "rest": True}]
    made = build(mlp(), {"combine": entries})
    assert [len(group["params"]) for group in made.param_groups] == [3, 5]
    with pytest.raises(ConfigError) as caught:
        build(mlp(), {"combine": [{**MUON, "match": "2.*"}, {"name": "sgd", "rest": True}]})
    assert str(caught.value) == (
        "optimizer.combine[0]: orthogonal takes parameters with two or more dimensions only, and is given 2.bias: "
        "select with ndim: 2 too, and give another optimizer rest: true"
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        MUON,
        {**MUON, "fallback": "lion", "output": [], "convolutions": True},
        {**MUON, "fallback": {"name": "lion", "lr": 0.1, "match": "0.*", "ndim": [1, 2]}, "output": "3.*"},
    ],
    ids=str,
)
def test_round_trip(optimizer: Any):
    config = parse_and_check(optimizer, param_groups=[{"match": "*", "momentum": 0.5}])
    given = config.to_dict()
    assert parse_and_check(**given) == config
    listed = parse_and_check([{**optimizer, "match": "*", "scheduler": {"warmup_steps": 1}}])
    assert parse_and_check(**listed.to_dict()) == listed


def test_dictionary_has_the_default_fallback():
    assert parse_and_check("orthogonal").to_dict()["optimizer"] == {
        "name": "orthogonal",
        "fallback": {"name": "adamw"},
    }


# ------------------------------------------------------------------------------------------ one kind of parameters


def test_optimizer_of_matrices_without_parameters_warns():
    with pytest.warns(UserWarning, match=r"^orthogonal gets no parameter, adamw trains all .* \(output: \[\] takes"):
        build(nn.Linear(3, 2))
    with pytest.warns(UserWarning, match=r"no hidden matrices \(convolutions: true takes convolutions too\)$"):
        build(nn.Conv1d(1, 2, 3))
    with pytest.warns(UserWarning, match=r"the model has no hidden matrices$"):
        build(nn.LayerNorm(3))


def test_frozen_matrices_cause_no_warning(recwarn: Any):
    build(frozen_mlp())
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:orthogonal gets no parameter")
def test_model_without_matrices_has_groups_of_the_fallback_only():
    made = build(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)))
    assert [(group["name"], len(group["params"])) for group in made.param_groups] == [("adamw", 4)]
    made.add_param_group({"params": [torch.zeros(2, 2, requires_grad=True)], "member": 0})
    assert [group["name"] for group in made.param_groups] == ["adamw", "orthogonal"]
    made.step()


def test_model_with_matrices_only():
    module = nn.Sequential(nn.Linear(3, 2, bias=False))
    made = build(module, {**MUON, "output": []})
    assert [group["name"] for group in made.param_groups] == ["orthogonal"]
    module(torch.ones(1, 3)).sum().backward()
    made.step()
    plain = optplug.create_optimizer("orthogonal", [torch.zeros(2, 3, requires_grad=True)])
    assert made.state_dict()["state"].keys() == {0}
    assert plain.state_dict()["param_groups"][0]["params"] == made.state_dict()["param_groups"][0]["params"]


# ------------------------------------------------------------------------------------------ the optimizer as one


def test_state_dict_continues_training():
    torch.manual_seed(0)
    x = torch.randn(8, 4)

    def train(module: nn.Module, made: Any, steps: int) -> None:
        for _ in range(steps):
            made.zero_grad()
            module(x).square().sum().backward()
            made.step()

    first = mlp()
    made = build(first)
    train(first, made, 3)
    second = copy.deepcopy(first)
    restored = build(second)
    restored.load_state_dict(pickle.loads(pickle.dumps(made.state_dict())))
    train(first, made, 3)
    train(second, restored, 3)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_copy_keeps_the_reasons():
    made = build(mlp())
    assert copy.deepcopy(made).reasons == pickle.loads(pickle.dumps(made)).reasons == made.reasons


def test_table_shows_why():
    module = Language(is_tied=False)
    lines = str(group_table(build(module), module)).splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["group", "parameters", "elements", "lr", "weight_decay", "why"],
        ["orthogonal", "4", "512", "0.02", "0.1", "matrix", "(4)"],
    ]
    assert lines[2].endswith("embedding (pos_embed, tokens.weight), vector (8), output layer (head.weight)")
    row = group_table(build(module), module)[1].to_dict()
    assert dict(zip(row["parameters"], row["reasons"], strict=True))["tokens.weight"] == "embedding"


def test_table_of_one_optimizer_has_no_column_why():
    module = mlp()
    row = group_table(build(module, "sgd"), module)[0]
    assert "why" not in str(group_table(build(module, "sgd"), module))
    assert "reasons" not in row.to_dict()


# ------------------------------------------------------------------------------------------ groups added later


def frozen_mlp() -> nn.Module:
    """A model whose first two layers are frozen."""
    module = mlp()
    module[:3].requires_grad_(False)
    return module


def unfreeze(module: nn.Module, made: Any, **options: Any) -> list[Any]:
    count = len(made.param_groups)
    params = [p for p in module.parameters() if not p.requires_grad]
    module.requires_grad_(True)
    made.add_param_group({"params": params, **options})
    return made.param_groups[count:]


def test_added_group_is_distributed():
    module = frozen_mlp()
    made = optplug.create_optimizer("orthogonal", module, lr=0.02, fallback={"lr": 0.002})
    assert [group["name"] for group in made.param_groups] == ["adamw"]
    added = unfreeze(module, made, lr=0.001)
    assert [(group["name"], group["lr"], len(group["params"]), group["member"]) for group in added] == [
        ("orthogonal", pytest.approx(0.01), 2, 0),
        ("adamw_2", 0.001, 4, 1),
    ]
    assert added[0]["lr_follows"] == 1


def test_added_group_gets_the_options_of_rules_and_of_its_member():
    module = frozen_mlp()
    made = optplug.create_optimizer("orthogonal", module, param_groups=["no_decay", {"match": "2.*", "lr_mult": 0.5}])
    added = unfreeze(module, made, momentum=0.5, betas=(0.1, 0.2))
    found = [
        (group["name"], group["lr"], group["weight_decay"], group.get("momentum"), group.get("betas"))
        for group in added
    ]
    assert sorted(found, key=str) == [
        ("adamw no_decay + 2.*", 5e-4, 0.0, None, (0.1, 0.2)),
        ("adamw no_decay_2", 1e-3, 0.0, None, (0.1, 0.2)),
        ("orthogonal 2.*", 0.01, 0.1, 0.5, None),
        ("orthogonal", 0.02, 0.1, 0.5, None),
    ]


def test_frozen_parameters_that_are_held_move_to_the_added_groups(register_optimizers: Any):
    class Strict(ORTHOGONAL.target, optplug.optim.strict_kwargs.StrictKwargs):  # type: ignore[misc,name-defined]
        pass

    register_optimizers(OptimizerSpec("strict", Strict, capabilities={"matrix_only"}))
    module = frozen_mlp()
    made = build(module, "strict")
    assert [len(group["params"]) for group in made.param_groups] == [2, 6]
    unfreeze(module, made, lr=0.1)
    assert [len(group["params"]) for group in made.param_groups] == [0, 2, 4, 2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_group_added_to_a_copy_is_refused(copied: Any):
    made = copied(build(mlp()))
    with pytest.raises(ConfigError, match=r"is a copy of one .* divide .* between orthogonal, adamw: build"):
        made.add_param_group({"params": [torch.zeros(2, 2, requires_grad=True)]})
    made.add_param_group({"params": [torch.zeros(2, 2, requires_grad=True)], "member": 0})
    assert [group["name"] for group in made.param_groups] == ["orthogonal", "adamw", "orthogonal_2"]


def test_failing_group_changes_nothing():
    module = frozen_mlp()
    made = optplug.create_optimizer("orthogonal", module)
    before = [len(group["params"]) for group in made.param_groups]
    params = [p for p in module.parameters() if not p.requires_grad]
    with pytest.raises(OptplugError):
        made.add_param_group({"params": params, "weight_decay": -1.0})
    assert [len(group["params"]) for group in made.param_groups] == before


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({**MUON, "falback": "sgd"}, "falback: orthogonal has no option 'falback'; did you mean 'fallback'?"),
        ({**MUON, "fallback": "adanw"}, "fallback: no optimizer named 'adanw'; did you mean 'adan', 'adamw'"),
        ({**MUON, "fallback": {"lr": -1}}, "fallback.lr: Invalid learning rate: -1"),
        ({**MUON, "fallback": {"learning_rate": 1}}, "fallback.learning_rate: adamw has no option 'learning_rate'"),
        ({**MUON, "fallback": {"mach": "x"}}, "fallback.mach: adamw has no option 'mach'; did you mean 'match'"),
        ({**MUON, "fallback": None}, "fallback: must be a name or a mapping, got None (NoneType)"),
        ({**MUON, "fallback": "orthogonal"}, "fallback: orthogonal cannot be a fallback (takes parameters with two"),
        (
            {**MUON, "fallback": {"name": "sgd", "rest": True}},
            "fallback.rest: sgd has no option 'rest'; a fallback gets the rest without it",
        ),
        ({**MUON, "rest": True}, "rest: orthogonal has no option 'rest'; rest belongs to a list of optimizers"),
        ({**MUON, "fallback": "lbfgs"}, "fallback: lbfgs cannot be a fallback (step() needs a closure"),
        ({**MUON, "output": 3}, "output: must be a glob, or a list of globs, which may be empty, got 3"),
        ({**MUON, "convolutions": "yes"}, "convolutions: must be True or False, got 'yes' (str)"),
        (
            {"name": "adam", "fallback": "sgd"},
            "fallback: adam has no option 'fallback'; fallback is a key of optimizers",
        ),
        ({"name": "adam", "output": "x"}, "output: adam has no option 'output'; output is a key of optimizers"),
    ],
    ids=str,
)
def test_invalid_keys(optimizer: Any, message: str):
    with pytest.raises(OptplugError) as caught:
        parse_and_check(optimizer)
    errors = [f"{loc_text(error.loc)}: {error.message}" for error in caught.value.errors]
    assert [error for error in errors if error.startswith(f"optimizer.{message}")], errors


@pytest.mark.parametrize("key", ["fallback", "output", "convolutions"])
def test_keys_in_combine_are_refused(key: str):
    value = {"fallback": "sgd", "output": [], "convolutions": True}[key]
    with pytest.raises(ConfigError) as caught:
        parse_and_check({"combine": [{**MUON, "ndim": 2, key: value}, {"name": "sgd", "rest": True}]})
    assert str(caught.value) == (
        f"optimizer.combine[0].{key}: in combine, an optimizer gets what it selects: give another optimizer rest: true"
    )


def test_rule_with_an_option_that_no_member_has():
    with pytest.raises(ConfigError) as caught:
        parse_and_check(MUON, param_groups=[{"match": "*", "bettas": 1}])
    assert str(caught.value) == (
        "param_groups[0].bettas: orthogonal and adamw have no option 'bettas'; did you mean 'betas'?"
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "3.*", "momentum": 0.5}, "momentum is an option of orthogonal, but 3.* selects parameters of adamw"),
        ({"match": "0.weight", "betas": [0.5, 0.5]}, "betas is an option of adamw, but 0.weight selects parameters"),
    ],
    ids=str,
)
def test_rule_with_an_option_that_reaches_no_parameter(rule: Any, message: str):
    rules = [{"match": "*", "momentum": 0.5, "betas": [0.5, 0.5]}, rule]
    with pytest.raises(ConfigError) as caught:
        build(mlp(), param_groups=rules)
    assert str(caught.value).startswith(f"param_groups[1].{list(rule)[1]}: {message}")
    with pytest.raises(ConfigError) as caught:
        build(mlp(), [{**MUON, "match": "*", "param_groups": rules}])
    assert str(caught.value).startswith(f"optimizer[0].param_groups[1].{list(rule)[1]}: {message}")


def test_rule_with_an_option_for_frozen_parameters_is_accepted():
    build(frozen_mlp(), param_groups=[{"match": "0.*", "momentum": 0.5}])


def test_wrong_value_in_a_rule_is_reported_once():
    with pytest.raises(OptplugError) as caught:
        parse_and_check({**MUON, "fallback": "adam"}, param_groups=[{"match": "*", "lr": -1}])
    assert len(caught.value.errors) == 1


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({**MUON, "output": "haed.*"}, "optimizer.output: 'haed.*' matches no parameter of Sequential; its parameters"),
        ({**MUON, "fallback": {"match": "x*"}}, "optimizer.fallback.match: 'x*' matches no parameter of Sequential"),
    ],
    ids=str,
)
def test_pattern_without_a_match(optimizer: Any, message: str):
    with pytest.raises(ConfigError) as caught:
        build(mlp(), optimizer)
    assert str(caught.value).startswith(message)


def test_lazy_parameters():
    module = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises((ConfigError, ConfigErrors)) as caught:
        build(module)
    assert "0.weight has no shape yet: call the model once before its optimizer is built" in str(caught.value)
    module(torch.ones(1, 2))
    assert reasons(module)["0.weight"] == "*matrix"


class FullyShardedDataParallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.zeros(12))


def test_parameters_that_fsdp_has_flattened():
    with pytest.raises(ConfigError, match=r"^optimizer: FSDP has flattened .* use FSDP2"):
        build(nn.ModuleDict({"wrapped": FullyShardedDataParallel(), "body": nn.Linear(2, 2)}))


# ------------------------------------------------------------------------------------------ schema and description

FALLBACK = {"name": "lion", "lr": 1e-3, "match": "0.*", "ndim": 2}


@pytest.fixture
def schema_accepts() -> Any:
    validator = jsonschema.Draft202012Validator(json_schema())
    return validator.is_valid


@pytest.mark.parametrize(
    "optimizer",
    [
        "orthogonal",
        {**MUON, "fallback": "sgd", "output": [], "convolutions": True},
        {**MUON, "fallback": {"lr": 0.1, "betas": [0.1, 0.2]}, "output": "head.*"},
        {**MUON, "fallback": FALLBACK, "output": ["a", "b"]},
        [{**MUON, "match": "a", "fallback": FALLBACK}, {"name": "adam", "rest": True}],
        {"combine": [{**MUON, "ndim": [2, 3]}, {"name": "adam", "rest": True}]},
    ],
    ids=str,
)
def test_schema_accepts_what_is_valid(optimizer: Any, schema_accepts: Any):
    parse_and_check(optimizer)
    assert schema_accepts({"optimizer": optimizer})


@pytest.mark.parametrize(
    "optimizer",
    [
        {**MUON, "fallback": {"lr": -1}},
        {**MUON, "fallback": {"momentum": 0.1}},  # AdamW has none
        {**MUON, "fallback": {**FALLBACK, "scheduler": "step_lr"}},
        {**MUON, "fallback": {**FALLBACK, "param_groups": "no_decay"}},
        {**MUON, "fallback": 3},
        {**MUON, "fallback": "orthogonal"},
        {**MUON, "fallback": {"name": "sparse_adam"}},
        [{**MUON, "ndim": 2}, {"name": "adam", "rest": True, "match": "x"}],
        {"combine": [{**MUON, "ndim": 2}, {"name": "adam", "rest": True, "match": "x"}]},
        {**MUON, "output": 3},
        {**MUON, "convolutions": "yes"},
        {"name": "adam", "fallback": "sgd"},
        {"combine": [{**MUON, "ndim": 2, "fallback": "sgd"}, {"name": "adam", "rest": True}]},
        {"combine": [{**MUON, "ndim": 2}, {"name": "adam", "rest": True}, {"name": "sgd", "rest": True}]},
        {"combine": [{**MUON, "ndim": 2}, {"name": "adam", "rest": False}]},
    ],
    ids=str,
)
def test_schema_and_checks_refuse_what_is_invalid(optimizer: Any, schema_accepts: Any):
    with pytest.raises(OptplugError):
        parse_and_check(optimizer)
    assert not schema_accepts({"optimizer": optimizer})


def test_schema_accepts_options_of_both_members_in_rules(schema_accepts: Any):
    config = {"optimizer": MUON, "param_groups": [{"match": "*", "momentum": 0.5, "betas": [0.1, 0.2]}]}
    parse_and_check(**config)
    assert schema_accepts(config)


def test_info_describes_the_keys():
    text = describe_registration(registry.resolve("optimizer", "orthogonal"))
    assert "key in a configuration" in text
    assert "fallback" in text
    assert "key in a configuration" not in describe_registration(registry.resolve("optimizer", "sgd"))
