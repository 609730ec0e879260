"""Optimizers and learning-rate schedules for PyTorch and Lightning, chosen by name from installed plugins.

Importing this package and listing names imports neither torch nor Lightning. The names below are imported on first use.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from optplug.registry import get_optimizer, get_scheduler, list_optimizers, list_schedulers
from optplug.registry.hookspecs import hookimpl
from optplug.registry.safe_globals import declare_safe_classes
from optplug.registry.specs import API_VERSION, FunctionSpec, OptimizerSpec, SchedulerSpec

if TYPE_CHECKING:
    from optplug import errors, lightning, ops, pytorch_lightning, testing
    from optplug.config.build import create_optimizer, create_scheduler
    from optplug.config.param_groups import group_table
    from optplug.config.plain_data import to_builtins
    from optplug.config.training_loop import create_optimizer_and_scheduler
    from optplug.engines import Engine
    from optplug.lightning.configure import configure_optimizers
    from optplug.optim import ranges
    from optplug.optim.options import RuleOptions
    from optplug.optim.parameters import Params
    from optplug.optim.rule_optimizer import RuleOptimizer
    from optplug.optim.state import State
    from optplug.schedulers.closed_form import ClosedFormLR

_LAZY_NAMES = {
    "ClosedFormLR": "optplug.schedulers.closed_form",
    "Engine": "optplug.engines",
    "Params": "optplug.optim.parameters",
    "RuleOptimizer": "optplug.optim.rule_optimizer",
    "RuleOptions": "optplug.optim.options",
    "State": "optplug.optim.state",
    "configure_optimizers": "optplug.lightning.configure",
    "create_optimizer": "optplug.config.build",
    "create_optimizer_and_scheduler": "optplug.config.training_loop",
    "create_scheduler": "optplug.config.build",
    "group_table": "optplug.config.param_groups",
    "to_builtins": "optplug.config.plain_data",
}
_LAZY_MODULES = ("errors", "lightning", "ops", "pytorch_lightning", "testing")
_MODULE_ALIASES = {"ranges": "optplug.optim.ranges", "schema": "optplug.config.json_schema"}
"""Public names of modules that are located in packages."""

__all__ = [
    "API_VERSION",
    "ClosedFormLR",
    "Engine",
    "FunctionSpec",
    "OptimizerSpec",
    "Params",
    "RuleOptimizer",
    "RuleOptions",
    "SchedulerSpec",
    "State",
    "configure_optimizers",
    "create_optimizer",
    "create_optimizer_and_scheduler",
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
    "to_builtins",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_NAMES:
        value = getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    elif name in _LAZY_MODULES or name in _MODULE_ALIASES:
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


class _AliasFinder:
    """Import hook for `_MODULE_ALIASES`, so that `from optplug.ranges import at_least` works."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        loader: Any = _AliasFinder
        return ModuleSpec(name, loader) if package == __name__ and module in _MODULE_ALIASES else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Return None: Python then creates a module, which `exec_module` replaces."""

    @staticmethod
    def exec_module(module: Any) -> None:
        sys.modules[module.__name__] = importlib.import_module(_MODULE_ALIASES[module.__name__.rpartition(".")[2]])


if _AliasFinder.__name__ not in {getattr(finder, "__name__", "") for finder in sys.meta_path}:  # after a reload
    sys.meta_path.append(_AliasFinder)

declare_safe_classes()
