"""`PlateauObserver`: how plateau schedulers get their metric values, and what is reported about them.

Each value is found by name, is new since the last observation, is used once, and is the same on all ranks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.errors import WiringError, did_you_mean, listing, short_list
from optplug.lightning import monitor
from optplug.lightning._compat import logging_step
from optplug.lightning.managed_scheduler import ManagedScheduler
from optplug.lightning.stepping_plan import MonitoredMetric
from optplug.lightning.trainer_info import reason_without_validation
from optplug.schedulers.lr import lrs_of


class PlateauObserver:
    """Observes the logged metrics of a fit and steps the plateau schedulers.

    Args:
        step: steps a managed scheduler with a metric value. With None as the value, it only excludes the time since the
            last observation from patience.
        verbose: whether to print each learning-rate cut on rank zero.

    Metrics are observed at four moments: `"sanity"`, after the sanity check, when no scheduler is stepped;
    `"validation"`, after a validation; `"epoch"`, in the callback's `on_train_epoch_end`; `"late"`, after the module's
    own `on_train_epoch_end`.
    """

    def __init__(self, step: Callable[[Any, ManagedScheduler, float | None], None], *, verbose: bool) -> None:
        self.step = step
        self.verbose = verbose
        self.epoch = 0
        self._before_epoch: dict[str, Any] = {}
        self._before_validation: dict[str, Any] = {}

    def begin_epoch(self, trainer: Any) -> None:
        """Store the current metric values. A value is new if it is a different object at the next observation."""
        self.epoch = trainer.current_epoch
        self._before_epoch = dict(trainer.callback_metrics)

    def begin_validation(self, trainer: Any) -> None:
        """Store the current metric values, as `begin_epoch` does."""
        self._before_validation = dict(trainer.callback_metrics)

    def observe(self, trainer: Any, managed_schedulers: Iterable[ManagedScheduler], moment: str) -> bool:
        """Step each plateau scheduler whose metric has a new value.

        Every rank must call this method at the same moments: it runs collectives.

        Args:
            trainer: the Lightning trainer.
            managed_schedulers: the plateau schedulers.
            moment: one of the four moments; see the class.

        Returns:
            Whether any scheduler was stepped.

        Raises:
            WiringError: the metric is not logged, several logged metrics match its name, or its value is not finite and
                `on_nonfinite` is `"raise"`.
            ConfigError: the mode of the metric cannot be inferred.
        """
        if trainer.fast_dev_run:
            return False
        stepped = False
        before = self._before_validation if moment in ("sanity", "validation") else self._before_epoch
        new_values = {name: value for name, value in trainer.callback_metrics.items() if value is not before.get(name)}
        for managed in managed_schedulers:
            monitored = managed.plan.monitored
            assert monitored is not None
            if moment in ("epoch", "late") and managed.last_step_epoch == self.epoch:
                # At the end of an epoch, Lightning computes training metrics again: the value has been used already.
                continue
            if not monitored.has_been_logged:
                self._resolve_metric(trainer, managed, monitored, new_values, moment)
            if moment == "sanity":
                continue
            mean = _mean_over_ranks(trainer, new_values.get(str(monitored.monitor)))
            if mean is not None:
                self._step_with_value(trainer, managed, mean)
                managed.history.moment = moment
                managed.last_step_epoch, stepped = self.epoch, True
        return stepped

    def expects_late_value(self, managed_schedulers: Iterable[ManagedScheduler]) -> bool:
        """Whether the metric of any scheduler is logged in the module's `on_train_epoch_end`, which has not run yet."""
        return any(
            managed.history.observed and managed.history.moment == "late" and managed.last_step_epoch != self.epoch
            for managed in managed_schedulers
        )

    # ------------------------------------------------------------------ metric and mode

    def _resolve_metric(
        self,
        trainer: Any,
        managed: ManagedScheduler,
        monitored: MonitoredMetric,
        new_names: Iterable[str],
        moment: str,
    ) -> None:
        """Find the metric among those logged on any rank, by its exact name or a near match; then resolve its mode."""
        logged = sorted({name for names in _gather(trainer, list(new_names)) for name in names})
        in_validation = moment in ("sanity", "validation")
        if monitored.monitor in logged:
            monitored.has_been_logged = True
        elif monitored.monitor is None:
            losses = monitor.validation_losses(logged) if in_validation else []
            if losses or moment == "validation":
                monitored.monitor, monitored.has_been_logged = monitor.only_validation_loss(logged), True
                self.report(
                    trainer, f"{managed.name} monitors {monitored.monitor} ({monitored.mode}), the only validation loss"
                )
        elif monitor.is_validation_metric(monitored.monitor) if in_validation else moment == "late":
            matches = monitor.near_matches(monitored.monitor, logged)
            subject = f"{managed.name} monitors {monitored.monitor!r} (from {monitored.source}), which is not logged"
            if len(matches) > 1:
                raise WiringError(f"{subject}; set scheduler.monitor to one of {listing(matches)}")
            if matches:
                self.report(trainer, f"{subject}; using {matches[0]!r} instead")
                monitored.monitor, monitored.has_been_logged = matches[0], True
        if monitored.has_been_logged:
            self._resolve_mode(trainer, managed, monitored)
        else:
            self._report_absence(trainer, managed, monitored, moment)

    def _resolve_mode(self, trainer: Any, managed: ManagedScheduler, monitored: MonitoredMetric) -> None:
        """Resolve the mode, and discard the best value if it is of another metric or mode.

        The mode of a logged torchmetrics object takes precedence over the mode inferred from the name.
        """
        name, history = str(monitored.monitor), managed.history
        modes = _gather(trainer, monitor.mode_from_metric_object(trainer, name))
        object_mode = next((mode for mode in modes if mode is not None), None)
        if monitored.mode_is_inferred_from_name:
            before = monitored.mode
            monitored.mode = object_mode or before or monitor.mode_from_name(name)
            if before != monitored.mode:
                source = "its higher_is_better" if object_mode else "its name"
                self.report(trainer, f"{managed.name}: the mode of {name} is {monitored.mode}, from {source}")
        elif not monitored.mode_is_configured and object_mode not in (None, monitored.mode):
            conflict = f"a callback has mode {monitored.mode}, and the metric's higher_is_better means {object_mode}"
            self.warn(trainer, monitor.mode_conflict_message(monitored, conflict))
        scheduler = managed.inner_scheduler
        has_changed = history.monitor is not None and (history.monitor, history.mode) != (name, monitored.mode)
        if has_changed:
            self.report(trainer, f"{managed.name}: its best value, of {history.monitor} ({history.mode}), is discarded")
        if isinstance(scheduler, ReduceLROnPlateau) and (has_changed or scheduler.mode != monitored.mode):
            scheduler._init_is_better(monitored.mode, scheduler.threshold, scheduler.threshold_mode)
            scheduler.best, scheduler.num_bad_epochs = scheduler.mode_worse, 0
        history.monitor, history.mode, history.source = name, monitored.mode, monitored.source

    def _report_absence(self, trainer: Any, managed: ManagedScheduler, monitored: MonitoredMetric, moment: str) -> None:
        """Report a metric that a whole validation or epoch did not log: the scheduler might never be stepped.

        Raises:
            WiringError: except after the sanity check, which may not be a full validation.
        """
        if moment == ("validation" if trainer.enable_validation else "epoch"):
            managed.search_ended = True
        if moment == "late":
            is_due = managed.search_ended
        else:
            is_due = moment != "epoch" and monitor.is_validation_metric(monitored.monitor)
        if managed.absence_reported or managed.history.observed or not managed.entry.strict or not is_due:
            return
        known = {name for names in _gather(trainer, list(trainer.callback_metrics)) for name in names}
        available = monitor.monitorable_metrics(known)
        # The metric is logged elsewhere, or the module logs nothing at all in the sanity check: both are intended.
        if monitored.monitor in known or (moment == "sanity" and not available):
            return
        where = " in the sanity check" if moment == "sanity" else ""
        if monitored.monitor is None:
            problem = f"{managed.name} needs a validation loss to monitor, and none is logged{where}"
        else:
            subject = f"{managed.name} monitors {monitored.monitor!r} (from {monitored.source})"
            problem = f"{subject}, which is not logged{where}"
        hint = "" if monitored.monitor is None else did_you_mean(monitored.monitor, available)
        message = problem + (hint or f"; logged metrics: {short_list(available)}; set scheduler.monitor")
        if moment != "sanity":
            raise WiringError(message)
        self.report(trainer, message)

    def warn_before_training(self, trainer: Any, managed: ManagedScheduler, lost_values: Mapping[str, str]) -> None:
        """Warn before the first batch about metric values that a plateau scheduler will not get.

        Args:
            trainer: the Lightning trainer.
            managed: the plateau scheduler.
            lost_values: why the resume loses a value, by the moment (`"validation"`, `"epoch"`, `"late"`) at which it
                would be observed.
        """
        name, monitored = managed.name, managed.plan.monitored
        assert monitored is not None
        if trainer.fast_dev_run:
            self.report(trainer, f"fast_dev_run: {name} is not stepped")
            return
        from_validation = monitor.is_validation_metric(monitored.monitor)
        expected_moment = "validation" if from_validation else "epoch"
        reason = lost_values.get(managed.history.moment if managed.history.observed else expected_moment)
        if reason is not None:
            self.warn(trainer, f"{name} misses a value of {monitored.monitor or 'its metric'}: {reason}")
        reason = reason_without_validation(trainer)
        if reason is not None and from_validation:
            when = "no longer" if managed.history.observed else "never"
            metric = monitored.monitor or "a validation loss"
            self.warn(trainer, f"{name} is {when} stepped, unless training itself logs {metric}: {reason}")
            managed.absence_reported = True

    # ------------------------------------------------------------------ steps

    def _step_with_value(self, trainer: Any, managed: ManagedScheduler, value: float) -> None:
        history, optimizer = managed.history, managed.scheduler.optimizer
        name, is_finite = history.monitor, math.isfinite(value)
        if not is_finite and managed.plan.on_nonfinite == "raise":
            raise WiringError(f"epoch {self.epoch}: {name} is {value}, and {managed.name} has on_nonfinite: raise")
        history.observed += 1
        if not is_finite and managed.plan.on_nonfinite == "ignore":
            history.ignored += 1
            self.report(trainer, f"epoch {self.epoch}: {name} is {value}, which {managed.name} ignores")
            self.step(trainer, managed, None)
            return
        before = lrs_of(optimizer)
        # NaN never counts as an improvement; infinity can.
        self.step(trainer, managed, value if is_finite else math.nan)
        after = lrs_of(optimizer)
        if before != after:
            self._report_cut(trainer, managed, value, before, after)

    def _report_cut(
        self, trainer: Any, managed: ManagedScheduler, value: float, before: list[float], after: list[float]
    ) -> None:
        """Record a learning-rate cut, print it, and log the number of cuts."""
        history = managed.history
        history.cuts.append(self.epoch)
        changes = listing(dict.fromkeys(f"{b:.4g} -> {a:.4g}" for b, a in zip(before, after, strict=True) if a != b))
        best = getattr(managed.scheduler, "best", None)
        than = f", not better than {best:.4g}" if isinstance(best, float) and math.isfinite(best) else ""
        of = "" if managed.optimizer_index is None else f" of optimizer {managed.optimizer_index}"
        self.report(trainer, f"epoch {self.epoch}: {history.monitor} is {value:.4g}{than}: learning rate{of} {changes}")
        for logger in trainer.loggers:
            logger.log_metrics({f"{managed.name}/cuts": len(history.cuts)}, step=logging_step(trainer))

    # ------------------------------------------------------------------ messages

    def report(self, trainer: Any, text: str) -> None:
        """Print a line on rank zero if `verbose`, without disturbing the progress bar."""
        if self.verbose:
            trainer.lightning_module.print(f"optplug: {text}")

    def warn(self, trainer: Any, text: str) -> None:
        """Emit a `UserWarning` on rank zero."""
        if trainer.is_global_zero:
            warnings.warn(text, UserWarning, stacklevel=2)


def _gather(trainer: Any, value: Any) -> list[Any]:
    """The values of all ranks. Every rank must call this function."""
    if trainer.world_size == 1:
        return [value]
    return [trainer.strategy.broadcast(value, rank) for rank in range(trainer.world_size)]


def _mean_over_ranks(trainer: Any, value: Any) -> float | None:
    """The mean over the ranks that have a value; None on all ranks if no rank has one."""
    total, count = (0.0, 0.0) if value is None else (float(value), 1.0)
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # A new tensor, because reduce works in place.
        pair = torch.tensor([total, count], dtype=dtype, device=device)
        total, count = trainer.strategy.reduce(pair, reduce_op="sum").tolist()
    return total / count if count else None
