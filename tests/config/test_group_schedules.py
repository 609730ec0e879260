"""`scheduler` in a rule of `param_groups`: parsing, the groups, the scheduler that is built, plain training loops."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import optplug
from optplug.config.build import build_optimizer, build_schedule, parse_and_check
from optplug.config.fields import Unresolved
from optplug.config.json_schema import json_schema
from optplug.config.parse import parse
from optplug.config.training_length import EpochSteps, TrainingLength, resolve_setup
from optplug.errors import ConfigError, HyperparameterError
from optplug.optim.combined import Combined
from optplug.schedulers.closed_form import Unscheduled
from optplug.schedulers.per_group import PerGroup

STEP = {"name": "step_lr", "step_size": 2}
COSINE = {"name": "cosine_annealing_lr", "T_max": 8}
PLATEAU = {"name": "reduce_lr_on_plateau", "patience": 0, "mode": "min"}
SGD = {"name": "sgd", "lr": 0.1}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 1)


def head(schedule: Any, **options: Any) -> dict[str, Any]:
    return {"match": "head.*", "scheduler": schedule, **options}


def build(*args: Any, total_steps: int | None = None, **kwargs: Any) -> Any:
    return optplug.create_optimizer_and_scheduler(Model(), *args, total_steps=total_steps, **kwargs)


def rates(optimizer: Any, scheduler: Any, steps: int, *metrics: float) -> list[list[float]]:
    found = []
    for i in range(steps):
        optimizer.step()
        scheduler.step(*metrics[i : i + 1])
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


# ------------------------------------------------------------------------------------------------ parsing


def test_rule_has_a_schedule():
    config = parse_and_check("adam", COSINE, param_groups=["no_decay", head({**STEP, "warmup_steps": 3}, lr=0.2)])
    rule: Any = config.param_groups[1]
    assert rule.options == {"lr": 0.2}
    assert rule.scheduler == parse("adam", {**STEP, "warmup_steps": 3}).scheduler
    assert rule.scheduler.loc == ("param_groups", 1, "scheduler")
    assert [one.name for one in config.setup.schedules] == ["cosine_annealing_lr", "step_lr"]
    assert list(config.setup.group_schedules) == ["head.*"]


FORMS = {
    "a mapping": head(STEP),
    "a name": head("reduce_lr_on_plateau"),
    "null": head(None),
    "a warmup": head({"warmup_steps": 5}),
    "auto": head({"name": "cosine_annealing_lr", "T_max": "auto", "warmup": {"ratio": 0.1}}),
}


@pytest.mark.parametrize("rule", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("base", [None, {"warmup_steps": 3}], ids=["alone", "beside another"])
def test_plain_form_and_schema(rule: Any, base: Any):
    given = {"optimizer": SGD, "param_groups": [rule, "no_decay"], **({} if base is None else {"scheduler": base})}
    config = parse_and_check(**given)
    saved = config.to_dict()
    assert parse(**saved) == config
    assert "scheduler" in saved["param_groups"][0]
    validator = jsonschema.Draft202012Validator(json_schema())
    assert [*validator.iter_errors(given)] == [*validator.iter_errors(saved)] == []
    rule = {**rule, "scheduler": {"name": "step_lr", "size": 3}}
    assert [*validator.iter_errors({**given, "param_groups": [rule]})]


def test_errors_of_a_group_schedule_have_its_location(error_message: Any):
    def message(schedule: Any, error: Any = ConfigError) -> str:
        return error_message(error, SGD, param_groups=[head(schedule)])

    where = "param_groups[0].scheduler"
    assert message({**STEP, "size": 3}).startswith(f"{where}.size: step_lr has no argument 'size'")
    assert message("step_rl", optplug.errors.UnknownNameError).startswith(f"{where}: ")
    assert message({"name": "step_lr", "step_size": -1}, HyperparameterError).startswith(f"{where}.step_size: ")
    assert message({**PLATEAU, "interval": "step"}).startswith(f"{where}.interval: ")
    assert message({"warmup_steps": 2, "interval": "step"}).startswith(f"{where}.interval: ")


CONTRADICTIONS = {
    "interval": (
        COSINE,
        {**STEP, "interval": "step"},
        ".interval: is 'step', and scheduler.interval is 'epoch': all schedules of an optimizer are stepped together; "
        "give both the same interval, with all lengths in this unit",
    ),
    "frequency": (
        COSINE,
        {**STEP, "frequency": 2},
        ".frequency: is 2, and scheduler.frequency is 1: all schedules of an optimizer are stepped together; give both "
        "the same frequency",
    ),
    "kind": (
        COSINE,
        PLATEAU,
        ": all schedules of an optimizer are stepped together, but reduce_lr_on_plateau when its metric has a value, "
        "and cosine_annealing_lr once per epoch in scheduler: use schedules of one kind; `scheduler: null` in an entry "
        "of param_groups keeps the learning rate constant",
    ),
    "kind, reversed": (
        PLATEAU,
        COSINE,
        ": all schedules of an optimizer are stepped together, but cosine_annealing_lr once per epoch, and "
        "reduce_lr_on_plateau when its metric has a value in scheduler: use schedules of one kind; `scheduler: null` "
        "in an entry of param_groups keeps the learning rate constant",
    ),
    "monitor": (
        {**PLATEAU, "monitor": "a"},
        {**PLATEAU, "monitor": "b"},
        ".monitor: is 'b', and scheduler.monitor is 'a': all schedules of an optimizer are stepped together; give both "
        "the same monitor",
    ),
    "patience_unit": (
        PLATEAU,
        {**PLATEAU, "patience_unit": "epochs"},
        ".patience_unit: is 'epochs', and scheduler.patience_unit is 'validations': all schedules of an optimizer are "
        "stepped together; give both the same patience_unit",
    ),
}


@pytest.mark.parametrize(("base", "schedule", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_schedules_that_are_stepped_at_different_times_are_refused(
    base: Any, schedule: Any, message: str, error_message: Any
):
    assert error_message(ConfigError, SGD, base, param_groups=[head(schedule)]) == f"param_groups[0].scheduler{message}"


def test_two_groups_are_compared_without_a_schedule_for_the_rest(error_message: Any):
    rules = [head(COSINE), {"match": "backbone.*", "scheduler": {**STEP, "interval": "step"}}]
    assert error_message(ConfigError, SGD, param_groups=rules).startswith(
        "param_groups[1].scheduler.interval: is 'step', and param_groups[0].scheduler.interval is 'epoch'"
    )
    optimizers = [{**SGD, "match": "*", "scheduler": COSINE, "param_groups": [head({**STEP, "interval": "step"})]}]
    assert error_message(ConfigError, optimizers).startswith("optimizer[0].param_groups[0].scheduler.interval: is")


@pytest.mark.parametrize("base", [None, {"warmup_steps": 4}, PLATEAU], ids=["none", "warmup", "plateau"])
def test_constant_rates_and_warmups_agree_with_every_schedule(base: Any):
    rules = [
        head(PLATEAU),
        {"match": "head.bias", "scheduler": None},
        {"match": "*.bias", "scheduler": {"warmup_steps": 3}},
    ]
    assert parse_and_check(SGD, base, param_groups=rules).setup.leading_schedule.name == "reduce_lr_on_plateau"


def test_monitor_and_mode_may_be_given_in_one_place(error_message: Any):
    plateau = {"name": "reduce_lr_on_plateau"}
    setup = parse_and_check(SGD, plateau, param_groups=[head({**plateau, "monitor": "loss", "mode": "min"})]).setup
    assert (setup.leading_schedule.monitor, setup.leading_schedule.mode) == ("loss", "min")
    setup = parse_and_check(SGD, param_groups=[head(plateau)], monitor="acc", mode="max").setup
    assert (setup.leading_schedule.monitor, setup.leading_schedule.mode) == ("acc", "max")
    given = head({**plateau, "monitor": "loss"})
    assert error_message(ConfigError, SGD, param_groups=[given], monitor="acc") == (
        "param_groups[0].scheduler.monitor: is 'loss' and monitor is 'acc': give it once"
    )
    assert "lr-" in error_message(ConfigError, SGD, param_groups=[head(plateau)], monitor="lr-sgd")


def test_schedule_of_a_preset_is_refused(error_message: Any):
    assert error_message(ConfigError, SGD, param_groups=[{"preset": "no_decay", "scheduler": STEP}]) == (
        "param_groups[0].scheduler: a preset has no scheduler: write a rule that selects the parameters, "
        "{match: 'head.*', scheduler: ...}"
    )


def test_rules_of_two_members_need_different_names(error_message: Any):
    def members(**name: Any) -> Any:
        rules = [{"match": "*.bias", "scheduler": STEP}], [{"match": "*.bias", "scheduler": STEP, **name}]
        first = {**SGD, "match": "backbone.*", "param_groups": rules[0]}
        return {"combine": [first, {"name": "adam", "match": "head.*", "param_groups": rules[1]}]}

    assert error_message(ConfigError, members()) == (
        "optimizer.combine[0].param_groups[0]: several rules with a scheduler are named '*.bias' (default: the "
        "pattern): give each its own name"
    )
    config = parse_and_check(members(name="of the head"))
    assert list(config.setup.group_schedules) == ["*.bias", "of the head"]
    assert parse(**config.to_dict()) == config


def test_unresolved_schedule_is_accepted():
    rule: Any = parse_and_check(SGD, param_groups=[head(Unresolved("${schedule}"))]).param_groups[0]
    assert rule.scheduler is None


def test_create_optimizer_refuses_a_schedule():
    with pytest.raises(ConfigError, match="scheduler: create_optimizer builds no scheduler") as caught:
        optplug.create_optimizer("sgd", Model(), param_groups=[head(STEP)])
    assert caught.value.loc == ("param_groups", 0, "scheduler")


# ------------------------------------------------------------------------------------------------ what is built


def test_without_group_schedules_nothing_changes():
    optimizer, scheduler = build(SGD, STEP, param_groups=[{"match": "head.*", "lr": 0.2}])
    assert type(scheduler) is optplug.get_scheduler("step_lr")
    assert all("schedule" not in group for group in optimizer.param_groups)
    assert "schedule" not in str(optplug.group_table(optimizer))


def test_each_group_follows_its_schedule():
    optimizer, scheduler = build(SGD, COSINE, param_groups=[head(STEP, lr=0.4)])
    assert isinstance(scheduler, PerGroup)
    _, cosine = build(SGD, COSINE)
    _, step = build({**SGD, "lr": 0.4}, STEP)
    expected = [a + b for a, b in zip(rates(cosine.optimizer, cosine, 8), rates(step.optimizer, step, 8), strict=True)]
    assert rates(optimizer, scheduler, 8) == expected
    assert str(optplug.group_table(optimizer)).splitlines()[0].split()[-1] == "schedule"
    assert [row.schedule for row in optplug.group_table(optimizer)] == ["", "head.*"]


def test_last_rule_with_a_schedule_wins():
    rules = [
        head(STEP),
        {"match": "*.bias", "lr": 0.5, "scheduler": COSINE},
        {"match": "head.bias", "weight_decay": 1.0},
    ]
    optimizer, _ = build(SGD, param_groups=rules)
    assert [(group["name"], group.get("schedule")) for group in optimizer.param_groups] == [
        ("default", None),
        ("*.bias", "*.bias"),
        ("head.*", "head.*"),
        ("head.* + *.bias + head.bias", "*.bias"),
    ]


def test_parameters_with_equal_options_and_different_schedules_are_in_two_groups():
    optimizer, _ = build(SGD, COSINE, param_groups=[head(None)])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_groups_without_a_schedule_keep_their_rate():
    optimizer, scheduler = build(SGD, param_groups=[head(STEP)])
    assert [row[0] for row in rates(optimizer, scheduler, 6)] == [0.1] * 6
    optimizer, scheduler = build(SGD, STEP, param_groups=[head(None)])
    assert isinstance(scheduler.schedules["head.*"], Unscheduled)
    assert [row[1] for row in rates(optimizer, scheduler, 6)] == [0.1] * 6


def test_warmups_are_those_of_each_schedule():
    optimizer, scheduler = build(SGD, {**COSINE, "warmup_steps": 4}, param_groups=[head({**STEP, "warmup_steps": 2})])
    first = [group["lr"] for group in optimizer.param_groups]
    assert first == pytest.approx([0.1 / 4, 0.1 / 2])
    assert rates(optimizer, scheduler, 1)[0][1] == pytest.approx(0.1 * 0.75)
    optimizer, _ = build(SGD, {**COSINE, "warmup_steps": 4}, param_groups=[head(STEP)])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 4, 0.1])


def test_lengths_of_each_schedule_are_resolved():
    auto = {"name": "cosine_annealing_lr", "T_max": "auto", "interval": "step"}
    rules = [head({**auto, "warmup": {"ratio": 0.2}}), {"match": "*.bias", "scheduler": {"warmup": {"epochs": 0.5}}}]
    setup = parse_and_check(SGD, {**auto, "T_max": 7}, param_groups=rules).setup
    found = resolve_setup(setup, TrainingLength(40, 2, EpochSteps(((0, 20),))))
    assert [one.arguments for one in found.schedules] == [{"T_max": 7}, {"T_max": 40}, {}]
    assert [one.warmup and one.warmup.length for one in found.schedules] == [None, 8, 10]
    with pytest.raises(optplug.errors.ConfigErrors) as caught:
        resolve_setup(setup, TrainingLength())
    assert [error.loc for error in caught.value.errors] == [
        ("param_groups", 0, "scheduler", "warmup", "ratio"),
        ("param_groups", 0, "scheduler", "T_max"),
        ("param_groups", 1, "scheduler", "warmup", "epochs"),
    ]
    scheduler: Any = build_schedule(build_optimizer(Model(), found), found)
    assert scheduler.ends == {"head.*": ("T_max", 40)}


def test_plateaus_of_two_groups_have_the_mode_of_one():
    plateau = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}
    rules = [head({**plateau, "factor": 0.1})]
    optimizer, scheduler = build(SGD, {**plateau, "mode": "max"}, param_groups=rules)
    assert [one.mode for one in scheduler.schedules.values()] == ["max", "max"]
    assert rates(optimizer, scheduler, 2, 1.0, 0.5)[-1] == pytest.approx([0.05, 0.01])
    with pytest.raises(ConfigError, match="mode: without a Lightning trainer it must be given"):
        build(SGD, plateau, param_groups=rules)


def test_list_of_optimizers_and_combination():
    entries = [
        {**SGD, "match": "backbone.*", "param_groups": [{"match": "*.bias", "scheduler": STEP}]},
        {**SGD, "match": "head.*", "scheduler": COSINE},
    ]
    (_, first), (_, second) = build(entries)
    assert isinstance(first, PerGroup)
    assert type(second) is optplug.get_scheduler("cosine_annealing_lr")
    del entries[1]["scheduler"]
    optimizer, scheduler = build({"combine": entries}, COSINE)
    assert isinstance(optimizer, Combined)
    assert scheduler.names == ["", "*.bias", ""]
    last = rates(optimizer, scheduler, 8)[-1]
    assert last == pytest.approx([0.0, 0.1 * 0.1**4, 0.0], abs=1e-9)


@pytest.mark.parametrize("explicit_lr", [False, True])
def test_group_added_later_has_the_schedule_of_its_rule(explicit_lr: bool):
    module = Model()
    module.backbone.requires_grad_(False)
    rules = [{"match": "backbone.*", "lr": 0.3, "scheduler": {"name": "exponential_lr", "gamma": 0.5}}]
    optimizer, scheduler = optplug.create_optimizer_and_scheduler(module, SGD, param_groups=rules)
    assert scheduler.names == [""]
    rates(optimizer, scheduler, 3)
    module.backbone.requires_grad_(True)
    optimizer.add_param_group({"params": list(module.backbone.parameters()), **({"lr": 0.8} if explicit_lr else {})})
    assert [lr for _, lr in rates(optimizer, scheduler, 2)] == pytest.approx(
        [0.4, 0.2] if explicit_lr else [0.15, 0.075]
    )
    assert scheduler.names == ["", "backbone.*"]


def test_state_of_a_loop_resumes():
    def new() -> Any:
        torch.manual_seed(0)
        rules = [head({**STEP, "warmup_steps": 6}), {"match": "*.bias", "scheduler": None}]
        return build(SGD, COSINE, param_groups=rules)

    uninterrupted = rates(*new(), 8)
    optimizer, scheduler = new()
    before = rates(optimizer, scheduler, 3)
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = new()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert before + rates(optimizer, scheduler, 5) == uninterrupted
