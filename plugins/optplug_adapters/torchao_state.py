"""Checkpoints of the optimizers of torchao with plain tensors in place of quantized ones.

Lightning loads checkpoints with a function as `map_location`, and torch loads no tensor subclass that way.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torchao.optim.subclass_4bit import OptimState4bit
from torchao.optim.subclass_8bit import OptimState8bit
from torchao.optim.subclass_fp8 import OptimStateFp8

_QUANTIZED: dict[str, Any] = {cls.__name__: cls for cls in (OptimState4bit, OptimState8bit, OptimStateFp8)}
_CLASS = "quantized_class"


def build(cls: type[Optimizer], params: Any, **arguments: Any) -> Optimizer:
    """Build an optimizer whose state dict has plain tensors only. It loads its own state dicts and those of torchao."""
    optimizer = cls(params, **arguments)
    # Hooks suffice: deepcopy of torchao's optimizers raises an error, and they cannot step after pickle.
    optimizer.register_state_dict_post_hook(lambda _, saved: _converted(saved, _to_plain))
    optimizer.register_load_state_dict_pre_hook(lambda _, saved: _converted(saved, _to_quantized))
    return optimizer


def _converted(saved: dict[str, Any], convert: Any) -> dict[str, Any]:
    """Return a state dict with converted values of the states of parameters."""
    states = saved["state"].items()
    return {**saved, "state": {i: {name: convert(value) for name, value in state.items()} for i, state in states}}


def _to_plain(value: Any) -> Any:
    if type(value).__name__ not in _QUANTIZED:
        return value
    names, context = value.__tensor_flatten__()
    return {_CLASS: type(value).__name__, "tensors": {name: getattr(value, name) for name in names}, "context": context}


def _to_quantized(value: Any) -> Any:
    if not (isinstance(value, dict) and _CLASS in value):
        return value
    return _QUANTIZED[value[_CLASS]].__tensor_unflatten__(value["tensors"], value["context"])
