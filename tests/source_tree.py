"""The files of the repository, their copy, and their commit. It needs no package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def source_files(root: Path) -> list[str]:
    """The files that Git tracks; without Git, all that are in no environment and in no folder of .gitignore.

    Without Git means in an unpacked source distribution or in a copy.
    """
    found = _tracked_files(root) if (root / ".git").exists() else _files_that_are_not_ignored(root)
    return sorted(name for name in found if (root / name).is_symlink() or (root / name).is_file())


def _tracked_files(root: Path) -> list[str]:
    return _git(root, "ls-files", "-z").split("\0")[:-1]


def _files_that_are_not_ignored(root: Path) -> list[str]:
    """Each line of .gitignore names a folder; after a slash, a folder of the root."""
    ignored = [line.rstrip("/") for line in (root / ".gitignore").read_text().splitlines()]
    found = []
    for folder, folders, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        folders[:] = [
            name
            for name in folders
            if not (Path(folder) / name / "pyvenv.cfg").exists()
            and not any(Path("/", inside, name).match(pattern) for pattern in ignored)
        ]
        found += [(inside / name).as_posix() for name in names]
    return [name for name in found if name != "PKG-INFO"]


def copy_source(root: Path, target: Path) -> None:
    """Copy the files to a folder, which has nothing else then."""
    if target.exists():
        shutil.rmtree(target)
    for name in source_files(root):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name, follow_symlinks=False)


def commit(root: Path) -> str:
    """The short hash of the commit, with "+" if a tracked file differs from it; empty without Git."""
    if not (root / ".git").exists():
        return ""
    return _git(root, "describe", "--always", "--exclude=*", "--dirty=+").strip()


def _git(root: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=root, check=True, capture_output=True, text=True).stdout
