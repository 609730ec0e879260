"""What a run that goes on from a checkpoint takes from it, and what from the configuration (`on_resume`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optplug.errors import WiringError, listing
from optplug.schedules import overruled, set_lr
from optplug.wiring.plans import choices
from optplug.wiring.record import configuration, recorded, tables


@dataclass
class Resumption:
    """A run that goes on from a checkpoint.

    Attributes:
        policy: of `optplug.config.ON_RESUME`.
        groups: by optimizer, the options of its groups as the configuration has them. schedules: by scheduler, its
            state.
        lines: what to say about it.
    """

    policy: str
    groups: list[list[dict[str, Any]]] = field(default_factory=list)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def prepare(trainer: Any) -> Resumption | None:
    """Compare the checkpoint with the configuration, before anything is restored; None where there is no checkpoint.

    Raises:
        WiringError: the checkpoint's optimizers, groups or schedules are not the configuration's, and the policy is to
        go on with them.
    """
    connector = getattr(trainer, "_checkpoint_connector", None)
    checkpoint = getattr(connector, "_loaded_checkpoint", None)
    chosen = [choices[optimizer] for optimizer in trainer.optimizers if optimizer in choices]
    if not chosen:
        return None
    policy = chosen[0].config.on_resume
    if not checkpoint:
        if getattr(trainer, "ckpt_path", None) and policy != "keep":
            raise WiringError(
                f"on_resume: {policy} cannot be had with {type(trainer.strategy).__name__}, which restores its "
                "checkpoints by itself: leave on_resume out, or start from the weights alone"
            )
        return None
    found = Resumption(policy)
    saved, now = recorded(trainer), configuration(trainer)
    if saved.get("config"):
        _refuse_others(saved, {"config": now, "groups": tables(trainer)}, policy)
        found.lines = list(_differences(saved, {"config": now, "groups": tables(trainer)}, policy))
    if policy == "keep":
        return found
    found.groups = [
        [{key: copy.copy(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]
    found.schedules = [copy.deepcopy(entry.scheduler.state_dict()) for entry in trainer.lr_scheduler_configs]
    if policy == "reset_all":
        checkpoint["optimizer_states"] = []
    if policy in ("reset_all", "reset_scheduler"):
        checkpoint["lr_schedulers"] = []  # Lightning restores as many as there are
    return found


def finish(trainer: Any, found: Resumption) -> None:
    """Put the configuration's values where the policy wants them; optimizers and schedules are restored by now."""
    if found.policy == "reset_scheduler":
        for optimizer, groups in zip(trainer.optimizers, found.groups, strict=True):
            for group, fresh in zip(optimizer.param_groups, groups, strict=True):
                set_lr(group, float(fresh["lr"]))
                if "initial_lr" in fresh:
                    group["initial_lr"] = fresh["initial_lr"]
    if found.policy != "override_hparams":
        return
    scheduled = [entry.scheduler.optimizer for entry in trainer.lr_scheduler_configs]
    for optimizer, groups in zip(trainer.optimizers, found.groups, strict=True):
        for group, fresh in zip(optimizer.param_groups, groups, strict=True):
            before = float(group.get("initial_lr", group["lr"]))
            after = float(fresh.get("initial_lr", fresh["lr"]))
            group.update({key: value for key, value in fresh.items() if key not in ("lr", "initial_lr")})
            if "initial_lr" in group:
                group["initial_lr"] = fresh.get("initial_lr", after)
            if not any(optimizer is o for o in scheduled):
                set_lr(group, after)
            elif before != after:
                set_lr(group, float(group["lr"]) * after / before if before else after)
    for entry, fresh_state in zip(trainer.lr_scheduler_configs, found.schedules, strict=True):
        overruled(entry.scheduler, fresh_state)


# -------------------------------------------------------------------------------------- comparing


def _refuse_others(saved: Mapping[str, Any], now: Mapping[str, Any], policy: str) -> None:
    """Refuse what cannot go on: other optimizers or other groups, and other schedules."""
    if policy == "reset_all":
        return
    remedy = "; on_resume: reset_all keeps the weights and starts optimizer and schedule anew"
    for what, before, after in (
        ("the optimizer", _names(saved["config"], "optimizer"), _names(now["config"], "optimizer")),
        ("the schedule", _names(saved["config"], "scheduler"), _names(now["config"], "scheduler")),
    ):
        if before == after or (what == "the schedule" and policy == "reset_scheduler"):
            continue
        other = "" if what == "the optimizer" else ", reset_scheduler the schedule alone"
        raise WiringError(
            f"{what} of the checkpoint is {listing(before)}, and the configuration says {listing(after)}{remedy}{other}"
        )
    for before_rows, after_rows in zip(saved["groups"], now["groups"], strict=False):
        before_groups = {row["group"]: row["parameters"] for row in before_rows}
        after_groups = {row["group"]: row["parameters"] for row in after_rows}
        if list(before_groups.values()) == list(after_groups.values()):
            continue
        changed = [
            name for name in {**before_groups, **after_groups} if before_groups.get(name) != after_groups.get(name)
        ]
        group = changed[0] if changed else next(iter(after_groups))
        was, is_ = set(before_groups.get(group, ())), set(after_groups.get(group, ()))
        moved = "; ".join(
            f"{word} {listing(sorted(names)[:5])}"
            for word, names in (("without", was - is_), ("with", is_ - was))
            if names
        )
        raise WiringError(
            f"the checkpoint's parameter groups are {listing(before_groups)}, now there are {listing(after_groups)}; "
            f"group {group} is now {moved or 'elsewhere'}{remedy}"
        )


def _names(config: Mapping[str, Any], kind: str) -> list[str]:
    """The canonical names of the optimizers, or schedules, of a configuration."""
    from optplug.registry import registry

    given = config.get(kind)
    if kind == "optimizer":
        given = given["combine"] if isinstance(given, dict) and "combine" in given else given
        entries = given if isinstance(given, list) else [given]
    else:
        several = config.get("optimizer")
        entries = [entry.get("scheduler") for entry in several] if isinstance(several, list) else [given]
    names = []
    for entry in entries:
        name = entry.get("name", "warmup") if isinstance(entry, dict) else "none"
        try:
            names.append(registry.find(kind, name).name)
        except LookupError:  # a plugin that has gone
            names.append(name)
    return names


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], policy: str) -> Iterator[str]:
    """What the configuration and the checkpoint say differently, and which counts."""
    counts = {"keep": "the checkpoint's", "override_hparams": "the configuration's"}
    before, after = dict(_flat(saved["config"])), dict(_flat(now["config"]))
    for rows, fresh in zip(saved["groups"], now["groups"], strict=False):
        for row, other in zip(rows, fresh, strict=False):
            for key in ("lr", "weight_decay"):
                before[f"group {row['group']}.{key}"] = row[key]
                after[f"group {other['group']}.{key}"] = other[key]
    for place in {**before, **after}:
        if before.get(place) != after.get(place):
            which = counts.get(policy, "the configuration's" if place.startswith("scheduler") else "the checkpoint's")
            which = "the configuration's" if policy == "reset_all" else which
            shown = [repr(values[place]) if place in values else "the default" for values in (after, before)]
            yield f"{place} is {shown[0]} in the configuration and {shown[1]} in the checkpoint: {which} counts"


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value
