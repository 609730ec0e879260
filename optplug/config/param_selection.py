"""Selection of a module's parameters: by name, regular expression, class of the module that holds them, dimensions.

Only the selector key `ndim` depends on the shapes of parameters.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from optplug.errors import ConfigError, listing, suggest

WRAPPER_PREFIXES = re.compile(r"(?<![^.])(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
"""Parts that wrappers add to parameter names. Patterns match names without them."""


@dataclass(frozen=True)
class ModuleAttribute:
    """A module attribute that holds a parameter.

    Attributes:
        name: the full name of the parameter, such as `body.0.weight`, without the parts that wrappers add.
        module: the module that has the attribute.
        local_name: the name of the attribute in `module`, such as `weight`.
        ndim: the number of dimensions of the parameter; None for a lazy parameter that has no shape yet.
    """

    name: str
    module: nn.Module
    local_name: str
    ndim: int | None = None

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the module's class and of its base classes below `nn.Module`."""
        bases = type(self.module).__mro__
        return tuple(base.__name__ for base in bases[: bases.index(nn.Module)])


@dataclass(frozen=True)
class ModuleParameter:
    """A parameter with every module attribute that holds it. A shared parameter has several attributes."""

    tensor: Tensor
    attributes: tuple[ModuleAttribute, ...]

    @property
    def name(self) -> str:
        """The name of the first attribute, which is the name in `named_parameters`, without the parts of wrappers."""
        return self.attributes[0].name

    @property
    def is_trainable(self) -> bool:
        return self.tensor.requires_grad

    @property
    def can_be_trained(self) -> bool:
        """Whether the parameter can require gradients, now or later. Integers, such as quantized weights, cannot."""
        is_number = self.tensor.is_floating_point() or self.tensor.is_complex()
        return self.is_trainable or (is_number and self.tensor.layout is torch.strided)


def module_parameters(module: nn.Module) -> list[ModuleParameter]:
    """All parameters of a module, frozen parameters included, in the order of `named_parameters`."""
    found: dict[int, tuple[Tensor, list[ModuleAttribute]]] = {}
    for prefix, submodule in _named_modules(module):
        for local_name, p in submodule.named_parameters(recurse=False):
            attribute = _attribute(module, prefix, submodule, local_name, None if is_lazy(p) else p.ndim)
            found.setdefault(id(p), (p, []))[1].append(attribute)
    return [ModuleParameter(p, tuple(dict.fromkeys(attributes))) for p, attributes in found.values()]


MAX_MODULE_NAMES = 100_000
"""Limit on the names of submodules. Shared modules nested in shared modules have exponentially many names."""


def _named_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The submodules with their names; a shared submodule appears once for each of its names.

    Where a module contains itself, or where the names exceed `MAX_MODULE_NAMES`, each submodule appears once only.
    """
    try:
        found = list(itertools.islice(module.named_modules(remove_duplicate=False), MAX_MODULE_NAMES))
    except RecursionError:  # a module that contains itself
        found = []
    return found if 0 < len(found) < MAX_MODULE_NAMES else list(module.named_modules())


def _attribute(root: nn.Module, prefix: str, module: nn.Module, local_name: str, ndim: int | None) -> ModuleAttribute:
    name = WRAPPER_PREFIXES.sub("", f"{prefix}.{local_name}" if prefix else local_name)
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        # The parameters of a parametrization compute a tensor of the module two levels up. The class of that module
        # and the name of that tensor are used for selection.
        outer, _, tensor_name = f".{prefix}".rpartition(".parametrizations.")
        return ModuleAttribute(name, root.get_submodule(outer[1:]), tensor_name, ndim)
    return ModuleAttribute(name, module, local_name, ndim)


def known_ndim(attribute: ModuleAttribute) -> int:
    """The number of dimensions of a parameter.

    Raises:
        ConfigError: a lazy parameter has no shape yet.
    """
    if attribute.ndim is None:
        message = f"{attribute.name} has no shape yet: call the model once before its optimizer is built"
        raise ConfigError(message)
    return attribute.ndim


def check_shapes_are_kept(module: nn.Module) -> None:
    """Check that parameters have the shapes of their layers.

    Raises:
        ConfigError: the first version of FSDP has flattened them.
    """
    if any(type(each).__name__ == "FullyShardedDataParallel" for each in module.modules()):
        message = "FSDP has flattened the parameters of the model, so that they cannot be selected by their dimensions"
        raise ConfigError(f"{message}: use FSDP2 (ModelParallelStrategy)")


@dataclass(frozen=True)
class Selector:
    """Selects parameters by patterns.

    Within one key, one matching pattern is enough. Where several keys have patterns, all of these keys must match, for
    one and the same attribute of a shared parameter.

    Attributes:
        match: globs over parameter names; empty where the key is not used.
        regex: regular expressions, searched for in parameter names; empty where the key is not used.
        type: globs over the names of module classes; empty where the key is not used.
        ndim: numbers of dimensions; empty where the key is not used.
    """

    match: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    type: tuple[str, ...] = ()
    ndim: tuple[int, ...] = ()

    def patterns(self) -> Iterator[tuple[str, str | int]]:
        """All patterns, as pairs of selector key and pattern."""
        for key, patterns in vars(self).items():
            for pattern in patterns:
                yield key, pattern

    def selects(self, parameter: ModuleParameter) -> bool:
        return any(self._selects_attribute(attribute) for attribute in parameter.attributes)

    def _selects_attribute(self, attribute: ModuleAttribute) -> bool:
        return all(
            any(_matcher(key, pattern)(attribute) for pattern in patterns)
            for key, patterns in vars(self).items()
            if patterns
        )

    def __str__(self) -> str:
        return " ".join(f"{key} {each}" if isinstance(each, int) else each for key, each in self.patterns())

    def to_dict(self) -> dict[str, Any]:
        return {key: list(patterns) for key, patterns in vars(self).items() if patterns}


@dataclass(frozen=True)
class Rest:
    """Selects the parameters that none of several selectors selects.

    Attributes:
        others: these selectors.
    """

    others: tuple[Selector, ...]

    def selects(self, parameter: ModuleParameter) -> bool:
        return not any(other.selects(parameter) for other in self.others)

    def to_dict(self) -> dict[str, Any]:
        return {"rest": True}


AnySelector = Selector | Rest


@functools.lru_cache(maxsize=4096)
def _matcher(key: str, pattern: str | int) -> Callable[[ModuleAttribute], bool]:
    """A function that returns whether a pattern of a selector key matches a module attribute."""
    if isinstance(pattern, int):
        return lambda attribute: known_ndim(attribute) == pattern
    if key == "match" and not re.search(r"[*?\[]", pattern):
        return lambda attribute: attribute.name == pattern
    compiled = re.compile(pattern if key == "regex" else translate(pattern))
    if key == "match":
        return lambda attribute: compiled.match(attribute.name) is not None
    if key == "regex":
        return lambda attribute: compiled.search(attribute.name) is not None
    return lambda attribute: any(map(compiled.match, attribute.class_names))


def check_selector(selector: AnySelector, parameters: Sequence[ModuleParameter], module: nn.Module) -> None:
    """Check that every pattern of a selector matches a parameter, and that the selector selects one.

    Of several numbers of dimensions, one that matches is enough.

    Args:
        selector: the selector to check.
        parameters: the parameters to select from. A match with a frozen parameter is sufficient.
        module: the module of the parameters, named in messages.

    Raises:
        ConfigError: a pattern matches no parameter, or no parameter is selected by all keys together. For a pattern,
            `loc` is its selector key.
    """
    if isinstance(selector, Rest):
        if not any(map(selector.selects, parameters)):
            message = f"no parameter of {type(module).__name__} is left: the other optimizers select all of them"
            raise ConfigError(message, loc=("rest",))
        return
    if selector.ndim:
        check_shapes_are_kept(module)
    for key, pattern in selector.patterns():
        # Of several numbers of dimensions one is enough: a model may have matrices and no stacks of them.
        matchers = [_matcher(key, each) for each in (selector.ndim if key == "ndim" else (pattern,))]
        attributes = [attribute for parameter in parameters for attribute in parameter.attributes]
        if any(matches(attribute) for matches in matchers for attribute in attributes):
            continue
        if key == "type":
            known = list(dict.fromkeys(a.class_names[0] for p in parameters for a in p.attributes if a.class_names))
            intro = "the classes that have parameters are"
        elif key == "ndim":
            known = sorted({str(a.ndim) for p in parameters for a in p.attributes})
            intro = "the numbers of dimensions of its parameters are"
        else:
            known = [attribute.name for p in parameters for attribute in p.attributes]
            intro = "its parameters are"
        hint = suggest(str(pattern), known, intro=intro)
        raise ConfigError(f"{pattern!r} matches no parameter of {type(module).__name__}{hint}", loc=(key,))
    if not any(selector.selects(parameter) for parameter in parameters):
        conditions = listing(f"{key} {pattern!r}" for key, pattern in selector.patterns())
        raise ConfigError(f"no parameter of {type(module).__name__} is selected by {conditions} together")


def compile_numbered_glob(glob: str) -> re.Pattern[str]:
    """Compile a glob in which `{}` stands for a whole number. The pattern has one group for each `{}`."""
    parts = (translate(part).removesuffix(r"\Z").removesuffix(r"\z") for part in glob.split("{}"))
    return re.compile(r"(\d+)".join(parts) + r"\Z")
