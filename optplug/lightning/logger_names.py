"""Names that every logger accepts."""

from __future__ import annotations

import re
from typing import Any

_MAX_NAME_LENGTH = 100  # MLflow: 250 characters with all levels of the name
_ACCEPTED_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_. -]{{,{_MAX_NAME_LENGTH - 1}}}")


def loggable_name(name: str) -> str:
    """A name that every logger accepts: ASCII letters and digits, `_`, `-`, `.` and spaces."""
    if _ACCEPTED_NAME.fullmatch(name):
        return name
    cleaned = re.sub(r"[^A-Za-z0-9_. -]+", "_", name)[:_MAX_NAME_LENGTH].strip("_. -")
    return cleaned or "unnamed"


def rename_unloggable_groups(optimizer: Any) -> None:
    """Give parameter groups whose name has no letter and no digit, such as `*`, the name `group N`.

    Loggers that replace the characters they refuse, as MLflow's does, would leave nothing of such a name in the metrics
    of LearningRateMonitor.
    """
    for i, group in enumerate(optimizer.param_groups):
        name = group.get("name")
        if isinstance(name, str) and not any(character.isalnum() for character in name):
            group["name"] = f"group {i}"
