"""How plateaus hear their metric: found by name, fresh, once, the same on all ranks; and what is told of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.errors import WiringError, did_you_mean, listing
from optplug.lightning import monitor
from optplug.lightning._compat import logging_step
from optplug.lightning.managed_scheduler import ManagedScheduler
from optplug.lightning.stepping_plan import MonitoredMetric
from optplug.lightning.trainer_info import no_validation
from optplug.schedulers.lr import rates_of


class PlateauObserver:
    """Listens for the plateaus of a fit.

    Args:
        step: steps the scheduler of a claim with a value; with None, patience is not to count the time since the last.
        verbose: say each learning-rate cut, on rank zero.

    There are four moments to listen: `"sanity"`, when nothing is stepped; `"validation"`; `"epoch"`, when the epoch is
    over; `"late"`, when the module's own `on_train_epoch_end` has run too.
    """

    def __init__(self, step: Callable[[Any, ManagedScheduler, float | None], None], *, verbose: bool) -> None:
        self.step = step
        self.verbose = verbose
        self.epoch = 0
        self._before_epoch: dict[str, Any] = {}
        self._before_validation: dict[str, Any] = {}

    def begin_epoch(self, trainer: Any) -> None:
        """Remember the metrics as they are: a value is fresh when it is another object afterwards."""
        self.epoch = trainer.current_epoch
        self._before_epoch = dict(trainer.callback_metrics)

    def begin_validation(self, trainer: Any) -> None:
        self._before_validation = dict(trainer.callback_metrics)

    def observe(self, trainer: Any, managed_schedulers: Iterable[ManagedScheduler], moment: str) -> bool:
        """Step each plateau whose metric has a fresh value. Every rank comes here and runs the same collectives.

        Returns:
            Whether any stepped.

        Raises:
            WiringError: nothing logs the metric, or one of several may be meant; its value is not finite, and that is
            to be an error. ConfigError: nothing tells whether more of it is better.
        """
        if trainer.fast_dev_run:
            return False
        stepped = False
        before = self._before_validation if moment in ("sanity", "validation") else self._before_epoch
        fresh = {name: value for name, value in trainer.callback_metrics.items() if value is not before.get(name)}
        for managed in managed_schedulers:
            monitored = managed.plan.monitored
            assert monitored is not None
            if moment in ("epoch", "late") and managed.stepped_in == self.epoch:
                continue  # its value is no news: Lightning computes training metrics again when the epoch is over
            if not monitored.found:
                self._find(trainer, managed, monitored, fresh, moment)
            if moment == "sanity":
                continue
            mean = _mean_over_ranks(trainer, fresh.get(str(monitored.monitor)))
            if mean is not None:
                self._step_with(trainer, managed, mean)
                managed.history.heard = moment
                managed.stepped_in, stepped = self.epoch, True
        return stepped

    def wait(self, managed_schedulers: Iterable[ManagedScheduler]) -> bool:
        """Whether any of them hears what the module's `on_train_epoch_end` logs, and that has not run."""
        return any(
            managed.history.seen and managed.history.heard == "late" and managed.stepped_in != self.epoch
            for managed in managed_schedulers
        )

    # ------------------------------------------------------------------- finding

    def _find(
        self, trainer: Any, managed: ManagedScheduler, monitored: MonitoredMetric, fresh: Iterable[str], moment: str
    ) -> None:
        """Find the metric among what any rank has just logged, by its name or nearly so; learn its mode."""
        logged = sorted({name for names in _of_all_ranks(trainer, list(fresh)) for name in names})
        in_validation = moment in ("sanity", "validation")
        if monitored.monitor in logged:
            monitored.found = True
        elif monitored.monitor is None:
            losses = monitor.validation_losses(logged) if in_validation else []
            if losses or moment == "validation":
                monitored.monitor, monitored.found = monitor.only_validation_loss(logged), True
                self.report(
                    trainer, f"{managed.name} follows {monitored.monitor} ({monitored.mode}), the only validation loss"
                )
        elif monitor.of_validation(monitored.monitor) if in_validation else moment == "late":
            nearly = monitor.nearly(monitored.monitor, logged)
            asked = f"{managed.name} monitors {monitored.monitor!r} (from {monitored.source})"
            if len(nearly) > 1:
                raise WiringError(f"{asked}, and logged are {listing(nearly)}: say which with scheduler.monitor")
            if nearly:
                self.report(trainer, f"{asked}, which nothing logs; it will follow {nearly[0]!r}")
                monitored.monitor, monitored.found = nearly[0], True
        if monitored.found:
            self._settle(trainer, managed, monitored)
        else:
            self._tell_silence(trainer, managed, monitored, moment)

    def _settle(self, trainer: Any, managed: ManagedScheduler, monitored: MonitoredMetric) -> None:
        """Learn the mode: a metric of torchmetrics knows it better than its name. Forget the best of another metric."""
        name, history = str(monitored.monitor), managed.history
        said = [mode for mode in _of_all_ranks(trainer, monitor.mode_by_metric(trainer, name)) if mode is not None]
        if monitored.guessed:
            before, monitored.mode = monitored.mode, said[0] if said else monitored.mode or monitor.mode_by_name(name)
            if before != monitored.mode:
                self.report(trainer, f"{managed.name}: {name} is better the {_BETTER[str(monitored.mode)]} it is")
        elif not monitored.told and said and said[0] != monitored.mode:
            says = f"a callback says {monitored.mode}, and the metric itself {said[0]}"
            self.warn(trainer, monitor.contradiction(monitored, says))
        scheduler = managed.inner
        another = history.monitor is not None and (history.monitor, history.mode) != (name, monitored.mode)
        if another:
            self.report(
                trainer, f"{managed.name}: its best value was of {history.monitor} ({history.mode}), and is forgotten"
            )
        if isinstance(scheduler, ReduceLROnPlateau) and (another or scheduler.mode != monitored.mode):
            scheduler._init_is_better(monitored.mode, scheduler.threshold, scheduler.threshold_mode)
            scheduler.best, scheduler.num_bad_epochs = scheduler.mode_worse, 0
        history.monitor, history.mode, history.source = name, monitored.mode, monitored.source

    def _tell_silence(self, trainer: Any, managed: ManagedScheduler, monitored: MonitoredMetric, moment: str) -> None:
        """A validation or an epoch has passed. A plateau that has had no value may never fire: say so."""
        if moment == ("validation" if trainer.enable_validation else "epoch"):
            managed.searched = True
        due = managed.searched if moment == "late" else moment != "epoch" and monitor.of_validation(monitored.monitor)
        if managed.told or managed.history.seen or not managed.entry.strict or not due:
            return
        known = {name for names in _of_all_ranks(trainer, list(trainer.callback_metrics)) for name in names}
        shown = monitor.candidates(known)
        if monitored.monitor in known or (moment == "sanity" and not shown):  # on purpose: some log nothing there
            return
        where = "the sanity check does not log" if moment == "sanity" else "nothing logs"
        what = f"monitors {monitored.monitor!r} (from {monitored.source}), which {where}"
        if monitored.monitor is None:
            what = f"looks for a validation loss to monitor, which {where}"
        hint = did_you_mean(str(monitored.monitor), shown) or ": set scheduler.monitor"
        says = f"{managed.name} {what}; logged are {listing(shown)}{hint}"
        if moment != "sanity":
            raise WiringError(says)
        self.report(trainer, says)  # the first validation has the last word

    def warn_before_training(self, trainer: Any, managed: ManagedScheduler, lost_values: Mapping[str, str]) -> None:
        """Say before the first batch what a plateau will not hear.

        Args:
            lost: why a metric of a `"validation"`, or of an `"epoch"`, is lost on resume.
        """
        name, monitored = managed.name, managed.plan.monitored
        assert monitored is not None
        if trainer.fast_dev_run:
            self.report(trainer, f"fast_dev_run: {name} is not stepped")
            return
        of_validation = monitor.of_validation(monitored.monitor)
        usual = managed.history.heard if managed.history.seen else "validation" if of_validation else "epoch"
        why = lost_values.get(usual)
        if why is not None:
            self.warn(trainer, f"{name} misses a value of {monitored.monitor or 'its metric'}: {why}")
        why = no_validation(trainer)
        if why is not None and of_validation:
            ever = "not stepped any more" if managed.history.seen else "never stepped"
            metric = monitored.monitor or "a validation loss"
            self.warn(trainer, f"{name} is {ever}, unless training itself logs {metric}: {why}")
            managed.told = True

    # ------------------------------------------------------------------- hearing

    def _step_with(self, trainer: Any, managed: ManagedScheduler, value: float) -> None:
        history, optimizer = managed.history, managed.scheduler.optimizer
        name, finite = history.monitor, math.isfinite(value)
        if not finite and managed.plan.on_nonfinite == "raise":
            raise WiringError(f"epoch {self.epoch}: {name} is {value}, and {managed.name} has on_nonfinite: raise")
        history.seen += 1
        if not finite and managed.plan.on_nonfinite == "ignore":
            history.ignored += 1
            self.report(trainer, f"epoch {self.epoch}: {name} is {value}: {managed.name} ignores it")
            self.step(trainer, managed, None)
            return
        before = rates_of(optimizer)
        self.step(trainer, managed, value if finite else math.nan)  # NaN is better than nothing; infinity may be
        after = rates_of(optimizer)
        if before != after:
            history.cuts.append(self.epoch)
            cuts = listing(dict.fromkeys(f"{b:.4g} -> {a:.4g}" for b, a in zip(before, after, strict=True) if a != b))
            best = getattr(managed.scheduler, "best", None)
            than = f", not better than {best:.4g}" if isinstance(best, float) and math.isfinite(best) else ""
            whose = "" if managed.number is None else f" of optimizer {managed.number}"
            self.report(trainer, f"epoch {self.epoch}: {name} is {value:.4g}{than}: learning rate{whose} {cuts}")
            for logger in trainer.loggers:
                logger.log_metrics({f"{managed.name}/cuts": len(history.cuts)}, step=logging_step(trainer))

    def report(self, trainer: Any, text: str) -> None:
        if self.verbose:
            trainer.lightning_module.print(f"optplug: {text}")  # rank zero, and clear of the progress bar

    def warn(self, trainer: Any, text: str) -> None:
        if trainer.is_global_zero:
            warnings.warn(text, UserWarning, stacklevel=2)


_BETTER = {"min": "less", "max": "more"}


def _of_all_ranks(trainer: Any, value: Any) -> list[Any]:
    """What each rank has; every rank must come here."""
    if trainer.world_size == 1:
        return [value]
    return [trainer.strategy.broadcast(value, rank) for rank in range(trainer.world_size)]


def _mean_over_ranks(trainer: Any, value: Any) -> float | None:
    """The mean over the ranks that have a value; None on all of them when none has."""
    total, count = (0.0, 0.0) if value is None else (float(value), 1.0)
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # A tensor of our own: reduce works in place.
        pair = torch.tensor([total, count], dtype=dtype, device=device)
        total, count = trainer.strategy.reduce(pair, reduce_op="sum").tolist()
    return total / count if count else None
