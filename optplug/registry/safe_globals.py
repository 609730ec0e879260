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
from importlib import metadata
from typing import Any

from optplug.errors import PluginError, one_line
from optplug.registry.plugin_registry import ENTRY_POINT_GROUP, HOOK_NAMES

DISTRIBUTION = "optplug"

CORE_CLASSES = (
    "optplug.config.expressions:Expression",
    "optplug.lightning.callback:ConfigureOptimizers",
    "optplug.lightning.stepping_callback:SteppingCallback",
    "optplug.optim.combined:Combined",
    "optplug.schedulers.per_group:PerGroup",
    "optplug.schedulers.plateau_warmup:PlateauWarmup",
    "optplug.schedulers.warmup:Warmup",
)
"""Classes in pickles of optimizers, schedulers and callbacks that no plugin registers."""


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


def safe_targets() -> list[str]:
    """Return the targets of the safe classes: `CORE_CLASSES`, and what optplug's own plugins register.

    A plugin that fails is left out. Classes of other packages, which have a precedence, are not safe.
    """
    try:
        points = metadata.distribution(DISTRIBUTION).entry_points.select(group=ENTRY_POINT_GROUP)
    except Exception:  # a source folder on the path, where no plugin is registered; or damaged metadata
        return list(CORE_CLASSES)
    # The adapters, which are modules of one package, are not imported: they have no safe class, and that takes time.
    return [*CORE_CLASSES, *(target for point in points if "." not in point.value for target in _own_targets(point))]


def _own_targets(point: metadata.EntryPoint) -> list[str]:
    try:
        plugin = point.load()
        hooks = [HOOK_NAMES[kind] for kind in ("optimizer", "scheduler")]
        specs = [spec for hook in hooks for spec in getattr(plugin, hook, list)()]
        return [spec.target for spec in specs if spec.precedence == 0]
    except Exception as error:  # `import torch` must not fail
        _warn(f"classes of plugin {point.name}", error)
        return []


def _warn(what: str, error: Exception) -> None:
    logging.getLogger("optplug").warning("torch.load(weights_only=True) refuses %s: %s", what, one_line(error))


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
    add_safe_globals([SafeGlobal(target) for target in safe_targets()])
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
            _warn("optplug's classes", error)
            is_over = True
        if is_over:  # the list is replaced, since Python is iterating over it
            sys.meta_path = [finder for finder in sys.meta_path if finder is not cls]
