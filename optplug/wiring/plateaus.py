"""How plateaus hear their metric: found by name, fresh, once, the same on all ranks; and what is told of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from optplug.errors import WiringError, did_you_mean, listing
from optplug.rates import rates_of
from optplug.wiring import monitor
from optplug.wiring.claims import Claim
from optplug.wiring.plans import Monitored
from optplug.wiring.run import no_validation


class Plateaus:
    """Listens for the plateaus of a fit.

    Args:
        step: steps the scheduler of a claim with a value; with None, patience is not to count the time since the last.
        verbose: say each learning-rate cut, on rank zero.

    There are four moments to listen: `"sanity"`, when nothing is stepped; `"validation"`; `"epoch"`, when the epoch is
    over; `"late"`, when the module's own `on_train_epoch_end` has run too.
    """

    def __init__(self, step: Callable[[Any, Claim, float | None], None], *, verbose: bool) -> None:
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

    def listen(self, trainer: Any, claims: Iterable[Claim], moment: str) -> bool:
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
        for claim in claims:
            monitored = claim.plan.monitored
            assert monitored is not None
            if moment in ("epoch", "late") and claim.stepped_in == self.epoch:
                continue  # its value is no news: Lightning computes training metrics again when the epoch is over
            if not monitored.found:
                self._find(trainer, claim, monitored, fresh, moment)
            if moment == "sanity":
                continue
            mean = _mean_over_ranks(trainer, fresh.get(str(monitored.monitor)))
            if mean is not None:
                self._hear(trainer, claim, mean)
                claim.audit.heard = moment
                claim.stepped_in, stepped = self.epoch, True
        return stepped

    def wait(self, claims: Iterable[Claim]) -> bool:
        """Whether any of them hears what the module's `on_train_epoch_end` logs, and that has not run."""
        return any(
            claim.audit.seen and claim.audit.heard == "late" and claim.stepped_in != self.epoch for claim in claims
        )

    # ------------------------------------------------------------------- finding

    def _find(self, trainer: Any, claim: Claim, monitored: Monitored, fresh: Iterable[str], moment: str) -> None:
        """Find the metric among what any rank has just logged, by its name or nearly so; learn its mode."""
        logged = sorted({name for names in _of_all_ranks(trainer, list(fresh)) for name in names})
        in_validation = moment in ("sanity", "validation")
        if monitored.monitor in logged:
            monitored.found = True
        elif monitored.monitor is None:
            losses = monitor.validation_losses(logged) if in_validation else []
            if losses or moment == "validation":
                monitored.monitor, monitored.found = monitor.only_validation_loss(logged), True
                self.say(
                    trainer, f"{claim.name} follows {monitored.monitor} ({monitored.mode}), the only validation loss"
                )
        elif monitor.of_validation(monitored.monitor) if in_validation else moment == "late":
            nearly = monitor.nearly(monitored.monitor, logged)
            asked = f"{claim.name} monitors {monitored.monitor!r} (from {monitored.source})"
            if len(nearly) > 1:
                raise WiringError(f"{asked}, and logged are {listing(nearly)}: say which with scheduler.monitor")
            if nearly:
                self.say(trainer, f"{asked}, which nothing logs; it will follow {nearly[0]!r}")
                monitored.monitor, monitored.found = nearly[0], True
        if monitored.found:
            self._settle(trainer, claim, monitored)
        else:
            self._tell_silence(trainer, claim, monitored, moment)

    def _settle(self, trainer: Any, claim: Claim, monitored: Monitored) -> None:
        """Learn the mode: a metric of torchmetrics knows it better than its name. Forget the best of another metric."""
        name, audit = str(monitored.monitor), claim.audit
        said = [mode for mode in _of_all_ranks(trainer, monitor.mode_by_metric(trainer, name)) if mode is not None]
        if monitored.guessed:
            before, monitored.mode = monitored.mode, said[0] if said else monitored.mode or monitor.mode_by_name(name)
            if before != monitored.mode:
                self.say(trainer, f"{claim.name}: {name} is better the {_BETTER[str(monitored.mode)]} it is")
        elif not monitored.told and said and said[0] != monitored.mode:
            says = f"a callback says {monitored.mode}, and the metric itself {said[0]}"
            self.warn(trainer, monitor.contradiction(monitored, says))
        scheduler = claim.inner
        another = audit.monitor is not None and (audit.monitor, audit.mode) != (name, monitored.mode)
        if another:
            self.say(trainer, f"{claim.name}: its best value was of {audit.monitor} ({audit.mode}), and is forgotten")
        if isinstance(scheduler, ReduceLROnPlateau) and (another or scheduler.mode != monitored.mode):
            scheduler._init_is_better(monitored.mode, scheduler.threshold, scheduler.threshold_mode)
            scheduler.best, scheduler.num_bad_epochs = scheduler.mode_worse, 0
        audit.monitor, audit.mode, audit.source = name, monitored.mode, monitored.source

    def _tell_silence(self, trainer: Any, claim: Claim, monitored: Monitored, moment: str) -> None:
        """A validation or an epoch has passed. A plateau that has had no value may never fire: say so."""
        if moment == ("validation" if trainer.enable_validation else "epoch"):
            claim.searched = True
        due = claim.searched if moment == "late" else moment != "epoch" and monitor.of_validation(monitored.monitor)
        if claim.told or claim.audit.seen or not claim.entry.strict or not due:
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
        says = f"{claim.name} {what}; logged are {listing(shown)}{hint}"
        if moment != "sanity":
            raise WiringError(says)
        self.say(trainer, says)  # the first validation has the last word

    def foretell(self, trainer: Any, claim: Claim, lost: Mapping[str, str]) -> None:
        """Say before the first batch what a plateau will not hear.

        Args:
            lost: why a metric of a `"validation"`, or of an `"epoch"`, is lost on resume.
        """
        name, monitored = claim.name, claim.plan.monitored
        assert monitored is not None
        if trainer.fast_dev_run:
            self.say(trainer, f"fast_dev_run: {name} is not stepped")
            return
        of_validation = monitor.of_validation(monitored.monitor)
        usual = claim.audit.heard if claim.audit.seen else "validation" if of_validation else "epoch"
        why = lost.get(usual)
        if why is not None:
            self.warn(trainer, f"{name} misses a value of {monitored.monitor or 'its metric'}: {why}")
        why = no_validation(trainer)
        if why is not None and of_validation:
            ever = "not stepped any more" if claim.audit.seen else "never stepped"
            metric = monitored.monitor or "a validation loss"
            self.warn(trainer, f"{name} is {ever}, unless training itself logs {metric}: {why}")
            claim.told = True

    # ------------------------------------------------------------------- hearing

    def _hear(self, trainer: Any, claim: Claim, value: float) -> None:
        audit, optimizer = claim.audit, claim.scheduler.optimizer
        name, finite = audit.monitor, math.isfinite(value)
        if not finite and claim.plan.on_nonfinite == "raise":
            raise WiringError(f"epoch {self.epoch}: {name} is {value}, and {claim.name} has on_nonfinite: raise")
        audit.seen += 1
        if not finite and claim.plan.on_nonfinite == "ignore":
            audit.ignored += 1
            self.say(trainer, f"epoch {self.epoch}: {name} is {value}: {claim.name} ignores it")
            self.step(trainer, claim, None)
            return
        before = rates_of(optimizer)
        self.step(trainer, claim, value if finite else math.nan)  # NaN is better than nothing; infinity may be
        after = rates_of(optimizer)
        if before != after:
            audit.cuts.append(self.epoch)
            cuts = listing(dict.fromkeys(f"{b:.4g} -> {a:.4g}" for b, a in zip(before, after, strict=True) if a != b))
            best = getattr(claim.scheduler, "best", None)
            than = f", not better than {best:.4g}" if isinstance(best, float) and math.isfinite(best) else ""
            whose = "" if claim.number is None else f" of optimizer {claim.number}"
            self.say(trainer, f"epoch {self.epoch}: {name} is {value:.4g}{than}: learning rate{whose} {cuts}")
            # The step by which Lightning's own callbacks log.
            step = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
            for logger in trainer.loggers:
                logger.log_metrics({f"{claim.name}/cuts": len(audit.cuts)}, step=step)

    def say(self, trainer: Any, text: str) -> None:
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
