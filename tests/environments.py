"""Clean virtual environments with a wheel of optplug and links to the distributions that it requires.

An environment sees what pip would install for the wheel and its extras, and nothing else. The distributions are those
of the running environment; nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Collection
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


class Environment:
    """A new virtual environment in which a wheel is installed.

    Args:
        folder: where it is created.
        wheel: the file.
        extras: the extras of the wheel that are installed too.
        without: the names of distributions that are uninstalled again, with those that only they require.
        use_pip: whether pip installs the wheel, with its scripts. Otherwise it is unpacked, which is faster.

    Attributes:
        python: the interpreter.
        site_packages: the folder of the installed packages.
    """

    def __init__(
        self,
        folder: Path,
        wheel: Path,
        extras: Collection[str] = (),
        *,
        without: Collection[str] = (),
        use_pip: bool = False,
    ) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        (self.site_packages,) = folder.glob("lib/*/site-packages")
        if use_pip:
            pip = [sys.executable, "-m", "pip", "--python", str(self.python)]
            subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
        else:
            zipfile.ZipFile(wheel).extractall(self.site_packages)
        (installed,) = (Distribution.at(path) for path in self.site_packages.glob("*.dist-info"))
        for found in required_distributions(installed, extras, without):
            for name in top_level_names(found):
                link = self.site_packages / name
                if not link.exists():  # several distributions may share a folder, such as `nvidia`
                    link.symlink_to(Path(str(found.locate_file(name))))

    def run(self, *command: str | Path, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, such as `python -c ...`; only the environment is on its path."""
        program = self.python.parent / command[0]
        variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        here = cwd or self.site_packages.parent  # not the root of the repository, from which Python would import
        return subprocess.run(
            [program, *command[1:]], cwd=here, env=variables, capture_output=True, text=True, timeout=240, **options
        )


def build_wheel(folder: Path) -> Path:
    """Build a wheel of the working tree in a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    return wheel


def required_distributions(
    installed: Distribution, extras: Collection[str], without: Collection[str]
) -> list[Distribution]:
    """The distributions of the running environment that a distribution and its extras require, also indirectly."""
    found: dict[str, Distribution] = {}
    queue = _requirements(installed, ("", *extras))
    seen = {str(requirement) for requirement in queue}
    for requirement in queue:  # it grows
        name = canonicalize_name(requirement.name)
        if name in without:
            continue
        try:
            found.setdefault(name, distribution(name))
        except PackageNotFoundError:  # another build of torch needs it
            continue
        for further in _requirements(found[name], ("", *requirement.extras)):
            if str(further) not in seen:
                seen.add(str(further))
                queue.append(further)
    return list(found.values())


def _requirements(of: Distribution, extras: Collection[str]) -> list[Requirement]:
    declared = [Requirement(text) for text in of.requires or ()]
    return [
        one for one in declared if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def top_level_names(found: Distribution) -> set[str]:
    """The files and folders of a distribution in `site-packages`."""
    record = found.read_text("RECORD") or ""
    first_parts = {re.split("[,/]", line, maxsplit=1)[0] for line in record.splitlines()}
    return first_parts - {"", "..", "__pycache__"}
