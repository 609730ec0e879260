"""The `optplug` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command. Without the extra `cli`, exit with a message that names the missing package."""
    try:
        from optplug.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"the optplug command needs {error.name}: pip install 'optplug[cli]'")
    app()
