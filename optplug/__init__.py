"""Choose optimizers and learning-rate schedules for PyTorch and Lightning by name, from any installed plugin.

Importing this package, and listing names, imports neither torch nor Lightning: the names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from optplug.hookspecs import hookimpl
from optplug.registry import get_optimizer, get_scheduler, list_optimizers, list_schedulers
from optplug.specs import API_VERSION, FunctionSpec, OptimizerSpec, SchedulerSpec

if TYPE_CHECKING:
    from optplug import errors, lightning, ops, pytorch_lightning, ranges, testing
    from optplug.build import create_optimizer, create_scheduler
    from optplug.groups import group_table
    from optplug.rules.driver import RuleOptimizer
    from optplug.rules.execution import Engine
    from optplug.rules.parameters import Params
    from optplug.rules.state import State
    from optplug.schedules import ClosedFormLR
    from optplug.wiring.configure import configure_optimizers

_LATER = {
    "ClosedFormLR": "optplug.schedules",
    "Engine": "optplug.rules.execution",
    "Params": "optplug.rules.parameters",
    "RuleOptimizer": "optplug.rules.driver",
    "State": "optplug.rules.state",
    "configure_optimizers": "optplug.wiring.configure",
    "create_optimizer": "optplug.build",
    "create_scheduler": "optplug.build",
    "group_table": "optplug.groups",
}
_MODULES = ("errors", "lightning", "ops", "pytorch_lightning", "ranges", "testing")

__all__ = [
    "API_VERSION",
    "ClosedFormLR",
    "Engine",
    "FunctionSpec",
    "OptimizerSpec",
    "Params",
    "RuleOptimizer",
    "SchedulerSpec",
    "State",
    "configure_optimizers",
    "create_optimizer",
    "create_scheduler",
    "errors",
    "get_optimizer",
    "get_scheduler",
    "group_table",
    "hookimpl",
    "lightning",
    "list_optimizers",
    "list_schedulers",
    "ops",
    "pytorch_lightning",
    "ranges",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        value = getattr(importlib.import_module(_LATER[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"optplug.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("optplug")
    else:
        raise AttributeError(f"module 'optplug' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
