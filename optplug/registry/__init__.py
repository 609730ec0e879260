"""Plugins and the names they register: hook specifications, specs, discovery, look-up, constructor arguments.

This package imports pluggy and, for descriptions of arguments, docstring_parser. It does not import torch.
"""

from optplug.registry.plugin_registry import (
    KINDS,
    Plugin,
    PluginLoad,
    QuarantinedPlugin,
    Registration,
    Registry,
    RejectedItem,
    get_optimizer,
    get_scheduler,
    list_optimizers,
    list_schedulers,
    registry,
)

__all__ = [
    "KINDS",
    "Plugin",
    "PluginLoad",
    "QuarantinedPlugin",
    "Registration",
    "Registry",
    "RejectedItem",
    "get_optimizer",
    "get_scheduler",
    "list_optimizers",
    "list_schedulers",
    "registry",
]
