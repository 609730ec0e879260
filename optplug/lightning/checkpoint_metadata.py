"""The configuration and the parameter groups as plain data, for checkpoints and loggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optplug.config.param_groups import group_table
from optplug.lightning.fit_state import FitState

METADATA_KEY = "optplug"
"""The key of the metadata in a checkpoint and in a logger's hyperparameters."""


def collect_metadata(trainer: Any, state: FitState) -> dict[str, Any]:
    """Collect configuration, optimizer classes and parameter groups; only numbers, strings, lists and dicts."""
    classes = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    return {"config": config_dict(trainer, state), "classes": classes, "groups": group_tables(trainer, state)}


def saved_metadata(checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata in a checkpoint; empty without a checkpoint or without metadata in it."""
    found = (checkpoint or {}).get(METADATA_KEY)
    return found if isinstance(found, dict) else {}


def config_dict(trainer: Any, state: FitState) -> dict[str, Any]:
    """The configuration of the trainer's optimizers as plain data; empty if optplug configured none of them."""
    for _, configured in state.configured(trainer):
        return configured.config.to_dict()
    return {}


def group_tables(trainer: Any, state: FitState) -> list[list[dict[str, Any]]]:
    """The table of parameter groups of each optimizer that optplug built or schedules, as rows of plain data."""
    return [
        [row.to_dict() for row in group_table(optimizer, configured.parameter_infos)]
        for optimizer, configured in state.configured(trainer)
    ]
