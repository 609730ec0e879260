"""What the schedulers refuse, and in which words. `python tests/test_bad_scheduler_inputs.py` counts it by class."""

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
    return torch.optim.SGD(params, lr=0.1)


RANGE, KIND = HyperparameterError, HyperparameterTypeError


def numbers(name, low, *, whole=False, given=None):
    """Values that a number from `low` on cannot be."""
    bad = {
        "below": (low - 1, RANGE),
        "negative": (-1.5, KIND if whole else RANGE),
        "NaN": (math.nan, KIND if whole else RANGE),
        "infinite": (math.inf, KIND if whole else RANGE),
        "text": ("1e-3", KIND),
        "words": ("fast", KIND),
        "None": (None, KIND),
        "a bool": (True, KIND),
        "a list": ([3], KIND),
        "complex": (1j, KIND),
        "a tensor": (torch.tensor(3), KIND),
    }
    bad |= {"a fraction": (2.5, KIND), "a whole float": (30.0, KIND)} if whole else {}
    return [(f"{name} {what}", {**(given or {}), name: value}, kind, None) for what, (value, kind) in bad.items()]


def common(**good):
    """What every scheduler refuses; `good` are arguments that are right."""
    misspelt = {f"{key}s": value for key, value in good.items()} or {"gama": 0.1}
    return [
        ("no optimizer", lambda cls: cls(None, **good), ConfigTypeError, "NoneType is not an Optimizer"),
        ("parameters", lambda cls: cls([torch.zeros(1)], **good), ConfigTypeError, "list is not an Optimizer"),
        ("a name", lambda cls: cls("sgd", **good), ConfigTypeError, "str is not an Optimizer"),
        (
            "an unknown keyword",
            {**good, "warmup_epochs": 3},
            KIND,
            "{cls}.__init__() got an unexpected keyword argument",
        ),
        ("a misspelt keyword", misspelt, KIND, "{cls}.__init__() got an unexpected keyword argument"),
        ("nothing", lambda cls: cls(), TypeError, "{cls}.__init__() missing"),
        (
            "the state of another scheduler",
            lambda cls: cls(sgd(), **good).load_state_dict({"milestones": {}, "gamma": 3}),
            ConfigError,
            None,
        ),
        (
            "the state of a warmup",
            lambda cls: cls(sgd(), **good).load_state_dict({"warmup": {}, "scheduler": {}}),
            ConfigError,
            None,
        ),
    ]


def closed_form(**good):
    """What every closed form refuses besides."""
    return [
        *common(**good),
        *numbers("last_epoch", -1, whole=True, given=good),
        (
            "resumed without initial_lr",
            lambda cls: cls(sgd(), **good, last_epoch=3),
            KeyError,
            "\"param 'initial_lr' is not specified in param_groups[0] when resuming",
        ),
    ]


def returning(value, start=0):
    """A function that has something else to say from an epoch on."""

    def odd(epoch):
        return value if epoch >= start else 1.0

    return odd


def stepped(value):
    """Refused not before the second step."""

    def take(cls):
        scheduler = cls(sgd(), returning(value, 2))
        scheduler.optimizer.step()
        scheduler.step()
        scheduler.step()

    return take


def shrunk(cls):
    scheduler = cls(sgd(), [returning(1.0)] * 2)
    del scheduler.optimizer.param_groups[1]
    scheduler.optimizer.step()
    scheduler.step()


def shrunk_plateau(cls):
    scheduler = cls(sgd(), min_lr=[0.0, 0.0], patience=0)
    del scheduler.optimizer.param_groups[1]
    for _ in range(3):
        scheduler.step(1.0)


ODD = {
    "None": (None, KIND),
    "text": ("0.5", KIND),
    "complex": (1j, KIND),
    "a list": ([0.5], KIND),
    "two numbers": (torch.ones(2), KIND),
    "NaN": (math.nan, RANGE),
    "infinity": (math.inf, RANGE),
    "a NaN tensor": (torch.tensor(math.nan), RANGE),
    "a great integer": (10**400, RANGE),
}

BAD_INPUTS = {
    "StepLR": [
        *numbers("step_size", 1, whole=True),
        *numbers("gamma", 0, given={"step_size": 3}),
        *closed_form(step_size=3),
    ],
    "MultiStepLR": [
        ("milestones a number", {"milestones": 30}, KIND, None),
        ("milestones text", {"milestones": "30"}, KIND, None),
        ("milestones None", {"milestones": None}, KIND, None),
        ("milestones a dict", {"milestones": {30: 0.1}}, KIND, None),
        ("milestones bytes", {"milestones": b"30"}, KIND, None),
        ("a milestone below 0", {"milestones": [3, -1]}, RANGE, None),
        ("a milestone that is text", {"milestones": ["30"]}, KIND, None),
        ("a milestone between", {"milestones": [3, 4.5]}, KIND, None),
        ("a milestone that is a bool", {"milestones": [True]}, KIND, None),
        ("a milestone that is None", {"milestones": [None]}, KIND, None),
        ("a milestone that is a list", {"milestones": [[3]]}, KIND, None),
        ("a milestone that is NaN", {"milestones": [math.nan]}, KIND, None),
        *numbers("gamma", 0, given={"milestones": [3]}),
        *closed_form(milestones=[3]),
    ],
    "ExponentialLR": [*numbers("gamma", 0), *closed_form(gamma=0.9)],
    "CosineAnnealingLR": [
        *numbers("T_max", 1),
        *numbers("eta_min", 0, given={"T_max": 3}),
        *closed_form(T_max=3),
    ],
    "LambdaLR": [
        ("too many", {"lr_lambda": [abs] * 3}, RANGE, "Expected 2 lr_lambdas, but got 3"),
        ("too few", {"lr_lambda": (abs,)}, RANGE, "Expected 2 lr_lambdas, but got 1"),
        ("none", {"lr_lambda": []}, RANGE, "Expected 2 lr_lambdas, but got 0"),
        ("a group less", shrunk, ConfigError, None),
        ("text", {"lr_lambda": "0.95 ** epoch"}, KIND, None),
        ("a number", {"lr_lambda": 0.95}, KIND, None),
        ("None", {"lr_lambda": None}, KIND, None),
        ("a dict", {"lr_lambda": {}}, KIND, None),
        ("text in a list", {"lr_lambda": [abs, "0.5"]}, KIND, None),
        ("a failing function", {"lr_lambda": lambda t: 1 / t}, ZeroDivisionError, "division by zero"),
        ("an overflow", {"lr_lambda": lambda t: math.exp(1000)}, RANGE, None),
        *((f"{what} at once", {"lr_lambda": returning(value)}, kind, None) for what, (value, kind) in ODD.items()),
        *((f"{what} in a step", stepped(value), kind, None) for what, (value, kind) in ODD.items()),
        *closed_form(lr_lambda=returning(1.0)),
    ],
    "ReduceLROnPlateau": [
        *(
            bad
            for name in ("factor", "patience", "threshold", "cooldown", "eps", "min_lr")
            for bad in numbers(name, 0)
            if bad[0] != "min_lr a list"
        ),
        ("factor 1", {"factor": 1.0}, RANGE, "Factor should be < 1.0."),
        ("factor above 1", {"factor": 2}, RANGE, "Factor should be < 1.0."),
        ("mode avg", {"mode": "avg"}, RANGE, "mode avg is unknown!"),
        ("mode None", {"mode": None}, RANGE, None),
        ("threshold_mode exact", {"threshold_mode": "exact"}, RANGE, "threshold mode exact is unknown!"),
        ("too many min_lr", {"min_lr": [0.0] * 3}, RANGE, "expected 2 min_lrs, got 3"),
        ("too few min_lr", {"min_lr": (0.0,)}, RANGE, "expected 2 min_lrs, got 1"),
        ("a min_lr that is text", {"min_lr": [0.0, "1e-3"]}, KIND, None),
        ("a min_lr below 0", {"min_lr": [0.0, -1]}, RANGE, None),
        ("a group less", shrunk_plateau, WiringError, "The number of param groups in the `optimizer` (1) differs from"),
        *common(),
    ],
}
"""By class: what it is, the arguments (or what to do with the class), the error, torch's (or Python's) leading text."""

EACH = [
    pytest.param(name, action, kind, text, id=f"{name}-{what}".replace(" ", "_"))
    for name, bad in BAD_INPUTS.items()
    for what, action, kind, text in bad
]


def attempt(cls, action, optimizer):
    return action(cls) if callable(action) else cls(optimizer, **action)


@pytest.mark.parametrize(("name", "action", "kind", "text"), EACH)
def test_it_is_refused_by_type_and_words(name, action, kind, text):
    optimizer = sgd()
    with pytest.raises(kind) as caught:
        attempt(CLASSES[name], action, optimizer)
    says = str(caught.value)
    if issubclass(kind, OptplugError):
        assert type(caught.value) is kind
        assert says.startswith(text.format(cls=name)) if text else name in says or action_name(action) in says
    else:
        assert says.startswith(text.format(cls=name))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def action_name(action):
    """What a message must name that does not name the class: the argument."""
    return next(reversed(action)) if isinstance(action, dict) else "checkpoint"


@pytest.mark.parametrize(("name", "action", "kind", "text"), [p for p in EACH if p.values[3]])
def test_the_words_are_torch_s_where_torch_refuses_it_too(name, action, kind, text):
    error = None
    try:
        attempt(getattr(lr_scheduler, name), action, sgd())
    except Exception as caught:
        error = caught
    if name == "LambdaLR" and "not an Optimizer" in text:  # torch's asks what it gets for its groups first
        assert isinstance(error, AttributeError)
    else:
        assert str(error).startswith(text.format(cls=name))
        assert issubclass(kind, type(error))


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
        ("ExponentialLR", {"gamma": "1e-3"}, "ExponentialLR: gamma must be a number, got '1e-3'; YAML reads 1e-3 as"),
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
            {"lr_lambda": [abs, returning(None)]},
            "odd, of group 1, at epoch 0 must return a number, got None",
        ),
        (
            "LambdaLR",
            {"lr_lambda": returning(math.nan)},
            "odd, of group 0, at epoch 0 must return a finite number, got nan",
        ),
    ],
)
def test_the_message_says_what_is_wrong_and_what_is_near(name, arguments, words):
    with pytest.raises(OptplugError) as caught:
        CLASSES[name](sgd(), **arguments)
    assert words in str(caught.value)


def test_a_class_of_a_plugin_checks_its_keywords_too():
    class Halving(GeometricLR):
        def cuts(self, t):
            return t

    with pytest.raises(
        KIND, match=r"Halving.__init__\(\) got an unexpected keyword argument 'gama'.*did you mean 'gamma'"
    ):
        Halving(sgd(), gama=0.5)

    class Flat(optplug.ClosedFormLR):
        def multiplier(self, t):
            return 1.0

    with pytest.raises(KIND, match="unexpected keyword argument 'last_epochs'; did you mean 'last_epoch'"):
        Flat(sgd(), last_epochs=3)
    Flat(sgd())


@pytest.mark.parametrize("name", CLASSES)
def test_at_least_ten_bad_inputs_of_every_class_are_refused(name):
    assert len({what for what, *_ in BAD_INPUTS[name]}) == len(BAD_INPUTS[name]) >= 10


if __name__ == "__main__":
    for name, bad in BAD_INPUTS.items():
        print(f"{name:20} {len(bad)}")
