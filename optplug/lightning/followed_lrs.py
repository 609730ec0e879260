"""Learning rates of parameter groups that follow those of other groups."""

from __future__ import annotations

from typing import Any

from optplug.config.added_groups import lr_followers
from optplug.schedulers.lr import set_lr


class EpochStartRates:
    """Learning rates that callbacks set at the start of an epoch, for groups that the rules have split.

    BackboneFinetuning sets the learning rate of the last parameter group in each epoch. The rules of a configuration
    may have split the group that it added: the learning rates of the other parts follow.
    """

    def __init__(self, trainer: Any) -> None:
        self._followers = [
            (follower, float(follower["lr"]), leader, float(leader["lr"]))
            for optimizer in trainer.optimizers
            for follower, leader in lr_followers(optimizer)
        ]

    def follow(self) -> None:
        """Change the learning rates of the followers as those of their leaders have changed since construction."""
        for follower, lr, leader, leader_lr in self._followers:
            changed = float(leader["lr"])
            if changed != leader_lr and float(follower["lr"]) == lr:
                set_lr(follower, changed * (lr / leader_lr if leader_lr else _base_ratio(follower, leader)))


def _base_ratio(follower: dict[str, Any], leader: dict[str, Any]) -> float:
    base = float(leader.get("initial_lr", 0.0))
    return float(follower["initial_lr"]) / base if base and "initial_lr" in follower else 1.0
