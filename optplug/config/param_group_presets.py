"""Parameter-group rules that have a name: no decay on norms, biases and embeddings; a learning rate for each layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from optplug.config.error_collector import ErrorCollector
from optplug.config.param_selection import ModuleAttribute, Parameter, numbered, shortened
from optplug.errors import ConfigError, ConfigTypeError, did_you_mean, listing, number_hint, with_loc

Take = tuple[str, list[Parameter], dict[str, Any]]
"""What a rule takes: a name for it, the parameters, and the options they get."""


def is_norm(attribute: ModuleAttribute) -> bool:
    """Whether the module's class, or a base of it, is called a norm (`LayerNorm`, `LlamaRMSNorm`, `BatchNorm2d`)."""
    return any(re.search(r"(?i)norm(\dd)?$", name) for name in attribute.classes)


def is_bias(attribute: ModuleAttribute) -> bool:
    """Whether the parameter's own name has the word bias (`bias`, `in_proj_bias`, `bias_ih_l0`)."""
    return re.search(r"(^|_)bias(_|\d*$)", attribute.own_name) is not None


def is_embedding(attribute: ModuleAttribute) -> bool:
    """Whether the module is an embedding, or the parameter is called so (`pos_embed`, `cls_token`)."""
    if isinstance(attribute.owner, (nn.Embedding, nn.EmbeddingBag)):
        return True
    named = re.search(r"(^|_)(embed|embedding|embeddings|token|tokens)$", attribute.own_name) is not None
    return named or any(re.search(r"Embeddings?$", name) for name in attribute.classes)


KINDS: dict[str, Callable[[ModuleAttribute], bool]] = {"norms": is_norm, "biases": is_bias, "embeddings": is_embedding}


@dataclass(frozen=True)
class NoDecay:
    """No weight decay where it does harm.

    Attributes:
        of: of `KINDS`; all of them unless told otherwise.
    """

    of: tuple[str, ...] = tuple(KINDS)

    name: ClassVar[str] = "no_decay"
    keys: ClassVar[tuple[str, ...]] = ("of",)

    @classmethod
    def parsed(cls, given: Mapping[str, Any], collector: ErrorCollector, loc: str) -> NoDecay:
        of = given.get("of", tuple(KINDS))
        of = [of] if isinstance(of, str) else of
        if not isinstance(of, Sequence) or not of or not all(isinstance(kind, str) for kind in of):
            collector.add(ConfigTypeError(f"must be a list of {listing(KINDS)}, got {given['of']!r}"), f"{loc}.of")
            return cls()
        for kind in of:
            if kind not in KINDS:
                hint = did_you_mean(kind, KINDS)
                collector.add(ConfigError(f"there is no {kind!r}; there are {listing(KINDS)}{hint}"), f"{loc}.of")
        return cls(tuple(kind for kind in of if kind in KINDS))

    def takes(self, parameters: Sequence[Parameter], has_weight_decay: bool) -> list[Take]:
        # An optimizer without weight decay does already what is asked for.
        kinds = [KINDS[kind] for kind in self.of] if has_weight_decay else []
        taken = [p for p in parameters if any(kind(attribute) for kind in kinds for attribute in p.attributes)]
        return [(self.name, taken, {"weight_decay": 0.0})]

    def to_dict(self) -> dict[str, Any]:
        return {"preset": self.name, "of": list(self.of)}


@dataclass(frozen=True)
class LayerDecay:
    """A learning rate that falls from layer to layer towards the input: times `decay` for each, 1 for the last.

    Attributes:
        decay: in (0, 1]. layers: globs over parameter names, from the input to the output. In a glob `{}` stands for a
            number and makes a layer of each. A parameter is in the first layer that matches it.

    Source: Clark, Luong, Le, Manning, ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators,
    2020, https://arxiv.org/abs/2003.10555 (layerwise learning-rate decay).
    """

    decay: float
    layers: tuple[str, ...]

    name: ClassVar[str] = "layer_decay"
    keys: ClassVar[tuple[str, ...]] = ("decay", "layers")

    @classmethod
    def parsed(cls, given: Mapping[str, Any], collector: ErrorCollector, loc: str) -> LayerDecay:
        example = "{preset: layer_decay, decay: 0.75, layers: ['embed.*', 'blocks.{}.*', 'head.*']}"
        for key in cls.keys:
            if key not in given:
                collector.add(ConfigError(f"layer_decay needs {key}, such as in {example}"), loc)
        decay, layers, rate = given.get("decay", 1.0), given.get("layers", ["*"]), 1.0
        with collector.collect(f"{loc}.decay"):
            if isinstance(decay, bool) or not isinstance(decay, (int, float)):
                raise ConfigTypeError(f"must be a number, got {decay!r}{number_hint(decay)}")
            if not 0 < decay <= 1:
                raise ConfigError(f"must be above 0 and at most 1, got {str(decay)[:20]}")
            rate = float(decay)
        with collector.collect(f"{loc}.layers"):
            many = isinstance(layers, Sequence) and not isinstance(layers, str)
            if not many or not layers or not all(isinstance(layer, str) and layer for layer in layers):
                raise ConfigTypeError(f"must be a list of globs from input to output, got {layers!r}")
            return cls(rate, tuple(layers))
        return cls(rate, ("*",))

    def takes(self, parameters: Sequence[Parameter], has_weight_decay: bool) -> list[Take]:
        found = self._layers(parameters)
        top = len(found) - 1
        return [(name, taken, {"lr_mult": self.decay ** (top - i)}) for i, (name, taken) in enumerate(found.items())]

    def _layers(self, parameters: Sequence[Parameter]) -> dict[str, list[Parameter]]:
        """The layers in their order, each with its parameters; frozen ones count, so that a layer keeps its rate."""
        ordered: dict[tuple[int, tuple[int, ...]], list[Parameter]] = {}
        patterns = [numbered(glob) for glob in self.layers]
        lost = []
        for p in parameters:
            key = next((k for i, pattern in enumerate(patterns) if (k := _in(p, pattern, i))), None)
            if key is None:
                lost.append(p.name)
            else:
                ordered.setdefault(key, []).append(p)
        for i, glob in enumerate(self.layers):
            if all(index != i for index, _ in ordered):
                names = [p.name for p in parameters]
                raise with_loc(
                    f"layers[{i}]",
                    ConfigError(
                        f"{glob!r} matches no parameter that no layer before it has; they are {shortened(names)}"
                    ),
                )
        if lost:
            raise with_loc(
                "layers", ConfigError(f"name no layer for {shortened(lost)}; a last '*' would be a layer of the rest")
            )
        return {_filled(self.layers[i], numbers): ordered[i, numbers] for i, numbers in sorted(ordered)}

    def to_dict(self) -> dict[str, Any]:
        return {"preset": self.name, "decay": self.decay, "layers": list(self.layers)}


def _in(p: Parameter, pattern: re.Pattern[str], i: int) -> tuple[int, tuple[int, ...]] | None:
    for attribute in p.attributes:
        found = pattern.match(attribute.name)
        if found:
            return i, tuple(map(int, found.groups()))
    return None


def _filled(glob: str, numbers: tuple[int, ...]) -> str:
    for number in numbers:
        glob = glob.replace("{}", str(number), 1)
    return glob


PRESETS: dict[str, type[NoDecay] | type[LayerDecay]] = {preset.name: preset for preset in (NoDecay, LayerDecay)}


def parsed(given: Mapping[str, Any], collector: ErrorCollector, loc: str) -> NoDecay | LayerDecay | None:
    """The preset that a mapping with the key `preset` names, or None; what is wrong becomes complaints."""
    name = given["preset"]
    if not isinstance(name, str):
        collector.add(ConfigTypeError(f"must be the name of a preset, got {name!r}"), f"{loc}.preset")
        return None
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        collector.add(ConfigError(f"there is no preset {name!r}; there are {listing(PRESETS)}{hint}"), f"{loc}.preset")
        return None
    preset = PRESETS[name]
    for key in given:
        if key != "preset" and key not in preset.keys:
            hint = did_you_mean(key, preset.keys)
            collector.add(
                ConfigError(f"preset {name} has no key {key!r}; it has {listing(preset.keys)}{hint}"), f"{loc}.{key}"
            )
    return preset.parsed(given, collector, loc)
