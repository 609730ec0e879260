"""Which metric a plateau watches, and whether less of it is better. No guess without a word, no silent `min`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any

from optplug.errors import ConfigError, WiringError, listing
from optplug.lightning._compat import logged_results
from optplug.lightning.stepping_plan import MonitoredMetric

_LESS_IS_BETTER = re.compile(
    r"(^|[_/.-])(loss|nll|bce|cross_?entropy|err|error|error_rate|mse|rmse|mae|mape|smape|perplexity|ppl|wer|cer|eer|fid|"
    r"kl|divergence|regret)(\d*$|[_/.-])",
    re.IGNORECASE,
)
_MORE_IS_BETTER = re.compile(
    r"(^|[_/.-])(acc|accuracy|top\d|auc|auroc|aucpr|auprc|ap|map|precision|recall|sensitivity|specificity|f1|f1score|fbeta|"
    r"dice|iou|miou|jaccard|r2|bleu|rouge|psnr|ssim|reward|return|kappa|mcc|ndcg|mrr)(\d*$|[_/.-])",
    re.IGNORECASE,
)

_VALIDATION = re.compile(r"(^|[_/.-])(val|valid|validation)([_/.-]|$)", re.IGNORECASE)
_NO_METRIC = re.compile(r"lr-|(epoch|step|global_step)$")
"""LearningRateMonitor's learning rates; what ModelCheckpoint counts, and some watch to keep the last files."""


def of_validation(name: str | None) -> bool:
    """Whether a metric's name says that validation logs it; a name that is to come will be of validation."""
    return name is None or _VALIDATION.search(name) is not None


def infer(trainer: Any, monitor: str | None, mode: str | None, measured: bool = False) -> MonitoredMetric:
    """Settle monitor and mode from what is explicit, else EarlyStopping, else ModelCheckpoint, else later.

    Args:
        trainer: the Lightning trainer, or None outside of one.
        monitor, mode: what the user said, or None.
        measured: whether the module has metrics of torchmetrics, which may tell the mode later.

    Returns:
        The decision; with `monitor=None` when only the first validation can tell (`only_validation_loss`), with
        `mode=None` when only the metric that is logged can.

    Raises:
        WiringError: two callbacks of one kind watch different metrics. ConfigError: the mode cannot be told.
    """
    watchers = list(_watchers(trainer))
    source = "the configuration"
    if monitor is None:
        for kind in ("EarlyStopping", "ModelCheckpoint"):
            named = sorted({m for k, m, _ in watchers if k == kind})
            if len(named) > 1:
                raise WiringError(f"{kind} callbacks watch {listing(named)}: say which with scheduler.monitor")
            if named:
                monitor, source = named[0], kind
                break
    if monitor is None:
        only = "the only validation loss that the first validation logs"
        return MonitoredMetric(None, mode or "min", only, told=mode is not None, guessed=mode is None)
    if mode is not None:
        return MonitoredMetric(monitor, mode, source, told=True)
    # The callback that watches the same metric knows; EarlyStopping is asked first.
    said = [(k, m) for k, name, m in watchers if name == monitor and m in ("min", "max")]
    if len({m for _, m in said}) > 1:
        raise WiringError(f"{listing(f'{k} says {m}' for k, m in said)} for {monitor!r}: say which with scheduler.mode")
    by_name = mode_by_name(monitor, may_fail=measured or bool(said))
    if said:
        kind, said_mode = said[0]
        found = MonitoredMetric(monitor, said_mode, source)
        if by_name not in (None, said_mode) and (trainer is None or trainer.is_global_zero):
            says = contradiction(found, f"{kind} says {said_mode}, and the name {by_name}")
            warnings.warn(says, UserWarning, stacklevel=2)
        return found
    return MonitoredMetric(monitor, by_name, source, guessed=True)


def contradiction(monitored: MonitoredMetric, says: str) -> str:
    """What to warn of: a callback is believed, though `min` may be but its default."""
    return f"{monitored.monitor}: {says}; {monitored.mode} counts, unless scheduler.mode is set"


def mode_by_name(monitor: str, *, may_fail: bool = False) -> str | None:
    """`"min"` or `"max"`, from a table of words; None where that may be and the name does not tell.

    Raises:
        ConfigError: the name has words of neither kind, or of both.
    """
    less, more = _LESS_IS_BETTER.search(monitor), _MORE_IS_BETTER.search(monitor)
    if bool(less) != bool(more):
        return "min" if less else "max"
    if may_fail:
        return None
    raise ConfigError(f"cannot tell from the name whether more or less {monitor!r} is better: set scheduler.mode")


def mode_by_metric(trainer: Any, name: str) -> str | None:
    """`"min"` or `"max"`, where what is logged by this name is a metric of torchmetrics that says so."""
    for result in logged_results(trainer):
        meta = result.meta
        suffix = (
            ""
            if meta.dataloader_idx is None or not meta.add_dataloader_idx
            else f"/dataloader_idx_{meta.dataloader_idx}"
        )
        better = None if result.is_tensor else getattr(result.value, "higher_is_better", None)
        if isinstance(better, bool) and name in (meta.name + suffix, meta.forked_name(False) + suffix):
            return "max" if better else "min"
    return None


def only_validation_loss(logged: Iterable[str]) -> str:
    """The one validation loss among the metrics a validation logged.

    Raises:
        WiringError: there is none, or more than one; the message lists the candidates.
    """
    logged = candidates(logged)
    losses = validation_losses(logged)
    if len(losses) != 1:
        found = f"the validation losses {listing(losses)}" if losses else "no validation loss"
        raise WiringError(f"the validation logged {found}; set scheduler.monitor to one of {listing(logged)}")
    return losses[0]


def candidates(logged: Iterable[str]) -> list[str]:
    """The metrics among what is logged, each under one name."""
    names = {name for name in logged if not _NO_METRIC.match(name)}
    parts = [_of_loader(name) for name in names]
    forms = {name + form + loader for name, loader in parts for form in ("_step", "_epoch")}  # of one metric
    return sorted(names - forms)


def validation_losses(logged: Iterable[str]) -> list[str]:
    """The losses of validation among the metrics that are logged."""
    return [name for name in candidates(logged) if of_validation(name) and "loss" in name.lower()]


def nearly(monitor: str, logged: Iterable[str]) -> list[str]:
    """The metrics whose names differ in no more than separators, case, `_epoch`, or a data loader's number left out."""
    asked, loader = _of_loader(monitor)
    found = [(name, *_of_loader(name)) for name in candidates(logged)]
    return [name for name, it, its in found if _bare(it) == _bare(asked) and (its == loader or not its or not loader)]


def _of_loader(name: str) -> tuple[str, str]:
    """A metric's name, and what Lightning adds for one of several data loaders."""
    match = re.search(r"/dataloader_idx_\d+$", name)
    return (name[: match.start()], match[0]) if match else (name, "")


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"_epoch$", "", name).lower())


def _watchers(trainer: Any) -> Iterable[tuple[str, str, str | None]]:
    """Kind, metric and mode of the callbacks that watch one."""
    for kind, attribute in (("EarlyStopping", "early_stopping_callbacks"), ("ModelCheckpoint", "checkpoint_callbacks")):
        for callback in getattr(trainer, attribute, ()):
            monitor = getattr(callback, "monitor", None)
            if monitor and not _NO_METRIC.match(monitor):
                yield kind, monitor, getattr(callback, "mode", None)
