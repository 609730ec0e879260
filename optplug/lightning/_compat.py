"""Lightning's two import names, and its private attributes, each used once here, each with what follows without it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

from optplug.errors import MissingLightningError

IMPORT_NAMES = ("lightning.pytorch", "pytorch_lightning")


def installed_import_names() -> list[str]:
    """The import names of Lightning that are installed.

    Raises:
        MissingLightningError: neither is installed.
    """
    found = [name for name in IMPORT_NAMES if importlib.util.find_spec(name.split(".")[0]) is not None]
    if not found:
        raise MissingLightningError("this needs Lightning: pip install lightning, or pip install pytorch-lightning")
    return found


def callback_classes() -> tuple[type, ...]:
    """Lightning's `Callback` under each installed import name."""
    return tuple(importlib.import_module(name).Callback for name in installed_import_names())


def attached_trainer(module: Any) -> Any:
    """The trainer a LightningModule is attached to, or None. The public `module.trainer` raises without one."""
    return getattr(module, "_trainer", None)


def loaded_checkpoint(trainer: Any) -> dict[str, Any] | None:
    """The checkpoint that is going to be restored, where Lightning loads it before the optimizers exist; else None."""
    # Not through Lightning's hooks: a callback that configure_optimizers adds misses those.
    return getattr(getattr(trainer, "_checkpoint_connector", None), "_loaded_checkpoint", None) or None


def logged_results(trainer: Any) -> Iterable[Any]:
    """Lightning's records of what was logged since the last reset, metric objects included; none where it has none."""
    return (getattr(trainer, "_results", None) or {}).values()


def logging_step(trainer: Any) -> int:
    """The step that Lightning's own callbacks log at, which counts batches; `global_step` where it is not there."""
    return int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))


def restore_data_loaders(trainer: Any) -> None:
    """Give stateful data loaders the state of the checkpoint, where they were set up before it was loaded."""
    loop = trainer.fit_loop
    if getattr(loop, "_combined_loader_states_to_load", None):
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)


def validation_is_due(trainer: Any) -> bool:
    """Whether Lightning validates after the batch that has just ended; to be called in `on_train_batch_end`."""
    loop = trainer.fit_loop
    should_validate = getattr(loop.epoch_loop, "_should_check_val_fx", None)
    return bool(trainer.enable_validation and should_validate is not None and should_validate(loop._data_fetcher))
