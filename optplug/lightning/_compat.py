"""The two import names of Lightning, and the private names of its trainer, loops, modules and parsers.

Other modules use these functions instead of private attributes. A function documents what it returns if a version of
Lightning lacks the attribute.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Container, Iterator
from typing import Any

from optplug.errors import MissingLightningError, WiringError, upgrade_hint

IMPORT_NAMES = ("lightning.pytorch", "pytorch_lightning")
MINIMUM_VERSION = (2, 4)
_PACKAGES = tuple(name.split(".")[0] for name in IMPORT_NAMES)


def supported_import_names(wanted: str) -> list[str]:
    """The import names under which a supported version of Lightning is installed. Nothing is imported.

    Args:
        wanted: what needs Lightning, for the message.

    Raises:
        MissingLightningError: Lightning is not installed under either name, or only in versions that are too old.
    """
    hints = _upgrade_hints()
    supported = [name for name, hint in hints.items() if not hint]
    if not supported:
        raise _missing_error(wanted, list(hints.values()))
    return supported


def supported_import_name(wanted: str, preferred: str) -> str:
    """The preferred import name if its package is installed, otherwise the other one.

    Args:
        wanted: what needs Lightning, for the message.
        preferred: `"lightning.pytorch"` or `"pytorch_lightning"`.

    Raises:
        MissingLightningError: Lightning is not installed under either name, or the package of the name is too old.
    """
    if hint := _upgrade_hints().get(preferred):
        raise _missing_error(wanted, [hint])
    supported = supported_import_names(wanted)
    return preferred if preferred in supported else supported[0]


def _missing_error(wanted: str, hints: list[str]) -> MissingLightningError:
    needs = f"{wanted} needs Lightning {MINIMUM_VERSION[0]}.{MINIMUM_VERSION[1]} or later"
    missing = "neither of its packages is installed: pip install lightning, or pip install pytorch-lightning"
    return MissingLightningError("; ".join([needs, *(hints or [missing])]))


def _upgrade_hints() -> dict[str, str]:
    """For each installed import name, how to upgrade it; empty if it is not too old."""
    return {name: _upgrade_hint(name.split(".")[0]) for name in IMPORT_NAMES if _is_installed(name.split(".")[0])}


def _is_installed(package: str) -> bool:
    # find_spec raises an error for an imported module without a spec, such as the mock object of a documentation tool.
    if sys.modules.get(package) is not None:
        return True
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # no origin: an unrelated folder of this name


def _upgrade_hint(package: str) -> str:
    distribution = package.replace("_", "-")
    try:
        return upgrade_hint(distribution, importlib.metadata.version(distribution), MINIMUM_VERSION)
    except importlib.metadata.PackageNotFoundError:  # a source checkout
        return ""


def imported_callback_classes() -> tuple[type, ...]:
    """Lightning's class `Callback` of each import name that has been imported. Nothing is imported."""
    classes = (getattr(sys.modules.get(f"{name}.callbacks"), "Callback", None) for name in IMPORT_NAMES)
    return tuple(cls for cls in classes if isinstance(cls, type))  # a documentation tool mocks Lightning


def imported_module_classes() -> tuple[Any, ...]:
    """Lightning's class `LightningModule` of each import name that has been imported. Nothing is imported."""
    classes = (getattr(sys.modules.get(name), "LightningModule", None) for name in IMPORT_NAMES)
    return tuple(cls for cls in classes if isinstance(cls, type))


class CallbackInheritance:
    """Makes a class a subclass of Lightning's `Callback`, under each import name that is imported now or later.

    An import of Lightning changes the logger that all packages of Lightning share. optplug therefore never imports a
    package of Lightning that the user has not imported. The object is an entry of `sys.meta_path`. It finds no module;
    Python calls it before each import, and Lightning imports further modules after `Callback`.

    Args:
        cls: the class. It has a base class other than `object`.
    """

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in _PACKAGES:
            self.update()

    def update(self) -> None:
        """Add the classes that have been imported since the last call."""
        for callback in imported_callback_classes():
            if not issubclass(self.cls, callback):
                with contextlib.suppress(TypeError):  # no consistent method resolution order for a user's subclass
                    self.cls.__bases__ += (callback,)


def as_misconfiguration(trainer: Any, error: WiringError) -> WiringError:
    """The error as one that is also Lightning's `MisconfigurationException`, of the import name of the trainer.

    Unpickling returns a plain `WiringError`. The error itself if the trainer is not Lightning's.
    """
    modules = [cls.__module__ for cls in type(trainer).__mro__]
    for name in IMPORT_NAMES:
        exceptions = sys.modules.get(f"{name}.utilities.exceptions")
        if exceptions is not None and any(module.startswith(f"{name}.") for module in modules):
            bases = (WiringError, exceptions.MisconfigurationException)
            # The name of the class is shown in tracebacks.
            attributes = {"__module__": WiringError.__module__, "__reduce__": _reduce_wiring_error}
            cls: type[WiringError] = type("WiringError", bases, attributes)
            return cls(error.message, loc=error.loc, argument=error.argument, inside=error.inside)
    return error


def _reduce_wiring_error(error: WiringError) -> tuple[type[WiringError], tuple[str], dict[str, Any]]:
    return WiringError, (error.message,), vars(error)


def options_of_parser(parser: Any) -> list[Any]:
    """The options of a parser, which argparse keeps in a private attribute."""
    return list(getattr(parser, "_actions", ()))


def attached_trainer(module: Any) -> Any:
    """The trainer of a LightningModule, or None; the public `module.trainer` raises an error without a trainer."""
    return getattr(module, "_trainer", None)


def finetuning_callbacks(trainer: Any) -> list[Any]:
    """The trainer's callbacks that are derived from Lightning's `BaseFinetuning`, of either import name.

    They freeze parameters before the training, and add parameter groups when they unfreeze them.
    """
    callbacks = getattr(trainer, "callbacks", None) or ()
    return [one for one in callbacks if any(base.__name__ == "BaseFinetuning" for base in type(one).__mro__)]


def share_add_param_group(trainer: Any) -> None:
    """Give Lightning's wrappers of the optimizers, `module.optimizers()`, the `add_param_group` of the instances.

    A wrapper is an instance of a class derived from the optimizer's class, so it would use the method of that class.
    Nothing if a version of Lightning stores the wrappers elsewhere.
    """
    for wrapper in getattr(trainer.strategy, "_lightning_optimizers", ()):
        own = vars(getattr(wrapper, "optimizer", wrapper)).get("add_param_group")
        if own is not None:
            wrapper.add_param_group = own


def loaded_checkpoint(trainer: Any) -> dict[str, Any] | None:
    """The checkpoint that Lightning has loaded and will restore; None without one.

    None too if the strategy loads the checkpoint later, after the optimizers are built.
    """
    # Lightning's checkpoint hooks are no alternative: they do not run for a callback that configure_optimizers adds.
    return getattr(getattr(trainer, "_checkpoint_connector", None), "_loaded_checkpoint", None) or None


def repeats_batches(trainer: Any) -> bool:
    """Whether Lightning, when it resumes, repeats the batch or the validation in which the checkpoint was written.

    Lightning < 2.5: it trains with the batch once more. It also runs a validation again that had ended in the
    checkpoint, before the first batch.
    """
    return not hasattr(trainer.fit_loop.epoch_loop, "update_restart_stage")


def saved_epochs(trainer: Any, checkpoint: dict[str, Any]) -> tuple[int, int]:
    """The number of epochs that are over in a checkpoint, and the number of batches of an incomplete epoch after them.

    Batches that Lightning repeats when it resumes do not count. The number of batches is 0 if a version of Lightning
    stores the progress of its loops in another way.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    over = "completed" if repeats_batches(trainer) else "processed"
    try:
        epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]
        is_incomplete = epochs["processed"] < epochs["ready"]
        return int(epochs["processed"]), int(batches[over]) if is_incomplete else 0
    except (KeyError, TypeError):
        return int(checkpoint.get("epoch", 0)), 0


def attribute_set_by_tuner(trainer: Any, module: Any) -> str | None:
    """The attribute of the module that `Tuner.lr_find` has set, as the text of a link, such as `module.lr`.

    None in a fit that trains: there, the callback `LearningRateFinder` also sets the learning rates of the optimizer.
    None too if a version of Lightning stores its choices in another way.
    """
    finders = [callback for callback in trainer.callbacks if is_lightning_callback(callback, "LearningRateFinder")]
    of_tuner = [f for f in finders if getattr(f, "_early_exit", False) and getattr(f, "_update_attr", False)]
    if not any(finder.optimal_lr and finder.optimal_lr.suggestion() for finder in of_tuner):
        return None
    for name in (*(getattr(finder, "_attr_name", "") for finder in of_tuner), "lr", "learning_rate"):
        if name and hasattr(module, name):
            return f"module.{name}"
        if name and name in getattr(module, "hparams", ()):
            return f"module.hparams.{name}"
    return None


def lr_of_finder(trainer: Any) -> float | None:
    """The learning rate that `LearningRateFinder` has found at the start of the fit and that optimizers lack.

    Lightning < 2.5.4: the callback sets only the attribute of the module. None in later versions, and for a class
    derived from the callback that runs at another time.
    """
    for finder in trainer.callbacks:
        if not is_lightning_callback(finder, "LearningRateFinder") or not getattr(finder, "_update_attr", False):
            continue
        hook = type(finder).on_fit_start
        found = getattr(finder, "optimal_lr", None)
        if found is not None and hook.__module__.split(".")[0] in _packages_before((2, 5, 4)):
            lr: float | None = found.suggestion()
            return lr
    return None


def _packages_before(first: tuple[int, ...]) -> list[str]:
    """The imported packages of Lightning that are older than a version."""
    versions = {name: getattr(sys.modules.get(name), "__version__", "") for name in _PACKAGES}
    numbers = {name: tuple(map(int, re.findall(r"\d+", version)[:3])) for name, version in versions.items()}
    return [name for name, number in numbers.items() if () < number < first]


def is_lightning_callback(callback: Any, name: str) -> bool:
    """Whether a callback is an instance of Lightning's class of a name, such as `Timer`, under either import name."""
    modules = [sys.modules[f"{name}.callbacks"] for name in IMPORT_NAMES if f"{name}.callbacks" in sys.modules]
    return isinstance(callback, tuple(getattr(module, name) for module in modules if hasattr(module, name)))


def ignore_groups_without_lr(trainer: Any) -> list[Any]:
    """Let the `LearningRateMonitor` callbacks of a trainer skip parameter groups without a learning rate.

    They would raise an error. Nothing if a version of Lightning lacks the private method that reads the learning rate.

    Returns:
        The callbacks that were changed, for `restore_lr_monitors`.
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    monitors = [one for one in trainer.callbacks if is_lightning_callback(one, "LearningRateMonitor")]
    if all(group.get("lr") is not None for group in groups):
        return []
    changed = [one for one in monitors if hasattr(one, "_extract_lr") and "_extract_lr" not in vars(one)]
    for monitor in changed:
        monitor._extract_lr = functools.partial(_lr_if_any, monitor)
    return changed


def restore_lr_monitors(monitors: list[Any]) -> None:
    """Undo `ignore_groups_without_lr`."""
    for monitor in monitors:
        vars(monitor).pop("_extract_lr", None)


def _lr_if_any(monitor: Any, param_group: Any, name: str) -> Any:
    has_lr = param_group.get("lr") is not None
    return type(monitor)._extract_lr(monitor, param_group, name) if has_lr else {}


def logged_metric_objects(trainer: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The torchmetrics objects logged since Lightning's last reset, each with the names of its value.

    Nothing if a version of Lightning stores them in another way.
    """
    for result in (getattr(trainer, "_results", None) or {}).values():
        meta = result.meta
        has_suffix = meta.dataloader_idx is not None and meta.add_dataloader_idx
        suffix = f"/dataloader_idx_{meta.dataloader_idx}" if has_suffix else ""
        if not result.is_tensor:
            yield (meta.name + suffix, meta.forked_name(False) + suffix), result.value


def logging_step(trainer: Any) -> int:
    """The step number with which Lightning's own callbacks log; it counts batches. Fallback: `global_step`."""
    return int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))


def logs_hyperparameters(trainer: Any, key: str) -> bool:
    """Whether optplug may log its configuration under a key, as a hyperparameter.

    Not if `Trainer(enable_autolog_hparams=False)` or, for the module, `save_hyperparameters(logger=False)` asks for no
    hyperparameters in the logs, and not if module or data module have a hyperparameter of this name.
    """
    module, data = trainer.lightning_module, getattr(trainer, "datamodule", None)
    if not getattr(trainer, "enable_autolog_hparams", True):  # Lightning < 2.6: no such argument
        return False
    if module.hparams and not getattr(module, "_log_hyperparams", True):
        return False
    return not any(_has_hyperparameter(owner, key) for owner in (module, data))


def _has_hyperparameter(owner: Any, name: str) -> bool:
    hparams = getattr(owner, "hparams", None)  # of any type, if the class of the user defines the attribute itself
    return hasattr(hparams, name) or (isinstance(hparams, Container) and name in hparams)


def restore_data_loaders(trainer: Any) -> None:
    """Load the checkpoint's states into stateful data loaders.

    Lightning does so when it sets the loaders up, which has no effect if that happens before it loads the checkpoint.
    """
    loop = trainer.fit_loop
    if getattr(loop, "_combined_loader_states_to_load", None):
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)


def validation_is_due(trainer: Any) -> bool:
    """Whether Lightning validates after the current batch; to be called in `on_train_batch_end`."""
    loop = trainer.fit_loop
    should_validate = getattr(loop.epoch_loop, "_should_check_val_fx", None)
    return bool(trainer.enable_validation and should_validate is not None and should_validate(loop._data_fetcher))


def validation_is_repeated(trainer: Any) -> bool:
    """Whether Lightning runs the current validation again when it resumes: the checkpoint is written within a batch."""
    progress = getattr(trainer.fit_loop.epoch_loop.val_loop, "batch_progress", None)
    if progress is None:
        return False
    total = progress.total
    return bool(total.ready == total.started == total.processed + 1 == total.completed + 1)
