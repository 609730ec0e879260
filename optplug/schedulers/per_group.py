"""`PerGroup`: several schedules for one optimizer, each for some of its parameter groups, as one scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import ConfigError, ConfigTypeError, did_you_mean, listing
from optplug.schedulers.adapters import ScheduleEnd, SchedulerAdapter, adapter_for
from optplug.schedulers.checks import check_state
from optplug.schedulers.closed_form import Unscheduled
from optplug.schedulers.late_groups import follow_groups

SCHEDULE_KEY = "schedule"
"""Key of a parameter group that names its schedule."""

DEFAULT = ""
"""The name of the schedule of the groups without `SCHEDULE_KEY`."""


class GroupsView(Optimizer):
    """Some parameter groups of an optimizer, for a scheduler. The dicts are those of the optimizer.

    A group keeps its schedule, also where the optimizer loads a state dict: the view selects groups by their index.

    Args:
        optimizer: the optimizer.
        names: the schedule of each group of the optimizer, shared by its views. New groups are appended.
        name: the schedule of this view.

    Attributes:
        placeholders: a group without parameters where the optimizer had no group of this schedule at first, so that a
            group that is added later has one to follow.
    """

    def __init__(self, optimizer: Optimizer, names: list[str], name: str) -> None:
        # Optimizer.__init__ is not called: it would create groups and a state.
        self.optimizer, self.names, self.name = optimizer, names, name
        self.placeholders: list[dict[str, Any]] = []
        if not self.param_groups:
            self.placeholders = [_placeholder(optimizer)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        groups = self.optimizer.param_groups
        self.names.extend(str(group.get(SCHEDULE_KEY, DEFAULT)) for group in groups[len(self.names) :])
        return [*self.placeholders, *self.select(groups)]

    def select(self, values: Iterable[Any]) -> list[Any]:
        """From values, one for each group of the optimizer, those of the groups of this view."""
        return [value for value, name in zip(values, self.names, strict=False) if name == self.name]

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.optimizer.defaults

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def _opt_called(self) -> bool:
        return bool(getattr(self.optimizer, "_opt_called", False))

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    # The mark of torch: schedulers do not wrap this method, and check the steps of the optimizer itself.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def register_step_pre_hook(self, hook: Any) -> Any:
        return self.optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.optimizer.register_step_post_hook(hook)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        return self.optimizer.register_load_state_dict_post_hook(hook, prepend)

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return {key: vars(self)[key] for key in ("optimizer", "names", "name", "placeholders")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _placeholder(optimizer: Optimizer) -> dict[str, Any]:
    """A parameter group without parameters, with the options that a schedule can set."""
    options = {key: value for key, value in optimizer.defaults.items() if isinstance(value, (int, float, tuple))}
    lr = float(optimizer.defaults.get("lr") or 1.0)
    return {"params": [], **options, "lr": lr, "initial_lr": lr}


ScheduleFactory = Callable[[Optimizer], LRScheduler]
"""Builds a scheduler for an optimizer, such as `functools.partial(StepLR, step_size=10)`."""


class PerGroup(LRScheduler):
    """Different schedules for the parameter groups of one optimizer, as one scheduler with one state dict.

    A group names its schedule under the key `schedule`:

        optimizer = SGD([{"params": backbone}, {"params": head, "schedule": "head"}], lr=0.1)
        scheduler = PerGroup(optimizer, {"head": partial(StepLR, step_size=10)}, partial(ExponentialLR, gamma=0.9))

    Call `step()` where the schedules would be stepped. Its arguments are passed on to the schedules whose `step` needs
    one, such as the metric of a plateau scheduler; the others are stepped without arguments.

    A group that is added to the optimizer later names its schedule in the same way. It joins the schedule where that
    is, as `optplug.schedulers.late_groups.follow_groups` describes. A schedule may have no group at first.

    Args:
        optimizer: the optimizer.
        schedules: by name, functions that build a scheduler. Each is called with an optimizer whose `param_groups` are
            the groups of this schedule, in their order. All schedulers of torch, and those of its interface, work.
        default: builds the schedule of the groups without the key. Default: their learning rates are constant.

    Attributes:
        schedules: the schedulers by name; `""` is that of the groups without the key.
        ends: the ends of schedules by name. These schedules are not stepped after their end. Default: empty.

    Raises:
        ConfigError: a group names a schedule that does not exist.
        ConfigTypeError: `schedules` has a value that cannot be called, or `optimizer` is not an optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedules: Mapping[str, ScheduleFactory],
        default: ScheduleFactory | None = None,
    ) -> None:
        # LRScheduler.__init__ is not called: the schedulers prepare their groups. This prepares the optimizer, as all
        # schedulers do: torch warns if `step()` of a scheduler comes before that of the optimizer.
        Unscheduled(optimizer)
        factories: dict[str, Any] = {DEFAULT: default or Unscheduled, **schedules}
        for name, factory in factories.items():
            if not callable(factory):
                message = "must be a function that builds a scheduler, such as functools.partial(StepLR, step_size=10)"
                raise ConfigTypeError(f"the schedule {name!r} {message}, got {type(factory).__name__}")
        self.optimizer = optimizer
        self.last_epoch = 0
        self.ends: dict[str, ScheduleEnd] = {}
        self._names: list[str] = []
        self._views = {name: GroupsView(optimizer, self._names, name) for name in factories}
        self._check_names()
        self.schedules = {name: factory(self._views[name]) for name, factory in factories.items()}

    @property
    def names(self) -> list[str]:
        """The name of the schedule of each parameter group."""
        return self._names[: len(self.optimizer.param_groups)]

    @property
    def base_lrs(self) -> list[float | Tensor]:  # type: ignore[override]
        return [group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float | Tensor]:
        last_lrs = {name: iter(self._last_lrs_of(name)) for name in self.schedules}
        return [next(last_lrs[name]) for name in self.names]

    def _last_lrs_of(self, name: str) -> list[Any]:
        view = self._views[name]
        stored: Sequence[Any] = getattr(self.schedules[name], "get_last_lr", list)()
        lrs = [*stored, *(group["lr"] for group in view.param_groups[len(stored) :])]
        return lrs[len(view.placeholders) :]

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step all schedules; the arguments are for those whose `step` needs one."""
        self.follow_groups()
        taking = {name for name, schedule in self.schedules.items() if adapter_for(schedule).needs_argument}
        if (args or kwargs) and not taking:
            raise TypeError("step() takes no argument: no schedule needs one, such as a metric")
        for name, schedule in self.schedules.items():
            if not adapter_for(schedule).has_ended(self.ends.get(name)):
                schedule.step(*args, **kwargs) if name in taking else schedule.step()
        self.last_epoch += 1

    def at(self, position: int) -> None:
        """Set the position of the plateau schedulers; see `at` of `ReduceLROnPlateau`."""
        for schedule in self.schedules.values():
            if hasattr(schedule, "at"):
                schedule.at(position)

    def follow_groups(self) -> None:
        """Extend the schedules to parameter groups that were added to the optimizer."""
        for schedule in self.schedules.values():
            follow_groups(schedule)
        self._check_names()
        for group, name in zip(self.optimizer.param_groups, self._names, strict=False):
            if group.get(SCHEDULE_KEY, DEFAULT) != name:  # the optimizer has loaded another state dict
                group[SCHEDULE_KEY] = name

    def _check_names(self) -> None:
        for i, name in enumerate(self._names):
            if name not in self._views:
                known = [known for known in self._views if known]
                hint = did_you_mean(name, known) or f"; the schedules are {listing(known)}"
                raise ConfigError(f"parameter group {i} names the schedule {name!r}, which does not exist{hint}")

    def state_dict(self) -> dict[str, Any]:
        placeholders = {name: [_without_params(group) for group in v.placeholders] for name, v in self._views.items()}
        return {
            "last_epoch": self.last_epoch,
            "groups": list(self._names),
            "schedules": {name: schedule.state_dict() for name, schedule in self.schedules.items()},
            "placeholders": placeholders,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict.

        Raises:
            ConfigError: the state dict was saved by another kind of scheduler, or with other schedules.
        """
        check_state(self, state_dict, ("groups", "schedules", "placeholders"))
        saved = state_dict["schedules"]
        if saved.keys() != self.schedules.keys():
            before, now = (listing(name or "the default" for name in names) for names in (saved, self.schedules))
            raise ConfigError(f"the checkpoint has the schedules {before}, and this scheduler has {now}")
        self.last_epoch = state_dict["last_epoch"]
        self._names[: len(state_dict["groups"])] = state_dict["groups"]
        for name, schedule in self.schedules.items():
            self._views[name].placeholders = [{"params": [], **group} for group in state_dict["placeholders"][name]]
            schedule.load_state_dict(saved[name])


def _without_params(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


class PerGroupAdapter(SchedulerAdapter):
    """The adapter of `PerGroup`; see `optplug.schedulers.adapters`. The adapters of its schedules do the work."""

    scheduler: PerGroup

    @property
    def members(self) -> Mapping[str, SchedulerAdapter]:
        return {name: adapter_for(schedule) for name, schedule in self.scheduler.schedules.items()}

    @property
    def needs_argument(self) -> bool:
        return any(member.needs_argument for member in self.members.values())

    @property
    def warmups(self) -> Sequence[Any]:
        return [warmup for member in self.members.values() for warmup in member.warmups]

    def warmup_step(self) -> None:
        for member in self.members.values():
            member.warmup_step()

    @property
    def best(self) -> float | None:
        return next((member.best for member in self.members.values() if member.best is not None), None)

    @property
    def mode(self) -> str | None:
        return next((member.mode for member in self.members.values() if member.mode is not None), None)

    def restart_with_mode(self, mode: str) -> None:
        for member in self.members.values():
            member.restart_with_mode(mode)

    def set_base_lrs(self, base_lrs: Sequence[float]) -> None:
        for name, member in self.members.items():
            member.set_base_lrs(self._of_view(name, base_lrs))

    def apply_settings(
        self, new_state: Mapping[str, Any], base_lrs: Sequence[float], old_base_lrs: Sequence[float]
    ) -> bool:
        applied = [
            member.apply_settings(
                new_state["schedules"][name], self._of_view(name, base_lrs), self._of_view(name, old_base_lrs)
            )
            for name, member in self.members.items()
        ]
        return all(applied)

    def _of_view(self, name: str, base_lrs: Sequence[float]) -> list[float]:
        """The base learning rates of the groups of a schedule; a placeholder keeps its own."""
        view = self.scheduler._views[name]
        return [*(float(group["initial_lr"]) for group in view.placeholders), *view.select(base_lrs)]


adapter_for.register(PerGroup, PerGroupAdapter)
