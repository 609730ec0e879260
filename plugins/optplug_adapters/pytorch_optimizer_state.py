"""Checkpoints of pytorch_optimizer's optimizers with plain data in place of the objects in their states.

torch refuses such objects when it loads a checkpoint safely (`weights_only=True`).
"""

from __future__ import annotations

import importlib
from collections import deque
from enum import IntEnum
from typing import Any

from torch.optim import Optimizer

_CLASS, _ATTRIBUTES = "class of pytorch_optimizer", "attributes"
_PACKAGE = "pytorch_optimizer."


def build(cls: type[Optimizer], params: Any, **arguments: Any) -> Optimizer:
    """Build an optimizer whose state dict is plain data. It also loads state dicts of the package."""
    optimizer = cls(params, **arguments)
    optimizer.register_state_dict_post_hook(lambda _, saved: _plain(saved))
    # Not when a state is loaded: torch and Lightning move tensors in plain data to their devices, not those in objects.
    optimizer.register_step_pre_hook(_restore_objects)
    return optimizer


def _plain(value: Any) -> Any:
    """Return a value with plain data in place of the package's objects, of deques, and of enumerations."""
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, deque)):
        return [_plain(item) for item in value]
    if type(value).__module__.startswith(_PACKAGE):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {_CLASS: name, _ATTRIBUTES: _plain(vars(value))}
    return value


def _restore_objects(optimizer: Optimizer, *_: Any) -> None:
    """Put the package's objects into the state of an optimizer, where there is plain data of them."""
    for state in optimizer.state.values():
        for key, value in state.items():
            state[key] = _restored(value)


def _restored(value: Any) -> Any:
    """Return the object of plain data; other values unchanged. Nothing outside of the package is imported."""
    if not (isinstance(value, dict) and _CLASS in value):
        return value
    module, _, name = value[_CLASS].partition(":")
    if not module.startswith(_PACKAGE):
        raise ValueError(f"the state of an optimizer of pytorch_optimizer contains an object of {value[_CLASS]!r}")
    found = object.__new__(getattr(importlib.import_module(module), name))
    vars(found).update({key: _restored(item) for key, item in value[_ATTRIBUTES].items()})
    return found
