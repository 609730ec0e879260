"""Optimizers that evaluate with other weights than they train: schedule-free ones, which have `train()` and `eval()`.

They train on weights between two sequences and are judged by an average. So they are told which of the two begins, and
every checkpoint gets the weights to evaluate with.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakSet

from torch import Tensor

from optplug.engines._torch_compat import preserve_version_counters
from optplug.optim.combined import has_modes

_training: WeakSet[Any] = WeakSet()  # what was told to train; an optimizer's own flag may be anywhere


def set_mode(optimizers: Iterable[Any], mode: str) -> None:
    """Put the optimizers that have modes into one.

    Args:
        optimizers: the raw ones; a flag set through Lightning's wrapper would stay on that. mode: "train" or "eval".
    """
    for optimizer in filter(has_modes, optimizers):
        getattr(optimizer, mode)()
        (_training.add if mode == "train" else _training.discard)(optimizer)


def save_eval_weights(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Give a checkpoint that is written amid training the evaluation weights, and optimizer states that go with them.

    Args:
        trainer: it trains on as if nothing had been saved. checkpoint: as Lightning has collected it.
    """
    if not any(optimizer in _training for optimizer in trainer.optimizers):
        return
    set_mode(trainer.optimizers, "train")  # a module may have switched by itself in order to save
    tensors = list(_tensors(trainer))
    kept = [tensor.clone() for tensor in tensors]
    # A graph that is to be differentiated yet finds the values it knows.
    with preserve_version_counters(tensors):
        set_mode(trainer.optimizers, "eval")
        checkpoint["state_dict"] = copy.deepcopy(trainer.strategy.lightning_module_state_dict())
        checkpoint["optimizer_states"] = [
            copy.deepcopy(trainer.strategy.optimizer_state(optimizer)) for optimizer in trainer.optimizers
        ]
        set_mode(trainer.optimizers, "train")
        for tensor, before in zip(tensors, kept, strict=True):  # there and back costs rounding
            tensor.copy_(before)


def _tensors(trainer: Any) -> Iterator[Tensor]:
    """What the modes of the trainer's optimizers may change."""
    for optimizer in filter(has_modes, trainer.optimizers):
        for group in optimizer.param_groups:
            yield from (p.detach() for p in group["params"])
        for state in optimizer.state.values():
            yield from (value.detach() for value in state.values() if isinstance(value, Tensor))
