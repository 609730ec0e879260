"""The Lightning integration for `pytorch_lightning`, or for `lightning.pytorch` if only that is installed."""

from optplug.lightning.callback import ConfigureOptimizers
from optplug.lightning.cli import make_cli_class

OptplugCLI = make_cli_class("pytorch_lightning", __name__)

__all__ = ["ConfigureOptimizers", "OptplugCLI"]
