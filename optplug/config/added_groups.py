"""Parameter groups that are added to an optimizer that was built from a configuration."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from optplug.config.matrices import Assignment, assignments
from optplug.config.model import OptimizerEntry
from optplug.config.param_groups import (
    RuleOptions,
    apply_multipliers,
    apply_rules,
    common_path,
    hashable,
    name_groups,
    parameter_infos,
)
from optplug.config.param_selection import ModuleParameter, module_parameters
from optplug.optim.combined import Combined
from optplug.optim.wrappers import set_base_options

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

    - The optimizer may be a combination of an optimizer of matrices and its fallback. The parameters are added to the
      optimizer to which they are assigned, as several groups. An explicit `lr` is then that of the optimizer of the
      first group; the ratio to the learning rate of the other optimizer is that of the configuration.

    Args:
        optimizer: the optimizer. Only a weak reference is stored, also to the module.
        module: the module whose parameters the optimizer holds.
        entry: the part of the configuration that the optimizer is built from.
        members: the entry for each optimizer that is built, with numbers in place of links.
        assigned: the optimizer of each parameter when the optimizer was built; unfreezing does not change it.
        rename_groups: called when added groups have got their names. Default: None.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        entry: OptimizerEntry,
        members: Sequence[OptimizerEntry],
        assigned: Mapping[str, Assignment],
        *,
        rename_groups: RenameGroups | None = None,
    ) -> None:
        self._optimizer, self._module = weakref.ref(optimizer), weakref.ref(module)
        self._entry, self._members, self._assigned = entry, members, assigned
        self._rename_groups = rename_groups
        # Ids remain valid: the optimizer holds the parameters, and an id leaves the set with the parameter.
        self._frozen = {id(p) for group in optimizer.param_groups for p in group["params"] if not p.requires_grad}

    def __call__(self, param_group: dict[str, Any]) -> None:
        optimizer, module = self._optimizer(), self._module()
        if optimizer is None:
            raise ReferenceError("the optimizer of this method no longer exists")
        add = type(optimizer).add_param_group
        tensors = _tensors(param_group)
        if tensors is None or module is None or "member" in param_group:  # the class raises for wrong types
            add(optimizer, param_group)
            return
        groups, count = optimizer.param_groups, len(optimizer.param_groups)
        added, before = self._split(param_group, tensors, module, optimizer), [group["params"] for group in groups]
        moved = {id(p) for p in tensors} & self._frozen
        try:
            for group in groups if moved else ():
                group["params"] = [p for p in group["params"] if id(p) not in moved]
            for group in added:
                add(optimizer, group)
            set_base_options(optimizer, count)
        except BaseException:
            if isinstance(optimizer, Combined):
                optimizer.remove_groups(count)
            else:
                del optimizer.param_groups[count:]
            for group, params in zip(groups, before, strict=False):
                group["params"] = params
            raise
        self._frozen -= moved
        name_groups(optimizer, parameter_infos(module), count)
        if self._rename_groups is not None:
            self._rename_groups(optimizer)

    def _split(
        self, given: dict[str, Any], tensors: Sequence[Tensor], module: nn.Module, optimizer: Optimizer
    ) -> list[dict[str, Any]]:
        """The groups to add, with the options of the rules. The last one has the learning rate that is given.

        The last one is a group of the optimizer that has the first group, if there is one, and of these the one with
        the highest learning rate.
        """
        combined = optimizer if isinstance(optimizer, Combined) else None
        if combined is None and not self._members[0].param_groups:
            return [given]
        ids, explicit = {id(p) for p in tensors}, {key: value for key, value in given.items() if key != "params"}
        select = self._entry.select
        parameters = [
            p for p in module_parameters(module) if select is None or select.selects(p) or id(p.tensor) in ids
        ]
        member_of = self._member_of(module, parameters) if combined is not None else {}
        options_of = [apply_rules(one.param_groups, parameters, one.optimizer.options) for one in self._members]
        parts: dict[Any, _Part] = {}
        for p in tensors:
            index = member_of.get(id(p), len(self._members) - 1)
            found = options_of[index].get(id(p), RuleOptions())
            part = _Part(found, explicit, self._members[index].optimizer.options, index, combined)
            parts.setdefault(hashable((index, part.options, part.lr_ratio)), part).params.append(p)
        leader = combined.member_of_group(0) if combined is not None and combined.param_groups else 0
        ordered = sorted(parts.values(), key=lambda part: (part.member == leader, part.lr_ratio, not part.rules))
        if combined is None and len(parts) == 1:
            return [{**given, **ordered[0].options}]
        path = str(explicit.get("name") or common_path(tensors, parameter_infos(module)))
        names = [
            " + ".join(filter(None, (path, part.rules)))
            if combined is None
            else self._members[part.member].group_name(" + ".join(filter(None, (path, part.rules))))
            for part in ordered
        ]
        return _groups_of(ordered, explicit, names)

    def _member_of(self, module: nn.Module, parameters: Iterable[ModuleParameter]) -> dict[int, int]:
        """The index of the member of each parameter, by the `id` of the tensor."""
        parameters = list(parameters)
        assigned = self._assigned
        if any(p.name not in assigned for p in parameters):
            assigned = {**assignments(module, self._entry), **assigned}
        return {id(p.tensor): assigned[p.name].member for p in parameters if p.name in assigned}


class _Part:
    """Some of the added parameters, with equal options.

    Args:
        found: the options of the rules.
        explicit: the options that are given explicitly.
        base: the options of the optimizer.
        member: the index of the optimizer.
        combined: the combination of the optimizers; None for a single optimizer.

    Attributes:
        params: the parameters.
        rules: the names of the rules that select them.
        member: the index of the optimizer.
        options: the options of the part: those of the rules, and the explicit ones that the optimizer has.
        lr_ratio: what multiplies the learning rate, if the learning rate is given explicitly.
    """

    def __init__(
        self,
        found: RuleOptions,
        explicit: Mapping[str, Any],
        base: Mapping[str, Any],
        member: int,
        combined: Combined | None,
    ) -> None:
        self.params: list[Tensor] = []
        self.rules, self.member = found.name, member
        options = {key: value for key, value in found.options.items() if key not in explicit}
        self.lr_ratio = float(options.pop("lr_mult", 1.0)) if "lr" in explicit else 1.0
        if "weight_decay" in explicit:
            options.pop("wd_mult", None)
        self.options = {**apply_multipliers(options, base, found.locs), **explicit}
        if combined is not None:
            own, *others = [combined.members[i].defaults for i in (member, *range(len(combined.members)))]
            self.options = {
                key: value
                for key, value in self.options.items()
                if key in own or not any(key in other for other in others)
            }
            self.options["member"] = member
            if "lr" in explicit and "lr" in own:
                self.lr_ratio *= float(own["lr"])


def _groups_of(parts: Sequence[_Part], explicit: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The parts as parameter groups; the learning rates of all but the last follow that of the last."""
    highest = parts[-1].lr_ratio
    groups = []
    for i, (part, name) in enumerate(zip(parts, names, strict=True)):
        group = {**part.options, "params": part.params}
        if "lr" in explicit and highest:
            group["lr"] = explicit["lr"] * (part.lr_ratio / highest)
        if i < len(parts) - 1:
            group[FOLLOWS_KEY] = len(parts) - 1 - i
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
