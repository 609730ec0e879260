"""Gradients that can be differentiated, for optimizers with the capability `create_graph`, such as AdaHessian.

Lightning's precision plugin calls `backward` of the module for each loss. During a fit with such an optimizer, it
passes `create_graph=True`. The module is not changed: copies of it would keep the change. A gradient with a graph
refers to the parameter that holds it: the graphs are freed after each optimizer step, and at the end of each batch for
parameters that no optimizer holds.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from optplug.errors import WiringError, listing
from optplug.lightning.fit_setup import BuiltOptimizer, names_with

_CAPABILITY = ("create_graph",)


class GradientGraphs:
    """The replaced `backward` of a precision plugin, and the hooks that free the graphs of gradients."""

    def __init__(self) -> None:
        self._module: Any = None
        self._plugin: Any = None
        self._handles: list[Any] = []

    def attach(self, trainer: Any, built: Sequence[BuiltOptimizer]) -> None:
        """Keep graphs from now on, if one of the optimizers needs them.

        Raises:
            WiringError: the trainer or the module cannot make gradients with a graph.
        """
        self.detach()
        names = names_with(built, _CAPABILITY)
        if not names:
            return
        module = trainer.lightning_module
        _check_can_serve(trainer, module, module.backward, listing(names))
        self._module, self._plugin = module, trainer.precision_plugin
        # A partial, since pickle and deepcopy copy it together with the plugin.
        self._plugin.backward = functools.partial(_backward_with_graph, self._plugin)
        for one in built:
            own_names = names_with([one], _CAPABILITY)
            if own_names and not module.automatic_optimization:
                check = _FirstStepCheck(listing(own_names))
                self._handles.append(one.optimizer.register_step_pre_hook(check))
            if hasattr(one.optimizer, "register_step_post_hook"):
                self._handles.append(one.optimizer.register_step_post_hook(_free_graphs_of))

    def end_batch(self, optimizers: Iterable[Any]) -> None:
        """Free the graphs of the parameters that no optimizer holds: their gradients are never set to None."""
        if self._module is not None:
            held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
            _free_graphs(p for p in self._module.parameters() if id(p) not in held)

    def detach(self) -> None:
        """Restore the precision plugin and the optimizers."""
        if self._module is not None:
            _free_graphs(self._module.parameters())
            vars(self._plugin).pop("backward", None)
        for handle in self._handles:
            handle.remove()
        self._module, self._plugin, self._handles = None, None, []


class _FirstStepCheck:
    """Step hook that raises an error if the gradients of the first step have no graph: the module made them itself.

    In automatic optimization they are made by the closure, after this hook.
    """

    def __init__(self, names: str) -> None:
        self.names = names
        self.is_done = False

    def __call__(self, optimizer: Any, *_: Any) -> None:
        if self.is_done:
            return
        self.is_done = True
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if grads and not any(grad.requires_grad for grad in grads):
            raise WiringError(
                f"{self.names} needs gradients made with create_graph=True: write self.manual_backward(loss) in place "
                "of loss.backward()"
            )


def _check_can_serve(trainer: Any, module: Any, backward: Any, names: str) -> None:
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise WiringError(
            f"{names} differentiates the gradients, which a gradient scaler has scaled: "
            "use precision 'bf16-mixed' or '32-true' instead of '16-mixed'",
            loc=("optimizer",),
        )
    needs = f"{names} needs gradients made with create_graph=True"
    if trainer.world_size > 1:
        message = f"{needs}, which several processes cannot average: train with one process, devices=1"
        raise WiringError(message, loc=("optimizer",))
    parameters = inspect.signature(backward).parameters
    if "create_graph" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        raise WiringError(
            f"{needs}, but {type(module).__name__}.backward takes no such argument: "
            "write def backward(self, loss, **kwargs): loss.backward(**kwargs)",
            loc=("optimizer",),
        )


def _backward_with_graph(plugin: Any, loss: Tensor, *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        # The cycle of references that this warning is about is removed after the step.
        warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True")
        type(plugin).backward(plugin, loss, *args, **{"create_graph": True, **kwargs})


def _free_graphs_of(optimizer: Any, *_: Any) -> None:
    _free_graphs(p for group in optimizer.param_groups for p in group["params"])


def _free_graphs(params: Iterable[Tensor]) -> None:
    for p in params:
        if p.grad is not None and p.grad.requires_grad:
            p.grad = p.grad.detach()
