"""Lengths of schedules with a unit: how they are read, and the number of the schedule's own steps that they become."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from optplug.config.build import parse_and_check
from optplug.config.describe import describe_registration
from optplug.config.json_schema import json_schema
from optplug.config.parse import parse
from optplug.config.training_length import (
    EpochSteps,
    TrainingLength,
    depends_on_training_length,
    length_warnings,
    resolve_lengths,
)
from optplug.errors import (
    ConfigError,
    ConfigErrors,
    ConfigTypeError,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    loc_text,
)
from optplug.registry import registry

TRAINING = TrainingLength(steps=40, epochs=4, epoch_steps=EpochSteps(((0, 10),)))
UNEVEN = TrainingLength(steps=16, epochs=4, epoch_steps=EpochSteps(((0, 6), (1, 4), (3, 2))))
COSINE = {"name": "cosine_annealing_lr"}
BY_STEP = {**COSINE, "interval": "step"}


def resolved(scheduler: Any, training: TrainingLength = TRAINING) -> dict[str, Any]:
    scheduler_config = parse("sgd", scheduler).scheduler
    assert scheduler_config is not None
    return resolve_lengths(scheduler_config, training).arguments


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [
        ({**BY_STEP, "T_max": {"steps": 30}}, 30),
        ({**BY_STEP, "T_max": {"epochs": 2}}, 20),
        ({**BY_STEP, "T_max": {"epochs": 1.26}}, 13),
        ({**BY_STEP, "T_max": {"ratio": 0.25}}, 10),
        ({**BY_STEP, "T_max": {"ratio": 1}}, 40),
        ({**BY_STEP, "T_max": {"ratio": 1}, "frequency": 3}, 13),
        ({**BY_STEP, "T_max": {"steps": 30}, "frequency": 3}, 10),
        ({**BY_STEP, "T_max": {"epochs": 2}, "frequency": 2}, 10),
        ({**COSINE, "T_max": {"epochs": 3}}, 3),
        ({**COSINE, "T_max": {"epochs": 3}, "frequency": 2}, 2),
        ({**COSINE, "T_max": {"ratio": 0.5}}, 2),
        ({**COSINE, "T_max": {"ratio": 1}, "frequency": 2}, 2),
        ({**COSINE, "T_max": {"steps": 20}}, 2),
        ({**COSINE, "T_max": {"steps": 200}}, 20),
        ({**COSINE, "T_max": {"steps": "2e1"}}, 2),
        ({**COSINE, "args": {"T_max": {"epochs": "3"}}}, 3),
    ],
    ids=str,
)
def test_length_with_a_unit_becomes_steps_of_the_schedule(scheduler: Any, steps: int):
    assert resolved(scheduler)["T_max"] == steps


@pytest.mark.parametrize(("ratio", "steps"), [(0.0625, 2), (0.0875, 4), (0.09, 4), (0.001, 1), (0.0, 0)], ids=str)
def test_length_is_rounded_to_the_nearest_whole_number_and_at_least_one(ratio: float, steps: int):
    assert resolved({"name": "step_lr", "step_size": {"ratio": ratio}, "interval": "step"}) == {"step_size": steps}


@pytest.mark.parametrize(
    ("length", "by_step", "by_epoch"),
    [({"epochs": 1}, 6, 1), ({"epochs": 2.5}, 12, 2), ({"steps": 12}, 12, 2), ({"steps": 15}, 15, 4)],
    ids=str,
)
def test_epochs_may_have_different_numbers_of_steps(length: Any, by_step: int, by_epoch: int):
    assert resolved({**BY_STEP, "T_max": length}, UNEVEN)["T_max"] == by_step
    assert resolved({**COSINE, "T_max": length}, UNEVEN)["T_max"] == by_epoch


def test_each_length_in_a_list_may_have_a_unit():
    milestones = [{"ratio": 0.25}, 15, {"epochs": 3}, {"steps": 35}]
    scheduler = {"name": "multi_step_lr", "milestones": milestones, "interval": "step"}
    assert resolved(scheduler) == {"milestones": [10, 15, 30, 35]}
    assert parse("sgd", scheduler).scheduler.to_dict()["milestones"] == milestones  # type: ignore[union-attr]
    assert resolved({"name": "multi_step_lr", "milestones": [3, 4]}) == {"milestones": [3, 4]}


@pytest.mark.usefixtures("third_party_classes")
def test_lengths_of_third_party_schedulers_may_have_units():
    scheduler = {"name": "schedule_of_lengths", "whole": "auto", "part": {"ratio": 0.2}, "gamma": 0.5}
    assert resolved(scheduler) == {"whole": 40, "part": 8, "gamma": 0.5}


# ------------------------------------------------------------------------------------------------ unknown, too short


@pytest.mark.parametrize(
    ("scheduler", "training", "message"),
    [
        (
            {**BY_STEP, "T_max": {"ratio": 0.5}},
            TrainingLength(),
            "is a ratio, and no trainer is attached: set the trainer's max_steps, or give a number",
        ),
        (
            {**COSINE, "T_max": {"ratio": 0.5}},
            TrainingLength(steps=10, remedy="pass epochs"),
            "is a ratio, and no trainer is attached: pass epochs, give a number, or interval: step",
        ),
        (
            {**BY_STEP, "T_max": {"epochs": 2}},
            TrainingLength(),
            "no trainer is attached: give a number of optimizer steps",
        ),
        (
            {**COSINE, "T_max": {"steps": 2}},
            TrainingLength(remedy="pass them"),
            "no trainer is attached: pass them, or give a number of epochs",
        ),
        (
            {**COSINE, "T_max": {"ratio": 0.1}},
            TRAINING,
            "is 0.4 steps of the schedule, which steps once every epoch; this is rounded to 0: set interval: step",
        ),
        (
            {**COSINE, "T_max": {"steps": 9}, "frequency": 2},
            TRAINING,
            "is 0.45 steps of the schedule, which steps once every 2 epochs; this is rounded to 0: set interval: step",
        ),
    ],
    ids=str,
)
def test_length_that_is_unknown_or_too_short_raises(scheduler: Any, training: TrainingLength, message: str):
    with pytest.raises(ConfigError) as caught:
        resolved(scheduler, training)
    assert str(caught.value) == f"scheduler.T_max: {message}"


def test_errors_in_a_list_have_their_index():
    scheduler = {"name": "multi_step_lr", "milestones": [1, {"ratio": 0.1}, {"steps": 1}]}
    with pytest.raises(ConfigErrors) as caught:
        resolved(scheduler)
    assert [loc_text(e.loc) for e in caught.value.errors] == ["scheduler.milestones[1]", "scheduler.milestones[2]"]


@pytest.mark.parametrize("given", [{"steps": 3}, {"epochs": 3}], ids=str)
def test_own_unit_needs_no_training(given: Any):
    interval = "step" if "steps" in given else "epoch"
    assert resolved({**COSINE, "interval": interval, "T_max": given}, TrainingLength()) == {"T_max": 3}


def test_short_length_is_one_step_in_a_dry_run_and_without_training():
    scheduler = {"name": "step_lr", "step_size": {"ratio": 0.1}}
    one = TrainingLength(1, 1, EpochSteps(((0, 1),)), is_dry_run=True)
    none = TrainingLength(0, 0, EpochSteps(((0, 0),)))
    assert resolved(scheduler, one) == resolved(scheduler, none) == {"step_size": 1}


def test_whole_schedule_is_as_long_as_its_parts_in_a_dry_run():
    wsd = {"name": "wsd", "total_steps": "auto", "decay_steps": {"ratio": 0.2}, "warmup_steps": {"ratio": 0.1}}
    one = TrainingLength(1, 1, EpochSteps(((0, 1),)), is_dry_run=True)
    assert resolved(wsd, one) == {"total_steps": 2, "decay_steps": 1, "warmup_steps": 1}
    assert resolved({**wsd, "decay_steps": 500}, one) == {"total_steps": 501, "decay_steps": 500, "warmup_steps": 1}
    assert resolved(wsd) == {"total_steps": 40, "decay_steps": 8, "warmup_steps": 4}


def test_only_plain_numbers_in_the_schedule_unit_are_independent_of_the_training():
    def depends(**given: Any) -> bool:
        scheduler_config = parse("sgd", given).scheduler
        assert scheduler_config is not None
        return depends_on_training_length(scheduler_config)

    assert not depends(name="multi_step_lr", milestones=[1, 2])
    assert depends(name="multi_step_lr", milestones=[1, {"epochs": 2}])
    assert depends(name="step_lr", step_size={"ratio": 0.1})


# ------------------------------------------------------------------------------------------------ errors

UNITS = "needs exactly one of steps (optimizer steps), epochs, ratio (of the training), got"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"ratoi": 0.2}, ConfigError, ".ratoi: a length has no key 'ratoi'; did you mean 'ratio'?"),
        ({"foo": 2}, ConfigError, ".foo: a length has no key 'foo'; it has steps, epochs, ratio"),
        ({}, ConfigError, f": {UNITS} none"),
        ({"steps": 1, "ratio": 0.1}, ConfigError, f": {UNITS} steps, ratio"),
        ({"ratio": 1.5}, ConfigError, ".ratio: must be at least 0 and at most 1, got 1.5"),
        ({"ratio": -0.1}, ConfigError, ".ratio: must be at least 0 and at most 1, got -0.1"),
        ({"epochs": -1}, ConfigError, ".epochs: must be at least 0 and at most 1,000,000,000, got -1"),
        ({"steps": 1.5}, ConfigTypeError, ".steps: must be a whole number of optimizer steps, got 1.5"),
        ({"steps": True}, ConfigTypeError, ".steps: must be a whole number of optimizer steps, got True"),
        ({"ratio": False}, ConfigTypeError, ".ratio: must be a number, got False"),
        ({"ratio": "half"}, ConfigTypeError, ".ratio: must be a number, got 'half'"),
        ({"ratio": "5 %"}, ConfigTypeError, ".ratio: must be a number, got '5 %'"),
        ({"ratio": None}, ConfigTypeError, ".ratio: must be a number, got None"),
        ({"ratio": float("nan")}, ConfigError, ".ratio: must be at least 0 and at most 1, got nan"),
    ],
    ids=str,
)
def test_invalid_length_raises(given: Any, error: type[OptplugError], message: str, error_message: Any):
    assert error_message(error, "adam", {**COSINE, "T_max": given}) == f"scheduler.T_max{message}"
    milestones = {"name": "multi_step_lr", "milestones": [3, given]}
    assert error_message(error, "adam", milestones) == f"scheduler.milestones[1]{message}"
    nested = {**COSINE, "args": {"T_max": given}}
    assert error_message(error, "adam", nested) == f"scheduler.args.T_max{message}"
    assert VALIDATOR.is_valid({"scheduler": {**COSINE, "T_max": 5}})
    if given != {"ratio": "5 %"}:
        assert not VALIDATOR.is_valid({"scheduler": milestones}) or "nan" in str(given)


def test_unit_for_an_argument_that_is_no_length_raises(error_message: Any):
    message = error_message(HyperparameterTypeError, "adam", {"name": "exponential_lr", "gamma": {"ratio": 0.5}})
    assert message.startswith("scheduler.gamma: ExponentialLR: gamma must be a number")


def test_other_errors_are_found_beside_lengths_with_units(error_message: Any):
    message = error_message(HyperparameterError, "adam", {**COSINE, "T_max": {"ratio": 0.5}, "eta_min": -1})
    assert message == "scheduler.eta_min: CosineAnnealingLR: eta_min must be at least 0, got -1"


def test_missing_lengths_are_named_with_what_they_may_be(error_message: Any):
    assert error_message(ConfigError, "adam", "wsd") == (
        "scheduler: wsd needs total_steps, decay_steps (total_steps may be auto: the length of the training; "
        "decay_steps may be a part of the training: {ratio: 0.2})"
    )
    wsd = {"name": "wsd", "total_steps": "auto", "decay_steps": 5, "warmup_ratio": 0.05}
    assert error_message(ConfigError, "adam", wsd) == (
        "scheduler.warmup_ratio: wsd has no argument 'warmup_ratio'; write warmup: {ratio: 0.05}"
    )


def test_info_states_what_a_length_may_be():
    text = " ".join(describe_registration(registry.resolve("scheduler", "wsd")).split())
    assert (
        "at least 1. Afterwards the learning rate stays the lowest one. In a configuration also auto, {steps: n},"
        in text
    )
    assert text.count("In a configuration also {steps: n}, {epochs: x} or {ratio: x}.") == 2


# ------------------------------------------------------------------------------------------------ lists of schedules

WARM = {"name": "linear_lr", "start_factor": 0.1}
DECAY = {"name": "exponential_lr", "gamma": 0.9}


def sequence(*schedules: Any, **given: Any) -> dict[str, Any]:
    return {"name": "schedule_of_schedules", "schedules": list(schedules), **given}


@pytest.mark.usefixtures("third_party_classes")
@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        (
            [{**WARM, "length": {"ratio": 0.1}}, {**COSINE, "length": "auto"}],
            [{**WARM, "length": 4, "total_iters": 4}, {**COSINE, "length": 36, "T_max": 36}],
        ),
        (
            [{**WARM, "length": {"epochs": 1}, "total_iters": 5}, COSINE],
            [{**WARM, "length": 10, "total_iters": 5}, {**COSINE, "length": 30, "T_max": 30}],
        ),
        (
            [{**WARM, "length": "3"}, {**DECAY, "length": {"steps": 7}}, {**COSINE, "T_max": {"ratio": 0.5}}],
            [
                {**WARM, "length": 3, "total_iters": 3},
                {**DECAY, "length": 7},
                {**COSINE, "length": 30, "T_max": 15},
            ],
        ),
        (
            [{**DECAY, "length": 30}, {"name": "wsd", "decay_steps": {"ratio": 0.2}, "warmup_steps": {"steps": 1}}],
            [
                {**DECAY, "length": 30},
                {"name": "wsd", "decay_steps": 2, "warmup_steps": 1, "length": 10, "total_steps": 10},
            ],
        ),
        ([{**DECAY, "length": {"ratio": 1}}, COSINE], [{**DECAY, "length": 40}, {**COSINE, "length": 1, "T_max": 1}]),
        ([{**DECAY, "length": 3}, DECAY], [{**DECAY, "length": 3}, DECAY]),
        (
            [sequence({**DECAY, "length": {"ratio": 0.5}}, COSINE, length={"ratio": 0.5}), {**DECAY, "length": "auto"}],
            [
                sequence({**DECAY, "length": 10}, {**COSINE, "length": 10, "T_max": 10}, length=20),
                {**DECAY, "length": 20},
            ],
        ),
    ],
    ids=str,
)
def test_lengths_of_a_list_of_schedules(schedules: Any, expected: Any):
    assert resolved(sequence(*schedules))["schedules"] == expected
    parsed = parse("sgd", sequence(*schedules)).scheduler
    assert parsed is not None
    assert parse("sgd", parsed.to_dict()).scheduler == parsed


@pytest.mark.usefixtures("third_party_classes")
def test_lengths_of_a_list_of_schedules_refer_to_the_training_after_the_warmup():
    warmup = {"steps": 10, "schedule": "after"}
    schedules = resolved(sequence({**DECAY, "length": {"ratio": 0.5}}, COSINE, warmup=warmup))["schedules"]
    assert [schedule["length"] for schedule in schedules] == [15, 15]


@pytest.mark.usefixtures("third_party_classes")
def test_last_schedule_without_a_length_needs_no_training():
    assert resolved(sequence({**DECAY, "length": 3}, DECAY), TrainingLength())["schedules"] == [
        {**DECAY, "length": 3},
        DECAY,
    ]
    with pytest.raises(ConfigError) as caught:
        resolved(sequence({**DECAY, "length": 3}, COSINE), TrainingLength())
    assert str(caught.value).startswith("scheduler.schedules[1].T_max: is auto, and no trainer is attached")


@pytest.mark.usefixtures("third_party_classes")
@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        (
            [{"name": "exponental_lr", "length": 3, "gamma": 1}, DECAY],
            "[0].name: no scheduler named 'exponental_lr'; did you mean 'exponential_lr'",
        ),
        ([{**DECAY, "length": 3, "gama": 1}, DECAY], "[0].gama: exponential_lr has no argument 'gama'; did you mean"),
        ([{"name": "exponential_lr", "length": 3}, DECAY], "[0]: exponential_lr needs gamma"),
        ([{"gamma": 0.5, "length": 3}, DECAY], "[0]: needs a name; it has gamma, length"),
        ([5, DECAY], "[0]: must be a name or a mapping with a name, got 5 (int)"),
        ([DECAY, DECAY], "[0]: needs a length, such as 100 or {ratio: 0.2}: only the last schedule may omit it"),
        (
            [{**DECAY, "length": "auto"}, DECAY],
            "[0].length: only the length of the last schedule can be auto, the rest of the training",
        ),
        ([{**DECAY, "length": {"ratoi": 1}}, DECAY], "[0].length.ratoi: a length has no key 'ratoi'; did you mean"),
        ([{**DECAY, "length": {"ratio": 2}}, DECAY], "[0].length.ratio: must be at least 0 and at most 1, got 2"),
        ([{**DECAY, "length": 3, "gamma": "auto"}, DECAY], "[0].gamma: no argument of exponential_lr can be auto"),
        ([{**DECAY, "length": 3, "interval": "step"}, DECAY], "[0].interval: exponential_lr has no argument"),
    ],
    ids=str,
)
def test_errors_in_a_list_of_schedules_have_their_location(schedules: Any, message: str):
    with pytest.raises(OptplugError) as caught:
        parse_and_check("adam", sequence(*schedules))
    (error,) = caught.value.errors
    assert str(error).startswith(f"scheduler.schedules{message}")


def test_sequence_of_the_plugin_is_a_list_of_schedules(error_message: Any):
    given = {"name": "sequential", "schedules": [{**WARM, "length": {"ratio": 0.25}}, COSINE]}
    scheduler_config = parse_and_check("adam", {**given, "interval": "step"}).scheduler
    assert scheduler_config is not None
    assert resolve_lengths(scheduler_config, TRAINING).arguments["schedules"] == [
        {**WARM, "length": 10, "total_iters": 10},
        {**COSINE, "length": 30, "T_max": 30},
    ]
    wrong = {"name": "sequential", "schedules": [{**WARM, "length": {"ratio": 0.25}, "start_factor": -1}, COSINE]}
    message = error_message(HyperparameterError, "adam", wrong)
    assert message.startswith("scheduler.schedules[0].start_factor: Sequential: schedules[0]: ")
    plateau = {"name": "sequential", "schedules": [{"name": "reduce_lr_on_plateau", "length": 3}, COSINE]}
    assert "has no closed form" in error_message(HyperparameterError, "adam", plateau)


ACCUMULATING = TrainingLength(32, 5, EpochSteps(((0, 10), (2, 4))))
"""Two epochs of 10 steps, and three of 4 steps."""


@pytest.mark.parametrize(
    ("scheduler", "resolved"),
    [
        ({"name": "wsd", "total_steps": "auto", "decay_steps": {"epochs": 2}}, {"decay_steps": 8}),
        ({"name": "wsd", "total_steps": {"epochs": 3}, "decay_steps": {"epochs": 2}}, {"decay_steps": 14}),
        ({"name": "wsd", "total_steps": "auto", "decay_steps": {"epochs": 4}}, {"decay_steps": 22}),
        ({"name": "wsd", "total_steps": "auto", "decay_steps": 2, "warmup_steps": {"epochs": 1}}, {"warmup_steps": 10}),
        (
            {
                "name": "step_lr",
                "step_size": {"epochs": 1},
                "interval": "step",
                "warmup": {"steps": 20, "schedule": "after"},
            },
            {"step_size": 4},
        ),
        ({"name": "step_lr", "step_size": {"steps": 24}, "interval": "epoch"}, {"step_size": 3}),
    ],
    ids=str,
)
def test_epochs_of_different_lengths_are_those_of_the_schedule(scheduler: Any, resolved: Any):
    parsed = parse_and_check("adam", scheduler).scheduler
    assert parsed is not None
    assert resolved.items() <= resolve_lengths(parsed, ACCUMULATING).arguments.items()


@pytest.mark.parametrize(("interval", "lengths"), [("step", [24, 4, 4]), ("epoch", [3, 1, 1])])
def test_epochs_of_different_lengths_are_those_of_the_part(interval: str, lengths: list[int]):
    constant = {"name": "constant_lr", "length": {"epochs": 1} if interval == "step" else {"steps": 4}}
    first = {"name": "linear_lr", "length": {"epochs": 3}}
    last = {"name": "wsd", "decay_steps": {"epochs": 1}}
    given = {"name": "sequential", "schedules": [first, constant, last], "interval": interval}
    parsed = parse_and_check("adam", given).scheduler
    assert parsed is not None
    found = resolve_lengths(parsed, ACCUMULATING).arguments["schedules"]
    assert [part["length"] for part in found] == lengths
    assert found[-1]["decay_steps"] == lengths[-1]


@pytest.mark.parametrize(
    "wrong", [{"linear_lr": {"length": 5}}, "linear_lr", 5, {"name": "linear_lr", "length": 5}], ids=str
)
def test_schedules_that_are_no_list_are_an_error_with_a_location(error_message: Any, wrong: Any):
    message = error_message(ConfigTypeError, "adam", {"name": "sequential", "schedules": wrong})
    assert message.startswith("scheduler.schedules: must be a list of mappings, each with a name, got ")
    assert message.count("scheduler.schedules") == 1
    if isinstance(wrong, dict) and "linear_lr" in wrong:
        assert message.endswith("; write [{name: linear_lr, ...}]")


def test_missing_length_is_reported_once(error_message: Any):
    given = {"name": "sequential", "schedules": [{"name": "linear_lr"}, COSINE]}
    message = error_message(ConfigError, "adam", given)
    assert message.startswith("scheduler.schedules[0]: needs a length, such as 100")


def test_dry_run_of_a_trainer_has_room_for_the_lengths_of_a_part():
    parts = [{**WARM, "length": 500}, {"name": "wsd", "decay_steps": 200, "warmup_steps": 10}]
    parsed = parse_and_check("adam", {"name": "sequential", "schedules": parts, "interval": "step"}).scheduler
    assert parsed is not None
    training = TrainingLength(1, 1, EpochSteps(((0, 1),)), is_dry_run=True)
    assert resolve_lengths(parsed, training).arguments["schedules"][1]["total_steps"] == 210


def resolved_sequence(*lengths: Any, **given: Any) -> Any:
    schedules = [{"name": "constant_lr", **({} if length is None else {"length": length})} for length in lengths]
    parsed = parse_and_check("adam", {"name": "sequential", "schedules": schedules, **given}).scheduler
    assert parsed is not None
    return resolve_lengths(parsed, TrainingLength(50, 5, EpochSteps(((0, 10),))))


@pytest.mark.parametrize(
    ("lengths", "warnings"),
    [
        (
            ({"ratio": 0.6}, {"ratio": 0.6}, None),
            ["scheduler.schedules[2] never runs: the schedules before it have 60"],
        ),
        ((600, None), ["scheduler.schedules[0].length is 600, and this", "scheduler.schedules[1] never runs"]),
        ((10, 600), ["scheduler.schedules[1].length is 600, and this training steps the schedule 50 times"]),
        ((10, 60), []),
        ((10, {"ratio": 0.2}, None), []),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_the_training_are_warned_about(lengths: Any, warnings: list[str]):
    training = TrainingLength(50, 5, EpochSteps(((0, 10),)))
    found = list(length_warnings(resolved_sequence(*lengths, interval="step"), training))
    assert len(found) == len(warnings)
    assert all(map(str.startswith, found, warnings))


def test_lengths_that_add_up_to_the_steps_of_the_training_need_an_interval():
    with pytest.raises(
        ConfigError, match=r"^scheduler.schedules: the sum of the lengths is 50, which is the number of op"
    ):
        resolved_sequence(10, 40)
    for given in ({"interval": "epoch"}, {"interval": "step"}):
        resolved_sequence(10, 40, **given)
    resolved_sequence(10, 30)
    resolved_sequence(1, 4)


@pytest.mark.parametrize(
    ("last", "given", "interval"),
    [
        ({"name": "wsd", "decay_steps": 5}, {}, "step"),
        ({"name": "wsd", "decay_steps": 5}, {"interval": "epoch"}, "epoch"),
        (COSINE, {}, "epoch"),
    ],
    ids=str,
)
def test_sequence_is_stepped_as_its_schedules(last: Any, given: Any, interval: str):
    scheduler = {"name": "sequential", "schedules": [{**WARM, "length": 5}, last], **given}
    parsed = parse_and_check("adam", scheduler).scheduler
    assert parsed is not None
    assert parsed.interval == interval


@pytest.mark.parametrize(
    ("given", "error", "key", "words"),
    [
        ({"warmup": 3}, ConfigError, "warmup", "a schedule in a list has no warmup: give the whole list a warmup"),
        ({"warmup_steps": 3}, ConfigError, "warmup_steps", "a schedule in a list has no warmup"),
        ({"interval": "step"}, ConfigError, "interval", "write interval beside schedules"),
        ({"frequency": 2}, ConfigError, "frequency", "write frequency beside schedules"),
        ({"length": 0.1}, ConfigError, "length", "got 0.1; a part of the training is {ratio: 0.1}"),
        ({"length": "0.1"}, ConfigError, "length", "a part of the training is {ratio: 0.1}"),
        ({"length": 2.5}, ConfigTypeError, "length", "got 2.5"),
        ({"length": "all"}, ConfigTypeError, "length", "got 'all'"),
    ],
    ids=str,
)
def test_wrong_key_of_a_part_has_one_error_with_its_remedy(
    error_message: Any, given: Any, error: Any, key: str, words: str
):
    scheduler = {"name": "sequential", "schedules": [{**WARM, "length": 5, **given}, COSINE]}
    message = error_message(error, "adam", scheduler)
    assert message.startswith(f"scheduler.schedules[0].{key}: ")
    assert words in message
    assert "write warmup_steps" not in message


@pytest.mark.parametrize(
    ("cycle", "total"), [({}, 35), ({"epochs": 2, "steps_per_epoch": 5}, None), ({"total_steps": 9}, 9)], ids=str
)
def test_last_schedule_without_a_required_length_has_the_rest(cycle: Any, total: int | None):
    last = {"name": "one_cycle_lr", "max_lr": 1.0, **cycle}
    given = {"name": "sequential", "schedules": [{**WARM, "length": 5}, last], "interval": "step"}
    parsed = parse_and_check("adam", given).scheduler
    assert parsed is not None
    resolved = resolve_lengths(parsed, TRAINING).arguments["schedules"][-1]
    assert resolved.get("total_steps") == total


def test_missing_length_of_one_cycle_names_auto(error_message: Any):
    message = error_message(HyperparameterError, "adam", {"name": "one_cycle_lr", "max_lr": 0.1})
    assert message.startswith("scheduler: ")
    assert message.endswith("(total_steps may be auto: the length of the training)")


# ------------------------------------------------------------------------------------------------ JSON Schema

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize(
    "scheduler",
    [
        {**COSINE, "T_max": {"ratio": 0.5}},
        {**COSINE, "T_max": {"epochs": "1e1"}},
        {**COSINE, "T_max": "auto"},
        {"name": "step_lr", "step_size": {"steps": 3}},
        {"name": "multi_step_lr", "milestones": [3, {"ratio": 0.5}]},
    ],
    ids=str,
)
def test_schema_accepts_lengths_with_units(scheduler: Any):
    assert VALIDATOR.is_valid({"optimizer": "adam", "scheduler": scheduler})
    parse("adam", scheduler)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            {"name": "step_lr", "step_size": 9, "warmup": "5%"},
            r"warmup: .*got '5%'; a part of the training is {ratio: 0.05}",
        ),
        (
            {"name": "cosine_annealing_lr", "T_max": "50%"},
            r"T_max: .*got '50%'; a part of the training is {ratio: 0.5}",
        ),
        ({"name": "wsd", "total_steps": 9, "decay_steps": 0.2}, r"decay_steps: .*got 0.2; a part .* is {ratio: 0.2}"),
        ({"name": "multi_step_lr", "milestones": [0.5, "75 %"]}, r"\[0\]: .*{ratio: 0.5}(.|\n)*\[1\]: .*{ratio: 0.75}"),
        (
            {"name": "multi_step_lr", "milestones": {"ratio": 0.5}},
            r"must be a list of lengths, such as \[{ratio: 0.5}\]",
        ),
        (
            {"name": "sequential", "schedules": [{"name": "linear_lr", "length": "10%"}, {"name": "constant_lr"}]},
            r"length: .*{ratio: 0.1}",
        ),
    ],
    ids=str,
)
def test_part_of_the_training_in_another_form_is_an_error_with_the_ratio(scheduler: Any, message: str) -> None:
    with pytest.raises(OptplugError, match=message):
        parse(None, scheduler)
