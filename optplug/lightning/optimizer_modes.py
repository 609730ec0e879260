"""Optimizers with `train()` and `eval()` methods: switching their mode, and evaluation weights in checkpoints.

Schedule-free optimizers evaluate with other weights than they train with: they train with an interpolation of two
sequences of weights and evaluate with an average. Their methods `train()` and `eval()` switch the parameters between
the two. Every checkpoint must contain the evaluation weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakSet

from torch import Tensor

from optplug.engines._torch_compat import preserve_version_counters
from optplug.optim.combined import has_train_eval_modes

_in_train_mode: WeakSet[Any] = WeakSet()
"""The optimizers that `set_mode` last switched to `"train"`. Optimizer classes store their mode in different
attributes, so it cannot be read from them."""


def set_mode(optimizers: Iterable[Any], mode: str) -> None:
    """Switch the optimizers that have modes.

    Args:
        optimizers: torch optimizers, not Lightning's wrappers: a wrapper would store the mode flag on itself.
        mode: `"train"` or `"eval"`.
    """
    for optimizer in filter(has_train_eval_modes, optimizers):
        getattr(optimizer, mode)()
        (_in_train_mode.add if mode == "train" else _in_train_mode.discard)(optimizer)


def save_eval_weights(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Put evaluation weights and the matching optimizer states into a checkpoint that is written during training.

    The weights and states that the training continues with stay bit-identical.

    Args:
        trainer: the Lightning trainer.
        checkpoint: the checkpoint as Lightning has collected it; its weights and optimizer states are replaced.
    """
    if not any(optimizer in _in_train_mode for optimizer in trainer.optimizers):
        return
    set_mode(trainer.optimizers, "train")  # a module may have switched to eval in order to save
    tensors = list(_tensors_changed_by_modes(trainer))
    training_values = [tensor.clone() for tensor in tensors]
    # Between forward and backward, autograd checks the version counters of the tensors that it has saved.
    with preserve_version_counters(tensors):
        set_mode(trainer.optimizers, "eval")
        checkpoint["state_dict"] = copy.deepcopy(trainer.strategy.lightning_module_state_dict())
        checkpoint["optimizer_states"] = [
            copy.deepcopy(trainer.strategy.optimizer_state(optimizer)) for optimizer in trainer.optimizers
        ]
        set_mode(trainer.optimizers, "train")
        for tensor, value in zip(tensors, training_values, strict=True):  # switching twice adds rounding errors
            tensor.copy_(value)


def _tensors_changed_by_modes(trainer: Any) -> Iterator[Tensor]:
    """The parameters and state tensors that switching the mode may change."""
    for optimizer in filter(has_train_eval_modes, trainer.optimizers):
        for group in optimizer.param_groups:
            yield from (p.detach() for p in group["params"])
        for state in optimizer.state.values():
            yield from (value.detach() for value in state.values() if isinstance(value, Tensor))
