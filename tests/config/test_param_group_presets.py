"""Presets of parameter groups on real modules: no decay where it does harm, a learning rate for each layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import optplug
from optplug.config.param_group_presets import LayerDecay, NoDecay
from optplug.config.parse import parse
from optplug.errors import ConfigError, OptplugError


def undecayed(module: nn.Module, **keys: Any) -> set[str]:
    """The names of the parameters that no_decay takes; all the others keep the optimizer's weight decay."""
    rules = [{"preset": "no_decay", **keys}]
    made = optplug.configure_optimizers(module, {"name": "adamw", "weight_decay": 0.5}, param_groups=rules)["optimizer"]
    known = {id(p): name for name, p in module.named_parameters()}
    found = {known[id(p)]: g["weight_decay"] for g in made.param_groups for p in g["params"]}
    assert set(found) == set(known.values())
    assert set(found.values()) <= {0.0, 0.5}
    return {name for name, decay in found.items() if decay == 0.0}


def every(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


# ------------------------------------------------------------------------------------------ no decay


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.RMSNorm(4),
        nn.InstanceNorm1d(4, affine=True),
        nn.InstanceNorm2d(4, affine=True),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_torch_s_norms_are_norms(norm: nn.Module):
    module = nn.Sequential(nn.Linear(4, 4), norm)
    own = {f"1.{name}" for name in every(norm)}
    assert own
    assert undecayed(module, of="norms") == own
    assert undecayed(module) == own | {"0.bias"}
    assert undecayed(module, of=["biases"]) == {name for name in every(module) if name.endswith("bias")}


def test_subclasses_of_torch_s_norms_are_norms_whatever_they_are_called():
    class Normaliser(nn.LayerNorm):
        pass

    assert undecayed(nn.Sequential(nn.Linear(2, 2), Normaliser(2)), of="norms") == {"1.weight", "1.bias"}


def scaling(name: str) -> nn.Module:
    """A module with a class of that name, and a parameter."""
    made: nn.Module = type(name, (nn.Module,), {})()
    made.gain = nn.Parameter(torch.ones(2))
    return made


@pytest.mark.parametrize(
    "name", ["LlamaRMSNorm", "T5LayerNorm", "LayerNorm2d", "MyNorm", "GlobalResponseNorm", "rmsnorm"]
)
def test_a_class_that_is_called_a_norm_is_one(name: str):
    assert undecayed(nn.ModuleDict({"a": nn.Linear(2, 2), "b": scaling(name)}), of="norms") == {"b.gain"}


@pytest.mark.parametrize("name", ["Normal", "NormalisedAttention", "Enormous", "Scale", "WeightNormLinear"])
def test_a_class_that_only_has_such_letters_is_none(name: str):
    module = nn.ModuleDict({"a": nn.LayerNorm(2), "b": scaling(name)})
    assert undecayed(module, of="norms") == {"a.weight", "a.bias"}


def test_biases_of_attention_and_recurrence_are_biases():
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    assert undecayed(attention, of="biases") == {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}
    lstm = nn.LSTM(2, 2, num_layers=2, bidirectional=True)
    assert undecayed(lstm, of="biases") == {name for name in every(lstm) if name.startswith("bias_")}
    assert len(undecayed(lstm)) == 8
    assert undecayed(nn.GRUCell(2, 2)) == {"bias_ih", "bias_hh"}
    assert undecayed(nn.Bilinear(2, 2, 2)) == {"bias"}


def test_what_only_sounds_like_a_bias_is_none():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("unbiased", "biased_weight", "weight", "q_bias", "bias2", "relative_position_bias_table"):
                setattr(self, name, nn.Parameter(torch.zeros(1)))

    assert undecayed(Odd(), of="biases") == {"q_bias", "bias2", "relative_position_bias_table"}


def test_the_name_of_a_module_makes_no_bias():
    assert undecayed(nn.ModuleDict({"bias": nn.Linear(2, 2)}), of="biases") == {"bias.bias"}


def test_embeddings_are_embeddings():
    module = nn.ModuleDict({"a": nn.Embedding(3, 2), "b": nn.EmbeddingBag(3, 2), "c": nn.Linear(2, 2)})
    assert undecayed(module, of="embeddings") == {"a.weight", "b.weight"}
    assert undecayed(module) == {"a.weight", "b.weight", "c.bias"}


class Vision(nn.Module):
    """Names of parameters as in vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1))
        self.dist_token = nn.Parameter(torch.zeros(1))
        self.pos_embed = nn.Parameter(torch.zeros(1))
        self.position_embeddings = nn.Parameter(torch.zeros(1))
        self.mask_tokens = nn.Parameter(torch.zeros(1))
        self.tokenizer = nn.Parameter(torch.zeros(1))
        self.embedded = nn.Parameter(torch.zeros(1))
        self.patch_embed = nn.Conv2d(1, 2, 1)
        self.head = nn.Linear(2, 2)


def test_parameters_that_are_called_tokens_and_embeddings_are_embeddings():
    own = {"cls_token", "dist_token", "pos_embed", "position_embeddings", "mask_tokens"}
    assert undecayed(Vision(), of="embeddings") == own
    assert undecayed(Vision()) == own | {"patch_embed.bias", "head.bias"}


@pytest.mark.parametrize("name", ["RotaryEmbedding", "BertEmbeddings"])
def test_a_class_that_is_called_an_embedding_is_one(name: str):
    assert undecayed(nn.ModuleDict({"a": nn.Linear(2, 2), "b": scaling(name)}), of="embeddings") == {"b.gain"}


def test_a_transformer_layer_has_exactly_its_norms_and_biases():
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    weights = {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    assert undecayed(layer) == every(layer) - weights
    assert undecayed(layer, of=["norms"]) == {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}
    assert undecayed(layer, of=["embeddings", "norms"]) == undecayed(layer, of=["norms"])


def test_a_whole_transformer_has_exactly_its_norms_biases_and_embeddings():
    module = nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4),
            "body": nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
            "head": nn.Linear(4, 5),
        }
    )
    assert every(module) - undecayed(module) == {
        *(
            f"body.layers.{i}.{name}"
            for i in (0, 1)
            for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
        ),
        "head.weight",
    }


def test_a_convolutional_network_keeps_decay_on_its_kernels():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, bias=False), nn.PReLU())
    assert undecayed(module) == {"0.bias", "1.weight", "1.bias"}


def test_a_shared_embedding_is_taken_by_any_of_its_places():
    module = nn.ModuleDict({"out": nn.Linear(2, 3), "embed": nn.Embedding(3, 2)})
    module["out"].weight = module["embed"].weight
    assert undecayed(module, of="embeddings") == {"out.weight"}


def test_a_weight_normed_layer_keeps_decay_on_its_weight():
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))
    assert undecayed(module) == {"0.bias"}


def test_a_parametrised_bias_and_norm_keep_their_kind():
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    nn.utils.parametrize.register_parametrization(module[0], "bias", Same())
    nn.utils.parametrize.register_parametrization(module[1], "weight", Same())
    assert undecayed(module) == {"0.parametrizations.bias.original", "1.parametrizations.weight.original", "1.bias"}


@pytest.mark.parametrize("name", ["rprop", "lbfgs", "sparse_adam"])
def test_an_optimizer_without_weight_decay_has_one_group_and_no_such_option(name: str):
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    made = optplug.configure_optimizers(module, name, param_groups="no_decay")["optimizer"]
    (group,) = made.param_groups
    assert "weight_decay" not in group
    assert len(group["params"]) == 4


def test_frozen_parameters_stay_out_of_every_group():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    module[1].requires_grad_(False)
    made = optplug.configure_optimizers(module, "adamw", param_groups="no_decay")["optimizer"]
    assert [[id(p) for p in g["params"]] for g in made.param_groups] == [[id(module[0].weight)], [id(module[0].bias)]]


def test_a_preset_is_a_name_or_a_mapping_or_an_item_of_a_list():
    whole = parse("adam", param_groups="no_decay").param_groups
    assert whole == (NoDecay(),) == (NoDecay(("norms", "biases", "embeddings")),)
    for spelled in (
        ["no_decay"],
        [{"preset": "no_decay"}],
        [{"preset": "no_decay", "of": ["norms", "biases", "embeddings"]}],
    ):
        assert parse("adam", param_groups=spelled).param_groups == whole
    assert parse("adam", param_groups=[{"preset": "no_decay", "of": "norms"}]).param_groups == (NoDecay(("norms",)),)


# --------------------------------------------------------------------------------------- layer decay


def rates(module: nn.Module, *layers: str, decay: float = 0.5, **optimizer: Any) -> dict[str, float]:
    """The learning rate of each trainable parameter, the optimizer's being 1."""
    rules = [{"preset": "layer_decay", "decay": decay, "layers": list(layers)}]
    made = optplug.configure_optimizers(module, {"name": "sgd", "lr": 1.0, **optimizer}, param_groups=rules)[
        "optimizer"
    ]
    known = {id(p): name for name, p in module.named_parameters()}
    return {known[id(p)]: g["lr"] for g in made.param_groups for p in g["params"]}


def tower(depth: int = 3) -> nn.Module:
    def linear() -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    blocks = nn.ModuleList([linear() for _ in range(depth)])
    return nn.ModuleDict({"head": linear(), "blocks": blocks, "embed": linear()})  # not in the order of the layers


def refusal(*args: Any, **kwargs: Any) -> OptplugError:
    with pytest.raises(ConfigError) as caught:
        rates(*args, **kwargs)
    return caught.value


def test_the_rate_falls_from_layer_to_layer_towards_the_input():
    assert rates(tower(), "embed.*", "blocks.{}.*", "head.*") == {
        "embed.weight": 0.0625,
        "blocks.0.weight": 0.125,
        "blocks.1.weight": 0.25,
        "blocks.2.weight": 0.5,
        "head.weight": 1.0,
    }


def test_the_rate_falls_from_the_optimizer_s_own():
    assert rates(tower(1), "embed.*", "blocks.*", "head.*", decay=0.1, lr=2.0) == pytest.approx(
        {"embed.weight": 0.02, "blocks.0.weight": 0.2, "head.weight": 2.0}, rel=1e-12
    )
    rules = [{"preset": "layer_decay", "decay": 0.5, "layers": ["embed.*", "*"]}]
    made = optplug.configure_optimizers(tower(1), "adam", param_groups=rules)["optimizer"]
    assert sorted(g["lr"] for g in made.param_groups) == [0.0005, 0.001]


def test_numbers_are_in_numeric_order():
    found = rates(tower(12), "blocks.{}.*", "*")
    assert [found[f"blocks.{i}.weight"] for i in range(12)] == [0.5 ** (12 - i) for i in range(12)]
    assert found["embed.weight"] == found["head.weight"] == 1.0


def test_several_numbers_are_compared_one_after_the_other():
    stages = nn.ModuleDict(
        {"stages": nn.ModuleList([nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(n)]) for n in (2, 11)])}
    )
    found = rates(stages, "stages.{}.{}.*")
    assert sorted(found, key=found.get) == [
        "stages.0.0.weight",
        "stages.0.1.weight",
        *(f"stages.1.{i}.weight" for i in range(11)),
    ]
    assert len(set(found.values())) == 13


def test_a_number_may_be_missing_between_others():
    module = nn.ModuleDict({f"layer{i}": nn.Linear(1, 1, bias=False) for i in (1, 5, 30)})
    assert rates(module, "layer{}.*") == {"layer1.weight": 0.25, "layer5.weight": 0.5, "layer30.weight": 1.0}


def test_the_first_layer_that_matches_wins():
    assert rates(tower(), "blocks.1.*", "blocks.{}.*", "*") == {
        "blocks.1.weight": 0.125,
        "blocks.0.weight": 0.25,
        "blocks.2.weight": 0.5,
        "embed.weight": 1.0,
        "head.weight": 1.0,
    }


def test_frozen_layers_leave_the_rates_of_the_others_as_they_are():
    module = tower()
    whole = rates(module, "embed.*", "blocks.{}.*", "head.*")
    for frozen in ("blocks.1", "embed", "head"):
        module = tower()
        module.get_submodule(frozen).requires_grad_(False)
        found = rates(module, "embed.*", "blocks.{}.*", "head.*")
        assert found == {name: rate for name, rate in whole.items() if name != f"{frozen}.weight"}


def test_a_shared_parameter_is_in_the_first_layer_that_any_of_its_names_is_in():
    module = tower(1)
    module["head"].weight = module["embed"].weight
    assert rates(module, "embed.*", "*") == {"head.weight": 0.5, "blocks.0.weight": 1.0}


def test_the_groups_are_named_after_their_layers():
    rules = [{"preset": "layer_decay", "decay": 0.5, "layers": ["embed.*", "blocks.{}.*", "head.*"]}]
    made = optplug.configure_optimizers(tower(2), "sgd", param_groups=rules)["optimizer"]
    assert {g["name"] for g in made.param_groups} == {"embed.*", "blocks.0.*", "blocks.1.*", "head.*"}


def test_a_decay_of_one_leaves_one_rate():
    assert set(rates(tower(), "embed.*", "blocks.{}.*", "head.*", decay=1).values()) == {1.0}


def test_a_layer_that_names_nothing_is_refused():
    error = refusal(tower(1), "embed.*", "block.{}.*", "*")
    assert error.loc == "param_groups[0].layers[1]"
    assert str(error) == (
        "param_groups[0].layers[1]: 'block.{}.*' matches no parameter that no layer before it has; they are "
        "head.weight, blocks.0.weight, embed.weight"
    )
    assert refusal(tower(1), "*", "head.*").loc == "param_groups[0].layers[1]"


def test_parameters_in_no_layer_are_refused():
    assert str(refusal(tower(2), "embed.*", "head.*")) == (
        "param_groups[0].layers: name no layer for blocks.0.weight, blocks.1.weight; a last '*' would be a layer of "
        "the rest"
    )


def test_layer_decay_comes_back_from_its_plain_form():
    given = {"preset": "layer_decay", "decay": 0.75, "layers": ["embed.*", "blocks.{}.*", "*"]}
    (rule,) = parse("adam", param_groups=[given]).param_groups
    assert rule == LayerDecay(0.75, ("embed.*", "blocks.{}.*", "*"))
    assert rule.to_dict() == given


def test_layers_of_an_optimizer_of_several_are_those_of_its_parameters():
    module = tower(2)
    module.automatic_optimization = False
    layers = {"preset": "layer_decay", "decay": 0.5, "layers": ["blocks.{}.*", "head.*"]}
    given = [
        {"name": "sgd", "match": "embed.*", "lr": 8.0},
        {"name": "sgd", "match": ["blocks.*", "head.*"], "lr": 1.0, "param_groups": [layers]},
    ]
    _, rest = (entry["optimizer"] for entry in optplug.configure_optimizers(module, given))
    assert sorted(g["lr"] for g in rest.param_groups) == [0.25, 0.5, 1.0]
