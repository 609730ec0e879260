"""Presets for parameter groups: `no_decay` for norms, biases and embeddings; `layer_decay` for a lr per layer.

Also the kinds of parameters, by their names and the classes of their modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from optplug.config.param_selection import ModuleAttribute, ModuleParameter, compile_numbered_glob
from optplug.errors import (
    ConfigError,
    short_list,
)

GroupAssignment = tuple[str, list[ModuleParameter], dict[str, Any]]
"""Options for parameters, from one rule: a name for the parameter group, the parameters, and their options."""


def is_norm(attribute: ModuleAttribute) -> bool:
    """Whether the name of the module's class, or of a base class, ends in "norm" (`LlamaRMSNorm`, `BatchNorm2d`)."""
    return any(re.search(r"(?i)norm(\dd)?$", name) for name in attribute.class_names)


def is_bias(attribute: ModuleAttribute) -> bool:
    """Whether the attribute's name contains the word "bias" (`bias`, `in_proj_bias`, `bias_ih_l0`)."""
    return re.search(r"(^|_)bias(_|\d*$)", attribute.local_name) is not None


def is_embedding(attribute: ModuleAttribute) -> bool:
    """Whether the module is an embedding, or the attribute is named as one (`pos_embed`, `wte`, `cls_token`).

    A module is an embedding if its class is one of torch's, or if the name of its class or of a base class ends in
    `Embedding` or `Embeddings`.
    """
    if isinstance(attribute.module, (nn.Embedding, nn.EmbeddingBag)):
        return True
    words = r"(^|_)(tokens?|(emb|embed|embeddings?|wte|wpe)(_weights?)?)$"
    by_name = re.search(words, attribute.local_name) is not None
    return by_name or any(re.search(r"Embeddings?$", name) for name in attribute.class_names)


def is_convolution(attribute: ModuleAttribute) -> bool:
    """Whether the attribute is the weight of a convolution."""
    return isinstance(attribute.module, _ConvNd) and not is_bias(attribute) and not is_magnitude(attribute)


def is_magnitude(attribute: ModuleAttribute) -> bool:
    """Whether the attribute is the magnitude of weight norm."""
    module, name = attribute.module, attribute.local_name
    if attribute.name.endswith(".original0") and is_parametrized(module, name):
        return type(module.parametrizations[name][0]).__name__ == "_WeightNorm"  # type: ignore[index]
    return re.search(r"^weight\w*_g$", name) is not None


def is_layer_weight(attribute: ModuleAttribute) -> bool:
    """Whether the attribute is a weight of a layer that multiplies by matrices, whatever their sizes."""
    layers = (nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
    is_layer = isinstance(attribute.module, layers) or any(name.endswith("Linear") for name in attribute.class_names)
    return is_layer and "weight" in attribute.local_name and not is_magnitude(attribute)


PARAMETER_KINDS: dict[str, Callable[[ModuleAttribute], bool]] = {
    "norms": is_norm,
    "biases": is_bias,
    "embeddings": is_embedding,
}
"""The kinds of parameters that `no_decay` can exempt from weight decay."""


@dataclass(frozen=True)
class NoDecay:
    """The preset `no_decay`: weight decay 0 for some kinds of parameters.

    Attributes:
        of: keys of `PARAMETER_KINDS`. Default: all of them.
    """

    of: tuple[str, ...] = tuple(PARAMETER_KINDS)

    name: ClassVar[str] = "no_decay"

    def assignments(self, parameters: Sequence[ModuleParameter], has_weight_decay: bool) -> list[GroupAssignment]:
        # For an optimizer without weight decay, no option needs to be set.
        predicates = [PARAMETER_KINDS[kind] for kind in self.of] if has_weight_decay else []
        found = [p for p in parameters if any(holds(attribute) for holds in predicates for attribute in p.attributes)]
        return [(self.name, found, {"weight_decay": 0.0})]

    def to_dict(self) -> dict[str, Any]:
        return {"preset": self.name, "of": list(self.of)}


@dataclass(frozen=True)
class LayerDecay:
    """The preset `layer_decay`: learning rates that decrease from the output layer to the input layer.

    The last layer has the full learning rate. Each layer before it has `decay` times the learning rate of the next.

    Attributes:
        decay: the factor from one layer to the layer before it, in (0, 1].
        layers: globs over parameter names, in the order from input to output. In a glob, `{}` stands for a whole
            number, and each number is a layer of its own. A parameter belongs to the first layer that matches it.

    Source: Clark, Luong, Le, Manning, ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators,
    2020, https://arxiv.org/abs/2003.10555 (layerwise learning-rate decay).
    """

    decay: float
    layers: tuple[str, ...]

    name: ClassVar[str] = "layer_decay"

    def assignments(self, parameters: Sequence[ModuleParameter], has_weight_decay: bool) -> list[GroupAssignment]:
        layers = self._split_into_layers(parameters)
        last = len(layers) - 1
        return [(name, found, {"lr_mult": self.decay ** (last - i)}) for i, (name, found) in enumerate(layers.items())]

    def _split_into_layers(self, parameters: Sequence[ModuleParameter]) -> dict[str, list[ModuleParameter]]:
        """The parameters of each layer, from input to output.

        Frozen parameters count, so that freezing a layer does not change the learning rates of the others.
        """
        ordered: dict[tuple[int, tuple[int, ...]], list[ModuleParameter]] = {}
        patterns = [compile_numbered_glob(glob) for glob in self.layers]
        unmatched = []
        for p in parameters:
            key = next((k for i, pattern in enumerate(patterns) if (k := _layer_key(p, pattern, i))), None)
            if key is None:
                unmatched.append(p.name)
            else:
                ordered.setdefault(key, []).append(p)
        for i, glob in enumerate(self.layers):
            if all(index != i for index, _ in ordered):
                names = short_list(p.name for p in parameters)
                message = (
                    f"{glob!r} matches no parameter that the previous layers do not match; the parameters are {names}"
                )
                raise ConfigError(message, loc=("layers", i))
        if unmatched:
            message = f"no layer matches {short_list(unmatched)}; add '*' as the last layer for all other parameters"
            raise ConfigError(message, loc=("layers",))
        return {_fill_numbers(self.layers[i], numbers): ordered[i, numbers] for i, numbers in sorted(ordered)}

    def to_dict(self) -> dict[str, Any]:
        return {"preset": self.name, "decay": self.decay, "layers": list(self.layers)}


def _layer_key(p: ModuleParameter, pattern: re.Pattern[str], i: int) -> tuple[int, tuple[int, ...]] | None:
    """The index of the glob and the numbers in the parameter's name, to sort layers by; None without a match."""
    for attribute in p.attributes:
        found = pattern.match(attribute.name)
        if found:
            return i, tuple(map(int, found.groups()))
    return None


def _fill_numbers(glob: str, numbers: tuple[int, ...]) -> str:
    """The glob with a number in place of each `{}`."""
    for number in numbers:
        glob = glob.replace("{}", str(number), 1)
    return glob


FLATTEN = "flatten"
"""An option of optimizers of matrices: take a parameter as a matrix of its first dimension times all others.

An optimizer with this option also takes stacks of matrices: parameters with three dimensions.
"""


@dataclass(frozen=True)
class Flattened:
    """The rule for which the key `convolutions: true` stands: convolutions are taken as matrices."""

    name: ClassVar[str] = "convolutions"

    def assignments(self, parameters: Sequence[ModuleParameter], has_weight_decay: bool) -> list[GroupAssignment]:
        found = [p for p in parameters if any(map(is_convolution, p.attributes))]
        return [(self.name, found, {FLATTEN: True})]

    def to_dict(self) -> dict[str, Any]:
        return {"preset": self.name}
