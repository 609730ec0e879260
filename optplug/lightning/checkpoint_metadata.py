"""What a checkpoint and a logger keep of the choice: the configuration and the parameter groups, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optplug.config.param_groups import group_table
from optplug.lightning.stepping_plan import optimizer_choices

METADATA_KEY = "optplug"
"""The key in a checkpoint."""


def record(trainer: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the choice: numbers, text, lists and mappings."""
    classes = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    return {"config": configuration(trainer), "classes": classes, "groups": tables(trainer)}


def saved_metadata(checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint keeps; nothing where there is none, or not of optplug's."""
    found = (checkpoint or {}).get(METADATA_KEY)
    return found if isinstance(found, dict) else {}


def configuration(trainer: Any) -> dict[str, Any]:
    """The configuration that was trained with, in its one form; empty where optplug chose nothing."""
    for optimizer in trainer.optimizers:
        if optimizer in optimizer_choices:
            return optimizer_choices[optimizer].config.to_dict()
    return {}


def tables(trainer: Any) -> list[list[dict[str, Any]]]:
    """The table of groups of each optimizer that optplug built or schedules."""
    return [
        [row.to_dict() for row in group_table(optimizer, optimizer_choices[optimizer].known)]
        for optimizer in trainer.optimizers
        if optimizer in optimizer_choices
    ]


def log(trainer: Any) -> None:
    """Tell the loggers: by group, parameters, elements, learning rate and weight decay; and the configuration."""
    found: dict[str, Any] = {}
    for rows in tables(trainer):
        for row in rows:
            key = row["group"] if row["group"] not in found else f"{row['group']} {len(found)}"
            found[key] = {**row, "parameters": len(row["parameters"])}
    if found:
        for logger in trainer.loggers:
            logger.log_hyperparams({METADATA_KEY: {**configuration(trainer), "groups": found}})
