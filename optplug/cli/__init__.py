"""The `optplug` command: its subcommands, configuration files and terminal output.

Checks and measurements are in `optplug.config` and `optplug.bench`; LightningCLI is in `optplug.lightning.cli`.
"""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command. Without the extra `cli`, exit with a message that names the missing package."""
    try:
        from optplug.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"the optplug command needs {error.name}: pip install 'optplug[cli]'")
    try:
        app()
    finally:
        gc.freeze()  # otherwise Python examines all objects of torch once more when it exits, for 0.4 s
