"""Which metric a plateau scheduler monitors, and whether lower (`"min"`) or higher (`"max"`) values are better.

Inferred metrics and modes are reported. There is no default mode: a mode that cannot be inferred is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optplug.config.metric_names import (
    corrected,
    has_same_words,
    is_metric,
    is_near_match,
    mode_of_name,
    shown_list,
    split_loader_suffix,
    validation_losses,
)
from optplug.errors import ConfigError, WiringError, did_you_mean, listing, nearest
from optplug.lightning._compat import logged_metric_objects
from optplug.lightning.fit_setup import CONFIGURATION, MonitoredMetric


def infer_monitored_metric(
    trainer: Any,
    monitor: str | None,
    mode: str | None,
    *,
    replaced: MonitoredMetric | None = None,
    mode_required: bool = True,
) -> MonitoredMetric:
    """Resolve metric and mode: from the configuration, else from EarlyStopping, else from ModelCheckpoint, else later.

    Args:
        trainer: the Lightning trainer, or None.
        monitor: the configured metric, or None.
        mode: the configured mode, or None.
        replaced: the metric of the module's own schedule, which the configuration replaces. It is used if no callback
            monitors a metric. Default: None.
        mode_required: whether to raise if the name does not determine the mode. Otherwise the mode is resolved when the
            metric is logged. Default: True.

    Returns:
        The metric. `monitor` is None if it is to be the only validation loss of the first validation
        (`only_validation_loss`). `mode` is None if it is not known yet.

    Raises:
        WiringError: callbacks of one kind monitor different metrics, or callbacks disagree about the mode.
        ConfigError: the mode cannot be inferred from the name, and `mode_required` is set.
    """
    callbacks = list(_monitoring_callbacks(trainer))
    source = CONFIGURATION
    if monitor is None:
        for kind in ("EarlyStopping", "ModelCheckpoint"):
            metrics = sorted({m for k, m, _ in callbacks if k == kind})
            if len(metrics) > 1:
                raise WiringError(
                    f"{kind} callbacks monitor different metrics: set scheduler.monitor to one of {shown_list(metrics)}"
                )
            if metrics:
                monitor, source = metrics[0], kind
                break
    mode_source = CONFIGURATION if mode is not None else ""
    if monitor is None and replaced is not None:
        monitor, source = replaced.monitor, replaced.source
        if mode is None:
            mode, mode_source = replaced.mode, replaced.mode_source
    if monitor is None:
        only = "the only validation loss that the first validation logs"
        return MonitoredMetric(None, mode or "min", only, mode_source)
    if mode is not None:
        return MonitoredMetric(monitor, mode, source, mode_source)
    # EarlyStopping takes precedence over ModelCheckpoint.
    modes = [(k, m) for k, name, m in callbacks if name == monitor and m in ("min", "max")]
    if len({m for _, m in modes}) > 1:
        listed = listing(f"{kind}: {m}" for kind, m in modes)
        raise WiringError(f"callbacks monitor {monitor!r} with different modes ({listed}): set scheduler.mode")
    for kind, callback_mode in modes:
        return MonitoredMetric(monitor, callback_mode, source, kind)
    return MonitoredMetric(monitor, mode_from_name(monitor) if mode_required else mode_of_name(monitor), source)


def mode_from_name(monitor: str) -> str:
    """Infer `"min"` or `"max"` from the words of a metric's name.

    Raises:
        ConfigError: the name has words for neither mode, or for both.
    """
    mode = mode_of_name(monitor)
    if mode is None:
        raise ConfigError(f"{unknown_mode(monitor)}: set scheduler.mode")
    return mode


def unknown_mode(monitor: str) -> str:
    """The beginning of the message about a mode that cannot be inferred."""
    return f"cannot infer from the name {monitor!r} whether lower or higher values are better"


def mode_before_logging_message(trainer: Any, monitor: str) -> str:
    """The message for a mode that cannot be inferred from a name that has not been logged, and may be misspelt."""
    others = [name for _, name, _ in _monitoring_callbacks(trainer) if name != monitor]
    similar = nearest(monitor, others)[:1] or [name for name in [corrected(monitor)] if name is not None]
    if similar:
        return f"{unknown_mode(monitor)}; did you mean {similar[0]!r}? If not, set scheduler.mode"
    return f"{unknown_mode(monitor)}: check the spelling, or set scheduler.mode"


def mode_conflict_message(metric: MonitoredMetric, object_mode: str | None) -> str | None:
    """The warning about a mode that contradicts the metric; None if it does not.

    Args:
        metric: the metric, whose mode comes from `metric.mode_source`.
        object_mode: the mode of the logged metric object, if there is one. It has precedence over the name.
    """
    implied = object_mode or (mode_of_name(metric.monitor) if metric.monitor is not None else None)
    if not metric.mode_source or implied in (None, metric.mode):
        return None
    reason = "the metric's higher_is_better means" if object_mode else "the name means"
    conflict = f"{metric.mode_source} has mode {metric.mode}, but {reason} {implied}; {metric.mode} is used"
    is_callback = metric.mode_source in ("EarlyStopping", "ModelCheckpoint")
    advice = "Set scheduler.mode to choose" if is_callback else f"Set mode to {implied} if this is wrong"
    return f"{metric.monitor}: {conflict}. {advice}"


def has_metric_objects(module: Any) -> bool:
    """Whether a module has torchmetrics objects from which a mode may be read when they are logged."""
    return any(isinstance(getattr(one, "higher_is_better", None), bool) for one in module.modules())


def mode_from_metric_object(trainer: Any, name: str) -> str | None:
    """Read the mode from `higher_is_better` of the torchmetrics object that is logged under this name.

    Returns:
        `"min"` or `"max"`; None if there is no such object, or it does not define `higher_is_better`.
    """
    for names, value in logged_metric_objects(trainer):
        higher_is_better = getattr(value, "higher_is_better", None)
        if isinstance(higher_is_better, bool) and name in names:
            return "max" if higher_is_better else "min"
    return None


def only_validation_loss(logged: Iterable[str]) -> str:
    """The only validation loss among the metrics that a validation logged.

    Raises:
        WiringError: there is no validation loss, or more than one; the message lists the metrics to choose from.
    """
    available = monitorable_metrics(logged)
    losses = validation_losses(available)
    if len(losses) == 1:
        return losses[0]
    if losses:
        raise WiringError(
            f"the validation logged {len(losses)} losses: set scheduler.monitor to one of {shown_list(losses)}"
        )
    if available:
        raise WiringError(f"the validation logged no loss: set scheduler.monitor to one of {shown_list(available)}")
    raise WiringError("the validation logged no metric: log one in validation_step, and set scheduler.monitor")


def monitorable_metrics(logged: Iterable[str]) -> list[str]:
    """The names of the logged metrics, without learning rates, counters, and the `_step` and `_epoch` forms."""
    names = {name for name in logged if is_metric(name)}
    parts = [split_loader_suffix(name) for name in names]
    forms = {name + form + loader for name, loader in parts for form in ("_step", "_epoch")}
    return sorted(names - forms)


def near_matches(monitor: str, logged: Iterable[str]) -> list[str]:
    """The logged metrics whose names differ only in separators, case, `_epoch`, or an omitted data loader suffix."""
    return [name for name in monitorable_metrics(logged) if is_near_match(name, monitor)]


def suggestion(monitor: str, available: Iterable[str]) -> str:
    """`"; did you mean 'val_loss'?"`, or an empty string if no available metric has a similar name."""
    available = list(available)
    same = [name for name in available if has_same_words(name, monitor)]
    return did_you_mean(monitor, available) if not same else f"; did you mean {', '.join(map(repr, same))}?"


def _monitoring_callbacks(trainer: Any) -> Iterable[tuple[str, str, str | None]]:
    """Kind, metric and mode of each callback that monitors a metric."""
    for kind, attribute in (("EarlyStopping", "early_stopping_callbacks"), ("ModelCheckpoint", "checkpoint_callbacks")):
        for callback in getattr(trainer, attribute, ()):
            monitor = getattr(callback, "monitor", None)
            if monitor and is_metric(monitor):
                yield kind, monitor, getattr(callback, "mode", None)
