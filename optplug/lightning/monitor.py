"""Which metric a plateau scheduler monitors, and whether lower (`"min"`) or higher (`"max"`) values are better.

Inferred metrics and modes are reported. There is no default mode: a mode that cannot be inferred is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from optplug.errors import ConfigError, WiringError, listing, short_list
from optplug.lightning._compat import logged_metric_objects
from optplug.lightning.fit_setup import MonitoredMetric
from optplug.lightning.reporter import Reporter

_LOWER_IS_BETTER = re.compile(
    r"(^|[_/.-])(loss|nll|bce|cross_?entropy|err|error|error_rate|mse|rmse|mae|mape|smape|perplexity|ppl|wer|cer|eer|fid|"
    r"kl|divergence|regret)(\d*$|[_/.-])",
    re.IGNORECASE,
)
_HIGHER_IS_BETTER = re.compile(
    r"(^|[_/.-])(acc|accuracy|top\d|auc|auroc|aucpr|auprc|ap|map|precision|recall|sensitivity|specificity|f1|f1score|fbeta|"
    r"dice|iou|miou|jaccard|r2|bleu|rouge|psnr|ssim|reward|return|kappa|mcc|ndcg|mrr)(\d*$|[_/.-])",
    re.IGNORECASE,
)

_VALIDATION = re.compile(r"(^|[_/.-])(val|valid|validation)([_/.-]|$)", re.IGNORECASE)
_NOT_A_METRIC = re.compile(r"lr-|(epoch|step|global_step)$")
"""Learning rates of LearningRateMonitor, and the counters that ModelCheckpoint accepts as a monitor."""


def is_validation_metric(name: str | None) -> bool:
    """Whether validation logs a metric, judging by its name. A metric without a name yet is a validation loss."""
    return name is None or _VALIDATION.search(name) is not None


def infer_monitored_metric(
    trainer: Any, monitor: str | None, mode: str | None, reporter: Reporter, *, has_metric_objects: bool = False
) -> MonitoredMetric:
    """Resolve metric and mode: from the configuration, else from EarlyStopping, else from ModelCheckpoint, else later.

    Args:
        trainer: the Lightning trainer, or None.
        monitor: the configured metric, or None.
        mode: the configured mode, or None.
        reporter: warns if a callback's mode contradicts the name of the metric.
        has_metric_objects: whether the module has torchmetrics objects, from which the mode may be inferred later.

    Returns:
        The metric. `monitor` is None if it is to be the only validation loss of the first validation
        (`only_validation_loss`). `mode` is None if it is to come from a metric object.

    Raises:
        WiringError: callbacks of one kind monitor different metrics, or callbacks disagree about the mode.
        ConfigError: the mode cannot be inferred from the name.
    """
    callbacks = list(_monitoring_callbacks(trainer))
    source = "the configuration"
    if monitor is None:
        for kind in ("EarlyStopping", "ModelCheckpoint"):
            metrics = sorted({m for k, m, _ in callbacks if k == kind})
            if len(metrics) > 1:
                raise WiringError(
                    f"{kind} callbacks monitor different metrics: set scheduler.monitor to one of {listing(metrics)}"
                )
            if metrics:
                monitor, source = metrics[0], kind
                break
    if monitor is None:
        only = "the only validation loss that the first validation logs"
        configured = mode is not None
        return MonitoredMetric(
            None, mode or "min", only, mode_is_configured=configured, mode_is_inferred_from_name=not configured
        )
    if mode is not None:
        return MonitoredMetric(monitor, mode, source, mode_is_configured=True)
    # EarlyStopping takes precedence over ModelCheckpoint.
    modes = [(k, m) for k, name, m in callbacks if name == monitor and m in ("min", "max")]
    if len({m for _, m in modes}) > 1:
        shown = listing(f"{kind}: {m}" for kind, m in modes)
        raise WiringError(f"callbacks monitor {monitor!r} with different modes ({shown}): set scheduler.mode")
    name_mode = mode_from_name(monitor, required=not has_metric_objects and not modes)
    if modes:
        kind, callback_mode = modes[0]
        monitored = MonitoredMetric(monitor, callback_mode, source)
        if name_mode not in (None, callback_mode):
            conflict = f"{kind} has mode {callback_mode}, but the name means {name_mode}"
            reporter.warn(trainer, mode_conflict_message(monitored, conflict))
        return monitored
    return MonitoredMetric(monitor, name_mode, source, mode_is_inferred_from_name=True)


def mode_conflict_message(monitored: MonitoredMetric, conflict: str) -> str:
    """The warning about a callback's mode that contradicts the metric; the callback's mode may be only its default."""
    return f"{monitored.monitor}: {conflict}; {monitored.mode} is used. Set scheduler.mode to choose"


def mode_from_name(monitor: str, *, required: bool = True) -> str | None:
    """Infer `"min"` or `"max"` from the words of a metric's name.

    Args:
        monitor: name of the metric.
        required: whether to raise if the mode cannot be inferred. Default: True.

    Returns:
        The mode; None if it cannot be inferred and `required` is False.

    Raises:
        ConfigError: the name has words for neither mode, or for both.
    """
    lower, higher = _LOWER_IS_BETTER.search(monitor), _HIGHER_IS_BETTER.search(monitor)
    if bool(lower) != bool(higher):
        return "min" if lower else "max"
    if not required:
        return None
    raise ConfigError(
        f"cannot infer from the name {monitor!r} whether lower or higher values are better: set scheduler.mode"
    )


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
            f"the validation logged {len(losses)} losses: set scheduler.monitor to one of {short_list(losses)}"
        )
    if available:
        raise WiringError(f"the validation logged no loss: set scheduler.monitor to one of {short_list(available)}")
    raise WiringError("the validation logged no metric: log one in validation_step, and set scheduler.monitor")


def monitorable_metrics(logged: Iterable[str]) -> list[str]:
    """The names of the logged metrics, without learning rates, counters, and the `_step` and `_epoch` forms."""
    names = {name for name in logged if not _NOT_A_METRIC.match(name)}
    parts = [_split_loader_suffix(name) for name in names]
    forms = {name + form + loader for name, loader in parts for form in ("_step", "_epoch")}
    return sorted(names - forms)


def validation_losses(logged: Iterable[str]) -> list[str]:
    """The names of the logged validation losses."""
    return [name for name in monitorable_metrics(logged) if is_validation_metric(name) and "loss" in name.lower()]


def near_matches(monitor: str, logged: Iterable[str]) -> list[str]:
    """The logged metrics whose names differ only in separators, case, `_epoch`, or an omitted data loader suffix."""
    wanted, wanted_loader = _split_loader_suffix(monitor)
    parts = [(name, *_split_loader_suffix(name)) for name in monitorable_metrics(logged)]
    return [
        name
        for name, base, loader in parts
        if _normalize(base) == _normalize(wanted) and (loader == wanted_loader or not loader or not wanted_loader)
    ]


def _split_loader_suffix(name: str) -> tuple[str, str]:
    """A metric's name, and the suffix that Lightning adds if there are several data loaders."""
    match = re.search(r"/dataloader_idx_\d+$", name)
    return (name[: match.start()], match[0]) if match else (name, "")


def _normalize(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"_epoch$", "", name).lower())


def _monitoring_callbacks(trainer: Any) -> Iterable[tuple[str, str, str | None]]:
    """Kind, metric and mode of each callback that monitors a metric."""
    for kind, attribute in (("EarlyStopping", "early_stopping_callbacks"), ("ModelCheckpoint", "checkpoint_callbacks")):
        for callback in getattr(trainer, attribute, ()):
            monitor = getattr(callback, "monitor", None)
            if monitor and not _NOT_A_METRIC.match(monitor):
                yield kind, monitor, getattr(callback, "mode", None)
