"""Builds and installs plugin distributions with pip, without a network, and runs programs that use them."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from support import environment_with

OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")


def pip_install(source: Path, target: Path) -> Path:
    """Build a distribution and install it into a new folder, which is returned."""
    run(sys.executable, "-m", "pip", "install", *OFFLINE, "--target", str(target), str(source))
    return target


def run_with_target(target: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with a folder of `pip_install` on its path."""
    return run(sys.executable, *arguments, env=environment_with(target), **options)


class EditableInstall:
    """A new virtual environment that has the packages of the running one, and a distribution as an editable install.

    Args:
        folder: where the environment is created.
        source: the folder of the distribution.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        (site_packages,) = folder.glob("lib/*/site-packages")
        inherited = [path for path in sys.path if path and Path(path).is_dir()]
        (site_packages / "inherited.pth").write_text("\n".join(inherited) + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(self.python)]
        run(*pip, "install", *OFFLINE, "--editable", str(source))

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python in the environment."""
        return run(str(self.python), *arguments, **options)


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command. With `check`, a failure ends the test, with the output of the command."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, **options)
    assert ran.returncode == 0 or not check, ran.stdout[-4000:] + ran.stderr[-4000:]
    return ran
