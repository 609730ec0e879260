"""Which parameters: by name, by regular expression, by the type of the module they belong to. Never by their shape."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from torch import Tensor, nn

from optplug.config.error_collector import ErrorCollector
from optplug.errors import ConfigError, ConfigTypeError, did_you_mean, listing, with_loc

WRAPPERS = re.compile(r"(?<![^.])(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
"""What wrappers put into parameter names; patterns are written against the bare ones."""

SELECTOR_KEYS = {
    "match": "a glob over parameter names",
    "regex": "a regular expression, searched for in parameter names",
    "type": "a glob over the names of module classes, base classes included",
}
"""The ways to say which parameters."""


@dataclass(frozen=True)
class ModuleAttribute:
    """Where a module has a parameter: its bare name, and the module it is an attribute of."""

    name: str
    owner: nn.Module
    own_name: str

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the owner's class and its bases, without the framework's wrappers around them."""
        bases = type(self.owner).__mro__
        return tuple(base.__name__ for base in bases[: bases.index(nn.Module)])


@dataclass(frozen=True)
class Parameter:
    """A parameter of a module with all its places; a shared one has several."""

    tensor: Tensor
    attributes: tuple[ModuleAttribute, ...]

    @property
    def name(self) -> str:
        """The bare name of its first place, which is `named_parameters`' name."""
        return self.attributes[0].name

    @property
    def trainable(self) -> bool:
        return self.tensor.requires_grad


def parameters_of(module: nn.Module) -> list[Parameter]:
    """The parameters of a module, frozen ones too, in the order of `named_parameters`."""
    found: dict[int, tuple[Tensor, list[ModuleAttribute]]] = {}
    for prefix, owner in _modules(module):
        for own_name, p in owner.named_parameters(recurse=False):
            attribute = _attribute(module, prefix, owner, own_name)
            found.setdefault(id(p), (p, []))[1].append(attribute)
    return [Parameter(p, tuple(dict.fromkeys(attributes))) for p, attributes in found.values()]


MOST = 100_000
"""Ways through a module that are followed, so that shared modules within shared modules do not take forever."""


def _modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules with their names, shared ones under each of their names."""
    try:
        found = list(itertools.islice(module.named_modules(remove_duplicate=False), MOST))
    except RecursionError:  # a module that is inside itself
        found = []
    return found if 0 < len(found) < MOST else list(module.named_modules())


def _attribute(root: nn.Module, prefix: str, owner: nn.Module, own_name: str) -> ModuleAttribute:
    name = WRAPPERS.sub("", f"{prefix}.{own_name}" if prefix else own_name)
    if isinstance(owner, nn.utils.parametrize.ParametrizationList):
        # Its parameters make a tensor of the module two levels up: that one's type and own name count.
        outer, _, made = f".{prefix}".rpartition(".parametrizations.")
        return ModuleAttribute(name, root.get_submodule(outer[1:]), made)
    return ModuleAttribute(name, owner, own_name)


@dataclass(frozen=True)
class Selector:
    """A parameter is selected when every way that is used selects it, each by any of its patterns.

    Attributes:
        match, regex, type: patterns, as `SELECTOR_KEYS` says; empty where a way is not used.
    """

    match: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    type: tuple[str, ...] = ()

    def patterns(self) -> Iterator[tuple[str, str]]:
        """Each pattern with its way."""
        for key in SELECTOR_KEYS:
            for pattern in getattr(self, key):
                yield key, pattern

    def selects(self, parameter: Parameter) -> bool:
        return any(self._selects_at(attribute) for attribute in parameter.attributes)

    def _selects_at(self, attribute: ModuleAttribute) -> bool:
        return all(
            any(_way(key, pattern)(attribute) for pattern in patterns)
            for key in SELECTOR_KEYS
            if (patterns := getattr(self, key))
        )

    def __str__(self) -> str:
        return " ".join(pattern for _, pattern in self.patterns())

    def to_dict(self) -> dict[str, list[str]]:
        return {key: list(getattr(self, key)) for key in SELECTOR_KEYS if getattr(self, key)}


@functools.lru_cache(maxsize=4096)
def _way(key: str, pattern: str) -> Callable[[ModuleAttribute], bool]:
    """Whether a pattern selects a place, as a function."""
    if key == "match" and not re.search(r"[*?\[]", pattern):
        return lambda attribute: attribute.name == pattern
    compiled = re.compile(pattern if key == "regex" else translate(pattern))
    if key == "match":
        return lambda attribute: compiled.match(attribute.name) is not None
    if key == "regex":
        return lambda attribute: compiled.search(attribute.name) is not None
    return lambda attribute: any(map(compiled.match, attribute.classes))


def parsed(given: Mapping[str, Any], collector: ErrorCollector, loc: str) -> Selector:
    """The selector of a mapping with some of `SELECTOR_KEYS`; its other keys are left alone.

    What is wrong becomes complaints: a pattern that is no text, an empty list, a regular expression that is none.
    """
    nouns = {"match": "a glob", "regex": "a regular expression", "type": "a glob over class names"}
    ways: dict[str, tuple[str, ...]] = {}
    for key in (key for key in SELECTOR_KEYS if key in given):
        value = given[key]
        patterns = [value] if isinstance(value, str) else value
        with collector.collect(f"{loc}.{key}"):
            if (
                not isinstance(patterns, Sequence)
                or not patterns
                or not all(isinstance(p, str) and p for p in patterns)
            ):
                raise ConfigTypeError(f"must be {nouns[key]}, or a list of them, got {value!r}")
            for pattern in patterns if key == "regex" else ():
                try:
                    re.compile(pattern)
                except (re.error, RecursionError, OverflowError) as wrong:
                    raise ConfigError(f"{pattern!r} is no regular expression: {wrong}") from None
            ways[key] = tuple(patterns)
    return Selector(**ways)


def check_use(selector: Selector, parameters: Sequence[Parameter], module: nn.Module) -> None:
    """Refuse a selector with a pattern that no parameter, not even a frozen one, matches.

    Raises:
        ConfigError: with the nearest names; its place is the way of the pattern.
    """
    for key, pattern in selector.patterns():
        selects = _way(key, pattern)
        if any(selects(attribute) for parameter in parameters for attribute in parameter.attributes):
            continue
        if key == "type":
            known = list(dict.fromkeys(p.classes[0] for q in parameters for p in q.attributes if p.classes))
            noun = "the classes that have some"
        else:
            known = [attribute.name for q in parameters for attribute in q.attributes]
            noun = "its parameters"
        raise with_loc(
            key,
            ConfigError(
                f"{pattern!r} matches no parameter of {type(module).__name__}; {noun} are "
                f"{shortened(known)}{did_you_mean(pattern, known)}"
            ),
        )
    if not any(selector.selects(parameter) for parameter in parameters):
        ways = listing(f"{key} {pattern!r}" for key, pattern in selector.patterns())
        raise ConfigError(f"no parameter of {type(module).__name__} is selected by {ways} together")


def shortened(names: Sequence[str], most: int = 12) -> str:
    """The first of many names."""
    return listing(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def numbered(glob: str) -> re.Pattern[str]:
    """A glob in which `{}` stands for a whole number, as a pattern with a group for each."""
    parts = (translate(part).removesuffix(r"\Z").removesuffix(r"\z") for part in glob.split("{}"))
    return re.compile(r"(\d+)".join(parts) + r"\Z")
