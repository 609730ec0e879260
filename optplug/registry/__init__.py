"""Names and plugins: hook specifications, specs, discovery, look-up, and what a registered class takes as arguments.

Standard library and pluggy only. No torch, no algorithm, no configuration.
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
