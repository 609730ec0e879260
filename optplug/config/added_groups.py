"""Parameter groups that are added to an optimizer that was built from a configuration."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from optplug.config.param_groups import (
    AnyGroupRule,
    ParameterInfo,
    RuleOptions,
    apply_multipliers,
    apply_rules,
    common_path,
    hashable,
    name_groups,
    parameter_infos,
)
from optplug.config.param_selection import AnySelector, module_parameters

RenameGroups = Callable[[Optimizer], None]

FOLLOWS_KEY = "lr_follows"
"""Key of a parameter group whose learning rate follows that of a later group: how many groups later it comes."""


class AddParamGroup:
    """The method `add_param_group` of one optimizer that was built from a configuration.

    It differs from the method of the class in three ways:

    - The rules of the configuration apply to the added parameters. Options that are given explicitly have precedence.
      If the rules set different options for some of the parameters, they are added as several groups. With an explicit
      `lr`, the last of these groups has this learning rate, and `lr_mult` sets the ratios of the others to it.
    - A frozen parameter that the optimizer has held from the start is moved to the added group.
    - The groups get names. They are named when they are added, because loggers use the names from then on.

    Args:
        optimizer: the optimizer. Only a weak reference is stored, also to the module.
        module: the module whose parameters the optimizer holds.
        rules: the rules of the configuration, with numbers in place of links. Default: none.
        base: the options of the optimizer.
        select: what the optimizer selects of the module. Default None: all parameters.
        rename_groups: called when added groups have got their names. Default: None.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        rules: Sequence[AnyGroupRule] = (),
        base: Mapping[str, Any] | None = None,
        select: AnySelector | None = None,
        *,
        rename_groups: RenameGroups | None = None,
    ) -> None:
        self._optimizer, self._module = weakref.ref(optimizer), weakref.ref(module)
        self._rules, self._base, self._select = rules, base or {}, select
        self._rename_groups = rename_groups
        # Ids remain valid: the optimizer holds the parameters, and an id leaves the set with the parameter.
        self._frozen = {id(p) for group in optimizer.param_groups for p in group["params"] if not p.requires_grad}

    def __call__(self, param_group: dict[str, Any]) -> None:
        optimizer, module = self._optimizer(), self._module()
        if optimizer is None:
            raise ReferenceError("the optimizer of this method no longer exists")
        add = type(optimizer).add_param_group
        tensors = _tensors(param_group)
        if tensors is None or module is None:  # the method of the class raises for wrong types
            add(optimizer, param_group)
            return
        groups, count = optimizer.param_groups, len(optimizer.param_groups)
        added, before = self._split(param_group, tensors, module), [group["params"] for group in groups]
        moved = {id(p) for p in tensors} & self._frozen
        try:
            for group in groups if moved else ():
                group["params"] = [p for p in group["params"] if id(p) not in moved]
            for group in added:
                add(optimizer, group)
        except BaseException:
            del groups[count:]
            for group, params in zip(groups, before, strict=True):
                group["params"] = params
            raise
        self._frozen -= moved
        name_groups(optimizer, parameter_infos(module), count)
        if self._rename_groups is not None:
            self._rename_groups(optimizer)

    def _split(self, given: dict[str, Any], tensors: Sequence[Tensor], module: nn.Module) -> list[dict[str, Any]]:
        """The groups to add, with the options of the rules. The group with the highest learning rate comes last."""
        if not self._rules:
            return [given]
        ids, options = {id(p) for p in tensors}, {key: value for key, value in given.items() if key != "params"}
        parameters = [
            p
            for p in module_parameters(module)
            if self._select is None or self._select.selects(p) or id(p.tensor) in ids
        ]
        options_of = apply_rules(self._rules, parameters, self._base)
        parts: dict[Any, _Part] = {}
        for p in tensors:
            found = options_of.get(id(p), RuleOptions())
            part = _Part(found, explicit=options, base=self._base)
            parts.setdefault(hashable((part.options, part.lr_ratio)), part).params.append(p)
        ordered = sorted(parts.values(), key=lambda part: (part.lr_ratio, not part.rules))
        return (
            _groups_of(ordered, options, parameter_infos(module))
            if len(parts) > 1
            else [{**given, **ordered[0].options}]
        )


class _Part:
    """Some of the added parameters, with equal options.

    Attributes:
        params: the parameters.
        rules: the names of the rules that select them.
        options: the options of the rules that are not given explicitly.
        lr_ratio: the multiplier of the learning rate, if the learning rate is given explicitly.
    """

    def __init__(self, found: RuleOptions, *, explicit: Mapping[str, Any], base: Mapping[str, Any]) -> None:
        self.params: list[Tensor] = []
        self.rules = found.name
        options = {key: value for key, value in found.options.items() if key not in explicit}
        self.lr_ratio = float(options.pop("lr_mult", 1.0)) if "lr" in explicit else 1.0
        if "weight_decay" in explicit:
            options.pop("wd_mult", None)
        self.options = apply_multipliers(options, base, found.locs)


def _groups_of(
    parts: Sequence[_Part], options: Mapping[str, Any], infos: Sequence[ParameterInfo]
) -> list[dict[str, Any]]:
    """The parts as parameter groups; the learning rates of all but the last follow that of the last."""
    highest = parts[-1].lr_ratio
    path = options.get("name") or common_path([p for part in parts for p in part.params], infos)
    groups = []
    for i, part in enumerate(parts):
        group = {"params": part.params, **part.options, **options}
        if "lr" in options and highest:
            group["lr"] = options["lr"] * (part.lr_ratio / highest)
        if i < len(parts) - 1:
            group[FOLLOWS_KEY] = len(parts) - 1 - i
        name = " + ".join(filter(None, (path, part.rules)))
        if name:
            group["name"] = name
        groups.append(group)
    return groups


def _tensors(param_group: Any) -> list[Tensor] | None:
    """The parameters of a group, which becomes a list in the group; None for other contents than tensors."""
    params = param_group.get("params") if isinstance(param_group, dict) else None
    if isinstance(params, Tensor):
        params = [params]
    if params is None or isinstance(params, (str, set)) or not isinstance(params, Iterable):
        return None
    param_group["params"] = found = list(params)
    return found if all(isinstance(p, Tensor) for p in found) else None


def lr_followers(optimizer: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The parameter groups whose learning rate follows that of another group, each with that group."""
    groups = optimizer.param_groups
    pairs = [(i, i + group[FOLLOWS_KEY]) for i, group in enumerate(groups) if group.get(FOLLOWS_KEY)]
    return [(groups[i], groups[leader]) for i, leader in pairs if leader < len(groups)]
