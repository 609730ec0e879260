"""What a run that goes on from a checkpoint takes from it, and what from the configuration (`on_resume`)."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optplug.config.error_collector import join_loc
from optplug.config.model import ON_NONFINITE, PATIENCE_UNITS
from optplug.errors import WiringError, listing
from optplug.lightning.checkpoint_metadata import record, saved_metadata
from optplug.lightning.stepping_plan import MonitoredMetric, optimizer_choices, stepping_plans
from optplug.schedulers.lr import set_lr
from optplug.schedulers.rebase import overruled


@dataclass
class ResumeState:
    """A run that goes on from a checkpoint.

    Attributes:
        policy: of `optplug.config.model.ON_RESUME`. config: the checkpoint's configuration; empty where it keeps none.
        groups: by optimizer, the options of its groups as the configuration has them. schedules: by scheduler, its
            state.
        audits: what its plateaus have heard. lines: what to say about it.
    """

    policy: str
    config: dict[str, Any] = field(default_factory=dict)
    histories: list[dict[str, Any]] = field(default_factory=list)
    groups: list[list[dict[str, Any]]] = field(default_factory=list)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def prepare_resume(trainer: Any, checkpoint: dict[str, Any] | None, *, sharded: bool = False) -> ResumeState | None:
    """Compare the checkpoint with the configuration, before anything is restored; None where there is no checkpoint.

    Args:
        trainer: with its optimizers and schedules. checkpoint: what it resumes from.
        sharded: whether the strategy has restored the optimizers by itself.

    Raises:
        WiringError: the checkpoint's optimizers, groups or schedules are not the configuration's, and the policy is to
        go on with them; a policy that the strategy makes impossible.
    """
    chosen = [optimizer_choices[optimizer] for optimizer in trainer.optimizers if optimizer in optimizer_choices]
    if not chosen or not checkpoint:
        return None
    policy = chosen[0].config.on_resume
    if sharded and policy != "keep":
        raise WiringError(
            f"on_resume: {policy} cannot be had with {type(trainer.strategy).__name__}, which restores its "
            "checkpoints by itself: leave on_resume out, or start from the weights alone"
        )
    saved = saved_metadata(checkpoint)
    found = ResumeState(policy, saved.get("config", {}), saved.get("audits", []))
    if saved.get("config"):
        now = record(trainer)
        _refuse_others(trainer, saved, now, policy)
        found.lines = list(_differences(saved, now, policy))
    found.groups = [
        [{key: copy.copy(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]
    found.schedules = [copy.deepcopy(entry.scheduler.state_dict()) for entry in trainer.lr_scheduler_configs]
    if policy == "reset_all":
        checkpoint["optimizer_states"] = []
    if policy in ("reset_all", "reset_scheduler"):
        checkpoint["lr_schedulers"] = []  # Lightning restores as many as there are
        for (
            history
        ) in found.histories:  # what was done stays counted; what was heard, and its unit, are the old plateau's
            for key in ("monitor", "mode", "source", "unit"):
                history.pop(key, None)
    return found


def lost_values(saved: Mapping[str, Any], epoch: int) -> dict[str, str]:
    """Why a plateau misses a value that Lightning does not repeat, by the moment at which it would hear it.

    Args:
        saved: by the checkpoint. epoch: in which the training goes on.
    """
    found = {}
    if saved.get("validation_due"):
        found["validation"] = (
            "the checkpoint was written after a batch and before the validation that was due, which Lightning does not "
            "run when it resumes"
        )
    if not saved.get("epoch_over", True):
        found["epoch"] = f"the checkpoint was written within epoch {epoch}, and what was logged in it is gone"
    if saved.get("late_due"):
        found["late"] = (
            "the checkpoint was written before the module's on_train_epoch_end, which Lightning does not repeat"
        )
    return found


def finish_resume(trainer: Any, found: ResumeState) -> None:
    """Put the configuration's values where the policy wants them; optimizers and schedules are restored by now."""
    if found.policy == "keep":
        _keep_plans(trainer, found)
    if found.policy == "reset_scheduler":
        for optimizer, groups in zip(trainer.optimizers, found.groups, strict=True):
            for group, fresh in zip(optimizer.param_groups, groups, strict=False):
                set_lr(group, float(fresh["lr"]))
                if "initial_lr" in fresh:
                    group["initial_lr"] = fresh["initial_lr"]
    if found.policy != "override_hparams":
        return
    rates: dict[int, tuple[list[float], list[float]]] = {}
    entries = trainer.lr_scheduler_configs
    for optimizer, groups in zip(trainer.optimizers, found.groups, strict=True):
        bases, ratios = rates.setdefault(id(optimizer), ([], []))
        options = _options(optimizer) - {"lr"}
        # A callback that thaws layers may have added groups of its own: these stay as they are.
        for group, fresh in zip(optimizer.param_groups, groups, strict=False):
            if "initial_lr" not in group and any(entry.scheduler.optimizer is optimizer for entry in entries):
                # A plateau's checkpoint of somebody else's: what cuts have made of the rate cannot be told.
                found.lines.append(f"the checkpoint does not tell its base learning rate: {float(group['lr']):g} stays")
                fresh = {**fresh, "initial_lr": group["lr"]}
            before = float(group.get("initial_lr", group["lr"]))
            after = float(fresh.get("initial_lr", fresh["lr"]))
            group.update({key: value for key, value in fresh.items() if key in options})
            if "initial_lr" in group:
                group["initial_lr"] = after
            bases.append(after)
            ratios.append(after / before if before else 1.0)
    for entry, fresh_state in zip(entries, found.schedules, strict=False):
        bases, ratios = rates[id(entry.scheduler.optimizer)]
        if not overruled(entry.scheduler, fresh_state, bases, ratios):
            name = type(entry.scheduler).__name__
            found.lines.append(f"the numbers of {name}, which is not optplug's, stay the checkpoint's")
    for optimizer in trainer.optimizers:
        if not any(entry.scheduler.optimizer is optimizer for entry in entries):
            for group, base in zip(optimizer.param_groups, rates[id(optimizer)][0], strict=False):
                set_lr(group, base)


def _options(optimizer: Any) -> set[str]:
    """What an optimizer is told; its groups may also hold what it counts."""
    options: set[str] = set()
    for member in getattr(optimizer, "members", [optimizer]):
        parameters = inspect.signature(type(member)).parameters.values()
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        options |= set(member.defaults) if open_ended else {p.name for p in parameters}
    return options


def _keep_plans(trainer: Any, found: ResumeState) -> None:
    """What the owner does with a schedule is the checkpoint's too; no scheduler keeps it."""
    config = found.config
    several = config.get("optimizer") if isinstance(config.get("optimizer"), list) else None
    given = [entry.get("scheduler") for entry in several] if several is not None else [config.get("scheduler")]
    histories = iter(found.histories)
    for entry, saved in zip(trainer.lr_scheduler_configs, [one for one in given if one], strict=False):
        plan = stepping_plans.get(entry.scheduler)
        if plan is not None and plan.interval != "validation" and "interval" in saved:
            plan.interval, plan.frequency = saved["interval"], saved["frequency"]
        elif plan is not None:
            plan.unit = saved.get("patience_unit", PATIENCE_UNITS[0])
            plan.on_nonfinite = saved.get("on_nonfinite", ON_NONFINITE[0])
            heard = next(histories, {})
            if plan.monitored is not None and heard.get("monitor") is not None:
                plan.monitored = _kept(plan.monitored, heard)


def _kept(now: MonitoredMetric, heard: Mapping[str, Any]) -> MonitoredMetric:
    """The metric that a plateau heard before, which its best value is of."""
    same = now.monitor in (None, heard["monitor"]) and now.mode in (None, heard["mode"])
    return MonitoredMetric(heard["monitor"], heard["mode"], heard["source"] if same else "the checkpoint", told=True)


# -------------------------------------------------------------------------------------- comparing


def _refuse_others(trainer: Any, saved: Mapping[str, Any], now: Mapping[str, Any], policy: str) -> None:
    """Refuse what cannot go on: other optimizers or other groups, and other schedules."""
    if policy == "reset_all":
        return
    remedy = "; on_resume: reset_all keeps the weights and starts optimizer and schedule anew"
    kinds = [
        ("the optimizer", _names(saved["config"], "optimizer"), _names(now["config"], "optimizer"), ""),
        ("the optimizer", saved.get("classes", now["classes"]), now["classes"], ""),
    ]
    if policy != "reset_scheduler":
        other = ", reset_scheduler the schedule alone"
        kinds.append(("the schedule", _names(saved["config"], "scheduler"), _names(now["config"], "scheduler"), other))
    for what, before, after, other in kinds:
        if before != after:
            raise WiringError(
                f"{what} of the checkpoint is {listing(before)}, and the configuration says {listing(after)}"
                f"{remedy}{other}"
            )
    for before_rows, after_rows in zip(saved["groups"], now["groups"], strict=False):
        before_groups, after_groups = _groups(before_rows), _groups(after_rows)
        names = list(after_groups)
        # Groups that a callback adds when it thaws layers are not there yet.
        thawing = any("BaseFinetuning" in [c.__name__ for c in type(cb).__mro__] for cb in trainer.callbacks)
        compared = list(before_groups.values())[: len(names)] if thawing else list(before_groups.values())
        if compared == list(after_groups.values()):
            continue
        changed = [
            name for name in {**before_groups, **after_groups} if before_groups.get(name) != after_groups.get(name)
        ]
        group = changed[0] if changed else names[0]
        was, is_ = set(before_groups.get(group, ())), set(after_groups.get(group, ()))
        moved = "; ".join(
            f"{word} {listing(sorted(members)[:5])}"
            for word, members in (("without", was - is_), ("with", is_ - was))
            if members
        )
        raise WiringError(
            f"the checkpoint's parameter groups are {listing(before_groups)}, now there are {listing(after_groups)}; "
            f"group {group} is now {moved or 'elsewhere'}{remedy}"
        )


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The parameters by group; rows in parentheses are about others."""
    return {row["group"]: row["parameters"] for row in rows if not row["group"].startswith("(")}


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
        name = entry.get("name", "constant") if isinstance(entry, dict) else "none"
        with contextlib.suppress(LookupError):  # a plugin that has gone, or no name
            name = registry.find(kind, name).name
        names.append(f"{name} with a warmup" if isinstance(entry, dict) and "warmup" in entry else name)
    return names


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], policy: str) -> Iterator[str]:
    """What the configuration and the checkpoint say differently, and which counts."""
    before, after = dict(_flat(saved["config"])), dict(_flat(now["config"]))
    titles: dict[str, str] = {}
    for found, tables in ((before, saved["groups"]), (after, now["groups"])):
        found.pop("on_resume", None)
        for i, rows in enumerate(tables):
            for j, row in enumerate(row for row in rows if not row["group"].startswith("(")):
                name = f"group {row['group']}" if found is after else None
                loc = f"{i}.{j}"
                found |= {f"{loc} lr": row["lr"], f"{loc} weight_decay": row["weight_decay"]}
                if name is not None:
                    titles[loc] = f"optimizer {i}, {name}" if len(tables) > 1 else name
    for loc in {**before, **after}:
        if before.get(loc) == after.get(loc):
            continue
        checkpoints = policy == "keep" or (policy == "reset_scheduler" and not re.search(r"scheduler|\blr$", loc))
        which = "the checkpoint's" if checkpoints else "the configuration's"
        shown = [repr(values[loc]) if loc in values else "the default" for values in (after, before)]
        head, _, option = loc.partition(" ")
        title = f"{titles.get(head, head)}: {option}" if option else loc
        yield f"{title} is {shown[0]} in the configuration and {shown[1]} in the checkpoint: {which} counts"


def _flat(value: Any, loc: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, join_loc(loc, str(key)))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, join_loc(loc, f"[{i}]"))
    else:
        yield loc, value
