"""What optplug needs from a learning-rate scheduler. There is one adapter class for each family of schedulers.

`adapter_for(scheduler)` returns the adapter. The families, with the module of the adapter:

- torch's schedulers, and subclasses of `LRScheduler` by others: `TorchAdapter`. The schedulers of transformers are
  instances of torch's `LambdaLR`, and need no adapter of their own.
- torch's `ChainedScheduler`, `SequentialLR` and `OneCycleLR`: `ChainedAdapter`, `SequentialAdapter`, `OneCycleAdapter`
- `ReduceLROnPlateau`, torch's and optplug's: `PlateauAdapter`
- timm's schedulers: `TimmAdapter`
- optplug's closed-form schedules: `optplug.schedulers.closed_form.ClosedFormAdapter`
- optplug's warmup: `optplug.schedulers.warmup.WarmupAdapter`
- optplug's schedules per parameter group: `optplug.schedulers.per_group.PerGroupAdapter`
- all other objects: `SchedulerAdapter`
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from functools import singledispatch
from typing import Any, ClassVar, NamedTuple

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from optplug.schedulers.lr import clone_tensor, init_new_group, scale_lr, set_lr

PROGRESS_KEYS = frozenset(
    {"last_epoch", "_step_count", "_is_initial", "_last_lr", "_get_lr_called_within_step", "best", "num_bad_epochs"}
    | {"cooldown_counter", "base_lrs", "position", "elapsed"}
)
"""State-dict keys of schedulers that are progress. The other keys are settings."""


class ScheduleEnd(NamedTuple):
    """The end of a schedule that is as long as the training.

    Attributes:
        argument: the name of the scheduler's attribute with its length, such as `T_max`.
        steps: the length if the scheduler has no such attribute.
    """

    argument: str
    steps: int


class SchedulerAdapter:
    """The adapter of a scheduler of unknown family, and the base class of all adapters.

    Attributes:
        lr_lists: names of the scheduler's attributes that are lists of learning rates, one per group. The first are the
            base learning rates. A new group's value is scaled. Default: the names in torch's schedulers.
        value_lists: names of attributes that are lists of other values, one per group. A new group's value is a copy.
            Default: the names in torch's schedulers.
        scheduler: the scheduler.
    """

    lr_lists: ClassVar[tuple[str, ...]] = ("base_lrs", "max_lrs")
    value_lists: ClassVar[tuple[str, ...]] = ("lr_lambdas", "min_lrs", "base_momentums", "max_momentums")

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    # ------------------------------------------------------------------ steps

    @property
    def step_count(self) -> int | None:
        """The number of steps that the scheduler has taken; None if it does not count them."""
        count = getattr(self.scheduler, "last_epoch", None)
        return count if isinstance(count, int) else None

    @property
    def last_step(self) -> int | None:
        """The number of steps after which the scheduler must not be stepped; None if there is no such number."""
        return None

    def move_to(self, steps: int) -> bool:
        """Set the number of steps taken; the next `apply_settings` sets the learning rates of this step.

        Returns:
            Whether it has been set. Default: False, the learning rates depend on the steps taken before.
        """
        return False

    def length(self, argument: str, default: int) -> int:
        """The length of the schedule.

        Args:
            argument: the name of the constructor argument that sets the length, such as `T_max`.
            default: the length if the scheduler does not store the argument under its name.
        """
        return int(getattr(self.scheduler, argument, default))

    def has_ended(self, end: ScheduleEnd | None = None) -> bool:
        """Whether the scheduler must not be stepped any more.

        Args:
            end: the end of a schedule that is as long as the training. A checkpoint may have restored another length.
                Default: only `last_step` ends the schedule.
        """
        count, lasts = self.step_count, [self.last_step, None if end is None else self.length(*end)]
        return count is not None and any(last is not None and count >= last for last in lasts)

    @property
    def needs_argument(self) -> bool:
        """Whether `step` has an argument without default, such as the metric of a plateau scheduler."""
        parameters = inspect.signature(self.scheduler.step).parameters.values()
        return any(p.default is p.empty for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))

    @property
    def members(self) -> Mapping[str, SchedulerAdapter]:
        """The adapters of the schedules of the parameter groups, by name; `""` is that of the groups without a name."""
        return {"": self}

    @property
    def warmups(self) -> Sequence[Any]:
        """The warmups of the scheduler (`optplug.schedulers.warmup.Warmup`)."""
        return ()

    def extend(self, length: int) -> bool | None:
        """Change the total number of steps of a schedule in progress, if its learning rate does not jump.

        Returns:
            Whether the length has been changed; None for a schedule that has no such method.
        """
        return None

    def warmup_step(self) -> None:
        """Count an optimizer step for the warmup, if the scheduler has one."""

    # ------------------------------------------------------------------ metric

    @property
    def best(self) -> float | None:
        """The best value of the metric so far; None for a scheduler without a metric."""
        best = getattr(self.scheduler, "best", None)
        return best if isinstance(best, float) else None

    @property
    def mode(self) -> str | None:
        """`"min"` or `"max"`; None if the mode cannot be changed."""
        return None

    def restart_with_mode(self, mode: str) -> None:
        """Set the mode, and discard the best value. Nothing happens if the mode cannot be changed."""

    # ------------------------------------------------------------------ groups and learning rates

    def follow_groups(self, adjustable: Collection[int]) -> None:
        """Extend the scheduler to added parameter groups, as `optplug.schedulers.late_groups.follow_groups` describes.

        Args:
            adjustable: indices of the groups whose learning rate the closed form may set.
        """
        if hasattr(self.scheduler, "follow_groups"):
            self.scheduler.follow_groups()
        else:
            self._extend_lists(adjustable)

    def _extend_lists(self, adjustable: Collection[int]) -> None:
        groups, attributes = self.scheduler.optimizer.param_groups, vars(self.scheduler)
        lists = {name: attributes[name] for name in (*self.lr_lists, *self.value_lists) if attributes.get(name)}
        n_old = min(map(len, lists.values()), default=len(groups))
        if n_old < len(groups):
            attributes |= {name: list(values) for name, values in lists.items()}  # a state dict may share the old lists
            # A learning rate of 0 has no ratio to others.
            has_ratio = (i for i in reversed(range(n_old)) if float(groups[i].get("initial_lr", groups[i]["lr"])))
            reference = next(has_ratio, n_old - 1)
            last = groups[reference]
            for i in range(n_old, len(groups)):
                if any(groups[i]["lr"] is group["lr"] for group in groups[:i]):
                    # All groups without their own lr share the tensor of the optimizer's defaults.
                    groups[i]["lr"] = clone_tensor(groups[i]["lr"])
                ratio = init_new_group(groups[i], last)
                for name, values in lists.items():
                    if i >= len(values):
                        is_lr = name in self.lr_lists
                        value = values[reference if is_lr else n_old - 1]
                        new = scale_lr(value, groups[i], last, ratio) if is_lr else clone_tensor(value)
                        attributes[name].append(new)
            closed_form = self._closed_form_lrs() if self._floor or not float(last["lr"]) else None
            if closed_form is not None:
                for i in adjustable:
                    if i >= n_old and float(groups[i]["lr"]):  # 0 was set by another scheduler
                        set_lr(groups[i], float(closed_form[i]))
        last_lr = attributes.get("_last_lr")
        if last_lr is not None and len(last_lr) < len(groups):
            attributes["_last_lr"] = [*last_lr, *(clone_tensor(group["lr"]) for group in groups[len(last_lr) :])]

    @property
    def _floor(self) -> float:
        """The learning rate that the schedule approaches."""
        return 0.0

    def _closed_form_lrs(self) -> Sequence[Any] | None:
        """The learning rates of the closed form at the current step; None without a closed form."""
        return None

    def set_base_lrs(self, base_lrs: Sequence[float]) -> None:
        """Set the base learning rates of a scheduler that has not been stepped, and its learning rates accordingly.

        Args:
            base_lrs: the base learning rate of each group.
        """
        self._replace_base_lrs(base_lrs)
        groups = self.scheduler.optimizer.param_groups
        for group, base, lr in zip(groups, base_lrs, self._initial_lrs(base_lrs), strict=True):
            group["initial_lr"] = base
            set_lr(group, float(lr))
        self._update_last_lr()

    def _replace_base_lrs(self, base_lrs: Sequence[float]) -> None:
        """Set the base learning rates of the first groups, and keep those of further groups."""
        for name in self.lr_lists[:1]:
            if name in vars(self.scheduler):
                old = getattr(self.scheduler, name)
                setattr(self.scheduler, name, [*base_lrs, *old[len(base_lrs) :]])

    def _initial_lrs(self, base_lrs: Sequence[float]) -> Sequence[Any]:
        """The learning rates before the first step."""
        return base_lrs

    def _update_last_lr(self) -> None:
        """Store the current learning rates where `get_last_lr` reads them."""
        if hasattr(self.scheduler, "_last_lr"):
            self.scheduler._last_lr = [float(group["lr"]) for group in self.scheduler.optimizer.param_groups]

    # ------------------------------------------------------------------ resume

    def apply_settings(
        self, new_state: Mapping[str, Any], base_lrs: Sequence[float], old_base_lrs: Sequence[float]
    ) -> bool:
        """Apply the configured settings to a scheduler that was restored from a checkpoint.

        The scheduler's progress does not change.

        Args:
            new_state: the scheduler's `state_dict` before it was restored.
            base_lrs: the new base learning rate of each group.
            old_base_lrs: the base learning rate of each group in the checkpoint.

        Returns:
            Whether the settings were applied. Else the scheduler keeps its settings; only its learning rates change.
        """
        groups = self.scheduler.optimizer.param_groups
        old_lrs = [float(group["lr"]) for group in groups]
        for group, lr, base, old in zip(groups, old_lrs, base_lrs, old_base_lrs, strict=False):
            if old:
                set_lr(group, lr * (base / old))
        self._replace_base_lrs(base_lrs)
        # A learning rate of 0 does not show which factor the schedule has reached: another group or the formula does.
        was_zero = [i for i, (base, old) in enumerate(zip(base_lrs, old_base_lrs, strict=False)) if base and not old]
        if was_zero:
            closed_form = self._closed_form_lrs()
            factors = [lr / old for lr, old in zip(old_lrs, old_base_lrs, strict=False) if old]
            for i in was_zero:
                reached = base_lrs[i] * min(factors, default=1.0) if closed_form is None else float(closed_form[i])
                set_lr(groups[i], reached)
        self._update_last_lr()
        return False

    def _load_settings(self, new_state: Mapping[str, Any]) -> None:
        """Load the settings of a state dict. Lists are extended for groups that were added before the checkpoint."""
        settings = {key: value for key, value in new_state.items() if key not in PROGRESS_KEYS}
        count = len(self.scheduler.optimizer.param_groups)
        for key in settings.keys() & set(self.value_lists):
            settings[key] = [*settings[key], *settings[key][-1:] * (count - len(settings[key]))]
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **settings})


@singledispatch
def adapter_for(scheduler: Any) -> SchedulerAdapter:
    """Return the adapter for a scheduler. Register a family with `adapter_for.register(Class, Adapter)`."""
    is_timm = callable(getattr(scheduler, "step_update", None)) and hasattr(scheduler, "base_values")
    return TimmAdapter(scheduler) if is_timm else SchedulerAdapter(scheduler)


class TorchAdapter(SchedulerAdapter):
    """The adapter of torch's schedulers and of all subclasses of `LRScheduler`."""

    @property
    def _floor(self) -> float:
        return float(getattr(self.scheduler, "eta_min", 0.0))

    def _closed_form_lrs(self) -> Sequence[Any] | None:
        has_closed_form = hasattr(self.scheduler, "_get_closed_form_lr")
        return self.scheduler._get_closed_form_lr() if has_closed_form else None


class LambdaAdapter(TorchAdapter):
    """The adapter of torch's `LambdaLR`, and so of the schedulers of transformers."""

    def _closed_form_lrs(self) -> Sequence[Any] | None:
        step = self.scheduler.last_epoch
        pairs = zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        return [base * factor(step) for base, factor in pairs]


class ChainedAdapter(TorchAdapter):
    """The adapter of schedulers that combine others: all members are extended to added groups."""

    def _replace_base_lrs(self, base_lrs: Sequence[float]) -> None:
        for member in self.scheduler._schedulers:
            adapter_for(member)._replace_base_lrs(base_lrs)
        super()._replace_base_lrs(base_lrs)

    def _extend_lists(self, adjustable: Collection[int]) -> None:
        active = self._active_member()
        for i, member in enumerate(self.scheduler._schedulers):
            adapter_for(member).follow_groups(adjustable if active in (None, i) else ())
        super()._extend_lists(adjustable)

    def _active_member(self) -> int | None:
        """The index of the only member that sets learning rates; None if all members do."""
        return None


class SequentialAdapter(ChainedAdapter):
    """The adapter of torch's `SequentialLR`."""

    def _active_member(self) -> int | None:
        return bisect_right(self.scheduler._milestones, self.scheduler.last_epoch)


class OneCycleAdapter(TorchAdapter):
    """The adapter of torch's `OneCycleLR`: it raises after its end, and its learning rate would rise again there."""

    @property
    def last_step(self) -> int | None:
        return int(self.scheduler.total_steps) - 1


class PlateauAdapter(TorchAdapter):
    """The adapter of `ReduceLROnPlateau`, torch's and optplug's."""

    @property
    def mode(self) -> str | None:
        return str(self.scheduler.mode)

    def restart_with_mode(self, mode: str) -> None:
        plateau = self.scheduler
        plateau._init_is_better(mode, plateau.threshold, plateau.threshold_mode)
        plateau.best, plateau.num_bad_epochs = plateau.mode_worse, 0

    def apply_settings(
        self, new_state: Mapping[str, Any], base_lrs: Sequence[float], old_base_lrs: Sequence[float]
    ) -> bool:
        super().apply_settings(new_state, base_lrs, old_base_lrs)
        self._load_settings(new_state)
        groups, min_lrs = self.scheduler.optimizer.param_groups, self.scheduler.min_lrs
        for group, base, old, least in zip(groups, base_lrs, old_base_lrs, min_lrs, strict=False):
            if base and not old:  # the cuts of this group would have ended at its least learning rate
                set_lr(group, max(float(group["lr"]), min(base, float(least))))
        self._update_last_lr()
        return True


class TimmAdapter(SchedulerAdapter):
    """The adapter of timm's schedulers, which set learning rates in `step(epoch)` or `step_update(num_updates)`.

    They do not count their steps: the number is an argument.
    """

    lr_lists = ("base_values",)
    value_lists = ()

    @property
    def step_count(self) -> int | None:
        return None


adapter_for.register(LRScheduler, TorchAdapter)
adapter_for.register(LambdaLR, LambdaAdapter)
adapter_for.register(ChainedScheduler, ChainedAdapter)
adapter_for.register(SequentialLR, SequentialAdapter)
adapter_for.register(OneCycleLR, OneCycleAdapter)
adapter_for.register(ReduceLROnPlateau, PlateauAdapter)
