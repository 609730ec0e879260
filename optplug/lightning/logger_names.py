"""Names that every logger accepts."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Container
from typing import Any

_MAX_NAME_LENGTH = 100  # MLflow: 250 characters with all levels of the name
_ACCEPTED_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_. -]{{,{_MAX_NAME_LENGTH - 1}}}")


def loggable_name(name: str, default: str = "unnamed") -> str:
    """A name that every logger accepts: ASCII letters and digits, `_`, `-`, `.` and spaces.

    Args:
        name: any text. A name of these characters is returned unchanged.
        default: for a name without ASCII letters and digits. Default: "unnamed".
    """
    if _ACCEPTED_NAME.fullmatch(name):
        return name
    cleaned = re.sub(r"[^A-Za-z0-9_. -]+", "_", name)[:_MAX_NAME_LENGTH].strip("_. -")
    return cleaned or default


def unused_name(name: str, used: Container[str]) -> str:
    """The name, with a number if it is used already: `backbone 2`."""
    candidates = itertools.chain([name], (f"{name} {k}" for k in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in used)


def rename_unloggable_groups(optimizer: Any) -> None:
    """Rename the parameter groups that LearningRateMonitor cannot log by their names with every logger."""
    used = {group.get("name") for group in optimizer.param_groups}
    for i, group in enumerate(optimizer.param_groups):
        name = group.get("name")
        if isinstance(name, str) and not _can_be_monitored(name):
            group["name"] = unused_name(loggable_name(name, f"group {i}"), used)
            used.add(group["name"])


def _can_be_monitored(name: str) -> bool:
    """Whether the name is short, and a valid path without the characters that loggers remove, as MLflow's does."""
    path = f"lr/{re.sub(r'[^A-Za-z0-9_/. -]+', '', name)}"
    return posixpath.normpath(path) == path and len(path) <= _MAX_NAME_LENGTH
