"""Log the configuration and the cuts, in names that every logger accepts. A failing logger causes a warning."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from optplug.errors import one_line
from optplug.lightning._compat import logging_step, logs_hyperparameters
from optplug.lightning.checkpoint_metadata import METADATA_KEY, config_dict, group_tables
from optplug.lightning.fit_state import FitState
from optplug.lightning.logger_names import loggable_name, unused_name
from optplug.lightning.reporter import Reporter


def log_configuration(trainer: Any, state: FitState, reporter: Reporter) -> None:
    """Log the configuration and, by group, the numbers of parameters and elements, lr and weight decay.

    Nothing is logged if the trainer or the module asks for no hyperparameters in the logs, or if the module logs a
    hyperparameter of the same name itself.
    """
    if not trainer.loggers:
        return
    groups: dict[str, Any] = {}
    for rows in group_tables(trainer, state):
        for row in rows:
            name = row["group"] if row["group"] not in groups else f"{row['group']} {len(groups)}"
            groups[name] = {**row, "parameters": len(row["parameters"])}
    if not groups:
        return
    params = _with_loggable_names({METADATA_KEY: {**config_dict(trainer, state), "groups": groups}})

    def log(logger: Any) -> None:
        if logs_hyperparameters(trainer, METADATA_KEY):  # reads attributes of the user, which may raise an exception
            logger.log_hyperparams(params, **_options(logger))

    _send(trainer, state, reporter, log)


def log_cuts(trainer: Any, state: FitState, reporter: Reporter, name: str, cuts: int) -> None:
    """Log the number of learning-rate cuts of a plateau scheduler so far.

    Args:
        trainer: the Lightning trainer.
        state: the state of the fit.
        reporter: for the warning about a logger that fails.
        name: the name of the scheduler.
        cuts: the number of cuts.
    """
    metrics, step = {f"{loggable_name(name)}/cuts": cuts}, logging_step(trainer)
    _send(trainer, state, reporter, lambda logger: logger.log_metrics(metrics, step=step))


def _send(trainer: Any, state: FitState, reporter: Reporter, send: Callable[[Any], None]) -> None:
    """Call a function with each logger. For a logger that raises an exception, warn once per fit."""
    for logger in trainer.loggers:
        try:
            send(logger)
        except Exception as error:
            if id(logger) not in state.failed_loggers:
                state.failed_loggers.add(id(logger))
                reporter.warn(
                    trainer,
                    f"{type(logger).__name__} did not accept what optplug logs; training continues: {one_line(error)}",
                )


def _options(logger: Any) -> dict[str, Any]:
    """Further arguments of `logger.log_hyperparams`.

    Without metrics, TensorBoardLogger writes a metric `hp_metric`; with some, it replaces the hyperparameters that the
    module has logged. With none, it writes `hparams.yaml` only.
    """
    return {"metrics": {}} if "metrics" in inspect.signature(logger.log_hyperparams).parameters else {}


def _with_loggable_names(value: Any) -> Any:
    """Plain data in which every key of a mapping is accepted by every logger. Equal keys get a number."""
    if not isinstance(value, Mapping):
        return value
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result[unused_name(loggable_name(str(key)), result)] = _with_loggable_names(inner)
    return result
