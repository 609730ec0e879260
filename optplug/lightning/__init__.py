"""The Lightning integration: callback, `configure_optimizers`, stepping of schedulers, plateaus, resume, LightningCLI.

Everything that knows a trainer is here, and nothing else: no algorithm, no parsing of configurations. The names below
serve `lightning.pytorch`, or `pytorch_lightning` where only that is installed; they load on first use, since the other
import name (`optplug.pytorch_lightning`) and `optplug.configure_optimizers` need this package without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optplug.lightning.callback import ConfigureOptimizers

    OptplugCLI: type

__all__ = ["ConfigureOptimizers", "OptplugCLI"]


def __getattr__(name: str) -> Any:
    value: type
    if name == "ConfigureOptimizers":
        from optplug.lightning import callback

        value = callback.ConfigureOptimizers
    elif name == "OptplugCLI":
        from optplug.lightning.cli import cli_class

        value = cli_class("lightning.pytorch", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
