"""optplug for `pytorch_lightning` (or for `lightning.pytorch`, where that is the one installed)."""

from optplug.lightning.callback import ConfigureOptimizers
from optplug.lightning.cli import cli_class

OptplugCLI = cli_class("pytorch_lightning", __name__)

__all__ = ["ConfigureOptimizers", "OptplugCLI"]
