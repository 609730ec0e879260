"""Parameter groups: built from cascading rules, and shown as a table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from optplug.config.form import MULTIPLIERS
from optplug.config.model import DEFAULT_GROUP, AnyGroupRule, GroupRule
from optplug.config.param_selection import AnySelector, ModuleParameter, check_selector, module_parameters
from optplug.errors import ConfigError, ErrorCollector, Loc
from optplug.optim.combined import Combined
from optplug.schedulers.per_group import DEFAULT, SCHEDULE_KEY


def trainable_parameters(module: nn.Module, select: AnySelector | None = None) -> list[ModuleParameter]:
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


def held_parameters(
    module: nn.Module, select: AnySelector | None = None, *, hold_frozen: Collection[str] = ()
) -> list[ModuleParameter]:
    """The module's parameters that its optimizer holds: the trainable ones, and the frozen ones in `hold_frozen`.

    If the training unfreezes a frozen parameter that is held, it is trained. Until then it has no gradient, and the
    optimizer skips it.

    Args:
        module: the module.
        select: selects some of the parameters. Default None: all parameters.
        hold_frozen: the names of the frozen parameters that the optimizer holds too. Default: none.

    Raises:
        ConfigError: no parameter of the module requires gradients, a pattern of `select` matches no parameter, or no
            selected parameter is held.
    """
    parameters = module_parameters(module)
    if not any(p.is_trainable for p in parameters):
        trainable_parameters(module)  # raises
    if select is not None:
        check_selector(select, parameters, module)
    held = [
        p for p in parameters if (p.is_trainable or p.name in hold_frozen) and (select is None or select.selects(p))
    ]
    return held or trainable_parameters(module, select)  # raises


def build_param_groups(
    module: nn.Module,
    rules: Sequence[AnyGroupRule],
    base: Mapping[str, Any] | None = None,
    select: AnySelector | None = None,
    *,
    hold_frozen: Collection[str] = (),
    names: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Build the parameter groups for a module's parameters.

    The rules cascade: a parameter gets the options of every rule that selects it. If several rules set the same option,
    the last rule determines its value. Then `lr` is multiplied by `lr_mult`, and `weight_decay` by `wd_mult`.
    Parameters with equal
    options form one group, which is named after its rules, or `default`.

    Args:
        module: the module whose parameters are grouped.
        rules: the rules, in order; see `GroupRule` and `optplug.config.param_group_presets`.
        base: the optimizer's options. Multipliers apply to them where no rule sets the option.
        select: selects some of the parameters. Default None: all parameters.
        hold_frozen: as in `held_parameters`. Default: none.
        names: the parameters that get a group. The rules may select others too. Default None: all of `select`.

    Returns:
        One dict for each group, with `params`, `name` and the options. Without rules there is one group without `name`.

    Raises:
        ConfigError: a pattern matches no parameter, no parameter is trainable, or two groups have the same name.
            Several errors are raised together as `ConfigErrors`.
    """
    held = held_parameters(module, select, hold_frozen=hold_frozen)
    held = [p for p in held if names is None or p.name in names]
    if not rules:
        return [{"params": [p.tensor for p in held]}]
    candidates = [p for p in module_parameters(module) if select is None or select.selects(p)]
    options_of = apply_rules(rules, candidates, base, module)
    collector = ErrorCollector()
    groups: dict[Any, dict[str, Any]] = {}
    for p in held:
        found = options_of[id(p.tensor)]
        with collector.collect():
            effective = apply_multipliers(found.options, base or {}, found.locs)
            group = groups.setdefault(
                hashable(effective), {"params": [], "name": found.name or DEFAULT_GROUP, **effective}
            )
            group["params"].append(p.tensor)
        collector.raise_collected()
    for name, count in Counter(group["name"] for group in groups.values()).items():
        if count > 1:  # for example a rule named "default", or a rule named "a + b" and rules named "a" and "b"
            message = f"two groups would be named {name!r}: give the rule of this name another name"
            raise ConfigError(message, loc=("param_groups",))
    return list(groups.values())


@dataclass
class RuleOptions:
    """The options of one parameter from all rules that select it.

    Attributes:
        name: the names of the rules, joined with ` + `; empty if no rule sets an option.
        options: the options, multipliers included.
        locs: the location of each option in the configuration.
    """

    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    locs: dict[str, Loc] = field(default_factory=dict)


def apply_rules(
    rules: Sequence[AnyGroupRule],
    parameters: Sequence[ModuleParameter],
    base: Mapping[str, Any] | None,
    module: nn.Module | None = None,
) -> dict[int, RuleOptions]:
    """The options that rules set, by the `id` of the parameter's tensor.

    Args:
        rules: the rules, in order.
        parameters: the parameters to which the rules apply.
        base: the optimizer's options; None if they are unknown.
        module: the module of the parameters. If it is given, every pattern must match one of them.

    Raises:
        ConfigError: a pattern matches no parameter.
        ConfigErrors: several of these errors.
    """
    collector = ErrorCollector()
    found = {id(p.tensor): RuleOptions() for p in parameters}
    has_weight_decay = base is None or "weight_decay" in base
    for i, rule in enumerate(rules):
        loc: Loc = ("param_groups", i)
        with collector.collect(loc):
            if isinstance(rule, GroupRule) and module is not None:
                check_selector(rule.select, parameters, module)
            for name, selected, given in rule.assignments(parameters, has_weight_decay):
                for p in selected if given else ():
                    one = found[id(p.tensor)]
                    one.name = f"{one.name} + {name}" if one.name else name
                    one.options.update(given)
                    one.locs.update(dict.fromkeys(given, loc))
    collector.raise_collected()
    return found


def hashable(value: Any) -> Any:
    """A hashable value that is equal for equal options."""
    if isinstance(value, Mapping):
        return frozenset((key, hashable(inner)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(hashable, value))
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
        elements: the number of elements of those that require gradients; None if a lazy one has no shape yet. For the
            parameters that no group contains: of all.
        lr: the learning rate before schedule and warmup; None if the optimizer has none.
        weight_decay: the weight decay; None if the optimizer has none.
        frozen: the number of its parameters that do not require gradients now.
        frozen_elements: the number of their elements; None as for `elements`.
        reasons: for each parameter, why the optimizer of the group has it; empty if there is one optimizer.
        schedule: the name of its schedule; empty for that of the groups without their own.
    """

    group: str
    parameters: tuple[str, ...]
    elements: int | None
    lr: float | None
    weight_decay: float | None
    frozen: int = 0
    frozen_elements: int | None = 0
    reasons: tuple[str, ...] = ()
    schedule: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data; `reasons`, `schedule` and what counts frozen parameters only if there are any."""
        row = {**asdict(self), "parameters": list(self.parameters), "reasons": list(self.reasons)}
        optional = {"frozen": self.frozen, "frozen_elements": self.frozen, "reasons": self.reasons}
        optional["schedule"] = self.schedule
        return {key: value for key, value in row.items() if optional.get(key, True)}

    @property
    def why(self) -> str:
        """The reasons, each with the names of one or two parameters, or with the number of its parameters."""
        names: dict[str, list[str]] = {}
        for name, reason in zip(self.parameters, self.reasons, strict=False):
            names.setdefault(reason, []).append(name)
        return ", ".join(
            f"{reason} ({', '.join(found) if len(found) <= 2 else f'{len(found):,}'})"
            for reason, found in names.items()
            if reason
        )

    def cells(self) -> dict[str, str]:
        """The texts of the columns. `parameters` and `elements` count those that require gradients."""
        numbers = {
            "parameters": len(self.parameters) - self.frozen,
            "elements": self.elements,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
        }
        frozen = f"{self.frozen:,} ({_format_number(self.frozen_elements)})" if self.frozen else "-"
        texts = {"group": self.group, "frozen": frozen, "schedule": self.schedule or "-", "why": self.why}
        return {**texts, **{key: _format_number(n) for key, n in numbers.items()}}


class GroupTable(tuple[GroupTableRow, ...]):
    """The parameter groups of an optimizer, one `GroupTableRow` each. `str()` formats them as a table."""

    def __str__(self) -> str:
        frozen = ["frozen"] if any(row.frozen for row in self) else []
        schedule = ["schedule"] if any(row.schedule for row in self) else []
        why = ["why"] if any(row.why for row in self) else []
        columns = ("group", "parameters", "elements", *frozen, "lr", "weight_decay", *schedule, *why)
        cells = [columns, *(tuple(row.cells()[column] for column in columns) for row in self)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        texts = ("group", "why")
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column in texts else cell.rjust(width)
                for column, cell, width in zip(columns, line, widths, strict=True)
            ).rstrip()
            for line in cells
        )


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True)
class ParameterInfo:
    """Facts about a parameter, without a reference to its tensor.

    Attributes:
        id: the `id` of the tensor.
        name: the name of the parameter.
        elements: the number of elements; None for a lazy parameter that has no shape yet.
        is_trainable: whether the parameter required gradients.
    """

    id: int
    name: str
    elements: int | None
    is_trainable: bool


def parameter_infos(module: nn.Module) -> list[ParameterInfo]:
    """Facts about the current parameters of a module. (FSDP replaces the parameters during its computations.)"""
    return [
        ParameterInfo(id(p.tensor), p.name, element_count(p.tensor), p.is_trainable) for p in module_parameters(module)
    ]


def element_count(p: Tensor) -> int | None:
    """The number of elements of a parameter; None for a lazy parameter that has no shape yet."""
    return None if nn.parameter.is_lazy(p) else p.numel()


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def group_table(optimizer: Optimizer, module: nn.Module | Sequence[ParameterInfo] | None = None) -> GroupTable:
    """The parameter groups of an optimizer: group, parameters, elements, learning rate, weight decay, schedule.

    For an optimizer of matrices with its fallback, also why each of them has its parameters.

    Args:
        optimizer: any optimizer.
        module: the module that the optimizer trains, or its `parameter_infos`. It gives the names of the parameters;
            without it they are numbered. It also adds one row for its frozen parameters that no group contains, and one
            row for its trainable parameters that no group contains, such as those of other optimizers.
            (The parameters of a group can be frozen too: attributes `frozen` and `frozen_elements` of its row.)

    Returns:
        A tuple of `GroupTableRow`s; `print` shows it as a table.
    """
    infos = parameter_infos(module) if isinstance(module, nn.Module) else module or ()
    names = {info.id: info.name for info in infos}
    why = optimizer.reasons if isinstance(optimizer, Combined) else {}
    rows = []
    for i, group in enumerate(optimizer.param_groups):
        parameters = tuple(names.pop(id(p), f"{i}.{j}") for j, p in enumerate(group["params"]))
        lr = group.get("initial_lr", group.get("lr"))  # initial_lr is the lr before warmup and schedule
        numbers = (_float_or_none(lr), _float_or_none(group.get("weight_decay")))
        trainable, frozen = (
            [element_count(p) for p in group["params"] if p.requires_grad is wanted] for wanted in (True, False)
        )
        counts = (len(frozen), _total(frozen))
        reasons = tuple(why.get(name, "") for name in parameters) if why else ()
        title, schedule = str(group.get("name", i)), str(group.get(SCHEDULE_KEY, DEFAULT))
        rows.append(GroupTableRow(title, parameters, _total(trainable), *numbers, *counts, reasons, schedule))
    ungrouped = [info for info in infos if info.id in names]
    for title, found in (
        ("frozen", [info for info in ungrouped if not info.is_trainable]),
        ("elsewhere", [info for info in ungrouped if info.is_trainable]),
    ):
        if found:
            elements = _total(info.elements for info in found)
            rows.append(GroupTableRow(f"({title})", tuple(info.name for info in found), elements, None, None))
    return GroupTable(rows)


def _float_or_none(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def name_groups(optimizer: Optimizer, infos: Sequence[ParameterInfo], start: int) -> list[str]:
    """Name parameter groups that were added to an optimizer, as `proposed_group_names` describes.

    Args:
        optimizer: the optimizer.
        infos: the names of its parameters.
        start: the index of the first added group.

    Returns:
        The names of the added groups.
    """
    added, names = optimizer.param_groups[start:], proposed_group_names(optimizer, infos, start)
    for group, name in zip(added, names, strict=True):
        group["name"] = name
    return names


def proposed_group_names(optimizer: Optimizer, infos: Sequence[ParameterInfo], start: int) -> list[str]:
    """Names for the parameter groups of an optimizer from the index `start` on.

    A group without a name is named after the common beginning of its parameters' names, for example `backbone.0`, or
    else `group N`. If another group has the name already, a number is appended: `backbone 2`.
    """
    groups = list(enumerate(optimizer.param_groups))
    used = {group.get("name") for _, group in groups[:start]}
    names = {}
    for i, group in sorted(groups[start:], key=lambda pair: not pair[1].get("name")):  # given names have precedence
        name = str(group.get("name") or common_path(group["params"], infos) or f"group {i}")
        candidates = itertools.chain([name], (f"{name} {k}" for k in itertools.count(2)))
        names[i] = next(candidate for candidate in candidates if candidate not in used)
        used.add(names[i])
    return [names[i] for i in sorted(names)]


def common_path(params: Iterable[Tensor], infos: Sequence[ParameterInfo]) -> str:
    """The common beginning of the parameters' names, such as `backbone.0`; empty if there is none."""
    paths = {info.id: info.name.split(".") for info in infos}
    levels = zip(*(paths.get(id(p), []) for p in params), strict=False)
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
