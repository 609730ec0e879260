"""The Lightning integration: callback, `configure_optimizers`, scheduler stepping, plateaus, resuming, LightningCLI.

Only this package uses a trainer. `ConfigureOptimizers` works with `lightning.pytorch` and `pytorch_lightning`.
`OptplugCLI` is for `lightning.pytorch`, or for `pytorch_lightning` if only that is installed. Both are imported on
first use, because `optplug.configure_optimizers` imports this package in environments without Lightning. Only
`OptplugCLI` imports Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optplug.lightning.callback import ConfigureOptimizers

    OptplugCLI: type

__all__ = ["ConfigureOptimizers", "OptplugCLI"]


def load_public_name(name: str, import_name: str, module: str) -> Any:
    """Import a public name of `optplug.lightning` or `optplug.pytorch_lightning`.

    Args:
        name: `"ConfigureOptimizers"` or `"OptplugCLI"`.
        import_name: the import name of Lightning that the module is for.
        module: the name of the module.

    Raises:
        AttributeError: the module has no such name.
        MissingLightningError: Lightning is not installed under either name, or is too old.
    """
    if name in __all__:
        from optplug.lightning._compat import supported_import_names

        supported_import_names(f"{module}.{name}")  # before the imports below, for a message with the name
    if name == "ConfigureOptimizers":
        from optplug.lightning.callback import ConfigureOptimizers

        return ConfigureOptimizers
    if name == "OptplugCLI":
        from optplug.lightning.cli import make_cli_class

        return make_cli_class(import_name, module)
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def __getattr__(name: str) -> Any:
    value = load_public_name(name, "lightning.pytorch", __name__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
