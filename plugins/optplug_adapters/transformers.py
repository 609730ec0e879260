"""The learning-rate schedules of transformers: functions that return a scheduler of torch."""

from __future__ import annotations

from typing import Any

from optplug import SchedulerSpec, hookimpl
from optplug_adapters.packages import Entry, entry, schedulers

_WARMUP: dict[str, Any] = {"num_warmup_steps": 2}


@hookimpl
def optplug_schedulers() -> list[SchedulerSpec]:
    return schedulers(
        "transformers",
        _entry("get_constant_schedule", "constant", "the base learning rate", {}, lengths=()),
        _entry(
            "get_constant_schedule_with_warmup",
            "constant_with_warmup",
            "a linear warmup, then the base learning rate",
            _WARMUP,
        ),
        _entry(
            "get_inverse_sqrt_schedule",
            "inverse_sqrt",
            "a linear warmup, then the inverse of the square root of the step",
            _WARMUP,
            lengths=("num_warmup_steps", "timescale"),
        ),
        _with_length("get_linear_schedule_with_warmup", "linear_with_warmup", "a linear decay to 0"),
        _with_length("get_cosine_schedule_with_warmup", "cosine_with_warmup", "half a cosine to 0"),
        _with_length(
            "get_cosine_with_hard_restarts_schedule_with_warmup",
            "cosine_with_restarts",
            "half a cosine to 0, num_cycles times",
        ),
        _with_length(
            "get_polynomial_decay_schedule_with_warmup", "polynomial_with_warmup", "a polynomial decay to lr_end"
        ),
        _with_length(
            "get_cosine_with_min_lr_schedule_with_warmup",
            "cosine_with_min_lr",
            "half a cosine to min_lr",
            {"min_lr_rate": 0.1},
        ),
        _with_length(
            "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
            "cosine_warmup_with_min_lr",
            "half a cosine to min_lr, after a warmup from warmup_lr_rate",
            {"min_lr_rate": 0.1},
        ),
        _entry(
            "get_wsd_schedule",
            "warmup_stable_decay",
            "a warmup, the base learning rate, and a decay in the last steps",
            {**_WARMUP, "num_decay_steps": 3, "num_training_steps": 10},
            length="num_training_steps",
            lengths=("num_warmup_steps", "num_stable_steps", "num_decay_steps"),
            final_lengths=("num_decay_steps",),
        ),
        entry(
            "GreedyLR",
            "a higher or lower learning rate by the trend of a metric",
            "metric",
            name="greedy_lr",
            target="optplug_adapters.transformers_greedy:GreedyLR",
        ),
        module="transformers.optimization",
        source="optimization.py",
    )


def _with_length(function: str, name: str, decay: str, case: dict[str, Any] | None = None) -> Entry:
    """Describe a schedule with a warmup and a decay until the end of the training."""
    case = {**_WARMUP, "num_training_steps": 10, **(case or {})}
    return _entry(function, name, f"a linear warmup, then {decay}", case, length="num_training_steps")


def _entry(
    function: str,
    name: str,
    summary: str,
    case: dict[str, Any],
    *,
    lengths: tuple[str, ...] = ("num_warmup_steps",),
    **fields: Any,
) -> Entry:
    return entry(function, summary, name=name, interval="step", lengths=lengths, cases=(case,), **fields)
