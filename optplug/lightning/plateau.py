"""`PlateauObserver`: how plateau schedulers get their metric values, and what is reported about them.

Each value is found by name, is new since the last observation, is used once, and is the same on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from optplug.config.metric_names import (
    is_named_val,
    is_validation_metric,
    named_validation_losses,
    names_sanity_check,
    shown,
    shown_list,
    validation_losses,
)
from optplug.errors import ConfigError, NonFiniteMetricError, WiringError, listing
from optplug.lightning import monitor
from optplug.lightning._compat import as_misconfiguration
from optplug.lightning.fit_setup import MonitoredMetric
from optplug.lightning.fit_state import FitState
from optplug.lightning.loggers import log_cuts
from optplug.lightning.managed_scheduler import ManagedScheduler
from optplug.lightning.reporter import Reporter
from optplug.lightning.trainer_info import reason_without_validation
from optplug.schedulers.lr import lrs_of


@dataclass(frozen=True)
class PlateauObserver:
    """Observes the logged metrics of a fit and steps the plateau schedulers.

    Attributes:
        reporter: prints each learning-rate cut, and which metric is monitored.

    Metrics are observed at four moments: `"sanity"`, after the sanity check, when no scheduler is stepped;
    `"validation"`, after a validation; `"epoch"`, in the callback's `on_train_epoch_end`; `"late"`, after the module's
    own `on_train_epoch_end`.
    """

    reporter: Reporter

    def observe(self, trainer: Any, state: FitState, moment: str) -> bool:
        """Step each plateau scheduler whose metric has a new value.

        Every rank must call this method at the same moments: it runs collectives.

        Args:
            trainer: the Lightning trainer.
            state: the state of the fit.
            moment: one of the four moments; see the class.

        Returns:
            Whether any scheduler was stepped.

        Raises:
            WiringError: the metric is not logged, or several logged metrics match its name (then it is Lightning's
                `MisconfigurationException` too).
            NonFiniteMetricError: its value is not finite, and `on_nonfinite` is `"raise"`.
            ConfigError: the mode of the metric cannot be inferred.
        """
        if trainer.fast_dev_run:
            return False
        stepped, snapshots = False, state.snapshots
        before = snapshots.before_validation if moment in ("sanity", "validation") else snapshots.before_epoch
        new_values = {name: value for name, value in trainer.callback_metrics.items() if value is not before.get(name)}
        for managed in state.current_plateaus(trainer):
            if moment in ("epoch", "late") and managed.history.last_step_epoch == snapshots.epoch:
                # At the end of an epoch, Lightning computes training metrics again: the value has been used already.
                continue
            if not managed.metric_is_logged:
                try:
                    self._find_metric(trainer, managed, new_values, moment)
                except WiringError as error:
                    raise as_misconfiguration(trainer, error) from None
            if moment == "sanity":
                continue
            assert managed.metric is not None
            mean = _mean_over_ranks(trainer, new_values.get(str(managed.metric.monitor)))
            if mean is not None:
                self._step(trainer, state, managed, mean)
                managed.history.moment = moment
                managed.history.last_step_epoch, stepped = snapshots.epoch, True
        return stepped

    def expects_late_value(self, trainer: Any, state: FitState) -> bool:
        """Whether the metric of any scheduler is logged in the module's `on_train_epoch_end`, which has not run yet."""
        return any(
            managed.history.observed
            and managed.history.moment == "late"
            and managed.history.last_step_epoch != state.snapshots.epoch
            for managed in state.current_plateaus(trainer)
        )

    # ------------------------------------------------------------------ metric and mode

    def _find_metric(self, trainer: Any, managed: ManagedScheduler, new_names: Iterable[str], moment: str) -> None:
        """Find the metric among those logged on any rank, by its exact name or a near match; then resolve its mode.

        What the sanity check logs is provisional: later validations may not log it.
        """
        logged = _names_on_ranks(trainer, new_names, moment)
        if moment == "sanity":
            managed.metric_before_sanity = managed.metric
        elif moment == "validation":
            before, managed.metric_before_sanity = managed.metric_before_sanity, None
            if before is not None and managed.metric is not None and managed.metric.monitor not in logged:
                managed.metric = before
        found = self._search(trainer, managed, logged, moment)
        metric = managed.metric
        assert metric is not None
        if found is None:
            self._report_absence(trainer, managed, metric, moment)
        else:
            managed.metric = self._with_mode(trainer, managed, replace(metric, monitor=found), found)
            managed.metric_is_logged = moment != "sanity"
            self._restart_if_changed(trainer, managed, found, managed.metric)

    def _search(self, trainer: Any, managed: ManagedScheduler, logged: list[str], moment: str) -> str | None:
        """The logged name of the metric; None if it is not logged.

        Raises:
            WiringError: several logged metrics match the name, or a validation did not log exactly one loss.
        """
        metric = managed.metric
        assert metric is not None
        in_validation = moment in ("sanity", "validation")
        if metric.monitor is None:
            losses = validation_losses(monitor.monitorable_metrics(logged)) if in_validation else []
            if not losses and moment != "validation":
                return None
            found = monitor.only_validation_loss(logged)
            others = [name for name in named_validation_losses(monitor.monitorable_metrics(logged)) if name != found]
            reason = "the only validation loss"
            if others:
                reason = f"of several validation losses; the others: {shown_list(others)}"
                managed.metric = replace(metric, source="the names of the losses that the first validation logs")
            self.reporter.report(trainer, f"{managed.name} monitors {shown(found)} ({metric.mode}), {reason}")
            return found
        if metric.monitor in logged:
            return metric.monitor
        if not (is_validation_metric(metric.monitor) if in_validation else moment == "late"):
            return None
        matches = monitor.near_matches(metric.monitor, logged)
        subject = f"{managed.name} monitors {metric.monitor!r} (from {metric.source}), which is not logged"
        if len(matches) > 1:
            raise WiringError(f"{subject}; set scheduler.monitor to one of {shown_list(matches)}")
        if not matches:
            return None
        self.reporter.report(trainer, f"{subject}; using {matches[0]!r} instead")
        return matches[0]

    def _with_mode(
        self, trainer: Any, managed: ManagedScheduler, metric: MonitoredMetric, name: str
    ) -> MonitoredMetric:
        """The metric with its mode. A logged torchmetrics object has precedence over the name."""
        modes = _gather(trainer, monitor.mode_from_metric_object(trainer, name))
        object_mode = next((mode for mode in modes if mode is not None), None)
        if metric.mode_source:
            self._warn_of_contradicted_mode(trainer, managed, metric, object_mode)
            return metric
        mode = object_mode or metric.mode or monitor.mode_from_name(name)
        if mode != metric.mode:
            source = "its higher_is_better" if object_mode else "its name"
            self.reporter.report(trainer, f"{managed.name}: the mode of {shown(name)} is {mode}, from {source}")
        return replace(metric, mode=mode)

    def _warn_of_contradicted_mode(
        self, trainer: Any, managed: ManagedScheduler, metric: MonitoredMetric, object_mode: str | None
    ) -> None:
        """Warn once if the metric object, or else the name of the metric, implies another mode than the one set."""
        message = monitor.mode_conflict_message(metric, object_mode)
        if message is not None and not managed.mode_conflict_reported:
            managed.mode_conflict_reported = True
            self.reporter.warn(trainer, message)

    def _restart_if_changed(self, trainer: Any, managed: ManagedScheduler, name: str, metric: MonitoredMetric) -> None:
        """Discard the best value if it is of another metric or mode than the one that is observed from now on."""
        history, adapter = managed.history, managed.adapter
        has_changed = history.monitor is not None and (history.monitor, history.mode) != (name, metric.mode)
        if has_changed and history.observed:
            text = f"{managed.name}: its best value, of {shown(str(history.monitor))} ({history.mode}), is discarded"
            self.reporter.report(trainer, text)
        if has_changed or adapter.mode != metric.mode:
            adapter.restart_with_mode(str(metric.mode))
        history.monitor, history.mode, history.source = name, metric.mode, metric.source

    def _report_absence(self, trainer: Any, managed: ManagedScheduler, metric: MonitoredMetric, moment: str) -> None:
        """Report a metric that a whole validation or epoch did not log: the scheduler might never be stepped.

        Raises:
            WiringError: except with `strict: False`, and after the sanity check, which may not be a full validation.
        """
        from_validation = is_validation_metric(metric.monitor)
        if moment == ("validation" if from_validation or trainer.enable_validation else "epoch"):
            managed.search_ended = True
        # A metric named `eval` may be logged after the validation, at the end of the epoch.
        due = {"sanity": from_validation, "validation": is_named_val(metric.monitor), "late": managed.search_ended}
        if managed.absence_reported or managed.history.observed or not due.get(moment, False):
            return
        known = _names_on_ranks(trainer, trainer.callback_metrics, moment)
        available = monitor.monitorable_metrics(known)
        # The metric is logged elsewhere, or the module logs nothing at all in the sanity check: both are intended.
        if metric.monitor in known or (moment == "sanity" and not available):
            return
        message = self._absence_message(
            managed, metric, available, " in the sanity check" if moment == "sanity" else ""
        )
        # Without a mode, the run ends with an error in any case.
        if (moment != "sanity" and managed.entry.strict) or self._mode_stays_unknown(trainer, metric):
            raise WiringError(message)
        managed.absence_reported = moment != "sanity"
        self.reporter.report(trainer, message)

    def _absence_message(
        self, managed: ManagedScheduler, metric: MonitoredMetric, available: list[str], where: str
    ) -> str:
        if metric.monitor is None:
            problem, hint = f"{managed.name} needs a validation loss to monitor, and none is logged{where}", ""
        else:
            subject = f"{managed.name} monitors {metric.monitor!r} (from {metric.source})"
            problem, hint = f"{subject}, which is not logged{where}", monitor.suggestion(metric.monitor, available)
        return problem + (hint or f"; logged metrics: {shown_list(available)}; set scheduler.monitor")

    def _mode_stays_unknown(self, trainer: Any, metric: MonitoredMetric) -> bool:
        """Whether neither the metric's name nor a metric object of the module can give the mode."""
        return (
            metric.monitor is not None
            and metric.mode is None
            and not monitor.has_metric_objects(trainer.lightning_module)
        )

    def check_before_training(self, trainer: Any, managed: ManagedScheduler, lost_values: Mapping[str, str]) -> None:
        """Check the mode before the first batch, and warn about metric values that a plateau scheduler will not get.

        Args:
            trainer: the Lightning trainer.
            managed: the plateau scheduler.
            lost_values: why the resume loses a value, by the moment (`"validation"`, `"epoch"`, `"late"`) at which it
                would be observed.

        Raises:
            ConfigError: the mode of the metric cannot be inferred.
        """
        name, metric = managed.name, managed.metric
        assert metric is not None
        if self._mode_stays_unknown(trainer, metric):
            raise ConfigError(monitor.mode_before_logging_message(trainer, str(metric.monitor)))
        if not monitor.has_metric_objects(trainer.lightning_module):  # otherwise, when the metric is logged
            self._warn_of_contradicted_mode(trainer, managed, metric, None)
        if trainer.fast_dev_run:
            self.reporter.report(trainer, f"fast_dev_run: {name} is not stepped")
            return
        from_validation = is_validation_metric(metric.monitor)
        expected_moment = "validation" if from_validation else "epoch"
        reason = lost_values.get(managed.history.moment if managed.history.observed else expected_moment)
        if reason is not None:
            self.reporter.warn(trainer, f"{name} misses a value of {metric.monitor or 'its metric'}: {reason}")
        reason = reason_without_validation(trainer)
        if reason is not None and from_validation:
            when = "no longer" if managed.history.observed else "never"
            logged = "a validation loss" if metric.monitor is None else shown(metric.monitor)
            self.reporter.warn(trainer, f"{name} is {when} stepped, unless training itself logs {logged}: {reason}")
            managed.absence_reported = True
        elif metric.monitor is None and managed.metric_before_sanity is None:
            text = "no sanity check runs: if the first validation logs several losses, training may stop with an error"
            self.reporter.report(trainer, f"{name}: {text}; set scheduler.monitor to avoid this")

    # ------------------------------------------------------------------ steps

    def _step(self, trainer: Any, state: FitState, managed: ManagedScheduler, value: float) -> None:
        """Step a plateau scheduler with a value, according to `on_nonfinite` and `patience_unit`."""
        epoch = state.snapshots.epoch
        history, optimizer = managed.history, managed.scheduler.optimizer
        is_finite = math.isfinite(value)
        if not is_finite and managed.plan.on_nonfinite == "raise":
            name = shown(str(history.monitor))
            raise NonFiniteMetricError(f"epoch {epoch}: {name} is {value}, and {managed.name} has on_nonfinite: raise")
        history.observed += 1
        managed.set_position(epoch + 1)
        if not is_finite and managed.plan.on_nonfinite == "ignore":
            history.ignored += 1
            text = f"epoch {epoch}: {shown(str(history.monitor))} is {value}, which {managed.name} ignores"
            self.reporter.report(trainer, text)
            return
        before = lrs_of(optimizer)
        # NaN never counts as an improvement; infinity can.
        managed.step(trainer.lightning_module, value if is_finite else math.nan)
        after = lrs_of(optimizer)
        if before != after:
            history.cuts.append(epoch)
            self._report_cut(trainer, state, managed, value, before, after)

    def _report_cut(
        self,
        trainer: Any,
        state: FitState,
        managed: ManagedScheduler,
        value: float,
        before: list[float],
        after: list[float],
    ) -> None:
        """Print a learning-rate cut, and log the number of cuts."""
        history, best = managed.history, managed.adapter.best
        changes = listing(dict.fromkeys(f"{b:.4g} -> {a:.4g}" for b, a in zip(before, after, strict=True) if a != b))
        than = f", not better than {best:.4g}" if best is not None and math.isfinite(best) else ""
        of = "" if managed.optimizer_index is None else f" of optimizer {managed.optimizer_index}"
        subject = f"epoch {history.cuts[-1]}: {shown(str(history.monitor))} is {value:.4g}"
        self.reporter.report(trainer, f"{subject}{than}: learning rate{of} {changes}")
        log_cuts(trainer, state, self.reporter, managed.name, len(history.cuts))


def _names_on_ranks(trainer: Any, names: Iterable[str], moment: str) -> list[str]:
    """The names of the metrics on all ranks; in the sanity check without those that only the sanity check logs."""
    found = sorted({name for gathered in _gather(trainer, list(names)) for name in gathered})
    return [name for name in found if not (moment == "sanity" and names_sanity_check(name))]


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
