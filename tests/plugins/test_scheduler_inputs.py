"""Invalid input to every scheduler. `python tests/plugins/test_scheduler_inputs.py` prints the counts per class."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler

import optplug
from optplug.errors import (
    ConfigError,
    ConfigTypeError,
    HyperparameterError,
    HyperparameterTypeError,
    OptplugError,
    WiringError,
)
from optplug.schedulers.closed_form import GeometricLR

CLASSES = {cls.__name__: cls for cls in map(optplug.get_scheduler, optplug.list_schedulers("optplug-schedules:*"))}
Lambda = CLASSES["LambdaLR"]


def sgd(groups=2, **options):
    params = [{"params": [torch.zeros(1, requires_grad=True)], **options} for _ in range(groups)]
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


OUT_OF_RANGE, WRONG_TYPE = HyperparameterError, HyperparameterTypeError


def invalid_numbers(name, low, *, whole=False, given=None):
    """Invalid values of an argument that must be a number, at least `low`."""
    invalid = {
        "below": (low - 1, OUT_OF_RANGE),
        "negative": (-1.5, WRONG_TYPE if whole else OUT_OF_RANGE),
        "NaN": (math.nan, WRONG_TYPE if whole else OUT_OF_RANGE),
        "infinite": (math.inf, WRONG_TYPE if whole else OUT_OF_RANGE),
        "text": ("1e-3", WRONG_TYPE),
        "words": ("fast", WRONG_TYPE),
        "None": (None, WRONG_TYPE),
        "a bool": (True, WRONG_TYPE),
        "a list": ([3], WRONG_TYPE),
        "complex": (1j, WRONG_TYPE),
        "a tensor": (torch.tensor(3), WRONG_TYPE),
    }
    invalid |= {"a fraction": (2.5, WRONG_TYPE), "a whole float": (30.0, WRONG_TYPE)} if whole else {}
    return [(f"{name} {what}", {**(given or {}), name: value}, error, None) for what, (value, error) in invalid.items()]


def common_inputs(**valid):
    """Invalid input to any scheduler. `valid` are valid arguments."""
    misspelt = {f"{key}s": value for key, value in valid.items()} or {"gama": 0.1}
    return [
        ("no optimizer", lambda cls: cls(None, **valid), ConfigTypeError, "NoneType is not an Optimizer"),
        ("parameters", lambda cls: cls([torch.zeros(1)], **valid), ConfigTypeError, "list is not an Optimizer"),
        ("a name", lambda cls: cls("sgd", **valid), ConfigTypeError, "str is not an Optimizer"),
        (
            "an unknown keyword",
            {**valid, "warmup_epochs": 3},
            WRONG_TYPE,
            "{cls}.__init__() got an unexpected keyword argument",
        ),
        ("a misspelt keyword", misspelt, WRONG_TYPE, "{cls}.__init__() got an unexpected keyword argument"),
        ("nothing", lambda cls: cls(), TypeError, "{cls}.__init__() missing"),
        (
            "the state of another scheduler",
            lambda cls: cls(sgd(), **valid).load_state_dict({"milestones": {}, "gamma": 3}),
            ConfigError,
            None,
        ),
        (
            "the state of a warmup",
            lambda cls: cls(sgd(), **valid).load_state_dict({"warmup": {}, "scheduler": {}}),
            ConfigError,
            None,
        ),
    ]


def closed_form_inputs(**valid):
    """Invalid input to any closed-form scheduler."""
    return [
        *common_inputs(**valid),
        *invalid_numbers("last_epoch", -1, whole=True, given=valid),
        (
            "resumed without initial_lr",
            lambda cls: cls(sgd(), **valid, last_epoch=3),
            KeyError,
            "\"param 'initial_lr' is not specified in param_groups[0] when resuming",
        ),
    ]


def function_returning(value, start=0):
    """A function that returns 1.0 before epoch `start`, and `value` from then on."""

    def function(epoch):
        return value if epoch >= start else 1.0

    return function


def invalid_in_second_step(value):
    """An action that must raise in the second step."""

    def act(cls):
        scheduler = cls(sgd(), function_returning(value, 2))
        scheduler.optimizer.step()
        scheduler.step()
        scheduler.step()

    return act


def remove_group(cls):
    scheduler = cls(sgd(), [function_returning(1.0)] * 2)
    del scheduler.optimizer.param_groups[1]
    scheduler.optimizer.step()
    scheduler.step()


def step_beyond_the_end(cls):
    scheduler = cls(sgd(), 2.5, 3, cycle_momentum=False)
    for _ in range(4):
        scheduler.optimizer.step()
        scheduler.step()


def remove_group_of_plateau(cls):
    scheduler = cls(sgd(), min_lr=[0.0, 0.0], patience=0)
    del scheduler.optimizer.param_groups[1]
    for _ in range(3):
        scheduler.step(1.0)


INVALID_RETURN_VALUES = {
    "None": (None, WRONG_TYPE),
    "text": ("0.5", WRONG_TYPE),
    "complex": (1j, WRONG_TYPE),
    "a list": ([0.5], WRONG_TYPE),
    "two numbers": (torch.ones(2), WRONG_TYPE),
    "NaN": (math.nan, OUT_OF_RANGE),
    "infinity": (math.inf, OUT_OF_RANGE),
    "a NaN tensor": (torch.tensor(math.nan), OUT_OF_RANGE),
    "a great integer": (10**400, OUT_OF_RANGE),
}

INVALID_INPUTS = {
    "StepLR": [
        *invalid_numbers("step_size", 1, whole=True),
        *invalid_numbers("gamma", 0, given={"step_size": 3}),
        *closed_form_inputs(step_size=3),
    ],
    "MultiStepLR": [
        ("milestones a number", {"milestones": 30}, WRONG_TYPE, None),
        ("milestones text", {"milestones": "30"}, WRONG_TYPE, None),
        ("milestones None", {"milestones": None}, WRONG_TYPE, None),
        ("milestones a dict", {"milestones": {30: 0.1}}, WRONG_TYPE, None),
        ("milestones bytes", {"milestones": b"30"}, WRONG_TYPE, None),
        ("a milestone below 0", {"milestones": [3, -1]}, OUT_OF_RANGE, None),
        ("a milestone that is text", {"milestones": ["30"]}, WRONG_TYPE, None),
        ("a milestone between", {"milestones": [3, 4.5]}, WRONG_TYPE, None),
        ("a milestone that is a bool", {"milestones": [True]}, WRONG_TYPE, None),
        ("a milestone that is None", {"milestones": [None]}, WRONG_TYPE, None),
        ("a milestone that is a list", {"milestones": [[3]]}, WRONG_TYPE, None),
        ("a milestone that is NaN", {"milestones": [math.nan]}, WRONG_TYPE, None),
        *invalid_numbers("gamma", 0, given={"milestones": [3]}),
        *closed_form_inputs(milestones=[3]),
    ],
    "ExponentialLR": [*invalid_numbers("gamma", 0), *closed_form_inputs(gamma=0.9)],
    "CosineAnnealingLR": [
        *invalid_numbers("T_max", 1),
        *invalid_numbers("eta_min", 0, given={"T_max": 3}),
        *closed_form_inputs(T_max=3),
    ],
    "ConstantLR": [
        *invalid_numbers("factor", 0),
        ("factor above 1", {"factor": 1.5}, OUT_OF_RANGE, "Constant multiplicative factor expected to be between 0"),
        *invalid_numbers("total_iters", 1, whole=True),
        *closed_form_inputs(),
    ],
    "LinearLR": [
        *invalid_numbers("start_factor", 0),
        ("start_factor 0", {"start_factor": 0}, OUT_OF_RANGE, "Starting multiplicative factor expected to be greater"),
        ("start_factor above 1", {"start_factor": 2}, OUT_OF_RANGE, "Starting multiplicative factor expected to be"),
        *invalid_numbers("end_factor", 0),
        ("end_factor above 1", {"end_factor": 1.5}, OUT_OF_RANGE, "Ending multiplicative factor expected to be"),
        *invalid_numbers("total_iters", 1, whole=True),
        *invalid_numbers("min_lr_ratio", 0),
        *closed_form_inputs(),
    ],
    "PolynomialLR": [
        *invalid_numbers("total_iters", 1, whole=True),
        *invalid_numbers("power", 0),
        *invalid_numbers("min_lr_ratio", 0),
        *closed_form_inputs(),
    ],
    "WSD": [
        *invalid_numbers("total_steps", 1, whole=True, given={"decay_steps": 3}),
        *invalid_numbers("decay_steps", 1, whole=True, given={"total_steps": 9}),
        *invalid_numbers("warmup_steps", 0, whole=True, given={"total_steps": 9, "decay_steps": 3}),
        *invalid_numbers("min_lr_ratio", 0, given={"total_steps": 9, "decay_steps": 3}),
        ("no such decay", {"total_steps": 9, "decay_steps": 3, "decay": "sqrt"}, OUT_OF_RANGE, None),
        ("decay too long", {"total_steps": 9, "decay_steps": 10}, OUT_OF_RANGE, None),
        ("warmup too long", {"total_steps": 9, "decay_steps": 3, "warmup_steps": 7}, OUT_OF_RANGE, None),
        *closed_form_inputs(total_steps=9, decay_steps=3),
    ],
    "OneCycleLR": [
        *(i for i in invalid_numbers("max_lr", 0, given={"total_steps": 9}) if i[0] != "max_lr a list"),
        (
            "too many max_lr",
            {"total_steps": 9, "max_lr": [0.1] * 3},
            OUT_OF_RANGE,
            "max_lr must have the same length as optimizer.param_groups. max_lr has 3 values, param_groups has 2.",
        ),
        ("no length", {"max_lr": 1.0}, OUT_OF_RANGE, "You must define either total_steps OR (epochs AND"),
        (
            "epochs only",
            {"max_lr": 1.0, "epochs": 3},
            OUT_OF_RANGE,
            "You must define either total_steps OR (epochs AND",
        ),
        (
            "total_steps 0",
            {"max_lr": 1.0, "total_steps": 0},
            OUT_OF_RANGE,
            "Expected positive integer total_steps, but",
        ),
        (
            "epochs 0",
            {"max_lr": 1.0, "epochs": 0, "steps_per_epoch": 3},
            OUT_OF_RANGE,
            "Expected positive integer epochs, but got 0",
        ),
        (
            "pct_start above 1",
            {"max_lr": 1.0, "total_steps": 9, "pct_start": 1.5},
            OUT_OF_RANGE,
            "Expected float between 0 and 1 pct_start, but got 1.5",
        ),
        (
            "no such strategy",
            {"max_lr": 1.0, "total_steps": 9, "anneal_strategy": "sine"},
            OUT_OF_RANGE,
            "anneal_strategy must be one of 'cos' or 'linear', instead got sine",
        ),
        (
            "an optimizer without momentum",
            lambda cls: cls(torch.optim.Adagrad([torch.zeros(1)]), 1.0, 9),
            OUT_OF_RANGE,
            "optimizer must support momentum or beta1 with `cycle_momentum` option enabled",
        ),
        ("after its end", step_beyond_the_end, OUT_OF_RANGE, "Tried to step 4 times. The specified number of total"),
        *closed_form_inputs(max_lr=1.0, total_steps=9),
    ],
    "CyclicLR": [
        *invalid_numbers("step_size_up", 1, given={"base_lr": 0.1, "max_lr": 1.0}),
        *invalid_numbers("gamma", 0, given={"base_lr": 0.1, "max_lr": 1.0}),
        (
            "too few base_lr",
            {"max_lr": 1.0, "base_lr": [0.1]},
            OUT_OF_RANGE,
            "base_lr must have the same length as optimizer.param_groups. base_lr has 1 values, param_groups has 2.",
        ),
        (
            "no such mode",
            {"base_lr": 0.1, "max_lr": 1.0, "mode": "square"},
            OUT_OF_RANGE,
            "mode is invalid and scale_fn is None",
        ),
        ("scale_fn text", {"base_lr": 0.1, "max_lr": 1.0, "scale_fn": "1"}, WRONG_TYPE, None),
        (
            "scale_fn NaN",
            {"base_lr": 0.1, "max_lr": 1.0, "scale_fn": lambda n: math.nan},
            OUT_OF_RANGE,
            None,
        ),
        (
            "an optimizer without momentum",
            lambda cls: cls(torch.optim.Adagrad([torch.zeros(1)]), 0.1, 1.0),
            OUT_OF_RANGE,
            "optimizer must support momentum or beta1 with `cycle_momentum` option enabled",
        ),
        *closed_form_inputs(base_lr=0.1, max_lr=1.0),
    ],
    "CosineAnnealingWarmRestarts": [
        *invalid_numbers("T_0", 1, whole=True),
        *invalid_numbers("T_mult", 1, whole=True, given={"T_0": 3}),
        *invalid_numbers("eta_min", 0, given={"T_0": 3}),
        *invalid_numbers("min_lr_ratio", 0, given={"T_0": 3}),
        ("T_0 0", {"T_0": 0}, OUT_OF_RANGE, "Expected positive integer T_0, but got 0"),
        ("T_mult 0", {"T_0": 3, "T_mult": 0}, OUT_OF_RANGE, "Expected integer T_mult >= 1, but got 0"),
        ("two floors", {"T_0": 3, "eta_min": 0.1, "min_lr_ratio": 0.1}, OUT_OF_RANGE, None),
        (
            "an epoch below 0",
            lambda cls: cls(sgd(), 3).step(-1),
            OUT_OF_RANGE,
            "Expected non-negative epoch, but got -1",
        ),
        *closed_form_inputs(T_0=3),
    ],
    "MultiplicativeLR": [
        ("too many", {"lr_lambda": [abs] * 3}, OUT_OF_RANGE, "Expected 2 lr_lambdas, but got 3"),
        ("text", {"lr_lambda": "0.95"}, WRONG_TYPE, None),
        ("None", {"lr_lambda": None}, WRONG_TYPE, None),
        *(
            (f"{what} in a step", invalid_in_second_step(value), error, None)
            for what, (value, error) in INVALID_RETURN_VALUES.items()
        ),
        *closed_form_inputs(lr_lambda=function_returning(1.0)),
    ],
    "InverseSqrt": [
        *invalid_numbers("warmup_steps", 0, whole=True),
        *(i for i in invalid_numbers("timescale", 1) if i[0] != "timescale None"),
        *invalid_numbers("min_lr_ratio", 0),
        *closed_form_inputs(),
    ],
    "Sequential": [
        ("schedules text", {"schedules": "linear_lr"}, WRONG_TYPE, None),
        ("schedules a mapping", {"schedules": {"name": "linear_lr"}}, WRONG_TYPE, None),
        ("no schedules", {"schedules": []}, OUT_OF_RANGE, "Sequential expects at least one scheduler, but got no"),
        ("a name only", {"schedules": ["linear_lr"]}, WRONG_TYPE, None),
        ("a schedule without a name", {"schedules": [{"length": 3}]}, WRONG_TYPE, None),
        ("no length", {"schedules": [{"name": "linear_lr"}] * 2}, OUT_OF_RANGE, None),
        ("a length of 0", {"schedules": [{"name": "linear_lr", "length": 0}]}, OUT_OF_RANGE, None),
        ("a fraction", {"schedules": [{"name": "linear_lr", "length": 2.5}]}, WRONG_TYPE, None),
        ("a metric", {"schedules": [{"name": "reduce_lr_on_plateau"}]}, OUT_OF_RANGE, None),
        (
            "one_cycle_lr twice",
            {"schedules": [{"name": "one_cycle_lr", "length": 9, "max_lr": 1.0}] * 2},
            OUT_OF_RANGE,
            None,
        ),
        ("a wrong argument", {"schedules": [{"name": "step_lr", "step_size": 0}]}, OUT_OF_RANGE, None),
        *closed_form_inputs(schedules=[{"name": "linear_lr"}]),
    ],
    "LambdaLR": [
        ("too many", {"lr_lambda": [abs] * 3}, OUT_OF_RANGE, "Expected 2 lr_lambdas, but got 3"),
        ("too few", {"lr_lambda": (abs,)}, OUT_OF_RANGE, "Expected 2 lr_lambdas, but got 1"),
        ("none", {"lr_lambda": []}, OUT_OF_RANGE, "Expected 2 lr_lambdas, but got 0"),
        ("a group less", remove_group, ConfigError, None),
        ("text", {"lr_lambda": "0.95 ** epoch"}, WRONG_TYPE, None),
        ("a number", {"lr_lambda": 0.95}, WRONG_TYPE, None),
        ("None", {"lr_lambda": None}, WRONG_TYPE, None),
        ("a dict", {"lr_lambda": {}}, WRONG_TYPE, None),
        ("text in a list", {"lr_lambda": [abs, "0.5"]}, WRONG_TYPE, None),
        ("a failing function", {"lr_lambda": lambda t: 1 / t}, ZeroDivisionError, "division by zero"),
        ("an overflow", {"lr_lambda": lambda t: math.exp(1000)}, OUT_OF_RANGE, None),
        *(
            (f"{what} at once", {"lr_lambda": function_returning(value)}, error, None)
            for what, (value, error) in INVALID_RETURN_VALUES.items()
        ),
        *(
            (f"{what} in a step", invalid_in_second_step(value), error, None)
            for what, (value, error) in INVALID_RETURN_VALUES.items()
        ),
        *closed_form_inputs(lr_lambda=function_returning(1.0)),
    ],
    "ReduceLROnPlateau": [
        *(
            invalid
            for name in ("factor", "patience", "threshold", "cooldown", "eps", "min_lr")
            for invalid in invalid_numbers(name, 0)
            if invalid[0] != "min_lr a list"
        ),
        ("factor 1", {"factor": 1.0}, OUT_OF_RANGE, "Factor should be < 1.0."),
        ("factor above 1", {"factor": 2}, OUT_OF_RANGE, "Factor should be < 1.0."),
        ("mode avg", {"mode": "avg"}, OUT_OF_RANGE, "mode avg is unknown!"),
        ("mode None", {"mode": None}, OUT_OF_RANGE, None),
        ("threshold_mode exact", {"threshold_mode": "exact"}, OUT_OF_RANGE, "threshold mode exact is unknown!"),
        ("too many min_lr", {"min_lr": [0.0] * 3}, OUT_OF_RANGE, "expected 2 min_lrs, got 3"),
        ("too few min_lr", {"min_lr": (0.0,)}, OUT_OF_RANGE, "expected 2 min_lrs, got 1"),
        ("a min_lr that is text", {"min_lr": [0.0, "1e-3"]}, WRONG_TYPE, None),
        ("a min_lr below 0", {"min_lr": [0.0, -1]}, OUT_OF_RANGE, None),
        (
            "a group less",
            remove_group_of_plateau,
            WiringError,
            "The number of param groups in the `optimizer` (1) differs from",
        ),
        *common_inputs(),
    ],
}
"""By class: a description, the arguments or a function of the class, the exception, and the text of torch or Python
with which the message begins."""

CASES = [
    pytest.param(name, action, error, text, id=f"{name}-{what}".replace(" ", "_"))
    for name, invalid in INVALID_INPUTS.items()
    for what, action, error, text in invalid
]


def attempt(cls, action, optimizer):
    return action(cls) if callable(action) else cls(optimizer, **action)


@pytest.mark.parametrize(("name", "action", "error", "text"), CASES)
def test_invalid_input_is_rejected_with_type_and_message(name, action, error, text):
    optimizer = sgd()
    with pytest.raises(error) as caught:
        attempt(CLASSES[name], action, optimizer)
    message = str(caught.value)
    if issubclass(error, OptplugError):
        assert type(caught.value) is error
        assert (
            message.startswith(text.format(cls=name)) if text else name in message or argument_name(action) in message
        )
    else:
        assert message.startswith(text.format(cls=name))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def argument_name(action):
    """The word that a message without the class name must contain: the argument."""
    return next(reversed(action)) if isinstance(action, dict) else "checkpoint"


@pytest.mark.parametrize(
    ("name", "action", "error", "text"), [p for p in CASES if p.values[3] and hasattr(lr_scheduler, p.values[0])]
)
def test_message_begins_with_text_of_torch(name, action, error, text):
    raised = None
    try:
        attempt(getattr(lr_scheduler, name), action, sgd())
    except Exception as caught:
        raised = caught
    reads_groups_first = name in ("LambdaLR", "MultiplicativeLR")  # torch's class
    if reads_groups_first and "not an Optimizer" in text:
        assert isinstance(raised, AttributeError)
    else:
        assert str(raised).startswith(text.format(cls=name))
        assert issubclass(error, type(raised))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (
            "StepLR",
            {"stepsize": 3},
            "got an unexpected keyword argument 'stepsize'; did you mean 'step_size'?",
        ),
        ("StepLR", {"zzz": 3}, "got an unexpected keyword argument 'zzz'; it has optimizer, step_size, gamma, "),
        ("StepLR", {"step_size": "3"}, "StepLR: step_size must be a whole number, got '3'; write 3"),
        ("StepLR", {"step_size": 0}, "StepLR: step_size must be at least 1, got 0"),
        ("ExponentialLR", {"gamma": "1e-3"}, "ExponentialLR: gamma must be a number, got '1e-3'; write 0.001"),
        ("ExponentialLR", {"gama": 0.1}, "did you mean 'gamma'?"),
        ("ExponentialLR", {"gamma": math.inf}, "ExponentialLR: gamma must be finite, got inf"),
        ("ExponentialLR", {"gamma": 1, "last_epoch": -2}, "ExponentialLR: last_epoch must be at least -1, got -2"),
        (
            "MultiStepLR",
            {"milestones": 30},
            "MultiStepLR: milestones must be a list of whole numbers such as [30], got 30",
        ),
        ("MultiStepLR", {"milestones": [3, -4]}, "MultiStepLR: milestones[1] must be at least 0, got -4"),
        ("CosineAnnealingLR", {"t_max": 3}, "did you mean 'T_max'?"),
        ("ReduceLROnPlateau", {"patiense": 3}, "did you mean 'patience'?"),
        ("ReduceLROnPlateau", {"min_lr": [0, "x"]}, "ReduceLROnPlateau: min_lr[1] must be a number, got 'x'"),
        (
            "LambdaLR",
            {"lr_lambda": "0.5"},
            "must be a function of the step, got '0.5'; expressions are allowed in configurations and",
        ),
        ("LambdaLR", {"lr_lambda": [abs, 3]}, "LambdaLR: lr_lambda[1] must be a function of the step, got 3"),
        (
            "LambdaLR",
            {"lr_lambda": [abs, function_returning(None)]},
            "function, of group 1, at epoch 0 must return a number, got None",
        ),
        (
            "LambdaLR",
            {"lr_lambda": function_returning(math.nan)},
            "function, of group 0, at epoch 0 must return a finite number, got nan",
        ),
    ],
)
def test_invalid_argument_message_states_problem_and_suggestion(name, arguments, words):
    with pytest.raises(OptplugError) as caught:
        CLASSES[name](sgd(), **arguments)
    assert words in str(caught.value)


def test_third_party_scheduler_checks_its_keywords():
    class Halving(GeometricLR):
        def exponent(self, t):
            return t

    with pytest.raises(
        WRONG_TYPE, match=r"Halving.__init__\(\) got an unexpected keyword argument 'gama'.*did you mean 'gamma'"
    ):
        Halving(sgd(), gama=0.5)

    class Flat(optplug.ClosedFormLR):
        def multiplier(self, t):
            return 1.0

    with pytest.raises(WRONG_TYPE, match="unexpected keyword argument 'last_epochs'; did you mean 'last_epoch'"):
        Flat(sgd(), last_epochs=3)
    Flat(sgd())


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_at_least_ten_invalid_inputs(name):
    assert len({what for what, *_ in INVALID_INPUTS[name]}) == len(INVALID_INPUTS[name]) >= 10


if __name__ == "__main__":
    for name, invalid in INVALID_INPUTS.items():
        print(f"{name:20} {len(invalid)}")
