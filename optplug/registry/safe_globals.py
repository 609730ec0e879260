"""Declares optplug's own classes to torch as safe, so that `torch.load(weights_only=True)` loads files with them.

torch reads the list of safe classes when a file contains a class or function that torch does not know. Only then are
the classes imported, all of them: that takes up to a second, once in a process, and also for a class of another
package. A file with tensors and numbers only, such as a state dict, imports none. This module does not import torch: it
declares the classes as soon as torch has been imported.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from optplug.errors import PluginError, one_line

CORE_CLASSES = (
    "optplug.config.expressions:Expression",
    "optplug.lightning.callback:ConfigureOptimizers",
    "optplug.lightning.fit_state:EpochCount",
    "optplug.lightning.fit_state:FitState",
    "optplug.lightning.fit_state:MetricSnapshots",
    "optplug.lightning.optimizer_modes:OptimizerModes",
    "optplug.lightning.plateau:PlateauObserver",
    "optplug.lightning.reporter:Reporter",
    "optplug.lightning.stepping_callback:SteppingCallback",
    "optplug.optim.combined:Combined",
    "optplug.schedulers.per_group:PerGroup",
    "optplug.schedulers.plateau_warmup:PlateauWarmup",
    "optplug.schedulers.warmup:Warmup",
)
"""Classes in pickles of optimizers, schedulers and callbacks that no plugin registers."""


PLUGIN_CLASSES = (
    "optplug_classic.adadelta:Adadelta",
    "optplug_classic.adagrad:Adagrad",
    "optplug_classic.adam:Adam",
    "optplug_classic.adamax:Adamax",
    "optplug_classic.adamw:AdamW",
    "optplug_classic.asgd:ASGD",
    "optplug_classic.lbfgs:LBFGS",
    "optplug_classic.rmsprop:RMSprop",
    "optplug_classic.rprop:Rprop",
    "optplug_classic.sgd:SGD",
    "optplug_classic.sparse_adam:SparseAdam",
    "optplug_modern.adabelief:AdaBelief",
    "optplug_modern.adafactor:Adafactor",
    "optplug_modern.adan:Adan",
    "optplug_modern.ademamix:AdEMAMix",
    "optplug_modern.adopt:ADOPT",
    "optplug_modern.lamb:Lamb",
    "optplug_modern.lars:Lars",
    "optplug_modern.lion:Lion",
    "optplug_modern.muon:Muon",
    "optplug_modern.nadam:NAdam",
    "optplug_modern.prodigy:Prodigy",
    "optplug_modern.radam:RAdam",
    "optplug_modern.schedule_free_adamw:ScheduleFreeAdamW",
    "optplug_modern.schedule_free_sgd:ScheduleFreeSGD",
    "optplug_modern.signum:Signum",
    "optplug_modern.soap:SOAP",
    "optplug_schedules.constant_lr:ConstantLR",
    "optplug_schedules.cosine_annealing_lr:CosineAnnealingLR",
    "optplug_schedules.cosine_annealing_warm_restarts:CosineAnnealingWarmRestarts",
    "optplug_schedules.cyclic_lr:CyclicLR",
    "optplug_schedules.exponential_lr:ExponentialLR",
    "optplug_schedules.inverse_sqrt:InverseSqrt",
    "optplug_schedules.lambda_lr:LambdaLR",
    "optplug_schedules.linear_lr:LinearLR",
    "optplug_schedules.multi_step_lr:MultiStepLR",
    "optplug_schedules.multiplicative_lr:MultiplicativeLR",
    "optplug_schedules.one_cycle_lr:OneCycleLR",
    "optplug_schedules.polynomial_lr:PolynomialLR",
    "optplug_schedules.reduce_lr_on_plateau:ReduceLROnPlateau",
    "optplug_schedules.sequential:Sequential",
    "optplug_schedules.step_lr:StepLR",
    "optplug_schedules.wsd:WSD",
)
"""What optplug's own plugins register, so that `import torch` imports no plugin. Tests compare it with the hooks."""


class SafeGlobal(tuple[Any, str]):
    """A class and its full name, as `torch.serialization.add_safe_globals` takes them. Reading the class imports it.

    Args:
        target: `"module:object"`.
    """

    __slots__ = ()

    def __new__(cls, target: str) -> SafeGlobal:
        return super().__new__(cls, (target, target.replace(":", ".")))

    def __iter__(self) -> Iterator[Any]:
        return iter((self[0], self[1]))

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        return _class_of(item) if index == 0 else item


def _class_of(target: str) -> type:
    """Import a class. In the place of one that cannot be imported, return a class that raises the cause.

    torch reads all safe classes at once. Without Lightning, optimizers must still load, although the callback cannot.
    """
    try:
        return _imported(target)
    except Exception as error:
        return _unavailable(f"{target!r} could not be imported: {one_line(error)}")


# These results are cached because torch reads the list several times for each object in a file, and compares them.


@functools.cache
def _imported(target: str) -> type:
    module, _, name = target.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


@functools.cache
def _unavailable(message: str) -> type:
    def refuse(*_: object, **__: object) -> None:
        raise PluginError(message)

    return type("Unavailable", (), {"__new__": refuse})


def declare_safe_classes() -> None:
    """Declare the safe classes to torch, now or when torch is imported."""
    is_waiting = any(getattr(finder, "__name__", "") == _TorchObserver.__name__ for finder in sys.meta_path)
    if not is_waiting and not _declare():
        observer: Any = _TorchObserver
        sys.meta_path.insert(0, observer)


def _declare() -> bool:
    """Declare the safe classes. Return whether torch has been imported far enough."""
    add_safe_globals = getattr(sys.modules.get("torch.serialization"), "add_safe_globals", None)
    if add_safe_globals is None:
        return False
    add_safe_globals([SafeGlobal(target) for target in (*CORE_CLASSES, *PLUGIN_CLASSES)])
    return True


class _TorchObserver:
    """An import hook that declares the safe classes while torch is imported. It finds no module."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        if not name.startswith("torch.") or "torch.serialization" not in sys.modules:
            return
        try:
            is_over = _declare()
        except Exception as error:  # `import torch` must not fail
            logging.getLogger("optplug").warning("torch.load does not know optplug's classes: %s", one_line(error))
            is_over = True
        if is_over:  # the list is replaced, since Python is iterating over it
            sys.meta_path = [finder for finder in sys.meta_path if finder is not cls]
