"""Parameter groups that are added to an optimizer during training: all its schedulers must schedule them too."""

from __future__ import annotations

from torch.optim.lr_scheduler import LRScheduler

from optplug.schedulers.adapters import adapter_for


def follow_groups(scheduler: LRScheduler) -> None:
    """Extend a scheduler to the parameter groups that were added since the last call.

    The per-group lists of the scheduler get a value for each new group, and the new groups get the keys that the
    scheduler reads.

    A new group is scheduled like the last old group whose base learning rate is not 0, as if it had existed from the
    start. Its base learning rate is that of this group, times the ratio of their current learning rates; if the new
    group has an `initial_lr`, times the ratio of their `initial_lr`.

    The current learning rate of a new group does not change, with two exceptions. In these the closed form sets it, if
    the scheduler has one: the schedule has a floor (`eta_min`) above 0, where learning rates are not proportional to
    base learning rates; or the old group's learning rate is 0, so that the new group's is its base learning rate.

    Args:
        scheduler: any scheduler. Its family (`optplug.schedulers.adapters`) determines which lists are extended. A
            scheduler with its own method `follow_groups` is left to that method.
    """
    groups = scheduler.optimizer.param_groups
    adapter_for(scheduler).follow_groups([i for i, group in enumerate(groups) if "initial_lr" not in group])
