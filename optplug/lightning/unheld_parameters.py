"""A warning about trainable parameters that no optimizer holds."""

from __future__ import annotations

from typing import Any

from optplug.config.param_selection import module_parameters
from optplug.errors import short_list
from optplug.lightning.fit_state import FitState
from optplug.lightning.reporter import Reporter


def warn_of_unheld_parameters(trainer: Any, state: FitState, reporter: Reporter) -> None:
    """Warn once about each set of trainable parameters that no optimizer of the trainer holds.

    Only if optplug built an optimizer: other code may leave out parameters deliberately.
    """
    if not any(configured.setup.entries for _, configured in state.configured(trainer)):
        return
    held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    module = trainer.lightning_module
    trainable = [p for p in module.parameters() if p.requires_grad]
    unheld = {id(p) for p in trainable if id(p) not in held}
    replaced = len(unheld) == len(trainable) and trainer.strategy.restore_checkpoint_after_setup
    if not unheld or replaced:  # a sharded strategy may have replaced all parameters
        return
    names = [p.name for p in module_parameters(module) if id(p.tensor) in unheld]
    if not state.reported_unheld.issuperset(names):
        state.reported_unheld.update(names)
        reporter.warn(
            trainer,
            f"no optimizer holds {short_list(names)}: these trainable parameters are not trained. They were added, "
            "replaced or unfrozen after the optimizer was built. Create them in __init__ or configure_model, select "
            "them in the configuration, or add them with optimizer.add_param_group",
        )
