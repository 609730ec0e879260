"""Optimizers of other packages whose `step` does not use its closure as torch's optimizers do.

The caller, such as a Lightning trainer, passes a closure that computes the loss and the gradients. torch's optimizers
evaluate it before they change the parameters.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from optplug.engines._torch_compat import can_have_step_hooks, step_without_hooks
from optplug.errors import WiringError

Closure = Callable[[], Any]

NO_CLOSURE = "no_closure"
"""The closure is evaluated before `step()`, which does not get it."""

CLOSURE_FIRST = "closure_first"
"""The closure is evaluated before `step(closure)`, which needs gradients and evaluates the closure again."""


def takes_no_arguments(step: Any) -> bool:
    """Return whether the bound method `step` has no argument, so that it cannot take a closure."""
    return not inspect.signature(step).parameters


def adapt_step(optimizer: Optimizer, adaptation: str) -> None:
    """Make the class of an optimizer a subclass whose `step` evaluates the closure first.

    A class, and not a function on the instance, since copies of an optimizer lose its attributes, and since schedulers
    and Lightning replace the attribute `step` themselves.

    Args:
        optimizer: the optimizer.
        adaptation: `NO_CLOSURE` or `CLOSURE_FIRST`.
    """
    cls: Any = type(optimizer)
    optimizer.__class__ = _adapted_class(cls, adaptation)


@functools.lru_cache(maxsize=1024)
def _adapted_class(cls: Any, adaptation: str) -> Any:
    inner = step_without_hooks(cls)

    @functools.wraps(inner)
    def step(self: Optimizer, closure: Closure | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if adaptation == NO_CLOSURE or closure is None:
            result = inner(self)
            return result if closure is None else loss
        inner(self, closure)
        return loss

    def reduce(self: Optimizer, protocol: Any) -> Any:
        _, _, *state = super(adapted, self).__reduce_ex__(protocol)
        return _new_instance, (cls, adaptation), *state

    del step.__wrapped__  # its signature is not that of the adapted method
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    adapted: Any = type(cls)(cls.__name__, (cls,), {**names, "step": step, "__reduce_ex__": reduce})
    if can_have_step_hooks(cls):  # as torch does for the class of an optimizer
        adapted.step = Optimizer.profile_hook_step(step)
        adapted.step.hooked = True
    return adapted


def _new_instance(cls: Any, adaptation: str) -> Any:
    """Return an optimizer without attributes, for pickle and deepcopy."""
    adapted = _adapted_class(cls, adaptation)
    return adapted.__new__(adapted)


# ------------------------------------------------------------------------------------------ closures that are ignored


def check_closure_calls(optimizer: Optimizer, name: str) -> None:
    """Make each step raise an error if it is given a closure and has not called it.

    Args:
        optimizer: the optimizer.
        name: its name, for the message.
    """
    if can_have_step_hooks(type(optimizer)):
        check = _ClosureCheck(name)
        optimizer.register_step_pre_hook(check.before)
        optimizer.register_step_post_hook(check.after)


class _ClosureCheck:
    """Step hooks that observe whether the closure is called.

    Args:
        name: the name of the optimizer, for the message.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_called = True

    def before(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_positional = len(args) > 1  # the first argument is the optimizer
        closure = args[1] if is_positional else kwargs.get("closure")
        self._is_called = not callable(closure)
        if not callable(closure):
            return None

        def observed(*given: Any, **options: Any) -> Any:
            self._is_called = True
            return closure(*given, **options)

        if is_positional:
            return (args[0], observed, *args[2:]), kwargs
        return args, {**kwargs, "closure": observed}

    def after(self, *_: Any) -> None:
        if not self._is_called:
            self._is_called = True
            raise WiringError(
                f"{self.name}: step(closure) did not call the closure, which computes the loss and the gradients; "
                'declare the capability "no_closure" in its OptimizerSpec, or call closure() before optimizer.step()'
            )
