"""Optimizers of other packages whose `step` does not use its closure as torch's optimizers do.

The caller, such as a Lightning trainer, passes a closure that computes the loss and the gradients. torch's optimizers
evaluate it before they change the parameters, and most of them can step without one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from optplug.engines._torch_compat import step_without_hooks, with_step_hooks
from optplug.errors import WiringError

Closure = Callable[[], Any]
Step = Callable[..., Any]
Adaptation = Callable[[Step, str], Step]
"""Takes the method `step` of a class and the name of the optimizer, and returns the method of the subclass.

Adaptations are functions of this module: pickle stores their names.
"""


def takes_no_arguments(step: Any) -> bool:
    """Return whether the bound method `step` has no argument, so that it cannot take a closure."""
    return not inspect.signature(step).parameters


def has_step_of_torch(optimizer: Optimizer) -> bool:
    """Return whether the class of an optimizer has, or inherits, `step` of a class of torch: it calls its closure."""
    return str(step_without_hooks(type(optimizer)).__module__).startswith("torch.optim.")


def adapt_step(optimizer: Optimizer, adaptation: Adaptation, name: str) -> None:
    """Make the class of an optimizer a subclass with another `step`.

    A class, and not a function or hooks of the instance, since copies of an optimizer lose those, and since schedulers
    and Lightning replace the attribute `step` themselves.

    Args:
        optimizer: the optimizer.
        adaptation: one of the functions below.
        name: the name of the optimizer, for messages.
    """
    cls: Any = type(optimizer)
    optimizer.__class__ = _adapted_class(cls, adaptation, name)


def original_class(optimizer: Optimizer) -> type[Optimizer]:
    """Return the class of an optimizer before `adapt_step`."""
    cls: type[Optimizer] = getattr(type(optimizer), "_adapted_from", type(optimizer))
    return cls


@functools.lru_cache(maxsize=1024)
def _adapted_class(cls: Any, adaptation: Adaptation, name: str) -> Any:
    def reduce(self: Optimizer, protocol: Any) -> Any:
        _, _, *state = super(adapted, self).__reduce_ex__(protocol)
        return _new_instance, (cls, adaptation, name), *state

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    members = {"step": adaptation(step_without_hooks(cls), name), "__reduce_ex__": reduce, "_adapted_from": cls}
    adapted: Any = type(cls)(cls.__name__, (cls,), {**names, **members})
    return with_step_hooks(adapted, like=cls)


def _new_instance(cls: Any, adaptation: Adaptation, name: str) -> Any:
    """Return an optimizer without attributes, for pickle and deepcopy."""
    adapted = _adapted_class(cls, adaptation, name)
    return adapted.__new__(adapted)


# ------------------------------------------------------------------------------------------ adaptations


def evaluate_first(inner: Step, name: str) -> Step:
    """The closure is evaluated before `step()`, which does not get it."""

    def step(self: Optimizer, closure: Closure | None = None) -> Any:
        loss = None if closure is None else _evaluated(closure)
        result = inner(self)
        return result if closure is None else loss

    return _with_name_of(inner, step)


def evaluate_first_and_pass(inner: Step, name: str) -> Step:
    """The closure is evaluated before `step(closure)`, which needs gradients and evaluates the closure again."""

    def step(self: Optimizer, closure: Closure | None = None) -> Any:
        loss = _evaluated(_with_loss(closure, name))
        inner(self, closure)
        return loss

    return _with_name_of(inner, step)


def require_closure(inner: Step, name: str) -> Step:
    """`step(closure)` raises an error without a closure, and for one that returns no loss."""

    @functools.wraps(inner)
    def step(self: Optimizer, closure: Closure | None = None, *args: Any, **kwargs: Any) -> Any:
        return inner(self, _with_loss(closure, name), *args, **kwargs)

    return step


def check_closure_call(inner: Step, name: str) -> Step:
    """`step(closure)` raises an error if it has not called the closure."""

    @functools.wraps(inner)
    def step(self: Optimizer, closure: Closure | None = None, *args: Any, **kwargs: Any) -> Any:
        if not callable(closure):
            return inner(self, closure, *args, **kwargs)
        is_called = False

        def observed(*given: Any, **options: Any) -> Any:
            nonlocal is_called
            is_called = True
            return closure(*given, **options)

        result = inner(self, observed, *args, **kwargs)
        if not is_called:
            raise WiringError(
                f"{name}: step(closure) did not call the closure, which computes the loss and the gradients; "
                'declare the capability "no_closure" in its OptimizerSpec, or call closure() before optimizer.step()'
            )
        return result

    return step


def _evaluated(closure: Closure) -> Any:
    with torch.enable_grad():
        return closure()


def _with_loss(closure: Closure | None, name: str) -> Closure:
    """Return a closure that raises an error if the given one returns None, as the one that Lightning passes if
    `step()` of manual optimization gets none.
    """
    needs = f"{name} evaluates a closure in its step: write optimizer.step(closure) with a function that computes the "
    needs += "loss and the gradients, and returns the loss"
    if closure is None:
        raise WiringError(f"{needs}; step() got no closure")

    def checked(*args: Any, **kwargs: Any) -> Any:
        loss = closure(*args, **kwargs)
        if loss is None:
            raise WiringError(f"{needs}; step() got none, or one that returned None")
        return loss

    return checked


def _with_name_of(inner: Step, step: Step) -> Step:
    named = functools.wraps(inner)(step)
    del named.__wrapped__  # the signature is that of the adapted method
    return named
