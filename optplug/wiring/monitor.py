"""Which metric a plateau watches, and whether less of it is better. No guess without a word, no silent `min`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from optplug.errors import ConfigError, WiringError, listing
from optplug.wiring.plans import Monitored

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


def of_validation(name: str) -> bool:
    """Whether a metric's name says that validation logs it."""
    return _VALIDATION.search(name) is not None


def infer(trainer: Any, monitor: str | None, mode: str | None) -> Monitored:
    """Settle monitor and mode from what is explicit, else EarlyStopping, else ModelCheckpoint, else later.

    Args:
        trainer: the Lightning trainer, or None outside of one.
        monitor, mode: what the user said, or None.

    Returns:
        The decision; with `monitor=None` when only the first validation can tell (`only_validation_loss`).

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
        return Monitored(None, mode or "min", "the only validation loss that the first validation logs")
    if mode is None:
        # The callback that watches the same metric knows; EarlyStopping is asked first.
        said = [(k, m) for k, name, m in watchers if name == monitor and m in ("min", "max")]
        if len({m for _, m in said}) > 1:
            raise WiringError(
                f"{listing(f'{k} says {m}' for k, m in said)} for {monitor!r}: say which with scheduler.mode"
            )
        mode = said[0][1] if said else mode_by_name(monitor)
    return Monitored(monitor, mode, source)


def mode_by_name(monitor: str) -> str:
    """`"min"` or `"max"`, from a table of words.

    Raises:
        ConfigError: the name has words of neither kind, or of both.
    """
    less, more = _LESS_IS_BETTER.search(monitor), _MORE_IS_BETTER.search(monitor)
    if bool(less) == bool(more):
        raise ConfigError(f"cannot tell from the name whether more or less {monitor!r} is better: set scheduler.mode")
    return "min" if less else "max"


def only_validation_loss(logged: Iterable[str]) -> str:
    """The one validation loss among the metrics a validation logged.

    Raises:
        WiringError: there is none, or more than one; the message lists the candidates.
    """
    logged = {name for name in logged if not name.startswith("lr-")}
    logged -= {name + form for name in logged for form in ("_step", "_epoch")}  # Lightning's other names for one metric
    losses = [name for name in logged if of_validation(name) and "loss" in name.lower()]
    if len(losses) != 1:
        found = f"the validation losses {listing(sorted(losses))}" if losses else "no validation loss"
        raise WiringError(f"the validation logged {found}; set scheduler.monitor to one of {listing(sorted(logged))}")
    return losses[0]


def _watchers(trainer: Any) -> Iterable[tuple[str, str, str | None]]:
    """Kind, metric and mode of the callbacks that watch one."""
    for kind, attribute in (("EarlyStopping", "early_stopping_callbacks"), ("ModelCheckpoint", "checkpoint_callbacks")):
        for callback in getattr(trainer, attribute, ()):
            if getattr(callback, "monitor", None):
                yield kind, callback.monitor, getattr(callback, "mode", None)
