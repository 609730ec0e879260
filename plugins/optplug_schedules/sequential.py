"""Several schedules, one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from numbers import Integral
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optplug import ClosedFormLR, create_scheduler, get_scheduler
from optplug.errors import ConfigError, HyperparameterError, HyperparameterTypeError, OptplugError
from optplug.registry import registry
from optplug.schedulers.adapters import SequentialAdapter, adapter_for
from optplug.schedulers.checks import check_state
from optplug.schedulers.closed_form import ClosedFormAdapter
from optplug.schedulers.lr import clone_tensor, set_lr
from optplug_schedules.one_cycle_lr import OneCycleLR


class Sequential(ClosedFormLR):
    """Schedules one after the other: step t of schedule k is its own step t - (sum of the lengths before).

    Each schedule starts at its beginning, from the base learning rate. The first learning rate of each overwrites those
    of other schedulers; further ones are computed as the schedule does alone.

    Args:
        optimizer: the optimizer whose learning rates are set.
        schedules: a list of schedules with a closed form. Each is a mapping with its `name`, its `length` in steps and
            its arguments, such as `{"name": "linear_lr", "length": 10, "start_factor": 0.1}`. If the schedule has an
            argument for its total length that is not given, `length` sets it. The last one needs no `length`.
        last_epoch: index of the last step; -1 to start.

    Raises:
        HyperparameterError: an argument of a schedule or a length is wrong, or a schedule has no closed form.
        HyperparameterTypeError: an argument has the wrong type, or a keyword is unknown.
        TypeError: `optimizer` is not a `torch.optim.Optimizer`.
        OptplugError: what `create_scheduler` raises for a schedule.

    State dicts have the form of torch's `SequentialLR`, which can load them, and whose state dicts can be loaded.
    """

    nested_schedules = ("schedules",)
    cases = (
        {
            "schedules": [
                {"name": "linear_lr", "length": 6, "start_factor": 0.1},
                {"name": "exponential_lr", "gamma": 0.9},
            ]
        },
        {
            "schedules": [
                {"name": "constant_lr", "length": 5, "factor": 0.5},
                {"name": "cosine_annealing_lr", "length": 12, "eta_min": 0.01},
                {"name": "wsd", "length": 20, "decay_steps": 5, "min_lr_ratio": 0.1},
            ]
        },
    )

    def __init__(self, optimizer: Optimizer, schedules: Sequence[Mapping[str, Any]], last_epoch: int = -1) -> None:
        # Members that continue find in the groups what they wrote there. Whether it is valid is checked below.
        given: Any = last_epoch
        continues = isinstance(given, Integral) and given is not True and int(given) >= 0
        self._schedulers: list[ClosedFormLR] = []
        lengths: list[int] = []
        for k, schedule in enumerate(self._check_list(schedules)):
            lengths.append(self._check_length(k, schedule, is_last=k == len(schedules) - 1))
            if isinstance(optimizer, Optimizer):
                self._build(optimizer, k, schedule, 0 if continues else -1)
        self._milestones = list(accumulate(lengths[:-1]))
        super().__init__(optimizer, last_epoch)

    def _check_list(self, schedules: Any) -> list[Mapping[str, Any]]:
        name = type(self).__name__
        if not isinstance(schedules, (list, tuple)):
            message = f"{name}: schedules must be a list of mappings, got {schedules!r}"
            self.reject("schedules", HyperparameterTypeError(message))
            return []
        if not schedules:
            message = f"{name} expects at least one scheduler, but got no scheduler."
            self.reject("schedules", HyperparameterError(message))
        for k, schedule in enumerate(schedules):
            if not isinstance(schedule, Mapping) or not isinstance(schedule.get("name"), str):
                message = f"{name}: schedules[{k}] must be a mapping with the name of a schedule, got {schedule!r}"
                self.reject("schedules", HyperparameterTypeError(message), k)
        return [s if isinstance(s, Mapping) and isinstance(s.get("name"), str) else {} for s in schedules]

    def _check_length(self, k: int, schedule: Mapping[str, Any], *, is_last: bool) -> int:
        length = schedule.get("length")
        if not schedule or (is_last and length is None):
            return 1
        if length is None:
            message = f"{type(self).__name__}: schedules[{k}] needs a length: only the last schedule can have none"
            self.reject("schedules", HyperparameterError(message), k)
            return 1
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            message = (
                f"{type(self).__name__}: the length of schedules[{k}] must be a whole number above 0, got {length!r}"
            )
            error = HyperparameterError if isinstance(length, int) else HyperparameterTypeError
            self.reject("schedules", error(message), (k, "length"))
            return 1
        return length

    def _build(self, optimizer: Optimizer, k: int, schedule: Mapping[str, Any], last_epoch: int) -> None:
        """Construct member `k`. Its errors are collected with their location in `schedules`."""
        if not schedule:
            return
        try:
            self._schedulers.append(_make_member(optimizer, schedule, last_epoch, self._schedulers))
        except OptplugError as joined:
            for error in joined.errors:
                loc = (k, *([error.argument] if error.argument else []), *error.inside)
                error.args = (f"{type(self).__name__}: schedules[{k}]: {error.message}",)
                self.reject("schedules", error, loc, is_contradiction=error.is_contradiction)

    def active(self, t: int) -> tuple[ClosedFormLR, int]:
        """Return the schedule of step `t`, and its own step. A schedule that ends early stays at its last step."""
        k = bisect_right(self._milestones, t)
        member, own = self._schedulers[k], t - (self._milestones[k - 1] if k else 0)
        last = member.last_step if k < len(self._milestones) else None
        return member, own if last is None else min(own, last)

    def lrs(self, t: int) -> list[float | Tensor]:
        self.include_all_groups()
        member, own = self.active(t)
        return member.lrs(own)

    def next_lrs(self) -> list[float | Tensor]:
        if self._is_initial and self.last_epoch > 0:
            return [clone_tensor(group["lr"]) for group in self.optimizer.param_groups]
        if self.active(self.last_epoch) == self.active(self.last_epoch - 1):
            return [clone_tensor(group["lr"]) for group in self.optimizer.param_groups]
        member = self._synchronized_member()
        return member.next_lrs() if member.last_epoch else self._get_closed_form_lr()

    def after_update(self) -> None:
        member = self._synchronized_member()
        member._last_lr = list(self._last_lr)
        member.after_update()

    def _synchronized_member(self) -> ClosedFormLR:
        """Return the active schedule, at its own step."""
        member, own = self.active(self.last_epoch)
        member.last_epoch = own
        return member

    @property
    def later_starts(self) -> list[int]:
        """The steps at which the second schedule and the following ones start."""
        return list(self._milestones)

    def extend(self, length: int) -> bool:
        return self._schedulers[-1].extend(length - self.last_start)

    @property
    def last_start(self) -> int:
        """The number of steps after which the last schedule begins."""
        return self._milestones[-1] if self._milestones else 0

    @property
    def last_step(self) -> int | None:  # type: ignore[override]
        last = self._schedulers[-1].last_step
        return None if last is None else self.last_start + last

    def state_dict(self) -> dict[str, Any]:
        """The state, without the optimizer, with the state of each schedule."""
        return {**super().state_dict(), "_schedulers": [member.state_dict() for member in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of torch's `SequentialLR`.

        Raises:
            ConfigError: the state is from another class, or its schedules are others.
        """
        check_state(self, state_dict, ("_milestones", "_schedulers"))
        saved = state_dict["_schedulers"]
        if len(saved) != len(self._schedulers):
            raise ConfigError(
                f"the checkpoint's scheduler has {len(saved)} schedules, this one {len(self._schedulers)}"
            )
        for member, state in zip(self._schedulers, saved, strict=True):
            member.load_state_dict(state)
        vars(self).update({key: value for key, value in state_dict.items() if key != "_schedulers"})
        self._synchronized_member()


def _make_member(
    optimizer: Optimizer, schedule: Mapping[str, Any], last_epoch: int, others: Sequence[ClosedFormLR]
) -> ClosedFormLR:
    name = schedule["name"]
    arguments = {key: value for key, value in schedule.items() if key not in ("name", "length")}
    cls = get_scheduler(name)
    if not issubclass(cls, ClosedFormLR):
        raise HyperparameterError(f"{name} has no closed form, and cannot be part of a sequence", argument="name")
    if issubclass(cls, OneCycleLR) and any(isinstance(other, cls) for other in others):
        raise HyperparameterError(f"a sequence can contain {name} only once", argument="name")
    total = getattr(registry.resolve("scheduler", name).spec, "length", "")
    if total and "length" in schedule:
        arguments.setdefault(total, schedule["length"])
    with _restored_groups(optimizer):
        return create_scheduler(name, optimizer, last_epoch=last_epoch, **arguments)  # type: ignore[return-value]


@contextmanager
def _restored_groups(optimizer: Optimizer) -> Iterator[None]:
    """Restore what the construction of a schedule changes: a schedule that begins later must not act before."""
    keys = ("lr", "initial_lr", "momentum", "betas")
    before = [{key: clone_tensor(group[key]) for key in keys if key in group} for group in optimizer.param_groups]
    try:
        yield
    finally:
        for group, old in zip(optimizer.param_groups, before, strict=True):
            set_lr(group, float(old["lr"]))
            group.update({key: value for key, value in old.items() if key != "lr"})
            if "initial_lr" in group:
                group["initial_lr"] = old.get("initial_lr", old["lr"])


class SequenceAdapter(SequentialAdapter, ClosedFormAdapter):
    """The adapter of `Sequential`; see `optplug.schedulers.adapters`."""

    @property
    def _last(self) -> Any:
        return adapter_for(self.scheduler._schedulers[-1])

    def length(self, argument: str, default: int) -> int:
        start = self.scheduler.last_start
        return int(start + self._last.length(argument, default - start))

    def extend(self, length: int) -> bool | None:
        extended: bool | None = self._last.extend(length - self.scheduler.last_start)
        return extended

    def _replace_base_lrs(self, base_lrs: Sequence[float]) -> None:
        for member in self.scheduler._schedulers:
            if not member.has_own_lrs:
                adapter_for(member)._replace_base_lrs(base_lrs)
        ClosedFormAdapter._replace_base_lrs(self, base_lrs)


adapter_for.register(Sequential, SequenceAdapter)
