"""Parameter groups: built from cascading rules, and shown as a table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from optplug.config.form import MULTIPLIERS
from optplug.config.param_group_presets import GroupAssignment, LayerDecay, NoDecay
from optplug.config.param_selection import ModuleParameter, Selector, check_selector, module_parameters
from optplug.config.plain_data import to_serializable
from optplug.errors import ConfigError, ErrorCollector, Loc


@dataclass(frozen=True)
class GroupRule:
    """A rule that sets options for the parameters that a selector selects.

    Attributes:
        select: selects the parameters.
        name: a name for the parameter group.
        options: options of the optimizer, and keys of `MULTIPLIERS`.
    """

    select: Selector
    name: str
    options: dict[str, Any]

    def assignments(self, parameters: Sequence[ModuleParameter], has_weight_decay: bool) -> list[GroupAssignment]:
        return [(self.name, [p for p in parameters if self.select.selects(p)], dict(self.options))]

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.select.to_dict(),
            "name": self.name,
            **{key: to_serializable(value) for key, value in self.options.items()},
        }


AnyGroupRule = GroupRule | NoDecay | LayerDecay


def trainable_parameters(module: nn.Module, select: Selector | None = None) -> list[ModuleParameter]:
    """The module's parameters that require gradients.

    Args:
        module: the module.
        select: selects some of the parameters. Default None: all parameters.

    Raises:
        ConfigError: no parameter requires gradients, or a pattern of `select` matches no parameter.
    """
    parameters = module_parameters(module)
    if select is not None:
        check_selector(select, parameters, module)
        parameters = [p for p in parameters if select.selects(p)]
    found = [p for p in parameters if p.is_trainable]
    if not found:
        which = "" if select is None else "selected "
        why = f"all {len(parameters)} {which}parameters are frozen" if parameters else "it has no parameters"
        raise ConfigError(f"{type(module).__name__} has no trainable parameters: {why}")
    return found


def build_param_groups(
    module: nn.Module,
    rules: Sequence[AnyGroupRule],
    base: Mapping[str, Any] | None = None,
    select: Selector | None = None,
) -> list[dict[str, Any]]:
    """Build the parameter groups for a module's trainable parameters.

    The rules cascade: a parameter gets the options of every rule that selects it. If several rules set the same option,
    the last rule determines its value. Then `lr` is multiplied by `lr_mult`, and `weight_decay` by `wd_mult`.
    Parameters with equal
    options form one group, which is named after its rules, or `default`.

    Args:
        module: the module whose parameters are grouped.
        rules: the rules, in order; see `GroupRule` and `optplug.config.param_group_presets`.
        base: the optimizer's options. Multipliers apply to them where no rule sets the option.
        select: selects some of the parameters. Default None: all parameters.

    Returns:
        One dict for each group, with `params`, `name` and the options. Without rules there is one group without `name`.

    Raises:
        ConfigError: a pattern matches no parameter, no parameter is trainable, or two groups have the same name.
            Several errors are raised together as `ConfigErrors`.
    """
    trained = trainable_parameters(module, select)
    if not rules:
        return [{"params": [p.tensor for p in trained]}]
    collector = ErrorCollector()
    candidates = [p for p in module_parameters(module) if select is None or select.selects(p)]
    assignments: list[tuple[Loc, GroupAssignment]] = []
    for i, rule in enumerate(rules):
        loc: Loc = ("param_groups", i)
        with collector.collect(loc):
            if isinstance(rule, GroupRule):
                check_selector(rule.select, candidates, module)
            has_weight_decay = base is None or "weight_decay" in base
            assignments += [(loc, assignment) for assignment in rule.assignments(candidates, has_weight_decay)]
    collector.raise_collected()

    rule_names: dict[int, list[str]] = {id(p.tensor): [] for p in trained}
    options: dict[int, dict[str, Any]] = {id(p.tensor): {} for p in trained}
    locs: dict[int, dict[str, Loc]] = {id(p.tensor): {} for p in trained}
    for loc, (name, selected, given) in assignments:
        for p in selected:
            if p.is_trainable and given:
                rule_names[id(p.tensor)].append(name)
                options[id(p.tensor)].update(given)
                locs[id(p.tensor)].update(dict.fromkeys(given, loc))
    groups: dict[Any, dict[str, Any]] = {}
    for p in trained:
        with collector.collect():
            effective = apply_multipliers(options[id(p.tensor)], base or {}, locs[id(p.tensor)])
            name = " + ".join(rule_names[id(p.tensor)]) or "default"
            group = groups.setdefault(_hashable(effective), {"params": [], "name": name, **effective})
            group["params"].append(p.tensor)
        collector.raise_collected()
    for name, count in Counter(group["name"] for group in groups.values()).items():
        if count > 1:  # for example a rule named "default", or a rule named "a + b" and rules named "a" and "b"
            message = f"two groups would be named {name!r}: give the rule of this name another name"
            raise ConfigError(message, loc=("param_groups",))
    return list(groups.values())


def _hashable(value: Any) -> Any:
    """A hashable value that is equal for equal options."""
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return value if isinstance(value, Hashable) else repr(value)


def apply_multipliers(
    options: Mapping[str, Any], base: Mapping[str, Any], locs: Mapping[str, Loc] = MappingProxyType({})
) -> dict[str, Any]:
    """The options of a parameter with the multipliers applied.

    Args:
        options: the options from the rules, multipliers included.
        base: the options of the optimizer, multiplied where `options` lacks the option.
        locs: the location of each option in the configuration, for errors.

    Raises:
        ConfigError: the option to multiply is not a number.
    """
    result = {key: value for key, value in options.items() if key not in MULTIPLIERS}
    for multiplier, key in MULTIPLIERS.items():
        if multiplier in options:
            value = result.get(key, base.get(key))
            if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
                message = f"{multiplier} multiplies {key}, which is {value!r}: give the optimizer a number for {key}"
                raise ConfigError(message, loc=locs.get(multiplier, ()))
            result[key] = value * options[multiplier]
    return result


@dataclass(frozen=True)
class GroupTableRow:
    """One row of the table of parameter groups.

    Attributes:
        group: the name of the group, or its index if it has no name.
        parameters: the names of its parameters.
        elements: the total number of elements of its parameters.
        lr: the learning rate before schedule and warmup; None if the optimizer has none.
        weight_decay: the weight decay; None if the optimizer has none.
    """

    group: str
    parameters: tuple[str, ...]
    elements: int
    lr: float | None
    weight_decay: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": list(self.parameters)}


class GroupTable(tuple[GroupTableRow, ...]):
    """The parameter groups of an optimizer, one `GroupTableRow` each. `str()` formats them as a table."""

    def __str__(self) -> str:
        header = ("group", "parameters", "elements", "lr", "weight_decay")
        cells: list[tuple[str, ...]] = [header]
        for row in self:
            numbers = ("-" if x is None else f"{x:g}" for x in (row.lr, row.weight_decay))
            cells.append((row.group, f"{len(row.parameters):,}", f"{row.elements:,}", *numbers))
        widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
        return "\n".join(
            "  ".join((line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))))
            for line in cells
        )


@dataclass(frozen=True)
class ParameterInfo:
    """Facts about a parameter, without a reference to its tensor.

    Attributes:
        id: the `id` of the tensor.
        name: the name of the parameter.
        elements: the number of elements.
        is_trainable: whether the parameter required gradients.
    """

    id: int
    name: str
    elements: int
    is_trainable: bool


def parameter_infos(module: nn.Module) -> list[ParameterInfo]:
    """Facts about the current parameters of a module. (FSDP replaces the parameters during its computations.)"""
    return [ParameterInfo(id(p.tensor), p.name, p.tensor.numel(), p.is_trainable) for p in module_parameters(module)]


def group_table(optimizer: Optimizer, module: nn.Module | Sequence[ParameterInfo] | None = None) -> GroupTable:
    """The parameter groups of an optimizer: group, parameters, elements, learning rate, weight decay.

    Args:
        optimizer: any optimizer.
        module: the module that the optimizer trains, or its `parameter_infos`. It gives the names of the parameters;
            without it they are numbered. It also adds one row for its frozen parameters that no group contains, and one
            row for its trainable parameters that no group contains, such as those of other optimizers.

    Returns:
        A tuple of `GroupTableRow`s; `print` shows it as a table.
    """
    infos = parameter_infos(module) if isinstance(module, nn.Module) else module or ()
    names = {info.id: info.name for info in infos}
    rows = []
    for i, group in enumerate(optimizer.param_groups):
        parameters = tuple(names.pop(id(p), f"{i}.{j}") for j, p in enumerate(group["params"]))
        lr = group.get("initial_lr", group.get("lr"))  # initial_lr is the lr before warmup and schedule
        numbers = (_float_or_none(lr), _float_or_none(group.get("weight_decay")))
        elements = sum(p.numel() for p in group["params"])
        rows.append(GroupTableRow(str(group.get("name", i)), parameters, elements, *numbers))
    ungrouped = [info for info in infos if info.id in names]
    for title, found in (
        ("frozen", [info for info in ungrouped if not info.is_trainable]),
        ("elsewhere", [info for info in ungrouped if info.is_trainable]),
    ):
        if found:
            elements = sum(info.elements for info in found)
            rows.append(GroupTableRow(f"({title})", tuple(info.name for info in found), elements, None, None))
    return GroupTable(rows)


def _float_or_none(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def name_groups(optimizer: Optimizer, infos: Sequence[ParameterInfo], start: int) -> list[str]:
    """Name parameter groups that were added to an optimizer.

    A group without a name is named after the common beginning of its parameters' names, for example `backbone.0`, or
    else `group N`. If another group has the name already, a number is appended: `backbone 2`.

    Args:
        optimizer: the optimizer.
        infos: the names of its parameters.
        start: the index of the first added group.

    Returns:
        The names of the added groups.
    """
    paths = {info.id: info.name.split(".") for info in infos}
    groups = list(enumerate(optimizer.param_groups))
    used = {group.get("name") for _, group in groups[:start]}
    for i, group in sorted(groups[start:], key=lambda pair: not pair[1].get("name")):  # given names have precedence
        levels = zip(*(paths.get(id(p), []) for p in group["params"]), strict=False)
        common = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
        name = str(group.get("name") or ".".join(level[0] for level in common) or f"group {i}")
        candidates = itertools.chain([name], (f"{name} {k}" for k in itertools.count(2)))
        group["name"] = next(candidate for candidate in candidates if candidate not in used)
        used.add(group["name"])
    return [group["name"] for _, group in groups[start:]]
