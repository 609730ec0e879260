"""optplug for `lightning.pytorch` (or for `pytorch_lightning`, where that is the one installed)."""

from optplug.wiring.callback import ConfigureOptimizers
from optplug.wiring.cli import cli_class

OptplugCLI = cli_class("lightning.pytorch", __name__)

__all__ = ["ConfigureOptimizers", "OptplugCLI"]
