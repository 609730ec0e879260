"""The callback `ConfigureOptimizers`, one class for both import names of Lightning."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from optplug.build import checked
from optplug.errors import ConfigTypeError, MissingLightningError
from optplug.wiring.account import account
from optplug.wiring.configure import attach, detach
from optplug.wiring.owner import Owner
from optplug.wiring.record import log
from optplug.wiring.refresh import check_units, refresh, resume_data
from optplug.wiring.resume import Resumption, finish, loaded, prepare

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def installed() -> list[str]:
    """The import names of Lightning that are installed.

    Raises:
        MissingLightningError: there is none.
    """
    found = [name for name in NAMESPACES if importlib.util.find_spec(name.split(".")[0]) is not None]
    if not found:
        raise MissingLightningError("this needs Lightning: pip install lightning, or pip install pytorch-lightning")
    return found


_Callbacks: Any = tuple(importlib.import_module(name).Callback for name in installed())


class _LogSlot:
    """The data descriptor behind `callback.log`.

    A module without `configure_optimizers` is refused before any callback hook runs. The one thing the trainer does to
    a callback before that is to set `callback.log = module.log`: there the module gets its `configure_optimizers`.
    """

    def __get__(self, callback: Any, owner: Any = None) -> Any:
        if callback is None:
            return self
        try:
            return callback.__dict__["log"]
        except KeyError:
            raise AttributeError("log") from None

    def __set__(self, callback: Any, log: Any) -> None:
        callback.__dict__["log"] = log
        module = getattr(log, "__self__", None)
        if module is not None:
            callback._bind(module)


class ConfigureOptimizers(Owner, *_Callbacks):  # type: ignore[misc]
    """Configures a module's optimizer and schedule by name, from outside, and steps the schedule.

    Args:
        optimizer: as in `optplug.configure_optimizers`. None: the module has its own `configure_optimizers`; with a
            scheduler it gets that one, without one the callback only owns the schedulers it finds there, plain
            `ReduceLROnPlateau` included.
        scheduler, param_groups, monitor, mode, on_resume: as in `optplug.configure_optimizers`.
        override: replace the module's own `configure_optimizers`, or its schedule. Without it that is an error.
        verbose: say what was chosen and why, and each learning-rate cut, on rank zero.

    Raises:
        UnknownNameError, AmbiguousNameError, PluginError, ConfigError, ConfigTypeError, HyperparameterError,
        HyperparameterTypeError: at once, for whatever needs no parameters to be found wrong.
        WiringError: when the fit begins, for what the module or trainer do not fit.

    The module needs no `configure_optimizers`. Optimizer and schedule are built inside Lightning's call of it, when
    parameters are final, and everything is restored at teardown and after an exception. Works in the trainers of
    `lightning.pytorch` and `pytorch_lightning`.
    """

    log = _LogSlot()

    def __init__(
        self,
        optimizer: str | dict[str, Any] | list[dict[str, Any]] | None = None,
        scheduler: str | dict[str, Any] | None = None,
        *,
        param_groups: str | list[str | dict[str, Any]] | None = None,
        monitor: str | None = None,
        mode: str | None = None,
        on_resume: str | None = None,
        override: bool = False,
        verbose: bool = True,
    ) -> None:
        for name, flag in (("override", override), ("verbose", verbose)):
            if not isinstance(flag, bool):
                raise ConfigTypeError(f"{name}: must be True or False, got {flag!r} ({type(flag).__name__})")
        super().__init__(foreign=optimizer is None and scheduler is None, verbose=verbose)
        self.config = None
        self.override = override
        self._module: Any = None
        self._injected = False
        self._resumption: Resumption | None = None
        given = {"scheduler": scheduler, "param_groups": param_groups, "monitor": monitor, "mode": mode}
        given["on_resume"] = on_resume
        if optimizer is not None or any(value is not None for value in given.values()):
            self.config = checked(optimizer, **given)

    def _bind(self, module: Any) -> None:
        trainer = getattr(module, "_trainer", None)
        fitting = trainer is not None and trainer.state.fn == "fit"
        if self.config is None or not fitting:
            return
        others = [getattr(callback, "config", None) for callback in getattr(trainer, "callbacks", ())]
        if attach(module, self.config, override=self.override, others=others):
            self._module = module

    def _restore(self, trainer: Any) -> None:
        self._resumption = None
        if self._module is not None:
            detach(self._module)
            self._module = None
        if self._injected:  # a new list: the trainer is walking through the old one
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._bind(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        refresh(trainer, pl_module)  # the tuners' callbacks have run before
        self._resumption = prepare(trainer, loaded(trainer))
        super().on_fit_start(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.strategy.restore_checkpoint_after_setup:  # only now is it there
            self._resumption = prepare(trainer, checkpoint, sharded=True)

    def _resume(self, trainer: Any) -> None:
        if self._resumption is not None:
            finish(trainer, self._resumption)
        super()._resume(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        resume_data(trainer)
        super().on_train_start(trainer, pl_module)
        check_units(trainer, pl_module)
        log(trainer)
        for line in account(trainer, self._resumption):
            self._plateaus.say(trainer, line)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._restore(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._restore(trainer)


def ensure_owner(trainer: Any) -> None:
    """Give a trainer an owner for this fit if it has none."""
    if not any(isinstance(callback, Owner) for callback in trainer.callbacks):
        callback = ConfigureOptimizers()
        callback.foreign = False
        callback._injected = True
        trainer.callbacks = [callback, *trainer.callbacks]  # not the list in place: it may be the user's own
