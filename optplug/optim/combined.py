"""`Combined`: several optimizers as one, for trainers that step one."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optplug.engines._torch_compat import load_state_dict_hooks
from optplug.errors import ConfigError, ConfigTypeError, ParameterError, did_you_mean, listing
from optplug.registry.specs import snake_case

if TYPE_CHECKING:
    from optplug.engines.report import BucketReport


class Combined(Optimizer):
    """Steps several optimizers, each with its own parameters, as one.

    Args:
        optimizers: its members. Schedulers, hooks and checkpoints are for the combination, no longer for them.

    Raises:
        ConfigTypeError: a member is no optimizer. ConfigError: there is none, or one that needs a closure.
        ParameterError: two members have the same parameter.

    The groups are the members' own. Each gets a `name` that no other has: its own, or its member's class name in snake
    case, numbered where it is taken. `defaults` has the keys that all members have, with the first one's values.
    `train()` and `eval()` are there if a member has both, and put all such members into that mode.
    """

    members: list[Optimizer]
    train: Callable[[], None]
    eval: Callable[[], None]
    _order: list[int]  # for each group, whose it is: new groups go last, as schedulers expect

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        members = list(optimizers) if isinstance(optimizers, Iterable) else [optimizers]
        if not members:
            raise ConfigError("Combined needs at least one optimizer, got none")
        for member in members:
            _check(member)
        _check_apart(members)
        first, *others = (member.defaults for member in members)
        defaults = {key: value for key, value in first.items() if all(key in other for other in others)}
        # The rest of the base class's __init__ makes groups and a state, which the members have.
        self.__setstate__({"defaults": defaults, "members": members, "_order": []})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._settle()
        moody: list[Any] = [member for member in self.members if has_modes(member)]
        if moody:  # else there must be nothing that looks like modes
            self.train = partial(_call_all, [member.train for member in moody])
            self.eval = partial(_call_all, [member.eval for member in moody])

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The members' groups: the very same dicts."""
        for number, member in enumerate(self.members):
            self._order.extend([number] * (len(member.param_groups) - self._order.count(number)))
        groups = [iter(member.param_groups) for member in self.members]
        return [next(groups[number]) for number in self._order]

    @param_groups.setter
    def param_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        # Lightning's finetuning callbacks resume like this, and the groups they added come last.
        added = [self._number(group.get("member")) for group in groups[len(self._order) :]]
        if len(groups) < len(self._order):
            raise ConfigError(f"Combined has {len(self._order)} parameter groups and is given {len(groups)}")
        self._order.extend(added)
        for number, member in enumerate(self.members):
            member.param_groups = self._of(number, groups)
        self._settle()

    def _of(self, number: int, each: Iterable[Any]) -> list[Any]:
        """Of what there is one for each group: what is a member's."""
        return [one for one, owner in zip(each, self._order, strict=True) if owner == number]

    def _settle(self) -> None:
        """Share the state; give every group a name."""
        self.state = self.state
        taken: set[str] = set()
        groups = list(zip(self.param_groups, self._order, strict=True))
        for group, number in sorted(groups, key=lambda pair: not pair[0].get("name")):  # given names go first
            name = group.get("name") or snake_case(type(self.members[number]).__name__)
            group["name"] = next(n for n in chain([name], (f"{name}_{i}" for i in count(2))) if n not in taken)
            taken.add(group["name"])

    def _number(self, wanted: Any) -> int:
        """The index of the member of this index or class name."""
        names = [type(member).__name__ for member in self.members]
        fits = [i for i, name in enumerate(names) if not isinstance(wanted, bool) and wanted in (i, name)]
        if len(fits) == 1:
            return fits[0]
        raise ConfigError(
            f"a group added to Combined needs a key 'member', the index of its optimizer or the class name if only one "
            f"has it, out of {listing(f'{i} ({name})' for i, name in enumerate(names))}; got {wanted!r}"
            f"{did_you_mean(wanted, names) if isinstance(wanted, str) and not fits else ''}"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to a member: `param_group` as that takes it, and `member`, its index or class name.

        Raises:
            ConfigError: no such member, or several. ParameterError: another member has one of the parameters.
        """
        options = dict(param_group)
        member = self.members[self._number(options.pop("member", None))]
        member.add_param_group(options)
        try:
            _check_apart(self.members)
        except ParameterError:
            member.param_groups.pop()
            raise
        member.param_groups[-1]["member"] = param_group["member"]
        self._settle()

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The one mapping that all members share; made anew when one of them has loaded another."""
        if any(member.state is not self.members[0].state for member in self.members):
            self.state = defaultdict(dict, chain.from_iterable(self._own(member).items() for member in self.members))
        return self.members[0].state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        for member in self.members:
            member.state = state

    def _own(self, member: Optimizer) -> defaultdict[Tensor, Any]:
        """A member's state without the other members'."""
        others = {id(p) for other in self.members if other is not member for p in _params(other)}
        return defaultdict(dict, {p: kept for p, kept in member.state.items() if id(p) not in others})

    def __getstate__(self) -> dict[str, Any]:
        apart = [object.__new__(type(member)) for member in self.members]
        for one, member in zip(apart, self.members, strict=True):  # torch's Adagrad expects all state to be its own
            one.__dict__.update(member.__dict__, state=self._own(member))
        return {"defaults": self.defaults, "members": apart, "_order": self._order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of as many groups: each member its part, by its own rules; all of them or none.

        Raises:
            ConfigError: it has another number of groups; and what a member raises.
        """
        state_dict = state_dict.copy()
        before_hooks, after_hooks = load_state_dict_hooks(self)
        for before in before_hooks:
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        groups, saved = self.param_groups, state_dict["param_groups"]
        if len(groups) != len(saved):
            names = listing(group["name"] for group in groups)
            raise ConfigError(f"the state dict has {len(saved)} parameter groups; Combined has {len(groups)}: {names}")
        indices = {i for group in saved for i in group["params"]}
        held = [(member.state, member.param_groups) for member in self.members]
        try:
            for number, member in enumerate(self.members):
                part = self._of(number, saved)
                others = indices - {i for group in part for i in group["params"]}
                state = {i: kept for i, kept in state_dict["state"].items() if i not in others}
                member.load_state_dict({"state": state, "param_groups": part})
        except BaseException:
            for member, (member_state, member_groups) in zip(self.members, held, strict=True):
                member.state, member.param_groups = member_state, member_groups
            raise
        for old, new in zip(groups, self.param_groups, strict=True):
            new.setdefault("name", old["name"])
        self._settle()
        for after in after_hooks:
            after(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the closure, if there is one, with gradients enabled; step every member; return the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def engine_report(self) -> list[BucketReport]:
        """The reports of the members that have one; their `group` is the index here."""
        reports: list[BucketReport] = []
        for number, member in enumerate(self.members):
            indices = self._of(number, range(len(self.param_groups)))
            reports += [replace(r, group=indices[r.group]) for r in getattr(member, "engine_report", list)()]
        return reports


def has_modes(optimizer: Any) -> bool:
    """Whether an optimizer has `train()` and `eval()`, as schedule-free ones have."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def _call_all(functions: Iterable[Callable[[], object]]) -> None:
    for function in functions:
        function()


def _params(member: Optimizer) -> list[Tensor]:
    return [p for group in member.param_groups for p in group["params"]]


def _check(member: Any) -> None:
    name = type(member).__name__
    if not isinstance(member, Optimizer):
        raise ConfigTypeError(f"Combined takes a list of optimizers, got {member!r} ({name}) for one")
    if isinstance(member, Combined):
        raise ConfigError("Combined cannot be a member of Combined: list all members in one")
    _, *arguments = inspect.signature(type(member).step).parameters.values()
    required = [p for p in arguments if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if isinstance(member, torch.optim.LBFGS) or required or "closure" in getattr(member, "capabilities", ()):
        raise ConfigError(
            f"{name} cannot be combined: its step() needs a closure to evaluate as it sees fit, and Combined evaluates "
            f"the closure once for all; train with {name} alone, or step it yourself in manual optimization"
        )


def _check_apart(members: Iterable[Optimizer]) -> None:
    owners: dict[int, tuple[int, str]] = {}
    for number, member in enumerate(members):
        me = number, type(member).__name__
        for p in _params(member):
            other = owners.setdefault(id(p), me)
            if other != me:
                raise ParameterError(
                    f"{other[1]} and {me[1]} both have a parameter of shape {tuple(p.shape)}: give it to one of them"
                )
