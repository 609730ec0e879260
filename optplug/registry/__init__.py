"""Plugins and the names they register: hook specifications, specs, discovery, look-up, constructor arguments.

This package uses the standard library and pluggy only. It does not import torch.
"""

from optplug.registry.plugin_registry import (
    KINDS,
    Plugin,
    Quarantined,
    Registration,
    Registry,
    get_optimizer,
    get_scheduler,
    list_optimizers,
    list_schedulers,
    registry,
)

__all__ = [
    "KINDS",
    "Plugin",
    "Quarantined",
    "Registration",
    "Registry",
    "get_optimizer",
    "get_scheduler",
    "list_optimizers",
    "list_schedulers",
    "registry",
]
