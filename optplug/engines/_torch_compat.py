"""Internals of torch that optplug imports: `torch._C`, `torch._compile`, version counters, the registries of hooks.

Private methods of classes that optplug derives from, and `torch._foreach_*`, are used where they are needed.
`make_torch_guards` and `data_ptr_reader_address` return None for versions of torch that lack the name. The other names
are required.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from optplug.errors import DependencyError, upgrade_hint

MINIMUM_TORCH = (2, 6)
if _hint := upgrade_hint("torch", torch.__version__, MINIMUM_TORCH):  # before the imports of internals
    raise DependencyError(f"optplug needs torch {MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]} or later; {_hint}")

# ruff: noqa: E402
from torch import Tensor
from torch._compile import _disable_dynamo as disable_dynamo
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.optim.lr_scheduler import LRScheduler
from torch.torch_version import TorchVersion

__all__ = [
    "PlateauNames",
    "SchedulerBase",
    "active_transform",
    "can_have_step_hooks",
    "capturable_device_types",
    "check_graph_capture",
    "data_ptr_reader_address",
    "disable_dynamo",
    "fused_device_types",
    "load_state_dict_hooks",
    "make_torch_guards",
    "preserve_version_counters",
    "search_limit",
    "step_without_hooks",
    "with_step_hooks",
    "without_compiler",
]


def capturable_device_types() -> tuple[str, ...]:
    """The device types on which torch's optimizers accept `capturable=True`."""
    return ("cuda", "xpu", "hpu", torch._C._get_privateuse1_backend_name(), "xla")


def fused_device_types() -> tuple[str, ...]:
    """The device types on which the optimizers of current versions of torch accept `fused=True`."""
    return ("mps", "cuda", "xpu", "hpu", "cpu", "mtia", torch._C._get_privateuse1_backend_name())


def can_have_step_hooks(cls: type[torch.optim.Optimizer]) -> bool:
    """Whether torch calls the step hooks of an optimizer class: an instance has been initialized by torch's class.

    An optimizer that wraps another one may not call the constructor of its base class.
    """
    return bool(getattr(cls.step, "hooked", False))


def step_without_hooks(cls: type[torch.optim.Optimizer]) -> Any:
    """The method `step` of an optimizer class without the function with which torch calls the step hooks."""
    return cls.step.__wrapped__ if can_have_step_hooks(cls) else cls.step  # type: ignore[attr-defined]


def with_step_hooks(
    cls: type[torch.optim.Optimizer], *, like: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    """Let torch call the step hooks of a class with a `step` of its own, if it does so for another class."""
    if can_have_step_hooks(like):  # as torch does when an instance is initialized
        step: Any = torch.optim.Optimizer.profile_hook_step(cls.step)
        step.hooked = True
        cls.step = step  # type: ignore[method-assign]
    return cls


def check_graph_capture(optimizer: torch.optim.Optimizer) -> None:
    """Run torch's check that an optimizer which steps in a CUDA graph capture has `capturable=True`."""
    current = getattr(optimizer, "_accelerator_graph_capture_health_check", None)
    check: Any = current or optimizer._cuda_graph_capture_health_check  # torch < 2.11
    check()


def active_transform() -> str | None:
    """The transform of torch that is active in the current call, in words; None if there is none."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func is transforming this step"
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:  # make_fx
        return "this step is being traced"
    return None


def make_torch_guards(tensors: Sequence[Tensor]) -> Any:
    """torch.compile's C++ check that tensors keep their type, dtype, device, layout, shape and strides.

    Returns None if this version of torch has no such check.
    """
    guards: Any = getattr(torch._C._dynamo.guards, "TensorGuards", None)
    shapes = [list(t.shape) for t in tensors]
    strides = [list(t.stride()) for t in tensors]
    return guards and guards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides)


def data_ptr_reader_address() -> int | None:
    """The address of the C function `int64_t(PyObject*)` that returns the data pointer of a tensor.

    Returns None if this version of torch has no such function.
    """
    found = getattr(torch._C._dynamo.guards, "_torchinductor_pyobject_tensor_data_ptr", None)
    return found if isinstance(found, int) else None


@contextmanager
def without_compiler() -> Iterator[None]:
    """Construct optimizers without importing torch's compiler, which takes longer than `import torch`.

    torch imports it to exclude `Optimizer.add_param_group` from compilation. Within this context nothing is compiled.
    """
    function: Any = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    if hasattr(function, "__dynamo_disable"):  # it is imported already
        yield
        return
    function.__dynamo_disable = function
    try:
        yield
    finally:
        del function.__dynamo_disable


def load_state_dict_hooks(optimizer: Any) -> tuple[Iterable[Any], Iterable[Any]]:
    """The hooks registered to run before and after `optimizer.load_state_dict`."""
    return (
        optimizer._optimizer_load_state_dict_pre_hooks.values(),
        optimizer._optimizer_load_state_dict_post_hooks.values(),
    )


_MAX_EVAL_LIMITS_SEARCHES = TorchVersion(torch.__version__) >= "2.11"  # parsed once, not in each search


def search_limit(remaining: int) -> int:
    """The maximum number of evaluations of a line search of L-BFGS.

    Args:
        remaining: how many evaluations `max_eval` leaves. torch < 2.11: a search makes up to 25, whatever it leaves.
    """
    return remaining if _MAX_EVAL_LIMITS_SEARCHES else 25


def preserve_version_counters(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """A context in which writes to the tensors do not increase their version counters."""
    stack = ExitStack()  # torch < 2.8: `_unsafe_preserve_version_counter` takes one tensor, not a tuple
    for tensor in tensors:
        stack.enter_context(_unsafe_preserve_version_counter(tensor))
    return stack


class SchedulerBase(LRScheduler):
    """`LRScheduler` with what newer versions of torch have.

    torch < 2.8: it has no `_is_initial`. The schedulers of these versions take every step to epoch 0 for the initial
    step, and the step that resumes at a later epoch for an ordinary one; so do those derived from this class.

    torch < 2.11: it has no `_update_lr`, which `step` and other schedulers call. `base_lrs` and the last learning rates
    are the tensors of the parameter groups, not copies.
    """

    if not hasattr(LRScheduler, "_is_initial"):

        @property
        def _is_initial(self) -> bool:  # type: ignore[override]
            return self.last_epoch == 0

    def before_update(self) -> None:
        """Called before each update of the learning rates."""

    def after_update(self) -> None:
        """Called after each update of the learning rates."""

    if hasattr(LRScheduler, "_update_lr"):

        def _update_lr(self, epoch: int | None = None) -> None:
            self.before_update()
            super()._update_lr(epoch)
            self.after_update()

    else:

        def _initial_step(self) -> None:
            self.base_lrs = _with_copied_tensors(self.base_lrs)
            super()._initial_step()

        def step(self, epoch: int | None = None) -> None:
            self.before_update()
            super().step(epoch)
            self._last_lr = _with_copied_tensors(self._last_lr)
            self.after_update()


def _with_copied_tensors(values: Iterable[Any]) -> list[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


class PlateauNames:
    """The names of methods of older versions of `ReduceLROnPlateau`. torch < 2.11: `_is_better` is `is_better`."""

    _is_better: Any

    def is_better(self, a: float, best: float) -> bool:
        return bool(self._is_better(a, best))
