"""Warnings about parameters that the optimizers of a trainer do not train as expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from optplug.config.param_selection import module_parameters
from optplug.errors import short_list
from optplug.lightning.fit_state import FitState
from optplug.lightning.reporter import Reporter

_UNHELD = (
    "no optimizer of the trainer holds {}, which received a gradient: it is not trained, unless the module steps an "
    "optimizer of its own. It was added, replaced or unfrozen after the optimizer was built. Create parameters in "
    "__init__ or configure_model, select them in the configuration, or add them with optimizer.add_param_group"
)
_HELD_TWICE = (
    "{}: an optimizer holds the parameter twice and steps it twice. The optimizer holds frozen parameters from the "
    "start: requires_grad_(True) trains them, and optimizer.add_param_group moves them to a group with other options. "
    "Do not change optimizer.param_groups directly"
)
_UNSYNCHRONIZED = (
    "{}: frozen when DistributedDataParallel wrapped the module, which therefore does not synchronize the gradients: "
    "the processes train different values. Freeze parameters in on_fit_start instead, and use "
    "strategy='ddp_find_unused_parameters_true'"
)


def warn_of_untrained_parameters(trainer: Any, state: FitState, reporter: Reporter) -> None:
    """Warn once about each parameter that received a gradient and is not trained as expected.

    - No optimizer of the trainer holds it.
    - An optimizer holds it twice.
    - It was frozen when the strategy wrapped the module in DistributedDataParallel.

    Only if optplug built an optimizer: other code may leave out parameters deliberately.
    """
    if not any(configured.setup.entries for _, configured in state.configured(trainer)):
        return
    module, strategy = trainer.lightning_module, trainer.strategy
    counts = [Counter(id(p) for group in o.param_groups for p in group["params"]) for o in trainer.optimizers]
    trained = [p for p in module.parameters() if p.requires_grad]
    unheld = {id(p) for p in trained if not any(id(p) in count for count in counts)}
    if len(unheld) == len(trained) and strategy.restore_checkpoint_after_setup:
        return  # a sharded strategy may have replaced all parameters
    with_gradient = {id(p) for p in trained if p.grad is not None}
    twice = {key for count in counts for key, n in count.items() if n > 1}
    late = set()
    if trainer.world_size > 1 and isinstance(
        strategy.model, DistributedDataParallel
    ):  # the optimizers are built after the module is wrapped
        infos = [info for _, configured in state.configured(trainer) for info in configured.parameter_infos]
        late = {info.id for info in infos if not info.is_trainable}
    for message, ids in ((_UNHELD, unheld), (_HELD_TWICE, twice), (_UNSYNCHRONIZED, late)):
        _warn_once(trainer, state, reporter, message, with_gradient & ids)


def _warn_once(trainer: Any, state: FitState, reporter: Reporter, message: str, ids: Collection[int]) -> None:
    names = [p.name for p in module_parameters(trainer.lightning_module) if id(p.tensor) in ids] if ids else []
    if not state.reported_untrained.issuperset((message, name) for name in names):
        state.reported_untrained.update((message, name) for name in names)
        reporter.warn(trainer, message.format(short_list(names)))
