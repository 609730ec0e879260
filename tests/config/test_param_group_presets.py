"""Presets of parameter groups: `no_decay` and `layer_decay` on typical modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import optplug
from optplug.config.build import build_optimizer, frozen_to_hold, parse_and_check
from optplug.config.param_group_presets import LayerDecay, NoDecay
from optplug.config.param_groups import group_table
from optplug.config.parse import parse
from optplug.errors import ConfigError, OptplugError, loc_text


def without_decay(module: nn.Module, **keys: Any) -> set[str]:
    """The names of the parameters without weight decay under `no_decay`. The others must keep the optimizer's."""
    rules = [{"preset": "no_decay", **keys}]
    made = optplug.configure_optimizers(module, {"name": "adamw", "weight_decay": 0.5}, param_groups=rules)["optimizer"]
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)]: g["weight_decay"] for g in made.param_groups for p in g["params"]}
    assert set(found) == set(names.values())
    assert set(found.values()) <= {0.0, 0.5}
    return {name for name, decay in found.items() if decay == 0.0}


def all_names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


# ------------------------------------------------------------------------------------------ no_decay


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
def test_torch_normalizations_are_norms(norm: nn.Module):
    module = nn.Sequential(nn.Linear(4, 4), norm)
    own = {f"1.{name}" for name in all_names(norm)}
    assert own
    assert without_decay(module, of="norms") == own
    assert without_decay(module) == own | {"0.bias"}
    assert without_decay(module, of=["biases"]) == {name for name in all_names(module) if name.endswith("bias")}


def test_subclass_of_a_torch_normalization_is_a_norm_whatever_its_name():
    class Normaliser(nn.LayerNorm):
        pass

    assert without_decay(nn.Sequential(nn.Linear(2, 2), Normaliser(2)), of="norms") == {"1.weight", "1.bias"}


def module_of_class(name: str) -> nn.Module:
    """A module with the parameter `gain`, whose class has the given name."""
    made: nn.Module = type(name, (nn.Module,), {})()
    made.gain = nn.Parameter(torch.ones(2))
    return made


@pytest.mark.parametrize(
    "name", ["LlamaRMSNorm", "T5LayerNorm", "LayerNorm2d", "MyNorm", "GlobalResponseNorm", "rmsnorm"]
)
def test_class_name_that_ends_in_norm_is_a_norm(name: str):
    assert without_decay(nn.ModuleDict({"a": nn.Linear(2, 2), "b": module_of_class(name)}), of="norms") == {"b.gain"}


@pytest.mark.parametrize("name", ["Normal", "NormalisedAttention", "Enormous", "Scale", "WeightNormLinear"])
def test_other_class_names_that_contain_norm_are_not_norms(name: str):
    module = nn.ModuleDict({"a": nn.LayerNorm(2), "b": module_of_class(name)})
    assert without_decay(module, of="norms") == {"a.weight", "a.bias"}


def test_no_decay_selects_biases_of_attention_and_recurrent_layers():
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    assert without_decay(attention, of="biases") == {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}
    lstm = nn.LSTM(2, 2, num_layers=2, bidirectional=True)
    assert without_decay(lstm, of="biases") == {name for name in all_names(lstm) if name.startswith("bias_")}
    assert len(without_decay(lstm)) == 8
    assert without_decay(nn.GRUCell(2, 2)) == {"bias_ih", "bias_hh"}
    assert without_decay(nn.Bilinear(2, 2, 2)) == {"bias"}


def test_name_must_contain_the_word_bias():
    class Biases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("unbiased", "biased_weight", "weight", "q_bias", "bias2", "relative_position_bias_table"):
                setattr(self, name, nn.Parameter(torch.zeros(1)))

    assert without_decay(Biases(), of="biases") == {"q_bias", "bias2", "relative_position_bias_table"}


def test_module_named_bias_does_not_make_its_weight_a_bias():
    assert without_decay(nn.ModuleDict({"bias": nn.Linear(2, 2)}), of="biases") == {"bias.bias"}


def test_torch_embeddings_are_embeddings():
    module = nn.ModuleDict({"a": nn.Embedding(3, 2), "b": nn.EmbeddingBag(3, 2), "c": nn.Linear(2, 2)})
    assert without_decay(module, of="embeddings") == {"a.weight", "b.weight"}
    assert without_decay(module) == {"a.weight", "b.weight", "c.bias"}


class Vision(nn.Module):
    """Parameters with the names of vision transformers."""

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


def test_parameter_names_that_end_in_embedding_words_are_embeddings():
    own = {"cls_token", "dist_token", "pos_embed", "position_embeddings", "mask_tokens"}
    assert without_decay(Vision(), of="embeddings") == own
    assert without_decay(Vision()) == own | {"patch_embed.bias", "head.bias"}


@pytest.mark.parametrize("name", ["RotaryEmbedding", "BertEmbeddings"])
def test_class_name_that_ends_in_embedding_is_an_embedding(name: str):
    assert without_decay(nn.ModuleDict({"a": nn.Linear(2, 2), "b": module_of_class(name)}), of="embeddings") == {
        "b.gain"
    }


def test_no_decay_on_a_transformer_layer():
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    weights = {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    assert without_decay(layer) == all_names(layer) - weights
    assert without_decay(layer, of=["norms"]) == {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}
    assert without_decay(layer, of=["embeddings", "norms"]) == without_decay(layer, of=["norms"])


def test_no_decay_on_a_transformer():
    module = nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4),
            "body": nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
            "head": nn.Linear(4, 5),
        }
    )
    assert all_names(module) - without_decay(module) == {
        *(
            f"body.layers.{i}.{name}"
            for i in (0, 1)
            for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
        ),
        "head.weight",
    }


def test_no_decay_on_a_convolutional_network():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, bias=False), nn.PReLU())
    assert without_decay(module) == {"0.bias", "1.weight", "1.bias"}


def test_shared_embedding_is_an_embedding_whichever_name_comes_first():
    module = nn.ModuleDict({"out": nn.Linear(2, 3), "embed": nn.Embedding(3, 2)})
    module["out"].weight = module["embed"].weight
    assert without_decay(module, of="embeddings") == {"out.weight"}


def test_no_decay_on_a_layer_with_weight_norm():
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))
    assert without_decay(module) == {"0.bias"}


def test_parametrized_bias_and_norm_weight_keep_their_kind():
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    nn.utils.parametrize.register_parametrization(module[0], "bias", Same())
    nn.utils.parametrize.register_parametrization(module[1], "weight", Same())
    assert without_decay(module) == {"0.parametrizations.bias.original", "1.parametrizations.weight.original", "1.bias"}


@pytest.mark.parametrize("name", ["rprop", "lbfgs", "sparse_adam"])
def test_no_decay_does_nothing_for_an_optimizer_without_weight_decay(name: str):
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    made = optplug.configure_optimizers(module, name, param_groups="no_decay")["optimizer"]
    (group,) = made.param_groups
    assert "weight_decay" not in group
    assert len(group["params"]) == 4


def test_frozen_parameters_are_in_the_groups_of_the_preset():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    module[1].requires_grad_(False)
    config = parse_and_check("adamw", param_groups="no_decay")
    made = build_optimizer(module, config.setup, hold_frozen=frozen_to_hold(module, config))
    names = {id(p): name for name, p in module.named_parameters()}
    assert [[names[id(p)] for p in g["params"]] for g in made.param_groups] == [
        ["0.weight"],
        ["0.bias", "1.weight", "1.bias"],
    ]


def test_lazy_parameters_are_grouped_by_their_names_and_modules():
    module = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    made = optplug.configure_optimizers(module, "adamw", param_groups="no_decay")["optimizer"]
    assert [row.parameters for row in group_table(made, module)] == [("0.weight",), ("0.bias", "1.weight", "1.bias")]
    assert [row.elements for row in group_table(made, module)] == [None, None]
    assert str(group_table(made, module)).splitlines()[1].split()[:3] == ["default", "1", "-"]
    module(torch.ones(3, 4)).sum().backward()
    made.step()
    assert [row.elements for row in group_table(made, module)] == [8, 6]


def test_equivalent_forms_of_no_decay_are_parsed_equally():
    expected = parse("adam", param_groups="no_decay").param_groups
    assert expected == (NoDecay(),) == (NoDecay(("norms", "biases", "embeddings")),)
    for form in (
        ["no_decay"],
        [{"preset": "no_decay"}],
        [{"preset": "no_decay", "of": ["norms", "biases", "embeddings"]}],
    ):
        assert parse("adam", param_groups=form).param_groups == expected
    assert parse("adam", param_groups=[{"preset": "no_decay", "of": "norms"}]).param_groups == (NoDecay(("norms",)),)


# ------------------------------------------------------------------------------------------ layer_decay


def learning_rates(module: nn.Module, *layers: str, decay: float = 0.5, **optimizer: Any) -> dict[str, float]:
    """The learning rate of each trainable parameter under `layer_decay`. The optimizer's is 1 unless given."""
    rules = [{"preset": "layer_decay", "decay": decay, "layers": list(layers)}]
    made = optplug.configure_optimizers(module, {"name": "sgd", "lr": 1.0, **optimizer}, param_groups=rules)[
        "optimizer"
    ]
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: g["lr"] for g in made.param_groups for p in g["params"]}


def layered_network(depth: int = 3) -> nn.Module:
    def linear() -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    blocks = nn.ModuleList([linear() for _ in range(depth)])
    return nn.ModuleDict(
        {"head": linear(), "blocks": blocks, "embed": linear()}
    )  # not in the order from input to output


def raised_error(*args: Any, **kwargs: Any) -> OptplugError:
    with pytest.raises(ConfigError) as caught:
        learning_rates(*args, **kwargs)
    return caught.value


def test_lr_decreases_from_output_to_input():
    assert learning_rates(layered_network(), "embed.*", "blocks.{}.*", "head.*") == {
        "embed.weight": 0.0625,
        "blocks.0.weight": 0.125,
        "blocks.1.weight": 0.25,
        "blocks.2.weight": 0.5,
        "head.weight": 1.0,
    }


def test_last_layer_has_the_lr_of_the_optimizer():
    assert learning_rates(layered_network(1), "embed.*", "blocks.*", "head.*", decay=0.1, lr=2.0) == pytest.approx(
        {"embed.weight": 0.02, "blocks.0.weight": 0.2, "head.weight": 2.0}, rel=1e-12
    )
    rules = [{"preset": "layer_decay", "decay": 0.5, "layers": ["embed.*", "*"]}]
    made = optplug.configure_optimizers(layered_network(1), "adam", param_groups=rules)["optimizer"]
    assert sorted(g["lr"] for g in made.param_groups) == [0.0005, 0.001]


def test_numbered_layers_are_in_numeric_order():
    found = learning_rates(layered_network(12), "blocks.{}.*", "*")
    assert [found[f"blocks.{i}.weight"] for i in range(12)] == [0.5 ** (12 - i) for i in range(12)]
    assert found["embed.weight"] == found["head.weight"] == 1.0


def test_layers_with_several_numbers_are_in_lexicographic_order():
    stages = nn.ModuleDict(
        {"stages": nn.ModuleList([nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(n)]) for n in (2, 11)])}
    )
    found = learning_rates(stages, "stages.{}.{}.*")
    assert sorted(found, key=found.get) == [
        "stages.0.0.weight",
        "stages.0.1.weight",
        *(f"stages.1.{i}.weight" for i in range(11)),
    ]
    assert len(set(found.values())) == 13


def test_layer_numbers_need_not_be_consecutive():
    module = nn.ModuleDict({f"layer{i}": nn.Linear(1, 1, bias=False) for i in (1, 5, 30)})
    assert learning_rates(module, "layer{}.*") == {"layer1.weight": 0.25, "layer5.weight": 0.5, "layer30.weight": 1.0}


def test_parameter_belongs_to_the_first_layer_that_matches():
    assert learning_rates(layered_network(), "blocks.1.*", "blocks.{}.*", "*") == {
        "blocks.1.weight": 0.125,
        "blocks.0.weight": 0.25,
        "blocks.2.weight": 0.5,
        "embed.weight": 1.0,
        "head.weight": 1.0,
    }


def test_frozen_layers_do_not_change_the_lr_of_others():
    module = layered_network()
    expected = learning_rates(module, "embed.*", "blocks.{}.*", "head.*")
    for frozen in ("blocks.1", "embed", "head"):
        module = layered_network()
        module.get_submodule(frozen).requires_grad_(False)
        found = learning_rates(module, "embed.*", "blocks.{}.*", "head.*")
        assert found == {name: lr for name, lr in expected.items() if not name.startswith(frozen)}


def test_shared_parameter_belongs_to_the_first_layer_of_its_names():
    module = layered_network(1)
    module["head"].weight = module["embed"].weight
    assert learning_rates(module, "embed.*", "*") == {"head.weight": 0.5, "blocks.0.weight": 1.0}


def test_layer_decay_groups_are_named_after_their_layers():
    rules = [{"preset": "layer_decay", "decay": 0.5, "layers": ["embed.*", "blocks.{}.*", "head.*"]}]
    made = optplug.configure_optimizers(layered_network(2), "sgd", param_groups=rules)["optimizer"]
    assert {g["name"] for g in made.param_groups} == {"embed.*", "blocks.0.*", "blocks.1.*", "head.*"}


def test_layer_decay_of_one_gives_every_layer_the_same_lr():
    assert set(learning_rates(layered_network(), "embed.*", "blocks.{}.*", "head.*", decay=1).values()) == {1.0}


def test_layer_without_parameters_is_rejected():
    error = raised_error(layered_network(1), "embed.*", "block.{}.*", "*")
    assert loc_text(error.loc) == "param_groups[0].layers[1]"
    assert str(error) == (
        "param_groups[0].layers[1]: 'block.{}.*' matches no parameter that the previous layers do not match; the "
        "parameters are "
        "head.weight, blocks.0.weight, embed.weight"
    )
    assert raised_error(layered_network(1), "*", "head.*").loc == ("param_groups", 0, "layers", 1)


def test_parameters_in_no_layer_are_rejected():
    assert str(raised_error(layered_network(2), "embed.*", "head.*")) == (
        "param_groups[0].layers: no layer matches blocks.0.weight, blocks.1.weight; add '*' as the last layer "
        "for all other parameters"
    )


def test_layer_decay_round_trips():
    given = {"preset": "layer_decay", "decay": 0.75, "layers": ["embed.*", "blocks.{}.*", "*"]}
    (rule,) = parse("adam", param_groups=[given]).param_groups
    assert rule == LayerDecay(0.75, ("embed.*", "blocks.{}.*", "*"))
    assert rule.to_dict() == given


def test_layer_decay_within_one_of_several_optimizers():
    module = layered_network(2)
    module.automatic_optimization = False
    layers = {"preset": "layer_decay", "decay": 0.5, "layers": ["blocks.{}.*", "head.*"]}
    given = [
        {"name": "sgd", "match": "embed.*", "lr": 8.0},
        {"name": "sgd", "match": ["blocks.*", "head.*"], "lr": 1.0, "param_groups": [layers]},
    ]
    _, rest = (entry["optimizer"] for entry in optplug.configure_optimizers(module, given))
    assert sorted(g["lr"] for g in rest.param_groups) == [0.25, 0.5, 1.0]
