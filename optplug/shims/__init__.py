"""Registered names for an unmodified LightningCLI: after `import optplug.shims`, `--optimizer adam` works.

This package does not import Lightning and adds no configuration keys.

`optplug.shims.optimizers` and `optplug.shims.schedulers` contain one class, a shim, for each registered name.
LightningCLI finds a shim by its name after this import, and by its full path without this import, for example
`optplug.shims.optimizers.adam`.

- If several plugins register a name, the shim with this name is that of the class that the name alone means, and the
  others are named `plugin__name`, for example `torch__adam`. If the name alone is ambiguous, all are named so.
  Characters that are not allowed in Python names become `_`.
- The shims are created once, when this package is imported.
- The registered class is loaded only when its name is chosen. Otherwise a loaded class `Adam` would make `--optimizer
  Adam`, which is torch's, ambiguous.
"""

from optplug.shims import optimizers, schedulers

__all__ = ["optimizers", "schedulers"]
