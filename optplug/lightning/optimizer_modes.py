"""Optimizers with `train()` and `eval()` methods: switching their mode, and evaluation weights in checkpoints.

Schedule-free optimizers evaluate with other weights than they train with: they train with an interpolation of two
sequences of weights and evaluate with an average. Their methods `train()` and `eval()` switch the parameters between
the two. Every checkpoint must contain the evaluation weights.

Before the first step of an optimizer, its training weights are its evaluation weights. If `eval()` needs the state that
the first step creates, and raises an error because it is missing, the optimizer stays in its mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from optplug.engines._torch_compat import preserve_version_counters
from optplug.optim.combined import has_train_eval_modes


class OptimizerModes:
    """The modes of a trainer's optimizers.

    Args:
        optimizers: torch optimizers, not Lightning's wrappers: a wrapper would store the mode flag on itself. Those
            without both methods are ignored.
    """

    def __init__(self, optimizers: Iterable[Any] = ()) -> None:
        self.optimizers = list(filter(has_train_eval_modes, optimizers))
        # Optimizer classes store their mode in different attributes, so it cannot be read from them.
        self._in_train_mode = False
        self._members = [_Member(member, one) for one in self.optimizers for member in members_with_modes(one)]
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step)
            for optimizer in self.optimizers
            if hasattr(optimizer, "register_step_pre_hook")
        ]

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        """Set the mode for the steps of a tuner within the training, and for the first step after it."""
        if not self._in_train_mode:
            optimizer.train()

    def detach(self) -> None:
        """Remove the hooks from the optimizers."""
        for handle in self._handles:
            handle.remove()

    def switch(self, mode: str) -> None:
        """Switch the optimizers to the mode `"train"` or `"eval"`."""
        for member in self._members:
            member.switch(mode)
        self._in_train_mode = mode == "train"

    def set_to_eval(self) -> None:
        """Set the mode to `"eval"` without a change of the weights: they have been loaded from a checkpoint."""
        for member in self._members:
            member.set_to_eval()
        self._in_train_mode = False

    def save_eval_weights(self, trainer: Any, checkpoint: dict[str, Any]) -> None:
        """Put evaluation weights and the matching optimizer states into a checkpoint that is written during training.

        The weights and states that the training continues with stay bit-identical.

        Args:
            trainer: the Lightning trainer.
            checkpoint: the checkpoint as Lightning has collected it; its weights and optimizer states are replaced.
        """
        if not (self.optimizers and self._in_train_mode):
            return
        self.switch("train")  # a module may have switched to eval in order to save
        tensors = list(self._tensors())
        training_values = [tensor.clone() for tensor in tensors]
        # Between forward and backward, autograd checks the version counters of the tensors that it has saved.
        with preserve_version_counters(tensors):
            self.switch("eval")
            checkpoint["state_dict"] = copy.deepcopy(trainer.strategy.lightning_module_state_dict())
            checkpoint["optimizer_states"] = [
                copy.deepcopy(trainer.strategy.optimizer_state(optimizer)) for optimizer in trainer.optimizers
            ]
            self.switch("train")
            for tensor, value in zip(tensors, training_values, strict=True):  # switching twice adds rounding errors
                tensor.copy_(value)

    def _tensors(self) -> Iterator[Tensor]:
        """The parameters and state tensors that switching the mode may change."""
        for optimizer in self.optimizers:
            yield from _tensors_of(optimizer)


class _Member:
    """The mode of one optimizer, alone or a member of a `Combined`.

    Args:
        optimizer: the optimizer.
        whole: the optimizer or combination of the trainer to which it belongs.
    """

    def __init__(self, optimizer: Any, whole: Any) -> None:
        self._optimizer = optimizer
        self._is_alone = optimizer is whole
        self._skipped_eval = False

    def _has_state(self) -> bool:
        """Whether the optimizer has stepped, in this fit or before the checkpoint."""
        state = self._optimizer.state
        if self._is_alone:
            return any(state.values())
        return any(state.get(p) for group in self._optimizer.param_groups for p in group["params"])

    def switch(self, mode: str) -> None:
        if self._skipped_eval and self._has_state():  # since then, the state has been loaded from a checkpoint
            self.set_to_eval()
        self._skipped_eval = False
        if mode == "eval" and not self._has_state():
            self._eval_without_state()
        else:
            getattr(self._optimizer, mode)()

    def _eval_without_state(self) -> None:
        groups = self._optimizer.param_groups
        before = [(group, dict(group)) for group in groups]
        weights = [(p.detach(), p.detach().clone()) for group in groups for p in group["params"] if not is_lazy(p)]
        try:
            self._optimizer.eval()
        except (LookupError, AttributeError, TypeError):  # such as a KeyError for an average that does not exist yet
            self._skipped_eval = True
            for p, value in weights:
                p.copy_(value)
            for group, options in before:
                group.clear()
                group.update(options)
                for p in group["params"]:
                    self._optimizer.state.pop(p, None)

    def set_to_eval(self) -> None:
        """Set the mode to `"eval"` without a change of the weights."""
        self._skipped_eval = False
        if not self._has_state():
            self._eval_without_state()
            return
        tensors = list(_tensors_of(self._optimizer))
        loaded_values = [tensor.clone() for tensor in tensors]
        self._optimizer.eval()
        for tensor, value in zip(tensors, loaded_values, strict=True):
            tensor.copy_(value)


def members_with_modes(optimizer: Any) -> list[Any]:
    """The members of a `Combined` that have modes; for another optimizer itself."""
    return list(filter(has_train_eval_modes, getattr(optimizer, "members", [optimizer])))


def _tensors_of(optimizer: Any) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from (p.detach() for p in group["params"])
    for state in optimizer.state.values():
        yield from (value.detach() for value in state.values() if isinstance(value, Tensor))
