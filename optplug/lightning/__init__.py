"""The Lightning integration: callback, `configure_optimizers`, scheduler stepping, plateaus, resuming, LightningCLI.

Only this package uses a trainer. `ConfigureOptimizers` works with `lightning.pytorch` and `pytorch_lightning`.
`OptplugCLI` is for `lightning.pytorch`, or for `pytorch_lightning` if only that is installed. Both are imported on
first use, because `optplug.configure_optimizers` imports this package in environments without Lightning.
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
        from optplug.lightning.cli import make_cli_class

        value = make_cli_class("lightning.pytorch", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
