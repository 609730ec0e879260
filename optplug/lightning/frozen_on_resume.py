"""Checkpoints whose optimizers hold other frozen parameters than those of the trainer.

Checkpoints of earlier versions of optplug, and of optimizers over the parameters that require gradients, lack the
frozen parameters. A frozen parameter is not trained, so that it can be added to such a checkpoint or removed from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optplug.lightning.fit_state import FitState

Names = list[list[str]]
"""The names of the parameters of each group."""


@dataclass(frozen=True)
class Adaptation:
    """How the parameter groups of a checkpoint become those of an optimizer.

    Attributes:
        before: the parameters of the checkpoint's groups.
        after: the parameters of the adapted groups.
        sources: for each adapted group, the index of its group in the checkpoint; None for a group of frozen parameters
            that the checkpoint lacks.
    """

    before: Names
    after: Names
    sources: list[int | None]

    def state(self, state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Adapt the state dict of an optimizer.

        Args:
            state: the state dict.
            groups: the current parameter groups of the optimizer.
        """
        saved = state["param_groups"]
        indices = {
            name: index
            for group, names in zip(saved, self.before, strict=True)
            for index, name in zip(group["params"], names, strict=True)
        }
        unused = itertools.count(max(indices.values(), default=-1) + 1)
        adapted = []
        for i, (names, source) in enumerate(zip(self.after, self.sources, strict=True)):
            options = _scheduled_like(groups[i], saved[0]) if source is None else dict(saved[source])
            options.pop("param_names", None)
            params = [indices[name] if name in indices else next(unused) for name in names]
            adapted.append({**options, "params": params})
        held = {index for group in adapted for index in group["params"]}
        states = {index: one for index, one in state["state"].items() if index in held}
        return {**state, "state": states, "param_groups": adapted}

    def rows(self, saved: list[dict[str, Any]], current: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Adapt the table of parameter groups in the checkpoint's metadata."""
        pairs = enumerate(zip(self.after, self.sources, strict=True))
        return [
            {**(current[i] if source is None else saved[source]), "parameters": names} for i, (names, source) in pairs
        ]

    def lists(self, value: Any, configured: Any) -> Any:
        """Adapt the lists with one value per group in the state of a scheduler.

        Args:
            value: the state in the checkpoint, or a part of it.
            configured: the same part of the state before the checkpoint is loaded.
        """
        if isinstance(value, dict) and isinstance(configured, dict):
            return {key: self.lists(one, configured.get(key)) for key, one in value.items()}
        if isinstance(value, list) and isinstance(configured, list):
            if len(self.before) == len(value) != len(configured) == len(self.after):
                return [configured[i] if source is None else value[source] for i, source in enumerate(self.sources)]
            return [self.lists(*pair) for pair in itertools.zip_longest(value, configured)][: len(value)]
        return value


def _scheduled_like(group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A group that the checkpoint lacks, with a learning rate as if the schedule had scheduled it from the start."""
    base = float(saved.get("initial_lr", 0.0))
    if not base or "initial_lr" not in group:
        return dict(group)
    return {**group, "lr": group["initial_lr"] * (float(saved["lr"]) / base)}


def adapt_frozen_parameters(
    trainer: Any, state: FitState, checkpoint: dict[str, Any], saved: Mapping[str, Any], current: Mapping[str, Any]
) -> dict[str, Any]:
    """Change a checkpoint as if its optimizers had held the same frozen parameters as the trainer's optimizers.

    Nothing is changed for an optimizer whose groups differ in parameters that require gradients.

    Args:
        trainer: the Lightning trainer.
        state: the state of the fit.
        checkpoint: the checkpoint. The states of its optimizers and schedulers are replaced.
        saved: optplug's metadata in the checkpoint; empty if there is none.
        current: the metadata of the configuration.

    Returns:
        The metadata of the changed checkpoint.
    """
    states, schedules = list(checkpoint.get("optimizer_states", ())), list(checkpoint.get("lr_schedulers", ()))
    tables = list(saved.get("groups") or [None] * len(states))
    found = state.configured(trainer)
    if not len(states) == len(tables) == len(found):
        return dict(saved)
    now_frozen = {id(p) for p in trainer.lightning_module.parameters() if not p.requires_grad}
    for i, (optimizer, configured) in enumerate(found):
        if not has_groups(states[i]):
            continue
        rows, frozen = current["groups"][i], {p.name for p in configured.parameter_infos if p.id in now_frozen}
        adaptation = _adaptation(states[i], tables[i], rows, frozen)
        if adaptation is None or adaptation.before == adaptation.after:
            continue
        states[i] = adaptation.state(states[i], optimizer.param_groups)
        tables[i] = tables[i] and adaptation.rows(_with_group(tables[i]), _with_group(rows))
        for j, entry in enumerate(trainer.lr_scheduler_configs[: len(schedules)]):
            if entry.scheduler.optimizer is optimizer:
                schedules[j] = adaptation.lists(schedules[j], entry.scheduler.state_dict())
    checkpoint["optimizer_states"], checkpoint["lr_schedulers"] = states, schedules
    return {**saved, "groups": tables} if saved else {}


def has_groups(state: Mapping[str, Any]) -> bool:
    """Whether the state dict of an optimizer has torch's form. That of an optimizer that wraps another one may not."""
    return "state" in state and "param_groups" in state


def _with_group(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table that are groups. Rows in parentheses list parameters without a group."""
    return [row for row in rows if not row["group"].startswith("(")]


def _adaptation(
    state: Mapping[str, Any],
    saved_rows: list[dict[str, Any]] | None,
    rows: list[dict[str, Any]],
    frozen: Collection[str],
) -> Adaptation | None:
    """The adaptation of an optimizer's state dict; None if its groups differ in parameters that are not frozen."""
    sizes, held = (
        [len(group["params"]) for group in state["param_groups"]],
        [r["parameters"] for r in _with_group(rows)],
    )
    if saved_rows is None:
        names = _names_by_order(sizes, held, frozen)
    else:
        names = [row["parameters"] for row in _with_group(saved_rows)]
    if names is None or [len(one) for one in names] != sizes:
        return None
    sources: list[int | None] = []
    position = 0
    for one in held:
        trained = [name for name in one if name not in frozen]
        if position < len(names) and [name for name in names[position] if name not in frozen] == trained:
            sources.append(position)
            position += 1
        elif trained:
            return None
        else:
            sources.append(None)
    # Callbacks may add the further groups of the checkpoint before Lightning loads it.
    after = [*held, *names[position:]]
    is_unique = len({name for one in after for name in one}) == sum(map(len, after))
    return Adaptation(names, after, [*sources, *range(position, len(names))]) if is_unique else None


def _names_by_order(sizes: Sequence[int], held: Names, frozen: Collection[str]) -> Names | None:
    """The parameters of groups of known sizes: those of the optimizer's groups, with or without the frozen ones.

    Returns:
        The names; None if the sizes are others.
    """
    remaining, names = list(sizes), []
    for one in held:
        trained = [name for name in one if name not in frozen]
        fitting = [candidate for candidate in (one, trained) if candidate and remaining[:1] == [len(candidate)]]
        if fitting:
            names.append(fitting[0])
            remaining.pop(0)
        elif trained:
            return None
    return None if remaining else names
