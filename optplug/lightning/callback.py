"""The callback `ConfigureOptimizers`: one class for both import names of Lightning."""

from __future__ import annotations

from typing import Any

from optplug.config.build import parse_and_check
from optplug.config.form import check_flags
from optplug.config.model import Config
from optplug.errors import WiringError
from optplug.lightning._compat import attached_trainer
from optplug.lightning.configure import (
    missing_optimizer,
    own_configure_optimizers,
    remove_configure_optimizers,
    set_configure_optimizers,
)
from optplug.lightning.rebuild_optimizers import warn_of_unused_lr
from optplug.lightning.stepping_callback import SteppingCallback


def _plain(config: Config | None) -> Config | dict[str, Any] | None:
    """The configuration as plain data, or unchanged if an argument is not plain data."""
    plain = None if config is None else config.to_dict()
    return config if plain is not None and parse_and_check(**plain) != config else plain


class _LogDescriptor:
    """The data descriptor behind `callback.log`: gives the module its `configure_optimizers` when `log` is set.

    The trainer rejects a module without `configure_optimizers` before it calls any callback hook. Before that, its only
    action on a callback is to set `callback.log = module.log`.
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
            callback._attach(module)


class _NotifiedOfModule:
    """Base class with the descriptor: if the trainer sets an attribute `log` of a derived class, it can be removed."""

    log = _LogDescriptor()


class ConfigureOptimizers(_NotifiedOfModule, SteppingCallback):
    """Configures the optimizer and the schedule of a module by name, and steps the schedule.

    The module needs no `configure_optimizers`. Optimizer and schedule are built inside Lightning's call of that hook,
    when the parameters are final. After the fit, and after an exception, module and trainer are as before. The callback
    works in the trainers of `lightning.pytorch` and `pytorch_lightning`.

    Args:
        optimizer: as in `optplug.configure_optimizers`. None if the module has its own `configure_optimizers`: with a
            `scheduler`, the callback adds that schedule to the module's optimizer; without one, the callback only steps
            the module's schedulers that optplug built and its `ReduceLROnPlateau` schedulers. Default: None.
        scheduler: as in `optplug.configure_optimizers`. Default: None.
        param_groups: as in `optplug.configure_optimizers`. Default: None.
        monitor: as in `optplug.configure_optimizers`. Default: None.
        mode: as in `optplug.configure_optimizers`. Default: None.
        on_resume: as in `optplug.configure_optimizers`. Default: None.
        override: whether to replace the module's own `configure_optimizers`, or its schedule. With False, a module that
            has its own is an error. Default: False.
        verbose: whether to print the configuration, where each part comes from, and each learning-rate cut, on rank
            zero. Default: True.

    Raises:
        UnknownNameError: no plugin registers a name.
        AmbiguousNameError: several plugins register a name.
        PluginError: a plugin raised an exception, or is invalid.
        ConfigError: a key, a value or a combination is wrong.
        ConfigTypeError: a value has the wrong type.
        HyperparameterError: a hyperparameter is out of its range.
        HyperparameterTypeError: a hyperparameter has the wrong type.
        WiringError: at the start of the fit, if the configuration does not fit the module or the trainer.

    All errors except WiringError are raised by the constructor, unless the check needs the parameters or the trainer.
    """

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
        check_flags(override=override, verbose=verbose)
        super().__init__(manage_third_party_plateaus=optimizer is None and scheduler is None, verbose=verbose)
        self.config: Config | None = None
        self.override = override
        self._module: Any = None
        given = {"scheduler": scheduler, "param_groups": param_groups, "monitor": monitor, "mode": mode}
        given["on_resume"] = on_resume
        if optimizer is not None or any(value is not None for value in given.values()):
            self.config = parse_and_check(optimizer, **given)

    @classmethod
    def from_config(cls, config: Config, *, override: bool = False, verbose: bool = True) -> ConfigureOptimizers:
        """Create the callback from a configuration that has been checked already.

        Args:
            config: from `optplug.config.build.parse_and_check`.
            override: as in the constructor. Default: False.
            verbose: as in the constructor. Default: True.
        """
        callback = cls(override=override, verbose=verbose)
        callback.config = config
        callback.manage_third_party_plateaus = False
        return callback

    def _is_in_fit(self) -> bool:
        return self._module is not None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state if self._is_in_fit() else {**state, "config": _plain(self.config)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["config"], dict):
            state = {**state, "config": parse_and_check(**state["config"])}
        super().__setstate__(state)

    def _attach(self, module: Any) -> None:
        """Give the module its `configure_optimizers`, if the trainer is fitting it."""
        trainer = attached_trainer(module)
        fitting = trainer is not None and trainer.state.fn == "fit"
        if not fitting:
            return
        callbacks = getattr(trainer, "callbacks", ())
        others = [callback.config for callback in callbacks if isinstance(callback, ConfigureOptimizers)]
        if self.config is None:
            if own_configure_optimizers(module) is None and all(other is None for other in others):
                raise WiringError(missing_optimizer(module))
            return
        if set_configure_optimizers(module, self.config, override=self.override, others=others):
            self._module = module

    def _restore(self, trainer: Any) -> None:
        super()._restore(trainer)
        if self._module is not None:
            remove_configure_optimizers(self._module)
            self._module = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._attach(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        warn_of_unused_lr(trainer, pl_module, self.config, self.fit_state.built, self._reporter)
        super().teardown(trainer, pl_module, stage)
