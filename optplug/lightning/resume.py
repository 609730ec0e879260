"""Resuming from a checkpoint: which values come from the checkpoint, and which from the configuration (`on_resume`).

`prepare_resume` compares the checkpoint with the configuration before Lightning restores it. `finish_resume` applies
the policy afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from optplug.config.form import BASE_KEY, ON_NONFINITE, PATIENCE_UNITS, RESTARTING
from optplug.errors import Loc, WiringError, listing, loc_text, short_list
from optplug.lightning._compat import finetuning_callbacks, repeats_batches
from optplug.lightning.checkpoint_metadata import collect_metadata, saved_metadata
from optplug.lightning.fit_setup import MonitoredMetric
from optplug.lightning.fit_state import FitState, ResumeState
from optplug.lightning.frozen_on_resume import adapt_frozen_parameters, has_groups
from optplug.optim.wrappers import bases
from optplug.registry import registry
from optplug.schedulers.adapters import adapter_for
from optplug.schedulers.lr import GROUP_LR_KEYS, GROUP_MOMENTUM_KEYS, set_lr


def prepare_resume(
    trainer: Any, state: FitState, checkpoint: dict[str, Any] | None, *, sharded: bool = False
) -> ResumeState | None:
    """Compare the checkpoint with the configuration, before Lightning restores optimizers and schedulers.

    Args:
        trainer: the Lightning trainer, with the optimizers and schedulers of the configuration.
        state: the state of the fit.
        checkpoint: the checkpoint to resume from, or None. For the policies that reset something, the states that must
            not be restored are removed from it.
        sharded: whether the strategy has already restored the optimizers itself.

    Returns:
        The data for `finish_resume`; None without a checkpoint, or if optplug configured no optimizer.

    Raises:
        WiringError: the optimizers, parameter groups or schedules of the checkpoint differ from the configuration, and
            the policy keeps them; or the policy is impossible with the trainer's strategy.
    """
    found = state.configured(trainer)
    if not found or not checkpoint:
        return None
    policy = found[0][1].config.on_resume
    if sharded and policy != "keep":
        raise WiringError(
            f"{policy} is not supported with {type(trainer.strategy).__name__}, which restores checkpoints "
            "itself: leave on_resume out, or start from the weights alone",
            loc=("on_resume",),
        )
    saved = saved_metadata(checkpoint)
    resume = ResumeState(policy, saved.get("config", {}), saved.get("plateau_histories", []))
    current = collect_metadata(trainer, state)
    if policy != "reset_all" and not sharded:
        saved = adapt_frozen_parameters(trainer, state, checkpoint, saved, current)
    if saved.get("config"):
        _check_compatible(trainer, saved, current, policy)
        resume.messages = list(_describe_differences(saved, current, policy))
    elif policy != "reset_all":  # a checkpoint of another program
        _check_optimizer_count(trainer, checkpoint)
        resume.load_hooks = [
            optimizer.register_load_state_dict_pre_hook(_check_group_sizes)
            for optimizer, _ in found
            if hasattr(optimizer, "register_load_state_dict_pre_hook")
        ]
    resume.configured_groups = [
        [{key: copy.copy(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]
    resume.configured_schedules = [
        copy.deepcopy(entry.scheduler.state_dict()) for entry in trainer.lr_scheduler_configs
    ]
    if policy == "reset_all":
        checkpoint["optimizer_states"] = []
    if policy in RESTARTING:
        checkpoint["lr_schedulers"] = []  # Lightning restores only the states in this list
        # The new plateau continues the counts of values and cuts. The metric and the unit belong to the old plateau.
        for history in resume.saved_histories:
            for key in ("monitor", "mode", "source", "patience_unit"):
                history.pop(key, None)
    return resume


def repeats_observed_validation(trainer: Any, saved: Mapping[str, Any]) -> bool:
    """Whether a validation before the first batch repeats one whose values the schedulers of the checkpoint had.

    Args:
        trainer: the Lightning trainer.
        saved: optplug's metadata in the checkpoint (`saved_metadata`). A checkpoint without it is of Lightning alone,
            which steps a plateau scheduler after it has saved the checkpoint.
    """
    return repeats_batches(trainer) and not saved.get("in_validation", saved.get("validation_due", True))


def lost_values(trainer: Any, saved: Mapping[str, Any]) -> dict[str, str]:
    """Find the metric values that a plateau misses because Lightning does not repeat the code that logs them.

    Args:
        trainer: the Lightning trainer, in the epoch in which the training resumes.
        saved: optplug's metadata in the checkpoint (`saved_metadata`).

    Returns:
        By the moment at which the plateau would have received the value (see `PlateauObserver`), the reason.
    """
    reasons, repeats = {}, repeats_batches(trainer)
    if saved.get("validation_due") and not repeats:
        reasons["validation"] = (
            "the checkpoint was written after a batch and before the validation that was due was complete, and "
            "Lightning does not run this validation when it resumes"
        )
    if not saved.get("epoch_over", True):
        reasons["epoch"] = (
            f"the checkpoint was written within epoch {trainer.current_epoch}, and the values logged in this epoch "
            "before it are lost"
        )
    if saved.get("late_due") and (saved.get("epoch_over", True) or not repeats):
        reasons["late"] = (
            "the checkpoint was written before the module's on_train_epoch_end, and Lightning does not call this hook "
            "again when it resumes"
        )
    return reasons


def finish_resume(trainer: Any, state: FitState) -> None:
    """Apply the policy after Lightning has restored optimizers and schedulers.

    Args:
        trainer: the Lightning trainer.
        state: the state of the fit, with the result of `prepare_resume`. Messages for the summary are added to it.
    """
    resume = state.resume
    if resume is None:
        return
    for hook in resume.load_hooks:
        hook.remove()
    resume.load_hooks = []
    if resume.policy == "keep":
        _restore_plans(trainer, state, resume)
    elif resume.policy == "reset_scheduler":
        _reset_lrs(trainer, resume)
    elif resume.policy == "override_hparams":
        _override_hyperparameters(trainer, resume)


def _reset_lrs(trainer: Any, resume: ResumeState) -> None:
    """Set the learning rates of the configuration, for schedules that start again."""
    for optimizer, groups in zip(trainer.optimizers, resume.configured_groups, strict=True):
        for group, configured in zip(optimizer.param_groups, groups, strict=False):
            if configured.get("lr") is not None:
                set_lr(group, float(configured["lr"]))
            if "initial_lr" in configured:
                group["initial_lr"] = configured["initial_lr"]


def _override_hyperparameters(trainer: Any, resume: ResumeState) -> None:
    """Give the restored optimizers and schedulers the hyperparameters and settings of the configuration.

    A learning rate that a schedule has reached is scaled by the ratio of the new base learning rate to the old one.
    """
    base_lrs: dict[int, tuple[list[float], list[float]]] = {}  # by id of the optimizer: new values, old values
    entries = trainer.lr_scheduler_configs
    for optimizer, groups in zip(trainer.optimizers, resume.configured_groups, strict=True):
        bases, old_bases = base_lrs.setdefault(id(optimizer), ([], []))
        # The bounds of a schedule between learning rates of its own are options of the groups too.
        names = _hyperparameter_names(optimizer) - {"lr"} | {*GROUP_LR_KEYS, *GROUP_MOMENTUM_KEYS} - {"initial_lr"}
        # A finetuning callback may have added further groups. They have no configuration and stay as they are.
        for group, configured in zip(optimizer.param_groups, groups, strict=False):
            if "initial_lr" not in group and any(entry.scheduler.optimizer is optimizer for entry in entries):
                # torch's plateau saves no base learning rate, and the cuts so far cannot be separated from it.
                resume.messages.append(
                    f"the checkpoint has no base learning rate: the learning rate stays at {float(group['lr']):g}"
                )
                configured = {**configured, "initial_lr": group["lr"]}
            before, after = _base_lr(group), _base_lr(configured)
            group.update({key: value for key, value in configured.items() if key in names})
            if "initial_lr" in group:
                group["initial_lr"] = after
            bases.append(after)
            old_bases.append(before)
    for entry, configured_state in zip(entries, resume.configured_schedules, strict=False):
        bases, old_bases = base_lrs[id(entry.scheduler.optimizer)]
        if not adapter_for(entry.scheduler).apply_settings(configured_state, bases, old_bases):
            name = type(entry.scheduler).__name__
            resume.messages.append(f"the settings of {name} come from the checkpoint: optplug cannot replace them")
    for optimizer in trainer.optimizers:
        if not any(entry.scheduler.optimizer is optimizer for entry in entries):
            for group, base in zip(optimizer.param_groups, base_lrs[id(optimizer)][0], strict=False):
                if not math.isnan(base) and group.get("lr") is not None:
                    set_lr(group, base)


def _base_lr(group: Mapping[str, Any]) -> float:
    """The learning rate of a group without warmup and schedule; NaN if the optimizer sets its learning rate itself."""
    lr = group.get("initial_lr", group.get("lr"))
    return math.nan if lr is None else float(lr)


def _hyperparameter_names(optimizer: Any) -> set[str]:
    """The names of the constructor arguments, and of those of the base of an optimizer that wraps another one.

    Parameter groups may also hold counters under other names.
    """
    names: set[str] = set()
    for member in getattr(optimizer, "members", [optimizer]):
        parameters = inspect.signature(type(member)).parameters.values()
        accepts_any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names |= set(member.defaults) if accepts_any_keyword else {p.name for p in parameters}
        for base in bases(member):
            names |= _hyperparameter_names(base)
    return names


def _restore_plans(trainer: Any, state: FitState, resume: ResumeState) -> None:
    """Restore the stepping plans of the checkpoint; they are not part of any scheduler's state."""
    config = resume.saved_config
    leading = [_leading(list(_saved_schedules(entry).values())) for entry in _saved_entries(config)]
    histories = iter(resume.saved_histories)
    for entry, saved in zip(trainer.lr_scheduler_configs, [one for one in leading if one], strict=False):
        managed = next((managed for managed in state.managed if managed.entry is entry), None)
        if managed is None:
            continue
        if managed.plan.interval != "validation" and "interval" in saved:
            managed.plan = replace(managed.plan, interval=saved["interval"], frequency=saved["frequency"])
            continue
        managed.plan = replace(
            managed.plan,
            patience_unit=saved.get("patience_unit", PATIENCE_UNITS[0]),
            on_nonfinite=saved.get("on_nonfinite", ON_NONFINITE[0]),
        )
        history = next(histories, {})
        if managed.metric is not None and history.get("monitor") is not None:
            managed.metric, managed.metric_is_logged = _saved_metric(managed.metric, history), False


def _saved_entries(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The mappings of a saved configuration that have the schedules of an optimizer: one for each optimizer."""
    optimizer = config.get("optimizer")
    return optimizer if isinstance(optimizer, list) else [config]


def _saved_schedules(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The schedules of an optimizer in a saved configuration, by the name of the group rule; that of all others first.

    Args:
        entry: as returned by `_saved_entries`.
    """
    optimizer = entry.get("optimizer")
    members = optimizer["combine"] if isinstance(optimizer, dict) and "combine" in optimizer else [entry]
    rules = [rule for member in members for rule in member.get("param_groups", ()) if "scheduler" in rule]
    return {"": entry.get("scheduler"), **{rule["name"]: rule["scheduler"] for rule in rules}}


def _leading(schedules: list[Any]) -> Any:
    """The saved schedule that says when all are stepped, as `OptimizerSetup.leading_schedule`; None without one."""
    given = [one for one in schedules if one]
    return next((one for one in given if "name" in one), next(iter(given), None))


def _saved_metric(current: MonitoredMetric, history: Mapping[str, Any]) -> MonitoredMetric:
    """The metric that the plateau of the checkpoint monitored; its best value is a value of this metric."""
    same = current.monitor in (None, history["monitor"]) and current.mode in (None, history["mode"])
    source = history["source"] if same else "the checkpoint"
    mode_source = (same and current.mode_source) or "the checkpoint"
    return MonitoredMetric(history["monitor"], history["mode"], source, mode_source)


# ------------------------------------------------------------ checkpoint and configuration compared


_RESET_REMEDY = "on_resume: reset_all keeps the weights and restarts optimizer and schedule"


def _check_optimizer_count(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint without metadata has as many optimizers as the trainer.

    Raises:
        WiringError: it has another number of optimizers.
    """
    saved, current = len(checkpoint.get("optimizer_states") or ()), len(trainer.optimizers)
    if saved not in (0, current):
        raise WiringError(
            f"the checkpoint has {saved} optimizers, but the configuration has {current}; {_RESET_REMEDY}"
        )


def _check_group_sizes(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    """Check that a state dict without metadata has the parameter groups of an optimizer.

    It is called when Lightning loads the state dict: until then, callbacks and modules may add groups.

    Raises:
        WiringError: the number of groups or the number of their parameters differs.
    """
    if not has_groups(state_dict):
        return
    saved, current = (
        [len(group["params"]) for group in groups] for groups in (state_dict["param_groups"], optimizer.param_groups)
    )
    if saved != current:
        names = listing(str(group.get("name", i)) for i, group in enumerate(optimizer.param_groups))
        raise WiringError(
            f"the parameter groups of the checkpoint have {listing(map(str, saved))} parameters, but the groups of the "
            f"configuration ({names}) have {listing(map(str, current))}; {_RESET_REMEDY}"
        )


def _check_compatible(trainer: Any, saved: Mapping[str, Any], current: Mapping[str, Any], policy: str) -> None:
    """Check that the optimizers, schedules and parameter groups of the checkpoint are those of the configuration.

    Args:
        trainer: the Lightning trainer.
        saved: the metadata of the checkpoint.
        current: the metadata of the configuration.
        policy: one of `optplug.config.form.ON_RESUME`. What it resets is not compared.

    Raises:
        WiringError: something differs.
    """
    if policy == "reset_all":
        return
    remedy = f"; {_RESET_REMEDY}"
    configs = saved["config"], current["config"]
    optimizers = [_canonical_names(config, "optimizer") for config in configs]
    schedules = [_canonical_names(config, "scheduler") for config in configs]
    classes = [saved.get("classes", current["classes"]), current["classes"]]
    comparisons = [("the optimizer", *optimizers, remedy), ("the optimizer", *classes, remedy)]
    if policy != "reset_scheduler":
        remedies = f"{remedy}, reset_scheduler restarts the schedule alone{_rule_name_hint(*schedules)}"
        comparisons.append(("the schedule", *schedules, remedies))
    for what, before, after, remedies in comparisons:
        if before != after:
            raise WiringError(
                f"{what} of the checkpoint is {short_list(before)}, but the configuration has {short_list(after)}"
                f"{remedies}"
            )
    for before_rows, after_rows in zip(saved["groups"], current["groups"], strict=False):
        before_groups, after_groups = _parameters_by_group(before_rows), _parameters_by_group(after_rows)
        names = list(after_groups)
        # The groups that a finetuning callback adds when it unfreezes layers do not exist yet.
        compared = list(before_groups.values())
        compared = compared[: len(names)] if finetuning_callbacks(trainer) else compared
        if compared == list(after_groups.values()):
            continue
        changed = [
            name for name in {**before_groups, **after_groups} if before_groups.get(name) != after_groups.get(name)
        ]
        group = changed[0] if changed else names[0]
        removed = sorted({*before_groups.get(group, ())} - {*after_groups.get(group, ())})
        added = sorted({*after_groups.get(group, ())} - {*before_groups.get(group, ())})
        changes = [
            f"{words} {short_list(parameters, limit=5)}"
            for words, parameters in (("no longer has", removed), ("now has", added))
            if parameters
        ]
        difference = f"group {group} {' and '.join(changes)}" if changes else "the order is different"
        raise WiringError(
            f"the parameter groups of the checkpoint are {short_list(before_groups)}, but the configuration has "
            f"{short_list(after_groups)}; {difference}{remedy}"
        )


def _rule_name_hint(before: list[str], after: list[str]) -> str:
    """What to do if only the names of group rules with a schedule differ; else empty."""
    schedules = [[name.partition(" of ")[0] for name in names] for names in (before, after)]
    if schedules[0] != schedules[1]:
        return ""
    return "; if a rule of param_groups was only renamed, give it its old name with the key name"


def _parameters_by_group(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The names of the parameters of each group. Rows in parentheses list parameters without a group."""
    return {row["group"]: row["parameters"] for row in rows if not row["group"].startswith("(")}


def _canonical_names(config: Mapping[str, Any], kind: str) -> list[str]:
    """The canonical names of the optimizers or of the schedules (`kind`) of a saved configuration."""
    given = config.get(kind)
    if kind == "optimizer":
        given = given["combine"] if isinstance(given, dict) and "combine" in given else given
        entries = [("", entry) for entry in (given if isinstance(given, list) else [given])]
    else:
        entries = [pair for entry in _saved_entries(config) for pair in _saved_schedules(entry).items()]
    names = []
    for rule, entry in entries:
        name = entry.get("name", "constant") if isinstance(entry, dict) else "none"
        with contextlib.suppress(LookupError):  # the plugin is no longer installed, or there is no name
            name = registry.resolve(kind, name).name
        for key, word in (("fallback", "with"), (BASE_KEY, "around")) if kind == "optimizer" else ():
            if isinstance(entry, dict) and key in entry:
                name = f"{name} {word} {listing(_canonical_names({kind: entry[key]}, kind))}"
        of_rule = f" of {rule}" if rule else ""
        names.append(f"{name}{' with a warmup' if isinstance(entry, dict) and 'warmup' in entry else ''}{of_rule}")
    return names


def _describe_differences(saved: Mapping[str, Any], current: Mapping[str, Any], policy: str) -> Iterator[str]:
    """Describe each value that differs between configuration and checkpoint, and which of the two is used."""
    before, after = dict(_flatten(saved["config"])), dict(_flatten(current["config"]))
    titles: dict[str, str] = {}
    for values, tables in ((before, saved["groups"]), (after, current["groups"])):
        values.pop("on_resume", None)
        for i, rows in enumerate(tables):
            for j, row in enumerate(row for row in rows if not row["group"].startswith("(")):
                loc = f"{i}.{j}"
                values |= {f"{loc} lr": row["lr"], f"{loc} weight_decay": row["weight_decay"]}
                if values is after:
                    name = f"group {row['group']}"
                    titles[loc] = f"optimizer {i}, {name}" if len(tables) > 1 else name
    for loc in {**before, **after}:
        if before.get(loc) == after.get(loc):
            continue
        keeps = policy == "keep" or (policy == "reset_scheduler" and not re.search(r"scheduler|\blr$", loc))
        source = "checkpoint" if keeps else "configuration"
        shown = [repr(values[loc]) if loc in values else "the default" for values in (after, before)]
        head, _, option = loc.partition(" ")
        title = f"{titles.get(head, head)}: {option}" if option else loc
        yield (
            f"{title} is {shown[0]} in the configuration and {shown[1]} in the checkpoint: "
            f"the value of the {source} is used"
        )


def _flatten(value: Any, loc: Loc = ()) -> Iterator[tuple[str, Any]]:
    """The values of nested mappings and lists of mappings, each with its location as text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, (*loc, str(key)))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for i, inner in enumerate(value):
            yield from _flatten(inner, (*loc, i))
    else:
        yield loc_text(loc), value
