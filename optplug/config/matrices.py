"""Which parameters of a model an optimizer of matrices gets, such as Muon, and which its fallback gets.

An optimizer of matrices (capability `matrix_only`) gets the weights of hidden layers. Embeddings, the output layer,
vectors and, by default, convolutions go to the fallback.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from optplug.config.model import AnyGroupRule, FallbackConfig, GroupRule, OptimizerConfig, OptimizerEntry
from optplug.config.param_group_presets import (
    FLATTEN,
    is_bias,
    is_convolution,
    is_embedding,
    is_layer_weight,
    is_norm,
)
from optplug.config.param_selection import (
    ModuleParameter,
    Selector,
    check_selector,
    check_shapes_are_kept,
    known_ndim,
    module_parameters,
)
from optplug.errors import ConfigError, ErrorCollector, listing, short_list
from optplug.registry.signature import configurable_arguments


@dataclass(frozen=True)
class Assignment:
    """The optimizer of a parameter, and why.

    Attributes:
        member: the index in `OptimizerEntry.members`.
        reason: what the parameter is, in the field's terms; empty if the entry has one optimizer.
    """

    member: int
    reason: str = ""


def assignments(module: nn.Module, entry: OptimizerEntry) -> dict[str, Assignment]:
    """The assignment of each parameter that an entry selects, frozen ones included, by the name of the parameter.

    Args:
        module: the module.
        entry: what is built for these parameters.

    Raises:
        ConfigError: a pattern matches no parameter, a lazy parameter has no shape yet, or an optimizer without fallback
            gets a parameter that is no matrix.
        ConfigErrors: several of these errors.
    """
    parameters = [p for p in module_parameters(module) if entry.select is None or entry.select.selects(p)]
    fallback, loc = entry.fallback, entry.optimizer.loc
    if fallback is None:
        _check_matrices(entry, parameters)
        return {p.name: Assignment(0) for p in parameters}
    collector, found = ErrorCollector(), {}
    with collector.collect(loc):
        check_shapes_are_kept(module)
    if fallback.match is not None:
        with collector.collect((*loc, "fallback")):
            check_selector(fallback.match, parameters, module)
    output: Collection[int] = ()
    with collector.collect((*loc, "output")):
        output = _output_parameters(module, fallback, parameters)
    collector.raise_collected()
    kinds = _kinds_taken(entry.optimizer, fallback)
    takes_complex = "complex" in entry.optimizer.registration.spec.capabilities
    for p in parameters:
        with collector.collect(loc):
            if fallback.match is not None and fallback.match.selects(p):
                found[p.name] = Assignment(1, "selected by fallback")
            elif id(p.tensor) in output and not any(map(is_embedding, p.attributes)):  # it may be tied to one
                found[p.name] = Assignment(1, "output layer")
            elif p.tensor.is_complex() and not takes_complex:
                found[p.name] = Assignment(1, "complex numbers")
            else:
                kind = _kind(p)
                found[p.name] = Assignment(0 if kind in kinds else 1, kind)
    collector.raise_collected()
    return found


def _kinds_taken(optimizer: OptimizerConfig, fallback: FallbackConfig) -> set[str]:
    """The kinds of parameters that an optimizer of matrices takes."""
    takes_stacks = FLATTEN in configurable_arguments(optimizer.registration)
    taken = {"matrix": True, "stack of matrices": takes_stacks, "convolution": fallback.convolutions}
    return {kind for kind, is_taken in taken.items() if is_taken}


def _kind(p: ModuleParameter) -> str:
    """What a parameter is, by its layers, its names and its dimensions.

    Raises:
        ConfigError: it has no shape yet, which is needed.
    """
    layers = {"embedding": is_embedding, "convolution": is_convolution}
    for kind, holds in layers.items():
        if any(map(holds, p.attributes)):
            return kind
    ndim = known_ndim(p.attributes[0])
    has_rows_and_columns = min(p.tensor.shape[-2:], default=0) > 1
    if ndim < 2 or not (has_rows_and_columns or any(map(is_layer_weight, p.attributes))):
        return "vector" if ndim else "scalar"  # such as scales of the shape (8, 1, 1)
    vectors = {"norm": is_norm, "bias": is_bias}  # such as the biases of several experts in one parameter
    for kind, holds in vectors.items():
        if any(map(holds, p.attributes)):
            return kind
    return {2: "matrix", 3: "stack of matrices"}.get(ndim, f"{ndim} dimensions")


def warn_without_matrices(entry: OptimizerEntry, assigned: Mapping[str, Assignment]) -> None:
    """Warn if an optimizer of matrices with a fallback gets no parameter, not even a frozen one."""
    if entry.fallback is None or any(one.member == 0 for one in assigned.values()):
        return
    matrices, fallback = (member.optimizer.registration.name for member in entry.members)
    found = {one.reason for one in assigned.values()}
    hints = ["output: [] takes the last layer too"] if "output layer" in found and entry.fallback.output is None else []
    hints += ["convolutions: true takes convolutions too"] if "convolution" in found else []
    hint = f" ({'; '.join(hints)})" if hints else ""
    message = f"{matrices} gets no parameter, {fallback} trains all of them: the model has no hidden matrices{hint}"
    warnings.warn(message, UserWarning, stacklevel=2)


def check_rules(module: nn.Module, entry: OptimizerEntry, assigned: Mapping[str, Assignment]) -> None:
    """Check that each option of a group rule reaches a parameter: its optimizer must be one that has the option.

    Raises:
        ConfigError: an option is one of the other optimizer only.
        ConfigErrors: several of these errors.
    """
    collector, members, parameters = ErrorCollector(), entry.members, module_parameters(module)
    names = [member.optimizer.registration.name for member in members]
    for i, rule in enumerate(entry.param_groups):
        if not isinstance(rule, GroupRule):
            continue
        holders = {assigned[p.name].member for p in parameters if p.name in assigned and rule.select.selects(p)}
        for key in rule.options if holders else ():
            takers = [k for k, member in enumerate(members) if key in _options(member.param_groups[i])]
            if not holders.intersection(takers):
                has, holds = listing(names[k] for k in takers), listing(names[k] for k in holders)
                message = f"{key} is an option of {has}, but {rule.select} selects parameters of {holds} only"
                collector.add(ConfigError(message), (*entry.groups_loc, i, key))
    collector.raise_collected()


def _options(rule: AnyGroupRule) -> Mapping[str, Any]:
    return rule.options if isinstance(rule, GroupRule) else {}


def _check_matrices(entry: OptimizerEntry, parameters: Sequence[ModuleParameter]) -> None:
    """Check that an optimizer of matrices without fallback gets matrices only.

    Raises:
        ConfigError: it gets other parameters.
    """
    registration = entry.optimizer.registration
    if "matrix_only" in registration.spec.capabilities:
        others = [p.name for p in parameters if known_ndim(p.attributes[0]) < 2]
        if others:
            raise ConfigError(
                f"{registration.name} takes parameters with two or more dimensions only, and is given "
                f"{short_list(others)}: select with ndim: 2 too, and give another optimizer rest: true",
                loc=entry.optimizer.loc,
            )


# ------------------------------------------------------------------------------------------ the output layer


def _output_parameters(module: nn.Module, fallback: FallbackConfig, parameters: Sequence[ModuleParameter]) -> set[int]:
    """The ids of the parameters of the output layer.

    Raises:
        ConfigError: a pattern of `output` matches no parameter.
    """
    if fallback.output is not None:
        if not fallback.output:
            return set()
        select = Selector(match=fallback.output)
        try:
            check_selector(select, parameters, module)
        except ConfigError as error:
            error.loc = ()  # the globs have no key `match`
            raise
        return {id(p.tensor) for p in parameters if select.selects(p)}
    layers = (nn.Linear, _ConvNd) if fallback.convolutions else (nn.Linear,)
    selected = {id(p.tensor) for p in parameters}
    return {id(p) for layer in _output_layers(module, layers, selected) for p in layer.parameters()} & selected


def _output_layers(module: nn.Module, layers: tuple[type, ...], selected: Collection[int]) -> list[nn.Module]:
    """The output layers that a model or its direct children declare; and the last layer, if it is outside of these.

    The last layer is one that is trained, if there is one: a frozen teacher or an average of the weights may come last.

    Args:
        module: the model.
        layers: the classes of layers that can be the last one.
        selected: the ids of the parameters, one of which an output layer must have.
    """
    declared: list[nn.Module] = []
    inner: set[int] = set()
    for each in (module, *module.children()):
        found = [layer for layer in _declared_outputs(each) if _has_parameter(layer, selected)]
        declared += found
        inner |= {id(submodule) for submodule in each.modules()} if found else set()
    linear = [one for one in module.modules() if isinstance(one, layers) and _has_parameter(one, selected)]
    averages = {id(one) for each in module.modules() if _is_average(each) for one in each.modules()}
    trained = [one for one in linear if id(one) not in averages and any(p.requires_grad for p in one.parameters())]
    return [*declared, *(one for one in (trained or linear)[-1:] if id(one) not in inner)]


def _declared_outputs(module: Any) -> Iterator[nn.Module]:
    """What `get_output_embeddings` (transformers) and `get_classifier` (timm) of a module return."""
    for name in ("get_output_embeddings", "get_classifier"):
        method = getattr(module, name, None)
        found = None
        with suppress(Exception):  # a model without output layer, or another method of this name
            found = method() if callable(method) else None
        for layer in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(layer, nn.Module):
                yield layer


def _is_average(module: nn.Module) -> bool:
    """Whether a module is an average of another: an `AveragedModel` of torch, whose parameters require gradients."""
    return any(cls.__name__ == "AveragedModel" for cls in type(module).__mro__)


def _has_parameter(module: nn.Module, selected: Collection[int]) -> bool:
    return any(id(p) in selected for p in module.parameters())
