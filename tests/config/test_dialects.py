"""Keys of other configuration formats: messages name the key of optplug."""

from __future__ import annotations

from typing import Any

import pytest

from optplug.config.build import parse_and_check
from optplug.errors import ConfigError, OptplugError

STEP = {"name": "step_lr", "step_size": 1}
COSINE = {"name": "cosine_annealing_lr", "T_max": 4}
PLATEAU = {"name": "reduce_lr_on_plateau"}


def messages(*args: Any, **options: Any) -> str:
    with pytest.raises(OptplugError) as caught:
        parse_and_check(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "key", ["sched", "lr_scheduler", "schedule", "lr_schedulers", "scheduler_config", "lr_policy", "sched_args"]
)
@pytest.mark.parametrize("value", [{"name": "NoamAnnealing"}, "step_lr"], ids=["mapping", "name"])
def test_schedule_inside_optimizer_names_the_key_scheduler(key: str, value: Any):
    message = messages({"name": "adamw", "lr": 2.0, key: value})
    assert f"adamw has no option {key!r}; the schedule is configured by scheduler, a key beside optimizer" in message
    assert "fused" not in message


def test_schedule_inside_entry_names_the_key_of_the_entry():
    entries = [{"name": "adam", "match": "a", "sched": STEP}, {"name": "sgd", "match": "b"}]
    assert messages(entries) == "optimizer[0].sched: adam has no option 'sched'; did you mean 'scheduler'?"


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("warmup_epochs", 1, "write warmup: {epochs: 1}"),
        ("num_warmup_epochs", 2, "write warmup: {epochs: 2}"),
        ("warmup_ratio", 0.1, "write warmup: {ratio: 0.1}"),
        ("warmup_proportion", 0.1, "write warmup: {ratio: 0.1}"),
        ("num_warmup_steps", 500, "write warmup_steps: 500"),
        ("warmup_updates", 500, "write warmup_steps: 500"),
        ("warmup_iters", 500, "write warmup_steps: 500"),
        ("warmup_start_lr", 1e-6, "write warmup: {steps: ..., start_factor: ...}"),
    ],
)
def test_warmup_keys_name_the_form_of_the_warmup(key: str, value: Any, hint: str):
    assert messages("adam", {**STEP, key: value}).endswith(f"step_lr has no argument {key!r}; {hint}") or (
        f"{hint}, which is linear" in messages("adam", {**STEP, key: value})
    )
    assert messages("adam", {key: value}).startswith(
        f"scheduler.{key}: needs a name; it has {key}; for a warmup {hint}"
    )
    assert f"; {hint}" in messages({"name": "adam", key: value})
    assert messages({"name": "adam", key: value}).endswith(" in scheduler")


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ({"name": "adam", "params": {"lr": 1}}, "; write the arguments beside name: {name: ..., lr: 1}"),
        ({"name": "adam", "kwargs": {"lr": 1}}, "; write the arguments beside name: {name: ..., lr: 1}"),
        ({"name": "adam", "init_args": {"lr": 1}}, "; write the arguments beside name: {name: ..., lr: 1}"),
        ({"name": "adam", "_target_": "torch.optim.Adam"}, "; the key name alone chooses the optimizer: omit _target_"),
        ({"name": "adam", "type": "AdamW"}, "; the key name alone chooses the optimizer: omit type"),
        ({"name": "adam", "_partial_": True}, "; omit it: optplug builds the object from its name"),
        ({"name": "adam", "wd": 0.1}, "; did you mean 'weight_decay'?"),
        ({"name": "adam", "base_lr": 0.1}, "; did you mean 'lr'?"),
        ({"name": "adam", "b2": 0.9}, "; did you mean 'betas'?"),
        ({"name": "adam", "lr:0.1": None}, "; write a space after the colon: lr: 0.1"),
        ({"name": "adam", "gradient_clip_val": 1}, "Trainer: write gradient_clip_val there"),
        ({"name": "adam", "paramwise_cfg": {"a": 1}}, "beside optimizer, for example param_groups: [no_decay]"),
        (
            {"_target_": "torch.optim.AdamW", "lr": 1},
            ": write {name: adamw, lr: ...}; optplug looks up registered names and does not import paths",
        ),
        ({"type": "AdamWW", "lr": 1}, "; did you mean 'name' instead of 'type'?"),
        ({"adam": {"lr": 1}}, "; write {name: adam, lr: ...}"),
        ({"optimizer": {"name": "adam"}}, "; write its keys one level up, directly in optimizer"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else "",
)
def test_optimizer_keys_of_other_formats(given: dict[str, Any], end: str):
    assert messages(given).endswith(end)


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ({**COSINE, "min_lr": 0}, "; did you mean 'eta_min'?"),
        ({**STEP, "decay_rate": 0.1}, "; did you mean 'gamma'?"),
        ({**COSINE, "max_steps": 5}, "; did you mean 'T_max'? Its value auto is the length of the training"),
        ({**STEP, "by_epoch": True}, "; did you mean 'interval', which is epoch or step?"),
        ({**PLATEAU, "metric": "val_loss"}, "; did you mean 'monitor'?"),
        ({**STEP, "metric": "val_loss"}, "; omit it: the scheduler takes no metric"),
        ({**PLATEAU, "strict": False}, "; omit it: a metric that is missing is an error"),
        ({"scheduler": STEP, "interval": "step"}, "; write its keys one level up, directly in scheduler"),
        (
            {"class_path": "torch.optim.lr_scheduler.StepLR"},
            ": write {name: step_lr, ...}; optplug looks up registered names and does not import paths",
        ),
        ([STEP], "; an optimizer has one scheduler: write it without the list"),
        (
            ["step_lr", "exponential_lr"],
            "a warmup before it is its key warmup_steps, and optimizers in a list have a scheduler each",
        ),
    ],
    ids=str,
)
def test_scheduler_keys_of_other_formats(given: Any, end: str):
    assert messages("adam", given).endswith(end)


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ([{"params": "a", "lr": 1}], "; did you mean 'match' instead of 'params'?"),
        ([{"match": "a", "lr_scale": 0.1}], "; did you mean 'lr_mult'?"),
        ([{"match": "a", "wd": 0.0}], "; did you mean 'weight_decay'?"),
        ([{"match": "a", "decay_mult": 0.0}], "; did you mean 'wd_mult'?"),
        ({"no_decay": True}, "; write a list: [no_decay]"),
    ],
    ids=str,
)
def test_group_keys_of_other_formats(given: Any, end: str):
    assert messages("adam", param_groups=given).endswith(end)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (
            {"lr": 0.1},
            "lr: a configuration has no key 'lr'; it belongs to optimizer: write optimizer: {name: adam, lr:",
        ),
        ({"learning_rate": 0.1}, "; it belongs to optimizer; did you mean 'lr'?"),
        ({"warmup_epochs": 1}, "; it belongs to scheduler: write scheduler: {name: ..., warmup: {epochs: 1}}"),
        ({"sched": "step_lr"}, "; did you mean 'scheduler'?"),
    ],
    ids=str,
)
def test_arguments_at_the_top_level_name_their_owner(options: dict[str, Any], hint: str):
    with pytest.raises(ConfigError) as caught:
        parse_and_check("adam", **options)
    assert hint in str(caught.value)


def test_name_at_the_top_level_names_its_owner():
    assert messages(name="adam").endswith("; it belongs to optimizer: write optimizer: {name: adam}")
    assert messages(name="step_lr").endswith("; it belongs to scheduler: write scheduler: {name: step_lr}")
