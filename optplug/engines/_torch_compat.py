"""torch's private names, each used once here. What a version of torch lacks, and what follows then, is said beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo as disable_dynamo
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

__all__ = [
    "capturable_device_types",
    "data_ptr_reader_address",
    "disable_dynamo",
    "is_functorch_active",
    "is_proxy_tracing",
    "load_state_dict_hooks",
    "preserve_version_counters",
    "tensor_guards",
]


def capturable_device_types() -> tuple[str, ...]:
    """The types of device on which torch's optimizers take `capturable=True`."""
    return ("cuda", "xpu", "hpu", torch._C._get_privateuse1_backend_name(), "xla")


def is_functorch_active() -> bool:
    """Whether a transform of `torch.func` is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_proxy_tracing() -> bool:
    """Whether `make_fx` is tracing."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def tensor_guards(tensors: Sequence[Tensor]) -> Any:
    """torch.compile's check, in C++, of type, dtype, device, layout, shape and strides; None where torch has none."""
    guards: Any = getattr(torch._C._dynamo.guards, "TensorGuards", None)
    shapes = [list(t.shape) for t in tensors]
    strides = [list(t.stride()) for t in tensors]
    return guards and guards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides)


def data_ptr_reader_address() -> int | None:
    """The address of the C function `int64_t(PyObject*)` that returns a tensor's data pointer; None where torch has none."""
    found = getattr(torch._C._dynamo.guards, "_torchinductor_pyobject_tensor_data_ptr", None)
    return found if isinstance(found, int) else None


def load_state_dict_hooks(optimizer: Any) -> tuple[Iterable[Any], Iterable[Any]]:
    """The hooks registered to run before and after `optimizer.load_state_dict`."""
    return (
        optimizer._optimizer_load_state_dict_pre_hooks.values(),
        optimizer._optimizer_load_state_dict_post_hooks.values(),
    )


def preserve_version_counters(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """Within this context, writing to the tensors does not advance their version counters."""
    return _unsafe_preserve_version_counter(tuple(tensors))
