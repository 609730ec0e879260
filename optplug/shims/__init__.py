"""Registered names for an unmodified LightningCLI: after `import optplug.shims`, `--optimizer adam` is found.

Every name of every installed plugin becomes a class in `optplug.shims.optimizers` or `optplug.shims.schedulers`, which
LightningCLI finds by its name, and by its full path without this import. A name that several plugins offer is spelt
`plugin__name`, with `_` for what no name of Python may have: `my_plugin__adam`. Plugins are looked for once, and the
class behind a name is loaded when the name is chosen: an `Adam` that is loaded would make LightningCLI's own `Adam`,
torch's, ambiguous.
"""

from optplug.shims import optimizers, schedulers

__all__ = ["optimizers", "schedulers"]
