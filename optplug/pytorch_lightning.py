"""The Lightning integration for `pytorch_lightning`, or for `lightning.pytorch` if only that is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optplug.lightning import load_public_name

if TYPE_CHECKING:
    from optplug.lightning.callback import ConfigureOptimizers

    OptplugCLI: type

__all__ = ["ConfigureOptimizers", "OptplugCLI"]


def __getattr__(name: str) -> Any:
    value = load_public_name(name, "pytorch_lightning", __name__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
