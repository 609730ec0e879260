"""`Combined`: several optimizers as one, for trainers that step a single optimizer."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from optplug.engines._torch_compat import load_state_dict_hooks
from optplug.errors import ConfigError, ConfigTypeError, ParameterError, did_you_mean, listing
from optplug.registry.specs import snake_case

if TYPE_CHECKING:
    from optplug.engines.report import BucketReport


class Combined(Optimizer):
    """Steps several optimizers, its members, as one. Each member has its own parameters.

    The parameter groups are those of the members; the dicts are shared. Each group gets a unique `name`: its own name,
    or else the name of its member. A number is appended to a name that is already used.
    `defaults` contains the keys that all members have, with the values of the first member.
    `train()` and `eval()` exist if a member has both. They call the method on every such member.

    Args:
        optimizers: the members. Schedulers, hooks and checkpoints must use the combination instead of the members.
        reasons: by the name of a parameter, why its member has it, for tables. Default: none.
        names: the names of the members. Default: their class names in snake case.

    Raises:
        ConfigTypeError: a member is not an optimizer.
        ConfigError: the list is empty, or a member needs a closure.
        ParameterError: two members have the same parameter.
    """

    members: list[Optimizer]
    train: Callable[[], None]
    eval: Callable[[], None]
    reasons: Mapping[str, str]
    names: list[str]
    _order: list[int]  # for each group the index of its member; new groups go last because schedulers expect that

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        *,
        reasons: Mapping[str, str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        members = list(optimizers) if isinstance(optimizers, Iterable) else [optimizers]
        if not members:
            raise ConfigError("Combined needs at least one optimizer, got none")
        for member in members:
            _check_member(member)
        _check_disjoint(members)
        first, *others = (member.defaults for member in members)
        defaults = {key: value for key, value in first.items() if all(key in other for other in others)}
        # Optimizer.__init__ is not called: it would create groups and a state, which the members already have.
        named = {
            "reasons": dict(reasons or {}),
            "names": list(names or [snake_case(type(member).__name__) for member in members]),
        }
        self.__setstate__({"defaults": defaults, "members": members, "_order": [], **named})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share_state_and_name_groups()
        with_modes: list[Any] = [member for member in self.members if has_train_eval_modes(member)]
        if with_modes:  # otherwise the attributes must not exist: callers check for them
            self.train = partial(_call_all, [member.train for member in with_modes])
            self.eval = partial(_call_all, [member.eval for member in with_modes])

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the members; the dicts are shared with the members."""
        for index, member in enumerate(self.members):
            self._order.extend([index] * (len(member.param_groups) - self._order.count(index)))
        groups = [iter(member.param_groups) for member in self.members]
        return [next(groups[index]) for index in self._order]

    @param_groups.setter
    def param_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        # Lightning's finetuning callbacks assign the groups when they resume; groups that they added come last.
        added = [self._member_index(group.get("member")) for group in groups[len(self._order) :]]
        if len(groups) < len(self._order):
            raise ConfigError(f"Combined has {len(self._order)} parameter groups, got {len(groups)}")
        self._order.extend(added)
        for index, member in enumerate(self.members):
            member.param_groups = self._select(index, groups)
        self._share_state_and_name_groups()

    def _select(self, index: int, items: Iterable[Any]) -> list[Any]:
        """From items, one per parameter group, select those of the member with this index."""
        return [item for item, member_index in zip(items, self._order, strict=True) if member_index == index]

    def _share_state_and_name_groups(self) -> None:
        """Make all members use one state mapping, and give every group a unique name."""
        self.state = self.state
        used: set[str] = set()
        groups = list(zip(self.param_groups, self._order, strict=True))
        for group, index in sorted(groups, key=lambda pair: not pair[0].get("name")):  # given names have priority
            name = group.get("name") or self.names[index]
            group["name"] = unique_name(name, used)
            used.add(group["name"])

    def _member_index(self, wanted: Any) -> int:
        """Return the index of the member with this index or class name."""
        names = [type(member).__name__ for member in self.members]
        fits = [i for i, name in enumerate(names) if not isinstance(wanted, bool) and wanted in (i, name)]
        if len(fits) == 1:
            return fits[0]
        if wanted is None and self.reasons and "add_param_group" not in vars(self):
            raise ConfigError(
                "this optimizer is a copy of one that was built from a configuration, and a copy cannot divide the "
                f"parameters of an added group between {listing(self.names)}: build it from the configuration, or give "
                "the group the key 'member'"
            )
        raise ConfigError(
            "a parameter group added to Combined needs the key 'member': the index of an optimizer, or its class name "
            f"if no other optimizer has it; allowed: {listing(f'{i} ({name})' for i, name in enumerate(names))}; "
            f"got {wanted!r}{did_you_mean(wanted, names) if isinstance(wanted, str) and not fits else ''}"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to a member.

        Args:
            param_group: the group as the member expects it, and the key `member`: the member's index or class name.

        Raises:
            ConfigError: `member` matches none of the members, or several.
            ParameterError: another member already has one of the parameters.
        """
        options = dict(param_group)
        member = self.members[self._member_index(options.pop("member", None))]
        before = [(group, group["params"]) for group in member.param_groups]
        member.add_param_group(options)
        try:
            _check_disjoint(self.members)
        except ParameterError:
            del member.param_groups[len(before) :]
            for group, params in before:
                group["params"] = params
            raise
        for group in member.param_groups[len(before) :]:  # rules of a configuration may split the group
            group["member"] = param_group["member"]
        self._share_state_and_name_groups()

    def remove_groups(self, start: int) -> None:
        """Remove the parameter groups from an index on."""
        kept = self.param_groups[:start]
        del self._order[start:]
        for index, member in enumerate(self.members):
            member.param_groups[:] = self._select(index, kept)

    def member_of_group(self, group: int) -> int:
        """The index of the member that has the parameter group with this index."""
        return self._order[: len(self.param_groups)][group]

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state mapping that all members share. It is rebuilt if a member has replaced its mapping."""
        if any(member.state is not self.members[0].state for member in self.members):
            own_states = map(self._own_state, self.members)
            self.state = defaultdict(dict, chain.from_iterable(state.items() for state in own_states))
        return self.members[0].state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        for member in self.members:
            member.state = state

    def _own_state(self, member: Optimizer) -> defaultdict[Tensor, Any]:
        """Return a member's state without the state of the other members' parameters."""
        others = {id(p) for other in self.members if other is not member for p in _params(other)}
        return defaultdict(dict, {p: state for p, state in member.state.items() if id(p) not in others})

    def __getstate__(self) -> dict[str, Any]:
        # Each member is copied with its own state only: torch's Adagrad expects to have no other.
        copies = [object.__new__(type(member)) for member in self.members]
        for member_copy, member in zip(copies, self.members, strict=True):
            member_copy.__dict__.update(member.__dict__, state=self._own_state(member))
        named = {"reasons": self.reasons, "names": self.names}
        return {"defaults": self.defaults, "members": copies, "_order": self._order, **named}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict: each member loads its groups with its own method. If one fails, none is changed.

        Raises:
            ConfigError: the state dict has another number of parameter groups.
            Exception: whatever `load_state_dict` of a member raises.
        """
        state_dict = state_dict.copy()
        pre_hooks, post_hooks = load_state_dict_hooks(self)
        for pre_hook in pre_hooks:
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        groups, saved = self.param_groups, state_dict["param_groups"]
        if len(groups) != len(saved):
            names = listing(group["name"] for group in groups)
            raise ConfigError(f"the state dict has {len(saved)} parameter groups; Combined has {len(groups)}: {names}")
        indices = {i for group in saved for i in group["params"]}
        previous = [(member.state, member.param_groups) for member in self.members]
        try:
            for index, member in enumerate(self.members):
                member_groups = self._select(index, saved)
                others = indices - {i for group in member_groups for i in group["params"]}
                state = {i: param_state for i, param_state in state_dict["state"].items() if i not in others}
                member.load_state_dict({"state": state, "param_groups": member_groups})
        except BaseException:
            for member, (member_state, member_groups) in zip(self.members, previous, strict=True):
                member.state, member.param_groups = member_state, member_groups
            raise
        for old, new in zip(groups, self.param_groups, strict=True):
            new.setdefault("name", old["name"])
        self._share_state_and_name_groups()
        for post_hook in post_hooks:
            post_hook(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every member.

        Args:
            closure: re-evaluates the model and returns the loss. It is called once, before the members step, with
                gradients enabled.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def engine_report(self) -> list[BucketReport]:
        """Return the reports of the members that have `engine_report`; `group` is the index in the combination."""
        reports: list[BucketReport] = []
        for index, member in enumerate(self.members):
            group_indices = self._select(index, range(len(self.param_groups)))
            reports += [replace(r, group=group_indices[r.group]) for r in getattr(member, "engine_report", list)()]
        return reports


def unique_name(name: str, used: Collection[str]) -> str:
    """Return a name, with a number appended if it is already used."""
    return next(n for n in chain([name], (f"{name}_{i}" for i in count(2))) if n not in used)


def has_train_eval_modes(optimizer: Any) -> bool:
    """Whether an optimizer has `train()` and `eval()`, as schedule-free optimizers do."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def _call_all(functions: Iterable[Callable[[], object]]) -> None:
    for function in functions:
        function()


def _params(member: Optimizer) -> list[Tensor]:
    return [p for group in member.param_groups for p in group["params"]]


def _check_member(member: Any) -> None:
    """Raise ConfigError or ConfigTypeError if an object cannot be a member of `Combined`."""
    name = type(member).__name__
    if not isinstance(member, Optimizer):
        raise ConfigTypeError(f"Combined takes a list of optimizers, got an element {member!r} ({name})")
    if isinstance(member, Combined):
        raise ConfigError("Combined cannot be a member of Combined: list all optimizers in one")
    _, *arguments = inspect.signature(type(member).step).parameters.values()
    required = [p for p in arguments if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if isinstance(member, LBFGS) or required or "closure" in getattr(member, "capabilities", ()):
        raise ConfigError(
            f"{name} cannot be combined: its step() needs a closure that it can evaluate several times, and Combined "
            f"evaluates the closure once for all optimizers; train with {name} alone, or use manual optimization"
        )


def _check_disjoint(members: Iterable[Optimizer]) -> None:
    """Raise ParameterError if two members have the same parameter."""
    found: dict[int, tuple[int, str]] = {}
    for index, member in enumerate(members):
        current = index, type(member).__name__
        for p in _params(member):
            first = found.setdefault(id(p), current)
            if first != current:
                shape = "unknown" if is_lazy(p) else tuple(p.shape)
                raise ParameterError(
                    f"{first[1]} and {current[1]} both have a parameter of shape {shape}: give it to one of them"
                )
