"""torch's interface for the schedulers of other packages."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Collection
from inspect import Parameter
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from optplug.errors import PluginError


class AdaptedSchedule(LRScheduler):
    """A scheduler of another package, which sets learning rates itself, with the interface of torch's schedulers.

    Args:
        optimizer: the optimizer whose learning rates are scheduled.
        schedule: the scheduler of the other package, before its first step.

    Attributes:
        schedule: the scheduler of the other package.
        last_epoch: the number of steps taken.
        base_lrs: the base learning rate of each parameter group.
    """

    def __init__(self, optimizer: Optimizer, schedule: Any) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.last_epoch = 0
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self._update_last_lr()

    @abstractmethod
    def advance(self) -> None:
        """Set the learning rates of step `last_epoch`."""

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rates of the next step, or of a given one."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self.advance()
        self._update_last_lr()

    def _update_last_lr(self) -> None:
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = plain(group["lr"])
        self._last_lr = [float(group["lr"]) for group in groups]

    def state_dict(self) -> dict[str, Any]:
        """The state, without the optimizer."""
        own = {key: value for key, value in vars(self).items() if key not in ("optimizer", "schedule")}
        return {**own, "schedule": self.schedule_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""
        vars(self).update({key: value for key, value in state_dict.items() if key != "schedule"})
        self.load_schedule_state(state_dict["schedule"])

    def schedule_state(self) -> dict[str, Any]:
        """The attributes of the scheduler of the other package, without the optimizer.

        Raises:
            PluginError: an attribute is no plain data.
        """
        attributes = {key: value for key, value in vars(self.schedule).items() if value is not self.optimizer}
        try:
            return {key: plain(value) for key, value in attributes.items()}
        except TypeError as error:
            raise PluginError(f"the state of {type(self).__name__} cannot be saved: {error}") from error

    def load_schedule_state(self, state: dict[str, Any]) -> None:
        """Load a state from `schedule_state`."""
        vars(self.schedule).update(state)


def plain(value: Any) -> Any:
    """Return a value with numbers of Python in place of NumPy's, which torch does not load safely; also within others.

    Raises:
        TypeError: the value does not consist of numbers, text, tensors, lists, tuples and dicts.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not value.shape:
        value = value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return value
    raise TypeError(f"a checkpoint has no room for {value!r} of {type(value)}")


def adapt(base: Any, cls: Any, *, without: Collection[str] = (), **attributes: Any) -> Any:
    """Return a subclass of `AdaptedSchedule` for a scheduler class, whose arguments it has.

    Args:
        base: the subclass of `AdaptedSchedule` for the package. Its constructor takes the optimizer and the scheduler.
        cls: the scheduler class.
        without: arguments of `cls` that it does not have.
        attributes: further attributes of the class.
    """

    def init(self: Any, optimizer: Optimizer, **arguments: Any) -> None:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # the scheduler may set lr now
        base.__init__(self, optimizer, cls(optimizer, **arguments))

    first = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", "optimizer")]
    others = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in _parameters(cls.__mro__) if p.name not in without]
    constructor: Any = init
    constructor.__signature__ = inspect.Signature([*first, *others])
    constructor.__annotations__ = {}  # those in the signature apply
    return type(cls.__name__, (base,), {"__init__": init, "__doc__": cls.__doc__, **attributes})


def _parameters(mro: tuple[type, ...]) -> list[Parameter]:
    """Return the parameters of a constructor without self and optimizer; its `**options` are those of the next one."""
    first, *others = [cls for cls in mro if "__init__" in vars(cls)]
    found = [*inspect.signature(first.__init__).parameters.values()][2:]  # type: ignore[misc]  # it is not called
    if found and found[-1].kind is Parameter.VAR_KEYWORD:
        names = {p.name for p in found}
        found[-1:] = [p for p in _parameters(tuple(others)) if p.name not in names]
    return found
