"""Parsing of schedulers: reserved keys, `auto`, warmup, interval, and the options of schedulers with a metric."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from optplug.config.build import parse_and_check
from optplug.config.form import ON_NONFINITE, PATIENCE_UNITS
from optplug.config.json_schema import json_schema
from optplug.config.model import SchedulerConfig, WarmupConfig
from optplug.config.parse import parse
from optplug.errors import ConfigError, ConfigTypeError, HyperparameterTypeError, OptplugError

COSINE = {"name": "cosine_annealing_lr", "T_max": 10}
PLATEAU = {"name": "reduce_lr_on_plateau"}


def parse_scheduler(given: Any, **kwargs: Any) -> Any:
    return parse_and_check("adam", given, **kwargs).scheduler


def test_reserved_keys_have_defaults():
    parsed = parse_scheduler(COSINE)
    assert (parsed.interval, parsed.frequency, parsed.warmup) == ("epoch", 1, None)
    assert (parsed.monitor, parsed.mode) == (None, None)
    assert (parsed.patience_unit, parsed.on_nonfinite) == ("validations", "bad")
    assert not parsed.takes_metric
    assert parse_scheduler(PLATEAU).takes_metric


def test_invalid_interval_or_frequency_raises(error_message: Any, collected_errors: Any):
    assert error_message(ConfigError, "adam", {**COSINE, "interval": "batch"}) == (
        "scheduler.interval: must be 'epoch' or 'step', got 'batch'"
    )
    assert error_message(ConfigTypeError, "adam", {**COSINE, "frequency": 1.5}) == (
        "scheduler.frequency: must be a whole number, got 1.5"
    )
    assert error_message(ConfigTypeError, "adam", {**COSINE, "frequency": True}) == (
        "scheduler.frequency: must be a whole number, got True"
    )
    assert (
        error_message(ConfigError, "adam", {**COSINE, "frequency": 0})
        == "scheduler.frequency: must be at least 1, got 0"
    )
    assert error_message(ConfigError, "adam", {**COSINE, "interval": "steps"}).endswith(
        "got 'steps'; did you mean 'step'?"
    )
    reason = "reduce_lr_on_plateau steps once per completed validation (or per epoch, for a training metric)"
    assert list(map(str, collected_errors("adam", {**PLATEAU, "interval": "step", "frequency": 2}))) == [
        f"scheduler.interval: {reason}: omit interval, got 'step'",
        f"scheduler.frequency: {reason}: omit frequency, got 2",
    ]


# ------------------------------------------------------------------------------------------------ length


@pytest.mark.parametrize("spelled", [{"T_max": "auto"}, {"args": {"T_max": "auto"}}], ids=str)
def test_length_argument_accepts_auto(spelled: dict[str, Any]):
    auto = parse_scheduler({"name": "cosine_annealing_lr", **spelled})
    assert auto.arguments == {"T_max": "auto"}
    assert auto.length_argument == "T_max"


def test_auto_for_another_argument_raises(error_message: Any):
    assert error_message(ConfigError, "adam", {"name": "step_lr", "step_size": "auto"}) == (
        "scheduler.step_size: no argument of step_lr can be auto"
    )
    assert error_message(ConfigError, "adam", {**COSINE, "eta_min": "auto"}) == (
        "scheduler.eta_min: only T_max, the length of the schedule, can be auto"
    )
    assert error_message(HyperparameterTypeError, {"name": "adam", "lr": "auto"}) == (
        "optimizer.lr: Adam: lr must be a number, got 'auto' (str)"
    )


# ------------------------------------------------------------------------------------------------ warmup


def test_warmup_steps_equals_warmup_mapping():
    assert parse_scheduler({**COSINE, "warmup_steps": 5}) == parse_scheduler({**COSINE, "warmup": {"steps": 5}})
    assert parse_scheduler({**COSINE, "warmup": {"steps": 5, "start_factor": 0.5}}).warmup == WarmupConfig(
        5, "steps", 0.5
    )


@pytest.mark.parametrize("none", [{"warmup_steps": 0}, {"warmup": None}, {"warmup": {"steps": 0}}, {}])
def test_zero_or_missing_warmup_is_parsed_as_none(none: dict[str, Any]):
    assert parse_scheduler({**COSINE, **none}) == parse_scheduler(COSINE)


def test_warmup_length_in_epochs_or_as_ratio():
    assert parse_scheduler({**COSINE, "warmup": {"epochs": 1.5}}).warmup == WarmupConfig(1.5, "epochs")
    assert parse_scheduler({**COSINE, "warmup": {"ratio": 0.1, "start_factor": 1}}).warmup == WarmupConfig(
        0.1, "ratio", 1
    )


@pytest.mark.parametrize(
    ("given", "warmup"),
    [
        (0.05, WarmupConfig(0.05, "ratio")),
        ("5e-2", WarmupConfig(0.05, "ratio")),
        (500, WarmupConfig(500)),
        (2.0, WarmupConfig(2)),
        ("1e3", WarmupConfig(1000)),
        (0, None),
        (0.0, None),
    ],
    ids=repr,
)
def test_warmup_that_is_a_number_is_a_ratio_below_one_and_a_number_of_steps_above(given: Any, warmup: Any):
    assert parse_scheduler({**COSINE, "warmup": given}).warmup == warmup
    assert parse_scheduler({"warmup": given}).warmup == (warmup or WarmupConfig(0))


def test_warmup_states_when_the_schedule_starts():
    parsed = parse_scheduler({**COSINE, "warmup": {"ratio": 0.1, "schedule": "after"}})
    assert parsed.warmup == WarmupConfig(0.1, "ratio", schedule="after")
    assert parsed.to_dict()["warmup"] == {"ratio": 0.1, "schedule": "after"}
    for same in ({"ratio": 0.1}, {"ratio": 0.1, "schedule": "during"}, 0.1):
        parsed = parse_scheduler({**COSINE, "warmup": same})
        assert (parsed.warmup, parsed.to_dict()["warmup"]) == (WarmupConfig(0.1, "ratio"), {"ratio": 0.1})


# ------------------------------------------------------------------------------ arguments with the name of a key


@pytest.mark.usefixtures("third_party_classes")
@pytest.mark.parametrize("spelled", [{"warmup_steps": 7}, {"args": {"warmup_steps": 7}}], ids=str)
def test_warmup_steps_of_a_scheduler_with_this_length_is_its_argument(spelled: Any):
    schedule = {"name": "schedule_of_lengths", "whole": 100, "part": 10}
    parsed = parse_scheduler({**schedule, **spelled, "warmup": {"steps": 3}})
    assert parsed.arguments["warmup_steps"] == 7
    assert parsed.warmup == WarmupConfig(3)
    assert parsed.to_dict()["warmup_steps"] == 7
    assert parse("adam", parsed.to_dict()).scheduler == parsed
    assert parse_scheduler({**schedule, **spelled}).warmup is None


@pytest.mark.usefixtures("third_party_classes")
def test_warmup_steps_that_is_an_argument_may_have_a_unit():
    parsed = parse_scheduler({"name": "schedule_of_lengths", "whole": 10, "part": 1, "warmup_steps": {"ratio": 0.1}})
    assert parsed.arguments["warmup_steps"] == {"ratio": 0.1}
    assert jsonschema.Draft202012Validator(json_schema()).is_valid({"optimizer": "adam", "scheduler": parsed.to_dict()})


@pytest.mark.parametrize("none", [{"ratio": 0}, {"epochs": 0.0}, {"steps": 0}])
def test_warmup_of_length_zero_is_none(none: dict[str, Any]):
    assert parse_scheduler({**COSINE, "warmup": none}).warmup is None


WARMUP_UNITS_MESSAGE = "needs exactly one of steps (optimizer steps), epochs, ratio (of the training)"


STEP_OR_ALL = "write {steps: 1} for one optimizer step, or {ratio: 1} for the whole training"


@pytest.mark.parametrize(
    ("warmup", "error", "message"),
    [
        (
            {"warmup_steps": 1, "warmup": {"steps": 1}},
            ConfigError,
            "_steps: means warmup.steps, and warmup is given too: give only one of them",
        ),
        (
            {"warmup": "5 %"},
            ConfigTypeError,
            ": must be a number, or a mapping such as {steps: 100}, got '5 %'; a part of the training is {ratio: 0.05}",
        ),
        ({"warmup": True}, ConfigTypeError, ": must be a number, or a mapping such as {steps: 100}, got True"),
        ({"warmup": [5]}, ConfigTypeError, ": must be a number, or a mapping such as {steps: 100}, got [5]"),
        ({"warmup": 1}, ConfigError, f": is 1: {STEP_OR_ALL}"),
        ({"warmup": "1.0"}, ConfigError, f": is 1: {STEP_OR_ALL}"),
        ({"warmup": -1}, ConfigError, ": must be a ratio from 0 to 1 or a whole number of optimizer steps, got -1"),
        ({"warmup": -0.5}, ConfigError, ": must be a ratio from 0 to 1 or a whole number of optimizer steps, got -0.5"),
        ({"warmup": 1.5}, ConfigError, ": must be a ratio from 0 to 1 or a whole number of optimizer steps, got 1.5"),
        (
            {"warmup": {"ratio": 0.1, "schedule": "before"}},
            ConfigError,
            ".schedule: must be 'during' or 'after', got 'before'",
        ),
        (
            {"warmup": {"ratio": 0.1, "shedule": "after"}},
            ConfigError,
            ".shedule: a warmup has no key 'shedule'; did you mean 'schedule'?",
        ),
        ({"warmup": {}}, ConfigError, f": {WARMUP_UNITS_MESSAGE}, got none"),
        ({"warmup": {"start_factor": 0.5}}, ConfigError, f": {WARMUP_UNITS_MESSAGE}, got none"),
        ({"warmup": {"steps": 1, "epochs": 1}}, ConfigError, f": {WARMUP_UNITS_MESSAGE}, got steps, epochs"),
        (
            {"warmup": {"step": 5}},
            ConfigError,
            ".step: a warmup has no key 'step'; did you mean 'steps'?",
        ),
        (
            {"warmup": {"foo": 5}},
            ConfigError,
            ".foo: a warmup has no key 'foo'; it has steps, epochs, ratio, start_factor, schedule",
        ),
        ({"warmup_steps": -1}, ConfigError, "_steps: must be at least 0 and at most 1,000,000,000,000, got -1"),
        (
            {"warmup_steps": 1.5},
            ConfigTypeError,
            "_steps: must be a whole number of optimizer steps, got 1.5",
        ),
        (
            {"warmup_steps": False},
            ConfigTypeError,
            "_steps: must be a whole number of optimizer steps, got False",
        ),
        (
            {"warmup_steps": None},
            ConfigTypeError,
            "_steps: must be a whole number of optimizer steps, got None",
        ),
        (
            {"warmup": {"steps": 1.5}},
            ConfigTypeError,
            ".steps: must be a whole number of optimizer steps, got 1.5",
        ),
        ({"warmup": {"epochs": -1}}, ConfigError, ".epochs: must be at least 0 and at most 1,000,000,000, got -1"),
        (
            {"warmup": {"epochs": float("nan")}},
            ConfigError,
            ".epochs: must be at least 0 and at most 1,000,000,000, got nan",
        ),
        ({"warmup": {"epochs": True}}, ConfigTypeError, ".epochs: must be a number, got True"),
        ({"warmup": {"ratio": 1.5}}, ConfigError, ".ratio: must be at least 0 and at most 1, got 1.5"),
        (
            {"warmup": {"steps": 5, "start_factor": 0}},
            ConfigError,
            ".start_factor: must be above 0 and at most 1, got 0",
        ),
        (
            {"warmup": {"steps": 0, "start_factor": "x"}},
            ConfigTypeError,
            ".start_factor: must be a number, got 'x'",
        ),
    ],
)
def test_invalid_warmup_raises(warmup: dict[str, Any], error: type[OptplugError], message: str, error_message: Any):
    assert error_message(error, "adam", {**COSINE, **warmup}) == f"scheduler.warmup{message}"
    entry = {"match": "*", "name": "adam", "scheduler": {**COSINE, **warmup}}
    assert error_message(error, [entry]) == f"optimizer[0].scheduler.warmup{message}"


def test_warmup_without_scheduler_name(error_message: Any):
    parsed = parse_scheduler({"warmup": {"steps": 3}})
    assert (
        parsed == parse_scheduler({"warmup_steps": 3}) == SchedulerConfig(None, interval="step", warmup=WarmupConfig(3))
    )
    assert (parsed.takes_metric, parsed.length_argument) == (False, None)
    invalid = [("interval", "step"), ("T_max", 3), ("monitor", "x"), ("patience_unit", "steps"), ("on_nonfinite", None)]
    for key, value in invalid:
        assert error_message(ConfigError, "adam", {"warmup_steps": 3, key: value}) == (
            f"scheduler.{key}: a scheduler without a name is a warmup only, which has no key {key!r}"
        )
    assert error_message(ConfigError, "adam", {"warmup_steps": 3, "nam": "step_lr"}) == (
        "scheduler.nam: a scheduler without a name is a warmup only, which has no key 'nam'; did you mean 'name'?"
    )
    assert error_message(ConfigError, "adam", {"warmup_steps": 3}, monitor="x") == (
        "monitor: requires a scheduler that takes a metric, and only a warmup is configured"
    )


# -------------------------------------------------------------------------------- schedulers with a metric


def test_top_level_monitor_and_mode_apply_to_scheduler():
    expected = parse_scheduler({**PLATEAU, "monitor": "val_acc", "mode": "max"})
    assert parse_scheduler(PLATEAU, monitor="val_acc", mode="max") == expected
    assert parse_scheduler({**PLATEAU, "monitor": "val_acc"}, monitor="val_acc", mode="max") == expected
    assert parse_scheduler({**PLATEAU, "monitor": "val_acc", "args": {"mode": "max"}}) == expected


def test_invalid_monitor_or_mode_raises(error_message: Any):
    assert error_message(ConfigTypeError, "adam", {**PLATEAU, "monitor": 3}) == (
        "scheduler.monitor: must be the name of a metric, got 3"
    )
    assert error_message(ConfigTypeError, "adam", PLATEAU, monitor="") == (
        "monitor: must be the name of a metric, got ''"
    )
    assert error_message(ConfigTypeError, "adam", {**PLATEAU, "monitor": ""}) == (
        "scheduler.monitor: must be the name of a metric, got ''"
    )
    assert error_message(ConfigError, "adam", {**PLATEAU, "args": {"mode": "low"}}) == (
        "scheduler.args.mode: must be 'min' or 'max', got 'low'"
    )
    assert error_message(ConfigError, "adam", {**PLATEAU, "mode": "low"}) == (
        "scheduler.mode: must be 'min' or 'max', got 'low'"
    )
    assert error_message(ConfigError, "adam", {**PLATEAU, "mode": "mni"}).endswith("got 'mni'; did you mean 'min'?")


@pytest.mark.parametrize("name", ["lr-Adam", "lr-", "lr-SGD/pg1"])
def test_learning_rate_as_monitor_raises(name: str, error_message: Any):
    message = f"is {name!r}, a learning rate, which the scheduler sets: name a metric of the model"
    assert error_message(ConfigError, "adam", {**PLATEAU, "monitor": name}) == f"scheduler.monitor: {message}"
    assert error_message(ConfigError, "adam", PLATEAU, monitor=name) == f"monitor: {message}"
    for metric in ("lr_loss", "lr", "val/lr-loss"):
        assert parse_scheduler({**PLATEAU, "monitor": metric}).monitor == metric


def test_contradicting_monitor_or_mode_raises(error_message: Any):
    assert error_message(ConfigError, "adam", {**PLATEAU, "monitor": "a"}, monitor="b") == (
        "monitor: is 'b' and scheduler.monitor is 'a': give it once"
    )
    assert error_message(ConfigError, "adam", {**PLATEAU, "mode": "min"}, mode="max") == (
        "mode: is 'max' and scheduler.mode is 'min': give it once"
    )
    assert error_message(ConfigError, "adam", {**PLATEAU, "mode": "min", "args": {"mode": "max"}}) == (
        "scheduler.args.mode: is 'max' and scheduler.mode is 'min': give it once"
    )


def test_monitor_without_scheduler_with_metric_raises(error_message: Any):
    assert error_message(ConfigError, "adam", COSINE, monitor="val_loss") == (
        "monitor: cosine_annealing_lr takes no metric: monitor='val_loss' has no effect"
    )
    assert error_message(ConfigError, "adam", {**COSINE, "monitor": "val_loss"}) == (
        "scheduler.monitor: cosine_annealing_lr takes no metric: monitor='val_loss' has no effect"
    )
    assert error_message(ConfigError, "adam", monitor="val_loss") == (
        "monitor: 'val_loss' requires a scheduler that takes a metric, and no scheduler is configured"
    )
    assert error_message(ConfigError, "adam", mode="min") == (
        "mode: 'min' requires a scheduler that takes a metric, and no scheduler is configured"
    )


@pytest.mark.parametrize(("key", "values"), [("patience_unit", PATIENCE_UNITS), ("on_nonfinite", ON_NONFINITE)])
def test_patience_unit_and_on_nonfinite_are_parsed(key: str, values: tuple[str, ...]):
    assert (
        parse_scheduler({**PLATEAU, key: None})
        == parse_scheduler({**PLATEAU, key: values[0]})
        == parse_scheduler(PLATEAU)
    )
    assert parse_scheduler({**COSINE, key: None}) == parse_scheduler(COSINE)
    for value in values:
        parsed = parse_scheduler({**PLATEAU, key: value})
        assert getattr(parsed, key) == value
        assert parsed.to_dict() == {**PLATEAU, **({} if value == values[0] else {key: value})}


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("patience_unit", "epoch", "validations, epochs, steps, got 'epoch'; did you mean 'epochs'?"),
        ("patience_unit", "Steps", "validations, epochs, steps, got 'Steps'; did you mean 'steps'?"),
        ("patience_unit", "", "validations, epochs, steps, got ''"),
        ("patience_unit", 1, "validations, epochs, steps, got 1"),
        ("patience_unit", [3], "validations, epochs, steps, got [3]"),
        ("on_nonfinite", "ignored", "bad, ignore, raise, got 'ignored'; did you mean 'ignore'?"),
        ("on_nonfinite", 0, "bad, ignore, raise, got 0"),
    ],
)
def test_invalid_patience_unit_or_on_nonfinite_raises(key: str, given: Any, words: str, error_message: Any):
    message = f"scheduler.{key}: must be one of {words}"
    assert error_message(ConfigError, "adam", {**PLATEAU, key: given}) == message
    entry = {"name": "adam", "match": "*", "scheduler": {**PLATEAU, key: given}}
    assert error_message(ConfigError, [entry]).startswith(f"optimizer[0].scheduler.{key}: must be one of")


@pytest.mark.parametrize(("key", "value"), [("patience_unit", "epochs"), ("on_nonfinite", "bad")])
def test_patience_unit_and_on_nonfinite_require_a_scheduler_with_metric(key: str, value: str, error_message: Any):
    assert error_message(ConfigError, "adam", {**COSINE, key: value}) == (
        f"scheduler.{key}: cosine_annealing_lr takes no metric: {key}={value!r} has no effect"
    )
    assert error_message(ConfigError, "adam", PLATEAU, **{key: value}).startswith(
        f"{key}: a configuration has no key {key!r}; it belongs to scheduler: write scheduler: {{name: "
    )
    assert error_message(ConfigError, "adam", {**PLATEAU, "args": {key: value}}).endswith(
        f"; write {key} beside name, not under args"
    )
