"""The callback `ConfigureOptimizers`, one class for both import names of Lightning."""

from __future__ import annotations

from typing import Any

from optplug.config.build import checked
from optplug.errors import ConfigTypeError
from optplug.lightning._compat import attached_trainer
from optplug.lightning.configure import attach, detach
from optplug.lightning.stepping_callback import SteppingCallback


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


class ConfigureOptimizers(SteppingCallback):
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
        given = {"scheduler": scheduler, "param_groups": param_groups, "monitor": monitor, "mode": mode}
        given["on_resume"] = on_resume
        if optimizer is not None or any(value is not None for value in given.values()):
            self.config = checked(optimizer, **given)

    def _bind(self, module: Any) -> None:
        trainer = attached_trainer(module)
        fitting = trainer is not None and trainer.state.fn == "fit"
        if self.config is None or not fitting:
            return
        others = [getattr(callback, "config", None) for callback in getattr(trainer, "callbacks", ())]
        if attach(module, self.config, override=self.override, others=others):
            self._module = module

    def _restore(self, trainer: Any) -> None:
        super()._restore(trainer)
        if self._module is not None:
            detach(self._module)
            self._module = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._bind(pl_module)
