"""Parameter groups from rules that cascade, and the table that shows them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from optplug.config.builtins import saved
from optplug.config.error_collector import ErrorCollector, prefix_loc
from optplug.config.param_group_presets import LayerDecay, NoDecay, Take
from optplug.config.param_selection import Parameter, Selector, check_use, parameters_of
from optplug.errors import ConfigError, with_loc

MULTIPLIERS = {"lr_mult": "lr", "wd_mult": "weight_decay"}
"""Options of a rule that multiply an option of the optimizer."""


@dataclass(frozen=True)
class GroupRule:
    """Options for the parameters that a selector selects.

    Attributes:
        select: which parameters. name: for the group. options: of the optimizer, and `MULTIPLIERS`.
    """

    select: Selector
    name: str
    options: dict[str, Any]

    def takes(self, parameters: Sequence[Parameter], has_weight_decay: bool) -> list[Take]:
        return [(self.name, [p for p in parameters if self.select.selects(p)], dict(self.options))]

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.select.to_dict(),
            "name": self.name,
            **{key: saved(value) for key, value in self.options.items()},
        }


AnyRule = GroupRule | NoDecay | LayerDecay


def trainable(module: nn.Module, select: Selector | None = None) -> list[Parameter]:
    """The module's parameters that require gradients.

    Args:
        module: whose parameters. select: which of them; None for all.

    Raises:
        ConfigError: there are none.
    """
    parameters = parameters_of(module)
    if select is not None:
        check_use(select, parameters, module)
        parameters = [p for p in parameters if select.selects(p)]
    found = [p for p in parameters if p.trainable]
    if not found:
        which = "its parameters" if select is None else "those"
        why = f"all {len(parameters)} of {which} are frozen" if parameters else "it has no parameters"
        raise ConfigError(f"{type(module).__name__} has nothing to train: {why}")
    return found


def param_groups(
    module: nn.Module,
    rules: Sequence[AnyRule],
    base: Mapping[str, Any] | None = None,
    select: Selector | None = None,
) -> list[dict[str, Any]]:
    """The groups that rules make of a module's trainable parameters.

    The rules cascade: a parameter takes the options of every rule that takes it, a later rule wins, option by option;
    then `lr` is multiplied by `lr_mult`, and `weight_decay` by `wd_mult`. Parameters with equal options form one group,
    named after the rules it comes from, or `default`.

    Args:
        module: whose parameters to group.
        rules: see `GroupRule` and `optplug.config.param_group_presets`.
        base: the optimizer's options, which multipliers multiply where no rule gives the option.
        select: which parameters; None for all.

    Returns:
        One dict per group, with `params`, `name` (left out when there are no rules) and the options.

    Raises:
        ConfigError: a pattern matches no parameter, there is nothing to train, or two groups share a name; several as
        `ConfigErrors`.
    """
    trained = trainable(module, select)
    if not rules:
        return [{"params": [p.tensor for p in trained]}]
    collector = ErrorCollector()
    everything = [p for p in parameters_of(module) if select is None or select.selects(p)]
    takes: list[tuple[str, Take]] = []
    for i, rule in enumerate(rules):
        loc = f"param_groups[{i}]"
        with collector.collect(loc):
            if isinstance(rule, GroupRule):
                check_use(rule.select, everything, module)
            takes += [(loc, take) for take in rule.takes(everything, base is None or "weight_decay" in base)]
    collector.raise_collected()

    origins: dict[int, list[str]] = {id(p.tensor): [] for p in trained}
    options: dict[int, dict[str, Any]] = {id(p.tensor): {} for p in trained}
    sources: dict[int, dict[str, str]] = {id(p.tensor): {} for p in trained}
    for loc, (name, taken, given) in takes:
        for p in taken:
            if p.trainable and given:
                origins[id(p.tensor)].append(name)
                options[id(p.tensor)].update(given)
                sources[id(p.tensor)].update(dict.fromkeys(given, loc))
    groups: dict[Any, dict[str, Any]] = {}
    for p in trained:
        with collector.collect(""):
            effective = multiplied(options[id(p.tensor)], base or {}, sources[id(p.tensor)])
            name = " + ".join(origins[id(p.tensor)]) or "default"
            group = groups.setdefault(_key(effective), {"params": [], "name": name, **effective})
            group["params"].append(p.tensor)
        collector.raise_collected()
    for name, count in Counter(group["name"] for group in groups.values()).items():
        if count > 1:  # a rule named "default", or "a + b" beside "a" and "b"
            twice = ConfigError(f"two groups would be named {name!r}: give the rule of that name another one")
            raise prefix_loc(twice, "param_groups")
    return list(groups.values())


def _key(value: Any) -> Any:
    """Options as something to look up by: equal for equal options."""
    if isinstance(value, Mapping):
        return frozenset((key, _key(inner)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    return value if isinstance(value, Hashable) else repr(value)


def multiplied(
    options: Mapping[str, Any], base: Mapping[str, Any], locs: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The options with multipliers carried out.

    Args:
        options: of a group. base: of the optimizer. places: where each option stands in the configuration.

    Raises:
        ConfigError: there is no number to multiply.
    """
    result = {key: value for key, value in options.items() if key not in MULTIPLIERS}
    for multiplier, key in MULTIPLIERS.items():
        if multiplier in options:
            value = result.get(key, base.get(key))
            if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
                says = f"{multiplier} multiplies {key}, which is {value!r} here: give the optimizer a number"
                raise with_loc(locs.get(multiplier, ""), ConfigError(says))
            result[key] = value * options[multiplier]
    return result


@dataclass(frozen=True)
class Row:
    """One line of the table of groups.

    Attributes:
        group: its name, or its number where it has none. parameters: the names. elements: of all of them together.
        lr, weight_decay: before schedule and warmup; None where the optimizer has none.
    """

    group: str
    parameters: tuple[str, ...]
    elements: int
    lr: float | None
    weight_decay: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": list(self.parameters)}


class GroupTable(tuple[Row, ...]):
    """The groups of an optimizer, one `Row` each; as text, a table."""

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
class Known:
    """What is remembered of a parameter without holding it: its `id`, name, size, and whether it was trainable."""

    id: int
    name: str
    elements: int
    trainable: bool


def known(module: nn.Module) -> list[Known]:
    """The parameters of a module as they are now; FSDP puts others in their place while it computes."""
    return [Known(id(p.tensor), p.name, p.tensor.numel(), p.trainable) for p in parameters_of(module)]


def group_table(optimizer: Optimizer, module: nn.Module | Sequence[Known] | None = None) -> GroupTable:
    """The parameter groups of an optimizer: group, parameters, elements, learning rate, weight decay.

    Args:
        optimizer: any optimizer.
        module: where the parameters' names are looked up, or what `known` said of it; without one they are numbered.
            With one a last row tells of the parameters that no group has: frozen ones, and those of other optimizers.

    Returns:
        A tuple of `Row`s; `print` shows it as a table.
    """
    parameters = known(module) if isinstance(module, nn.Module) else module or ()
    names = {p.id: p.name for p in parameters}
    rows = []
    for i, group in enumerate(optimizer.param_groups):
        found = tuple(names.pop(id(p), f"{i}.{j}") for j, p in enumerate(group["params"]))
        lr = group.get("initial_lr", group.get("lr"))  # before warmup and schedule
        numbers = (_as_float(lr), _as_float(group.get("weight_decay")))
        rows.append(Row(str(group.get("name", i)), found, sum(p.numel() for p in group["params"]), *numbers))
    rest = [p for p in parameters if p.id in names]
    for word, left in (
        ("frozen", [p for p in rest if not p.trainable]),
        ("elsewhere", [p for p in rest if p.trainable]),
    ):
        if left:
            rows.append(Row(f"({word})", tuple(p.name for p in left), sum(p.elements for p in left), None, None))
    return GroupTable(rows)


def _as_float(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def name_groups(optimizer: Optimizer, known: Sequence[Known], count: int) -> list[str]:
    """Name groups after what their parameters' names have in common: `backbone`, `backbone.0`; else `group N`.

    Args:
        optimizer: whose groups to name. known: its parameters' names. count: how many groups are not new.

    Returns:
        The new groups' names. A group that has one keeps it; one that is taken is numbered, ` 2` and on.
    """
    paths = {p.id: p.name.split(".") for p in known}
    groups = list(enumerate(optimizer.param_groups))
    taken = {group.get("name") for _, group in groups[:count]}
    for i, group in sorted(groups[count:], key=lambda pair: not pair[1].get("name")):  # given names go first
        levels = zip(*(paths.get(id(p), []) for p in group["params"]), strict=False)
        common = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
        name = str(group.get("name") or ".".join(level[0] for level in common) or f"group {i}")
        names = itertools.chain([name], (f"{name} {k}" for k in itertools.count(2)))
        group["name"] = next(one for one in names if one not in taken)
        taken.add(group["name"])
    return [group["name"] for _, group in groups[count:]]
